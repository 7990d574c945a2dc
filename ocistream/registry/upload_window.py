"""A blob's bytes on their way up, with a bounded window of those that have passed: a pipe cannot be read again.

Bytes are asked for by their offset. What is in the window comes out of it, what has not passed yet out of the source;
and what has left the window is read again where the source can be, from its beginning, so that `verified` sees all of
it. It knows nothing of registries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import TruncatedError
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import NewBlob

__all__ = ["ReplayBuffer"]

#: What is sent again is sent in pieces of this size.
_MAX_PIECE: Final = limits.CHUNK_SIZE


class ReplayBuffer:
    """One blob's bytes, from any offset at which they can still be had. Offsets and sizes are in bytes.

    `end` is how far the source was read. `has_failed` says that it was the source that raised.
    """

    def __init__(self, blob: Blob | NewBlob, capacity: int) -> None:
        """Hold at most `capacity` bytes; nothing is opened yet."""
        self._blob = blob
        self.size: int | None = blob.descriptor.size if isinstance(blob, Blob) else None
        self._capacity = max(1, min(capacity, self.size) if self.size is not None else capacity)
        self._ring = bytearray()
        self._chunks: Iterator[Chunk] = iter(())
        self._unread = memoryview(b"")
        self.start = 0
        self.end = 0
        self.is_exhausted = False
        self.has_source_failed = False
        self.truncation: TruncatedError | None = None

    def __enter__(self) -> Self:
        """Open the source, and wait for its first bytes."""
        self._open()
        try:
            self._read_chunk()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go at once of the connection or file that the source reads from; an exception would keep it."""
        self._close()

    @property
    def is_empty(self) -> bool:
        """Whether there are no bytes at all."""
        return self.is_exhausted and not self.end

    def can_seek(self, offset: int) -> bool:
        """Say whether the bytes from here on can still be had."""
        return self.start <= offset <= self.end or (self._blob.reopenable and offset >= 0)

    def seek(self, offset: int) -> None:
        """Make sure that the bytes from here on come out of the window, or next out of the source.

        `can_give` has said that they can be had. What the source raises comes out as it is.
        """
        if self.start <= offset <= self.end:
            return
        if offset < self.start:
            self._close()
            self._open()
        while self.end < offset and self._read_ahead(offset - self.end):
            pass

    def fill(self, offset: int, count: int) -> int:
        """Read ahead until the window has `count` bytes from `offset` on, or all there are, and say how many it has.

        No more than the capacity is ever held.
        """
        count = min(count, self._capacity)
        while self.end - offset < count and self._read_ahead(offset + count - self.end):
            pass
        return min(self.end - offset, count)

    def fill_until_truncated(self, offset: int, count: int) -> int:
        """Read ahead as `fill` does; where the source breaks off meanwhile, what has come by then is what there is.

        `broken` is what it raised, once that is so.
        """
        try:
            return self.fill(offset, count)
        except TruncatedError as error:
            if self.end <= offset:
                raise
            self.truncation = error
            return self.end - offset

    def read(self, offset: int, count: int | None = None) -> Iterator[Chunk]:
        """Give the bytes from `offset` on, `count` of them or all there are. A chunk is valid until the next one."""
        stop = None if count is None else offset + count
        while offset < self.end and (stop is None or offset < stop):
            piece = self._buffered(offset, self.end if stop is None else min(stop, self.end))
            offset += len(piece)
            yield piece
        while (stop is None or self.end < stop) and (
            chunk := self._read_ahead(None if stop is None else stop - self.end)
        ):
            yield chunk

    def check_end(self) -> None:
        """See the source to its end: it may have something to say against what it gave, if only that there is more."""
        if not self._unread:
            self._read_chunk()

    def _open(self) -> None:
        self.start = self.end = 0
        self.is_exhausted = False
        self._unread = memoryview(b"")
        self._chunks = self._blob.open()

    def _close(self) -> None:
        if (close := getattr(self._chunks, "close", None)) is not None:
            close()

    def _read_chunk(self) -> None:
        """Have the next chunk of the source at hand, if there is one."""
        try:
            while not self._unread and not self.is_exhausted:
                chunk = next(self._chunks, None)
                self.is_exhausted = chunk is None
                self._unread = memoryview(chunk or b"")
        except BaseException:
            self.has_source_failed = True
            raise

    def _read_ahead(self, most: int | None) -> memoryview:
        """Take more out of the source, at most so much, and keep it; nothing is left where it is empty."""
        self._read_chunk()
        piece = self._unread if most is None else self._unread[:most]
        self._unread = self._unread[len(piece) :]
        self._store(piece)
        return piece

    def _store(self, piece: memoryview) -> None:
        if not self._ring:
            self._ring = bytearray(self._capacity)
        self.end += len(piece)
        kept = piece[-self._capacity :]
        place = (self.end - len(kept)) % self._capacity
        first = min(len(kept), self._capacity - place)
        self._ring[place : place + first] = kept[:first]
        self._ring[: len(kept) - first] = kept[first:]
        self.start = max(self.start, self.end - self._capacity)

    def _buffered(self, offset: int, stop: int) -> memoryview:
        place = offset % self._capacity
        count = min(stop - offset, self._capacity - place, _MAX_PIECE)
        return memoryview(self._ring)[place : place + count]
