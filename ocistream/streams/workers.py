"""Run work in threads: one function for many items, or one function in a thread of its own.

The first failure cancels all threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sized
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from ocistream import notices, open_uploads
from ocistream.errors import CancelledError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["DEFAULT_JOBS", "run_each", "run_in_thread", "wait_for_threads"]

#: Number of parallel jobs. More connections cost memory and gain little on one line.
DEFAULT_JOBS: Final = 4
#: Seconds for threads to clean up after a failure or an interruption.
_CLEANUP_TIMEOUT = 3.0
#: The same while an upload can be ended so that the registry keeps the bytes that it has.
_UPLOAD_CLEANUP_TIMEOUT = 10.0
#: Seconds before the user is told why the process waits.
_NOTICE_DELAY = 1.0
#: Seconds between two checks whether another thread has failed.
_POLL_INTERVAL = 0.2

_T = TypeVar("_T")


def run_in_thread(work: Callable[[], _T], cancelled: threading.Event) -> _T:
    """Run a function in a thread of its own, and return its result or raise its exception.

    An interruption is raised here: it sets `cancelled`, and the function has a few seconds to end in order.
    """
    results: list[_T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
        while thread.is_alive():
            _join(thread, _POLL_INTERVAL, cancelled)
        # The thread may have ended before the first check: raise an interruption that waits for this call.
        cancelled.wait(0)
    except BaseException:
        cancelled.set()
        wait_for_threads([thread], cancelled)
        raise
    for failure in failures:
        raise failure
    return results[0]


def run_each(
    work: Callable[[_T], None],
    items: Iterable[_T],
    *,
    jobs: int,
    cancelled: threading.Event,
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
            if cancelled.is_set():
                raise CancelledError("cancelled")
            work(item)
        return
    _Workers(work, iter(items), cancelled, sets_cancelled=sets_cancelled).run(jobs)


def wait_for_threads(threads: Sequence[threading.Thread], cancelled: threading.Event) -> None:
    """Wait a few seconds for cancelled threads to clean up; do not wait for threads that are blocked on a socket.

    An upload that can end its request has longer: the registry's response says where the next run resumes.
    """
    started_at = time.monotonic()
    for thread in threads:
        while thread.is_alive():
            can_end = open_uploads.can_any_end()
            waited = time.monotonic() - started_at
            if can_end and waited >= _NOTICE_DELAY:
                notices.notify(
                    f"ending uploads so that they can be resumed (at most {_UPLOAD_CLEANUP_TIMEOUT:.0f} s; "
                    "interrupt again to stop at once)"
                )
            if (remaining := (_UPLOAD_CLEANUP_TIMEOUT if can_end else _CLEANUP_TIMEOUT) - waited) <= 0:
                return
            _join(thread, min(remaining, _POLL_INTERVAL), cancelled)


def _join(thread: threading.Thread, seconds: float, cancelled: threading.Event) -> None:
    """Wait for the end of a thread, then raise an interruption if there was one."""
    thread.join(seconds)
    # Not during `join`: the exception would make it treat the thread as ended (Python 3.11 and 3.12).
    cancelled.wait(0)


class _Workers(Generic[_T]):
    """Threads that share one iterator of items.

    They are daemons, so that an interrupted process does not wait for a socket. Not a ThreadPoolExecutor: at exit
    Python waits for its threads, even if they are cancelled, so a stalled socket would delay Ctrl-C by a minute.
    """

    def __init__(
        self, work: Callable[[_T], None], items: Iterator[_T], cancelled: threading.Event, *, sets_cancelled: bool
    ) -> None:
        self._work = work
        self._items = items
        self._cancelled = cancelled
        self._sets_cancelled = sets_cancelled
        self._is_exhausted = False
        self._lock = threading.Lock()
        self._failure: BaseException | None = None

    def run(self, jobs: int) -> None:
        threads = [threading.Thread(target=self._loop, daemon=True) for _ in range(jobs)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                # Stop waiting for a stalled thread when another one has failed.
                while thread.is_alive() and self._failure is None:
                    _join(thread, _POLL_INTERVAL, self._cancelled)
            # All threads may have ended before the loop: raise an interruption that waits for this call.
            self._cancelled.wait(0)
        except BaseException:
            self._cancelled.set()
            wait_for_threads(threads, self._cancelled)
            raise
        if self._failure is not None:
            wait_for_threads(threads, self._cancelled)
            raise self._failure
        if not self._is_exhausted:
            raise CancelledError("cancelled")

    def _loop(self) -> None:
        try:
            while self._failure is None and not self._cancelled.is_set():
                with self._lock:
                    item = next(self._items, None)
                if item is None:
                    self._is_exhausted = True
                    return
                self._work(item)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
            with self._lock:
                # The first failure is the reason; the others are its consequences.
                if self._failure is None:
                    self._failure = error
            if self._sets_cancelled:
                self._cancelled.set()
