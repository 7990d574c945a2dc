"""Pass small contents of a source to a check of its graph: at once, or from a pipe as they arrive."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Protocol

from ocistream.errors import NotFoundError
from ocistream.transfer.verified_blobs import blob_from_bytes, read_verified

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.transfer.interfaces import Blob, Source


class GraphCheck(Protocol):
    """A check of a graph before anything of it becomes visible, such as of the signatures of its images."""

    def start(self, graph: Graph) -> Sequence[Descriptor]:
        """Return the blobs whose contents the check needs, each of which must be small."""

    def add(self, payload: Descriptor, content: bytes) -> None:
        """Take the verified content of such a blob."""

    def finish(self) -> None:
        """Raise an OcistreamError if the graph must not be copied. Blobs that were not added are missing."""


class GraphCheckReader:
    """Reads the blobs that a check needs; `pending` are those that were not read yet, by digest."""

    def __init__(self, check: GraphCheck, graph: Graph) -> None:
        """Start the check of a graph."""
        self._check = check
        self._lock = threading.Lock()
        self._is_finished = False
        self.pending = {blob.digest: blob for blob in check.start(graph)}
        for digest, content in graph.embedded.items():
            self.add(digest, content)

    def add(self, digest: str, content: bytes) -> None:
        """Pass on verified content if the check needs it."""
        with self._lock:
            if (blob := self.pending.pop(digest, None)) is not None:
                self._check.add(blob, content)

    def read(self, source: Source) -> None:
        """Read the pending blobs from a source that can be read in any order."""
        if self.pending:
            for blob in source.blobs(list(self.pending.values())):
                # A registry may list a blob that it lacks.
                with contextlib.suppress(NotFoundError):
                    self.add(blob.descriptor.digest, read_verified(blob))

    def watch(self, blobs: Iterator[Blob], wanted: Collection[str]) -> Iterator[Blob]:
        """Yield the wanted blobs of a pipe, and finish the check as early as possible.

        Raises:
            OcistreamError: the graph must not be copied.
        """
        for blob in blobs:
            digest = blob.descriptor.digest
            if digest in self.pending and blob.range is None:
                content = read_verified(blob)
                self.add(digest, content)
                if not self.pending:
                    self.finish()
                if digest in wanted:
                    yield blob_from_bytes(blob.descriptor, content)
            else:
                yield blob
        self.finish()

    def finish(self) -> None:
        """Finish the check, once.

        Raises:
            OcistreamError: the graph must not be copied.
        """
        if not self._is_finished:
            self._is_finished = True
            self._check.finish()
