"""Walk from images to everything that they need, and build the graph. Does no I/O.

A walk is a generator. It yields the documents that it needs, and is sent their bytes. `run_walk` runs one for a source
that can be read in any order, `StreamedWalk` for a stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar, cast

from ocistream import limits
from ocistream.errors import ArchiveError, UnsupportedError
from ocistream.oci.descriptor import Descriptor, Manifest, check_content, compute_digest
from ocistream.oci.documents import Document, parse_document
from ocistream.oci.graph import Graph, Root, UncopiedSignatures, is_image
from ocistream.oci.platforms import (
    ALL_PLATFORMS,
    PlatformChoice,
    attestation_subject,
    build_smaller_index,
    check_config_platform,
    check_platform_matches,
    choose_manifests,
)
from ocistream.oci.reference import printable
from ocistream.oci.referrers import (
    EXCLUDED,
    PLATFORM_FILTERED,
    SIGNATURE_TYPES,
    Referrer,
    SkippedReferrer,
    referrer_descriptor,
    strip_descriptor,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Need:
    """A document that a walk needs.

    `is_config`: an image's config, which the graph counts as a blob. `is_candidate`: a manifest that may be an image or
    a referrer. If so, it is needed once more, and belongs to the graph only then.
    """

    descriptor: Descriptor
    is_config: bool = False
    is_candidate: bool = False

    @property
    def digest(self) -> str:
        """The digest of the document."""
        return self.descriptor.digest


#: Yields the needs that are new since the last answer, perhaps none, and each of them once. Is sent an answer to one of
#: the needs so far: its bytes, or None if the source lacks the document. Ends when every need was answered.
#: A pipe answers in the order in which documents arrive, so that a walk must tell all its needs at once.
Walk: TypeAlias = Generator[Sequence[Need], tuple[Need, bytes | None], T]


def run_walk(walk: Walk[T], read: Callable[[Need], bytes | None]) -> T:
    """Run a walk to its end and return its result. `read` returns a document, or None if the source lacks it."""
    needs = deque[Need]()
    try:
        needs.extend(next(walk))
        while True:
            need = needs.popleft()
            needs.extend(walk.send((need, read(need))))
    except StopIteration as end:
        return cast("T", end.value)


class StreamedWalk(Generic[T]):
    """A walk whose documents may arrive later, in the order of a stream.

    `needs` are the needs without an answer, by digest. Each is searched once, when it is new: to search thousands of
    needs again for each entry would take minutes. `result` is set when the walk has ended.
    """

    def __init__(self, walk: Walk[T], find: Callable[[Need], bytes | None] = lambda _need: None) -> None:
        """Start the walk. `find` returns a document that was read already, or None."""
        self.needs: dict[str, Need] = {}
        self.result: T | None = None
        self._find = find
        self._walk = walk
        self._new = deque(self._advance(lambda: next(walk)))

    def answer_found(self) -> None:
        """Answer the new needs whose documents were read already."""
        while self._new:
            need = self._new.popleft()
            if (raw := self._find(need)) is not None:
                self._send(need, raw)
            else:
                self.needs[need.digest] = need

    def search(self, digest: str) -> None:
        """Answer the need for a document that was just read, if there is one."""
        need = self.needs.get(digest)
        if need is not None and (raw := self._find(need)) is not None:
            self.answer(need, raw)

    def answer(self, need: Need, raw: bytes | None) -> None:
        """Answer a need, and the new needs whose documents were read already."""
        del self.needs[need.digest]
        if not self.needs:
            # A dict that has become empty keeps its memory.
            self.needs.clear()
        self._send(need, raw)
        self.answer_found()

    def skip_candidates(self) -> list[str]:
        """Stop waiting for candidates if nothing else is needed, and return their digests."""
        candidates = [need for need in self.needs.values() if need.is_candidate]
        if len(candidates) < len(self.needs):
            return []
        for need in candidates:
            self.answer(need, None)
        return [need.digest for need in candidates]

    def finish(self, read: Callable[[Need], bytes | None]) -> T:
        """Answer all needs in order, and return the result. `read` returns None for a document that is missing."""
        self._new.extendleft(reversed(self.needs.values()))
        self.needs.clear()
        while self._new:
            need = self._new.popleft()
            self._send(need, read(need))
        return cast("T", self.result)

    def _send(self, need: Need, raw: bytes | None) -> None:
        self._new.extend(self._advance(lambda: self._walk.send((need, raw))))

    def _advance(self, step: Callable[[], Sequence[Need]]) -> Sequence[Need]:
        try:
            return step()
        except StopIteration as end:
            self.result = end.value
            return ()


def parse_candidate(descriptor: Descriptor, raw: bytes) -> Document | None:
    """Return a manifest that may belong to an image, or None if it is malformed: that is reported if it is copied.

    Raises:
        IntegrityError: the bytes do not match the descriptor.
    """
    check_content(descriptor, raw)
    try:
        return parse_document(descriptor, raw)
    except (ArchiveError, UnsupportedError):
        return None


def walk_images(roots: Iterable[Root], choice: PlatformChoice = ALL_PLATFORMS) -> Walk[Graph]:
    """Walk to everything that these images need, without referrers. The result is the graph."""
    walk = GraphWalk(choice)
    for root in roots:
        walk.add_root(root)
    yield from walk.settle()
    return walk.build()


class GraphWalk:
    """Collects the manifests of images and referrers, and builds the `Graph`.

    `settle` walks to everything that was added, and `build` returns the graph. If only some platforms are wanted, they
    are chosen once all indexes are known. So manifests of other platforms are never requested.
    """

    def __init__(self, choice: PlatformChoice, *, skip_referrers: bool = False) -> None:
        """Start without roots; `choice` applies to each root. With `skip_referrers`, no referrers are wanted."""
        self._skip_referrers = skip_referrers
        #: Needs without an answer, by digest, and those that `settle` has not yielded yet.
        self._needs: dict[str, Need] = {}
        self._new: list[Need] = []
        self._choice = choice
        self._roots: list[Root] = []
        #: By the digest of an index: positions of the roots whose platforms are not chosen yet.
        self._narrowing: dict[str, list[int]] = {}
        #: By digest: the first root without a platform. Its config says whether it is the wanted one.
        self._unlabelled: dict[str, Root] = {}
        self._raw: dict[str, Manifest] = {}
        self._documents: dict[str, Document] = {}
        self._absent: dict[str, Descriptor] = {}
        self._depths: dict[str, int] = {}
        self._configs: dict[str, Root] = {}
        self._referrers: dict[tuple[str, str | None, str], Referrer] = {}
        self._signatures: dict[tuple[str, str | None, str], Referrer] = {}
        self._skipped_referrers: dict[SkippedReferrer, None] = {}
        #: Manifests that are needed with all their children, even if platforms were chosen.
        self._complete: set[str] = set()
        #: Attestations of images that were taken out of an index alone, with the image's digest; then the new ones.
        self._attestations: dict[str, tuple[Descriptor, str]] = {}
        self._new_attestations: list[tuple[Descriptor, str]] = []
        #: Indexes of which only some platforms are taken, and the indexes within them.
        self._narrowed_indexes: dict[str, None] = {}
        self._blobs: dict[str, Descriptor] = {}
        self._embedded: dict[str, bytes] = {}
        self._variants = 0
        self._offered_count = 0
        self._bytes = 0

    def add_root(self, root: Root) -> None:
        """Add an image. `settle` walks to the manifests that it needs.

        Raises:
            NotFoundError: this is a single image, for another platform than the requested ones.
            UnsupportedError: there are too many images.
        """
        if len(self._roots) >= limits.MAX_IMAGES:
            raise _too_many_error(f"one transfer has more than {limits.MAX_IMAGES} images")
        platform = root.descriptor.platform
        if self._choice.platforms and self._choice.explicit and platform and not root.descriptor.is_index:
            check_platform_matches(self._choice, _display_name(root), platform)
        if self._choice.platforms and not self._choice.explicit and not root.descriptor.is_index:
            root = replace(root, default_platform=self._choice.platforms[0])
        self._roots.append(root)
        digest = root.descriptor.digest
        if root.descriptor.platform is None:
            self._unlabelled.setdefault(digest, root)
        self._need(root.descriptor, 0)
        if root.descriptor.is_index and self._choice.platforms:
            self._narrowing.setdefault(digest, []).append(len(self._roots) - 1)

    def add_referrer(self, referrer: Referrer) -> None:
        """Add a referrer of a manifest in the graph. `settle` walks to the manifests that it needs.

        A referrer is not a root: names and results are about the requested images.

        Raises:
            UnsupportedError: there are too many referrers.
        """
        if len(self._referrers) >= limits.MAX_REFERRERS:
            msg = f"the images have more than {limits.MAX_REFERRERS} referrers"
            raise UnsupportedError(msg, hint="copy fewer images at a time, or use --no-referrers")
        self._referrers[referrer.key] = referrer
        self._need_complete(referrer.descriptor, 0)

    def add_signature(self, referrer: Referrer) -> None:
        """Add a signature that is checked and not copied. `settle` walks to its manifest.

        Raises:
            UnsupportedError: there are too many signatures.
        """
        if len(self._signatures) >= limits.MAX_SIGNATURES:
            raise _too_many_error(f"the images have more than {limits.MAX_SIGNATURES} signatures")
        self._signatures[referrer.key] = referrer
        self._need(referrer.descriptor, 0)

    def add_skipped_referrer(self, referrer: SkippedReferrer) -> None:
        """Record a referrer that is not copied."""
        self._skipped_referrers[referrer] = None

    def list_included(self) -> Sequence[str]:
        """List the digests of the manifests to copy that are known so far: their referrers are copied too."""
        return tuple(self._in_order())

    def list_narrowed(self) -> Sequence[str]:
        """List the digests of indexes of which only some platforms are copied.

        Their referrers are skipped: they refer to a digest that does not arrive.
        """
        included = self._in_order()
        return [digest for digest in self._narrowed_indexes if digest not in included]

    def new_attestations(self) -> list[tuple[Descriptor, str]]:
        """List the attestations of images taken out of an index alone that were found since the last call.

        Each comes with the digest of its image. The caller may add it as a referrer; otherwise it is skipped.
        """
        new, self._new_attestations = self._new_attestations, []
        return new

    def document(self, digest: str) -> Document | None:
        """Return the parsed form of a supplied manifest."""
        return self._documents.get(digest)

    def settle(self) -> Walk[None]:
        """Walk to everything that the images and referrers need, until each manifest is known or missing.

        Raises:
            IntegrityError: the bytes of a document do not match the descriptor.
            ArchiveError: a manifest, or a config, is malformed or exceeds a limit.
            NotFoundError: an index lacks a wanted platform.
        """
        while self._needs or self._narrowing:
            if not self._needs:
                self._narrow()
                continue
            new, self._new = self._new, []
            need, raw = yield new
            del self._needs[need.digest]
            if raw is not None:
                self._add_document(need, raw)
            elif not need.is_config:
                self._absent[need.digest] = need.descriptor
        # A dict that has become empty keeps its memory.
        self._needs.clear()

    def _add_document(self, need: Need, raw: bytes) -> None:
        descriptor = need.descriptor
        check_content(descriptor, raw)
        if need.is_config:
            check_config_platform(self._choice, _display_name(self._configs[need.digest]), raw)
            return
        self._add_manifest(Manifest(descriptor, raw))
        self._need_children(need.digest)
        self._need_config(need.digest)

    def build(self) -> Graph:
        """Return the graph of what `settle` has found."""
        manifests = self._in_order()
        referrers = {
            digest: subject_referrers
            for digest, subject_referrers in self._referrers_by_subject().items()
            if digest in manifests
        }
        documents = {digest: self._documents[digest] for digest in manifests}
        configs = [d.config for d in documents.values() if d.config]
        layers = [layer for d in documents.values() for layer in d.layers]
        # Signatures come first: the reader of a pipe checks them before the first layer of an image.
        layers.sort(key=lambda layer: layer.media_type not in SIGNATURE_TYPES)
        blobs = _unique([blob for blob in (*configs, *layers) if not blob.is_foreign])
        # An index that is not part of the graph, by a choice of platforms, may lack anything.
        named = {child.digest for document in documents.values() for child in document.manifests}
        named.update(root.descriptor.digest for root in self._roots)
        named.update(item.descriptor.digest for subject_referrers in referrers.values() for item in subject_referrers)
        skipped = dict(self._skipped_referrers)
        known = {*(referrer.digest for referrer in skipped), *manifests}
        for leaf, image in self._attestations.values():
            if leaf.digest not in known:
                reason = EXCLUDED if self._skip_referrers else PLATFORM_FILTERED
                skipped[SkippedReferrer(image, reason, "attestation", leaf.digest)] = None
        graph = Graph(
            roots=tuple(self._roots),
            manifests=tuple(manifests.values()),
            blobs=blobs,
            absent=tuple(manifest for digest, manifest in self._absent.items() if digest in named),
            foreign=tuple({layer.digest: layer for layer in layers if layer.is_foreign}.values()),
            documents=documents,
            referrers=referrers,
            uncopied_signatures=self._list_uncopied_signatures(),
            skipped_referrers=tuple(skipped),
            embedded={blob.digest: self._embedded[blob.digest] for blob in blobs if blob.digest in self._embedded},
            is_skipping_referrers=self._skip_referrers,
            is_platform_filtered=self._choice.explicit and bool(self._choice.platforms),
        )
        needed = 0
        for root in self._roots:
            needed += len(graph.reachable(root))
            if needed > limits.MAX_REQUIRED_DESCRIPTORS:
                raise _too_many_error(
                    f"the images need more than {limits.MAX_REQUIRED_DESCRIPTORS} manifests and blobs, "
                    "counted for each image"
                )
        return graph

    def _need(self, descriptor: Descriptor, depth: int) -> None:
        digest = descriptor.digest
        _check_depth(digest, depth)
        known = self._raw.get(digest) or self._needs.get(digest)
        known_descriptor = known.descriptor if known else self._absent.get(digest)
        if known_descriptor is None:
            if descriptor.size > limits.MAX_MANIFEST:
                msg = f"manifest {digest} is larger than {limits.MAX_MANIFEST} bytes"
                raise ArchiveError(msg)
            self._needs[digest] = need = Need(descriptor)
            self._new.append(need)
            self._depths[digest] = depth
        elif (known_descriptor.media_type, known_descriptor.size) != (descriptor.media_type, descriptor.size):
            msg = (
                f"{digest} is referenced as {known_descriptor.media_type} of {known_descriptor.size} bytes "
                f"and as {descriptor.media_type} of {descriptor.size} bytes"
            )
            raise ArchiveError(msg)

    def _add_manifest(self, manifest: Manifest) -> None:
        self._bytes += len(manifest.raw)
        # Checked before parsing, which takes several times the size.
        memory = self._bytes + 2 * len(manifest.raw)
        if (
            len(self._raw) >= limits.MAX_MANIFESTS
            or self._bytes > limits.MAX_GRAPH_BYTES
            or memory > limits.MAX_GRAPH_MEMORY
        ):
            msg = (
                f"the images have more than {limits.MAX_MANIFESTS} manifests, or more than "
                f"{limits.MAX_GRAPH_BYTES} bytes of manifests ({limits.MAX_GRAPH_MEMORY} including memory "
                "to parse the next one)"
            )
            raise ArchiveError(msg, hint="copy fewer images or platforms at a time")
        document = parse_document(manifest.descriptor, manifest.raw)
        if is_image(document) and document.config and document.config.size > limits.MAX_CONFIG:
            msg = f"the config {document.config.digest} is larger than {limits.MAX_CONFIG} bytes"
            raise ArchiveError(msg)
        for digest, content in document.embedded.items():
            # Only content that matches its digest; the source may still have the blob itself.
            is_new = len(self._embedded) < limits.MAX_EMBEDDED_BLOBS and digest not in self._embedded
            if is_new and compute_digest(content, digest.partition(":")[0]) == digest:
                self._embedded[digest] = content
        config = self._intern(document.config) if document.config else None
        layers = tuple(self._intern(layer) for layer in document.layers)
        self._raw[manifest.descriptor.digest] = manifest
        self._documents[manifest.descriptor.digest] = replace(document, config=config, layers=layers, embedded={})

    def _intern(self, blob: Descriptor) -> Descriptor:
        """Return the known descriptor of the same blob, if there is one: images share most of their layers."""
        first = self._blobs.setdefault(blob.digest, blob)
        if first == blob:
            shared = first
        else:
            # The same bytes with another media type (or with a wrong size, which is found later unless the layer is
            # foreign).
            self._variants += 1
            shared = replace(blob, digest=first.digest)
        if len(self._blobs) + self._variants > limits.MAX_BLOBS:
            msg = f"one transfer has more than {limits.MAX_BLOBS} blobs"
            raise ArchiveError(msg, hint="copy fewer images or platforms at a time")
        return shared

    def _need_config(self, digest: str) -> None:
        """Need the config of a single image if a platform was requested, since only the config has its platform.

        The config is a need like the manifests, so every source checks it, a pipe too.
        """
        document = self._documents[digest]
        root = self._unlabelled.get(digest)
        if not (self._choice.platforms and self._choice.explicit and root and is_image(document)):
            return
        config = document.config
        if config is None or config.digest in self._raw or config.digest in self._needs:
            return
        self._configs[config.digest] = root
        self._needs[config.digest] = need = Need(config, is_config=True)
        self._new.append(need)

    def _need_children(self, digest: str) -> None:
        """Need the manifests that this one lists; if only some platforms are wanted, `_narrow` adds those later."""
        depth = self._depths[digest] + 1
        for child in self._documents[digest].manifests:
            if digest in self._complete:
                self._need_complete(child, depth)
            elif child.is_index or not self._choice.platforms:
                self._need(child, depth)

    def _need_complete(self, descriptor: Descriptor, depth: int) -> None:
        """Need a manifest and everything that it lists: a platform is chosen for images, not for their referrers."""
        self._need(descriptor, depth)
        if descriptor.digest not in self._complete:
            self._complete.add(descriptor.digest)
            if descriptor.digest in self._documents:
                self._need_children(descriptor.digest)

    def _narrow(self) -> None:
        """Choose the platforms of the new roots. All indexes are known, or missing."""
        narrowing, self._narrowing = self._narrowing, {}
        for digest, positions in narrowing.items():
            if digest in self._absent:
                continue
            leaves = leaves_of(self._documents, digest)
            self._offered_count += len(leaves)
            if self._offered_count > limits.MAX_PLATFORM_CANDIDATES:
                raise _too_many_error(
                    f"the images have more than {limits.MAX_PLATFORM_CANDIDATES} manifests to choose a platform from"
                )
            index = self._roots[positions[0]].descriptor
            choice = choose_manifests(index, leaves, self._choice, _display_name(self._roots[positions[0]]))
            if choice is not None:
                leaves, description = choice
                # Registries refuse an index whose manifests they lack, so several platforms make a smaller index. The
                # manifests stay byte for byte as they are.
                narrowed = leaves[0] if len(leaves) == 1 else self._add_smaller_index(index, leaves)
                self._narrowed_indexes.update(dict.fromkeys(nested_indexes(self._documents, digest)))
                for position in positions:
                    self._roots[position] = replace(
                        self._roots[position], descriptor=narrowed, chosen_platforms=description
                    )
                if len(leaves) == 1:
                    self._note_attestations(leaves_of(self._documents, digest), narrowed.digest)
            for child in leaves:
                self._need(child, 1)

    def _note_attestations(self, leaves: Sequence[Descriptor], image: str) -> None:
        for leaf in leaves:
            if attestation_subject(leaf) == image and leaf.digest not in self._attestations:
                self._attestations[leaf.digest] = leaf, image
                self._new_attestations.append((leaf, image))

    def _add_smaller_index(self, index: Descriptor, chosen: Sequence[Descriptor]) -> Descriptor:
        documents = [self._raw[digest] for digest in nested_indexes(self._documents, index.digest)]
        smaller = build_smaller_index(index, documents, chosen)
        self._add_manifest(smaller)
        return smaller.descriptor

    def _in_order(self) -> dict[str, Manifest]:
        """Return the manifests to copy: children first, and referrers after their subject."""
        ordered: dict[str, Manifest] = {}
        referrers = self._referrers_by_subject()
        todo = deque(root.descriptor.digest for root in self._roots)
        while todo:
            for digest in self._add_in_order(todo.popleft(), 0, ordered):
                todo.extend(referrer.descriptor.digest for referrer in referrers.get(digest, ()))
        return ordered

    def _referrers_by_subject(self) -> dict[str, tuple[Referrer, ...]]:
        """Return the referrers of each manifest, sorted, so that the same image gives the same archive.

        A referrer is described by its own manifest, not by the list that named it: registries omit annotations there.
        """
        by_subject: dict[str, list[Referrer]] = {}
        for referrer in self._referrers.values():
            descriptor = referrer.descriptor
            if (document := self._documents.get(descriptor.digest)) is not None:
                descriptor = self._raw[descriptor.digest].descriptor
                descriptor = (
                    referrer_descriptor(descriptor, document) if document.subject else strip_descriptor(descriptor)
                )
            by_subject.setdefault(referrer.subject, []).append(replace(referrer, descriptor=descriptor))
        return {
            subject: tuple(sorted(referrers, key=lambda item: item.sort_key))
            for subject, referrers in by_subject.items()
        }

    def _list_uncopied_signatures(self) -> tuple[UncopiedSignatures, ...]:
        found: dict[str, dict[str, Manifest]] = {}
        for referrer in self._signatures.values():
            if (manifest := self._raw.get(referrer.descriptor.digest)) is not None:
                found.setdefault(referrer.subject, {})[manifest.descriptor.digest] = manifest
        return tuple(
            UncopiedSignatures(self._raw[subject], tuple(manifests.values()))
            for subject, manifests in found.items()
            if subject in self._raw
        )

    def _add_in_order(self, digest: str, depth: int, ordered: dict[str, Manifest]) -> Iterator[str]:
        """Add a manifest after everything that it lists, and yield the digests that were added."""
        if digest in ordered or digest not in self._raw:
            return
        # A root that lists every index of a chain made each of them look as if it were near the top.
        _check_depth(digest, depth)
        for child in self._documents[digest].manifests:
            yield from self._add_in_order(child.digest, depth + 1, ordered)
        ordered[digest] = self._raw[digest]
        yield digest


def _too_many_error(what: str) -> UnsupportedError:
    return UnsupportedError(what, hint="copy fewer images at a time: choose them by name")


def _check_depth(digest: str, depth: int) -> None:
    if depth > limits.MAX_INDEX_DEPTH:
        msg = f"{digest}: indexes are nested more than {limits.MAX_INDEX_DEPTH} deep"
        raise ArchiveError(msg)


def _display_name(root: Root) -> str:
    return printable(root.name) if root.name else root.descriptor.digest


def _unique(blobs: Sequence[Descriptor]) -> tuple[Descriptor, ...]:
    """Drop repetitions."""
    first_by_digest: dict[str, Descriptor] = {}
    for blob in blobs:
        first = first_by_digest.setdefault(blob.digest, blob)
        if first.size != blob.size:
            msg = f"{blob.digest} is referenced with {first.size} bytes and with {blob.size} bytes"
            raise ArchiveError(msg)
    return tuple(first_by_digest.values())


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
    indexes: dict[str, None] = {}
    todo = [index]
    while todo:
        digest = todo.pop()
        if digest in indexes or digest not in documents:
            continue
        indexes[digest] = None
        todo.extend(child.digest for child in reversed(documents[digest].manifests) if child.is_index)
    return list(indexes)
