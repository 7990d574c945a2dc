"""Memory that bytes are read into, used again and again: of what malloc gives back, glibc keeps most."""

from __future__ import annotations

import contextlib
import mmap
import threading
from typing import TYPE_CHECKING, cast

from ocistream import limits

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Pages", "buffer", "lasts"]


class _Page(mmap.mmap):
    """Memory of its own, one of two that are read into in turn."""


def buffer(size: int) -> memoryview:
    """Make memory of `size` bytes, of which no page is had before it is written to."""
    return memoryview(mmap.mmap(-1, size))


def lasts(chunk: bytes | memoryview) -> bool:
    """Say whether a chunk stays as it is while the next one is asked for, and until the one after that is."""
    return isinstance(chunk, bytes) or isinstance(chunk.obj, _Page)


class Pages:
    """Pairs of pages for those who read at once. Safe for several threads.

    Who reads alone has two of `limits.PAGE` bytes: to ask a socket for more at a time costs less a byte. Whoever comes
    besides has smaller ones, of `limits.CHUNK`, so that memory is bounded by the number of those at once.
    """

    def __init__(self) -> None:
        """Make none yet."""
        self._lock = threading.Lock()
        self._large: list[tuple[memoryview, memoryview]] = [_pair(limits.PAGE)]
        self._small: list[tuple[memoryview, memoryview]] = []

    @contextlib.contextmanager
    def lent(self) -> Iterator[tuple[memoryview, memoryview]]:
        """Lend a pair until the block ends; what is in them then is nobody's any more."""
        with self._lock:
            home = self._large or self._small
            pair = home.pop() if home else _pair(limits.CHUNK)
        try:
            yield pair
        finally:
            for page in pair:
                # The memory is the system's until somebody reads into it again: what is fetched ahead has some too.
                cast("_Page", page.obj).madvise(mmap.MADV_DONTNEED)
            with self._lock:
                home.append(pair)


def _pair(size: int) -> tuple[memoryview, memoryview]:
    return memoryview(_Page(-1, size)), memoryview(_Page(-1, size))
