"""A repository that is read through a cache: fetch what the cache lacks, and store what was fetched.

Tags are always resolved by the registry. Bytes from the cache are verified like all others.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ocistream import notices
from ocistream.errors import AuthenticationError, IntegrityError, OcistreamError, RegistryError
from ocistream.oci.descriptor import Descriptor, Manifest
from ocistream.oci.digest import compute_digest
from ocistream.oci.reference import is_digest
from ocistream.registry.repository import determine_media_type
from ocistream.streams.chunks import closing_chunks
from ocistream.transfer.interfaces import RecoverableBlob

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from ocistream.http.endpoints import Endpoint
    from ocistream.layout.cache import Cache
    from ocistream.registry.opener import ReadableRepository
    from ocistream.registry.referrers import ReferrerList
    from ocistream.streams.chunks import Chunk

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
                    self._count_bytes(len(chunk))
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

    def _count_bytes(self, size: int) -> None:
        bytes_read, digest = self._cache.bytes_read, self._descriptor.digest
        bytes_read[digest] = bytes_read.get(digest, 0) + size

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
            chunk = next(chunks, None)
            if self._used_cache:
                if chunk is not None:
                    yield chunk
                yield from chunks
                return
            with self._cache.open_writer(self._descriptor.digest) as copy:
                while chunk is not None:
                    copy.write(chunk)
                    yield chunk
                    chunk = next(chunks, None)
                copy.is_complete = True
