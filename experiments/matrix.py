# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs a matrix of experiments: every variant of a file, trained with every seed, scored once on test.

    python -m experiments.matrix experiments/matrix_qata_cpu.yaml --jobs 2
    python -m experiments.matrix experiments/matrix_qata_cpu.yaml --groups parts --seeds 0 --list
    python -m experiments.matrix experiments/matrix_qata_resnet50_256.yaml --dry_run

Where a group has a `search`, a field and values for it, each variant is first trained with all of them under the first
seed, and the value that scores best on validation is what all its seeds take.

What has a result file in `experiments/results/NAME/` is skipped, a broken run goes on from its last checkpoint, and
`Ctrl-C` ends at the next step: the same command goes on. Weights and tables of cases stay in `runs/`; the Dice of
each test case is kept beside the result as `.npz`, without names. At the end (or by `--summarise`) the variants are
compared into `summary.json`, of which `tamiseg report` makes docs/ablations.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from experiments.baselines import load as load_baseline
from modeling_tamiseg import TAMISegForImageSegmentation
from modeling_tamiseg.alignment import text_hidden_size
from processing.comparison import compare, holm, over_seeds, read_cases
from processing.hub import without_folders
from processing.metrics import mean_with_interval, unit_of
from train_hf import FREE_FIELDS, Arguments, as_words, parse_arguments


RESULTS = Path("experiments/results")
# Fields that are read here, as train_hf.py sets them where nothing is said.
ALWAYS_THERE = {"prompt_dropout": Arguments.prompt_dropout, "image_size": Arguments.image_size}


@dataclass(frozen=True)
class Training:
    """One stage of one variant under one seed; `fields` are those of train_hf.py."""

    stage: str
    name: str
    seed: int
    fields: dict
    folder: Path

    def done(self) -> bool:
        """Whether it has been run to its end.

        Raises:
            RuntimeError: it has, but with other fields than these.
        """
        if not (self.folder / "result.json").is_file():
            return False
        trained = json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
        if changed := self.changed(trained["arguments"]):
            raise RuntimeError(f"{self.folder} was trained with {changed}: remove it to train it anew.")
        return True

    def changed(self, arguments: dict) -> str:
        """Where a finished training was told otherwise than it would be now; empty where it was not."""
        asked = without_folders(asdict(parse_arguments(self.command()[1:])))  # as result files have them
        other = [
            f"{key} {arguments[key]}, not {value}"
            for key, value in asked.items()
            if key not in FREE_FIELDS and arguments.get(key, value) != value  # an older file lacks a newer field
        ]
        return "; ".join(other)

    def command(self) -> list[str]:
        words = ["train_hf.py", "--stage", self.stage, "--seed", str(self.seed), "--output_dir", str(self.folder)]
        return [*words, *as_words(self.fields), "--resume", "auto"]


@dataclass(frozen=True)
class Variant:
    """What becomes a row of a table: a training on top of another one (or none), and its score on test."""

    group: str
    name: str
    seed: int
    start: Training | None
    candidates: tuple[Training, ...]  # one per value that is searched; one where nothing is, or the search is over
    searched: str | None
    arms: tuple[str, ...]
    test_rows: int | None

    @property
    def training(self) -> Training:
        (training,) = self.candidates
        return training

    @property
    def key(self) -> str:
        return f"{self.group}-{self.name}-seed{self.seed}"

    def command(self) -> list[str]:
        folder, fields = self.training.folder, self.training.fields
        words = ["-m", "processing.command_line", "evaluate", str(folder / "best"), "--split", "test"]
        words += ["--dataset", fields["dataset"], "--output", str(folder / "test"), "--resume"]
        if self.test_rows is not None:
            words += ["--max_rows", str(self.test_rows)]
        if "model_class" in fields:
            words += ["--adapter", "experiments.baselines:load"]
        return [*words, "--arms", *self.arms]


def read_matrix(path: Path, groups: list[str] | None = None, seeds: list[int] | None = None) -> list[Variant]:
    """The variants of a matrix file, seed by seed, so that each seed is a whole comparison before the next begins.

    Raises:
        ValueError: a group, a seed, a start or what a variant is compared to is not in the file, or a group searches
            more than one field.
    """
    matrix = yaml.safe_load(path.read_text(encoding="utf-8"))
    if unknown := set(groups or ()) - set(matrix["groups"]):
        raise ValueError(f"{path} has no group {sorted(unknown)}: choose of {sorted(matrix['groups'])}.")
    if unknown := set(seeds or ()) - set(matrix["seeds"]):
        raise ValueError(f"{path} has no seed {sorted(unknown)}: choose of {matrix['seeds']}, or add it there.")
    runs = Path("runs") / path.stem
    variants = []
    for group, about in matrix["groups"].items():
        if groups and group not in groups:
            continue
        search = about.get("search", {})
        if len(search) > 1:
            raise ValueError(f"{path}: group {group} searches {sorted(search)}: one field is what can be searched.")
        searched = next(iter(search), None)
        for seed in seeds or matrix["seeds"]:
            for name, own in about["variants"].items():
                fields = {**ALWAYS_THERE, **matrix["fields"], **about.get("fields", {}), **own}
                start, against = fields.pop("start", None), fields.pop("against", about["against"])
                if against not in about["variants"]:
                    raise ValueError(f"{group}/{name} is compared to '{against}', which {path} does not describe.")
                first = None
                if start is not None:
                    if start not in matrix["starts"]:
                        raise ValueError(f"{group}/{name} starts from '{start}', which {path} does not describe.")
                    budget = {"label_budget": fields["label_budget"]} if "label_budget" in fields else {}
                    label = f"-{budget['label_budget']}" if budget else ""
                    folder = runs / "starts" / f"{start}{label}-seed{seed}"
                    first = Training(
                        "pretrain", start, seed, {**matrix["fields"], **matrix["starts"][start], **budget}, folder
                    )
                    fields["vision_model"] = (folder / "best").as_posix()
                arms = ("no_text",) if fields["prompt_dropout"] == 1 else ("full_text", "no_text", "shuffled_text")
                candidates = []
                for value in _values(path, group, name, search):
                    ending = "" if value is None else f"-{searched}-{value}"
                    folder = runs / group / f"{name}-seed{seed}{ending}"
                    own = {} if value is None else {searched: value}
                    candidates.append(Training("finetune", name, seed, {**fields, **own}, folder))
                test_rows = about.get("test_rows", matrix.get("test_rows"))
                variants.append(Variant(group, name, seed, first, tuple(candidates), searched, arms, test_rows))
    return variants


def _values(path: Path, group: str, name: str, search: dict) -> list:
    """What a variant takes of the searched field: what was chosen, or all, or [None] where there is no search."""
    if not search:
        return [None]
    (values,) = search.values()
    file = _search_file(RESULTS / path.stem, group, name)
    if not file.is_file():
        return values
    found = json.loads(file.read_text(encoding="utf-8"))
    if [entry["value"] for entry in found["scores"]] != values:
        raise ValueError(f"'{file}' is of a search over other values than {path}: remove it to search anew.")
    return [found["chosen"]]


def _search_file(results: Path, group: str, name: str) -> Path:
    return results / f"search-{group}-{name}.json"


def has_result(variant: Variant, results: Path) -> bool:
    """Whether a variant has been trained and scored, with what its search chose where it has one.

    Raises:
        ValueError: it has, but with other fields than the matrix gives it now, or on another stage 1.
    """
    file = results / f"{variant.key}.json"
    if not file.is_file() or len(variant.candidates) > 1:
        return False
    trained = json.loads(file.read_text(encoding="utf-8"))["training"]["arguments"]
    if changed := variant.training.changed(trained):
        raise ValueError(f"'{file}' is of a training with {changed}: remove it to run that anew.")
    try:
        if variant.start is not None:
            variant.start.done()
    except RuntimeError as error:
        raise ValueError(f"'{file}' is of an older stage 1: remove it too. {error}") from error
    return True


def choose(variant: Variant, results: Path) -> str:
    """Writes which candidate scored best on validation, and says it."""
    key, entries = variant.searched, []
    for training in variant.candidates:
        trained = json.loads((training.folder / "result.json").read_text(encoding="utf-8"))
        entry = {"value": training.fields[key], "score": trained["scores"][variant.arms[0]]["dice_per_image"]}
        receipt = ("command", "weights_sha256", "data", "versions", "hardware")
        entries.append(entry | {name: trained[name] for name in receipt})
    scores = {entry["value"]: entry["score"] for entry in entries}
    chosen = max(scores, key=scores.get)
    told = {"field": key, "seed": variant.seed, "chosen": chosen, "split": "validation", "metric": "dice_per_image"}
    told |= {"scores": entries}
    results.mkdir(parents=True, exist_ok=True)
    file = _search_file(results, variant.group, variant.name)
    file.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    shown = ", ".join(f"{value} {100 * score:.2f}" for value, score in scores.items())
    return f"{variant.group}-{variant.name}: {key} {chosen} of {shown} on validation"


def run(words: list[str], log: Path, threads: int) -> None:
    """Runs a command of Python with its words in a log; raises with the log's end where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        ended = subprocess.run(
            [sys.executable, *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            check=False,
        )
    if ended.returncode:
        said = log.read_text(encoding="utf-8").strip().splitlines() or [f"nothing (exit code {ended.returncode})"]
        raise RuntimeError(f"{log} ends with: {said[-1]}")


def score(variant: Variant, results: Path, threads: int) -> dict:
    """Trains and scores a variant, and writes its result file."""
    started = time.time()
    training = variant.training
    train(training, threads)
    run(variant.command(), training.folder / "log.txt", threads)
    result = json.loads((training.folder / "test" / "result.json").read_text(encoding="utf-8"))
    for scores in result["scores"].values():  # the bins are the bulk of the file
        scores.pop("reliability", None)
    trained = json.loads((training.folder / "result.json").read_text(encoding="utf-8"))
    result |= {
        "group": variant.group,
        "variant": variant.name,
        "seed": variant.seed,
        "training": {key: trained[key] for key in ("command", "arguments", "data", "steps", "scores")},
        "minutes": round((time.time() - started) / 60, 1),
        **cost(training),
    }
    results.mkdir(parents=True, exist_ok=True)
    keep_dice(variant, results)  # first, since the result's file says that all is done
    (results / f"{variant.key}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("matrix", type=Path, help="file of the matrix")
    parser.add_argument("--groups", nargs="+", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    parser.add_argument("--list", action="store_true", help="only say what is open")
    parser.add_argument("--dry_run", action="store_true", help="try every variant for a step, and keep nothing")
    parser.add_argument("--summarise", action="store_true", help="only compare what has been run")
    arguments = parser.parse_args()
    results = RESULTS / arguments.matrix.stem
    try:
        variants = read_matrix(arguments.matrix, arguments.groups, arguments.seeds)
        done = {variant.key for variant in read_matrix(arguments.matrix) if has_result(variant, results)}
        open_ones = [variant for variant in variants if variant.key not in done]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if arguments.summarise:
        return summarise(arguments.matrix, results)
    print(f"{len(variants)} runs, {len(open_ones)} of them open", flush=True)
    if arguments.list:
        print("\n".join(v.key for v in open_ones))
        return 0
    if arguments.dry_run:
        return try_all(open_ones)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = max(1, cores // arguments.jobs)
    failed = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        try:
            open_names = {(v.group, v.name) for v in open_ones if len(v.candidates) > 1}
            first = yaml.safe_load(arguments.matrix.read_text(encoding="utf-8"))["seeds"][:1]
            undecided = [
                v for v in read_matrix(arguments.matrix, arguments.groups, first) if (v.group, v.name) in open_names
            ]
            starts, searching, waiting = {}, {}, {}
            for variant in undecided:
                start = _begin(variant, starts, pool, threads)
                searching[variant.key] = [pool.submit(_after, start, train, t, threads) for t in variant.candidates]
            for variant in undecided:
                try:
                    for future in searching[variant.key]:
                        future.result()
                    print(choose(variant, results), flush=True)
                except (RuntimeError, OSError) as error:
                    failed += 1
                    print(f"{variant.key}: {error}", flush=True)
            for variant in read_matrix(arguments.matrix, arguments.groups, arguments.seeds):
                if len(variant.candidates) > 1 or variant.key in done:  # the first: its search failed
                    continue
                start = _begin(variant, starts, pool, threads)
                waiting[pool.submit(_after, start, score, variant, results, threads)] = variant
            for future in as_completed(waiting):
                variant = waiting[future]
                try:
                    result = future.result()
                except (RuntimeError, OSError) as error:
                    failed += 1
                    print(f"{variant.key}: {error}", flush=True)
                    continue
                said = ", ".join(
                    f"{arm} {100 * scores['dice_per_image']:.2f} / {100 * scores['dice_global']:.2f}"
                    for arm, scores in result["scores"].items()
                )
                print(f"{variant.key}: {said} ({result['minutes']} min)", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            return 130
    return summarise(arguments.matrix, results) or (1 if failed else 0)


def try_all(variants: list[Variant]) -> int:
    """Each training of each variant by train_hf.py's `--dry_run`, under the first seed only. The encoder that a stage
    1 starts from stands in for what comes of it."""
    tried, failed = set(), 0
    with tempfile.TemporaryDirectory() as folder:
        for variant in variants:
            start = variant.start
            for training in filter(None, (start, variant.candidates[0])):
                if training.stage == "finetune" and start is not None:
                    training = replace(
                        training, fields={**training.fields, "vision_model": start.fields["vision_model"]}
                    )
                training = replace(training, seed=variants[0].seed, folder=Path(folder) / "never")
                words = [*training.command(), "--dry_run", "true"]
                if tuple(words) in tried:
                    continue
                tried.add(tuple(words))
                began = time.time()
                try:
                    run(words, Path(folder) / "log.txt", os.cpu_count() or 1)
                    said = f"ready ({time.time() - began:.0f} s)"
                except RuntimeError as error:
                    failed += 1
                    said = str(error)
                print(f"{variant.group}-{variant.name}, {training.stage}: {said}", flush=True)
    print(f"{len(tried)} trainings tried, {failed} of them not ready", flush=True)
    return 1 if failed else 0


def _begin(variant: Variant, starts: dict, pool, threads: int):
    """The future of a variant's stage 1, handed to the pool if nobody did; None where it has none."""
    start = variant.start
    if start is not None and start.folder not in starts:
        starts[start.folder] = pool.submit(train, start, threads)
    return starts.get(start and start.folder)


def _after(start, function, *arguments):
    # A start is handed to the pool before what waits for it, so somebody is at work on it.
    if start is not None:
        start.result()
    return function(*arguments)


def train(training: Training, threads: int) -> None:
    if not training.done():
        run(training.command(), training.folder / "log.txt", threads)


def keep_dice(run: Variant, results: Path) -> None:
    """Keeps the Dice of each test case beside the result of a run: it can then be compared on other machines too."""
    by_arm = {arm: list(read_cases(run.training.folder / "test", arm).values()) for arm in run.arms}
    cases = by_arm[run.arms[0]]
    units = {unit: number for number, unit in enumerate(dict.fromkeys(map(unit_of, cases)))}
    names = "\n".join(case["name"] for case in cases)
    np.savez_compressed(
        results / f"{run.key}.npz",
        rows=hashlib.sha256(names.encode()).hexdigest(),  # tells whether two runs were asked the same
        patient=np.array([units[unit_of(case)] for case in cases], dtype=np.int16),
        **{arm: np.array([case["dice"] for case in some], dtype=np.float32) for arm, some in by_arm.items()},
    )


def kept_cases(run: Variant, results: Path, arm: str) -> dict:
    """What `read_cases` gives, of what `keep_dice` kept: numbers stand for names and patients."""
    with np.load(results / f"{run.key}.npz", allow_pickle=False) as kept:
        rows, patients, dices = str(kept["rows"]), kept["patient"], kept[arm]
    return {
        (rows, number): {"name": str(number), "patient_id": str(patient), "dice": float(dice)}
        for number, (patient, dice) in enumerate(zip(patients, dices, strict=True))
    }


def summarise(matrix: Path, results: Path) -> int:
    try:
        write_summary(matrix, results)
    except ValueError as error:
        print(error, file=sys.stderr, flush=True)
        return 2
    return 0


def write_summary(matrix: Path, results: Path) -> None:
    """Compares the variants of each group on the cases of test, and writes `summary.json`: scores per seed with the
    interval of their mean, paired differences to the variant that the group names (or the variant itself, by
    `against`), both tests Holm-corrected within the group, what single seeds leave open, and what each model computes.

    Of a group of which a run's cases were never kept, scores and differences stay as the last summary told them.

    Raises:
        ValueError: such a group has no summary yet, runs of one group were asked different rows, or the matrix has
            been changed since a run.
    """
    written = results / "summary.json"
    before = json.loads(written.read_text(encoding="utf-8"))["groups"] if written.is_file() else {}
    groups = yaml.safe_load(matrix.read_text(encoding="utf-8"))
    by_name: dict[tuple[str, str], list[Variant]] = {}
    missing: dict[str, list[str]] = {}
    for variant in read_matrix(matrix):
        if has_result(variant, results):
            by_name.setdefault((variant.group, variant.name), []).append(variant)
        else:
            missing.setdefault(variant.group, []).append(f"{variant.name}, seed {variant.seed}")
    summary = {"about": {key: groups["recipe"][key] for key in ("data", "cost")}, "matrix": os.path.relpath(matrix)}
    summary["groups"] = {}
    for name, group in groups["groups"].items():
        made = [run for (of, _), runs in by_name.items() if of == name for run in runs]
        unkept = [run.key for run in made if not (results / f"{run.key}.npz").is_file()]
        if unkept and not before.get(name, {}).get("rows"):
            raise ValueError(f"'{results}' holds {unkept[0]}.json without its .npz: remove it to run that anew.")
        if unkept:
            print(f"{name}: the cases of some runs were not kept, so its summary stays as it was", flush=True)
            rows = before[name]["rows"]
        else:
            rows = []
            for variant, own in group["variants"].items():
                if runs := by_name.get((name, variant)):
                    against = own.get("against", group["against"])
                    rows.append(_summary_row(runs, against, by_name.get((name, against), []), results))
        for arm in ("main", "no_text"):
            compared = [row["compared"][arm] for row in rows if arm in row["compared"]]
            for test in ("wilcoxon", "t"):
                # What has no p does not take part: its differences do not spread (or there is one patient alone).
                known = [entry for entry in compared if entry[f"p_{test}"] is not None]
                for entry, p in zip(known, holm([entry[f"p_{test}"] for entry in known]), strict=True):
                    entry[f"p_{test}_holm"] = p
            for entry in compared:
                entry["seed_interval"] = over_seeds(entry["difference_by_seed"])
        summary["groups"][name] = {
            "about": group["about"],
            "cases_kept": not unkept,
            "rows": rows,
            "missing": missing.get(name, []),
        }
    written.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _summary_row(runs: list[Variant], against: str, others: list[Variant], results: Path) -> dict:
    """Scores of a variant by seed, and its differences to another one over the seeds that both have. `main` is the arm
    that a model was chosen by: its own sentence, or none where it never saw one."""
    files = [json.loads((results / f"{run.key}.json").read_text(encoding="utf-8")) for run in runs]
    scores = {
        arm: {metric: [file["scores"][arm][metric] for file in files] for metric in ("dice_per_image", "dice_global")}
        for arm in runs[0].arms
    }
    row = {"variant": runs[0].name, "main": runs[0].arms[0], "seeds": [run.seed for run in runs], "scores": scores}
    for arm, told in scores.items():
        first, *other_seeds = cases = [kept_cases(run, results, arm) for run in runs]
        if any(some.keys() != first.keys() for some in other_seeds):
            raise ValueError(f"{runs[0].group}-{runs[0].name}: its seeds were scored on different rows; run it anew.")
        dices = np.mean([[case["dice"] for case in some.values()] for some in cases], axis=0)
        told["interval"] = mean_with_interval(list(first.values()), dices)["interval"]
    if budget := runs[0].training.fields.get("label_budget"):
        row["label_budget"] = budget
    row["minutes"] = [file["minutes"] for file in files]
    row |= {key: files[0][key] for key in ("gflops", "million_parameters")}
    search = _search_file(results, runs[0].group, runs[0].name)
    if search.is_file():
        found = json.loads(search.read_text(encoding="utf-8"))
        row["search"] = {**found, "scores": [{key: one[key] for key in ("value", "score")} for one in found["scores"]]}
    row |= {"against": against, "compared": {}}
    shared = [(ours, theirs) for ours in runs for theirs in others if ours.seed == theirs.seed]
    if shared and runs[0].name != against:
        for arm in ("main", "no_text"):
            sides = [[], []]
            for pair in shared:
                for side, run in zip(sides, pair, strict=True):
                    side.append(kept_cases(run, results, run.arms[0] if arm == "main" else arm))
            ours, theirs = (
                np.array([np.mean([case["dice"] for case in some.values()]) for some in side]) for side in sides
            )
            row["compared"][arm] = {**compare(*sides), "difference_by_seed": (ours - theirs).tolist()}
    return row


def cost(training: Training) -> dict:
    """GFLOPs of one picture with twelve words read, and millions of parameters, without the text encoder and, in a
    baseline that does not read it, without our image encoder."""
    fields, folder = training.fields, str(training.folder / "best")
    with_code = load_baseline(folder).model if "model_class" in fields else None
    model = (with_code or TAMISegForImageSegmentation.from_pretrained(folder)).cpu().eval()
    words = torch.zeros(1, 12, text_hidden_size(model.config))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(
            torch.zeros(1, 3, fields["image_size"], fields["image_size"]),
            text_embeds=words,
            attention_mask=torch.ones(1, 12, dtype=torch.long),
        )
    unread = ("text_encoder.",) if getattr(model, "reads_our_encoder", True) else ("text_encoder.", "vision_encoder.")
    used = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(unread))
    return {"gflops": counter.get_total_flops() / 1e9, "million_parameters": used / 1e6}


if __name__ == "__main__":
    sys.exit(main())
