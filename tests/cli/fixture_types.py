"""Types of the fixtures in `conftest.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tests.faulty_registry import FaultyRegistry
from tests.runner import Result

#: Starts a registry; its arguments are those of `FaultyRegistry`.
Start: TypeAlias = Callable[..., FaultyRegistry]
#: Runs a command with an archive in a file or a pipe.
Give: TypeAlias = Callable[..., Result]
