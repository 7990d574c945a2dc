"""Walk from the images chosen from an `index.json` to everything that they need, with referrers (signatures, SBOMs).

An entry without a name may be an image or a referrer: its manifest, its tag or a referrers list decides.
This module opens no files: the sources answer the needs of the walk.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import ArchiveError, NotFoundError, UnsupportedError, UsageError
from ocistream.layout.index import build_roots, may_be_referrer, referrer_tag_of, subject_of
from ocistream.oci.descriptor import check_content
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
    UNSUPPORTED_TYPE,
    Referrer,
    ReferrerMode,
    SkippedReferrer,
    classify_referrer,
    cosign_subject,
    fallback_tag,
    is_fallback_tag,
    is_signature,
    referrer_descriptor,
)
from ocistream.oci.walk import GraphWalk, Need

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from ocistream.layout.image_selection import Selection
    from ocistream.layout.index import LayoutIndex
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.documents import Document
    from ocistream.oci.graph import Graph
    from ocistream.oci.walk import Walk


@dataclass(frozen=True, slots=True)
class ReferrerCandidate:
    """An entry that may be a referrer: by its tag, or by its manifest's subject.

    `listed_by` is the tag of the referrers list that names it, if it has no entry of its own.
    """

    root: Root
    tag: str | None
    listed_by: str | None = None

    @property
    def digest(self) -> str:
        """The digest of the possible referrer."""
        return self.root.descriptor.digest


class ReferrerResolver:
    """Decides which `candidates` are referrers of the images of one graph, and attaches or skips these."""

    def __init__(self, graph_walk: GraphWalk, referrers: ReferrerMode, *, with_signatures: bool) -> None:
        """Attach referrers to the graph, as the mode `referrers` says.

        With `with_signatures`, signatures that are not copied are added to be checked.
        """
        self._graph_walk = graph_walk
        self._referrers = referrers
        self._with_signatures = with_signatures
        #: The digests of signatures, and which of them were added to be checked.
        self._signatures: set[str] = set()
        self._checked: set[tuple[str, str]] = set()
        self.candidates: list[ReferrerCandidate] = []
        #: The digests of the candidates; by digest, the tags of candidates that may be referrers lists.
        self._known: set[str] = set()
        self._lists: dict[str, str] = {}
        self._subjects: dict[str, str] = {}
        self._descriptors: dict[str, Descriptor] = {}
        self._skipped: dict[str, str] = {}
        self._tags: dict[tuple[str, str], str] = {}
        #: The number of candidates that only referrers lists name.
        self._listed_count = 0
        #: The number of levels of referrers of referrers.
        self._depth = 0

    def begin(self, candidates: list[ReferrerCandidate]) -> list[Descriptor]:
        """Set the candidates and return their descriptors, to be read. Only referrers lists can add further ones."""
        self.candidates = candidates
        self._known = {candidate.digest for candidate in self.candidates}
        self._lists = {
            candidate.digest: candidate.tag
            for candidate in self.candidates
            if candidate.tag and is_fallback_tag(candidate.tag)
        }
        return [candidate.root.descriptor for candidate in self.candidates]

    def add_attestation(self, attestation: Descriptor, image: str) -> None:
        """Add an attestation that an index lists for `image`, which is copied without the index."""
        if attestation.digest not in self._known:
            self._known.add(attestation.digest)
            self.candidates.append(ReferrerCandidate(Root(None, attestation), None, fallback_tag(image)))

    def is_known(self, digest: str) -> bool:
        """Return whether the manifest was read, so that its subject is known."""
        return digest in self._descriptors

    def listed_roots(self) -> list[Root]:
        """Return the roots of candidates with entries of their own."""
        return [candidate.root for candidate in self.candidates if not candidate.listed_by]

    def find_images(self) -> dict[int, Root]:
        """Return a root that is not stray for each entry whose manifest says that it is an image of its own.

        The keys are the ids of the stray roots that these replace. A child of an index of which some or all platforms
        are copied belongs to that image, and is not an image of its own.
        """
        children = {*self._graph_walk.list_included(), *self._narrowed_digests()}
        images: dict[int, Root] = {}
        for index, candidate in enumerate(self.candidates):
            is_referrer = (
                candidate.tag or candidate.digest in self._subjects or subject_of(candidate.root.descriptor) is not None
            )
            if (
                candidate.root.is_stray
                and not is_referrer
                and candidate.digest in self._descriptors
                and candidate.digest not in children
            ):
                images[id(candidate.root)] = image = replace(candidate.root, is_stray=False)
                self.candidates[index] = replace(candidate, root=image)
        return images

    def skip_strays(self) -> None:
        """Record each stray entry that is not copied as skipped. All images of the source were chosen before."""
        children = {*self._graph_walk.list_included(), *self._narrowed_digests()}
        for candidate in self.candidates:
            if candidate.root.is_stray and not candidate.listed_by and candidate.digest not in children:
                subject, tag = next(
                    self._find_subjects(candidate), (subject_of(candidate.root.descriptor), candidate.tag)
                )
                entry = candidate.root.descriptor
                unread = UNREADABLE if entry.is_index or entry.is_manifest else UNSUPPORTED_TYPE
                is_known = subject is not None or tag is not None
                self._skip(candidate, subject, tag, SUBJECT_MISSING if is_known else unread)

    def remove_chosen(self, chosen: AbstractSet[int], digests: AbstractSet[str]) -> None:
        """Remove chosen images from the candidates: roots with these ids, and untagged entries with these digests."""
        self.candidates = [
            candidate
            for candidate in self.candidates
            if id(candidate.root) not in chosen and (candidate.tag or candidate.digest not in digests)
        ]

    def add_document(self, entry: Descriptor, document: Document) -> list[Descriptor]:
        """Store the subject of a manifest that was read. Return the new candidates if it is a referrers list."""
        new = []
        self._descriptors[entry.digest] = referrer_descriptor(entry, document)
        if document.subject is not None:
            self._subjects[entry.digest] = document.subject.digest
        if is_signature(document):
            self._signatures.add(entry.digest)
        if entry.is_index and (tag := self._lists.get(entry.digest)) is not None:
            for child in document.manifests:
                if child.digest not in self._known:
                    self._known.add(child.digest)
                    self._listed_count += 1
                    if self._listed_count > limits.MAX_REFERRERS:
                        msg = f"more than {limits.MAX_REFERRERS} referrers are listed"
                        raise UnsupportedError(msg, hint="copy fewer images at a time")
                    self.candidates.append(ReferrerCandidate(Root(None, child), None, tag))
                    new.append(child)
        return new

    # -- attaching and skipping referrers ----------------------------------------------------------------

    def attach_next(self) -> bool:
        """Attach referrers of copied manifests. When all are attached, skip referrers of other manifests.

        Return whether referrers were attached, or signatures were added.
        """
        included, narrowed = self._graph_walk.list_included(), self._narrowed_digests()
        self._remove_referrer_lists((*included, *narrowed, *self._skipped))
        if self._referrers == "copy" and self._attach_to(set(included)):
            self._depth += 1
            if self._depth > limits.MAX_REFERRER_DEPTH:
                msg = f"referrers refer to each other more than {limits.MAX_REFERRER_DEPTH} levels deep"
                raise UnsupportedError(msg, hint="skip them with --no-referrers")
            return True
        if self._with_signatures and self._add_signatures(set(included)):
            return True
        self._skip_referrers_of((*included, *narrowed, *self._skipped))
        self._remove_referrer_lists((*included, *narrowed, *self._skipped))
        return False

    def _add_signatures(self, included: set[str]) -> bool:
        """Add the signatures of copied manifests that are skipped, and of the indexes that these were taken from.

        Return whether there were any that were not added before.
        """
        subjects = set(self._graph_walk.list_narrowed()) | (included if self._referrers == "skip" else set())
        count = len(self._checked)
        for candidate in self.candidates:
            for subject, tag in self._find_subjects(candidate) if candidate.digest in self._signatures else ():
                if subject in subjects and (subject, candidate.digest) not in self._checked:
                    self._checked.add((subject, candidate.digest))
                    self._graph_walk.add_signature(Referrer(candidate.root.descriptor, subject, tag))
        return len(self._checked) > count

    def _narrowed_digests(self) -> set[str]:
        """Return the digests of indexes of which only some platforms are copied, and of their children.

        A smaller index has another digest, so referrers of the original index have no subject in the destination.
        """
        narrowed = set(self._graph_walk.list_narrowed())
        for document in filter(None, map(self._graph_walk.document, tuple(narrowed))):
            # Referrers of another platform's image are not copied either.
            narrowed.update(child.digest for child in document.manifests)
        return narrowed

    def _remove_referrer_lists(self, subjects: Iterable[str]) -> None:
        """Drop referrers lists of these subjects: a registry without the referrers API gets new ones."""
        tags = set(map(fallback_tag, subjects))
        self.candidates = [
            candidate
            for candidate in self.candidates
            if candidate.tag not in tags or candidate.digest not in self._descriptors
        ]

    def _attach_to(self, included: set[str]) -> bool:
        """Attach the direct referrers of these manifests. Return whether there were any."""
        attached, remaining = False, []
        for candidate in self.candidates:
            references = [reference for reference in self._find_subjects(candidate) if reference[0] in included]
            for subject, tag in references:
                if tag is not None and self._tags.setdefault((subject, tag), candidate.digest) != candidate.digest:
                    self._skip(candidate, subject, tag, DUPLICATE_TAG)
                else:
                    self._graph_walk.add_referrer(Referrer(candidate.root.descriptor, subject, tag))
                    attached = True
            if not references:
                remaining.append(candidate)
        self.candidates = remaining
        return attached

    def _skip_referrers_of(self, subjects: Iterable[str]) -> None:
        """Skip the referrers of these manifests, and referrers of referrers.

        Each candidate is visited once, however long the chain is.
        """
        referrers: dict[str, list[tuple[ReferrerCandidate, str | None]]] = {}
        missing: dict[str, list[ReferrerCandidate]] = {}
        mismatched: dict[str, list[ReferrerCandidate]] = {}
        for candidate in self.candidates:
            references = list(self._find_subjects(candidate))
            for subject, tag in references:
                referrers.setdefault(subject, []).append((candidate, tag))
            if not references and (claimed := subject_of(candidate.root.descriptor)) is not None:
                mismatched.setdefault(claimed, []).append(candidate)
            if candidate.listed_by is not None and candidate.digest not in self._descriptors:
                # If the list's subject is in the source, the referrer that it names is missing.
                missing.setdefault(candidate.listed_by, []).append(candidate)
        skipped_ids: set[int] = set()
        pending = deque(subjects)
        while pending:
            subject = pending.popleft()
            why = EXCLUDED if self._referrers == "skip" else self._skipped.get(subject, PLATFORM_FILTERED)
            skipped = [(candidate, tag, why) for candidate, tag in referrers.pop(subject, ())]
            skipped += [(candidate, None, NOT_FOUND) for candidate in missing.pop(fallback_tag(subject), ())]
            for candidate in mismatched.pop(subject, ()):
                skipped.append(
                    (candidate, None, SUBJECT_MISMATCH if candidate.digest in self._descriptors else NOT_FOUND)
                )
            for candidate, tag, reason in skipped:
                self._skip(candidate, subject, tag, reason)
                skipped_ids.add(id(candidate))
                pending.append(candidate.digest)
        self.candidates = [candidate for candidate in self.candidates if id(candidate) not in skipped_ids]

    def _find_subjects(self, candidate: ReferrerCandidate) -> Iterator[tuple[str, str | None]]:
        """Yield the subjects of a candidate, each with the tag that names it, or None if the manifest does."""
        if (subject := self._subjects.get(candidate.digest)) is not None:
            yield subject, None
        if candidate.tag and (subject := cosign_subject(candidate.tag)) is not None:
            yield subject, candidate.tag

    def _skip(self, candidate: ReferrerCandidate, subject: str | None, tag: str | None, reason: str) -> None:
        self._skipped[candidate.digest] = reason
        kind = self._descriptors.get(candidate.digest, candidate.root.descriptor).artifact_type
        self._graph_walk.add_skipped_referrer(
            SkippedReferrer(subject, reason, classify_referrer(kind, tag), candidate.digest, tag)
        )


def mark_strays(roots: Sequence[Root]) -> list[Root]:
    """Mark the entries of an index that may be images or referrers."""
    # Of several entries, the manifest of one without an image's name shows whether it is an image.
    is_only = len({root.descriptor.digest for root in roots}) <= 1
    return list(roots) if is_only else list(map(mark_if_stray, roots))


def mark_if_stray(root: Root) -> Root:
    """Mark one of several entries of an index if it may be an image or a referrer."""
    return root if root.is_synthesized or not may_be_referrer(root.descriptor) else replace(root, is_stray=True)


class IndexWalk:
    """Walks to everything that the chosen images of an `index.json` need, and to their referrers."""

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
        self._select = selection.choose
        self._referrers = selection.referrers
        self._graph_walk = GraphWalk(selection.platforms, skip_referrers=selection.referrers == "skip")
        self._resolver = ReferrerResolver(
            self._graph_walk, selection.referrers, with_signatures=selection.with_signatures
        )
        self._all = build_roots(index.entries, image_digests)
        #: The ids of the chosen roots: two entries may be equal.
        self._chosen: set[int] = set()
        self._chosen_digests: set[str] = set()
        #: Possible images and referrers that were not read yet.
        self._unread: deque[Descriptor] = deque()
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
        if self._referrers == "list":
            self._choose()
            yield from self._graph_walk.settle()
            return self._build()
        self._find_candidates()
        if self._named_images() or not self._resolver.candidates:
            try:
                self._choose()
            except UsageError as error:
                if not self._resolver.candidates:
                    raise
                # Raised once it is known which other entries are images.
                self.selection_error = error
        if not self.is_chosen:
            yield from self._read_candidates()
            self._find_images()
            self._choose()
            self.selection_error = None
        yield from self._attach_referrers()
        if self._choose_again():
            yield from self._attach_referrers()
        if {root.descriptor.digest for root in self._named_images()} <= self._chosen_digests:
            self._resolver.skip_strays()
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

    def _find_candidates(self) -> None:
        """Find the entries that may be images or referrers: those without an image's name."""
        self._all = mark_strays(self._all)
        self._unread += self._resolver.begin(
            [ReferrerCandidate(root, referrer_tag_of(root.descriptor)) for root in self._all if root.is_stray]
        )

    def _choose(self) -> None:
        """Choose among entries that are certainly images. If that fails, choose among all entries."""
        try:
            chosen = self._select(self._named_images() or self._all)
        except (NotFoundError, UsageError):
            chosen_of_all = self._try_select(self._all)
            if chosen_of_all is None:
                raise
            chosen = chosen_of_all
        self.is_chosen = True
        self._add(chosen)

    def _choose_again(self) -> bool:
        """Choose again, now that it is known which entries are images. Return whether another image was chosen."""
        self._find_images()
        candidate_ids = self._chosen.union(map(id, self._named_images()), map(id, self._resolver.listed_roots()))
        chosen = self._select([root for root in self._all if id(root) in candidate_ids])
        if new := [root for root in chosen if id(root) not in self._chosen]:
            self._add(new)
        return bool(new)

    def _add(self, chosen: Sequence[Root]) -> None:
        digests = {root.descriptor.digest for root in chosen}
        self._chosen.update(map(id, chosen))
        self._chosen_digests |= digests
        self._resolver.remove_chosen(self._chosen, digests)
        for root in chosen:
            self._graph_walk.add_root(root)

    def _try_select(self, roots: Sequence[Root]) -> Sequence[Root] | None:
        try:
            return self._select(roots)
        except (NotFoundError, UsageError):
            return None

    def _find_images(self) -> None:
        images = self._resolver.find_images()
        self._all = [images.get(id(root), root) for root in self._all]

    # -- reading and attaching referrers -----------------------------------------------------------------

    def _attach_referrers(self) -> Walk[None]:
        """Walk to the chosen images, then to their referrers, and to the referrers of those."""
        yield from self._graph_walk.settle()
        if self._referrers == "copy":
            for attestation, image in self._graph_walk.new_attestations():
                self._resolver.add_attestation(attestation, image)
                self._unread.append(attestation)
        yield from self._read_candidates()
        while self._resolver.attach_next():
            yield from self._graph_walk.settle()

    def _read_candidates(self) -> Walk[None]:
        """Read all candidates, to know their subjects. A referrers list may name further candidates."""
        awaited = 0
        while True:
            new: dict[str, Need] = {}
            while self._unread:
                entry = self._unread.popleft()
                if self._resolver.is_known(entry.digest):
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
                self._read_candidate(need.descriptor, raw)

    def _read_candidate(self, entry: Descriptor, raw: bytes) -> None:
        check_content(entry, raw)
        try:
            document = parse_document(entry, raw)
        except (ArchiveError, UnsupportedError):
            # Reported if the manifest is copied.
            return
        self._add_document(entry, document)

    def _add_document(self, entry: Descriptor, document: Document) -> None:
        self._unread += self._resolver.add_document(entry, document)
