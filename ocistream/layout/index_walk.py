"""Walk from the images chosen from an `index.json` to everything that they need, with referrers (signatures, SBOMs).

An entry without a name may be an image or a referrer: its manifest, its tag or a referrers list decides.
This module opens no files: the sources answer the needs of the walk.
"""

from __future__ import annotations

import operator
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import ArchiveError, NotFoundError, UnsupportedError, UsageError
from ocistream.layout.index import build_roots, may_be_referrer, referrer_tag_of, subject_of
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
    UNSUPPORTED_TYPE,
    Referrer,
    SkippedReferrer,
    classify_referrer,
    cosign_subject,
    fallback_tag,
    is_fallback_tag,
    is_signature,
    referrer_descriptor,
)
from ocistream.oci.walk import GraphWalk, Need, parse_candidate

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from ocistream.layout.image_selection import Selection
    from ocistream.layout.index import LayoutIndex
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.documents import Document
    from ocistream.oci.graph import Graph
    from ocistream.oci.walk import Walk


@dataclass(slots=True, eq=False)
class _Candidate:
    """An entry that may be a referrer: by its tag, or by its manifest's subject.

    `listed_by` is the tag of the referrers list that names it, if it has no entry of its own. `descriptor` and
    `subject` come from its manifest, once that was read. It is open until it is chosen, attached or skipped.
    """

    root: Root
    tag: str | None
    listed_by: str | None = None
    descriptor: Descriptor | None = None
    subject: str | None = None
    is_signature: bool = False
    is_open: bool = True

    @property
    def digest(self) -> str:
        """The digest of the possible referrer."""
        return self.root.descriptor.digest

    def find_subjects(self) -> list[tuple[str, str | None]]:
        """Return its subjects, each with the tag that names it, or None if the manifest does."""
        subjects: list[tuple[str, str | None]] = [] if self.subject is None else [(self.subject, None)]
        if self.tag and (subject := cosign_subject(self.tag)) is not None:
            subjects.append((subject, self.tag))
        return subjects


def mark_strays(roots: Sequence[Root]) -> list[Root]:
    """Mark the entries of an index that may be images or referrers."""
    # Of several entries, the manifest of one without an image's name shows whether it is an image.
    is_only = len({root.descriptor.digest for root in roots}) <= 1
    return list(roots) if is_only else list(map(mark_if_stray, roots))


def mark_if_stray(root: Root) -> Root:
    """Mark one of several entries of an index if it may be an image or a referrer."""
    return root if root.is_synthesized or not may_be_referrer(root.descriptor) else replace(root, is_stray=True)


def stray_reason(entry: Descriptor, *, is_referrer: bool) -> str:
    """Return why an entry is skipped that belongs to no image."""
    if is_referrer:
        return SUBJECT_MISSING
    return UNREADABLE if entry.is_index or entry.is_manifest else UNSUPPORTED_TYPE


class IndexWalk:
    """Walks to everything that the chosen images of an `index.json` need, and to their referrers.

    Entries that may be referrers are candidates. They are read, and attached to their subjects or skipped.
    """

    def __init__(
        self,
        index: LayoutIndex,
        selection: Selection,
        *,
        image_digests: Container[str] = (),
    ) -> None:
        """Walk to the selected images among the entries of `index`.

        `image_digests` are the digests of entries that are images even without a name, because their manifests were
        built here.
        """
        self._annotations = index.annotations
        self._selection = selection
        self._graph_walk = GraphWalk(selection.platforms, skip_referrers=selection.referrers == "skip")
        self._all = build_roots(index.entries, image_digests)
        #: The ids of the chosen roots: two entries may be equal.
        self._chosen: set[int] = set()
        self._chosen_digests: set[str] = set()
        self._candidates: list[_Candidate] = []
        self._by_digest: dict[str, list[_Candidate]] = {}
        #: Candidates that were not read yet.
        self._unread: deque[Descriptor] = deque()
        #: The number of candidates that only referrers lists name, and of levels of referrers of referrers.
        self._listed_count = self._depth = 0
        #: The referrer with a tag of cosign's, by subject and tag; and the reasons of skipped ones, by digest.
        self._tags: dict[tuple[str, str], str] = {}
        self._skipped: dict[str, str] = {}
        #: Subjects and digests of signatures that were added to be checked.
        self._checked: set[tuple[str, str]] = set()
        #: Whether images were chosen. If not, candidates are awaited, because they may be images.
        self.is_chosen = False
        #: Why the choice from the named images failed, while it is not known which other entries are images.
        self.selection_error: UsageError | None = None

    def run(self) -> Walk[Graph]:
        """Run the walk. The result is the graph.

        Raises:
            NotFoundError, UsageError: the selection failed.
            OcistreamError: as `GraphWalk.settle`.
            ArchiveError: the annotation of omitted blobs is malformed.
        """
        if self._selection.referrers == "list":
            self._choose()
            yield from self._graph_walk.settle()
            return self._build()
        self._all = mark_strays(self._all)
        for root in filter(operator.attrgetter("is_stray"), self._all):
            self._add_candidate(_Candidate(root, referrer_tag_of(root.descriptor)))
        if self._named_images() or not self._candidates:
            try:
                self._choose()
            except UsageError as error:
                if not self._candidates:
                    raise
                # Raised once it is known which other entries are images.
                self.selection_error = error
        if not self.is_chosen:
            yield from self._read_candidates()
            self._find_images()
            self._choose()
            self.selection_error = None
        yield from self._attach_referrers()
        if not self._candidates:
            return self._build()
        if self._choose_again():
            yield from self._attach_referrers()
        if {root.descriptor.digest for root in self._named_images()} <= self._chosen_digests:
            self._skip_strays()
        return self._build()

    def document(self, digest: str) -> Document | None:
        """Return a manifest of the graph that was read, or None."""
        return self._graph_walk.document(digest)

    def _build(self) -> Graph:
        graph = self._graph_walk.build()
        omitted_text = self._annotations.get(OMITTED_ANNOTATION)
        if not omitted_text:
            return graph
        omitted = parse_omitted(omitted_text, {blob.digest for blob in graph.blobs})
        self._check_volumes({reason.name for reason in omitted.values() if reason.kind == VOLUME})
        return replace(graph, omitted_from_source=omitted)

    def _check_volumes(self, names: AbstractSet[str]) -> None:
        """Check that the volumes with omitted blobs belong to this archive.

        Otherwise the rest of the blobs may not exist, and nothing should be sent.
        """
        if not names:
            return
        from ocistream.oci.volumes import parse_volume

        volume = parse_volume(self._annotations)
        for name in names:
            number = volume.template.parse_number(name) if volume is not None else None
            if volume is None or number is None or not number < volume.total:
                msg = f"index.json says that blobs are in {printable(name)!r}, which is not a volume of this archive"
                raise ArchiveError(msg)

    # -- choosing images ---------------------------------------------------------------------------------

    def _named_images(self) -> list[Root]:
        """Return the entries that are certainly images."""
        return [root for root in self._all if not root.is_stray]

    def _choose(self) -> None:
        """Choose among entries that are certainly images. If that fails, choose among all entries."""
        try:
            chosen = self._selection.choose(self._named_images() or self._all)
        except (NotFoundError, UsageError) as error:
            try:
                chosen = self._selection.choose(self._all)
            except (NotFoundError, UsageError):
                raise error from None
        self.is_chosen = True
        self._add(chosen)

    def _choose_again(self) -> bool:
        """Choose again, now that it is known which entries are images. Return whether another image was chosen."""
        self._find_images()
        offered = self._chosen.union(map(id, self._named_images()))
        offered.update(id(candidate.root) for candidate in self._open_candidates())
        chosen = self._selection.choose([root for root in self._all if id(root) in offered])
        if new := [root for root in chosen if id(root) not in self._chosen]:
            self._add(new)
        return bool(new)

    def _add(self, chosen: Sequence[Root]) -> None:
        digests = {root.descriptor.digest for root in chosen}
        self._chosen.update(map(id, chosen))
        self._chosen_digests |= digests
        for candidate in self._open_candidates():
            # An entry with a tag may be a referrer too, even if its manifest is chosen by another entry.
            if id(candidate.root) in self._chosen or (not candidate.tag and candidate.digest in digests):
                candidate.is_open = False
        for root in chosen:
            self._graph_walk.add_root(root)

    def _find_images(self) -> None:
        """Mark the entries whose manifests say that they are images of their own.

        A child of an index of which some or all platforms are copied belongs to that image, and is not an image of its
        own.
        """
        children = {*self._graph_walk.list_included(), *self._list_narrowed()}
        images: dict[int, Root] = {}
        for candidate in self._open_candidates():
            is_referrer = candidate.tag or candidate.subject or subject_of(candidate.root.descriptor)
            is_read = candidate.descriptor is not None
            if candidate.root.is_stray and is_read and not is_referrer and candidate.digest not in children:
                images[id(candidate.root)] = image = replace(candidate.root, is_stray=False)
                candidate.root = image
        self._all = [images.get(id(root), root) for root in self._all]

    # -- reading candidates ------------------------------------------------------------------------------

    def _open_candidates(self) -> Iterator[_Candidate]:
        return (candidate for candidate in self._candidates if candidate.is_open)

    def _add_candidate(self, candidate: _Candidate) -> None:
        self._candidates.append(candidate)
        self._by_digest.setdefault(candidate.digest, []).append(candidate)
        self._unread.append(candidate.root.descriptor)

    def _read_candidates(self) -> Walk[None]:
        """Read all candidates, to know their subjects. A referrers list may name further candidates."""
        awaited = 0
        while True:
            new: dict[str, Need] = {}
            while self._unread:
                entry = self._unread.popleft()
                if self._by_digest[entry.digest][0].descriptor is not None:
                    continue
                if (document := self._graph_walk.document(entry.digest)) is not None:
                    self._add_document(entry, document)
                elif (entry.is_index or entry.is_manifest) and entry.size <= limits.MAX_MANIFEST:
                    new[entry.digest] = Need(entry, is_candidate=True)
            awaited += len(new)
            if not awaited:
                return
            need, raw = yield tuple(new.values())
            awaited -= 1
            if raw is not None:
                document = parse_candidate(need.descriptor, raw)
                if document is not None:
                    self._add_document(need.descriptor, document)

    def _add_document(self, entry: Descriptor, document: Document) -> None:
        """Store what a manifest says about itself. If it is a referrers list, add what it names."""
        list_tag = None
        for candidate in self._by_digest[entry.digest]:
            candidate.descriptor = referrer_descriptor(entry, document)
            candidate.subject = document.subject.digest if document.subject is not None else None
            candidate.is_signature = is_signature(document)
            if candidate.tag and is_fallback_tag(candidate.tag):
                list_tag = candidate.tag
        if not entry.is_index or list_tag is None:
            return
        for child in document.manifests:
            if child.digest not in self._by_digest:
                self._listed_count += 1
                if self._listed_count > limits.MAX_REFERRERS:
                    msg = f"more than {limits.MAX_REFERRERS} referrers are listed"
                    raise UnsupportedError(msg, hint="copy fewer images at a time")
                self._add_candidate(_Candidate(Root(None, child), None, list_tag))

    # -- attaching and skipping referrers ----------------------------------------------------------------

    def _attach_referrers(self) -> Walk[None]:
        """Walk to the chosen images, then to their referrers, and to the referrers of those."""
        yield from self._graph_walk.settle()
        if self._selection.referrers == "copy":
            # An index that is not copied may list attestations of an image that is.
            for attestation, image in self._graph_walk.new_attestations():
                if attestation.digest not in self._by_digest:
                    self._add_candidate(_Candidate(Root(None, attestation), None, fallback_tag(image)))
        yield from self._read_candidates()
        while self._candidates and self._attach_next():
            yield from self._graph_walk.settle()

    def _attach_next(self) -> bool:
        """Attach referrers of copied manifests. When all are attached, skip referrers of other manifests.

        Return whether referrers were attached, or signatures were added.
        """
        included, narrowed = self._graph_walk.list_included(), self._list_narrowed()
        self._close_referrer_lists((*included, *narrowed, *self._skipped))
        if self._selection.referrers == "copy" and self._attach_to(set(included)):
            self._depth += 1
            if self._depth > limits.MAX_REFERRER_DEPTH:
                msg = f"referrers refer to each other more than {limits.MAX_REFERRER_DEPTH} levels deep"
                raise UnsupportedError(msg, hint="skip them with --no-referrers")
            return True
        if self._selection.with_signatures and self._add_signatures(set(included)):
            return True
        self._skip_referrers_of((*included, *narrowed, *self._skipped))
        self._close_referrer_lists((*included, *narrowed, *self._skipped))
        return False

    def _list_narrowed(self) -> set[str]:
        """Return the digests of indexes of which only some platforms are copied, and of their children.

        A smaller index has another digest, so referrers of the original index have no subject in the destination.
        """
        narrowed = set(self._graph_walk.list_narrowed())
        for document in filter(None, map(self._graph_walk.document, tuple(narrowed))):
            # Referrers of another platform's image are not copied either.
            narrowed.update(child.digest for child in document.manifests)
        return narrowed

    def _close_referrer_lists(self, subjects: Iterable[str]) -> None:
        """Drop referrers lists of these subjects: a registry without the referrers API gets new ones."""
        tags = set(map(fallback_tag, subjects))
        for candidate in self._open_candidates():
            if candidate.tag in tags and candidate.descriptor is not None:
                candidate.is_open = False

    def _attach_to(self, included: set[str]) -> bool:
        """Attach the direct referrers of these manifests. Return whether there were any."""
        attached = False
        for candidate in self._open_candidates():
            for subject, tag in candidate.find_subjects():
                if subject not in included:
                    continue
                candidate.is_open = False
                if tag is not None and self._tags.setdefault((subject, tag), candidate.digest) != candidate.digest:
                    self._skip(candidate, subject, tag, DUPLICATE_TAG)
                else:
                    self._graph_walk.add_referrer(Referrer(candidate.root.descriptor, subject, tag))
                    attached = True
        return attached

    def _add_signatures(self, included: set[str]) -> bool:
        """Add the signatures of copied manifests that are skipped, and of the indexes that these were taken from.

        They are checked and not copied. Return whether there were any that were not added before.
        """
        subjects = set(self._graph_walk.list_narrowed())
        subjects |= included if self._selection.referrers == "skip" else set()
        count = len(self._checked)
        for candidate in self._open_candidates():
            for subject, tag in candidate.find_subjects() if candidate.is_signature else ():
                if subject in subjects and (subject, candidate.digest) not in self._checked:
                    self._checked.add((subject, candidate.digest))
                    self._graph_walk.add_signature(Referrer(candidate.root.descriptor, subject, tag))
        return len(self._checked) > count

    def _skip_referrers_of(self, subjects: Iterable[str]) -> None:
        """Skip the referrers of these manifests, and referrers of referrers.

        Each candidate is visited once, however long the chain is.
        """
        #: By a subject's digest, or by the tag of its list: candidates with their tags, and their own reasons.
        by_subject: dict[str, list[tuple[_Candidate, str | None, str | None]]] = {}
        for candidate in self._open_candidates():
            found = candidate.find_subjects()
            for subject, tag in found:
                by_subject.setdefault(subject, []).append((candidate, tag, None))
            if not found and (claimed := subject_of(candidate.root.descriptor)) is not None:
                reason = NOT_FOUND if candidate.descriptor is None else SUBJECT_MISMATCH
                by_subject.setdefault(claimed, []).append((candidate, None, reason))
            if candidate.listed_by is not None and candidate.descriptor is None:
                # If the list's subject is in the source, the referrer that it names is missing.
                by_subject.setdefault(candidate.listed_by, []).append((candidate, None, NOT_FOUND))
        pending = deque(subjects)
        while pending:
            subject = pending.popleft()
            is_excluded = self._selection.referrers == "skip"
            default = EXCLUDED if is_excluded else self._skipped.get(subject, PLATFORM_FILTERED)
            for candidate, tag, own in (*by_subject.pop(subject, ()), *by_subject.pop(fallback_tag(subject), ())):
                self._skip(candidate, subject, tag, own or default)
                pending.append(candidate.digest)

    def _skip_strays(self) -> None:
        """Skip each stray entry that is not copied. All images of the source were chosen before."""
        children = {*self._graph_walk.list_included(), *self._list_narrowed()}
        for candidate in self._open_candidates():
            entry = candidate.root.descriptor
            if candidate.root.is_stray and entry.digest not in children:
                subject, tag = next(iter(candidate.find_subjects()), (subject_of(entry), candidate.tag))
                self._skip(candidate, subject, tag, stray_reason(entry, is_referrer=bool(subject or tag)))

    def _skip(self, candidate: _Candidate, subject: str | None, tag: str | None, reason: str) -> None:
        candidate.is_open = False
        self._skipped[candidate.digest] = reason
        kind = (candidate.descriptor or candidate.root.descriptor).artifact_type
        self._graph_walk.add_skipped_referrer(
            SkippedReferrer(subject, reason, classify_referrer(kind, tag), candidate.digest, tag)
        )
