"""Limit what many clients use at once: file descriptors for connections and uploads, memory for large pushes."""

from __future__ import annotations

import contextlib
import resource
import threading
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.serve.errors import RequestRejectedError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "MemorySlots",
    "limit_by_descriptors",
    "raise_descriptor_limit",
]

#: A connection has a socket and a file, an upload has its lock. The same number again may be open for a moment.
_DESCRIPTORS_EACH: Final = 4
#: File descriptors for the maximum of connections and uploads.
_SUFFICIENT_DESCRIPTORS: Final = limits.RESERVED_FILE_DESCRIPTORS + _DESCRIPTORS_EACH * max(
    limits.MAX_CLIENTS, limits.MAX_UPLOADS
)


def limit_by_descriptors(maximum: int) -> int:
    """Return how many connections, or uploads, are possible: at most `maximum`, at least one."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return maximum
    return max(1, min(maximum, (soft - limits.RESERVED_FILE_DESCRIPTORS) // _DESCRIPTORS_EACH))


def raise_descriptor_limit() -> None:
    """Raise this process's descriptor limit to what is needed, if it may: shells often set 1,024 or 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _SUFFICIENT_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_SUFFICIENT_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < needed:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class MemorySlots:
    """Limits how many threads use much memory to `count`. A thread waits up to `seconds` for a slot."""

    def __init__(self, count: int, seconds: float) -> None:
        """Start with all slots free."""
        self._free = threading.BoundedSemaphore(count)
        self._seconds = seconds

    @contextlib.contextmanager
    def acquire(self) -> Iterator[None]:
        """Occupy a slot during the block.

        Raises:
            RequestRejectedError: no slot became free in time (429).
        """
        if not self._free.acquire(timeout=self._seconds):
            raise RequestRejectedError(429, "TOOMANYREQUESTS", "too many large manifests are being pushed")
        try:
            yield
        finally:
            self._free.release()
