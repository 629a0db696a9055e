# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs that are broken, and go on: the same weights come out bit by bit, or one sentence says what to do.

A few of the faults that `make faults` injects in numbers.
"""

import shutil
import signal

import pytest

from .faults.injection import TINY, Fault, outcome, run


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    ended = run(folder, *TINY)
    assert ended.codes == [0], ended.said
    return outcome(folder)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("backward", 4),
        Fault("evaluation", 3),
        Fault("state half written", 10),
        Fault("rename", 4),
    ],
    ids=lambda fault: fault.place,
)
def test_killed_and_resumed_is_the_unbroken_run(unbroken, tmp_path, fault):
    words = (*TINY, "--save_steps", "2")
    ended = run(tmp_path / "run", *words, fault=fault)
    assert ended.codes == [-signal.SIGKILL], ended.said
    resumed = run(tmp_path / "run", *words, "--resume", "auto")
    assert resumed.codes == [0], resumed.said
    assert "resumed from" in resumed.said
    assert outcome(tmp_path / "run") == unbroken
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2  # no drafts are left


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_a_resume_line(unbroken, tmp_path, number):
    # Ctrl-C between two steps, SIGTERM in an evaluation: neither loses a step.
    fault = Fault("step", 4, number) if number == signal.SIGINT else Fault("evaluation", 2, number)
    ended = run(tmp_path / "run", *TINY, fault=fault)
    assert ended.codes == [128 + number], ended.said
    assert "the same command with --resume auto goes on from" in ended.said
    resumed = run(tmp_path / "run", *TINY, "--resume", "auto")
    assert ended.steps + resumed.steps == 9
    assert outcome(tmp_path / "run") == unbroken


def test_a_killed_data_worker_ends_the_run_with_a_sentence(unbroken, tmp_path):
    words = (*TINY, "--num_workers", "2", "--save_steps", "1")
    ended = run(tmp_path / "run", *words, fault=Fault("step", 4, to_worker=True))
    assert ended.codes == [2] and "Traceback" not in ended.said, ended.said
    said = ended.said.splitlines()[-1]
    assert said.startswith("train_hf.py: DataLoader worker") and "--resume auto goes on" in said
    assert run(tmp_path / "run", *words, "--resume", "auto").codes == [0]
    assert outcome(tmp_path / "run") == unbroken


def test_spoilt_checkpoints_are_passed_over_aloud(unbroken, tmp_path):
    folder = tmp_path / "run"
    words = (*TINY, "--save_steps", "1")
    assert run(folder, *words, fault=Fault("backward", 5)).codes == [-signal.SIGKILL]
    before, newest = sorted((folder / "checkpoints").glob("epoch-*"))
    shutil.copy(before / "optimizer.bin", newest / "optimizer.bin")  # whole, but of another state
    resumed = run(folder, *words, "--resume", "auto", fault=Fault("backward", 0))
    assert f"not used, {newest}: optimizer.bin is not the file that was saved" in resumed.said
    assert f"resumed from {before}" in resumed.said
    weights = before / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (newest / "manifest.json").unlink()
    refused = run(folder, *words, "--resume", "auto")
    assert refused.codes == [2] and "no whole checkpoint" in refused.said, refused.said
    assert run(folder, *words).codes == [0]  # anew
    assert outcome(folder) == unbroken


def test_another_config_is_refused_with_the_difference(tmp_path):
    words = (*TINY, "--max_steps", "2")
    assert run(tmp_path / "run", *words).codes == [0]
    refused = run(tmp_path / "run", *words, "--learning_rate", "0.5", "--resume", "auto")
    assert refused.codes == [2]
    assert "learning_rate was 0.001 and is 0.5" in refused.said.splitlines()[-1]


def test_a_full_disk_keeps_the_last_good_state(unbroken, tmp_path):
    # The optimizer's file is the largest, so its writing breaks off in the middle.
    folder = tmp_path / "run"
    assert run(folder, *TINY, "--save_steps", "2", fault=Fault("backward", 2)).codes == [-signal.SIGKILL]
    (state,) = (folder / "checkpoints").iterdir()
    limit = (state / "optimizer.bin").stat().st_size - 1000
    full = run(folder, *TINY, "--save_steps", "2", "--resume", "auto", file_limit=limit)
    assert full.codes == [2]
    assert "could not be written" in full.said.splitlines()[-1] and str(state) in full.said.splitlines()[-1]
    assert list((folder / "checkpoints").iterdir()) == [state]
    assert run(folder, *TINY, "--resume", "auto").codes == [0]
    assert outcome(folder) == unbroken


def test_two_processes_killed_and_resumed(tmp_path):
    words = (*TINY, "--freeze_text_encoder", "true", "--save_steps", "1")
    assert run(tmp_path / "whole", *words, processes=2).codes == [0, 0]
    ended = run(tmp_path / "run", *words, processes=2, fault=Fault("step", 3))
    assert ended.codes[1] == -signal.SIGKILL
    resumed = run(tmp_path / "run", *words, "--resume", "auto", processes=2)
    assert resumed.codes == [0, 0], resumed.said
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_two_processes_train_as_one_does(tmp_path):
    words = [*TINY, "--max_train_samples", "16", "--epochs", "2", "--freeze_text_encoder", "true", "--seed", "1"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(one, *words, "--batch_size", "8").codes == [0]
    ended = run(two, *words, "--batch_size", "4", "--sync_batch_norm", "true", processes=2)
    assert ended.codes == [0, 0], ended.said
    one, two = outcome(one), outcome(two)
    for expected, line in zip(one["lines"], two["lines"], strict=True):
        for name in ("train_loss", "train_gradient_norm"):
            assert line[name] == pytest.approx(expected[name], rel=1e-5)
        for name in ("validation_dice_per_image", "validation_dice_global"):
            assert line[name] == pytest.approx(expected[name], abs=1e-6)
    for arm, scores in one["scores"].items():
        assert two["scores"][arm]["dice_per_image"] == pytest.approx(scores["dice_per_image"], abs=1e-6)
