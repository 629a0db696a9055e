# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether training waits for its data: a frozen MobileNetV2 encoder, the quickest training there is, on 224 pixels.

OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_loader --dataset data/qata_cov19
"""

import argparse
import io
import time

import datasets
import torch
from PIL import Image
from torch.utils.data import DataLoader

from modeling_tamiseg import TAMISegConfig, TAMISegForImageSegmentation
from processing import TAMISegImageProcessor
from processing.augmentation import JointAugmentation
from processing.data import SegmentationDataset, collate, load_rows
from train_hf import keep_freed_memory


SIDE, BATCH_SIZE, BATCHES = 224, 16, 8


def measure(rows) -> dict[str, float]:
    """Seconds per batch: processor time to `load` and to `train` in one process; wall time of a step and what of it
    was spent waiting, `wait_0` of `step_0` without workers and `wait_1` of `step_1` with one."""
    keep_freed_memory()  # as train_hf does
    torch.manual_seed(0)
    vision = {"model_type": "mobilenet_v2", "output_stride": 16}
    model = TAMISegForImageSegmentation(TAMISegConfig(vision_config=vision, freeze_vision_encoder=True))
    model.train().to(memory_format=torch.channels_last)
    text = {"text_embeds": torch.randn(BATCH_SIZE, 20, model.alignment.text_projection.in_features)}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    processor = TAMISegImageProcessor(size={"height": SIDE, "width": SIDE})
    data = SegmentationDataset(rows, processor, augmentation=JointAugmentation(), prompt_dropout=0.2)

    def step(batch):
        with torch.enable_grad():
            pixels = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
            model(pixels, labels=batch["labels"], **text).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = {}
    for workers in (0, 1):
        sampler = torch.utils.data.RandomSampler(data, num_samples=BATCH_SIZE * (BATCHES + 2))
        batches = iter(
            DataLoader(data, BATCH_SIZE, sampler=sampler, num_workers=workers, collate_fn=collate, drop_last=True)
        )
        for _ in range(2):  # to warm up
            step(next(batches))
        load = train = wait = whole = 0.0
        for _ in range(BATCHES):
            marks = [(time.process_time(), time.perf_counter())]
            batch = next(batches)
            marks.append((time.process_time(), time.perf_counter()))
            step(batch)
            marks.append((time.process_time(), time.perf_counter()))
            load, train = load + marks[1][0] - marks[0][0], train + marks[2][0] - marks[1][0]
            wait, whole = wait + marks[1][1] - marks[0][1], whole + marks[2][1] - marks[0][1]
        if workers == 0:
            seconds |= {"load": load / BATCHES, "train": train / BATCHES}
        seconds |= {f"wait_{workers}": wait / BATCHES, f"step_{workers}": whole / BATCHES}
    return seconds


def drawn_rows(count: int = 64) -> list[dict]:
    """Rows of the built-in sample as a clinic's files: grey JPEG of 512 pixels, PNG masks, decoded at access."""

    def encoded(picture: Image.Image, kind: str, resample) -> dict:
        buffer = io.BytesIO()
        picture.resize((512, 512), resample).save(buffer, kind)
        return {"bytes": buffer.getvalue(), "path": None}

    rows = [
        {
            "image": encoded(row["image"].convert("L"), "JPEG", Image.Resampling.BICUBIC),
            "mask": encoded(row["mask"], "PNG", Image.Resampling.NEAREST),
            **{key: row[key] for key in ("prompt", "name", "patient_id")},
        }
        for row in load_rows("builtin", "train", max_rows=count)
    ]
    table = datasets.Dataset.from_list(rows)
    return table.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="as for training; pictures of the built-in sample, enlarged, without it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    rows = load_rows(arguments.dataset, "train") if arguments.dataset else drawn_rows()
    for name, value in (seconds := measure(rows)).items():
        print(f"{name:<8}{1e3 * value:>9.1f} ms per batch of {BATCH_SIZE}")
    for workers in (0, 1):
        print(f"{workers} workers: {seconds[f'wait_{workers}'] / seconds[f'step_{workers}']:.1%} of a step is waiting")


if __name__ == "__main__":
    main()
