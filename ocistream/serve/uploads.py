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
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import LocalDiskError
from ocistream.oci.reference import DIGEST_HEX_LENGTHS, parse_digest
from ocistream.serve.capacity import limit_by_descriptors
from ocistream.serve.errors import RequestRejectedError
from ocistream.streams import files, partial_files
from ocistream.streams.chunks import new_hash, read_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from ocistream.layout.directory import LayoutDirectory
    from ocistream.streams.chunks import Hasher

    OnStored: TypeAlias = Callable[[str, os.stat_result], None]

__all__ = ["Upload", "Uploads"]

#: How long, in seconds, a request waits for another one of the same upload to end.
_LOCK_TIMEOUT: Final = 5.0
_FILE_MODE: Final = 0o644


class Upload:
    """One session. `offset` is how many bytes have come; `identifier` is what its URL ends in.

    `is_open` says whether it may be gone on with, `starved` whether the disk had no room for what came last. Whoever
    changes it holds it, by `Uploads.hold`.
    """

    def __init__(self, layout: LayoutDirectory, repository: str, algorithm: str, on_stored: OnStored | None) -> None:
        """Begin with no bytes; `algorithm` is the one that the digest is expected to have.

        `on_stored` is told of the file that becomes a blob.

        Raises:
            LocalDiskError: there is no room, or no permission.
        """
        self.identifier = str(uuid.uuid4())
        self.repository = repository
        self.offset = 0
        self.last_used = time.monotonic()
        self._layout = layout
        self._on_stored = on_stored
        self._lock = threading.Lock()
        self.is_open = True
        self.is_out_of_space = False
        self._start_hash(algorithm)
        folder = layout.algorithm_directory(algorithm)
        self._path = folder / f".{self.identifier}{partial_files.UPLOAD_SUFFIX}"
        with self._disk_errors():
            folder.mkdir(exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._lock_holder = FileIO(os.open(self._path, flags, _FILE_MODE), "wb")
            # Where there are no locks, the file's age has to say that it is abandoned.
            with contextlib.suppress(OSError):
                fcntl.flock(self._lock_holder, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def expect_digest(self, digest: str) -> None:
        """Hash with the algorithm of the digest that was promised, if no byte has come yet."""
        if not self.offset:
            self._start_hash(parse_digest(digest).algorithm)

    def receive(self, read: Callable[[memoryview], int], buffer: memoryview) -> None:
        """Append all that `read` puts into `buffer`, until it says 0. What came before it raised is kept.

        Raises:
            LocalDiskError: the disk is full, or otherwise in the way.
        """
        self.is_out_of_space = False
        with self._disk_errors():
            file = self._open_file()
        with file:
            file.seek(self.offset)
            while got := read(buffer):
                chunk = buffer[:got]
                try:
                    with self._disk_errors():
                        files.write_all(file, chunk)
                except LocalDiskError:
                    self.is_out_of_space = True
                    raise
                self._hash.update(chunk)
                self.offset += got

    def finish(self, digest: str) -> None:
        """Make a blob of the bytes, if they are the ones that `digest` promises. The session is over either way.

        Raises:
            RefusedError: they are not (400).
            LocalDiskError: they cannot be made to stay.
        """
        try:
            if self._compute_digest(parse_digest(digest).algorithm) != digest:
                detail = {"digest": digest, "received": self.offset}
                raise RequestRejectedError(400, "DIGEST_INVALID", "the bytes have another digest", details=[detail])
            path = self._layout.blob_path(digest)
            with self._disk_errors(), self._open_file() as file:
                # What a full disk took of a chunk, before it refused the rest, was never counted.
                file.truncate(self.offset)
                os.fsync(file.fileno())
                status = os.fstat(file.fileno())
                path.parent.mkdir(exist_ok=True)
                self._path.replace(path)
                files.sync_directory(path.parent)
            if self._on_stored is not None:
                self._on_stored(digest, status)
        finally:
            self.discard()

    def discard(self) -> None:
        """End the session and drop its bytes, if they have not become a blob."""
        self.is_open = False
        with contextlib.suppress(OSError):
            self._path.unlink()
        self._lock_holder.close()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other requests off this upload, but for those that only ask for its offset.

        Raises:
            RefusedError: it is not there any more (404), or another request does not let go of it (429).
        """
        if not self._lock.acquire(timeout=_LOCK_TIMEOUT):
            what = "another request is still writing to this upload"
            raise RequestRejectedError(429, "TOOMANYREQUESTS", what, headers={"Retry-After": "1"})
        try:
            if not self.is_open:
                raise _unknown_upload_error(self.identifier)
            yield
        finally:
            self.last_used = time.monotonic()
            self._lock.release()

    def discard_if_idle(self, before: float) -> bool:
        """End the session if no request holds it and none did since `before`; say whether it is over.

        One that had no room on the disk is over at once: few clients go on with it, and it takes the room of others.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self.last_used < before or self.is_out_of_space:
                self.discard()
            return not self.is_open
        finally:
            self._lock.release()

    def _start_hash(self, algorithm: str) -> None:
        self._algorithm = algorithm
        self._hash: Hasher = new_hash(f"{algorithm}:{'0' * DIGEST_HEX_LENGTHS[algorithm]}")

    def _compute_digest(self, algorithm: str) -> str:
        """Give the digest; the bytes are read again only if another algorithm was expected when they came."""
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
    """All sessions of one registry. Safe for several threads."""

    def __init__(self, layout: LayoutDirectory | None, on_stored: OnStored | None = None) -> None:
        """Keep the bytes of uploads in `layout`, among its blobs; without one there never are any.

        `on_stored` is called with the digest and the status of each file that becomes a blob.
        """
        self._layout = layout
        self._on_stored = on_stored
        self._lock = threading.Lock()
        self._uploads: dict[str, Upload] = {}

    def begin(self, repository: str, algorithm: str = "sha256") -> Upload:
        """Start a session, after those were dropped that nobody goes on with.

        Raises:
            RefusedError: there are too many (429), or there is no place for them (405).
            LocalDiskError: there is no room for it, or no permission.
        """
        if self._layout is None:
            raise RequestRejectedError(405, "UNSUPPORTED", "nothing can be uploaded here")
        self._discard_idle(idle_since=time.monotonic() - limits.UPLOAD_IDLE_TIMEOUT)
        with self._lock:
            if len(self._uploads) >= limit_by_descriptors(limits.MAX_UPLOADS):
                raise RequestRejectedError(429, "TOOMANYREQUESTS", "too many uploads", headers={"Retry-After": "60"})
            upload = Upload(self._layout, repository, algorithm, self._on_stored)
            self._uploads[upload.identifier] = upload
        return upload

    def find(self, repository: str, identifier: str) -> Upload:
        """Give the session that a repository has under this identifier.

        Raises:
            RefusedError: there is none (404).
        """
        with self._lock:
            upload = self._uploads.get(identifier)
        if upload is None or upload.repository != repository:
            raise _unknown_upload_error(identifier)
        return upload

    @contextlib.contextmanager
    def lock(self, upload: Upload) -> Iterator[None]:
        """Keep other requests off a session within the block, and forget it if it is over then.

        Raises:
            RefusedError: it is over already (404), or another request does not let go of it (429).
        """
        with upload.lock():
            try:
                yield
            finally:
                if not upload.is_open:
                    self._forget(upload)

    def delete_abandoned(self) -> None:
        """Remove the partial files of sessions whose process was killed: nobody has their locks.

        Also what is as old as an idle session, whosever it is.
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
        """Drop all sessions, whoever holds them."""
        with self._lock:
            for upload in self._uploads.values():
                upload.discard()

    def _discard_idle(self, idle_since: float) -> None:
        with self._lock:
            uploads: list[Upload] = list(self._uploads.values())
        for upload in uploads:
            if upload.discard_if_idle(idle_since):
                self._forget(upload)

    def _forget(self, upload: Upload) -> None:
        with self._lock:
            self._uploads.pop(upload.identifier, None)


def _unknown_upload_error(identifier: str) -> RequestRejectedError:
    return RequestRejectedError(404, "BLOB_UPLOAD_UNKNOWN", f"there is no upload {identifier}")
