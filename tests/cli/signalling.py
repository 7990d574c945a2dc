"""Stop a command in the middle of its work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.cli.assertions import wait_for
from tests.runner import Argument, Result, started_fork


def signalled(number: int, *argv: Argument, until: Callable[[], object], **options: Any) -> Result:
    """Start a command in a fork, send it a signal when `until` is true, and return its result."""
    with started_fork(*argv, **options) as process:
        wait_for(until)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    return Result([str(word) for word in argv], process.returncode, out, err.decode())
