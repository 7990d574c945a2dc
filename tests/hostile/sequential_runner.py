"""Runs command lines one after the other in one process: a line of JSON for each comes in, and one goes out.

What a process of its own costs is mostly Python's start. What one run leaves in memory counts for the next.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys

from ocistream.cli import main


def each() -> None:
    """Take the command lines from stdin; each has a file for its own stdin, or nothing there."""
    with os.fdopen(os.dup(0), "rb") as file:
        jobs = [json.loads(line) for line in file]
    answers = []
    for job in jobs:
        source = os.open(job["stdin"] or os.devnull, os.O_RDONLY)
        os.dup2(source, 0)
        os.close(source)
        said, out = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
            code = main(job["argv"])
        answers.append({"code": code, "err": said.getvalue(), "out": out.getvalue()})
    sys.stdout.write(json.dumps(answers))
    sys.stdout.flush()
    # As `ocistream.cli.run` ends: threads of a run that failed may stand in calls still.
    os._exit(0)


if __name__ == "__main__":
    each()
