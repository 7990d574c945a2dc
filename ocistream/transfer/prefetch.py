"""Prefetch blobs over parallel connections, and return their bytes in order.

Each blob is read over one connection, *the one connection*, unless several are measurably faster. Then the blob is
fetched in segments, over *the others*. After any failure the one connection is used again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.streams.chunks import closing_chunks
from ocistream.streams.memory import allocate_buffer
from ocistream.streams.synchronization import wait_until
from ocistream.streams.workers import start
from ocistream.transfer.interfaces import RecoverableBlob

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob

#: Seconds of one measurement, its window, at least; it also takes the bytes or blobs of `limits`.
_WINDOW: Final = 0.25
#: Seconds before the end of a window in which the rate of one connection is measured. Servers that limit a connection
#: often send the first seconds' bytes at once (nginx's limit_rate does).
_RECENT: Final = 0.1
#: Others may help once a reader waits this share of its time for its one connection.
_WAIT_SHARE: Final = 0.5
#: Above this rate of one connection, in bytes a second, others are of no use: to try them costs more than they save. A
#: pull over TLS on loopback waits for the processor, not for the network.
_FAST_RATE: Final = 200 * limits.MIB
#: How many seconds ahead of the one connection the others begin, so that some of their bytes have arrived by then.
_LEAD_TIME: Final = 0.4
#: How much faster several connections must be.
_MIN_SPEEDUP: Final = 1.2
#: Windows until several connections are tried again; twice as many after each try that did not help.
_RETRY_WINDOWS: Final = 8
#: Windows to wait for the first bytes of the other connections.
_STARTUP_WINDOWS: Final = 8
#: A segment has this multiple of its share of the memory: on average less than half of it waits for the reader. A
#: request costs a registry milliseconds (docker-registry 2.8 reads at least 4 MiB), so segments should be large.
_SEGMENT_SHARES: Final = 2


class Prefetcher:
    """Reads the blobs of one transfer, several segments at a time where that is faster. Safe for several threads."""

    def __init__(
        self,
        connections: int,
        memory: int,
        cancelled: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prefetch over up to `connections`, into `memory` bytes in total, at least one chunk for each.

        `clock` returns seconds.
        """
        blocks = max(1, memory // limits.CHUNK_SIZE)
        self._fetcher = SegmentFetcher(min(connections, blocks), blocks, cancelled, self._on_failure)
        self._meter = _ThroughputMeter(clock, self._fetcher.connections * self._fetcher.segment_size)

    def in_order(self, blobs: Iterable[Blob]) -> Iterator[Blob]:
        """Yield the same blobs; each must be used up or abandoned before the next one is requested."""
        queue = _PrefetchQueue(self._fetcher, self._meter, iter(blobs))
        while (blob := queue.advance()) is not None:
            yield _with_prefetch(blob, queue)

    def concurrently(self, blobs: Iterable[Blob]) -> Iterator[Blob]:
        """Yield the same blobs, of which several may be read at once, each in a thread of its own."""
        for blob in blobs:
            if blob.descriptor.size <= self._fetcher.segment_size:
                # The thread that reads the blob would only wait for another thread that fetches it.
                yield blob
                continue
            queue = _PrefetchQueue(self._fetcher, self._meter, iter([blob]))
            queue.advance()
            yield _with_prefetch(blob, queue)

    def close(self) -> None:
        """Stop prefetching: the blobs were read, or are not needed."""
        self._fetcher.close()

    def _on_failure(self) -> None:
        with self._fetcher.changed:
            self._meter.stop_parallel()


def _with_prefetch(blob: Blob, queue: _PrefetchQueue) -> Blob:
    """Return the blob with an `open` that reads through the queue."""
    if not isinstance(blob, RecoverableBlob) or blob.fetch_range is None or not blob.descriptor.size:
        return blob
    return replace(blob, open=partial(queue.chunks, blob), fetch_range=None)


class _PrefetchQueue:
    """Blobs that are read one after the other, and their planned segments.

    Methods that change the plan run under the lock of the fetcher.
    """

    def __init__(self, fetcher: SegmentFetcher, meter: _ThroughputMeter, blobs: Iterator[Blob]) -> None:
        self._fetcher = fetcher
        self._meter = meter
        self._blobs = blobs
        #: The blob that is read, and following blobs that were already taken from the iterator.
        self._queue: deque[Blob] = deque()
        #: Segments that are fetched or wait for a connection, in the order in which they are read.
        self._planned: deque[tuple[Blob, Segment]] = deque()
        #: Digests of the blobs that are read through this queue.
        self._being_read: set[str] = set()
        #: Where the next segment begins: index of the blob in the queue, and byte offset.
        self._frontier: tuple[int, int] | None = None

    def advance(self) -> Blob | None:
        """Continue with the next blob, and return it."""
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
        """Read a blob from byte `offset` on, unverified, as its own `open` does.

        A second reader of the same blob, such as one of several destinations that restarts, gets no prefetched bytes:
        the plan follows the first one.
        """
        with self._fetcher.changed:
            is_second = blob.descriptor.digest in self._being_read
            self._being_read.add(blob.descriptor.digest)
        if is_second:
            yield from blob.open(offset)
            return
        position, size, clock = offset, blob.descriptor.size, self._meter.clock
        self._start_blob(blob, offset)
        try:
            while position < size:
                segment = self._next_planned(blob, position)
                chunks = self._read_segment(segment) if segment is not None else blob.open(position)
                with closing_chunks(chunks):
                    requested_at = clock()
                    for chunk in chunks:
                        arrived_at, takeover = clock(), None
                        if segment is None:
                            takeover = self._find_takeover(blob, position + len(chunk))
                        # The one connection ends where the first segment that has bytes begins.
                        piece = chunk if takeover is None else memoryview(chunk)[: takeover - position]
                        piece_size = len(piece)
                        position += piece_size
                        yield piece
                        if segment is None:
                            self._start_prefetch(blob, position)
                        requested_at = self._record(
                            piece_size, requested_at, arrived_at, is_prefetched=segment is not None
                        )
                        if takeover is not None:
                            break
                if segment is None and position < size and not self._is_planned(blob):
                    # The blob ended early without an error; verification will report it.
                    return
        finally:
            with self._fetcher.changed:
                self._being_read.discard(blob.descriptor.digest)
                self._meter.readers -= 1
                self._discard_blob(blob)

    def _start_blob(self, blob: Blob, offset: int) -> None:
        """Adjust the plan to a blob that is about to be read, perhaps again and from another offset."""
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

    def _find_takeover(self, blob: Blob, after: int) -> int | None:
        """Return the byte offset up to `after` at which other connections take over, if they do.

        The one connection is closed only once bytes of another have arrived, not when they are requested. The registry
        may refuse ranges, and then this connection could not start again in the middle.
        """
        with self._fetcher.changed:
            while self._is_planned(blob) and (segment := self._planned[0][1]).start <= after:
                if segment.filled:
                    return segment.start
                self._planned.popleft()
                self._fetcher.discard(segment)
                self._plan()
            if not self._planned and not self._meter.is_parallel:
                self._frontier = None
        return None

    def _start_prefetch(self, blob: Blob, position: int) -> None:
        """Start other connections if they may help; called after each chunk of the one connection."""
        with self._fetcher.changed:
            if self._meter.is_parallel and not self._planned:
                # This connection continues until the others have sent something, and they get time for that.
                lead = max(
                    self._fetcher.segment_size, int(self._meter.single_rate * _LEAD_TIME / max(1, self._meter.readers))
                )
                self._frontier = (0, min(position + lead, blob.descriptor.size))
                self._plan()

    # -- the other connections -----------------------------------------------------------------------------

    def _read_segment(self, segment: Segment) -> Generator[Chunk, None, None]:
        """Read a planned segment as far as it arrives, then free its memory for another."""
        taken = 0
        while (view := self._fetcher.read(segment, taken)) is not None:
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

    def _is_planned(self, blob: Blob) -> bool:
        return bool(self._planned) and self._planned[0][0] is blob

    def _next_planned(self, blob: Blob, position: int) -> Segment | None:
        """Return the segment that begins at byte `position` of a blob, if one is planned."""
        with self._fetcher.changed:
            is_next = self._is_planned(blob) and self._planned[0][1].start == position
            return self._planned[0][1] if is_next else None

    def _plan(self) -> None:
        """Start fetching as many segments as fit into memory."""
        readers = max(1, self._meter.readers)
        max_segments = max(1, self._fetcher.connections // readers)
        # No more ranges are requested from a registry that has refused one.
        while (
            self._meter.is_parallel
            and self._frontier is not None
            and len(self._planned) < max_segments
            and self._fetcher.can_start()
        ):
            index, position = self._frontier
            blob = self._queue[index]
            # Several readers have fewer segments each, so less of each segment waits.
            end = min(position + self._fetcher.segment_size * readers, blob.descriptor.size)
            if position < end and isinstance(blob, RecoverableBlob) and blob.fetch_range is not None:
                segment = Segment(blob.fetch_range, position, end)
                self._planned.append((blob, segment))
                self._fetcher.start(segment)
                self._frontier = (index, end)
                continue
            if index + 1 == len(self._queue):
                if (next_blob := next(self._blobs, None)) is None:
                    return
                self._queue.append(next_blob)
            self._frontier = (index + 1, 0)

    def _discard_blob(self, blob: Blob) -> None:
        """Discard the planned segments of a blob that is not read further, and plan no more of it."""
        if self._frontier is not None and self._queue and self._queue[0] is blob and self._frontier[0] == 0:
            self._frontier = (0, blob.descriptor.size)
        while self._planned and self._planned[0][0] is blob:
            self._fetcher.discard(self._planned.popleft()[1])

    def _discard_all(self) -> None:
        while self._planned:
            self._fetcher.discard(self._planned.popleft()[1])

    def _record(self, size: int, requested_at: float, arrived_at: float, *, is_prefetched: bool) -> float:
        """Record the time that was spent waiting for a chunk and using it; return the time now."""
        with self._fetcher.changed:
            now = self._meter.clock()
            self._meter.record(size, arrived_at - requested_at, now - requested_at, is_prefetched=is_prefetched)
            return now


class _ThroughputMeter:
    """Decides whether one connection for each blob is enough. Times are in seconds, by `clock`.

    Several connections that begin together end together: a reader gets the bytes of the first one at its rate, and then
    all others at once. So their rate is measured over `round_bytes`, the segments of all connections.
    """

    def __init__(self, clock: Callable[[], float], round_bytes: int) -> None:
        self.clock = clock
        self._round_bytes = round_bytes
        #: How many blobs are being read.
        self.readers = 0
        #: Whether several connections are used for each blob.
        self.is_parallel = False
        #: Windows left to wait for the first prefetched bytes.
        self._startup = 0
        #: Bytes a second over one connection for each blob, when several were last tried.
        self.single_rate = 0.0
        #: Bytes a second over several connections, if they were too slow. They are tried again if one is slower later.
        self._parallel_rate = 0.0
        #: The rate of the last `_RECENT` seconds, and what is measured for the next one.
        self._recent_rate = self._recent_since = 0.0
        self._recent_bytes = 0
        #: Windows left until several connections are tried again, and their number after the next try that fails.
        self._pause = 0
        self._next_pause = _RETRY_WINDOWS
        self._restart_window()

    def start_blob(self) -> None:
        """Count one more blob that is being read, until its reader decrements `readers`."""
        self.readers += 1
        self._blobs += 1

    def record(self, size: int, waited: float, spent: float, *, is_prefetched: bool) -> None:
        """Count `size` bytes that a reader got, and at the end of a window decide how many connections are used.

        `waited` is how long the reader waited for the bytes, `spent` how long it waited for and used them.
        """
        if is_prefetched and self._startup:
            self._startup = 0
            self._restart_window()
        self._bytes += size
        self._waited += waited
        self._spent += spent
        now = self.clock()
        self._recent_bytes += size
        if now - self._recent_since >= _RECENT:
            self._recent_rate = self._recent_bytes / (now - self._recent_since)
            self._recent_since, self._recent_bytes = now, 0
        elapsed = now - self._began
        min_bytes = self._round_bytes if self.is_parallel and not self._startup else limits.PREFETCH_WINDOW_SIZE
        if elapsed < _WINDOW or (self._bytes < min_bytes and self._blobs < limits.PREFETCH_WINDOW_BLOBS):
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
        self._restart_window()

    def stop_parallel(self) -> None:
        """Return to one connection: others did not help, or the registry refused them."""
        if self.is_parallel:
            self.is_parallel = False
            self._pause = self._next_pause
            self._next_pause *= 2
            self._parallel_rate = 0.0
        self._restart_window()

    def _restart_window(self) -> None:
        self._began: float = self.clock()
        self._bytes = self._blobs = 0
        self._waited = self._spent = 0.0
        self._recent_since = self._began
        self._recent_bytes = 0


@dataclass(eq=False, slots=True)
class Segment:
    """Bytes `start` to `end` (excluded) of one blob, on their way through blocks of memory.

    All fields are read and changed under the lock of the `SegmentFetcher`. Only bytes that were fetched may be read
    without it: they stay unchanged until their block is released. `fetch(start, end, blocks)` yields the number of
    bytes of each read.
    """

    fetch: Callable[[int, int, Iterator[memoryview]], Generator[int, None, None]]
    start: int
    end: int
    #: Blocks whose bytes are not used up, in order.
    blocks: deque[memoryview] = field(default_factory=deque)
    #: Bytes in blocks that were released.
    released: int = 0
    #: Bytes that were fetched.
    filled: int = 0
    #: Whether no thread fetches it any more: it is complete, has failed, or was discarded before it began.
    is_done: bool = False
    #: Whether nothing will read it.
    is_discarded: bool = False


class SegmentFetcher:
    """Fetches segments over parallel connections into blocks of memory, which are allocated when first needed.

    A segment takes blocks as its bytes arrive, and the reader frees each block that it has used. A free block is
    reserved for each segment that has none, so that every segment can continue.

    `on_failure` is called, in a worker thread, when a segment could not be fetched. Workers start when needed.
    """

    def __init__(
        self, connections: int, blocks: int, cancelled: threading.Event, on_failure: Callable[[], None]
    ) -> None:
        """Use up to `connections`, and as many blocks of `limits.CHUNK_SIZE` bytes. Start no thread yet."""
        self.segment_size = _SEGMENT_SHARES * (blocks // connections) * limits.CHUNK_SIZE
        self.connections = connections
        self._cancelled = cancelled
        self._on_failure = on_failure
        #: Readers wait for bytes, idle workers for segments, and other workers for blocks.
        self.changed = threading.Condition()
        self._free: list[memoryview] = []
        #: How many blocks are free or not allocated yet.
        self._unused = blocks
        self._workers = 0
        #: Segments that wait for a connection.
        self._waiting: list[Segment] = []
        #: Segments that are not done, also those that wait for a connection.
        self._unfinished: list[Segment] = []
        self._is_closed = False

    # -- for readers: called with `changed` held -------------------------------------------------------------

    def can_start(self) -> bool:
        """Return whether there is memory for another segment."""
        return not self._is_closed and self._has_spare_block()

    def start(self, segment: Segment) -> None:
        """Fetch a segment as soon as a connection is free. `can_start` must be true."""
        self._waiting.append(segment)
        self._unfinished.append(segment)
        if self._workers < self.connections:
            self._workers += 1
            start(self._work, "prefetch")
        self.changed.notify_all()

    def discard(self, segment: Segment) -> None:
        """Discard a segment in any state, so that its memory is free for others."""
        if segment.is_discarded:
            return
        segment.is_discarded = True
        if segment in self._waiting:
            self._waiting.remove(segment)
            self._unfinished.remove(segment)
            segment.is_done = True
        if segment.is_done:
            # Otherwise the thread that fills the blocks frees them; until then no other segment may use them.
            self._release_all(segment)
        self.changed.notify_all()

    def _has_spare_block(self) -> bool:
        """Return whether there are more blocks than are reserved."""
        return self._unused > sum(not segment.blocks for segment in self._unfinished)

    def _release_first(self, segment: Segment) -> None:
        self._free.append(segment.blocks.popleft())
        self._unused += 1

    def _release_all(self, segment: Segment) -> None:
        while segment.blocks:
            self._release_first(segment)

    # -- for readers: called without `changed` ---------------------------------------------------------------

    def read(self, segment: Segment, taken: int) -> memoryview | None:
        """Wait for more of a segment than its first `taken` bytes, whose blocks are freed, and return a part of it.

        Return None if the segment is complete, or failed.

        Raises:
            CancelledError: the transfer was cancelled.
        """
        with self.changed:
            if taken - segment.released == limits.CHUNK_SIZE:
                self._release_first(segment)
                segment.released = taken
                self.changed.notify_all()
            wait_until(
                lambda seconds: self.changed.wait_for(lambda: segment.filled != taken or segment.is_done, seconds),
                self._cancelled,
            )
            if segment.filled == taken or not segment.blocks:
                return None
            return segment.blocks[0][taken - segment.released : segment.filled - segment.released]

    def close(self) -> None:
        """End the threads, each at its next bytes or failure."""
        with self.changed:
            self._is_closed = True
            self._waiting.clear()
            self.changed.notify_all()

    # -- the threads --------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (segment := self._next_segment()) is not None:
            is_complete = False
            try:
                self._fill(segment)
                is_complete = segment.filled == segment.end - segment.start
            except Exception:  # noqa: BLE001 - the one connection will meet and report the cause
                is_complete = False
            with self.changed:
                segment.is_done = True
                self._unfinished.remove(segment)
                is_wanted = not segment.is_discarded
                if segment.is_discarded:
                    self._release_all(segment)
                self.changed.notify_all()
            if is_wanted and not is_complete:
                self._on_failure()

    def _next_segment(self) -> Segment | None:
        """Wait for a segment to fetch; return None once the fetcher is closed."""
        with self.changed:
            self.changed.wait_for(lambda: self._waiting or self._is_closed)
            return self._waiting.pop(0) if self._waiting and not self._cancelled.is_set() else None

    def _fill(self, segment: Segment) -> None:
        """Fetch a segment, as far as it arrives and is wanted."""
        # Close an unfinished response here: its socket should not wait for the garbage collector.
        with closing(segment.fetch(segment.start, segment.end, self._take_blocks(segment))) as counts:
            for count in counts:
                with self.changed:
                    segment.filled += count
                    self.changed.notify_all()
                # `is_set` of a command's event also asks the kernel for signals; the reader does that for each chunk.
                if segment.is_discarded or self._is_closed or self._cancelled.wait(0):
                    return

    def _take_blocks(self, segment: Segment) -> Iterator[memoryview]:
        """Yield blocks for a segment as they become free, until it is no longer wanted."""
        while True:
            with self.changed:
                while segment.blocks and not (self._has_spare_block() or segment.is_discarded or self._is_closed):
                    self.changed.wait()
                if segment.is_discarded or self._is_closed:
                    return
                self._unused -= 1
                block = self._free.pop() if self._free else allocate_buffer(limits.CHUNK_SIZE)
                segment.blocks.append(block)
            yield block
