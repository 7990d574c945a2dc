"""Runs ocistream in this process, and measures the memory of its objects: `python traced_memory.py REPORT FILE...`.

Each file has the arguments of one command, a line each. REPORT gets a line for each command: the peak growth of its
objects in bytes, at any time, and when a line was printed. The second number excludes temporary buffers. A few hundred
bytes for each of a thousand images are visible here; in the memory of the process they would not be.
"""

import gc
import io
import sys
import tracemalloc
from pathlib import Path

from ocistream import limits
from ocistream.cli import main

# The read of a sync file allocates its limit for a moment, which would hide the rest. This much is more than what an
# image takes for a moment, and than the names of a few hundred images while they are sorted.
limits.MAX_SYNC_FILE = limits.MIB  # type: ignore[misc]


class Output(io.TextIOWrapper):
    """Stdout that measures at each line."""

    kept = 0

    def write(self, text: str) -> int:
        # Unused objects that refer to each other stay until a collection.
        gc.collect()
        self.kept = max(self.kept, tracemalloc.get_traced_memory()[0])
        return super().write(text)


def run() -> int:
    report, *files = sys.argv[1:]
    sys.stdout = output = Output(sys.stdout.buffer)
    tracemalloc.start()
    measured = []
    for file in files:
        # Collections skip all objects that exist already, which takes a moment.
        gc.collect()
        gc.freeze()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        output.kept = 0
        if code := main(Path(file).read_text().splitlines()):
            return code
        measured.append(f"{tracemalloc.get_traced_memory()[1] - before} {output.kept - before}")
    Path(report).write_text("\n".join(measured))
    return 0


if __name__ == "__main__":
    sys.exit(run())
