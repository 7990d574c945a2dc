"""Serve a smaller index in place of an image index if the storage has only some of its platforms."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, TypeVar

from ocistream import notices
from ocistream.errors import NotFoundError, OcistreamError
from ocistream.oci.graph import Root
from ocistream.oci.reference import printable
from ocistream.transfer.graph_builder import GraphBuilder
from ocistream.transfer.incomplete_indexes import find_not_exported, limit_to_exported

if TYPE_CHECKING:
    from ocistream.oci.descriptor import Descriptor, Manifest
    from ocistream.oci.graph import IncompleteIndex
    from ocistream.serve.storage import Storage

__all__ = ["IncompleteIndexes"]

ValueT = TypeVar("ValueT")

#: Indexes that were found complete, and smaller indexes that were made: so many of each are remembered.
_MAX_COMPLETE: Final = 1000
_MAX_SYNTHESIZED: Final = 64


class IncompleteIndexes:
    """The images of a storage, less the platforms that it does not have. Safe for several threads."""

    def __init__(self, storage: Storage) -> None:
        """Serve from `storage`; it is read when an index is asked for."""
        self._storage = storage
        self._lock = threading.Lock()
        self._complete: dict[str, None] = {}
        self._synthesized: dict[str, Manifest] = {}

    def find_replacement(self, index: Descriptor) -> Manifest | None:
        """Return what to serve in place of an index that lists platforms which are not there; None for any other.

        An index below which something is damaged is served as it is; the client that asks for that part gets the error.
        """
        with self._lock:
            if index.digest in self._complete:
                return None
        try:
            return self._build_smaller_index(index)
        except OcistreamError:
            return None

    def find_synthesized(self, digest: str) -> Manifest | None:
        """Return a smaller index that was served in place of another."""
        with self._lock:
            return self._synthesized.get(digest)

    def _is_missing(self, blob: Descriptor) -> bool:
        """Say whether a blob does not exist; one that is known to be corrupt is no reason to omit its platform."""
        if self._storage.blob_size(blob.digest) is not None:
            return False
        self._storage.check_not_corrupt(blob.digest)
        return True

    def _build_smaller_index(self, index: Descriptor) -> Manifest | None:
        builder = GraphBuilder()
        builder.add_root(Root(None, index))
        while builder.needs:
            needed = next(iter(builder.needs.values()))
            try:
                builder.supply(needed.digest, self._storage.read_blob(needed))
            except NotFoundError:
                builder.mark_missing(needed.digest)
        graph = builder.build()
        missing = find_not_exported(graph, self._is_missing)
        exported = limit_to_exported(graph, {one.digest for one in missing})
        root = exported.roots[0].descriptor
        if root.digest == index.digest:
            if not missing:
                self._remember(self._complete, index.digest, None, _MAX_COMPLETE)
            return None
        for incomplete in exported.incomplete_indexes:
            _report_incomplete(incomplete)
        (manifest,) = (one for one in exported.manifests if one.descriptor.digest == root.digest)
        if root.is_index:
            # Clients ask for it by its digest next, and no blob has it.
            self._remember(self._synthesized, root.digest, manifest, _MAX_SYNTHESIZED)
        return manifest

    def _remember(self, known: dict[str, ValueT], digest: str, value: ValueT, most: int) -> None:
        with self._lock:
            while len(known) >= most:
                del known[next(iter(known))]
            known[digest] = value


def _report_incomplete(incomplete: IncompleteIndex) -> None:
    missing = f"; missing: {', '.join(map(printable, incomplete.missing))}" if incomplete.missing else ""
    platforms = ", ".join(map(printable, incomplete.platforms))
    notices.notify(f"index {incomplete.digest} is incomplete: only {platforms} is served{missing}")
