"""Upload sessions of the embedded registry: hash bytes while they are written, then keep them as a blob.

A session lives in this process only. Its partial file is locked, so the next start deletes abandoned files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
import uuid
from io import FileIO
from typing import TYPE_CHECKING, Final, cast

from ocistream import limits
from ocistream.errors import LocalDiskError
from ocistream.oci.reference import DIGEST_HEX_LENGTHS, parse_digest
from ocistream.serve.capacity import limit_by_descriptors
from ocistream.serve.request import RequestRejectedError
from ocistream.streams import files, partial_files
from ocistream.streams.chunks import new_hash, read_chunks
from ocistream.streams.synchronization import Budget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocistream.serve.directory_storage import DirectoryStorage
    from ocistream.streams.chunks import Hasher

#: How long, in seconds, a request waits for another request of the same upload.
_LOCK_TIMEOUT: Final = 5.0
_FILE_MODE: Final = 0o644


class Upload:
    """An upload session. `offset` is the number of bytes received; `identifier` is the last part of its URL.

    `is_open` says whether it can be resumed, `is_out_of_space` whether the disk had no space for the last bytes. Hold
    `Uploads.lock` to change it. Its partial file stays locked, which needs a descriptor for each session: so the next
    start recognizes the files of a killed process.
    """

    def __init__(self, layout: DirectoryStorage, repository: str, algorithm: str) -> None:
        """Start without bytes. `algorithm` is the one that the digest will probably have.

        Raises:
            LocalDiskError: the disk is full, or permission is denied.
        """
        self.identifier = str(uuid.uuid4())
        self.repository = repository
        self.offset = 0
        self.last_used = time.monotonic()
        self._layout = layout
        #: Held by the request that writes to the session.
        self.turn = Budget(1)
        self.is_open = True
        self.is_out_of_space = False
        self._start_hash(algorithm)
        folder = layout.algorithm_directory(algorithm)
        self._path = folder / f".{self.identifier}{partial_files.UPLOAD_SUFFIX}"
        with self._disk_errors():
            folder.mkdir(exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._lock_holder = FileIO(os.open(self._path, flags, _FILE_MODE), "wb")
            # On a file system without locks, only the file's age shows that it is abandoned.
            with contextlib.suppress(OSError):
                fcntl.flock(self._lock_holder, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def is_abandoned(self, *, is_full: bool) -> bool:
        """Return whether no request is expected any more. `is_full` says that there is no room for another upload.

        A session that found the disk full ends at once: few clients resume it, and its bytes take space from others.
        One without bytes has nothing to resume, and must not keep others from pushing.
        """
        is_dispensable = is_full and not self.offset
        timeout = limits.EMPTY_UPLOAD_TIMEOUT if is_dispensable else limits.UPLOAD_IDLE_TIMEOUT
        return self.is_out_of_space or self.last_used < time.monotonic() - timeout

    def expect_digest(self, digest: str) -> None:
        """Hash with the algorithm of this digest, if no byte was received yet."""
        if not self.offset:
            self._start_hash(parse_digest(digest).algorithm)

    def receive(self, read: Callable[[memoryview], int], buffer: memoryview) -> None:
        """Append the bytes that `read` writes into `buffer`, until it returns 0. If it raises, earlier bytes are kept.

        Raises:
            LocalDiskError: the disk is full, or another disk error.
        """
        self.is_out_of_space = False
        with self._disk_errors():
            file = self._open_file()
        with file:
            file.seek(self.offset)
            while count := read(buffer):
                chunk = buffer[:count]
                try:
                    with self._disk_errors():
                        files.write_all(file, chunk)
                except LocalDiskError:
                    self.is_out_of_space = True
                    raise
                self._hash.update(chunk)
                self.offset += count

    def finish(self, digest: str) -> None:
        """Turn the bytes into a blob if they have this digest. The session ends in either case.

        Raises:
            RequestRejectedError: the digest is wrong (400).
            LocalDiskError: the file cannot be synced or renamed.
        """
        try:
            if self._compute_digest(parse_digest(digest).algorithm) != digest:
                detail = {"digest": digest, "received": self.offset}
                raise RequestRejectedError(400, "DIGEST_INVALID", "the bytes have another digest", details=[detail])
            path = self._layout.blob_path(digest)
            with self._disk_errors(), self._open_file() as file:
                # Remove bytes of a chunk that a full disk accepted in part; they were never counted.
                file.truncate(self.offset)
                os.fsync(file.fileno())
                status = os.fstat(file.fileno())
                path.parent.mkdir(exist_ok=True)
                self._path.replace(path)
                files.sync_directory(path.parent)
            self._layout.record_check(digest, status)
        finally:
            self.discard()

    def discard(self) -> None:
        """End the session and delete its bytes, unless they have become a blob."""
        self.is_open = False
        with contextlib.suppress(OSError):
            self._path.unlink()
        self._lock_holder.close()

    def _start_hash(self, algorithm: str) -> None:
        self._algorithm = algorithm
        self._hash: Hasher = new_hash(f"{algorithm}:{'0' * DIGEST_HEX_LENGTHS[algorithm]}")

    def _compute_digest(self, algorithm: str) -> str:
        """Return the digest; the file is read again only if another algorithm was expected before."""
        if algorithm != self._algorithm:
            self._start_hash(algorithm)
            with self._disk_errors(), files.open_for_reading(self._path) as file:
                for chunk in read_chunks(file, self.offset):
                    self._hash.update(chunk)
        return f"{algorithm}:{self._hash.hexdigest()}"

    def _open_file(self) -> FileIO:
        return FileIO(os.open(self._path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "wb")

    def _disk_errors(self) -> contextlib.AbstractContextManager[None]:
        return files.disk_errors(f"cannot write the upload {self.identifier}")


class Uploads:
    """All upload sessions of one registry. Safe for several threads."""

    def __init__(self, layout: DirectoryStorage | None) -> None:
        """Store uploads in `layout`, next to its blobs. It is None for an archive, to which no request may write."""
        self._layout = layout
        #: Held to begin an upload: their number is limited.
        self._beginning = threading.Lock()
        #: Any thread adds and removes: single operations of a dict are atomic.
        self._uploads: dict[str, Upload] = {}

    def begin(self, repository: str, algorithm: str = "sha256") -> Upload:
        """Start a session, after idle ones were discarded.

        Raises:
            RequestRejectedError: too many sessions are open (429).
            LocalDiskError: the disk is full, or permission is denied.
        """
        with self._beginning:
            self._discard_idle()
            if len(self._uploads) >= limit_by_descriptors(limits.MAX_UPLOADS):
                message = "too many uploads"
                raise RequestRejectedError(429, "TOOMANYREQUESTS", message, headers={"Retry-After": "60"})
            upload = Upload(cast("DirectoryStorage", self._layout), repository, algorithm)
            self._uploads[upload.identifier] = upload
        return upload

    def find(self, repository: str, identifier: str) -> Upload:
        """Return the session of a repository with this identifier.

        Raises:
            RequestRejectedError: it does not exist (404).
        """
        upload = self._uploads.get(identifier)
        if upload is None or upload.repository != repository:
            raise _unknown_upload_error(identifier)
        return upload

    @contextlib.contextmanager
    def lock(self, upload: Upload) -> Iterator[None]:
        """Block other requests of a session during the block, except those that ask for its offset.

        A session that has ended is forgotten.

        Raises:
            RequestRejectedError: the session has ended (404), or another request keeps writing (429).
        """
        if not upload.turn.take(timeout=_LOCK_TIMEOUT):
            message = "another request is still writing to this upload"
            raise RequestRejectedError(429, "TOOMANYREQUESTS", message, headers={"Retry-After": "1"})
        try:
            if not upload.is_open:
                raise _unknown_upload_error(upload.identifier)
            yield
        finally:
            upload.last_used = time.monotonic()
            self._unlock(upload)

    def delete_abandoned(self) -> None:
        """Delete the partial files of killed processes: these files are not locked.

        Also delete files that are as old as an idle session, even if they are another user's.
        """
        if self._layout is None:
            return
        for algorithm in DIGEST_HEX_LENGTHS:
            folder = self._layout.algorithm_directory(algorithm)
            partial_files.remove_stale(folder, partial_files.is_upload_name)
            for path in folder.glob(f".*{partial_files.UPLOAD_SUFFIX}"):
                with contextlib.suppress(OSError):
                    if path.lstat().st_mtime < time.time() - limits.UPLOAD_IDLE_TIMEOUT:
                        path.unlink()

    def close(self) -> None:
        """Discard all sessions, even those in use."""
        for upload in list(self._uploads.values()):
            upload.discard()

    def _discard_idle(self) -> None:
        """End the sessions that no request uses and that are abandoned."""
        is_full = len(self._uploads) >= limit_by_descriptors(limits.MAX_UPLOADS)
        for upload in list(self._uploads.values()):
            if upload.is_abandoned(is_full=is_full) and upload.turn.take():
                try:
                    if upload.is_abandoned(is_full=is_full):
                        upload.discard()
                finally:
                    self._unlock(upload)

    def _unlock(self, upload: Upload) -> None:
        upload.turn.give_back()
        if not upload.is_open:
            self._uploads.pop(upload.identifier, None)


def _unknown_upload_error(identifier: str) -> RequestRejectedError:
    return RequestRejectedError(404, "BLOB_UPLOAD_UNKNOWN", f"no upload {identifier}")
