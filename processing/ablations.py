# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""docs/ablations.md: what the parts of the method bring, from the summaries that `experiments.matrix` writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .comparison import or_dash


INTRODUCTION = """\
# What helps, and what does not

Written by `tamiseg report` from `experiments/results/*/summary.json`; change those, not this page.

"""
EXPLANATION = """\
Dice in %, the mean over seeds and in brackets the lowest and the highest. "Its own sentence" is the arm by which a
model was chosen; for one that never saw a sentence, it is none. Differences are to the variant that is named, in
points of Dice per image over the same test cases and seeds, seeds averaged case by case. Two intervals of 95 % stand
beside them: the first over patients, by the bootstrap: how these seeds' models differ on other patients; the second
over seeds, by Student's t: how the method would differ, trained again. With three seeds the second is wide. Both p
values, of the Wilcoxon signed-rank test and of the paired t-test, are over patients and corrected by Holm within each
column of a table; the effect size d is the mean over the standard deviation of the patients' differences. They count
each patient once, a difference counts each picture. The lines below a table say "better" or "worse" where both p are
below 0.05, the interval over patients leaves 0 out and all seeds agree on the sign, and add where the one over seeds
does not leave 0 out; "no difference shown" where that is not so. GFLOPs are of one picture, its sentence read before;
parameters without the text encoder. Where shares of the masks are compared, the band of a curve is the 95 % interval
over patients of the seeds' mean, and each dot a seed."""


def load_summaries(results: Path) -> dict[str, dict]:
    """The summaries below a folder of results by the name of their matrix; none where there are none."""
    paths = sorted(results.glob("*/summary.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def ablations_page(summaries: dict[str, dict]) -> str:
    """The page in Markdown, with a section for each matrix."""
    from .report import table_lines

    parts = [INTRODUCTION + EXPLANATION]
    for name, summary in summaries.items():
        parts.append(f"## {name}\n\n{about(summary)}")
        for group, table in summary["groups"].items():
            parts.append(f"### {words(group)}\n\n{table['about'].strip()}")
            if curves(table):
                parts.append(f"![Dice over the share of masks that were shown]({curves_file(name, group)})")
            if table["rows"]:
                parts.append("\n".join(table_lines(group_rows(table))))
                parts.append("\n".join(f"- **{variant}** {said}" for variant, said in verdicts(table)))
                parts.append(searches(table))
            parts.append(notes(table))
            parts.append(f"```bash\n{command(summary, group)}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"


def about(summary: dict) -> str:
    return f"Data: {summary['about']['data']}. Cost: {summary['about']['cost']}."


def command(summary: dict, group: str) -> str:
    return f"python -m experiments.matrix {summary['matrix']} --groups {group}"


def notes(table: dict) -> str:
    """Which runs of a group have no result, and whether its cases were kept; nothing where all is there."""
    said = []
    if table["missing"]:
        runs = "; ".join(map(words, table["missing"])) if table["rows"] else "all of it"
        said.append(f"Not run yet: {runs}.")
    if not table["cases_kept"]:
        said.append("The cases of some of these runs were not kept: no file gives the differences again.")
    return " ".join(said)


def curves_file(matrix: str, group: str) -> str:
    """The name of the picture that `write_budgets` draws of a group."""
    return f"{matrix}-{group}.svg"


def curves(table: dict) -> dict[str, list[dict]]:
    """Where a group shows shares of the masks, those of its variants that are called KIND_SHARE, as `ours_0.1`: for
    each kind its points in rising order, each `share`, `dice` and `interval` under its own sentence, `seeds` (Dice of
    each). Empty where it does not."""
    lines: dict[str, list[dict]] = {}
    for row in sorted(table["rows"], key=lambda row: row.get("label_budget", 1)):
        share = row.get("label_budget", 1)
        kind, _, named = row["variant"].rpartition("_")
        if named == f"{share:g}":
            dice = row["scores"][row["main"]]
            point = {"share": share, "dice": float(np.mean(dice["dice_per_image"]))}
            point |= {"interval": dice["interval"], "seeds": dice["dice_per_image"]}
            lines.setdefault(words(kind), []).append(point)
    return lines if any("label_budget" in row for row in table["rows"]) else {}


def group_rows(table: dict) -> list[list[str]]:
    """A table of a group: head, then a row per variant."""
    rows = [
        [
            "variant",
            "its own sentence",
            "the same, global",
            "no sentence",
            "another's sentence",
            "against",
            "difference, over patients",
            "by seed",
            "over seeds",
            "p (Wilcoxon, t)",
            "d",
            "difference without sentence",
            "over seeds",
            "p (Wilcoxon, t)",
            "GFLOPs",
            "M parameters",
        ]
    ]
    for row in table["rows"]:
        scores = row["scores"]
        cells = [spread(scores[row["main"]][metric]) for metric in ("dice_per_image", "dice_global")]
        cells += [
            spread(scores[arm]["dice_per_image"]) if arm in scores else "-" for arm in ("no_text", "shuffled_text")
        ]
        if main := row["compared"].get("main"):
            by_seed = " ".join(f"{100 * value:+.2f}" for value in main["difference_by_seed"])
            cells += [words(row["against"]), change(main), by_seed, points(main["seed_interval"])]
            cells += [p_values(main), or_dash(main["effect_size"], "+.2f")]
            without = row["compared"]["no_text"]
            cells += [change(without), points(without["seed_interval"]), p_values(without)]
        else:
            cells += ["-"] * 9
        rows.append([words(row["variant"]), *cells, f"{row['gflops']:.2f}", f"{row['million_parameters']:.2f}"])
    return rows


def verdicts(table: dict) -> list[tuple[str, str]]:
    """Each variant that was compared, with what was seen of it and whether that may be chance: under its own sentence,
    and without one."""
    lines = []
    for row in table["rows"]:
        if compared := row["compared"]:
            said = f"against {words(row['against'])}: {seen(compared['main'])}."
            if compared["no_text"]["difference_by_seed"] != compared["main"]["difference_by_seed"]:
                said += f" Without a sentence: {seen(compared['no_text'])}."
            lines.append((words(row["variant"]), said))
    return lines


def seen(compared: dict) -> str:
    """What a comparison shows, in words."""
    low, high = compared["interval"]
    seeds = compared["difference_by_seed"]
    passed = all(compared.get(f"p_{test}_holm", 0) < 0.05 for test in ("wilcoxon", "t"))
    by_seed, chance = compared["seed_interval"], ""
    if by_seed is not None and by_seed[0] <= 0 <= by_seed[1]:
        chance = f"{points(by_seed)} over seeds"
    if not (passed and (low > 0 or high < 0)):
        return f"no difference shown, {points(compared['interval'])} over patients" + (chance and f", {chance}")
    if len({value > 0 for value in seeds}) > 1:
        return f"{100 * compared['difference']:+.2f} points, but the seeds do not agree on the sign, {chance}"
    said = f"{abs(100 * compared['difference']):.2f} points {'better' if compared['difference'] > 0 else 'worse'}"
    if len(seeds) == 1:
        return f"{said}, in the one seed that was run"
    return f"{said}, in each of {len(seeds)} seeds" + (chance and f", but so few seeds do not make it sure: {chance}")


def searches(table: dict) -> str:
    """What a search chose for each variant; nothing where there was none."""
    searched = [row for row in table["rows"] if "search" in row]
    if not searched:
        return ""
    search = searched[0]["search"]
    lines = [
        f"Each variant's {words(search['field'])} is the best of a search, by Dice per image on {search['split']} "
        f"under seed {search['seed']}:\n"
    ]
    for row in searched:
        tried = ", ".join(f"{entry['value']:g} {100 * entry['score']:.1f}" for entry in row["search"]["scores"])
        lines.append(f"- {words(row['variant'])}: **{row['search']['chosen']:g}** ({tried})")
    highest = max(entry["value"] for entry in search["scores"])
    at_the_end = sum(row["search"]["chosen"] == highest for row in searched)
    lines.append(
        f"\n{at_the_end} of {len(searched)} took the highest value that was tried; what a higher one would bring is "
        "unknown."
        if at_the_end
        else ""
    )
    return "\n".join(lines).rstrip()


def spread(values: list[float]) -> str:
    shown = f"{100 * np.mean(values):.2f}"
    return shown if len(values) == 1 else f"{shown} [{100 * min(values):.2f}, {100 * max(values):.2f}]"


def change(compared: dict) -> str:
    return f"{100 * compared['difference']:+.2f} {points(compared['interval'])}"


def points(interval: list[float] | None) -> str:
    return "-" if interval is None else f"[{100 * interval[0]:+.2f}, {100 * interval[1]:+.2f}]"


def p_values(compared: dict) -> str:
    """Of both tests, corrected; a dash where a test has nothing to say."""
    tests = (compared.get(f"p_{test}_holm") for test in ("wilcoxon", "t"))
    return ", ".join("-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}" for p in tests)


def words(name: str) -> str:
    return name.replace("_", " ")
