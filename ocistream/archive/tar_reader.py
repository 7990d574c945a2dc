"""Read tar entries one after the other. Headers that tools read differently are refused.

Python's `tarfile` stream modes cost more CPU than SHA-256; only its constants are used.
This module knows nothing of images and never opens a file.
"""

from __future__ import annotations

import shlex
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ocistream import limits
from ocistream.errors import ArchiveError, TruncatedError, UnsupportedError
from ocistream.oci.reference import printable
from ocistream.streams import files
from ocistream.streams.chunks import read_all, read_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.streams.chunks import Chunk

#: POSIX calls the version "00", but GNU tar, Python and Go compare the magic only.
_POSIX_MAGIC: Final = b"ustar\0"
#: star ends its headers with this, and stores times in the last bytes of the POSIX prefix.
_STAR_TRAILER: Final = b"tar\0"
_STAR_PREFIX: Final = 131


class TarHeader(NamedTuple):
    """The fields of a header block that are used.

    Parsing owners and times of tens of thousands of entries would take seconds.
    """

    type: bytes
    name: str
    size: int
    linkname: str
    is_read_only: bool


def parse_header(block: bytes) -> TarHeader:
    """Parse a header block (POSIX pax, "ustar Interchange Format")."""
    checksummed = block[:148] + b"        " + block[156:]
    checksum, unsigned = _parse_number(block[148:156]), sum(checksummed)
    # Some old tars summed up signed bytes.
    if checksum != unsigned and checksum != unsigned - 256 * sum(byte > 0x7F for byte in checksummed):
        msg = "bad checksum"
        raise tarfile.HeaderError(msg)
    kind, name = block[156:157], _parse_text(block[0:100])
    if kind == tarfile.AREGTYPE and name.endswith("/"):
        # Before tar had a type for directories, they were written like this.
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
        msg = "a header in the archive has a name prefix that only some tools read"
        raise ArchiveError(msg)
    return prefix.decode("utf-8", "surrogateescape")


def _parse_number(field: bytes) -> int:
    """Parse octal digits, or GNU's binary form, which begins with 0x80 or 0xFF."""
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
    """Return whether octal digits give the owner no write permission. A malformed mode counts as writable."""
    return mode.partition(b"\0")[0].strip(b" ")[-3:-2] in {b"0", b"1", b"4", b"5"}


def _parse_text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def parse_pax_records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Parse lines of `LENGTH KEY=VALUE` (POSIX pax, "pax Extended Header")."""
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


#: The name of stdin in errors.
ARCHIVE_ON_STDIN: Final = "the archive on stdin"
TRUNCATED_HINT: Final = "the program that wrote it failed or was interrupted: pull or copy it again"
_ZEROS: Final = bytes(tarfile.BLOCKSIZE)

#: The records of a pax header that are used. Keeping a MiB of other records would need many times as much memory.
_PAX_KEYS: Final = frozenset({"path", "linkpath", "size"})
_PAX_SPARSE: Final = "GNU.sparse"
#: The first bytes of compressed files.
_COMPRESSION_MAGICS: Final = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"\x04\x22\x4d\x18": "lz4",
}
_NOT_AN_ARCHIVE_HINT: Final = "use an archive from `ocistream pull`, `docker save` or skopeo"
#: The first bytes of other files that users pass by mistake.
_OTHER_FORMATS: Final = {
    b"<": "this looks like HTML",
    b"PK\3\4": "this is a zip file",
    b"PK\5\6": "this is a zip file",
    b"{": "this looks like JSON (for a layout, name the directory)",
    b"\x7fELF": "this is a program",
}
DAMAGED_HINT: Final = "it is damaged: fetch or write it again"
#: Type 7 is "other": GNU tar and Python read a file, skopeo refuses the archive.
_KINDS: Final = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "link",
    tarfile.LNKTYPE: "link",
}
#: bsdtar does not skip the content of other types, or skips it only if other headers precede.
_WITH_CONTENT: Final = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})
#: GNU headers for the name or the link target of the next entry, and the pax keys for the same.
_GNU_LONG_TYPES: Final = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
#: Headers that pax and GNU tar apply to later entries, and other tools do not: global headers (git writes one for a
#: comment), and Solaris's form of pax headers.
_AMBIGUOUS_TYPES: Final = frozenset({tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE})
_EXTENSIONS: Final = _AMBIGUOUS_TYPES | _GNU_LONG_TYPES.keys() | {tarfile.XHDTYPE}
#: The largest size in octal digits. For larger files, writers store 0 or this value, and the size in a pax header.
_MAX_OCTAL: Final = 0o77777777777


class InputStream(Protocol):
    """A buffered binary file that is only read forward. `readinto` fills the buffer unless the file ends."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill `buffer`, and return the number of bytes read."""

    def close(self) -> None:
        """Close the file."""


@dataclass(frozen=True, slots=True)
class TarEntry:
    """One entry: its `name` as written, `size` in bytes, and `offset` of its first byte from where reading began.

    `kind` is "file", "directory", "link" or "other". `target` is where a link points; a symbolic link is relative to
    its own directory. `is_read_only` says that the mode gives the owner no write permission: containerd exports such
    entries, Docker does not.
    """

    name: str
    size: int
    kind: str
    offset: int
    target: str
    is_symbolic: bool
    is_read_only: bool


class _CountedInput:
    """A file that counts the bytes that were read, and converts errors of the local disk."""

    def __init__(self, file: InputStream, what: str) -> None:
        self._file = file
        self._what = what
        self.position = 0

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            count = self._file.readinto(buffer) or 0
        except OSError as error:
            raise files.disk_error(f"cannot read {self._what}", error) from error
        self.position += count
        return count


class TarReader:
    """Reads entries in order. Understands ustar, GNU and pax headers, and checks all of them.

    `_skip` reads and drops bytes. A subclass that can seek replaces it.
    """

    def __init__(self, file: InputStream, what: str = "the archive") -> None:
        """Read from the position of `file`. `what` names the archive in errors."""
        self._file = _CountedInput(file, what)
        self._what = what
        #: The name of the current entry, and the numbers of its bytes and of its padding that were not read yet.
        self._name = ""
        self._remaining = 0
        self._padding = 0
        self._block = bytearray(tarfile.BLOCKSIZE)
        self._records = 0

    def __iter__(self) -> Iterator[TarEntry]:
        """Yield the entries. The content of an entry must be read before the next one, or is skipped.

        Raises:
            ArchiveError: the archive is malformed, hostile, or truncated.
        """
        for _ in range(limits.MAX_ENTRIES):
            entry = self._read_entry()
            if entry is None:
                return
            yield entry
        msg = f"the archive has more than {limits.MAX_ENTRIES} entries"
        raise ArchiveError(msg)

    def read_chunks(self) -> Iterator[Chunk]:
        """Read the bytes of the current entry that were not read yet.

        Raises:
            ArchiveError: the archive ends before the entry does.
        """
        return read_chunks(self, self._remaining)

    def readinto(self, buffer: memoryview, /) -> int:
        """Read bytes of the current entry.

        Raises:
            ArchiveError: the archive ends before the entry does.
        """
        count = self._file.readinto(buffer)
        if not count:
            raise self._truncated_error(f"in the middle of {printable(self._name)!r}")
        self._remaining -= count
        return count

    def read(self, entry: TarEntry, limit: int) -> bytes:
        """Read all bytes of a small entry.

        Raises:
            ArchiveError: the entry is larger than `limit` bytes, or the archive ends before the entry does.
        """
        if entry.size > limit:
            msg = f"{printable(entry.name)!r} in the archive is larger than {limit} bytes"
            raise ArchiveError(msg)
        return read_all(self.read_chunks())

    def drain(self) -> None:
        """Read to the end of the file, so that the writer of a pipe does not find the pipe closed.

        Some tools see only the first of two joined archives, others both. That could hide an image, so it is refused.

        Raises:
            ArchiveError: other bytes than zeros follow the end mark, or more zeros than any record has.
        """
        buffer = memoryview(bytearray(limits.CHUNK_SIZE))
        zeros = bytes(limits.CHUNK_SIZE)
        has_data = False
        trailing = 0
        while count := self._file.readinto(buffer):
            has_data = has_data or buffer[:count] != zeros[:count]
            trailing += count
            if trailing > limits.MAX_TRAILING_ZEROS:
                break
        if trailing > limits.MAX_TRAILING_ZEROS and not has_data:
            msg = f"{self._what} has more than {limits.MAX_TRAILING_ZEROS} bytes of zeros after its end-of-archive mark"
            raise ArchiveError(msg)
        if has_data:
            msg = f"{self._what} has data after its end-of-archive mark"
            raise ArchiveError(msg, hint="if archives or volumes were joined, name each one, as with -i 'app.*.tar'")

    def _skip(self, size: int) -> None:
        for chunk in read_chunks(self._file, size):
            size -= len(chunk)
        if size:
            raise self._truncated_error("in the middle of an entry")

    def _read_entry(self) -> TarEntry | None:
        self._finish_entry()
        #: The fields that other headers give for the entry: "path", "linkpath" or "size".
        extended: dict[str, str] = {}
        for _ in range(limits.MAX_EXTENSION_HEADERS + 1):
            block = self._read_block()
            if block == _ZEROS:
                if self._read_block() != _ZEROS:
                    msg = "the archive has data after a block of zeros, where it must end"
                    raise ArchiveError(msg)
                return None
            info = self._parse(block)
            if info.type in _EXTENSIONS:
                self._count_record()
            if info.type == tarfile.XHDTYPE:
                _merge_fields(extended, self._read_pax(info.size))
            elif info.type in _AMBIGUOUS_TYPES:
                if self._read_pax(info.size):
                    msg = "a pax header in the archive names an entry for some tools only"
                    raise ArchiveError(msg)
            elif info.type in _GNU_LONG_TYPES:
                _merge_fields(extended, {_GNU_LONG_TYPES[info.type]: self._read_text(info.size)})
            else:
                return self._build_entry(info, extended)
        msg = f"the archive has more than {limits.MAX_EXTENSION_HEADERS} headers that belong to one entry"
        raise ArchiveError(msg)

    def _build_entry(self, info: TarHeader, extended: dict[str, str]) -> TarEntry:
        name = extended.get("path", info.name)
        if info.type == tarfile.GNUTYPE_SPARSE or _PAX_SPARSE in extended:
            msg = f"{printable(name)!r} in the archive is a sparse file, which image archives never contain"
            raise ArchiveError(msg)
        size = _choose_size(info, extended.get("size"), name)
        kind = _KINDS.get(info.type, "other")
        if size and info.type not in _WITH_CONTENT:
            msg = f"{printable(name)!r} in the archive has a size, though it is not a file: tools read it differently"
            raise ArchiveError(msg)
        if kind == "file" and name.endswith("/"):
            msg = f"{printable(name)!r} in the archive is a file to some tools, and a directory to others"
            raise ArchiveError(msg)
        self._name, self._remaining, self._padding = name, size, -size % tarfile.BLOCKSIZE
        target = extended.get("linkpath", info.linkname)
        is_symbolic = info.type == tarfile.SYMTYPE
        return TarEntry(name, size, kind, self._file.position, target, is_symbolic, info.is_read_only)

    def _finish_entry(self) -> None:
        unread, self._remaining = self._remaining + self._padding, 0
        self._padding = 0
        if unread:
            self._skip(unread)

    def _parse(self, block: bytes) -> TarHeader:
        try:
            info = parse_header(block)
        except tarfile.HeaderError as error:
            if self._file.position == tarfile.BLOCKSIZE and (
                kind := next((k for m, k in _COMPRESSION_MAGICS.items() if block.startswith(m)), None)
            ):
                raise _compression_error(kind, self._what) from None
            offset = self._file.position - tarfile.BLOCKSIZE
            msg = f"no tar header at byte {offset} of {self._what}: {printable(str(error))}"
            raise ArchiveError(msg, hint=DAMAGED_HINT if offset else _build_format_hint(block)) from error
        if info.size < 0:
            msg = f"{printable(info.name)!r} in the archive has a negative size"
            raise ArchiveError(msg)
        return info

    def _read_block(self) -> bytes:
        count = self._file.readinto(memoryview(self._block))
        if count < tarfile.BLOCKSIZE:
            start = self._block[:count]
            if start and self._file.position == count and _is_other_format(start):
                msg = f"no tar header at byte 0 of {self._what}: it has only {count} bytes"
                raise ArchiveError(msg, hint=_build_format_hint(start))
            raise self._truncated_error("without an end-of-archive mark")
        return bytes(self._block)

    def _read_small(self, size: int, limit: int, what: str) -> bytes:
        if size > limit:
            msg = f"{what} in the archive is larger than {limit} bytes"
            raise ArchiveError(msg)
        self._remaining, self._padding = size, -size % tarfile.BLOCKSIZE
        content = read_all(read_chunks(self._file, size))
        self._remaining -= len(content)
        if self._remaining:
            raise self._truncated_error("in the middle of a header")
        self._finish_entry()
        return content

    def _read_text(self, size: int) -> str:
        text = self._read_small(size, limits.MAX_LONG_NAME, "a long name")
        return text.partition(b"\0")[0].decode("utf-8", "surrogateescape")

    def _read_pax(self, size: int) -> dict[str, str]:
        """Return the records that are used. All keys of sparse files become one key."""
        content = self._read_small(size, limits.MAX_PAX_HEADER, "a pax header")
        records: dict[str, str] = {}
        for key, value in parse_pax_records(content):
            self._count_record()
            name = key.decode("utf-8", "surrogateescape")
            if name in _PAX_KEYS:
                if len(value) > limits.MAX_LONG_NAME:
                    msg = f"the {name} in a pax header in the archive is larger than {limits.MAX_LONG_NAME} bytes"
                    raise ArchiveError(msg)
                if b"\0" in value:
                    # Tools written in C end the value at the NUL, other tools do not.
                    msg = f"the {name} in a pax header in the archive has a NUL in it"
                    raise ArchiveError(msg)
                _merge_fields(records, {name: value.decode("utf-8", "surrogateescape")})
            elif name.startswith(_PAX_SPARSE):
                records[_PAX_SPARSE] = ""
        return records

    def _count_record(self) -> None:
        self._records += 1
        if self._records > limits.MAX_TOTAL_PAX_RECORDS:
            msg = f"the archive has more than {limits.MAX_TOTAL_PAX_RECORDS} headers and records of pax headers"
            raise ArchiveError(msg)

    def _truncated_error(self, where: str) -> TruncatedError:
        if self._file.position == 0:
            hint = "the program that wrote it probably failed: create it again"
            if self._what == ARCHIVE_ON_STDIN:
                hint = (
                    "name the archive, or check why the program that writes it failed (in a shell, use "
                    "`set -o pipefail`)"
                )
            return TruncatedError(f"{self._what} is empty", hint=hint)
        return TruncatedError(
            f"{self._what} is truncated: it ends at byte {self._file.position}, {where}",
            hint=TRUNCATED_HINT,
        )


def _merge_fields(extended: dict[str, str], more: dict[str, str]) -> None:
    """Add the fields of another header of the same entry.

    If two headers give different names, Go, Python and GNU tar use different ones.
    """
    for key, value in more.items():
        if key in extended and key != _PAX_SPARSE:
            msg = f"headers in the archive give the {key} of one entry twice: tools use different ones"
            raise ArchiveError(msg)
        if not value and key in _GNU_LONG_TYPES.values():
            msg = f"a header in the archive gives an entry an empty {key}: some tools ignore that, others do not"
            raise ArchiveError(msg)
        extended[key] = value


def _choose_size(info: TarHeader, pax_size: str | None, name: str) -> int:
    """Return an entry's size. Some tools ignore pax headers, or a size in the entry's own header."""
    if pax_size is None:
        return info.size
    if not pax_size.isascii() or not pax_size.isdigit() or len(pax_size) > 19:
        msg = f"{printable(name)!r} in the archive has a malformed size"
        raise ArchiveError(msg)
    size = int(pax_size)
    if size != info.size and size <= _MAX_OCTAL:
        msg = f"{printable(name)!r} in the archive has two sizes, {info.size} and {size}: tools use different ones"
        raise ArchiveError(msg)
    return size


def _compression_error(kind: str, what: str) -> UnsupportedError:
    """Return the error for an archive that begins like a file of this compression."""
    if kind in {"gzip", "zstd"}:
        # One layer of these was removed before (`archive.decompression`).
        msg = f"{what} is compressed twice: with {kind}, inside gzip or zstd"
    else:
        msg = f"{what} is compressed with {kind}, which is not supported"
    if what == ARCHIVE_ON_STDIN:
        return UnsupportedError(msg, hint=f"decompress it in the pipe: `... | {kind} -dc | ocistream ...`")
    file = shlex.quote(printable(what, 1024))
    return UnsupportedError(msg, hint=f"decompress it: `{kind} -dc {file} > NEW.tar`, and use NEW.tar")


def _is_other_format(start: bytes | bytearray) -> bool:
    """Return whether a file that is shorter than a header is not the start of an archive: a header has NULs."""
    return 0 not in start or start.startswith(tuple(_OTHER_FORMATS))


def _build_format_hint(block: bytes | bytearray) -> str:
    """Return a hint for a file that does not begin like an archive."""
    kind = next((text for magic, text in _OTHER_FORMATS.items() if block.startswith(magic)), "")
    if not kind and 0 not in block and block.isascii():
        kind = "this looks like text"
    return f"{kind}: {_NOT_AN_ARCHIVE_HINT}" if kind else _NOT_AN_ARCHIVE_HINT
