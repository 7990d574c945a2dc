"""An OCI image layout directory as a destination of images.

Every blob that a transfer relies on is hashed, even if it exists already. No `manifest.json` is written: no tool reads
that file in a directory, and `serve` changes only `index.json`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ocistream import limits
from ocistream.errors import LocalDiskError, UsageError
from ocistream.layout.index import build_entries, image_name_of
from ocistream.layout.writer import LayoutWriter
from ocistream.oci.reference import printable
from ocistream.streams.workers import DEFAULT_JOBS, run_each
from ocistream.transfer.interfaces import Traits
from ocistream.transfer.verified_blobs import require_complete

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ocistream.layout.index_file import IndexChange
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import NewBlob, VerifiedBlob

#: Bytes of existing blobs from which on they are hashed in several threads.
_MIN_CONCURRENT_HASHING: Final = 16 * limits.MIB


class LayoutDestination:
    """Writes images into a layout directory that may have other images."""

    traits = Traits(concurrent=True, keeps_blobs=True, can_omit=True)

    def __init__(
        self, path: Path, cancelled: threading.Event | None = None, *, writer: LayoutWriter | None = None
    ) -> None:
        """Take the directory. It is created with the first blob, and not if the image does not exist.

        `cancelled` stops the hashing of existing blobs. With a `writer` for several images, its owner makes the images
        visible, by `LayoutWriter.index.flush`.

        Raises:
            UsageError: the directory has other contents.
            LocalDiskError: the path is not a directory, or cannot be read.
        """
        self._writer = LayoutWriter(path) if writer is None else writer
        self._is_shared = writer is not None
        self._layout = self._writer.directory
        self._cancelled = cancelled
        #: Sizes of the blobs that this transfer found or wrote, by digest.
        self._stored: dict[str, int] = {}
        #: The committed entries.
        self.change: IndexChange[Any] | None = None

    def expect(self, graph: Graph) -> Graph:
        """Return the graph: a layout can hold anything.

        Raises:
            UsageError: two images have the same name. In a layout a name means one image, so one would be lost.
        """
        digests_by_name: dict[str, str] = {}
        for entry in build_entries(graph):
            name, digest = image_name_of(entry), entry.digest
            if name is not None and digests_by_name.setdefault(name, digest) != digest:
                msg = f"two images have the name {printable(name)!r}, but a layout has one image per name"
                raise UsageError(msg, hint=f"copy them one by one: {digests_by_name[name]} and {digest}")
        return graph

    def begin(self, graph: Graph) -> None:
        """Make the directory a layout, unless it is one.

        Raises:
            UsageError: two images have the same name, as `expect` says.
            LocalDiskError: the layout cannot be created.
        """
        self.expect(graph)
        self._writer.prepare()

    def stored(self, blobs: Sequence[Descriptor], *, quick: bool = False) -> set[str]:  # noqa: ARG002 - all are checked
        """Return the digests of the blobs that exist. Their files are hashed; a corrupt file will be replaced."""
        complete = [blob for blob in blobs if self._layout.blob_size(blob.digest) == blob.size]
        found: set[str] = set()

        def check(blob: Descriptor) -> None:
            if self._layout.has_blob(blob):
                found.add(blob.digest)
                self._stored[blob.digest] = blob.size

        # Hashing releases Python's lock, and is worth threads only for what takes longer than to start them.
        jobs = DEFAULT_JOBS if sum(blob.size for blob in complete) > _MIN_CONCURRENT_HASHING else 1
        run_each(check, complete, jobs=jobs, cancelled=self._cancelled, sets_cancelled=False)
        return found

    def partial_size(self, blob: Descriptor, /) -> int:
        """Return the size of the partial file of a blob."""
        return self._layout.find_partial_size(blob.digest)

    def write(self, blob: VerifiedBlob) -> int:
        """Write the blob under a temporary name, verify it, and rename the file.

        A partial file of an earlier run is resumed; it must have the bytes before the first one of the source.
        """
        require_complete(blob, or_rest=True)
        self._writer.prepare()
        self._layout.store_blob(blob)
        self._stored[blob.descriptor.digest] = blob.descriptor.size
        return 0

    def write_new(self, blob: NewBlob) -> Descriptor:
        """Write the blob under a temporary name, and rename the file once its digest is known."""
        self._writer.prepare()
        descriptor = self._layout.write_new_blob(blob)
        self._stored[descriptor.digest] = descriptor.size
        return descriptor

    def read(self, descriptor: Descriptor) -> Iterator[Chunk]:
        """Yield the chunks of a blob that was written."""
        return self._layout.blob_chunks(descriptor.digest, descriptor.size)

    def commit(self, graph: Graph) -> None:
        """Write the manifests, children first, then `index.json`. A new entry replaces the old entry of the same name.

        Raises:
            LocalDiskError: another process has removed a blob since it was found or written.
        """
        for manifest in graph.manifests:
            digest = manifest.descriptor.digest
            if not self._layout.has_blob(manifest.descriptor):
                self._layout.write_blob(digest, [manifest.raw])
        self.change = self._writer.add(build_entries(graph), graph.omitted_from_output, self._check_still_stored)
        if self._is_shared:
            return
        self._writer.index.flush()
        if self.change.error is not None:
            raise self.change.error
        self._layout.remove_stale(limits.MAX_PARTIAL_AGE)

    def discard(self) -> None:
        """Do nothing: the partial file of a wrong blob is deleted when it is found to be wrong."""

    def close(self) -> None:
        """Release the lock. Partial files stay, so that a later run can resume."""
        if not self._is_shared:
            self._writer.close()

    def _check_still_stored(self) -> None:
        for digest, size in self._stored.items():
            if self._layout.blob_size(digest) != size:
                msg = f"{digest} was removed from {self._layout.path} during the copy"
                raise LocalDiskError(msg, hint="re-run the command: it copies only the missing blobs")
