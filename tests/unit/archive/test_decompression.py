"""Compressed archives are read like plain ones, from files and pipes, and as strictly."""

from __future__ import annotations

import gzip
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import zstandard
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ocistream import limits
from ocistream.archive.decompression import decompress_input, is_compressed
from ocistream.errors import ArchiveError, LocalDiskError, NotFoundError

NOISE: Final = random.Random(5).randbytes(700_000)
PACKERS: Final = {"plain": bytes, "gzip": lambda raw: gzip.compress(raw, mtime=0), "zstd": zstandard.compress}
packers = pytest.mark.parametrize("packer", PACKERS)


class Trickle(io.RawIOBase):
    """A file that returns its bytes in pieces of these sizes, repeated."""

    def __init__(self, content: bytes, sizes: list[int]) -> None:
        self._content = memoryview(content)
        self._sizes = sizes
        self._number = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        size = min(self._sizes[self._number % len(self._sizes)], len(buffer), len(self._content))
        self._number += 1
        buffer[:size] = self._content[:size]
        self._content = self._content[size:]
        return size


def read_all(file: Any, sizes: Iterator[int]) -> bytes:
    """Read to the end in pieces of these sizes; a piece must be complete unless the file ends."""
    found = bytearray()
    while True:
        buffer = bytearray(next(sizes))
        got = file.readinto(memoryview(buffer))
        found += buffer[:got]
        if got < len(buffer):
            assert file.readinto(memoryview(bytearray(10))) == 0
            return bytes(found)


@settings(max_examples=60, deadline=None)
@given(
    packer=st.sampled_from(list(PACKERS)),
    content=st.one_of(st.binary(max_size=30), st.integers(0, len(NOISE)).map(lambda size: NOISE[:size])),
    pipe=st.lists(st.integers(1, 70_000), min_size=1, max_size=5),
    reads=st.lists(st.integers(1, 300_000), min_size=1, max_size=5),
)
def test_plain_bytes_are_returned_and_every_buffer_is_filled(
    packer: str, content: bytes, pipe: list[int], reads: list[int]
) -> None:
    # Plain bytes that begin like a compressed file are treated as one.
    assume(packer != "plain" or not content.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")))
    file = decompress_input(io.BufferedReader(Trickle(PACKERS[packer](content), pipe)), "it", 200)
    number = iter(range(10_000_000))
    assert read_all(file, (reads[next(number) % len(reads)] for _ in iter(int, 1))) == content


@pytest.mark.parametrize("content", [b"", b"\x1f", b"\x1f\x8b", b"\x28\xb5\x2f", b"1234", b"12345"])
def test_a_file_that_is_too_short_to_detect_is_returned_unchanged(content: bytes) -> None:
    assert read_all(decompress_input(io.BytesIO(content), "it", 200), iter([2, 2, 2, 2])) == content


@pytest.mark.parametrize("packer", ["gzip", "zstd"])
def test_an_error_in_the_stream_names_the_file(packer: str) -> None:
    packed = PACKERS[packer](NOISE)
    cut = f"^the thing is truncated: its {packer} stream ends too early$"
    for broken, message in (
        (packed[:-1], cut),
        (packed[: len(packed) // 2], cut),
        (packed + b"junk", f"^the thing: the {packer} stream is malformed"),
    ):
        with pytest.raises(ArchiveError, match=message):
            read_all(decompress_input(io.BytesIO(broken), "the thing", 200), iter(lambda: 100_000, 0))


def test_the_hint_of_a_ratio_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UNCHECKED_EXPANSION", 1000)
    file = decompress_input(io.BytesIO(gzip.compress(bytes(1 << 20))), "the thing", 200)
    with pytest.raises(ArchiveError, match=r"^the thing: .* more than 200 times") as caught:
        read_all(file, iter(lambda: 100_000, 0))
    assert "--max-ratio" in (caught.value.hint or "")
    file = decompress_input(io.BytesIO(gzip.compress(bytes(1 << 20))), "the thing", 2000)
    assert len(read_all(file, iter(lambda: 100_000, 0))) == 1 << 20


@packers
def test_closing_closes_the_underlying_file(packer: str) -> None:
    below = io.BytesIO(PACKERS[packer](NOISE))
    decompress_input(below, "it", 200).close()
    assert below.closed


@packers
def test_a_compressed_file_is_detected(packer: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(PACKERS[packer](b"content"))
    assert is_compressed(file) == (packer != "plain")
    with pytest.raises(NotFoundError):
        is_compressed(tmp_path / "nowhere")
    with pytest.raises(LocalDiskError):
        is_compressed(tmp_path)
