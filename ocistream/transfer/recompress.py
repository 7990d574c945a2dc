"""Layers made anew with another compression.

What is asked for is a `Recompression`; a `Conversion` collects what became of the layers, and at the end gives the
graph of what was really written. A config is never changed: it names layers by the digests of their plain bytes (their
diff_ids), and against these every layer that is converted is checked. No I/O happens here.
"""

from __future__ import annotations

import itertools
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ocistream import limits, notices
from ocistream.errors import ArchiveError, IntegrityError, UnsupportedError, UsageError
from ocistream.oci.descriptor import Descriptor
from ocistream.oci.documents import diff_ids_of_config
from ocistream.oci.graph import Graph, is_image
from ocistream.oci.reference import printable
from ocistream.streams import layer_types
from ocistream.streams.chunks import Blamed, Tally
from ocistream.streams.compression import CODECS, NONE, Codec, codec_of, decompressed
from ocistream.transfer.interfaces import Unnamed
from ocistream.transfer.rewrite import Rewriting

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob

__all__ = ["Conversion", "Converted", "Recompression", "parse_recompression"]


@dataclass(frozen=True, slots=True)
class Recompression:
    """How image layers are to be compressed, which are not so already."""

    codec: Codec
    level: int
    max_ratio: int = limits.MAX_RATIO


def parse_recompression(text: str, max_ratio: int = limits.MAX_RATIO) -> Recompression:
    """Parse `gzip`, `zstd` or `none`, the first two perhaps with `:LEVEL`.

    Raises:
        UsageError: it is none of these.
    """
    name, colon, digits = text.partition(":")
    codec = CODECS.get(name)
    if codec is None:
        msg = f"unknown compression {printable(text)!r}"
        raise UsageError(msg, hint=f"it may be {', '.join(CODECS)}; with a level, as in gzip:9")
    if not colon:
        return Recompression(codec, codec.default_level, max_ratio)
    level = int(digits) if re.fullmatch("[0-9]{1,2}", digits) else -1
    if codec is NONE or level not in codec.levels:
        msg = f"{printable(text)!r} has no legal level"
        allowed = f"levels {codec.levels[0]} to {codec.levels[-1]}" if codec is not NONE else "no level"
        raise UsageError(msg, hint=f"{name} has {allowed}")
    return Recompression(codec, level, max_ratio)


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of one layer: what came in, what it was written as, and the digest of its plain bytes."""

    source: Descriptor
    result: Descriptor
    diff_id: str


class Conversion:
    """One transfer's recompression. Safe for several threads."""

    def __init__(self, want: Recompression) -> None:
        """Begin with nothing converted."""
        self.want = want
        #: Whether layers that are compressed in another way stay as they are.
        self.plain_only = False
        self._converted: dict[str, Converted] = {}
        self._made: set[str] = set()
        self._diff_ids: dict[str, tuple[str, ...]] = {}
        self._lock = threading.Lock()

    def layers_of(self, graph: Graph) -> dict[str, Descriptor]:
        """Give the layers that have to be converted, by digest.

        What some other artifact needs as it is stays as it is in images too: a digest can only be one thing.
        """
        kept = {
            blob.digest
            for _, document in graph.images()
            for blob in (document.config, *(() if is_image(document) else document.layers))
            if blob is not None
        }
        found: dict[str, Descriptor] = {}
        for _, document in graph.images():
            if is_image(document):
                for layer in document.layers:
                    if layer_types.codec_name(layer.media_type) is None and not layer.is_foreign:
                        what = f"{layer.digest} is not recompressed: layers of the type {printable(layer.media_type)}"
                        notices.notice(f"{what} are copied as they are", level=1)
                    elif self._applies_to(layer) and layer.digest not in kept:
                        found.setdefault(layer.digest, layer)
        return found

    def configs_of(self, graph: Graph) -> set[str]:
        """Give the digests of the configs against which converted layers are checked."""
        converted = self.layers_of(graph).keys()
        return {
            document.config.digest
            for _, document in graph.images()
            if document.config and is_image(document) and not converted.isdisjoint(map(_digest, document.layers))
        }

    def changed(self, graph: Graph, converted: Collection[str]) -> set[str]:
        """Give the digests of the manifests that become others when these layers are converted."""
        found: set[str] = set()
        for manifest in graph.manifests:
            document = graph.documents[manifest.descriptor.digest]
            below = document.layers if is_image(document) else document.manifests
            if any(child.digest in converted or child.digest in found for child in below):
                found.add(manifest.descriptor.digest)
        return found

    def kept_of(self, graph: Graph) -> set[str]:
        """Give the digests of the layers that are so already, by their media types."""
        images = (document for _, document in graph.images() if is_image(document))
        wanted = self.want.codec.name
        return {
            b.digest for document in images for b in document.layers if layer_types.codec_name(b.media_type) == wanted
        }

    def as_called(self, blob: Blob) -> Iterator[Chunk]:
        """Pass on the chunks of a layer that is kept as it is.

        Raises:
            ArchiveError: it is not compressed as its media type says, and so not as was asked for.
        """
        chunks = blob.open()
        first = next(chunks, b"")
        found = codec_of(bytes(first[: limits.KIB]))
        if first and found is not self.want.codec:
            layer = blob.descriptor
            msg = f"{layer.digest} is called {layer.media_type}, and its compression is {found.name}"
            raise ArchiveError(msg, hint="its image says of it what is not so: it can only be copied as it is")
        yield first
        yield from chunks

    def takes(self, beginning: bytes) -> bool:
        """Say whether a blob of which only the beginning is known is to be converted."""
        return layer_types.looks_like_layer(beginning) and self._changes(codec_of(beginning).name)

    def takes_plain(self, beginning: bytes) -> bool:
        """Say whether a blob of which only the beginning is known is to be converted, and not compressed yet."""
        return self.takes(beginning) and codec_of(beginning) is NONE

    def takes_layer(self, beginning: bytes) -> bool:
        """Say whether what can only be a layer or a config, of which the beginning is known, is to be converted."""
        return not layer_types.looks_like_document(beginning) and self._changes(codec_of(beginning).name)

    def note_config(self, digest: str, content: bytes) -> None:
        """Keep what a config says of its layers.

        Raises:
            ArchiveError: it is malformed.
        """
        self._diff_ids[digest] = diff_ids_of_config(content, f"the config {digest}")

    def knows_config(self, digest: str) -> bool:
        """Say whether what a config says of its layers is known."""
        return digest in self._diff_ids

    def done(self, digest: str) -> Converted | None:
        """Say what became of a layer."""
        return self._converted.get(digest)

    def note(self, converted: Converted) -> None:
        """Keep what became of a layer."""
        with self._lock:
            self._converted[converted.source.digest] = converted
            self._made.add(converted.result.digest)

    def has_made(self, digest: str) -> bool:
        """Say whether some layer has become this blob."""
        return digest in self._made

    def recoded(
        self, open_raw: Callable[[], Iterator[Chunk]], source: Descriptor | None, *, replayable: bool
    ) -> Recoded:
        """Give the blob that a layer becomes; `open_raw` gives the layer's own verified chunks.

        Where `source` is None, its digest and size are found out on the way.
        """
        return Recoded(self, open_raw, source, replayable=replayable)

    def rewritten(self, graph: Graph) -> tuple[Graph, Mapping[str, str]]:
        """Give the graph with every converted layer in its place; what names something that has changed changes too.

        Beside it: for each new manifest, by its digest, the digest of the one that it was made of.

        Raises:
            IntegrityError: a layer's plain bytes are not those that its config promises.
            ArchiveError: a config and its manifest do not fit.
            UnsupportedError: a config promises digests by another algorithm than sha256.
        """
        self._check_diff_ids(graph)
        results = {digest: done.result for digest in self.layers_of(graph) if (done := self.done(digest))}
        rewriting = Rewriting(graph, results, self.want.codec.name)
        return rewriting.graph(), rewriting.origins

    def _applies_to(self, layer: Descriptor) -> bool:
        name = layer_types.codec_name(layer.media_type)
        return name is not None and self._changes(name)

    def _changes(self, codec: str) -> bool:
        return codec != self.want.codec.name and (codec == NONE.name or not self.plain_only)

    def _check_diff_ids(self, graph: Graph) -> None:
        wanted = self.layers_of(graph)
        for manifest, document in graph.images():
            changed = [(i, self.done(b.digest)) for i, b in enumerate(document.layers) if b.digest in wanted]
            if not changed or document.config is None or not is_image(document):
                continue
            promised = self._diff_ids.get(document.config.digest, ())
            if len(promised) != len(document.layers):
                msg = (
                    f"manifest {manifest.descriptor.digest} has {len(document.layers)} layers, "
                    f"its config {len(promised)} diff_ids"
                )
                raise ArchiveError(msg)
            for place, done in changed:
                if done is None:
                    continue
                if not promised[place].startswith("sha256:"):
                    msg = f"{done.source.digest}: its image's config has the diff_id {promised[place]}"
                    raise UnsupportedError(msg, hint="layers are only converted where their diff_ids are by sha256")
                if done.diff_id != promised[place]:
                    msg = (
                        f"{done.source.digest}: its plain bytes have the digest {done.diff_id}, "
                        f"its image's config says {promised[place]}"
                    )
                    raise IntegrityError(msg)


class Recoded:
    """A layer on its way from one compression to another."""

    def __init__(
        self,
        conversion: Conversion,
        open_raw: Callable[[], Iterator[Chunk]],
        source: Descriptor | None,
        *,
        replayable: bool,
    ) -> None:
        """Use `Conversion.recoded`."""
        self._conversion = conversion
        self._want = conversion.want
        self._open_raw = open_raw
        self._source = source
        self._replayable = replayable
        self._media_type = layer_types.OCI
        self._converted: Converted | None = None

    @property
    def converted(self) -> Converted:
        """What became of the layer, once all of it has passed."""
        assert self._converted is not None, "asked for before the end"  # noqa: S101 - sinks see to it
        return self._converted

    def unnamed(self) -> Unnamed:
        """Give it in the form that sinks take."""
        return Unnamed(self._chunks, lambda: self.converted.result, self._source, self._replayable)

    def _chunks(self) -> Iterator[Chunk]:
        # What is known need not be hashed once more.
        tally = Tally(self._open_raw() if self._source is None else ())
        raw = tally if self._source is None else self._open_raw()
        plain, result = Tally(self._plain(Blamed(raw))), Tally(())
        for chunk in self._want.codec.compress(plain, self._want.level):
            result.add(chunk)
            yield chunk
        # Docker calls it otherwise, which is seen to where its manifest is written.
        kind = layer_types.media_type(layer_types.OCI, self._want.codec.name)
        self._converted = Converted(
            self._source or Descriptor(self._media_type, tally.digest, tally.size),
            Descriptor(kind, result.digest, result.size),
            plain.digest,
        )
        self._conversion.note(self._converted)

    def _plain(self, raw: Blamed) -> Iterator[Chunk]:
        first = next(raw, b"")
        codec = codec_of(bytes(first[: limits.KIB]))
        self._media_type = layer_types.media_type(layer_types.OCI, codec.name)
        try:
            yield from decompressed(codec, itertools.chain([first], raw), self._want.max_ratio)
        except (ArchiveError, UnsupportedError) as error:
            # Where the bytes are not even those that were promised, that is what is to be said.
            for _ in raw:
                pass
            if raw.has_failed:
                raise
            layer = self._source.digest if self._source else "a layer"
            raise type(error)(f"{layer}: {error.what}", hint=error.hint) from error


def _digest(descriptor: Descriptor) -> str:
    return descriptor.digest
