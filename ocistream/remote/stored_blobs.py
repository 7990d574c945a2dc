"""Which blobs a location already has: a repository, an image, a layout directory or an archive.

Only blobs that are certainly stored are reported: the caller does not send them again. Layout blobs are hashed if
the caller asks for some; a list of all blobs reads none.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from ocistream import limits
from ocistream.errors import ArchiveError, NotFoundError, UnsupportedError
from ocistream.locations import Selection, is_directory, open_source
from ocistream.oci.descriptor import UNKNOWN_SIZE
from ocistream.streams.workers import run_each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ocistream.locations import Location, OpenContext
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.oci.reference import Reference
    from ocistream.registry.repository import Repository
    from ocistream.registry.upload_records import UploadRecords
    from ocistream.transfer.interfaces import EarlyBlobs, Source

__all__ = ["StoredBlobs", "open_stored_blobs"]

#: Tags of a repository that are looked at together: what they share is asked for once, and their manifests are held.
_MAX_TAGS_AT_ONCE: Final = 32
#: Of images with so many blobs together, one is looked at at a time.
_MANY_BLOBS: Final = 2000


class StoredBlobs(Protocol):
    """What an end holds. Nothing is asked or opened before one of these is called, and each may be called once."""

    @property
    def origin(self) -> str:
        """How it is written and shown: `registry.local/app`, `registry.local/app:v1`, `oci:DIR`, `FILE`."""

    def list_digests(self) -> set[str]:
        """Give the digests of all that is there, blobs and manifests.

        Raises:
            NotFoundError: there is no such end.
            OcistreamError: it cannot be read.
        """

    def find_stored(self, blobs: Sequence[Descriptor]) -> set[str]:
        """Give the digests of those that are there. One of another size is not, unless that is `UNKNOWN_SIZE`.

        A repository or a layout that is not there holds none of them.

        Raises:
            NotFoundError: there is no such image, or no such archive.
            OcistreamError: it cannot be read.
        """

    def find_partial_blobs(self, digests: Sequence[str]) -> Mapping[str, int]:
        """Say of which of these blobs, which are not there, interrupted runs of this user have left how many bytes.

        Only what another run can go on with counts, and what is worth it. What is not certain is left out.
        """


def open_stored_blobs(
    location: Location,
    context: OpenContext,
    early_blobs: EarlyBlobs,
    *,
    selection: Selection | None = None,
    records: UploadRecords | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> StoredBlobs:
    """Give what an end holds, be it a repository or an image there, a layout, an archive or a pipe.

    `early` is where a pipe leaves what comes before its index. If somebody writes there next, a registry is asked with
    that right, and `records` is where uploads are remembered; what is in the repositories `around.mount_from` counts as
    there to `among`. `tell` is told what was left out.
    """
    if location.reference is not None:
        asking = _RepositoryQuery(context, location.reference, early_blobs, records)
        return _RepositoryBlobs(asking, warn) if location.is_repository else _ImageBlobs(asking)
    kind = (
        _LayoutBlobs
        if location.kind == "oci" or (location.kind == "path" and is_directory(location))
        else _ArchiveBlobs
    )
    return kind(location, context, selection or Selection(), early_blobs)


class _RepositoryQuery:
    """One repository of a registry, asked for what it has: the registry itself, and no mirror of it."""

    def __init__(
        self, context: OpenContext, reference: Reference, early_blobs: EarlyBlobs, records: UploadRecords | None
    ) -> None:
        self.reference = reference
        self._context = context
        self._early = early_blobs
        self._records = records
        self._is_for_push = records is not None

    def list_tags(self) -> tuple[Sequence[str], str | None]:
        """List the tags, and say why they are not all, if so."""
        from ocistream.registry.tags import list_tags

        listed = list_tags(self._repository(self.reference.repository))
        return listed.tags, listed.incomplete_reason

    def build_graph(self, references: Sequence[Reference]) -> Graph:
        """Get the manifests of images, and of what hangs on them."""
        from ocistream.registry.source import RegistrySource

        transport = self._context.client()
        return RegistrySource(transport, references, referrers="along", jobs=self._context.jobs).resolve(self._early)

    def find_stored(self, blobs: Iterable[Descriptor], *, include_mountable: bool = False) -> set[str]:
        """Ask for each blob. What a digest alone was given of may be a manifest as well.

        If `shared`, those of the repositories that can be mounted from count as well.
        """
        repositories = [self._repository(self.reference.repository, writes=self._is_for_push)]
        repositories += [self._repository(name) for name in self._context.mount_from if include_mountable]
        found: set[str] = set()
        lock = threading.Lock()

        def ask(blob: Descriptor) -> None:
            if any(_has_content(repository, blob) for repository in repositories):
                with lock:
                    found.add(blob.digest)

        run_each(ask, blobs, jobs=self._context.jobs, cancelled=self._context.client().cancelled)
        return found

    def find_partial_blobs(self, digests: Sequence[str]) -> dict[str, int]:
        """Ask of each of these blobs how much is there of an upload that an earlier run has left."""
        from ocistream.registry.uploader import Uploader

        uploader = Uploader(self._repository(self.reference.repository, writes=True), self._records)
        return _select_resumable((digest, uploader.partial_size(digest)) for digest in digests)

    def _repository(self, name: str, *, writes: bool = False) -> Repository:
        from ocistream.registry.repository import Repository

        return Repository(self._context.client(), self.reference.registry, name, for_push=writes)


def _select_resumable(begun: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Leave out what is sent sooner than it is gone on with."""
    found = ((digest, size) for digest, size in begun if size >= limits.MIN_PARTIAL_SIZE)
    return dict(itertools.islice(found, limits.MAX_RESUMABLE_BLOBS))


def _has_content(repository: Repository, blob: Descriptor) -> bool:
    if repository.has_blob(blob):
        return True
    return blob.size == UNKNOWN_SIZE and repository.has_manifest(blob.digest)


class _RepositoryBlobs:
    """A repository of a registry, with all of its tags."""

    def __init__(self, asking: _RepositoryQuery, tell: Callable[[str], None]) -> None:
        self._query = asking
        self._warn = tell
        self.origin = f"{asking.reference.registry}/{asking.reference.repository}"

    def list_digests(self) -> set[str]:
        tags, cut = self._query.list_tags()
        if cut:
            self._warn(f"{self.origin} has further tags, which are not looked at: {cut}")
        references = [replace(self._query.reference, tag=tag) for tag in sorted(tags)]
        found: set[str] = set()
        known: set[str] = set()
        start, at_once = 0, 1
        while start < len(references):
            needed = 0
            for graph in self._build_graphs(references[start : start + at_once]):
                found.update(manifest.descriptor.digest for manifest in graph.manifests)
                new = [blob for blob in graph.blobs if blob.digest not in known]
                known.update(blob.digest for blob in new)
                needed += len(graph.blobs)
                # The manifests of thousands of blobs are megabytes, and are not needed any more.
                del graph
                found |= self._query.find_stored(new)
            start += at_once
            at_once = min(2 * at_once, _MAX_TAGS_AT_ONCE) if needed < _MANY_BLOBS else 1
        return found

    def find_stored(self, blobs: Sequence[Descriptor]) -> set[str]:
        return self._query.find_stored(blobs, include_mountable=True)

    def find_partial_blobs(self, digests: Sequence[str]) -> Mapping[str, int]:
        return self._query.find_partial_blobs(digests)

    def _build_graphs(self, references: Sequence[Reference]) -> Iterable[Graph]:
        """Get what some tags stand for; one by one where that fails, so that a single one does not stand for all.

        Of a tag whose manifest is gone, malformed, or older than OCI's and Docker's second format, nothing is listed.
        """
        try:
            yield self._query.build_graph(references)
        except (NotFoundError, ArchiveError, UnsupportedError) as error:
            if len(references) > 1:
                for reference in references:
                    yield from self._build_graphs([reference])
            else:
                self._warn(f"nothing of {references[0].name} is listed: {error.message}")


class _ImageBlobs:
    """One image of a registry, by tag or digest."""

    def __init__(self, asking: _RepositoryQuery) -> None:
        self._query = asking
        self.origin = str(asking.reference)

    def list_digests(self) -> set[str]:
        graph = self._build_graph()
        return self._query.find_stored(graph.blobs) | {manifest.descriptor.digest for manifest in graph.manifests}

    def find_stored(self, blobs: Sequence[Descriptor]) -> set[str]:
        graph = self._build_graph()
        manifests = {manifest.descriptor.digest for manifest in graph.manifests}
        needed = {blob.digest for blob in graph.blobs}
        asked = self._query.find_stored([blob for blob in blobs if blob.digest in needed], include_mountable=True)
        return asked | (manifests & {blob.digest for blob in blobs})

    def find_partial_blobs(self, digests: Sequence[str]) -> Mapping[str, int]:
        return self._query.find_partial_blobs(digests)

    def _build_graph(self) -> Graph:
        return self._query.build_graph([self._query.reference])


class _LayoutBlobs:
    """A layout directory: what lies there as a regular file under a digest, or as much of that as one image needs."""

    def __init__(self, location: Location, context: OpenContext, selection: Selection, early_blobs: EarlyBlobs) -> None:
        self._location = location
        self._context = context
        self._selection = selection
        self._early = early_blobs
        self.origin = location.text if location.kind == "oci" else f"oci:{location.text}"

    def list_digests(self) -> set[str]:
        from ocistream.layout.directory import LayoutDirectory

        assert self._location.path is not None  # noqa: S101 - parse_end sees to it
        layout = LayoutDirectory(self._location.path)
        source = open_source(self._location, self._context, self._selection)
        there = {digest for digest in layout.list_blobs() if layout.blob_size(digest) is not None}
        return there if self._location.name is None else there & _graph_digests(source.resolve(self._early))

    def find_stored(self, blobs: Sequence[Descriptor]) -> set[str]:
        from ocistream.layout.directory import LayoutDirectory

        assert self._location.path is not None  # noqa: S101 - parse_end sees to it
        # One that was begun has blobs, and no index yet.
        layout = LayoutDirectory(self._location.path)
        found: set[str] = set()
        for blob in blobs:
            size = layout.blob_size(blob.digest)
            if size is not None and _has_size(blob, size) and layout.has_blob(replace(blob, size=size)):
                found.add(blob.digest)
        if self._location.name is None:
            return found
        return found & _graph_digests(open_source(self._location, self._context, self._selection).resolve(self._early))

    def find_partial_blobs(self, digests: Sequence[str]) -> Mapping[str, int]:
        from ocistream.layout.directory import LayoutDirectory

        assert self._location.path is not None  # noqa: S101 - parse_end sees to it
        layout = LayoutDirectory(self._location.path)
        return _select_resumable((digest, layout.find_partial_size(digest)) for digest in digests)


class _ArchiveBlobs:
    """An archive, in a file or on a pipe: what its headers say is in it, or as much of that as one image needs.

    A pipe, and what is compressed, is read to its end.
    """

    def __init__(self, location: Location, context: OpenContext, selection: Selection, early_blobs: EarlyBlobs) -> None:
        self._location = location
        self._context = context
        self._selection = selection
        self._early = early_blobs
        self.origin = location.text

    def list_digests(self) -> set[str]:
        return set(self._read_sizes())

    def find_stored(self, blobs: Sequence[Descriptor]) -> set[str]:
        sizes = self._read_sizes()
        return {blob.digest for blob in blobs if _has_size(blob, sizes.get(blob.digest))}

    def find_partial_blobs(self, digests: Sequence[str]) -> Mapping[str, int]:  # noqa: ARG002 - nothing is added to an archive
        return {}

    def _read_sizes(self) -> dict[str, int]:
        source = open_source(self._location, self._context, self._selection)
        try:
            return self._read_sizes_of(source)
        finally:
            source.close()

    def _read_sizes_of(self, source: Source) -> dict[str, int]:
        from ocistream.archive.file_source import ArchiveFileSource
        from ocistream.archive.stream_source import ArchiveStreamSource

        assert isinstance(source, ArchiveFileSource | ArchiveStreamSource)  # noqa: S101 - as the table of kinds has it
        # Headers would do of a file, but who is told that something is there relies on an archive that can be read.
        graph = source.resolve(self._early)
        for _ in source.blobs(()):
            pass
        if source.contents.is_docker_archive:
            # The manifests of a docker-archive are made when it is read, and its layers may have names of any kind.
            return {blob.digest: blob.size for blob in graph.blobs}
        needed = _graph_digests(graph)
        places = source.contents.blobs.items()
        return {digest: place.size for digest, place in places if self._location.name is None or digest in needed}


def _graph_digests(graph: Graph) -> set[str]:
    return {blob.digest for blob in graph.blobs} | {manifest.descriptor.digest for manifest in graph.manifests}


def _has_size(blob: Descriptor, size: int | None) -> bool:
    return size is not None and blob.size in {UNKNOWN_SIZE, size}
