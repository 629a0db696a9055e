# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""`tamiseg analyse-prompts`: a mask that follows the sentence scores so, one that does not does not, and the result
tells of no single case."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_tamiseg import TAMISegForImageSegmentation
from processing import faithfulness as room
from processing.command_line import main
from processing.evaluation import build
from tests.test_command_line import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny_model(folder)
    return folder


def half(name: str) -> np.ndarray:
    """A mask that fills a half of a picture of 40 by 40 pixels."""
    mask = np.zeros((40, 40), dtype=bool)
    mask[{"left": np.s_[:, :20], "right": np.s_[:, 20:], "upper": np.s_[:20], "none": np.s_[:0]}[name]] = True
    return mask


def test_words_and_what_is_left_without_them():
    sentence = "Two left-sided areas, all lung."
    words = room.find_words(sentence)
    assert [word[0] for word in words] == ["Two", "left-sided", "areas", "all", "lung"]
    assert room.leave_out(sentence, words[2]) == "Two left-sided, all lung."
    assert room.leave_out(sentence, words[4]) == "Two left-sided areas, all."
    assert room.leave_out("lesion.", room.find_words("lesion.")[0]) is None


@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        ("all left lung.", ("horizontal", 0)),
        ("Upper Right lung", ("horizontal", 1)),
        ("left lung and right lung", None),
        ("a polyp at the bottom", ("vertical", 1)),
        ("upper and lower spots", None),
        ("two lesions", None),
    ],
)
def test_the_one_half_that_a_sentence_names(sentence, found):
    assert room.named_half(sentence) == found


def test_share_of_a_half():
    mask = np.zeros((4, 5), dtype=bool)
    mask[0, :2] = mask[3, 2:4] = True  # the middle column counts for neither side
    assert room.share_in_half(mask, "horizontal", 0) == pytest.approx(2 / 3)
    assert room.share_in_half(mask, "vertical", 1) == 0.5
    assert room.share_in_half(mask & False, "vertical", 0) is None


def case(sentence: str, masks: list[str], truth: str, patient_id: str, attention=(0.2, 0.1, 0.3)) -> dict:
    """A case of a sentence of three words; masks under the four arms and without each of the words."""
    asked = dict(zip(room.AGREEMENT_ARMS, (sentence, None, "all right lung.", "all right lung."), strict=True))
    maps = np.ones((3, 2, 2)) * np.reshape(attention, (3, 1, 1))
    words = room.find_words(sentence)
    found = room.analyse(sentence, words, asked, [half(mask) for mask in masks], half(truth), maps)
    return {"name": patient_id, "patient_id": patient_id, **found}


def test_one_that_follows_and_one_that_does_not():
    follows = case("all left lung.", ["left", "left", "right", "right", "left", "none", "left"], "left", "a")
    stays = case("all left lung.", ["left", "left", "left", "left", "left", "left", "right"], "left", "b")
    empties = case("all left lung.", ["left", "left", "none", "none", "left", "left", "left"], "left", "c")
    assert follows["side"] == {"before": 0, "after": 1} and empties["side"] == {"before": 0, "after": None}
    assert [word["change"] for word in follows["words"]] == [0, 1, 0]
    assert [word["loss"] for word in stays["words"]] == [0, 0, 1]
    found = room.summarize([follows, stays, empties], seed=0)
    assert found["rows"] == 3
    side = {name: (some["mean"], some["cases"]) for name, some in found["side"].items()}
    assert side == {"before": (0, 2), "after": (0.5, 2), "moved": (0.5, 2), "emptied": (pytest.approx(1 / 3), 3)}
    low, high = found["side"]["moved"]["interval"]
    assert low == 0 and high == 1  # of two patients
    agreement = found["agreement"]
    assert agreement["truth"]["own"]["side"]["mean"] == 1 and "asked" not in agreement["truth"]
    assert agreement["wrong_side"]["own"]["side"]["mean"] == pytest.approx(1 / 3)
    assert agreement["wrong_side"]["asked"]["side"]["mean"] == pytest.approx(1 / 3)
    assert agreement["no_text"]["own"]["zones"]["mean"] == 1 and "asked" not in agreement["no_text"]
    # The last word has the most attention: leaving it out matters in the second case alone.
    words = found["words"]
    assert words["change"]["highest"]["mean"] == pytest.approx(1 / 3)
    assert words["change"]["other"]["mean"] == pytest.approx(1 / 6)
    assert words["change"]["lowest"]["mean"] == pytest.approx(1 / 3)
    assert words["change"]["difference"]["mean"] == pytest.approx(1 / 6)
    assert words["rank_correlation"]["cases"] == 2 and words["on_words"]["mean"] == pytest.approx(0.6)
    assert words["by_word"] == []  # three rows are too few to tell of


def test_words_that_many_rows_share():
    cases = [
        case("all left lung.", ["left"] * 5 + ["none" if i < 3 else "left", "left"], "left", f"p{i}") for i in range(5)
    ]
    told = room.summarize(cases, seed=0)["words"]["by_word"]
    assert [word["word"] for word in told] == ["left", "all", "lung"]
    assert told[0] == {"word": "left", "rows": 5, "attention": pytest.approx(0.1), "change": 0.6, "loss": 0.6}


def test_attention_of_words(model):
    segment, _ = build(str(model), None, "cpu")
    picture = Image.effect_noise((90, 70), 60).convert("RGB")
    words = room.find_words("left lung, lesion")
    masks, maps = room.ask(segment, picture, ["left lung, lesion", None], words)
    assert [mask.shape for mask in masks] == [(70, 90)] * 2 and masks[0].dtype == bool
    assert maps.shape == (3, 8, 8) and 0 < maps.sum(axis=0).max() < 1  # the rest is for the comma and special tokens
    # Where queries say nothing, each token gets the same.
    with torch.no_grad():
        for attention in segment.model.alignment.attentions:
            attention.query.weight.zero_()
    tokens = len(segment.processor.tokenizer("left lung, lesion")["input_ids"])
    _, maps = room.ask(segment, picture, ["left lung, lesion"], words)
    np.testing.assert_allclose(maps[:2], 1 / tokens, atol=1e-6)


def call(model, output, *words):
    return main(
        ["analyse-prompts", str(model), "--dataset", "builtin", "--max_rows", "9", "--output", str(output), *words]
    )


def test_the_command(model, tmp_path, capsys):
    for folder in ("one", "two"):
        assert call(model, tmp_path / folder, "--pictures", "2") == 0
    text = (tmp_path / "one" / "result.json").read_text()
    assert (
        text.replace("--output one", "--output two").replace('"output": "one"', '"output": "two"')
        == (tmp_path / "two" / "result.json").read_text()
    )
    result = json.loads(text)
    assert result["command"].startswith("tamiseg analyse-prompts") and str(tmp_path) not in text
    assert "builtin-test" not in text  # no case, no patient
    found = result["faithfulness"]
    assert found["rows"] == 9 and found["words"]["change"]["highest"]["cases"] == 9
    assert all(0 <= some["mean"] <= 1 for some in found["words"]["change"].values() if some["mean"] >= 0)
    assert Image.open(tmp_path / "one" / "words.png").width > 500
    said = capsys.readouterr().out
    assert "9 rows with a sentence" in said and "the word with the most attention" in said


def test_bad_calls_get_one_sentence(model, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert call(model, tmp_path / "file") == 2
    assert "is a file: give a folder" in capsys.readouterr().err
    (tmp_path / "result.json").write_text('{"scores": {}}')
    assert call(model, tmp_path) == 2
    assert "is of another command and would be replaced" in capsys.readouterr().err
    assert (tmp_path / "result.json").read_text() == '{"scores": {}}'
    data = tmp_path / "data" / "test"
    data.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(data / "a.png")
    (data / "metadata.jsonl").write_text(json.dumps({"image_file_name": "a.png", "mask_file_name": "a.png"}))
    assert call(model, tmp_path / "out", "--dataset", str(data.parent)) == 2
    assert "no row of split 'test' has a sentence" in capsys.readouterr().err


def test_docs_do_what_they_say(model, tmp_path, monkeypatch):
    document = (Path(__file__).parent.parent / "docs" / "analysis.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^tamiseg analyse-prompts .*$", document, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/best").symlink_to(model)
    Path("my_data/test").mkdir(parents=True)
    Image.effect_noise((40, 32), 60).save("my_data/test/a.png")
    Image.new("L", (40, 32)).save("my_data/test/a-mask.png")
    line = {"image_file_name": "a.png", "mask_file_name": "a-mask.png", "prompt": "left lung, lesion"}
    Path("my_data/test/metadata.jsonl").write_text(json.dumps(line))
    assert main(shlex.split(command)[1:]) == 0
    assert Path("runs/mine/prompts/result.json").is_file()


def test_normal_passes_keep_no_attention(model):
    loaded = TAMISegForImageSegmentation.from_pretrained(model).eval()
    with torch.no_grad():
        assert loaded(torch.zeros(1, 3, 32, 32)).cross_attentions is None
