"""A blob used until it is right: who is asked for other bytes, and when there are none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest

from ocistream.errors import IntegrityError, NetworkError, PartialBlobLostError, UnsupportedError
from ocistream.streams.chunks import Chunk, read_all
from ocistream.transfer.interfaces import Access, Blob, ByteRange, RecoverableBlob, VerifiedBlob
from ocistream.transfer.verified_blobs import blob_from_bytes, peek, require_complete, use_verified
from tests.http_doubles import blob_of

RIGHT = b"right"


class Places:
    """Several places for one blob, of which each is left when its bytes were wrong."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = list(contents)
        self.blob = RecoverableBlob(blob_of(RIGHT), lambda: iter([self.contents[0]]), on_corrupt=self.on_wrong)

    def on_wrong(self, error: IntegrityError, again: bool) -> None:
        if not again or len(self.contents) == 1:
            raise error
        del self.contents[0]


def read(checked: VerifiedBlob) -> bytes:
    return read_all(checked.open())


def test_what_is_right_is_used_once() -> None:
    assert use_verified(Places(RIGHT).blob, read, can_retry=True) == RIGHT


def test_what_is_wrong_is_read_from_the_next_place() -> None:
    places = Places(b"wrong", b"too long", b"short", RIGHT)
    assert use_verified(places.blob, read, can_retry=True) == RIGHT
    assert places.contents == [RIGHT]


def test_that_work_cannot_be_begun_anew_is_said_to_the_source() -> None:
    places = Places(b"wrong", RIGHT)
    with pytest.raises(IntegrityError):
        use_verified(places.blob, read, can_retry=False)
    assert places.contents == [b"wrong", RIGHT]


def test_a_blob_of_one_place_is_as_it_is() -> None:
    with pytest.raises(IntegrityError):
        use_verified(Blob(blob_of(RIGHT), lambda: iter([b"wrong"])), read, can_retry=True)


def test_what_its_user_finds_wrong_is_not_the_places_fault() -> None:
    places = Places(RIGHT, b"another")

    def use(checked: VerifiedBlob) -> None:
        read(checked)
        msg = "not what its config says"
        raise IntegrityError(msg)

    with pytest.raises(IntegrityError, match="not what its config says"):
        use_verified(places.blob, use, can_retry=True)
    assert places.contents == [RIGHT, b"another"]


def test_an_error_that_is_kept_does_not_keep_the_chunks_open() -> None:
    is_open = True

    def chunks(_offset: int = 0) -> Iterator[Chunk]:
        nonlocal is_open
        try:
            yield RIGHT[:2]
            yield RIGHT[2:]
        finally:
            is_open = False

    def use(checked: VerifiedBlob) -> None:
        body = checked.open()
        next(body)
        msg = "the upload broke off"
        raise NetworkError(msg)

    with pytest.raises(NetworkError) as raised:
        use_verified(Blob(blob_of(RIGHT), chunks), use, can_retry=True)
    assert raised.value.__traceback__
    assert not is_open


@pytest.mark.parametrize("offset", range(len(RIGHT) + 1))
def test_bytes_and_what_was_looked_into_begin_anywhere(offset: int) -> None:
    blob = blob_from_bytes(blob_of(RIGHT), RIGHT)
    assert read_all(blob.open(offset)) == RIGHT[offset:]
    seen, beginning = peek(blob)
    assert (read_all(seen.open(offset)), beginning, seen.access) == (RIGHT[offset:], RIGHT, Access.ONCE)


def test_only_from_its_first_byte_to_its_last_is_a_blob_complete() -> None:
    blob = VerifiedBlob(blob_of(RIGHT), lambda *_: iter([RIGHT]))
    require_complete(blob)
    rest, beginning = ByteRange(1, len(RIGHT)), ByteRange(0, 4)
    for part in (rest, beginning):
        with pytest.raises(UnsupportedError, match=blob.descriptor.digest):
            require_complete(dataclasses.replace(blob, range=part))
    require_complete(dataclasses.replace(blob, range=rest), or_rest=True)
    with pytest.raises(UnsupportedError, match=blob.descriptor.digest):
        require_complete(dataclasses.replace(blob, range=beginning), or_rest=True)


class Resumable:
    """A blob of one place that can be begun anywhere; `asked` has the offsets at which it was."""

    def __init__(self, content: bytes = RIGHT) -> None:
        self.content = content
        self.asked: list[int] = []
        self.blob = RecoverableBlob(blob_of(RIGHT), self.chunks)

    def chunks(self, offset: int = 0) -> Iterator[Chunk]:
        self.asked.append(offset)
        yield self.content[offset:]


def resumed(held: bytes) -> Callable[[VerifiedBlob], bytes]:
    """Return what uses a blob of which it holds some: wrong content is thrown away."""
    left = [held]

    def use(checked: VerifiedBlob) -> bytes:
        if not checked.can_resume or not left:
            return read(checked)
        there = left.pop()
        return there + read_all(checked.open(len(there), iter([there])))

    return use


class TestResuming:
    @pytest.mark.parametrize("size", [0, 1, 4])
    def test_only_what_is_not_held_is_asked_for(self, size: int) -> None:
        place = Resumable()
        assert use_verified(place.blob, resumed(RIGHT[:size]), can_retry=True) == RIGHT
        assert place.asked == [size]

    def test_of_what_is_held_whole_nothing_is_asked_for(self) -> None:
        place = Resumable()
        assert use_verified(place.blob, resumed(RIGHT), can_retry=True) == RIGHT
        assert place.asked == []

    @pytest.mark.parametrize("held", [b"R", b"wrong", b"too long"])
    def test_where_the_whole_is_wrong_it_is_begun_anew_once(self, held: bytes) -> None:
        place = Resumable()
        assert use_verified(place.blob, resumed(held), can_retry=True) == RIGHT
        assert place.asked[-1:] == [0]
        assert len(place.asked) <= 2

    def test_what_is_wrong_then_too_is_an_error(self) -> None:
        place = Resumable(b"worse")
        with pytest.raises(IntegrityError):
            use_verified(place.blob, resumed(b"R"), can_retry=True)
        assert place.asked == [1, 0]

    def test_what_was_held_is_suspected_before_a_place_is(self) -> None:
        place = Resumable()
        told: list[IntegrityError] = []
        blob = dataclasses.replace(place.blob, on_corrupt=lambda error, _: told.append(error))
        assert use_verified(blob, resumed(b"R"), can_retry=True) == RIGHT
        assert told == []

    def test_a_place_that_lies_is_left_after_that(self) -> None:
        place = Resumable(b"worse")

        def on_wrong(_: IntegrityError, again: bool) -> None:
            assert again
            place.content = RIGHT

        blob = dataclasses.replace(place.blob, on_corrupt=on_wrong)
        assert use_verified(blob, resumed(RIGHT[:1]), can_retry=True) == RIGHT
        assert place.asked == [1, 0, 0]

    def test_what_can_only_be_read_from_its_beginning_cannot_be_resumed(self) -> None:
        pipe = Blob(blob_of(RIGHT), lambda: iter([RIGHT]), access=Access.ONCE)
        assert not use_verified(pipe, lambda checked: checked.can_resume, can_retry=True)

    def test_what_comes_over_a_line_that_may_break_can_although_it_comes_once(self) -> None:
        place = Resumable()
        line = Blob(place.blob.descriptor, place.chunks, Access.RESUMABLE)
        assert use_verified(line, resumed(b"ri"), can_retry=True) == RIGHT
        assert place.asked == [2]

    def test_where_it_is_wrong_then_it_cannot_be_begun_anew(self) -> None:
        place = Resumable()
        line = Blob(place.blob.descriptor, place.chunks, Access.RESUMABLE)
        with pytest.raises(PartialBlobLostError):
            use_verified(line, resumed(b"RI"), can_retry=True)
        assert place.asked == [2]

    def test_what_begins_in_the_middle_has_its_size_checked(self) -> None:
        def use(checked: VerifiedBlob) -> bytes:
            return read_all(checked.open(2))

        assert use_verified(Resumable().blob, use, can_retry=False) == RIGHT[2:]
        for content in (b"", b"righ", b"rights"):
            with pytest.raises(IntegrityError):
                use_verified(Resumable(content).blob, use, can_retry=False)


class TestPartsOfBlobs:
    """A source that has only some bytes of a blob: the part in a volume has a digest, the rest of a copy has none."""

    @pytest.mark.parametrize("content", [b"igh", b"xgh", b"ig", b"igh!"])
    def test_a_part_is_verified_by_its_own_digest(self, content: bytes) -> None:
        part = Blob(blob_of(RIGHT), lambda: iter([content]), range=ByteRange(1, 4, blob_of(b"igh").digest))
        if content == b"igh":
            assert use_verified(part, read, can_retry=True) == content
            return
        with pytest.raises(IntegrityError, match=blob_of(b"igh").digest):
            use_verified(part, read, can_retry=True)

    def test_the_rest_is_verified_together_with_the_stored_beginning(self) -> None:
        place = Resumable()
        rest = Blob(blob_of(RIGHT), place.chunks, Access.RESUMABLE, range=ByteRange(2, len(RIGHT)))
        assert use_verified(rest, resumed(b"rig"), can_retry=True) == RIGHT
        assert place.asked == [3]

    def test_a_rest_that_does_not_fit_is_lost_and_not_the_source_wrong(self) -> None:
        for use in (resumed(b"RI"), read, raise_integrity_error):
            rest = Blob(blob_of(RIGHT), lambda *_: iter([b"wrong"]), Access.RESUMABLE, range=ByteRange(2, len(RIGHT)))
            with pytest.raises(PartialBlobLostError):
                use_verified(rest, use, can_retry=True)


def raise_integrity_error(checked: VerifiedBlob) -> bytes:
    """Fail as a registry does that finds the complete blob wrong."""
    del checked
    raise IntegrityError("wrong together")
