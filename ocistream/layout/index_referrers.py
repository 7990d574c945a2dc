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
    DISOWNED,
    GONE,
    NARROWED,
    ORPHANED,
    SAME_TAG,
    UNREADABLE,
    UNWANTED,
    Attached,
    LeftBehind,
    Referrers,
    cosign_subject,
    fallback_tag,
    is_fallback_tag,
    kind_of,
    listed,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Set as AbstractSet

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.documents import Document
    from ocistream.transfer.walk import GraphBuilder

__all__ = ["Attaching", "Other"]


@dataclass(frozen=True, slots=True)
class Other:
    """An entry that may hang on an image: by its tag, or by its manifest's subject.

    `claimed_by` is the tag of the list that names it, if it has no entry of its own.
    """

    root: Root
    tag: str | None
    claimed_by: str | None = None

    @property
    def digest(self) -> str:
        """Give the digest of what may hang there."""
        return self.root.descriptor.digest


class Attaching:
    """What may hang on the images of one graph: the `others`, less those that went along, or were left."""

    def __init__(self, builder: GraphBuilder, referrers: Referrers) -> None:
        """Begin with nothing; what goes along is attached to the graph that `builder` makes."""
        self._builder = builder
        self._referrers = referrers
        self.others: list[Other] = []
        #: The digests of those, and, by digest, the tags of those that may be lists of referrers.
        self._known: set[str] = set()
        self._lists: dict[str, str] = {}
        self._subjects: dict[str, str] = {}
        self._described: dict[str, Descriptor] = {}
        self._left: dict[str, str] = {}
        self._tags: dict[tuple[str, str], str] = {}
        #: How many are known by lists of referrers alone.
        self._claimed = 0
        #: How deep it was gone into what hangs on each other.
        self._depth = 0

    def begin(self) -> list[Descriptor]:
        """Give what is to be looked at: all of `others`, which is complete but for what lists of referrers name."""
        self._known = {other.digest for other in self.others}
        self._lists = {other.digest: other.tag for other in self.others if other.tag and is_fallback_tag(other.tag)}
        return [other.root.descriptor for other in self.others]

    def claim(self, attestation: Descriptor, image: str) -> None:
        """Take an attestation into account that an index lists beside its image, which is taken without the index."""
        if attestation.digest not in self._known:
            self._known.add(attestation.digest)
            self.others.append(Other(Root(None, attestation), None, fallback_tag(image)))

    def was_noted(self, digest: str) -> bool:
        """Say whether it is known of a manifest on whom it hangs."""
        return digest in self._described

    def entries(self) -> list[Root]:
        """Give those that have entries of their own."""
        return [other.root for other in self.others if not other.claimed_by]

    def recognize(self) -> dict[int, Root]:
        """Return a root that is not stray for each entry whose manifest says that it is an image of its own.

        The keys are the ids of the stray roots that these replace. A manifest that an index lists which moves, or of
        which other platforms move, is a part of that image.
        """
        parts = {*self._builder.moving(), *self._cut_down()}
        found: dict[int, Root] = {}
        for place, other in enumerate(self.others):
            is_referrer = other.tag or other.digest in self._subjects or subject_of(other.root.descriptor) is not None
            if other.root.stray and not is_referrer and other.digest in self._described and other.digest not in parts:
                found[id(other.root)] = image = replace(other.root, stray=False)
                self.others[place] = replace(other, root=image)
        return found

    def leave_strays(self) -> None:
        """Note each stray entry that does not move. All images of the source were chosen before."""
        parts = {*self._builder.moving(), *self._cut_down()}
        for other in self.others:
            if other.root.stray and not other.claimed_by and other.digest not in parts:
                subject, tag = next(self._hooks(other), (subject_of(other.root.descriptor), other.tag))
                is_known = subject is not None or tag is not None
                self._leave(other, subject, tag, ORPHANED if is_known else UNREADABLE)

    def less(self, chosen: AbstractSet[int], digests: AbstractSet[str]) -> None:
        """Take images out: the very roots that were `chosen`, by id, and what else is of their digests."""
        self.others = [
            other
            for other in self.others
            if id(other.root) not in chosen and (other.tag or other.digest not in digests)
        ]

    def note(self, entry: Descriptor, document: Document) -> list[Descriptor]:
        """Keep of a manifest on whom it hangs; and if it is a list of such, give those of them that are new.

        Raises:
            UnsupportedError: lists name too many.
        """
        new = []
        self._described[entry.digest] = listed(entry, document)
        if document.subject is not None:
            self._subjects[entry.digest] = document.subject.digest
        if entry.is_index and (tag := self._lists.get(entry.digest)) is not None:
            for child in document.manifests:
                if child.digest not in self._known:
                    self._known.add(child.digest)
                    self._claimed += 1
                    if self._claimed > limits.MAX_ATTACHED:
                        msg = f"more than {limits.MAX_ATTACHED} signatures, SBOMs and the like are listed"
                        raise UnsupportedError(msg, hint="move fewer images at a time")
                    self.others.append(Other(Root(None, child), None, tag))
                    new.append(child)
        return new

    # -- what hangs on whom ------------------------------------------------------------------------------

    def attach_some(self) -> bool:
        """Take along what hangs on what moves; once nothing does any more, leave what hangs on what stays.

        Raises:
            UnsupportedError: it hangs on each other too deeply.
        """
        moving, staying = self._builder.moving(), self._cut_down()
        self._drop_lists((*moving, *staying, *self._left))
        if self._referrers == "along" and self._attach_on(set(moving)):
            self._depth += 1
            if self._depth > limits.MAX_ATTACHED_DEPTH:
                msg = f"signatures, SBOMs and the like hang on each other more than {limits.MAX_ATTACHED_DEPTH} deep"
                raise UnsupportedError(msg, hint="leave them behind with --no-referrers")
            return True
        self._leave_on((*moving, *staying, *self._left))
        self._drop_lists((*moving, *staying, *self._left))
        return False

    def _cut_down(self) -> set[str]:
        cut = set(self._builder.cut_down())
        for document in filter(None, map(self._builder.document, tuple(cut))):
            # What hangs on another platform's image has no place here either.
            cut.update(child.digest for child in document.manifests)
        return cut

    def _drop_lists(self, known: Iterable[str]) -> None:
        """Drop lists of what refers to these: they are made anew wherever they are needed."""
        tags = set(map(fallback_tag, known))
        self.others = [other for other in self.others if other.tag not in tags or other.digest not in self._described]

    def _attach_on(self, moving: set[str]) -> bool:
        """Take along what hangs on these themselves; say whether there was anything."""
        attached, staying = False, []
        for other in self.others:
            hooks = [hook for hook in self._hooks(other) if hook[0] in moving]
            for subject, tag in hooks:
                if tag is not None and self._tags.setdefault((subject, tag), other.digest) != other.digest:
                    self._leave(other, subject, tag, SAME_TAG)
                else:
                    self._builder.attach(Attached(other.root.descriptor, subject, tag))
                    attached = True
            if not hooks:
                staying.append(other)
        self.others = staying
        return attached

    def _leave_on(self, known: Iterable[str]) -> None:
        """Leave what hangs on these, and on that in turn: however long such a chain is, each is looked at once."""
        hooked: dict[str, list[tuple[Other, str | None]]] = {}
        lost: dict[str, list[Other]] = {}
        disowned: dict[str, list[Other]] = {}
        for other in self.others:
            hooks = list(self._hooks(other))
            for subject, tag in hooks:
                hooked.setdefault(subject, []).append((other, tag))
            if not hooks and (said := subject_of(other.root.descriptor)) is not None:
                disowned.setdefault(said, []).append(other)
            if other.claimed_by is not None and other.digest not in self._described:
                # If its list is that of something that is known here, it is not there.
                lost.setdefault(other.claimed_by, []).append(other)
        left: set[int] = set()
        todo = deque(known)
        while todo:
            subject = todo.popleft()
            why = UNWANTED if self._referrers == "left" else self._left.get(subject, NARROWED)
            leaving = [(other, tag, why) for other, tag in hooked.pop(subject, ())]
            leaving += [(other, None, GONE) for other in lost.pop(fallback_tag(subject), ())]
            for other in disowned.pop(subject, ()):
                leaving.append((other, None, DISOWNED if other.digest in self._described else GONE))
            for other, tag, reason in leaving:
                self._leave(other, subject, tag, reason)
                left.add(id(other))
                todo.append(other.digest)
        self.others = [other for other in self.others if id(other) not in left]

    def _hooks(self, other: Other) -> Iterator[tuple[str, str | None]]:
        """Give the digests on which something hangs, and the tag by which it does."""
        if (subject := self._subjects.get(other.digest)) is not None:
            yield subject, None
        if other.tag and (subject := cosign_subject(other.tag)) is not None:
            yield subject, other.tag

    def _leave(self, other: Other, subject: str | None, tag: str | None, why: str) -> None:
        self._left[other.digest] = why
        kind = self._described.get(other.digest, other.root.descriptor).artifact_type
        self._builder.leave(LeftBehind(subject, why, kind_of(kind, tag), other.digest, tag))
