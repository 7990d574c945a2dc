"""The parallel ordered stream: a blob, and those after it, over several connections, given out in order.

It begins with one connection a blob, which is all that a fast registry needs: each further request costs it
milliseconds. Where that is mostly waited for, what comes next is fetched in segments by others as well; and if that is
no faster, it is one again. What comes in the way of a segment ends this and is seen by nobody: the one connection goes
on at the last byte that came, and what it says of a failure is what counts.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.transfer.prefetch_buffers import Segment, SegmentFetcher

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator, Iterable, Iterator

    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob

__all__ = ["Prefetcher"]

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
