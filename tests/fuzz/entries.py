# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The ways by which a file comes in: what each kind of file is given to."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from unittest import mock

import datasets
import torch

import batch
import segment
from modeling_tamiseg import TAMISegForImageSegmentation
from processing import TAMISegPipeline, TAMISegProcessor, evaluation, predict
from processing.command_line import main
from processing.data import SegmentationDataset, StreamedSegmentationDataset, load_rows, stream_rows
from processing.hub import collect, read
from processing.model_card import as_written, model_card
from processing.slices import dicom_identity, read_images, read_masks
from processing.sources import Source

from .corpus import ROWS, SIZE
from .mutations import HOSTILE


class Kit:
    """What all cases share: the tiny model, loaded once."""

    def __init__(self, folder: Path, corpus: dict[str, list[tuple[str, bytes]]]):
        torch.set_num_threads(1)  # a fork does not take other threads along, and would wait for them
        self.folder, self.corpus = folder, corpus
        self.model = TAMISegForImageSegmentation.from_pretrained(folder).eval()
        self.processor = TAMISegProcessor.from_pretrained(folder)
        self.pipeline = TAMISegPipeline(model=self.model, processor=self.processor)
        self.demo = segment.Segmenter(str(folder))


@dataclass
class Case:
    """One damaged file on its way in."""

    kind: str
    end: str  # of the file's name
    content: bytes
    folder: Path  # scratch, empty
    kit: Kit
    random: Random

    @cached_property
    def path(self) -> Path:
        return self.write(f"case{self.end}" if self.end.startswith(".") else self.end, self.content)

    @cached_property
    def text(self) -> str | None:
        """A sentence, as often as not one that nobody should send."""
        return self.random.choice([*[value for value in HOSTILE if isinstance(value, str)], *["left lesion"] * 20])

    def write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def whole(self, kind: str) -> bytes:
        return self.kit.corpus[kind][0][1]


def command(*words) -> None:
    """`tamiseg ...` in this process.

    Raises:
        ValueError: the one sentence that it ended with.
        AssertionError: it ended without one.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = main([str(word) for word in words])
    lines = [line for line in said.getvalue().splitlines() if line.startswith("tamiseg: ")]
    if code:
        assert code == 2 and len(lines) == 1, said.getvalue()
        raise ValueError(lines[0])


# Pictures


def load_image(case: Case) -> None:
    case.kit.processor.image_processor.load_image(case.path)


def load_mask(case: Case) -> None:
    case.kit.processor.image_processor.load_mask(case.path, num_labels=case.random.choice((2, 4)))


def processor(case: Case) -> None:
    mask = case.path if case.random.random() < 0.3 else None
    case.kit.processor(images=case.path, text=case.text, segmentation_maps=mask, return_tensors="pt")


def pipeline(case: Case) -> None:
    case.kit.pipeline(str(case.path), text=case.text)


def predict_picture(case: Case) -> None:
    words = [
        "predict",
        case.path,
        f"--text={case.text}",
        "--output",
        case.folder / "m.png",
        "--model",
        case.kit.folder,
    ]
    words += case.random.choice(([], ["--tile_size", 128], ["--overlay", case.folder / "o.png"]))
    with mock.patch.object(predict, "load", lambda *names: (case.kit.model, case.kit.processor)):
        command(*words, "--model", case.kit.folder)


def predict_folder(case: Case) -> None:
    """Beside a whole picture, which must get its mask whatever is wrong with the other."""
    pictures, masks = case.folder / "in", case.folder / "out"
    case.write(f"in/case{case.end}", case.content)
    case.write("in/whole.png", case.whole("PNG"))
    with mock.patch.object(predict, "load", lambda *names: (case.kit.model, case.kit.processor)):
        try:
            command("predict", pictures, "--model", case.kit.folder, "--output", masks, "--text", "left lesion")
        finally:
            assert (masks / "whole.png").is_file(), "a bad picture stopped a good one"


def slices(case: Case) -> None:
    window = case.random.choice((None, "auto", (-600, 1500)))
    read_images(case.path.name, case.content, window)


def mask_slices(case: Case) -> None:
    read_masks(case.path.name, case.content, case.random.choice((2, 4)), SIZE, may_cut=case.random.random() < 0.5)


def identity(case: Case) -> None:
    dicom_identity(case.content)


def prepare(case: Case) -> None:
    for number, (name, _) in enumerate(ROWS):
        case.write(f"in/images/{name}", case.kit.corpus["PNG"][number][1])
        case.write(f"in/masks/{name}", case.kit.corpus["PNG"][-1][1])
    if case.kind in ("xlsx", "csv", "jsonl", "zip"):
        case.write(f"in/t{case.end}", case.content)
    else:
        where = "masks" if case.kind == "outlines" else case.random.choice(("images", "masks"))
        (case.folder / "in" / where / "p0.png").unlink()
        case.write(f"in/{where}/p0{case.end}", case.content)
    if case.kind == "zip":
        shutil.rmtree(case.folder / "in" / "images")
        shutil.rmtree(case.folder / "in" / "masks")
    words = ["data", "prepare", "folder", "--source", case.folder / "in", "--output", case.folder / "out"]
    command(*words, *case.random.choice(([], ["--window", "auto"], ["--sentences", "lung"])))


def dataset(case: Case) -> None:
    """The picture, or the mask, of a row."""
    whole = {"bytes": case.whole("PNG"), "path": None}
    row = {"image": whole, "mask": {"bytes": case.kit.corpus["PNG"][-1][1], "path": None}}
    row[case.random.choice(("image", "mask"))] = {"bytes": case.content, "path": None}
    rows = datasets.Dataset.from_dict(
        {"name": ["case"], **{column: [picture] for column, picture in row.items()}},
        features=datasets.Features(
            {"name": datasets.Value("string"), "image": datasets.Image(), "mask": datasets.Image()}
        ),
    )
    SegmentationDataset(rows, case.kit.processor.image_processor)[0]


def demo(case: Case) -> None:
    picture, _ = case.kit.demo.read(case.path)
    answer = case.kit.demo.ask(picture, case.text)
    case.kit.demo.measure(answer, 0.5)


def demo_batch(case: Case) -> None:
    """Beside a whole picture, whose mask must be there."""
    sources = batch.collect([str(case.path), str(case.write("whole.png", case.whole("PNG")))])
    rows = list(batch.segment_files(case.kit.demo, sources, "left lesion", 0.5, io.BytesIO()))
    assert rows[-1].error is None, "a bad file stopped a good one"
    for row in rows:
        if row.error:
            raise ValueError(row.error)


# Tables and data sets


def read_table(case: Case) -> None:
    case.write(f"in/t{case.end}", case.content)
    Source(case.folder / "in").read_table(f"t{case.end}")


def archive(case: Case) -> None:
    source = Source(case.path)
    for name in source.paths:
        source.read(name)
    assert [path.name for path in case.folder.iterdir()] == [case.path.name], "something was unpacked"


def prompts(case: Case) -> None:
    for name, _ in ROWS:
        case.write(f"in/{name}", case.whole("PNG"))
    words = ["predict", case.folder / "in", "--prompts", case.path, "--output", case.folder / "out"]
    with mock.patch.object(predict, "load", lambda *names: (case.kit.model, case.kit.processor)):
        command(*words, "--model", case.kit.folder)


def image_folder(case: Case) -> None:
    for name, _ in ROWS:
        case.write(f"in/train/{name}", case.whole("PNG"))
    case.write("in/train/mask.png", case.kit.corpus["PNG"][-1][1])
    case.write("in/train/metadata.jsonl", case.content)
    rows = load_rows(str(case.folder / "in"), "train")
    data = SegmentationDataset(rows, case.kit.processor.image_processor)
    for index in range(len(data)):
        data[index]


def rows(case: Case) -> None:
    case.write("in/train-0.parquet", case.content)
    data = SegmentationDataset(load_rows(str(case.folder / "in"), "train"), case.kit.processor.image_processor)
    for index in range(len(data)):
        data[index]


def stream(case: Case) -> None:
    case.write("in/train-0.parquet", case.content)
    found, _ = stream_rows(str(case.folder / "in"), "train")
    list(
        StreamedSegmentationDataset(found, case.kit.processor.image_processor, buffer_size=case.random.choice((0, 2)))
    )


def evaluate(case: Case) -> None:
    case.write("in/test-0.parquet", case.content)
    built = evaluation.Segmenter(case.kit.model, case.kit.processor), "0" * 64
    with mock.patch.object(evaluation, "build", return_value=built):
        command("evaluate", case.kit.folder, "--dataset", case.folder / "in", "--output", case.folder / "out")


# Folders of a model


def model_folder(case: Case) -> Path:
    folder = case.folder / "model"
    shutil.copytree(case.kit.folder, folder)
    case.write(f"model/{case.end}", case.content)
    return folder


def predict_model(case: Case) -> None:
    picture = case.write("whole.png", case.whole("PNG"))
    words = ["predict", picture, "--text", "left lesion", "--output", case.folder / "m.png"]
    command(*words, "--model", model_folder(case))


def demo_model(case: Case) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        demo = segment.Segmenter(str(model_folder(case)))
        demo.measure(demo.ask(*demo.read(case.write("whole.png", case.whole("PNG")))[:1], "left lesion"), 0.5)


def push_folder(case: Case) -> None:
    """All of a push but the Hub."""
    _, files = collect(model_folder(case))
    results = [json.loads(read(files["result.json"]))] if "result.json" in files else []
    with as_written("the result file"):
        model_card(results, "user/model", {})


def report(case: Case) -> None:
    case.write("in/one.json", case.content)
    command("report", "--results", case.folder / "in", "--output", case.folder / "out")


# Entry -> how many cases it gets for each case of the dearest ones.
PICTURES = {load_image: 8, load_mask: 8, processor: 4, pipeline: 2, predict_picture: 2, predict_folder: 1, slices: 4}
PICTURES |= {mask_slices: 4, prepare: 1, dataset: 4, demo: 2, demo_batch: 1}
VOLUMES = {slices: 12, mask_slices: 6, prepare: 1}
MODEL = {predict_model: 2, demo_model: 1}
ENTRIES: dict[str, dict[Callable[[Case], None], int]] = {
    **{kind: PICTURES for kind in ("PNG", "JPEG", "TIFF", "WebP", "other pictures")},
    "DICOM": {**VOLUMES, identity: 4},
    "NIfTI": VOLUMES,
    "outlines": {mask_slices: 12, prepare: 1},
    "xlsx": {read_table: 8, prepare: 1},
    "csv": {read_table: 4, prompts: 2, prepare: 1},
    "jsonl": {read_table: 4, prompts: 2, prepare: 1, image_folder: 4},
    "zip": {archive: 8, prepare: 1, demo_batch: 2},
    "parquet": {rows: 8, stream: 4, evaluate: 1},
    **{kind: MODEL for kind in ("model.safetensors", "tokenizer.json", "tokenizer_config.json")},
    **{kind: MODEL | {push_folder: 4} for kind in ("config.json", "processor_config.json")},
    "result.json": {push_folder: 6, report: 1},
}
