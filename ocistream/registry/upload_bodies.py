"""The request bodies of a blob upload: a bounded buffer of bytes to send again, and the size of each body.

A pipe can be read once only, so the buffer keeps what the registry has not confirmed. No request is sent here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import TruncatedError
from ocistream.http.connections import FixedLengthBody, StreamedBody
from ocistream.registry.upload_methods import CHUNK
from ocistream.transfer.interfaces import VerifiedBlob

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

#: Largest piece, in bytes, in which buffered bytes are sent again.
_MAX_PIECE: Final = limits.CHUNK_SIZE


class ReplayBuffer:
    """A window over one blob's bytes, from which the latest ones can be sent again. Offsets and sizes are in bytes.

    The buffer holds at most `capacity` bytes: those from `start` to `end`, which is how far the source was read.
    `has_source_failed` says that the source raised. Bytes before the window are read again if the blob is reopenable.
    """

    def __init__(self, blob: VerifiedBlob | NewBlob, capacity: int) -> None:
        """Take the blob. Do not open it yet, and allocate no buffer."""
        self._blob = blob
        self.size: int | None = blob.descriptor.size if isinstance(blob, VerifiedBlob) else None
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
        """Close the source's connection or file now; an exception's traceback would keep it open."""
        self._close()

    @property
    def is_empty(self) -> bool:
        """Whether the blob has no bytes at all."""
        return self.is_exhausted and not self.end

    def can_seek(self, offset: int) -> bool:
        """Return whether the bytes from `offset` on are still available."""
        return self.start <= offset <= self.end or (self._blob.reopenable and offset >= 0)

    def seek(self, offset: int) -> None:
        """Position the buffer at `offset`, for which `can_seek` must be true; errors of the source pass through."""
        if self.start <= offset <= self.end:
            return
        if offset < self.start:
            self._close()
            self._open()
        while self.end < offset and self._read_ahead(offset - self.end):
            pass

    def fill(self, offset: int, count: int) -> int:
        """Read ahead until the buffer has `count` bytes from `offset` on; return how many it has.

        That is less at the end of the blob, and never more than the capacity.
        """
        count = min(count, self._capacity)
        while self.end - offset < count and self._read_ahead(offset + count - self.end):
            pass
        return min(self.end - offset, count)

    def fill_until_truncated(self, offset: int, count: int) -> int:
        """Read ahead as `fill` does; if the source breaks off, return how many bytes the buffer has.

        `truncation` then has the error of the source.
        """
        try:
            return self.fill(offset, count)
        except TruncatedError as error:
            if self.end <= offset:
                raise
            self.truncation = error
            return self.end - offset

    def read(self, offset: int, count: int | None = None) -> Iterator[Chunk]:
        """Yield the bytes from `offset` on, `count` of them or all. A chunk is valid until the next one."""
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
        """Read the source to its end: it may raise an error there, such as that the blob has excess bytes."""
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
        """Read the next non-empty chunk of the source, if there is one."""
        try:
            while not self._unread and not self.is_exhausted:
                chunk = next(self._chunks, None)
                self.is_exhausted = chunk is None
                self._unread = memoryview(chunk or b"")
        except BaseException:
            self.has_source_failed = True
            raise

    def _read_ahead(self, max_size: int | None) -> memoryview:
        """Read more from the source, at most `most` bytes, and buffer it; return an empty view at the end."""
        self._read_chunk()
        piece = self._unread if max_size is None else self._unread[:max_size]
        self._unread = self._unread[len(piece) :]
        self._store(piece)
        return piece

    def _store(self, piece: memoryview) -> None:
        if not self._ring:
            self._ring = bytearray(self._capacity)
        self.end += len(piece)
        kept = piece[-self._capacity :]
        position = (self.end - len(kept)) % self._capacity
        first = min(len(kept), self._capacity - position)
        self._ring[position : position + first] = kept[:first]
        self._ring[: len(kept) - first] = kept[first:]
        self.start = max(self.start, self.end - self._capacity)

    def _buffered(self, offset: int, stop: int) -> memoryview:
        position = offset % self._capacity
        count = min(stop - offset, self._capacity - position, _MAX_PIECE)
        return memoryview(self._ring)[position : position + count]


class UploadBodies:
    """The request bodies of one upload to a host. `explicit_method` is the user's choice of method.

    `can_end_early`: the current request gets a proper end even if its source fails or the transfer is cancelled.
    `has_chunked_coding`: the current body uses the chunked transfer coding although its length is known.

    Chunks of a blob of known size are streamed, because their length is known. A chunk of a blob of unknown size is
    read completely before it is sent, because its length must be stated.
    """

    def __init__(
        self,
        strategy: UploadStrategy,
        host: str,
        blob: VerifiedBlob | NewBlob,
        buffer: ReplayBuffer,
        explicit_method: UploadMethod | None,
    ) -> None:
        """Take the blob, and the buffer that reads it."""
        self._strategy = strategy
        self._host = host
        self._blob = blob
        self._buffer = buffer
        is_piped_in_chunks = explicit_method is not None and explicit_method.kind == CHUNK and not blob.reopenable
        #: Whether every request must get a proper end even if the source fails: distribution 2.8 neither resumes nor
        #: deletes an upload after a broken request. An ordinary pipe keeps a stated length, so that a proxy can refuse
        #: a layer that is too large before its first byte.
        self._is_interruptible = isinstance(blob, VerifiedBlob) and (blob.is_interruptible or is_piped_in_chunks)
        self.can_end_early = False
        self.has_chunked_coding = False

    def build_next(
        self, method: UploadMethod, offset: int, min_chunk: int
    ) -> tuple[StreamedBody, tuple[int, int] | None] | None:
        """Return the body that begins at `offset`, and its range if that must be stated; None at the blob's end."""
        size = self._buffer.size
        self._buffer.seek(offset)
        if size is not None and offset >= size:
            return None
        max_size = self._max_size(method, offset, min_chunk)
        is_stream = max_size is None and not offset
        self.has_chunked_coding = (
            size is not None and not self._is_interruptible and self._strategy.can_use_chunked_coding(self._host, size)
        )
        if size is None or self._is_interruptible:
            if is_stream:
                self.can_end_early = True
                return StreamedBody(self._buffer.read(0), ends_early=True), None
            # Buffer the complete body first, so that the source cannot fail in the middle of the request.
            count = self._buffer.fill_until_truncated(offset, max_size or limits.UPLOAD_MEMORY)
        else:
            count = min(size - offset, max_size or size)
        if not count:
            return None
        chunks = self._buffer.read(offset, count)
        span = None if is_stream else (offset, offset + count)
        if self.has_chunked_coding:
            self.can_end_early = True
            return StreamedBody(chunks, ends_early=True), span
        return FixedLengthBody(chunks, count), span

    def _max_size(self, method: UploadMethod, offset: int, min_chunk: int) -> int | None:
        """Return the largest size of the next body in bytes, or None for no limit."""
        largest = self._strategy.profile(self._host).largest_chunk
        if method.kind != CHUNK:
            return largest if offset else None
        buffer_size = self._strategy.replay_buffer_size(reopenable=self._blob.reopenable, is_size_known=False)
        if min_chunk > (limits.UPLOAD_MEMORY if self._buffer.size is not None else buffer_size):
            # The registry's minimum exceeds the buffer: send the rest of the blob in one request.
            return None
        return max(method.chunk_size, min_chunk)
