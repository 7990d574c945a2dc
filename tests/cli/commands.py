"""The commands and options that `--help` lists."""

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
    """Return the options of a command, such as `-u` and `--username`, in order."""
    text = ocistream(command, "--help").out.decode().partition("\nCommands:\n")[0]
    # The options are in several sections, whose headings are not indented. The usage comes before the first heading.
    listed = re.split(r"^[A-Z][A-Za-z ]*:$", text, flags=re.MULTILINE)[1:]
    rows = re.findall(r"^  (-[^\s,]+(?:, -[^\s,]+)*)", "".join(listed), re.MULTILINE)
    assert rows, listed
    return [spelling for row in rows for spelling in row.split(", ")]
