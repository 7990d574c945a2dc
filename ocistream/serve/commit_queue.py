"""Group commit: threads queue their changes, and one thread writes all queued changes at once.

This module does not know what is changed or where it is written.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

__all__ = ["CommitQueue", "CommitResult"]

ChangeT = TypeVar("ChangeT", bound="CommitResult")


class CommitResult:
    """Keeps the exception that ends a `with` block, so that another thread can raise it."""

    def __init__(self) -> None:
        """Start without an error."""
        self.error: BaseException | None = None
        self.is_done = False

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Keep the first exception."""
        self.error = self.error or error
        return True


class CommitQueue(Generic[ChangeT]):
    """Commits changes in groups. Safe for several threads.

    `index.json` is one file, so a group of changes costs one rewrite. `commit` gets a function that takes the queued
    changes out of the queue. It should call this function late, for instance when it has a lock: changes that arrive
    until then join the group. A change that fails alone gets its own `error`; if `commit` raises, all changes of the
    group fail.
    """

    def __init__(self, commit: Callable[[Callable[[], Sequence[ChangeT]]], None]) -> None:
        """Call `commit` in one thread at a time."""
        self._commit = commit
        self._state = threading.Condition()
        self._queued: list[ChangeT] = []
        self._is_committing = False

    def submit(self, change: ChangeT) -> None:
        """Return when the change is committed; raise its error if it fails."""
        with self._state:
            self._queued.append(change)
            self._state.wait_for(lambda: change.is_done or not self._is_committing)
            is_writer = not change.is_done
            if is_writer:
                self._is_committing = True
        if is_writer:
            self._write()
        if change.error is not None:
            raise change.error

    def _write(self) -> None:
        group: list[ChangeT] = []

        def take() -> Sequence[ChangeT]:
            with self._state:
                group.extend(self._queued)
                self._queued.clear()
            return group

        with CommitResult() as outcome:
            self._commit(take)
        if not group:
            # The commit failed before it took a change, for instance because it did not get a lock. The queued changes
            # wait for the same lock, so they fail too.
            take()
        with self._state:
            for change in group:
                change.error = change.error or outcome.error
                change.is_done = True
            self._is_committing = False
            self._state.notify_all()
