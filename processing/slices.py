# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures and masks out of the files that hold them: PNG, JPEG, TIFF, DICOM, NIfTI volumes, outlines in XML.

What can be stored as it is stays byte for byte; what holds more than 8 bits is windowed to grey as it is told to.
"""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from .image_processing_tamiseg import WINDOW, TAMISegImageProcessor, check_size
from .reading import reason
from .sources import MAX_FILE_BYTES


KEPT_FORMATS = ("PNG", "JPEG", "WEBP")  # what browsers, `datasets` and Pillow all show
GREY_SPREAD = 32  # by how much the channels of a grey JPEG may differ
DEFLATED = b"1.2.840.10008.1.2.1.99"  # a transfer syntax of DICOM
NEEDS_WINDOW = (
    "holds more than 8 bits: say how they become grey with --window=CENTER,WIDTH (CT lung: --window=-600,1500, in "
    "Hounsfield units, which only a DICOM or NIfTI file knows), or --window=auto for the 0.5-99.5 percentile"
)


@dataclass
class Slice:
    """One picture: `image` is 8-bit L or RGB; `encoded` its file, of that `format`; `spacing` mm between rows and
    between columns, `affine` (4, 4) of its NIfTI volume in canonical axes, None where the file does not say."""

    image: Image.Image
    encoded: bytes
    format: str = "PNG"
    spacing: tuple[float, float] | None = None
    affine: np.ndarray | None = None


@dataclass
class MaskSlice:
    """One mask: `image` is of mode L and holds class ids, 255 for pixels to ignore; `encoded` its PNG file; `cut`
    tells whether grey values had to be made two; `affine` as of a `Slice`."""

    image: Image.Image
    encoded: bytes
    cut: bool = False
    affine: np.ndarray | None = None


def read_images(path: str, content: bytes, window: str | tuple[float, float] | None = None) -> list[Slice]:
    """Reads a file: one picture, or every slice of a volume.

    Args:
        path: its name; the extension says the format.
        content: the file.
        window: (centre, width) in the units of the file; "auto" for the 0.5-99.5 percentile of the whole file; None
            for what a DICOM file says itself, and 8-bit files.

    Returns:
        The slices, a volume's from its feet upwards, each as a radiologist sees it: the patient's right is on the
        left side of the picture, the front is up.

    Raises:
        ValueError: it cannot be read, or holds more than 8 bits and no window is known.
    """
    if path.lower().endswith(".dcm"):
        return _read_dicom(content, window)
    if path.lower().endswith((".nii", ".nii.gz")):
        volume, spacing, affine = _read_nifti(path, content)
        return [_grey_slice(values, spacing=spacing, affine=affine) for values in _to_grey(volume, window)]
    opened = open_picture(content)
    if opened.mode in ("I", "F") or opened.mode.startswith("I;16"):
        return [_grey_slice(_to_grey(np.asarray(ImageOps.exif_transpose(opened)), window))]
    image = TAMISegImageProcessor().load_image(opened)
    if opened.format in KEPT_FORMATS:
        return [Slice(image, content, opened.format)]
    return [Slice(image, encode(image))]


def read_masks(
    path: str, content: bytes, num_labels: int, size: tuple[int, int], may_cut: bool = False
) -> list[MaskSlice]:
    """Reads the masks of a file: of a picture one, of a volume one per slice.

    Args:
        path: its name; the extension says the format.
        content: the file.
        num_labels: classes, background included.
        size: (width, height) of the picture, which outlines need.
        may_cut: cut grey values of a mask of two classes at half the brightness. JPEG masks always are: nobody drew
            their grey edges.

    Raises:
        ValueError: it cannot be read, or holds values that are no class ids.
    """
    loader = TAMISegImageProcessor(num_labels=num_labels)
    if path.lower().endswith(".xml"):
        outlines = _draw_outlines(content, size)
        return [MaskSlice(loader.load_mask(outlines), encode(outlines))]
    if path.lower().endswith((".nii", ".nii.gz", ".dcm")):
        if path.lower().endswith(".dcm"):
            volume, affine = _dicom_values(content)[0], None
        else:
            volume, _, affine = _read_nifti(path, content)
        slices = volume if volume.ndim == 3 else volume[None]
        # All at once, as one tall picture: what 255 means depends on the values beside it.
        ids = np.asarray(loader.load_mask(slices.reshape(-1, slices.shape[-1]))).reshape(slices.shape)
        masks = [Image.fromarray(mask) for mask in ids]
        return [MaskSlice(mask, encode(mask), affine=affine) for mask in masks]
    opened = open_picture(content)
    try:
        mask = loader.load_mask(opened)
    except ValueError:
        drawn = ImageOps.exif_transpose(opened)
        if num_labels != 2 or not (may_cut or opened.format == "JPEG" and _is_two_valued(drawn)):
            raise
        cut = drawn.convert("L").point(lambda value: 255 * (value > 127))
        return [MaskSlice(loader.load_mask(cut), encode(cut), cut=True)]
    return [MaskSlice(mask, content if opened.format == "PNG" else encode(mask))]


def _is_two_valued(drawn: Image.Image) -> bool:
    """Whether a JPEG can have been black and white: without colours, and with something bright. Cut at half the
    brightness, a red target would be gone, and one of class ids too."""
    pixels = np.asarray(drawn.convert("RGB"))
    return np.ptp(pixels, axis=-1).max() <= GREY_SPREAD and pixels.max() > 127


def lie_alike(image: Slice, mask: MaskSlice, num_slices: int) -> bool:
    """Whether a volume and its mask, of the same size, lie in the same place: no corner is half a voxel off. Of files
    that do not say where they lie, nobody can tell."""
    if image.affine is None or mask.affine is None:
        return True
    ends = [(0, last) for last in (image.image.width - 1, image.image.height - 1, num_slices - 1)]
    corners = np.stack([*np.meshgrid(*ends), np.ones((2, 2, 2))]).reshape(4, -1)
    apart = np.linalg.norm(((image.affine - mask.affine) @ corners)[:3], axis=0).max()
    return bool(apart < np.linalg.norm(image.affine[:3, :3], axis=0).min() / 2)


def unite(masks: list[MaskSlice]) -> MaskSlice:
    """One mask of several that show parts of one target: what any of them names is the target."""
    if len(masks) == 1:
        return masks[0]
    ids = np.stack([np.asarray(mask.image) for mask in masks])
    # A pixel to ignore is one that no mask names and some mask leaves open.
    united = Image.fromarray(np.where((ids == 1).any(axis=0), 1, ids.max(axis=0)).astype(np.uint8))
    return MaskSlice(united, encode(united), cut=any(mask.cut for mask in masks))


def open_picture(content: bytes) -> Image.Image:
    """Opens and decodes; a ValueError says what is wrong with the file."""
    if not content:
        raise ValueError("is empty")
    try:
        opened = Image.open(io.BytesIO(content))
        check_size(opened)
        opened.load()
        frames = getattr(opened, "n_frames", 1)
    except Exception as error:  # of damaged files: decoders raise whatever comes
        raise ValueError(f"cannot be decoded ({reason(error)})") from error
    if frames > 1 and opened.format != "MPO":  # that is how telephones store one photograph
        raise ValueError(f"is a stack of {frames} pictures: save each as a file of its own")
    return opened


def encode(image: Image.Image) -> bytes:
    """A PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _to_grey(values: np.ndarray, window: str | tuple[float, float] | None) -> np.ndarray:
    """Values of any range, any shape -> uint8 grey, through one window for all of them."""
    if window is None:
        if values.dtype == np.uint8:
            return values
        raise ValueError(NEEDS_WINDOW)
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("holds NaN or infinite values: replace them, for example with numpy.nan_to_num")
    if window == "auto":
        low, high = np.percentile(values, WINDOW)
    else:
        low, high = window[0] - window[1] / 2, window[0] + window[1] / 2
    return np.clip(np.rint((values - low) * (255 / max(high - low, 1e-6))), 0, 255).astype(np.uint8)


def _grey_slice(values: np.ndarray, **known) -> Slice:
    image = Image.fromarray(values)
    return Slice(image, encode(image), **known)


def _read_dicom(content: bytes, window) -> list[Slice]:
    values, facts = _dicom_values(content)
    known = {"spacing": facts["spacing"]}
    if facts["palette"]:
        raise ValueError("holds numbers of colours in a palette: export it as RGB or as PNG")
    if facts["colour"]:  # ultrasound, endoscopy
        frames = _whole_bytes(values if values.ndim == 4 else values[None])
        frames = _to_grey(frames, None if frames.dtype == np.uint8 else window)  # a window is of grey values
        return [_grey_slice(frame, **known) for frame in frames]
    window = window or facts["window"]
    if window is None and facts["bits"] <= 8:
        values = _whole_bytes(values)
    grey = _to_grey(values, window)
    if facts["inverted"]:
        grey = 255 - grey
    return [_grey_slice(frame, **known) for frame in (grey if grey.ndim == 3 else grey[None])]


def _whole_bytes(values: np.ndarray) -> np.ndarray:
    """As uint8 where nothing is lost by it; a rescaling may lead out of 8 bits, or between whole numbers."""
    narrow = np.clip(values, 0, 255).astype(np.uint8)
    return narrow if (narrow == values).all() else values


def dicom_identity(content: bytes) -> tuple[str | None, str | None]:
    """PatientID and StudyInstanceUID of a DICOM file; None where it does not say, or is none."""
    try:
        header = _dicom_header(content, stop_before_pixels=True)
        return tuple(str(header.get(name) or "") or None for name in ("PatientID", "StudyInstanceUID"))
    except Exception:  # said plainly when its pixels are read
        return None, None


def _dicom_header(content: bytes, **options):
    import pydicom

    if DEFLATED in content[:1024]:
        raise ValueError("it is deflated, and may grow to any size")
    return pydicom.dcmread(io.BytesIO(content), **options)


def _dicom_values(content: bytes) -> tuple[np.ndarray, dict]:
    """Values in the file's own units (Hounsfield for CT), and what the header says of them."""
    from pydicom.pixels import apply_modality_lut, pixel_array

    try:
        header = _dicom_header(content)
        try:
            pixels = pixel_array(header)
        except RuntimeError as error:  # pydicom knows the compression, but no decoder for it works here
            raise ValueError(
                f"it is compressed as {header.file_meta.TransferSyntaxUID.name}, which nothing installed can decode; "
                "for JPEG there is pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
            ) from error
        values = apply_modality_lut(pixels, header)
        spacing = header.get("PixelSpacing") or header.get("ImagerPixelSpacing")
        # Several windows may be offered: the first is the one that the file is shown with.
        center, width = (
            [value for value in np.ravel(header.get(name, [])).tolist() if value is not None]
            for name in ("WindowCenter", "WindowWidth")
        )
        facts = {
            "spacing": tuple(float(mm) for mm in spacing) if spacing else None,
            "window": (float(center[0]), float(width[0])) if center and width else None,
            "colour": header.get("SamplesPerPixel", 1) > 1,
            "bits": header.BitsStored,
            "palette": header.PhotometricInterpretation == "PALETTE COLOR",
            "inverted": header.PhotometricInterpretation == "MONOCHROME1",  # its smallest value is white
        }
    except Exception as error:  # of damaged files: decoders raise whatever comes
        raise ValueError(f"cannot be read as DICOM ({reason(error)}): export it uncompressed, or as PNG") from error
    _check_values(values)
    return values, facts


def _read_nifti(path: str, content: bytes) -> tuple[np.ndarray, tuple[float, float], np.ndarray]:
    """(slices, height, width) in the file's units; mm between rows and between columns; the affine (4, 4), which
    places canonical voxels (column, row, slice) in the room."""
    import nibabel

    try:
        if path.lower().endswith(".gz"):
            content = _unpack(content)
        volume = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(content))
        values = np.asanyarray(volume.dataobj)
        # Canonical axes run from the patient's left to the right, from back to front and from the feet to the head; a
        # picture's columns run from the patient's right to the left and its rows from front to back.
        width_mm, height_mm = (float(mm) for mm in volume.header.get_zooms()[:2])
    except Exception as error:  # of damaged files: its reader raises whatever comes
        raise ValueError(f"cannot be read as NIfTI ({reason(error)}): save it again") from error
    values = values.reshape(values.shape + (1,) * (3 - values.ndim))
    if values.ndim != 3:
        raise ValueError(f"is a NIfTI file of shape {values.shape}: give one volume of three axes a file")
    _check_values(values)
    return values[::-1, ::-1].transpose(2, 1, 0), (height_mm, width_mm), volume.affine


def _unpack(content: bytes) -> bytes:
    """Of a gzip file. Piece by piece: asked for all at once, it would set aside as much as it may grow to."""
    pieces, size = [], 0
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        while piece := file.read(2**20):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_FILE_BYTES:
                raise ValueError(f"grows beyond {MAX_FILE_BYTES:,} bytes")
    return b"".join(pieces)


def _check_values(values: np.ndarray) -> None:
    if values.dtype.kind not in "biuf" or values.size == 0:
        raise ValueError(f"holds no picture ({values.dtype} of shape {values.shape}): save it again as numbers")


def _draw_outlines(content: bytes, size: tuple[int, int]) -> Image.Image:
    """Fills the regions of an Aperio XML file (MoNuSeg) -> mode L, 0 and 255."""
    mask = Image.new("L", size, 0)
    draw = ImageDraw.Draw(mask)
    try:
        root = ElementTree.fromstring(content)
        if not {"Region", "Regions"} & {element.tag for element in root.iter()}:  # boxes of PASCAL VOC, a scan's log
            raise ValueError("it has no Regions")
        for region in root.iter("Region"):
            corners = [(float(vertex.get("X")), float(vertex.get("Y"))) for vertex in region.iter("Vertex")]
            if not np.isfinite(corners).all():
                raise ValueError("a corner is no number")
            if len(corners) > 2:
                draw.polygon(corners, fill=255)
    except Exception as error:  # of damaged files: the parser and the drawing raise whatever comes
        raise ValueError(
            f"cannot be read as outlines ({reason(error)}): download it again, or move it away if it holds none"
        ) from error
    return mask
