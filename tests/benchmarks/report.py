"""The results of the benchmarks as a Markdown table with one line for each job."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tests.benchmarks.jobs import OURS
from tests.benchmarks.measurement import MIB, median

if TYPE_CHECKING:
    from tests.benchmarks.jobs import Job
    from tests.benchmarks.measurement import Run

__all__ = ["Line", "line_of", "table"]

_COLUMNS = ("job", "ratio", "goal", "compared with", "times of others", "MiB/s", "CPU s", "CPU s of others", "peak MiB")


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
    )


def table(lines: list[Line], *, heading: bool = True) -> str:
    """Return lines of a Markdown table."""
    rows = [_COLUMNS, tuple("---" for _ in _COLUMNS)] if heading else []
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
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in escaped)


def _format_goal(line: Line, unit: str) -> str:
    """Return the goal of a job, and whether the run missed it; "" if the job has no goal."""
    if line.goal is None:
        return ""
    # Rounded as in the table: 0.704 does not miss 0.70.
    is_missed = round(line.ratio, 2) > round(line.goal, 2)
    return f"{line.goal:.2f}{unit}{', **missed**' if is_missed else ''}"
