# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""What nobody should send, in general terms: for any array, sentence, name, mask or archive there is an answer or one
plain sentence, and nothing lands outside of where it was sent. `make fuzz` does the same to whole files."""

import gzip
import html
import io
import json
import stat
import zipfile
from pathlib import PurePosixPath

import numpy as np
import openpyxl
import pydicom
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

import batch
import drawing
from processing import TAMISegImageProcessor, TAMISegProcessor, image_processing_tamiseg, slices, sources
from processing.arms import ARMS, text_arms
from processing.data import load_rows
from processing.metrics import SegmentationMeter, bootstrap, score_case
from processing.model_card import harmless
from processing.prompts import SWAPS, mirror_prompt, normalize_prompt, split_findings
from processing.report import html_table
from processing.slices import read_images, read_masks
from processing.sources import Source
from segment import Finding
from tests.fuzz.corpus import dicom, nifti, zipped
from tests.test_processing import make_tokenizer


settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    max_examples=25,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fixed")

IMAGES = TAMISegImageProcessor(size={"height": 16, "width": 16})
TEXT = st.text(st.characters(), max_size=40)  # surrogates, controls and emoji included
HTML = st.sampled_from(["<b>", "<script>alert(1)</script>", '"onload="x', "'><img src=x>", "&amp;", "`x`", "${x}"])
SENTENCE = st.one_of(TEXT, st.lists(HTML | st.just("left lesion"), min_size=1).map(" ".join))
KINDS = st.sampled_from(["?", "u1", "i1", "<u2", ">i2", "i4", "u8", "f2", "f4", "f8", "c8", "S3", "O", "M8[s]"])
ARRAYS = KINDS.flatmap(
    lambda kind: npst.arrays(kind, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


def plain(said: pytest.ExceptionInfo | Exception) -> None:
    said = str(said)
    assert said and "\n" not in said and "Traceback" not in said and " at 0x" not in said


# Pictures, masks, processor


@given(ARRAYS | npst.arrays("f4", (3, 4, 3)) | npst.arrays("i8", (4, 3)))
@example(np.full((3, 3), np.nan))
@example(np.full((3, 3), np.inf))
@example(np.zeros((0, 3), np.uint8))
def test_any_array_is_a_picture_or_refused(array):
    with np.errstate(all="ignore"):
        try:
            picture = IMAGES.load_image(array)
        except ValueError as error:
            return plain(error)
    assert picture.mode == "RGB" and min(picture.size) > 0 and np.isfinite(array.astype(np.float64)).all()


@given(ARRAYS | npst.arrays("i2", (4, 3), elements=st.sampled_from([-1, 0, 1, 3, 255, 256])), st.integers(2, 6))
@example(np.array([[-1, 1]]), 2)
@example(np.array([[np.nan, 1]]), 2)
@example(np.array([[2**40, 1]]), 4)
def test_any_array_is_a_mask_of_known_classes_or_refused(array, num_labels):
    with np.errstate(all="ignore"):
        try:
            mask = IMAGES.load_mask(array, num_labels)
        except ValueError as error:
            return plain(error)
    assert mask.mode == "L" and set(np.unique(mask)) <= {*range(num_labels), 255}
    assert (np.asarray(array).astype(np.float64) >= 0).all(), "a negative label is no class"


@given(SENTENCE)
def test_any_sentence_is_read_or_refused(text):
    processor = TAMISegProcessor(IMAGES, make_tokenizer())
    try:
        words = processor(text=text, return_tensors="pt")
    except ValueError as error:
        assert normalize_prompt_refuses(text)
        return plain(error)
    assert bool(words) == (normalize_prompt(text) is not None)
    if words:
        assert words["attention_mask"].sum() > 0 and words["input_ids"].max() < len(processor.tokenizer)


def normalize_prompt_refuses(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


# Sentences


@given(SENTENCE.filter(lambda text: not normalize_prompt_refuses(text)))
def test_sentences_keep_their_promises(text):
    clean = normalize_prompt(text)
    assert clean is None or (clean == normalize_prompt(clean) and clean.strip() == clean and clean)
    findings = split_findings(text)
    assert all(finding == normalize_prompt(finding) and ";" not in finding for finding in findings)
    for axis in SWAPS:
        assert mirror_prompt(text, axis) is not None
        if text.isascii():  # letters such as a dotted I have no partner in the other case
            once = mirror_prompt(text.lower(), axis)
            assert mirror_prompt(once, axis) == text.lower()
    asked = text_arms([clean, None, "left lesion"], list(ARMS))
    assert all(len(sentences) == 3 for sentences in asked.values())


@given(SENTENCE, SENTENCE)
def test_words_never_become_markup(name, cell):
    finding = Finding(name, drawing_colour := "#E69F00", np.zeros((2, 2), bool), 0, None, 0.1)
    for written in (
        drawing.legend_html([finding]),
        drawing.table_html(["Finding", cell], [[name, cell]], name),
        html_table([[name, cell], [cell, name]]),
    ):
        for words in (name, cell):
            if "<" in words and "<b>" not in html.escape(words):
                assert words not in written
        assert "<script" not in written and "<img" not in written and '"onload="' not in written
    assert drawing_colour in drawing.legend_html([finding])


@given(SENTENCE)
@example('"); import os; os.system("x")  #')
@example("`$(touch x)`\\")
def test_a_cards_sentence_means_nothing_to_markdown_python_or_a_shell(text):
    assert not set(harmless(text)) & set('<>"`$\\|*_[]{}!#&\n') - {"_"}


# Names


@given(SENTENCE | st.sampled_from(["../../x", "/etc/passwd", "C:\\x", "..", ".", "", "con", "a/b", "\0", "x" * 300]))
def test_names_of_files_stay_names(name):
    stem = drawing.file_stem(name, "finding")
    finding = Finding(name, "#E69F00", np.zeros((2, 2), bool), 0, None, 0.1)
    for written in (stem, drawing.mask_name(stem, 1, finding)):
        assert written and PurePosixPath(written).name == written and len(written) < 160
        assert not set(written) & set('/\\:*?"<>|\0') and written not in (".", "..")


def test_an_image_folder_names_nothing_outside_of_it(tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("L", (4, 4)).save(secret)
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    Image.new("L", (4, 4)).save(folder / "a.png")
    for name in ("../../secret.png", str(secret), "x/../../../secret.png"):
        for names in ((name, "a.png"), ("a.png", name)):
            line = dict(zip(("image_file_name", "mask_file_name"), names, strict=True))
            (folder / "metadata.jsonl").write_text(json.dumps(line))
            with pytest.raises(ValueError, match="which is not in .*: copy it there"):
                load_rows(str(tmp_path / "set"), "train")
    (folder / "metadata.jsonl").write_text('{"image_file_name": "../train/a.png", "mask_file_name": "a.png"}\n')
    assert len(load_rows(str(tmp_path / "set"), "train")) == 1


# Archives


PARTS = st.sampled_from(["..", ".", "", "a", "C:", "~", "images", "\\", "a\\..\\..", "x.png", "é", "__MACOSX"])


@given(st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join), min_size=1, max_size=4), st.booleans())
@example(["/etc/passwd"], False)
@example(["a\\..\\..\\x"], False)
@example([""], False)
@example(["images/a.png"], True)
def test_archives_reach_nothing_outside(tmp_path_factory, names, link):
    folder = tmp_path_factory.mktemp("zip")
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        for name in dict.fromkeys(names):
            member = zipfile.ZipInfo(name)
            member.external_attr = ((stat.S_IFLNK if link else stat.S_IFREG) | 0o777) << 16
            archive.writestr(member, b"/etc/passwd")
    try:
        source = Source(folder)
    except ValueError as error:
        plain(error)
    else:
        for path in source.paths:
            assert not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
            assert source.read(path) == b"/etc/passwd" and not link  # its own content, of no other file
    try:
        for _, open_file in batch.collect([str(folder / "set.zip")]):
            assert open_file().read() == b"/etc/passwd"
    except ValueError as error:
        plain(error)
    assert [path.name for path in folder.iterdir()] == ["set.zip"]


def test_what_grows_is_refused_before_it_has_grown(tmp_path, monkeypatch):
    monkeypatch.setattr(slices, "MAX_FILE_BYTES", 2**20)
    monkeypatch.setattr(sources, "SMALL", 2**20)
    monkeypatch.setattr(image_processing_tamiseg, "MAX_WIDE_PIXELS", 1000)
    bomb = gzip.compress(nifti(np.int16) + bytes(2**21))
    with pytest.raises(ValueError, match="grows beyond 1,048,576 bytes"):
        read_images("ct.nii.gz", bomb)
    header = pydicom.dcmread(io.BytesIO(dicom()))
    header.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    deflated = io.BytesIO()
    header.save_as(deflated)
    with pytest.raises(ValueError, match="may grow to any size"):
        read_images("ct.dcm", deflated.getvalue())
    Image.fromarray(np.zeros((40, 30), np.uint16)).save(tmp_path / "wide.png")
    for read in (IMAGES.load_image, IMAGES.load_mask):
        with pytest.raises(ValueError, match="too many pixels to be opened safely: make it smaller"):
            read(tmp_path / "wide.png")
    for read in (read_images, lambda name, content: read_masks(name, content, 2, (4, 4), may_cut=True)):
        with pytest.raises(ValueError, match="30x40 pixels of more than 8 bits"):
            read("wide.png", (tmp_path / "wide.png").read_bytes())
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("xl/worksheets/sheet1.xml", bytes(2**21))
    with pytest.raises(ValueError, match="would grow to 2,097,152 bytes"):
        Source(tmp_path).read_table("t.xlsx")


def test_a_sheet_that_claims_rows_and_columns_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_SHEET_ROWS", 1000)
    book = openpyxl.Workbook()
    book.active.append(("Image", "Description"))
    book.active.append(("a.png", "left"))
    book.active.cell(999, 16000, "far")
    book.save(tmp_path / "t.xlsx")
    assert Source(tmp_path).read_table("t.xlsx") == [{"Image": "a.png", "Description": "left"}]
    monkeypatch.setattr(sources, "MAX_SHEET_ROWS", 900)
    with pytest.raises(ValueError, match="more rows than a sheet can have"):
        Source(tmp_path).read_table("t.xlsx")


# Files of no bytes


@pytest.mark.parametrize("end", [".png", ".jpg", ".tif", ".webp", ".dcm", ".nii", ".nii.gz", ".xml", ".xlsx", ".zip"])
def test_empty_files_get_a_sentence(tmp_path, end):
    path = tmp_path / f"empty{end}"
    path.touch()
    ways = [lambda: IMAGES.load_image(path), lambda: IMAGES.load_mask(path)]
    if end not in (".xlsx", ".zip"):
        ways.append(lambda: read_masks(path.name, b"", 2, (4, 4)))
        ways.append(lambda: read_images(path.name, b""))
    ways.append(lambda: Source(tmp_path).read_table(path.name) if end == ".xlsx" else Source(path).read("x"))
    for way in ways[: None if end in (".xlsx", ".zip") else -1]:
        with pytest.raises((ValueError, OSError)) as refused:
            way()
        plain(refused.value)


# Numbers


@given(
    npst.arrays(bool, (6, 5)),
    npst.arrays(bool, (6, 5)),
    npst.arrays("f4", (6, 5), elements=st.floats(0, 1, width=32)),
    npst.arrays(bool, (6, 5)),
)
def test_scores_are_shares(prediction, target, probability, keep):
    case = score_case(
        prediction, target, "a", None, keep=keep, probability=probability, surface={"tolerance": 2.0, "spacing": 1.0}
    )
    score = SegmentationMeter([case, {**case, "name": "b"}]).compute()
    for name in ("dice_per_image", "dice_global", "iou_per_image", "iou_global", "precision", "recall"):
        assert 0 <= score[name] <= 1
    assert score["iou_global"] <= score["dice_global"] and score["surface_dice"] <= 1
    low, high = bootstrap([case, {**case, "name": "b"}], 0)["dice_per_image_interval"]
    assert low <= score["dice_per_image"] + 1e-9 and score["dice_per_image"] - 1e-9 <= high


def test_zipped_pictures_are_read(tmp_path):
    """The archives above are refused for what they are, and not because none can be read."""
    pictures = [Image.new("L", (4, 4))] * 3
    (tmp_path / "set.zip").write_bytes(zipped(pictures, pictures[0]))
    assert len(Source(tmp_path).paths) == 7 and len(batch.collect([str(tmp_path / "set.zip")])) == 7
