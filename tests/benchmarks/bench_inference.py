# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""How fast, how heavy: our goals and what this machine says to them, as one table.

    python -m tests.benchmarks.bench_inference                       # all of it; the reference preset takes minutes
    python -m tests.benchmarks.bench_inference --goals P1 P5         # some goals
    python -m tests.benchmarks.bench_inference --profile             # where the time of one prediction goes
    python -m tests.benchmarks.bench_inference --widths --json docs/widths.json  # what width costs
    python -m tests.benchmarks.bench_inference --against tests.benchmarks.rivals:unet my_package.my_module:my_factory

Times are medians of ratios between functions that are called in turn, so that a machine whose speed drifts, or that
others use, still compares like with like; with one thread they are processor time, which others lengthen less. FLOPs
count 2 per multiply-add. All weights are random: no figure here depends on what they are.
"""

import argparse
import importlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from modeling_tamiseg import SemanticDistiller, TAMISegConfig, TAMISegForImageSegmentation
from processing import TAMISegImageProcessor
from tests.benchmarks import bench_loader


SIDE = 256
RIVALS = [f"tests.benchmarks.rivals:{name}" for name in ("clipseg", "segformer", "unet", "dynunet")]
WORDS = 20  # tokens of a QaTa-COV19 sentence, about
# Decoders whose accuracy the matrix of experiments has: its variants of the group "reference".
MATRIX = Path("experiments/results/matrix_qata_cpu/summary.json")
WIDTHS = {
    "width_32": {"hidden_size": 32, "intermediate_size": 64},
    "default": {},
    "width_128": {"hidden_size": 128, "intermediate_size": 256},
    "stride_4": {"alignment_stride": 4},
}


# Measuring


def interleaved(functions: dict, rounds: int = 15, warmup: int = 2, clock=None) -> dict[str, list[float]]:
    """Seconds of each function in each round, all of them called in turn."""
    clock = clock or (time.process_time if torch.get_num_threads() == 1 else time.perf_counter)
    seconds = {name: [] for name in functions}
    for turn in range(warmup + rounds):
        for name, function in functions.items():
            started = clock()
            function()
            if turn >= warmup:
                seconds[name].append(clock() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], above: str, below: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[above], seconds[below], strict=True))


def flops(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def peak_activations(function) -> int:
    """Most bytes that the allocator held at once for what `function` made."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    held = peak = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def peak_resident(setup: str, call: str) -> int:
    """Bytes by which `call` raises the peak of a fresh process that ran `setup` (Linux)."""
    # Not getrusage: its peak is inherited from the process that starts this one.
    peak = "int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    code = f"import torch; torch.set_grad_enabled(False)\n{setup}\nbefore = {peak}\n{call}\nprint({peak} - before)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return 1024 * int(run.stdout.split()[-1])


# What is measured


def build(config: TAMISegConfig | None = None) -> TAMISegForImageSegmentation:
    torch.manual_seed(0)
    return TAMISegForImageSegmentation(config or TAMISegConfig()).eval()


def pixels(batch_size: int = 1, side: int = SIDE) -> torch.Tensor:
    return torch.randn(batch_size, 3, side, side).contiguous(memory_format=torch.channels_last)


def words(model, count: int = 1) -> dict[str, torch.Tensor]:
    """Text states as a caller keeps them."""
    width = model.alignment.text_projection.in_features
    return {
        "text_embeds": torch.randn(count, WORDS, width),
        "attention_mask": torch.ones(count, WORDS, dtype=torch.long),
    }


def token_ids(count: int = 1) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(1, 1000, (count, WORDS)), "attention_mask": torch.ones(count, WORDS).long()}


def goal_p1():
    """time of the whole model, fused, as a multiple of its image encoder's"""
    plain, fused = build(), build().fuse_for_inference()
    x, text = pixels(), words(fused)
    seconds = interleaved(
        {
            "model": lambda: fused(x, **text),
            "encoder": lambda: fused.get_image_features(x),
            "plain encoder": lambda: plain.get_image_features(x),
        },
        rounds=25,
    )
    yield "over its own encoder", ratio(seconds, "model", "encoder"), "<=", 1.20
    yield "over the plain ResNet-50", ratio(seconds, "model", "plain encoder"), "<=", 1.10


def goal_p2():
    """reference preset over the default"""
    default, reference = build(), build(TAMISegConfig.reference())
    x = pixels()
    calls = {"default": lambda: default(x, **words(default)), "reference": lambda: reference(x, **words(reference))}
    seconds = interleaved(calls, rounds=3, warmup=1)
    yield "time", ratio(seconds, "reference", "default"), ">=", 80
    yield "FLOPs", flops(calls["reference"]) / flops(calls["default"]), ">=", 58
    yield "peak activations", peak_activations(calls["reference"]) / peak_activations(calls["default"]), ">=", 60


def goal_p3():
    """GFLOPs of the default without its encoder"""
    model, x = build(), pixels()
    rest = flops(lambda: model(x, **words(model))) - flops(lambda: model.get_image_features(x))
    yield "GFLOPs", rest / 1e9, "<=", 1.5


def goal_p4():
    """peak activations over the encoder's"""
    model, x = build().fuse_for_inference(), pixels()
    text = words(model)
    encoder = peak_activations(lambda: model.get_image_features(x))
    yield "allocated", peak_activations(lambda: model(x, **text)) / encoder, "<=", 1.5
    # At 1024 pixels, where activations are hundreds of megabytes; at 64 first, for what a first call makes.
    setup = (
        "from tests.benchmarks.bench_inference import build, pixels, words\n"
        "model = build().fuse_for_inference(); x, text = pixels(side=1024), words(model)\n"
        "model(pixels(side=64), **text)"
    )
    whole, encoder = (peak_resident(setup, f"model{call}") for call in ("(x, **text)", ".get_image_features(x)"))
    yield "resident, fresh processes, 1024 px", whole / encoder, "<=", 1.5


def goal_p5():
    """eight sentences on one image over one"""
    model, x = build().fuse_for_inference(), pixels()
    one, eight, owners = words(model), words(model, 8), torch.zeros(8, dtype=torch.long)
    seconds = interleaved(
        {"eight": lambda: model(x, **eight, image_indices=owners), "one": lambda: model(x, **one)}, rounds=25
    )
    yield "time", ratio(seconds, "eight", "one"), "<=", 1.8


def goal_p6():
    """how time grows with size and batch"""
    model = build().fuse_for_inference()
    small, large, four = pixels(), pixels(side=2 * SIDE), pixels(4)
    one_text, four_texts = words(model), words(model, 4)
    seconds = interleaved(
        {
            "one": lambda: model(small, **one_text),
            "large": lambda: model(large, **one_text),
            "four": lambda: model(four, **four_texts),
        }
    )
    yield "512 px over four of 256 px", ratio(seconds, "large", "one") / 4, "<=", 1.05
    yield "batch of four over four", ratio(seconds, "four", "one") / 4, "<=", 1.0


def goal_p7():
    """training step over the encoder's forward pass, batch 4"""
    model = build().to(memory_format=torch.channels_last)
    x, text, labels = pixels(4), words(model, 4), torch.randint(0, 2, (4, SIDE, SIDE))
    vit = transformers.ViTConfig(num_hidden_layers=1, image_size=224)  # the grid and width of DINOv3 ViT-B/16
    distillers = {
        size: SemanticDistiller(
            transformers.AutoModel.from_config(vit), model.vision_encoder.channels, (224, 224), projector_size=size
        )
        for size in (512, 2048)
    }
    tokens = torch.randn(4, 14 * 14, 768)
    projectors = [p for distiller in distillers.values() for p in distiller.projectors.parameters()]
    optimizer = torch.optim.AdamW([p for p in (*model.parameters(), *projectors) if p.requires_grad])

    def encoder():
        with torch.no_grad():
            model.eval().get_image_features(x)

    def step(size: int | None, mixed_precision: bool = False):
        with torch.enable_grad():
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision):
                output = model.train()(x, **text, labels=labels)
                loss = output.loss
                if size is not None:
                    loss = loss + 0.5 * distillers[size](output.vision_hidden_states, teacher_tokens=tokens)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    calls = {
        "without distillation": partial(step, None),
        "teacher features given, projectors of width 512": partial(step, 512),
        "teacher features given, the paper's width 2048": partial(step, 2048),
        "teacher features given, width 2048, bf16 autocast": partial(step, 2048, mixed_precision=True),
    }
    seconds = interleaved({"encoder": encoder, **calls}, rounds=5)
    for what, call in calls.items():
        floor = flops(call) / flops(encoder)
        yield f"{what} ({floor:.2f} times its FLOPs)", ratio(seconds, what, "encoder"), "<=", 4.5


def goal_p8():
    """fp32 over bf16"""
    full, half = build().fuse_for_inference(), build().fuse_for_inference().to(torch.bfloat16)
    x, text = pixels(), words(full)
    half_text = {**text, "text_embeds": text["text_embeds"].bfloat16()}
    half_x = x.bfloat16()
    seconds = interleaved({"fp32": lambda: full(x, **text), "bf16": lambda: half(half_x, **half_text)})
    yield "time", ratio(seconds, "fp32", "bf16"), ">=", 1.8


def goal_p9():
    """ViTImageProcessorPil over our image processor"""
    for what, side, options, goal in (
        ("no resize", SIDE, {"do_resize": False}, 4.0),
        ("512 to 256", 2 * SIDE, {"size": {"height": SIDE, "width": SIDE}}, 1.6),
    ):
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
        ours = TAMISegImageProcessor(**options)
        theirs = ViTImageProcessorPil(image_mean=ours.image_mean, image_std=ours.image_std, **options)
        one, other = (p(picture, return_tensors="pt").pixel_values for p in (ours, theirs))
        torch.testing.assert_close(one, other)
        calls = {
            "ours": partial(ours, picture, return_tensors="pt"),
            "theirs": partial(theirs, picture, return_tensors="pt"),
        }
        seconds = interleaved(calls, rounds=200)
        yield what, ratio(seconds, "theirs", "ours"), ">=", goal


def goal_p10():
    """CLIPSeg with its text tower over ours with its text encoder, its answer kept or not"""
    model, clipseg = build().fuse_for_inference(), importlib.import_module("tests.benchmarks.rivals").clipseg()[1]
    x, ids, kept = pixels(), token_ids(), words(model)
    seconds = interleaved(
        {"kept": lambda: model(x, **kept), "read": lambda: model(x, **ids), "clipseg": lambda: clipseg(x)}, rounds=9
    )
    yield "text kept", ratio(seconds, "clipseg", "kept"), ">=", 2.5
    yield "text read", ratio(seconds, "clipseg", "read"), ">=", 1.6


def goal_p11():
    """a sentence to its attention matrices, over one prediction"""
    model, x = build().fuse_for_inference(), pixels()
    text, scale = words(model), torch.zeros(1, model.config.hidden_size, 1, 1)

    def matrices():
        states, _ = model.alignment.read_text(text["text_embeds"], text["attention_mask"], scale)
        for attention in model.alignment.attentions:
            attention.sentence_matrices(states)

    seconds = interleaved({"matrices": matrices, "prediction": lambda: model(x, **text)}, rounds=25)
    yield "time", ratio(seconds, "matrices", "prediction"), "<=", 0.03


def goal_p12():
    """import and loading"""

    def fresh(code):
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    seconds = interleaved(
        {
            "ours": fresh("import torch, transformers, modeling_tamiseg"),
            "theirs": fresh("import torch, transformers; transformers.AutoModel, transformers.PreTrainedModel"),
        },
        rounds=5,
        warmup=1,
        clock=time.perf_counter,
    )
    yield "import over torch and transformers", ratio(seconds, "ours", "theirs"), "<=", 1.05
    with tempfile.TemporaryDirectory() as folder:
        build().save_pretrained(folder)
        file = Path(folder, "model.safetensors")
        seconds = interleaved(
            {
                "load": lambda: TAMISegForImageSegmentation.from_pretrained(folder),
                "read": lambda: file.read_bytes(),
            },
            rounds=5,
            clock=time.perf_counter,
        )
    yield "loading over reading the file", ratio(seconds, "load", "read"), "<=", 1.2


def goal_p13():
    """interpolate, softmax and argmax in full over our mask of 1024x1024"""
    processor = TAMISegImageProcessor()
    outputs = transformers.utils.ModelOutput(logits=torch.randn(1, 2, SIDE, SIDE))

    def in_full():
        full = F.interpolate(outputs.logits, (1024, 1024), mode="bilinear", align_corners=False)
        return full.softmax(dim=1).argmax(dim=1)[0]

    def ours():
        return processor.post_process_semantic_segmentation(outputs, [(1024, 1024)])[0]

    different = (in_full() != ours()).sum().item()
    seconds = interleaved({"in full": in_full, "ours": ours}, rounds=50)
    yield "time", ratio(seconds, "in full", "ours"), ">=", 10
    yield "pixels that differ", different, "<=", 0


def goal_p14():
    """training on 224 px with a frozen MobileNetV2 encoder"""
    seconds = bench_loader.measure(bench_loader.drawn_rows())
    yield "processor time to load a batch over that to train on it", seconds["load"] / seconds["train"], "<=", 1
    for workers in (0, 1):
        share = seconds[f"wait_{workers}"] / seconds[f"step_{workers}"]
        yield f"share of a step spent waiting, {workers} workers", share, "<=", 0.5


GOALS = {name.removeprefix("goal_").upper(): f for name, f in list(globals().items()) if name.startswith("goal_")}


def profile_parts() -> list[dict]:
    """Where the time of one prediction goes."""
    model, x = build().fuse_for_inference(), pixels()
    text = words(model)
    maps = model.get_image_features(x)
    scales, details = model.decoder.read_image(maps)
    aligned = model.alignment(scales, text["text_embeds"], text["attention_mask"])
    seconds = interleaved(
        {
            "whole model": lambda: model(x, **text),
            "encoder": lambda: model.get_image_features(x),
            "decoder, before the text": lambda: model.decoder.read_image(maps),
            "alignment": lambda: model.alignment(scales, text["text_embeds"], text["attention_mask"]),
            "decoder, after the text": lambda: model.decoder(aligned, details, (SIDE, SIDE)),
        },
        rounds=25,
    )
    return [
        {"part": name, "ms": 1e3 * statistics.median(values), "x encoder": ratio(seconds, name, "encoder")}
        for name, values in seconds.items()
    ]


def widths() -> list[dict]:
    """What decoders of several widths cost beside a ResNet-50 and beside a MobileNetV2, and the Dice that the matrix
    found for them with the latter."""
    groups = json.loads(MATRIX.read_text())["groups"] if MATRIX.is_file() else {"reference": {"rows": []}}
    scores = {row["variant"]: row["scores"] for row in groups["reference"]["rows"]}
    x, calls, added = pixels(), {}, {}
    for vision in (None, {"model_type": "mobilenet_v2"}):
        for name, fields in WIDTHS.items():
            model = build(TAMISegConfig(vision_config=vision, **fields)).fuse_for_inference()
            calls[vision is None, name] = partial(model, x, **words(model))
            encode = calls.setdefault((vision is None, "encoder"), partial(model.get_image_features, x))
            added[vision is None, name] = flops(calls[vision is None, name]) - flops(encode)
    seconds = interleaved(calls, rounds=25)
    rows = []
    for name, fields in WIDTHS.items():
        row = {"decoder": ", ".join(f"{key} {value}" for key, value in fields.items()) or "the default"}
        for large, vision in ((True, "ResNet-50"), (False, "MobileNetV2")):
            row[f"x {vision}"] = ratio(seconds, (large, name), (large, "encoder"))
            row[f"GFLOPs beside {vision}"] = added[large, name] / 1e9
        for arm, title in (("full_text", "Dice with its sentence"), ("no_text", "Dice without")):
            found = scores.get(f"{name}_at_3e-3", {}).get(arm, {}).get("dice_per_image")
            row[title] = 100 * statistics.mean(found) if found else "-"
        rows.append(row)
    return rows


def compare(rivals: list[str]) -> list[dict]:
    """Ours and its rivals: time, FLOPs, activations and parameters."""
    model, x = build().fuse_for_inference(), pixels()
    text, ids = words(model), token_ids()
    text_parameters = parameters(model.text_encoder)
    calls = {
        "encoder (ResNet-50 to 1/16)": (parameters(model.vision_encoder), lambda: model.get_image_features(x)),
        "ours, text kept": (parameters(model) - text_parameters, lambda: model(x, **text)),
        "ours, text read by BERT": (parameters(model), lambda: model(x, **ids)),
    }
    for name in rivals:
        module, factory = name.split(":")
        rival, call = getattr(importlib.import_module(module), factory)()
        calls[factory] = (parameters(rival), partial(call, x))
    seconds = interleaved({name: call for name, (_, call) in calls.items()}, rounds=9)
    encoder, ours = list(calls)[:2]
    return [
        {
            "network": name,
            "x encoder": ratio(seconds, name, encoder),
            "x ours": ratio(seconds, name, ours),
            "GFLOPs": flops(call) / 1e9,
            "peak MiB": peak_activations(call) / 2**20,
            "M parameters": count / 1e6,
        }
        for name, (count, call) in calls.items()
    ]


def parameters(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goals", nargs="+", choices=list(GOALS), metavar="P1", help="these goals and nothing else")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to write the figures to, with a page (.md) beside it")
    parser.add_argument("--profile", action="store_true", help="the parts of one prediction and nothing else")
    parser.add_argument("--widths", action="store_true", help="decoders of several widths and nothing else")
    parser.add_argument("--against", nargs="+", metavar="MODULE:FACTORY", help="these rivals and nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    torch.set_grad_enabled(False)
    everything = not (arguments.goals or arguments.profile or arguments.widths or arguments.against)

    result = {
        "command": "python -m tests.benchmarks.bench_inference " + " ".join(sys.argv[1:]),
        "machine": {
            "processor": processor_name(),
            "threads": arguments.threads,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "rows": [],
        "profile": profile_parts() if everything or arguments.profile else [],
        "widths": widths() if arguments.widths else [],
        "rivals": compare(arguments.against or RIVALS) if everything or arguments.against else [],
    }
    for name in arguments.goals or (GOALS if everything else []):
        for part, figure, sign, goal in GOALS[name]():
            met = figure <= goal if sign == "<=" else figure >= goal
            what = f"{GOALS[name].__doc__}: {part}"
            row = {"goal": name, "what": what, "figure": figure, "wanted": f"{sign} {goal}", "met": met}
            result["rows"].append(row)
            print(f"{name:<4}{what:<120}{figure:>9.3f}  {sign} {goal:<6}{'' if met else 'missed'}", flush=True)
    print(page(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
        arguments.json.with_suffix(".md").write_text(page(result))


def page(result: dict) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    only_widths = not result["rows"]
    parts = [
        f"""# {"Width against accuracy" if only_widths else "Speed"}

Written by `{result["command"]}`: {machine}.
Ratios of processor times (wall times for import, loading and waiting) that were taken in turn, unless they say
otherwise; 256x256, batch 1, fp32, beside ResNet-50 where nothing else is said. Weights are random.""",
    ]
    if not only_widths:
        parts[0] += (
            " What a lean\ndecoder costs in accuracy: [widths](widths.md) and [ablations](ablations.md). "
            "P1 to P14 are the goals for\nspeed and size that were set before the work began."
        )
        parts.append(table(result["rows"]))
    if result["profile"]:
        parts.append(f"## One prediction\n\n{table(result['profile'])}")
    if result.get("widths"):
        parts.append(f"""\
Time over that of the encoder alone, both fused, GFLOPs that the fused decoder adds, and Dice per image
(mean of three seeds, QaTa-COV19, MobileNetV2, 64 px, 1000 rows, three epochs at rate 3e-3; group *reference* of the
[ablations](ablations.md)).

{table(result["widths"])}""")
    if result["rivals"]:
        parts.append(f"## Rivals\n\n{table(result['rivals'])}")
    return "\n\n".join(filter(None, parts)) + "\n"


def table(rows: list[dict]) -> str:
    """Markdown."""
    if not rows:
        return ""

    def shown(value) -> str:
        if isinstance(value, bool):
            return "yes" if value else "missed"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [rows[0], dict.fromkeys(rows[0], "---"), *rows]
    return "\n".join(
        f"| {' | '.join(line if index == 0 else map(shown, line.values()))} |" for index, line in enumerate(lines)
    )


def processor_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
