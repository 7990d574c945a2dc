"""The interfaces of a transfer: Source, Destination, the blobs between them, Observer, and three optional capabilities.

Only types, an observer that does nothing, and the answers of a source that has all its blobs (`CompleteSource`).
Stores do not know each other, and this package knows no store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from ocistream import limits

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from ocistream.errors import IntegrityError, UnsupportedError
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph, Root
    from ocistream.streams.chunks import Chunk


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from `start` to `end` of a blob. `digest` is the digest of these bytes alone, None if it is unknown."""

    start: int
    end: int
    digest: str | None = None


class Access(Enum):
    """How a source gives the bytes of a blob. Only the source knows this, and three questions follow from it.

    May the blob be read again in this run? May bytes that an earlier run has stored be used? Is an unfinished blob
    worth keeping for another run?
    """

    #: A file, a registry or memory: yes to all three.
    REPEATABLE = auto()
    #: A connection that may break (`copy --via`): this run reads it once, and a later run resumes it.
    RESUMABLE = auto()
    #: A pipe: it is read once, and another run reads it from its first byte.
    ONCE = auto()


@dataclass(frozen=True, slots=True)
class Blob:
    """A descriptor and the way to its bytes.

    `open(offset)` returns the raw chunks from byte `offset` of the blob on, by default from the first byte that the
    source has. Nothing is requested before the first chunk is needed. Unless `access` is REPEATABLE, `open` may be
    called only once; the bytes before `offset` are then read and dropped.

    `range` says which bytes of the blob the source has, if it does not have all: the part in one volume of an archive,
    or the rest of a blob that an earlier run has sent in part. The rest has no digest of its own.
    """

    descriptor: Descriptor
    open: Callable[..., Iterator[Chunk]]
    access: Access = Access.REPEATABLE
    range: ByteRange | None = None

    @property
    def start(self) -> int:
        """The first byte that the source has."""
        return self.range.start if self.range is not None else 0

    @property
    def end(self) -> int:
        """The byte after the last one that the source has."""
        return self.range.end if self.range is not None else self.descriptor.size

    @property
    def has_end(self) -> bool:
        """Whether the source has the last bytes of the blob."""
        return self.end == self.descriptor.size

    @property
    def is_part(self) -> bool:
        """Whether the source has only a part of the blob."""
        return self.start > 0 or not self.has_end

    @property
    def range_descriptor(self) -> Descriptor | None:
        """The size and digest of the bytes that the source has; None if their digest is unknown."""
        if self.range is None:
            return self.descriptor
        digest = self.range.digest
        return replace(self.descriptor, digest=digest, size=self.end - self.start) if digest is not None else None


@dataclass(frozen=True, slots=True)
class RecoverableBlob(Blob):
    """A blob whose source can help if its bytes are wrong, or arrive slowly.

    `on_corrupt(error, can_retry)` is told that the bytes were wrong, and raises the error to report. If `can_retry` is
    True, it may instead return, and `open` then reads from another mirror.

    `precheck()` is called before the first byte if the blob cannot be written again. A source with a cache then
    verifies the cached bytes.

    `cache(chunks)` passes on the verified chunks of the complete blob, and stores them. It ignores failures to do so.

    `fetch_range(start, end, buffers)` reads the bytes `start` to `end` (excluded) into `buffers`, one after the other,
    by one request without retries, in parallel with other ranges. After each read it yields the number of its bytes. It
    stops if there is no further buffer. It is None if ranges are unavailable or no faster.
    """

    on_corrupt: Callable[[IntegrityError, bool], None] | None = None
    precheck: Callable[[], None] | None = None
    cache: Callable[[Iterator[Chunk]], Iterator[Chunk]] | None = None
    fetch_range: Callable[[int, int, Iterator[memoryview]], Generator[int, None, None]] | None = None


@dataclass(frozen=True, slots=True)
class VerifiedBlob(Blob):
    """A blob as a destination gets it: the last chunk comes only if size and digest are right.

    `open(offset, stored)` is for a destination that has the first `offset` bytes from an earlier run; `stored` are
    these bytes, which are hashed first. A destination that cannot read them omits `stored`. Then only the size of
    the blob is checked here. After an IntegrityError the destination must delete the stored bytes, since the blob may
    be written again. If `can_resume` is False, the blob must be read from its first byte: its `access` does not allow
    another one, the stored bytes were wrong, or the first bytes are needed.
    """

    can_resume: bool = True

    @property
    def is_worth_keeping(self) -> bool:
        """Whether the destination should keep the bytes of an unfinished blob for another run."""
        return self.access is not Access.ONCE and self.descriptor.size >= limits.MIN_PARTIAL_SIZE


@dataclass(frozen=True, slots=True)
class NewBlob:
    """A blob that is made while it is copied: its digest and size are known after its last chunk.

    `open()` returns the chunks. `describe()` returns the descriptor once they are used up. `replaces` is the blob of
    the graph that this one is made from, if known; `access` is how the source gives that one: if it is REPEATABLE,
    `open` may be called again. The other attributes are those of a complete `Blob`, whose end is not known.
    """

    open: Callable[[], Iterator[Chunk]]
    describe: Callable[[], Descriptor]
    replaces: Descriptor | None = None
    access: Access = Access.REPEATABLE
    start: ClassVar[int] = 0
    end: ClassVar[None] = None
    has_end: ClassVar[bool] = True
    is_part: ClassVar[bool] = False

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor, once the chunks are used up."""
        return self.describe()


@dataclass(frozen=True, slots=True)
class BlobPart:
    """The part of a blob from byte `offset` on, in the volume of an archive called `volume`.

    `blob` gives access to these bytes, and has their range; None if the source does not have this volume.
    """

    offset: int
    size: int
    volume: str
    blob: Blob | None = None


class EarlyBlobs(Protocol):
    """Accepts blobs that come before the source knows its graph, as in an archive whose index comes last."""

    def write(self, blob: Blob, *, can_be_plain_layer: bool = False) -> IntegrityError | None:
        """Accept a blob immediately. Its bytes are verified and completely read when this returns.

        `can_be_plain_layer` says that it may be a layer that `docker save` left uncompressed. If the bytes are wrong
        and nothing stays of the blob, return the error: it matters only if an image needs the blob.

        Raises:
            IntegrityError: the bytes are wrong, and cannot be taken back.
        """

    def write_new(self, chunks: Iterator[Chunk]) -> Descriptor:
        """Accept a layer of unknown digest immediately; return its descriptor.

        The media type is what the bytes suggest.
        """

    def read_back(self, descriptor: Descriptor) -> bytes:
        """Return small content that was written, for a manifest that could not be told from other JSON."""

    @property
    def early_refusal(self) -> Callable[[], UnsupportedError] | None:
        """The function that returns the error to raise instead of passing a blob; None if blobs are accepted.

        A source may still pass a blob that it knows to be corrupt: nothing of it is written.
        """


class Source(Protocol):
    """Where images come from. Its blobs are not verified; `Copy` verifies them."""

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

    @property
    def may_lack_blobs(self) -> bool:
        """Whether it may lack blobs of its graph, beyond those that the graph lists as omitted."""

    def is_absent(self, descriptor: Descriptor, /) -> bool | None:
        """Return whether the source lacks a blob of the graph; None if that is not known (yet)."""

    def parts(self, descriptor: Descriptor, /) -> Sequence[BlobPart]:
        """Return all parts of a blob in order, in any volume; empty if the blob is not split."""

    def stored_size(self, digest: str, /) -> int | None:
        """Return the bytes stored under a digest, without reading them, or None; in a stream, of blobs read so far."""

    def close(self) -> None:
        """Close files and connections."""


class CompleteSource:
    """What a source answers that should have all blobs of its graph."""

    may_lack_blobs = False

    def is_absent(self, _descriptor: Descriptor, /) -> bool | None:
        """Return None: only a request could tell."""
        return None

    def parts(self, _descriptor: Descriptor, /) -> Sequence[BlobPart]:
        """Return nothing: only archives are split."""
        return ()

    def stored_size(self, _digest: str, /) -> int | None:
        """Return None: only a request could tell."""
        return None


@dataclass(frozen=True, slots=True)
class Traits:
    """What holds for a destination as a whole.

    `concurrent`: several blobs may be written at once, each from a thread of its own.
    `keeps_blobs`: blobs stay without their images, so that missing ones may come in another run.
    `early_refusal` returns the error for a blob that comes before the graph is known; None if it may be written.
    `can_omit`: it can be written without some blobs, and lists them (`Graph.omitted_from_output`).
    `accepts_parts`: a blob may be written part by part, in order, in several runs.
    `can_retry`: nothing stays of a blob whose chunks raised, so that it can be written again. A pipe takes nothing
    back.
    `begins_without_writing`: `begin` writes nothing, so that a dry run may call it.
    `buffer_size`: bytes of memory for each blob under way, which prefetching must not use.
    """

    concurrent: bool = False
    keeps_blobs: bool = False
    early_refusal: Callable[[], UnsupportedError] | None = None
    can_omit: bool = False
    accepts_parts: bool = False
    can_retry: bool = True
    begins_without_writing: bool = False
    buffer_size: int = 0


class Destination(Protocol):
    """Where images go: `expect`, then `begin`, then blobs, then `commit`, and `close` in any case.

    `expect` may be called again, and then `begin`, with the same graph or with less of it, before the first blob or
    after the last one: what the destination has decides which platforms are copied. Blobs may come before `begin`, from
    a source that does not know its graph yet (`Traits.early_refusal`), and blobs whose digest is not known yet
    (`NewBlobDestination`).
    """

    @property
    def traits(self) -> Traits:
        """What holds for this destination."""

    def expect(self, graph: Graph) -> Graph:
        """Learn what may come, and return what of it this destination can hold. Nothing is written.

        Raises:
            UnsupportedError: the images themselves cannot be held.
        """

    def begin(self, graph: Graph) -> None:
        """Prepare for the blobs of `graph`, which is what will be committed.

        A tar writes its small files here: with these first, its reader can ask for missing blobs before the first
        layer.
        """

    def stored(self, blobs: Sequence[Descriptor], *, quick: bool = False) -> set[str]:
        """Return the digests of the blobs and manifests that are stored completely.

        With `quick`, which is for blobs that the source can send, the answer may lack small blobs that a registry was
        not asked for, since an upload takes hardly longer than the question.
        """

    def partial_size(self, blob: Descriptor, /) -> int:
        """Return how many bytes are stored, from the first one on, of a blob that `stored` does not return."""

    def write(self, blob: VerifiedBlob) -> int:
        """Store a blob that is not stored yet, or the bytes of it that the source has, at their offset.

        If its iterator raises, nothing of the blob may become visible. The bytes before `blob.start` should be stored.
        A part that ends before the blob does is kept for another run; `partial_size` returns how many bytes are stored
        then.

        Return how many bytes were not sent because an earlier run had sent them, if `blob` was read from its first byte
        all the same to verify it.

        Raises:
            PartialBlobLostError: the source has only the rest of the blob, and the bytes before it are not stored.
            UnsupportedError: this destination stores complete blobs only.
        """

    def commit(self, graph: Graph) -> None:
        """Make everything visible: manifests, children first, and names at the very end."""

    def discard(self) -> None:
        """Delete unfinished content, since some of it is wrong. After an interruption it is kept, to be resumed."""

    def close(self) -> None:
        """Make nothing visible that was not committed. Unfinished content may stay for a later run to resume."""


class Observer(Protocol):
    """Receives the progress of blobs, from any thread. Sizes are in bytes."""

    def planned(self, graph: Graph) -> None:
        """The graph that is copied, and so the total, is known."""

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """`size` bytes have moved; negative if a blob restarts.

        They are bytes of the blob `descriptor`, whose digest is empty if it is not known yet. Without a descriptor,
        the bytes were not read: they count as moved because the blob is finished.
        """

    def done(self, descriptor: Descriptor, status: str) -> None:
        """A blob was "copied", "converted", "mounted", "skipped" because it exists, "omitted", or "verified".

        "verified" is the status of every blob that `verify` reads.
        """


class RunObserver(Observer, Protocol):
    """An observer of a run that copies several images, some of them at once."""

    def add_total(self, size: int, blobs: int, roots: Sequence[Root] = ()) -> None:
        """Bytes and blobs are added to the total, or removed (negative); `roots` are the images copied next."""

    def report_images(self, number: int, count: int) -> None:
        """`number` of `count` images are finished."""


class NullObserver:
    """An observer that ignores all calls."""

    def planned(self, graph: Graph) -> None:
        """Do nothing."""

    def add_total(self, size: int, blobs: int, roots: Sequence[Root] = ()) -> None:
        """Do nothing."""

    def report_images(self, number: int, count: int) -> None:
        """Do nothing."""

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """Do nothing."""

    def done(self, descriptor: Descriptor, status: str) -> None:
        """Do nothing."""


@runtime_checkable
class MountingDestination(Protocol):
    """A destination that can mount a blob from another repository (distribution-spec, "Mounting a blob")."""

    def mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Try to mount the blob from where `source` has it; return False if it must be sent."""

    def can_mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Return whether the blob could be mounted, without changing anything."""


@runtime_checkable
class NewBlobDestination(Protocol):
    """A destination that can store a blob whose digest is known only after its last chunk.

    A registry closes the upload with the digest, a directory renames the file, a tar file gets its header afterwards.
    Only a pipe needs a temporary file. Such blobs come before `begin`, which gets the graph of what was written.
    """

    def write_new(self, blob: NewBlob) -> Descriptor:
        """Store a blob and return its descriptor. If its chunks raise, nothing of it may be visible."""


@runtime_checkable
class ReadableDestination(Protocol):
    """A destination that can read back a blob that was written before the graph was known."""

    def read(self, descriptor: Descriptor) -> Iterator[Chunk]:
        """Read the blob again, unverified."""
