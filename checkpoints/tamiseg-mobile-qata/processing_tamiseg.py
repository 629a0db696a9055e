# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Image processor and tokenizer as one: pictures, sentences and masks in, the model's inputs out."""

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack

from .image_processing_tamiseg import TAMISegImageProcessorKwargs
from .prompts import normalize_prompt


if TYPE_CHECKING:
    # Never imported from here: the line makes `save_pretrained` copy the pipeline's file beside this one.
    from .pipeline_tamiseg import TAMISegPipeline  # noqa: F401

# A tokenizer that knows no limit says 1e30.
NO_LIMIT = 1_000_000


class TAMISegProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: TAMISegImageProcessorKwargs
    _defaults = {"text_kwargs": {"padding": True, "truncation": True, "return_token_type_ids": False}}


class TAMISegProcessor(ProcessorMixin):
    """
    Args:
        image_processor ([`TAMISegImageProcessor`]): pictures and masks.
        tokenizer (any tokenizer of transformers): the one that belongs to the text encoder.
    """

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return [*self.image_processor.model_input_names, "input_ids", "attention_mask"]

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str | None] | list[list[str | None]] | None = None,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[TAMISegProcessorKwargs],
    ) -> BatchFeature:
        """
        Args:
            images: one picture or a batch, see [`TAMISegImageProcessor.preprocess`].
            text: a sentence for every picture, one sentence (or None) per picture, or a list of sentences per picture
                (of any length each), which the model answers in one pass per picture. NaN, an empty cell of a table,
                is no sentence. May come without pictures, for text features that are computed once.
            segmentation_maps: one mask per picture.
            **kwargs: keywords of the image processor and of the tokenizer. `truncation=False` refuses a sentence that
                the text encoder cannot take whole; otherwise it is cut, with a warning.

        Returns:
            With pictures `pixel_values` float32 `(B, 3, H, W)`, with masks `labels` int64 `(B, H, W)`, and unless all
            sentences are blank `input_ids` and `attention_mask` int64 `(B, sequence_length)`. The mask's row is all
            zeros where a sentence is blank: the model puts its null prompt there. With a list of sentences per picture
            their rows follow one another, `image_indices` int64 `(sentences,)` says whose they are, and `labels`
            `(sentences, H, W)` hold the picture's mask for each.

        Raises:
            ValueError: if pictures, sentences and masks differ in number, or a sentence is too long and must not be
                cut, or a picture or mask cannot be used.
        """
        if images is None and (text is None or segmentation_maps is not None):
            raise ValueError("there are no pictures: give `images`, or `text` alone for text features.")
        # What a tokenizer was saved with counts only where somebody chose a padding: files of sentence encoders carry
        # a max_length from their training, far below what the encoder can read.
        chosen = self.tokenizer.init_kwargs if "padding" in self.tokenizer.init_kwargs else None
        options = self._merge_kwargs(TAMISegProcessorKwargs, tokenizer_init_kwargs=chosen, **kwargs)
        return_tensors = options["text_kwargs"].pop("return_tensors", None)

        data = {}
        if images is not None:
            data.update(self.image_processor(images, segmentation_maps, **options["images_kwargs"]))
        if text is not None:
            count = len(data["pixel_values"]) if data else 1
            sentences = list(text) if isinstance(text, Iterable) and not isinstance(text, str) else [text] * count
            if data and len(sentences) != count:
                raise ValueError(
                    f"{len(sentences)} sentences for {count} pictures: give one for each (None where there is none), "
                    "a list of sentences for each, or a single string for all."
                )
            if any(isinstance(sentence, (list, tuple)) for sentence in sentences):
                asked = [list(s) if isinstance(s, (list, tuple)) else [s] for s in sentences]
                owners = data["image_indices"] = [index for index, some in enumerate(asked) for _ in some]
                sentences = [sentence for some in asked for sentence in some]
                if not sentences:
                    raise ValueError("the lists of sentences are all empty: give at least one sentence, or None.")
                if (labels := data.get("labels")) is not None:  # a list, where no tensors were asked for
                    data["labels"] = [labels[i] for i in owners] if isinstance(labels, list) else labels[owners]
            data.update(self._encode([normalize_prompt(sentence) for sentence in sentences], **options["text_kwargs"]))
        return BatchFeature(data, tensor_type=return_tensors)

    def _encode(
        self, sentences: list[str | None], truncation=True, padding=True, max_length: int | None = None, **kwargs
    ) -> dict[str, list]:
        """Sentences to lists of ids and attention mask; nothing at all where every sentence is None."""
        if not any(sentences):
            return {}
        limit = min(max_length or NO_LIMIT, self.tokenizer.model_max_length)
        limit = limit if limit < NO_LIMIT else None
        kwargs |= {"padding": padding, "return_attention_mask": True, "verbose": False}
        if padding == "max_length":
            kwargs["max_length"] = limit
        texts = [sentence or "" for sentence in sentences]
        # Said outright, False also switches off the truncation and fixed padding that a tokenizer.json may carry.
        encoded = self.tokenizer(texts, truncation=False, **kwargs)

        lengths = [sum(row) for row in encoded["attention_mask"]]
        if limit is not None and max(lengths) > limit:
            longest = max(lengths)
            sentence = texts[lengths.index(longest)]
            shown = sentence if len(sentence) <= 60 else sentence[:60] + "..."
            if truncation in (False, None, "do_not_truncate"):
                raise ValueError(
                    f"the sentence '{shown}' has {longest} tokens, but the text encoder reads {limit}: shorten it, or "
                    "leave truncation at True."
                )
            warnings.warn(
                f"{longest - limit} of {longest} tokens were cut from the sentence '{shown}': the limit is {limit} "
                f"tokens. Sentences cut: {sum(length > limit for length in lengths)} of {len(texts)}.",
                stacklevel=3,
            )
            encoded = self.tokenizer(texts, truncation=truncation, **kwargs | {"max_length": limit})

        for row, sentence in zip(encoded["attention_mask"], sentences, strict=True):
            if sentence is None:
                row[:] = [0] * len(row)
        return dict(encoded)

    def post_process_semantic_segmentation(self, *args, **kwargs):
        """See [`TAMISegImageProcessor.post_process_semantic_segmentation`]."""
        return self.image_processor.post_process_semantic_segmentation(*args, **kwargs)


__all__ = ["TAMISegProcessor", "TAMISegProcessorKwargs"]
