# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation costs beside the model: scores and intervals of random blobs, as many as QaTa-COV19's test split
has pictures.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_evaluation
"""

import time

import numpy as np
from scipy.ndimage import gaussian_filter

from processing.metrics import SegmentationMeter, bootstrap


CASES, PATIENTS, SIDE = 2113, 474, 224


def main() -> None:
    random = np.random.default_rng(0)
    meter, seconds, area = SegmentationMeter(), 0.0, 0.0
    for number in range(CASES):
        field, noise = (gaussian_filter(random.standard_normal((SIDE, SIDE)), width) for width in (14, 6))
        field, noise = field / field.std(), noise / noise.std()
        target = field > 1.2
        probability = (1 / (1 + np.exp(-4 * (field + 0.3 * noise - 1.2)))).astype(np.float32)
        area += target.mean() / CASES
        start = time.process_time()
        meter.add(
            probability >= 0.5,
            target,
            str(number),
            f"patient-{number % PATIENTS}",
            keep=np.ones_like(target),
            probability=probability,
            surface={},
        )
        seconds += time.process_time() - start
    start = time.process_time()
    score = meter.compute() | bootstrap(meter.cases)
    seconds += time.process_time() - start
    print(
        f"{CASES} masks of {SIDE}x{SIDE}, {100 * area:.1f} % foreground, Dice {100 * score['dice_per_image']:.1f}: "
        f"{seconds:.1f} s of one core, {1000 * seconds / CASES:.2f} ms a case"
    )


if __name__ == "__main__":
    main()
