"""The locations that the images of a sync share: sources, which are read repeatedly, and destination layouts.

A layout or an archive stays open and indexed for the complete run, because it may have thousands of images.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final, cast

from ocistream.archive.decompression import is_compressed
from ocistream.errors import NotFoundError, UnsupportedError, UsageError
from ocistream.layout.destination import LayoutWriter, ListedImages
from ocistream.layout.image_lookup import ImageLookup
from ocistream.layout.image_selection import Selection, select_named_images
from ocistream.layout.index_walk import IndexWalk
from ocistream.layout.source import LayoutSource
from ocistream.locations import is_directory, open_source, path_of
from ocistream.oci.reference import printable
from ocistream.oci.walk import run_walk
from ocistream.streams import paths
from ocistream.streams.files import disk_errors, file_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ocistream.archive.file_source import ArchiveFileSource
    from ocistream.layout.index import LayoutIndex
    from ocistream.locations import Location, OpenContext
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph, Root
    from ocistream.oci.referrers import SkippedReferrer
    from ocistream.streams.chunks import Chunk
    from ocistream.streams.files import FileState
    from ocistream.transfer.interfaces import Blob, BlobPart, EarlyBlobs, Source

#: Layouts and archives that stay open; a sync file may name thousands.
_MAX_OPEN: Final = 4
#: Guards the open layouts and archives. Indexes are read under it, one at a time, because each takes some megabytes.
_lock: Final = threading.RLock()
#: What a layout or an archive that does not exist lists.
NO_IMAGES: Final = ListedImages(lambda _name: None, frozenset())


class SyncSources:
    """Opens the images of one run. Safe for several threads."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._opened: dict[Path, _LocalImages] = {}

    def open(self, location: Location, context: OpenContext, selection: Selection) -> Source:
        """Open one image of a registry, a layout or an archive.

        Raises:
            UsageError: the location can be read only once.
            LocalDiskError: the path is invalid or cannot be read.
            UnsupportedError: the source is a docker-archive.
            OcistreamError: the source does not exist or is malformed.
        """
        if location.path is None:
            return open_source(location, context, selection)
        images = self._acquire(location, context)
        index = images.index
        selection = replace(selection, where=location.description)
        if location.name is not None:
            index = images.lookup.find(location.name)
            selection = replace(selection, select=select_named_images([location.name]))
        return _LocalImage(images, index, selection, lambda: self._release(images))

    def list_images(self, location: Location, context: OpenContext) -> tuple[Sequence[Root], list[SkippedReferrer]]:
        """Return the images of a layout or an archive, and the referrers whose subject it lacks.

        Raises:
            OcistreamError: as `open`.
        """
        images = self._acquire(location, context)
        try:
            return images.lookup.list_images()
        finally:
            self._release(images)

    def close(self) -> None:
        """Close the layouts and archives."""
        with _lock:
            for path in [*self._opened]:
                self._drop(path)

    def _acquire(self, location: Location, context: OpenContext) -> _LocalImages:
        path = path_of(location)
        with _lock, disk_errors(f"cannot read {printable(location.text)}"):
            status = paths.status(path / "index.json" if is_directory(location) else path)
            state = file_state(status) if status is not None else None
            images = self._opened.get(path)
            # A file is replaced, never overwritten: another entry of the sync file may write to this location.
            if images is None or images.state != state:
                self._drop(path)
                images = self._opened[path] = _LocalImages(location, context, state)
                for oldest in [*self._opened][:-_MAX_OPEN]:
                    self._drop(oldest)
            images.users += 1
            return images

    def _release(self, images: _LocalImages) -> None:
        with _lock:
            images.users -= 1
            if images.is_dropped and not images.users:
                images.source.close()

    def _drop(self, path: Path) -> None:
        """Close a layout or an archive as soon as none of its images is in use. The caller holds the lock."""
        if (images := self._opened.pop(path, None)) is not None:
            images.is_dropped = True
            if not images.users:
                images.source.close()


class _LocalImages:
    """An open layout or archive, with its index."""

    def __init__(self, location: Location, context: OpenContext, state: FileState | None) -> None:
        self.state = state
        self.users = 0
        self.is_dropped = False
        self.source = _open_source(location, context)
        try:
            self.index, self.synthesized = _read_index(self.source, location)
            self.lookup = ImageLookup(self.index, self.source.read, image_digests=self.synthesized)
        except BaseException:
            self.source.close()
            raise


def _open_source(location: Location, context: OpenContext) -> LayoutSource | ArchiveFileSource:
    if not is_directory(location):
        path = path_of(location)
        if not paths.exists(path):
            msg = f"{printable(location.text)}: no such file or directory"
            raise NotFoundError(msg)
        if not paths.is_file(path) or is_compressed(path):
            kind = "compressed" if paths.is_file(path) else "no file"
            msg = f"{printable(location.text)} is {kind}, but must be read repeatedly"
            raise UsageError(msg, hint="decompress it first")
    return cast("LayoutSource | ArchiveFileSource", open_source(replace(location, name=None), context, Selection()))


def _read_index(source: LayoutSource | ArchiveFileSource, location: Location) -> tuple[LayoutIndex, frozenset[str]]:
    """Return the index, and the digests of the images that only `manifest.json` lists."""
    if isinstance(source, LayoutSource):
        return source.read_index(), frozenset()
    if source.contents.is_docker_archive:
        raise _docker_archive_error(location)
    source.check_duplicates()
    return source.read_complete_index(), frozenset(source.synthesized_manifests)


class _LocalImage:
    """A source with one image of an open layout or archive."""

    concurrent = True
    may_lack_blobs = True

    def __init__(
        self, images: _LocalImages, index: LayoutIndex, selection: Selection, on_close: Callable[[], None]
    ) -> None:
        self._images = images
        self._source = images.source
        self._index = index
        self._selection = selection
        self._on_close = on_close

    def resolve(self, early_blobs: EarlyBlobs) -> Graph:  # noqa: ARG002 - blobs can be read in any order
        synthesized = self._images.synthesized
        walk = IndexWalk(self._index, self._selection, image_digests=synthesized)
        graph = run_walk(walk.run(), self._source.read)
        return replace(graph, synthesized=synthesized.intersection(graph.documents))

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        return (blob for descriptor in wanted if (blob := self._source.blob(descriptor)) is not None)

    def is_absent(self, descriptor: Descriptor) -> bool | None:
        return self._source.is_absent(descriptor)

    def parts(self, descriptor: Descriptor) -> Sequence[BlobPart]:
        return self._source.parts(descriptor)

    def stored_size(self, digest: str) -> int | None:
        return self._source.stored_size(digest)

    def close(self) -> None:
        self._on_close()


class LayoutWriters:
    """The layouts that a run writes to: each has one writer for all its images. Safe for several threads."""

    def __init__(self) -> None:
        """Start without layouts."""
        self._writers: dict[Path, LayoutWriter] = {}

    def open(self, path: Path) -> LayoutWriter:
        """Return the writer of a layout.

        Raises:
            UsageError, ArchiveError, LocalDiskError: as `LayoutWriter`.
        """
        with _lock:
            if path not in self._writers:
                self._writers[path] = LayoutWriter(path)
            return self._writers[path]

    def list_images(self, location: Location) -> ListedImages:
        """Return the images of a layout; none if it does not exist yet.

        Raises:
            ArchiveError: the index is malformed.
            LocalDiskError: the index cannot be read.
        """
        path = path_of(location)
        # An empty directory is not a layout yet.
        if not is_directory(location) or not paths.exists(path / "index.json"):
            return NO_IMAGES
        with _lock:
            return self.open(path).list_images()

    @property
    def is_flushed(self) -> bool:
        """Whether no copied image waits to be made visible."""
        return all(writer.index.is_flushed for writer in list(self._writers.values()))

    def flush(self) -> None:
        """Make the copied images visible. Those that could not be made visible have `IndexChange.error` afterwards."""
        for writer in list(self._writers.values()):
            writer.index.flush()

    def close(self, *, keep: int = 0) -> None:
        """Close the writers, but for the `keep` newest ones. No image may be under way."""
        for path in [*self._writers][: max(0, len(self._writers) - keep)]:
            self._writers.pop(path).close()


def resolve_graph(source: Source, location: Location) -> Graph:
    """Read the manifests of a source.

    Raises:
        UnsupportedError: only `manifest.json` of a docker-archive lists the image.
        OcistreamError: the manifests cannot be read.
    """
    graph = source.resolve(_NoEarlyBlobs())
    if graph.synthesized:
        raise _docker_archive_error(location)
    return graph


def _docker_archive_error(location: Location) -> UnsupportedError:
    """Return the error for a docker-archive: it would have to be recompressed each time to compare its digest."""
    msg = f"{printable(location.text)} is a docker-archive: its digests are unknown before it is compressed"
    hint = "copy it into a layout first: ocistream copy docker-archive:FILE oci:DIR"
    return UnsupportedError(msg, hint=hint)


class _NoEarlyBlobs:
    """The `EarlyBlobs` of sources that can be read repeatedly: their blobs never come before the graph."""

    @staticmethod
    def early_refusal() -> UnsupportedError:
        return UnsupportedError("a blob comes before its image")

    def write(self, blob: Blob, *, can_be_plain_layer: bool = False) -> None:  # noqa: ARG002 - nothing is written
        raise UnsupportedError(f"{blob.descriptor.digest} comes before its image")

    def write_new(self, chunks: Iterator[Chunk]) -> Descriptor:  # noqa: ARG002 - the signature of EarlyBlobs
        raise UnsupportedError("a layer comes before its image")

    def read_back(self, descriptor: Descriptor) -> bytes:
        raise UnsupportedError(f"{descriptor.digest} was not buffered")
