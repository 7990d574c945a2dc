"""An OCI image layout directory as a source of images."""

from __future__ import annotations

import copy
import os
from functools import partial
from typing import TYPE_CHECKING

from ocistream import notices
from ocistream.layout.directory import LayoutDirectory
from ocistream.layout.image_selection import ALL_IMAGES, Selection, report_duplicate_names
from ocistream.layout.index_walk import IndexWalk
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor
from ocistream.oci.walk import Need, run_walk
from ocistream.transfer.interfaces import Blob, CompleteSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from ocistream.layout.index import LayoutIndex
    from ocistream.oci.graph import Graph
    from ocistream.transfer.interfaces import EarlyBlobs


class LayoutSource(CompleteSource):
    """Reads images from a layout directory."""

    concurrent = True
    may_lack_blobs = True

    def __init__(self, path: Path, selection: Selection = ALL_IMAGES) -> None:
        """Open a layout.

        Raises:
            NotFoundError: the directory does not exist.
            ArchiveError: the directory is not a layout.
        """
        #: The layout directory.
        self.layout = LayoutDirectory(path)
        self.layout.check()
        self._selection = selection
        #: The index, if a caller has read it.
        self._index: LayoutIndex | None = None

    def open_images(self, index: LayoutIndex, selection: Selection) -> LayoutSource:
        """Return a source of images of the layout. `index` lists these images, and every possible referrer."""
        images = copy.copy(self)
        images._index, images._selection = index, selection  # noqa: SLF001 - same class
        return images

    def read_index(self) -> LayoutIndex:
        """Return the contents of `index.json`."""
        index = self.layout.read_index()
        manifest_json = self.layout.path / "manifest.json"
        if not index.entries and os.path.lexists(manifest_json):
            notices.notify(
                f"index.json lists no images, and {manifest_json} is not read in a directory; to use it, "
                f"run `tar -C {self.layout.path} -cf x.tar .` and push x.tar"
            )
        return index

    def resolve(self, early_blobs: EarlyBlobs) -> Graph:  # noqa: ARG002 - blobs can be read in any order
        """Read `index.json` and every manifest below the selected images."""
        walk = IndexWalk(self._index or self.read_index(), self._selection)
        graph = run_walk(walk.run(), self.read)
        report_duplicate_names(graph)
        return graph

    def read(self, need: Need) -> bytes | None:
        """Return a document that a graph needs, or None if the layout does not have it."""
        return None if self.is_absent(need.descriptor) else self.layout.read_blob(need.descriptor)

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Yield the wanted blobs that exist, in the order of `wanted`."""
        for descriptor in wanted:
            if (blob := self.blob(descriptor)) is not None:
                yield blob
        if self._selection.all_blobs:
            yield from self.other_blobs({descriptor.digest for descriptor in wanted})

    def blob(self, descriptor: Descriptor) -> Blob | None:
        """Return a blob, or None if no file has its name. The content is not checked here."""
        return None if self.is_absent(descriptor) else self._blob(descriptor)

    def other_blobs(self, digests: AbstractSet[str]) -> Iterator[Blob]:
        """Yield the blobs that are not among `digests`."""
        for digest in self.layout.list_blobs():
            if digest not in digests and (size := self.layout.blob_size(digest)) is not None:
                yield self._blob(Descriptor(UNKNOWN_MEDIA_TYPE, digest, size))

    def is_absent(self, descriptor: Descriptor) -> bool:
        """Return whether no file has the blob's name."""
        return self.layout.blob_size(descriptor.digest) is None

    def stored_size(self, digest: str) -> int | None:
        """Return the size of a blob's file, or None."""
        return self.layout.blob_size(digest)

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _blob(self, descriptor: Descriptor) -> Blob:
        chunks = partial(self.layout.blob_chunks, descriptor.digest, descriptor.size)
        return Blob(descriptor, chunks)
