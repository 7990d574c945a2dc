"""Partial files: create, lock, resume and remove unfinished files.

`.NAME.partial` can be resumed by the next run; `.NAME.RANDOM.partial` belongs to one run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
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

__all__ = [
    "PARTIAL_SUFFIX",
    "UPLOAD_SUFFIX",
    "PartialFile",
    "clean_up_unfinished",
    "create_temporary",
    "is_reserved_name",
    "is_temporary_name",
    "is_upload_name",
    "kept_files",
    "open_resumable",
    "remove_stale",
    "reset",
    "target_name",
]

#: The dot before their names keeps them out of `ls`, this says what they are.
PARTIAL_SUFFIX: Final = ".partial"
#: Those that a registry over a directory (`serve`) has for its clients' uploads, and forgets when it ends.
UPLOAD_SUFFIX: Final = f".upload{PARTIAL_SUFFIX}"
_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_RANDOM: Final = 6
_TEMPORARY = re.compile(rf"\.(.+)\.([0-9a-f]{{{2 * _RANDOM}}}){re.escape(PARTIAL_SUFFIX)}\Z", re.DOTALL)
#: NAME_MAX of nearly every file system, in bytes.
_MAX_NAME_BYTES: Final = 255
_RESUMABLE = re.compile(rf"\.(.+){re.escape(PARTIAL_SUFFIX)}\Z", re.DOTALL)
#: A sweep may hold a new file's lock between its first two moments; that this happens so often is no accident.
_ATTEMPTS: Final = 20


@dataclass(slots=True, eq=False)
class PartialFile:
    """One that is being written, by its open and locked `file`.

    `is_lasting` says whether another run can go on with it; `is_worthless` is set by whoever finds that none should.
    """

    path: Path
    file: FileIO
    is_resumable: bool
    is_discarded: bool = False

    def size(self) -> int:
        """Say how many bytes there are, or 0 where that cannot be known."""
        try:
            return os.fstat(self.file.fileno()).st_size
        except (OSError, ValueError):
            return 0

    def has_name(self) -> bool:
        """Say whether its name still leads to it: it may have been removed, and another be in its place.

        Of one that is closed its own thread has made what it should: nothing is to be done with it any more.
        """
        try:
            return _is_same_file(self.path, self.file.fileno())
        except ValueError:
            return False

    def keep_or_remove(self) -> None:
        """Leave behind what another run can go on with, if it is worth that; remove everything else."""
        size = self.size()
        if not self.has_name():
            return
        if self.is_resumable and not self.is_discarded and size >= limits.MIN_PARTIAL_SIZE:
            _kept_sizes[self.path] = size
            return
        with contextlib.suppress(OSError):
            self.path.unlink()

    def unregister(self) -> None:
        """Note that it has got its name, or is settled otherwise."""
        with _lock:
            _unfinished.discard(self)

    def rename(self, path: Path) -> None:
        """Give it another name.

        Raises:
            OSError: as `os.rename` does; ENOENT where it was removed.
        """
        if not self.has_name():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        self.path.replace(path)
        _kept_sizes.pop(self.path, None)


_lock = threading.Lock()
#: Those that are being written now, by any thread, and what this process has left behind, in bytes.
_unfinished: set[PartialFile] = set()
_kept_sizes: dict[Path, int] = {}


def create_temporary(folder: Path, name: str, mode: int) -> PartialFile:
    """Begin one that is for this run alone.

    Raises:
        OSError: as `os.open` does.
    """
    for _ in range(_ATTEMPTS):
        path = folder / _temporary_name(name, os.urandom(_RANDOM).hex())
        partial = _open_partial(path, _FLAGS | os.O_CREAT | os.O_EXCL, mode, is_lasting=False)
        if _try_lock(partial.file.fileno()) is not False and partial.has_name():
            return partial
        partial.unregister()
        partial.file.close()
    raise BlockingIOError(f"{folder}: no file can be made here that stays")


def open_resumable(folder: Path, name: str, mode: int) -> PartialFile | None:
    """Go on with the one that an earlier run has left for `name`, or begin it.

    None where that cannot be, which is said: another process is writing it, the file system knows no locks, or what has
    its name is a link, no regular file, somebody else's, or has another name besides. What it holds is to be looked at
    as anybody's.
    """
    path = folder / _resumable_name(name)
    try:
        partial, is_new = _open_or_create(path, mode)
    except OSError as error:
        # Where nothing is there, whatever is made instead will meet the same trouble, and say so.
        _report_obstacle(path, error)
        return None
    descriptor = partial.file.fileno()
    is_ours = _refusal_reason(os.fstat(descriptor)) is None
    is_locked = _try_lock(descriptor) if is_ours else None
    # Whoever had the lock before may have given it its name, or removed it.
    if is_locked and partial.has_name() and (is_new or _reset_permissions(partial, name, mode)):
        return partial
    if not is_ours:
        _report_obstacle(path)
    elif is_locked is False:
        notices.notify(f"another process is writing {path}: this run begins anew, and keeps nothing", level=1)
    elif is_locked is None:
        notices.notify(f"there are no locks in {folder}: nothing is kept there to go on with", level=1)
    if is_new and is_locked is None:
        # This file system knows no locks, or calls what is ours somebody else's. Another process that has got the lock
        # of what we made has found it, and is writing it.
        partial.keep_or_remove()
    partial.unregister()
    partial.file.close()
    return None


def _open_or_create(path: Path, mode: int) -> tuple[PartialFile, bool]:
    """Open a file that may be there, or make it; say whether it was made."""
    # Not to wait where a FIFO has the name.
    flags = _FLAGS | os.O_NONBLOCK
    try:
        return _open_partial(path, flags, mode, is_lasting=True), False
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            return _open_partial(path, flags | os.O_CREAT | os.O_EXCL, mode, is_lasting=True), True
        # Another process was faster.
        return _open_partial(path, flags, mode, is_lasting=True), False
    except PermissionError:
        # As a umask of 0222 makes them.
        _make_writable(path)
        return _open_partial(path, flags, mode, is_lasting=True), False


def _make_writable(path: Path) -> None:
    """Let the owner write a file, if it is one of ours."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not _refusal_reason(status):
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode) | stat.S_IWUSR)
    finally:
        os.close(descriptor)


def _reset_permissions(partial: PartialFile, name: str, mode: int) -> bool:
    """Give what an earlier run has left the rights that a new file gets now, and say whether that could be done.

    Which those are, the umask and the folder decide: so one is made, to be looked at.
    """
    try:
        path = partial.path.parent / _temporary_name(name, os.urandom(_RANDOM).hex())
        new = _open_partial(path, _FLAGS | os.O_CREAT | os.O_EXCL, mode, is_lasting=False)
        try:
            wanted = stat.S_IMODE(os.fstat(new.file.fileno()).st_mode)
        finally:
            new.keep_or_remove()
            new.unregister()
            new.file.close()
        os.fchmod(partial.file.fileno(), wanted)
    except OSError:
        return False
    return True


def _report_obstacle(path: Path, error: OSError | None = None) -> None:
    try:
        trouble = _refusal_reason(path.lstat()) or (error and error.strerror)
    except OSError:
        return
    if trouble:
        what = f"{path} is not gone on with ({trouble}): this run begins anew, and keeps nothing if it is interrupted"
        notices.notify(f"{what}; remove that, and the next one will")


def remove_stale(
    folder: Path, is_stray: Callable[[str], bool], *, older_than: float = 0.0, dry_run: bool = False
) -> dict[str, int]:
    """Remove those files of ours in a folder that nobody writes, whose names `is_stray` says yes to.

    So many seconds must have passed since they were last written. What cannot be looked at, or removed, stays.
    Given are the names of those that went, or with `dry_run` would go, and their sizes in bytes.
    """
    gone = {}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for name in [entry.name for entry in entries if is_stray(entry.name)]:
            with contextlib.suppress(OSError):
                size = _remove_unlocked(folder / name, older_than=older_than, dry_run=dry_run)
                if size is not None:
                    gone[name] = size
    return gone


def is_upload_name(entry: str) -> bool:
    """Say whether a folder's entry is called like what `serve` keeps of an upload that is under way."""
    return entry.startswith(".") and entry.endswith(UPLOAD_SUFFIX)


def is_temporary_name(entry: str, name: str | None = None) -> bool:
    """Say whether a folder's entry is called like one that is for one run alone; and for `name`, if that is given."""
    match = _TEMPORARY.match(entry)
    return match is not None and (name is None or entry == _temporary_name(name, match[2]))


def target_name(entry: str) -> str | None:
    """Give the name that an entry of a folder is to get at the end, if it is called like one to go on with."""
    match = _RESUMABLE.match(entry)
    return match[1] if match and not _TEMPORARY.match(entry) else None


def is_reserved_name(name: str) -> bool:
    """Say whether a name is one of those that are given to unfinished files, which others may then take it for."""
    return is_temporary_name(name) or target_name(name) is not None


def resumable_path(path: Path) -> Path:
    """Say where that is, or would be, which an interrupted run leaves of a file to go on with."""
    return path.with_name(_resumable_name(path.name))


def _resumable_name(name: str) -> str:
    return f".{_shorten(name, len(f'.{PARTIAL_SUFFIX}'))}{PARTIAL_SUFFIX}"


def _temporary_name(name: str, random: str) -> str:
    return f".{_shorten(name, len(f'..{random}{PARTIAL_SUFFIX}'))}.{random}{PARTIAL_SUFFIX}"


def _shorten(name: str, more: int) -> str:
    """Give a name to which so many bytes can be added, and the same one each time."""
    raw = os.fsencode(name)
    if len(raw) + more <= _MAX_NAME_BYTES:
        return name
    import hashlib

    return hashlib.sha256(raw).hexdigest()


def clean_up_unfinished() -> None:
    """Settle the files of threads that will not get to do it: the process ends without waiting for them."""
    with _lock:
        unfinished = list(_unfinished)
    for partial in unfinished:
        partial.keep_or_remove()


def kept_files() -> dict[Path, int]:
    """Say what this process has left behind to go on with: paths, and how many bytes are there."""
    return dict(_kept_sizes)


def reset() -> None:
    """Know of nothing that was left behind so far: another piece of work begins."""
    _kept_sizes.clear()


def _open_partial(path: Path, flags: int, mode: int, *, is_lasting: bool) -> PartialFile:
    """Open one, and know of it.

    Raises:
        OSError: as `os.open` does.
    """
    try:
        partial = PartialFile(path, FileIO(os.open(path, flags, mode), "r+b"), is_lasting)
        with _lock:
            _unfinished.add(partial)
    except OSError:
        raise
    except BaseException:
        # A signal came when it was made and nobody knew of it yet.
        with contextlib.suppress(OSError):
            _remove_unlocked(path, below=limits.MIN_PARTIAL_SIZE)
        raise
    return partial


def _try_lock(descriptor: int) -> bool | None:
    """Try to take a file's lock: False where another has it, None where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _refusal_reason(status: os.stat_result) -> str | None:
    """Say why a file is none that we may write: a regular one, with one name, of whom this process belongs to."""
    if not stat.S_ISREG(status.st_mode):
        return "it is no regular file"
    if status.st_uid != os.geteuid():
        return "it belongs to another user"
    if status.st_nlink != 1:
        return "it has another name besides" if status.st_nlink else "it was removed"
    return None


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except (OSError, ValueError):
        return False


def _remove_unlocked(
    path: Path, *, older_than: float = 0.0, below: float = math.inf, dry_run: bool = False
) -> int | None:
    """Remove one that nobody writes, if it is so old, in seconds, and smaller than so many bytes; its size is given."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        fits = status.st_mtime <= time.time() - older_than and status.st_size < below and not _refusal_reason(status)
        if not fits or not _try_lock(descriptor) or not _is_same_file(path, descriptor):
            return None
        if not dry_run:
            path.unlink()
        return status.st_size
    finally:
        os.close(descriptor)
