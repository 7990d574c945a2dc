"""Where an archive goes: a file that gets its name when it is whole, a pipe, a device.

What may be written over is told apart from what may not; that is all that these know of archives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from io import FileIO
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ocistream import files, limits
from ocistream.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from ocistream.stream import Chunk

__all__ = ["Output", "Rewritable", "file_output", "open_output", "stream_output"]


class Output(Protocol):
    """Where an archive goes, and what it takes to make it visible there."""

    def write(self, chunk: Chunk) -> None:
        """Write all of a chunk."""

    def finish(self) -> None:
        """Make what was written durable, and give it its name."""

    def close(self) -> None:
        """Drop it, unless it was finished."""


@runtime_checkable
class Rewritable(Output, Protocol):
    """An output that can be changed behind the point that writing has come to. Positions are in bytes."""

    def position(self) -> int:
        """Say how much was written."""

    def rewrite(self, position: int, content: bytes) -> None:
        """Write over what stands at a position."""

    def truncate(self, position: int) -> None:
        """Take back what was written from a position on."""


class _FileOutput:
    """A file that gets its name when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._what = f"cannot write {path}"
        self._stack = contextlib.ExitStack()
        with files.disk_errors(self._what):
            self._file = self._stack.enter_context(files.atomic_file(path))

    def position(self) -> int:
        return self._file.tell()

    def rewrite(self, position: int, content: bytes) -> None:
        with files.disk_errors(self._what):
            while content:
                written = os.pwrite(self._file.fileno(), content, position)
                content, position = content[written:], position + written

    def truncate(self, position: int) -> None:
        with files.disk_errors(self._what):
            self._file.seek(position)
            self._file.truncate()

    def write(self, chunk: Chunk) -> None:
        with files.disk_errors(self._what):
            files.write_all(self._file, chunk)

    def finish(self) -> None:
        with files.disk_errors(self._what):
            self._stack.close()

    def close(self) -> None:
        # What `finish` has closed has no part in this any more.
        with contextlib.suppress(_Dropped), self._stack:
            raise _Dropped


class _Dropped(Exception):  # noqa: N818 - a signal to the file's own context, not an error
    """Makes an unfinished file's context remove it."""


class _StreamOutput:
    """A pipe, or whatever else is there already and cannot be renamed: what is written is written."""

    def __init__(self, file: FileIO, what: str) -> None:
        self._file = file
        self._what = f"cannot write {what}"
        # A larger pipe saves switches between the two processes; where the user may not, it stays as it is.
        with contextlib.suppress(OSError):
            fcntl.fcntl(file.fileno(), fcntl.F_SETPIPE_SZ, limits.PIPE)

    def write(self, chunk: Chunk) -> None:
        with files.disk_errors(self._what):
            files.write_all(self._file, chunk)

    def finish(self) -> None:
        # A regular file behind stdout: a full disk may show only now.
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EROFS, errno.ENOTSUP}:
                raise files.disk_error(self._what, error) from error

    def close(self) -> None:
        """What was written cannot be taken back: it has no end, so that no reader takes it for whole."""


class _OpenedOutput(_StreamOutput):
    """The same, for a file that was opened here."""

    def close(self) -> None:
        # Whoever reads a FIFO waits for this. What could fail late was found out by `finish`.
        with contextlib.suppress(OSError):
            self._file.close()


def stream_output(file: FileIO, what: str) -> Output:
    """Give the output that writes to an open, unbuffered file which is called `what` in errors."""
    return _StreamOutput(file, what)


def open_output(path: Path) -> Output:
    """Give the output that writes to something that is there and is no regular file: a FIFO, a device.

    Raises:
        UsageError: it is a terminal.
        LocalDiskError: it cannot be written.
    """
    with files.disk_errors(f"cannot write {path}"):
        file = FileIO(path, "wb")
    if file.isatty():
        file.close()
        msg = f"{path} is a terminal, to which no archive is written"
        raise UsageError(msg)
    return _OpenedOutput(file, str(path))


def file_output(path: Path) -> Output:
    """Give the output that writes a regular file at `path`.

    Raises:
        NotFoundError: its folder is not there.
        LocalDiskError: it cannot be written.
    """
    # A link is followed, as `>` does it: what it points to is replaced.
    return _FileOutput(path.resolve() if path.is_symlink() else path)
