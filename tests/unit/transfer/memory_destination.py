"""A destination in memory."""

from __future__ import annotations

from collections.abc import Sequence

from ocistream.oci.descriptor import Descriptor
from ocistream.oci.graph import Graph
from ocistream.transfer.interfaces import Traits, VerifiedBlob


class Memory:
    """Stores the bytes of blobs by their digests."""

    traits = Traits(concurrent=True)

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def expect(self, graph: Graph) -> Graph:
        return graph

    def begin(self, graph: Graph) -> None: ...

    def stored(self, blobs: Sequence[Descriptor], *, quick: bool = False) -> set[str]:  # noqa: ARG002 - a double
        return {blob.digest for blob in blobs if blob.digest in self.blobs}

    def partial_size(self, _blob: Descriptor, /) -> int:
        return 0

    def write(self, blob: VerifiedBlob) -> int:
        self.blobs[blob.descriptor.digest] = b"".join(map(bytes, blob.open()))
        return 0

    def commit(self, graph: Graph) -> None: ...

    def discard(self) -> None: ...

    def close(self) -> None: ...
