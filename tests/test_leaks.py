# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""What is the same in two splits is found, what is not the same is not, and unknown is not zero."""

import io
import json

import datasets
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from processing.command_line import main
from processing.leaks import NEAR, find_families, find_leaks, leak_table, look_of, trace


def picture(seed: int) -> Image.Image:
    """Smooth random clouds: unlike white noise, they have the low frequencies that pictures have."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)


def saved_again(image: Image.Image) -> Image.Image:
    """As another site exports it: other size, other contrast, lossy."""
    buffer = io.BytesIO()
    ImageEnhance.Contrast(image.resize((80, 80))).enhance(1.1).save(buffer, format="JPEG", quality=70)
    return Image.open(buffer)


def pair(report: dict, kind: str, first: str = "train", second: str = "test") -> dict:
    return next(p for p in report["pairs"] if (p["kind"], *p["splits"]) == (kind, first, second))


def test_every_kind_is_found():
    report = find_leaks(
        [
            trace(picture(0), "train", "a", "p1", "s1", "Left  lung"),
            trace(picture(1), "train", "b", "p2", "s2", "right lung"),
            trace(picture(2), "train", "c", "p2", "s3", None),
            trace(picture(0), "test", "d", "p3", "s4", "left lung"),
            trace(saved_again(picture(1)), "test", "e", "p2", "s2", "both lungs"),
            trace(picture(7), "test", "f", None, None, "left lung"),
        ]
    )
    assert report["rows"] == {"train": 3, "test": 3}
    assert report["patients"] == {"train": 2, "test": 2} and report["unknown_patients"] == {"train": 0, "test": 1}
    found = {kind: pair(report, kind) for kind in ("patient", "study", "picture", "near picture", "sentence")}
    assert (found["patient"]["values"], found["patient"]["rows"]) == (["p2"], [2, 1])
    assert found["study"]["values"] == ["s2"]
    assert found["picture"]["values"] == [["a", "d"]]  # in any file format: the pixels are hashed
    assert [names[:2] for names in found["near picture"]["values"]] == [["a", "d"], ["b", "e"]]
    assert found["near picture"]["values"][0][2] == 0 < found["near picture"]["values"][1][2] <= NEAR
    assert (found["sentence"]["values"], found["sentence"]["rows"]) == (["left lung"], [1, 2])
    json.dumps(report)


def test_other_pictures_are_not_near():
    traces = [trace(picture(seed), "train" if seed < 20 else "test", str(seed)) for seed in range(40)]
    assert pair(find_leaks(traces), "near picture")["shared"] == 0


def test_many_equal_looks_are_one():
    """Volumes have hundreds of black slices: each row counts, but no pair of them is listed."""
    black = Image.new("L", (96, 96))
    traces = [trace(black, split, f"{split}{n}") for split, count in (("train", 5), ("test", 3)) for n in range(count)]
    traces += [trace(picture(1), "train", "a"), trace(picture(2), "test", "b")]
    found = pair(find_leaks(traces), "near picture")
    assert (found["values"], found["rows"]) == ([["train0", "test0", 0]], [5, 3])


def test_a_blurred_or_mirrored_picture():
    near = [trace(picture(0), "train", "a"), trace(picture(0).filter(ImageFilter.GaussianBlur(1)), "test", "b")]
    assert pair(find_leaks(near), "near picture")["shared"] == 1
    mirrored = picture(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    far = [trace(picture(0), "train", "a"), trace(mirrored, "test", "b")]
    assert pair(find_leaks(far), "near picture")["shared"] == 0


def test_families_are_connected_by_looks_and_by_names():
    looks = [np.array([look_of(picture(seed))]) for seed in (0, 1, 2, 3, 4)]
    looks[1] = np.concatenate([looks[1], looks[0]])  # a volume, one slice of which is picture 0
    looks.append(np.array([look_of(saved_again(picture(4)))]))
    looks.append(np.zeros((0, 256), dtype=bool))  # a picture that cannot be read
    known = [("p1", None), (None, None), ("p1", None), (None, "s1"), ("p2", "s1"), (None, None), (None, None)]
    families = find_families(looks, known).tolist()
    assert families[0] == families[1] == families[2] and families[3] == families[4] == families[5]
    assert len(set(families)) == 3


def test_unknown_is_not_zero():
    report = find_leaks([trace(picture(0), "train", "a", "p1"), trace(picture(1), "test", "b")])
    assert pair(report, "patient")["shared"] is None
    table = leak_table(report)
    assert "| patient | unknown |" in table and "| picture | 0 |" in table
    assert "0 of 1 in train, 1 of 1 in test" in table
    assert leak_table(find_leaks([trace(picture(0), "train", "a")])).startswith("There is one split only")


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split, seeds in (("train", (0, 1, 2)), ("validation", (2, 3))):
        (tmp_path / "data" / split).mkdir(parents=True)
        lines = []
        for seed in seeds:
            picture(seed).save(tmp_path / "data" / split / f"{seed}.png")
            Image.new("L", (96, 96), 255).save(tmp_path / "data" / split / f"{seed}-mask.png")
            files = {"image_file_name": f"{seed}.png", "mask_file_name": f"{seed}-mask.png"}
            lines.append(json.dumps(files | {"prompt": "x", "patient_id": f"p{seed // 2}"}))
        (tmp_path / "data" / split / "metadata.jsonl").write_text("\n".join(lines))
    assert main(["data", "leaks", str(tmp_path / "data"), "--output", str(tmp_path / "leaks.json")]) == 0
    assert "| picture | 1 (1 + 1 rows, 50.00 % of validation) |" in capsys.readouterr().out
    report = json.loads((tmp_path / "leaks.json").read_text())
    assert pair(report, "patient", "train", "validation")["values"] == ["p1"]
    assert pair(report, "study", "train", "validation")["shared"] is None
    counts = tmp_path / "counts.json"
    assert main(["data", "leaks", str(tmp_path / "data"), "--counts", "--output", str(counts)]) == 0
    assert leak_table(json.loads(counts.read_text())) == leak_table(report) and "p1" not in counts.read_text()
    assert main(["data", "leaks", str(tmp_path / "data"), "--counts"]) == 2
    assert "give --output too" in capsys.readouterr().err
    assert main(["data", "leaks", str(tmp_path / "data" / "train")]) == 2
    assert "is not known" in capsys.readouterr().err


def test_sentences_of_the_built_in_sample(capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("processing.builtin_sample.SPLITS", {"train": 6, "validation": 3, "test": 3})
        assert main(["data", "sentences", "builtin", "--seeds", "1"]) == 0
    said = capsys.readouterr().out
    assert "all: " in said and "of 12 sentences read" in said and "as in training" in said


def test_sentences_of_several_classes(tmp_path, capsys):
    ids = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 3)
    rows = {"image": [Image.new("RGB", (8, 8))], "mask": [ids], "prompt": ["nothing"]}
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image(), prompt=datasets.Value("string"))
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    assert main(["data", "sentences", str(tmp_path)]) == 2
    assert "num_labels, if these are classes (num_labels is given by --num-labels)." in capsys.readouterr().err
    assert main(["data", "sentences", str(tmp_path), "--num-labels", "3"]) == 0
    assert "of 1 sentences read" in capsys.readouterr().out


def test_built_in_sample_shares_no_picture(capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("processing.builtin_sample.SPLITS", {"train": 6, "validation": 3, "test": 3})
        assert main(["data", "leaks", "builtin"]) == 0
    said = capsys.readouterr().out
    assert "| patient | 0 | 0 | 0 |" in said and "| picture | 0 | 0 | 0 |" in said
