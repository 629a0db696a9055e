# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The files of a data set as its owners distribute it: folders, zip archives inside them, tables of sentences.

Archives are read in place: nothing is unpacked, so nothing of the user's is ever overwritten.
"""

from __future__ import annotations

import csv
import io
import os
import stat
import unicodedata
import zipfile
from pathlib import Path, PurePosixPath

from .reading import parse_json, reason


# One file is held in memory at a time. A picture or volume beyond this is no slice of anything we can train on, and
# one that grows more than 200-fold while it is unpacked is a trap (or a blank picture, which is small anyway).
MAX_FILE_BYTES = 2 * 1024**3
MAX_GROWTH = 200
SMALL = 64 * 1024**2
MAX_SHEET_ROWS = 2**20  # Excel's own limit
IGNORED = ("__MACOSX", "Thumbs.db", "desktop.ini")
HIDDEN = (".", "~$")  # the latter is what Excel keeps beside a table that is open
TABLES = (".xlsx", ".csv", ".tsv", ".jsonl")


class Source:
    """The files below a folder (or in one zip archive) by relative path, those inside zip archives included.

    A member "img/a.png" of "Train.zip" is "Train/img/a.png". Hidden files and what operating systems leave behind are
    left out.

    Attributes:
        paths: all of them, sorted.

    Raises:
        ValueError: there is nothing, an archive is broken or locked, or a member points outside of it.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        self._files: dict[str, Path | tuple[zipfile.ZipFile, zipfile.ZipInfo]] = {}
        if not self.folder.exists():
            raise ValueError(f"there is no folder '{folder}': give the one that holds the data set's files.")
        for path in [self.folder] if self.folder.is_file() else files_below(self.folder):
            relative = PurePosixPath(path.name if self.folder.is_file() else path.relative_to(self.folder).as_posix())
            if _is_hidden(relative):
                continue
            if not path.exists():
                raise ValueError(f"'{path}' is a link to what is not there: mend it, or remove it.")
            if not path.is_file():  # a device has no end
                continue
            if path.suffix.lower() == ".zip":
                self._add_archive(path, relative.with_suffix(""))
            else:
                self._files[str(relative)] = path
        if not self._files:
            raise ValueError(f"'{folder}' holds no files: put the data set's folders or zip archives there.")
        self.paths = sorted(self._files)

    def _add_archive(self, path: Path, prefix: PurePosixPath) -> None:
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"'{path}' is no whole zip archive ({error}): download it again.") from error
        for member in archive.infolist():
            name = PurePosixPath(member.filename.replace("\\", "/"))
            if name.is_absolute() or ".." in name.parts or ":" in "".join(name.parts[:1]):
                raise ValueError(f"'{path}' names a file outside of itself ('{member.filename}'): do not trust it.")
            if not name.parts or member.is_dir() or _is_hidden(name):
                continue
            where = f"'{member.filename}' in '{path}'"
            if stat.S_ISLNK(member.external_attr >> 16):
                raise ValueError(f"{where} is a link to another file: pack the file itself.")
            if member.flag_bits & 1:
                raise ValueError(f"{where} is locked by a password: unpack it yourself and give the folder.")
            growth = member.file_size / max(1, member.compress_size)
            if member.file_size > MAX_FILE_BYTES or (member.file_size > SMALL and growth > MAX_GROWTH):
                raise ValueError(f"{where} would grow to {member.file_size:,} bytes: unpack it yourself to trust it.")
            self._files[str(prefix / name)] = (archive, member)

    def read(self, path: str) -> bytes:
        """The content of one file.

        Raises:
            ValueError: the archive that holds it is broken.
        """
        found = self._files[path]
        if isinstance(found, Path):
            return found.read_bytes()
        archive, member = found
        try:
            return archive.read(member)
        except Exception as error:  # of damaged archives: the decompressors raise whatever comes
            raise ValueError(
                f"'{path}' in '{archive.filename}' is broken ({reason(error)}): download it again."
            ) from error

    def read_table(self, path: str) -> list[dict]:
        """The rows of a table (.xlsx, .csv, .tsv or .jsonl), as column -> value; blank rows are left out.

        Raises:
            ValueError: it cannot be read as a table.
        """
        return parse_table(path, self.read(path))


def files_below(folder: str | Path, inside: frozenset[str] = frozenset()) -> list[Path]:
    """All that is no folder, at any depth, sorted. Linked folders are entered too, but none that it lies `inside`."""
    found, inside = [], inside | {os.path.realpath(folder)}
    for path in Path(folder).iterdir():
        if not path.is_dir():
            found.append(path)
        elif os.path.realpath(path) not in inside:  # else a link back up, which has no end
            found += files_below(path, inside)
    return sorted(found)


def parse_table(path: str, content: bytes) -> list[dict]:
    """The rows of a table (.xlsx, .csv, .tsv, .jsonl), as column -> value; blank rows are left out.

    Args:
        path: its name; the extension says the format.
        content: the file.

    Raises:
        ValueError: it cannot be read as a table, or a line has more cells than the head.
    """
    try:
        if path.lower().endswith(".xlsx"):
            rows = _read_xlsx(content)
        elif path.lower().endswith(".jsonl"):
            lines = content.decode("utf-8-sig").splitlines()
            rows = [parse_json(line, "a line", "write one object per line") for line in lines if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is no object: write one object per line")
        else:
            rows = _read_csv(content.decode("utf-8-sig"), "\t" if path.lower().endswith(".tsv") else None)
        return [row for row in rows if any(value is not None for value in row.values())]
    except Exception as error:  # of damaged files: openpyxl and its parsers raise whatever comes
        raise ValueError(
            f"'{path}' cannot be read as a table ({reason(error)}): save it again as .csv (UTF-8)."
        ) from error


def spelled_alike(path: str) -> str:
    """A path as people write it in a table, so that the same on two systems is equal: with forward slashes, and an
    umlaut as one letter (Macs store it as two)."""
    return unicodedata.normalize("NFC", path.replace("\\", "/"))


def _read_csv(text: str, delimiter: str | None) -> list[dict]:
    """Cells are divided by commas or, as where a comma is the decimal sign, by semicolons."""
    if delimiter is None:
        head = text.partition("\n")[0]
        delimiter = ";" if ";" in head and "," not in head else ","
    reader, rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter), []
    for row in reader:
        # Under None lies what is left of a sentence that holds the delimiter, or nothing but blank cells.
        if any(cell.strip() for cell in row.pop(None, [])):
            raise ValueError(
                f"line {reader.line_num} has more cells than the head; sentences that hold '{delimiter}' stand in "
                "quotes"
            )
        rows.append(row)
    return rows


def _read_xlsx(content: bytes) -> list[dict]:
    import openpyxl

    with zipfile.ZipFile(io.BytesIO(content)) as parts:
        size = sum(part.file_size for part in parts.infolist())
    if size > SMALL:
        raise ValueError(f"it would grow to {size:,} bytes")
    sheet = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True).worksheets[0]
    sheet.reset_dimensions()  # else each row is filled up to as many cells as the file claims
    header, table = None, []
    for number, row in enumerate(sheet.iter_rows(values_only=True)):
        if number == MAX_SHEET_ROWS:  # of which the file may claim to have more, all of them blank
            raise ValueError("it has more rows than a sheet can have")
        if header is None:
            header = row
        elif any(value is not None for value in row):
            # A number as a file name ("17") arrives as a number.
            cells = [value if value is None else str(value) for value in row]
            named = zip(header, cells, strict=False)
            table.append({str(name).strip(): value for name, value in named if name is not None})
    return table


def _is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(HIDDEN) or part in IGNORED for part in path.parts)
