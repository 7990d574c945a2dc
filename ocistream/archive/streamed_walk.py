"""Run a walk whose documents arrive in the order of a stream."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocistream.oci.walk import Need, Walk

__all__ = ["StreamedWalk"]

T = TypeVar("T")


class StreamedWalk(Generic[T]):
    """A walk whose documents arrive in the order of a stream.

    `needs` are the needs without an answer, by digest. Each is searched once, when it is new: to search thousands of
    needs again for each entry would take minutes. `result` is set when the walk has ended.
    """

    def __init__(self, walk: Walk[T], find: Callable[[Need], bytes | None]) -> None:
        """Start the walk. `find` returns a document that was read already, or None."""
        self.needs: dict[str, Need] = {}
        self.result: T | None = None
        self._find = find
        self._walk = walk
        self._new = deque(self._advance(lambda: next(walk)))

    def answer_found(self) -> None:
        """Answer the new needs whose documents were read already."""
        while self._new:
            need = self._new.popleft()
            self.needs[need.digest] = need
            if (raw := self._find(need)) is not None:
                self.send(need, raw)

    def send(self, need: Need, raw: bytes | None) -> None:
        """Answer a need. Call `answer_found` next."""
        del self.needs[need.digest]
        if not self.needs:
            # A dict that has become empty keeps its memory.
            self.needs.clear()
        self._new.extend(self._advance(lambda: self._walk.send((need, raw))))

    def answer(self, need: Need, raw: bytes | None) -> None:
        """Answer a need, and the new needs whose documents were read already."""
        self.send(need, raw)
        self.answer_found()

    def skip_candidates(self) -> list[str]:
        """Stop waiting for candidates if nothing else is needed, and return their digests."""
        candidates = [need for need in self.needs.values() if need.is_candidate]
        if len(candidates) < len(self.needs):
            return []
        for need in candidates:
            self.answer(need, None)
        return [need.digest for need in candidates]

    def _advance(self, step: Callable[[], Sequence[Need]]) -> Sequence[Need]:
        try:
            return step()
        except StopIteration as end:
            self.result = end.value
            return ()
