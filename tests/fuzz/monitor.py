"""Monitor the check of one input: its time, its memory, and forbidden actions.

The monitor does not depend on the target.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

#: Seconds for one input: thousands of times more than it needs, so that a busy machine does not count as a hang.
PATIENCE: Final = 30.0
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CLEAR: Final = Path("/proc/self/clear_refs")
_STATUS: Final = Path("/proc/self/status")
#: Audit events that change a file system, and the positions of their path arguments (Python's table of audit events).
_CHANGES: Final = {
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.link": (1,),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.utime": (0,),
}
_PROGRAMS: Final = frozenset({"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"})


#: The local ports on which a target listens; connections to other ports are refused.
PORTS: Final[set[int]] = set()
#: Hosts that need no name lookup.
_NUMERIC: Final = re.compile(r"[0-9.]+|.*:.*|localhost", re.DOTALL)


class HangError(BaseException):
    """An input takes too long. It is not an `Exception`, so that no handler of the product catches it."""


class _Deeds:
    """Records started programs and changed files outside the folder while active, and disables the network."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in _PROGRAMS:
            self.seen.append(f"{event} {arguments[:1]!r}")
        elif event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING:
                self._check(event, path)
        elif event in _CHANGES:
            for place in _CHANGES[event]:
                self._check(event, arguments[place])
        elif event == "socket.connect":
            self._refuse(arguments[1])
        elif event == "socket.getaddrinfo" and not _NUMERIC.fullmatch(str(arguments[0])):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")

    def _check(self, event: str, path: object) -> None:
        if isinstance(path, bytes | str | os.PathLike):
            # A relative path starts at the folder, or at a file descriptor of a folder in it.
            where = os.path.normpath(os.path.join(self.folder or "", os.fsdecode(path)))  # noqa: PTH118 - text only
            if not f"{where}/".startswith(f"{self.folder}/") and where != str(_CLEAR):
                self.seen.append(f"{event} of {where}")

    @staticmethod
    def _refuse(address: object) -> None:
        """Refuse connections to other hosts and to other services of this machine.

        Raises:
            OSError: the address is not a server of a target.
        """
        if isinstance(address, tuple) and (address[0] not in {"127.0.0.1", "::1"} or address[1] not in PORTS):
            raise OSError(errno.ECONNREFUSED, "nobody is there")


_deeds: _Deeds | None = None


def _the_deeds() -> _Deeds:
    """Return the only audit hook of this process: Python cannot remove one."""
    global _deeds  # noqa: PLW0603 - see above
    if _deeds is None:
        _deeds = _Deeds()
    return _deeds


class Watched:
    """The result: `grown` is the peak growth of memory in bytes, `deeds` are the forbidden actions."""

    def __init__(self) -> None:
        self.grown = 0
        self.deeds: list[str] = []


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[Watched]:
    """Monitor a block, which may change files only in `folder`. For the main thread only.

    Raises:
        HangError: within the block, after `PATIENCE` seconds.
    """
    assert threading.current_thread() is threading.main_thread()
    deeds, found = _the_deeds(), Watched()
    before = signal.signal(signal.SIGALRM, _alarm)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    start = _begin_peak()
    deeds.seen, deeds.folder = found.deeds, str(folder)
    try:
        yield found
    finally:
        deeds.folder = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        found.grown = _kib("VmHWM") * 1024 - start


def _alarm(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    raise HangError


def _begin_peak() -> int:
    """Reset the peak memory if this system can (proc(5), clear_refs), and return the current memory in bytes."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")
    return max(_kib("VmRSS"), _kib("VmHWM")) * 1024


def _kib(field: str) -> int:
    try:
        status = _STATUS.read_text()
    except OSError:
        return 0
    _, _, rest = status.partition(f"{field}:")
    return int(rest.split(None, 1)[0]) if rest else 0
