"""Find the entries of an `index.json` that one image needs, for callers that copy its images one by one.

A walk to one image reads every entry that may be a referrer. Here each of these is read once for all images.
"""

from __future__ import annotations

import itertools
from array import array
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import InvalidNameError
from ocistream.layout.index import REF_NAME, LayoutIndex, build_roots, image_name_of, referrer_tag_of, subject_of
from ocistream.layout.index_walk import mark_if_stray, stray_reason
from ocistream.oci.graph import Root
from ocistream.oci.packed_descriptors import BuiltSequence, Positions
from ocistream.oci.reference import parse_reference
from ocistream.oci.referrers import (
    REFERRER_NAME,
    SkippedReferrer,
    classify_referrer,
    cosign_subject,
    fallback_tag,
)
from ocistream.oci.walk import Need, parse_candidate

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.documents import Document


class ImageLookup:
    """The entries of one index by name, and the possible referrers by subject. Safe for several threads.

    `find` returns a smaller index, and the walk to an image (`IndexWalk`) decides what becomes of its referrers. A
    registry needs no such table: it can be asked for the referrers of one manifest (`registry.source`).
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
        digests = (entry.digest for entry in index.entries)
        first = next(digests, None)
        self._is_only = all(digest == first for digest in digests)
        #: Positions of entries by each of their names and by their digest.
        self._positions = Positions()
        #: Positions of possible referrers, by the subject's digest or by the tag of its list of referrers.
        self._by_subject: dict[str, list[int]] = {}
        #: Positions of the entries that may be images or referrers, and of those whose manifest could be read.
        self._strays: set[int] = set()
        self._read_strays: set[int] = set()
        for position, entry in enumerate(index.entries):
            for key in _keys_of(entry):
                self._positions.add(key, position)
            (root,) = build_roots([entry], image_digests)
            if not self._is_only and mark_if_stray(root).is_stray:
                self._strays.add(position)
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
        found = {position: entry for key in (name, full_name) for position, entry in self._find_entries(key)}
        if not found:
            return self._index
        digests = self._list_reachable(found.values())
        referrers = {position for digest in digests for position in self._referrers_of(digest)}
        found.update((position, self._index.entries[position]) for position in referrers)
        return LayoutIndex([found[position] for position in sorted(found)], self._index.annotations)

    def list_images(self) -> tuple[Sequence[Root], list[SkippedReferrer]]:
        """Return the images and the entries that may be images, as `IndexWalk` offers them to a selector.

        Also return the referrers whose subject is not in the source. They have stray roots.
        """
        if not self._strays:
            return _ListedRoots(range(len(self._index.entries)), self._read_root), []
        entries = self._index.entries
        positions = range(len(entries))
        reachable = self._list_reachable(entries[position] for position in positions if position not in self._strays)
        referring = set(itertools.chain.from_iterable(self._by_subject.values()))
        images = {position for position in self._read_strays - referring if entries[position].digest not in reachable}
        reachable |= self._list_reachable(entries[position] for position in images)
        orphans = {
            position: entries[position]
            for position in sorted(self._strays - images)
            if entries[position].digest not in reachable
        }
        skipped: list[SkippedReferrer] = []
        for position, entry in orphans.items():
            subject = next(iter(self._subjects_in_entry(entry)), None)
            why = stray_reason(entry, is_referrer=subject is not None or position in referring)
            tag = referrer_tag_of(entry)
            kind = classify_referrer(entry.artifact_type, tag)
            skipped.append(SkippedReferrer(subject, why, kind, entry.digest, tag))
        belonging = self._strays - images - orphans.keys()
        listed = array("L", (position for position in positions if position not in belonging))
        return _ListedRoots(listed, partial(self._read_root, strays=orphans.keys())), skipped

    def _read_root(self, position: int, strays: Container[int] = ()) -> Root:
        """Return the root of the entry at a position; `strays` are the positions of stray ones."""
        (root,) = build_roots([self._index.entries[position]], self._image_digests)
        return replace(root, is_stray=True) if position in strays else root

    def _find_entries(self, name: str) -> Iterator[tuple[int, Descriptor]]:
        for position in self._positions.find(name):
            if name in _keys_of(entry := self._index.entries[position]):
                yield position, entry

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
        return parse_candidate(entry, raw) if raw is not None else None

    def _list_reachable(self, descriptors: Iterable[Descriptor]) -> set[str]:
        """Return the digests of these manifests, of the manifests below them, and of all their referrers."""
        digests: set[str] = set()
        for root in descriptors:
            pending = [root]
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


class _ListedRoots(BuiltSequence[Root]):
    """Roots of entries, by their positions."""

    def __init__(self, positions: Sequence[int], read: Callable[[int], Root]) -> None:
        self._positions = positions
        self._read = read

    def __len__(self) -> int:
        return len(self._positions)

    def _build(self, position: int) -> Root:
        return self._read(self._positions[position])


def _keys_of(entry: Descriptor) -> set[str]:
    """Return all texts that find an entry: its names and its digest."""
    names = (image_name_of(entry), entry.annotations.get(REF_NAME), entry.annotations.get(REFERRER_NAME))
    return {entry.digest, *filter(None, names)}
