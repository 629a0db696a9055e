# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokens to token states, by any text model of transformers."""

import inspect

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from .alignment import text_hidden_size


class TAMISegTextEncoder(nn.Module):
    """Last hidden states of a text encoder, frozen unless the config says otherwise.

    Args:
        config (`TAMISegConfig`): `text_config` and `freeze_text_encoder` are read.
        model (`PreTrainedModel`, *optional*): an encoder with pretrained weights, of `config.text_config`.
    """

    def __init__(self, config, model: PreTrainedModel | None = None):
        super().__init__()
        if model is None:
            model = AutoModel.from_config(config.text_config, **without_pooler(config.text_config))
        self.model = model
        self.frozen = config.freeze_text_encoder
        self.requires_grad_(not self.frozen)

    def train(self, mode: bool = True):
        # A frozen encoder keeps its dropout off as well: the same sentence always reads the same.
        return super().train(mode and not self.frozen)

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
    ) -> torch.Tensor:
        """`(batch_size, sequence_length)` int64 to `(batch_size, sequence_length, text_hidden_size)`."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        # What is frozen may hold adapters, which train.
        trains = not self.frozen or any(p.requires_grad for p in self.model.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            return self.model(**inputs).last_hidden_state


class TextCache:
    """Reads each sentence once: QaTa-COV19 has 167 sentences for 5716 pictures. For a text encoder that does not
    change, which a frozen one promises.

    ```python
    >>> read = TextCache(model)
    >>> model(pixel_values, **read(input_ids, attention_mask))
    ```

    Args:
        model ([`TAMISegForImageSegmentation`]): whose text encoder reads.
        max_sentences (`int`): how many are kept; the one not asked for the longest goes first.
    """

    def __init__(self, model: PreTrainedModel, max_sentences: int = 4096):
        self.model, self.max_sentences = model, max_sentences
        self.states: dict[tuple[int, ...], torch.Tensor] = {}

    @torch.no_grad()
    def __call__(
        self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor | None = None
    ) -> dict[str, torch.Tensor]:
        """`(num_sentences, sequence_length)` each to the model's keywords `text_embeds`, of its device and dtype,
        `(num_sentences, longest, text_hidden_size)`, and its `attention_mask`; rows without a word stay without."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        keys = [tuple(ids[read].tolist()) for ids, read in zip(input_ids, attention_mask.bool(), strict=True)]
        for key in sorted({key for key in keys if key} - self.states.keys()):
            # One by one: in a batch, the last bits of a sentence would depend on its neighbours, and so on when it was
            # first asked for; a run that is resumed would not repeat itself.
            ids = torch.tensor([key], device=input_ids.device)
            self.states[key] = self.model.get_text_features(ids, torch.ones_like(ids))[0]
        for key in keys:
            if key:
                # The newest last; and where the model is now, should it have moved since.
                self.states[key] = self.states.pop(key).to(self.model.device, self.model.dtype)
        width = text_hidden_size(self.model.config)
        nothing = torch.zeros(1, width, device=self.model.device, dtype=self.model.dtype)
        embeds = [self.states[key] if key else nothing for key in keys]
        mask = [torch.full((max(1, len(key)),), int(bool(key)), device=input_ids.device) for key in keys]
        while len(self.states) > self.max_sentences:
            del self.states[next(iter(self.states))]
        return {
            "text_embeds": nn.utils.rnn.pad_sequence(embeds, batch_first=True),
            "attention_mask": nn.utils.rnn.pad_sequence(mask, batch_first=True),
        }


def without_pooler(text_config) -> dict:
    """`{"add_pooling_layer": False}` where the model class of `text_config` has such a switch, else `{}`. A pooler
    would be stored and never be trained."""
    model_class = MODEL_MAPPING[type(text_config)]
    switch = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if switch else {}
