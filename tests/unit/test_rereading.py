"""A blob used until it is right: who is asked for other bytes, and when there are none."""

from __future__ import annotations

import pytest

from ocistream.errors import IntegrityError
from ocistream.interfaces import Blob
from ocistream.rereading import until_right
from ocistream.stream import gathered
from tests.network import blob_of

RIGHT = b"right"


class Places:
    """Several places for one blob, of which each is left when its bytes were wrong."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = list(contents)
        self.blob = Blob(blob_of(RIGHT), lambda: iter([self.contents[0]]), on_wrong=self.on_wrong)

    def on_wrong(self, error: IntegrityError, again: bool) -> None:
        if not again or len(self.contents) == 1:
            raise error
        del self.contents[0]


def read(checked: Blob) -> bytes:
    return gathered(checked.open())


def test_what_is_right_is_used_once() -> None:
    assert until_right(Places(RIGHT).blob, read, again=True) == RIGHT


def test_what_is_wrong_is_read_from_the_next_place() -> None:
    places = Places(b"wrong", b"too long", b"short", RIGHT)
    assert until_right(places.blob, read, again=True) == RIGHT
    assert places.contents == [RIGHT]


def test_that_work_cannot_be_begun_anew_is_said_to_the_source() -> None:
    places = Places(b"wrong", RIGHT)
    with pytest.raises(IntegrityError):
        until_right(places.blob, read, again=False)
    assert places.contents == [b"wrong", RIGHT]


def test_a_blob_of_one_place_is_as_it_is() -> None:
    with pytest.raises(IntegrityError):
        until_right(Blob(blob_of(RIGHT), lambda: iter([b"wrong"])), read, again=True)


def test_what_its_user_finds_wrong_is_not_the_places_fault() -> None:
    places = Places(RIGHT, b"another")

    def use(checked: Blob) -> None:
        read(checked)
        msg = "not what its config says"
        raise IntegrityError(msg)

    with pytest.raises(IntegrityError, match="not what its config says"):
        until_right(places.blob, use, again=True)
    assert places.contents == [RIGHT, b"another"]
