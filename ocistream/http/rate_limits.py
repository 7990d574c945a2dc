"""Rate limits: bytes per second for all connections and for one registry, and requests per second for each host.

These classes compute delays; the caller sleeps.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.streams import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

#: Minimum number of pieces per second. Each piece is waited for on its own, so pieces must be too small for a burst.
_PIECES_PER_SECOND: Final = 16
_SMALLEST_PIECE: Final = 512
#: Socket buffer sizes in bytes: a sixteenth of a second's data. Otherwise the kernel reads up to some MB ahead of a
#: slow reader, in one burst. Above the maximum the kernel chooses: its buffer is less than a second's data, and a small
#: window would slow down connections with a long round trip.
_MIN_BUFFER: Final = 16 * limits.KIB
_MAX_BUFFER: Final = 256 * limits.KIB


#: Guards the times of all throttles and rate limits; it is held for a few additions only.
_lock: Final = threading.Lock()


class Throttle:
    """A rate in bytes per second, shared by any number of threads.

    Pieces take their time one after the other, whichever thread moves them. Unused time is not saved, so no burst
    follows a pause.
    """

    def __init__(self, rate: float, shared: Throttle | None = None, *, clock: Callable[[], float] = clock.now) -> None:
        """Allow `rate` bytes per second; `shared` is another throttle that applies to the same bytes."""
        self._rate = rate
        self._shared = shared
        self._clock = clock
        self._free_at = clock()
        piece_size = int(min(limits.CHUNK_SIZE, max(_SMALLEST_PIECE, rate / _PIECES_PER_SECOND)))
        #: How many bytes to move at once, at most.
        self.piece_size: int = min(piece_size, shared.piece_size) if shared else piece_size

    def count(self, size: int) -> float:
        """Count `size` bytes that have moved; return how many seconds the caller must wait."""
        shared_wait = self._shared.count(size) if self._shared else 0.0
        with _lock:
            now = self._clock()
            self._free_at = max(self._free_at, now) + size / self._rate
            return max(self._free_at - now, shared_wait)


@dataclass(frozen=True, slots=True, eq=False)
class ConnectionLimits:
    """The rates of the connections to one registry, and the size of their buffers in bytes; None is the kernel's."""

    download: Throttle | None = None
    upload: Throttle | None = None
    socket_buffer: int | None = None


class RateLimits:
    """The rate limits of one run, shared by all its HTTP clients. Safe for several threads.

    Requests to a host are evenly spaced, and there is none while the host asks for a pause.
    """

    def __init__(self, limit_rate: float | None = None, *, clock: Callable[[], float] = clock.now) -> None:
        """Allow `limit_rate` bytes per second in each direction, as curl does; None for no limit.

        One limit for both directions would halve the rate of a copy from registry to registry.
        """
        self._limit_rate = limit_rate
        self.download = Throttle(limit_rate) if limit_rate else None
        self.upload = Throttle(limit_rate) if limit_rate else None
        #: By registry; None for all registries without a limit of their own.
        self._connections: dict[str | None, ConnectionLimits] = {}
        self._clock = clock
        #: By host: the time of its next request, and the end of its pause.
        self._next_request_at: dict[Hashable, float] = {}
        self._paused_until: dict[Hashable, float] = {}

    def pause(self, host: Hashable, seconds: float) -> None:
        """Allow no request to a host for `seconds`."""
        with _lock:
            self._paused_until[host] = max(self._paused_until.get(host, 0.0), self._clock() + seconds)

    def reserve(self, host: Hashable, per_second: float | None) -> float:
        """Reserve the next request to a host; return how many seconds to wait. None for `per_second` means no limit."""
        if per_second is None and host not in self._paused_until:
            return 0.0
        with _lock:
            now = self._clock()
            delay = self._paused_until.get(host, now) - now
            if per_second is not None:
                reserved_at = max(self._next_request_at.get(host, now), now)
                self._next_request_at[host] = reserved_at + 1.0 / per_second
                delay = max(delay, reserved_at - now)
        return max(delay, 0.0)

    def connection_limits(self, registry: str, limit_rate: float | None) -> ConnectionLimits:
        """Return the limits of the connections to a registry.

        `limit_rate` is the registry's own limit in bytes per second; None if it has none.
        """
        key = registry if limit_rate else None
        if (known := self._connections.get(key)) is not None:
            return known
        rates = [rate for rate in (self._limit_rate, limit_rate) if rate]
        download, upload = (
            Throttle(limit_rate, shared) if limit_rate else shared for shared in (self.download, self.upload)
        )
        socket_buffer = None
        if rates and min(rates) <= _MAX_BUFFER * _PIECES_PER_SECOND:
            socket_buffer = max(_MIN_BUFFER, int(min(rates) / _PIECES_PER_SECOND))
        # Of two threads, the first one creates the limits.
        return self._connections.setdefault(key, ConnectionLimits(download, upload, socket_buffer))
