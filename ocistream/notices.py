"""Messages from any module to the user: notices, and hints that are shown only if the run fails.

The command line sets the listener; without a listener, notices are dropped.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["add_failure_hint", "failure_hints", "notify", "set_listener"]


class Listener(Protocol):
    """Takes a line to be printed from a verbosity on: 0 is always, 1 with -v."""

    def __call__(self, message: str, *, level: int) -> None:
        """Print it."""


_listeners: list[Listener] = []
_reported: set[str] = set()
#: What is worth knowing if the run fails, and only then.
_failure_hints: list[str] = []


def set_listener(listener: Listener) -> None:
    """Hear what is said from now on, in place of whoever did; nothing has been said yet."""
    _listeners[:] = [listener]
    _reported.clear()
    _failure_hints.clear()


def notify(message: str, *, level: int = 0) -> None:
    """Say something, from any thread; the same thing once."""
    if message not in _reported:
        _reported.add(message)
        for listener in _listeners:
            listener(message, level=level)


def add_failure_hint(text: str) -> None:
    """Keep what may be why a run fails, if it does; the same thing once."""
    if text not in _failure_hints:
        _failure_hints.append(text)


def failure_hints() -> list[str]:
    """Give what was kept."""
    return list(_failure_hints)
