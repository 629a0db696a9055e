# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""`tamiseg evaluate`: scores of a model on a split, with intervals, under its sentences and under altered ones.

    tamiseg evaluate runs/mine/best --dataset my_data --split test --output runs/mine/test
    torchrun --nproc_per_node 4 -m processing.command_line evaluate ...     # the same numbers, sooner

It writes `result.json` (scores and all that is needed to get them again), `cases.csv` (a line per case and arm) and
`cases.jsonl` (the same with each case's calibration, from which `--resume` goes on). The same command gives the same
bytes again: no file tells the time, and batches do not depend on the number of processes (on a CPU, give each as many
threads: `OMP_NUM_THREADS=1`, which torchrun sets). The weights are used as they were saved: `fuse_for_inference` would
be quicker, but rounds otherwise than `tamiseg predict` and training do.

What is evaluated is a function of pictures and sentences, see `Segmenter`: a baseline needs no more than that, and
`--adapter package.module:function` names what builds it from MODEL.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import ImageOps

from .arms import ARMS, text_arms
from .findings import pair_arms, score_findings
from .metrics import SegmentationMeter, bootstrap, score_case, unit_of
from .model_card import describe_rows
from .prompts import mirror_prompt
from .reading import parse_json, read_json, sha256


DEFAULT_ARMS = ("full_text", "no_text", "shuffled_text")
# What a result depends on, and where it went.
OPTIONS = ("adapter", "dataset", "split", "max_rows", "batch_size", "seed", "spacing", "tolerance", "output")
PICTURES = ("worst.png", "qualitative.png", "sentences.png")
COLUMNS = (
    "name", "patient_id", "arm", "sentence", "dice", "iou", "hd95", "surface_dice", "tp", "fp", "fn", "tn"
)  # fmt: skip


def add_command(commands) -> None:
    """Adds `evaluate` to the subcommands of `tamiseg`."""
    command = commands.add_parser("evaluate", help="score a model on a split of a data set")
    command.add_argument("model", help="folder of a trained model, or its Hub id")
    command.add_argument("--dataset", required=True, help="builtin, a folder, or a Hub id, as for training")
    command.add_argument("--split", default="test", help="which rows: train, validation or test")
    command.add_argument("--output", required=True, help="folder for result.json, cases.csv and cases.jsonl")
    command.add_argument(
        "--arms",
        nargs="+",
        choices=[*ARMS, "all"],
        default=list(DEFAULT_ARMS),
        help=f"what each case is asked: {', '.join(f'{arm} ({title})' for arm, title in ARMS.items())}, or all",
    )
    command.add_argument("--max_rows", type=int, help="a random subset of the rows, for a first look")
    command.add_argument("--batch_size", type=int, default=8, help="pictures that go through the model together")
    command.add_argument("--seed", type=int, default=0, help="of shuffling, typing errors and resampling")
    command.add_argument("--spacing", type=float, help="millimetres per pixel; without it distances are in pixels")
    command.add_argument(
        "--tolerance", type=float, default=2.0, help="of surface Dice, in millimetres with --spacing, else in pixels"
    )
    command.add_argument("--resume", action="store_true", help="go on from what cases.jsonl holds")
    command.add_argument(
        "--pictures",
        type=int,
        default=0,
        metavar="N",
        help="also draw N cases from worst to best, and the N worst (pictures of patients: mind where they go)",
    )
    command.add_argument(
        "--flip", action="store_true", help="average with the mirrored picture's, sides exchanged in the sentence"
    )
    command.add_argument("--adapter", metavar="MODULE:FUNCTION", help="for other models: builds one from MODEL")
    command.set_defaults(run=run)


class Segmenter:
    """A TAMISeg model of either stage, as evaluation asks it (of the first, training does).

    Anything with this call can be evaluated, a plain function too; a baseline of more than two classes also says
    `num_labels`.

    Args:
        model: it is put in eval mode.
        processor: its processor.
    """

    def __init__(self, model, processor):
        from modeling_tamiseg import TextCache

        self.model, self.processor = model.eval(), processor
        self.num_labels = model.config.num_labels
        self.cache = TextCache(model) if hasattr(model, "text_encoder") else None  # stage 1 reads no sentence

    def __call__(self, images: list, sentences: list[list[str | None]]) -> list[list[tuple]]:
        """Segments each picture under each of its sentences; a picture passes the encoder once.

        Args:
            images: PIL images, RGB.
            sentences: for each picture a list; None or blank asks without words.

        Returns:
            For each picture and sentence the mask, bool (height, width) of the picture's size, or with more than two
            labels their ids; and the probability of anything but background, float (height, width) in [0, 1], or None
            where a model has none.
        """
        import torch

        from modeling_tamiseg import TAMISegImageSegmentationOutput

        device = self.model.device
        pixels = self.processor.image_processor(images=images, return_tensors="pt")["pixel_values"].to(device)
        owners = torch.tensor([i for i, some in enumerate(sentences) for _ in some], device=device)
        with torch.no_grad():
            if self.cache is None:
                logits = self.model(pixel_values=pixels).logits[owners]
                outputs = TAMISegImageSegmentationOutput(logits=logits, image_indices=owners)
            else:
                text = self.read([sentence for some in sentences for sentence in some])
                outputs = self.model(pixel_values=pixels, image_indices=owners, **text)
        answers = self.processor.post_process_semantic_segmentation(
            outputs, target_sizes=[(image.height, image.width) for image in images], return_probabilities=True
        )
        return [
            [
                (found if self.num_labels > 2 else found > 0, 1 - probability[0].cpu().numpy())
                for found, probability in zip((mask.cpu().numpy() for mask in masks), probabilities, strict=True)
            ]
            for masks, probabilities in zip(*answers, strict=True)
        ]

    def read(self, sentences: list[str | None]) -> dict:
        """The model's keywords for the sentences; none where all are blank."""
        words = self.processor(text=sentences, return_tensors="pt").to(self.model.device)
        if not words:
            return {}
        return self.cache(words["input_ids"], words["attention_mask"])


class FlipAverage:
    """What a segmenter says of a picture, averaged with what it says of its mirror image, where a sentence has left
    and right exchanged. Twice the time.

    Args:
        segment: a `Segmenter`, or what else gives probabilities.

    Raises:
        ValueError: it tells more than two labels apart, and has one probability.
    """

    def __init__(self, segment: Callable):
        self.segment, self.num_labels = segment, getattr(segment, "num_labels", 2)
        if self.num_labels > 2:
            raise ValueError(
                f"--flip averages one probability, and this model has {self.num_labels} labels: leave it out."
            )

    def __call__(self, images: list, sentences: list[list[str | None]]) -> list[list[tuple]]:
        """As `Segmenter.__call__`; a mask is where the average exceeds one half.

        Raises:
            ValueError: the segmenter gives no probabilities.
        """
        mirrored = [[mirror_prompt(sentence, "horizontal") for sentence in some] for some in sentences]
        answers = []
        for there, back in zip(
            self.segment(images, sentences), self.segment([ImageOps.mirror(i) for i in images], mirrored), strict=True
        ):
            if any(probability is None for _, probability in (*there, *back)):
                raise ValueError("--flip averages probabilities, which this model does not give: leave it out.")
            averages = [(p + q[:, ::-1]) / 2 for (_, p), (_, q) in zip(there, back, strict=True)]
            answers.append([(average > 0.5, average) for average in averages])
        return answers


def measure(
    accelerator,
    segment,
    rows: Sequence[dict],
    arms: dict[str, list[str | None]],
    batch_size: int,
    *,
    skip: frozenset[int] = frozenset(),
    calibration: bool = False,
    surface: dict | None = None,
) -> Iterator[list[dict]]:
    """Scores the rows under each arm, batch by batch.

    Batches are the same blocks of rows whatever the number of processes, which take turns: so are the numbers.

    Args:
        accelerator: of Accelerate; its processes share the work, and each receives the cases of all.
        segment: a `Segmenter`, or another function like it.
        rows: what `load_rows` gives.
        arms: the sentences of all rows by arm, see `text_arms`.
        batch_size: rows per batch.
        skip: the first rows of batches that are not wanted.
        calibration: whether probabilities are scored.
        surface: see `score_case`.

    Yields:
        Cases of `score_case`, with the row's `index`, the `arm` and its `sentence`.
    """
    from accelerate.utils import gather_object

    from .data import read_pair
    from .image_processing_tamiseg import IGNORE_INDEX, TAMISegImageProcessor

    num_labels = getattr(segment, "num_labels", 2)
    reader = TAMISegImageProcessor(num_labels=num_labels)
    starts = [start for start in range(0, len(rows), batch_size) if start not in skip]
    for turn in range(0, len(starts), accelerator.num_processes):
        cases = []
        # One batch each, or none where the last turn does not go round: all must come to the gathering.
        for start in starts[turn : turn + accelerator.num_processes][accelerator.process_index :][:1]:
            indices = range(start, min(start + batch_size, len(rows)))
            pairs = [read_pair(rows, index, reader) for index in indices]
            asked = [[sentences[index] for sentences in arms.values()] for index in indices]
            answers = segment([pair["image"] for pair in pairs], asked)
            for index, pair, answer in zip(indices, pairs, answers, strict=True):
                truth = np.asarray(pair["mask"])
                keep = truth != IGNORE_INDEX
                for (arm, sentences), (mask, probability) in zip(arms.items(), answer, strict=True):
                    case = score_case(
                        mask,
                        truth if num_labels > 2 else truth > 0,
                        pair["name"],
                        pair["patient_id"],
                        keep=keep,
                        probability=probability if calibration else None,
                        surface=surface,
                        num_labels=num_labels,
                    )
                    cases.append({"index": index, "arm": arm, "sentence": sentences[index], **case})
        yield gather_object(cases) if accelerator.num_processes > 1 else cases


def evaluate(
    accelerator, segment, rows, arms: dict[str, list[str | None]], batch_size: int, watch: Callable = iter
) -> dict[str, dict]:
    """What training needs: the scores of each arm, without calibration and outlines. See `measure`, whose batches pass
    through `watch`, which may break off."""
    batches = watch(measure(accelerator, segment, rows, arms, batch_size))
    cases = [case for some in batches for case in some]
    return {arm: SegmentationMeter(case for case in cases if case["arm"] == arm).compute() for arm in arms}


def run(arguments) -> None:
    """Evaluates, writes and prints."""
    import torch
    from accelerate import Accelerator
    from tqdm import tqdm

    from .data import column, fingerprint, load_rows
    from .hub import without_folders
    from .prompts import normalize_prompt

    for name in ("max_rows", "batch_size", "spacing"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name} is {value}: give more than 0.")
    for name in ("tolerance", "pictures"):
        if getattr(arguments, name) < 0:
            raise ValueError(f"--{name} is {getattr(arguments, name)}: give 0 or more.")
    output = output_folder(arguments.output, "scores")
    rows = load_rows(arguments.dataset, arguments.split, max_rows=arguments.max_rows)
    prompts = [normalize_prompt(prompt) for prompt in column(rows, "prompt")]
    names = list(ARMS) if "all" in arguments.arms else list(dict.fromkeys(arguments.arms))
    arms = text_arms(prompts, names, arguments.seed)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    segment, weights = build(arguments.model, arguments.adapter, accelerator.device)
    flip = {"flip": True} if arguments.flip else {}
    if arguments.flip:
        segment = FlipAverage(segment)
    surface = {"tolerance": arguments.tolerance, "spacing": arguments.spacing or 1.0}
    identity = {
        "weights_sha256": weights,
        "adapter": arguments.adapter and [arguments.adapter, arguments.model],  # may have no weights to tell by
        "data": {arguments.split: fingerprint(rows)},
        "arms": names,
        "batch_size": arguments.batch_size,
        "seed": arguments.seed,
        "surface": {**surface, "unit": "mm" if arguments.spacing else "px"},
        **flip,
    }
    journal = output / "cases.jsonl"
    done = read_journal(journal, identity, len(rows)) if arguments.resume else []
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        if not done and (output / "result.json").is_file():
            print(f"the earlier result in '{output}' is replaced")
            for name in PICTURES:  # which would show cases of other scores
                (output / name).unlink(missing_ok=True)
        write_journal(journal, identity, done)
    accelerator.wait_for_everyone()

    cases = list(done)
    total = len(rows) * len(arms)
    quiet = not accelerator.is_main_process
    with tqdm(total=total, initial=len(done), unit="case", disable=quiet, mininterval=1) as bar:
        skip = frozenset(case["index"] for case in done)
        for some in measure(
            accelerator, segment, rows, arms, arguments.batch_size, skip=skip, calibration=True, surface=surface
        ):
            cases += some
            bar.update(len(some))
            if accelerator.is_main_process:
                with open(journal, "a", encoding="utf-8") as file:
                    file.write("".join(json.dumps(case) + "\n" for case in some))
    if accelerator.is_main_process:
        cases.sort(key=lambda case: (case["index"], names.index(case["arm"])))
        write_journal(journal, identity, cases)
        write_table(output / "cases.csv", cases)
        by_arm = {arm: [case for case in cases if case["arm"] == arm] for arm in arms}
        units = [kind for kind, _ in {unit_of(case) for case in cases}]
        told = {**{name: getattr(arguments, name) for name in OPTIONS}, **flip, "arms": names}
        result = {
            **receipt(command_of("evaluate", arguments.model, told), weights, arguments.seed, str(accelerator.device)),
            "arguments": without_folders({"model": arguments.model, **told}),
            "split": arguments.split,
            "scores": {
                arm: {
                    **SegmentationMeter(some).compute(),
                    **bootstrap(some, arguments.seed),
                    "sentences_changed": sum(
                        (ours or None) != own for ours, own in zip(arms[arm], prompts, strict=True)
                    ),
                }
                for arm, some in by_arm.items()
            },
            "findings": score_findings(by_arm, prompts, arguments.seed),
            "paired": pair_arms(by_arm, arguments.seed),
            "intervals_over": {"patients": units.count("patient"), "pictures": units.count("picture")},
            "surface": identity["surface"],
            "data": identity["data"],
            "rows": {arguments.split: describe_rows(prompts, column(rows, "patient_id"))},
        }
        (output / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        if arguments.pictures:
            draw(segment, rows, by_arm, arguments.pictures, output)
        print_scores(result, by_arm[names[0]], output)
    accelerator.end_training()


def output_folder(name: str, kind: str) -> Path:
    """The folder that a command writes its `result.json` to.

    Args:
        name: what was given as `--output`.
        kind: the entry that holds the numbers of such a result: "scores", "faithfulness" or "transfer".

    Raises:
        ValueError: it is a file, or holds the result of another command, such as a training, which has `steps`.
    """
    folder = Path(name)
    if folder.is_file():
        raise ValueError(f"'{folder}' is a file: give a folder.")
    path = folder / "result.json"
    if path.is_file():
        there = parse_json(path.read_bytes(), f"'{path}'", "move it away, or give another --output")
        if not isinstance(there, dict) or kind not in there or "steps" in there:
            raise ValueError(f"'{path}' is of another command and would be replaced: give another --output.")
    return folder


def build(name: str, adapter: str | None, device) -> tuple:
    """What to evaluate, and the hash of its weights (None where an adapter's model has no files)."""
    if adapter is not None:
        module, _, function = adapter.partition(":")
        sys.path.append(os.getcwd())  # where people keep their baselines; last, lest a file there hides a package
        try:
            make = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"--adapter {adapter} cannot be had ({error}): write it as MODULE:FUNCTION.") from error
        path = Path(name)
        return make(name), hash_weights(path) if path.exists() else None

    import torch

    from .predict import check_model_folder, load

    check_model_folder(name)
    folder = local_folder(name)
    if read_json(folder / "config.json").get("architectures") == ["TAMISegForConsistencyPretraining"]:
        raise ValueError(f"'{name}' is a model of the first stage, without a decoder: give one of --stage finetune.")
    model, processor = load(str(folder))
    # Channels last as in training, so that both give the same numbers.
    model = model.to(device, memory_format=torch.channels_last)
    return Segmenter(model, processor), hash_weights(folder)


def local_folder(name: str, revision: str | None = None) -> Path:
    """The folder of a model, which is fetched first where it is an id of the Hub; where that cannot be reached, what
    was fetched before.

    Raises:
        ValueError: there is neither.
    """
    from huggingface_hub import snapshot_download

    from .hub import in_plain_words

    if Path(name).is_dir():
        return Path(name)
    try:
        with in_plain_words(f"{name}@{revision}" if revision else name):
            return Path(snapshot_download(name, revision=revision))
    except (ValueError, OSError) as error:
        raise ValueError(f"there is no folder '{name}' here, and {error}") from error


def hash_weights(path: Path) -> str:
    """SHA-256 of a file of weights; of a folder, of its safetensors (or, where it has none, of all its files) in the
    order of their names, which for a single file is that file's own."""
    if path.is_file():
        return sha256(path)
    files = sorted(path.glob("*.safetensors")) or sorted(file for file in path.rglob("*") if file.is_file())
    if len(files) == 1:
        return sha256(files[0])
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()


def receipt(command: str, weights_sha256: str | None, seed: int, device: str) -> dict:
    """What a result file says of how it came about, beside its scores and data: enough to get the numbers again.
    Folders are left out of absolute paths."""
    import torch

    from .hub import without_folders

    hardware = {"machine": platform.machine(), "cpu": cpu_name(), "cores": os.cpu_count()}
    hardware |= {"threads": torch.get_num_threads(), "device": device}
    if device.startswith("cuda"):
        hardware["gpu"] = torch.cuda.get_device_name(device)
    return {
        "command": without_folders(command),
        "weights_sha256": weights_sha256,
        "seed": seed,
        "versions": {
            **{name: version(name) for name in ("tamiseg", "torch", "transformers", "numpy", "scipy")},
            "python": platform.python_version(),
        },
        "hardware": hardware,
    }


def cpu_name() -> str:
    """What the processor calls itself, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def command_of(command: str, subject: str, options: dict) -> str:
    """The command of `tamiseg` that gives a result; options that are None are left out."""
    words = ["tamiseg", command, subject]
    for name, value in options.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def write_journal(path: Path, identity: dict, cases: list[dict]) -> None:
    """Writes cases.jsonl anew: what was evaluated in the first line, then a case per line."""
    lines = [json.dumps(line) + "\n" for line in ({"evaluation": identity}, *cases)]
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text("".join(lines), encoding="utf-8")
    os.replace(unfinished, path)


def read_journal(path: Path, identity: dict, num_rows: int) -> list[dict]:
    """The cases of the batches that an earlier run finished; none where there is no cases.jsonl.

    Raises:
        ValueError: the file is of another evaluation; the sentence says what differs.
    """
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:  # torn by the break
            break
    before = lines[0].get("evaluation", {}) if lines else {}
    differences = [
        f"{key} was {before.get(key)} and is {identity.get(key)}"
        for key in {**before, **identity}
        if before.get(key) != identity.get(key)
    ]
    if differences:
        raise ValueError(
            f"'{path}' is of another evaluation ({'; '.join(differences)}): leave --resume out to start anew, or give "
            "another --output."
        )
    size, batches = identity["batch_size"], {}
    for case in lines[1:]:
        batches.setdefault(case["index"] // size, []).append(case)
    return [
        case
        for number, some in batches.items()
        if len(some) == len(identity["arms"]) * min(size, num_rows - number * size)
        for case in some
    ]


def write_table(path: Path, cases: list[dict]) -> None:
    """Writes cases.csv."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(cases)


def draw(segment, rows, by_arm: dict[str, list[dict]], count: int, output: Path) -> None:
    """Writes worst.png and qualitative.png: the worst cases of the first arm, and cases evenly from the worst to the
    best; where there are several arms also sentences.png: the latter under the sentence of each."""
    from .data import read_pair
    from .image_processing_tamiseg import IGNORE_INDEX, TAMISegImageProcessor
    from .plots import write_cases, write_sentences

    reader = TAMISegImageProcessor(num_labels=getattr(segment, "num_labels", 2))
    first = next(iter(by_arm.values()))
    ranked = sorted(range(len(first)), key=lambda at: first[at]["dice"])
    evenly = np.unique(np.linspace(0, len(ranked) - 1, count).round().astype(int))

    def show(at: int, arms: Sequence[str]) -> list[dict]:
        cases = [by_arm[arm][at] for arm in arms]
        pair = read_pair(rows, cases[0]["index"], reader)
        (answers,) = segment([pair["image"]], [[case["sentence"] for case in cases]])
        truth = ~np.isin(np.asarray(pair["mask"]), (0, IGNORE_INDEX))
        return [
            {**case, "image": pair["image"], "truth": truth, "mask": mask > 0, "probability": probability}
            for case, (mask, probability) in zip(cases, answers, strict=True)
        ]

    arms = list(by_arm)
    for name, chosen in (("worst.png", ranked[:count]), ("qualitative.png", [ranked[rank] for rank in evenly])):
        write_cases([case for at in chosen for case in show(at, arms[:1])], output / name)
    if len(arms) > 1:
        write_sentences([show(ranked[rank], arms) for rank in evenly], output / "sentences.png")


def print_scores(result: dict, cases: list[dict], output: Path) -> None:
    """The scores in %, and where the rest lies."""
    print(f"\n{result['split']}, {len(cases)} cases; in brackets 95 % intervals")
    print(f"  {'':<28}{'Dice per image':<24}{'Dice global':<24}HD95 {result['surface']['unit']}  surface Dice")
    for arm, score in result["scores"].items():
        line = f"  {ARMS[arm]:<28}"
        for name in ("dice_per_image", "dice_global"):
            low, high = score[f"{name}_interval"]
            line += f"{f'{100 * score[name]:.2f} [{100 * low:.2f}, {100 * high:.2f}]':<24}"
        distance = "-" if score["hd95"] is None else f"{score['hd95']:.2f}"
        print(f"{line}{distance:<9}{100 * score['surface_dice']:.2f}")
        for label, told in score.get("classes", {}).items():
            print(f"    class {label:<22}{100 * told['dice_per_image']:<24.2f}{100 * told['dice_global']:.2f}")
    worst = sorted(cases, key=lambda case: case["dice"])[:5]
    print("worst: " + ", ".join(f"{case['name']} ({100 * case['dice']:.1f})" for case in worst))
    print(f"scores in {output / 'result.json'}, cases in {output / 'cases.csv'}")
