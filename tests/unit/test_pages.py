"""Memory that is read into again and again is never written to while somebody still needs what is in it."""

from __future__ import annotations

import hashlib
import itertools
import random
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from ocistream import limits, stream
from ocistream.model import Descriptor
from ocistream.pages import Pages, buffer, lasts
from ocistream.stream import verified

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = limits.BESIDE + 5 * limits.PAGE + 17
CONTENT = random.Random(0).randbytes(SIZE)
BLOB = Descriptor("", f"sha256:{hashlib.sha256(CONTENT).hexdigest()}", SIZE)


class Late:
    """A hash that takes longer than to read the next chunk does."""

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()

    def update(self, data: bytes | memoryview, /) -> None:
        time.sleep(0.01)
        self._hasher.update(data)

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()


def read_into(pages: Pages) -> Iterator[memoryview]:
    """Give the content as a connection gives it."""
    position = 0
    with pages.lent() as pair:
        for page in itertools.cycle(pair):
            piece = CONTENT[position : position + limits.PAGE]
            if not piece:
                return
            page[: len(piece)] = piece
            position += len(piece)
            yield page[: len(piece)]


def test_a_page_is_hashed_before_it_is_read_into_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "new_hash", lambda _digest: Late())
    assert b"".join(bytes(chunk) for chunk in verified(read_into(Pages()), BLOB, beside=True)) == CONTENT


def test_one_buffer_is_hashed_before_it_is_read_into_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "new_hash", lambda _digest: Late())
    memory = buffer(limits.PAGE)

    def chunks() -> Iterator[memoryview]:
        for start in range(0, SIZE, limits.PAGE):
            piece = CONTENT[start : start + limits.PAGE]
            memory[: len(piece)] = piece
            yield memory[: len(piece)]

    assert b"".join(bytes(chunk) for chunk in verified(chunks(), BLOB, beside=True)) == CONTENT


def test_what_lasts_is_bytes_and_one_of_two_pages() -> None:
    assert lasts(b"x")
    assert not lasts(memoryview(bytearray(1)))
    assert not lasts(buffer(1))
    with Pages().lent() as (first, second):
        assert lasts(first[3:5])
        assert lasts(memoryview(second))


def test_who_reads_alone_has_large_pages_and_others_beside_have_small_ones() -> None:
    pages = Pages()
    for _ in range(3):
        with ExitStack() as stack:
            lent = [stack.enter_context(pages.lent()) for _ in range(3)]
            assert [len(page) for pair in lent for page in pair] == 2 * [limits.PAGE] + 4 * [limits.CHUNK]
            # Nobody shares a page with anybody.
            assert len({id(page.obj) for pair in lent for page in pair}) == 6


def test_pages_are_used_again() -> None:
    pages = Pages()
    seen: set[int] = set()
    for _ in range(5):
        with pages.lent() as first, pages.lent() as second:
            seen.update(id(page.obj) for page in first + second)
    assert len(seen) == 4
