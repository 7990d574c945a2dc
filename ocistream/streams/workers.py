"""Worker threads: the only place that starts threads, and the waits for them.

Workers are daemons: a process does not wait for one that is blocked on a socket. Not a ThreadPoolExecutor: at exit
Python waits for its threads, so a stalled socket would delay the exit by a minute.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sized
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from ocistream import notices, process_exit
from ocistream.errors import CancelledError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

#: Number of parallel jobs. More connections cost memory and gain little on one line.
DEFAULT_JOBS: Final = 4
MAX_JOBS: Final = 32
#: Seconds for workers to clean up after a failure or a cancellation; a worker that needs longer is blocked.
_CLEANUP_TIMEOUT: Final = 3.0
#: The same for work that is abandoned at an interruption.
_ABANDON_TIMEOUT: Final = 0.5
#: Seconds before the user is told why the process waits.
_NOTICE_DELAY: Final = 1.0
#: Seconds between two checks whether another thread has failed, or the work was cancelled.
_POLL_INTERVAL: Final = 0.1

_T = TypeVar("_T")


def count_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Task(Generic[_T]):
    """Work in a worker thread, and its result."""

    def __init__(self, work: Callable[[], _T], on_end: Callable[[], None] | None) -> None:
        """Take the work; `start` runs it."""
        self._work = work
        self._on_end = on_end
        self._ended = threading.Event()
        self._results: list[_T] = []
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Do the work in this thread."""
        try:
            self._results.append(self._work())
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
            self._failure = error
        del self._work
        self._ended.set()
        if self._on_end is not None:
            self._on_end()

    @property
    def is_done(self) -> bool:
        """Whether the work has ended."""
        return self._ended.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the work has ended, or `timeout` seconds; return whether it has ended."""
        return self._ended.wait(timeout)

    def result(self) -> _T:
        """Wait for the end; return the result of the work or raise its exception. Call it once."""
        self._ended.wait()
        # The traceback refers to this object: a cycle would keep sockets open until the next garbage collection.
        failure, self._failure = self._failure, None
        try:
            if failure is not None:
                raise failure
        finally:
            del failure
        return self._results[0]


def start(work: Callable[[], _T], name: str = "worker", *, on_end: Callable[[], None] | None = None) -> Task[_T]:
    """Run a function in a worker thread of this name. `on_end` is called there after the work has ended.

    Raises:
        RuntimeError: the system allows no more threads.
    """
    task = Task(work, on_end)
    threading.Thread(target=task.run, name=name, daemon=True).start()
    return task


def run_in_thread(work: Callable[[], _T], cancelled: threading.Event, *, abandons: bool = False) -> _T:
    """Run a function in a worker thread; return its result or raise its exception.

    Ctrl-C is raised here, not in the work: then `cancelled` is set, and the work has a moment to end in order. With
    `abandons` the same holds if another thread sets `cancelled`; otherwise the work is then waited for.

    Raises:
        CancelledError: the work was abandoned.
    """
    task = start(work)
    try:
        while not task.wait(_POLL_INTERVAL if abandons else None):
            if cancelled.is_set():
                wait_to_settle([task], _ABANDON_TIMEOUT)
                if not task.is_done:
                    raise CancelledError("cancelled")
    except KeyboardInterrupt:
        cancelled.set()
        wait_to_settle([task], _ABANDON_TIMEOUT)
        raise
    return task.result()


def run_each(
    work: Callable[[_T], None],
    items: Iterable[_T],
    *,
    jobs: int,
    cancelled: threading.Event | None,
    sets_cancelled: bool = True,
) -> None:
    """Call a function for each item: in this thread if there is one job or one item, else in up to `jobs` threads.

    The first failure stops the other threads, and is raised here. With `sets_cancelled` it also sets `cancelled`, so
    that threads stop that wait for a server. There are never more threads than items, except for an iterator, whose
    length is unknown.

    Raises:
        CancelledError: `cancelled` was set, and items may be left.
    """
    if isinstance(items, Sized):
        jobs = min(jobs, len(items))
    if jobs <= 1:
        for item in items:
            if cancelled is not None and cancelled.is_set():
                raise CancelledError("cancelled")
            work(item)
        return
    _SharedItems(work, iter(items), cancelled, sets_cancelled=sets_cancelled).run(jobs)


def wait_to_settle(tasks: Sequence[Task[_T]], timeout: float = _CLEANUP_TIMEOUT) -> None:
    """Wait a moment for cancelled tasks to clean up; do not wait for tasks that are blocked on a socket.

    An upload that can end its request has longer: the registry's response says where the next run resumes.
    """
    started_at = busy_at = time.monotonic()
    while pending := [task for task in tasks if not task.is_done]:
        now = time.monotonic()
        if now - started_at < process_exit.settle_timeout():
            busy_at = now
        elif now - busy_at >= timeout:
            return
        if now - started_at >= _NOTICE_DELAY and process_exit.can_any_end():
            notices.notify(
                "finishing open requests, so that the uploads can resume (at most "
                f"{process_exit.END_REQUEST_TIMEOUT:.0f} s; interrupt again to stop immediately)"
            )
        pending[0].wait(_POLL_INTERVAL)


class _SharedItems(Generic[_T]):
    """Items that several workers take from one iterator."""

    def __init__(
        self,
        work: Callable[[_T], None],
        items: Iterator[_T],
        cancelled: threading.Event | None,
        *,
        sets_cancelled: bool,
    ) -> None:
        self._work = work
        self._items = items
        self._is_cancelled = cancelled.is_set if cancelled is not None else lambda: False
        self._cancel = cancelled.set if cancelled is not None and sets_cancelled else lambda: None
        self._is_exhausted = False
        self._lock = threading.Lock()
        #: In the order in which they happened: the first failure is the reason, the others are its consequences.
        self._failures: list[BaseException] = []

    def run(self, jobs: int) -> None:
        tasks: list[Task[None]] = []
        try:
            for _ in range(jobs):
                tasks.append(start(self._loop))  # noqa: PERF401 - if one cannot start, the others are stopped
        except RuntimeError as error:
            self._failures.append(error)
            self._cancel()
            wait_to_settle(tasks)
            raise
        for task in tasks:
            # Stop waiting for a stalled worker when another one has failed.
            while not task.wait(_POLL_INTERVAL) and not self._failures and not self._is_cancelled():
                pass
        wait_to_settle(tasks)
        if self._failures:
            raise self._failures[0]
        if not self._is_exhausted or not all(task.is_done for task in tasks):
            raise CancelledError("cancelled")

    def _loop(self) -> None:
        try:
            while not self._failures and not self._is_cancelled():
                with self._lock:
                    item = next(self._items, None)
                if item is None:
                    self._is_exhausted = True
                    return
                self._work(item)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
            # Without the lock: the next item may take long to come.
            self._failures.append(error)
            self._cancel()
