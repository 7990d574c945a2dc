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
import threading
from io import BufferedReader
from subprocess import PIPE
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from ocistream import limits
from ocistream.errors import (
    ArchiveError,
    AuthenticationError,
    IntegrityError,
    LocalDiskError,
    NetworkError,
    NotFoundError,
    OcistreamError,
    PartialBlobLostError,
    UnsupportedError,
    UsageError,
)
from ocistream.oci.reference import printable
from ocistream.streams import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from io import FileIO
    from typing import IO

__all__ = ["RemoteCommand", "check_shell_safe", "split_command"]

#: A word that means itself to every shell: nothing to be expanded, joined or cut, and no option.
_SHELL_SAFE = re.compile(r"(?:[A-Za-z0-9_/.][A-Za-z0-9_./:@=+,-]*|-{0,2}(?:[a-z][a-z-]*)?)\Z")
#: Seconds that the far side is given to clear up when it gets no more, and then to end when it is asked to.
_STOP_TIMEOUT: Final = 10.0
_KILL_TIMEOUT: Final = 3.0
#: No pipe holds more bytes: 16 pages, of 64 KiB at most. When more has been written, the far side reads.
_LARGEST_PIPE: Final = 1 << 20
#: Seconds that are waited for the ends of the streams of a command that has ended: ssh may leave somebody behind who
#: holds them (ControlPersist).
_STREAM_END_TIMEOUT: Final = 2.0
#: How shells, and what starts programs, say that there is no such program, or that it is none.
_NO_PROGRAM: Final = frozenset({126, 127})
#: How containers' runtimes say it, whatever the exit code of what asked them.
_NO_EXECUTABLE: Final = "executable file not found"
#: How ssh says that it did not come through.
_NO_CONNECTION: Final = 255
#: How it ends whose stdout was closed.
_OUTPUT_CLOSED: Final = frozenset({141, -int(signal.SIGPIPE)})
_ERRORS_BY_EXIT_CODE: Final = {
    2: UsageError,
    3: AuthenticationError,
    4: NotFoundError,
    5: IntegrityError,
    6: ArchiveError,
    7: NetworkError,
    8: UnsupportedError,
    9: LocalDiskError,
}
#: Characters of what it says that are shown in an error.
_MAX_SHOWN: Final = 4096
_RESUME_HINT: Final = "the same command goes on: what has arrived is not sent again, where it can be gone on with there"

_T = TypeVar("_T")


def split_command(text: str) -> list[str]:
    """Take a command apart as a shell would.

    Raises:
        UsageError: it is empty, or a quote has no end.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        # It is not shown: people write passwords into commands.
        msg = f"--via is no command: {error}"
        raise UsageError(msg) from error
    if not words or not words[0]:
        msg = "--via is no command: there is nothing in it"
        raise UsageError(msg, hint="write one that runs what is appended to it, such as --via 'ssh host'")
    return words


def check_shell_safe(word: str) -> str:
    """Make sure that a word means itself to whatever shells there are on the way.

    Raises:
        UsageError: it does not.
    """
    if _SHELL_SAFE.match(word) is None:
        msg = f"{printable(word)!r} cannot be said to the far side: a shell there might take it for something else"
        raise UsageError(msg, hint="with --via only letters, digits and _ . / : @ = + , - are passed on")
    return word


class RemoteCommand:
    """A run of the far side. Its stderr is listened to; who has it writes to its `stdin` and reads its stdout."""

    def __init__(self, on_message: Callable[[Mapping[str, Any] | str], None], ended: threading.Event) -> None:
        """Run nothing yet: whoever is to `abandon` it has it before there is something to abandon.

        `hear` gets what is said on stderr, from another thread: an object of the far ocistream's, or a line of somebody
        else's, printable. Errors are not given to it: those are raised here. `ended` is an event of its own, by which
        the end is waited for.
        """
        self._is_started = False
        self._on_message = on_message
        self._ended = ended
        self._is_stopped = False
        self._error: Mapping[str, Any] | None = None
        #: What somebody else than an ocistream has said last. It is held back, for it may be why all of it has failed.
        self._last_line = ""
        self._output = b""
        self._has_answered = False
        self._written_bytes = 0

    @property
    def is_connecting(self) -> bool:
        """Say whether the command runs and no far side has shown itself: ssh may be asking for a password now."""
        return self._is_started and not self._has_answered and not self._ended.is_set()

    def start(self, command: Sequence[str]) -> None:
        """Run it, by a command line.

        Raises:
            NotFoundError, LocalDiskError: there is no such command, or it cannot be run.
        """
        self._name = printable(command[0])
        failures: list[OSError] = []

        def run() -> None:
            try:
                self._run(command)
            except OSError as error:
                failures.append(error)

        # In another thread, where no signal's exception comes out between the process and its name here.
        self._start_thread(run).join()
        if failures:
            error = failures[0]
            if isinstance(error, FileNotFoundError):
                msg = f"cannot run {self._name}: there is no such command"
                raise NotFoundError(msg, hint="--via is a command of this machine") from error
            msg = f"cannot run {self._name}: {error.strerror or error}"
            raise LocalDiskError(msg) from error

    def _run(self, line: Sequence[str]) -> None:
        process = subprocess.Popen(line, bufsize=0, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        self._process = process
        # They are pipes, and not buffered.
        self._stdin = cast("FileIO", process.stdin)
        self._stdout = cast("FileIO", process.stdout)
        self._stderr = cast("FileIO", process.stderr)
        self._threads = [self._start_thread(self._read_messages)]
        threading.Thread(target=self._wait, daemon=True).start()
        self._is_started = True

    # -- what it is used for -----------------------------------------------------------------------------

    def query(self, query: Iterable[bytes], read: Callable[[IO[bytes]], _T]) -> _T:
        """Write a question, read the answer, and wait for the end.

        Raises:
            OcistreamError: the far side failed, or `read` raised.
        """
        self._start_thread(lambda: self._write_all(query))
        try:
            with BufferedReader(self._stdout) as answer:
                found = read(answer)
                self._has_answered = True
        except OcistreamError:
            # Its own failure is the reason, if it has failed; but not of being heard no longer.
            if self._wait_exit_code() not in {0, *_OUTPUT_CLOSED}:
                raise self._build_error() from None
            raise
        if self._wait_exit_code():
            raise self._build_error()
        return found

    def start_reading(self) -> None:
        """Begin to read what it prints, which `results` gives at the end."""
        self._threads.append(self._start_thread(self._read_output))

    def write(self, chunk: bytes | memoryview) -> None:
        """Write all of a chunk to its stdin.

        Raises:
            OcistreamError: it does not listen any more: whatever it failed of.
        """
        try:
            files.write_all(self._stdin, chunk)
            self._written_bytes += len(chunk)
            self._has_answered = self._has_answered or self._written_bytes > _LARGEST_PIPE
        except BrokenPipeError:
            self._close_stdin()
            if not self._ended.wait(_STOP_TIMEOUT):
                self.stop()
            if self._wait_exit_code():
                raise self._build_error() from None
            msg = "the far side has ended before it had all of the archive"
            raise NetworkError(msg, hint=_RESUME_HINT) from None

    def finish(self) -> list[str]:
        """Say that there is nothing more to come, wait for the end, and give the lines that were printed.

        Raises:
            OcistreamError: it failed.
        """
        self._close_stdin()
        if self._wait_exit_code():
            raise self._build_error()
        return self._output.decode(errors="replace").splitlines()

    def stop(self, *, immediately: bool = False) -> None:
        """End it: it gets no more, nothing that it says is listened to, and it is killed if it does not end."""
        if not self._is_started:
            return
        self._is_stopped = True
        self._close_stdin()
        if not immediately and self._ended.wait(_STOP_TIMEOUT):
            return
        for end in (self._process.terminate, self._process.kill):
            if self._process.returncode is None:
                end()
            if self._ended.wait(_KILL_TIMEOUT):
                return

    # -- its streams -------------------------------------------------------------------------------------

    @staticmethod
    def _start_thread(work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def _wait(self) -> None:
        self._process.wait()
        for thread in self._threads:
            thread.join(_STREAM_END_TIMEOUT)
        self._ended.set()

    def _wait_exit_code(self) -> int:
        self._ended.wait()
        if self._process.returncode == 0 and self._last_line:
            self._on_message(self._last_line)
            self._last_line = ""
        return self._process.returncode

    def _write_all(self, query: Iterable[bytes]) -> None:
        # It may not listen, or be given up meanwhile: why is seen by what becomes of it.
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
        found = _parse_message(line)
        self._has_answered = self._has_answered or found is not None
        text = "" if found is not None else printable(line.decode(errors="replace").strip(), limits.MAX_REMOTE_LINE)
        if self._last_line and (text or found):
            self._on_message(self._last_line)
        self._last_line = text or self._last_line if found is None else ""
        if found is not None and found.get("level") == "error":
            self._error = found
        elif found is not None:
            self._on_message(found)

    # -- how it failed -----------------------------------------------------------------------------------

    def _build_error(self) -> OcistreamError:
        """Say why it ended as it did: in its own words where there are any."""
        code, error = self._process.returncode, self._error
        if error is not None and _message_text(error, "message"):
            return _convert_error(error, code)
        said = f": {printable(self._last_line, _MAX_SHOWN)}" if self._last_line else ""
        if code in _NO_PROGRAM or _NO_EXECUTABLE in self._last_line:
            msg = f"there is no ocistream on the far side{said}"
            hint = "install it there, or say with --via-program where it is, such as --via-program /opt/bin/ocistream"
            return NotFoundError(msg, hint=hint)
        if code == _NO_CONNECTION:
            return NetworkError(f"{self._name} did not get through, or was cut off{said}", hint=_RESUME_HINT)
        if code < 0:
            return NetworkError(f"{self._name} was ended by signal {-code}{said}", hint=_RESUME_HINT)
        hint = "see that it runs what is appended to it: `ocistream --version`, say"
        return NetworkError(f"{self._name} failed (exit status {code}){said}", hint=hint)


def _parse_message(line: bytes) -> dict[str, Any] | None:
    """Give the object that a line is, or None."""
    if not line.startswith(b"{"):
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _message_text(error: Mapping[str, Any], key: str) -> str:
    value = error.get(key)
    return printable(value, _MAX_SHOWN) if isinstance(value, str) else ""


def _convert_error(error: Mapping[str, Any], code: int) -> OcistreamError:
    """Make an error of ours of one that the far side has reported, with its exit code."""
    message, hint = _message_text(error, "message"), _message_text(error, "hint") or None
    # What runs it may have exit codes of its own.
    said = error.get("exit_code")
    code = said if isinstance(said, int) and said in _ERRORS_BY_EXIT_CODE else code
    if code == UsageError.exit_code and message.startswith(("No such command", "No such option")):
        msg = f"the ocistream on the far side does not know what it is asked ({message})"
        return UnsupportedError(msg, hint="have the same version on both sides")
    if code == ArchiveError.exit_code and "on stdin" in message:
        hint = "nothing, or not all, has come there: does --via pass stdin on, as `docker exec -i` and `ssh` do?"
    elif code == ArchiveError.exit_code and "left out" in message:
        hint = "it has lost them since it said that it has them: the same command asks again"
    if error.get("kind") == PartialBlobLostError.kind:
        return PartialBlobLostError(f"the far side failed: {message}", hint=hint)
    kind = _ERRORS_BY_EXIT_CODE.get(code, NetworkError if code >= 128 or code < 0 else OcistreamError)
    return kind(f"the far side failed: {message}", hint=hint)
