# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Validation rows drawn from those of training, for data that came without a split of that name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from .data import column


def hold_out(rows, share: float, seed: int = 0) -> tuple:
    """Parts rows by chance, so that no patient and no picture is on both sides.

    Args:
        rows: a `datasets.Dataset` as `load_rows` gives it.
        share: of the rows that are held out, above 0 and below 1; it may be passed by those of the last patient or
            picture, and one patient or picture always stays.
        seed: of the draw. It is not the run's: both stages and all seeds of a comparison hold out the same rows.

    Returns:
        The rows that stay and those that are held out, both in their order.

    Raises:
        ValueError: all rows are of one patient or picture.
    """
    from datasets import Image

    images = rows.select_columns("image").cast_column("image", Image(decode=False))
    files = (image["bytes"] or Path(image["path"]).read_bytes() for image in images["image"])
    pictures = [hashlib.sha256(file).hexdigest() for file in files]
    groups = np.arange(len(rows))
    for names in (column(rows, "patient_id"), pictures):  # a picture of two patients ties them together
        first: dict[str, int] = {}
        for index, name in enumerate(names):
            if name is not None:
                other = first.setdefault(name, index)
                groups[groups == groups[index]] = groups[other]
    names, sizes = np.unique(groups, return_counts=True)
    if len(names) < 2:
        raise ValueError("all training rows are of one patient or picture: there is none to hold out for validation.")
    order = np.random.default_rng(seed).permutation(len(names))
    count = 1 + np.searchsorted(np.cumsum(sizes[order]), share * len(rows))
    held_out = np.isin(groups, names[order[: min(count, len(names) - 1)]])
    return rows.select(np.flatnonzero(~held_out)), rows.select(np.flatnonzero(held_out))


def pick(rows, most: int | None, seed: int = 0):
    """A random subset of so many rows, in their order, where there are more."""
    if most is None or most >= len(rows):
        return rows
    return rows.select(np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False)))
