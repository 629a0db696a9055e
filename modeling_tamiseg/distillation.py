# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Semantic encoder distillation: a frozen teacher shapes the student's features while it trains, and is never needed
after (paper). Nothing imports this file: neither the teacher nor the projectors are part of a checkpoint."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # real without torchvision, too

from .losses import distillation_loss


class SemanticDistiller(nn.Module):
    """Teacher, one projector per scale of the student, and the loss between them.

    Args:
        teacher (`PreTrainedModel`): any vision model whose `last_hidden_state` is a map `(batch, channels, h, w)` or
            tokens `(batch, prefix + h * w, channels)`, as DINOv3 ViT and ConvNeXt give them. Frozen here.
        student_channels (`list[int]`): channels of the student's maps (`model.vision_encoder.channels`).
        image_size (`tuple[int, int]`): height and width that the teacher sees, multiples of its patches.
        image_mean, image_std, student_mean, student_std (`sequence` of three `float`): normalisation that the teacher
            was trained with, and the one that `pixel_values` carry.
        projector_size (`int`): hidden width of the projectors; 2048 in the paper. On the default encoder and 196
            tokens they take more FLOPs than all the rest of a training step; at 512 a seventh of that.

    Raises:
        ValueError: if the teacher reads no pictures, or its tokens are no grid of the picture's patches.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        student_channels: list[int],
        image_size: tuple[int, int],
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
        student_mean=IMAGENET_DEFAULT_MEAN,
        student_std=IMAGENET_DEFAULT_STD,
        projector_size: int = 2048,
    ):
        super().__init__()
        if teacher.main_input_name != "pixel_values":
            raise ValueError(
                f"the teacher is a {teacher.config.model_type}, which reads no pictures: give a vision model."
            )
        self.teacher = teacher.requires_grad_(False)
        self.image_size = tuple(image_size)
        # teacher input = (pixels * student_std + student_mean - teacher_mean) / teacher_std
        student_mean, student_std, image_mean, image_std = (
            torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            for values in (student_mean, student_std, image_mean, image_std)
        )
        self.register_buffer("scale", student_std / image_std, persistent=False)
        self.register_buffer("shift", (student_mean - image_mean) / image_std, persistent=False)
        with torch.no_grad():
            tokens, self.grid = self._teacher_tokens(torch.zeros(1, 3, *self.image_size))
        self.projectors = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Linear(channels, projector_size),
                    nn.SiLU(),
                    nn.Linear(projector_size, projector_size),
                    nn.SiLU(),
                    nn.Linear(projector_size, tokens.shape[-1]),
                )
                for channels in student_channels
            ]
        )
        self.train()

    @classmethod
    def from_pretrained(cls, teacher_name_or_path: str, student_channels: list[int], **kwargs) -> "SemanticDistiller":
        """A teacher from a Hub id or folder. Its picture size and normalisation are read from its own image processor
        (size from its config where there is none, and then ImageNet's normalisation); `kwargs` win over both.

        Raises:
            OSError: if there is no such model.
        """
        teacher = AutoModel.from_pretrained(teacher_name_or_path, dtype=torch.float32)
        size = getattr(teacher.config, "image_size", 224)
        settings = {"image_size": (size, size) if isinstance(size, int) else tuple(size)}
        try:
            processor = AutoImageProcessor.from_pretrained(teacher_name_or_path)
        except (OSError, ValueError):
            processor = None  # many checkpoints come without one
        if processor is not None:
            size = getattr(processor, "crop_size", None) or processor.size
            side = size.get("shortest_edge")
            settings["image_size"] = (size.get("height", side), size.get("width", side))
            settings["image_mean"], settings["image_std"] = processor.image_mean, processor.image_std
        return cls(teacher, student_channels, **{**settings, **kwargs})

    def train(self, mode: bool = True):
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def teacher_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the teacher says of the student's pixels: `(batch_size, 3, height, width)` to `(batch_size, tokens,
        teacher_hidden_size)`; the same for a picture each time, so it may be kept."""
        pixels = F.interpolate(
            pixel_values, size=self.image_size, mode="bilinear", align_corners=False, antialias=True
        )
        return self._teacher_tokens(pixels * self.scale + self.shift)[0]

    def _teacher_tokens(self, pixels):
        output = self.teacher(pixels).last_hidden_state
        if output.ndim == 4:
            return output.flatten(2).transpose(1, 2), tuple(output.shape[-2:])
        grid = self._token_grid(output.shape[1])
        # Class and register tokens come first.
        return output[:, -grid[0] * grid[1] :], grid

    def _token_grid(self, tokens: int) -> tuple[int, int]:
        """The grid of the picture's patches; what the tokens hold beyond it are class and registers."""
        height, width = self.image_size
        # Pyramids such as ConvNeXt end at 1/32, whatever their config calls a patch.
        pyramid = hasattr(self.teacher.config, "hidden_sizes")
        stride = 32 if pyramid else getattr(self.teacher.config, "patch_size", 16)
        grid = (height // stride, width // stride)
        if grid[0] * grid[1] <= tokens:
            return grid
        raise ValueError(
            f"the teacher gives {tokens} tokens for a picture of {height}x{width}, which is no grid of its patches: "
            "set image_size to what the teacher was made for."
        )

    def forward(
        self,
        vision_hidden_states: tuple[torch.Tensor, ...],
        pixel_values: torch.Tensor | None = None,
        teacher_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            vision_hidden_states: the student's maps, `(batch_size, channels, height, width)` each.
            pixel_values: what the student saw, padded as its maps are (`model.pad_to_stride`); not needed where
                `teacher_tokens` are given.
            teacher_tokens: kept answers of [`teacher_tokens`].

        Returns:
            Negative cosine similarity, mean over tokens and scales: a scalar in [-1, 1].
        """
        if teacher_tokens is None:
            teacher_tokens = self.teacher_tokens(pixel_values)
        losses = []
        for projector, feature_map in zip(self.projectors, vision_hidden_states, strict=True):
            # Averages over the cells of the teacher's grid: an antialiased bilinear resize costs far more going back.
            resized = F.adaptive_avg_pool2d(feature_map, self.grid)
            losses.append(distillation_loss(projector(resized.flatten(2).transpose(1, 2)), teacher_tokens))
        return torch.stack(losses).mean()
