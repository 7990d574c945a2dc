"""Runs ocistream many times, each time as a process of its own, forked from one that has everything imported."""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_FORKS: Final = Path(__file__).with_name("forks.py")
#: The first line of stderr starts with this where a command fails.
_COMPLAINT: Final = "ocistream: error: "


@dataclasses.dataclass(frozen=True)
class Astray:
    """Where connections to `host` are led: those from number `first` on (from 1), `times` of them or all.

    `how` is `again` or `unknown`, which are a resolver's refusals, or `port`, another port of this machine.
    """

    host: str
    first: int
    times: int | None
    how: str
    port: int = 0

    def line(self) -> dict[str, Any]:
        """Return it as `forks` reads it."""
        end = self.first + self.times if self.times is not None else sys.maxsize
        return {"host": self.host, "first": self.first, "end": end, "how": self.how, "port": self.port}


@dataclasses.dataclass(frozen=True)
class Ran:
    """How a run ended. `waits` are the pauses between tries, in seconds; `connected` counts connections by host."""

    code: int
    out: str
    err: str
    waits: Sequence[float]
    connected: dict[str, int]

    def complaint(self) -> str | None:
        """Say what is wrong with how a failure is told; None if nothing is."""
        lines = self.err.splitlines()
        if not 1 <= len(lines) <= 2 or not lines[0].startswith(_COMPLAINT) or "Traceback" in self.err:
            return f"it says {self.err!r}"
        return None


class Forks:
    """Several processes that fork, for several threads at once."""

    def __init__(self, count: int, home: Path, **env: str) -> None:
        """Start them; `env` is for what they run, beside a HOME of its own."""
        self._env = {"HOME": str(home), "XDG_STATE_HOME": str(home / "state"), **env}
        # Branches are counted elsewhere: these are many runs of the same.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        self._all = [
            subprocess.Popen(
                # -P: `tests/matrix` is no place to import from.
                [sys.executable, "-P", str(_FORKS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                text=True,
            )
            for _ in range(count)
        ]
        self._idle: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()
        for process in self._all:
            self._idle.put(process)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._all)

    def run(
        self,
        folder: Path,
        argv: Sequence[str],
        ports: Mapping[str, int],
        *,
        stdin: Path | None = None,
        astray: Astray | None = None,
        warms: bool = False,
    ) -> Ran:
        """Run a command line to its end; `folder` is for what it says.

        `ports` are those of the hosts, whatever port their URLs have. Of `stdin` a pipe is made. One that `warms` is a
        rehearsal: its process is the one from which others will be forked.
        """
        folder.mkdir(parents=True, exist_ok=True)
        nothing = folder / "nothing"
        nothing.touch()
        line = {
            "argv": list(argv),
            "env": {**self._env, "XDG_STATE_HOME": str(folder / "state")},
            "stdin": str(stdin or nothing),
            **{name: str(folder / name) for name in ("stdout", "stderr", "notes")},
            "ports": dict(ports),
            "warms": warms,
            "astray": astray.line() if astray else None,
        }
        process = self._idle.get()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()
            code = int(process.stdout.readline())
        finally:
            self._idle.put(process)
        notes = json.loads((folder / "notes").read_text())
        out, err = ((folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))
        return Ran(code, out, err, notes["waits"], notes["connected"])

    def close(self) -> None:
        """End them."""
        for process in self._all:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.wait()
            process.stdout.close()
