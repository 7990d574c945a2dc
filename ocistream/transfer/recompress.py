"""Recompress the layers of images, and rewrite the manifests and indexes that list them.

Checks each layer against the diff_ids of its config; a config never changes. Does no I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from ocistream import limits, notices
from ocistream.errors import UnsupportedError, UsageError
from ocistream.oci.descriptor import (
    DOCKER_CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    compute_digest,
)
from ocistream.oci.documents import Document, parse_diff_ids, parse_document, parse_entry
from ocistream.oci.graph import Graph, is_image
from ocistream.oci.reference import printable
from ocistream.oci.strict_json import canonical_json, canonical_json_with_items, parse_json
from ocistream.streams.chunks import HashedChunks, peek_chunks
from ocistream.streams.compression import (
    CODECS,
    DOCKER_CODECS,
    NONE,
    OCI_LAYER,
    Codec,
    DecompressionError,
    codec_name,
    decompress_layer,
    describe_layer,
    detect_codec,
    is_probably_json,
    is_probably_layer,
    layer_media_type,
    media_type_family,
    to_oci_media_type,
)
from ocistream.transfer.config_checks import find_diff_id_errors, media_type_error
from ocistream.transfer.interfaces import NewBlob

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Access, VerifiedBlob


@dataclass(frozen=True, slots=True)
class RecompressionSettings:
    """How to recompress image layers that use another format."""

    codec: Codec
    level: int
    max_ratio: int = limits.MAX_RATIO


def parse_recompression(text: str, max_ratio: int = limits.MAX_RATIO) -> RecompressionSettings:
    """Parse `gzip`, `zstd` or `none`; `gzip` and `zstd` accept `:LEVEL`.

    Raises:
        UsageError: it is none of these.
    """
    name, colon, digits = text.partition(":")
    codec = CODECS.get(name)
    if codec is None:
        msg = f"unknown compression {printable(text)!r}"
        raise UsageError(msg, hint=f"use {', '.join(CODECS)}, with a level if needed: gzip:9")
    if not colon:
        return RecompressionSettings(codec, codec.default_level, max_ratio)
    level = int(digits) if re.fullmatch("[0-9]{1,2}", digits) else -1
    if codec is NONE or level not in codec.levels:
        msg = f"{printable(text)!r} has no valid level"
        allowed = f"levels {codec.levels[0]} to {codec.levels[-1]}" if codec is not NONE else "no level"
        raise UsageError(msg, hint=f"{name} has {allowed}")
    return RecompressionSettings(codec, level, max_ratio)


@dataclass(frozen=True, slots=True)
class RecompressedLayer:
    """One recompressed layer: what was read, what was written, and the digest of its uncompressed bytes."""

    source: Descriptor
    result: Descriptor
    diff_id: str


class Recompressor:
    """One transfer's recompression. Safe for several threads."""

    def __init__(self, settings: RecompressionSettings) -> None:
        """Start without results."""
        self.settings = settings
        #: Whether only uncompressed layers are compressed; others stay as they are.
        self.is_plain_only = False
        #: The results, by the digests of the original layers, and the digests of the new layers.
        self.results: dict[str, RecompressedLayer] = {}
        self.result_digests: set[str] = set()
        #: The diff_ids of the configs that were read, by digest.
        self.diff_ids: dict[str, tuple[str, ...]] = {}

    def find_layers(self, graph: Graph) -> dict[str, Descriptor]:
        """Return the layers to recompress, by digest.

        Layers that have the requested compression stay as they are, and so do blobs of other artifacts (charts,
        signatures, SBOMs). A layer that such an artifact uses too also stays: one digest cannot become two blobs.
        """
        excluded = {
            blob.digest
            for _, document in graph.images()
            for blob in (document.config, *(() if is_image(document) else document.layers))
            if blob is not None
        }
        layers: dict[str, Descriptor] = {}
        for _, document in graph.images():
            if is_image(document):
                for layer in document.layers:
                    codec = codec_name(layer.media_type)
                    if codec is None and not layer.is_foreign:
                        message = (
                            f"{layer.digest} is not recompressed: layers of the type {printable(layer.media_type)}"
                        )
                        notices.notify(f"{message} are copied as they are", level=1)
                    elif codec is not None and self._is_affected(codec) and layer.digest not in excluded:
                        layers.setdefault(layer.digest, layer)
        return layers

    def find_configs(self, graph: Graph) -> set[str]:
        """Return the digests of the configs against which recompressed layers are checked."""
        recompressed = self.find_layers(graph).keys()
        return {
            document.config.digest
            for _, document in graph.images()
            if document.config and is_image(document) and any(layer.digest in recompressed for layer in document.layers)
        }

    def find_changed_manifests(self, graph: Graph, converted: Collection[str]) -> set[str]:
        """Return the digests of the manifests that change if these layers are recompressed."""
        changed: set[str] = set()
        for manifest in graph.manifests:
            document = graph.documents[manifest.descriptor.digest]
            children = document.layers if is_image(document) else document.manifests
            if any(child.digest in converted or child.digest in changed for child in children):
                changed.add(manifest.descriptor.digest)
        return changed

    def find_unchanged_layers(self, graph: Graph) -> set[str]:
        """Return the digests of the layers that have the requested compression, by their media types."""
        images = (document for _, document in graph.images() if is_image(document))
        wanted = self.settings.codec.name
        return {
            layer.digest for document in images for layer in document.layers if codec_name(layer.media_type) == wanted
        }

    def with_compression_check(self, blob: VerifiedBlob) -> VerifiedBlob:
        """Return a layer that is kept as it is, whose chunks raise ArchiveError if its media type is wrong.

        A media type is trusted until it matters. Here it does: the result must have the requested compression. The
        first bytes show it, so they are read even if an earlier run has stored them.
        """
        return replace(blob, open=lambda *_: self._check_compression(blob), can_resume=False)

    def _check_compression(self, blob: VerifiedBlob) -> Iterator[Chunk]:
        first, chunks = peek_chunks(blob.open())
        codec = detect_codec(bytes(first[: limits.KIB]))
        if first and codec is not self.settings.codec:
            error = media_type_error(blob.descriptor, codec.name)
            error.hint = "the manifest of its image is wrong: copy it without --compress"
            raise error
        yield from chunks

    def needs_recompression(self, beginning: bytes) -> bool:
        """Return whether a blob with these first bytes must be recompressed."""
        return is_probably_layer(beginning) and self._is_affected(detect_codec(beginning).name)

    def layer_needs_recompression(self, beginning: bytes) -> bool:
        """Return whether a layer or config with these first bytes must be recompressed."""
        return not is_probably_json(beginning) and self._is_affected(detect_codec(beginning).name)

    def add_config(self, digest: str, content: bytes) -> None:
        """Store the diff_ids of a config."""
        self.diff_ids[digest] = parse_diff_ids(content, f"the config {digest}")

    def recompress(
        self,
        open_raw: Callable[[], Iterator[Chunk]],
        source: Descriptor | None,
        *,
        access: Access,
        write: Callable[[NewBlob], Descriptor],
    ) -> Descriptor:
        """Recompress a layer into `write`, and return the layer's own descriptor.

        `open_raw` returns the layer's own verified chunks. If `source` is None, the layer's digest and size are
        computed on the way.
        """
        done: list[RecompressedLayer] = []

        def chunks() -> Iterator[Chunk]:
            # A known digest need not be computed again.
            hashed_source = HashedChunks(open_raw() if source is None else ())
            codec, plain_chunks = decompress_layer(
                hashed_source if source is None else open_raw(), self.settings.max_ratio
            )
            plain, result = HashedChunks(plain_chunks), HashedChunks(())
            try:
                for chunk in self.settings.codec.compress(plain, self.settings.level):
                    result.add(chunk)
                    yield chunk
            except DecompressionError as found:
                name, error = source.digest if source else "a layer", found.error
                raise type(error)(f"{name}: {error.message}", hint=error.hint) from error
            # Docker's media type is set when its manifest is rewritten.
            layer = RecompressedLayer(
                source or describe_layer(hashed_source.digest, hashed_source.size, codec),
                describe_layer(result.digest, result.size, self.settings.codec),
                plain.digest,
            )
            self.results[layer.source.digest] = layer
            self.result_digests.add(layer.result.digest)
            done.append(layer)

        write(NewBlob(chunks, lambda: done[-1].result, source, access))
        return done[-1].source

    def rewrite_graph(self, graph: Graph) -> tuple[Graph, Mapping[str, str]]:
        """Return the graph with the recompressed layers, and with new manifests and indexes that refer to them.

        Also return the digest of the original manifest, by the digest of each new one.
        """
        layers = {digest: done for digest in self.find_layers(graph) if (done := self.results.get(digest))}
        # Without its config a layer is not verified, so that a config that was not read must be an error.
        diff_ids = {digest: self.diff_ids.get(digest, ()) for digest in self.find_configs(graph)}
        plain_digests = {digest: layer.diff_id for digest, layer in layers.items()}
        # Another image may have the same config and no recompressed layer; it stays as it is.
        changed = (image for image in graph.images() if any(layer.digest in layers for layer in image[1].layers))
        for _, error in find_diff_id_errors(changed, diff_ids, plain_digests):
            if isinstance(error, UnsupportedError):
                error.hint = "only layers with sha256 diff_ids can be recompressed"
            raise error
        results = {digest: layer.result for digest, layer in layers.items()}
        return GraphRewriter(graph, results, self.settings.codec.name).rewrite()

    def _is_affected(self, codec: str) -> bool:
        return codec != self.settings.codec.name and (codec == NONE.name or not self.is_plain_only)


#: OCI counterparts of Docker's media types. A manifest becomes OCI's if Docker has no type for a layer's compression.
_OCI_FOR: Final = {DOCKER_MANIFEST: OCI_MANIFEST, DOCKER_LIST: OCI_INDEX, DOCKER_CONFIG: OCI_CONFIG}
#: These annotations describe the compressed bytes of a layer (stargz, zstd:chunked), so they are wrong after it
#: changes.
_LAZY_PULL_ANNOTATIONS: Final = (
    "containerd.io/snapshot/stargz/",
    "io.containers.zstd-chunked.",
    "io.github.containers.zstd-chunked.",
)
#: Descriptor fields that contain the bytes, or URLs of them.
_CONTENT_FIELDS: Final = ("data", "urls")
#: The annotation by which an attestation in an index names its image (buildx).
_ATTESTED_DIGEST: Final = "vnd.docker.reference.digest"


class GraphRewriter:
    """Rewrites the manifests of a graph whose layers have changed."""

    def __init__(self, graph: Graph, results: Mapping[str, Descriptor], codec: str) -> None:
        """`results` are the new layers, compressed with `codec`, by the digests of the old ones."""
        self._graph = graph
        self._results = results
        self._codec = codec
        self._old = {manifest.descriptor.digest: manifest for manifest in graph.manifests}
        #: New manifests by the digest of the old one; the old one if it does not change.
        self._new: dict[str, Manifest] = {}

    def rewrite(self) -> tuple[Graph, dict[str, str]]:
        """Return the rewritten graph, and the digest of the original manifest by the digest of each new one."""
        for digest in self._list_in_order():
            self._new[digest] = self._rewrite_if_changed(digest)
        manifests = [self._new[digest] for digest in self._old]
        documents = {m.descriptor.digest: self._find_document(m) for m in manifests}
        # A blob's media type comes from the manifest that lists it.
        listed = [b for d in documents.values() for b in (*d.layers, *((d.config,) if d.config else ()))]
        by_digest = {blob.digest: blob for blob in reversed(listed)}
        blobs = [by_digest[self._results.get(blob.digest, blob).digest] for blob in self._graph.blobs]
        graph = replace(
            self._graph,
            roots=tuple(
                replace(root, descriptor=parse_entry(self._rewrite_entry(root.descriptor.to_json())))
                for root in self._graph.roots
            ),
            manifests=tuple({m.descriptor.digest: m for m in manifests}.values()),
            blobs=tuple({blob.digest: blob for blob in blobs}.values()),
            documents=documents,
        )
        return graph, {new.descriptor.digest: old for old, new in self._new.items() if new is not self._old[old]}

    def _list_in_order(self) -> list[str]:
        """List the manifests after those that they refer to: children, and the subjects of referrers.

        Without recursion: an archive may have a chain of thousands of subjects.
        """
        in_order: list[str] = []
        seen: set[str] = set()
        todo = [(digest, False) for digest in reversed(self._old)]
        while todo:
            digest, is_ready = todo.pop()
            if is_ready:
                in_order.append(digest)
            elif digest not in seen:
                seen.add(digest)
                todo += [(digest, True), *((child, False) for child in self._list_known(digest))]
        return in_order

    def _list_known(self, digest: str) -> list[str]:
        """List the manifests of the graph that a manifest refers to."""
        document = self._graph.documents[digest]
        subject = (document.subject,) if document.subject is not None else ()
        return [item.digest for item in (*document.manifests, *subject) if item.digest in self._old]

    def _rewrite_if_changed(self, digest: str) -> Manifest:
        manifest, document = self._old[digest], self._graph.documents[digest]
        is_changed = any(self._new[known] is not self._old[known] for known in self._list_known(digest))
        if document.config is not None:
            is_changed = is_changed or any(layer.digest in self._results for layer in document.layers)
        return self._rewrite_manifest(manifest) if is_changed else manifest

    def _find_document(self, manifest: Manifest) -> Document:
        known = self._graph.documents.get(manifest.descriptor.digest)
        return known or parse_document(manifest.descriptor, manifest.raw)

    def _rewrite_manifest(self, manifest: Manifest) -> Manifest:
        """Return the manifest with new descriptors."""
        old = manifest.descriptor
        document = self._graph.documents[old.digest]
        media_type = self._choose_media_type(old, document)
        becomes_oci = media_type != old.media_type

        def layer(_: int, item: dict[str, Any]) -> bytes:
            return canonical_json(self._rewrite_layer(item, leaves_docker=becomes_oci))

        def entry(_: int, item: dict[str, Any]) -> bytes:
            return canonical_json(self._rewrite_entry(item))

        children_key, rewrite_child = ("layers", layer) if document.config is not None else ("manifests", entry)
        fields = parse_json(manifest.raw, f"manifest {old.digest}", convert={children_key: rewrite_child})
        fields["mediaType"] = media_type
        if document.subject is not None:
            fields["subject"] = self._rewrite_entry(fields["subject"])
        if document.config is not None and becomes_oci:
            config = fields["config"]
            config["mediaType"] = _OCI_FOR.get(config["mediaType"], config["mediaType"])
        raw = (
            canonical_json_with_items(fields, children_key, fields[children_key] or ())
            if children_key in fields
            else canonical_json(fields)
        )
        return Manifest(replace(old, media_type=media_type, digest=compute_digest(raw), size=len(raw)), raw)

    def _choose_media_type(self, descriptor: Descriptor, document: Document) -> str:
        """Return the media type of a rewritten manifest."""
        media_type = descriptor.media_type
        if media_type == DOCKER_MANIFEST:
            # Docker has no media types for layers of this compression.
            becomes_oci = self._codec not in DOCKER_CODECS
        else:
            # A Docker manifest list must not refer to an OCI manifest.
            becomes_oci = any(
                child.digest in self._new and self._new[child.digest].descriptor.media_type != child.media_type
                for child in document.manifests
            )
        return _OCI_FOR.get(media_type, media_type) if becomes_oci else media_type

    def _rewrite_layer(self, layer: dict[str, Any], *, leaves_docker: bool) -> dict[str, Any]:
        result = self._results.get(layer["digest"])
        if result is None:
            return layer | {"mediaType": to_oci_media_type(layer["mediaType"])} if leaves_docker else layer
        family = OCI_LAYER if self._codec not in DOCKER_CODECS else media_type_family(layer["mediaType"])
        media_type = layer_media_type(family or OCI_LAYER, self._codec)
        new = layer | {"mediaType": media_type, "digest": result.digest, "size": result.size}
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
        """Rewrite the descriptor of a manifest, in an index, in `index.json` or as a subject."""
        annotations = entry.get("annotations") or {}
        if (attested := self._new.get(annotations.get(_ATTESTED_DIGEST, ""))) is not None:
            entry = entry | {"annotations": annotations | {_ATTESTED_DIGEST: attested.descriptor.digest}}
        new = self._new.get(entry["digest"])
        if new is None or new.descriptor.digest == entry["digest"]:
            return entry
        own = new.descriptor
        entry = entry | {"mediaType": own.media_type, "digest": own.digest, "size": own.size}
        for key in _CONTENT_FIELDS:
            entry.pop(key, None)
        return entry
