# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Random views of a picture: geometry moves picture, mask and sentence together; colour and blur touch the picture
alone. Every draw comes from the generator that is passed in, so a view depends on nothing but its seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from .arms import remove_places, split_clauses
from .image_processing_tamiseg import IGNORE_INDEX
from .prompts import mirror_prompt
from .sentences import agreeing


# Weights of R, G and B in the brightness that the eye sees (ITU-R 601, the ones PIL uses for mode L).
LUMA = np.array([0.299, 0.587, 0.114])
FLIPS = {"horizontal": ImageOps.mirror, "vertical": ImageOps.flip}


@dataclass
class JointAugmentation:
    """A random view for stage 2: picture, mask and sentence stay true to each other.

    A flip rewrites the sentence ("left" becomes "right"). Turns by 90 degrees are never drawn, because no rewriting
    makes a sentence true again; rotation and translation are small enough to leave "left" on the left. A scale above 1
    together with a translation is a crop.

    What a sentence of a style that `sentences.parse` reads says of the mask, and says truly, stays true: a drawn
    motion that would end it is halved, then left out, and at last the flips are left out too.
    """

    horizontal_flip: float = 0.5  # probability
    vertical_flip: float = 0.0  # probability
    rotation_degrees: float = 10.0  # the angle is drawn from [-10, 10]
    translation: float = 0.05  # share of the width and of the height
    scale: tuple[float, float] = (0.9, 1.1)
    brightness: float = 0.2  # factors are drawn from [1 - 0.2, 1 + 0.2]
    contrast: float = 0.2
    gamma: float = 0.2
    keep_true: bool = True  # False: the sentence follows the flips only

    def __post_init__(self):
        for name in ("horizontal_flip", "vertical_flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability: give a number from 0 to 1, not {getattr(self, name)}.")
        for name in ("brightness", "contrast", "gamma"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} changes by a share: give a number from 0 to below 1, not {getattr(self, name)}."
                )
        _check_geometry(self.rotation_degrees, self.translation, self.scale)

    def __call__(
        self, image: Image.Image, mask: Image.Image, prompt: str | None, generator: np.random.Generator
    ) -> tuple[Image.Image, Image.Image, str | None]:
        """Draws one view.

        Args:
            image: RGB picture.
            mask: mode L, class ids, same size as `image`.
            prompt: the sentence, or None.
            generator: where all draws come from.

        Returns:
            RGB picture (bilinear, black where the view leaves the picture), mask (nearest, 0 there), sentence.

        Raises:
            ValueError: picture and mask differ in size.
        """
        if image.size != mask.size:
            raise ValueError(f"The picture is {image.size} and its mask {mask.size}: resize them to one size first.")
        chances = {"horizontal": self.horizontal_flip, "vertical": self.vertical_flip}
        flips = [axis for axis, chance in chances.items() if generator.random() < chance]
        motion = _draw_motion(generator, self.rotation_degrees, self.translation, self.scale)
        true_before = agreeing(prompt, _target(mask)) if self.keep_true else set()
        for kept_flips, strength in ((flips, 1.0), (flips, 0.5), (flips, 0.0), ([], 0.0)):
            affine = _affine(motion, image.size, strength)
            new_mask, new_prompt = mask, prompt
            for axis in kept_flips:
                new_mask, new_prompt = FLIPS[axis](new_mask), mirror_prompt(new_prompt, axis)
            new_mask = new_mask.transform(mask.size, Image.Transform.AFFINE, affine, Image.Resampling.NEAREST)
            if not true_before or true_before <= agreeing(new_prompt, _target(new_mask)):
                break
        for axis in kept_flips:
            image = FLIPS[axis](image)
        image = image.transform(image.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)

        # All three act on each channel value by itself, so one table of 256 entries does them in one pass.
        gamma = _draw_factor(generator, self.gamma)
        contrast = _draw_factor(generator, self.contrast)
        brightness = _draw_factor(generator, self.brightness)
        level = 255 * (np.arange(256) / 255) ** gamma
        mean = level[np.asarray(image.convert("L"))].mean()
        table = ((level - mean) * contrast + mean) * brightness
        return image.point(table.clip(0, 255).round().astype(int).tolist() * 3), new_mask, new_prompt


def measure_truth(
    augmentation: JointAugmentation, prompts: Sequence[str | None], masks: Sequence[Image.Image], seeds: Iterable[int]
) -> dict[str, float]:
    """How often everything that a sentence truly said of its mask is still true of the view's sentence and mask.

    Args:
        augmentation: draws one view per mask and seed.
        prompts, masks: the rows; masks of mode L with class ids.
        seeds: each gives all rows once.

    Returns:
        `rows`: views of rows whose sentence truly says something; `kept`: the share of them that stay as true.
    """
    kept = []
    for seed in seeds:
        for index, (prompt, mask) in enumerate(zip(prompts, masks, strict=True)):
            before = agreeing(prompt, _target(mask))
            if before:
                picture = Image.new("RGB", mask.size)
                generator = np.random.default_rng([seed, index])
                _, new_mask, new_prompt = augmentation(picture, mask, prompt, generator)
                kept.append(before <= agreeing(new_prompt, _target(new_mask)))
    return {"rows": len(kept), "kept": float(np.mean(kept)) if kept else 1.0}


@dataclass
class ConsistencyPerturbation:
    """The strongly perturbed view of stage 1 (ConDSeg, AAAI 2025; strengths as published, probabilities of the parts
    without a published one are ours), one draw per picture.

    It also says where each of its pixels came from, so that the clean picture, mask or logits can be aligned with it.
    """

    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.1  # share of the full colour circle
    grey: float = 0.5  # probability
    sharpness: float = 0.5  # 0 is off; the view lies between smoothed and sharpened by this much
    blur: tuple[float, float] = (0.1, 3.0)  # sigma in pixels of a picture whose shorter side is 256; (0, 0) is off
    rotation_degrees: float = 10.0
    translation: float = 0.05
    scale: tuple[float, float] = (0.95, 1.05)
    erasing: float = 0.4  # probability
    erasing_area: tuple[float, float] = (0.02, 0.2)  # share of the picture
    erasing_aspect: tuple[float, float] = (0.3, 3.3)  # height to width, in shares of the picture's own sides

    def __post_init__(self):
        for name in ("grey", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability: give a number from 0 to 1, not {getattr(self, name)}.")
        _check_geometry(self.rotation_degrees, self.translation, self.scale)

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
        """Draws one perturbed view.

        Args:
            image: RGB picture of any size.
            generator: where all draws come from.

        Returns:
            The RGB view, of the same size, and `affine`, float32 (2, 3), which maps places of the view to places of
            the picture in the convention of `torch.nn.functional.affine_grid` (align_corners=False), so that

            >>> grid = F.affine_grid(affine[None], clean.shape, align_corners=False)
            >>> aligned = F.grid_sample(clean, grid, align_corners=False)

            shows the clean (1, C, H, W) tensor, at any resolution, in the geometry of the view.
        """
        width, height = image.size
        image = self._jitter_colour(image, generator)
        amount = generator.uniform(-self.sharpness, self.sharpness)
        if amount:
            # Towards the smoothed picture for a negative amount, away from it for a positive one.
            image = Image.blend(image, image.filter(ImageFilter.SMOOTH), -amount)
        sigma = generator.uniform(*self.blur) * min(width, height) / 256
        if sigma:
            image = image.filter(ImageFilter.GaussianBlur(sigma))

        affine = _affine(_draw_motion(generator, self.rotation_degrees, self.translation, self.scale), image.size)
        image = image.transform(image.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
        if generator.random() < self.erasing:
            image = self._erase(image, generator)
        return image, _normalise_affine(affine, (width, height))

    def _jitter_colour(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        # Grey, saturation, hue, contrast and brightness are all affine in (R, G, B): one 3x4 matrix, one pass
        # (0.06 ms for 160x160, where a detour over HSV costs 0.8 ms).
        hue = 2 * math.pi * generator.uniform(-self.hue, self.hue)
        saturation = _draw_factor(generator, self.saturation)
        contrast = _draw_factor(generator, self.contrast)
        brightness = _draw_factor(generator, self.brightness)
        if generator.random() < self.grey:
            saturation = 0.0
        to_grey = np.tile(LUMA, (3, 1))
        # The hue turns around the grey diagonal (Rodrigues' formula), so grey pixels keep their value.
        around_diagonal = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
        turn = math.cos(hue) * np.eye(3) + (1 - math.cos(hue)) / 3 + math.sin(hue) * around_diagonal
        colour = to_grey + saturation * (np.eye(3) - to_grey) @ turn
        mean = np.asarray(image.convert("L")).mean()
        matrix = np.concatenate(
            [brightness * contrast * colour, np.full((3, 1), brightness * (1 - contrast) * mean)], 1
        )
        return image.convert("RGB", matrix.ravel().tolist())

    def _erase(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        pixels = np.array(image)
        height, width, _ = pixels.shape
        area = generator.uniform(*self.erasing_area)
        aspect = math.exp(generator.uniform(*np.log(self.erasing_aspect)))
        box_height = max(1, min(height, round(height * math.sqrt(area * aspect))))
        box_width = max(1, min(width, round(width * math.sqrt(area / aspect))))
        top = generator.integers(0, height - box_height + 1)
        left = generator.integers(0, width - box_width + 1)
        if generator.random() < 0.5:
            fill = generator.integers(0, 256, (box_height, box_width, 3), dtype=np.uint8)
        else:
            fill = pixels.mean(axis=(0, 1)).round().astype(np.uint8)
        pixels[top : top + box_height, left : left + box_width] = fill
        return Image.fromarray(pixels)


def shorten_prompt(prompt: str | None, generator: np.random.Generator) -> str | None:
    """Says less of what a sentence says: it loses its places, or some of its clauses (one stays). What is left is as
    true as it was.

    Args:
        prompt: a sentence, or None.
        generator: of the two draws that this takes.

    Returns:
        A sentence; None where there was none, or where it told nothing but places.
    """
    if prompt is None:
        return None
    loses_places, order = generator.random() < 0.5, generator.random(16)
    clauses = split_clauses(prompt)
    if loses_places or len(clauses) < 2:
        return remove_places(prompt)
    # Each clause stays with probability one half; the one with the smallest draw always does.
    draws = np.resize(order, len(clauses))
    kept = [c for c, draw in zip(clauses, draws, strict=True) if draw < 0.5 or draw == draws.min()]
    return ", ".join(kept)


def _check_geometry(rotation_degrees: float, translation: float, scale: tuple[float, float]) -> None:
    if not 0 <= rotation_degrees < 45:
        raise ValueError(f"rotation_degrees is {rotation_degrees}: stay below 45, a larger turn makes 'left' untrue.")
    if not 0 <= translation < 0.5:
        raise ValueError(f"translation is {translation}: stay below 0.5, or the picture leaves its frame.")
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale is {tuple(scale)}: give the smallest and the largest factor, both above 0.")


def _draw_factor(generator: np.random.Generator, strength: float) -> float:
    return generator.uniform(1 - strength, 1 + strength)


def _target(mask: Image.Image) -> np.ndarray:
    """The pixels that a sentence is about: any class but the background -> bool (height, width)."""
    ids = np.asarray(mask)
    return (ids > 0) & (ids != IGNORE_INDEX)


def _draw_motion(
    generator: np.random.Generator, rotation_degrees: float, translation: float, scale: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Draws an angle in radians, a factor, and a shift in shares of the width and of the height."""
    angle = math.radians(generator.uniform(-rotation_degrees, rotation_degrees))
    factor = generator.uniform(*scale)
    return angle, factor, generator.uniform(-translation, translation), generator.uniform(-translation, translation)


def _affine(motion: tuple[float, ...], size: tuple[int, int], strength: float = 1.0) -> tuple[float, ...]:
    """A motion about the centre of a picture of `size` (width, height); strength 0 leaves it where it is.

    Returns PIL's six numbers (a, b, c, d, e, f): the view's point (x, y) shows the picture's point
    (a x + b y + c, d x + e y + f), in pixels, where the first pixel's centre is at (0.5, 0.5).
    """
    width, height = size
    angle, factor, shift_x, shift_y = motion
    angle, factor = strength * angle, factor**strength
    # The inverse of "rotate, enlarge, shift": what PIL and affine_grid both ask for.
    a, b = math.cos(angle) / factor, math.sin(angle) / factor
    x, y = width * (0.5 + strength * shift_x), height * (0.5 + strength * shift_y)
    return a, b, width / 2 - a * x - b * y, -b, a, height / 2 + b * x - a * y


def _normalise_affine(affine: tuple[float, ...], size: tuple[int, int]) -> np.ndarray:
    """PIL's six numbers for a picture of `size` (width, height) -> float32 (2, 3) for `affine_grid`.

    There both axes run from -1 to 1 over the whole picture: x_pixel = (x + 1) * width / 2.
    """
    a, b, c, d, e, f = affine
    width, height = size
    return np.array(
        [
            [a, b * height / width, a + b * height / width + 2 * c / width - 1],
            [d * width / height, e, d * width / height + e + 2 * f / height - 1],
        ],
        dtype=np.float32,
    )
