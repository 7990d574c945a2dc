"""Runs ocistream as somebody to whom the rights of files apply, also where the tests run as root."""

from __future__ import annotations

import os

from tests.peers import need
from tests.runner import Argument, Result, command, run


def without_privileges(*argv: Argument) -> Result:
    """Run `ocistream *argv` without root's privilege to write and read everywhere."""
    drop: list[str] = []
    if os.geteuid() == 0:
        need("setpriv")
        drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    return run([*drop, *command(), *map(str, argv)])
