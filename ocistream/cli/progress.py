"""Progress on stderr: a bar, a line every few seconds, or JSON events. The only import of tqdm.

Every renderer is an `Observer` of a transfer, called from any of its threads.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Self

from ocistream.interfaces import Unwatched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.cli.console import Console
    from ocistream.graph import Graph
    from ocistream.interfaces import Observer
    from ocistream.model import Descriptor

__all__ = ["counted", "human_size", "progress"]

#: Seconds between two lines of plain progress, and between two progress events.
_LINE_EVERY: Final = 5.0
_EVENT_EVERY: Final = 1.0


@contextlib.contextmanager
def progress(kind: str, console: Console) -> Iterator[Observer]:
    """Show the progress of what happens within the block.

    `kind` is --progress's value; "auto" is a bar on a terminal, else a line every few seconds, and nothing with -q.
    Where messages are JSON, a bar would get in their way.
    """
    if kind == "auto":
        kind = "none" if console.verbosity < 0 else "bar" if _is_terminal() and not console.as_json else "plain"
    if kind == "bar" and sys.stderr is not None:
        with _Bar(console) as bar:
            yield bar
    elif kind == "plain":
        yield _Lines(console)
    elif kind == "json":
        yield _Events(console)
    else:
        yield Unwatched()


def human_size(size: float) -> str:
    """Write a number of bytes for people: `12.3 MB`, in powers of 1000 as registries and disks count."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def counted(number: int, singular: str, plural: str = "") -> str:
    """Write a number of things for people: `1 blob`, `2 blobs`, `2 indexes`."""
    return f"{number} {singular}" if number == 1 else f"{number} {plural or singular + 's'}"


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


class _Lines:
    """A line every few seconds, without control characters, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._total = 0
        self._moved = 0
        self._began = self._next = time.monotonic()
        self._next += _LINE_EVERY

    def planned(self, graph: Graph) -> None:
        self._total = graph.size

    def advance(self, size: int) -> None:
        with self._lock:
            self._moved += size
            now = time.monotonic()
            if now < self._next:
                return
            self._next = now + _LINE_EVERY
        self._console.note(self._text(now), bytes=self._moved, total=self._total)

    def done(self, descriptor: Descriptor, how: str) -> None:
        self._console.note(f"{how} {descriptor.digest} ({human_size(descriptor.size)})", level=1)

    def _text(self, now: float) -> str:
        rate = self._moved / max(now - self._began, 0.001)
        text = f"{human_size(self._moved)} of {human_size(self._total)}" if self._total else human_size(self._moved)
        text += f", {human_size(rate)}/s"
        if self._total and rate:
            text += f", {max(self._total - self._moved, 0) / rate:.0f} s left"
        return text


class _Events:
    """One JSON object a line: `planned`, `progress` (at most one a second, and one at the total), `blob`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._total = 0
        self._moved = 0
        self._next = time.monotonic()

    def planned(self, graph: Graph) -> None:
        self._total = graph.size
        images = [{"name": root.name, "digest": root.descriptor.digest} for root in graph.roots]
        self._console.event(event="planned", images=images, blobs=len(graph.blobs), total=self._total)

    def advance(self, size: int) -> None:
        with self._lock:
            self._moved += size
            now = time.monotonic()
            if now < self._next:
                return
            self._next = now + _EVENT_EVERY
            self._progress()

    def done(self, descriptor: Descriptor, how: str) -> None:
        self._console.event(event="blob", digest=descriptor.digest, size=descriptor.size, how=how)
        with self._lock:
            if self._moved >= self._total > 0:
                self._progress()

    def _progress(self) -> None:
        # Within the lock, so that no older number comes after a newer one.
        self._console.event(event="progress", bytes=self._moved, total=self._total)


class _Bar:
    """tqdm's bar, for a terminal."""

    def __init__(self, console: Console) -> None:
        from tqdm import tqdm

        # Neither multiprocessing's lock nor a monitor thread is needed for one bar in one process.
        tqdm.set_lock(threading.RLock())
        tqdm.monitor_interval = 0
        self._console = console
        self._tqdm = tqdm
        self._bar: tqdm[Any] | None = None
        self._lock = threading.Lock()
        self._before = 0

    def __enter__(self) -> Self:
        self._console.above = self._above
        return self

    def __exit__(self, *_: object) -> None:
        self._console.above = None
        if self._bar is not None:
            self._bar.close()

    def planned(self, graph: Graph) -> None:
        with self._lock:
            self._bar = self._tqdm(
                total=graph.size,
                initial=self._before,
                unit="B",
                unit_scale=True,
                dynamic_ncols=True,
                leave=False,
                file=sys.stderr,
            )

    def advance(self, size: int) -> None:
        # tqdm adds up without a lock, and would lose what two threads add at once.
        with self._lock:
            if self._bar is None:
                # Blobs that come before the total is known.
                self._before += size
            else:
                self._bar.update(size)

    def done(self, descriptor: Descriptor, how: str) -> None:
        self._console.note(f"{how} {descriptor.digest} ({human_size(descriptor.size)})", level=1)

    def _above(self, text: str) -> None:
        self._tqdm.write(text, file=sys.stderr)
