"""How much memory many clients at once may take: slots for what needs much of it, and how malloc keeps it."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.serve.refusals import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Slots", "return_large_blocks"]

#: glibc's number of the parameter (malloc.h).
_M_MMAP_THRESHOLD: Final = -3


def return_large_blocks() -> None:
    """Have the C library give large blocks of memory back to the system when they are freed.

    By itself glibc keeps freed megabytes for each of its arenas, of which a process with many threads has eight for
    each processor. Other C libraries have no such setting and need none.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, limits.CHUNK)


class Slots:
    """So many slots as `count` says. A thread waits up to `seconds` for one."""

    def __init__(self, count: int, seconds: float) -> None:
        """Start with all slots free."""
        self._free = threading.BoundedSemaphore(count)
        self._seconds = seconds

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Take a slot for as long as the block lasts.

        Raises:
            RefusedError: none became free in time (429).
        """
        if not self._free.acquire(timeout=self._seconds):
            raise RefusedError(429, "TOOMANYREQUESTS", "too many large manifests are being pushed")
        try:
            yield
        finally:
            self._free.release()
