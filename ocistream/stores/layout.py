"""OCI image layouts in a directory, read and added to (image-spec, image-layout.md).

What a transfer relies on is hashed, whoever wrote it. What lies where is layout_directory.py's concern.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream.errors import UsageError
from ocistream.graph import Graph, GraphBuilder, Root
from ocistream.interfaces import Blob
from ocistream.model import UNKNOWN_TYPE, Descriptor
from ocistream.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.reference import printable
from ocistream.stores.index import Selection, entry_for, every_image, name_of, roots_of
from ocistream.stores.layout_directory import LayoutDirectory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ocistream.interfaces import Early, Unnamed
    from ocistream.stream import Chunk

__all__ = ["LayoutSink", "LayoutSource"]


class LayoutSource:
    """Images out of a layout directory."""

    parallel = True

    def __init__(
        self,
        path: Path,
        *,
        select: Selection = every_image,
        platforms: PlatformChoice = ALL_PLATFORMS,
        everything: bool = False,
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
        self._everything = everything

    def graph(self, early: Early) -> Graph:  # noqa: ARG002 - a directory has all its names before its bytes
        """Read `index.json` and every manifest below the chosen images."""
        builder = GraphBuilder(self._platforms)
        for root in self._select(roots_of(self._layout.entries())):
            builder.add_root(root)
        while builder.needs:
            descriptor = next(iter(builder.needs.values()))
            if self._layout.blob_size(descriptor.digest) is None:
                builder.lacks(descriptor.digest)
            else:
                builder.supply(descriptor.digest, self._layout.read_blob(descriptor))
        return builder.graph()

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Give the wanted blobs that are there, in the order in which they are wanted."""
        for descriptor in wanted:
            if self._layout.blob_size(descriptor.digest) is not None:
                yield Blob(descriptor, self._opener(descriptor))
        if self._everything:
            named = {descriptor.digest for descriptor in wanted}
            for digest in self._layout.blobs():
                if digest not in named and (size := self._layout.blob_size(digest)) is not None:
                    descriptor = Descriptor(UNKNOWN_TYPE, digest, size)
                    yield Blob(descriptor, self._opener(descriptor))

    @property
    def layout(self) -> LayoutDirectory:
        """The directory."""
        return self._layout

    def close(self) -> None:
        """Nothing is held open."""

    def _opener(self, descriptor: Descriptor) -> Callable[[], Iterator[Chunk]]:
        return lambda: self._layout.blob_chunks(descriptor.digest, descriptor.size)


class LayoutSink:
    """Images into a layout directory, beside those that are there."""

    parallel = True

    def __init__(self, path: Path) -> None:
        """Name the directory; it is made when there is something to put there, and not for an image that is not.

        Raises:
            UsageError: there are other things in the directory.
            LocalDiskError: it is no directory, or cannot be read.
        """
        self._layout = LayoutDirectory(path)
        self._layout.check_free()
        self._created = False

    def begin(self, graph: Graph) -> None:
        """Make the directory a layout, unless it is one.

        Raises:
            UsageError: two different images have the same name, of which one would be lost.
            LocalDiskError: it cannot be made.
        """
        named: dict[str, str] = {}
        for root in graph.roots:
            name, digest = name_of(entry_for(root)), root.descriptor.digest
            if name is not None and named.setdefault(name, digest) != digest:
                msg = f"two images are called {printable(name)!r}, and in a layout a name stands for one"
                raise UsageError(msg, hint=f"copy them one by one: {named[name]} and {digest}")
        self._create()

    def has(self, descriptor: Descriptor) -> bool:
        """Hash what is there under the blob's name; if it is not the blob, it will be written over."""
        return self._layout.holds(descriptor)

    has_manifest = has

    def put(self, blob: Blob) -> None:
        """Write the blob under a temporary name, and rename it once all of it has been verified."""
        if not self._created:
            self._create()
        self._layout.write_blob(blob.descriptor.digest, blob.open())

    def takes_again(self) -> bool:
        """Say that nothing is left of a blob that failed."""
        return True

    def expect(self, graph: Graph) -> None:
        """Make the directory a layout, as `begin` does."""
        self.begin(graph)

    def put_unnamed(self, blob: Unnamed) -> Descriptor:
        """Write the blob under a temporary name, and rename it once its digest is known."""
        if not self._created:
            self._create()
        return self._layout.write_unnamed(blob)

    def recall(self, descriptor: Descriptor) -> bytes:
        """Read small content back."""
        return self._layout.read_blob(descriptor)

    def commit(self, graph: Graph) -> None:
        """Write the manifests, children first, then `index.json` with the new names in place of their old meaning."""
        for manifest in graph.manifests:
            digest = manifest.descriptor.digest
            if not self._layout.holds(manifest.descriptor):
                self._layout.write_blob(digest, [manifest.raw])
        self._layout.change_index(lambda entries: merge(entries, graph.roots))

    def close(self) -> None:
        """Nothing is left to drop: a blob that was not finished has gone with its temporary file."""

    def _create(self) -> None:
        self._layout.create()
        self._created = True


def merge(entries: Sequence[Descriptor], roots: Sequence[Root]) -> list[Descriptor]:
    """Add roots to the entries of an index; a name that is there gets its new meaning, the others stay."""
    new = {_key(entry): entry for entry in map(entry_for, roots)}
    return [*(entry for entry in entries if _key(entry) not in new), *new.values()]


def _key(entry: Descriptor) -> tuple[str | None, str]:
    """Say what an entry is the only one of: a name, or, without one, a digest."""
    name = name_of(entry)
    return (name, "") if name is not None else (None, entry.digest)
