"""The contents of an image archive: which tar entries are blobs, JSON documents, volume parts or Docker's files.

Names are only keys: no path is ever built from one. Names that tools read differently are refused.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from ocistream import limits
from ocistream.errors import ArchiveError
from ocistream.oci.packed_descriptors import PackedRecords, Positions
from ocistream.oci.reference import printable
from ocistream.oci.volumes import checksum_name, parse_part_name, part_name

if TYPE_CHECKING:
    from ocistream.archive.tar_reader import TarEntry
    from ocistream.oci.volumes import Volume, VolumePart


#: Files of Docker's first image format. A docker-archive has one of each for every layer.
_DOCKER_V1_FILES: Final = frozenset({"VERSION", "json", "repositories"})
_BLOB = re.compile(r"blobs/(?:(sha256)/([0-9a-f]{64})|(sha512)/([0-9a-f]{128}))\Z")
#: The algorithm of a digest by its number of bytes.
_ALGORITHMS: Final = {32: "sha256", 64: "sha512"}
_DOCUMENTS: Final = frozenset({"oci-layout", "index.json", "manifest.json"})
#: The directories of a layout, and the directory that contains it.
_DIRECTORIES: Final = frozenset({"", "blobs", "blobs/sha256", "blobs/sha512"})
#: What `normpath` leaves at the beginning of a path (`/`, `..`), and `.` for an empty path.
_LEADING_DOTS_AND_SLASHES = re.compile(r"\A(?:/+|(?:\.\./)+|\.{1,2}\Z)+")
_TRAILING_DOTS_AND_SPACES = re.compile(r"[. ](?<=[^/. ].)[. ]*(?=/|\Z)")


def normalize_name(name: str) -> str:
    """Return an entry's name without the leading `./` that `tar c .` writes."""
    while name.startswith("./"):
        name = name[2:]
    return name


def is_illegal_name(name: str) -> bool:
    """Return whether a name leads out of the archive, or is below `blobs/` and is not a blob's name.

    Nothing is extracted here, but such a name is malicious or a mistake.
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
    """Return the digest in a name such as `blobs/sha256/<hex>`, or None for another name."""
    match = _BLOB.match(normalize_name(name))
    return f"{match[1] or match[3]}:{match[2] or match[4]}" if match else None


class Extent(NamedTuple):
    """Offset and size of a blob in a tar, in bytes. Small, because an archive may have tens of thousands of blobs."""

    offset: int
    size: int


def check_document_size(entry: Extent | TarEntry, limit: int) -> None:
    """Check that a document is small enough to be read into memory."""
    if entry.size > limit:
        msg = f"the document at byte {entry.offset} of the archive is larger than {limit} bytes"
        raise ArchiveError(msg)


class BlobTable(Mapping[str, Extent]):
    """The extent of each blob, by digest, in the order of the archive. Packed: an archive may have 30,000 blobs."""

    def __init__(self) -> None:
        """Start without blobs."""
        #: Of each blob: the number of bytes of its digest, the digest, and offset and size as text.
        self._records = PackedRecords()
        self._positions = Positions()

    def add(self, digest: str, extent: Extent) -> Extent:
        """Add a blob, unless there is one with this digest; return the extent of the one that is there."""
        if (found := self.get(digest)) is not None:
            return found
        encoded = bytes.fromhex(digest.partition(":")[2])
        # A size in a tar header may be any number.
        self._records.append(bytes([len(encoded)]) + encoded + b"%d %d" % extent)
        self._positions.add(digest, len(self._records) - 1)
        return extent

    def __getitem__(self, digest: str) -> Extent:
        for position in self._positions.find(digest):
            found, extent = self._read(position)
            if found == digest:
                return extent
        raise KeyError(digest)

    def __iter__(self) -> Iterator[str]:
        return (self._read(position)[0] for position in range(len(self)))

    def __len__(self) -> int:
        return len(self._records)

    def _read(self, position: int) -> tuple[str, Extent]:
        record = self._records[position]
        end = 1 + record[0]
        return f"{_ALGORITHMS[record[0]]}:{record[1:end].hex()}", Extent(*map(int, record[end:].split()))


class ArchiveContents:
    """The entries that were read from an archive so far."""

    def __init__(self, *, as_docker: bool = False) -> None:
        """With `as_docker`, the archive is read by its `manifest.json` if it has one, even beside an `index.json`."""
        self._as_docker = as_docker
        #: Whether the archive has a file named `repositories`, which only `docker save` and similar tools write.
        self.has_repositories_file = False
        #: `oci-layout`, `index.json` and `manifest.json`, by name.
        self.documents: dict[str, TarEntry] = {}
        self.blobs = BlobTable()
        #: Possible files of a docker-archive by name: the extent of a file, or the target of a link.
        self.docker_files: dict[str, Extent | str] = {}
        self._ambiguous: set[str] = set()
        self._name_bytes = 0
        #: Number of entries with names that are not allowed in image archives, and the first such name.
        self.illegal_count = 0
        self.first_illegal_name = ""
        #: Number of files that do not belong to an OCI archive.
        self.foreign_count = 0
        #: Parts of blobs that are split over volumes, and the checksums of these parts, by blob digest and offset.
        self.parts: dict[tuple[str, int], Extent] = {}
        self.checksums: dict[tuple[str, int], Extent] = {}
        #: Further entries of the same digest, in order. Each is verified like the first one, and stored once.
        self.duplicate_blobs: dict[tuple[str, Extent], None] = {}
        self._links = _LinkChecker()

    def add(self, entry: TarEntry) -> str | None:
        """Add an entry, and return its digest if it is a blob.

        Raises:
            ArchiveError: a second `index.json`, `manifest.json` or `oci-layout`; an entry with such a name or a blob's
                name that is not a file; or a name that other tools may read as one of these.
        """
        name = normalize_name(entry.name)
        digest = parse_blob_name(name)
        folded_name = fold_name(name)
        if digest is None and name not in _DOCUMENTS:
            _check_other_name(name, folded_name, entry.kind)
        self._links.check(name, folded_name, entry.kind)
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
            self.add_blob(digest, Extent(entry.offset, entry.size))
            if self.blobs[digest].size != entry.size:
                msg = f"the archive has {printable(entry.name)!r} twice, with different sizes"
                raise ArchiveError(msg)
            return digest
        if name in self.documents:
            # Some tools would use the first one, others the last one.
            msg = f"the archive has {name} twice"
            raise ArchiveError(msg)
        self.documents[name] = entry
        return None

    def add_blob(self, digest: str, extent: Extent) -> None:
        """Add a blob. If another extent has the same digest, the new one is a duplicate."""
        if self.blobs.add(digest, extent) != extent:
            self.duplicate_blobs[digest, extent] = None

    def is_duplicate(self, digest: str, entry: TarEntry) -> bool:
        """Return whether another entry has the same digest and comes first."""
        first = self.blobs.get(digest)
        return first is not None and first.offset != entry.offset

    def _add_part(self, name: str, part: tuple[str, int, bool], entry: TarEntry) -> None:
        extent = Extent(entry.offset, entry.size)
        digest, offset, is_checksum = part
        if (self.checksums if is_checksum else self.parts).setdefault((digest, offset), extent) is not extent:
            msg = f"the archive has {printable(name)!r} twice"
            raise ArchiveError(msg)

    def find_part(self, volume: Volume, digest: str, part: VolumePart) -> tuple[Extent, Extent]:
        """Return the extents of a part of a blob and of its checksum."""
        name = part_name(digest, part.offset)
        extent, checksum = self.parts.get((digest, part.offset)), self.checksums.get((digest, part.offset))
        if extent is None or checksum is None:
            msg = f"{volume} lacks {(name if extent is None else checksum_name(name))}, which its index lists"
            raise ArchiveError(msg)
        if extent.size != part.size:
            msg = f"{volume}: {name} has {extent.size} bytes, but its index says {part.size}"
            raise ArchiveError(msg)
        return extent, checksum

    def check_parts(self, volume: Volume) -> None:
        """Check that the archive has all parts that its index lists."""
        for digest, parts in volume.parts.items():
            for part in parts:
                if part.volume == volume.number:
                    self.find_part(volume, digest, part)

    def resolve_docker_file(self, name: str) -> tuple[str, Extent]:
        """Return the name and the extent of a file of a docker-archive. At most one link is followed."""
        file = self._find(name)
        if isinstance(file, str):
            name, file = file, self._find(file)
        if isinstance(file, Extent):
            return name, file
        msg = f"the archive lacks {printable(name)}, which its manifest.json needs"
        if isinstance(file, str):
            msg = f"{printable(name)!r} in the archive is a link to a link"
        elif self._has_too_many_names():
            msg += (
                f", or more than {limits.MAX_BLOBS} other entries, or {limits.MAX_NAME_BYTES} bytes of "
                "names, come before it"
            )
        raise ArchiveError(msg)

    def _find(self, name: str) -> Extent | str | None:
        if name in self._ambiguous:
            msg = f"the archive has {printable(name)!r} twice (some tools treat another name as this one)"
            raise ArchiveError(msg)
        digest = parse_blob_name(name)
        return self.blobs.get(digest) if digest else self.docker_files.get(name)

    def _has_too_many_names(self) -> bool:
        return self._name_bytes > limits.MAX_NAME_BYTES or len(self.docker_files) >= limits.MAX_BLOBS

    def _add_other(self, name: str, entry: TarEntry) -> None:
        """Add a possible file of a docker-archive, unless this is an OCI archive or has too many names."""
        path = extraction_path(name)
        if path in self.docker_files:
            # It is unclear which of the two is meant. That is an error only if `manifest.json` names this path.
            self._ambiguous.add(path)
            return
        if self.is_oci and not self._as_docker:
            return
        if entry.kind not in {"file", "link"} or posixpath.basename(path) in _DOCKER_V1_FILES:
            return
        if self.blobs and not name.startswith("blobs/"):
            # Bazel's docker-archives have configs under blob names, and `.tar.gz` names for layers that follow these.
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
    def index_json(self) -> TarEntry | None:
        """The entry of `index.json`."""
        return self.documents.get("index.json")

    @property
    def is_oci(self) -> bool:
        """Whether the archive has a file that only OCI archives have."""
        return "oci-layout" in self.documents or "index.json" in self.documents

    @property
    def is_docker_archive(self) -> bool:
        """Whether `manifest.json` and not `index.json` lists the images."""
        return "manifest.json" in self.documents and (self._as_docker or self.index_json is None)

    def require_index(self, label: str) -> None:
        """Check that the archive has an `index.json`; `label` names the archive in the error."""
        if self.index_json is None:
            msg = f"{printable(label, 1024)} is not an image archive: it has neither an index.json nor a manifest.json"
            raise ArchiveError(msg, hint="use an archive from `ocistream pull`, `docker save`, skopeo or podman")


class _LinkChecker:
    """Checks that no entry after a link has the link's name, or a name below it.

    Tools that extract archives write through links: with a link `d` to `.`, `d/index.json` replaces `index.json`.
    """

    def __init__(self) -> None:
        #: Hashes of paths: the paths of tens of thousands of links could take 200 MiB.
        self._seen: set[int] = set()

    def check(self, name: str, folded_name: str, kind: str) -> None:
        """Check a name against the links before it, and remember it if it is a link.

        `folded_name` is the name as `fold_name` returns it.

        Raises:
            ArchiveError: the path leads through a link.
        """
        if kind != "link" and not self._seen:
            return
        path_hashes = [0]
        prefix_hashes = set()
        for part in folded_name.split("/"):
            if part == "..":
                path_hashes = path_hashes[:-1] or [0]
            elif part not in {"", "."}:
                path_hashes.append(hash((path_hashes[-1], part)))
                prefix_hashes.add(path_hashes[-1])
        if kind == "link":
            # Tools replace a link by a second link of the same name. They do not follow the first one.
            prefix_hashes.discard(path_hashes[-1])
        if not prefix_hashes.isdisjoint(self._seen):
            msg = f"{printable(name)!r} in the archive leads through a link: some tools write to where the link points"
            raise ArchiveError(msg)
        if kind == "link":
            self._seen.add(path_hashes[-1])


def _check_other_name(name: str, folded_name: str, kind: str) -> None:
    """Check a name that is not a layout's: other tools may read it as one, or it may be nested too deeply."""
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
    """Return the name in the tar that a link points to. A symbolic link is relative to its own directory."""
    if is_symbolic:
        target = posixpath.join(posixpath.dirname(name), target)
    return posixpath.normpath(target)
