"""Find the entries of an `index.json` that one image needs, for callers that copy its images one by one.

A walk to one image reads every entry that may be a referrer. Here each of these is read once for all images.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import ArchiveError, InvalidNameError, UnsupportedError
from ocistream.layout.index import REF_NAME, LayoutIndex, build_roots, referrer_tag_of, subject_of
from ocistream.layout.index_walk import mark_strays
from ocistream.oci.digest import check_content
from ocistream.oci.documents import parse_document
from ocistream.oci.reference import is_digest, parse_reference
from ocistream.oci.referrers import (
    REFERRER_NAME,
    SUBJECT_MISSING,
    UNREADABLE,
    SkippedReferrer,
    classify_referrer,
    cosign_subject,
    fallback_tag,
)
from ocistream.oci.walk import Need

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.documents import Document
    from ocistream.oci.graph import Root


class ImageLookup:
    """The entries of one index by name, and the possible referrers by subject. Safe for several threads.

    `find` returns a smaller index, and the walk to an image (`IndexWalk`) decides what becomes of its referrers. A
    registry needs no such table: it can be asked for the referrers of one manifest (`ReferrerSearch`).
    """

    def __init__(
        self, index: LayoutIndex, read: Callable[[Need], bytes | None], *, image_digests: Container[str] = ()
    ) -> None:
        """Read the entries that may be referrers; `read` returns a document, or None if the source lacks it.

        `image_digests` are the digests of entries that are images even without a name.

        Raises:
            IntegrityError: the bytes of a possible referrer do not match its descriptor.
        """
        self._index = index
        self._read = read
        self._image_digests = image_digests
        #: The first entry of each name, and the others: names that several entries have are few.
        self._by_name: dict[str, int] = {}
        self._others_by_name: dict[str, list[int]] = {}
        #: Positions of possible referrers, by the subject's digest or by the tag of its list of referrers.
        self._by_subject: dict[str, list[int]] = {}
        #: Positions of the entries that may be images or referrers, and whose manifest could be read.
        self._read_strays: set[int] = set()
        for position, root in enumerate(self._list_roots()):
            entry = root.descriptor
            names = {root.name, entry.annotations.get(REF_NAME), entry.annotations.get(REFERRER_NAME)}
            for name in names:
                if name is not None and self._by_name.setdefault(name, position) != position:
                    self._others_by_name.setdefault(name, []).append(position)
            if root.is_stray:
                for subject in self._read_subjects(position, entry):
                    self._by_subject.setdefault(subject, []).append(position)

    def find(self, name: str) -> LayoutIndex:
        """Return an index with the entries that have a name, and their possible referrers; all entries if none has it.

        The name may be full or short, a tag, or a digest.
        """
        try:
            full_name = parse_reference(name).name
        except InvalidNameError:
            full_name = name
        found = {position for key in (name, full_name) for position in self._positions_of(key)}
        if not found:
            return self._index
        digests = self._list_reachable([self._index.entries[position] for position in found])
        found.update(position for digest in digests for position in self._referrers_of(digest))
        return LayoutIndex([self._index.entries[position] for position in sorted(found)], self._index.annotations)

    def list_images(self) -> tuple[list[Root], list[SkippedReferrer]]:
        """Return the images and the entries that may be images, as `IndexWalk` offers them to a selector.

        Also return the referrers whose subject is not in the source. They have stray roots.
        """
        listed = self._list_roots()
        reachable = self._list_reachable([root.descriptor for root in listed if not root.is_stray])
        referring = {position for positions in self._by_subject.values() for position in positions}
        images = {
            position: self._index.entries[position]
            for position in self._read_strays - referring
            if self._index.entries[position].digest not in reachable
        }
        reachable |= self._list_reachable(images.values())
        roots: list[Root] = []
        skipped: list[SkippedReferrer] = []
        for position, root in enumerate(listed):
            entry = root.descriptor
            if not root.is_stray:
                roots.append(root)
            elif position in images:
                roots.append(build_roots([entry])[0])
            elif entry.digest not in reachable:
                roots.append(root)
                subject = next(iter(self._subjects_in_entry(entry)), None)
                is_known = subject is not None or position in referring
                why = SUBJECT_MISSING if is_known else UNREADABLE
                tag = referrer_tag_of(entry)
                kind = classify_referrer(entry.artifact_type, tag)
                skipped.append(SkippedReferrer(subject, why, kind, entry.digest, tag))
        return roots, skipped

    def _list_roots(self) -> list[Root]:
        return mark_strays(build_roots(self._index.entries, self._image_digests))

    def _positions_of(self, name: str) -> Iterator[int]:
        if is_digest(name):
            yield from (position for position, entry in enumerate(self._index.entries) if entry.digest == name)
        if name in self._by_name:
            yield self._by_name[name]
            yield from self._others_by_name.get(name, ())

    def _read_subjects(self, position: int, entry: Descriptor) -> Iterator[str]:
        yield from self._subjects_in_entry(entry)
        if (document := self._read_document(entry)) is not None:
            self._read_strays.add(position)
            if document.subject is not None:
                yield document.subject.digest

    @staticmethod
    def _subjects_in_entry(entry: Descriptor) -> Iterator[str]:
        """Yield what the entry itself says about its subject: a digest, or the tag of a list of referrers."""
        if (claimed := subject_of(entry)) is not None:
            yield claimed
        if (tag := referrer_tag_of(entry)) is not None:
            yield cosign_subject(tag) or tag

    def _read_document(self, entry: Descriptor) -> Document | None:
        if not (entry.is_index or entry.is_manifest) or entry.size > limits.MAX_MANIFEST:
            return None
        raw = self._read(Need(entry, is_candidate=True))
        if raw is None:
            return None
        check_content(entry, raw)
        try:
            return parse_document(entry, raw)
        except (ArchiveError, UnsupportedError):
            # Reported if the manifest is copied.
            return None

    def _list_reachable(self, descriptors: Iterable[Descriptor]) -> set[str]:
        """Return the digests of these manifests, of the manifests below them, and of all their referrers."""
        digests: set[str] = set()
        pending = list(descriptors)
        while pending:
            descriptor = pending.pop()
            if descriptor.digest in digests:
                continue
            digests.add(descriptor.digest)
            pending += [self._index.entries[position] for position in self._referrers_of(descriptor.digest)]
            if descriptor.is_index and (document := self._read_document(descriptor)) is not None:
                pending += document.manifests
        return digests

    def _referrers_of(self, digest: str) -> Iterator[int]:
        return itertools.chain(self._by_subject.get(digest, ()), self._by_subject.get(fallback_tag(digest), ()))
