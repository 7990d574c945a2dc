"""The plan of a sync: entries, credentials, the copies of each entry, and shards.

Reads no image and asks no registry: the caller supplies the names that exist.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from ocistream.errors import UsageError
from ocistream.layout.index import tag_of
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.oci.reference import Reference, printable
from ocistream.oci.tag_filters import TagFilter, glob_filter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ocistream.locations import Location
    from ocistream.registry.configuration import HostRule

__all__ = [
    "CopyDestination",
    "EntryCopies",
    "ImageCopy",
    "Login",
    "Shard",
    "SyncEntry",
    "SyncPlan",
    "drop_duplicates",
    "parse_shard",
]

_SHARD: Final = re.compile(r"([0-9]{1,6})/([0-9]{1,6})\Z")


@dataclass(frozen=True, slots=True)
class Login:
    """What a table `[credentials.NAME]` or `[registry."HOST"]` says: a user name and where its password is, or a file.

    The password is in a variable or a file; the other kind of file is one in Docker's format.
    """

    name: str
    where: str
    username: str = ""
    password_env: str = ""
    auth_file: Path | None = None
    password_file: Path | None = None


@dataclass(frozen=True, slots=True)
class SyncLocation:
    """One end as the file has it, and by which credentials it is reached; without any, by what the machine has."""

    location: Location
    login: Login | None = None


@dataclass(frozen=True, slots=True)
class SyncEntry:
    """One `[[sync]]`: `where` it stands, for errors. `choose` is None where it has no `tags`: all images are wanted."""

    where: str
    source: SyncLocation
    destinations: tuple[SyncLocation, ...]
    tag_filter: TagFilter | None = None
    platforms: PlatformChoice = ALL_PLATFORMS
    referrers: bool = True

    @property
    def has_one_image(self) -> bool:
        """Whether the source names one image."""
        return is_single_image(self.source.location)


@dataclass(frozen=True, slots=True)
class CopyDestination:
    """Where one image goes: the end itself, and how that is shown.

    In a registry it is under `reference`, in a layout or an archive it is `called` so.
    """

    sync_location: SyncLocation
    name: str
    reference: Reference | None = None
    image_name: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ImageCopy:
    """One image to all its destinations, the work of one shard. `name` is what it is called where it comes from."""

    entry: SyncEntry
    name: str
    source: Location
    destinations: tuple[CopyDestination, ...]


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """A whole file. `registries` are its rules for how each host is reached, by lower-case name."""

    entries: tuple[SyncEntry, ...]
    registries: Mapping[str, HostRule] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` parts of the work: number `index`, counted from 0."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        """Give it as --shard has it."""
        return f"{self.index}/{self.count}"

    def has_image(self, name: str) -> bool:
        """Say whether an image is this shard's: by a hash of its name, and so whatever else there is to do."""
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % self.count == self.index


def parse_shard(text: str) -> Shard:
    """Parse `I/N`.

    Raises:
        UsageError: it is malformed, or there is no such shard.
    """
    match = _SHARD.match(text)
    if match is None:
        msg = f"malformed --shard {printable(text)!r}"
        raise UsageError(msg, hint="write it I/N, with I from 0 to N-1, as in 0/4")
    index, count = int(match[1]), int(match[2])
    if index >= count:
        msg = f"--shard {printable(text)}: there is no such shard"
        raise UsageError(msg, hint=f"they count from 0: the last of {count} is {max(count - 1, 0)}/{count}")
    return Shard(index, count)


def is_single_image(location: Location) -> bool:
    """Say whether an end names one image, and not all that is there."""
    return location.name is not None if location.reference is None else not location.is_repository


# -- from an entry to copies ------------------------------------------------------------------------------


class EntryCopies:
    """The copies that an entry comes to, made each time they are gone through: of ten thousand only names are held.

    `names` are those of the images in its source: a repository's tags, or the names in a layout or an archive; where
    the source is one image, they are not looked at.
    """

    def __init__(self, entry: SyncEntry, names: Sequence[str]) -> None:
        """Choose.

        Raises:
            NotFoundError: none is chosen.
            UsageError: an image has no tag to be called by where it goes.
        """
        self._entry = entry
        self._names: Sequence[str] = ()
        if entry.has_one_image:
            _create_copy(entry, entry.source.location, entry.source.location.name)
            return
        choose = entry.tag_filter or glob_filter(())
        if entry.source.location.reference is not None:
            self._names = sorted(choose(names))
            return
        by_tag = {name: tag for name in dict.fromkeys(names) if (tag := tag_of(name))}
        chosen = set(choose(list(dict.fromkeys(by_tag.values()))))
        self._names = [name for name, tag in sorted(by_tag.items()) if tag in chosen]

    def __len__(self) -> int:
        """Count them."""
        return 1 if self._entry.has_one_image else len(self._names)

    def __iter__(self) -> Iterator[ImageCopy]:
        """Make each."""
        entry, end = self._entry, self._entry.source.location
        if entry.has_one_image:
            yield _create_copy(entry, end, end.name)
        for name in self._names:
            if end.reference is not None:
                source = replace(end, reference=replace(end.reference, tag=name), is_repository=False)
            else:
                source = replace(end, name=name)
            yield _create_copy(entry, source, name)


def _create_copy(entry: SyncEntry, source: Location, name: str | None) -> ImageCopy:
    reference = source.reference
    if reference is not None:
        shown = str(reference)
        full: str | None = reference.name if reference.tag else None
        tag = reference.tag
    else:
        # As it stands in the file: a shard is the same wherever that lies.
        shown = entry.source.location.text if entry.has_one_image else f"{entry.source.location.text}:{name}"
        full, tag = name, tag_of(name)
    digest = reference.digest if reference is not None else None
    targets = tuple(_create_destination(entry, place, full, tag, digest, shown) for place in entry.destinations)
    return ImageCopy(entry, shown, source, targets)


def _create_destination(
    entry: SyncEntry, place: SyncLocation, full: str | None, tag: str | None, digest: str | None, shown: str
) -> CopyDestination:
    end = place.location
    if end.reference is not None:
        reference = end.reference
        if end.is_repository:
            if tag is None and digest is None:
                msg = f"{entry.where}: to: {printable(shown)} has no tag to be called by in {printable(end.text)}"
                raise UsageError(msg, hint="give `to` a tag")
            reference = Reference(reference.registry, reference.repository, tag, None if tag else digest)
        return CopyDestination(place, reference.name, reference)
    called = end.name or full
    base = f"{'oci' if is_layout_location(end) else 'oci-archive'}:{end.path}"
    return CopyDestination(place, f"{base}:{called}" if called else base, image_name=called)


def drop_duplicates(found: Sequence[Iterable[ImageCopy]]) -> Iterator[ImageCopy]:
    """Leave out what is there twice: the same image to the same place. Each of `found` is gone through again.

    Raises:
        UsageError: two images would go to one place, of which one would be lost.
    """
    # Of what goes to each place no more is held than a number.
    taken: dict[int, int] = {}
    doubled: set[int] = set()
    for copy in itertools.chain.from_iterable(found):
        image = hash((copy.name, copy.entry.platforms, copy.entry.referrers))
        for target in copy.destinations:
            place = hash(target.name)
            if place not in taken:
                taken[place] = image
            elif taken[place] == image:
                doubled.add(place)
            else:
                raise _conflict_error(found, copy, target)
    return _drop_repeated(found, doubled)


def _drop_repeated(found: Sequence[Iterable[ImageCopy]], doubled: set[int]) -> Iterator[ImageCopy]:
    seen: set[int] = set()
    for copy in itertools.chain.from_iterable(found):
        targets = []
        for target in copy.destinations:
            place = hash(target.name)
            if place not in seen:
                targets.append(target)
            if place in doubled:
                seen.add(place)
        if targets:
            yield copy if len(targets) == len(copy.destinations) else replace(copy, destinations=tuple(targets))


def _conflict_error(found: Sequence[Iterable[ImageCopy]], copy: ImageCopy, target: CopyDestination) -> UsageError:
    """Name the first two images that would go to one place."""
    every = itertools.chain.from_iterable(found)
    before = next(other for other in every if target.name in {one.name for one in other.destinations})
    what = f"{printable(before.name)} and {printable(copy.name)}"
    if before.name == copy.name:
        differs = "for some platforms and for others"
        if before.entry.platforms == copy.entry.platforms:
            differs = "with its referrers and without them"
        what = f"{printable(copy.name)} {differs}"
    msg = f"{what} would both become {printable(target.name)}"
    return UsageError(msg, hint="send one of them elsewhere, or choose fewer tags")


def is_layout_location(location: Location) -> bool:
    # (`os.path.isdir` never raises: a path that cannot be examined stops its own image only, when that is opened.)
    return location.kind == "oci" or (
        location.kind == "path"
        and (location.text.endswith("/") or bool(location.path and os.path.isdir(location.path)))  # noqa: PTH112 - see above
    )
