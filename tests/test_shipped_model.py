# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The shipped model: whole, as its receipts say, with the code of today, and small enough."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from processing.command_line import main
from processing.model_card import model_card
from processing.predict import SHIPPED_MODEL


ROOT = Path(__file__).parent.parent
WEIGHTS = SHIPPED_MODEL / "model.safetensors"


def test_receipts_are_of_these_weights_and_the_card_of_these_receipts():
    assert WEIGHTS.stat().st_size < 20e6
    digest = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    card = (SHIPPED_MODEL / "README.md").read_text()
    results = [json.loads(path.read_text()) for path in sorted(SHIPPED_MODEL.glob("result*.json"))]
    assert [result["split"] for result in results] == ["validation", "test"]
    assert card == model_card(results, SHIPPED_MODEL.relative_to(ROOT).as_posix(), {}), "`model_card` writes it anew"
    for result in results:
        assert result["weights_sha256"] == digest
    assert "Research only" in card and digest in card
    assert "chest X-rays" in card and "marks the patient's right lung" in card and "even where that is false" in card


def test_code_beside_it_is_the_code_of_today():
    copies = list(SHIPPED_MODEL.glob("*.py"))
    assert copies
    for copy in copies:
        source = next(
            folder / copy.name
            for folder in (ROOT / "modeling_tamiseg", ROOT / "processing")
            if (folder / copy.name).is_file()
        )
        assert copy.read_bytes() == source.read_bytes(), f"copy {source} to {copy}: the weights are the same"


@pytest.mark.parametrize(
    "sentence", ["unilateral pulmonary infection, one infected area, lower left lung.", "zebra?", None]
)
def test_predict_uses_it_and_takes_words_it_never_saw(tmp_path, sentence, capsys):
    picture, mask = tmp_path / "drawn.png", tmp_path / "mask.png"
    Image.fromarray(np.linspace(0, 255, 90 * 130).reshape(90, 130).astype(np.uint8)).save(picture)
    words = [] if sentence is None else ["--text", sentence]
    assert main(["predict", str(picture), *words, "--output", str(mask)]) == 0
    assert Image.open(mask).size == (130, 90)
    assert "mask in" in capsys.readouterr().out
