# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Breaks small training runs in every way that is known, and counts how they end: `make faults`, or

python -m tests.faults --kills 100 --seed 0

Each broken run goes on with `--resume auto`. It is "identical" when weights, averaged weights, optimizer, rates,
random states, best weights, scores and metrics.jsonl are those of the unbroken run, bit by bit. Every fourth kill
strikes one of two processes.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from .injection import PLACES, TINY, Fault, outcome, run


SAVE_STEPS = 2
WORDS = (*TINY, "--save_steps", str(SAVE_STEPS))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="kills (SIGKILL); other faults get a fifth of it each")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which runs are broken")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    started = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        table = Table(Path(scratch))
        places = list(PLACES)
        for i in range(arguments.kills):
            processes = 2 if i % 4 == 3 else 1
            table.signal("kill", places[i % len(places)], signal.SIGKILL, processes, moments)
        for _ in range(max(1, arguments.kills // 5)):
            for place in ("step", "evaluation"):
                table.signal("SIGTERM", place, signal.SIGTERM, 1, moments)
                table.signal("Ctrl-C", place, signal.SIGINT, 1, moments)
            table.spoilt("cut in half", moments)
            table.spoilt("of another state", moments)
            table.full_disk(moments)
    return table.show(time.time() - started)


class Table:
    """Injects faults, and keeps the rows: what, how often, how often well ended, steps lost."""

    def __init__(self, scratch: Path):
        self.scratch = scratch
        self.rows: dict[str, list] = {}
        self.unbroken = {}
        for processes in (1, 2):
            folder = scratch / f"unbroken-{processes}"
            ended = run(folder, *WORDS, processes=processes)
            if any(ended.codes):
                raise SystemExit(ended.said)
            self.unbroken[processes] = (ended, outcome(folder))

    def signal(self, name: str, place: str, number: int, processes: int, moments: random.Random) -> None:
        whole, _ = self.unbroken[processes]
        if not whole.calls[place]:
            place = "step"  # the last of two processes is struck, and some things only the first one does
        fault = Fault(place, moments.randrange(whole.calls[place]), number)
        folder = self._fresh()
        broken = run(folder, *WORDS, fault=fault, processes=processes)
        expected = -number if number == signal.SIGKILL else 128 + number
        if broken.codes[-1] == 0:  # the signal came after the last step, while the result was written
            expected = 0
        self._judge(
            f"{name}: {place}, {processes} process(es)", folder, broken, broken.codes[-1] == expected, processes
        )

    def spoilt(self, how: str, moments: random.Random) -> None:
        folder = self._fresh()
        broken = run(folder, *WORDS, fault=Fault("backward", moments.randrange(5, 9)))
        before, newest = sorted((folder / "checkpoints").glob("epoch-*"))
        victim = moments.choice(sorted(path.name for path in newest.iterdir()))
        if how == "cut in half":
            whole = (newest / victim).read_bytes()
            (newest / victim).write_bytes(whole[: len(whole) // 2])
        else:
            shutil.copy(before / victim, newest / victim)
        # Random states of two steps may be the same file, and then nothing is spoilt.
        self._judge(f"newest checkpoint: a file {how}", folder, broken, True, 1)

    def full_disk(self, moments: random.Random) -> None:
        folder = self._fresh()
        broken = run(folder, *WORDS, fault=Fault("backward", moments.randrange(3, 9)))
        newest = sorted((folder / "checkpoints").glob("epoch-*"))[-1]
        limit = moments.randrange(20_000, (newest / "optimizer.bin").stat().st_size)
        full = run(folder, *WORDS, "--resume", "auto", file_limit=limit)
        clean = full.codes == [2] and "Traceback" not in full.said and newest.is_dir()
        broken.steps = int(newest.name[-8:])  # what the full disk must leave
        self._judge("disk full", folder, broken, clean, 1)

    def _judge(self, name: str, folder: Path, broken, clean: bool, processes: int) -> None:
        resumed = run(folder, *WORDS, "--resume", "auto", processes=processes)
        whole, expected = self.unbroken[processes]
        same = resumed.codes == [0] * processes and outcome(folder) == expected
        row = self.rows.setdefault(name, [0, 0, []])
        row[0] += 1
        row[1] += clean and same
        row[2].append(broken.steps + resumed.steps - whole.steps)
        print(f"{name}: {'identical' if clean and same else 'NOT IDENTICAL'}", file=sys.stderr, flush=True)
        if not (clean and same):
            print(f"{broken.said}\n{resumed.said}", file=sys.stderr, flush=True)
        shutil.rmtree(folder)

    def _fresh(self) -> Path:
        return self.scratch / f"run-{sum(row[0] for row in self.rows.values())}"

    def show(self, seconds: float) -> int:
        print(f"{'fault':<52}{'injected':>9}{'identical':>11}{'steps lost, mean':>18}{'most':>6}")
        for name, (injected, well, lost) in self.rows.items():
            print(f"{name:<52}{injected:>9}{well:>11}{sum(lost) / len(lost):>18.2f}{max(lost):>6}")
        injected, well = (sum(row[i] for row in self.rows.values()) for i in (0, 1))
        print(f"{well} of {injected} ended identical; a checkpoint every {SAVE_STEPS} steps; {seconds:.0f} s")
        return 0 if well == injected else 1


if __name__ == "__main__":
    sys.exit(main())
