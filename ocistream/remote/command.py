"""Run ocistream behind a command such as `ssh host`, and exchange data over its stdin, stdout and stderr.

No shell is used, and every appended word is safe in any shell. JSON lines on stderr come from the remote ocistream;
other lines come from the command itself.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import subprocess
import time
from io import BufferedReader
from subprocess import PIPE
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from ocistream import limits
from ocistream.errors import (
    ArchiveError,
    AuthenticationError,
    CancelledError,
    IntegrityError,
    LocalDiskError,
    MissingContentError,
    NetworkError,
    NotFoundError,
    OcistreamError,
    PartialBlobLostError,
    TruncatedError,
    UnsupportedError,
    UsageError,
    VolumesNeededError,
)
from ocistream.oci.reference import printable
from ocistream.process_exit import called_at_forced_exit
from ocistream.streams import files, workers
from ocistream.streams.files import CancellableInput

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from io import FileIO
    from typing import IO

#: A word that no shell changes, expands or splits, and that is not an unexpected option.
_SHELL_SAFE = re.compile(r"(?:[A-Za-z0-9_/.][A-Za-z0-9_./:@=+,-]*|-{0,2}(?:[a-z][a-z-]*)?)\Z")
#: Seconds for the remote command to clean up after its stdin is closed, and then to end after each signal. The second
#: one is shorter than the time that `cli.signals` gives a command to end.
_STOP_TIMEOUT: Final = 10.0
_KILL_TIMEOUT: Final = 0.4
#: Seconds between two checks whether the transfer was cancelled.
_POLL_INTERVAL: Final = 0.1
#: No pipe buffers more bytes: 16 pages of at most 64 KiB. After more were written, the remote side is reading.
_LARGEST_PIPE: Final = 1 << 20
#: Seconds to wait for the end of the streams after the command ended: ssh may leave a process that keeps them open
#: (ControlPersist).
_STREAM_END_TIMEOUT: Final = 2.0
#: Exit codes of shells and of program starters if a program does not exist or cannot be executed.
_NO_PROGRAM: Final = frozenset({126, 127})
#: The message of container runtimes for the same; the exit code of docker or kubectl then varies.
_NO_EXECUTABLE: Final = "executable file not found"
#: The exit code of ssh if the connection failed.
_NO_CONNECTION: Final = 255
#: Exit codes of a command whose stdout was closed.
_OUTPUT_CLOSED: Final = frozenset({141, -int(signal.SIGPIPE)})
_ERRORS_BY_EXIT_CODE: Final[dict[int, type[OcistreamError]]] = {
    error.exit_code: error
    for error in (
        *(UsageError, AuthenticationError, NotFoundError, IntegrityError, ArchiveError),
        *(NetworkError, UnsupportedError, LocalDiskError, VolumesNeededError),
    )
}
#: What to do about errors whose remote hint is meant for a single command there.
_HINTS_BY_KIND: Final = {
    MissingContentError.kind: "the remote side listed these blobs, but does not have them now: re-run the command",
    TruncatedError.kind: (
        "the input did not arrive completely: --via must pass stdin on, as `docker exec -i` and `ssh` do"
    ),
}
#: Characters of a remote message that are shown in an error.
_MAX_SHOWN: Final = 4096
_RESUME_HINT: Final = "re-run the command to resume where the remote side allows it"
_CONNECTION_HINT: Final = "check the host and the command of --via, such as --via 'ssh HOST': `ssh HOST true` must work"

_T = TypeVar("_T")


def split_command(text: str) -> list[str]:
    """Split a command line into words as a shell does.

    Raises:
        UsageError: the line is empty, or a quote is not closed.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        # Do not show the command: it may contain a password.
        msg = f"--via is not a command: {error}"
        raise UsageError(msg) from error
    if not words or not words[0]:
        msg = "--via is empty"
        raise UsageError(msg, hint="write a command that runs appended words, such as --via 'ssh host'")
    return words


def check_shell_safe(word: str) -> str:
    """Return the word if no shell on the way to the remote side can change its meaning.

    ocistream runs no shell, but ssh passes the words to one. It is not known how many shells follow, so words are never
    quoted, and unsafe words are refused before anything is run. Long data (digests) goes over stdin.

    Raises:
        UsageError: a shell might change the word.
    """
    if _SHELL_SAFE.match(word) is None:
        msg = f"cannot pass {printable(word)!r} to the remote side: a shell there might interpret it"
        raise UsageError(msg, hint="with --via, only letters, digits and _ . / : @ = + , - are allowed")
    return word


class RemoteCommand:
    """One run of a command. The caller writes to its stdin and reads its stdout.

    `on_message` receives each stderr line from another thread: a JSON object of the remote ocistream, or a printable
    line of the command itself. Error objects are raised instead. Waits for the command end when `cancelled` is set.

    The remote ocistream sends all its messages and errors as JSON, with exit codes, because ssh, docker and kubectl
    have exit codes and messages of their own. There is no time-out: a remote registry may be retried for minutes
    without output. Users who want one set ssh's `ServerAliveInterval`.
    """

    def __init__(
        self,
        command: Sequence[str],
        on_message: Callable[[Mapping[str, Any] | str], None],
        cancelled: threading.Event,
    ) -> None:
        """Run a command line.

        Raises:
            NotFoundError, LocalDiskError: the command does not exist, or cannot be run.
        """
        self._on_message = on_message
        self._cancelled = cancelled
        self._is_stopped = False
        self._error: Mapping[str, Any] | None = None
        #: The last stderr line that is not JSON. It is not reported yet, as it may be the reason of the failure.
        self._last_line = ""
        self._output = b""
        self._has_answered = False
        self._written_bytes = 0
        self._name = printable(command[0])
        try:
            process = subprocess.Popen(command, bufsize=0, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        except FileNotFoundError as error:
            msg = f"cannot run {self._name}: no such command"
            raise NotFoundError(msg, hint="--via runs a command on this machine, such as --via 'ssh HOST'") from error
        except OSError as error:
            msg = f"cannot run {self._name}: {error.strerror or error}"
            raise LocalDiskError(msg) from error
        self._process = process
        # Pipes without a buffer are FileIO objects.
        self._stdin = cast("FileIO", process.stdin)
        self._stdout = cast("FileIO", process.stdout)
        self._stderr = cast("FileIO", process.stderr)
        self._readers = [workers.start(self._read_messages)]
        self._end = workers.start(self._wait)

    @property
    def is_connecting(self) -> bool:
        """Whether the command runs and no remote ocistream has answered: ssh may be asking for a password."""
        return not self._has_answered and not self._end.is_done

    # -- operations --------------------------------------------------------------------------------------

    def query(self, query: Iterable[bytes], read: Callable[[IO[bytes]], _T]) -> _T:
        """Write a query, read the answer with `read`, and wait for the end.

        Raises:
            OcistreamError: the remote side failed, or `read` raised.
        """
        workers.start(lambda: self._write_all(query))
        try:
            with self._stdout, BufferedReader(CancellableInput(self._stdout.fileno(), self._cancelled)) as output:
                result = read(output)
                self._has_answered = True
        except OcistreamError:
            # A remote failure is the reason, unless it only reports that its stdout was closed.
            if self._wait_exit_code() not in {0, *_OUTPUT_CLOSED}:
                raise self._build_error() from None
            raise
        if self._wait_exit_code():
            raise self._build_error()
        return result

    def start_reading(self) -> None:
        """Start to read stdout; `finish` returns its lines."""
        self._readers.append(workers.start(self._read_output))

    def write(self, chunk: bytes | memoryview) -> None:
        """Write a complete chunk to stdin.

        If the remote side fails, its stdin closes; the error is its own reason, not the broken pipe.

        Raises:
            OcistreamError: the remote side failed, or no longer reads.
        """
        try:
            files.write_all(self._stdin, chunk)
            self._written_bytes += len(chunk)
            self._has_answered = self._has_answered or self._written_bytes > _LARGEST_PIPE
        except BrokenPipeError:
            self._close_stdin()
            if not self._wait_for_end(_STOP_TIMEOUT):
                self.stop()
            if self._wait_exit_code():
                raise self._build_error() from None
            msg = "the remote side ended before it had the complete archive"
            raise NetworkError(msg, hint=_RESUME_HINT) from None

    def finish(self) -> list[str]:
        """Close stdin, wait for the end, and return the lines of stdout.

        Raises:
            OcistreamError: the remote side failed.
        """
        self._close_stdin()
        if self._wait_exit_code():
            raise self._build_error()
        return self._output.decode(errors="replace").splitlines()

    def stop(self) -> None:
        """Stop the command: close stdin, ignore further messages, and kill the command if it does not end.

        If the source fails, the remote side gets an incomplete archive, and refuses it. Its error message would only
        repeat the failure, and is not shown. A cancelled copy does not wait for the command to end.
        """
        self._is_stopped = True
        self._close_stdin()
        if not self._cancelled.is_set() and self._end.wait(_STOP_TIMEOUT):
            return
        for send_signal in (self._process.terminate, self._process.kill):
            if self._process.returncode is None:
                send_signal()
            if self._end.wait(_KILL_TIMEOUT):
                return

    # -- streams -----------------------------------------------------------------------------------------

    def _wait(self) -> None:
        with called_at_forced_exit(self.stop):
            self._process.wait()
        for reader in self._readers:
            reader.wait(_STREAM_END_TIMEOUT)

    def _wait_for_end(self, timeout: float | None = None) -> bool:
        """Wait until the command has ended; return False after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._end.wait(_POLL_INTERVAL):
            if self._cancelled.is_set():
                raise CancelledError("cancelled")
            if deadline is not None and time.monotonic() >= deadline:
                return False
        return True

    def _wait_exit_code(self) -> int:
        self._wait_for_end()
        if self._process.returncode == 0 and self._last_line:
            self._on_message(self._last_line)
            self._last_line = ""
        return self._process.returncode

    def _write_all(self, query: Iterable[bytes]) -> None:
        # The command may have ended; its exit code gives the reason.
        with contextlib.suppress(OSError, ValueError):
            for chunk in query:
                files.write_all(self._stdin, chunk)
        self._close_stdin()

    def _close_stdin(self) -> None:
        with contextlib.suppress(OSError):
            self._stdin.close()

    def _read_output(self) -> None:
        while chunk := self._stdout.read(limits.CHUNK_SIZE):
            if len(self._output) < limits.MAX_REMOTE_RESULTS:
                self._output += chunk

    def _read_messages(self) -> None:
        with BufferedReader(self._stderr) as lines:
            while line := lines.readline(limits.MAX_REMOTE_LINE):
                if not self._is_stopped:
                    self._handle_line(line)

    def _handle_line(self, line: bytes) -> None:
        message = _parse_message(line)
        self._has_answered = self._has_answered or message is not None
        text = "" if message is not None else printable(line.decode(errors="replace").strip(), limits.MAX_REMOTE_LINE)
        if self._last_line and (text or message):
            self._on_message(self._last_line)
        self._last_line = text or self._last_line if message is None else ""
        if message is not None and message.get("level") == "error":
            self._error = message
        elif message is not None:
            self._on_message(message)

    # -- errors ------------------------------------------------------------------------------------------

    def _build_error(self) -> OcistreamError:
        """Build the error of a failed command: from its own JSON error if there is one."""
        code, error = self._process.returncode, self._error
        if error is not None and _message_text(error, "message"):
            return _convert_error(error, code)
        detail = f": {printable(self._last_line, _MAX_SHOWN)}" if self._last_line else ""
        if code in _NO_PROGRAM or _NO_EXECUTABLE in self._last_line:
            msg = f"the remote side has no ocistream{detail}"
            hint = "install it there, or name its path: --via-program /opt/bin/ocistream"
            return NotFoundError(msg, hint=hint)
        if code == _NO_CONNECTION and not self._has_answered:
            return NetworkError(f"{self._name} could not connect{detail}", hint=_CONNECTION_HINT)
        if code == _NO_CONNECTION:
            return NetworkError(f"{self._name} was cut off{detail}", hint=_RESUME_HINT)
        if code < 0:
            return NetworkError(f"{self._name} was killed by signal {-code}{detail}", hint=_RESUME_HINT)
        hint = (
            "ocistream appends its own command line to COMMAND of --via, which must run it: check "
            "`COMMAND ocistream --version`, such as `ssh HOST ocistream --version`"
        )
        return NetworkError(f"{self._name} failed (exit status {code}){detail}", hint=hint)


def _parse_message(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object in a line, or None."""
    if not line.startswith(b"{"):
        return None
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def _message_text(error: Mapping[str, Any], key: str) -> str:
    value = error.get(key)
    return printable(value, _MAX_SHOWN) if isinstance(value, str) else ""


def _convert_error(error: Mapping[str, Any], code: int) -> OcistreamError:
    """Convert an error that the remote ocistream reported to an exception of the same kind."""
    message, kind = _message_text(error, "message"), _message_text(error, "kind")
    hint = _HINTS_BY_KIND.get(kind) or _message_text(error, "hint") or None
    # ssh, docker and kubectl may replace the exit code, so the code in the message takes precedence.
    reported_code = error.get("exit_code")
    code = reported_code if isinstance(reported_code, int) and reported_code in _ERRORS_BY_EXIT_CODE else code
    # By click's words: the version of the remote side is unknown, and may have no `kind` for these errors.
    if code == UsageError.exit_code and message.startswith(("No such command", "No such option")):
        msg = f"the ocistream on the remote side does not support this ({message})"
        return UnsupportedError(msg, hint="install the same version on both sides")
    if kind == PartialBlobLostError.kind:
        return PartialBlobLostError(f"the remote side failed: {message}", hint=hint)
    error_class = _ERRORS_BY_EXIT_CODE.get(code, NetworkError if code >= 128 or code < 0 else OcistreamError)
    return error_class(f"the remote side failed: {message}", hint=hint)
