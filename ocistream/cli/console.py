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
from typing import TYPE_CHECKING, Any, Final

from ocistream.cli.signals import CancelEvent
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from ocistream.cli.progress import ProgressBar
    from ocistream.transfer.interfaces import RunObserver

#: CI runners search a whole line for these commands: `##[name]` (GitHub: ActionCommand.cs of actions/runner; Azure,
#: also `##vso[...]`: Command.cs of azure-pipelines-agent) and `##teamcity[...]` (TeamCity).
_CI_COMMAND_MARK: Final = re.compile(r"##(?=[A-Za-z]*\[)")
_CLEAR_LINE: Final = "\r\x1b[2K"


class Console:
    """Messages on stderr, at a verbosity: -1 (-q, errors only), 0, 1 (-v), 2 (-vv, with tracebacks).

    `display` is the active progress bar, or None. It prints messages above itself, and is removed before an error.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        """Set what the options of a command may change later."""
        self.verbosity = 0
        self.as_json = as_json
        self.display: ProgressBar | None = None
        #: Whether this is a server, which runs until a signal ends it: then a signal is not an error.
        self.is_server = False
        #: Other programs that may write to this terminal at any time.
        self.other_programs = OtherPrograms()
        #: Whether to print only results, warnings and errors. True on the receiving side of a pipe without a terminal:
        #: its messages appear on the terminal of the sending side.
        self.is_terse = False
        #: Set by the first signal: the command must end.
        self.cancelled = CancelEvent()
        #: Held to write to stderr, or to a log. It is recursive: a display prints messages while it draws.
        self.write_lock = threading.RLock()

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Console:
        """Return a console; look for a JSON log format before parsing, so that a usage error is JSON too."""
        values: dict[str, str] = {}
        for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
            option, _, value = argument.partition("=")
            values[option] = value or following
        log_format = values.get("--log-format") or os.environ.get("OCISTREAM_LOG_FORMAT")
        return cls(as_json=cls.is_json(log_format, values.get("--progress")))

    @staticmethod
    def is_json(log_format: str | None, progress: str | None) -> bool:
        """Return whether messages are JSON: requested for messages, or for progress with no format given.

        A program that reads progress, one JSON object a line, then finds nothing else on stderr.
        """
        return (log_format or progress) == "json"

    def show_progress(self, kind: str) -> AbstractContextManager[RunObserver]:
        """Show the progress of the transfer within the block.

        `kind` is the value of --progress. "auto" is a bar on a terminal, else a line every few seconds, and nothing
        with -q or on a terse console. With JSON messages, "auto" draws no bar.
        """
        is_explicit = kind != "auto"
        if not is_explicit:
            kind = "bar" if can_draw() and not self.as_json else "plain"
            kind = "none" if self.verbosity < 0 or self.is_terse else kind
        if kind == "none" or (kind == "bar" and sys.stderr is None):
            from ocistream.transfer.interfaces import NullObserver

            return contextlib.nullcontext(NullObserver())
        # Imported here, because many runs show no progress.
        from ocistream.cli.progress import JsonProgress, ProgressBar, ProgressLines

        if kind == "bar":
            return ProgressBar(self, is_explicit=is_explicit)
        return JsonProgress(self) if kind == "json" else ProgressLines(self)

    def info(self, message: str, *, level: int = 0, **fields: Any) -> None:
        """Print a message if the verbosity is at least `level`. `fields` appear in JSON only."""
        if self.verbosity >= level:
            self._print_message("info" if level <= 0 else "debug", message, fields)

    def error(self, message: str, *, hint: str | None = None, code: int | None = None, kind: str | None = None) -> None:
        """Print an error, and on a second line the hint; `kind` is for programs that parse JSON messages.

        No `::error::` for GitHub: the author of a workflow decides whether a failure here is an error there.
        """
        # Another thread may end the display.
        if (display := self.display) is not None:
            display.close()
        if self.as_json:
            optional = {"hint": hint, "exit_code": code, "kind": kind}
            fields = {key: value for key, value in optional.items() if value is not None}
            self._print_message("error", message, fields)
            return
        self.print_line(sanitize_line(f"ocistream: error: {message}"))
        if hint:
            self.print_line(sanitize_line(f"  {hint}"))

    def print_traceback(self, format_traceback: Callable[[], str]) -> None:
        """Print a traceback at verbosity 2."""
        if self.verbosity > 1:
            if self.as_json:
                self._print_message("debug", format_traceback().rstrip(), {})
            else:
                self.print_line(format_traceback().rstrip())

    def emit_event(self, /, **fields: Any) -> None:
        """Print one JSON object on its own line, at any verbosity and message format.

        `fields` may come from the remote side and have any names.
        """
        import json

        self.print_line(escape_ci_commands(json.dumps(fields)))

    def suspend_display(self) -> AbstractContextManager[None]:
        """Remove the display within the block: stdout may be the same terminal."""
        display = self.display
        return contextlib.nullcontext() if display is None else display.suspend()

    def start_fresh_line(self) -> str:
        """Return text that starts an empty row if another program may have left the cursor inside one, else ""."""
        return move_to_fresh_line() if can_draw() and not self.as_json and self.other_programs.can_write() else ""

    def _print_message(self, level: str, message: str, fields: dict[str, Any]) -> None:
        if self.as_json:
            self.emit_event(level=level, message=message, **fields)
        else:
            self.print_line(sanitize_line(f"ocistream: {message}"))

    def print_line(self, text: str) -> None:
        """Print trusted text unchanged, such as markers that a CI's log viewer interprets."""
        display = self.display
        if display is not None:
            display.print_above(text)
        else:
            self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        # Write each line with one call, one thread at a time. A closed stderr (None after `2>&-`) is not a failure, and
        # its text must not go to stdout, as with `print`.
        with self.write_lock, contextlib.suppress(OSError):
            if sys.stderr is not None:
                if fresh := self.start_fresh_line():
                    text = f"{fresh}{text}"
                elif sys.stderr.isatty() and is_terminal_locked(2):
                    # Another process draws there: the cursor is at the beginning of one of its lines.
                    text = f"{_CLEAR_LINE}{text}"
                sys.stderr.write(text)
                sys.stderr.flush()


def sanitize_line(text: str) -> str:
    """Return the text as one line that controls neither a terminal nor a CI runner; the text may be hostile.

    GitHub's runner takes `::name::` at the beginning of a line, also after blanks, and `##[name]` anywhere, for a
    command.
    """
    clean = _CI_COMMAND_MARK.sub("#?", printable(text, len(text)))
    if clean.lstrip().startswith("::"):
        clean = clean.replace("::", ":?", 1)
    return clean


def escape_ci_commands(text: str) -> str:
    """Return JSON of the same meaning, in which a CI runner finds no command when it logs the JSON.

    Its lines begin with brackets and quotes, so only commands in the middle of a line need escaping. `text` must not
    end inside a string. Parsers read the escape as the same character.
    """
    return _CI_COMMAND_MARK.sub(r"#\\u0023", text)


class OtherPrograms:
    """The programs that share the terminal with this process."""

    def __init__(self) -> None:
        """Start with no programs."""
        self._pipes: list[_SharedPipe] = []
        self._commands: list[Callable[[], bool]] = []

    def add_pipe(self, descriptor: int) -> None:
        """Add the program at the other end of a pipe or socket; ignore any other descriptor."""
        if is_pipe(descriptor):
            self._pipes.append(_SharedPipe(descriptor))

    def add_command(self, may_write: Callable[[], bool]) -> None:
        """Add a program that this process runs; `may_write` returns whether it may write to the terminal now."""
        self._commands.append(may_write)

    def can_write(self, *, commands_only: bool = False) -> bool:
        """Return whether a program that ignores `TerminalLock` (such as ssh) may write to the terminal now.

        Then no bar is drawn: messages are complete lines, each on a row of its own.
        """
        if any(may_write() for may_write in self._commands):
            return True
        return not commands_only and any(pipe.has_foreign_peer() for pipe in self._pipes)


class _SharedPipe:
    """One end of a pipe that tells the other end, by a shared lock (flock(2)), that an ocistream is here.

    An exclusive lock is available only if the other end has no lock. Where pipes have no locks (macOS), the program at
    the other end counts as foreign.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_peer_ocistream = False
        self._is_marked = False
        self._mark()

    def has_foreign_peer(self) -> bool:
        """Return whether the program at the other end is not known to be an ocistream.

        The caller holds `Console.write_lock`.
        """
        if not self._is_peer_ocistream:
            self._is_peer_ocistream = self._try_lock(fcntl.LOCK_EX) is False
            # flock(2): a conversion drops the shared lock first, even if the conversion fails.
            self._is_marked = False
        if not self._is_marked:
            self._mark()
        return not self._is_peer_ocistream

    def _mark(self) -> None:
        self._is_marked = self._try_lock(fcntl.LOCK_SH) is True

    def _try_lock(self, kind: int) -> bool | None:
        """Try to take a lock: False if the other end has one, None if pipes have no locks here."""
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True


def is_pipe(descriptor: int) -> bool:
    """Return whether a descriptor is a pipe, a FIFO or a socket (sshd gives its commands sockets)."""
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def can_draw() -> bool:
    """Return whether stderr is a terminal that takes control characters.

    `CI=true` means no bar, on a terminal too: some CIs record every byte.
    """
    is_ci = os.environ.get("CI", "").lower() in {"true", "1"}
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not is_ci


def move_to_fresh_line() -> str:
    """Return text that moves the cursor to the start of an empty row; another program may have left it anywhere.

    A row of blanks wraps unless it begins in column 0, and the carriage return then ends on the next row (zsh's
    PROMPT_SP). After a prompt such as `Password: ` the blanks are invisible.
    """
    with contextlib.suppress(OSError, ValueError):
        columns = os.get_terminal_size(2).columns
        # Some terminals report no width.
        return " " * columns + "\r\x1b[K" if columns else "\n"
    return ""


class TerminalLock:
    """The right to draw on the terminal behind a descriptor; always granted where locks do not work.

    Only one process draws a bar: both sides of `pull | push` would overwrite each other's lines. The kernel
    releases the lock when a process ends, so the other process can draw then.
    """

    def __init__(self, descriptor: int = 2) -> None:
        """Open the terminal without locking it."""
        self._file = _open_terminal(descriptor)

    def acquire(self) -> bool:
        """Take the lock unless another process has it; return whether this process has it."""
        if self._file is None:
            return True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            # The kernel has no such locks for this file.
            return True
        return True

    def release(self) -> None:
        """Release the lock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def is_terminal_locked(descriptor: int) -> bool:
    """Return whether another process draws on the terminal behind a descriptor, if it is a terminal."""
    lock = TerminalLock(descriptor)
    try:
        return not lock.acquire()
    finally:
        lock.release()


def _open_terminal(descriptor: int) -> int | None:
    # Open it again: both sides of a pipe inherit the same open file, and would share one lock.
    with contextlib.suppress(OSError, ValueError):
        return os.open(os.ttyname(descriptor), os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    return None
