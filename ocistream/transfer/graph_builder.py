"""Build the graph of a transfer: from the requested roots to all manifests and blobs, in order. Does no I/O.

Sources supply manifests to GraphBuilder, and it selects the platforms of an index.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, UnsupportedError
from ocistream.oci.descriptor import Descriptor, Manifest
from ocistream.oci.documents import Document, parse_document
from ocistream.oci.graph import Graph, Root, is_image
from ocistream.oci.platforms import (
    ALL_PLATFORMS,
    PlatformChoice,
    attestation_subject,
    build_smaller_index,
    check_config_platform,
    check_platform_matches,
    choose_manifests,
    describe_choice,
)
from ocistream.oci.reference import printable
from ocistream.oci.referrers import (
    EXCLUDED,
    PLATFORM_FILTERED,
    Referrer,
    SkippedReferrer,
    referrer_descriptor,
    strip_descriptor,
)
from ocistream.streams.chunks import compute_digest, size_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "GraphBuilder",
    "NestedIndexes",
    "leaves_of",
    "nested_indexes",
]


class GraphBuilder:
    """Collects manifests until nothing more is needed, then gives the `Graph`.

    `needs` are the manifests still wanted, the oldest wish first. Each is answered by `supply` (with its bytes) or
    `lacks`. A root that is an index, and of which only some platforms are wanted, is narrowed as soon as all its
    nested indexes are known, so that manifests of other platforms are never asked for.
    """

    def __init__(self, choice: PlatformChoice = ALL_PLATFORMS, *, leaves_referrers: bool = False) -> None:
        """Begin with no roots; `choice` applies to each root. With `leaves_referrers` no referrers are wanted."""
        self._skip_referrers = leaves_referrers
        self.needs: dict[str, Descriptor] = {}
        self._choice = choice
        self._roots: list[Root] = []
        self._new: list[str] = []
        #: By the digest of an index: the places of the roots that wait until all of it is known.
        self._narrowing: dict[str, list[int]] = {}
        self._nesting = NestedIndexes()
        #: By digest, the first root without a platform: whether it is for the wanted one, its config says.
        self._unlabelled: dict[str, Root] = {}
        self._raw: dict[str, Manifest] = {}
        self._documents: dict[str, Document] = {}
        self._absent: dict[str, Descriptor] = {}
        self._depths: dict[str, int] = {}
        self._configs: dict[str, Root] = {}
        self._referrers: dict[tuple[str, str | None, str], Referrer] = {}
        self._skipped_referrers: dict[SkippedReferrer, None] = {}
        #: What is needed with all that it lists, whatever platforms are wanted.
        self._complete: set[str] = set()
        #: Attestations in an index of which one image is taken alone, with that image's digest, and which are new.
        self._attestations: dict[str, tuple[Descriptor, str]] = {}
        self._new_attestations: list[tuple[Descriptor, str]] = []
        #: Indexes of which only a part is taken, with those within them.
        self._narrowed_indexes: dict[str, None] = {}
        self._blobs: dict[str, Descriptor] = {}
        self._embedded: dict[str, bytes] = {}
        self._variants = 0
        self._offered_count = 0
        self._bytes = 0

    def add_root(self, root: Root) -> None:
        """Ask for an image; the manifests it needs appear in `needs`.

        Raises:
            NotFoundError: it is a single image, for another platform than was asked for.
            UnsupportedError: there are too many.
        """
        if len(self._roots) >= limits.MAX_IMAGES:
            raise _too_many_error(f"more than {limits.MAX_IMAGES} images in one transfer")
        platform = root.descriptor.platform
        if self._choice.platforms and self._choice.explicit and platform and not root.descriptor.is_index:
            check_platform_matches(self._choice, _display_name(root), platform)
        self._roots.append(root)
        digest = root.descriptor.digest
        if root.descriptor.platform is None:
            self._unlabelled.setdefault(digest, root)
        self._need(root.descriptor, 0)
        if root.descriptor.is_index and self._choice.platforms:
            self._narrowing.setdefault(digest, []).append(len(self._roots) - 1)
            if self._nesting.is_complete(digest):
                self._narrow([digest])

    def add_referrer(self, attached: Referrer) -> None:
        """Take something along that hangs on a manifest of the graph; what it needs appears in `needs`.

        Raises:
            UnsupportedError: there is too much of it.
        """
        if len(self._referrers) >= limits.MAX_REFERRERS:
            msg = f"more than {limits.MAX_REFERRERS} signatures, SBOMs and the like hang on the images"
            raise UnsupportedError(msg, hint="move fewer images at a time, or leave those behind with --no-referrers")
        self._referrers[attached.key] = attached
        self._need_complete(attached.descriptor, 0)

    def add_skipped_referrer(self, left: SkippedReferrer) -> None:
        """Keep in mind that something does not go along."""
        self._skipped_referrers[left] = None

    def list_included(self) -> Sequence[str]:
        """Give the digests of the manifests that move, as far as is known: what hangs on one of them goes along."""
        return tuple(self._in_order())

    def list_narrowed(self) -> Sequence[str]:
        """Give the digests of the indexes of which only some platforms move: what hangs on them is left behind."""
        moving = self._in_order()
        return [digest for digest in self._narrowed_indexes if digest not in moving]

    def new_attestations(self) -> list[tuple[Descriptor, str]]:
        """List attestations of images that were taken out of an index alone, found since this was last asked.

        Each comes with the digest of its image. It may be attached; otherwise it is left behind.
        """
        new, self._new_attestations = self._new_attestations, []
        return new

    def document(self, digest: str) -> Document | None:
        """Give what a manifest says that was supplied."""
        return self._documents.get(digest)

    def new_needs(self) -> list[str]:
        """Give the digests that were added to `needs` since this was last asked; some may be answered by now."""
        new, self._new = self._new, []
        return new

    def supply(self, digest: str, raw: bytes) -> None:
        """Answer a need with the manifest's bytes.

        Raises:
            IntegrityError: they are not what the descriptor promised.
            ArchiveError: they are malformed, or there is more than the limits allow, of a config as well.
            NotFoundError: a wanted platform is not in the index.
        """
        descriptor = self.needs.pop(digest)
        if len(raw) != descriptor.size:
            raise size_error(descriptor, len(raw))
        if (got := compute_digest(raw, digest.partition(":")[0])) != digest:
            msg = f"{digest}: the bytes have the digest {got}"
            raise IntegrityError(msg)
        if (root := self._configs.get(digest)) is not None:
            check_config_platform(self._choice, _display_name(root), raw)
            return
        self._add_manifest(Manifest(descriptor, raw))
        self._update_roots(descriptor)
        self._need_children(digest)
        self._need_config(digest)

    def is_config(self, digest: str) -> bool:
        """Say whether a need is an image's config, which a registry keeps elsewhere and the graph counts as a blob."""
        return digest in self._configs

    def mark_missing(self, digest: str) -> None:
        """Answer a need by saying that the source does not have it (a layout may lack what it references)."""
        descriptor = self.needs.pop(digest)
        if digest not in self._configs:
            self._absent[digest] = descriptor
            self._update_roots(descriptor)

    def build(self) -> Graph:
        """Put it all in order, once `needs` is empty."""
        manifests = self._in_order()
        attached = {digest: those for digest, those in self._referrers_by_subject().items() if digest in manifests}
        documents = {digest: self._documents[digest] for digest in manifests}
        configs = [d.config for d in documents.values() if d.config]
        layers = [layer for d in documents.values() for layer in d.layers]
        blobs = _unique([blob for blob in (*configs, *layers) if not blob.is_foreign])
        # An index that was left out by a choice of platforms may lack what it likes.
        named = {child.digest for document in documents.values() for child in document.manifests}
        named.update(root.descriptor.digest for root in self._roots)
        named.update(one.descriptor.digest for those in attached.values() for one in those)
        left_behind = dict(self._skipped_referrers)
        told = {*(left.digest for left in left_behind), *manifests}
        for leaf, image in self._attestations.values():
            if leaf.digest not in told:
                why = EXCLUDED if self._skip_referrers else PLATFORM_FILTERED
                left_behind[SkippedReferrer(image, why, "attestation", leaf.digest)] = None
        graph = Graph(
            roots=tuple(self._roots),
            manifests=tuple(manifests.values()),
            blobs=blobs,
            absent=tuple(manifest for digest, manifest in self._absent.items() if digest in named),
            foreign=tuple({layer.digest: layer for layer in layers if layer.is_foreign}.values()),
            documents=documents,
            referrers=attached,
            skipped_referrers=tuple(left_behind),
            embedded={blob.digest: self._embedded[blob.digest] for blob in blobs if blob.digest in self._embedded},
            is_skipping_referrers=self._skip_referrers,
            is_platform_filtered=self._choice.explicit and bool(self._choice.platforms),
        )
        needed = 0
        for root in self._roots:
            needed += len(graph.reachable(root))
            if needed > limits.MAX_REQUIRED_DESCRIPTORS:
                raise _too_many_error(
                    f"the images need more than {limits.MAX_REQUIRED_DESCRIPTORS} manifests and blobs, each its own"
                )
        return graph

    def _need(self, descriptor: Descriptor, depth: int) -> None:
        digest = descriptor.digest
        _check_depth(digest, depth)
        known = self._raw.get(digest)
        promised = known.descriptor if known else self.needs.get(digest) or self._absent.get(digest)
        if promised is None:
            if descriptor.size > limits.MAX_MANIFEST:
                msg = f"manifest {digest} is larger than {limits.MAX_MANIFEST} bytes"
                raise ArchiveError(msg)
            self.needs[digest] = descriptor
            self._new.append(digest)
            self._depths[digest] = depth
        elif (promised.media_type, promised.size) != (descriptor.media_type, descriptor.size):
            msg = (
                f"{digest} is referenced as {promised.media_type} of {promised.size} bytes "
                f"and as {descriptor.media_type} of {descriptor.size} bytes"
            )
            raise ArchiveError(msg)

    def _add_manifest(self, manifest: Manifest) -> None:
        self._bytes += len(manifest.raw)
        # Before it is parsed, which takes several times its size.
        memory = self._bytes + 2 * len(manifest.raw)
        if (
            len(self._raw) >= limits.MAX_MANIFESTS
            or self._bytes > limits.MAX_GRAPH_BYTES
            or memory > limits.MAX_GRAPH_MEMORY
        ):
            msg = (
                f"more than {limits.MAX_MANIFESTS} manifests, or more than {limits.MAX_GRAPH_BYTES} bytes of them, "
                f"or {limits.MAX_GRAPH_MEMORY} with two more of the greatest, in one transfer"
            )
            raise ArchiveError(msg, hint="move fewer images or platforms at a time")
        document = parse_document(manifest.descriptor, manifest.raw)
        if is_image(document) and document.config and document.config.size > limits.MAX_CONFIG:
            msg = f"the config {document.config.digest} is larger than {limits.MAX_CONFIG} bytes"
            raise ArchiveError(msg)
        for digest, content in document.embedded.items():
            # Only content that is what its digest promises; the source may still have the blob itself.
            known = len(self._embedded) < limits.MAX_EMBEDDED_BLOBS and digest not in self._embedded
            if known and compute_digest(content, digest.partition(":")[0]) == digest:
                self._embedded[digest] = content
        config = self._intern(document.config) if document.config else None
        layers = tuple(self._intern(layer) for layer in document.layers)
        self._raw[manifest.descriptor.digest] = manifest
        self._documents[manifest.descriptor.digest] = replace(document, config=config, layers=layers, embedded={})

    def _intern(self, blob: Descriptor) -> Descriptor:
        """Give the descriptor of a blob that is held already, if it is the same: images have most layers in common.

        Raises:
            ArchiveError: there are too many.
        """
        known = self._blobs.setdefault(blob.digest, blob)
        if known == blob:
            shared = known
        else:
            # The same bytes by another type (or, if that is no foreign layer, by a size that will be found wrong).
            self._variants += 1
            shared = replace(blob, digest=known.digest)
        if len(self._blobs) + self._variants > limits.MAX_BLOBS:
            msg = f"more than {limits.MAX_BLOBS} blobs in one transfer"
            raise ArchiveError(msg, hint="move fewer images or platforms at a time")
        return shared

    def _need_config(self, digest: str) -> None:
        """Need the config of an image that is no part of an index, where one platform was asked for: it says which."""
        document = self._documents[digest]
        root = self._unlabelled.get(digest)
        if not (self._choice.platforms and self._choice.explicit and root and is_image(document)):
            return
        config = document.config
        if config is None or config.digest in self._raw or config.digest in self.needs:
            return
        self._configs[config.digest] = root
        self.needs[config.digest] = config
        self._new.append(config.digest)

    def _need_children(self, digest: str) -> None:
        """Need what a manifest lists; where only some platforms are wanted, `_narrow` says which of the images."""
        depth = self._depths[digest] + 1
        for child in self._documents[digest].manifests:
            if digest in self._complete:
                self._need_complete(child, depth)
            elif child.is_index or not self._choice.platforms:
                self._need(child, depth)

    def _need_complete(self, descriptor: Descriptor, depth: int) -> None:
        """Need a manifest and all that it lists: a platform is chosen of images, not of what hangs on them."""
        self._need(descriptor, depth)
        if descriptor.digest not in self._complete:
            self._complete.add(descriptor.digest)
            if descriptor.digest in self._documents:
                self._need_children(descriptor.digest)

    def _update_roots(self, descriptor: Descriptor) -> None:
        """Decide every root of which all indexes are known, now that one more has come or is known to be absent."""
        if descriptor.is_index and self._choice.platforms:
            document = self._documents.get(descriptor.digest)
            nested = {child.digest for child in document.manifests if child.is_index} if document else set()
            self._narrow(self._nesting.add(descriptor.digest, nested))

    def _narrow(self, whole: Sequence[str]) -> None:
        """Decide the roots that are one of these indexes."""
        for digest in whole:
            places = self._narrowing.pop(digest, ())
            if not places or digest in self._absent:
                continue
            leaves = leaves_of(self._documents, digest)
            self._offered_count += len(leaves)
            if self._offered_count > limits.MAX_PLATFORM_CANDIDATES:
                raise _too_many_error(
                    f"the images offer more than {limits.MAX_PLATFORM_CANDIDATES} manifests to choose a platform from"
                )
            chosen = choose_manifests(leaves, self._choice, _display_name(self._roots[places[0]]))
            if chosen is not None:
                index = self._roots[places[0]].descriptor
                narrowed, taken = self._narrowed(index, chosen), describe_choice(index, leaves, self._choice)
                self._narrowed_indexes.update(dict.fromkeys(nested_indexes(self._documents, digest)))
                for place in places:
                    self._roots[place] = replace(self._roots[place], descriptor=narrowed, chosen_platforms=taken)
                if len(chosen) == 1:
                    self._note_attestations(leaves, narrowed.digest)
            for child in leaves if chosen is None else chosen:
                self._need(child, 1)

    def _note_attestations(self, leaves: Sequence[Descriptor], image: str) -> None:
        for leaf in leaves:
            if attestation_subject(leaf) == image and leaf.digest not in self._attestations:
                self._attestations[leaf.digest] = leaf, image
                self._new_attestations.append((leaf, image))

    def _narrowed(self, index: Descriptor, chosen: Sequence[Descriptor]) -> Descriptor:
        return chosen[0] if len(chosen) == 1 else self._add_smaller_index(index, chosen)

    def _add_smaller_index(self, index: Descriptor, chosen: Sequence[Descriptor]) -> Descriptor:
        documents = [self._raw[digest] for digest in nested_indexes(self._documents, index.digest)]
        raw = build_smaller_index(documents, chosen)
        descriptor = Descriptor(index.media_type, compute_digest(raw), len(raw), artifact_type=index.artifact_type)
        self._add_manifest(Manifest(descriptor, raw))
        return descriptor

    def _in_order(self) -> dict[str, Manifest]:
        """Give what moves, children first, and what hangs on a manifest behind it."""
        ordered: dict[str, Manifest] = {}
        hanging = self._referrers_by_subject()
        todo = deque(root.descriptor.digest for root in self._roots)
        while todo:
            for digest in self._add_in_order(todo.popleft(), 0, ordered):
                todo.extend(attached.descriptor.digest for attached in hanging.get(digest, ()))
        return ordered

    def _referrers_by_subject(self) -> dict[str, tuple[Referrer, ...]]:
        """Give what hangs on each manifest, in one order however it was found, and described by its own words."""
        found: dict[str, list[Referrer]] = {}
        for attached in self._referrers.values():
            descriptor = attached.descriptor
            if (document := self._documents.get(descriptor.digest)) is not None:
                descriptor = self._raw[descriptor.digest].descriptor
                descriptor = (
                    referrer_descriptor(descriptor, document) if document.subject else strip_descriptor(descriptor)
                )
            found.setdefault(attached.subject, []).append(replace(attached, descriptor=descriptor))
        return {subject: tuple(sorted(those, key=lambda one: one.sort_key)) for subject, those in found.items()}

    def _add_in_order(self, digest: str, depth: int, ordered: dict[str, Manifest]) -> Iterator[str]:
        """Add a manifest behind all that it lists, and give what was added."""
        if digest in ordered or digest not in self._raw:
            return
        # A root that lists every index of a chain made each of them look as if it were near the top.
        _check_depth(digest, depth)
        for child in self._documents[digest].manifests:
            yield from self._add_in_order(child.digest, depth + 1, ordered)
        ordered[digest] = self._raw[digest]
        yield digest


def _too_many_error(what: str) -> UnsupportedError:
    return UnsupportedError(what, hint="move fewer at a time: choose them by name")


def _check_depth(digest: str, depth: int) -> None:
    if depth > limits.MAX_INDEX_DEPTH:
        msg = f"{digest}: indexes are nested more than {limits.MAX_INDEX_DEPTH} deep"
        raise ArchiveError(msg)


def _display_name(root: Root) -> str:
    return printable(root.name) if root.name else root.descriptor.digest


def _unique(blobs: Sequence[Descriptor]) -> tuple[Descriptor, ...]:
    """Drop repetitions.

    Raises:
        ArchiveError: one digest is promised with two sizes.
    """
    found: dict[str, Descriptor] = {}
    for blob in blobs:
        first = found.setdefault(blob.digest, blob)
        if first.size != blob.size:
            msg = f"{blob.digest} is referenced with {first.size} and with {blob.size} bytes"
            raise ArchiveError(msg)
    return tuple(found.values())


def leaves_of(documents: Mapping[str, Document], index: str) -> list[Descriptor]:
    """List the manifests of an index, and of the indexes within it, in order; `documents` has the known ones.

    Each index is read once: a few indexes that list each other many times would have billions of leaves.
    """
    leaves: list[Descriptor] = []
    seen = {index}
    todo = list(reversed(documents[index].manifests))
    while todo:
        descriptor = todo.pop()
        if not descriptor.is_index:
            leaves.append(descriptor)
        elif descriptor.digest in documents and descriptor.digest not in seen:
            seen.add(descriptor.digest)
            todo.extend(reversed(documents[descriptor.digest].manifests))
    return leaves


def nested_indexes(documents: Mapping[str, Document], index: str) -> list[str]:
    """List the digests of an index and of the known indexes within it, in the order of `leaves_of`."""
    found: dict[str, None] = {}
    todo = [index]
    while todo:
        digest = todo.pop()
        if digest in found or digest not in documents:
            continue
        found[digest] = None
        todo.extend(child.digest for child in reversed(documents[digest].manifests) if child.is_index)
    return list(found)


class NestedIndexes:
    """Which indexes are known whole, themselves and all within them. Every nesting is looked at once.

    (To walk what is incomplete again whenever something arrives would cost hours where thousands are nested.)
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._complete: set[str] = set()
        self._missing_count: dict[str, int] = {}
        self._parents: dict[str, list[str]] = {}

    def is_complete(self, index: str) -> bool:
        """Say whether an index and all within it is known."""
        return index in self._complete

    def add(self, index: str, nested: set[str]) -> list[str]:
        """Take note of an index and the digests of those in it; give the indexes that are whole now and were not."""
        unknown = nested - self._complete
        self._missing_count[index] = len(unknown)
        for digest in unknown:
            self._parents.setdefault(digest, []).append(index)
        whole = [] if unknown else [index]
        for digest in whole:
            self._complete.add(digest)
            for around in self._parents.pop(digest, ()):
                self._missing_count[around] -= 1
                if not self._missing_count[around]:
                    whole.append(around)
        return whole
