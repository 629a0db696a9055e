# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""`tamiseg analyse-prompts`: does the mask follow the sentence, and which words does it follow?

    tamiseg analyse-prompts runs/mine/best --dataset my_data --split test --output runs/mine/prompts

Each row that has a sentence is asked three kinds of question; a picture passes the encoder once.

    side       Where the sentence names one half of the picture alone, the other half is named instead: how much of
               the mask's area goes there?
    agreement  What a sentence states (side, count, zones; see `sentences`) against what the mask shows, under the
               row's own sentence, none, another row's, and the exchanged side: does the mask agree with the row's own
               sentence, and with the one that was asked? The truth's agreement says what can be reached.
    words      Each word is left out in turn. If attention told what matters, leaving out the word that pixels attend
               to the most would change the mask more than leaving out any other.

`result.json` holds means over rows with 95 % intervals over patients, and nothing of a single case.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from .arms import ARMS, text_arms
from .findings import FEWEST
from .metrics import confusion, dice, in_percent, mean_with_interval
from .prompts import SWAPS, names_side, normalize_prompt
from .sentences import compare


AGREEMENT_ARMS = ("full_text", "no_text", "shuffled_text", "wrong_side")
OPTIONS = ("dataset", "split", "max_rows", "seed", "output")
MOST = 30  # words that are told
MEASURES = ("attention", "change", "loss")  # of a word

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")


def add_command(commands) -> None:
    """Adds `analyse-prompts` to the subcommands of `tamiseg`."""
    command = commands.add_parser("analyse-prompts", help="measure whether masks follow the sentence, and which words")
    command.add_argument("model", help="folder of a trained model, or its Hub id")
    command.add_argument("--dataset", required=True, help="builtin, a folder, or a Hub id, as for training")
    command.add_argument("--split", default="test", help="which rows: train, validation or test")
    command.add_argument("--output", required=True, help="folder for result.json")
    command.add_argument("--max_rows", type=int, help="a random subset of the rows, for a first look")
    command.add_argument("--seed", type=int, default=0, help="of shuffling and resampling")
    command.add_argument(
        "--pictures",
        type=int,
        default=0,
        metavar="N",
        help="also draw what N cases attend to, as words.png (pictures of patients: mind where they go)",
    )
    command.set_defaults(run=run)


def run(arguments) -> None:
    """Analyses, writes and prints."""
    import torch
    from tqdm import tqdm

    from .data import column, fingerprint, load_rows, read_pair
    from .evaluation import build, command_of, output_folder, receipt
    from .hub import without_folders
    from .image_processing_tamiseg import IGNORE_INDEX, TAMISegImageProcessor
    from .model_card import describe_rows
    from .plots import write_words
    from .report import as_markdown

    output = output_folder(arguments.output, "faithfulness")
    rows = load_rows(arguments.dataset, arguments.split, max_rows=arguments.max_rows)
    prompts = [normalize_prompt(prompt) for prompt in column(rows, "prompt")]
    with_text = [index for index, prompt in enumerate(prompts) if find_words(prompt or "")]
    if not with_text:
        raise ValueError(f"no row of split '{arguments.split}' has a sentence: there is nothing to analyse.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    segment, weights = build(arguments.model, None, device)
    if not segment.processor.tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer of '{arguments.model}' does not say where a word lies: save a fast one with it."
        )
    reader = TAMISegImageProcessor(num_labels=segment.num_labels)
    arms = text_arms(prompts, AGREEMENT_ARMS, arguments.seed)

    cases, drawn = [], []
    shown = set(np.linspace(0, len(with_text) - 1, min(arguments.pictures, len(with_text))).astype(int))
    for number, index in enumerate(tqdm(with_text, unit="row", mininterval=1)):
        pair = read_pair(rows, index, reader)
        truth = np.asarray(pair["mask"])
        keep = truth != IGNORE_INDEX
        words = find_words(prompts[index])
        sentences = [some[index] for some in arms.values()] + [leave_out(prompts[index], word) for word in words]
        masks, maps = ask(segment, pair["image"], sentences, words)
        masks = [mask & keep for mask in masks]
        asked = dict(zip(arms, sentences, strict=False))
        case = analyse(prompts[index], words, asked, masks, (truth > 0) & keep, maps)
        cases.append({"name": pair["name"], "patient_id": pair["patient_id"], **case})
        if number in shown:
            found = {"image": pair["image"], "mask": masks[0], "sentence": prompts[index]}
            drawn.append(found | {"words": [word[0] for word in words], "maps": maps})

    told = {name: getattr(arguments, name) for name in OPTIONS}
    result = {
        **receipt(command_of("analyse-prompts", arguments.model, told), weights, arguments.seed, str(device)),
        "arguments": without_folders({"model": arguments.model, **told}),
        "split": arguments.split,
        "faithfulness": summarize(cases, arguments.seed),
        "data": {arguments.split: fingerprint(rows)},
        "rows": {arguments.split: describe_rows(prompts, column(rows, "patient_id"))},
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if drawn:
        write_words(drawn, output / "words.png")
    print(as_markdown(tables(result["faithfulness"])))
    print(f"\nall of it in {output / 'result.json'}")


# Words and sides of a sentence


def find_words(sentence: str) -> list[re.Match]:
    """The words of a sentence, with their places in it; punctuation is none."""
    return list(_WORD.finditer(sentence))


def leave_out(sentence: str, word: re.Match) -> str | None:
    """The sentence without one of its words; None where nothing is left."""
    rest = sentence[: word.start()] + sentence[word.end() :]
    return normalize_prompt(re.sub(r"\s+(?=[,;.])", "", rest)) if find_words(rest) else None


def named_half(sentence: str) -> tuple[str, int] | None:
    """The half of the picture that a sentence names, if it is one alone: the axis, as `mirror_prompt` calls it, and 0
    for left or upper, 1 for right or lower. The axis is that on which `exchange_sides` would change the sentence."""
    axis = "horizontal" if names_side(sentence, "horizontal") else "vertical"
    words = set(re.findall(r"[^\W\d_]+", sentence.lower()))
    named = [any(pair[half] in words for pair in SWAPS[axis]) for half in (0, 1)]
    return (axis, named.index(True)) if sum(named) == 1 else None


def share_in_half(mask: np.ndarray, axis: str, half: int) -> float | None:
    """Which share of a mask's area, bool (height, width), lies in a half of the picture, see `named_half`; None where
    the mask is empty. A middle row or column of pixels belongs to neither half."""
    mask = mask if axis == "horizontal" else mask.T
    middle = mask.shape[1] // 2
    areas = mask[:, :middle].sum(), mask[:, mask.shape[1] - middle :].sum()
    return float(areas[half] / sum(areas)) if sum(areas) else None


# One picture


def ask(segment, image, sentences: list[str | None], words: list[re.Match]) -> tuple[list[np.ndarray], np.ndarray]:
    """Asks a model about one picture.

    Args:
        segment: a `Segmenter` of a model of the second stage.
        image: PIL, RGB.
        sentences: the first is the picture's own.
        words: those of the first sentence.

    Returns:
        The mask of each sentence, bool (height, width) of the picture; and for each word what the pixels attend to it,
        float32 (words, rows, columns) in [0, 1] on the model's grid: the mean over attentions, heads and scales.
    """
    import torch

    processor, model = segment.processor, segment.model
    pixels = processor.image_processor(images=image, return_tensors="pt")["pixel_values"].to(model.device)
    with torch.no_grad():
        outputs = model(
            pixel_values=pixels,
            image_indices=torch.zeros(len(sentences), dtype=torch.long, device=model.device),
            output_attentions=True,
            **segment.read(sentences),
        )
    masks = processor.post_process_semantic_segmentation(outputs, target_sizes=[(image.height, image.width)])[0]
    offsets = processor.tokenizer(sentences[0], truncation=False, padding=False, return_offsets_mapping=True)
    offsets = offsets["offset_mapping"]
    holds = torch.tensor(
        [[start < word.end() and end > word.start() for start, end in offsets] for word in words], dtype=torch.float32
    )
    maps = token_maps(model, outputs)[: len(offsets)].cpu()
    maps = torch.einsum("wt,thv->whv", holds[:, : len(maps)], maps)
    return [mask.cpu().numpy() > 0 for mask in masks], maps.numpy()


def token_maps(model, outputs):
    """What the pixels attend to each token of the first sentence: float32 (tokens, rows, columns), which sum to 1 over
    the tokens. The mean over both attentions, their heads and the four scales, on the grid of the finest."""
    import torch
    import torch.nn.functional as F

    sizes = [
        (m.shape[-2] // pool, m.shape[-1] // pool)
        for m, pool in zip(outputs.vision_hidden_states, model.decoder.pools, strict=True)
    ]
    weights = torch.stack([attention[0].float().mean(dim=0) for attention in outputs.cross_attentions]).mean(dim=0)
    # (pixels of all scales, tokens) -> for each scale (1, tokens, rows, columns)
    maps = [
        some.T.unflatten(1, size)[None]
        for some, size in zip(weights.split([h * w for h, w in sizes]), sizes, strict=True)
    ]
    maps = [F.interpolate(m, size=sizes[0], mode="bilinear", align_corners=False) for m in maps]
    return torch.cat(maps).mean(dim=0)


def analyse(
    sentence: str,
    words: list[re.Match],
    asked: dict[str, str | None],
    masks: list[np.ndarray],
    truth: np.ndarray,
    maps: np.ndarray,
) -> dict:
    """What one picture tells.

    Args:
        sentence: its own.
        words: of that sentence.
        asked: the sentence of each of `AGREEMENT_ARMS`, the first being its own.
        masks: bool (height, width): one per arm, then one per word that was left out.
        truth: bool (height, width).
        maps: of the words, see `ask`.

    Returns:
        `side`: shares of the mask's area in the half that the exchanged sentence names, `before` and `after` the
            exchange (None where that mask is empty); None where the sentence names no one half alone.
        `agreement`: for each arm, and for `truth`, what `compare` says of the row's `own` sentence and of the `asked`.
        `words`: for each its `word`, `attention`, by how much the mask changes without it (1 - Dice of both masks) as
            `change`, and by how much the Dice falls as `loss`.
    """
    by_arm = dict(zip(asked, masks, strict=False))
    own = masks[0]
    half = named_half(sentence)
    side = None
    if half is not None:
        axis, named = half
        side = {
            "before": share_in_half(own, axis, 1 - named),
            "after": share_in_half(by_arm["wrong_side"], axis, 1 - named),
        }
    agreement = {"truth": {"own": compare(sentence, truth), "asked": {}}}
    for arm, mask in by_arm.items():
        agreement[arm] = {"own": compare(sentence, mask), "asked": compare(asked[arm], mask)}
    right = score(own, truth)
    told = [
        {
            "word": word[0].lower(),
            "attention": float(map_of.mean()),
            "change": 1 - score(mask, own),
            "loss": right - score(mask, truth),
        }
        for word, map_of, mask in zip(words, maps, masks[len(asked) :], strict=True)
    ]
    return {"side": side, "agreement": agreement, "words": told}


def score(mask: np.ndarray, other: np.ndarray) -> float:
    """Dice of two masks."""
    return float(dice(*confusion(mask, other)[:3]))


# All pictures


def summarize(cases: Sequence[dict], seed: int) -> dict:
    """Means over the cases of `analyse`, each with its 95 % interval and number of cases.

    Returns:
        `side`: `before`, `after` and `moved` (their difference) over the cases where both masks hold something, and
            `emptied`, how often the exchange left nothing of a mask.
        `agreement`: by arm (and `truth`) and `own` or `asked`, the attributes; without those that no case states.
        `words`: `change` and `loss` without the `highest` word by attention, without any `other` (the mean over them:
            a word drawn at random), without the `lowest`, and `difference` (highest less other); the mean
            `rank_correlation` of attention and change over the words of a case; the share of attention `on_words`, the
            rest of which goes to punctuation and special tokens; and `by_word`, the means for each word that at least
            `FEWEST` rows have, those that matter most first.
    """

    def mean(values):
        kept = [(case, value) for case, value in zip(cases, values, strict=True) if value is not None]
        return mean_with_interval([case for case, _ in kept], [value for _, value in kept], seed)

    sides = [case["side"] for case in cases]
    emptied = [None if side is None or side["before"] is None else float(side["after"] is None) for side in sides]
    both = [side if gone == 0 else {"before": None, "after": None} for side, gone in zip(sides, emptied, strict=True)]
    agreement: dict[str, dict] = {}
    for arm in cases[0]["agreement"]:
        for kind in ("own", "asked"):
            told = [case["agreement"][arm][kind] for case in cases]
            names = dict.fromkeys(name for some in told for name in some)
            if names:
                found = {name: mean([some.get(name) for some in told]) for name in names}
                agreement.setdefault(arm, {})[kind] = found
    return {
        "rows": len(cases),
        "side": {
            "before": mean([side["before"] for side in both]),
            "after": mean([side["after"] for side in both]),
            "moved": mean([None if side["after"] is None else side["after"] - side["before"] for side in both]),
            "emptied": mean(emptied),
        },
        "agreement": agreement,
        "words": {
            "change": deletion(cases, "change", mean),
            "loss": deletion(cases, "loss", mean),
            "rank_correlation": mean([rank_correlation(case["words"]) for case in cases]),
            "on_words": mean([sum(word["attention"] for word in case["words"]) for case in cases]),
            "by_word": by_word(cases),
        },
    }


def deletion(cases: Sequence[dict], effect: str, mean) -> dict:
    """The deletion test: `effect` of leaving out a word, over the cases with two words or more."""
    told = {"highest": [], "other": [], "lowest": [], "difference": []}
    for case in cases:
        ranked = [word[effect] for word in sorted(case["words"], key=lambda word: -word["attention"])]
        if len(ranked) < 2:
            values = dict.fromkeys(told)
        else:
            highest, other = ranked[0], float(np.mean(ranked[1:]))
            values = {"highest": highest, "other": other, "lowest": ranked[-1], "difference": highest - other}
        for name, value in values.items():
            told[name].append(value)
    return {name: mean(values) for name, values in told.items()}


def rank_correlation(words: Sequence[dict]) -> float | None:
    """Spearman's, of attention and change, in [-1, 1]; None where there is no order."""
    from scipy.stats import spearmanr

    attention, change = ([word[key] for word in words] for key in ("attention", "change"))
    if len(set(attention)) < 2 or len(set(change)) < 2:
        return None
    return float(spearmanr(attention, change).statistic)


def by_word(cases: Sequence[dict]) -> list[dict]:
    """Means for each word, over the rows that have it."""
    found: dict[str, list[dict]] = {}
    rows: Counter[str] = Counter()
    for case in cases:
        for word in case["words"]:
            found.setdefault(word["word"], []).append(word)
        rows.update({word["word"] for word in case["words"]})
    told = [
        {"word": word, "rows": rows[word], **{key: float(np.mean([one[key] for one in some])) for key in MEASURES}}
        for word, some in found.items()
        if rows[word] >= FEWEST
    ]
    return sorted(told, key=lambda word: (-word["change"], word["word"]))[:MOST]


def tables(found: dict) -> list[str | list[list[str]]]:
    """What `summarize` gives, as paragraphs and tables (the first row of each is its head)."""

    def cell(some: dict | None) -> str:
        return "-" if some is None else in_percent(some["mean"], some["interval"])

    side, words = found["side"], found["words"]
    names = dict.fromkeys(name for kinds in found["agreement"].values() for some in kinds.values() for name in some)
    agreement = [["mask under", "compared with", *(name.replace("_", " ") for name in names)]]
    for arm, kinds in found["agreement"].items():
        for kind, some in kinds.items():
            if kind == "asked" and arm == "full_text":
                continue  # its own sentence is the one that was asked
            with_what = "the row's own sentence" if kind == "own" else "the sentence that was asked"
            title = "none: the truth" if arm == "truth" else ARMS[arm]
            agreement.append([title, with_what, *(cell(some.get(name)) for name in names)])
    left_out = {
        "highest": "the word with the most attention",
        "other": "another word, at random",
        "lowest": "the word with the least attention",
        "difference": "the most less another",
    }
    parts: list = [
        f"{found['rows']} rows with a sentence. Where it names one half of the picture alone, the other half is named "
        "instead: which share of the mask's area lies in that half, over the "
        f"{side['moved']['cases']} rows whose mask holds something before and after, and how many masks are emptied?",
        [
            ["before", "after", "moved", "emptied"],
            [cell(side[name]) for name in ("before", "after", "moved", "emptied")],
        ],
    ]
    if names:
        parts += [
            "How often the mask bears out what a sentence states (each zone: the share of the six zones told alike). "
            "What the truth reaches is the most that these rules can give.",
            agreement,
        ]
    parts += [
        "One word is left out: how far the mask changes (1 - Dice of both masks), and how much Dice is lost.",
        [
            ["left out", "change of the mask", "Dice lost"],
            *([title, cell(words["change"][name]), cell(words["loss"][name])] for name, title in left_out.items()),
        ],
        "How much attention goes to words (the rest to punctuation and special tokens), and the rank correlation of "
        "attention and change over the words of a sentence, times 100.",
        [["on words", "rank correlation"], [cell(words["on_words"]), cell(words["rank_correlation"])]],
    ]
    if words["by_word"]:
        by_word = [["word", "rows", "attention", "change of the mask", "Dice lost"]]
        for word in words["by_word"]:
            by_word.append([word["word"], str(word["rows"]), *(in_percent(word[name]) for name in MEASURES)])
        parts.append(by_word)
    return parts
