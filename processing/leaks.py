# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""What two splits share that they should not: patients, studies, pictures, near-duplicate pictures, sentences.

    report = find_leaks(trace(row, split) for ...)
    print(leak_table(report))

Near-duplicates are told by a perceptual hash of 256 bits (16 by 16 frequencies). At most 40 differing bits count as
the same picture: in QaTa-COV19 such pairs are one radiograph saved twice, while from about 50 bits on, or with the
usual hash of 64 bits, pictures of different patients in the same pose match. Frames of one video that were taken from
different places are not found.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from PIL import Image

from .data import read_row
from .image_processing_tamiseg import TAMISegImageProcessor
from .prompts import normalize_prompt


HASH_SIDE = 16
NEAR = 40  # of HASH_SIDE ** 2 bits
KINDS = ("patient", "study", "picture", "near picture", "sentence")


@dataclass(frozen=True)
class Trace:
    """What is compared of one row. `pixels` is a SHA-256 of the decoded picture, so the file format does not count;
    `look` its perceptual hash, bool (256,)."""

    split: str
    name: str
    patient: str | None
    study: str | None
    sentence: str | None
    pixels: str
    look: np.ndarray


def trace(image: Image.Image, split: str, name: str, patient=None, study=None, sentence=None) -> Trace:
    """Takes the trace of one row; `image` is RGB or L."""
    pixels = hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).hexdigest()
    sentence = normalize_prompt(sentence)
    return Trace(split, name, patient, study, sentence and sentence.lower(), pixels, look_of(image))


def look_of(image: Image.Image) -> np.ndarray:
    """The perceptual hash of a picture (RGB or L) -> bool (256,)."""
    import imagehash

    return imagehash.phash(image.convert("L"), hash_size=HASH_SIDE).hash.ravel()


def trace_rows(rows: Sequence[dict], split: str) -> list[Trace]:
    """The traces of what `load_rows` gives. Studies are not known there."""
    loader = TAMISegImageProcessor()
    read = (read_row(rows, index) for index in range(len(rows)))
    return [
        trace(loader.load_image(row["image"]), split, row["name"], row["patient_id"], sentence=row["prompt"])
        for row in read
    ]


def find_leaks(traces: Iterable[Trace]) -> dict:
    """Compares each two splits.

    Returns:
        JSON-ready: `rows` and `patients` (split -> count), `unknown_patients` (split -> rows without one),
        `near_bits`, and `pairs`, one for each kind and each two splits: `kind`, `splits`, `shared` (how many patients,
        pictures, ...; of near pictures, how many pairs; None where a split knows none), `rows` (how many rows of
        either split are concerned) and `values`: the patients, studies or sentences, the names of equal pictures,
        [name, name, differing bits] of near ones.
    """
    splits: dict[str, list[Trace]] = defaultdict(list)
    for one in traces:
        splits[one.split].append(one)
    pairs = []
    for first, second in combinations(splits, 2):
        for kind, attribute in (("patient", "patient"), ("study", "study"), ("sentence", "sentence")):
            values, rows = _shared(splits[first], splits[second], attribute)
            pairs.append(_pair(kind, first, second, sorted(values), rows))
            if any(all(getattr(t, attribute) is None for t in splits[split]) for split in (first, second)):
                pairs[-1]["shared"] = None
        values, rows = _shared(splits[first], splits[second], "pixels")
        names = [sorted(t.name for t in splits[first] + splits[second] if t.pixels == value) for value in values]
        pairs.append(_pair("picture", first, second, sorted(names), rows))
        near, rows = _near_pairs(splits[first], splits[second])
        pairs.append(_pair("near picture", first, second, near, rows))
    return {
        "rows": {split: len(traces) for split, traces in splits.items()},
        "patients": {split: len({t.patient for t in traces} - {None}) for split, traces in splits.items()},
        "unknown_patients": {split: sum(t.patient is None for t in traces) for split, traces in splits.items()},
        "near_bits": NEAR,
        "pairs": sorted(pairs, key=lambda pair: KINDS.index(pair["kind"])),
    }


def find_families(looks: Sequence[np.ndarray], known: Sequence[Sequence[str | None]]) -> np.ndarray:
    """Groups that no split may part: of pictures that look alike, of one patient or study, and what these connect.

    Args:
        looks: of each case bool (pictures, 256), see `look_of`.
        known: of each case its patient and its study, None where unknown.

    Returns:
        A number for each case, int (cases,), the same for those of one group.
    """
    owners = np.repeat(np.arange(len(looks)), [len(one) for one in looks])
    # Equal looks are compared once: of volumes, hundreds of slices are black.
    distinct, which = np.unique(np.concatenate(looks), axis=0, return_inverse=True)
    first_with: dict[tuple, int] = {}
    ties = [(case, first_with.setdefault(("look", look), case)) for case, look in zip(owners, which, strict=True)]
    ties += [(first_with["look", a], first_with["look", b]) for a, b, _ in _near(distinct, distinct)]
    return connect(known, ties)


def connect(known: Sequence[Sequence], ties: Sequence[tuple[int, int]] = ()) -> np.ndarray:
    """Groups of cases that share a value, and of what these connect.

    Args:
        known: of each case its values, such as patient and study; those of one place are compared, None is unknown.
        ties: pairs of cases that belong together besides.

    Returns:
        As `find_families`.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first_with: dict[tuple, int] = {}
    ties = list(ties)
    for case, values in enumerate(known):
        named = [(kind, value) for kind, value in enumerate(values) if value is not None]
        ties += [(case, first_with.setdefault(key, case)) for key in named]
    ends = np.array(ties, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(ties)), tuple(ends)), shape=(len(known), len(known)))
    return connected_components(graph, directed=False)[1]


def leak_table(report: dict) -> str:
    """The report as a Markdown table: "2 (4 + 3 rows, 2.50 % of test)" are 2 shared ones, in 4 rows of the first split
    and 3 of the second."""
    columns = list(dict.fromkeys(tuple(pair["splits"]) for pair in report["pairs"]))
    if not columns:
        return "There is one split only: nothing to compare."
    lines = [
        "| same | " + " | ".join(" and ".join(column) for column in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for kind in KINDS:
        cells = []
        for column in columns:
            pair = next(p for p in report["pairs"] if p["kind"] == kind and tuple(p["splits"]) == column)
            share = 100 * pair["rows"][1] / max(1, report["rows"][column[1]])
            detail = f" ({pair['rows'][0]} + {pair['rows'][1]} rows, {share:.2f} % of {column[1]})"
            cells.append("unknown" if pair["shared"] is None else f"{pair['shared']}" + detail * bool(pair["shared"]))
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    unknown = [f"{count} of {report['rows'][split]} in {split}" for split, count in report["unknown_patients"].items()]
    return "\n".join([*lines, "", f"Rows of unknown patients: {', '.join(unknown)}."])


def _pair(kind: str, first: str, second: str, values: list, rows: list[int]) -> dict:
    return {"kind": kind, "splits": [first, second], "shared": len(values), "rows": rows, "values": values}


def _shared(first: list[Trace], second: list[Trace], attribute: str) -> tuple[set, list[int]]:
    values = {getattr(t, attribute) for t in first} & {getattr(t, attribute) for t in second} - {None}
    return values, [sum(getattr(t, attribute) in values for t in part) for part in (first, second)]


def _near_pairs(first: list[Trace], second: list[Trace]) -> tuple[list[list], list[int]]:
    """[name, name, differing bits] of the looks that are alike, equal ones included, each by the name of the first
    picture that has it: of volumes, hundreds of slices are black. And how many rows of either part have one."""
    looks, names, counts = [], [], []
    for part in (first, second):
        distinct, places, count = np.unique([t.look for t in part], axis=0, return_index=True, return_counts=True)
        looks.append(distinct)
        names.append([part[place].name for place in places])
        counts.append(count)
    found = list(_near(*looks))
    rows = [int(sum(count[list({pair[side] for pair in found})])) for side, count in enumerate(counts)]
    return sorted([[names[0][a], names[1][b], bits] for a, b, bits in found], key=lambda pair: pair[::-1]), rows


def _near(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Row of the first, row of the second, differing bits, of all looks that are near."""
    first, second = first.astype(np.float32), second.astype(np.float32)
    for start in range(0, len(first), 1024):  # 1024 x 10,000 distances at a time
        block = first[start : start + 1024]
        bits = block.sum(axis=1)[:, None] + second.sum(axis=1)[None] - 2 * block @ second.T
        for row, column in np.argwhere(bits <= NEAR):
            yield start + int(row), int(column), int(bits[row, column])
