"""Blobs of which the source has only the rest: that is put where an earlier run has left the beginning.

Nobody here has seen all of such a blob. Whoever gave the rest has hashed the whole at its own source; and what has
become of the two together is checked by a registry, when it closes the upload, or by a layout, which hashes what it
has and what comes. If that is wrong, nothing says which of them it was, and all of it is sent.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream.errors import IntegrityError, PartialBlobLostError, UnsupportedError
from ocistream.streams.chunks import check_chunks_size, verify_chunks
from ocistream.transfer.interfaces import ResumableDestination
from ocistream.transfer.partial_blobs import chunks_from

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob, Destination
    from ocistream.transfer.progress import BlobProgress

__all__ = ["write_rest"]


def write_rest(destination: Destination, blob: Blob, watched: BlobProgress) -> None:
    """Put a blob whose source begins at `blob.start`.

    Raises:
        UnsupportedError: the sink never has the beginning of a blob.
        LostBeginningError: it has not that of this one, or another one than it should.
        OcistreamError: the source or the sink failed.
    """
    if not isinstance(destination, ResumableDestination):
        msg = f"{blob.descriptor.digest}: only the end of it comes, and nothing can be gone on with here"
        raise UnsupportedError(msg)

    def opened_at(offset: int) -> Iterator[Chunk]:
        return check_chunks_size(chunks_from(blob.open(), offset - blob.offset), blob.descriptor, offset)

    def resumed(held: Iterator[Chunk], size: int) -> Iterator[Chunk]:
        return verify_chunks(chunks_from(blob.open(), size - blob.offset), blob.descriptor, held)

    try:
        destination.write_rest(watched.wrap(replace(blob, open_at=opened_at, resume=resumed)))
    except IntegrityError as error:
        msg = f"{error.message}: its beginning was there, and its end has come"
        raise PartialBlobLostError(msg, hint="run the same command again: all of it is sent then") from error
