"""What an end holds: the digests of all that is there, or which blobs of some.

It says what lies there, or what a registry says is there, and a list of all reads no blob for that: only `verify`
hashes. What is not certain is left out, since whoever asks sends what it is told is lacking: so where some blobs are
asked for, those of a layout are hashed, as whoever writes there next will do. Else one that is damaged would be said to
be there each time, refused each time, and never mended.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from ocistream import limits
from ocistream.errors import ArchiveError, NotFoundError, UnsupportedError
from ocistream.oci.descriptor import UNKNOWN_SIZE
from ocistream.stores import Want, is_directory, open_source
from ocistream.streams.workers import each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.oci.reference import Reference
    from ocistream.registry.repository import Repository
    from ocistream.registry.upload_records import UploadRecords
    from ocistream.stores import End, Surroundings
    from ocistream.transfer.interfaces import Early, Source

__all__ = ["Holding", "open_holding"]

#: Tags of a repository that are looked at together: what they share is asked for once, and their manifests are held.
_TAGS: Final = 32
#: Of images with so many blobs together, one is looked at at a time.
_MANY: Final = 2000


class Holding(Protocol):
    """What an end holds. Nothing is asked or opened before one of these is called, and each may be called once."""

    @property
    def origin(self) -> str:
        """How it is written and shown: `registry.local/app`, `registry.local/app:v1`, `oci:DIR`, `FILE`."""

    def digests(self) -> set[str]:
        """Give the digests of all that is there, blobs and manifests.

        Raises:
            NotFoundError: there is no such end.
            OcistreamError: it cannot be read.
        """

    def among(self, blobs: Sequence[Descriptor]) -> set[str]:
        """Give the digests of those that are there. One of another size is not, unless that is `UNKNOWN_SIZE`.

        A repository or a layout that is not there holds none of them.

        Raises:
            NotFoundError: there is no such image, or no such archive.
            OcistreamError: it cannot be read.
        """

    def begun(self, digests: Sequence[str]) -> Mapping[str, int]:
        """Say of which of these blobs, which are not there, interrupted runs of this user have left how many bytes.

        Only what another run can go on with counts, and what is worth it. What is not certain is left out.
        """


def open_holding(
    end: End,
    around: Surroundings,
    early: Early,
    *,
    want: Want | None = None,
    records: UploadRecords | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Holding:
    """Give what an end holds, be it a repository or an image there, a layout, an archive or a pipe.

    `early` is where a pipe leaves what comes before its index. If somebody writes there next, a registry is asked with
    that right, and `records` is where uploads are remembered; what is in the repositories `around.mount_from` counts as
    there to `among`. `tell` is told what was left out.
    """
    if end.reference is not None:
        asking = _Asking(around, end.reference, early, records)
        return _RepositoryHolding(asking, tell) if end.is_repository else _ImageHolding(asking)
    kind = _LayoutHolding if end.kind == "oci" or (end.kind == "path" and is_directory(end)) else _ArchiveHolding
    return kind(end, around, want or Want(), early)


class _Asking:
    """One repository of a registry, asked for what it has: the registry itself, and no mirror of it."""

    def __init__(self, around: Surroundings, reference: Reference, early: Early, records: UploadRecords | None) -> None:
        self.reference = reference
        self._around = around
        self._early = early
        self._records = records
        self._writes = records is not None

    def tags(self) -> tuple[Sequence[str], str | None]:
        """List the tags, and say why they are not all, if so."""
        from ocistream.registry.tags import list_tags

        listed = list_tags(self._repository(self.reference.repository))
        return listed.tags, listed.cut

    def graph(self, references: Sequence[Reference]) -> Graph:
        """Get the manifests of images, and of what hangs on them."""
        from ocistream.registry.source import RegistrySource

        transport = self._around.transport()
        return RegistrySource(transport, references, referrers="along", jobs=self._around.jobs).graph(self._early)

    def there(self, blobs: Iterable[Descriptor], *, shared: bool = False) -> set[str]:
        """Ask for each blob. What a digest alone was given of may be a manifest as well.

        If `shared`, those of the repositories that can be mounted from count as well.
        """
        repositories = [self._repository(self.reference.repository, writes=self._writes)]
        repositories += [self._repository(name) for name in self._around.mount_from if shared]
        found: set[str] = set()
        lock = threading.Lock()

        def ask(blob: Descriptor) -> None:
            if any(_has(repository, blob) for repository in repositories):
                with lock:
                    found.add(blob.digest)

        each(ask, blobs, jobs=self._around.jobs, cancelled=self._around.transport().cancelled)
        return found

    def begun(self, digests: Sequence[str]) -> dict[str, int]:
        """Ask of each of these blobs how much is there of an upload that an earlier run has left."""
        from ocistream.registry.uploads import Uploader

        uploader = Uploader(self._repository(self.reference.repository, writes=True), self._records)
        return _worth_it((digest, uploader.begun(digest)) for digest in digests)

    def _repository(self, name: str, *, writes: bool = False) -> Repository:
        from ocistream.registry.repository import Repository

        return Repository(self._around.transport(), self.reference.registry, name, writes=writes)


def _worth_it(begun: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Leave out what is sent sooner than it is gone on with."""
    found = ((digest, size) for digest, size in begun if size >= limits.WORTH_KEEPING)
    return dict(itertools.islice(found, limits.MAX_REACHED))


def _has(repository: Repository, blob: Descriptor) -> bool:
    if repository.has_blob(blob):
        return True
    return blob.size == UNKNOWN_SIZE and repository.has_manifest(blob.digest)


class _RepositoryHolding:
    """A repository of a registry, with all of its tags."""

    def __init__(self, asking: _Asking, tell: Callable[[str], None]) -> None:
        self._asking = asking
        self._tell = tell
        self.origin = f"{asking.reference.registry}/{asking.reference.repository}"

    def digests(self) -> set[str]:
        tags, cut = self._asking.tags()
        if cut:
            self._tell(f"{self.origin} has further tags, which are not looked at: {cut}")
        references = [replace(self._asking.reference, tag=tag) for tag in sorted(tags)]
        found: set[str] = set()
        known: set[str] = set()
        start, at_once = 0, 1
        while start < len(references):
            needed = 0
            for graph in self._graphs(references[start : start + at_once]):
                found.update(manifest.descriptor.digest for manifest in graph.manifests)
                new = [blob for blob in graph.blobs if blob.digest not in known]
                known.update(blob.digest for blob in new)
                needed += len(graph.blobs)
                # The manifests of thousands of blobs are megabytes, and are not needed any more.
                del graph
                found |= self._asking.there(new)
            start += at_once
            at_once = min(2 * at_once, _TAGS) if needed < _MANY else 1
        return found

    def among(self, blobs: Sequence[Descriptor]) -> set[str]:
        return self._asking.there(blobs, shared=True)

    def begun(self, digests: Sequence[str]) -> Mapping[str, int]:
        return self._asking.begun(digests)

    def _graphs(self, references: Sequence[Reference]) -> Iterable[Graph]:
        """Get what some tags stand for; one by one where that fails, so that a single one does not stand for all.

        Of a tag whose manifest is gone, malformed, or older than OCI's and Docker's second format, nothing is listed.
        """
        try:
            yield self._asking.graph(references)
        except (NotFoundError, ArchiveError, UnsupportedError) as error:
            if len(references) > 1:
                for reference in references:
                    yield from self._graphs([reference])
            else:
                self._tell(f"nothing of {references[0].name} is listed: {error.what}")


class _ImageHolding:
    """One image of a registry, by tag or digest."""

    def __init__(self, asking: _Asking) -> None:
        self._asking = asking
        self.origin = str(asking.reference)

    def digests(self) -> set[str]:
        graph = self._graph()
        return self._asking.there(graph.blobs) | {manifest.descriptor.digest for manifest in graph.manifests}

    def among(self, blobs: Sequence[Descriptor]) -> set[str]:
        graph = self._graph()
        manifests = {manifest.descriptor.digest for manifest in graph.manifests}
        needed = {blob.digest for blob in graph.blobs}
        asked = self._asking.there([blob for blob in blobs if blob.digest in needed], shared=True)
        return asked | (manifests & {blob.digest for blob in blobs})

    def begun(self, digests: Sequence[str]) -> Mapping[str, int]:
        return self._asking.begun(digests)

    def _graph(self) -> Graph:
        return self._asking.graph([self._asking.reference])


class _LayoutHolding:
    """A layout directory: what lies there as a regular file under a digest, or as much of that as one image needs."""

    def __init__(self, end: End, around: Surroundings, want: Want, early: Early) -> None:
        self._end = end
        self._around = around
        self._want = want
        self._early = early
        self.origin = end.text if end.kind == "oci" else f"oci:{end.text}"

    def digests(self) -> set[str]:
        from ocistream.layout.directory import LayoutDirectory

        assert self._end.path is not None  # noqa: S101 - parse_end sees to it
        layout = LayoutDirectory(self._end.path)
        source = open_source(self._end, self._around, self._want)
        there = {digest for digest in layout.blobs() if layout.blob_size(digest) is not None}
        return there if self._end.name is None else there & _needed(source.graph(self._early))

    def among(self, blobs: Sequence[Descriptor]) -> set[str]:
        from ocistream.layout.directory import LayoutDirectory

        assert self._end.path is not None  # noqa: S101 - parse_end sees to it
        # One that was begun has blobs, and no index yet.
        layout = LayoutDirectory(self._end.path)
        found: set[str] = set()
        for blob in blobs:
            size = layout.blob_size(blob.digest)
            if size is not None and _fits(blob, size) and layout.holds(replace(blob, size=size)):
                found.add(blob.digest)
        if self._end.name is None:
            return found
        return found & _needed(open_source(self._end, self._around, self._want).graph(self._early))

    def begun(self, digests: Sequence[str]) -> Mapping[str, int]:
        from ocistream.layout.directory import LayoutDirectory

        assert self._end.path is not None  # noqa: S101 - parse_end sees to it
        layout = LayoutDirectory(self._end.path)
        return _worth_it((digest, layout.begun(digest)) for digest in digests)


class _ArchiveHolding:
    """An archive, in a file or on a pipe: what its headers say is in it, or as much of that as one image needs.

    A pipe, and what is compressed, is read to its end.
    """

    def __init__(self, end: End, around: Surroundings, want: Want, early: Early) -> None:
        self._end = end
        self._around = around
        self._want = want
        self._early = early
        self.origin = end.text

    def digests(self) -> set[str]:
        return set(self._sizes())

    def among(self, blobs: Sequence[Descriptor]) -> set[str]:
        sizes = self._sizes()
        return {blob.digest for blob in blobs if _fits(blob, sizes.get(blob.digest))}

    def begun(self, digests: Sequence[str]) -> Mapping[str, int]:  # noqa: ARG002 - nothing is added to an archive
        return {}

    def _sizes(self) -> dict[str, int]:
        source = open_source(self._end, self._around, self._want)
        try:
            return self._sizes_of(source)
        finally:
            source.close()

    def _sizes_of(self, source: Source) -> dict[str, int]:
        from ocistream.archive.file import ArchiveFileSource
        from ocistream.archive.stream import ArchiveStreamSource

        assert isinstance(source, ArchiveFileSource | ArchiveStreamSource)  # noqa: S101 - as the table of kinds has it
        # Headers would do of a file, but who is told that something is there relies on an archive that can be read.
        graph = source.graph(self._early)
        for _ in source.blobs(()):
            pass
        if source.contents.is_docker_archive:
            # The manifests of a docker-archive are made when it is read, and its layers may have names of any kind.
            return {blob.digest: blob.size for blob in graph.blobs}
        needed = _needed(graph)
        places = source.contents.blobs.items()
        return {digest: place.size for digest, place in places if self._end.name is None or digest in needed}


def _needed(graph: Graph) -> set[str]:
    return {blob.digest for blob in graph.blobs} | {manifest.descriptor.digest for manifest in graph.manifests}


def _fits(blob: Descriptor, size: int | None) -> bool:
    return size is not None and blob.size in {UNKNOWN_SIZE, size}
