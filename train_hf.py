# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains TAMISeg, both stages, through Accelerate.

Stage 1 (consistency pretraining of the image encoder), then stage 2 (text, decoder, distillation) on its result:

    python train_hf.py --stage pretrain --dataset builtin --output_dir runs/pretrain
    python train_hf.py --stage finetune --dataset builtin --output_dir runs/finetune --vision_model runs/pretrain/best
    torchrun --nproc_per_node 2 train_hf.py ...        # the same, on several processes

Every field is a flag, or a line of the YAML file given by `--config`: a flag beats the file, the file beats the
default. `best/` (chosen on validation) is a `save_pretrained` folder that stands alone; `checkpoints/` holds the full
state that `--resume auto` goes on from, to the same weights bit by bit; `metrics.jsonl`, `curves.png`, `config.yaml`
and `result.json` lie beside them. `--dry_run true` tries everything once, on one batch.
`--push_to_hub true --hub_model_id USER/NAME` uploads the result with its card, privately unless `--hub_private false`.
"""

import ctypes
import importlib
import importlib.util
import json
import math
import platform
import shlex
import shutil
import sys
import time
from argparse import ArgumentParser
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
import transformers
import yaml
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from accelerate.utils import DistributedType, set_seed
from accelerate.utils.memory import should_reduce_batch_size
from huggingface_hub.errors import StrictDataclassError
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoTokenizer, BertConfig, BertModel, HfArgumentParser, ResNetConfig, get_scheduler
from transformers.image_processing_base import ImageProcessingMixin

from modeling_tamiseg import (
    SemanticDistiller,
    TAMISegConfig,
    TAMISegForConsistencyPretraining,
    TAMISegForImageSegmentation,
    TextCache,
)
from modeling_tamiseg.modeling_tamiseg import load_text_model, load_vision_model
from processing import TAMISegImageProcessor, TAMISegProcessor
from processing.arms import text_arms
from processing.augmentation import ConsistencyPerturbation, JointAugmentation
from processing.batch_norm import synchronize_batch_norms
from processing.checkpoints import Checkpoints, Stopped, StopSignal, rewind_lines, write_whole
from processing.data import (
    NoSuchSplit,
    SegmentationDataset,
    StreamedSegmentationDataset,
    collate,
    column,
    fingerprint,
    limit_labels,
    load_rows,
    pick,
    stream_rows,
)
from processing.evaluation import Segmenter, evaluate, hash_weights, receipt
from processing.holding_out import hold_out
from processing.hub import check_name, list_code, push, reserve, without_folders
from processing.image_processing_tamiseg import IGNORE_INDEX
from processing.model_card import describe_rows, model_card, source_of
from processing.plots import write_curves, write_examples
from processing.prompts import normalize_prompt
from processing.reading import refusal
from processing.steps import OptimizerStep, mean_over_processes, rising_average, share_buffers
from processing.streamed_batches import StreamedBatches
from processing.transfer import check_teacher


@dataclass
class Arguments:
    """What a run can be told."""

    stage: str = field(metadata={"help": "pretrain or finetune", "choices": ["pretrain", "finetune"]})
    output_dir: str = field(metadata={"help": "folder for best/, checkpoints/, metrics.jsonl, result.json and more"})
    # Data
    dataset: str = field(
        default="builtin", metadata={"help": "builtin, a folder, or a Hub id (see processing/data.py)"}
    )
    image_size: int = field(default=256, metadata={"help": "side of the square the model sees, in pixels"})
    max_train_samples: int | None = field(default=None, metadata={"help": "a random subset of the training rows"})
    max_eval_samples: int | None = field(default=None, metadata={"help": "a random subset of the validation rows"})
    validation_share: float = field(
        default=0.0,
        metadata={"help": "share of the training rows to validate on, whole patients, where there is no such split"},
    )
    label_budget: float = field(
        default=1.0,
        metadata={"help": "share of the training masks that are used; the other rows serve consistency, distillation"},
    )
    prompt_dropout: float = field(default=0.2, metadata={"help": "share of training sentences that are hidden"})
    prompt_shortening: float = field(
        default=0.0, metadata={"help": "share of the shown training sentences that lose places or clauses"}
    )
    horizontal_flip: float = field(
        default=0.5,
        metadata={"help": "share of training views that are mirrored; 0 where sides are not named in plain English"},
    )
    num_workers: int = field(default=0, metadata={"help": "processes that read data"})
    streaming: bool = field(default=False, metadata={"help": "read training rows as they come, with no copy on disk"})
    cache: bool = field(default=False, metadata={"help": "keep decoded training rows in memory, 4 bytes a pixel"})
    # Model
    vision_model: str = field(default="tiny", metadata={"help": "tiny (from scratch), a folder, or a Hub id"})
    text_model: str = field(
        default="tiny", metadata={"help": "tiny (from scratch), a folder, or a Hub id (of a TAMISeg model too)"}
    )
    freeze_text_encoder: bool | None = field(
        default=None,
        metadata={"help": "keep the text encoder as it came; left out: unless it is tiny, which came knowing nothing"},
    )
    freeze_vision_encoder: bool = field(default=False, metadata={"help": "keep the image encoder as it came"})
    model_config: str = field(default="{}", metadata={"help": "JSON with further fields of TAMISegConfig"})
    model_class: str | None = field(
        default=None, metadata={"help": "MODULE:CLASS of a baseline to finetune instead, see experiments/baselines.py"}
    )
    # Loss
    teacher: str | None = field(default=None, metadata={"help": "folder or Hub id of the teacher; none, none is used"})
    distillation_weight: float = field(default=0.5, metadata={"help": "weight of the distillation; 0: not computed"})
    projector_size: int = field(default=2048, metadata={"help": "width of the projectors; at 512 a 7th of their cost"})
    # Optimisation
    epochs: int = field(default=20, metadata={"help": "passes over the training rows; max_steps beats it"})
    max_steps: int | None = field(
        default=None, metadata={"help": "take so many optimiser steps, be they fewer or more than epochs has"}
    )
    batch_size: int = field(default=16, metadata={"help": "pictures that a process takes at once"})
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "batches whose gradients make one optimiser step; pictures weigh alike"}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "peak rate of AdamW"})
    vision_learning_rate_scale: float = field(default=1.0, metadata={"help": "the image encoder's rate, relative"})
    weight_decay: float = field(default=1e-4, metadata={"help": "of AdamW"})
    warmup_ratio: float = field(default=0.05, metadata={"help": "share of the steps in which the rate rises"})
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "how the rate falls to 0", "choices": ["cosine", "linear"]}
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are clipped to this norm"})
    ema_decay: float = field(
        default=0.0, metadata={"help": "score and keep weights averaged over about 1 / (1 - decay) steps; 0: off"}
    )
    sync_batch_norm: bool = field(
        default=False, metadata={"help": "several processes share BatchNorm statistics, as if they were one"}
    )
    early_stopping_patience: int = field(
        default=0, metadata={"help": "stop after so many epochs without a better validation Dice; 0: never"}
    )
    mixed_precision: str = field(
        default="no", metadata={"help": "of the network's products", "choices": ["no", "bf16", "fp16"]}
    )
    cpu: bool = field(default=False, metadata={"help": "stay on the CPU"})
    seed: int = field(default=0, metadata={"help": "of weights, order, augmentation and dropout"})
    # Long runs
    on_out_of_memory: str = field(
        default="stop",
        metadata={"help": "stop, or halve the batches and take twice as many per step", "choices": ["stop", "halve"]},
    )
    resume: str | None = field(
        default=None, metadata={"help": "auto (the newest whole checkpoint, if any) or the folder of one"}
    )
    save_steps: int = field(default=0, metadata={"help": "steps between checkpoints; 0: only after each epoch"})
    dry_run: bool = field(default=False, metadata={"help": "try all parts once on one batch, and keep nothing"})
    report_to: str = field(
        default="none",
        metadata={"help": "also log to this tracker", "choices": ["none", "tensorboard", "trackio", "wandb"]},
    )
    # Model card and Hub
    data_license: str | None = field(default=None, metadata={"help": "terms of the data, a sentence for the card"})
    push_to_hub: bool = field(default=False, metadata={"help": "upload the result at the end"})
    hub_model_id: str | None = field(default=None, metadata={"help": "USER/NAME to upload to"})
    hub_private: bool = field(default=True, metadata={"help": "let nobody else see it"})

    def __post_init__(self):
        if self.freeze_text_encoder is None:
            self.freeze_text_encoder = not self.learns_tiny_text()
        for name in ("image_size", "epochs", "batch_size", "gradient_accumulation_steps", "max_train_samples",
                     "max_eval_samples", "max_steps"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: give at least 1.")
        if self.streaming and (self.cache or self.max_train_samples):
            raise ValueError("streaming keeps no rows and picks none: leave out cache and max_train_samples.")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share is {self.validation_share}: give a share below 1, for example 0.1.")
        if self.streaming and self.validation_share:
            raise ValueError("streaming does not know its rows beforehand: leave out validation_share.")
        if not 0 < self.label_budget <= 1:
            raise ValueError(f"label_budget is {self.label_budget}: give a share above 0, up to 1 (all masks).")
        if self.streaming and self.label_budget < 1:
            raise ValueError("streaming does not know its rows beforehand: leave out label_budget.")
        for name in ("save_steps", "early_stopping_patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: give 0 or more.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}: give 0 (off) or a number below 1, for example 0.999.")
        if self.max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm is {self.max_grad_norm}: give a norm above 0 (a large one hardly clips).")
        if self.report_to != "none" and importlib.util.find_spec(self.report_to) is None:
            raise ValueError(f"{self.report_to} is not installed: pip install {self.report_to}, or --report_to none.")
        for name in ("prompt_dropout", "prompt_shortening", "horizontal_flip"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name} is a probability: give a number from 0 to 1, not {value}.")
        if self.push_to_hub and (self.stage != "finetune" or self.hub_model_id is None):
            raise ValueError("push_to_hub needs a hub_model_id, and the finetune stage: add them, or leave it out.")
        if self.hub_model_id is not None:
            check_name(self.hub_model_id)
        if self.model_class is not None and self.teacher is not None:
            raise ValueError("a model_class of its own gives no features to distil into: leave out teacher.")
        try:
            fields = json.loads(self.model_config)
        except json.JSONDecodeError as error:
            raise ValueError(f"model_config is no JSON ({error}): write it as '{{\"hidden_size\": 96}}'.") from error
        if not isinstance(fields, dict):
            raise ValueError(f"model_config is {self.model_config}: write it as '{{\"hidden_size\": 96}}'.")
        known = {"num_labels", *TAMISegConfig.__dataclass_fields__} - {"vision_config", "text_config"}
        if unknown := [key for key in fields if key not in known]:
            raise ValueError(
                f"model_config has unknown fields {unknown}: see TAMISegConfig for the known ones (the encoders' are "
                "those of vision_model and text_model)."
            )

    def learns_tiny_text(self) -> bool:
        """Whether there is a text encoder from scratch, and sentences for it to learn by. Stage 1 has neither, and a
        baseline's text encoder is frozen unless the user says otherwise: few of them read it."""
        reads = self.stage == "finetune" and self.model_class is None and self.prompt_dropout < 1
        return self.text_model == "tiny" and reads


def as_words(fields: dict) -> list[str]:
    """Fields as the words of a command; those that are None are left as they are by themselves."""
    words = []
    for key, value in fields.items():
        if value is not None:
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            if key == "mixed_precision" and value is False:  # YAML's reading of its "no"
                text = "no"
            words += [f"--{key}", text.lower() if isinstance(value, bool) else text]
    return words


def read_config(path: str) -> dict:
    """The fields of a YAML file, without what its `recipe` tells people (see experiments/README.md).

    Raises:
        ValueError: it is no YAML, or holds other things than fields of a run.
    """
    with open(path, encoding="utf-8") as file:
        try:
            fields = yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    if fields is None:
        return {}
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds a {type(fields).__name__}: write one 'field: value' per line.")
    fields.pop("recipe", None)
    if unknown := [key for key in fields if key not in Arguments.__dataclass_fields__]:
        raise ValueError(f"{path} has unknown fields {unknown}: see --help for the known ones.")
    return fields


# What the --no_... that HfArgumentParser adds to a switch that is on says; by itself it says what the switch does.
OPPOSITES = {"hub_private": "let everybody see it"}


def make_parser() -> HfArgumentParser:
    parser = HfArgumentParser(Arguments, description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", help="YAML file of fields")
    for action in parser._actions:
        if action.option_strings and action.option_strings[0] == f"--no_{action.dest}":
            action.help = OPPOSITES.get(action.dest, f"the opposite of --{action.dest}")
    return parser


def parse_arguments(argv=None) -> Arguments:
    """Flag beats file beats default."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    first = ArgumentParser(prog=parser.prog, add_help=False)
    first.add_argument("--config")
    path = first.parse_known_args(argv)[0].config
    words = [] if path is None else as_words(read_config(path))  # before the flags, of which the last one counts
    namespace = vars(parser.parse_args([*words, *argv]))
    namespace.pop("config")
    return Arguments(**namespace)


# What may differ between the parts of a run: where it lies, and what it writes and tells.
FREE_FIELDS = {
    "output_dir", "resume", "save_steps", "report_to", "num_workers", "on_out_of_memory",
    "data_license", "push_to_hub", "hub_model_id", "hub_private",
}  # fmt: skip


def contents_of(arguments: Arguments, fingerprints: dict[str, str]) -> dict[str, str]:
    """What tells the data and the encoders of a run wherever they lie: hashes of rows, and of weights in folders.

    The rows of a stream of the Hub are told by its name alone.
    """
    places = {role: getattr(arguments, role) for role in ("dataset", "vision_model", "text_model", "teacher")}
    folders = {role: Path(place) for role, place in places.items() if source_of(place) == "folder"}
    data = {"dataset": " ".join(fingerprints.values())} if "dataset" in folders or not arguments.streaming else {}
    return data | {role: hash_weights(folder) for role, folder in folders.items() if role != "dataset"}


def for_dry_run(arguments: Arguments) -> Arguments:
    """One step and one batch of validation, in a folder of its own, with nothing sent anywhere."""
    step = arguments.batch_size * arguments.gradient_accumulation_steps
    return replace(
        arguments,
        output_dir=str(Path(arguments.output_dir) / "dry_run"),
        max_steps=1,
        max_train_samples=None if arguments.streaming else min(step, arguments.max_train_samples or step),
        max_eval_samples=min(arguments.batch_size, arguments.max_eval_samples or arguments.batch_size),
        resume=None,
        report_to="none",
        push_to_hub=False,
    )


def load_splits(arguments: Arguments) -> tuple:
    """The rows to train on, None where they are streamed, and those to validate on."""
    source, most = arguments.dataset, (arguments.max_train_samples, arguments.max_eval_samples)
    try:
        eval_rows = load_rows(source, "validation", max_rows=most[1])
    except NoSuchSplit as error:
        if not arguments.validation_share:
            raise NoSuchSplit(
                f"{str(error).rstrip('.')}, or give --validation_share 0.1 to hold out a tenth of the training rows."
            ) from error
        parts = hold_out(load_rows(source, "train"), arguments.validation_share)
        return tuple(pick(rows, count) for rows, count in zip(parts, most, strict=True))
    if arguments.validation_share:
        raise ValueError(f"'{source}' has a split 'validation': leave out validation_share.")
    return None if arguments.streaming else load_rows(source, "train", max_rows=most[0]), eval_rows


def build_processor(arguments: Arguments, rows) -> TAMISegProcessor:
    """Image processor and tokenizer; for `tiny`, a word-level tokenizer is made of the training sentences."""
    if arguments.text_model == "tiny":
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

        sentences = (normalize_prompt(prompt) or "" for prompt in column(rows, "prompt"))
        splitter = pre_tokenizers.BertPreTokenizer()
        words = {word for s in sentences for word, _ in splitter.pre_tokenize_str(s.lower())}
        vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(words)])}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), splitter
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
        )
    else:
        tokenizer = AutoTokenizer.from_pretrained(arguments.text_model)
    size = {"height": arguments.image_size, "width": arguments.image_size}
    return TAMISegProcessor(TAMISegImageProcessor(size=size, **normalization_of(arguments.vision_model)), tokenizer)


def normalization_of(vision_model: str) -> dict:
    """Mean and standard deviation of the pictures that an image encoder was trained on, where its folder or Hub
    repository says them; those of ImageNet are what is taken otherwise."""
    if vision_model == "tiny":
        return {}
    try:
        told, _ = ImageProcessingMixin.get_image_processor_dict(vision_model)
    except OSError:  # it has none
        return {}
    return {key: told[key] for key in ("image_mean", "image_std") if told.get(key)}


def build_model(arguments: Arguments, processor: TAMISegProcessor):
    """The model of the stage, on the encoders that the arguments name."""
    overrides = json.loads(arguments.model_config)
    if arguments.vision_model == "tiny":
        vision_model, strides = None, [2, 4, 8, 16]
        vision_config = ResNetConfig(
            embedding_size=16, hidden_sizes=[32, 64, 96], depths=[1, 1, 1], layer_type="basic"
        )
    else:
        vision_model, strides = load_vision_model(arguments.vision_model)
        vision_config = vision_model.config
    if arguments.text_model == "tiny":
        text_config = BertConfig(
            vocab_size=len(processor.tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=64,
        )
        text_model = BertModel(text_config, add_pooling_layer=False)
    else:
        text_model = load_text_model(arguments.text_model)
        text_config = text_model.config
    config = TAMISegConfig(
        vision_config=vision_config.to_dict(),
        text_config=text_config.to_dict(),
        **{
            "vision_strides": strides,
            "freeze_text_encoder": arguments.freeze_text_encoder,
            "freeze_vision_encoder": arguments.freeze_vision_encoder,
            **overrides,
        },
    )
    limit = getattr(config.text_config, "max_position_embeddings", None)
    processor.tokenizer.model_max_length = min(processor.tokenizer.model_max_length, limit or 10**6)
    processor.image_processor.num_labels = config.num_labels
    if arguments.stage == "pretrain":
        return TAMISegForConsistencyPretraining(config, vision_model)
    model_class = TAMISegForImageSegmentation
    if arguments.model_class is not None:
        module, _, name = arguments.model_class.partition(":")
        try:
            model_class = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"model_class {arguments.model_class} cannot be had ({error}): write it as MODULE:CLASS."
            ) from error
    return model_class(config, vision_model, text_model)


class TextInputs:
    """Sentences to what the model takes; a frozen encoder reads each sentence once."""

    def __init__(self, model, processor, device):
        self.processor, self.device = processor, device
        self.cache = TextCache(model) if model.text_encoder.frozen else None

    def __call__(self, prompts: list[str | None]) -> dict[str, torch.Tensor]:
        # A batch in which all sentences are hidden still passes the text path, with every word masked: each parameter
        # gets its gradient on every process.
        batch = self.processor(text=[prompt or "[PAD]" for prompt in prompts], return_tensors="pt")
        has_text = torch.tensor([prompt is not None for prompt in prompts])
        batch["attention_mask"] = batch["attention_mask"] * has_text[:, None]
        batch = {key: value.to(self.device) for key, value in batch.items()}
        return batch if self.cache is None else self.cache(**batch)


def keep_freed_memory() -> None:
    """Lets glibc keep the memory that tensors free, for the next step to use. By default it gives large blocks back to
    the kernel, which hands them out again page by page, each filled with zeros first. Nothing where there is no glibc.

    Measured by `python tests/benchmarks/bench_malloc.py --rounds 5 --steps 8` (MobileNetV2 of random weights, random
    pictures of 160 px, batch 16, one thread of a shared 2-core x86 machine, seed 0): 16.4 instead of 26.7 ms per
    picture (1.56 times as quick), of them 0.2 instead of 9.0 ms in the kernel; 111 instead of 5649 page faults."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.libc_ver()[0] == "glibc" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # their numbers in glibc's malloc.h
        mallopt(trim_threshold, -1)  # never give back the top of the heap
        mallopt(mmap_threshold, 2**31 - 1) or mallopt(mmap_threshold, 2**25)  # glibc before 2.35 allows 32 MB


def memory_format_for(device: torch.device, mixed_precision: str) -> torch.memory_format:
    """Channels last, in which convolutions are quickest; but not for bf16 on a CPU. There oneDNN leaves the gradients
    of the weights of dilated depthwise convolutions unwritten, so that they hold whatever was in memory (torch 2.13,
    x86 with AVX512-BF16, maps 31 or more pixels wide; in fp32, or with channels first, they are right)."""
    garbled = device.type == "cpu" and mixed_precision == "bf16"
    return torch.contiguous_format if garbled else torch.channels_last


def label_weights(accelerator, labels: torch.Tensor) -> torch.Tensor:
    """How much each row's mask counts where few rows have one: 0 without a mask, and such that the mean over a step's
    rows of all processes is 1. A loss over the labelled rows of a part, times the mean weight of the part, then adds
    up to the loss over all labelled rows, however a step is divided."""
    labelled = (labels != IGNORE_INDEX).flatten(1).any(dim=1).float()
    share = accelerator.reduce(labelled.mean(), "mean").item()
    return labelled.cpu().double() / (share or 1.0)


def compute_losses(model, distiller, text_inputs, autocast, batch, distillation_weight: float) -> dict:
    """The one place where losses are added up: the sum under `loss`, and its parts, for one batch."""
    pixels = batch["pixel_values"]
    weight = batch["label_weight"].mean().item() if "label_weight" in batch else 1.0
    if text_inputs is None:
        with autocast():
            outputs = model(
                pixel_values=pixels,
                perturbed_pixel_values=batch["perturbed_pixel_values"],
                affine=batch["affine"],
                labels=batch["labels"],
            )
        return {
            "loss": outputs.loss + (weight - 1) * outputs.segmentation_loss,
            "segmentation": weight * outputs.segmentation_loss,
            "consistency": outputs.consistency_loss,
        }
    # Outside of autocast, so that a kept sentence reads the same whoever asked for it first.
    texts = text_inputs(batch["prompt"])
    with autocast():
        outputs = model(pixel_values=pixels, labels=batch["labels"], **texts)
        losses = {"loss": weight * outputs.loss, "segmentation": weight * outputs.loss}
        if distiller is not None:
            # The teacher sees what the maps cover, the margin too: else its patches would lie beside theirs.
            padded = getattr(model, "module", model).pad_to_stride(pixels)
            losses["distillation"] = distiller(outputs.vision_hidden_states, padded)
            losses["loss"] = losses["loss"] + distillation_weight * losses["distillation"]
    return losses


def main(argv=None) -> dict:
    arguments = parse_arguments(argv)
    if arguments.dry_run:
        arguments = for_dry_run(arguments)
    output = Path(arguments.output_dir)
    keep_freed_memory()
    accelerator = Accelerator(
        cpu=arguments.cpu,
        mixed_precision=arguments.mixed_precision,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        step_scheduler_with_optimizer=False,
        log_with=None if arguments.report_to == "none" else arguments.report_to,
        project_dir=output,
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            "train_hf.py keeps the whole weights on each process: launch it without FSDP and DeepSpeed, as "
            "experiments/accelerate/ddp.yaml does."
        )
    set_seed(arguments.seed)
    say = accelerator.print
    if arguments.push_to_hub and accelerator.is_main_process:  # before the work, not after it
        reserve(arguments.hub_model_id, public=not arguments.hub_private)

    # Data. The sample's pictures have a seed of their own: every run is tested on the same ones.
    train_rows, eval_rows = load_splits(arguments)
    if arguments.streaming:
        train_rows, num_train_rows = stream_rows(arguments.dataset, "train")
        if num_train_rows is None and arguments.max_steps is None:
            raise ValueError(f"nobody says how many rows '{arguments.dataset}' streams: give --max_steps.")
    else:
        num_train_rows = len(train_rows)
    processor = build_processor(arguments, train_rows)
    model = build_model(arguments, processor)
    pretraining = arguments.stage == "pretrain"
    distills = bool(arguments.teacher and arguments.distillation_weight and not pretraining)
    if distills:
        check_teacher(arguments.teacher)
    views = {
        "augmentation": JointAugmentation(horizontal_flip=arguments.horizontal_flip),
        "perturbation": ConsistencyPerturbation() if pretraining else None,
        "prompt_dropout": 0.0 if pretraining else arguments.prompt_dropout,
        "prompt_shortening": 0.0 if pretraining else arguments.prompt_shortening,
        "seed": arguments.seed,
    }
    if arguments.streaming:
        train_data = StreamedSegmentationDataset(
            train_rows,
            processor.image_processor,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            **views,
        )
    else:
        view_rows, labelled = train_rows, None
        if arguments.label_budget < 1:
            # Rows without a mask are read only where a loss asks nothing of it.
            serves = model.config.consistency_weight if pretraining else distills
            view_rows, labelled = limit_labels(train_rows, arguments.label_budget, arguments.seed, bool(serves))
        train_data = SegmentationDataset(
            view_rows, processor.image_processor, labelled=labelled, cache=arguments.cache, **views
        )
    step_rows = arguments.batch_size * arguments.gradient_accumulation_steps  # one step's share of this process
    train_loader = DataLoader(
        train_data,
        batch_size=step_rows,
        shuffle=None if arguments.streaming else True,
        collate_fn=collate,
        num_workers=arguments.num_workers,
        persistent_workers=arguments.num_workers > 0,
        generator=torch.Generator().manual_seed(arguments.seed),
    )
    arms = text_arms([normalize_prompt(prompt) for prompt in column(eval_rows, "prompt")])

    # Model, distillation, optimiser.
    if arguments.sync_batch_norm and accelerator.num_processes > 1:
        model = synchronize_batch_norms(model, accelerator.device)
    layout = memory_format_for(accelerator.device, arguments.mixed_precision)
    model.to(accelerator.device, memory_format=layout)
    text_inputs = None if pretraining else TextInputs(model, processor, accelerator.device)
    distiller = None
    if distills:
        distiller = SemanticDistiller.from_pretrained(
            arguments.teacher,
            model.vision_encoder.channels,
            projector_size=arguments.projector_size,
            student_mean=processor.image_processor.image_mean,
            student_std=processor.image_processor.image_std,
        ).to(accelerator.device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    vision = {id(p) for p in model.vision_encoder.parameters()}
    groups = [
        {"params": [p for p in parameters if id(p) not in vision], "lr": arguments.learning_rate},
        {
            "params": [p for p in parameters if id(p) in vision],
            "lr": arguments.learning_rate * arguments.vision_learning_rate_scale,
        },
    ]
    if distiller is not None:
        groups[0]["params"] += list(distiller.projectors.parameters())
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=arguments.weight_decay)
    bare_model = model
    model, optimizer = accelerator.prepare(model, optimizer)
    rows_per_step = step_rows * accelerator.num_processes
    if arguments.streaming:  # each process reads its own share already
        train_loader = StreamedBatches(train_loader, accelerator)
        steps_per_epoch = math.ceil((num_train_rows or 0) / rows_per_step)
    else:
        train_loader = accelerator.prepare(train_loader)
        steps_per_epoch = len(train_loader)
    if distiller is not None:
        distiller = accelerator.prepare(distiller)
    total_steps = arguments.max_steps or arguments.epochs * steps_per_epoch
    scheduler = accelerator.prepare(
        get_scheduler(arguments.lr_scheduler_type, optimizer, round(arguments.warmup_ratio * total_steps), total_steps)
    )
    averaged = None
    if arguments.ema_decay:
        # BatchNorm statistics are averaged like weights: those of the newest weights would not fit the average.
        averaged = AveragedModel(
            bare_model, multi_avg_fn=rising_average(arguments.ema_decay), use_buffers=True
        ).requires_grad_(False)
        accelerator.prepare_model(averaged, evaluation_mode=True)  # so that it is part of the saved state
    scored_model = bare_model if averaged is None else averaged.module

    # What a run needs, beside weights and random states, to go on where it was: `batches` of the epoch are done.
    state = {"epoch": 0, "batches": 0, "step": 0, "best": -1.0, "stale": 0, "skipped": 0, "sums": {}}
    state["pieces"] = arguments.gradient_accumulation_steps
    run = {key: value for key, value in asdict(arguments).items() if key not in FREE_FIELDS}
    run |= {"processes": accelerator.num_processes, "train_rows": num_train_rows, "validation_rows": len(eval_rows)}
    if arguments.streaming:  # each worker makes batches of its own share: another number is another order
        run["num_workers"] = arguments.num_workers
    # A stream is not read again only to be described.
    kept_rows = {"validation": eval_rows} if arguments.streaming else {"train": train_rows, "validation": eval_rows}
    fingerprints = {split: fingerprint(rows) for split, rows in kept_rows.items()}
    checkpoints = Checkpoints(accelerator, output / "checkpoints", run, contents_of(arguments, fingerprints))
    if arguments.resume:
        found = checkpoints.load(arguments.resume)
        if found and not (output / "best").is_dir():
            # Of another folder's run, say. Its best/ may be of a later epoch than this checkpoint, so it is not taken.
            say(f"there is no {output / 'best'} yet: the best epoch is chosen among those that come now")
            found |= {"best": -1.0, "stale": 0}
        state = found or state
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        rewind_lines(output / "metrics.jsonl", state["epoch"])
        (output / "config.yaml").write_text(yaml.safe_dump(asdict(arguments), sort_keys=False))
    if arguments.report_to != "none":
        accelerator.init_trackers("tamiseg", {key: str(value) for key, value in asdict(arguments).items()})
    say(
        f"{num_train_rows or 'streamed'} training rows, {len(eval_rows)} validation rows, {total_steps} steps of "
        f"{rows_per_step}, {sum(p.numel() for p in parameters) / 1e6:.2f} M "
        f"trainable parameters, {accelerator.num_processes} process(es) on {accelerator.device}, seed {arguments.seed}"
    )
    if arguments.learns_tiny_text() and arguments.freeze_text_encoder:
        say("the tiny text encoder stays as it was drawn and learns nothing: leave out --freeze_text_encoder true")
    if num_train_rows is None:
        say("the stream does not say its length: validation comes after each whole pass, and after the last step")

    def losses_of(batch):
        batch = {**batch, "pixel_values": batch["pixel_values"].contiguous(memory_format=layout)}
        return compute_losses(
            model, distiller, text_inputs, accelerator.autocast, batch, arguments.distillation_weight
        )

    take_step = OptimizerStep(
        accelerator,
        [model] if distiller is None else [model, distiller],
        optimizer,
        scheduler,
        parameters,
        max_grad_norm=arguments.max_grad_norm,
        averaged=averaged,
        halve=arguments.on_out_of_memory == "halve",
        rows_folder=output / "stopped_on",
    )

    def rows_at_once() -> int:
        """Pictures that an evaluation takes: no more than a step does, whose batches may have been halved."""
        return min(arguments.batch_size, math.ceil(step_rows / state["pieces"]))

    def save_state() -> Path:
        state["sums"] = mean_over_processes(accelerator, state["sums"])
        return checkpoints.save(state)

    def leave(number: int) -> None:
        folder = save_state()
        say(f"\nstopped after step {state['step']}: the same command with --resume auto goes on from {folder}")
        accelerator.end_training()
        sys.exit(128 + number)

    bar = tqdm(total=total_steps, initial=state["step"], disable=not accelerator.is_main_process, mininterval=5)
    started, seen, postfix = time.time(), 0, {}
    with StopSignal(accelerator) as stop:
        # Batches of an epoch that are done and not yet evaluated count too: a run can be stopped in between.
        while state["batches"] or state["step"] < total_steps:
            if arguments.early_stopping_patience and state["stale"] >= arguments.early_stopping_patience:
                say(f"\nstopped early: no better validation Dice in {state['stale']} epochs")
                break
            train_data.set_epoch(state["epoch"])
            train_loader.set_epoch(state["epoch"])
            model.train()
            batches = train_loader
            if state["batches"] and arguments.streaming:
                batches = islice(train_loader, state["batches"], None)
            elif state["batches"]:  # Accelerate gives a None where no batch is left
                left = len(train_loader) - state["batches"]
                batches = skip_first_batches(train_loader, state["batches"]) if left else ()
            for batch in batches:
                if state["step"] >= total_steps:
                    break
                if arguments.label_budget < 1:
                    batch["label_weight"] = label_weights(accelerator, batch["labels"])
                losses = take_step(losses_of, batch, state)
                state["batches"] += 1
                for name, value in losses.items():
                    state["sums"][name] = state["sums"].get(name, 0.0) + value
                seen += len(batch["name"]) * accelerator.num_processes
                postfix["loss"] = f"{state['sums']['loss'] / state['batches']:.3f}"
                postfix["rate"] = f"{scheduler.get_last_lr()[0]:.1e}"
                postfix["img_s"] = f"{seen / (time.time() - started):.1f}"
                bar.update()
                bar.set_postfix(postfix)
                if stop.asked():
                    leave(stop.number)
                if arguments.save_steps and state["step"] % arguments.save_steps == 0:
                    save_state()
            share_buffers(accelerator, scored_model)
            # A model that never saw a sentence is chosen without.
            name = "no_text" if pretraining or arguments.prompt_dropout == 1 else "full_text"
            asked = {name: arms[name]}
            segment = Segmenter(scored_model, processor)
            try:
                scores = evaluate(accelerator, segment, eval_rows, asked, rows_at_once(), stop.watch)[name]
            except Stopped:
                leave(stop.number)
            sums = mean_over_processes(accelerator, state["sums"])
            line = {
                "epoch": state["epoch"] + 1,
                "step": state["step"],
                "learning_rate": scheduler.get_last_lr()[0],
                "images_per_second": seen / (time.time() - started),
                **{f"train_{key}": value / state["batches"] for key, value in sums.items()},
                **{f"validation_{key}": scores[key] for key in ("dice_per_image", "dice_global")},
            }
            say(" ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()))
            accelerator.log(line, step=state["step"])
            postfix["dice"] = f"{scores['dice_per_image']:.3f}"
            # The mean of classes is there with more than two labels.
            chosen_by = scores.get("dice_mean_of_classes", scores["dice_per_image"])
            improved = chosen_by > state["best"]
            state["best"] = max(state["best"], chosen_by)
            state["stale"] = 0 if improved else state["stale"] + 1
            state["epoch"], state["batches"], state["sums"] = state["epoch"] + 1, 0, {}
            if accelerator.is_main_process:
                with open(output / "metrics.jsonl", "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                write_curves(output / "metrics.jsonl", output / "curves.png")
                if improved:
                    write_whole(output / "best", lambda folder: save(scored_model, processor, folder))
            accelerator.wait_for_everyone()
            if stop.asked():
                leave(stop.number)
            save_state()
    bar.close()
    if accelerator.is_main_process and not (output / "best").is_dir():  # resumed after the last epoch
        say("no epoch was left: the weights of the checkpoint are taken as the best")
        write_whole(output / "best", lambda folder: save(scored_model, processor, folder))
    accelerator.wait_for_everyone()

    best = type(bare_model).from_pretrained(output / "best").to(accelerator.device, memory_format=layout)
    asked = {"no_text": arms["no_text"]} if pretraining else arms
    scores = evaluate(accelerator, Segmenter(best, processor), eval_rows, asked, rows_at_once())
    command = "python train_hf.py " + shlex.join(sys.argv[1:] if argv is None else argv)
    weights = hash_weights(output / "best" / "model.safetensors")
    result = {
        **receipt(command, weights, arguments.seed, str(accelerator.device)),
        "arguments": without_folders(asdict(arguments)),
        "split": "validation",
        "scores": scores,
        "data": fingerprints,
        "rows": {
            split: describe_rows(column(rows, "prompt"), column(rows, "patient_id"))
            for split, rows in kept_rows.items()
        },
        "shared_patients": None if arguments.streaming else shared_patients(train_rows, eval_rows),
        "sources": {
            role: source_of(getattr(arguments, role)) for role in ("dataset", "vision_model", "text_model", "teacher")
        },
        "steps": state["step"],
    }
    if accelerator.is_main_process:
        (output / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        if not pretraining:
            if arguments.dataset == "builtin":  # the only pictures that anybody may be shown
                write_examples(best, processor, output / "examples.png")
            pictures = {name: f"../{name}" for name in ("curves.png", "examples.png") if (output / name).is_file()}
            card = model_card([result], (output / "best").as_posix(), pictures)
            (output / "best" / "README.md").write_text(card, encoding="utf-8")
    say(f"\nvalidation, {len(eval_rows)} rows   Dice per image   Dice global")
    for arm, score in scores.items():
        say(f"  {arm.replace('_', ' '):<26}{100 * score['dice_per_image']:>10.2f}{100 * score['dice_global']:>14.2f}")
    say(f"best model: {output / 'best'}")
    if pretraining:
        # What both stages have to share, as far as it is not what stage 2 would take by itself.
        shared = ("dataset", "image_size", "validation_share", "model_config")
        defaults = Arguments.__dataclass_fields__
        told = {key: getattr(arguments, key) for key in shared if getattr(arguments, key) != defaults[key].default}
        words = shlex.join(as_words({**told, "vision_model": output / "best"}))
        say(f"next: python train_hf.py --stage finetune {words} --output_dir ...")
    else:
        say(f'next: tamiseg predict IMAGE --text "..." --model {output / "best"} --output mask.png')
    # The last gathering must be over everywhere before processes part: torch can lock up when it ends a gloo group
    # whose threads still hold the tensors of one.
    accelerator.wait_for_everyone()
    if arguments.push_to_hub and accelerator.is_main_process:
        say(f"pushing; should this break off: tamiseg push {output} {arguments.hub_model_id}")
        push(output, arguments.hub_model_id, public=not arguments.hub_private)
    accelerator.end_training()
    if arguments.dry_run:
        if accelerator.is_main_process:
            shutil.rmtree(output)
        say("dry run: data, model, one step, evaluation and saving work; nothing was kept")
    return result


def shared_patients(*splits) -> int:
    """How many patients, where they are known, are in all splits."""
    return len(set.intersection(*(set(column(rows, "patient_id")) for rows in splits)) - {None})


def save(model, processor, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    list_code(folder)


def run() -> None:
    """The command line: one sentence instead of a traceback where the user can mend it."""
    try:
        main()
    except KeyboardInterrupt:
        words, code = "stopped.", 130
    except RuntimeError as error:
        if should_reduce_batch_size(error):
            words, code = (
                "out of memory: halve --batch_size and double --gradient_accumulation_steps, or give "
                "--on_out_of_memory halve.",
                2,
            )
        elif str(error).startswith("DataLoader worker"):  # torch says only this of a worker that was killed
            words, code = (
                f"{str(error).splitlines()[0].strip(' .')}, most often because memory ran out: give fewer "
                "--num_workers; the same command with --resume auto goes on from the last checkpoint.",
                2,
            )
        else:
            raise
    except (ValueError, OSError, StrictDataclassError) as error:
        # An error of a data worker, or of a config's validation, arrives wrapped: the sentence is its last line.
        words, code = refusal(error) if isinstance(error, OSError) else str(error).strip(), 2
        if "Traceback" in words or isinstance(error, StrictDataclassError):
            words = words.splitlines()[-1].strip().removeprefix("ValueError: ")
    else:
        return
    print("train_hf.py: " + " ".join(words.split()), file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    run()
