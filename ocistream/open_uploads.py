"""Upload sessions that this process has left open, or may leave open, at registries.

The end of a run reports them, since the same command can resume them.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["OpenUpload", "can_any_end", "count_resumable", "count_unconfirmed", "reset"]


class OpenUpload:
    """One upload into a registry (`HOST[:PORT]`), which may be asked about from any thread.

    `is_kept` says whether a later run would try to resume it as it is now. `stored` says how many bytes the registry
    has confirmed; 0 while a request is under way, since not every registry keeps a request that breaks. `can_end` says
    whether the request under way can be ended properly.
    """

    def __init__(
        self,
        registry: str,
        is_kept: Callable[[], bool],
        *,
        stored: Callable[[], int] = lambda: 0,
        can_end: Callable[[], bool] = lambda: False,
    ) -> None:
        """Know of an upload that is under way."""
        self.registry = registry
        self.is_resumable = is_kept
        self.stored_size = stored
        self.can_end = can_end
        _uploads[self] = None

    def leave_open(self) -> None:
        """Note that it is over in this process, and open at the registry."""
        stored = self.stored_size()
        self.is_resumable, self.stored_size, self.can_end = lambda: True, lambda: stored, lambda: False

    def remove(self) -> None:
        """Note that nothing of it is left."""
        _uploads.pop(self, None)


#: Those under way, in any thread, and those that were left. (A dict is safe for several threads, and keeps an order.)
_uploads: dict[OpenUpload, None] = {}


def count_resumable() -> Mapping[str, tuple[int, int]]:
    """Return, by registry, of how many uploads that a later run would resume it has confirmed bytes, and how many."""
    found: dict[str, tuple[int, int]] = {}
    for upload in list(_uploads):
        if upload.is_resumable() and (size := upload.stored_size()):
            count, total = found.get(upload.registry, (0, 0))
            found[upload.registry] = count + 1, total + size
    return found


def count_unconfirmed() -> Mapping[str, int]:
    """Return, by registry, how many uploads that a later run would try to resume it may have lost."""
    return Counter(upload.registry for upload in list(_uploads) if upload.is_resumable() and not upload.stored_size())


def can_any_end() -> bool:
    """Return whether there is an upload under way whose request can be ended so that the registry keeps it."""
    return any(upload.can_end() for upload in list(_uploads))


def reset() -> None:
    """Know of nothing that was left so far: another piece of work begins."""
    _uploads.clear()
