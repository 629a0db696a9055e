# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""`tamiseg predict`: a mask of the picture's own size, and one sentence with exit code 2 for whatever is wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from modeling_tamiseg import TAMISegForImageSegmentation
from processing import TAMISegImageProcessor, TAMISegProcessor
from processing.command_line import main
from processing.predict import ask, num_bytes
from processing.reading import refusal
from tests.test_modeling import tiny_config
from tests.test_processing import make_tokenizer


def save_tiny_model(folder, num_labels=2, seed=0):
    torch.manual_seed(seed)
    TAMISegForImageSegmentation(tiny_config(num_labels=num_labels)).save_pretrained(folder)
    images = TAMISegImageProcessor(size={"height": 64, "width": 64}, num_labels=num_labels)
    processor = TAMISegProcessor(images, make_tokenizer())
    processor.tokenizer.model_max_length = 16
    processor.save_pretrained(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny_model(folder)
    return folder


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.effect_noise((47, 33), 60).save(path)
    return path


@pytest.mark.parametrize("text", [[], ["--text", "left lung"]], ids=["without text", "with text"])
def test_writes_mask_and_overlay(model, picture, tmp_path, text, capsys):
    mask, overlay = tmp_path / "mask.png", tmp_path / "overlay.png"
    words = ["predict", str(picture), "--model", str(model), "--output", str(mask), "--overlay", str(overlay), *text]
    assert main(words) == 0
    written = Image.open(mask)
    assert written.mode == "L" and written.size == (47, 33)
    assert set(np.unique(written)) <= {0, 255}
    assert Image.open(overlay).size == (47, 33)
    assert "mask" in capsys.readouterr().out


def test_files_are_replaced_only_when_told(model, picture, tmp_path, capsys):
    mask, overlay = tmp_path / "mask.png", tmp_path / "overlay.png"
    words = ["predict", str(picture), "--model", str(model), "--output", str(mask), "--overlay", str(overlay)]
    for drawn in (mask, overlay):
        drawn.write_text("drawn by hand")
        assert main(words) == 2
        assert f"'{drawn}' is there already: give --overwrite" in capsys.readouterr().err
        assert drawn.read_text() == "drawn by hand"
        drawn.unlink()
    assert main(words) == 0 and main(words) == 2 and main([*words, "--overwrite"]) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_weights_of_half_precision(model, picture, tmp_path, dtype):
    folder, mask = tmp_path / "half", tmp_path / "mask.png"
    shutil.copytree(model, folder)
    TAMISegForImageSegmentation.from_pretrained(model).to(dtype).save_pretrained(folder)
    assert main(["predict", str(picture), "--text", "left", "--model", str(folder), "--output", str(mask)]) == 0
    assert Image.open(mask).size == (47, 33)


def test_a_threshold_is_for_two_classes(picture, tmp_path, capsys):
    folder, mask = tmp_path / "three", tmp_path / "mask.png"
    save_tiny_model(folder, num_labels=3)
    words = ["predict", str(picture), "--model", str(folder), "--output", str(mask)]
    assert main([*words, "--threshold", "0.9"]) == 2
    assert "tells 3 classes apart" in capsys.readouterr().err and not mask.exists()
    assert main(words) == 0


def test_a_sentence_too_long_is_refused_in_words_of_the_command(model, picture, tmp_path, capsys):
    words = ["predict", str(picture), "--model", str(model), "--output", str(tmp_path / "mask.png")]
    assert main([*words, "--text", "left lung " * 20]) == 2
    said = capsys.readouterr().err
    assert "tokens of at most 16: shorten it" in said and "truncation" not in said


def test_threshold_rules_the_area(model, picture, tmp_path):
    areas = []
    for threshold in ("0", "0.5", "1"):
        mask = tmp_path / f"{threshold}.png"
        assert (
            main(["predict", str(picture), "--model", str(model), "--output", str(mask), "--threshold", threshold])
            == 0
        )
        areas.append((np.asarray(Image.open(mask)) > 0).sum())
    assert areas[0] == 47 * 33 and areas[0] >= areas[1] >= areas[2]


def test_tiles_keep_the_pictures_own_resolution(model, tmp_path):
    picture, mask, certainty = tmp_path / "wide.png", tmp_path / "mask.png", tmp_path / "certainty.png"
    Image.effect_noise((300, 64), 60).save(picture)
    words = ["predict", str(picture), "--model", str(model), "--text", "left lung", "--output", str(mask)]
    words.append("--overwrite")
    assert main([*words, "--tile_size", "128", "--probabilities", str(certainty)]) == 0
    assert Image.open(mask).size == Image.open(certainty).size == (300, 64)
    # A tile that holds the whole picture gives the model's answer at the picture's own size.
    assert main([*words, "--tile_size", "512", "--probabilities", str(certainty)]) == 0
    reference = TAMISegForImageSegmentation.from_pretrained(model).eval()
    processor = TAMISegProcessor.from_pretrained(model)
    inputs = processor(images=Image.open(picture), text="left lung", do_resize=False, return_tensors="pt")
    with torch.no_grad():
        expected = reference(**inputs).logits.softmax(1)[0, 1].numpy()
    assert expected.std() > 1e-3
    np.testing.assert_allclose(np.asarray(Image.open(certainty)) / 65535, expected, atol=1e-4)


def test_tiles_of_another_scale_than_the_trainings_are_warned_of_once(model, tmp_path, capsys):
    (tmp_path / "scans").mkdir()
    for name, side in {"small": 80, "large": 200, "larger": 300}.items():
        Image.effect_noise((side, 64), 60).save(tmp_path / "scans" / f"{name}.png")
    words = ["predict", str(tmp_path / "scans"), "--model", str(model), "--output", str(tmp_path / "masks")]
    assert main(words) == 0 and "warning" not in capsys.readouterr().err
    assert main([*words, "--tile_size", "128", "--overwrite"]) == 0
    assert capsys.readouterr().err.count("whole pictures of 64 x 64 pixels; in tiles it sees another scale") == 1
    small = ["predict", str(tmp_path / "scans" / "small.png"), *words[2:], "--overwrite", "--tile_size", "128"]
    assert main(small) == 0 and "warning" not in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the flag needs Linux")
def test_max_memory_bounds_what_the_process_takes(model, tmp_path):
    picture, mask = tmp_path / "large.png", tmp_path / "mask.png"
    Image.effect_noise((1500, 1100), 60).save(picture)
    words = ["predict", str(picture), "--model", str(model), "--text", "left lung", "--output", str(mask)]
    words.append("--overwrite")
    code = f"""
import torch
from processing.command_line import main
from processing.predict import load, resident_memory
torch.set_num_threads(1)
load({str(model)!r})
bound = resident_memory() + 150 * 2**20
assert main([*{words}, "--max_memory", str(bound)]) == 0
assert main([*{words}, "--max_memory", str(bound - 130 * 2**20)]) == 2  # refused, not taken
bounded = resident_memory()
assert main([*{words}, "--tile_size", "1504"]) == 0
print(bound, bounded, resident_memory())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert run.returncode == 0, run.stderr
    bound, bounded, free = map(int, run.stdout.split()[-3:])
    assert bounded <= bound < free
    assert "too little for this picture's mask: give more" in run.stderr
    assert Image.open(mask).size == (1500, 1100)


def test_what_memory_lacks_is_rounded_up():
    model, picture = SimpleNamespace(config=SimpleNamespace(num_labels=2)), Image.new("RGB", (100, 100))
    with pytest.raises(ValueError, match="max_memory is 1 MiB too little"):
        ask(model, None, [picture], {}, 128, 64 * 100 * 100 - 1)


def test_amounts_of_memory():
    assert num_bytes("2GB") == num_bytes("2 GB") == num_bytes("2000000000") == 2 * 10**9
    assert num_bytes("1.5GiB") == 3 * 2**29
    for words in ("two", "2 TB", "", "1.2.3MB", "-1GB"):
        with pytest.raises(ValueError, match="no amount of memory"):
            num_bytes(words)


def test_help_says_the_defaults(capsys):
    def told(*command):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        return " ".join(capsys.readouterr().out.split())

    said = told("evaluate")
    assert "which rows: train, validation or test (default: test)" in said and "resampling (default: 0)" in said
    assert "or all (default: full_text no_text shuffled_text)" in said and "None" not in said and "False" not in said
    assert "of drawn splits (default: 0)" in told("data", "prepare")


def test_what_the_system_refuses_has_a_remedy(tmp_path):
    def said(act):
        with pytest.raises(OSError) as error:
            act()
        return refusal(error.value)

    (tmp_path / "text.png").write_text("words")
    assert said(lambda: (tmp_path / "none").read_text()) == f"'{tmp_path / 'none'}' is not there: check the path."
    assert "is there already and no folder" in said(lambda: (tmp_path / "text.png").mkdir(exist_ok=True))
    assert "is no folder" in said(lambda: (tmp_path / "text.png" / "a").write_text(""))
    assert "is a folder: give a file" in said(lambda: tmp_path.write_text(""))
    denied = PermissionError(13, "Permission denied", "runs")
    assert refusal(denied) == "'runs' cannot be read or written (permission denied): choose another folder."
    assert refusal(FileNotFoundError("there is no picture: check it.")) == "there is no picture: check it."


def spoil_json(path, *keys, value):
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


def spoil_weights(path, change):
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})


SPOILT_MODELS = {
    "cut weights": lambda folder: (folder / "model.safetensors").write_bytes(b"\x10" + bytes(40)),
    "a tensor is missing": lambda folder: spoil_weights(folder / "model.safetensors", lambda w: w.pop(min(w))),
    "a tensor of another shape": lambda folder: spoil_weights(
        folder / "model.safetensors", lambda w: w.update({min(w): torch.zeros(1)})
    ),
    "NaN": lambda folder: spoil_weights(
        folder / "model.safetensors", lambda w: [t.fill_(torch.nan) for t in w.values() if t.is_floating_point()]
    ),
    "config of another type": lambda folder: spoil_json(folder / "config.json", "dilations", value="wide"),
    "config of another model": lambda folder: spoil_json(folder / "config.json", "model_type", value="bert"),
    "config that is a list": lambda folder: (folder / "config.json").write_text("[]"),
    "tokenizer": lambda folder: spoil_json(folder / "tokenizer.json", "model", value={"type": "x"}),
    "special token": lambda folder: spoil_json(folder / "tokenizer_config.json", "cls_token", value=[1]),
    "processor": lambda folder: spoil_json(folder / "processor_config.json", "image_processor", value="x"),
}


@pytest.mark.parametrize("how", SPOILT_MODELS)
def test_a_spoilt_model_gets_one_sentence_and_no_mask(model, picture, tmp_path, capsys, how):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    SPOILT_MODELS[how](folder)
    assert main(["predict", str(picture), "--model", str(folder), "--output", str(tmp_path / "mask.png")]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tamiseg: ")]
    assert len(said) == 1 and "holds no model that can be used (" in said[0] and not (tmp_path / "mask.png").exists()


def bad_calls(model, picture, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture.read_bytes()[:60])
    words = tmp_path / "words.png"
    words.write_text("not a picture")
    empty = tmp_path / "empty"
    empty.mkdir()
    headless = tmp_path / "headless"
    headless.mkdir()
    for file in ("config.json", "processor_config.json"):
        (headless / file).write_bytes((model / file).read_bytes())
    good = {"image": picture, "--model": model, "--output": tmp_path / "m.png"}
    return [
        (good | {"image": tmp_path / "none.png"}, "there is no picture"),
        (good | {"image": broken}, "broken.png"),
        (good | {"image": words}, "words.png"),
        (good | {"--model": empty}, "holds no config"),
        (good | {"--model": headless}, "holds no weights"),
        (good | {"--model": tmp_path / "nowhere"}, "no model folder"),
        (good | {"--output": tmp_path / "no" / "m.png"}, "does not exist"),
        (good | {"--threshold": "7"}, "from 0 to 1"),
        (good | {"--tile_size": "8"}, "at least 128"),
        (good | {"--max_memory": "much"}, "no amount of memory"),
        (good | {"--max_memory": "1MB"}, "too little"),
        (good | {"--text": "left lung " * 20}, "shorten it"),
        (good | {"--overlay": tmp_path / "m.png"}, "2 outputs would be written"),
        (good | {"--output": tmp_path / "m.jpg"}, "let its name end in .png"),
        (good | {"--format": "rle"}, "let its name end in .json"),
        (good | {"--overlay": empty}, "let its name end in .png"),
        (good | {"--output": empty, "--overlay": tmp_path / "o.png"}, "a file or called like one"),
        (good | {"--model": "runs/typo"}, "there is no folder 'runs/typo' here, and"),
    ]


@pytest.mark.parametrize("case", range(18))
def test_bad_input_gets_one_sentence(model, picture, tmp_path, capsys, case):
    call, sentence = bad_calls(model, picture, tmp_path)[case]
    argv = ["predict", str(call.pop("image"))]
    for flag, value in call.items():
        argv += [flag, str(value)]
    assert main(argv) == 2
    said = capsys.readouterr().err
    line = [text for text in said.splitlines() if text.startswith("tamiseg:")]
    assert len(line) == 1 and sentence in line[0]
    assert "Traceback" not in said
