"""A cache before registries: a layout directory in which what was fetched is kept, and what is there is not fetched.

It stands before a repository and its mirrors, and has the same verbs (`mirrored.Readable`). Nothing in it is believed:
`stream.verified` hashes what comes from here as all else, and what is wrong is fetched after all. Nor is anything
that goes wrong in it a failure: a run then fetches what it could have spared, or keeps nothing.
"""

from __future__ import annotations

import contextlib
import threading
from contextlib import closing
from typing import TYPE_CHECKING

from ocistream import files, limits, notices
from ocistream.distribution import settled_type
from ocistream.errors import (
    AuthenticationError,
    IntegrityError,
    LocalDiskError,
    OcistreamError,
    RegistryError,
    UsageError,
)
from ocistream.interfaces import Blob
from ocistream.model import UNKNOWN_TYPE, Descriptor, Manifest
from ocistream.reference import is_digest
from ocistream.stores.layout_directory import LayoutDirectory
from ocistream.stream import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from ocistream.mirrored import Readable
    from ocistream.referrer_lists import ReferrerList
    from ocistream.stream import Chunk
    from ocistream.transport import Endpoint

__all__ = ["Cache"]

#: Of what a registry says to a HEAD, this is no reason to leave out the GET: it may know no HEAD.
_MAY_KNOW_NO_HEAD = range(400, 500)
_LATER = frozenset({408, 429})


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
                if path.exists() and not path.is_dir():
                    msg = f"the cache {path} is no directory"
                    raise UsageError(msg, hint="name an empty or a new directory, or a layout")
            self.layout.check_free()
        except LocalDiskError as error:
            self.keep_nothing(error)

    def before(self, repository: Readable) -> Readable:
        """Give what stands before a repository."""
        return _CachedRepository(self, repository)

    def keep_nothing(self, error: OSError | OcistreamError) -> None:
        """Keep nothing more in this run, and say why."""
        with self._lock:
            was_keeping, self.is_keeping = self.is_keeping, False
        if was_keeping:
            why = error.what if isinstance(error, OcistreamError) else error.strerror or str(error)
            notices.notice(f"nothing more is kept in the cache {self.layout.path}: {why}")

    # -- what is there ------------------------------------------------------------------------------------

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
            if not (self.layout.path / "index.json").exists():
                # It is for others: without it this would be no layout.
                self.layout.change_index(lambda entries: entries)
            self.layout.sweep()
            self._is_made = True


class _Copy:
    """A blob on its way into the cache, beside its way elsewhere. Nothing here fails."""

    def __init__(self, cache: Cache, digest: str) -> None:
        self.is_whole = False
        self._cache = cache
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
        """Keep nothing of this blob, nor of others, where the disk fails."""
        try:
            yield
        except (OSError, OcistreamError) as error:
            self._drop()
            self._cache.keep_nothing(error)

    def _drop(self) -> None:
        self._writer = None
        with contextlib.suppress(_UnwantedError, OSError), self._stack:
            raise _UnwantedError


class _UnwantedError(Exception):
    """What is written is not to be kept."""


class _CachedRepository:
    """A repository of which what is in a cache is not asked for. What it does not say itself, the repository says."""

    def __init__(self, cache: Cache, repository: Readable) -> None:
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

    def referrers(self, digest: str) -> ReferrerList:
        """Ask what refers to a manifest: that changes, and is never kept."""
        return self._repository.referrers(digest)

    def digest_of(self, target: str) -> str | None:
        """Ask what a tag stands for: that changes, and is never kept."""
        return self._repository.digest_of(target)

    def resolve(self, target: str) -> Manifest:
        """Get the manifest that a tag or a digest stands for.

        The registry is always asked: what the tag stands for now, whether the digest is there, and whether whoever asks
        may have it. Where its bytes are here, a HEAD is enough, which registries that count pulls do not count.
        """
        if (manifest := self._confirmed(target)) is not None:
            return manifest
        manifest = self._repository.resolve(target)
        self._cache.keep(manifest.descriptor.digest, manifest.raw)
        return manifest

    def _confirmed(self, target: str) -> Manifest | None:
        """Give a manifest that is here, if the registry says that it is what is asked for."""
        here = self._here(target) if is_digest(target) else None
        if here is None and (is_digest(target) or not self._cache.layout.exists()):
            return None
        try:
            digest = self._repository.digest_of(target)
        except AuthenticationError:
            # What it says to the GET has its reasons.
            return None
        except RegistryError as error:
            if error.status in _MAY_KNOW_NO_HEAD and error.status not in _LATER:
                return None
            raise
        if here is not None:
            return here if digest in {"", target} else None
        return self._here(digest) if digest is not None and is_digest(digest) else None

    def _here(self, digest: str) -> Manifest | None:
        raw = self._cache.document(digest)
        if raw is None:
            return None
        try:
            media_type = settled_type(raw, "", f"manifest {digest}")
        except OcistreamError:
            # It is not for us to say what is wrong with it.
            return None
        return Manifest(Descriptor(media_type, digest, len(raw)), raw)

    def manifest(self, descriptor: Descriptor) -> bytes:
        """Get the bytes of a manifest that another document lists, which the registry has confirmed."""
        raw = self._cache.document(descriptor.digest)
        if raw is None:
            raw = self._repository.manifest(descriptor)
            if digest_of(raw, descriptor.digest.partition(":")[0]) == descriptor.digest:
                self._cache.keep(descriptor.digest, raw)
        return raw

    def blob(self, descriptor: Descriptor) -> Blob:
        """Give a blob: out of the cache, if it is there by now, or else to be downloaded, and kept."""
        return _Reading(self._cache, self._repository.blob(descriptor)).blob


class _Reading:
    """One blob, from the cache as long as that is right, and from the repository."""

    def __init__(self, cache: Cache, source: Blob) -> None:
        self._cache = cache
        self._source = source
        self._descriptor = source.descriptor
        #: The cache is worth asking.
        self._is_there = cache.has(source.descriptor)
        #: Something of what was last read came from there.
        self._is_from_there = False

    @property
    def blob(self) -> Blob:
        source = self._source
        if not self._is_there:
            # So that it may come over several connections, as ever.
            return Blob(
                self._descriptor,
                source.open,
                on_wrong=source.on_wrong,
                open_at=source.open_at,
                part=source.part,
                keep=self._keep,
            )
        chunks = self._chunks
        return Blob(
            self._descriptor, chunks, on_wrong=self._on_wrong, open_at=chunks, check=self._check, keep=self._keep
        )

    def _chunks(self, offset: int = 0) -> Iterator[Chunk]:
        """Read the blob from byte `offset` on; where the cache breaks off, the repository goes on."""
        self._is_from_there = False
        self._cache.given.pop(self._descriptor.digest, None)
        if offset:
            # What begins in the middle is not verified as a whole by those who read it.
            self._check()
        if self._is_there:
            with closing(self._from_cache(offset)) as chunks:
                for chunk in chunks:
                    self._is_from_there = True
                    self._count(len(chunk))
                    offset += len(chunk)
                    yield chunk
            if offset >= self._descriptor.size and (offset or self._is_there):
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
            self._is_there = False
            notices.notice(f"{error.what}; it is fetched", level=1)

    def _count(self, size: int) -> None:
        given, digest = self._cache.given, self._descriptor.digest
        given[digest] = given.get(digest, 0) + size

    def _check(self) -> None:
        """Hash what is here, and turn to the repository if that is wrong."""
        if not self._is_there:
            return
        try:
            self._is_there = self._cache.layout.holds(self._descriptor)
        except OcistreamError:
            self._is_there = False
        if not self._is_there:
            self._cache.drop_if_wrong(self._descriptor.digest)

    def _on_wrong(self, error: IntegrityError, again: bool) -> None:
        """Suspect the cache, where it had a part in it.

        Raises:
            IntegrityError: it had none, and there is nowhere else; or nothing can be begun anew.
        """
        if self._is_from_there:
            self._is_there = False
            self._cache.drop_if_wrong(self._descriptor.digest)
            if not again:
                raise error
        elif self._source.on_wrong is None:
            raise error
        else:
            self._source.on_wrong(error, again)

    def _keep(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Pass verified chunks on, and keep those that were fetched. After the last one, the whole was right."""
        with contextlib.ExitStack() as stack:
            # What is below is not left to the garbage collector.
            stack.callback(getattr(chunks, "close", lambda: None))
            first = next(chunks, None)
            if self._is_from_there:
                if first is not None:
                    yield first
                yield from chunks
                return
            copy = stack.enter_context(self._cache.keeping(self._descriptor.digest))
            while first is not None:
                copy.write(first)
                yield first
                first = next(chunks, None)
            copy.is_whole = True
