"""A cache: a layout directory in which what was fetched is kept, for runs to come and for those beside this one.

Nothing that goes wrong in it is a failure: a run then fetches what it could have spared, or keeps nothing. How it is
used is told in `cached`.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from typing import TYPE_CHECKING, Final

from ocistream import limits, notices
from ocistream.errors import (
    IntegrityError,
    LocalDiskError,
    OcistreamError,
    UsageError,
)
from ocistream.layout.directory import LayoutDirectory
from ocistream.oci.descriptor import UNKNOWN_TYPE, Descriptor
from ocistream.streams import files, paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ocistream.streams.chunks import Chunk

__all__ = ["Cache"]

#: What is said where something that is no file has the place of a blob.
_IN_THE_PLACE: Final = frozenset({errno.EISDIR, errno.EINVAL, errno.ENOTEMPTY, errno.EEXIST})


class Cache:
    """The directory, and what this run has had from it. Safe for several threads, and for several processes."""

    def __init__(self, path: Path) -> None:
        """Name the directory; it is made when there is something to keep.

        Raises:
            UsageError: it is a file, or there are other things in it.
            ArchiveError: what there is of a layout is malformed.
        """
        self.layout = LayoutDirectory(path)
        self.is_keeping = True
        #: By digest, how many bytes of a blob came from here when it was last read.
        self.given: dict[str, int] = {}
        self._lock = threading.Lock()
        self._is_made = False
        try:
            with files.disk_errors(f"cannot read the cache {path}"):
                if paths.exists(path) and not paths.is_directory(path):
                    msg = f"the cache {path} is no directory"
                    raise UsageError(msg, hint="name an empty or a new directory, or a layout")
            self.layout.check_free()
        except (OSError, LocalDiskError) as error:
            self.keep_nothing(error)

    def keep_nothing(self, error: OSError | OcistreamError) -> None:
        """Keep nothing more in this run, and say why."""
        with self._lock:
            was_keeping, self.is_keeping = self.is_keeping, False
        if was_keeping:
            why = error.what if isinstance(error, OcistreamError) else error.strerror or str(error)
            notices.notice(f"nothing more is kept in the cache {self.layout.path}: {why}")

    # -- what is there ------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Say whether there is anything."""
        with contextlib.suppress(LocalDiskError):
            return self.layout.exists()
        return False

    def has(self, descriptor: Descriptor) -> bool:
        """Say whether a blob seems to be there, by its size."""
        return self._size(descriptor.digest) == descriptor.size

    def _size(self, digest: str) -> int | None:
        try:
            return self.layout.blob_size(digest)
        except OcistreamError:
            return None

    def document(self, digest: str) -> bytes | None:
        """Read a manifest, verified; None where it is not there, or wrong."""
        size = self._size(digest)
        if size is None or size > limits.MAX_MANIFEST:
            return None
        try:
            raw = self.layout.read_blob(Descriptor(UNKNOWN_TYPE, digest, size))
        except IntegrityError:
            self.drop_if_wrong(digest)
            return None
        except OcistreamError:
            return None
        self.layout.touch(digest)
        return raw

    def drop_if_wrong(self, digest: str) -> None:
        """Look whether what is there is what its name says, whatever was promised of it; if not, remove it."""
        # What cannot be read, or removed, stays; in its place is put what is fetched.
        with contextlib.suppress(OcistreamError):
            size = self.layout.blob_size(digest)
            if size is None or self.layout.holds(Descriptor(UNKNOWN_TYPE, digest, size)):
                return
            notices.notice(f"{digest} in the cache {self.layout.path} is wrong; it is fetched", level=1)
            self.layout.delete_blob(digest)

    # -- what is kept -------------------------------------------------------------------------------------

    def keep(self, digest: str, raw: bytes) -> None:
        """Keep a manifest that is what its digest says."""
        with self.keeping(digest) as copy:
            copy.write(raw)
            copy.is_whole = True

    @contextlib.contextmanager
    def keeping(self, digest: str) -> Iterator[_Copy]:
        """Write beside what happens in the block what is to be kept if it `is_whole` at the end."""
        copy = _Copy(self, digest)
        try:
            yield copy
        finally:
            copy.end()

    def make(self) -> None:
        """Make the directory a layout, unless it is one, and clear up what killed processes have left in it.

        Raises:
            OcistreamError, OSError: it cannot be made.
        """
        with self._lock:
            if self._is_made:
                return
            self.layout.create()
            if not paths.exists(self.layout.path / "index.json"):
                # It is for others: without it this would be no layout.
                self.layout.change_index(lambda entries: entries)
            self.layout.sweep()
            self._is_made = True


class _Copy:
    """A blob on its way into the cache, beside its way elsewhere. Nothing here fails."""

    def __init__(self, cache: Cache, digest: str) -> None:
        self.is_whole = False
        self._cache = cache
        self._digest = digest
        self._stack = contextlib.ExitStack()
        self._writer: files.SteadyWriter | None = None
        self._name: Callable[[], None] = lambda: None
        if not cache.is_keeping:
            return
        with self._failing():
            cache.make()
            path = cache.layout.blob_path(digest)
            path.parent.mkdir(parents=True, exist_ok=True)
            # It is hashed before it is used, so the disk is not waited for.
            writing = files.named_at_the_end(path.parent, path.name, durable=False, synced=False)
            file, name = self._stack.enter_context(writing)
            self._name = lambda: name(path)
            self._writer = files.SteadyWriter(file)

    def write(self, chunk: Chunk) -> None:
        if self._writer is not None:
            with self._failing():
                self._writer.write(chunk)

    def end(self) -> None:
        if self._writer is None:
            return
        if not self.is_whole:
            self._drop()
            return
        with self._failing():
            self._name()
            self._stack.close()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Keep nothing of this blob, nor of others, unless only its own place is taken."""
        try:
            yield
        except (OSError, OcistreamError) as error:
            self._drop()
            if isinstance(error, OSError) and error.errno in _IN_THE_PLACE:
                # It stays there, and would end the keeping of everything each time.
                where = f"{self._digest} is not kept in the cache {self._cache.layout.path}"
                notices.notice(f"{where}: what is in its place is no file")
                return
            self._cache.keep_nothing(error)

    def _drop(self) -> None:
        self._writer = None
        with contextlib.suppress(_UnwantedError, OSError), self._stack:
            raise _UnwantedError


class _UnwantedError(Exception):
    """What is written is not to be kept."""
