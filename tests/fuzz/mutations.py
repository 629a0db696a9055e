# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Damages files: blindly, byte by byte, and knowingly, where a blind change would be caught by a checksum or a length
before it reached anything interesting."""

import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from random import Random


# What fits badly where a number, a name or a list is due.
DEEP = json.loads("[" * 200 + "]" * 200)
HOSTILE = (
    None, True, False, 0, 1, -1, 2, 7, 255, 256, 65536, 2**31 - 1, 2**31, 2**63, 10**40, 0.5, -0.5, 1e308, -1e-308,
    float("nan"), float("inf"), "", " ", "x", "1", "\0", "../../../etc/passwd", "/etc/passwd", "C:\\x", "~", ".",
    "file:///etc/passwd", "https://example.invalid/x.png", "zip://a.png::https://example.invalid/x.zip",
    "<script>alert(1)</script>", "=1+1", "%s%n{0}{x}", "a" * 5000, "🫁", "\u202e", "\ud800", "nan", "__class__",
    [], {}, [None], [[]], [0], [-1], {"": None}, {"x": []}, DEEP,
)  # fmt: skip
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


def mutate(content: bytes, kind: str, spare: bytes, random: Random) -> bytes:
    """One to three damages.

    Args:
        content: the whole file.
        kind: which of the structures below it has; any other name means bytes alone.
        spare: another file of the kind, to take parts from.
        random: all draws come from it.
    """
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        knowing = STRUCTURES.get(kind)
        if knowing and random.random() < 0.6:
            try:
                content = knowing(content, random)
                continue
            except Exception:
                pass  # what an earlier damage left has no structure any more
        content = damage(content, spare, random)
    return content


def damage(content: bytes, spare: bytes, random: Random) -> bytes:
    """Changes bytes without knowing what they mean; half of the time near the beginning, where headers are."""
    size = len(content)
    if size == 0:
        return random.randbytes(random.randrange(20))
    at = random.randrange(min(size, 128) if random.random() < 0.5 else size)
    length = random.choice((1, 2, 4, 8, random.randrange(1, 64), random.randrange(1, size + 1)))
    part = content[at : at + length]
    match random.choice(("flip", "flip", "number", "number", "cut", "delete", "repeat", "noise", "splice", "empty")):
        case "flip":
            changed = bytearray(content)
            for _ in range(random.choice((1, 1, 3, 20))):
                changed[random.randrange(at, size)] ^= 1 << random.randrange(8)
            return bytes(changed)
        case "number":
            width = random.choice((1, 2, 4, 8))
            number = random.choice(NUMBERS) % 256**width
            return content[:at] + number.to_bytes(width, random.choice(("little", "big"))) + content[at + width :]
        case "cut":
            return content[:at]
        case "delete":
            return content[:at] + content[at + length :]
        case "repeat":
            return content[:at] + part * random.choice((2, 3, 50)) + content[at + length :]
        case "noise":
            return content[:at] + random.randbytes(len(part)) + content[at + length :]
        case "splice":
            return content[:at] + spare[random.randrange(len(spare) + 1) :]
        case _:
            return b"" if random.random() < 0.2 else content[at:]


def change_json(value, random: Random):
    """The value with one node replaced, left out, renamed or doubled."""
    places = list(_places(value))
    if not places:
        return random.choice(HOSTILE)
    parent, key = random.choice(places)
    match random.choice(("replace", "replace", "replace", "delete", "rename", "add", "deepen", "swap")):
        case "replace":
            parent[key] = random.choice(HOSTILE)
        case "delete":
            del parent[key]
        case "rename" if isinstance(parent, dict):
            parent[random.choice(("x", "", str(key).upper(), "__init__", "_name_or_path"))] = parent.pop(key)
        case "add" if isinstance(parent, list):
            parent.extend([parent[key]] * random.choice((1, 3, 1000)))
        case "deepen":
            parent[key] = [parent[key]]
        case "swap":
            other, there = random.choice(places)
            if there in other if isinstance(other, dict) else there < len(other):
                parent[key] = json.loads(json.dumps(other[there]))
    return value


def _places(value):
    """(container, key) of everything inside."""
    inside = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, item in inside if isinstance(value, (dict, list)) else ():
        yield value, key
        if isinstance(item, (dict, list)):
            yield from _places(item)


def _json(content: bytes, random: Random) -> bytes:
    if random.random() < 0.05:
        return random.choice((b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"nul", b'"\\ud800"', b"\xff\xfe{"))
    return json.dumps(change_json(json.loads(content), random)).encode()


def _json_lines(content: bytes, random: Random) -> bytes:
    lines = content.splitlines(keepends=True)
    at = random.randrange(len(lines))
    lines[at] = _json(lines[at], random) + b"\n"
    return b"".join(lines)


def _table(content: bytes, random: Random) -> bytes:
    """Text with separators: a cell is changed, or its line's cells are."""
    lines = content.splitlines(keepends=True)
    at = random.randrange(len(lines))
    cells = lines[at].split(b",")
    said = str(random.choice(HOSTILE)).encode("utf-8", "surrogatepass")
    cells[random.randrange(len(cells))] = random.choice((said, b'"', b"\xff", b"x" * 200_000, b",,,", b"\r\r", b"\0"))
    lines[at] = b",".join(cells)
    return b"".join(lines)


def _png(content: bytes, random: Random) -> bytes:
    """Chunks with their checksums made right again."""
    chunks, at = [], 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += length + 12
    _change_parts(chunks, random)
    pack = struct.pack
    return content[:8] + b"".join(
        pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _change_parts(parts: list[tuple], random: Random) -> None:
    """Repeats, drops, moves or damages one of (kind, data)."""
    at = random.randrange(len(parts))
    kind, data = parts[at]
    match random.choice(("repeat", "delete", "move", "damage", "damage", "damage", "rename")):
        case "repeat":
            parts[at:at] = [parts[at]] * random.choice((1, 2, 100))
        case "delete":
            del parts[at]
        case "move":
            parts.insert(random.randrange(len(parts)), parts.pop(at))
        case "damage":
            parts[at] = (kind, damage(data, data, random))
        case "rename":
            parts[at] = (random.choice(parts)[0], data)


def _jpeg(content: bytes, random: Random) -> bytes:
    """Segments before the scan; their lengths stay right."""
    parts, at = [], 2
    while content[at + 1] != 0xDA:
        (length,) = struct.unpack(">H", content[at + 2 : at + 4])
        parts.append((content[at : at + 2], content[at + 4 : at + 2 + length]))
        at += length + 2
    _change_parts(parts, random)
    segments = (marker + struct.pack(">H", (len(data) + 2) % 65536) + data for marker, data in parts)
    return content[:2] + b"".join(segments) + content[at:]


def _riff(content: bytes, random: Random) -> bytes:
    """Chunks of a WebP file; lengths stay right."""
    parts, at = [], 12
    while at < len(content):
        (length,) = struct.unpack("<I", content[at + 4 : at + 8])
        parts.append((content[at : at + 4], content[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    _change_parts(parts, random)
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in parts
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _tiff(content: bytes, random: Random) -> bytes:
    """A field of the first directory: its tag, type, count or value."""
    order = "<" if content[:2] == b"II" else ">"
    (directory,) = struct.unpack(order + "I", content[4:8])
    (count,) = struct.unpack(order + "H", content[directory : directory + 2])
    at = directory + 2 + 12 * random.randrange(count)
    offset, width = random.choice(((0, 2), (2, 2), (4, 4), (8, 2), (8, 4)))
    number = random.choice((*NUMBERS, 3, 4, 5, 7, 8, 16, 32, 64)) % 256**width
    field = number.to_bytes(width, "little" if order == "<" else "big")
    return content[: at + offset] + field + content[at + offset + width :]


def _zip(content: bytes, random: Random) -> bytes:
    """A member is damaged, dropped, doubled, renamed or made a link or a bomb; checksums are right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = random.randrange(len(members))
    name, data = members[at]
    attributes = 0
    match random.choice(("damage", "damage", "damage", "delete", "double", "rename", "link", "bomb", "folder")):
        case "damage":
            data = _markup(data, random) if data.startswith(b"<") else damage(data, data, random)
            members[at] = (name, data)
        case "delete":
            del members[at]
        case "double":
            members.append(members[at])
        case "rename":
            tricks = ("../x", "/etc/x", "C:\\x", "..\\..\\x", "x/../../y", "\0", "a" * 300, "🫁", "\udcff", "")
            members[at] = (random.choice(tricks) + name, data)
        case "link":
            members[at], attributes = (name, b"/etc/passwd"), 0o120777 << 16
        case "bomb":
            members[at] = (name, bytes(random.choice((10, 100)) * 2**20))
        case "folder":
            members[at] = (name + "/", b"")
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (name, data) in enumerate(members):
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode() or "x")
            info.external_attr = attributes if number == at else 0
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return written.getvalue()


def _markup(data: bytes, random: Random) -> bytes:
    """XML: a number, a name between quotes or a tag is changed, or entities blow up."""
    if random.random() < 0.1:
        bomb = b'<!DOCTYPE x [<!ENTITY a "' + b"a" * 1000 + b'">'
        for one, two in (b"ab", b"bc", b"cd", b"de", b"ef", b"fg"):
            bomb += b"<!ENTITY %c '%s'>" % (two, b"&%c;" % one * 100)
        head, _, rest = data.rpartition(b"?>")
        return head + b"?>" * bool(head) + bomb + b"]>" + rest.replace(b">", b">&g;", 1)
    pieces = data.split(b'"')
    at = random.randrange(len(pieces))
    said = random.choice((b"", b"-1", b"0", b"99999999999999", b"1e999", b"nan", b"XFD1048576", b"x", b"&#0;", b"A0"))
    pieces[at] = said if at % 2 else damage(pieces[at], data, random)
    return b'"'.join(pieces)


def _nifti(content: bytes, random: Random) -> bytes:
    """A field of the header, packed again where it was packed."""
    packed = content[:2] == b"\x1f\x8b"
    whole = bytearray(gzip.decompress(content) if packed else content)
    offset, form = random.choice(
        [(40 + 2 * i, "h") for i in range(8)]  # axes and their lengths
        + [(70, "h"), (72, "h"), (252, "h"), (254, "h")]  # type, bits, codes of the orientation
        + [(76 + 4 * i, "f") for i in range(4)]  # voxel sizes
        + [(108, "f"), (112, "f"), (116, "f"), (344, "4s")]  # offset of the values, slope, intercept, magic
        + [(256 + 4 * i, "f") for i in range(18)]  # orientation
    )
    value = {
        "h": random.choice((0, 1, -1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 32767, -32768)),
        "f": random.choice((0.0, 1.0, -1.0, 1e30, 1e-30, float("nan"), float("inf"), 353.5, 1e9)),
        "4s": random.choice((b"ni1\0", b"n+2\0", b"\0\0\0\0")),
    }[form]
    struct.pack_into("<" + form, whole, offset, value)
    return gzip.compress(bytes(whole), 1) if packed else bytes(whole)


def _dicom(content: bytes, random: Random) -> bytes:
    """An element gets a value that is not its own, or is left out."""
    import pydicom

    file = pydicom.dcmread(io.BytesIO(content))
    element = random.choice(list(file))
    if random.random() < 0.2:
        del file[element.tag]
    elif element.VR == "US":
        element.value = random.choice((0, 1, 2, 3, 7, 8, 12, 16, 32, 64, 255, 65535))
    elif element.VR in ("DS", "IS"):
        element._value = random.choice(("", "x", "1\\2\\3", "nan", "1e400", "0", "-1", "99999999999"))
    elif element.VR in ("CS", "LO", "PN", "SH", "UI"):
        tricks = (
            "",
            "MONOCHROME1",
            "RGB",
            "PALETTE COLOR",
            "YBR_FULL",
            "../../x",
            "1.2.840.10008.1.2.4.50",
            "🫁",
            "\0",
        )
        element._value = random.choice(tricks)
    else:
        element._value = damage(content[-200:], content, random)
    written = io.BytesIO()
    try:
        file.save_as(written)
    except Exception as error:  # pydicom refuses to write some of it
        raise ValueError("cannot be written") from error
    return written.getvalue()


def _parquet(content: bytes, random: Random) -> bytes:
    """A column is left out, renamed, or holds other values or another type; pictures are paths, or somewhere else."""
    import pyarrow
    from pyarrow import parquet

    rows = parquet.read_table(io.BytesIO(content)).to_pylist()
    column = random.choice(list(rows[0]))
    picture = {"bytes": None, "path": random.choice([value for value in HOSTILE if isinstance(value, str)])}
    value = random.choice((*HOSTILE, picture, picture, picture, {"bytes": b"", "path": None}, b"\x89PNG"))
    match random.choice(("cell", "cell", "column", "column", "delete", "rename", "empty")):
        case "cell":
            random.choice(rows)[column] = value
        case "column":
            rows = [{**row, column: value} for row in rows]
        case "delete":
            rows = [{key: row[key] for key in row if key != column} for row in rows]
        case "rename":
            rows = [{("x" if key == column else key): row[key] for key in row} for row in rows]
        case "empty":
            rows = []
    written = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), written)
    return written.getvalue()


def _safetensors(content: bytes, random: Random) -> bytes:
    """The table of tensors, with its length made right again."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(change_json(json.loads(content[8 : 8 + length]), random)).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


STRUCTURES: dict[str, Callable[[bytes, Random], bytes]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "TIFF": _tiff,
    "WebP": _riff,
    "DICOM": _dicom,
    "NIfTI": _nifti,
    "parquet": _parquet,
    "xlsx": _zip,
    "zip": _zip,
    "outlines": _markup,
    "csv": _table,
    "jsonl": _json_lines,
    "model.safetensors": _safetensors,
    "config.json": _json,
    "tokenizer.json": _json,
    "tokenizer_config.json": _json,
    "processor_config.json": _json,
    "result.json": _json,
}
