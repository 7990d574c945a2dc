"""A transfer that resumes an earlier one has the same result, and does not read valid bytes again."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from ocistream import limits
from ocistream.archive.destination import ArchiveDestination
from ocistream.archive.outputs import StreamOutput, TailOutput, open_file_output
from ocistream.errors import (
    ArchiveError,
    CancelledError,
    IntegrityError,
    LocalDiskError,
    NetworkError,
    OcistreamError,
)
from ocistream.layout.destination import LayoutDestination
from ocistream.layout.source import LayoutSource
from ocistream.oci.descriptor import Descriptor, compute_digest
from ocistream.oci.graph import Graph
from ocistream.streams.chunks import Chunk
from ocistream.transfer.copy import Copy
from ocistream.transfer.interfaces import (
    Access,
    Blob,
    CompleteSource,
    Destination,
    EarlyBlobs,
    NullObserver,
    VerifiedBlob,
)
from ocistream.transfer.recompress import parse_recompression
from ocistream.transfer.report import Report
from ocistream.transfer.verified_blobs import BlobProgress, use_verified
from tests.archives import blob_name
from tests.images import OCI_LAYER, Layout, tar_layer
from tests.observers import Watch

SIZES = [70_000, 40_000, 300_000]


@pytest.fixture(autouse=True)
def little_is_worth_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept partial files smaller than a megabyte; a config is still smaller than this."""
    monkeypatch.setattr(limits, "MIN_PARTIAL_SIZE", 2000)


class Reading(CompleteSource):
    """A layout's images; `read` has the digest, offset and number of bytes of each reading of a blob.

    `fail(digest, position)` is called before each piece of a thousand bytes, and may raise.
    """

    concurrent = True

    def __init__(self, path: Path, fail: Callable[[str, int], None] = lambda *_: None, *, once: bool = False) -> None:
        self._inner = LayoutSource(path)
        self._fail = fail
        self._once = once
        self.read: list[list[object]] = []

    def resolve(self, early: EarlyBlobs) -> Graph:
        return self._inner.resolve(early)

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        for blob in self._inner.blobs(wanted):
            chunks = partial(self._chunks, blob)
            yield dataclasses.replace(blob, open=chunks, access=Access.ONCE if self._once else Access.REPEATABLE)

    def _chunks(self, blob: Blob, offset: int = 0) -> Iterator[Chunk]:
        digest = blob.descriptor.digest
        content = b"".join(map(bytes, blob.open()))
        noted: list[object] = [digest, offset, 0]
        self.read.append(noted)
        for position in range(offset, len(content), 1000):
            self._fail(digest, position)
            piece = content[position : position + 1000]
            noted[2] = position + len(piece) - offset
            yield piece

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def digests(layout: Layout) -> list[str]:
    """Return the digests of the layers of an image called `v1`."""
    image = layout.image(SIZES, name="v1")
    return [layer["digest"] for layer in layout.read(image["digest"])["layers"]]


@pytest.fixture
def whole(layout: Layout, digests: list[str], tmp_path: Path) -> bytes:
    """Return the archive of an uninterrupted run."""
    del digests
    Copy(Reading(layout.path), ArchiveDestination(open_file_output(tmp_path / "undisturbed.tar"))).run()
    return (tmp_path / "undisturbed.tar").read_bytes()


def failing_in(digest: str, position: int, error: Exception | None = None) -> Callable[[str, int], None]:
    """Return a callback that fails once, in the middle of a blob."""
    left = [error or NetworkError("it broke off")]

    def fail(present: str, at: int) -> None:
        if left and present == digest and at >= position:
            raise left.pop()

    return fail


def run(source: Reading, sink: Destination, watch: Watch | None = None) -> Report:
    try:
        return Copy(source, sink, watch or NullObserver(), jobs=2).run()
    finally:
        sink.close()


def fails(source: Reading, sink: Destination, error: type[OcistreamError] = NetworkError) -> None:
    with pytest.raises(error):
        run(source, sink)


def places_in(archive: bytes) -> dict[str, tuple[int, int]]:
    """Return the offset and size of the content of each entry."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {entry.name: (entry.offset_data, entry.size) for entry in tar}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestArchive:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Return an empty folder."""
        folder = tmp_path / "folder"
        folder.mkdir()
        return folder

    def archive(self, folder: Path) -> ArchiveDestination:
        return ArchiveDestination(open_file_output(folder / "x.tar"))

    def test_an_archive_truncated_anywhere_is_completed_without_reading_twice(
        self, layout: Layout, digests: list[str], whole: bytes, folder: Path
    ) -> None:
        places = places_in(whole)
        starts = [offset for offset, _ in places.values()]
        around = {at + by for at in (0, *starts, len(whole)) for by in (-513, -512, -1, 0, 1)}
        ends = {offset + size + by for offset, size in places.values() for by in (-1, 0, 1)}
        for cut in sorted(at for at in around | ends | {len(whole) // 2} if 0 <= at <= len(whole)):
            (folder / ".x.tar.partial").write_bytes(whole[:cut])
            source, watch = Reading(layout.path), Watch()
            report = run(source, self.archive(folder), watch)
            assert (folder / "x.tar").read_bytes() == whole, cut
            assert names_in(folder) == ["x.tar"], cut
            expected = []
            for blob in report.graph.blobs:
                offset, size = places[blob_name(blob.digest)]
                held = min(max(0, cut - offset), size)
                assert next(m.resumed_size for m in report.blobs if m.descriptor is blob) == held
                expected += [[blob.digest, held, size - held]] if held < size else []
            assert source.read == expected, cut
            assert watch.moved == watch.total, cut
        del digests

    @pytest.mark.parametrize(
        "left",
        [
            b"x" * 5000,
            bytes(1_000_000),
            b"",
            pytest.param(None, id="longer than the archive"),
        ],
    )
    def test_other_data_in_the_partial_file_is_overwritten(
        self, layout: Layout, whole: bytes, folder: Path, left: bytes | None
    ) -> None:
        (folder / ".x.tar.partial").write_bytes(whole + b"and more" if left is None else left)
        run(Reading(layout.path), self.archive(folder))
        assert (folder / "x.tar").read_bytes() == whole

    @pytest.mark.parametrize("which", [0, 1, 2])
    @pytest.mark.parametrize("at", [0, 20_000])
    def test_a_blob_with_a_wrong_byte_and_later_blobs_are_read_again(
        self, layout: Layout, digests: list[str], whole: bytes, folder: Path, which: int, at: int
    ) -> None:
        held = bytearray(whole[:-100_000])
        held[places_in(whole)[blob_name(digests[which])][0] + at] ^= 1
        (folder / ".x.tar.partial").write_bytes(held)
        source = Reading(layout.path)
        run(source, self.archive(folder))
        assert (folder / "x.tar").read_bytes() == whole
        anew = [[digest, 0, size] for digest, size in zip(digests, SIZES, strict=True)][which:]
        assert [read for read in source.read if not read[1]] == anew

    def test_a_blob_with_a_wrong_partial_is_read_again_in_the_same_run(
        self, layout: Layout, digests: list[str], whole: bytes, folder: Path
    ) -> None:
        end = sum(places_in(whole)[blob_name(digests[0])])
        held = bytearray(whole[: end - 1000])
        held[-1] ^= 1
        (folder / ".x.tar.partial").write_bytes(held)
        source = Reading(layout.path)
        run(source, self.archive(folder))
        assert (folder / "x.tar").read_bytes() == whole
        assert [read[1] for read in source.read if read[0] == digests[0]] == [SIZES[0] - 1000, 0]

    def test_input_from_a_pipe_is_compared_with_the_partial_file(
        self, layout: Layout, digests: list[str], whole: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / ".x.tar.partial").write_bytes(whole[:-5000])
        written: list[int] = []
        real = io.FileIO.write

        class Noted(io.FileIO):
            def write(self, data: bytes) -> int:  # type: ignore[override]
                written.append(len(data))
                return real(self, data)

        monkeypatch.setattr("ocistream.streams.partial_files.FileIO", Noted)
        source = Reading(layout.path, once=True)
        run(source, self.archive(folder))
        assert (folder / "x.tar").read_bytes() == whole
        assert [read[1] for read in source.read if read[0] in digests] == [0, 0, 0]
        assert sum(written) == 5000

    def test_a_read_error_in_the_middle_of_a_blob_keeps_the_partial_file(
        self, layout: Layout, digests: list[str], whole: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / ".x.tar.partial").write_bytes(whole[:-1])
        begin = places_in(whole)[blob_name(digests[2])][0]
        real = os.preadv

        def broken(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
            if offset >= begin:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(descriptor, buffers, offset)

        monkeypatch.setattr("os.preadv", broken)
        fails(Reading(layout.path), self.archive(folder), LocalDiskError)
        assert (folder / ".x.tar.partial").read_bytes() == whole[:-1]


class TestLayout:
    def parts(self, path: Path) -> list[str]:
        return sorted(entry.name for entry in path.rglob("*.partial"))

    @pytest.mark.parametrize("size", [5000, SIZES[1], SIZES[1] + 5000])
    def test_a_wrong_partial_file_is_deleted_and_the_blob_read_again(
        self, layout: Layout, digests: list[str], tmp_path: Path, size: int
    ) -> None:
        folder = tmp_path / "out" / "blobs" / "sha256"
        folder.mkdir(parents=True)
        (folder / f".{digests[1][7:]}.partial").write_bytes(bytes(size))
        source = Reading(layout.path)
        run(source, LayoutDestination(tmp_path / "out"))
        assert [digests[1], 0, SIZES[1]] in source.read
        assert (folder / digests[1][7:]).read_bytes() == layout.file(digests[1]).read_bytes()
        assert self.parts(tmp_path) == []

    def test_a_partial_file_that_is_too_long_is_truncated(
        self, layout: Layout, digests: list[str], tmp_path: Path
    ) -> None:
        folder = tmp_path / "out" / "blobs" / "sha256"
        folder.mkdir(parents=True)
        (folder / f".{digests[1][7:]}.partial").write_bytes(layout.file(digests[1]).read_bytes() + b"more")
        source = Reading(layout.path)
        run(source, LayoutDestination(tmp_path / "out"))
        assert digests[1] not in {read[0] for read in source.read}
        assert (folder / digests[1][7:]).read_bytes() == layout.file(digests[1]).read_bytes()

    def test_only_the_partial_file_of_the_wrong_blob_is_deleted(
        self, layout: Layout, digests: list[str], tmp_path: Path
    ) -> None:
        folder = tmp_path / "out" / "blobs" / "sha256"
        folder.mkdir(parents=True)
        parts = [f".{digest[7:]}.partial" for digest in digests[:2]]
        for part, digest in zip(parts, digests, strict=False):
            (folder / part).write_bytes(layout.file(digest).read_bytes()[:7000])

        def wrong(digest: str, position: int) -> None:
            if digest == digests[0] and position >= 9000:
                raise IntegrityError(digest)

        with pytest.raises(IntegrityError):
            Copy(Reading(layout.path, wrong), LayoutDestination(tmp_path / "out"), jobs=1).run()
        assert self.parts(tmp_path) == parts[1:]

    def test_temporary_files_are_deleted_at_once_and_old_partials_after_success(
        self, layout: Layout, digests: list[str], tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        folder = out / "blobs" / "sha256"
        folder.mkdir(parents=True)
        old, new, there = (f".{digit * 64}.partial" for digit in "abc")
        others = ["note.partial", ".some-upload.upload.partial"]
        strays = [f".{'d' * 64}.0123456789ab.partial", ".unnamed.0123456789ab.partial"]
        long_ago = time.time() - limits.MAX_PARTIAL_AGE - 60
        for name in (old, new, there, "c" * 64, *others, *strays):
            (folder / name).write_bytes(b"left")
            if name in (old, *others):
                os.utime(folder / name, (long_ago, long_ago))
        (out / ".index.json.0123456789ab.partial").write_bytes(b"left")
        fails(Reading(layout.path, failing_in(digests[0], 0)), LayoutDestination(out))
        left = set(names_in(folder)) - {f".{digest[7:]}.partial" for digest in digests}
        assert left & {old, new, there, *strays} == {old, new}
        assert ".index.json.0123456789ab.partial" not in names_in(out)
        run(Reading(layout.path), LayoutDestination(out))
        assert self.parts(out) == sorted([new, *others])


class TestWrongCompression:
    def test_a_wrong_compression_is_detected_in_a_resumed_layer(self, layout: Layout, tmp_path: Path) -> None:
        layer = layout.blob(tar_layer({"noise": bytes(9000)}, compression=""), OCI_LAYER + "+gzip")
        layout.image([layer], name="v1")
        folder = tmp_path / "out" / "blobs" / "sha256"
        folder.mkdir(parents=True)
        (folder / f".{layer['digest'][7:]}.partial").write_bytes(layout.file(layer["digest"]).read_bytes()[:5000])
        with pytest.raises(ArchiveError, match="its compression is none"):
            Copy(
                Reading(layout.path),
                LayoutDestination(tmp_path / "out"),
                recompression=parse_recompression("gzip", 200),
            ).run()


class TestCounting:
    CONTENT = b"0123456789"

    def watched(self, cancelled: threading.Event) -> tuple[BlobProgress, Blob, list[int]]:
        watch = Watch()
        descriptor = Descriptor("text/plain", compute_digest(self.CONTENT), 10)

        def opened(offset: int = 0) -> Iterator[Chunk]:
            yield self.CONTENT[offset:]

        return BlobProgress(watch, descriptor, cancelled), Blob(descriptor, opened), watch.advances

    def test_resumed_bytes_count_at_once_and_a_restart_subtracts_them(self) -> None:
        watched, blob, advances = self.watched(threading.Event())

        def use(verified: VerifiedBlob) -> None:
            for opening, there, counts in (
                (partial(verified.open, 4, iter([b"01", b"23"])), 4, [2, 2, 6]),
                (partial(verified.open, 3), 3, [-10, 3, 7]),
                (verified.open, 0, [-10, 10]),
            ):
                advances.clear()
                list(opening())
                assert [count for count in advances if count] == counts
                assert (watched.counted, watched.resumed_size) == (10, there)

        use_verified(blob, use, can_retry=True, progress=watched)

    def test_a_chunk_counts_when_the_next_is_requested(self) -> None:
        watched, _, advances = self.watched(threading.Event())
        given: list[Chunk] = [b"12", memoryview(b"345")]
        chunks = watched.count(given)
        assert next(chunks) == b"12"
        assert advances == []
        assert bytes(next(chunks)) == b"345"
        assert advances == [2]
        assert next(chunks, None) is None
        assert advances == [2, 3]

    def test_checking_a_partial_file_can_be_cancelled(self) -> None:
        cancelled = threading.Event()
        watched, blob, _ = self.watched(cancelled)
        cancelled.set()
        with pytest.raises(CancelledError):
            use_verified(blob, lambda verified: list(verified.open(2, iter([b"01"]))), can_retry=True, progress=watched)


# A `TailOutput` writes an archive from a given byte on. Its first incomplete blob cannot be hashed, but has a size.
@pytest.mark.parametrize(("damaged", "end"), [(1, b""), (2, b"x")], ids=["size of the first blob", "later blob"])
def test_incomplete_and_later_blobs_of_a_tail_are_verified(
    layout: Layout, digests: list[str], whole: bytes, tmp_path: Path, damaged: int, end: bytes
) -> None:
    path = layout.file(digests[damaged])
    path.write_bytes(path.read_bytes()[:-1] + end)
    first = places_in(whole)[blob_name(digests[1])][0] + 100
    with io.FileIO(tmp_path / "rest", "wb") as file:
        output = TailOutput(StreamOutput(file, "there"), first)
        with pytest.raises(IntegrityError, match=digests[damaged]):
            Copy(Reading(layout.path), ArchiveDestination(output)).run()
