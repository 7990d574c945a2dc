"""The event that cancels one call of a client."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Seconds between two checks of the other events.
_POLL_INTERVAL: Final = 0.1


class LinkedEvent(threading.Event):
    """An event that is also set if another one is. A copy that fails sets its event, and must not set the caller's."""

    def __init__(self, others: Sequence[threading.Event]) -> None:
        """Follow the events `others`."""
        super().__init__()
        self._others = others

    def is_set(self) -> bool:
        """Return whether this event or another one is set."""
        return super().is_set() or any(other.is_set() for other in self._others)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until an event is set or `timeout` seconds have passed; return whether one is set."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            remaining = _POLL_INTERVAL if deadline is None else deadline - time.monotonic()
            if remaining <= 0:
                return False
            super().wait(min(remaining, _POLL_INTERVAL))
        return True
