"""Write files atomically, lock directories, read files safely, and convert errors of the local disk.

A file gets its final name by a rename, once it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
import time
from io import FileIO
from typing import TYPE_CHECKING, Final, TypeAlias

from ocistream import limits, notices
from ocistream.errors import (
    ArchiveError,
    IntegrityError,
    LocalDiskError,
    NotFoundError,
    OcistreamError,
    OutputClosedError,
    TruncatedError,
)
from ocistream.streams import partial_files
from ocistream.streams.partial_files import DEFAULT_MODE
from ocistream.streams.synchronization import wait_until

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from _typeshed import WriteableBuffer

    from ocistream.streams.partial_files import PartialFile

#: Identifies one version of a file that is replaced, and never overwritten: device, inode, size and mtime.
FileState: TypeAlias = tuple[int, int, int, int]
#: Seconds between two attempts to get a lock, which is usually held for a moment.
_FIRST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.1
_PATH_HINT = "check the path; relative paths start at the current directory"
_PERMISSIONS_HINT = "check the permissions of this path and of its directories"
#: Hints for a missing file, by the operation in the message.
_NOT_FOUND_HINTS = {
    "cannot write": "check the path, or create the directory with mkdir -p",
    "cannot read": _PATH_HINT,
}
_HINTS = {
    errno.ENOSPC: "free some space and re-run the command",
    errno.EDQUOT: "the quota is used up: free some space and re-run the command",
    errno.EFBIG: (
        "the file system does not allow larger files: `pull --split` splits an archive (FAT32 allows 4294967295 bytes)"
    ),
    errno.EROFS: "the file system is read-only",
    errno.EACCES: _PERMISSIONS_HINT,
    errno.EPERM: _PERMISSIONS_HINT,
    errno.ELOOP: "a symbolic link refers to itself: `ls -l` shows the targets",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EISDIR: "this is a directory: name a file",
    errno.ENOTDIR: "a part of this path is a file, not a directory: check the path",
    errno.EMFILE: "too many open files: raise the limit with `ulimit -n`",
}


@contextlib.contextmanager
def disk_errors(operation: str) -> Iterator[None]:
    """Convert an `OSError` of the local disk within the block; the message starts with `operation`.

    Raises:
        NotFoundError: a file or directory does not exist (exit 4).
        OutputClosedError: the reader has closed the pipe (exit 141).
        LocalDiskError: any other error (exit 9).
    """
    try:
        yield
    except OSError as error:
        raise disk_error(operation, error) from error


def temporary_directory() -> str | None:
    """Return TMPDIR; None if it is not set. Python would silently use /tmp if it cannot write to TMPDIR."""
    return os.environ.get("TMPDIR") or None


def disk_error(operation: str, error: OSError) -> OcistreamError:
    """Convert an `OSError`; `operation` is the failed operation, with the path."""
    if isinstance(error, BrokenPipeError):
        return OutputClosedError(f"{operation}: broken pipe: the reader closed it")
    if error.errno == errno.ENOENT and _is_working_directory_gone():
        return LocalDiskError(
            f"{operation}: the working directory was deleted", hint="change to another directory first"
        )
    if error.errno == errno.ENOENT:
        hint = next((hint for prefix, hint in _NOT_FOUND_HINTS.items() if operation.startswith(prefix)), None)
        if hint == _PATH_HINT and "*" in operation:
            hint = "remove the quotes, or name the files: only `ocistream push -i` takes a pattern in quotes"
        return NotFoundError(f"{operation}: no such file or directory", hint=hint)
    return LocalDiskError(f"{operation}: {error.strerror or error}", hint=_HINTS.get(error.errno or 0))


def _is_working_directory_gone() -> bool:
    """Return whether the working directory was deleted, so that no relative path exists."""
    try:
        os.getcwd()  # noqa: PTH109 - `Path.cwd` does the same
    except FileNotFoundError:
        return True
    return False


@contextlib.contextmanager
def atomic_file(path: Path, *, mode: int = DEFAULT_MODE) -> Iterator[FileIO]:
    """Write a file that gets its name only if the block succeeds.

    The bytes go to a partial file in the same folder (opened with O_EXCL and O_NOFOLLOW), which is locked. At the end
    it is synced and renamed; if the block raises, it is removed. The caller handles `OSError` with `disk_errors`; it is
    EINVAL if a device, FIFO or socket has the name.
    """
    with atomic_file_named_later(path.parent, path.name, mode=mode) as (file, name):
        yield file
        name(path)


@contextlib.contextmanager
def atomic_file_named_later(
    folder: Path,
    prefix: str = "unnamed",
    *,
    mode: int = DEFAULT_MODE,
    durable: bool = True,
    synced: bool = True,
) -> Iterator[tuple[FileIO, Callable[[Path], None]]]:
    """Write a file in `folder` that gets its name, in the same folder, by one call within the block.

    Otherwise as `atomic_file`. A caller that writes many files may pass `durable=False` and sync the folder once at the
    end. A file with `synced=False` may have any contents after a power cut, even under its final name: use it only for
    files that are checked before use.
    """
    # The umask of the process decides about the final permissions, as for any file that a user's command creates.
    partial = partial_files.create_temporary(folder, prefix, mode)
    paths: list[Path] = []
    with _rename_at_end(partial, paths, durable=durable, synced=synced):
        yield partial.file, paths.append


@contextlib.contextmanager
def resumable_file(path: Path, *, durable: bool = True) -> Iterator[PartialFile]:
    """Write a file as `atomic_file` does, but keep what an interruption leaves for the next run.

    So the file's contents at the beginning may be anything. A file smaller than `limits.MIN_PARTIAL_SIZE` is not kept,
    nor after an IntegrityError or ArchiveError. The file is for this run only if another process is writing it, or if
    the partial file's name is not ours to write.
    """
    partial = partial_files.open_resumable(path) or partial_files.create_temporary(path.parent, path.name)
    with _rename_at_end(partial, [path], durable=durable):
        yield partial


@contextlib.contextmanager
def _rename_at_end(partial: PartialFile, paths: list[Path], *, durable: bool, synced: bool = True) -> Iterator[None]:
    """Rename a partial file to the single path in `paths` at the end, or keep or remove it; until then it is locked."""
    try:
        yield
        if synced:
            os.fsync(partial.file.fileno())
        (path,) = paths
        _check_replaceable(path)
        partial.rename(path)
    except BaseException as error:
        # A truncated input is not proof of wrong contents.
        is_wrong = isinstance(error, IntegrityError | ArchiveError) and not isinstance(error, TruncatedError)
        partial.is_discarded |= is_wrong
        partial.keep_or_remove()
        raise
    finally:
        partial.close()
    if durable:
        sync_directory(path.parent)


def _check_replaceable(path: Path) -> None:
    """Refuse to replace a device, FIFO or socket: as root a rename would replace `/dev/null` for everybody.

    Raises:
        OSError: EINVAL if there is one.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        raise OSError(errno.EINVAL, "not a regular file, so it is not replaced", str(path))


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` durable, if the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def locked_directory(directory: Path, patience: float | None = None) -> Iterator[None]:
    """Take the advisory lock on `directory` itself, so that no lock file stays behind.

    Processes of ocistream change a layout's `index.json` one after the other. Any user who can read the directory can
    hold the lock forever, so the wait is limited to `patience` seconds (`limits.LOCK_TIMEOUT`). A lock
    file that only writers can open would have to stay forever. A long wait is reported.

    Raises:
        LocalDiskError: another process did not release the lock.
        OSError: as `os.open` and `flock` do.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(descriptor, directory, limits.LOCK_TIMEOUT if patience is None else patience)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, directory: Path, patience: float) -> None:
    started_at, pause = time.monotonic(), _FIRST_PAUSE
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        waited = time.monotonic() - started_at
        if waited >= patience:
            msg = f"another process held the lock of {directory} for {patience:.0f} s"
            raise LocalDiskError(msg, hint="`lslocks` shows the process")
        if waited >= limits.LOCK_NOTICE_DELAY:
            notices.notify(f"waiting for another process that has the lock of {directory}")
        # Not a blocking `flock`: only a signal could end it.
        time.sleep(min(pause, patience - waited))
        pause = min(2 * pause, _LONGEST_PAUSE)


def acquire_shared_lock(directory: Path) -> int | None:
    """Mark `directory` as in use until the returned descriptor is closed; return None if it cannot be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return descriptor
    return None


def is_locked(directory: Path) -> bool:
    """Return whether any process has a lock on `directory`."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            # On a file system without locks this is unknown.
            return True
        finally:
            os.close(descriptor)
    return False


def file_state(status: os.stat_result) -> FileState:
    """Return the state of a file that has this status."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def open_for_reading(path: Path | str) -> FileIO:
    """Open a regular file unbuffered, without following a symbolic link in the last part of its path.

    A hostile layout may contain a link to a private file of the user, or a FIFO that blocks forever.

    Raises:
        OSError: as `open` does; ELOOP if the name is a link, EINVAL if it is not a regular file.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags)
    # Checked before FileIO gets the descriptor: for a directory FileIO raises without closing it.
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return FileIO(descriptor, "rb")


class OffsetReader:
    """Reads an open file from its own offset, so that several readers and a writer can share the file."""

    def __init__(self, descriptor: int, offset: int, operation: str | None = None) -> None:
        """Start at `offset`, in bytes. With `operation`, errors are converted as `disk_errors` does."""
        self._descriptor = descriptor
        self._offset = offset
        self._operation = operation

    def readinto(self, buffer: memoryview) -> int:
        """Read into the beginning of `buffer` and return the number of bytes; 0 at the end of the file."""
        try:
            count = os.preadv(self._descriptor, [buffer], self._offset)
        except OSError as error:
            if self._operation is None:
                raise
            raise disk_error(self._operation, error) from error
        self._offset += count
        return count


class FilePart:
    """A part of an open file that is read by slices, like `bytes`. A long document need not be in memory."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        """Take `size` bytes from `offset` on."""
        self._descriptor = descriptor
        self._offset = offset
        self._size = size

    def __len__(self) -> int:
        """Return the number of bytes."""
        return self._size

    def __getitem__(self, span: slice, /) -> bytes:
        """Read some of the bytes.

        Raises:
            OSError: the file cannot be read, or is shorter now.
        """
        start, end, _ = span.indices(self._size)
        content = os.pread(self._descriptor, max(0, end - start), self._offset + start)
        if start + len(content) < end:
            raise OSError(errno.EIO, "the file was changed at the same time")
        return content


def write_all(file: FileIO, chunk: bytes | memoryview) -> None:
    """Write all of `chunk` to an unbuffered file, which may accept fewer bytes at once."""
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def enlarge_pipe(descriptor: int) -> None:
    """Make a pipe larger, so that its two processes switch less often. Do nothing if it is not a pipe."""
    # Without permission it keeps its size.
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, limits.PIPE_SIZE)


class WritebackWriter:
    """Writes a large file and starts its write to disk early, so that the final sync is short.

    Without this a pull of 2 GiB into a tar file waited half a second at its end.
    """

    def __init__(self, file: FileIO) -> None:
        """Write at the file's current position."""
        self._file = file
        self._unwritten = 0

    def write(self, chunk: bytes | memoryview) -> None:
        """Write all of `chunk`."""
        view = memoryview(chunk)
        for start in range(0, len(view), limits.CHUNK_SIZE):
            # Larger pieces cost the kernel more CPU per byte (ext4, measured with 1 MiB).
            write_all(self._file, view[start : start + limits.CHUNK_SIZE])
        self._unwritten += len(view)
        if self._unwritten >= limits.WRITEBACK_SIZE:
            self._start_writeback()

    def _start_writeback(self) -> None:
        """Make the kernel start to write the dirty pages, without waiting.

        POSIX_FADV_DONTNEED does this: Linux starts to write such pages. Pages that are not written yet stay in memory.
        """
        if hasattr(os, "posix_fadvise"):
            end = self._file.tell()
            with contextlib.suppress(OSError):
                # A file system without support writes later.
                os.posix_fadvise(
                    self._file.fileno(), max(0, end - self._unwritten), self._unwritten, os.POSIX_FADV_DONTNEED
                )
        self._unwritten = 0


class CancellableInput(FileIO):
    """A pipe, a FIFO or a file that is read once; a read ends when the transfer is cancelled.

    Otherwise an interrupted upload could not end its request, and the input could not be closed while a thread waits
    for data.
    """

    def __init__(self, file: int | Path, cancelled: threading.Event) -> None:
        """Open a path, or use a descriptor, which stays open."""
        super().__init__(file, "rb", closefd=not isinstance(file, int))
        self._cancelled = cancelled
        self._poll = select.poll()
        self._poll.register(self.fileno(), select.POLLIN)
        enlarge_pipe(self.fileno())

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        """Read some bytes.

        Raises:
            CancelledError: the transfer is cancelled.
        """
        wait_until(lambda seconds: self._poll.poll(seconds * 1000), self._cancelled)
        return super().readinto(buffer)
