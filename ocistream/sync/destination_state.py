"""Which image a destination has under a name, and which referrers: by a tag, an `index.json`, or an archive."""

from __future__ import annotations

import operator
import threading
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ocistream import notices
from ocistream.errors import NotFoundError, OcistreamError
from ocistream.layout.directory import LayoutDirectory
from ocistream.layout.index import entry_name_of
from ocistream.locations import Selection, is_directory, is_layout_destination, path_of
from ocistream.oci.reference import printable
from ocistream.registry.repository import Repository
from ocistream.streams import paths
from ocistream.streams.files import disk_errors
from ocistream.sync.sources import SyncSources, read_graph

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ocistream.locations import Location, OpenContext
    from ocistream.oci.graph import Graph
    from ocistream.sync.plan import CopyDestination

__all__ = ["DestinationState", "IndexCache", "ListedImages"]


@dataclass(frozen=True, slots=True)
class ListedImages:
    """The images that a layout or an archive lists: the digest of each name, and all digests."""

    by_name: Mapping[str, str]
    digests: frozenset[str]


_NOTHING = ListedImages({}, frozenset())


class DestinationState:
    """The state of one destination. A registry is asked only by the methods."""

    def __init__(self, destination: CopyDestination, context: OpenContext, indexes: IndexCache) -> None:
        """Read a layout or an archive; send no request to a registry.

        Raises:
            OcistreamError: a layout cannot be read.
        """
        self._reference, location = destination.reference, destination.sync_location.location
        self._name = destination.image_name or ""
        self._listed = _NOTHING
        if self._reference is not None:
            registry, repository = self._reference.registry, self._reference.repository
            self._repository = Repository(context.client(), registry, repository, for_push=True)
            return
        with disk_errors(f"cannot read {printable(location.text)}"):
            is_layout = is_layout_destination(location)
            self._listed = indexes.read(location) if is_layout else _read_archive(location, context, self._name)

    def find_digest(self) -> str | None:
        """Return the digest of the image with this name, or None.

        Raises:
            OcistreamError: the registry failed or refused.
        """
        if self._reference is not None:
            return self._repository.find_digest(self._reference.target)
        return self._listed.by_name.get(self._name)

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
        return children.union(self._listed.digests).issuperset(digests)


class IndexCache:
    """The index.json of layouts, each read again only after a change: it may list thousands of images.

    Safe for several threads.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._cached: dict[Path, tuple[tuple[int, ...], ListedImages]] = {}

    def read(self, location: Location) -> ListedImages:
        """Return the images of a layout; none if it does not exist yet.

        Raises:
            ArchiveError: the index is malformed.
            OSError: the index cannot be read.
        """
        directory = path_of(location)
        path = directory / "index.json"
        # An empty directory is not a layout yet.
        if not is_directory(location) or not paths.exists(path):
            return _NOTHING
        with self._lock:
            status = path.stat()
            # The file is replaced, never overwritten, so a changed one is another file.
            state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            cached = self._cached.get(directory)
            if cached is None or cached[0] != state:
                entries = LayoutDirectory(directory).read_index()[0]
                # Of two entries with one name, the first is used.
                by_name = {name: entry.digest for entry in reversed(entries) if (name := entry_name_of(entry))}
                cached = state, ListedImages(by_name, frozenset(entry.digest for entry in entries))
                self._cached[directory] = cached
            return cached[1]


def _read_archive(location: Location, context: OpenContext, name: str) -> ListedImages:
    """Return the one image of an archive, under any name. An archive that cannot be read will be replaced."""
    try:
        with closing(SyncSources()) as sources, closing(sources.open(location, context, Selection())) as source:
            graph = read_graph(source, location)
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
    return ListedImages({name: digest}, frozenset({digest, *(r.descriptor.digest for r in graph.all_referrers)}))
