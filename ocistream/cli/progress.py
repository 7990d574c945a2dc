"""Choose and run the progress display: bar, lines, JSON events (docs/progress.schema.json) or none.

Each display is an `Observer` of a transfer; any thread may call it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from ocistream.cli.console import can_draw
from ocistream.cli.progress_state import format_count, format_size
from ocistream.transfer.interfaces import NullObserver

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.cli.console import Console
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.transfer.interfaces import Observer

__all__ = ["format_count", "format_size", "show_progress"]

#: Seconds between two progress events.
_EVENT_INTERVAL: Final = 1.0


@contextlib.contextmanager
def show_progress(kind: str, console: Console) -> Iterator[Observer]:
    """Show the progress of the transfer within the block.

    `kind` is the value of --progress. "auto" is a bar on a terminal, else a line every few seconds, and nothing with -q
    or if the console is terse. With JSON messages, "auto" draws no bar.
    """
    is_explicit = kind != "auto"
    if kind == "auto" and (console.verbosity < 0 or console.is_terse):
        kind = "none"
    elif kind == "auto":
        kind = "bar" if can_draw() and not console.as_json else "plain"
    if kind == "bar" and sys.stderr is not None:
        from ocistream.cli.progress_bar import ProgressBar

        with ProgressBar(console, is_explicit=is_explicit) as bar:
            yield bar
    elif kind == "plain":
        from ocistream.cli.progress_state import ProgressLog, find_log_section

        section = find_log_section(os.environ) if console.verbosity >= 0 and not console.as_json else None
        with ProgressLog(console, section) as lines:
            yield lines
    elif kind == "json":
        yield _JsonProgress(console)
    else:
        yield NullObserver()


class _JsonProgress:
    """One JSON object a line: `planned`, `progress` (at most one a second, and one at the total), `blob`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._total = 0
        self._moved = 0
        self._has_reported_total = False
        self._next_event = time.monotonic()

    def planned(self, graph: Graph) -> None:
        self._total = graph.size
        images = [{"name": root.name, "digest": root.descriptor.digest} for root in graph.roots]
        self._console.emit_event(event="planned", images=images, blobs=len(graph.blobs), total=self._total)

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:  # noqa: ARG002 - all counts
        with self._lock:
            self._moved += size
            # Bytes that are taken back move again, and the total is then reported again.
            self._has_reported_total = self._has_reported_total and self._moved >= self._total
            now = time.monotonic()
            if now < self._next_event or self._has_reported_total:
                return
            self._next_event = now + _EVENT_INTERVAL
            self._emit_progress()

    def done(self, descriptor: Descriptor, how: str) -> None:
        self._console.emit_event(event="blob", digest=descriptor.digest, size=descriptor.size, how=how)
        with self._lock:
            if self._moved >= self._total > 0 and not self._has_reported_total:
                self._emit_progress()

    def report_images(self, number: int, count: int) -> None:
        self._console.emit_event(event="images", done=number, images=count)

    def _emit_progress(self) -> None:
        # The caller has the lock, so the numbers appear in order. They are limited to the total: `verify` also reads
        # blobs that no image needs.
        self._has_reported_total = self._moved >= self._total > 0
        moved = max(0, min(self._moved, self._total) if self._total else self._moved)
        self._console.emit_event(event="progress", bytes=moved, total=self._total)
