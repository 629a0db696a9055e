# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Text meets image: pixel tokens attend to word tokens, the same shapes out (paper: one block for all scales)."""

import math

import torch
from torch import nn


class TextImageAlignment(nn.Module):
    """One cross-attention block for all scales: two pre-norm attentions of pixels to words, then a feed-forward layer.

    Words are projected to the block's width once. A sample without text reads a learned null prompt instead, so one
    checkpoint serves with a sentence, without, and with a mixed batch. Pixels carry a 2-D position code in their
    queries: without it "left" could not bind to a place.

    Args:
        config (`TAMISegConfig`): `hidden_size`, heads, `intermediate_size` and the text width are read.
    """

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.width = width
        self.text_projection = nn.Linear(text_hidden_size(config), width)
        self.text_norm = nn.LayerNorm(width)
        self.null_prompt = nn.Parameter(torch.empty(width))
        self.attentions = nn.ModuleList([TextCrossAttention(config) for _ in range(2)])
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, config.intermediate_size),
            nn.GELU(),
            nn.Linear(config.intermediate_size, width),
        )

    def forward(
        self,
        feature_maps: list[torch.Tensor],
        text_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        region: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
        kept: list | None = None,
    ) -> list[torch.Tensor]:
        """
        Args:
            feature_maps: maps of `(batch_size, hidden_size, height, width)`, any number and size.
            text_states: `(batch_size, sequence_length, text_hidden_size)`, or `None` where nobody has text.
            attention_mask: `(batch_size, sequence_length)`, 1 for words and 0 for padding; a row of zeros has no text.
            region: top, left, bottom and right of what the maps show, in shares of the whole picture.
            kept: takes the weights of both attentions, `(batch_size, num_attention_heads, pixels, sequence_length)`
                with the pixels of all maps in their order, row by row.

        Returns:
            Maps of the shapes that came in.
        """
        words, mask = self.read_text(text_states, attention_mask, feature_maps[0])
        sizes = [feature_map.shape[-2:] for feature_map in feature_maps]
        # Four maps (batch, width, h, w) -> one sequence (batch, tokens, width): one product instead of four.
        tokens = torch.cat([feature_map.flatten(2).transpose(1, 2) for feature_map in feature_maps], dim=1)
        positions = torch.cat([position_code(h, w, self.width, region, like=tokens) for h, w in sizes])
        for attention in self.attentions:
            tokens = tokens + attention(tokens, positions, words, mask, kept)
        tokens = tokens + self.feed_forward(tokens)
        maps = tokens.split([h * w for h, w in sizes], dim=1)
        return [m.transpose(1, 2).unflatten(2, size) for m, size in zip(maps, sizes, strict=True)]

    def read_text(self, text_states, attention_mask, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Words `(batch_size, sequence_length, hidden_size)` and their bool mask; the null prompt without text."""
        null_prompt = self.null_prompt.to(like.dtype)
        if text_states is None:
            batch_size = like.shape[0]
            mask = torch.ones(batch_size, 1, dtype=torch.bool, device=like.device)
            return null_prompt.expand(batch_size, 1, -1), mask
        words = self.text_norm(self.text_projection(text_states.to(like.dtype)))
        mask = attention_mask.bool()
        has_text = mask.any(dim=1, keepdim=True)
        # Without text every position holds the null prompt, so that attention over them all returns just it.
        return torch.where(has_text[..., None], words, null_prompt), mask | ~has_text


class TextCrossAttention(nn.Module):
    """Pre-norm attention of pixel tokens to word tokens.

    The text side is turned into two thin matrices per sentence, so that a pixel costs two thin products whatever the
    number of heads: softmax((x Wq)(t Wk)^T)(t Wv) Wo = softmax(x A) B with A of `(width, heads * words)` and B of
    `(heads * words, width)`.
    """

    def __init__(self, config):
        super().__init__()
        width, inner = config.hidden_size, config.num_attention_heads * config.attention_head_dim
        self.heads, self.head_dim = config.num_attention_heads, config.attention_head_dim
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.output = nn.Linear(inner, width)

    def forward(self, tokens, positions, words, mask, kept: list | None = None) -> torch.Tensor:
        """
        Args:
            tokens: `(batch_size, tokens, hidden_size)`. positions: `(tokens, hidden_size)`.
            words: `(batch_size, words, hidden_size)`. mask: bool `(batch_size, words)`, `True` for what may be read.
            kept: takes the weights, `(batch_size, heads, tokens, words)`. Handed in, because weights that came back
                with the result would live longer in every forward pass.

        Returns:
            What is to be added to `tokens`, of the same shape.
        """
        scores, values, bias = self.sentence_matrices(words)
        unread = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, torch.finfo(scores.dtype).min)
        unread = unread.repeat(1, self.heads)[:, None]  # (batch, 1, heads * words), added while multiplying
        attention = torch.baddbmm(unread, self.norm(tokens) + positions, scores)
        attention = attention.unflatten(-1, (self.heads, -1)).softmax(dim=-1)
        if kept is not None:
            kept.append(attention.transpose(1, 2))
        return torch.baddbmm(bias, attention.flatten(2), values)

    def sentence_matrices(self, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`(batch, words, width)` to A `(batch, width, heads * words)`, B `(batch, heads * words, width)` and what is
        added behind it, `(width,)`."""
        # (batch, words, heads * head_dim) -> (batch, heads, words, head_dim)
        keys, values = (
            projection(words).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
            for projection in (self.key, self.value)
        )
        query_weight, _ = weight_and_bias(self.query, words.shape[-1], like=words)
        output_weight, bias = weight_and_bias(self.output, self.heads * self.head_dim, like=words)
        query_weight = query_weight.unflatten(0, (self.heads, self.head_dim)) * self.head_dim**-0.5
        output_weight = output_weight.t().unflatten(0, (self.heads, self.head_dim))
        scores = torch.matmul(keys, query_weight).flatten(1, 2).transpose(1, 2)
        return scores, torch.matmul(values, output_weight).flatten(1, 2), bias


def weight_and_bias(layer: nn.Module, in_features: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight `(out_features, in_features)` and bias of a linear layer; of one that was wrapped by an adapter (peft) or
    quantised, as its answers show them."""
    if type(layer) is nn.Linear:
        return layer.weight, layer.bias
    bias = layer(like.new_zeros(1, in_features))
    weight = layer(torch.eye(in_features, dtype=like.dtype, device=like.device)) - bias
    return weight.t(), bias[0]


def position_code(
    height: int, width: int, channels: int, region: tuple[float, float, float, float], like: torch.Tensor
) -> torch.Tensor:
    """Sines and cosines of the cell centres, `(height * width, channels)`: the first half of the channels says the
    row, the second the column. Coordinates run from 0 to 1 over the picture, so that "upper left" means the same at
    every scale and picture size; the slowest wave is half a turn, which tells one side from the other by its sign."""
    waves = torch.linspace(0, math.log(32), channels // 4, device=like.device, dtype=torch.float32).exp() * math.pi
    top, left, bottom, right = region

    def along(cells, start, end):
        centres = (torch.arange(cells, device=like.device, dtype=torch.float32) + 0.5)[:, None] / cells
        phase = (start + (end - start) * centres) * waves
        return torch.cat([phase.sin(), phase.cos()], dim=-1)

    rows = along(height, top, bottom)[:, None].expand(height, width, channels // 2)
    columns = along(width, left, right)[None].expand(height, width, channels // 2)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1).to(like.dtype)


def text_hidden_size(config) -> int:
    """Width of the text encoder's states, by whichever name its config gives it."""
    text_config = config.text_config.get_text_config()
    return getattr(text_config, "hidden_size", None) or text_config.d_model
