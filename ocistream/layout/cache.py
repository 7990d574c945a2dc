"""The blob cache: a layout directory that keeps fetched blobs for later and concurrent runs.

A failure of the cache is never a failure of the run: the blob is fetched from the registry, or is not stored.
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
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor
from ocistream.streams import files, paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ocistream.streams.chunks import Chunk

__all__ = ["Cache"]

#: What is said where something that is no file has the place of a blob.
_OCCUPIED_PATH_ERRNOS: Final = frozenset({errno.EISDIR, errno.EINVAL, errno.ENOTEMPTY, errno.EEXIST})


class Cache:
    """The directory, and what this run has had from it. Safe for several threads, and for several processes."""

    def __init__(self, path: Path) -> None:
        """Name the directory; it is made when there is something to keep.

        Raises:
            UsageError: it is a file, or there are other things in it.
            ArchiveError: what there is of a layout is malformed.
        """
        self.layout = LayoutDirectory(path)
        self.is_enabled = True
        #: By digest, how many bytes of a blob came from here when it was last read.
        self.bytes_read: dict[str, int] = {}
        self._lock = threading.Lock()
        self._is_created = False
        try:
            with files.disk_errors(f"cannot read the cache {path}"):
                if paths.exists(path) and not paths.is_directory(path):
                    msg = f"the cache {path} is no directory"
                    raise UsageError(msg, hint="name an empty or a new directory, or a layout")
            self.layout.check_usable()
        except (OSError, LocalDiskError) as error:
            self.disable(error)

    def disable(self, error: OSError | OcistreamError) -> None:
        """Keep nothing more in this run, and say why."""
        with self._lock:
            was_keeping, self.is_enabled = self.is_enabled, False
        if was_keeping:
            why = error.message if isinstance(error, OcistreamError) else error.strerror or str(error)
            notices.notify(f"nothing more is kept in the cache {self.layout.path}: {why}")

    # -- what is there ------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Say whether there is anything."""
        with contextlib.suppress(LocalDiskError):
            return self.layout.exists()
        return False

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Say whether a blob seems to be there, by its size."""
        return self._find_size(descriptor.digest) == descriptor.size

    def _find_size(self, digest: str) -> int | None:
        try:
            return self.layout.blob_size(digest)
        except OcistreamError:
            return None

    def read_manifest(self, digest: str) -> bytes | None:
        """Read a manifest, verified; None where it is not there, or wrong."""
        size = self._find_size(digest)
        if size is None or size > limits.MAX_MANIFEST:
            return None
        try:
            raw = self.layout.read_blob(Descriptor(UNKNOWN_MEDIA_TYPE, digest, size))
        except IntegrityError:
            self.delete_if_corrupt(digest)
            return None
        except OcistreamError:
            return None
        self.layout.touch(digest)
        return raw

    def delete_if_corrupt(self, digest: str) -> None:
        """Look whether what is there is what its name says, whatever was promised of it; if not, remove it."""
        # What cannot be read, or removed, stays; in its place is put what is fetched.
        with contextlib.suppress(OcistreamError):
            size = self.layout.blob_size(digest)
            if size is None or self.layout.has_blob(Descriptor(UNKNOWN_MEDIA_TYPE, digest, size)):
                return
            notices.notify(f"{digest} in the cache {self.layout.path} is wrong; it is fetched", level=1)
            self.layout.delete_blob(digest)

    # -- what is kept -------------------------------------------------------------------------------------

    def store_manifest(self, digest: str, raw: bytes) -> None:
        """Keep a manifest that is what its digest says."""
        with self.open_writer(digest) as copy:
            copy.write(raw)
            copy.is_complete = True

    @contextlib.contextmanager
    def open_writer(self, digest: str) -> Iterator[_CacheWriter]:
        """Write beside what happens in the block what is to be kept if it `is_whole` at the end."""
        copy = _CacheWriter(self, digest)
        try:
            yield copy
        finally:
            copy.finish()

    def create(self) -> None:
        """Make the directory a layout, unless it is one, and clear up what killed processes have left in it.

        Raises:
            OcistreamError, OSError: it cannot be made.
        """
        with self._lock:
            if self._is_created:
                return
            self.layout.create()
            if not paths.exists(self.layout.path / "index.json"):
                # It is for others: without it this would be no layout.
                self.layout.change_index(lambda entries: entries)
            self.layout.remove_stale()
            self._is_created = True


class _CacheWriter:
    """A blob on its way into the cache, beside its way elsewhere. Nothing here fails."""

    def __init__(self, cache: Cache, digest: str) -> None:
        self.is_complete = False
        self._cache = cache
        self._digest = digest
        self._stack = contextlib.ExitStack()
        self._writer: files.WritebackWriter | None = None
        self._rename: Callable[[], None] = lambda: None
        if not cache.is_enabled:
            return
        with self._catch_errors():
            cache.create()
            path = cache.layout.blob_path(digest)
            path.parent.mkdir(parents=True, exist_ok=True)
            # It is hashed before it is used, so the disk is not waited for.
            writing = files.atomic_file_named_later(path.parent, path.name, durable=False, synced=False)
            file, name = self._stack.enter_context(writing)
            self._rename = lambda: name(path)
            self._writer = files.WritebackWriter(file)

    def write(self, chunk: Chunk) -> None:
        if self._writer is not None:
            with self._catch_errors():
                self._writer.write(chunk)

    def finish(self) -> None:
        if self._writer is None:
            return
        if not self.is_complete:
            self._discard()
            return
        with self._catch_errors():
            self._rename()
            self._stack.close()

    @contextlib.contextmanager
    def _catch_errors(self) -> Iterator[None]:
        """Keep nothing of this blob, nor of others, unless only its own place is taken."""
        try:
            yield
        except (OSError, OcistreamError) as error:
            self._discard()
            if isinstance(error, OSError) and error.errno in _OCCUPIED_PATH_ERRNOS:
                # It stays there, and would end the keeping of everything each time.
                where = f"{self._digest} is not kept in the cache {self._cache.layout.path}"
                notices.notify(f"{where}: what is in its place is no file")
                return
            self._cache.disable(error)

    def _discard(self) -> None:
        self._writer = None
        with contextlib.suppress(_DiscardError, OSError), self._stack:
            raise _DiscardError


class _DiscardError(Exception):
    """What is written is not to be kept."""
