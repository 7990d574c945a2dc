"""Messages on stderr, one line each, as text or JSON; and the terminal that other programs may share.

No progress bar is drawn beside a program that does not take the terminal lock: the bar would overwrite its text.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol

from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

__all__ = [
    "Console",
    "LiveDisplay",
    "OtherPrograms",
    "TerminalLock",
    "can_draw",
    "escape_ci_commands",
    "fresh_line_prefix",
    "is_pipe",
    "is_terminal_locked",
    "sanitize_line",
]

#: Where a CI's runner looks for a command in the middle of a line: `##[name]` is GitHub's and Azure's, who has
#: `##vso[...]` as well, and `##teamcity[...]` TeamCity's.
_CI_COMMAND_MARK: Final = re.compile(r"##(?=[A-Za-z]*\[)")
_CLEAR_LINE: Final = "\r\x1b[2K"


class LiveDisplay(Protocol):
    """What is drawn on a terminal, below what is said there."""

    def print_above(self, text: str) -> None:
        """Print lines above it, whole."""

    def suspend(self) -> AbstractContextManager[None]:
        """Take it away while somebody else writes to the terminal."""

    def close(self) -> None:
        """Take it away for good."""


class Console:
    """stderr, at a verbosity: -1 (-q, errors only), 0, 1 (-v), 2 (-vv, with tracebacks).

    `drawing` is a progress bar, while there is one: it prints lines so that it is not torn, and goes before an error.
    """

    def __init__(self, verbosity: int = 0, *, as_json: bool = False) -> None:
        """Begin with settings that the options of a command may still change."""
        self.verbosity = verbosity
        self.as_json = as_json
        self.display: LiveDisplay | None = None
        #: Whether this runs until somebody ends it, so that to be ended is no error.
        self.is_server = False
        #: The programs that may write to this terminal at any moment.
        self.other_programs = OtherPrograms()
        #: Whether only results, warnings and errors are printed: this is the receiving side of a pipe, without a
        #: terminal, and its words end up on the terminal of the sending side.
        self.is_terse = False
        self._lock = threading.Lock()

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Console:
        """Look for a JSON log format before anything is parsed, so that a usage error is JSON as well."""
        found: dict[str, str] = {}
        for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
            option, _, value = argument.partition("=")
            found[option] = value or following
        log_format = found.get("--log-format") or os.environ.get("OCISTREAM_LOG_FORMAT")
        return cls(as_json=cls.is_json(log_format, found.get("--progress")))

    @staticmethod
    def is_json(log_format: str | None, progress: str | None) -> bool:
        """Say whether messages are JSON: where it is asked for, or where progress is and nothing else is asked for.

        So whoever reads progress as one object a line meets nothing else on stderr.
        """
        return (log_format or progress) == "json"

    def info(self, message: str, *, level: int = 0, **fields: Any) -> None:
        """Say something; it is printed from verbosity `level` on. `fields` go into JSON only."""
        if self.verbosity >= level:
            self._print_message("info" if level <= 0 else "debug", message, fields)

    def print_status(self, message: str) -> None:
        """Print what is neither a result nor a warning, unless the console is terse."""
        if not self.is_terse:
            self.info(message)

    def error(self, message: str, *, hint: str | None = None, code: int | None = None, kind: str | None = None) -> None:
        """Say what failed, and on a second line what can be done about it; `kind` is for programs that listen."""
        if self.display is not None:
            self.display.close()
        if self.as_json:
            given = {"hint": hint, "exit_code": code, "kind": kind}
            fields = {key: value for key, value in given.items() if value is not None}
            self._print_message("error", message, fields)
            return
        self._print_line(sanitize_line(f"ocistream: error: {message}"))
        if hint:
            self._print_line(sanitize_line(f"  {hint}"))

    def print_traceback(self, text: Callable[[], str]) -> None:
        """Print a traceback, for those who asked for it twice."""
        if self.verbosity > 1:
            if self.as_json:
                self._print_message("debug", text().rstrip(), {})
            else:
                self._print_line(text().rstrip())

    def emit_event(self, /, **fields: Any) -> None:
        """Print one JSON object on a line of its own, whatever the verbosity and the format of messages.

        `fields` may be anybody's, and have any names.
        """
        import json

        self._print_line(escape_ci_commands(json.dumps(fields)))

    def suspend_display(self) -> AbstractContextManager[None]:
        """Have nothing drawn within the block: a line is written to stdout, which may be the same terminal."""
        return contextlib.nullcontext() if self.display is None else self.display.suspend()

    def fresh_line(self) -> str:
        """Give what begins an empty row, if another program may have left the cursor within a row; else ""."""
        return fresh_line_prefix() if can_draw() and not self.as_json and self.other_programs.can_write() else ""

    def print_raw(self, text: str) -> None:
        """Print a line as it is: words of ours alone, for the program that shows a log."""
        self._print_line(text)

    def _print_message(self, level: str, message: str, fields: dict[str, Any]) -> None:
        if self.as_json:
            self.emit_event(level=level, message=message, **fields)
        else:
            self._print_line(sanitize_line(f"ocistream: {message}"))

    def _print_line(self, text: str) -> None:
        drawing = self.display
        if drawing is not None:
            drawing.print_above(text)
        else:
            self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        # One write a line and one at a time: several threads have something to say. A stderr that is closed (or, as
        # after `2>&-`, None) is no reason to fail, and must not make its text end up on stdout, as `print` would.
        with self._lock, contextlib.suppress(OSError):
            if sys.stderr is not None:
                if fresh := self.fresh_line():
                    text = f"{fresh}{text}"
                elif sys.stderr.isatty() and _is_stderr_locked():
                    # The cursor is at the beginning of a line of another's.
                    text = f"{_CLEAR_LINE}{text}"
                sys.stderr.write(text)
                sys.stderr.flush()


def _is_stderr_locked() -> bool:
    """Say whether another process has a bar on this terminal."""
    return is_terminal_locked(2)


def sanitize_line(text: str, limit: int | None = None) -> str:
    """Make sure that a message is one line, and drives no terminal and no CI's runner, whosever words are in it.

    GitHub's takes `::name::` at the beginning of a line for a command, behind blanks too, and `##[name]` anywhere.
    """
    clean = _CI_COMMAND_MARK.sub("#?", printable(text, len(text) if limit is None else limit))
    if clean.lstrip().startswith("::"):
        clean = clean.replace("::", ":?", 1)
    return clean


def escape_ci_commands(text: str) -> str:
    """Write JSON, of whole strings, so that it means the same and is no command to a CI's runner that logs it.

    Its lines begin with brackets and quotes, so that only what is looked for in the middle of one has to be seen to.
    """
    return _CI_COMMAND_MARK.sub(r"#\\u0023", text)


class OtherPrograms:
    """The programs with which this process shares its terminal."""

    def __init__(self) -> None:
        """Know of none."""
        self._pipes: list[_SharedPipe] = []
        self._commands: list[Callable[[], bool]] = []

    def add_pipe(self, descriptor: int) -> None:
        """Add the program at the other end of a pipe or socket; anything else is ignored."""
        if is_pipe(descriptor):
            self._pipes.append(_SharedPipe(descriptor))

    def add_command(self, may_write: Callable[[], bool]) -> None:
        """Add a program that this process runs; `may_write` says whether it may write to the terminal now."""
        self._commands.append(may_write)

    def can_write(self, *, commands_only: bool = False) -> bool:
        """Say whether a program that takes no turns (`cli/terminal_lock.py`) may write to the terminal now."""
        if any(may_write() for may_write in self._commands):
            return True
        return not commands_only and any(pipe.has_foreign_peer() for pipe in self._pipes)


class _SharedPipe:
    """One end of a pipe, which shows the other end that an ocistream is here: by a shared lock on the pipe (flock(2)).

    An exclusive lock can be had only if the other end has none. Where pipes have no locks (macOS), the program at the
    other end counts as foreign.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_peer_ocistream = False
        self._is_marked = False
        # Asked by the thread that draws and by all that print messages.
        self._lock = threading.Lock()
        self._mark()

    def has_foreign_peer(self) -> bool:
        """Say whether the program at the other end is not known to be an ocistream."""
        with self._lock:
            if not self._is_peer_ocistream:
                self._is_peer_ocistream = self._try_lock(fcntl.LOCK_EX) is False
                # flock(2): whether or not the lock was converted, the shared one is lost.
                self._is_marked = False
            if not self._is_marked:
                self._mark()
            return not self._is_peer_ocistream

    def _mark(self) -> None:
        self._is_marked = self._try_lock(fcntl.LOCK_SH) is True

    def _try_lock(self, kind: int) -> bool | None:
        """Try to take a lock: False if the other end has one, None if there are no locks."""
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True


def is_pipe(descriptor: int) -> bool:
    """Say whether a descriptor is a pipe, a FIFO or a socket (sshd gives its commands sockets)."""
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def can_draw() -> bool:
    """Say whether stderr is a terminal that takes control characters; some CIs have one and keep every byte."""
    is_ci = os.environ.get("CI", "").lower() in {"true", "1"}
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not is_ci


def fresh_line_prefix() -> str:
    """Give what moves the cursor to the beginning of an empty row, wherever in a row another program left it.

    A row full of blanks wraps unless it begins in column 0, and the carriage return then ends on the next row (zsh's
    PROMPT_SP). Behind a prompt such as `Password: ` the blanks change nothing that can be seen.
    """
    with contextlib.suppress(OSError, ValueError):
        columns = os.get_terminal_size(2).columns
        # Some terminals do not say how wide they are.
        return " " * columns + "\r\x1b[K" if columns else "\n"
    return ""


class TerminalLock:
    """The turn on the terminal behind a descriptor. Where nobody can be asked whose it is, it is always ours."""

    def __init__(self, descriptor: int = 2) -> None:
        """Ask for nothing yet."""
        self._file = _open_terminal(descriptor)

    def acquire(self) -> bool:
        """Take it, unless another process has it; say whether it is ours."""
        if self._file is None:
            return True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            # A kernel that knows no such locks there.
            return True
        return True

    def release(self) -> None:
        """Let others have it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def is_terminal_locked(descriptor: int) -> bool:
    """Say whether another process draws on the terminal behind a descriptor, if that is one."""
    turn = TerminalLock(descriptor)
    try:
        return not turn.acquire()
    finally:
        turn.release()


def _open_terminal(descriptor: int) -> int | None:
    # Opened anew: what was inherited is one and the same file to both sides of a pipe, and so is a lock on it.
    with contextlib.suppress(OSError, ValueError):
        return os.open(os.ttyname(descriptor), os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    return None
