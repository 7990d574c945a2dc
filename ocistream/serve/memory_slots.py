"""How much memory many clients at once may take: slots for what needs much of it."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from ocistream.serve.errors import RequestRejectedError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MemorySlots"]


class MemorySlots:
    """So many slots as `count` says. A thread waits up to `seconds` for one."""

    def __init__(self, count: int, seconds: float) -> None:
        """Start with all slots free."""
        self._free = threading.BoundedSemaphore(count)
        self._seconds = seconds

    @contextlib.contextmanager
    def acquire(self) -> Iterator[None]:
        """Take a slot for as long as the block lasts.

        Raises:
            RefusedError: none became free in time (429).
        """
        if not self._free.acquire(timeout=self._seconds):
            raise RequestRejectedError(429, "TOOMANYREQUESTS", "too many large manifests are being pushed")
        try:
            yield
        finally:
            self._free.release()
