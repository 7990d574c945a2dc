"""Locations as a program passes them: text, paths, references and binary file objects, which stay open."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, TypeAlias

from ocistream.api.argument_types import require_path
from ocistream.archive.outputs import Output
from ocistream.errors import UsageError
from ocistream.locations import Location, OpenContext, parse_location
from ocistream.oci.reference import DEFAULT_TAG, Reference, check_reference, printable
from ocistream.streams import files

if TYPE_CHECKING:
    from ocistream.streams.chunks import Chunk

LocationLike: TypeAlias = "str | os.PathLike[str] | Reference | IO[bytes]"

_BINARY_HINT: Final = "open the file in binary mode"
_FORMATS: Final = ("oci", "oci-archive", "docker-archive")


class LocationArgument:
    """A location, and its file object if the argument was one."""

    def __init__(self, value: LocationLike, *, bare_is_path: bool = False) -> None:
        """Parse the value. With `bare_is_path`, text that could be an image's name is a path."""
        self._file: IO[bytes] | None = None
        if isinstance(value, Reference):
            is_repository = value.tag is None and value.digest is None
            checked = check_reference(value)
            reference = replace(checked, tag=DEFAULT_TAG) if is_repository else checked
            self.location = Location("docker", str(value), reference=reference, is_repository=is_repository)
        elif isinstance(value, str):
            self.location = parse_location(value, bare_is_path=bare_is_path)
        elif isinstance(value, os.PathLike):
            path = require_path("location", value)
            self.location = Location("path", path, path=Path(path))
        elif not _is_binary_file(value):
            # Not None for stdin: a variable that is not set must not read a terminal.
            msg = f"a location is text, a path, a Reference or a binary file object, not {type(value).__name__}"
            raise UsageError(msg)
        elif getattr(value, "closed", False):
            msg = "the file object is closed"
            raise UsageError(msg)
        else:
            self._file = value
            name = getattr(value, "name", None)
            description = printable(name, 1024) if isinstance(name, str) else "the file object"
            self.location = Location("path", description, path=Path(description), is_stream=True)

    def rename(self, name: str | None, kind: str | None) -> None:
        """Set the image's name at this destination, and what to write to it.

        Raises:
            UsageError: the location is in a registry, or the kind is unknown.
        """
        own = self.location.kind
        if kind is not None and own not in {"path", kind} and own in _FORMATS:
            msg = f"{printable(self.location.text)} says what to write, but `format` is {printable(kind)!r}"
            raise UsageError(msg, hint="omit one of them")
        if kind is not None and (kind not in _FORMATS or self.location.reference is not None):
            msg = f"--format {printable(kind)!r} is not one of {', '.join(_FORMATS)}, for a path"
            raise UsageError(msg)
        if name is not None and self.location.reference is not None:
            msg = f"{printable(self.location.text)} is in a registry, where its name is the name of the image"
            raise UsageError(msg, hint="omit `name`")
        self.location = replace(self.location, kind=kind or self.location.kind, name=name or self.location.name)
        if self.location.is_stream and self.location.kind == "oci":
            msg = "a layout directory cannot be written to a file object or stdout"
            raise UsageError(msg, hint="name a directory")

    def bind(self, context: OpenContext) -> OpenContext:
        """Return the context with the file object of this location, or with stdin and stdout for `-`."""
        if not self.location.is_stream:
            return context
        file, name = self._file, self.location.text
        if file is None:
            return replace(
                context,
                stdin=lambda: _FileObjectInput(sys.stdin.buffer, "stdin"),
                output=lambda: _FileObjectOutput(sys.stdout.buffer, "stdout"),
            )
        return replace(
            context, stdin=lambda: _FileObjectInput(file, name), output=lambda: _FileObjectOutput(file, name)
        )


def _is_binary_file(value: object) -> bool:
    return not isinstance(value, io.TextIOBase) and (hasattr(value, "read") or hasattr(value, "write"))


def list_locations(
    value: LocationLike | Sequence[LocationLike], *, bare_is_path: bool = False
) -> list[LocationArgument]:
    """Return the locations of an argument that is one location or a sequence of them."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [LocationArgument(value, bare_is_path=bare_is_path)]
    if not value:
        msg = "no source was given"
        raise UsageError(msg)
    return [LocationArgument(item, bare_is_path=bare_is_path) for item in value]


class _FileObjectInput:
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
                try:
                    buffer[count : count + len(data)] = data
                except (TypeError, ValueError) as error:
                    msg = f"{self._operation}: its read() must return bytes, at most as many as it is asked for"
                    raise UsageError(msg, hint=_BINARY_HINT) from error
                count += len(data)
        return count

    def close(self) -> None:
        """Leave the caller's file open."""


class _FileObjectOutput(Output):
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
                try:
                    count: int | None = self._file.write(view)
                except TypeError as error:
                    raise UsageError(f"{self._operation}: its write() must take bytes", hint=_BINARY_HINT) from error
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
