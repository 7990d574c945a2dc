"""Which blobs a location already has: a repository, an image, a layout directory or an archive.

Only blobs that are certainly stored are reported: the caller does not send them again. Layout blobs are hashed if
the caller asks for some; a list of all blobs reads none.
"""

from __future__ import annotations

import itertools
from contextlib import closing
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final, Protocol

from ocistream import limits
from ocistream.errors import ArchiveError, NotFoundError, UnsupportedError
from ocistream.layout.image_selection import Selection
from ocistream.locations import is_directory, open_source, path_of
from ocistream.oci.descriptor import UNKNOWN_SIZE
from ocistream.streams.workers import run_each
from ocistream.transfer.discarded_blobs import read_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ocistream.locations import Location, OpenContext
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.oci.reference import Reference
    from ocistream.registry.repository import Repository
    from ocistream.registry.upload_record import UploadRecords

#: Tags that are read together, by parallel requests.
_TAGS_AT_ONCE: Final = 32


class StoredBlobs(Protocol):
    """The blobs that a location has. Nothing is opened before a method is called; call each at most once.

    Only certain blobs are returned: a missing one is only sent again. A registry is asked for each blob, and its
    mirrors are not. A list proves nothing: the receiver verifies the blobs that are pushed.
    """

    @property
    def origin(self) -> str:
        """The location as it is written and shown: `registry.local/app`, `registry.local/app:v1`, `oci:DIR`, `FILE`."""

    def list_digests(self) -> set[str]:
        """Return the digests of all stored blobs and manifests.

        Raises:
            NotFoundError: the location does not exist.
            OcistreamError: the location cannot be read.
        """

    def stored(self, blobs: Sequence[Descriptor]) -> set[str]:
        """Return the digests of the blobs that are stored. Their sizes must match, unless they are `UNKNOWN_SIZE`.

        A repository or a layout that does not exist has none of them: this is the first question before a push to it.

        Raises:
            NotFoundError: the image or the archive does not exist.
            OcistreamError: the location cannot be read.
        """

    def partial_sizes(self, digests: Iterable[str], /) -> Mapping[str, int]:
        """Return how many bytes interrupted runs of this user have stored of blobs that are not stored, by digest.

        Only blobs are returned that another run can resume, if that is certain and saves enough.
        """


def open_stored_blobs(
    location: Location,
    context: OpenContext,
    *,
    selection: Selection | None = None,
    records: UploadRecords | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> StoredBlobs:
    """Return the stored blobs of a repository, an image in it, a layout, an archive or a pipe.

    With `records`, which stores unfinished uploads, a registry is asked with push rights, because a push follows. Blobs
    of the repositories in `context.mount_from` count for `stored`. `warn` receives what is not listed.
    """
    if location.reference is not None:
        return _RegistryBlobs(context, location.reference, location.is_repository, records, warn)
    local_class = _LayoutBlobs if location.kind == "oci" or is_directory(location) else _ArchiveBlobs
    return local_class(location, context, selection or Selection())


def _select_resumable(partial_blobs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return the entries that are large enough to resume, up to a maximum number."""
    resumable = ((digest, size) for digest, size in partial_blobs if size >= limits.MIN_PARTIAL_SIZE)
    return dict(itertools.islice(resumable, limits.MAX_RESUMABLE_BLOBS))


class _RegistryBlobs:
    """A repository of a registry with all of its tags, or one image of it. Mirrors are not asked."""

    def __init__(
        self,
        context: OpenContext,
        reference: Reference,
        is_repository: bool,
        records: UploadRecords | None,
        warn: Callable[[str], None],
    ) -> None:
        self.origin = f"{reference.registry}/{reference.repository}" if is_repository else str(reference)
        self._reference = reference
        self._is_repository = is_repository
        self._client = context.registries().client
        self._mount_from = context.mount_from
        self._jobs = context.registries().rules.limit_jobs(context.jobs, [reference.registry])
        self._records = records
        self._warn = warn

    @cached_property
    def _image(self) -> Graph:
        return self._build_graph([self._reference])

    def list_digests(self) -> set[str]:
        digests: set[str] = set()
        seen: set[str] = set()
        for graph in self._list_graphs() if self._is_repository else [self._image]:
            digests.update(manifest.descriptor.digest for manifest in graph.manifests)
            new = [blob for blob in graph.blobs if blob.digest not in seen]
            seen.update(blob.digest for blob in new)
            # Free the manifests: for thousands of blobs they take megabytes.
            del graph
            digests |= self._find_existing(new)
        return digests

    def stored(self, blobs: Sequence[Descriptor]) -> set[str]:
        if self._is_repository:
            return self._find_existing(blobs, self._mount_from)
        manifests = {manifest.descriptor.digest for manifest in self._image.manifests}
        needed = {blob.digest for blob in self._image.blobs}
        found = self._find_existing([blob for blob in blobs if blob.digest in needed], self._mount_from)
        return found | {blob.digest for blob in blobs if blob.digest in manifests}

    def partial_sizes(self, digests: Iterable[str]) -> Mapping[str, int]:
        from ocistream.registry.blob_push import BlobPusher

        pusher = BlobPusher(self._repository(self._reference.repository, writes=True), records=self._records)
        return _select_resumable((digest, pusher.partial_size(digest)) for digest in digests)

    def _find_existing(self, blobs: Sequence[Descriptor], mount_from: Sequence[str] = ()) -> set[str]:
        """Ask for each blob, in the repository and in those that it can be mounted from."""
        repositories = [self._repository(self._reference.repository, writes=self._records is not None)]
        repositories += map(self._repository, mount_from)
        found: set[str] = set()

        def ask(blob: Descriptor) -> None:
            if any(_has_content(repository, blob) for repository in repositories):
                found.add(blob.digest)

        run_each(ask, blobs, jobs=self._jobs, cancelled=self._client.cancelled)
        return found

    def _list_graphs(self) -> Iterator[Graph]:
        """Yield the graphs of all tags."""
        from ocistream.registry.tags import list_tags

        try:
            tag_list = list_tags(self._repository(self._reference.repository))
        except NotFoundError as error:
            error.hint = f"{error.hint}; before the first push, copy without --have"
            raise
        if tag_list.incomplete_reason:
            self._warn(f"{self.origin} has further tags, which are not read: {tag_list.incomplete_reason}")
        references = [replace(self._reference, tag=tag) for tag in sorted(tag_list.tags)]
        for start in range(0, len(references), _TAGS_AT_ONCE):
            yield from self._build_graphs(references[start : start + _TAGS_AT_ONCE])

    def _build_graphs(self, references: Sequence[Reference]) -> Iterator[Graph]:
        """Yield the graphs of some tags; after a failure one by one, so that a bad tag does not affect the others.

        A tag is skipped if its manifest is missing, malformed, or older than OCI's and Docker's schema 2.
        """
        try:
            yield self._build_graph(references)
        except (NotFoundError, ArchiveError, UnsupportedError) as error:
            if len(references) > 1:
                for reference in references:
                    yield from self._build_graphs([reference])
            else:
                self._warn(f"nothing of {references[0].name} is listed: {error.message}")

    def _build_graph(self, references: Sequence[Reference]) -> Graph:
        """Return the graph of images and of their referrers."""
        from ocistream.registry.registries import Registries
        from ocistream.registry.source import RegistrySource

        # Without mirrors and cache.
        registries = Registries(lambda: self._client)
        return read_graph(RegistrySource(registries, references, referrers="copy", jobs=self._jobs))

    def _repository(self, name: str, *, writes: bool = False) -> Repository:
        from ocistream.registry.repository import Repository

        return Repository(self._client, self._reference.registry, name, for_push=writes)


def _has_content(repository: Repository, blob: Descriptor) -> bool:
    """Return whether a repository has a blob. A blob of unknown size may also be a manifest."""
    return repository.has_blob(blob) or (blob.size == UNKNOWN_SIZE and repository.has_manifest(blob.digest))


class _LayoutBlobs:
    """A layout directory: its regular blob files, or those that one image needs."""

    def __init__(self, location: Location, context: OpenContext, selection: Selection) -> None:
        from ocistream.layout.directory import LayoutDirectory

        self.origin = location.text if location.kind == "oci" else f"oci:{location.text}"
        # An unfinished layout has blobs, but no index yet.
        self._layout = LayoutDirectory(path_of(location))
        self._is_one_image = location.name is not None
        self._open = partial(open_source, location, context, selection)

    def list_digests(self) -> set[str]:
        source, layout = self._open(), self._layout
        stored = {digest for digest in layout.list_blobs() if layout.blob_size(digest) is not None}
        return stored & _graph_digests(read_graph(source)) if self._is_one_image else stored

    def stored(self, blobs: Sequence[Descriptor]) -> set[str]:
        layout = self._layout
        found: set[str] = set()
        for blob in blobs:
            size = layout.blob_size(blob.digest)
            if size is not None and _has_size(blob, size) and layout.has_blob(replace(blob, size=size)):
                found.add(blob.digest)
        if self._is_one_image:
            found &= _graph_digests(read_graph(self._open()))
        return found

    def partial_sizes(self, digests: Iterable[str]) -> Mapping[str, int]:
        return _select_resumable((digest, self._layout.find_partial_size(digest)) for digest in digests)


class _ArchiveBlobs:
    """An archive, in a file or on a pipe: the blobs that its tar headers name, or those that one image needs.

    A pipe or a compressed archive is read to its end.
    """

    def __init__(self, location: Location, context: OpenContext, selection: Selection) -> None:
        self.origin = location.text
        self._is_one_image = location.name is not None
        self._open = partial(open_source, location, context, selection)
        self._cancelled = context.cancelled

    def list_digests(self) -> set[str]:
        return set(self._read_sizes())

    def stored(self, blobs: Sequence[Descriptor]) -> set[str]:
        sizes = self._read_sizes()
        return {blob.digest for blob in blobs if _has_size(blob, sizes.get(blob.digest))}

    def partial_sizes(self, _digests: Iterable[str], /) -> Mapping[str, int]:
        """Return nothing: a finished archive has no partial blobs."""
        return {}

    def _read_sizes(self) -> dict[str, int]:
        from ocistream.archive.source import ArchiveSource

        with closing(self._open()) as source:
            assert isinstance(source, ArchiveSource)  # noqa: S101 - only archives get here
            # Resolve a file too, although its headers would suffice: the caller relies on an archive that can be read.
            graph = read_graph(source, self._cancelled)
            if source.contents.is_docker_archive:
                # ocistream creates the manifests of a docker-archive, and its layers may have any names.
                return {blob.digest: blob.size for blob in graph.blobs}
            needed = _graph_digests(graph)
            entries = source.contents.blobs.items()
            return {digest: entry.size for digest, entry in entries if not self._is_one_image or digest in needed}


def _graph_digests(graph: Graph) -> set[str]:
    return {blob.digest for blob in graph.blobs} | {manifest.descriptor.digest for manifest in graph.manifests}


def _has_size(blob: Descriptor, size: int | None) -> bool:
    return size is not None and blob.size in {UNKNOWN_SIZE, size}
