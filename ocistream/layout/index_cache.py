"""Cache of a layout's parsed `index.json` for a process that changes the file often, such as `ocistream serve`.

The file is parsed only after another process wrote it. The cache key is the file's SHA-256: size, mtime and inode may
be equal after two quick changes.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

from ocistream.layout.index import build_index_fields
from ocistream.oci.strict_json import canonical_json, canonical_json_with_items
from ocistream.streams import files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ocistream.layout.directory import LayoutDirectory
    from ocistream.oci.descriptor import Descriptor

__all__ = ["IndexCache", "LoadedIndex"]


class LoadedIndex(NamedTuple):
    """One content of the file: its entries, its other fields, and the JSON of each entry by the entry's `id`."""

    entries: Sequence[Descriptor]
    fields: Mapping[str, Any]
    lines: Mapping[int, bytes]


class IndexCache:
    """The parsed `index.json` of one layout. Safe for several readers; a caller that writes holds the layout's lock."""

    def __init__(self, layout: LayoutDirectory) -> None:
        """Take the layout. Nothing is read yet."""
        self._layout = layout
        #: By SHA-256: the content of the file, and while it is replaced the new content too.
        self._known: Mapping[bytes, LoadedIndex] = {}

    def load(self) -> LoadedIndex:
        """Return the present content of the file; without a file, an index without entries.

        Raises:
            ArchiveError: the file is malformed, or a link.
            LocalDiskError: the file cannot be read.
        """
        raw = self._layout.read_raw_index()
        key = _content_key(raw)
        index = self._known.get(key)
        if index is None:
            index = LoadedIndex(self._layout.parse_index(raw).entries, build_index_fields(raw), {})
            self._known = {key: index}
        return index

    def with_entries(self, index: LoadedIndex, entries: Sequence[Descriptor]) -> LoadedIndex:
        """Return the index with other entries; only entries that are new are written as JSON.

        Raises:
            UnsupportedError: the file would be too large to be read again.
        """
        # `index` keeps its entries alive, so no other object has the same `id`.
        lines = {id(entry): index.lines.get(id(entry)) or canonical_json(entry.to_json()) for entry in entries}
        self._layout.check_index_size(len(entries), sum(map(len, lines.values())) + len(entries))
        return LoadedIndex(entries, index.fields, lines)

    def write(self, index: LoadedIndex) -> None:
        """Replace the file. When this returns, the new file is durable.

        Raises:
            UnsupportedError: the file would be too large to be read again.
            OSError: the file cannot be written.
        """
        lines = (index.lines[id(entry)] for entry in index.entries)
        raw = canonical_json_with_items(index.fields, "manifests", lines)
        self._layout.check_index_size(len(index.entries), len(raw))
        before, after = self._known, {_content_key(raw): index}
        # A thread that reads the new file before this function returns finds it here too.
        self._known = {**before, **after}
        try:
            with files.atomic_file(self._layout.index_path) as file:
                files.write_all(file, raw)
        except BaseException:
            self._known = before
            raise
        self._known = after


def _content_key(raw: bytes | None) -> bytes:
    return b"" if raw is None else hashlib.sha256(raw).digest()
