# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""A large picture cut into overlapping tiles."""

from collections.abc import Iterator

import torch


def tiles(
    size: tuple[int, int], tile_size: int, overlap: int, stride: int
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Rows, columns and weights `(height, width)` of the tiles of a picture of `size`, a multiple of `stride`.

    Tiles begin and end on the stride, so that every cell of every map is the one that the whole picture has. Weights
    fall linearly over the overlap towards a cut, and stay 1 at the picture's own border.

    Raises:
        ValueError: if the overlap is no less than half a tile.
    """
    tile_size, overlap = (-(-pixels // stride) * stride for pixels in (tile_size, overlap))
    if not 0 <= overlap < tile_size / 2:
        raise ValueError(f"an overlap of {overlap} pixels is too much for tiles of {tile_size}: give less than half.")
    for rows, row_weight in _cuts(size[0], tile_size, overlap):
        for columns, column_weight in _cuts(size[1], tile_size, overlap):
            yield rows, columns, row_weight[:, None] * column_weight


def _cuts(length: int, tile_size: int, overlap: int) -> Iterator[tuple[slice, torch.Tensor]]:
    start = 0
    while True:
        end = min(start + tile_size, length)
        weight = torch.ones(end - start)
        fade = (torch.arange(overlap) + 0.5) / max(overlap, 1)
        if start > 0:
            weight[:overlap] = fade[: len(weight)]
        if end < length:
            weight[len(weight) - overlap :] = fade.flip(0)
        yield slice(start, end), weight
        if end == length:
            return
        start = end - overlap
