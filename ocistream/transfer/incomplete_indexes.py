"""Indexes of which an archive or a layout has only some platforms, and what is taken of them then.

`docker save` (25 and later) and `ctr image export` keep an image's whole index and export only the platforms that they
have. So a platform counts as not exported if its manifest is missing, or its manifest is there and its config is not. A
config that is there while a layer is missing is damage: such a platform is never dropped. What was left out on purpose
(`Graph.left_out`) is neither. Nothing is read here but manifests, by way of a source.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, UnsupportedError
from ocistream.oci.descriptor import Descriptor, Manifest
from ocistream.oci.documents import parse_document
from ocistream.oci.graph import Incomplete
from ocistream.oci.platforms import attested, smaller_index
from ocistream.oci.referrers import GONE, NOT_EXPORTED, UNWANTED, Attached, LeftBehind, listed
from ocistream.streams.chunks import digest_of, gathered, verified
from ocistream.transfer.interfaces import Lacks
from ocistream.transfer.nested_indexes import leaves_of, nested_indexes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from ocistream.oci.graph import Graph, Root
    from ocistream.transfer.interfaces import Source

__all__ = ["exported_by", "exported_of", "exported_platforms", "not_exported", "only_exported"]


def not_exported(graph: Graph, lacks: Callable[[Descriptor], bool]) -> list[Descriptor]:
    """List the manifests, and nested indexes, of the images' indexes that the source does not have.

    `lacks` says whether the source lacks a blob. Where the user has chosen platforms, nothing is listed: a chosen
    platform that is missing is an error.
    """
    if graph.platforms_chosen:
        return []
    found: dict[str, Descriptor] = {}
    absent = {descriptor.digest for descriptor in graph.absent}
    for root in graph.roots:
        for leaf in _listed(graph, root):
            document = graph.documents.get(leaf.digest)
            config = document.config if document is not None else None
            if leaf.digest in absent or (config is not None and _is_missing(graph, config, lacks)):
                found[leaf.digest] = leaf
    return list(found.values())


def only_exported(graph: Graph, missing: Collection[str]) -> Graph:
    """Take of each image's index only what is there; `missing` are digests out of `not_exported`.

    Of one platform its manifest is taken, byte for byte; of several, a smaller index. Attestations go along with their
    images. An image of which nothing is there stays as it is.

    Raises:
        ArchiveError: the smaller index is too large, or malformed.
    """
    changed = [_Changed(graph, root, missing) for root in graph.roots]
    if not any(one.incomplete for one in changed):
        return graph
    made = {one.made.descriptor.digest: one.made for one in changed if one.made is not None}
    attached = {subject: list(those) for subject, those in graph.attached.items()}
    for one in changed:
        for attestation in one.attached:
            there = attached.setdefault(attestation.subject, [])
            if attestation.descriptor.digest not in {other.descriptor.digest for other in there}:
                there.append(attestation)
    smaller = replace(
        graph,
        roots=tuple(one.root for one in changed),
        manifests=(*graph.manifests, *made.values()),
        documents={**graph.documents, **{d: parse_document(m.descriptor, m.raw) for d, m in made.items()}},
        attached={subject: tuple(sorted(those, key=lambda one: one.order)) for subject, those in attached.items()},
        incomplete=(*graph.incomplete, *(one.incomplete for one in changed if one.incomplete)),
        left_behind=(*graph.left_behind, *(left for one in changed for left in one.left_behind)),
    )
    return smaller.pruned(graph.all_attached, NOT_EXPORTED)


def exported_platforms(graph: Graph, lacks: Callable[[Descriptor], bool]) -> tuple[str, ...]:
    """List the platforms that the source has of the images' indexes; `lacks` says whether it lacks a blob."""
    missing = {one.digest for one in not_exported(graph, lacks)}
    leaves = [leaf for root in graph.roots for leaf in _listed(graph, root)]
    return _called(leaf for leaf in leaves if leaf.digest not in missing and leaf.platform and attested(leaf) is None)


def exported_by(source: Source, graph: Graph, has_manifest: Callable[[Descriptor], bool] = lambda _: False) -> Graph:
    """Take of each image's index only what the source has, or, as `has_manifest` says, the destination."""
    if not isinstance(source, Lacks):
        return graph
    lacks = source.lacks
    missing = not_exported(graph, lambda blob: bool(lacks(blob)))
    return only_exported(graph, {one.digest for one in missing if not has_manifest(one)}) if missing else graph


def exported_of(source: Source, leaves: Sequence[Descriptor]) -> tuple[str, ...] | None:
    """Return the platforms of these manifests that a source has; None if the source cannot tell (yet).

    Manifests that are no part of the graph are read, if the source can be read in any order.

    Raises:
        LocalDiskError: the source cannot be read.
    """
    if not isinstance(source, Lacks) or not source.parallel:
        return None
    there: list[Descriptor] = []
    for leaf in leaves:
        config = None if (gone := source.lacks(leaf)) else _config_of(source, leaf)
        if not gone and not (config is not None and source.lacks(config)):
            there.append(leaf)
    return _called(there)


def _config_of(source: Source, leaf: Descriptor) -> Descriptor | None:
    """Read the config's descriptor of a manifest; None for a manifest that is malformed or corrupt."""
    if leaf.size > limits.MAX_MANIFEST:
        return None
    with contextlib.suppress(ArchiveError, IntegrityError, UnsupportedError):
        for blob in source.blobs([leaf]):
            return parse_document(leaf, gathered(verified(blob.open(), leaf))).config
    return None


class _Changed:
    """One image, less what its source does not have."""

    def __init__(self, graph: Graph, root: Root, missing: Collection[str]) -> None:
        self.root = root
        self.incomplete: Incomplete | None = None
        self.made: Manifest | None = None
        self.attached: list[Attached] = []
        self.left_behind: list[LeftBehind] = []
        leaves = {leaf.digest: leaf for leaf in _listed(graph, root)}
        there = {digest: leaf for digest, leaf in leaves.items() if digest not in missing and not leaf.is_index}
        images = {digest: leaf for digest, leaf in there.items() if attested(leaf) is None}
        if not images or not any(digest in missing for digest in leaves):
            return
        attestations = {digest: leaf for digest, leaf in leaves.items() if attested(leaf) in images}
        if len(images) == 1:
            (image,) = images.values()
            self._attach(graph, image, [leaf for digest, leaf in attestations.items() if digest in there])
            descriptor = image
        else:
            chosen = [leaf for digest, leaf in there.items() if digest in images or digest in attestations]
            descriptor = self._smaller_index(graph, chosen)
        for digest, leaf in attestations.items():
            if digest not in there:
                self.left_behind.append(LeftBehind(attested(leaf) or "", GONE, "attestation", digest))
        self.root = replace(root, descriptor=descriptor)
        gone = [leaf for digest, leaf in leaves.items() if digest in missing and attested(leaf) is None]
        lost = [images[attested(leaf) or ""] for digest, leaf in attestations.items() if digest not in there]
        self.incomplete = Incomplete(
            root.name,
            root.descriptor.digest,
            _called(images.values()),
            (*_called(gone), *(f"attestation of {platform}" for platform in _called(lost))),
            descriptor.digest,
        )

    def _attach(self, graph: Graph, image: Descriptor, attestations: Collection[Descriptor]) -> None:
        """Keep attestations of a manifest that no index lists any more, where they name it as their subject."""
        for leaf in attestations:
            document = graph.documents.get(leaf.digest)
            subject = document.subject if document is not None else None
            if graph.leaves_referrers:
                self.left_behind.append(LeftBehind(image.digest, UNWANTED, "attestation", leaf.digest))
            elif document is not None and subject is not None and subject.digest == image.digest:
                # Not as the index describes it: a list of referrers has the artifact's type.
                self.attached.append(Attached(listed(leaf, document), image.digest))
            else:
                self.left_behind.append(LeftBehind(image.digest, NOT_EXPORTED, "attestation", leaf.digest))

    def _smaller_index(self, graph: Graph, chosen: Collection[Descriptor]) -> Descriptor:
        raws = {manifest.descriptor.digest: manifest for manifest in graph.manifests}
        index = self.root.descriptor
        raw = smaller_index([raws[digest] for digest in nested_indexes(graph.documents, index.digest)], [*chosen])
        self.made = Manifest(
            Descriptor(index.media_type, digest_of(raw), len(raw), artifact_type=index.artifact_type), raw
        )
        return self.made.descriptor


def _listed(graph: Graph, root: Root) -> list[Descriptor]:
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


def _is_missing(graph: Graph, config: Descriptor, lacks: Callable[[Descriptor], bool]) -> bool:
    return config.digest not in graph.left_out and config.digest not in graph.embedded and lacks(config)


def _called(leaves: Iterable[Descriptor]) -> tuple[str, ...]:
    """Give the platforms, each once; a manifest without one is called by its digest."""
    return tuple(dict.fromkeys(str(leaf.platform) if leaf.platform else leaf.digest for leaf in leaves))
