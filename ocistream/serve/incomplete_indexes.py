"""Serve a smaller index in place of an image index if the storage has only some of its platforms."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from ocistream import notices
from ocistream.errors import NotFoundError, OcistreamError
from ocistream.oci.graph import Root
from ocistream.oci.reference import printable
from ocistream.oci.walk import Need, run_walk, walk_images
from ocistream.serve.capacity import remember
from ocistream.transfer.incomplete_indexes import find_not_exported, limit_to_exported

if TYPE_CHECKING:
    from ocistream.oci.descriptor import Descriptor, Manifest
    from ocistream.oci.graph import IncompleteIndex
    from ocistream.serve.storage import Storage

#: Cache sizes: indexes that are known to be complete, and smaller indexes that were built.
_MAX_COMPLETE: Final = 1000
_MAX_SYNTHESIZED: Final = 64


class IncompleteIndexes:
    """Smaller indexes for images whose platforms are not all in the storage. Safe for several threads."""

    def __init__(self, storage: Storage) -> None:
        """Read from `storage` when an index is requested."""
        self._storage = storage
        self._complete: OrderedDict[str, None] = OrderedDict()
        self._synthesized: OrderedDict[str, Manifest] = OrderedDict()

    def find_replacement(self, index: Descriptor) -> Manifest | None:
        """Return the manifest to serve in place of an index with missing platforms; None for any other index.

        An index with a damaged part is served unchanged; the client that requests that part gets the error.
        """
        if index.digest in self._complete:
            return None
        try:
            return self._build_smaller_index(index)
        except OcistreamError:
            return None

    def find_synthesized(self, digest: str) -> Manifest | None:
        """Return a smaller index that was served in place of another one."""
        return self._synthesized.get(digest)

    def _is_missing(self, blob: Descriptor) -> bool:
        """Return whether a blob does not exist. A corrupt blob is not a reason to omit its platform."""
        if self._storage.blob_size(blob.digest) is not None:
            return False
        self._storage.check_not_corrupt(blob.digest)
        return True

    def _read(self, need: Need) -> bytes | None:
        try:
            return self._storage.read_blob(need.descriptor)
        except NotFoundError:
            return None

    def _build_smaller_index(self, index: Descriptor) -> Manifest | None:
        graph = run_walk(walk_images([Root(None, index)]), self._read)
        missing = find_not_exported(graph, self._is_missing)
        exported = limit_to_exported(graph, self._is_missing)
        root = exported.roots[0].descriptor
        if root.digest == index.digest:
            if not missing:
                remember(self._complete, index.digest, None, _MAX_COMPLETE)
            return None
        for incomplete in exported.incomplete_indexes:
            _report_incomplete(incomplete)
        (manifest,) = (item for item in exported.manifests if item.descriptor.digest == root.digest)
        if root.is_index:
            # Clients request it by its digest next, and no blob has it.
            remember(self._synthesized, root.digest, manifest, _MAX_SYNTHESIZED)
        return manifest


def _report_incomplete(incomplete: IncompleteIndex) -> None:
    missing = f"; missing: {', '.join(map(printable, incomplete.missing))}" if incomplete.missing else ""
    platforms = ", ".join(map(printable, incomplete.platforms))
    notices.notify(f"index {incomplete.digest} is incomplete: only {platforms} is served{missing}")
