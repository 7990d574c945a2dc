"""What people and log collectors read: one line a message on stderr, as text or as JSON."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol

from ocistream.cli.shared_terminal import OtherPrograms, can_draw, fresh_line_prefix
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

__all__ = ["Console", "LiveDisplay", "escape_ci_commands", "sanitize_line"]

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
    from ocistream.cli.terminal_lock import is_terminal_locked

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
