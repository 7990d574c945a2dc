"""Binary file objects of the caller, as the input or output of an archive. They stay open."""

from __future__ import annotations

import errno
from typing import IO, TYPE_CHECKING

from ocistream.archive.outputs import Output
from ocistream.streams import files

if TYPE_CHECKING:
    from ocistream.streams.chunks import Chunk

__all__ = ["FileObjectInput", "FileObjectOutput"]


class FileObjectInput:
    """Reads a file object forward."""

    def __init__(self, file: IO[bytes], description: str) -> None:
        """Read from `file`, which errors call `description`."""
        self._file = file
        self._operation = f"cannot read {description}"

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer unless the file ends, and return the number of bytes read.

        A pipe or a socket may return less than was asked for.
        """
        count = 0
        with files.disk_errors(self._operation):
            while count < len(buffer):
                data = self._file.read(len(buffer) - count)
                if not data:
                    break
                buffer[count : count + len(data)] = data
                count += len(data)
        return count

    def close(self) -> None:
        """Leave the caller's file open."""


class FileObjectOutput(Output):
    """Writes an archive to a file object. Written bytes cannot be taken back."""

    def __init__(self, file: IO[bytes], description: str) -> None:
        """Write to `file`, which errors call `description`."""
        self._file = file
        self._operation = f"cannot write {description}"

    def write(self, chunk: Chunk) -> None:
        """Write all of a chunk; an unbuffered file may accept fewer bytes at once."""
        view = memoryview(chunk)
        with files.disk_errors(self._operation):
            while view:
                count: int | None = self._file.write(view)
                if count is None:
                    # The answer of a file that does not block and has no room.
                    raise BlockingIOError(errno.EAGAIN, "the file object does not block")
                view = view[count:]

    def finish(self) -> None:
        """Flush the file."""
        with files.disk_errors(self._operation):
            self._file.flush()

    def close(self) -> None:
        """Leave the caller's file open. Without its end, no reader takes the archive for complete."""
