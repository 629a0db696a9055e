# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""What another format costs and buys: size, time per picture, and Dice on real pictures, of one model in five forms.

python -m tests.benchmarks.bench_export --model checkpoints/tamiseg-mobile-qata --dataset data/qata_cov19
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from transformers import AutoModel, AutoProcessor

from processing.command_line import main as tamiseg
from processing.data import load_rows, read_pair
from processing.export import run_onnx
from processing.metrics import SegmentationMeter
from tests.benchmarks.bench_inference import interleaved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="checkpoints/tamiseg-mobile-qata")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)

    processor = AutoProcessor.from_pretrained(arguments.model)
    plain = AutoModel.from_pretrained(arguments.model).eval()
    fused = AutoModel.from_pretrained(arguments.model).eval().fuse_for_inference()
    half = AutoModel.from_pretrained(arguments.model).eval().fuse_for_inference().to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"fp32": weights_mb(plain, 4), "fused": weights_mb(fused, 4), "bf16": weights_mb(half, 2)}
        forms = {
            "fp32": lambda inputs: plain(**inputs).logits,
            "fused": lambda inputs: fused(**inputs).logits,
            "bf16": lambda inputs: half(**{**inputs, "pixel_values": inputs["pixel_values"].bfloat16()}).logits,
        }
        for name, file, flags in (("onnx", "model.onnx", []), ("onnx int8", "model_int8.onnx", ["--int8"])):
            if tamiseg(["export", "--model", arguments.model, *flags, folder]):
                raise SystemExit(2)
            path = Path(folder, file)
            sizes[name] = path.stat().st_size / 1e6
            forms[name] = on_onnx(path)
        report(arguments, processor, forms, sizes)


def on_onnx(path: Path):
    run = run_onnx(path)
    return lambda inputs: torch.from_numpy(run(**{key: value.numpy() for key, value in inputs.items()}))


def weights_mb(model, bytes_each: int) -> float:
    return sum(p.numel() for p in model.parameters()) * bytes_each / 1e6


def report(arguments, processor, forms: dict, sizes: dict[str, float]) -> None:
    rows = load_rows(arguments.dataset, arguments.split, max_rows=arguments.rows)
    meters = {name: SegmentationMeter() for name in forms}
    differences, pixels = dict.fromkeys(forms, 0.0), dict.fromkeys(forms, 0)
    for index in range(len(rows)):
        pair = read_pair(rows, index, processor.image_processor)
        inputs = dict(processor(images=pair["image"], text=pair["prompt"] or "[PAD]", return_tensors="pt"))
        truth = np.asarray(pair["mask"]) > 0
        answers = {name: form(inputs).float() for name, form in forms.items()}
        masks = {
            name: processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits), [truth.shape])[0] > 0
            for name, logits in answers.items()
        }
        for name in forms:
            largest = answers["fp32"].abs().max()
            differences[name] = max(
                differences[name], ((answers[name] - answers["fp32"]).abs().max() / largest).item()
            )
            pixels[name] += int((masks[name] != masks["fp32"]).sum())
            meters[name].add(masks[name].numpy(), truth, pair["name"])
    seconds = interleaved({name: lambda form=form: form(inputs) for name, form in forms.items()}, arguments.rounds)
    print(f"{len(rows)} rows of {arguments.dataset}, {arguments.split}; one thread, text read anew each time")
    print(f"{'form':<12}{'MB':>8}{'ms':>8}{'Dice':>8}{'logits differ':>15}{'pixels differ':>15}")
    for name in forms:
        milliseconds = 1e3 * statistics.median(seconds[name])
        score = 100 * meters[name].compute()["dice_per_image"]
        print(
            f"{name:<12}{sizes[name]:>8.1f}{milliseconds:>8.1f}{score:>8.2f}{differences[name]:>15.1e}{pixels[name]:>15}"
        )


if __name__ == "__main__":
    main()
