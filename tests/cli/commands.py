"""What the command line has, as its own help lists it."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from tests.runner import ocistream


@functools.cache
def commands() -> Sequence[str]:
    """Return the names of all commands, in order."""
    listed = ocistream("--help").out.decode().partition("\nCommands:\n")[2]
    found = re.findall(r"^  (\S+)", listed, re.MULTILINE)
    assert len(found) > 10, listed
    return found


@functools.cache
def options(command: str) -> Sequence[str]:
    """Return the spellings of a command's options, such as `-u` and `--username`, in order."""
    # The first heading of options follows the examples.
    text = ocistream(command, "--help").out.decode().partition("\nCommands:\n")[0]
    listed = re.split(r"^\w[\w ]*:$", text, maxsplit=1, flags=re.MULTILINE)[1]
    rows = re.findall(r"^  (-[^\s,]+(?:, -[^\s,]+)*)", listed, re.MULTILINE)
    assert rows, listed
    return [spelling for row in rows for spelling in row.split(", ")]
