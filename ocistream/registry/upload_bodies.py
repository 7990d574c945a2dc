"""The bodies of the requests of one upload: how many bytes each has, and whether it has a proper end in any case."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.http.bodies import Body, StreamedBody
from ocistream.registry.upload_methods import CHUNK
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from ocistream.registry.upload_methods import Rung
    from ocistream.registry.upload_strategy import Ladder
    from ocistream.registry.upload_window import Feed
    from ocistream.transfer.interfaces import Unnamed

__all__ = ["Bodies"]


class Bodies:
    """The bodies of one upload to a host.

    `ends_early` says that the request under way has a proper end even if its source fails or the transfer is
    cancelled. `is_coded` says that its body is in the chunked transfer coding, though its length is known.
    """

    def __init__(self, ladder: Ladder, host: str, blob: Blob | Unnamed, feed: Feed, forced: Rung | None) -> None:
        """Take the blob and its bytes; `forced` is the way to send them that the user asked for."""
        self._ladder = ladder
        self._host = host
        self._blob = blob
        self._feed = feed
        in_chunks = forced is not None and forced.kind == CHUNK and not blob.replayable
        #: Whether every request must have its end, whatever becomes of the source.
        self._may_break = isinstance(blob, Blob) and (blob.may_break or in_chunks)
        self.ends_early = False
        self.is_coded = False

    def next(self, rung: Rung, offset: int, min_chunk: int) -> tuple[StreamedBody, tuple[int, int] | None] | None:
        """Return the body that begins at `offset`, and its range where that must be stated; None at the blob's end."""
        size = self._feed.size
        self._feed.seek(offset)
        if size is not None and offset >= size:
            return None
        most = self._most(rung, offset, min_chunk)
        is_stream = most is None and not offset
        can_end_early = size is None or self._may_break
        self.is_coded = not can_end_early and self._ladder.is_coded(self._host, size or 0)
        if size is None or can_end_early:
            if is_stream:
                self.ends_early = True
                return StreamedBody(self._feed.send(0), ends_early=True), None
            # No request is begun that might break off in its middle.
            count = self._feed.collect(offset, most or limits.UPLOAD_MEMORY)
        else:
            count = min(size - offset, most or size)
        if not count:
            return None
        chunks = self._feed.send(offset, count)
        span = None if is_stream else (offset, offset + count)
        if self.is_coded:
            self.ends_early = True
            return StreamedBody(chunks, ends_early=True), span
        return Body(chunks, count), span

    def _most(self, rung: Rung, offset: int, min_chunk: int) -> int | None:
        """Return how large the next body may be; None for any size."""
        largest = self._ladder.profile(self._host).largest_chunk
        if rung.kind != CHUNK:
            return largest if offset else None
        held = self._ladder.window(replayable=self._blob.replayable, sized=False)
        if min_chunk > (limits.UPLOAD_MEMORY if self._feed.size is not None else held):
            # Chunks of which none could be held: then all that is left goes in one.
            return None
        return max(rung.size, min_chunk)
