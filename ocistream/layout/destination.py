"""An OCI image layout directory as a destination of images.

Every blob that a transfer relies on is hashed, even if it exists already. No `manifest.json` is written: no tool reads
that file in a directory, and `serve` changes only `index.json`.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

from ocistream import limits, notices
from ocistream.errors import LocalDiskError, UsageError
from ocistream.layout.directory import LayoutDirectory
from ocistream.layout.index import build_entries, entry_name_of, image_name_of
from ocistream.oci.omitted_blobs import OMITTED_ANNOTATION, format_omitted, parse_omitted
from ocistream.oci.reference import printable
from ocistream.streams.workers import DEFAULT_JOBS, run_each
from ocistream.transfer.interfaces import Traits
from ocistream.transfer.verified_blobs import require_complete

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.oci.omitted_blobs import OmissionReason
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import NewBlob, VerifiedBlob

__all__ = ["LayoutDestination", "merge_entries"]

#: Bytes of existing blobs from which on they are hashed in several threads.
_MIN_CONCURRENT_HASHING: Final = 16 * limits.MIB


class LayoutDestination:
    """Writes images into a layout directory that may have other images."""

    traits = Traits(concurrent=True, keeps_blobs=True, can_omit=True)

    def __init__(self, path: Path, cancelled: threading.Event | None = None) -> None:
        """Take the directory. It is created with the first blob, and not if the image does not exist.

        `cancelled` stops the hashing of existing blobs.

        Raises:
            UsageError: the directory has other contents.
            LocalDiskError: the path is not a directory, or cannot be read.
        """
        self._layout = LayoutDirectory(path)
        self._layout.check_usable()
        self._cancelled = cancelled or threading.Event()
        self._created = False
        self._create_lock = threading.Lock()
        self._lock: int | None = None
        #: Sizes of the blobs that this transfer found or wrote, by digest.
        self._stored: dict[str, int] = {}

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
        self._create()

    def stored(
        self,
        blobs: Sequence[Descriptor],
        *,
        are_manifests: bool = False,  # noqa: ARG002 - they are files alike
        partial: bool = False,
    ) -> dict[str, int]:
        """Return the sizes of the blobs that exist. Their files are hashed; a corrupt file will be replaced."""
        complete = [blob for blob in blobs if self._layout.blob_size(blob.digest) == blob.size]
        found: dict[str, int] = {}

        def check(blob: Descriptor) -> None:
            if self._layout.has_blob(blob):
                found[blob.digest] = self._stored[blob.digest] = blob.size

        # Hashing releases Python's lock, and is worth threads only for what takes longer than to start them.
        jobs = DEFAULT_JOBS if sum(blob.size for blob in complete) > _MIN_CONCURRENT_HASHING else 1
        run_each(check, complete, jobs=jobs, cancelled=self._cancelled, sets_cancelled=False)
        if partial:
            for blob in blobs:
                if blob.digest not in found and (size := self._layout.find_partial_size(blob.digest)):
                    found[blob.digest] = size
        return found

    def write(self, blob: VerifiedBlob) -> int:
        """Write the blob under a temporary name, verify it, and rename the file.

        A partial file of an earlier run is resumed; it must have the bytes before the first one of the source.
        """
        require_complete(blob, or_rest=True)
        if not self._created:
            self._create()
        self._layout.store_blob(blob)
        self._stored[blob.descriptor.digest] = blob.descriptor.size
        return 0

    def write_new(self, blob: NewBlob) -> Descriptor:
        """Write the blob under a temporary name, and rename the file once its digest is known."""
        if not self._created:
            self._create()
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
        new = build_entries(graph)

        def change(entries: list[Descriptor]) -> list[Descriptor]:
            # `gc` takes the same lock, so blobs that exist now also exist when the index lists them.
            self._check_still_stored()
            self._report_replaced(entries, new)
            return merge_entries(entries, new)

        self._layout.change_index_and_annotations(
            change, lambda annotations: self._build_omitted_annotation(annotations, graph.omitted_from_output)
        )
        self._layout.remove_stale(limits.MAX_PARTIAL_AGE)

    def discard(self) -> None:
        """Do nothing: the partial file of a wrong blob is deleted when it is found to be wrong."""

    def close(self) -> None:
        """Release the lock. Partial files stay, so that a later run can resume."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _report_replaced(self, entries: Sequence[Descriptor], new: Sequence[Descriptor]) -> None:
        digests = {name: entry.digest for entry in new if (name := entry_name_of(entry)) is not None}
        for entry in entries:
            name = entry_name_of(entry)
            if name is not None and digests.get(name, entry.digest) != entry.digest:
                where = f"{printable(name)} in {printable(str(self._layout.path), 1024)}"
                notices.notify(f"{where}: replacing {entry.digest}", level=1)

    def _check_still_stored(self) -> None:
        for digest, size in self._stored.items():
            if self._layout.blob_size(digest) != size:
                msg = f"{digest} was removed from {self._layout.path} during the copy"
                raise LocalDiskError(msg, hint="re-run the command: it copies only the missing blobs")

    def _build_omitted_annotation(
        self, annotations: Mapping[str, str], omitted: Mapping[str, OmissionReason]
    ) -> Mapping[str, str]:
        """Return the annotations with the reasons for blobs that were omitted, now or before, and do not exist."""
        previous = parse_omitted(annotations.get(OMITTED_ANNOTATION, ""))
        missing = {
            digest: reason
            for digest, reason in {**previous, **omitted}.items()
            if self._layout.blob_size(digest) is None
        }
        other_annotations = {key: value for key, value in annotations.items() if key != OMITTED_ANNOTATION}
        return {**other_annotations, OMITTED_ANNOTATION: format_omitted(missing)} if missing else other_annotations

    def _create(self) -> None:
        with self._create_lock:
            self._layout.create()
            if self._lock is None:
                self._lock = self._layout.lock_blobs()
            self._layout.remove_stale()
            self._created = True


def merge_entries(entries: Sequence[Descriptor], added: Sequence[Descriptor]) -> list[Descriptor]:
    """Add entries to an index. A new entry replaces the old one of the same name; other entries stay.

    That includes referrers with a tag of cosign's: their name has their repository, so the old one came from there too.
    """
    new = {_entry_key(entry): entry for entry in added}
    return [*(entry for entry in entries if _entry_key(entry) not in new), *new.values()]


def _entry_key(entry: Descriptor) -> tuple[str | None, str]:
    """Return the unique key of an entry: its name, or its digest if it has no name."""
    name = entry_name_of(entry)
    return (name, "") if name is not None else (None, entry.digest)
