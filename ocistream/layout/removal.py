"""Remove images and their referrers from a layout's index (`ocistream rm`). Blobs stay until `gc` deletes them.

`gc` knows which blobs a concurrent pull may need. Referrers without a name are removed too: `gc` keeps everything that
a listed signature refers to, so their subject would stay forever.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ocistream.errors import ArchiveError, IntegrityError, NotFoundError, UsageError
from ocistream.layout.image_lookup import ImageLookup
from ocistream.layout.image_selection import find_named, format_image_names
from ocistream.layout.index import LayoutIndex, build_roots
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocistream.layout.directory import LayoutDirectory
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.walk import Need


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
    lookup = ImageLookup(LayoutIndex(entries, {}), partial(_read, layout))
    orphans = {index: entries[index] for index in lookup.find_orphans(removed)}
    kept = [entry for index, entry in enumerate(entries) if index not in removed and index not in orphans]
    return kept, RemovalResult(list(removed.values()), list(orphans.values()))


def _read(layout: LayoutDirectory, need: Need) -> bytes | None:
    """Return a document, or None if it is missing or damaged: its image can still be removed."""
    if layout.blob_size(need.digest) is None:
        return None
    try:
        return layout.read_blob(need.descriptor)
    except (ArchiveError, IntegrityError, NotFoundError):
        return None
