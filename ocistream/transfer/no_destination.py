"""Where blobs go of a source of which only the graph is asked for: they are looked at, and nowhere kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.streams.chunks import verify_chunks
from ocistream.transfer.blob_checks import BlobChecker
from ocistream.transfer.interfaces import NullObserver

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob, Source

__all__ = ["DiscardedBlobs"]


class DiscardedBlobs:
    """Where blobs go of a source of which only the graph is asked for: they are verified, and nowhere kept."""

    def __init__(self, cancelled: threading.Event) -> None:
        """`cancelled` ends it."""
        self._checker = BlobChecker(NullObserver(), deep=False, max_ratio=limits.MAX_RATIO, cancelled=cancelled)

    def write(self, blob: Blob) -> None:
        """Read a blob to its end.

        Raises:
            IntegrityError: it is not what its name says.
        """
        self._checker.write(blob)
        if (error := self._checker.errors.get(blob.descriptor.digest)) is not None:
            raise error

    def write_new(self, chunks: Iterator[Chunk]) -> Descriptor:
        """Read a layer to its end."""
        return self._checker.write_new(chunks)

    def read_back(self, descriptor: Descriptor) -> bytes:
        """Give back small content that was put."""
        return self._checker.read_back(descriptor)

    def read_contents(self, source: Source, wanted: Sequence[Descriptor]) -> dict[str, bytes]:
        """Read small blobs whole, as far as the source has them; a stream is read to its end.

        Raises:
            IntegrityError: one is not what it should be.
        """
        found: dict[str, bytes] = {}
        for blob in source.blobs(wanted):
            found[blob.descriptor.digest] = b"".join(bytes(c) for c in verify_chunks(blob.open(), blob.descriptor))
        for descriptor in wanted:
            if descriptor.digest not in found and self._checker.can_read_back(descriptor):
                found[descriptor.digest] = self._checker.read_back(descriptor)
        return found

    def close(self) -> None:
        """Let go of what was kept."""
        self._checker.close()
