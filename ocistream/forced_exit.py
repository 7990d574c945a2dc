"""What the end of a process must wait for or undo, if a signal ends it while a thread is blocked."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ocistream import open_uploads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Callbacks and delays of the blocks that run. (A dict is safe for several threads.)
_callbacks: dict[object, Callable[[], object]] = {}
_delays: dict[object, float] = {}


@contextlib.contextmanager
def called_at_forced_exit(callback: Callable[[], object]) -> Iterator[None]:
    """Call `callback` if the process ends while the block still runs. It must be short, and may run in any thread."""
    key = object()
    _callbacks[key] = callback
    try:
        yield
    finally:
        _callbacks.pop(key, None)


@contextlib.contextmanager
def delayed_exit(seconds: float) -> Iterator[None]:
    """Let the block run for up to `seconds` after a signal before the process ends."""
    key = object()
    _delays[key] = seconds
    try:
        yield
    finally:
        _delays.pop(key, None)


def find_delay() -> float:
    """Return for how many seconds after a signal the process must not end: for open uploads, and for `delayed_exit`."""
    return max(open_uploads.settle_timeout(), *list(_delays.values()), 0.0)


def run_callbacks() -> None:
    """Call the callbacks of all blocks that still run. An `OSError` is ignored."""
    for callback in list(_callbacks.values()):
        with contextlib.suppress(OSError):
            callback()
