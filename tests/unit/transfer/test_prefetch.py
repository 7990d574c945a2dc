"""Prefetching over several connections: the reader gets the same bytes as over one, whatever connection fails."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocistream import limits
from ocistream.errors import CancelledError, NetworkError, NotFoundError
from ocistream.oci.descriptor import Descriptor
from ocistream.streams import workers
from ocistream.streams.memory import allocate_buffer
from ocistream.streams.workers import run_each
from ocistream.transfer import prefetch
from ocistream.transfer.interfaces import Access, Blob, RecoverableBlob
from ocistream.transfer.prefetch import Prefetcher, _ThroughputMeter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


CHUNK = limits.CHUNK_SIZE
#: A chunk between the one at which a connection is found to be slow and the one at which the others take over.
MEETING = 30
CONNECTIONS = 4
#: Segments of one chunk each, so that a small blob has many.
MEMORY = CONNECTIONS * CHUNK
#: Seconds for each chunk over a slow connection and over a fast one.
SLOW, QUICK = 0.02, 0.0001


class Clock:
    """A clock that advances only when a test says so."""

    def __init__(self) -> None:
        self._now = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            return self._now

    def pass_by(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds


#: Seconds after which a waiting test is cancelled and fails; every test takes much less.
TIMEOUT = 120

_opened: list[tuple[Prefetcher, threading.Event]] = []


def prefetcher(memory: int, cancelled: threading.Event, clock: Clock) -> Prefetcher:
    """Return a prefetcher that is closed at the end of the test."""
    _opened.append((Prefetcher(CONNECTIONS, memory, cancelled, clock), cancelled))
    return _opened[-1][0]


def cancel_all() -> None:
    """Make each reader that waits for bytes fail."""
    for _, cancelled in _opened:
        cancelled.set()


@pytest.fixture(autouse=True)
def nobody_goes_on_fetching() -> Iterator[None]:
    """Close all prefetchers of a test, and check that no prefetch thread is left."""
    timer = threading.Timer(TIMEOUT, cancel_all)
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()
    for ahead, _ in _opened:
        ahead.close()
    _opened.clear()
    for thread in threading.enumerate():
        if thread.name.startswith("prefetch"):
            thread.join(30)
            assert not thread.is_alive()


@dataclass
class Registry:
    """A source of blobs that records its requests."""

    clock: Clock = field(default_factory=Clock)
    #: Seconds that each chunk takes.
    alone: float = SLOW
    ahead: float = 0.0
    #: The number of first chunks of a blob that arrive faster than the rest, as on many servers.
    burst: int = 0
    #: Returns the chunks of a part, given the number of parts requested before.
    fault: Callable[[int, bytes], Iterator[bytes]] = lambda _number, content: chunked(content)
    #: The first connection waits at this chunk until a part has arrived or failed, because threads start late.
    meets_at: int = 0
    came: threading.Event = field(default_factory=threading.Event)
    asked: list[int] = field(default_factory=list)
    parts: list[tuple[int, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def blob(self, content: bytes) -> RecoverableBlob:
        """Return a blob with this content."""
        descriptor = Descriptor("", f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))

        def opened(offset: int = 0) -> Iterator[bytes]:
            self.asked.append(offset)
            for number, chunk in enumerate(chunked(content[offset:])):
                if number == self.meets_at > 0:
                    assert self.came.wait(30)
                self.clock.pass_by(self.alone / 4 if offset // CHUNK + number < self.burst else self.alone)
                yield chunk

        def part(start: int, end: int, buffers: Iterator[memoryview]) -> Generator[int, None, None]:
            with self.lock:
                number = len(self.parts)
                self.parts.append((start, end))
            missing, buffer = end - start, memoryview(b"")
            try:
                for chunk in self.fault(number, content[start:end]):
                    self.clock.pass_by(self.ahead)
                    rest = memoryview(chunk)
                    while rest:
                        if len(rest) > missing:
                            msg = "too long"
                            raise NetworkError(msg)
                        if not (buffer := buffer or next(buffers, buffer)):
                            return
                        count = min(len(rest), len(buffer))
                        buffer[:count] = rest[:count]
                        buffer, rest, missing = buffer[count:], rest[count:], missing - count
                        yield count
                        self.came.set()
            finally:
                self.came.set()

        return RecoverableBlob(descriptor, opened, fetch_range=part)

    def reading(self, cancelled: threading.Event | None = None) -> Prefetcher:
        """Return a prefetcher for this registry."""
        return prefetcher(MEMORY, cancelled or threading.Event(), self.clock)


def chunked(content: bytes) -> Iterator[bytes]:
    """Yield content in chunks, as a connection does."""
    for start in range(0, len(content), CHUNK):
        yield content[start : start + CHUNK]


def some(size: int, seed: int = 0) -> bytes:
    """Return random bytes."""
    return random.Random(seed).randbytes(size)


def read(blob: Blob, offset: int = 0) -> bytes:
    """Read a blob whose chunks are valid only until the next one is requested."""
    return b"".join(bytes(chunk) for chunk in blob.open(offset))


def refuse(*_: object) -> Iterator[bytes]:
    """Fail each request for a part."""
    msg = "429"
    raise NetworkError(msg)


class TestContent:
    def test_a_slow_blob_is_fetched_in_parts(self) -> None:
        registry = Registry(meets_at=MEETING)
        content = some(90 * CHUNK + 17)
        (found,) = map(read, registry.reading().in_order([registry.blob(content)]))
        assert found == content
        # One connection until it was found to be slow, then the others; each byte comes from one of them.
        assert registry.asked == [0]
        assert len(registry.parts) > 20
        assert sum(end - start for start, end in registry.parts) < len(content)

    def test_nothing_is_prefetched_from_a_fast_registry(self) -> None:
        registry = Registry(alone=QUICK)
        contents = [some(80 * CHUNK, seed) for seed in range(3)]
        assert list(map(read, registry.reading().in_order(map(registry.blob, contents)))) == contents
        assert registry.parts == []

    def test_nothing_is_prefetched_when_the_reader_is_slow(self) -> None:
        registry = Registry(alone=QUICK)
        content = some(80 * CHUNK)
        got = []
        for blob in registry.reading().in_order([registry.blob(content)]):
            for chunk in blob.open():
                got.append(bytes(chunk))
                registry.clock.pass_by(SLOW)
        assert b"".join(got) == content
        assert registry.parts == []

    def test_many_small_blobs_are_prefetched_when_each_is_slow(self) -> None:
        registry = Registry(alone=0.1)
        contents = [some(1000 + seed, seed) for seed in range(100)]
        assert list(map(read, registry.reading().in_order(map(registry.blob, contents)))) == contents
        assert len(registry.parts) > 50

    def test_one_connection_is_used_again_when_several_are_not_faster(self) -> None:
        registry = Registry(meets_at=MEETING, ahead=SLOW)
        content = some(400 * CHUNK)
        (found,) = map(read, registry.reading().in_order([registry.blob(content)]))
        assert found == content
        # Tried for two periods, and once more after a longer time.
        assert 10 < len(registry.parts) < 120
        assert len(registry.asked) > 1

    def test_an_initial_burst_does_not_count_as_the_speed_of_one_connection(self) -> None:
        # Several connections are as fast as the one was at first, and four times as fast as it is later.
        registry = Registry(meets_at=200, burst=200, ahead=SLOW / 4)
        content = some(500 * CHUNK)
        (found,) = map(read, registry.reading().in_order([registry.blob(content)]))
        assert found == content
        assert sum(end - start for start, end in registry.parts) > 220 * CHUNK

    def test_a_blob_starts_at_the_requested_offset(self) -> None:
        registry = Registry()
        contents = [some(30 * CHUNK, seed) for seed in range(3)]
        blobs = registry.reading().in_order(map(registry.blob, contents))
        offsets = (CHUNK + 5, 7, 2 * CHUNK)
        found = [read(blob, offset) for blob, offset in zip(blobs, offsets, strict=True)]
        assert found == [content[offset:] for content, offset in zip(contents, offsets, strict=True)]

    def test_a_blob_can_be_read_twice(self) -> None:
        registry = Registry()
        contents = [some(40 * CHUNK, seed) for seed in range(2)]
        found = [(read(blob), read(blob)) for blob in registry.reading().in_order(map(registry.blob, contents))]
        assert found == [(content, content) for content in contents]

    def test_a_second_reader_of_the_same_blob_takes_nothing_from_the_first(self) -> None:
        registry = Registry(meets_at=MEETING)
        content = some(60 * CHUNK)
        (blob,) = registry.reading().concurrently([registry.blob(content)])
        found: list[bytes] = []

        def keep(_: int) -> None:
            found.append(read(blob))

        run_each(keep, range(12), jobs=3, cancelled=threading.Event())
        assert found == [content] * 12
        assert registry.parts

    def test_concurrent_readers_get_complete_blobs(self) -> None:
        registry = Registry(meets_at=MEETING)
        contents = {len(content): content for content in (some(40 * CHUNK + seed, seed) for seed in range(6))}
        found: dict[int, bytes] = {}

        def keep(blob: Blob) -> None:
            found[blob.descriptor.size] = read(blob)

        ahead = registry.reading()
        run_each(keep, ahead.concurrently(map(registry.blob, contents.values())), jobs=3, cancelled=threading.Event())
        assert found == contents
        assert registry.parts

    def test_small_blobs_with_concurrent_readers_are_not_prefetched(self) -> None:
        registry = Registry()
        contents = {size: some(size, size) for size in range(CHUNK - 60, CHUNK)}
        found: dict[int, bytes] = {}

        def keep(blob: Blob) -> None:
            found[blob.descriptor.size] = read(blob)

        blobs = registry.reading().concurrently(map(registry.blob, contents.values()))
        run_each(keep, blobs, jobs=3, cancelled=threading.Event())
        assert found == contents
        assert not registry.parts

    def test_each_connection_has_one_thread_for_all_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        started: list[str] = []

        def count(work: Callable[[], None], name: str) -> object:
            started.append(name)
            return workers.start(work, name)

        monkeypatch.setattr(prefetch, "start", count)
        registry = Registry(meets_at=MEETING)
        content = some(200 * CHUNK)
        assert [read(blob) for blob in registry.reading().in_order([registry.blob(content)])] == [content]
        assert len(registry.parts) > 2 * CONNECTIONS
        assert 0 < len(started) <= CONNECTIONS

    def test_an_empty_blob_and_one_without_ranges_are_not_prefetched(self) -> None:
        registry = Registry()
        blob = Blob(Descriptor("", "sha256:0", 3), lambda: iter([b"abc"]), access=Access.ONCE)
        found = list(map(read_once, registry.reading().in_order([registry.blob(b""), blob])))
        assert found == [b"", b"abc"]


def read_once(blob: Blob) -> bytes:
    return b"".join(map(bytes, blob.open()))


def _short(number: int, content: bytes) -> Iterator[bytes]:
    yield from chunked(content[:-1] if number == 5 else content)


def _long(number: int, content: bytes) -> Iterator[bytes]:
    yield from chunked(content + b"x" if number == 5 else content)


def _broken(number: int, content: bytes) -> Iterator[bytes]:
    yield content[:100]
    if number == 5:
        msg = "reset"
        raise NetworkError(msg)
    yield content[100:]


def _gone(number: int, content: bytes) -> Iterator[bytes]:
    if number == 5:
        msg = "404"
        raise NotFoundError(msg)
    yield content


def _fallen(number: int, content: bytes) -> Iterator[bytes]:
    if number == 5:
        msg = "no error of ours"
        raise ZeroDivisionError(msg)
    yield content


FAULTS = {"short": _short, "long": _long, "broken": _broken, "gone": _gone, "a fault of our own": _fallen}


class TestFailures:
    @pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
    def test_the_reader_does_not_notice_a_fault(self, fault: Callable[[int, bytes], Iterator[bytes]]) -> None:
        registry = Registry(meets_at=MEETING, fault=fault)
        content = some(90 * CHUNK)
        (found,) = map(read, registry.reading().in_order([registry.blob(content)]))
        assert found == content
        # The first connection resumes after the last byte that arrived. The other connections may be tried again
        # later, and found to be no faster, depending on the threads.
        assert len(registry.asked) in {2, 3}
        assert registry.asked == sorted(set(registry.asked))
        assert registry.asked[1] >= registry.parts[5][0]

    def test_a_registry_that_refuses_parts_gets_few_requests(self) -> None:
        registry = Registry(meets_at=MEETING, fault=refuse)
        contents = [some(100 * CHUNK, seed) for seed in range(4)]
        assert list(map(read, registry.reading().in_order(map(registry.blob, contents)))) == contents
        # Each of a few attempts sends some: those already sent when the first was refused, and those that waited.
        assert len(registry.parts) <= 8 * CONNECTIONS
        # The first connection is kept: this registry would not let another start in the middle of the blob.
        assert registry.asked == [0] * 4

    def test_the_error_of_the_first_connection_is_raised(self) -> None:
        registry = Registry(meets_at=MEETING, fault=_gone)
        blob = registry.blob(some(90 * CHUNK))
        opened = 0

        def fail(offset: int = 0) -> Iterator[bytes]:
            nonlocal opened
            opened += 1
            if opened == 2:
                msg = "this one"
                raise NetworkError(msg)
            yield from (bytes(chunk) for chunk in blob.open(offset))

        broken = dataclasses.replace(blob, open=fail)
        with pytest.raises(NetworkError, match="this one"):
            list(map(read, registry.reading().in_order([broken])))

    def test_a_reader_that_stops_early_does_not_block_others(self) -> None:
        registry = Registry()
        contents = [some(40 * CHUNK, seed) for seed in range(6)]
        found = []
        for number, blob in enumerate(registry.reading().in_order(map(registry.blob, contents))):
            if number % 3 == 0:
                found.append(read(blob) == contents[number])
            elif number % 3 == 1:
                chunks = blob.open()
                for _ in range(30):
                    next(chunks)
                del chunks
        assert found == [True, True]

    def test_a_waiting_reader_is_cancelled(self) -> None:
        cancelled, over = threading.Event(), threading.Event()

        def stall(number: int, content: bytes) -> Iterator[bytes]:
            if number == 7:
                cancelled.set()
                over.wait(30)
            yield content

        registry = Registry(meets_at=MEETING, fault=stall)
        blobs = registry.reading(cancelled).in_order([registry.blob(some(60 * CHUNK))])
        with pytest.raises(CancelledError):
            list(map(read, blobs))
        over.set()


class TestSegments:
    @pytest.mark.parametrize("chunks", [1, 3, 4, 9])
    def test_blocks_take_no_more_than_the_memory_although_segments_are_larger(
        self, monkeypatch: pytest.MonkeyPatch, chunks: int
    ) -> None:
        allocated: list[int] = []

        def allocate(size: int) -> memoryview:
            allocated.append(size)
            return allocate_buffer(size)

        monkeypatch.setattr(prefetch, "allocate_buffer", allocate)
        registry = Registry(meets_at=MEETING)
        ahead = prefetcher(chunks * CHUNK, threading.Event(), registry.clock)
        content = some(120 * CHUNK)
        assert [read(blob) for blob in ahead.in_order([registry.blob(content)])] == [content]
        assert CHUNK <= sum(allocated) <= chunks * CHUNK
        connections = min(CONNECTIONS, chunks)
        assert max(end - start for start, end in registry.parts) == 2 * (chunks // connections) * CHUNK


def test_throughput_is_measured_over_the_segments_of_all_connections() -> None:
    clock, segment = Clock(), 4 * limits.MIB
    meter = _ThroughputMeter(clock, CONNECTIONS * segment)
    meter.start_blob()

    def receive(size: int, seconds: float, *, is_prefetched: bool) -> None:
        for _ in range(size // CHUNK):
            clock.pass_by(seconds * CHUNK / size)
            meter.record(CHUNK, seconds * CHUNK / size, seconds * CHUNK / size, is_prefetched=is_prefetched)

    receive(segment, 0.5, is_prefetched=False)
    assert meter.is_parallel
    for _ in range(10):
        # The first of four segments arrives as slowly as over one connection; the others have arrived by then.
        receive(segment, 0.5, is_prefetched=True)
        receive(3 * segment, 0.001, is_prefetched=True)
        assert meter.is_parallel


@st.composite
def _plans(draw: st.DrawFn) -> tuple[list[int], list[tuple[str, int]], int]:
    sizes = draw(st.lists(st.integers(0, 9 * CHUNK), min_size=1, max_size=8))
    ways = draw(
        st.lists(
            st.tuples(st.sampled_from(["read", "again", "skip", "leave", "middle"]), st.integers(0, 9 * CHUNK)),
            min_size=len(sizes),
            max_size=len(sizes),
        )
    )
    return sizes, ways, draw(st.integers(0, 1 << 30))


@settings(max_examples=150, deadline=None)
@given(_plans())
def test_any_order_of_reads_returns_the_right_bytes(
    plan: tuple[list[int], list[tuple[str, int]], int],
) -> None:
    sizes, ways, seed = plan
    choice = random.Random(seed)

    def fault(_number: int, content: bytes) -> Iterator[bytes]:
        return choice.choice([*FAULTS.values(), *[_whole] * 20])(5, content)

    registry = Registry(alone=choice.choice([SLOW, 1.0, QUICK]), ahead=choice.choice([0.0, SLOW]), fault=fault)
    contents = [some(size, number) for number, size in enumerate(sizes)]
    blobs = registry.reading().in_order(map(registry.blob, contents))
    for blob, content, (way, where) in zip(blobs, contents, ways, strict=True):
        offset = min(where, len(content))
        if way == "leave":
            chunks = blob.open()
            got = b""
            while len(got) < offset:
                got += bytes(next(chunks))
            assert content.startswith(got)
        elif way == "middle":
            assert read(blob, offset) == content[offset:]
        elif way != "skip":
            assert [read(blob) for _ in range(2 if way == "again" else 1)][-1] == content


def _whole(_number: int, content: bytes) -> Iterator[bytes]:
    yield from chunked(content)
