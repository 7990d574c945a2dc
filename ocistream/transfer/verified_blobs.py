"""Verify, count and cancel the chunks of a blob on their way to a destination, and read a corrupt blob again."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from ocistream import limits
from ocistream.errors import CancelledError, IntegrityError, PartialBlobLostError, UnsupportedError
from ocistream.streams.chunks import (
    check_chunks_size,
    chunks_from,
    closing_chunks,
    peek_chunks,
    read_all,
    verify_chunks,
)
from ocistream.transfer.interfaces import Access, Blob, NullObserver, RecoverableBlob, VerifiedBlob

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator, Iterable, Iterator

    from ocistream.oci.descriptor import Descriptor
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Observer


def blob_from_bytes(descriptor: Descriptor, content: bytes) -> Blob:
    """Return a blob with the given content."""

    def chunks(offset: int = 0) -> Iterator[Chunk]:
        yield content[offset:] if offset else content

    return Blob(descriptor, chunks)


def peek(blob: Blob) -> tuple[Blob, bytes]:
    """Return the blob, and its first bytes, at most 1 KiB. The returned blob has all bytes and can be opened once."""
    first, chunks = peek_chunks(blob.open())

    def opened(offset: int = 0) -> Iterator[Chunk]:
        return chunks_from(chunks, offset) if offset else chunks

    access = Access.ONCE if blob.access is Access.REPEATABLE else blob.access
    return Blob(blob.descriptor, opened, access), bytes(first[: limits.KIB])


def map_chunks(blob: VerifiedBlob, wrap: Callable[[Iterator[Chunk]], Iterator[Chunk]]) -> VerifiedBlob:
    """Return the blob with `wrap` around its chunks, for every offset."""

    def opened(offset: int = 0, stored: Iterable[Chunk] | None = None) -> Iterator[Chunk]:
        return wrap(blob.open(offset, stored))

    return replace(blob, open=opened)


def require_complete(blob: Blob, *, can_be_rest: bool = False) -> None:
    """Refuse a part of a blob; with `can_be_rest`, only a part after which the blob is not complete.

    Raises:
        UnsupportedError: the source has only a part of the blob.
    """
    if blob.range is not None and not (can_be_rest and blob.has_end):
        digest = blob.descriptor.digest
        msg = f"{digest}: the source has only a part of this blob; the complete blob is needed"
        raise UnsupportedError(msg)


class BlobProgress:
    """Counts the bytes of one blob for the observer, however often the blob is restarted, and over all of its parts.

    It also stops a cancelled blob: one generator does both, because each of them costs time for each chunk.

    Bytes that the destination already has count as moved; `resumed_size` is their number.
    """

    def __init__(self, observer: Observer, descriptor: Descriptor, cancelled: threading.Event | None) -> None:
        """Start at 0. Every change is reported to `observer` for the blob `descriptor`."""
        self._observer = observer
        self._descriptor = descriptor
        self._cancelled = cancelled
        self.counted = 0
        self.resumed_size = 0

    def restart(self, offset: int, *, is_moved: bool) -> None:
        """Subtract all bytes counted so far, and start at byte `offset`; `is_moved` counts the bytes before it.

        It is False if the stored bytes before `offset` are read and counted one by one, to hash them.
        """
        self.resumed_size = offset
        self._advance(-self.counted)
        if is_moved:
            self._advance(offset)

    def count(
        self, chunks: Iterable[Chunk], failures: list[IntegrityError] | None = None
    ) -> Generator[Chunk, None, None]:
        """Yield chunks, and count each when the next one is requested. Add an IntegrityError of theirs to `failures`.

        Raises:
            CancelledError: the transfer was cancelled.
        """
        try:
            with closing_chunks(chunks):
                for chunk in chunks:
                    if self._cancelled is not None and self._cancelled.is_set():
                        msg = "cancelled"
                        raise CancelledError(msg)
                    size = len(chunk)
                    yield chunk
                    self._advance(size)
        except IntegrityError as error:
            if failures is not None:
                failures.append(error)
            raise

    def _advance(self, size: int) -> None:
        self.counted += size
        self._observer.advance(size, self._descriptor)


_T = TypeVar("_T")


def read_verified(blob: Blob, progress: BlobProgress | None = None) -> bytes:
    """Return the verified bytes of a small blob; the errors are those of `use_verified`."""
    return use_verified(blob, lambda verified: read_all(verified.open()), can_retry=True, progress=progress)


def use_verified(
    blob: Blob,
    use: Callable[[VerifiedBlob], _T],
    *,
    can_retry: bool,
    progress: BlobProgress | None = None,
) -> _T:
    """Pass the blob to `use` with verified chunks, counted by `progress`, and return the result of `use`.

    If a resumed blob is corrupt, the stored beginning may be the cause. `use` is then called once more with a blob that
    cannot resume, before the source is told. A blob that can be read only once, or of which the source has only the
    rest, is lost: neither side has the complete blob. For any other corrupt blob, `RecoverableBlob.on_corrupt` tells
    the source, and `use` is called again if another mirror can supply it. Mirrors are not hashed separately: that would
    cost a second SHA-256 of every byte.

    `can_retry` is False if `use` cannot be repeated, as with a pipe. `RecoverableBlob.precheck` then checks beforehand
    what can be checked.

    Raises:
        IntegrityError: the bytes are wrong, and no other source has the blob.
        PartialBlobLostError: the bytes are wrong together with the stored beginning, which cannot be read again.
        OcistreamError: raised by `use`.
    """
    can_resume = blob.access is not Access.ONCE
    recoverable = (
        blob if isinstance(blob, RecoverableBlob) else RecoverableBlob(blob.descriptor, blob.open, range=blob.range)
    )
    is_rest = recoverable.range_descriptor is None
    progress = progress or BlobProgress(NullObserver(), blob.descriptor, None)
    if not can_retry and recoverable.precheck is not None:
        recoverable.precheck()
    while True:
        attempt = _Attempt(recoverable, progress)
        verified = VerifiedBlob(blob.descriptor, attempt.open, blob.access, blob.range, can_resume)
        try:
            return use(verified)
        except IntegrityError as error:
            # `use` may raise IntegrityError too, for a layer that does not match its config. Other bytes would not
            # help.
            if error not in attempt.failures and not is_rest:
                raise
            if attempt.was_resumed or is_rest:
                if blob.access is not Access.REPEATABLE:
                    msg = f"{error.message}: the bytes that an earlier run stored do not belong to this blob"
                    raise PartialBlobLostError(msg, hint="re-run the command to send the complete blob") from error
                can_resume = False
            elif recoverable.on_corrupt is None:
                raise
            else:
                recoverable.on_corrupt(error, can_retry)
        finally:
            attempt.close()


class _Attempt:
    """One use of a blob, and the failures found in its bytes."""

    def __init__(self, blob: RecoverableBlob, progress: BlobProgress) -> None:
        self._blob = blob
        self._progress = progress
        self.failures: list[IntegrityError] = []
        #: Whether stored bytes were hashed with those of the source: either may be wrong.
        self.was_resumed = False
        self._opened: list[Generator[Chunk, None, None]] = []

    def open(self, offset: int = 0, stored: Iterable[Chunk] | None = None) -> Iterator[Chunk]:
        """Return verified chunks, as `VerifiedBlob.open` does."""
        blob = self._blob
        offset = max(offset, blob.start)
        is_from_start = offset == blob.start
        # If all bytes are stored, nothing is requested.
        chunks = blob.open() if is_from_start else blob.open(offset) if offset < blob.end else iter(())
        expected = blob.range_descriptor if is_from_start else None
        self.was_resumed = expected is None and stored is not None
        if expected is not None:
            chunks = verify_chunks(chunks, expected, hash_in_thread=True)
        elif stored is not None:
            counted = self._progress.count(stored)
            chunks = verify_chunks(chunks, blob.descriptor, counted, hash_in_thread=True)
        else:
            chunks = check_chunks_size(chunks, replace(blob.descriptor, size=blob.end), offset)
        if blob.cache is not None and not offset:
            # Only a blob that is read completely can be cached.
            chunks = blob.cache(chunks)
        self._progress.restart(offset, is_moved=stored is None)
        opened = self._progress.count(chunks, self.failures)
        self._opened.append(opened)
        return opened

    def close(self) -> None:
        """Close what `open` returned: after a failure the error's frames would keep its connections open."""
        for chunks in self._opened:
            # A cancelled thread that does not end in time still reads: it closes them itself.
            with contextlib.suppress(ValueError):
                chunks.close()
