"""Report the copy of one image as a part of a run: bytes and blobs of all images are one total."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.transfer.interfaces import RunObserver


class ImageProgress:
    """An observer of the copy of one image, for the observer of the run."""

    def __init__(self, run: RunObserver, size: int, blobs: int) -> None:
        """Begin an image whose size and blobs are already in the total."""
        self._run = run
        #: Bytes and blobs of the image that are in the total.
        self._expected = (size, blobs)
        #: By blob and thread, so that one thread alone changes a number: how many bytes it has moved.
        self._moved: dict[tuple[str, int], int] = {}
        #: Any thread appends the digest of a finished blob.
        self._done: list[str] = []

    def planned(self, graph: Graph) -> None:
        """Replace the expected size of the image by its real size."""
        size, blobs = self._expected
        self._expected = graph.size, len(graph.blobs)
        self._run.add_total(graph.size - size, len(graph.blobs) - blobs, graph.roots)

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """Count moved bytes."""
        key = descriptor.digest if descriptor is not None else "", threading.get_ident()
        self._moved[key] = self._moved.get(key, 0) + size
        self._run.advance(size, descriptor)

    def done(self, descriptor: Descriptor, status: str) -> None:
        """Count a finished blob."""
        self._done.append(descriptor.digest)
        self._run.done(descriptor, status)

    def close(self) -> None:
        """End the image, also after a failure: what has not moved by now is removed from the total."""
        size, blobs = self._expected
        size, blobs = sum(self._moved.values()) - size, len(self._done) - blobs
        if size or blobs:
            self._run.add_total(size, blobs)
