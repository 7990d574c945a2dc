"""Hash chunks in a separate thread while the same bytes are read and written."""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol, Self

from ocistream.streams.workers import start

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Hasher", "ThreadedHasher", "count_processors"]

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
        self._changed = threading.Condition(threading.Lock())
        self._chunks: deque[bytes | memoryview] = deque()
        #: Chunks passed to `update` and not hashed yet.
        self._pending = 0
        self._is_closed = False

    def __enter__(self) -> Self:
        """Start the thread."""
        start(self._work, "hash")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the thread, without hashing the chunks that still wait."""
        with self._changed:
            self._chunks.clear()
            self._is_closed = True
            self._changed.notify_all()

    def update(self, data: bytes | memoryview, /) -> None:
        """Queue bytes; wait first while the queue is full."""
        with self._changed:
            while self._pending >= _MAX_QUEUED:
                self._changed.wait()
            self._chunks.append(data)
            self._pending += 1
            self._changed.notify_all()

    def wait(self, except_last: int = 0) -> None:
        """Wait until all chunks are hashed, except the last `except_last` ones."""
        with self._changed:
            while self._pending > except_last:
                self._changed.wait()

    def hexdigest(self) -> str:
        """Return the lower-case hex digest of all bytes so far."""
        self.wait()
        return self._hasher.hexdigest()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._chunks:
                    if self._is_closed:
                        return
                    self._changed.wait()
                data = self._chunks.popleft()
            self._hasher.update(data)
            with self._changed:
                self._pending -= 1
                self._changed.notify_all()
