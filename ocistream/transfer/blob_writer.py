"""Write one blob to the destination: verified, counted, cancellable, and checked or recompressed if that is asked.

Which blobs are written, and when, is decided in copy.py; nothing here asks a source for a blob.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream.errors import UnsupportedError
from ocistream.oci.descriptor import Descriptor
from ocistream.streams.chunks import HashedChunks
from ocistream.transfer.interfaces import NewBlob, NewBlobDestination, NullObserver, VerifiedBlob
from ocistream.transfer.report import BlobResults
from ocistream.transfer.verified_blobs import BlobProgress, read_verified, use_verified

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from ocistream.transfer.interfaces import Blob, Destination, Observer
    from ocistream.transfer.recompress import Recompressor


class BlobWriter:
    """Writes the blobs of one copy, and collects the result of each in `results`. Safe for several threads."""

    def __init__(self, destination: Destination, observer: Observer, cancelled: threading.Event) -> None:
        """Report progress to `observer`; stop once `cancelled` is set."""
        self.destination = destination
        self.results = BlobResults(observer)
        self._observer = observer
        self._cancelled = cancelled
        #: Whether bytes of a blob went to the destination, perhaps wrong ones.
        self.has_started = False

    def write(
        self,
        blob: Blob,
        add_check: Callable[[VerifiedBlob], VerifiedBlob] = lambda verified: verified,
    ) -> None:
        """Write a blob. Its chunks are verified, counted and cancellable.

        `add_check` returns the blob with another check of its chunks.

        Raises:
            OcistreamError: the blob is not what it should be, or the source or the destination failed.
        """
        progress = BlobProgress(self._observer, blob.descriptor, self._cancelled)
        # A destination resumes a blob by opening it at an offset, or reads it all and does not send its first bytes.
        not_sent = self._write(blob, progress, add_check)
        self.results.add(blob.descriptor, "copied", progress.counted, resumed=progress.resumed_size or not_sent)

    def write_parts(self, blob: Descriptor, parts: Sequence[Blob]) -> int:
        """Write some parts of a blob, in order; return how many bytes of the blob are stored then, from its first."""
        progress = BlobProgress(self._observer, blob, self._cancelled)
        for part in parts:
            self._write(part, progress)
        stored = blob.size if self.destination.stored([blob]) else self.destination.partial_size(blob)
        if stored == blob.size and parts:
            self.results.add(blob, "copied", progress.counted)
        return stored

    def preview_parts(self, blob: Descriptor, parts: Sequence[Blob]) -> int:
        """Return how many bytes of the blob would be stored after `write_parts`, and write nothing."""
        resumed = stored = self.destination.partial_size(blob)
        for part in parts:
            if part.start <= stored:
                stored = max(stored, part.end)
        if stored == blob.size:
            self.results.add(blob, "copied", resumed=resumed)
        return stored

    def read(self, blob: Blob) -> bytes:
        """Return the verified bytes of a small blob."""
        progress = BlobProgress(NullObserver(), blob.descriptor, self._cancelled)
        return read_verified(blob, progress)

    def verify_stored(self, blob: Blob) -> None:
        """Read and verify a blob that the destination has."""

        def use(verified: VerifiedBlob) -> None:
            for _ in verified.open():
                pass

        progress = BlobProgress(NullObserver(), blob.descriptor, self._cancelled)
        use_verified(blob, use, can_retry=True, progress=progress)
        if self.results.find(blob.descriptor.digest) is None:
            self.results.add(blob.descriptor, "skipped")

    def write_new(self, blob: Blob, media_type: str) -> Descriptor:
        """Write a layer of unknown digest as it is; return its descriptor."""
        self.has_started = True
        progress = BlobProgress(self._observer, blob.descriptor, self._cancelled)
        raw = HashedChunks(progress.count(blob.open()))
        descriptor = self.new_blob_destination().write_new(
            NewBlob(lambda: raw, lambda: Descriptor(media_type, raw.digest, raw.size), access=blob.access)
        )
        self.results.add(descriptor, "copied", progress.counted)
        return descriptor

    def recompress(self, blob: Blob, recompressor: Recompressor, *, is_known: bool = True) -> Descriptor:
        """Recompress a layer into the destination; its own chunks are verified, counted and cancellable.

        Unless `is_known`, the blob's descriptor has no digest or size. Return the descriptor of the original layer.
        """
        self.has_started = True
        progress = BlobProgress(self._observer, blob.descriptor, self._cancelled)

        def convert(verified: VerifiedBlob) -> Descriptor:
            return recompressor.recompress(
                verified.open,
                blob.descriptor if is_known else None,
                access=blob.access,
                write=self.new_blob_destination().write_new,
            )

        can_retry = self.destination.traits.can_retry
        original = (
            use_verified(blob, convert, can_retry=can_retry, progress=progress)
            if is_known
            else convert(VerifiedBlob(blob.descriptor, lambda *_: progress.count(blob.open()), blob.access))
        )
        self.results.add(original, "converted", progress.counted)
        return original

    def new_blob_destination(self) -> NewBlobDestination:
        """Return the destination as one that accepts layers before their digests are known."""
        if not isinstance(self.destination, NewBlobDestination):
            msg = "this destination does not support recompressed layers"
            raise UnsupportedError(msg)
        return self.destination

    def _write(
        self,
        blob: Blob,
        progress: BlobProgress,
        add_check: Callable[[VerifiedBlob], VerifiedBlob] = lambda verified: verified,
    ) -> int:
        """Write a blob, and return what `Destination.write` returns."""
        self.has_started = True
        return use_verified(
            blob,
            lambda verified: self.destination.write(add_check(verified)),
            can_retry=self.destination.traits.can_retry,
            progress=progress,
        )
