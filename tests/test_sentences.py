# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""A mask to attributes, attributes to a sentence, a sentence back to attributes."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from processing.augmentation import JointAugmentation, measure_truth
from processing.sentences import STYLES, WORDINGS, agreeing, compare, describe, measure_agreement, parse, write


SIZE = 200


def mask_of(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Ellipses in boxes (left, top, right, bottom) of a 200 by 200 picture."""
    mask = Image.new("1", (SIZE, SIZE))
    for box in boxes:
        ImageDraw.Draw(mask).ellipse(box, fill=1)
    return np.asarray(mask)


def random_mask(seed: int, most: int = 4) -> np.ndarray:
    generator = np.random.default_rng(seed)
    boxes = []
    for _ in range(generator.integers(0, most + 1)):
        left, top = generator.integers(0, SIZE - 60, 2)
        width, height = generator.integers(10, 60, 2)
        boxes.append((left, top, left + width, top + height))
    return mask_of(*boxes)


# The rules


@pytest.mark.parametrize(
    ("boxes", "count", "left", "right"),
    [
        ([], 0, "", ""),
        ([(20, 60, 60, 160)], 1, "middle lower", ""),
        ([(20, 30, 70, 160), (140, 125, 180, 150)], 2, "upper middle lower", "lower"),
        ([(60, 120, 140, 160)], 1, "lower", "lower"),  # one area across the middle line is in both lungs
        ([(20, 130, 60, 160), (150, 30, 152, 32)], 1, "lower", ""),  # a speck beside an area does not count
        ([(150, 30, 152, 32)], 1, "", "upper"),  # alone it does
        ([(150, 60, 180, 75)], 1, "", "middle"),
    ],
)
def test_lungs(boxes, count, left, right):
    zones = {("left", zone) for zone in left.split()} | {("right", zone) for zone in right.split()}
    found = describe(mask_of(*boxes), "lung")
    assert found == {"side": frozenset(side for side, _ in zones), "count": count, "zones": frozenset(zones)}


@pytest.mark.parametrize(
    ("boxes", "count", "size", "place"),
    [
        ([], 0, [], ()),
        ([(10, 10, 50, 50)], 1, ["small"], ("top left",)),
        ([(60, 60, 140, 140)], 1, ["medium"], ("center",)),
        ([(10, 10, 190, 190)], 1, ["large"], ("center",)),
        ([(150, 90, 190, 130), (10, 150, 110, 190)], 2, ["small"], ("bottom left", "right")),
    ],
)
def test_polyps(boxes, count, size, place):
    assert describe(mask_of(*boxes), "polyp") == {"count": count, "size": frozenset(size), "place": place}


def test_nuclei():
    grid = [(x, y, x + 12, y + 12) for x in range(4, 190, 20) for y in range(4, 190, 20)]
    assert describe(mask_of(), "nuclei") == {"distribution": None}
    assert describe(mask_of(*grid), "nuclei") == {"distribution": "evenly"}
    assert describe(mask_of(*[(x, y, x + 6, y + 6) for x, y, *_ in grid]), "nuclei") == {"distribution": "sparsely"}
    corner = [(x, y, x + 12, y + 12) for x in range(4, 90, 15) for y in range(110, 190, 15)]
    assert describe(mask_of(*corner), "nuclei") == {"distribution": "lower left"}


@pytest.mark.parametrize("style", STYLES)
def test_rules_hold_at_any_resolution(style):
    same = 0
    for seed in range(20):
        mask = random_mask(seed)
        same += describe(mask, style) == describe(np.kron(mask, np.ones((3, 3), dtype=bool)), style)
    assert same >= 19  # the middle of an odd number of pixels may fall on either side


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (200, 31)])
@pytest.mark.parametrize("style", STYLES)
def test_any_size(style, size):
    for mask in (np.zeros(size, dtype=bool), np.ones(size, dtype=bool)):
        assert parse(write(describe(mask, style), style)) == (style, describe(mask, style))


# There and back


@pytest.mark.parametrize("style", STYLES)
def test_every_wording_is_read_back(style):
    written = set()
    for seed in range(60):
        attributes = describe(random_mask(seed, most=15), style)
        for wording in range(WORDINGS):
            sentence = write(attributes, style, wording)
            assert parse(sentence) == (style, attributes), sentence
            written.add(sentence)
    assert len(written) > 10 if style != "nuclei" else 6


@pytest.mark.parametrize("style", STYLES)
def test_no_finding(style):
    attributes = describe(np.zeros((40, 40), dtype=bool), style)
    sentences = [write(attributes, style, wording) for wording in range(WORDINGS)]
    assert len(set(sentences)) == WORDINGS
    for sentence in sentences:
        assert parse(sentence) == (style, attributes)


LEFT = {("left", zone) for zone in ("upper", "middle", "lower")}


@pytest.mark.parametrize(
    ("sentence", "style", "attributes"),
    [
        (
            "Bilateral pulmonary infection, two infected areas, all left lung and middle lower right lung.",
            "lung",
            {
                "side": frozenset({"left", "right"}),
                "count": 2,
                "zones": frozenset(LEFT | {("right", "middle"), ("right", "lower")}),
            },
        ),
        (
            "unilateral pulmonary infection, one infected area, upper middle lower left lung.",
            "lung",
            {"side": frozenset({"left"}), "count": 1, "zones": frozenset(LEFT)},
        ),
        (
            "three small, medium pink round polyp, located in top left, left, bottom of the image",
            "polyp",
            {"count": 3, "size": frozenset({"small", "medium"}), "place": ("bottom", "left", "top left")},
        ),
        (
            "Two small circle-shaped benign tumors at the top, top right in the breast ultrasound image.",
            "polyp",
            {"count": 2, "size": frozenset({"small"}), "place": ("top", "top right")},
        ),
        (
            "No tumor in the breast ultrasound image.",
            "polyp",
            {"count": 0, "size": frozenset(), "place": ()},
        ),
        ("The nuclei density in the lower is high.", "nuclei", {"distribution": "lower"}),
        ("The nuclei are irregularly distributed.", "nuclei", {"distribution": "irregularly"}),
    ],
)
def test_sentences_of_the_field_are_read(sentence, style, attributes):
    assert parse(sentence) == (style, attributes)


@pytest.mark.parametrize("sentence", [None, "", "a bright lesion on the left", "left lung", "the nuclei", "one polyp"])
def test_what_is_not_read_is_none(sentence):
    assert parse(sentence) is None
    assert agreeing(sentence, np.ones((8, 8), dtype=bool)) == set()


def test_unknown_style_and_wording_are_refused():
    with pytest.raises(ValueError, match="no style 'heart'"):
        describe(np.zeros((4, 4), dtype=bool), "heart")
    with pytest.raises(ValueError, match="no wording 3"):
        write({"distribution": None}, "nuclei", 3)


def test_agreement_is_counted_by_attribute():
    mask = mask_of((20, 130, 60, 160))
    prompts = [
        "unilateral pulmonary infection, one infected area, lower left lung.",
        "unilateral pulmonary infection, two infected areas, lower left lung.",
        "unilateral pulmonary infection, one infected area, lower right lung.",
        "something else",
    ]
    found = measure_agreement(prompts, [mask] * 4)
    assert (found["rows"], found["read"]) == (4, 3)
    shares = {"side": 2 / 3, "count": 2 / 3, "zones": 2 / 3, "each_zone": (1 + 1 + 4 / 6) / 3}
    assert found["agreement"] == pytest.approx(shares)
    assert agreeing(prompts[1], mask) == {"side", "zones"}
    assert compare(prompts[1], mask) == {"side": 1, "zones": 1, "count": 0, "each_zone": 1}


# Augmentation keeps the sentence true


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"vertical_flip": 0.5},
        {"rotation_degrees": 30.0, "translation": 0.2, "scale": (0.7, 1.6), "vertical_flip": 0.5},
    ],
    ids=["as in training", "both flips", "strong"],
)
def test_what_was_true_stays_true(style, geometry):
    masks = [random_mask(seed) for seed in range(60)]
    # Every second sentence is another picture's: what is false may stay false.
    described = [describe(masks[index - index % 2], style) for index in range(len(masks))]
    prompts = [write(attributes, style, index % WORDINGS) for index, attributes in enumerate(described)]
    images = [Image.fromarray(mask.astype(np.uint8)) for mask in masks]
    guarded = measure_truth(JointAugmentation(**geometry), prompts, images, range(3))
    assert guarded["rows"] > 80 and guarded["kept"] == 1.0
    if geometry:
        free = measure_truth(JointAugmentation(**geometry, keep_true=False), prompts, images, range(3))
        assert free["kept"] < 0.95  # so the guard does something


def test_flips_are_kept_where_the_words_can_follow():
    mask = mask_of((20, 130, 60, 160))
    image, prompt = (
        Image.new("RGB", (SIZE, SIZE)),
        "unilateral pulmonary infection, one infected area, lower left lung.",
    )
    augment = JointAugmentation(horizontal_flip=1.0)
    for seed in range(5):
        _, view, words = augment(image, Image.fromarray(mask.astype(np.uint8)), prompt, np.random.default_rng(seed))
        assert "lower right lung" in words and np.asarray(view)[:, SIZE // 2 :].any()


def test_a_flip_that_words_cannot_follow_is_not_drawn():
    """The lower lung turned upside down is not an upper lung by our rule, because lungs do not reach the bottom."""
    mask = Image.fromarray(mask_of((20, 80, 60, 120)).astype(np.uint8))
    prompt = write(describe(np.asarray(mask) > 0, "lung"), "lung")
    upright = JointAugmentation(horizontal_flip=0.0, vertical_flip=1.0)
    _, view, words = upright(Image.new("RGB", mask.size), mask, prompt, np.random.default_rng(0))
    assert words == prompt
    np.testing.assert_array_equal(np.asarray(view), np.asarray(mask))
