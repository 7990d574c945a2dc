"""Report the copies of a sync as one: bytes, blobs and images of the whole run."""

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
    """The part of a graph that observers read: bytes and blobs of all images, and the newly added roots."""

    def __init__(self, size: int, blobs: int, roots: Sequence[Root] = ()) -> None:
        self.size = size
        self.blobs = range(blobs)
        self.roots = roots


class SyncProgress:
    """An observer of successive transfers that reports them as one."""

    def __init__(self, observer: Observer) -> None:
        """Report to `observer`."""
        self._observer = observer
        self._lock = threading.Lock()
        self._size = self._blobs = 0
        #: Bytes and blobs of the current image: those that are in the total, and those that have moved.
        self._current = (0, 0)
        self._moved = self._done = 0

    def add_expected(self, size: int, blobs: int) -> None:
        """Add the size of some images to the total before they are copied."""
        if blobs:
            self._add_total(size, blobs)

    def report_images(self, number: int, count: int) -> None:
        """Report that `number` of `count` images are finished."""
        if isinstance(self._observer, ImageCountObserver):
            self._observer.report_images(number, count)

    def begin_image(self, size: int, blobs: int) -> None:
        """Begin an image whose size and blobs are already in the total."""
        with self._lock:
            self._current = size, blobs
            self._moved = self._done = 0

    def end_image(self) -> None:
        """End the image, also after a failure: what has not moved by now is removed from the total."""
        with self._lock:
            size, blobs = self._moved - self._current[0], self._done - self._current[1]
        if size or blobs:
            self._add_total(size, blobs)

    def planned(self, graph: Graph) -> None:
        """Replace the expected size of the image by its real size."""
        with self._lock:
            size, blobs = graph.size - self._current[0], len(graph.blobs) - self._current[1]
            self._current = graph.size, len(graph.blobs)
        self._add_total(size, blobs, graph.roots)

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """Count moved bytes."""
        with self._lock:
            self._moved += size
        self._observer.advance(size, descriptor)

    def done(self, descriptor: Descriptor, status: str) -> None:
        """Count a finished blob."""
        with self._lock:
            self._done += 1
        self._observer.done(descriptor, status)

    def _add_total(self, size: int, blobs: int, roots: Sequence[Root] = ()) -> None:
        with self._lock:
            self._size += size
            self._blobs += blobs
            total = _Total(self._size, self._blobs, roots)
        self._observer.planned(cast("Graph", total))
