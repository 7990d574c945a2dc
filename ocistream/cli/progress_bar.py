"""The progress bar on a terminal: one line for each active blob, and the total. The only module that imports tqdm."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Final, Self

from tqdm import tqdm

from ocistream.cli.console import TerminalLock
from ocistream.cli.progress import (
    LINE_INTERVAL,
    Progress,
    describe_status,
    human_duration,
    percentage,
)
from ocistream.sizes import format_count, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocistream.cli.console import Console
    from ocistream.cli.progress import ProgressSnapshot
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Root

_DRAW_INTERVAL: Final = 0.1
#: Columns and lines where no terminal reports its size.
_DEFAULT_SIZE: Final = os.terminal_size((80, 24))
#: At most this many blobs have a line. `_OTHER_LINES` are two lines for all blobs and one line of the shell above.
_MAX_BLOB_LINES: Final = 8
_OTHER_LINES: Final = 3
#: Hex characters of a digest, as Docker shows them.
_SHORT_DIGEST: Final = 12
#: The least columns that make a bar useful.
_MIN_BAR_WIDTH: Final = 5
#: The order of the outcomes in the line of finished blobs.
_OUTCOME_ORDER: Final = ("copied", "converted", "verified", "skipped", "mounted", "omitted")
# ECMA-48: up, erase to the end of the line, erase the line. Lines are erased one by one: if all lines below are erased
# at once and fill the screen, tmux copies them to its history.
_CURSOR_UP: Final = "\x1b[{}A"
_ERASE_END: Final = "\x1b[K"
_ERASE_LINE: Final = "\x1b[2K"


class ProgressBar(Progress):
    """An observer that draws a bar within its `with` block, in a thread of its own."""

    interval = _DRAW_INTERVAL

    def __init__(self, console: Console, *, is_explicit: bool) -> None:
        """Draw nothing yet. Unless `is_explicit`, lines replace the bar while other programs may write."""
        super().__init__()
        self._console = console
        self._is_explicit = is_explicit
        #: When the next line is due (monotonic seconds), and how many bytes had moved by then.
        self._next_line = time.monotonic() + LINE_INTERVAL
        self._moved_when_due: int | None = None
        #: Whether another program may write now; then nothing is drawn.
        self._is_suppressed = False
        self._ascii = not _can_encode_blocks()
        #: One bar a terminal: only the process that has the lock draws.
        self._terminal_lock = TerminalLock()
        #: The lines on the terminal; the cursor is at their beginning. Hold `Console.writing` to change them.
        self._drawn_lines: list[str] = []

    def __enter__(self) -> Self:
        self._console.display = self
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_total(self, size: int, blobs: int, roots: Sequence[Root] = ()) -> None:
        """Add to the total, and draw it."""
        super().add_total(size, blobs, roots)
        self._draw()

    def show_blob(self, descriptor: Descriptor, status: str, seconds: float) -> None:  # noqa: ARG002 - a display's method
        """Print a line for a finished blob with -v."""
        self._console.info(f"{describe_status(status)} {descriptor.digest} ({format_size(descriptor.size)})", level=1)

    def tick(self) -> None:
        """Draw, or print a line where nothing may be drawn."""
        self._draw()
        if self._is_line_due():
            self.print_line(self._console)

    def print_above(self, text: str) -> None:
        """Print lines that stay, and the bar below them."""
        with self._console.writing:
            was_drawn = bool(self._drawn_lines)
            if was_drawn:
                self._erase(f"{text}\n")
            else:
                # Where another process draws, the cursor is at the beginning of one of its lines. An echoed ^C has
                # moved the cursor.
                start = self._console.fresh_line() or f"\r{_ERASE_LINE}"
                self._write(f"{start}{text}\n")
        if was_drawn:
            self._draw()

    @contextlib.contextmanager
    def suspend(self) -> Iterator[None]:
        """Erase the bar while the block writes to the same terminal."""
        with self._console.writing:
            self._erase()
            yield

    def close(self) -> None:
        """Draw the final state, then stop drawing."""
        if self._closed.is_set():
            return
        self._draw()
        with self._console.writing:
            self._closed.set()
            self._console.display = None
            self._erase()
            self._terminal_lock.release()

    def _is_line_due(self) -> bool:
        """Return whether to print a line: while nothing moves, the other program may ask for a password."""
        now = time.monotonic()
        if not self._is_suppressed or now < self._next_line:
            return False
        moved = self.snapshot().moved
        if self._moved_when_due is None:
            self._moved_when_due = moved
        if moved == self._moved_when_due:
            return False
        self._next_line, self._moved_when_due = now + LINE_INTERVAL, None
        return True

    def _draw(self) -> None:
        with self._console.writing:
            if self._closed.is_set() or not self.has_started or not self._terminal_lock.acquire():
                self._is_suppressed = False
                return
            size = _terminal_size()
            # An explicit --progress draws beside the other end of a pipe too, but not into a password prompt of ssh.
            self._is_suppressed = self._console.other_programs.can_write(commands_only=self._is_explicit)
            if self._is_suppressed:
                self._erase()
                return
            lines = render_lines(self.snapshot(), size, ascii_only=self._ascii)
            can_overwrite = len(self._drawn_lines) == self._count_rows(size) <= len(lines)
            prefix = "\r" if can_overwrite else self._erase_sequence(size)
            self._write(prefix + f"{_ERASE_END}\r\n".join(lines) + _ERASE_END + _move_to_top(len(lines)))
            self._drawn_lines = lines

    def _count_rows(self, size: os.terminal_size) -> int:
        """Return how many rows the drawn lines fill: a terminal that became narrower wraps them."""
        return sum(max(1, -(-len(line) // size.columns)) for line in self._drawn_lines)

    def _erase_sequence(self, size: os.terminal_size) -> str:
        """Return text that erases the drawn lines and moves the cursor to where they began."""
        rows = self._count_rows(size)
        return f"\r{_ERASE_LINE}" + f"\n{_ERASE_LINE}" * (rows - 1) + _move_to_top(rows) if self._drawn_lines else ""

    def _erase(self, text: str = "") -> None:
        """Erase the drawn lines, and write text in their place."""
        self._write(self._erase_sequence(_terminal_size()) + text)
        self._drawn_lines = []

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            if text and sys.stderr is not None:
                sys.stderr.write(text)
                sys.stderr.flush()


def _move_to_top(rows: int) -> str:
    """Return text that moves the cursor from the last of `rows` rows to the beginning of the first."""
    return "\r" + (_CURSOR_UP.format(rows - 1) if rows > 1 else "")


def render_lines(state: ProgressSnapshot, size: os.terminal_size, *, ascii_only: bool = False) -> list[str]:
    """Return the lines to draw, each shorter than the terminal is wide.

    tqdm formats each bar, but not several bars at once: it cannot erase them after the terminal became narrower.
    """
    width = size.columns - 1
    shown = max(0, min(_MAX_BLOB_LINES, size.lines - 1 - _OTHER_LINES))
    blobs = state.active_blobs[:shown]
    lines = []
    for digest, total, moved, rate in blobs:
        name = f"{digest.partition(':')[2][:_SHORT_DIGEST] or 'a layer':{_SHORT_DIGEST}}"
        speed = f"{format_size(rate)}/s"
        if total:
            sizes = f"{format_size(moved)} of {format_size(total)}"
            texts = [f"{sizes}, {speed}", sizes, format_size(total)]
            lines.append(_format_bar(f"{name} ", texts, moved, total, width, ascii_only))
        else:
            lines.append(f"{name}      {format_size(moved)}, {speed}"[:width])
    if size.lines > _OTHER_LINES:
        lines.append(_format_counts(state, len(state.active_blobs) - len(blobs))[:width])
    speed = f"{format_size(state.rate)}/s"
    if state.total is None:
        return [*lines, f"{format_size(state.moved)}, {speed}"[:width]]
    sizes = f"{format_size(state.moved)} of {format_size(state.total)}"
    left = [f"{human_duration(state.seconds_left)} left"] if state.seconds_left else []
    texts = [", ".join(parts) for parts in ([sizes, speed, *left], [sizes, *left], [sizes], left)]
    return [*lines, _format_bar("", texts, state.moved, state.total, width, ascii_only)]


def _format_counts(state: ProgressSnapshot, hidden: int) -> str:
    """Return the line of finished blobs; `hidden` blobs move without a line of their own."""
    text = f"{state.done_count} blobs"
    if state.blob_count is not None:
        text = f"{state.done_count} of {format_count(max(state.blob_count, state.done_count), 'blob')}"
    parts = [
        f"{state.outcomes[status]} {describe_status(status)}" for status in _OUTCOME_ORDER if state.outcomes.get(status)
    ]
    if state.images is not None:
        parts.append(f"{state.images[0]} of {format_count(state.images[1], 'image')}")
    text = ": ".join([text, *parts[:1]])
    return ", ".join([text, *parts[1:], *([f"{hidden} more in progress"] if hidden else [])])


def _format_bar(name: str, texts: Sequence[str], moved: int, total: int, width: int, ascii_only: bool) -> str:
    """Return a name, a percentage, a bar, and the first of `texts` that leaves space for the bar, if any."""
    start = f"{name}{percentage(moved, total):3}%|"
    chosen = next((text for text in texts if len(start) + len(text) + _MIN_BAR_WIDTH + 2 <= width), "")
    # tqdm draws no bar without a total.
    text: str = tqdm.format_meter(
        moved if total else 1, total or 1, 0, ncols=width, ascii=ascii_only, bar_format=f"{start}{{bar}}| {chosen}"
    )
    return text[:width].rstrip()


def _terminal_size() -> os.terminal_size:
    """Return the current size of the terminal; some terminals report 0, which is replaced by the default."""
    try:
        size = os.get_terminal_size(2)
    except (OSError, ValueError):
        return _DEFAULT_SIZE
    return size if size.columns > 1 and size.lines > 0 else _DEFAULT_SIZE


def _can_encode_blocks() -> bool:
    try:
        "█▏".encode(getattr(sys.stderr, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
