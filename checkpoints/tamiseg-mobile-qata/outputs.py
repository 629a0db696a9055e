# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""What comes back from the models."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class TAMISegImageSegmentationOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, returned when `labels` are given):
            Weighted sum of cross-entropy and Dice loss.
        logits (`torch.FloatTensor` of shape `(num_sentences, num_labels, height, width)`):
            Scores before softmax, at the size of `pixel_values`: one row per picture, or per entry of
            `image_indices`.
        vision_hidden_states (`tuple` of four `torch.FloatTensor` of shape `(batch_size, channels, height, width)`):
            The encoder's maps, finest first; what distillation acts on.
        text_hidden_states (`torch.FloatTensor` of shape `(batch_size, sequence_length, text_hidden_size)`):
            The text encoder's states, or `text_embeds` as given; `None` where the whole batch came without text.
        image_indices (`torch.LongTensor` of shape `(num_sentences,)`, returned when given):
            Which picture each row of `logits` is of.
        cross_attentions (`tuple` of two `torch.FloatTensor` of shape `(num_sentences, num_attention_heads, pixels,
            sequence_length)`, returned when `output_attentions=True`):
            What the pixels read of each token, in [0, 1] with a sum of 1 over the tokens. The pixels are those of the
            four scales, finest first and row by row; scales finer than `alignment_stride` have its grid. Without text
            every token is the null prompt.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    vision_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    text_hidden_states: torch.FloatTensor | None = None
    image_indices: torch.LongTensor | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class TAMISegConsistencyPretrainingOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, returned when `labels` are given):
            `segmentation_loss + consistency_weight * consistency_loss`.
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels, height, width)`):
            Scores of the clean view.
        perturbed_logits (`torch.FloatTensor` of the same shape, returned when a perturbed view is given):
            Scores of the perturbed view, in that view's own geometry.
        segmentation_loss, consistency_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            The two parts of the loss.
        vision_hidden_states (`tuple` of four `torch.FloatTensor` of shape `(batch_size, channels, height, width)`):
            The encoder's maps of the clean view, finest first.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    perturbed_logits: torch.FloatTensor | None = None
    segmentation_loss: torch.FloatTensor | None = None
    consistency_loss: torch.FloatTensor | None = None
    vision_hidden_states: tuple[torch.FloatTensor, ...] | None = None
