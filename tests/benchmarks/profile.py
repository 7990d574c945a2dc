"""Profile `ocistream pull` into a pipe: CPU time for the network, hashing, writing and other Python code.

`python -m tests.benchmarks.profile REFERENCE` pulls to stdout and writes one JSON document to stderr. CPU time is
measured for each thread, so overlapping threads do not matter.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from ocistream.archive import outputs
from ocistream.cli import entry_point
from ocistream.cli.commands import pull

# All modules of a pull, so that their import counts as start.
from ocistream.http import client, response
from ocistream.registry import destination
from ocistream.streams import chunks, files
from ocistream.transfer import copy as transfer

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["main"]

_IMPORTED = (client, transfer, pull, outputs, destination)


class Clocks:
    """CPU seconds and elapsed seconds, by activity. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.cpu: defaultdict[str, float] = defaultdict(float)
        self.wall: defaultdict[str, float] = defaultdict(float)

    def timed(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with a measurement of its time."""

        def counted(*arguments: object) -> object:
            cpu, wall = time.thread_time(), time.perf_counter()
            try:
                return function(*arguments)
            finally:
                cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
                with self._lock:
                    self.cpu[what] += cpu
                    self.wall[what] += wall

        return counted


def main(reference: str) -> int:
    """Pull an image and print the profile."""
    started, began = time.process_time(), time.perf_counter()
    clocks = Clocks()
    new_hash = chunks.new_hash

    class Hasher:
        def __init__(self, digest: str) -> None:
            hasher = new_hash(digest)
            self.update = clocks.timed("hash", hasher.update)
            self.hexdigest = hasher.hexdigest

    chunks.new_hash = Hasher
    read = clocks.timed("network", response.RawResponse.readinto)
    response.RawResponse.readinto = read  # type: ignore[method-assign]
    files.write_all = clocks.timed("write", files.write_all)
    try:
        entry_point.main(["pull", "--quiet", reference])
    except SystemExit as ended:
        if ended.code:
            return 1
    total, elapsed = time.process_time(), time.perf_counter() - began
    cpu = {"start": started, **clocks.cpu, "Python": total - started - sum(clocks.cpu.values())}
    print(json.dumps({"seconds": elapsed, "cpu": cpu, "waited": dict(clocks.wall)}), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
