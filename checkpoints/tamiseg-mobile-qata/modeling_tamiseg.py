# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""TAMISeg (ICME 2026, arXiv 2604.10912): an image and a clinical sentence go in, a mask comes out.

Start reading here. The paper's figure is [`TAMISegForImageSegmentation.forward`]: vision encoder -> four scales,
text encoder -> words, decoder (multi-scale module, alignment with the words, fusion) -> logits.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING
from transformers.utils import can_return_tuple

from .alignment import TextImageAlignment
from .configuration_tamiseg import TAMISegConfig
from .decoder import ConvBlock, ScaleAdaptiveDecoder, upsample
from .inference import fold_layer
from .losses import consistency_loss, segmentation_loss
from .outputs import TAMISegConsistencyPretrainingOutput, TAMISegImageSegmentationOutput
from .text_encoder import TAMISegTextEncoder, without_pooler
from .tiling import PROBE, PeakMemory, tile_within, tiles
from .vision_encoder import TAMISegVisionEncoder


# What a saved folder tells the Auto classes. `AutoModel` gives the model that people load.
AUTO_MAP = {
    "AutoConfig": "configuration_tamiseg.TAMISegConfig",
    "AutoModel": "modeling_tamiseg.TAMISegForImageSegmentation",
    "AutoModelForImageSegmentation": "modeling_tamiseg.TAMISegForImageSegmentation",
    "AutoModelForSemanticSegmentation": "modeling_tamiseg.TAMISegForImageSegmentation",
}
CUSTOM_PIPELINES = {
    "image-segmentation": {
        "impl": "pipeline_tamiseg.TAMISegPipeline",
        "pt": ["AutoModel"],
        "type": "multimodal",
    }
}


class TAMISegPreTrainedModel(PreTrainedModel):
    """Weights, saving and loading, the same for both stages: both call their image encoder `vision_encoder`."""

    config_class = TAMISegConfig
    base_model_prefix = "tamiseg"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    _no_split_modules = ["TextImageAlignment", "MultiScaleModule"]
    _supports_sdpa = True
    # Our losses are means over the batch that is given. As forward takes **kwargs, `Trainer` would think otherwise,
    # and add up over accumulated batches what it should average.
    accepts_loss_kwargs = False
    _is_fused = False

    def __init__(self, config: TAMISegConfig, *inputs, **kwargs):
        config.validate_architecture()  # `from_pretrained` changes fields of a config that was valid
        super().__init__(config, *inputs, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            # The library's normal(0.02) is made for wide layers; at width 64 it would leave attention uniform.
            init.xavier_uniform_(module.weight)
        elif isinstance(module, TextImageAlignment):
            init.normal_(module.null_prompt, std=self.config.initializer_range)

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers; the folder also carries the code and the `auto_map`, so that it stands alone.

        Raises:
            ValueError: after [`fuse_for_inference`], whose weights belong to no config.
        """
        if self._is_fused:
            raise ValueError("this model was fused for inference: save the one that was loaded, before fusing it.")
        if self._auto_class is not None:
            self.config.auto_map = dict(AUTO_MAP)
            self.config.custom_pipelines = {task: dict(entry) for task, entry in CUSTOM_PIPELINES.items()}
        return super().save_pretrained(save_directory, **kwargs)

    @torch.no_grad()
    def fuse_for_inference(self):
        """Makes a trained model quick, in place: BatchNorms go into the convolutions before them, the dilated kernels
        of a scale become one, and weights lie channels last. No output changes beyond rounding. The model is in eval
        mode afterwards and can be neither trained nor saved.

        Returns:
            The model itself.
        """
        self.eval()
        if self._is_fused:
            return self
        for module in list(self.modules()):
            if hasattr(module, "fuse"):
                module.fuse()
            else:
                fold_layer(module)
        self._is_fused = True
        return self.requires_grad_(False).to(memory_format=torch.channels_last)

    def train(self, mode: bool = True):
        """As in torch; a model that was fused for inference refuses to be trained, with a ValueError."""
        if mode and self._is_fused:
            raise ValueError("this model was fused for inference: train the one that was loaded, before fusing it.")
        return super().train(mode)

    def pad_to_stride(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Zeros (the mean colour) to the right and below, up to multiples of the coarsest stride."""
        stride = self.config.vision_strides[-1]
        height, width = pixel_values.shape[-2:]
        if height % stride == 0 and width % stride == 0:
            return pixel_values
        return F.pad(pixel_values, (0, -width % stride, 0, -height % stride))

    def get_image_features(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Pixels `(batch_size, 3, height, width)` to the encoder's four maps, finest first."""
        return self.vision_encoder(self.pad_to_stride(pixel_values))


class TAMISegForImageSegmentation(TAMISegPreTrainedModel):
    """Image and sentence to logits: stage 2, and the model that people load."""

    # A checkpoint of stage 1 gives the vision encoder; its light head is not needed here.
    _keys_to_ignore_on_load_unexpected = [r"^head\."]

    def __init__(self, config: TAMISegConfig, vision_model=None, text_model=None):
        super().__init__(config)
        self.vision_encoder = TAMISegVisionEncoder(config, vision_model)
        self.text_encoder = TAMISegTextEncoder(config, text_model)
        self.alignment = TextImageAlignment(config)
        self.decoder = ScaleAdaptiveDecoder(config, self.vision_encoder.channels)
        self.post_init()

    @classmethod
    def from_vision_text_pretrained(
        cls, vision_model_name_or_path: str, text_model_name_or_path: str, **kwargs
    ) -> "TAMISegForImageSegmentation":
        """A new model on pretrained encoders, in eval mode; what joins them is initialised at random.

        Args:
            vision_model_name_or_path: Hub id or folder of a ResNet, a MobileNetV2, any model that `AutoBackbone`
                serves, or a TAMISeg checkpoint of either stage, whose vision encoder is taken.
            text_model_name_or_path: Hub id or folder of any encoder of text alone that `AutoModel` loads (no
                encoder-decoder such as T5; of CLIP, its text model).
            **kwargs: fields of [`TAMISegConfig`].

        Raises:
            OSError: if there is no such model.
            ValueError: if the encoder does not give four maps, or the other is no encoder of text alone.
        """
        vision_model, vision_strides = load_vision_model(vision_model_name_or_path)
        text_model = load_text_model(text_model_name_or_path)
        config = TAMISegConfig(
            vision_config=vision_model.config.to_dict(),
            text_config=text_model.config.to_dict(),
            **{"vision_strides": vision_strides, **kwargs},
        )
        return cls(config, vision_model, text_model).eval()  # as `from_pretrained`; its parts came in different modes

    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
    ) -> torch.Tensor:
        """Words to states `(batch_size, sequence_length, text_hidden_size)`, to be kept and given as `text_embeds`
        (with the same `attention_mask`) whenever the sentence comes again."""
        if attention_mask is not None:
            # A row without text is read as if it had some: no text encoder takes an empty sentence. The alignment
            # puts the null prompt there.
            attention_mask = attention_mask | ~attention_mask.bool().any(dim=1, keepdim=True)
        return self.text_encoder(input_ids, attention_mask, token_type_ids)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        text_embeds: torch.FloatTensor | None = None,
        image_indices: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        region: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
        vision_hidden_states: tuple[torch.FloatTensor, ...] | None = None,
        output_attentions: bool = False,
        **kwargs,
    ) -> TAMISegImageSegmentationOutput:
        """
        Args:
            pixel_values: `(batch_size, 3, height, width)`, normalised by the processor; any height and width.
            input_ids: int64 `(num_sentences, sequence_length)`, one sentence per picture unless `image_indices` say
                otherwise; leave out where nobody has text.
            attention_mask: `(num_sentences, sequence_length)`, 1 for words and 0 for padding; a row of zeros is a
                question without text. All ones if left out.
            token_type_ids: int64 `(num_sentences, sequence_length)`, for text encoders that know them.
            text_embeds: `(num_sentences, sequence_length, text_hidden_size)` from [`get_text_features`], instead of
                `input_ids`.
            image_indices: int64 `(num_sentences,)`, which picture each sentence asks about: any number of sentences
                per picture, in any order. A picture passes the encoder once, however many ask about it.
            labels: int64 `(num_sentences, height, width)`, class ids or `semantic_loss_ignore_index`.
            region: top, left, bottom and right of what `pixel_values` show, in shares of the whole picture, so that
                "left" keeps its meaning in a tile.
            vision_hidden_states: from [`get_image_features`] or an earlier output for these very pictures, which are
                then not encoded again.
            output_attentions: whether `cross_attentions` come back: what each pixel read of each word.

        Raises:
            ValueError: if both `input_ids` and `text_embeds` are given, or the text is not one row per question.
        """
        if input_ids is not None and text_embeds is not None:
            raise ValueError("give input_ids or text_embeds, not both.")
        size = tuple(pixel_values.shape[-2:])

        if vision_hidden_states is None:
            vision_hidden_states = self.get_image_features(pixel_values)

        if input_ids is not None:
            text_embeds = self.get_text_features(input_ids, attention_mask, token_type_ids)
        if text_embeds is not None:
            questions = pixel_values if image_indices is None else image_indices
            if text_embeds.shape[0] != questions.shape[0]:
                asked = "pictures" if image_indices is None else "image_indices"
                raise ValueError(
                    f"{questions.shape[0]} {asked}, but {text_embeds.shape[0]} rows of text: give one row for each, "
                    "or say by image_indices which picture each row asks about."
                )
            if attention_mask is None:
                attention_mask = torch.ones(text_embeds.shape[:2], dtype=torch.long, device=text_embeds.device)

        scales, details = self.decoder.read_image(vision_hidden_states)
        if image_indices is not None:
            scales, details = [m[image_indices] for m in scales], [m[image_indices] for m in details]
        cross_attentions = [] if output_attentions else None
        aligned = self.alignment(scales, text_embeds, attention_mask, region, cross_attentions)
        padded_size = [side * self.config.vision_strides[0] for side in vision_hidden_states[0].shape[-2:]]
        logits = self.decoder(aligned, details, padded_size)[..., : size[0], : size[1]]

        loss = None
        if labels is not None:
            loss = segmentation_loss(
                logits,
                labels,
                self.config.cross_entropy_weight,
                self.config.dice_weight,
                self.config.semantic_loss_ignore_index,
            )
        return TAMISegImageSegmentationOutput(
            loss=loss,
            logits=logits,
            vision_hidden_states=vision_hidden_states,
            text_hidden_states=text_embeds,
            image_indices=image_indices,
            cross_attentions=tuple(cross_attentions) if output_attentions else None,
        )

    @torch.no_grad()
    def segment_in_tiles(
        self,
        pixel_values: torch.FloatTensor,
        tile_size: int = 1024,
        overlap: int | None = None,
        input_ids: torch.LongTensor | None = None,
        max_memory: int | None = None,
        **text,
    ) -> TAMISegImageSegmentationOutput:
        """A picture of any size in memory that the tile bounds: about what `forward` takes for `tile_size` squared,
        and the logits of the whole.

        Each tile knows where in the picture it lies. Where tiles overlap, their logits fade into each other; what
        lies further from a tile's cut than the network looks is what `forward` would say of the whole picture.

        Args:
            pixel_values: `(batch_size, 3, height, width)`.
            tile_size: side of a tile in pixels, rounded up to the coarsest stride.
            overlap: how many pixels neighbours share, less than half a tile; a quarter of one if left out.
            max_memory: bytes that this call may take. Tiles are made smaller where they would take more, which is
                measured on one small tile of the picture.
            input_ids, **text: as in [`forward`].

        Returns:
            The output of [`forward`] with `logits` alone.

        Raises:
            ValueError: if the overlap is no less than half a tile, the tile is too small for any, or `max_memory` is
                too little for any tile.
        """
        if input_ids is not None:
            masks = {key: text.get(key) for key in ("attention_mask", "token_type_ids")}
            text["text_embeds"] = self.get_text_features(input_ids, **masks)
            text.pop("token_type_ids", None)
        height, width = pixel_values.shape[-2:]
        padded = self.pad_to_stride(pixel_values)
        size, stride = padded.shape[-2:], self.config.vision_strides[-1]
        logits = weights = None
        if max_memory is not None:
            with PeakMemory() as memory:
                probe = self(padded[..., :PROBE, :PROBE], **text).logits
            whole = size.numel() * probe.element_size() * (probe[..., 0, 0].numel() + 1)  # logits and weights
            whole += padded.nbytes if padded is not pixel_values else 0
            bytes_per_pixel = memory.peak / probe[0, 0].numel()
            tile_size = tile_within(max_memory - whole, bytes_per_pixel, tile_size, max(size), stride)
        for rows, columns, weight in tiles(size, tile_size, overlap, stride):
            region = (
                rows.start / size[0],
                columns.start / size[1],
                rows.stop / size[0],
                columns.stop / size[1],
            )
            # Only the logits: the encoder's maps would stay until the next tile's are there.
            tile_logits = self(padded[..., rows, columns], region=region, **text).logits
            if logits is None:
                logits = tile_logits.new_zeros(*tile_logits.shape[:2], *size)
                weights = tile_logits.new_zeros(size)
            weight = weight.to(logits)
            logits[..., rows, columns] += tile_logits.mul_(weight)
            weights[rows, columns] += weight
        return TAMISegImageSegmentationOutput(
            logits=logits.div_(weights)[..., :height, :width], image_indices=text.get("image_indices")
        )


class TAMISegForConsistencyPretraining(TAMISegPreTrainedModel):
    """Stage 1: the vision encoder under a light head, asked for the same answer on a strongly perturbed view."""

    def __init__(self, config: TAMISegConfig, vision_model=None):
        super().__init__(config)
        self.vision_encoder = TAMISegVisionEncoder(config, vision_model)
        self.head = ConsistencyHead(config, self.vision_encoder.channels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        perturbed_pixel_values: torch.FloatTensor | None = None,
        affine: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> TAMISegConsistencyPretrainingOutput:
        """
        Args:
            pixel_values: `(batch_size, 3, height, width)`.
            perturbed_pixel_values: the strongly perturbed view, of the same shape.
            affine: `(batch_size, 2, 3)`, where each pixel of the perturbed view lies in the clean one, as
                `torch.nn.functional.affine_grid` takes it; left out where the perturbation moved nothing.
            labels: int64 `(batch_size, height, width)` of the clean view; they follow the geometry by `affine`.
        """
        vision_hidden_states = self.get_image_features(pixel_values)
        logits = self._logits(vision_hidden_states, pixel_values)
        perturbed_logits = segmentation = consistency = loss = None
        if perturbed_pixel_values is not None:
            perturbed_logits = self._logits(self.get_image_features(perturbed_pixel_values), pixel_values)
            aligned_logits, aligned_labels, valid = self._follow(affine, logits, labels)
        if labels is not None:
            weights = (self.config.cross_entropy_weight, self.config.dice_weight)
            ignore_index = self.config.semantic_loss_ignore_index
            loss = segmentation = segmentation_loss(logits, labels, *weights, ignore_index)
            if perturbed_logits is not None:
                perturbed = segmentation_loss(perturbed_logits, aligned_labels, *weights, ignore_index)
                loss = segmentation = segmentation + perturbed
                if self.config.consistency_weight:
                    consistency = consistency_loss(aligned_logits, perturbed_logits, valid)
                    loss = loss + self.config.consistency_weight * consistency
        return TAMISegConsistencyPretrainingOutput(
            loss=loss,
            logits=logits,
            perturbed_logits=perturbed_logits,
            segmentation_loss=segmentation,
            consistency_loss=consistency,
            vision_hidden_states=vision_hidden_states,
        )

    def _logits(self, vision_hidden_states, pixel_values):
        height, width = pixel_values.shape[-2:]
        padded_size = [side * self.config.vision_strides[0] for side in vision_hidden_states[0].shape[-2:]]
        return self.head(vision_hidden_states, padded_size)[..., :height, :width]

    def _follow(self, affine, logits, labels):
        """Logits and labels of the clean view, laid over the perturbed one, and which pixels both views show."""
        batch_size, _, height, width = logits.shape
        if affine is None:
            return logits, labels, torch.ones(batch_size, height, width, dtype=torch.bool, device=logits.device)
        # In float32 under autocast too: a grid in bf16 is wrong by up to a pixel at 256 px, and by more beyond.
        with torch.autocast(logits.device.type, enabled=False):
            grid = F.affine_grid(affine.float(), list(logits.shape), align_corners=False)
            valid = (grid.abs() <= 1).all(dim=-1)
            aligned_logits = F.grid_sample(logits.float(), grid, align_corners=False)
            if labels is not None:
                moved = F.grid_sample(labels[:, None].float(), grid, mode="nearest", align_corners=False)
                labels = moved[:, 0].long().masked_fill(~valid, self.config.semantic_loss_ignore_index)
        return aligned_logits, labels, valid


class ConsistencyHead(nn.Module):
    """1x1 convolution per scale, upsampled, concatenated, 1x1 (paper, stage 1); projected before it is upsampled, as
    in the decoder, so that the concatenation is a sum of small score maps."""

    def __init__(self, config, channels: list[int]):
        super().__init__()
        size = config.pretraining_head_size
        self.lateral = nn.ModuleList([ConvBlock(c, size, 1) for c in channels])
        self.score = nn.ModuleList([nn.Conv2d(size, config.num_labels, 1, bias=i == 0) for i in range(len(channels))])

    def forward(self, feature_maps: tuple[torch.Tensor, ...], size: tuple[int, int]) -> torch.Tensor:
        """The encoder's maps to logits `(batch_size, num_labels, *size)`."""
        grid = feature_maps[0].shape[-2:]
        parts = zip(self.lateral, self.score, feature_maps, strict=True)
        return upsample(sum(upsample(score(lateral(m)), grid) for lateral, score, m in parts), size)


def load_vision_model(name_or_path: str) -> tuple[PreTrainedModel, list[int]]:
    """A pretrained image encoder and the strides of its four maps, from a Hub id or folder: ResNet, MobileNetV2, any
    model that `AutoBackbone` serves, or the vision encoder of a TAMISeg checkpoint of either stage.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is no image encoder that gives four maps.
    """
    config = _read_config(name_or_path)
    if config.model_type == "tamiseg":
        model = TAMISegForConsistencyPretraining.from_pretrained(name_or_path, dtype=torch.float32)
        return model.vision_encoder.backbone, model.config.vision_strides
    if config.model_type in ("resnet", "mobilenet_v2"):
        if config.model_type == "mobilenet_v2":
            # 1/16 is the coarsest scale: what would go to 1/32 stays there, dilated, with the weights it has.
            config.output_stride = 16
        return AutoModel.from_pretrained(name_or_path, config=config, dtype=torch.float32), [2, 4, 8, 16]
    stages = [name for name in getattr(config, "stage_names", ()) if name != "stem"]
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING or len(stages) < 4:
        raise ValueError(
            f"'{name_or_path}' is a {config.model_type}, which is no image encoder of four maps: give a ResNet, a "
            "MobileNetV2 or any backbone with at least four stages."
        )
    if len(getattr(config, "out_indices", None) or ()) != 4:
        # Four maps by default: the last four stages.
        config.out_indices = list(range(len(config.stage_names) - 4, len(config.stage_names)))
    # `AutoBackbone.from_pretrained` asks the Hub even for a folder; the class behind it does not.
    backbone_class = MODEL_FOR_BACKBONE_MAPPING[type(config)]
    model = backbone_class.from_pretrained(name_or_path, config=config, dtype=torch.float32).eval()
    try:
        with torch.no_grad():
            maps = model(torch.zeros(1, config.num_channels, 64, 64)).feature_maps
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"'{name_or_path}' is a {config.model_type}, which does not read pictures of any size: give a pyramid "
            "that does (ResNet, Swin, ConvNeXt...)."
        ) from error
    strides = [64 // m.shape[-1] for m in maps]
    if len(set(strides)) < len(strides):
        told = ", ".join(f"1/{stride}" for stride in sorted(set(strides)))
        raise ValueError(
            f"'{name_or_path}' is a {config.model_type}, whose maps are all at {told}: give a pyramid, whose four "
            "maps differ (ResNet, Swin, ConvNeXt...)."
        )
    return model, strides


def load_text_model(name_or_path: str) -> PreTrainedModel:
    """A pretrained text encoder without a pooler, from a Hub id or folder: any encoder of text alone, or that of a
    TAMISeg checkpoint of stage 2.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is no encoder of text alone, or a TAMISeg checkpoint of stage 1.
    """
    config = _read_config(name_or_path)
    if config.model_type == "tamiseg":
        if TAMISegForConsistencyPretraining.__name__ in (config.architectures or ()):
            raise ValueError(f"'{name_or_path}' is of stage 1, which has no text encoder: give a model of stage 2.")
        return TAMISegForImageSegmentation.from_pretrained(name_or_path, dtype=torch.float32).text_encoder.model
    _check_reads_text_alone(name_or_path, config)
    return AutoModel.from_pretrained(name_or_path, dtype=torch.float32, **without_pooler(config))


def _check_reads_text_alone(name_or_path: str, config) -> None:
    model_class = MODEL_MAPPING.get(type(config), None)
    several = config.is_encoder_decoder or config.get_text_config() is not config
    if several or model_class is None or model_class.main_input_name != "input_ids":
        raise ValueError(
            f"'{name_or_path}' is a {config.model_type}, which is no encoder of text alone: give one such as a BERT, "
            "or of a model with two towers (CLIP) its text model, saved by itself."
        )


def _read_config(name_or_path: str):
    if Path(name_or_path).is_dir() and not (Path(name_or_path) / "config.json").is_file():
        raise ValueError(f"'{name_or_path}' holds no config.json: give the folder of a saved model, or a Hub id.")
    return AutoConfig.from_pretrained(name_or_path)


__all__ = ["TAMISegForConsistencyPretraining", "TAMISegForImageSegmentation", "TAMISegPreTrainedModel"]
