"""An observer of transfers that writes everything down, from any thread."""

from __future__ import annotations

import threading

from ocistream.graph import Graph
from ocistream.model import Descriptor


class Watch:
    """What a transfer told: the total, each advance in bytes, and by digest what moved and became of each blob."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.advances: list[int] = []
        self.how: dict[str, str] = {}
        self.of: dict[str, int] = {}
        self._lock = threading.Lock()

    def planned(self, graph: Graph) -> None:
        """Note the total."""
        self.total = graph.size

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """Note an advance, and of which blob it is."""
        with self._lock:
            self.advances.append(size)
            if descriptor is not None:
                self.of[descriptor.digest] = self.of.get(descriptor.digest, 0) + size

    def done(self, descriptor: Descriptor, how: str) -> None:
        """Note what became of a blob."""
        with self._lock:
            self.how[descriptor.digest] = how

    @property
    def moved(self) -> int:
        """All bytes that have moved."""
        return sum(self.advances)
