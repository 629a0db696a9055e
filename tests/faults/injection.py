# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs `train_hf.py` in child processes that break where they are told to: the machine room of the fault tests.

Children are forked by a server that has imported everything once, so that a run of a few steps takes a second or two.
"""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

import train_hf
from processing.checkpoints import StopSignal
from processing.steps import OptimizerStep


# Ten rows in steps of four: the last batch of an epoch is a short one. Augmentation is always on, dropout is in the
# text encoder.
TINY = ["--stage", "finetune", "--dataset", "builtin", "--image_size", "32", "--batch_size", "4", "--cpu", "true",
        "--max_train_samples", "10", "--max_eval_samples", "6", "--epochs", "3",
        "--freeze_text_encoder", "false", "--model_config", '{"hidden_size": 16}', "--ema_decay", "0.5"]  # fmt: skip

# Where a run can be broken: what is about to happen when it is.
PLACES = {
    "step": (OptimizerStep, "__call__"),
    "backward": (Accelerator, "backward"),
    "evaluation": (StopSignal, "watch"),
    "state half written": (torch, "save"),
    "flush": (os, "fsync"),
    "rename": (Path, "rename"),
    "removal": (shutil, "rmtree"),
    "curves": (train_hf, "write_curves"),
    "best weights": (train_hf, "save"),
}


@dataclass(frozen=True)
class Fault:
    """A signal that the process sends to itself, or to a worker that reads its data, at the `call`-th time (from 0)
    that it comes to `place`."""

    place: str
    call: int
    number: int = signal.SIGKILL
    to_worker: bool = False


@dataclass
class Ended:
    """How a run came out: exit codes of its processes (negative: killed by that signal), what was said, and of the
    last process, which is the one that is struck: steps taken, and how often it came to each place."""

    codes: list[int]
    said: str
    steps: int
    calls: dict[str, int]


def run(
    folder: Path,
    *words: str,
    fault: Fault | None = None,
    processes: int = 1,
    environment: dict[str, str] | None = None,
    file_limit: int | None = None,
) -> Ended:
    """Trains into `folder`. With several processes, the last one has the fault and its death ends the others, as a
    launcher would see to. `environment` is added to that of each process, `file_limit` is the largest file in bytes
    that may be written."""
    context = forkserver()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{folder.name}.log"
    log.unlink(missing_ok=True)
    port = free_port()
    children = []
    for rank in range(processes):
        variables = {"OMP_NUM_THREADS": "1", **place_among(processes, rank, port), **(environment or {})}
        broken = fault if rank == processes - 1 else None
        arguments = (["--output_dir", str(folder), *words], broken, str(log), variables, rank, file_limit)
        children.append(context.Process(target=_child, args=arguments))
        children[-1].start()
    last = children[-1]
    last.join(timeout=250)
    for child in children:
        child.join(timeout=60 if last.exitcode == 0 or (fault and fault.number != signal.SIGKILL) else 0.1)
        if child.is_alive():
            child.kill()
            child.join()
    counts = json.loads(Path(f"{log}.counts.{processes - 1}").read_text())
    steps = counts.pop("steps")
    return Ended([child.exitcode for child in children], log.read_text(), steps, counts)


def forkserver():
    """What starts children that have everything imported: `forkserver().Process(...)`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "matplotlib.figure", "datasets"])
    return context


def place_among(processes: int, rank: int, port: int) -> dict[str, str]:
    """The environment that a launcher would give to one of several processes."""
    if processes == 1:
        return {}
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return {name: str(place) for name, place in places.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def outcome(folder: Path) -> dict:
    """What two runs that are the same have in common: the hashes of each file of the last state and of the best
    weights, the scores, and the line of each epoch without the time it took."""
    last = sorted((folder / "checkpoints").glob("epoch-*"))[-1]
    hashes = json.loads((last / "manifest.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["images_per_second"]
    result = json.loads((folder / "result.json").read_text())
    return {"name": last.name, **hashes, "best": result["weights_sha256"], "lines": lines, "scores": result["scores"]}


def _child(words, fault, log, environment, rank, file_limit) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    file = open(log, "a", buffering=1)  # until the process ends
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
    if file_limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    _count_calls(fault, f"{log}.counts.{rank}")
    sys.argv = ["train_hf.py", *words]
    train_hf.run()


def _count_calls(fault: Fault | None, counts_file: str) -> None:
    counts = {"steps": 0, **dict.fromkeys(PLACES, 0)}

    def note() -> None:
        Path(counts_file).write_text(json.dumps(counts))

    def reach(place: str, then=None) -> None:
        breaks = fault is not None and (place, counts[place]) == (fault.place, fault.call)
        counts[place] += 1
        note()
        if breaks:
            if then is not None:
                then()
            victim = multiprocessing.active_children()[0].pid if fault.to_worker else os.getpid()
            os.kill(victim, fault.number)

    def counted(place, original):
        def call(*arguments, **keywords):
            def half() -> None:
                if place == "state half written":
                    original(*arguments, **keywords)
                    path = Path(arguments[1])
                    os.truncate(path, path.stat().st_size // 2)

            reach(place, half)
            result = original(*arguments, **keywords)
            if place == "step":
                counts["steps"] += 1
                note()
            return result

        return call

    def watched(stop, batches):
        for batch in StopSignal.unwatched(stop, batches):
            reach("evaluation")
            yield batch

    note()
    StopSignal.unwatched = StopSignal.watch
    for place, (owner, name) in PLACES.items():
        setattr(owner, name, watched if place == "evaluation" else counted(place, getattr(owner, name)))
