"""The two sides of a sync: what is opened again and again to be read, and what is asked of a destination beforehand."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ocistream import notices
from ocistream.archive.compressed import is_compressed
from ocistream.errors import NotFoundError, OcistreamError, UnsupportedError, UsageError
from ocistream.layout.directory import LayoutDirectory
from ocistream.layout.index import entry_name_of
from ocistream.oci.reference import printable
from ocistream.registry.repository import Repository
from ocistream.stores import Selection, is_directory, is_layout_destination, open_source
from ocistream.streams import paths
from ocistream.streams.files import disk_errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.stores import Location, OpenContext
    from ocistream.streams.chunks import Chunk
    from ocistream.sync.plan import CopyDestination
    from ocistream.transfer.interfaces import Blob, Source

__all__ = ["DestinationState", "IndexCache", "IndexDigests", "open_rereadable", "read_graph"]


class DestinationState:
    """What is at one destination: a tag's digest, or what an index.json lists."""

    def __init__(self, target: CopyDestination, context: OpenContext, indexes: IndexCache) -> None:
        """Look, but ask no registry yet.

        Raises:
            OcistreamError: a layout cannot be read.
        """
        self._destination = target
        self._context = context
        self._repository: Repository | None = None
        self._entries: Sequence[Descriptor] = ()
        self._index: IndexDigests | None = None
        reference, end = target.reference, target.sync_location.location
        if reference is not None:
            self._repository = Repository(context.client(), reference.registry, reference.repository, for_push=True)
            return
        with disk_errors(f"cannot look into {printable(end.text)}"):
            if is_layout_destination(end):
                self._index = indexes.read(end)
            else:
                self._entries = _read_archive_entries(end, context)

    def find_digest(self) -> str | None:
        """Give the digest of the image that has the name, or None.

        Raises:
            OcistreamError: the registry failed or refused.
        """
        reference = self._destination.reference
        if self._repository is not None and reference is not None:
            return self._repository.find_digest(reference.target)
        if self._index is None:
            return self._entries[0].digest if self._entries else None
        return self._index.by_name.get(self._destination.image_name or "")

    def has_all_referrers(self, graph: Graph, digest: str) -> bool:
        """Say whether what hangs on an image is there too. The graph may be that of another by now, which is not."""
        if digest not in {graph.roots[0].descriptor.digest, *(index.digest for index in graph.incomplete_indexes)}:
            return False
        below = {child.digest for document in graph.documents.values() for child in document.manifests}
        listed = self._index.digests if self._index is not None else {entry.digest for entry in self._entries}
        for attached in graph.all_referrers:
            if self._repository is None:
                # What an index lists has no entry of its own.
                if attached.descriptor.digest not in listed | below:
                    return False
            elif self._repository.find_digest(attached.tag or attached.descriptor.digest) != attached.descriptor.digest:
                return False
        return True


class IndexDigests:
    """What an index.json lists: the digest that each name has, and all digests."""

    def __init__(self, entries: Sequence[Descriptor]) -> None:
        """Sort the entries; of two with one name, the first counts."""
        self.digests = frozenset(entry.digest for entry in entries)
        self.by_name = {name: entry.digest for entry in reversed(entries) if (name := entry_name_of(entry))}


class IndexCache:
    """The index.json of layouts that are written to, each read again only where it has changed: it may list thousands.

    Safe for several threads.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._lock = threading.Lock()
        self._cached: dict[Path, tuple[tuple[int, ...], IndexDigests]] = {}

    def read(self, location: Location) -> IndexDigests:
        """Give the index of a layout; an empty one where there is none yet.

        Raises:
            ArchiveError: it is malformed.
            OSError: it cannot be read.
        """
        assert location.path is not None, "it is no registry"  # noqa: S101 - see above
        path = location.path / "index.json"
        # An empty directory is no layout yet.
        if not is_directory(location) or not paths.exists(path):
            return IndexDigests(())
        with self._lock:
            found = path.stat()
            # It is replaced whole, never written over, so another one is another file.
            state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            known = self._cached.get(location.path)
            if known is None or known[0] != state:
                known = self._cached[location.path] = (
                    state,
                    IndexDigests(LayoutDirectory(location.path).read_index()[0]),
                )
            return known[1]


def _read_archive_entries(location: Location, context: OpenContext) -> Sequence[Descriptor]:
    """Give the image of an archive, and what hangs on it; nothing where it is none, for it is made anew then."""
    try:
        with ExitStack() as stack:
            source = open_rereadable(location, context, Selection(referrers="along"))
            stack.callback(source.close)
            graph = read_graph(source, location)
    except NotFoundError:
        return ()
    except OcistreamError as error:
        notices.notify(f"{printable(location.text)} is replaced: it cannot be read as an archive ({error.message})")
        return ()
    if len(graph.roots) != 1:
        notices.notify(f"{printable(location.text)} is replaced: it has {len(graph.roots)} images, and gets one")
        return ()
    if any(graph.omitted_from_source):
        return ()
    return [graph.roots[0].descriptor, *(attached.descriptor for attached in graph.all_referrers)]


def open_rereadable(location: Location, context: OpenContext, selection: Selection) -> Source:
    """Open what can be read again, and more than once.

    Raises:
        UsageError: it cannot.
        LocalDiskError: nothing can be called so, or it cannot be read.
        OcistreamError: it is not there, or malformed.
    """
    with disk_errors(f"cannot read {printable(location.text)}"):
        return _open_checked(location, context, selection)


def _open_checked(location: Location, context: OpenContext, selection: Selection) -> Source:
    if location.path is not None and not is_directory(location):
        if paths.exists(location.path) and (not paths.is_file(location.path) or is_compressed(location.path)):
            what = "compressed" if paths.is_file(location.path) else "no file"
            msg = f"{printable(location.text)} is {what}, and is read repeatedly"
            raise UsageError(msg, hint="unpack it first")
        if not paths.exists(location.path):
            msg = f"{printable(location.text)}: there is no such file or directory"
            raise NotFoundError(msg)
    return open_source(location, context, selection)


def read_graph(source: Source, location: Location) -> Graph:
    """Read the manifests of a source.

    Raises:
        UnsupportedError: it is a docker-archive.
        OcistreamError: they cannot be had.
    """
    graph = source.resolve(_NoEarlyBlobs())
    if graph.synthesized:
        msg = f"{printable(location.text)} is a docker-archive, of which no digest is known before it is compressed"
        raise UnsupportedError(msg, hint="make a layout of it first: ocistream copy docker-archive:FILE oci:DIR")
    return graph


class _NoEarlyBlobs:
    """Where a source may leave what comes early: nothing does, from what can be read again."""

    def write(self, blob: Blob) -> None:
        raise UnsupportedError(f"{blob.descriptor.digest} comes before its image")

    def write_new(self, chunks: Iterator[Chunk]) -> Descriptor:  # noqa: ARG002 - the protocol's form
        raise UnsupportedError("a layer comes before its image")

    def read_back(self, descriptor: Descriptor) -> bytes:
        raise UnsupportedError(f"{descriptor.digest} was not kept")
