# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""How many rows a second one core reads, against the shortest loop that does the same with Pillow and numpy.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_data.py data/qata_cov19 --size 160

Processor time, not wall time, and of rounds taken in turns the quickest, which other programs disturbed least. All
read the same rows from beginning to end: the stream has them in a parquet file of their own, because one that is left
early pays for rows that nobody counts.
"""

import argparse
import io
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from processing.augmentation import JointAugmentation
from processing.data import SegmentationDataset, StreamedSegmentationDataset, load_rows, stream_rows
from processing.image_processing_tamiseg import TAMISegImageProcessor
from processing.prepare import ROWS_PER_GROUP


def main() -> None:
    parser = argparse.ArgumentParser(description="Rows per second and core.")
    parser.add_argument("data", help="folder of parquet files")
    parser.add_argument("--split", default="train")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()

    rows = load_rows(arguments.data, arguments.split)
    count = min(arguments.rows, len(rows))
    rows = rows.select(range(count))
    encoded = rows
    for column in ("image", "mask"):
        encoded = encoded.cast_column(column, datasets.Image(decode=False))
    folder = tempfile.TemporaryDirectory()
    encoded.to_parquet(Path(folder.name) / "train.parquet", batch_size=ROWS_PER_GROUP)
    encoded = [(row["image"]["bytes"], row["mask"]["bytes"]) for row in encoded]
    processor = TAMISegImageProcessor(size={"height": arguments.size, "width": arguments.size})
    size = (arguments.size, arguments.size)
    mean, deviation = (np.array(v, dtype=np.float32) for v in (processor.image_mean, processor.image_std))

    def plain():
        for image, mask in encoded:
            image = Image.open(io.BytesIO(image)).convert("RGB").resize(size, Image.Resampling.BILINEAR)
            mask = Image.open(io.BytesIO(mask)).convert("L").resize(size, Image.Resampling.NEAREST)
            pixels = (np.asarray(image, dtype=np.float32) / 255 - mean) / deviation
            torch.from_numpy(pixels.transpose(2, 0, 1).copy())
            torch.from_numpy((np.asarray(mask) > 0).astype(np.int64))

    def read(data):
        return lambda: [None for index in range(count) if data[index] is None]

    streamed = StreamedSegmentationDataset(stream_rows(folder.name, "train")[0], processor)
    cached = SegmentationDataset(rows, processor, cache=True)
    read(cached)()
    ways = {
        "plain Pillow loop": plain,
        "SegmentationDataset": read(SegmentationDataset(rows, processor)),
        "StreamedSegmentationDataset": lambda: [None for item in streamed if item is None],
        "SegmentationDataset, cache filled": read(cached),
        "SegmentationDataset, augmented": read(SegmentationDataset(rows, processor, augmentation=JointAugmentation())),
    }
    seconds = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, run in ways.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    base = min(seconds["plain Pillow loop"])
    for name, times in seconds.items():
        print(f"{name:36} {count / min(times):8.0f} rows/s   {base / min(times):5.2f} of the plain loop")


if __name__ == "__main__":
    main()
