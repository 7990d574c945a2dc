"""Which image a destination has under a name, and which referrers: by a tag, an `index.json`, or an archive."""

from __future__ import annotations

import operator
from contextlib import closing
from typing import TYPE_CHECKING

from ocistream import notices
from ocistream.errors import NotFoundError, OcistreamError
from ocistream.layout.image_selection import Selection
from ocistream.layout.writer import LayoutWriter, ListedImages
from ocistream.locations import is_directory, is_layout_destination, path_of
from ocistream.oci.reference import printable
from ocistream.registry.repository import Repository
from ocistream.streams import paths
from ocistream.streams.files import disk_errors
from ocistream.sync.sources import SyncSources, local_lock, resolve_graph

if TYPE_CHECKING:
    from pathlib import Path

    from ocistream.locations import Location, OpenContext
    from ocistream.oci.graph import Graph
    from ocistream.sync.plan import CopyDestination

_NOTHING = ListedImages(lambda _name: None, frozenset())


class DestinationState:
    """The state of one destination. A registry is asked only by the methods."""

    def __init__(self, destination: CopyDestination, context: OpenContext, layouts: LayoutWriters) -> None:
        """Read a layout or an archive; send no request to a registry.

        Raises:
            OcistreamError: a layout cannot be read.
        """
        self._reference, location = destination.reference, destination.sync_location.location
        self._name = destination.image_name or ""
        self._listed = _NOTHING
        if self._reference is not None:
            registry, repository = self._reference.registry, self._reference.repository
            self._repository = Repository(context.registries().client, registry, repository, for_push=True)
            return
        with disk_errors(f"cannot read {printable(location.text)}"):
            is_layout = is_layout_destination(location)
            self._listed = layouts.list_images(location) if is_layout else _read_archive(location, context, self._name)

    def find_digest(self) -> str | None:
        """Return the digest of the image with this name, or None.

        Raises:
            OcistreamError: the registry failed or refused.
        """
        if self._reference is not None:
            return self._repository.find_digest(self._reference.target)
        return self._listed.find_digest(self._name)

    def has_all_referrers(self, graph: Graph, digest: str) -> bool:
        """Return whether the destination has all referrers of an image; False if the graph is now another image's."""
        if digest not in {graph.roots[0].descriptor.digest, *(index.digest for index in graph.incomplete_indexes)}:
            return False
        digests = [referrer.descriptor.digest for referrer in graph.all_referrers]
        if self._reference is not None:
            targets = [referrer.tag or referrer.descriptor.digest for referrer in graph.all_referrers]
            return all(map(operator.eq, map(self._repository.find_digest, targets), digests))
        # A manifest within an index has no entry of its own.
        children = {child.digest for document in graph.documents.values() for child in document.manifests}
        return all(digest in children or digest in self._listed.referrers for digest in digests)


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
        with local_lock:
            return self._open(path)

    def _open(self, path: Path) -> LayoutWriter:
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
            return _NOTHING
        with local_lock:
            return self._open(path).list_images()

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


def _read_archive(location: Location, context: OpenContext, name: str) -> ListedImages:
    """Return the one image of an archive, under any name. An archive that cannot be read will be replaced."""
    try:
        with closing(SyncSources()) as sources, closing(sources.open(location, context, Selection())) as source:
            graph = resolve_graph(source, location)
    except NotFoundError:
        return _NOTHING
    except OcistreamError as error:
        notices.notify(f"replacing {printable(location.text)}: it cannot be read as an archive ({error.message})")
        return _NOTHING
    if len(graph.roots) != 1:
        notices.notify(f"replacing {printable(location.text)}: it has {len(graph.roots)} images, and gets one")
        return _NOTHING
    if any(graph.omitted_from_source):
        return _NOTHING
    digest = graph.roots[0].descriptor.digest
    return ListedImages({name: digest}.get, frozenset(referrer.descriptor.digest for referrer in graph.all_referrers))
