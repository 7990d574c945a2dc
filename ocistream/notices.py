"""What rooms that know of no console have to say to a user. Who runs a command listens; else nobody does."""

from __future__ import annotations

from typing import Protocol

__all__ = ["advice", "advise", "listen", "notice"]


class Listener(Protocol):
    """Takes a line to be printed from a verbosity on: 0 is always, 1 with -v."""

    def __call__(self, message: str, *, level: int) -> None:
        """Print it."""


_listeners: list[Listener] = []
_said: set[str] = set()
#: What is worth knowing if the run fails, and only then.
_advice: list[str] = []


def listen(listener: Listener) -> None:
    """Hear what is said from now on, in place of whoever did; nothing has been said yet."""
    _listeners[:] = [listener]
    _said.clear()
    _advice.clear()


def notice(message: str, *, level: int = 0) -> None:
    """Say something, from any thread; the same thing once."""
    if message not in _said:
        _said.add(message)
        for listener in _listeners:
            listener(message, level=level)


def advise(text: str) -> None:
    """Keep what may be why a run fails, if it does; the same thing once."""
    if text not in _advice:
        _advice.append(text)


def advice() -> list[str]:
    """Give what was kept."""
    return list(_advice)
