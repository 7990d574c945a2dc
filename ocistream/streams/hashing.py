"""Hash chunks in a separate thread while the same bytes are read and written."""

from __future__ import annotations

import os
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, Protocol, Self

from ocistream.streams.workers import start

if TYPE_CHECKING:
    from types import TracebackType

#: Maximum number of chunks that wait to be hashed: 1 MiB, so that the reader rarely waits.
_MAX_QUEUED: Final = 4


class Hasher(Protocol):
    """The methods of hashlib's objects that are used here."""

    def update(self, data: bytes | memoryview, /) -> object:
        """Add bytes."""

    def hexdigest(self) -> str:
        """Return the lower-case hex digest of all bytes so far."""


def count_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ThreadedHasher:
    """Computes a hash in a separate thread. It is a context manager: the thread ends with the block.

    SHA-256 is more than half of the CPU time of a pull to a pipe; the thread hashes while the pull reads and writes.
    For parallel blobs it gains nothing. The bytes passed to `update` must not change until `wait` returns.
    """

    def __init__(self, hasher: Hasher) -> None:
        """Update `hasher`; the thread starts with the block."""
        self._hasher = hasher
        #: From the reader to the thread: chunks, and None at the end.
        self._chunks: SimpleQueue[bytes | memoryview | None] = SimpleQueue()
        #: From the thread to the reader: an item for each hashed chunk.
        self._hashed: SimpleQueue[None] = SimpleQueue()
        #: Chunks passed to `update` and not known to be hashed. Only the reader uses it.
        self._pending = 0
        self._is_closed = False

    def __enter__(self) -> Self:
        """Start the thread."""
        start(self._work, "hash")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the thread, without hashing the chunks that still wait."""
        self._is_closed = True
        self._chunks.put(None)

    def update(self, data: bytes | memoryview, /) -> None:
        """Queue bytes; wait first while the queue is full."""
        self.wait(except_last=_MAX_QUEUED - 1)
        self._pending += 1
        self._chunks.put(data)

    def wait(self, except_last: int = 0) -> None:
        """Wait until all chunks are hashed, except the last `except_last` ones."""
        while self._pending > except_last:
            self._hashed.get()
            self._pending -= 1

    def hexdigest(self) -> str:
        """Return the lower-case hex digest of all bytes so far."""
        self.wait()
        return self._hasher.hexdigest()

    def _work(self) -> None:
        while (data := self._chunks.get()) is not None and not self._is_closed:
            self._hasher.update(data)
            del data
            self._hashed.put(None)
