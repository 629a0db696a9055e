# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Files as people send them: whatever a library says of a broken one, and JSON, in one plain sentence; and their
hash."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from pathlib import Path


# What the system refuses of a path, and the remedy.
REFUSALS = {
    errno.ENOENT: "is not there: check the path",
    errno.EEXIST: "is there already and no folder: give a folder, or another name",
    errno.ENOTDIR: "is no folder: give one, or another name",
    errno.EISDIR: "is a folder: give a file",
    errno.EACCES: "cannot be read or written (permission denied): choose another folder",
    errno.EPERM: "cannot be read or written (permission denied): choose another folder",
    errno.EROFS: "cannot be written (its disk is read-only): choose another folder",
    errno.ENOSPC: "cannot be written (its disk is full): make room, or choose another folder",
}


def refusal(error: OSError) -> str:
    """What the system says of a path, as a sentence with its remedy; other errors' own words."""
    if error.filename is None or error.errno not in REFUSALS or not str(error).startswith("["):
        return str(error)
    return f"'{error.filename}' {REFUSALS[error.errno]}."


def reason(error: Exception) -> str:
    """What a library says, fit for parentheses: one line of at most 200 letters, no addresses of its objects."""
    said = re.sub(r"<\S+ object at \w+>", "", re.sub(r"<class '([\w.]+)'>", r"\1", str(error)))
    said = "".join(letter if letter.isprintable() else " " for letter in said)
    return " ".join(said.split())[:200] or type(error).__name__


def name_flag(error: Exception, flag: str) -> str:
    """What is said of a mask, and where it asks for num_labels, the flag that gives it."""
    said = str(error)
    return f"{said.removesuffix('.')} (num_labels is given by {flag})." if "num_labels" in said else said


def parse_json(content: str | bytes, where: str, remedy: str):
    """The value that is written there.

    Raises:
        ValueError: it is no JSON, not in a Unicode encoding, nested too deeply, or holds half a character; the
            sentence begins with `where` and ends with `remedy`.
    """
    try:
        value = json.loads(content)
        json.dumps(value, ensure_ascii=False).encode()  # fails for "\ud800", which no file could hold again
    except RecursionError as error:
        raise ValueError(f"{where} is not JSON that can be read (nested too deeply): {remedy}.") from error
    except UnicodeError as error:
        raise ValueError(f"{where} is not in UTF-8 ({error.reason}): {remedy}.") from error
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error}): {remedy}.") from error
    return value


def read_json(path: str | Path) -> dict:
    """The object in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: as `parse_json`, or it holds something else.
    """
    value = parse_json(Path(path).read_bytes(), f"'{path}'", "write it anew")
    if not isinstance(value, dict):
        raise ValueError(f"'{path}' holds no JSON object: write it anew.")
    return value


def sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
