"""Parts of blobs that are fetched before they are asked for, into a fixed number of buffers that are used again.

This is the store of them, and the threads that fill it. Which part is fetched when, and how it is read in order, is
`ocistream.transfer.prefetch`'s concern.
"""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING, Final

from ocistream.errors import CancelledError
from ocistream.streams.buffers import allocate_buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["Segment", "SegmentFetcher"]

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
