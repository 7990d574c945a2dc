"""The codecs: a round trip in any chunking, and errors for malformed streams and for excessive expansion."""

from __future__ import annotations

import gzip
import importlib
import io
import random
import struct
import sys
import threading
import types
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, UnsupportedError
from ocistream.streams.chunks import Chunk
from ocistream.streams.compression import CODECS, GZIP, MAGIC_SIZE, NONE, ZSTD, Codec, decompress, detect_codec
from tests.runner import run_measured

MIB: Final = limits.MIB
COMPRESSING: Final = [GZIP, ZSTD]
#: Several blocks for either codec, some of which compress.
CONTENT: Final = random.Random(1).randbytes(150_000) + b"over and over " * 30_000 + random.Random(2).randbytes(300_000)
SKIPPABLE: Final = b"\x5a\x2a\x4d\x18" + struct.pack("<I", 5) + b"notes"
EMPTY_SKIPPABLE: Final = b"\x50\x2a\x4d\x18" + bytes(4)

codecs = pytest.mark.parametrize("codec", COMPRESSING, ids=lambda codec: codec.name)


def joined(chunks: Iterable[Chunk]) -> bytes:
    return b"".join(bytes(chunk) for chunk in chunks)


def in_one_buffer(content: bytes, sizes: Iterable[int]) -> Iterator[Chunk]:
    """Yield `content` in pieces of these sizes, then the rest, all in one buffer, as a file's chunks are."""
    buffer = bytearray(max(1, len(content)))
    start = 0
    for size in (*sizes, len(content)):
        piece = content[start : start + size]
        buffer[: len(piece)] = piece
        yield memoryview(buffer)[: len(piece)]
        # Code that keeps a chunk for too long must fail.
        buffer[: len(piece)] = b"\xaa" * len(piece)
        start += len(piece)


def compressed(codec: Codec, content: bytes = CONTENT, level: int | None = None, sizes: Iterable[int] = ()) -> bytes:
    return joined(codec.compress(in_one_buffer(content, sizes), codec.default_level if level is None else level))


def plain(codec: Codec, content: bytes, sizes: Iterable[int] = ()) -> bytes:
    return joined(codec.decompress(in_one_buffer(content, sizes)))


def by_others(codec: Codec, content: bytes) -> bytes:
    """Compress with another library and other options."""
    return gzip.compress(content, 1) if codec is GZIP else zstandard.compress(content, 1)


@pytest.fixture
def no_isal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide isal, whether it is installed or not."""
    monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)


@pytest.fixture(params=["zlib", "isal"])
def inflate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test without and with isal."""
    if request.param == "zlib":
        monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    else:
        importlib.import_module("isal.isal_zlib")
    return str(request.param)


class TestRoundTrip:
    @settings(max_examples=60, deadline=None)
    @given(
        codec=st.sampled_from(COMPRESSING),
        content=st.one_of(st.binary(max_size=2000), st.integers(0, 700_000).map(lambda size: CONTENT[:size])),
        level=st.integers(1, 5),
        sizes=st.lists(st.integers(0, 300_000), max_size=20),
        others=st.lists(st.integers(0, 100_000), max_size=20),
    )
    def test_a_round_trip_in_any_chunking(
        self, codec: Codec, content: bytes, level: int, sizes: list[int], others: list[int]
    ) -> None:
        packed = compressed(codec, content, level, sizes)
        assert plain(codec, packed, others) == content

    @pytest.mark.usefixtures("inflate")
    @codecs
    @pytest.mark.parametrize(
        "size", [0, 1, 511, 1 << 17, (1 << 17) + 1, limits.CHUNK_SIZE, 2 * limits.CHUNK_SIZE, 3 * MIB + 1]
    )
    def test_any_size_with_chunks_of_one_byte_at_either_end(self, codec: Codec, size: int) -> None:
        content = (CONTENT * 5)[:size]
        packed = compressed(codec, content)
        assert plain(codec, packed, [1] * 40) == content
        assert plain(codec, packed, [max(0, len(packed) - 20)] + [1] * 20) == content

    @codecs
    def test_other_libraries_read_the_output(self, codec: Codec) -> None:
        packed = compressed(codec)
        if codec is GZIP:
            assert gzip.decompress(packed) == CONTENT
        else:
            assert zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)).read() == CONTENT
        assert len(packed) < len(CONTENT)

    @codecs
    def test_output_depends_on_the_level_but_not_on_the_chunking(self, codec: Codec) -> None:
        content = CONTENT * 4
        first = compressed(codec, content)
        assert all(compressed(codec, content, sizes=sizes) == first for sizes in ([], [1] * 50, [7919] * 100, [MIB]))
        assert compressed(codec, content, codec.levels[-1] if codec is GZIP else 9) != first

    def test_a_gzip_header_has_no_name_time_or_platform(self) -> None:
        packed = compressed(GZIP)
        # RFC 1952, section 2.3: no flags, so no name; no time; and always Unix.
        assert packed[3:8] == bytes(5)
        assert packed[9] == 3

    def test_a_zstd_frame_has_a_checksum(self) -> None:
        assert zstandard.get_frame_parameters(compressed(ZSTD)).has_checksum

    @codecs
    def test_chunks_are_bounded(self, codec: Codec) -> None:
        packed = compressed(codec, bytes(20 * MIB))
        assert max(len(chunk) for chunk in codec.decompress([packed])) <= limits.CHUNK_SIZE

    def test_none_returns_chunks_unchanged(self) -> None:
        assert compressed(NONE) == plain(NONE, CONTENT) == CONTENT

    @codecs
    def test_every_level_works(self, codec: Codec) -> None:
        content = CONTENT[:1000]
        assert {plain(codec, compressed(codec, content, level)) for level in codec.levels} == {content}


class TestSeveralMembers:
    """Gzip members and zstd frames, one after the other (RFC 1952, section 2.2; RFC 8878, section 3.1)."""

    @pytest.mark.usefixtures("inflate")
    @codecs
    @pytest.mark.parametrize("sizes", [[], [1] * 60, [50_000, 1, 1]])
    def test_all_members_and_frames_are_read(self, codec: Codec, sizes: list[int]) -> None:
        pieces = [b"first", b"", CONTENT, b"", b"last"]
        whole = b"".join(by_others(codec, piece) for piece in pieces)
        assert plain(codec, whole, sizes) == b"".join(pieces)

    @pytest.mark.usefixtures("inflate")
    @pytest.mark.parametrize("sizes", [[], [1] * 4000])
    def test_zeros_may_follow_a_member(self, sizes: list[int]) -> None:
        packed = compressed(GZIP, b"content")
        assert plain(GZIP, packed + bytes(2000), sizes) == b"content"
        assert plain(GZIP, packed + bytes(600) + packed, sizes) == b"contentcontent"

    @pytest.mark.usefixtures("inflate")
    @pytest.mark.parametrize("sizes", [[], [1] * 4000])
    @pytest.mark.parametrize("behind", [b"garbage", b"g", bytes(600) + b"garbage", b"\x1e\x8b\x08", b"x" * 9000])
    def test_other_data_after_a_member_is_refused(self, behind: bytes, sizes: list[int]) -> None:
        with pytest.raises(ArchiveError, match="something else follows its last member"):
            plain(GZIP, compressed(GZIP, b"content") + behind, sizes)

    @pytest.mark.usefixtures("inflate")
    @pytest.mark.parametrize("sizes", [[], [1] * 4000])
    @pytest.mark.parametrize("behind", [b"\x1f", b"\x1f\x8b", b"\x1f\x8b\x08"])
    def test_a_truncated_header_of_a_second_member_is_refused(self, behind: bytes, sizes: list[int]) -> None:
        with pytest.raises(ArchiveError, match="it ends too early"):
            plain(GZIP, compressed(GZIP, b"content") + behind, sizes)

    @pytest.mark.parametrize("sizes", [[], [1] * 200])
    @pytest.mark.parametrize("skipped", [SKIPPABLE, EMPTY_SKIPPABLE])
    def test_skippable_frames_are_skipped(self, skipped: bytes, sizes: list[int]) -> None:
        packed = compressed(ZSTD, b"content")
        for whole in (skipped + packed, packed + skipped, skipped + packed + skipped * 2 + packed):
            assert plain(ZSTD, whole, sizes) == b"content" * whole.count(packed)

    @pytest.mark.parametrize(
        "options",
        [
            {"write_content_size": True},
            {"write_content_size": False, "write_checksum": False},
            {"write_content_size": True, "write_checksum": True},
        ],
    )
    @pytest.mark.parametrize("size", [0, 1, 255, 256, 65_791, 65_792, 500_000])
    @pytest.mark.parametrize("sort", ["mixed", "zeros", "noise"])
    def test_every_form_of_a_frame_is_read_to_its_end(self, options: dict[str, Any], size: int, sort: str) -> None:
        content = {"mixed": CONTENT, "zeros": bytes(size), "noise": random.Random(3).randbytes(size)}[sort][:size]
        packed = zstandard.ZstdCompressor(**options).compress(content)
        assert plain(ZSTD, packed, [1] * 30) == content
        assert plain(ZSTD, packed + packed) == content * 2
        with pytest.raises(ArchiveError):
            plain(ZSTD, packed[:-1])

    @pytest.mark.parametrize("code", [1, 2, 3])
    def test_a_dictionary_id_may_be_zero(self, code: int) -> None:
        raw_last_block = (1 << 3 | 1).to_bytes(3, "little") + b"x"
        # RFC 8878, section 3.1.1.1.3: 1, 2 or 4 bytes.
        packed = ZSTD.magic + bytes([code, 0]) + bytes((0, 1, 2, 4)[code]) + raw_last_block
        assert plain(ZSTD, packed * 2) == b"xx"
        with pytest.raises(ArchiveError):
            plain(ZSTD, packed[:-1])


@pytest.mark.usefixtures("inflate")
class TestMalformed:
    SMALL: Final = CONTENT[:300] + bytes(5000)

    @codecs
    def test_a_truncated_stream_is_refused(self, codec: Codec) -> None:
        packed = by_others(codec, self.SMALL) + compressed(codec, self.SMALL)
        seam = len(by_others(codec, self.SMALL))
        for end in range(len(packed)):
            if end == seam:
                assert plain(codec, packed[:end]) == self.SMALL
                continue
            with pytest.raises(ArchiveError, match=f"the {codec.name} stream is malformed"):
                plain(codec, packed[:end])

    @codecs
    def test_every_flipped_bit_is_detected_or_harmless(self, codec: Codec) -> None:
        packed = compressed(codec, self.SMALL)
        found = 0
        for place in range(len(packed)):
            for bit in range(8):
                damaged = bytearray(packed)
                damaged[place] ^= 1 << bit
                try:
                    assert plain(codec, bytes(damaged)) == self.SMALL, (place, bit)
                except (ArchiveError, UnsupportedError):
                    found += 1
        # Harmless are the time and a few flags in a gzip header, and zstd's window size up to the limit.
        assert found > len(packed) * 8 - 100

    @codecs
    @pytest.mark.parametrize(
        "junk", [b"j", b"junk", b"trailing junk", b"\0j", b"\x1f", b"\x1f\x8b\x08", b"\x28\xb5\x2f"]
    )
    @pytest.mark.parametrize("sizes", [[], [1] * 200])
    def test_nothing_else_may_follow(self, codec: Codec, junk: bytes, sizes: list[int]) -> None:
        with pytest.raises(ArchiveError, match=f"the {codec.name} stream is malformed"):
            plain(codec, compressed(codec, b"content") + junk, sizes)

    @codecs
    @pytest.mark.parametrize("content", [b"", b"\0", bytes(600), b"not compressed at all"])
    def test_a_stream_without_magic_bytes_is_refused(self, codec: Codec, content: bytes) -> None:
        with pytest.raises(ArchiveError, match=f"the {codec.name} stream is malformed"):
            plain(codec, content)

    def test_zeros_may_not_follow_a_zstd_frame(self) -> None:
        with pytest.raises(ArchiveError, match="the zstd stream is malformed"):
            plain(ZSTD, compressed(ZSTD, b"content") + bytes(512))

    @codecs
    def test_errors_of_the_input_are_raised_unchanged(self, codec: Codec) -> None:
        def chunks() -> Iterator[Chunk]:
            yield compressed(codec)[:1000]
            msg = "wrong"
            raise IntegrityError(msg)

        with pytest.raises(IntegrityError, match="wrong"):
            joined(codec.decompress(chunks()))
        with pytest.raises(IntegrityError, match="wrong"):
            joined(codec.compress(chunks(), 1))


def frame_asking_for(window_log: int) -> bytes:
    """Return a zstd frame of one byte that asks for a window of 2 ** `window_log` bytes (RFC 8878, 3.1.1.1.2)."""
    raw_last_block = (1 << 3 | 1).to_bytes(3, "little") + b"x"
    return b"\x28\xb5\x2f\xfd" + bytes([0, (window_log - 10) << 3]) + raw_last_block


class TestGrowth:
    def test_a_window_of_up_to_128_mebibytes_is_allowed(self) -> None:
        assert plain(ZSTD, frame_asking_for(27)) == b"x"
        for window_log in (28, 31, 41):
            with pytest.raises(UnsupportedError, match="needs a window of"):
                plain(ZSTD, frame_asking_for(window_log))

    @codecs
    def test_a_ratio_over_the_limit_is_refused_above_the_unchecked_size(
        self, codec: Codec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "UNCHECKED_EXPANSION", 4 * MIB)
        packed = compressed(codec, bytes(8 * MIB))
        sizes: list[int] = []
        with pytest.raises(ArchiveError, match=f"the {codec.name} stream expands to more than 20 times") as caught:
            sizes.extend(map(len, decompress(codec, [packed], 20)))
        assert 3 * MIB < sum(sizes) <= 4 * MIB
        assert "--max-ratio" in (caught.value.hint or "")
        assert joined(decompress(codec, [packed], 1_000_000)) == bytes(8 * MIB)
        assert joined(decompress(codec, [compressed(codec, bytes(4 * MIB))], 1)) == bytes(4 * MIB)

    def test_the_ratio_counts_only_input_read_so_far(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "UNCHECKED_EXPANSION", 0)
        noise = random.Random(4).randbytes(MIB)
        packed = compressed(GZIP, noise) + compressed(GZIP, bytes(MIB))
        assert joined(decompress(GZIP, in_one_buffer(packed, [limits.CHUNK_SIZE] * 4), 3)) == noise + bytes(MIB)
        with pytest.raises(ArchiveError):
            joined(decompress(GZIP, in_one_buffer(compressed(GZIP, bytes(MIB)) + packed, [2000]), 3))

    def test_uncompressed_data_has_no_ratio(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "UNCHECKED_EXPANSION", 0)
        assert joined(decompress(NONE, in_one_buffer(CONTENT, [100_000]), 1)) == CONTENT

    @pytest.mark.parametrize("size", [96, pytest.param(1024, marks=pytest.mark.nightly)])
    @codecs
    def test_a_gibibyte_of_zeros_takes_little_memory_and_more_is_refused(self, codec: Codec, size: int) -> None:
        assert limits.UNCHECKED_EXPANSION == 1024 * MIB
        passed = run_measured([sys.executable, "-c", BOMB, codec.name, f"{size}", f"{size}"])
        assert (passed.code, passed.out.split()) == (0, [b"%d" % (size * MIB)]), passed.err
        nothing = run_measured([sys.executable, "-c", BOMB, codec.name, "0", f"{size}"])
        assert passed.peak is not None
        assert nothing.peak is not None
        # Compressing and decompressing, at once.
        assert passed.peak - nothing.peak < 32 * MIB
        stopped = run_measured([sys.executable, "-c", BOMB, codec.name, f"{size + 1}", f"{size}"])
        assert "expands to more than 200 times" in stopped.err


#: Compresses that many MiB of zeros, decompresses them, and prints how many bytes came out.
BOMB: Final = """
import itertools, sys
import zstandard
from ocistream import limits
from ocistream.streams.compression import CODECS, decompress
codec, chunk = CODECS[sys.argv[1]], bytes(limits.MIB)
# A gibibyte takes seconds; a smaller limit shows the same.
limits.UNCHECKED_EXPANSION = int(sys.argv[3]) * limits.MIB
packed = codec.compress(itertools.repeat(chunk, int(sys.argv[2])), 1)
print(sum(len(piece) for piece in decompress(codec, packed, limits.MAX_RATIO)))
"""


class TestWithoutZstandard:
    """A zipapp cannot contain it: compiled modules cannot be imported from a zip."""

    @pytest.fixture(autouse=True)
    def gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "zstandard", None)

    def test_the_error_says_what_to_install(self) -> None:
        for made in (ZSTD.compress([b"plain"], 3), ZSTD.decompress([b"compressed"])):
            with pytest.raises(UnsupportedError, match="zstandard") as caught:
                joined(made)
            assert sys.executable in str(caught.value.hint)

    def test_everything_else_works(self) -> None:
        assert detect_codec(ZSTD.magic) is ZSTD
        assert joined(GZIP.decompress(GZIP.compress([CONTENT], 1))) == CONTENT


class TestIsal:
    """The faster gzip library is used if it is installed, and changes nothing else."""

    def test_it_is_used_if_it_is_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[int] = []

        def decompressobj(wbits: int) -> Any:
            asked.append(wbits)
            return zlib.decompressobj(wbits=wbits)

        monkeypatch.setitem(sys.modules, "isal", types.ModuleType("isal"))
        fake = types.ModuleType("isal.isal_zlib")
        fake.__dict__.update(decompressobj=decompressobj, error=zlib.error)
        monkeypatch.setitem(sys.modules, "isal.isal_zlib", fake)
        assert plain(GZIP, compressed(GZIP)) == CONTENT
        assert asked == [31]
        with pytest.raises(ArchiveError, match="gzip stream is malformed"):
            plain(GZIP, b"\x1f\x8b\x08" + bytes(100))

    @pytest.mark.usefixtures("no_isal")
    def test_it_is_optional(self) -> None:
        assert plain(GZIP, compressed(GZIP)) == CONTENT


class TestTable:
    @pytest.mark.parametrize(
        ("make", "expected"),
        [
            (lambda: compressed(GZIP, b"a"), GZIP),
            (lambda: compressed(ZSTD, b"a"), ZSTD),
            (lambda: b"\x1f\x8b", NONE),
            (lambda: b"\x1f\x8b\x09\0", NONE),
            (lambda: b"plain", NONE),
            (lambda: b"", NONE),
        ],
    )
    def test_a_codec_is_detected_from_the_first_bytes(self, make: Callable[[], bytes], expected: Codec) -> None:
        assert detect_codec(make()[:MAGIC_SIZE]) is expected

    def test_a_codec_is_found_by_its_name(self) -> None:
        assert [(name, codec.name) for name, codec in CODECS.items()] == [(n, n) for n in ("gzip", "zstd", "none")]


class TestWideWindows:
    """Streams that need much memory to decompress are decompressed one after the other."""

    def test_a_second_stream_waits_for_the_end_of_the_first(self) -> None:
        first, second = ZSTD.decompress([frame_asking_for(23)]), ZSTD.decompress([frame_asking_for(23)])
        assert bytes(next(first)) == b"x"
        got: list[bytes] = []
        other = threading.Thread(target=lambda: got.extend(map(bytes, second)), daemon=True)
        other.start()
        other.join(0.2)
        assert not got
        assert list(first) == []
        other.join(30)
        assert got == [b"x"]

    def test_a_second_stream_starts_when_the_first_is_closed(self) -> None:
        first, second = ZSTD.decompress([frame_asking_for(23)]), ZSTD.decompress([frame_asking_for(23)])
        next(first)
        first.close()  # type: ignore[attr-defined]
        assert joined(second) == b"x"

    def test_a_nested_stream_does_not_wait(self) -> None:
        outer = ZSTD.decompress([frame_asking_for(23)])
        next(outer)
        assert joined(ZSTD.decompress([frame_asking_for(24)])) == b"x"
        assert list(outer) == []

    def test_streams_with_usual_windows_do_not_wait(self) -> None:
        first = ZSTD.decompress([frame_asking_for(23)])
        next(first)
        got: list[bytes] = []
        usual = frame_asking_for(21)
        other = threading.Thread(target=lambda: got.extend(map(bytes, ZSTD.decompress([usual]))), daemon=True)
        other.start()
        other.join(30)
        assert got == [b"x"]
        assert list(first) == []


def test_zstd_that_begins_with_a_skippable_frame_is_detected() -> None:
    for number in range(16):
        content = struct.pack("<II", 0x184D2A50 + number, 4) + b"----" + zstandard.compress(CONTENT)
        assert detect_codec(content[:MAGIC_SIZE]) is ZSTD
        assert plain(ZSTD, content) == CONTENT


@pytest.mark.parametrize("size", [0, 1, 5_000, 70_000])
@pytest.mark.parametrize("filled", [0, 1, 5_000])
def test_members_of_any_size_at_any_offset_are_read(size: int, filled: int) -> None:
    parts = [random.Random(number).randbytes(size) for number in range(7)]
    packed = b"".join(gzip.compress(part) + bytes(filled) for part in parts)
    for step in (1_000, len(packed)):
        chunks = [packed[at : at + step] for at in range(0, len(packed), step)]
        assert b"".join(bytes(chunk) for chunk in GZIP.decompress(chunks)) == b"".join(parts)
