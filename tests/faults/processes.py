# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""One process against two with half the batch each: python -m tests.faults.processes

The same rows in the same global batches with BatchNorm statistics shared, on the built-in sample at 32 px, seed 1, on
CPUs with gloo; then the shipped model, evaluated by one and by two. Rounding alone parts two runs a little more with
each step; how much, a third run tells: one process again, whose convolutions add up in another order, in narrower
vectors.
"""

import json
import os
import tempfile
from pathlib import Path

from .injection import TINY, forkserver, free_port, outcome, place_among, run


# A frozen text encoder: otherwise each process draws its own dropout.
WORDS = (*TINY, "--max_train_samples", "64", "--max_eval_samples", "30", "--epochs", "5", "--seed", "1",
         "--freeze_text_encoder", "true")  # fmt: skip
TRAINED = ("train_loss", "train_gradient_norm", "validation_dice_per_image")
EVALUATED = ("dice_per_image", "dice_global", "precision", "recall")
RUNS = {
    "one process": (1, {}, ("--batch_size", "16")),
    "two": (2, {}, ("--batch_size", "8", "--sync_batch_norm", "true")),
    "one, other order": (1, {"ONEDNN_MAX_CPU_ISA": "SSE41"}, ("--batch_size", "16")),
}


def train(folder: Path) -> list[list[dict]]:
    """The lines of `metrics.jsonl` of each of `RUNS`."""
    lines = []
    for number, (processes, environment, words) in enumerate(RUNS.values()):
        ended = run(folder / str(number), *WORDS, *words, processes=processes, environment=environment)
        if any(ended.codes):
            raise RuntimeError(ended.said)
        lines.append(outcome(folder / str(number))["lines"])
    return lines


def evaluate(folder: Path) -> list[dict]:
    """The scores of the shipped model on rows of the sample's test split, by one process and by two."""
    scores = []
    for processes in (1, 2):
        told, port = folder / f"scores-{processes}.json", free_port()
        children = [forkserver().Process(target=_evaluate, args=(told, place_among(processes, rank, port)))
                    for rank in range(processes)]  # fmt: skip
        for child in children:
            child.start()
        for child in children:
            child.join()
        scores.append(json.loads(told.read_text()))
    return scores


def _evaluate(told: Path, environment: dict[str, str]) -> None:
    os.environ |= environment
    from accelerate import Accelerator

    from modeling_tamiseg import TAMISegForImageSegmentation
    from processing import TAMISegProcessor
    from processing.arms import text_arms
    from processing.data import column, load_rows
    from processing.evaluation import Segmenter
    from processing.evaluation import evaluate as evaluate_rows
    from processing.predict import SHIPPED_MODEL
    from processing.prompts import normalize_prompt

    accelerator = Accelerator(cpu=True)
    rows = load_rows("builtin", "test", max_rows=31)  # an odd number: one process has a row more
    segment = Segmenter(
        TAMISegForImageSegmentation.from_pretrained(SHIPPED_MODEL), TAMISegProcessor.from_pretrained(SHIPPED_MODEL)
    )
    arms = text_arms([normalize_prompt(prompt) for prompt in column(rows, "prompt")])
    scores = evaluate_rows(accelerator, segment, rows, arms, 4)
    if accelerator.is_main_process:
        told.write_text(json.dumps(scores))
    accelerator.end_training()


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        print(f"| training | {' | '.join(RUNS)} | two less one | other less one |\n|---|---|---|---|---|---|")
        for lines in zip(*train(Path(scratch)), strict=True):
            for name in TRAINED:
                one, two, again = (line[name] for line in lines)
                print(
                    f"| epoch {lines[0]['epoch']}, {name.replace('_', ' ')} | {one:.7f} | {two:.7f} | {again:.7f} "
                    f"| {two - one:+.0e} | {again - one:+.0e} |"
                )
        one, two = evaluate(Path(scratch))
        print("\n| evaluation | one process | two | two less one |\n|---|---|---|---|")
        for arm in one:
            for name in EVALUATED:
                a, b = one[arm][name], two[arm][name]
                print(f"| {arm.replace('_', ' ')}, {name.replace('_', ' ')} | {a:.7f} | {b:.7f} | {b - a:+.0e} |")


if __name__ == "__main__":
    main()
