"""Archives inside gzip or zstd: read as if they were plain, from files and pipes, and as strictly."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ocistream import limits
from ocistream.archive.decompression import decompress_input, is_compressed
from ocistream.errors import ArchiveError, LocalDiskError, NotFoundError, OcistreamError
from ocistream.layout.destination import LayoutDestination
from ocistream.locations import OpenContext, Selection, open_source, parse_location
from ocistream.transfer import copy as transfer
from tests.archives import END, items_of, small_first, tar_of
from tests.images import Layout, small_image
from tests.observers import Watch
from tests.recompression_checks import named

NOISE: Final = random.Random(5).randbytes(700_000)
PACKERS: Final = {"plain": bytes, "gzip": lambda raw: gzip.compress(raw, mtime=0), "zstd": zstandard.compress}
packers = pytest.mark.parametrize("packer", PACKERS)


class Trickle(io.RawIOBase):
    """A file that gives its bytes in pieces of these sizes, over and over."""

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
    """Read to the end in pieces of these sizes; a piece is to be whole unless the file ends."""
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
def test_plain_bytes_come_out_and_every_buffer_is_filled(
    packer: str, content: bytes, pipe: list[int], reads: list[int]
) -> None:
    file = decompress_input(io.BufferedReader(Trickle(PACKERS[packer](content), pipe)), "it", 200)
    number = iter(range(10_000_000))
    assert read_all(file, (reads[next(number) % len(reads)] for _ in iter(int, 1))) == content


@pytest.mark.parametrize("content", [b"", b"\x1f", b"\x1f\x8b", b"\x28\xb5\x2f", b"1234", b"12345"])
def test_what_is_too_short_to_tell_is_given_as_it_is(content: bytes) -> None:
    assert read_all(decompress_input(io.BytesIO(content), "it", 200), iter([2, 2, 2, 2])) == content


@pytest.mark.parametrize("packer", ["gzip", "zstd"])
def test_a_broken_stream_is_an_error_that_names_the_file(packer: str) -> None:
    packed = PACKERS[packer](NOISE)
    for broken in (packed[:-1], packed[: len(packed) // 2], packed + b"junk"):
        with pytest.raises(ArchiveError, match=f"^the thing: the {packer} stream is malformed"):
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
def test_closing_closes_what_is_below(packer: str) -> None:
    below = io.BytesIO(PACKERS[packer](NOISE))
    decompress_input(below, "it", 200).close()
    assert below.closed


@packers
def test_a_file_is_asked_how_it_begins(packer: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(PACKERS[packer](b"content"))
    assert is_compressed(file) == (packer != "plain")
    with pytest.raises(NotFoundError):
        is_compressed(tmp_path / "nowhere")
    with pytest.raises(LocalDiskError):
        is_compressed(tmp_path)


class TestArchives:
    """The same through the table of ends, as the commands have it."""

    def copied(self, content: bytes, how: str, tmp_path: Path, max_ratio: int = 200) -> Layout:
        def nothing() -> Any:
            raise AssertionError

        text, stdin = str(tmp_path / "archive"), io.BytesIO(content)
        threads: list[threading.Thread] = []
        if how == "stdin":
            text = "-"
        elif how == "fifo":
            os.mkfifo(text)
            threads.append(threading.Thread(target=self.feed, args=(text, content), daemon=True))
            threads[0].start()
        else:
            Path(text).write_bytes(content)
        around = OpenContext(client=nothing, stdin=lambda: stdin, stdout=nothing)
        source = open_source(parse_location(text), around, Selection(max_ratio=max_ratio))
        sink = LayoutDestination(tmp_path / "out")
        try:
            transfer.copy(source, sink, Watch())
        finally:
            source.close()
            for thread in threads:
                thread.join()
        return Layout(tmp_path / "out")

    @staticmethod
    def feed(path: str, content: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            Path(path).write_bytes(content)

    @pytest.mark.parametrize("order", [items_of, small_first])
    @pytest.mark.parametrize("how", ["stdin", "fifo", "file"])
    @packers
    def test_an_image_keeps_its_digest(self, layout: Layout, tmp_path: Path, packer: str, how: str, order: Any) -> None:
        image = small_image(layout, name="v1")
        found = self.copied(PACKERS[packer](tar_of(order(layout))), how, tmp_path)
        assert named(found)["v1"]["digest"] == image["digest"]

    @pytest.mark.parametrize("how", ["stdin", "file"])
    @pytest.mark.parametrize("packer", ["gzip", "zstd"])
    def test_what_is_cut_after_the_tar_has_ended_is_found_too(
        self, layout: Layout, tmp_path: Path, packer: str, how: str
    ) -> None:
        small_image(layout, name="v1")
        packed = PACKERS[packer](tar_of(small_first(layout)))
        with pytest.raises(ArchiveError, match="ends too early"):
            self.copied(packed[:-2], how, tmp_path)
        assert named(Layout(tmp_path / "out")) == {}

    @pytest.mark.parametrize("packer", ["gzip", "zstd"])
    def test_an_archive_without_an_end_in_a_whole_stream(self, layout: Layout, tmp_path: Path, packer: str) -> None:
        small_image(layout, name="v1")
        archive = tar_of(small_first(layout))
        with pytest.raises(ArchiveError, match="truncated"):
            self.copied(PACKERS[packer](archive[: -len(END)]), "stdin", tmp_path)

    def test_one_that_grows_too_much_is_stopped(
        self, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "UNCHECKED_EXPANSION", 10_000)
        layout.image([bytes(4 << 20)], name="v1")
        packed = gzip.compress(tar_of(small_first(layout)))
        with pytest.raises(ArchiveError, match="expands to more than 200 times"):
            self.copied(packed, "file", tmp_path)
        assert set(named(self.copied(packed, "file", tmp_path, max_ratio=5000))) == {"v1"}

    @pytest.mark.parametrize("packer", ["gzip", "zstd"])
    def test_twice_is_once_too_often(self, layout: Layout, tmp_path: Path, packer: str) -> None:
        small_image(layout, name="v1")
        with pytest.raises(OcistreamError):
            self.copied(PACKERS[packer](PACKERS[packer](tar_of(items_of(layout)))), "stdin", tmp_path)
