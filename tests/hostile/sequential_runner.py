"""Runs command lines one after the other in one process: it reads a line of JSON for each, and writes all results.

This avoids the start of Python for each run. Memory that one run leaves counts for the next.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys

from ocistream.cli import main


def each() -> None:
    """Read the command lines from stdin and run them; each may have a file as its own stdin."""
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
    # End as `ocistream.cli.run` does: threads of a failed run may still be in calls.
    os._exit(0)


if __name__ == "__main__":
    each()
