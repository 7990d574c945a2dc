"""Detect inputs that reach new code, by `sys.monitoring` (Python 3.12 and later), so that the engine mutates them."""

from __future__ import annotations

import sys
from types import CodeType
from typing import Any, Final

_OURS: Final = "/ocistream/"


class Guide:
    """Counts the lines and branches of ocistream's code that were reached, each once.

    Python before 3.14 has one event for both directions of a branch, so an event stays enabled until both are known.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[CodeType, int], set[int]] = {}
        self._new = 0
        self.total = 0

    def begin(self) -> None:
        """Start a new input."""
        self._new = 0

    def reached(self) -> bool:
        """Return whether the input reached new code."""
        return self._new > 0

    @staticmethod
    def is_possible() -> bool:
        """Return whether this Python has `sys.monitoring`."""
        return sys.version_info >= (3, 12)

    def start(self) -> None:
        """Start monitoring, until the process ends."""
        if sys.version_info >= (3, 12):
            monitoring: Any = sys.monitoring  # type: ignore[attr-defined, unused-ignore]
            tool = monitoring.OPTIMIZER_ID
            monitoring.use_tool_id(tool, "fuzz")
            monitoring.register_callback(tool, monitoring.events.BRANCH, self._branch)
            monitoring.register_callback(tool, monitoring.events.LINE, self._line)
            monitoring.set_events(tool, monitoring.events.BRANCH | monitoring.events.LINE)

    def _branch(self, code: CodeType, offset: int, to: int) -> Any:
        if _OURS not in code.co_filename:
            return self._disabled()
        ways = self._known.setdefault((code, offset), set())
        if to not in ways:
            ways.add(to)
            self._new += 1
            self.total += 1
        return self._disabled() if len(ways) > 1 else None

    def _line(self, code: CodeType, _: int) -> Any:
        if _OURS in code.co_filename and "/tests/" not in code.co_filename:
            self._new += 1
            self.total += 1
        return self._disabled()

    @staticmethod
    def _disabled() -> Any:
        return getattr(sys, "monitoring").DISABLE  # noqa: B009 - see above
