"""Draw the results as SVG: a bar chart of speeds, and a chart of peak memory by image size."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from tests.benchmarks.jobs import BASELINES, MEMORY, OURS
from tests.benchmarks.measurement import MIB, median

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.benchmarks.report import Line

#: The bound that README.md promises for every copy, in MiB.
MEMORY_BOUND = 48.0
_WIDTH, _LEFT, _RIGHT = 1040, 370, 310
_BAR_HEIGHT, _GAP = 14, 10
_OUR_COLOR, _OTHER_COLOR, _SECOND_COLOR, _BOUND_COLOR, _GRID_COLOR = (
    "#1f6feb",
    "#9aa4b2",
    "#8250df",
    "#d1242f",
    "#e3e6ea",
)


def write_plots(lines: Sequence[Line], folder: Path) -> None:
    """Write `throughput.svg` for all jobs with several tools, and `memory.svg` for the jobs that measure memory."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        (line.job, {tool: (median(runs), line.size) for tool, runs in line.runs.items() if tool not in BASELINES})
        for line in lines
        if len(line.runs) > 1 and line.beside
    ]
    (folder / "throughput.svg").write_text(bar_chart(rows))
    memory = [line for line in lines if line.job.startswith(MEMORY)]
    if memory:
        sizes = [line.size // MIB for line in memory]
        series = {
            program.removeprefix(f"{OURS} "): [line.peaks[program] / MIB for line in memory]
            for program in memory[0].peaks
        }
        (folder / "memory.svg").write_text(memory_chart(sizes, series))


def bar_chart(rows: Sequence[tuple[str, dict[str, tuple[float, int]]]]) -> str:
    """Return a bar chart. A row is a job with seconds and bytes by tool; the fastest tool of a job has the value 1."""
    scale = _WIDTH - _LEFT - _RIGHT
    bars: list[str] = []
    y = 58.0
    for job, figures in rows:
        fastest = min(seconds for seconds, _ in figures.values())
        bars.append(_text(8, y + 11, job, weight="bold"))
        for tool, (seconds, size) in figures.items():
            width = scale * fastest / seconds
            color = _OUR_COLOR if tool == OURS else _OTHER_COLOR
            bars.append(f'<rect x="{_LEFT}" y="{y:.0f}" width="{width:.1f}" height="{_BAR_HEIGHT}" fill="{color}"/>')
            rate = f", {size / seconds / MIB:.0f} MiB/s" if size >= 64 * MIB else ""
            bars.append(_text(_LEFT + width + 6, y + 11, f"{tool}: {seconds:.2f} s{rate}"))
            y += _BAR_HEIGHT + 2
        y += _GAP
    bottom = y - _GAP + 4
    grid: list[str] = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = _LEFT + scale * tick
        grid.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="50" y2="{bottom:.0f}" stroke="{_GRID_COLOR}"/>')
        grid.append(_text(x, bottom + 16, f"{tick:g}", anchor="middle"))
    grid.append(
        _text(_LEFT + scale / 2, bottom + 34, "speed, as a fraction of the fastest tool (1 = fastest)", anchor="middle")
    )
    head = [_text(8, 22, "Speed by job", size=15, weight="bold"), _text(8, 40, "Labels: median seconds, and the rate.")]
    return _document(round(bottom + 44), [*head, *grid, *bars])


def memory_chart(sizes: Sequence[int], series: Mapping[str, Sequence[float]], bound: float = MEMORY_BOUND) -> str:
    """Return a chart of peak memory in MiB by image size in MiB, with the promised `bound`."""
    top, bottom, left, right = 50, 250, 70, _WIDTH - 40
    largest = 60.0

    def y_of(value: float) -> float:
        return bottom - (bottom - top) * value / largest

    parts: list[str] = []
    for tick in range(0, 61, 10):
        y = y_of(tick)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.0f}" y2="{y:.0f}" stroke="{_GRID_COLOR}"/>')
        parts.append(_text(left - 8, y + 4, str(tick), anchor="end"))
    parts.append(
        f'<line x1="{left}" x2="{right}" y1="{y_of(bound):.0f}" y2="{y_of(bound):.0f}" stroke="{_BOUND_COLOR}"/>'
    )
    parts.append(_text(right, y_of(bound) - 6, f"promised: less than {bound:g} MiB", anchor="end"))
    step = (right - left - 160) / max(1, len(sizes) - 1)
    for number, size in enumerate(sizes):
        parts.append(_text(left + 50 + number * step, bottom + 18, f"{size}", anchor="middle"))
    for color, (program, figures) in zip((_OUR_COLOR, _SECOND_COLOR), series.items(), strict=False):
        for number, figure in enumerate(figures):
            x, y = left + 50 + number * step, y_of(figure)
            parts.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4" fill="{color}"/>')
            parts.append(_text(x + 8, y + 4, f"{program} {figure:.1f}"))
    parts.append(f'<path d="M{left} {top} V{bottom} H{right}" stroke="black" fill="none"/>')
    parts.append(_text((left + right) / 2, bottom + 38, "size of the image (MiB)", anchor="middle"))
    parts.append(_text(left - 50, top - 10, "peak memory (MiB)"))
    title = _text(8, 22, "Peak memory of each process of `pull | push`", size=15, weight="bold")
    return _document(bottom + 50, [title, *parts])


def _document(height: int, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif">'
    background = f'<rect width="{_WIDTH}" height="{height}" fill="white"/>'
    return "\n".join([head, background, *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, *, size: int = 12, weight: str = "normal", anchor: str = "start") -> str:
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x:.0f}" y="{y:.0f}" {style}>{escape(text)}</text>'
