"""How the C library's malloc keeps freed memory: it should not."""

from __future__ import annotations

import contextlib
from typing import Final

from ocistream import limits

__all__ = ["return_large_blocks"]

#: glibc's number of the parameter (malloc.h).
_M_MMAP_THRESHOLD: Final = -3


def return_large_blocks() -> None:
    """Have the C library give large blocks of memory back to the system when they are freed.

    Without this, glibc keeps freed megabytes in each of its arenas, and a process with many threads has up to eight
    arenas for each processor. Other C libraries do not have this parameter and do not need it.
    """
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes  # noqa: PLC0415 - it takes 2 ms, and Python may have been built without it

        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, limits.CHUNK_SIZE)
