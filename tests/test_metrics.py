# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Metrics against numbers done by hand, an independent computation over sets of pixels, and MONAI."""

import json

import numpy as np
import pytest
import torch

from processing.metrics import (
    BINS,
    SegmentationMeter,
    bootstrap,
    calibration_error,
    confusion,
    dice,
    iou,
    mean_with_interval,
    outline,
    outline_distances,
    reliability,
    score_case,
    surface_scores,
)


EMPTY = np.zeros((2, 4), dtype=bool)
FULL = ~EMPTY
LEFT_HALF = np.array([[1, 1, 0, 0]] * 2, dtype=bool)
TOP_HALF = np.array([[1] * 4, [0] * 4], dtype=bool)


def meter_of(*pairs):
    meter = SegmentationMeter()
    for number, (prediction, target) in enumerate(pairs):
        meter.add(prediction, target, name=f"case-{number}", patient_id=f"patient-{number // 2}")
    return meter


def test_confusion_by_hand():
    assert confusion(LEFT_HALF, TOP_HALF) == (2, 2, 2, 2)
    assert confusion(FULL, LEFT_HALF) == (4, 4, 0, 0)
    assert confusion(EMPTY, LEFT_HALF) == (0, 0, 4, 4)


def test_dice_and_iou_by_hand():
    assert dice(2, 2, 2) == pytest.approx(1 / 2)
    assert iou(2, 2, 2) == pytest.approx(1 / 3)
    assert dice(5, 0, 0) == iou(5, 0, 0) == 1
    assert dice(0, 3, 0) == iou(0, 0, 3) == 0
    assert dice(0, 0, 0) == iou(0, 0, 0) == 1  # empty predicted empty
    np.testing.assert_allclose(dice(np.array([2, 0, 0]), np.array([2, 0, 1]), np.array([2, 0, 0])), [0.5, 1, 0])


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (LEFT_HALF, LEFT_HALF.T, "resize"),
        (LEFT_HALF.astype(np.uint8), LEFT_HALF, "boolean"),
        (LEFT_HALF, LEFT_HALF.astype(float), "boolean"),
    ],
)
def test_what_cannot_be_compared_is_refused(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        confusion(prediction, target)
    with pytest.raises(ValueError, match=f"scan-7: .*{message}"):
        SegmentationMeter().add(prediction, target, name="scan-7")


def test_meter_by_hand():
    # Dice 1/2, 2/3, 1 (empty predicted empty), 0 (a false alarm)
    result = meter_of((LEFT_HALF, TOP_HALF), (FULL, LEFT_HALF), (EMPTY, EMPTY), (TOP_HALF, EMPTY)).compute()
    assert result == {
        "dice_per_image": pytest.approx((1 / 2 + 2 / 3 + 1 + 0) / 4),
        "iou_per_image": pytest.approx((1 / 3 + 1 / 2 + 1 + 0) / 4),
        "dice_global": pytest.approx(2 * 6 / (2 * 6 + 10 + 2)),
        "iou_global": pytest.approx(6 / (6 + 10 + 2)),
        "precision": pytest.approx(6 / 16),
        "recall": pytest.approx(6 / 8),
        "num_images": 4,
        "num_empty_targets": 2,
        "empty_target_false_positive_rate": 0.5,
    }


@pytest.mark.parametrize(
    ("prediction", "target", "precision", "recall", "false_positive_rate"),
    [
        (EMPTY, EMPTY, 1, 1, 0),
        (EMPTY, LEFT_HALF, 0, 0, None),  # finding nothing is not precise
        (LEFT_HALF, EMPTY, 0, 0, 1),
        (LEFT_HALF, LEFT_HALF, 1, 1, None),
    ],
)
def test_empty_sides(prediction, target, precision, recall, false_positive_rate):
    result = meter_of((prediction, target)).compute()
    assert (result["precision"], result["recall"]) == (precision, recall)
    assert result["empty_target_false_positive_rate"] == false_positive_rate
    assert result["dice_per_image"] == result["dice_global"] == precision


def test_agrees_with_sets_of_pixels():
    random = np.random.default_rng(0)
    pairs = [(random.random((9, 7)) < share, random.random((9, 7)) < 0.3) for share in (0.0, 0.1, 0.5, 0.9)]
    dices, ious = [], []
    for prediction, target in pairs:
        predicted, wanted = (set(np.flatnonzero(mask).tolist()) for mask in (prediction, target))
        dices.append(2 * len(predicted & wanted) / (len(predicted) + len(wanted)))
        ious.append(len(predicted & wanted) / len(predicted | wanted))
    result = meter_of(*pairs).compute()
    assert result["dice_per_image"] == pytest.approx(np.mean(dices))
    assert result["iou_per_image"] == pytest.approx(np.mean(ious))
    pooled_prediction, pooled_target = (np.concatenate(masks) for masks in zip(*pairs, strict=True))
    overlap = np.sum(pooled_prediction & pooled_target)
    assert result["precision"] == pytest.approx(overlap / pooled_prediction.sum())
    assert result["recall"] == pytest.approx(overlap / pooled_target.sum())
    f_score = 2 * result["precision"] * result["recall"] / (result["precision"] + result["recall"])
    assert result["dice_global"] == pytest.approx(f_score)
    assert result["iou_global"] == pytest.approx(result["dice_global"] / (2 - result["dice_global"]))


def odd_masks(kind, random):
    """Two masks of one size, of up to 40 pixels a side."""
    from scipy.ndimage import gaussian_filter

    shape = random.integers(3, 40, 2)
    first, second = np.zeros((2, *shape), dtype=bool)
    if kind == "noise":
        return tuple(random.random(shape) < random.uniform(0.02, 0.95) for _ in range(2))
    if kind == "blobs":
        fields = (gaussian_filter(random.standard_normal(shape), 2) for _ in range(2))
        return tuple(field > np.median(field) for field in fields)
    if kind == "border and corner":
        first[:, : random.integers(1, shape[1])] = second[-1, -1] = True
    elif kind == "all and one":
        first[:], second[tuple(shape // 2)] = True, True
    elif kind == "one is empty":
        first[tuple(shape // 2)] = True
    return first, second


@pytest.mark.filterwarnings("ignore:::monai")
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 1.9)])
@pytest.mark.parametrize("kind", ["noise", "blobs", "border and corner", "all and one", "one is empty"])
def test_agrees_with_monai(kind, spacing):
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice

    def one_hot(mask):
        return torch.tensor(np.stack([~mask, mask])[None], dtype=torch.float32)

    random = np.random.default_rng(0)
    for _ in range(8):
        masks = odd_masks(kind, random)
        both, (tp, fp, fn, _) = [one_hot(mask) for mask in masks], confusion(*masks)
        overlap = [compute(*both, include_background=False).item() for compute in (compute_dice, compute_iou)]
        if masks[1].any():  # without a target MONAI says NaN
            assert overlap == pytest.approx([dice(tp, fp, fn), iou(tp, fp, fn)], abs=1e-6)
        ours = surface_scores(*masks, tolerance=2.0, spacing=spacing)
        theirs = compute_surface_dice(*both, class_thresholds=[2.0], include_background=False, spacing=spacing)
        assert ours["surface_dice"] == pytest.approx(theirs.item(), abs=1e-5)
        distance = compute_hausdorff_distance(*both, include_background=False, percentile=95, spacing=list(spacing))
        if kind == "one is empty":
            assert ours["hd95"] is None and not np.isfinite(distance.item())
        else:
            assert ours["hd95"] == pytest.approx(distance.item(), rel=1e-5)


def test_calibration_agrees_with_monai():
    from monai.metrics import CalibrationErrorMetric

    random = np.random.default_rng(0)
    probability = random.random((4, 1, 30, 30), dtype=np.float32)
    target = random.random(probability.shape) < probability**2  # overconfident
    theirs = CalibrationErrorMetric(num_bins=BINS, metric_reduction="mean")
    theirs(torch.tensor(probability), torch.tensor(target, dtype=torch.float32))
    ours = [calibration_error(*reliability(*case)) for case in zip(probability, target, strict=True)]
    assert np.mean(ours) == pytest.approx(theirs.aggregate().item(), abs=1e-5) and np.mean(ours) > 0.1


def test_cases_of_other_processes_count_the_same():
    pairs = [(LEFT_HALF, TOP_HALF), (FULL, LEFT_HALF), (EMPTY, EMPTY)]
    whole, second = meter_of(*pairs), SegmentationMeter()
    for number, pair in enumerate(pairs[1:], start=1):
        second.add(*pair, name=f"case-{number}", patient_id=f"patient-{number // 2}")
    # Plain rows survive any transport.
    gathered = SegmentationMeter([*meter_of(pairs[0]).cases, *json.loads(json.dumps(second.cases))])
    assert gathered.cases == whole.cases
    assert gathered.compute() == whole.compute()


def test_cases_keep_every_sentence_of_a_picture():
    meter = SegmentationMeter()
    meter.add(LEFT_HALF, TOP_HALF, name="scan")
    meter.add(LEFT_HALF, LEFT_HALF, name="scan", patient_id="p1")
    assert [case["name"] for case in meter.cases] == ["scan", "scan"]
    assert meter.cases[0] == {
        "name": "scan",
        "patient_id": None,
        "tp": 2,
        "fp": 2,
        "fn": 2,
        "tn": 2,
        "dice": 0.5,
        "iou": pytest.approx(1 / 3),
    }
    assert meter.compute()["num_images"] == 2


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="at least one case"):
        SegmentationMeter().compute()


def square(size, top, left, side):
    mask = np.zeros(size, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_outline_by_hand():
    assert outline(square((5, 5), 1, 1, 3)).astype(int).tolist() == [
        [0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]
    ]  # fmt: skip
    assert outline(np.ones((4, 4), dtype=bool)).sum() == 12  # what lies beyond the picture is outside


def test_surfaces_by_hand():
    one, other = square((20, 20), 2, 2, 1), square((20, 20), 5, 6, 1)
    assert surface_scores(one, other) == {"hd95": pytest.approx(5), "surface_dice": 0}
    assert surface_scores(one, other, tolerance=5) == {"hd95": pytest.approx(5), "surface_dice": 1}
    assert surface_scores(one, other, spacing=0.2)["hd95"] == pytest.approx(1)
    assert surface_scores(one, other, spacing=(2, 0.5))["hd95"] == pytest.approx(np.hypot(6, 2))
    # A square moved down by one: of its 12 outline pixels 6 lie on the other's outline, 6 one pixel off.
    moved = surface_scores(square((20, 20), 3, 3, 4), square((20, 20), 4, 3, 4), tolerance=0.5)
    assert moved == {"hd95": 1, "surface_dice": 12 / 24}
    same = square((9, 9), 0, 0, 4)
    assert surface_scores(same, same, tolerance=0) == {"hd95": 0, "surface_dice": 1}


def test_surfaces_of_nothing():
    assert surface_scores(EMPTY, EMPTY) == {"hd95": 0, "surface_dice": 1}
    for pair in ((EMPTY, FULL), (FULL, EMPTY)):
        assert surface_scores(*pair) == {"hd95": None, "surface_dice": 0}
        assert outline_distances(*pair) is None


def slow_surface_scores(prediction, target, tolerance, spacing):
    """By the definition, pixel by pixel."""

    def rim(mask):
        height, width = mask.shape
        neighbours = ((-1, 0), (1, 0), (0, -1), (0, 1))
        inside = {(y, x) for y in range(height) for x in range(width) if mask[y, x]}
        return [(y, x) for y, x in inside if any((y + dy, x + dx) not in inside for dy, dx in neighbours)]

    def distances(ones, others):
        return [min(np.hypot((y - v) * spacing[0], (x - u) * spacing[1]) for v, u in others) for y, x in ones]

    ours, theirs = rim(prediction), rim(target)
    there, back = distances(ours, theirs), distances(theirs, ours)
    near = sum(distance <= tolerance for distance in there + back)
    return {"hd95": max(np.percentile(there, 95), np.percentile(back, 95)), "surface_dice": near / len(there + back)}


@pytest.mark.filterwarnings("ignore:::monai")
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 1.9)])
@pytest.mark.parametrize("kind", ["noise", "blobs", "edges"])
def test_surfaces_agree_with_the_definition(kind, spacing):
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(7)
    for _ in range(6):
        pair = [random.random((17, 23)) for _ in range(2)]
        if kind == "noise":
            pair = [values < random.uniform(0.02, 0.9) for values in pair]
        elif kind == "blobs":
            pair = [smooth > np.median(smooth) for smooth in (gaussian_filter(values, 3) for values in pair)]
        else:  # bands along the borders, a single pixel in a corner
            first, second = np.zeros((2, 17, 23), dtype=bool)
            first[:, : random.integers(1, 9)] = True
            second[random.integers(0, 17), 22] = second[0, 0] = True
            pair = [first, second]
        expected = slow_surface_scores(*pair, tolerance=2.0, spacing=spacing)
        assert surface_scores(*pair, tolerance=2.0, spacing=spacing) == pytest.approx(expected)


def test_calibration_by_hand():
    probability = np.array([[0.0, 0.02, 0.52, 0.54], [1.0, 0.98, 0.51, 0.53]])
    target = np.array([[0, 0, 1, 0], [1, 1, 1, 0]], dtype=bool)
    pixels, sums, hits = reliability(probability, target)
    assert len(pixels) == BINS and {i: n for i, n in enumerate(pixels) if n} == {0: 2, 10: 4, 19: 2}
    assert (sums[0], sums[10], sums[19]) == (pytest.approx(0.02), pytest.approx(2.1), pytest.approx(1.98))
    assert (hits[0], hits[10], hits[19]) == (0, 2, 2)
    assert calibration_error(pixels, sums, hits) == pytest.approx((0.02 + 0.1 + 0.02) / 8)


def test_what_is_ignored_counts_nowhere():
    keep = LEFT_HALF
    case = score_case(FULL, TOP_HALF, "scan", keep=keep, probability=np.full((2, 4), 0.9), surface={})
    small = score_case(
        np.ones((2, 2), bool), TOP_HALF[:, :2], "scan", probability=np.full((2, 2), 0.9), surface={}
    )  # fmt: skip
    assert {**case, "tn": 0} == small


def test_meter_sums_surfaces_and_calibration():
    meter = SegmentationMeter()
    for pair in ((LEFT_HALF, LEFT_HALF), (TOP_HALF, EMPTY)):
        meter.add(*pair, name="scan", probability=pair[0] * 0.8, surface={})
    result = meter.compute()
    assert result["hd95"] == 0 and result["hd95_undefined"] == 1 and result["surface_dice"] == 0.5
    assert result["reliability"]["pixels"][16] == 8 and result["reliability"]["hits"][16] == 4
    assert result["ece"] == pytest.approx((8 * 0.8 - 4) / 16)


def slow_bootstrap(cases, draws):
    """Resamples by taking the cases of the drawn patients themselves."""
    by_patient = {}
    for case in cases:
        by_patient.setdefault(case["patient_id"] or case["name"], []).append(case)
    units = list(by_patient.values())
    results = [SegmentationMeter(case for unit in draw for case in units[unit]).compute() for draw in draws]
    names = (
        "dice_per_image",
        "iou_global",
        "precision",
        "hd95",
        "surface_dice",
        "ece",
        "empty_target_false_positive_rate",
    )
    return {key: [result[key] for result in results if result[key] is not None] for key in names}


def test_bootstrap_agrees_with_taking_whole_patients():
    random = np.random.default_rng(3)
    meter = SegmentationMeter()
    for number in range(9):
        probability, target = random.random((6, 6)), random.random((6, 6)) < 0.4 * (number % 4 > 0)
        patient = f"patient-{number // 2}" if number < 6 else None
        found = probability > (0.6 if number % 3 else 1)
        meter.add(found, target, f"case-{number}", patient, probability=probability, surface={})
    cases = meter.cases
    intervals = bootstrap(cases, seed=5, resamples=400)
    # The same draws, as lists of patients.
    times = np.random.default_rng(5).multinomial(6, np.full(6, 1 / 6), size=400)
    slow = slow_bootstrap(cases, [np.repeat(np.arange(6), row) for row in times])
    for name, values in slow.items():
        assert intervals[f"{name}_interval"] == pytest.approx(np.percentile(values, [2.5, 97.5]).tolist())
    assert bootstrap(cases, seed=5, resamples=400) == intervals != bootstrap(cases, seed=6, resamples=400)


def test_nothing_that_no_case_has_gets_an_interval():
    intervals = bootstrap(meter_of((LEFT_HALF, TOP_HALF), (FULL, LEFT_HALF)).cases)
    assert not {name for name in intervals if "hd95" in name or "ece" in name or "empty" in name}
    alone = score_case(EMPTY, FULL, "scan", surface={})  # no outline to measure from
    assert "hd95_interval" not in bootstrap([alone]) and bootstrap([alone])["surface_dice_interval"] == [0, 0]


def test_each_of_several_labels_is_scored():
    target = np.array([[0, 1, 1, 2], [0, 0, 2, 2]])
    exchanged = np.array([0, 2, 1])[target]
    meter = SegmentationMeter()
    meter.add(exchanged, target, "a", num_labels=4)
    meter.add(target, target, "b", num_labels=4, keep=target != 2)
    result = meter.compute()
    assert result["dice_per_image"] == result["dice_global"] == 1  # of anything but background
    assert result["classes"]["1"] == {"dice_per_image": 0.5, "dice_global": pytest.approx(2 * 2 / (2 * 2 + 3 + 2))}
    assert result["classes"]["2"] == {"dice_per_image": 0.5, "dice_global": 0}  # ignored in b: empty answered empty
    assert result["classes"]["3"] == {"dice_per_image": 1, "dice_global": 1}
    assert result["dice_mean_of_classes"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="c: of 4 labels, masks hold their ids"):
        meter.add(target > 0, target > 0, "c", num_labels=4)


def test_interval_of_pictures_of_one_patient_is_wider():
    random = np.random.default_rng(0)
    cases = []
    for patient in range(20):  # all pictures of a patient are alike
        hit = bool(random.random() < 0.5)
        for view in range(10):
            mask = FULL if hit else EMPTY
            cases.append(score_case(mask, FULL, f"{patient}-{view}", f"p{patient}"))
    apart = [{**case, "patient_id": None} for case in cases]
    width, width_apart = (np.diff(bootstrap(some)["dice_per_image_interval"])[0] for some in (cases, apart))
    # sqrt(p (1 - p) / n) for 20 patients and for 200 pictures: sqrt(10) apart.
    assert width / width_apart == pytest.approx(np.sqrt(10), rel=0.15)


def test_mean_of_any_value_has_the_interval_of_the_bootstrap():
    cases = meter_of((LEFT_HALF, TOP_HALF), (FULL, EMPTY), (EMPTY, EMPTY), (FULL, FULL)).cases
    found = mean_with_interval(cases, [case["dice"] for case in cases], seed=3)
    assert found["interval"] == bootstrap(cases, seed=3)["dice_per_image_interval"]
    assert found["mean"] == pytest.approx(np.mean([case["dice"] for case in cases])) and found["cases"] == 4
    assert mean_with_interval([], []) == {"mean": None, "interval": None, "cases": 0}


def test_evaluate_modules_say_the_same(tmp_path):
    from processing.evaluate_modules import SegmentationScores, SurfaceScores

    meter = SegmentationMeter()
    counts = SegmentationScores(cache_dir=str(tmp_path))
    surfaces = SurfaceScores(cache_dir=str(tmp_path))
    for pair in ((LEFT_HALF, TOP_HALF), (FULL, EMPTY), (EMPTY, EMPTY)):
        meter.add(*pair, name="scan", surface={"tolerance": 0.5})
        counts.add(**SegmentationScores.of(*pair))
        surfaces.add(**SurfaceScores.of(*pair, tolerance=0.5))
    together = {**counts.compute(), **surfaces.compute()}
    assert together == meter.compute() and together["hd95_undefined"] == 1
    surfaces.add(**SurfaceScores.of(FULL, EMPTY))
    assert surfaces.compute() == {"hd95": None, "hd95_undefined": 1, "surface_dice": 0}
