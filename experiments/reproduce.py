# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluates the shipped model anew and compares with what its card states, to 0.1 point.

make reproduce DATA=data/qata_cov19        # a folder that `tamiseg data prepare qata-cov19` wrote
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from processing.command_line import main as tamiseg


STATED = "result_test.json"
POINT = 0.001  # 0.1 point of 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="checkpoints/tamiseg-mobile-qata")
    parser.add_argument("--dataset", required=True)
    arguments = parser.parse_args()
    stated = json.loads(Path(arguments.model, STATED).read_text())
    with tempfile.TemporaryDirectory() as folder:
        words = ["evaluate", arguments.model, "--dataset", arguments.dataset, "--split", stated["split"]]
        if tamiseg([*words, "--arms", *stated["scores"], "--output", folder]):
            return 2
        found = json.loads(Path(folder, "result.json").read_text())
    same_rows = found["data"] == stated["data"]
    worst = max(
        abs(found["scores"][arm][metric] - stated["scores"][arm][metric])
        for arm in stated["scores"]
        for metric in ("dice_per_image", "dice_global")
    )
    rows = "the same" if same_rows else "other"
    print(f"largest difference to the card: {100 * worst:.2f} points of Dice, on {rows} rows")
    return 0 if worst <= POINT else 1


if __name__ == "__main__":
    sys.exit(main())
