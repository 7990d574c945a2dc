"""Remove images and their referrers from a layout's index (`ocistream rm`). Blobs stay until `gc` deletes them.

`gc` knows which blobs a concurrent pull may need. Referrers without a name are removed too: `gc` keeps everything that
a listed signature refers to, so their subject would stay forever.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from ocistream.errors import ArchiveError, IntegrityError, NotFoundError, UsageError
from ocistream.layout.gc import DocumentReferences, read_references
from ocistream.layout.image_selection import find_named, format_image_names
from ocistream.layout.index import build_roots, image_name_of, tag_of
from ocistream.oci.reference import printable
from ocistream.oci.referrers import REFERRER_NAME, cosign_subject

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ocistream.layout.directory import LayoutDirectory
    from ocistream.oci.descriptor import Descriptor


class RemovalResult(NamedTuple):
    """Entries that were removed from `index.json`: the named images, and their referrers."""

    images: list[Descriptor]
    referrers: list[Descriptor]


def remove_images(layout: LayoutDirectory, names: Sequence[str], *, dry_run: bool) -> RemovalResult:
    """Remove the images with these names from the index, or none if one fails. With `dry_run`, nothing changes.

    A digest removes every entry that has it. A name that several images have is refused: choosing one would be a guess.

    Raises:
        NotFoundError: the directory or an image does not exist.
        ArchiveError: the directory is not a layout, or its index is malformed.
        UsageError: several images have a name.
        LocalDiskError: the layout cannot be read or written.
    """
    layout.check()
    if dry_run:
        return _split_entries(layout, list(layout.read_index().entries), names)[1]
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
    """Return the entries that stay, and those to remove."""
    roots = build_roots(entries)
    removed: dict[int, Descriptor] = {}
    for name in names:
        named = {id(root) for root in find_named(roots, name)}
        matches = [index for index, root in enumerate(roots) if id(root) in named]
        if not matches:
            msg = f"{layout.path} has no image {printable(name)!r}"
            raise NotFoundError(msg, hint=f"its images are: {format_image_names(roots)}")
        if len(matches) > 1 and any(entries[index].digest != name for index in matches):
            several = format_image_names([roots[index] for index in matches])
            msg = f"{len(matches)} images have the name {printable(name)!r}"
            raise UsageError(msg, hint=f"name one of {several}; a digest removes all images that have it")
        removed.update((index, entries[index]) for index in matches)
    images = list(removed.values())
    remaining = [entry for index, entry in enumerate(entries) if index not in removed]
    orphans = _find_orphaned_referrers(_ReferenceReader(layout), remaining, images)
    removed_ids = {id(entry) for entry in orphans}
    return [entry for entry in remaining if id(entry) not in removed_ids], RemovalResult(images, orphans)


def _find_orphaned_referrers(
    reader: _ReferenceReader, remaining: Sequence[Descriptor], images: Sequence[Descriptor]
) -> list[Descriptor]:
    """Return the unnamed entries that refer to a removed manifest and to nothing that stays."""
    unnamed = [entry for entry in remaining if image_name_of(entry) is None]
    removed = reader.find_below(entry.digest for entry in images)
    removed -= reader.find_below(entry.digest for entry in remaining if image_name_of(entry) is not None)
    # An entry without a subject is an image of its own. A referrer of an image that stays keeps its children.
    orphans: list[Descriptor] = []
    while True:
        more = [
            entry for entry in unnamed if (subject := reader.find_subject(entry)) is not None and subject in removed
        ]
        if not more:
            return orphans
        orphans += more
        orphan_ids = {id(entry) for entry in more}
        unnamed = [entry for entry in unnamed if id(entry) not in orphan_ids]
        removed |= reader.find_below(entry.digest for entry in more)


class _ReferenceReader:
    """Reads manifests, each once. An unreadable manifest has no references, so that its image can still be removed."""

    def __init__(self, layout: LayoutDirectory) -> None:
        self._layout = layout
        self._references: dict[str, DocumentReferences] = {}

    def find_below(self, digests: Iterable[str]) -> set[str]:
        """Return the digests of these documents and of all documents below them."""
        visited: set[str] = set()
        pending = list(digests)
        while pending:
            digest = pending.pop()
            if digest not in visited:
                visited.add(digest)
                pending += [child for child, _ in self._read_references(digest).documents]
        return visited

    def find_subject(self, entry: Descriptor) -> str | None:
        """Return the digest of an entry's subject, from its manifest or from its tag of cosign's."""
        if (subject := self._read_references(entry.digest).subject) is not None:
            return subject[0]
        tag = tag_of(entry.annotations.get(REFERRER_NAME))
        return cosign_subject(tag) if tag is not None else None

    def _read_references(self, digest: str) -> DocumentReferences:
        if (references := self._references.get(digest)) is None:
            references = DocumentReferences([], None, [])
            size = self._layout.blob_size(digest)
            if size is not None:
                with contextlib.suppress(ArchiveError, IntegrityError, NotFoundError):
                    references = read_references(self._layout, digest, size)
            self._references[digest] = references
        return references
