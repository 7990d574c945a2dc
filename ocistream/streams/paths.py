"""Check what exists at a path and where links lead, with errors instead of an `OSError`.

Also the paths of configuration and state files, by the XDG Base Directory Specification.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocistream.errors import LocalDiskError, UsageError
from ocistream.oci.reference import printable
from ocistream.streams.files import disk_error, disk_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

#: How many links Linux follows (path_resolution(7)).
_MAX_LINKS: Final = 40


def status(path: str | Path, *, follow: bool = True) -> os.stat_result | None:
    """Return the status of a path, or None if nothing exists there.

    This package uses these functions instead of `Path.exists` and its family, which hide errors (a test checks that).

    Raises:
        LocalDiskError: the path cannot be checked.
        UsageError: the path has a NUL.
    """
    try:
        path = path if isinstance(path, Path) else Path(path)
        # Not `Path.stat`, which takes longer than the kernel: a manifest may list ten thousand blobs.
        return os.stat(path, follow_symlinks=follow)  # noqa: PTH116 - see above
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise disk_error(f"cannot access {printable(str(path), 512)}", error) from error
    except ValueError as error:
        # The path has a NUL and comes from a file: an argument cannot have one.
        msg = f"malformed path {str(path)!r}"
        raise UsageError(msg) from error


def exists(path: str | Path, *, follow: bool = True) -> bool:
    """Return whether anything exists at a path, with the errors of `status`; without `follow` a link exists too."""
    return status(path, follow=follow) is not None


def is_existing_path(text: str) -> bool:
    """Return whether a text, which may not be a path, is an existing path, with the errors of `status`."""
    try:
        return exists(text)
    except LocalDiskError as error:
        if getattr(error.__cause__, "errno", None) == errno.ENAMETOOLONG:
            return False
        raise


def is_file(path: str | Path) -> bool:
    """Return whether a path is a regular file, with the errors of `status`."""
    path_status = status(path)
    return path_status is not None and stat.S_ISREG(path_status.st_mode)


def is_pipe(path: str | Path) -> bool:
    """Return whether a path is a named pipe, with the errors of `status`."""
    path_status = status(path)
    return path_status is not None and stat.S_ISFIFO(path_status.st_mode)


def is_directory(path: str | Path) -> bool:
    """Return whether a path is a directory, with the errors of `status`."""
    path_status = status(path)
    return path_status is not None and stat.S_ISDIR(path_status.st_mode)


def is_special(path: str | Path) -> bool:
    """Return whether a path is a device, FIFO or socket, with the errors of `status`."""
    path_status = status(path)
    return path_status is not None and not stat.S_ISREG(path_status.st_mode) and not stat.S_ISDIR(path_status.st_mode)


def is_link(path: str | Path) -> bool:
    """Return whether a path is a symbolic link, with the errors of `status`."""
    path_status = status(path, follow=False)
    return path_status is not None and stat.S_ISLNK(path_status.st_mode)


def real_path(path: str | Path) -> Path:
    """Return the absolute path with all links resolved, whether or not it exists.

    Raises:
        LocalDiskError: the path is relative and the working directory was deleted.
    """
    with disk_errors(f"cannot access {printable(str(path), 512)}"):
        return Path(os.path.realpath(path))


def write_target(path: Path) -> Path:
    """Return the path that is replaced when a file is written at `path`: links are followed, as by a shell's `>`.

    Raises:
        LocalDiskError: links form a circle, a directory cannot be searched, or a link in a sticky, world-writable
            directory is another user's. Linux does not follow such a link either if fs.protected_symlinks is 1
            (proc_sys_fs(5)); `os.path.realpath` would.
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
        with disk_errors(f"cannot access {printable(str(path), 512)}"):
            path = path.parent / path.readlink()
    return real_path(path)


def is_untrusted_link(link: os.stat_result, folder: os.stat_result) -> bool:
    """Return whether another user may have created a link in a shared folder, such as /tmp, to redirect a write."""
    is_shared = bool(folder.st_mode & stat.S_ISVTX and folder.st_mode & stat.S_IWOTH)
    return is_shared and link.st_uid not in {os.geteuid(), folder.st_uid}


#: The configuration of the machine, for users without their own.
SYSTEM_CONFIG_FILE: Final = Path("/etc/ocistream/config.toml")


def config_home(env: Mapping[str, str], home: Path) -> Path:
    """Return `$XDG_CONFIG_HOME`, else `~/.config`."""
    return _read_absolute_path(env, "XDG_CONFIG_HOME") or home / ".config"


def user_config_file(env: Mapping[str, str], home: Path) -> Path:
    """Return the path of the user's own configuration file, which may not exist."""
    return config_home(env, home) / "ocistream" / "config.toml"


def find_configuration_file(env: Mapping[str, str], home: Path, *, system: Path = SYSTEM_CONFIG_FILE) -> Path | None:
    """Return the user's configuration file, else that of the machine; None if neither exists.

    Raises:
        LocalDiskError: a path cannot be checked.
    """
    return next((path for path in (user_config_file(env, home), system) if exists(path)), None)


def state_home(env: Mapping[str, str], home: Path | None) -> Path | None:
    """Return `$XDG_STATE_HOME`, else `~/.local/state`; None without a home directory."""
    return _read_absolute_path(env, "XDG_STATE_HOME") or (home / ".local" / "state" if home is not None else None)


def _read_absolute_path(env: Mapping[str, str], variable: str) -> Path | None:
    """Return the path in a variable. A relative path is ignored (XDG Base Directory Specification).

    Otherwise the working directory would decide which configuration is trusted.
    """
    value = env.get(variable, "")
    return Path(value) if value.startswith("/") else None
