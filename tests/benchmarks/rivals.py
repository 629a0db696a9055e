# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Rivals for `bench_inference --against`: factories of a network with random weights and a function of `pixel_values`
that runs it. MONAI's are of the extra `baselines`."""

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
    return model, lambda pixel_values: model(pixel_values=pixel_values, input_ids=input_ids)


def segformer():
    """SegFormer-B2."""
    config = SegformerConfig(depths=[3, 4, 6, 3], hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=768)
    model = SegformerForSemanticSegmentation(config).eval()
    return model, model


def unet():
    """MONAI's U-Net, which halves the picture before its first map."""
    from monai.networks.nets import UNet

    model = UNet(2, 3, 2, channels=(32, 64, 128, 256, 512, 512), strides=(2, 2, 2, 2, 2), num_res_units=1).eval()
    return model, model


def dynunet():
    """nnU-Net's network in MONAI's hands, whose first maps have the picture's size."""
    from monai.networks.nets import DynUNet

    widths = (32, 64, 128, 256, 512, 512)
    strides = (1, 2, 2, 2, 2, 2)
    model = DynUNet(2, 3, 2, kernel_size=[3] * 6, strides=strides, upsample_kernel_size=strides[1:], filters=widths)
    return model.eval(), model
