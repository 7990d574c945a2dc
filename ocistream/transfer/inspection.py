"""Describe a source as plain values for JSON: its images, platforms, manifests, layers, shared blobs and totals.

Of the blobs only the configs of images are read.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

from ocistream import limits
from ocistream.errors import ArchiveError
from ocistream.oci.descriptor import INDEX_TYPES
from ocistream.oci.documents import ConfigSummary, parse_config_summary
from ocistream.oci.graph import is_image
from ocistream.oci.referrers import REFERRER_NAME, cosign_subject
from ocistream.oci.strict_json import parse_json
from ocistream.sizes import format_count
from ocistream.streams.compression import codec_name
from ocistream.streams.synchronization import Budget
from ocistream.transfer.config_checks import find_configs
from ocistream.transfer.discarded_blobs import DiscardedBlobs
from ocistream.transfer.incomplete_indexes import limit_to_exported

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.documents import Document
    from ocistream.oci.graph import Graph, Root
    from ocistream.transfer.interfaces import Source


class Inventory(TypedDict):
    """The description of a source. Each iteration of `images` describes them again: all at once need much memory."""

    images: Iterable[dict[str, Any]]
    totals: dict[str, int]
    missing: list[dict[str, Any]]


def inspect_source(
    source: Source,
    *,
    name: str | None = None,
    list_referrers: Callable[[Sequence[str]], Mapping[str, Sequence[Descriptor]]] = lambda _digests: {},
    jobs: int = 1,
    cancelled: threading.Event | None = None,
    report: Callable[[str], None] = lambda _message: None,
) -> Inventory:
    """Return the description of the images of a source, which is not needed any more.

    `name` is the name of images without one. `list_referrers` returns the referrers of manifests that are not in the
    source itself. `jobs` configs are read at a time; with one, the same labels are shown each time.

    Raises:
        OcistreamError: the source cannot be read.
    """
    with contextlib.closing(DiscardedBlobs(cancelled)) as discarded:
        graph = source.resolve(discarded)
        summaries = _ConfigSummaries()
        # Blobs that are stored with a wrong size count as absent, and would end the run.
        configs = [c for c in find_configs(graph).values() if source.stored_size(c.digest) in {None, c.size}]
        blobs = source.blobs(configs)
        if source.may_lack_blobs:
            blobs = (blob for blob in blobs if source.stored_size(blob.descriptor.digest) == blob.descriptor.size)
        discarded.read_contents(blobs, configs, summaries.add, jobs=jobs if source.concurrent else 1)
    if summaries.unlabelled:
        report(f"the labels of {format_count(len(summaries.unlabelled), 'image')} are not shown: they are too many")
    for root in graph.roots:
        chosen = root.chosen_platforms
        if chosen is not None and root.descriptor.is_index and root.descriptor.digest != chosen.index:
            report(f"{root.descriptor.digest} is what a copy of these platforms gets; the location has {chosen.index}")
    if source.may_lack_blobs:
        stored = (blob for blob in graph.blobs if source.stored_size(blob.digest) == blob.size)
        existing = {blob.digest for blob in stored} | graph.embedded.keys()
        absent = [blob for blob in graph.blobs if blob.digest not in existing]
    else:
        absent = [config for config in configs if config.digest not in summaries.found]
    referrers = list_referrers([manifest.descriptor.digest for manifest in graph.manifests])
    names = {root.descriptor.digest: name for root in graph.roots} if name is not None else {}
    description = _Description(graph, summaries.by_digest, referrers, names)
    return {"images": description, "totals": description.totals(), "missing": description.missing(absent)}


class _ConfigSummaries:
    """What is shown of configs, by digest: a config may have megabytes, and there may be thousands."""

    def __init__(self) -> None:
        self.by_digest: dict[str, ConfigSummary] = {}
        self.found: set[str] = set()
        #: Digests of the configs whose labels do not fit into `MAX_SHOWN_LABELS`.
        self.unlabelled: set[str] = set()
        self._label_memory = Budget(limits.MAX_SHOWN_LABELS)

    def add(self, descriptor: Descriptor, content: bytes) -> None:
        self.found.add(descriptor.digest)
        try:
            summary = parse_config_summary(content, f"the config {descriptor.digest}")
        except ArchiveError:
            # A config that is only shown may be malformed; it is checked when it is copied.
            return
        size = sum(len(key) + len(value) for key, value in summary.labels.items())
        if not self._label_memory.take(size):
            self.unlabelled.add(descriptor.digest)
            summary = replace(summary, labels={})
        self.by_digest[descriptor.digest] = summary


class _Description:
    """The images of a graph, described one by one.

    `configs` are the configs that the source has, by digest. `referrers` are those that a registry lists for a
    manifest. `names` are for roots without a name of their own. Sizes are in bytes.
    """

    def __init__(
        self,
        graph: Graph,
        configs: Mapping[str, ConfigSummary],
        referrers: Mapping[str, Sequence[Descriptor]],
        names: Mapping[str, str],
    ) -> None:
        self._graph = graph
        self._configs = configs
        self._names = names
        self._raw = {manifest.descriptor.digest: manifest for manifest in graph.manifests}
        self._referrers: dict[str, list[dict[str, Any]]] = {
            subject: [_describe_descriptor(descriptor) for descriptor in descriptors]
            for subject, descriptors in referrers.items()
            if descriptors
        }
        for manifest in graph.manifests:
            document = graph.documents[manifest.descriptor.digest]
            if document.subject is not None:
                listed = self._referrers.setdefault(document.subject.digest, [])
                if all(entry["digest"] != manifest.descriptor.digest for entry in listed):
                    listed.append(_describe_descriptor(manifest.descriptor) | _describe_kind(document))
        for root in graph.roots:
            if tagged := _describe_cosign_tag(root):
                listed = self._referrers.setdefault(tagged["subject"], [])
                listed.append(_describe_descriptor(root.descriptor) | {"tag": tagged["tag"]})
        #: How many different images have a blob.
        self._uses = Counter(
            digest
            for document in graph.documents.values()
            if document.config is not None
            for digest in {blob.digest for blob in (document.config, *document.layers)}
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._root, self._graph.roots)

    def totals(self) -> dict[str, int]:
        graph = self._graph
        images = [document for _, document in graph.images()]
        unshared = sum(b.size for d in images for b in _unique((d.config, *d.layers)))
        unshared += sum(b.size for d in graph.documents.values() if d.config is None for b in _unique(d.layers))
        return {
            "images": len(graph.roots),
            "manifests": len(graph.manifests),
            "blobs": len(graph.blobs),
            "bytes": graph.size + sum(manifest.descriptor.size for manifest in graph.manifests),
            # What the images would need if they shared no blobs.
            "bytesUnshared": unshared + sum(manifest.descriptor.size for manifest in graph.manifests),
        }

    def missing(self, absent_blobs: Sequence[Descriptor]) -> list[dict[str, Any]]:
        """Describe the missing content: omitted on purpose, not exported, or just missing."""
        graph = self._graph
        digests = {descriptor.digest for descriptor in absent_blobs}
        exported = limit_to_exported(graph, lambda blob: blob.digest in digests)
        needed = {descriptor.digest for descriptor in (*exported.blobs, *exported.absent)}
        missing = []
        for descriptor in (*graph.absent, *absent_blobs):
            reason = graph.omitted_from_source.get(descriptor.digest)
            details: dict[str, Any] = {"omitted": str(reason)} if reason else {}
            if descriptor.digest not in needed:
                details["notExported"] = True
            missing.append(_describe_descriptor(descriptor) | details)
        return missing

    def _root(self, root: Root) -> dict[str, Any]:
        descriptor = root.descriptor
        description: dict[str, Any] = {"name": root.name or self._names.get(descriptor.digest)}
        description |= _describe_cosign_tag(root)
        if not root.is_synthesized:
            return description | self._manifest(descriptor)
        descriptor_keys = _describe_descriptor(descriptor).keys()
        details = {key: value for key, value in self._manifest(descriptor).items() if key not in descriptor_keys}
        return description | {"imageId": self._graph.image_id(root)} | details

    def _manifest(self, descriptor: Descriptor) -> dict[str, Any]:
        description: dict[str, Any] = _describe_descriptor(descriptor)
        if descriptor.annotations:
            # Only the index says that a manifest is an attestation, and of which image.
            description["indexAnnotations"] = dict(descriptor.annotations)
        document = self._graph.documents.get(descriptor.digest)
        if document is None:
            return (
                description
                | ({"platform": str(descriptor.platform)} if descriptor.platform else {})
                | {"missing": True}
            )
        description |= _describe_kind(document)
        description |= self._describe_config(descriptor, document)
        # Parsed again, one at a time: fields that are only shown are not kept for all manifests.
        fields: dict[str, Any] = {}
        if descriptor.is_index or descriptor.is_manifest:
            fields = parse_json(
                self._raw[descriptor.digest].raw,
                f"manifest {descriptor.digest}",
                keys={"annotations", "layers"},
                convert={"layers": _keep_annotations},
            )
        if isinstance(annotations := fields.get("annotations"), dict) and annotations:
            description["annotations"] = annotations
        if document.subject is not None:
            description["subject"] = document.subject.digest
        if document.manifests:
            description["manifests"] = [self._manifest(child) for child in document.manifests]
        if document.config is not None:
            description["config"] = self._blob(document.config)
            description["layers"] = [
                self._blob(layer) | _describe_layer(layer, annotations)
                for layer, annotations in zip(document.layers, fields.get("layers") or (), strict=True)
            ]
            description["bytes"] = sum(blob.size for blob in _unique((document.config, *document.layers)))
        elif document.layers:
            description["blobs"] = [self._blob(blob) for blob in document.layers]
        if descriptor.digest in self._referrers:
            description["referrers"] = self._referrers[descriptor.digest]
        return description

    def _describe_config(self, descriptor: Descriptor, document: Document) -> dict[str, Any]:
        config = self._configs.get(document.config.digest) if document.config is not None else None
        config = config or ConfigSummary()
        platform = descriptor.platform or config.platform
        description = {
            "platform": str(platform) if platform else None,
            "created": config.created,
            "labels": config.labels or None,
        }
        return {key: value for key, value in description.items() if value is not None}

    def _blob(self, descriptor: Descriptor) -> dict[str, Any]:
        description = _describe_descriptor(descriptor)
        if (uses := self._uses[descriptor.digest]) > 1:
            description["sharedBy"] = uses
        return description


def _describe_cosign_tag(root: Root) -> dict[str, str]:
    """Return the subject and the tag of a referrer that has a tag of cosign's, or nothing."""
    name = root.name or root.descriptor.annotations.get(REFERRER_NAME, "")
    tag = name.rpartition(":")[2]
    subject = cosign_subject(tag)
    return {"subject": subject, "tag": tag} if subject is not None else {}


def _describe_descriptor(descriptor: Descriptor) -> dict[str, Any]:
    description: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.artifact_type:
        description["artifactType"] = descriptor.artifact_type
    return description


def _describe_kind(document: Document) -> dict[str, Any]:
    """Say what a manifest is: "index", "image", or "artifact" with its type."""
    if document.media_type in INDEX_TYPES:
        return {"kind": "index"}
    if is_image(document):
        return {"kind": "image"}
    media_type = document.config.media_type if document.config is not None else document.media_type
    return {"kind": "artifact", "artifactType": document.artifact_type or media_type}


def _keep_annotations(_place: int, value: object) -> object:
    """Keep a layer's annotations, or None if it has none: there may be thousands of layers."""
    annotations = value.get("annotations") if isinstance(value, dict) else None
    return annotations if isinstance(annotations, dict) and annotations else None


def _describe_layer(layer: Descriptor, annotations: object) -> dict[str, Any]:
    description: dict[str, Any] = {}
    if (codec := codec_name(layer.media_type)) is not None:
        description["compression"] = codec
    if layer.is_foreign:
        description["foreign"] = True
    if annotations is not None:
        description["annotations"] = annotations
    return description


def _unique(blobs: Sequence[Descriptor | None]) -> Iterator[Descriptor]:
    yield from {blob.digest: blob for blob in blobs if blob is not None and not blob.is_foreign}.values()
