"""Limits of a process: its peak memory, and no writing into files."""

from __future__ import annotations

from typing import Final

from tests.peers import need
from tests.runner import Result

MIB: Final = 1 << 20
#: CLI.md, promise 3: the peak memory of a process in bytes, for an image of any size.
BUDGET: Final = 48 * MIB
#: The same for a process that compresses.
COMPRESSING_BUDGET: Final = 72 * MIB


def assert_within_budget(*results: Result, budget: int = BUDGET) -> None:
    """Assert that processes succeeded, and that their peak memory was below `budget` bytes."""
    for result in results:
        assert result.code == 0, result.err
        assert result.peak is not None
        assert result.peak < budget, f"{result.peak / MIB:.1f} MiB at the peak"


def no_files() -> list[str]:
    """Return a prefix for a command, with which it cannot write into any file, even as root."""
    need("prlimit")
    return ["prlimit", "--fsize=0"]
