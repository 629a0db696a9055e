# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The built-in sample: the same everywhere, true in every sentence, and costly to those who ignore the sentence.

Truth is checked without the sample's own words: sentences are read by a parser of our own, and what a lesion looks
like is measured in the picture.
"""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from processing.builtin_sample import (
    SPLITS,
    _draw_scene,
    _parse_patient_id,
    draw_row,
    load_builtin_sample,
    main,
    sentence_blind_dice,
    write_image_folder,
)
from processing.prompts import mirror_prompt, names_side


MEANS = {"top": "upper", "bottom": "lower"}
ATTRIBUTE_WORDS = set("small large bright dark round elongated irregular upper lower left right".split())
OTHER_WORDS = set("the one two three four all every find mark lesion lesions spot spots".split())
OTHER_WORDS |= set("in on at side half part picture".split())
COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4}
# Row 0 of train: prompt, size, mode, and the beginning of the SHA-256 of the picture's and then the mask's pixels.
ROW_0 = ("one large bright lesion in the right half", (112, 140), "L", "e8bca12c68d1d181")


@pytest.fixture(scope="module")
def splits():
    return {split: load_builtin_sample(split) for split in SPLITS}


def read_sentence(prompt):
    """The attributes a sentence asks for, and the number of lesions it speaks of, if it gives one."""
    words = [MEANS.get(word, word) for word in prompt.replace(",", "").split()]
    assert set(words) <= ATTRIBUTE_WORDS | OTHER_WORDS, prompt
    return ATTRIBUTE_WORDS.intersection(words), next((COUNTS[word] for word in words if word in COUNTS), None)


def measure_lesion(grey, mask):
    """What can be seen of one lesion: `grey` float (height, width), `mask` bool."""
    height, width = mask.shape
    y, x = np.nonzero(mask)
    assert abs(x.mean() + 0.5 - width / 2) > 0.08 * width  # no doubt about its sides
    assert abs(y.mean() + 0.5 - height / 2) > 0.08 * height
    share = mask.sum() / min(height, width) ** 2
    assert share < 0.016 or share > 0.04  # small and large are far apart
    minor, major = np.sqrt(np.linalg.eigvalsh(np.cov(x, y)))
    disc_share = mask.sum() / (np.pi * (np.hypot(x - x.mean(), y - y.mean()).max() + 0.5) ** 2)
    shape = "elongated" if major / minor > 1.8 else "irregular" if disc_share < 0.72 else "round"

    around = np.zeros_like(mask)
    around[max(y.min() - 5, 0) : y.max() + 6, max(x.min() - 5, 0) : x.max() + 6] = True
    contrast = np.median(grey[mask]) - np.median(grey[around & ~mask])
    assert abs(contrast) > 25  # clearly visible
    return {
        "large" if share > 0.04 else "small",
        "bright" if contrast > 0 else "dark",
        shape,
        "upper" if y.mean() < height / 2 else "lower",
        "left" if x.mean() < width / 2 else "right",
    }


def assert_true_sentence(image, mask, prompt, lesion_masks):
    """The mask is the union of exactly the lesions that the sentence describes."""
    grey = np.array(image.convert("L"), dtype=float)
    asked, count = read_sentence(prompt)
    named = [lesion for lesion in lesion_masks if asked <= measure_lesion(grey, lesion)]
    union = np.logical_or.reduce([np.zeros_like(lesion_masks[0]), *named])
    np.testing.assert_array_equal(union, np.array(mask) > 0, err_msg=prompt)
    if named and count:
        assert len(named) == count, prompt
    return len(named)


def lesion_masks_of(row):
    return [lesion.mask for lesion in _draw_scene(*_parse_patient_id(row["patient_id"])).lesions]


def test_rows_are_rows(splits):
    for split, rows in splits.items():
        assert len(rows) == SPLITS[split]
        assert len({row["name"] for row in rows}) == len(rows)
        for row in rows:
            assert list(row) == ["image", "mask", "prompt", "name", "patient_id"]
            assert row["image"].size == row["mask"].size
            assert row["mask"].mode == "L"
            assert set(np.unique(row["mask"])) <= {0, 255}
    assert {row["image"].mode for row in splits["validation"]} == {"L", "RGB"}
    sizes = {row["image"].size for row in splits["validation"]}
    assert len(sizes) >= 5
    assert {np.sign(width - height) for width, height in sizes} == {-1, 0, 1}


def test_pixels_are_the_same_everywhere():
    row = draw_row(0)
    pixels = hashlib.sha256(row["image"].tobytes() + row["mask"].tobytes()).hexdigest()[:16]
    assert (row["prompt"], row["image"].size, row["image"].mode, pixels) == ROW_0


def test_same_seed_same_rows_other_seed_other_rows(splits):
    again = load_builtin_sample("test", num_rows=7)
    assert len(again) == 7
    for index, row in enumerate(again):
        assert row == splits["test"][index] == draw_row(index, "test")
    other = load_builtin_sample("test", num_rows=7, seed=1)
    assert all(a["image"].tobytes() != b["image"].tobytes() for a, b in zip(again, other, strict=True))
    assert not {row["name"] for row in again} & {row["name"] for row in other}


def test_no_picture_is_in_two_splits(splits):
    patients = [{row["patient_id"] for row in rows} for rows in splits.values()]
    pictures = [{row["image"].tobytes() for row in rows} for rows in splits.values()]
    for groups in (patients, pictures):
        assert len(set.union(*groups)) == sum(len(group) for group in groups)
        assert len(set.union(*groups)) == sum(SPLITS.values()) / 3


def test_sentences_of_a_picture_differ(splits):
    rows = splits["train"]
    different_masks = 0
    for first in range(0, len(rows), 3):
        trio = rows[first : first + 3]
        assert len({row["patient_id"] for row in trio}) == len({row["image"].tobytes() for row in trio}) == 1
        assert len({row["prompt"] for row in trio}) == 3
        different_masks += len({row["mask"].tobytes() for row in trio}) == 3
    assert different_masks > 0.8 * len(rows) / 3


def test_every_sentence_is_true(splits):
    rows = splits["validation"] + splits["test"] + splits["train"][:150]
    named = [assert_true_sentence(row["image"], row["mask"], row["prompt"], lesion_masks_of(row)) for row in rows]
    assert {0, 1, 2, 3} <= set(named)
    used = set.union(*(read_sentence(row["prompt"])[0] for row in rows))
    assert used == ATTRIBUTE_WORDS


@pytest.mark.parametrize(("axis", "flip"), [("horizontal", ImageOps.mirror), ("vertical", ImageOps.flip)])
def test_flips_keep_sentences_true(splits, axis, flip):
    rows = [row for row in splits["validation"] if names_side(row["prompt"], axis)]
    assert len(rows) > 20
    for row in rows:
        lesion_masks = [np.array(flip(Image.fromarray(mask))) for mask in lesion_masks_of(row)]
        mirrored = mirror_prompt(row["prompt"], axis)
        assert mirrored != row["prompt"]
        assert_true_sentence(flip(row["image"]), flip(row["mask"]), mirrored, lesion_masks)


def test_one_to_four_lesions_that_do_not_touch(splits):
    counts = set()
    for row in splits["test"][::3]:
        lesion_masks = lesion_masks_of(row)
        counts.add(len(lesion_masks))
        assert np.sum(lesion_masks, axis=0).max() == 1
    assert counts == {1, 2, 3, 4}


def test_some_sentences_name_nothing(splits):
    rows = [row for rows in splits.values() for row in rows]
    absent = np.mean([row["mask"].getbbox() is None for row in rows])
    assert 0.07 < absent < 0.13


def test_words_are_few_and_wordings_many(splits):
    prompts = {row["prompt"] for row in splits["train"]}
    assert len({word for prompt in prompts for word in prompt.replace(",", "").split()}) <= 40
    blanked = {
        " ".join("_" if word in ATTRIBUTE_WORDS or word in MEANS else word for word in prompt.split())
        for prompt in prompts
    }
    assert len(blanked) >= 50


@pytest.mark.parametrize("split", SPLITS)
def test_ignoring_the_sentence_costs_dice(splits, split):
    blind = sentence_blind_dice(splits[split])
    print(split, blind)
    assert 0.4 < blind["all_lesions"] <= blind["best_fixed_union"] <= 0.8


def test_blind_dice_by_hand(splits):
    # Over a single row the best fixed union is that row's own mask.
    rows = splits["test"][::3]
    blind = sentence_blind_dice(rows)
    assert blind["best_fixed_union"] == 1
    unions = [np.logical_or.reduce(lesion_masks_of(row)) for row in rows]
    masks = [np.array(row["mask"]) > 0 for row in rows]
    scores = [2 * (u & m).sum() / (u.sum() + m.sum()) for u, m in zip(unions, masks, strict=True)]
    assert blind["all_lesions"] == pytest.approx(np.mean(scores))


def test_rows_of_others_have_no_known_lesions(splits):
    with pytest.raises(ValueError, match="another's"):
        sentence_blind_dice([{**splits["test"][0], "patient_id": None}])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_row(0, "dev"), "train, validation, test"),
        (lambda: draw_row(600), "rows 0 to 599"),
        (lambda: draw_row(-1), "no row -1"),
        (lambda: load_builtin_sample("test", num_rows=121), "120 rows"),
        (lambda: load_builtin_sample("test", num_rows=0), "not 0"),
        (lambda: load_builtin_sample("test", seed=-1), "seed"),
    ],
)
def test_bad_requests_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_written_folder_holds_the_rows(splits, tmp_path):
    write_image_folder(tmp_path)
    for split, rows in splits.items():
        lines = (tmp_path / split / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == len(rows)
        for line, row in zip(map(json.loads, lines), rows, strict=True):
            assert {key: line[key] for key in ("prompt", "name", "patient_id")} == {
                key: row[key] for key in ("prompt", "name", "patient_id")
            }
            for kind in ("image", "mask"):
                with Image.open(tmp_path / split / line[f"{kind}_file_name"]) as written:
                    assert written.mode == row[kind].mode
                    assert written.tobytes() == row[kind].tobytes()


def test_command_prints_counts(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["builtin_sample", "--seed", "3"])
    main()
    printed = capsys.readouterr().out
    assert [line.split(":")[0] for line in printed.splitlines()] == list(SPLITS)
    assert "600 rows, 200 pictures" in printed


def test_command_refuses_a_bad_seed(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["builtin_sample", "--seed", "-1"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "A seed of the built-in sample is a number" in capsys.readouterr().err
