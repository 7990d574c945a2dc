"""Hashing in a thread: the digest is the same, and the last chunk is passed on only after the check."""

from __future__ import annotations

import hashlib
import io
import random
import threading
from typing import TYPE_CHECKING

import pytest

from ocistream import limits
from ocistream.errors import IntegrityError, NetworkError
from ocistream.oci.descriptor import Descriptor
from ocistream.streams.chunks import ThreadedHasher, read_chunks, verify_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT = random.Random(0).randbytes(limits.MIN_THREADED_HASH + 3 * limits.CHUNK_SIZE + 5)
BLOB = Descriptor("", f"sha256:{hashlib.sha256(CONTENT).hexdigest()}", len(CONTENT))


def chunked(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), limits.CHUNK_SIZE):
        yield content[start : start + limits.CHUNK_SIZE]


def hashing_threads() -> int:
    return sum(thread.name == "hash" for thread in threading.enumerate())


def ended() -> bool:
    """Return whether no hashing thread is left, after waiting for those that are ending."""
    for thread in threading.enumerate():
        if thread.name == "hash":
            thread.join(30)
    return hashing_threads() == 0


class Slow:
    """A hash that waits until the test lets it continue."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.seen = b""

    def update(self, data: bytes | memoryview, /) -> None:
        assert self.go.wait(30)
        self.seen += bytes(data)

    def hexdigest(self) -> str:
        return self.seen.hex()


def test_bytes_and_reused_buffers_are_passed_on_unchanged() -> None:
    assert b"".join(verify_chunks(chunked(CONTENT), BLOB, hash_in_thread=True)) == CONTENT
    read = read_chunks(io.BytesIO(CONTENT), BLOB.size)
    assert b"".join(bytes(chunk) for chunk in verify_chunks(read, BLOB, hash_in_thread=True)) == CONTENT
    assert ended()


def test_the_stored_beginning_is_hashed_first() -> None:
    held = read_chunks(io.BytesIO(CONTENT[: 2 * limits.CHUNK_SIZE]), 2 * limits.CHUNK_SIZE)
    rest = chunked(CONTENT[2 * limits.CHUNK_SIZE :])
    assert (
        b"".join(map(bytes, verify_chunks(rest, BLOB, held, hash_in_thread=True))) == CONTENT[2 * limits.CHUNK_SIZE :]
    )


@pytest.mark.parametrize("at", [0, limits.CHUNK_SIZE, len(CONTENT) - 1])
def test_the_last_chunk_of_wrong_bytes_is_not_passed_on(at: int) -> None:
    wrong = CONTENT[:at] + bytes([CONTENT[at] ^ 1]) + CONTENT[at + 1 :]
    passed: list[bytes] = []
    with pytest.raises(IntegrityError):
        passed.extend(bytes(chunk) for chunk in verify_chunks(chunked(wrong), BLOB, hash_in_thread=True))
    assert sum(map(len, passed)) < BLOB.size
    assert ended()


def test_a_reader_that_stops_and_a_source_that_fails_leave_no_thread() -> None:
    def failing() -> Iterator[bytes]:
        yield CONTENT[: limits.CHUNK_SIZE]
        msg = "reset"
        raise NetworkError(msg)

    chunks = verify_chunks(chunked(CONTENT), BLOB, hash_in_thread=True)
    next(chunks)
    assert hashing_threads() == 1
    del chunks
    with pytest.raises(NetworkError):
        list(verify_chunks(failing(), BLOB, hash_in_thread=True))
    assert ended()


def test_a_small_blob_needs_no_thread() -> None:
    content = CONTENT[:1000]
    blob = Descriptor("", f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))
    chunks = verify_chunks(iter([content[:500], content[500:]]), blob, hash_in_thread=True)
    assert next(chunks) == content[:500]
    assert hashing_threads() == 0


def test_a_buffer_is_not_reused_before_it_is_hashed() -> None:
    slow = Slow()
    with ThreadedHasher(slow) as hasher:
        memory = bytearray(b"first")
        hasher.update(memoryview(memory))
        threading.Timer(0.01, slow.go.set).start()
        hasher.wait()
        memory[:] = b"other"
        assert hasher.hexdigest() == b"first".hex()


def test_the_number_of_waiting_chunks_is_limited() -> None:
    slow, given = Slow(), []

    def give() -> None:
        with ThreadedHasher(slow) as hasher:
            for number in range(20):
                hasher.update(bytes([number]))
                given.append(number)
            hasher.wait()

    giver = threading.Thread(target=give)
    giver.start()
    giver.join(0.05)
    assert len(given) <= 4
    slow.go.set()
    giver.join(30)
    assert slow.seen == bytes(range(20))
