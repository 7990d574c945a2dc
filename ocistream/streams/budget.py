"""A limit on what several threads use together, such as memory or turns."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Budget:
    """A number of units that any thread takes and gives back."""

    def __init__(self, size: int) -> None:
        """Start with `size` free units."""
        self._free = size
        self._changed = threading.Condition()

    def take(self, count: int = 1, *, timeout: float | None = 0.0) -> bool:
        """Take `count` units; wait for them up to `timeout` seconds, with None for ever. Return whether they came."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._free >= count, timeout):
                return False
            self._free -= count
            return True

    def give_back(self, count: int = 1) -> None:
        """Free `count` units that were taken, also by another thread."""
        with self._changed:
            self._free += count
            self._changed.notify_all()

    @contextlib.contextmanager
    def reserve(self, count: int = 1) -> Iterator[None]:
        """Wait for `count` units, and keep them during the block."""
        self.take(count, timeout=None)
        try:
            yield
        finally:
            self.give_back(count)
