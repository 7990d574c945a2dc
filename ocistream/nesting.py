"""Indexes within indexes: which of them are known whole. Digests only; what is in them is graph.py's concern."""

from __future__ import annotations

__all__ = ["Nesting"]


class Nesting:
    """Which indexes are known whole, themselves and all within them. Every nesting is looked at once.

    (To walk what is incomplete again whenever something arrives would cost hours where thousands are nested.)
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._whole: set[str] = set()
        self._lacking: dict[str, int] = {}
        self._around: dict[str, list[str]] = {}

    def is_whole(self, index: str) -> bool:
        """Say whether an index and all within it is known."""
        return index in self._whole

    def add(self, index: str, nested: set[str]) -> list[str]:
        """Take note of an index and the digests of those in it; give the indexes that are whole now and were not."""
        unknown = nested - self._whole
        self._lacking[index] = len(unknown)
        for digest in unknown:
            self._around.setdefault(digest, []).append(index)
        whole = [] if unknown else [index]
        for digest in whole:
            self._whole.add(digest)
            for around in self._around.pop(digest, ()):
                self._lacking[around] -= 1
                if not self._lacking[around]:
                    whole.append(around)
        return whole
