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

__all__ = ["ImageProgress", "SyncProgress"]


class _Total:
    """The part of a graph that observers read: bytes and blobs of all images, and the newly added roots."""

    def __init__(self, size: int, blobs: int, roots: Sequence[Root] = ()) -> None:
        self.size = size
        self.blobs = range(blobs)
        self.roots = roots


class SyncProgress:
    """Reports the transfers of several images as one. Safe for several threads."""

    def __init__(self, observer: Observer) -> None:
        """Report to `observer`."""
        self.observer = observer
        #: Guards the counts of the images too.
        self.lock = threading.Lock()
        self._size = self._blobs = 0

    def add_expected(self, size: int, blobs: int) -> None:
        """Add the size of some images to the total before they are copied."""
        if blobs:
            self.add_total(size, blobs)

    def report_images(self, number: int, count: int) -> None:
        """Report that `number` of `count` images are finished."""
        if isinstance(self.observer, ImageCountObserver):
            self.observer.report_images(number, count)

    def add_total(self, size: int, blobs: int, roots: Sequence[Root] = ()) -> None:
        """Add to the total, and report it; `roots` are the images that are copied next."""
        with self.lock:
            self._size += size
            self._blobs += blobs
            self.observer.planned(cast("Graph", _Total(self._size, self._blobs, roots)))


class ImageProgress:
    """An observer of the transfer of one image."""

    def __init__(self, progress: SyncProgress, size: int, blobs: int) -> None:
        """Begin an image whose size and blobs are already in the total."""
        self._progress = progress
        #: Bytes and blobs of the image: those that are in the total, and those that have moved.
        self._expected = (size, blobs)
        self._moved = self._done = 0

    def planned(self, graph: Graph) -> None:
        """Replace the expected size of the image by its real size."""
        size, blobs = self._expected
        self._expected = graph.size, len(graph.blobs)
        self._progress.add_total(graph.size - size, len(graph.blobs) - blobs, graph.roots)

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """Count moved bytes."""
        with self._progress.lock:
            self._moved += size
        self._progress.observer.advance(size, descriptor)

    def done(self, descriptor: Descriptor, status: str) -> None:
        """Count a finished blob."""
        with self._progress.lock:
            self._done += 1
        self._progress.observer.done(descriptor, status)

    def close(self) -> None:
        """End the image, also after a failure: what has not moved by now is removed from the total."""
        size, blobs = self._moved - self._expected[0], self._done - self._expected[1]
        if size or blobs:
            self._progress.add_total(size, blobs)
