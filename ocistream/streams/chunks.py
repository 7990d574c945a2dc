"""Iterate over the bytes of a blob in chunks: read, verify and hash.

A memoryview chunk is valid only until the next chunk is requested. Nothing here opens a file.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from contextlib import closing, nullcontext
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeAlias, cast

from ocistream.limits import CHUNK_SIZE, MIN_THREADED_HASH
from ocistream.oci.descriptor import digest_error, size_error
from ocistream.oci.reference import parse_digest
from ocistream.streams.memory import is_double_buffered
from ocistream.streams.synchronization import Budget, once
from ocistream.streams.workers import count_processors, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType

    from ocistream.oci.descriptor import Descriptor

#: Bytes of a blob. A memoryview is valid only until the next chunk is requested, so files and pipes are read into one
#: reused buffer.
Chunk: TypeAlias = "bytes | memoryview"
#: Maximum number of chunks that wait to be hashed: 1 MiB, so that the reader rarely waits.
_MAX_QUEUED: Final = 4
#: The threads that may hash: each needs a processor, and the thread that it hashes for another one.
_hash_threads: Final = once(lambda: Budget(count_processors() // 2))


class Hasher(Protocol):
    """The methods of hashlib's objects that are used here."""

    def update(self, data: Chunk, /) -> object:
        """Add bytes."""

    def hexdigest(self) -> str:
        """Return the lower-case hex digest of all bytes so far."""


def new_hash(digest: str) -> Hasher:
    """Return a hash object for the algorithm of `digest`."""
    return hashlib.new(parse_digest(digest).algorithm, usedforsecurity=True)


def verify_chunks(
    chunks: Iterable[Chunk], descriptor: Descriptor, stored: Iterable[Chunk] = (), *, hash_in_thread: bool = False
) -> Iterator[Chunk]:
    """Yield a blob's chunks; yield the last one only if size and digest are right.

    So a corrupt blob is never completed anywhere, not even in a pipe or a request body: it stays short, and the other
    side fails too. `stored` is the beginning of the blob that exists already: it is hashed first and not yielded, and
    `chunks` then are the rest. Both are closed at the end if they can be, so that no socket or file waits for the
    garbage collector. With `hash_in_thread` a thread hashes each chunk while the caller uses it, if fewer
    threads hash than there are processors for them: for many blobs that move side by side it gains nothing.

    Raises:
        IntegrityError: the bytes do not have the size (in bytes) or digest of `descriptor`.
    """
    hasher = new_hash(descriptor.digest)
    has_thread = hash_in_thread and descriptor.size >= MIN_THREADED_HASH and _hash_threads().take()
    thread = ThreadedHasher(hasher, on_exit=_hash_threads().give_back) if has_thread else None
    update = (thread or hasher).update
    size = 0
    with closing_chunks(chunks), thread or nullcontext():
        for part in (stored, chunks):
            with closing_chunks(part):
                for chunk in part:
                    if not chunk:
                        continue
                    size += len(chunk)
                    if size > descriptor.size:
                        raise size_error(descriptor, size)
                    update(chunk)
                    if size == descriptor.size:
                        check_digest(descriptor, thread or hasher)
                    if part is chunks:
                        yield chunk
                    if thread is not None and not isinstance(chunk, bytes):
                        # The memory of a chunk may be overwritten, with two buffers by the chunk after the next one.
                        thread.wait(except_last=1 if is_double_buffered(chunk) else 0)
    if size < descriptor.size:
        raise size_error(descriptor, size)
    if not size:
        check_digest(descriptor, hasher)


def check_chunks_size(chunks: Iterable[Chunk], descriptor: Descriptor, offset: int) -> Iterator[Chunk]:
    """Yield a blob's chunks from byte `offset` on, and check their size only: the beginning is elsewhere.

    A blob that is too short is noticed only after its last chunk was yielded. A chunk beyond the size is never yielded.
    `chunks` is closed at the end.

    Raises:
        IntegrityError: the blob does not have the size of `descriptor`.
    """
    size = offset
    with closing_chunks(chunks):
        for chunk in chunks:
            size += len(chunk)
            if size > descriptor.size:
                raise size_error(descriptor, size)
            yield chunk
    if size < descriptor.size:
        raise size_error(descriptor, size)


def chunks_from(chunks: Iterator[Chunk], offset: int) -> Iterator[Chunk]:
    """Yield the bytes of `chunks` from byte `offset` on. Closes `chunks` at the end."""
    remaining = offset
    with closing_chunks(chunks):
        for chunk in chunks:
            if remaining < len(chunk):
                yield memoryview(chunk)[remaining:] if remaining else chunk
            remaining = max(0, remaining - len(chunk))


def peek_chunks(chunks: Iterator[Chunk]) -> tuple[Chunk, Iterator[Chunk]]:
    """Return the first chunk, empty if there is none, and an iterator of all chunks, with the first one."""
    first = next(chunks, b"")
    return first, itertools.chain([first], chunks) if first else chunks


def closing_chunks(chunks: Iterable[Chunk]) -> AbstractContextManager[object]:
    """Return a context manager that closes the iterator of chunks if it has `close`, as a generator has."""
    return closing(cast("Any", chunks)) if hasattr(chunks, "close") else nullcontext()


def check_digest(descriptor: Descriptor, hasher: Hasher) -> None:
    """Compare the computed digest with the descriptor's.

    Raises:
        IntegrityError: they differ.
    """
    algorithm, _, expected = descriptor.digest.partition(":")
    actual = hasher.hexdigest()
    if actual != expected:
        raise digest_error(descriptor.digest, f"{algorithm}:{actual}")


def read_all(chunks: Iterable[Chunk]) -> bytes:
    """Return small content as bytes. Joining a list of chunks would need twice the memory."""
    content = io.BytesIO()
    for chunk in chunks:
        content.write(chunk)
    return content.getvalue()


class ThreadedHasher:
    """Computes a hash in a separate thread. It is a context manager: the thread ends with the block.

    SHA-256 is more than half of the CPU time of a pull to a pipe; the thread hashes while the pull reads and writes.
    The bytes passed to `update` must not change until `wait` returns.
    """

    def __init__(self, hasher: Hasher, on_exit: Callable[[], object] = lambda: None) -> None:
        """Update `hasher`; the thread starts with the block, and `on_exit` is called at its end."""
        self._hasher = hasher
        self._on_exit = on_exit
        #: From the reader to the thread: chunks, and None at the end.
        self._chunks: SimpleQueue[Chunk | None] = SimpleQueue()
        #: From the thread to the reader: an item for each hashed chunk.
        self._hashed: SimpleQueue[None] = SimpleQueue()
        #: Chunks passed to `update` and not known to be hashed. Only the reader uses it.
        self._pending = 0
        self._is_closed = False

    def __enter__(self) -> Self:
        """Start the thread."""
        try:
            start(self._work, "hash")
        except BaseException:
            self._on_exit()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the thread, without hashing the chunks that still wait."""
        self._is_closed = True
        self._chunks.put(None)
        self._on_exit()

    def update(self, data: Chunk, /) -> None:
        """Queue bytes; wait first while the queue is full."""
        self.wait(except_last=_MAX_QUEUED - 1)
        self._pending += 1
        self._chunks.put(data)

    def wait(self, except_last: int = 0) -> None:
        """Wait until all chunks are hashed, except the last `except_last` ones."""
        while self._pending > except_last:
            self._hashed.get()
            self._pending -= 1

    def hexdigest(self) -> str:
        """Return the lower-case hex digest of all bytes so far."""
        self.wait()
        return self._hasher.hexdigest()

    def _work(self) -> None:
        while (data := self._chunks.get()) is not None and not self._is_closed:
            self._hasher.update(data)
            del data
            self._hashed.put(None)


class HashedChunks:
    """An iterator of chunks that computes their size in bytes and their digest."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        """Wrap `chunks`."""
        self._chunks = iter(chunks)
        self._hasher = hashlib.sha256()
        self.size = 0

    def __iter__(self) -> Iterator[Chunk]:
        """Return itself."""
        return self

    def __next__(self) -> Chunk:
        """Return the next chunk."""
        chunk = next(self._chunks)
        self.add(chunk)
        return chunk

    def add(self, chunk: Chunk) -> None:
        """Include a chunk that was read elsewhere."""
        self.size += len(chunk)
        self._hasher.update(chunk)

    @property
    def digest(self) -> str:
        """The digest of all chunks so far."""
        return f"sha256:{self._hasher.hexdigest()}"


class RawReader(Protocol):
    """A raw binary file, which reads into a buffer."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Read into the beginning of `buffer` and return the number of bytes; 0 at the end of the file."""


def read_chunks(file: RawReader, size: int, chunk_size: int = CHUNK_SIZE) -> Iterator[memoryview]:
    """Read up to `size` bytes of `file` in chunks of at most `chunk_size` bytes, all in the same buffer.

    If the file is shorter, the iterator ends early; `verify_chunks` detects that. The caller handles `OSError`. The
    default of 256 KiB was measured: 64 KiB cost more CPU per byte, and 1 MiB costs no less and needs more memory.
    """
    buffer = memoryview(bytearray(max(0, min(chunk_size, size))))
    remaining = size
    while remaining > 0:
        count = file.readinto(buffer[: min(remaining, len(buffer))])
        if not count:
            return
        remaining -= count
        yield buffer[:count]
