# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores by finding and by pairs of arms: groups by the row's own sentence, none of few cases, differences by hand."""

import numpy as np
import pytest

from processing.findings import findings_of, pair_arms, score_findings, tables
from processing.metrics import SegmentationMeter, score_case


@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        (
            "unilateral pulmonary infection, one infected area, middle lower left lung.",
            {"side": ["left"], "count": ["one"], "zones": ["lower left", "middle left"]},
        ),
        (
            "bilateral pulmonary infection, two infected areas, upper left lung and lower right lung.",
            {"side": ["both"], "count": ["two"], "zones": ["lower right", "upper left"]},
        ),
        ("no pulmonary infection.", {"side": [], "count": ["no"], "zones": []}),
        (
            "two small polyp, located in left, left of the image",
            {"count": ["two"], "size": ["small"], "place": ["left"]},
        ),
        ("14 small polyps at the top", {"count": ["14"], "size": ["small"], "place": ["top"]}),
        ("There are no nuclei.", {"distribution": ["none"]}),
        ("The nuclei are evenly distributed.", {"distribution": ["evenly"]}),
        ("something else", {}),
        (None, {}),
    ],
)
def test_what_a_sentence_states(sentence, found):
    assert findings_of(sentence) == found


LEFT, RIGHT = (f"one infected area, lower {side} lung." for side in ("left", "right"))


@pytest.fixture
def by_arm():
    """Nine cases of squares of 8 pixels; the first arm finds all, the second a half, and none of the last three."""
    truth, half = np.ones((2, 4), dtype=bool), np.array([[1] * 4, [0] * 4], dtype=bool)
    masks = {"full_text": [truth] * 9, "no_text": [half] * 6 + [~truth] * 3}
    return {
        arm: [{"index": i, **score_case(mask, truth, f"c{i}", f"p{i // 2}")} for i, mask in enumerate(some)]
        for arm, some in masks.items()
    }


def test_scores_of_each_finding(by_arm):
    prompts = [RIGHT] * 5 + [LEFT] * 3 + [None]
    found = score_findings(by_arm, prompts, seed=0)
    assert {name: list(values) for name, values in found.items()} == {
        "side": ["right"], "count": ["one"], "zones": ["lower right"]
    }  # fmt: skip
    assert found["side"]["right"]["cases"] == 5 and found["count"]["one"]["cases"] == 8
    scores = found["count"]["one"]["scores"]
    assert scores["full_text"]["dice_per_image"] == 1
    expected = SegmentationMeter(by_arm["no_text"][:8]).compute()
    assert scores["no_text"]["dice_per_image"] == expected["dice_per_image"] == pytest.approx(6 * (2 / 3) / 8)
    assert scores["no_text"]["dice_global"] == expected["dice_global"]
    assert score_findings(by_arm, [None] * 9, seed=0) == {}


def test_arms_in_pairs(by_arm):
    (found,) = pair_arms(by_arm, seed=0).values()
    assert found["difference"]["mean"] == pytest.approx(-(6 / 3 + 3) / 9)
    assert found["worse"] == 1 and found["better"] == 0
    low, high = found["difference"]["interval"]
    assert low < found["difference"]["mean"] < high < -1 / 3 + 1e-9
    assert pair_arms({"full_text": by_arm["full_text"]}, seed=0) == {}


def test_tables(by_arm):
    titles = {"full_text": "its own", "no_text": "none"}
    findings, paired = score_findings(by_arm, [RIGHT] * 9, seed=0), pair_arms(by_arm, seed=0)
    parts = tables({"scores": by_arm, "findings": findings, "paired": paired}, titles)
    assert [len(part) for part in parts if isinstance(part, list)] == [4, 2]
    assert parts[1][1] == ["side", "right", "9", "100.00 [100.00, 100.00]", "44.44"]
    assert parts[3][1][0] == "none" and parts[3][1][2:] == ["100.00", "0.00"]
    assert tables({"scores": by_arm}, titles) == []
