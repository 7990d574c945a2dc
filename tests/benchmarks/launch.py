"""Run pipelines one after the other and print measurements: a JSON document as argument, and one on stdout.

This is a separate small process, because on Linux the peak memory of a program starts with that of its parent process.
So it imports as little as possible, and never `tests.benchmarks`.

In:  {"steps": [[{"argv": [...], "env": {...}, "stdin": PATH or null, "stdout": PATH or null}, ...], ...]}
Out: {"seconds": S, "cpu": S, "peaks": {PROGRAM: BYTES}, "codes": [...]}
"""

from __future__ import annotations

import json
import os
import sys
import time

TYPE_CHECKING = False  # not typing's: this process must stay small
if TYPE_CHECKING:
    from typing import Any

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def main() -> None:
    """Run the pipelines of the argument."""
    document = json.loads(sys.argv[1])
    peaks: dict[str, int] = {}
    codes: list[int] = []
    cpu = 0.0
    begin = time.monotonic()
    for pipeline in document["steps"]:
        names = started(pipeline)
        while names:
            pid, status, usage = os.wait4(-1, 0)
            name = names.pop(pid)
            codes.append(os.waitstatus_to_exitcode(status))
            cpu += usage.ru_utime + usage.ru_stime
            peaks[name] = max(peaks.get(name, 0), usage.ru_maxrss * 1024)
    seconds = time.monotonic() - begin
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peaks": peaks, "codes": codes}))


def started(pipeline: list[dict[str, Any]]) -> dict[int, str]:
    """Start the commands of one pipeline; return their names by process ID."""
    names: dict[int, str] = {}
    source = -1
    for number, command in enumerate(pipeline):
        actions: list[tuple[Any, ...]] = []
        following, sink = os.pipe() if number + 1 < len(pipeline) else (-1, -1)
        if source >= 0:
            actions.append((os.POSIX_SPAWN_DUP2, source, 0))
        else:
            actions.append((os.POSIX_SPAWN_OPEN, 0, command["stdin"] or os.devnull, os.O_RDONLY, 0))
        if sink >= 0:
            actions.append((os.POSIX_SPAWN_DUP2, sink, 1))
        else:
            actions.append((os.POSIX_SPAWN_OPEN, 1, command["stdout"] or os.devnull, _CREATE, 0o644))
        argv = command["argv"]
        pid = os.posix_spawnp(argv[0], argv, {**os.environ, **command["env"]}, file_actions=actions)
        name = argv[0].rpartition("/")[2]
        names[pid] = f"{name} {argv[1]}" if name == "ocistream" and len(argv) > 1 else name
        for descriptor in (source, sink):
            if descriptor >= 0:
                os.close(descriptor)
        source = following
    return names


if __name__ == "__main__":
    main()
