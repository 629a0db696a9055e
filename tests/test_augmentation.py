# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Geometry moves picture, mask and sentence together; the affine that comes with a perturbed view is the right one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from processing.augmentation import ConsistencyPerturbation, JointAugmentation, shorten_prompt


SIZES = [(96, 96), (128, 80), (70, 110)]  # width, height
STILL = {"rotation_degrees": 0.0, "translation": 0.0, "scale": (1.0, 1.0)}
NO_COLOUR = {"brightness": 0.0, "contrast": 0.0}
GEOMETRY_ONLY = NO_COLOUR | {
    "saturation": 0.0,
    "hue": 0.0,
    "grey": 0.0,
    "sharpness": 0.0,
    "blur": (0, 0),
    "erasing": 0.0,
}


def draw_disc(size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """A white disc left of and above the centre on grey, and its mask."""
    width, height = size
    box = [0.2 * width, 0.2 * height, 0.2 * width + 0.4 * min(size), 0.2 * height + 0.4 * min(size)]
    image, mask = Image.new("RGB", size, (90, 90, 90)), Image.new("L", size, 0)
    ImageDraw.Draw(image).ellipse(box, fill=(255, 255, 255))
    ImageDraw.Draw(mask).ellipse(box, fill=1)
    return image, mask


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def draw_noise(size: tuple[int, int] = (64, 48), seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(8))
def test_picture_and_mask_stay_aligned(size, seed):
    image, mask = draw_disc(size)
    augment = JointAugmentation(vertical_flip=0.5, brightness=0.0, contrast=0.0, gamma=0.0)
    new_image, new_mask, _ = augment(image, mask, None, np.random.default_rng(seed))
    assert (new_image.mode, new_image.size, new_mask.mode, new_mask.size) == ("RGB", size, "L", size)
    disc = np.asarray(new_image)[..., 0] > 172  # half-way between grey and white
    assert iou(disc, np.asarray(new_mask) == 1) > 0.96
    # The view really moved, and did so with the mask.
    assert iou(np.asarray(mask) == 1, np.asarray(new_mask) == 1) < 0.96


@pytest.mark.parametrize(
    ("flips", "axis", "sentence"),
    [
        ({"horizontal_flip": 1.0}, 1, "all right lung, upper left."),
        ({"horizontal_flip": 0.0, "vertical_flip": 1.0}, 0, "all left lung, lower right."),
        ({"horizontal_flip": 0.0}, None, "all left lung, upper right."),
    ],
)
def test_flip_moves_picture_mask_and_words(flips, axis, sentence):
    image, (_, mask) = draw_noise((64, 48)), draw_disc((64, 48))
    augment = JointAugmentation(**flips, **STILL, **NO_COLOUR, gamma=0.0)
    new_image, new_mask, prompt = augment(image, mask, "all left lung, upper right.", np.random.default_rng(0))
    for old, new in ((image, new_image), (mask, new_mask)):
        expected = np.asarray(old) if axis is None else np.flip(np.asarray(old), axis)
        np.testing.assert_array_equal(np.asarray(new), expected)
    assert prompt == sentence


def test_flip_without_a_sentence():
    augment = JointAugmentation(horizontal_flip=1.0)
    assert augment(*draw_disc((32, 32)), None, np.random.default_rng(0))[2] is None


def test_mask_keeps_its_class_ids():
    mask = Image.fromarray(np.random.default_rng(0).choice(np.array([0, 3, 7, 255], dtype=np.uint8), (48, 64)))
    for seed in range(5):
        _, new_mask, _ = JointAugmentation()(draw_noise(), mask, None, np.random.default_rng(seed))
        assert set(np.unique(new_mask)) == {0, 3, 7, 255}


def test_photometric_part_touches_the_picture_alone():
    image, mask = draw_noise(), Image.new("L", (64, 48), 1)
    augment = JointAugmentation(horizontal_flip=0.0, **STILL)
    new_image, new_mask, _ = augment(image, mask, None, np.random.default_rng(0))
    np.testing.assert_array_equal(np.asarray(new_mask), np.asarray(mask))
    assert np.abs(np.asarray(new_image, dtype=int) - np.asarray(image)).mean() > 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(8))
def test_affine_aligns_the_clean_picture_with_the_view(size, seed):
    image, mask = draw_disc(size)
    perturb = ConsistencyPerturbation(**GEOMETRY_ONLY)
    view, affine = perturb(image, np.random.default_rng(seed))
    view_of_mask, _ = perturb(mask.convert("RGB").point(lambda value: 255 * value), np.random.default_rng(seed))
    assert (affine.dtype, affine.shape, view.size) == (np.float32, (2, 3), size)

    def align(picture):
        clean = (
            torch.from_numpy(np.array(picture, dtype=np.float32)).reshape(size[1], size[0], -1).permute(2, 0, 1)[None]
        )
        grid = F.affine_grid(torch.from_numpy(affine)[None], clean.shape, align_corners=False)
        return F.grid_sample(clean, grid, align_corners=False)[0].permute(1, 2, 0).numpy()

    assert np.abs(align(image) - np.asarray(view)).mean() < 1  # of 255: rounding, and the outermost pixels
    aligned_mask, seen_mask = align(mask)[..., 0] > 0.5, np.asarray(view_of_mask)[..., 0] > 127
    assert iou(aligned_mask, seen_mask) > 0.99
    assert iou(np.asarray(mask) == 1, seen_mask) < 0.9  # the view really moved


def test_affine_holds_at_another_resolution():
    """Logits are smaller than the picture: the same numbers must align them."""
    image, mask = draw_disc((128, 96))
    _, affine = ConsistencyPerturbation(**GEOMETRY_ONLY)(image, np.random.default_rng(3))
    aligned = []
    for size in ((128, 96), (64, 48)):
        clean = F.interpolate(torch.from_numpy(np.array(mask, dtype=np.float32))[None, None], size[::-1], mode="area")
        grid = F.affine_grid(torch.from_numpy(affine)[None], clean.shape, align_corners=False)
        warped = F.grid_sample(clean, grid, align_corners=False)
        aligned.append(F.interpolate(warped, (96, 128), mode="bilinear")[0, 0].numpy() > 0.5)
    assert iou(*aligned) > 0.96


def test_geometry_stays_within_its_promise():
    """In pixels each draw is a rotation, a scale and a shift of the centre, none beyond its range, all of it used."""
    width, height = 128, 80
    to_pixels = np.diag([width / 2, height / 2])
    angles, factors, shifts = [], [], []
    for seed in range(200):
        _, affine = ConsistencyPerturbation(**GEOMETRY_ONLY)(draw_noise((width, height)), np.random.default_rng(seed))
        turn = np.linalg.inv(to_pixels @ affine[:, :2] @ np.linalg.inv(to_pixels))  # from the picture to its view
        factor = np.sqrt(np.linalg.det(turn))
        np.testing.assert_allclose(turn @ turn.T, factor**2 * np.eye(2), atol=1e-5)  # no shear, no squeeze, no flip
        angles.append(np.degrees(np.arctan2(turn[1, 0], turn[0, 0])))
        factors.append(factor)
        shifts.append(turn @ (to_pixels @ affine[:, 2]) / [width, height])
    assert 9 < np.abs(angles).max() <= 10.001
    assert 0.949 < min(factors) < 0.96 and 1.04 < max(factors) < 1.051
    assert (0.045 < np.abs(shifts).max(axis=0)).all() and (np.abs(shifts).max(axis=0) <= 0.0501).all()


def test_perturbation_without_any_part_changes_nothing():
    image = draw_noise()
    view, affine = ConsistencyPerturbation(**GEOMETRY_ONLY, **STILL)(image, np.random.default_rng(0))
    np.testing.assert_array_equal(np.asarray(view), np.asarray(image))
    np.testing.assert_allclose(affine, [[1, 0, 0], [0, 1, 0]], atol=1e-6)


@pytest.mark.parametrize(
    "part",
    [
        {"brightness": 0.3},
        {"contrast": 0.3},
        {"saturation": 0.3},
        {"hue": 0.1},
        {"grey": 1.0},
        {"sharpness": 0.5},
        {"blur": (1.0, 3.0)},
        {"erasing": 1.0},
    ],
)
def test_each_photometric_part_changes_the_picture(part):
    image = draw_noise()
    view, affine = ConsistencyPerturbation(**(GEOMETRY_ONLY | STILL | part))(image, np.random.default_rng(0))
    assert np.abs(np.asarray(view, dtype=int) - np.asarray(image)).mean() > 1
    np.testing.assert_allclose(affine, [[1, 0, 0], [0, 1, 0]], atol=1e-6)


def test_grey_has_no_colour_and_hue_keeps_brightness():
    image = draw_noise()
    grey, _ = ConsistencyPerturbation(**(GEOMETRY_ONLY | STILL | {"grey": 1.0}))(image, np.random.default_rng(0))
    red, green, blue = np.asarray(grey, dtype=int).transpose(2, 0, 1)
    assert (red == green).all() and (green == blue).all()
    np.testing.assert_allclose(red, np.asarray(image.convert("L")), atol=1)

    soft = image.point(
        lambda value: 100 + value // 5
    )  # far from 0 and 255, where clipping would change the brightness
    view, _ = ConsistencyPerturbation(**(GEOMETRY_ONLY | STILL | {"hue": 0.1}))(soft, np.random.default_rng(0))
    np.testing.assert_allclose(
        np.asarray(view.convert("L"), dtype=int), np.asarray(soft.convert("L"), dtype=int), atol=2
    )


@pytest.mark.parametrize("size", SIZES)
def test_erased_box_has_the_promised_area(size):
    """Half of the boxes hold the mean colour: their area can be counted."""
    image = Image.new("RGB", size, (200, 10, 10))
    image.putpixel((0, 0), (0, 0, 0))
    perturb = ConsistencyPerturbation(**(GEOMETRY_ONLY | STILL | {"erasing": 1.0}))
    shares = []
    for seed in range(60):
        view, _ = perturb(image, np.random.default_rng(seed))
        shares.append((np.asarray(view) != np.asarray(image)).any(axis=2).mean())
    noisy = [share for share in shares if share > 0.001]  # the mean of this picture is its own colour: unseen
    assert 15 < len(noisy) < 45
    assert 0.015 < min(noisy) and 0.12 < max(noisy) < 0.21


@pytest.mark.parametrize("number", [1, 2])
def test_draws_come_from_the_generator_alone(number):
    image, mask = draw_noise(), Image.new("L", (64, 48), 1)
    np.random.seed(number)  # the global state must not matter

    def views(seed):
        joint = JointAugmentation()(image, mask, "left", np.random.default_rng(seed))
        return np.asarray(joint[0]), *map(np.asarray, ConsistencyPerturbation()(image, np.random.default_rng(seed)))

    for first, second in zip(views(5), views(5), strict=True):
        np.testing.assert_array_equal(first, second)
    for first, second in zip(views(5), views(6), strict=True):
        assert (first != second).any()


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="horizontal_flip is a probability"):
        JointAugmentation(horizontal_flip=1.5)
    with pytest.raises(ValueError, match="stay below 45"):
        JointAugmentation(rotation_degrees=90)
    with pytest.raises(ValueError, match="gamma changes by a share"):
        JointAugmentation(gamma=1.0)
    with pytest.raises(ValueError, match="smallest and the largest"):
        ConsistencyPerturbation(scale=(1.1, 0.9))
    with pytest.raises(ValueError, match="stay below 0.5"):
        ConsistencyPerturbation(translation=0.6)
    with pytest.raises(ValueError, match="one size first"):
        JointAugmentation()(Image.new("RGB", (8, 8)), Image.new("L", (8, 9)), None, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("prompt", "shortest"),
    [
        ("two areas, upper left lung and all right lung.", {"two areas", "upper left lung and all right lung"}),
        ("one lesion; left", {"one lesion", "left"}),
        ("a round spot", {"a round spot"}),
        ("a 1.5 cm spot", {"a 1.5 cm spot"}),
        ("left", {None}),
        ("", {None}),
        (None, {None}),
    ],
)
def test_a_shortened_sentence_says_part_of_what_it_said(prompt, shortest):
    told = {shorten_prompt(prompt, np.random.default_rng(seed)) for seed in range(40)}
    assert shortest <= told
    assert all(said is None or set(said.split(", ")) <= shortest | {None} for said in told)
