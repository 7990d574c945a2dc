"""Memory for read buffers, and malloc settings, so that freed memory goes back to the system."""

from __future__ import annotations

import contextlib
import itertools
import mmap
from typing import TYPE_CHECKING, Final

from ocistream import limits

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Private memory. Shared memory, mmap's default, would stay allocated in the system.
_PRIVATE: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class _ReadBuffer(mmap.mmap):
    """One of two buffers that are read into in turn."""


def allocate_buffer(size: int) -> memoryview:
    """Return a buffer of `size` bytes. The system allocates its memory only when it is written to."""
    return memoryview(mmap.mmap(-1, size, flags=_PRIVATE))


def is_double_buffered(chunk: bytes | memoryview) -> bool:
    """Return whether a chunk stays valid until the chunk after the next one is requested."""
    return isinstance(chunk, bytes) or isinstance(chunk.obj, _ReadBuffer)


class ReadBuffers:
    """Provides two read buffers for each reader. Safe for several threads.

    A single reader gets buffers of `limits.READ_BUFFER` bytes: from a socket, 1 MiB needs a quarter of the system calls
    of 256 KiB. Other readers at the same time get buffers of `limits.CHUNK_SIZE` bytes, which bounds the memory.
    """

    def __init__(self) -> None:
        """Start without readers."""
        #: The size of the large buffers, unless a reader has them. `pop` and `append` are atomic.
        self._large = [limits.READ_BUFFER]

    @contextlib.contextmanager
    def borrow(self) -> Iterator[Iterator[memoryview]]:
        """Yield an endless iterator over two buffers in turn, each allocated when first requested.

        No other reader reuses them: after a failure the last chunk may still be hashed. The memory is freed with the
        last view.
        """
        try:
            size = self._large.pop()
        except IndexError:
            yield _alternate(limits.CHUNK_SIZE)
            return
        try:
            yield _alternate(size)
        finally:
            self._large.append(size)


def _alternate(size: int) -> Iterator[memoryview]:
    buffers: list[memoryview] = []
    for number in itertools.count():
        if len(buffers) < 2:
            buffers.append(memoryview(_ReadBuffer(-1, size, flags=_PRIVATE)))
        yield buffers[number % 2]


#: glibc's numbers of these parameters (malloc.h).
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8


def return_large_blocks() -> None:
    """Tell the C library to return large freed blocks to the system, and to reuse small ones in all threads.

    By default glibc keeps freed megabytes in each of its arenas, and a process with many threads has up to eight arenas
    for each processor. Python's lock lets one thread at a time allocate nearly all memory, so one arena is as fast.
    Other C libraries neither have nor need these parameters.
    """
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, limits.CHUNK_SIZE)
        mallopt(_M_ARENA_MAX, 1)
