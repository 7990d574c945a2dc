"""What is watched while one input is looked at: how long it takes, what memory it costs, what else it does.

Nothing of it depends on what is fuzzed.
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

#: Seconds for one input: thousands of times what any takes, so that a busy machine is no hang.
PATIENCE: Final = 30.0
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CLEAR: Final = Path("/proc/self/clear_refs")
_STATUS: Final = Path("/proc/self/status")
#: What changes a file system, and which of its arguments are paths (Python's table of audit events).
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


#: The ports of this machine on which a target listens: to no other is anything connected.
PORTS: Final[set[int]] = set()
#: What needs no name service.
_NUMERIC: Final = re.compile(r"[0-9.]+|.*:.*|localhost", re.DOTALL)


class HangError(BaseException):
    """An input that takes for ever; no `Exception`, so that nothing on the way takes it for its own."""


class _Deeds:
    """What happens while it is on: programs that are run, files that are changed outside. The network is shut."""

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
            # What is relative is meant from the folder, or from a descriptor within it.
            where = os.path.normpath(os.path.join(self.folder or "", os.fsdecode(path)))  # noqa: PTH118 - text only
            if not f"{where}/".startswith(f"{self.folder}/") and where != str(_CLEAR):
                self.seen.append(f"{event} of {where}")

    @staticmethod
    def _refuse(address: object) -> None:
        """Let what a stranger's words lead to be unreachable: the world, and other services of this machine.

        Raises:
            OSError: it is not one of our own servers.
        """
        if isinstance(address, tuple) and (address[0] not in {"127.0.0.1", "::1"} or address[1] not in PORTS):
            raise OSError(errno.ECONNREFUSED, "nobody is there")


_deeds: _Deeds | None = None


def _the_deeds() -> _Deeds:
    """Return the one hook of this process: Python has no way to take one away."""
    global _deeds  # noqa: PLW0603 - see above
    if _deeds is None:
        _deeds = _Deeds()
    return _deeds


class Watched:
    """What was seen: `grown` is by how much memory grew at the most, in bytes, `deeds` what should not happen."""

    def __init__(self) -> None:
        self.grown = 0
        self.deeds: list[str] = []


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[Watched]:
    """Watch a block, which may change files in `folder` and nowhere else. For the main thread only.

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
    """Let the peak begin anew where this system can (proc(5), clear_refs), and return the memory of now, in bytes."""
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
