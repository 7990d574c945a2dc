"""Run commands, and measure time and memory. Compare only ratios of medians: times depend on the machine."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["MIB", "Command", "FailedError", "Run", "Work", "measured", "median"]

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
    """Seconds from start to end, CPU seconds of all processes, and the peak memory of each program in bytes."""

    seconds: float
    cpu: float
    peaks: dict[str, int]

    @property
    def peak(self) -> int:
        """The highest peak of all programs."""
        return max(self.peaks.values())


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
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(_LAUNCH), document], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise FailedError(done.stderr[-500:])
    found = json.loads(done.stdout.splitlines()[-1])
    if any(found["codes"]):
        raise FailedError(f"exit codes {found['codes']}: {done.stderr[-500:].strip()}")
    return Run(found["seconds"], found["cpu"], found["peaks"])


def median(runs: list[Run], what: str = "seconds") -> float:
    """Return the median of one figure of several runs."""
    return float(statistics.median(getattr(run, what) for run in runs))
