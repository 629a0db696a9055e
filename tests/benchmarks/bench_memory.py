# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether memory grows in long runs: python -m tests.benchmarks.bench_memory --steps 2000 --plot docs/memory.svg

Trains on the built-in sample at 32 px, without workers and with two, in fresh processes, and notes after every tenth
step what the process and its workers hold (Linux; without the pages of program files, which other processes share as
they come and go; what workers share counts in parts, so nothing counts twice). Growth is the slope of a line through
the second half of the run, over as many steps as the whole, relative to the mean.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
from pathlib import Path

import numpy as np


WORDS = ["--stage", "finetune", "--dataset", "builtin", "--image_size", "32", "--batch_size", "4", "--cpu", "true",
         "--max_train_samples", "400", "--max_eval_samples", "12", "--save_steps", "50", "--ema_decay", "0.9",
         "--model_config", '{"hidden_size": 16}']  # fmt: skip
EVERY = 10


def held_by(process: int) -> float:
    """MiB of a process and its children that no file holds, each page over the number of processes that share it."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    held = sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))) / 1024
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return held + sum(held_by(int(child)) for child in children)


def train(workers: int, steps: int, notes: Path) -> None:
    """A whole run in this process; what it holds goes to the file `notes`, one number per `EVERY` steps."""
    import train_hf
    from processing.steps import OptimizerStep

    original = OptimizerStep.__call__

    def noting(self, losses_of, batch, state):
        losses = original(self, losses_of, batch, state)
        if state["step"] % EVERY == 0:
            with open(notes, "a", encoding="utf-8") as file:
                file.write(f"{held_by(os.getpid())}\n")
        return losses

    OptimizerStep.__call__ = noting
    with tempfile.TemporaryDirectory() as folder:
        train_hf.main([*WORDS, "--max_steps", str(steps), "--num_workers", str(workers), "--output_dir", folder])


def growth(held: list[float]) -> float:
    """In per cent of the mean, over as many steps as the run has, by a line through its second half."""
    half = np.asarray(held[len(held) // 2 :])
    slope = np.polyfit(np.arange(len(half)), half, 1)[0]
    return 100 * slope * len(held) / half.mean()


def plot(curves: dict[int, list[float]], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure((7, 3), layout="constrained")
    axes = figure.subplots()
    for (workers, held), colour in zip(curves.items(), ("#0072B2", "#D55E00"), strict=True):
        steps = EVERY * (1 + np.arange(len(held)))
        axes.plot(steps, held, color=colour, label=f"{workers} workers: {growth(held):+.2f} %")
    axes.set(xlabel="step", ylabel="MiB held", ylim=(0, None), title="Memory of a run with its workers")
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None} if path.endswith("svg") else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--plot", help="PNG or SVG to write")
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args()
    start, curves = multiprocessing.get_context("spawn").Process, {}
    with tempfile.TemporaryDirectory() as folder:
        notes = {workers: Path(folder, f"{workers}.txt") for workers in (0, 2)}
        runs = [start(target=train, args=(workers, arguments.steps, path)) for workers, path in notes.items()]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
            if run.exitcode:
                raise SystemExit(f"a run ended with {run.exitcode}")
        for workers, path in notes.items():
            curves[workers] = held = [float(line) for line in path.read_text().split()]
            print(
                f"{workers} workers: {held[0]:.1f} MiB after {EVERY} steps, {held[len(held) // 2]:.1f} half-way, "
                f"{held[-1]:.1f} at the end, most {max(held):.1f}; growth {growth(held):+.2f} %"
            )
    if arguments.plot:
        plot(curves, arguments.plot)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(curves) + "\n")


if __name__ == "__main__":
    main()
