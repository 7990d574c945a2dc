"""Types of the fixtures that start registries and run commands."""

from __future__ import annotations

from collections.abc import Callable

from tests.quirks.command_runner import Mover
from tests.quirks.interrupted_pushes import Pushes
from tests.quirks.mirrors import Mirrored
from tests.quirks.quirky_registry import QuirkyRegistry, Tap

Start = Callable[..., QuirkyRegistry]
Move = Callable[..., Mover]
MakePushes = Callable[..., Pushes]
MakeMirrored = Callable[..., Mirrored]
MakeTap = Callable[[str], Tap]
