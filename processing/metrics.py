# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Dice, IoU, precision and recall, in both conventions of the field: averaged over images, and over pooled pixels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def confusion(prediction: np.ndarray, target: np.ndarray) -> tuple[int, int, int, int]:
    """Counts the pixels of two masks.

    Args:
        prediction: bool, any shape.
        target: bool, the same shape.

    Returns:
        True positives, false positives, false negatives, true negatives.

    Raises:
        ValueError: an array is not boolean, or the shapes differ.
    """
    prediction, target = np.asarray(prediction), np.asarray(target)
    if prediction.dtype != bool or target.dtype != bool:
        raise ValueError(f"Masks are boolean arrays: turn {prediction.dtype} and {target.dtype} into bool first.")
    if prediction.shape != target.shape:
        raise ValueError(f"The prediction is {prediction.shape}, the target {target.shape}: resize one of them first.")
    tp = int(np.count_nonzero(prediction & target))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(target)) - tp
    return tp, fp, fn, target.size - tp - fp - fn


def dice(tp, fp, fn):
    """2 tp / (2 tp + fp + fn), in [0, 1], of numbers or arrays of counts. Empty predicted empty scores 1."""
    return _share(2 * np.asarray(tp), np.add(fp, fn))


def iou(tp, fp, fn):
    """tp / (tp + fp + fn), in [0, 1], of numbers or arrays of counts. Empty predicted empty scores 1."""
    return _share(np.asarray(tp), np.add(fp, fn))


class SegmentationMeter:
    """Collects one case per sentence and picture, and sums them up.

    Attributes:
        cases: dicts with name, patient_id, tp, fp, fn, tn, dice and iou, in the order they were added. A name may come
            several times: one picture under several sentences.
    """

    def __init__(self):
        self.cases: list[dict] = []

    def add(self, prediction: np.ndarray, target: np.ndarray, name: str, patient_id: str | None = None) -> None:
        """Adds one case.

        Args:
            prediction: bool, any shape.
            target: bool, the same shape.
            name: which picture.
            patient_id: whose picture, where known.

        Raises:
            ValueError: an array is not boolean, or the shapes differ; the sentence names the case.
        """
        try:
            tp, fp, fn, tn = confusion(prediction, target)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        scores = {"dice": float(dice(tp, fp, fn)), "iou": float(iou(tp, fp, fn))}
        self.cases.append({"name": name, "patient_id": patient_id, "tp": tp, "fp": fp, "fn": fn, "tn": tn, **scores})

    def extend(self, cases: Iterable[dict]) -> None:
        """Adds the `cases` of another meter, as gathered from another process."""
        self.cases.extend(cases)

    def compute(self) -> dict[str, float | int | None]:
        """Sums up the cases.

        Returns:
            dice_per_image, iou_per_image: the mean over cases, where empty predicted empty counts 1 and anything
                predicted where the target is empty counts 0.
            dice_global, iou_global, precision, recall: from the pixels of all cases pooled, so IoU = D / (2 - D). A
                share of no pixels (precision where nothing was predicted, recall where nothing was to be found) is 1
                when all masks are empty on both sides, else 0.
            num_images, num_empty_targets: cases, and those with an empty target.
            empty_target_false_positive_rate: the share of the empty targets where something was predicted; None where
                no target is empty.

        Raises:
            ValueError: there are no cases.
        """
        if not self.cases:
            raise ValueError("There is nothing to score: add at least one case.")
        tp, fp, fn = (np.array([case[key] for case in self.cases]) for key in ("tp", "fp", "fn"))
        pooled = tp.sum(), fp.sum(), fn.sum()
        false_alarms = fp[tp + fn == 0] > 0
        all_empty = sum(pooled) == 0
        return {
            "dice_per_image": float(dice(tp, fp, fn).mean()),
            "iou_per_image": float(iou(tp, fp, fn).mean()),
            "dice_global": float(dice(*pooled)),
            "iou_global": float(iou(*pooled)),
            "precision": float(_share(pooled[0], pooled[1], of_nothing=all_empty)),
            "recall": float(_share(pooled[0], pooled[2], of_nothing=all_empty)),
            "num_images": len(self.cases),
            "num_empty_targets": len(false_alarms),
            "empty_target_false_positive_rate": float(false_alarms.mean()) if len(false_alarms) else None,
        }


def _share(hits, misses, of_nothing=1.0):
    """hits / (hits + misses), and `of_nothing` where both are 0; [()] turns a 0-d array into a number."""
    total = np.add(hits, misses)
    return np.where(total == 0, float(of_nothing), hits / np.maximum(total, 1))[()]
