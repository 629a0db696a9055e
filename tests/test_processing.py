# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The processor: sentences beside pictures, none lost and none cut unsaid, and a folder that loads anywhere."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

# `transformers.AutoImageProcessor` is a placeholder in 5.17 where torchvision is missing; this is the real one.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from modeling_tamiseg import TAMISegConfig, TAMISegImageSegmentationOutput
from processing.image_processing_tamiseg import TAMISegImageProcessor
from processing.processing_tamiseg import TAMISegProcessor


WORDS = "[PAD] [UNK] [CLS] [SEP] the large small bright lesion in upper lower left right".split()
LONG = "the large bright lesion in the upper left " * 3


def make_tokenizer(**kwargs):
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{"model_max_length": 16, **names, **kwargs})


@pytest.fixture
def processor():
    return TAMISegProcessor(TAMISegImageProcessor(size={"height": 16, "width": 16}), make_tokenizer())


def image(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 20, 3), dtype=np.uint8))


def test_what_comes_out(processor):
    mask = Image.new("L", (20, 12), 255)
    out = processor([image(), image(1)], ["the lesion", "lower left"], [mask, mask], return_tensors="pt")
    assert list(out.keys()) == ["pixel_values", "labels", "input_ids", "attention_mask"]
    assert out.input_ids.tolist() == [[2, 4, 8, 3], [2, 11, 12, 3]] and out.attention_mask.tolist() == [[1] * 4] * 2
    assert out.input_ids.dtype == out.attention_mask.dtype == torch.int64
    assert out.pixel_values.shape == (2, 3, 16, 16) and (out.labels == 1).all()
    assert set(processor(image(), "the lesion").keys()) == set(processor.model_input_names)
    assert list(processor(image()).keys()) == ["pixel_values"]
    by_image_processor = processor.image_processor([image(), image(1)], return_tensors="pt").pixel_values
    assert torch.equal(out.pixel_values, by_image_processor)


def test_one_sentence_for_all(processor):
    out = processor([image()] * 3, "the lesion", return_tensors="pt")
    assert out.input_ids.tolist() == [[2, 4, 8, 3]] * 3
    assert processor(image(), "the lesion", return_tensors="pt").input_ids.shape == (1, 4)


def test_blank_sentences(processor):
    out = processor([image()] * 4, ["the  lesion\n", None, "  ", "left"], return_tensors="pt")
    assert out.attention_mask.tolist() == [[1, 1, 1, 1], [0] * 4, [0] * 4, [1, 1, 1, 0]]
    assert out.input_ids[0].tolist() == [2, 4, 8, 3]
    for blank in ("", "  ", [None], [""], float("nan"), [float("nan")]):
        assert list(processor(image(), blank, return_tensors="pt").keys()) == ["pixel_values"]
    assert list(processor([image()] * 2, [None, " "]).keys()) == ["pixel_values"]


def test_several_sentences_per_picture(processor):
    out = processor([image()] * 3, [["the lesion", None], [], "lower left"], return_tensors="pt")
    assert out.image_indices.tolist() == [0, 0, 2] and out.image_indices.dtype == torch.int64
    assert out.attention_mask.tolist() == [[1] * 4, [0] * 4, [1] * 4] and len(out.pixel_values) == 3
    logits = torch.randn(3, 2, 16, 16)
    found = TAMISegImageSegmentationOutput(logits=logits, image_indices=out.image_indices)
    masks = processor.post_process_semantic_segmentation(found, [(9, 7), (5, 5), (4, 6)])
    assert [[tuple(mask.shape) for mask in some] for some in masks] == [[(9, 7)] * 2, [], [(4, 6)]]
    plain = TAMISegImageSegmentationOutput(logits=logits)
    one_by_one = processor.post_process_semantic_segmentation(plain, [(9, 7), (9, 7), (4, 6)])
    assert all(torch.equal(a, b) for a, b in zip([*masks[0], *masks[2]], one_by_one, strict=True))
    with pytest.raises(ValueError, match="2 target sizes for 3 pictures"):
        processor.post_process_semantic_segmentation(found, [(9, 7), (5, 5)])
    with pytest.raises(ValueError, match="all empty"):
        processor([image()], [[]])


@pytest.mark.parametrize("return_tensors", [None, "np", "pt"])
def test_each_sentence_goes_with_the_mask_of_its_picture(processor, return_tensors):
    masks = [Image.new("L", (20, 12), value) for value in (0, 255)]
    text = [["the lesion", "left"], ["right"]]
    out = processor([image(), image(1)], text, masks, return_tensors=return_tensors)
    assert [int(np.asarray(labels).max()) for labels in out.labels] == [0, 0, 1] and len(out.input_ids) == 3
    out = processor([image(), image(1)], [[], ["left", None]], masks, return_tensors=return_tensors)
    assert [int(np.asarray(labels).max()) for labels in out.labels] == [1, 1] and len(out.pixel_values) == 2


def test_text_alone(processor):
    assert processor(text="the lesion")["input_ids"] == [[2, 4, 8, 3]]
    out = processor(text=["the lesion", None, "left"], return_tensors="np")
    assert out["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]]
    assert dict(processor(text=[None, ""], return_tensors="pt")) == {}


def test_refused(processor):
    with pytest.raises(ValueError, match="3 sentences for 2 pictures"):
        processor([image()] * 2, ["left", None, "right"])
    with pytest.raises(ValueError, match="1 sentences for 2 pictures"):
        processor([image()] * 2, ["left"])
    with pytest.raises(ValueError, match="no pictures"):
        processor()
    with pytest.raises(ValueError, match="no pictures"):
        processor(text="left", segmentation_maps=Image.new("L", (4, 4)))
    for number in (3, [3]):
        with pytest.raises(ValueError, match="turn 3"):
            processor(image(), number)


def test_no_silent_truncation(processor):
    with pytest.warns(UserWarning) as caught:
        out = processor(text=["left", LONG, LONG + "left", None], return_tensors="pt")
    (message,) = [str(warning.message) for warning in caught]
    assert "11 of 27 tokens" in message and "limit is 16" in message and "2 of 4" in message
    assert f"'{LONG[:60]}...'" in message
    assert out.input_ids.shape == (4, 16) and out.attention_mask.sum(1).tolist() == [3, 16, 16, 0]
    assert out.input_ids[1, -1] == 3  # still closed by [SEP]
    with pytest.raises(ValueError, match="26 tokens, but the text encoder reads 16"):
        processor(text=LONG, truncation=False)
    with pytest.warns(UserWarning, match="limit is 5 "):
        assert len(processor(text="the large bright lesion", max_length=5)["input_ids"][0]) == 5
    with pytest.warns(UserWarning, match="limit is 16"):  # a max_length cannot make the encoder read more
        processor(text=LONG, max_length=20)


def test_no_limit_no_warning():
    processor = TAMISegProcessor(TAMISegImageProcessor(), make_tokenizer(model_max_length=int(1e30)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(processor(text=LONG * 9)["input_ids"][0]) == 24 * 9 + 2


def test_what_a_tokenizer_file_carries_does_not_act_silently(tmp_path):
    tokenizer = make_tokenizer(model_max_length=64, max_length=4, stride=0, truncation_strategy="longest_first")
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=20)
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["truncation"]["max_length"] == 4 and saved["padding"]["strategy"] == {"Fixed": 20}
    processor = TAMISegProcessor(TAMISegImageProcessor(), AutoTokenizer.from_pretrained(tmp_path))
    assert processor.tokenizer.init_kwargs["max_length"] == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert [len(ids) for ids in processor(text=[LONG, "left"])["input_ids"]] == [26, 26]
            assert len(processor(text="left")["input_ids"][0]) == 3


def test_chosen_tokenizer_settings_are_kept():
    tokenizer = make_tokenizer(padding="max_length", max_length=11)
    processor = TAMISegProcessor(TAMISegImageProcessor(), tokenizer)
    assert processor(image(), "left", return_tensors="pt").input_ids.shape == (1, 11)
    assert processor(image(), "left", padding="longest", return_tensors="pt").input_ids.shape == (1, 3)


def test_keywords_by_either_route(processor):
    by_call = processor(
        image(), "left", return_tensors="pt", padding="max_length", max_length=9, size={"height": 8, "width": 6}
    )
    nested = processor(
        image(),
        "left",
        text_kwargs={"padding": "max_length", "max_length": 9, "return_tensors": "pt"},
        images_kwargs={"size": {"height": 8, "width": 6}, "return_tensors": "pt"},
    )
    common = processor(
        image(),
        "left",
        common_kwargs={"return_tensors": "pt"},
        text_kwargs={"padding": "max_length", "max_length": 9},
        images_kwargs={"size": {"height": 8, "width": 6}},
    )
    for out in (by_call, nested, common):
        assert out.input_ids.shape == (1, 9) and out.attention_mask.sum() == 3
        assert torch.equal(out.pixel_values, by_call.pixel_values) and out.pixel_values.shape == (1, 3, 8, 6)
    assert processor(text="left", padding="max_length", return_tensors="pt")["input_ids"].shape == (1, 16)
    assert processor(text=["left", "the lesion"], padding=False)["input_ids"] == [[2, 12, 3], [2, 4, 8, 3]]
    assert processor(text="left", add_special_tokens=False)["input_ids"] == [[12]]
    assert "token_type_ids" in processor(text="left", return_token_type_ids=True)
    padded_left = processor(text=["left", "the lesion"], padding_side="left")
    assert padded_left["attention_mask"] == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert processor(image(), num_labels=3, segmentation_maps=Image.new("L", (20, 12), 2))["labels"][0].max() == 2


def test_post_process_delegates(processor):
    class Outputs:
        logits = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))

    masks, _ = processor.post_process_semantic_segmentation(Outputs, [(12, 20)], return_probabilities=True)
    assert torch.equal(
        masks[0], processor.image_processor.post_process_semantic_segmentation(Outputs, target_sizes=[(12, 20)])[0]
    )


def test_save_and_load(processor, tmp_path):
    AutoImageProcessor.register(TAMISegConfig, image_processor_classes={"pil": TAMISegImageProcessor}, exist_ok=True)
    processor.image_processor.image_mean = (0.1, 0.2, 0.3)
    processor.image_processor.num_labels = 5
    processor.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"processor_config.json", "tokenizer.json"}
    loaded = TAMISegProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded.image_processor, TAMISegImageProcessor)
    assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()
    assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert loaded.tokenizer.model_max_length == 16
    before, after = (p(image(), "the lesion", return_tensors="pt") for p in (processor, loaded))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before.keys())


def test_loads_where_the_package_is_not_installed(processor, tmp_path, monkeypatch):
    monkeypatch.setattr(TAMISegProcessor, "_auto_class", "AutoProcessor")
    monkeypatch.setattr(TAMISegImageProcessor, "_auto_class", "AutoImageProcessor")
    processor.image_processor.num_labels = 7
    folder = tmp_path / "saved"
    processor.save_pretrained(folder)
    code = {"image_processing_tamiseg.py", "processing_tamiseg.py", "pipeline_tamiseg.py", "prompts.py"}
    assert {path.name for path in folder.glob("*.py")} == code
    np.save(tmp_path / "image.npy", np.asarray(image()))
    script = f"""
import numpy, transformers
processor = transformers.AutoProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)
for part, name in [(processor, "TAMISegProcessor"), (processor.image_processor, "TAMISegImageProcessor")]:
    assert type(part).__name__ == name and type(part).__module__.startswith("transformers_modules.")
assert processor.image_processor.num_labels == 7
out = processor(numpy.load("image.npy"), "the lesion", return_tensors="np")
assert out["input_ids"].tolist() == [[2, 4, 8, 3]]
numpy.save("pixel_values.npy", out["pixel_values"])
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    expected = processor(image(), "the lesion", return_tensors="np")["pixel_values"]
    assert np.array_equal(np.load(tmp_path / "pixel_values.npy"), expected)


def test_hub_bound_files_import_nothing_else():
    folder = Path(sys.modules[TAMISegProcessor.__module__].__file__).parent
    allowed = {"numpy", "PIL", "torch", "transformers", *sys.stdlib_module_names}
    for name in ("image_processing_tamiseg", "processing_tamiseg", "pipeline_tamiseg"):
        for line in (folder / f"{name}.py").read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                root = words[1].split(".")[0]
                assert root in allowed or (
                    words[1].startswith(".") and words[1].count(".") == 1 and words[1] != "."
                ), line
