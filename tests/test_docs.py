# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The docs do what they say: their commands are run as they stand, and the notebook cell by cell, on less data and
fewer steps than they ask for, against encoders of toy size and a Hub on the loopback interface."""

import csv
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel

import train_hf
from processing.command_line import main
from processing.predict import PICTURE_SUFFIXES
from tests.loopback_hub import LoopbackHub, connect
from tests.test_processing import make_tokenizer


ROOT = Path(__file__).parent.parent
QUICK = "--cpu true --max_steps 2 --max_train_samples 8 --max_eval_samples 3 --image_size 32 --batch_size 4".split()


@pytest.fixture
def hub(tmp_path, monkeypatch, remote_code_folder):
    monkeypatch.chdir(tmp_path)
    with LoopbackHub() as hub:
        connect(hub, monkeypatch, tmp_path / "cache")
        yield hub


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document, re.DOTALL)


def run(command: str, monkeypatch) -> None:
    """A line of the docs, in this process."""
    match shlex.split(command.replace("USER/", "user/")):
        case ["tamiseg", *words]:
            assert main(words) == 0, command
        case ["python", "train_hf.py", *words]:
            train_hf.main([*words, *QUICK])
        case ["python", "-m", module, *words]:
            monkeypatch.setattr(sys, "argv", [module, *words])
            importlib.import_module(module).main()
        case _:
            pytest.fail(f"the docs have a command that no test runs: {command}")


def test_every_flag_of_training_is_documented():
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    flags = page[page.index("## Flags") :]
    assert [name for name in train_hf.Arguments.__dataclass_fields__ if f"`{name}`" not in flags] == []


def test_your_own_data(hub, tmp_path, monkeypatch):
    document = (ROOT / "docs" / "your_own_data.md").read_text(encoding="utf-8")
    # What the docs load by these names from the Hub lies here, tiny and random.
    ResNetModel(
        ResNetConfig(embedding_size=8, hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 1, 1], layer_type="basic")
    ).save_pretrained("microsoft/resnet-50")
    text = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )  # fmt: skip
    BertModel(text).save_pretrained("emilyalsentzer/Bio_ClinicalBERT")
    make_tokenizer().save_pretrained("emilyalsentzer/Bio_ClinicalBERT")
    commands = [line for block in blocks(document, "bash") for line in block.splitlines()]
    assert len(commands) == 8
    for command in commands:
        run(command, monkeypatch)
    (line,) = map(json.loads, blocks(document, "json"))
    written = (tmp_path / "my_data" / "train" / "metadata.jsonl").read_text().splitlines()
    assert json.loads(written[0]).keys() >= line.keys()
    with open("masks/predictions.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(list(Path("my_data/test/images").iterdir())) == 40
    assert len(list(Path("volumes").glob("*.nii.gz"))) == len(list(Path("overlays").iterdir())) == 40
    assert "Terms: CC BY 4.0, our own pictures" in Path("pulled/README.md").read_text()
    (snippet,) = blocks(document, "python")
    exec(compile(snippet, "docs/your_own_data.md", "exec"), {})
    assert set(np.unique(Image.open("mask.png"))) <= {0, 255}


def test_pictures_that_are_read_are_named():
    page = (ROOT / "docs" / "your_own_data.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"\*\*Kinds of pictures:\*\* (.*?);", page)
    told = {f".{kind.strip().lower()}" for kind in re.split(", | and ", line)}
    assert told == set(PICTURE_SUFFIXES) - {".jpg", ".tif"}


def test_files_that_the_docs_name_are_there():
    document = (ROOT / "docs" / "your_own_data.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|processing|docs)/[\w.]+)`", document)
    assert len(named) >= 2
    for name in named:
        assert (ROOT / name).is_file(), name


def test_notebook(hub, monkeypatch, capsys):
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))
    monkeypatch.setattr(sys, "argv", ["notebook"])
    matplotlib.use("agg")
    small = {"epochs": 1, "train_rows": 6, "image_size": 32, "repo": "user/notebook", "folder": "runs/notebook"}
    names: dict = {}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        assert cell["outputs"] == [] and cell["execution_count"] is None
        exec(compile("".join(cell["source"]), f"quickstart.ipynb {cell['id']}", "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert small.keys() <= names.keys()
            names.update(small)
    assert names["result"]["arguments"]["epochs"] == 1
    mask, probability = names["find"](names["image"], "all bright lesions")
    assert mask.shape == probability.shape == (names["image"].height, names["image"].width)
    assert {"README.md", "examples.png", "model.safetensors"} <= hub.files("user/notebook").keys()
    assert f'revision="{names["revision"]}"' in capsys.readouterr().out
