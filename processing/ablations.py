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
points of Dice per image over the same test cases and seeds, seeds averaged case by case; their 95 % intervals are
drawn over patients, as is p (Wilcoxon signed-rank, corrected by Holm within each column of a table) and the effect
size d (mean over standard deviation of the patients' differences); p and d count each patient once, the difference
counts each picture. So they say how these seeds' models differ on other patients; what other seeds would do, the
column of single seeds hints at. The lines below a table speak of the case's own sentence: "better" or "worse" where p
is below 0.05, the interval leaves 0 out and all seeds agree on the sign; "no difference shown" where p or the interval
does not allow more. GFLOPs are of one picture, its sentence read before; parameters without the text encoder. Where
shares of the masks are compared, the band of a curve is the 95 % interval over patients of the seeds' mean, and each
dot a seed."""


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
            parts.append(open_runs(table))
            parts.append(f"```bash\n{command(summary, group)}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"


def about(summary: dict) -> str:
    return f"Data: {summary['about']['data']}. Cost: {summary['about']['cost']}."


def command(summary: dict, group: str) -> str:
    return f"python -m experiments.matrix {summary['matrix']} --groups {group}"


def open_runs(table: dict) -> str:
    """Which runs of a group have no result; nothing where all have one."""
    if not table["missing"]:
        return ""
    return "Not run yet: " + ("; ".join(map(words, table["missing"])) if table["rows"] else "all of it") + "."


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
            "difference",
            "by seed",
            "p",
            "d",
            "difference without sentence",
            "p",
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
            cells += [words(row["against"]), change(main), by_seed]
            cells += [p_value(main["p_holm"]), or_dash(main["effect_size"], "+.2f")]
            without = row["compared"]["no_text"]
            cells += [change(without), p_value(without["p_holm"])]
        else:
            cells += ["-"] * 7
        rows.append([words(row["variant"]), *cells, f"{row['gflops']:.2f}", f"{row['million_parameters']:.2f}"])
    return rows


def verdicts(table: dict) -> list[tuple[str, str]]:
    """Each variant that was compared, with one sentence: what was seen, and whether it may be chance."""
    lines = []
    for row in table["rows"]:
        compared = row["compared"].get("main")
        if compared is None:
            continue
        low, high = (100 * value for value in compared["interval"])
        seeds = [value > 0 for value in compared["difference_by_seed"]]
        sure = compared["p_holm"] < 0.05 and (low > 0 or high < 0)
        if sure and len(set(seeds)) == 1:
            seen = "better" if compared["difference"] > 0 else "worse"
            said = f"{abs(100 * compared['difference']):.2f} points {seen}"
            said += f", in each of {len(seeds)} seeds" if len(seeds) > 1 else ", in the one seed that was run"
        elif sure:
            said = f"{100 * compared['difference']:+.2f} points, but the seeds do not agree on the sign"
        else:
            said = f"no difference shown; the interval is {low:+.2f} to {high:+.2f} points"
        lines.append((words(row["variant"]), f"against {words(row['against'])}: {said}."))
    return lines


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
    low, high = compared["interval"]
    return f"{100 * compared['difference']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def words(name: str) -> str:
    return name.replace("_", " ")
