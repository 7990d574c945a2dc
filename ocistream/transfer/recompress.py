"""Recompress the layers of images, and rewrite the manifests and indexes that list them.

Checks each layer against the diff_ids of its config; a config never changes. Does no I/O.
"""

from __future__ import annotations

import itertools
import re
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from ocistream import limits, notices
from ocistream.errors import ArchiveError, IntegrityError, UnsupportedError, UsageError
from ocistream.oci.descriptor import (
    DOCKER_CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
)
from ocistream.oci.documents import Document, parse_diff_ids, parse_document
from ocistream.oci.graph import Graph, is_image
from ocistream.oci.reference import printable
from ocistream.oci.strict_json import canonical_json, canonical_json_with_items, parse_json
from ocistream.streams import layer_media_types
from ocistream.streams.chunks import FailureTracker, HashedChunks, compute_digest
from ocistream.streams.compression import CODECS, NONE, Codec, decompress, detect_codec
from ocistream.transfer.interfaces import NewBlob

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob

__all__ = [
    "GraphRewriter",
    "RecompressedLayer",
    "Recompression",
    "Recompressor",
    "parse_recompression",
]


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
class RecompressedLayer:
    """What became of one layer: what came in, what it was written as, and the digest of its plain bytes."""

    source: Descriptor
    result: Descriptor
    diff_id: str


class Recompressor:
    """One transfer's recompression. Safe for several threads."""

    def __init__(self, want: Recompression) -> None:
        """Begin with nothing converted."""
        self.settings = want
        #: Whether layers that are compressed in another way stay as they are.
        self.plain_only = False
        self._results: dict[str, RecompressedLayer] = {}
        self._result_digests: set[str] = set()
        self._diff_ids: dict[str, tuple[str, ...]] = {}
        self._lock = threading.Lock()

    def find_layers(self, graph: Graph) -> dict[str, Descriptor]:
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
                    if layer_media_types.codec_name(layer.media_type) is None and not layer.is_foreign:
                        what = f"{layer.digest} is not recompressed: layers of the type {printable(layer.media_type)}"
                        notices.notify(f"{what} are copied as they are", level=1)
                    elif self._applies_to(layer) and layer.digest not in kept:
                        found.setdefault(layer.digest, layer)
        return found

    def find_configs(self, graph: Graph) -> set[str]:
        """Give the digests of the configs against which converted layers are checked."""
        converted = self.find_layers(graph).keys()
        return {
            document.config.digest
            for _, document in graph.images()
            if document.config and is_image(document) and not converted.isdisjoint(map(_digest, document.layers))
        }

    def find_changed_manifests(self, graph: Graph, converted: Collection[str]) -> set[str]:
        """Give the digests of the manifests that become others when these layers are converted."""
        found: set[str] = set()
        for manifest in graph.manifests:
            document = graph.documents[manifest.descriptor.digest]
            below = document.layers if is_image(document) else document.manifests
            if any(child.digest in converted or child.digest in found for child in below):
                found.add(manifest.descriptor.digest)
        return found

    def find_unchanged_layers(self, graph: Graph) -> set[str]:
        """Give the digests of the layers that are so already, by their media types."""
        images = (document for _, document in graph.images() if is_image(document))
        wanted = self.settings.codec.name
        return {
            b.digest
            for document in images
            for b in document.layers
            if layer_media_types.codec_name(b.media_type) == wanted
        }

    def checked_chunks(self, blob: Blob) -> Iterator[Chunk]:
        """Pass on the chunks of a layer that is kept as it is.

        Raises:
            ArchiveError: it is not compressed as its media type says, and so not as was asked for.
        """
        chunks = blob.open()
        first = next(chunks, b"")
        found = detect_codec(bytes(first[: limits.KIB]))
        if first and found is not self.settings.codec:
            layer = blob.descriptor
            msg = f"{layer.digest} is called {layer.media_type}, and its compression is {found.name}"
            raise ArchiveError(msg, hint="its image says of it what is not so: it can only be copied as it is")
        yield first
        yield from chunks

    def can_recompress(self, beginning: bytes) -> bool:
        """Say whether a blob of which only the beginning is known is to be converted."""
        return layer_media_types.is_probably_layer(beginning) and self._is_affected(detect_codec(beginning).name)

    def can_compress_plain(self, beginning: bytes) -> bool:
        """Say whether a blob of which only the beginning is known is to be converted, and not compressed yet."""
        return self.can_recompress(beginning) and detect_codec(beginning) is NONE

    def can_recompress_layer(self, beginning: bytes) -> bool:
        """Say whether what can only be a layer or a config, of which the beginning is known, is to be converted."""
        return not layer_media_types.is_probably_json(beginning) and self._is_affected(detect_codec(beginning).name)

    def add_config(self, digest: str, content: bytes) -> None:
        """Keep what a config says of its layers.

        Raises:
            ArchiveError: it is malformed.
        """
        self._diff_ids[digest] = parse_diff_ids(content, f"the config {digest}")

    def has_config(self, digest: str) -> bool:
        """Say whether what a config says of its layers is known."""
        return digest in self._diff_ids

    def find_result(self, digest: str) -> RecompressedLayer | None:
        """Say what became of a layer."""
        return self._results.get(digest)

    def add_result(self, converted: RecompressedLayer) -> None:
        """Keep what became of a layer."""
        with self._lock:
            self._results[converted.source.digest] = converted
            self._result_digests.add(converted.result.digest)

    def is_result(self, digest: str) -> bool:
        """Say whether some layer has become this blob."""
        return digest in self._result_digests

    def recompress(
        self, open_raw: Callable[[], Iterator[Chunk]], source: Descriptor | None, *, replayable: bool
    ) -> LayerRecompression:
        """Give the blob that a layer becomes; `open_raw` gives the layer's own verified chunks.

        Where `source` is None, its digest and size are found out on the way.
        """
        return LayerRecompression(self, open_raw, source, replayable=replayable)

    def rewrite_graph(self, graph: Graph) -> tuple[Graph, Mapping[str, str]]:
        """Give the graph with every converted layer in its place; what names something that has changed changes too.

        Beside it: for each new manifest, by its digest, the digest of the one that it was made of.

        Raises:
            IntegrityError: a layer's plain bytes are not those that its config promises.
            ArchiveError: a config and its manifest do not fit.
            UnsupportedError: a config promises digests by another algorithm than sha256.
        """
        self._check_diff_ids(graph)
        results = {digest: done.result for digest in self.find_layers(graph) if (done := self.find_result(digest))}
        rewriting = GraphRewriter(graph, results, self.settings.codec.name)
        return rewriting.rewrite(), rewriting.origins

    def _applies_to(self, layer: Descriptor) -> bool:
        name = layer_media_types.codec_name(layer.media_type)
        return name is not None and self._is_affected(name)

    def _is_affected(self, codec: str) -> bool:
        return codec != self.settings.codec.name and (codec == NONE.name or not self.plain_only)

    def _check_diff_ids(self, graph: Graph) -> None:
        wanted = self.find_layers(graph)
        for manifest, document in graph.images():
            changed = [(i, self.find_result(b.digest)) for i, b in enumerate(document.layers) if b.digest in wanted]
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


class LayerRecompression:
    """A layer on its way from one compression to another."""

    def __init__(
        self,
        conversion: Recompressor,
        open_raw: Callable[[], Iterator[Chunk]],
        source: Descriptor | None,
        *,
        replayable: bool,
    ) -> None:
        """Use `Conversion.recoded`."""
        self._recompressor = conversion
        self._settings = conversion.settings
        self._open_raw = open_raw
        self._source = source
        self._reopenable = replayable
        self._media_type = layer_media_types.OCI_LAYER
        self._result: RecompressedLayer | None = None

    @property
    def result(self) -> RecompressedLayer:
        """What became of the layer, once all of it has passed."""
        assert self._result is not None, "asked for before the end"  # noqa: S101 - sinks see to it
        return self._result

    def new_blob(self) -> NewBlob:
        """Give it in the form that sinks take."""
        return NewBlob(self._chunks, lambda: self.result.result, self._source, self._reopenable)

    def _chunks(self) -> Iterator[Chunk]:
        # What is known need not be hashed once more.
        tally = HashedChunks(self._open_raw() if self._source is None else ())
        raw = tally if self._source is None else self._open_raw()
        plain, result = HashedChunks(self._decompress(FailureTracker(raw))), HashedChunks(())
        for chunk in self._settings.codec.compress(plain, self._settings.level):
            result.add(chunk)
            yield chunk
        # Docker calls it otherwise, which is seen to where its manifest is written.
        kind = layer_media_types.layer_media_type(layer_media_types.OCI_LAYER, self._settings.codec.name)
        self._result = RecompressedLayer(
            self._source or Descriptor(self._media_type, tally.digest, tally.size),
            Descriptor(kind, result.digest, result.size),
            plain.digest,
        )
        self._recompressor.add_result(self._result)

    def _decompress(self, raw: FailureTracker) -> Iterator[Chunk]:
        first = next(raw, b"")
        codec = detect_codec(bytes(first[: limits.KIB]))
        self._media_type = layer_media_types.layer_media_type(layer_media_types.OCI_LAYER, codec.name)
        try:
            yield from decompress(codec, itertools.chain([first], raw), self._settings.max_ratio)
        except (ArchiveError, UnsupportedError) as error:
            # Where the bytes are not even those that were promised, that is what is to be said.
            for _ in raw:
                pass
            if raw.has_failed:
                raise
            layer = self._source.digest if self._source else "a layer"
            raise type(error)(f"{layer}: {error.message}", hint=error.hint) from error


def _digest(descriptor: Descriptor) -> str:
    return descriptor.digest


#: Docker's names for what OCI has names of its own for: a manifest with a layer that Docker knows no type for is OCI's.
_OCI_FOR: Final = {DOCKER_MANIFEST: OCI_MANIFEST, DOCKER_LIST: OCI_INDEX, DOCKER_CONFIG: OCI_CONFIG}
#: What these annotations say of a layer is only true of its compressed bytes as they were (stargz, zstd:chunked).
_LAZY_PULL_ANNOTATIONS: Final = (
    "containerd.io/snapshot/stargz/",
    "io.containers.zstd-chunked.",
    "io.github.containers.zstd-chunked.",
)
#: What else a descriptor may say of the bytes as they were: it holds them, or tells where to find them.
_CONTENT_FIELDS: Final = ("data", "urls")
#: By this annotation an attestation in an index names the image that it vouches for (buildx).
_ATTESTED_DIGEST: Final = "vnd.docker.reference.digest"


class GraphRewriter:
    """A graph, and what has changed in it."""

    def __init__(self, graph: Graph, results: Mapping[str, Descriptor], codec: str) -> None:
        """`results` are the new layers, compressed with `codec`, by the digests of the old ones."""
        self._graph = graph
        self._results = results
        self._codec = codec
        #: Manifests that are new, by the digest of the old one.
        self._new: dict[str, Manifest] = {}

    @property
    def origins(self) -> dict[str, str]:
        """What each new manifest was made of."""
        return {new.descriptor.digest: old for old, new in self._new.items()}

    def rewrite(self) -> Graph:
        """Give the new one."""
        for manifest in self._in_order():
            if self._is_affected(manifest):
                self._new[manifest.descriptor.digest] = self._rewrite_manifest(manifest)
        manifests = [self._new.get(m.descriptor.digest, m) for m in self._graph.manifests]
        documents = {m.descriptor.digest: self._find_document(m) for m in manifests}
        # What a blob is called is up to the manifest that lists it.
        listed = [b for d in documents.values() for b in (*d.layers, *((d.config,) if d.config else ()))]
        called = {blob.digest: blob for blob in reversed(listed)}
        blobs = [called[self._results.get(blob.digest, blob).digest] for blob in self._graph.blobs]
        return replace(
            self._graph,
            roots=tuple(replace(root, descriptor=self._rewrite_root(root.descriptor)) for root in self._graph.roots),
            manifests=tuple({m.descriptor.digest: m for m in manifests}.values()),
            blobs=tuple({blob.digest: blob for blob in blobs}.values()),
            documents=documents,
        )

    def _find_document(self, manifest: Manifest) -> Document:
        known = self._graph.documents.get(manifest.descriptor.digest)
        return known or parse_document(manifest.descriptor, manifest.raw)

    def _updated(self, descriptor: Descriptor) -> Descriptor:
        new = self._new.get(descriptor.digest)
        if new is None:
            return descriptor
        own = new.descriptor
        return replace(descriptor, media_type=own.media_type, digest=own.digest, size=own.size)

    def _rewrite_root(self, descriptor: Descriptor) -> Descriptor:
        """Write an entry of `index.json` anew."""
        new = self._updated(descriptor)
        if (vouched := self._new.get(new.annotations.get(_ATTESTED_DIGEST, ""))) is not None:
            new = replace(new, annotations={**new.annotations, _ATTESTED_DIGEST: vouched.descriptor.digest})
        if new.digest != descriptor.digest and new.extra_json:
            others = parse_json(new.extra_json, "index.json")
            new = replace(new, extra_json=canonical_json({k: v for k, v in others.items() if k not in _CONTENT_FIELDS}))
        return new

    def _in_order(self) -> Iterator[Manifest]:
        """Give the manifests with what they name before them: children, and the subjects of referrers."""
        by_digest = {manifest.descriptor.digest: manifest for manifest in self._graph.manifests}
        seen: set[str] = set()
        todo = [(digest, False) for digest in reversed(by_digest)]
        while todo:
            digest, ready = todo.pop()
            if ready:
                yield by_digest[digest]
            elif digest not in seen and digest in by_digest:
                seen.add(digest)
                todo.append((digest, True))
                document = self._graph.documents[digest]
                named = (*document.manifests, *((document.subject,) if document.subject else ()))
                todo.extend((child.digest, False) for child in named)

    def _is_affected(self, manifest: Manifest) -> bool:
        document = self._graph.documents[manifest.descriptor.digest]
        return self._has_changed(document) or (document.subject is not None and document.subject.digest in self._new)

    def _rewrite_manifest(self, manifest: Manifest) -> Manifest:
        """Write a manifest anew."""
        old = manifest.descriptor
        document = self._graph.documents[old.digest]
        media_type = self._choose_media_type(old, document)
        leaves_docker = media_type != old.media_type

        def layer(_: int, item: dict[str, Any]) -> bytes:
            return canonical_json(self._rewrite_layer(item, leaves_docker=leaves_docker))

        def entry(_: int, item: dict[str, Any]) -> bytes:
            return canonical_json(self._rewrite_entry(item))

        key, change = ("layers", layer) if document.config is not None else ("manifests", entry)
        fields = parse_json(manifest.raw, f"manifest {old.digest}", convert={key: change})
        fields["mediaType"] = media_type
        if document.subject is not None:
            fields["subject"] = self._rewrite_entry(fields["subject"])
        if document.config is not None and leaves_docker:
            config = fields["config"]
            config["mediaType"] = _OCI_FOR.get(config["mediaType"], config["mediaType"])
        raw = canonical_json_with_items(fields, key, fields[key] or ()) if key in fields else canonical_json(fields)
        return Manifest(replace(old, media_type=media_type, digest=compute_digest(raw), size=len(raw)), raw)

    def _choose_media_type(self, descriptor: Descriptor, document: Document) -> str:
        """Say what a manifest is called when it is written anew."""
        kind = descriptor.media_type
        if kind == DOCKER_MANIFEST:
            # Docker's types cannot say how its layers are compressed.
            leaves_docker = self._codec not in layer_media_types.DOCKER_CODECS
        else:
            # Docker's list is not to name a manifest of OCI's.
            leaves_docker = any(self._updated(child).media_type != child.media_type for child in document.manifests)
        return _OCI_FOR.get(kind, kind) if leaves_docker else kind

    def _has_changed(self, document: Document) -> bool:
        if document.config is not None:
            return is_image(document) and any(layer.digest in self._results for layer in document.layers)
        return any(child.digest in self._new for child in document.manifests)

    def _rewrite_layer(self, layer: dict[str, Any], *, leaves_docker: bool) -> dict[str, Any]:
        result = self._results.get(layer["digest"])
        if result is None:
            return (
                layer | {"mediaType": layer_media_types.to_oci_media_type(layer["mediaType"])}
                if leaves_docker
                else layer
            )
        family = (
            layer_media_types.OCI_LAYER
            if self._codec not in layer_media_types.DOCKER_CODECS
            else layer_media_types.media_type_family(layer["mediaType"])
        )
        kind = layer_media_types.layer_media_type(family or layer_media_types.OCI_LAYER, self._codec)
        new = layer | {"mediaType": kind, "digest": result.digest, "size": result.size}
        for key in _CONTENT_FIELDS:
            new.pop(key, None)
        if annotations := new.pop("annotations", None):
            kept = {key: value for key, value in annotations.items() if not key.startswith(_LAZY_PULL_ANNOTATIONS)}
            if len(kept) < len(annotations):
                notices.notify("recompressed layers lose their annotations for lazy pulling (eStargz, zstd:chunked)")
            if kept:
                new["annotations"] = kept
        return new

    def _rewrite_entry(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Write the descriptor of a manifest anew, wherever it stands."""
        annotations = entry.get("annotations") or {}
        if (vouched := self._new.get(annotations.get(_ATTESTED_DIGEST, ""))) is not None:
            entry = entry | {"annotations": annotations | {_ATTESTED_DIGEST: vouched.descriptor.digest}}
        new = self._new.get(entry["digest"])
        if new is None:
            return entry
        own = new.descriptor
        entry = entry | {"mediaType": own.media_type, "digest": own.digest, "size": own.size}
        for key in _CONTENT_FIELDS:
            entry.pop(key, None)
        return entry
