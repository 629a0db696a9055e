# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""`tamiseg export`: a trained model as one file that runs without our code, by ONNX Runtime or `torch.export.load`."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

from .predict import check_model_folder, load


FILES = {"onnx": "model.onnx", "torch-export": "model.pt2"}
# Largest difference of a logit, in shares of the largest logit, that rounding may explain.
TOLERANCE = 1e-4


def add_command(commands) -> None:
    """Adds `export` to the subcommands of `tamiseg`."""
    command = commands.add_parser("export", help="write a model as ONNX or torch.export file")
    command.add_argument("--model", required=True, help="folder of a trained model, or its Hub id")
    command.add_argument("--format", choices=FILES, default="onnx", help="of the file")
    command.add_argument("--int8", action="store_true", help="store the weights of matrix products in 8 bits (onnx)")
    command.add_argument("output", help="folder to write: the model and its processor")
    command.set_defaults(run=export)


def export(arguments) -> None:
    """Writes the file beside the processor's, and checks that it says what the model says."""
    check_model_folder(arguments.model)
    if arguments.int8 and arguments.format != "onnx":
        raise ValueError("--int8 goes with --format onnx: leave one of them out.")
    output = Path(arguments.output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"'{output}' is a file: give a folder.")

    # Here and not above: `tamiseg --help` should not wait for them.
    import torch

    model, processor = load(arguments.model)
    model = model.cpu().fuse_for_inference()
    output.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(output)
    path = output / ("model_int8.onnx" if arguments.int8 else FILES[arguments.format])
    program = trace(model)
    if arguments.format == "onnx":
        write_onnx(program, path, arguments.int8)
    else:
        torch.export.save(program, path)
    difference = largest_difference(model, path)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; logits differ from the model's by {difference:.1e} at most")
    if difference > TOLERANCE and not arguments.int8:
        raise ValueError(f"the logits of '{path}' are not the model's: report this, and do not use the file.")


def trace(model):
    """The model as an exported program of `pixel_values`, `input_ids` and `attention_mask`, which gives the logits.

    Any batch, any sentence, any height and width that the coarsest stride divides (what the processor gives); a row
    of zeros in the mask asks without words.
    """
    import torch

    class LogitsOnly(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values, input_ids, attention_mask):
            return self.model(pixel_values, input_ids, attention_mask).logits

    stride = model.config.vision_strides[-1]
    longest = getattr(model.config.text_config, "max_position_embeddings", 512)
    batch, length = torch.export.Dim("batch", min=1, max=1024), torch.export.Dim("length", min=2, max=longest - 1)
    height, width = (stride * torch.export.Dim(f"{side}_cells", min=2, max=1024) for side in ("height", "width"))
    text = {0: batch, 1: length}
    with torch.no_grad():
        return torch.export.export(
            LogitsOnly().eval(),
            tuple(example(model, 2, (3 * stride, 4 * stride), 6).values()),
            dynamic_shapes={
                "pixel_values": {0: batch, 2: height, 3: width},
                "input_ids": text,
                "attention_mask": text,
            },
        )


def example(model, batch_size: int, size: tuple[int, int], length: int) -> dict:
    """Random inputs; the last row asks without words."""
    import torch

    generator = torch.Generator().manual_seed(0)
    attention_mask = torch.ones(batch_size, length, dtype=torch.long)
    attention_mask[-1] = 0
    vocabulary = model.config.text_config.vocab_size
    return {
        "pixel_values": torch.randn(batch_size, 3, *size, generator=generator),
        "input_ids": torch.randint(0, vocabulary, (batch_size, length), generator=generator),
        "attention_mask": attention_mask,
    }


def write_onnx(program, path: Path, int8: bool) -> None:
    """Raises ValueError where the packages of the `export` extra are missing."""
    import torch

    try:
        import onnxruntime.quantization
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise ValueError(f"ONNX needs a package ({error}): pip install 'tamiseg[export]'.") from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which is not needed
    names = ["pixel_values", "input_ids", "attention_mask"]
    exported = torch.onnx.export(program, (), input_names=names, output_names=["logits"], dynamo=True, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "model.onnx")
        exported.save(written, external_data=False)
        if int8:
            quantized = Path(folder, "quantized.onnx")
            onnxruntime.quantization.quantize_dynamic(written, quantized, op_types_to_quantize=["MatMul", "Gemm"])
            written = quantized
        shutil.move(written, path)


def run_onnx(path: Path):
    """A function of named arrays that gives the logits."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda **inputs: session.run(["logits"], inputs)[0]


def largest_difference(model, path: Path) -> float:
    """Of the file's logits and the model's, over some batches, sizes and sentences, in shares of the largest."""
    import torch

    stride = model.config.vision_strides[-1]
    cases = [
        example(model, 1, (8 * stride, 8 * stride), 9),
        example(model, 3, (4 * stride, 10 * stride), 4),
    ]
    if path.suffix == ".onnx":
        run = run_onnx(path)
        answers = [torch.from_numpy(run(**{key: value.numpy() for key, value in case.items()})) for case in cases]
    else:
        loaded = torch.export.load(path).module()
        with torch.no_grad():
            answers = [loaded(*case.values()) for case in cases]
    with torch.no_grad():
        truths = [model(**case).logits for case in cases]
    return max(
        ((answer - truth).abs().max() / truth.abs().max()).item()
        for answer, truth in zip(answers, truths, strict=True)
    )
