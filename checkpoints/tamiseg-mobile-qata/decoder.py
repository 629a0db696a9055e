# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Four scales to logits: the dilated multi-scale module of every scale, and the fusion of what met the text."""

import torch
import torch.nn.functional as F
from torch import nn

from .inference import fold_batch_norm, merge_dilated


class ScaleAdaptiveDecoder(nn.Module):
    """Multi-scale module per scale -> text-image alignment (in between, by the caller) -> fusion into logits (paper).

    Its two halves are called one after the other: what the first gives depends on the picture alone, so it is made
    once per picture, however many sentences ask about it.

    Args:
        config (`TAMISegConfig`): widths, strides and the kind of fusion are read.
        channels (`list[int]`): channels of the encoder's four maps.
    """

    def __init__(self, config, channels: list[int]):
        super().__init__()
        self.pools = [max(1, config.alignment_stride // stride) for stride in config.vision_strides]
        self.scales = nn.ModuleList([ScaleProjection(config, c) for c in channels])
        fusion = {"low_resolution": LowResolutionFusion, "full_resolution": FullResolutionFusion}[config.fusion]
        self.fusion = fusion(config, channels)

    def read_image(self, feature_maps: tuple[torch.Tensor, ...]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The encoder's four maps, finest first, to four maps `(batch_size, hidden_size, height, width)` for the
        alignment, none finer than `alignment_stride`, and to the details that the fusion adds again."""
        pooled = [F.avg_pool2d(m, pool) if pool > 1 else m for m, pool in zip(feature_maps, self.pools, strict=True)]
        scales = [scale(m) for scale, m in zip(self.scales, pooled, strict=True)]
        return scales, self.fusion.read_details(feature_maps)

    def forward(self, aligned: list[torch.Tensor], details: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        """Maps that have read the text, and the details, to logits `(batch_size, num_labels, *size)`."""
        return self.fusion(aligned, details, size)


class ScaleProjection(nn.Sequential):
    """One scale to the common width, through its multi-scale module unless that is switched off."""

    def __init__(self, config, channels: int):
        width = config.hidden_size
        inner = width if config.project_first else channels
        layers = [ConvBlock(channels, inner, 1)]
        if config.use_multi_scale:
            layers.append(MultiScaleModule(inner, config.dilations))
        if inner != width:
            layers.append(nn.Conv2d(inner, width, 1))
        super().__init__(*layers)


class MultiScaleModule(nn.Module):
    """What is near and what is far, weighed for each pixel, added to what was there (paper, scale-adaptive decoder).

    The local branch is a depthwise 3x3 under a sigmoid gate per pixel; the wide branch is the sum of dilated depthwise
    3x3 convolutions, mixed and multiplied with its input.
    """

    def __init__(self, channels: int, dilations: list[int]):
        super().__init__()
        self.local = DepthwiseConv(channels)
        self.gate = nn.Conv2d(2, 1, 7, padding=3)
        self.wide = nn.ModuleList([DepthwiseConv(channels, dilation) for dilation in dilations])
        self.wide_mix = nn.Conv2d(channels, channels, 1)
        self.merge = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """`(batch_size, channels, height, width)` to the same shape."""
        local = self.local(hidden_state)
        summary = torch.cat([local.mean(dim=1, keepdim=True), local.amax(dim=1, keepdim=True)], dim=1)
        local = local * self.gate(summary).sigmoid()
        wide = self.wide_mix(sum(conv(hidden_state) for conv in self.wide)) * hidden_state
        return hidden_state + self.norm(self.merge(torch.cat([local, wide], dim=1)))

    def fuse(self) -> None:
        self.wide = nn.ModuleList([merge_dilated(self.wide)])
        self.norm = fold_batch_norm([self.merge], self.norm)


class LowResolutionFusion(nn.Module):
    """Project, upsample, add at the alignment's stride, then a light step up to each finer map of the encoder.

    A 1x1 convolution commutes with bilinear upsampling, and over a concatenation it is a sum of 1x1 convolutions: so
    this is the concatenation of upsampled maps and its 1x1, at the price of the small ones.
    """

    def __init__(self, config, channels: list[int]):
        super().__init__()
        width = config.hidden_size
        self.lateral = nn.ModuleList([nn.Conv2d(width, width, 1, bias=False) for _ in channels])
        self.norm = nn.BatchNorm2d(width)
        self.refine = nn.Sequential(DepthwiseConv(width), ConvBlock(width, width, 1))
        finer = [
            c for c, stride in zip(channels, config.vision_strides, strict=True) if stride < config.alignment_stride
        ]
        # Coarse to fine, half as wide each time: the cost of a step stays about the same.
        self.steps = nn.ModuleList([StepUp(width >> i, c, width >> (i + 1)) for i, c in enumerate(reversed(finer))])
        self.classifier = nn.Conv2d(width >> len(finer), config.num_labels, 1)

    def read_details(self, feature_maps: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """What the steps add of the encoder's finer maps, coarse to fine."""
        finer = reversed(feature_maps[: len(self.steps)])
        return [step.skip(m) for step, m in zip(self.steps, finer, strict=True)]

    def forward(self, aligned: list[torch.Tensor], details: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        """Aligned maps and details to logits `(batch_size, num_labels, *size)`."""
        grid = aligned[0].shape[-2:]
        fused = sum(upsample(lateral(m), grid) for lateral, m in zip(self.lateral, aligned, strict=True))
        fused = self.refine(self.norm(fused).relu())
        for step, detail in zip(self.steps, details, strict=True):
            fused = step(fused, detail)
        return upsample(self.classifier(fused), size)

    def fuse(self) -> None:
        self.norm = fold_batch_norm(self.lateral, self.norm)


class StepUp(nn.Module):
    """One step to a finer map: what was fused, upsampled, plus the encoder's detail, mixed."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int):
        super().__init__()
        self.up = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.skip = nn.Conv2d(skip_channels, out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.mix = nn.Sequential(DepthwiseConv(out_channels), ConvBlock(out_channels, out_channels, 1))

    def forward(self, fused: torch.Tensor, detail: torch.Tensor) -> torch.Tensor:
        """`(batch_size, in_channels, h, w)` and `(batch_size, out_channels, height, width)` to the latter's shape."""
        return self.mix(self.norm(upsample(self.up(fused), detail.shape[-2:]) + detail).relu())

    def fuse(self) -> None:
        self.norm = fold_batch_norm([self.up, self.skip], self.norm)


class FullResolutionFusion(nn.Module):
    """Every map upsampled to the picture's size, concatenated, three 3x3 convolutions: the paper's way. In training
    the first of them is computed by [`convolve_upsampled`], so that a comparison can be afforded at all."""

    def __init__(self, config, channels: list[int]):
        super().__init__()
        self.convs = nn.Sequential(
            ConvBlock(len(channels) * config.hidden_size, 128, 3),
            ConvBlock(128, 64, 3),
            nn.Conv2d(64, config.num_labels, 3, padding=1),
        )

    def read_details(self, feature_maps: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """None: the aligned maps say it all."""
        return []

    def forward(self, aligned: list[torch.Tensor], details: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        """As in [`LowResolutionFusion`]."""
        if not self.training:
            return self.convs(torch.cat([upsample(m, size) for m in aligned], dim=1))
        (first, norm, relu), *rest = self.convs
        hidden_state = relu(norm(convolve_upsampled(aligned, first.weight, size)))
        for layer in rest:
            hidden_state = layer(hidden_state)
        return hidden_state


def convolve_upsampled(feature_maps: list[torch.Tensor], weight: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A 3x3 convolution, zeros around, over the concatenation of maps that are upsampled to `size`: the same function
    as in that order, but each of the nine taps is applied to the small maps, and what they give is upsampled.

    Args:
        feature_maps: any number, `(batch_size, channels, h, w)`.
        weight: `(out_channels, channels of all maps, 3, 3)`.

    Returns:
        `(batch_size, out_channels, *size)`.
    """
    # A tap at place p is added to the output at the mirrored place, as `fold` does with a flipped kernel.
    parts = weight.flip(2, 3).split([m.shape[1] for m in feature_maps], dim=1)
    taps = 0
    for m, part in zip(feature_maps, parts, strict=True):
        kernel = part.permute(0, 2, 3, 1).reshape(-1, m.shape[1], 1, 1)
        tapped = F.conv2d(m.contiguous(memory_format=torch.channels_last), kernel)
        taps = taps + upsample(tapped.contiguous(memory_format=torch.channels_last), size)  # several times as quick so
    return F.fold(taps.flatten(2), size, 3, padding=1)


class ConvBlock(nn.Sequential):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )

    def fuse(self) -> None:
        self[1] = fold_batch_norm([self[0]], self[1])


class DepthwiseConv(nn.Conv2d):
    """A 3x3 convolution of each channel by itself, size kept."""

    def __init__(self, channels: int, dilation: int = 1):
        super().__init__(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)


def upsample(feature_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear, cell centres kept (`align_corners=False`); a map that has the size already comes back as it is."""
    if feature_map.shape[-2:] == tuple(size):
        return feature_map
    return F.interpolate(feature_map, size=tuple(size), mode="bilinear", align_corners=False)
