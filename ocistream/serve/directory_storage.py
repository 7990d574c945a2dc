"""A layout directory as the storage of the embedded registry. Clients and other processes may change it.

Blobs are verified while they are sent. The result is remembered as long as the file does not change.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from ocistream import limits, notices
from ocistream.errors import IntegrityError
from ocistream.layout.directory import LayoutDirectory
from ocistream.layout.index import build_index_fields
from ocistream.layout.index_file import IndexChange, IndexFile
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor, compute_digest
from ocistream.serve.capacity import remember
from ocistream.serve.http_handler import FileSection
from ocistream.serve.image_index import ImageIndex, repository_of_directory
from ocistream.streams import files
from ocistream.streams.chunks import read_chunks, verify_chunks
from ocistream.streams.paths import real_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ocistream.transfer.interfaces import Source

_EMPTY_BLOB_DIGESTS: Final = frozenset({compute_digest(b"", "sha256"), compute_digest(b"", "sha512")})


class _BlobCheck(NamedTuple):
    """The result of hashing one file of a blob. Each names its file, so any of two results for a digest is true."""

    state: files.FileState
    size: int
    is_intact: bool


def is_unexpectedly_empty(digest: str, size: int) -> bool:
    """Return whether a file of this size is empty and its blob is not, as after a power failure."""
    return not size and digest not in _EMPTY_BLOB_DIGESTS


class DirectoryStorage(LayoutDirectory):
    """A layout directory, which other processes may change at any time."""

    def __init__(self, path: Path) -> None:
        """Use the directory at `path`; nothing is read yet."""
        super().__init__(path)
        self._index = IndexFile(self, self._parse)
        #: The most recent checks, by digest. Any thread reads and adds: single operations are atomic.
        self._checks: OrderedDict[str, _BlobCheck] = OrderedDict()

    def operator_notices(self) -> list[str]:
        """Return a line if the layout has no images."""
        return [] if self.index().entries else [f"{self.path} has no images yet"]

    def index(self) -> ImageIndex:
        """Return the entries of `index.json`; the file is read only if another process has changed it.

        Raises:
            LocalDiskError, ArchiveError: the file cannot be read.
        """
        return self._index.read()

    def open_source(self) -> Source:
        """Return a source of all images."""
        # Only the page for browsers needs it.
        from ocistream.layout.source import LayoutSource

        return LayoutSource(self.path)

    def _parse(self, raw: files.FilePart | None) -> ImageIndex:
        default_repository = repository_of_directory(real_path(self.path).name)
        entries: list[Descriptor] = []
        self.parse_entries(raw, entries.append)
        return ImageIndex(entries, default_repository, build_index_fields(raw))

    def update_index(
        self,
        change: Callable[[ImageIndex], ImageIndex],
        on_committed: Callable[[ImageIndex], None] | None = None,
    ) -> None:
        """Replace the entries by the result of `change`. When this returns, the new file is durable.

        `on_committed` is called with the new entries before they can change again.
        """

        def apply(index: ImageIndex) -> ImageIndex:
            changed = change(index)
            self.check_index_size(len(changed), changed.size)
            return changed

        self._index.update(IndexChange(apply, on_committed))

    def blob_size(self, digest: str) -> int | None:
        """Return a blob's size in bytes; None if it does not exist or is known to be corrupt.

        A corrupt blob counts as missing, so that a client that pushes it sends it again.
        """
        status = self.blob_status(digest)
        return None if status is None or self._is_corrupt(digest, status) else status.st_size

    def check_not_corrupt(self, digest: str) -> None:
        """Raise IntegrityError if the blob is known to be corrupt."""
        status = self.blob_status(digest)
        if status is not None and self._is_corrupt(digest, status):
            raise self._report_corrupt(digest)

    def is_intact(self, digest: str) -> bool:
        """Return whether a blob matches its digest."""
        try:
            with (
                self.open_blob_section(digest) as section,
                files.disk_errors(f"cannot read the blob {digest} in {self.path}"),
            ):
                if section.on_verified is not None:
                    for _ in verify_chunks(
                        read_chunks(section.file, section.size), Descriptor(UNKNOWN_MEDIA_TYPE, digest, section.size)
                    ):
                        pass
                    section.on_verified()
        except IntegrityError:
            return False
        return True

    def record_check(self, digest: str, status: os.stat_result, *, is_intact: bool = True) -> None:
        """Remember that the file that had this status when it was opened was hashed, and whether it is the blob."""
        check = _BlobCheck(files.file_state(status), status.st_size, is_intact)
        remember(self._checks, digest, check, limits.MAX_CACHED_BLOB_CHECKS)

    def _is_corrupt(self, digest: str, status: os.stat_result) -> bool:
        """Return whether this file is known to be wrong: it was hashed, or its size is not the blob's."""
        if is_unexpectedly_empty(digest, status.st_size):
            return True
        if (check := self._checks.get(digest)) is None:
            return False
        return check.size != status.st_size if check.is_intact else check.state == files.file_state(status)

    def touch(self, digest: str) -> None:
        """Set the blob's mtime to the present; the result of its check stays valid."""
        check = self._checks.get(digest)
        before = self.blob_status(digest) if check is not None else None
        super().touch(digest)
        after = self.blob_status(digest) if before is not None else None
        if check is None or before is None or after is None or check.state != files.file_state(before):
            return
        if files.file_state(after)[:3] == check.state[:3]:
            self.record_check(digest, after, is_intact=check.is_intact)

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """Return a small blob, verified."""
        try:
            return super().read_blob(descriptor)
        except IntegrityError:
            # Hash the file: perhaps only the descriptor's size is wrong.
            self.is_intact(descriptor.digest)
            raise

    @contextlib.contextmanager
    def open_blob_section(self, digest: str) -> Iterator[FileSection]:
        """Open a blob for the block. It is verified while it is sent, until that was done once for this file.

        Raises:
            NotFoundError: the blob does not exist.
            ArchiveError: its path is not a regular file.
            IntegrityError: it is known to be corrupt.
            LocalDiskError: it cannot be read.
        """
        with self.open_blob(digest) as file:
            status = os.fstat(file.fileno())
            if self._is_corrupt(digest, status):
                raise self._report_corrupt(digest)
            check = self._checks.get(digest)
            if check is not None and check.is_intact and check.state == files.file_state(status):
                yield FileSection(file, 0, status.st_size)
                return
            try:
                yield FileSection(
                    file, 0, status.st_size, digest, on_verified=partial(self.record_check, digest, status)
                )
            except IntegrityError:
                self.record_check(digest, status, is_intact=False)
                self._report_corrupt(digest)
                raise

    def _report_corrupt(self, digest: str) -> IntegrityError:
        """Report a corrupt blob once, and return the error for requests of it."""
        message = f"the blob {digest} in {self.path} is corrupt"
        notices.notify(f"{message}: it is not served; push an image that contains it to replace it")
        return IntegrityError(message)
