"""Loops over the bytes of a blob: wrong bytes are detected before the end, and right ones are passed on."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocistream.errors import IntegrityError
from ocistream.limits import CHUNK_SIZE
from ocistream.oci.descriptor import Descriptor, compute_digest
from ocistream.streams.chunks import (
    Chunk,
    check_chunks_size,
    chunks_from,
    new_hash,
    read_chunks,
    verify_chunks,
)


def descriptor_of(content: bytes, algorithm: str = "sha256") -> Descriptor:
    return Descriptor("text/plain", compute_digest(content, algorithm), len(content))


def cut(content: bytes, size: int) -> list[Chunk]:
    return [content[at : at + size] for at in range(0, len(content), size)]


def passed_on(chunks: Iterator[Chunk]) -> tuple[bytes, IntegrityError | None]:
    """Return the bytes before the end or the error."""
    found = b""
    try:
        for chunk in chunks:
            found += chunk
    except IntegrityError as error:
        return found, error
    return found, None


class Closing:
    """Chunks of one byte from a source that must be closed, like a socket."""

    def __init__(self, content: bytes) -> None:
        self._chunks = iter(cut(content, 1))
        self.closed = False

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def close(self) -> None:
        self.closed = True


class TestVerifyChunks:
    @given(st.binary(max_size=300), st.integers(1, 100), st.sampled_from(["sha256", "sha512"]))
    def test_right_bytes_pass_in_any_chunking(self, content: bytes, size: int, algorithm: str) -> None:
        chunks: list[Chunk] = [b"", *cut(content, size), b""]
        assert passed_on(verify_chunks(chunks, descriptor_of(content, algorithm))) == (content, None)

    @given(st.binary(min_size=1, max_size=300), st.integers(1, 100), st.data())
    def test_a_blob_with_one_wrong_bit_is_never_completed(self, content: bytes, size: int, data: st.DataObject) -> None:
        at, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
        wrong = bytearray(content)
        wrong[at] ^= 1 << bit
        found, error = passed_on(verify_chunks(cut(bytes(wrong), size), descriptor_of(content)))
        assert error is not None
        assert error.exit_code == 5
        assert compute_digest(content) in error.message
        assert compute_digest(bytes(wrong)) in error.message
        assert len(found) < len(content)

    @given(st.binary(min_size=1, max_size=300), st.integers(1, 100), st.data())
    def test_a_short_blob_is_refused(self, content: bytes, size: int, data: st.DataObject) -> None:
        kept = content[: data.draw(st.integers(0, len(content) - 1))]
        found, error = passed_on(verify_chunks(cut(kept, size), descriptor_of(content)))
        assert error is not None
        assert f"expected {len(content)} bytes, got {len(kept)}" in error.message
        assert found == kept

    def test_a_blob_that_is_too_long_is_refused_at_the_first_extra_chunk(self) -> None:
        def endless() -> Iterator[Chunk]:
            while True:
                yield b"12345"

        found, error = passed_on(verify_chunks(endless(), descriptor_of(b"1234512")))
        assert error is not None
        assert "expected 7 bytes, got 10 or more" in error.message
        assert found == b"12345"

    def test_an_empty_blob_is_checked_too(self) -> None:
        assert passed_on(verify_chunks([], descriptor_of(b""))) == (b"", None)
        wrong = Descriptor("text/plain", compute_digest(b"x"), 0)
        assert passed_on(verify_chunks([], wrong))[1] is not None
        assert passed_on(verify_chunks([b"x"], descriptor_of(b"")))[1] is not None

    @pytest.mark.parametrize("given", [b"12x", b"1234"], ids=["wrong", "too-long"])
    def test_a_wrong_blob_closes_its_source(self, given: bytes) -> None:
        source = Closing(given)
        with pytest.raises(IntegrityError) as caught:
            list(verify_chunks(source, descriptor_of(b"123")))
        # The error's traceback refers to all frames: nothing is collected while a caller holds it.
        assert source.closed
        assert caught.value.exit_code == 5

    def test_a_blob_closed_early_closes_its_source(self) -> None:
        source = Closing(b"123")
        chunks = verify_chunks(source, descriptor_of(b"123"))
        assert next(chunks) == b"1"
        assert not source.closed
        chunks.close()  # type: ignore[attr-defined]
        assert source.closed

    def test_a_reused_buffer_is_hashed_in_time(self) -> None:
        content = bytes(range(250))
        assert passed_on(verify_chunks(read_chunks(io.BytesIO(content), 250, 7), descriptor_of(content))) == (
            content,
            None,
        )


class TestStoredBeginning:
    """The beginning of a blob is already stored: hashed with the rest, and not passed on."""

    CONTENT = bytes(range(256)) * 5

    @pytest.mark.parametrize("size", [0, 1, 700, 1279, 1280])
    @pytest.mark.parametrize("step", [1, 300, 2000])
    def test_only_the_rest_is_passed_on(self, size: int, step: int) -> None:
        blob = descriptor_of(self.CONTENT)
        rest = verify_chunks(cut(self.CONTENT[size:], step), blob, cut(self.CONTENT[:size], step))
        assert passed_on(rest) == (self.CONTENT[size:], None)

    @pytest.mark.parametrize("size", [1, 700, 1279, 1280])
    @pytest.mark.parametrize("at", [0, -1])
    def test_a_blob_with_one_wrong_stored_bit_is_never_completed(self, size: int, at: int) -> None:
        held = bytearray(self.CONTENT[:size])
        held[at] ^= 1
        rest = verify_chunks(cut(self.CONTENT[size:], 100), descriptor_of(self.CONTENT), [bytes(held)])
        found, error = passed_on(rest)
        assert isinstance(error, IntegrityError)
        assert len(found) < len(self.CONTENT) - size or not found

    def test_the_stored_beginning_and_the_rest_are_closed(self) -> None:
        held, rest = Closing(b"abc"), Closing(b"def")
        assert passed_on(verify_chunks(rest, descriptor_of(b"abcdef"), held)) == (b"def", None)
        assert (held.closed, rest.closed) == (True, True)

    def test_the_stored_beginning_is_read_before_the_rest_is_requested(self) -> None:
        order: list[str] = []

        def chunks(name: str, content: bytes) -> Iterator[Chunk]:
            order.append(name)
            yield content

        passed_on(verify_chunks(chunks("rest", b"def"), descriptor_of(b"abcdef"), chunks("held", b"abc")))
        assert order == ["held", "rest"]


class TestCheckSize:
    @pytest.mark.parametrize(("given", "right"), [(b"cdef", True), (b"cde", False), (b"cdefg", False), (b"", False)])
    def test_the_size_of_the_rest_of_a_blob_is_checked(self, given: bytes, right: bool) -> None:
        found, error = passed_on(check_chunks_size(iter([given[:3], given[3:]]), descriptor_of(b"abcdef"), 2))
        assert (error is None) is right
        assert (len(found) == 4) is right

    def test_the_source_is_closed(self) -> None:
        chunks = Closing(b"too long")
        passed_on(check_chunks_size(chunks, descriptor_of(b"abcd"), 2))
        assert chunks.closed


@given(st.lists(st.binary(max_size=5)), st.integers(0, 30))
def test_chunks_from_an_offset_have_all_later_bytes(chunks: list[bytes], offset: int) -> None:
    assert b"".join(bytes(chunk) for chunk in chunks_from(iter(chunks), offset)) == b"".join(chunks)[offset:]


class Trickle(io.RawIOBase):
    """A file that returns fewer bytes than requested, as a pipe does."""

    def __init__(self, content: bytes) -> None:
        self._rest = content
        self.asked: list[int] = []

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self.asked.append(len(buffer))
        part = self._rest[: min(3, len(buffer))]
        self._rest = self._rest[len(part) :]
        buffer[: len(part)] = part
        return len(part)


class TestReadChunks:
    def test_at_most_size_bytes_are_read(self) -> None:
        file = io.BytesIO(b"0123456789")
        assert b"".join(bytes(chunk) for chunk in read_chunks(file, 7, 4)) == b"0123456"
        assert file.read() == b"789"

    def test_reading_ends_at_the_end_of_the_file(self) -> None:
        assert [bytes(chunk) for chunk in read_chunks(io.BytesIO(b"01234"), 9, 4)] == [b"0123", b"4"]

    def test_short_reads_do_not_end_the_chunks(self) -> None:
        assert b"".join(bytes(chunk) for chunk in read_chunks(Trickle(b"0123456789"), 8, 100)) == b"01234567"

    def test_a_claimed_size_is_not_allocated(self) -> None:
        file = Trickle(b"01234")
        assert b"".join(bytes(chunk) for chunk in read_chunks(file, 1 << 60)) == b"01234"
        assert max(file.asked) == CHUNK_SIZE

    def test_nothing_is_read_for_an_empty_blob(self) -> None:
        file = Trickle(b"0")
        assert list(read_chunks(file, 0)) == []
        assert file.asked == []


def test_the_digest_names_the_hash_algorithm() -> None:
    for algorithm in ("sha256", "sha512"):
        hasher = new_hash(compute_digest(b"x", algorithm))
        hasher.update(memoryview(b"abc"))
        assert hasher.hexdigest() == hashlib.new(algorithm, b"abc").hexdigest()
