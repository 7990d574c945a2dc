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
from typing import TYPE_CHECKING, Final

from ocistream import limits, notices
from ocistream.errors import (
    ArchiveError,
    CancelledError,
    IntegrityError,
    LocalDiskError,
    NotFoundError,
    OcistreamError,
    OutputClosedError,
    TruncatedError,
)
from ocistream.streams import partial_files
from ocistream.streams.partial_files import PARTIAL_SUFFIX, clean_up_unfinished

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from _typeshed import WriteableBuffer

    from ocistream.streams.partial_files import PartialFile

__all__ = [
    "PARTIAL_SUFFIX",
    "CancellableInput",
    "OffsetReader",
    "WritebackWriter",
    "acquire_shared_lock",
    "atomic_file",
    "atomic_file_named_later",
    "clean_up_unfinished",
    "disk_errors",
    "is_locked",
    "locked_directory",
    "open_for_reading",
    "read_bounded",
    "resumable_file",
    "write_all",
]

#: Milliseconds between two looks at whether a transfer is cancelled, while its input is silent.
_POLL_INTERVAL: Final = 100
#: Seconds between two tries to get a lock: it is mostly held for a moment.
_FIRST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.1
_PATH_HINT = "is the path right? a relative one begins in the folder that you are in"
#: What to do where something is not there, by what was being done.
_NOT_FOUND_HINTS = {
    "cannot write": "make its folder first, with mkdir -p; or is the path misspelt?",
    "cannot read": _PATH_HINT,
    "reading": _PATH_HINT,
}
_HINTS = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "the quota is used up: free some space and run the same command again",
    errno.EFBIG: "the file system takes no larger files: `pull --split` cuts an archive (FAT32 takes 4294967295 bytes)",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.ELOOP: "a symbolic link leads back to itself: `ls -l` shows where the links lead",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "this process may open no more files: raise the limit with `ulimit -n`",
}


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn an `OSError` of the local disk within the block into an error of ours that begins with `what`.

    Raises:
        NotFoundError: a file or directory is not there (exit 4).
        OutputClosedError: a pipe whose reader has gone (exit 141).
        LocalDiskError: everything else (exit 9).
    """
    try:
        yield
    except OSError as error:
        raise disk_error(what, error) from error


def disk_error(what: str, error: OSError) -> OcistreamError:
    """Say an `OSError` in our own words; `what` is what was being done, with the path."""
    if isinstance(error, BrokenPipeError):
        return OutputClosedError(f"{what}: whoever read it has gone away")
    if error.errno == errno.ENOENT and _is_working_directory_gone():
        return LocalDiskError(f"{what}: the working directory was deleted", hint="change to another directory first")
    if error.errno == errno.ENOENT:
        hint = next((hint for doing, hint in _NOT_FOUND_HINTS.items() if what.startswith(doing)), None)
        return NotFoundError(f"{what}: no such file or directory", hint=hint)
    return LocalDiskError(f"{what}: {error.strerror or error}", hint=_HINTS.get(error.errno or 0))


def _is_working_directory_gone() -> bool:
    """Say whether relative paths lead nowhere, since the directory in which they begin does not exist any more."""
    try:
        os.getcwd()  # noqa: PTH109 - `Path.cwd` does the same
    except FileNotFoundError:
        return True
    return False


@contextlib.contextmanager
def atomic_file(path: Path, *, mode: int = 0o644) -> Iterator[FileIO]:
    """Write a file that gets its name only when the block ends well.

    The bytes go to a partial file in the same folder (opened with O_EXCL and O_NOFOLLOW), which is locked, synced
    and renamed at the end, or removed if the block raises. `OSError` is left to the caller's `disk_errors`; it is
    EINVAL where a device, FIFO or socket has the name.
    """
    with atomic_file_named_later(path.parent, path.name, mode=mode) as (file, name):
        yield file
        name(path)


@contextlib.contextmanager
def atomic_file_named_later(
    folder: Path, prefix: str = "unnamed", *, mode: int = 0o644, durable: bool = True, synced: bool = True
) -> Iterator[tuple[FileIO, Callable[[Path], None]]]:
    """Write a file in `folder` that is given its name, in the same folder, by one call within the block.

    Otherwise as `atomic_file`. Whoever writes many files may see to it that their names are `durable` once, at the end.
    What is not `synced` may be anything after a power cut, under its final name too: for what is checked before use.
    """
    # The process umask decides on the final rights, as it does for any file that a user's command makes.
    partial = partial_files.create_temporary(folder, prefix, mode)
    names: list[Path] = []
    with _rename_at_end(partial, names, durable=durable, synced=synced):
        yield partial.file, names.append


@contextlib.contextmanager
def resumable_file(path: Path, *, mode: int = 0o644, durable: bool = True) -> Iterator[PartialFile]:
    """Write a file as `atomic_file` does, of which what an interruption leaves is kept for the next run.

    So what there is in it at the beginning may be anything. Nothing is kept that is small (`limits.WORTH_KEEPING`), or
    found to be wrong: IntegrityError and ArchiveError. If another process writes the same file now, or what has the
    partial file's name is not ours to write, this one is for this run alone.
    """
    folder, name = path.parent, path.name
    partial = partial_files.open_resumable(folder, name, mode) or partial_files.create_temporary(folder, name, mode)
    with _rename_at_end(partial, [path], durable=durable):
        yield partial


@contextlib.contextmanager
def _rename_at_end(partial: PartialFile, names: list[Path], *, durable: bool, synced: bool = True) -> Iterator[None]:
    """Give a partial file the one of `names` at the end, or settle it; until then it stays locked."""
    try:
        with partial.file:
            try:
                yield
                if synced:
                    os.fsync(partial.file.fileno())
                (path,) = names
                _check_replaceable(path)
                partial.rename(path)
            except BaseException as error:
                # What ends too early was not found wrong.
                is_wrong = isinstance(error, IntegrityError | ArchiveError) and not isinstance(error, TruncatedError)
                partial.is_discarded |= is_wrong
                partial.keep_or_remove()
                raise
    finally:
        partial.unregister()
    if durable:
        sync_directory(path.parent)


def _check_replaceable(path: Path) -> None:
    """Refuse to put a file in the place of a device, FIFO or socket: root would replace `/dev/null` for everybody.

    Raises:
        OSError: EINVAL where there is one.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        raise OSError(errno.EINVAL, "not a regular file, and so not replaced", str(path))


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` durable, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def locked_directory(directory: Path, patience: float | None = None) -> Iterator[None]:
    """Hold the advisory lock on `directory` itself, so that no lock file is left lying about.

    Two of our processes that change one layout's `index.json` take turns by it. Whoever can read the directory can hold
    it too, for ever: so it is waited for so many seconds (`limits.LOCK_TIME`) and no longer, and a long wait is said.

    Raises:
        LocalDiskError: another process did not let go of it.
        OSError: as `os.open` and `flock` do.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(descriptor, directory, limits.LOCK_TIMEOUT if patience is None else patience)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, directory: Path, patience: float) -> None:
    began, pause = time.monotonic(), _FIRST_PAUSE
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        waited = time.monotonic() - began
        if waited >= patience:
            msg = f"another process has the lock of {directory}, and did not let go of it in {patience:.0f} s"
            raise LocalDiskError(msg, hint="`lslocks` shows which one it is")
        if waited >= limits.LOCK_NOTICE_DELAY:
            notices.notify(f"waiting for another process that has the lock of {directory}")
        # Not by a `flock` that waits: it would have to be ended from elsewhere.
        time.sleep(min(pause, patience - waited))
        pause = min(2 * pause, _LONGEST_PAUSE)


def acquire_shared_lock(directory: Path) -> int | None:
    """Show others that `directory` is in use, until what is given is closed (`os.close`); None where that cannot be."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return descriptor
    return None


def is_locked(directory: Path) -> bool:
    """Say whether some process has a lock on `directory`."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            # Where there are no locks, nobody knows.
            return True
        finally:
            os.close(descriptor)
    return False


def open_for_reading(path: Path) -> FileIO:
    """Open a regular file unbuffered, without following a symbolic link in its last part.

    A hostile layout may hold a link to a file of the reader's, or a FIFO to hang on.

    Raises:
        OSError: as `open` does; ELOOP where the name is a link, EINVAL where it is not a regular file.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags)
    # Asked before FileIO sees it: of a directory's descriptor FileIO lets go without closing it.
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return FileIO(descriptor, "rb")


class OffsetReader:
    """Reads an open file from an offset of its own on, so that several can share it, and one who writes to it."""

    def __init__(self, descriptor: int, offset: int) -> None:
        """Begin at `offset`, in bytes."""
        self._descriptor = descriptor
        self._offset = offset

    def readinto(self, buffer: memoryview) -> int:
        """Fill the beginning of `buffer` and say how much it was: 0 at the end of the file."""
        got = os.preadv(self._descriptor, [buffer], self._offset)
        self._offset += got
        return got


def write_all(file: FileIO, chunk: bytes | memoryview) -> None:
    """Write all of `chunk` to an unbuffered file, which may take less than it is given."""
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


class WritebackWriter:
    """Writes much to a file that will be waited for at its end, and has the disk begin with it meanwhile."""

    def __init__(self, file: FileIO) -> None:
        """Write where the file stands."""
        self._file = file
        self._unwritten = 0

    def write(self, chunk: bytes | memoryview) -> None:
        """Write all of `chunk`."""
        view = memoryview(chunk)
        for start in range(0, len(view), limits.CHUNK_SIZE):
            # Larger pieces cost the kernel more for each byte.
            write_all(self._file, view[start : start + limits.CHUNK_SIZE])
        self._unwritten += len(view)
        if self._unwritten >= limits.WRITEBACK_SIZE:
            self._start_writeback()

    def _start_writeback(self) -> None:
        """Have the kernel begin to write what the disk does not have yet, and wait for nothing.

        To say that nobody will read it is how to ask for that: Linux writes such pages before it lets go of them. Those
        that are not written by then it keeps, so that the file can be read again at once.
        """
        if hasattr(os, "posix_fadvise"):
            end = self._file.tell()
            with contextlib.suppress(OSError):
                # A file system that does not know it writes later.
                os.posix_fadvise(
                    self._file.fileno(), max(0, end - self._unwritten), self._unwritten, os.POSIX_FADV_DONTNEED
                )
        self._unwritten = 0


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a small regular file whole, up to `limit` + 1 bytes: a longer answer tells the caller it is too large.

    Raises:
        OSError: as `open_for_reading`.
    """
    parts: list[bytes] = []
    left = limit + 1
    with open_for_reading(path) as file:
        while left > 0 and (part := file.read(left)):
            parts.append(part)
            left -= len(part)
    return b"".join(parts)


class CancellableInput(FileIO):
    """A pipe, a FIFO or a file to read once. Reading notices that the transfer is cancelled, even while nothing comes.

    Otherwise an interrupted upload could not end its request, nor could this be closed while a thread waits for it.
    """

    def __init__(self, file: int | Path, cancelled: threading.Event) -> None:
        """Open a path, or take a descriptor, which is left open."""
        super().__init__(file, "rb", closefd=not isinstance(file, int))
        self._cancelled = cancelled
        self._poll = select.poll()
        self._poll.register(self.fileno(), select.POLLIN)

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        """Read some bytes.

        Raises:
            CancelledError: the transfer is cancelled.
        """
        while not self._poll.poll(_POLL_INTERVAL):
            if self._cancelled.is_set():
                msg = "cancelled"
                raise CancelledError(msg)
        return super().readinto(buffer)
