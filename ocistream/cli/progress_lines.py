"""Progress in lines: one every few seconds that says how far the transfer is, for logs and for shared terminals."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from ocistream.cli.progress_state import Account, counted, human_size, human_time

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocistream.cli.console import Console
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph

__all__ = ["LINE_EVERY", "Lines", "ProgressLine", "section"]

#: Seconds between two lines.
LINE_EVERY: Final = 5.0
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


def section(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Say how sections are marked here, where they are."""
    return next((marks for name, marks in _SECTIONS.items() if environment.get(name) == "true"), None)


class ProgressLine:
    """Prints how far a transfer is: the total once, then what has moved of it."""

    def __init__(self, console: Console, account: Account) -> None:
        """Print nothing yet."""
        self._console = console
        self._account = account
        self._said_plan = False

    def say(self) -> None:
        """Print one line, and the total before the first one."""
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


class Lines:
    """A line every few seconds, without control characters, for logs; a run that takes no longer has none.

    Where a CI's log has sections that can be folded, one at the end has a line for each blob.
    """

    def __init__(self, console: Console, section: tuple[str, str] | None) -> None:
        """Print nothing yet; `section` is how a section of the log begins and ends, or None for no section."""
        self._console = console
        self._section = section
        self._account = Account()
        self._line = ProgressLine(console, self._account)
        self._finished: list[str] = []
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
        """Learn the total."""
        self._account.planned(graph)

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """Count bytes."""
        self._account.advance(size, descriptor)

    def done(self, descriptor: Descriptor, how: str) -> None:
        """Count a blob, and print or collect its line."""
        seconds = self._account.done(descriptor, how)
        text = f"{how} {descriptor.digest} ({human_size(descriptor.size)}"
        if self._section is None:
            self._console.note(f"{text})", level=1)
        else:
            rate = f", {seconds:.1f} s, {human_size(descriptor.size / seconds)}/s" if seconds > 0 else ""
            self._finished.append(f"{text}{rate})")

    def reached(self, number: int, count: int) -> None:
        """Count images, where there are many."""
        self._account.images = number, count

    def _go_on(self) -> None:
        while not self._stop.wait(LINE_EVERY):
            if self._account.has_begun:
                self._line.say()
