"""How many of what takes file descriptors there may be at a time, as many as this process has."""

from __future__ import annotations

import contextlib
import resource
from typing import Final

from ocistream import limits

__all__ = ["limit_by_descriptors", "raise_descriptor_limit"]

#: A connection has its socket and a file; an upload has its lock; and as many again may be opened for a moment.
_DESCRIPTORS_EACH: Final = 4
#: What suffices for all connections and uploads that there may be.
_SUFFICIENT_DESCRIPTORS: Final = limits.RESERVED_FILE_DESCRIPTORS + _DESCRIPTORS_EACH * max(
    limits.MAX_CLIENTS, limits.MAX_UPLOADS
)


def limit_by_descriptors(maximum: int) -> int:
    """Give how many connections, or uploads, there may be: at most `most`, and at least one."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return maximum
    return max(1, min(maximum, (soft - limits.RESERVED_FILE_DESCRIPTORS) // _DESCRIPTORS_EACH))


def raise_descriptor_limit() -> None:
    """Raise this process's own bound to what is enough, as far as it may: that of shells is often 1,024, or 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = _SUFFICIENT_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_SUFFICIENT_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < enough:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
