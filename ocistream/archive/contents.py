"""The contents of an image archive: which tar entries are blobs, JSON documents, volume parts or Docker's files.

Names are only keys: no path is ever built from one. Names that tools read differently are refused.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from ocistream import limits
from ocistream.errors import ArchiveError
from ocistream.oci.reference import printable
from ocistream.oci.volumes import parse_part_name

if TYPE_CHECKING:
    from ocistream.archive.tar import TarEntry

__all__ = ["ArchiveContents", "Extent", "normalize_name", "parse_blob_name"]

#: Files of Docker's first image format, which docker-archives carry along, one of each for every layer.
_DOCKER_V1_FILES: Final = frozenset({"VERSION", "json", "repositories"})
_BLOB = re.compile(r"blobs/(?:(sha256)/([0-9a-f]{64})|(sha512)/([0-9a-f]{128}))\Z")
_DOCUMENTS: Final = frozenset({"oci-layout", "index.json", "manifest.json"})
#: The directories of a layout, and the directory that contains it.
_DIRECTORIES: Final = frozenset({"", "blobs", "blobs/sha256", "blobs/sha512"})
#: What `normpath` leaves of `/` and `..` at the beginning of a path, and `.` for no path.
_LEADING_DOTS_AND_SLASHES = re.compile(r"\A(?:/+|(?:\.\./)+|\.{1,2}\Z)+")
_TRAILING_DOTS_AND_SPACES = re.compile(r"[. ](?<=[^/. ].)[. ]*(?=/|\Z)")


def normalize_name(name: str) -> str:
    """Give an entry's name without the `./` that `tar c .` writes in front."""
    while name.startswith("./"):
        name = name[2:]
    return name


def is_illegal_name(name: str) -> bool:
    """Say whether a name leads out of the archive, or stands where only blobs do and is none.

    Nothing is ever unpacked here, but whoever wrote it meant no good, or made a mistake.
    """
    parts = name.rstrip("/").split("/")
    if name.startswith("/") or ".." in parts:
        return True
    return parts[0] == "blobs" and len(parts) > 2 and parse_blob_name(name) is None


def extraction_path(name: str) -> str:
    """Return the path to which tools extract an entry: simplified, and never outside of the directory."""
    return _LEADING_DOTS_AND_SLASHES.sub("", posixpath.normpath(name))


def fold_name(name: str) -> str:
    """Return a name as file systems see it that ignore case (macOS), or backslashes and trailing dots (Windows)."""
    return _TRAILING_DOTS_AND_SPACES.sub("", name.casefold().replace("\\", "/"))


def parse_blob_name(name: str) -> str | None:
    """Give the digest that a name such as `blobs/sha256/<hex>` stands for, or None."""
    match = _BLOB.match(normalize_name(name))
    return f"{match[1] or match[3]}:{match[2] or match[4]}" if match else None


class Extent(NamedTuple):
    """Where a blob lies in a tar, in bytes: as little as is needed, since there may be tens of thousands."""

    offset: int
    size: int


class ArchiveContents:
    """What an archive was seen to contain so far."""

    def __init__(self, *, as_docker: bool = False) -> None:
        """With `as_docker` the archive is read by its `manifest.json` if it has one, whatever else it has."""
        self._as_docker = as_docker
        #: Whether there is a file named `repositories`, which only `docker save` and tools like it write.
        self.has_repositories_file = False
        self.oci_layout: TarEntry | None = None
        self.index_json: TarEntry | None = None
        self.manifest_json: TarEntry | None = None
        self.blobs: dict[str, Extent] = {}
        #: What may belong to a docker-archive, by its name: a file's place, or what a link leads to.
        self.docker_files: dict[str, Extent | str] = {}
        self._ambiguous: set[str] = set()
        self._name_bytes = 0
        #: Entries with names that no image archive has, and the first of them.
        self.illegal_count = 0
        self.first_illegal_name = ""
        #: Files that belong to no OCI archive.
        self.foreign_count = 0
        #: Parts of blobs that other volumes have the rest of, by digest and offset, and what says their digests.
        self.parts: dict[tuple[str, int], Extent] = {}
        self.checksums: dict[tuple[str, int], Extent] = {}
        #: Blobs that stand there once more, each to be checked as the first one is.
        self.duplicate_blobs: list[tuple[str, Extent]] = []
        self._links = _LinkChecker()

    def add(self, entry: TarEntry) -> str | None:
        """Note an entry, and give its digest where it is a blob.

        Raises:
            ArchiveError: a second `index.json`, `manifest.json` or `oci-layout`, something else than a file under such
                a name or a blob's, or a name that other tools may take for one of these.
        """
        name = normalize_name(entry.name)
        digest = parse_blob_name(name)
        seen = fold_name(name)
        if digest is None and name not in _DOCUMENTS:
            _check_other_name(name, seen, entry.kind)
        self._links.check(name, seen, entry.kind)
        if is_illegal_name(name):
            self.illegal_count += 1
            self.first_illegal_name = self.first_illegal_name or name
        if name.startswith("parts/") and entry.kind == "file" and (part := parse_part_name(name)) is not None:
            self._add_part(name, part, entry)
            return None
        if digest is None and name not in _DOCUMENTS:
            self.foreign_count += entry.kind != "directory"
            self.has_repositories_file = self.has_repositories_file or (name == "repositories" and entry.kind == "file")
            self._add_other(name, entry)
            return None
        if entry.kind != "file":
            msg = f"{printable(entry.name)!r} in the archive is not a regular file"
            raise ArchiveError(msg)
        if digest is not None:
            place = Extent(entry.offset, entry.size)
            first = self.blobs.setdefault(digest, place)
            if first is not place:
                self.duplicate_blobs.append((digest, place))
            if first.size != entry.size:
                msg = f"{printable(entry.name)!r} stands twice in the archive, with different sizes"
                raise ArchiveError(msg)
            return digest
        self._add_document(name, entry)
        return None

    def _add_part(self, name: str, part: tuple[str, int, bool], entry: TarEntry) -> None:
        place = Extent(entry.offset, entry.size)
        digest, offset, is_checksum = part
        if (self.checksums if is_checksum else self.parts).setdefault((digest, offset), place) is not place:
            msg = f"{printable(name)!r} stands twice in the archive"
            raise ArchiveError(msg)

    def resolve_docker_file(self, name: str) -> tuple[str, Extent]:
        """Find a file of a docker-archive, over at most one link; give its own name and its place.

        Raises:
            ArchiveError: it is not there, or twice.
        """
        found = self._find(name)
        if isinstance(found, str):
            name, found = found, self._find(found)
        if isinstance(found, Extent):
            return name, found
        msg = f"the archive lacks {printable(name)}, which its manifest.json needs"
        if isinstance(found, str):
            msg = f"{printable(name)!r} in the archive is a link to a link"
        elif self._has_too_many_names():
            msg += (
                f", or more than {limits.MAX_BLOBS} others, or {limits.MAX_NAME_BYTES} bytes of names, stand before it"
            )
        raise ArchiveError(msg)

    def _add_document(self, name: str, entry: TarEntry) -> None:
        there = {"oci-layout": self.oci_layout, "index.json": self.index_json, "manifest.json": self.manifest_json}[
            name
        ]
        if there is not None:
            # From a file the last one would count, from a pipe the first.
            msg = f"{name} stands twice in the archive"
            raise ArchiveError(msg)
        if name == "oci-layout":
            self.oci_layout = entry
        elif name == "index.json":
            self.index_json = entry
        else:
            self.manifest_json = entry

    def _find(self, name: str) -> Extent | str | None:
        if name in self._ambiguous:
            msg = f"{printable(name)!r} is in the archive twice (some tools treat another name as this one)"
            raise ArchiveError(msg)
        digest = parse_blob_name(name)
        return self.blobs.get(digest) if digest else self.docker_files.get(name)

    def _has_too_many_names(self) -> bool:
        return self._name_bytes > limits.MAX_NAME_BYTES or len(self.docker_files) >= limits.MAX_BLOBS

    def _add_other(self, name: str, entry: TarEntry) -> None:
        """Note what may belong to a docker-archive, as long as this can still be one, and as far as names have room."""
        path = extraction_path(name)
        if path in self.docker_files:
            # Which of the two is meant? That matters only if somebody means it.
            self._ambiguous.add(path)
            return
        is_oci = not self._as_docker and (self.oci_layout or self.index_json)
        if is_oci or entry.kind not in {"file", "link"} or posixpath.basename(path) in _DOCKER_V1_FILES:
            return
        if self.blobs and not name.startswith("blobs/"):
            # Bazel's docker-archives have their configs under blobs' names, and `.tar.gz` behind those of their layers.
            return
        self._name_bytes += len(path) + len(entry.target)
        if self._has_too_many_names():
            return
        if path != name:
            self._ambiguous.add(path)
        self.docker_files[path] = (
            Extent(entry.offset, entry.size)
            if entry.kind == "file"
            else resolve_link(path, entry.target, entry.is_symbolic)
        )

    @property
    def is_docker_archive(self) -> bool:
        """Whether `manifest.json` says which images there are, and `index.json` does not."""
        return self.manifest_json is not None and (self._as_docker or self.index_json is None)

    def require_index(self) -> TarEntry:
        """Give the entry of `index.json`.

        Raises:
            ArchiveError: it has none.
        """
        if self.index_json is not None:
            return self.index_json
        msg = "this is no image archive: it has neither an index.json nor a manifest.json"
        raise ArchiveError(msg, hint="give one that `ocistream pull`, `docker save`, skopeo or podman has written")


class _LinkChecker:
    """The links of an archive. No entry after a link may have its name, or a name below it.

    Tools that extract archives write through links: with a link `d` to `.`, `d/index.json` replaces `index.json`.
    """

    def __init__(self) -> None:
        #: Hashes of paths: the paths of tens of thousands of links could take 200 MiB.
        self._seen: set[int] = set()

    def check(self, name: str, folded_name: str, kind: str) -> None:
        """Check a name against the links before it, and note it if it is a link; `seen` is the name, folded.

        Raises:
            ArchiveError: the name leads through a link.
        """
        if kind != "link" and not self._seen:
            return
        above = [0]
        passed = set()
        for part in folded_name.split("/"):
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


def _check_other_name(name: str, folded_name: str, kind: str) -> None:
    """Check a name that is none of a layout; `seen` is the name, folded.

    Raises:
        ArchiveError: other tools may take it for one, or it is too deep.
    """
    if name.count("/") > limits.MAX_NAME_DEPTH:
        msg = f"{printable(name)!r} in the archive is more than {limits.MAX_NAME_DEPTH} directories deep"
        raise ArchiveError(msg)
    path = extraction_path(folded_name)
    if path in _DOCUMENTS or _BLOB.match(path):
        msg = f"some tools read the entry {printable(name)!r} as {path}, others do not"
        raise ArchiveError(msg)
    if path in _DIRECTORIES and kind != "directory":
        msg = f"{printable(name)!r} in the archive is not a directory"
        raise ArchiveError(msg)


def resolve_link(name: str, target: str, is_symbolic: bool) -> str:
    """Give the name in the tar of what a link leads to; a symbolic one is relative to where it stands."""
    if is_symbolic:
        target = posixpath.join(posixpath.dirname(name), target)
    return posixpath.normpath(target)
