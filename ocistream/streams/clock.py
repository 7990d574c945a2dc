"""Sleep between attempts, and the clock that measures the waits. Tests replace `sleep`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threading import Event

#: Seconds to add to the system's clock: tests add the time that they do not sleep.
skipped = 0.0


def sleep(seconds: float, cancelled: Event) -> bool:
    """Sleep for `seconds` or until `cancelled` is set; return whether it is set.

    Retries, Retry-After, the rate limits of registries and `--limit-rate` wait here. Callers use
    `streams.clock.sleep(...)`, not an imported name, so that tests can replace it for all.
    """
    return cancelled.wait(seconds)


def now() -> float:
    """Return the time in seconds; only differences are meaningful."""
    return time.monotonic() + skipped
