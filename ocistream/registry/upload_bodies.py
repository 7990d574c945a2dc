"""The request bodies of a blob upload: a bounded buffer of bytes to send again, and the size of each body.

A pipe can be read once only, so the buffer keeps what the registry has not confirmed. No request is sent here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import TruncatedError
from ocistream.http.connections import FixedLengthBody, StreamedBody
from ocistream.registry.upload_methods import CHUNK
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from ocistream.registry.upload_methods import UploadMethod
    from ocistream.registry.upload_strategy import UploadStrategy
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import NewBlob

__all__ = [
    "ReplayBuffer",
    "UploadBodies",
]

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


class UploadBodies:
    """The bodies of one upload to a host.

    `ends_early` says that the request under way has a proper end even if its source fails or the transfer is
    cancelled. `is_coded` says that its body is in the chunked transfer coding, though its length is known.
    """

    def __init__(
        self,
        strategy: UploadStrategy,
        host: str,
        blob: Blob | NewBlob,
        buffer: ReplayBuffer,
        explicit_method: UploadMethod | None,
    ) -> None:
        """Take the blob and its bytes; `forced` is the way to send them that the user asked for."""
        self._strategy = strategy
        self._host = host
        self._blob = blob
        self._buffer = buffer
        in_chunks = explicit_method is not None and explicit_method.kind == CHUNK and not blob.reopenable
        #: Whether every request must have its end, whatever becomes of the source.
        self._is_interruptible = isinstance(blob, Blob) and (blob.is_interruptible or in_chunks)
        self.can_end_early = False
        self.has_chunked_coding = False

    def build_next(
        self, method: UploadMethod, offset: int, min_chunk: int
    ) -> tuple[StreamedBody, tuple[int, int] | None] | None:
        """Return the body that begins at `offset`, and its range where that must be stated; None at the blob's end."""
        size = self._buffer.size
        self._buffer.seek(offset)
        if size is not None and offset >= size:
            return None
        most = self._max_size(method, offset, min_chunk)
        is_stream = most is None and not offset
        can_end_early = size is None or self._is_interruptible
        self.has_chunked_coding = not can_end_early and self._strategy.can_use_chunked_coding(self._host, size or 0)
        if size is None or can_end_early:
            if is_stream:
                self.can_end_early = True
                return StreamedBody(self._buffer.read(0), ends_early=True), None
            # No request is begun that might break off in its middle.
            count = self._buffer.fill_until_truncated(offset, most or limits.UPLOAD_MEMORY)
        else:
            count = min(size - offset, most or size)
        if not count:
            return None
        chunks = self._buffer.read(offset, count)
        span = None if is_stream else (offset, offset + count)
        if self.has_chunked_coding:
            self.can_end_early = True
            return StreamedBody(chunks, ends_early=True), span
        return FixedLengthBody(chunks, count), span

    def _max_size(self, method: UploadMethod, offset: int, min_chunk: int) -> int | None:
        """Return how large the next body may be; None for any size."""
        largest = self._strategy.profile(self._host).largest_chunk
        if method.kind != CHUNK:
            return largest if offset else None
        held = self._strategy.replay_buffer_size(reopenable=self._blob.reopenable, is_size_known=False)
        if min_chunk > (limits.UPLOAD_MEMORY if self._buffer.size is not None else held):
            # Chunks of which none could be held: then all that is left goes in one.
            return None
        return max(method.chunk_size, min_chunk)
