"""A bounded window over the bytes of an upload, from which the latest ones can be sent again.

A pipe can be read once only, so the window keeps what the registry has not confirmed. No request is sent here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import TruncatedError
from ocistream.streams.synchronization import wait_until
from ocistream.transfer.interfaces import Access

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from ocistream.streams.chunks import Chunk
    from ocistream.streams.synchronization import Budget
    from ocistream.transfer.interfaces import NewBlob, VerifiedBlob

#: Largest piece, in bytes, in which buffered bytes are sent again.
_MAX_PIECE: Final = limits.CHUNK_SIZE


class ReplayBuffer:
    """A window over the bytes of an upload, from which the latest ones can be sent again.

    Offsets are positions in the blob, in bytes. The buffer holds at most `capacity` bytes: those from `start` to `end`,
    which is how far the source was read. `has_source_failed` says that the source raised. Bytes before the window are
    read again if the source allows it.

    Buffers of blobs from one pipe share `memory`. A buffer begins with `limits.MIN_REPLAY_MEMORY` while others have the
    rest, and takes all of its capacity when the registry has committed them.
    """

    def __init__(self, content: VerifiedBlob | NewBlob, capacity: int, memory: Budget | None = None) -> None:
        """Take the blob to upload. Do not open it yet, and allocate no memory."""
        self._content = content
        size = None if content.end is None else content.end - content.start
        self.capacity = max(1, capacity if size is None else min(capacity, size))
        #: Whether the buffer has room for all bytes: then they can be sent again from the first one.
        self.can_hold_all = size is not None and size <= self.capacity
        is_shared = self.capacity > limits.MIN_REPLAY_MEMORY and content.access is not Access.REPEATABLE
        self._memory = memory if is_shared else None
        #: Whether this buffer has taken its capacity from the shared memory, or need not.
        self._has_memory = self._memory is None
        #: The byte at an offset has the index `offset % len(_ring)`. A memoryview, because to assign bytes to a part of
        #: a bytearray copies them twice.
        self._ring = memoryview(b"")
        #: None until the source is open.
        self._chunks: Iterator[Chunk] | None = None
        #: The rest of the source's last chunk.
        self._unread = memoryview(b"")
        self.start = self.end = content.start
        #: Whether the source has no more chunks.
        self.is_exhausted = False
        self.has_source_failed = False
        #: The error of a source that broke off in `fill_until_truncated`.
        self.truncation: TruncatedError | None = None

    def close(self) -> None:
        """Close the source's connection or file, and drop the bytes: an exception's traceback would keep both."""
        self._ring = self._unread = memoryview(b"")
        if self._memory is not None and self._has_memory:
            self._has_memory = False
            self._memory.give_back(self.capacity)
        if (close := getattr(self._chunks, "close", None)) is not None:
            close()

    def reserve(self, cancelled: threading.Event) -> None:
        """Wait until the buffer may use all of its capacity.

        Raises:
            CancelledError: `cancelled` was set during the wait.
        """
        wait_until(self._take_memory, cancelled)

    @property
    def is_empty(self) -> bool:
        """Whether the content has no bytes at all, once the source is open."""
        return self.is_exhausted and self.end == self._content.start

    def open(self) -> None:
        """Open the source if it is not open, and wait for its first bytes."""
        if self._chunks is None:
            self._read_chunk()

    def can_load(self, offset: int) -> bool:
        """Return whether the buffer has the bytes from `offset` on, or can read them again."""
        if self.start <= offset <= self.end:
            return True
        return self._content.access is Access.REPEATABLE and offset >= self._content.start

    def load(self, offset: int) -> None:
        """Move the window so that it has `offset`, if `can_load` allows it; errors of the source pass through."""
        if self.start <= offset <= self.end:
            return
        if offset < self.start:
            self.close()
            self._chunks, self.is_exhausted = None, False
            self.start = self.end = self._content.start
        while self.end < offset and self._read_ahead(offset - self.end):
            pass

    def fill(self, offset: int, count: int) -> int:
        """Read ahead until the buffer has `count` bytes from `offset` on; return how many it has.

        That is less at the end of the content, and never more than the capacity.
        """
        count = min(count, self.capacity if self._take_memory() else max(len(self._ring), limits.MIN_REPLAY_MEMORY))
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
        """Ask the source for one more chunk: it raises an error at its end, such as that there are excess bytes."""
        self._read_chunk()

    def _read_chunk(self) -> None:
        """Open the source if it is not open, and read its next non-empty chunk, if there is one."""
        try:
            if self._chunks is None:
                self._chunks = self._content.open()
            while not self._unread and not self.is_exhausted:
                chunk = next(self._chunks, None)
                self.is_exhausted = chunk is None
                self._unread = memoryview(chunk or b"")
        except BaseException:
            self.has_source_failed = True
            raise

    def _read_ahead(self, max_size: int | None) -> memoryview:
        """Read more from the source, at most `max_size` bytes, and buffer it; return an empty view at the end."""
        self._read_chunk()
        piece = self._unread if max_size is None else self._unread[:max_size]
        self._unread = self._unread[len(piece) :]
        self._store(piece)
        return piece

    def _store(self, piece: memoryview) -> None:
        """Append bytes to the window; its first bytes make room for them."""
        if len(self._ring) < self.capacity:
            self._grow()
        size = len(self._ring)
        self.end += len(piece)
        self._copy_to(self._ring, piece[-size:], self.end)
        self.start = max(self.start, self.end - size)

    def _grow(self) -> None:
        """Allocate the memory; first a part of it, if other buffers have the rest."""
        if self._take_memory():
            size = self.capacity
        elif not self._ring:
            size = limits.MIN_REPLAY_MEMORY
        else:
            return
        ring = memoryview(bytearray(size))
        offset = self.start
        while offset < self.end and self._ring:
            piece = self._buffered(offset, self.end)
            offset += len(piece)
            self._copy_to(ring, piece, offset)
        self._ring = ring

    def _take_memory(self, timeout: float = 0.0) -> bool:
        """Return whether the buffer may use all of its capacity, after a wait of up to `timeout` seconds."""
        if self._memory is not None and not self._has_memory:
            self._has_memory = self._memory.take(self.capacity, timeout=timeout)
        return self._has_memory

    @staticmethod
    def _copy_to(ring: memoryview, piece: memoryview, end: int) -> None:
        """Copy the bytes that end at offset `end`, at most as many as the ring has."""
        position = (end - len(piece)) % len(ring)
        first = min(len(piece), len(ring) - position)
        ring[position : position + first] = piece[:first]
        if first < len(piece):
            ring[: len(piece) - first] = piece[first:]

    def _buffered(self, offset: int, stop: int) -> memoryview:
        """Return buffered bytes from `offset` on, up to `stop`, the end of the ring or the largest piece."""
        position = offset % len(self._ring)
        count = min(stop - offset, len(self._ring) - position, _MAX_PIECE)
        return self._ring[position : position + count]
