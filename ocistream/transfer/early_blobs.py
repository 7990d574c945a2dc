"""Accept blobs that a pipe delivers before the graph is known: write, recompress or only verify each at once.

Most archives whose layers come first are from `docker save`, so plain layers are compressed by default. If an archive
turns out to be another one, `restore_plain_layers` writes the plain layers after all.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from ocistream import notices
from ocistream.errors import IntegrityError, UnsupportedError
from ocistream.oci.descriptor import Descriptor
from ocistream.streams.chunks import chunks_from, read_all, verify_chunks
from ocistream.transfer.interfaces import Access, Blob, ReadableDestination
from ocistream.transfer.verified_blobs import peek

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocistream.oci.graph import Graph
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.blob_writer import BlobWriter
    from ocistream.transfer.config_checks import ConfigChecker
    from ocistream.transfer.recompress import RecompressedLayer, RecompressionSettings, Recompressor

_SENT_TWICE_NOTICE: Final = (
    "layers were sent compressed and then again uncompressed: this archive is not from `docker save`; "
    "push from a file (-i FILE) to avoid this"
)


class EarlyBlobWriter:
    """The early blobs of one copy (`interfaces.EarlyBlobs`)."""

    def __init__(
        self,
        writer: BlobWriter,
        config_checker: ConfigChecker,
        recompression: RecompressionSettings | None,
        plain_layer_recompression: RecompressionSettings | None,
    ) -> None:
        """Recompress layers by `recompression`; without it, only those that `docker save` left uncompressed.

        `plain_layer_recompression` says how; None to leave them as they are.
        """
        self._destination = writer.destination
        self._readable = self._destination if isinstance(self._destination, ReadableDestination) else None
        self._writer = writer
        self._config_checker = config_checker
        #: Whether all layers are recompressed, not only plain ones of `docker save`.
        self._is_requested = recompression is not None
        self._settings = recompression or plain_layer_recompression
        self._known_recompressor: Recompressor | None = None
        #: Layers that were compressed before it was known whether `docker save` wrote the archive.
        self._compressed: set[str] = set()

    # -- before the graph is known ---------------------------------------------------------------------------

    def write(self, blob: Blob, *, can_be_plain_layer: bool = False) -> IntegrityError | None:
        """Copy a blob at once, or only read and verify it if the destination already has it."""
        try:
            if blob.access is Access.REPEATABLE:
                # It is in memory. If its bytes are wrong, send no request for it: there may be thousands.
                self._writer.read(blob)
            self._write(self._config_checker.watch_early(blob), can_be_plain_layer=can_be_plain_layer)
        except IntegrityError as error:
            if not self._destination.traits.can_retry:
                raise
            return error
        return None

    def _write(self, blob: Blob, *, can_be_plain_layer: bool) -> None:
        is_candidate = self._is_requested or (can_be_plain_layer and self._readable is not None)
        if is_candidate and (recompressor := self._recompressor()) is not None:
            from ocistream.streams.compression import NONE, detect_codec

            blob, beginning = peek(blob)
            is_affected = self._is_requested or detect_codec(beginning) is NONE
            if is_affected and recompressor.needs_recompression(beginning):
                self._compressed.add(blob.descriptor.digest)
                self._writer.recompress(blob, recompressor)
                return
        if self._writer.results.find(blob.descriptor.digest) is not None or self._is_stored(blob.descriptor):
            self._writer.verify_stored(blob)
        else:
            self._writer.write(blob)

    def write_new(self, chunks: Iterator[Chunk]) -> Descriptor:
        """Copy a layer of unknown digest at once, recompressed if that is requested."""
        from ocistream.streams.compression import OCI_LAYER, detect_codec, layer_media_type

        recompressor = self._recompressor()
        unknown = Descriptor(OCI_LAYER, "", 0)
        blob, beginning = peek(Blob(unknown, lambda: chunks, Access.ONCE))
        if recompressor is not None and recompressor.layer_needs_recompression(beginning):
            return self._writer.recompress(blob, recompressor, is_known=False)
        codec = detect_codec(beginning).name
        return self._writer.write_new(blob, layer_media_type(OCI_LAYER, codec))

    def read_back(self, descriptor: Descriptor) -> bytes:
        """Read small content back from the destination."""
        if self._readable is None:
            msg = f"{descriptor.digest}: too many small blobs come before the index of the archive to buffer them"
            raise UnsupportedError(msg, hint="read it from a file instead of a pipe or a compressed file")
        return read_all(verify_chunks(self._readable.read(descriptor), descriptor))

    @property
    def early_refusal(self) -> Callable[[], UnsupportedError] | None:
        """The function that returns the error of a destination that accepts no early blobs; None if it accepts them."""
        return self._destination.traits.early_refusal

    # -- after the graph is known ----------------------------------------------------------------------------

    def choose_recompressor(self, graph: Graph) -> Recompressor | None:
        """Return what recompresses layers of the graph; None if all stay as they are.

        Layers that `docker save` left plain are compressed, unless another compression was requested. The graph says
        whether `docker save` wrote the archive: in an OCI archive, a file that no image needs may look like such a
        layer.
        """
        if not self._is_requested and not graph.has_plain_layers:
            return None
        if (recompressor := self._recompressor()) is not None and not self._is_requested:
            # An image with a manifest of its own keeps its compressed layers.
            recompressor.is_plain_only = not all(root.descriptor.digest in graph.synthesized for root in graph.roots)
        return recompressor

    def restore_plain_layers(self, graph: Graph) -> None:
        """Write the plain form of layers that were compressed early, if `docker save` did not write the archive.

        The destination has only the compressed layers, so they are read back from it and decompressed.
        """
        recompressor, readable = self._known_recompressor, self._readable
        if self._is_requested or graph.has_plain_layers or recompressor is None or readable is None:
            return
        for blob in graph.blobs:
            if blob.digest in self._compressed and (layer := recompressor.results.get(blob.digest)) is not None:
                open_plain = functools.partial(_decompress_result, readable, layer, recompressor)
                if self._is_stored(blob):
                    self._writer.results.add(blob, "skipped")
                else:
                    notices.notify(_SENT_TWICE_NOTICE)
                    self._writer.write(Blob(blob, open_plain))

    def _recompressor(self) -> Recompressor | None:
        """Return the recompressor, which the first call creates; None if no layer is recompressed."""
        if self._known_recompressor is None and self._settings is not None:
            # Imported here because few transfers recompress, and all would pay for the import.
            from ocistream.transfer.recompress import Recompressor

            self._known_recompressor = Recompressor(self._settings)
        return self._known_recompressor

    def _is_stored(self, blob: Descriptor) -> bool:
        return bool(self._destination.stored([blob], quick=True))


def _decompress_result(
    destination: ReadableDestination, layer: RecompressedLayer, recompressor: Recompressor, offset: int = 0
) -> Iterator[Chunk]:
    from ocistream.streams.compression import decompress

    # The plain size is known and the reader checks it, so it bounds the expansion.
    chunks = destination.read(layer.result)
    return chunks_from(decompress(recompressor.settings.codec, chunks, max(layer.source.size, 1)), offset)
