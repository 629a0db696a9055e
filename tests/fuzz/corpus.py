# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Whole files of every kind that TAMISeg reads, drawn by code: what is then damaged."""

import gzip
import io
import json
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import openpyxl
import pydicom
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from tests.test_command_line import save_tiny_model


SIZE = (24, 20)  # width and height
MODEL_FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json")
ROWS = [(f"p{number}.png", sentence) for number, sentence in enumerate(("left lesion", "two spots", "upper right"))]


def make_corpus(model: Path) -> dict[str, list[tuple[str, bytes]]]:
    """Kind -> files, as (end of the name, content). Saves a tiny model in the folder `model` on the way."""
    save_tiny_model(model)
    pictures = [draw(mode, number) for number, mode in enumerate(("L", "RGB", "RGBA", "P", "I;16", "1", "LA"))]
    mask = draw("1", 0).convert("L")
    grey, colour, nan = pictures[0], pictures[1], Image.fromarray(np.full(SIZE[::-1], np.nan, np.float32))
    turned = Image.Exif()
    turned[0x0112] = 6
    others = {"BMP": grey, "GIF": grey, "PPM": grey, "TGA": colour, "PCX": grey, "JPEG2000": grey, "ICO": colour}
    return {
        "PNG": [(".png", encode(picture, "PNG")) for picture in (*pictures, mask)],
        "JPEG": [
            (".jpg", encode(grey, "JPEG")),
            (".jpg", encode(colour, "JPEG", exif=turned)),
            (".jpg", encode(colour.convert("CMYK"), "JPEG", progressive=True)),
        ],
        "TIFF": [
            (".tif", encode(picture, "TIFF", compression=how))
            for picture in (grey, colour, pictures[4], mask, nan)
            for how in (None, "tiff_lzw", "tiff_adobe_deflate")
        ],
        "WebP": [(".webp", encode(colour, "WEBP", lossless=whole)) for whole in (False, True)],
        "other pictures": [(f".{kind.lower()}", encode(picture, kind)) for kind, picture in others.items()],
        "DICOM": [(".dcm", dicom()), (".dcm", dicom(bits=8)), (".dcm", dicom(colours=3)), (".dcm", dicom(frames=3))],
        "NIfTI": [(".nii", nifti(np.int16)), (".nii.gz", gzip.compress(nifti(np.uint8))), (".nii", nifti(np.float32))],
        "outlines": [(".xml", OUTLINES)],
        "xlsx": [(".xlsx", xlsx())],
        "csv": [(".csv", "".join(f'{name},"{text}",p{text[0]}\n' for name, text in [HEAD, *ROWS]).encode())],
        "jsonl": [(".jsonl", jsonl())],
        "zip": [(".zip", zipped(pictures[:3], mask))],
        "parquet": [(".parquet", table(pictures[:3], mask))],
        **{kind: [(kind, (model / kind).read_bytes())] for kind in MODEL_FILES},
        "result.json": [("result.json", json.dumps(result()).encode())],
    }


HEAD = ("image", "sentence")
OUTLINES = (
    b'<?xml version="1.0"?><Annotations MicronsPerPixel="0.25"><Annotation Id="1"><Regions><Region Id="1"><Vertices>'
    b'<Vertex X="2.5" Y="3.0" Z="0"/><Vertex X="12.0" Y="4.0" Z="0"/><Vertex X="9.0" Y="15.5" Z="0"/>'
    b"</Vertices></Region></Regions></Annotation></Annotations>"
)


def draw(mode: str, number: int) -> Image.Image:
    """Noise around a bright square."""
    pixels = np.random.default_rng(number).integers(0, 120, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    pixels[5:12, 6:15] = 240
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    return Image.fromarray(pixels).convert(mode)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def dicom(bits: int = 16, colours: int = 1, frames: int = 1) -> bytes:
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID, file.StudyInstanceUID = CTImageStorage, "1.2.3", "1.2"
    file.PatientID, file.PatientName, file.Modality = "p1", "Drawn^By^Code", "CT"
    file.Columns, file.Rows = SIZE
    file.SamplesPerPixel = colours
    file.PhotometricInterpretation = "RGB" if colours == 3 else "MONOCHROME2"
    if colours == 3:
        file.PlanarConfiguration, bits = 0, 8
    if frames > 1:
        file.NumberOfFrames = frames
    file.BitsAllocated = file.BitsStored = bits
    file.HighBit, file.PixelRepresentation = bits - 1, 0
    file.PixelSpacing, file.RescaleSlope, file.RescaleIntercept = [0.7, 0.7], 1, -1024
    file.WindowCenter, file.WindowWidth = [-600, 40], [1500, 400]
    shape = (frames, SIZE[1], SIZE[0], colours)
    values = np.random.default_rng(bits).integers(0, 2 ** min(bits, 11), shape)
    file.PixelData = values.astype(np.uint8 if bits == 8 else np.uint16).tobytes()
    written = io.BytesIO()
    file.save_as(written)
    return written.getvalue()


def nifti(kind) -> bytes:
    values = np.random.default_rng(0).integers(0, 2, (*SIZE, 3)).astype(kind)
    return nibabel.Nifti1Image(values, np.diag([-0.7, -0.7, 2.0, 1.0])).to_bytes()


def xlsx() -> bytes:
    book = openpyxl.Workbook()
    for row in (("Image", "Description"), *ROWS):
        book.active.append(row)
    written = io.BytesIO()
    book.save(written)
    return written.getvalue()


def jsonl() -> bytes:
    """At once what `predict --prompts` reads, an image folder's metadata, and a table of sentences."""
    lines = [
        {"image": name, "sentence": text, "prompt": text, "image_file_name": name, "mask_file_name": "mask.png"}
        | {"name": name[:-4], "patient_id": name[1]}
        for name, text in ROWS
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def zipped(pictures: list[Image.Image], mask: Image.Image) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for (name, _), picture in zip(ROWS, pictures, strict=True):
            archive.writestr(f"images/{name}", encode(picture, "PNG"))
            archive.writestr(f"masks/{name}", encode(mask, "PNG"))
        archive.writestr("t.csv", "".join(f"{name},{text}\n" for name, text in (("image", "text"), *ROWS)))
    return written.getvalue()


def table(pictures: list[Image.Image], mask: Image.Image) -> bytes:
    rows = {
        "image": [{"bytes": encode(picture, "PNG"), "path": f"p{n}.png"} for n, picture in enumerate(pictures)],
        "mask": [{"bytes": encode(mask, "PNG"), "path": None}] * 3,
        "prompt": [text for _, text in ROWS],
        "name": [name[:-4] for name, _ in ROWS],
        "patient_id": ["1", "2", None],
    }
    features = {name: ImageFeature() if name in ("image", "mask") else Value("string") for name in rows}
    written = io.BytesIO()
    Dataset.from_dict(rows, features=Features(features)).to_parquet(written)
    return written.getvalue()


def result() -> dict:
    """What `tamiseg evaluate` writes, with made-up scores."""
    names = ("dice_per_image", "dice_global", "iou_per_image", "iou_global", "precision", "recall", "surface_dice")
    score = {name: 0.5 for name in names} | {f"{name}_interval": [0.4, 0.6] for name in names}
    score |= {"hd95": 3.0, "num_images": 3, "num_empty_targets": 1, "empty_target_false_positive_rate": 0.5}
    return {
        "command": "tamiseg evaluate model --dataset data --split test",
        "weights_sha256": "0" * 64,
        "seed": 0,
        "split": "test",
        "arguments": {"dataset": "data", "image_size": 64, "seed": 0},
        "scores": {"full_text": score, "no_text": dict(score)},
        "rows": {
            "test": {"rows": 3, "patients": 2, "rows_without_patient": 1, "sentences": 3, "frequent_sentences": []}
        },
        "data": {"test": "0" * 64},
        "surface": {"tolerance": 2.0, "spacing": 1.0, "unit": "px"},
        "intervals_over": {"patients": 2, "pictures": 1},
        "versions": {"torch": "2"},
        "hardware": {"machine": "drawn"},
    }
