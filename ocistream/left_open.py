"""Uploads that this process leaves open at registries for the same command to go on with: for who tells of its end.

One that is under way says itself, whenever it is asked, whether it is worth that: the process may end without waiting
for the thread that sends it. It imports nothing, so that asking costs nothing.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["LeftOpen", "begin", "kept"]


class LeftOpen:
    """One upload into a registry (`HOST[:PORT]`); `is_kept` says whether it would be gone on with as it is now."""

    def __init__(self, registry: str, is_kept: Callable[[], bool]) -> None:
        """Know of an upload that is under way."""
        self.registry = registry
        self.is_kept = is_kept
        _uploads[self] = None

    def stays(self) -> None:
        """Note that it is over in this process, and open at the registry."""
        self.is_kept = lambda: True

    def is_over(self) -> None:
        """Note that nothing of it is left."""
        _uploads.pop(self, None)


#: Those under way, in any thread, and those that were left. (A dict is safe for several threads, and keeps an order.)
_uploads: dict[LeftOpen, None] = {}


def kept() -> Mapping[str, int]:
    """Say how many uploads there are to go on with, by registry."""
    return Counter(upload.registry for upload in list(_uploads) if upload.is_kept())


def begin() -> None:
    """Know of nothing that was left so far: another piece of work begins."""
    _uploads.clear()
