"""Indexes within indexes: what an index lists in all, and which indexes are known completely."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.documents import Document

__all__ = ["Nesting", "leaves_of", "nested_indexes"]


def leaves_of(documents: Mapping[str, Document], index: str) -> list[Descriptor]:
    """List the manifests of an index, and of the indexes within it, in order; `documents` has the known ones.

    Each index is read once: a few indexes that list each other many times would have billions of leaves.
    """
    leaves: list[Descriptor] = []
    seen = {index}
    todo = list(reversed(documents[index].manifests))
    while todo:
        descriptor = todo.pop()
        if not descriptor.is_index:
            leaves.append(descriptor)
        elif descriptor.digest in documents and descriptor.digest not in seen:
            seen.add(descriptor.digest)
            todo.extend(reversed(documents[descriptor.digest].manifests))
    return leaves


def nested_indexes(documents: Mapping[str, Document], index: str) -> list[str]:
    """List the digests of an index and of the known indexes within it, in the order of `leaves_of`."""
    found: dict[str, None] = {}
    todo = [index]
    while todo:
        digest = todo.pop()
        if digest in found or digest not in documents:
            continue
        found[digest] = None
        todo.extend(child.digest for child in reversed(documents[digest].manifests) if child.is_index)
    return list(found)


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
