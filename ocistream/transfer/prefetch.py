"""Prefetch blobs over parallel connections, and return their bytes in order.

Uses one connection for each blob unless several are measurably faster; falls back to one on any failure.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import CancelledError
from ocistream.streams.memory import allocate_buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob

__all__ = [
    "Prefetcher",
    "Segment",
    "SegmentFetcher",
]

#: What is measured at a time, at the least: seconds, and bytes, or blobs where they are small.
_WINDOW: Final = 0.25
_WINDOW_BYTES: Final = 4 * limits.MIB
_WINDOW_BLOBS: Final = 8
#: What one connection gives is what it gave in the last so many seconds: many give the first bytes sooner.
_RECENT: Final = 0.1
#: The share of a reader's time that it waits for its one connection, from which on others may help.
_WAIT_SHARE: Final = 0.5
#: What one connection gives, in bytes a second, where others are of no use: a segment comes in 5 ms then, and to ask
#: for it takes about as long.
_FAST_RATE: Final = 400 * limits.MIB
#: How many seconds ahead of the one connection the others begin: by then something of theirs has come.
_LEAD_TIME: Final = 0.4
#: How much faster several have to be.
_MIN_SPEEDUP: Final = 1.2
#: So many windows go by before several are tried again, and twice as many after each try that did not help.
_RETRY_WINDOWS: Final = 8
#: So many windows are waited for something to come on the others.
_STARTUP_WINDOWS: Final = 8


class Prefetcher:
    """Reads the blobs of one transfer, several segments at a time where that helps. Safe for several threads."""

    def __init__(
        self,
        connections: int,
        memory: int,
        cancelled: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Fetch ahead on up to so many `connections`, into `memory` bytes in all, a chunk each at the least.

        `clock` gives seconds.
        """
        connections = min(connections, max(1, memory // limits.CHUNK_SIZE))
        size = max(limits.CHUNK_SIZE, memory // connections // limits.CHUNK_SIZE * limits.CHUNK_SIZE)
        self._fetcher = SegmentFetcher(connections, size, cancelled, self._on_failure)
        self._meter = _ThroughputMeter(clock)

    def in_order(self, blobs: Iterable[Blob]) -> Iterator[Blob]:
        """Give the same blobs, each of which is used up, or done without, before the next is asked for."""
        line = _PrefetchQueue(self._fetcher, self._meter, iter(blobs))
        while (blob := line.advance()) is not None:
            yield _with_prefetch(blob, line)

    def concurrently(self, blobs: Iterable[Blob]) -> Iterator[Blob]:
        """Give the same blobs, several of which are read at once, each in a thread of its own."""
        for blob in blobs:
            line = _PrefetchQueue(self._fetcher, self._meter, iter([blob]))
            line.advance()
            yield _with_prefetch(blob, line)

    def close(self) -> None:
        """Fetch nothing more: the blobs are read, or are not to be."""
        self._fetcher.close()

    def _on_failure(self) -> None:
        with self._fetcher.changed:
            self._meter.stop_parallel()


def _with_prefetch(blob: Blob, line: _PrefetchQueue) -> Blob:
    """Give a blob as whoever uses it sees it: what is read of it comes by way of its line."""
    if blob.fetch_range is None or blob.open_at is None or not blob.descriptor.size:
        return blob
    chunks = partial(line.chunks, blob)
    return replace(blob, open=chunks, open_at=chunks, fetch_range=None)


class _PrefetchQueue:
    """Blobs that are read one after the other, and the segments of them that are on their way.

    What is said here of "planned" segments holds under the lock of the lanes.
    """

    def __init__(self, lanes: SegmentFetcher, rate_limits: _ThroughputMeter, blobs: Iterator[Blob]) -> None:
        self._fetcher = lanes
        self._meter = rate_limits
        self._blobs = blobs
        #: The blob that is read, and those after it that were looked at already.
        self._queue: deque[Blob] = deque()
        self._planned: deque[tuple[Blob, Segment]] = deque()
        #: Where the next segment begins: in which blob of the queue, and at which byte of it.
        self._frontier: tuple[int, int] | None = None

    def advance(self) -> Blob | None:
        """Go on to the next blob."""
        with self._fetcher.changed:
            if self._queue:
                self._discard_blob(self._queue.popleft())
                if self._frontier is not None:
                    index, position = self._frontier
                    self._frontier = (index - 1, position) if index else (0, 0)
            if not self._queue and (blob := next(self._blobs, None)) is not None:
                self._queue.append(blob)
            return self._queue[0] if self._queue else None

    def chunks(self, blob: Blob, offset: int = 0) -> Iterator[Chunk]:
        """Read a blob from byte `offset` on, unverified, as its own `open_at` does."""
        position, size = offset, blob.descriptor.size
        self._start_blob(blob, offset)
        try:
            while position < size:
                segment = self._next_planned(blob, position)
                chunks = self._read_segment(segment) if segment is not None else self._read_direct(blob, position)
                with closing(chunks), closing(self._measure(chunks, is_ahead=segment is not None)) as watched:
                    for chunk in watched:
                        position += len(chunk)
                        yield chunk
                        if segment is None:
                            self._start_prefetch(blob, position)
                if segment is None and position < size and not self._is_planned(blob, position):
                    # It has ended without a reason; whoever verifies it will give one.
                    return
        finally:
            with self._fetcher.changed:
                self._meter.readers -= 1
                self._discard_blob(blob)

    def _start_blob(self, blob: Blob, offset: int) -> None:
        """See what is planned of a blob that is about to be read, maybe once more and from elsewhere."""
        with self._fetcher.changed:
            self._meter.start_blob()
            for planned, segment in tuple(self._planned):
                if planned is blob and segment.start < offset:
                    self._fetcher.discard(segment)
                    self._planned.remove((planned, segment))
            if not self._meter.is_parallel:
                self._frontier = None
            elif not any(planned is blob for planned, _ in self._planned):
                self._discard_all()
                self._frontier = (0, offset)
            self._plan()

    # -- the one connection -------------------------------------------------------------------------------

    def _read_direct(self, blob: Blob, position: int) -> Generator[Chunk, None, None]:
        """Read on over one connection, up to where the next planned segment begins."""
        assert blob.open_at is not None, "others are left as they are"  # noqa: S101 - see `_led`
        chunks = blob.open_at(position) if position else blob.open()
        try:
            for chunk in chunks:
                after = position + len(chunk)
                end = self._find_takeover(blob, position, after)
                if end is not None:
                    yield memoryview(chunk)[: end - position]
                    return
                position = after
                yield chunk
        finally:
            getattr(chunks, "close", lambda: None)()

    def _find_takeover(self, blob: Blob, position: int, after: int) -> int | None:
        """Say at which byte from `position` to `after` others go on, if they do.

        The one connection is given up for what has come, and never for what was only asked for: it may be that the
        registry gives no parts, and would not let this one begin in the middle either.
        """
        with self._fetcher.changed:
            while self._is_planned(blob, position) and (segment := self._planned[0][1]).start <= after:
                if segment.filled:
                    return segment.start
                self._planned.popleft()
                self._fetcher.discard(segment)
                self._plan()
            if not self._planned and not self._meter.is_parallel:
                self._frontier = None
        return None

    def _start_prefetch(self, blob: Blob, position: int) -> None:
        """After each chunk of the one connection: have others help, if they may."""
        with self._fetcher.changed:
            if self._meter.is_parallel and not self._planned:
                # This one goes on until something has come on the others, which are given the time for that.
                lead = max(
                    self._fetcher.segment_size, int(self._meter.single_rate * _LEAD_TIME / max(1, self._meter.readers))
                )
                self._frontier = (0, min(position + lead, blob.descriptor.size))
                self._plan()

    # -- the others ---------------------------------------------------------------------------------------

    def _read_segment(self, segment: Segment) -> Generator[Chunk, None, None]:
        """Read a planned segment, as far as it comes; then its buffer serves for another."""
        taken = 0
        while (view := self._fetcher.read(segment, taken, limits.READ_BUFFER)) is not None:
            taken += len(view)
            yield view
        with self._fetcher.changed:
            self._planned.popleft()
            self._fetcher.discard(segment)
            if taken < segment.end - segment.start or not self._meter.is_parallel:
                self._frontier = None
            if taken < segment.end - segment.start:
                self._discard_all()
            self._plan()

    def _is_planned(self, blob: Blob, position: int) -> bool:
        return bool(self._planned) and self._planned[0][0] is blob and self._planned[0][1].start >= position

    def _next_planned(self, blob: Blob, position: int) -> Segment | None:
        """Give the segment that begins at byte `position` of a blob, if there is one."""
        with self._fetcher.changed:
            is_next = self._is_planned(blob, position) and self._planned[0][1].start == position
            return self._planned[0][1] if is_next else None

    def _plan(self) -> None:
        """Have as much fetched as there is room for."""
        most = max(1, self._fetcher.connections // max(1, self._meter.readers))
        # Of a registry that has refused a part meanwhile, no more of them are asked.
        while (
            self._meter.is_parallel
            and self._frontier is not None
            and len(self._planned) < most
            and self._fetcher.has_free_buffer()
        ):
            index, position = self._frontier
            blob = self._queue[index]
            end = min(position + self._fetcher.segment_size, blob.descriptor.size)
            if position < end and blob.fetch_range is not None:
                segment = Segment(blob.fetch_range, position, end)
                self._planned.append((blob, segment))
                self._fetcher.start(segment)
                self._frontier = (index, end)
                continue
            if index + 1 == len(self._queue):
                if (following := next(self._blobs, None)) is None:
                    return
                self._queue.append(following)
            self._frontier = (index + 1, 0)

    def _discard_blob(self, blob: Blob) -> None:
        """Let go of what is planned of a blob that is not read on; of itself nothing more is planned."""
        if self._frontier is not None and self._queue and self._queue[0] is blob and self._frontier[0] == 0:
            self._frontier = (0, blob.descriptor.size)
        while self._planned and self._planned[0][0] is blob:
            self._fetcher.discard(self._planned.popleft()[1])

    def _discard_all(self) -> None:
        while self._planned:
            self._fetcher.discard(self._planned.popleft()[1])

    def _measure(self, chunks: Iterator[Chunk], *, is_ahead: bool) -> Generator[Chunk, None, None]:
        """Pass chunks on, and measure how long they are waited for, and how long their reader takes."""
        clock = self._meter.clock
        asked = clock()
        for chunk in chunks:
            came = clock()
            size = len(chunk)
            yield chunk
            with self._fetcher.changed:
                back = clock()
                self._meter.record(size, came - asked, back - asked, is_ahead=is_ahead)
                asked = back


class _ThroughputMeter:
    """Finds out whether one connection a blob is enough. Times are in seconds, by `clock`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        #: How many blobs are being read.
        self.readers = 0
        self.is_parallel = False
        #: So many more windows may go by until something has come that was fetched ahead.
        self._startup = 0
        #: Bytes a second over one connection each, when others were last tried.
        self.single_rate = 0.0
        #: And over several, where that was not enough more. If one turns out to be slower after all, it is.
        self._parallel_rate = 0.0
        self._recent_rate = self._recent_since = 0.0
        self._recent_bytes = 0
        self._next_pause = _RETRY_WINDOWS
        self._pause = 0
        self._restart()

    def start_blob(self) -> None:
        """Count one more blob that is begun, and read until its reader says otherwise."""
        self.readers += 1
        self._blobs += 1

    def record(self, size: int, waited: float, spent: float, *, is_ahead: bool) -> None:
        """Count bytes that one reader has waited for, of the time that it has spent on them, and judge.

        `is_ahead` says that they were fetched ahead.
        """
        if is_ahead and self._startup:
            self._startup = 0
            self._restart()
        self._bytes += size
        self._waited += waited
        self._spent += spent
        now = self.clock()
        self._recent_bytes += size
        if now - self._recent_since >= _RECENT:
            self._recent_rate = self._recent_bytes / (now - self._recent_since)
            self._recent_since, self._recent_bytes = now, 0
        elapsed = now - self._began
        if elapsed < _WINDOW or (self._bytes < _WINDOW_BYTES and self._blobs < _WINDOW_BLOBS):
            return
        rate = self._bytes / elapsed
        if not self.is_parallel:
            if self._pause and rate * _MIN_SPEEDUP >= self._parallel_rate:
                self._pause -= 1
            elif self._waited >= _WAIT_SHARE * self._spent and rate < _FAST_RATE:
                self.is_parallel = True
                self._startup = _STARTUP_WINDOWS
                self.single_rate = min(rate, self._recent_rate)
        elif self._startup:
            self._startup -= 1
            if not self._startup:
                self.stop_parallel()
        elif rate < _MIN_SPEEDUP * self.single_rate:
            self.stop_parallel()
            self._parallel_rate = rate
        self._restart()

    def stop_parallel(self) -> None:
        """Go back to one connection: others did not help, or are not wanted."""
        if self.is_parallel:
            self.is_parallel = False
            self._pause = self._next_pause
            self._next_pause *= 2
            self._parallel_rate = 0.0
        self._restart()

    def _restart(self) -> None:
        self._began: float = self.clock()
        self._bytes = self._blobs = 0
        self._waited = self._spent = 0.0
        self._recent_since = self._began
        self._recent_bytes = 0


#: Seconds between two looks at whether the transfer was cancelled, while something is waited for.
_POLL_INTERVAL: Final = 0.2


class Segment:
    """Bytes `start` to `end` (not included) of one blob, on their way into a buffer.

    All of it is read and changed under the lock of its `Lanes`, but for the buffer's bytes below `filled`, which stay
    as they are until it is released.
    """

    __slots__ = ("end", "fetch", "filled", "is_awaited", "is_done", "is_dropped", "start", "view")

    def __init__(self, fetch: Callable[[int, memoryview], Generator[int, None, None]], start: int, end: int) -> None:
        """Plan to fetch it by `fetch(start, view)`, which gives how many bytes are there each time that more are."""
        self.fetch = fetch
        self.view: memoryview | None = None
        self.start = start
        self.end = end
        self.filled = 0
        self.is_done = False
        self.is_dropped = False
        #: Somebody waits for more of it.
        self.is_awaited = False


class SegmentFetcher:
    """So many connections as there are `lanes`, and as many buffers of `size` bytes, which are made when first needed.

    `refused` is called, in a thread of theirs, when something came in the way of a segment. Threads are daemons, made
    when there is something for them: a process that is interrupted need not wait for a socket.
    """

    def __init__(self, lanes: int, size: int, cancelled: threading.Event, refused: Callable[[], None]) -> None:
        """Start nothing yet."""
        self.segment_size = size
        self.connections = lanes
        self._cancelled = cancelled
        self._on_failure = refused
        lock = threading.RLock()
        #: For whoever reads; and for the threads, which are not to be woken by every byte.
        self.changed = threading.Condition(lock)
        self._work_available = threading.Condition(lock)
        self._free: list[memoryview] = []
        self._buffer_count = 0
        self._idle = 0
        self._threads = 0
        self._waiting: list[Segment] = []
        self._is_closed = False

    # -- for whoever reads: called with `changed` held ----------------------------------------------------

    def has_free_buffer(self) -> bool:
        """Say whether there is a buffer for another segment."""
        return not self._is_closed and (bool(self._free) or self._buffer_count < self.connections)

    def start(self, segment: Segment) -> None:
        """Give a segment a buffer, and have it fetched as soon as a lane is free. There must be room."""
        if self._free:
            segment.view = self._free.pop()
        else:
            segment.view = allocate_buffer(self.segment_size)
            self._buffer_count += 1
        self._waiting.append(segment)
        if len(self._waiting) > self._idle and self._threads < self.connections:
            self._threads += 1
            threading.Thread(target=self._work, name=f"lane {self._threads}", daemon=True).start()
        self._work_available.notify()

    def discard(self, segment: Segment) -> None:
        """Let go of a segment, whatever has become of it, so that its buffer serves for another."""
        if segment.is_dropped:
            return
        segment.is_dropped = True
        if segment in self._waiting:
            self._waiting.remove(segment)
            segment.is_done = True
        if segment.is_done:
            # Else whoever fills it does it, and until then nobody else may have the buffer.
            self._release(segment)

    def _release(self, segment: Segment) -> None:
        if segment.view is not None:
            self._free.append(segment.view)
            segment.view = None

    # -- for whoever reads: called without it -------------------------------------------------------------

    def read(self, segment: Segment, taken: int, most: int) -> memoryview | None:
        """Wait for more of a segment than the first `taken` bytes, and give up to `most` of them.

        None where there is no more: it is whole, or what failed came in the way.

        Raises:
            CancelledError: the transfer was cancelled meanwhile.
        """
        with self.changed:
            while segment.filled == taken and not segment.is_done:
                # Not `is_set`: this is where a main thread waits, and is told of signals (`cli.signals.Stop`).
                if self._cancelled.wait(0):
                    msg = "cancelled"
                    raise CancelledError(msg)
                segment.is_awaited = True
                self.changed.wait(_POLL_INTERVAL)
            segment.is_awaited = False
            if segment.filled == taken or segment.view is None:
                return None
            return segment.view[taken : min(segment.filled, taken + most)]

    def close(self) -> None:
        """End the threads, each when what it is about breaks off or is there."""
        with self.changed:
            self._is_closed = True
            self._waiting.clear()
            self._work_available.notify_all()

    # -- the threads --------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (segment := self._next()) is not None:
            is_whole = False
            try:
                self._fill(segment)
                is_whole = segment.filled == segment.end - segment.start
            except Exception:  # noqa: BLE001 - it is of no interest: the one connection finds out what is the matter
                is_whole = False
            with self.changed:
                segment.is_done = True
                is_wanted = not segment.is_dropped
                if segment.is_dropped:
                    self._release(segment)
                self.changed.notify_all()
            if is_wanted and not is_whole:
                self._on_failure()

    def _next(self) -> Segment | None:
        with self.changed:
            self._idle += 1
            try:
                while not self._waiting:
                    if self._is_closed or self._cancelled.is_set():
                        self._threads -= 1
                        return None
                    self._work_available.wait(_POLL_INTERVAL)
                return self._waiting.pop(0)
            finally:
                self._idle -= 1

    def _fill(self, segment: Segment) -> None:
        """Fetch a segment, as far as it comes and is wanted."""
        if (view := segment.view) is None:
            # It was dropped while it waited.
            return
        # What is not read to its end is not to wait for the garbage collector to close a socket.
        with closing(segment.fetch(segment.start, view[: segment.end - segment.start])) as steps:
            for filled in steps:
                with self.changed:
                    segment.filled = filled
                    if segment.is_awaited:
                        self.changed.notify_all()
                if segment.is_dropped or self._is_closed or self._cancelled.is_set():
                    return
