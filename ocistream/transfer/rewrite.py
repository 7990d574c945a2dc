"""Manifests and indexes of which some layers have changed: what names something by its digest is written anew.

Everything else in them stays as it is, fields included that nobody here knows. No I/O happens here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ocistream import notices
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
from ocistream.oci.documents import Document, parse_document
from ocistream.oci.graph import is_image
from ocistream.oci.strict_json import canonical_json, canonical_json_with_items, parse_json
from ocistream.streams import layer_types
from ocistream.streams.chunks import compute_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocistream.oci.graph import Graph

__all__ = ["GraphRewriter"]

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
            leaves_docker = self._codec not in layer_types.DOCKER_CODECS
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
            return layer | {"mediaType": layer_types.to_oci_media_type(layer["mediaType"])} if leaves_docker else layer
        family = (
            layer_types.OCI_LAYER
            if self._codec not in layer_types.DOCKER_CODECS
            else layer_types.media_type_family(layer["mediaType"])
        )
        kind = layer_types.layer_media_type(family or layer_types.OCI_LAYER, self._codec)
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
