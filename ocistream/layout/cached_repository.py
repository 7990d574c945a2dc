"""A repository that is read through a cache: fetch what the cache lacks, and store what was fetched.

Tags are always resolved by the registry. Bytes from the cache are verified like all others.
"""

from __future__ import annotations

import contextlib
from contextlib import closing
from typing import TYPE_CHECKING, Final

from ocistream import notices
from ocistream.errors import AuthenticationError, IntegrityError, OcistreamError, RegistryError
from ocistream.oci.descriptor import Descriptor, Manifest
from ocistream.oci.reference import is_digest
from ocistream.registry.repository import determine_media_type
from ocistream.streams.chunks import compute_digest
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from ocistream.http.client import Endpoint
    from ocistream.layout.cache import Cache
    from ocistream.registry.mirrors import ReadableRepository
    from ocistream.registry.referrers import ReferrerList
    from ocistream.streams.chunks import Chunk

__all__ = ["CachedRepository"]

#: What a registry says to HEAD that may know none, and will say to GET if it means it; but for what passes.
_REFUSAL_STATUSES: Final = frozenset(range(400, 500)) - {408, 429}


class CachedRepository:
    """A repository of which what is in a cache is not asked for. What it does not say itself, the repository says."""

    def __init__(self, cache: Cache, repository: ReadableRepository) -> None:
        """Put a cache before a repository."""
        self._cache = cache
        self._repository = repository

    def __str__(self) -> str:
        return str(self._repository)

    @property
    def endpoint(self) -> Endpoint:
        """The registry that it belongs to."""
        return self._repository.endpoint

    @property
    def name(self) -> str:
        """The repository's name there."""
        return self._repository.name

    def list_referrers(self, digest: str) -> ReferrerList:
        """Ask what refers to a manifest: that changes, and is never kept."""
        return self._repository.list_referrers(digest)

    def find_digest(self, target: str) -> str | None:
        """Ask what a tag stands for: that changes, and is never kept."""
        return self._repository.find_digest(target)

    def resolve(self, target: str) -> Manifest:
        """Get the manifest that a tag or a digest stands for.

        The registry is always asked: what the tag stands for now, whether the digest is there, and whether whoever asks
        may have it. Where its bytes are here, a HEAD is enough, which registries that count pulls do not count.
        """
        if (manifest := self._find_confirmed(target)) is not None:
            return manifest
        manifest = self._repository.resolve(target)
        self._cache.store_manifest(manifest.descriptor.digest, manifest.raw)
        return manifest

    def _find_confirmed(self, target: str) -> Manifest | None:
        """Give a manifest that is here, if the registry says that it is what is asked for."""
        here = self._find_cached(target) if is_digest(target) else None
        if here is None and (is_digest(target) or not self._cache.exists()):
            return None
        try:
            digest = self._repository.find_digest(target)
        except AuthenticationError:
            # What it says to the GET has its reasons.
            return None
        except RegistryError as error:
            if error.status in _REFUSAL_STATUSES:
                return None
            raise
        if here is not None:
            return here if digest in {"", target} else None
        return self._find_cached(digest) if digest is not None and is_digest(digest) else None

    def _find_cached(self, digest: str) -> Manifest | None:
        raw = self._cache.read_manifest(digest)
        if raw is None:
            return None
        try:
            media_type = determine_media_type(raw, "", f"manifest {digest}")
        except OcistreamError:
            # It is not for us to say what is wrong with it.
            return None
        return Manifest(Descriptor(media_type, digest, len(raw)), raw)

    def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        """Get the bytes of a manifest that another document lists, which the registry has confirmed."""
        raw = self._cache.read_manifest(descriptor.digest)
        if raw is None:
            raw = self._repository.fetch_manifest(descriptor)
            if compute_digest(raw, descriptor.digest.partition(":")[0]) == descriptor.digest:
                self._cache.store_manifest(descriptor.digest, raw)
        return raw

    def blob(self, descriptor: Descriptor) -> Blob:
        """Give a blob: out of the cache, if it is there by now, or else to be downloaded, and kept."""
        return _CachedBlob(self._cache, self._repository.blob(descriptor)).blob


class _CachedBlob:
    """One blob, from the cache as long as that is right, and from the repository."""

    def __init__(self, cache: Cache, source: Blob) -> None:
        self._cache = cache
        self._source = source
        self._descriptor = source.descriptor
        #: The cache is worth asking.
        self._is_cached = cache.has_blob(source.descriptor)
        #: Something of what was last read came from there.
        self._used_cache = False

    @property
    def blob(self) -> Blob:
        source = self._source
        if not self._is_cached:
            # So that it may come over several connections, as ever.
            return Blob(
                self._descriptor,
                source.open,
                on_corrupt=source.on_corrupt,
                open_at=source.open_at,
                fetch_range=source.fetch_range,
                cache=self._store_chunks,
            )
        chunks = self._chunks
        return Blob(
            self._descriptor,
            chunks,
            on_corrupt=self._handle_corrupt,
            open_at=chunks,
            precheck=self._verify_cached,
            cache=self._store_chunks,
        )

    def _chunks(self, offset: int = 0) -> Iterator[Chunk]:
        """Read the blob from byte `offset` on; where the cache breaks off, the repository goes on."""
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
        if not offset:
            yield from self._source.open()
        elif self._source.open_at is not None:
            yield from self._source.open_at(offset)

    def _from_cache(self, offset: int) -> Generator[Chunk, None, None]:
        digest = self._descriptor.digest
        self._cache.layout.touch(digest)
        try:
            yield from self._cache.layout.blob_chunks(digest, self._descriptor.size, offset)
        except OcistreamError as error:
            # It was dropped since, or cannot be read.
            self._is_cached = False
            notices.notify(f"{error.message}; it is fetched", level=1)

    def _count_bytes(self, size: int) -> None:
        given, digest = self._cache.bytes_read, self._descriptor.digest
        given[digest] = given.get(digest, 0) + size

    def _verify_cached(self) -> None:
        """Hash what is here, and turn to the repository if that is wrong."""
        if not self._is_cached:
            return
        try:
            self._is_cached = self._cache.layout.has_blob(self._descriptor)
        except OcistreamError:
            self._is_cached = False
        if not self._is_cached:
            self._cache.delete_if_corrupt(self._descriptor.digest)

    def _handle_corrupt(self, error: IntegrityError, can_retry: bool) -> None:
        """Suspect the cache, where it had a part in it.

        Raises:
            IntegrityError: it had none, and there is nowhere else; or nothing can be begun anew.
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
        """Pass verified chunks on, and keep those that were fetched. After the last one, the whole was right."""
        with contextlib.ExitStack() as stack:
            # What is below is not left to the garbage collector.
            stack.callback(getattr(chunks, "close", lambda: None))
            first = next(chunks, None)
            if self._used_cache:
                if first is not None:
                    yield first
                yield from chunks
                return
            copy = stack.enter_context(self._cache.open_writer(self._descriptor.digest))
            while first is not None:
                copy.write(first)
                yield first
                first = next(chunks, None)
            copy.is_complete = True
