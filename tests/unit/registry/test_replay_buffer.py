"""The replay buffer: it returns a blob's bytes from an earlier offset, from a bounded window or by reading again."""

from __future__ import annotations

import random
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocistream import limits
from ocistream.errors import CancelledError, IntegrityError
from ocistream.registry.replay_buffer import ReplayBuffer
from ocistream.streams.chunks import Chunk, verify_chunks
from ocistream.streams.synchronization import Budget
from ocistream.transfer.interfaces import Access, ByteRange, NewBlob, VerifiedBlob
from tests.http_doubles import blob_of

CONTENT = random.Random(7).randbytes(1000)


class Source:
    """Bytes in chunks of a given size, in one reused buffer, as a file's chunks are."""

    def __init__(self, content: bytes = CONTENT, chunk: int = 64, *, replayable: bool = False) -> None:
        self.content = content
        self.chunk = chunk
        self.opened = self.closed = 0
        access = Access.REPEATABLE if replayable else Access.ONCE
        self.blob = VerifiedBlob(blob_of(content), self.open, access)
        self.unnamed = NewBlob(self.open, lambda: blob_of(content), access=access)

    def open(self) -> Iterator[Chunk]:
        return verify_chunks(self._chunks(), self.blob.descriptor)

    def _chunks(self) -> Iterator[Chunk]:
        self.opened += 1
        buffer = bytearray(self.chunk)
        try:
            for start in range(0, len(self.content), self.chunk):
                piece = self.content[start : start + self.chunk]
                buffer[: len(piece)] = piece
                yield memoryview(buffer)[: len(piece)]
        finally:
            self.closed += 1


def gathered(feed: ReplayBuffer, offset: int, count: int | None = None) -> bytes:
    return b"".join(bytes(chunk) for chunk in feed.read(offset, count))


@pytest.mark.parametrize("capacity", [1, 63, 64, 65, 300, 1000, 5000])
@pytest.mark.parametrize("chunk", [1, 64, 999, 1000])
def test_a_blob_passes_with_any_capacity(capacity: int, chunk: int) -> None:
    for blob in (Source(chunk=chunk).blob, Source(chunk=chunk).unnamed):
        with closing(ReplayBuffer(blob, capacity)) as feed:
            assert gathered(feed, 0) == CONTENT
            feed.check_end()
            assert feed.is_exhausted
            assert feed.end == 1000


@given(
    capacity=st.integers(1, 1200),
    chunk=st.integers(1, 1100),
    steps=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), max_size=12),
)
def test_every_offset_reported_as_seekable_is_readable(capacity: int, chunk: int, steps: list[tuple[int, int]]) -> None:
    source = Source(chunk=chunk)
    with closing(ReplayBuffer(source.blob, capacity)) as feed:
        for offset, count in steps:
            if feed.can_load(offset):
                feed.load(offset)
                assert gathered(feed, offset, count) == CONTENT[offset : offset + count]
            assert feed.end - feed.start <= capacity
    assert source.opened == source.closed <= 1


@given(
    capacity=st.integers(1, 1200),
    chunk=st.integers(1, 1100),
    steps=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), max_size=12),
)
def test_a_repeatable_source_is_readable_from_any_offset(
    capacity: int, chunk: int, steps: list[tuple[int, int]]
) -> None:
    source = Source(chunk=chunk, replayable=True)
    with closing(ReplayBuffer(source.blob, capacity)) as feed:
        for offset, count in steps:
            assert feed.can_load(offset)
            feed.load(offset)
            assert gathered(feed, offset, count) == CONTENT[offset : offset + count]
    assert source.opened == source.closed


def test_buffered_bytes_are_not_read_again() -> None:
    source = Source(replayable=True)
    with closing(ReplayBuffer(source.blob, 300)) as feed:
        gathered(feed, 0, 900)
        feed.load(700)
        assert gathered(feed, 700) == CONTENT[700:]
        assert source.opened == 1
        feed.load(100)
        assert gathered(feed, 100) == CONTENT[100:]
        assert source.opened == 2


def test_bytes_of_a_pipe_outside_of_the_window_are_lost() -> None:
    with closing(ReplayBuffer(Source().blob, 300)) as feed:
        gathered(feed, 0, 640)
        assert (feed.start, feed.end) == (340, 640)
        assert not feed.can_load(339)
        assert feed.can_load(340)
        assert feed.can_load(640)
        assert not feed.can_load(641)


def test_reading_ahead_stops_at_the_capacity() -> None:
    with closing(ReplayBuffer(Source().unnamed, 300)) as feed:
        assert feed.fill(0, 200) == 200
        assert gathered(feed, 0, 200) == CONTENT[:200]
        assert feed.fill(200, 10_000) == 300
        assert gathered(feed, 200, 300) == CONTENT[200:500]
        assert feed.fill(500, 300) == 300
        assert feed.fill(800, 300) == 200
        assert gathered(feed, 800, 200) == CONTENT[800:]
        assert feed.fill(1000, 300) == 0


def test_bytes_are_buffered_without_another_copy() -> None:
    chunk = memoryview(bytes(limits.MIB))
    content = NewBlob(lambda: iter([chunk, chunk]), lambda: blob_of(b""))
    with closing(ReplayBuffer(content, limits.MIB)) as feed:
        # The first bytes allocate the buffer.
        feed.fill(0, limits.MIB)
        tracemalloc.start()
        try:
            feed.fill(limits.MIB, limits.MIB)
            assert tracemalloc.get_traced_memory()[1] < limits.CHUNK_SIZE
        finally:
            tracemalloc.stop()


def test_an_empty_blob_is_known_before_anything_is_sent() -> None:
    with closing(ReplayBuffer(Source(b"").unnamed, 300)) as feed:
        feed.open()
        assert feed.is_empty
    with closing(ReplayBuffer(Source().unnamed, 300)) as feed:
        feed.open()
        assert not feed.is_empty


def test_a_failed_source_is_recorded_and_its_last_chunk_withheld() -> None:
    source = Source()
    source.content = CONTENT[:-1] + b"!"
    with closing(ReplayBuffer(source.blob, 300)) as feed:
        with pytest.raises(IntegrityError):
            gathered(feed, 0)
        assert feed.has_source_failed
        assert feed.end == 960


def test_extra_bytes_are_detected_at_the_end() -> None:
    source = Source()
    source.content = CONTENT + b"!" * 64
    source.chunk = 1000
    with closing(ReplayBuffer(source.blob, 300)) as feed:
        assert gathered(feed, 0, 1000) == CONTENT
        with pytest.raises(IntegrityError):
            feed.check_end()


def test_a_source_that_fails_at_its_first_byte_is_closed() -> None:
    source = Source(b"x")
    source.content = b"y"
    feed = ReplayBuffer(source.blob, 300)
    with pytest.raises(IntegrityError), closing(feed):
        feed.open()
    assert source.opened == source.closed == 1


def test_a_part_begins_at_its_offset() -> None:
    part = CONTENT[300:800]
    opened: list[int] = []

    def read() -> Iterator[Chunk]:
        opened.append(0)
        return iter([part[:100], part[100:]])

    with closing(ReplayBuffer(VerifiedBlob(blob_of(CONTENT), read, range=ByteRange(300, 800)), 200)) as feed:
        assert not opened
        assert not feed.can_load(299)
        for offset in (400, 300, 799, 800):
            feed.load(offset)
            assert gathered(feed, offset) == CONTENT[offset:800]
    assert len(opened) > 1


def test_the_buffer_of_the_next_blob_of_a_pipe_grows_when_the_one_before_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MIN_REPLAY_MEMORY", 100)
    memory = Budget(500)
    first = ReplayBuffer(Source().blob, 500, memory)
    gathered(first, 0, 300)
    with closing(ReplayBuffer(Source(chunk=7).blob, 500, memory)) as second:
        gathered(second, 0, 300)
        assert second.end - second.start == 100
        assert second.fill(300, 500) == 100
        first.close()
        gathered(second, 400, 100)
        # It keeps the 100 bytes that it had.
        assert (second.start, second.end) == (300, 500)
        assert gathered(second, 300) == CONTENT[300:]
        assert second.end - second.start == 500
    assert memory.take(500)


def test_a_buffer_that_needs_all_of_its_memory_waits_for_it_or_for_the_cancellation() -> None:
    memory = Budget(2 * limits.MIB)
    cancelled = threading.Event()
    with closing(ReplayBuffer(Source().unnamed, 2 * limits.MIB, memory)) as feed:
        assert memory.take(1)
        threading.Timer(0.1, memory.give_back).start()
        feed.reserve(cancelled)
        assert not memory.take(1)
    assert memory.take(1)
    with closing(ReplayBuffer(Source().unnamed, 2 * limits.MIB, memory)) as feed:
        cancelled.set()
        with pytest.raises(CancelledError):
            feed.reserve(cancelled)
