"""Types of the fixtures, and options of most runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

#: One attempt over plain HTTP.
ONCE: Final = ("--plain-http", "--retries=0")


@dataclasses.dataclass(frozen=True)
class Result:
    """The exit code of a run, and what it printed."""

    code: int
    out: str
    err: str


#: Runs a command line.
Run = Callable[..., Result]
