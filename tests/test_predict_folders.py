# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""`tamiseg predict` over folders: every picture once, none stopped by another, nothing done twice; and the formats."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from processing import predict as room
from processing.command_line import main
from processing.predict import run_lengths
from processing.reading import sha256
from tests.test_command_line import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny_model(folder)
    return folder


@pytest.fixture
def scans(tmp_path):
    """Three pictures in two folders, and what is no picture."""
    folder = tmp_path / "scans"
    (folder / "b").mkdir(parents=True)
    for i, (name, size) in enumerate({"a1.png": (47, 33), "b/b1.jpg": (20, 64), "b/b2.tif": (30, 30)}.items()):
        Image.effect_noise(size, 60 + i).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".a1.png").write_bytes(b"what an editor leaves")
    return folder


def call(model, *words):
    return main(["predict", *map(str, words), "--model", str(model)])


def table(folder) -> dict[str, dict]:
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def test_a_folder_gives_the_same_masks_as_its_pictures_one_by_one(model, scans, tmp_path, capsys):
    out, overlays, maps = tmp_path / "masks", tmp_path / "overlays", tmp_path / "maps"
    words = ("--text", "left lung", "--batch_size", 2)
    assert call(model, scans, "--output", out, "--overlay", overlays, "--probabilities", maps, *words) == 0
    said = capsys.readouterr()
    assert "3 pictures segmented" in said.out and "3/3" in said.err  # the bar
    rows = table(out)
    assert list(rows) == ["a1.png", "b/b1.jpg", "b/b2.tif"]
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*")) == [
        "a1.png", "b/b1.png", "b/b2.png", "predictions.csv"
    ]  # fmt: skip
    for name, row in rows.items():
        alone = tmp_path / "alone.png"
        assert call(model, scans / name, "--output", alone, "--text", "left lung", "--overwrite") == 0
        stem = name.rsplit(".", 1)[0] + ".png"
        mask = np.asarray(Image.open(out / stem))
        assert (mask != np.asarray(Image.open(alone))).mean() < 0.002  # an edge pixel may fall either way in a batch
        assert row["status"] == "ok" and row["sentence"] == "left lung"
        assert int(row["area_px"]) == (mask == 255).sum()
        assert float(row["area_percent"]) == pytest.approx(100 * (mask == 255).mean(), abs=1e-3)
        probability = np.asarray(Image.open(maps / stem))
        assert probability.dtype == np.uint16 and ((probability > 32767.5) == (mask == 255)).all()
        if mask.any():
            assert float(row["mean_probability"]) == pytest.approx(probability[mask == 255].mean() / 65535, abs=1e-3)
        assert Image.open(overlays / stem).size == Image.open(scans / name).size


def test_pictures_in_linked_folders_are_found(scans, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "more").symlink_to(scans)
    found = room.find_pictures([str(tmp_path / "linked")], [tmp_path / "out"])
    assert [picture.name for picture in found] == ["more/a1.png", "more/b/b1.jpg", "more/b/b2.tif"]


def test_files_that_are_left_out_are_counted(model, scans, tmp_path, capsys):
    for name in ("b/scan.nii.gz", "b/slice.DCM", "b/IM0001"):
        (scans / name).write_bytes(b"of another kind")
    Image.effect_noise((20, 30), 60).save(scans / "drawn.gif")
    assert call(model, scans, "--output", scans / "masks", "--format", "rle") == 0
    said = capsys.readouterr().out
    assert "4 files left out (.dcm, .nii.gz, .txt, no suffix): predict reads .png, .jpg" in said
    assert "4 pictures segmented" in said and (scans / "masks" / "drawn.json").is_file()
    assert call(model, scans, "--output", scans / "masks", "--format", "rle") == 0
    assert "4 files left out" in capsys.readouterr().out  # what it writes is not among them


def test_resumes_after_a_break(model, scans, tmp_path, monkeypatch, capsys):
    out = tmp_path / "masks"
    original, written = room.write, []

    def write_two(*arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(arguments[4])
        original(*arguments)

    monkeypatch.setattr(room, "write", write_two)
    assert call(model, scans, "--output", out, "--batch_size", 1) == 130
    status = {name: row["status"] for name, row in table(out).items()}
    assert status == {"a1.png": "ok", "b/b1.jpg": "ok", "b/b2.tif": "unfinished"}
    (out / "b" / "b2.png").write_bytes(b"half of it")  # whose it is, the table knows
    written.clear()
    assert call(model, scans, "--output", out) == 0
    assert [path.name for path in written] == ["b2.png"]
    assert "1 pictures segmented, 2 were done before" in capsys.readouterr().out
    assert list(table(out)) == ["a1.png", "b/b1.jpg", "b/b2.tif"]

    monkeypatch.setattr(room, "write", original)
    monkeypatch.setattr(room, "load", lambda name: pytest.fail("nothing is left to do"))
    assert call(model, scans, "--output", out) == 0
    monkeypatch.undo()
    # Done is what is still there, and what was asked otherwise is kept until somebody says so.
    (out / "a1.png").unlink()
    capsys.readouterr()
    assert call(model, scans, "--output", out) == 0
    assert "1 pictures segmented" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    for words, difference in (
        (("--text", "left"), "sentence was '' and is 'left'"),
        (("--threshold", "0.4"), "threshold was '0.5' and is '0.4'"),
        (("--tile_size", "128"), "tile_size was '' and is '128'"),
    ):
        assert call(model, scans, "--output", out, *words) == 2
        said = capsys.readouterr().err
        assert difference in said and "give --overwrite, or another --output" in said
        assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
        assert call(model, scans, "--output", out, *words, "--overwrite") == 0
        assert "3 pictures segmented" in capsys.readouterr().out
        assert call(model, scans, "--output", out, "--overwrite") == 0


def test_masks_of_others_are_kept(model, scans, tmp_path, capsys):
    out = tmp_path / "masks"
    (out / "b").mkdir(parents=True)
    (out / "b" / "b1.png").write_text("drawn by hand")
    assert call(model, scans, "--output", out) == 2
    assert "does not say of which picture: give --overwrite" in capsys.readouterr().err
    assert [path for path in out.rglob("*.*")] == [out / "b" / "b1.png"]
    assert (out / "b" / "b1.png").read_text() == "drawn by hand"
    assert call(model, scans, "--output", out, "--overwrite") == 0
    assert Image.open(out / "b" / "b1.png").mode == "L"


def test_rows_of_other_pictures_are_kept(model, scans, tmp_path):
    out = tmp_path / "masks"
    assert call(model, scans / "b", "--output", out) == 0
    before = table(out)
    assert call(model, scans / "a1.png", "--output", out) == 0  # one picture into a folder that is there
    assert list(table(out)) == ["b1.jpg", "b2.tif", "a1.png"] and before.items() <= table(out).items()
    assert call(model, scans / "a1.png", "--output", out, "--text", "left", "--overwrite") == 0
    assert before.items() <= table(out).items() and table(out)["a1.png"]["sentence"] == "left"
    assert (out / "a1.png").is_file()


def test_a_mask_of_another_picture_or_model_is_not_done(model, scans, tmp_path, capsys):
    out, mine = tmp_path / "masks", tmp_path / "mine"
    shutil.copytree(model, mine)
    assert call(mine, scans / "a1.png", "--output", out) == 0
    before = (out / "a1.png").read_bytes()
    (tmp_path / "ben").mkdir()
    Image.effect_noise((47, 33), 90).save(tmp_path / "ben" / "a1.png")
    assert call(mine, tmp_path / "ben" / "a1.png", "--output", out) == 2
    assert "was made of another picture of that name: give --overwrite" in capsys.readouterr().err
    save_tiny_model(mine, seed=1)  # trained again
    assert call(mine, scans / "a1.png", "--output", out) == 2
    assert "was made with other settings (weights was" in capsys.readouterr().err
    assert (out / "a1.png").read_bytes() == before
    for picture in (tmp_path / "ben", scans):
        assert call(mine, picture / "a1.png", "--output", out, "--overwrite") == 0
        assert table(out)["a1.png"]["picture_sha256"] == sha256(picture / "a1.png")
    assert call(mine, scans / "a1.png", "--output", out) == 0
    assert "0 pictures segmented, 1 were done before" in capsys.readouterr().out
    (scans / "a1.png").write_bytes(b"damaged")
    assert call(mine, scans / "a1.png", "--output", out, "--overwrite") == 2
    assert call(mine, scans / "a1.png", "--output", out) == 2
    assert "is of an earlier call, and in a later one its picture failed" in capsys.readouterr().err


def test_one_picture_into_a_new_folder(model, scans, tmp_path):
    assert call(model, scans / "a1.png", "--output", tmp_path / "masks") == 0
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {"a1.png", "predictions.csv"}


def test_no_output_replaces_another(model, scans, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(model, scans, "--output", out, "--overlay", out) == 2
    assert "2 outputs would be written to" in capsys.readouterr().err and not out.exists()
    assert call(model, scans, "--output", out, "--overlay", out, "--format", "rle") == 0  # other names
    assert (out / "a1.json").is_file() and (out / "a1.png").is_file()


def test_a_bad_picture_stops_no_other(model, scans, tmp_path, capsys):
    (scans / "b" / "b0.png").write_bytes((scans / "a1.png").read_bytes()[:60])
    (scans / "z.png").write_text("words")
    out = tmp_path / "masks"
    assert call(model, scans, "--output", out) == 2
    said = capsys.readouterr().err
    assert "2 of 5 pictures failed" in said and "Traceback" not in said
    rows = table(out)
    assert [row["status"] == "ok" for row in rows.values()] == [True, False, True, True, False]
    assert "b0.png" in rows["b/b0.png"]["status"] and "save it again" in rows["b/b0.png"]["status"]
    Image.effect_noise((9, 9), 60).save(scans / "z.png")  # mended: the next call does what failed
    (scans / "b" / "b0.png").unlink()
    assert call(model, scans, "--output", out) == 0
    assert "1 pictures segmented, 3 were done before" in capsys.readouterr().out


def test_a_picture_that_goes_away_stops_no_other(model, scans, tmp_path, monkeypatch):
    load = room.load

    def load_late(*arguments):
        (scans / "a1.png").unlink()  # found when the folder was listed, gone when its turn comes
        return load(*arguments)

    monkeypatch.setattr(room, "load", load_late)
    assert call(model, scans, "--output", tmp_path / "masks") == 2
    rows = table(tmp_path / "masks")
    assert "a1.png" in rows["a1.png"]["status"] and rows["a1.png"]["picture_sha256"] == ""
    assert rows["b/b1.jpg"]["status"] == rows["b/b2.tif"]["status"] == "ok"


def test_masks_inside_the_pictures_folder_are_not_segmented(model, scans):
    for _ in range(2):
        assert call(model, scans, "--output", scans / "masks", "--overlay", scans / "seen") == 0
    assert len(table(scans / "masks")) == 3


def test_several_files_and_equal_names(model, scans, tmp_path, capsys):
    Image.effect_noise((9, 9), 60).save(scans / "a1.jpg")
    out = tmp_path / "masks"
    assert call(model, scans / "a1.png", scans / "a1.jpg", scans / "b", "--output", out) == 0
    assert {p.name for p in out.iterdir()} == {"a1.png.png", "a1.jpg.png", "b1.png", "b2.png", "predictions.csv"}
    assert call(model, scans, scans, "--output", out) == 2
    assert "separate calls" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_sentence_for_each_picture(model, scans, tmp_path, kind, capsys):
    sentences = {"a1.png": "left lung", "b/b1.jpg": "", "b/b2.tif": "the large lesion"}
    file = tmp_path / f"sentences.{kind}"

    def write(sentences):
        if kind == "csv":
            lines = (f"{k};{v}\n".replace("/", "\\") for k, v in sentences.items())  # as Excel on many a Windows
            file.write_text("image;sentence\n" + "".join(lines))
        else:
            file.write_text("".join(json.dumps({"image": k, "sentence": v}) + "\n\n" for k, v in sentences.items()))

    write(sentences)
    out = tmp_path / "masks"
    assert call(model, scans, "--output", out, "--prompts", file) == 0
    assert {name: row["sentence"] for name, row in table(out).items()} == sentences
    alone = tmp_path / "alone.png"
    assert call(model, scans / "b" / "b2.tif", "--output", alone, "--text", "the large lesion") == 0
    assert (np.asarray(Image.open(alone)) != np.asarray(Image.open(out / "b" / "b2.png"))).mean() < 0.002
    del sentences["b/b2.tif"]
    write(sentences)
    assert call(model, scans, "--output", out, "--prompts", file) == 2
    assert "no line for 'b/b2.tif'" in capsys.readouterr().err
    assert call(model, scans, "--output", out, "--prompts", file, "--text", "left", "--overwrite") == 0
    assert table(out)["b/b2.tif"]["sentence"] == "left"
    write({**sentences, "c.png": "left"})
    assert call(model, scans, "--output", out, "--prompts", file, "--text", "left") == 2
    assert "'c.png'" in capsys.readouterr().err
    file.write_text("name,words\na1.png,left\n" if kind == "csv" else '{"image": "a1.png"}\n')
    assert call(model, scans, "--output", out, "--prompts", file) == 2
    assert "columns image and sentence" in capsys.readouterr().err


def test_nifti(model, scans, tmp_path, capsys):
    import nibabel

    out, maps, png = tmp_path / "masks", tmp_path / "maps", tmp_path / "mask.png"
    assert call(model, scans, "--output", out, "--probabilities", maps, "--format", "nifti") == 0
    assert call(model, scans / "a1.png", "--output", png) == 0
    volume = nibabel.load(out / "a1.nii.gz")
    mask = np.asarray(volume.dataobj)
    assert volume.get_data_dtype() == np.uint8 and volume.shape == (47, 33, 1)
    assert ((mask[..., 0].T > 0) != (np.asarray(Image.open(png)) > 0)).mean() < 0.002
    assert nibabel.aff2axcodes(volume.affine) == ("L", "P", "S")  # x to the right and y down, on a screen
    probability = np.asarray(nibabel.load(maps / "a1.nii.gz").dataobj)
    assert probability.dtype == np.float32 and ((probability >= 0.5) == (mask > 0)).all()
    assert call(model, scans / "a1.png", "--output", tmp_path / "m.png", "--format", "nifti") == 2
    assert ".nii.gz" in capsys.readouterr().err


def test_run_lengths_are_those_of_coco(model, scans, tmp_path):
    assert run_lengths(np.array([[0, 1], [0, 1], [1, 0]], dtype=bool)) == {"size": [3, 2], "counts": [2, 3, 1]}
    assert run_lengths(np.ones((2, 2), dtype=bool)) == {"size": [2, 2], "counts": [0, 4]}
    assert run_lengths(np.zeros((2, 2), dtype=bool)) == {"size": [2, 2], "counts": [4]}
    out, png = tmp_path / "masks", tmp_path / "mask.png"
    assert call(model, scans, "--output", out, "--format", "rle") == 0
    assert call(model, scans / "a1.png", "--output", png) == 0
    told = json.loads((out / "a1.json").read_text())
    values = np.repeat(np.arange(len(told["counts"])) % 2, told["counts"])
    drawn = values.reshape(told["size"], order="F") > 0
    assert (drawn != (np.asarray(Image.open(png)) > 0)).mean() < 0.002


def test_no_picture_is_overwritten(model, scans, monkeypatch, capsys):
    before = {path: path.read_bytes() for path in scans.rglob("*.*") if path.is_file()}
    monkeypatch.chdir(scans)
    for words in (
        ["a1.png", "--output", "a1.png"],
        ["a1.png", "--output", "m.png", "--overlay", "../scans/a1.png"],
        ["a1.png", "b/b2.tif", "--output", "."],
        ["b", "a1.png", "--output", "b", "--overlay", "."],
        [".", "--output", "."],
        ["b", "--output", "."],
    ):
        assert call(model, *words) == 2, words
        assert "another --output" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in scans.rglob("*.*") if path.is_file()} == before


def bad_calls(scans, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "predictions.csv").write_text("a,b\n1,2\n")
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "predictions.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "words.txt").write_text("left\n")
    (tmp_path / "list.jsonl").write_text('["a1.png", "left"]\n')
    (tmp_path / "latin.csv").write_bytes("image,sentence\na1.png,Läsion\n".encode("latin-1"))
    (tmp_path / "endless.csv").write_text("image,sentence\na1.png," + "x" * 200_000)
    (tmp_path / "number.jsonl").write_text('{"image": 7, "sentence": "left"}\n')
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    (tmp_path / "comma.csv").write_text("image,sentence\na1.png,infection, two areas\n")
    (tmp_path / "twice.csv").write_text("image,sentence\na1.png,left\na1.png,right\n")
    out = tmp_path / "masks"
    return [
        ([tmp_path / "bare", "--output", out], "holds no picture"),
        ([scans, "--output", tmp_path / "file"], "is a file"),
        ([scans, "--output", tmp_path / "other"], "no table of this command"),
        ([scans, "--output", tmp_path / "binary", "--overwrite"], "no table of this command"),
        ([scans, "--output", tmp_path / "masks.png"], "a file or called like one"),
        ([scans, "--output", out, "--batch_size", 0], "batch_size"),
        ([scans, "--output", out, "--text", "left lung " * 20], "shorten it"),
        ([scans, "--output", out, "--prompts", tmp_path / "words.txt"], "JSON lines"),
        ([scans, "--output", out, "--prompts", tmp_path / "none.csv"], "none.csv"),
        ([scans, "--output", out, "--prompts", tmp_path / "list.jsonl"], "a line is no object"),
        ([scans, "--output", out, "--prompts", tmp_path / "latin.csv"], "UTF-8"),
        ([scans, tmp_path / "gone.png", "--output", out], "there is no picture"),
        ([scans, "--output", out, "--prompts", tmp_path / "endless.csv"], "cannot be read as a table"),
        ([scans, "--output", out, "--prompts", tmp_path / "number.jsonl"], "names no picture"),
        ([scans, "--output", out, "--prompts", tmp_path / "deep.jsonl"], "nested too deeply"),
        ([scans, "--output", out, "--prompts", tmp_path / "comma.csv"], "line 2 has more cells than the head"),
        ([scans, "--output", out, "--prompts", tmp_path / "twice.csv"], "names 'a1.png' twice"),
    ]


@pytest.mark.parametrize("case", range(17))
def test_bad_calls_get_one_sentence(model, scans, tmp_path, capsys, case):
    words, sentence = bad_calls(scans, tmp_path)[case]
    assert call(model, *words) == 2
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("tamiseg:")]
    assert len(lines) == 1 and sentence in lines[0] and "Traceback" not in said
