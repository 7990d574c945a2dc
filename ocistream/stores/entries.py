"""Which entries of a tar belong to an OCI archive, by their names; all others are passed over.

A name becomes nothing but a key: no path is ever made from it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from ocistream.errors import ArchiveError, UnsupportedError
from ocistream.reference import printable

if TYPE_CHECKING:
    from ocistream.stores.tar import Entry

__all__ = ["Contents", "Place", "blob_digest", "plain_name"]

_BLOB = re.compile(r"blobs/(?:(sha256)/([0-9a-f]{64})|(sha512)/([0-9a-f]{128}))\Z")


def plain_name(name: str) -> str:
    """Give an entry's name without the `./` that `tar c .` writes in front."""
    while name.startswith("./"):
        name = name[2:]
    return name


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

    def __init__(self) -> None:
        """Begin with nothing."""
        self.layout: Entry | None = None
        self.index: Entry | None = None
        self.docker: Entry | None = None
        self.blobs: dict[str, Place] = {}
        #: Blobs that stand there once more, each to be checked as the first one is.
        self.repeated: list[tuple[str, Place]] = []

    def add(self, entry: Entry) -> str | None:
        """Note an entry, and give its digest where it is a blob.

        Raises:
            ArchiveError: a second `index.json`, or something under a blob's name that is no file.
        """
        name = plain_name(entry.name)
        if entry.kind == "directory":
            return None
        digest = blob_digest(name)
        if digest is None and name not in {"oci-layout", "index.json", "manifest.json"}:
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
        if name == "index.json":
            if self.index is not None:
                msg = "index.json stands twice in the archive"
                raise ArchiveError(msg)
            self.index = entry
        elif name == "oci-layout":
            self.layout = entry
        else:
            self.docker = entry
        return None

    def required_index(self) -> Entry:
        """Give the entry of `index.json`.

        Raises:
            UnsupportedError: it is an archive of another kind.
            ArchiveError: it is none.
        """
        if self.index is not None:
            return self.index
        if self.docker is not None:
            msg = "this is what older versions of `docker save` write, which this version cannot read"
            raise UnsupportedError(msg, hint="`skopeo copy docker-archive:FILE oci-archive:FILE` converts it")
        msg = "this is no OCI archive: it has no index.json"
        raise ArchiveError(msg)
