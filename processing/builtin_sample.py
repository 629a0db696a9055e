# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The built-in sample: SYNTHETIC scan-like pictures drawn by code, no medical data.

Each picture holds one to four lesions and comes under three sentences, each of which names some of the lesions by
size, look, shape or place (about one in ten names none: its mask is empty). So a model that ignores the sentence
cannot be right; `sentence_blind_dice` says how far it could get. Left and right are the sides of the picture.

    python -m processing.builtin_sample                 # counts, and what ignoring the sentence costs
    python -m processing.builtin_sample --output DIR    # also writes DIR/<split>/metadata.jsonl, images/ and masks/
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .metrics import confusion, dice


SPLITS = {"train": 600, "validation": 120, "test": 120}  # rows
ROWS_PER_PICTURE = 3
PICTURE_SIZES = ((96, 96), (128, 96), (96, 144), (160, 120), (120, 120), (112, 140))  # (width, height)

# What a sentence may say of a lesion: at most one word of each group.
ATTRIBUTES = (
    ("small", "large"),
    ("bright", "dark"),
    ("round", "elongated", "irregular"),
    ("upper", "lower"),
    ("left", "right"),
)
# Every sentence's meaning: up to three of these words; a lesion is named when it has them all.
MEANINGS = [
    tuple(word for word in words if word)
    for words in itertools.product(*((None, *group) for group in ATTRIBUTES))
    if sum(word is not None for word in words) <= 3
]
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
# No centre lies within this share of the picture from a middle line, so that every lesion has its sides, and keeps
# them under a small rotation or shift.
MIDDLE_BAND = 0.1


@dataclass
class Lesion:
    """One lesion: `words` are all that can be said of it, `mask` is bool (height, width)."""

    words: frozenset[str]
    mask: np.ndarray


@dataclass
class Scene:
    """A picture, its lesions, and its sentences with the lesions that each of them names."""

    image: Image.Image
    lesions: list[Lesion]
    sentences: list[tuple[str, list[Lesion]]]


def draw_row(index: int, split: str = "train", seed: int = 0) -> dict:
    """Draws one row, the same on every machine.

    Args:
        index: 0 to SPLITS[split] - 1; three consecutive rows share a picture.
        split: "train", "validation" or "test".
        seed: another number gives another sample.

    Returns:
        `image` (mode RGB or L), `mask` (mode L, 0 and 255, the same size), `prompt`, `name` (of the row) and
        `patient_id` (of the picture, so that no picture is in two splits).

    Raises:
        ValueError: unknown split, or an index or seed out of range.
    """
    _check_split(split, seed)
    if not 0 <= index < SPLITS[split]:
        raise ValueError(f"The built-in {split} split has the rows 0 to {SPLITS[split] - 1}: there is no row {index}.")
    picture, sentence = divmod(index, ROWS_PER_PICTURE)
    return _picture_rows(split, picture, seed)[sentence]


def load_builtin_sample(split: str, num_rows: int | None = None, seed: int = 0) -> list[dict]:
    """Draws the rows of a split (see `draw_row`), or its first `num_rows`.

    Raises:
        ValueError: unknown split, seed out of range, or more rows asked for than the split has.
    """
    _check_split(split, seed)
    num_rows = SPLITS[split] if num_rows is None else num_rows
    if not 0 < num_rows <= SPLITS[split]:
        raise ValueError(
            f"The built-in {split} split has {SPLITS[split]} rows: ask for at most that many, not {num_rows}."
        )
    pictures = range(-(-num_rows // ROWS_PER_PICTURE))
    return [row for picture in pictures for row in _picture_rows(split, picture, seed)][:num_rows]


def sentence_blind_dice(rows: list[dict]) -> dict[str, float]:
    """The mean Dice per image of two predictors that see everything but the sentence; an empty mask predicted empty
    scores 1.

    Args:
        rows: rows of this sample; whole pictures (a multiple of three rows), or the second figure is too kind.

    Returns:
        `all_lesions`: each lesion drawn perfectly, whatever the sentence. `best_fixed_union`: for each picture the
        one union of its lesions (of all unions, the empty one too) that scores best over the picture's own rows; no
        predictor that ignores the sentence and draws whole lesions can do better.

    Raises:
        ValueError: a row is not of this sample.
    """
    masks_of_picture: dict[str, list[np.ndarray]] = {}
    for row in rows:
        masks_of_picture.setdefault(row["patient_id"], []).append(np.array(row["mask"]) > 0)
    all_lesions, best_fixed_union = [], []
    for patient_id, masks in masks_of_picture.items():
        lesions = _draw_scene(*_parse_patient_id(patient_id)).lesions
        scores = []
        for chosen in itertools.product((False, True), repeat=len(lesions)):  # from none to all
            union = np.zeros_like(masks[0])
            for lesion in itertools.compress(lesions, chosen):
                union |= lesion.mask
            scores.append([dice(*confusion(union, mask)[:3]) for mask in masks])
        all_lesions += scores[-1]
        best_fixed_union += max(scores, key=sum)
    return {"all_lesions": float(np.mean(all_lesions)), "best_fixed_union": float(np.mean(best_fixed_union))}


def write_image_folder(output: str | Path, seed: int = 0) -> None:
    """Writes all splits as an image folder: OUTPUT/<split>/metadata.jsonl, with PNGs in images/ and masks/."""
    for split in SPLITS:
        folder = Path(output) / split
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        with open(folder / "metadata.jsonl", "w", encoding="utf-8") as metadata:
            for row in load_builtin_sample(split, seed=seed):
                files = {
                    "image_file_name": f"images/{row['patient_id']}.png",
                    "mask_file_name": f"masks/{row['name']}.png",
                }
                row["image"].save(folder / files["image_file_name"])
                row["mask"].save(folder / files["mask_file_name"])
                metadata.write(json.dumps(files | {key: row[key] for key in ("prompt", "name", "patient_id")}) + "\n")


def _check_split(split: str, seed: int) -> None:
    if split not in SPLITS:
        raise ValueError(f"The built-in sample has the splits {', '.join(SPLITS)}: there is no {split!r}.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"A seed of the built-in sample is a number from 0 to 2**32 - 1, not {seed}.")


def _picture_rows(split: str, picture: int, seed: int) -> list[dict]:
    patient_id = f"builtin-{split}-{seed}-{picture:03d}"
    scene = _draw_scene(split, picture, seed)
    rows = []
    for number, (prompt, named) in enumerate(scene.sentences):
        mask = np.zeros((scene.image.height, scene.image.width), dtype=bool)
        for lesion in named:
            mask |= lesion.mask
        rows.append(
            {
                "image": scene.image.copy(),
                "mask": Image.fromarray(mask.astype(np.uint8) * 255),
                "prompt": prompt,
                "name": f"{patient_id}-{number}",
                "patient_id": patient_id,
            }
        )
    return rows


def _parse_patient_id(patient_id: str | None) -> tuple[str, int, int]:
    """The inverse of the id in `_picture_rows`: split, picture, seed."""
    match str(patient_id).split("-"):
        case ["builtin", split, seed, picture] if split in SPLITS:
            return split, int(picture), int(seed)
    raise ValueError(f"Only rows of the built-in sample can be traced to their lesions: {patient_id!r} is another's.")


def _draw_scene(split: str, picture: int, seed: int) -> Scene:
    # RandomState, because numpy promises its stream for all versions to come, which it does not for Generator. For
    # the same reason everything below is drawn with + - * / and square roots of float64, which every machine rounds
    # alike, and not with exp, sin or a filter of an image library.
    random = np.random.RandomState([seed, list(SPLITS).index(split), picture])
    width, height = PICTURE_SIZES[random.randint(len(PICTURE_SIZES))]
    canvas = _Canvas(width, height)
    tissue = _draw_tissue(canvas, random)
    marks = _draw_marks(canvas, random)
    lesions, contrast, cover = _draw_lesions(canvas, random)

    grain = random.random_sample((height, width)) - 0.5
    for _ in range(2):  # neighbours alike, as the speckle of ultrasound
        grain = (grain + sum(np.roll(grain, step, axis) for step in (-1, 1) for axis in (0, 1))) / 5
    levels = (tissue + marks * (1 - cover) + contrast) * (1 + 0.75 * grain)
    if random.random_sample() < 0.5:
        tint = np.array([(1.0, 0.94, 0.86), (0.88, 0.95, 1.0), (1.0, 0.9, 0.9)][random.randint(3)])
        levels = levels[..., None] * tint
    image = Image.fromarray(np.floor(levels.clip(0, 255)).astype(np.uint8))  # two axes make mode L, three RGB
    return Scene(image, lesions, _draw_sentences(lesions, random))


class _Canvas:
    """Pixel coordinates: `x` (1, width) and `y` (height, 1) in pixels, `short` the shorter side."""

    def __init__(self, width: int, height: int):
        self.width, self.height, self.short = width, height, min(width, height)
        self.x, self.y = np.arange(width)[None, :] + 0.5, np.arange(height)[:, None] + 0.5

    def oval(self, x: float, y: float, long: float, short: float, direction=(1.0, 0.0)) -> np.ndarray:
        """(height, width), 0 in the centre, 1 on the rim; half axes in pixels, the long one along `direction`."""
        along = (self.x - x) * direction[0] + (self.y - y) * direction[1]
        across = (self.y - y) * direction[0] - (self.x - x) * direction[1]
        return np.sqrt((along / long) ** 2 + (across / short) ** 2)

    def segment(self, x: float, y: float, x_step: float, y_step: float) -> np.ndarray:
        """(height, width), distance in pixels to the segment from (x, y) to (x + x_step, y + y_step)."""
        place = ((self.x - x) * x_step + (self.y - y) * y_step) / (x_step * x_step + y_step * y_step)
        place = place.clip(0, 1)
        return np.sqrt((self.x - x - place * x_step) ** 2 + (self.y - y - place * y_step) ** 2)


def _between(random: np.random.RandomState, low: float, high: float) -> float:
    return low + (high - low) * random.random_sample()


def _direction(random: np.random.RandomState) -> tuple[float, float]:
    """A unit vector of any angle, found without sine and cosine."""
    while True:
        x, y = _between(random, -1, 1), _between(random, -1, 1)
        length = np.sqrt(x * x + y * y)
        if 0.1 < length <= 1:
            return x / length, y / length


def _body(canvas: _Canvas) -> np.ndarray:
    return canvas.oval(canvas.width / 2, canvas.height / 2, 0.5 * canvas.width, 0.5 * canvas.height)


def _draw_tissue(canvas: _Canvas, random: np.random.RandomState) -> np.ndarray:
    """Grey levels (height, width): a body with a rim, a slope of brightness, and soft organs."""
    body = _body(canvas)
    inside = ((1 - body) * 12).clip(0, 1)
    tissue = _between(random, 100, 115)
    tissue = tissue + _between(random, -15, 15) * (canvas.x / canvas.width - 0.5)
    tissue = tissue + _between(random, -15, 15) * (canvas.y / canvas.height - 0.5)
    for side in (-1, 1):  # a pair of organs left and right of the middle
        oval = canvas.oval(
            canvas.width * (0.5 + side * _between(random, 0.17, 0.23)),
            canvas.height * _between(random, 0.42, 0.58),
            canvas.width * _between(random, 0.16, 0.22),
            canvas.height * _between(random, 0.26, 0.36),
        )
        tissue = tissue - _between(random, 16, 26) * (2 * (1 - oval)).clip(0, 1)
    tissue = tissue + 12 * (1 - abs(canvas.x / canvas.width - 0.5) * 14).clip(0, 1)  # what lies between them
    rim = (1 - abs(body - 0.96) * 25).clip(0, 1)
    return 22 + inside * (tissue - 22) + 35 * rim


def _draw_marks(canvas: _Canvas, random: np.random.RandomState) -> np.ndarray:
    """Grey levels to add (height, width): one to three thin marks, which no sentence ever means."""
    marks = np.zeros((canvas.height, canvas.width))
    for _ in range(random.randint(1, 4)):
        x, y = canvas.width * _between(random, 0.15, 0.85), canvas.height * _between(random, 0.15, 0.85)
        length = canvas.short * _between(random, 0.06, 0.1)
        kind = random.randint(4)
        if kind == 0:  # a long line
            step_x, step_y = _direction(random)
            distance = canvas.segment(x, y, step_x * 6 * length, step_y * 6 * length)
        elif kind == 1:  # a cross
            bars = canvas.segment(x - length, y, 2 * length, 0), canvas.segment(x, y - length, 0, 2 * length)
            distance = np.minimum(*bars)
        elif kind == 2:  # a ring
            distance = abs(canvas.oval(x, y, length, length) - 1) * length
        else:  # the ticks of a ruler along the lower edge
            ticks = np.arange(1, 10) * canvas.width / 10
            distance = np.minimum.reduce([canvas.segment(tick, canvas.height - 7, 0, 5) for tick in ticks])
        strength = _between(random, 35, 50) * (1 if random.random_sample() < 0.7 else -1)
        marks += strength * (1.2 - distance).clip(0, 1)
    return marks


def _draw_lesions(canvas: _Canvas, random: np.random.RandomState) -> tuple[list[Lesion], np.ndarray, np.ndarray]:
    """One to four lesions inside the body, well apart; with the grey levels they add and how far they cover what is
    below, in [0, 1], both (height, width)."""
    lesions, taken = [], []
    contrast, cover = np.zeros((2, canvas.height, canvas.width))
    body = _body(canvas)
    count = random.choice(4, p=(0.12, 0.24, 0.36, 0.28)) + 1
    # `outside` is the distance to the rim in radii, negative inside.
    while len(lesions) < count:  # small lesions find room beside any others, so this ends
        size, look = ("small", "large")[random.randint(2)], ("bright", "dark")[random.randint(2)]
        # Lobes of a few pixels could not be told from a disc, so that irregular lesions are large.
        shape = ("round", "elongated", "irregular")[random.randint(2 if size == "small" else 3)]
        radius = canvas.short * (_between(random, 0.055, 0.065) if size == "small" else _between(random, 0.125, 0.145))
        x, y = canvas.width * _between(random, 0.1, 0.9), canvas.height * _between(random, 0.1, 0.9)
        x_step, y_step = _direction(random)
        if shape == "irregular":  # a smaller disc with three lobes, evenly around it
            cosine, sine = -0.5, np.sqrt(0.75)  # of 120 degrees
            outside = canvas.oval(x, y, radius, radius) - 0.75
            for _ in range(3):
                x_step, y_step = cosine * x_step - sine * y_step, sine * x_step + cosine * y_step
                lobe = canvas.oval(x + 0.8 * radius * x_step, y + 0.8 * radius * y_step, radius, radius)
                outside = np.minimum(outside, lobe - _between(random, 0.35, 0.55))
            reach = 1.35 * radius
        else:
            stretch = 1.0 if shape == "round" else np.sqrt(_between(random, 2.4, 3.0))  # keeps the area
            outside = (canvas.oval(x, y, radius * stretch, radius / stretch, (x_step, y_step)) - 1) / stretch
            reach = radius * stretch
        mask = outside < 0
        strength = _between(random, 75, 95) if look == "bright" else _between(random, -64, -54)

        off_middle = min(abs(x / canvas.width - 0.5), abs(y / canvas.height - 0.5))
        free = all((x - x2) ** 2 + (y - y2) ** 2 > (reach + reach2 + 3) ** 2 for x2, y2, reach2 in taken)
        if off_middle < MIDDLE_BAND or not free or body[mask].max() > 0.85:
            continue
        sides = "upper" if y < canvas.height / 2 else "lower", "left" if x < canvas.width / 2 else "right"
        lesions.append(Lesion(frozenset((size, look, shape, *sides)), mask))
        taken.append((x, y, reach))
        soft = (0.5 - outside * radius / 1.5).clip(0, 1)  # a rim of one and a half pixels
        contrast += strength * soft
        cover += soft
    return lesions, contrast, cover.clip(0, 1)


def _draw_sentences(lesions: list[Lesion], random: np.random.RandomState) -> list[tuple[str, list[Lesion]]]:
    """Three sentences, which mean different lesions wherever the picture has enough to tell apart."""
    absent_row = random.randint(ROWS_PER_PICTURE) if len(lesions) == 1 or random.random_sample() < 0.2 else None
    named_by = {
        meaning: [number for number, lesion in enumerate(lesions) if lesion.words.issuperset(meaning)]
        for meaning in MEANINGS
    }
    sentences, named_before = [], []
    for row in range(ROWS_PER_PICTURE):
        possible = [meaning for meaning, named in named_by.items() if bool(named) == (row != absent_row)]
        possible = [meaning for meaning in possible if named_by[meaning] not in named_before] or possible
        # Drawn by number of words first, or the many meanings of three words would crowd out all others.
        lengths = sorted({len(meaning) for meaning in possible})
        weights = np.array([(1, 4, 4, 2)[length] for length in lengths])
        length = lengths[random.choice(len(lengths), p=weights / weights.sum())]
        possible = [meaning for meaning in possible if len(meaning) == length]
        meaning = possible[random.randint(len(possible))]
        named = named_by.pop(meaning)
        named_before.append(named)
        sentences.append((_write_sentence(meaning, len(named), random), [lesions[number] for number in named]))
    return sentences


def _write_sentence(meaning: tuple[str, ...], count: int, random: np.random.RandomState) -> str:
    """Puts the meaning into one of many wordings; `count` is how many lesions it names (0: it only claims to)."""

    def pick(*options: str) -> str:
        return options[random.randint(len(options))]

    count = count or random.randint(1, 3)
    vertical = next((word for word in meaning if word in ("upper", "lower")), None)
    side = next((word for word in meaning if word in ("left", "right")), None)
    edge = {"upper": "top", "lower": "bottom"}.get(vertical)
    if vertical and side:
        where = pick(f"in the {vertical} {side}", f"in the {vertical} {side} part", f"at the {edge} {side}")
    elif vertical:
        where = pick(f"in the {vertical} half", f"in the {vertical} part", f"at the {edge}")
    elif side:
        where = pick(f"on the {side}", f"on the {side} side", f"in the {side} half")
    else:
        where = pick("", "in the picture")

    adjectives = " ".join(word for word in meaning if word not in (vertical, side))
    one, many = (f"{adjectives} {noun}".strip() for noun in pick("lesion lesions", "spot spots").split())
    if count == 1:
        what = pick(f"the {one}", f"one {one}", one, f"every {one}", f"all {many}")
    else:
        what = pick(f"the {many}", f"{NUMBERS[count]} {many}", many, f"every {one}", f"all {many}")
    return pick(*(f"{verb}{what} {where}" for verb in ("", "find ", "mark ")), f"{where}, {what}").strip(", ")


def main() -> None:
    parser = argparse.ArgumentParser(description="The built-in synthetic sample: counts, and the Dice without words.")
    parser.add_argument("--output", help="folder to write the sample to, as image folders with metadata.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        _check_split("train", arguments.seed)
    except ValueError as error:
        parser.error(str(error))
    for split in SPLITS:
        rows = load_builtin_sample(split, seed=arguments.seed)
        absent = sum(row["mask"].getbbox() is None for row in rows)
        blind = sentence_blind_dice(rows)
        print(
            f"{split}: {len(rows)} rows, {len({row['patient_id'] for row in rows})} pictures, {absent} empty masks; "
            f"Dice without the sentence: all lesions {blind['all_lesions']:.3f}, "
            f"best fixed union {blind['best_fixed_union']:.3f}"
        )
    if arguments.output:
        write_image_folder(arguments.output, arguments.seed)
        print(f"Written to {arguments.output}")


if __name__ == "__main__":
    main()
