"""What a graph needs of a stream and has passed already: it is held, was handed to the sink, or was given before."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ocistream import limits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ocistream.archive.docker_stream import Passed
    from ocistream.layout.index_entries import Gathering
    from ocistream.oci.descriptor import Descriptor
    from ocistream.transfer.interfaces import Early

__all__ = ["Answering"]


class Answering:
    """Answers the needs of a graph out of what has `passed`; the digests that it takes from there become `given`.

    Every manifest that was supplied is kept, up to a limit: a second graph may be made of the same stream.
    """

    def __init__(
        self, passed: Passed, given: set[str], *, note: Callable[[str, bytes], None] = lambda _digest, _raw: None
    ) -> None:
        """Share both with the reader of the stream; `note` is called with what the sink gave back."""
        self._note = note
        self._passed = passed
        self._given = given
        self._supplied: dict[str, bytes] = {}
        self._size = 0

    @property
    def has_all(self) -> bool:
        """Whether everything that was supplied is still kept."""
        return self._size <= limits.MAX_GRAPH_BYTES

    def next_need(self, gathering: Gathering, early: Early) -> Descriptor | None:
        """Give what is needed and has not passed yet: what hangs on an image is needed when all of that is known."""
        while (needed := gathering.needed()) is not None:
            if not self._has(needed.digest):
                break
            self.answer(gathering, early)
        return needed

    def answer(self, gathering: Gathering, early: Early, passed: str | None = None) -> None:
        """Give the gathering what it needs and has passed already.

        Only what was just `passed`, and what is needed since this was last done, can have become answerable: thousands
        of needs are not gone through again for each entry.
        """
        looked_for = deque([passed] if passed else [])
        looked_for.extend(gathering.new_needs())
        while looked_for:
            found = looked_for.popleft()
            if gathering.needs(found) and self._has(found):
                gathering.supply(found, self._passed_before(gathering, found, early))
                looked_for.extend(gathering.new_needs())

    def keep(self, digest: str, raw: bytes) -> None:
        """Keep a manifest that was supplied, unless there are too many of them: then none is kept."""
        self._size += len(raw)
        if self.has_all:
            self._supplied[digest] = raw
        else:
            self._supplied.clear()

    def add(self, made: Mapping[str, bytes]) -> None:
        """Take manifests that are not in the stream."""
        self._supplied |= made

    def forget(self) -> None:
        """Let go of everything that is kept: no other graph will be made."""
        self._supplied.clear()

    def _has(self, digest: str) -> bool:
        return digest in self._passed.held or digest in self._passed.spilled or digest in self._supplied

    def _passed_before(self, gathering: Gathering, digest: str, early: Early) -> bytes:
        if digest in self._passed.held:
            if gathering.wants_config(digest):
                # It is a blob as well, and will be asked for.
                return self._passed.held[digest]
            content = self._passed.held.pop(digest)
            self._passed.held_bytes -= len(content)
            self._given.add(digest)
            self.keep(digest, content)
            return content
        if digest in self._supplied:
            return self._supplied[digest]
        raw = early.recall(self._passed.spilled[digest])
        self._note(digest, raw)
        return raw
