"""Arguments of the Python API: check their types, and parse locations, which may be text, paths or file objects.

An argument of a wrong type is a UsageError that names the argument. The value is not shown: it may be a secret.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, TypeAlias

from ocistream.archive.outputs import Output
from ocistream.errors import UsageError
from ocistream.locations import Location, OpenContext, parse_location
from ocistream.oci.descriptor import Platform
from ocistream.oci.reference import DEFAULT_TAG, Reference, check_reference, printable
from ocistream.streams import files

if TYPE_CHECKING:
    from ocistream.streams.chunks import Chunk

LocationLike: TypeAlias = "str | os.PathLike[str] | Reference | IO[bytes]"

_OBSERVER_METHODS: Final = ("planned", "advance", "done")
_BINARY_HINT: Final = "open the file in binary mode"
_FORMATS: Final = ("oci", "oci-archive", "docker-archive")


def check_type(name: str, value: object, types: type | tuple[type, ...], expected: str) -> None:
    """Raise UsageError if the value of an argument has none of the types. True and False are not numbers."""
    if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
        raise _wrong_type(name, value, expected)


def check_texts(**arguments: object) -> None:
    """Check arguments that are text or None."""
    for name, value in arguments.items():
        if value is not None:
            check_type(name, value, str, "text")


def check_switches(**arguments: object) -> None:
    """Check arguments that are True or False. Text such as "false" must not switch something on."""
    for name, value in arguments.items():
        check_type(name, value, bool, "True or False")


def check_environment(value: object) -> None:
    """Check the variables that replace those of the process."""
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for item in value.items() for text in item):
        raise _wrong_type("environment", value, "a mapping of text to text")


def check_credentials(value: object) -> None:
    """Check the credentials of a client."""
    from ocistream.auth.docker_config import Credential

    expected = "a Credential, a mapping of hosts to Credentials, or a function"
    if value is not None and not callable(value):
        check_type("credentials", value, (Credential, Mapping), expected)
    for host, credential in value.items() if isinstance(value, Mapping) else ():
        check_type("credentials", host, str, expected)
        check_type("credentials", credential, Credential, expected)


def check_call(cancelled: object, observer: object = None) -> None:
    """Check the event that cancels a call, and its observer."""
    if cancelled is not None and not callable(getattr(cancelled, "is_set", None)):
        raise _wrong_type("cancelled", cancelled, "a threading.Event")
    if observer is not None and not all(callable(getattr(observer, method, None)) for method in _OBSERVER_METHODS):
        raise _wrong_type("observer", observer, "an object with the methods planned, advance and done")


def list_texts(name: str, value: object) -> tuple[str, ...]:
    """Return an argument that is one text, or several."""
    return tuple(_require_text(name, item) for item in _list(name, value, str, "text, or several texts"))


def list_paths(name: str, value: object) -> tuple[str, ...]:
    """Return an argument that is the path of one file, or of several."""
    paths = _list(name, value, (str, os.PathLike), "a path, or several paths")
    return tuple(require_path(name, path) for path in paths)


def list_image_names(value: object) -> list[str | Reference]:
    """Return the argument of `delete`: one image, or several, each as text or as a `Reference`."""
    images = _list("images", value, (str, Reference), "an image, or several images")
    return [item if isinstance(item, Reference) else _require_text("images", item) for item in images]


def list_platforms(name: str, value: object) -> tuple[str, ...]:
    """Return an argument that is one platform, or several, each as text or as a `Platform`."""
    platforms = []
    for item in _list(name, value, (str, Platform), "a platform, or several platforms"):
        if isinstance(item, Platform):
            check_texts(os=item.os, architecture=item.architecture, variant=item.variant, os_version=item.os_version)
        platforms.append(str(item) if isinstance(item, Platform) else _require_text(name, item))
    return tuple(platforms)


def require_path(name: str, value: object) -> str:
    """Return an argument that is a path. Paths are text, not bytes."""
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str):
        raise _wrong_type(name, value, "a path")
    if "\0" in path:
        msg = f"`{name}` has a null character, which no path has"
        raise UsageError(msg)
    return path


def optional_path(name: str, value: object) -> str | None:
    """Return an argument that is a path or None."""
    return None if value is None else require_path(name, value)


def _list(name: str, value: object, types: type | tuple[type, ...], expected: str) -> Iterable[object]:
    if isinstance(value, types):
        return [value]
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise _wrong_type(name, value, expected)
    return value


def _require_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong_type(name, value, "text")
    return value


def _wrong_type(name: str, value: object, expected: str) -> UsageError:
    return UsageError(f"`{name}` must be {expected}, not {type(value).__name__}")


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

    def set_name_and_format(self, name: str | None, kind: str | None) -> None:
        """Set the image's name at this destination, and the format to write, one of `_FORMATS`.

        Raises:
            UsageError: the location is in a registry, or the kind is unknown.
        """
        current = self.location.kind
        if kind is not None and current not in {"path", kind} and current in _FORMATS:
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
