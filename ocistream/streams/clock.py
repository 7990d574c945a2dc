"""Sleep between attempts, and the clock that measures the waits. Tests replace `sleep`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threading import Event

__all__ = ["now", "skipped", "sleep"]

#: Seconds to add to the system's clock: tests add here what they do not sleep.
skipped = 0.0


def sleep(seconds: float, cancelled: Event) -> bool:
    """Sleep until so many `seconds` have passed or `cancelled` is set; return whether it is set.

    Retries, Retry-After, rate limits of a registry and `--limit-rate` pause here. Callers use
    `streams.clock.sleep(...)`, never an imported name, so that a replacement holds for all of them.
    """
    return cancelled.wait(seconds)


def now() -> float:
    """Return the time in seconds, on a clock that is only good for differences."""
    return time.monotonic() + skipped
