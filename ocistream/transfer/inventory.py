"""Describe the images of a graph as plain values for JSON: platforms, manifests, layers, shared blobs, totals."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from ocistream.errors import ArchiveError
from ocistream.oci.documents import parse_config_platform
from ocistream.oci.graph import is_image
from ocistream.oci.strict_json import parse_json
from ocistream.streams import layer_media_types
from ocistream.transfer.incomplete_indexes import find_not_exported, limit_to_exported

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.documents import Document
    from ocistream.oci.graph import Graph, Root

__all__ = ["describe_images", "list_needed_configs"]


def list_needed_configs(graph: Graph) -> list[Descriptor]:
    """Give the configs that say something which the graph does not: the platform of an image that no index lists."""
    return [
        document.config
        for root in graph.roots
        if (document := graph.documents.get(root.descriptor.digest)) is not None
        and document.config is not None
        and is_image(document)
        and root.descriptor.platform is None
    ]


def describe_images(
    graph: Graph,
    configs: Mapping[str, bytes],
    referrers: Mapping[str, Sequence[Descriptor]],
    names: Mapping[str, str],
    lacking: Sequence[Descriptor] = (),
) -> dict[str, Any]:
    """Describe a graph. Sizes are in bytes.

    `configs` are the bytes of those that were wanted, by digest; `referrers` what a registry says refers to a manifest,
    `names` how roots are called that have no name of their own, by digest, and `lacking` configs and layers that were
    found not to be there.
    """
    return _Description(graph, configs, referrers, names).document(lacking)


class _Description:
    def __init__(
        self,
        graph: Graph,
        configs: Mapping[str, bytes],
        referrers: Mapping[str, Sequence[Descriptor]],
        names: Mapping[str, str],
    ) -> None:
        self._graph = graph
        self._configs = configs
        self._names = names
        self._raw = {manifest.descriptor.digest: manifest for manifest in graph.manifests}
        self._referrers: dict[str, list[dict[str, Any]]] = {
            subject: [_describe_descriptor(descriptor) for descriptor in found]
            for subject, found in referrers.items()
            if found
        }
        for manifest in graph.manifests:
            document = graph.documents[manifest.descriptor.digest]
            if document.subject is not None:
                listed = self._referrers.setdefault(document.subject.digest, [])
                if all(known["digest"] != manifest.descriptor.digest for known in listed):
                    listed.append(_describe_descriptor(manifest.descriptor) | _describe_kind(document))
        #: In how many different images a blob is.
        self._uses = Counter(
            digest
            for document in graph.documents.values()
            if document.config is not None
            for digest in {blob.digest for blob in (document.config, *document.layers)}
        )

    def document(self, lacking: Sequence[Descriptor]) -> dict[str, Any]:
        graph = self._graph
        images = [document for _, document in graph.images()]
        all_of_them = sum(b.size for d in images for b in _unique((d.config, *d.layers)))
        all_of_them += sum(b.size for d in graph.documents.values() if d.config is None for b in _unique(d.layers))
        return {
            "images": [self._root(root) for root in graph.roots],
            "totals": {
                "images": len(graph.roots),
                "manifests": len(graph.manifests),
                "blobs": len(graph.blobs),
                "bytes": graph.size + sum(manifest.descriptor.size for manifest in graph.manifests),
                # What the same images would take if none shared a blob with another.
                "bytesUnshared": all_of_them + sum(manifest.descriptor.size for manifest in graph.manifests),
            },
            "missing": self._missing(lacking),
        }

    def _missing(self, lacking: Sequence[Descriptor]) -> list[dict[str, Any]]:
        """Describe what is missing: whether it was left out on purpose, or not exported, or is just not there."""
        graph = self._graph
        digests = {descriptor.digest for descriptor in lacking}
        gone = {one.digest for one in find_not_exported(graph, lambda blob: blob.digest in digests)}
        exported = limit_to_exported(graph, gone)
        needed = {descriptor.digest for descriptor in (*exported.blobs, *exported.absent)}
        missing = []
        for descriptor in (*graph.absent, *lacking):
            reason = graph.omitted_from_source.get(descriptor.digest)
            why: dict[str, Any] = {"leftOut": str(reason)} if reason else {}
            if descriptor.digest not in needed:
                why["notExported"] = True
            missing.append(_describe_descriptor(descriptor) | why)
        return missing

    def _root(self, root: Root) -> dict[str, Any]:
        descriptor = root.descriptor
        found: dict[str, Any] = {"name": root.name or self._names.get(descriptor.digest)}
        if not root.is_synthesized:
            return found | self._manifest(descriptor)
        of_manifest = _describe_descriptor(descriptor).keys()
        shown = {key: value for key, value in self._manifest(descriptor).items() if key not in of_manifest}
        return found | {"imageId": self._graph.image_id(root)} | shown

    def _manifest(self, descriptor: Descriptor) -> dict[str, Any]:
        found: dict[str, Any] = _describe_descriptor(descriptor)
        if descriptor.annotations:
            # What the index says of it: that it is an attestation, and of which image, stands only there.
            found["indexAnnotations"] = dict(descriptor.annotations)
        document = self._graph.documents.get(descriptor.digest)
        if document is None:
            return found | ({"platform": str(descriptor.platform)} if descriptor.platform else {}) | {"missing": True}
        found |= _describe_kind(document)
        if platform := self._platform(descriptor, document):
            found["platform"] = platform
        # Parsed again, and one at a time: what is only shown is not held for all of them.
        fields = parse_json(
            self._raw[descriptor.digest].raw,
            f"manifest {descriptor.digest}",
            keys={"annotations", "layers"},
            convert={"layers": _keep_annotations},
        )
        if isinstance(annotations := fields.get("annotations"), dict) and annotations:
            found["annotations"] = annotations
        if document.subject is not None:
            found["subject"] = document.subject.digest
        if document.manifests:
            found["manifests"] = [self._manifest(child) for child in document.manifests]
        if document.config is not None:
            found["config"] = self._blob(document.config)
            found["layers"] = [
                self._blob(layer) | _describe_layer(layer, annotations)
                for layer, annotations in zip(document.layers, fields.get("layers") or (), strict=True)
            ]
            found["bytes"] = sum(blob.size for blob in _unique((document.config, *document.layers)))
        elif document.layers:
            found["blobs"] = [self._blob(blob) for blob in document.layers]
        if descriptor.digest in self._referrers:
            found["referrers"] = self._referrers[descriptor.digest]
        return found

    def _platform(self, descriptor: Descriptor, document: Document) -> str | None:
        if descriptor.platform is not None:
            return str(descriptor.platform)
        raw = self._configs.get(document.config.digest) if document.config else None
        if raw is None:
            return None
        try:
            platform = parse_config_platform(raw, "the config")
        except ArchiveError:
            # What is shown need not be whole; what is moved is checked.
            return None
        return str(platform) if platform else None

    def _blob(self, descriptor: Descriptor) -> dict[str, Any]:
        found = _describe_descriptor(descriptor)
        if (uses := self._uses[descriptor.digest]) > 1:
            found["sharedBy"] = uses
        return found


def _describe_descriptor(descriptor: Descriptor) -> dict[str, Any]:
    found: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.artifact_type:
        found["artifactType"] = descriptor.artifact_type
    return found


def _describe_kind(document: Document) -> dict[str, Any]:
    """Say what a manifest is: "index", "image", or "artifact" with its type."""
    if document.config is None:
        return {"kind": "index"}
    if is_image(document):
        return {"kind": "image"}
    return {"kind": "artifact", "artifactType": document.artifact_type or document.config.media_type}


def _keep_annotations(_place: int, written: object) -> object:
    """Keep a layer's annotations, or None where it has none: there may be thousands of layers."""
    annotations = written.get("annotations") if isinstance(written, dict) else None
    return annotations if isinstance(annotations, dict) and annotations else None


def _describe_layer(layer: Descriptor, annotations: object) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if (codec := layer_media_types.codec_name(layer.media_type)) is not None:
        found["compression"] = codec
    if layer.is_foreign:
        found["foreign"] = True
    if annotations is not None:
        found["annotations"] = annotations
    return found


def _unique(blobs: Sequence[Descriptor | None]) -> Iterator[Descriptor]:
    yield from {blob.digest: blob for blob in blobs if blob is not None and not blob.is_foreign}.values()
