# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Pixels to four scales, on encoders that transformers provides."""

import torch
from torch import nn
from transformers import AutoBackbone, AutoModel, PreTrainedModel


class TAMISegVisionEncoder(nn.Module):
    """Four feature maps of one picture, finest first.

    `resnet` gives its stem before max-pooling (1/2) and three stages (1/4, 1/8, 1/16); `mobilenet_v2` the last map at
    each of these strides, with `output_stride` 16 in its config turning its deepest layers into dilated ones at 1/16;
    any other config is given to `AutoBackbone` and must name four maps by its `out_indices`. Layers behind the last
    map are left out: they would neither be used nor get a gradient.

    Args:
        config (`TAMISegConfig`): `vision_config`, `vision_strides` and `freeze_vision_encoder` are read.
        backbone (`PreTrainedModel`, *optional*): an encoder with pretrained weights, of `config.vision_config`.
    """

    def __init__(self, config, backbone: PreTrainedModel | None = None):
        super().__init__()
        vision_config = config.vision_config
        auto_class = AutoModel if vision_config.model_type in _FEATURES else AutoBackbone
        self.backbone = auto_class.from_config(vision_config) if backbone is None else backbone
        self._features = _FEATURES.get(vision_config.model_type, _backbone_features)
        self.channels = _TRIM.get(vision_config.model_type, _check_backbone)(self.backbone)
        self.strides = config.vision_strides
        self.frozen = config.freeze_vision_encoder
        self.requires_grad_(not self.frozen)

    def train(self, mode: bool = True):
        # A frozen encoder keeps its BatchNorm statistics still as well.
        return super().train(mode and not self.frozen)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`(batch_size, 3, height, width)` to four `(batch_size, channels, height / stride, width / stride)`; height
        and width must be multiples of the coarsest stride.

        Raises:
            ValueError: if the maps are not of the sizes that `vision_strides` promises.
        """
        maps = self._features(self.backbone, pixel_values)
        expected = [pixel_values.shape[-1] // stride for stride in self.strides]
        if [m.shape[-1] for m in maps] != expected:
            raise ValueError(
                f"vision_strides {self.strides} promise maps {expected} cells wide for a picture of "
                f"{pixel_values.shape[-1]} pixels, but the encoder gave {[m.shape[-1] for m in maps]}: set "
                "vision_strides in the config to what the encoder does."
            )
        return maps


def _resnet_features(backbone, pixel_values):
    stem = backbone.embedder.embedder(pixel_values)
    maps, hidden_state = [stem], backbone.embedder.pooler(stem)
    for stage in backbone.encoder.stages:
        hidden_state = stage(hidden_state)
        maps.append(hidden_state)
    return tuple(maps)


def _trim_resnet(backbone):
    config = backbone.config
    if len(config.hidden_sizes) < 3:
        raise ValueError(f"a resnet encoder needs three stages, but its hidden_sizes are {config.hidden_sizes}.")
    backbone.encoder.stages = backbone.encoder.stages[:3]
    return [config.embedding_size, *config.hidden_sizes[:3]]


def _mobilenet_v2_features(backbone, pixel_values):
    maps, hidden_state = [], backbone.conv_stem(pixel_values)
    for layer in backbone.layer:
        # A new map begins where the stride doubles; the one before it is complete.
        if layer.conv_3x3.convolution.stride[0] == 2:
            maps.append(hidden_state)
        hidden_state = layer(hidden_state)
    return (*maps, hidden_state)


def _trim_mobilenet_v2(backbone):
    if backbone.config.output_stride < 16:
        raise ValueError(
            "a mobilenet_v2 encoder needs maps down to 1/16, but its output_stride is "
            f"{backbone.config.output_stride}: set it to 16 or 32."
        )
    layers = list(backbone.layer)
    downsampling = [i for i, layer in enumerate(layers) if layer.conv_3x3.convolution.stride[0] == 2]
    end = downsampling[3] if len(downsampling) > 3 else len(layers)
    backbone.layer = nn.ModuleList(layers[:end])
    backbone.conv_1x1 = None
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            # transformers carries TensorFlow's 0.997 over, which means "keep the old" there and "take the new" here:
            # running statistics would be those of the last batch.
            module.momentum = 0.1
    ends = [*downsampling[:3], end]
    return [layers[i - 1].reduce_1x1.convolution.out_channels if i else _stem_channels(backbone) for i in ends]


def _stem_channels(backbone):
    return backbone.conv_stem.reduce_1x1.convolution.out_channels


def _backbone_features(backbone, pixel_values):
    return tuple(backbone(pixel_values).feature_maps)


def _check_backbone(backbone):
    if len(backbone.channels) != 4:
        raise ValueError(
            f"the {backbone.config.model_type} backbone gives {len(backbone.channels)} maps, but four are needed: set "
            "out_indices in its config to the four layers that should be read."
        )
    return list(backbone.channels)


def _trim_swin(backbone):
    channels = _check_backbone(backbone)
    getattr(backbone, backbone.base_model_prefix).layernorm = nn.Identity()  # of the last state, which is no map
    return channels


_FEATURES = {"resnet": _resnet_features, "mobilenet_v2": _mobilenet_v2_features}
_TRIM = {
    "resnet": _trim_resnet,
    "mobilenet_v2": _trim_mobilenet_v2,
    "swin": _trim_swin,
    "maskformer-swin": _trim_swin,
}
