# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation's scores depend on: the finding that the sentence states, and the sentence that was asked about
the same picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .metrics import SegmentationMeter, bootstrap, in_percent, mean_with_interval
from .sentences import NUMBERS, parse


FEWEST = 5  # cases that a group must have to be told of
MARGIN = 0.01  # a Dice that differs by less is the same


def findings_of(sentence: str | None) -> dict[str, list[str]]:
    """The findings that a sentence states, in words: "two infected areas, lower left lung" gives {"side": ["left"],
    "count": ["two"], "zones": ["lower left"]}. Nothing where the sentence is of no style that `parse` knows."""
    known = parse(sentence)
    if known is None:
        return {}
    found = {name: _in_words(value) for name, value in known[1].items()}
    if len(found.get("side", ())) > 1:
        found["side"] = ["both"]
    return found


def _in_words(value) -> list[str]:
    match value:
        case int():
            return [NUMBERS[value] if value < len(NUMBERS) else str(value)]
        case str():
            return [value]
        case None:
            return ["none"]
    # ("left", "upper") is read "upper left".
    return sorted({" ".join(part[::-1]) if isinstance(part, tuple) else part for part in value})


def score_findings(
    by_arm: dict[str, Sequence[dict]], prompts: Sequence[str | None], seed: int
) -> dict[str, dict[str, dict]]:
    """Scores the cases of each finding.

    Args:
        by_arm: the cases of each arm, in the order of the rows, with their `index`.
        prompts: the row's own sentence, by which a case is grouped whatever it was asked.
        seed: of the resampling.

    Returns:
        attribute -> value -> `cases`, and `scores`: arm -> dice_per_image, its interval, dice_global. The values of an
        attribute by their number of cases; those of fewer than `FEWEST` are left out, and so are single patients. A
        case that states several values (zones) counts for each.
    """
    groups: dict[str, dict[str, set[int]]] = {}
    for index, prompt in enumerate(prompts):
        for attribute, values in findings_of(prompt).items():
            for value in values:
                groups.setdefault(attribute, {}).setdefault(value, set()).add(index)
    told: dict[str, dict[str, dict]] = {}
    for attribute, values in groups.items():
        for value, indices in sorted(values.items(), key=lambda item: (-len(item[1]), item[0])):
            if len(indices) >= FEWEST:
                scores = {
                    arm: _dice_of([c for c in cases if c["index"] in indices], seed) for arm, cases in by_arm.items()
                }
                told.setdefault(attribute, {})[value] = {"cases": len(indices), "scores": scores}
    return told


def _dice_of(cases: Sequence[dict], seed: int) -> dict:
    names = ("dice_per_image", "dice_per_image_interval", "dice_global")
    scores = {**SegmentationMeter(cases).compute(), **bootstrap(cases, seed)}
    return {name: scores[name] for name in names}


def pair_arms(by_arm: dict[str, Sequence[dict]], seed: int) -> dict[str, dict]:
    """One picture under several sentences: each arm against the first, case by case.

    Returns:
        For each arm but the first: `difference`, the mean of its Dice less that of the first on the same picture, with
        the interval over patients (narrower than those of the two means, which share what makes a picture hard), and
        the shares of the cases that are `worse` and `better` by more than `MARGIN`.
    """
    (_, first), *others = by_arm.items()
    paired = {}
    for arm, cases in others:
        differences = np.array([case["dice"] - own["dice"] for case, own in zip(cases, first, strict=True)])
        paired[arm] = {
            "difference": mean_with_interval(cases, differences, seed),
            "worse": float((differences < -MARGIN).mean()),
            "better": float((differences > MARGIN).mean()),
        }
    return paired


def tables(result: dict, titles: dict[str, str]) -> list[str | list[list[str]]]:
    """The entries `findings` and `paired` of a result, as paragraphs and tables (the first row of each is its head);
    none where a result has none of them.

    Args:
        result: of `tamiseg evaluate`, also of an old one.
        titles: of the arms.
    """
    parts = []
    if findings := result.get("findings"):
        arms = list(result["scores"])
        rows = [["finding", "", "cases", *(titles[arm] for arm in arms)]]
        for attribute, values in findings.items():
            for value, some in values.items():
                first, *others = (some["scores"][arm] for arm in arms)
                cells = [in_percent(first["dice_per_image"], first["dice_per_image_interval"])]
                cells += [in_percent(score["dice_per_image"]) for score in others]
                rows.append([attribute, value, str(some["cases"]), *cells])
        parts += ["Dice per image of each finding that the case's own sentence states, whatever was asked:", rows]
    if paired := result.get("paired"):
        rows = [["asked instead", "Dice per image, difference", "cases worse", "cases better"]]
        for arm, some in paired.items():
            change = in_percent(some["difference"]["mean"], some["difference"]["interval"])
            rows.append([titles[arm], change, in_percent(some["worse"]), in_percent(some["better"])])
        title = titles[next(iter(result["scores"]))]
        parts += [
            f"One picture under several sentences, case by case against {title} (worse and better: by more than "
            f"{100 * MARGIN:.0f} point of Dice):",
            rows,
        ]
    return parts
