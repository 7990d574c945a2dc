"""What a process may take: so much memory at its peak, and no file."""

from __future__ import annotations

from typing import Final

from tests.peers import need
from tests.runner import Result

MIB: Final = 1 << 20
#: CLI.md, promise 3: what a process may have at its peak, in bytes, whatever the size of the image.
BUDGET: Final = 48 * MIB
#: The same for one that compresses.
COMPRESSING_BUDGET: Final = 72 * MIB


def assert_within_budget(*results: Result, budget: int = BUDGET) -> None:
    """Assert that processes succeeded, and had no more memory than `budget`, in bytes."""
    for result in results:
        assert result.code == 0, result.err
        assert result.peak is not None
        assert result.peak < budget, f"{result.peak / MIB:.1f} MiB at the peak"


def no_files() -> list[str]:
    """Return what to put before a command so that it cannot write a byte into any file, root or not."""
    need("prlimit")
    return ["prlimit", "--fsize=0"]
