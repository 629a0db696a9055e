# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""`tamiseg analyse-teacher`: its measures against numbers done the slow way, and every kind of teacher."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DINOv3ViTConfig, DINOv3ViTModel, MobileNetV2Config, MobileNetV2Model

import train_hf
from processing import transfer as room
from processing.command_line import main
from tests.test_command_line import save_tiny_model


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    save_tiny_model(folder)
    return folder


def slow_hsic(x, y):
    """From the tables of all pairs of tokens (Song et al., 2012)."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    whole = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + whole - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


def test_cka():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(40, 6)) + 3, random.normal(size=(40, 9))
    assert room.unbiased_hsic(x, y) == pytest.approx(slow_hsic(x, y))
    rotation, _ = np.linalg.qr(random.normal(size=(6, 6)))
    assert room.cka(x, 5 * x @ rotation - 2) == pytest.approx(1)
    # Features that have nothing in common, with more channels than tokens: the biased estimate would say 0.7 and more.
    x, y = random.normal(size=(2, 60, 200))
    assert abs(room.cka(x, y)) < 0.1
    assert room.cka(x, np.ones_like(y)) == 0


def test_probe_is_ridge_regression():
    random = np.random.default_rng(1)
    known, unseen = random.normal(size=(20, 9, 5)) * [1, 2, 3, 4, 0], random.normal(size=(4, 9, 5))
    shares = np.clip(known @ [0.3, -0.1, 0, 0.05, 0] + 0.4 + random.normal(size=(20, 9)) / 10, 0, 1)
    guesses, cut = room.probe(known, shares, unseen)
    # Least squares with rows added that hold each weight down.
    x, y = known.reshape(-1, 5), shares.ravel()
    centre, spread = x.mean(axis=0), x.std(axis=0)
    spread[4] = 1
    close = []
    for penalty in room.PENALTIES:
        rows = np.vstack([(x - centre) / spread, np.sqrt(penalty * len(x)) * np.eye(5)])
        weights = np.linalg.lstsq(rows, np.concatenate([y - y.mean(), np.zeros(5)]), rcond=None)[0]
        expected = (unseen.reshape(-1, 5) - centre) / spread @ weights + y.mean()
        close.append(np.allclose(guesses.ravel(), expected))
    assert sum(close) == 1  # of the penalty that was chosen
    assert 0.2 < cut < 0.8


def test_the_penalty_is_chosen_on_pictures_that_were_not_fitted():
    """With more channels than tokens and nothing to learn, the strongest guesses the least."""
    random = np.random.default_rng(2)
    guesses, _ = room.probe(random.normal(size=(10, 4, 80)), random.random((10, 4)), random.normal(size=(50, 4, 80)))
    assert guesses.std() < 0.2


def test_best_cut():
    guesses, shares = np.array([[0.9, 0.7], [0.4, 0.1]]), np.array([[1.0, 1.0], [0.0, 0.0]])
    assert 0.4 < room.best_cut(guesses, shares) < 0.7


def test_separation():
    random = np.random.default_rng(3)
    shares = np.repeat([1.0, 0.0, 0.3], 50)  # cells that hold some of both are of neither class
    features = random.normal(size=(150, 3)) + 5 * shares[:, None]
    guesses = random.random(150) + shares / 2
    found = room.separate(features, guesses, shares)
    assert found["auc"] == pytest.approx((guesses[shares == 1][:, None] > guesses[shares == 0]).mean())
    further = room.separate(features * [1, 10, 100], guesses, shares)
    assert found["fisher"] == pytest.approx(further["fisher"]) and found["fisher"] > 5
    assert room.separate(features, guesses, shares * 0) == {"fisher": None, "auc": None}


def test_dimension():
    random = np.random.default_rng(4)
    x = random.normal(size=(4000, 6))
    assert room.dimension(x) == pytest.approx(6, rel=0.02)
    assert room.dimension(x[:, :1] * np.ones(6)) == pytest.approx(1)


def vit(folder):
    torch.manual_seed(0)
    config = DINOv3ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=48, patch_size=16
    )
    DINOv3ViTModel(config).save_pretrained(folder)
    return [3, 3], 16


def mobilenet(folder):
    torch.manual_seed(0)
    MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.35, image_size=64)).save_pretrained(folder)
    return [2, 2], 1280


def call(teacher, output, *words):
    return main(
        ["analyse-teacher", str(teacher), "--dataset", "builtin", "--train_rows", "12", "--max_rows", "9",
         "--output", str(output), *map(str, words)]
    )  # fmt: skip


@pytest.mark.parametrize("make", [vit, mobilenet])
def test_the_command(make, student, tmp_path, capsys):
    grid, channels = make(tmp_path / "teacher")
    natural = tmp_path / "natural" / "deep"
    natural.mkdir(parents=True)
    for number in range(3):
        Image.effect_noise((60, 50), 20 + 50 * number).save(natural / f"{number}.png")
    capsys.readouterr()
    assert call(tmp_path / "teacher", tmp_path / "out", "--student", student, "--natural", natural.parent) == 0
    text = (tmp_path / "out" / "result.json").read_text()
    result = json.loads(text)
    assert str(tmp_path) not in text and "builtin-test" not in text
    found = result["transfer"]
    assert found["grid"] == grid and found["elsewhere"] == "3 natural pictures"
    teacher, *stages, place, truth = found["features"]
    assert teacher["name"] == "teacher" and teacher["channels"] == channels and "cka" not in teacher
    assert [stage["name"] for stage in stages] == [f"{student.name}, stage {i}" for i in (1, 2, 3, 4)]
    assert [stage["channels"] for stage in stages] == [8, 16, 24, 32]
    assert all(-1 <= stage["cka"][kind] <= 1 for stage in stages for kind in ("here", "elsewhere"))
    assert place["channels"] == grid[0] * grid[1] and "cka" not in place
    for some in found["features"]:
        low, high = some["probe"]["dice_per_image_interval"]
        assert 0 <= low <= some["probe"]["dice_per_image"] <= high <= 1
    assert truth["probe"]["dice_global"] >= place["probe"]["dice_global"]
    assert len(result["students_sha256"]) == 1 and len(result["weights_sha256"]) == 64
    assert Image.open(tmp_path / "out" / "tokens.png").width > 500
    assert len(found["plane"]["pictures"]["elsewhere"][0]) == 3 and len(result["data"]["elsewhere"]) == 64
    assert main(["report", "--results", str(tmp_path / "out"), "--output", str(tmp_path / "out")]) == 0
    assert 'alt="Features of the teacher, t-SNE"' in (tmp_path / "out" / "report.html").read_text()
    assert "truth on this grid" in capsys.readouterr().out


def test_without_students(tmp_path):
    vit(tmp_path / "teacher")
    assert call(tmp_path / "teacher", tmp_path / "one") == 0 and call(tmp_path / "teacher", tmp_path / "two") == 0
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert one["transfer"] == two["transfer"]  # nothing is drawn at random
    assert one["transfer"]["elsewhere"] == "9 synthetic pictures"
    assert [some["name"] for some in one["transfer"]["features"]] == ["teacher", "place alone", "truth on this grid"]


def test_docs_do_what_they_say(student, tmp_path, monkeypatch):
    document = (Path(__file__).parent.parent / "docs" / "analysis.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^tamiseg analyse-teacher .*$", document, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    vit("TEACHER")
    for name in ("without", "with"):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "best").symlink_to(student)
    assert main([*shlex.split(command.replace("my_data", "builtin"))[1:], "--train_rows", "6", "--max_rows", "3"]) == 0
    found = json.loads(Path("runs/teacher/result.json").read_text())["transfer"]["features"]
    one, other = (some for some in found if some["name"].endswith("best, stage 4"))
    assert one["name"].startswith("runs/without/") and one["cka"] == other["cka"]  # both are the same model


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--natural", "."), "holds no picture"),
        (("--student", "nowhere"), "no model folder 'nowhere'"),
        (("--split", "train"), "give another --split"),
        (("--output", "taken"), "is of another command and would be replaced"),
    ],
)
def test_bad_calls_get_one_sentence(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    vit("teacher")
    Path("taken").mkdir()
    Path("taken/result.json").write_text('{"scores": {}, "split": "validation", "steps": 3}')
    assert call("teacher", "out", *words) == 2
    assert sentence in capsys.readouterr().err


def test_a_trained_model_is_no_teacher(student, tmp_path, capsys):
    assert call(student, tmp_path / "out") == 2
    assert "trained ones go behind --student" in capsys.readouterr().err
    words = ["--stage", "finetune", "--output_dir", str(tmp_path / "run"), "--image_size", "32", "--cpu", "true"]
    with pytest.raises(ValueError, match="a teacher is a vision model such as DINOv3"):
        train_hf.main([*words, "--max_train_samples", "4", "--max_eval_samples", "4", "--teacher", str(student)])
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_is_not_here(tmp_path, capsys):
    assert call("runs/typo", tmp_path / "out") == 2
    assert "there is no folder 'runs/typo' here, and" in capsys.readouterr().err


def test_tsne_keeps_neighbours_and_survives_features_that_are_all_the_same():
    two = np.concatenate([np.random.default_rng(0).normal(centre, 0.1, (40, 60)) for centre in (0, 5)])
    points = room.lay_out(two, seed=0)
    assert points.shape == (80, 2)
    near = np.linalg.norm(points[:, None] - points[None], axis=-1).argsort(axis=1)[:, 1]
    assert ((near < 40) == (np.arange(80) < 40)).all()
    assert np.isfinite(room.lay_out(np.ones((20, 8), dtype=np.float32), seed=0)).all()
