# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Rivals for `bench_inference --against`: factories of functions of `pixel_values`, with random weights."""

import torch
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)


def clipseg():
    """CLIPSeg rd64, ViT-B/16, with its text tower; it reads ten tokens."""
    config = CLIPSegConfig(
        vision_config={"image_size": 256, "patch_size": 16}, text_config={}, reduce_dim=64, extract_layers=[3, 6, 9]
    )
    model = CLIPSegForImageSegmentation(config).eval()
    input_ids = torch.randint(0, 1000, (1, 10))
    return lambda pixel_values: model(pixel_values=pixel_values, input_ids=input_ids).logits


def segformer():
    """SegFormer-B2."""
    config = SegformerConfig(depths=[3, 4, 6, 3], hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=768)
    model = SegformerForSemanticSegmentation(config).eval()
    return lambda pixel_values: model(pixel_values).logits


def unet():
    """MONAI's U-Net of nnU-Net's widths; needs `pip install monai`."""
    from monai.networks.nets import UNet

    model = UNet(2, 3, 2, channels=(32, 64, 128, 256, 512, 512), strides=(2, 2, 2, 2, 2), num_res_units=1).eval()
    return model
