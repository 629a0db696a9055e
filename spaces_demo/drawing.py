# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""A measured answer as people see it: coloured regions, heat map, table, legend, and the files they take home."""

import html
import io
import re
import zipfile
from collections.abc import Iterable

import numpy as np
from PIL import Image

from segment import COLOURS, Finding


# The longer side of what is shown; files that people download keep the picture's own size.
SHOWN_SIDE = (640, 1024)
EDGE = 3  # pixels, of the line around a region
STRIPE = 12  # pixels, of one colour where such lines lie on one another
EDGES = 2 ** len(COLOURS)  # where the colours of edges begin in the palette of an overlay
# Nine even steps of viridis (CC0), for probabilities 0 to 1: never stretched to one picture's own range.
HEAT = ("#440154", "#472c7a", "#3b518b", "#2c718e", "#21908d", "#27ad81", "#5cc863", "#aadc32", "#fde725")


def rgb(colour: str) -> tuple[int, int, int]:
    """ "#E69F00" as (230, 159, 0)."""
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """`(width, height)` of a picture as it is shown."""
    least, most = SHOWN_SIDE
    scale = min(max(least, max(size)), most) / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def shown_picture(picture: Image.Image) -> Image.Image:
    return picture.resize(shown_size(picture.size), Image.Resampling.BICUBIC, reducing_gap=2.0)


def shown_mask(finding: Finding) -> Image.Image:
    """Mode L, 0 and 255; each pixel of a small picture becomes a square."""
    return mask_image(finding).resize(shown_size(finding.mask.shape[::-1]), Image.Resampling.NEAREST)


def overlay(shown: Image.Image, findings: Iterable[Finding], opacity: float) -> Image.Image:
    """The shown picture with the findings' regions laid over it, `opacity` in [0, 1], each with an opaque edge. Where
    regions overlap their colours are mixed, and edges on one another are striped, so that none hides another."""
    found = [finding for finding in findings if finding.area]
    if not found:
        return shown
    # One bit per finding, of which there are at most seven: one array holds them all, and indexes a palette of what
    # colours a pixel can have. Its upper half is for edges.
    colours = np.array([rgb(finding.colour) for finding in found])
    inside = np.zeros(shown.size[::-1], np.uint8)
    for bit, finding in enumerate(found):
        inside |= np.asarray(shown_mask(finding)) & np.uint8(1 << bit)
    edges = inside & ~eroded(inside, EDGE)
    members = np.arange(EDGES)[:, None] >> np.arange(len(found)) & 1  # (combinations, findings)
    y, x = np.nonzero(edges)
    here = members[edges[y, x]]
    turn = (x + y) // STRIPE % here.sum(axis=1)  # whose stripe it is, counted among the edges that meet here
    inside[y, x] = EDGES + (here.cumsum(axis=1) > turn[:, None]).argmax(axis=1)

    paint = Image.fromarray(inside)
    cover = paint.point([0, *[round(255 * opacity)] * (EDGES - 1), *[255] * EDGES])
    mixed = members @ colours / np.maximum(members.sum(axis=1, keepdims=True), 1)
    paint.putpalette(np.rint(np.concatenate([mixed, colours])).astype(np.uint8).tobytes())
    painted = shown.copy()
    painted.paste(paint.convert("RGB"), mask=cover)
    return painted


def eroded(inside: np.ndarray, steps: int) -> np.ndarray:
    """The bits of (height, width) without the outermost `steps` pixels of each; what lies beyond the picture counts as
    outside."""
    for _ in range(steps):
        padded = np.pad(inside, 1)
        rows = padded[:-2] & padded[1:-1] & padded[2:]
        inside = rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]
    return inside


def heat_map(probability: np.ndarray) -> Image.Image:
    """Float (height, width) in [0, 1] in the colours of `HEAT`, whose scale is the same for every picture; mode P."""
    steps = np.linspace(0, 1, len(HEAT))
    table = np.stack(
        [np.interp(np.linspace(0, 1, 256), steps, channel) for channel in zip(*map(rgb, HEAT), strict=True)]
    )
    image = Image.fromarray(np.rint(probability * 255).astype(np.uint8))
    image.putpalette(np.rint(table.T).astype(np.uint8).tobytes())
    return image


def mask_image(finding: Finding) -> Image.Image:
    """The exact mask: mode L, 0 and 255, the upright picture's size."""
    return Image.fromarray(finding.mask.view(np.uint8) * np.uint8(255))


def png(image: Image.Image) -> bytes:
    """Without loss, and quickly rather than smallest: masks are written again whenever a slider moves."""
    written = io.BytesIO()
    image.save(written, format="PNG", compress_level=1)
    return written.getvalue()


def jpeg(image: Image.Image) -> bytes:
    """For what is only looked at: ten times as quick as PNG, and a third of its size. Colours keep full resolution,
    so that the edges of regions stay sharp."""
    written = io.BytesIO()
    image.save(written, format="JPEG", quality=95, subsampling=0)
    return written.getvalue()


def file_stem(name: str, default: str) -> str:
    """Words of a sentence or file name, fit for a file name on any system."""
    return "-".join(re.findall(r"\w+", name))[:60].strip("-_").lower() or default


def mask_name(stem: str, number: int, finding: Finding) -> str:
    return f"{stem}-mask-{number}-{file_stem(finding.name, 'finding')}.png"


def zip_of(files: dict[str, bytes]) -> bytes:
    """The same files always give the same bytes: no time of day is written."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:  # stored: PNG is compressed already
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return written.getvalue()


def legend_html(findings: Iterable[Finding]) -> str:
    items = (
        f'<li><span class="swatch" style="background:{finding.colour}"></span>{html.escape(finding.name)}'
        f"{'' if finding.area else ' <em>(not found)</em>'}</li>"
        for finding in findings
    )
    return f'<ul class="legend" aria-label="Colours of the findings">{"".join(items)}</ul>'


def scale_html(threshold: float) -> str:
    """The heat map's scale, with the threshold marked on it."""
    ticks = "".join(f"<span>{tick:g}</span>" for tick in (0, 0.25, 0.5, 0.75, 1))
    return (
        f'<div class="scale" role="img" aria-label="Colours from probability 0, dark violet, to 1, yellow; threshold '
        f'{threshold:g}"><div class="bar" style="background:linear-gradient(to right,{",".join(HEAT)})">'
        f'<i style="left:{100 * threshold:g}%"></i></div><div class="ticks">{ticks}</div></div>'
    )


def number_cells(finding: Finding) -> list[str]:
    row = finding.numbers()
    mean = "–" if row["mean_p"] is None else f"{row['mean_p']:.2f}"
    return [f"{row['area_px']:,}", f"{row['area_percent']:.2f}", str(row["regions"]), mean]


def table_html(head: list[str], rows: list[list[str]], caption: str) -> str:
    """Cells of text; the first of each row names it. Wide tables scroll inside their own box."""
    lines = []
    for name, *cells in rows:
        values = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{html.escape(name)}</th>{values}</tr>')
    head_cells = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{html.escape(caption)}"><table>'
        f"<caption>{html.escape(caption)}</caption><thead><tr>{head_cells}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
