"""The progress of a sync as one: what is done of all that is planned, and which image of how many it is.

A renderer has one total for the whole run. It grows as images are looked at, some at a time, and becomes less by what
failed or turned out to be smaller.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, cast

from ocistream.transfer.interfaces import ImageCountObserver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph, Root
    from ocistream.transfer.interfaces import Observer

__all__ = ["SyncProgress"]


class _Total:
    """As much of a graph as renderers look at: the bytes and blobs of all images, and those that are new to them."""

    def __init__(self, size: int, blobs: int, roots: Sequence[Root] = ()) -> None:
        self.size = size
        self.blobs = range(blobs)
        self.roots = roots


class SyncProgress:
    """An observer of transfers, one after the other, that has all of them shown as one."""

    def __init__(self, shown: Observer) -> None:
        """Pass on to `shown`."""
        self._observer = shown
        self._lock = threading.Lock()
        self._size = self._blobs = 0
        #: Of the image that moves now: bytes and blobs that the total has of it, and what has moved of those.
        self._current = (0, 0)
        self._moved = self._done = 0

    def add_expected(self, size: int, blobs: int) -> None:
        """Add what some images have to the total before they move."""
        if blobs:
            self._add_total(size, blobs)

    def report_images(self, number: int, count: int) -> None:
        """Say that so many images of the run are done with."""
        if isinstance(self._observer, ImageCountObserver):
            self._observer.report_images(number, count)

    def begin_image(self, size: int, blobs: int) -> None:
        """Begin an image of which the total has so much."""
        with self._lock:
            self._current = size, blobs
            self._moved = self._done = 0

    def end_image(self) -> None:
        """Be done with it, however it ended: what has not moved by now will not."""
        with self._lock:
            size, blobs = self._moved - self._current[0], self._done - self._current[1]
        if size or blobs:
            self._add_total(size, blobs)

    def planned(self, graph: Graph) -> None:
        """Learn what an image really has."""
        with self._lock:
            size, blobs = graph.size - self._current[0], len(graph.blobs) - self._current[1]
            self._current = graph.size, len(graph.blobs)
        self._add_total(size, blobs, graph.roots)

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """Count."""
        with self._lock:
            self._moved += size
        self._observer.advance(size, descriptor)

    def done(self, descriptor: Descriptor, how: str) -> None:
        """Count a blob."""
        with self._lock:
            self._done += 1
        self._observer.done(descriptor, how)

    def _add_total(self, size: int, blobs: int, roots: Sequence[Root] = ()) -> None:
        with self._lock:
            self._size += size
            self._blobs += blobs
            total = _Total(self._size, self._blobs, roots)
        self._observer.planned(cast("Graph", total))
