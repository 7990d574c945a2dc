"""How many connections and uploads the limit of file descriptors allows."""

from __future__ import annotations

import contextlib
import resource
from typing import Final

from ocistream import limits

__all__ = [
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
