"""For unit tests: an observer of transfers that records everything, and one that expects no early blobs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from ocistream.oci.descriptor import Descriptor
from ocistream.oci.graph import Graph
from ocistream.streams.chunks import Chunk
from ocistream.transfer.interfaces import Blob


class NothingEarly:
    """For sources that know their graph before any blob: fails if a blob is written."""

    early_refusal = None

    def write(self, blob: Blob, *, can_be_plain_layer: bool = False) -> None:  # noqa: ARG002 - it fails in any case
        raise AssertionError(blob)

    def write_new(self, chunks: Iterator[Chunk]) -> Descriptor:
        raise AssertionError(chunks)

    def read_back(self, descriptor: Descriptor) -> bytes:
        raise AssertionError(descriptor)


class Watch:
    """Records what a transfer reports: the total, each advance in bytes, and by digest each blob's bytes and result."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.advances: list[int] = []
        self.status: dict[str, str] = {}
        self.of: dict[str, int] = {}
        self._lock = threading.Lock()

    def planned(self, graph: Graph) -> None:
        self.total = graph.size

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """Record an advance, and its blob."""
        with self._lock:
            self.advances.append(size)
            if descriptor is not None:
                self.of[descriptor.digest] = self.of.get(descriptor.digest, 0) + size

    def done(self, descriptor: Descriptor, status: str) -> None:
        """Record the result of a blob."""
        with self._lock:
            self.status[descriptor.digest] = status

    @property
    def moved(self) -> int:
        return sum(self.advances)
