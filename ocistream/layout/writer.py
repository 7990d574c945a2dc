"""Write images into one layout: prepare the directory once, and write `index.json` for several images at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocistream import notices
from ocistream.layout.directory import LayoutDirectory
from ocistream.layout.index import build_index_fields, entry_name_of
from ocistream.layout.index_file import IndexChange, IndexFile
from ocistream.oci.omitted_blobs import OMITTED_ANNOTATION, format_omitted, parse_omitted
from ocistream.oci.reference import printable
from ocistream.oci.strict_json import canonical_json, canonical_json_pieces
from ocistream.streams.synchronization import once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.omitted_blobs import OmissionReason


class ListedImages(NamedTuple):
    """The images that a layout or an archive lists: the digest of each name, and all digests."""

    by_name: Mapping[str, str]
    digests: AbstractSet[str]


class LayoutWriter:
    """One layout directory, and its `index.json` as it was last read or written.

    Any thread may call `prepare` and `add`. Only one thread at a time may call the other methods.
    """

    def __init__(self, path: Path) -> None:
        """Check that the directory, if it exists, is a layout or may become one.

        Raises:
            UsageError: the directory has other contents.
            ArchiveError: the layout is malformed.
            LocalDiskError: the path is not a directory, or cannot be read.
        """
        self.directory = LayoutDirectory(path)
        self.directory.check_usable()
        #: A lock on the blobs that tells `gc` that images are being added.
        self._blobs_lock: int | None = None
        self._prepare_once = once(self._prepare)
        self.index = IndexFile(self.directory, self._parse)

    def prepare(self) -> None:
        """Make the directory a layout, unless it is one, and delete files of killed processes.

        Raises:
            LocalDiskError: the layout cannot be created.
        """
        self._prepare_once()

    def _prepare(self) -> None:
        self.directory.create()
        if self._blobs_lock is None:
            self._blobs_lock = self.directory.lock_blobs()
        self.directory.remove_stale()

    def list_images(self) -> ListedImages:
        """Return the images that `index.json` lists. The file is read again only after another process changed it.

        Raises:
            ArchiveError: the index is malformed.
            LocalDiskError: the index cannot be read.
        """
        return self.index.read().images

    def add(
        self, entries: Sequence[Descriptor], omitted: Mapping[str, OmissionReason], check: Callable[[], None]
    ) -> IndexChange[_EntryTable]:
        """Add the entries of one image, which `index.flush` writes; a new entry replaces the old one of the same name.

        `omitted` are blobs that were not written. `check` raises an error if a blob of the image does not exist any
        more. It is called under the lock of `index.json`, which `gc` takes too.
        """

        def apply(table: _EntryTable) -> _EntryTable:
            check()
            table.check_can_add(entries, self.directory)
            table.set_omitted(omitted, self.directory)
            self._report_replaced(table, entries)
            table.add(entries)
            return table

        change = IndexChange(apply)
        self.index.add(change)
        return change

    def close(self) -> None:
        """Release the lock of the blobs. Partial files stay, so that a later run can resume."""
        lock, self._blobs_lock = self._blobs_lock, None
        if lock is not None:
            os.close(lock)

    def _parse(self, raw: bytes | None) -> _EntryTable:
        fields = build_index_fields(raw)
        entries = self.directory.parse_index(raw).entries
        del raw
        return _EntryTable(entries, fields)

    def _report_replaced(self, table: _EntryTable, entries: Sequence[Descriptor]) -> None:
        for entry in entries:
            name = entry_name_of(entry)
            previous = table.images.by_name.get(name) if name is not None else None
            if name is not None and previous not in {None, entry.digest}:
                where = f"{printable(name)} in {printable(str(self.directory.path), 1024)}"
                notices.notify(f"{where}: replacing {previous}", level=1)


class _EntryTable:
    """The entries of an `index.json` as JSON, in order, with the names and digests to find them by."""

    def __init__(self, entries: list[Descriptor], fields: dict[str, Any]) -> None:
        self._fields = fields
        #: The digest and the JSON of each entry, by its position.
        self._lines: dict[int, tuple[str, bytes]] = {}
        self._next = 0
        #: The position of the first entry with a key, and those of others with the same key: these are few.
        self._positions: dict[str, int] = {}
        self._others: dict[str, list[int]] = {}
        self._size = 0
        #: How many entries have a digest.
        self._digests: dict[str, int] = {}
        self.images = ListedImages(_NameView(self._positions, self._lines), self._digests.keys())
        # Each entry is freed as soon as its line exists.
        entries.reverse()
        while entries:
            self._append(entries.pop())

    def __len__(self) -> int:
        return len(self._lines)

    def check_can_add(self, entries: Sequence[Descriptor], directory: LayoutDirectory) -> None:
        """Check that the file can be read again with these entries."""
        new = [entry for entry in entries if _key_of(entry) not in self._positions]
        size = self._size + sum(len(canonical_json(entry.to_json())) + 1 for entry in new)
        directory.check_index_size(len(self) + len(new), size)

    def add(self, entries: Sequence[Descriptor]) -> None:
        """Add entries at the end. Each replaces the entries of the same name."""
        added = {_key_of(entry): entry for entry in entries}
        for key in added:
            if key in self._positions:
                for position in (self._positions.pop(key), *self._others.pop(key, ())):
                    self._remove(position)
        for entry in added.values():
            self._append(entry)

    def set_omitted(self, omitted: Mapping[str, OmissionReason], directory: LayoutDirectory) -> None:
        """Set the reasons for blobs that were omitted, now or before, and do not exist."""
        annotations = self._fields.get("annotations")
        annotations = dict(annotations) if isinstance(annotations, dict) else {}
        if not omitted and OMITTED_ANNOTATION not in annotations:
            return
        previous = parse_omitted(annotations.pop(OMITTED_ANNOTATION, ""))
        missing = {
            digest: reason for digest, reason in {**previous, **omitted}.items() if directory.blob_size(digest) is None
        }
        if missing:
            annotations[OMITTED_ANNOTATION] = format_omitted(missing)
        self._fields.pop("annotations", None)
        if annotations:
            self._fields["annotations"] = annotations

    def pieces(self) -> list[bytes]:
        """Return the file's content in canonical form."""
        return [*canonical_json_pieces(self._fields, "manifests", (line for _, line in self._lines.values()))]

    def _append(self, entry: Descriptor) -> None:
        line = canonical_json(entry.to_json())
        self._lines[self._next] = entry.digest, line
        key = _key_of(entry)
        if self._positions.setdefault(key, self._next) != self._next:
            self._others.setdefault(key, []).append(self._next)
        self._next += 1
        self._size += len(line) + 1
        self._digests[entry.digest] = self._digests.get(entry.digest, 0) + 1

    def _remove(self, position: int) -> None:
        digest, line = self._lines.pop(position)
        self._size -= len(line) + 1
        self._digests[digest] -= 1
        if not self._digests[digest]:
            del self._digests[digest]


class _NameView(Mapping[str, str]):
    """The digest of each name. Of two entries with one name, the first is used."""

    def __init__(self, positions: Mapping[str, int], lines: Mapping[int, tuple[str, bytes]]) -> None:
        self._positions = positions
        self._lines = lines

    def __getitem__(self, name: str) -> str:
        return self._lines[self._positions[name]][0]

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._positions if not key.startswith(_UNNAMED))

    def __len__(self) -> int:
        return sum(1 for _ in self)


#: Begins the keys of entries without a name.
_UNNAMED: Final = "\0"


def _key_of(entry: Descriptor) -> str:
    """Return the unique key of an entry: its name, or its digest if it has no name."""
    name = entry_name_of(entry)
    return name if name is not None else f"{_UNNAMED}{entry.digest}"
