"""Types of the fixtures, and options of most runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.runner import Result

#: One attempt over plain HTTP.
ONCE: Final = ("--plain-http", "--retries=0")


#: Runs a command line.
Run = Callable[..., Result]
