"""Garbage collection of a layout: find the blobs that no image needs and delete them (`ocistream gc`).

Nothing is deleted if a listed manifest cannot be read, because its blobs are not known.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, NotFoundError
from ocistream.oci.descriptor import ACCEPTED_TYPES, UNKNOWN_MEDIA_TYPE, Descriptor
from ocistream.oci.documents import MANIFEST_FIELDS, intern_string
from ocistream.oci.reference import is_digest
from ocistream.oci.strict_json import parse_json
from ocistream.streams import files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.layout.directory import LayoutDirectory

_LIST_FIELDS: Final = ("manifests", "layers", "blobs")


class _StoredBlob(NamedTuple):
    """A stored blob: the time of its last use in nanoseconds since 1970, and its size in bytes."""

    last_used: int
    digest: str
    size: int


class DocumentReferences(NamedTuple):
    """The references of a document: child documents with media types, the subject, and the digests of leaves."""

    documents: list[tuple[str, str]]
    subject: tuple[str, str] | None
    leaves: list[str]


@dataclass(slots=True)
class GCResult:
    """The result of a garbage collection, or what it would be in a dry run. All sizes are in bytes.

    `deleted` are sorted digests. `remaining_size` is the size of all blobs that remain, and `needed_size` of those that
    images need. `recent_size` is the size of unneeded blobs that are spared because they were used recently.
    `unfinished_sizes` are the sizes of deleted partial files, which are not blobs and not counted elsewhere.
    """

    deleted: list[str] = field(default_factory=list)
    deleted_size: int = 0
    remaining_size: int = 0
    needed_size: int = 0
    recent_size: int = 0
    unfinished_sizes: list[int] = field(default_factory=list)


def collect_garbage(
    layout: LayoutDirectory, *, max_size: int | None, older_than: float | None, dry_run: bool
) -> GCResult:
    """Delete blobs that no image in `index.json` needs, least recently used first.

    With `max_size`, stop when all blobs together have at most `max_size` bytes. Blobs used in the last `older_than`
    seconds are spared. The default is `limits.GC_GRACE_PERIOD`; with `max_size`, recent blobs are spared only while
    images are being added. Partial blobs and uploads without progress for `older_than` seconds are deleted too
    (default: `limits.MAX_PARTIAL_AGE`). With `dry_run`, nothing is changed.

    A pull into the same layout is safe. It touches each blob that it uses, and `gc` checks that time again before it
    deletes the blob. Both replace or read the index under one lock, and the pull checks there that its blobs still
    exist. Nothing is deleted until the first pull has written the index. A reader that has a blob open keeps it.

    Raises:
        NotFoundError: the directory does not exist.
        ArchiveError: the directory is not a layout, or its index or a manifest is malformed. Nothing is deleted then.
        LocalDiskError: the layout cannot be read or written.
    """
    with files.disk_errors(f"cannot read {layout.path}"):
        if layout.is_being_created():
            # The first images may need every blob.
            return GCResult(remaining_size=sum(blob.size for blob in _list_stored_blobs(layout)))
    layout.check()
    with files.disk_errors(f"cannot read {layout.path}"), files.locked_directory(layout.path):
        partial_age = limits.MAX_PARTIAL_AGE if older_than is None else older_than
        if older_than is None:
            older_than = limits.GC_GRACE_PERIOD if max_size is None or layout.is_being_written() else 0.0
        stored = sorted(_list_stored_blobs(layout))
        total = sum(blob.size for blob in stored)
        needed = _find_needed(layout, {blob.digest: blob.size for blob in stored})
        result = GCResult(remaining_size=total, needed_size=sum(blob.size for blob in stored if blob.digest in needed))
        spared_since = time.time_ns() - int(older_than * 1e9)
        for blob in stored:
            if max_size is not None and result.remaining_size <= max_size:
                break
            if blob.digest in needed:
                continue
            if blob.last_used > spared_since:
                result.recent_size += blob.size
            elif dry_run or _delete_unused(layout, blob):
                result.deleted.append(blob.digest)
                result.deleted_size += blob.size
                result.remaining_size -= blob.size
        result.unfinished_sizes = layout.remove_stale(partial_age, include_uploads=True, dry_run=dry_run)
    result.deleted.sort()
    return result


def _list_stored_blobs(layout: LayoutDirectory) -> Iterator[_StoredBlob]:
    for digest in layout.list_blobs():
        if (status := layout.blob_status(digest)) is not None:
            yield _StoredBlob(status.st_mtime_ns, digest, status.st_size)


def _delete_unused(layout: LayoutDirectory, blob: _StoredBlob) -> bool:
    """Delete a blob, unless another process has used it since it was listed."""
    status = layout.blob_status(blob.digest)
    if status is None or status.st_mtime_ns != blob.last_used:
        return False
    try:
        layout.delete_blob(blob.digest)
    except NotFoundError:
        return False
    return True


def _find_needed(layout: LayoutDirectory, sizes: dict[str, int]) -> set[str]:
    """Return the digests of stored blobs that the index needs, directly or through other documents."""
    needed: set[str] = set()
    visited: set[str] = set()
    pending = [(entry.digest, entry.media_type) for entry in layout.read_index().entries]
    while pending:
        digest, media_type = pending.pop()
        if digest in visited:
            continue
        if digest not in sizes:
            _check_not_replaced(layout, digest)
            continue
        visited.add(digest)
        needed.add(digest)
        try:
            references = read_references(layout, digest, sizes[digest])
        except (ArchiveError, IntegrityError) as error:
            if media_type not in ACCEPTED_TYPES:
                # Other content, such as a plain file. It has no references.
                continue
            msg = f"{layout.path}: {error.message}"
            hint = (
                "nothing was deleted, because the blobs of this image are unknown; `ocistream verify` "
                "lists all problems"
            )
            raise ArchiveError(msg, hint=hint) from error
        pending += references.documents
        if references.subject is not None:
            pending.append(references.subject)
        needed.update(leaf for leaf in references.leaves if leaf in sizes)
    return needed


def _check_not_replaced(layout: LayoutDirectory, digest: str) -> None:
    """Check that no link or directory has the path of a missing manifest: other tools may read it."""
    if is_digest(digest) and os.path.lexists(layout.blob_path(digest)):
        msg = f"{layout.path}: manifest {digest} is a link or another special file"
        raise ArchiveError(msg, hint="nothing was deleted, because the blobs of this image are unknown")


def read_references(layout: LayoutDirectory, digest: str, size: int) -> DocumentReferences:
    """Return the references of a document of `size` bytes."""
    what = f"manifest {digest}"
    if size > limits.MAX_MANIFEST:
        msg = f"{what} is larger than {limits.MAX_MANIFEST} bytes"
        raise ArchiveError(msg)
    raw = layout.read_blob(Descriptor(UNKNOWN_MEDIA_TYPE, digest, size))
    fields = parse_json(raw, what, keys=MANIFEST_FIELDS, convert=dict.fromkeys(_LIST_FIELDS, _parse_reference))
    leaves = [*_get_list(fields, "layers"), *_get_list(fields, "blobs"), _parse_reference(0, fields.get("config"))]
    return DocumentReferences(
        [reference for reference in _get_list(fields, "manifests") if reference is not None],
        _parse_reference(0, fields.get("subject")),
        [reference[0] for reference in leaves if reference is not None],
    )


def _parse_reference(_place: int, item: object) -> tuple[str, str] | None:
    """Return the digest and the media type of a descriptor, or None."""
    if not isinstance(item, dict) or not isinstance(digest := item.get("digest"), str):
        return None
    return digest, intern_string(f"{item.get('mediaType')}")


def _get_list(fields: dict[str, Any], key: str) -> list[tuple[str, str] | None]:
    items = fields.get(key)
    return items if isinstance(items, list) else []
