# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""What `keep_freed_memory` of train_hf.py saves: python tests/benchmarks/bench_malloc.py --rounds 3

Training steps of a MobileNetV2 in fresh processes, with and without it in turn; medians of the rounds per picture, and
the ratio of wall time between neighbours. Linux with glibc.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).parents[2]


def measure(keep: bool, steps: int, side: int, batch_size: int) -> list[float]:
    """Wall milliseconds, system milliseconds and page faults per picture, over `steps` steps after two to warm up."""
    import torch
    from transformers import MobileNetV2Config, MobileNetV2Model

    from train_hf import keep_freed_memory

    if keep:
        keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = MobileNetV2Model(MobileNetV2Config()).train().to(memory_format=torch.channels_last)
    pixels = torch.randn(batch_size, 3, side, side).contiguous(memory_format=torch.channels_last)
    for step in range(steps + 2):
        if step == 2:
            before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        model(pixels).last_hidden_state.square().mean().backward()
        model.zero_grad()
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    pictures = steps * batch_size
    system, faults = after.ru_stime - before.ru_stime, after.ru_minflt - before.ru_minflt
    return [1000 * wall / pictures, 1000 * system / pictures, faults / pictures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--image_size", type=int, default=160)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--measure", choices=["with", "without"], help="this process measures")
    arguments = parser.parse_args()
    if arguments.measure:
        sys.path.insert(0, str(ROOT))
        print(*measure(arguments.measure == "with", arguments.steps, arguments.image_size, arguments.batch_size))
        return
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    environment["OMP_NUM_THREADS"] = "1"
    rounds = {"without": [], "with": []}
    for _ in range(arguments.rounds):
        for name, values in rounds.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", name]
            out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
            values.append([float(word) for word in out.split()])
    for name, values in rounds.items():
        wall, system, faults = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{name:<8} {wall:7.1f} ms, of them system {system:6.2f} ms, {faults:8.0f} page faults per picture")
    ratios = [a[0] / b[0] for a, b in zip(rounds["without"], rounds["with"], strict=True)]
    print(f"ratio of wall time, median of {arguments.rounds}: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
