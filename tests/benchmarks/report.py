"""The results of the benchmarks as Markdown tables: a line for each job, and where the time of missed ones goes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tests.benchmarks.jobs import OURS
from tests.benchmarks.measurement import MIB, median

if TYPE_CHECKING:
    from tests.benchmarks.jobs import Job
    from tests.benchmarks.measurement import Run

_COLUMNS = ("job", "ratio", "goal", "compared with", "times of others", "MiB/s", "CPU s", "CPU s of others", "peak MiB")
_PLACES = (
    "missed job",
    "s",
    "CPU s: SHA-256",
    "start",
    "rest",
    "servers, cat",
    "idle",
    "compared with: s, CPU s, servers, idle",
)


@dataclasses.dataclass(frozen=True)
class Line:
    """The figures of one job. `ratio` is our time divided by that of `beside`, the fastest other tool; or seconds."""

    job: str
    ratio: float
    goal: float | None
    beside: str | None
    #: The median times of the other tools, divided by ours, and their median CPU seconds.
    others: dict[str, float]
    others_cpu: dict[str, float]
    #: Bytes that are copied; 0 if a rate would be meaningless.
    size: int
    #: Our bytes per second, CPU seconds, and the peak memory of each of our processes in bytes.
    throughput: float
    cpu: float
    peaks: dict[str, int]
    runs: dict[str, list[Run]]
    #: Bytes that ocistream hashes.
    hashed: int = 0

    @property
    def is_missed(self) -> bool:
        """Whether the run missed the goal. Both are rounded as in the table: 0.704 does not miss 0.70."""
        return self.goal is not None and round(self.ratio, 2) > round(self.goal, 2)


def line_of(job: Job, found: dict[str, list[Run]]) -> Line:
    """Return the figures of one job."""
    ours = found[OURS]
    mine = median(ours)
    rivals = [name for name in job.rivals if name in found]
    beside = min(rivals, key=lambda name: median(found[name])) if rivals else None
    ratio = mine / median(found[beside]) if beside else mine
    others = {name: median(runs) / mine for name, runs in found.items() if name != OURS}
    others_cpu = {name: median(found[name], "cpu") for name in others}
    programs = sorted({program for run in ours for program in run.peaks if program.startswith(OURS)})
    peaks = {program: max(run.peaks.get(program, 0) for run in ours) for program in programs}
    return Line(
        job.name,
        ratio,
        job.goal if beside or job.is_goal_in_seconds else None,
        beside,
        others,
        others_cpu,
        job.size,
        job.size / mine,
        median(ours, "cpu"),
        peaks,
        found,
        job.hashed,
    )


def table(lines: list[Line], *, heading: bool = True) -> str:
    """Return lines of a Markdown table."""
    rows: list[tuple[str, ...]] = [_COLUMNS, tuple("---" for _ in _COLUMNS)] if heading else []
    for line in lines:
        unit = "" if line.beside else " s"
        rows.append(
            (
                line.job,
                f"{line.ratio:.2f}{unit}",
                _format_goal(line, unit),
                line.beside or "",
                ", ".join(f"{name} {ratio:.2f}" for name, ratio in line.others.items()),
                f"{line.throughput / MIB:.0f}" if line.throughput else "",
                f"{line.cpu:.2f}",
                ", ".join(f"{name} {cpu:.2f}" for name, cpu in line.others_cpu.items()),
                " / ".join(f"{peak / MIB:.1f}" for peak in line.peaks.values()),
            )
        )
    return _format_rows(rows)


def breakdown(lines: list[Line], rate: float, start: float) -> str:
    """Return a table of where the time of the missed jobs goes.

    `rate` is how many bytes a processor hashes in a second, `start` the CPU seconds of a command that does little.
    """
    rows: list[tuple[str, ...]] = [_PLACES, tuple("---" for _ in _PLACES)]
    for line in lines:
        if not line.is_missed:
            continue
        ours = line.runs[OURS]
        hashing, starting = line.hashed / rate, min(line.cpu, start * max(1, len(line.peaks)))
        row = [line.job, f"{median(ours):.2f}", f"{hashing:.2f}", f"{starting:.2f}"]
        row.append(f"{max(0.0, line.cpu - hashing - starting):.2f}")
        row += [f"{median(ours, what):.2f}" for what in ("others", "idle")]
        if line.beside is not None:
            rival = line.runs[line.beside]
            figures = ", ".join(f"{median(rival, what):.2f}" for what in ("seconds", "cpu", "others", "idle"))
            row.append(f"{line.beside}: {figures}")
        else:
            row.append("")
        rows.append(tuple(row))
    return _format_rows(rows)


def _format_rows(rows: list[tuple[str, ...]]) -> str:
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in escaped)


def _format_goal(line: Line, unit: str) -> str:
    """Return the goal of a job, and whether the run missed it; "" if the job has no goal."""
    if line.goal is None:
        return ""
    return f"{line.goal:.2f}{unit}{', **missed**' if line.is_missed else ''}"
