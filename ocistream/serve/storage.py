"""Storage of the embedded registry: a layout directory, which can change, or an archive, which is read-only.

Blobs are verified while they are sent. The result is remembered as long as the file does not change.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Protocol, TypeAlias

from ocistream import limits, notices
from ocistream.archive.decompression import is_compressed
from ocistream.archive.file_source import ArchiveFileSource
from ocistream.errors import ArchiveError, IntegrityError, NotFoundError, UnsupportedError
from ocistream.layout.directory import LayoutDirectory
from ocistream.layout.index import REF_NAME, build_entries, entry_name_of
from ocistream.layout.index_file import IndexFile
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor
from ocistream.oci.omitted_blobs import OMITTED_ANNOTATION
from ocistream.oci.volumes import VOLUME_ANNOTATION
from ocistream.serve.commit_queue import CommitQueue, CommitResult
from ocistream.serve.errors import RequestRejectedError
from ocistream.serve.http_handler import FileSection
from ocistream.serve.image_names import repository_of_directory
from ocistream.streams import files
from ocistream.streams.chunks import compute_digest, read_all, read_chunks, verify_chunks
from ocistream.streams.paths import real_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from ocistream.streams.chunks import Chunk

__all__ = [
    "ArchiveStorage",
    "DirectoryStorage",
    "Storage",
    "VerificationCache",
    "is_unexpectedly_empty",
]

_FileState: TypeAlias = tuple[int, int, int, int]
_EMPTY_BLOB_DIGESTS = frozenset({compute_digest(b"", "sha256"), compute_digest(b"", "sha512")})


class _VerificationResult(NamedTuple):
    """`size` is the size of the blob in bytes, once that is known."""

    state: _FileState
    is_intact: bool
    size: int | None


class VerificationCache:
    """The results of the most recent checks, by digest. Safe for several threads."""

    def __init__(self) -> None:
        """Start without results."""
        self._lock = threading.Lock()
        self._results: dict[str, _VerificationResult] = {}

    def record(self, digest: str, status: os.stat_result, *, is_right: bool) -> None:
        """Remember the result of a check of the file that had this status when it was opened."""
        with self._lock:
            before = self._results.pop(digest, None)
            size = status.st_size if is_right else before and before.size
            if len(self._results) >= limits.MAX_CACHED_BLOB_CHECKS:
                del self._results[next(iter(self._results))]
            self._results[digest] = _VerificationResult(_file_state(status), is_right, size)

    def has_result(self, digest: str) -> bool:
        """Say whether there is a result for any file of this blob."""
        return digest in self._results

    def is_intact(self, digest: str, status: os.stat_result) -> bool:
        """Say whether this file was hashed and found right."""
        check = self._results.get(digest)
        return check is not None and check.is_intact and check.state == _file_state(status)

    def is_corrupt(self, digest: str, status: os.stat_result) -> bool:
        """Say whether this file is known to be wrong: it was hashed, or its size cannot be that of the blob."""
        if is_unexpectedly_empty(digest, status.st_size):
            return True
        check = self._results.get(digest)
        if check is None:
            return False
        if check.size is not None and check.size != status.st_size:
            return True
        return not check.is_intact and check.state == _file_state(status)

    def record_touch(self, digest: str, before: os.stat_result, after: os.stat_result) -> None:
        """Keep a result although the mtime of the file was set to the present."""
        with self._lock:
            check = self._results.get(digest)
            if (
                check is not None
                and check.state == _file_state(before)
                and _file_state(before)[:3] == _file_state(after)[:3]
            ):
                self._results[digest] = check._replace(state=_file_state(after))


def is_unexpectedly_empty(digest: str, size: int) -> bool:
    """Say whether a file of so many bytes is empty and its blob is not, as after a power failure."""
    return not size and digest not in _EMPTY_BLOB_DIGESTS


def _file_state(status: os.stat_result) -> _FileState:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


#: The tag of the one image of an archive that nobody has named.
_DEFAULT_TAG = "latest"


class Storage(Protocol):
    """Blobs by digest, and the entries of an `index.json`. Safe for several threads.

    `repository` is the one that bare tags belong to. What changes something is called only where it may be changed.
    """

    @property
    def default_repository(self) -> str:
        """The repository of images that say of none that they are in it."""

    def operator_notices(self) -> list[str]:
        """Return what the operator should know of the place, a line each."""

    def index_version(self) -> tuple[int, ...]:
        """Give what is another one as soon as the entries may be others.

        Raises:
            LocalDiskError: it cannot be looked at.
        """

    def list_entries(self) -> list[Descriptor]:
        """Give what `index.json` lists, in order."""

    def blob_size(self, digest: str) -> int | None:
        """Give a blob's size in bytes, or None where it is not there or known to be corrupt."""

    def is_intact(self, digest: str) -> bool:
        """Say whether a blob is what its digest says; it is hashed, unless that was done before.

        Raises:
            NotFoundError, ArchiveError, LocalDiskError: as `part`.
        """

    def check_not_corrupt(self, digest: str) -> None:
        """Do nothing unless the blob is known to be corrupt.

        Raises:
            IntegrityError: it is.
        """

    def open_blob_section(self, digest: str) -> contextlib.AbstractContextManager[FileSection]:
        """Give where all of a blob is to be read, for as long as the block lasts.

        Raises:
            NotFoundError: it is not there.
            ArchiveError: something else stands in its place.
            IntegrityError: it is known to be corrupt.
            LocalDiskError: it cannot be read.
        """

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """Read a small blob whole, and verify it.

        Raises:
            NotFoundError, ArchiveError, LocalDiskError: as `part`.
            IntegrityError: it is not what the descriptor promises.
        """

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Say whether a blob is there whole."""

    def touch(self, digest: str) -> None:
        """Note that somebody counts on a blob's being there, who has not named what needs it yet."""

    def write_blob(self, digest: str, verified_chunks: Iterable[Chunk]) -> None:
        """Store a blob."""

    def delete_blob(self, digest: str) -> None:
        """Remove a blob.

        Raises:
            NotFoundError: it is not there.
        """

    def change_index(
        self,
        change: Callable[[list[Descriptor]], Sequence[Descriptor]],
        on_committed: Callable[[Sequence[Descriptor]], None] | None = None,
    ) -> None:
        """Replace the entries by what `change` makes of them.

        `then` is called with the new entries when they are durable, before anything else can change them.
        """


class _IndexChange(CommitResult):
    """One queued change of the entries; see `Storage.change_index`."""

    def __init__(
        self,
        change: Callable[[list[Descriptor]], Sequence[Descriptor]],
        on_committed: Callable[[Sequence[Descriptor]], None] | None,
    ) -> None:
        super().__init__()
        self.change = change
        self.then = on_committed


class DirectoryStorage(LayoutDirectory):
    """A layout directory, which other processes may change at any time.

    Changes of `index.json` that wait at the same time are written together.
    """

    def __init__(self, path: Path) -> None:
        """Name the directory; nothing is read yet."""
        super().__init__(path)
        self._index_file = IndexFile(self)
        self._changes: CommitQueue[_IndexChange] = CommitQueue(self._commit)
        self._verifications = VerificationCache()

    @property
    def default_repository(self) -> str:
        """The directory's name, made a repository's."""
        return repository_of_directory(real_path(self.path).name)

    def operator_notices(self) -> list[str]:
        """Say that there is no image, if there is none."""
        return [] if self.list_entries() else [f"there is no image in {self.path} yet"]

    def index_version(self) -> tuple[int, ...]:
        """Say which file `index.json` is at present."""
        path = self.path / "index.json"
        with files.disk_errors(f"cannot read {path}"):
            try:
                status = path.lstat()
            except FileNotFoundError:
                return ()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def list_entries(self) -> list[Descriptor]:
        """Give what `index.json` lists; the file is parsed only if another process has changed it."""
        return list(self._index_file.load().entries)

    def change_index(
        self,
        change: Callable[[list[Descriptor]], Sequence[Descriptor]],
        on_committed: Callable[[Sequence[Descriptor]], None] | None = None,
    ) -> None:
        """Queue a change of the entries, and return when it is durable."""
        self._changes.submit(_IndexChange(change, on_committed))

    def _commit(self, take: Callable[[], Sequence[_IndexChange]]) -> None:
        """Write a group of changes with one new `index.json`. Each change gets the entries that the one before made."""
        with self.lock_index():
            index = self._index_file.load()
            made = []
            for change in take():
                with change, files.disk_errors(f"cannot write {self.index_path}"):
                    index = self._index_file.with_entries(index, change.change(list(index.entries)))
                    made.append(change)
            if not made:
                return
            self.sync_blobs()
            self._index_file.write(index)
            for change in made:
                if change.then is not None:
                    with change:
                        change.then(index.entries)

    def blob_size(self, digest: str) -> int | None:
        """Give a blob's size in bytes, or None where it is not there or known to be corrupt."""
        status = self.blob_status(digest)
        return None if status is None or self._verifications.is_corrupt(digest, status) else status.st_size

    def check_not_corrupt(self, digest: str) -> None:
        """Do nothing unless the blob is known to be corrupt."""
        status = self.blob_status(digest)
        if status is not None and self._verifications.is_corrupt(digest, status):
            raise self._report_corrupt(digest)

    def is_intact(self, digest: str) -> bool:
        """Say whether a blob is what its digest says."""
        try:
            with (
                self.open_blob_section(digest) as part,
                files.disk_errors(f"cannot read the blob {digest} in {self.path}"),
            ):
                if part.on_verified is not None:
                    for _ in verify_chunks(
                        read_chunks(part.file, part.size), Descriptor(UNKNOWN_MEDIA_TYPE, digest, part.size)
                    ):
                        pass
                    part.on_verified()
        except IntegrityError:
            return False
        return True

    def record_intact(self, digest: str, status: os.stat_result) -> None:
        """Remember that a file was hashed and is the blob."""
        self._verifications.record(digest, status, is_right=True)

    def touch(self, digest: str) -> None:
        """Note that a blob is of use now; what is known of its file stays known."""
        before = self.blob_status(digest) if self._verifications.has_result(digest) else None
        super().touch(digest)
        after = self.blob_status(digest) if before is not None else None
        if before is not None and after is not None:
            self._verifications.record_touch(digest, before, after)

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """Read a small blob whole, and verify it."""
        try:
            return super().read_blob(descriptor)
        except IntegrityError:
            # The descriptor may be wrong too, about the size.
            self.is_intact(descriptor.digest)
            raise

    @contextlib.contextmanager
    def open_blob_section(self, digest: str) -> Iterator[FileSection]:
        """Open a blob. All of it is to be verified while it is sent, until that was done once."""
        with self.open_blob(digest) as file:
            status = os.fstat(file.fileno())
            if self._verifications.is_corrupt(digest, status):
                raise self._report_corrupt(digest)
            if self._verifications.is_intact(digest, status):
                yield FileSection(file, 0, status.st_size)
                return
            try:
                yield FileSection(
                    file, 0, status.st_size, digest, on_verified=partial(self.record_intact, digest, status)
                )
            except IntegrityError:
                self._verifications.record(digest, status, is_right=False)
                self._report_corrupt(digest)
                raise

    def _report_corrupt(self, digest: str) -> IntegrityError:
        """Say once that a blob is corrupt, and return the error for those that ask for it."""
        what = f"the blob {digest} in {self.path} is corrupt"
        notices.notify(f"{what}: it is not served; push an image that contains it to replace it")
        return IntegrityError(what)


class ArchiveStorage:
    """An archive in a regular file: blobs are read where they lie in it. It stays open, so it may be moved meanwhile.

    For a docker-archive, which has no manifests, they are made when it is opened.
    """

    def __init__(self, path: Path) -> None:
        """Read the headers and the index.

        Raises:
            NotFoundError: it is not there.
            LocalDiskError: it cannot be read.
            UnsupportedError: it is compressed, so that nothing in it can be found without reading all before it.
            ArchiveError: it is malformed or truncated, or only a part of an archive.
            NotFoundError: there is no image in it.
        """
        if is_compressed(path):
            msg = f"{path} is compressed, and blobs cannot be read where they lie in it"
            raise UnsupportedError(
                msg, hint=f"unpack it first (`gunzip`, `unzstd`), or `ocistream copy {path} oci:DIR`"
            )
        self._what = f"{path}"
        self.default_repository = repository_of_directory(path.name.removesuffix(".tar"))
        self._source = ArchiveFileSource(path)
        #: Manifests that are in no file.
        self._synthesized: dict[str, bytes] = {}
        self._operator_notices: list[str] = []
        try:
            self._entries = self._name_only_image(self._read_entries())
        except BaseException:
            self._source.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def operator_notices(self) -> list[str]:
        """Say under which name an image is served that has none."""
        return self._operator_notices

    def index_version(self) -> tuple[int, ...]:
        """Say that nothing ever changes."""
        return ()

    def list_entries(self) -> list[Descriptor]:
        """Give what the archive lists."""
        return self._entries

    def blob_size(self, digest: str) -> int | None:
        """Give a blob's size in bytes, or None."""
        if (made := self._synthesized.get(digest)) is not None:
            return len(made)
        place = self._source.contents.blobs.get(digest)
        return place.size if place else None

    @contextlib.contextmanager
    def open_blob_section(self, digest: str) -> Iterator[FileSection]:
        """Say where a blob lies; all of it is to be verified while it is sent."""
        place = self._source.contents.blobs.get(digest)
        if place is None:
            raise self._blob_not_found_error(digest)
        if is_unexpectedly_empty(digest, place.size):
            msg = f"the blob {digest} in {self._what} is corrupt"
            raise IntegrityError(msg)
        yield FileSection(self._source.file, place.offset, place.size, digest)

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """Read a small blob whole, and verify it."""
        if (made := self._synthesized.get(descriptor.digest)) is not None:
            return made
        blob = self._source.blob(descriptor)
        if blob is None:
            raise self._blob_not_found_error(descriptor.digest)
        return read_all(verify_chunks(blob.open(), descriptor))

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Say whether a blob of this size is there."""
        return self.blob_size(descriptor.digest) == descriptor.size

    def is_intact(self, digest: str) -> NoReturn:
        """Refuse: only a push asks for this."""
        del digest
        raise _read_only_error()

    def check_not_corrupt(self, digest: str) -> None:
        """Do nothing: every read of an archive is verified, and nothing is remembered."""

    def touch(self, digest: str) -> None:
        """Do nothing: nothing goes away."""

    def write_blob(self, digest: str, verified_chunks: Iterable[Chunk]) -> NoReturn:
        """Refuse."""
        del digest, verified_chunks
        raise _read_only_error()

    def delete_blob(self, digest: str) -> NoReturn:
        """Refuse."""
        del digest
        raise _read_only_error()

    def change_index(
        self,
        change: Callable[[list[Descriptor]], Sequence[Descriptor]],
        on_committed: Callable[[Sequence[Descriptor]], None] | None = None,
    ) -> NoReturn:
        """Refuse."""
        del change, on_committed
        raise _read_only_error()

    def _read_entries(self) -> list[Descriptor]:
        if (graph := self._source.build_docker_graph()) is not None:
            self._synthesized = {manifest.descriptor.digest: manifest.raw for manifest in graph.manifests}
            return build_entries(graph)
        index = self._source.read_complete_index()
        self._synthesized = self._source.synthesized_manifests
        if VOLUME_ANNOTATION in index.annotations or OMITTED_ANNOTATION in index.annotations:
            what = (
                "is one of several volumes"
                if VOLUME_ANNOTATION in index.annotations
                else "was made without some of its blobs"
            )
            msg = f"{self._what} {what}, and what is missing could not be served"
            hint = "push it to a registry that has the rest: `ocistream serve DIR` is one, over a directory"
            raise ArchiveError(msg, hint=hint)
        return index.entries

    def _name_only_image(self, entries: list[Descriptor]) -> list[Descriptor]:
        """Give the only image a name if it has none: else it could be had by its digest alone.

        Raises:
            NotFoundError: there is no image.
        """
        if not entries:
            # Nothing can be pushed either.
            raise NotFoundError(
                f"there is no image in {self._what}", hint="serve an archive that has one, or a directory"
            )
        if len(entries) != 1 or entry_name_of(entries[0]) is not None:
            return entries
        only = entries[0]
        self._operator_notices.append(
            f"the image has no name: it is served as {self.default_repository}:{_DEFAULT_TAG}"
        )
        return [replace(only, annotations={**only.annotations, REF_NAME: _DEFAULT_TAG})]

    def _blob_not_found_error(self, digest: str) -> NotFoundError:
        return NotFoundError(f"there is no blob {digest} in {self._what}")


def _read_only_error() -> RequestRejectedError:
    return RequestRejectedError(405, "UNSUPPORTED", "what is served lies in an archive, which cannot be changed")
