# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""A picture and a sentence to a mask in one call, in the output format of the stock segmentation pipeline."""

import inspect
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline, PreTrainedModel

from .prompts import normalize_prompt


class TAMISegPipeline(Pipeline):
    """
    Text-guided segmentation.

    ```python
    >>> from transformers import pipeline

    >>> segmenter = pipeline("image-segmentation", model="user/tamiseg", trust_remote_code=True)
    >>> segmenter("scan.png", text="the lesion in the upper left")
    [{'score': 0.93, 'label': 'the lesion in the upper left', 'mask': <PIL.Image.Image image mode=L size=512x384>}]
    ```"""

    _load_processor = True
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __call__(self, inputs, text: str | list[str | None] | None = None, **kwargs):
        """
        Args:
            inputs: a picture (path, PIL image or array), a dict `{"image": ..., "text": ...}` or row of a data set
                `{"image": ..., "prompt": ...}`, or a list, generator or dataset of either.
            text: what to look for: one sentence for all, or with a list of pictures one (or None) for each. Several
                about one picture are for the processor and the model.
            threshold (`float`, *optional*): least probability that counts as found, in [0, 1]; two classes only.
            batch_size (`int`, *optional*): how many pictures go through the model together.

        Returns:
            For each picture a list with one dict per class other than background: `label` (the sentence; the
            class name where there is none, or there are several classes), `mask` (PIL image of mode L, 0 and 255, of
            the upright picture's size) and `score` (mean probability inside the mask, 0.0 where it is empty).

        Raises:
            ValueError: if pictures and sentences differ in number, a picture is asked several, or cannot be used.
        """
        if isinstance(inputs, tuple):
            inputs = list(inputs)
        if isinstance(text, (list, tuple)):
            if not isinstance(inputs, list) or len(inputs) != len(text):
                raise ValueError(f"{len(text)} sentences need a list of {len(text)} pictures: give one for each.")
            inputs = [{"image": image, "text": sentence} for image, sentence in zip(inputs, text, strict=True)]
        elif text is not None:
            kwargs["text"] = text
        return super().__call__(inputs, **kwargs)

    def save_pretrained(self, save_directory, **kwargs):
        """Saves model, processor and code, so that `pipeline("image-segmentation", model=save_directory,
        trust_remote_code=True)` loads them; the library's own would leave the processor out.

        Raises:
            ValueError: as the model's.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        of_weights = inspect.signature(PreTrainedModel.save_pretrained).parameters.keys() - {"push_to_hub", "token"}
        self.processor.save_pretrained(save_directory, **{k: v for k, v in kwargs.items() if k not in of_weights})

    def _sanitize_parameters(self, text: str | None = None, threshold: float | None = None):
        return (
            {} if text is None else {"text": text},
            {},
            {} if threshold is None else {"threshold": threshold},
        )

    def preprocess(self, inputs, text: str | None = None) -> dict:
        row = inputs if isinstance(inputs, dict) else {"image": inputs}
        if "image" not in row:
            raise ValueError(f"a row with {sorted(row)} has no picture: give a dict with 'image' and 'text'.")
        sentence = row.get("text", row.get("prompt", text))
        if isinstance(sentence, (list, tuple)):
            raise ValueError(
                f"the pipeline takes one sentence per picture, not {len(sentence)}: give several to the processor and "
                "the model, or the picture once for each."
            )
        image = self.processor.image_processor.load_image(row["image"])
        return {
            "pixel_values": self.processor(images=image, return_tensors="pt")["pixel_values"].to(self.dtype),
            "target_size": torch.tensor([[image.height, image.width]]),
            "text": normalize_prompt(sentence),
        }

    def _forward(self, model_inputs: dict) -> dict:
        text = model_inputs.pop("text")
        # Sentences are tokenised here, where the whole batch is known: rows with and without text go together.
        sentences = text if isinstance(text, list) else [text]
        words = self.processor(text=sentences, return_tensors="pt").to(self.device)
        logits = self.model(pixel_values=model_inputs["pixel_values"], **words).logits
        return {"logits": logits, "target_size": model_inputs["target_size"], "text": text}

    def postprocess(self, model_outputs: dict, threshold: float | None = None) -> list[dict]:
        (mask,), (probabilities,) = self.processor.post_process_semantic_segmentation(
            SimpleNamespace(logits=model_outputs["logits"]),
            target_sizes=model_outputs["target_size"],
            threshold=threshold,
            return_probabilities=True,
        )
        text = model_outputs["text"] if len(probabilities) == 2 else None
        results = []
        for class_id in range(1, len(probabilities)):
            inside = mask == class_id
            results.append(
                {
                    "score": probabilities[class_id][inside].mean().item() if inside.any() else 0.0,
                    "label": text or self.model.config.id2label[class_id],
                    "mask": Image.fromarray(inside.numpy().astype(np.uint8) * 255),
                }
            )
        return results


__all__ = ["TAMISegPipeline"]
