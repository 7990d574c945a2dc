"""Memory for read buffers, and malloc settings, so that freed memory goes back to the system."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import threading
from typing import TYPE_CHECKING, Final

from ocistream import limits

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ReadBuffers",
    "allocate_buffer",
    "is_double_buffered",
    "return_large_blocks",
]

#: Memory of this process alone; what is shared (mmap's own choice) stays in the system's, whoever has let go of it.
_PRIVATE: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class _ReadBuffer(mmap.mmap):
    """Memory of its own, one of two that are read into in turn."""


def allocate_buffer(size: int) -> memoryview:
    """Make memory of `size` bytes, of which none is had before it is written to."""
    return memoryview(mmap.mmap(-1, size, flags=_PRIVATE))


def is_double_buffered(chunk: bytes | memoryview) -> bool:
    """Say whether a chunk stays as it is while the next one is asked for, and until the one after that is."""
    return isinstance(chunk, bytes) or isinstance(chunk.obj, _ReadBuffer)


class ReadBuffers:
    """Pages for those who read at once, two for each. Safe for several threads.

    Who reads alone has two of `limits.PAGE` bytes: to ask a socket for more at a time costs less a byte. Whoever comes
    besides has smaller ones, of `limits.CHUNK`, so that memory is bounded by the number of those at once.
    """

    def __init__(self) -> None:
        """Begin with nobody who reads."""
        self._lock = threading.Lock()
        self._is_large_in_use = False

    @contextlib.contextmanager
    def borrow(self) -> Iterator[Iterator[memoryview]]:
        """Give two pages in turn, for ever, each made when it is first asked for.

        They are nobody else's afterwards: of what broke off, the last chunk may be hashed still. Who has none of their
        views any more has let go of the memory, too.
        """
        with self._lock:
            is_alone, self._is_large_in_use = not self._is_large_in_use, True
        try:
            yield _alternate(limits.READ_BUFFER if is_alone else limits.CHUNK_SIZE)
        finally:
            if is_alone:
                with self._lock:
                    self._is_large_in_use = False


def _alternate(size: int) -> Iterator[memoryview]:
    pair: list[memoryview] = []
    for number in itertools.count():
        if len(pair) < 2:
            pair.append(memoryview(_ReadBuffer(-1, size, flags=_PRIVATE)))
        yield pair[number % 2]


#: glibc's number of the parameter (malloc.h).
_M_MMAP_THRESHOLD: Final = -3


def return_large_blocks() -> None:
    """Have the C library give large blocks of memory back to the system when they are freed.

    Without this, glibc keeps freed megabytes in each of its arenas, and a process with many threads has up to eight
    arenas for each processor. Other C libraries do not have this parameter and do not need it.
    """
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, limits.CHUNK_SIZE)
