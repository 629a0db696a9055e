# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Memory and communication of a training step on 1, 8 and 64 GPUs, worked out on paper:
python -m tests.benchmarks.bench_scale

Nothing is run: models are built on the meta device, which counts and keeps no numbers. Everything is float32.

    P  trained parameters (projectors of the distillation among them)     F  frozen ones (text encoder, teacher)
    B  buffers (BatchNorm statistics)      A  what autograd keeps of a batch      N  GPUs      all in bytes

    whole weights on each GPU (DDP, what train_hf.py does)
      memory         P + F + B, gradients P, their buckets P (N > 1), AdamW's moments 2 P, A
      sent per step  2 (N - 1) / N P   ring all-reduce of the gradients (and B, which is next to nothing)
    gradients and moments shared out (ZeRO-2)
      memory         P + F + B, (P + 2 P) / N, A
      sent per step  2 (N - 1) / N P   reduce-scatter of the gradients, all-gather of the weights
    all shared out (FSDP2, ZeRO-3)
      memory         B, (P + F + P + 2 P) / N, A, and the largest block while it is whole
      sent per step  (N - 1) / N (3 P + F)   weights gathered forwards and, if trained, backwards; reduce-scatter
    --sync_batch_norm true, beside that, for C channels of all BatchNorms: mean and variance forwards by all-gather,
      two sums backwards by ring all-reduce: 4 (N - 1) (2 + 4 / N) C
"""

import argparse
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, BertConfig, DINOv3ViTConfig

from modeling_tamiseg import SemanticDistiller, TAMISegConfig, TAMISegForImageSegmentation
from processing.predict import SHIPPED_MODEL


GPUS = (1, 8, 64)
WORDS = 20
MIB = 2**20


@dataclass
class Sizes:
    """Bytes of one GPU's step, see above; `channels` is a plain count."""

    trained: int
    frozen: int
    buffers: int
    activations: int
    channels: int


def measure(config: TAMISegConfig, side: int, batch_size: int, teacher=None) -> Sizes:
    """Counts a model, and what its forward pass keeps for the way back; sentences are read before, as in training."""
    with torch.device("meta"):
        modules = [TAMISegForImageSegmentation(config).train()]
        pixels = torch.zeros(batch_size, 3, side, side)
        labels = torch.zeros(batch_size, side, side, dtype=torch.long)
        words = torch.zeros(batch_size, WORDS, config.text_config.hidden_size)
        if teacher is not None:
            modules.append(
                SemanticDistiller(AutoModel.from_config(teacher), modules[0].vision_encoder.channels, (224, 224))
            )
    kept = {}
    weights = {p.untyped_storage()._cdata for module in modules for p in module.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = (storage.nbytes(), storage)  # held, so that no other storage takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = modules[0](pixels, text_embeds=words, labels=labels)
        for distiller in modules[1:]:
            distiller(output.vision_hidden_states, pixels)

    parameters = [p for module in modules for p in module.parameters()]
    norms = [m for m in modules[0].modules() if isinstance(m, nn.BatchNorm2d)]
    return Sizes(
        trained=sum(p.nbytes for p in parameters if p.requires_grad),
        frozen=sum(p.nbytes for p in parameters if not p.requires_grad),
        buffers=sum(b.nbytes for module in modules for b in module.buffers()),
        activations=sum(size for size, _ in kept.values()),
        channels=sum(norm.num_features for norm in norms),
    )


def memory(sizes: Sizes, way: str, gpus: int) -> float:
    trained, frozen = sizes.trained, sizes.frozen
    held = {
        "DDP": trained + frozen + 3 * trained + (trained if gpus > 1 else 0),
        "ZeRO-2": trained + frozen + 3 * trained / gpus,
        "FSDP2": (trained + frozen + 3 * trained) / gpus,
    }[way]
    return held + sizes.buffers + sizes.activations


def sent(sizes: Sizes, way: str, gpus: int) -> float:
    volume = 3 * sizes.trained + sizes.frozen if way == "FSDP2" else 2 * sizes.trained
    return volume * (gpus - 1) / gpus


def sent_by_batch_norm(sizes: Sizes, gpus: int) -> float:
    return 4 * (gpus - 1) * (2 + 4 / gpus) * sizes.channels


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    mobile = TAMISegConfig.from_pretrained(SHIPPED_MODEL)
    mobile.text_config = BertConfig(  # MiniLM's shape, which the recipe trains with; the shipped model's was distilled
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    networks = {
        "MobileNetV2, MiniLM, 160 px, 16 pictures (qata_mobile_160)": measure(mobile, 160, 16),
        "ResNet-50, BERT base, 256 px, 8 pictures (qata_resnet50_256)": measure(TAMISegConfig(), 256, 8),
        "the same with its teacher, a ViT-B/16": measure(TAMISegConfig(), 256, 8, DINOv3ViTConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            num_register_tokens=4)),
    }  # fmt: skip
    for name, sizes in networks.items():
        numbers = (sizes.trained, sizes.frozen, sizes.buffers, sizes.activations)
        print(
            f"\n{name}: " + ", ".join(f"{key} {value / MIB:.1f}" for key, value in zip("PFBA", numbers, strict=True))
        )
        print("| MiB per GPU: held, sent per step | " + " | ".join(f"{n} GPU" for n in GPUS) + " |")
        print("|---" * (1 + len(GPUS)) + "|")
        for way in ("DDP", "ZeRO-2", "FSDP2"):
            cells = [f"{memory(sizes, way, n) / MIB:.0f}, {sent(sizes, way, n) / MIB:.0f}" for n in GPUS]
            print(f"| {way} | " + " | ".join(cells) + " |")
        cells = [f"{sent_by_batch_norm(sizes, n) / MIB:.2f}" for n in GPUS]
        print("| sync_batch_norm, sent beside | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
