"""Outputs for archives: a file that gets its name when it is complete, a pipe, a device, or the tail of one.

A file output resumes what an interrupted run left. Outputs know nothing of tars or images.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import tarfile
from abc import ABC, abstractmethod
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from ocistream import limits, notices
from ocistream.errors import UsageError
from ocistream.oci.reference import printable
from ocistream.sizes import format_size
from ocistream.streams import files, partial_files, paths
from ocistream.streams.chunks import read_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.streams.chunks import Chunk


class Output(ABC):
    """A place that an archive is written to, and the steps that make it visible there.

    By default no bytes exist yet, and written bytes cannot be taken back.
    """

    @abstractmethod
    def write(self, chunk: Chunk) -> None:
        """Write all bytes of a chunk."""

    @abstractmethod
    def finish(self) -> None:
        """Make the written bytes durable, and give the file its name."""

    @abstractmethod
    def close(self) -> None:
        """Remove an unfinished file. A partial file that a later run can resume is kept."""

    def existing_size(self) -> int:
        """Return how many bytes from the current position on exist, or may exist. They are skipped, not written."""
        return 0

    def skip_existing(self, size: int) -> Iterator[Chunk] | None:  # noqa: ARG002 - by default there are none
        """Skip the next `size` existing bytes, and return them, or None if they cannot be read."""
        return None

    def discard(self) -> None:  # noqa: B027 - by default there is none
        """Do not keep a partial file."""


def _is_another_file(path: Path) -> bool:
    """Return whether a path is a file with bytes that do not begin as an archive."""
    try:
        with path.open("rb") as file:
            beginning = file.read(tarfile.BLOCKSIZE)
    except OSError:
        # It does not exist, or an error follows when it is written.
        return False
    # Imported here, because an archive in a pipe needs no codecs.
    from ocistream.streams.compression import MAGIC_SIZE, NONE, detect_codec

    is_archive = b"ustar" in beginning or detect_codec(beginning[:MAGIC_SIZE]) is not NONE
    return bool(beginning) and not is_archive


class FileOutput(Output):
    """A file that gets its name when it is complete, and resumes the partial file of an earlier run.

    Written bytes can be changed. Positions are in bytes.

    The partial file may have any content: of another image, of other options, or damaged by a power failure. So
    existing bytes are compared with the bytes to write. They are skipped while they are equal, and the rest is cut off.
    A wrong partial file costs time, but never changes the result.
    """

    def __init__(self, path: Path) -> None:
        """Write a regular file at `path`.

        Raises:
            NotFoundError: the directory does not exist.
            LocalDiskError: the file cannot be written.
        """
        self._path = path
        self._what = f"cannot write {path}"
        self._stack = contextlib.ExitStack()
        # Only partial files of this name: others in the directory may not be ours.
        partial_files.remove_stale(path.parent, functools.partial(partial_files.is_temporary_name, name=path.name))
        with files.disk_errors(self._what):
            self._partial = self._stack.enter_context(files.resumable_file(path))
        self._file = self._partial.file
        self._writer = files.WritebackWriter(self._file)
        #: Bytes before `_position` are written; bytes from there to `_end` are left from an earlier run or were taken
        #: back.
        self._position = 0
        self._end = self._partial.size()
        #: How many bytes of an earlier run are kept so far.
        self._kept = self._end

    def existing_size(self) -> int:
        """Return how many bytes are left from an earlier run or were taken back."""
        return self._end - self._position

    def skip_existing(self, size: int) -> Iterator[Chunk]:
        """Skip the next `size` existing bytes, and return them."""
        position = self._position
        self._seek(position + size)
        return self._read(position, size)

    def _read(self, position: int, size: int) -> Iterator[Chunk]:
        return read_chunks(files.OffsetReader(self._file.fileno(), position, self._what), size)

    def position(self) -> int:
        """Return the number of bytes written."""
        return self._position

    def rewrite(self, position: int, content: bytes) -> None:
        """Overwrite the bytes at a position."""
        with files.disk_errors(self._what):
            while content:
                written = os.pwrite(self._file.fileno(), content, position)
                content, position = content[written:], position + written

    def truncate(self, position: int) -> None:
        """Remove everything from a position on."""
        with files.disk_errors(self._what):
            self._seek(position)
            self._file.truncate()
            self._end = position
        discarded, self._kept = self._kept - position, min(self._kept, position)
        if discarded >= limits.MIN_PARTIAL_SIZE:
            shown = f"{format_size(discarded)} that an earlier run stored"
            notices.notify(f"{printable(str(self._path), 1024)}: discarded {shown}: they are not part of this archive")

    def rewind(self, position: int) -> None:
        """Return to a position, to write the same bytes again."""
        self._seek(position)
        self._end = self._partial.size()

    def _seek(self, position: int) -> None:
        self._position = self._file.seek(position)

    def write(self, chunk: Chunk) -> None:
        """Write all bytes of a chunk."""
        with files.disk_errors(self._what):
            if self._position < self._end:
                chunk = self._skip_identical(memoryview(chunk))
            self._writer.write(chunk)
            self._position += len(chunk)
            self._end = max(self._end, self._position)

    def _skip_identical(self, chunk: memoryview) -> memoryview:
        """Skip the part of a chunk that exists already, and return the rest, which must be written."""
        position = self._position
        for existing in self._read(position, min(len(chunk), self.existing_size())):
            # Python compares memoryviews byte by byte, and bytes objects at once.
            if bytes(chunk[: len(existing)]) != bytes(existing):
                break
            chunk = chunk[len(existing) :]
            position += len(existing)
        self._seek(position)
        if chunk:
            self.truncate(position)
        return chunk

    def sync(self) -> None:
        """Sync the written bytes to disk, and remove later bytes. The file does not get its name yet."""
        with files.disk_errors(self._what):
            if self._position < self._end:
                self.truncate(self._position)
            os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Make the written bytes durable, and give the file its name."""
        was_another_file = _is_another_file(self._path)
        with files.disk_errors(self._what):
            if self._position < self._end:
                self.truncate(self._position)
            self._stack.close()
        if was_another_file:
            notices.notify(f"replaced {printable(str(self._path))}, which was not an archive")

    def discard(self) -> None:
        """Do not keep a partial file."""
        self._partial.is_discarded = True

    def close(self) -> None:
        """Remove an unfinished file. A partial file that a later run can resume is kept."""
        # After `finish` the stack is empty, and this does nothing.
        with contextlib.suppress(_DiscardSignal), self._stack:
            raise _DiscardSignal


class _DiscardSignal(Exception):  # noqa: N818 - a signal to the file's own context, not an error
    """Ends the context of an unfinished file."""


class StreamOutput(Output):
    """A pipe, or another existing file that cannot be renamed. Written bytes cannot be taken back."""

    def __init__(self, file: FileIO, what: str, *, closes_file: bool = False) -> None:
        """Write to an open, unbuffered file; `what` names it in errors. With `closes_file`, `close` closes it."""
        self._file = file
        self._closes_file = closes_file
        self._what = f"cannot write {what}"
        files.enlarge_pipe(file.fileno())

    def write(self, chunk: Chunk) -> None:
        """Write all bytes of a chunk."""
        try:
            files.write_all(self._file, chunk)
        except OSError as error:
            # Not `disk_errors`: a context manager for each chunk costs as much as its write.
            raise files.disk_error(self._what, error) from error

    def finish(self) -> None:
        """Make the written bytes durable, if the file is on a disk."""
        # stdout may be a regular file: a full disk may be reported only here.
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EROFS, errno.ENOTSUP}:
                raise files.disk_error(self._what, error) from error

    def close(self) -> None:
        """Close the file, if it was opened here. Without an end mark, no reader takes it for a complete archive."""
        # The reader of a FIFO waits for this. `finish` already reported late write errors.
        if self._closes_file:
            with contextlib.suppress(OSError):
                self._file.close()


class TailOutput(Output):
    """Passes on the bytes from `start` on, to continue a pipe that broke (`--from-byte`).

    The bytes before `start` cannot be checked: the receiver must have them.
    """

    def __init__(self, output: Output, start: int) -> None:
        """Pass on to `output` the bytes from byte `start` on."""
        self._output = output
        self._start = start
        self._position = 0

    def existing_size(self) -> int:
        """Return how many bytes from here on are not passed on."""
        return max(0, self._start - self._position)

    def skip_existing(self, size: int) -> None:
        """Skip the next `size` bytes, which the reader of the broken pipe has."""
        self._position += size

    def write(self, chunk: Chunk) -> None:
        """Write the bytes of a chunk that are not skipped."""
        skipped = min(self.existing_size(), len(chunk))
        self._position += len(chunk)
        if skipped < len(chunk):
            self._output.write(memoryview(chunk)[skipped:])

    def finish(self) -> None:
        """Finish the output.

        Raises:
            UsageError: the archive has fewer bytes than `start`.
        """
        if self._position < self._start:
            msg = f"the archive has {self._position} bytes, but --from-byte is {self._start}"
            raise UsageError(msg, hint="use the same image and options as for the first part")
        self._output.finish()

    def close(self) -> None:
        """Close the output."""
        self._output.close()


def open_special_file_output(path: Path) -> Output:
    """Return an output for an existing file that is not a regular file: a FIFO or a device.

    A device or FIFO is never replaced by a rename: root would replace `/dev/null`.

    Raises:
        UsageError: the file is a terminal.
        LocalDiskError: the file cannot be written.
    """
    with files.disk_errors(f"cannot write {path}"):
        file = FileIO(path, "wb")
    if file.isatty():
        file.close()
        msg = f"{path} is a terminal: archives are not written to terminals"
        raise UsageError(msg)
    return StreamOutput(file, str(path), closes_file=True)


def open_file_output(path: Path) -> FileOutput:
    """Return an output that writes a regular file at `path`.

    Raises:
        UsageError: the name is reserved for unfinished files.
        NotFoundError: the directory does not exist.
        LocalDiskError: the file cannot be written.
    """
    return FileOutput(_find_output_file(path))


def open_null_output(path: Path | None) -> Output:
    """Return an output that discards what is written, for a dry run; None is a stream.

    Raises:
        UsageError, NotFoundError, LocalDiskError: no file could be written at `path`; nothing is created there.
    """
    if path is not None and not paths.is_special(path):
        path = _find_output_file(path)
        with files.disk_errors(f"cannot write {path}"):
            path.parent.stat()
            if not os.access(path.parent, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return open_special_file_output(Path(os.devnull))


def _find_output_file(path: Path) -> Path:
    # A link is followed, as a shell's `>` does: its target is replaced.
    path = paths.write_target(path) if paths.is_link(path) else path
    if partial_files.is_reserved_name(path.name):
        msg = f"{path}: this name is reserved for unfinished files"
        raise UsageError(msg, hint="choose a name that does not begin with a dot and end with .partial")
    return path
