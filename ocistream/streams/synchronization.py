"""What threads share: values that are created once, locks by key, limits such as memory or turns, linked events.

`wait_until` waits until something happens or the work is cancelled.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from ocistream.errors import CancelledError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

_Key = TypeVar("_Key", bound="Hashable")
_Value = TypeVar("_Value")

#: Seconds between two checks whether the work was cancelled: its event wakes no other wait.
_POLL_INTERVAL: Final = 0.1


def wait_until(wait: Callable[[float], object], cancelled: threading.Event) -> None:
    """Wait until `wait` returns something true. It waits for up to the seconds that it gets, and is called again.

    Raises:
        CancelledError: `cancelled` was set during the wait.
    """
    while not wait(_POLL_INTERVAL):
        if cancelled.is_set():
            raise CancelledError("cancelled")


class KeyedLocks(dict[_Key, threading.Lock]):
    """A lock for each key. Threads with different keys do not wait for each other."""

    def __missing__(self, key: _Key) -> threading.Lock:
        """Return the lock of a new key."""
        # `setdefault` is atomic: all threads get the lock of the first one.
        return self.setdefault(key, threading.Lock())


class OncePerKey(Generic[_Key, _Value]):
    """Values by key, each created by the first thread that needs it, while others that need it wait.

    If `create` raises, the next caller tries again.
    """

    def __init__(self, create: Callable[[_Key], _Value]) -> None:
        """Take the function; it is not called yet."""
        self._create = create
        self._values: dict[_Key, _Value] = {}
        self._locks: KeyedLocks[_Key] = KeyedLocks()

    def __call__(self, key: _Key) -> _Value:
        """Return the value of a key."""
        if key not in self._values:
            with self._locks[key]:
                if key not in self._values:
                    self._values[key] = self._create(key)
        return self._values[key]


def once(create: Callable[[], _Value]) -> Callable[[], _Value]:
    """Return a function whose first call creates a value, which all calls return. `create` must not call it."""
    values = OncePerKey[None, _Value](lambda _: create())
    return lambda: values(None)


class Budget:
    """A number of units that any thread takes and gives back."""

    def __init__(self, size: int) -> None:
        """Start with `size` free units."""
        self._free = size
        self._changed = threading.Condition()

    def take(self, count: int = 1, *, timeout: float | None = 0.0) -> bool:
        """Take `count` units; wait for them up to `timeout` seconds, with None for ever. Return whether they came."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._free >= count, timeout):
                return False
            self._free -= count
            return True

    def give_back(self, count: int = 1) -> None:
        """Free `count` units that were taken, also by another thread."""
        with self._changed:
            self._free += count
            self._changed.notify_all()

    @contextlib.contextmanager
    def reserve(self, count: int = 1, *, cancelled: threading.Event | None = None) -> Iterator[None]:
        """Wait for `count` units, and keep them during the block.

        Raises:
            CancelledError: `cancelled` was set during the wait.
        """
        if cancelled is None:
            self.take(count, timeout=None)
        else:
            wait_until(lambda seconds: self.take(count, timeout=seconds), cancelled)
        try:
            yield
        finally:
            self.give_back(count)


class LinkedEvent(threading.Event):
    """An event that is also set if another one is. A copy that fails sets its event, and must not set the caller's."""

    def __init__(self, others: Sequence[threading.Event]) -> None:
        """Follow the events `others`."""
        super().__init__()
        self._others = others

    def is_set(self) -> bool:
        """Return whether this event or another one is set."""
        return super().is_set() or any(other.is_set() for other in self._others)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until an event is set or `timeout` seconds have passed; return whether one is set."""
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        while not self.is_set():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            super().wait(min(remaining, _POLL_INTERVAL))
        return True
