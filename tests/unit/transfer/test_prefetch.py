"""What comes out of several connections is what would come out of one, whatever happens on any of them."""

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
#: A chunk between the one at which a slow connection is seen to be slow, and the one at which others take over.
MEETING = 30
CONNECTIONS = 4
#: Of one chunk each, so that few bytes have many of them.
MEMORY = CONNECTIONS * CHUNK
#: Seconds that a chunk takes over a connection that is slow, and over one that is not.
SLOW, QUICK = 0.02, 0.0001


class Clock:
    """Seconds that go by when something is slow, and not otherwise."""

    def __init__(self) -> None:
        self._now = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            return self._now

    def pass_by(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds


#: Seconds after which a test that waits is cancelled, and fails; every test takes much less.
TIMEOUT = 120

_opened: list[tuple[Prefetcher, threading.Event]] = []


def prefetcher(memory: int, cancelled: threading.Event, clock: Clock) -> Prefetcher:
    """Return a prefetcher that is closed at the end of the test."""
    _opened.append((Prefetcher(CONNECTIONS, memory, cancelled, clock), cancelled))
    return _opened[-1][0]


def cancel_all() -> None:
    """Let each reader that waits for bytes fail."""
    for _, cancelled in _opened:
        cancelled.set()


@pytest.fixture(autouse=True)
def nobody_goes_on_fetching() -> Iterator[None]:
    """End what a test has begun, and see that nothing of it goes on."""
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
    """Where blobs come from; what was asked of it is noted."""

    clock: Clock = field(default_factory=Clock)
    #: Seconds that each chunk takes.
    alone: float = SLOW
    ahead: float = 0.0
    #: So many chunks of a blob come sooner than the rest, as many servers have it.
    burst: int = 0
    #: What a part's chunks are made into, by how many parts were asked for before.
    fault: Callable[[int, bytes], Iterator[bytes]] = lambda _number, content: chunked(content)
    #: The one connection stops at this chunk until a part has begun to come, or was refused: threads take their time.
    meets_at: int = 0
    came: threading.Event = field(default_factory=threading.Event)
    asked: list[int] = field(default_factory=list)
    parts: list[tuple[int, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def blob(self, content: bytes) -> RecoverableBlob:
        """Give a blob with this content."""
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
        """Begin to read from it."""
        return prefetcher(MEMORY, cancelled or threading.Event(), self.clock)


def chunked(content: bytes) -> Iterator[bytes]:
    """Give content as it comes over a connection."""
    for start in range(0, len(content), CHUNK):
        yield content[start : start + CHUNK]


def some(size: int, seed: int = 0) -> bytes:
    """Give bytes that are like no others."""
    return random.Random(seed).randbytes(size)


def read(blob: Blob, offset: int = 0) -> bytes:
    """Read a blob, with what is valid only until the next chunk is asked for."""
    return b"".join(bytes(chunk) for chunk in blob.open(offset))


def refuse(*_: object) -> Iterator[bytes]:
    """Answer a request for a part with an error."""
    msg = "429"
    raise NetworkError(msg)


class TestWhatComesOut:
    def test_a_slow_blob_comes_in_parts_and_whole(self) -> None:
        registry = Registry(meets_at=MEETING)
        content = some(90 * CHUNK + 17)
        (found,) = map(read, registry.reading().in_order([registry.blob(content)]))
        assert found == content
        # One connection until it was seen to be slow, and then the others, each byte from one of them.
        assert registry.asked == [0]
        assert len(registry.parts) > 20
        assert sum(end - start for start, end in registry.parts) < len(content)

    def test_of_a_fast_registry_nothing_is_asked_ahead(self) -> None:
        registry = Registry(alone=QUICK)
        contents = [some(80 * CHUNK, seed) for seed in range(3)]
        assert list(map(read, registry.reading().in_order(map(registry.blob, contents)))) == contents
        assert registry.parts == []

    def test_nor_where_it_is_not_the_registry_that_is_waited_for(self) -> None:
        registry = Registry(alone=QUICK)
        content = some(80 * CHUNK)
        got = []
        for blob in registry.reading().in_order([registry.blob(content)]):
            for chunk in blob.open():
                got.append(bytes(chunk))
                registry.clock.pass_by(SLOW)
        assert b"".join(got) == content
        assert registry.parts == []

    def test_many_small_blobs_are_fetched_ahead_where_each_is_waited_for(self) -> None:
        registry = Registry(alone=0.1)
        contents = [some(1000 + seed, seed) for seed in range(100)]
        assert list(map(read, registry.reading().in_order(map(registry.blob, contents)))) == contents
        assert len(registry.parts) > 50

    def test_where_that_is_no_faster_it_is_one_connection_again(self) -> None:
        registry = Registry(meets_at=MEETING, ahead=SLOW)
        content = some(400 * CHUNK)
        (found,) = map(read, registry.reading().in_order([registry.blob(content)]))
        assert found == content
        # Tried, for two windows of time; and then once more, after a longer time.
        assert 10 < len(registry.parts) < 120
        assert len(registry.asked) > 1

    def test_what_one_connection_gave_at_first_is_not_what_it_is_held_to(self) -> None:
        # Several give what the one did at first, and four times what it gives after that.
        registry = Registry(meets_at=200, burst=200, ahead=SLOW / 4)
        content = some(500 * CHUNK)
        (found,) = map(read, registry.reading().in_order([registry.blob(content)]))
        assert found == content
        assert sum(end - start for start, end in registry.parts) > 220 * CHUNK

    def test_a_blob_begins_where_it_is_asked_to(self) -> None:
        registry = Registry()
        contents = [some(30 * CHUNK, seed) for seed in range(3)]
        blobs = registry.reading().in_order(map(registry.blob, contents))
        offsets = (CHUNK + 5, 7, 2 * CHUNK)
        found = [read(blob, offset) for blob, offset in zip(blobs, offsets, strict=True)]
        assert found == [content[offset:] for content, offset in zip(contents, offsets, strict=True)]

    def test_what_is_begun_again_is_read_again(self) -> None:
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

    def test_side_by_side_each_comes_whole(self) -> None:
        registry = Registry(meets_at=MEETING)
        contents = {len(content): content for content in (some(40 * CHUNK + seed, seed) for seed in range(6))}
        found: dict[int, bytes] = {}

        def keep(blob: Blob) -> None:
            found[blob.descriptor.size] = read(blob)

        ahead = registry.reading()
        run_each(keep, ahead.concurrently(map(registry.blob, contents.values())), jobs=3, cancelled=threading.Event())
        assert found == contents
        assert registry.parts

    def test_small_blobs_side_by_side_are_fetched_by_the_threads_that_read_them(self) -> None:
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

    def test_an_empty_blob_and_one_without_parts_are_left_as_they_are(self) -> None:
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


class TestWhatComesInTheWay:
    @pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
    def test_is_not_seen(self, fault: Callable[[int, bytes], Iterator[bytes]]) -> None:
        registry = Registry(meets_at=MEETING, fault=fault)
        content = some(90 * CHUNK)
        (found,) = map(read, registry.reading().in_order([registry.blob(content)]))
        assert found == content
        # The one connection goes on where the last byte was that came, and not before. The several may be tried again
        # then, and be found no quicker, as threads have it.
        assert len(registry.asked) in {2, 3}
        assert registry.asked == sorted(set(registry.asked))
        assert registry.asked[1] >= registry.parts[5][0]

    def test_a_registry_that_gives_no_parts_is_asked_for_few(self) -> None:
        registry = Registry(meets_at=MEETING, fault=refuse)
        contents = [some(100 * CHUNK, seed) for seed in range(4)]
        assert list(map(read, registry.reading().in_order(map(registry.blob, contents)))) == contents
        # Some at each of a few tries: as many as were under way when the first was refused, and those that waited.
        assert len(registry.parts) <= 8 * CONNECTIONS
        # The one connection is not given up: this registry would not let another begin in the middle.
        assert registry.asked == [0] * 4

    def test_what_the_one_connection_says_is_what_counts(self) -> None:
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

    def test_a_reader_that_leaves_early_holds_up_nobody(self) -> None:
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

    def test_whoever_waits_is_told_that_all_is_cancelled(self) -> None:
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


def test_connections_that_deliver_together_are_measured_over_all_of_their_segments() -> None:
    clock, segment = Clock(), 4 * limits.MIB
    meter = _ThroughputMeter(clock, CONNECTIONS * segment)
    meter.start_blob()

    def receive(size: int, seconds: float, *, is_ahead: bool) -> None:
        for _ in range(size // CHUNK):
            clock.pass_by(seconds * CHUNK / size)
            meter.record(CHUNK, seconds * CHUNK / size, seconds * CHUNK / size, is_ahead=is_ahead)

    receive(segment, 0.5, is_ahead=False)
    assert meter.is_parallel
    for _ in range(10):
        # The first of four segments arrives as slowly as over one connection, and then the others are there.
        receive(segment, 0.5, is_ahead=True)
        receive(3 * segment, 0.001, is_ahead=True)
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
def test_whatever_is_asked_in_whatever_order_the_bytes_are_right(
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
