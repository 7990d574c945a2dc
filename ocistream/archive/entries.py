"""Which entries of a tar belong to an image archive, by their names; all others are passed over.

A name becomes nothing but a key: no path is ever made from it.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from ocistream import limits
from ocistream.errors import ArchiveError
from ocistream.oci.reference import printable
from ocistream.oci.volumes import part_of

if TYPE_CHECKING:
    from ocistream.archive.tar import Entry

__all__ = ["Contents", "Place", "blob_digest", "plain_name"]

#: Files of Docker's first image format, which docker-archives carry along, one of each for every layer.
_OF_VERSION_1: Final = frozenset({"VERSION", "json", "repositories"})
_BLOB = re.compile(r"blobs/(?:(sha256)/([0-9a-f]{64})|(sha512)/([0-9a-f]{128}))\Z")
_DOCUMENTS: Final = frozenset({"oci-layout", "index.json", "manifest.json"})
#: The directories of a layout, and the directory that contains it.
_DIRECTORIES: Final = frozenset({"", "blobs", "blobs/sha256", "blobs/sha512"})
#: What `normpath` leaves of `/` and `..` at the beginning of a path, and `.` for no path.
_ABOVE = re.compile(r"\A(?:/+|(?:\.\./)+|\.{1,2}\Z)+")
_TRAILING = re.compile(r"[. ](?<=[^/. ].)[. ]*(?=/|\Z)")


def plain_name(name: str) -> str:
    """Give an entry's name without the `./` that `tar c .` writes in front."""
    while name.startswith("./"):
        name = name[2:]
    return name


def is_illegal(name: str) -> bool:
    """Say whether a name leads out of the archive, or stands where only blobs do and is none.

    Nothing is ever unpacked here, but whoever wrote it meant no good, or made a mistake.
    """
    parts = name.rstrip("/").split("/")
    if name.startswith("/") or ".." in parts:
        return True
    return parts[0] == "blobs" and len(parts) > 2 and blob_digest(name) is None


def path_of(name: str) -> str:
    """Return the path to which tools extract an entry: simplified, and never outside of the directory."""
    return _ABOVE.sub("", posixpath.normpath(name))


def folded(name: str) -> str:
    """Return a name as file systems see it that ignore case (macOS), or backslashes and trailing dots (Windows)."""
    return _TRAILING.sub("", name.casefold().replace("\\", "/"))


def blob_digest(name: str) -> str | None:
    """Give the digest that a name such as `blobs/sha256/<hex>` stands for, or None."""
    match = _BLOB.match(plain_name(name))
    return f"{match[1] or match[3]}:{match[2] or match[4]}" if match else None


class Place(NamedTuple):
    """Where a blob lies in a tar, in bytes: as little as is needed, since there may be tens of thousands."""

    offset: int
    size: int


class Contents:
    """What an archive was seen to contain so far."""

    def __init__(self, *, as_docker: bool = False) -> None:
        """With `as_docker` the archive is read by its `manifest.json` if it has one, whatever else it has."""
        self._as_docker = as_docker
        #: Whether there is a file named `repositories`, which only `docker save` and tools like it write.
        self.repositories = False
        self.layout: Entry | None = None
        self.index: Entry | None = None
        self.docker: Entry | None = None
        self.blobs: dict[str, Place] = {}
        #: What may belong to a docker-archive, by its name: a file's place, or what a link leads to.
        self.others: dict[str, Place | str] = {}
        self._ambiguous: set[str] = set()
        self._names = 0
        #: Entries with names that no image archive has, and the first of them.
        self.illegal = 0
        self.first_illegal = ""
        #: Files that belong to no OCI archive.
        self.foreign = 0
        #: Parts of blobs that other volumes have the rest of, by digest and offset, and what says their digests.
        self.parts: dict[tuple[str, int], Place] = {}
        self.checksums: dict[tuple[str, int], Place] = {}
        #: Blobs that stand there once more, each to be checked as the first one is.
        self.repeated: list[tuple[str, Place]] = []
        self._links = _Links()

    def add(self, entry: Entry) -> str | None:
        """Note an entry, and give its digest where it is a blob.

        Raises:
            ArchiveError: a second `index.json`, `manifest.json` or `oci-layout`, something else than a file under such
                a name or a blob's, or a name that other tools may take for one of these.
        """
        name = plain_name(entry.name)
        digest = blob_digest(name)
        seen = folded(name)
        if digest is None and name not in _DOCUMENTS:
            _check_other_name(name, seen, entry.kind)
        self._links.check(name, seen, entry.kind)
        if is_illegal(name):
            self.illegal += 1
            self.first_illegal = self.first_illegal or name
        if name.startswith("parts/") and entry.kind == "file" and (part := part_of(name)) is not None:
            self._add_part(name, part, entry)
            return None
        if digest is None and name not in _DOCUMENTS:
            self.foreign += entry.kind != "directory"
            self.repositories = self.repositories or (name == "repositories" and entry.kind == "file")
            self._add_other(name, entry)
            return None
        if entry.kind != "file":
            msg = f"{printable(entry.name)!r} in the archive is not a regular file"
            raise ArchiveError(msg)
        if digest is not None:
            place = Place(entry.offset, entry.size)
            first = self.blobs.setdefault(digest, place)
            if first is not place:
                self.repeated.append((digest, place))
            if first.size != entry.size:
                msg = f"{printable(entry.name)!r} stands twice in the archive, with different sizes"
                raise ArchiveError(msg)
            return digest
        self._add_document(name, entry)
        return None

    def _add_part(self, name: str, part: tuple[str, int, bool], entry: Entry) -> None:
        place = Place(entry.offset, entry.size)
        digest, offset, is_checksum = part
        if (self.checksums if is_checksum else self.parts).setdefault((digest, offset), place) is not place:
            msg = f"{printable(name)!r} stands twice in the archive"
            raise ArchiveError(msg)

    def resolve(self, name: str) -> tuple[str, Place]:
        """Find a file of a docker-archive, over at most one link; give its own name and its place.

        Raises:
            ArchiveError: it is not there, or twice.
        """
        found = self._found(name)
        if isinstance(found, str):
            name, found = found, self._found(found)
        if isinstance(found, Place):
            return name, found
        msg = f"the archive lacks {printable(name)}, which its manifest.json needs"
        if isinstance(found, str):
            msg = f"{printable(name)!r} in the archive is a link to a link"
        elif self._has_too_many():
            msg += f", or more than {limits.MAX_BLOBS} others, or {limits.MAX_NAMES} bytes of names, stand before it"
        raise ArchiveError(msg)

    def _add_document(self, name: str, entry: Entry) -> None:
        there = {"oci-layout": self.layout, "index.json": self.index, "manifest.json": self.docker}[name]
        if there is not None:
            # From a file the last one would count, from a pipe the first.
            msg = f"{name} stands twice in the archive"
            raise ArchiveError(msg)
        if name == "oci-layout":
            self.layout = entry
        elif name == "index.json":
            self.index = entry
        else:
            self.docker = entry

    def _found(self, name: str) -> Place | str | None:
        if name in self._ambiguous:
            msg = f"{printable(name)!r} is in the archive twice (some tools treat another name as this one)"
            raise ArchiveError(msg)
        digest = blob_digest(name)
        return self.blobs.get(digest) if digest else self.others.get(name)

    def _has_too_many(self) -> bool:
        return self._names > limits.MAX_NAMES or len(self.others) >= limits.MAX_BLOBS

    def _add_other(self, name: str, entry: Entry) -> None:
        """Note what may belong to a docker-archive, as long as this can still be one, and as far as names have room."""
        path = path_of(name)
        if path in self.others:
            # Which of the two is meant? That matters only if somebody means it.
            self._ambiguous.add(path)
            return
        is_oci = not self._as_docker and (self.layout or self.index)
        if is_oci or entry.kind not in {"file", "link"} or posixpath.basename(path) in _OF_VERSION_1:
            return
        if self.blobs and not name.startswith("blobs/"):
            # Bazel's docker-archives have their configs under blobs' names, and `.tar.gz` behind those of their layers.
            return
        self._names += len(path) + len(entry.target)
        if self._has_too_many():
            return
        if path != name:
            self._ambiguous.add(path)
        self.others[path] = (
            Place(entry.offset, entry.size)
            if entry.kind == "file"
            else link_target(path, entry.target, entry.is_symbolic)
        )

    @property
    def is_docker_archive(self) -> bool:
        """Whether `manifest.json` says which images there are, and `index.json` does not."""
        return self.docker is not None and (self._as_docker or self.index is None)

    def required_index(self) -> Entry:
        """Give the entry of `index.json`.

        Raises:
            ArchiveError: it has none.
        """
        if self.index is not None:
            return self.index
        msg = "this is no image archive: it has neither an index.json nor a manifest.json"
        raise ArchiveError(msg, hint="give one that `ocistream pull`, `docker save`, skopeo or podman has written")


class _Links:
    """The links of an archive. No entry after a link may have its name, or a name below it.

    Tools that extract archives write through links: with a link `d` to `.`, `d/index.json` replaces `index.json`.
    """

    def __init__(self) -> None:
        #: Hashes of paths: the paths of tens of thousands of links could take 200 MiB.
        self._seen: set[int] = set()

    def check(self, name: str, seen: str, kind: str) -> None:
        """Check a name against the links before it, and note it if it is a link; `seen` is the name, folded.

        Raises:
            ArchiveError: the name leads through a link.
        """
        if kind != "link" and not self._seen:
            return
        above = [0]
        passed = set()
        for part in seen.split("/"):
            if part == "..":
                above = above[:-1] or [0]
            elif part not in {"", "."}:
                above.append(hash((above[-1], part)))
                passed.add(above[-1])
        if kind == "link":
            # A link in the place of a link is not followed.
            passed.discard(above[-1])
        if not passed.isdisjoint(self._seen):
            msg = f"{printable(name)!r} in the archive leads through a link: some tools write to where the link points"
            raise ArchiveError(msg)
        if kind == "link":
            self._seen.add(above[-1])


def _check_other_name(name: str, seen: str, kind: str) -> None:
    """Check a name that is none of a layout; `seen` is the name, folded.

    Raises:
        ArchiveError: other tools may take it for one, or it is too deep.
    """
    if name.count("/") > limits.MAX_NAME_DEPTH:
        msg = f"{printable(name)!r} in the archive is more than {limits.MAX_NAME_DEPTH} directories deep"
        raise ArchiveError(msg)
    path = path_of(seen)
    if path in _DOCUMENTS or _BLOB.match(path):
        msg = f"some tools read the entry {printable(name)!r} as {path}, others do not"
        raise ArchiveError(msg)
    if path in _DIRECTORIES and kind != "directory":
        msg = f"{printable(name)!r} in the archive is not a directory"
        raise ArchiveError(msg)


def link_target(name: str, target: str, is_symbolic: bool) -> str:
    """Give the name in the tar of what a link leads to; a symbolic one is relative to where it stands."""
    if is_symbolic:
        target = posixpath.join(posixpath.dirname(name), target)
    return posixpath.normpath(target)
