# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The card: valid front matter, no number without a result file, no placeholder, snippets that run."""

import copy
import gc
import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from PIL import Image

import train_hf
from processing.command_line import main
from processing.model_card import MARK, describe_rows, model_card
from processing.plots import write_curves


SENTENCE = "the bright square"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model freshly tuned on somebody's own pictures: a folder of them with sentences, one of which is rare."""
    folder = tmp_path_factory.mktemp("own")
    for split, count in (("train", 8), ("validation", 3)):
        (folder / "data" / split).mkdir(parents=True)
        lines = []
        for i in range(count):
            picture = np.random.default_rng(i).integers(0, 99, (40, 30), dtype=np.uint8)
            mask = np.zeros_like(picture)
            mask[5 : 9 + i, 10:20] = 255
            picture[mask > 0] += 120
            for name, pixels in (("image", picture), ("mask", mask)):
                Image.fromarray(pixels).save(folder / "data" / split / f"{i}-{name}.png")
            prompt = "Mrs Miller, 61, seen before" if i == 7 else SENTENCE
            names = {"image_file_name": f"{i}-image.png", "mask_file_name": f"{i}-mask.png"}
            lines.append(json.dumps({**names, "prompt": prompt, "patient_id": f"{split[0]}{max(i, 1)}"}))
        (folder / "data" / split / "metadata.jsonl").write_text("\n".join(lines))
    train_hf.main(
        ["--stage", "finetune", "--output_dir", str(folder / "tuned"), "--dataset", str(folder / "data"),
         "--cpu", "true", "--image_size", "32", "--batch_size", "4", "--epochs", "2", "--learning_rate", "0.01",
         "--data_license", "CC BY 4.0, own pictures."]
    )  # fmt: skip
    return folder / "tuned"


@pytest.fixture
def result(run):
    return json.loads((run / "result.json").read_text())


def prose(card: str) -> str:
    """The body without code."""
    return re.sub(r"```.*?```", "", card.split(MARK)[1], flags=re.DOTALL)


def test_own_data(run, result):
    card = (run / "best" / "README.md").read_text()
    assert result["rows"]["train"] == {
        "rows": 8, "patients": 7, "rows_without_patient": 0, "sentences": 2, "frequent_sentences": [SENTENCE]
    }  # fmt: skip
    assert "| train | 8 | 7 | 0 | 2 |" in card and "| validation | 3 | 2 | 0 | 1 |" in card
    assert "Patients in both splits, by their ids: 0." in card and "it is unknown whether" not in card
    assert "Terms: CC BY 4.0, own pictures." in card and "license: other" in card
    assert f'text="{SENTENCE}"' in card and "Miller" not in card  # what one row says may tell of one patient
    assert "examples.png" not in card and not (run / "examples.png").exists()
    assert "(../curves.png)" in card and (run / "curves.png").is_file()
    assert "Not a medical device" in card and "# tuned\n" in card


def test_snippets_of_the_card_run(run, tmp_path, monkeypatch):
    card = (run / "best" / "README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(snippets) == 2
    Image.effect_noise((50, 40), 60).save(tmp_path / "picture.png")
    site = next(path for path in sys.path if path.endswith("site-packages"))
    code = f"import sys; sys.path.append({site!r})\n" + "\n".join(snippets)
    code += "\nassert masks[0].shape == (40, 50) and probabilities[0].shape == (2, 40, 50)"
    stranger = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=200,
        env={"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert stranger.returncode == 0, stranger.stderr[-2000:]
    assert 0 <= float(stranger.stdout.strip()) <= 1
    assert Image.open(tmp_path / "mask.png").size == (50, 40)
    command = re.search(r"^tamiseg (predict picture.png .*)$", card, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command[1])) == 0
    assert (tmp_path / "found.png").is_file()


def with_test_split(result) -> list[dict]:
    """As the evaluator writes it: of another split, with intervals, and without the facts of the training."""
    test = {key: copy.deepcopy(result[key]) for key in ("scores", "weights_sha256", "versions", "hardware")}
    test["split"] = "test"
    for i, score in enumerate(test["scores"].values()):
        score |= {"dice_per_image": 0.61237 + i / 10, "dice_per_image_interval": [0.51234, 0.70987], "hd95": 3.25}
        score |= {"num_empty_targets": 1, "empty_target_false_positive_rate": 0.33333}
    return [result, test]


def test_every_number_comes_from_a_result_file(result):
    results = with_test_split(result)
    card = model_card(results, "user/mine", {"curves.png": "curves.png"})
    assert "61.24 [51.23, 70.99]" in card and "In brackets: 95 % intervals" in card
    assert "**Test split**" in card and "it flatters them" in card
    assert "(1 of the 3 cases of the test split), it still marked something in 33.33 %" in card
    backed = set()

    def collect(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for one in value:
                collect(one)
        elif isinstance(value, float):
            backed.update({f"{100 * value:.2f}", str(value)})
        elif not re.fullmatch("[0-9a-f]{64}", str(value)):
            backed.update(re.findall(r"\d+(?:\.\d+)*", str(value)))

    collect(results)
    text = prose(card).replace("arxiv.org/abs/2604.10912", "").replace("95 % intervals", "").replace("Apache-2.0", "")
    text = re.sub(r"`[0-9a-f]{16,64}`|SHA-256|CC BY 4.0", "", text)
    numbers = re.findall(r"\d+(?:\.\d+)*", text)
    assert len(numbers) > 40
    assert set(numbers) - backed == {"1", "8", "16"} - backed  # "8 or 16 bits" of what it takes, "-1" of nothing
    for other in ("recall", "iou_global"):
        changed = copy.deepcopy(results)
        changed[1]["scores"]["no_text"][other] = 0.98765
        assert "98.77" not in card and "98.77" in model_card(changed, "user/mine", {})


def test_front_matter_is_read_by_the_hub_s_own_reader(result):
    results = with_test_split(result)
    card = ModelCard(model_card(results, "user/mine", {}))
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "image-segmentation"
    assert data["model-index"][0]["name"] == "mine"
    assert "datasets" not in data and "base_model" not in data  # nobody but their owner could load these
    values = {
        (one.dataset_split, one.metric_name): one.metric_value for one in card.data.eval_results
    }  # fmt: skip
    assert len(values) == 2 * 3 * 4
    assert values["test", "Dice per image, its own sentence"] == 0.6124
    expected = result["scores"]["shuffled_text"]["iou_global"]
    assert values["validation", "IoU global, another case's sentence"] == pytest.approx(expected, abs=1e-4)
    results[0]["arguments"] |= {"dataset": "lab/scans:ct", "vision_model": "microsoft/resnet-50"}
    results[0]["sources"] |= {"dataset": "Hub", "vision_model": "Hub"}
    data = ModelCard(model_card(results, "user/mine", {})).data.to_dict()
    assert data["datasets"] == ["lab/scans"] and data["base_model"] == ["microsoft/resnet-50"]
    dataset = data["model-index"][0]["results"][0]["dataset"]
    assert (dataset["type"], dataset["config"]) == ("lab/scans", "ct")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_nothing_is_left_to_be_filled_in(result, count):
    card = model_card(with_test_split(result)[:count], "user/mine", {})
    for word in ("More Information", "TODO", "None", "nan", "[]", "{", "your-"):
        assert word not in re.sub(r"@misc.*", "", card, flags=re.DOTALL), word
    titles = re.findall(r"^## (.*)$", card, re.MULTILINE)
    always = ["How to use", "Uses", "Risks and limits", "Training data", "Evaluation", "Licence", "Citation"]
    assert [title for title in titles if title in always] == always
    assert ("no score is claimed" in card) == (count == 0)
    assert ("model-index" in card) == (count > 0)


def test_the_built_in_sample_shows_its_pictures(result):
    result["arguments"] |= {"dataset": "builtin", "vision_model": "tiny", "text_model": "tiny"}
    card = model_card([result], "user/mine", {"examples.png": "examples.png", "curves.png": "curves.png"})
    assert "(examples.png)" in card and "synthetic" in card and "license: apache-2.0" in card
    assert 'text="all bright lesions"' in card


def test_what_is_not_known_of_the_patients_is_said(result):
    result["rows"]["train"] |= {"patients": 0, "rows_without_patient": 8}
    card = model_card([result], "user/mine", {})
    assert "Of the rows without an id it is unknown whether the split keeps patients apart." in card


def test_rare_sentences_are_counted_and_not_told():
    told = describe_rows(["a"] * 5 + ["b"] * 4 + [None], [None] * 7 + ["p"] * 3)
    assert told == {
        "rows": 10, "patients": 1, "rows_without_patient": 7, "sentences": 2, "frequent_sentences": ["a"]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("patients", "public"), [("pppppp", []), ("ppqrst", ["a"]), ("pp____", ["a"]), ("ppp___", [])]
)
def test_a_sentence_of_few_patients_is_not_told(patients, public):
    told = describe_rows(["a"] * 6, [None if patient == "_" else patient for patient in patients])
    assert told["frequent_sentences"] == public


def test_a_score_says_what_it_was_taken_on(result):
    """Of the training's own validation split, and of the test split of another data set, looked at in part."""
    other = copy.deepcopy(with_test_split(result)[1])
    other["arguments"] = {"dataset": "data/elsewhere", "max_rows": 3, "flip": True}
    own, again = copy.deepcopy(result), {key: value for key, value in result.items() if key not in ("steps", "rows")}
    for score in (*own["scores"].values(), *again["scores"].values()):
        score["num_empty_targets"] = 0
    card = model_card([own, again, other], "user/mine", {})
    assert "**Test split** of the data set data/elsewhere, 3 rows of the split, mirrored views averaged:" in card
    assert card.count("it flatters them") == 1 and "**Validation split**:" in card
    assert card.count("No case of the validation split had nothing to find") == 1
    assert "cases of the test split of the data set data/elsewhere), it still" in card


def test_curves_follow_the_metrics(run, tmp_path):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    drawn = []
    for best in (0, 1):
        for epoch, line in enumerate(lines):
            line["validation_dice_per_image"] = 0.9 if epoch == best else 0.1
        (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        write_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
        drawn.append(Image.open(tmp_path / "curves.png").convert("RGB"))
    assert not any(type(thing) is Figure for thing in gc.get_objects())  # a long run draws many
    assert drawn[0].size == drawn[1].size == (1200, 320)
    assert drawn[0].tobytes() != drawn[1].tobytes()
    # The best epoch's star lies in the middle plot, left of its middle for the first epoch and right for the last.
    for picture, side in zip(drawn, (slice(410, 600), slice(600, 800)), strict=True):
        blue = (np.abs(np.asarray(picture).astype(int) - (0, 114, 178)).sum(axis=2) < 20)[60:120]
        star = blue[:, side].sum()
        assert star > 60 and star > 2 * (blue[:, 410:800].sum() - star)
