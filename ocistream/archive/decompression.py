"""Detect gzip and zstd archives by their first bytes and read them as plain tars."""

from __future__ import annotations

from io import FileIO
from typing import TYPE_CHECKING

from ocistream.archive.tar_reader import DAMAGED_HINT, TRUNCATED_HINT
from ocistream.errors import ArchiveError, TruncatedError
from ocistream.streams import files
from ocistream.streams.chunks import read_chunks
from ocistream.streams.compression import MAGIC_SIZE, NONE, IncompleteStreamError, decompress, detect_codec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocistream.archive.tar_reader import InputStream
    from ocistream.streams.chunks import Chunk
    from ocistream.streams.compression import Codec

#: More bytes than any file has.
_UNLIMITED = 1 << 62


def decompress_input(file: InputStream, what: str, max_ratio: int) -> InputStream:
    """Return the plain bytes of a gzip or zstd file, or the file itself if it is not compressed.

    `what` names the file in errors. The plain bytes may be at most `max_ratio` times the bytes read so far, above a
    minimum that `streams.compression.decompress` sets. An invalid compressed stream raises ArchiveError when it is
    read.
    """
    first_bytes = bytearray(MAGIC_SIZE)
    count = file.readinto(memoryview(first_bytes)) or 0
    complete = _PushbackInput(file, bytes(first_bytes[:count]))
    codec = detect_codec(bytes(first_bytes))
    return complete if codec is NONE else _DecompressedInput(complete, what, codec, max_ratio)


def is_compressed(path: Path) -> bool:
    """Return whether a regular file begins like a gzip or zstd file.

    Raises:
        NotFoundError: the file does not exist.
        LocalDiskError: the file cannot be read.
    """
    with files.disk_errors(f"cannot read {path}"), FileIO(path, "rb") as file:
        return detect_codec(file.read(MAGIC_SIZE)) is not NONE


class _PushbackInput:
    """A file whose first bytes were already read."""

    def __init__(self, file: InputStream, beginning: bytes) -> None:
        self._file = file
        self._beginning = beginning

    def readinto(self, buffer: memoryview, /) -> int:
        taken = min(len(self._beginning), len(buffer))
        if taken:
            buffer[:taken] = self._beginning[:taken]
            self._beginning = self._beginning[taken:]
        if taken == len(buffer):
            return taken
        return taken + (self._file.readinto(buffer[taken:]) or 0)

    def close(self) -> None:
        self._file.close()


class _DecompressedInput:
    """The plain bytes of a compressed file. `readinto` fills the buffer unless the stream ends."""

    def __init__(self, file: InputStream, what: str, codec: Codec, max_ratio: int) -> None:
        self._file = file
        self._what = what
        self._codec = codec.name
        self._chunks: Iterator[Chunk] = decompress(codec, read_chunks(file, _UNLIMITED), max_ratio)
        self._buffered = memoryview(b"")

    def readinto(self, buffer: memoryview, /) -> int:
        filled = 0
        while filled < len(buffer):
            if not self._buffered:
                chunk = self._next()
                if chunk is None:
                    break
                self._buffered = memoryview(chunk)
            taken = min(len(self._buffered), len(buffer) - filled)
            buffer[filled : filled + taken] = self._buffered[:taken]
            self._buffered = self._buffered[taken:]
            filled += taken
        return filled

    def _next(self) -> Chunk | None:
        try:
            return next(self._chunks, None)
        except IncompleteStreamError as error:
            msg = f"{self._what} is truncated: its {self._codec} stream ends too early"
            raise TruncatedError(msg, hint=TRUNCATED_HINT) from error
        except ArchiveError as error:
            msg = f"{self._what}: {error.message}"
            raise ArchiveError(msg, hint=error.hint or DAMAGED_HINT) from error

    def close(self) -> None:
        self._file.close()
