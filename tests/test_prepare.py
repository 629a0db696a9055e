# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Each layout that owners distribute becomes rows with their counts; each mistake in the files gets its sentence."""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import stat
import tracemalloc
import zipfile
from pathlib import Path

import datasets
import numpy as np
import openpyxl
import pydicom
import pytest
from PIL import Image, ImageDraw

from processing.builders import NAMED_SETS, Problems, pair_files
from processing.command_line import main
from processing.data import fingerprint, load_rows
from processing.prepare import Plan, prepare
from processing.slices import NEEDS_WINDOW, dicom_identity, encode, read_images, read_masks
from processing.sources import Source


SIZE = (40, 32)
BLANK = encode(Image.new("L", (6, 6), 0))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def draw(number: int, size: tuple[int, int] = SIZE) -> tuple[Image.Image, Image.Image]:
    """Noise that tells the number, with a bright square on one side; its mask in {0, 255}."""
    pixels = np.random.default_rng(number).integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
    image, mask = Image.fromarray(pixels), Image.new("L", size, 0)
    left = 4 if number % 2 else 22
    box = [left, 8, left + 11, 20]
    ImageDraw.Draw(image).rectangle(box, fill=(255, 255, 255))
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return image, mask


def save(path: Path, image: Image.Image, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def write_xlsx(path: Path | io.BytesIO, rows: list[tuple], header=("Image", "Description")) -> None:
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    for row in (header, *rows):
        book.active.append(row)
    book.save(path)


def zip_folder(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))


def rows_of(output: Path) -> dict[str, list[dict]]:
    return {
        path.name.split("-")[0]: list(load_rows(str(output), path.name.split("-")[0]))
        for path in output.glob("*.parquet")
    }


def sentence(number: int) -> str:
    return f"unilateral pulmonary infection, one infected area, lower {'left' if number % 2 else 'right'} lung."


# The named sets, in the layouts of their owners, with few pictures


def write_qata(folder: Path) -> None:
    """As on Kaggle: two sets, masks with a prefix; LViT's texts name the masks and divide the first set."""
    texts = {"Train": [], "Val": [], "Test": []}
    for number in range(9):
        part = "Test" if number >= 7 else "Train"
        name = f"covid_{number}" if number < 2 else f"sub-S{number // 2:05}_ses-E{number}_run-1_bp-chest_vp-ap_dx"
        image, mask = draw(number)
        save(folder / "QaTa-COV19-v2" / f"{part} Set" / "Images" / f"{name}.png", image.convert("L"))
        save(folder / "QaTa-COV19-v2" / f"{part} Set" / "Ground-truths" / f"mask_{name}.png", mask)
        texts["Val" if number == 6 else part].append((f"mask_{name}.png", sentence(number)))
    for part, rows in texts.items():
        write_xlsx(folder / f"{part}_text.xlsx", rows)


def test_qata(tmp_path):
    write_qata(tmp_path / "source")
    done = prepare("qata-cov19", tmp_path / "source", tmp_path / "out", Plan(partial=True))
    assert done["counts"] == {"train": 6, "validation": 1, "test": 2}
    rows = rows_of(tmp_path / "out")
    by_name = {row["name"]: row for part in rows.values() for row in part}
    assert by_name["covid_1"]["patient_id"] is None
    row = by_name["sub-S00003_ses-E7_run-1_bp-chest_vp-ap_dx"]
    assert (row["patient_id"], row["prompt"]) == ("sub-S00003", sentence(7))
    np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(draw(7)[0].convert("L")))
    np.testing.assert_array_equal(np.asarray(row["mask"]), np.asarray(draw(7)[1]))
    # Numbers 6 and 7 are one patient in validation and test: found by name, not by picture.
    pairs = {(pair["kind"], *pair["splits"]): pair for pair in done["leaks"]["pairs"]}
    assert pairs["patient", "validation", "test"]["values"] == ["sub-S00003"]
    assert pairs["picture", "validation", "test"]["shared"] == 0


def test_counts_are_those_published(tmp_path):
    write_qata(tmp_path / "source")
    with pytest.raises(ValueError, match="validation has 1 rows instead of 1429, test has 2 rows instead of 2113"):
        prepare("qata-cov19", tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mosmed_by_slice_and_by_study(tmp_path):
    """In LViT's layout, zipped as it is passed on; studies lie in several parts until they are split anew."""
    studies = [
        "Morozov_study_0255",
        "Jun_coronacases_case1",
        "Jun_radiopaedia_10_85902_3_case12",
        "Morozov_study_0288",
    ]
    texts = {"Train": [], "Val": [], "Test": []}
    for number in range(16):
        part = ("Train", "Train", "Val", "Test")[number % 4]
        name = f"{studies[number // 4]}_{number}"
        image, mask = draw(number)
        save(tmp_path / "tree" / f"{part}_Folder" / "img" / f"{name}.png", image)
        save(tmp_path / "tree" / f"{part}_Folder" / "labelcol" / f"{name}.png", mask)
        texts[part].append((f"{name}.png", sentence(number)))
    for part, rows in texts.items():
        write_xlsx(tmp_path / "tree" / f"{part}_Folder" / f"{part}_text.xlsx", rows)
    (tmp_path / "source").mkdir()
    zip_folder(tmp_path / "tree", tmp_path / "source" / "MosMedDataPlus.zip")

    done = prepare("mosmeddata-plus", tmp_path / "source", tmp_path / "slices", Plan(partial=True))
    assert done["counts"] == {"train": 8, "validation": 4, "test": 4}
    shared = {tuple(p["splits"]): p["shared"] for p in done["leaks"]["pairs"] if p["kind"] == "study"}
    assert shared == {("train", "validation"): 4, ("train", "test"): 4, ("validation", "test"): 4}

    again = prepare(
        "mosmeddata-plus", tmp_path / "source", tmp_path / "studies", Plan(partial=True, split_by="study", seed=1)
    )
    assert sum(again["counts"].values()) == 16
    assert all(pair["shared"] == 0 for pair in again["leaks"]["pairs"] if pair["kind"] in ("study", "patient"))
    assert "by study with seed 1" in (tmp_path / "studies" / "README.md").read_text()


def noise_png(generator: np.random.Generator) -> bytes:
    return encode(Image.fromarray(generator.integers(0, 256, (6, 6), dtype=np.uint8)))


def write_mosmed_full(archive: zipfile.ZipFile) -> None:
    """2183 / 273 / 273 slices in LViT's layout."""
    generator = np.random.default_rng(0)
    for part, count in (("Train", 2183), ("Val", 273), ("Test", 273)):
        names = [f"Morozov_study_{len(part) * 100 + number // 40:04}_{number}.png" for number in range(count)]
        for name in names:
            archive.writestr(f"{part}_Folder/img/{name}", noise_png(generator))
            archive.writestr(f"{part}_Folder/labelcol/{name}", BLANK)
        book = io.BytesIO()
        write_xlsx(book, [(name, sentence(number)) for number, name in enumerate(names)])
        archive.writestr(f"{part}_Folder/{part}_text.xlsx", book.getvalue())


def write_kvasir_full(archive: zipfile.ZipFile) -> None:
    """1000 frames, without a list."""
    generator = np.random.default_rng(0)
    for number in range(1000):
        archive.writestr(f"Kvasir-SEG/images/cju{number:022}.png", noise_png(generator))
        archive.writestr(f"Kvasir-SEG/masks/cju{number:022}.png", BLANK)


def write_kvasir_900_full(archive: zipfile.ZipFile) -> None:
    """900 and 100 frames in folders of their own."""
    generator = np.random.default_rng(0)
    for number in range(1000):
        images, masks = ("TrainDataset/image", "TrainDataset/masks")
        if number >= 900:
            images, masks = ("TestDataset/Kvasir/images", "TestDataset/Kvasir/masks")
        archive.writestr(f"{images}/cju{number:022}.png", noise_png(generator))
        archive.writestr(f"{masks}/cju{number:022}.png", BLANK)


@pytest.mark.parametrize(
    ("name", "split", "write", "counts"),
    [
        ("mosmeddata-plus", None, write_mosmed_full, (2183, 273, 273)),
        ("kvasir-seg", None, write_kvasir_full, (800, 80, 120)),
        ("kvasir-seg", "900-100", write_kvasir_900_full, (810, 90, 100)),
        ("kvasir-seg", "800-100-100", write_kvasir_full, (800, 100, 100)),
    ],
)
def test_published_counts_in_full(tmp_path, name, split, write, counts):
    """Every row of the published set, with small pictures; no `partial`."""
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        write(archive)
    done = prepare(name, tmp_path / "set.zip", tmp_path / "out", Plan(split=split))
    assert done["counts"] == dict(zip(("train", "validation", "test"), counts, strict=True))


def write_kvasir(folder: Path, count: int = 10, lists: bool = True) -> None:
    """As from its owners: JPEG pictures and JPEG masks, boxes nobody asked for, and the lists of 880/120."""
    for number in range(count):
        image, mask = draw(number)
        save(folder / "Kvasir-SEG" / "images" / f"cju{number:022}.jpg", image)
        save(folder / "Kvasir-SEG" / "masks" / f"cju{number:022}.jpg", mask.convert("RGB"), quality=60)
    (folder / "Kvasir-SEG" / "kavsir_bboxes.json").write_text("{}")
    if lists:
        (folder / "train.txt").write_text("\n".join(f"cju{number:022}" for number in range(8)))
        (folder / "val.txt").write_text("\n".join(f"cju{number:022}" for number in range(8, 10)))


def test_kvasir(tmp_path):
    write_kvasir(tmp_path / "source")
    done = prepare("kvasir-seg", tmp_path / "source", tmp_path / "out", Plan(partial=True))
    rows = rows_of(tmp_path / "out")
    assert {row["name"] for row in rows["test"]} == {f"cju{8:022}", f"cju{9:022}"}
    assert done["counts"] == {"train": 7, "validation": 1, "test": 2}
    row = rows["test"][0]
    np.testing.assert_array_equal(np.asarray(row["mask"]), np.asarray(draw(8)[1]))  # the JPEG's grey edges are gone
    stored = load_rows(str(tmp_path / "out"), "test").cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert stored["bytes"] == (tmp_path / "source" / "Kvasir-SEG" / "images" / f"cju{8:022}.jpg").read_bytes()
    assert any("cut at half" in note for note in done["notes"])
    assert {pair["shared"] for pair in done["leaks"]["pairs"] if pair["kind"] == "patient"} == {None}  # unknown, not 0


def test_published_kvasir_splits_are_drawn_without_lists(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "processing.prepare.NAMED_SETS",
        {
            "kvasir-seg": NAMED_SETS["kvasir-seg"].__class__(
                **vars(NAMED_SETS["kvasir-seg"])
                | {
                    "splits": {
                        "8-2": {"train": 7, "validation": 1, "test": 2},
                        "8-1-1": {"train": 8, "validation": 1, "test": 1},
                    }
                }
            )
        },
    )
    write_kvasir(tmp_path / "lists")
    write_kvasir(tmp_path / "bare", lists=False)
    done = prepare("kvasir-seg", tmp_path / "lists", tmp_path / "a", Plan(split="8-1-1"))
    assert done["counts"] == {"train": 8, "validation": 1, "test": 1}
    assert any("set aside" in note for note in done["notes"])
    drawn = [
        prepare("kvasir-seg", tmp_path / "bare", tmp_path / f"b{i}", Plan(seed=s)) for i, s in enumerate((0, 0, 1))
    ]
    assert all(one["counts"] == {"train": 7, "validation": 1, "test": 2} for one in drawn)
    names = [{row["name"] for row in rows_of(tmp_path / f"b{i}")["test"]} for i in range(3)]
    assert names[0] == names[1] != names[2]
    with pytest.raises(ValueError, match="no published split '880-120'"):
        prepare("kvasir-seg", tmp_path / "bare", tmp_path / "c", Plan(split="880-120"))


def test_kvasir_among_other_sets(tmp_path):
    """As the 900/100 split is passed on: PNG, split by folder, frames of other sets beside it."""
    for number in range(10):
        folder = "TestDataset/Kvasir/images" if number >= 8 else "TrainDataset/image"
        save(tmp_path / "source" / folder / f"cju{number:022}.png", draw(number)[0])
        folder = "TestDataset/Kvasir/masks" if number >= 8 else "TrainDataset/masks"
        save(tmp_path / "source" / folder / f"cju{number:022}.png", draw(number)[1])
    for folder in (
        "TrainDataset/image",
        "TrainDataset/masks",
        "TestDataset/CVC-300/images",
        "TestDataset/CVC-300/masks",
    ):
        save(tmp_path / "source" / folder / "17.png", draw(17)["masks" in folder])
    done = prepare("kvasir-seg", tmp_path / "source", tmp_path / "out", Plan(split="900-100", partial=True))
    assert done["counts"]["test"] == 2 and sum(done["counts"].values()) == 10
    assert "4 files with names of another set were left out" in done["notes"]


@pytest.mark.parametrize("spelling", ["dev", "val"])  # read before and after train.txt
def test_validation_may_be_listed_out_of_train(tmp_path, spelling):
    write_folder(tmp_path / "source", 6)
    names = {"train": ["p0_0", "p0_1", "p0_2"], "test": ["p0_3", "p1_4", "p1_5"], spelling: ["p0_0"]}
    for split, listed in names.items():
        (tmp_path / "source" / f"{split}.txt").write_text("\n".join(listed))
    prepare("folder", tmp_path / "source", tmp_path / "out")
    assert [row["name"] for row in rows_of(tmp_path / "out")["validation"]] == ["p0_0"]


def test_partial_takes_what_is_there(tmp_path):
    write_qata(tmp_path / "source")
    shutil.rmtree(tmp_path / "source" / "QaTa-COV19-v2" / "Test Set")
    with pytest.raises(ValueError, match="2 name in a table or list without a picture"):
        prepare("qata-cov19", tmp_path / "source", tmp_path / "out")
    done = prepare("qata-cov19", tmp_path / "source", tmp_path / "out", Plan(partial=True))
    assert done["counts"] == {"train": 6, "validation": 1}


def test_monuseg_outlines(tmp_path):
    """As from its owners: tif pictures beside Aperio XML, no sentence, no validation part."""
    xml = (
        "<Annotations><Annotation><Regions><Region><Vertices>"
        '<Vertex X="5" Y="6"/><Vertex X="15" Y="6"/><Vertex X="15" Y="20"/><Vertex X="5" Y="20"/>'
        "</Vertices></Region></Regions></Annotation></Annotations>"
    )
    for number in range(8):
        part = "MoNuSegTestData" if number >= 6 else "MoNuSeg 2018 Training Data/Tissue Images"
        path = tmp_path / "source" / part / f"TCGA-{number:02}-5784-01Z-00-DX1.tif"
        save(path, draw(number)[0])
        notes = path.parent.parent / "Annotations" if number < 6 else path.parent
        notes.mkdir(exist_ok=True)
        (notes / f"{path.stem}.xml").write_text(xml)
    done = prepare("monuseg", tmp_path / "source", tmp_path / "out", Plan(partial=True, sentences="nuclei"))
    assert done["counts"]["test"] == 2 and done["counts"]["train"] + done["counts"]["validation"] == 6
    row = rows_of(tmp_path / "out")["test"][0]
    assert row["patient_id"] == "TCGA-06-5784"
    mask = np.asarray(row["mask"]) > 0
    assert mask[13, 10] and not mask[2, 2] and 140 <= mask.sum() <= 165
    assert "uclei" in row["prompt"]
    stored = load_rows(str(tmp_path / "out"), "test").cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert stored["bytes"].startswith(b"\x89PNG")  # browsers do not show tif


def test_xml_without_outlines_is_no_mask(tmp_path):
    """Boxes of PASCAL VOC beside pictures: refused as masks, left out where there are masks."""
    write_folder(tmp_path / "source", 4)
    boxes = "<annotation><object><bndbox><xmin>4</xmin></bndbox></object></annotation>"
    for path in (tmp_path / "source" / "images").glob("*.png"):
        path.with_suffix(".xml").write_text(boxes)
    done = prepare("folder", tmp_path / "source", tmp_path / "out")
    assert sum(done["counts"].values()) == 4
    assert "4 .xml files without outlines, beside masks, were left out" in done["notes"]
    shutil.rmtree(tmp_path / "source" / "masks")
    with pytest.raises(ValueError, match=r"4 unusable mask .*\.xml' cannot be read as outlines \(it has no Regions\)"):
        prepare("folder", tmp_path / "source", tmp_path / "again")
    (mask,) = read_masks("a.xml", b"<Annotations><Annotation><Regions/></Annotation></Annotations>", 2, (8, 8))
    assert not np.asarray(mask.image).any()  # somebody looked, and found nothing


def test_monuseg_in_lvit_layout_pairs_tif_with_png(tmp_path):
    for part, number in (("Train", 0), ("Train", 1), ("Val", 2), ("Test", 3)):
        image, mask = draw(number)
        folder = tmp_path / "source" / f"{part}_Folder"
        save(folder / "img" / f"TCGA-{number}.{'tif' if part == 'Test' else 'png'}", image)
        save(folder / "labelcol" / f"TCGA-{number}.png", mask)
    write_xlsx(tmp_path / "source" / "Train_text.xlsx", [("TCGA-0", "a"), ("TCGA-1.png", "b")], ("Image", "text"))
    write_xlsx(tmp_path / "source" / "Val_text.xlsx", [("TCGA-2.png", "c")])
    write_xlsx(tmp_path / "source" / "Test_text.xlsx", [("TCGA-3.png", "d")])
    done = prepare("monuseg", tmp_path / "source", tmp_path / "out", Plan(partial=True))
    assert done["counts"] == {"train": 2, "validation": 1, "test": 1}
    assert [row["prompt"] for row in rows_of(tmp_path / "out")["train"]] == ["a", "b"]


# Anyone's folder


def write_folder(folder: Path, count: int = 20) -> None:
    for number in range(count):
        image, mask = draw(number)
        save(folder / "images" / f"p{number // 4}_{number}.png", image)
        save(folder / "masks" / f"p{number // 4}_{number}_mask.png", mask)


@pytest.mark.parametrize("table", ["csv", "jsonl", "xlsx"])
def test_folder_with_sentences(tmp_path, table):
    write_folder(tmp_path / "source", 6)
    rows = [(f"p{number // 4}_{number}", f"sentence {number}") for number in range(6)]
    path = tmp_path / "source" / f"sentences.{table}"
    if table == "xlsx":
        write_xlsx(path, rows, ("file_name", "caption"))
    elif table == "csv":
        path.write_text("name,prompt\n" + "\n".join(f"{name}.png,{text}" for name, text in rows))
    else:
        path.write_text("\n".join(json.dumps({"image": name, "text": text}) for name, text in rows))
    prepare("folder", tmp_path / "source", tmp_path / "out")
    found = {row["name"]: row["prompt"] for part in rows_of(tmp_path / "out").values() for row in part}
    assert found == dict(rows)


def test_some_sentences_may_be_missing(tmp_path):
    """In anyone's folder, as all may; of a named set only where it is said."""
    write_folder(tmp_path / "source", 6)
    (tmp_path / "source" / "t.csv").write_text("name,text\n" + "".join(f"p{n // 4}_{n},x\n" for n in range(5)))
    done = prepare("folder", tmp_path / "source", tmp_path / "out")
    assert "1 rows without a sentence" in done["notes"]
    done = prepare("folder", tmp_path / "source", tmp_path / "filled", Plan(sentences="lung"))
    assert "1 sentences written from the mask" in done["notes"]
    write_qata(tmp_path / "qata")
    write_xlsx(tmp_path / "qata" / "Test_text.xlsx", [("mask_sub-S00003_ses-E7_run-1_bp-chest_vp-ap_dx.png", "x")])
    with pytest.raises(ValueError, match="1 picture without a sentence .sub-S00004"):
        prepare("qata-cov19", tmp_path / "qata", tmp_path / "named")
    done = prepare("qata-cov19", tmp_path / "qata", tmp_path / "named", Plan(partial=True))
    assert "1 rows without a sentence" in done["notes"]


def test_tables_as_other_systems_write_them(tmp_path):
    """Semicolons and blank last cells, a first row without a sentence, other slashes, an umlaut as two letters."""
    write_folder(tmp_path / "semicolons", 3)
    (tmp_path / "semicolons" / "t.csv").write_text(
        "image;text;\np0_0;left, 0,5 cm;\np0_1;right;\nimages\\p0_2.png;no;\n"
    )
    (tmp_path / "semicolons" / "~$t.xlsx").write_bytes(b"what Excel keeps beside an open table")
    write_folder(tmp_path / "lines", 3)
    rows = [{"image": "p0_0", "patient": "p"}, {"image": "p0_1", "text": "right"}, {"image": "p0_2", "text": "no"}]
    (tmp_path / "lines" / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, first in (("semicolons", "left, 0,5 cm"), ("lines", None)):
        problems = Problems()
        cases = pair_files(Source(tmp_path / name), problems, [])
        assert [case.prompt for case in cases] == [first, "right", "no"]
        assert list(problems.found) == ([] if first else ["picture without a sentence"])
    save(tmp_path / "umlaut" / "images" / "Mu\u0308ller 1.png", draw(0)[0])
    save(tmp_path / "umlaut" / "masks" / "M\u00fcller 1.png", draw(0)[1])
    (tmp_path / "umlaut" / "test.txt").write_text("M\u00fcller 1\n")
    problems = Problems()
    (case,) = pair_files(Source(tmp_path / "umlaut"), problems, [])
    assert (case.name, case.split, problems.found) == ("M\u00fcller 1", "test", {})


def test_lists_may_name_folders_and_pairs(tmp_path):
    for patient in ("anna", "ben"):
        save(tmp_path / "source" / patient / "images" / "001.png", draw(len(patient))[0])
        save(tmp_path / "source" / patient / "masks" / "001.png", draw(len(patient))[1])
    (tmp_path / "source" / "train.txt").write_text("anna/images/001.png anna/masks/001.png\n")
    (tmp_path / "source" / "test.txt").write_text("ben\\images\\001.png\n")
    problems = Problems()
    cases = pair_files(Source(tmp_path / "source"), problems, [])
    assert {case.name: case.split for case in cases} == {"anna/001": "train", "ben/001": "test"}
    assert not problems.found
    (tmp_path / "source" / "val.txt").write_bytes("Müller\n".encode("latin-1"))
    with pytest.raises(ValueError, match="'val.txt' is no list in UTF-8"):
        pair_files(Source(tmp_path / "source"), problems, [])


def test_few_patients_fill_all_splits(tmp_path):
    write_folder(tmp_path / "source", 12)  # three patients of four pictures, where 10 % are one picture
    done = prepare("folder", tmp_path / "source", tmp_path / "out", Plan(patient_pattern=r"^(p\d+)_"))
    assert done["counts"] == {"train": 4, "validation": 4, "test": 4}
    assert any("test got the smallest group, 4 of 12 pictures" in note for note in done["notes"])
    write_folder(tmp_path / "two", 8)
    done = prepare("folder", tmp_path / "two", tmp_path / "2", Plan(patient_pattern=r"^(p\d+)_"))
    assert done["counts"] == {"train": 4, "validation": 4}
    assert any("test got none" in note for note in done["notes"])


def test_a_pattern_finds_patients_that_are_folders(tmp_path):
    for number in range(4):
        for kind, picture in zip(("images", "masks"), draw(number), strict=True):
            save(tmp_path / "source" / f"patient_{number // 2:02}" / kind / f"IMG_{number}.png", picture)
    prepare("folder", tmp_path / "source", tmp_path / "out", Plan(patient_pattern=r"(patient_\d+)"))
    rows = [row for part in rows_of(tmp_path / "out").values() for row in part]
    patients = {row["name"]: row["patient_id"] for row in rows}
    assert patients == {f"IMG_{number}": f"patient_{number // 2:02}" for number in range(4)}


def test_a_pattern_leaves_other_patients_as_they_are(tmp_path):
    write_folder(tmp_path / "source", 4)
    save(tmp_path / "source" / "images" / "scan.png", draw(9)[0])
    save(tmp_path / "source" / "masks" / "scan.png", draw(9)[1])
    (tmp_path / "source" / "t.csv").write_text("image,patient_id\nscan,p7\n")
    prepare("folder", tmp_path / "source", tmp_path / "out", Plan(patient_pattern=r"^(p\d+)_"))
    rows = [row for part in rows_of(tmp_path / "out").values() for row in part]
    assert {row["name"]: row["patient_id"] for row in rows}["scan"] == "p7"


def test_folder_split_by_patient(tmp_path):
    write_folder(tmp_path / "source")
    plan = Plan(patient_pattern=r"^(p\d+)_", split_by="patient", seed=3)
    done = prepare("folder", tmp_path / "source", tmp_path / "out", plan)
    assert sum(done["counts"].values()) == 20
    assert all(pair["shared"] == 0 for pair in done["leaks"]["pairs"] if pair["kind"] == "patient")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "seed 3" in card and "--patient-pattern" in card and str(tmp_path) not in card
    assert fingerprint(load_rows(str(tmp_path / "out"), "train")) in card
    with pytest.raises(ValueError, match="is found in no name and no path, the first is 'images/p0_0.png'"):
        prepare("folder", tmp_path / "source", tmp_path / "again", Plan(patient_pattern="^(x)"))
    with pytest.raises(ValueError, match="no study is known of any picture"):
        prepare("folder", tmp_path / "source", tmp_path / "again", Plan(split_by="study"))


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"patient_pattern": "p[0-9]+"}, "has no group"),
        ({"patient_pattern": "(p"}, "is no regular expression"),
        ({"sentences": "heart"}, "no style 'heart'"),
        ({"split_by": "weekday"}, "by patient, study, look, not by 'weekday'"),
    ],
)
def test_wishes_that_cannot_be_met(wish, words):
    with pytest.raises(ValueError, match=words):
        Plan(**wish)


def test_flat_folder_of_several_classes(tmp_path, capsys):
    for number in range(4):
        image, _ = draw(number)
        ids = np.random.default_rng(number).integers(0, 4, (SIZE[1], SIZE[0])).astype(np.uint8)
        save(tmp_path / "source" / f"scan{number}.png", image)
        save(tmp_path / "source" / f"scan{number}_mask.png", Image.fromarray(ids))
    prepare("folder", tmp_path / "source", tmp_path / "out", Plan(num_labels=4))
    assert set(np.unique(rows_of(tmp_path / "out")["train"][0]["mask"])) == {0, 1, 2, 3}
    words = ["--source", str(tmp_path / "source"), "--output", str(tmp_path / "again"), "--num-labels", "4"]
    assert main(["data", "prepare", "folder", *words]) == 0
    assert """--model_config '{"num_labels": 4}'""" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no class ids: .* \(num_labels is given by --num-labels\)\."):
        prepare("folder", tmp_path / "source", tmp_path / "two")


def test_repeated_names_in_patient_folders(tmp_path):
    for patient in ("anna", "ben"):
        image, mask = draw(len(patient))
        save(tmp_path / "source" / patient / "images" / "001.png", image)
        save(tmp_path / "source" / patient / "masks" / "001.png", mask)
    cases = pair_files(Source(tmp_path / "source"), Problems(), [])
    assert [(case.name, case.masks) for case in cases] == [
        ("anna/001", ["anna/masks/001.png"]),
        ("ben/001", ["ben/masks/001.png"]),
    ]


def test_repeated_names_in_numbered_folders(tmp_path):
    for scan in ("scan01", "scan02"):
        save(tmp_path / "source" / scan / "images" / "001.png", draw(0)[0])
        save(tmp_path / "source" / scan / "masks" / "001.png", draw(0)[1])
    problems = Problems()
    cases = pair_files(Source(tmp_path / "source"), problems, [])
    assert [(case.name, case.masks) for case in cases] == [
        ("01/001", ["scan01/masks/001.png"]),
        ("02/001", ["scan02/masks/001.png"]),
    ]
    assert not problems.found


def test_numbers_that_begin_anew_in_each_split(tmp_path):
    for number, split in enumerate(("train", "validation", "test")):
        for kind, picture in zip(("images", "masks"), draw(number), strict=True):
            save(tmp_path / "source" / split / kind / "0001.png", picture)
        (tmp_path / "source" / split / "t.csv").write_text(f"name,text\n0001.png,{split}\n")
    done = prepare("folder", tmp_path / "source", tmp_path / "out")
    assert "names repeat between the splits, so that each begins with its split" in done["notes"]
    for split, (row,) in rows_of(tmp_path / "out").items():
        assert (row["name"], row["prompt"]) == (f"{split}/0001", split)


def write_busi(folder: Path) -> None:
    """As from its owners: a folder for each kind, masks beside pictures, some with a second or third mask."""
    for kind, count in (("benign", 12), ("malignant", 6), ("normal", 4)):
        for number in range(1, count + 1):
            image, mask = draw(number + 100 * len(kind))
            place = folder / "Dataset_BUSI_with_GT" / kind
            save(place / f"{kind} ({number}).png", image)
            save(place / f"{kind} ({number})_mask.png", mask if kind != "normal" else Image.new("L", SIZE, 0))
    for extra, box in (("_mask_1", [0, 0, 2, 2]), ("_mask_2", [36, 28, 39, 31])):
        part = Image.new("1", SIZE, 0)
        ImageDraw.Draw(part).rectangle(box, fill=1)
        save(folder / "Dataset_BUSI_with_GT" / "benign" / f"benign (4){extra}.png", part)


def test_numbered_masks_are_one_target(tmp_path):
    write_busi(tmp_path / "source")
    done = prepare("folder", tmp_path / "source", tmp_path / "out")
    assert sum(done["counts"].values()) == 22
    assert "pictures with several masks: 1 (3 masks); the target is their union" in done["notes"]
    masks = {row["name"]: np.asarray(row["mask"]) > 0 for part in rows_of(tmp_path / "out").values() for row in part}
    expected = np.asarray(draw(604)[1]) > 0
    expected[:3, :3] = expected[28:, 36:] = True
    np.testing.assert_array_equal(masks["benign (4)"], expected)
    assert not masks["normal (1)"].any()
    assert "1 (3 masks)" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ValueError, match="1 picture with several masks, which only sets of two classes"):
        prepare("folder", tmp_path / "source", tmp_path / "more", Plan(num_labels=3))


def test_what_united_masks_leave_open_is_ignored(tmp_path):
    parts = [np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.uint8)]
    parts[0][0], parts[1][0] = (1, 255, 255), (0, 1, 0)
    for number, part in enumerate(parts):
        save(tmp_path / "source" / f"a_mask_{number}.png", Image.fromarray(part))
    save(tmp_path / "source" / "a.png", Image.new("L", (3, 2)))
    prepare("folder", tmp_path / "source", tmp_path / "out")
    assert np.asarray(rows_of(tmp_path / "out")["train"][0]["mask"]).tolist() == [[1, 1, 255], [0, 0, 0]]


def test_split_by_look_keeps_alike_pictures_together(tmp_path):
    """Picture 0 was saved again for three other patients, and one without; nobody else looks alike."""
    for number in range(30):
        image, mask = draw(0 if number in (8, 13, 18) else number)
        image = image.point(lambda value: min(255, value + 2)) if number == 13 else image
        save(tmp_path / "source" / "images" / f"p{number // 2}_{number}.png", image)
        save(tmp_path / "source" / "masks" / f"p{number // 2}_{number}.png", mask)
    for name, drawn_as in (("unknown_0", 0), ("unknown_1", 99)):
        save(tmp_path / "source" / "images" / f"{name}.png", draw(drawn_as)[0])
        save(tmp_path / "source" / "masks" / f"{name}.png", draw(drawn_as)[1])
    by = {
        way: prepare("folder", tmp_path / "source", tmp_path / way, Plan(patient_pattern=r"^(p\d+)_", split_by=way))
        for way in ("patient", "look")
    }
    shared = {
        way: {kind: sum(p["shared"] for p in done["leaks"]["pairs"] if p["kind"] == kind) for kind in LOOKED_AT}
        for way, done in by.items()
    }
    assert shared["patient"]["patient"] == 0 < shared["patient"]["near picture"]
    assert set(shared["look"].values()) == {0}
    assert all(by["look"]["counts"].values())
    assert any("the largest of 9" in note for note in by["look"]["notes"])  # four patients of two, and the unknown one
    assert any("look with seed 0; 1 pictures of unknown patient stay in train" in note for note in by["look"]["notes"])


LOOKED_AT = ("patient", "picture", "near picture")


def write_dicom(
    path: Path, hounsfield: np.ndarray, patient: str, window: tuple[int, int] | None, bits: int = 16, **fields
) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = generate_uid()
    header.PatientID, header.StudyInstanceUID = patient, "1.2.3"
    header.Rows, header.Columns = hounsfield.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = bits
    header.HighBit, header.PixelRepresentation = bits - 1, 0
    header.RescaleSlope, header.RescaleIntercept = 1, -1024
    header.PixelSpacing = [0.7, 0.5]
    if window:
        header.WindowCenter, header.WindowWidth = window
    header.PixelData = (hounsfield + 1024).astype(f"<u{bits // 8}").tobytes()
    for name, value in fields.items():
        setattr(header, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)


def test_dicom_is_windowed_and_keeps_its_spacing(tmp_path):
    ramp = np.tile(np.linspace(-1400, 400, SIZE[0]).round(), (SIZE[1], 1)).astype(int).clip(-1024)
    for number in range(3):
        write_dicom(tmp_path / "source" / "images" / f"s{number}.dcm", ramp, f"patient{number}", (-600, 1500))
        save(tmp_path / "source" / "masks" / f"s{number}.png", draw(number)[1])
    prepare("folder", tmp_path / "source", tmp_path / "out")
    rows = datasets.load_dataset("parquet", data_files=str(tmp_path / "out" / "train-*.parquet"), split="train")
    assert rows[0]["spacing"] == pytest.approx([0.7, 0.5]) and rows[0]["patient_id"].startswith("patient")
    shown = np.asarray(rows[0]["image"])[0].astype(int)
    expected = np.clip((ramp[0] + 1350) / 1500 * 255, 0, 255)
    assert np.abs(shown - expected).max() <= 1
    done = prepare("folder", tmp_path / "source", tmp_path / "narrow", Plan(window=(0, 100)))
    narrow = datasets.load_dataset("parquet", data_files=str(tmp_path / "narrow" / "train-*.parquet"), split="train")
    assert (np.asarray(narrow[0]["image"])[0] == 0).sum() > (shown == 0).sum()
    assert "--window=0,100" in (tmp_path / "narrow" / "README.md").read_text()
    assert "validation got the smallest group, 1 of 3 pictures" in done["notes"][0]


@pytest.mark.parametrize(
    ("slope", "intercept", "shown"),
    [(1, 0, lambda v: v), (1, 55, lambda v: v + 55), (1, -10, None), (0.01, 0, None), (2, 0, None)],
)
def test_dicom_of_8_bits_may_be_rescaled_out_of_them(tmp_path, slope, intercept, shown):
    stored = np.tile(np.arange(0, 200, 5), (SIZE[1], 1))
    fields = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    write_dicom(tmp_path / "s.dcm", stored - 1024, "p", None, bits=8, **fields)
    content = (tmp_path / "s.dcm").read_bytes()
    if shown is None:
        with pytest.raises(ValueError, match="^holds more than 8 bits"):
            read_images("s.dcm", content)
        (one,) = read_images("s.dcm", content, (100 * slope + intercept, 200 * slope))
        assert (np.diff(np.asarray(one.image)[0].astype(int)) > 0).all()
    else:
        np.testing.assert_array_equal(np.asarray(read_images("s.dcm", content)[0].image), shown(stored))


def test_dicom_of_a_palette_is_refused(tmp_path):
    write_dicom(
        tmp_path / "s.dcm", np.full((4, 4), -1023), "p", None, bits=8, PhotometricInterpretation="PALETTE COLOR"
    )
    with pytest.raises(ValueError, match="^holds numbers of colours in a palette: export it as RGB"):
        read_images("s.dcm", (tmp_path / "s.dcm").read_bytes())


def test_colour_dicom(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3))
    fields = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    for bits, factor in ((8, 1), (16, 200)):
        content = (factor * pixels).astype(f"<u{bits // 8}").tobytes()
        fields |= {"PixelData": content, "RescaleIntercept": 0}
        write_dicom(tmp_path / f"{bits}.dcm", np.zeros((4, 5)), "p", None, bits, **fields)
    (one,) = read_images("s.dcm", (tmp_path / "8.dcm").read_bytes())
    np.testing.assert_array_equal(np.asarray(one.image), pixels)
    with pytest.raises(ValueError, match="^holds more than 8 bits"):
        read_images("s.dcm", (tmp_path / "16.dcm").read_bytes())
    (one,) = read_images("s.dcm", (tmp_path / "16.dcm").read_bytes(), window=(100 * 255, 200 * 255))
    np.testing.assert_allclose(np.asarray(one.image), pixels, atol=1)


def test_dicom_with_an_empty_window(tmp_path):
    """Some exports leave its value blank."""
    fields = {"WindowCenter": None, "WindowWidth": None}
    write_dicom(tmp_path / "s.dcm", np.full((4, 5), 100), "p", None, **fields)
    content = (tmp_path / "s.dcm").read_bytes()
    with pytest.raises(ValueError, match="^holds more than 8 bits"):
        read_images("s.dcm", content)
    (one,) = read_images("s.dcm", content, window=(100.0, 200.0))
    assert set(np.unique(one.image)) == {128}


def test_compressed_dicom(tmp_path):
    """RLE needs nothing more; JPEG-LS does, and it is said what."""
    from pydicom import dcmread
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGLSLossless, RLELossless

    ramp = np.tile(np.linspace(-1024, 400, SIZE[0]).round(), (SIZE[1], 1)).astype(int)
    for name in ("plain", "rle"):
        write_dicom(tmp_path / "source" / "images" / f"{name}.dcm", ramp, name, (-600, 1500))
        save(tmp_path / "source" / "masks" / f"{name}.png", draw(0)[1])
    path = tmp_path / "source" / "images" / "rle.dcm"
    header = dcmread(path)
    header.compress(RLELossless)
    header.save_as(path)
    prepare("folder", tmp_path / "source", tmp_path / "out")
    pictures = [np.asarray(row["image"]) for part in rows_of(tmp_path / "out").values() for row in part]
    np.testing.assert_array_equal(*pictures)
    header.file_meta.TransferSyntaxUID, header.PixelData = JPEGLSLossless, encapsulate([b"\xff\xd8 no decoder"])
    header.save_as(path)
    words = r"rle.dcm' .*it is compressed as JPEG-LS Lossless.* pip install pylibjpeg pylibjpeg-libjpeg"
    with pytest.raises(ValueError, match=words):
        prepare("folder", tmp_path / "source", tmp_path / "again")


def test_nifti_volume_becomes_slices(tmp_path):
    import nibabel

    width, height, depth = 20, 16, 3
    volume = np.zeros((width, height, depth), dtype=np.int16)
    volume[15:, 10:, 1] = 1000  # to the patient's right and front in canonical axes: shown at the upper left
    affine = np.diag([0.5, 0.7, 5.0, 1.0])
    for folder, values, suffix in (("imagesTr", volume, ".nii.gz"), ("labelsTr", volume // 1000, ".nii.gz")):
        (tmp_path / "source" / folder).mkdir(parents=True)
        nibabel.save(
            nibabel.Nifti1Image(values.astype(np.int16), affine), tmp_path / "source" / folder / f"ct{suffix}"
        )
    with pytest.raises(ValueError, match="more than 8 bits"):
        prepare("folder", tmp_path / "source", tmp_path / "out")
    done = prepare("folder", tmp_path / "source", tmp_path / "out", Plan(window=(500, 1000)))
    assert done["counts"] == {"train": 3}
    rows = datasets.load_dataset("parquet", data_files=str(tmp_path / "out" / "train-*.parquet"), split="train")
    assert [row["name"] for row in rows] == ["ct_0000", "ct_0001", "ct_0002"]
    assert rows[1]["spacing"] == pytest.approx([0.7, 0.5])
    image, mask = np.asarray(rows[1]["image"]), np.asarray(rows[1]["mask"])
    assert image.shape == mask.shape == (height, width)
    assert image[0, 0] == 255 and image[-1, -1] == 0 and mask[0, 0] == 1 and mask[-1, -1] == 0
    assert {row["study_id"] for row in rows} == {"ct"}


def test_a_mask_elsewhere_in_space_than_its_picture_is_refused(tmp_path):
    """The same voxels under another affine would be shown mirrored; less than half a voxel is rounding."""
    import nibabel

    def save_volume(folder: str, affine: np.ndarray, flip: int = 1) -> None:
        (tmp_path / "source" / folder).mkdir(parents=True, exist_ok=True)
        volume = np.zeros((20, 16, 3), np.uint8)
        volume[15:, 10:, 1] = 1
        nibabel.save(nibabel.Nifti1Image(volume[::flip], affine), tmp_path / "source" / folder / "ct.nii.gz")

    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    save_volume("images", lps)
    save_volume("labels", np.eye(4))
    with pytest.raises(ValueError, match="1 mask that lies elsewhere in space .* whose affine it must be saved"):
        prepare("folder", tmp_path / "source", tmp_path / "out")
    turned = lps.copy()  # the same place, told from the other end
    turned[0, [0, 3]] = 1, -19.3
    save_volume("labels", turned, flip=-1)
    assert prepare("folder", tmp_path / "source", tmp_path / "out")["counts"] == {"train": 3}
    row = rows_of(tmp_path / "out")["train"][1]
    np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(row["mask"]))


def test_classes_of_a_volume_are_those_of_all_its_slices():
    import nibabel

    def read(*values: int) -> list[list[int]]:
        volume = np.zeros((5, 4, len(values)), np.uint8)
        volume[0] = values
        masks = read_masks("m.nii", nibabel.Nifti1Image(volume, np.eye(4)).to_bytes(), 2, (5, 4))
        return [np.unique(np.asarray(mask.image)).tolist() for mask in masks]

    assert read(1, 255, 0) == [[0, 1], [0, 255], [0]]  # a 1 is there: 255 is to be ignored
    assert read(255, 0, 255) == [[0, 1], [0], [0, 1]]


def test_damaged_volumes_and_outlines_get_one_sentence():
    import nibabel

    def volume(kind=np.int16, **fields) -> bytes:
        image = nibabel.Nifti1Image(np.zeros((4, 4, 2), kind), np.eye(4))
        for name, value in fields.items():
            image.header[name] = value
        return image.to_bytes()

    whole = volume()
    assert len(read_images("ct.nii", whole, (0, 100))) == 2
    for content in (whole[:-8], whole[:200], whole[:40] + b"\xff" * 16 + whole[56:], volume(np.complex64)):
        for name, packed in (("ct.nii", content), ("ct.nii.gz", gzip.compress(content))):
            with pytest.raises(ValueError, match="^(cannot be read as NIfTI|holds no picture) [^\n]*: save it again"):
                read_images(name, packed, (0, 100))
    written = io.BytesIO()
    pydicom.dcmwrite(written, pydicom.Dataset(), implicit_vr=True, little_endian=True)
    for content in (b"", b"words", bytes(128) + b"DICM", bytes(128) + b"DICM" + written.getvalue()):
        assert dicom_identity(content) == (None, None)
        with pytest.raises(ValueError, match="^cannot be read as DICOM [^\n]*: export it"):
            read_images("s.dcm", content)
    outline = '<A><Region><Vertex X="%s" Y="1"/><Vertex X="2" Y="2"/><Vertex X="3" Y="1"/></Region></A>'
    for number in ("x", "", "inf", "nan"):
        with pytest.raises(ValueError, match="^cannot be read as outlines"):
            read_masks("a.xml", (outline % number).encode(), 2, (8, 8))


def test_a_nifti_file_takes_no_more_memory_than_it_holds(monkeypatch):
    import nibabel

    packed = gzip.compress(nibabel.Nifti1Image(np.zeros((4, 4, 2), np.uint8), np.eye(4)).to_bytes())
    tracemalloc.start()
    read_images("ct.nii.gz", packed)
    assert tracemalloc.get_traced_memory()[1] < 50e6  # once 2 GiB were set aside for each
    tracemalloc.stop()


def test_training_reads_what_was_prepared(tmp_path):
    from processing.data import SegmentationDataset
    from processing.image_processing_tamiseg import TAMISegImageProcessor

    write_folder(tmp_path / "source")
    prepare("folder", tmp_path / "source", tmp_path / "out", Plan(sentences="lung"))
    rows = load_rows(str(tmp_path / "out"), "validation")
    item = SegmentationDataset(rows, TAMISegImageProcessor(size={"height": 32, "width": 32}))[0]
    assert item["labels"].max() == 1 and "lung" in item["prompt"]


# Mistakes


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


MISTAKES = {
    "mask of another size": (
        lambda s: save(s / "masks" / "p0_0_mask.png", draw(0, (30, 32))[1]),
        "1 mask of another size than its picture (p0_0: 40x32 and 30x32)",
    ),
    "duplicate name": (
        lambda s: save(s / "images" / "p0_0.jpg", draw(0)[0]),
        "1 double picture (images/p0_0.jpg and images/p0_0.png)",
    ),
    "missing mask": (lambda s: (s / "masks" / "p0_0_mask.png").unlink(), "1 picture without a mask (p0_0)"),
    "missing picture": (lambda s: (s / "images" / "p0_0.png").unlink(), "1 mask without a picture (p0_0)"),
    "empty picture": (lambda s: (s / "images" / "p0_0.png").write_bytes(b""), "'images/p0_0.png' is empty"),
    "broken picture": (lambda s: truncate(s / "images" / "p0_0.png"), "'images/p0_0.png' cannot be decoded"),
    "16-bit slice": (
        lambda s: save(s / "images" / "p0_0.png", Image.fromarray(np.full((SIZE[1], SIZE[0]), 2000, dtype=np.uint16))),
        "'images/p0_0.png' holds more than 8 bits: say how they become grey with --window=CENTER,WIDTH",
    ),
    "16-bit CT slice": (
        lambda s: (
            write_dicom(s / "images" / "ct.dcm", np.zeros((SIZE[1], SIZE[0]), dtype=int), "p9", None)
            or save(s / "masks" / "ct.png", draw(0)[1])
        ),
        "'images/ct.dcm' holds more than 8 bits: say how they become grey with --window=CENTER,WIDTH",
    ),
    "double mask": (
        lambda s: save(s / "masks" / "p0_0.png", draw(0)[1]),
        "1 double mask (masks/p0_0.png and masks/p0_0_mask.png)",
    ),
    "sentence for nobody": (
        lambda s: (s / "t.csv").write_text("name,text\n" + "".join(f"p{n // 4}_{n},x\n" for n in range(7))),
        "1 name in a table or list without a picture (p1_6)",
    ),
    "name in two lists": (
        lambda s: [(s / f"{split}.txt").write_text("p0_0\np0_1") for split in ("train", "test")],
        "2 name in the lists of two splits (p0_0; p0_1)",
    ),
    "missing column": (
        lambda s: write_xlsx(s / "t.xlsx", [("p0_0", "x")], ("Image", "Remarks")),
        "'t.xlsx' has no column of sentences (Description or text), it has Image, Remarks",
    ),
    "metadata that needs no preparing": (
        lambda s: (s / "metadata.jsonl").write_text('{"image_file_name": "a", "mask_file_name": "b", "prompt": "c"}'),
        "'metadata.jsonl' pairs pictures and masks itself: train_hf.py takes its folder as --dataset as it is",
    ),
    "missing name column": (
        lambda s: write_xlsx(s / "t.xlsx", [("p0_0", "x")], ("Who", "text")),
        "'t.xlsx' has no column of file names (Image), it has Who, text",
    ),
    "table without sentences": (
        lambda s: (s / "t.csv").write_text("name,remark\np0_0,x\n"),
        "'t.csv' has no column of sentences (Description or text), it has name, remark",
    ),
    "sentence with a comma": (
        lambda s: (s / "t.csv").write_text("name,text\np0_0,infection, two areas\n"),
        "'t.csv' cannot be read as a table (line 2 has more cells than the head; sentences that hold ',' stand in",
    ),
    "red JPEG mask": (
        lambda s: (
            (s / "masks" / "p0_0_mask.png").unlink()
            or save(s / "masks" / "p0_0_mask.jpg", Image.merge("RGB", (draw(0)[1], *[Image.new("L", SIZE)] * 2)))
        ),
        "the mask is coloured",
    ),
    "JPEG mask of class ids": (
        lambda s: (
            (s / "masks" / "p0_0_mask.png").unlink()
            or save(s / "masks" / "p0_0_mask.jpg", draw(0)[1].point(lambda value: 40 * (value > 0)))
        ),
        "which are no class ids",
    ),
    "stack of pictures": (
        lambda s: (
            (s / "images" / "p0_0.png").unlink()
            or save(
                s / "images" / "p0_0.tif",
                Image.fromarray(np.full((SIZE[1], SIZE[0]), 2000, dtype=np.uint16)),
                save_all=True,
                append_images=[Image.fromarray(np.full((SIZE[1], SIZE[0]), 9, dtype=np.uint16))],
            )
        ),
        "is a stack of 2 pictures: save each as a file of its own",
    ),
    "GIF masks": (
        lambda s: [
            save(path.with_suffix(".gif"), Image.open(path)) or path.unlink() for path in (s / "masks").glob("*.png")
        ],
        "holds pictures but no masks: put them into a folder 'masks', or name them like 'scan_mask.png' (GIF is not",
    ),
    "sheet of broken XML": (
        lambda s: spoil_sheet(s / "t.xlsx"),
        "'t.xlsx' cannot be read as a table (",
    ),
    "table that is none": (lambda s: (s / "t.xlsx").write_bytes(b"words"), "'t.xlsx' cannot be read as a table"),
    "zip that is none": (lambda s: (s / "more.zip").write_bytes(b"PK words"), "is no whole zip archive"),
}


def spoil_sheet(path: Path) -> None:
    write_xlsx(path, [("p0_0", "x")])
    with zipfile.ZipFile(path) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    with zipfile.ZipFile(path, "w") as book:
        for name, content in parts.items():
            book.writestr(name, content[: len(content) // 2] if "sheet1" in name else content)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_gets_its_sentence(tmp_path, capsys, mistake):
    spoil, expected = MISTAKES[mistake]
    write_folder(tmp_path / "source", 6)
    spoil(tmp_path / "source")
    assert (
        main(["data", "prepare", "folder", "--source", str(tmp_path / "source"), "--output", str(tmp_path / "o")]) == 2
    )
    said = capsys.readouterr().err
    assert expected in said and said.count("tamiseg:") == 1 and "Traceback" not in said
    assert {path.name for path in tmp_path.iterdir()} <= {"source", "cache", "o.problems.txt"}


def test_all_problems_are_listed(tmp_path):
    write_folder(tmp_path / "source", 12)
    for number in range(5):
        (tmp_path / "source" / "masks" / f"p{number // 4}_{number}_mask.png").unlink()
    (tmp_path / "source" / "images" / "p2_11.png").write_bytes(b"")
    with pytest.raises(ValueError, match="5 picture without a mask .* and 2 more.*1 unusable picture"):
        prepare("folder", tmp_path / "source", tmp_path / "out")
    assert len((tmp_path / "out.problems.txt").read_text().splitlines()) == 6


def test_nothing_there(tmp_path):
    (tmp_path / "empty").mkdir()
    for source, words in ((tmp_path / "empty", "holds no files"), (tmp_path / "nowhere", "there is no folder")):
        with pytest.raises(ValueError, match=words):
            prepare("folder", source, tmp_path / "out")
    save(tmp_path / "bare" / "a.png", draw(0)[0])
    with pytest.raises(ValueError, match="pictures but no masks"):
        prepare("folder", tmp_path / "bare", tmp_path / "out")
    with pytest.raises(ValueError, match="there is no data set 'qata'"):
        prepare("qata", tmp_path / "bare", tmp_path / "out")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there already"):
        prepare("folder", tmp_path / "bare", tmp_path / "there")
    assert (tmp_path / "there" / "precious.txt").read_text() == "mine"


def test_linked_folders_are_read_and_links_back_up_are_not(tmp_path):
    write_folder(tmp_path / "elsewhere", 4)
    (tmp_path / "source").mkdir()
    for name in ("images", "masks"):
        (tmp_path / "source" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "elsewhere" / "images" / "up").symlink_to(tmp_path / "elsewhere" / "images")
    (tmp_path / "source" / "all").symlink_to(tmp_path / "source")
    source = Source(tmp_path / "source")
    assert len(source.paths) == 8 and "images/p0_3.png" in source.paths
    (tmp_path / "source" / "more").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="more' is a link to what is not there: mend it"):
        Source(tmp_path / "source")


# Archives


def one_zip(folder: Path, *members) -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for member, content in members:
            file.writestr(member, content)
    return folder


def test_zip_is_read_in_place(tmp_path):
    write_folder(tmp_path / "tree", 6)
    (tmp_path / "tree" / "__MACOSX").mkdir()
    (tmp_path / "tree" / "__MACOSX" / "._p0_0.png").write_bytes(b"junk")
    (tmp_path / "source").mkdir()
    zip_folder(tmp_path / "tree", tmp_path / "source" / "set.zip")
    done = prepare("folder", tmp_path / "source" / "set.zip", tmp_path / "out")
    assert sum(done["counts"].values()) == 6
    assert [path.name for path in (tmp_path / "source").iterdir()] == ["set.zip"]


def test_broken_member(tmp_path):
    folder = one_zip(tmp_path / "s", ("images/a.png", bytes(range(256)) * 8), ("masks/a.png", b"x"))
    content = bytearray((folder / "set.zip").read_bytes())
    content[60:90] = bytes(30)
    (folder / "set.zip").write_bytes(bytes(content))
    with pytest.raises(ValueError, match="is broken .*download it again"):
        Source(folder).read("set/images/a.png")


def test_archives_that_are_not_trusted(tmp_path):
    link = zipfile.ZipInfo("images/a.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    for member, content, words in (
        ("../../evil.png", b"x", "outside of itself"),
        ("/etc/evil.png", b"x", "outside of itself"),
        (link, b"/etc/passwd", "is a link"),
        ("bomb.png", bytes(70 * 1024**2), "would grow to"),
    ):
        with pytest.raises(ValueError, match=words):
            Source(one_zip(tmp_path / "s", (member, content)))


def test_facts_are_printed(capsys):
    assert main(["data", "list"]) == 0
    said = capsys.readouterr().out
    for named in NAMED_SETS.values():
        assert named.title in said and named.licence in said and named.citation in said and named.obtain in said
    assert "Nothing is downloaded" in said


def test_prepare_prints_counts_leaks_and_the_next_command(tmp_path, capsys):
    write_kvasir(tmp_path / "source")
    words = ["--source", str(tmp_path / "source"), "--output", str(tmp_path / "out"), "--partial"]
    assert main(["data", "prepare", "kvasir-seg", *words, "--num_labels", "2", "--split_by", "patient"]) == 2
    assert "no patient is known of any picture" in capsys.readouterr().err
    assert main(["data", "prepare", "kvasir-seg", *words]) == 0
    said = capsys.readouterr().out
    assert "train 7, validation 1, test 2" in said and "research and education only" in said
    assert "| near picture |" in said and f"--dataset {tmp_path / 'out'}" in said
    with pytest.raises(SystemExit):
        main(["data", "prepare", "kvasir-seg", *words, "--window=wide"])
    assert "write CENTER,WIDTH or auto" in capsys.readouterr().err


def test_window_of_the_message_is_taken_as_it_stands(tmp_path):
    write_dicom(tmp_path / "source" / "images" / "s.dcm", np.zeros((SIZE[1], SIZE[0]), dtype=int), "p", None)
    save(tmp_path / "source" / "masks" / "s.png", draw(0)[1])
    (wish,) = re.findall(r"CT lung: (\S+),", NEEDS_WINDOW)
    where = ["--source", str(tmp_path / "source"), "--output", str(tmp_path / "out")]
    assert main(["data", "prepare", "folder", *where, wish]) == 0
    assert f"{wish}`" in (tmp_path / "out" / "README.md").read_text()
