"""Rate limits: bytes per second for all connections, and requests per second for each host.

These classes compute delays; the caller sleeps.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.streams import clock

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RateLimits", "RequestThrottle", "Throttle"]

#: So many pieces a second at the least: each is waited for on its own, and must not be felt as a burst.
_PIECES_PER_SECOND: Final = 16
_SMALLEST_PIECE: Final = 512
#: What the kernel is to hold for one connection, in bytes: a sixteenth of a second's worth. Left alone it takes up to
#: some MB ahead of whoever reads slowly, and the line sees them all at once. Above the greatest of these it is left
#: alone: that is less than a second's worth then, and a small window would slow down a line with long ways.
_MIN_BUFFER: Final = 16 * limits.KIB
_MAX_BUFFER: Final = 256 * limits.KIB


class Throttle:
    """A rate in bytes a second that any number of threads share. Nothing is saved up: after a pause there is no burst.

    Each piece takes the time that it is worth, one after the other, whoever moves it.
    """

    def __init__(self, rate: float, *, clock: Callable[[], float] = clock.now) -> None:
        """Allow `rate` bytes a second."""
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock()
        #: How many bytes to move at once, at most.
        self.piece_size = int(min(limits.CHUNK_SIZE, max(_SMALLEST_PIECE, rate / _PIECES_PER_SECOND)))

    def spend(self, count: int) -> float:
        """Count `count` bytes, and say in how many seconds they have had their time: so long is to be waited."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now) + count / self._rate
            return self._free_at - now


class RequestThrottle:
    """Evenly spaced turns for each host. Safe for several threads."""

    def __init__(self, *, clock: Callable[[], float] = clock.now) -> None:
        """Begin with nobody waiting."""
        self._clock = clock
        self._lock = threading.Lock()
        self._next: dict[str, float] = {}

    def reserve(self, host: str, per_second: float | None) -> float:
        """Take the next turn at a host, and say in how many seconds it comes; None is any number a second."""
        if per_second is None:
            return 0.0
        with self._lock:
            now = self._clock()
            turn = max(self._next.get(host, now), now)
            self._next[host] = turn + 1.0 / per_second
        return turn - now


class RateLimits:
    """How fast all connections of one run may be together, however many transports have them."""

    def __init__(self, limit_rate: float | None = None) -> None:
        """Allow `limit_rate` bytes a second in each direction, None for any number."""
        self.download = Throttle(limit_rate) if limit_rate else None
        self.upload = Throttle(limit_rate) if limit_rate else None
        self.requests = RequestThrottle()
        #: What sockets are to be told of their buffers, None to leave them alone.
        self.socket_buffer: int | None = None
        if limit_rate and limit_rate <= _MAX_BUFFER * _PIECES_PER_SECOND:
            self.socket_buffer = max(_MIN_BUFFER, int(limit_rate / _PIECES_PER_SECOND))
