# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""`tamiseg evaluate`: the same bytes again, the same numbers on two processes and after a break, baselines too."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from processing import evaluation as room
from processing.command_line import main
from processing.metrics import SegmentationMeter
from processing.model_card import model_card
from tests.test_command_line import save_tiny_model


SENTENCES = ("left lung", "the large lesion in the right lung", "", "bilateral infection, two infected areas")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """More threads add in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven pictures of odd sizes of four patients, of whom one is unknown; one has nothing to find, and one has
    pixels to ignore."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "test").mkdir()
    lines = []
    for i in range(7):
        random = np.random.default_rng(i)
        picture = random.integers(0, 255, (40 + i, 50 - 3 * i, 3), dtype=np.uint8)
        mask = np.zeros(picture.shape[:2], dtype=np.uint8)
        if i != 3:
            mask[5 : 15 + i, 8:20] = 1
        if i == 5:
            mask[:10] = 255
        Image.fromarray(picture).save(folder / "test" / f"{i}.png")
        Image.fromarray(mask).save(folder / "test" / f"{i}-mask.png")
        line = {"image_file_name": f"{i}.png", "mask_file_name": f"{i}-mask.png", "prompt": SENTENCES[i % 4]}
        lines.append(json.dumps(line | ({"patient_id": f"p{i // 2}"} if i < 6 else {})))
    (folder / "test" / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def call(model, data, output, *words):
    return main(
        ["evaluate", str(model), "--dataset", str(data), "--output", str(output), "--batch_size", "2",
         *map(str, words)]
    )  # fmt: skip


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def evaluated(model, data, tmp_path_factory):
    """All arms, in a folder called test."""
    folder = tmp_path_factory.mktemp("a") / "test"
    assert call(model, data, folder, "--arms", "all") == 0
    return folder


def test_twice_gives_the_same_bytes(model, data, evaluated, tmp_path, capsys):
    assert set(files(evaluated)) == {"result.json", "cases.csv", "cases.jsonl"}
    assert call(model, data, tmp_path / "test", "--arms", "all") == 0
    assert files(tmp_path / "test") == files(evaluated)
    said = capsys.readouterr().out
    assert "test, 7 cases" in said and "left and right exchanged" in said and "worst: " in said


def test_result_tells_how_to_get_it_again(model, data, evaluated):
    text = (evaluated / "result.json").read_text()
    result = json.loads(text)
    assert str(evaluated.parent) not in text and str(data) not in text and str(model) not in text
    assert result["command"] == (
        f"tamiseg evaluate {model.name} --dataset {data.name} --split test --batch_size 2 --seed 0 --tolerance 2.0 "
        "--output test --arms full_text no_text shuffled_text wrong_side typo paraphrase location_removed empty"
    )
    assert result["weights_sha256"] == room.hash_weights(model / "model.safetensors") == room.hash_weights(model)
    assert result["intervals_over"] == {"patients": 3, "pictures": 1}
    assert result["surface"] == {"tolerance": 2.0, "spacing": 1.0, "unit": "px"}
    assert len(result["data"]["test"]) == 64 and result["rows"]["test"]["rows"] == 7 and result["seed"] == 0
    assert {"torch", "transformers", "numpy", "python"} <= result["versions"].keys()
    assert result["hardware"]["device"]
    changed = {arm: score["sentences_changed"] for arm, score in result["scores"].items()}
    assert changed == {
        "full_text": 0, "no_text": 5, "shuffled_text": changed["shuffled_text"], "wrong_side": 4, "typo": 5,
        "paraphrase": 3, "location_removed": 5, "empty": 5,
    }  # fmt: skip


def test_scores_are_those_of_the_cases(evaluated):
    result = json.loads((evaluated / "result.json").read_text())
    with open(evaluated / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 * 8 and [row["name"] for row in rows[:9]] == ["0"] * 8 + ["1"]
    assert rows[0]["sentence"] == "left lung" and rows[3]["sentence"] == "right lung" and rows[1]["sentence"] == ""
    for arm, score in result["scores"].items():
        mine = [row for row in rows if row["arm"] == arm]
        assert score["dice_per_image"] == pytest.approx(np.mean([float(row["dice"]) for row in mine]))
        tp, fp, fn = (sum(int(row[key]) for row in mine) for key in ("tp", "fp", "fn"))
        d = score["dice_global"]
        assert d == pytest.approx(2 * tp / (2 * tp + fp + fn)) and score["iou_global"] == pytest.approx(d / (2 - d))
        low, high = score["dice_per_image_interval"]
        assert 0 <= low <= score["dice_per_image"] <= high <= 1
        assert score["num_images"] == 7 and score["num_empty_targets"] == 1
        pixels = sum(int(row[key]) for row in mine for key in ("tp", "fp", "fn", "tn"))
        assert sum(score["reliability"]["pixels"]) == pixels - 10 * 35  # of picture 5, ten rows are ignored
        assert 0 <= score["ece"] <= 1
    # A blank sentence is no sentence.
    asked = {
        arm: [{**row, "arm": "", "sentence": ""} for row in rows if row["arm"] == arm] for arm in ("no_text", "empty")
    }
    assert asked["no_text"] == asked["empty"]


def test_the_card_shows_it(evaluated):
    result = json.loads((evaluated / "result.json").read_text())
    card = model_card([result], "user/model", {})
    low, high = result["scores"]["full_text"]["dice_per_image_interval"]
    assert f"[{100 * low:.2f}, {100 * high:.2f}]" in card and "| left and right exchanged |" in card
    assert "**Test split** of the data set data" in card and "In brackets: 95 % intervals." in card
    assert "1 of the 7 cases of the test split" in card and result["weights_sha256"] in card


def test_agrees_with_predict(model, data, evaluated, tmp_path):
    """The masks that are scored are those that people get."""
    with open(evaluated / "cases.csv", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file) if row["arm"] == "full_text"}
    for name in ("0", "4"):
        mask = tmp_path / "mask.png"
        picture, sentence = data / "test" / f"{name}.png", rows[name]["sentence"]
        words = [str(picture), "--text", sentence, "--model", str(model), "--output", str(mask), "--overwrite"]
        assert main(["predict", *words]) == 0
        found = np.asarray(Image.open(mask)) > 0
        assert abs(int(found.sum()) - int(rows[name]["tp"]) - int(rows[name]["fp"])) <= 2  # rounding of an edge


def test_two_processes_give_the_same_numbers(model, data, evaluated, tmp_path):
    root = Path(__file__).parent.parent
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "processing.command_line", "evaluate", str(model), "--dataset", str(data), "--batch_size", "2",
        "--output", str(tmp_path / "test"), "--arms", "all",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment, cwd=root)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("test, 7 cases") == 1
    assert (tmp_path / "test" / "cases.csv").read_bytes() == (evaluated / "cases.csv").read_bytes()
    scores = [json.loads((folder / "result.json").read_text())["scores"] for folder in (tmp_path / "test", evaluated)]
    assert scores[0] == scores[1]


def test_goes_on_after_a_break(model, data, evaluated, tmp_path, monkeypatch, capsys):
    output = tmp_path / "test"
    asked = []

    class Broken(room.Segmenter):
        def __call__(self, images, sentences):
            asked.append(len(images))
            if len(asked) == 3:
                raise KeyboardInterrupt
            return super().__call__(images, sentences)

    monkeypatch.setattr(room, "Segmenter", Broken)
    assert call(model, data, output, "--arms", "all") == 130
    journal = output / "cases.jsonl"
    assert len(journal.read_text().splitlines()) == 1 + 4 * 8 and not (output / "result.json").exists()
    journal.write_text("\n".join(journal.read_text().splitlines()[:-3]) + '\n{"index": 3, "ar')  # torn
    assert call(model, data, output, "--arms", "all", "--resume") == 0
    assert asked == [2, 2, 2, 2, 2, 1]  # the torn batch again, the first one not
    assert files(output) == files(evaluated)
    asked.clear()
    assert call(model, data, output, "--arms", "all", "--resume") == 0
    assert asked == [] and files(output) == files(evaluated)
    # Another evaluation is not gone on with.
    for words, difference in ((["--arms", "full_text"], "arms was"), (["--arms", "all", "--seed", "1"], "seed was 0")):
        capsys.readouterr()
        assert call(model, data, output, *words, "--resume") == 2
        said = capsys.readouterr().err
        assert difference in said and "leave --resume out" in said
    assert files(output) == files(evaluated)


def threshold_baseline(name):
    """A plain function for a model: what is brighter than a grey value, whatever is asked."""

    def segment(images, sentences):
        return [
            [(np.asarray(image.convert("L")) > int(name), None) for _ in some]
            for image, some in zip(images, sentences, strict=True)
        ]

    return segment


def test_baselines_by_an_adapter(data, tmp_path, capsys):
    words = ("--adapter", "tests.test_evaluation:threshold_baseline", "--spacing", "0.5", "--arms", "full_text")
    assert call("128", data, tmp_path / "test", *words) == 0
    result = json.loads((tmp_path / "test" / "result.json").read_text())
    score = result["scores"]["full_text"]
    assert result["weights_sha256"] is None and result["surface"]["unit"] == "mm" and "ece" not in score
    meter = SegmentationMeter()
    for i in range(7):
        mask = np.asarray(Image.open(data / "test" / f"{i}-mask.png"))
        found = np.asarray(Image.open(data / "test" / f"{i}.png").convert("L")) > 128
        meter.add(found, mask == 1, str(i), keep=mask != 255, surface={"spacing": 0.5})
    assert meter.compute().items() <= score.items()
    capsys.readouterr()
    assert call("99", data, tmp_path / "test", *words, "--resume") == 2
    assert "adapter was" in capsys.readouterr().err
    for adapter in ("tests.test_evaluation:nothing", "no.such:thing", "words"):
        assert call("128", data, tmp_path / "test", "--adapter", adapter) == 2
        assert "MODULE:FUNCTION" in capsys.readouterr().err


def test_flip_averages_with_the_mirror_image():
    asked = []

    def segment(images, sentences):
        """The grey value, and half as sure where the sentence says right."""
        asked.extend(sentences)
        answers = []
        for image, some in zip(images, sentences, strict=True):
            grey = np.asarray(image.convert("L"), dtype=np.float64) / 255
            answers.append([(None, grey * (0.5 if "right" in (sentence or "") else 1)) for sentence in some])
        return answers

    picture = np.zeros((4, 6, 3), dtype=np.uint8)
    picture[:, :2] = 255
    ((left, right, nothing),) = room.FlipAverage(segment)([Image.fromarray(picture)], [["left", "on the right", None]])
    assert asked == [["left", "on the right", None], ["right", "on the left", None]]
    for (mask, probability), sure in ((left, 0.75), (right, 0.75), (nothing, 1.0)):
        assert probability[:, :2].tolist() == [[sure] * 2] * 4 and not probability[:, 2:].any()
        assert (mask == (probability > 0.5)).all()


def test_flip_is_told_and_wants_probabilities(model, data, evaluated, tmp_path, capsys):
    assert call(model, data, tmp_path / "flip", "--flip", "--arms", "full_text") == 0
    result = json.loads((tmp_path / "flip" / "result.json").read_text())
    assert shlex.split(result["command"]).count("--flip") == 1 and result["arguments"]["flip"] is True
    plain = json.loads((evaluated / "result.json").read_text())["scores"]["full_text"]
    assert result["scores"]["full_text"]["dice_per_image"] != plain["dice_per_image"]
    capsys.readouterr()
    assert call(model, data, tmp_path / "flip", "--arms", "full_text", "--resume") == 2  # not half of each
    with pytest.raises(ValueError, match="leave it out"):
        room.FlipAverage(lambda images, sentences: [[(None, None)]])([Image.new("RGB", (2, 2))], [["left"]])


def test_several_labels(tmp_path, capsys):
    data, model = tmp_path / "data" / "test", tmp_path / "model"
    data.mkdir(parents=True)
    save_tiny_model(model, num_labels=3)
    lines = []
    for i in range(2):
        Image.fromarray(np.full((20, 24, 3), 60 * i, np.uint8)).save(data / f"{i}.png")
        Image.fromarray(np.full((20, 24), i + 1, np.uint8)).save(data / f"{i}-mask.png")
        lines.append(json.dumps({"image_file_name": f"{i}.png", "mask_file_name": f"{i}-mask.png", "prompt": "lungs"}))
    (data / "metadata.jsonl").write_text("\n".join(lines))
    output = tmp_path / "out"
    assert call(model, data.parent, output, "--arms", "full_text", "no_text", "--pictures", "1") == 0
    score = json.loads((output / "result.json").read_text())["scores"]["full_text"]
    assert set(score["classes"]) == {"1", "2"} and "class 2" in capsys.readouterr().out
    assert score["dice_mean_of_classes"] == np.mean([some["dice_per_image"] for some in score["classes"].values()])
    assert main(["report", "--results", str(output), "--output", str(output)]) == 0
    assert "| class 2 |" in (output / "results.md").read_text()
    assert call(model, data.parent, output, "--flip") == 2 and "3 labels" in capsys.readouterr().err


def test_docs_do_what_they_say(model, data, tmp_path, monkeypatch):
    document = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/best").symlink_to(model)
    Path("my_data").symlink_to(data)
    commands = re.search(r"```bash\n(.*?)```", document, re.DOTALL)[1].splitlines()
    assert len(commands) == 2 and all(main(shlex.split(command)[1:]) == 0 for command in commands)
    assert {"result.json", "results.md", "report.html"} <= set(files(tmp_path / "runs" / "mine" / "test"))
    result = json.loads(Path("runs/mine/test/result.json").read_text())
    for arm, score in result["scores"].items():
        assert f"| `{arm}` |" in document
        for name in score:
            assert f"`{name}`" in document or name.endswith("_interval") or name.startswith("num_"), name
    names: dict = {}
    exec(compile(re.search(r"```python\n(.*?)```", document, re.DOTALL)[1], "docs/evaluation.md", "exec"), names)
    picture = Image.new("RGB", (3, 2), (200, 200, 200))
    ((first, second),) = names["load"]("128")([picture], [["left", None]])
    assert first[0].all() and first[0].shape == (2, 3) and second[1] is None


def test_pictures_only_when_asked_for(model, data, tmp_path, capsys):
    assert call(model, data, tmp_path / "test", "--arms", "full_text", "typo", "--pictures", "3") == 0
    drawn = {"worst.png", "qualitative.png", "sentences.png"}
    assert set(files(tmp_path / "test")) == {"result.json", "cases.csv", "cases.jsonl", *drawn}
    for name in drawn:
        picture = Image.open(tmp_path / "test" / name)
        assert picture.width > 500 and picture.height > 600 and len(picture.convert("RGB").getcolors(2**24)) > 1000
    # Gone on with, they are still of these scores; beside new ones they are of none.
    assert "is replaced" not in capsys.readouterr().out
    assert call(model, data, tmp_path / "test", "--arms", "full_text", "typo", "--resume") == 0
    assert drawn < set(files(tmp_path / "test")) and "is replaced" not in capsys.readouterr().out
    assert call(model, data, tmp_path / "test", "--arms", "full_text") == 0
    assert "the earlier result in" in capsys.readouterr().out
    assert set(files(tmp_path / "test")) == {"result.json", "cases.csv", "cases.jsonl"}


@pytest.mark.parametrize(
    "there",
    ['{"scores": {}, "split": "validation", "steps": 3}', '{"faithfulness": {}}', '{"transfer": {}}', "[]", "{"],
    ids=["training", "analyse-prompts", "analyse-teacher", "a list", "torn"],
)
def test_results_of_other_commands_are_kept(model, data, tmp_path, capsys, there):
    (tmp_path / "result.json").write_text(there)
    assert call(model, data, tmp_path) == 2
    assert "give another --output" in capsys.readouterr().err
    assert files(tmp_path) == {"result.json": there.encode()}


def test_an_evaluation_is_done_anew(model, data, tmp_path):
    for arms in (["full_text"], ["full_text", "no_text"]):
        assert call(model, data, tmp_path / "test", "--arms", *arms) == 0
        assert list(json.loads((tmp_path / "test" / "result.json").read_text())["scores"]) == arms


def bad_calls(data, tmp_path):
    (tmp_path / "file").write_text("")
    stage_1 = tmp_path / "stage-1"
    stage_1.mkdir()
    for name, content in (
        ("config.json", '{"architectures": ["TAMISegForConsistencyPretraining"]}'),
        ("processor_config.json", "{}"),
        ("model.safetensors", ""),
    ):
        (stage_1 / name).write_text(content)
    return [
        ({"--split": "train"}, "no split 'train'"),
        ({"--batch_size": "0"}, "--batch_size is 0"),
        ({"--tolerance": "-1"}, "--tolerance is -1"),
        ({"--pictures": "-1"}, "--pictures is -1"),
        ({"--spacing": "0"}, "--spacing is 0"),
        ({"--output": tmp_path / "file"}, "is a file"),
        ({"--dataset": tmp_path / "stage-1"}, "not known"),
        ({"model": tmp_path / "nowhere"}, "no model folder"),
        ({"model": "runs/typo"}, "there is no folder 'runs/typo' here, and"),
        ({"model": stage_1}, "first stage"),
    ]


@pytest.mark.parametrize("case", range(10))
def test_bad_input_gets_one_sentence(model, data, tmp_path, capsys, case):
    changed, sentence = bad_calls(data, tmp_path)[case]
    words = {"model": model, "--dataset": data, "--output": tmp_path / "out", **changed}
    argv = ["evaluate", str(words.pop("model"))]
    for flag, value in words.items():
        argv += [flag, str(value)]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert [sentence in line for line in said.splitlines() if line.startswith("tamiseg:")] == [True], said
    assert "Traceback" not in said
