"""The interfaces of a transfer: Source, Destination, Blob, Observer, and the optional capabilities of both sides.

Only types and an observer that does nothing: stores do not know each other, and this package knows no store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from ocistream.errors import IntegrityError
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.streams.chunks import Chunk

__all__ = [
    "Blob",
    "BlobPart",
    "BlobPartDestination",
    "BlobPartSource",
    "BufferingDestination",
    "Destination",
    "DiscardableDestination",
    "EarlyBlobs",
    "IncompleteSource",
    "IncrementalDestination",
    "MountingDestination",
    "NewBlob",
    "NewBlobDestination",
    "NoReferrersDestination",
    "NullObserver",
    "Observer",
    "OmittingDestination",
    "ReadBackDestination",
    "ReadableDestination",
    "ResumableDestination",
    "RetryableDestination",
    "Source",
]


@dataclass(frozen=True, slots=True)
class Blob:
    """A descriptor and the way to its bytes.

    `open()` returns the chunks from the first byte; if `reopenable`, it may be called again. A source's chunks are raw,
    a destination gets verified ones. `open_at(offset)` returns the chunks from a byte offset, and sends no request
    before the first chunk is needed. A blob that starts in its middle cannot be verified: only its size is checked.

    `resume(chunks, size)` is for a destination that seems to have the first `size` bytes; `chunks` are these bytes. It
    returns the remaining chunks, verified as the end of the complete blob. After an IntegrityError the destination must
    delete the stored bytes, since the blob may be written again.

    `fetch_range(start, view)` reads the bytes from `start` on into `view`, by one request without retries, in parallel
    with other ranges. Whenever more bytes have arrived, it yields how many `view` has. It is None if ranges are
    unavailable or no faster.

    `on_corrupt(error, again)` is for a source with mirrors. It is told that the bytes were wrong, and raises the error
    to report. If `again` is True, it may instead return, and `open()` then reads from another mirror.

    `precheck()` is for a source with mirrors or a cache. If nothing could be read again, it is called before the first
    byte. The source can then verify its copy, or choose another mirror.

    `cache(chunks)` is for a source that stores what it fetches. It passes on the verified chunks of the complete blob,
    and ignores failures to store them. Destinations do not get it.

    `is_interruptible` means that the bytes come only once, over a connection that may break. The destination should
    then store them so that another run can resume. `offset` is not 0 if the source lacks that many first bytes, since
    the destination has them from an earlier run (`ResumableDestination`): `open()` starts there.

    `can_be_plain_layer` says that a blob before the graph may be a layer that `docker save` left uncompressed.
    """

    descriptor: Descriptor
    open: Callable[[], Iterator[Chunk]]
    reopenable: bool = True
    on_corrupt: Callable[[IntegrityError, bool], None] | None = None
    open_at: Callable[[int], Iterator[Chunk]] | None = None
    resume: Callable[[Iterator[Chunk], int], Iterator[Chunk]] | None = None
    fetch_range: Callable[[int, memoryview], Generator[int, None, None]] | None = None
    precheck: Callable[[], None] | None = None
    cache: Callable[[Iterator[Chunk]], Iterator[Chunk]] | None = None
    is_interruptible: bool = False
    offset: int = 0
    can_be_plain_layer: bool = False


@dataclass(frozen=True, slots=True)
class NewBlob:
    """A blob that is made while it is copied: its digest and size are known after its last chunk.

    `open()` returns the chunks; if `reopenable`, it may be called again and returns the same. `descriptor()` is valid
    once they are used up. `replaces` is the blob of the graph that this one is made from, if known.
    """

    open: Callable[[], Iterator[Chunk]]
    descriptor: Callable[[], Descriptor]
    replaces: Descriptor | None = None
    reopenable: bool = True


@dataclass(frozen=True, slots=True)
class BlobPart:
    """A range of a blob's bytes, from `offset` on, in the volume of an archive called `volume`.

    `blob` gives access to the bytes, and has a digest of its own; None if the source does not have this volume.
    """

    offset: int
    size: int
    volume: str
    blob: Blob | None = None


class EarlyBlobs(Protocol):
    """Accepts blobs that come before the source knows its graph, as in an archive whose index comes last."""

    def write(self, blob: Blob) -> None:
        """Accept a blob at once. Its bytes are verified and completely read when this returns."""

    def write_new(self, chunks: Iterator[Chunk]) -> Descriptor:
        """Accept a layer of unknown digest at once; return its descriptor.

        The media type is what the bytes suggest.
        """

    def read_back(self, descriptor: Descriptor) -> bytes:
        """Return small content that was written, for a manifest that could not be told from other JSON."""


class Source(Protocol):
    """Where images come from. Its blobs are not verified; `copy` verifies them."""

    @property
    def concurrent(self) -> bool:
        """Whether several of its blobs may be read at once, each in a thread of its own."""

    def resolve(self, early_blobs: EarlyBlobs) -> Graph:
        """Return the graph to copy. A stream may hand over blobs that come before its index."""

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Yield the wanted blobs, in the order in which this source can read them.

        Unless the source is `concurrent`, a blob must be used up before the next one is requested. Blobs that the
        source lacks are omitted, not reported: the caller knows what it asked for.
        """

    def close(self) -> None:
        """Close files and connections."""


class Destination(Protocol):
    """Where images go. If the iterator of a blob raises, nothing of that blob may become visible."""

    @property
    def concurrent(self) -> bool:
        """Whether several blobs may be written at once, each from a thread of its own."""

    def begin(self, graph: Graph) -> None:
        """Prepare for the blobs of `graph`.

        A tar writes its small files here: with these first, its reader can ask for missing blobs before the first
        layer.
        """

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Return whether the complete blob exists."""

    def has_manifest(self, descriptor: Descriptor) -> bool:
        """Return whether a manifest that the source lacks exists."""

    def write(self, blob: Blob) -> None:
        """Store a blob that does not exist yet. It may come before `begin`, from a source without its graph."""

    def commit(self, graph: Graph) -> None:
        """Make everything visible: manifests, children first, and names at the very end."""

    def close(self) -> None:
        """Drop what was not committed."""


class Observer(Protocol):
    """Receives the progress of blobs, from any thread. Sizes are in bytes."""

    def planned(self, graph: Graph) -> None:
        """The graph, and so the total, is known."""

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """`size` bytes have moved; negative if a blob restarts.

        They are those of the blob `descriptor`, whose digest may not be known yet (then it is empty). Without a
        descriptor, bytes only count as moved: none were read, and no more of the blob will come.
        """

    def done(self, descriptor: Descriptor, how: str) -> None:
        """A blob was "copied", "converted", "mounted", "skipped" because it exists, or "left out".

        Where nothing is written, it was "verified".
        """


@runtime_checkable
class ImageCountObserver(Protocol):
    """An observer that is told how many images of a run are finished."""

    def report_images(self, number: int, count: int) -> None:
        """`number` of `count` images are finished."""


class NullObserver:
    """An observer that ignores all calls."""

    def planned(self, graph: Graph) -> None:
        """Do nothing."""

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """Do nothing."""

    def done(self, descriptor: Descriptor, how: str) -> None:
        """Do nothing."""


@runtime_checkable
class MountingDestination(Protocol):
    """A destination that can mount a blob from another repository (distribution-spec, "Mounting a blob")."""

    def mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Try to mount the blob from where `source` has it; return False if it must be sent."""

    def can_mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Return whether the blob could be mounted, without changing anything."""


@runtime_checkable
class RetryableDestination(Protocol):
    """A destination that keeps nothing of a blob whose chunks raised, so that the blob can be written again."""

    def can_retry(self) -> bool:
        """Return whether this holds here: a pipe cannot take anything back."""


@runtime_checkable
class BufferingDestination(Protocol):
    """A destination that needs memory for each blob under way, which prefetching must not use."""

    @property
    def buffer_size(self) -> int:
        """Bytes for each blob, beyond what a file needs."""


@runtime_checkable
class IncompleteSource(Protocol):
    """A source that knows which blobs of its graph it lacks, beyond those that the graph lists as omitted."""

    def is_missing(self, descriptor: Descriptor) -> bool | None:
        """Return whether the source lacks a blob of the graph; None if that is not known yet."""


@runtime_checkable
class BlobPartSource(Protocol):
    """A source that may have some parts of a blob, but not the complete blob."""

    def parts(self, descriptor: Descriptor) -> Sequence[BlobPart]:
        """Return all parts of a blob in order, in any volume; empty if the blob is not split."""


@runtime_checkable
class BlobPartDestination(Protocol):
    """A destination that accepts a blob part by part, in order, in several runs."""

    def write_part(self, descriptor: Descriptor, offset: int, part: Blob) -> int:
        """Write the part of a blob that begins at `offset`; its bytes are verified as a blob of their own.

        Return how many bytes of the blob are stored from its beginning. These are all if the blob exists, and no more
        than before if the part is not the next one.
        """

    def stored_size(self, descriptor: Descriptor) -> int:
        """Return how many bytes of a blob earlier runs have stored, from its beginning."""


@runtime_checkable
class ResumableDestination(Protocol):
    """A destination that accepts the rest of a blob whose beginning an earlier run stored."""

    def write_rest(self, blob: Blob) -> None:
        """Complete a blob of which the first `offset` bytes should be stored, and perhaps more.

        Call `blob.open_at` or `blob.resume` at most once. `open_at` reads from any later byte, and only the size is
        checked. `resume` returns the remaining chunks, verified together with the stored bytes.

        Raises:
            PartialBlobLostError: the beginning is not stored.
            IntegrityError: the stored bytes and the rest are not the blob.
        """


@runtime_checkable
class GracefullyCancelledDestination(Protocol):
    """A destination that loses less if it is told of an interruption instead of being torn down.

    It is written to in a thread of its own, where signals do not raise.
    """

    is_cancelled_gracefully: bool


@runtime_checkable
class ResumedSizeReporter(Protocol):
    """A destination that may have a blob's beginning, although the blob is read from its first byte to verify it."""

    def resumed_size(self, descriptor: Descriptor) -> int:
        """Return how many bytes of a written blob were not sent, since an earlier run had sent them."""


@runtime_checkable
class IncrementalDestination(Protocol):
    """A destination that keeps blobs of incomplete images: missing ones may come in another run."""

    is_incremental: Literal[True]


@runtime_checkable
class OmittingDestination(Protocol):
    """A destination that can be written without some blobs, and lists them (`Graph.omitted_from_output`)."""

    can_omit_blobs: Literal[True]


@runtime_checkable
class DiscardableDestination(Protocol):
    """A destination that keeps unfinished content so that another run can resume it.

    Interruptions and full disks keep it; content that was found wrong must be discarded.
    """

    def discard(self) -> None:
        """Delete unfinished content, since some of it is wrong."""


@runtime_checkable
class ExpectingDestination(Protocol):
    """A destination that can be asked for existing blobs before `begin`, once it knows what may come."""

    def expect(self, graph: Graph) -> None:
        """Prepare for the blobs that may come."""


@runtime_checkable
class NewBlobDestination(Protocol):
    """A destination that can store a blob whose digest is known only after its last chunk.

    A registry closes the upload with the digest, a directory renames the file, a tar file gets its header afterwards.
    Only a pipe needs a temporary file. Such blobs come before `begin`, which gets the graph of what was written.
    """

    def expect(self, graph: Graph) -> None:
        """Prepare for the blobs of the source's graph, before some of them are converted."""

    def write_new(self, blob: NewBlob) -> Descriptor:
        """Store a blob and return its descriptor. If its chunks raise, nothing of it may be visible."""


@runtime_checkable
class NoReferrersDestination(Protocol):
    """A destination whose format cannot store referrers; `no_referrers_reason` is the message."""

    no_referrers_reason: str


@runtime_checkable
class EarlyWriter(Protocol):
    """A destination, or a wrapper of one, that may be unable to accept blobs before the graph is known."""

    def can_write_early(self) -> bool:
        """Return whether it accepts them."""


@runtime_checkable
class ReferrerTagGuard(Protocol):
    """A destination in which a referrer's tag may hold something else that must not be lost."""

    def skip_conflicting_referrers(self, graph: Graph) -> Graph:
        """Return the graph without referrers that would overwrite such a tag. Called before `begin`."""


@runtime_checkable
class ReadBackDestination(Protocol):
    """A destination that can return small content that was written to it."""

    def read_back(self, descriptor: Descriptor) -> bytes:
        """Read back content of at most `MAX_MANIFEST` bytes that was written, verified."""


@runtime_checkable
class ReadableDestination(Protocol):
    """A destination that can read back a blob that was written before the graph was known."""

    def read_blob(self, descriptor: Descriptor) -> Iterator[Chunk]:
        """Read the blob again, unverified."""
