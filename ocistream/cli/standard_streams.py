"""Open stdin and stdout for archives and lists, read passwords, and keep results apart from data on stdout."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ocistream import limits
from ocistream.errors import OcistreamError, OutputClosedError, UsageError
from ocistream.oci.reference import printable
from ocistream.streams.files import CancellableInput, disk_error, disk_errors

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from ocistream.locations import Location


def open_stdin(what: str, hint: str, cancelled: threading.Event) -> io.BufferedReader:
    """Open stdin to read `what` from it until `cancelled` is set; `hint` is for the UsageError if it cannot be read."""
    article = "an" if what[0] in "aeiou" else "a"
    if sys.stdin is None:
        msg = f"{article} {what} is expected on stdin, which is closed"
        raise UsageError(msg, hint=hint)
    if sys.stdin.isatty():
        msg = f"{article} {what} is expected on stdin, which is a terminal"
        raise UsageError(msg, hint=hint)
    return io.BufferedReader(CancellableInput(sys.stdin.fileno(), cancelled), 64 * limits.KIB)


def open_stdout(usage: str) -> io.FileIO:
    """Open stdout to write an archive to it, unbuffered; raise UsageError if it is closed or a terminal.

    `usage` is how the command names a file instead.
    """
    if sys.stdout is None:
        msg = "cannot write the archive to stdout: it is closed"
        raise UsageError(msg, hint=f"name an output file (`{usage}`)")
    if sys.stdout.isatty():
        msg = "stdout is a terminal: archives are not written to terminals"
        raise UsageError(msg, hint=f"name an output file (`{usage}`), or pipe the archive: `... | ssh host ...`")
    return _Stdout(sys.stdout.fileno(), "wb", closefd=False)


class StdoutClosedError(OutputClosedError):
    """The reader of stdout wanted no more, as in `| head`."""


class _Stdout(io.FileIO):
    """Stdout as the output of an archive."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise stdout_error(error) from error


def stdout_error(error: OSError) -> OcistreamError:
    """Convert an error of a write to stdout."""
    converted = disk_error("cannot write to stdout", error)
    return StdoutClosedError(converted.message) if isinstance(converted, OutputClosedError) else converted


def read_password() -> str:
    """Return the password on stdin without the line end, as `docker login --password-stdin` does."""
    secret = _parse_password(sys.stdin.buffer.read(limits.MAX_ERROR_BODY + 1), "stdin") if sys.stdin else ""
    if not secret:
        msg = "stdin has no password"
        raise UsageError(msg, hint='pipe it in: `printf %s "$PASSWORD" | ocistream ... --password-stdin`')
    return secret


def _parse_password(raw: bytes, description: str) -> str:
    if len(raw) > limits.MAX_ERROR_BODY:
        msg = f"{description} has more than {limits.MAX_ERROR_BODY} bytes: too long for a password"
        raise UsageError(msg)
    # Passwords need not be UTF-8: the bytes are sent as they are.
    return raw.decode(errors="surrogateescape").rstrip("\r\n")


def read_password_file(path: str, option: str) -> str:
    """Return the password in a file without the line end; `option` names the file in errors."""
    if path == "-":
        msg = f"{option} - is not a file"
        raise UsageError(msg, hint=f"read the password from stdin with {option.removesuffix('file')}stdin")
    description = f"{option} {printable(path, 1024)}"
    with disk_errors(f"cannot read {description}"), open(path, "rb") as file:  # noqa: PTH123 - a Path refuses names that are too long
        secret = _parse_password(file.read(limits.MAX_ERROR_BODY + 1), description)
    if not secret:
        msg = f"{description} is empty"
        raise UsageError(msg, hint="write the password into it, and nothing else")
    return secret


def result_on_stdout_error(result: str) -> UsageError:
    """Return the error for a --result that is stdout."""
    hint = "name a file: stdout has the archive, or a line for each image, and nothing else"
    return UsageError(f"--result {printable(result)} is stdout", hint=hint)


def resolve_stdout(location: Location) -> Location:
    """Return a stream location for a path that leads to our own stdout, such as `/dev/stdout`, else `location`.

    Printed lines would mix with the archive, and a file that is open as stdout cannot be replaced.
    """
    if location.path is None or location.kind == "oci":
        return location
    return replace(location, is_stream=True) if _is_stdout(location.path) else location


def _is_stdout(path: Path) -> bool:
    if sys.stdout is None:
        return False
    try:
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    except OSError:
        # The path does not exist, or stdout is not a file. The error is reported where the path is opened.
        return False


def is_visible_on_stdout(path: Path) -> bool:
    """Return whether writing to a path would mix with printed lines; not if the output is discarded (/dev/null)."""
    return _is_stdout(path) and (not path.is_char_device() or sys.stdout.isatty())
