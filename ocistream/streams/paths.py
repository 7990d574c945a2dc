"""Check what exists at a path and where links lead, with errors instead of an `OSError`."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from ocistream.errors import LocalDiskError, UsageError
from ocistream.streams.files import disk_error, disk_errors

__all__ = [
    "exists",
    "is_directory",
    "is_existing_path",
    "is_file",
    "is_link",
    "is_special",
    "real_path",
    "status",
    "write_target",
]

#: Characters of a path that an error shows: more than any real one that a terminal has room for.
_MAX_SHOWN: Final = 512
#: Links that Linux follows one after the other (path_resolution(7)).
_MAX_LINKS: Final = 40


def status(path: str | Path, *, follow: bool = True) -> os.stat_result | None:
    """Return the status of what is at a path, or None if nothing exists there.

    Raises:
        LocalDiskError: that cannot be found out.
        UsageError: no path has such a name.
    """
    try:
        return Path(path).stat(follow_symlinks=follow)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise disk_error(f"cannot access {_format_path(path)}", error) from error
    except ValueError as error:
        # It has a NUL, and comes out of a file: no argument has one.
        msg = f"malformed path {str(path)!r}"
        raise UsageError(msg) from error


def exists(path: str | Path, *, follow: bool = True) -> bool:
    """Say whether anything is at a path, with the errors of `status`; a link is something if it is not followed."""
    return status(path, follow=follow) is not None


def is_existing_path(text: str) -> bool:
    """Say whether a word, which may be no path at all, is the path of something, with the errors of `status`."""
    try:
        return exists(text)
    except LocalDiskError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENAMETOOLONG:
            return False
        raise


def is_file(path: str | Path) -> bool:
    """Say whether a regular file is at a path, with the errors of `status`."""
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_directory(path: str | Path) -> bool:
    """Say whether a directory is at a path, with the errors of `status`."""
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_special(path: str | Path) -> bool:
    """Say whether a device, FIFO or socket is at a path, with the errors of `status`."""
    found = status(path)
    return found is not None and not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode)


def is_link(path: str | Path) -> bool:
    """Say whether a path is a symbolic link, with the errors of `status`."""
    found = status(path, follow=False)
    return found is not None and stat.S_ISLNK(found.st_mode)


def real_path(path: str | Path) -> Path:
    """Return the absolute path to which all links lead, whether or not anything is there.

    Raises:
        LocalDiskError: the path is relative and the working directory was deleted.
    """
    try:
        return Path(os.path.realpath(path))
    except OSError as error:
        raise disk_error(f"cannot access {_format_path(path)}", error) from error


def write_target(path: Path) -> Path:
    """Return the path that is replaced when a file is written at `path`: links are followed, as a shell's `>` does.

    Raises:
        LocalDiskError: links lead round in a circle, a directory may not be searched, or a link is another user's, in a
            sticky, world-writable directory. Linux does not follow such a link either, where
            fs.protected_symlinks is 1 (proc_sys_fs(5)); `os.path.realpath` would.
    """
    status(path)
    for _ in range(_MAX_LINKS):
        link = status(path, follow=False)
        if link is None or not stat.S_ISLNK(link.st_mode):
            break
        folder = status(path.parent)
        if folder is not None and is_untrusted_link(link, folder):
            msg = f"cannot write {path}: it is another user's symbolic link, in a world-writable directory"
            raise LocalDiskError(msg, hint="name another file, or remove the link")
        with disk_errors(f"cannot access {_format_path(path)}"):
            path = path.parent / path.readlink()
    return real_path(path)


def is_untrusted_link(link: os.stat_result, folder: os.stat_result) -> bool:
    """Say whether another user may have put a link into a folder, such as /tmp, for this one to write through."""
    is_shared = bool(folder.st_mode & stat.S_ISVTX and folder.st_mode & stat.S_IWOTH)
    return is_shared and link.st_uid not in {os.geteuid(), folder.st_uid}


def _format_path(path: str | Path) -> str:
    """Return a path for an error: in one line, and not thousands of characters of a name that is too long."""
    text = str(path)
    clean = "".join(character if character.isprintable() else "?" for character in text[:_MAX_SHOWN])
    return f"{clean}…" if len(text) > _MAX_SHOWN else clean
