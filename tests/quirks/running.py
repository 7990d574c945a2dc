"""Runs ocistream as a user does, without its start: in a fork of a process that has everything imported.

Waits between tries are recorded and not slept.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.cli.run import Argument, Environment, Result

_FORKS: Final = Path(__file__).with_name("forks.py")
#: Seconds after which a run is killed and its test fails.
TIMEOUT: Final = 120.0


@dataclasses.dataclass(frozen=True)
class Ran(Result):
    """How a run ended; `waits` are the seconds that the command would have slept between tries."""

    waits: Sequence[float] = ()


def ocistream(
    *argv: Argument,
    stdin: bytes | Path | None = None,
    env: Environment | None = None,
    cwd: Path | None = None,
    timeout: float = TIMEOUT,
    names: Mapping[str, str] | None = None,
) -> Ran:
    """Run `ocistream *argv` to its end.

    `stdin` is the content of a pipe, or a file (a FIFO, say). `env` is laid over the tests' environment, None takes a
    variable away. `names` gives host names the addresses that they resolve to; connections lead to this machine.
    """
    changed = {**os.environ, **(env or {})}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: str(Path(folder) / name) for name in ("given", "stdout", "stderr", "waits")}
        for path in files.values():
            Path(path).touch()
        Path(files["given"]).write_bytes(stdin if isinstance(stdin, bytes) else b"")
        line = {
            **files,
            "argv": [str(argument) for argument in argv],
            "stdin": str(stdin) if isinstance(stdin, Path) else None,
            "env": {name: value for name, value in changed.items() if value is not None},
            "cwd": str(cwd or Path.cwd()),
            "names": dict(names or {}),
        }
        code = _server().ask(line, timeout)
        waits = json.loads(Path(files["waits"]).read_text() or "[]")
        out, err = (Path(files[name]).read_bytes() for name in ("stdout", "stderr"))
    return Ran([str(argument) for argument in argv], code, out, err.decode(errors="replace"), waits=waits)


class Server:
    """The process that forks."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        # -P: this folder is no place to import from.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_FORKS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._lock = threading.Lock()

    def ask(self, line: dict[str, Any], timeout: float) -> int:
        """Have a command run, and return its exit code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], timeout)[0]:
                self._process.kill()
                _server.cache_clear()
                msg = f"{line['argv']} took more than {timeout} s: {Path(line['stderr']).read_text()}"
                raise AssertionError(msg)
            return int(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


@functools.cache
def _server() -> Server:
    server = Server()
    atexit.register(server.close)
    return server
