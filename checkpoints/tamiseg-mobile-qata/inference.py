# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""What makes a trained model quick: norms folded into convolutions, dilated kernels merged. No output changes beyond
rounding. `fuse_for_inference` of the model calls the `fuse` of each part; these are their tools."""

import math

import torch
from torch import nn


def fold_batch_norm(convs: list[nn.Conv2d], norm: nn.BatchNorm2d) -> nn.Identity:
    """Changes `convs` so that their sum is what `norm(their sum)` was, in eval mode; gives what stands for `norm`."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    for conv in convs:
        conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=False)
        bias = 0 if conv.bias is None else conv.bias * scale
        conv.bias = nn.Parameter(bias + shift, requires_grad=False)
        shift = torch.zeros_like(shift)  # once is enough
    return nn.Identity()


def fold_layer(layer: nn.Module) -> None:
    """Folds a layer of transformers' convolutional encoders, whose parts are `convolution` and `normalization`."""
    if isinstance(getattr(layer, "normalization", None), nn.BatchNorm2d):
        layer.normalization = fold_batch_norm([layer.convolution], layer.normalization)


def merge_dilated(convs: list[nn.Conv2d]) -> nn.Module:
    """The sum of depthwise 3x3 convolutions of one input as one depthwise convolution: for dilations 6, 12 and 18 a
    7x7 of dilation 6 with 25 taps."""
    dilations = [conv.dilation[0] for conv in convs]
    step, reach = math.gcd(*dilations), max(dilations)
    side = 2 * reach // step + 1
    weight = convs[0].weight.new_zeros(len(convs[0].weight), 1, side, side)
    for conv, dilation in zip(convs, dilations, strict=True):
        every = dilation // step
        first = side // 2 - every
        weight[..., first : first + 2 * every + 1 : every, first : first + 2 * every + 1 : every] += conv.weight
    channels = len(weight)
    # Padded by hand: torch's fast path for CPUs ends at a padding of 12.
    merged = nn.Conv2d(channels, channels, side, dilation=step, groups=channels, bias=False)
    merged.weight = nn.Parameter(weight, requires_grad=False)
    return nn.Sequential(nn.ZeroPad2d(reach), merged)
