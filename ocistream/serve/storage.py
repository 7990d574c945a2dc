"""Storage of the embedded registry: a layout directory, which can change, or an archive, which is read-only.

Blobs are verified while they are sent. The result is remembered as long as the file does not change.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ocistream import limits, notices
from ocistream.archive.decompression import is_compressed
from ocistream.archive.file_source import ArchiveFileSource
from ocistream.errors import ArchiveError, IntegrityError, NotFoundError, UnsupportedError
from ocistream.layout.directory import LayoutDirectory
from ocistream.layout.image_selection import ALL_IMAGES
from ocistream.layout.index import REF_NAME, build_index_fields, entry_name_of
from ocistream.layout.index_file import IndexChange, IndexFile
from ocistream.layout.source import LayoutSource
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor, compute_digest
from ocistream.oci.omitted_blobs import OMITTED_ANNOTATION
from ocistream.oci.volumes import VOLUME_ANNOTATION
from ocistream.serve.capacity import remember
from ocistream.serve.http_handler import FileSection
from ocistream.serve.image_index import ImageIndex, repository_of_directory
from ocistream.streams import files
from ocistream.streams.chunks import read_all, read_chunks, verify_chunks
from ocistream.streams.paths import real_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ocistream.layout.index import LayoutIndex
    from ocistream.transfer.interfaces import Source

_EMPTY_BLOB_DIGESTS = frozenset({compute_digest(b"", "sha256"), compute_digest(b"", "sha512")})


class _BlobCheck(NamedTuple):
    """The result of hashing one file of a blob. Each names its file, so any of two results for a digest is true."""

    state: files.FileState
    size: int
    is_intact: bool


def is_unexpectedly_empty(digest: str, size: int) -> bool:
    """Return whether a file of this size is empty and its blob is not, as after a power failure."""
    return not size and digest not in _EMPTY_BLOB_DIGESTS


#: The tag of an archive's only image, if it has no name.
_DEFAULT_TAG = "latest"


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


class ArchiveStorage:
    """An archive in a regular file, whose blobs are read in place. The file stays open, so it may be moved or replaced.

    Manifests are hashed whenever they are read, and blobs whenever they are sent. The manifests of a docker-archive,
    which has none, are synthesized when it is opened.
    """

    def __init__(self, path: Path, *, as_docker: bool) -> None:
        """Read the headers and the index; with `as_docker`, that of a docker-archive.

        Raises:
            NotFoundError: the file does not exist, or has no image.
            LocalDiskError: it cannot be read.
            UnsupportedError: it is compressed, so no part can be read without all bytes before it.
            ArchiveError: it is malformed or truncated, or only a part of an archive.
        """
        if is_compressed(path):
            msg = f"{path} is compressed: its blobs cannot be read in any order"
            raise UnsupportedError(
                msg, hint=f"decompress it first (`gunzip`, `unzstd`), or run `ocistream copy {path} oci:DIR`"
            )
        self._what = f"{path}"
        self.default_repository = repository_of_directory(path.name.removesuffix(".tar"))
        self._source = ArchiveFileSource(path, as_docker=as_docker)
        #: Synthesized manifests, by digest.
        self._synthesized: dict[str, bytes] = {}
        self._operator_notices: list[str] = []
        try:
            self._layout_index = self._read_index()
            self._index = ImageIndex(self._name_only_image([*self._layout_index.entries]), self.default_repository)
        except BaseException:
            self._source.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def operator_notices(self) -> list[str]:
        """Return the line about an image that got its name here."""
        return self._operator_notices

    def index(self) -> ImageIndex:
        """Return the entries of the archive."""
        return self._index

    def open_source(self) -> Source:
        """Return a source of all images, in the open file: another one may have its path now."""
        return self._source.open_images(self._layout_index, ALL_IMAGES)

    def blob_size(self, digest: str) -> int | None:
        """Return a blob's size in bytes, or None."""
        if (synthesized := self._synthesized.get(digest)) is not None:
            return len(synthesized)
        extent = self._source.contents.blobs.get(digest)
        return extent.size if extent else None

    @contextlib.contextmanager
    def open_blob_section(self, digest: str) -> Iterator[FileSection]:
        """Return the section of the archive with the blob, which is verified while it is sent."""
        extent = self._source.contents.blobs.get(digest)
        if extent is None:
            raise self._blob_not_found_error(digest)
        if is_unexpectedly_empty(digest, extent.size):
            msg = f"the blob {digest} in {self._what} is corrupt"
            raise IntegrityError(msg)
        yield FileSection(self._source.file, extent.offset, extent.size, digest)

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """Return a small blob, verified."""
        if (synthesized := self._synthesized.get(descriptor.digest)) is not None:
            return synthesized
        blob = self._source.blob(descriptor)
        if blob is None:
            raise self._blob_not_found_error(descriptor.digest)
        return read_all(verify_chunks(blob.open(), descriptor))

    def check_not_corrupt(self, digest: str) -> None:
        """Do nothing: every read of an archive is verified, and no result is stored."""

    def _read_index(self) -> LayoutIndex:
        index = self._source.read_complete_index()
        self._synthesized = self._source.synthesized_manifests
        # A missing blob would be noticed only in the middle of a pull, so an incomplete archive is not served.
        reason = hint = ""
        if VOLUME_ANNOTATION in index.annotations:
            reason = "is one of several volumes"
            hint = (
                "start `ocistream serve DIR` for a new DIR, and push all volumes there: -i 'GLOB' --to localhost:5000"
            )
        elif OMITTED_ANNOTATION in index.annotations:
            reason = "was made without some of its blobs"
            hint = "push it to a registry that has the missing blobs, such as `ocistream serve DIR`"
        if reason:
            msg = f"{self._what} {reason}: the missing blobs could not be served"
            raise ArchiveError(msg, hint=hint)
        return index

    def _name_only_image(self, entries: list[Descriptor]) -> list[Descriptor]:
        """Return the entries; an only image without a name gets one, since clients could pull it by digest only.

        Raises:
            NotFoundError: the archive has no image.
        """
        if not entries:
            # An archive without images is useless: nothing can be pushed to it either.
            raise NotFoundError(f"{self._what} has no images", hint="serve an archive with an image, or a directory")
        if len(entries) != 1 or entry_name_of(entries[0]) is not None:
            return entries
        image = entries[0]
        self._operator_notices.append(
            f"the image has no name: it is served as {self.default_repository}:{_DEFAULT_TAG}"
        )
        return [replace(image, annotations={**image.annotations, REF_NAME: _DEFAULT_TAG})]

    def _blob_not_found_error(self, digest: str) -> NotFoundError:
        return NotFoundError(f"no blob {digest} in {self._what}")


#: What a registry serves. Both classes are safe for several threads.
Storage: TypeAlias = DirectoryStorage | ArchiveStorage
