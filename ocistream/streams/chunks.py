"""Iterate over the bytes of a blob in chunks: read, verify, count, hash and cancel.

A memoryview chunk is valid only until the next chunk is requested. Nothing here opens a file.
"""

from __future__ import annotations

import hashlib
import io
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

from ocistream.errors import CancelledError, IntegrityError, OcistreamError
from ocistream.limits import CHUNK_SIZE, MIN_THREADED_HASH
from ocistream.oci.reference import parse_digest
from ocistream.streams.hashing import Hasher, ThreadedHasher
from ocistream.streams.memory import is_double_buffered

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from ocistream.oci.descriptor import Descriptor

__all__ = [
    "ByteCounter",
    "Chunk",
    "FailureTracker",
    "HashedChunks",
    "Hasher",
    "cancellable_chunks",
    "check_chunks_size",
    "closing_chunks",
    "compute_digest",
    "count_chunks",
    "new_hash",
    "read_all",
    "read_chunks",
    "verify_chunks",
]

Chunk: TypeAlias = "bytes | memoryview"


def new_hash(digest: str) -> Hasher:
    """Make a hash object of the algorithm that `digest` names."""
    return hashlib.new(parse_digest(digest).algorithm, usedforsecurity=True)


def compute_digest(content: bytes, algorithm: str = "sha256") -> str:
    """Give the digest of small content that is held."""
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def verify_chunks(
    chunks: Iterable[Chunk], descriptor: Descriptor, held: Iterable[Chunk] = (), *, beside: bool = False
) -> Iterator[Chunk]:
    """Pass a blob's chunks on, the last one only after size and digest were found right.

    What is `held` of it already, its beginning, is hashed first and not passed on; `chunks` then are the rest.

    So a corrupt blob is never completed anywhere, not even in a pipe or in a request's body: it stays short there,
    and the other side fails as well. However it ends, `chunks` is closed then, if it can be: it is not left to the
    garbage collector to close a socket or a file below it. With `beside` a thread hashes what is being used.

    Raises:
        IntegrityError: the bytes are not what `descriptor` (size in bytes, digest) promises.
    """
    hasher: Hasher = new_hash(descriptor.digest)
    thread = ThreadedHasher(hasher) if beside and descriptor.size >= MIN_THREADED_HASH else None
    seen = 0
    with closing_chunks(chunks), thread or nullcontext():
        hasher = thread or hasher
        for chunk, is_new in _join_chunks(held, chunks):
            if not chunk:
                continue
            seen += len(chunk)
            if seen > descriptor.size:
                raise size_error(descriptor, seen)
            hasher.update(chunk)
            if seen == descriptor.size:
                check_digest(descriptor, hasher)
            if is_new:
                yield chunk
            if thread is not None and not isinstance(chunk, bytes):
                # The next one may be read into the same memory, or else the one after that.
                thread.wait(but=1 if is_double_buffered(chunk) else 0)
    if seen < descriptor.size:
        raise size_error(descriptor, seen)
    if not seen:
        check_digest(descriptor, hasher)


def _join_chunks(held: Iterable[Chunk], chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, bool]]:
    """Give chunks of both, and of each whether it is one of the latter."""
    with closing_chunks(held):
        for chunk in held:
            yield chunk, False
    for chunk in chunks:
        yield chunk, True


def check_chunks_size(chunks: Iterable[Chunk], descriptor: Descriptor, offset: int) -> Iterator[Chunk]:
    """Pass on a blob's chunks from byte `offset` on, of which no more than the size can be checked.

    What has less is noticed at its end only, when all that there is has passed; of what has more, no chunk is passed on
    that goes beyond the size. `chunks` is closed at the end.

    Raises:
        IntegrityError: the blob has another size than `descriptor` promises.
    """
    seen = offset
    with closing_chunks(chunks):
        for chunk in chunks:
            seen += len(chunk)
            if seen > descriptor.size:
                raise size_error(descriptor, seen)
            yield chunk
    if seen < descriptor.size:
        raise size_error(descriptor, seen)


def closing_chunks(chunks: Iterable[Chunk]) -> AbstractContextManager[object]:
    """Close what makes the chunks at the end of the block, if it can be: a generator can, a list cannot."""
    return closing(cast("Closeable", chunks)) if hasattr(chunks, "close") else nullcontext()


class Closeable(Protocol):
    """What can be closed."""

    def close(self) -> object:
        """Let go of whatever is below."""


def size_error(descriptor: Descriptor, seen: int) -> IntegrityError:
    """Say that a blob has another size than it should; `seen` bytes of it have come."""
    more = "or more " if seen > descriptor.size else ""
    return IntegrityError(f"{descriptor.digest}: expected {descriptor.size} bytes, got {seen} {more}".rstrip())


def check_digest(descriptor: Descriptor, hasher: Hasher) -> None:
    """Compare what was hashed with what was promised.

    Raises:
        IntegrityError: they differ.
    """
    algorithm, _, expected = descriptor.digest.partition(":")
    got = hasher.hexdigest()
    if got != expected:
        msg = f"{descriptor.digest}: the bytes have the digest {algorithm}:{got}"
        raise IntegrityError(msg)


def count_chunks(chunks: Iterable[Chunk], advance: Callable[[int], None]) -> Iterator[Chunk]:
    """Pass chunks on and report the size of each, in bytes, once whoever asked for it comes back for the next."""
    for chunk in chunks:
        size = len(chunk)
        yield chunk
        advance(size)


class ByteCounter:
    """Counts one blob, in bytes, and takes back what was counted when it is begun again."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        """Begin at 0; `advance` is told of every change."""
        self._advance = advance
        self.count = 0

    def advance(self, size: int) -> None:
        """Count more."""
        self.count += size
        self._advance(size)

    def restart(self) -> None:
        """Begin anew."""
        self.advance(-self.count)


def read_all(chunks: Iterable[Chunk]) -> bytes:
    """Give small content in one piece. To join a list of chunks would take twice the room."""
    content = io.BytesIO()
    for chunk in chunks:
        content.write(chunk)
    return content.getvalue()


def cancellable_chunks(chunks: Iterable[Chunk], cancelled: threading.Event) -> Iterator[Chunk]:
    """Pass chunks on until `cancelled` is set.

    Raises:
        CancelledError: it was.
    """
    for chunk in chunks:
        if cancelled.is_set():
            msg = "cancelled"
            raise CancelledError(msg)
        yield chunk


class FailureTracker:
    """Chunks that know whether it was they that failed, or who uses them."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        """Begin with nothing wrong."""
        self._chunks = chunks
        self.has_failed = False

    def __iter__(self) -> Iterator[Chunk]:
        """Give itself."""
        return self

    def __next__(self) -> Chunk:
        """Give the next chunk."""
        try:
            return next(self._chunks)
        except OcistreamError:
            self.has_failed = True
            raise


class HashedChunks:
    """Passes chunks on, and knows the size and digest of what has passed."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        """Begin at nothing."""
        self._chunks = iter(chunks)
        self._hasher = hashlib.sha256()
        self.size = 0

    def __iter__(self) -> Iterator[Chunk]:
        """Give itself."""
        return self

    def __next__(self) -> Chunk:
        """Give the next chunk."""
        chunk = next(self._chunks)
        self.add(chunk)
        return chunk

    def add(self, chunk: Chunk) -> None:
        """Count a chunk that passes elsewhere."""
        self.size += len(chunk)
        self._hasher.update(chunk)

    @property
    def digest(self) -> str:
        """The digest of what has passed so far."""
        return f"sha256:{self._hasher.hexdigest()}"


class RawReader(Protocol):
    """A raw binary file: reads into a buffer and says how much it was."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the beginning of `buffer`; 0 at the end of the file."""


def read_chunks(file: RawReader, size: int, chunk_size: int = CHUNK_SIZE) -> Iterator[memoryview]:
    """Read up to `size` bytes of `file` in chunks of at most `chunk_size` bytes, all in the same buffer.

    It ends early where the file does; `verified` is who finds that out. `OSError` is left to the caller.
    """
    buffer = memoryview(bytearray(max(0, min(chunk_size, size))))
    left = size
    while left > 0:
        got = file.readinto(buffer[: min(left, len(buffer))])
        if not got:
            return
        left -= got
        yield buffer[:got]
