# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card, written from result files: a number that is in none of them is not in the card either."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath

from .arms import ARMS
from .reading import reason


# Says that a card is ours to write anew. A card without it is its author's, and pushed as it is.
MARK = (
    "<!-- Written by TAMISeg from the result files of these weights. Delete this line if you change the card: it is "
    "then kept as it is. -->"
)
METRICS = {
    "dice_per_image": "Dice per image",
    "dice_global": "Dice global",
    "iou_per_image": "IoU per image",
    "iou_global": "IoU global",
    "precision": "Precision",
    "recall": "Recall",
}
# A sentence goes into a card only if so many patients share it: one that few share may tell of a patient.
PATIENTS_PER_PUBLIC_SENTENCE = 5

HOW_TO_USE = """\
```python
from transformers import pipeline

segment = pipeline("image-segmentation", model="{name}", trust_remote_code=True)
found = segment("picture.png", text="{sentence}")[0]
found["mask"].save("mask.png")  # 0 and 255, of the picture's size
print(found["score"])  # mean probability inside the mask, 0.0 where nothing was found
```

`picture.png` is any picture of 8 or 16 bits; the sentence may be left out. With the parts, for probabilities and a
threshold of one's own:

```python
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{name}", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
image = Image.open("picture.png")
inputs = processor(images=image, text="{sentence}", return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs)
masks, probabilities = processor.post_process_semantic_segmentation(
    outputs, target_sizes=[(image.height, image.width)], return_probabilities=True
)
```

Without Python, where the `tamiseg` package is installed:

```bash
tamiseg predict picture.png --text "{sentence}" --model {name} --output found.png
```

The code of a repo can change: pin it with `revision="..."`, the hash of a commit, in each `from_pretrained` or
`pipeline`.
"""

# What known data sets show, by a part of their names as folders and Hub ids write them, without signs.
SUBJECTS = {
    "qata": "QaTa-COV19: chest X-rays, in which COVID-19 infection is marked",
    "mosmed": "MosMedData+: CT slices of lungs, in which COVID-19 infection is marked",
    "kvasir": "Kvasir-SEG: pictures of colonoscopy, in which polyps are marked",
    "monuseg": "MoNuSeg: stained tissue under the microscope, in which nuclei are marked",
    "busi": "BUSI: ultrasound pictures of breasts, in which lesions are marked",
}
SIDES = {"qata"}  # whose sentences call the picture's left "left", where the patient's right is
FOLLOWS = 0.02  # of Dice: what exchanged sides must cost to tell that a model goes where they point

DISCLAIMER = (
    "**Research only. Not a medical device: no diagnosis, treatment or other clinical decision may rest on what it "
    "says.**"
)

CITATION = """\
```bibtex
@misc{tamiseg,
  title = {TAMISeg: Text-Aligned Multi-scale Medical Image Segmentation with Semantic Encoder Distillation},
  year = {2026},
  eprint = {2604.10912},
  archivePrefix = {arXiv},
  note = {ICME 2026}
}
```"""


def harmless(sentence: str) -> str:
    """A sentence without the signs that mean something in Markdown, HTML or a line of Python or shell."""
    return " ".join(re.sub(r"[^\w\s.,:;()'/%+-]", " ", sentence).split())


def source_of(name: str | None) -> str | None:
    """Where a data set or encoder of the training came from, while that can be told: "folder", "Hub", or the name
    itself where it is built in."""
    if name in (None, "builtin", "tiny"):
        return name
    return "folder" if Path(name).exists() else "Hub"


def describe_rows(prompts: Sequence[str | None], patient_ids: Sequence[str | None]) -> dict:
    """What a card tells of the rows of a split, for the result file.

    Returns:
        rows, patients, rows_without_patient, sentences (distinct ones), and frequent_sentences: the three most
        frequent of those that at least five patients share. A row without a patient's id counts as a patient.
    """
    counts = Counter(prompt for prompt in prompts if prompt)
    people = [row if patient is None else str(patient) for row, patient in enumerate(patient_ids)]
    patients = Counter(prompt for prompt, _ in set(zip(prompts, people, strict=True)))
    shared = [sentence for sentence, _ in counts.most_common() if patients[sentence] >= PATIENTS_PER_PUBLIC_SENTENCE]
    known = [patient for patient in patient_ids if patient is not None]
    return {
        "rows": len(prompts),
        "patients": len(set(known)),
        "rows_without_patient": len(patient_ids) - len(known),
        "sentences": len(counts),
        "frequent_sentences": shared[:3],
    }


@contextmanager
def as_written(where: str):
    """For work on result files, whose shape is taken for granted: one that was changed by hand, or is of another
    program, is named in one sentence."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{where} is not as train_hf.py and tamiseg evaluate write them ({type(error).__name__}: "
            f"{reason(error)}): write it anew."
        ) from error


def model_card(results: Sequence[dict], name: str, pictures: dict[str, str]) -> str:
    """Writes the card.

    Args:
        results: result files of these weights, as training and evaluation write them; may be empty.
        name: Hub id or folder that the snippets load.
        pictures: which of `curves.png` and `examples.png` there are, and where from the card's place.

    Returns:
        The README.md: YAML front matter, the mark, and Markdown.
    """
    training = next((result for result in results if "steps" in result), {})
    arguments = training.get("arguments", {})
    builtin = arguments.get("dataset") == "builtin"
    rows = training.get("rows", {})
    frequent = rows.get("train", {}).get("frequent_sentences", [])
    sentence = "all bright lesions" if builtin else frequent[0] if frequent else "the lesion"
    sections = {
        None: _summary(arguments, pictures),
        "How to use": HOW_TO_USE.format(name=name, sentence=harmless(sentence) or "the lesion"),
        "Uses": _uses(),
        "Risks and limits": _limits(arguments, rows, results),
        "Training data": _training_data(training, rows),
        "Training": _training(training, pictures),
        "Evaluation": _evaluation(results, arguments),
        "Environment": _environment(results),
        "Licence": (
            "The code in this repo is under Apache-2.0, see LICENSE. The weights come from the training data and the "
            "encoders named above, whose terms apply to them."
        ),
        "Citation": CITATION,
    }
    body = "\n\n".join(
        text.strip() if title is None else f"## {title}\n\n{text.strip()}" for title, text in sections.items() if text
    )
    return f"---\n{_front_matter(results, training, name)}\n---\n\n{MARK}\n\n# {_title(name)}\n\n{body}\n"


def _front_matter(results, training: dict, name: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    arguments, sources = training.get("arguments", {}), training.get("sources", {})
    public = {arguments[role] for role, source in sources.items() if source == "Hub"}
    evaluations = []
    for result in results:
        dataset, split = result.get("arguments", arguments).get("dataset", "unnamed"), result["split"]
        hub_id, _, configuration = dataset.partition(":") if dataset in public else ("local", None, None)
        for arm, score in result["scores"].items():
            for metric in ("dice_per_image", "dice_global", "iou_per_image", "iou_global"):
                evaluations.append(
                    EvalResult(
                        task_type="image-segmentation",
                        task_name="Text-guided segmentation",
                        dataset_type=hub_id,
                        dataset_config=configuration or None,
                        dataset_name=_dataset_title(dataset),
                        dataset_split=split,
                        metric_type=metric.split("_")[0],
                        metric_name=f"{METRICS[metric]}, {_arm(arm)}",
                        metric_value=round(score[metric], 4),
                    )
                )
    encoders = [arguments.get(role) for role in ("vision_model", "text_model")]
    ours = arguments.get("dataset") == "builtin" and encoders == ["tiny", "tiny"]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        license="apache-2.0" if ours else "other",
        license_name=None if ours else "terms-of-the-training-data",
        tags=["tamiseg", "medical-imaging", "text-guided-segmentation", "research-only"],
        datasets=[arguments["dataset"].partition(":")[0]] if arguments.get("dataset") in public else None,
        base_model=[encoder for encoder in encoders if encoder in public] or None,
        metrics=["dice", "iou"] if evaluations else None,
        model_name=_title(name) if evaluations else None,
        eval_results=evaluations or None,
    )
    return data.to_yaml().strip()


def _summary(arguments: dict, pictures: dict[str, str]) -> str:
    data = f" It was trained on {_dataset_title(arguments['dataset'])}." if arguments else ""
    text = (
        "An image and a sentence go in, a mask comes out: a "
        "[TAMISeg](https://arxiv.org/abs/2604.10912) model for text-guided segmentation of medical images, in the "
        f"implementation that lies beside this card.{data}\n\n{DISCLAIMER}"
    )
    if "examples.png" in pictures:
        text += (
            f"\n\n![One synthetic picture per row, each under three sentences]({pictures['examples.png']})\n\n"
            "*The first pictures of the built-in sample's test split, which are synthetic, each under its three "
            "sentences. Green: truth and mask agree; orange: only in the mask; blue: missed.*"
        )
    return text


def _uses() -> str:
    return (
        "- **Direct:** research on text-guided segmentation, on pictures of the kind it was trained on.\n"
        "- **Downstream:** as the start of a model for data of one's own "
        "(`train_hf.py --stage finetune --vision_model` takes its image encoder).\n"
        "- **Out of scope:** clinical decisions of any kind; pictures of another organ, device or plane than those of "
        "the training data; sentences that ask for anything but a place or a look that the training sentences name."
    )


def _limits(arguments: dict, rows: dict, results) -> str:
    points = [
        "How it does on pictures of other sites and devices than those scored below is unknown, and usually worse.",
        "It answers every sentence, also one that it never learned; a mask is no proof that it understood.",
    ]
    if train := rows.get("train"):
        known = "".join(f"; a frequent one: “{harmless(sentence)}”" for sentence in train["frequent_sentences"][:1])
        points.append(f"It learned from {train['sentences']} distinct sentences{known}.")
        if train["sentences"]:
            points.append("In another language than theirs it marks something, but not what was asked for.")
            sides = "“Left” and “right” mean what they meant in those sentences"
            if _subject(arguments.get("dataset")) in SIDES:
                sides += ": sides of the picture. In a usual chest X-ray “left lung” marks the patient's right lung"
            points.append(f"{sides}.")
    for result in results:
        score = result["scores"].get("full_text", {})
        exchanged = result["scores"].get("wrong_side")
        if score and exchanged and score["dice_per_image"] - exchanged["dice_per_image"] > FOLLOWS:
            points.append(
                f"It follows its sentence even where that is false: with left and right exchanged, Dice per image on "
                f"{_where(result, arguments)} is {_percent(exchanged['dice_per_image'])} instead of "
                f"{_percent(score['dice_per_image'])}."
            )
        empty = score.get("num_empty_targets")
        if empty:
            rate = _percent(score["empty_target_false_positive_rate"])
            points.append(
                f"Where the sentence names something that is not there ({empty} of the {score['num_images']} cases of "
                f"{_where(result, arguments)}), it still marked something in {rate} %."
            )
        elif empty == 0:
            points.append(
                f"No case of {_where(result, arguments)} had nothing to find: how often it invents findings is "
                "unknown there."
            )
    if "image_size" in arguments:
        side = arguments["image_size"]
        points.append(f"It sees pictures at {side} x {side} pixels: what is lost in that reduction it cannot find.")
    if arguments.get("dataset") == "builtin":
        points.append("Its training pictures are drawn by code: it has seen no patient, and knows nothing of any.")
    return "\n".join(f"- {point}" for point in dict.fromkeys(points))


def _training_data(training: dict, rows: dict) -> str:
    if not training:
        return "No result file of the training came with these weights, so nothing can be said about their data."
    arguments = training["arguments"]
    title = _dataset_title(arguments["dataset"])
    text = f"{title[0].upper()}{title[1:]}."
    if arguments["dataset"] == "builtin":
        text += " It is part of TAMISeg and under Apache-2.0."
    elif arguments.get("data_license"):
        text += f" Terms: {arguments['data_license']}"
    else:
        text += " Its terms were not stated by those who trained this model: ask them before use."
    if rows:
        lines = ["| split | rows | patients | rows without a patient's id | sentences | SHA-256 of the rows |"]
        lines.append("|---|---|---|---|---|---|")
        for split, about in rows.items():
            lines.append(
                f"| {split} | {about['rows']} | {about['patients']} | {about['rows_without_patient']} | "
                f"{about['sentences']} | `{training['data'][split][:16]}` |"
            )
        text += "\n\n" + "\n".join(lines)
        if training["shared_patients"] is not None:
            text += f"\n\nPatients in both splits, by their ids: {training['shared_patients']}."
            if any(about["rows_without_patient"] for about in rows.values()):
                text += " Of the rows without an id it is unknown whether the split keeps patients apart."
    return text


def _training(training: dict, pictures: dict[str, str]) -> str:
    text = ""
    if training:
        arguments = training["arguments"]
        named = ("vision_model", "text_model", "teacher", "epochs", "batch_size", "learning_rate", "seed")
        facts = [f"{key.replace('_', ' ')} `{arguments[key]}`" for key in named if arguments.get(key) is not None]
        commands = "\n".join(training[key] for key in ("trained_by", "command") if training.get(key))
        text = f"```bash\n{commands}\n```\n\n{training['steps']} steps; {', '.join(facts)}."
    if "curves.png" in pictures:
        text += f"\n\n![Loss, validation Dice and learning rate over the epochs]({pictures['curves.png']})"
    return text


def _evaluation(results, training_arguments: dict) -> str:
    if not results:
        return "No result file came with these weights, so no score is claimed."
    text = (
        "In %. Per image: the mean over cases; global: from the pixels of all cases pooled; precision and recall are "
        "global. An empty mask counts as fully right where there is nothing to find. A case is a picture under one "
        "sentence; the closer the row with another case's sentence comes to the first, the less the model listens."
    )
    intervals = False
    for result in results:
        heads = " | ".join(METRICS.values())
        lines = [f"| case with | {heads} | cases |", "|---" * (len(METRICS) + 2) + "|"]
        for arm, score in result["scores"].items():
            cells = []
            for metric in METRICS:
                cells.append(_percent(score[metric]))
                if interval := score.get(f"{metric}_interval"):
                    intervals = True
                    cells[-1] += f" [{_percent(interval[0])}, {_percent(interval[1])}]"
            lines.append(f"| {_arm(arm)} | {' | '.join(cells)} | {score['num_images']} |")
        told, split = result.get("arguments", {}), result["split"]
        of = _where(result, training_arguments).removeprefix(f"the {split} split")
        text += f"\n\n**{split.capitalize()} split**{of}"
        if told.get("max_rows") or told.get("max_eval_samples"):
            cases = max(score["num_images"] for score in result["scores"].values())
            text += f", {result.get('rows', {}).get(split, {}).get('rows', cases)} rows of the split"
        if told.get("flip"):
            text += ", mirrored views averaged"
        if split == "validation" and "steps" in result:
            text += " (it also chose which epoch's weights were kept, so it flatters them)"
        text += ":\n\n" + "\n".join(lines)
    text += "\n\nIn brackets: 95 % intervals." if intervals else "\n\nIntervals of these scores were not computed."
    return text


def _environment(results) -> str:
    lines = []
    for result in results:
        parts = {**result.get("versions", {}), **result.get("hardware", {})}
        said = ", ".join(f"{key} {value}" for key, value in parts.items())
        sha256 = result.get("weights_sha256", "")
        lines.append(f"- {result['split']}: {said}; SHA-256 of `model.safetensors`: `{sha256}`")
    return "\n".join(lines)


def _title(name: str) -> str:
    path = PurePath(name)
    return path.parent.name if path.name == "best" and path.parent.name else path.name


def _dataset_title(dataset: str) -> str:
    if dataset == "builtin":
        return "TAMISeg's built-in sample of synthetic pictures"
    subject = _subject(dataset)
    return f"{SUBJECTS[subject]} ({dataset})" if subject else f"the data set {dataset}"


def _subject(dataset: str | None) -> str | None:
    """Which of `SUBJECTS` a data set is, None where it is none of them."""
    name = plain(PurePath(dataset or "").name)
    return next((key for key in SUBJECTS if key in name), None)


def plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _where(result: dict, training_arguments: dict) -> str:
    """The split that was scored, and of which data set, where that is not the one of the training."""
    dataset = result.get("arguments", {}).get("dataset")
    other = dataset not in (None, training_arguments.get("dataset"))
    return f"the {result['split']} split" + (f" of {_dataset_title(dataset)}" if other else "")


def _arm(arm: str) -> str:
    return ARMS.get(arm, arm.replace("_", " "))


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
