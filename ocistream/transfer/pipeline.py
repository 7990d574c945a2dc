"""The path of one blob from the source to the destination: verify, count, recompress or check, then write.

Which blobs are copied, and when, is decided in copy.py; nothing here asks a source for a blob.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ocistream import notices
from ocistream.errors import IntegrityError, UnsupportedError
from ocistream.oci.descriptor import Descriptor
from ocistream.streams.chunks import (
    HashedChunks,
    cancellable_chunks,
    chunks_from,
    count_chunks,
    read_all,
    verify_chunks,
)
from ocistream.streams.hashing import count_processors
from ocistream.transfer.config_checks import ConfigChecker, with_config_check
from ocistream.transfer.existing_blobs import list_stored
from ocistream.transfer.interfaces import (
    Access,
    Blob,
    NewBlob,
    NewBlobDestination,
    ReadableDestination,
    VerifiedBlob,
)
from ocistream.transfer.report import BlobResult
from ocistream.transfer.verified_blobs import BlobProgress, blob_from_bytes, peek, use_verified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ocistream.oci.graph import Graph
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Destination, Observer
    from ocistream.transfer.recompress import RecompressedLayer, Recompression, Recompressor

__all__ = ["BlobPipeline"]

_SENT_TWICE_NOTICE: Final = (
    "layers were sent compressed and then again uncompressed: this archive is not from `docker save`; "
    "push from a file (-i FILE) to avoid this"
)


class BlobPipeline:
    """The blobs of one transfer on their way from the source to the destination.

    Also the `EarlyBlobs` of the source: it accepts blobs that come before the graph. `results` has the result of each
    blob by digest. `layers` are the layers to recompress, known after `plan_recompression`. `configs` are read to check
    these layers.
    """

    def __init__(self, destination: Destination, observer: Observer, cancelled: threading.Event) -> None:
        """Report progress to `observer`; stop once `cancelled` is set."""
        self._destination = destination
        self._observer = observer
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self.results: dict[str, BlobResult] = {}
        #: How many blobs move at once.
        self.concurrency = 1
        #: None if no layers are recompressed.
        self.recompressor: Recompressor | None = None
        self.plain_layers: Recompression | None = None
        self._plain_recompressor: Recompressor | None = None
        self.layers: dict[str, Descriptor] = {}
        self.configs: set[str] = set()
        #: Layers whose media type says that they have the requested compression: this is checked.
        self._unchanged_layers: set[str] = set()
        #: Layers that were compressed before it was known whether `docker save` wrote the archive.
        self._compressed_early: set[str] = set()
        #: The configs of images, which must be JSON.
        self.config_checker = ConfigChecker()

    def enable_recompression(self, recompression: Recompression) -> None:
        """Recompress layers from now on."""
        self.recompressor = _create_recompressor(recompression)

    def plan_recompression(self, graph: Graph) -> bool:
        """Find the layers to recompress; return whether there are any."""
        if self.recompressor is None:
            return False
        # Early blobs were handled by their first bytes, and may have another compression than their media type says.
        self.layers = {
            digest: layer
            for digest, layer in self.recompressor.find_layers(graph).items()
            if digest not in self.results or self.recompressor.find_result(digest)
        }
        self.configs = self.recompressor.find_configs(graph)
        # If only plain layers change, the others are copied unchecked.
        self._unchanged_layers = (
            set() if self.recompressor.plain_only else self.recompressor.find_unchanged_layers(graph)
        )
        return bool(self.layers)

    def plain_layer_recompressor(self) -> Recompressor | None:
        """Return the recompressor for layers of an archive that never compresses its own, if any.

        Use it for other blobs only after the graph has said that this is such an archive. A stray file in an OCI
        archive may look like a plain layer.
        """
        if self._plain_recompressor is None and self.plain_layers is not None:
            self._plain_recompressor = _create_recompressor(self.plain_layers)
        return self.recompressor or self._plain_recompressor

    def new_blob_destination(self) -> NewBlobDestination:
        """Return the destination as one that accepts layers before their digests are known.

        Raises:
            UnsupportedError: the destination does not accept them.
        """
        if not isinstance(self._destination, NewBlobDestination):
            msg = "layers cannot be compressed anew on the way to this destination"
            raise UnsupportedError(msg)
        return self._destination

    # -- blobs that come before the graph (interfaces.EarlyBlobs) --------------------------------------------

    def write(self, blob: Blob, *, can_be_plain_layer: bool = False) -> IntegrityError | None:
        """Copy a blob at once, or only read and verify it if the destination already has it."""
        try:
            self._write_early(blob, can_be_plain_layer=can_be_plain_layer)
        except IntegrityError as error:
            if not self._destination.traits.can_retry:
                raise
            return error
        return None

    def _write_early(self, blob: Blob, *, can_be_plain_layer: bool) -> None:
        blob = self.config_checker.watch_early(blob)
        if self.recompressor is not None:
            blob, beginning = peek(blob)
            if self.recompressor.can_recompress(beginning):
                self._recompress(blob, self.recompressor)
                return
        elif (
            can_be_plain_layer
            and isinstance(self._destination, ReadableDestination)
            and (recompressor := self.plain_layer_recompressor()) is not None
        ):
            # Most such archives are from `docker save`. If this one is not, `restore_plain_layers` writes the plain
            # layer later.
            blob, beginning = peek(blob)
            if recompressor.can_compress_plain(beginning):
                self._compressed_early.add(blob.descriptor.digest)
                self._recompress(blob, recompressor)
                return
        if blob.descriptor.digest in self.results or self._is_stored(blob.descriptor):
            self._read_existing(blob)
        else:
            self.copy_blob(blob)

    def write_new(self, chunks: Iterator[Chunk]) -> Descriptor:
        """Copy a layer of unknown digest at once, recompressed if that is requested."""
        from ocistream.streams import layer_media_types
        from ocistream.streams.compression import detect_codec

        recompressor = self.plain_layer_recompressor()
        unknown = Descriptor(layer_media_types.OCI_LAYER, "", 0)
        blob, beginning = peek(Blob(unknown, lambda: chunks, Access.ONCE))
        if recompressor is not None and recompressor.can_recompress_layer(beginning):
            return self._recompress(blob, recompressor, is_known=False)
        count = functools.partial(self._observer.advance, descriptor=blob.descriptor)
        raw = HashedChunks(count_chunks(cancellable_chunks(blob.open(), self._cancelled), count))
        media_type = layer_media_types.layer_media_type(layer_media_types.OCI_LAYER, detect_codec(beginning).name)
        descriptor = self.new_blob_destination().write_new(
            NewBlob(lambda: raw, lambda: Descriptor(media_type, raw.digest, raw.size), access=Access.ONCE)
        )
        self.add_result(descriptor, "copied", descriptor.size)
        return descriptor

    def compress_plain_layers(self, graph: Graph) -> None:
        """Compress the layers that `docker save` left plain, unless another compression was requested."""
        if self.recompressor is None and (recompressor := self.plain_layer_recompressor()) is not None:
            # An image with a manifest of its own keeps its compressed layers.
            recompressor.plain_only = not all(root.descriptor.digest in graph.synthesized for root in graph.roots)
            self.recompressor = recompressor

    def restore_plain_layers(self, graph: Graph) -> None:
        """Write the plain form of layers that were compressed early, if `docker save` did not write the archive.

        The destination has only the compressed layers, so they are read back from it and decompressed.
        """
        recompressor, destination = self._plain_recompressor, self._destination
        if recompressor is None or not isinstance(destination, ReadableDestination):
            return
        for blob in graph.blobs:
            if blob.digest in self._compressed_early and (result := recompressor.find_result(blob.digest)) is not None:
                open_plain = functools.partial(_decompress_result, destination, result, recompressor)
                if self._is_stored(blob):
                    self.add_result(blob, "skipped")
                else:
                    notices.notify(_SENT_TWICE_NOTICE)
                    self.copy_blob(Blob(blob, open_plain))

    @property
    def accepts_early(self) -> bool:
        """Whether the destination accepts blobs before the graph is known."""
        return self._destination.traits.accepts_early

    def read_back(self, descriptor: Descriptor) -> bytes:
        """Read small content back from the destination."""
        if not isinstance(self._destination, ReadableDestination):
            msg = f"{descriptor.digest}: too many small blobs come before the archive's index to hold all of them"
            raise UnsupportedError(msg, hint="read it from a file instead of a pipe")
        return read_all(verify_chunks(self._destination.read(descriptor), descriptor))

    # -- blobs of the graph ---------------------------------------------------------------------------------

    def transfer_blob(self, blob: Blob) -> None:
        """Copy a blob of the graph: recompressed, checked or unchanged.

        Raises:
            OcistreamError: the blob is not what it should be, or the source or the destination failed.
        """
        digest = blob.descriptor.digest
        if blob.range is not None:
            self._copy_rest(blob)
        elif digest in self.layers and self.recompressor is not None:
            self._recompress(blob, self.recompressor)
        elif digest in self.configs:
            self._write_config(blob)
        elif self.recompressor is not None and self.recompressor.is_result(digest):
            # The layer's result was written after this blob was asked for.
            self._read_existing(blob)
        elif digest in self._unchanged_layers and self.recompressor is not None:
            self.copy_blob(blob, functools.partial(_with_codec_check, self.recompressor))
        elif digest in self.config_checker.digests:
            with self.config_checker.reserve_memory(blob.descriptor):
                self.copy_blob(blob, with_config_check)
        else:
            self.copy_blob(blob)

    def _copy_rest(self, blob: Blob) -> None:
        """Write the rest of a blob whose beginning the destination has."""
        digest = blob.descriptor.digest
        if digest in {*self.layers, *self.configs, *self._unchanged_layers, *self.config_checker.digests}:
            msg = f"{digest}: the source sends only the end of this blob, and all of it must be read"
            raise UnsupportedError(msg)
        self.copy_blob(blob)

    def copy_parts(self, blob: Descriptor, parts: Sequence[Blob]) -> int:
        """Write some parts of a blob, in order; return how many bytes of the blob are stored then, from its first."""
        progress = BlobProgress(self._observer, blob, self._cancelled)
        for part in parts:
            self._write(part, progress)
        stored = self._destination.stored([blob], partial=True).get(blob.digest, 0)
        if stored == blob.size and parts:
            self.add_result(blob, "copied", progress.counted)
        return stored

    def _read_existing(self, blob: Blob) -> None:
        """Read and verify a blob that the destination has."""

        def read(verified: VerifiedBlob) -> None:
            for _ in cancellable_chunks(verified.open(), self._cancelled):
                pass

        use_verified(blob, read, can_retry=True)
        if blob.descriptor.digest not in self.results:
            self.add_result(blob.descriptor, "skipped")

    def _write_config(self, blob: Blob) -> None:
        """Buffer a config, use it to check layers, and write it if the destination lacks it.

        A graph has no config above `limits.MAX_CONFIG`.
        """
        descriptor = blob.descriptor
        content = use_verified(
            blob, lambda verified: read_all(cancellable_chunks(verified.open(), self._cancelled)), can_retry=True
        )
        if self.recompressor is not None:
            self.recompressor.add_config(descriptor.digest, content)
        if descriptor.digest not in self.results:
            self.copy_blob(blob_from_bytes(descriptor, content))

    def _recompress(self, blob: Blob, recompressor: Recompressor, *, is_known: bool = True) -> Descriptor:
        """Recompress a layer into the destination; its own chunks are verified, counted and cancellable.

        Unless `is_known`, the blob's descriptor has no digest or size. Return the descriptor of the original layer.
        """
        progress = BlobProgress(self._observer, blob.descriptor, self._cancelled)

        def convert(verified: VerifiedBlob) -> Descriptor:
            chunks = progress.wrap(verified).open
            recompression = recompressor.recompress(chunks, blob.descriptor if is_known else None, access=blob.access)
            self.new_blob_destination().write_new(recompression.new_blob())
            return recompression.result.source

        source = (
            use_verified(blob, convert, can_retry=self._destination.traits.can_retry)
            if is_known
            else convert(VerifiedBlob(blob.descriptor, lambda *_: blob.open(), blob.access))
        )
        self.add_result(source, "converted", progress.counted)
        return source

    def copy_blob(self, blob: Blob, read: Callable[[VerifiedBlob], VerifiedBlob] = lambda verified: verified) -> None:
        """Write a blob. Its chunks are verified, passed through `read`, counted and cancellable, in this order."""
        progress = BlobProgress(self._observer, blob.descriptor, self._cancelled)
        resumed = self._write(blob, progress, read)
        self.add_result(blob.descriptor, "copied", progress.counted, resumed=progress.resumed_size or resumed)

    def _write(
        self,
        blob: Blob,
        progress: BlobProgress,
        read: Callable[[VerifiedBlob], VerifiedBlob] = lambda verified: verified,
    ) -> int:
        return use_verified(
            blob,
            lambda verified_blob: self._destination.write(progress.wrap(read(verified_blob))),
            can_retry=self._destination.traits.can_retry,
            # Hash in a thread of its own only if cores are free: for blobs that move side by side it gains nothing.
            hash_in_thread=self.concurrency < count_processors(),
        )

    def _is_stored(self, blob: Descriptor) -> bool:
        return bool(list_stored(self._destination, [blob]))

    def add_result(self, descriptor: Descriptor, how: str, counted: int = 0, *, resumed: int = 0) -> None:
        """Store the result of a blob. `counted` is how many of its bytes were counted while they were read."""
        with self._lock:
            self.results[descriptor.digest] = BlobResult(descriptor, how, resumed_size=resumed)
        # Bytes that were not read count as moved too, so that the total is reached.
        self._observer.advance(descriptor.size - counted)
        self._observer.done(descriptor, how)


def _decompress_result(
    destination: ReadableDestination, result: RecompressedLayer, recompressor: Recompressor, offset: int = 0
) -> Iterator[Chunk]:
    from ocistream.streams.compression import decompress

    # The plain size is known and the reader checks it, so it bounds the expansion.
    chunks = destination.read(result.result)
    return chunks_from(decompress(recompressor.settings.codec, chunks, max(result.source.size, 1)), offset)


def _with_codec_check(recompressor: Recompressor, blob: VerifiedBlob) -> VerifiedBlob:
    """Return a layer whose first bytes are checked, and so read even if an earlier run has stored them."""
    return replace(blob, open=lambda *_: recompressor.checked_chunks(blob), can_resume=False)


def _create_recompressor(settings: Recompression) -> Recompressor:
    # Imported here because few transfers recompress, and all would pay for the import.
    from ocistream.transfer.recompress import Recompressor

    return Recompressor(settings)
