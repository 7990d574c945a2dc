"""One header block of a tar, parsed: what image archives need of it.

Python's `tarfile` looks at every field of a header, and fails where one of no interest is wrong.
"""

from __future__ import annotations

import tarfile
from typing import NamedTuple

__all__ = ["Header", "header_of"]


class Header(NamedTuple):
    """What is looked at of a header block: of tens of thousands of entries, owners and times would cost seconds."""

    type: bytes
    name: str
    size: int
    linkname: str
    is_read_only: bool


def header_of(block: bytes) -> Header:
    """Parse a header block (POSIX pax, "ustar Interchange Format").

    Raises:
        tarfile.HeaderError: its checksum is wrong, or something in it is no number.
    """
    summed = block[:148] + b"        " + block[156:]
    promised, unsigned = _number(block[148:156]), sum(summed)
    # Some tars of long ago took bytes for signed ones.
    if promised != unsigned and promised != unsigned - 256 * sum(byte > 0x7F for byte in summed):
        msg = "bad checksum"
        raise tarfile.HeaderError(msg)
    kind, name, prefix = block[156:157], _text(block[0:100]), _text(block[345:500])
    if kind == tarfile.AREGTYPE and name.endswith("/"):
        # So were directories written before there was a type for them.
        kind = tarfile.DIRTYPE
    if prefix and kind not in tarfile.GNU_TYPES:
        name = f"{prefix}/{name}"
    name = name.rstrip("/") if kind == tarfile.DIRTYPE else name
    return Header(kind, name, _number(block[124:136]), _text(block[157:257]), _is_read_only(block[100:108]))


def _number(field: bytes) -> int:
    """Read octal digits, or, as GNU has it, bytes behind one that says so."""
    if field[0] in {0x80, 0xFF}:
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    digits = field.partition(b"\0")[0].strip(b" ")
    if digits.strip(b"01234567"):
        msg = "invalid header"
        raise tarfile.HeaderError(msg)
    return int(digits or b"0", 8)


def _is_read_only(mode: bytes) -> bool:
    """Return whether octal digits give the owner no right to write; what is malformed gives it."""
    return mode.partition(b"\0")[0].strip(b" ")[-3:-2] in {b"0", b"1", b"4", b"5"}


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")
