# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Pure functions on logits. They give terms; weights are chosen by the config, and sums are made by the caller."""

import torch
import torch.nn.functional as F


def dice_loss(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = 255) -> torch.Tensor:
    """One minus soft Dice, averaged over images and over the classes that are not background. An image without any
    label to look at does not count; where none has one, the loss is 0.

    One pixel is added above and below the fraction, so that an empty target gives a gradient that pushes towards an
    empty answer, and empty answered empty costs 0.

    Args:
        logits: `(batch_size, num_labels, height, width)`.
        labels: int64 `(batch_size, height, width)`, class ids or `ignore_index`.

    Returns:
        A scalar in [0, 1].
    """
    valid = labels != ignore_index
    target = F.one_hot(labels.where(valid, 0), logits.shape[1]).movedim(-1, 1)[:, 1:].to(logits.dtype)
    probability = logits.softmax(dim=1)[:, 1:]
    labelled = valid.flatten(1).any(dim=1).to(logits.dtype)
    valid = valid[:, None].to(logits.dtype)
    intersection = (probability * target * valid).sum(dim=(2, 3))
    total = ((probability + target) * valid).sum(dim=(2, 3))
    loss = 1 - ((2 * intersection + 1) / (total + 1)).mean(dim=1)
    return (loss * labelled).sum() / labelled.sum().clamp(min=1)


def cross_entropy_loss(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = 255) -> torch.Tensor:
    """Mean cross-entropy over the pixels that count; 0 where none does (a batch without any label).

    Args and returns as in [`dice_loss`], without an upper bound.
    """
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    return total / (labels != ignore_index).sum().clamp(min=1)


def segmentation_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    cross_entropy_weight: float = 1.0,
    dice_weight: float = 1.5,
    ignore_index: int = 255,
) -> torch.Tensor:
    """`cross_entropy_weight * cross-entropy + dice_weight * Dice loss`; a term of weight 0 is not computed.

    In float32 whatever the logits are: sums over the pixels of a picture are beyond what float16 holds.
    """
    logits = logits.float()
    loss = logits.new_zeros(())
    if cross_entropy_weight:
        loss = loss + cross_entropy_weight * cross_entropy_loss(logits, labels, ignore_index)
    if dice_weight:
        loss = loss + dice_weight * dice_loss(logits, labels, ignore_index)
    return loss


def consistency_loss(logits: torch.Tensor, other_logits: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Symmetric consistency of two aligned views: each is asked for the other's hard answer (paper, stage 1).

    Args:
        logits, other_logits: `(batch_size, num_labels, height, width)`, aligned pixel by pixel.
        valid: bool `(batch_size, height, width)`, the pixels that both views show.

    Returns:
        A scalar, 0 at the least.
    """
    logits, other_logits = logits.float(), other_logits.float()  # as in `segmentation_loss`
    pixels = valid.sum().clamp(min=1)

    def towards(student, teacher):
        cost = F.cross_entropy(student, teacher.detach().argmax(dim=1), reduction="none")
        return (cost * valid).sum() / pixels

    return 0.5 * (towards(logits, other_logits) + towards(other_logits, logits))


def distillation_loss(student_tokens: torch.Tensor, teacher_tokens: torch.Tensor) -> torch.Tensor:
    """Negative cosine similarity, averaged over tokens and pictures (paper, semantic encoder distillation).

    Args:
        student_tokens, teacher_tokens: `(batch_size, tokens, teacher_hidden_size)`.

    Returns:
        A scalar in [-1, 1]; -1 is full agreement.
    """
    return -F.cosine_similarity(student_tokens.float(), teacher_tokens.float(), dim=-1).mean()
