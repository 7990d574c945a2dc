"""The image graph: root images, their manifests, blobs and referrers. `oci.walk` builds graphs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.oci.descriptor import CONFIG_TYPES, Descriptor, Manifest
from ocistream.oci.referrers import SIGNATURE_TYPES, Referrer, SkippedReferrer, is_signature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ocistream.oci.descriptor import Platform
    from ocistream.oci.documents import Document
    from ocistream.oci.omitted_blobs import OmissionReason
    from ocistream.oci.platforms import ChosenPlatforms


@dataclass(frozen=True, slots=True)
class Root:
    """An image that the user asked for: its name, or None, and its descriptor.

    `origin` tells people where the image was found: `docker.io/library/nginx`, or nothing. `is_stray` marks an entry of
    `index.json` without an image's name that is not known to be an image, such as a referrer without its subject.
    `chosen_platforms` says which platforms of an index the descriptor stands for, unless it stands for the whole index.
    `default_platform` is the platform that a single image should have because the user named none.
    `is_synthesized` says that the manifest was built here, because only `manifest.json` of a docker-archive lists the
    image. `image_id` is the digest of the config, if known before the manifests are.
    """

    name: str | None
    descriptor: Descriptor
    origin: str = ""
    is_stray: bool = field(default=False, compare=False)
    chosen_platforms: ChosenPlatforms | None = field(default=None, compare=False)
    default_platform: Platform | None = field(default=None, compare=False)
    is_synthesized: bool = field(default=False, compare=False)
    image_id: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class IncompleteIndex:
    """An index of which the source has only some platforms.

    `name` is the name of the image, or None. `digest` is the digest of the index. `platforms` are the existing
    platforms as text; `missing` are the others, and missing attestations of existing ones. `instead` is the digest of
    the manifest or smaller index that replaces the index.
    """

    name: str | None
    digest: str
    platforms: tuple[str, ...]
    missing: tuple[str, ...]
    instead: str


@dataclass(frozen=True, slots=True)
class UncopiedSignatures:
    """The manifests of signatures that are not copied. Their subject may be an index that is copied in part."""

    subject: Manifest
    manifests: tuple[Manifest, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """What is copied: roots, manifests, blobs and referrers.

    `manifests` has children before their parents. `blobs` are unique, configs first, in the order of the stream.
    `absent` are manifests that the source lacks, and `foreign` are layers that are never copied. `has_plain_layers`
    says that `docker save` wrote the source, so plain layers must be compressed. `synthesized` are the digests of
    manifests that the source lacks, built from its `manifest.json`.

    `referrers` are the referrers that are copied, by the digest of their subject. They are not roots, because the
    user did not name them. Their manifests and blobs follow those of their subject. `skipped_referrers` are not copied.
    `uncopied_signatures` are signatures among those, if a check needs them.

    `omitted_from_source` are blobs, by digest, that the source says it omits, and why. `omitted_from_output` are blobs
    that the written archive or layout omits on purpose. `embedded` are blobs, by digest, whose bytes are in their
    descriptors' `data` (image-spec, descriptor.md).

    `is_platform_filtered` says that the user asked for platforms, and `is_skipping_referrers` that no referrers are
    copied. `incomplete_indexes` are indexes of which the source has only some platforms
    (transfer/incomplete_indexes.py).
    """

    roots: tuple[Root, ...]
    manifests: tuple[Manifest, ...]
    blobs: tuple[Descriptor, ...]
    absent: tuple[Descriptor, ...] = ()
    foreign: tuple[Descriptor, ...] = ()
    documents: Mapping[str, Document] = field(default_factory=dict, repr=False)
    has_plain_layers: bool = False
    synthesized: frozenset[str] = frozenset()
    referrers: Mapping[str, tuple[Referrer, ...]] = field(default_factory=dict)
    uncopied_signatures: tuple[UncopiedSignatures, ...] = field(default=(), repr=False)
    skipped_referrers: tuple[SkippedReferrer, ...] = ()
    omitted_from_source: Mapping[str, OmissionReason] = field(default_factory=dict)
    omitted_from_output: Mapping[str, OmissionReason] = field(default_factory=dict)
    embedded: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    is_platform_filtered: bool = field(default=False, compare=False)
    is_skipping_referrers: bool = field(default=False, compare=False)
    incomplete_indexes: tuple[IncompleteIndex, ...] = ()

    @property
    def all_referrers(self) -> Iterator[Referrer]:
        """All referrers, including referrers of referrers, in order."""
        return itertools.chain.from_iterable(self.referrers.values())

    @property
    def separate_referrers(self) -> list[Referrer]:
        """The referrers, each manifest once, without those that an index contains, such as BuildKit's attestations.

        Registries list these as referrers too if they name their subject; the images have them in any case.
        """
        children = {child.digest for document in self.documents.values() for child in document.manifests}
        referrers = {referrer.descriptor.digest: referrer for referrer in self.all_referrers}
        return [referrer for digest, referrer in referrers.items() if digest not in children]

    @property
    def size(self) -> int:
        """The total size of all blobs in bytes."""
        return sum(blob.size for blob in self.blobs)

    def reachable(self, root: Root, *, alone: bool = False) -> set[str]:
        """Return the digests of everything that a root needs, and its own. Unless `alone`, referrers are included."""
        digests: set[str] = set()
        pending = [root.descriptor.digest]
        while pending:
            digest = pending.pop()
            if digest not in digests:
                digests.add(digest)
                if document := self.documents.get(digest):
                    pending.extend(child.digest for child in children_of(document))
                referrers = () if alone else self.referrers.get(digest, ())
                pending.extend(referrer.descriptor.digest for referrer in referrers)
        return digests

    def without_referrers(self, must_skip: Callable[[Referrer], bool], reason: str) -> Graph:
        """Return the graph without the referrers that `must_skip` selects, and without referrers of these.

        `reason` is that of the entries in `skipped_referrers`.
        """
        kept = {
            subject: remaining
            for subject, referrers in self.referrers.items()
            if (remaining := tuple(referrer for referrer in referrers if not must_skip(referrer)))
        }
        return replace(self, referrers=kept).prune(self.all_referrers, reason)

    def prune(self, before: Iterable[Referrer], reason: str) -> Graph:
        """Return the graph without the documents and blobs that its roots do not need any more.

        Referrers in `before` that are no longer in the graph are added to `skipped_referrers` with this reason.
        """
        needed = set[str]().union(*map(self.reachable, self.roots))
        kept = {subject: referrers for subject, referrers in self.referrers.items() if subject in needed}
        kept_keys = {referrer.key for referrer in itertools.chain.from_iterable(kept.values())}
        skipped = [
            SkippedReferrer.from_referrer(referrer, reason) for referrer in before if referrer.key not in kept_keys
        ]
        manifests = tuple(manifest for manifest in self.manifests if manifest.descriptor.digest in needed)
        return replace(
            self,
            manifests=manifests,
            blobs=tuple(blob for blob in self.blobs if blob.digest in needed),
            absent=tuple(manifest for manifest in self.absent if manifest.digest in needed),
            foreign=tuple(layer for layer in self.foreign if layer.digest in needed),
            documents={m.descriptor.digest: self.documents[m.descriptor.digest] for m in manifests},
            referrers=kept,
            skipped_referrers=(*self.skipped_referrers, *skipped),
        )

    def image_id(self, root: Root) -> str | None:
        """Return the image ID as Docker shows it: the digest of the config."""
        document = self.documents.get(root.descriptor.digest)
        return document.config.digest if document is not None and document.config is not None else None

    def signature_payloads(self) -> set[str]:
        """Return the digests of the payloads of signatures that can be checked."""
        return {
            layer.digest
            for document in self.documents.values()
            if is_signature(document)
            for layer in document.layers
            if layer.media_type in SIGNATURE_TYPES and layer.size <= limits.MAX_SIGNATURE_PAYLOAD
        }

    def images(self) -> Iterator[tuple[Manifest, Document]]:
        """Yield the image manifests (those with a config and layers) in order, with their parsed documents."""
        for manifest in self.manifests:
            document = self.documents[manifest.descriptor.digest]
            if document.config is not None:
                yield manifest, document


def children_of(document: Document) -> tuple[Descriptor, ...]:
    """Return the children that a document needs to be complete. Its subject is not one: a referrer may come first."""
    config = (document.config,) if document.config else ()
    return (*document.manifests, *config, *document.layers)


def is_image(document: Document) -> bool:
    """Return whether this is the manifest of a runnable image, not of another artifact."""
    return document.config is not None and document.config.media_type in CONFIG_TYPES
