"""Run commands, and measure time and memory. Compare only ratios of medians: times depend on the machine."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20
_LAUNCH = Path(__file__).with_name("launch.py")


class FailedError(Exception):
    """A command failed; the message is the end of its stderr."""


@dataclass(frozen=True)
class Command:
    """One process: arguments, additional environment variables, and files for stdin and stdout."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    stdin: Path | None = None
    stdout: Path | None = None


#: Pipelines that run one after the other.
Work = list[list[Command]]


@dataclass(frozen=True)
class Run:
    """Seconds from start to end, CPU seconds of all processes, and the peak memory of each program in bytes.

    `others` is the CPU seconds of all other processes of the machine in this time: the servers.
    """

    seconds: float
    cpu: float
    peaks: dict[str, int]
    others: float = 0.0

    @property
    def peak(self) -> int:
        """The highest peak of all programs."""
        return max(self.peaks.values())

    @property
    def idle(self) -> float:
        """The seconds in which a processor had nothing to do, of all processors."""
        return max(0.0, self.seconds * (os.cpu_count() or 1) - self.cpu - self.others)


def measured(work: Work) -> Run:
    """Run the pipelines and return the measurements.

    Raises:
        FailedError: a process had another exit code than 0.
    """
    steps = [
        [
            {
                "argv": command.argv,
                "env": command.env,
                "stdin": str(command.stdin) if command.stdin else None,
                "stdout": str(command.stdout) if command.stdout else None,
            }
            for command in pipeline
        ]
        for pipeline in work
    ]
    document = json.dumps({"steps": steps})
    busy = _busy_seconds()
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(_LAUNCH), document], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise FailedError(done.stderr[-500:])
    found = json.loads(done.stdout.splitlines()[-1])
    if any(found["codes"]):
        raise FailedError(f"exit codes {found['codes']}: {done.stderr[-500:].strip()}")
    others = max(0.0, _busy_seconds() - busy - found["cpu"])
    return Run(found["seconds"], found["cpu"], found["peaks"], others)


def _busy_seconds() -> float:
    """Return the CPU seconds of all processors since the machine started; 0 where the system does not tell."""
    try:
        user, nice, system, _idle, _io, *interrupts = map(
            int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
        )
    except OSError:
        return 0.0
    return (user + nice + system + sum(interrupts[:2])) / os.sysconf("SC_CLK_TCK")


def hash_rate(size: int = 1 << 28) -> float:
    """Return how many bytes one processor hashes in a second by SHA-256."""
    buffer = bytes(1 << 18)
    began = time.thread_time()
    for _ in range(size // len(buffer)):
        hashlib.sha256(buffer)
    return size / (time.thread_time() - began)


def median(runs: list[Run], what: str = "seconds") -> float:
    """Return the median of one figure of several runs."""
    return float(statistics.median(getattr(run, what) for run in runs))
