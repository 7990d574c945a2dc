"""Outputs for archives: a file that gets its name when it is complete, a pipe, a device, or the tail of one.

A file output resumes what an interrupted run left. Outputs know nothing of tars or images.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
from io import FileIO
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ocistream import limits
from ocistream.errors import UsageError
from ocistream.streams import files, partial_files, paths
from ocistream.streams.chunks import read_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocistream.streams.chunks import Chunk

__all__ = [
    "Output",
    "ResumableOutput",
    "RewritableOutput",
    "build_tail_output",
    "open_file_output",
    "open_special_file_output",
    "open_stream_output",
]


class Output(Protocol):
    """Where an archive goes, and what it takes to make it visible there."""

    def write(self, chunk: Chunk) -> None:
        """Write all of a chunk."""

    def finish(self) -> None:
        """Make what was written durable, and give it its name."""

    def close(self) -> None:
        """Keep what another run can go on with, drop everything else; unless it was finished."""


@runtime_checkable
class ResumableOutput(Output, Protocol):
    """An output of which some may be there already: it is not written again, but passed over."""

    def existing_size(self) -> int:
        """Say how many bytes are there, or may be, from where writing has come to."""

    def read_existing(self, size: int) -> Iterator[Chunk] | None:
        """Give so many of them, to be looked at; None where they are out of reach."""

    def skip_existing(self, size: int) -> None:
        """Move on over so many of them."""


@runtime_checkable
class RewritableOutput(Output, Protocol):
    """An output that can be changed behind the point that writing has come to. Positions are in bytes."""

    def position(self) -> int:
        """Say how much was written."""

    def rewrite(self, position: int, content: bytes) -> None:
        """Write over what stands at a position."""

    def truncate(self, position: int) -> None:
        """Take back what was written from a position on."""

    def rewind(self, position: int) -> None:
        """Go back to a position, to write the same once more."""

    def sync(self) -> None:
        """Have all that was written on the disk, and nothing behind it; the name is not given yet."""

    def discard(self) -> None:
        """See to it that nothing is kept."""


class _FileOutput:
    """A file that gets its name when it is whole, and goes on with what an earlier run has left of it.

    That may be anything. So what is written is first compared with what is there, and moves on over it as long as the
    two are the same; from the first difference on, what is there is worth nothing.
    """

    def __init__(self, path: Path) -> None:
        self._what = f"cannot write {path}"
        self._stack = contextlib.ExitStack()
        partial_files.remove_stale(path.parent, functools.partial(partial_files.is_temporary_name, name=path.name))
        with files.disk_errors(self._what):
            self._partial = self._stack.enter_context(files.resumable_file(path))
        self._file = self._partial.file
        self._writer = files.WritebackWriter(self._file)
        #: Up to there all is as it was written; from there to the end it is what was there, or was taken back.
        self._position = 0
        self._end = self._partial.size()

    def existing_size(self) -> int:
        return self._end - self._position

    def read_existing(self, size: int) -> Iterator[Chunk]:
        return self._read(self._position, size)

    def _read(self, position: int, size: int) -> Iterator[Chunk]:
        with files.disk_errors(self._what):
            yield from read_chunks(files.OffsetReader(self._file.fileno(), position), size)

    def skip_existing(self, size: int) -> None:
        self._seek(self._position + size)

    def position(self) -> int:
        return self._position

    def rewrite(self, position: int, content: bytes) -> None:
        with files.disk_errors(self._what):
            while content:
                written = os.pwrite(self._file.fileno(), content, position)
                content, position = content[written:], position + written

    def truncate(self, position: int) -> None:
        with files.disk_errors(self._what):
            self._seek(position)
            self._file.truncate()
            self._end = position

    def rewind(self, position: int) -> None:
        self._seek(position)
        self._end = self._partial.size()

    def _seek(self, position: int) -> None:
        self._position = self._file.seek(position)

    def write(self, chunk: Chunk) -> None:
        with files.disk_errors(self._what):
            if self._position < self._end:
                chunk = self._skip_identical(memoryview(chunk))
            self._writer.write(chunk)
            self._position += len(chunk)
            self._end = max(self._end, self._position)

    def _skip_identical(self, chunk: memoryview) -> memoryview:
        """Move on over that beginning of a chunk which is there, and give the rest, which is to be written then."""
        position = self._position
        for there in self._read(position, min(len(chunk), self.existing_size())):
            # Views are compared one byte at a time, and copies at once.
            if bytes(chunk[: len(there)]) != bytes(there):
                break
            chunk = chunk[len(there) :]
            position += len(there)
        self._seek(position)
        if chunk:
            self.truncate(position)
        return chunk

    def sync(self) -> None:
        with files.disk_errors(self._what):
            if self._position < self._end:
                self.truncate(self._position)
            os.fsync(self._file.fileno())

    def finish(self) -> None:
        with files.disk_errors(self._what):
            if self._position < self._end:
                self.truncate(self._position)
            self._stack.close()

    def discard(self) -> None:
        self._partial.is_discarded = True

    def close(self) -> None:
        # What `finish` has closed has no part in this any more.
        with contextlib.suppress(_DiscardSignal), self._stack:
            raise _DiscardSignal


class _DiscardSignal(Exception):  # noqa: N818 - a signal to the file's own context, not an error
    """Makes an unfinished file's context settle it."""


class _StreamOutput:
    """A pipe, or whatever else is there already and cannot be renamed: what is written is written."""

    def __init__(self, file: FileIO, what: str) -> None:
        self._file = file
        self._what = f"cannot write {what}"
        # A larger pipe saves switches between the two processes; where the user may not, it stays as it is.
        with contextlib.suppress(OSError):
            fcntl.fcntl(file.fileno(), fcntl.F_SETPIPE_SZ, limits.PIPE_SIZE)

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


class _SpecialFileOutput(_StreamOutput):
    """The same, for a file that was opened here."""

    def close(self) -> None:
        # Whoever reads a FIFO waits for this. What could fail late was found out by `finish`.
        with contextlib.suppress(OSError):
            self._file.close()


class _TailOutput:
    """The end of what is written, from byte `missing` on: the rest of a pipe that broke."""

    def __init__(self, output: Output, start: int) -> None:
        self._output = output
        self._start = start
        self._position = 0

    def existing_size(self) -> int:
        return max(0, self._start - self._position)

    def read_existing(self, size: int) -> None:  # noqa: ARG002 - they are somewhere else
        return None

    def skip_existing(self, size: int) -> None:
        self._position += size

    def write(self, chunk: Chunk) -> None:
        there = min(self.existing_size(), len(chunk))
        self._position += len(chunk)
        if there < len(chunk):
            self._output.write(memoryview(chunk)[there:])

    def finish(self) -> None:
        if self._position < self._start:
            msg = f"the archive has {self._position} bytes, and is asked for from byte {self._start} on"
            raise UsageError(msg, hint="is that the size of another archive, or of one with other options?")
        self._output.finish()

    def close(self) -> None:
        self._output.close()


def build_tail_output(output: Output, start: int) -> Output:
    """Give the output that passes on to `output` what is written from byte `missing` on.

    Its `finish` raises UsageError where less is written.
    """
    return _TailOutput(output, start)


def open_stream_output(file: FileIO, what: str) -> Output:
    """Give the output that writes to an open, unbuffered file which is called `what` in errors."""
    return _StreamOutput(file, what)


def open_special_file_output(path: Path) -> Output:
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
    return _SpecialFileOutput(file, str(path))


def open_file_output(path: Path) -> RewritableOutput:
    """Give the output that writes a regular file at `path`.

    Raises:
        UsageError: it is called as unfinished files are.
        NotFoundError: its folder is not there.
        LocalDiskError: it cannot be written.
    """
    # A link is followed, as `>` does it: what it points to is replaced.
    path = paths.write_target(path) if paths.is_link(path) else path
    if partial_files.is_reserved_name(path.name):
        msg = f"{path}: files that are not finished are called so, and another run would take it for one"
        raise UsageError(msg, hint="give it a name that does not begin with a dot and end in .partial")
    return _FileOutput(path)
