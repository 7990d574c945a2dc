"""Reused read buffers are never overwritten while their content is still needed."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import random
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocistream import limits
from ocistream.oci.descriptor import Descriptor
from ocistream.streams import chunks as stream
from ocistream.streams.chunks import verify_chunks
from ocistream.streams.memory import ReadBuffers, allocate_buffer, is_double_buffered

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = limits.MIN_THREADED_HASH + 5 * limits.READ_BUFFER + 17
CONTENT = random.Random(0).randbytes(SIZE)
BLOB = Descriptor("", f"sha256:{hashlib.sha256(CONTENT).hexdigest()}", SIZE)


class Late:
    """A hash that takes longer than reading the next chunk."""

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()

    def update(self, data: bytes | memoryview, /) -> None:
        time.sleep(0.01)
        self._hasher.update(data)

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()


def read_into(pages: ReadBuffers, start: int = 0, end: int = SIZE) -> Iterator[memoryview]:
    """Yield the content from `start` to `end`, as a connection does."""
    with pages.borrow() as turns:
        for position in range(start, end, limits.READ_BUFFER):
            page = next(turns)
            piece = CONTENT[position : min(position + limits.READ_BUFFER, end)]
            page[: len(piece)] = piece
            yield page[: len(piece)]


def test_a_buffer_is_hashed_before_it_is_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "new_hash", lambda _digest: Late())
    assert (
        b"".join(bytes(chunk) for chunk in verify_chunks(read_into(ReadBuffers()), BLOB, hash_in_thread=True))
        == CONTENT
    )


def test_bytes_before_a_reconnect_are_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "new_hash", lambda _digest: Late())
    pages = ReadBuffers()
    ends = [0, *range(limits.READ_BUFFER, SIZE, limits.READ_BUFFER), SIZE]
    answers = (read_into(pages, start, end) for start, end in itertools.pairwise(ends))
    chunks = itertools.chain.from_iterable(answers)
    assert b"".join(bytes(chunk) for chunk in verify_chunks(chunks, BLOB, hash_in_thread=True)) == CONTENT


def test_a_single_buffer_is_hashed_before_it_is_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "new_hash", lambda _digest: Late())
    memory = allocate_buffer(limits.READ_BUFFER)

    def chunks() -> Iterator[memoryview]:
        for start in range(0, SIZE, limits.READ_BUFFER):
            piece = CONTENT[start : start + limits.READ_BUFFER]
            memory[: len(piece)] = piece
            yield memory[: len(piece)]

    assert b"".join(bytes(chunk) for chunk in verify_chunks(chunks(), BLOB, hash_in_thread=True)) == CONTENT


def test_bytes_and_read_buffers_are_double_buffered() -> None:
    assert is_double_buffered(b"x")
    assert not is_double_buffered(memoryview(bytearray(1)))
    assert not is_double_buffered(allocate_buffer(1))
    with ReadBuffers().borrow() as turns:
        page = next(turns)
        assert is_double_buffered(page[3:5])
        assert is_double_buffered(memoryview(page))


def test_only_the_first_reader_has_large_buffers() -> None:
    pages = ReadBuffers()
    for _ in range(3):
        with ExitStack() as stack:
            lent = [stack.enter_context(pages.borrow()) for _ in range(3)]
            assert [len(next(turns)) for turns in lent] == [limits.READ_BUFFER, limits.CHUNK_SIZE, limits.CHUNK_SIZE]


def test_two_buffers_alternate() -> None:
    with ReadBuffers().borrow() as turns:
        first, second, *others = (id(next(turns).obj) for _ in range(6))
        assert first != second
        assert others == [first, second] * 2


def test_memory_is_returned_to_the_system() -> None:
    def taken() -> int:
        fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
        return sum(int(fields[name].split()[0]) for name in ("Rss", "Pss_Shmem")) * limits.KIB

    pages = ReadBuffers()
    before = taken()
    for _ in range(50):
        with pages.borrow() as turns:
            for _ in range(2):
                next(turns)[:] = bytes(limits.READ_BUFFER)
    assert taken() - before < 20 * limits.MIB


#: Starts threads that allocate memory at the same time, and prints the arenas of the C library to stderr.
_THREADS = """
import ctypes, threading
from ocistream.streams.memory import return_large_blocks
return_large_blocks()
barrier = threading.Barrier(4)
def allocate():
    block = bytearray(10_000)
    barrier.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
ctypes.CDLL(None).malloc_stats()
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_stats"), reason="only glibc has several arenas")
def test_memory_that_one_thread_has_freed_is_for_all_threads() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", _THREADS], capture_output=True, text=True, check=True)
    assert done.stderr.count("Arena ") == 1
