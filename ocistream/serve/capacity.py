"""What bounds the server: the limit of file descriptors, and the number of values that are remembered."""

from __future__ import annotations

import contextlib
import resource
from typing import TYPE_CHECKING, Final, TypeVar

from ocistream import limits

if TYPE_CHECKING:
    from collections import OrderedDict

_Value = TypeVar("_Value")

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


def remember(values: OrderedDict[str, _Value], digest: str, value: _Value, maximum: int) -> None:
    """Add a value, and forget the values that were added first if there are more than `maximum`.

    Any thread may call it, and read `values`: each operation of an OrderedDict is atomic.
    """
    values[digest] = value
    while len(values) > maximum:
        values.popitem(last=False)
