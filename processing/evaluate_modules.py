# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The metrics as modules of Hugging Face's `evaluate`, for loops that are built on it. They take numbers per picture,
not masks, so that nothing large passes through their files:

>>> scores = SegmentationScores()
>>> scores.add(**SegmentationScores.of(prediction, target))
>>> scores.compute()["dice_global"]
"""

from __future__ import annotations

import datasets
import evaluate
import numpy as np

from .metrics import SegmentationMeter, confusion, surface_scores


class SegmentationScores(evaluate.Metric):
    """Dice and IoU in both conventions, precision, recall and false alarms: `SegmentationMeter.compute`."""

    @staticmethod
    def of(prediction: np.ndarray, target: np.ndarray) -> dict[str, int]:
        """What to `add` for two masks, bool of the same shape."""
        return dict(zip(("tp", "fp", "fn"), confusion(prediction, target), strict=False))

    def _info(self):
        features = {name: datasets.Value("int64") for name in ("tp", "fp", "fn")}
        return evaluate.MetricInfo(
            description=SegmentationScores.__doc__,
            citation="",
            features=datasets.Features(features),
            inputs_description="tp, fp, fn: pixels per picture, as SegmentationScores.of counts them",
        )

    def _compute(self, tp, fp, fn):
        counts = zip(tp, fp, fn, strict=True)
        return SegmentationMeter(dict(zip(("tp", "fp", "fn"), case, strict=True)) for case in counts).compute()


class SurfaceScores(evaluate.Metric):
    """HD95 and surface Dice, averaged over pictures; HD95 over those that have one."""

    @staticmethod
    def of(prediction: np.ndarray, target: np.ndarray, **surface) -> dict[str, float]:
        """What to `add` for two masks, bool (height, width); keywords as `surface_scores`. NaN is an HD95 that there
        is none of."""
        scores = surface_scores(prediction, target, **surface)
        return {**scores, "hd95": np.nan if scores["hd95"] is None else scores["hd95"]}

    def _info(self):
        features = {name: datasets.Value("float64") for name in ("hd95", "surface_dice")}
        return evaluate.MetricInfo(
            description=SurfaceScores.__doc__,
            citation="",
            features=datasets.Features(features),
            inputs_description="hd95, surface_dice: per picture, as SurfaceScores.of measures them",
        )

    def _compute(self, hd95, surface_dice):
        distances = np.array(hd95)[~np.isnan(hd95)]
        return {
            "hd95": float(distances.mean()) if len(distances) else None,
            "hd95_undefined": len(hd95) - len(distances),
            "surface_dice": float(np.mean(surface_dice)),
        }
