"""Source and destination for an OCI image layout directory.

Every blob that a transfer relies on is hashed, even if it exists already.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Literal

from ocistream import limits, notices
from ocistream.errors import LocalDiskError, UsageError
from ocistream.layout.directory import LayoutDirectory
from ocistream.layout.image_selection import report_duplicate_names
from ocistream.layout.index import ImageSelector, build_entries, entry_name_of, image_name_of, select_every_image
from ocistream.layout.index_graph import IndexGraphBuilder
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor
from ocistream.oci.omitted_blobs import OMITTED_ANNOTATION, format_omitted, parse_omitted
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.oci.reference import printable
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from ocistream.oci.graph import Graph
    from ocistream.oci.omitted_blobs import OmissionReason
    from ocistream.oci.referrers import ReferrerMode
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import EarlyBlobs, NewBlob

__all__ = ["LayoutDestination", "LayoutSource"]


class LayoutSource:
    """Images out of a layout directory."""

    concurrent = True

    def __init__(
        self,
        path: Path,
        *,
        select: ImageSelector = select_every_image,
        platforms: PlatformChoice = ALL_PLATFORMS,
        referrers: ReferrerMode = "listed",
        include_unneeded: bool = False,
    ) -> None:
        """Open a layout. With `everything`, `blobs` gives those too that no image needs.

        Raises:
            NotFoundError: the directory is not there.
            ArchiveError: it is no layout.
        """
        self._layout = LayoutDirectory(path)
        self._layout.check()
        self._select = select
        self._platforms = platforms
        self._referrers: ReferrerMode = referrers
        self._includes_unneeded = include_unneeded

    def resolve(self, early_blobs: EarlyBlobs) -> Graph:  # noqa: ARG002 - a directory has all its names before its bytes
        """Read `index.json` and every manifest below the chosen images."""
        gathering = IndexGraphBuilder(self._select, self._platforms, self._referrers)
        index = self._layout.read_index()
        docker = self._layout.path / "manifest.json"
        if not index.entries and os.path.lexists(docker):
            notices.notify(
                f"index.json lists no image, and {docker} is not read in a directory; "
                f"to use it: `tar -C {self._layout.path} -cf x.tar .`, then push x.tar"
            )
        gathering.begin(*index)
        while (descriptor := gathering.next_needed()) is not None:
            if not self.supply(gathering, descriptor):
                gathering.mark_missing(descriptor.digest)
        graph = gathering.build()
        report_duplicate_names(graph)
        return graph

    def supply(self, builder: IndexGraphBuilder, needed: Descriptor) -> bool:
        """Answer a need of a graph, and say whether that could be done."""
        if self._layout.blob_size(needed.digest) is None:
            return False
        builder.supply(needed.digest, self._layout.read_blob(needed))
        return True

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Give the wanted blobs that are there, in the order in which they are wanted."""
        for descriptor in wanted:
            if (blob := self.blob(descriptor)) is not None:
                yield blob
        if self._includes_unneeded:
            yield from self.other_blobs({descriptor.digest for descriptor in wanted})

    def blob(self, descriptor: Descriptor) -> Blob | None:
        """Give a blob, if something lies there under its digest."""
        return None if self.is_missing(descriptor) else self._blob(descriptor)

    def other_blobs(self, digests: AbstractSet[str]) -> Iterator[Blob]:
        """Give what is there and is none of these."""
        for digest in self._layout.list_blobs():
            if digest not in digests and (size := self._layout.blob_size(digest)) is not None:
                yield self._blob(Descriptor(UNKNOWN_MEDIA_TYPE, digest, size))

    def is_missing(self, descriptor: Descriptor) -> bool:
        """Say whether nothing lies there under the blob's digest."""
        return self._layout.blob_size(descriptor.digest) is None

    @property
    def layout(self) -> LayoutDirectory:
        """The directory."""
        return self._layout

    def close(self) -> None:
        """Nothing is held open."""

    def _blob(self, descriptor: Descriptor) -> Blob:
        chunks = partial(self._layout.blob_chunks, descriptor.digest, descriptor.size)
        return Blob(descriptor, chunks, open_at=chunks)


class LayoutDestination:
    """Images into a layout directory, beside those that are there."""

    concurrent = True
    can_omit_blobs: Literal[True] = True
    is_incremental: Literal[True] = True

    def __init__(self, path: Path) -> None:
        """Name the directory; it is made when there is something to put there, and not for an image that is not.

        Raises:
            UsageError: there are other things in the directory.
            LocalDiskError: it is no directory, or cannot be read.
        """
        self._layout = LayoutDirectory(path)
        self._layout.check_usable()
        self._created = False
        self._lock: int | None = None
        #: What is relied on: it was there, or was put there.
        self._stored: dict[str, int] = {}

    def begin(self, graph: Graph) -> None:
        """Make the directory a layout, unless it is one.

        Raises:
            UsageError: two different images have the same name, of which one would be lost.
            LocalDiskError: it cannot be made.
        """
        named: dict[str, str] = {}
        for entry in build_entries(graph):
            name, digest = image_name_of(entry), entry.digest
            if name is not None and named.setdefault(name, digest) != digest:
                msg = f"two images are called {printable(name)!r}, and in a layout a name stands for one"
                raise UsageError(msg, hint=f"copy them one by one: {named[name]} and {digest}")
        self._create()

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Hash what is there under the blob's name; if it is not the blob, it will be written over."""
        is_there = self._layout.has_blob(descriptor)
        if is_there:
            self._stored[descriptor.digest] = descriptor.size
        return is_there

    has_manifest = has_blob

    def write(self, blob: Blob) -> None:
        """Write the blob under a temporary name, and rename it once all of it has been verified.

        What an earlier run has left of it is gone on with.
        """
        if not self._created:
            self._create()
        self._layout.store_blob(blob)
        self._stored[blob.descriptor.digest] = blob.descriptor.size

    def write_rest(self, blob: Blob) -> None:
        """Write the rest of a blob behind what an earlier run has left of it; all of it is hashed."""
        self.write(blob)

    def can_retry(self) -> bool:
        """Say that nothing is left of a blob that failed."""
        return True

    def expect(self, graph: Graph) -> None:
        """Make the directory a layout, as `begin` does."""
        self.begin(graph)

    def write_new(self, blob: NewBlob) -> Descriptor:
        """Write the blob under a temporary name, and rename it once its digest is known."""
        if not self._created:
            self._create()
        descriptor = self._layout.write_new_blob(blob)
        self._stored[descriptor.digest] = descriptor.size
        return descriptor

    def read_back(self, descriptor: Descriptor) -> bytes:
        """Read small content back."""
        return self._layout.read_blob(descriptor)

    def read_blob(self, descriptor: Descriptor) -> Iterator[Chunk]:
        """Read a blob that was put."""
        return self._layout.blob_chunks(descriptor.digest, descriptor.size)

    def commit(self, graph: Graph) -> None:
        """Write the manifests, children first, then `index.json` with the new names in place of their old meaning.

        Raises:
            LocalDiskError: a blob has been removed since it was seen or written, by whoever tidied up.
        """
        for manifest in graph.manifests:
            digest = manifest.descriptor.digest
            if not self._layout.has_blob(manifest.descriptor):
                self._layout.write_blob(digest, [manifest.raw])
        new = build_entries(graph)

        def change(entries: list[Descriptor]) -> list[Descriptor]:
            # `gc` has the same lock, so what is there now is there when the index names it.
            self._check_still_stored()
            self._report_replaced(entries, new)
            return merge_entries(entries, new)

        self._layout.change_index_and_annotations(
            change, lambda notes: self._build_omitted_annotation(notes, graph.omitted_from_output)
        )
        self._layout.remove_stale(limits.MAX_PARTIAL_AGE)

    def close(self) -> None:
        """Nothing is left to drop: what a blob that was not finished has left is to be gone on with."""
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
                msg = f"{digest} has been removed from {self._layout.path} meanwhile"
                raise LocalDiskError(msg, hint="run the same command again: only what is gone is moved again")

    def _build_omitted_annotation(
        self, annotations: Mapping[str, str], omitted: Mapping[str, OmissionReason]
    ) -> Mapping[str, str]:
        """Say of the blobs that were left out, now or before, which are not there for another reason."""
        before = parse_omitted(annotations.get(OMITTED_ANNOTATION, ""))
        lacking = {
            digest: reason for digest, reason in {**before, **omitted}.items() if self._layout.blob_size(digest) is None
        }
        others = {key: value for key, value in annotations.items() if key != OMITTED_ANNOTATION}
        return {**others, OMITTED_ANNOTATION: format_omitted(lacking)} if lacking else others

    def _create(self) -> None:
        self._layout.create()
        if self._lock is None:
            self._lock = self._layout.lock_blobs()
        self._layout.remove_stale()
        self._created = True


def merge_entries(entries: Sequence[Descriptor], added: Sequence[Descriptor]) -> list[Descriptor]:
    """Add to the entries of an index; a name that is there gets its new meaning, the others stay."""
    new = {_entry_key(entry): entry for entry in added}
    return [*(entry for entry in entries if _entry_key(entry) not in new), *new.values()]


def _entry_key(entry: Descriptor) -> tuple[str | None, str]:
    """Say what an entry is the only one of: a name, or, without one, a digest."""
    name = entry_name_of(entry)
    return (name, "") if name is not None else (None, entry.digest)
