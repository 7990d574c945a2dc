"""Build the graph of the images chosen from an `index.json`, with their referrers (signatures, SBOMs).

An entry without a name may be an image or a referrer: its manifest, its tag or a referrers list decides.
This module opens no files: the sources supply the manifests.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import ArchiveError, NotFoundError, UnsupportedError, UsageError
from ocistream.layout.index import build_roots, entry_name_of, subject_of, tag_of
from ocistream.oci.documents import parse_document
from ocistream.oci.graph import Root
from ocistream.oci.omitted_blobs import OMITTED_ANNOTATION, VOLUME, parse_omitted
from ocistream.oci.reference import printable
from ocistream.oci.referrers import (
    DUPLICATE_TAG,
    EXCLUDED,
    NOT_FOUND,
    PLATFORM_FILTERED,
    SUBJECT_MISMATCH,
    SUBJECT_MISSING,
    UNREADABLE,
    Referrer,
    ReferrerMode,
    SkippedReferrer,
    classify_referrer,
    cosign_subject,
    fallback_tag,
    is_fallback_tag,
    referrer_descriptor,
)
from ocistream.streams.chunks import size_error
from ocistream.transfer.graph_builder import GraphBuilder

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from ocistream.layout.index import ImageSelector
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.documents import Document
    from ocistream.oci.graph import Graph
    from ocistream.oci.platforms import PlatformChoice

__all__ = [
    "IndexGraphBuilder",
    "ReferrerCandidate",
    "ReferrerResolver",
]


@dataclass(frozen=True, slots=True)
class ReferrerCandidate:
    """An entry that may hang on an image: by its tag, or by its manifest's subject.

    `claimed_by` is the tag of the list that names it, if it has no entry of its own.
    """

    root: Root
    tag: str | None
    listed_by: str | None = None

    @property
    def digest(self) -> str:
        """Give the digest of what may hang there."""
        return self.root.descriptor.digest


class ReferrerResolver:
    """What may hang on the images of one graph: the `others`, less those that went along, or were left."""

    def __init__(self, builder: GraphBuilder, referrers: ReferrerMode) -> None:
        """Begin with nothing; what goes along is attached to the graph that `builder` makes."""
        self._builder = builder
        self._referrers = referrers
        self.candidates: list[ReferrerCandidate] = []
        #: The digests of those, and, by digest, the tags of those that may be lists of referrers.
        self._known: set[str] = set()
        self._lists: dict[str, str] = {}
        self._subjects: dict[str, str] = {}
        self._descriptors: dict[str, Descriptor] = {}
        self._skipped: dict[str, str] = {}
        self._tags: dict[tuple[str, str], str] = {}
        #: How many are known by lists of referrers alone.
        self._listed_count = 0
        #: How deep it was gone into what hangs on each other.
        self._depth = 0

    def begin(self) -> list[Descriptor]:
        """Give what is to be looked at: all of `others`, which is complete but for what lists of referrers name."""
        self._known = {other.digest for other in self.candidates}
        self._lists = {other.digest: other.tag for other in self.candidates if other.tag and is_fallback_tag(other.tag)}
        return [other.root.descriptor for other in self.candidates]

    def add_attestation(self, attestation: Descriptor, image: str) -> None:
        """Take an attestation into account that an index lists beside its image, which is taken without the index."""
        if attestation.digest not in self._known:
            self._known.add(attestation.digest)
            self.candidates.append(ReferrerCandidate(Root(None, attestation), None, fallback_tag(image)))

    def is_known(self, digest: str) -> bool:
        """Say whether it is known of a manifest on whom it hangs."""
        return digest in self._descriptors

    def listed_roots(self) -> list[Root]:
        """Give those that have entries of their own."""
        return [other.root for other in self.candidates if not other.listed_by]

    def find_images(self) -> dict[int, Root]:
        """Return a root that is not stray for each entry whose manifest says that it is an image of its own.

        The keys are the ids of the stray roots that these replace. A manifest that an index lists which moves, or of
        which other platforms move, is a part of that image.
        """
        parts = {*self._builder.list_included(), *self._narrowed_digests()}
        found: dict[int, Root] = {}
        for place, other in enumerate(self.candidates):
            is_referrer = other.tag or other.digest in self._subjects or subject_of(other.root.descriptor) is not None
            if (
                other.root.is_stray
                and not is_referrer
                and other.digest in self._descriptors
                and other.digest not in parts
            ):
                found[id(other.root)] = image = replace(other.root, is_stray=False)
                self.candidates[place] = replace(other, root=image)
        return found

    def skip_strays(self) -> None:
        """Note each stray entry that does not move. All images of the source were chosen before."""
        parts = {*self._builder.list_included(), *self._narrowed_digests()}
        for other in self.candidates:
            if other.root.is_stray and not other.listed_by and other.digest not in parts:
                subject, tag = next(self._find_subjects(other), (subject_of(other.root.descriptor), other.tag))
                is_known = subject is not None or tag is not None
                self._skip(other, subject, tag, SUBJECT_MISSING if is_known else UNREADABLE)

    def remove_chosen(self, chosen: AbstractSet[int], digests: AbstractSet[str]) -> None:
        """Take images out: the very roots that were `chosen`, by id, and what else is of their digests."""
        self.candidates = [
            other
            for other in self.candidates
            if id(other.root) not in chosen and (other.tag or other.digest not in digests)
        ]

    def add_document(self, entry: Descriptor, document: Document) -> list[Descriptor]:
        """Keep of a manifest on whom it hangs; and if it is a list of such, give those of them that are new.

        Raises:
            UnsupportedError: lists name too many.
        """
        new = []
        self._descriptors[entry.digest] = referrer_descriptor(entry, document)
        if document.subject is not None:
            self._subjects[entry.digest] = document.subject.digest
        if entry.is_index and (tag := self._lists.get(entry.digest)) is not None:
            for child in document.manifests:
                if child.digest not in self._known:
                    self._known.add(child.digest)
                    self._listed_count += 1
                    if self._listed_count > limits.MAX_REFERRERS:
                        msg = f"more than {limits.MAX_REFERRERS} signatures, SBOMs and the like are listed"
                        raise UnsupportedError(msg, hint="move fewer images at a time")
                    self.candidates.append(ReferrerCandidate(Root(None, child), None, tag))
                    new.append(child)
        return new

    # -- what hangs on whom ------------------------------------------------------------------------------

    def attach_next(self) -> bool:
        """Take along what hangs on what moves; once nothing does any more, leave what hangs on what stays.

        Raises:
            UnsupportedError: it hangs on each other too deeply.
        """
        moving, staying = self._builder.list_included(), self._narrowed_digests()
        self._remove_referrer_lists((*moving, *staying, *self._skipped))
        if self._referrers == "along" and self._attach_to(set(moving)):
            self._depth += 1
            if self._depth > limits.MAX_REFERRER_DEPTH:
                msg = f"signatures, SBOMs and the like hang on each other more than {limits.MAX_REFERRER_DEPTH} deep"
                raise UnsupportedError(msg, hint="leave them behind with --no-referrers")
            return True
        self._skip_referrers_of((*moving, *staying, *self._skipped))
        self._remove_referrer_lists((*moving, *staying, *self._skipped))
        return False

    def _narrowed_digests(self) -> set[str]:
        cut = set(self._builder.list_narrowed())
        for document in filter(None, map(self._builder.document, tuple(cut))):
            # What hangs on another platform's image has no place here either.
            cut.update(child.digest for child in document.manifests)
        return cut

    def _remove_referrer_lists(self, known: Iterable[str]) -> None:
        """Drop lists of what refers to these: they are made anew wherever they are needed."""
        tags = set(map(fallback_tag, known))
        self.candidates = [
            other for other in self.candidates if other.tag not in tags or other.digest not in self._descriptors
        ]

    def _attach_to(self, moving: set[str]) -> bool:
        """Take along what hangs on these themselves; say whether there was anything."""
        attached, staying = False, []
        for other in self.candidates:
            hooks = [hook for hook in self._find_subjects(other) if hook[0] in moving]
            for subject, tag in hooks:
                if tag is not None and self._tags.setdefault((subject, tag), other.digest) != other.digest:
                    self._skip(other, subject, tag, DUPLICATE_TAG)
                else:
                    self._builder.add_referrer(Referrer(other.root.descriptor, subject, tag))
                    attached = True
            if not hooks:
                staying.append(other)
        self.candidates = staying
        return attached

    def _skip_referrers_of(self, known: Iterable[str]) -> None:
        """Leave what hangs on these, and on that in turn: however long such a chain is, each is looked at once."""
        hooked: dict[str, list[tuple[ReferrerCandidate, str | None]]] = {}
        lost: dict[str, list[ReferrerCandidate]] = {}
        disowned: dict[str, list[ReferrerCandidate]] = {}
        for other in self.candidates:
            hooks = list(self._find_subjects(other))
            for subject, tag in hooks:
                hooked.setdefault(subject, []).append((other, tag))
            if not hooks and (said := subject_of(other.root.descriptor)) is not None:
                disowned.setdefault(said, []).append(other)
            if other.listed_by is not None and other.digest not in self._descriptors:
                # If its list is that of something that is known here, it is not there.
                lost.setdefault(other.listed_by, []).append(other)
        left: set[int] = set()
        todo = deque(known)
        while todo:
            subject = todo.popleft()
            why = EXCLUDED if self._referrers == "left" else self._skipped.get(subject, PLATFORM_FILTERED)
            leaving = [(other, tag, why) for other, tag in hooked.pop(subject, ())]
            leaving += [(other, None, NOT_FOUND) for other in lost.pop(fallback_tag(subject), ())]
            for other in disowned.pop(subject, ()):
                leaving.append((other, None, SUBJECT_MISMATCH if other.digest in self._descriptors else NOT_FOUND))
            for other, tag, reason in leaving:
                self._skip(other, subject, tag, reason)
                left.add(id(other))
                todo.append(other.digest)
        self.candidates = [other for other in self.candidates if id(other) not in left]

    def _find_subjects(self, other: ReferrerCandidate) -> Iterator[tuple[str, str | None]]:
        """Give the digests on which something hangs, and the tag by which it does."""
        if (subject := self._subjects.get(other.digest)) is not None:
            yield subject, None
        if other.tag and (subject := cosign_subject(other.tag)) is not None:
            yield subject, other.tag

    def _skip(self, other: ReferrerCandidate, subject: str | None, tag: str | None, reason: str) -> None:
        self._skipped[other.digest] = reason
        kind = self._descriptors.get(other.digest, other.root.descriptor).artifact_type
        self._builder.add_skipped_referrer(
            SkippedReferrer(subject, reason, classify_referrer(kind, tag), other.digest, tag)
        )


class IndexGraphBuilder:
    """The graph of the chosen images, and of what hangs on them, while its manifests are still being brought.

    `needed` says which to bring next, once `begin` was told what there is; each is answered by `supply` or `lacks`.
    """

    def __init__(self, select: ImageSelector, platforms: PlatformChoice, referrers: ReferrerMode) -> None:
        """Begin with nothing; `select` chooses among what are images."""
        self._builder = GraphBuilder(platforms, leaves_referrers=referrers == "left")
        self._resolver = ReferrerResolver(self._builder, referrers)
        self._select = select
        self._referrers = referrers
        self._all: list[Root] = []
        self._images: list[Root] = []
        #: The very roots that were chosen: two entries may be alike.
        self._chosen: set[int] = set()
        self._chosen_digests: set[str] = set()
        self._is_chosen = False
        #: Digests of what is no image beside others, but would be chosen if all were.
        self._prospective: set[str] = set()
        self._needed_candidates: dict[str, Descriptor] = {}
        self._buffered: dict[str, bytes] = {}
        self._buffered_bytes = 0
        #: What the index says of the whole, and of blobs that are not there.
        self._annotations: Mapping[str, str] = {}
        self._omitted_text = ""
        self._new: list[str] = []
        self._must_choose_again = True
        self._has_reported_strays = False
        self._selection_error: UsageError | None = None

    def begin(
        self,
        entries: Sequence[Descriptor],
        annotations: Mapping[str, str] | None = None,
        image_digests: Container[str] = (),
    ) -> None:
        """Learn what is listed, and choose the images, if that is possible yet; `notes` are the index's, of ours.

        `images` are the digests of entries that are images for certain, even without a name: they were made.

        Raises:
            NotFoundError, UsageError: as the choice has it.
        """
        self._annotations = annotations or {}
        self._omitted_text = self._annotations.get(OMITTED_ANNOTATION, "")
        self._all = [
            replace(root, is_synthesized=root.descriptor.digest in image_digests) for root in build_roots(entries)
        ]
        if self._referrers == "listed":
            self._must_choose_again, self._has_reported_strays, self._images = False, True, self._all
            self._choose()
            return
        tags = [tag_of(entry_name_of(root.descriptor)) for root in self._all]
        special = [tag is not None and (is_fallback_tag(tag) or cosign_subject(tag) is not None) for tag in tags]
        if len({root.descriptor.digest for root in self._all}) > 1:
            # Whether an entry without an image's name is an image, its manifest says.
            self._all = [
                root
                if root.is_synthesized or (root.name and not is_special and subject_of(root.descriptor) is None)
                else replace(root, is_stray=True)
                for root, is_special in zip(self._all, special, strict=True)
            ]
        self._images = [root for root in self._all if not root.is_stray]
        others = [
            ReferrerCandidate(root, tag if is_special else None)
            for root, tag, is_special in zip(self._all, tags, special, strict=True)
            if root.is_stray
        ]
        self._resolver.candidates = others
        self._prospective = {root.descriptor.digest for root in self._try_select(self._all) or ()}
        if self._images or not others:
            try:
                self._choose()
            except UsageError as error:
                if not others:
                    raise
                # Said when it is known which of the other entries are images as well.
                self._selection_error = error
        for entry in self._resolver.begin():
            self._need_candidate(entry)

    def next_needed(self) -> Descriptor | None:
        """Give a manifest (or config) that is needed, or None once the graph is complete."""
        while True:
            if self._builder.needs:
                return next(iter(self._builder.needs.values()))
            if self._needed_candidates:
                return next(iter(self._needed_candidates.values()))
            if not self._take_next_step():
                return None

    def check_choice(self) -> None:
        """Call before blobs move that come before the graph is complete.

        Raises:
            UsageError: the images that have a name allow no choice, whatever the other entries are.
        """
        if self._selection_error is not None:
            raise self._selection_error

    def is_needed(self, digest: str) -> bool:
        """Say whether this is needed."""
        return digest in self._builder.needs or digest in self._needed_candidates

    def check_size(self, digest: str, size: int) -> None:
        """Refuse what is needed for an image and has another size, in bytes, than was promised: nobody need read it.

        Raises:
            IntegrityError: it has.
        """
        descriptor = self._builder.needs.get(digest)
        if descriptor is not None and descriptor.size != size:
            raise size_error(descriptor, size)

    def is_config(self, digest: str) -> bool:
        """Say whether a need is an image's config, which the graph counts as a blob."""
        return self._builder.is_config(digest)

    def document(self, digest: str) -> Document | None:
        """Give what a manifest says that was supplied for an image."""
        return self._builder.document(digest)

    def new_needs(self) -> list[str]:
        """Give the digests that have become needed since this was last asked; some may be answered by now."""
        new, self._new = self._new, []
        return new

    def supply(self, digest: str, raw: bytes) -> None:
        """Answer a need with bytes.

        Raises:
            OcistreamError: as `GraphBuilder.supply` has it; what may only hang on an image is not held to that yet.
        """
        entry = self._needed_candidates.pop(digest, None)
        if digest in self._builder.needs:
            self._builder.supply(digest, raw)
            if entry is not None and (document := self._builder.document(digest)) is not None:
                self._add_document(entry, document)
        elif entry is not None:
            self._buffer(digest, raw)
            self._read_candidate(entry, raw)
        self._supply_buffered()

    def mark_missing(self, digest: str) -> None:
        """Answer a need by saying that it is not there."""
        self._needed_candidates.pop(digest, None)
        if digest in self._builder.needs:
            self._builder.mark_missing(digest)
        self._supply_buffered()

    def skip_candidates(self) -> set[str]:
        """Wait no longer for what may only hang on an image, if all that the chosen ones need is there.

        What was waited for is given: if any of it comes after all, the graph is not the right one.
        """
        if not self._is_chosen or self._builder.needs:
            return set()
        given_up = set(self._needed_candidates)
        self._needed_candidates.clear()
        return given_up

    def build(self) -> Graph:
        """Give the graph, once nothing is needed.

        Raises:
            ArchiveError: what is said to have been left out is malformed.
        """
        graph = self._builder.build()
        if not self._omitted_text:
            return graph
        left_out = parse_omitted(self._omitted_text, {blob.digest for blob in graph.blobs})
        self._check_volumes({reason.name for reason in left_out.values() if reason.kind == VOLUME})
        return replace(graph, omitted_from_source=left_out)

    def _check_volumes(self, names: AbstractSet[str]) -> None:
        """Make sure that what is said to be in other volumes is in volumes of the same archive.

        Nobody need send anything before he knows that the rest of it is nowhere.

        Raises:
            ArchiveError: it is not.
        """
        if not names:
            return
        from ocistream.oci.volumes import parse_volume

        volume = parse_volume(self._annotations)
        for name in names:
            number = volume.template.parse_number(name) if volume is not None else None
            if volume is None or number is None or not number < volume.total:
                msg = f"index.json says that blobs are in {printable(name)!r}, which is no volume of this archive"
                raise ArchiveError(msg)

    # -- choosing images ---------------------------------------------------------------------------------

    def _choose(self) -> None:
        """Choose among what can only be images; what is asked for and is none of them, among all."""
        try:
            chosen = self._select(self._images)
        except (NotFoundError, UsageError):
            others = self._try_select(self._all)
            if others is None:
                raise
            chosen = others
        self._is_chosen = True
        self._add(chosen)

    def _add(self, chosen: Sequence[Root]) -> None:
        digests = {root.descriptor.digest for root in chosen}
        self._chosen.update(map(id, chosen))
        self._chosen_digests |= digests
        self._resolver.remove_chosen(self._chosen, digests)
        for root in chosen:
            self._builder.add_root(root)
        self._supply_buffered()

    def _try_select(self, roots: Sequence[Root]) -> Sequence[Root] | None:
        try:
            return self._select(roots)
        except (NotFoundError, UsageError):
            return None

    # -- looking at what may hang on them ----------------------------------------------------------------

    def _need_candidate(self, entry: Descriptor) -> None:
        digest = entry.digest
        could_be = (entry.is_index or entry.is_manifest) and entry.size <= limits.MAX_MANIFEST
        if could_be and not self._resolver.is_known(digest) and self._builder.document(digest) is None:
            self._needed_candidates[digest] = entry
            self._new.append(digest)

    def _read_candidate(self, entry: Descriptor, raw: bytes) -> None:
        try:
            document = parse_document(entry, raw)
        except (ArchiveError, UnsupportedError):
            # If it turns out that it is to move, that will be said.
            return
        self._add_document(entry, document)

    def _add_document(self, entry: Descriptor, document: Document) -> None:
        for child in self._resolver.add_document(entry, document):
            self._need_candidate(child)

    def _buffer(self, digest: str, raw: bytes) -> None:
        """Keep what cannot be read again, if it may be needed yet.

        Raises:
            ArchiveError: there is too much of it.
        """
        if self._buffered_bytes + len(raw) > limits.MAX_BUFFERED_JSON:
            if self._is_chosen and digest not in self._prospective:
                return
            msg = f"more than {limits.MAX_BUFFERED_JSON} bytes of manifests that may be images, or hang on one"
            raise ArchiveError(msg, hint="move fewer images at a time")
        self._buffered[digest] = raw
        self._buffered_bytes += len(raw)

    def _supply_buffered(self) -> None:
        """Give the builder what it needs and is held; what else it needs is new."""
        while new := self._builder.new_needs():
            for digest in new:
                if digest not in self._builder.needs:
                    continue
                if digest in self._buffered and not self._builder.is_config(digest):
                    raw = self._buffered.pop(digest)
                    self._buffered_bytes -= len(raw)
                    self._builder.supply(digest, raw)
                else:
                    self._new.append(digest)

    # -- what hangs on whom ------------------------------------------------------------------------------

    def _take_next_step(self) -> bool:
        """Take along what hangs on what moves; False once there is nothing new and everything is chosen."""
        if not self._is_chosen:
            self._find_images()
            self._images = [root for root in self._all if not root.is_stray] or self._all
            self._choose()
            return True
        if self._referrers == "along" and (attestations := self._builder.new_attestations()):
            for attestation, image in attestations:
                self._resolver.add_attestation(attestation, image)
                self._need_candidate(attestation)
            return True
        if self._resolver.attach_next():
            self._supply_buffered()
            return True
        if self._must_choose_again:
            self._must_choose_again = False
            if self._choose_again():
                return True
        images = {root.descriptor.digest for root in self._all if not root.is_stray}
        if not self._has_reported_strays and images <= self._chosen_digests:
            self._has_reported_strays = True
            self._resolver.skip_strays()
        return False

    def _choose_again(self) -> bool:
        """Choose again, now that it is known which entries are images; return whether another one was chosen.

        Raises:
            NotFoundError, UsageError: as the choice has it.
        """
        self._find_images()
        known = self._chosen.union(map(id, self._images), map(id, self._resolver.listed_roots()))
        chosen = self._select([root for root in self._all if id(root) in known])
        if new := [root for root in chosen if id(root) not in self._chosen]:
            self._add(new)
        return bool(new)

    def _find_images(self) -> None:
        found = self._resolver.find_images()
        self._all = [found.get(id(root), root) for root in self._all]
