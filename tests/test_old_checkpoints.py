# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of each release of ours still load, and say what they said. Before a release, its own is added by

python -m tests.test_old_checkpoints tests/fixtures/checkpoint-VERSION
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

from modeling_tamiseg import TAMISegForImageSegmentation
from processing import TAMISegImageProcessor, TAMISegProcessor

from .test_modeling import tiny_model
from .test_processing import make_tokenizer


FOLDERS = sorted((Path(__file__).parent / "fixtures").glob("checkpoint-*"))
TEXT = ["the large lesion lower left", None]


def draw() -> list[Image.Image]:
    """Two pictures that every version of numpy draws alike."""
    ramp = np.add.outer(3 * np.arange(40), 2 * np.arange(56)).astype(np.uint8)
    return [Image.fromarray(ramp), Image.fromarray(255 - ramp)]


@torch.no_grad()
def answers(model, inputs: dict) -> dict[str, torch.Tensor]:
    no_text = model(pixel_values=inputs["pixel_values"]).logits
    return {"logits": model(**inputs).logits, "logits_without_text": no_text}


@torch.no_grad()
def write(folder: Path) -> None:
    """A tiny model of random weights, its processor, what it is fed and what it answers."""
    model = tiny_model()
    generator = torch.Generator().manual_seed(0)
    for name, values in model.state_dict().items():  # fresh statistics and biases would hide a mistake with them
        if name.endswith(("running_mean", "bias", "null_prompt")):
            values.normal_(0, 0.3, generator=generator)
        elif name.endswith("running_var"):
            values.uniform_(0.5, 2, generator=generator)
    processor = TAMISegProcessor(TAMISegImageProcessor(size={"height": 32, "width": 48}), make_tokenizer())
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for code in folder.glob("*.py"):
        code.unlink()  # the code of today shall read it
    inputs = dict(processor(images=draw(), text=TEXT, return_tensors="pt"))
    expected = {**inputs, **answers(model, inputs)}
    save_file({name: values.contiguous() for name, values in expected.items()}, folder / "expected.safetensors")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_loads_with_equal_logits(folder):
    expected = load_file(folder / "expected.safetensors")
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert type(model) is TAMISegForImageSegmentation
    inputs = dict(processor(images=draw(), text=TEXT, return_tensors="pt"))
    for name, values in {**inputs, **answers(model, inputs)}.items():
        torch.testing.assert_close(values, expected.pop(name), atol=1e-5, rtol=1e-5, msg=lambda m: f"{folder}: {m}")
    assert not expected


def test_there_are_some_and_they_are_small():
    assert FOLDERS
    for folder in FOLDERS:
        assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000


if __name__ == "__main__":
    write(Path(sys.argv[1]))
