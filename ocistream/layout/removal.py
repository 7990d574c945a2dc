"""An image taken out of a layout, and what hangs on it: the work of `ocistream rm`. Blobs stay, for `unneeded`.

What refers to an image keeps all of it, as `gc` sees it; so what nobody has named, and hangs on nothing that stays,
goes along. What has an image's name stays, whatever it refers to.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from ocistream.errors import ArchiveError, IntegrityError, NotFoundError, UsageError
from ocistream.layout.gc import Mentioned, mentioned
from ocistream.layout.index import HUNG_NAME, goes_by, name_of, names_there, roots_of, tag_of
from ocistream.oci.reference import printable
from ocistream.oci.referrers import cosign_subject

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ocistream.layout.directory import LayoutDirectory
    from ocistream.oci.descriptor import Descriptor

__all__ = ["Removed", "remove"]


class Removed(NamedTuple):
    """Entries that are gone from `index.json`: the images that were named, and what hung on them."""

    images: list[Descriptor]
    hanging: list[Descriptor]


def remove(layout: LayoutDirectory, names: Sequence[str], *, dry_run: bool = False) -> Removed:
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
        return _chosen(layout, layout.entries(), names)[1]
    removed = Removed([], [])

    def change(entries: list[Descriptor]) -> list[Descriptor]:
        nonlocal removed
        kept, removed = _chosen(layout, entries, names)
        return kept

    layout.change_index(change)
    return removed


def _chosen(
    layout: LayoutDirectory, entries: Sequence[Descriptor], names: Sequence[str]
) -> tuple[list[Descriptor], Removed]:
    """Give the entries that stay, and those that go."""
    roots = roots_of(entries)
    going: dict[int, Descriptor] = {}
    for name in names:
        found = [place for place, root in enumerate(roots) if goes_by(root, name)]
        if not found:
            msg = f"there is no image {printable(name)!r} in {layout.path}"
            raise NotFoundError(msg, hint=f"its images are: {names_there(roots)}")
        if len(found) > 1 and any(entries[place].digest != name for place in found):
            several = names_there([roots[place] for place in found])
            msg = f"there are {len(found)} images that go by {printable(name)!r}"
            raise UsageError(msg, hint=f"name one: {several}; by a digest all that have it go")
        going.update((place, entries[place]) for place in found)
    images = list(going.values())
    rest = [entry for place, entry in enumerate(entries) if place not in going]
    hanging = _left_hanging(_Reading(layout), rest, images)
    gone = {id(entry) for entry in hanging}
    return [entry for entry in rest if id(entry) not in gone], Removed(images, hanging)


def _left_hanging(reading: _Reading, rest: Sequence[Descriptor], images: Sequence[Descriptor]) -> list[Descriptor]:
    """Give what hangs on what goes, and on nothing that stays."""
    loose = [entry for entry in rest if name_of(entry) is None]
    going = reading.below(entry.digest for entry in images)
    going -= reading.below(entry.digest for entry in rest if name_of(entry) is not None)
    # What hangs on nothing at all is an image of its own; what hangs on what stays keeps what it leads to.
    found: list[Descriptor] = []
    while True:
        more = [entry for entry in loose if (subject := reading.subject(entry)) is not None and subject in going]
        if not more:
            return found
        found += more
        hung = {id(entry) for entry in more}
        loose = [entry for entry in loose if id(entry) not in hung]
        going |= reading.below(entry.digest for entry in more)


class _Reading:
    """Reads manifests, each once. One that cannot be read leads nowhere: its image can be removed all the same."""

    def __init__(self, layout: LayoutDirectory) -> None:
        self._layout = layout
        self._read: dict[str, Mentioned] = {}

    def below(self, digests: Iterable[str]) -> set[str]:
        """Give the digests of these documents and of all that they list."""
        found: set[str] = set()
        todo = list(digests)
        while todo:
            digest = todo.pop()
            if digest not in found:
                found.add(digest)
                todo += [child for child, _ in self._of(digest).documents]
        return found

    def subject(self, entry: Descriptor) -> str | None:
        """Give the digest of what an entry hangs on: by its manifest, or by a tag of cosign's."""
        if (subject := self._of(entry.digest).subject) is not None:
            return subject[0]
        tag = tag_of(entry.annotations.get(HUNG_NAME))
        return cosign_subject(tag) if tag is not None else None

    def _of(self, digest: str) -> Mentioned:
        if (known := self._read.get(digest)) is None:
            known = Mentioned([], None, [])
            size = self._layout.blob_size(digest)
            if size is not None:
                with contextlib.suppress(ArchiveError, IntegrityError, NotFoundError):
                    known = mentioned(self._layout, digest, size)
            self._read[digest] = known
        return known
