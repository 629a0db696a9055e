# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The pipeline: what people type, with the real model at toy size."""

import copy
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast, ResNetConfig, pipeline

from modeling_tamiseg import TAMISegConfig, TAMISegForImageSegmentation
from processing.image_processing_tamiseg import TAMISegImageProcessor
from processing.pipeline_tamiseg import TAMISegPipeline
from processing.processing_tamiseg import TAMISegProcessor
from tests.test_modeling import tiny_model


WORDS = "[PAD] [UNK] [CLS] [SEP] the large bright lesion upper left right".split()


def make_pipeline(dtype=torch.float32, **config):
    torch.manual_seed(0)
    vision = ResNetConfig(embedding_size=8, hidden_sizes=[16, 24, 32], depths=[1, 1, 1], layer_type="basic")
    text = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config = TAMISegConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), hidden_size=32, **config)
    model = TAMISegForImageSegmentation(config).eval()
    with torch.no_grad():
        # A fresh model hardly hears the sentence; these tests must notice when a wrong one arrives.
        for parameter in model.alignment.parameters():
            parameter.mul_(3)
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    )
    image_processor = TAMISegImageProcessor(size={"height": 32, "width": 32}, num_labels=config.num_labels)
    processor = TAMISegProcessor(image_processor, tokenizer)
    return TAMISegPipeline(model=model.to(dtype), processor=processor, device="cpu")


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


def image(seed=0, height=30, width=44):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a["label"] == b["label"] and a["score"] == pytest.approx(b["score"], abs=1e-5)
        # A pixel on the very edge may fall either way when the batch changes the order of additions.
        assert a["mask"].size == b["mask"].size
        assert (np.asarray(a["mask"]) != np.asarray(b["mask"])).mean() < 0.002
    return True


def differ(one, other):
    return one[0]["score"] != pytest.approx(other[0]["score"], abs=1e-5)


def test_agrees_with_the_parts(pipe):
    (result,) = pipe(image(), text="the  large lesion ")
    inputs = pipe.processor(image(), "the large lesion", return_tensors="pt")
    with torch.no_grad():
        outputs = pipe.model(**inputs)
    (mask,), (probabilities,) = pipe.processor.post_process_semantic_segmentation(
        outputs, [(30, 44)], return_probabilities=True
    )
    assert 0 < mask.sum() < mask.numel()
    assert result["mask"].mode == "L" and result["mask"].size == (44, 30)
    assert np.array_equal(np.asarray(result["mask"]), mask.numpy() * 255)
    assert result["label"] == "the large lesion"
    assert result["score"] == pytest.approx(probabilities[1][mask == 1].mean().item())


def test_without_text(pipe):
    results = [pipe(image()), pipe(image(), text=None), pipe(image(), text=" "), pipe({"image": image()})]
    assert all(same(result, results[0]) for result in results)
    assert results[0][0]["label"] == pipe.model.config.id2label[1]
    assert differ(results[0], pipe(image(), text="the lesion"))


def test_kinds_of_input(pipe, tmp_path):
    image().save(tmp_path / "scan.png")
    expected = pipe(image(), text="the lesion")
    for given in (np.asarray(image()), str(tmp_path / "scan.png"), tmp_path / "scan.png"):
        assert same(pipe(given, text="the lesion"), expected)
    assert same(pipe({"image": image(), "text": "the lesion"}), expected)
    assert same(pipe({"image": image(), "text": "the lesion"}, text="left"), expected)
    assert same(pipe({"image": image(), "prompt": "the lesion", "mask": None}, text="left"), expected)


def test_mask_has_the_upright_size(pipe, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image().save(tmp_path / "turned.png", exif=exif)
    assert pipe(str(tmp_path / "turned.png"), text="left")[0]["mask"].size == (30, 44)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_lists_and_batches(pipe, batch_size):
    pictures = [image(0), image(1, 50, 20), image(2), image(3, 31, 31), image(4)]
    sentences = ["the lesion", None, "the large bright lesion upper left", "", "right"]
    expected = [pipe(picture, text=sentence) for picture, sentence in zip(pictures, sentences, strict=True)]
    rows = [{"image": picture, "text": sentence} for picture, sentence in zip(pictures, sentences, strict=True)]
    for results in (
        pipe(pictures, text=sentences, batch_size=batch_size),
        pipe(tuple(pictures), text=tuple(sentences), batch_size=batch_size),
        pipe(rows, batch_size=batch_size),
        list(pipe((row for row in rows), batch_size=batch_size)),
    ):
        assert len(results) == 5
        assert all(same(result, one) for result, one in zip(results, expected, strict=True))
    for sentence in ("the lesion", None):
        expected = [pipe(picture, text=sentence) for picture in pictures]
        results = pipe(pictures, text=sentence, batch_size=batch_size)
        assert all(same(result, one) for result, one in zip(results, expected, strict=True))


def test_threshold_and_empty_mask(pipe):
    areas = []
    for threshold in (0.0, 0.3, 0.5, 0.7):
        (result,) = pipe(image(), text="the lesion", threshold=threshold)
        areas.append(int((np.asarray(result["mask"]) == 255).sum()))
    assert areas[0] == 30 * 44 and areas == sorted(areas, reverse=True)
    assert same(pipe(image(), text="the lesion", threshold=0.5), pipe(image(), text="the lesion"))
    (empty,) = pipe(image(), text="the lesion", threshold=1.0)
    assert empty["score"] == 0.0 and empty["label"] == "the lesion" and not np.asarray(empty["mask"]).any()


def test_defaults_given_at_construction(pipe):
    other = TAMISegPipeline(model=pipe.model, processor=pipe.processor, device="cpu", text="left", threshold=0.3)
    assert same(other(image()), pipe(image(), text="left", threshold=0.3))
    assert same(other(image(), text="right"), pipe(image(), text="right", threshold=0.3))


def test_refused(pipe):
    with pytest.raises(ValueError, match="2 sentences"):
        pipe([image()] * 3, text=["left", "right"])
    with pytest.raises(ValueError, match="2 sentences"):
        pipe(image(), text=["left", "right"])
    for asked in (
        lambda: pipe([image()], text=[["left", "right"]]),
        lambda: pipe({"image": image(), "text": ("a", "b")}),
    ):
        with pytest.raises(ValueError, match="one sentence per picture, not 2: give several to the processor"):
            asked()
    with pytest.raises(ValueError, match="no picture"):
        pipe({"text": "left"})
    with pytest.raises(ValueError, match="threshold"):
        pipe(image(), threshold=2)
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        pipe("nowhere.png")


def test_save_and_load(pipe, tmp_path, remote_code_folder):
    pipe.save_pretrained(tmp_path / "saved")
    loaded = pipeline("image-segmentation", model=str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    assert same(loaded(image(), text="the lesion"), pipe(image(), text="the lesion"))
    assert loaded.processor.image_processor.to_dict() == pipe.processor.image_processor.to_dict()


def test_fused_models(pipe):
    model = copy.deepcopy(pipe.model).fuse_for_inference()
    fused = TAMISegPipeline(model=model, processor=pipe.processor)
    assert same(fused(image(), text="the lesion"), pipe(image(), text="the lesion"))
    with pytest.raises(ValueError, match="fused for inference"):
        fused.save_pretrained("nowhere")


def test_several_classes():
    pipe = make_pipeline(id2label={0: "background", 1: "polyp", 2: "ulcer", 3: "vessel"})
    results = pipe(image(), text="the lesion")
    assert [result["label"] for result in results] == ["polyp", "ulcer", "vessel"]
    assert sum((np.asarray(result["mask"]) > 0).astype(int) for result in results).max() == 1
    with pytest.raises(ValueError, match="4 classes"):
        pipe(image(), threshold=0.5)


def test_half_precision(pipe):
    result = make_pipeline(torch.bfloat16)(image(), text="the lesion")
    assert abs(result[0]["score"] - pipe(image(), text="the lesion")[0]["score"]) < 0.05


def test_long_sentence_is_cut_with_one_warning(pipe):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipe([image()] * 2, text="the large lesion " * 20, batch_size=2)
    (message,) = [str(w.message) for w in caught if "tokens were cut" in str(w.message)]
    assert "2 of 2" in message


@torch.no_grad()
def test_pictures_of_different_sizes_with_long_short_and_no_sentence_equal_single_runs(pipe):
    pictures = [image(0, 30, 44), image(1, 64, 20), image(2, 51, 51)]
    sentences = ["the large bright lesion upper left", "", "right"]
    processor, model = pipe.processor, tiny_model()  # as initialised: the pipe's is made to exaggerate
    together = model(**processor(images=pictures, text=sentences, return_tensors="pt")).logits
    for row, (picture, sentence) in enumerate(zip(pictures, sentences, strict=True)):
        alone = model(**processor(images=picture, text=sentence, return_tensors="pt")).logits
        torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=0)
    assert (together[0] - together[2]).abs().max() > 1e-3
