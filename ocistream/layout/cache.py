"""The blob cache: a layout directory that keeps fetched blobs, and a repository that is read through it.

A failure of the cache is never a failure of the run: the blob is fetched from the registry, or is not stored. Tags are
always resolved by the registry. Bytes from the cache are verified like all others.
"""

from __future__ import annotations

import contextlib
import errno
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ocistream import limits, notices
from ocistream.errors import (
    AuthenticationError,
    IntegrityError,
    LocalDiskError,
    OcistreamError,
    RegistryError,
    UsageError,
)
from ocistream.layout.directory import LayoutDirectory
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor, Manifest, compute_digest
from ocistream.oci.reference import is_digest
from ocistream.registry.repository import determine_media_type
from ocistream.streams import files, paths
from ocistream.streams.chunks import closing_chunks, peek_chunks
from ocistream.streams.synchronization import once
from ocistream.transfer.interfaces import RecoverableBlob

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from ocistream.http.endpoints import Endpoint
    from ocistream.registry.referrers import ReferrerList
    from ocistream.registry.registries import ReadableRepository
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
        for _ in self.store(digest, iter([raw])):
            pass

    def store(self, digest: str, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Pass verified chunks of a blob on, and store a copy of them. Errors of the copy are only reported.

        The copy gets its name after the last chunk. If the chunks are not used up, it is deleted.
        """
        with closing(self._write_copy(digest)) as copy:
            self._advance(copy, digest, None)
            for chunk in chunks:
                self._advance(copy, digest, chunk)
                yield chunk
            self._advance(copy, digest, None)

    def _advance(self, copy: Generator[None, Chunk | None, None], digest: str, chunk: Chunk | None) -> None:
        try:
            # A copy that is complete, or has failed, stops.
            with contextlib.suppress(StopIteration):
                copy.send(chunk)
        except (OSError, OcistreamError) as error:
            if isinstance(error, OSError) and error.errno in _OCCUPIED_PATH_ERRNOS:
                # The obstacle stays, and would disable the cache in each run.
                notices.notify(f"{digest} is not stored in the cache {self.layout.path}: its path is not a file")
            else:
                self.disable(error)

    def _write_copy(self, digest: str) -> Generator[None, Chunk | None, None]:
        """Write the chunks that are sent to this generator; None marks the end."""
        if not self.is_enabled:
            return
        self.create()
        path = self.layout.blob_path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not synced: a power failure may leave any content, but blobs from the cache are hashed before use.
        with files.atomic_file_named_later(path.parent, path.name, durable=False, synced=False) as (file, name):
            writer = files.WritebackWriter(file)
            while (chunk := (yield)) is not None:
                writer.write(chunk)
            name(path)

    def _create(self) -> None:
        self.layout.create()
        if not paths.exists(self.layout.path / "index.json"):
            # Other tools do not accept a layout without index.json.
            self.layout.change_index(lambda entries: entries)
        self.layout.remove_stale()


#: Statuses after which GET is tried: a registry may not support HEAD. 408 and 429 are temporary.
_REFUSAL_STATUSES: Final = frozenset(range(400, 500)) - {408, 429}


class CachedRepository:
    """A repository whose blobs and manifests come from a cache if it has them.

    It works like a mirror: a blob that proves corrupt is fetched from the repository (`RecoverableBlob`).
    """

    def __init__(self, cache: Cache, repository: ReadableRepository) -> None:
        """Read `repository` through `cache`."""
        self._cache = cache
        self._repository = repository

    def __str__(self) -> str:
        return str(self._repository)

    @property
    def endpoint(self) -> Endpoint:
        """The registry of the repository."""
        return self._repository.endpoint

    @property
    def name(self) -> str:
        """The name of the repository in its registry."""
        return self._repository.name

    def list_referrers(self, digest: str) -> ReferrerList:
        """Return the referrers of a manifest from the registry. They change, so they are not cached."""
        return self._repository.list_referrers(digest)

    def find_digest(self, target: str) -> str | None:
        """Return the digest of a tag from the registry. It changes, so it is not cached."""
        return self._repository.find_digest(target)

    def resolve(self, target: str) -> Manifest:
        """Return the manifest of a tag or a digest.

        The registry is always asked, for a digest too. Otherwise a run could get an image that the registry refuses or
        does not have, and exit codes would depend on earlier runs. A HEAD is enough if the cache has the bytes.
        Registries that count pulls do not count it.
        """
        if (manifest := self._find_confirmed(target)) is not None:
            return manifest
        manifest = self._repository.resolve(target)
        self._cache.store_manifest(manifest.descriptor.digest, manifest.raw)
        return manifest

    def _find_confirmed(self, target: str) -> Manifest | None:
        """Return a manifest from the cache if the registry confirms its digest."""
        cached = self._find_cached(target) if is_digest(target) else None
        if cached is None and (is_digest(target) or not self._cache.exists()):
            return None
        try:
            digest = self._repository.find_digest(target)
        except AuthenticationError:
            # The response to the GET has the reason.
            return None
        except RegistryError as error:
            if error.status in _REFUSAL_STATUSES:
                return None
            raise
        if cached is not None:
            return cached if digest in {"", target} else None
        return self._find_cached(digest) if digest is not None and is_digest(digest) else None

    def _find_cached(self, digest: str) -> Manifest | None:
        """Return a manifest from the cache. Its own mediaType, or its fields, give its media type."""
        raw = self._cache.read_manifest(digest)
        if raw is None:
            return None
        try:
            media_type = determine_media_type(raw, "", f"manifest {digest}")
        except OcistreamError:
            # The registry's copy shows what is wrong with the manifest.
            return None
        return Manifest(Descriptor(media_type, digest, len(raw)), raw)

    def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        """Return the bytes of a manifest that another document lists. The registry has confirmed that document."""
        raw = self._cache.read_manifest(descriptor.digest)
        if raw is None:
            raw = self._repository.fetch_manifest(descriptor)
            if compute_digest(raw, descriptor.digest.partition(":")[0]) == descriptor.digest:
                self._cache.store_manifest(descriptor.digest, raw)
        return raw

    def blob(self, descriptor: Descriptor) -> RecoverableBlob:
        """Return a blob that is read from the cache, or downloaded and stored."""
        return _CachedBlob(self._cache, self._repository.blob(descriptor)).blob


class _CachedBlob:
    """One blob, read from the cache as long as that is correct, and otherwise from the repository."""

    def __init__(self, cache: Cache, source: RecoverableBlob) -> None:
        self._cache = cache
        self._source = source
        self._descriptor = source.descriptor
        #: Whether the cache has the blob, and it was not found corrupt.
        self._is_cached = cache.has_blob(source.descriptor)
        #: Whether bytes of the last read came from the cache.
        self._used_cache = False

    @property
    def blob(self) -> RecoverableBlob:
        """The blob as its readers get it."""
        if not self._is_cached:
            # Keep `fetch_range`, so that prefetching over several connections works.
            return replace(self._source, cache=self._store_chunks)
        return RecoverableBlob(
            self._descriptor,
            self._chunks,
            on_corrupt=self._handle_corrupt,
            precheck=self._verify_cached,
            cache=self._store_chunks,
        )

    def _chunks(self, offset: int = 0) -> Iterator[Chunk]:
        """Read the blob from byte `offset` on. If the cache fails, the repository continues."""
        self._used_cache = False
        self._cache.bytes_read.pop(self._descriptor.digest, None)
        if self._is_cached:
            with closing(self._from_cache(offset)) as chunks:
                for chunk in chunks:
                    self._used_cache = True
                    bytes_read = self._cache.bytes_read
                    bytes_read[self._descriptor.digest] = bytes_read.get(self._descriptor.digest, 0) + len(chunk)
                    offset += len(chunk)
                    yield chunk
            if offset >= self._descriptor.size and (offset or self._is_cached):
                return
        yield from self._source.open(offset)

    def _from_cache(self, offset: int) -> Generator[Chunk, None, None]:
        digest = self._descriptor.digest
        self._cache.layout.touch(digest)
        try:
            yield from self._cache.layout.blob_chunks(digest, self._descriptor.size, offset)
        except OcistreamError as error:
            # The blob was deleted meanwhile, for example by `gc`, or cannot be read.
            self._is_cached = False
            notices.notify(f"{error.message}; fetching it", level=1)

    def _verify_cached(self) -> None:
        """Hash the blob in the cache, and use the repository if it is corrupt.

        Only a pipe needs this check, since it takes nothing back. Other destinations can start the blob again.
        """
        if not self._is_cached:
            return
        try:
            self._is_cached = self._cache.layout.has_blob(self._descriptor)
        except OcistreamError:
            self._is_cached = False
        if not self._is_cached:
            self._cache.delete_if_corrupt(self._descriptor.digest)

    def _handle_corrupt(self, error: IntegrityError, can_retry: bool) -> None:
        """Stop using the cache if it delivered bytes of a corrupt blob. Otherwise the repository handles the error.

        The error is raised if nothing else has the blob, or the blob cannot be started again.
        """
        if self._used_cache:
            self._is_cached = False
            self._cache.delete_if_corrupt(self._descriptor.digest)
            if not can_retry:
                raise error
        elif self._source.on_corrupt is None:
            raise error
        else:
            self._source.on_corrupt(error, can_retry)

    def _store_chunks(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Pass verified chunks on, and store a blob that was fetched completely.

        `streams.chunks.verify_chunks` has checked these chunks, so they are not hashed again. The blob is correct after
        its last chunk.
        """
        with closing_chunks(chunks):
            # The first chunk shows where they come from.
            _, chunks_from_first = peek_chunks(chunks)
            if self._used_cache:
                yield from chunks_from_first
            else:
                yield from self._cache.store(self._descriptor.digest, chunks_from_first)
