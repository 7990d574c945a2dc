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
from ocistream.oci.digest import size_error
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

    def __init__(self, builder: GraphBuilder, referrers: ReferrerMode) -> None:
        """Attach referrers to the graph of `builder`, as the mode `referrers` says."""
        self._builder = builder
        self._referrers = referrers
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

    def begin(self) -> list[Descriptor]:
        """Return the descriptors to read: those of all candidates. Only referrers lists can add further ones."""
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
        children = {*self._builder.list_included(), *self._narrowed_digests()}
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
        children = {*self._builder.list_included(), *self._narrowed_digests()}
        for candidate in self.candidates:
            if candidate.root.is_stray and not candidate.listed_by and candidate.digest not in children:
                subject, tag = next(
                    self._find_subjects(candidate), (subject_of(candidate.root.descriptor), candidate.tag)
                )
                is_known = subject is not None or tag is not None
                self._skip(candidate, subject, tag, SUBJECT_MISSING if is_known else UNREADABLE)

    def remove_chosen(self, chosen: AbstractSet[int], digests: AbstractSet[str]) -> None:
        """Remove chosen images from the candidates: roots with these ids, and untagged entries with these digests."""
        self.candidates = [
            candidate
            for candidate in self.candidates
            if id(candidate.root) not in chosen and (candidate.tag or candidate.digest not in digests)
        ]

    def add_document(self, entry: Descriptor, document: Document) -> list[Descriptor]:
        """Store the subject of a manifest that was read. Return the new candidates if it is a referrers list.

        Raises:
            UnsupportedError: referrers lists name too many manifests.
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

    # -- attaching and skipping referrers ----------------------------------------------------------------

    def attach_next(self) -> bool:
        """Attach referrers of copied manifests. If there are no more, skip referrers of manifests that are not copied.

        Return whether referrers were attached.

        Raises:
            UnsupportedError: the referrers of referrers are too deep.
        """
        included, narrowed = self._builder.list_included(), self._narrowed_digests()
        self._remove_referrer_lists((*included, *narrowed, *self._skipped))
        if self._referrers == "along" and self._attach_to(set(included)):
            self._depth += 1
            if self._depth > limits.MAX_REFERRER_DEPTH:
                msg = f"signatures, SBOMs and the like hang on each other more than {limits.MAX_REFERRER_DEPTH} deep"
                raise UnsupportedError(msg, hint="leave them behind with --no-referrers")
            return True
        self._skip_referrers_of((*included, *narrowed, *self._skipped))
        self._remove_referrer_lists((*included, *narrowed, *self._skipped))
        return False

    def _narrowed_digests(self) -> set[str]:
        """Return the digests of indexes of which only some platforms are copied, and of their children.

        A smaller index has another digest, so referrers of the original index have no subject in the destination.
        """
        narrowed = set(self._builder.list_narrowed())
        for document in filter(None, map(self._builder.document, tuple(narrowed))):
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
                    self._builder.add_referrer(Referrer(candidate.root.descriptor, subject, tag))
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
            why = EXCLUDED if self._referrers == "left" else self._skipped.get(subject, PLATFORM_FILTERED)
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
        self._builder.add_skipped_referrer(
            SkippedReferrer(subject, reason, classify_referrer(kind, tag), candidate.digest, tag)
        )


class IndexGraphBuilder:
    """Builds the graph of the chosen images and their referrers, while a source supplies the manifests.

    After `begin`, `next_needed` returns the next needed document. `supply` or `mark_missing` answers each need.
    """

    def __init__(self, select: ImageSelector, platforms: PlatformChoice, referrers: ReferrerMode) -> None:
        """Build a graph of the images that `select` chooses."""
        self._builder = GraphBuilder(platforms, skip_referrers=referrers == "left")
        self._resolver = ReferrerResolver(self._builder, referrers)
        self._select = select
        self._referrers = referrers
        self._all: list[Root] = []
        self._images: list[Root] = []
        #: The ids of the chosen roots: two entries may be equal.
        self._chosen: set[int] = set()
        self._chosen_digests: set[str] = set()
        self._is_chosen = False
        #: The digests that `select` would choose if all entries were images.
        self._prospective: set[str] = set()
        self._needed_candidates: dict[str, Descriptor] = {}
        self._buffered: dict[str, bytes] = {}
        self._buffered_bytes = 0
        #: Our annotations of the index, and the text of the one with omitted blobs.
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
        """Take the entries of the index, and choose the images if that is possible already.

        `annotations` are our annotations of the index. `image_digests` are the digests of entries that are images even
        without a name, because their manifests were built here.

        Raises:
            NotFoundError, UsageError: the selection failed.
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
        has_referrer_tag = [
            tag is not None and (is_fallback_tag(tag) or cosign_subject(tag) is not None) for tag in tags
        ]
        if len({root.descriptor.digest for root in self._all}) > 1:
            # The manifest of an entry without an image's name shows whether it is an image.
            self._all = [
                root
                if root.is_synthesized or (root.name and not is_referrer_tag and subject_of(root.descriptor) is None)
                else replace(root, is_stray=True)
                for root, is_referrer_tag in zip(self._all, has_referrer_tag, strict=True)
            ]
        self._images = [root for root in self._all if not root.is_stray]
        candidates = [
            ReferrerCandidate(root, tag if is_referrer_tag else None)
            for root, tag, is_referrer_tag in zip(self._all, tags, has_referrer_tag, strict=True)
            if root.is_stray
        ]
        self._resolver.candidates = candidates
        self._prospective = {root.descriptor.digest for root in self._try_select(self._all) or ()}
        if self._images or not candidates:
            try:
                self._choose()
            except UsageError as error:
                if not candidates:
                    raise
                # Raised once it is known which other entries are images.
                self._selection_error = error
        for entry in self._resolver.begin():
            self._need_candidate(entry)

    def next_needed(self) -> Descriptor | None:
        """Return a manifest or config that is needed, or None once the graph is complete."""
        while True:
            if self._builder.needs:
                return next(iter(self._builder.needs.values()))
            if self._needed_candidates:
                return next(iter(self._needed_candidates.values()))
            if not self._take_next_step():
                return None

    def check_choice(self) -> None:
        """Raise a pending selection error. Call this before blobs are written that arrive before the graph is complete.

        Raises:
            UsageError: the selection from the named images failed, whatever the other entries are.
        """
        if self._selection_error is not None:
            raise self._selection_error

    def is_needed(self, digest: str) -> bool:
        """Return whether this document is needed."""
        return digest in self._builder.needs or digest in self._needed_candidates

    def check_size(self, digest: str, size: int) -> None:
        """Check the size in bytes of a document that an image needs, before it is read.

        Raises:
            IntegrityError: the descriptor has another size.
        """
        descriptor = self._builder.needs.get(digest)
        if descriptor is not None and descriptor.size != size:
            raise size_error(descriptor, size)

    def is_config(self, digest: str) -> bool:
        """Return whether a need is an image's config, which the graph counts as a blob."""
        return self._builder.is_config(digest)

    def document(self, digest: str) -> Document | None:
        """Return the parsed manifest that was supplied for an image, or None."""
        return self._builder.document(digest)

    def new_needs(self) -> list[str]:
        """Return the digests that became needed since the last call."""
        new, self._new = self._new, []
        return new

    def supply(self, digest: str, raw: bytes) -> None:
        """Answer a need with bytes.

        Raises:
            OcistreamError: as `GraphBuilder.supply`. The bytes of a possible referrer are not checked yet.
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
        """Answer a need: the source does not have the document."""
        self._needed_candidates.pop(digest, None)
        if digest in self._builder.needs:
            self._builder.mark_missing(digest)
        self._supply_buffered()

    def skip_candidates(self) -> set[str]:
        """Stop waiting for possible referrers if the chosen images are complete.

        Return the digests of these candidates. If one of them arrives later, the graph is wrong.
        """
        if not self._is_chosen or self._builder.needs:
            return set()
        abandoned = set(self._needed_candidates)
        self._needed_candidates.clear()
        return abandoned

    def build(self) -> Graph:
        """Return the graph, once nothing is needed.

        Raises:
            ArchiveError: the annotation of omitted blobs is malformed.
        """
        graph = self._builder.build()
        if not self._omitted_text:
            return graph
        omitted = parse_omitted(self._omitted_text, {blob.digest for blob in graph.blobs})
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
                msg = f"index.json says that blobs are in {printable(name)!r}, which is no volume of this archive"
                raise ArchiveError(msg)

    # -- choosing images ---------------------------------------------------------------------------------

    def _choose(self) -> None:
        """Choose among entries that are certainly images. If that fails, choose among all entries."""
        try:
            chosen = self._select(self._images)
        except (NotFoundError, UsageError):
            chosen_of_all = self._try_select(self._all)
            if chosen_of_all is None:
                raise
            chosen = chosen_of_all
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

    # -- reading possible referrers ----------------------------------------------------------------------

    def _need_candidate(self, entry: Descriptor) -> None:
        digest = entry.digest
        may_be_referrer = (entry.is_index or entry.is_manifest) and entry.size <= limits.MAX_MANIFEST
        if may_be_referrer and not self._resolver.is_known(digest) and self._builder.document(digest) is None:
            self._needed_candidates[digest] = entry
            self._new.append(digest)

    def _read_candidate(self, entry: Descriptor, raw: bytes) -> None:
        try:
            document = parse_document(entry, raw)
        except (ArchiveError, UnsupportedError):
            # The builder reports the error if the manifest is copied.
            return
        self._add_document(entry, document)

    def _add_document(self, entry: Descriptor, document: Document) -> None:
        for child in self._resolver.add_document(entry, document):
            self._need_candidate(child)

    def _buffer(self, digest: str, raw: bytes) -> None:
        """Keep a manifest that cannot be read again and may be needed later."""
        if self._buffered_bytes + len(raw) > limits.MAX_BUFFERED_JSON:
            if self._is_chosen and digest not in self._prospective:
                return
            msg = f"more than {limits.MAX_BUFFERED_JSON} bytes of manifests that may be images, or hang on one"
            raise ArchiveError(msg, hint="move fewer images at a time")
        self._buffered[digest] = raw
        self._buffered_bytes += len(raw)

    def _supply_buffered(self) -> None:
        """Supply the builder with buffered manifests that it needs. Its other needs are new."""
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

    # -- steps to complete the graph ---------------------------------------------------------------------

    def _take_next_step(self) -> bool:
        """Choose images or attach referrers. Return False once nothing is new and everything is chosen."""
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
        """Choose again, now that it is known which entries are images. Return whether another image was chosen."""
        self._find_images()
        candidate_ids = self._chosen.union(map(id, self._images), map(id, self._resolver.listed_roots()))
        chosen = self._select([root for root in self._all if id(root) in candidate_ids])
        if new := [root for root in chosen if id(root) not in self._chosen]:
            self._add(new)
        return bool(new)

    def _find_images(self) -> None:
        images = self._resolver.find_images()
        self._all = [images.get(id(root), root) for root in self._all]
