"""A blob is verified while it is used; after wrong bytes it is read again, or from another place."""

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


def read(checked: VerifiedBlob) -> bytes:
    return read_all(checked.open())


def test_an_error_of_the_user_does_not_change_the_place() -> None:
    told: list[IntegrityError] = []
    blob = RecoverableBlob(blob_of(RIGHT), lambda: iter([RIGHT]), on_corrupt=lambda error, _: told.append(error))

    def use(checked: VerifiedBlob) -> None:
        read(checked)
        msg = "not what its config says"
        raise IntegrityError(msg)

    with pytest.raises(IntegrityError, match="not what its config says"):
        use_verified(blob, use, can_retry=True)
    assert told == []


def test_a_stored_error_does_not_keep_the_chunks_open() -> None:
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
def test_bytes_and_peeked_blobs_can_be_opened_at_any_offset(offset: int) -> None:
    blob = blob_from_bytes(blob_of(RIGHT), RIGHT)
    assert read_all(blob.open(offset)) == RIGHT[offset:]
    seen, beginning = peek(blob)
    assert (read_all(seen.open(offset)), beginning, seen.access) == (RIGHT[offset:], RIGHT, Access.ONCE)


def test_a_blob_is_complete_only_with_all_its_bytes() -> None:
    blob = VerifiedBlob(blob_of(RIGHT), lambda *_: iter([RIGHT]))
    require_complete(blob)
    rest, beginning = ByteRange(1, len(RIGHT)), ByteRange(0, 4)
    for part in (rest, beginning):
        with pytest.raises(UnsupportedError, match=blob.descriptor.digest):
            require_complete(dataclasses.replace(blob, range=part))
    require_complete(dataclasses.replace(blob, range=rest), can_be_rest=True)
    with pytest.raises(UnsupportedError, match=blob.descriptor.digest):
        require_complete(dataclasses.replace(blob, range=beginning), can_be_rest=True)


class Resumable:
    """A blob of one place that can be opened at any offset; `asked` has the offsets."""

    def __init__(self, content: bytes = RIGHT) -> None:
        self.content = content
        self.asked: list[int] = []
        self.blob = RecoverableBlob(blob_of(RIGHT), self.chunks)

    def chunks(self, offset: int = 0) -> Iterator[Chunk]:
        self.asked.append(offset)
        yield self.content[offset:]


def resumed(held: bytes) -> Callable[[VerifiedBlob], bytes]:
    """Return a user of a blob that has stored its beginning, and deletes a wrong beginning."""
    left = [held]

    def use(checked: VerifiedBlob) -> bytes:
        if not checked.can_resume or not left:
            return read(checked)
        there = left.pop()
        return there + read_all(checked.open(len(there), iter([there])))

    return use


class TestResuming:
    def test_nothing_is_requested_of_a_complete_blob(self) -> None:
        place = Resumable()
        assert use_verified(place.blob, resumed(RIGHT), can_retry=True) == RIGHT
        assert place.asked == []

    def test_a_blob_that_can_be_read_only_once_cannot_be_resumed(self) -> None:
        pipe = Blob(blob_of(RIGHT), lambda: iter([RIGHT]), access=Access.ONCE)
        assert not use_verified(pipe, lambda checked: checked.can_resume, can_retry=True)

    def test_a_wrong_resumable_blob_cannot_be_read_again(self) -> None:
        place = Resumable()
        line = Blob(place.blob.descriptor, place.chunks, Access.RESUMABLE)
        with pytest.raises(PartialBlobLostError):
            use_verified(line, resumed(b"RI"), can_retry=True)
        assert place.asked == [2]

    def test_the_size_of_a_blob_opened_in_the_middle_is_checked(self) -> None:
        def use(checked: VerifiedBlob) -> bytes:
            return read_all(checked.open(2))

        assert use_verified(Resumable().blob, use, can_retry=False) == RIGHT[2:]
        for content in (b"", b"righ", b"rights"):
            with pytest.raises(IntegrityError):
                use_verified(Resumable(content).blob, use, can_retry=False)


class TestPartsOfBlobs:
    """A source that has only some bytes of a blob: a part in a volume has a digest, the rest of a copy has none."""

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

    def test_a_rest_that_does_not_match_is_lost_and_the_source_is_not_blamed(self) -> None:
        for use in (resumed(b"RI"), read, raise_integrity_error):
            rest = Blob(blob_of(RIGHT), lambda *_: iter([b"wrong"]), Access.RESUMABLE, range=ByteRange(2, len(RIGHT)))
            with pytest.raises(PartialBlobLostError):
                use_verified(rest, use, can_retry=True)


def raise_integrity_error(checked: VerifiedBlob) -> bytes:
    """Fail like a registry that finds the complete blob wrong."""
    del checked
    raise IntegrityError("wrong together")
