# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""What can be chosen: one config for both stages, with the vision and text encoders as nested configs."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig


# ResNet-50 without its last stage: 64, 256, 512 and 1024 channels at 1/2, 1/4, 1/8 and 1/16 of the side (paper).
DEFAULT_VISION_CONFIG = {"model_type": "resnet", "hidden_sizes": [256, 512, 1024], "depths": [3, 4, 6]}
# The shape of Bio_ClinicalBERT, which the authors' code reads text with.
DEFAULT_TEXT_CONFIG = {"model_type": "bert", "vocab_size": 28996}


@strict
class TAMISegConfig(PreTrainedConfig):
    r"""
    Configuration of [`TAMISegForImageSegmentation`] and [`TAMISegForConsistencyPretraining`].

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            Config of the image encoder: `resnet` (stem and three stages), `mobilenet_v2`, or any backbone config of
            transformers whose `out_indices` name four maps. Defaults to ResNet-50 without its last stage.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            Config of the text encoder, any that `AutoModel` knows. Defaults to the shape of a BERT base.
        vision_strides (`list[int]`, *optional*, defaults to `[2, 4, 8, 16]`):
            How many pixels one cell of each of the four maps covers. Backbones built of patches say `[4, 8, 16, 32]`.
        hidden_size (`int`, *optional*, defaults to 64):
            Width in which image meets text; 768 in the paper. Must be a multiple of 4.
        num_attention_heads (`int`, *optional*, defaults to 4):
            Heads of each image-to-text attention.
        attention_head_dim (`int`, *optional*, defaults to 16):
            Width of one head.
        intermediate_size (`int`, *optional*, defaults to 128):
            Width of the feed-forward layer that follows the attentions.
        alignment_stride (`int`, *optional*, defaults to 8):
            Maps finer than this are averaged down to it before they meet the text; the fusion adds their details
            again. 4 and 2 (the paper) cost three and eleven times the pixel tokens.
        use_multi_scale (`bool`, *optional*, defaults to `True`):
            Whether each scale passes the dilated multi-scale module, or only its projection (an ablation).
        project_first (`bool`, *optional*, defaults to `True`):
            Whether a scale is projected to `hidden_size` before the multi-scale module, or after it (the paper).
        dilations (`list[int]`, *optional*, defaults to `[6, 12, 18]`):
            Dilations of the depthwise convolutions that are summed in the multi-scale module.
        fusion (`"low_resolution"` or `"full_resolution"`, *optional*, defaults to `"low_resolution"`):
            Project, upsample and add at `alignment_stride`, or upsample everything to the picture's size and
            concatenate (the paper).
        freeze_vision_encoder, freeze_text_encoder (`bool`, *optional*, default to `False` and `True`):
            Frozen parts get no gradient and stay in eval mode (BatchNorm statistics and dropout hold still).
        cross_entropy_weight, dice_weight (`float`, *optional*, default to 1.0 and 1.5):
            Weights of the segmentation loss (paper); a term of weight 0 is not computed.
        consistency_weight (`float`, *optional*, defaults to 1.0):
            Weight of the consistency term of stage 1; 0 leaves it uncomputed.
        pretraining_head_size (`int`, *optional*, defaults to 64):
            Channels per scale of the light head of stage 1.
        semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
            Label value that no loss looks at.

    Raises:
        StrictDataclassClassValidationError: at construction and at save, when two choices cannot go together; its last
            line says which, and the repair.

    Example:

    ```python
    >>> from modeling_tamiseg import TAMISegConfig, TAMISegForImageSegmentation

    >>> model = TAMISegForImageSegmentation(TAMISegConfig())
    ```"""

    model_type = "tamiseg"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}
    # Else `Trainer.predict` would gather every feature map, and pad `image_indices` as if it were logits.
    keys_to_ignore_at_inference = ["vision_hidden_states", "text_hidden_states", "image_indices", "cross_attentions"]

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    vision_strides: list[int] | tuple[int, ...] = (2, 4, 8, 16)
    hidden_size: int = 64
    num_attention_heads: int = 4
    attention_head_dim: int = 16
    intermediate_size: int = 128
    alignment_stride: int = 8
    use_multi_scale: bool = True
    project_first: bool = True
    dilations: list[int] | tuple[int, ...] = (6, 12, 18)
    fusion: Literal["low_resolution", "full_resolution"] = "low_resolution"
    freeze_vision_encoder: bool = False
    freeze_text_encoder: bool = True
    cross_entropy_weight: int | float = 1.0
    dice_weight: int | float = 1.5
    consistency_weight: int | float = 1.0
    pretraining_head_size: int = 64
    semantic_loss_ignore_index: int = 255
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        self.vision_config = _as_config(self.vision_config, DEFAULT_VISION_CONFIG)
        self.text_config = _as_config(self.text_config, DEFAULT_TEXT_CONFIG)
        self.vision_strides = list(self.vision_strides)
        self.dilations = list(self.dilations)
        if self.id2label is None and kwargs.get("num_labels", 2) == 2:
            self.id2label = {0: "background", 1: "target"}
            self.label2id = {"background": 0, "target": 1}
        super().__post_init__(**kwargs)

    @classmethod
    def reference(cls, **kwargs) -> "TAMISegConfig":
        """The paper's widths and its fusion at full resolution, so that anyone can compare. Slow by design: the
        3x3 convolution over four concatenated maps alone takes 464 GFLOPs at 256x256 (counted from the authors' code).
        """
        preset = {
            "hidden_size": 768,
            "num_attention_heads": 8,
            "attention_head_dim": 64,
            "intermediate_size": 768,
            "alignment_stride": 2,
            "project_first": False,
            "fusion": "full_resolution",
        }
        return cls(**{**preset, **kwargs})

    def validate_architecture(self):
        """Part of `@strict` validation: refuses choices that cannot go together."""
        for name in ("hidden_size", "num_attention_heads", "attention_head_dim", "intermediate_size",
                     "alignment_stride", "pretraining_head_size"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1.")
        if self.use_multi_scale and (not self.dilations or min(self.dilations) < 1):
            raise ValueError(
                f"dilations is {self.dilations}: give at least one, each at least 1, such as [6, 12, 18]; "
                "use_multi_scale=False leaves the module out."
            )
        if self.hidden_size % 4:
            raise ValueError(
                f"hidden_size is {self.hidden_size}, but the 2-D position code needs a multiple of 4: "
                f"take {-(-self.hidden_size // 4) * 4}."
            )
        strides = self.vision_strides
        if (
            len(strides) != 4
            or min(strides) < 1
            or any(b % a or b <= a for a, b in zip(strides, strides[1:], strict=False))
        ):
            raise ValueError(
                f"vision_strides is {strides}, but four strides are needed, each a multiple of the one before, "
                "such as [2, 4, 8, 16]."
            )
        if self.alignment_stride % strides[0] or strides[-1] % self.alignment_stride:
            raise ValueError(
                f"alignment_stride is {self.alignment_stride}: it must be a multiple of the finest stride "
                f"{strides[0]} and divide the coarsest {strides[-1]}."
            )
        if self.num_labels is not None and self.num_labels < 2:
            raise ValueError(
                f"num_labels is {self.num_labels}, but background counts as a label: give at least 2, or an id2label "
                "with background as 0."
            )


def _as_config(config, default: dict) -> PreTrainedConfig:
    if isinstance(config, PreTrainedConfig):
        return config
    fields = dict(config or default)
    fields.pop("_name_or_path", None)  # a folder of whoever trained it, which nobody else has
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise ValueError("a nested encoder config needs its model_type, such as 'resnet' or 'bert'.")
    return AutoConfig.for_model(model_type, **fields)


__all__ = ["TAMISegConfig"]
