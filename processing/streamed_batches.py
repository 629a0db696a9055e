# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Passes over a stream that several processes and their workers share: each row once, in full steps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from .data import collate


class StreamedBatches:
    """Batches of one step each, on the accelerator's device. All steps of a pass are full but the last, so that `n`
    rows make `ceil(n / rows per step)` steps, on every process alike.

    Shares are seldom of one size: those of processes differ by the groups of rows in a file, and each worker ends with
    a batch of its own that is short. Short batches of a process are joined; once the first share has ended, all lay
    what they still read into one pool, and cut their parts from it. Only that tail of a pass is sent about.

    Args:
        loader: over a `StreamedSegmentationDataset` that reads this process's share.
        accelerator: an `Accelerator`.
    """

    def __init__(self, loader: DataLoader, accelerator):
        self.loader, self.accelerator = loader, accelerator

    def set_epoch(self, epoch: int) -> None:
        self.loader.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict]:
        """Gives what `collate` makes of one process's part of a step. In the tail also `weight`, float32 `(rows,)`,
        what a row counts in the step's mean (`processes / rows of the step`); 0 for the one row that stands in where a
        process has none left.

        Raises:
            ValueError: there are no rows.
        """
        size, processes = self.loader.batch_size, self.accelerator.num_processes
        own, pool, in_tail, given = self._own_batches(), [], False, False
        while True:
            batch = next(own, None)
            if not in_tail and self._smallest(0 if batch is None else len(batch["name"])) == size:
                yield self._place(batch)
                given = True
                continue
            in_tail = True
            parts = gather_object([batch])
            pool += [row for part in parts if part is not None for row in _rows(part)]
            ended = all(part is None for part in parts)
            while len(pool) >= size * processes or (ended and pool):
                step, pool = pool[: size * processes], pool[size * processes :]
                mine = [step[i] for i in np.array_split(range(len(step)), processes)[self.accelerator.process_index]]
                weight = torch.full((max(1, len(mine)),), processes / len(step) if mine else 0.0)
                yield self._place({**collate(mine or step[:1]), "weight": weight})
                given = True
            if ended:
                break
        if not given:
            raise ValueError("there are no rows to stream: give a source with at least one.")

    def _own_batches(self) -> Iterator[dict]:
        """This process's share in full batches; only the last may be short."""
        short = []
        for batch in self.loader:
            if len(batch["name"]) == self.loader.batch_size:
                yield batch
                continue
            short += _rows(batch)
            if len(short) >= self.loader.batch_size:
                yield collate(short[: self.loader.batch_size])
                short = short[self.loader.batch_size :]
        if short:
            yield collate(short)

    def _smallest(self, number: int) -> int:
        """The smallest of all processes' numbers."""
        return int(self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).min())

    def _place(self, batch: dict) -> dict:
        device = self.accelerator.device
        return {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}


def _rows(batch: dict) -> list[dict]:
    return [{key: values[i] for key, values in batch.items()} for i in range(len(batch["name"]))]
