"""Which places are still worth asking, in one run: who fell silent, who gave something wrong; and who is told of it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocistream.registry.locations import PullSource

__all__ = ["MirrorHealth"]


class MirrorHealth:
    """What has come of asking places, by their hosts. Safe for several threads."""

    def __init__(self, report: Callable[[str, int], None]) -> None:
        """Begin with nothing against anybody.

        `tell(message, level)` is told of every fall-back: at level 0, or at 1 where it is nothing unusual.
        """
        self._report = report
        self._lock = threading.Lock()
        #: Registries that are not asked again, and those of them that gave nothing wrong but fell silent.
        self._disabled: set[str] = set()
        self._down: set[str] = set()
        #: Registries that mirrors stand for, and that did not answer themselves.
        self._unreachable: set[str] = set()

    def is_unreachable(self, pull_source: PullSource) -> bool:
        """Say whether a registry was given up, for what can be done without."""
        return pull_source.registry in self._unreachable

    def mark_unreachable(self, pull_source: PullSource, reason: str) -> None:
        """Ask a registry no more, in this run, for what can be done without, and say why."""
        with self._lock:
            news = pull_source.registry not in self._unreachable
            self._unreachable.add(pull_source.registry)
        self.report(reason, 0 if news else 1)

    def is_disabled(self, pull_source: PullSource) -> bool:
        """Say whether a mirror is not to be asked again."""
        return pull_source.is_mirror and pull_source.registry in self._disabled

    def is_down(self, pull_source: PullSource) -> bool:
        """Say whether a mirror failed, but gave nothing wrong."""
        return pull_source.registry in self._down

    def disable(self, pull_source: PullSource, reason: str, *, is_corrupt: bool) -> None:
        """Ask a mirror no more, in this run, and say why."""
        with self._lock:
            news = pull_source.registry not in self._disabled
            self._disabled.add(pull_source.registry)
            if is_corrupt:
                self._down.discard(pull_source.registry)
            elif news:
                self._down.add(pull_source.registry)
        self.report(reason, 0 if news else 1)

    def report(self, message: str, level: int) -> None:
        """Tell of a fall-back."""
        self._report(message, level)
