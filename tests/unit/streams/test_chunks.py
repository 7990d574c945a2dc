"""The loops over a blob's bytes: nothing wrong gets to its end, everything right is counted."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocistream.errors import IntegrityError
from ocistream.limits import CHUNK_SIZE
from ocistream.oci.descriptor import Descriptor
from ocistream.oci.digest import compute_digest
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
    """Return what came out before the end, or before the error."""
    found = b""
    try:
        for chunk in chunks:
            found += chunk
    except IntegrityError as error:
        return found, error
    return found, None


class Closing:
    """Chunks of one byte out of something that is to be closed, as a socket is."""

    def __init__(self, content: bytes) -> None:
        self._chunks = iter(cut(content, 1))
        self.closed = False

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def close(self) -> None:
        self.closed = True


class TestVerified:
    @given(st.binary(max_size=300), st.integers(1, 100), st.sampled_from(["sha256", "sha512"]))
    def test_right_bytes_pass_however_they_are_cut(self, content: bytes, size: int, algorithm: str) -> None:
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

    def test_a_blob_that_is_too_long_is_given_up_at_the_first_chunk_too_many(self) -> None:
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
    def test_a_wrong_blob_closes_what_it_comes_from(self, given: bytes) -> None:
        source = Closing(given)
        with pytest.raises(IntegrityError) as caught:
            list(verify_chunks(source, descriptor_of(b"123")))
        # The error's traceback holds on to all that was at work: nothing is collected as long as it is looked at.
        assert source.closed
        assert caught.value.exit_code == 5

    def test_a_blob_that_is_given_up_half_way_closes_what_it_comes_from(self) -> None:
        source = Closing(b"123")
        chunks = verify_chunks(source, descriptor_of(b"123"))
        assert next(chunks) == b"1"
        assert not source.closed
        chunks.close()  # type: ignore[attr-defined]
        assert source.closed

    def test_a_buffer_that_is_used_again_is_hashed_in_time(self) -> None:
        content = bytes(range(250))
        assert passed_on(verify_chunks(read_chunks(io.BytesIO(content), 250, 7), descriptor_of(content))) == (
            content,
            None,
        )


class TestHeld:
    """The beginning of a blob is there already: hashed with the rest, and not passed on."""

    CONTENT = bytes(range(256)) * 5

    @pytest.mark.parametrize("size", [0, 1, 700, 1279, 1280])
    @pytest.mark.parametrize("step", [1, 300, 2000])
    def test_only_the_rest_is_passed_on(self, size: int, step: int) -> None:
        blob = descriptor_of(self.CONTENT)
        rest = verify_chunks(cut(self.CONTENT[size:], step), blob, cut(self.CONTENT[:size], step))
        assert passed_on(rest) == (self.CONTENT[size:], None)

    @pytest.mark.parametrize("size", [1, 700, 1279, 1280])
    @pytest.mark.parametrize("at", [0, -1])
    def test_one_wrong_bit_in_it_is_found_and_the_blob_never_completed(self, size: int, at: int) -> None:
        held = bytearray(self.CONTENT[:size])
        held[at] ^= 1
        rest = verify_chunks(cut(self.CONTENT[size:], 100), descriptor_of(self.CONTENT), [bytes(held)])
        found, error = passed_on(rest)
        assert isinstance(error, IntegrityError)
        assert len(found) < len(self.CONTENT) - size or not found

    def test_what_is_held_is_closed_and_so_is_the_rest(self) -> None:
        held, rest = Closing(b"abc"), Closing(b"def")
        assert passed_on(verify_chunks(rest, descriptor_of(b"abcdef"), held)) == (b"def", None)
        assert (held.closed, rest.closed) == (True, True)

    def test_nothing_of_the_rest_is_asked_for_before_it_was_read(self) -> None:
        order: list[str] = []

        def chunks(name: str, content: bytes) -> Iterator[Chunk]:
            order.append(name)
            yield content

        passed_on(verify_chunks(chunks("rest", b"def"), descriptor_of(b"abcdef"), chunks("held", b"abc")))
        assert order == ["held", "rest"]


class TestSized:
    @pytest.mark.parametrize(("given", "right"), [(b"cdef", True), (b"cde", False), (b"cdefg", False), (b"", False)])
    def test_of_what_begins_in_the_middle_the_size_is_checked(self, given: bytes, right: bool) -> None:
        found, error = passed_on(check_chunks_size(iter([given[:3], given[3:]]), descriptor_of(b"abcdef"), 2))
        assert (error is None) is right
        assert (len(found) == 4) is right

    def test_what_it_comes_from_is_closed(self) -> None:
        chunks = Closing(b"too long")
        passed_on(check_chunks_size(chunks, descriptor_of(b"abcd"), 2))
        assert chunks.closed


@given(st.lists(st.binary(max_size=5)), st.integers(0, 30))
def test_from_a_byte_on_is_all_that_comes_after_it(chunks: list[bytes], offset: int) -> None:
    assert b"".join(bytes(chunk) for chunk in chunks_from(iter(chunks), offset)) == b"".join(chunks)[offset:]


class Trickle(io.RawIOBase):
    """A file that gives fewer bytes than it is asked for, as a pipe does."""

    def __init__(self, content: bytes) -> None:
        self._rest = content
        self.asked: list[int] = []

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self.asked.append(len(buffer))
        part = self._rest[: min(3, len(buffer))]
        self._rest = self._rest[len(part) :]
        buffer[: len(part)] = part
        return len(part)


class TestChunksOf:
    def test_no_more_than_size_is_read(self) -> None:
        file = io.BytesIO(b"0123456789")
        assert b"".join(bytes(chunk) for chunk in read_chunks(file, 7, 4)) == b"0123456"
        assert file.read() == b"789"

    def test_it_ends_where_the_file_does(self) -> None:
        assert [bytes(chunk) for chunk in read_chunks(io.BytesIO(b"01234"), 9, 4)] == [b"0123", b"4"]

    def test_short_reads_are_no_end(self) -> None:
        assert b"".join(bytes(chunk) for chunk in read_chunks(Trickle(b"0123456789"), 8, 100)) == b"01234567"

    def test_a_size_that_is_claimed_is_not_allocated(self) -> None:
        file = Trickle(b"01234")
        assert b"".join(bytes(chunk) for chunk in read_chunks(file, 1 << 60)) == b"01234"
        assert max(file.asked) == CHUNK_SIZE

    def test_nothing_is_read_for_an_empty_blob(self) -> None:
        file = Trickle(b"0")
        assert list(read_chunks(file, 0)) == []
        assert file.asked == []


def test_the_hash_is_the_one_that_the_digest_names() -> None:
    for algorithm in ("sha256", "sha512"):
        hasher = new_hash(compute_digest(b"x", algorithm))
        hasher.update(memoryview(b"abc"))
        assert hasher.hexdigest() == hashlib.new(algorithm, b"abc").hexdigest()
