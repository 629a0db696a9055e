# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""`tamiseg export`: what the file says is what the model says, at any batch, size and sentence."""

import pytest
import torch
from transformers import AutoModel

from processing.command_line import main
from processing.export import example, largest_difference, run_onnx
from tests.test_command_line import save_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny_model(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "file", "tolerance"),
    [
        (["--format", "torch-export"], "model.pt2", 1e-5),
        ([], "model.onnx", 1e-4),
        (["--int8"], "model_int8.onnx", 0.05),
    ],
    ids=["torch.export", "onnx", "int8"],
)
def test_exported_file_says_what_the_model_says(folder, tmp_path, capsys, options, file, tolerance):
    assert main(["export", "--model", str(folder), *options, str(tmp_path)]) == 0
    assert "logits differ" in capsys.readouterr().out
    model = AutoModel.from_pretrained(folder).eval()
    assert largest_difference(model, tmp_path / file) < tolerance
    if file.endswith(".onnx"):
        inputs = {key: value.numpy() for key, value in example(model, 2, (48, 208), 3).items()}
        logits = run_onnx(tmp_path / file)(**inputs)
        assert logits.shape == (2, 2, 48, 208)
    assert (tmp_path / "processor_config.json").is_file()


def test_bad_requests_get_one_sentence(folder, tmp_path, capsys):
    for words, sentence in (
        (["--model", str(folder), "--format", "torch-export", "--int8", str(tmp_path)], "leave one of them out"),
        (["--model", str(tmp_path), str(tmp_path / "out")], "holds no config"),
        (["--model", str(folder), str(folder / "config.json")], "is a file"),
    ):
        assert main(["export", *words]) == 2
        assert sentence in capsys.readouterr().err


@torch.no_grad()
def test_compiles_without_a_break(folder):
    model = AutoModel.from_pretrained(folder).eval()
    inputs = example(model, 2, (48, 64), 5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-4)
