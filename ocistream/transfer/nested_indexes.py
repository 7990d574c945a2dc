"""Indexes within indexes: what an index lists in all, and which indexes are known completely."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.documents import Document

__all__ = ["NestedIndexes", "leaves_of", "nested_indexes"]


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


class NestedIndexes:
    """Which indexes are known whole, themselves and all within them. Every nesting is looked at once.

    (To walk what is incomplete again whenever something arrives would cost hours where thousands are nested.)
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._complete: set[str] = set()
        self._missing_count: dict[str, int] = {}
        self._parents: dict[str, list[str]] = {}

    def is_complete(self, index: str) -> bool:
        """Say whether an index and all within it is known."""
        return index in self._complete

    def add(self, index: str, nested: set[str]) -> list[str]:
        """Take note of an index and the digests of those in it; give the indexes that are whole now and were not."""
        unknown = nested - self._complete
        self._missing_count[index] = len(unknown)
        for digest in unknown:
            self._parents.setdefault(digest, []).append(index)
        whole = [] if unknown else [index]
        for digest in whole:
            self._complete.add(digest)
            for around in self._parents.pop(digest, ()):
                self._missing_count[around] -= 1
                if not self._missing_count[around]:
                    whole.append(around)
        return whole
