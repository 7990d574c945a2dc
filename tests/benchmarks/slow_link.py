"""A slow connection for `tests.benchmarks.delta`: run a command, and forward its stdin at a limited rate.

    slow_link.py RATE COUNT COMMAND...

RATE is in bytes per second. The number of bytes in both directions is appended to the file COUNT. This is a small
process, like launch.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

_CHUNK = 64 * 1024


def main() -> int:
    """Run the command and return its exit code."""
    rate, count, *command = sys.argv[1:]
    passed = [0, 0]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        back = threading.Thread(target=_pass, args=(process.stdout.fileno(), 1, int(rate), passed, 1))
        back.start()
        try:
            _pass(0, process.stdin.fileno(), int(rate), passed, 0)
            process.stdin.close()
        except BrokenPipeError:
            pass
        back.join()
    with Path(count).open("a", encoding="ascii") as file:
        file.write(f"{sum(passed)}\n")
    return process.returncode


def _pass(source: int, sink: int, rate: int, passed: list[int], place: int) -> None:
    due = time.monotonic()
    while chunk := os.read(source, _CHUNK):
        passed[place] += len(chunk)
        # Delays are not made up for: unused capacity is lost.
        due = max(due, time.monotonic()) + len(chunk) / rate
        time.sleep(max(0.0, due - time.monotonic()))
        view = memoryview(chunk)
        while view:
            view = view[os.write(sink, view) :]


if __name__ == "__main__":
    sys.exit(main())
