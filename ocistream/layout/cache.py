"""The blob cache: a layout directory that keeps fetched blobs for later and concurrent runs.

A failure of the cache is never a failure of the run: the blob is fetched from the registry, or is not stored.
"""

from __future__ import annotations

import contextlib
import errno
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
from ocistream.streams.synchronization import once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ocistream.streams.chunks import Chunk

#: Errors if a directory or something else that is not a file has a blob's path.
_OCCUPIED_PATH_ERRNOS: Final = frozenset({errno.EISDIR, errno.EINVAL, errno.ENOTEMPTY, errno.EEXIST})


class Cache:
    """The cache directory, and the bytes that this run read from it. Safe for several threads and processes.

    The cache wraps repositories, not sources or destinations: a wrapper around these would hide their optional methods.
    Anyone who can read the directory can read the images in it.
    """

    def __init__(self, path: Path) -> None:
        """Take the path of the directory, which is created with the first blob.

        Raises:
            UsageError: the path is a file, or a directory with other contents.
            ArchiveError: the layout in the directory is malformed.
        """
        self.layout = LayoutDirectory(path)
        self.is_enabled = True
        #: By digest: the number of bytes of a blob that the last read took from the cache.
        self.bytes_read: dict[str, int] = {}
        #: Makes the directory a layout, unless it is one, and removes files that killed processes left. Raises
        #: OcistreamError or OSError if the layout cannot be created.
        self.create = once(self._create)
        try:
            with files.disk_errors(f"cannot read the cache {path}"):
                if paths.exists(path) and not paths.is_directory(path):
                    msg = f"the cache {path} is not a directory"
                    raise UsageError(msg, hint="name an empty or new directory, or a layout")
            self.layout.check_usable()
        except (OSError, LocalDiskError) as error:
            self.disable(error)

    def disable(self, error: OSError | OcistreamError) -> None:
        """Store nothing more in this run, and report why."""
        # Two threads that fail at once may both report it: a notice with the same text appears once.
        if self.is_enabled:
            self.is_enabled = False
            why = error.message if isinstance(error, OcistreamError) else error.strerror or str(error)
            notices.notify(f"nothing more is stored in the cache {self.layout.path}: {why}")

    # -- reading ------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Return whether the cache has any content."""
        with contextlib.suppress(LocalDiskError):
            return self.layout.exists()
        return False

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Return whether the cache has a blob of this digest and size. The content is not hashed here."""
        return self._find_size(descriptor.digest) == descriptor.size

    def _find_size(self, digest: str) -> int | None:
        try:
            return self.layout.blob_size(digest)
        except OcistreamError:
            return None

    def read_manifest(self, digest: str) -> bytes | None:
        """Return a verified manifest, or None if it does not exist or is corrupt."""
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
        """Delete a blob if its bytes do not match its digest.

        The size in a descriptor does not matter: a document with a wrong size must not delete the blobs of others.
        """
        # A blob that cannot be read or deleted stays. The fetched blob replaces it.
        with contextlib.suppress(OcistreamError):
            size = self.layout.blob_size(digest)
            if size is None or self.layout.has_blob(Descriptor(UNKNOWN_MEDIA_TYPE, digest, size)):
                return
            notices.notify(f"{digest} in the cache {self.layout.path} is corrupt; fetching it", level=1)
            self.layout.delete_blob(digest)

    # -- writing ------------------------------------------------------------------------------------------

    def store_manifest(self, digest: str, raw: bytes) -> None:
        """Store a manifest that was verified."""
        with self.open_writer(digest) as copy:
            copy.write(raw)
            copy.is_complete = True

    @contextlib.contextmanager
    def open_writer(self, digest: str) -> Iterator[_CacheWriter]:
        """Open a writer for a copy of a blob. The copy is stored if `is_complete` is set at the end of the block."""
        copy = _CacheWriter(self, digest)
        try:
            yield copy
        finally:
            copy.finish()

    def _create(self) -> None:
        self.layout.create()
        if not paths.exists(self.layout.path / "index.json"):
            # Other tools do not accept a layout without index.json.
            self.layout.change_index(lambda entries: entries)
        self.layout.remove_stale()


class _CacheWriter:
    """Writes a copy of a blob into the cache. Its methods do not raise for disk errors."""

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
            # Not synced: a power failure may leave any content, but blobs from the cache are hashed before use.
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
        """Drop this copy on an error. The cache is disabled too, unless only this blob's path is taken."""
        try:
            yield
        except (OSError, OcistreamError) as error:
            self._discard()
            if isinstance(error, OSError) and error.errno in _OCCUPIED_PATH_ERRNOS:
                # The obstacle stays, and would disable the cache in each run.
                where = f"{self._digest} is not stored in the cache {self._cache.layout.path}"
                notices.notify(f"{where}: its path is not a file")
                return
            self._cache.disable(error)

    def _discard(self) -> None:
        self._writer = None
        with contextlib.suppress(_DiscardError, OSError), self._stack:
            raise _DiscardError


class _DiscardError(Exception):
    """Ends the context of a copy that is not stored."""
