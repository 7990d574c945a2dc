"""Sleep between attempts. Every pause of a transfer goes through `sleep`, and tests replace that function."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threading import Event

__all__ = ["sleep"]


def sleep(seconds: float, cancelled: Event) -> bool:
    """Sleep until so many `seconds` have passed or `cancelled` is set; return whether it is set.

    Retries, Retry-After, rate limits of a registry and `--limit-rate` pause here. Callers use `clock.sleep(...)`, never
    an imported name, so that a replacement holds for all of them.
    """
    return cancelled.wait(seconds)
