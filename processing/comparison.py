# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""`tamiseg compare`: is one model better than another on the same cases, by how much, and how sure is that?

    tamiseg compare runs/mine/test runs/theirs/test
    tamiseg compare runs/mine-seed*/test --to runs/theirs-seed*/test --arm no_text

Each folder is what `tamiseg evaluate` wrote. Cases are paired by name, seeds of one side are averaged case by case.
Patients, not pictures, are what is drawn and tested: the pictures of one patient are alike.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .arms import ARMS
from .metrics import RESAMPLES, unit_of


COLUMNS = {"name", "patient_id", "arm", "dice"}  # of cases.csv, that are read here
ROUNDING = 1e-12  # no difference of Dice


def add_command(commands) -> None:
    """Adds `compare` to the subcommands of `tamiseg`."""
    command = commands.add_parser("compare", help="test whether one evaluated model is better than another")
    command.add_argument("ours", nargs="+", help="folder of an evaluation, or one per seed; without --to, two folders")
    command.add_argument("--to", nargs="+", help="folders of what it is compared to")
    command.add_argument("--arm", default="full_text", choices=list(ARMS), help="under which sentences")
    command.add_argument("--seed", type=int, default=0, help="of resampling")
    command.set_defaults(run=run)


def run(arguments) -> None:
    """Compares and prints."""
    ours, theirs = arguments.ours, arguments.to
    if theirs is None:
        if len(ours) != 2:
            raise ValueError("give two folders, or those of the second model behind --to.")
        ours, theirs = ours[:1], ours[1:]
    sides = [[read_cases(Path(folder), arguments.arm) for folder in side] for side in (ours, theirs)]
    result = compare(*sides, seed=arguments.seed)
    low, high = (100 * value for value in result["interval"])
    print(f"{ARMS[arguments.arm]}: Dice per image {100 * result['ours']:.2f} against {100 * result['theirs']:.2f}")
    print(f"difference {100 * result['difference']:+.2f} points, 95 % interval [{low:+.2f}, {high:+.2f}]")
    print(
        f"over {result['units']} patients (pictures where unknown): Wilcoxon p {result['p_wilcoxon']:.2g}, "
        f"paired t p {or_dash(result['p_t'], '.2g')}, effect size d {or_dash(result['effect_size'], '+.2f')}"
    )


def or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def read_cases(folder: Path, arm: str) -> dict[tuple[str, int], dict]:
    """The cases of one arm of an evaluation: `dice` as a float, `name`, `patient_id` (None where unknown), by name
    and by which case of that name it is, since one picture may be asked several times.

    Raises:
        ValueError: there is no `cases.csv`, it does not hold the arm, or is not as `tamiseg evaluate` writes it.
    """
    path = folder / "cases.csv"
    if not folder.is_dir():
        raise ValueError(f"there is no folder '{folder}' here: give the --output of `tamiseg evaluate`.")
    if not path.is_file():
        raise ValueError(f"'{folder}' has no cases.csv: give the --output of `tamiseg evaluate`.")
    cases, seen = {}, Counter()
    with open(path, encoding="utf-8", newline="") as file:
        try:
            reader = csv.DictReader(file)
            if lacking := COLUMNS - set(reader.fieldnames or ()):
                raise ValueError(f"no column {min(lacking)}")
            for line in reader:
                if line["arm"] == arm:
                    case = {"name": line["name"], "patient_id": line["patient_id"] or None}
                    case["dice"] = float(line["dice"])
                    if not 0 <= case["dice"] <= 1:
                        raise ValueError(f"a Dice of {line['dice']}")
                    cases[line["name"], seen[line["name"]]] = case
                    seen[line["name"]] += 1
        except (csv.Error, TypeError, ValueError) as error:
            raise ValueError(f"'{path}' is not as `tamiseg evaluate` writes it ({error}): write it anew.") from error
    if not cases:
        raise ValueError(f"'{path}' has no case of the arm {arm}: evaluate with --arms {arm}.")
    return cases


def compare(ours: Sequence[dict], theirs: Sequence[dict], seed: int = 0) -> dict:
    """Compares two models on the same cases.

    Args:
        ours, theirs: what `read_cases` gives, one per seed of training.
        seed: of resampling.

    Returns:
        `ours`, `theirs` and `difference`: Dice per image in [0, 1], seeds averaged; `interval`: 95 % of the difference
        by `metrics.RESAMPLES` resamples of patients; `p_wilcoxon`, `p_t`: two-sided, of the patients' mean differences
        (1 where all are 0); `effect_size`: their mean over their standard deviation (0 where all are 0); `units`: how
        many patients, or pictures where the patient is unknown. `p_t` and `effect_size` are None where all differences
        are the same and not 0, or there is one alone: nothing tells how they spread.

    Raises:
        ValueError: the two are not of the same cases.
    """
    from scipy.stats import ttest_rel, wilcoxon

    keys = list(ours[0])
    for cases in (*ours, *theirs):
        if cases.keys() != ours[0].keys():
            raise ValueError("the evaluations are not of the same cases: evaluate both on the same rows.")
    first, second = (
        np.array([[cases[key]["dice"] for key in keys] for cases in side]).mean(axis=0) for side in (ours, theirs)
    )
    units = {unit: number for number, unit in enumerate(dict.fromkeys(unit_of(ours[0][key]) for key in keys))}
    owner = np.array([units[unit_of(ours[0][key])] for key in keys])
    sums = np.array([np.bincount(owner, values, len(units)) for values in (first, second)])
    counts = np.bincount(owner, minlength=len(units))
    differences = (sums[0] - sums[1]) / counts
    draws = np.random.default_rng(seed).multinomial(len(units), np.full(len(units), 1 / len(units)), size=RESAMPLES)
    resampled = (draws @ (sums[0] - sums[1])) / (draws @ counts)
    same = np.abs(differences).max() <= ROUNDING
    if len(differences) > 1 and np.ptp(differences) > ROUNDING:
        p_t = float(ttest_rel(*(sums / counts)).pvalue)
        effect_size = float(differences.mean() / differences.std(ddof=1))
    else:
        p_t, effect_size = (1.0, 0.0) if same else (None, None)
    return {
        "ours": float(first.mean()),
        "theirs": float(second.mean()),
        "difference": float((first - second).mean()),
        "interval": np.percentile(resampled, [2.5, 97.5]).tolist(),
        "p_wilcoxon": 1.0 if same else float(wilcoxon(differences).pvalue),
        "p_t": p_t,
        "effect_size": effect_size,
        "units": len(units),
    }


def over_seeds(differences: Sequence[float]) -> list[float] | None:
    """The 95 % t-interval of the mean difference, over seeds of training; None of a single seed."""
    from scipy.stats import t

    if len(differences) < 2:
        return None
    half = t.ppf(0.975, len(differences) - 1) * np.std(differences, ddof=1) / np.sqrt(len(differences))
    return [float(np.mean(differences) - half), float(np.mean(differences) + half)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for several comparisons: p values of the same order, at most 1."""
    order = np.argsort(p_values)
    corrected, highest = [0.0] * len(order), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected
