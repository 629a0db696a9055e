# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The demo without a browser: reading, asking, measuring, drawing, batches, examples, and a folder that is a Space."""

import csv
import io
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.request
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import batch
import drawing
import segment
from modeling_tamiseg import TAMISegForImageSegmentation
from processing import TAMISegImageProcessor, TAMISegProcessor
from processing.builtin_sample import draw_row
from processing.command_line import main
from tests.test_modeling import tiny_config
from tests.test_processing import make_tokenizer


SPACE = Path(segment.__file__).parent


def save_tiny_model(folder: Path) -> Path:
    torch.manual_seed(0)
    TAMISegForImageSegmentation(tiny_config()).save_pretrained(folder)
    processor = TAMISegProcessor(TAMISegImageProcessor(size={"height": 64, "width": 64}), make_tokenizer())
    processor.tokenizer.model_max_length = 16
    processor.save_pretrained(folder)
    return folder


def noise(height=40, width=60, channels=3, seed=0):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def write_bad_files(folder: Path) -> dict[str, str]:
    """Files that are no usable picture; name to a part of the sentence that is due."""
    picture = Image.fromarray(noise())
    whole = {}
    for kind in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"):
        written = io.BytesIO()
        picture.save(written, kind)
        whole[kind] = written.getvalue()
    frames = [Image.fromarray(noise(seed=seed)) for seed in range(3)]
    frames[0].save(folder / "stack.tiff", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    with zipfile.ZipFile(folder / "packed.png", "w") as archive:
        archive.writestr("picture.png", whole["PNG"])
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(folder / "nan.tiff")
    contents = {
        "garbage.png": np.random.default_rng(0).bytes(3000),
        "empty.png": b"",
        "words.png": b"This is no picture.",
        "page.jpg": b"<html><script>alert(1)</script></html>",
        "drawing.svg.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "print.eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "broken-number.png": b"P5 1x0 20 255\n" + bytes(200),
        "195-megapixels.png": png_header(15000, 13000),
        "17-megapixels.png": png_header(4250, 4000),
        "cut.png": whole["PNG"][:3000],
        "cut.jpg": whole["JPEG"][:700],
        "cut.tiff": whole["TIFF"][:60],
        "cut.gif": whole["GIF"][:900],
        "cut.bmp": whole["BMP"][:900],
        "cut.webp": whole["WEBP"][:400],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {
        **dict.fromkeys(("garbage.png", "empty.png", "words.png", "page.jpg", "drawing.svg.png"), "no picture"),
        **dict.fromkeys(("print.eps.png", "packed.png"), "no picture"),
        **dict.fromkeys(("195-megapixels.png", "17-megapixels.png"), "16 million"),
        **dict.fromkeys(("cut.png", "cut.jpg", "cut.gif", "cut.bmp"), "cannot be read"),
        **dict.fromkeys(("cut.tiff", "cut.webp", "broken-number.png"), "'"),
        **dict.fromkeys(("stack.tiff", "moving.gif"), "stack of 3"),
        "nan.tiff": "NaN",
    }


def write_odd_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Files that are pictures all the same; name to the (width, height) that is due."""
    colour, grey = Image.fromarray(noise()), Image.fromarray(noise(channels=0))
    wide = Image.fromarray(np.linspace(200, 60000, 2400).reshape(40, 60).astype(np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    wide.save(folder / "16-bit.png")
    wide.save(folder / "16-bit.tiff")
    grey.save(folder / "grey.png")
    grey.convert("LA").save(folder / "grey-alpha.png")
    grey.convert("1").save(folder / "black-and-white.png")
    colour.convert("RGBA").save(folder / "alpha.png")
    colour.convert("P").save(folder / "palette.png")
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    for name in ("colour.tiff", "colour.webp", "colour.bmp", "colour.gif", "größe 1 (2).png"):
        colour.save(folder / name)
    colour.save(folder / "turned.jpg", exif=turned)
    Image.fromarray(noise(3000, 4)).save(folder / "4x3000.png")
    Image.fromarray(noise(47, 33)).save(folder / "33x47.png")
    Image.fromarray(noise(1, 1)).save(folder / "1x1.png")
    sizes = {"turned.jpg": (40, 60), "4x3000.png": (4, 3000), "33x47.png": (33, 47), "1x1.png": (1, 1)}
    return {path.name: sizes.get(path.name, (60, 40)) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def segmenter(model_folder):
    return segment.Segmenter(str(model_folder))


@pytest.fixture(scope="module")
def answer(segmenter):
    return segmenter.ask(Image.fromarray(noise()), "left; the large lesion")


def test_bad_files_get_one_sentence_without_the_servers_folders(segmenter, tmp_path):
    for name, words in write_bad_files(tmp_path).items():
        with pytest.raises(ValueError, match=re.escape(words)) as refused:
            segmenter.read(tmp_path / name)
        said = str(refused.value)
        assert name in said and str(tmp_path) not in said and "\n" not in said and said.endswith("."), said


def test_odd_files_are_read_upright(segmenter, tmp_path):
    for name, size in write_odd_files(tmp_path).items():
        picture, notes = segmenter.read(tmp_path / name)
        assert (picture.mode, picture.size) == ("RGB", size), name
        assert bool(notes) == name.startswith("16-bit") and all("8 bits" in note for note in notes)


def test_findings_that_cannot_be_used(segmenter):
    picture = Image.fromarray(noise())
    for text, words in [
        ("a " * 2500, "too long"),
        ("x" * 5000, "too long"),
        ("left lesion " * 9, "too long"),  # 18 words for a model that reads 16
        ("a;" * 8, "8 findings are too many"),
    ]:
        with pytest.raises(ValueError, match=words):
            segmenter.ask(picture, text)


def test_notes_say_what_the_model_could_not_use(segmenter):
    picture = Image.fromarray(noise())
    assert segmenter.ask(picture, "the large lesion").notes == []
    assert segmenter.ask(picture, "large tumour, left").notes == ["Words that the model does not know: tumour."]
    assert "<b>🫁</b>" in segmenter.ask(picture, "<b>🫁</b>").notes[0]
    for blank in (None, "", " ; ;; "):
        answer = segmenter.ask(picture, blank)
        assert answer.names == [segment.NO_SENTENCE] and "picture alone" in answer.notes[0]


def test_findings_are_what_the_model_says_of_each_sentence_by_itself(segmenter, answer):
    model, processor = segmenter.model, segmenter.processor
    for finding in segmenter.measure(answer, 0.5):
        inputs = processor(images=answer.picture, text=finding.name, return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        (mask,), (probabilities,) = processor.post_process_semantic_segmentation(
            outputs, [(40, 60)], return_probabilities=True
        )
        assert (finding.mask != (mask.numpy() > 0)).mean() < 0.001
        assert finding.highest == pytest.approx(probabilities[1].max().item(), abs=1e-5)


def test_a_threshold_acts_on_the_kept_answer(segmenter, answer, monkeypatch):
    monkeypatch.setattr(segmenter, "model", None)  # asking again would fail
    areas = [[f.area for f in segmenter.measure(answer, threshold)] for threshold in (0, 0.3, 0.5, 0.7, 1)]
    assert areas[0] == [2400, 2400] and areas[-1] == [0, 0]
    assert np.all(np.diff(areas, axis=0) <= 0)
    middle = float(np.median(segmenter.probability(answer, 0, (40, 60))))
    finding = segmenter.measure(answer, middle)[0]
    assert 0 < finding.area < 2400 and finding.mean > middle
    absent = segmenter.measure(answer, 1)[0].numbers()
    assert absent["found"] is False and absent["mean_p"] is None and absent["regions"] == 0


def finding_of(mask, name="one", colour=segment.COLOURS[0]):
    return segment.Finding(name, colour, mask, 0, 0.5, 0.9)


def test_regions_that_touch_by_a_corner_are_one(segmenter, monkeypatch):
    logits = torch.full((1, 2, 8, 8), 0.0)
    logits[:, 1] = -5
    for y, x in [(0, 0), (1, 1), (4, 4), (4, 5), (7, 0)]:
        logits[0, 1, y, x] = 5
    answer = segment.Answer(Image.new("RGB", (8, 8)), ["spots"], logits, 0.0)
    (finding,) = segmenter.measure(answer, 0.5)
    assert (finding.area, finding.regions) == (5, 3)
    assert finding.numbers()["area_percent"] == pytest.approx(100 * 5 / 64, abs=0.001)
    assert finding.mean == pytest.approx(1 / (1 + np.exp(-5)), abs=1e-6)


def test_mask_files_are_exact(segmenter, answer):
    for finding in segmenter.measure(answer, 0.5):
        written = Image.open(io.BytesIO(drawing.png(drawing.mask_image(finding))))
        assert (written.format, written.mode, written.size) == ("PNG", "L", (60, 40))
        assert (np.asarray(written) == finding.mask * 255).all()


def test_overlay_colours_the_region_and_nothing_else():
    mask = np.zeros((200, 300), bool)
    mask[50:150, 100:200] = True
    shown = drawing.shown_picture(Image.new("RGB", (300, 200), (100, 100, 100)))
    assert shown.size == (640, 427)
    pixels = np.asarray(drawing.overlay(shown, [finding_of(mask)], 0.5)).astype(int)
    assert pixels[10, 10].tolist() == [100, 100, 100]
    assert np.abs(pixels[213, 320] - [165, 130, 50]).max() <= 1  # halfway to #E69F00
    assert pixels[213, 214].tolist() == [0xE6, 0x9F, 0x00]  # the edge is opaque
    assert drawing.overlay(shown, [finding_of(np.zeros((200, 300), bool))], 0.5) is shown


def test_findings_on_one_another_all_show():
    mask = np.zeros((200, 200), bool)
    mask[50:150, 50:150] = True
    both = [finding_of(mask), finding_of(mask, "two", segment.COLOURS[1])]
    shown = drawing.shown_picture(Image.new("RGB", (200, 200)))
    pixels = np.asarray(drawing.overlay(shown, both, 0.4)).reshape(-1, 3)
    seen = {tuple(pixel) for pixel in pixels.tolist()}
    assert {drawing.rgb(segment.COLOURS[0]), drawing.rgb(segment.COLOURS[1])} <= seen
    mean = np.asarray(drawing.overlay(shown, both[::-1], 0.4))[320, 320].astype(int)
    assert np.abs(mean - [63, 68, 47]).max() <= 1  # 0.4 of the mean of both colours


@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 50), (640, 320)), ((800, 800), (800, 800)), ((6000, 4000), (1024, 683)), ((4, 3000), (1, 1024))],
)
def test_shown_size(size, expected):
    assert drawing.shown_size(size) == expected


def test_heat_map_is_never_stretched():
    colours = [drawing.rgb(colour) for colour in drawing.HEAT]
    weak = np.asarray(drawing.heat_map(np.array([[0.0, 0.125, 0.25]], np.float32)).convert("RGB"))
    assert np.abs(weak[0].astype(int) - colours[:3]).max() <= 2
    assert drawing.heat_map(np.ones((1, 1), np.float32)).convert("RGB").getpixel((0, 0)) == colours[-1]


def test_words_of_people_are_escaped():
    name = "<script>alert(1)</script>"
    finding = finding_of(np.zeros((4, 4), bool), name)
    for page in (
        drawing.legend_html([finding]),
        drawing.table_html(["Finding"], [[name, name]], "Numbers"),
    ):
        assert "<script>" not in page and "&lt;script&gt;" in page
    assert "(not found)" in drawing.legend_html([finding])
    assert drawing.mask_name("scan", 2, finding) == "scan-mask-2-script-alert-1-script.png"
    assert drawing.file_stem("../../a b;?", "x") == "a-b" and drawing.file_stem("🫁", "x") == "x"


def test_the_same_masks_give_the_same_zip():
    assert drawing.zip_of({"a.png": b"1"}) == drawing.zip_of({"a.png": b"1"})


def test_batch_goes_on_after_bad_files(segmenter, tmp_path):
    for name in ("first.png", "second.png"):
        Image.fromarray(noise()).save(tmp_path / name)
    (tmp_path / "bad.png").write_text("no picture")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.write(tmp_path / "first.png", "a/first.png")
        archive.write(tmp_path / "first.png", "../../b/first.png")  # leads nowhere: nothing is unpacked to disk
        archive.writestr("__MACOSX/a/._first.png", b"hidden")
        archive.writestr("notes.txt", "words")
    sources = batch.collect([str(tmp_path / name) for name in ("first.png", "bad.png", "more.zip", "second.png")])
    output = io.BytesIO()
    rows = list(batch.segment_files(segmenter, sources, "left; large", 0.0, output))
    assert [row.error is None for row in rows] == [True, False, True, True, False, True]
    assert all("no picture" in row.error for row in rows if row.error)
    with zipfile.ZipFile(output) as archive:
        names = archive.namelist()
        assert len(names) == 9 and len(set(names)) == 9 and not any(".." in name for name in names)
        mask = Image.open(io.BytesIO(archive.read("masks/001-first-mask-2-large.png")))
        assert mask.mode == "L" and mask.size == (60, 40) and mask.getextrema() == (255, 255)
        table = list(csv.DictReader(io.StringIO(archive.read("table.csv").decode())))
    assert len(table) == 10
    assert table[0]["area_px"] == "2400" and table[0]["mask"] in names
    assert table[2]["file"] == "bad.png" and "no picture" in table[2]["status"] and not table[2]["area_px"]


def test_batch_keeps_notes_apart_from_how_it_went(segmenter, tmp_path):
    Image.fromarray(np.linspace(200, 60000, 2400).reshape(40, 60).astype(np.uint16)).save(tmp_path / "16-bit.png")
    output = io.BytesIO()
    (row,) = batch.segment_files(segmenter, batch.collect([str(tmp_path / "16-bit.png")]), "left", 0.5, output)
    with zipfile.ZipFile(output) as archive:
        (line,) = csv.DictReader(io.StringIO(archive.read("table.csv").decode()))
    assert row.status == line["status"] == "done" and "more than 8 bits" in line["notes"]


def handlers_of(segmenter):
    import app

    return app.Handlers(segmenter)


def test_batch_refuses_a_sentence_once(segmenter, tmp_path):
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for path in paths:
        Image.fromarray(noise()).save(path)
    ((status, table, file),) = handlers_of(segmenter).on_batch(paths, "left lesion " * 9, 0.5)
    assert "too long for the model" in status and table == "" and file.interactive is False


def test_what_is_not_found_is_said_with_the_threshold_and_rounded_down(segmenter, answer):
    finding = segment.Finding("left lung", segment.COLOURS[0], np.zeros((4, 4), bool), 0, None, 0.9996)
    said = handlers_of(segmenter).summary(answer, [finding], 1)
    assert "Not found at threshold 1: left lung (highest probability 0.99)." in said


def test_a_choice_of_an_earlier_answer_is_brought_into_this_one(segmenter, answer, tmp_path, monkeypatch):
    import app

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    handlers = app.Handlers(segmenter)
    kept = app.Kept(answer, drawing.shown_picture(answer.picture), "picture.jpg")
    assert Path(handlers.on_view(kept, 0.5, 0.4, 6)[7]).name == Path(handlers.on_view(kept, 0.5, 0.4, 1)[7]).name
    assert handlers.on_heat(kept, 6) == handlers.on_heat(kept, 1)


def test_batch_of_nothing_but_bad_files_still_has_a_table(segmenter, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    output = io.BytesIO()
    list(batch.segment_files(segmenter, batch.collect([str(tmp_path / "bad.png")]), "left", 0.5, output))
    with zipfile.ZipFile(output) as archive:
        (row,) = csv.DictReader(io.StringIO(archive.read("table.csv").decode()))
    assert row["file"] == "bad.png"


def test_batch_refuses(segmenter, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    (tmp_path / "cut.zip").write_bytes((tmp_path / "empty.zip").read_bytes()[:10])
    with pytest.raises(ValueError, match=r"'cut.zip' is a damaged ZIP: pack it again"):
        batch.collect([str(tmp_path / "cut.zip")])
    for paths in ([], [str(tmp_path / "empty.zip")]):
        with pytest.raises(ValueError, match="no pictures"):
            batch.collect(paths)
    with pytest.raises(ValueError, match="101 files are too many"):
        batch.collect([str(tmp_path / f"{n}.png") for n in range(101)] if _touch(tmp_path) else [])

    archive = tmp_path / "odd.zip"
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("a.png", bytes(1000))
    content = archive.read_bytes()
    archive.write_bytes(content.replace(bytes(1000), b"\1" * 1000))  # the checksum no longer holds
    ((_, open_file),) = batch.collect([str(archive)])
    with pytest.raises(ValueError, match="cannot be unpacked"):
        open_file()
    monkeypatch.setattr(batch, "MAX_FILE_BYTES", 10)
    with pytest.raises(ValueError, match="is larger than"):
        open_file()


def _touch(folder):
    for number in range(101):
        (folder / f"{number}.png").touch()
    return True


def test_examples_are_the_built_in_samples_pictures():
    rows = [json.loads(line) for line in (SPACE / "examples" / "metadata.jsonl").read_text().splitlines()]
    assert {row["file_name"] for row in rows} == {path.name for path in (SPACE / "examples").glob("*.png")}
    absent = 0
    for row in rows:
        drawn = [draw_row(index, "test") for index in row["rows"]]
        assert row["prompt"] == "; ".join(one["prompt"] for one in drawn)
        with Image.open(SPACE / "examples" / row["file_name"]) as image:
            assert image.mode == drawn[0]["image"].mode and (np.asarray(image) == np.asarray(drawn[0]["image"])).all()
        absent += any(one["mask"].getbbox() is None for one in drawn)
    assert 3 <= len(rows) <= 5 and absent


def test_which_model(tmp_path, monkeypatch):
    monkeypatch.setattr(segment, "PROJECT", tmp_path)
    monkeypatch.delenv("TAMISEG_MODEL", raising=False)
    with pytest.raises(ValueError, match="make quickstart"):
        segment.find_model()
    for folder in reversed(segment.MODEL_FOLDERS):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").touch()
        assert segment.find_model() == str(tmp_path / folder)
    monkeypatch.setenv("TAMISEG_MODEL", "user/model")
    assert segment.find_model() == "user/model"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_weights_of_half_precision_are_shown(model_folder, tmp_path, dtype):
    shutil.copytree(model_folder, tmp_path / "half")
    TAMISegForImageSegmentation.from_pretrained(model_folder).to(dtype).save_pretrained(tmp_path / "half")
    shown = segment.Segmenter(str(tmp_path / "half"))
    assert shown.measure(shown.ask(Image.fromarray(noise()), "the large lesion"), 0.5)[0].mask.shape == (40, 60)


def test_models_that_cannot_be_shown(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="No model can be loaded from .*best/ folder"):
        segment.Segmenter(str(tmp_path / "empty"))
    assert "Error" in capsys.readouterr().err  # the whole story, for who started it
    save_tiny_model(tmp_path / "odd")
    settings = json.loads((tmp_path / "odd" / "tokenizer_config.json").read_text())
    (tmp_path / "odd" / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": "16"}))
    with pytest.raises(ValueError, match="No model can be loaded"):
        segment.Segmenter(str(tmp_path / "odd"))
    TAMISegForImageSegmentation(tiny_config(num_labels=4)).save_pretrained(tmp_path / "four")
    TAMISegProcessor(TAMISegImageProcessor(), make_tokenizer()).save_pretrained(tmp_path / "four")
    with pytest.raises(ValueError, match="4 classes"):
        segment.Segmenter(str(tmp_path / "four"))


STRANGER = """
import sys
import segment
from PIL import Image
assert not segment.import_our_packages(), "our packages can be imported: this process proves nothing"
segmenter = segment.Segmenter(sys.argv[1])
answer = segmenter.ask(Image.new("RGB", (30, 20), "grey"), "left; large")
print([finding.mask.shape for finding in segmenter.measure(answer, 0.5)])
"""


def test_a_space_needs_none_of_our_packages(model_folder, tmp_path):
    shutil.copytree(SPACE, tmp_path / "space")
    site = next(path for path in sys.path if path.endswith("site-packages"))
    # -S: an editable install of ours is not found; site-packages alone are added again.
    code = f"import sys; sys.path += [{str(tmp_path / 'space')!r}, {site!r}]\n" + STRANGER
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(model_folder)],
        capture_output=True,
        text=True,
        env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split("\n")[-2] == "[(20, 30), (20, 30)]"


def test_front_matter_and_requirements():
    import gradio
    import yaml

    front = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert front["sdk"] == "gradio" and (SPACE / front["app_file"]).is_file()
    assert front["sdk_version"] == gradio.__version__
    assert len(front["short_description"]) <= 60
    needed = (SPACE / "requirements.txt").read_text().split()
    assert needed and not any(line.startswith("gradio") for line in needed)
    assert {re.split("[<>=]", line)[0] for line in needed} >= {"torch", "transformers", "pillow", "numpy", "scipy"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_starts_and_says_so_without_a_model(tmp_path):
    """`tamiseg demo` as people start it: a checkout without a model comes up and names the command that mends it."""
    port = free_port()
    environment = {**os.environ, "TAMISEG_MODEL": str(tmp_path / "nowhere"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "processing.command_line", "demo", "--port", str(port)]
    before = set(SPACE.rglob("*"))
    with subprocess.Popen(command, cwd=SPACE.parent, env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            for _ in range(240):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=5) as config:
                        page = config.read().decode()
                    break
                except OSError:
                    assert server.poll() is None, "the demo stopped"
                    time.sleep(0.5)
            assert "No model can be loaded from" in page and "TAMISEG_MODEL" in page
        finally:
            server.terminate()
            server.wait(timeout=20)
    assert {path for path in SPACE.rglob("*") if "__pycache__" not in path.parts} <= before


def test_demo_command_refuses(tmp_path, capsys):
    assert main(["demo", "--model", str(tmp_path / "nowhere")]) == 2
    assert "no model folder" in capsys.readouterr().err
    assert main(["demo", "--port", "99999"]) == 2
    assert "--port is 99999: give 1 to 65535." in capsys.readouterr().err
