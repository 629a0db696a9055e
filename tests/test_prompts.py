# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Sentences: cleaning, splitting, and mirroring with the picture."""

import pytest

from processing.prompts import SWAPS, mirror_prompt, names_side, normalize_prompt, split_findings


SENTENCES = [
    "Bilateral pulmonary infection, two infected areas, all left lung and middle lower right lung.",
    "two large white round polyp, located in top left, right of the image",
    "One small circle-shaped tumor at the top right in the breast ultrasound image.",
    "LEFT upper lobe; Right LOWER lobe, left-sided fluid above the leftmost rib",
]


@pytest.mark.parametrize("blank", [None, "", "  \t\n", float("nan")])
def test_no_sentence_is_none(blank):
    assert normalize_prompt(blank) is None
    assert split_findings(blank) == []


def test_normalize_collapses_whitespace_only():
    assert normalize_prompt("  Left  lung,\n lower\u00a0part ") == "Left lung, lower part"
    assert normalize_prompt("nan") == "nan"  # a word, not an empty cell


@pytest.mark.parametrize("wrong", [3, 1.5, ["left"], b"left"])
def test_normalize_refuses_what_is_no_sentence(wrong):
    with pytest.raises(ValueError, match="sentence or None"):
        normalize_prompt(wrong)


def test_normalize_refuses_broken_characters():
    with pytest.raises(ValueError, match="holds a broken character: write it in UTF-8"):
        normalize_prompt(b"L\xe4sion".decode("utf-8", "surrogateescape"))
    assert normalize_prompt("Läsion 🫁") == "Läsion 🫁"


def test_split_findings_drops_blank_parts():
    assert split_findings(" a  nodule ;; two cysts;") == ["a nodule", "two cysts"]
    assert split_findings("one, two") == ["one, two"]


@pytest.mark.parametrize(
    ("prompt", "axis", "mirrored"),
    [
        (SENTENCES[0], "horizontal", SENTENCES[0].replace("right", "-").replace("left", "right").replace("-", "left")),
        (SENTENCES[1], "horizontal", "two large white round polyp, located in top right, left of the image"),
        (SENTENCES[1], "vertical", "two large white round polyp, located in bottom left, right of the image"),
        (
            SENTENCES[3],
            "horizontal",
            "RIGHT upper lobe; Left LOWER lobe, right-sided fluid above the rightmost rib",
        ),
        (SENTENCES[3], "vertical", "LEFT lower lobe; Right UPPER lobe, left-sided fluid below the leftmost rib"),
        ("lower-left, left_lung, (Uppermost)", "horizontal", "lower-right, right_lung, (Uppermost)"),
        ("Superior and INFERIOR, topmost", "vertical", "Inferior and SUPERIOR, bottommost"),
        ("leftover, upright, bright, stop, flower, Wright", "horizontal", None),
        ("leftover, upright, bright, stop, flower, tops", "vertical", None),
        ("", "vertical", None),
    ],
)
def test_mirror_rewrites_side_words_only(prompt, axis, mirrored):
    assert mirror_prompt(prompt, axis) == (prompt if mirrored is None else mirrored)
    assert names_side(prompt, axis) == (mirrored is not None)


@pytest.mark.parametrize("axis", SWAPS)
def test_mirroring_twice_gives_the_original(axis):
    words = [word for pairs in SWAPS.values() for pair in pairs for word in pair]
    every_case = " ".join(form for word in words for form in (word, word.capitalize(), word.upper()))
    for prompt in [*SENTENCES, every_case]:
        assert mirror_prompt(prompt, axis) != prompt or not names_side(prompt, axis)
        assert mirror_prompt(mirror_prompt(prompt, axis), axis) == prompt


def test_no_word_is_in_two_pairs():
    words = [word for pairs in SWAPS.values() for pair in pairs for word in pair]
    assert len(words) == len(set(words))


def test_no_sentence_has_no_side():
    assert mirror_prompt(None, "horizontal") is None
    assert names_side(None, "vertical") is False


@pytest.mark.parametrize("function", [mirror_prompt, names_side])
def test_unknown_axis_is_refused(function):
    with pytest.raises(ValueError, match='"horizontal" or "vertical"'):
        function("left", "diagonal")
