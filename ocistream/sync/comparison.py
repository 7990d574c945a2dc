"""Compare an image with each of its destinations: same digest and same referrers, or to be copied.

Reads the source again and again, so it must be a registry, a layout or an archive in a file.
"""

from __future__ import annotations

import contextlib
import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Final

from ocistream import limits, notices
from ocistream.archive.decompression import is_compressed
from ocistream.errors import NetworkError, NotFoundError, OcistreamError, RegistryError, UnsupportedError, UsageError
from ocistream.layout.directory import LayoutDirectory
from ocistream.layout.index import entry_name_of
from ocistream.locations import Selection, is_directory, is_layout_destination, open_source
from ocistream.oci.reference import is_digest, printable
from ocistream.registry.repository import Repository
from ocistream.streams import paths
from ocistream.streams.files import disk_errors
from ocistream.transfer.incomplete_indexes import limit_to_source

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from ocistream.http.endpoints import Endpoint
    from ocistream.locations import Location, OpenContext
    from ocistream.oci.descriptor import Descriptor, Manifest
    from ocistream.oci.graph import Graph, IncompleteIndex
    from ocistream.oci.reference import Reference
    from ocistream.oci.referrers import SkippedReferrer
    from ocistream.registry.opener import ReadableRepository
    from ocistream.registry.referrers import ReferrerList
    from ocistream.streams.chunks import Chunk
    from ocistream.sync.plan import CopyDestination, ImageCopy, SyncEntry, SyncLocation
    from ocistream.transfer.interfaces import Blob, RecoverableBlob, Source

__all__ = [
    "DestinationState",
    "ImageComparer",
    "ImageComparison",
    "IndexCache",
    "IndexDigests",
    "SyncResult",
    "open_rereadable",
    "read_graph",
    "select_for",
]

#: A registry that could not be reached for this many images in a row is skipped for this many seconds.
_MAX_FAILURES: Final = 3
_SKIP_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class SyncResult:
    """The result of one image at one destination: "copied", "unchanged" or "failed"; in a dry run also "to copy".

    `size` is how many bytes of blobs were written, or would be. `bytes_read` is how many were read for all
    destinations, and is set only for the first of them. `skipped_referrers` were not copied. `incomplete` is the
    image's index, if the source has only some of its platforms.
    """

    source: str
    destination: str
    status: str
    digest: str | None = None
    error: OcistreamError | None = None
    size: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    skipped_referrers: tuple[SkippedReferrer, ...] = ()
    incomplete: tuple[IncompleteIndex, ...] = ()


class ImageComparison:
    """One image, the destinations that lack it, and the results so far."""

    def __init__(self, copy: ImageCopy) -> None:
        """Start without results."""
        self.copy = copy
        self.pending: list[CopyDestination] = []
        self.results: list[SyncResult] = []
        #: The opened source of the image; None if its manifests were too large to keep, or could not be read.
        self.source: Source | None = None
        #: The image's size in bytes and its number of blobs; 0 if they are not known yet.
        self.size = self.blob_count = 0
        #: Bytes of its manifests.
        self.manifest_bytes = 0

    def add_failure(self, destinations: Collection[CopyDestination], error: OcistreamError) -> None:
        """Add a failure for destinations whose state is unknown."""
        self.results += [
            SyncResult(self.copy.name, destination.name, "failed", error=error) for destination in destinations
        ]


class ImageComparer:
    """Compares images with their destinations, for one run. Safe for several threads.

    The image is compared first. A signature often comes later than its image, so the referrers of an unchanged image
    are compared too, unless the file says `referrers = false`.
    """

    def __init__(
        self,
        context: Callable[[SyncLocation], OpenContext],
        *,
        create_cancel_event: Callable[[], threading.Event],
        check_push: Callable[[Reference | None], None],
    ) -> None:
        """`context` returns the context of a location; `create_cancel_event` a new event that cancels one image."""
        self._context_of = context
        self._create_cancel_event = create_cancel_event
        self._check_push = check_push
        self._unreachable = _UnreachableRegistries()
        self._indexes = IndexCache()
        self._lock = threading.Lock()
        #: Memory left for manifests, in bytes.
        self.free_memory = limits.MAX_PENDING_GRAPH_BYTES
        self._tags: dict[tuple[str, str], Collection[str]] = {}

    def add_tags(self, reference: Reference, tags: Collection[str]) -> None:
        """Set all tags of a repository: others are not requested from the registry."""
        self._tags[reference.registry, reference.repository] = frozenset(tags)

    def compare(self, comparison: ImageComparison) -> None:
        """Find the destinations that lack an image or have another one under its name."""
        copy = comparison.copy
        try:
            with self._unreachable.guard(copy.source.reference):
                source_image = self._find_source_image(copy)
        except OcistreamError as error:
            comparison.add_failure(copy.destinations, error)
            return
        for destination in copy.destinations:
            try:
                self._check_push(destination.reference)
                with self._unreachable.guard(destination.reference):
                    state = DestinationState(destination, self._context_of(destination.sync_location), self._indexes)
                    digest = state.find_digest()
                    is_same = digest in {source_image.digest, source_image.exported_digest}
                # Referrers are requested only if the image itself is the same; otherwise it is copied anyway.
                if is_same and digest and copy.entry.referrers:
                    is_same = state.has_all_referrers(source_image.read_graph(), digest)
            except OcistreamError as error:
                comparison.add_failure([destination], error)
            else:
                if is_same:
                    comparison.results.append(SyncResult(copy.name, destination.name, "unchanged", digest))
                else:
                    comparison.pending.append(destination)

    def prepare(self, comparison: ImageComparison) -> None:
        """Read the graph of an image that must be copied, and keep it until then if memory allows."""
        location, entry = comparison.copy.source, comparison.copy.entry
        if not comparison.pending or location.reference is None:
            return
        context = replace(self._context_of(entry.source), cancelled=self._create_cancel_event(), jobs=1)
        try:
            with ExitStack() as stack:
                source = open_rereadable(location, context, select_for(entry))
                stack.callback(source.close)
                graph = read_graph(source, location)
                stack.pop_all()
        except OcistreamError as error:
            comparison.add_failure(comparison.pending, error)
            comparison.pending = []
            return
        comparison.size, comparison.blob_count = graph.size, len(graph.blobs)
        manifest_bytes = sum(len(manifest.raw) for manifest in graph.manifests)
        with self._lock:
            if manifest_bytes > self.free_memory:
                source.close()
                return
            self.free_memory -= manifest_bytes
        comparison.source, comparison.manifest_bytes = source, manifest_bytes

    def release(self, comparison: ImageComparison) -> None:
        """Free the memory of an image."""
        if comparison.source is not None:
            comparison.source.close()
            comparison.source = None
            with self._lock:
                self.free_memory += comparison.manifest_bytes

    def _find_source_image(self, copy: ImageCopy) -> _SourceImage:
        location, entry = copy.source, copy.entry
        # One request at a time: other images are compared in parallel.
        context = replace(self._context_of(entry.source), cancelled=self._create_cancel_event(), jobs=1)
        if location.reference is not None and (
            tags := self._tags.get((location.reference.registry, location.reference.repository))
        ):
            opener = context.repository_opener().wrapped_by(lambda repository: _TagListRepository(repository, tags))
            context = replace(context, opener=lambda: opener)

        def graph() -> Graph:
            with ExitStack() as stack:
                source = open_rereadable(location, context, select_for(entry))
                stack.callback(source.close)
                source_graph = read_graph(source, location)
                return source_graph if location.reference is not None else limit_to_source(source, source_graph)

        if location.reference is not None and not entry.platforms.platforms:
            repository = context.repository_opener().open_repository(location.reference)
            # Some registries answer HEAD without a digest. A missing image is reported when its manifest is fetched.
            digest = repository.find_digest(location.reference.target)
            if digest:
                return _SourceImage(digest, graph)
        source_graph = graph()
        exported = source_graph.roots[0].descriptor.digest
        # A layout or an archive may have only some platforms of an index: either digest may be at the destination.
        index_digest = source_graph.incomplete_indexes[0].digest if source_graph.incomplete_indexes else exported
        return _SourceImage(index_digest, lambda: source_graph, exported)


def select_for(entry: SyncEntry) -> Selection:
    """Return the selection for an entry's source."""
    return Selection(platforms=entry.platforms, referrers="along" if entry.referrers else "left")


class _SourceImage:
    """An image at its source: its digest, and on request its graph with all referrers.

    `exported_digest` differs if the source has only some platforms of an index: it is what would be copied.
    """

    def __init__(self, digest: str, graph: Callable[[], Graph], exported: str | None = None) -> None:
        self.digest = digest
        self.exported_digest = exported or digest
        self._read_graph = graph
        self._graph: Graph | None = None

    def read_graph(self) -> Graph:
        if self._graph is None:
            self._graph = self._read_graph()
        return self._graph


class _TagListRepository:
    """A repository whose tags are all known: a signature's tag that is not in the list is not requested."""

    def __init__(self, repository: ReadableRepository, tags: Collection[str]) -> None:
        self._repository = repository
        self._tags = tags

    @property
    def endpoint(self) -> Endpoint:
        return self._repository.endpoint

    @property
    def name(self) -> str:
        return self._repository.name

    def __str__(self) -> str:
        return str(self._repository)

    def resolve(self, target: str) -> Manifest:
        return self._repository.resolve(target)

    def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        return self._repository.fetch_manifest(descriptor)

    def blob(self, descriptor: Descriptor) -> RecoverableBlob:
        return self._repository.blob(descriptor)

    def list_referrers(self, digest: str) -> ReferrerList:
        return self._repository.list_referrers(digest)

    def find_digest(self, target: str) -> str | None:
        if target not in self._tags and not is_digest(target):
            return None
        return self._repository.find_digest(target)


class _UnreachableRegistries:
    """Registries that could not be reached, after all retries, for some images in a row.

    Without this, each of ten thousand images would cost all retries again, and delay the other destinations. A registry
    that answers with an error counts as reached.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Failures in a row, the time of the last one or of the next try (monotonic seconds), and the last error.
        self._failures: dict[str, tuple[int, float, NetworkError]] = {}

    @contextlib.contextmanager
    def guard(self, reference: Reference | None) -> Iterator[None]:
        """Run requests to a registry in this context, unless the registry is skipped at present.

        Raises:
            NetworkError: the registry is skipped.
        """
        if reference is None:
            yield
            return
        registry = reference.registry
        self._check(registry)
        try:
            yield
        except NetworkError as error:
            if isinstance(error, RegistryError):
                self._add_result(registry, None)
            else:
                self._add_result(registry, error)
            raise
        else:
            self._add_result(registry, None)

    def _check(self, registry: str) -> None:
        with self._lock:
            count, since, error = self._failures.get(registry, (0, 0.0, None))
            if count < _MAX_FAILURES or error is None:
                return
            now = monotonic()
            if now - since < _SKIP_SECONDS:
                msg = f"{registry} is left alone: it could not be reached for {count} images in a row: {error.message}"
                raise NetworkError(msg, hint="run the same command again when it can be")
            # This image checks whether the registry can be reached again.
            self._failures[registry] = (count, now, error)

    def _add_result(self, registry: str, error: NetworkError | None) -> None:
        with self._lock:
            if error is None:
                self._failures.pop(registry, None)
            else:
                self._failures[registry] = (self._failures.get(registry, (0,))[0] + 1, monotonic(), error)


class DestinationState:
    """The state of one destination: a tag's digest, or the entries of an index.json."""

    def __init__(self, destination: CopyDestination, context: OpenContext, indexes: IndexCache) -> None:
        """Read a layout or an archive; send no request to a registry yet.

        Raises:
            OcistreamError: a layout cannot be read.
        """
        self._destination = destination
        self._context = context
        self._repository: Repository | None = None
        self._entries: Sequence[Descriptor] = ()
        self._index: IndexDigests | None = None
        reference, location = destination.reference, destination.sync_location.location
        if reference is not None:
            self._repository = Repository(context.client(), reference.registry, reference.repository, for_push=True)
            return
        with disk_errors(f"cannot look into {printable(location.text)}"):
            if is_layout_destination(location):
                self._index = indexes.read(location)
            else:
                self._entries = _read_archive_entries(location, context)

    def find_digest(self) -> str | None:
        """Return the digest of the image with this name, or None.

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
        """Return whether the destination has all referrers of an image; False if the graph is now another image's."""
        if digest not in {graph.roots[0].descriptor.digest, *(index.digest for index in graph.incomplete_indexes)}:
            return False
        children = {child.digest for document in graph.documents.values() for child in document.manifests}
        listed = self._index.digests if self._index is not None else {entry.digest for entry in self._entries}
        for referrer in graph.all_referrers:
            if self._repository is None:
                # A manifest within an index has no entry of its own.
                if referrer.descriptor.digest not in listed | children:
                    return False
            elif self._repository.find_digest(referrer.tag or referrer.descriptor.digest) != referrer.descriptor.digest:
                return False
        return True


class IndexDigests:
    """The entries of an index.json: the digest of each name, and all digests."""

    def __init__(self, entries: Sequence[Descriptor]) -> None:
        """Index the entries; of two with one name, the first is used."""
        self.digests = frozenset(entry.digest for entry in entries)
        self.by_name = {name: entry.digest for entry in reversed(entries) if (name := entry_name_of(entry))}


class IndexCache:
    """The index.json of layouts, each read again only after a change: it may list thousands of images.

    Safe for several threads.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._cached: dict[Path, tuple[tuple[int, ...], IndexDigests]] = {}

    def read(self, location: Location) -> IndexDigests:
        """Return the index of a layout; an empty one if there is none yet.

        Raises:
            ArchiveError: the index is malformed.
            OSError: the index cannot be read.
        """
        assert location.path is not None, "it is no registry"  # noqa: S101 - only called for layouts
        path = location.path / "index.json"
        # An empty directory is not a layout yet.
        if not is_directory(location) or not paths.exists(path):
            return IndexDigests(())
        with self._lock:
            status = path.stat()
            # The file is replaced, never overwritten, so a changed one is another file.
            state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            cached = self._cached.get(location.path)
            if cached is None or cached[0] != state:
                cached = self._cached[location.path] = (
                    state,
                    IndexDigests(LayoutDirectory(location.path).read_index()[0]),
                )
            return cached[1]


def _read_archive_entries(location: Location, context: OpenContext) -> Sequence[Descriptor]:
    """Return the image of an archive and its referrers; empty if it cannot be read, since it is then replaced."""
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
    return [graph.roots[0].descriptor, *(referrer.descriptor for referrer in graph.all_referrers)]


def open_rereadable(location: Location, context: OpenContext, selection: Selection) -> Source:
    """Open a source that can be read repeatedly.

    Raises:
        UsageError: the location can be read only once.
        LocalDiskError: the path is invalid or cannot be read.
        OcistreamError: the source does not exist or is malformed.
    """
    with disk_errors(f"cannot read {printable(location.text)}"):
        return _open_checked(location, context, selection)


def _open_checked(location: Location, context: OpenContext, selection: Selection) -> Source:
    if location.path is not None and not is_directory(location):
        if paths.exists(location.path) and (not paths.is_file(location.path) or is_compressed(location.path)):
            kind = "compressed" if paths.is_file(location.path) else "no file"
            msg = f"{printable(location.text)} is {kind}, and is read repeatedly"
            raise UsageError(msg, hint="unpack it first")
        if not paths.exists(location.path):
            msg = f"{printable(location.text)}: there is no such file or directory"
            raise NotFoundError(msg)
    return open_source(location, context, selection)


def read_graph(source: Source, location: Location) -> Graph:
    """Read the manifests of a source.

    Raises:
        UnsupportedError: the source is a docker-archive.
        OcistreamError: the manifests cannot be read.
    """
    graph = source.resolve(_NoEarlyBlobs())
    # A docker-archive would have to be recompressed each time to compare its digest.
    if graph.synthesized:
        msg = f"{printable(location.text)} is a docker-archive, of which no digest is known before it is compressed"
        raise UnsupportedError(msg, hint="make a layout of it first: ocistream copy docker-archive:FILE oci:DIR")
    return graph


class _NoEarlyBlobs:
    """The `EarlyBlobs` of sources that can be read repeatedly: their blobs never come before the graph."""

    accepts_early = False

    def write(self, blob: Blob, *, can_be_plain_layer: bool = False) -> None:  # noqa: ARG002 - nothing is written
        raise UnsupportedError(f"{blob.descriptor.digest} comes before its image")

    def write_new(self, chunks: Iterator[Chunk]) -> Descriptor:  # noqa: ARG002 - the signature of EarlyBlobs
        raise UnsupportedError("a layer comes before its image")

    def read_back(self, descriptor: Descriptor) -> bytes:
        raise UnsupportedError(f"{descriptor.digest} was not kept")
