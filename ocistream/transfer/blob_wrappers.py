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
    """Return a blob with the given content."""

    def chunks() -> Iterator[Chunk]:
        yield content

    return Blob(descriptor, chunks)


def peek(blob: Blob) -> tuple[Blob, bytes]:
    """Return the blob, unread, and its first bytes, at most 1 KiB. Works for a blob that can be read only once."""
    chunks = blob.open()
    beginning = next(chunks, b"")
    complete = itertools.chain([beginning], chunks) if beginning else chunks
    return Blob(blob.descriptor, lambda: complete, reopenable=False), bytes(beginning[: limits.KIB])


class BlobProgress:
    """Counts the bytes of one blob for the observer, however often the blob is restarted.

    Bytes that the destination already has count as moved; `resumed_size` is their number.
    """

    def __init__(self, observer: Observer, descriptor: Descriptor, cancelled: threading.Event) -> None:
        """Start at 0. Every change is reported to `observer` for the blob `descriptor`."""
        self._counter = ByteCounter(lambda size: observer.advance(size, descriptor))
        self._cancelled = cancelled
        self.resumed_size = 0

    @property
    def counted(self) -> int:
        """The number of counted bytes."""
        return self._counter.count

    def wrap(self, blob: Blob) -> Blob:
        """Return the blob with chunks that are counted and cancellable."""
        open_at, resume = blob.open_at, blob.resume

        def opened() -> Iterator[Chunk]:
            self._restart(0)
            return self._count(blob.open())

        def opened_at(offset: int) -> Iterator[Chunk]:
            assert open_at is not None, "it is wrapped only where it is given"  # noqa: S101 - set wherever this is called
            self._restart(offset)
            self._counter.advance(offset)
            return self._count(open_at(offset))

        def resumed(stored_chunks: Iterator[Chunk], size: int) -> Iterator[Chunk]:
            assert resume is not None, "it is wrapped only where it is given"  # noqa: S101 - set wherever this is called
            self._restart(size)
            return self._count(resume(self._count(stored_chunks), size))

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


def use_verified(blob: Blob, use: Callable[[Blob], _T], *, can_retry: bool, hash_in_thread: bool = False) -> _T:
    """Pass the blob to `use` with verified chunks, and return the result of `use`.

    `use` gets the blob as a destination does (`transfer.interfaces.Blob`). If a resumed blob is corrupt, the stored
    beginning may be the cause. `use` is then called once more with a blob that cannot resume, before the source is
    told. If the blob is corrupt otherwise, `Blob.on_corrupt` tells the source, and `use` is called again if another
    mirror can supply it. Mirrors are not hashed separately: that would cost a second SHA-256 of every byte.

    `can_retry` is False if `use` cannot be repeated, as with a pipe. `Blob.precheck` then checks beforehand what can be
    checked. `hash_in_thread` hashes in another thread while the chunks are used (`streams.chunks.verify_chunks`).

    Raises:
        IntegrityError: the bytes are wrong, and there is no other source.
        PartialBlobLostError: the bytes are wrong together with the stored beginning, and can be read only once.
        OcistreamError: raised by `use`.
    """
    resumable = blob.open_at is not None
    if not can_retry and blob.precheck is not None:
        blob.precheck()
    while True:
        attempt = _Attempt(blob, hash_in_thread=hash_in_thread)
        try:
            return use(attempt.verified_blob(resumable=resumable))
        except IntegrityError as error:
            # `use` may raise IntegrityError too, for a layer that does not match its config. Other bytes would not
            # help.
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
                blob.on_corrupt(error, can_retry)


class _Attempt:
    """One use of a blob, and the failures found in its bytes."""

    def __init__(self, blob: Blob, *, hash_in_thread: bool) -> None:
        self._blob = blob
        self._hash_in_thread = hash_in_thread
        self.failures: list[IntegrityError] = []
        self.was_resumed = False

    def verified_blob(self, *, resumable: bool) -> Blob:
        blob = self._blob
        can_seek = blob.open_at is not None
        return Blob(
            blob.descriptor,
            self._open,
            blob.reopenable,
            open_at=self._open_at if can_seek else None,
            resume=self._resume if can_seek and resumable else None,
            is_interruptible=blob.is_interruptible,
        )

    def _open(self) -> Iterator[Chunk]:
        chunks = verify_chunks(self._blob.open(), self._blob.descriptor, hash_in_thread=self._hash_in_thread)
        # Only a complete blob can be cached; one that was resumed or starts in its middle is not complete here.
        return self._record_failure(chunks if self._blob.cache is None else self._blob.cache(chunks))

    def _open_at(self, offset: int) -> Iterator[Chunk]:
        return self._record_failure(check_chunks_size(self._read_from(offset), self._blob.descriptor, offset))

    def _resume(self, stored_chunks: Iterator[Chunk], size: int) -> Iterator[Chunk]:
        self.was_resumed = size > 0
        return self._record_failure(
            verify_chunks(
                self._read_from(size), self._blob.descriptor, stored_chunks, hash_in_thread=self._hash_in_thread
            )
        )

    def _read_from(self, offset: int) -> Iterator[Chunk]:
        """Read from an offset; request nothing if all bytes are stored."""
        if offset < self._blob.descriptor.size and self._blob.open_at is not None:
            yield from self._blob.open_at(offset)

    def _record_failure(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        try:
            yield from chunks
        except IntegrityError as error:
            self.failures.append(error)
            raise
