# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Dice, IoU, precision and recall, in both conventions of the field: averaged over images, and over pooled pixels.
Distances of outlines, calibration, and intervals by the bootstrap beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


BINS = 20  # of probabilities; their edges hold 0.5, where masks are cut
RESAMPLES = 2000


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


def outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask, bool (height, width), that have one of their four neighbours outside it. What lies beyond
    the picture counts as outside."""
    around = np.pad(mask, 1)
    return mask & ~(around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:])


def outline_distances(
    prediction: np.ndarray, target: np.ndarray, spacing: float | tuple[float, float] = 1.0
) -> tuple[np.ndarray, np.ndarray] | None:
    """How far each pixel of one outline lies from the other outline.

    Args:
        prediction: bool (height, width).
        target: bool, the same shape.
        spacing: of the pixels, the same both ways or (down, across): 1 gives distances in pixels, millimetres per
            pixel give millimetres.

    Returns:
        Float64, one distance per outline pixel: of the prediction to the target, and of the target to the prediction.
        None where a mask is empty: there is no distance to nothing.
    """
    from scipy.spatial import KDTree

    if not (prediction.any() and target.any()):
        return None
    # Both outlines lie in the box around the masks: the rest of the picture need not be measured.
    rows, columns = (np.flatnonzero((prediction | target).any(axis=axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    # A tree over the few pixels of an outline is quicker than a distance transform of the box, and as exact.
    ours, theirs = (np.argwhere(outline(mask[box])) * spacing for mask in (prediction, target))
    return KDTree(theirs).query(ours)[0], KDTree(ours).query(theirs)[0]


def surface_scores(
    prediction: np.ndarray,
    target: np.ndarray,
    tolerance: float = 2.0,
    spacing: float | tuple[float, float] = 1.0,
) -> dict[str, float | None]:
    """Scores the outlines of two masks.

    Args:
        prediction: bool (height, width).
        target: bool, the same shape.
        tolerance: how far apart outlines may lie and still agree, in the unit of `spacing`.
        spacing: see `outline_distances`.

    Returns:
        hd95: the larger of the two 95th percentiles of `outline_distances` (as MONAI counts), in the unit of
            `spacing`; 0 where both masks are empty, None where one of them is.
        surface_dice: the share of the pixels of both outlines that lie within `tolerance` of the other outline, in
            [0, 1]; 1 where both masks are empty, 0 where one of them is.
    """
    distances = outline_distances(prediction, target, spacing)
    if distances is None:
        both_empty = not (prediction.any() or target.any())
        return {"hd95": 0.0 if both_empty else None, "surface_dice": float(both_empty)}
    return {
        "hd95": float(max(np.percentile(some, 95) for some in distances)),
        "surface_dice": float((np.concatenate(distances) <= tolerance).mean()),
    }


def reliability(probability: np.ndarray, target: np.ndarray) -> list[list[float]]:
    """Counts pixels by their probability, in `BINS` bins of equal width.

    Args:
        probability: float in [0, 1], any shape.
        target: bool, the same shape.

    Returns:
        Per bin: how many pixels, the sum of their probabilities, how many belong to the target. Bins of several
        pictures add up.
    """
    probability, target = probability.ravel(), target.ravel()
    bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    return [
        np.bincount(bins, minlength=BINS).tolist(),
        np.bincount(bins, weights=probability.astype(np.float64), minlength=BINS).tolist(),
        np.bincount(bins[target], minlength=BINS).tolist(),
    ]


def calibration_error(pixels: Sequence[float], probabilities: Sequence[float], hits: Sequence[float]) -> float:
    """Expected calibration error, in [0, 1]: over the bins of `reliability`, how far the mean probability is from the
    share of pixels that belong to the target, weighted by pixels; 0 where no pixel counts. Background pixels, which
    are many and easy, count too: look at the bins themselves as well."""
    return float(np.abs(np.asarray(probabilities) - np.asarray(hits)).sum() / max(1, np.sum(pixels)))


def score_case(
    prediction: np.ndarray,
    target: np.ndarray,
    name: str,
    patient_id: str | None = None,
    *,
    keep: np.ndarray | None = None,
    probability: np.ndarray | None = None,
    surface: dict | None = None,
    num_labels: int = 2,
) -> dict:
    """Scores one picture under one sentence.

    Args:
        prediction: bool, any shape; with more than two labels their ids, of which 0 is background.
        target: the same shape and kind.
        name: which picture.
        patient_id: whose picture, where known.
        keep: bool, the same shape; pixels outside are ignored. All are kept if left out.
        probability: float in [0, 1], the same shape, from which the prediction was cut; for its calibration.
        surface: keywords of `surface_scores`, which takes milliseconds; outlines are not measured if left out.
        num_labels: with more than two, each is scored for itself too.

    Returns:
        name, patient_id, tp, fp, fn, tn, dice, iou, of anything but background; hd95 and surface_dice if asked for;
        `reliability` where there is a probability; with more than two labels `classes`: tp, fp and fn of each by its
        id, a str. Plain numbers, which JSON holds.

    Raises:
        ValueError: an array is not boolean (or, of more labels, not of ids), or the shapes differ; the sentence names
            the case.
    """
    by_label = {}
    if num_labels > 2:
        prediction, target = np.asarray(prediction), np.asarray(target)
        if prediction.dtype == bool:
            raise ValueError(f"{name}: of {num_labels} labels, masks hold their ids: a bool mask does not tell them.")
        by_label = {str(label): (prediction == label, target == label) for label in range(1, num_labels)}
        prediction, target = prediction > 0, target > 0
    if keep is not None:
        prediction, target = prediction & keep, target & keep
        by_label = {label: (ours & keep, theirs & keep) for label, (ours, theirs) in by_label.items()}
    try:
        tp, fp, fn, tn = confusion(prediction, target)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    case = {"name": name, "patient_id": patient_id, "tp": tp, "fp": fp, "fn": fn, "tn": tn}
    case |= {"dice": float(dice(tp, fp, fn)), "iou": float(iou(tp, fp, fn))}
    if by_label:
        case["classes"] = {label: list(confusion(*masks)[:3]) for label, masks in by_label.items()}
    if surface is not None:
        case |= surface_scores(prediction, target, **surface)
    if probability is not None:
        kept = slice(None) if keep is None else keep
        case["reliability"] = reliability(probability[kept], target[kept])
    return case


class SegmentationMeter:
    """Collects one case per sentence and picture, and sums them up.

    Attributes:
        cases: what `score_case` gives, in the order they were added, all with the same entries. A name may come
            several times: one picture under several sentences.
    """

    def __init__(self, cases: Iterable[dict] = ()):
        self.cases: list[dict] = list(cases)

    def add(self, prediction: np.ndarray, target: np.ndarray, name: str, patient_id: str | None = None, **more):
        """Adds one case, see `score_case`."""
        self.cases.append(score_case(prediction, target, name, patient_id, **more))

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
            hd95, surface_dice: the mean over cases, where outlines were measured; hd95 over those that have one (0
                where both masks are empty), and hd95_undefined says how many have none (only one of them is empty).
            ece, reliability: `calibration_error` and the bins of all cases pooled, where probabilities were given.
            classes, dice_mean_of_classes: with more than two labels, dice_per_image and dice_global of each by its id,
                and the mean of the former. All else is of anything but background.

        Raises:
            ValueError: there are no cases.
        """
        if not self.cases:
            raise ValueError("There is nothing to score: add at least one case.")
        tp, fp, fn = (np.array([case[key] for case in self.cases]) for key in ("tp", "fp", "fn"))
        pooled = tp.sum(), fp.sum(), fn.sum()
        false_alarms = fp[tp + fn == 0] > 0
        all_empty = sum(pooled) == 0
        scores = {
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
        if "hd95" in self.cases[0]:
            distances = [case["hd95"] for case in self.cases if case["hd95"] is not None]
            scores["hd95"] = float(np.mean(distances)) if distances else None
            scores["hd95_undefined"] = len(self.cases) - len(distances)
            scores["surface_dice"] = float(np.mean([case["surface_dice"] for case in self.cases]))
        if "reliability" in self.cases[0]:
            bins = np.sum([case["reliability"] for case in self.cases], axis=0)
            scores["ece"] = calibration_error(*bins)
            scores["reliability"] = dict(zip(("pixels", "probabilities", "hits"), bins.tolist(), strict=True))
        if "classes" in self.cases[0]:
            scores["classes"] = {}
            for label in self.cases[0]["classes"]:
                counts = np.array([case["classes"][label] for case in self.cases]).T
                told = {"dice_per_image": dice(*counts).mean(), "dice_global": dice(*counts.sum(axis=1))}
                scores["classes"][label] = {name: float(value) for name, value in told.items()}
            means = [told["dice_per_image"] for told in scores["classes"].values()]
            scores["dice_mean_of_classes"] = float(np.mean(means))
        return scores


def bootstrap(cases: Sequence[dict], seed: int = 0, resamples: int = RESAMPLES) -> dict[str, list[float]]:
    """95 % intervals: whole patients are drawn with replacement, since the pictures of one are alike; where the
    patient is not known, whole pictures.

    Args:
        cases: `SegmentationMeter.cases`.
        seed: of the draws.
        resamples: how often as many patients are drawn as there are.

    Returns:
        For each share and distance that `SegmentationMeter.compute` says of them, `<name>_interval`: [2.5th, 97.5th
        percentile]. Resamples in which there is no such number (no empty target, no outline) do not count for it.
    """
    columns = {key: [case[key] for case in cases] for key in ("tp", "fp", "fn", "dice", "iou")}
    columns["cases"] = [1] * len(cases)
    columns["empty"] = [case["tp"] + case["fn"] == 0 for case in cases]
    columns["alarms"] = [case["tp"] + case["fn"] == 0 and case["fp"] > 0 for case in cases]
    if "hd95" in cases[0]:
        columns["outlined"] = [case["hd95"] is not None for case in cases]
        columns["hd95"] = [case["hd95"] or 0 for case in cases]
        columns["surface_dice"] = [case["surface_dice"] for case in cases]
    if calibrated := "reliability" in cases[0]:
        bins = np.array([case["reliability"] for case in cases], dtype=np.float64)  # (cases, 3, BINS)
        for name, counts in zip(("pixels", "probabilities", "hits"), bins.transpose(1, 2, 0), strict=True):
            columns |= {f"{name} {number}": some for number, some in enumerate(counts)}
    drawn = resample(cases, np.array(list(columns.values()), dtype=np.float64).T, seed, resamples).T
    sums = dict(zip(columns, drawn, strict=True))
    tp, fp, fn = sums["tp"], sums["fp"], sums["fn"]
    all_empty = tp + fp + fn == 0
    scores = {
        "dice_per_image": sums["dice"] / sums["cases"],
        "iou_per_image": sums["iou"] / sums["cases"],
        "dice_global": dice(tp, fp, fn),
        "iou_global": iou(tp, fp, fn),
        "precision": _share(tp, fp, of_nothing=all_empty),
        "recall": _share(tp, fn, of_nothing=all_empty),
        "empty_target_false_positive_rate": _share(sums["alarms"], sums["empty"] - sums["alarms"], of_nothing=np.nan),
    }
    if "hd95" in cases[0]:
        scores["hd95"] = np.where(sums["outlined"] > 0, sums["hd95"] / np.maximum(1, sums["outlined"]), np.nan)
        scores["surface_dice"] = sums["surface_dice"] / sums["cases"]
    if calibrated:
        pixels, probabilities, hits = (
            np.array([sums[f"{name} {number}"] for number in range(BINS)])
            for name in ("pixels", "probabilities", "hits")
        )
        scores["ece"] = np.abs(probabilities - hits).sum(axis=0) / np.maximum(1, pixels.sum(axis=0))
    known = {name: values[~np.isnan(values)] for name, values in scores.items()}
    return {f"{name}_interval": np.percentile(v, [2.5, 97.5]).tolist() for name, v in known.items() if len(v)}


def mean_with_interval(cases: Sequence[dict], values: Sequence[float], seed: int = 0) -> dict:
    """The mean of one value per case, with the interval of `bootstrap`.

    Args:
        cases: dicts with `name` and `patient_id`.
        values: as many numbers.
        seed: of the draws.

    Returns:
        `mean`, `interval` [2.5th, 97.5th percentile], and `cases`, their number; the first two None without a case.
    """
    if not len(cases):
        return {"mean": None, "interval": None, "cases": 0}
    sums, counts = resample(cases, [[value, 1] for value in values], seed).T
    interval = np.percentile(sums / counts, [2.5, 97.5]).tolist()
    return {"mean": float(np.mean(values)), "interval": interval, "cases": len(cases)}


def in_percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """A share as tables say it: "81.23 [80.10, 82.30]"; a dash where there is none."""
    if value is None:
        return "-"
    return f"{100 * value:.2f}" + (f" [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]" if interval else "")


def resample(
    cases: Sequence[dict], terms: Sequence[Sequence[float]], seed: int = 0, resamples: int = RESAMPLES
) -> np.ndarray:
    """Sums of each case's terms over units drawn with replacement, see `unit_of`: float64 (resamples, terms)."""
    # Per unit, the sums from which each score is made: a resample only adds them up, each as often as it was drawn.
    units = {unit: number for number, unit in enumerate(dict.fromkeys(map(unit_of, cases)))}
    sums = np.zeros((len(units), len(terms[0])))
    for case, some in zip(cases, terms, strict=True):
        sums[units[unit_of(case)]] += some
    random = np.random.default_rng(seed)
    drawn = []
    for start in range(0, resamples, 100):  # a hundred at a time: their table has a column per unit
        times = random.multinomial(len(units), np.full(len(units), 1 / len(units)), size=min(100, resamples - start))
        drawn.append(np.einsum("rn,ns->rs", times.astype(np.float64), sums))  # adds in one order, unlike a BLAS
    return np.concatenate(drawn)


def unit_of(case: dict) -> tuple[str, str]:
    """What `bootstrap` draws as one: ("patient", id), or ("picture", name) where the patient is not known."""
    return ("picture", case["name"]) if case["patient_id"] is None else ("patient", case["patient_id"])


def _share(hits, misses, of_nothing=1.0):
    """hits / (hits + misses), and `of_nothing` where both are 0; [()] turns a 0-d array into a number."""
    total = np.add(hits, misses)
    return np.where(total == 0, np.asarray(of_nothing, dtype=float), hits / np.maximum(total, 1))[()]
