"""One blob's way from a source into a sink, whichever it has to take.

Here, and only here, are verifying, counting and cancelling wrapped around a blob. What moves, and when,
`transfer/copy.py` decides; no blob is asked for here.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ocistream import notices
from ocistream.errors import UnsupportedError
from ocistream.oci.descriptor import Descriptor
from ocistream.streams.chunks import Tally, counted, gathered, stoppable
from ocistream.streams.hashing import processors
from ocistream.transfer.blobs import held, peeked
from ocistream.transfer.configs import Configs, checked
from ocistream.transfer.interfaces import (
    Blob,
    MayHaveToWait,
    Recalls,
    Rereads,
    Resumes,
    TakesAgain,
    TakesUnnamed,
    Unnamed,
)
from ocistream.transfer.progress import Watched
from ocistream.transfer.report import Moved
from ocistream.transfer.retry import until_right

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocistream.oci.graph import Graph
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Observer, Sink
    from ocistream.transfer.recompress import Conversion, Converted, Recompression

__all__ = ["Passing"]

_SENT_TWICE: Final = (
    "layers were sent compressed and then again uncompressed: this archive is not from `docker save`; "
    "push from a file (-i FILE) to avoid this"
)


class Passing:
    """The blobs of one transfer on their way; to the source it is where those go that come before the graph.

    `moved` says by digest what became of each; `layers` are those to be compressed anew, once `converts` has looked for
    them, and `configs` those that are read to check layers by them.
    """

    def __init__(self, sink: Sink, observer: Observer, cancelled: threading.Event) -> None:
        """`observer` is told how far each is; all of it ends once it is `cancelled`."""
        self._sink = sink
        self._observer = observer
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self.moved: dict[str, Moved] = {}
        #: How many blobs move at once.
        self.at_once = 1
        #: What is to be compressed anew, if anything is.
        self.conversion: Conversion | None = None
        self.bare_layers: Recompression | None = None
        self._bare: Conversion | None = None
        self.layers: dict[str, Descriptor] = {}
        self.configs: set[str] = set()
        #: Layers that are called what is asked for: they have to be so.
        self._kept: set[str] = set()
        #: Layers that were compressed early, in case that `docker save` wrote the archive.
        self._guessed: set[str] = set()
        #: The configs of images, which have to be JSON.
        self.of_images = Configs()

    def compress(self, recompression: Recompression) -> None:
        """Have layers compressed anew, from now on."""
        self.conversion = _conversion(recompression)

    def converts(self, graph: Graph) -> bool:
        """Find out which layers are to be compressed anew, and whether there are any."""
        if self.conversion is None:
            return False
        # What came early was taken as it looked, and may have been of another compression than it is called.
        self.layers = {
            digest: layer
            for digest, layer in self.conversion.layers_of(graph).items()
            if digest not in self.moved or self.conversion.done(digest)
        }
        self.configs = self.conversion.configs_of(graph)
        # Where only plain layers change, the others are moved as they are.
        self._kept = set() if self.conversion.plain_only else self.conversion.kept_of(graph)
        return bool(self.layers)

    def of_bare_layers(self) -> Conversion | None:
        """Give what holds for layers of an archive that never compresses its own.

        It is not for other blobs, before the graph has said that this is such an archive: a stray file in an OCI
        archive may look as if it were.
        """
        if self._bare is None and self.bare_layers is not None:
            self._bare = _conversion(self.bare_layers)
        return self.conversion or self._bare

    def unnamed_sink(self) -> TakesUnnamed:
        """Give the sink, which has to take layers before their digests are known.

        Raises:
            UnsupportedError: it does not.
        """
        if not isinstance(self._sink, TakesUnnamed):
            msg = "layers cannot be compressed anew on the way to this destination"
            raise UnsupportedError(msg)
        return self._sink

    # -- what a source may do with blobs that come before the graph (interfaces.Early) -------------------

    def put(self, blob: Blob) -> None:
        """Move a blob right now, or read it to its end where the sink has it."""
        blob = self.of_images.noting(blob)
        if self.conversion is not None:
            blob, beginning = peeked(blob)
            if self.conversion.takes(beginning):
                self._convert(blob, self.conversion)
                return
        elif blob.may_be_bare and isinstance(self._sink, Rereads) and (bare := self.of_bare_layers()) is not None:
            # Most such archives are of `docker save`. If this is another one, `restore` puts the layer as it was.
            blob, beginning = peeked(blob)
            if bare.takes_plain(beginning):
                self._guessed.add(blob.descriptor.digest)
                self._convert(blob, bare)
                return
        if blob.descriptor.digest in self.moved or self._sink.has(blob.descriptor):
            self._pass_over(blob)
        else:
            self.move(blob)

    def put_unnamed(self, chunks: Iterator[Chunk]) -> Descriptor:
        """Move a layer of which no digest is known right now, compressed anew where that is asked for."""
        from ocistream.streams import layer_types
        from ocistream.streams.compression import codec_of

        conversion = self.of_bare_layers()
        blob, beginning = peeked(Blob(Descriptor(layer_types.OCI, "", 0), lambda: chunks, replayable=False))
        if conversion is not None and conversion.takes_layer(beginning):
            return self._convert(blob, conversion, known=False)
        passing = functools.partial(self._observer.advance, descriptor=blob.descriptor)
        raw = Tally(counted(stoppable(blob.open(), self._cancelled), passing))
        kind = layer_types.media_type(layer_types.OCI, codec_of(beginning).name)
        descriptor = self.unnamed_sink().put_unnamed(
            Unnamed(lambda: raw, lambda: Descriptor(kind, raw.digest, raw.size), replayable=False)
        )
        self.note(descriptor, "copied", descriptor.size)
        return descriptor

    def compress_bare(self, graph: Graph) -> None:
        """Have the layers compressed that `docker save` left plain, unless another compression was asked for."""
        if self.conversion is None and (bare := self.of_bare_layers()) is not None:
            # An image that has a manifest of its own keeps what is compressed.
            bare.plain_only = not all(root.descriptor.digest in graph.made for root in graph.roots)
            self.conversion = bare

    def restore(self, graph: Graph) -> None:
        """Put the layers of `graph` as they were which were compressed before it was known that they stay plain.

        The compressed ones are in the sink, and are read from there.
        """
        bare, sink = self._bare, self._sink
        if bare is None or not isinstance(sink, Rereads):
            return
        for blob in graph.blobs:
            if blob.digest in self._guessed and (done := bare.done(blob.digest)) is not None:
                plain = functools.partial(_plain_again, sink, done, bare)
                if self._sink.has(blob):
                    self.note(blob, "skipped")
                else:
                    notices.notice(_SENT_TWICE)
                    self.move(Blob(blob, plain))

    def takes_early(self) -> bool:
        """Say whether blobs may come before the graph."""
        return not isinstance(self._sink, MayHaveToWait) or self._sink.takes_early()

    def recall(self, descriptor: Descriptor) -> bytes:
        """Have the sink give back what it was given."""
        if not isinstance(self._sink, Recalls):
            msg = f"{descriptor.digest}: too many small blobs come before the archive's index to hold all of them"
            raise UnsupportedError(msg, hint="read it from a file instead of a pipe")
        return self._sink.recall(descriptor)

    # -- what is done with those of the graph -------------------------------------------------------------

    def put_one(self, blob: Blob) -> None:
        """Put a blob of the graph, as what it turned out to be.

        Raises:
            OcistreamError: it is not what it should be, or either end fails.
        """
        digest = blob.descriptor.digest
        if blob.start:
            self._put_rest(blob)
        elif digest in self.layers and self.conversion is not None:
            self._convert(blob, self.conversion)
        elif digest in self.configs:
            self._put_config(blob)
        elif self.conversion is not None and self.conversion.has_made(digest):
            # It was asked for before it was there.
            self._pass_over(blob)
        elif digest in self._kept and self.conversion is not None:
            # It is looked at how it begins, and so not begun in the middle.
            self.move(replace(blob, open=functools.partial(self.conversion.as_called, blob), open_at=None))
        elif digest in self.of_images.digests:
            with self.of_images.turn(blob.descriptor):
                self.move(blob, checked)
        else:
            self.move(blob)

    def _put_rest(self, blob: Blob) -> None:
        """Put what the source has of a blob where the sink has the beginning.

        Raises:
            UnsupportedError: it has to be read from its beginning.
        """
        # Hardly any archive goes on with blobs.
        from ocistream.transfer.resume import put_rest

        digest = blob.descriptor.digest
        if digest in {*self.layers, *self.configs, *self._kept, *self.of_images.digests}:
            msg = f"{digest}: only the end of it comes, and all of it is to be read here"
            raise UnsupportedError(msg)
        watched = Watched(self._observer, blob.descriptor, self._cancelled)
        put_rest(self._sink, blob, watched)
        self.note(blob.descriptor, "copied", watched.seen, resumed=watched.resumed)

    def _pass_over(self, blob: Blob) -> None:
        """Read a blob to its end that the sink has."""

        def read(checked: Blob) -> None:
            for _ in stoppable(checked.open(), self._cancelled):
                pass

        until_right(blob, read, again=True)
        if blob.descriptor.digest not in self.moved:
            self.note(blob.descriptor, "skipped")

    def _put_config(self, blob: Blob) -> None:
        """Read a config, to check layers by it, and put it where it is not there yet.

        It is held; no graph has one of more than `limits.MAX_CONFIG`.
        """
        descriptor = blob.descriptor
        content = until_right(blob, lambda checked: gathered(stoppable(checked.open(), self._cancelled)), again=True)
        if self.conversion is not None:
            self.conversion.note_config(descriptor.digest, content)
        if descriptor.digest not in self.moved:
            self.move(held(descriptor, content))

    def _convert(self, blob: Blob, conversion: Conversion, *, known: bool = True) -> Descriptor:
        """Put what a layer becomes; the chunks of the layer itself are verified, counted and can be stopped.

        Without `known` its descriptor says nothing. The layer's own, with size and digest, is given back.
        """
        watched = Watched(self._observer, blob.descriptor, self._cancelled)

        def convert(checked: Blob) -> Descriptor:
            chunks = watched.blob(checked).open
            recoded = conversion.recoded(chunks, blob.descriptor if known else None, replayable=blob.replayable)
            self.unnamed_sink().put_unnamed(recoded.unnamed())
            return recoded.converted.source

        source = until_right(blob, convert, again=self._takes_again) if known else convert(blob)
        self.note(source, "converted", watched.seen)
        return source

    def move(self, blob: Blob, read: Callable[[Blob], Blob] = lambda verified: verified) -> None:
        """Put a blob whose chunks are verified, `read`, counted and can be stopped, in this order from the inside."""
        watched = Watched(self._observer, blob.descriptor, self._cancelled)
        until_right(
            blob,
            lambda right: self._sink.put(watched.blob(read(right))),
            again=self._takes_again,
            beside=self.at_once < processors(),
        )
        resumed = watched.resumed or (self._sink.resumed(blob.descriptor) if isinstance(self._sink, Resumes) else 0)
        self.note(blob.descriptor, "copied", watched.seen, resumed=resumed)

    @functools.cached_property
    def _takes_again(self) -> bool:
        return isinstance(self._sink, TakesAgain) and self._sink.takes_again()

    def note(self, descriptor: Descriptor, how: str, seen: int = 0, *, resumed: int = 0) -> None:
        """Note what became of a blob, of which `seen` bytes were counted while they passed."""
        with self._lock:
            self.moved[descriptor.digest] = Moved(descriptor, how, resumed=resumed)
        # What was not read through counts as moved all the same, so that the total is reached.
        self._observer.advance(descriptor.size - seen)
        self._observer.done(descriptor, how)


def _plain_again(sink: Rereads, done: Converted, conversion: Conversion) -> Iterator[Chunk]:
    from ocistream.streams.compression import decompressed

    # How large it may become is known: whoever reads this compares the size.
    return decompressed(conversion.want.codec, sink.reread(done.result), max(done.source.size, 1))


def _conversion(want: Recompression) -> Conversion:
    # Not at the top: hardly any transfer compresses anew, and each would pay for importing it.
    from ocistream.transfer.recompress import Conversion

    return Conversion(want)
