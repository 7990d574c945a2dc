"""Headers of a tar: one block parsed, and the records of a pax header.

Common tools read some headers differently. Such headers are refused: a file must not be one image here and another
image elsewhere. `tests/hostile/differing.py` has each case, with what GNU tar, Python's tarfile and skopeo make of it.
"""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING, Final, NamedTuple

from ocistream import limits
from ocistream.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TarHeader", "parse_header", "parse_pax_records"]

#: POSIX calls the version "00", but GNU tar, Python and Go compare the magic only.
_POSIX_MAGIC: Final = b"ustar\0"
#: star ends its headers with this, and keeps times where POSIX has the last bytes of the prefix.
_STAR_TRAILER: Final = b"tar\0"
_STAR_PREFIX: Final = 131


class TarHeader(NamedTuple):
    """What is looked at of a header block: of tens of thousands of entries, owners and times would cost seconds."""

    type: bytes
    name: str
    size: int
    linkname: str
    is_read_only: bool


def parse_header(block: bytes) -> TarHeader:
    """Parse a header block (POSIX pax, "ustar Interchange Format").

    Raises:
        tarfile.HeaderError: the checksum is wrong, or a field is not a number.
        ArchiveError: only some tools use the prefix of the name.
    """
    summed = block[:148] + b"        " + block[156:]
    promised, unsigned = _parse_number(block[148:156]), sum(summed)
    # Some tars of long ago took bytes for signed ones.
    if promised != unsigned and promised != unsigned - 256 * sum(byte > 0x7F for byte in summed):
        msg = "bad checksum"
        raise tarfile.HeaderError(msg)
    kind, name = block[156:157], _parse_text(block[0:100])
    if kind == tarfile.AREGTYPE and name.endswith("/"):
        # So were directories written before there was a type for them.
        kind = tarfile.DIRTYPE
    if block[345] and kind not in tarfile.GNU_TYPES:
        name = f"{_parse_prefix(block)}/{name}"
    name = name.rstrip("/") if kind == tarfile.DIRTYPE else name
    return TarHeader(
        kind, name, _parse_number(block[124:136]), _parse_text(block[157:257]), _is_read_only(block[100:108])
    )


def _parse_prefix(block: bytes) -> str:
    """Return the first part of a long name. Python reads one in any header, GNU tar and Go in POSIX headers only."""
    prefix = block[345:500].partition(b"\0")[0]
    is_star = block[508:512] == _STAR_TRAILER
    if block[257:263] != _POSIX_MAGIC or (is_star and len(prefix) > _STAR_PREFIX):
        msg = "a header in the archive has a name prefix that only some tools use"
        raise ArchiveError(msg)
    return prefix.decode("utf-8", "surrogateescape")


def _parse_number(field: bytes) -> int:
    """Read octal digits, or, as GNU has it, bytes behind one that says so."""
    if field[0] in {0x80, 0xFF}:
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    before, _, behind = field.partition(b"\0")
    digits = before.strip(b" ")
    # Go skips a NUL before the digits. For others the number ends there.
    if digits.strip(b"01234567") or (not digits and behind.strip(b"\0 ")):
        msg = "invalid header"
        raise tarfile.HeaderError(msg)
    return int(digits or b"0", 8)


def _is_read_only(mode: bytes) -> bool:
    """Return whether octal digits give the owner no right to write; what is malformed gives it."""
    return mode.partition(b"\0")[0].strip(b" ")[-3:-2] in {b"0", b"1", b"4", b"5"}


def _parse_text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def parse_pax_records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Parse lines of `LENGTH KEY=VALUE` (POSIX pax, "pax Extended Header").

    Raises:
        ArchiveError: a line is malformed, or there are too many.
    """
    position = 0
    for _ in range(limits.MAX_PAX_RECORDS):
        if position == len(content):
            return
        digits, space, _ = content[position : position + 20].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = content[position : position + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        fits = len(digits) + 4 <= length == len(record)
        if not fits or not equals or not record.endswith(b"\n"):
            msg = "a pax header in the archive is malformed"
            raise ArchiveError(msg)
        yield key, value
        position += length
    if position < len(content):
        msg = f"a pax header in the archive has more than {limits.MAX_PAX_RECORDS} records"
        raise ArchiveError(msg)
