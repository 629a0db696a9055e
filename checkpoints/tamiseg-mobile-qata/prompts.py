# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Sentences: cleaned up, split into findings, and kept true when the picture is flipped."""

from __future__ import annotations

import re


# The words that a flip of the picture exchanges. "horizontal" is the flip that exchanges the left and right sides.
SWAPS = {
    "horizontal": (
        ("left", "right"),
        ("leftmost", "rightmost"),
        ("lefthand", "righthand"),
        ("leftsided", "rightsided"),
        ("leftward", "rightward"),
        ("leftwards", "rightwards"),
    ),
    "vertical": (
        ("upper", "lower"),
        ("top", "bottom"),
        ("uppermost", "lowermost"),
        ("topmost", "bottommost"),
        ("above", "below"),
        ("superior", "inferior"),
        ("superiorly", "inferiorly"),
        ("upward", "downward"),
        ("upwards", "downwards"),
    ),
}
_PARTNER = {
    axis: {word: partner for pair in pairs for word, partner in (pair, pair[::-1])} for axis, pairs in SWAPS.items()
}
# Whole words only, where a word ends at anything but a letter: "lower-left" and "left_lung" hold "left", "leftover"
# and "upright" hold no side.
_SIDE_WORD = {
    axis: re.compile(rf"(?<![^\W\d_])(?:{'|'.join(partner)})(?![^\W\d_])", re.IGNORECASE)
    for axis, partner in _PARTNER.items()
}
# What Python makes of bytes that are no text; no tokenizer and no file takes it.
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def normalize_prompt(text: str | None) -> str | None:
    """Strips the sentence and collapses its inner whitespace.

    Args:
        text: a sentence; None or NaN (an empty cell of a table) where there is none.

    Returns:
        The sentence, or None where nothing is left of it.

    Raises:
        ValueError: `text` is something else, or no text that could be written down.
    """
    if text is None or (isinstance(text, float) and text != text):  # only NaN differs from itself
        return None
    if not isinstance(text, str):
        raise ValueError(f"A prompt is a sentence or None: turn {text!r} ({type(text).__name__}) into a string first.")
    if not text.isascii() and _HALF_CHARACTER.search(text):
        raise ValueError(f"The prompt {text[:60]!r} holds a broken character: write it in UTF-8.")
    return " ".join(text.split()) or None


def split_findings(text: str | None) -> list[str]:
    """Splits "a nodule; two cysts" at the semicolons into normalised sentences, blank ones dropped."""
    sentences = (normalize_prompt(part) for part in (normalize_prompt(text) or "").split(";"))
    return [sentence for sentence in sentences if sentence]


def mirror_prompt(prompt: str | None, axis: str) -> str | None:
    """Rewrites the sentence so that what was true of the picture is true of its flip.

    Each side word is exchanged for its partner, in its own capitalisation (left, Left or LEFT); all else stays as it
    is, so that mirroring twice gives the original. Words are taken at face value: "lower" is a place even in "lower
    density", and abbreviations such as "RUL" are not read.

    Args:
        prompt: the sentence; None stays None.
        axis: "horizontal" exchanges left and right, "vertical" upper and lower.

    Returns:
        The sentence about the flipped picture.

    Raises:
        ValueError: unknown axis.
    """
    _check_axis(axis)
    if prompt is None:
        return None
    return _SIDE_WORD[axis].sub(lambda match: _swap_word(match[0], _PARTNER[axis]), prompt)


def names_side(prompt: str | None, axis: str) -> bool:
    """Whether the sentence holds a word that `mirror_prompt` would exchange; None holds none.

    Raises:
        ValueError: unknown axis.
    """
    _check_axis(axis)
    return prompt is not None and _SIDE_WORD[axis].search(prompt) is not None


def _swap_word(word: str, partner: dict[str, str]) -> str:
    swapped = partner[word.lower()]
    if word.isupper():
        return swapped.upper()
    return swapped.capitalize() if word[0].isupper() else swapped


def _check_axis(axis: str) -> None:
    if axis not in SWAPS:
        raise ValueError(f'A flip is "horizontal" or "vertical", not {axis!r}.')
