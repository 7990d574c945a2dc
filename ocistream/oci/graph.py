"""The image graph: root images, their manifests, blobs and referrers. `transfer/walk.py` builds graphs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ocistream.oci.descriptor import CONFIG_TYPES, Descriptor, Manifest
from ocistream.oci.referrers import Referrer, SkippedReferrer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ocistream.oci.documents import Document
    from ocistream.oci.omitted_blobs import OmissionReason
    from ocistream.oci.platforms import ChosenPlatforms

__all__ = ["Graph", "IncompleteIndex", "Root", "children_of", "is_image"]


@dataclass(frozen=True, slots=True)
class Root:
    """One image that the user asked for: its name (None where it has none) and what the name stands for.

    `origin` says where it was found, for people: `docker.io/library/nginx`, or nothing. A `stray` entry of an
    `index.json` has no image's name and is not known to be an image, such as a referrer whose subject is not there.
    `taken` says which platforms of an index the descriptor stands for, if it does not stand for the whole index.
    Of an image that only a docker-archive's `manifest.json` lists, there is no manifest: it was `made` here. The
    `image_id` is the digest of the config, where that is known before the manifests are.
    """

    name: str | None
    descriptor: Descriptor
    origin: str = ""
    is_stray: bool = field(default=False, compare=False)
    chosen_platforms: ChosenPlatforms | None = field(default=None, compare=False)
    is_synthesized: bool = field(default=False, compare=False)
    image_id: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class IncompleteIndex:
    """An index of which the source has only some platforms.

    `name` is the image's, or None; `digest` is the index's. `platforms` are those that are there, as text; `missing`
    are those that are not, and attestations of those that are. `instead` is the digest of what is taken in place of the
    index: one of its manifests, or a smaller index.
    """

    name: str | None
    digest: str
    platforms: tuple[str, ...]
    missing: tuple[str, ...]
    instead: str


@dataclass(frozen=True, slots=True)
class Graph:
    """Everything small about what is moved: one image or many.

    `manifests` has children before their parents; `blobs` are unique, configs first, in the order of the stream.
    `absent` are manifests that the source lacks, `foreign` layers that are never moved. `bare` says that `docker save`
    wrote the source: its plain layers are to be compressed. `made` are the digests of manifests that the source has
    not, and that were made of what its `manifest.json` lists. `attached` is what hangs on the images, by the digest of
    what it hangs on: no root, since nobody asked for it by name, but its manifests and blobs are among the others,
    behind those of what it hangs on. `left_behind` hangs on them too, and does not go along. `oci.omitted_blobs` are
    blobs, by digest, that the source says it was made without, and why; `leaving` are those that are left out on
    purpose of what is written.
    `embedded` are blobs, by digest, whose bytes stand in their descriptors' `data` (image-spec, descriptor.md).
    `platforms_chosen` says that the user asked for platforms, `leaves_referrers` that no referrers are wanted.
    `incomplete` are indexes of which the source has only some platforms, so that those were taken
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
    skipped_referrers: tuple[SkippedReferrer, ...] = ()
    omitted_from_source: Mapping[str, OmissionReason] = field(default_factory=dict)
    omitted_from_output: Mapping[str, OmissionReason] = field(default_factory=dict)
    embedded: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    is_platform_filtered: bool = field(default=False, compare=False)
    is_skipping_referrers: bool = field(default=False, compare=False)
    incomplete_indexes: tuple[IncompleteIndex, ...] = ()

    @property
    def all_referrers(self) -> Iterator[Referrer]:
        """All that hangs on images, or on what does, in order."""
        return itertools.chain.from_iterable(self.referrers.values())

    @property
    def size(self) -> int:
        """All blobs together, in bytes."""
        return sum(blob.size for blob in self.blobs)

    def reachable(self, root: Root, *, alone: bool = False) -> set[str]:
        """Give the digests of all that one root needs, its own included; unless `alone`, also what hangs on that."""
        found: set[str] = set()
        todo = [root.descriptor.digest]
        while todo:
            digest = todo.pop()
            if digest not in found:
                found.add(digest)
                if document := self.documents.get(digest):
                    todo.extend(child.digest for child in children_of(document))
                hanging = () if alone else self.referrers.get(digest, ())
                todo.extend(attached.descriptor.digest for attached in hanging)
        return found

    def without_referrers(self, goes: Callable[[Referrer], bool], why: str) -> Graph:
        """Give the graph less some of what hangs on images, and less what hangs on that, which is left behind."""
        kept = {
            subject: stays
            for subject, those in self.referrers.items()
            if (stays := tuple(attached for attached in those if not goes(attached)))
        }
        return replace(self, referrers=kept).prune(self.all_referrers, why)

    def prune(self, before: Iterable[Referrer], why: str) -> Graph:
        """Give the graph less what its roots do not need any more.

        What was attached `before` and has gone is left behind, for the reason `why`.
        """
        needed = set[str]().union(*map(self.reachable, self.roots))
        kept = {subject: those for subject, those in self.referrers.items() if subject in needed}
        staying = {attached.key for attached in itertools.chain.from_iterable(kept.values())}
        left = [SkippedReferrer.from_referrer(attached, why) for attached in before if attached.key not in staying]
        manifests = tuple(manifest for manifest in self.manifests if manifest.descriptor.digest in needed)
        return replace(
            self,
            manifests=manifests,
            blobs=tuple(blob for blob in self.blobs if blob.digest in needed),
            absent=tuple(manifest for manifest in self.absent if manifest.digest in needed),
            foreign=tuple(layer for layer in self.foreign if layer.digest in needed),
            documents={m.descriptor.digest: self.documents[m.descriptor.digest] for m in manifests},
            referrers=kept,
            skipped_referrers=(*self.skipped_referrers, *left),
        )

    def image_id(self, root: Root) -> str | None:
        """Return what Docker calls the ID of an image: the digest of its config."""
        document = self.documents.get(root.descriptor.digest)
        return document.config.digest if document is not None and document.config is not None else None

    def images(self) -> Iterator[tuple[Manifest, Document]]:
        """Give the image manifests (those with a config and layers) in order, with what they say."""
        for manifest in self.manifests:
            document = self.documents[manifest.descriptor.digest]
            if document.config is not None:
                yield manifest, document


def children_of(document: Document) -> tuple[Descriptor, ...]:
    """Give what a document needs to be whole; its subject is not among it (a referrer may come first)."""
    config = (document.config,) if document.config else ()
    return (*document.manifests, *config, *document.layers)


def is_image(document: Document) -> bool:
    """Say whether this is a runnable image, and not some other artifact."""
    return document.config is not None and document.config.media_type in CONFIG_TYPES
