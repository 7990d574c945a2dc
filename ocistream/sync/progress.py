"""The progress of a sync as one: what is done of all that is planned, and which image of how many it is.

A renderer has one total for the whole run. It grows as images are looked at, some at a time, and becomes less by what
failed or turned out to be smaller.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, cast

from ocistream.transfer.interfaces import CountsImages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph, Root
    from ocistream.transfer.interfaces import Observer

__all__ = ["Whole"]


class _Total:
    """As much of a graph as renderers look at: the bytes and blobs of all images, and those that are new to them."""

    def __init__(self, size: int, blobs: int, roots: Sequence[Root] = ()) -> None:
        self.size = size
        self.blobs = range(blobs)
        self.roots = roots


class Whole:
    """An observer of transfers, one after the other, that has all of them shown as one."""

    def __init__(self, shown: Observer) -> None:
        """Pass on to `shown`."""
        self._shown = shown
        self._lock = threading.Lock()
        self._size = self._blobs = 0
        #: Of the image that moves now: bytes and blobs that the total has of it, and what has moved of those.
        self._now = (0, 0)
        self._moved = self._done = 0

    def expect(self, size: int, blobs: int) -> None:
        """Add what some images have to the total before they move."""
        if blobs:
            self._add(size, blobs)

    def reached(self, number: int, count: int) -> None:
        """Say that so many images of the run are done with."""
        if isinstance(self._shown, CountsImages):
            self._shown.reached(number, count)

    def begin(self, size: int, blobs: int) -> None:
        """Begin an image of which the total has so much."""
        with self._lock:
            self._now = size, blobs
            self._moved = self._done = 0

    def end(self) -> None:
        """Be done with it, however it ended: what has not moved by now will not."""
        with self._lock:
            size, blobs = self._moved - self._now[0], self._done - self._now[1]
        if size or blobs:
            self._add(size, blobs)

    def planned(self, graph: Graph) -> None:
        """Learn what an image really has."""
        with self._lock:
            size, blobs = graph.size - self._now[0], len(graph.blobs) - self._now[1]
            self._now = graph.size, len(graph.blobs)
        self._add(size, blobs, graph.roots)

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """Count."""
        with self._lock:
            self._moved += size
        self._shown.advance(size, descriptor)

    def done(self, descriptor: Descriptor, how: str) -> None:
        """Count a blob."""
        with self._lock:
            self._done += 1
        self._shown.done(descriptor, how)

    def _add(self, size: int, blobs: int, roots: Sequence[Root] = ()) -> None:
        with self._lock:
            self._size += size
            self._blobs += blobs
            total = _Total(self._size, self._blobs, roots)
        self._shown.planned(cast("Graph", total))
