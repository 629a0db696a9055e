# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""What `tamiseg evaluate` costs beside the model: one core's time for a split of 2113 pictures, from reading the rows
to the last file, with one arm, three and eight. In the model's place stands a blur and a threshold, whose own time is
taken off.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_evaluation --dataset data/qata_cov19
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from processing.command_line import main as tamiseg


ARMS = {1: ["full_text"], 3: ["full_text", "no_text", "shuffled_text"], 8: ["all"]}
seconds_of_the_model = 0.0


def bright_blobs(name):
    """What `--adapter` calls: the bright middle of a blurred picture, more sure the brighter, whatever is asked."""

    def segment(images, sentences):
        global seconds_of_the_model
        start, answers = time.process_time(), []
        for image, some in zip(images, sentences, strict=True):
            grey = gaussian_filter(np.asarray(image.convert("L"), dtype=np.float32) / 255, image.width / 15)
            probability = 1 / (1 + np.exp(20 * (np.percentile(grey, 85) - grey)))
            answers.append([(probability >= 0.5, probability) for _ in some])
        seconds_of_the_model += time.process_time() - start
        return answers

    return segment


def main() -> None:
    from tests.benchmarks import bench_evaluation as adapter  # as `--adapter` imports it: this one is __main__

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="data/qata_cov19")
    parser.add_argument("--split", default="test")
    arguments = parser.parse_args()
    told = []
    with tempfile.TemporaryDirectory() as folder:
        for count, arms in ARMS.items():
            adapter.seconds_of_the_model, output = 0.0, Path(folder) / str(count)
            start = time.process_time()
            words = [
                "--adapter",
                f"{adapter.__name__}:{bright_blobs.__name__}",
                "--arms",
                *arms,
                "--output",
                str(output),
            ]
            source = ["--dataset", arguments.dataset, "--split", arguments.split]
            if code := tamiseg(["evaluate", "blobs", *source, *words]):
                raise SystemExit(code)
            seconds = time.process_time() - start - adapter.seconds_of_the_model
            cases = json.loads((output / "result.json").read_text())["scores"]["full_text"]["num_images"]
            told.append(f"{cases} pictures, {count} arms: {seconds:.1f} s of one core beside the model")
    print("\n".join(told))


if __name__ == "__main__":
    main()
