# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Gives damaged files to every way by which files come in, and counts how that ends: `make fuzz`, or

python -m tests.fuzz --cases 20000 --seed 0
python -m tests.fuzz --seed 0 --case 1234        # one of them, in this process, with what it raises

An answer is fine, and so is one plain sentence (a ValueError or OSError of our own). A failure is anything else: an
error of another type, more than 5 seconds, more than 2 GB, the end of the process, a request to the network.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=20000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of all damages")
    parser.add_argument("--case", type=int, help="the number of one case to run by itself")
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")  # before the Hub's client is imported
    sys.path.insert(0, str(Path(__file__).parents[2] / "spaces_demo"))  # whose files import each other by their names
    from .corpus import make_corpus
    from .entries import Kit
    from .workers import run_case, run_cases

    started = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        model, folder = Path(scratch) / "model", Path(scratch) / "case"
        kit = Kit(model, make_corpus(model))
        if arguments.case is not None:
            folder.mkdir()
            run_case(kit, arguments.seed, arguments.case, folder)
            print("answer")
            return 0
        outcomes = {}
        for outcome in run_cases(kit, arguments.seed, range(arguments.cases)):
            outcomes[outcome.number] = outcome
            if outcome.word not in ("answer", "sentence"):
                print(f"case {outcome.number}, {outcome.word}: {outcome.said}", file=sys.stderr, flush=True)
        return show(outcomes, arguments.seed, time.time() - started)


def show(outcomes: dict, seed: int, seconds: float) -> int:
    """Prints the table; 1 where there was a failure."""
    from .workers import choose

    rows: dict[tuple[str, str], list] = {}
    for outcome in outcomes.values():
        kind, entry, _ = choose(seed, outcome.number)
        rows.setdefault((kind, entry.__name__), []).append(outcome)
    print(f"{'file':<24}{'given to':<18}{'cases':>7}{'answers':>9}{'sentences':>11}{'failures':>10}")
    failed = Counter()
    for (kind, entry), some in sorted(rows.items()):
        words = Counter(outcome.word for outcome in some)
        bad = [outcome for outcome in some if outcome.word not in ("answer", "sentence")]
        failed.update(outcome.word for outcome in bad)
        shown = ", ".join(f"--case {outcome.number}" for outcome in bad[:3])
        print(f"{kind:<24}{entry:<18}{len(some):>7}{words['answer']:>9}{words['sentence']:>11}{len(bad):>10}  {shown}")
    said = ", ".join(f"{count} {word}" for word, count in failed.most_common()) or "0 failures"
    print(f"{len(outcomes)} cases, seed {seed}: {said}; {seconds:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
