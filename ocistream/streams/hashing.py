"""Hash chunks in a separate thread while the same bytes are read and written."""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Hasher", "ThreadedHasher", "count_processors"]

#: Chunks that may wait to be hashed: 1 MiB, so that reading does not stand still for each.
_MAX_QUEUED: Final = 4


class Hasher(Protocol):
    """What of `hashlib`'s objects is used."""

    def update(self, data: bytes | memoryview, /) -> object:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """Give the lower-case hex of all bytes so far."""


def count_processors() -> int:
    """Say how many processors there are for this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ThreadedHasher:
    """A hash that is made in a thread of its own. It is one to enter: the thread ends with the block.

    What is handed to `update` must stay as it is until it has been hashed, which `settle` waits for.
    """

    def __init__(self, hasher: Hasher) -> None:
        """Feed `hasher`; the thread begins with the block."""
        self._hasher = hasher
        self._changed = threading.Condition(threading.Lock())
        self._chunks: deque[bytes | memoryview] = deque()
        #: How many were handed over and are not hashed yet.
        self._pending = 0
        self._is_closed = False
        # A daemon: an interrupted process waits for nobody.
        self._thread = threading.Thread(target=self._work, name="hash", daemon=True)

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the thread, whatever it has not hashed yet."""
        with self._changed:
            self._chunks.clear()
            self._is_closed = True
            self._changed.notify_all()

    def update(self, data: bytes | memoryview, /) -> None:
        """Hand bytes over, once few enough others wait."""
        with self._changed:
            while self._pending >= _MAX_QUEUED:
                self._changed.wait()
            self._chunks.append(data)
            self._pending += 1
            self._changed.notify_all()

    def wait(self, but: int = 0) -> None:
        """Wait until all that was handed over has been hashed, `but` the last so many chunks."""
        with self._changed:
            while self._pending > but:
                self._changed.wait()

    def hexdigest(self) -> str:
        """Give the lower-case hex of all bytes so far."""
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
