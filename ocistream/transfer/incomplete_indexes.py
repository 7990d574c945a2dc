"""Reduce an index to the platforms that the source really has, as `docker save` and `ctr export` write them.

A platform is not exported if its manifest or config is absent; an absent layer alone is damage.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, UnsupportedError
from ocistream.oci.documents import parse_document
from ocistream.oci.graph import IncompleteIndex
from ocistream.oci.platforms import attestation_subject, build_smaller_index
from ocistream.oci.referrers import EXCLUDED, NOT_EXPORTED, NOT_FOUND, Referrer, SkippedReferrer, referrer_descriptor
from ocistream.oci.walk import leaves_of, nested_indexes
from ocistream.streams.chunks import read_all, verify_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from collections.abc import Set as AbstractSet

    from ocistream.oci.descriptor import Descriptor, Manifest
    from ocistream.oci.graph import Graph, Root
    from ocistream.transfer.interfaces import Source


def find_not_exported(graph: Graph, lacks: Callable[[Descriptor], bool]) -> list[Descriptor]:
    """List the manifests, and nested indexes, of the images' indexes that the source does not have.

    `lacks` says whether the source lacks a blob. Where the user has chosen platforms, nothing is listed: a chosen
    platform that is absent is an error.
    """
    if graph.is_platform_filtered:
        return []
    not_exported: dict[str, Descriptor] = {}
    absent = {descriptor.digest for descriptor in graph.absent}
    for root in graph.roots:
        for leaf in _list_leaves(graph, root):
            document = graph.documents.get(leaf.digest)
            config = document.config if document is not None else None
            if leaf.digest in absent or (config is not None and _is_absent(graph, config, lacks)):
                not_exported[leaf.digest] = leaf
    return list(not_exported.values())


def limit_to_exported(
    graph: Graph,
    lacks: Callable[[Descriptor], bool],
    list_stored: Callable[[Sequence[Descriptor]], Collection[str]] = lambda _: (),
) -> Graph:
    """Reduce each image's index to what exists; `lacks` says whether the source lacks a blob.

    `list_stored` returns the digests of those of the absent manifests that exist elsewhere.

    One remaining platform is taken as its manifest, byte for byte; several make a smaller index. Attestations stay with
    their images. An image without any remaining platform stays as it is.

    Raises:
        ArchiveError: the smaller index is too large, or malformed.
    """
    not_exported = find_not_exported(graph, lacks)
    stored = list_stored(not_exported) if not_exported else ()
    reduction = _Reduction(graph, {manifest.digest for manifest in not_exported if manifest.digest not in stored})
    roots = tuple(map(reduction.reduce, graph.roots))
    if not reduction.incomplete:
        return graph
    new = reduction.new_indexes
    smaller = replace(
        graph,
        roots=roots,
        manifests=(*graph.manifests, *new.values()),
        documents={**graph.documents, **{d: parse_document(m.descriptor, m.raw) for d, m in new.items()}},
        referrers={
            subject: tuple(sorted(referrers, key=lambda referrer: referrer.sort_key))
            for subject, referrers in reduction.referrers.items()
        },
        incomplete_indexes=(*graph.incomplete_indexes, *reduction.incomplete),
        skipped_referrers=(*graph.skipped_referrers, *reduction.skipped_referrers),
    )
    return smaller.prune(graph.all_referrers, NOT_EXPORTED)


def find_complete_platforms(graph: Graph, lacks: Callable[[Descriptor], bool]) -> tuple[str, ...]:
    """List the platforms of the images' indexes of which the source has all blobs; `lacks` is whether it lacks one."""
    missing = {manifest.digest for manifest in find_not_exported(graph, lacks)}
    # The layers too: one that is missing is damage, so that the platform counts as exported.
    missing |= {digest for digest, document in graph.documents.items() if any(map(lacks, document.layers))}
    leaves = [leaf for root in graph.roots for leaf in _list_leaves(graph, root)]
    return _platform_names(
        leaf for leaf in leaves if leaf.digest not in missing and leaf.platform and attestation_subject(leaf) is None
    )


def limit_to_source(
    source: Source,
    graph: Graph,
    list_stored_manifests: Callable[[Sequence[Descriptor]], Collection[str]] = lambda _: (),
) -> Graph:
    """Reduce each image's index to the platforms that one of both sides has.

    `list_stored_manifests` returns the digests of those that the destination has.
    """
    if not source.may_lack_blobs:
        return graph
    return limit_to_exported(graph, lambda blob: bool(source.is_absent(blob)), list_stored_manifests)


def read_exported_platforms(source: Source, leaves: Sequence[Descriptor]) -> tuple[str, ...] | None:
    """Return the platforms of these manifests that a source has; None if the source cannot tell (yet).

    Manifests outside the graph are read, if the source can be read in any order.

    Raises:
        LocalDiskError: the source cannot be read.
    """
    if not source.concurrent:
        return None
    exported: list[Descriptor] = []
    for leaf in leaves:
        config = None if (is_absent := source.is_absent(leaf)) else _read_config_descriptor(source, leaf)
        if not is_absent and not (config is not None and source.is_absent(config)):
            exported.append(leaf)
    return _platform_names(exported)


def _read_config_descriptor(source: Source, leaf: Descriptor) -> Descriptor | None:
    """Read the config's descriptor of a manifest; None for a manifest that is malformed or corrupt."""
    if leaf.size > limits.MAX_MANIFEST:
        return None
    with contextlib.suppress(ArchiveError, IntegrityError, UnsupportedError):
        for blob in source.blobs([leaf]):
            return parse_document(leaf, read_all(verify_chunks(blob.open(), leaf))).config
    return None


class _Reduction:
    """The images of a graph without the manifests that are `missing`, and what is new in the graph because of that."""

    def __init__(self, graph: Graph, missing: AbstractSet[str]) -> None:
        self._graph = graph
        self._missing = missing
        self._raw = {manifest.descriptor.digest: manifest for manifest in graph.manifests}
        self.incomplete: list[IncompleteIndex] = []
        self.new_indexes: dict[str, Manifest] = {}
        self.referrers = {subject: list(referrers) for subject, referrers in graph.referrers.items()}
        self.skipped_referrers: list[SkippedReferrer] = []

    def reduce(self, root: Root) -> Root:
        """Return the root of an image without its missing platforms."""
        leaves = {leaf.digest: leaf for leaf in _list_leaves(self._graph, root)}
        missing = {digest: leaf for digest, leaf in leaves.items() if digest in self._missing}
        exported = {digest: leaf for digest, leaf in leaves.items() if digest not in missing and not leaf.is_index}
        images = {digest: leaf for digest, leaf in exported.items() if attestation_subject(leaf) is None}
        if not images or not missing:
            return root
        attestations = [leaf for leaf in leaves.values() if attestation_subject(leaf) in images]
        lost = [leaf for leaf in attestations if leaf.digest not in exported]
        if len(images) == 1:
            (descriptor,) = images.values()
            for leaf in attestations:
                if leaf.digest in exported:
                    self._add_referrer(descriptor, leaf)
        else:
            # In the order of the index.
            kept = images.keys() | {leaf.digest for leaf in attestations}
            descriptor = self._add_smaller_index(root, [leaf for digest, leaf in exported.items() if digest in kept])
        for leaf in lost:
            self._skip(attestation_subject(leaf) or "", NOT_FOUND, leaf)
        missing_images = [leaf for leaf in missing.values() if attestation_subject(leaf) is None]
        incomplete_images = [images[attestation_subject(leaf) or ""] for leaf in lost]
        self.incomplete.append(
            IncompleteIndex(
                root.name,
                root.descriptor.digest,
                _platform_names(images.values()),
                (
                    *_platform_names(missing_images),
                    *(f"attestation of {platform}" for platform in _platform_names(incomplete_images)),
                ),
                descriptor.digest,
            )
        )
        return replace(root, descriptor=descriptor)

    def _add_referrer(self, image: Descriptor, leaf: Descriptor) -> None:
        """Keep an attestation of a manifest that no index lists any more, if it names the manifest as its subject."""
        document = self._graph.documents.get(leaf.digest)
        if self._graph.is_skipping_referrers:
            self._skip(image.digest, EXCLUDED, leaf)
        elif document is not None and document.subject is not None and document.subject.digest == image.digest:
            # Not the index's descriptor: a list of referrers has the artifact's type.
            existing = self.referrers.setdefault(image.digest, [])
            if all(referrer.descriptor.digest != leaf.digest for referrer in existing):
                existing.append(Referrer(referrer_descriptor(leaf, document), image.digest))
        else:
            self._skip(image.digest, NOT_EXPORTED, leaf)

    def _skip(self, image: str, reason: str, leaf: Descriptor) -> None:
        self.skipped_referrers.append(SkippedReferrer(image, reason, "attestation", leaf.digest))

    def _add_smaller_index(self, root: Root, chosen: Sequence[Descriptor]) -> Descriptor:
        index = root.descriptor
        documents = [self._raw[digest] for digest in nested_indexes(self._graph.documents, index.digest)]
        new = build_smaller_index(index, documents, chosen)
        self.new_indexes[new.descriptor.digest] = new
        return new.descriptor


def _list_leaves(graph: Graph, root: Root) -> list[Descriptor]:
    """List the manifests of an image's index, and the nested indexes that are missing; none of a single image."""
    if not root.descriptor.is_index or root.descriptor.digest not in graph.documents:
        return []
    nested = nested_indexes(graph.documents, root.descriptor.digest)
    unknown = [
        child
        for digest in nested
        for child in graph.documents[digest].manifests
        if child.is_index and child.digest not in graph.documents
    ]
    return [*leaves_of(graph.documents, root.descriptor.digest), *unknown]


def _is_absent(graph: Graph, config: Descriptor, lacks: Callable[[Descriptor], bool]) -> bool:
    return config.digest not in graph.omitted_from_source and config.digest not in graph.embedded and lacks(config)


def _platform_names(leaves: Iterable[Descriptor]) -> tuple[str, ...]:
    """Return each platform once; a manifest without one is named by its digest."""
    return tuple(dict.fromkeys(str(leaf.platform) if leaf.platform else leaf.digest for leaf in leaves))
