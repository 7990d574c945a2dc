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
    from ocistream.registry.mirrors import ReadableRepository
    from ocistream.registry.referrers import ReferrerList
    from ocistream.streams.chunks import Chunk
    from ocistream.sync.plan import CopyDestination, ImageCopy, SyncEntry, SyncLocation
    from ocistream.transfer.interfaces import Blob, Source

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

#: A registry that could not be reached for so many images, one after the other, is left alone for so many seconds.
_MAX_FAILURES: Final = 3
_SKIP_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What became of one image at one destination: "copied", "unchanged", "failed"; or, of a plan, "to copy".

    `size` is how many bytes of blobs went there, or would have to; `fetched` how many were read for all destinations of
    the image, and stands at the first of them. `left_behind` hangs on the image, and did not go along. `incomplete` is
    its index, if the source has only some platforms of it.
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
    """One image, and what was found of its destinations."""

    def __init__(self, copy: ImageCopy) -> None:
        """Begin with nothing found."""
        self.copy = copy
        self.pending: list[CopyDestination] = []
        self.results: list[SyncResult] = []
        #: What is to move, as its source was opened for it; None where the graph was too large to be held, or failed.
        self.source: Source | None = None
        #: How many bytes of blobs, and how many blobs, the image has; 0 where nobody knows yet.
        self.size = self.blob_count = 0
        #: How many bytes its manifests have.
        self.manifest_bytes = 0

    def add_failure(self, targets: Collection[CopyDestination], error: OcistreamError) -> None:
        """Note that nobody knows what is there."""
        self.results += [SyncResult(self.copy.name, target.name, "failed", error=error) for target in targets]


class ImageComparer:
    """Looks, for one run. Safe for several threads."""

    def __init__(
        self,
        context: Callable[[SyncLocation], OpenContext],
        *,
        stop: Callable[[], threading.Event],
        check_push: Callable[[Reference | None], None],
    ) -> None:
        """Take what each place is reached by."""
        self._context_of = context
        self._create_cancel_event = stop
        self._check_push = check_push
        self._unreachable = _UnreachableRegistries()
        self._indexes = IndexCache()
        self._lock = threading.Lock()
        #: What may still be held of manifests, in bytes.
        self.free_memory = limits.MAX_PENDING_GRAPH_BYTES
        self._tags: dict[tuple[str, str], Collection[str]] = {}

    def add_tags(self, reference: Reference, tags: Collection[str]) -> None:
        """Know all the tags of a repository: what is none of them is not asked for."""
        self._tags[reference.registry, reference.repository] = frozenset(tags)

    def compare(self, look: ImageComparison) -> None:
        """Find out at which destinations an image is not, or is another."""
        copy = look.copy
        try:
            with self._unreachable.guard(copy.source.reference):
                wanted = self._find_source_image(copy)
        except OcistreamError as error:
            look.add_failure(copy.destinations, error)
            return
        for target in copy.destinations:
            try:
                self._check_push(target.reference)
                with self._unreachable.guard(target.reference):
                    there = DestinationState(target, self._context_of(target.sync_location), self._indexes)
                    digest = there.find_digest()
                    is_same = digest in {wanted.digest, wanted.exported_digest}
                # What hangs on it is asked for only where it would be the news.
                if is_same and digest and copy.entry.referrers:
                    is_same = there.has_all_referrers(wanted.read_graph(), digest)
            except OcistreamError as error:
                look.add_failure([target], error)
            else:
                if is_same:
                    look.results.append(SyncResult(copy.name, target.name, "unchanged", digest))
                else:
                    look.pending.append(target)

    def prepare(self, look: ImageComparison) -> None:
        """Find out what moves of an image that is lacking, and hold that until it does, if there is room."""
        end, entry = look.copy.source, look.copy.entry
        if not look.pending or end.reference is None:
            return
        around = replace(self._context_of(entry.source), cancelled=self._create_cancel_event(), jobs=1)
        try:
            with ExitStack() as stack:
                source = open_rereadable(end, around, select_for(entry))
                stack.callback(source.close)
                graph = read_graph(source, end)
                stack.pop_all()
        except OcistreamError as error:
            look.add_failure(look.pending, error)
            look.pending = []
            return
        look.size, look.blob_count = graph.size, len(graph.blobs)
        weight = sum(len(manifest.raw) for manifest in graph.manifests)
        with self._lock:
            if weight > self.free_memory:
                source.close()
                return
            self.free_memory -= weight
        look.source, look.manifest_bytes = source, weight

    def release(self, look: ImageComparison) -> None:
        """Hold nothing of an image any more."""
        if look.source is not None:
            look.source.close()
            look.source = None
            with self._lock:
                self.free_memory += look.manifest_bytes

    def _find_source_image(self, copy: ImageCopy) -> _SourceImage:
        end, entry = copy.source, copy.entry
        # One question at a time: this is done side by side with the same for others.
        around = replace(self._context_of(entry.source), cancelled=self._create_cancel_event(), jobs=1)
        if end.reference is not None and (tags := self._tags.get((end.reference.registry, end.reference.repository))):
            reading = around.repository_opener().wrapped_by(lambda repository: _TagListRepository(repository, tags))
            around = replace(around, opener=lambda: reading)

        def graph() -> Graph:
            with ExitStack() as stack:
                source = open_rereadable(end, around, select_for(entry))
                stack.callback(source.close)
                found = read_graph(source, end)
                return found if end.reference is not None else limit_to_source(source, found)

        if end.reference is not None and not entry.platforms.platforms:
            repository = around.repository_opener().open_repository(end.reference)
            # Some registries do not say in answer to HEAD what it is; and what is not there is said by who gets it.
            digest = repository.find_digest(end.reference.target)
            if digest:
                return _SourceImage(digest, graph)
        found = graph()
        exported = found.roots[0].descriptor.digest
        # A layout or an archive may have only some platforms of an index: either may be there.
        whole = found.incomplete_indexes[0].digest if found.incomplete_indexes else exported
        return _SourceImage(whole, lambda: found, exported)


def select_for(entry: SyncEntry) -> Selection:
    """Give what is wanted of a source."""
    return Selection(platforms=entry.platforms, referrers="along" if entry.referrers else "left")


class _SourceImage:
    """What an image is where it comes from: its digest, and all that hangs on it, if that is asked for.

    `exported` is the digest of what goes of an index that the source does not have completely.
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
    """A repository of which all tags are known: the tags of signatures that are none of them are not asked for."""

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

    def blob(self, descriptor: Descriptor) -> Blob:
        return self._repository.blob(descriptor)

    def list_referrers(self, digest: str) -> ReferrerList:
        return self._repository.list_referrers(digest)

    def find_digest(self, target: str) -> str | None:
        if target not in self._tags and not is_digest(target):
            return None
        return self._repository.find_digest(target)


class _UnreachableRegistries:
    """Which registries could not be reached, with all patience, for some images in a row.

    Each of ten thousand images would cost as much patience again, and the other destinations as much waiting. One that
    answers, whatever it says, is reached.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: How often in a row, when that was or is tried again (monotonic), and what it was.
        self._failures: dict[str, tuple[int, float, NetworkError]] = {}

    @contextlib.contextmanager
    def guard(self, reference: Reference | None) -> Iterator[None]:
        """Ask a registry something within the block, unless it is left alone just now.

        Raises:
            NetworkError: it is.
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
            # This one finds out whether it can be reached again.
            self._failures[registry] = (count, now, error)

    def _add_result(self, registry: str, error: NetworkError | None) -> None:
        with self._lock:
            if error is None:
                self._failures.pop(registry, None)
            else:
                self._failures[registry] = (self._failures.get(registry, (0,))[0] + 1, monotonic(), error)


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
