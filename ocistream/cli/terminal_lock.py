"""Whose turn it is to draw on a terminal: of `pull | push`, which share one, one draws and the other is quiet.

The turn is a lock on the terminal itself (flock(2)), which the kernel takes from a process that ends, however it does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

__all__ = ["TerminalLock", "is_terminal_locked"]


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
