"""Progress in lines: one every few seconds that says how far the transfer is, for logs and for shared terminals."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from ocistream.cli.progress_state import ProgressCounter, format_count, format_size, human_duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocistream.cli.console import Console
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph

__all__ = ["LINE_INTERVAL", "ProgressLinePrinter", "ProgressLog", "find_log_section"]

#: Seconds between two lines.
LINE_INTERVAL: Final = 5.0
#: How a section begins and ends in the logs of CIs that have such: a name that is used once, seconds, a title.
_LOG_SECTIONS: Final = {
    # docs.github.com, "Workflow commands for GitHub Actions", "Grouping log lines".
    "GITHUB_ACTIONS": ("::group::{title}", "::endgroup::"),
    # docs.gitlab.com, "CI/CD job logs", "Custom collapsible sections".
    "GITLAB_CI": (
        "\x1b[0Ksection_start:{now}:{name}[collapsed=true]\r\x1b[0K{title}",
        "\x1b[0Ksection_end:{now}:{name}\r\x1b[0K",
    ),
}


def find_log_section(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Say how sections are marked here, where they are."""
    return next((marks for name, marks in _LOG_SECTIONS.items() if environment.get(name) == "true"), None)


class ProgressLinePrinter:
    """Prints how far a transfer is: the total once, then what has moved of it."""

    def __init__(self, console: Console, account: ProgressCounter) -> None:
        """Print nothing yet."""
        self._console = console
        self._counter = account
        self._has_printed_total = False

    def print_line(self) -> None:
        """Print one line, and the total before the first one."""
        state = self._counter.snapshot()
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
            parts.append(f"{human_duration(state.seconds_left)} left")
        self._console.info(", ".join(parts), bytes=state.moved, total=state.total or 0)


class ProgressLog:
    """A line every few seconds, without control characters, for logs; a run that takes no longer has none.

    Where a CI's log has sections that can be folded, one at the end has a line for each blob.
    """

    def __init__(self, console: Console, section: tuple[str, str] | None) -> None:
        """Print nothing yet; `section` is how a section of the log begins and ends, or None for no section."""
        self._console = console
        self._section = section
        self._counter = ProgressCounter()
        self._line_printer = ProgressLinePrinter(console, self._counter)
        self._blob_lines: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._print_until_closed, daemon=True)

    def __enter__(self) -> Self:
        # Where there are to be no more threads, there are no lines.
        with contextlib.suppress(RuntimeError):
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._section is not None and self._blob_lines:
            begin, end = self._section
            now, title = int(time.time()), f"ocistream: {format_count(len(self._blob_lines), 'blob')}"
            name = f"ocistream_{now}_{os.getpid()}"
            self._console.print_raw(begin.format(now=now, name=name, title=title))
            for line in self._blob_lines:
                self._console.print_raw(f"  {line}")
            self._console.print_raw(end.format(now=int(time.time()), name=name))

    def planned(self, graph: Graph) -> None:
        """Learn the total."""
        self._counter.planned(graph)

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """Count bytes."""
        self._counter.advance(size, descriptor)

    def done(self, descriptor: Descriptor, how: str) -> None:
        """Count a blob, and print or collect its line."""
        seconds = self._counter.done(descriptor, how)
        text = f"{how} {descriptor.digest} ({format_size(descriptor.size)}"
        if self._section is None:
            self._console.info(f"{text})", level=1)
        else:
            rate = f", {seconds:.1f} s, {format_size(descriptor.size / seconds)}/s" if seconds > 0 else ""
            self._blob_lines.append(f"{text}{rate})")

    def report_images(self, number: int, count: int) -> None:
        """Count images, where there are many."""
        self._counter.images = number, count

    def _print_until_closed(self) -> None:
        while not self._stop.wait(LINE_INTERVAL):
            if self._counter.has_started:
                self._line_printer.print_line()
