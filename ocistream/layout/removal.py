"""Remove images and their referrers from a layout's index (`ocistream rm`). Blobs stay until `gc` deletes them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from ocistream.errors import ArchiveError, IntegrityError, NotFoundError, UsageError
from ocistream.layout.gc import DocumentReferences, read_references
from ocistream.layout.index import REFERRER_NAME, build_roots, format_image_names, image_name_of, matches_name, tag_of
from ocistream.oci.reference import printable
from ocistream.oci.referrers import cosign_subject

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ocistream.layout.directory import LayoutDirectory
    from ocistream.oci.descriptor import Descriptor

__all__ = ["RemovalResult", "remove_images"]


class RemovalResult(NamedTuple):
    """Entries that are gone from `index.json`: the images that were named, and what hung on them."""

    images: list[Descriptor]
    referrers: list[Descriptor]


def remove_images(layout: LayoutDirectory, names: Sequence[str], *, dry_run: bool = False) -> RemovalResult:
    """Take the images that go by `names` out of the index, all or none of them; with `dry_run` none.

    A digest takes every entry that has it; a name one of several that go by it would be a guess, and is refused.

    Raises:
        NotFoundError: there is no such directory, or no such image.
        ArchiveError: it is no layout, or its index is malformed.
        UsageError: several images go by a name.
        LocalDiskError: it cannot be read or written.
    """
    layout.check()
    if dry_run:
        return _split_entries(layout, layout.list_entries(), names)[1]
    removed = RemovalResult([], [])

    def change(entries: list[Descriptor]) -> list[Descriptor]:
        nonlocal removed
        kept, removed = _split_entries(layout, entries, names)
        return kept

    layout.change_index(change)
    return removed


def _split_entries(
    layout: LayoutDirectory, entries: Sequence[Descriptor], names: Sequence[str]
) -> tuple[list[Descriptor], RemovalResult]:
    """Give the entries that stay, and those that go."""
    roots = build_roots(entries)
    going: dict[int, Descriptor] = {}
    for name in names:
        found = [place for place, root in enumerate(roots) if matches_name(root, name)]
        if not found:
            msg = f"there is no image {printable(name)!r} in {layout.path}"
            raise NotFoundError(msg, hint=f"its images are: {format_image_names(roots)}")
        if len(found) > 1 and any(entries[place].digest != name for place in found):
            several = format_image_names([roots[place] for place in found])
            msg = f"there are {len(found)} images that go by {printable(name)!r}"
            raise UsageError(msg, hint=f"name one: {several}; by a digest all that have it go")
        going.update((place, entries[place]) for place in found)
    images = list(going.values())
    rest = [entry for place, entry in enumerate(entries) if place not in going]
    hanging = _find_orphaned_referrers(_ReferenceReader(layout), rest, images)
    gone = {id(entry) for entry in hanging}
    return [entry for entry in rest if id(entry) not in gone], RemovalResult(images, hanging)


def _find_orphaned_referrers(
    reading: _ReferenceReader, rest: Sequence[Descriptor], images: Sequence[Descriptor]
) -> list[Descriptor]:
    """Give what hangs on what goes, and on nothing that stays."""
    loose = [entry for entry in rest if image_name_of(entry) is None]
    going = reading.find_below(entry.digest for entry in images)
    going -= reading.find_below(entry.digest for entry in rest if image_name_of(entry) is not None)
    # What hangs on nothing at all is an image of its own; what hangs on what stays keeps what it leads to.
    found: list[Descriptor] = []
    while True:
        more = [entry for entry in loose if (subject := reading.find_subject(entry)) is not None and subject in going]
        if not more:
            return found
        found += more
        hung = {id(entry) for entry in more}
        loose = [entry for entry in loose if id(entry) not in hung]
        going |= reading.find_below(entry.digest for entry in more)


class _ReferenceReader:
    """Reads manifests, each once. One that cannot be read leads nowhere: its image can be removed all the same."""

    def __init__(self, layout: LayoutDirectory) -> None:
        self._layout = layout
        self._references: dict[str, DocumentReferences] = {}

    def find_below(self, digests: Iterable[str]) -> set[str]:
        """Give the digests of these documents and of all that they list."""
        found: set[str] = set()
        todo = list(digests)
        while todo:
            digest = todo.pop()
            if digest not in found:
                found.add(digest)
                todo += [child for child, _ in self._read_references(digest).documents]
        return found

    def find_subject(self, entry: Descriptor) -> str | None:
        """Give the digest of what an entry hangs on: by its manifest, or by a tag of cosign's."""
        if (subject := self._read_references(entry.digest).subject) is not None:
            return subject[0]
        tag = tag_of(entry.annotations.get(REFERRER_NAME))
        return cosign_subject(tag) if tag is not None else None

    def _read_references(self, digest: str) -> DocumentReferences:
        if (known := self._references.get(digest)) is None:
            known = DocumentReferences([], None, [])
            size = self._layout.blob_size(digest)
            if size is not None:
                with contextlib.suppress(ArchiveError, IntegrityError, NotFoundError):
                    known = read_references(self._layout, digest, size)
            self._references[digest] = known
        return known
