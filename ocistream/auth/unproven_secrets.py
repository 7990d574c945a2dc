"""Secrets that nobody has accepted yet, shown by one request at a time: many with a wrong one would lock an account."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Trial", "Trials"]


@dataclass(slots=True)
class Trial:
    """One showing of a secret. `accepted` is what came of it, None where nothing did: there was no answer."""

    accepted: bool | None = None


class Trials:
    """What came of showing secrets to one registry. Safe for several threads."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._lock = threading.Lock()
        self._gates: dict[str, threading.Lock] = {}
        self._known: dict[str, bool] = {}

    def was_refused(self, secret: str) -> bool:
        """Say whether a secret was shown and refused, and never accepted."""
        return self._known.get(secret) is False

    @contextlib.contextmanager
    def of(self, secret: str) -> Iterator[Trial]:
        """Wait until a secret may be shown, and keep what comes of it; who waited asks `was_refused` again."""
        with self._lock:
            gate = self._gates.setdefault(secret, threading.Lock())
        trial = Trial()
        if self._known.get(secret):
            yield trial
            return
        with gate:
            yield trial
            if trial.accepted is not None:
                self._known[secret] = trial.accepted or self._known.get(secret, False)
