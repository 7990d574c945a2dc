"""Callbacks for the end of a process that does not wait for its threads: restore the terminal, stop child processes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["called_at_forced_exit", "run_callbacks"]

#: Callbacks by a key of their own. (A dict is safe for several threads.)
_callbacks: dict[object, Callable[[], object]] = {}


@contextlib.contextmanager
def called_at_forced_exit(callback: Callable[[], object]) -> Iterator[None]:
    """Call `callback` if the process ends while the block still runs. It must be short, and may run in any thread."""
    key = object()
    _callbacks[key] = callback
    try:
        yield
    finally:
        _callbacks.pop(key, None)


def run_callbacks() -> None:
    """Call the callbacks of all blocks that still run. An `OSError` is ignored."""
    for callback in list(_callbacks.values()):
        with contextlib.suppress(OSError):
            callback()
