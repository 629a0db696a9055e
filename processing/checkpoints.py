# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The state of a training run on disk, so that the run may be killed at any moment and go on bit by bit the same.

    checkpoints = Checkpoints(accelerator, "runs/a/checkpoints", run={"learning_rate": 1e-3})
    progress = checkpoints.load() or {"epoch": 0, "step": 0}
    checkpoints.save(progress)        # a folder epoch-0000-step-00000000

A checkpoint is what `Accelerator.save_state` writes (safetensors for weights; for optimizer, rates and random states
torch's own files, which Accelerate reads back with `weights_only=True`: no code can hide in them), `progress.json`,
and `manifest.json` with the hash of each file. Accelerate's `register_for_checkpointing` is not used: it reads its
files with `weights_only=False`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from .reading import sha256


MANIFEST, PROGRESS = "manifest.json", "progress.json"
KEPT = 2  # the newest, and the one before it should a disk spoil the newest


class Checkpoints:
    """Saves and finds the states of one run.

    Args:
        accelerator: with everything prepared that belongs to the state.
        folder: where the checkpoints lie.
        run: what must not change between the parts of a run, as plain JSON.
        contents: for those of its names that say where something lies, what tells that it is the same thing (a hash):
            this must not change then, while the place may.
    """

    def __init__(self, accelerator, folder: str | Path, run: dict, contents: dict[str, str] | None = None):
        self.accelerator = accelerator
        self.folder = Path(folder)
        self.run = json.loads(json.dumps(run))  # as it will be read back: tuples are lists there
        self.contents = contents or {}
        self.mine: list[Path] = []

    def save(self, progress: dict) -> Path:
        """Writes a checkpoint on all processes together; the one before is not touched until this one is whole.

        Args:
            progress: plain JSON with `epoch` and `step`, which name the folder.

        Raises:
            OSError: it could not be written, for example because the disk is full; the last good one is kept.
        """
        folder = self.folder / f"epoch-{progress['epoch']:04d}-step-{progress['step']:08d}"
        draft = _draft_of(folder)
        everyone, main = self.accelerator.wait_for_everyone, self.accelerator.is_main_process
        try:
            if main:
                _start(draft)
            everyone()
            self.accelerator.save_state(str(draft))
            everyone()
            if main:
                told = {"progress": progress, "run": self.run, "contents": self.contents}
                (draft / PROGRESS).write_text(json.dumps(told, indent=2))
                files = {path.name: sha256(path) for path in sorted(draft.iterdir())}
                (draft / MANIFEST).write_text(json.dumps(files, indent=2))
                _settle(draft, folder)
        # torch says RuntimeError, safetensors an error of its own, where a file cannot be written.
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            kept = f"the last good state is {self.mine[-1]}" if self.mine else "there is none before it"
            raise OSError(
                f"the checkpoint of step {progress['step']} could not be written ({_first_line(error)}): make room on "
                f"the disk and go on with --resume auto; {kept}."
            ) from error
        self.mine = [*(path for path in self.mine if path != folder), folder][-KEPT:]
        if main:
            # Older ones, spoilt ones, drafts of a killed run, and those of an earlier run in this folder.
            for path in {*self.folder.glob("epoch-*"), *self.folder.glob(".epoch-*")}.difference(self.mine):
                shutil.rmtree(path)
        everyone()
        return folder

    def load(self, wanted: str = "auto") -> dict | None:
        """Goes back to a checkpoint: everything that was prepared, and the random states of each process.

        Args:
            wanted: a checkpoint's folder, or "auto" for the newest that is whole.

        Returns:
            The `progress` that was saved; None when `wanted` is "auto" and there is no checkpoint.

        Raises:
            ValueError: the checkpoint, or all of them, are spoilt; or they come from a run with another config.
        """
        choice = [None]
        if self.accelerator.is_main_process:  # one process looks, so that all take the same
            choice = [self._find(wanted)]
        found = broadcast_object_list(choice)[0]
        if found is None:
            return None
        folder, saved = found
        contents = saved.get("contents", {})  # an older checkpoint tells folders by where they lay
        changes = [
            f"{name} was {before!r} and is {self.run.get(name)!r}"
            for name, before in sorted(saved["run"].items())  # which may lack a newer field
            if before != self.run.get(name) and name not in contents.keys() & self.contents.keys()
        ]
        changes += [
            f"{name} ({self.run.get(name)}) holds other {'rows' if name == 'dataset' else 'weights'} than before"
            for name in sorted(contents.keys() & self.contents.keys())
            if contents[name] != self.contents[name]
        ]
        if changes:
            raise ValueError(
                f"{folder} comes from another run ({'; '.join(changes)}): give the old values, data and weights to go "
                "on, or start anew in another --output_dir."
            )
        self.accelerator.load_state(str(folder))
        self.mine = [folder]
        self.accelerator.print(f"resumed from {folder}")
        return saved["progress"]

    def _find(self, wanted: str) -> tuple[Path, dict] | None:
        folders = _folders(self.folder) if wanted == "auto" else [Path(wanted)]
        spoilt = []
        for folder in reversed(folders):
            damage = find_damage(folder)
            if damage is None:
                return folder, json.loads((folder / PROGRESS).read_text())
            spoilt.append(f"{folder}: {damage}")
            if wanted == "auto":
                print(f"not used, {spoilt[-1]}; looking at the one before it", flush=True)
        if spoilt:
            raise ValueError(
                f"no whole checkpoint ({'; '.join(spoilt)}): give another, or start anew without --resume."
            )
        return None


def find_damage(folder: str | Path) -> str | None:
    """Says what is wrong with a checkpoint in a few words; None when each file is what its manifest says."""
    folder = Path(folder)
    try:
        files = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return f"{MANIFEST} is missing or cannot be read"
    if PROGRESS not in files:
        return f"{MANIFEST} is no list of a checkpoint's files"
    for name, digest in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != digest:
            return f"{name} is not the file that was saved (another SHA-256)"
    return None


def write_whole(folder: str | Path, write: Callable[[Path], None]) -> None:
    """Lets `write(draft)` fill a folder under a temporary name, and puts it in the place of `folder` once whole."""
    folder = Path(folder)
    draft = _draft_of(folder)
    _start(draft)
    try:
        write(draft)
        _settle(draft, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise OSError(
            f"{folder} could not be written ({_first_line(error)}): make room on the disk, then --resume auto."
        ) from error


def rewind_lines(path: str | Path, epoch: int) -> None:
    """Drops the lines of a `metrics.jsonl` that lie after `epoch`, and a last line that was cut: they come again."""
    path = Path(path)
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            if json.loads(line)["epoch"] <= epoch:
                kept.append(line + "\n")
    draft = path.with_name(f".{path.name}.writing")
    draft.write_text("".join(kept), encoding="utf-8")
    draft.replace(path)


class Stopped(Exception):
    """The user asked a run to stop where it cannot go on."""


class StopSignal:
    """Within it, Ctrl-C and SIGTERM only leave a note, for the loop to read between two steps; a second Ctrl-C ends a
    run of one process at once (launchers pass a Ctrl-C on to their processes, which then see it twice)."""

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.number = 0

    def __enter__(self) -> StopSignal:
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # Python lets no other set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, frame) -> None:
        if self.number and number == signal.SIGINT and self.accelerator.num_processes == 1:
            raise KeyboardInterrupt
        self.number = self.number or number

    def asked(self) -> int:
        """The signal's number, or 0; the same on all processes, which must call it together."""
        if self.accelerator.num_processes > 1:
            number = torch.tensor([self.number], device=self.accelerator.device)
            self.number = int(self.accelerator.gather(number).max())
        return self.number

    def watch(self, batches: Iterable) -> Iterator:
        """The same batches, until the signal comes: then `Stopped`. With several processes, which may have
        different numbers of batches, all are given, and `asked` tells afterwards."""
        for batch in batches:
            if self.number and self.accelerator.num_processes == 1:
                raise Stopped
            yield batch


def _draft_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.writing")


def _start(draft: Path) -> None:
    shutil.rmtree(draft, ignore_errors=True)  # what a killed run left
    draft.mkdir(parents=True)


def _settle(draft: Path, folder: Path) -> None:
    """Gives a whole draft its name. What a power cut could still lose is forced to the disk first."""
    for path in [*draft.iterdir(), draft]:
        _sync(path)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    draft.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    if os.name == "nt":  # which opens no folder, and syncs nothing that is open for reading
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*-step-*"))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
