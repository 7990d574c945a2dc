"""Reduce an index to the platforms that the source really has, as `docker save` and `ctr export` write them.

A platform is not exported if its manifest or config is absent; an absent layer alone is damage.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, UnsupportedError
from ocistream.oci.descriptor import Descriptor, Manifest
from ocistream.oci.digest import compute_digest
from ocistream.oci.documents import parse_document
from ocistream.oci.graph import IncompleteIndex
from ocistream.oci.platforms import attestation_subject, build_smaller_index
from ocistream.oci.referrers import EXCLUDED, NOT_EXPORTED, NOT_FOUND, Referrer, SkippedReferrer, referrer_descriptor
from ocistream.oci.walk import leaves_of, nested_indexes
from ocistream.streams.chunks import read_all, verify_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

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
    missing = {manifest.digest for manifest in not_exported if manifest.digest not in stored}
    reduced = [_ReducedImage(graph, root, missing) for root in graph.roots] if missing else []
    if not any(image.incomplete for image in reduced):
        return graph
    new_indexes = {
        image.new_index.descriptor.digest: image.new_index for image in reduced if image.new_index is not None
    }
    referrers = {subject: list(subject_referrers) for subject, subject_referrers in graph.referrers.items()}
    for image in reduced:
        for attestation in image.referrers:
            existing = referrers.setdefault(attestation.subject, [])
            if attestation.descriptor.digest not in {other.descriptor.digest for other in existing}:
                existing.append(attestation)
    smaller = replace(
        graph,
        roots=tuple(image.root for image in reduced),
        manifests=(*graph.manifests, *new_indexes.values()),
        documents={**graph.documents, **{d: parse_document(m.descriptor, m.raw) for d, m in new_indexes.items()}},
        referrers={
            subject: tuple(sorted(subject_referrers, key=lambda image: image.sort_key))
            for subject, subject_referrers in referrers.items()
        },
        incomplete_indexes=(*graph.incomplete_indexes, *(image.incomplete for image in reduced if image.incomplete)),
        skipped_referrers=(
            *graph.skipped_referrers,
            *(skipped for image in reduced for skipped in image.skipped_referrers),
        ),
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


class _ReducedImage:
    """One image without the platforms that its source lacks."""

    def __init__(self, graph: Graph, root: Root, missing: Collection[str]) -> None:
        self.root = root
        self.incomplete: IncompleteIndex | None = None
        self.new_index: Manifest | None = None
        self.referrers: list[Referrer] = []
        self.skipped_referrers: list[SkippedReferrer] = []
        leaves = {leaf.digest: leaf for leaf in _list_leaves(graph, root)}
        exported = {digest: leaf for digest, leaf in leaves.items() if digest not in missing and not leaf.is_index}
        images = {digest: leaf for digest, leaf in exported.items() if attestation_subject(leaf) is None}
        if not images or not any(digest in missing for digest in leaves):
            return
        attestations = {digest: leaf for digest, leaf in leaves.items() if attestation_subject(leaf) in images}
        if len(images) == 1:
            (image,) = images.values()
            self._add_referrers(graph, image, [leaf for digest, leaf in attestations.items() if digest in exported])
            descriptor = image
        else:
            chosen = [leaf for digest, leaf in exported.items() if digest in images or digest in attestations]
            descriptor = self._create_smaller_index(graph, chosen)
        for digest, leaf in attestations.items():
            if digest not in exported:
                self.skipped_referrers.append(
                    SkippedReferrer(attestation_subject(leaf) or "", NOT_FOUND, "attestation", digest)
                )
        self.root = replace(root, descriptor=descriptor)
        missing_images = [
            leaf for digest, leaf in leaves.items() if digest in missing and attestation_subject(leaf) is None
        ]
        incomplete_images = [
            images[attestation_subject(leaf) or ""] for digest, leaf in attestations.items() if digest not in exported
        ]
        self.incomplete = IncompleteIndex(
            root.name,
            root.descriptor.digest,
            _platform_names(images.values()),
            (
                *_platform_names(missing_images),
                *(f"attestation of {platform}" for platform in _platform_names(incomplete_images)),
            ),
            descriptor.digest,
        )

    def _add_referrers(self, graph: Graph, image: Descriptor, attestations: Collection[Descriptor]) -> None:
        """Keep attestations of a manifest that no index lists any more, if they name it as their subject."""
        for leaf in attestations:
            document = graph.documents.get(leaf.digest)
            subject = document.subject if document is not None else None
            if graph.is_skipping_referrers:
                self.skipped_referrers.append(SkippedReferrer(image.digest, EXCLUDED, "attestation", leaf.digest))
            elif document is not None and subject is not None and subject.digest == image.digest:
                # Not the index's descriptor: a list of referrers has the artifact's type.
                self.referrers.append(Referrer(referrer_descriptor(leaf, document), image.digest))
            else:
                self.skipped_referrers.append(SkippedReferrer(image.digest, NOT_EXPORTED, "attestation", leaf.digest))

    def _create_smaller_index(self, graph: Graph, chosen: Collection[Descriptor]) -> Descriptor:
        raws = {manifest.descriptor.digest: manifest for manifest in graph.manifests}
        index = self.root.descriptor
        raw = build_smaller_index([raws[digest] for digest in nested_indexes(graph.documents, index.digest)], [*chosen])
        self.new_index = Manifest(
            Descriptor(index.media_type, compute_digest(raw), len(raw), artifact_type=index.artifact_type), raw
        )
        return self.new_index.descriptor


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
