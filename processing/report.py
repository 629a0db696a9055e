# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""`tamiseg report`: tables, plots and one HTML page from result files. No number is typed in by hand.

    tamiseg report                                                    # docs/results.md, report.html, the queue of runs
    tamiseg report --results runs/mine/test --output runs/mine/test   # of an evaluation of one's own

Of the data, what its splits share: `tamiseg data leaks DATA --counts --output experiments/results/leaks/NAME.json`.

A folder of results holds what `train_hf.py`, `tamiseg evaluate`, `analyse-prompts` and `analyse-teacher` wrote, under
any name that ends in `.json`; several seeds of one recipe are called `NAME-seed0.json`, `NAME-seed1.json`, ... Recipes
are the YAML files beside that folder that have a `recipe` entry, see `experiments/README.md`.
"""

from __future__ import annotations

import base64
import csv
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from html import escape
from io import BytesIO
from pathlib import Path, PurePath

import numpy as np

from . import ablations, faithfulness, findings, transfer
from .arms import ARMS
from .hub import without_folders
from .leaks import leak_table
from .model_card import METRICS, as_written, plain
from .reading import parse_json, reason


@dataclass(frozen=True)
class Mark:
    """A published score, to stand beside ours."""

    score: str
    convention: str
    source: str


# By a part of the data set's name, as folders and Hub ids write it without signs.
MARKS = {
    "qata": (
        "QaTa-COV19",
        (
            Mark("85.2", "Dice per image", "highest with text, as its authors claim"),
            Mark("84.8", "Dice per image", "the same method, reproduced by others"),
            Mark("91.5 to 92.4", "Dice global", "highest with text, as their authors claim"),
            Mark("80.4", "Dice per image", "without text: a plain FPN on ImageNet weights"),
        ),
    ),
    "mosmed": (
        "MosMedData+",
        (
            Mark("78.4", "Dice per image", "highest with text, as its authors claim: TMC, arXiv 2506.07475"),
            Mark("82.0", "Dice global", "highest with text, as its authors claim"),
        ),
    ),
    "kvasir": (
        "Kvasir-SEG",
        (
            Mark("90.5", "Dice, split 880/120", "highest with text, as its authors claim"),
            Mark("84.6", "mean IoU, split 880/120", "the same"),
        ),
    ),
}
HEADS = METRICS | {
    "hd95": "HD95",
    "surface_dice": "Surface Dice",
    "ece": "ECE",
    "empty_target_false_positive_rate": "False alarms",
}
IN_UNITS = {"hd95"}  # all others are shares, shown in %
RESULTS = Path("experiments/results")
KINDS = {"scores", "faithfulness", "transfer"}  # of results, by the entry that holds their numbers
PUBLISHED = (
    "Published, as aims more than as a comparison: conventions, splits and pictures differ from paper to paper. Where "
    "no paper is named, it was not noted when the figure was."
)
QUEUE_MARK = "<!-- From here on written by `tamiseg report`. -->"

CONVENTIONS = (
    "In %, in brackets 95 % intervals (whole patients are resampled; pictures where the patient is unknown). Per "
    "image: the mean over cases; global: from the pixels of all cases pooled. An empty mask counts as fully right "
    "where there is nothing to find, and false alarms are the share of such cases in which something was marked. HD95 "
    "counts 0 where both masks are empty, and cases where only one is are left out. A dash: not measured."
)
STYLE = """\
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #8886; text-align: left; white-space: nowrap; }
td.sentence { white-space: normal; min-width: 18rem; }
img { max-width: 100%; height: auto; background: #fff; }
pre { overflow-x: auto; padding: .6rem; background: #8882; white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def add_command(commands) -> None:
    """Adds `report` to the subcommands of `tamiseg`."""
    command = commands.add_parser("report", help="write tables, plots and a page from result files")
    command.add_argument("--results", default=str(RESULTS), help="folder of result files (*.json)")
    command.add_argument("--output", default="docs", help="folder for results.md and report.html")
    command.set_defaults(run=run)


def run(arguments) -> None:
    """Reads, writes, and says what it wrote."""
    folder, output = Path(arguments.results), Path(arguments.output)
    if not folder.is_dir():
        raise ValueError(f"there is no folder '{folder}': give one of result files as --results.")
    results, recipes = load_results(folder), load_recipes(folder.parent)
    summaries, leaks = ablations.load_summaries(folder), load_leaks(folder)
    if not results and not summaries:
        raise ValueError(f"'{folder}' holds no result (*.json): give another --results.")
    output.mkdir(parents=True, exist_ok=True)
    with as_written(f"a result file of '{folder}'"):
        written = {
            output / "results.md": results_page(results, recipes, summaries, leaks, folder),
            output / "report.html": html_page(results, folder, summaries),
        }
        if summaries:
            written[output / "ablations.md"] = ablations.ablations_page(summaries)
            written |= {output / name: drawn for name, drawn in curve_pictures(summaries).items()}
    readme = folder.parent / "README.md"
    if readme.is_file() and QUEUE_MARK in (text := readme.read_text(encoding="utf-8")):
        told = queue(open_recipes(results, recipes, summaries))
        written[readme] = text.split(QUEUE_MARK)[0] + f"{QUEUE_MARK}\n\n{told}"
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")
    print(f"{len(results)} results, {len(recipes)} recipes: wrote {', '.join(map(str, written))}")


def curve_pictures(summaries: dict[str, dict]) -> dict[str, str]:
    """The pictures that docs/ablations.md shows, SVG by file name."""
    from .plots import write_budgets

    pictures = {}
    for name, summary in summaries.items():
        for group, table in summary["groups"].items():
            if curves := ablations.curves(table):
                write_budgets(curves, file := BytesIO(), format="svg")
                pictures[ablations.curves_file(name, group)] = file.getvalue().decode()
    return pictures


def load_results(folder: Path) -> dict[str, dict]:
    """The result files of a folder by their names without suffix, sorted.

    Raises:
        ValueError: a file is no result.
    """
    results = {}
    for path in sorted(folder.glob("*.json")):
        result = parse_json(path.read_bytes(), f"'{path}'", "write it again or move it away")
        named = {"command", "split", "arguments"}
        if not isinstance(result, dict) or not named <= result.keys() or not result.keys() & KINDS:
            raise ValueError(f"'{path}' is no result of train_hf.py or tamiseg evaluate: move it away.")
        results[path.stem] = result
    return results


def load_leaks(folder: Path) -> dict[str, dict]:
    """What `tamiseg data leaks` wrote below a folder of results, by the name of the data set."""
    paths = sorted((folder / "leaks").glob("*.json"))
    return {path.stem: parse_json(path.read_bytes(), f"'{path}'", "write it again") for path in paths}


def load_recipes(folder: Path) -> dict[str, dict]:
    """The `recipe` entries of the YAML files of a folder by their names without suffix.

    Raises:
        ValueError: a file is no YAML, or a recipe does not say its data, cost, expected score or commands.
    """
    import yaml

    recipes = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeError) as error:
            raise ValueError(f"'{path}' is no YAML ({reason(error)}): mend it, or move it away.") from error
        if not isinstance(fields, dict) or "recipe" not in fields:
            continue
        if not isinstance(fields["recipe"], dict):
            raise ValueError(f"the recipe of '{path}' is no mapping: write its data, cost, expected and commands.")
        missing = {"data", "cost", "expected", "commands"} - fields["recipe"].keys()
        if missing:
            raise ValueError(f"the recipe of '{path}' does not say its {', '.join(sorted(missing))}: add it.")
        recipes[path.stem] = fields["recipe"]
    return recipes


def open_recipes(results: dict[str, dict], recipes: dict[str, dict], summaries: dict[str, dict]) -> dict[str, dict]:
    """The recipes that have no result; of a matrix, that have not all."""
    done = {recipe_of(name) for name in results}
    for name, summary in summaries.items():
        if not any(table["missing"] for table in summary["groups"].values()):
            done.add(name)
    return {name: recipe for name, recipe in recipes.items() if name not in done}


def recipe_of(result: str) -> str:
    """The name without what tells the seed."""
    return re.sub(r"-seed\d+$", "", result)


def results_page(
    results: dict[str, dict],
    recipes: dict[str, dict],
    summaries: dict[str, dict],
    leaks: dict[str, dict],
    folder: Path = RESULTS,
) -> str:
    """docs/results.md, of what lies in `folder`: for each data set what was published and what our runs gave, then the
    recipes, and which of them nobody ran, and why."""
    named = without_folders(folder.as_posix())
    parts = [
        "# Results",
        f"Written by `tamiseg report` from the files in `{named}/`; change those, not this page.\n\n{CONVENTIONS}",
    ]
    by_data: dict[str, list[str]] = {}
    for name, result in results.items():
        by_data.setdefault(data_title(result), []).append(name)
    if not results:
        parts.append("There is no result file yet.")
    for data, names in sorted(by_data.items()):
        parts.append(f"## {data}")
        for name, report in leaks.items():
            if plain(name) in plain(data):
                parts.append(f"What its splits share:\n\n{leak_table(report)}")
        scored = [name for name in names if "scores" in results[name]]
        seeds = {name: [other for other in scored if recipe_of(other) == recipe_of(name)] for name in scored}
        if several := {recipe_of(name): group for name, group in seeds.items() if len(group) > 1}:
            parts.append(seed_table(several, results))
        for name in names:
            parts.append(f"### {name}\n\n{result_section(results[name])}")
        if rows := mark_rows(data):
            parts.append(f"{PUBLISHED}\n\n" + "\n".join(table_lines(rows)))
    unmet = [rows for key in MARKS if not any(key in plain(data) for data in by_data) and (rows := mark_rows(key))]
    if unmet:
        parts.append("## Published, without a result of ours yet")
        parts += [PUBLISHED, *("\n".join(table_lines(rows)) for rows in unmet)]
    if recipes:
        unrun = open_recipes(results, recipes, summaries)
        parts.append("## Recipes\n\n" + recipe_table(recipes, unrun))
        if unrun:
            wants = {name: recipe.get("wants", "nothing but time") for name, recipe in unrun.items()}
            reasons = "\n".join(f"- **{name}** wants {what}." for name, what in wants.items())
            parts.append(f"## What was not run to its end, and why\n\n{reasons}")
    return "\n\n".join(parts) + "\n"


def result_section(result: dict) -> str:
    """One result in Markdown: its tables, the command that gave them, and the receipts."""
    return f"{as_markdown(result_parts(result))}\n\n```bash\n{result['command']}\n```\n\n{receipts(result)}"


def result_parts(result: dict) -> list[str | list[list[str]]]:
    """One result as paragraphs and tables, for either page."""
    if "transfer" in result:
        return transfer.tables(result["transfer"])
    notes = [note for note in [selection_note(result)] if note]
    if "faithfulness" in result:
        return [*faithfulness.tables(result["faithfulness"]), *notes]
    return [score_rows(result), *notes, *findings.tables(result, ARMS)]


def as_markdown(parts: Sequence[str | list[list[str]]]) -> str:
    """Paragraphs and tables in Markdown."""
    return "\n\n".join(part if isinstance(part, str) else "\n".join(table_lines(part)) for part in parts)


def score_rows(result: dict) -> list[list[str]]:
    """A table of the scores: head, then a row per arm; without columns that no arm has."""
    scores = result["scores"]
    columns = [name for name in HEADS if any(score.get(name) is not None for score in scores.values())]
    undefined = any(score.get("hd95_undefined") for score in scores.values())
    unit = result.get("surface", {}).get("unit", "px")
    head = [
        "case with",
        *(f"{HEADS[name]} ({unit})" if name in IN_UNITS else HEADS[name] for name in columns),
        "cases",
        *["without HD95"] * undefined,
    ]
    rows = [head]
    for arm, score in scores.items():
        row = [ARMS.get(arm, arm)]
        for name in columns:
            cell = number(score.get(name), name)
            if interval := score.get(f"{name}_interval"):
                cell += f" [{number(interval[0], name)}, {number(interval[1], name)}]"
            row.append(cell)
        rows.append([*row, str(score["num_images"]), *[str(score.get("hd95_undefined", "-"))] * undefined])
        for label, told in score.get("classes", {}).items():
            cells = (number(told[name], name) if name in told else "" for name in columns)
            rows.append([f"class {label}", *cells, "", *[""] * undefined])
    return rows


def number(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if name in IN_UNITS else f"{100 * value:.2f}"


def selection_note(result: dict) -> str:
    notes = []
    if result["split"] == "validation":
        notes.append("The validation split also chose which epoch's weights were kept, so it flatters them.")
    if "scores" in result and not any("dice_per_image_interval" in score for score in result["scores"].values()):
        notes.append("Intervals were not computed.")
    return " ".join(notes)


def receipts(result: dict) -> str:
    """Split, seed, hashes, versions and hardware in one sentence."""
    facts = [f"Split {result['split']}, seed {result.get('seed')}"]
    for split, about in result.get("rows", {}).items():
        facts.append(f"{split}: {about['rows']} rows of {about['patients']} known patients")
    facts += [f"{split} data `{sha256[:16]}`" for split, sha256 in result.get("data", {}).items()]
    facts.append(f"weights `{str(result.get('weights_sha256'))[:16]}`")
    facts += [f"student's weights `{str(sha256)[:16]}`" for sha256 in result.get("students_sha256", ())]
    facts += [f"{key} {value}" for part in ("versions", "hardware") for key, value in result.get(part, {}).items()]
    if "surface" in result:
        facts.append("surface Dice within {tolerance} {unit}".format(**result["surface"]))
    return "; ".join(facts) + "."


def seed_table(groups: dict[str, list[str]], results: dict[str, dict]) -> str:
    """Mean and range over the seeds of each recipe."""
    rows = [["recipe", "seeds", "case with", "Dice per image", "Dice global"]]
    for recipe, names in groups.items():
        for arm in results[names[0]]["scores"]:
            cells = []
            for metric in ("dice_per_image", "dice_global"):
                values = [
                    100 * results[name]["scores"][arm][metric] for name in names if arm in results[name]["scores"]
                ]
                cells.append(f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})")
            rows.append([recipe, str(len(names)), ARMS.get(arm, arm), *cells])
    return "Mean and range over seeds:\n\n" + "\n".join(table_lines(rows))


def data_title(result: dict) -> str:
    """The data set's name; of a folder, its last part."""
    name = str(result["arguments"].get("dataset"))
    return PurePath(name).name if name.startswith((".", "/", "~")) else name


def mark_rows(data: str) -> list[list[str]]:
    """The table of what was published on a data set; empty where we know of nothing."""
    marks = [[title, *astuple(mark)] for key, (title, some) in MARKS.items() if key in plain(data) for mark in some]
    return [["published on", "score", "convention", "what it is"], *marks] if marks else []


def recipe_table(recipes: dict[str, dict], unrun: dict[str, dict]) -> str:
    rows = [["recipe", "data", "cost", "expected", "run"]]
    for name, recipe in recipes.items():
        done = "open" if name in unrun else "yes"
        rows.append([f"`experiments/{name}.yaml`", recipe["data"], recipe["cost"], recipe["expected"], done])
    return "\n".join(table_lines(rows))


def queue(unrun: dict[str, dict]) -> str:
    """The recipes that have no result yet, with their commands."""
    if not unrun:
        return "Every recipe has been run.\n"
    parts = []
    for name, recipe in unrun.items():
        told = [key for key in ("data", "cost", "wants", "expected", "decides") if key in recipe]
        facts = "\n".join(f"- {key.capitalize()}: {recipe[key]}" for key in told)
        commands = "\n".join(recipe["commands"])
        parts.append(f"### {name}\n\n{facts}\n\n```bash\n{commands}\n```")
    return "\n\n".join(parts) + "\n"


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def html_page(results: dict[str, dict], folder: Path, summaries: dict[str, dict]) -> str:
    """report.html: all in one file, that asks nothing of any other host. Where a result is the `result.json` of an
    evaluation, whose cases and pictures lie beside it, it shows them too. Below, what docs/ablations.md tells."""
    sections = []
    for name, result in results.items():
        parts = [f"<h2>{escape(name)}: {escape(data_title(result))}</h2>"]
        for part in result_parts(result):
            parts.append(f"<p>{escape(part)}</p>" if isinstance(part, str) else html_table(part))
        parts.append(f"<pre>{escape(result['command'])}</pre><p>{escape(receipts(result).replace('`', ''))}</p>")
        if "scores" in result:
            if marks := mark_rows(data_title(result)):
                parts.append(html_table(marks))
            parts += plots(result)
        if plane := result.get("transfer", {}).get("plane"):
            parts.append(picture(lambda file, plane=plane: write_plane(plane, file), "Features of the teacher, t-SNE"))
        if name == "result":
            parts += folder_parts(folder)
        sections.append("\n".join(parts))
    if summaries:
        sections.append(f"<h2>What helps, and what does not</h2><p>{escape(ablations.EXPLANATION)}</p>")
    sections += [html_summary(name, summary) for name, summary in summaries.items()]
    body = "\n".join(sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>TAMISeg results</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>TAMISeg results</h1>\n"
        "<p><strong>Research only, not a medical device.</strong></p>\n"
        f"<p>{escape(CONVENTIONS)}</p>\n{body}\n</body>\n</html>\n"
    )


def write_plane(plane: dict, output) -> None:
    """Draws the points that a result of `analyse-teacher` keeps."""
    from .plots import write_tokens

    write_tokens(*({kind: np.array(xy).T for kind, xy in some.items()} for some in plane.values()), output)


def html_summary(name: str, summary: dict) -> str:
    """A matrix of experiments: for each group its table, its plots and its verdicts."""
    from .plots import write_budgets, write_differences

    parts = [f"<h2>{escape(name)}</h2><p>{escape(ablations.about(summary))}</p>"]
    for group, table in summary["groups"].items():
        parts.append(f"<h3>{escape(ablations.words(group))}</h3><p>{escape(table['about'])}</p>")
        if curves := ablations.curves(table):
            words = "Dice over the share of masks that were shown"
            parts.append(picture(lambda file, curves=curves: write_budgets(curves, file), words))
        if verdicts := ablations.verdicts(table):
            rows = table["rows"]
            parts.append(picture(lambda file, rows=rows: write_differences(rows, file), "Differences of Dice"))
            lines = (f"<li><strong>{escape(variant)}</strong> {escape(said)}</li>" for variant, said in verdicts)
            parts.append(f"<ul>{''.join(lines)}</ul>")
        if table["rows"]:
            parts.append(html_table(ablations.group_rows(table)))
        for told in (ablations.searches(table), ablations.notes(table)):
            parts += [f"<p>{escape(told)}</p>"] * bool(told)
        parts.append(f"<pre>{escape(ablations.command(summary, group))}</pre>")
    return "\n".join(parts)


def plots(result: dict) -> list[str]:
    from .plots import write_calibration, write_findings, write_scores

    named = {ARMS.get(arm, arm): score for arm, score in result["scores"].items()}
    parts = [picture(lambda file: write_scores(named, file), "Dice of each arm, with 95 % intervals")]
    calibrated = {arm: score for arm, score in named.items() if "reliability" in score}
    if calibrated:
        words = "Calibration, and global Dice over the threshold"
        parts.append(picture(lambda file: write_calibration(calibrated, file), words))
    if found := result.get("findings"):
        parts.append(picture(lambda file: write_findings(found, ARMS, file), "Dice of each finding"))
    return parts


PICTURES = {
    "worst.png": "The worst cases",
    "qualitative.png": "Cases from worst to best",
    "sentences.png": "One picture under several sentences, from worst to best",
    "words.png": "What the pixels attend to",
    "tokens.png": "The teacher's features, by t-SNE: what lies close is alike",
}


def folder_parts(folder: Path) -> list[str]:
    """What one command wrote beside its result: cases, the worst first, and pictures."""
    parts = case_parts(folder / "cases.csv") if (folder / "cases.csv").is_file() else []
    for name, words in PICTURES.items():
        if (folder / name).is_file():
            parts += [f"<h3>{words}</h3>", image((folder / name).read_bytes(), words)]
    return parts


def case_parts(path: Path) -> list[str]:
    """Plots and the table of the cases of one evaluation, the worst first."""
    from .plots import write_areas, write_pairs

    with open(path, encoding="utf-8", newline="") as file:
        cases = list(csv.DictReader(file))
    by_arm: dict[str, list[dict]] = {}
    for case in cases:
        by_arm.setdefault(ARMS.get(case["arm"], case["arm"]), []).append(case)
    (title, first), *others = by_arm.items()
    parts = [picture(lambda file: write_areas(first, file), "Dice over the area of the target")]
    if others:
        dices = {arm: [float(case["dice"]) for case in some] for arm, some in by_arm.items()}
        parts.append(picture(lambda file: write_pairs(dices, file), "Dice of one picture under several sentences"))
    rows = [["case", "patient", "Dice", "HD95", "surface Dice", "sentence", *(f"Dice: {arm}" for arm, _ in others)]]
    for at in sorted(range(len(first)), key=lambda at: float(first[at]["dice"])):
        case = first[at]
        measured = [f"{float(case[key]):.3f}" if case[key] else "-" for key in ("dice", "hd95", "surface_dice")]
        also = [f"{float(some[at]['dice']):.3f}" for _, some in others]
        rows.append([case["name"], case["patient_id"] or "-", *measured, case["sentence"] or "-", *also])
    title = f"{len(first)} cases with {title}, the worst first"
    return [*parts, f"<details><summary>{escape(title)}</summary>{html_table(rows)}</details>"]


def html_table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    kinds = [' class="sentence"' if cell == "sentence" else "" for cell in rows[0]]
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>\n"
        for row in rows[1:]
    )
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>'


def picture(draw, words: str) -> str:
    """What `draw` writes into a file, as an image of the page."""
    file = BytesIO()
    draw(file)
    return image(file.getvalue(), words)


def image(png: bytes, words: str) -> str:
    return f'<p><img alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>'
