"""The bodies of the requests of one upload: how many bytes each has, and whether it has a proper end in any case."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.http.bodies import FixedLengthBody, StreamedBody
from ocistream.registry.upload_methods import CHUNK
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from ocistream.registry.upload_methods import UploadMethod
    from ocistream.registry.upload_strategy import UploadStrategy
    from ocistream.registry.upload_window import ReplayBuffer
    from ocistream.transfer.interfaces import NewBlob

__all__ = ["UploadBodies"]


class UploadBodies:
    """The bodies of one upload to a host.

    `ends_early` says that the request under way has a proper end even if its source fails or the transfer is
    cancelled. `is_coded` says that its body is in the chunked transfer coding, though its length is known.
    """

    def __init__(
        self,
        strategy: UploadStrategy,
        host: str,
        blob: Blob | NewBlob,
        buffer: ReplayBuffer,
        explicit_method: UploadMethod | None,
    ) -> None:
        """Take the blob and its bytes; `forced` is the way to send them that the user asked for."""
        self._strategy = strategy
        self._host = host
        self._blob = blob
        self._buffer = buffer
        in_chunks = explicit_method is not None and explicit_method.kind == CHUNK and not blob.reopenable
        #: Whether every request must have its end, whatever becomes of the source.
        self._is_interruptible = isinstance(blob, Blob) and (blob.is_interruptible or in_chunks)
        self.can_end_early = False
        self.has_chunked_coding = False

    def build_next(
        self, method: UploadMethod, offset: int, min_chunk: int
    ) -> tuple[StreamedBody, tuple[int, int] | None] | None:
        """Return the body that begins at `offset`, and its range where that must be stated; None at the blob's end."""
        size = self._buffer.size
        self._buffer.seek(offset)
        if size is not None and offset >= size:
            return None
        most = self._max_size(method, offset, min_chunk)
        is_stream = most is None and not offset
        can_end_early = size is None or self._is_interruptible
        self.has_chunked_coding = not can_end_early and self._strategy.can_use_chunked_coding(self._host, size or 0)
        if size is None or can_end_early:
            if is_stream:
                self.can_end_early = True
                return StreamedBody(self._buffer.read(0), ends_early=True), None
            # No request is begun that might break off in its middle.
            count = self._buffer.fill_until_truncated(offset, most or limits.UPLOAD_MEMORY)
        else:
            count = min(size - offset, most or size)
        if not count:
            return None
        chunks = self._buffer.read(offset, count)
        span = None if is_stream else (offset, offset + count)
        if self.has_chunked_coding:
            self.can_end_early = True
            return StreamedBody(chunks, ends_early=True), span
        return FixedLengthBody(chunks, count), span

    def _max_size(self, method: UploadMethod, offset: int, min_chunk: int) -> int | None:
        """Return how large the next body may be; None for any size."""
        largest = self._strategy.profile(self._host).largest_chunk
        if method.kind != CHUNK:
            return largest if offset else None
        held = self._strategy.replay_buffer_size(reopenable=self._blob.reopenable, is_size_known=False)
        if min_chunk > (limits.UPLOAD_MEMORY if self._buffer.size is not None else held):
            # Chunks of which none could be held: then all that is left goes in one.
            return None
        return max(method.chunk_size, min_chunk)
