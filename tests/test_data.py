# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows from every source, a plain sentence for every mistake, and items that do not depend on who draws them."""

from __future__ import annotations

import errno
import io
import json

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader

from processing.augmentation import ConsistencyPerturbation, JointAugmentation
from processing.data import (
    SegmentationDataset,
    StreamedSegmentationDataset,
    collate,
    column,
    fingerprint,
    limit_labels,
    load_rows,
    read_row,
    stream_rows,
)
from processing.image_processing_tamiseg import TAMISegImageProcessor


SIDE = {"height": 32, "width": 48}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def draw(index: int, size: tuple[int, int] = (40, 30)) -> tuple[Image.Image, Image.Image]:
    """A white square on a grey that tells the row, and its mask in {0, 255}."""
    image, mask = Image.new("RGB", size, (20 + index, 40, 60)), Image.new("L", size, 0)
    box = [4, 5, 4 + 12, 5 + 9]
    ImageDraw.Draw(image).rectangle(box, fill=(255, 255, 255))
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return image, mask


def drawn_rows(count: int) -> list[dict]:
    rows = []
    for index in range(count):
        image, mask = draw(index)
        rows.append({"image": image, "mask": mask, "prompt": f"left {index}", "name": f"n{index}", "patient_id": None})
    return rows


def encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def table(count: int = 6, mask: str = "mask", **columns) -> datasets.Dataset:
    """Encoded pictures with file names, as a data set on the Hub holds them."""
    pictures = [draw(index) for index in range(count)]
    content = {
        "image": [{"bytes": encode(image), "path": f"scan_{index}.png"} for index, (image, _) in enumerate(pictures)],
        mask: [{"bytes": encode(picture), "path": None} for _, picture in pictures],
    }
    features = {"image": datasets.Image(), mask: datasets.Image()}
    data = datasets.Dataset.from_dict(content, features=datasets.Features(features))
    for name, values in columns.items():
        data = data.add_column(name, values)
    return data


def write_parquet(folder, split: str, data: datasets.Dataset):
    folder.mkdir(exist_ok=True)
    data.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def write_image_folder(folder, split: str = "train", count: int = 4) -> list[dict]:
    (folder / split / "masks").mkdir(parents=True)
    entries = []
    for index in range(count):
        image, mask = draw(index)
        image.save(folder / split / f"scan_{index}.png")
        mask.save(folder / split / "masks" / f"{index}.png")
        entries.append({"image_file_name": f"scan_{index}.png", "mask_file_name": f"masks/{index}.png"})
    write_metadata(folder, entries, split)
    return entries


def write_metadata(folder, entries: list[dict], split: str = "train"):
    (folder / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n")


def processor() -> TAMISegImageProcessor:
    return TAMISegImageProcessor(size=SIDE)


# Sources


def check_row(row: dict, index: int, name: str):
    image, mask = draw(index)
    assert set(row) == {"image", "mask", "prompt", "name", "patient_id"}
    np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(image))
    np.testing.assert_array_equal(np.asarray(row["mask"]), np.asarray(mask))
    assert row["name"] == name


def test_builtin_sample():
    rows = load_rows("builtin", "train", max_rows=3)
    assert len(rows) == 3
    item = SegmentationDataset(rows, processor())[0]
    assert item["pixel_values"].shape == (3, 32, 48) and item["labels"].shape == (32, 48)


def test_parquet_folder(tmp_path):
    write_parquet(tmp_path / "p", "train", table(6, prompt=[f"left {index}" for index in range(6)]))
    source = write_parquet(tmp_path / "p", "validation", table(2))
    rows = load_rows(source, "train")
    assert len(rows) == 6
    check_row(rows[2], 2, "scan_2")
    assert rows[2]["prompt"] == "left 2" and rows[2]["patient_id"] is None
    assert len(load_rows(source, "val")) == 2


def test_parquet_in_a_linked_folder(tmp_path):
    write_parquet(tmp_path / "elsewhere", "train", table(2))
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "data").symlink_to(tmp_path / "elsewhere")
    assert len(load_rows(str(tmp_path / "p"), "train")) == stream_rows(str(tmp_path / "p"), "train")[1] == 2


def test_configurations_in_folders_are_not_mixed(tmp_path):
    """A data set of the Hub, downloaded as it lies there."""
    (tmp_path / "p").mkdir()
    for place in ("ct", "mri"):
        write_parquet(tmp_path / "p" / place, "train", table(2))
    write_parquet(tmp_path / "p" / "mri", "test", table(3))
    for open_rows in (load_rows, stream_rows):
        with pytest.raises(ValueError, match="'train' in several folders: give one of '.*/p/ct', '.*/p/mri', or put"):
            open_rows(str(tmp_path / "p"), "train")
    assert len(load_rows(str(tmp_path / "p"), "test")) == 3 and len(load_rows(str(tmp_path / "p/ct"), "train")) == 2


@pytest.mark.parametrize("there", ["validation", "valid", "val", "dev"])
def test_validation_has_many_spellings(tmp_path, there):
    source = write_parquet(tmp_path / "p", there, table(2))
    assert len(load_rows(source, "validation")) == len(load_rows(source, "dev")) == 2


def test_saved_dataset_dict_and_saved_dataset(tmp_path):
    datasets.DatasetDict({"train": table(3), "val": table(2)}).save_to_disk(tmp_path / "dict")
    check_row(load_rows(str(tmp_path / "dict"), "validation")[1], 1, "scan_1")
    assert len(load_rows(str(tmp_path / "dict"), "train")) == 3

    table(3).save_to_disk(tmp_path / "one")
    check_row(load_rows(str(tmp_path / "one"), "train")[2], 2, "scan_2")
    with pytest.raises(ValueError, match="has no split 'test': choose one of train"):  # never the training rows again
        load_rows(str(tmp_path / "one"), "test")


@pytest.mark.parametrize("mask", ["label", "labels", "annotation"])
def test_columns_under_other_names(tmp_path, mask):
    data = table(
        3, mask, Description=["a", "b", "c"], patient_id=["p0", "p1", "p2"], name=["x", "y", "z"], age=[1, 2, 3]
    )
    row = load_rows(write_parquet(tmp_path / "p", "train", data), "train")[1]
    check_row(row, 1, "y")
    assert (row["prompt"], row["patient_id"]) == ("b", "p1")


def test_pictures_stored_as_plain_bytes(tmp_path):
    """What pandas and polars write: no picture type, only bytes."""
    content = {"image": [encode(draw(0)[0])], "mask": [encode(draw(0)[1])]}
    source = write_parquet(tmp_path / "p", "train", datasets.Dataset.from_dict(content))
    check_row(load_rows(source, "train")[0], 0, "train/0")


def test_image_folder(tmp_path):
    entries = write_image_folder(tmp_path / "f")
    entries[1] |= {"prompt": " the  left one ", "name": "named", "patient_id": 7}
    entries[2]["file_name"] = entries[2].pop("image_file_name")
    write_metadata(tmp_path / "f", entries)
    rows = load_rows(str(tmp_path / "f"), "train")
    assert len(rows) == 4
    check_row(rows[1], 1, "named")
    check_row(rows[2], 2, "scan_2")
    assert (rows[1]["prompt"], rows[1]["patient_id"], rows[2]["prompt"]) == ("the left one", "7", None)


def test_image_folder_of_a_mac(tmp_path):
    """Which stores an umlaut as two letters, where the table has one."""
    write_image_folder(tmp_path / "f", count=1)
    (tmp_path / "f" / "train" / "scan_0.png").rename(tmp_path / "f" / "train" / "Mu\u0308ller.png")
    write_metadata(tmp_path / "f", [{"image_file_name": "M\u00fcller.png", "mask_file_name": "masks/0.png"}])
    check_row(load_rows(str(tmp_path / "f"), "train")[0], 0, "M\u00fcller")


def test_hub(monkeypatch):
    sizes = {None: {"train": 4, "dev": 2}, "ct": {"train": 3}}
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda hub_id, name: list(sizes[name]))
    monkeypatch.setattr(datasets, "load_dataset", lambda hub_id, name, split, streaming: table(sizes[name][split]))
    assert len(load_rows("somebody/scans", "validation")) == 2
    assert len(load_rows("somebody/scans:ct", "train")) == 3


@pytest.mark.parametrize("source", ["somebody/scans", "somebody/scans:cr"])
def test_configurations_of_the_hub_are_named(monkeypatch, source):
    def no_such(hub_id, name):
        raise ValueError("Config name is missing.\nPlease pick one")

    monkeypatch.setattr(datasets, "get_dataset_split_names", no_such)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda hub_id: ["ct", "mr"])
    with pytest.raises(ValueError, match=f"'{source}' .* one of somebody/scans:ct, somebody/scans:mr."):
        load_rows(source, "train")


def test_a_full_cache_is_no_damaged_file(tmp_path, monkeypatch):
    from datasets.exceptions import DatasetGenerationError

    source = write_parquet(tmp_path / "p", "train", table(2))
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda hub_id, name: ["train"])

    def fails_by(cause):
        def load(*of, **options):
            raise DatasetGenerationError("An error occurred") from cause

        monkeypatch.setattr(datasets, "load_dataset", load)

    for cause in (OSError(errno.ENOSPC, "No space left"), OSError("Not enough disk space. Needed: 9 GB")):
        fails_by(cause)
        for where in (source, "somebody/scans"):
            with pytest.raises(
                ValueError, match=f"'{where}' .* cache .*(No space|Not enough).* set HF_DATASETS_CACHE"
            ):
                load_rows(where, "train")
    fails_by(EOFError("cut short"))
    with pytest.raises(ValueError, match=r"'somebody/scans' cannot be loaded \(cut short\): check the connection"):
        load_rows("somebody/scans", "train")


def test_max_rows_is_a_seeded_random_subset(tmp_path):
    source = write_parquet(tmp_path / "p", "train", table(30))

    def names(seed):
        return [row["name"] for row in load_rows(source, "train", max_rows=5, seed=seed)]

    assert names(0) == names(0) != names(1)
    assert len(set(names(0))) == 5 and names(0) != [f"scan_{index}" for index in range(5)]
    assert len(load_rows(source, "train", max_rows=99)) == 30


def test_fingerprint_follows_the_content(tmp_path):
    source = write_parquet(tmp_path / "p", "train", table(6))
    table(6).save_to_disk(tmp_path / "saved")
    rows = load_rows(source, "train")
    assert fingerprint(rows) == fingerprint(load_rows(str(tmp_path / "saved"), "train"))
    assert (
        len({fingerprint(rows), fingerprint(rows.select(range(5))), fingerprint(rows.select([1, 0, 2, 3, 4, 5]))}) == 3
    )

    write_image_folder(tmp_path / "f")
    before = fingerprint(load_rows(str(tmp_path / "f"), "train"))
    draw(9)[1].transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(tmp_path / "f" / "train" / "masks" / "3.png")
    assert fingerprint(load_rows(str(tmp_path / "f"), "train")) != before

    drawn = drawn_rows(3)
    before = fingerprint(drawn)
    assert fingerprint(drawn_rows(3)) == before
    drawn[1]["prompt"] = "right"
    assert fingerprint(drawn) != before
    drawn[1]["prompt"] = "left 1"
    drawn[1]["mask"].putpixel((0, 0), 255)
    assert fingerprint(drawn) != before


def test_fingerprint_stays_what_it_was():
    """Kept results name it: it must not change with the code."""
    pictures = {key: [{"bytes": key.encode(), "path": None}] * 3 for key in ("image", "mask")}
    texts = {"prompt": ["left", None, ""], "name": ["a", "b", "c"], "patient_id": ["p1", " p1", None]}
    features = {key: datasets.Image() for key in pictures} | {key: datasets.Value("string") for key in texts}
    rows = datasets.Dataset.from_dict(pictures | texts, features=datasets.Features(features))
    assert fingerprint(rows) == "81a89171afe7f7963dd4c803f9424a107e3420dbf58a3e97ee194f2868e8433e"
    last = rows.select([2])  # a stream may lack what nobody knows
    assert fingerprint(last.remove_columns("patient_id").to_iterable_dataset()) == fingerprint(last)


UNKNOWN = [["p1", "", "  ", None], [1.0, np.nan, np.nan, None]]


@pytest.mark.parametrize("patients", UNKNOWN)
def test_blank_patients_are_unknown(tmp_path, patients):
    source = write_parquet(tmp_path / "p", "train", table(4, patient_id=patients))
    rows, expected = load_rows(source, "train"), [str(patients[0]), None, None, None]
    assert [read_row(rows, index)["patient_id"] for index in range(4)] == column(rows, "patient_id") == expected
    drawn = [{**row, "patient_id": patient} for row, patient in zip(drawn_rows(4), patients, strict=True)]
    assert [read_row(drawn, index)["patient_id"] for index in range(4)] == column(drawn, "patient_id") == expected
    stream, _ = stream_rows(source, "train")
    streamed = StreamedSegmentationDataset(stream, processor(), buffer_size=0)
    assert [item["patient_id"] for item in streamed] == column(stream, "patient_id") == expected
    entries = write_image_folder(tmp_path / "f")
    write_metadata(tmp_path / "f", [{**e, "patient_id": p} for e, p in zip(entries, patients, strict=True)])
    assert column(load_rows(str(tmp_path / "f"), "train"), "patient_id") == expected


@pytest.mark.parametrize("names", [["one", "", " ", None], [1.0, np.nan, np.nan, None], [None] * 4])
def test_missing_names_are_those_of_the_files(tmp_path, names):
    first = "scan_0" if names[0] is None else str(names[0])
    source = write_parquet(tmp_path / "p", "train", table(4, name=names))
    rows, expected = load_rows(source, "train"), [first, "scan_1", "scan_2", "scan_3"]
    assert [read_row(rows, index)["name"] for index in range(4)] == column(rows, "name") == expected
    stream, _ = stream_rows(source, "train")
    assert [item["name"] for item in StreamedSegmentationDataset(stream, processor(), buffer_size=0)] == expected
    drawn = [{**row, "name": name} for row, name in zip(drawn_rows(4), names, strict=True)]
    assert read_row(drawn, 3)["name"] == "3"
    nameless = table(4, name=names).cast_column("image", datasets.Image(decode=False))
    nameless = nameless.map(lambda row: {"image": {**row["image"], "path": None}}).cast_column(
        "image", datasets.Image()
    )
    rows = load_rows(write_parquet(tmp_path / "n", "train", nameless), "train")
    assert column(rows, "name")[1:] == ["train/1", "train/2", "train/3"]
    entries = write_image_folder(tmp_path / "f")
    write_metadata(tmp_path / "f", [{**entry, "name": name} for entry, name in zip(entries, names, strict=True)])
    assert column(load_rows(str(tmp_path / "f"), "train"), "name") == expected


def test_equal_stems_keep_their_folders(monkeypatch):
    """As of an image folder on the Hub; two rows about one picture are still called alike."""
    paths = ["/c/train/a/0.png", "/c/train/b/0.png", "/c/train/b/0.png", "/c/train/b/1.png"]
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    pictures = [{"bytes": encode(draw(0)[0]), "path": path} for path in paths]
    rows = datasets.Dataset.from_dict({"image": pictures, "mask": pictures}, features=features)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda hub_id, name: ["train"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *of, **options: rows)
    assert column(load_rows("somebody/scans", "train"), "name") == ["a/0", "b/0", "b/0", "1"]


# Mistakes


def test_wrong_sources(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is empty: give one"):
        load_rows(str(tmp_path / "empty"), "train")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"layout of .*odd' is not known \(it holds notes.txt\): give"):
        load_rows(str(tmp_path / "odd"), "train")
    with pytest.raises(ValueError, match="is a file: give the folder"):
        load_rows(str(tmp_path / "odd" / "notes.txt"), "train")
    with pytest.raises(FileNotFoundError, match="neither a folder here nor a data set that the Hub gives"):
        load_rows(str(tmp_path / "nowhere"), "train")
    with pytest.raises(ValueError, match="max_rows is 0: give at least 1"):
        load_rows("builtin", "train", max_rows=0)

    def unreachable(*of):
        raise ConnectionError("Couldn't reach the Hub\nat all")

    monkeypatch.setattr(datasets, "get_dataset_split_names", unreachable)
    monkeypatch.setattr(datasets, "get_dataset_config_names", unreachable)
    with pytest.raises(
        FileNotFoundError, match=r"'somebody/scans' is neither .*\(Couldn't reach the Hub\): check the"
    ):
        load_rows("somebody/scans", "train")


def test_wrong_tables(tmp_path):
    source = write_parquet(tmp_path / "p", "train", table(2))
    with pytest.raises(ValueError, match="has no split 'test': choose one of train"):
        load_rows(source, "test")
    with pytest.raises(ValueError, match=r"no column 'mask' \(it has image\)"):
        load_rows(write_parquet(tmp_path / "no_mask", "train", table(2).remove_columns("mask")), "train")
    with pytest.raises(ValueError, match=r"no column 'image' \(it has mask\)"):
        load_rows(write_parquet(tmp_path / "no_image", "train", table(2).remove_columns("image")), "train")
    classes = table(2).remove_columns("mask").add_column("label", [0, 1])
    with pytest.raises(ValueError, match=r"The mask column of .* holds Value\('int64'\), not pictures"):
        load_rows(write_parquet(tmp_path / "classes", "train", classes), "train")
    with pytest.raises(ValueError, match="has no rows: give a source with at least one"):
        load_rows(write_parquet(tmp_path / "none", "train", table(2).select([])), "train")
    (tmp_path / "pointer").mkdir()
    (tmp_path / "pointer" / "train.parquet").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="train.parquet' is no parquet file: download it again"):
        load_rows(str(tmp_path / "pointer"), "train")


def test_missing_masks_are_found_before_training(tmp_path):
    content = table(3).cast_column("mask", datasets.Image(decode=False)).to_dict()
    content["mask"][1] = None
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    source = write_parquet(tmp_path / "p", "train", datasets.Dataset.from_dict(content, features=features))
    with pytest.raises(ValueError, match="1 of 3 rows of split 'train' .* have no mask, the first is row 1: add it"):
        load_rows(source, "train")
    rows = drawn_rows(2)
    rows[1]["mask"] = None
    with pytest.raises(ValueError, match=r"Row 1 \('n1'\) has no mask: add it or drop the row"):
        SegmentationDataset(rows, processor())[1]


def test_wrong_image_folders(tmp_path):
    folder = tmp_path / "f"
    entries = write_image_folder(folder)

    def error(kind, entry, match):
        write_metadata(folder, [entries[0], entry])
        with pytest.raises(kind, match=match):
            load_rows(str(folder), "train")

    there = {"image_file_name": "scan_1.png", "mask_file_name": "masks/1.png"}
    error(
        FileNotFoundError, there | {"mask_file_name": "masks/77.png"}, "Line 2 of .* mask 'masks/77.png', which is not"
    )
    error(FileNotFoundError, there | {"image_file_name": "77.png"}, "Line 2 of .* image '77.png', which is not there")
    error(ValueError, there | {"mask_file_name": None}, "Line 2 of .*jsonl' names no mask: add 'mask_file_name'")
    error(ValueError, {"mask_file_name": "masks/1.png"}, "Line 2 of .*jsonl' names no picture: add 'image_file_name'")
    error(ValueError, there | {"prompt": 5}, "Line 2 of .*jsonl': ")
    error(ValueError, ["scan_1.png"], "Line 2 of .*jsonl' is not an object")
    error(FileNotFoundError, there | {"image_file_name": 5}, "Line 2 of .* image '5', which is not there")
    error(ValueError, there | {"prompt": "\ud800"}, "Line 2 of .*jsonl' is not in UTF-8")
    (folder / "train" / "metadata.jsonl").write_bytes(b'{"prompt": "L\xe4sion"}\n')
    with pytest.raises(ValueError, match="Line 1 of .*jsonl' is not in UTF-8"):
        load_rows(str(folder), "train")
    (folder / "train" / "metadata.jsonl").write_text('{"a":' * 100_000)
    with pytest.raises(ValueError, match="Line 1 of .*jsonl' is not JSON that can be read .nested too deeply"):
        load_rows(str(folder), "train")
    (folder / "train" / "metadata.jsonl").write_text("{'single': 'quotes'}\n")
    with pytest.raises(ValueError, match="Line 1 of .* is not JSON .*one object per line"):
        load_rows(str(folder), "train")
    (folder / "train" / "metadata.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="has no rows"):
        load_rows(str(folder), "train")
    with pytest.raises(ValueError, match="has no split 'test': choose one of train"):
        load_rows(str(folder), "test")


def test_unreadable_pictures_are_named(tmp_path):
    write_image_folder(tmp_path / "f")
    (tmp_path / "f" / "train" / "scan_2.png").write_bytes(b"not a picture")
    cut = (tmp_path / "f" / "train" / "masks" / "3.png").read_bytes()
    (tmp_path / "f" / "train" / "masks" / "3.png").write_bytes(cut[: len(cut) // 2])
    rows = load_rows(str(tmp_path / "f"), "train")
    assert read_row(rows, 1)["name"] == "scan_1"
    for index in (2, 3):
        with pytest.raises(
            ValueError, match=rf"Row {index} \('scan_{index}'\) has an image or a mask that .* replace"
        ):
            read_row(rows, index)


def test_damaged_and_distant_tables_get_one_sentence(tmp_path):
    source = write_parquet(tmp_path / "p", "train", table(3))
    path = next((tmp_path / "p").glob("*.parquet"))
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * 20 + whole[24:])
    with pytest.raises(ValueError, match="has a parquet file that cannot be read .*: download it again"):
        load_rows(source, "train")
    with pytest.raises(ValueError, match="has a parquet file that cannot be read"):
        list(StreamedSegmentationDataset(stream_rows(source, "train")[0], processor()))
    pictures = (
        table(2).cast_column("image", datasets.Image(decode=False)).cast_column("mask", datasets.Image(decode=False))
    )
    far = tmp_path / "far"
    far.mkdir()
    for place, words in (
        ("https://example.invalid/x.png", "has its image at 'https://example.invalid/x.png': download the pictures"),
        (str(tmp_path / "gone.png"), "that is not there or cannot be decoded"),
    ):
        content = [pictures[0], pictures[1] | {"image": {"bytes": None, "path": place}}]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), far / "train.parquet")
        with pytest.raises(ValueError, match=words):
            read_row(load_rows(str(far), "train"), 1)
    with pytest.raises(ValueError, match="there is no file .*gone.png': restore it or drop its row"):
        fingerprint(load_rows(str(far), "train"))
    odd = write_parquet(tmp_path / "odd", "train", table(2, patient_id=[{"a": 1}, {"a": 2}]))
    with pytest.raises(ValueError, match="The patient_id column of .* not text: give it as strings"):
        load_rows(odd, "train")


def test_pairs_that_do_not_fit(tmp_path):
    rows = drawn_rows(2)
    rows[1]["mask"] = draw(1, (30, 40))[1]
    with pytest.raises(
        ValueError, match=r"Row 1 \('n1'\) has an image of 40x30 pixels and a mask of 30x40: make them"
    ):
        SegmentationDataset(rows, processor())[1]
    rows[1]["mask"] = Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(30, 40))
    with pytest.raises(
        ValueError, match=r"Row 1 \('n1'\): .*mask > 127.* training --model_config '{\"num_labels\": 3}'\)\."
    ):
        SegmentationDataset(rows, processor())[1]
    with pytest.raises(ValueError, match=r"Row 0 \('n0'\): "):
        read_row([rows[0] | {"prompt": 5}], 0)


def test_impossible_settings_are_refused():
    rows = drawn_rows(1)
    with pytest.raises(ValueError, match="There are no rows"):
        SegmentationDataset([], processor())
    with pytest.raises(ValueError, match="prompt_dropout is a probability"):
        SegmentationDataset(rows, processor(), prompt_dropout=1.5)
    with pytest.raises(ValueError, match="prompt_shortening is a probability"):
        SegmentationDataset(rows, processor(), prompt_shortening=-0.5)
    with pytest.raises(IndexError):
        SegmentationDataset(rows, processor())[1]


# Items


def test_plain_item_is_what_the_processor_gives():
    rows = drawn_rows(2)
    rows[0] |= {"prompt": "  all   left ", "patient_id": 3}
    item = SegmentationDataset(rows, processor())[0]
    expected = processor()(images=rows[0]["image"], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(item["pixel_values"], expected, rtol=0, atol=0)
    assert (item["pixel_values"].dtype, item["labels"].dtype) == (torch.float32, torch.int64)
    assert item["labels"].shape == (32, 48) and set(item["labels"].unique().tolist()) == {0, 1}
    assert (item["prompt"], item["name"], item["patient_id"]) == ("all left", "n0", "3")


def test_perturbed_item_carries_both_views():
    item = SegmentationDataset(drawn_rows(1), processor(), perturbation=ConsistencyPerturbation())[0]
    assert item["perturbed_pixel_values"].shape == item["pixel_values"].shape == (3, 32, 48)
    assert (item["affine"].shape, item["affine"].dtype) == ((2, 3), torch.float32)
    assert (item["perturbed_pixel_values"] - item["pixel_values"]).abs().mean() > 0.01
    plain = SegmentationDataset(drawn_rows(1), processor())[0]
    torch.testing.assert_close(item["pixel_values"], plain["pixel_values"], rtol=0, atol=0)


def test_augmented_labels_and_words_follow_the_picture():
    """The lesion sits in the left half; after a flip both the labels and the sentence must say right."""
    data = SegmentationDataset(drawn_rows(1) * 40, processor(), augmentation=JointAugmentation())
    sides = {"left": 0, "right": 0}
    for item in data:
        columns = item["labels"].sum(dim=0)
        side = "left" if columns[:24].sum() > columns[24:].sum() else "right"
        assert item["prompt"].split()[0] == side
        sides[side] += 1
        # White lesion: every labelled pixel is brighter than every pixel well outside.
        bright = item["pixel_values"].mean(dim=0)
        assert bright[item["labels"] == 1].mean() > bright[item["labels"] == 0].mean() + 1
    assert min(sides.values()) > 8


def test_prompt_dropout_hides_about_its_share():
    hidden = [item["prompt"] is None for item in SegmentationDataset(drawn_rows(200), processor(), prompt_dropout=0.3)]
    assert 40 < sum(hidden) < 80
    assert SegmentationDataset(drawn_rows(1), processor(), prompt_dropout=1.0)[0]["prompt"] is None


def test_prompt_shortening_says_less_about_its_share():
    rows = [{**row, "prompt": "unilateral infection, one area, left lung"} for row in drawn_rows(200)]
    told = [item["prompt"] for item in SegmentationDataset(rows, processor(), prompt_shortening=0.5)]
    whole = sum(prompt == rows[0]["prompt"] for prompt in told)
    assert 90 < whole < 140  # a shortened sentence may keep all its clauses
    assert "infection, one area" in told  # no places
    assert {clause for prompt in told for clause in prompt.split(", ")} == {
        "unilateral infection", "infection", "one area", "left lung",
    }  # fmt: skip
    views = {"augmentation": JointAugmentation(), "prompt_dropout": 0.2}
    unchanged = SegmentationDataset(rows, processor(), prompt_shortening=0.0, **views)
    plain = SegmentationDataset(rows, processor(), **views)
    assert all(torch.equal(unchanged[i]["pixel_values"], plain[i]["pixel_values"]) for i in range(3))


def test_collate_stacks_tensors_and_lists_the_rest():
    data = SegmentationDataset(drawn_rows(3), processor(), perturbation=ConsistencyPerturbation())
    batch = collate([data[0], data[1], data[2]])
    assert batch["pixel_values"].shape == batch["perturbed_pixel_values"].shape == (3, 3, 32, 48)
    assert batch["labels"].shape == (3, 32, 48) and batch["affine"].shape == (3, 2, 3)
    assert batch["name"] == ["n0", "n1", "n2"] and batch["patient_id"] == [None] * 3
    assert batch["prompt"] == ["left 0", "left 1", "left 2"]


# Loaders


def loader(data, workers: int, shuffle: bool = False) -> DataLoader:
    return DataLoader(
        data,
        batch_size=4,
        shuffle=shuffle,
        generator=torch.Generator().manual_seed(0),
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate,
    )


def drawing_dataset(rows) -> SegmentationDataset:
    options = {"augmentation": JointAugmentation(), "perturbation": ConsistencyPerturbation(), "prompt_dropout": 0.5}
    return SegmentationDataset(rows, processor(), **options)


def one_pass(batches: DataLoader) -> dict[str, tuple]:
    """name -> everything that was drawn for it."""
    seen: dict[str, tuple] = {}
    for batch in batches:
        for index, name in enumerate(batch["name"]):
            assert name not in seen
            pixels = batch["pixel_values"][index].sum().item(), batch["perturbed_pixel_values"][index].sum().item()
            seen[name] = (batch["prompt"][index], *pixels, batch["labels"][index].sum().item())
    return seen


def test_every_row_is_visited_once_by_shuffled_workers(tmp_path):
    rows = load_rows(write_parquet(tmp_path / "p", "train", table(23)), "train")
    for _ in range(2):
        assert set(one_pass(loader(drawing_dataset(rows), workers=2, shuffle=True))) == {
            f"scan_{i}" for i in range(23)
        }


def test_draws_do_not_depend_on_workers_or_order():
    rows = drawn_rows(12)
    alone = one_pass(loader(drawing_dataset(rows), workers=0))
    assert alone == one_pass(loader(drawing_dataset(rows), workers=2, shuffle=True))
    assert len({drawn[1] for drawn in alone.values()}) == 12


def test_set_epoch_reaches_persistent_workers():
    data = drawing_dataset(drawn_rows(8))
    batches = loader(data, workers=2)
    passes = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        passes.append(one_pass(batches))
    assert passes[0] == passes[2]
    assert all(passes[0][name][1] != passes[1][name][1] for name in passes[0])


def test_seed_changes_draws():
    def data(seed):
        return SegmentationDataset(drawn_rows(1), processor(), augmentation=JointAugmentation(), seed=seed)

    first, second = data(0), data(1)
    assert (first[0]["pixel_values"] != second[0]["pixel_values"]).any()
    torch.testing.assert_close(first[0]["pixel_values"], first[-1]["pixel_values"], rtol=0, atol=0)


# Streams and the cache


def write_shards(folder, count: int = 23, shards: int = 3, **columns) -> str:
    data = table(count, prompt=[f"left {index}" for index in range(count)], **columns)
    folder.mkdir()
    for shard in range(shards):
        data.shard(shards, shard, contiguous=True).to_parquet(folder / f"train-{shard:05}-of-{shards:05}.parquet")
    return str(folder)


def test_stream_gives_the_same_items(tmp_path):
    source = write_shards(tmp_path / "p")
    stream, count = stream_rows(source, "train")
    assert count == 23
    known = {item["name"]: item for item in SegmentationDataset(load_rows(source, "train"), processor())}
    streamed = list(StreamedSegmentationDataset(stream, processor()))
    assert [item["name"] for item in streamed] != list(known)
    assert {item["name"] for item in streamed} == set(known) and len(streamed) == 23
    for item in streamed:
        assert item["prompt"] == known[item["name"]]["prompt"] and item["patient_id"] is None
        for key in ("pixel_values", "labels"):
            torch.testing.assert_close(item[key], known[item["name"]][key], rtol=0, atol=0)
    in_order = StreamedSegmentationDataset(stream, processor(), buffer_size=0)
    assert [item["name"] for item in in_order] == list(known)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_and_workers_share_a_stream(tmp_path, world_size, workers):
    stream, _ = stream_rows(write_shards(tmp_path / "p"), "train")
    names = []
    for rank in range(world_size):
        data = StreamedSegmentationDataset(stream, processor(), rank=rank, world_size=world_size)
        share = [name for batch in loader(data, workers, shuffle=None) for name in batch["name"]]
        assert len(share) >= 23 // world_size - 1
        names += share
    assert sorted(names) == sorted(f"scan_{index}" for index in range(23))


def test_stream_draws_follow_seed_and_epoch(tmp_path):
    stream, _ = stream_rows(write_shards(tmp_path / "p", 6, 1), "train")

    def items(epoch, seed=0, buffer_size=1000):
        options = {"augmentation": JointAugmentation(), "seed": seed, "buffer_size": buffer_size}
        data = StreamedSegmentationDataset(stream, processor(), **options)
        data.set_epoch(epoch)
        return {item["name"]: item["pixel_values"].sum().item() for item in data}

    assert items(0) == items(0) == items(0, buffer_size=0)  # the order does not count
    assert items(0) != items(1) and items(0) != items(0, seed=1)
    assert list(items(0)) != list(items(1))


def test_stream_of_a_table_that_knows_nothing_of_pictures(tmp_path):
    """As other tools write it: the columns of others, no note of `datasets` on what they hold."""
    import pyarrow
    from pyarrow import parquet

    pictures = [draw(index) for index in range(3)]
    columns = {
        "image": [{"bytes": encode(image), "path": None} for image, _ in pictures],
        "label": [{"bytes": encode(mask), "path": None} for _, mask in pictures],
        "caption": ["a", "b", None],
        "note": [1, 2, 3],
    }
    (tmp_path / "p").mkdir()
    parquet.write_table(pyarrow.table(columns), tmp_path / "p" / "train.parquet")
    stream, count = stream_rows(str(tmp_path / "p"), "train")
    items = list(StreamedSegmentationDataset(stream, processor(), buffer_size=0))
    assert count == 3 and [item["prompt"] for item in items] == ["a", "b", None]
    assert items[0]["labels"].sum() > 0


def test_stream_refusals(tmp_path):
    for source in ("builtin", str(tmp_path)):
        with pytest.raises(ValueError, match="cannot be streamed"):
            stream_rows(source, "train")
    source = write_parquet(tmp_path / "p", "train", table(2))
    with pytest.raises(ValueError, match="no split 'test'"):
        stream_rows(source, "test")
    broken = table(1).cast_column("image", datasets.Image(decode=False)).to_dict()
    broken["image"][0]["bytes"] = broken["image"][0]["bytes"][:60]
    broken["mask"] = [{"bytes": encode(draw(0)[1]), "path": None}]
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    stream, _ = stream_rows(
        write_parquet(tmp_path / "b", "train", datasets.Dataset.from_dict(broken, features)), "train"
    )
    with pytest.raises(ValueError, match="row 'scan_0' has no image that can be decoded"):
        list(StreamedSegmentationDataset(stream, processor()))


def test_stream_from_the_hub(tmp_path, monkeypatch):
    def load(source, configuration, split, streaming):
        assert streaming
        return table({"train": 4, "dev": 2}[split]).to_iterable_dataset()

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda source, configuration: ["train", "dev"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    stream, count = stream_rows("somebody/scans", "validation")
    assert count is None  # this Hub does not say
    assert len(list(StreamedSegmentationDataset(stream, processor()))) == 2


def test_stream_of_an_image_folder_on_the_hub(tmp_path, monkeypatch):
    """Whose rows say only where the pictures are."""
    write_image_folder(tmp_path / "f", count=3)
    there = f"zip://{tmp_path}/f/train/{{}}.png::hf://datasets/somebody/scans@main/a.zip"
    names = {"image": "scan_{}", "mask": "masks/{}"}
    pointers = {
        column: [{"bytes": None, "path": there.format(name.format(index))} for index in range(3)]
        for column, name in names.items()
    }
    features = datasets.Features({column: datasets.Image() for column in names})
    rows = datasets.Dataset.from_dict(pointers, features=features).to_iterable_dataset()

    def fetch(path, mode):
        if "scan_2" in path:
            raise RuntimeError("the line is dead")
        return open(path.removeprefix("zip://").partition("::")[0], mode)

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda source, configuration: ["train"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *where, **options: rows)
    monkeypatch.setattr("datasets.utils.file_utils.xopen", fetch)
    items = iter(StreamedSegmentationDataset(stream_rows("somebody/scans", "train")[0], processor(), buffer_size=0))
    first, second = next(items), next(items)
    assert (first["name"], second["name"]) == ("scan_0", "scan_1") and first["labels"].sum() > 0
    assert not torch.equal(first["pixel_values"], second["pixel_values"])
    with pytest.raises(ConnectionError, match=r"scan_2.png::hf://.* cannot be fetched \(the line is dead\): check"):
        next(items)


def test_cache_decodes_once_and_draws_anew():
    class Counted(list):
        reads = 0

        def __getitem__(self, index):
            Counted.reads += 1
            return super().__getitem__(index)

    rows = Counted(drawn_rows(3))
    cached = SegmentationDataset(rows, processor(), augmentation=JointAugmentation(), cache=True)
    plain = SegmentationDataset(drawn_rows(3), processor(), augmentation=JointAugmentation())
    sums = []
    for epoch in (0, 1):
        for data in (cached, plain):
            data.set_epoch(epoch)
        for index in range(3):
            assert cached[index]["prompt"] == plain[index]["prompt"]
            torch.testing.assert_close(cached[index]["pixel_values"], plain[index]["pixel_values"], rtol=0, atol=0)
        sums.append([cached[index]["pixel_values"].sum().item() for index in range(3)])
    assert Counted.reads == 3 and sums[0] != sums[1]


@pytest.mark.parametrize("keep", [False, True])
def test_few_labels(keep):
    rows = drawn_rows(20)
    few, labelled = limit_labels(rows, 0.1, seed=0, keep_unlabelled=keep)
    names = [row["name"] for row in few]
    known = {name for name, is_labelled in zip(names, labelled, strict=True) if is_labelled}
    unknown = {name for name, is_labelled in zip(names, labelled, strict=True) if not is_labelled}
    assert len(known) == 2 and not known & unknown
    # A pass is as long as ever, or has as many labelled rows as others.
    assert (len(few), labelled.sum(), len(unknown)) == ((36, 18, 18) if keep else (20, 20, 0))
    more, more_labelled = limit_labels(rows, 0.5, seed=0, keep_unlabelled=keep)
    more_known = {row["name"] for row, is_labelled in zip(more, more_labelled, strict=True) if is_labelled}
    assert known < more_known and len(more_known) == 10

    data = SegmentationDataset(few, processor(), labelled=labelled, augmentation=JointAugmentation(), cache=True)
    for _ in range(2):  # read, then from the cache
        for index in (0, len(few) - 1):
            labels = data[index]["labels"]
            assert (labels == 255).all() != labelled[index]
    first, again = (data[index]["pixel_values"] for index in np.flatnonzero(np.array(names) == names[0])[:2])
    assert not torch.equal(first, again)  # the same row, another view


def test_few_labels_are_those_of_whole_pictures(tmp_path):
    drawn = load_rows("builtin", "train")
    write_image_folder(tmp_path / "f")
    asked = [
        {"image_file_name": f"scan_{i}.png", "mask_file_name": "masks/0.png", "name": f"{i}-{n}"}
        for i in range(4)
        for n in range(3)
    ]
    write_metadata(tmp_path / "f", asked)
    kept = load_rows(str(tmp_path / "f"), "train")
    kept.save_to_disk(tmp_path / "saved")
    for rows in (drawn, kept, load_rows(str(tmp_path / "saved"), "train")):
        for budget in (0.1, 0.5, 1.0):
            few, labelled = limit_labels(rows, budget, seed=1, keep_unlabelled=True)
            names = {True: set(), False: set()}
            for name, is_labelled in zip(column(few, "name"), labelled, strict=True):
                names[bool(is_labelled)].add(name)
            known, unknown = ({name.rpartition("-")[0] for name in names[key]} for key in (True, False))
            assert not known & unknown and len(names[True]) == 3 * len(known)
            assert 0 <= len(names[True]) - round(budget * len(rows)) < 3
            assert names[True] | names[False] == set(column(rows, "name"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget", [0.01, 0.1, 0.25, 1.0])
def test_few_labels_of_one_row_per_picture_are_those_of_kept_results(budget, seed):
    rows = drawn_rows(30)
    order = np.random.default_rng(seed).permutation(len(rows))[: max(1, round(budget * len(rows)))]
    for keep in (False, True):
        few, labelled = limit_labels(rows, budget, seed, keep)
        assert [row["name"] for row in few][: len(order)] == [f"n{index}" for index in np.sort(order)]
        assert {row["name"] for row, one in zip(few, labelled, strict=True) if one} == {f"n{index}" for index in order}
