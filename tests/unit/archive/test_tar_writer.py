"""Writing a tar archive with entries of unknown size: rewritten headers in a file, a spool for a pipe."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from ocistream.archive.outputs import (
    FileOutput,
    Output,
    StreamOutput,
    open_file_output,
    open_special_file_output,
)
from ocistream.archive.tar_writer import TarWriter, build_single_block_header
from ocistream.errors import LocalDiskError, OutputClosedError, UsageError
from ocistream.oci.descriptor import Descriptor
from ocistream.streams.chunks import Chunk
from ocistream.transfer.interfaces import NewBlob
from tests.archives import files_in
from tests.images import digest_of

SIZES: Final = [0, 1, 511, 512, 513, 1_000_000]


class Broken(Exception):  # noqa: N818 - it stands for any exception
    """An exception that chunks raise."""


class Written:
    """An output, and a function that returns what was written to it."""

    def __init__(self, output: Output, read: Callable[[], bytes]) -> None:
        self.output = output
        self.read = read


@pytest.fixture(params=["file", "stream"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Written]:
    """Return each kind of output."""
    path = tmp_path / "out.tar"
    if request.param == "file":
        yield Written(open_file_output(path), path.read_bytes)
        return
    outlet, inlet = os.pipe()
    got = bytearray()

    def drain() -> None:
        while piece := os.read(outlet, 1 << 16):
            got.extend(piece)
        os.close(outlet)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    with io.FileIO(inlet, "wb") as file:

        def read() -> bytes:
            file.close()
            thread.join()
            return bytes(got)

        yield Written(StreamOutput(file, "there"), read)
    thread.join()


def unnamed(content: bytes, *, piece: int = 1000, fails: bool = False) -> NewBlob:
    """Return a blob whose descriptor is known only after it was read, in a buffer that is reused."""
    left: list[int] = []

    def chunks() -> Iterator[Chunk]:
        left[:] = [1]
        buffer = bytearray(piece)
        for start in range(0, len(content), piece):
            part = content[start : start + piece]
            buffer[: len(part)] = part
            yield memoryview(buffer)[: len(part)]
        if fails:
            raise Broken
        left.clear()

    def descriptor() -> Descriptor:
        assert not left, "requested too early"
        return Descriptor("x/y", digest_of(content), len(content))

    left.append(1)
    return NewBlob(chunks, descriptor)


def filled(writer: TarWriter, contents: Sequence[bytes]) -> None:
    writer.add_small("first", b"small")
    for number, content in enumerate(contents):
        blob = unnamed(content)
        found = writer.add_new(blob, lambda found, number=number: f"entry-{number}-{found.size}")  # type: ignore[misc]
        assert found == blob.descriptor
    last: list[Chunk] = [b"la", memoryview(b"st!")]
    writer.add("last", 5, last)


class TestEntries:
    def test_entries_of_any_size_are_written(self, written: Written) -> None:
        contents = [bytes([size % 251]) * size for size in SIZES]
        writer = TarWriter(written.output, 7)
        filled(writer, contents)
        writer.write_end()
        written.output.finish()
        archive = written.read()
        expected = {f"entry-{n}-{len(content)}": content for n, content in enumerate(contents)}
        assert files_in(archive) == {"first": b"small", **expected, "last": b"last!"}
        with tarfile.open(fileobj=io.BytesIO(archive)) as reader:
            assert {(m.mtime, m.mode, m.uid, m.gid, m.uname, m.type) for m in reader} == {(7, 0o644, 0, 0, "", b"0")}

    def test_an_unwanted_entry_leaves_nothing(self, written: Written) -> None:
        writer = TarWriter(written.output)
        writer.add_new(unnamed(b"wanted" * 1000), lambda _: "wanted")
        assert writer.add_new(unnamed(b"not" * 10_000), lambda _: None).size == 30_000
        writer.add_small("after", b"it")
        writer.write_end()
        written.output.finish()
        assert files_in(written.read()) == {"wanted": b"wanted" * 1000, "after": b"it"}

    def test_a_failed_entry_leaves_an_archive_without_an_end(self, written: Written, tmp_path: Path) -> None:
        writer = TarWriter(written.output)
        writer.add_small("first", b"small")
        with pytest.raises(Broken):
            writer.add_new(unnamed(bytes(5000), fails=True), lambda _: "entry")
        written.output.close()
        if isinstance(written.output, FileOutput):
            assert list(tmp_path.iterdir()) == []
        else:
            # Not even the header of the failed entry.
            assert len(written.read()) == 1024

    def test_a_file_and_a_stream_get_the_same_bytes(self, tmp_path: Path) -> None:
        contents = [b"x" * size for size in SIZES]
        output = open_file_output(tmp_path / "a")
        writer = TarWriter(output, 3)
        filled(writer, contents)
        writer.write_end()
        output.finish()
        with io.FileIO(tmp_path / "b", "wb") as file:
            writer = TarWriter(StreamOutput(file, "b"), 3)
            filled(writer, contents)
            writer.write_end()
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_a_header_has_one_block_whatever_the_size(self) -> None:
        for size in (0, 8**11 - 1, 8**11, 1 << 50):
            block = build_single_block_header("blobs/sha256/" + "0" * 64, size, 5)
            assert len(block) == 512
            assert tarfile.TarInfo.frombuf(block, "utf-8", "strict").size == size


class TestSpool:
    @pytest.fixture
    def spools(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """Return the list of temporary files that are created."""
        made: list[Any] = []
        real = tempfile.TemporaryFile

        def noted(**options: Any) -> Any:
            made.append(real(**options))
            return made[-1]

        monkeypatch.setattr("tempfile.TemporaryFile", noted)
        return made

    def test_only_a_stream_needs_a_spool_for_each_entry(self, written: Written, spools: list[Any]) -> None:
        writer = TarWriter(written.output)
        for _ in range(3):
            writer.add_new(unnamed(b"content"), lambda _: None)
            assert all(spool.closed for spool in spools)
        assert len(spools) == (0 if isinstance(written.output, FileOutput) else 3)

    def test_the_spool_is_closed_after_a_failure(self, tmp_path: Path, spools: list[Any]) -> None:
        with io.FileIO(tmp_path / "out", "wb") as file, pytest.raises(Broken):
            TarWriter(StreamOutput(file, "out")).add_new(unnamed(bytes(9000), fails=True), lambda _: "entry")
        assert [spool.closed for spool in spools] == [True]

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
    def test_a_full_or_read_only_disk_is_reported_with_the_spools_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        class Full(io.BytesIO):
            def write(self, _: Any, /) -> int:
                raise OSError(number, os.strerror(number))

        monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
        monkeypatch.setenv("TMPDIR", "/there")
        with io.FileIO(tmp_path / "out", "wb") as file, pytest.raises(LocalDiskError) as caught:
            TarWriter(StreamOutput(file, "out")).add_new(unnamed(bytes(9000)), lambda _: "entry")
        assert f"temporary file: {os.strerror(number)}" in caught.value.message
        assert "free some space in /there, " in (caught.value.hint or "")
        assert "TMPDIR" in (caught.value.hint or "")

    def test_short_writes_to_the_spool_are_completed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Short(io.FileIO):
            def write(self, chunk: Any, /) -> int:
                return super().write(chunk[:300]) or 0

        monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Short(tmp_path / "spool", "w+b"))
        with io.FileIO(tmp_path / "out", "wb") as file:
            writer = TarWriter(StreamOutput(file, "out"))
            writer.add_new(unnamed(b"0123456789" * 900), lambda _: "entry")
            writer.write_end()
        assert files_in((tmp_path / "out").read_bytes()) == {"entry": b"0123456789" * 900}

    def test_a_missing_temporary_directory_is_a_disk_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def nowhere(**_: object) -> Any:
            raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

        monkeypatch.setattr("tempfile.TemporaryFile", nowhere)
        with io.FileIO(tmp_path / "out", "wb") as file, pytest.raises(LocalDiskError) as caught:
            TarWriter(StreamOutput(file, "out")).add_new(unnamed(bytes(9000)), lambda _: "entry")
        assert caught.value.exit_code == 9
        assert "TMPDIR" in (caught.value.hint or "")

    def test_a_closed_pipe_is_not_an_error_of_the_spool(self) -> None:
        outlet, inlet = os.pipe()
        os.close(outlet)
        with io.FileIO(inlet, "wb") as file, pytest.raises(OutputClosedError, match="cannot write there"):
            TarWriter(StreamOutput(file, "there")).add_new(unnamed(bytes(9000)), lambda _: "entry")


class TestOutputs:
    @pytest.mark.parametrize("name", [".z.tar.partial", ".z.tar.0123456789ab.partial"])
    def test_reserved_names_are_refused(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "link").symlink_to(name)
        for path in (tmp_path / name, tmp_path / "link"):
            with pytest.raises(UsageError, match="this name is reserved for unfinished files"):
                open_file_output(path)

    def test_only_a_file_can_be_rewritten(self, tmp_path: Path) -> None:
        output = open_file_output(tmp_path / "out")
        assert isinstance(output, FileOutput)
        output.write(b"0123456789")
        output.rewrite(2, b"ab")
        assert output.position() == 10
        output.truncate(6)
        output.write(memoryview(b"cd"))
        assert output.position() == 8
        output.finish()
        assert (tmp_path / "out").read_bytes() == b"01ab45cd"
        with io.FileIO(tmp_path / "other", "wb") as file:
            assert not isinstance(StreamOutput(file, "it"), FileOutput)
        os.mkfifo(tmp_path / "fifo")
        reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        with contextlib.closing(open_special_file_output(tmp_path / "fifo")) as fifo:
            assert not isinstance(fifo, FileOutput)
        os.close(reader)

    def test_short_writes_to_a_file_are_completed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.pwrite
        monkeypatch.setattr("os.pwrite", lambda fd, content, position: real(fd, content[:3], position))
        output = open_file_output(tmp_path / "out")
        assert isinstance(output, FileOutput)
        output.write(bytes(20))
        output.rewrite(5, b"0123456789")
        output.finish()
        assert (tmp_path / "out").read_bytes() == bytes(5) + b"0123456789" + bytes(5)
