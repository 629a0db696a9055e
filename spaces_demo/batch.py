# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Many pictures under the same findings: masks and a table into one ZIP, and for each file a word on how it went."""

import csv
import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from drawing import file_stem, mask_image, mask_name, png
from segment import Finding, Segmenter


COLUMNS = "file status finding found area_px area_percent regions mean_p highest_p mask notes".split()
MAX_FILES = 100
MAX_FILE_BYTES = 25 * 2**20  # of one picture inside a ZIP; the page itself takes no larger upload


@dataclass
class Row:
    """How one file went: its findings, or one sentence on why there are none."""

    name: str
    findings: list[Finding] = field(default_factory=list)
    error: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        return self.error or "done"


def collect(paths: list[str]) -> list[tuple[str, Callable[[], BinaryIO]]]:
    """The pictures among uploaded files and inside uploaded ZIPs, each with a way to open it. Nothing is unpacked to
    disk, so that no name in a ZIP can lead anywhere.

    Raises:
        ValueError: in one sentence, if there are none, too many, or a ZIP is damaged.
    """
    found: list[tuple[str, Callable[[], BinaryIO]]] = []
    for path in map(Path, paths):
        if not zipfile.is_zipfile(path) and path.suffix.lower() != ".zip":
            found.append((path.name, lambda path=path: open(path, "rb")))
            continue
        try:
            with zipfile.ZipFile(path) as archive:
                entries = [entry for entry in archive.infolist() if _is_content(entry)]
        except zipfile.BadZipFile as error:
            raise ValueError(f"'{path.name}' is a damaged ZIP: pack it again.") from error
        found += [(entry.filename, lambda path=path, entry=entry: _unpack(path, entry)) for entry in entries]
    if not found:
        raise ValueError("There are no pictures: add picture files, or a ZIP that holds some.")
    if len(found) > MAX_FILES:
        raise ValueError(f"{len(found)} files are too many: send at most {MAX_FILES} at a time.")
    return found


def segment_files(
    segmenter: Segmenter,
    sources: list[tuple[str, Callable[[], BinaryIO]]],
    text: str | None,
    threshold: float,
    output: BinaryIO,
) -> Iterator[Row]:
    """Segments one file after the other, and goes on after those that cannot be read.

    Args:
        sources: from [`collect`].
        text: findings, separated by semicolons, the same for all pictures.
        threshold: probability from which a pixel counts.
        output: open file to write a ZIP to: masks/, and at the end table.csv.

    Yields:
        One row per file, as soon as it is done.
    """
    table = io.StringIO()
    lines = csv.DictWriter(table, COLUMNS)
    lines.writeheader()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (name, open_file) in enumerate(sources, start=1):
            row = Row(name)
            try:
                with open_file() as file:
                    picture, row.notes = segmenter.read(file, name)
                answer = segmenter.ask(picture, text)
                row.notes += answer.notes
                row.findings = segmenter.measure(answer, threshold)
            except ValueError as error:
                row.error = str(error)
                lines.writerow({"file": name, "status": row.status, "notes": " ".join(row.notes)})
            # The number keeps apart what is called the same in two folders.
            stem = f"{number:03d}-{file_stem(Path(name).stem, 'picture')}"
            for index, finding in enumerate(row.findings, start=1):
                mask = f"masks/{mask_name(stem, index, finding)}"
                archive.writestr(zipfile.ZipInfo(mask), png(mask_image(finding)))
                told = {"file": name, "status": row.status, "mask": mask, "notes": " ".join(row.notes)}
                lines.writerow({**told, **finding.numbers()})
            yield row
        archive.writestr(zipfile.ZipInfo("table.csv"), table.getvalue())


def _is_content(entry: zipfile.ZipInfo) -> bool:
    """Not a folder, and not what macOS and file managers hide in a ZIP."""
    path = Path(entry.filename)
    return bool(path.name) and not (entry.is_dir() or path.name.startswith(".") or "__MACOSX" in path.parts)


def _unpack(path: Path, entry: zipfile.ZipInfo) -> BinaryIO:
    """One entry, in memory.

    Raises:
        ValueError: in one sentence, if it is too large, has a password, or is damaged.
    """
    if entry.file_size > MAX_FILE_BYTES:
        raise ValueError(f"'{entry.filename}' is larger than {MAX_FILE_BYTES // 2**20} MB: make it smaller first.")
    if entry.flag_bits & 1:
        raise ValueError(f"'{entry.filename}' has a password: pack it without one.")
    try:
        with zipfile.ZipFile(path) as archive:
            return io.BytesIO(archive.read(entry))
    except Exception as error:  # zlib.error, BadZipFile, NotImplementedError: damaged, or packed by other means
        raise ValueError(f"'{entry.filename}' cannot be unpacked: pack it again as a plain ZIP.") from error
