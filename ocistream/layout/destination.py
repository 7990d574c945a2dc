"""An OCI image layout directory as a destination: of one copy, or of several that share a `LayoutWriter`.

Every blob that a transfer relies on is hashed, even if it exists already. No `manifest.json` is written: no tool reads
that file in a directory, and `serve` changes only `index.json`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from ocistream import limits, notices
from ocistream.errors import LocalDiskError, UsageError
from ocistream.layout.directory import LayoutDirectory
from ocistream.layout.index import build_entries, build_index_fields, entry_name_of, image_name_of, may_be_referrer
from ocistream.layout.index_file import IndexChange, IndexFile
from ocistream.oci.omitted_blobs import OMITTED_ANNOTATION, format_omitted, parse_omitted
from ocistream.oci.packed_descriptors import PackedDescriptors, Positions
from ocistream.oci.reference import printable
from ocistream.oci.strict_json import canonical_json, canonical_json_pieces
from ocistream.streams.synchronization import once
from ocistream.streams.workers import DEFAULT_JOBS, run_each
from ocistream.transfer.interfaces import Traits
from ocistream.transfer.verified_blobs import require_complete

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.oci.omitted_blobs import OmissionReason
    from ocistream.streams.chunks import Chunk
    from ocistream.streams.files import FilePart
    from ocistream.transfer.interfaces import NewBlob, VerifiedBlob

#: Bytes of existing blobs from which on they are hashed in several threads.
_MIN_CONCURRENT_HASHING: Final = 16 * limits.MIB


class LayoutDestination:
    """Writes images into a layout directory that may have other images."""

    traits = Traits(concurrent=True, keeps_blobs=True, can_omit=True)

    def __init__(
        self, path: Path, cancelled: threading.Event | None = None, *, writer: LayoutWriter | None = None
    ) -> None:
        """Take the directory. It is created with the first blob, and not if the image does not exist.

        `cancelled` stops the hashing of existing blobs. With a `writer` for several images, its owner makes the images
        visible, by `LayoutWriter.index.flush`.

        Raises:
            UsageError: the directory has other contents.
            LocalDiskError: the path is not a directory, or cannot be read.
        """
        self._writer = LayoutWriter(path) if writer is None else writer
        self._is_shared = writer is not None
        self._layout = self._writer.directory
        self._cancelled = cancelled
        #: Sizes of the blobs that this transfer found or wrote, by digest.
        self._stored: dict[str, int] = {}
        #: The committed entries.
        self.change: IndexChange[Any] | None = None

    def expect(self, graph: Graph) -> Graph:
        """Return the graph: a layout can hold anything.

        Raises:
            UsageError: two images have the same name. In a layout a name means one image, so one would be lost.
        """
        digests_by_name: dict[str, str] = {}
        for entry in build_entries(graph):
            name, digest = image_name_of(entry), entry.digest
            if name is not None and digests_by_name.setdefault(name, digest) != digest:
                msg = f"two images have the name {printable(name)!r}, but a layout has one image per name"
                raise UsageError(msg, hint=f"copy them one by one: {digests_by_name[name]} and {digest}")
        return graph

    def begin(self, graph: Graph) -> None:
        """Make the directory a layout, unless it is one.

        Raises:
            UsageError: two images have the same name, as `expect` says.
            LocalDiskError: the layout cannot be created.
        """
        self.expect(graph)
        self._writer.prepare()

    def stored(self, blobs: Sequence[Descriptor], *, quick: bool = False) -> set[str]:  # noqa: ARG002 - all are checked
        """Return the digests of the blobs that exist. Their files are hashed; a corrupt file will be replaced."""
        complete = [blob for blob in blobs if self._layout.blob_size(blob.digest) == blob.size]
        found: set[str] = set()

        def check(blob: Descriptor) -> None:
            if self._layout.has_blob(blob):
                found.add(blob.digest)
                self._stored[blob.digest] = blob.size

        # Hashing releases Python's lock, and is worth threads only for what takes longer than to start them.
        jobs = DEFAULT_JOBS if sum(blob.size for blob in complete) > _MIN_CONCURRENT_HASHING else 1
        run_each(check, complete, jobs=jobs, cancelled=self._cancelled, sets_cancelled=False)
        return found

    def partial_size(self, blob: Descriptor, /) -> int:
        """Return the size of the partial file of a blob."""
        return self._layout.find_partial_size(blob.digest)

    def write(self, blob: VerifiedBlob) -> int:
        """Write the blob under a temporary name, verify it, and rename the file.

        A partial file of an earlier run is resumed; it must have the bytes before the first one of the source.
        """
        require_complete(blob, can_be_rest=True)
        self._writer.prepare()
        self._layout.store_blob(blob)
        self._stored[blob.descriptor.digest] = blob.descriptor.size
        return 0

    def write_new(self, blob: NewBlob) -> Descriptor:
        """Write the blob under a temporary name, and rename the file once its digest is known."""
        self._writer.prepare()
        descriptor = self._layout.write_new_blob(blob)
        self._stored[descriptor.digest] = descriptor.size
        return descriptor

    def read(self, descriptor: Descriptor) -> Iterator[Chunk]:
        """Yield the chunks of a blob that was written."""
        return self._layout.blob_chunks(descriptor.digest, descriptor.size)

    def commit(self, graph: Graph) -> None:
        """Write the manifests, children first, then `index.json`. A new entry replaces the old entry of the same name.

        Raises:
            LocalDiskError: another process has removed a blob since it was found or written.
        """
        for manifest in graph.manifests:
            digest = manifest.descriptor.digest
            if not self._layout.has_blob(manifest.descriptor):
                self._layout.write_blob(digest, [manifest.raw])
        self.change = self._writer.add(build_entries(graph), graph.omitted_from_output, self._check_still_stored)
        if self._is_shared:
            return
        self._writer.index.flush()
        if self.change.error is not None:
            raise self.change.error
        self._layout.remove_stale(limits.MAX_PARTIAL_AGE)

    def discard(self) -> None:
        """Do nothing: the partial file of a wrong blob is deleted when it is found to be wrong."""

    def close(self) -> None:
        """Release the lock. Partial files stay, so that a later run can resume."""
        if not self._is_shared:
            self._writer.close()

    def _check_still_stored(self) -> None:
        for digest, size in self._stored.items():
            if self._layout.blob_size(digest) != size:
                msg = f"{digest} was removed from {self._layout.path} during the copy"
                raise LocalDiskError(msg, hint="re-run the command: it copies only the missing blobs")


class ListedImages(NamedTuple):
    """What a layout or an archive lists: the digest of a name, and the digests of entries that may be referrers."""

    find_digest: Callable[[str], str | None]
    referrers: AbstractSet[str]


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
        #: Makes the directory a layout, unless it is one, and deletes files of killed processes.
        self.prepare = once(self._prepare)
        self.index = IndexFile(self.directory, self._parse)

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

    def _parse(self, raw: FilePart | None) -> _EntryTable:
        table = _EntryTable()
        self.directory.parse_entries(raw, table.append)
        # After the entries: an error of theirs names the layout.
        table.fields = build_index_fields(raw)
        return table

    def _report_replaced(self, table: _EntryTable, entries: Sequence[Descriptor]) -> None:
        for entry in entries:
            name = entry_name_of(entry)
            previous = table.find_digest(name) if name is not None else None
            if name is not None and previous not in {None, entry.digest}:
                where = f"{printable(name)} in {printable(str(self.directory.path), 1024)}"
                notices.notify(f"{where}: replacing {previous}", level=1)


class _EntryTable:
    """The entries of an `index.json` in order, packed: there may be ten thousand."""

    def __init__(self) -> None:
        #: The fields of the file, with an empty list of entries.
        self.fields: dict[str, Any] = {}
        #: All entries so far, and the positions of removed ones.
        self._entries = PackedDescriptors()
        self._removed: set[int] = set()
        #: By key; see `_key_of`. Only other tools write several entries with one key.
        self._positions = Positions()
        self._size = 0
        #: How many entries have a digest, of those that may be referrers.
        self._referrers: dict[str, int] = {}
        self.images = ListedImages(self.find_digest, self._referrers.keys())

    def __len__(self) -> int:
        return len(self._entries) - len(self._removed)

    def find(self, key: _Key) -> dict[int, Descriptor]:
        """Return the entries with a key, by position."""
        entries = ((position, self._entries[position]) for position in self._positions.find(key))
        return {position: entry for position, entry in entries if _key_of(entry) == key}

    def find_digest(self, name: str) -> str | None:
        """Return the digest of a name. Of two entries with one name, the first is used."""
        return next((entry.digest for entry in self.find(name).values()), None)

    def check_can_add(self, entries: Sequence[Descriptor], directory: LayoutDirectory) -> None:
        """Check that the file can be read again with these entries."""
        new = [entry for entry in entries if not self.find(_key_of(entry))]
        size = self._size + sum(len(canonical_json(entry.to_json())) + 1 for entry in new)
        directory.check_index_size(len(self) + len(new), size)

    def add(self, entries: Sequence[Descriptor]) -> None:
        """Add entries at the end. Each replaces the entries of the same name."""
        added = {_key_of(entry): entry for entry in entries}
        for key in added:
            for position, entry in self.find(key).items():
                self._remove(position, entry)
        for entry in added.values():
            self.append(entry)

    def set_omitted(self, omitted: Mapping[str, OmissionReason], directory: LayoutDirectory) -> None:
        """Set the reasons for blobs that were omitted, now or before, and do not exist."""
        annotations = self.fields.get("annotations")
        annotations = dict(annotations) if isinstance(annotations, dict) else {}
        if not omitted and OMITTED_ANNOTATION not in annotations:
            return
        previous = parse_omitted(annotations.pop(OMITTED_ANNOTATION, ""))
        missing = {
            digest: reason for digest, reason in {**previous, **omitted}.items() if directory.blob_size(digest) is None
        }
        if missing:
            annotations[OMITTED_ANNOTATION] = format_omitted(missing)
        self.fields.pop("annotations", None)
        if annotations:
            self.fields["annotations"] = annotations

    def append(self, entry: Descriptor) -> None:
        """Append an entry, also if others have its name."""
        position = len(self._entries)
        self._entries.append(entry)
        self._positions.add(_key_of(entry), position)
        self._size += len(self._entries.line(position)) + 1
        if may_be_referrer(entry):
            self._referrers[entry.digest] = self._referrers.get(entry.digest, 0) + 1

    def pieces(self) -> Iterator[bytes]:
        """Yield the file's content in canonical form."""
        positions = (position for position in range(len(self._entries)) if position not in self._removed)
        return canonical_json_pieces(self.fields, "manifests", map(self._entries.line, positions))

    def _remove(self, position: int, entry: Descriptor) -> None:
        self._removed.add(position)
        self._positions.remove(_key_of(entry), position)
        self._size -= len(self._entries.line(position)) + 1
        if may_be_referrer(entry):
            self._referrers[entry.digest] -= 1
            if not self._referrers[entry.digest]:
                del self._referrers[entry.digest]


_Key: TypeAlias = "str | tuple[str]"


def _key_of(entry: Descriptor) -> _Key:
    """Return the key of an entry: its name, or its digest if it has no name."""
    name = entry_name_of(entry)
    return name if name is not None else (entry.digest,)
