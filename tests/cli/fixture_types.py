"""Types of the fixtures in `conftest.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tests.faulty_registry import FaultyRegistry

#: Starts a registry; its arguments are those of `FaultyRegistry`.
Start: TypeAlias = Callable[..., FaultyRegistry]
