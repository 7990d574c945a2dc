"""A blob on its way into a sink: counted, stoppable, from its first byte or from a later one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream.streams.chunks import ByteCounter, cancellable_chunks, count_chunks

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from ocistream.oci.descriptor import Descriptor
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob, Observer

__all__ = ["BlobProgress"]


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
