# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokens to token states, by any text model of transformers."""

import inspect

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING


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
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.model(**inputs).last_hidden_state


def without_pooler(text_config) -> dict:
    """`{"add_pooling_layer": False}` where the model class of `text_config` has such a switch, else `{}`. A pooler
    would be stored and never be trained."""
    model_class = MODEL_MAPPING[type(text_config)]
    switch = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if switch else {}
