"""An OCI image layout directory as a source of images."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from ocistream import notices
from ocistream.layout.directory import LayoutDirectory
from ocistream.layout.image_selection import report_duplicate_names
from ocistream.layout.index import ImageSelector, select_every_image
from ocistream.layout.index_walk import IndexWalk
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.oci.walk import Need, run_walk
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from ocistream.layout.index import LayoutIndex
    from ocistream.oci.graph import Graph
    from ocistream.oci.referrers import ReferrerMode
    from ocistream.transfer.interfaces import BlobPart, EarlyBlobs

__all__ = ["LayoutSource"]


class LayoutSource:
    """Reads images from a layout directory."""

    concurrent = True

    def __init__(
        self,
        path: Path,
        *,
        select: ImageSelector = select_every_image,
        platforms: PlatformChoice = ALL_PLATFORMS,
        referrers: ReferrerMode = "list",
        with_signatures: bool = False,
        include_unneeded: bool = False,
    ) -> None:
        """Open a layout. With `include_unneeded`, `blobs` also yields blobs that no image needs.

        Raises:
            NotFoundError: the directory does not exist.
            ArchiveError: the directory is not a layout.
        """
        self._layout = LayoutDirectory(path)
        self._layout.check()
        self._select = select
        self._platforms = platforms
        self._referrers: ReferrerMode = referrers
        self._with_signatures = with_signatures
        self._includes_unneeded = include_unneeded

    def read_index(self) -> LayoutIndex:
        """Return the contents of `index.json`."""
        index = self._layout.read_index()
        manifest_json = self._layout.path / "manifest.json"
        if not index.entries and os.path.lexists(manifest_json):
            notices.notify(
                f"index.json lists no images, and {manifest_json} is not read in a directory; to use it, "
                f"run `tar -C {self._layout.path} -cf x.tar .` and push x.tar"
            )
        return index

    def resolve(self, early_blobs: EarlyBlobs) -> Graph:  # noqa: ARG002 - blobs can be read in any order
        """Read `index.json` and every manifest below the selected images."""
        walk = IndexWalk(
            self.read_index(), self._select, self._platforms, self._referrers, with_signatures=self._with_signatures
        )
        graph = run_walk(walk.run(), self.read)
        report_duplicate_names(graph)
        return graph

    def read(self, need: Need) -> bytes | None:
        """Return a document that a graph needs, or None if the layout does not have it."""
        return None if self.is_missing(need.descriptor) else self._layout.read_blob(need.descriptor)

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Yield the wanted blobs that exist, in the order of `wanted`."""
        for descriptor in wanted:
            if (blob := self.blob(descriptor)) is not None:
                yield blob
        if self._includes_unneeded:
            yield from self.other_blobs({descriptor.digest for descriptor in wanted})

    def blob(self, descriptor: Descriptor) -> Blob | None:
        """Return a blob, or None if no file has its name. The content is not checked here."""
        return None if self.is_missing(descriptor) else self._blob(descriptor)

    def other_blobs(self, digests: AbstractSet[str]) -> Iterator[Blob]:
        """Yield the blobs that are not among `digests`."""
        for digest in self._layout.list_blobs():
            if digest not in digests and (size := self._layout.blob_size(digest)) is not None:
                yield self._blob(Descriptor(UNKNOWN_MEDIA_TYPE, digest, size))

    def is_missing(self, descriptor: Descriptor) -> bool:
        """Return whether no file has the blob's name."""
        return self._layout.blob_size(descriptor.digest) is None

    def stored_size(self, digest: str) -> int | None:
        """Return the size of a blob's file, or None."""
        return self._layout.blob_size(digest)

    def parts(self, descriptor: Descriptor) -> Sequence[BlobPart]:  # noqa: ARG002 - no blob is split here
        """Return nothing: a layout has complete blobs only."""
        return ()

    @property
    def layout(self) -> LayoutDirectory:
        """The layout directory."""
        return self._layout

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _blob(self, descriptor: Descriptor) -> Blob:
        chunks = partial(self._layout.blob_chunks, descriptor.digest, descriptor.size)
        return Blob(descriptor, chunks)
