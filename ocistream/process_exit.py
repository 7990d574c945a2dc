"""What the end of this process must wait for, undo or report: open uploads, and blocks that a signal interrupts.

The end of a run reports upload sessions that it leaves open, or may leave open, at registries: the same command can
resume them.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: Seconds for a cancelled upload to end, or to delete its session.
_SETTLE_TIMEOUT: Final = 3.0
#: The same for a request that can be ended so that the registry keeps its bytes.
END_REQUEST_TIMEOUT: Final = 10.0


class OpenUpload:
    """One upload into a registry (`HOST[:PORT]`); its methods may be called from any thread.

    `is_resumable` returns whether a later run would try to resume the upload in its present state. `stored_size`
    returns how many bytes the registry has confirmed; 0 during a request, since not every registry keeps an interrupted
    request. `can_end` returns whether the current request can be ended so that the registry keeps it.
    """

    def __init__(
        self,
        registry: str,
        is_resumable: Callable[[], bool],
        *,
        stored_size: Callable[[], int] = lambda: 0,
        can_end: Callable[[], bool] = lambda: False,
    ) -> None:
        """Register an upload in progress."""
        self.registry = registry
        self.is_resumable = is_resumable
        self.stored_size = stored_size
        self.can_end = can_end
        self.is_in_progress = True
        _uploads[self] = None

    def leave_open(self) -> None:
        """Mark the upload as finished in this process and open at the registry."""
        stored_size = self.stored_size()
        self.is_resumable, self.stored_size, self.can_end = lambda: True, lambda: stored_size, lambda: False
        self.is_in_progress = False

    def abandon(self) -> None:
        """Mark the upload as being deleted: no run will resume it."""
        self.is_resumable, self.can_end = lambda: False, lambda: False

    def remove(self) -> None:
        """Remove the upload: it is finished, or its session was deleted or could not be deleted."""
        _uploads.pop(self, None)


#: Uploads of all threads, in progress or left open. (A dict is safe for several threads, and keeps an order.)
_uploads: dict[OpenUpload, None] = {}


def count_resumable() -> Mapping[str, tuple[int, int]]:
    """Return the resumable uploads with confirmed bytes, by registry: their number and their bytes."""
    uploads: dict[str, tuple[int, int]] = {}
    for upload in list(_uploads):
        if upload.is_resumable() and (size := upload.stored_size()):
            count, total = uploads.get(upload.registry, (0, 0))
            uploads[upload.registry] = count + 1, total + size
    return uploads


def count_unconfirmed() -> Mapping[str, int]:
    """Return the number of resumable uploads without confirmed bytes, by registry: these may be lost."""
    return Counter(upload.registry for upload in list(_uploads) if upload.is_resumable() and not upload.stored_size())


def can_any_end() -> bool:
    """Return whether an upload is in progress whose request can be ended so that the registry keeps it."""
    return any(upload.can_end() for upload in list(_uploads))


def settle_timeout() -> float:
    """Return for how many seconds after an interruption uploads are worth waiting for; 0 if none is in progress."""
    if can_any_end():
        return END_REQUEST_TIMEOUT
    return _SETTLE_TIMEOUT if any(upload.is_in_progress for upload in list(_uploads)) else 0.0


def reset() -> None:
    """Forget all uploads, before another piece of work begins."""
    _uploads.clear()


#: Callbacks and delays of the blocks that run. (A dict is safe for several threads.)
_callbacks: dict[object, Callable[[], object]] = {}
_delays: dict[object, float] = {}


@contextlib.contextmanager
def called_at_forced_exit(callback: Callable[[], object]) -> Iterator[None]:
    """Call `callback` if the process ends while the block still runs. It must be short, and may run in any thread."""
    key = object()
    _callbacks[key] = callback
    try:
        yield
    finally:
        _callbacks.pop(key, None)


@contextlib.contextmanager
def delayed_exit(seconds: float) -> Iterator[None]:
    """Let the block run for up to `seconds` after a signal before the process ends."""
    key = object()
    _delays[key] = seconds
    try:
        yield
    finally:
        _delays.pop(key, None)


def find_delay() -> float:
    """Return for how many seconds after a signal the process must not end: for open uploads, and for `delayed_exit`."""
    return max(settle_timeout(), *list(_delays.values()), 0.0)


def run_callbacks() -> None:
    """Call the callbacks of all blocks that still run. An `OSError` is ignored."""
    for callback in list(_callbacks.values()):
        with contextlib.suppress(OSError):
            callback()
