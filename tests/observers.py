"""For unit tests: an observer of transfers that notes everything, and one that expects no early blobs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from ocistream.oci.descriptor import Descriptor
from ocistream.oci.graph import Graph
from ocistream.streams.chunks import Chunk
from ocistream.transfer.interfaces import Blob


class NothingEarly:
    """For sources that know their graph before any blob: fails if one is put."""

    accepts_early = True

    def write(self, blob: Blob, *, can_be_plain_layer: bool = False) -> None:  # noqa: ARG002 - it fails in any case
        """Fail."""
        raise AssertionError(blob)

    def write_new(self, chunks: Iterator[Chunk]) -> Descriptor:
        """Fail."""
        raise AssertionError(chunks)

    def read_back(self, descriptor: Descriptor) -> bytes:
        """Fail."""
        raise AssertionError(descriptor)


class Watch:
    """What a transfer told: the total, each advance in bytes, and by digest what moved and became of each blob."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.advances: list[int] = []
        self.status: dict[str, str] = {}
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

    def done(self, descriptor: Descriptor, status: str) -> None:
        """Note what became of a blob."""
        with self._lock:
            self.status[descriptor.digest] = status

    @property
    def moved(self) -> int:
        """All bytes that have moved."""
        return sum(self.advances)
