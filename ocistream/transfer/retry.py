"""A blob used until it is right: once, or once more where there is another way to have it.

What is wrong shows at a blob's end (`streams.chunks.verified`), when most of it has been handed on. So whoever uses it
has to begin anew. That is of use where a source has another place to read from, which only it knows; and where the
beginning was not read but held already, from an earlier run: then it is that which is suspected first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from ocistream.errors import IntegrityError, PartialBlobLostError
from ocistream.streams.chunks import check_chunks_size, verify_chunks
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ocistream.streams.chunks import Chunk

__all__ = ["use_verified"]

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
