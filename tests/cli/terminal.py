"""Run ocistream on a terminal: a pty as some or all of its streams."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from tests.runner import TIMEOUT, Argument, forking_command

_SIZE: Final = (24, 100)
#: Seconds to wait for a moment; every moment takes much less.
_PATIENCE: Final = 60.0


@dataclasses.dataclass(frozen=True)
class Seen:
    """The result of a run: `screen` is the text on the terminal, with echoes; `out` is that in the stdout pipe."""

    code: int
    screen: str
    out: bytes


def on_terminal(
    *argv: Argument,
    streams: Sequence[str] = ("stdin", "stdout", "stderr"),
    dialogue: Sequence[tuple[str, str]] = (),
    env: Mapping[str, str] | None = None,
    size: tuple[int, int] = _SIZE,
    moments: Sequence[tuple[str, Callable[[int], object]]] = (),
    piped_into: Sequence[Argument] | None = None,
    piped_into_program: Sequence[Argument] | None = None,
) -> Seen:
    """Run `ocistream *argv` in a fork with a terminal as its `streams`; the others are a pipe (stdout) or nothing.

    With `piped_into`, run `ocistream *argv | ocistream *piped_into` in a shell on one terminal; with
    `piped_into_program` the second command is any other program.

    `dialogue` has prompts, and the text to type when each is on the screen. `size` is in lines and columns. Each of the
    `moments`, in order, is a text to wait for (after the previous one) and a function to call with the terminal's
    descriptor.
    """
    ours, theirs = pty.openpty()
    resize(theirs, *size)
    line = [*forking_command(), *map(str, argv)]
    if piped_into is not None:
        piped_into_program = [*forking_command(), *piped_into]
    if piped_into_program is not None:
        line = ["sh", "-c", f"{shlex.join(line)} | {shlex.join(map(str, piped_into_program))}"]
    process = subprocess.Popen(
        line,
        stdin=theirs if "stdin" in streams else subprocess.DEVNULL,
        stdout=theirs if "stdout" in streams else subprocess.PIPE,
        stderr=theirs if "stderr" in streams else subprocess.DEVNULL,
        # A user's terminal, even if the tests run in CI.
        env={**os.environ, "CI": "", **(env or {})},
        # The process has no controlling terminal, so a password prompt uses stdin.
        start_new_session=True,
    )
    os.close(theirs)
    with os.fdopen(ours, "r+b", buffering=0) as terminal, process:
        screen = b""
        for prompt, answer in dialogue:
            while prompt.encode() not in screen and (shown := _read(terminal.fileno())):
                screen += shown
            terminal.write(answer.encode())
        position = 0
        end = time.monotonic() + _PATIENCE
        for text, act in moments:
            while (found := screen.find(text.encode(), position)) < 0 and (shown := _read(terminal.fileno())):
                screen += shown
                if time.monotonic() > end:
                    # The process might draw forever.
                    process.kill()
            assert found >= 0, (text, screen.decode())
            position = found + len(text.encode())
            act(terminal.fileno())
        while shown := _read(terminal.fileno()):
            screen += shown
        out = process.stdout.read() if process.stdout else b""
        return Seen(process.wait(TIMEOUT), screen.decode(), out)


def resize(descriptor: int, lines: int, columns: int) -> None:
    """Change the size of a terminal."""
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


class Screen:
    """The content of a terminal with this number of columns: its `lines`, and those that were too long (`broken`)."""

    def __init__(self, columns: int, text: str) -> None:
        self._columns = columns
        self._rows: list[list[str]] = [[]]
        self._row = self._column = 0
        self.broken: list[str] = []
        #: The rows that continue the line of the previous row, and whether the cursor has just wrapped to a row.
        self._continued: set[int] = set()
        self._is_wrapping = False
        for piece in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|[^\x1b]", text):
            self._take(piece)

    @property
    def lines(self) -> list[str]:
        """The lines without trailing blanks."""
        return ["".join(row).rstrip() for row in self._rows]

    @property
    def written(self) -> list[str]:
        """The lines as they were written: wrapped rows are joined."""
        found: list[str] = []
        for number, row in enumerate(self._rows):
            if number in self._continued:
                found[-1] += "".join(row)
            else:
                found.append("".join(row))
        return [line.rstrip() for line in found]

    def _take(self, piece: str) -> None:
        self._is_wrapping = self._is_wrapping and piece.isprintable()
        match piece:
            case "\r":
                self._column = 0
            case "\n":
                self._row += 1
            case "\x1b[K":
                del self._rows[self._row][self._column :]
            case "\x1b[2K":
                self._rows[self._row].clear()
            case _ if piece.startswith("\x1b") and piece.endswith("A"):
                self._row -= int(piece[2:-1])
                assert self._row >= 0, "above the first line"
            case _:
                assert piece.isprintable(), ascii(piece)
                self._put(piece)
        while len(self._rows) <= self._row:
            self._rows.append([])

    def _put(self, character: str) -> None:
        if self._column == self._columns:
            self.broken.append("".join(self._rows[self._row]))
            self._row += 1
            self._column = 0
            self._rows[self._row : self._row + 1] = [[]]
            self._is_wrapping = True
        # Blanks, with which a program makes sure that a row is empty, do not continue a line.
        if self._is_wrapping and character != " ":
            self._is_wrapping = False
            self._continued.add(self._row)
        row = self._rows[self._row]
        row += [" "] * (self._column - len(row))
        row[self._column : self._column + 1] = [character]
        self._column += 1


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        # EIO: no process has the other side open.
        return b""
