"""Unfinished files: locked while they are written, gone on with where that is possible, removed where it is not.

`.NAME.partial` is the one that the next run for the same NAME finds and goes on with. `.NAME.RANDOM.partial` is for one
run alone. Whoever writes either holds an advisory lock on it: what has none was left by a process that was killed.
Which of the two it is to be, and when it gets its name, is files.py's concern.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import threading
import time
from dataclasses import dataclass
from io import FileIO
from typing import TYPE_CHECKING, Final

from ocistream import limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "PARTIAL_SUFFIX",
    "Partial",
    "begin",
    "create",
    "drop_unfinished",
    "find",
    "is_stray_of",
    "kept",
    "lasting",
    "sweep",
]

#: The dot before their names keeps them out of `ls`, this says what they are.
PARTIAL_SUFFIX: Final = ".partial"
_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_RANDOM: Final = 6
_STRAY = re.compile(rf"\.(.+)\.[0-9a-f]{{{2 * _RANDOM}}}{re.escape(PARTIAL_SUFFIX)}\Z", re.DOTALL)
_LASTING = re.compile(rf"\.(.+){re.escape(PARTIAL_SUFFIX)}\Z", re.DOTALL)
#: A sweep may hold a new file's lock between its first two moments; that this happens so often is no accident.
_ATTEMPTS: Final = 20


@dataclass(slots=True, eq=False)
class Partial:
    """One that is being written, by its open and locked `file`.

    `is_lasting` says whether another run can go on with it; `is_worthless` is set by whoever finds that none should.
    """

    path: Path
    file: FileIO
    is_lasting: bool
    is_worthless: bool = False

    def size(self) -> int:
        """Say how many bytes there are, or 0 where that cannot be known."""
        try:
            return os.fstat(self.file.fileno()).st_size
        except (OSError, ValueError):
            return 0

    def is_there(self) -> bool:
        """Say whether its name still leads to it: it may have been removed, and another be in its place.

        Of one that is closed its own thread has made what it should: nothing is to be done with it any more.
        """
        try:
            return _leads_to(self.path, self.file.fileno())
        except ValueError:
            return False

    def settle(self) -> None:
        """Leave behind what another run can go on with, if it is worth that; remove everything else."""
        size = self.size()
        if not self.is_there():
            return
        if self.is_lasting and not self.is_worthless and size >= limits.WORTH_KEEPING:
            _kept[self.path] = size
            return
        with contextlib.suppress(OSError):
            self.path.unlink()

    def forget(self) -> None:
        """Note that it has got its name, or is settled otherwise."""
        with _lock:
            _unfinished.discard(self)

    def rename(self, path: Path) -> None:
        """Give it another name.

        Raises:
            OSError: as `os.rename` does; ENOENT where it was removed.
        """
        if not self.is_there():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        self.path.replace(path)
        _kept.pop(self.path, None)


_lock = threading.Lock()
#: Those that are being written now, by any thread, and what this process has left behind, in bytes.
_unfinished: set[Partial] = set()
_kept: dict[Path, int] = {}


def create(folder: Path, name: str, mode: int) -> Partial:
    """Begin one that is for this run alone.

    Raises:
        OSError: as `os.open` does.
    """
    for _ in range(_ATTEMPTS):
        path = folder / f".{name}.{secrets.token_hex(_RANDOM)}{PARTIAL_SUFFIX}"
        partial = _begun(path, os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, mode), is_lasting=False)
        if _locked(partial.file.fileno()) is not False and partial.is_there():
            return partial
        partial.forget()
        partial.file.close()
    raise BlockingIOError(f"{folder}: no file can be made here that stays")


def find(folder: Path, name: str, mode: int) -> Partial | None:
    """Go on with the one that an earlier run has left for `name`, or begin it.

    None where that cannot be: another process is writing it, the file system knows no locks, or what has its name is a
    link, no regular file, somebody else's, or has another name besides. What it holds is to be looked at as anybody's.
    """
    path = folder / f".{name}{PARTIAL_SUFFIX}"
    try:
        descriptor, is_new = _opened(path, mode)
    except OSError:
        return None
    partial = _begun(path, descriptor, is_lasting=True)
    # Whoever had the lock before may have given it its name, or removed it.
    if _is_ours(descriptor) and _locked(descriptor) and partial.is_there():
        return partial
    if is_new:
        # This file system knows no locks, or calls what is ours somebody else's.
        partial.settle()
    partial.forget()
    partial.file.close()
    return None


def _opened(path: Path, mode: int) -> tuple[int, bool]:
    """Open a file that may be there, or make it; say whether it was made."""
    try:
        # Not to wait where a FIFO has the name.
        return os.open(path, _FLAGS | os.O_NONBLOCK), False
    except FileNotFoundError:
        return os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, mode), True


def sweep(folder: Path, is_stray: Callable[[str], bool], *, older_than: float = 0.0) -> None:
    """Remove those files of ours in a folder that nobody writes, whose names `is_stray` says yes to.

    So many seconds must have passed since they were last written. What cannot be looked at, or removed, stays.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for name in [entry.name for entry in entries if is_stray(entry.name)]:
            with contextlib.suppress(OSError):
                _remove_idle(folder / name, older_than)


def is_stray_of(entry: str, name: str | None = None) -> bool:
    """Say whether a folder's entry is called like one that is for one run alone; and for `name`, if that is given."""
    match = _STRAY.match(entry)
    return match is not None and (name is None or match[1] == name)


def lasting(entry: str) -> str | None:
    """Give the name that an entry of a folder is to get at the end, if it is called like one to go on with."""
    match = _LASTING.match(entry)
    return match[1] if match and not _STRAY.match(entry) else None


def drop_unfinished() -> None:
    """Settle the files of threads that will not get to do it: the process ends without waiting for them."""
    with _lock:
        unfinished = list(_unfinished)
    for partial in unfinished:
        partial.settle()


def kept() -> dict[Path, int]:
    """Say what this process has left behind to go on with: paths, and how many bytes are there."""
    return dict(_kept)


def begin() -> None:
    """Know of nothing that was left behind so far: another piece of work begins."""
    _kept.clear()


def _begun(path: Path, descriptor: int, *, is_lasting: bool) -> Partial:
    partial = Partial(path, FileIO(descriptor, "r+b"), is_lasting)
    with _lock:
        _unfinished.add(partial)
    return partial


def _locked(descriptor: int) -> bool | None:
    """Try to take a file's lock: False where another has it, None where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_ours(descriptor: int) -> bool:
    """Say whether a file is a regular one, with one name, and belongs to whom this process does."""
    status = os.fstat(descriptor)
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == os.geteuid()


def _leads_to(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except (OSError, ValueError):
        return False


def _remove_idle(path: Path, older_than: float) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        is_old = os.fstat(descriptor).st_mtime <= time.time() - older_than
        if is_old and _is_ours(descriptor) and _locked(descriptor) and _leads_to(path, descriptor):
            path.unlink()
    finally:
        os.close(descriptor)
