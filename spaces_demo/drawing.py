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

from segment import Finding


# The longer side of what is shown; files that people download keep the picture's own size.
SHOWN_SIDE = (640, 1024)
EDGE = 3  # pixels, of the line around a region
STRIPE = 12  # pixels, of one colour where such lines lie on one another
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
    mask = mask_image(finding)
    return mask.resize(shown_size(mask.size), Image.Resampling.NEAREST)


def overlay(shown: Image.Image, findings: Iterable[Finding], opacity: float) -> Image.Image:
    """The shown picture with the findings' regions laid over it, `opacity` in [0, 1], each with an opaque edge. Where
    regions overlap their colours are mixed, and edges on one another are striped, so that none hides another."""
    found = [finding for finding in findings if finding.area]
    if not found:
        return shown
    colours = np.array([rgb(finding.colour) for finding in found], dtype=np.float32)
    inside = np.stack([np.asarray(shown_mask(finding)) > 0 for finding in found])  # (findings, height, width)
    edges = inside & ~np.stack([eroded(one, EDGE) for one in inside])
    pixels = np.array(shown, dtype=np.float32)

    covered = inside.any(axis=0)
    share = inside[:, covered] / inside[:, covered].sum(axis=0)
    pixels[covered] += opacity * (share.T @ colours - pixels[covered])

    y, x = np.nonzero(edges.any(axis=0))
    here = edges[:, y, x]
    turn = (x + y) // STRIPE % here.sum(axis=0)  # whose stripe it is, counted among the edges that meet here
    pixels[y, x] = colours[(here.cumsum(axis=0) > turn).argmax(axis=0)]
    return Image.fromarray(pixels.round().astype(np.uint8))


def eroded(inside: np.ndarray, steps: int) -> np.ndarray:
    """Bool (height, width) without its outermost `steps` pixels; what lies beyond the picture counts as outside."""
    for axis in (0, 1):
        for _ in range(steps):
            padded = np.pad(inside, [(1, 1) if axis == a else (0, 0) for a in (0, 1)])
            before, after = (padded.take(range(start, start + inside.shape[axis]), axis) for start in (0, 2))
            inside = inside & before & after
    return inside


def heat_map(probability: np.ndarray) -> Image.Image:
    """Float (height, width) in [0, 1] in the colours of `HEAT`, whose scale is the same for every picture."""
    steps = np.linspace(0, 1, len(HEAT))
    table = np.stack(
        [np.interp(np.linspace(0, 1, 256), steps, channel) for channel in zip(*map(rgb, HEAT), strict=True)]
    )
    levels = np.rint(probability * 255).astype(np.uint8)
    return Image.fromarray(np.rint(table.T).astype(np.uint8)[levels])


def mask_image(finding: Finding) -> Image.Image:
    """The exact mask: mode L, 0 and 255, the upright picture's size."""
    return Image.fromarray(finding.mask.view(np.uint8) * np.uint8(255))


def png(image: Image.Image) -> bytes:
    """Without loss, quickly rather than smallest: it is drawn again whenever a slider moves."""
    written = io.BytesIO()
    image.save(written, format="PNG", compress_level=1)
    return written.getvalue()


def file_stem(name: str, default: str) -> str:
    """Words of a sentence or file name, fit for a file name on any system."""
    return "-".join(re.findall(r"\w+", name))[:60].strip("-_").lower() or default


def mask_name(stem: str, number: int, finding: Finding) -> str:
    return f"{stem}-mask-{number}-{file_stem(finding.name, 'finding')}.png"


def zip_of(files: dict[str, bytes]) -> bytes:
    """The same files always give the same bytes: no time of day is written."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
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
