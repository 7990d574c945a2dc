"""Secrets that nobody has accepted yet, shown by one request at a time: many with a wrong one would lock an account."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SecretAttempt", "SecretAttempts"]


@dataclass(slots=True)
class SecretAttempt:
    """One showing of a secret. `accepted` is what came of it, None where nothing did: there was no answer."""

    is_accepted: bool | None = None


class SecretAttempts:
    """What came of showing secrets to one registry. Safe for several threads."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._lock = threading.Lock()
        self._attempt_locks: dict[str, threading.Lock] = {}
        self._is_accepted: dict[str, bool] = {}

    def is_refused(self, secret: str) -> bool:
        """Say whether a secret was shown and refused, and never accepted."""
        return self._is_accepted.get(secret) is False

    @contextlib.contextmanager
    def attempt(self, secret: str) -> Iterator[SecretAttempt]:
        """Wait until a secret may be shown, and keep what comes of it; who waited asks `was_refused` again."""
        with self._lock:
            gate = self._attempt_locks.setdefault(secret, threading.Lock())
        trial = SecretAttempt()
        if self._is_accepted.get(secret):
            yield trial
            return
        with gate:
            yield trial
            if trial.is_accepted is not None:
                self._is_accepted[secret] = trial.is_accepted or self._is_accepted.get(secret, False)
