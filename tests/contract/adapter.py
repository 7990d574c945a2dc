"""ocistream's stores behind a small vocabulary. No other module of this suite imports internals of ocistream.

A source is opened, listed, and read blob by blob. A destination is opened, told what to expect, written to, and
committed. After a redesign of the stores, only this module must be rewritten.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from ocistream.archive.destination import ArchiveDestination
from ocistream.archive.docker_destination import DockerArchiveDestination
from ocistream.archive.file_source import ArchiveFileSource
from ocistream.archive.joined_source import open_joined_source
from ocistream.archive.outputs import StreamOutput, open_file_output
from ocistream.archive.stream_source import ArchiveStreamSource
from ocistream.archive.volume_destination import VolumeSetDestination
from ocistream.errors import IntegrityError, OcistreamError, UsageError
from ocistream.http.client import HttpClient
from ocistream.http.settings import HttpSettings
from ocistream.layout.destination import LayoutDestination
from ocistream.layout.image_selection import (
    Selection,
    select_every_image,
    select_existing_images,
    select_named_images,
    select_only_image,
)
from ocistream.layout.source import LayoutSource
from ocistream.oci import referrers as attachments
from ocistream.oci.descriptor import Descriptor, parse_platform
from ocistream.oci.graph import Graph, Root
from ocistream.oci.platforms import PlatformChoice
from ocistream.oci.reference import Reference, parse_reference
from ocistream.registry.destination import RegistryDestination
from ocistream.registry.registries import Registries
from ocistream.registry.source import RegistrySource
from ocistream.streams.chunks import Chunk, read_all, verify_chunks
from ocistream.streams.workers import DEFAULT_JOBS
from ocistream.transfer import fan_out
from ocistream.transfer.copy import Copy
from ocistream.transfer.fan_out import FanOutBranch
from ocistream.transfer.interfaces import Access, NewBlob, NewBlobDestination, ReadableDestination, VerifiedBlob
from ocistream.transfer.interfaces import Blob as NativeBlob
from ocistream.transfer.interfaces import Destination as NativeDestination
from ocistream.transfer.interfaces import Source as NativeSource
from ocistream.transfer.recompress import parse_recompression
from tests.contract.adapter_types import (
    EVERYTHING,
    MISSING,
    NO_SUBJECT,
    NOT_CHOSEN,
    NOT_WANTED,
    SAME_TAG,
    UNREADABLE,
    Listing,
    Manifest,
    Piece,
    Referrer,
    Skipped,
    Wanted,
)
from tests.images import digest_of

#: The other names that the tests use are defined here.
__all__ = ["Chunk"]

_REASONS: Final = {
    attachments.PLATFORM_FILTERED: NOT_CHOSEN,
    attachments.EXCLUDED: NOT_WANTED,
    attachments.SUBJECT_MISSING: NO_SUBJECT,
    attachments.NOT_FOUND: MISSING,
    attachments.UNREADABLE: UNREADABLE,
    attachments.DUPLICATE_TAG: SAME_TAG,
}
_SELECTIONS: Final = {"entries": select_every_image, "images": select_existing_images, "only": select_only_image}


@dataclasses.dataclass(frozen=True)
class Blob:
    """A blob and a function that opens its unverified bytes. `open` takes an offset."""

    piece: Piece
    open: Callable[[int], Iterator[Chunk]]
    reopenable: bool = True

    @property
    def digest(self) -> str:
        """The expected digest of the bytes."""
        return self.piece.digest

    @property
    def size(self) -> int:
        """The expected size."""
        return self.piece.size

    def content(self) -> bytes:
        """Return all bytes, verified."""
        return b"".join(bytes(chunk) for chunk in verify_chunks(self.open(0), _descriptor(self.piece)))


class Source:
    """An open source."""

    def __init__(self, native: NativeSource, transport: HttpClient | None = None) -> None:
        self.native = native
        self._transport = transport

    @property
    def concurrent(self) -> bool:
        """Whether several blobs can be read at once."""
        return self.native.concurrent

    def list(self) -> Listing:
        """List the images; the listing keeps blobs that come before the source knows the images."""
        early = _Early()
        return _listing(self.native.resolve(early), early.blobs, frozenset(early.unnamed))

    def blobs(self, pieces: Iterable[Piece]) -> Iterator[Blob]:
        """Return those of `pieces` that the source has, in the source's order."""
        for blob in self.native.blobs([_descriptor(piece) for piece in pieces]):
            yield Blob(_piece(blob.descriptor), blob.open, blob.access is Access.REPEATABLE)

    def close(self) -> None:
        """Close the source."""
        self.native.close()
        if self._transport:
            self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Destination:
    """An open destination."""

    def __init__(self, native: NativeDestination, transport: HttpClient | None = None) -> None:
        self.native = native
        self._transport = transport

    @property
    def concurrent(self) -> bool:
        """Whether several blobs can be written at once."""
        return self.native.traits.concurrent

    @property
    def accepts_early(self) -> bool:
        """Whether blobs can be written before the images are known."""
        return self.native.traits.early_refusal is None

    @property
    def keeps_blobs(self) -> bool:
        """Whether blobs are kept without their images."""
        return self.native.traits.keeps_blobs

    def begin(self, listing: Listing) -> None:
        """Announce what will be written."""
        self.native.expect(listing.native)
        self.native.begin(listing.native)

    def expect(self, listing: Listing) -> None:
        """Announce what may be written if the digests of layers are not known yet; otherwise the same as `begin`."""
        if isinstance(self.native, NewBlobDestination):
            self.native.expect(listing.native)
        else:
            self.begin(listing)

    def stored(self, pieces: Iterable[Piece]) -> set[str]:
        """Return the digests of the blobs and manifests that are stored already."""
        return self.native.stored([_descriptor(piece) for piece in pieces])

    def write(self, blob: Blob) -> None:
        """Store a blob."""

        def opened(offset: int = 0, _stored: object = None) -> Iterator[Chunk]:
            return blob.open(offset)

        self.native.write(
            VerifiedBlob(_descriptor(blob.piece), opened, Access.REPEATABLE if blob.reopenable else Access.ONCE)
        )

    def write_unnamed(self, blob: Blob) -> None:
        """Store a layer whose digest is known only after its last byte."""
        assert isinstance(self.native, NewBlobDestination)
        self.native.write_new(NewBlob(functools.partial(blob.open, 0), lambda: _descriptor(blob.piece)))

    def read_back(self, piece: Piece) -> bytes | None:
        """Return a small blob that was written; None if this kind of destination cannot do that."""
        return read_all(self.native.read(_descriptor(piece))) if isinstance(self.native, ReadableDestination) else None

    def commit(self, listing: Listing) -> None:
        """Make the images visible."""
        self.native.commit(listing.native)

    def close(self) -> None:
        """Drop everything that was not committed."""
        self.native.close()
        if self._transport:
            self._transport.close()


class FanOut(Destination):
    """Several open destinations as one. `needed` limits the blobs that each of them needs."""

    def __init__(
        self, destinations: Sequence[Destination], needed: Mapping[Destination, Collection[str]] | None = None
    ) -> None:
        self.cancelled = threading.Event()
        branches = [FanOutBranch(one.native, functools.partial(_only, (needed or {}).get(one))) for one in destinations]
        self._fan = fan_out.FanOutDestination(branches, self.cancelled)
        super().__init__(self._fan)

    @property
    def failures(self) -> list[OcistreamError | None]:
        """The failure of each destination, or None."""
        return [branch.failure for branch in self._fan.branches]

    @property
    def sent(self) -> list[int]:
        """The bytes of blobs written to each destination."""
        return [branch.bytes_written for branch in self._fan.branches]

    @property
    def fetched(self) -> int:
        """The bytes of blobs read from the source."""
        return self._fan.bytes_read


@dataclasses.dataclass(frozen=True)
class Copied:
    """The result of a copy: the outcome of each blob, by digest, and the bytes reported as progress.

    `origins` are the old digests of rewritten manifests, by the new digests.
    """

    listing: Listing
    outcomes: dict[str, str]
    origins: dict[str, str]
    total: int | None
    moved: int


def copy(
    source: Source,
    destination: Destination,
    *,
    rename: Callable[[str], str] | None = None,
    compress: str | None = None,
    jobs: int = DEFAULT_JOBS,
) -> Copied:
    """Copy everything that `source` has. `rename` changes the names of images."""

    def renamed(graph: Graph) -> Graph:
        assert rename is not None
        roots = tuple(Root(rename(root.name or ""), root.descriptor) for root in graph.roots)
        return dataclasses.replace(graph, roots=roots)

    progress = _Progress()
    report = Copy(
        source.native,
        destination.native,
        progress,
        rename=renamed if rename else lambda graph: graph,
        recompression=parse_recompression(compress) if compress else None,
        jobs=jobs,
        cancelled=destination.cancelled if isinstance(destination, FanOut) else threading.Event(),
    ).run()
    outcomes = {moved.descriptor.digest: moved.status for moved in report.blobs}
    return Copied(_listing(report.graph), outcomes, dict(report.origins), progress.total, progress.moved)


def needed_by(listing: Listing, image: str) -> set[str]:
    """Return the digests of everything that the image with this digest needs, including its referrers."""
    graph: Graph = listing.native
    return next(graph.reachable(root) for root in graph.roots if root.descriptor.digest == image)


def layout_source(path: Path, wanted: Wanted = EVERYTHING) -> Source:
    """Open a layout directory."""
    return Source(LayoutSource(path, _selection(wanted)))


def archive_source(path: Path, wanted: Wanted = EVERYTHING) -> Source:
    """Open an OCI archive or docker-archive in a file."""
    return Source(ArchiveFileSource(path, _selection(wanted)))


def pipe_source(file: io.BufferedReader, wanted: Wanted = EVERYTHING) -> Source:
    """Open an OCI archive or docker-archive that comes through a pipe."""
    return Source(ArchiveStreamSource(file, _selection(wanted)))


def bytes_source(archive: bytes, wanted: Wanted = EVERYTHING) -> Source:
    """Open an archive as if it came through a pipe."""
    return pipe_source(io.BufferedReader(io.BytesIO(archive)), wanted)


def volumes_source(paths: Sequence[Path], wanted: Wanted = EVERYTHING) -> Source:
    """Open the volumes of a set."""
    inputs = [(path, str(path)) for path in paths]
    return Source(open_joined_source(inputs, _selection(wanted)))


def registry_source(names: Sequence[str], wanted: Wanted = EVERYTHING) -> Source:
    """Open images of a registry, by their full names."""
    references = [parse_reference(name) for name in names]
    transport = _transport()
    native = RegistrySource(
        Registries(lambda: transport), references, platforms=_choice(wanted), referrers=wanted.referrers
    )
    return Source(native, transport)


def layout_destination(path: Path) -> Destination:
    """Open a layout directory, which need not exist."""
    return Destination(LayoutDestination(path))


def archive_destination(path: Path, *, mtime: int = 0) -> Destination:
    """Open an OCI archive that is written to a file; every entry gets the time `mtime`."""
    return Destination(ArchiveDestination(open_file_output(path), mtime=mtime))


def pipe_destination(file: io.FileIO) -> Destination:
    """Open an OCI archive that is written to a pipe."""
    return Destination(ArchiveDestination(StreamOutput(file, "to the pipe")))


def docker_archive_destination(target: Path | io.FileIO) -> Destination:
    """Open a docker-archive that is written to a file or a pipe."""
    output = open_file_output(target) if isinstance(target, Path) else StreamOutput(target, "to the pipe")
    return Destination(DockerArchiveDestination(output))


def volumes_destination(template: Path, factor: float = 1) -> Destination:
    """Open volumes; each has `factor` times the smallest possible size."""
    return Destination(_SmallVolumes(template, factor))


def registry_destination(repository: str) -> Destination:
    """Open a repository, HOST/NAME; each image gets the last part of its name as its tag."""

    def target(root: Root) -> Reference:
        return parse_reference(f"{repository}:{(root.name or '').rpartition(':')[2]}")

    transport = _transport()
    return Destination(
        RegistryDestination(transport, target, early_target=parse_reference(f"{repository}:early")), transport
    )


class _Transport(HttpClient):
    """A transport that does not wait between attempts."""

    def wait(self, seconds: float) -> None:
        del seconds
        super().wait(0)


def _transport() -> HttpClient:
    return _Transport(HttpSettings(), lambda _registry, _repository: None, cancelled=threading.Event())


class _SmallVolumes(VolumeSetDestination):
    """Volumes whose size is a multiple of the smallest one, which the error for a too small size names."""

    def __init__(self, template: Path, factor: float) -> None:
        super().__init__(template, 1)
        self._factor = factor

    def begin(self, graph: Graph) -> None:
        try:
            super().begin(graph)
        except UsageError as error:
            self._size = int(int(error.message.split()[-2]) * self._factor)
            super().begin(graph)


class _Progress:
    """Records the progress of a copy, from any thread."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.moved = 0
        self._lock = threading.Lock()

    def planned(self, graph: Graph) -> None:
        self.total = graph.size

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        del descriptor
        with self._lock:
            self.moved += size

    def done(self, descriptor: Descriptor, status: str) -> None:
        pass


class _Early:
    """Takes blobs that come before a source knows its images, verified as a copy verifies them."""

    early_refusal = None

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.unnamed: set[str] = set()

    def write(
        self,
        blob: NativeBlob,
        *,
        can_be_plain_layer: bool = False,  # noqa: ARG002 - all alike
    ) -> IntegrityError | None:
        assert blob.descriptor.digest not in self.blobs, "a blob was delivered twice"
        try:
            self.blobs[blob.descriptor.digest] = b"".join(map(bytes, verify_chunks(blob.open(), blob.descriptor)))
        except IntegrityError as error:
            return error
        return None

    def write_new(self, chunks: Iterator[Chunk]) -> Descriptor:
        content = b"".join(map(bytes, chunks))
        descriptor = Descriptor("application/vnd.oci.image.layer.v1.tar", digest_of(content), len(content))
        self.blobs[descriptor.digest] = content
        self.unnamed.add(descriptor.digest)
        return descriptor

    def read_back(self, descriptor: Descriptor) -> bytes:
        return self.blobs[descriptor.digest]


def _listing(graph: Graph, early: dict[str, bytes] | None = None, unnamed: frozenset[str] = frozenset()) -> Listing:
    return Listing(
        images=tuple((root.name or "", root.descriptor.digest) for root in graph.roots),
        manifests=tuple(
            Manifest(
                _piece(manifest.descriptor),
                manifest.raw,
                tuple(child.digest for child in graph.documents[manifest.descriptor.digest].manifests),
            )
            for manifest in graph.manifests
        ),
        blobs=tuple(map(_piece, graph.blobs)),
        configs=frozenset(document.config.digest for _, document in graph.images() if document.config),
        absent=tuple(manifest.digest for manifest in graph.absent),
        referrers=tuple(
            Referrer(
                one.subject,
                one.descriptor.digest,
                one.tag,
                one.descriptor.artifact_type,
                dict(one.descriptor.annotations),
            )
            for one in graph.all_referrers
        ),
        skipped=tuple(
            Skipped(left.subject, left.digest, left.tag, left.kind, _REASONS.get(left.reason, left.reason))
            for left in graph.skipped_referrers
        ),
        size=graph.size,
        early=early or {},
        unnamed=unnamed,
        native=graph,
    )


def _only(digests: Collection[str] | None, graph: Graph) -> Graph:
    if digests is None:
        return graph
    return dataclasses.replace(graph, blobs=tuple(blob for blob in graph.blobs if blob.digest in digests))


def _choice(wanted: Wanted) -> PlatformChoice:
    return PlatformChoice(tuple(map(parse_platform, wanted.platforms)), explicit=wanted.asked)


def _selection(wanted: Wanted) -> Selection:
    named = wanted.images if isinstance(wanted.images, tuple) else None
    select = _SELECTIONS[str(wanted.images)] if named is None else select_named_images(named)
    return Selection(select, _choice(wanted), referrers=wanted.referrers)


def _piece(descriptor: Descriptor) -> Piece:
    return Piece(descriptor.media_type, descriptor.digest, descriptor.size)


def _descriptor(piece: Piece) -> Descriptor:
    return Descriptor(piece.media_type, piece.digest, piece.size)
