"""Client of fork_server.py: runs command lines in forks of a process that has ocistream imported."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, Final

_CHUNK: Final = 1 << 20
_SERVER: Final = Path(__file__).with_name("fork_server.py")
#: Where Linux shows the umask of this process.
_STATUS: Final = Path("/proc/self/status")


@dataclasses.dataclass(frozen=True)
class Astray:
    """Connections to `host` that fail or are rerouted: `times` of them (None: all), from number `first` on (from 1).

    `how` is `again` or `unknown` (errors of a resolver), or `port` (another port of this machine).
    """

    host: str
    first: int
    times: int | None
    how: str
    port: int = 0

    def line(self) -> dict[str, Any]:
        """Return it in the form that fork_server.py reads."""
        end = self.first + self.times if self.times is not None else sys.maxsize
        return {"host": self.host, "first": self.first, "end": end, "how": self.how, "port": self.port}


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments and settings of a run, except its streams.

    With `names`, these `*.test` names resolve to this machine: to the given port, or with None to the URL's port. A
    name with an address resolves to that address, such as one outside this network. With `no_waits` pauses between
    attempts are recorded, not slept. The `closed` descriptors (of 0, 1 and 2) are closed, as after `<&-`. With
    `unprivileged` the run cannot read and write every file, even as root. With `deletes_cwd` it first deletes its
    working directory, which is empty. With `shared` it may run in a process that has run other command lines and has
    kept no state: this halves its time. Send no signal to such a process.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    no_waits: bool = False
    names: Mapping[str, int | str | None] | None = None
    astray: Astray | None = None
    closed: Sequence[int] = ()
    unprivileged: bool = False
    deletes_cwd: bool = False
    shared: bool = False


class Fork:
    """A run. `waits` are the pauses between its attempts in seconds, `connected` counts its connections by name."""

    def __init__(self, answers: socket.socket) -> None:
        self._answers = answers
        self._rest = b""
        self.pid = 0
        self.code: int | None = None
        self.waits: list[float] = []
        self.connected: dict[str, int] = {}
        while not self.pid:
            self.read()

    def fileno(self) -> int:
        """Return the descriptor that is readable when `read` has something to read."""
        return self._answers.fileno()

    def read(self) -> bool:
        """Wait for news of the run and record it; return whether the run continues.

        After the last news, `code` is set: negative for a signal.
        """
        if self.code is not None:
            # The last news arrived together with the first.
            return False
        got = self._answers.recv(1 << 16)
        if not got:
            raise EOFError("the process that forks has ended")
        *lines, self._rest = (self._rest + got).split(b"\n")
        for line in lines:
            self._note(**json.loads(line))
        return self.code is None

    def close(self) -> None:
        """Close the connection to the run, which continues."""
        self._answers.close()

    def kill(self) -> None:
        """Kill the run and the programs that it started."""
        if self.code is not None:
            # Its process may already run another command line.
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _note(
        self, pid: int = 0, wait: float | None = None, connected: str | None = None, code: int | None = None
    ) -> None:
        self.pid = pid or self.pid
        if wait is not None:
            self.waits.append(wait)
        if connected is not None:
            self.connected[connected] = self.connected.get(connected, 0) + 1
        if code is not None:
            self.code = code


class Server:
    """The process that forks. Thread-safe."""

    def __init__(self, env: Mapping[str, str], within: Sequence[str] = ()) -> None:
        """Start it; `env` affects only how Python and its libraries start.

        `within` is the start of a command line that runs it elsewhere, such as the one of `peers.namespace`.
        """
        self._requests, theirs = socket.socketpair()
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="forks-")
        #: The Unix socket on which fork_client.py requests a run.
        self.address = str(Path(self._folder.name, "socket"))
        with theirs, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen()
            self._process = subprocess.Popen(
                # -P: the folder of the script is not a place to import from.
                [*within, sys.executable, "-P", str(_SERVER), str(theirs.fileno()), str(listener.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=env,
                pass_fds=[theirs.fileno(), listener.fileno()],
                # Ctrl-C in the terminal must reach the tests only.
                start_new_session=True,
            )
        atexit.register(self.close)

    def fork(self, request: Request, streams: Sequence[int]) -> Fork:
        """Start a run with copies of these descriptors as stdin, stdout and stderr."""
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            socket.send_fds(self._requests, [b"=" if request.shared else b"+"], [theirs.fileno(), *streams])
        line = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
        line |= {"umask": _umask(), "astray": request.astray.line() if request.astray else None}
        ours.sendall(json.dumps(line).encode() + b"\n")
        return Fork(ours)

    def close(self) -> None:
        """End the process. A second call does nothing."""
        atexit.unregister(self.close)
        self._requests.close()
        self._process.wait()
        self._folder.cleanup()


def finish(
    forks: Sequence[Fork], outputs: Sequence[int], feed: tuple[int, bytes] | None, timeout: float
) -> list[bytes]:
    """Wait for the end of runs and of their `outputs`, which are pipes; return what each pipe delivered.

    `feed` is a pipe and the bytes to write to it. All pipes are closed.

    Raises:
        subprocess.TimeoutExpired: `timeout` seconds have passed.
    """
    until = time.monotonic() + timeout
    results = [bytearray() for _ in outputs]
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for fork in forks:
            if fork.code is None:
                selector.register(fork, selectors.EVENT_READ, (fork.read, fork.close))
            else:
                # A short run may end before its number is read: all its news came at once.
                fork.close()
        for descriptor, result in zip(outputs, results, strict=True):
            file = stack.enter_context(FileIO(descriptor, "rb"))
            selector.register(file, selectors.EVENT_READ, (partial(_read, file, result), file.close))
        if feed:
            file = stack.enter_context(FileIO(feed[0], "wb"))
            os.set_blocking(feed[0], False)
            selector.register(file, selectors.EVENT_WRITE, (partial(_write, file, bytearray(feed[1])), file.close))
        while selector.get_map():
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("ocistream", timeout)
            for key, _ in selector.select(max(0.0, until - time.monotonic())):
                step, close = key.data
                if not step():
                    selector.unregister(key.fileobj)
                    close()
    return [bytes(result) for result in results]


def _read(file: FileIO, result: bytearray) -> bool:
    """Read from a pipe; return whether more may come."""
    got = file.read(_CHUNK)
    result += got or b""
    return bool(got)


def _write(file: FileIO, rest: bytearray) -> bool:
    """Write to a pipe; return whether more must be written."""
    try:
        del rest[: file.write(rest[:_CHUNK]) or 0]
    except BrokenPipeError:
        return False
    return bool(rest)


def server(**env: str) -> Server:
    """Return the server for an environment that Python and its libraries start with; start each only once.

    Runs count branches if the COVERAGE_ variables of this process ask for that (tests/conftest.py).
    """
    counting = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    return _server(os.getpid(), tuple(sorted((counting | env).items())))


@functools.cache
def _server(_pid: int, env: tuple[tuple[str, str], ...]) -> Server:
    of_runs = ("COVERAGE_", "OCISTREAM_", "PYTHON", "TESTS_CONTEXT")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(of_runs)}
    return Server(inherited | dict(env))


def _umask() -> int:
    """Return the umask of this process; the system call for that would change it."""
    for line in _STATUS.read_text().splitlines() if _STATUS.exists() else ():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    umask = os.umask(0o22)
    os.umask(umask)
    return umask
