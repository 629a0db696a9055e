# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Streamed rows, counted over processes and workers: none lost, none twice, and all processes step alike."""

import json
import os
import signal
from collections import Counter
from math import ceil
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from .faults.injection import TINY, Fault, forkserver, free_port, outcome, place_among, run
from .test_data import processor, table


BATCH_SIZE = 4


def write_uneven_shards(folder: Path, count: int) -> str:
    """Three files, the first of half the rows; and a validation split of three rows."""
    rows = table(count, prompt=[f"left {index}" for index in range(count)])
    folder.mkdir()
    cuts = (0, count // 2, count - count // 5, count)
    for shard, (begin, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
        rows.select(range(begin, end)).to_parquet(folder / f"train-{shard:05}-of-00003.parquet")
    rows.select(range(3)).to_parquet(folder / "validation.parquet")
    return str(folder)


def note_steps(rank: int, processes: int, port: int, workers: int, source: str, told: Path) -> None:
    """What one process sees of six passes, as JSON: names and weight of each step."""
    os.environ |= place_among(processes, rank, port)
    from accelerate import Accelerator

    from processing.data import StreamedSegmentationDataset, collate, stream_rows
    from processing.streamed_batches import StreamedBatches

    accelerator = Accelerator(cpu=True)
    data = StreamedSegmentationDataset(stream_rows(source, "train")[0], processor(), rank=rank, world_size=processes)
    options = {"collate_fn": collate, "num_workers": workers, "persistent_workers": workers > 0}
    batches, passes = StreamedBatches(DataLoader(data, BATCH_SIZE, **options), accelerator), []
    for epoch in range(6):
        batches.set_epoch(epoch)
        passes.append([(b["name"], b["weight"].tolist() if "weight" in b else None) for b in batches])
    told.write_text(json.dumps(passes))
    accelerator.end_training()


@pytest.mark.parametrize(("processes", "workers", "count"), [(1, 3, 25), (2, 2, 25), (3, 0, 25)])
def test_each_row_once_in_full_steps(tmp_path, processes, workers, count):
    source, port = write_uneven_shards(tmp_path / "rows", count), free_port()
    told = [tmp_path / f"{rank}.json" for rank in range(processes)]
    children = [
        forkserver().Process(target=note_steps, args=(rank, processes, port, workers, source, told[rank]))
        for rank in range(processes)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(250)
        assert child.exitcode == 0
    orders = []
    for passes in zip(*(json.loads(path.read_text()) for path in told), strict=True):
        steps = list(zip(*passes, strict=True))  # each process takes as many
        assert len(steps) == ceil(count / (BATCH_SIZE * processes))
        names = []
        for step in steps:
            here = [name for part, weight in step if weight is None or weight[0] for name in part]
            assert len(here) == BATCH_SIZE * processes or step == steps[-1]
            for part, weight in step:
                # A mean over the processes of weighted sums is the mean over the rows.
                assert weight is None or weight == pytest.approx([processes / len(here)] * len(part)) or weight == [0]
            names += here
        assert Counter(names) == Counter(f"scan_{index}" for index in range(count))
        orders.append(names)
    assert len({tuple(order) for order in orders}) == 6


def test_ragged_last_step_in_pieces_with_shared_batch_norm_is_resumed(tmp_path):
    # 23 rows in steps of two processes with three pieces of one: the last step has three rows here and two there.
    words = [*TINY[:TINY.index("--max_train_samples")], "--epochs", "2", "--dataset",
             write_uneven_shards(tmp_path / "rows", 23), "--streaming", "true",
             "--batch_size", "1", "--gradient_accumulation_steps", "3", "--sync_batch_norm", "true",
             "--save_steps", "1"]  # fmt: skip
    whole = run(tmp_path / "whole", *words, processes=2)
    assert whole.codes == [0, 0] and whole.steps == 8, whole.said
    broken = run(tmp_path / "run", *words, processes=2, fault=Fault("backward", 10))
    assert broken.codes[1] == -signal.SIGKILL
    assert run(tmp_path / "run", *words, "--resume", "auto", processes=2).codes == [0, 0]
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
