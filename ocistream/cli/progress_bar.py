"""The bar on a terminal: a line for each blob under way, and the total below them. The only import of tqdm.

All of it is drawn anew, several times a second, over what was drawn before, by a thread of its own: so a transfer that
stands still is seen to, and who moves bytes never waits for a terminal. It is asked each time how large it is.

Between two drawings the cursor stands at the beginning of what is drawn. Another ocistream on the terminal takes turns
(`turn`) and begins its messages there. Beside any other program that may write, nothing is drawn (`neighbours` says
why), and lines say how far the transfer is.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from tqdm import tqdm

from ocistream.cli.progress_lines import LINE_EVERY, ProgressLine
from ocistream.cli.progress_state import Account, counted, human_size, human_time, share
from ocistream.cli.terminal_lock import Turn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocistream.cli.console import Console
    from ocistream.cli.progress_state import State
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph

__all__ = ["Bar", "frame"]

_EVERY: Final = 0.1
#: Columns and lines, where nobody can be asked.
_SIZE: Final = os.terminal_size((80, 24))
#: At most so many blobs have a line; below them are two lines for all, and above one of the shell's is left.
_BLOBS: Final = 8
_OTHERS: Final = 3
#: Hex characters of a digest, as Docker shows them.
_SHORT: Final = 12
#: Below so many columns a bar says nothing.
_MIN_BAR: Final = 5
#: In which order things are said of blobs that are done, and how.
_HOW: Final = ("copied", "converted", "verified", "skipped", "mounted", "left out")
# ECMA-48: up, erase to the end of the line, or all of it. Lines are erased one by one: what erases all below has tmux
# keep a copy, where it is all of the screen.
_UP: Final = "\x1b[{}A"
_ERASE_END: Final = "\x1b[K"
_ERASE_LINE: Final = "\x1b[2K"


class Bar:
    """An observer that draws, as long as it is entered."""

    def __init__(self, console: Console, *, is_asked_for: bool = True) -> None:
        """Draw nothing yet. Unless the bar `is_asked_for`, lines are printed while other programs may write."""
        self._console = console
        self._is_asked_for = is_asked_for
        self._account = Account()
        self._lines = ProgressLine(console, self._account)
        #: When the next line is due (monotonic), and how many bytes had moved by then.
        self._line_due = time.monotonic() + LINE_EVERY
        self._moved_by_then: int | None = None
        #: Whether another program may write now, so that nothing is drawn.
        self._gives_way = False
        self._ascii = not _takes_blocks()
        #: Whether it is us who draw: on one terminal, one bar.
        self._turn = Turn()
        #: What is drawn, line by line, the cursor being at its beginning; who writes to stderr has the lock.
        self._drawn: list[str] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._draw_on, daemon=True)

    def __enter__(self) -> Self:
        self._console.drawing = self
        # Where there are to be no more threads, there is no bar.
        with contextlib.suppress(RuntimeError):
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def planned(self, graph: Graph) -> None:
        """Learn the total."""
        self._account.planned(graph)
        self._draw()

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """Count; who draws looks at it later."""
        self._account.advance(size, descriptor)

    def done(self, descriptor: Descriptor, how: str) -> None:
        """Count a blob, and say so to who wants to know more."""
        self._account.done(descriptor, how)
        self._console.note(f"{how} {descriptor.digest} ({human_size(descriptor.size)})", level=1)

    def reached(self, number: int, count: int) -> None:
        """Count images, where there are many."""
        self._account.images = number, count

    def above(self, text: str) -> None:
        """Print lines that stay, and the bar below them."""
        with self._lock:
            again = bool(self._drawn)
            # Where another process draws, the cursor is at the beginning of a line of its.
            # What a terminal echoes (^C) has moved it on.
            before = self._erasure(_size()) if again else self._console.fresh_line() or f"\r{_ERASE_LINE}"
            self._write(f"{before}{text}\n")
            self._drawn = []
        if again:
            self._draw()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Have nothing drawn while something else is written to the same terminal."""
        with self._lock:
            self._write(self._erasure(_size()))
            self._drawn = []
            yield

    def end(self) -> None:
        """Draw how it ended, and then nothing any more."""
        if self._stop.is_set():
            return
        self._draw()
        with self._lock:
            self._stop.set()
            self._console.drawing = None
            self._write(self._erasure(_size()))
            self._drawn = []
            self._turn.give_up()

    def _draw_on(self) -> None:
        while not self._stop.wait(_EVERY):
            self._draw()
            if self._is_line_due():
                self._lines.say()

    def _is_line_due(self) -> bool:
        """Say whether to print a line: while nothing moves, the other program may be asking for a password."""
        now = time.monotonic()
        if not self._gives_way or now < self._line_due:
            return False
        moved = self._account.state().moved
        if self._moved_by_then is None:
            self._moved_by_then = moved
        if moved == self._moved_by_then:
            return False
        self._line_due, self._moved_by_then = now + LINE_EVERY, None
        return True

    def _draw(self) -> None:
        with self._lock:
            if self._stop.is_set() or not self._account.has_begun or not self._turn.take():
                self._gives_way = False
                return
            size = _size()
            # What was asked for is drawn beside the other end of a pipe too, but not into ssh's password prompt.
            self._gives_way = self._console.neighbours.may_write(commands_only=self._is_asked_for)
            if self._gives_way:
                self._write(self._erasure(size))
                self._drawn = []
                return
            lines = frame(self._account.state(), size, ascii_only=self._ascii)
            over = len(self._drawn) == self._rows(size) <= len(lines)
            top = "\r" if over else self._erasure(size)
            self._write(top + f"{_ERASE_END}\r\n".join(lines) + _ERASE_END + _to_top(len(lines)))
            self._drawn = lines

    def _rows(self, size: os.terminal_size) -> int:
        """Say how many rows what is drawn has: a terminal that has become narrower breaks lines in several."""
        return sum(max(1, -(-len(line) // size.columns)) for line in self._drawn)

    def _erasure(self, size: os.terminal_size) -> str:
        """Erase what is drawn, and go back to where it began."""
        rows = self._rows(size)
        return f"\r{_ERASE_LINE}" + f"\n{_ERASE_LINE}" * (rows - 1) + _to_top(rows) if self._drawn else ""

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            if text and sys.stderr is not None:
                sys.stderr.write(text)
                sys.stderr.flush()


def _to_top(rows: int) -> str:
    """Go from the last of so many rows to the beginning of the first."""
    return "\r" + (_UP.format(rows - 1) if rows > 1 else "")


def frame(state: State, size: os.terminal_size, *, ascii_only: bool = False) -> list[str]:
    """Give what is to be drawn, line by line, each shorter than the terminal is wide."""
    width = size.columns - 1
    shown = max(0, min(_BLOBS, size.lines - 1 - _OTHERS))
    blobs = state.under_way[:shown]
    lines = []
    for digest, total, moved, rate in blobs:
        name = digest.partition(":")[2][:_SHORT] or "a layer"
        sizes, speed = f"{human_size(moved)} of {human_size(total)}", f"{human_size(rate)}/s"
        if total:
            says = [f"{sizes}, {speed}", sizes, human_size(total), ""]
            lines.append(_meter(f"{name:{_SHORT}} {share(moved, total):3}%", says, moved, total, width, ascii_only))
        else:
            lines.append(f"{name:{_SHORT}}      {human_size(moved)}, {speed}"[:width])
    if size.lines > _OTHERS:
        lines.append(_counts(state, len(state.under_way) - len(blobs))[:width])
    lines.append(_total(state, width, ascii_only=ascii_only))
    return lines


def _counts(state: State, hidden: int) -> str:
    of = f" of {counted(max(state.blobs, state.done), 'blob')}" if state.blobs is not None else ""
    parts = [f"{state.how[how]} {how}" for how in _HOW if state.how.get(how)]
    if state.images is not None:
        parts = [*parts, f"{state.images[0]} of {counted(state.images[1], 'image')}"]
    more = [f"{hidden} more under way"] if hidden else []
    return ", ".join([f"{state.done}{of or ' blobs'}" + (f": {parts[0]}" if parts else ""), *parts[1:], *more])


def _total(state: State, width: int, *, ascii_only: bool) -> str:
    speed = f"{human_size(state.rate)}/s"
    if state.total is None:
        return f"{human_size(state.moved)}, {speed}"[:width]
    sizes = f"{human_size(state.moved)} of {human_size(state.total)}"
    left = f"{human_time(state.left)} left" if state.left else ""
    says = [
        ", ".join(text for text in texts if text) for texts in ((sizes, speed, left), (sizes, left), (sizes,), (left,))
    ]
    return _meter(f"{state.percent:3}%", [*says, ""], state.moved, state.total, width, ascii_only)


def _meter(
    name: str,
    says: Sequence[str],
    moved: int,
    total: int,
    width: int,
    ascii_only: bool,
) -> str:
    """Give a name, a bar, and the first of what may be said that leaves room for one."""
    said = next(text for text in says if not text or len(name) + len(text) + _MIN_BAR + 3 <= width)
    form = f"{name}|{{bar}}| {said}"
    if not total:
        moved = total = 1
    text: str = tqdm.format_meter(moved, total, 0, ncols=width, ascii=ascii_only, bar_format=form)
    return text[:width].rstrip()


def _size() -> os.terminal_size:
    """Ask for the size of the terminal, which may have changed; some say 0."""
    try:
        size = os.get_terminal_size(2)
    except (OSError, ValueError):
        return _SIZE
    return size if size.columns > 1 and size.lines > 0 else _SIZE


def _takes_blocks() -> bool:
    try:
        "█▏".encode(getattr(sys.stderr, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
