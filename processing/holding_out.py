# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Validation rows drawn from those of training, for data that came without a split of that name."""

from __future__ import annotations

import numpy as np

from .data import column, number_pictures
from .leaks import connect


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
    # A picture of two patients ties them together.
    groups = connect(list(zip(column(rows, "patient_id"), number_pictures(rows), strict=True)))
    names, sizes = np.unique(groups, return_counts=True)
    if len(names) < 2:
        raise ValueError("all training rows are of one patient or picture: there is none to hold out for validation.")
    order = np.random.default_rng(seed).permutation(len(names))
    count = 1 + np.searchsorted(np.cumsum(sizes[order]), share * len(rows))
    held_out = np.isin(groups, names[order[: min(count, len(names) - 1)]])
    return rows.select(np.flatnonzero(~held_out)), rows.select(np.flatnonzero(held_out))
