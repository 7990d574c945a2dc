"""Partial files: create, lock, resume and remove unfinished files.

`.NAME.partial` can be resumed by the next run; `.NAME.RANDOM.partial` belongs to one run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import threading
import time
from dataclasses import dataclass
from io import FileIO
from typing import TYPE_CHECKING, Final

from ocistream import limits, notices

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Suffix of all unfinished files. The dot at the beginning of their names hides them from `ls`.
PARTIAL_SUFFIX: Final = ".partial"
#: Suffix of the uploads of `ocistream serve`, which do not outlive its process.
UPLOAD_SUFFIX: Final = f".upload{PARTIAL_SUFFIX}"
#: The permissions of a new file, which the umask limits.
DEFAULT_MODE: Final = 0o644
_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_RANDOM: Final = 6
_TEMPORARY = re.compile(rf"\.(.+)\.([0-9a-f]{{{2 * _RANDOM}}}){re.escape(PARTIAL_SUFFIX)}\Z", re.DOTALL)
#: NAME_MAX of nearly all file systems, in bytes.
_MAX_NAME_BYTES: Final = 255
_RESUMABLE = re.compile(rf"\.(.+){re.escape(PARTIAL_SUFFIX)}\Z", re.DOTALL)
#: How often to try to create a file: `remove_stale` in another process may briefly lock or remove a new one.
_ATTEMPTS: Final = 20


@dataclass(slots=True, eq=False)
class PartialFile:
    """A file that is being written: its path, and the open and locked `file`.

    `is_resumable` says whether another run can resume it. The code that finds wrong contents sets `is_discarded`. The
    contents of an earlier run are never trusted: it may have had other options, another image, or a power cut. The
    caller compares or hashes them, and truncates the file at the first difference, so wrong contents cost time only.
    """

    path: Path
    file: FileIO
    is_resumable: bool
    is_discarded: bool = False

    def size(self) -> int:
        """Return the size in bytes, or 0 if it cannot be determined."""
        try:
            return os.fstat(self.file.fileno()).st_size
        except (OSError, ValueError):
            return 0

    def has_name(self) -> bool:
        """Return whether the name still leads to the open file: it may have been removed or replaced.

        Also False for a closed file: its own thread has settled it already.
        """
        try:
            return _is_same_file(self.path, self.file.fileno())
        except ValueError:
            return False

    def keep_or_remove(self) -> None:
        """Keep the file if another run can resume it and it is large enough; else remove it."""
        size = self.size()
        if not self.has_name():
            return
        if self.is_resumable and not self.is_discarded and size >= limits.MIN_PARTIAL_SIZE:
            _kept_sizes[self.path] = size
            return
        with contextlib.suppress(OSError):
            self.path.unlink()

    def close(self) -> None:
        """Close the file, which has its final name, or was kept or removed."""
        try:
            self.file.close()
        finally:
            with _lock:
                _unfinished.discard(self)

    def rename(self, path: Path) -> None:
        """Rename the file.

        Raises:
            OSError: as `os.rename` does; ENOENT if it was removed.
        """
        if not self.has_name():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        self.path.replace(path)
        _kept_sizes.pop(self.path, None)


_lock = threading.Lock()
#: Files that any thread is writing, and files that this process has kept, with their sizes in bytes.
_unfinished: set[PartialFile] = set()
_kept_sizes: dict[Path, int] = {}


def create_temporary(folder: Path, name: str, mode: int = DEFAULT_MODE) -> PartialFile:
    """Create a file for this run only.

    Raises:
        OSError: as `os.open` does.
    """
    for _ in range(_ATTEMPTS):
        path = folder / _temporary_name(name, os.urandom(_RANDOM).hex())
        partial = _open_partial(path, _FLAGS | os.O_CREAT | os.O_EXCL, mode, is_resumable=False)
        if _try_lock(partial.file.fileno()) is not False and partial.has_name():
            return partial
        partial.close()
    raise BlockingIOError(f"{folder}: cannot create a partial file here")


def open_resumable(target: Path) -> PartialFile | None:
    """Open the file that an earlier run has left for the file `target`, or create it.

    Return None and report why if another process is writing the file, if the file system has no locks, or if it is not
    a regular file of ours with one name. A link would make us write elsewhere, and two processes would write into each
    other's file. The caller then uses a temporary file. The contents of the returned file must be checked (see
    `PartialFile`).
    """
    path = resumable_path(target)
    # O_NONBLOCK: do not wait if the name is a FIFO.
    flags = _FLAGS | os.O_NONBLOCK
    is_new = False
    try:
        try:
            partial = _open_partial(path, flags, DEFAULT_MODE, is_resumable=True)
        except FileNotFoundError:
            # If another process creates the file at this moment, its lock shows that.
            partial, is_new = _open_partial(path, flags | os.O_CREAT, DEFAULT_MODE, is_resumable=True), True
    except OSError as error:
        # If nothing exists there, creating a temporary file fails in the same way and reports that.
        _report_obstacle(path, error)
        return None
    descriptor = partial.file.fileno()
    is_ours = _refusal_reason(os.fstat(descriptor)) is None
    is_locked = _try_lock(descriptor) if is_ours else None
    # The previous owner of the lock may have renamed or removed the file.
    if is_locked and partial.has_name() and (is_new or _reset_permissions(partial, target)):
        return partial
    if not is_ours:
        _report_obstacle(path)
    elif is_locked is False:
        notices.notify(
            f"another process is writing {path}: this run starts from the beginning and cannot be resumed", level=1
        )
    elif is_locked is None:
        notices.notify(f"{target.parent} does not support locks: an interrupted run cannot be resumed there", level=1)
    if is_new and is_locked is None:
        # The file system has no locks, or shows our file as another user's. If another process has the lock of the new
        # file, it is writing that file, so `is_locked` is False and the file stays.
        partial.keep_or_remove()
    partial.close()
    return None


def _reset_permissions(partial: PartialFile, target: Path) -> bool:
    """Set the permissions of an earlier run's file to those of a new file; return whether that succeeded.

    The earlier run may have had another umask. Only the kernel knows the result of umask and default ACLs, so a new
    file is created to read its permissions.
    """
    try:
        new = create_temporary(target.parent, target.name)
        try:
            os.fchmod(partial.file.fileno(), stat.S_IMODE(os.fstat(new.file.fileno()).st_mode))
        finally:
            new.keep_or_remove()
            new.close()
    except OSError:
        return False
    return True


def _report_obstacle(path: Path, error: OSError | None = None) -> None:
    try:
        obstacle = _refusal_reason(path.lstat()) or (error and error.strerror)
    except OSError:
        return
    if obstacle:
        message = f"cannot resume {path} ({obstacle}): this run starts from the beginning and cannot be resumed"
        notices.notify(f"{message}; remove it to make the next run resumable")


def remove_stale(
    folder: Path, is_stray: Callable[[str], bool], *, older_than: float = 0.0, dry_run: bool = False
) -> dict[str, int]:
    """Remove our files in a folder that no process is writing and whose names `is_stray` accepts.

    They must not have been written for `older_than` seconds. Files that cannot be opened or removed stay. Return the
    names and sizes in bytes of the removed files, or of those that `dry_run` would remove. In a folder that is not a
    layout, only temporary files of one name are removed: it may be a home directory, and a name alone does not show
    that a file is ours.
    """
    removed = {}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for name in [entry.name for entry in entries if is_stray(entry.name)]:
            with contextlib.suppress(OSError):
                size = _remove_unlocked(folder / name, older_than=older_than, dry_run=dry_run)
                if size is not None:
                    removed[name] = size
    return removed


def is_upload_name(entry: str) -> bool:
    """Return whether a folder's entry is named like an unfinished upload of `serve`."""
    return entry.startswith(".") and entry.endswith(UPLOAD_SUFFIX)


def is_temporary_name(entry: str, name: str | None = None) -> bool:
    """Return whether a folder's entry is named like a temporary file, and, if `name` is given, one for that name."""
    match = _TEMPORARY.match(entry)
    return match is not None and (name is None or entry == _temporary_name(name, match[2]))


def target_name(entry: str) -> str | None:
    """Return the final name of an entry that is named like a resumable file, else None."""
    match = _RESUMABLE.match(entry)
    return match[1] if match and not _TEMPORARY.match(entry) else None


def is_reserved_name(name: str) -> bool:
    """Return whether a name has the form of an unfinished file's name, which other runs could mistake for one."""
    return is_temporary_name(name) or target_name(name) is not None


def resumable_path(path: Path) -> Path:
    """Return the path of the file that an interrupted run leaves for `path`, whether or not it exists."""
    return path.with_name(f".{_shorten(path.name, len(f'.{PARTIAL_SUFFIX}'))}{PARTIAL_SUFFIX}")


def _temporary_name(name: str, random: str) -> str:
    return f".{_shorten(name, len(f'..{random}{PARTIAL_SUFFIX}'))}.{random}{PARTIAL_SUFFIX}"


def _shorten(name: str, extra: int) -> str:
    """Return a name to which `extra` bytes can be added: the name itself, or its hash if it is too long."""
    raw = os.fsencode(name)
    if len(raw) + extra <= _MAX_NAME_BYTES:
        return name
    import hashlib

    return hashlib.sha256(raw).hexdigest()


def clean_up_unfinished(*, ends_process: bool = False) -> None:
    """Keep or remove the files of threads that cannot do it: the caller does not wait for them.

    If `ends_process`, no thread can create a file afterwards: it waits until the process ends.
    """
    _lock.acquire()
    try:
        for partial in _unfinished:
            partial.keep_or_remove()
    finally:
        if not ends_process:
            _lock.release()


def kept_files() -> dict[Path, int]:
    """Return the files that this process has kept to be resumed, with their sizes in bytes."""
    return dict(_kept_sizes)


def reset() -> None:
    """Forget the kept files, because other work begins."""
    _kept_sizes.clear()


def _open_partial(path: Path, flags: int, mode: int, *, is_resumable: bool) -> PartialFile:
    """Open a file and register it.

    Raises:
        OSError: as `os.open` does.
    """
    with _lock:
        partial = PartialFile(path, FileIO(os.open(path, flags, mode), "r+b"), is_resumable)
        _unfinished.add(partial)
    return partial


def _try_lock(descriptor: int) -> bool | None:
    """Try to lock a file: False if another process has the lock, None if the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _refusal_reason(status: os.stat_result) -> str | None:
    """Return why we may not write a file; None for a regular file of this user with one name."""
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if status.st_uid != os.geteuid():
        return "it belongs to another user"
    if status.st_nlink != 1:
        return "it has another hard link" if status.st_nlink else "it was removed"
    return None


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except (OSError, ValueError):
        return False


def _remove_unlocked(path: Path, *, older_than: float, dry_run: bool) -> int | None:
    """Remove a file that no process is writing, if it is older than so many seconds; return its size in bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        is_removable = status.st_mtime <= time.time() - older_than and not _refusal_reason(status)
        if not is_removable or not _try_lock(descriptor) or not _is_same_file(path, descriptor):
            return None
        if not dry_run:
            path.unlink()
        return status.st_size
    finally:
        os.close(descriptor)
