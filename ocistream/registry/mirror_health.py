"""Which places are still worth asking, in one run: who fell silent, who gave something wrong; and who is told of it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocistream.registry.locations import Place

__all__ = ["Standing"]


class Standing:
    """What has come of asking places, by their hosts. Safe for several threads."""

    def __init__(self, tell: Callable[[str, int], None]) -> None:
        """Begin with nothing against anybody.

        `tell(message, level)` is told of every fall-back: at level 0, or at 1 where it is nothing unusual.
        """
        self._tell = tell
        self._lock = threading.Lock()
        #: Registries that are not asked again, and those of them that gave nothing wrong but fell silent.
        self._bad: set[str] = set()
        self._down: set[str] = set()
        #: Registries that mirrors stand for, and that did not answer themselves.
        self._unreachable: set[str] = set()

    def is_unreachable(self, place: Place) -> bool:
        """Say whether a registry was given up, for what can be done without."""
        return place.registry in self._unreachable

    def give_up(self, place: Place, why: str) -> None:
        """Ask a registry no more, in this run, for what can be done without, and say why."""
        with self._lock:
            news = place.registry not in self._unreachable
            self._unreachable.add(place.registry)
        self.tell(why, 0 if news else 1)

    def is_bad(self, place: Place) -> bool:
        """Say whether a mirror is not to be asked again."""
        return place.is_mirror and place.registry in self._bad

    def is_down(self, place: Place) -> bool:
        """Say whether a mirror failed, but gave nothing wrong."""
        return place.registry in self._down

    def set_aside(self, place: Place, why: str, *, lies: bool) -> None:
        """Ask a mirror no more, in this run, and say why."""
        with self._lock:
            news = place.registry not in self._bad
            self._bad.add(place.registry)
            if lies:
                self._down.discard(place.registry)
            elif news:
                self._down.add(place.registry)
        self.tell(why, 0 if news else 1)

    def tell(self, message: str, level: int) -> None:
        """Tell of a fall-back."""
        self._tell(message, level)
