# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""What a sentence says of a mask, what the mask itself says, and a sentence written from the mask.

Three styles, those of the paper's data sets, each a dictionary of attributes:

    lung    side (which lungs), count (infected areas), zones (of each lung: upper, middle, lower)
            "bilateral pulmonary infection, two infected areas, all left lung and middle lower right lung."
    polyp   count, size (small, medium, large), place (where each lies, in a grid of three by three)
            "one medium polyp, located in top right of the image"
    nuclei  distribution (evenly, sparsely, irregularly, or where they are dense)
            "The nuclei density in the upper left is high."

The rules of `describe`, all in shares of the picture, so that they hold at any resolution. Left and right are sides of
the picture. An area is a set of pixels that touch, corners included; one of less than 6 pixels in 10,000 is a speck,
left out unless there is nothing else.

    count   areas
    side    the halves of the picture that hold at least a speck's worth of an area
    zones   of each half's part of each area. Its height is measured on a scale whose 0 is a tenth below the top of the
            picture and whose 1 is the lowest infected pixel (at least 0.6 below the top), because the lungs fill that
            stretch. upper: it begins above 0.25; lower: it ends below 0.65; middle: it begins above 0.35 and ends
            below 0.6, or is neither upper nor lower. "all" is all three. The borders were chosen on the training part
            of QaTa-COV19.
    size    of each polyp, by area: small below 0.083, large above 0.307, the borders of Kvasir-SEG's own sentences
    place   the cell of the 3 by 3 grid that holds the centre of the polyp's bounding box
    distribution  of the share of nuclei in the cells of a 5 by 5 grid: where its deviation exceeds a quarter of its
            mean, the side or corner with over 1.05 times the mean ("irregularly" if there is none); else "sparsely"
            below 0.23 and "evenly" above

How well these rules agree with real sentences is measured by `tamiseg data sentences DATA`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image


STYLES = ("lung", "polyp", "nuclei")
SIDES = ("left", "right")
ZONES = ("upper", "middle", "lower")
SIZES = ("small", "medium", "large")
PLACES = (("top left", "top", "top right"), ("left", "center", "right"), ("bottom left", "bottom", "bottom right"))
NUMBERS = "no one two three four five six seven eight nine ten eleven twelve".split()

SPECK = 0.0006
LUNG_TOP, LUNG_BOTTOM = 0.1, 0.6
SMALL_BELOW, LARGE_ABOVE = 0.083, 0.307
UNEVEN, DENSE, SPARSE = 0.25, 1.05, 0.23


# A mask to attributes


def describe(mask: np.ndarray, style: str) -> dict[str, object]:
    """Computes the attributes of a mask by the rules above.

    Args:
        mask: bool (height, width).
        style: "lung", "polyp" or "nuclei".

    Returns:
        lung: {"side": frozenset of "left", "right"; "count": int; "zones": frozenset of ("left", "upper"), ...}.
        polyp: {"count": int; "size": frozenset; "place": sorted tuple, one for each polyp}.
        nuclei: {"distribution": "evenly", "upper left", ...; None where there are none}.

    Raises:
        ValueError: unknown style.
    """
    _check_style(style)
    if style == "nuclei":
        return {"distribution": _distribution(mask)}
    labels, found, areas = _find_areas(mask)
    if style == "polyp":
        height, width = mask.shape
        rows = [int(3 * (rows.start + rows.stop) / 2 / height) for _, (rows, _) in found]
        columns = [int(3 * (columns.start + columns.stop) / 2 / width) for _, (_, columns) in found]
        return {
            "count": len(found),
            "size": frozenset(SIZES[int(area >= SMALL_BELOW) + int(area > LARGE_ABOVE)] for area in areas),
            "place": tuple(sorted(PLACES[row][column] for row, column in zip(rows, columns, strict=True))),
        }
    zones = _lung_zones(labels, found)
    return {"side": frozenset(side for side, _ in zones), "count": len(found), "zones": zones}


def _find_areas(mask: np.ndarray):
    """Labels (height, width); of each area its label and bounding box; and its share of the picture."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, np.ones((3, 3)))
    if count == 0:
        return labels, [], []
    areas = np.bincount(labels.ravel())[1:] / mask.size
    kept = np.flatnonzero(areas >= min(SPECK, areas.max()))
    boxes = ndimage.find_objects(labels)
    return labels, [(index + 1, boxes[index]) for index in kept], areas[kept]


def _lung_zones(labels: np.ndarray, found: list) -> frozenset[tuple[str, str]]:
    height, width = labels.shape
    bottom = max([LUNG_BOTTOM, *(rows.stop / height for _, (rows, _) in found)])
    zones = set()
    for label, (rows, columns) in found:
        inside = labels[rows, columns] == label
        middle = min(max(0, width // 2 - columns.start), inside.shape[1])
        halves = {"left": inside[:, :middle], "right": inside[:, middle:]}
        # A sliver across the middle line is not the other lung; a lone speck keeps its side.
        least = min(SPECK * labels.size, max(half.sum() for half in halves.values()))
        for side, half in halves.items():
            if half.sum() < max(1, least):
                continue
            filled = np.flatnonzero(half.any(axis=1))
            ends = np.array([rows.start + filled[0], rows.start + filled[-1] + 1]) / height
            start, end = (ends - LUNG_TOP) / (bottom - LUNG_TOP)
            named = {"upper": start < 0.25, "lower": end > 0.65}
            named["middle"] = (start < 0.35 and end > 0.6) or not any(named.values())
            zones |= {(side, zone) for zone in ZONES if named[zone]}
    return frozenset(zones)


def _distribution(mask: np.ndarray) -> str | None:
    if not mask.any():
        return None
    height, width = mask.shape
    cells = np.asarray(Image.fromarray(mask.astype(np.float32)).resize((5, 5), Image.Resampling.BOX))
    mean = mask.mean()
    if cells.std() <= UNEVEN * mean:
        return "sparsely" if mean < SPARSE else "evenly"
    halves = {
        "upper": mask[: (height + 1) // 2],
        "lower": mask[height // 2 :],
        "left": mask[:, : (width + 1) // 2],
        "right": mask[:, width // 2 :],
    }
    return " ".join(side for side, half in halves.items() if half.mean() > DENSE * mean) or "irregularly"


# A sentence to attributes


@lru_cache(maxsize=4096)  # QaTa-COV19 has 167 sentences for 9258 pictures
def parse(sentence: str | None) -> tuple[str, dict[str, object]] | None:
    """Reads a sentence of one of the three styles, in any of `write`'s wordings and those of the real data sets.

    Returns:
        The style and the attributes that the sentence states, in the form of `describe` (do not change them: they are
        kept); None where the sentence is of no style we know.
    """
    words = (sentence or "").lower()
    if "nuclei" in words:
        return _known("nuclei", _parse_nuclei(words))
    if "lung" in words or "pulmonary" in words:
        return _known("lung", _parse_lung(words))
    return _known("polyp", _parse_polyp(words))


def _known(style: str, attributes: dict) -> tuple[str, dict] | None:
    return (style, attributes) if attributes else None


def _parse_lung(words: str) -> dict:
    if re.search(r"\bno (pulmonary infection|infected area|infection)", words):
        return {"side": frozenset(), "count": 0, "zones": frozenset()}
    zones = set()
    for named, side in re.findall(rf"((?:\b(?:all|{'|'.join(ZONES)})\s+)+)(left|right) lung", words):
        zones |= {(side, zone) for zone in ZONES if zone in named or "all" in named}
    if not zones:
        return {}
    return {"side": frozenset(side for side, _ in zones), "zones": frozenset(zones)} | _count(words, "infected area")


def _parse_polyp(words: str) -> dict:
    if re.search(r"\bno (?:\w+ )?(?:polyp|tumou?r|lesion)", words):
        return {"count": 0, "size": frozenset(), "place": ()}
    place = r"(?:top left|top right|bottom left|bottom right|top|bottom|left|right|center)"
    places = re.search(rf"\b(?:in|at) (?:the )?({place}(?:, {place})*)(?: (?:of|in) |\W*$)", words)
    sizes = re.search(rf"\b({'|'.join(SIZES)})(?:, ({'|'.join(SIZES)}))*\b", words)
    if not places or not re.search(r"polyp|tumou?r|lesion", words):
        return {}
    attributes = {"place": tuple(sorted(places[1].split(", ")))} | _count(words, "")
    return attributes | ({"size": frozenset(sizes[0].split(", "))} if sizes else {})


def _parse_nuclei(words: str) -> dict:
    if re.search(r"\bno nuclei", words):
        return {"distribution": None}
    if match := re.search(r"\b(evenly|sparsely|irregularly)\b", words):
        return {"distribution": match[1]}
    match = re.search(r"\b(?:in|towards) the ((?:(?:upper|lower|left|right)\b ?)+)", words)
    return {"distribution": match[1].strip()} if match else {}


def _count(words: str, thing: str) -> dict:
    number = re.search(rf"\b({'|'.join(NUMBERS[1:])}|\d+)\b[^.;]*?{thing}", words)
    if number is None:
        return {}
    return {"count": NUMBERS.index(number[1]) if number[1] in NUMBERS else int(number[1])}


# Attributes to a sentence


WORDINGS = 3
NO_FINDING = {
    "lung": ("no pulmonary infection.", "no infected area in either lung.", "no infection, both lungs are clear."),
    "polyp": ("no polyp in the image", "no polyp", "an image with no polyp"),
    "nuclei": ("There are no nuclei.", "The image shows no nuclei.", "no nuclei."),
}


def write(attributes: dict[str, object], style: str, wording: int = 0) -> str:
    """Writes a sentence from all attributes of `describe`; `parse` reads them back.

    Args:
        attributes: what `describe` gives.
        style: "lung", "polyp" or "nuclei".
        wording: 0 for the wording of the real data set, 1 and 2 for others.

    Raises:
        ValueError: unknown style or wording.
    """
    _check_style(style)
    if wording not in range(WORDINGS):
        raise ValueError(f"There is no wording {wording}: choose one of 0 to {WORDINGS - 1}.")
    if style == "nuclei":
        where = attributes["distribution"]
        if where is None:
            return NO_FINDING[style][wording]
        if where.endswith("ly"):
            patterns = ("The nuclei are {} distributed.", "{} distributed nuclei.", "Nuclei lie {} over the image.")
        else:
            patterns = (
                "The nuclei density in the {} is high.",
                "Nuclei are dense in the {}.",
                "Most nuclei lie towards the {}.",
            )
        sentence = patterns[wording].format(where)
        return sentence[0].upper() + sentence[1:]
    count = attributes["count"]
    if count == 0:
        return NO_FINDING[style][wording]
    number = NUMBERS[count] if count < len(NUMBERS) else str(count)
    if style == "polyp":
        size = ", ".join(size for size in SIZES if size in attributes["size"])
        places, many = ", ".join(attributes["place"]), "" if count == 1 else "s"
        return (
            f"{number} {size} polyp, located in {places} of the image",
            f"{number} {size} polyp{many} at the {places}",
            f"an image with {number} {size} polyp{many} in the {places} of the view",
        )[wording]
    lungs = " and ".join(_lung(side, attributes["zones"]) for side in SIDES if side in attributes["side"])
    reach = "bilateral" if len(attributes["side"]) == 2 else "unilateral"
    areas = f"{number} infected area{'' if count == 1 else 's'}"
    return (
        f"{reach} pulmonary infection, {areas}, {lungs}.",
        f"{areas} in {lungs}.",
        f"pulmonary infection of {lungs}, {areas}.",
    )[wording]


def _lung(side: str, zones: frozenset) -> str:
    named = [zone for zone in ZONES if (side, zone) in zones]
    return f"{'all' if len(named) == len(ZONES) else ' '.join(named)} {side} lung"


def _check_style(style: str) -> None:
    if style not in STYLES:
        raise ValueError(f"There is no style '{style}': choose one of {', '.join(STYLES)}.")


# Sentence against mask


def compare(prompt: str | None, mask: np.ndarray) -> dict[str, float]:
    """How far a mask (bool) bears out what the sentence states: each attribute is told 1 or 0. For lungs also
    `each_zone`, the share of the six zones (two lungs, three each) that are told alike. Nothing where the sentence is
    of no style we know."""
    known = parse(prompt)
    if known is None:
        return {}
    style, said = known
    seen = describe(mask, style)
    found = {name: float(seen[name] == value) for name, value in said.items()}
    if style == "lung":
        found["each_zone"] = 1 - len(said["zones"] ^ seen["zones"]) / 6
    return found


def agreeing(prompt: str | None, mask: np.ndarray) -> set[str]:
    """The attributes that the sentence states and the mask (bool) bears out; none where the sentence is not read."""
    return {name for name, share in compare(prompt, mask).items() if share == 1 and name != "each_zone"}


def measure_agreement(prompts: Sequence[str | None], masks: Iterable[np.ndarray]) -> dict:
    """How often sentences agree with their masks.

    Returns:
        `rows`, `read` (sentences of a known style), and of these `agreement`: the mean of `compare` over the rows that
        state an attribute.
    """
    compared = [compare(prompt, mask) for prompt, mask in zip(prompts, masks, strict=True)]
    right: dict[str, list[float]] = {}
    for found in compared:
        for name, share in found.items():
            right.setdefault(name, []).append(share)
    return {
        "rows": len(prompts),
        "read": sum(map(bool, compared)),
        "agreement": {name: float(np.mean(shares)) for name, shares in right.items()},
    }
