# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""A step in pieces is the step; what is not finite, or does not fit into memory, is answered."""

import json

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import train_hf
from processing.steps import SKIPPED_STEPS, OptimizerStep, rising_average
from train_hf import Arguments, main


TINY = ["--stage", "finetune", "--dataset", "builtin", "--image_size", "32", "--batch_size", "4", "--cpu", "true",
        "--max_train_samples", "6", "--max_eval_samples", "3", "--model_config", '{"hidden_size": 16}']  # fmt: skip


class Toy:
    """A linear model, its step, and a batch of five rows."""

    def __init__(self, tmp_path, averaged=False, halve=False):
        torch.manual_seed(0)
        self.accelerator = Accelerator(cpu=True)
        model = torch.nn.Linear(3, 1)
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5)) if averaged else None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
        self.model, optimizer, scheduler = self.accelerator.prepare(model, optimizer, scheduler)
        self.take_step = OptimizerStep(
            self.accelerator, [self.model], optimizer, scheduler, list(model.parameters()),
            max_grad_norm=1.0, averaged=self.averaged, halve=halve, rows_folder=tmp_path,
        )  # fmt: skip
        names = [f"row {i}" for i in range(5)]
        self.batch = {"pixel_values": torch.randn(5, 3), "labels": torch.randn(5), "name": names}
        self.state = {"step": 0, "skipped": 0, "pieces": 1}
        self.rows_at_once = 5

    def losses_of(self, batch):
        if len(batch["name"]) > self.rows_at_once:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        error = self.model(batch["pixel_values"])[:, 0] - batch["labels"]
        return {"loss": error.square().mean()}

    def step(self):
        return self.take_step(self.losses_of, self.batch, self.state)

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def test_pieces_of_unequal_size_make_the_same_step(tmp_path):
    whole, pieces = Toy(tmp_path), Toy(tmp_path)
    pieces.state["pieces"] = 3  # 2, 2 and 1 rows
    for _ in range(2):
        expected, got = whole.step(), pieces.step()
        assert got == pytest.approx(expected, rel=1e-5) and set(got) == {"loss", "gradient_norm"}
    torch.testing.assert_close(pieces.weights(), whole.weights())
    assert pieces.state == {"step": 2, "skipped": 0, "pieces": 3}


def test_rows_may_weigh_more_or_nothing(tmp_path):
    plain, weighted, standing_in = Toy(tmp_path), Toy(tmp_path), Toy(tmp_path)
    weighted.state["pieces"] = 3
    weighted.batch["weight"] = torch.full((5,), 0.4)  # of two processes, the other has no row: twice the mean
    assert weighted.step()["loss"] == pytest.approx(2 * plain.step()["loss"], rel=1e-5)
    before = standing_in.weights()
    standing_in.batch["weight"] = torch.zeros(5)
    assert standing_in.step() == {"loss": 0, "gradient_norm": 0}
    torch.testing.assert_close(standing_in.weights(), before, atol=0, rtol=0)


def test_out_of_memory_halves_or_stops(tmp_path):
    whole, small = Toy(tmp_path), Toy(tmp_path, halve=True)
    small.rows_at_once = 2
    whole.step(), small.step()
    assert small.state["pieces"] == 4
    torch.testing.assert_close(small.weights(), whole.weights())
    small.rows_at_once = 0  # not even one row fits
    with pytest.raises(torch.OutOfMemoryError):
        small.step()
    stops = Toy(tmp_path)
    stops.rows_at_once = 2
    with pytest.raises(torch.OutOfMemoryError):
        stops.step()


def test_evaluations_take_no_more_pictures_than_halved_batches(tmp_path, monkeypatch):
    compute, evaluate, asked = train_hf.compute_losses, train_hf.evaluate, []

    def little_memory(*words):
        if len(words[4]["name"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return compute(*words)

    def spy(*words):
        asked.append(words[4])
        return evaluate(*words)

    monkeypatch.setattr(train_hf, "compute_losses", little_memory)
    monkeypatch.setattr(train_hf, "evaluate", spy)
    main(["--output_dir", str(tmp_path), *TINY, "--max_steps", "1", "--on_out_of_memory", "halve"])
    assert asked == [1, 1]  # after the epoch, and of the best weights


def test_a_loss_that_is_not_finite_stops_and_keeps_its_rows(tmp_path):
    toy = Toy(tmp_path)
    before = toy.weights()
    toy.batch["pixel_values"][3, 1] = float("nan")
    with pytest.raises(ValueError, match="the loss is nan at step 0: look at the rows in"):
        toy.step()
    assert (toy.weights() == before).all()
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "rows.json").read_text()) == {"name": ["row 3"]}
    assert load_file(folder / "rows.safetensors")["pixel_values"].shape == (1, 3)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    toy = Toy(tmp_path)
    before = toy.weights()
    with pytest.raises(ValueError, match="the gradient norm is"):
        toy.take_step(lambda batch: {"loss": (toy.model.weight * 0).sum().sqrt()}, toy.batch, toy.state)
    assert (toy.weights() == before).all()
    (folder,) = tmp_path.iterdir()
    assert len(json.loads((folder / "rows.json").read_text())["name"]) == 5


def test_a_loss_scale_that_collapses_stops(tmp_path, monkeypatch):
    toy = Toy(tmp_path)
    scaler = torch.amp.GradScaler("cpu", init_scale=0.5)
    monkeypatch.setattr(toy.accelerator, "scaler", scaler)
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", True)
    for _ in range(SKIPPED_STEPS - 1):
        toy.step()
    with pytest.raises(ValueError, match="overflowed in fp16"):
        toy.step()


def test_averaged_weights_follow(tmp_path):
    toy = Toy(tmp_path, averaged=True)
    toy.step()
    first = toy.weights()
    toy.step()
    averaged = torch.cat([p.flatten() for p in toy.averaged.module.parameters()])
    torch.testing.assert_close(averaged, (first + toy.weights()) / 2)


def test_the_average_forgets_the_start_of_a_run():
    averaged = AveragedModel(torch.nn.Linear(1, 1, bias=False), multi_avg_fn=rising_average(0.9))
    held = []
    for value in [1.0, *[0.0] * 100]:
        current = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(current.weight, value)
        averaged.update_parameters(current)
        held.append(averaged.module.weight.item())
    # What is left of the first step: all, 2/11, 2/11 * 3/12, ..., and from step 80 on nine tenths of the step before.
    assert held[:3] == pytest.approx([1.0, 2 / 11, 2 / 11 * 3 / 12])
    assert held[100] / held[99] == pytest.approx(0.9)


def test_averaged_weights_are_what_is_scored_and_kept(tmp_path):
    result = main(["--output_dir", str(tmp_path), *TINY, "--epochs", "1", "--ema_decay", "0.9"])
    (state,) = (tmp_path / "checkpoints").iterdir()
    last, averaged = load_file(state / "model.safetensors"), load_file(state / "model_1.safetensors")
    best = load_file(tmp_path / "best" / "model.safetensors")
    assert all((value == averaged[f"module.{name}"]).all() for name, value in best.items())
    assert any((value != last[name]).any() for name, value in best.items())
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert result["scores"]["full_text"]["dice_per_image"] == pytest.approx(line["validation_dice_per_image"])


def test_early_stopping(tmp_path, monkeypatch, capsys):
    evaluate = train_hf.evaluate

    def no_better(*arguments):
        return {arm: {**scores, "dice_per_image": 0.5} for arm, scores in evaluate(*arguments).items()}

    monkeypatch.setattr(train_hf, "evaluate", no_better)
    main(["--output_dir", str(tmp_path), *TINY, "--epochs", "9", "--early_stopping_patience", "1"])
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert "stopped early: no better validation Dice in 1 epochs" in capsys.readouterr().out


def test_accumulated_batches_make_one_step(tmp_path):
    main(["--output_dir", str(tmp_path), *TINY, "--epochs", "1", "--batch_size", "2",
          "--gradient_accumulation_steps", "3"])  # fmt: skip
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 1  # six rows in one step


def test_dry_run_tries_everything_and_keeps_nothing(tmp_path, capsys):
    result = main(["--output_dir", str(tmp_path / "run"), *TINY, "--epochs", "50", "--dry_run", "true"])
    assert result["steps"] == 1
    assert list((tmp_path / "run").iterdir()) == []
    assert "dry run: data, model, one step, evaluation and saving work" in capsys.readouterr().out


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="wandb is not installed: pip install wandb"):
        Arguments(stage="finetune", output_dir="x", report_to="wandb")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model_config": '{"hidden_sise": 96}'}, "unknown fields .'hidden_sise'."),
        ({"model_config": "[]"}, "write it as"),
        ({"model_class": "a:B", "teacher": "c"}, "leave out teacher"),
    ],
)
def test_fields_that_nothing_reads_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Arguments(stage="finetune", output_dir="x", **fields)


@pytest.mark.parametrize("word", ["ema_decay", "max_grad_norm", "save_steps", "gradient_accumulation_steps"])
def test_impossible_settings_are_refused(word):
    with pytest.raises(ValueError, match=word):
        Arguments(stage="finetune", output_dir="x", **{word: -1})
