"""Messages from any module to the user: notices, and hints that are shown only if the run fails.

The command line sets the listener; without a listener, notices are dropped.
"""

from __future__ import annotations

from typing import Protocol


class Listener(Protocol):
    """Prints a message from a verbosity on: level 0 always, 1 with -v."""

    def __call__(self, message: str, *, level: int) -> None:
        """Print the message."""


_listeners: list[Listener] = []
_reported: set[str] = set()
#: Hints that are shown only if the run fails, each with words that the error must have, and text in front of the error.
_failure_hints: dict[str, tuple[str, str]] = {}


def set_listener(listener: Listener) -> None:
    """Replace the listener, and forget earlier notices and hints."""
    _listeners[:] = [listener]
    _reported.clear()
    _failure_hints.clear()


def notify(message: str, *, level: int = 0) -> None:
    """Send a notice, from any thread; each message once."""
    if _listeners and message not in _reported:
        _reported.add(message)
        for listener in _listeners:
            listener(message, level=level)


def add_failure_hint(text: str, *, about: str = "", prefix: str = "") -> None:
    """Store a possible cause of a failure, of which `about` is a part of the message; each text once.

    `prefix` is what the user must know first, for the start of the message.
    """
    _failure_hints.setdefault(text, (about, prefix))


def failure_hints(message: str) -> list[str]:
    """Return the stored hints for the error with this message."""
    return [text for text, (about, _) in _failure_hints.items() if about in message]


def add_failure_prefixes(message: str) -> str:
    """Return the message of an error behind the prefixes of its stored hints."""
    prefixes = [prefix for about, prefix in _failure_hints.values() if prefix and about in message]
    return ": ".join(["; ".join(prefixes), message]) if prefixes else message
