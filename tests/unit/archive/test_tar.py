"""Reading and writing the tar format: archives of other tools are read, and malformed or ambiguous ones are refused."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tracemalloc
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocistream import limits
from ocistream.archive.tar_reader import TarEntry, TarReader, parse_header
from ocistream.archive.tar_writer import build_header, padding
from ocistream.errors import ArchiveError
from tests.archives import BLOCK, END, Kind, files_in, member, padded, pax_header, tar_of, with_checksum
from tests.hostile.corpus import CORPUS
from tests.peers import need

GIB = 1 << 30
LONG = "blobs/sha512/" + "a" * 128
#: Headers that give the next entry a name and a link target.
LONG_NAME = member("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=5) + padded(b"long\0")
LONG_LINK = member("././@LongLink", tarfile.GNUTYPE_LONGLINK, size=5) + padded(b"long\0")


def gnu_tar(*arguments: str | Path) -> bytes:
    need("tar")
    return subprocess.run(["tar", *arguments], check=True, capture_output=True).stdout


def entries_of(archive: bytes) -> list[TarEntry]:
    return list(TarReader(io.BytesIO(archive)))


def contents_of(archive: bytes) -> dict[str, bytes]:
    reader = TarReader(io.BytesIO(archive))
    return {entry.name: b"".join(bytes(chunk) for chunk in reader.read_chunks()) for entry in reader}


def changed(block: bytes, at: int, value: bytes) -> bytes:
    """Return a header with one field replaced and the checksum corrected."""
    return with_checksum(block[:at] + value + block[at + len(value) :])


def file_header(name: str = "a", size: int = 0) -> bytes:
    return member(name, tarfile.REGTYPE, size=size)


class TestReading:
    @pytest.mark.parametrize("dialect", ["ustar", "gnu", "oldgnu", "pax", "v7"])
    def test_archives_of_gnu_tar_are_read(self, tmp_path: Path, dialect: str) -> None:
        (tmp_path / "blobs").mkdir()
        (tmp_path / "blobs" / "a").write_bytes(b"x" * 1000)
        (tmp_path / "index.json").write_bytes(b"{}")
        (tmp_path / "link").symlink_to("index.json")
        archive = gnu_tar(f"--format={dialect}", "-C", tmp_path, "-c", ".")
        entries = {entry.name.rstrip("/"): entry.kind for entry in entries_of(archive)}
        assert entries == {
            ".": "directory",
            "./blobs": "directory",
            "./blobs/a": "file",
            "./index.json": "file",
            "./link": "link",
        }
        assert contents_of(archive)["./blobs/a"] == b"x" * 1000

    @pytest.mark.parametrize("dialect", ["gnu", "pax"])
    def test_long_names_of_gnu_tar_are_read(self, tmp_path: Path, dialect: str) -> None:
        path = tmp_path / LONG
        path.parent.mkdir(parents=True)
        path.write_bytes(b"long")
        archive = gnu_tar(f"--format={dialect}", "-C", tmp_path, "-c", LONG)
        assert contents_of(archive) == {LONG: b"long"}

    def test_entries_have_the_offset_of_their_content(self) -> None:
        archive = tar_of([("a", b"12345"), (LONG, b"x" * 600), ("c", b"6")])
        for entry in entries_of(archive):
            expected = {"a": b"12345", LONG: b"x" * 600, "c": b"6"}[entry.name]
            assert archive[entry.offset : entry.offset + entry.size] == expected

    def test_a_field_of_nuls_and_a_space_is_zero(self) -> None:
        assert entries_of(changed(file_header(), 124, b"\0" * 11 + b" ") + END)[0].size == 0

    def test_unread_content_is_skipped(self) -> None:
        archive = tar_of([("a", b"x" * 3000), ("b", b"y" * 3000), ("c", b"z")])
        reader = TarReader(io.BytesIO(archive))
        seen = []
        for entry in reader:
            seen.append(entry.name)
            if entry.name == "b":
                next(reader.read_chunks())
        assert seen == ["a", "b", "c"]

    @pytest.mark.parametrize("kind", [tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE])
    def test_a_header_that_only_some_tools_apply_may_have_a_comment(self, kind: bytes) -> None:
        comment = pax_header(b"52 comment=0123456789012345678901234567890123456789\n", kind=kind)
        assert [entry.name for entry in entries_of(comment + file_header() + END)] == ["a"]

    def test_a_pax_header_overrides_the_entry(self) -> None:
        records = b"12 path=bcd\n15 linkpath=ef\n9 size=3\n"
        archive = pax_header(records) + file_header("x", 3) + padded(b"123") + file_header("y") + END
        first, second = entries_of(archive)
        assert (first.name, first.target, first.size) == ("bcd", "ef", 3)
        assert second.name == "y"

    def test_names_that_are_not_utf_8_stay_distinct(self) -> None:
        names = [
            entry.name for entry in entries_of(tar_of([("\udcff", b""), ("\udcfe", b"")], kind=tarfile.GNU_FORMAT))
        ]
        assert len(set(names)) == 2

    @given(st.lists(st.tuples(st.text("abc/.ä", min_size=1, max_size=200), st.binary(max_size=1500)), max_size=5))
    def test_archives_of_tarfile_are_read(self, items: list[tuple[str, bytes]]) -> None:
        named = {name.rstrip("/"): content for name, content in items if name.rstrip("/")}
        assert contents_of(tar_of(named.items())) == named


class TestReadingSmallEntries:
    def test_an_entry_that_is_too_large_is_refused_before_it_is_read(self) -> None:
        reader = TarReader(io.BytesIO(file_header("a\x1bb", 6)))
        with pytest.raises(ArchiveError, match=r"'a\?b' in the archive is larger than 5 bytes"):
            reader.read(next(iter(reader)), 5)


class TestRefusing:
    def refused(self, archive: bytes, match: str) -> None:
        with pytest.raises(ArchiveError, match=match) as caught:
            contents_of(archive)
        assert caught.value.exit_code == 6
        assert caught.value.message.isprintable()

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("empty", "is empty"),
            ("no-tar", "no tar header at byte 0"),
            ("checksum-wrong", "no tar header at byte 1024"),
            ("cut-in-header", "truncated"),
            ("cut-before-end", "without an end-of-archive mark"),
            ("zeros-within", "has data after a block of zeros"),
            ("entries-60,000", "more than .* entries"),
            ("size-negative", "negative size"),
            ("size-no-number", "no tar header"),
            ("size-tebibyte", "truncated"),
            ("pax-size-float", "malformed size"),
            ("pax-size-digits", "malformed size"),
            ("pax-size-20-digits", "malformed size"),
            ("differ-size-nul", "no tar header"),
            ("differ-size-pax", "'innocent' in the archive has two sizes, 0 and 1024"),
            ("differ-size-pax-0", "two sizes, 1024 and 0"),
            ("name-trailing-slash", "'index.json/' in the archive is a file to"),
            ("differ-prefix-v7", "a name prefix that only some tools read"),
            ("differ-prefix-gnu", "a name prefix that only some tools read"),
            ("differ-prefix-star", "a name prefix that only some tools read"),
            ("pax-global-path", "names an entry for some tools only"),
            ("pax-solaris-size", "names an entry for some tools only"),
            ("differ-pax-long", "give the path of one entry twice"),
            ("differ-long-twice", "give the path of one entry twice"),
            ("pax-path-twice", "give the path of one entry twice"),
            ("name-nul", "the path in a pax header in the archive has a NUL in it"),
            ("name-nul-of-link", "the linkpath in a pax header in the archive has a NUL in it"),
            ("pax-in-rows", "more than 16 headers"),
            ("sparse-old", "is a sparse file"),
            ("sparse-1.0", "is a sparse file"),
        ],
    )
    def test_the_error_names_the_defect_of_a_hostile_archive(self, name: str, said: str) -> None:
        self.refused(CORPUS[name].make(), said)

    @pytest.mark.parametrize(
        "kind",
        [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, b"V"],
    )
    def test_a_size_of_an_entry_that_is_not_a_file_is_refused(self, kind: bytes) -> None:
        archive = changed(member("a", kind), 124, b"00000000001") + padded(b"x") + END
        self.refused(archive, "'a' in the archive has a size, though it is not a file")

    @pytest.mark.parametrize(
        ("kind", "limit"),
        [
            (tarfile.XHDTYPE, limits.MAX_PAX_HEADER),
            (tarfile.XGLTYPE, limits.MAX_PAX_HEADER),
            (tarfile.GNUTYPE_LONGNAME, limits.MAX_LONG_NAME),
            (tarfile.GNUTYPE_LONGLINK, limits.MAX_LONG_NAME),
        ],
    )
    def test_a_huge_header_is_refused_before_it_is_read(self, kind: bytes, limit: int) -> None:
        self.refused(member("x", kind, size=limit + 1), f"in the archive is larger than {limit} bytes")

    def test_only_the_first_bytes_of_an_archive_tell_a_compression(self) -> None:
        self.refused(tar_of([("a", b"1")], end=False) + b"\x1f\x8b\x08" + bytes(BLOCK), "no tar header")

    def test_the_error_says_where_the_archive_ends(self) -> None:
        archive = tar_of([("a", b"x" * 1000)])
        self.refused(archive[:700], "ends at byte 700, in the middle of 'a'")
        with pytest.raises(ArchiveError, match="ends at byte 700, in the middle of an entry"):
            entries_of(archive[:700])
        self.refused(pax_header(b"9 size=3\n")[:515], "ends at byte 515, in the middle of a header")

    @pytest.mark.parametrize(
        "records",
        [
            b"x",
            b"9 size=3",
            b"9 size=33\n",
            b"8 size=3\n",
            b"10 size=3 \n9",
            b"99 size=3\n",
            b"-9 size=3\n",
            b"size=3\n",
            b" 9 size=3\n",
            b"7 size\n",
            b"0 \n",
            b"4 a\n",
            b"9 size=3\n\0",
            b"9" * 30 + b" a=b\n",
            b"\xff\xfe",
        ],
    )
    def test_a_malformed_pax_header_is_refused(self, records: bytes) -> None:
        self.refused(
            pax_header(records) + file_header() + padded(b"123") + END, "pax header in the archive is malformed"
        )

    def test_a_pax_header_and_a_long_name_may_set_different_fields(self) -> None:
        (entry,) = entries_of(pax_header(b"14 linkpath=z\n") + LONG_NAME + file_header("x") + END)
        assert (entry.name, entry.target) == ("long", "z")

    @pytest.mark.parametrize(
        "headers",
        [
            pax_header(b"8 path=\n"),
            pax_header(b"13 linkpath=\n"),
            member("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=1) + padded(b"\0"),
            member("././@LongLink", tarfile.GNUTYPE_LONGLINK, size=0),
        ],
    )
    def test_an_empty_name_in_a_separate_header_is_refused(self, headers: bytes) -> None:
        self.refused(headers + file_header("x") + END, "an empty (path|linkpath)")

    @pytest.mark.parametrize("key", ["path", "linkpath"])
    def test_a_name_in_a_pax_header_has_the_limit_of_a_long_name(self, key: str) -> None:
        at_most = len(f"4110 {key}=\n") + limits.MAX_LONG_NAME
        assert len(entries_of(pax_header(_record(key, at_most)) + file_header("x") + END)) == 1
        self.refused(pax_header(_record(key, at_most + 1)) + file_header("x") + END, f"the {key} in .* is larger than")

    @pytest.mark.parametrize("in_header", [0, 8 * GIB - 1, 8 * GIB])
    def test_a_size_beyond_octal_digits_may_be_only_in_a_pax_header(self, in_header: int) -> None:
        block = changed(file_header(), 124, b"\x80" + in_header.to_bytes(11, "big"))
        entry = next(iter(TarReader(io.BytesIO(pax_header(b"19 size=8589934592\n") + block))))
        assert entry.size == 8 * GIB
        self.refused(pax_header(b"19 size=8589934591\n") + file_header() + END, "two sizes")

    def test_a_name_prefix_is_read_with_the_posix_magic(self) -> None:
        prefixed = changed(file_header("a"), 345, b"d" * 131)
        starred = changed(prefixed, 508, b"tar\0")
        for block in (prefixed, changed(prefixed, 263, b"xx"), starred, changed(prefixed, 345, b"d" * 155)):
            assert entries_of(block + END)[0].name.removeprefix("d" * 131).lstrip("d") == "/a"
        self.refused(changed(starred, 345, b"d" * 132) + END, "a name prefix that only some tools read")

    @pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE])
    def test_the_records_of_a_pax_header_are_limited(self, kind: bytes) -> None:
        records = b"5 a=\n" * limits.MAX_PAX_RECORDS
        assert len(entries_of(pax_header(records, kind=kind) + file_header() + END)) == 1
        archive = pax_header(records + b"5 b=\n", kind=kind) + file_header() + END
        self.refused(archive, "a pax header in the archive has more than 1000 records")

    def test_the_headers_and_records_of_an_archive_are_limited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "MAX_TOTAL_PAX_RECORDS", 9)
        three = pax_header(b"5 a=\n5 b=\n") + file_header("x")
        empty = pax_header(b"", kind=tarfile.XGLTYPE) + file_header("x")
        long = member("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=2) + padded(b"a\0") + file_header("x")
        assert len(entries_of(three * 3 + END)) == 3
        for one in (three, empty, long):
            self.refused(three * 3 + one + END, "more than 9 headers and records of pax headers")

    def test_a_long_link_belongs_to_the_next_entry(self) -> None:
        archive = tarfile.TarInfo("a")
        archive.type, archive.linkname = tarfile.SYMTYPE, "b" * 300
        (entry,) = entries_of(archive.tobuf(tarfile.GNU_FORMAT) + END)
        assert entry.target == "b" * 300

    def test_a_sparse_file_of_gnu_tar_is_refused(self, tmp_path: Path) -> None:
        with (tmp_path / "hole").open("wb") as file:
            file.truncate(10 << 20)
        for dialect in ("gnu", "pax"):
            archive = gnu_tar("--sparse", f"--format={dialect}", "-C", tmp_path, "-c", "hole")
            self.refused(archive, "sparse file")

    def test_only_known_records_of_a_pax_header_are_stored(self) -> None:
        records = b"".join(b"1000 %03d=%0990d\n" % (number, number) for number in range(limits.MAX_PAX_RECORDS - 1))
        archive = pax_header(records + b"13 path=name\n") + file_header() + END
        tracemalloc.start()
        try:
            assert [entry.name for entry in entries_of(archive)] == ["name"]
            assert tracemalloc.get_traced_memory()[1] < 5 * len(records)
        finally:
            tracemalloc.stop()

    @given(
        st.text("abé/.", min_size=1, max_size=150),
        st.sampled_from([b"0", b"\0", b"1", b"2", b"5", b"7", b"L", b"x", b"Z"]),
        st.sampled_from([0, 1, 511, 1 << 33, 1 << 62]),
        st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
        st.binary(max_size=8),
    )
    def test_a_header_is_read_as_tarfile_reads_it(
        self, name: str, kind: bytes, size: int, dialect: Kind, name_bytes: bytes
    ) -> None:
        theirs = tarfile.TarInfo(name)
        theirs.type, theirs.size, theirs.linkname = kind, size, name[:90]
        try:
            block = theirs.tobuf(dialect, "utf-8", "surrogateescape")[-BLOCK:]
        except ValueError:
            return
        block = changed(block, 0, name_bytes)
        theirs = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        ours = parse_header(block)
        assert (ours.name, ours.type, ours.size, ours.linkname) == (
            theirs.name, theirs.type, theirs.size, theirs.linkname,
        )  # fmt: skip


class TestWriting:
    def test_a_header_is_read_by_gnu_tar(self, tmp_path: Path) -> None:
        archive = build_header("blobs/a", 5, 1_700_000_000) + b"12345" + padding(5) + build_header(LONG, 0) + END
        (tmp_path / "a.tar").write_bytes(archive)
        first, second = gnu_tar("--utc", "-tvf", tmp_path / "a.tar").decode().splitlines()
        assert first.split() == ["-rw-r--r--", "0/0", "5", "2023-11-14", "22:13", "blobs/a"]
        assert second.split()[-1] == LONG
        assert files_in(archive) == {"blobs/a": b"12345", LONG: b""}

    @pytest.mark.parametrize("size", [8 * GIB - 1, 8 * GIB, 8 * GIB + 1, 1 << 40, (1 << 63) - 1])
    def test_tarfile_reads_sizes_beyond_8_gib(self, size: int) -> None:
        raw = build_header("a", size)
        assert len(raw) % BLOCK == 0
        with tarfile.open(fileobj=io.BytesIO(raw + END)) as reader:
            info = reader.next()
        assert info is not None
        assert (info.name, info.size) == ("a", size)
        entry = next(iter(TarReader(io.BytesIO(raw))))
        assert (entry.name, entry.size, entry.offset) == ("a", size, len(raw))

    def test_gnu_tar_reads_a_size_beyond_8_gib(self, tmp_path: Path) -> None:
        size = 8 * GIB + 5
        path = tmp_path / "a.tar"
        with path.open("wb") as file:
            file.write(build_header("big", size))
            # A hole: the file takes no space on disk.
            file.seek(size + len(padding(size)), io.SEEK_CUR)
            file.write(build_header("after", 0) + END)
        lines = gnu_tar("-tvf", path).decode().splitlines()
        assert [(line.split()[2], line.split()[-1]) for line in lines] == [(str(size), "big"), ("0", "after")]

    @pytest.mark.parametrize("size", [0, 1, 511, 512, 513])
    def test_padding_fills_the_last_block(self, size: int) -> None:
        assert (size + len(padding(size))) % BLOCK == 0
        assert len(padding(size)) < BLOCK
        assert not any(padding(size))


def _record(key: str, size: int) -> bytes:
    """Return a line of a pax header that is `size` bytes long."""
    start = f"{size} {key}=".encode()
    return start + b"x" * (size - len(start) - 1) + b"\n"


def test_short_reads_do_not_end_the_archive() -> None:
    # A BufferedReader reads from a pipe again until it has the requested bytes or the pipe ends.
    archive = tar_of([("a", b"x" * 5000), ("b", b"y")])

    class Pipe(io.RawIOBase):
        position = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            part = archive[self.position : self.position + min(3, len(buffer))]
            buffer[: len(part)] = part
            self.position += len(part)
            return len(part)

    reader = TarReader(io.BufferedReader(Pipe(), 64))
    found = {entry.name: b"".join(bytes(chunk) for chunk in reader.read_chunks()) for entry in reader}
    assert found == {"a": b"x" * 5000, "b": b"y"}


class TestAfterTheEnd:
    @pytest.mark.parametrize(("first", "said"), [(b"\0", "more than 5000 bytes of zeros"), (b"x", "after its end")])
    def test_trailing_data_is_read_only_up_to_a_limit(
        self, first: bytes, said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_TRAILING_ZEROS", 5000)
        monkeypatch.setattr(limits, "CHUNK_SIZE", 1000)
        for much in (5000, 5001, 50_000):
            file = io.BytesIO(tar_of([("a", b"x")]) + first + bytes(much - 1))
            reader = TarReader(file, "x.tar")
            list(reader)
            with pytest.raises(ArchiveError, match=said) if much > 5000 or first == b"x" else nullcontext():
                reader.drain()
            assert len(file.read()) == max(0, much - 6000)
