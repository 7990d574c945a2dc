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
    """A promise and the way to its bytes.

    `open()` gives the chunks from the first byte on; where `replayable`, it may be called again. A source's are raw, a
    sink gets them verified. Where `open_at` is given, it gives those from any offset on, in bytes; nothing is asked for
    before the first of them is. What begins in the middle cannot be verified: to a sink, only its size is.

    `resume(held, size)` is for a sink that holds the first `size` bytes of the blob already, as it believes: `held` are
    their chunks. It gives those that are left, verified as the end of the whole, or raises IntegrityError; then what is
    held is to be dropped, for the blob may be put once more.

    `part(start, view)` reads the bytes from `start` on into `view`, by one request that is not tried again, and at the
    same time as others of the blob; each time that more of them are there, it gives how many they are by then. Where it
    is not given, that cannot be had, or is no faster.

    `on_wrong(error, again)` is for a source that has more than one place to read from: it is told that the bytes were
    not what was promised. It raises what is to be reported; or, if `again` says that others can be used, returns where
    `open()` gives those of another place from now on. `check()` is for such a source too, if it can find out beforehand
    whether the bytes that it would give are right, and turn to another place if they are not: it is called before the
    first of them is asked for, where nothing could be begun anew.

    `keep(chunks)` is for a source that keeps what it fetches: it passes on the verified chunks of the whole blob, and
    what it does beside that never fails. It is not given to a sink.

    `may_break` says that the bytes come once only, over a line that may break off at any time: a sink is to take what
    has come by then in such a way that another run can go on with it. `start` is not 0 where the source is without that
    many of the first bytes, since the sink has them from an earlier run (`GoesOn`): `open()` gives those from there on.

    `may_be_bare` says of a blob that comes before the graph that it may be a layer which `docker save` left plain.
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
    """A blob that is made while it moves: what its digest and size are is known when all of it has passed.

    `open()` gives its chunks; where `replayable` it may be called again, and gives the same. Once they are used up,
    `descriptor()` is the promise they keep. `instead_of` is the blob of the graph that it stands for, if that is known.
    """

    open: Callable[[], Iterator[Chunk]]
    descriptor: Callable[[], Descriptor]
    replaces: Descriptor | None = None
    reopenable: bool = True


@dataclass(frozen=True, slots=True)
class BlobPart:
    """A run of a blob's bytes, from `offset` on, in the volume of an archive that is called `volume`.

    `blob` is the way to them, and their size; None where they are not at hand. It has a digest of its own.
    """

    offset: int
    size: int
    volume: str
    blob: Blob | None = None


class EarlyBlobs(Protocol):
    """Where a source may leave blobs that pass before it knows its graph: an archive whose index comes last."""

    def write(self, blob: Blob) -> None:
        """Take a blob at once; its bytes are verified, and all of them are consumed when this returns."""

    def write_new(self, chunks: Iterator[Chunk]) -> Descriptor:
        """Take a layer at once of which no digest is known; give its size and digest, and what its bytes look like."""

    def read_back(self, descriptor: Descriptor) -> bytes:
        """Give back small content that was put, for a manifest that could not be told from other JSON."""


class Source(Protocol):
    """Where images come from. Bytes are handed out as they are: `transfer` verifies them."""

    @property
    def concurrent(self) -> bool:
        """Whether several of its blobs may be read at once, each in a thread of its own."""

    def resolve(self, early_blobs: EarlyBlobs) -> Graph:
        """Find out what is to be moved. A stream may hand over blobs that pass before its index does."""

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Give the wanted blobs, in the order this source can give them.

        A blob is to be used up before the next is asked for, unless the source is `parallel`. What the source lacks
        is left out, not reported: the caller knows what it asked for.
        """

    def close(self) -> None:
        """Let go of files and connections."""


class Destination(Protocol):
    """Where images go. Bytes that reach it are verified: if their iterator raises, nothing of them may be visible."""

    @property
    def concurrent(self) -> bool:
        """Whether several blobs may be put at once, each from a thread of its own."""

    def begin(self, graph: Graph) -> None:
        """Learn what will come. A tar writes its small files here, in the order that readers like best."""

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Say whether the blob is there already, whole."""

    def has_manifest(self, descriptor: Descriptor) -> bool:
        """Say whether a manifest that the source lacks is there already."""

    def write(self, blob: Blob) -> None:
        """Store a blob of which `has` said no. It may come before `begin`, from a source without its graph yet."""

    def commit(self, graph: Graph) -> None:
        """Make all of it visible: manifests, children first, and names at the very end."""

    def close(self) -> None:
        """Drop what was not committed."""


class Observer(Protocol):
    """Whoever watches what happens to blobs. Called from any thread; sizes are in bytes."""

    def planned(self, graph: Graph) -> None:
        """The graph is known, and so is the total."""

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """So many bytes have moved, or fewer than was thought: negative where a blob is begun again.

        They are those of the blob `descriptor`, which may not have its digest yet (then that is empty). Without it they
        only count as moved: nothing was read, and nothing more of the blob is to come.
        """

    def done(self, descriptor: Descriptor, how: str) -> None:
        """A blob was "copied", "converted", "mounted", "skipped" since it was there, or "left out".

        Where nothing moves, it was "verified".
        """


@runtime_checkable
class ImageCountObserver(Protocol):
    """An observer that is told how many images of a run are done with."""

    def report_images(self, number: int, count: int) -> None:
        """So many of `count` are."""


class NullObserver:
    """The observer that looks away."""

    def planned(self, graph: Graph) -> None:
        """Do nothing."""

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """Do nothing."""

    def done(self, descriptor: Descriptor, how: str) -> None:
        """Do nothing."""


@runtime_checkable
class MountingDestination(Protocol):
    """A sink that may have a blob without its bytes being sent (distribution-spec, "Mounting a blob")."""

    def mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Try to take the blob from where `source` holds it; False where it must be sent after all."""

    def can_mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Say whether that would be possible, without changing anything."""


@runtime_checkable
class RetryableDestination(Protocol):
    """A sink that nothing is left in of a blob whose chunks raised, so that it may be put once more."""

    def can_retry(self) -> bool:
        """Say whether that is so here: of a pipe it is not."""


@runtime_checkable
class BufferingDestination(Protocol):
    """A sink that takes memory for each blob under way, which is not there for what is fetched ahead."""

    @property
    def buffer_size(self) -> int:
        """How many bytes for each, more than a file takes."""


@runtime_checkable
class IncompleteSource(Protocol):
    """A source that knows which blobs of its graph it does not have, beyond those that the graph says were left out."""

    def is_missing(self, descriptor: Descriptor) -> bool | None:
        """Say whether a blob of the graph is not there; None where that is not known yet."""


@runtime_checkable
class BlobPartSource(Protocol):
    """A source that may have some parts of a blob which it has not whole."""

    def parts(self, descriptor: Descriptor) -> Sequence[BlobPart]:
        """Give all parts of a blob, in order, wherever they are; nothing where it is not cut into any."""


@runtime_checkable
class BlobPartDestination(Protocol):
    """A sink that can be given a blob part by part, in order, in several runs."""

    def write_part(self, descriptor: Descriptor, offset: int, part: Blob) -> int:
        """Take the part of a blob that begins at `offset`; its bytes are verified, as a blob of their own.

        Say how many bytes of the whole blob are there from its beginning on: all of them where it is there, and no more
        than before where the part is not what comes next.
        """

    def stored_size(self, descriptor: Descriptor) -> int:
        """Say how many bytes of a blob earlier runs have put, from its beginning on."""


@runtime_checkable
class ResumableDestination(Protocol):
    """A sink that can be given the rest of a blob of which an earlier run has put the beginning."""

    def write_rest(self, blob: Blob) -> None:
        """Store a blob of which the first `start` bytes should be there, and perhaps more of them.

        `open_at` gives its bytes from any later one on, of which only the size is checked, `resume` those that are left
        of it, verified together with what is held; one of them may be called, once.

        Raises:
            LostBeginningError: the beginning is not there.
            IntegrityError: together they are not the blob.
        """


@runtime_checkable
class GracefullyCancelledDestination(Protocol):
    """A sink that loses less if an interruption lets it notice that the transfer is cancelled.

    It is written to in a thread of its own, in which nothing is torn.
    """

    is_cancelled_gracefully: bool


@runtime_checkable
class ResumedSizeReporter(Protocol):
    """A sink that may have the beginning of a blob that is read from its first byte all the same, to be verified."""

    def resumed_size(self, descriptor: Descriptor) -> int:
        """Return how many bytes of a blob that was put were not sent, since an earlier run had sent them."""


@runtime_checkable
class IncrementalDestination(Protocol):
    """A sink in which blobs stay, be the images whole or not: what is lacking may come in another run."""

    is_incremental: Literal[True]


@runtime_checkable
class OmittingDestination(Protocol):
    """A sink that can be made without some blobs, and says in it which (`Graph.leaving`)."""

    can_omit_blobs: Literal[True]


@runtime_checkable
class DiscardableDestination(Protocol):
    """A sink that keeps what it has of an unfinished whole, to go on with in another run."""

    def discard(self) -> None:
        """Keep nothing after all: something in it was found wrong."""


@runtime_checkable
class ExpectingDestination(Protocol):
    """A sink that can be asked what it has before `begin`, once it has been told what may come."""

    def expect(self, graph: Graph) -> None:
        """Learn what may come."""


@runtime_checkable
class NewBlobDestination(Protocol):
    """A sink that can store a blob whose digest is known only when all of it has passed.

    Such blobs come before `begin`, whose graph is made of what has become of them.
    """

    def expect(self, graph: Graph) -> None:
        """Learn what is to come, as the source has it, before blobs of it are converted."""

    def write_new(self, blob: NewBlob) -> Descriptor:
        """Store a blob, and give its promise. If its chunks raise, nothing of it may be visible."""


@runtime_checkable
class NoReferrersDestination(Protocol):
    """A sink of a format that has no place for what hangs on an image; `no_place` says so."""

    no_referrers_reason: str


@runtime_checkable
class EarlyWriter(Protocol):
    """A sink, or what stands before it, that may be unable to take blobs before the graph is known."""

    def can_write_early(self) -> bool:
        """Say whether it takes them."""


@runtime_checkable
class ReferrerTagGuard(Protocol):
    """A sink in which something else may be under a tag that hangs on an image, and is not to be lost."""

    def skip_conflicting_referrers(self, graph: Graph) -> Graph:
        """Leave behind what would take its place. Asked before `begin`."""


@runtime_checkable
class ReadBackDestination(Protocol):
    """A sink that can give small content back which was put into it."""

    def read_back(self, descriptor: Descriptor) -> bytes:
        """Read back content of at most `MAX_MANIFEST` bytes that was put, verified."""


@runtime_checkable
class ReadableDestination(Protocol):
    """A sink that can give back a blob which was put into it before the graph was known."""

    def read_blob(self, descriptor: Descriptor) -> Iterator[Chunk]:
        """Read the blob once more, unverified."""
