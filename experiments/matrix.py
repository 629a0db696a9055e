# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs a matrix of experiments: every variant of a file, trained with every seed, scored once on test.

    python -m experiments.matrix experiments/matrix_qata_112.yaml --jobs 2
    python -m experiments.matrix experiments/matrix_qata_112.yaml --groups parts --seeds 0 --list

What has a result file in `experiments/results/matrix/` is skipped, a broken run goes on from its last checkpoint, and
`Ctrl-C` ends at the next step: the same command goes on. Weights and cases stay in `runs/`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import yaml


RESULTS = Path("experiments/results/matrix")


@dataclass(frozen=True)
class Training:
    """One stage of one variant under one seed; `fields` are those of train_hf.py."""

    stage: str
    name: str
    seed: int
    fields: dict
    folder: Path

    @property
    def done(self) -> bool:
        return (self.folder / "result.json").is_file()

    def command(self) -> list[str]:
        words = ["train_hf.py", "--stage", self.stage, "--seed", str(self.seed), "--output_dir", str(self.folder)]
        for key, value in self.fields.items():
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            words += [f"--{key}", text.lower() if isinstance(value, bool) else text]
        return [*words, "--resume", "auto"]


@dataclass(frozen=True)
class Variant:
    """What becomes a row of a table: a training on top of another one (or none), and its score on test."""

    group: str
    name: str
    seed: int
    start: Training | None
    training: Training
    arms: tuple[str, ...]
    test_rows: int | None

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
        ValueError: a group or a start has no such name.
    """
    matrix = yaml.safe_load(path.read_text(encoding="utf-8"))
    if unknown := set(groups or ()) - set(matrix["groups"]):
        raise ValueError(f"{path} has no group {sorted(unknown)}: choose of {sorted(matrix['groups'])}.")
    runs = Path("runs") / path.stem
    variants = []
    for group, about in matrix["groups"].items():
        if groups and group not in groups:
            continue
        for seed in seeds or matrix["seeds"]:
            for name, own in about["variants"].items():
                fields = {**matrix["fields"], **about.get("fields", {}), **own}
                start = fields.pop("start", None)
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
                    fields["vision_model"] = str(folder / "best")
                folder = runs / group / f"{name}-seed{seed}"
                arms = ("no_text",) if fields["prompt_dropout"] == 1 else ("full_text", "no_text", "shuffled_text")
                training = Training("finetune", name, seed, fields, folder)
                variants.append(Variant(group, name, seed, first, training, arms, about.get("test_rows")))
    return variants


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
        raise RuntimeError(f"{log} ends with: {log.read_text(encoding='utf-8').strip().splitlines()[-1]}")


def score(variant: Variant, results: Path, threads: int) -> dict:
    """Trains and scores a variant, and writes its result file."""
    started = time.time()
    training = variant.training
    if not training.done:
        run(training.command(), training.folder / "log.txt", threads)
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
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{variant.key}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("matrix", type=Path, help="file of the matrix")
    parser.add_argument("--groups", nargs="+", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    parser.add_argument("--list", action="store_true", help="only say what is open")
    arguments = parser.parse_args()
    variants = read_matrix(arguments.matrix, arguments.groups, arguments.seeds)
    open_ones = [v for v in variants if not (RESULTS / f"{v.key}.json").is_file()]
    print(f"{len(variants)} runs, {len(open_ones)} of them open", flush=True)
    if arguments.list:
        print("\n".join(v.key for v in open_ones))
        return 0
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    failed = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        try:
            starts, waiting = {}, {}
            for variant in open_ones:
                start = variant.start
                if start is not None and not start.done and start.folder not in starts:
                    starts[start.folder] = pool.submit(run, start.command(), start.folder / "log.txt", threads)
                waiting[pool.submit(_after, starts.get(start and start.folder), variant, threads)] = variant
            for future in as_completed(waiting):
                variant = waiting[future]
                try:
                    result = future.result()
                except RuntimeError as error:
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
    return 1 if failed else 0


def _after(start, variant: Variant, threads: int) -> dict:
    # A start is handed to the pool before what waits for it, so somebody is at work on it.
    if start is not None:
        start.result()
    return score(variant, RESULTS, threads)


if __name__ == "__main__":
    sys.exit(main())
