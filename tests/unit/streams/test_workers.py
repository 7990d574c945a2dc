"""Work in threads: what cancels it, what a failure cancels, and that no item is skipped without an error."""

from __future__ import annotations

import itertools
import threading

import pytest

from ocistream import notices, process_exit
from ocistream.errors import CancelledError, NetworkError
from ocistream.streams import workers
from ocistream.streams.workers import run_each, run_in_thread, start, wait_to_settle

#: Seconds after which a blocked test fails.
PATIENCE = 60.0
#: Seconds in which an idle thread must have stopped.
TIME_TO_STOP = 10.0


@pytest.mark.parametrize("jobs", [1, 3])
def test_items_that_are_left_after_a_cancellation_are_an_error(jobs: int) -> None:
    cancelled = threading.Event()
    done: list[int] = []

    def work(item: int) -> None:
        done.append(item)
        if item == 4:
            cancelled.set()
        elif item > 4:
            cancelled.wait(PATIENCE)

    with pytest.raises(CancelledError):
        run_each(work, range(100), jobs=jobs, cancelled=cancelled)
    assert set(done) >= {0, 1, 2, 3, 4}
    # Each of the other threads may have taken one more item.
    assert len(done) <= 4 + jobs


@pytest.mark.parametrize("jobs", [1, 3])
def test_cancelled_work_does_nothing_and_raises(jobs: int) -> None:
    cancelled = threading.Event()
    cancelled.set()
    done: list[int] = []
    with pytest.raises(CancelledError):
        run_each(done.append, range(3), jobs=jobs, cancelled=cancelled)
    assert done == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_cancellation_after_the_last_item_is_not_an_error(jobs: int) -> None:
    """With two threads, one has found that no item is left before the other cancels."""
    cancelled = threading.Event()
    both = threading.Barrier(jobs)
    threads: dict[int, threading.Thread] = {}

    def work(item: int) -> None:
        threads[item] = threading.current_thread()
        both.wait(PATIENCE)
        if item == 1:
            if jobs == 2:
                threads[0].join(PATIENCE)
            cancelled.set()

    run_each(work, [0, 1], jobs=jobs, cancelled=cancelled)
    assert set(threads) == {0, 1}
    assert cancelled.is_set()


@pytest.mark.parametrize("jobs", [1, 3, 8])
@pytest.mark.parametrize("sized", [False, True])
def test_all_items_are_done_once_and_nothing_is_cancelled(jobs: int, sized: bool) -> None:
    cancelled = threading.Event()
    done: list[int] = []
    run_each(done.append, range(5) if sized else iter(range(5)), jobs=jobs, cancelled=cancelled)
    assert sorted(done) == [0, 1, 2, 3, 4]
    assert not cancelled.is_set()


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_failure_leaves_the_event_unset_if_requested(jobs: int) -> None:
    cancelled = threading.Event()

    def work(item: int) -> None:
        if item == 2:
            raise NetworkError("item 2")

    with pytest.raises(NetworkError, match="item 2"):
        run_each(work, range(100), jobs=jobs, cancelled=cancelled, sets_cancelled=False)
    assert not cancelled.is_set()


@pytest.mark.parametrize("sets_cancelled", [False, True])
def test_a_failure_stops_the_other_threads(sets_cancelled: bool) -> None:
    cancelled, over = threading.Event(), threading.Event()
    all_started = threading.Barrier(3)
    threads: set[threading.Thread] = set()

    def work(item: int) -> None:
        if over.is_set():
            raise NetworkError("the test is over")
        if item < 3:
            threads.add(threading.current_thread())
            all_started.wait(PATIENCE)
        if item == 2:
            raise NetworkError("item 2")

    # The items never end, so only the failure ends the threads.
    with pytest.raises(NetworkError, match="item 2"):
        run_each(work, itertools.count(), jobs=3, cancelled=cancelled, sets_cancelled=sets_cancelled)
    for thread in threads:
        thread.join(TIME_TO_STOP)
    alive = [thread for thread in threads if thread.is_alive()]
    over.set()
    assert len(threads) == 3
    assert alive == []
    assert cancelled.is_set() == sets_cancelled


class TestOneFunction:
    def test_the_caller_gets_the_result_or_the_failure(self) -> None:
        cancelled = threading.Event()
        assert run_in_thread(threading.current_thread, cancelled) is not threading.current_thread()

        def fail() -> None:
            raise NetworkError("reason")

        with pytest.raises(NetworkError, match="reason"):
            run_in_thread(fail, cancelled)
        assert not cancelled.is_set()

    def test_cancelled_work_is_waited_for(self) -> None:
        cancelled = threading.Event()

        def work() -> str:
            cancelled.set()
            threading.Event().wait(0.5)
            return "ended"

        assert run_in_thread(work, cancelled) == "ended"

    def test_work_that_may_be_abandoned_is_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workers, "_ABANDON_TIMEOUT", 0.05)
        process_exit.reset()
        cancelled, released = threading.Event(), threading.Event()

        def work() -> None:
            cancelled.set()
            released.wait(PATIENCE)

        with pytest.raises(CancelledError):
            run_in_thread(work, cancelled, abandons=True)
        released.set()


@pytest.mark.parametrize("can_end", [True, False])
def test_blocked_work_is_abandoned_later_if_an_upload_can_be_ended(
    monkeypatch: pytest.MonkeyPatch, can_end: bool
) -> None:
    said: list[str] = []
    notices.set_listener(lambda message, *, level: said.append(message) if level == 0 else None)
    monkeypatch.setattr(workers, "_NOTICE_DELAY", 0.2)
    monkeypatch.setattr(process_exit, "END_REQUEST_TIMEOUT", 0.6)
    monkeypatch.setattr(process_exit, "_SETTLE_TIMEOUT", 0.1)
    process_exit.reset()
    upload = process_exit.OpenUpload("registry.test", lambda: True, can_end=lambda: can_end)
    released = threading.Event()
    task = start(lambda: released.wait(PATIENCE))
    wait_to_settle([task], 0.05)
    assert not task.is_done
    released.set()
    upload.remove()
    assert bool(said) == can_end
