"""Other programs on this terminal that may write at any moment: those on our pipes, and the command of `copy --via`.

Why no bar is drawn beside them: a bar is redrawn in place, so its rows must not move and must belong to the bar alone.
A program that does not take turns (ssh, `docker load`) writes where the cursor is, and does not say so. If the cursor
stands on the bar, its text mixes with the bar's remains ("permission denied|###   | 1.2 MB"). If the cursor stands
below the bar, moving up again erases its text. Asking the terminal for the cursor's position would take typed
passwords from their reader. A scroll region stays behind after SIGKILL. So complete lines are printed instead, each on
a row of its own (`fresh_line`): no such line can cut or overwrite another program's line.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OtherPrograms", "can_draw", "fresh_line_prefix", "is_pipe"]


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
