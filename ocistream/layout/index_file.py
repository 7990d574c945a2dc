"""`index.json` of a layout as a table in memory, which several threads and other processes may change.

The file is read again only after another process changed it. Changes that wait at the same time cost one rewrite.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, Protocol, TypeVar

from ocistream import limits
from ocistream.errors import LocalDiskError, OcistreamError
from ocistream.streams import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ocistream.layout.directory import LayoutDirectory
    from ocistream.streams.files import FilePart

#: Bytes of the file that are hashed at once.
_PIECE: Final = 16 * limits.KIB


class IndexTable(Protocol):
    """The entries of an `index.json`, and its other fields."""

    def __len__(self) -> int:
        """Return the number of entries."""

    def pieces(self) -> Iterable[bytes]:
        """Return the file's content in canonical form."""


_Table = TypeVar("_Table", bound=IndexTable)


@dataclass(eq=False)
class IndexChange(Generic[_Table]):
    """A change of the entries.

    `apply` returns the new table, which may be the same object. If it raises an OcistreamError, the table must be
    unchanged. `on_committed` is called once the new file is durable, and before the entries can change again. `error`
    says why the change was not written.
    """

    apply: Callable[[_Table], _Table]
    on_committed: Callable[[_Table], None] | None = None
    error: OcistreamError | None = None
    is_done: bool = False


class _Version(NamedTuple, Generic[_Table]):
    """A table, and the state and the hash of the file that it was read from or written to."""

    state: files.FileState | None
    content_hash: bytes
    table: _Table


class IndexFile(Generic[_Table]):
    """The `index.json` of one layout. Any thread may call the methods."""

    def __init__(self, directory: LayoutDirectory, parse: Callable[[FilePart | None], _Table]) -> None:
        """Take the layout, and the function that makes a table of the file's content; nothing is read yet."""
        self._directory = directory
        self._parse = parse
        #: It is replaced as a whole, so that any thread may read it.
        self._known: _Version[_Table] | None = None
        #: Held to replace it: one thread at a time parses the file, which takes some megabytes.
        self._loading = threading.Lock()
        self._queue: deque[IndexChange[_Table]] = deque()
        self._writing = threading.Lock()

    def read(self) -> _Table:
        """Return the present entries; the file is read only if another process has changed it.

        Raises:
            ArchiveError: the file is malformed.
            LocalDiskError: the file cannot be read.
        """
        if (table := self._current_table()) is None:
            with self._loading:
                if (table := self._current_table()) is None:
                    table = self._load().table
        return table

    def add(self, change: IndexChange[_Table]) -> None:
        """Add a change, which `flush` writes."""
        self._queue.append(change)

    @property
    def is_flushed(self) -> bool:
        """Whether all changes are written."""
        return not self._queue

    def flush(self) -> None:
        """Write the added changes. A change that cannot be written has its `error` afterwards."""
        with self._writing:
            self._write_queued()

    def update(self, change: IndexChange[_Table]) -> None:
        """Write a change. When this returns, the new file is durable.

        Raises:
            OcistreamError: the change cannot be written.
        """
        self.add(change)
        # The thread that gets this lock writes the changes of all that wait for it.
        with self._writing:
            if not change.is_done:
                self._write_queued()
        if change.error is not None:
            raise change.error

    def _current_table(self) -> _Table | None:
        known = self._known
        return known.table if known is not None and known.state == self._file_state() else None

    def _file_state(self) -> files.FileState | None:
        with files.disk_errors(f"cannot read {self._directory.index_path}"):
            try:
                return files.file_state(self._directory.index_path.lstat())
            except FileNotFoundError:
                return None

    def _load(self) -> _Version[_Table]:
        """Read the file, and parse it unless its content is known. The caller holds the lock."""
        state = self._file_state()
        known = self._known
        with self._directory.open_index() as raw:
            if known is not None and known.content_hash == _hash_file(raw):
                table = known.table
            else:
                # The old table is freed first.
                known = self._known = None
                table = self._parse(raw)
            self._known = version = _Version(state, _hash_file(raw), table)
        return version

    def _write_queued(self) -> None:
        if not self._queue:
            return
        group: list[IndexChange[_Table]] = []
        try:
            with self._directory.lock_index():
                # Only now: changes that arrived while another process had the lock are in the group.
                self._take_queued(group)
                self._commit(group)
        except BaseException as caught:
            # The table may have changes that were not written.
            with self._loading:
                self._known = None
            if not group:
                # There was no lock. The queued changes wait for the same one, so they fail too.
                self._take_queued(group)
            unforeseen = LocalDiskError(f"cannot write {self._directory.index_path}")
            error = caught if isinstance(caught, OcistreamError) else unforeseen
            for change in group:
                change.error = change.error or error
            if error is unforeseen:
                raise
        finally:
            for change in group:
                change.is_done = True

    def _take_queued(self, group: list[IndexChange[_Table]]) -> None:
        while self._queue:
            group.append(self._queue.popleft())

    def _commit(self, group: Sequence[IndexChange[_Table]]) -> None:
        """Apply each change to the entries that the previous one returned, and write the result.

        A change that fails alone does not stop the others.
        """
        with self._loading:
            # By content: size, mtime and inode may be equal after two quick changes by another process.
            table = self._load().table
        applied = []
        for change in group:
            try:
                with files.disk_errors(f"cannot write {self._directory.index_path}"):
                    table = change.apply(table)
            except OcistreamError as error:
                change.error = error
            else:
                applied.append(change)
        if not applied:
            return
        hasher = hashlib.sha256()

        def hashed_pieces() -> Iterator[bytes]:
            for piece in table.pieces():
                hasher.update(piece)
                yield piece

        state = self._directory.write_index(len(table), hashed_pieces())
        with self._loading:
            self._known = _Version(state, hasher.digest(), table)
        for change in applied:
            if change.on_committed is not None:
                try:
                    change.on_committed(table)
                except OcistreamError as error:
                    change.error = error


def _hash_file(raw: FilePart | None) -> bytes:
    if raw is None:
        return b""
    hasher = hashlib.sha256()
    for start in range(0, len(raw), _PIECE):
        hasher.update(raw[start : start + _PIECE])
    return hasher.digest()
