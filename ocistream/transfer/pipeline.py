"""The path of one blob from the source to the destination: verify, count, recompress or check, then write.

Which blobs are copied, and when, is decided in copy.py; nothing here asks a source for a blob.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ocistream import notices
from ocistream.errors import UnsupportedError
from ocistream.oci.descriptor import Descriptor
from ocistream.streams.chunks import HashedChunks, cancellable_chunks, count_chunks, read_all
from ocistream.streams.hashing import count_processors
from ocistream.transfer.blob_wrappers import BlobProgress, blob_from_bytes, peek, use_verified
from ocistream.transfer.config_checks import ConfigChecker, with_config_check
from ocistream.transfer.interfaces import (
    Blob,
    EarlyWriter,
    NewBlob,
    NewBlobDestination,
    ReadableDestination,
    ReadBackDestination,
    ResumedSizeReporter,
    RetryableDestination,
)
from ocistream.transfer.report import BlobResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    """The blobs of one transfer on their way; to the source it is where those go that come before the graph.

    `moved` says by digest what became of each; `layers` are those to be compressed anew, once `converts` has looked for
    them, and `configs` those that are read to check layers by them.
    """

    def __init__(self, destination: Destination, observer: Observer, cancelled: threading.Event) -> None:
        """`observer` is told how far each is; all of it ends once it is `cancelled`."""
        self._destination = destination
        self._observer = observer
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self.results: dict[str, BlobResult] = {}
        #: How many blobs move at once.
        self.concurrency = 1
        #: What is to be compressed anew, if anything is.
        self.recompressor: Recompressor | None = None
        self.plain_layers: Recompression | None = None
        self._plain_recompressor: Recompressor | None = None
        self.layers: dict[str, Descriptor] = {}
        self.configs: set[str] = set()
        #: Layers that are called what is asked for: they have to be so.
        self._unchanged_layers: set[str] = set()
        #: Layers that were compressed early, in case that `docker save` wrote the archive.
        self._compressed_early: set[str] = set()
        #: The configs of images, which have to be JSON.
        self.config_checker = ConfigChecker()

    def enable_recompression(self, recompression: Recompression) -> None:
        """Have layers compressed anew, from now on."""
        self.recompressor = _create_recompressor(recompression)

    def plan_recompression(self, graph: Graph) -> bool:
        """Find out which layers are to be compressed anew, and whether there are any."""
        if self.recompressor is None:
            return False
        # What came early was taken as it looked, and may have been of another compression than it is called.
        self.layers = {
            digest: layer
            for digest, layer in self.recompressor.find_layers(graph).items()
            if digest not in self.results or self.recompressor.find_result(digest)
        }
        self.configs = self.recompressor.find_configs(graph)
        # Where only plain layers change, the others are moved as they are.
        self._unchanged_layers = (
            set() if self.recompressor.plain_only else self.recompressor.find_unchanged_layers(graph)
        )
        return bool(self.layers)

    def plain_layer_recompressor(self) -> Recompressor | None:
        """Give what holds for layers of an archive that never compresses its own.

        It is not for other blobs, before the graph has said that this is such an archive: a stray file in an OCI
        archive may look as if it were.
        """
        if self._plain_recompressor is None and self.plain_layers is not None:
            self._plain_recompressor = _create_recompressor(self.plain_layers)
        return self.recompressor or self._plain_recompressor

    def new_blob_destination(self) -> NewBlobDestination:
        """Give the sink, which has to take layers before their digests are known.

        Raises:
            UnsupportedError: it does not.
        """
        if not isinstance(self._destination, NewBlobDestination):
            msg = "layers cannot be compressed anew on the way to this destination"
            raise UnsupportedError(msg)
        return self._destination

    # -- what a source may do with blobs that come before the graph (interfaces.Early) -------------------

    def write(self, blob: Blob) -> None:
        """Move a blob right now, or read it to its end where the sink has it."""
        blob = self.config_checker.watch_early(blob)
        if self.recompressor is not None:
            blob, beginning = peek(blob)
            if self.recompressor.can_recompress(beginning):
                self._recompress(blob, self.recompressor)
                return
        elif (
            blob.can_be_plain_layer
            and isinstance(self._destination, ReadableDestination)
            and (bare := self.plain_layer_recompressor()) is not None
        ):
            # Most such archives are of `docker save`. If this is another one, `restore` puts the layer as it was.
            blob, beginning = peek(blob)
            if bare.can_compress_plain(beginning):
                self._compressed_early.add(blob.descriptor.digest)
                self._recompress(blob, bare)
                return
        if blob.descriptor.digest in self.results or self._destination.has_blob(blob.descriptor):
            self._read_existing(blob)
        else:
            self.copy_blob(blob)

    def write_new(self, chunks: Iterator[Chunk]) -> Descriptor:
        """Move a layer of which no digest is known right now, compressed anew where that is asked for."""
        from ocistream.streams import layer_media_types
        from ocistream.streams.compression import detect_codec

        conversion = self.plain_layer_recompressor()
        blob, beginning = peek(Blob(Descriptor(layer_media_types.OCI_LAYER, "", 0), lambda: chunks, reopenable=False))
        if conversion is not None and conversion.can_recompress_layer(beginning):
            return self._recompress(blob, conversion, known=False)
        passing = functools.partial(self._observer.advance, descriptor=blob.descriptor)
        raw = HashedChunks(count_chunks(cancellable_chunks(blob.open(), self._cancelled), passing))
        kind = layer_media_types.layer_media_type(layer_media_types.OCI_LAYER, detect_codec(beginning).name)
        descriptor = self.new_blob_destination().write_new(
            NewBlob(lambda: raw, lambda: Descriptor(kind, raw.digest, raw.size), reopenable=False)
        )
        self.add_result(descriptor, "copied", descriptor.size)
        return descriptor

    def compress_plain_layers(self, graph: Graph) -> None:
        """Have the layers compressed that `docker save` left plain, unless another compression was asked for."""
        if self.recompressor is None and (bare := self.plain_layer_recompressor()) is not None:
            # An image that has a manifest of its own keeps what is compressed.
            bare.plain_only = not all(root.descriptor.digest in graph.synthesized for root in graph.roots)
            self.recompressor = bare

    def restore_plain_layers(self, graph: Graph) -> None:
        """Put the layers of `graph` as they were which were compressed before it was known that they stay plain.

        The compressed ones are in the sink, and are read from there.
        """
        bare, sink = self._plain_recompressor, self._destination
        if bare is None or not isinstance(sink, ReadableDestination):
            return
        for blob in graph.blobs:
            if blob.digest in self._compressed_early and (done := bare.find_result(blob.digest)) is not None:
                plain = functools.partial(_decompress_result, sink, done, bare)
                if self._destination.has_blob(blob):
                    self.add_result(blob, "skipped")
                else:
                    notices.notify(_SENT_TWICE_NOTICE)
                    self.copy_blob(Blob(blob, plain))

    def can_write_early(self) -> bool:
        """Say whether blobs may come before the graph."""
        return not isinstance(self._destination, EarlyWriter) or self._destination.can_write_early()

    def read_back(self, descriptor: Descriptor) -> bytes:
        """Have the sink give back what it was given."""
        if not isinstance(self._destination, ReadBackDestination):
            msg = f"{descriptor.digest}: too many small blobs come before the archive's index to hold all of them"
            raise UnsupportedError(msg, hint="read it from a file instead of a pipe")
        return self._destination.read_back(descriptor)

    # -- what is done with those of the graph -------------------------------------------------------------

    def transfer_blob(self, blob: Blob) -> None:
        """Put a blob of the graph, as what it turned out to be.

        Raises:
            OcistreamError: it is not what it should be, or either end fails.
        """
        digest = blob.descriptor.digest
        if blob.offset:
            self._write_rest(blob)
        elif digest in self.layers and self.recompressor is not None:
            self._recompress(blob, self.recompressor)
        elif digest in self.configs:
            self._write_config(blob)
        elif self.recompressor is not None and self.recompressor.is_result(digest):
            # It was asked for before it was there.
            self._read_existing(blob)
        elif digest in self._unchanged_layers and self.recompressor is not None:
            # It is looked at how it begins, and so not begun in the middle.
            self.copy_blob(replace(blob, open=functools.partial(self.recompressor.checked_chunks, blob), open_at=None))
        elif digest in self.config_checker.digests:
            with self.config_checker.reserve_memory(blob.descriptor):
                self.copy_blob(blob, with_config_check)
        else:
            self.copy_blob(blob)

    def _write_rest(self, blob: Blob) -> None:
        """Put what the source has of a blob where the sink has the beginning.

        Raises:
            UnsupportedError: it has to be read from its beginning.
        """
        # Hardly any archive goes on with blobs.
        from ocistream.transfer.partial_blobs import write_rest

        digest = blob.descriptor.digest
        if digest in {*self.layers, *self.configs, *self._unchanged_layers, *self.config_checker.digests}:
            msg = f"{digest}: only the end of it comes, and all of it is to be read here"
            raise UnsupportedError(msg)
        watched = BlobProgress(self._observer, blob.descriptor, self._cancelled)
        write_rest(self._destination, blob, watched)
        self.add_result(blob.descriptor, "copied", watched.counted, resumed=watched.resumed_size)

    def _read_existing(self, blob: Blob) -> None:
        """Read a blob to its end that the sink has."""

        def read(checked: Blob) -> None:
            for _ in cancellable_chunks(checked.open(), self._cancelled):
                pass

        use_verified(blob, read, again=True)
        if blob.descriptor.digest not in self.results:
            self.add_result(blob.descriptor, "skipped")

    def _write_config(self, blob: Blob) -> None:
        """Read a config, to check layers by it, and put it where it is not there yet.

        It is held; no graph has one of more than `limits.MAX_CONFIG`.
        """
        descriptor = blob.descriptor
        content = use_verified(
            blob, lambda checked: read_all(cancellable_chunks(checked.open(), self._cancelled)), again=True
        )
        if self.recompressor is not None:
            self.recompressor.add_config(descriptor.digest, content)
        if descriptor.digest not in self.results:
            self.copy_blob(blob_from_bytes(descriptor, content))

    def _recompress(self, blob: Blob, conversion: Recompressor, *, known: bool = True) -> Descriptor:
        """Put what a layer becomes; the chunks of the layer itself are verified, counted and can be stopped.

        Without `known` its descriptor says nothing. The layer's own, with size and digest, is given back.
        """
        watched = BlobProgress(self._observer, blob.descriptor, self._cancelled)

        def convert(checked: Blob) -> Descriptor:
            chunks = watched.wrap(checked).open
            recoded = conversion.recompress(chunks, blob.descriptor if known else None, replayable=blob.reopenable)
            self.new_blob_destination().write_new(recoded.new_blob())
            return recoded.result.source

        source = use_verified(blob, convert, again=self._can_retry) if known else convert(blob)
        self.add_result(source, "converted", watched.counted)
        return source

    def copy_blob(self, blob: Blob, read: Callable[[Blob], Blob] = lambda verified: verified) -> None:
        """Put a blob whose chunks are verified, `read`, counted and can be stopped, in this order from the inside."""
        watched = BlobProgress(self._observer, blob.descriptor, self._cancelled)
        use_verified(
            blob,
            lambda right: self._destination.write(watched.wrap(read(right))),
            again=self._can_retry,
            beside=self.concurrency < count_processors(),
        )
        resumed = watched.resumed_size or (
            self._destination.resumed_size(blob.descriptor) if isinstance(self._destination, ResumedSizeReporter) else 0
        )
        self.add_result(blob.descriptor, "copied", watched.counted, resumed=resumed)

    @functools.cached_property
    def _can_retry(self) -> bool:
        return isinstance(self._destination, RetryableDestination) and self._destination.can_retry()

    def add_result(self, descriptor: Descriptor, how: str, seen: int = 0, *, resumed: int = 0) -> None:
        """Note what became of a blob, of which `seen` bytes were counted while they passed."""
        with self._lock:
            self.results[descriptor.digest] = BlobResult(descriptor, how, resumed_size=resumed)
        # What was not read through counts as moved all the same, so that the total is reached.
        self._observer.advance(descriptor.size - seen)
        self._observer.done(descriptor, how)


def _decompress_result(sink: ReadableDestination, done: RecompressedLayer, conversion: Recompressor) -> Iterator[Chunk]:
    from ocistream.streams.compression import decompress

    # How large it may become is known: whoever reads this compares the size.
    return decompress(conversion.settings.codec, sink.read_blob(done.result), max(done.source.size, 1))


def _create_recompressor(want: Recompression) -> Recompressor:
    # Not at the top: hardly any transfer compresses anew, and each would pay for importing it.
    from ocistream.transfer.recompress import Recompressor

    return Recompressor(want)
