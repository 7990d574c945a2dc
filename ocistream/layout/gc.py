"""Garbage collection of a layout: find the blobs that no image needs and delete them (`ocistream gc`).

Nothing is deleted if a listed manifest cannot be read.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError
from ocistream.oci.descriptor import ACCEPTED_TYPES, UNKNOWN_MEDIA_TYPE, Descriptor
from ocistream.oci.documents import MANIFEST_FIELDS, intern_string
from ocistream.oci.reference import is_digest
from ocistream.oci.strict_json import parse_json
from ocistream.streams import files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.layout.directory import LayoutDirectory

__all__ = ["DocumentReferences", "GCResult", "collect_garbage", "read_references"]

_LIST_FIELDS: Final = ("manifests", "layers", "blobs")


class _StoredBlob(NamedTuple):
    """One that is there: when it was last used, in nanoseconds since 1970, and its size in bytes."""

    last_used: int
    digest: str
    size: int


class DocumentReferences(NamedTuple):
    """What a document lists: other documents, with their media types; what it refers to; and what only has bytes."""

    documents: list[tuple[str, str]]
    subject: tuple[str, str] | None
    leaves: list[str]


@dataclass(slots=True)
class GCResult:
    """What was dropped, or would be: digests, sorted, and their bytes. All sizes are in bytes.

    `left` is what all blobs have that are there afterwards, `needed` those among them that images need, and `young`
    those that nobody needs and that are spared since they were used a moment ago. `unfinished` are the sizes of the
    files that processes have left in their middle, and that were dropped too; they are no blobs, and not counted above.
    """

    deleted: list[str] = field(default_factory=list)
    deleted_size: int = 0
    remaining_size: int = 0
    needed_size: int = 0
    recent_size: int = 0
    unfinished_sizes: list[int] = field(default_factory=list)


def collect_garbage(
    layout: LayoutDirectory, *, max_size: int | None = None, older_than: float | None = None, dry_run: bool = False
) -> GCResult:
    """Drop blobs that no image in `index.json` needs, those first that were not used for longest.

    With `max_size` no more of them than it takes for all blobs to have no more bytes than that; else all. What was
    used in the last `older_than` seconds stays; where that is not given, it is `limits.GC_SPARED`, but with `max_size`
    nothing is spared unless somebody is adding images. With `dry_run` nothing is changed. Parts of blobs and
    uploads that nobody has gone on with for `older_than` seconds go as well; where that is not given, for a week.

    No process of ours changes the index meanwhile. One that takes a blob into use is seen by that (`touch`); who has it
    open already keeps it.

    Raises:
        NotFoundError: there is no such directory.
        ArchiveError: it is no layout, or its index, or a manifest below it, is malformed: nothing is dropped then.
        LocalDiskError: it cannot be read or written.
    """
    layout.check()
    with files.disk_errors(f"cannot read {layout.path}"), files.locked_directory(layout.path):
        done_with = limits.MAX_PARTIAL_AGE if older_than is None else older_than
        if older_than is None:
            older_than = limits.GC_GRACE_PERIOD if max_size is None or layout.is_being_written() else 0.0
        found = sorted(_list_stored_blobs(layout))
        total = sum(blob.size for blob in found)
        needed = _find_needed(layout, {blob.digest: blob.size for blob in found})
        done = GCResult(remaining_size=total, needed_size=sum(blob.size for blob in found if blob.digest in needed))
        latest = time.time_ns() - int(older_than * 1e9)
        for blob in found:
            if max_size is not None and done.remaining_size <= max_size:
                break
            if blob.digest in needed:
                continue
            if blob.last_used > latest:
                done.recent_size += blob.size
            elif dry_run or _delete_unused(layout, blob):
                done.deleted.append(blob.digest)
                done.deleted_size += blob.size
                done.remaining_size -= blob.size
        done.unfinished_sizes = layout.remove_stale(done_with, include_uploads=True, dry_run=dry_run)
    done.deleted.sort()
    return done


def _list_stored_blobs(layout: LayoutDirectory) -> Iterator[_StoredBlob]:
    for digest in layout.list_blobs():
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(layout.blob_path(digest))
            if stat.S_ISREG(status.st_mode):
                yield _StoredBlob(status.st_mtime_ns, digest, status.st_size)


def _delete_unused(layout: LayoutDirectory, blob: _StoredBlob) -> bool:
    """Remove a blob, unless somebody has taken it into use since it was looked at."""
    path = layout.blob_path(blob.digest)
    try:
        if os.lstat(path).st_mtime_ns != blob.last_used:
            return False
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _find_needed(layout: LayoutDirectory, sizes: dict[str, int]) -> set[str]:
    """Give the digests of what is there and is needed by what the index lists.

    Raises:
        ArchiveError: a manifest or an index below it cannot be read as one.
    """
    needed: set[str] = set()
    looked_at: set[str] = set()
    waiting = [(entry.digest, entry.media_type) for entry in layout.list_entries()]
    while waiting:
        digest, media_type = waiting.pop()
        if digest in looked_at:
            continue
        if digest not in sizes:
            _check_not_replaced(layout, digest)
            continue
        looked_at.add(digest)
        needed.add(digest)
        try:
            found = read_references(layout, digest, sizes[digest])
        except (ArchiveError, IntegrityError) as error:
            if media_type not in ACCEPTED_TYPES:
                # Something else that is listed, such as a file as it is.
                continue
            msg = f"{layout.path}: {error.message}"
            hint = "what it needs is not known, and so nothing is dropped; `ocistream verify` says what else is wrong"
            raise ArchiveError(msg, hint=hint) from error
        waiting += found.documents
        if found.subject is not None:
            waiting.append(found.subject)
        needed.update(leaf for leaf in found.leaves if leaf in sizes)
    return needed


def _check_not_replaced(layout: LayoutDirectory, digest: str) -> None:
    """Make sure that a manifest is not there at all.

    Raises:
        ArchiveError: there is a link in its place, or something else that is no file: others may read it.
    """
    if is_digest(digest) and os.path.lexists(layout.blob_path(digest)):
        msg = f"{layout.path}: manifest {digest} is no regular file, but a link or something else"
        raise ArchiveError(msg, hint="what it needs is not known, and so nothing is dropped")


def read_references(layout: LayoutDirectory, digest: str, size: int) -> DocumentReferences:
    """Say what a document of `size` bytes leads to.

    Raises:
        ArchiveError, IntegrityError: it is none, or not what its digest says.
        NotFoundError: it is not there.
    """
    what = f"manifest {digest}"
    if size > limits.MAX_MANIFEST:
        msg = f"{what} is larger than {limits.MAX_MANIFEST} bytes"
        raise ArchiveError(msg)
    raw = layout.read_blob(Descriptor(UNKNOWN_MEDIA_TYPE, digest, size))
    fields = parse_json(raw, what, keys=MANIFEST_FIELDS, convert=dict.fromkeys(_LIST_FIELDS, _parse_reference))
    leaves = [*_get_list(fields, "layers"), *_get_list(fields, "blobs"), _parse_reference(0, fields.get("config"))]
    return DocumentReferences(
        [named for named in _get_list(fields, "manifests") if named is not None],
        _parse_reference(0, fields.get("subject")),
        [named[0] for named in leaves if named is not None],
    )


def _parse_reference(_place: int, item: object) -> tuple[str, str] | None:
    """Give the digest and the media type of a descriptor."""
    if not isinstance(item, dict) or not isinstance(digest := item.get("digest"), str):
        return None
    return digest, intern_string(f"{item.get('mediaType')}")


def _get_list(fields: dict[str, Any], key: str) -> list[tuple[str, str] | None]:
    listed = fields.get(key)
    return listed if isinstance(listed, list) else []
