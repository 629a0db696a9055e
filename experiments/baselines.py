# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Other networks under our loader, loss, schedule and evaluator:

    python train_hf.py --stage finetune --model_class experiments.baselines:UNet --vision_model tiny ...
    tamiseg evaluate runs/unet/best --adapter experiments.baselines:load --dataset ... --output ...

Each takes the place of `TAMISegForImageSegmentation` and learns from the same batches. Its width follows ours,
`hidden_size`: with the default of 64 each costs about as much as ours on a CPU, which is not what their papers took;
with 256 a U-Net has nnU-Net's channels (32 to 512). Those of MONAI want `pip install monai einops`.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import nn
from transformers import CLIPSegConfig, SegformerConfig, SegformerForSemanticSegmentation
from transformers.models.clipseg.modeling_clipseg import CLIPSegDecoder

from modeling_tamiseg import TAMISegForImageSegmentation
from modeling_tamiseg.losses import segmentation_loss
from modeling_tamiseg.outputs import TAMISegImageSegmentationOutput
from processing import TAMISegProcessor
from processing.evaluation import Segmenter


def widths(config) -> tuple[int, ...]:
    """Channels of the five levels of a U-Net."""
    return tuple(config.hidden_size // 8 * factor for factor in (1, 2, 4, 8, 16))


class Baseline(TAMISegForImageSegmentation):
    """A network in the place of ours. Those that read no sentence answer each with the same mask.

    Subclasses give `build` and, where that is not all, `logits` of pixels, or `answer` of pixels and words.
    """

    stride = 32  # what sides must be multiples of
    reads_our_encoder = False  # whether the maps of our image encoder are read

    def __init__(self, config, vision_model=None, text_model=None):
        super().__init__(config, vision_model, text_model)
        del self.alignment, self.decoder
        if not self.reads_our_encoder:
            self.vision_encoder.frozen = True  # it gets no gradient, which several processes would wait for
            self.vision_encoder.requires_grad_(False)
        self.network = self.build(config)  # after post_init: it keeps its own initial weights

    def logits(self, pixel_values):
        return self.network(pixel_values)

    def answer(self, pixel_values, text_embeds, attention_mask, image_indices):
        logits = self.logits(pixel_values)
        return logits if image_indices is None else logits[image_indices]

    def forward(
        self,
        pixel_values,
        input_ids=None,
        attention_mask=None,
        token_type_ids=None,
        text_embeds=None,
        image_indices=None,
        labels=None,
        **kwargs,
    ):
        """As in `TAMISegForImageSegmentation`."""
        if input_ids is not None:
            text_embeds = self.get_text_features(input_ids, attention_mask, token_type_ids)
        height, width = pixel_values.shape[-2:]
        padded = F.pad(pixel_values, (0, -width % self.stride, 0, -height % self.stride))
        logits = self.answer(padded, text_embeds, attention_mask, image_indices)
        logits = logits[..., :height, :width]
        loss = None if labels is None else segmentation_loss(logits, labels)
        return TAMISegImageSegmentationOutput(loss=loss, logits=logits, image_indices=image_indices)


class UNet(Baseline):
    def build(self, config):
        from monai.networks.nets import BasicUNet

        return BasicUNet(2, 3, config.num_labels, features=(*widths(config), widths(config)[0]))


class UNetPlusPlus(Baseline):
    def build(self, config):
        from monai.networks.nets import BasicUNetPlusPlus

        network = BasicUNetPlusPlus(2, 3, config.num_labels, features=(*widths(config), widths(config)[0]))
        for side in (network.final_conv_0_1, network.final_conv_0_2, network.final_conv_0_3):
            side.requires_grad_(False)  # answers of deep supervision, which nobody asks for
        return network

    def logits(self, pixel_values):
        return self.network(pixel_values)[0]


class AttentionUNet(Baseline):
    def build(self, config):
        from monai.networks.nets import AttentionUnet

        return AttentionUnet(2, 3, config.num_labels, channels=widths(config), strides=(2, 2, 2, 2))


class DynUNet(Baseline):
    """nnU-Net's plain network, without its planning."""

    def build(self, config):
        from monai.networks.nets import DynUNet

        network = DynUNet(
            2,
            3,
            config.num_labels,
            kernel_size=[3] * 5,
            strides=[1, 2, 2, 2, 2],
            upsample_kernel_size=[2, 2, 2, 2],
            filters=widths(config),
        )
        del network.skip_layers  # the same layers by other names, which a checkpoint would hold twice
        return network

    def logits(self, pixel_values):
        skips = [self.network.input_block(pixel_values)]
        for down in self.network.downsamples:
            skips.append(down(skips[-1]))
        hidden_state = self.network.bottleneck(skips[-1])
        for up, skip in zip(self.network.upsamples, reversed(skips), strict=True):
            hidden_state = up(hidden_state, skip)
        return self.network.output_block(hidden_state)


class SwinUNETR(Baseline):
    def build(self, config):
        from monai.networks.nets import SwinUNETR

        return SwinUNETR(3, config.num_labels, feature_size=3 * config.hidden_size // 16, spatial_dims=2)


class SegFormer(Baseline):
    """SegFormer-B0, or at four times our default width B2."""

    def build(self, config):
        settings = {"num_labels": config.num_labels}
        if config.hidden_size >= 256:
            settings |= {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3], "decoder_hidden_size": 768}
        return SegformerForSemanticSegmentation(SegformerConfig(**settings))

    def logits(self, pixel_values):
        return F.interpolate(self.network(pixel_values).logits, size=pixel_values.shape[-2:], mode="bilinear")


class EncoderUNet(Baseline):
    """A U-Net's way up over the very encoder that ours has, without words."""

    stride = 16
    reads_our_encoder = True

    def build(self, config):
        from monai.networks.nets.basic_unet import UpCat

        channels = self.vision_encoder.channels[::-1]
        ups = [
            UpCat(2, deep, skip, skip, "LeakyReLU", "instance", True, halves=False)
            for deep, skip in zip(channels, channels[1:], strict=False)
        ]
        return nn.ModuleDict({"ups": nn.ModuleList(ups), "classifier": nn.Conv2d(channels[-1], config.num_labels, 1)})

    def logits(self, pixel_values):
        *skips, hidden_state = self.vision_encoder(pixel_values)
        for up, skip in zip(self.network["ups"], reversed(skips), strict=True):
            hidden_state = up(hidden_state, skip)
        return F.interpolate(self.network["classifier"](hidden_state), size=pixel_values.shape[-2:], mode="bilinear")


class ClipSegDecoder(Baseline):
    """CLIPSeg's decoder of transformers on the three coarser maps of the very encoder that ours has; the sentence, the
    mean of its words' states, scales and shifts its tokens as CLIP's text vector does there. Its tokens know where
    they lie by the convolutions' borders alone: our position code made it worse (experiments/README.md)."""

    stride = 16
    reads_our_encoder = True

    def build(self, config):
        width, text_width = config.hidden_size, self.text_encoder.model.config.hidden_size
        settings = CLIPSegConfig(
            vision_config={"hidden_size": width, "num_attention_heads": 4, "patch_size": 16},
            projection_dim=text_width,
            reduce_dim=width,
            extract_layers=[1, 2, 3],
            attn_implementation="sdpa",
        )
        return nn.ModuleDict(
            {
                "lateral": nn.ModuleList([nn.Conv2d(c, width, 1) for c in self.vision_encoder.channels[1:]]),
                "decoder": CLIPSegDecoder(settings),
                "classifier": nn.Conv2d(1, config.num_labels, 1),
                "no_sentence": nn.Embedding(1, text_width),
            }
        )

    def answer(self, pixel_values, text_embeds, attention_mask, image_indices):
        height, width = pixel_values.shape[-2:]
        side = max(height, width)  # it knows squares only
        pixel_values = F.pad(pixel_values, (0, side - width, 0, side - height))
        maps = self.vision_encoder(pixel_values)[1:]
        grid = maps[-1].shape[-2:]
        tokens = []
        for lateral, feature_map in zip(self.network["lateral"], maps, strict=True):
            cells = lateral(F.adaptive_avg_pool2d(feature_map, grid)).flatten(2).transpose(1, 2)
            first = cells.mean(dim=1, keepdim=True)  # where CLIPSeg's decoder expects the class token
            tokens.append(torch.cat([first, cells], dim=1))
        nothing = self.network["no_sentence"].weight
        if text_embeds is None:
            condition = nothing.expand(len(pixel_values) if image_indices is None else len(image_indices), -1)
        else:
            mask = attention_mask[..., None].to(text_embeds)
            mean = (text_embeds * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            condition = torch.where(mask.any(dim=1), mean, nothing)
        if image_indices is not None:
            tokens = [some[image_indices] for some in tokens]
        scores = self.network["decoder"](tokens, condition).logits
        return self.network["classifier"](scores.reshape(len(condition), 1, side, side))


CLASSES = {c.__name__: c for c in Baseline.__subclasses__()}


def load(folder: str) -> Segmenter:
    """What `tamiseg evaluate --adapter` calls: a trained baseline from the folder that `train_hf.py` wrote."""
    name = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    model = CLASSES[name].from_pretrained(folder).to(PartialState().device, memory_format=torch.channels_last)
    return Segmenter(model, TAMISegProcessor.from_pretrained(folder))
