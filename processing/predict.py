# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""`tamiseg predict`: masks of a picture or of whole folders, for people who do not write Python."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from .prompts import normalize_prompt
from .reading import reason, sha256
from .sources import TABLES, files_below, parse_table, spelled_alike


# Bytes for each pixel of a picture, beside what its tiles take: while they are made (RGB, and normalised in float32),
# and at most afterwards (logits, probabilities, mask, overlay); more for each class beyond the second.
PICTURE_BYTES, ANSWER_BYTES, CLASS_BYTES = 20, 64, 12
UNITS = {"": 1, "B": 1, "MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
SHIPPED_MODEL = Path(__file__).parent.parent / "checkpoints" / "tamiseg-mobile-qata"  # in a checkout
OVERLAY_COLOUR = (230, 159, 0)  # orange of the Okabe-Ito palette, told apart by colour-blind readers too
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")
MASK_SUFFIX = {"png": ".png", "nifti": ".nii.gz", "rle": ".json"}
PROBABILITY_SUFFIX = {"png": ".png", "nifti": ".nii.gz", "rle": ".png"}
COLUMNS = (
    "image", "picture_sha256", "sentence", "area_px", "area_percent", "mean_probability", "model", "weights",
    "threshold", "tile_size", "status",
)  # fmt: skip
UNFINISHED = "unfinished"  # the status of a picture whose files are being written


@dataclass
class Picture:
    """One picture to segment; `name` is its path without the folder that was given, with forward slashes."""

    path: Path
    name: str
    sentence: str | None = None


def add_command(commands) -> None:
    """Adds `predict` to the subcommands of `tamiseg`."""
    command = commands.add_parser("predict", help="write the masks of pictures")
    command.add_argument("image", nargs="+", help="picture (PNG, JPEG, TIFF, ...; 8 or 16 bit), or folder of them")
    command.add_argument("--text", help="what to segment, in words; without it the model answers by the picture alone")
    command.add_argument(
        "--prompts", help="table (.csv, .tsv, .xlsx, .jsonl) of a sentence per picture: columns image and sentence"
    )
    command.add_argument("--model", help="folder of a trained model, or its Hub id; the shipped one for chest X-rays")
    command.add_argument("--revision", help="commit, tag or branch of a model on the Hub; the newest one if left out")
    command.add_argument(
        "--output",
        required=True,
        help="mask to write, the size of the picture: what the model finds, of several classes all but background; "
        "for several pictures a folder, and for one where it is there or has no suffix",
    )
    command.add_argument("--overlay", help="PNG to write, the picture with the mask laid over it; or folder of these")
    command.add_argument(
        "--probabilities", help="file to write, 16-bit PNG (65535 is certain) or float NIfTI; or folder of these"
    )
    command.add_argument(
        "--format",
        choices=MASK_SUFFIX,
        default="png",
        help="of the masks: png (0 and 255), nifti (0 and 1; needs nibabel) or rle (COCO's counts as JSON)",
    )
    command.add_argument(
        "--threshold", type=float, default=0.5, help="probability from which a pixel counts, for models of two classes"
    )
    command.add_argument("--batch_size", type=int, default=8, help="pictures that go through the model together")
    command.add_argument(
        "--tile_size",
        type=int,
        help="keep the picture's own resolution and go over it in overlapping tiles of this side, which bounds the "
        "memory; only for models that were trained at that resolution, as the shipped one was not",
    )
    command.add_argument(
        "--max_memory",
        "--max-memory",
        help="as --tile_size, with tiles no larger than keep the whole process within so much memory, such as 2GB "
        "(Linux)",
    )
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files that are there, and also segment what predictions.csv says is done",
    )
    command.set_defaults(run=predict)


def predict(arguments) -> None:
    """Reads, segments and writes; says in numbers what was found. Of several pictures, a bad one stops no other."""
    if not 0 <= arguments.threshold <= 1:
        raise ValueError(f"--threshold is a probability: give a number from 0 to 1, not {arguments.threshold}.")
    if arguments.batch_size < 1:
        raise ValueError(f"--batch_size is {arguments.batch_size}: give at least 1.")
    if arguments.tile_size is not None and arguments.tile_size < 128:
        raise ValueError(f"--tile_size is {arguments.tile_size}: give at least 128 pixels.")
    arguments.max_memory = None if arguments.max_memory is None else num_bytes(arguments.max_memory)
    if arguments.max_memory is not None and arguments.tile_size is None:
        arguments.tile_size = 1024
    for image in arguments.image:
        if not Path(image).exists():
            raise ValueError(f"there is no picture '{image}': check the path.")
    if arguments.model is None:
        if not SHIPPED_MODEL.is_dir():
            raise ValueError("there is no shipped model beside this package: give --model.")
        arguments.model = str(SHIPPED_MODEL)
    if arguments.revision and Path(arguments.model).is_dir():
        raise ValueError(f"--revision is for models on the Hub, and '{arguments.model}' is a folder: leave it out.")
    output = Path(arguments.output)
    if len(arguments.image) == 1 and Path(arguments.image[0]).is_file() and output.suffix and not output.is_dir():
        predict_one(arguments)
    else:
        predict_many(arguments)


def predict_one(arguments) -> None:
    """One picture, whose outputs are files."""
    suffixes, written = suffixes_of(arguments.format), outputs_of(arguments)
    for role, path in written.items():
        # NIfTI may also go without compression.
        if not path.name.lower().endswith((suffixes[role], suffixes[role].removesuffix(".gz"))):
            raise ValueError(f"'{path}' is to be a {suffixes[role]} file: let its name end in {suffixes[role]}.")
        if path.is_dir():
            raise ValueError(f"'{path}' is a folder: give a file, since '{arguments.output}' is one.")
        if not path.resolve().parent.is_dir():
            raise ValueError(f"the folder of '{path}' does not exist: create it first.")
    path = Path(arguments.image[0])
    pictures = [Picture(path, path.name)]
    give_sentences(pictures, arguments)
    refuse_collisions(pictures, list(written.values()))
    there = [path for path in written.values() if path.exists()]
    if there and not arguments.overwrite:
        raise ValueError(f"'{there[0]}' is there already: give --overwrite, or another name.")
    model, processor = load_for(arguments)
    ((_, image, found, probability),) = segment(
        model, processor, pictures, arguments.threshold, 1, arguments.tile_size, arguments.max_memory
    )
    if isinstance(image, Exception):
        raise image
    write(image, found, probability, arguments.format, arguments.output, arguments.overlay, arguments.probabilities)
    what = pictures[0].sentence or "no sentence"
    if found.any():
        print(
            f"{what}: {found.sum()} pixels, {100 * found.mean():.1f} % of the picture, mean probability "
            f"{probability[found].mean():.2f}; mask in {arguments.output}"
        )
    else:
        print(f"{what}: not found; the mask in {arguments.output} is empty")


def predict_many(arguments) -> None:
    """Folders and lists of pictures, whose outputs are folders, with a table that says what is done."""
    from tqdm import tqdm

    suffixes, folders = suffixes_of(arguments.format), outputs_of(arguments)
    for role, folder in folders.items():
        if folder.is_file() or folder.name.lower().endswith(suffixes[role]) and not folder.is_dir():
            raise ValueError(
                f"'{folder}' is a file or called like one: give a folder, or for one picture a file as --output too."
            )
    pictures = find_pictures(arguments.image, [folder.resolve() for folder in folders.values()])
    if left_out := others_beside(arguments.image, [folder.resolve() for folder in folders.values()]):
        kinds = ", ".join(sorted({kind_of(path) for path in left_out}))
        print(f"{len(left_out)} files left out ({kinds}): predict reads {', '.join(PICTURE_SUFFIXES)}")
    give_sentences(pictures, arguments)
    stems = Counter(Path(picture.name).with_suffix("") for picture in pictures)

    def outputs(picture: Picture) -> dict[str, Path]:
        stem = Path(picture.name).with_suffix("")
        stem = stem if stems[stem] == 1 else Path(picture.name)  # a.png beside a.jpg
        return {role: folder / f"{stem}{suffixes[role]}" for role, folder in folders.items()}

    refuse_collisions(pictures, [path for picture in pictures for path in outputs(picture).values()])
    table = folders["mask"] / "predictions.csv"
    name = Path(arguments.model).name if arguments.model == str(SHIPPED_MODEL) else arguments.model
    settings = {
        "model": f"{name}@{arguments.revision}" if arguments.revision else name,
        "weights": weights_of(arguments.model, arguments.revision),
        "threshold": str(arguments.threshold),
        "tile_size": str(arguments.tile_size or ""),
    }
    rows, left = read_table(table), []
    for picture in pictures:
        row, places = rows.get(picture.name, {}), outputs(picture).values()
        there = [path for path in places if path.exists()]
        if there and not arguments.overwrite:
            now = {"picture_sha256": sha256(picture.path), "sentence": picture.sentence or "", **settings}
            refuse_to_replace(there[0], row, now)
        if arguments.overwrite or row.get("status") != "ok" or len(there) < len(places):
            left.append(picture)
    failed = 0
    if left:
        model, processor = load_for(arguments)
        folders["mask"].mkdir(parents=True, exist_ok=True)
        write_table(table, rows.values())
        sizes = arguments.batch_size, arguments.tile_size, arguments.max_memory
        results = segment(model, processor, left, arguments.threshold, *sizes)
        for picture, image, found, probability in tqdm(results, total=len(left), unit="picture"):
            row = {"image": picture.name, "sentence": picture.sentence or "", **settings, "status": "ok"}
            if isinstance(image, Exception):
                row["status"] = " ".join(str(image).split())
                failed += 1
            else:
                row["picture_sha256"] = sha256(picture.path)
                places = outputs(picture)
                for path in places.values():
                    path.parent.mkdir(parents=True, exist_ok=True)
                # Wherever this breaks off, what the table says is true, and the next call knows whose the files are.
                write_table(table, [{**row, "status": UNFINISHED}], mode="a")
                write(image, found, probability, arguments.format, *(places.get(role) for role in suffixes))
                row |= {"area_px": found.sum(), "area_percent": f"{100 * found.mean():.3f}"}
                row["mean_probability"] = f"{probability[found].mean():.4f}" if found.any() else ""
            write_table(table, [row], mode="a")
            rows[picture.name] = row
        these = {picture.name: rows.pop(picture.name) for picture in pictures}
        write_table(table, [*rows.values(), *these.values()])
    print(
        f"{len(left) - failed} pictures segmented, {len(pictures) - len(left)} were done before; masks in "
        f"{arguments.output}, numbers in {table}"
    )
    if failed:
        raise ValueError(f"{failed} of {len(pictures)} pictures failed: the column status of {table} says why.")


def outputs_of(arguments) -> dict[str, Path]:
    """The files or folders that are to be written, by what goes there."""
    asked = {"mask": arguments.output, "overlay": arguments.overlay, "probabilities": arguments.probabilities}
    return {role: Path(path) for role, path in asked.items() if path is not None}


def suffixes_of(kind: str) -> dict[str, str]:
    return {"mask": MASK_SUFFIX[kind], "overlay": ".png", "probabilities": PROBABILITY_SUFFIX[kind]}


def refuse_collisions(pictures: list[Picture], written: list[Path]) -> None:
    """Raises ValueError where a picture would be overwritten, or one file written twice."""
    counts = Counter(path.resolve() for path in written)
    both = {picture.path.resolve() for picture in pictures} & counts.keys()
    if both:
        raise ValueError(f"'{min(both)}' is a picture to segment and would be overwritten: choose another --output.")
    path, count = counts.most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} outputs would be written to '{path}': give each a name or folder of its own.")


def refuse_to_replace(path: Path, row: dict, asked: dict) -> None:
    """Raises ValueError where a file is there that its picture's row of predictions.csv does not name, or that was
    made of another picture or in another way than is asked."""
    if row and row["status"] not in ("ok", UNFINISHED):
        raise ValueError(
            f"'{path}' is of an earlier call, and in a later one its picture failed ({row['status']}): give "
            "--overwrite, or another --output."
        )
    if not row:
        raise ValueError(
            f"'{path}' is there already, and predictions.csv does not say of which picture: give --overwrite, or "
            "another --output."
        )
    if row["picture_sha256"] != asked["picture_sha256"]:
        raise ValueError(f"'{path}' was made of another picture of that name: give --overwrite, or another --output.")
    for name, value in asked.items():
        if row["status"] == "ok" and row[name] != value:
            raise ValueError(
                f"'{path}' was made with other settings ({name} was '{row[name]}' and is '{value}'): give "
                "--overwrite, or another --output."
            )


def find_pictures(sources: list[str], written: list[Path]) -> list[Picture]:
    """The pictures of files and folders, in their order; what lies in a folder that is `written` to is none."""
    pictures = []
    for source in map(Path, sources):
        inside = [source] if source.is_file() else files_below(source)
        for path in inside:
            name = path.relative_to(source) if source.is_dir() else Path(path.name)
            wanted = path == source or (
                path.is_file()
                and path.suffix.lower() in PICTURE_SUFFIXES
                and not any(part.startswith(".") for part in name.parts)
                and not any(path.resolve().is_relative_to(folder) for folder in written)
            )
            if wanted:
                pictures.append(Picture(path, name.as_posix()))
    if not pictures:
        raise ValueError(
            f"'{sources[0]}' holds no picture ({', '.join(PICTURE_SUFFIXES)}) outside of the folders that are to be "
            "written: give one that does, or another --output."
        )
    name, count = Counter(picture.name for picture in pictures).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"{count} pictures are called '{name}': give their folders in separate calls, with an --output for each."
        )
    return pictures


def others_beside(sources: list[str], written: list[Path]) -> list[Path]:
    """The files of folders that `find_pictures` takes for no pictures, but hidden ones."""
    return [
        path
        for source in map(Path, sources)
        if source.is_dir()
        for path in files_below(source)
        if path.is_file()
        and path.suffix.lower() not in PICTURE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(source).parts)
        and not any(path.resolve().is_relative_to(folder) for folder in written)
    ]


def kind_of(path: Path) -> str:
    """What a file's name says of its kind: .dcm, .nii.gz."""
    inner = Path(path.stem).suffix if path.suffix.lower() == ".gz" else ""
    return (inner + path.suffix).lower() or "no suffix"


def give_sentences(pictures: list[Picture], arguments) -> None:
    """Sets the sentence of each picture: its line of `--prompts`, else `--text`.

    Raises:
        ValueError: the file cannot be read, lacks a picture while there is no `--text`, or names an unknown one.
    """
    sentences = {}
    if arguments.prompts:
        path = Path(arguments.prompts)
        if path.suffix.lower() not in TABLES:
            raise ValueError(f"'{path}' is no table: let its name end in {', '.join(TABLES)} (JSON lines).")
        for line in parse_table(str(path), path.read_bytes()):
            if not {"image", "sentence"} <= line.keys():
                raise ValueError(f"a line of '{path}' lacks the columns image and sentence: add them to all.")
            if not isinstance(line["image"], str):
                raise ValueError(f"a line of '{path}' names no picture: give its file name as the image.")
            name = spelled_alike(line["image"])
            if name in sentences:
                raise ValueError(f"'{path}' names '{name}' twice: give one sentence per picture and call.")
            sentences[name] = line["sentence"]
        unknown = sentences.keys() - {spelled_alike(picture.name) for picture in pictures}
        if unknown:
            raise ValueError(f"'{path}' names '{min(unknown)}', which is none of the pictures: correct the name.")
    for picture in pictures:
        name = spelled_alike(picture.name)
        if sentences and name not in sentences and arguments.text is None:
            raise ValueError(f"'{arguments.prompts}' has no line for '{picture.name}': add it, or give --text.")
        picture.sentence = normalize_prompt(sentences.get(name, arguments.text))


def load_for(arguments):
    """The model and its processor, as `load`.

    Raises:
        ValueError: as `load`, or the model has no use for the threshold that is asked for.
    """
    model, processor = load(arguments.model, arguments.revision)
    if model.config.num_labels > 2 and arguments.threshold != 0.5:
        raise ValueError(
            f"'{arguments.model}' tells {model.config.num_labels} classes apart, and each pixel goes to the most "
            "probable: leave --threshold out."
        )
    return model, processor


def weights_of(name: str, revision: str | None = None) -> str:
    """What tells a model from a later one of that name: the beginning of its weights' SHA-256, or of the Hub's commit.

    Raises:
        ValueError: there is no such model.
    """
    from .evaluation import hash_weights, local_folder

    check_model_folder(name)
    if Path(name).is_dir():
        return hash_weights(Path(name))[:16]
    return local_folder(name, revision).name[:16]


def load(name: str, revision: str | None = None):
    """The model, in float32 and on a GPU where there is one, and its processor; of the Hub's newest commit, or of
    `revision`. No code that lies with a model is run, and weights are read from safetensors only.

    Raises:
        ValueError: the folder lacks something, is damaged, or holds something else, or the Hub cannot be reached.
    """
    import torch
    from PIL import Image
    from transformers import AutoModel, AutoProcessor
    from transformers.utils import logging

    from .evaluation import local_folder

    logging.disable_progress_bar()
    check_model_folder(name)
    folder = local_folder(name, revision)  # asks the Hub once; transformers would for each file, and again and again
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        model, report = AutoModel.from_pretrained(
            folder,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,  # whatever it was saved in: pictures and sentences come in float32
            output_loading_info=True,
        )
        if lacking := sorted(report["missing_keys"]):  # they would be drawn at random
            raise ValueError(f"its weights lack {len(lacking)} of the model's tensors, such as {lacking[0]}")
        # What files belong together shows in an answer.
        inputs = processor(images=Image.new("RGB", (32, 32)), text="lesion", return_tensors="pt")
        with torch.no_grad():
            logits = model.eval()(**inputs).logits
        if len(processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits), [(32, 32)])) != 1:
            raise ValueError("it gives no mask")
        if not logits.isfinite().all():
            raise ValueError("it answers with NaN")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # of damaged files: the libraries raise whatever comes, tokenizers also panics
        where = f"'{name}'" if Path(name).is_dir() else f"there is no folder '{name}' here, and '{name}' on the Hub"
        raise ValueError(
            f"{where} holds no model that can be used ({reason(error)}): give the best/ folder of a training run, or "
            "copy or download it again."
        ) from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor


def segment(
    model,
    processor,
    pictures: list[Picture],
    threshold: float,
    batch_size: int = 1,
    tile_size: int | None = None,
    max_memory: int | None = None,
) -> Iterator[tuple]:
    """Segments pictures, those of one sentence together, so that each sentence is read once. In tiles they go one by
    one, each at its own size, and `max_memory` bounds the bytes that the whole process takes.

    Yields:
        The picture, its image (PIL, RGB), found (bool (height, width)) and the probability that there is anything but
        background (float32 (height, width)); for a picture that cannot be read, or needs more memory, the error stands
        for the image.

    Raises:
        ValueError: a sentence is longer than the text encoder reads.
    """
    import torch

    batch_size = batch_size if tile_size is None else 1
    room = None if max_memory is None else max_memory - resident_memory()
    groups = [
        (sentence, list(group))
        for sentence, group in groupby(
            sorted(pictures, key=lambda picture: picture.sentence or ""), key=lambda picture: picture.sentence
        )
    ]
    limit = processor.tokenizer.model_max_length
    for sentence, _ in groups:
        length = len(processor.tokenizer(sentence or "", truncation=False).input_ids)
        if length > limit:
            raise ValueError(f"the sentence '{sentence[:60]}...' has {length} tokens of at most {limit}: shorten it.")
    words = [processor(text=[sentence], truncation=False, return_tensors="pt") for sentence, _ in groups]
    warned = tile_size is None
    for (_, group), word in zip(groups, words, strict=True):
        text = {}
        if word:
            word = word.to(model.device)
            with torch.no_grad():
                text = {"text_embeds": model.get_text_features(**word), "attention_mask": word["attention_mask"]}
        for start in range(0, len(group), batch_size):
            batch, images = [], []
            for picture in group[start : start + batch_size]:
                try:
                    images.append(processor.image_processor.load_image(picture.path))
                    batch.append(picture)
                except (OSError, ValueError) as error:
                    yield picture, error, None, None
            if not batch:
                continue
            warned = warned or warn_of_scale(processor.image_processor, images[0])
            words_of_batch = {key: value.expand(len(batch), *value.shape[1:]) for key, value in text.items()}
            try:
                logits = ask(model, processor, images, words_of_batch, tile_size, room)
            except ValueError as error:
                yield from ((picture, error, None, None) for picture in batch)
                continue
            # One by one: at their own size, the answers to a batch of large pictures would take gigabytes.
            for index, (picture, image) in enumerate(zip(batch, images, strict=True)):
                yield picture, image, *read_answer(processor, logits[index : index + 1], image, threshold)


def warn_of_scale(image_processor, image) -> bool:
    """Says it where tiles would show a picture at another scale than the training did. Returns whether they would."""
    from tqdm import tqdm

    size = image_processor.size
    if max(image.height / size["height"], image.width / size["width"]) < 1.5:
        return False
    tqdm.write(  # above the bar, where there is one
        f"warning: the model learned from whole pictures of {size['width']} x {size['height']} pixels; in tiles it "
        "sees another scale, and its masks will probably be wrong: leave out --tile_size and --max_memory unless it "
        "was trained at that resolution.",
        file=sys.stderr,
    )
    return True


def ask(model, processor, images: list, text: dict, tile_size: int | None, room: int | None):
    """Logits of a batch at the model's own size, or of one picture at its own, in tiles and `room` bytes.

    Raises:
        ValueError: the picture needs more room.
    """
    import torch

    if room is not None:
        size = images[0].width * images[0].height
        answer_bytes = ANSWER_BYTES + CLASS_BYTES * (model.config.num_labels - 2)
        if (lacking := answer_bytes * size - room) > 0:
            lacking = math.ceil(lacking / 2**20)
            raise ValueError(f"max_memory is {lacking} MiB too little for this picture's mask: give more.")
        room -= PICTURE_BYTES * size
    pixels = processor(images=images, do_resize=tile_size is None, return_tensors="pt")["pixel_values"]
    pixels = pixels.to(model.device)
    with torch.no_grad():
        if tile_size is None:
            return model(pixels, **text).logits
        return model.segment_in_tiles(pixels, tile_size, max_memory=room, **text).logits


def read_answer(processor, logits, image, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Found (bool) and the probability of anything but background (float32) of one picture at its size."""
    from types import SimpleNamespace

    (mask,), (probabilities,) = processor.post_process_semantic_segmentation(
        SimpleNamespace(logits=logits),
        target_sizes=[(image.height, image.width)],
        threshold=threshold if logits.shape[1] == 2 else None,
        return_probabilities=True,
    )
    return mask.cpu().numpy() > 0, 1 - probabilities[0].cpu().numpy()


def write(image, found, probability, kind: str, mask, overlay=None, probabilities=None) -> None:
    """Writes what is asked for: the mask in its format, the picture under the mask, the probabilities."""
    from PIL import Image

    if kind == "nifti":
        write_nifti(found.astype(np.uint8), mask)
    elif kind == "rle":
        Path(mask).write_text(json.dumps(run_lengths(found)) + "\n", encoding="utf-8")
    else:
        Image.fromarray(found * np.uint8(255)).save(mask, format="PNG")
    if overlay:
        pixels = np.asarray(image, dtype=np.float32)
        pixels[found] = 0.55 * pixels[found] + 0.45 * np.array(OVERLAY_COLOUR, dtype=np.float32)
        Image.fromarray(pixels.round().astype(np.uint8)).save(overlay, format="PNG")
    if probabilities and kind == "nifti":
        write_nifti(probability.astype(np.float32), probabilities)
    elif probabilities:
        Image.fromarray((probability * 65535).round().astype(np.uint16)).save(probabilities, format="PNG")


def write_nifti(values: np.ndarray, path) -> None:
    """(height, width) as a volume of one slice, (x, y, 1), with voxels of 1, since pictures carry no spacing. The axes
    point as ITK lets those of a picture point, so that viewers show it upright."""
    import nibabel

    nibabel.save(nibabel.Nifti1Image(values.T[..., None], np.diag([-1, -1, 1, 1])), path)


def run_lengths(found: np.ndarray) -> dict:
    """COCO's uncompressed run lengths: `counts` of pixels that are out, in, out, ... in turn, column by column, and
    `size` as [height, width]."""
    flat = np.asfortranarray(found).ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    edges = np.concatenate([[0], *([[0]] if flat[0] else []), changes, [flat.size]])
    return {"size": list(found.shape), "counts": np.diff(edges).tolist()}


def num_bytes(text: str) -> int:
    """A number of bytes from words such as 2GB, 1.5 GiB or 800000000."""
    number, unit = re.fullmatch(r"([\d.]*)\s*(.*)", text.strip()).groups()
    try:
        return int(float(number) * UNITS[unit])
    except (ValueError, KeyError) as error:
        raise ValueError(f"'{text}' is no amount of memory: give a number and MB, GB, MiB or GiB, as 2GB.") from error


def resident_memory() -> int:
    """Most bytes that this process has held in memory so far."""
    status = Path("/proc/self/status")
    if not status.is_file():
        raise ValueError("--max_memory needs Linux, which tells what a process takes: give --tile_size instead.")
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def write_table(path: Path, rows, mode: str = "w") -> None:
    """Writes predictions.csv anew, whole or not at all, or adds rows to it by mode "a"."""
    written = path.with_name(f".{path.name}") if mode == "w" else path
    with open(written, mode, encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")  # what somebody added to an earlier table
        if mode == "w":
            writer.writeheader()
        writer.writerows(rows)
    if mode == "w":
        written.replace(path)


def read_table(path: Path) -> dict[str, dict]:
    """The rows of an earlier run's predictions.csv by picture; none where there is no such table."""
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        try:
            if tuple(reader.fieldnames or ()) == COLUMNS:
                return {row["image"]: row for row in reader if row["status"]}  # the last one may be torn by a break
        except (UnicodeDecodeError, csv.Error):
            pass
    raise ValueError(f"'{path}' is no table of this command: move it away, or give another --output.")


def check_model_folder(name: str) -> None:
    """Says in one sentence what a folder lacks that is no model of ours.

    Raises:
        ValueError: the folder has no config or no weights.
    """
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise ValueError(
                f"there is no model folder '{name}': give the best/ folder of a training run, or a Hub id."
            )
        return
    for file, role in (("config.json", "config"), ("processor_config.json", "processor")):
        if not (folder / file).is_file():
            raise ValueError(f"'{name}' holds no {role} ({file}): give the best/ folder of a training run.")
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"'{name}' holds no weights (model.safetensors): copy them there or train the model again.")
