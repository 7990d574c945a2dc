"""Wrappers around a blob: from bytes, peeked, counted and cancellable, verified and read again from another mirror."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from ocistream import limits
from ocistream.errors import IntegrityError, PartialBlobLostError
from ocistream.streams.chunks import ByteCounter, cancellable_chunks, check_chunks_size, count_chunks, verify_chunks
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator

    from ocistream.oci.descriptor import Descriptor
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Observer

__all__ = [
    "BlobProgress",
    "blob_from_bytes",
    "peek",
    "use_verified",
]


def blob_from_bytes(descriptor: Descriptor, content: bytes) -> Blob:
    """Give a blob whose content is held."""

    def chunks() -> Iterator[Chunk]:
        yield content

    return Blob(descriptor, chunks)


def peek(blob: Blob) -> tuple[Blob, bytes]:
    """Look at how a blob that can be read once begins, at up to 1 KiB, and give it as if nobody had."""
    chunks = blob.open()
    first = next(chunks, b"")
    whole = itertools.chain([first], chunks) if first else chunks
    return Blob(blob.descriptor, lambda: whole, reopenable=False), bytes(first[: limits.KIB])


class BlobProgress:
    """What one blob is wrapped in, however often it is begun.

    What the sink has of it already counts as moved, and `resumed` is how many bytes that is.
    """

    def __init__(self, observer: Observer, descriptor: Descriptor, cancelled: threading.Event) -> None:
        """Begin at 0; `observer` is told of every change, as one of the blob `descriptor`."""
        self._counter = ByteCounter(lambda size: observer.advance(size, descriptor))
        self._cancelled = cancelled
        self.resumed_size = 0

    @property
    def counted(self) -> int:
        """How many bytes have been counted."""
        return self._counter.count

    def wrap(self, blob: Blob) -> Blob:
        """Give a blob as it is handed to the sink."""
        open_at, resume = blob.open_at, blob.resume

        def opened() -> Iterator[Chunk]:
            self._restart(0)
            return self._count(blob.open())

        def opened_at(offset: int) -> Iterator[Chunk]:
            assert open_at is not None, "it is wrapped only where it is given"  # noqa: S101 - see below
            self._restart(offset)
            self._counter.advance(offset)
            return self._count(open_at(offset))

        def resumed(held: Iterator[Chunk], size: int) -> Iterator[Chunk]:
            assert resume is not None, "it is wrapped only where it is given"  # noqa: S101 - see below
            self._restart(size)
            return self._count(resume(self._count(held), size))

        return replace(
            blob,
            open=opened,
            open_at=None if open_at is None else opened_at,
            resume=None if resume is None else resumed,
        )

    def _restart(self, resumed: int) -> None:
        self._counter.restart()
        self.resumed_size = resumed

    def _count(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        return count_chunks(cancellable_chunks(chunks, self._cancelled), self._counter.advance)


_T = TypeVar("_T")


def use_verified(blob: Blob, use: Callable[[Blob], _T], *, again: bool, beside: bool = False) -> _T:
    """Have a blob used, with chunks that are verified, and give what comes of it.

    `use` gets the blob as a sink does (`transfer.interfaces.Blob`). If it was wrong after it was resumed, `use` is
    called once more with a blob that cannot be. If it was wrong otherwise, the blob's source is told so, and where it
    has another place to read from, `use` is called once more; unless `again` says that its work cannot be begun anew,
    when what can be checked before is (`Blob.check`). `beside` has it hashed while it is used
    (`streams.chunks.verified`).

    Raises:
        IntegrityError: the bytes are wrong, and there are no others.
        LostBeginningError: they are wrong together with what was held, and come once only.
        OcistreamError: what `use` raises.
    """
    resumable = blob.open_at is not None
    if not again and blob.precheck is not None:
        blob.precheck()
    while True:
        attempt = _Attempt(blob, beside=beside)
        try:
            return use(attempt.verified_blob(resumable=resumable))
        except IntegrityError as error:
            # What else has such an error: a layer that is not what its config says. Others would be the same.
            if error not in attempt.failures:
                raise
            if attempt.was_resumed:
                if not blob.reopenable:
                    msg = f"{error.message}: it was not its beginning that was held"
                    raise PartialBlobLostError(
                        msg, hint="run the same command again: all of it is taken then"
                    ) from error
                resumable = False
            elif blob.on_corrupt is None:
                raise
            else:
                blob.on_corrupt(error, again)


class _Attempt:
    """One use of a blob, and what was found wrong in it."""

    def __init__(self, blob: Blob, *, beside: bool) -> None:
        self._blob = blob
        self._hash_in_thread = beside
        self.failures: list[IntegrityError] = []
        self.was_resumed = False

    def verified_blob(self, *, resumable: bool) -> Blob:
        blob = self._blob
        can = blob.open_at is not None
        return Blob(
            blob.descriptor,
            self._open,
            blob.reopenable,
            open_at=self._open_at if can else None,
            resume=self._resume if can and resumable else None,
            is_interruptible=blob.is_interruptible,
        )

    def _open(self) -> Iterator[Chunk]:
        chunks = verify_chunks(self._blob.open(), self._blob.descriptor, beside=self._hash_in_thread)
        # What was resumed, or is begun in its middle, does not pass here as a whole.
        return self._record_failure(chunks if self._blob.cache is None else self._blob.cache(chunks))

    def _open_at(self, offset: int) -> Iterator[Chunk]:
        return self._record_failure(check_chunks_size(self._read_from(offset), self._blob.descriptor, offset))

    def _resume(self, held: Iterator[Chunk], size: int) -> Iterator[Chunk]:
        self.was_resumed = size > 0
        return self._record_failure(
            verify_chunks(self._read_from(size), self._blob.descriptor, held, beside=self._hash_in_thread)
        )

    def _read_from(self, offset: int) -> Iterator[Chunk]:
        """Read on from an offset; of what is held whole, nothing is asked for."""
        if offset < self._blob.descriptor.size and self._blob.open_at is not None:
            yield from self._blob.open_at(offset)

    def _record_failure(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        try:
            yield from chunks
        except IntegrityError as error:
            self.failures.append(error)
            raise
