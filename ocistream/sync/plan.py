"""The plan of a sync: entries, credentials, the copies of each entry, and shards.

Reads no image and asks no registry: the caller supplies the names that exist.
"""

from __future__ import annotations

import hashlib
import itertools
import json
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

#: Marks for the hashes of names. Of ten thousand names, a few hundred share one.
_MARKS: Final = 1 << 17
#: Names that are packed together.
_NAMES_PER_GROUP: Final = 64
_SHARD: Final = re.compile(r"([0-9]{1,6})/([0-9]{1,6})\Z")


@dataclass(frozen=True, slots=True)
class Login:
    """The table `[credentials.NAME]` or `[registry."HOST"]`: a user name with its password's place, or a file.

    The password is in an environment variable or a file; `auth_file` is in Docker's format. `where` is the table's
    position for error messages.
    """

    where: str
    username: str = ""
    password_env: str = ""
    auth_file: Path | None = None
    password_file: Path | None = None


@dataclass(frozen=True, slots=True)
class SyncLocation:
    """A location in the file, and its login. Without a login, the machine's credentials apply."""

    location: Location
    login: Login | None = None


@dataclass(frozen=True, slots=True)
class SyncEntry:
    """One `[[sync]]`; `where` is its position for error messages. Without a `tag_filter`, all images are copied."""

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
    """One image's destination: the location, and the name to show.

    In a registry, the image is stored under `reference`; in a layout or an archive, its name is `image_name`.
    """

    sync_location: SyncLocation
    name: str
    reference: Reference | None = None
    image_name: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ImageCopy:
    """One image to all its destinations, the work of one shard. `name` is its name at the source."""

    entry: SyncEntry
    name: str
    source: Location
    destinations: tuple[CopyDestination, ...]


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """A complete file. `registries` are the rules for connecting to each host, by lower-case name."""

    entries: tuple[SyncEntry, ...]
    registries: Mapping[str, HostRule] = field(default_factory=dict)

    @property
    def sync_locations(self) -> list[SyncLocation]:
        """The sources and destinations of all entries, in the order of the file."""
        return [location for entry in self.entries for location in (entry.source, *entry.destinations)]


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` parts of the work: number `index`, counted from 0, as in Kubernetes."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        """Return it as --shard writes it."""
        return f"{self.index}/{self.count}"

    def has_image(self, name: str) -> bool:
        """Return whether this shard copies the image. Only a hash of its name decides, not the other images."""
        # SHA-256, because Python's own hash differs from run to run. The image with all its destinations is in one
        # shard, or its blobs would be read several times.
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % self.count == self.index


def parse_shard(text: str) -> Shard:
    """Parse `I/N`.

    Raises:
        UsageError: the text is malformed, or I is not less than N.
    """
    match = _SHARD.match(text)
    if match is None:
        msg = f"malformed --shard {printable(text)!r}"
        raise UsageError(msg, hint="write I/N, with I from 0 to N-1, such as 0/4")
    index, count = int(match[1]), int(match[2])
    if index >= count:
        msg = f"--shard {printable(text)}: no such shard"
        hint = f"shards count from 0: the last of {count} is {count - 1}/{count}" if count else "N must be at least 1"
        raise UsageError(msg, hint=hint)
    return Shard(index, count)


def is_single_image(location: Location) -> bool:
    """Return whether a location names one image, instead of all its images."""
    return location.name is not None if location.reference is None else not location.is_repository


# -- from an entry to copies ------------------------------------------------------------------------------


class EntryCopies:
    """The copies of an entry, created at each iteration: for ten thousand of them only names are in memory.

    `names` are the images in the source: a repository's tags, or the names in a layout or an archive. They are ignored
    if the source is one image.
    """

    def __init__(self, entry: SyncEntry, names: Iterable[str]) -> None:
        """Filter the names.

        Raises:
            NotFoundError: no image matches.
            UsageError: an image has no tag that could name it at the destination.
        """
        self._entry = entry
        #: The names in groups, as JSON: ten thousand strings would take 0.6 MB.
        self._names: list[str] = []
        if entry.has_one_image:
            _create_copy(entry, entry.source.location, entry.source.location.name)
            return
        names = sorted(names)
        choose = entry.tag_filter or glob_filter(())
        # A dict, because a set of ten thousand strings takes twice the memory.
        chosen = dict.fromkeys(choose(list(dict.fromkeys(filter(None, map(tag_of, names))))))
        selected = [name for name in names if tag_of(name) in chosen]
        for start in range(0, len(selected), _NAMES_PER_GROUP):
            self._names.append(json.dumps(selected[start : start + _NAMES_PER_GROUP]))

    def __iter__(self) -> Iterator[ImageCopy]:
        """Yield each copy."""
        entry, location = self._entry, self._entry.source.location
        if entry.has_one_image:
            yield _create_copy(entry, location, location.name)
        for name in itertools.chain.from_iterable(map(json.loads, self._names)):
            if location.reference is not None:
                source = replace(location, reference=replace(location.reference, tag=name), is_repository=False)
            else:
                source = replace(location, name=name)
            yield _create_copy(entry, source, name)


def _create_copy(entry: SyncEntry, source: Location, name: str | None) -> ImageCopy:
    reference = source.reference
    if reference is not None:
        display_name = str(reference)
        full_name: str | None = reference.name if reference.tag else None
        tag = reference.tag
    else:
        # Use the name in the sync file, so that the shard does not depend on the directory of the file.
        display_name = entry.source.location.text if entry.has_one_image else f"{entry.source.location.text}:{name}"
        full_name, tag = name, tag_of(name)
    digest = reference.digest if reference is not None else None
    destinations = tuple(
        _create_destination(entry, location, full_name, tag, digest, display_name) for location in entry.destinations
    )
    return ImageCopy(entry, display_name, source, destinations)


def _create_destination(
    entry: SyncEntry,
    sync_location: SyncLocation,
    full_name: str | None,
    tag: str | None,
    digest: str | None,
    display_name: str,
) -> CopyDestination:
    location = sync_location.location
    if location.reference is not None:
        reference = location.reference
        if location.is_repository:
            if tag is None and digest is None:
                msg = (
                    f"{entry.where}: to: {printable(display_name)} has no tag for its name in "
                    f"{printable(location.text)}"
                )
                raise UsageError(msg, hint="add a tag to `to`")
            reference = Reference(reference.registry, reference.repository, tag, None if tag else digest)
        return CopyDestination(sync_location, reference.name, reference)
    image_name = location.name or full_name
    base = f"{'oci' if is_layout_location(location) else 'oci-archive'}:{location.path}"
    return CopyDestination(sync_location, f"{base}:{image_name}" if image_name else base, image_name=image_name)


def drop_duplicates(copies_by_entry: Sequence[Iterable[ImageCopy]]) -> Iterator[ImageCopy]:
    """Drop repeated copies of the same image to the same destination. Iterates several times over each entry's copies.

    Raises:
        UsageError: two images would get one name at a destination, and one would be lost.
    """
    repeated = _find_repeated(copies_by_entry)
    #: By the hash of a destination's name: what its first image is.
    images: dict[int, tuple[str, PlatformChoice, bool]] = {}
    for copy in itertools.chain.from_iterable(copies_by_entry) if repeated else ():
        image = copy.name, copy.entry.platforms, copy.entry.referrers
        for destination in copy.destinations:
            key = hash(destination.name)
            if key in repeated and (first := images.setdefault(key, image)) != image:
                raise _conflict_error(first, image, destination)
    return _take_each_once(copies_by_entry, repeated)


def _find_repeated(copies_by_entry: Sequence[Iterable[ImageCopy]]) -> set[int]:
    """Return the hashed names of destinations that several copies have, and perhaps a few others.

    These are few, so only they stay in memory. Of the others, a hash of their hash is marked in a small table.
    """
    seen = bytearray(_MARKS)
    repeated: set[int] = set()
    for copy in itertools.chain.from_iterable(copies_by_entry):
        for destination in copy.destinations:
            key = hash(destination.name)
            if seen[key % _MARKS]:
                repeated.add(key)
            seen[key % _MARKS] = 1
    return repeated


def _take_each_once(copies_by_entry: Sequence[Iterable[ImageCopy]], repeated: set[int]) -> Iterator[ImageCopy]:
    """Yield the copies, each destination once. `repeated` are the hashed names of those that several copies have."""
    taken: set[int] = set()

    def take(destination: CopyDestination) -> bool:
        key = hash(destination.name)
        if key in taken:
            return False
        if key in repeated:
            taken.add(key)
        return True

    for copy in itertools.chain.from_iterable(copies_by_entry):
        if destinations := tuple(filter(take, copy.destinations)):
            yield replace(copy, destinations=destinations)


def _conflict_error(
    first: tuple[str, PlatformChoice, bool], second: tuple[str, PlatformChoice, bool], destination: CopyDestination
) -> UsageError:
    """Return the error that names two images, by their names, platforms and referrers, with one destination."""
    images = f"{printable(first[0])} and {printable(second[0])}"
    if first[0] == second[0]:
        same_platforms = first[1] == second[1]
        differs = "with its referrers and without them" if same_platforms else "for some platforms and for others"
        images = f"{printable(first[0])} {differs}"
    msg = f"{images} would both become {printable(destination.name)}"
    return UsageError(msg, hint="choose another destination for one of them, or fewer tags")


def is_layout_location(location: Location) -> bool:
    """Return whether a location is a layout directory."""
    # `os.path.isdir` never raises: a path that cannot be examined stops only its own image, when that is opened.
    return location.kind == "oci" or (
        location.kind == "path"
        and (location.text.endswith("/") or bool(location.path and os.path.isdir(location.path)))  # noqa: PTH112 - see above
    )
