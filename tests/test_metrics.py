# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Metrics against numbers done by hand and against an independent computation over sets of pixels."""

import json

import numpy as np
import pytest

from processing.metrics import SegmentationMeter, confusion, dice, iou


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


def test_cases_of_other_processes_count_the_same():
    pairs = [(LEFT_HALF, TOP_HALF), (FULL, LEFT_HALF), (EMPTY, EMPTY)]
    whole, first, second = meter_of(*pairs), meter_of(pairs[0]), SegmentationMeter()
    for number, pair in enumerate(pairs[1:], start=1):
        second.add(*pair, name=f"case-{number}", patient_id=f"patient-{number // 2}")
    first.extend(json.loads(json.dumps(second.cases)))  # plain rows survive any transport
    assert first.cases == whole.cases
    assert first.compute() == whole.compute()


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
