"""The figures as pictures: SVG, written by hand, since two charts of bars and dots need no library."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from tests.benchmarks.jobs import MEMORY, OURS
from tests.benchmarks.measurement import MIB, median

if TYPE_CHECKING:
    from pathlib import Path

    from tests.benchmarks.report import Line

__all__ = ["bars", "dots", "plots"]

#: What README.md promises of every transfer.
PROMISED = 48.0
_WIDTH, _LABEL, _BAR, _GAP = 800, 290, 14, 10
#: Ours, and the others: told apart in print as well.
_COLOURS = {OURS: "#1f6feb"}
_OTHER = "#9aa4b2"


def plots(lines: list[Line], folder: Path) -> None:
    """Draw how fast each tool is at each job, and what memory ours takes."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        (line.job, {name: 1 / median(runs) for name, runs in line.runs.items() if "floor" not in name})
        for line in lines
        if line.throughput and len(line.runs) > 1
    ]
    (folder / "throughput.svg").write_text(bars("Speed beside the quickest (longer is faster)", rows))
    sizes = [line for line in lines if line.job.startswith(MEMORY)]
    if sizes:
        names = [line.job.removeprefix(MEMORY) for line in sizes]
        series = {
            program.removeprefix(f"{OURS} "): [line.peaks[program] / MIB for line in sizes]
            for program in sizes[0].peaks
        }
        (folder / "memory.svg").write_text(
            dots("Peak memory of each end, MiB, by the size of the image", names, series)
        )


def bars(title: str, rows: list[tuple[str, dict[str, float]]]) -> str:
    """Give a chart of bars: for each row its figures, as parts of the largest of that row."""
    parts, y = [], 40.0
    for name, figures in rows:
        largest = max(figures.values())
        parts.append(_text(8, y + 11, name, weight="bold"))
        for tool, figure in figures.items():
            width = (_WIDTH - _LABEL - 150) * figure / largest
            colour = _COLOURS.get(tool, _OTHER)
            parts.append(f'<rect x="{_LABEL}" y="{y:.0f}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>')
            parts.append(_text(_LABEL + width + 6, y + 11, tool))
            y += _BAR + 2
        y += _GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y:.0f}" font-family="sans-serif">'
    ground = f'<rect width="{_WIDTH}" height="{y:.0f}" fill="white"/>'
    return "\n".join([head, ground, _text(8, 22, title, size=15, weight="bold"), *parts, "</svg>", ""])


def dots(title: str, names: list[str], series: dict[str, list[float]], bound: float = PROMISED) -> str:
    """Give a chart of some figures for each of several sizes, in MiB, and the `bound` that they are to stay below."""
    height, left, bottom = 260, 60, 220
    largest = bound * 1.2
    parts = []
    step = (_WIDTH - left - 100) / max(1, len(names) - 1)
    line = bottom - (bottom - 40) * bound / largest
    parts.append(f'<line x1="{left}" x2="{_WIDTH - 20}" y1="{line:.0f}" y2="{line:.0f}" stroke="#d1242f"/>')
    parts.append(_text(_WIDTH - 130, line - 6, f"promised: {bound:g} MiB"))
    for number, name in enumerate(names):
        parts.append(_text(left + 20 + number * step - 18, bottom + 18, name))
    for colour, (tool, figures) in zip((_COLOURS[OURS], "#8250df", _OTHER), series.items(), strict=False):
        for number, figure in enumerate(figures):
            x, y = left + 20 + number * step, bottom - (bottom - 40) * figure / largest
            parts.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4" fill="{colour}"/>')
            parts.append(_text(x + 8, y + 4, f"{tool} {figure:.1f}"))
    axes = f'<path d="M{left} 40 V{bottom} H{_WIDTH - 20}" stroke="black" fill="none"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif">'
    ground = f'<rect width="{_WIDTH}" height="{height}" fill="white"/>'
    return "\n".join([head, ground, _text(8, 22, title, size=15, weight="bold"), axes, *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, *, size: int = 12, weight: str = "normal") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" font-weight="{weight}">{escape(text)}</text>'
