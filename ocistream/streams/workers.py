"""Run work in threads: one function for many items, or one function in a thread of its own.

The first failure cancels all threads.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from ocistream import notices, open_uploads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["DEFAULT_JOBS", "run_each", "run_in_thread", "wait_for_threads"]

#: How much is done at once. More connections cost memory, and gain little where one line is shared.
DEFAULT_JOBS: Final = 4
#: Seconds that threads are given to clean up behind themselves when one of them has failed, or the user stops all.
_CLEANUP_TIMEOUT = 3.0
#: The same while an upload can still be ended so that the registry keeps what was sent.
_UPLOAD_CLEANUP_TIMEOUT = 10.0
#: Seconds after which the user is told what the process waits for.
_NOTICE_DELAY = 1.0
#: Seconds between two looks at whether one thread has failed while another is waited for.
_POLL_INTERVAL = 0.2

_T = TypeVar("_T")


def run_in_thread(work: Callable[[], _T], cancelled: threading.Event) -> _T:
    """Do some work in a thread of its own and return its result, or raise what it raised.

    An interruption comes out here: it sets `cancelled`, and the work has a few seconds to end in order.
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
        # The work may have ended before the first look, and an interruption have waited for that.
        cancelled.wait(0)
    except BaseException:
        cancelled.set()
        wait_for_threads([thread], cancelled)
        raise
    for failure in failures:
        raise failure
    return results[0]


def run_each(work: Callable[[_T], None], items: Iterable[_T], *, jobs: int, cancelled: threading.Event) -> None:
    """Do some work for each item, in this thread if `jobs` is 1, or else in so many others.

    The first failure ends it all: it sets `cancelled`, at which work under way is to stop, and is raised here.
    """
    if jobs == 1:
        for item in items:
            work(item)
        return
    _Workers(work, iter(items), cancelled).run(jobs)


def wait_for_threads(threads: Sequence[threading.Thread], cancelled: threading.Event) -> None:
    """Let those that notice a cancellation drop what they have begun; who waits for a socket is left to it.

    An upload that can end its request has longer: what the registry answers is where the next run resumes.
    """
    began = time.monotonic()
    for thread in threads:
        while thread.is_alive():
            can_end = open_uploads.can_any_end()
            waited = time.monotonic() - began
            if can_end and waited >= _NOTICE_DELAY:
                notices.notify(
                    f"ending uploads so that they can be resumed (at most {_UPLOAD_CLEANUP_TIMEOUT:.0f} s; "
                    "interrupt again to stop at once)"
                )
            if (left := (_UPLOAD_CLEANUP_TIMEOUT if can_end else _CLEANUP_TIMEOUT) - waited) <= 0:
                return
            _join(thread, min(left, _POLL_INTERVAL), cancelled)


def _join(thread: threading.Thread, seconds: float, cancelled: threading.Event) -> None:
    """Wait for a thread's end, and let an interruption come out behind that."""
    thread.join(seconds)
    # Not in `join`, which it would make believe that the thread has ended (Python 3.11 and 3.12).
    cancelled.wait(0)


class _Workers(Generic[_T]):
    """Threads that share one iterator of work. They are daemons: an interrupted process need not wait for a socket.

    (ThreadPoolExecutor would be waited for at exit, whatever is cancelled.)
    """

    def __init__(self, work: Callable[[_T], None], items: Iterator[_T], cancelled: threading.Event) -> None:
        self._work = work
        self._items = items
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self._failure: BaseException | None = None

    def run(self, jobs: int) -> None:
        threads = [threading.Thread(target=self._loop, daemon=True) for _ in range(jobs)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                # One that is stalled on its socket is not to hold up what another one has to report.
                while thread.is_alive() and self._failure is None:
                    _join(thread, _POLL_INTERVAL, self._cancelled)
            # They may all have been done before the last of them had begun, and an interruption have waited for that.
            self._cancelled.wait(0)
        except BaseException:
            self._cancelled.set()
            wait_for_threads(threads, self._cancelled)
            raise
        if self._failure is not None:
            wait_for_threads(threads, self._cancelled)
            raise self._failure

    def _loop(self) -> None:
        try:
            while not self._cancelled.is_set():
                with self._lock:
                    item = next(self._items, None)
                if item is None:
                    return
                self._work(item)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
            with self._lock:
                # The first failure is the reason; the others are its consequences.
                if self._failure is None:
                    self._failure = error
            self._cancelled.set()
