# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The image processor: every kind of picture and mask, labels that stay with their pixels, masks from logits."""

import io
import struct
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from processing.image_processing_tamiseg import TAMISegImageProcessor


@pytest.fixture
def processor():
    return TAMISegImageProcessor(size={"height": 16, "width": 24})


def noise(height=12, width=20, channels=3, seed=0):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def blob(height=12, width=20):
    mask = np.zeros((height, width), np.uint8)
    mask[3:8, 4:15] = 1
    return mask


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image)


# Pictures


def test_every_kind_of_input_gives_the_same_numbers(processor):
    array = noise()
    channels_first = np.ascontiguousarray(array.transpose(2, 0, 1))
    kinds = [Image.fromarray(array), array, channels_first, torch.from_numpy(channels_first), torch.from_numpy(array)]
    expected = processor(kinds[0], return_tensors="pt").pixel_values
    assert expected.shape == (1, 3, 16, 24) and expected.dtype == torch.float32
    for kind in kinds:
        assert torch.equal(processor(kind, return_tensors="pt").pixel_values, expected)
        assert torch.equal(processor([kind, kind], return_tensors="pt").pixel_values, expected.repeat(2, 1, 1, 1))
    for batch in (np.stack([array, array]), torch.from_numpy(np.stack([channels_first] * 2))):
        assert torch.equal(processor(batch, return_tensors="pt").pixel_values, expected.repeat(2, 1, 1, 1))


def test_numbers_by_hand():
    white = Image.new("RGB", (4, 4), (255, 0, 51))
    values = TAMISegImageProcessor(do_resize=False)(white, return_tensors="np").pixel_values[0, :, 0, 0]
    by_hand = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(values, by_hand, rtol=1e-5)


@pytest.mark.parametrize("resample", [Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize(
    "options",
    [
        {"size": {"height": 7, "width": 31}},
        {"size": {"shortest_edge": 16}},
        {"do_resize": False},
        {"size": {"height": 9, "width": 9}, "do_center_crop": True, "crop_size": {"height": 6, "width": 11}},
        {"size": {"height": 30, "width": 30}, "do_rescale": False, "do_normalize": False},
        {"size": {"height": 30, "width": 30}, "do_normalize": False},
        {"size": {"height": 30, "width": 30}, "image_mean": 0.5, "image_std": 0.25},
    ],
)
@pytest.mark.parametrize("channels", [0, 3])
def test_same_numbers_as_the_librarys_own(options, resample, channels):
    ours = TAMISegImageProcessor(resample=resample, **options)
    theirs = ViTImageProcessorPil(
        **{"resample": resample, "image_mean": ours.image_mean, "image_std": ours.image_std, **options}
    )
    picture = Image.fromarray(noise(channels=channels))
    expected = theirs(picture.convert("RGB"), return_tensors="pt").pixel_values
    found = ours(picture, return_tensors="pt").pixel_values
    torch.testing.assert_close(found, expected.to(torch.float32))
    torch.testing.assert_close(ours(picture.convert("RGB"), return_tensors="pt").pixel_values, found, rtol=0, atol=0)


def test_normalize_leaves_what_it_is_given(processor):
    values = noise().transpose(2, 0, 1).astype(np.float32)
    before = values.copy()
    processor.normalize(values, [1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert (values == before).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGB", "I", "I;16", "F"])
def test_modes_look_like_themselves(processor, mode):
    grey = Image.fromarray(noise(channels=0))
    given = grey.point(lambda v: v * 257, "I").convert("I;16") if mode == "I;16" else grey.convert(mode)
    expected = np.asarray(grey.convert("1").convert("L") if mode == "1" else grey).astype(int)
    found = pixels(processor.load_image(given))
    assert found.shape == (12, 20, 3)
    # 16 bits are windowed, which stretches the middle 99 % a little; CMYK and YCbCr round.
    assert np.abs(found - expected[..., None]).max() <= (4 if mode == "I;16" else 2)


def test_alpha_is_laid_on_black(processor):
    rgba = np.dstack([np.full((5, 6, 3), 200, np.uint8), np.full((5, 6), 255, np.uint8)])
    rgba[:, 3:, 3] = 0
    rgba[0, 0, 3] = 51
    grey_alpha = Image.fromarray(rgba).convert("LA")
    palette = Image.new("P", (6, 5), 1)
    palette.putpalette([0, 0, 0, 200, 200, 200])
    palette.info["transparency"] = 1
    for given in (rgba, Image.fromarray(rgba), grey_alpha, np.asarray(grey_alpha), torch.from_numpy(rgba)):
        found = pixels(processor.load_image(given))
        assert (found[1:, :3] == 200).all() and (found[:, 3:] == 0).all() and (found[0, 0] == 40).all()
    assert (pixels(processor.load_image(palette)) == 0).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.int64, np.float32, np.float64])
def test_wide_pictures_are_windowed(processor, dtype):
    ramp = np.linspace(-1000 if dtype == np.int16 else 300, 30000, 4000).reshape(40, 100).astype(dtype)
    ramp[0, 0] = 32767  # one hot pixel must not darken the rest
    found = pixels(processor.load_image(ramp))[..., 0]
    assert found[0, 1] == 0 and found[0, 0] == found[-1, -1] == 255
    assert 120 <= found[20, 0] <= 135 and (np.diff(found.ravel()[1:].astype(int)) >= 0).all()


def test_wide_pictures_of_few_values(processor):
    two_hot = np.zeros((40, 40), np.uint16)
    two_hot[3, 4] = 5000
    assert pixels(processor.load_image(two_hot))[..., 0].max() == 255
    assert pixels(processor.load_image(np.full((4, 4), 4000, np.uint16))).max() == 0


def test_16_bit_file_is_not_white(processor, tmp_path):
    Image.fromarray(np.linspace(0, 60000, 600).reshape(20, 30).astype(np.uint16)).save(tmp_path / "scan.png")
    found = pixels(processor.load_image(str(tmp_path / "scan.png")))
    assert found.min() == 0 and found.max() == 255 and 110 < found.mean() < 145


def test_floats_are_scaled_once(processor):
    array = noise()
    as_they_are = processor(array, return_tensors="pt").pixel_values
    in_unit_range = (array / 255).astype(np.float32)
    for given in (in_unit_range, torch.from_numpy(in_unit_range), array.astype(np.float64), array.astype(np.int32)):
        assert torch.equal(processor(given, return_tensors="pt").pixel_values, as_they_are)
    assert torch.equal(
        processor(torch.from_numpy(array).to(torch.bfloat16), return_tensors="pt").pixel_values,
        processor(torch.from_numpy(array).to(torch.bfloat16).float().clamp(max=255), return_tensors="pt").pixel_values,
    )
    assert (pixels(processor.load_image(np.eye(5, dtype=bool)))[..., 0] == np.eye(5) * 255).all()


def test_which_axis_is_channels(processor):
    array = noise(4, 30)  # four rows: both ends could be channels
    assert processor.load_image(array).size == (30, 4)
    assert processor.load_image(torch.from_numpy(array.transpose(2, 0, 1))).size == (30, 4)
    both = noise(3, 30)
    assert processor.load_image(both).size == (30, 3)
    assert processor.load_image(torch.from_numpy(both)).size == (3, 30)
    assert processor.load_image(torch.from_numpy(both), input_data_format="channels_last").size == (30, 3)
    assert processor.load_image(noise(3, 3).repeat(3, 2)).size == (9, 3)  # (3, 3, 9): only the first axis fits
    found = processor(torch.from_numpy(both), input_data_format="channels_last", do_resize=False).pixel_values
    assert found[0].shape == (3, 3, 30)


def test_exif_turns_pictures_and_masks(processor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise()).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(blob()).save(tmp_path / "mask.png", exif=exif)
    assert processor.load_image(tmp_path / "turned.png").size == (12, 20)
    with Image.open(tmp_path / "turned.png") as opened:
        assert (pixels(processor.load_image(opened)) == np.rot90(noise(), -1)).all()
    assert (np.asarray(processor.load_mask(tmp_path / "mask.png")) == np.rot90(blob(), -1)).all()


def test_damaged_colours_and_nameless_files_get_a_sentence(processor):
    picture = Image.new("P", (4, 4))
    picture.info["transparency"] = "no palette index"
    with pytest.raises(ValueError, match="the picture's colours cannot be read .*: save it again as PNG"):
        processor.load_image(picture)
    written = io.BytesIO()
    Image.effect_noise((40, 40), 60).save(written, "PNG")
    with (
        Image.open(io.BytesIO(written.getvalue()[:900])) as cut,
        pytest.raises(ValueError, match="^the picture cannot be"),
    ):
        processor.load_image(cut)


def test_a_header_that_claims_gigabytes_sets_none_aside(processor, tmp_path):
    path = tmp_path / "x.jp2"
    Image.new("L", (8, 8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(struct.pack(">I", 45) + b"jp2h", struct.pack(">I", 2**32 - 1) + b"jp2h"))
    assert path.read_bytes() != whole
    tracemalloc.start()
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        processor.load_image(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_refused_pictures(processor, tmp_path):
    (tmp_path / "words.png").write_text("no picture")
    Image.fromarray(noise(200, 200)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:50000])
    (tmp_path / "number.png").write_bytes(b"P5 1x0 20 255\n" + bytes(200))  # the decoder trips over int("1x0")
    (tmp_path / "huge.png").write_bytes(b"P5 15000 13000 255\n")
    frames = [Image.fromarray(noise(seed=seed)) for seed in range(3)]
    frames[0].save(tmp_path / "stack.tiff", save_all=True, append_images=frames[1:])
    bad = np.ones((5, 5), np.float32)
    bad[0, 0] = np.nan
    for given, words in [
        (bad, "nan_to_num"),
        (np.full((5, 5), np.inf), "infinite"),
        (np.zeros((0, 5, 3)), "shape"),
        (Image.new("L", (0, 4)), "empty"),
        (np.zeros(7), "shape"),
        (np.zeros((5, 6, 7)), "1 to 4 channels"),
        (np.zeros((2, 2, 5, 5, 3)), "shape"),
        (np.array([["a"]]), "float values"),
        (np.full((4, 4, 4), 900, np.uint16), "alpha"),
        (7, "int is no picture"),
        (None, "NoneType is no picture"),
        (tmp_path / "words.png", "words.png' is no picture"),
        (tmp_path / "half.png", "half.png' cannot be read"),
        (tmp_path / "number.png", "number.png' cannot be read"),
        (tmp_path / "huge.png", "huge.png' has too many pixels"),
        (tmp_path / "stack.tiff", "stack of 3"),
    ]:
        with pytest.raises(ValueError, match=words):
            processor.load_image(given)
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        processor.load_image("nowhere.png")
    with pytest.raises(ValueError, match="at least one"):
        processor([])
    with pytest.raises(ValueError, match="mode L"):
        processor(Image.new("L", (4, 4)), do_convert_rgb=False)


# Masks


def test_every_kind_of_mask_gives_the_same_labels(processor, tmp_path):
    ids = blob()
    bright = ids * 255
    palette = Image.fromarray(ids).convert("P")
    voc = Image.new("P", (20, 12))
    voc.putdata(ids.ravel().tolist())
    voc.putpalette([0, 0, 0, 128, 0, 0])
    inverted = Image.new("P", (20, 12))
    inverted.putdata((1 - ids).ravel().tolist())
    inverted.putpalette([255, 255, 255, 0, 0, 0])
    Image.fromarray(bright).save(tmp_path / "mask.png")
    kinds = [
        *(ids.astype(dtype) for dtype in (bool, np.uint8, np.int64, np.uint16, np.float32)),
        *(bright.astype(dtype) for dtype in (np.uint8, np.int32, np.float64)),
        *(torch.from_numpy(array) for array in (ids, ids.astype(bool), bright, bright[None])),
        *(Image.fromarray(array) for array in (ids, bright, ids.astype(bool), ids.astype(np.uint16))),
        *(Image.fromarray(bright).convert(mode) for mode in ("1", "RGB", "RGBA", "LA", "I", "F", "P")),
        *(palette, voc, inverted, tmp_path / "mask.png", str(tmp_path / "mask.png")),
        *(bright[..., None], bright[None], np.dstack([bright] * 3), np.stack([ids] * 3)),
    ]
    image = noise()
    for kind in kinds:
        loaded = processor.load_mask(kind)
        assert loaded.mode == "L" and (np.asarray(loaded) == ids).all()
        out = processor(image, kind, do_resize=False, return_tensors="pt")
        assert out.labels.dtype == torch.int64 and out.labels.shape == (1, 12, 20)
        assert (out.labels[0].numpy() == ids).all()


def test_what_255_means(processor):
    def ids(values, **kwargs):
        return np.asarray(processor.load_mask(np.array([values], np.uint8), **kwargs)).tolist()[0]

    assert ids([0, 255]) == [0, 1]
    assert ids([255, 255]) == [1, 1]
    assert ids([0, 0]) == [0, 0]
    assert ids([0, 1, 255]) == [0, 1, 255]
    assert ids([0, 255], num_labels=3) == [0, 255]
    assert ids([0, 2, 255], num_labels=3) == [0, 2, 255]


def test_refused_masks(processor):
    for values, words in [
        ([0, 3, 17, 240, 255], r"3, 17, 240.*mask > 127"),
        ([0, 0.3, 1], r"0\.3.*mask > 127"),
        ([0, -1], "-1"),
        ([0, 65535], "65535"),
        (list(range(256)), r"2, 3, 4, 5, 6, \.\.\."),
    ]:
        with pytest.raises(ValueError, match=words):
            processor.load_mask(np.array([values]))
    with pytest.raises(ValueError, match="num_labels=4"):
        processor.load_mask(np.array([[0, 4]]), num_labels=4)
    with pytest.raises(ValueError, match="num_labels is 1"):
        processor.load_mask(np.array([[0, 1]]), num_labels=1)
    with pytest.raises(ValueError, match="coloured"):
        processor.load_mask(noise())
    with pytest.raises(ValueError, match="transparent"):
        processor.load_mask(np.dstack([blob()] * 3 + [blob()]))
    with pytest.raises(ValueError, match="NaN"):
        processor.load_mask(np.full((2, 2), np.nan))


def test_labels_stay_with_their_pixels(processor):
    mask = blob()
    image = np.dstack([mask * 255] * 3)
    out = processor(image, mask, size={"height": 48, "width": 80}, do_normalize=False, return_tensors="pt")
    assert set(out.labels.unique().tolist()) == {0, 1}
    assert torch.equal(
        out.labels[0], F.interpolate(torch.from_numpy(mask)[None, None].float(), scale_factor=4)[0, 0].long()
    )
    agree = ((out.pixel_values[0, 0] > 0.5).long() == out.labels[0]).float().mean()
    assert agree > 0.97


def test_added_pixels_are_ignored(processor):
    images, masks = [noise(12, 20), noise(8, 10)], [blob(12, 20), np.ones((8, 10), np.uint8)]
    out = processor(images, masks, do_resize=False, do_pad=True, return_tensors="pt")
    assert out.labels.shape == (2, 12, 20) and (out.labels[0].numpy() == blob()).all()
    assert (
        (out.labels[1, :8, :10] == 1).all()
        and (out.labels[1, 8:] == 255).all()
        and (out.labels[1, :, 10:] == 255).all()
    )
    crop = {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 10, "width": 8}}
    wide = processor(images[1], masks[1], **crop | {"crop_size": {"height": 10, "width": 10}}, return_tensors="pt")
    assert wide.labels[0].eq(255).sum() == 20 and wide.labels[0].eq(1).sum() == 80
    out = processor(images[0], masks[0], **crop, return_tensors="pt")
    assert out.pixel_values.shape[-2:] == (10, 8) and (out.labels[0].numpy() == blob()[1:11, 6:14]).all()


def test_pictures_and_masks_must_match(processor):
    with pytest.raises(ValueError, match="picture 1 is 20x12 .* 10x12"):
        processor([noise(), noise()], [blob(), blob(12, 10)])
    with pytest.raises(ValueError, match="1 masks for 2 pictures"):
        processor([noise(), noise()], [blob()])
    with pytest.raises(ValueError, match="3 masks for 2 pictures"):
        processor([noise(), noise()], np.stack([blob()] * 3))
    batch = processor(np.stack([noise()] * 2), torch.from_numpy(np.stack([blob()] * 2)), return_tensors="pt")
    assert batch.labels.shape == (2, 16, 24)
    assert torch.equal(processor([noise()], blob()[None], return_tensors="pt").labels, batch.labels[:1])


# Keywords


KEYWORDS = {
    "do_resize": False,
    "size": {"height": 8, "width": 10},
    "resample": Image.Resampling.NEAREST,
    "do_rescale": False,
    "rescale_factor": 1 / 100,
    "do_normalize": False,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.5, 0.6, 0.7],
    "do_convert_rgb": False,
    "num_labels": 4,
}


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_keywords_by_constructor_and_by_call(keyword, tmp_path):
    value = KEYWORDS[keyword]
    # Only what is not normalised may stay unscaled.
    options = {"size": {"height": 16, "width": 24}, "do_normalize": keyword != "do_rescale"}
    processor = TAMISegImageProcessor(**options)
    built = TAMISegImageProcessor(**options | {keyword: value})
    mask = blob() * (3 if keyword == "num_labels" else 1)
    by_constructor = built(noise(), mask, return_tensors="pt")
    by_call = processor(noise(), mask, return_tensors="pt", **{keyword: value})
    assert torch.equal(by_constructor.pixel_values, by_call.pixel_values)
    assert torch.equal(by_constructor.labels, by_call.labels)
    if keyword not in ("do_convert_rgb", "num_labels"):
        plain = processor(noise(), blob(), return_tensors="pt").pixel_values
        assert plain.shape != by_call.pixel_values.shape or not torch.equal(plain, by_call.pixel_values)
    built.save_pretrained(tmp_path)
    loaded = TAMISegImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == built.to_dict()
    assert torch.equal(loaded(noise(), mask, return_tensors="pt").pixel_values, by_call.pixel_values)


@pytest.mark.parametrize("picture", [noise(), noise() / 255, noise().astype(np.uint16) * 200])
def test_values_of_0_to_255_are_not_normalised_unscaled(processor, picture):
    with pytest.raises(ValueError, match="leave do_rescale at True"):
        processor(picture, do_rescale=False)
    with pytest.raises(ValueError, match="leave do_rescale at True"):
        TAMISegImageProcessor(do_rescale=False)(picture)
    assert np.max(processor(picture, return_tensors="np").pixel_values) < 3


def test_instances_do_not_share_settings():
    one, other = TAMISegImageProcessor(), TAMISegImageProcessor()
    one.size["height"] = 1
    assert other.size["height"] == TAMISegImageProcessor().size["height"] == 256


# Logits to masks


def outputs(num_labels=2, batch=2, height=9, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return SimpleNamespace(logits=torch.randn(batch, num_labels, height, width, generator=generator))


@pytest.mark.parametrize("num_labels", [2, 4])
def test_post_process_agrees_with_softmax_and_argmax(processor, num_labels):
    out, sizes = outputs(num_labels), [(31, 45), (60, 20)]
    masks, probabilities = processor.post_process_semantic_segmentation(out, sizes, return_probabilities=True)
    for logits, size, mask, probability in zip(out.logits, sizes, masks, probabilities, strict=True):
        resized = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
        assert mask.dtype == torch.int64 and mask.shape == size and torch.equal(mask, resized.argmax(dim=0))
        assert probability.dtype == torch.float32 and probability.shape == (num_labels, *size)
        torch.testing.assert_close(probability, resized.softmax(dim=0))
    plain = processor.post_process_semantic_segmentation(out, torch.tensor(sizes))
    assert all(torch.equal(a, b) for a, b in zip(plain, masks, strict=True))
    own_size = processor.post_process_semantic_segmentation(out)
    assert torch.equal(torch.stack(own_size), out.logits.argmax(dim=1))


def test_threshold(processor):
    out, sizes = outputs(), [(31, 45)] * 2
    masks, probabilities = processor.post_process_semantic_segmentation(out, sizes, return_probabilities=True)
    areas = []
    for threshold in (0, 0.1, 0.5, 0.9, 1):
        found = processor.post_process_semantic_segmentation(out, sizes, threshold=threshold)
        for mask, probability in zip(found, probabilities, strict=True):
            assert ((probability[1] >= threshold).long() != mask).sum() == 0
        areas.append(int(torch.stack(found).sum()))
        if threshold == 0.5:
            assert all(torch.equal(a, b) for a, b in zip(found, masks, strict=True))
    assert areas == sorted(areas, reverse=True) and areas[0] == 2 * 31 * 45 and areas[-1] == 0
    tied = SimpleNamespace(logits=torch.tensor([[[[0.0, 1e-9]], [[0.0, 0.0]]]]))
    for threshold in (None, 0.5):
        assert processor.post_process_semantic_segmentation(tied, threshold=threshold)[0].tolist() == [[1, 0]]


def test_post_process_refuses(processor):
    for arguments in ({"threshold": 1.5}, {"threshold": -0.1}):
        with pytest.raises(ValueError, match="threshold"):
            processor.post_process_semantic_segmentation(outputs(), **arguments)
    with pytest.raises(ValueError, match="3 classes"):
        processor.post_process_semantic_segmentation(outputs(3), threshold=0.5)
    with pytest.raises(ValueError, match="1 target sizes for 2"):
        processor.post_process_semantic_segmentation(outputs(), target_sizes=[(4, 4)])


def test_post_process_half_precision(processor):
    out = outputs()
    half = SimpleNamespace(logits=out.logits.bfloat16())
    expected = processor.post_process_semantic_segmentation(SimpleNamespace(logits=out.logits.bfloat16().float()))
    found = processor.post_process_semantic_segmentation(half)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
