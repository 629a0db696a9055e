# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The model as its users rely on it: any batch and size, text or none, gradients where they belong, exact saving."""

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import (
    AutoBackbone,
    AutoModel,
    BeitConfig,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPTextConfig,
    ConvNextConfig,
    DINOv3ViTConfig,
    HieraConfig,
    MobileNetV2Config,
    PvtV2Backbone,
    PvtV2Config,
    ResNetConfig,
    T5Config,
    Trainer,
    TrainingArguments,
    ViTConfig,
)

from modeling_tamiseg import (
    SemanticDistiller,
    TAMISegConfig,
    TAMISegForConsistencyPretraining,
    TAMISegForImageSegmentation,
    TAMISegImageSegmentationOutput,
    TextCache,
)
from modeling_tamiseg.decoder import convolve_upsampled, upsample
from modeling_tamiseg.losses import consistency_loss, dice_loss, distillation_loss, segmentation_loss
from modeling_tamiseg.modeling_tamiseg import load_text_model, load_vision_model
from modeling_tamiseg.tiling import SPARE, PeakMemory, tiles


TEXT = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [16, 24, 32], "depths": [1, 1, 1]}
MOBILENET = {"model_type": "mobilenet_v2", "depth_multiplier": 0.35, "output_stride": 16, "tf_padding": False}
CONVNEXT = {
    "model_type": "convnext",
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "out_indices": [1, 2, 3, 4],
}
SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 1, 1],
    "window_size": 2,
    "out_indices": [1, 2, 3, 4],
}


def tiny_config(vision=RESNET, **kwargs) -> TAMISegConfig:
    return TAMISegConfig(**{"vision_config": vision, "text_config": TEXT, "hidden_size": 16, **kwargs})


def tiny_model(**kwargs) -> TAMISegForImageSegmentation:
    torch.manual_seed(0)
    return TAMISegForImageSegmentation(tiny_config(**kwargs)).eval()


def sentences(batch_size=3, length=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 50, (batch_size, length), generator=generator)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"vision": MOBILENET},
        {"vision": {**MOBILENET, "output_stride": 32}},
        {"vision": CONVNEXT, "vision_strides": [4, 8, 16, 32]},
        {"vision": SWIN, "vision_strides": [4, 8, 16, 32]},
        {"use_multi_scale": False},
        {"alignment_stride": 2, "project_first": False, "fusion": "full_resolution"},
        {"num_labels": 4},
    ],
    ids=[
        "resnet",
        "mobilenet16",
        "mobilenet32",
        "convnext",
        "swin",
        "no multi-scale",
        "reference fusion",
        "four classes",
    ],
)
def test_forward_and_backward_reach_every_trainable_parameter(kwargs):
    model = tiny_model(**kwargs).train()
    labels = torch.randint(0, model.config.num_labels, (2, 64, 96))
    output = model(torch.randn(2, 3, 64, 96), input_ids=sentences(2), labels=labels)
    output.loss.backward()
    assert output.logits.shape == (2, model.config.num_labels, 64, 96)
    assert len(output.vision_hidden_states) == 4
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_reference_preset_keeps_the_papers_widths():
    config = TAMISegConfig.reference(text_config=TEXT)
    assert (config.hidden_size, config.num_attention_heads, config.attention_head_dim) == (768, 8, 64)
    assert (config.fusion, config.alignment_stride, config.project_first) == ("full_resolution", 2, False)


@torch.no_grad()
@pytest.mark.parametrize("size", [(33, 47), (64, 64), (70, 90)])
def test_batch_with_long_short_and_no_text_equals_single_rows(size):
    model = tiny_model()
    pixel_values, input_ids = torch.randn(3, 3, *size), sentences()
    attention_mask = torch.tensor([[1] * 6, [0] * 6, [1, 1, 1, 0, 0, 0]])
    together = model(pixel_values, input_ids, attention_mask).logits
    assert together.shape[-2:] == size
    for row, length in enumerate((6, 0, 3)):
        text = {"input_ids": input_ids[row : row + 1, :length]} if length else {}
        alone = model(pixel_values[row : row + 1], **text).logits
        torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_sentence_changes_the_answer_and_its_padding_does_not():
    model = tiny_model()
    pixel_values, input_ids = torch.randn(1, 3, 64, 64), sentences(1)
    plain = model(pixel_values, input_ids).logits
    padded = model(pixel_values, torch.cat([input_ids, input_ids], 1), torch.tensor([[1] * 6 + [0] * 6])).logits
    other = model(pixel_values, input_ids.flip(1)).logits
    torch.testing.assert_close(plain, padded, atol=1e-5, rtol=0)
    assert (plain - other).abs().max() > 1e-4
    assert (plain - model(pixel_values).logits).abs().max() > 1e-4


@torch.no_grad()
def test_words_can_bind_to_places():
    """On a picture of one colour, only the position code can tell left from right."""
    model = tiny_model()
    maps = [torch.zeros(1, 16, 4, 4)]
    aligned = model.alignment(maps, torch.randn(1, 5, 16), torch.ones(1, 5))[0]
    assert (aligned[..., 0] - aligned[..., -1]).abs().max() > 1e-5


@torch.no_grad()
def test_attentions_come_back_on_request():
    model, pixel_values, input_ids = tiny_model(), torch.randn(2, 3, 64, 96), sentences(2)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    plain, asked = (model(pixel_values, input_ids, mask, output_attentions=ask) for ask in (False, True))
    assert plain.cross_attentions is None and torch.equal(plain.logits, asked.logits)
    pixels = 3 * 8 * 12 + 4 * 6  # three scales at the alignment's stride of 8, one at 16
    assert [tuple(weights.shape) for weights in asked.cross_attentions] == [(2, 4, pixels, 6)] * 2
    for weights in asked.cross_attentions:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, pixels))
        assert weights[1, ..., 4:].max() == 0 and weights[:, ..., :4].min() > 0
    # The weights of one attention, by the textbook.
    attention, words = model.alignment.attentions[0], torch.randn(1, 5, 16)
    tokens, positions, kept = torch.randn(1, 7, 16), torch.randn(7, 16), []
    update = attention(tokens, positions, words, torch.ones(1, 5, dtype=torch.bool), kept)
    queries, keys, values = (
        projected.unflatten(-1, (4, 16)).transpose(1, 2)
        for projected in (
            attention.query(attention.norm(tokens) + positions), attention.key(words), attention.value(words)
        )
    )  # fmt: skip
    weights = (queries @ keys.transpose(-1, -2) / 4).softmax(-1)
    torch.testing.assert_close(kept[0], weights, atol=1e-5, rtol=1e-4)
    expected = attention.output((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(update, expected, atol=1e-5, rtol=1e-4)


def test_kept_text_states_give_the_same_logits():
    model, pixel_values, input_ids = tiny_model(), torch.randn(2, 3, 64, 64), sentences(2)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    states = model.get_text_features(input_ids, mask)
    by_ids = model(pixel_values, input_ids, mask).logits
    torch.testing.assert_close(model(pixel_values, text_embeds=states, attention_mask=mask).logits, by_ids)
    with pytest.raises(ValueError, match="not both"):
        model(pixel_values, input_ids, text_embeds=states)
    with pytest.raises(ValueError, match="2 pictures, but 1 rows"):
        model(pixel_values, input_ids[:1])


@torch.no_grad()
def test_many_sentences_per_picture_equal_single_runs_and_read_the_picture_once(monkeypatch):
    model, pixel_values, input_ids = tiny_model(), torch.randn(2, 3, 64, 96), sentences(3)
    seen, encode = [], model.vision_encoder.forward
    monkeypatch.setattr(model.vision_encoder, "forward", lambda pixels: seen.append(len(pixels)) or encode(pixels))
    mask = torch.tensor([[1] * 6, [0] * 6, [1, 1, 1, 0, 0, 0]])
    owners = torch.tensor([1, 0, 1])
    output = model(pixel_values, input_ids, mask, image_indices=owners)
    assert seen == [2] and torch.equal(output.image_indices, owners)
    for row, owner in enumerate(owners):
        alone = model(pixel_values[owner : owner + 1], input_ids[row : row + 1], mask[row : row + 1]).logits
        torch.testing.assert_close(output.logits[row], alone[0], atol=1e-4, rtol=0)
    assert model(pixel_values, image_indices=owners).logits.shape[0] == 3  # asked three times, without words
    with pytest.raises(ValueError, match="2 image_indices, but 3 rows"):
        model(pixel_values, input_ids, image_indices=owners[:2])


@torch.no_grad()
def test_a_picture_that_is_asked_again_is_not_encoded_again(monkeypatch):
    model, pixel_values = tiny_model(), torch.randn(2, 3, 50, 70)
    first, second = sentences(4).chunk(2)
    kept = model(pixel_values, first).vision_hidden_states
    expected = model(pixel_values, second).logits
    monkeypatch.setattr(model.vision_encoder, "forward", None)
    assert torch.equal(model(pixel_values, second, vision_hidden_states=kept).logits, expected)


def test_sentences_are_read_once(monkeypatch):
    model, input_ids = tiny_model(), sentences(3)
    mask = torch.tensor([[1] * 6, [0] * 6, [1, 1, 1, 0, 0, 0]])
    read, seen, encode = TextCache(model, max_sentences=2), [], model.text_encoder.forward
    monkeypatch.setattr(model.text_encoder, "forward", lambda ids, *rest: seen.append(len(ids)) or encode(ids, *rest))
    pixel_values = torch.randn(3, 3, 32, 32)
    first = model(pixel_values, **read(input_ids, mask)).logits
    again = model(pixel_values[:2], **read(input_ids[:2, :6], mask[:2])).logits
    assert seen == [1, 1]
    torch.testing.assert_close(first, model(pixel_values, input_ids, mask).logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(again, first[:2], atol=1e-5, rtol=0)
    read(sentences(3).flip(1), mask)  # two others push the first two out
    assert len(read.states) == 2


def test_kept_sentences_follow_the_model():
    model, input_ids, mask = tiny_model(), sentences(2), torch.tensor([[1] * 6, [0] * 6])
    read = TextCache(model)
    before = read(input_ids, mask)["text_embeds"]
    model.double()
    after = read(input_ids.flip(0), mask)["text_embeds"]  # one sentence that is new, one row without
    again = read(input_ids, mask)["text_embeds"]
    assert after.dtype == again.dtype == torch.float64
    torch.testing.assert_close(again, before.double(), atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"vision": MOBILENET}, {"alignment_stride": 2, "project_first": False, "fusion": "full_resolution"}],
    ids=["resnet", "mobilenet", "reference fusion"],
)
def test_fused_model_says_the_same_and_cannot_be_trained_or_saved(tmp_path, kwargs):
    model = tiny_model(**kwargs)
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    pixel_values, input_ids = torch.randn(2, 3, 80, 96), sentences(2)
    before = model(pixel_values, input_ids).logits
    fused = model.fuse_for_inference().fuse_for_inference()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    torch.testing.assert_close(fused(pixel_values, input_ids).logits, before, atol=1e-4 * before.abs().max(), rtol=0)
    with pytest.raises(ValueError, match="before fusing"):
        fused.train()
    with pytest.raises(ValueError, match="before fusing"):
        fused.save_pretrained(tmp_path)


@torch.no_grad()
def test_tiles_give_what_the_whole_picture_gives():
    model = tiny_model(dilations=[1, 2])  # looks about 200 pixels far
    pixel_values, input_ids = torch.randn(1, 3, 90, 1201), sentences(2)
    asked = {"input_ids": input_ids, "image_indices": torch.zeros(2, dtype=torch.long)}
    whole = model(pixel_values, **asked).logits
    tiled = model.segment_in_tiles(pixel_values, tile_size=800, overlap=384, **asked).logits
    assert tiled.shape == whole.shape
    # The cuts are at 416 and 800: what lies 200 pixels from the cut of the only tile that shows it must be the same.
    torch.testing.assert_close(tiled[..., :200], whole[..., :200], atol=1e-4, rtol=0)
    torch.testing.assert_close(tiled[..., 1000:], whole[..., 1000:], atol=1e-4, rtol=0)
    small = model.segment_in_tiles(pixel_values[..., :300], **asked).logits
    torch.testing.assert_close(small, model(pixel_values[..., :300], **asked).logits, atol=1e-5, rtol=0)
    # Without the place of a tile in the picture, words such as "left" would change their meaning.
    unaware = model(pixel_values[..., 800:], **asked).logits
    assert (unaware[..., 300:] - whole[..., 1100:]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="less than half"):
        model.segment_in_tiles(pixel_values, tile_size=64, overlap=32)
    with pytest.raises(ValueError, match="^tile_size is 32, too small .* more than 32, or an overlap of 0"):
        model.segment_in_tiles(pixel_values[..., :100], tile_size=32)
    for overlap in ({}, {"overlap": 0}):
        size = 33 if not overlap else 16
        assert model.segment_in_tiles(pixel_values[..., :100], size, **overlap).logits.shape == (1, 2, 90, 100)


@torch.no_grad()
def test_tiles_shrink_to_the_memory_that_is_given(monkeypatch):
    model = tiny_model(dilations=[1, 2])
    pixel_values, seen = torch.randn(1, 3, 400, 1201), []
    read_image = model.decoder.read_image
    monkeypatch.setattr(
        model.decoder, "read_image", lambda maps: seen.append(16 * maps[3].shape[-1]) or read_image(maps)
    )
    with PeakMemory() as whole:
        expected = model.segment_in_tiles(pixel_values, tile_size=512).logits
    assert max(seen) == 512
    for share in (2, 0.8, 0.6):
        seen.clear()
        room = SPARE + int(share * whole.peak)
        with PeakMemory() as bounded:
            logits = model.segment_in_tiles(pixel_values, tile_size=512, max_memory=room).logits
        assert bounded.peak <= room - SPARE and logits.shape == expected.shape
        assert max(seen) == 512 if share == 2 else 128 <= max(seen) < 512
        assert torch.equal(logits, expected) == (share == 2)
    with pytest.raises(ValueError, match="MiB too little for tiles of 128 pixels"):
        model.segment_in_tiles(pixel_values, max_memory=SPARE)


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 9), (33, 47), (47, 4096), (4096, 4096)])
def test_any_size_fits_a_memory(size):
    vision = {**RESNET, "embedding_size": 4, "hidden_sizes": [4, 4, 8]}  # as quick as can be
    model = tiny_model(vision=vision, hidden_size=4, num_attention_heads=1, dilations=[1, 2]).fuse_for_inference()
    pixel_values = torch.randn(1, 3, *size)
    asked = {"input_ids": sentences(1), "max_memory": 2**29}
    tiled = model.segment_in_tiles(pixel_values, **asked).logits
    assert tiled.shape == (1, 2, *size) and tiled.isfinite().all()
    # The first corner lies in one tile, and further from its cut than the network looks.
    corner = model(pixel_values[..., :512, :512], input_ids=sentences(1), region=corner_of(size)).logits
    torch.testing.assert_close(tiled[..., :256, :256], corner[..., :256, :256], atol=1e-4, rtol=0)


def corner_of(size):
    return 0.0, 0.0, min(1.0, 512 / size[0]), min(1.0, 512 / size[1])


@pytest.mark.parametrize("size", [(16, 16), (48, 4096), (208, 336)])
def test_tiles_cover_every_pixel_with_weights_that_sum_to_one(size):
    total = torch.zeros(size)
    for rows, columns, weight in tiles(size, tile_size=128, overlap=48, stride=16):
        assert rows.stop - rows.start <= 128 and columns.stop - columns.start <= 128
        assert not rows.start % 16 and not columns.start % 16
        total[rows, columns] += weight
    torch.testing.assert_close(total, torch.ones(size))


def test_frozen_parts_hold_still():
    model = tiny_model(freeze_vision_encoder=True, vision=MOBILENET).train()
    before = {k: v.clone() for k, v in model.state_dict().items() if k.startswith(("vision_encoder", "text_encoder"))}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(2, 3, 64, 64), sentences(2), labels=torch.ones(2, 64, 64, dtype=torch.long)).loss.backward()
    optimizer.step()
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())  # weights and BatchNorm statistics
    assert not any(m.training for m in model.text_encoder.modules())


def test_adapters_in_a_frozen_text_encoder_train():
    """As peft puts them in: the layer's own weights are frozen, thin ones beside them are not."""
    model = tiny_model().train()
    attention = model.text_encoder.model.encoder.layer[0].attention.self
    thin = torch.nn.Sequential(torch.nn.Linear(16, 2), torch.nn.Linear(2, 16))
    attention.query.register_forward_hook(lambda layer, inputs, output: output + thin(inputs[0]))
    attention.query.thin = thin
    asked = {"pixel_values": torch.randn(2, 3, 64, 64), "labels": torch.ones(2, 64, 64, dtype=torch.long)}
    model(input_ids=sentences(2), **asked).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in thin.parameters())
    assert attention.query.weight.grad is None
    assert not tiny_model().train().get_text_features(sentences(2)).requires_grad


class Adapted(torch.nn.Module):
    """What peft puts in a linear layer's place."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        self.thin = torch.nn.Sequential(
            torch.nn.Linear(layer.in_features, 2, bias=False), torch.nn.Linear(2, layer.out_features, bias=False)
        )

    def forward(self, x):
        return self.base_layer(x) + self.thin(x)


def test_adapters_in_the_alignment_train_and_can_be_merged():
    model, pixel_values, input_ids = tiny_model(), torch.randn(2, 3, 64, 64), sentences(2)
    before = model(pixel_values, input_ids).logits
    adapted = {}
    for i, attention in enumerate(model.alignment.attentions):
        for name in ("query", "key", "value", "output"):
            adapted[i, name] = Adapted(getattr(attention, name))
            setattr(attention, name, adapted[i, name])
    logits = model(pixel_values, input_ids).logits
    logits.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for layer in adapted.values() for p in layer.thin.parameters())
    assert (logits - before).abs().max() > 1e-4
    for (i, name), layer in adapted.items():
        layer.base_layer.weight.data += layer.thin[1].weight.data @ layer.thin[0].weight.data
        setattr(model.alignment.attentions[i], name, layer.base_layer)
    torch.testing.assert_close(model(pixel_values, input_ids).logits, logits, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # torch wants it to be done by torchao, a package of its own
def test_linear_layers_can_be_quantised():
    model, pixel_values, input_ids = tiny_model(), torch.randn(2, 3, 64, 64), sentences(2)
    expected = model(pixel_values, input_ids).logits
    small = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
    assert (small(pixel_values, input_ids).logits - expected).abs().max() < 0.05 * expected.abs().max()


def test_running_statistics_of_mobilenet_average_over_batches():
    model = tiny_model(vision=MOBILENET)
    norms = [m for m in model.vision_encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and {m.momentum for m in norms} == {0.1}


def test_save_and_load_exact(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is TAMISegForImageSegmentation
    pixel_values, input_ids = torch.randn(1, 3, 48, 48), sentences(1)
    assert torch.equal(model(pixel_values, input_ids).logits, loaded(pixel_values, input_ids).logits)
    assert not any("teacher" in key or "projector" in key for key in loaded.state_dict())


def test_pretrained_encoders_arrive_unchanged(tmp_path):
    vision = AutoModel.from_config(ResNetConfig(embedding_size=8, hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 1, 1]))
    text = AutoModel.from_config(BertConfig(**{k: v for k, v in TEXT.items() if k != "model_type"}))
    vision.save_pretrained(tmp_path / "vision")
    text.save_pretrained(tmp_path / "text")
    model = TAMISegForImageSegmentation.from_vision_text_pretrained(
        str(tmp_path / "vision"), str(tmp_path / "text"), hidden_size=16
    )
    assert not any(module.training for module in model.modules())
    state = model.state_dict()
    for prefix, source in (("vision_encoder.backbone.", vision), ("text_encoder.model.", text)):
        ours = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        assert ours and all(torch.equal(v, source.state_dict()[k]) for k, v in ours.items())


@pytest.mark.parametrize(
    "config",
    [MobileNetV2Config(depth_multiplier=0.35), ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])],
    ids=["mobilenet", "convnext"],
)
def test_other_encoders_from_folders(tmp_path, config):
    AutoModel.from_config(config).save_pretrained(tmp_path / "vision")
    AutoModel.from_config(BertConfig(**{k: v for k, v in TEXT.items() if k != "model_type"})).save_pretrained(
        tmp_path / "text"
    )
    model = TAMISegForImageSegmentation.from_vision_text_pretrained(
        str(tmp_path / "vision"), str(tmp_path / "text"), hidden_size=16
    )
    assert model(torch.randn(1, 3, 64, 64), sentences(1)).logits.shape == (1, 2, 64, 64)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"hidden_size": 18}, "multiple of 4"),
        ({"vision_strides": [2, 4, 8]}, "four strides"),
        ({"vision_strides": [0, 4, 8, 16]}, "four strides"),
        ({"alignment_stride": 3}, "alignment_stride"),
        ({"alignment_stride": 0}, "alignment_stride is 0: give at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0: give at least 1"),
        ({"dilations": []}, "give at least one"),
        ({"dilations": [0, 6]}, "each at least 1"),
        ({"num_labels": 1}, "background counts"),
        ({"vision": {"hidden_sizes": [8]}}, "model_type"),
    ],
)
def test_impossible_choices_are_refused_with_the_repair(kwargs, sentence):
    # transformers wraps what a validator says into an error class of its own.
    with pytest.raises((ValueError, StrictDataclassClassValidationError), match=sentence):
        tiny_config(**kwargs)


@pytest.mark.parametrize("model_class", [TAMISegForImageSegmentation, TAMISegForConsistencyPretraining])
def test_choices_that_became_impossible_are_refused_at_loading(model_class, tmp_path):
    model_class(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="^hidden_size is 63, but .*: take 64"):
        model_class.from_pretrained(tmp_path, hidden_size=63, ignore_mismatched_sizes=True)
    assert model_class.from_pretrained(tmp_path, hidden_size=32, ignore_mismatched_sizes=True).config.hidden_size == 32


def test_trainer_predicts_logits_alone(tmp_path):
    rows = [
        {"pixel_values": torch.randn(3, 32, 32), "input_ids": row, "labels": torch.ones(32, 32, dtype=torch.long)}
        for row in sentences(3)
    ]
    arguments = TrainingArguments(tmp_path, per_device_eval_batch_size=2, use_cpu=True, report_to="none")
    predicted = Trainer(tiny_model(), arguments).predict(rows)
    assert predicted.predictions.shape == (3, 2, 32, 32) and predicted.label_ids.shape == (3, 32, 32)
    shown = {"logits", "loss"} | set(TAMISegConfig.keys_to_ignore_at_inference)
    assert set(TAMISegImageSegmentationOutput.__dataclass_fields__) == shown


def test_trainer_takes_the_same_step_in_pieces(tmp_path):
    row = {"pixel_values": torch.randn(3, 32, 32), "input_ids": sentences(1)[0]}
    row["labels"] = torch.randint(0, 2, (32, 32))
    weights, losses = [], []
    for batch_size, pieces in ((8, 1), (2, 4)):
        model = tiny_model()
        arguments = TrainingArguments(
            tmp_path, per_device_train_batch_size=batch_size, gradient_accumulation_steps=pieces, max_steps=1,
            optim="sgd", learning_rate=0.1, max_grad_norm=1e6, use_cpu=True, report_to="none", save_strategy="no",
        )  # fmt: skip
        losses.append(Trainer(model, arguments, train_dataset=[row] * 8).train().training_loss)
        weights.append([p.detach() for p in model.parameters() if p.requires_grad])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    torch.testing.assert_close(weights[0], weights[1], atol=1e-5, rtol=1e-4)


def test_wrong_strides_are_refused():
    with pytest.raises(ValueError, match="set vision_strides"):
        tiny_model(vision=CONVNEXT)(torch.randn(1, 3, 64, 64))


# Stage 1


def test_stage_one_gives_its_encoder_to_stage_two(tmp_path):
    torch.manual_seed(3)
    stage_one = TAMISegForConsistencyPretraining(tiny_config())
    stage_one.save_pretrained(tmp_path)
    stage_two = TAMISegForImageSegmentation.from_pretrained(tmp_path)
    for key, value in stage_one.vision_encoder.state_dict().items():
        assert torch.equal(stage_two.vision_encoder.state_dict()[key], value), key


def disc(x: float, y: float) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
    return ((rows - y) ** 2 + (columns - x) ** 2 < 100).long()[None]


def test_labels_and_logits_of_the_clean_view_follow_the_geometry():
    """A shift by an eighth of the width: the disc lies 12 pixels further left, and what came in counts for nothing."""
    model = TAMISegForConsistencyPretraining(tiny_config())
    affine = torch.tensor([[[1.0, 0, 0.25], [0, 1, 0]]])
    labels = disc(48, 32)
    logits = 8.0 * torch.nn.functional.one_hot(labels, 2).movedim(-1, 1).float()
    aligned_logits, aligned_labels, valid = model._follow(affine, logits, labels)
    assert torch.equal(aligned_labels[..., :84], disc(36, 32)[..., :84])
    assert (aligned_labels[..., 84:] == model.config.semantic_loss_ignore_index).all()
    assert torch.equal(aligned_logits.argmax(1)[valid], disc(36, 32)[valid])
    assert valid[..., :84].all() and not valid[..., 84:].any()
    still = model._follow(None, logits, labels)
    assert torch.equal(still[0], logits) and torch.equal(still[1], labels) and still[2].all()


def test_geometry_is_as_fine_under_autocast():
    model = TAMISegForConsistencyPretraining(tiny_config())
    affine = torch.tensor([[[0.97, 0.11, 0.083], [-0.11, 0.97, -0.057]]])
    labels = disc(48, 32)
    logits = torch.randn(1, 2, 64, 96)
    expected = model._follow(affine, logits, labels)
    with torch.autocast("cpu", torch.bfloat16):
        found = model._follow(affine, logits, labels)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_teacher_that_reads_no_pictures_is_refused():
    text = BertModel(BertConfig(**{key: value for key, value in TEXT.items() if key != "model_type"}))
    with pytest.raises(ValueError, match="is a bert, which reads no pictures"):
        SemanticDistiller(text, [8, 16, 24, 32], (64, 64))


def test_a_backbone_without_a_stem(tmp_path):
    small = {"hidden_sizes": [8, 8, 8, 8], "depths": [1] * 4, "num_attention_heads": [1] * 4, "mlp_ratios": [1] * 4}
    PvtV2Backbone(PvtV2Config(**small, out_indices=[0, 1, 2, 3])).save_pretrained(tmp_path)
    assert load_vision_model(tmp_path)[1] == [4, 8, 16, 32]


@pytest.mark.parametrize("config", [ViTConfig, BertConfig])
def test_what_gives_no_four_maps_is_refused(tmp_path, config):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config(**small).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"is a {config.model_type}, which is no image encoder of four maps"):
        load_vision_model(tmp_path)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (BeitConfig(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16), "all at 1/16"),
        (HieraConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, image_size=[96, 96]), "pictures of any size"),
    ],
    ids=["beit", "hiera"],
)
def test_backbones_that_are_no_pyramid_are_refused(tmp_path, config, sentence):
    AutoBackbone.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"is a {config.model_type}, .*{sentence}: give a pyramid"):
        load_vision_model(tmp_path)


def test_what_does_not_read_text_alone_is_refused(tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = CLIPTextConfig(**small, vocab_size=50, bos_token_id=1, eos_token_id=2)
    for config in (
        T5Config(d_model=16, num_layers=1, num_heads=2, d_kv=8, d_ff=16, vocab_size=50),
        CLIPConfig(text_config=text.to_dict(), vision_config=small),
        ViTConfig(**small),
    ):
        config.save_pretrained(tmp_path / config.model_type)
        with pytest.raises(ValueError, match=f"is a {config.model_type}, which is no encoder of text alone"):
            load_text_model(tmp_path / config.model_type)
    AutoModel.from_config(text).save_pretrained(tmp_path / "text")
    read = load_text_model(tmp_path / "text")
    model = TAMISegForImageSegmentation(tiny_config(text_config=read.config.to_dict()), text_model=read)
    assert model(torch.randn(1, 3, 32, 32), sentences(1)).logits.shape == (1, 2, 32, 32)


def test_an_encoder_kept_in_half_precision_trains_in_full(tmp_path):
    TAMISegForConsistencyPretraining(tiny_config()).half().save_pretrained(tmp_path)
    assert {p.dtype for p in load_vision_model(tmp_path)[0].parameters()} == {torch.float32}


def test_stage_one_loss_is_the_sum_of_its_parts():
    torch.manual_seed(0)
    views, labels = torch.randn(2, 2, 3, 64, 64), torch.randint(0, 2, (2, 64, 64))
    affine = torch.eye(2, 3).expand(2, 2, 3)
    model = TAMISegForConsistencyPretraining(tiny_config(consistency_weight=0.7)).train()
    output = model(views[0], views[1], affine, labels)
    torch.testing.assert_close(output.loss, output.segmentation_loss + 0.7 * output.consistency_loss)
    output.loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    switched_off = TAMISegForConsistencyPretraining(tiny_config(consistency_weight=0.0))
    assert switched_off(views[0], views[1], affine, labels).consistency_loss is None


# Distillation


def distiller(model):
    torch.manual_seed(5)
    teacher = AutoModel.from_config(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))
    return SemanticDistiller(teacher, model.vision_encoder.channels, (64, 64), projector_size=16)


def step(weight: float) -> dict[str, torch.Tensor]:
    model = tiny_model().train()
    teaching = distiller(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(7)
    pixel_values, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 2, (2, 64, 64))
    output = model(pixel_values, sentences(2), labels=labels)
    loss = output.loss + (weight * teaching(output.vision_hidden_states, pixel_values) if weight else 0)
    loss.backward()
    optimizer.step()
    return {k: v.detach() for k, v in model.named_parameters() if k.startswith("vision_encoder")}


def test_distillation_reaches_every_stage_of_the_encoder_and_only_it():
    model = tiny_model().train()
    teaching = distiller(model)
    pixel_values = torch.randn(2, 3, 64, 64)
    teaching(model(pixel_values).vision_hidden_states, pixel_values).backward()
    backbone = model.vision_encoder.backbone
    for stage in (backbone.embedder, *backbone.encoder.stages):
        norm = sum(p.grad.norm() ** 2 for p in stage.parameters()) ** 0.5
        assert norm > 0
    assert all(p.grad is None for p in model.decoder.parameters())
    assert all(p.grad is None for p in teaching.teacher.parameters())
    assert not teaching.train().teacher.training


def test_distillation_changes_the_step_and_weight_zero_does_not():
    with_half, without, again = step(0.5), step(0.0), step(0.0)
    assert all(torch.equal(without[k], again[k]) for k in without)
    assert any(not torch.equal(with_half[k], without[k]) for k in without)


@pytest.mark.parametrize("kind", ["dinov3_vit", "dinov3_convnext", "vit", "mobilenet_v2"])
def test_teachers_of_every_kind_give_their_grid(kind):
    from transformers import DINOv3ConvNextConfig

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config, grid = {
        "dinov3_vit": (DINOv3ViTConfig(**small, patch_size=16, num_register_tokens=4, image_size=96), (6, 4)),
        "dinov3_convnext": (DINOv3ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]), (3, 2)),
        "vit": (ViTConfig(**small, patch_size=8, image_size=(96, 64)), (12, 8)),
        "mobilenet_v2": (MobileNetV2Config(depth_multiplier=0.35), (3, 2)),
    }[kind]
    model = tiny_model()
    teaching = SemanticDistiller(
        AutoModel.from_config(config), model.vision_encoder.channels, (96, 64), projector_size=8
    )
    assert teaching.grid == grid
    pixel_values = torch.randn(2, 3, 64, 64)
    assert teaching.teacher_tokens(pixel_values).shape[1] == grid[0] * grid[1]
    loss = teaching(model(pixel_values).vision_hidden_states, pixel_values)
    assert -1 <= loss <= 1


@torch.no_grad()
def test_teacher_tokens_are_its_patches_of_pictures_as_it_knows_them():
    config = DINOv3ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_register_tokens=4)
    of_student, of_teacher = ([0.1, 0.2, 0.6], [0.4, 0.3, 0.2]), ([0.5, 0.4, 0.3], [0.2, 0.5, 0.3])  # mean, deviation
    teaching = SemanticDistiller(AutoModel.from_config(config), [8], (48, 32), *of_teacher, *of_student, 8)
    picture = torch.rand(2, 48, 32, 3)
    student, teacher = (
        ((picture - torch.tensor(mean)) / torch.tensor(std)).movedim(-1, 1) for mean, std in (of_student, of_teacher)
    )
    patches = teaching.teacher(teacher).last_hidden_state[:, 1 + 4 :]
    assert patches.shape == (2, 6, 16)
    torch.testing.assert_close(teaching.teacher_tokens(student), patches, atol=1e-4, rtol=1e-4)


# Losses


def test_distillation_loss_is_least_where_both_agree():
    tokens, length = torch.randn(2, 5, 8), torch.rand(2, 5, 1) + 0.5
    torch.testing.assert_close(distillation_loss(tokens, tokens), torch.tensor(-1.0))
    torch.testing.assert_close(distillation_loss(length * tokens, tokens), torch.tensor(-1.0))
    torch.testing.assert_close(distillation_loss(-tokens, tokens), torch.tensor(1.0))


def test_dice_loss_by_hand():
    probability = torch.tensor([[[0.8, 0.4], [0.6, 0.2]]])
    logits = torch.stack([1 - probability, probability], dim=1).log()
    labels = torch.tensor([[[1, 0], [1, 0]]])
    # 1.4 of the probability lies on the target; both sum to 2.
    torch.testing.assert_close(dice_loss(logits, labels), torch.tensor(1 - (2 * 1.4 + 1) / (2 + 2 + 1)))
    labels[0, 1, 0] = 255
    torch.testing.assert_close(dice_loss(logits, labels), torch.tensor(1 - (2 * 0.8 + 1) / (1.4 + 1 + 1)))


def test_losses_weigh_as_in_the_paper():
    config = TAMISegConfig()
    assert (config.cross_entropy_weight, config.dice_weight, config.consistency_weight) == (1.0, 1.5, 1.0)
    logits, labels = torch.randn(2, 2, 8, 8), torch.randint(0, 2, (2, 8, 8))
    expected = F.cross_entropy(logits, labels) + 1.5 * dice_loss(logits, labels)
    torch.testing.assert_close(segmentation_loss(logits, labels), expected)


def test_consistency_asks_each_view_for_the_other_s_answer():
    sure = 10.0 * torch.tensor([-1.0, 1.0])[None, :, None, None].expand(1, 2, 4, 4)
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    assert consistency_loss(sure, sure, valid) < 1e-6
    torch.testing.assert_close(consistency_loss(sure, -sure, valid), torch.tensor(20.0))
    # One view hardly knows: asked for the other's answer it pays much, and the other for its answer more.
    unsure = sure / -20
    paid = [F.softplus(torch.tensor(x)) for x in (1.0, 20.0)]
    torch.testing.assert_close(consistency_loss(unsure, sure, valid), sum(paid) / 2)
    assert consistency_loss(sure, -sure, ~valid) == 0  # what only one view shows


def test_pictures_without_labels_ask_nothing():
    logits = torch.randn(3, 2, 8, 8, requires_grad=True)
    labels = torch.randint(0, 2, (3, 8, 8))
    labels[1] = 255
    loss = segmentation_loss(logits, labels)
    torch.testing.assert_close(loss, segmentation_loss(logits[[0, 2]], labels[[0, 2]]))
    loss.backward()
    assert logits.grad[1].abs().sum() == 0 and logits.grad[0].abs().sum() > 0
    assert segmentation_loss(logits, torch.full_like(labels, 255)) == 0


def test_half_precision_can_sum_a_picture():
    """float16 ends at 65504, fewer than the pixels of a picture."""
    logits, other = torch.randn(2, 1, 2, 300, 300)
    labels, valid = torch.randint(0, 2, (1, 300, 300)), torch.ones(1, 300, 300, dtype=torch.bool)
    for dtype in (torch.float16, torch.bfloat16):
        half, half_other = logits.to(dtype), other.to(dtype)
        torch.testing.assert_close(segmentation_loss(half, labels), segmentation_loss(half.float(), labels))
        expected = consistency_loss(half.float(), half_other.float(), valid)
        torch.testing.assert_close(consistency_loss(half, half_other, valid), expected)


def test_the_reference_trains_by_the_function_it_answers_with():
    maps = [torch.randn(2, 5, side, side + 1) for side in (8, 4, 2, 1)]
    weight = torch.randn(7, 20, 3, 3)
    expected = F.conv2d(torch.cat([upsample(m, (16, 18)) for m in maps], dim=1), weight, padding=1)
    torch.testing.assert_close(convolve_upsampled(maps, weight, (16, 18)), expected, rtol=1e-4, atol=1e-4)


def test_whole_numbers_are_weights_too():
    config = TAMISegConfig(consistency_weight=0, dice_weight=2, cross_entropy_weight=1)
    assert (config.consistency_weight, config.dice_weight) == (0, 2)
