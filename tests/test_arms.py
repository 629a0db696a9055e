# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The sentences of each arm: nobody keeps its own when shuffled, words change only where the arm says so."""

import pytest

from processing.arms import ARMS, exchange_sides, misspell, paraphrase, remove_places, text_arms


QATA = "bilateral pulmonary infection, two infected areas, all left lung and middle lower right lung."


def test_shuffled_never_keeps_a_rows_own_sentence():
    arms = text_arms([f"sentence {i}" for i in range(20)])
    assert list(arms) == ["full_text", "no_text", "shuffled_text"]
    assert sorted(arms["shuffled_text"]) == sorted(arms["full_text"])
    assert all(a != b for a, b in zip(arms["shuffled_text"], arms["full_text"], strict=True))
    assert arms["no_text"] == [None] * 20


def test_every_arm_is_repeatable_and_asks_every_row():
    prompts = [QATA, None, "the large lesion"]
    arms = text_arms(prompts, list(ARMS), seed=4)
    assert list(arms) == list(ARMS) and all(len(sentences) == 3 for sentences in arms.values())
    assert arms == text_arms(prompts, list(ARMS), seed=4)
    for arm in ("wrong_side", "typo", "paraphrase", "location_removed"):
        assert arms[arm][1] is None
    assert arms["empty"] == ["", "", ""]
    with pytest.raises(ValueError, match="no arm 'fulltext'.*full_text"):
        text_arms(prompts, ["fulltext"])


def test_wrong_side():
    assert exchange_sides("the left lung") == "the right lung"
    assert exchange_sides("upper left lung") == "upper right lung"
    assert exchange_sides("a polyp, located in top of the image") == "a polyp, located in bottom of the image"
    assert exchange_sides("a polyp") == "a polyp"


def test_typing_errors():
    wrong = misspell(QATA, 0)
    assert wrong != QATA and sorted(wrong) == sorted(QATA) and misspell(QATA, 0) == wrong != misspell(QATA, 1)
    changed = [(a, b) for a, b in zip(QATA.split(), wrong.split(), strict=True) if a != b]
    assert 1 <= len(changed) <= 4
    assert all(a[0] == b[0] for a, b in changed)
    assert misspell("big spot", 0) == "big sopt"  # the one place there is
    assert misspell("aaaa 1234", 0) == "aaaa 1234"


def test_paraphrase():
    assert paraphrase("one small polyp, located in left") == "a single little polyp, situated in left"
    assert paraphrase("Small, smallish spot-like") == "little, smallish spot-like"
    assert paraphrase("") == ""


@pytest.mark.parametrize(
    ("sentence", "left"),
    [
        (QATA, "pulmonary infection, two infected areas"),
        ("one medium white round polyp, located in right of the image", "one medium white round polyp"),
        ("One tumor at the top in the breast ultrasound image.", "One tumor in the breast ultrasound image"),
        ("find all large lesions in the lower-left part", "find all large lesions"),
        ("in the upper half, two bright spots", "two bright spots"),
        ("in the picture, all lesions", "in the picture, all lesions"),
        ("the left lesion", "lesion"),
        ("a nodule in the left lung and a mass", "a nodule and a mass"),
        ("one 1.5 cm nodule in the left lower lobe, no pleural effusion", "one 1.5 cm nodule, no pleural effusion"),
        ("left, 0,5 cm; two areas.", "0,5 cm, two areas"),
        ("stage 2, 3 areas. 4 spots", "stage 2, 3 areas, 4 spots"),
        ("upper left lung", None),
        ("", None),
        (None, None),
    ],
)  # fmt: skip
def test_places_are_left_out(sentence, left):
    assert remove_places(sentence) == left
