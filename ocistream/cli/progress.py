"""Progress on stderr: a bar, a line every few seconds, or JSON events (docs/progress.schema.json).

Every renderer is an `Observer` of a transfer, called from any of its threads. What is counted is `account`'s business,
and how a bar is drawn `bar`'s.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from ocistream.cli.account import Account, counted, human_size, human_time
from ocistream.interfaces import Unwatched

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocistream.cli.console import Console
    from ocistream.graph import Graph
    from ocistream.interfaces import Observer
    from ocistream.model import Descriptor

__all__ = ["counted", "human_size", "progress"]

#: Seconds between two lines of plain progress, and between two progress events.
_LINE_EVERY: Final = 5.0
_EVENT_EVERY: Final = 1.0
#: How a section begins and ends in the logs of CIs that have such: a name that is used once, seconds, a title.
_SECTIONS: Final = {
    # docs.github.com, "Workflow commands for GitHub Actions", "Grouping log lines".
    "GITHUB_ACTIONS": ("::group::{title}", "::endgroup::"),
    # docs.gitlab.com, "CI/CD job logs", "Custom collapsible sections".
    "GITLAB_CI": (
        "\x1b[0Ksection_start:{now}:{name}[collapsed=true]\r\x1b[0K{title}",
        "\x1b[0Ksection_end:{now}:{name}\r\x1b[0K",
    ),
}


@contextlib.contextmanager
def progress(kind: str, console: Console) -> Iterator[Observer]:
    """Show the progress of what happens within the block.

    `kind` is --progress's value; "auto" is a bar on a terminal, else a line every few seconds, and nothing with -q.
    Where messages are JSON, a bar would get in their way.
    """
    if kind == "auto":
        kind = "none" if console.verbosity < 0 else "bar" if _is_terminal() and not console.as_json else "plain"
    if kind == "bar" and sys.stderr is not None:
        from ocistream.cli.bar import Bar

        with Bar(console) as bar:
            yield bar
    elif kind == "plain":
        with _Lines(console, _section(os.environ) if console.verbosity >= 0 and not console.as_json else None) as lines:
            yield lines
    elif kind == "json":
        yield _Events(console)
    else:
        yield Unwatched()


def _is_terminal() -> bool:
    """Say whether stderr is a terminal on which can be drawn."""
    # Some CIs give their jobs a terminal, of which they keep every byte.
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not _is_ci()


def _is_ci() -> bool:
    """Say whether this is a CI's job, as all of them say it."""
    return os.environ.get("CI", "").lower() in {"true", "1"}


def _section(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Say how sections are marked here, where they are."""
    return next((marks for name, marks in _SECTIONS.items() if environment.get(name) == "true"), None)


class _Lines:
    """A line every few seconds, without control characters, for logs; a run that takes no longer has none.

    Where a CI's log has sections that can be folded, one at the end has a line for each blob.
    """

    def __init__(self, console: Console, section: tuple[str, str] | None) -> None:
        self._console = console
        self._section = section
        self._account = Account()
        self._finished: list[str] = []
        self._said_plan = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def __enter__(self) -> Self:
        # Where there are to be no more threads, there are no lines.
        with contextlib.suppress(RuntimeError):
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._section is not None and self._finished:
            begin, end = self._section
            now, title = int(time.time()), f"ocistream: {counted(len(self._finished), 'blob')}"
            name = f"ocistream_{now}_{os.getpid()}"
            self._console.mark(begin.format(now=now, name=name, title=title))
            for line in self._finished:
                self._console.mark(f"  {line}")
            self._console.mark(end.format(now=int(time.time()), name=name))

    def planned(self, graph: Graph) -> None:
        self._account.planned(graph)

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        self._account.advance(size, descriptor)

    def done(self, descriptor: Descriptor, how: str) -> None:
        seconds = self._account.done(descriptor, how)
        text = f"{how} {descriptor.digest} ({human_size(descriptor.size)}"
        if self._section is None:
            self._console.note(f"{text})", level=1)
        else:
            rate = f", {seconds:.1f} s, {human_size(descriptor.size / seconds)}/s" if seconds > 0 else ""
            self._finished.append(f"{text}{rate})")

    def reached(self, number: int, count: int) -> None:
        self._account.images = number, count

    def _go_on(self) -> None:
        while not self._stop.wait(_LINE_EVERY):
            if self._account.has_begun:
                self._say()

    def _say(self) -> None:
        state = self._account.state()
        if state.total is not None and not self._said_plan:
            self._said_plan = True
            self._console.note(f"{counted(state.blobs or 0, 'blob')}, {human_size(state.total)} in all")
        parts = [human_size(state.moved)]
        if state.total is not None:
            parts = [f"{parts[0]} of {human_size(state.total)}", f"{state.percent} %"]
            parts.append(f"{state.done} of {counted(max(state.blobs or 0, state.done), 'blob')}")
        if state.images is not None:
            parts.append(f"{state.images[0]} of {counted(state.images[1], 'image')}")
        parts.append(f"{human_size(state.rate)}/s")
        if state.left:
            parts.append(f"{human_time(state.left)} left")
        self._console.note(", ".join(parts), bytes=state.moved, total=state.total or 0)


class _Events:
    """One JSON object a line: `planned`, `progress` (at most one a second, and one at the total), `blob`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._total = 0
        self._moved = 0
        self._said_all = False
        self._next = time.monotonic()

    def planned(self, graph: Graph) -> None:
        self._total = graph.size
        images = [{"name": root.name, "digest": root.descriptor.digest} for root in graph.roots]
        self._console.event(event="planned", images=images, blobs=len(graph.blobs), total=self._total)

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:  # noqa: ARG002 - all counts
        with self._lock:
            self._moved += size
            # What is taken back is to be moved again, and all of it then said again.
            self._said_all = self._said_all and self._moved >= self._total
            now = time.monotonic()
            if now < self._next or self._said_all:
                return
            self._next = now + _EVENT_EVERY
            self._progress()

    def done(self, descriptor: Descriptor, how: str) -> None:
        self._console.event(event="blob", digest=descriptor.digest, size=descriptor.size, how=how)
        with self._lock:
            if self._moved >= self._total > 0 and not self._said_all:
                self._progress()

    def reached(self, number: int, count: int) -> None:
        self._console.event(event="images", done=number, images=count)

    def _progress(self) -> None:
        # Within the lock, so that no older number comes after a newer one. No number leaves its bounds: `verify` reads
        # what no image needs, too.
        self._said_all = self._moved >= self._total > 0
        moved = max(0, min(self._moved, self._total) if self._total else self._moved)
        self._console.event(event="progress", bytes=moved, total=self._total)
