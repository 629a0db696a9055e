# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The demo without its page: reads a picture, asks the model once, measures the kept answer at any threshold.

A Space has this folder and a Hub id, but not our packages: the model then brings its code along (`trust_remote_code`).
"""

import importlib
import io
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np
import torch
from huggingface_hub import snapshot_download
from PIL import Image, UnidentifiedImageError
from scipy import ndimage
from transformers import AutoModel, AutoProcessor
from transformers.utils import logging


PROJECT = Path(__file__).resolve().parent.parent
MODEL_FOLDERS = ("runs/quickstart/finetune/best", "checkpoints/tamiseg-mobile-qata")
# What browsers and clinics send. Pillow knows more, among them formats that start other programs (EPS).
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
MAX_MEGAPIXELS = 16  # what digital X-ray detectors give; more would take more than 1.5 GB
MAX_LETTERS = 300
# The palette of Okabe and Ito, told apart by colour-blind readers too: one colour per finding, so seven findings.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
NO_SENTENCE = "the picture alone"  # stands where a finding's name would


@dataclass
class Finding:
    """One sentence's mask at one threshold, and what can be counted in it."""

    name: str
    colour: str
    mask: np.ndarray  # bool (height, width), the picture's size
    regions: int  # that touch neither by side nor by corner
    mean: float | None  # probability inside the mask; None where it is empty
    highest: float  # probability anywhere

    @property
    def area(self) -> int:
        return int(np.count_nonzero(self.mask))

    def numbers(self) -> dict:
        """The finding's row in tables."""
        return {
            "finding": self.name,
            "found": self.area > 0,
            "area_px": self.area,
            "area_percent": round(100 * self.area / self.mask.size, 3),
            "regions": self.regions,
            "mean_p": None if self.mean is None else round(self.mean, 4),
            "highest_p": round(self.highest, 4),
        }


@dataclass
class Answer:
    """What the model said. Logits have the model's size, not the picture's: little to keep, and every threshold can
    still be had from them to the pixel."""

    picture: Image.Image  # upright, RGB
    names: list[str]  # of the findings
    logits: torch.Tensor  # (findings, 2, height, width) float32
    seconds: float
    stem: str = "picture"  # how files that come of it are called
    notes: list[str] = field(default_factory=list)  # what a person should know of how it came about


class Segmenter:
    """A model and its processor, for pictures and sentences as people send them.

    Args:
        name: folder of a trained model, or its Hub id.

    Raises:
        ValueError: in one sentence, if nothing of ours can be loaded from there.
    """

    def __init__(self, name: str):
        self.name = name
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        logging.disable_progress_bar()
        remote = not import_our_packages()
        try:
            folder = local_folder(name)
            self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=remote)
            self.model, report = AutoModel.from_pretrained(
                folder,
                trust_remote_code=remote,
                use_safetensors=True,
                dtype=torch.float32,  # whatever it was saved in: pictures and sentences come in float32
                output_loading_info=True,
            )
            self.model.eval().to(self.device)
            if report["missing_keys"]:  # they were drawn at random
                raise ValueError("weights are missing")
            # The file beside the processor, wherever that came from.
            package = type(self.processor).__module__.rpartition(".")[0]
            self.split_findings = importlib.import_module(f"{package}.prompts").split_findings
            if self.model.config.num_labels == 2:
                # What files belong together shows in an answer.
                answer = self.ask(Image.new("RGB", (32, 32)), "lesion")
                if not answer.logits.isfinite().all():
                    raise ValueError("it answers with NaN")
                self.measure(answer, 0.5)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # whatever is wrong with a folder (tokenizers panic), the page comes up
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            raise ValueError(
                f"No model can be loaded from '{name}': set TAMISEG_MODEL to the best/ folder of a training run, or "
                "to a Hub id."
            ) from error
        if self.model.config.num_labels != 2:
            raise ValueError(f"'{name}' tells {self.model.config.num_labels} classes apart; this page shows two.")
        training = read_result_file(folder)
        # Where nothing tells of the training, the examples are as good as anything.
        self.knows_examples = training.get("arguments", {}).get("dataset", "builtin") == "builtin"
        self.known_sentences = training.get("rows", {}).get("train", {}).get("frequent_sentences", [])

    def read(self, source: str | os.PathLike | BinaryIO, name: str | None = None) -> tuple[Image.Image, list[str]]:
        """A file as an upright RGB picture, with a note where its grey values had to be changed.

        Args:
            source: path or open file.
            name: how error messages call it; the file's own name if left out.

        Raises:
            ValueError: in one sentence, if it is no picture, damaged, a stack, or too large.
        """
        name = name or Path(source).name
        too_large = f"'{name}' has more than {MAX_MEGAPIXELS} million pixels: make it smaller first."
        try:
            # In memory, because of a file on disk decoders set aside as much as its header claims that there is.
            content = source if hasattr(source, "read") else io.BytesIO(Path(source).read_bytes())
            opened = Image.open(content, formats=FORMATS)  # reads the header only
        except Image.DecompressionBombError as error:
            raise ValueError(too_large) from error
        except UnidentifiedImageError as error:
            raise ValueError(f"'{name}' is no picture of a kind that can be read here: save it as PNG.") from error
        except Exception as error:  # of damaged headers: decoders raise whatever comes
            raise ValueError(f"'{name}' cannot be read as a picture: save it again as PNG.") from error
        with opened:
            if opened.width * opened.height > MAX_MEGAPIXELS * 1e6:
                raise ValueError(too_large)
            opened.filename = name  # and not the server's path, in what the processor may say of it
            try:
                picture = self.processor.image_processor.load_image(opened)
            except ValueError as error:
                said = str(error)
                raise ValueError(said if name in said else f"'{name}': {said}") from error
            wide = opened.mode in ("I", "F") or opened.mode.startswith("I;16")
            low, high = opened.getextrema() if wide else (0, 255)
        if low < 0 or high > 255:
            return picture, [f"'{name}' holds more than 8 bits: its percentiles 0.5 and 99.5 became black and white."]
        return picture, []

    def ask(self, picture: Image.Image, text: str | None) -> Answer:
        """One pass of the model over a picture and all findings of `text`, which semicolons separate; without any, it
        answers by the picture alone.

        Raises:
            ValueError: in one sentence, if a finding cannot be used.
        """
        started = time.perf_counter()
        sentences = self.split_findings(text)
        notes = self.check(sentences)
        logits = self._logits(picture, sentences or [None])
        if not sentences:
            notes.append("No finding was named: this is what the model answers to the picture alone.")
        return Answer(picture, sentences or [NO_SENTENCE], logits, time.perf_counter() - started, notes=notes)

    def measure(self, answer: Answer, threshold: float) -> list[Finding]:
        """The masks of a kept answer, each pixel in from `threshold` on; the model is not asked again."""
        parts = zip(answer.names, COLOURS, answer.logits, strict=False)  # there are colours to spare
        return [self._measure(*part, answer.picture.size[::-1], threshold) for part in parts]

    def _measure(
        self, name: str, colour: str, logits: torch.Tensor, size: tuple[int, int], threshold: float
    ) -> Finding:
        # One by one, and nothing of it kept but the mask: a map of 16 million probabilities takes 64 MB.
        (mask,), (probabilities,) = self.processor.post_process_semantic_segmentation(
            SimpleNamespace(logits=logits[None]), [size], threshold=threshold, return_probabilities=True
        )
        inside, probability = mask.numpy() > 0, probabilities[1].numpy()
        regions = ndimage.label(inside, structure=np.ones((3, 3)))[1]
        mean = float(probability[inside].mean()) if regions else None
        return Finding(name, colour, inside, regions, mean, float(probability.max()))

    def probability(self, answer: Answer, index: int, size: tuple[int, int]) -> np.ndarray:
        """Finding number `index` of a kept answer as float32 `(height, width)` of the given size, in [0, 1]."""
        _, (probabilities,) = self.processor.post_process_semantic_segmentation(
            SimpleNamespace(logits=answer.logits[index : index + 1]), [size], return_probabilities=True
        )
        return probabilities[1].numpy()

    def check(self, sentences: list[str]) -> list[str]:
        """Notes the words that the model never learnt.

        Raises:
            ValueError: in one sentence, if there are too many findings, or one is too long for the model.
        """
        if len(sentences) > len(COLOURS):
            raise ValueError(f"{len(sentences)} findings are too many: ask for at most {len(COLOURS)} at a time.")
        tokenizer = self.processor.tokenizer
        unknown = []
        for sentence in sentences:
            long = len(sentence) > MAX_LETTERS or len(tokenizer(sentence).input_ids) > tokenizer.model_max_length
            if long:
                raise ValueError(f"The finding '{sentence[:40]}...' is too long for the model: say it in fewer words.")
            for word in (word.strip('.,:!?()"') for word in sentence.split()):
                ids = tokenizer(word, add_special_tokens=False).input_ids
                if tokenizer.unk_token_id in ids and word not in unknown:
                    unknown.append(word)
        return [f"Words that the model does not know: {', '.join(unknown)}."] if unknown else []

    @torch.no_grad()
    def _logits(self, picture: Image.Image, sentences: list[str | None]) -> torch.Tensor:
        """`(sentences, 2, height, width)`; the picture passes the encoder once, however many sentences there are."""
        inputs = self.processor(images=picture, text=[sentences], return_tensors="pt").to(self.device)
        return self.model(**inputs).logits.float().cpu()


def find_model() -> str:
    """`TAMISEG_MODEL`, or the first of the project's own folders that holds a model.

    Raises:
        ValueError: there is none; the message says which command makes one.
    """
    if named := os.environ.get("TAMISEG_MODEL"):
        return named
    for folder in MODEL_FOLDERS:
        if (PROJECT / folder / "config.json").is_file():
            return str(PROJECT / folder)
    raise ValueError(
        "There is no model yet: run make quickstart in the project's folder (minutes on a CPU), or set TAMISEG_MODEL "
        "to a model's folder or Hub id, and start the demo again."
    )


def local_folder(name: str) -> str:
    """The folder of a model, which is fetched first where it is an id of the Hub; where that cannot be reached, what
    was fetched before. Asks the Hub once: transformers would for each file, for minutes where it does not answer."""
    if Path(name).is_dir():
        return name
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(f"there is no model folder '{name}'")
    return snapshot_download(name)


def read_result_file(folder: str) -> dict:
    """What lies with a model, or beside its best/, of how it was trained; nothing where there is no such file."""
    beside = Path(folder).parent / "result.json" if Path(folder).name == "best" else None
    for place in (Path(folder) / "result.json", beside):
        if place is not None and place.is_file():
            try:
                return json.loads(place.read_text(encoding="utf-8"))
            except (ValueError, RecursionError):  # damaged: the model is as good without it
                return {}
    return {}


def import_our_packages() -> bool:
    """Makes the Auto classes know TAMISeg, from the checkout around this folder or from an installed package; False
    where there is neither, as in a Space."""
    if (PROJECT / "modeling_tamiseg").is_dir() and str(PROJECT) not in sys.path:
        sys.path.insert(0, str(PROJECT))
    try:
        for package in ("modeling_tamiseg", "processing"):
            importlib.import_module(package)
    except ModuleNotFoundError:
        return False
    return True
