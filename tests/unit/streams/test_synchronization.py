"""A shared value is created once, and a budget is not exceeded, whichever thread is first."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from ocistream.errors import CancelledError
from ocistream.streams.synchronization import Budget, KeyedLocks, LinkedEvent, OncePerKey, once
from ocistream.streams.workers import run_each

if TYPE_CHECKING:
    from collections.abc import Callable

THREADS = 8
#: Seconds after which a blocked test fails.
TIMEOUT = 60.0


def run_at_once(work: Callable[[int], None]) -> None:
    """Call a function in several threads at the same time."""
    barrier = threading.Barrier(THREADS)

    def begin(number: int) -> None:
        barrier.wait(TIMEOUT)
        work(number)

    run_each(begin, range(THREADS), jobs=THREADS, cancelled=threading.Event())


def test_one_thread_creates_a_value_and_the_others_wait_for_it() -> None:
    created: list[object] = []
    results: list[object] = []

    def create() -> object:
        created.append(object())
        # Give the other threads time to get here.
        threading.Event().wait(0.05)
        return created[-1]

    get = once(create)
    run_at_once(lambda _number: results.append(get()))
    assert len(created) == 1
    assert results == created * THREADS


def test_keys_do_not_wait_for_each_other() -> None:
    both_are_creating = threading.Barrier(2)

    def create(key: str) -> str:
        both_are_creating.wait(TIMEOUT)
        return key.upper()

    values = OncePerKey(create)
    results: list[str] = []
    run_each(lambda key: results.append(values(key)), ["a", "b"], jobs=2, cancelled=threading.Event())
    assert sorted(results) == ["A", "B"]


def test_a_value_that_could_not_be_created_is_created_by_the_next_call() -> None:
    outcomes = iter([ValueError("first"), None])

    def create() -> str:
        if (error := next(outcomes)) is not None:
            raise error
        return "value"

    get = once(create)
    with pytest.raises(ValueError, match="first"):
        get()
    assert get() == "value"


def test_all_threads_get_the_same_lock_for_a_key() -> None:
    locks: KeyedLocks[str] = KeyedLocks()
    found: list[threading.Lock] = []
    run_at_once(lambda _number: found.append(locks["key"]))
    assert len(found) == THREADS
    assert all(lock is found[0] for lock in found)
    assert locks["other"] is not found[0]


def test_threads_together_do_not_exceed_a_budget() -> None:
    budget = Budget(10_000)
    taken = [0] * THREADS

    def take(number: int) -> None:
        while budget.take(3):
            taken[number] += 3

    run_at_once(take)
    assert sum(taken) == 9_999
    assert not budget.take(2)
    assert budget.take(1)
    budget.give_back(10_000)
    assert budget.take(10_000)


def test_a_wait_for_a_budget_ends_when_it_is_cancelled() -> None:
    budget, cancelled = Budget(1), threading.Event()
    with budget.reserve():
        cancelled.set()
        with pytest.raises(CancelledError), budget.reserve(cancelled=cancelled):
            pass
    with budget.reserve(cancelled=cancelled):
        assert not budget.take()


def test_a_linked_event_ends_a_wait_without_a_timeout_when_another_event_is_set() -> None:
    other = threading.Event()
    timer = threading.Timer(0.2, other.set)
    timer.start()
    assert LinkedEvent([other]).wait()
    timer.join()
