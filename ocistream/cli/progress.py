"""Progress of a transfer: the observer that counts, and its displays: a bar, lines, or JSON events.

Each display is an observer that adds its output to the numbers of `Progress`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from ocistream.cli.console import TerminalLock
from ocistream.limits import MAX_CONFIG
from ocistream.sizes import format_count, format_size
from ocistream.streams.workers import start

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocistream.cli.console import Console
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph, Root

#: Seconds over which a rate is measured, and between two samples.
_RATE_WINDOW: Final = 10.0
_SAMPLE_EVERY: Final = 0.25
#: Least seconds of data for an estimate of the remaining time.
_MIN_RATE_TIME: Final = 1.0
#: No chunk is larger. A larger count is data that was stored before; it does not count for the rate.
_LARGEST_CHUNK: Final = MAX_CONFIG
#: Seconds between two lines, and before the first one: a short run prints only its summary.
_LINE_INTERVAL: Final = 5.0
#: The beginning and end of a section in the logs of CIs that support them; the fields are a unique name, seconds and a
#: title.
_LOG_SECTIONS: Final = {
    # docs.github.com, "Workflow commands for GitHub Actions", "Grouping log lines".
    "GITHUB_ACTIONS": ("::group::{title}", "::endgroup::"),
    # docs.gitlab.com, "CI/CD job logs", "Custom collapsible sections".
    "GITLAB_CI": (
        "\x1b[0Ksection_start:{now}:{name}[collapsed=true]\r\x1b[0K{title}",
        "\x1b[0Ksection_end:{now}:{name}\r\x1b[0K",
    ),
}
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
#: The order of the statuses in the line of finished blobs.
_STATUS_ORDER: Final = ("copied", "converted", "verified", "skipped", "mounted", "omitted")
# ECMA-48: up, erase to the end of the line, erase the line. Lines are erased one by one: if all lines below are erased
# at once and fill the screen, tmux copies them to its history.
_CURSOR_UP: Final = "\x1b[{}A"
_ERASE_END: Final = "\x1b[K"
_ERASE_LINE: Final = "\x1b[2K"


def format_remaining_time(seconds: float) -> str:
    """Return a remaining time for people: `95 s`, `12 min`, `3 h 20 min`, `5 days`; at least `1 s`."""
    if seconds < 120:
        return f"{max(1, seconds):.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds // 3_600:.0f} h {seconds % 3_600 // 60:.0f} min"
    return f"{seconds / 86_400:.0f} days"


def _describe_status(status: str) -> str:
    """Return the status of a blob for people: a layer is converted by recompressing it."""
    return "recompressed" if status == "converted" else status


def _percentage(moved: int, total: int) -> int:
    """Return a percentage, rounded down."""
    return 100 * moved // total if total else 100


class TransferRate:
    """Bytes per second over the last ten seconds. Bytes that are taken back still count as moved."""

    def __init__(self) -> None:
        """Start the measurement at the first byte, without the wait for it."""
        self._total_bytes = 0
        #: Pairs of a time (seconds) and how many bytes had moved by then.
        self._samples: deque[tuple[float, int]] = deque()

    def add_bytes(self, now: float, size: int) -> None:
        """Record that bytes moved, or were taken back (negative `size`)."""
        if not self._samples or now - self._samples[-1][0] >= _SAMPLE_EVERY:
            self._samples.append((now, self._total_bytes))
            self._drop_old_samples(now)
        if 0 < size <= _LARGEST_CHUNK:
            self._total_bytes += size

    def is_reliable(self, now: float) -> bool:
        """Return whether there is enough data to estimate the remaining time."""
        return bool(self._samples) and now - self._samples[0][0] >= _MIN_RATE_TIME

    def bytes_per_second(self, now: float) -> float:
        """Return the rate at the time `now`."""
        if not self._samples:
            return 0.0
        self._drop_old_samples(now)
        start, start_bytes = self._samples[0]
        return (self._total_bytes - start_bytes) / max(now - start, _SAMPLE_EVERY)

    def _drop_old_samples(self, now: float) -> None:
        while len(self._samples) > 1 and self._samples[1][0] <= now - _RATE_WINDOW:
            self._samples.popleft()


class _ActiveBlob:
    """A blob that moves now: bytes `moved` so far, and when it was started (monotonic seconds)."""

    def __init__(self, descriptor: Descriptor, started_at: float) -> None:
        self.descriptor = descriptor
        self.started_at = started_at
        self.moved = 0
        self.rate = TransferRate()

    def snapshot(self, now: float) -> tuple[str, int, int, float]:
        size = self.descriptor.size
        moved = max(0, min(self.moved, size or self.moved))
        return self.descriptor.digest, size, moved, self.rate.bytes_per_second(now)


class ProgressSnapshot(NamedTuple):
    """The state of a transfer: sizes in bytes, `rate` in bytes per second, `seconds_left` None if unknown.

    `total` and `blob_count` are None before the total is known. `status_counts` counts finished blobs by status.
    `active_blobs` are digest ("" if not known yet), size, bytes moved and rate of the blobs that move now. `images` is
    how many images are done, and of how many, where there are many.
    """

    moved: int
    total: int | None
    rate: float
    seconds_left: float | None
    blob_count: int | None
    status_counts: dict[str, int]
    active_blobs: list[tuple[str, int, int, float]]
    images: tuple[int, int] | None = None

    @property
    def percent(self) -> int:
        """The percentage of the total that has moved, rounded down: 100 means complete."""
        return _percentage(self.moved, self.total or 0)

    @property
    def done_count(self) -> int:
        """How many blobs are finished, with any status."""
        return sum(self.status_counts.values())


class Progress:
    """An observer that counts what has moved, what moves now and how fast. Any thread may call it.

    A display is a subclass. Its `tick` is called every `interval` seconds within the `with` block, in a thread of its
    own, so a terminal that is paused (^S) does not block the threads that move bytes.
    """

    interval = 0.0

    def __init__(self, console: Console) -> None:
        """Start at zero. A display prints to the console."""
        self._console = console
        self._lock = threading.Lock()
        self._total: int | None = None
        self._blob_count: int | None = None
        self._moved = 0
        self._status_counts: Counter[str] = Counter()
        self._active_blobs: dict[str, _ActiveBlob] = {}
        self._rate = TransferRate()
        self._images: tuple[int, int] | None = None
        self.has_started = False
        self._has_printed_total = False
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        # If the system allows no more threads, nothing is displayed.
        with contextlib.suppress(RuntimeError):
            start(self._tick_until_closed, "progress")
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def tick(self) -> None:
        """Update the display."""

    def _tick_until_closed(self) -> None:
        while not self._closed.wait(self.interval):
            self.tick()

    def planned(self, graph: Graph) -> None:
        """Add a graph to the total."""
        self.add_total(graph.size, len(graph.blobs), graph.roots)

    def add_total(self, size: int, blobs: int, roots: Sequence[Root] = ()) -> None:  # noqa: ARG002 - a display shows them
        """Add bytes and blobs to the total, or remove some (negative)."""
        with self._lock:
            self._total = (self._total or 0) + size
            self._blob_count = (self._blob_count or 0) + blobs
            self.has_started = True

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """Add bytes, or take some back (negative `size`)."""
        now = time.monotonic()
        with self._lock:
            self.has_started = True
            self._moved += size
            if descriptor is not None:
                self._rate.add_bytes(now, size)
                active_blob = self._active_blobs.get(descriptor.digest)
                if active_blob is None:
                    active_blob = self._active_blobs[descriptor.digest] = _ActiveBlob(descriptor, now)
                active_blob.moved += size
                active_blob.rate.add_bytes(now, size)

    def done(self, descriptor: Descriptor, status: str) -> None:
        """Count a finished blob."""
        with self._lock:
            self._status_counts[status] += 1
            # A blob that had no digest yet moves alone, and has its digest now.
            active_blob = self._active_blobs.pop(descriptor.digest, None) or self._active_blobs.pop("", None)
        seconds = time.monotonic() - active_blob.started_at if active_blob is not None else 0.0
        self.show_blob(descriptor, status, seconds)

    def show_blob(self, descriptor: Descriptor, status: str, seconds: float) -> None:  # noqa: ARG002 - a display shows it
        """Print a line for a finished blob with -v; it was active for so many seconds."""
        self._console.info(f"{_describe_status(status)} {descriptor.digest} ({format_size(descriptor.size)})", level=1)

    def report_images(self, number: int, count: int) -> None:
        """Set how many images are done, and of how many."""
        self._images = number, count

    def snapshot(self) -> ProgressSnapshot:
        """Return the current state. Numbers stay within 0 and the total, even if bytes were counted twice."""
        now = time.monotonic()
        with self._lock:
            total = self._total
            moved = max(0, self._moved if total is None else min(self._moved, total))
            rate = self._rate.bytes_per_second(now)
            seconds_left = None
            if total is not None and ((rate > 0 and self._rate.is_reliable(now)) or moved == total):
                seconds_left = (total - moved) / rate if moved < total else 0.0
            active_blobs = [active_blob.snapshot(now) for active_blob in self._active_blobs.values()]
            counts = dict(self._status_counts)
            return ProgressSnapshot(
                moved, total, rate, seconds_left, self._blob_count, counts, active_blobs, self._images
            )

    def print_state(self) -> None:
        """Print the current state as one line; before the first one, print the total."""
        state = self.snapshot()
        if state.total is not None and not self._has_printed_total:
            self._has_printed_total = True
            self._console.info(f"{format_count(state.blob_count or 0, 'blob')}, {format_size(state.total)} in all")
        parts = [format_size(state.moved)]
        if state.total is not None:
            parts = [f"{parts[0]} of {format_size(state.total)}", f"{state.percent} %"]
            parts.append(f"{state.done_count} of {format_count(max(state.blob_count or 0, state.done_count), 'blob')}")
        if state.images is not None:
            parts.append(f"{state.images[0]} of {format_count(state.images[1], 'image')}")
        parts.append(f"{format_size(state.rate)}/s")
        if state.seconds_left:
            parts.append(f"{format_remaining_time(state.seconds_left)} left")
        self._console.info(", ".join(parts), bytes=state.moved, total=state.total or 0)


class ProgressLines(Progress):
    """A line every few seconds without control characters, for logs; a shorter run has no lines.

    In a CI with foldable log sections, a section at the end has a line for each blob. Folded lines would not show
    progress during the run.
    """

    interval = _LINE_INTERVAL

    def __init__(self, console: Console) -> None:
        """Print to a console."""
        super().__init__(console)
        #: The beginning and end of a log section, or None.
        self._section: tuple[str, str] | None = None
        if console.verbosity >= 0 and not console.as_json:
            self._section = next(
                (marks for name, marks in _LOG_SECTIONS.items() if os.environ.get(name) == "true"), None
            )
        self._blob_lines: list[str] = []

    def tick(self) -> None:
        """Print a line."""
        if self.has_started and not self._closed.is_set():
            self.print_state()

    def show_blob(self, descriptor: Descriptor, status: str, seconds: float) -> None:
        """Keep a line for the section, or print it with -v."""
        if self._section is None:
            super().show_blob(descriptor, status, seconds)
            return
        rate = f", {seconds:.1f} s, {format_size(descriptor.size / seconds)}/s" if seconds > 0 else ""
        shown = f"{_describe_status(status)} {descriptor.digest} ({format_size(descriptor.size)}{rate})"
        self._blob_lines.append(shown)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        if self._section is not None and self._blob_lines:
            begin, end = self._section
            now, title = int(time.time()), f"ocistream: {format_count(len(self._blob_lines), 'blob')}"
            name = f"ocistream_{now}_{os.getpid()}"
            self._console.print_line(begin.format(now=now, name=name, title=title))
            for line in self._blob_lines:
                self._console.print_line(f"  {line}")
            self._console.print_line(end.format(now=int(time.time()), name=name))


class JsonProgress(Progress):
    """One JSON object a line: `planned`, `progress` (every second, and at the total), `blob`.

    docs/progress.schema.json has the fields.
    """

    interval = 1.0

    def __init__(self, console: Console) -> None:
        """Report to a console."""
        super().__init__(console)
        #: The last event of `progress`: bytes and total.
        self._reported: tuple[int, int | None] = (0, None)

    def add_total(self, size: int, blobs: int, roots: Sequence[Root] = ()) -> None:
        """Add to the total, and report it."""
        images = [{"name": root.name, "digest": root.descriptor.digest} for root in roots]
        with self._console.write_lock:
            super().add_total(size, blobs)
            self._console.emit_event(event="planned", images=images, blobs=self._blob_count, total=self._total)

    def tick(self) -> None:
        """Report the bytes, unless they are the same as before."""
        # Held from the count to the output, so that the numbers appear in order.
        with self._console.write_lock:
            state = self.snapshot()
            if self.has_started and not self._closed.is_set() and self._reported != (state.moved, state.total):
                self._reported = state.moved, state.total
                self._console.emit_event(event="progress", bytes=state.moved, total=state.total or 0)

    def show_blob(self, descriptor: Descriptor, status: str, seconds: float) -> None:  # noqa: ARG002 - a display's method
        """Report a finished blob, and the bytes if it is the last one."""
        self._console.emit_event(event="blob", digest=descriptor.digest, size=descriptor.size, status=status)
        if self._moved >= (self._total or 0) > 0:
            self.tick()

    def report_images(self, number: int, count: int) -> None:
        """Report how many images are done."""
        self._console.emit_event(event="images", done=number, images=count)


class ProgressBar(Progress):
    """An observer that draws a bar within its `with` block, in a thread of its own."""

    interval = _DRAW_INTERVAL

    def __init__(self, console: Console, *, is_explicit: bool) -> None:
        """Draw nothing yet. Unless `is_explicit`, lines replace the bar while other programs may write."""
        super().__init__(console)
        self._is_explicit = is_explicit
        #: When the next line is due (monotonic seconds), and how many bytes had moved at the last tick.
        self._next_line_at = time.monotonic() + _LINE_INTERVAL
        self._moved_before = 0
        #: Whether another program may write now; then nothing is drawn.
        self._is_suppressed = False
        self._ascii = not _can_encode_blocks()
        #: One bar a terminal: only the process that has the lock draws.
        self._terminal_lock = TerminalLock()
        #: The lines on the terminal; the cursor is at their beginning. Hold `Console.write_lock` to change them.
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

    def tick(self) -> None:
        """Draw; where nothing may be drawn, print a line every few seconds.

        While nothing moves, no line is due: the other program may ask for a password.
        """
        was_suppressed = self._is_suppressed
        self._draw()
        now, moved = time.monotonic(), self._moved
        is_moving, self._moved_before = moved != self._moved_before, moved
        if was_suppressed and self._is_suppressed and is_moving and now >= self._next_line_at:
            self._next_line_at = now + _LINE_INTERVAL
            self.print_state()

    def print_above(self, text: str) -> None:
        """Print lines that stay, and the bar below them."""
        with self._console.write_lock:
            was_drawn = bool(self._drawn_lines)
            if was_drawn:
                self._erase(f"{text}\n")
            else:
                # Where another process draws, the cursor is at the beginning of one of its lines. An echoed ^C has
                # moved the cursor.
                start = self._console.start_fresh_line() or f"\r{_ERASE_LINE}"
                self._write(f"{start}{text}\n")
        if was_drawn:
            self._draw()

    @contextlib.contextmanager
    def suspend(self) -> Iterator[None]:
        """Erase the bar while the block writes to the same terminal."""
        with self._console.write_lock:
            self._erase()
            yield

    def close(self) -> None:
        """Draw the final state, then stop drawing."""
        if self._closed.is_set():
            return
        self._draw()
        with self._console.write_lock:
            self._closed.set()
            self._console.display = None
            self._erase()
            self._terminal_lock.release()

    def _draw(self) -> None:
        with self._console.write_lock:
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
    left = [f"{format_remaining_time(state.seconds_left)} left"] if state.seconds_left else []
    texts = [", ".join(parts) for parts in ([sizes, speed, *left], [sizes, *left], [sizes], left)]
    return [*lines, _format_bar("", texts, state.moved, state.total, width, ascii_only)]


def _format_counts(state: ProgressSnapshot, hidden: int) -> str:
    """Return the line of finished blobs; `hidden` blobs move without a line of their own."""
    text = f"{state.done_count} blobs"
    if state.blob_count is not None:
        text = f"{state.done_count} of {format_count(max(state.blob_count, state.done_count), 'blob')}"
    parts = [
        f"{count} {_describe_status(status)}" for status in _STATUS_ORDER if (count := state.status_counts.get(status))
    ]
    if state.images is not None:
        parts.append(f"{state.images[0]} of {format_count(state.images[1], 'image')}")
    text = ": ".join([text, *parts[:1]])
    return ", ".join([text, *parts[1:], *([f"{hidden} more in progress"] if hidden else [])])


def _format_bar(name: str, texts: Sequence[str], moved: int, total: int, width: int, ascii_only: bool) -> str:
    """Return a name, a percentage, a bar, and the first of `texts` that leaves space for the bar, if any."""
    start = f"{name}{_percentage(moved, total):3}%|"
    chosen = next((text for text in texts if len(start) + len(text) + _MIN_BAR_WIDTH + 2 <= width), "")
    # Imported here, because lines and JSON events do not need it.
    from tqdm import tqdm

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
