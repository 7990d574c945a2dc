"""What may hang on images, out of an `index.json`: on which it does, whether it goes along, and if not, why.

Its tag says so, or its manifest's `subject`, or a list of referrers that names it. No manifest is read here, and no
image chosen: `layout/index_entries.py` does both.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import UnsupportedError
from ocistream.layout.index import subject_of
from ocistream.oci.graph import Root
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

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Set as AbstractSet

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.documents import Document
    from ocistream.transfer.walk import GraphBuilder

__all__ = ["ReferrerCandidate", "ReferrerResolver"]


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
