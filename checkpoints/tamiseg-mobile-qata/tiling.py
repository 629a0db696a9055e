# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""A large picture cut into overlapping tiles, and how large they may be."""

import math
import weakref
from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


LEAST_TILE = 128
PROBE = 256  # side of the tile on which memory is measured
# What a process takes over what its tensors hold: the allocator's gaps, oneDNN's own buffers. Measured for tiles of
# 512 to 2048 pixels: 1.0 to 1.15 times and up to 40 MB.
SLACK, SPARE = 1.2, 48 * 2**20


def tiles(
    size: tuple[int, int], tile_size: int, overlap: int | None, stride: int
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Rows, columns and weights `(height, width)` of the tiles of a picture of `size`, a multiple of `stride`.

    Tiles begin and end on the stride, so that every cell of every map is the one that the whole picture has. Weights
    fall linearly over the overlap towards a cut, and stay 1 at the picture's own border.

    Args:
        overlap: None for a quarter of a tile.

    Raises:
        ValueError: if the overlap is no less than half a tile, or the tile too small for a quarter of it.
    """
    if overlap is None:
        overlap = tile_size // 4 if tile_size > 2 * stride else 0
        if overlap == 0 and tile_size < max(size):
            raise ValueError(
                f"tile_size is {tile_size}, too small for tiles that overlap by a stride of {stride} pixels: give "
                f"more than {2 * stride}, or an overlap of 0."
            )
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


def tile_within(max_memory: int, bytes_per_pixel: float, tile_size: int, picture_size: int, stride: int) -> int:
    """The side of the largest square tile, a multiple of `stride` and no larger than `tile_size`, for which
    `bytes_per_pixel` stay within `max_memory`.

    Args:
        picture_size: the picture's longer side, beyond which no tile goes.

    Raises:
        ValueError: if not even `LEAST_TILE` fits, or the picture where that is smaller.
    """
    tile_size = min(tile_size, picture_size)
    side = math.isqrt(max(0, int((max_memory - SPARE) / (SLACK * bytes_per_pixel)))) // stride * stride
    least = min(LEAST_TILE, tile_size)
    if side < least:
        lacking = SPARE + SLACK * bytes_per_pixel * (-(-least // stride) * stride) ** 2 - max_memory
        mib = math.ceil(lacking / 2**20)
        raise ValueError(f"max_memory is {mib} MiB too little for tiles of {least} pixels: give more.")
    return min(tile_size, side)


class PeakMemory(TorchDispatchMode):
    """Within it, `peak` is the most bytes that tensors made there held at once: on any device, and whatever the
    allocator keeps for later.

    ```python
    >>> with PeakMemory() as memory:
    ...     model(pixel_values)
    >>> memory.peak
    ```"""

    def __init__(self):
        super().__init__()
        self.held = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # What an operation is given was there before, or is counted already; what it gives may be a view of that.
        self._known.update(_storages((args, kwargs)))
        result = function(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in self._known:
                self._known.add(storage)
                self.held += storage.nbytes()
                self.peak = max(self.peak, self.held)
                weakref.finalize(storage, self._free, storage.nbytes())
        return result

    def _free(self, num_bytes: int) -> None:
        self.held -= num_bytes


def _storages(tree) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
