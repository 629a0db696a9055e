# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures and masks to what the model is fed, and the model's logits back to masks of the picture's own size."""

import io
import os
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
)
from transformers.processing_utils import ImagesKwargs, Unpack


IGNORE_INDEX = 255
# X-ray detectors give 16 million pixels; windowing takes 24 bytes for each.
MAX_WIDE_PIXELS = 64_000_000
# Percentiles that become black and white when a picture holds more than 8 bits (X-ray and CT exports).
WINDOW = (0.5, 99.5)
CHANNEL_COUNTS = (1, 2, 3, 4)  # grey, grey + alpha, RGB, RGB + alpha


class TAMISegImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    num_labels (`int`, *optional*, defaults to `self.num_labels`):
        How many classes a mask may name, background included. With 2, masks of 0 and 255 are read as 0 and 1.
    """

    num_labels: int


class TAMISegImageProcessor(PilBackend):
    """
    Takes pictures as clinics export them (8 or 16 bits, grey, palette, CMYK, with alpha, turned by EXIF) and masks as
    annotators save them, as PIL images, numpy arrays, torch tensors or paths of files.

    Every picture is brought to 8-bit RGB first, so `rescale_factor` always meets values in [0, 255], also where the
    input was a float array in [0, 1]. So `do_rescale=False` is refused where `do_normalize` is on.
    """

    valid_kwargs = TAMISegImageProcessorKwargs
    model_input_names = ["pixel_values"]

    do_convert_rgb = True
    do_resize = True
    size = {"height": 256, "width": 256}
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    num_labels = 2

    def __init__(self, **kwargs: Unpack[TAMISegImageProcessorKwargs]):
        super().__init__(**kwargs)

    def load_image(
        self,
        image: ImageInput | str | os.PathLike,
        input_data_format: str | ChannelDimension | None = None,
        do_convert_rgb: bool = True,
    ) -> Image.Image:
        """
        Any picture as an upright 8-bit RGB image.

        Transparency is laid on black. More than 8 bits (values outside [0, 255]) are windowed to the 0.5-99.5
        percentile; a float array within [0, 1] is multiplied by 255, one within [0, 255] is rounded.

        Args:
            image: path, PIL image of any mode, or array `(H, W)`, `(H, W, C)` or `(C, H, W)` with 1 to 4 channels.
            input_data_format: "channels_first" or "channels_last", for arrays whose first and last axis could both
                be channels; without it such numpy arrays are read channels last, torch tensors channels first.
            do_convert_rgb: with `False`, a picture that is not 8-bit RGB already is refused instead of converted.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it cannot be read, is empty, is a stack of pictures, or holds NaN or infinity.
        """
        return _as_mode(self._load_8_bit(image, input_data_format, do_convert_rgb), "RGB")

    def _load_8_bit(self, image, input_data_format, do_convert_rgb) -> Image.Image:
        """As [`load_image`], but grey pictures stay grey (mode L)."""
        image = _read(image, input_data_format)
        if isinstance(image, Image.Image) and (image.mode in ("I", "F") or image.mode.startswith("I;16")):
            image = _channels_last(np.asarray(image))
        if isinstance(image, np.ndarray):
            image = _to_8_bit(image)
            image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        if not do_convert_rgb and image.mode != "RGB":
            raise ValueError(f"the picture is of mode {image.mode}, not RGB: leave do_convert_rgb at True.")
        try:
            if image.has_transparency_data:
                black = Image.new("RGBA", image.size, (0, 0, 0, 255))
                image = Image.alpha_composite(black, image.convert("RGBA"))
            return image if image.mode == "L" else _as_mode(image, "RGB")
        except Exception as error:  # palettes and transparency of damaged files are looked at only now
            raise ValueError(f"the picture's colours cannot be read ({error}): save it again as PNG.") from error

    def load_mask(self, mask: ImageInput | str | os.PathLike, num_labels: int | None = None) -> Image.Image:
        """
        Any mask as an upright image of mode L that holds class ids, and 255 where the loss must not look.

        With two classes, a mask of nothing but 0 and 255 is read as 0 and 1; 255 beside a 1 means ignore.

        Args:
            mask: path, PIL image (1, L, P, I, I;16, RGB of equal channels), or array `(H, W)`, `(H, W, C)` or
                `(C, H, W)` of equal channels; bool, integer, or float that holds whole numbers.
            num_labels: number of classes; `self.num_labels` if left out.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it cannot be read, or holds a value that is no class id.
        """
        num_labels = self.num_labels if num_labels is None else num_labels
        if not 2 <= num_labels <= IGNORE_INDEX:
            raise ValueError(f"num_labels is {num_labels}: masks of 8 bits need 2 to 255, background included.")
        mask = _read(mask)
        if isinstance(mask, Image.Image):
            mask = _channels_last(_palette_to_ids(mask) if mask.mode == "P" and num_labels == 2 else np.asarray(mask))
        if mask.shape[-1] in (2, 4):
            if (mask[..., -1] != mask[0, 0, -1]).any():
                raise ValueError("the mask is partly transparent: save it without an alpha channel.")
            mask = mask[..., :-1]
        if (mask != mask[..., :1]).any():
            raise ValueError("the mask is coloured: replace each colour by its class id and save it as one channel.")
        mask = mask[..., 0].view(np.uint8) if mask.dtype == bool else mask[..., 0]

        if num_labels == 2 and ((mask == 0) | (mask == 255)).all():
            mask = mask == 255
        elif mask.dtype != np.uint8 or mask.max() >= num_labels:  # otherwise all are class ids, as is seen at once
            # Most masks are of 8 bits, and counting is several times as quick as sorting.
            values = np.flatnonzero(Image.fromarray(mask).histogram()) if mask.dtype == np.uint8 else np.unique(mask)
            if unknown := [value for value in values.tolist() if value not in range(num_labels) and value != 255]:
                remedy = (
                    "make it two-valued first, for example with (mask > 127), and save it as PNG, not JPEG; or give "
                    "num_labels, if these are classes"
                    if num_labels == 2
                    else f"class ids must be below num_labels={num_labels}, or 255 for pixels to ignore"
                )
                shown = ", ".join(f"{value:g}" for value in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
                raise ValueError(f"the mask holds {shown}, which are no class ids: {remedy}.")
        return Image.fromarray(mask.astype(np.uint8))

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[TAMISegImageProcessorKwargs],
    ) -> BatchFeature:
        """
        Args:
            images: one picture or a batch of them: whatever [`load_image`] takes, a list of it, or a 4-D array.
            segmentation_maps: as many masks as pictures, of the same sizes: whatever [`load_mask`] takes, a list of
                it, or an array whose first axis counts the pictures.
            **kwargs: any attribute of this class, for this call; `return_tensors="pt"` gives tensors.

        Returns:
            `pixel_values` float32 `(B, 3, H, W)`, normalised, and with masks `labels` int64 `(B, H, W)`: nearest
            neighbour, never rescaled; what padding or a wide crop adds is 255, to be ignored.

        Raises:
            ValueError: as the two loaders, if masks and pictures differ in number or size, or if values in [0, 255]
                would be normalised without being rescaled.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _preprocess_image_like_inputs(
        self, images, segmentation_maps, do_convert_rgb, input_data_format, num_labels, return_tensors, **kwargs
    ) -> BatchFeature:
        if kwargs["do_normalize"] and not kwargs["do_rescale"]:
            raise ValueError(
                "do_rescale is False, but every picture is brought to values of 0 to 255 before it is normalised, "
                "floats in [0, 1] too: leave do_rescale at True."
            )
        pictures = [self._load_8_bit(image, input_data_format, do_convert_rgb) for image in _as_list(images)]
        if not pictures:
            raise ValueError("there is no picture in the batch: give at least one.")
        geometry = kwargs
        if kwargs["do_normalize"] and not kwargs["do_pad"]:
            # (x * factor - mean) / std in one pass over the pixels instead of two.
            factor = kwargs["rescale_factor"]
            mean, std = (np.asarray(kwargs[key], dtype=np.float64) / factor for key in ("image_mean", "image_std"))
            geometry = kwargs | {"do_rescale": False, "image_mean": mean, "image_std": std}
        pixel_values = self._preprocess(pictures, "RGB", **geometry)
        data = {"pixel_values": [values.astype(np.float32, copy=False) for values in pixel_values]}

        if segmentation_maps is not None:
            masks = [self.load_mask(mask, num_labels) for mask in _as_list(segmentation_maps, len(pictures))]
            if len(masks) != len(pictures):
                raise ValueError(f"{len(masks)} masks for {len(pictures)} pictures: give one mask per picture.")
            for index, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
                if picture.size != mask.size:
                    raise ValueError(
                        f"picture {index} is {picture.width}x{picture.height} pixels, but its mask is "
                        f"{mask.width}x{mask.height}: check that they belong together."
                    )
            kwargs |= {"resample": PILImageResampling.NEAREST, "do_rescale": False, "do_normalize": False}
            # Cropping and padding fill with 0. Counted up by one (255 wraps to 0), the fill means "ignore".
            shifted = self._preprocess([mask.point([*range(1, 256), 0]) for mask in masks], "L", **kwargs)
            data["labels"] = [(ids[0] - np.uint8(1)).astype(np.int64) for ids in shifted]
        if return_tensors is not None and len(pictures) == 1:
            data = {key: values[0][None] for key, values in data.items()}  # a batch of one needs no copy
        return BatchFeature(data, tensor_type=return_tensors)

    def _preprocess(
        self, images: list[Image.Image], mode: str, do_resize, size, resample, **kwargs
    ) -> list[np.ndarray]:
        # The parent's numbers without its copies: sides that are given outright are left to Pillow, before pictures
        # become arrays, and grey ones are resized as the one channel they are.
        if do_resize and size.height and size.width and isinstance(resample, int):
            images = [image.resize((size.width, size.height), resample) for image in images]
            do_resize = False
        arrays = [_channels_first(_as_mode(image, mode)) for image in images]
        options = {"do_resize": do_resize, "size": size, "resample": resample, "return_tensors": None, **kwargs}
        return super()._preprocess(arrays, **options)["pixel_values"]

    def normalize(self, image: np.ndarray, mean, std, **kwargs) -> np.ndarray:
        # As the parent's. One channel at a time stays in the processor's cache for all three steps.
        values = np.empty(image.shape, dtype=np.float32)
        mean, std = (np.full(len(image), numbers, dtype=np.float32) for numbers in (mean, std))
        for value, channel, m, s in zip(values, image, mean, std, strict=True):
            value[:] = channel
            value -= m
            value /= s
        return values

    def post_process_semantic_segmentation(
        self,
        outputs,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        threshold: float | None = None,
        return_probabilities: bool = False,
    ) -> list[torch.Tensor] | tuple[list[torch.Tensor], list[torch.Tensor]]:
        """
        Logits to masks.

        Args:
            outputs: the model's output, with `logits` `(B, num_labels, h, w)`, and with `image_indices` `(B,)` where
                several sentences asked about one picture.
            target_sizes: `(height, width)` of each picture; the logits' own size if left out.
            threshold: least probability of class 1 that counts as class 1, in [0, 1], for two classes only. 0.5
                does what leaving it out does: the likelier class wins.
            return_probabilities: whether probabilities are returned too.

        Returns:
            One int64 `(H, W)` mask of class ids per picture; with `return_probabilities` a pair of lists,
            `(masks, probabilities)`, the latter float32 `(num_labels, H, W)` that sum to 1 over the classes. With
            `image_indices` each entry is a list in its turn: one mask per sentence of that picture.

        Raises:
            ValueError: if sizes and logits differ in number, or the threshold cannot be used.
        """
        logits = outputs.logits.float()
        two_classes = logits.shape[1] == 2
        if threshold is not None and not (two_classes and 0 <= threshold <= 1):
            raise ValueError(
                f"threshold={threshold} with {logits.shape[1]} classes: it must lie in [0, 1], and there must be two."
            )
        image_indices = getattr(outputs, "image_indices", None)
        owners = list(range(len(logits))) if image_indices is None else image_indices.tolist()
        pictures = len(logits) if image_indices is None else max(owners, default=-1) + 1
        if target_sizes is None:
            target_sizes = [logits.shape[-2:]] * pictures
        # Pictures at the end may have been asked nothing.
        if len(target_sizes) < pictures or (image_indices is None and len(target_sizes) > pictures):
            raise ValueError(f"{len(target_sizes)} target sizes for {pictures} pictures: give one for each.")

        # Softmax over two classes is the sigmoid of their difference, and resizing is linear: one channel is enough,
        # and a threshold on the probability is one on that difference.
        scores = logits[:, 1:] - logits[:, :1] if two_classes else logits
        least = 0.0 if threshold is None else torch.tensor(threshold, dtype=torch.float64).logit().item()
        masks, probabilities = [], []
        for score, owner in zip(scores, owners, strict=True):
            size = tuple(int(side) for side in target_sizes[owner])
            score = F.interpolate(score[None], size=size, mode="bilinear", align_corners=False)[0]
            masks.append((score[0] >= least).long() if two_classes else score.argmax(dim=0))
            if return_probabilities:
                probabilities.append(torch.cat([-score, score]).sigmoid_() if two_classes else score.softmax(dim=0))
        if image_indices is not None:
            masks, probabilities = (
                [
                    [one for one, of in zip(some, owners, strict=False) if of == index]
                    for index in range(len(target_sizes))
                ]
                for some in (masks, probabilities)
            )
        return (masks, probabilities) if return_probabilities else masks


def check_size(opened: Image.Image) -> None:
    """Raises Pillow's DecompressionBombError where more than 8 bits come with more pixels than it looks at."""
    wide = opened.mode in ("I", "F") or opened.mode.startswith("I;16")
    if wide and opened.width * opened.height > MAX_WIDE_PIXELS:
        raise Image.DecompressionBombError(f"{opened.width}x{opened.height} pixels of more than 8 bits")


def _as_list(pictures, count: int = 1) -> list:
    """A batch as a list. A 3-D array is one picture, unless `count` says that several are expected."""
    if isinstance(pictures, (list, tuple)):
        return list(pictures)
    batch_axes = 4 if count == 1 else 3
    if isinstance(pictures, (np.ndarray, torch.Tensor)) and pictures.ndim in (4, batch_axes):
        return list(pictures)
    return [pictures]


def _read(picture, input_data_format: str | ChannelDimension | None = None) -> Image.Image | np.ndarray:
    """A path or PIL image as an upright PIL image; a numpy array or torch tensor as an array `(H, W, C)`."""
    if isinstance(picture, torch.Tensor):
        picture = picture.detach().cpu()
        picture = picture.float() if picture.is_floating_point() else picture  # numpy knows no bfloat16
        return _channels_last(picture.numpy(), input_data_format, ambiguous=ChannelDimension.FIRST)
    if isinstance(picture, np.ndarray):
        return _channels_last(picture, input_data_format)
    if not isinstance(picture, (str, os.PathLike, Image.Image)):
        raise ValueError(
            f"{type(picture).__name__} is no picture: give a path, a PIL image, a numpy array or a torch tensor."
        )
    nameless = isinstance(picture, Image.Image) and not getattr(picture, "filename", None)
    name = "the picture" if nameless else f"'{getattr(picture, 'filename', picture)}'"
    try:
        with nullcontext(picture) if isinstance(picture, Image.Image) else Image.open(_content(picture)) as opened:
            check_size(opened)
            # A phone's MPO file is one photograph with a preview behind it.
            frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
            opened.load()
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) != 1
            upright = ImageOps.exif_transpose(opened) if turned else opened
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no picture '{picture}': check the path; download web pictures.") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is no picture of a kind known here: save it as PNG.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has too many pixels to be opened safely: make it smaller first.") from error
    except Exception as error:  # of damaged files: decoders raise TypeError, RuntimeError and whatever else comes
        said = str(error) or type(error).__name__
        raise ValueError(f"{name} cannot be read as a picture ({said}): save it again as PNG.") from error
    if frames > 1:
        raise ValueError(f"the picture is a stack of {frames}: give its slices one by one.")
    if 0 in upright.size:
        raise ValueError(f"the picture is empty ({upright.width}x{upright.height}): give one that has pixels.")
    return upright


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # which would copy


def _channels_first(image: Image.Image) -> np.ndarray:
    """uint8 `(C, H, W)`. Band by band, because turning the axes of a whole takes three times as long."""
    bands = [np.frombuffer(image.tobytes("raw", band), np.uint8) for band in image.getbands()]
    return np.stack(bands).reshape(-1, image.height, image.width)


def _content(path: str | os.PathLike) -> io.BytesIO:
    """A file in memory. Of one on disk, Pillow's decoders set aside as much as a header claims that there is to read,
    which may be gigabytes."""
    if not os.path.isfile(path):  # a device has no end
        raise FileNotFoundError(path)
    with open(path, "rb") as file:
        return io.BytesIO(file.read())


def _channels_last(
    array: np.ndarray,
    input_data_format: str | ChannelDimension | None = None,
    ambiguous: ChannelDimension = ChannelDimension.LAST,
) -> np.ndarray:
    """An array `(H, W)`, `(H, W, C)` or `(C, H, W)` as `(H, W, C)`; a ValueError if it cannot be a picture."""
    shape = tuple(array.shape)
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3:
        if input_data_format is None:
            first, last = shape[0] in CHANNEL_COUNTS, shape[-1] in CHANNEL_COUNTS
            input_data_format = ambiguous if first and last else "channels_first" if first else "channels_last"
        if ChannelDimension(input_data_format) == ChannelDimension.FIRST:
            array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or array.shape[-1] not in CHANNEL_COUNTS or array.size == 0:
        raise ValueError(
            f"an array of shape {shape} is no picture: give (H, W), (H, W, C) or (C, H, W) with 1 to 4 channels."
        )
    if array.dtype.kind not in "biuf":
        raise ValueError(f"an array of {array.dtype} is no picture: give bool, integer or float values.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("the picture holds NaN or infinite values: replace them, for example with numpy.nan_to_num.")
    return array


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """`(H, W, C)` of any number type to uint8."""
    if values.dtype == np.uint8:
        return values
    unit_range = values.dtype.kind in "bf" and values.min() >= 0 and values.max() <= 1
    values = values.astype(np.float64)
    low, high = 0, 1 if unit_range else 255
    if values.min() < low or values.max() > high:
        if values.shape[-1] in (2, 4):
            raise ValueError("the picture has an alpha channel and values outside [0, 255]: leave the alpha out.")
        low, high = np.percentile(values, WINDOW)
        if low == high:  # fewer than one pixel in 200 differs from the rest
            low, high = values.min(), values.max()
    span = (high - low) or 1  # a picture of one value becomes black
    return np.clip(np.rint((values - low) * (255 / span)), 0, 255).astype(np.uint8)


def _palette_to_ids(mask: Image.Image) -> np.ndarray:
    """Palette indices are class ids (VOC), but where a palette is black and white, index 0 may be the white."""
    shown = np.asarray(mask.convert("L"))
    return shown if np.isin(shown, (0, 255)).all() else np.asarray(mask)


__all__ = ["TAMISegImageProcessor", "TAMISegImageProcessorKwargs"]
