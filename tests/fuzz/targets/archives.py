"""Archives, layout directories and compressed streams."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Final

import zstandard

from ocistream import limits
from ocistream.archive.decompression import decompress_input, is_compressed
from ocistream.archive.destination import ArchiveDestination
from ocistream.archive.docker_destination import DockerArchiveDestination
from ocistream.archive.file_source import ArchiveFileSource
from ocistream.archive.outputs import open_file_output
from ocistream.archive.stream_source import ArchiveStreamSource
from ocistream.archive.tar_reader import TarReader
from ocistream.errors import ArchiveError, OcistreamError
from ocistream.layout.destination import LayoutDestination
from ocistream.layout.image_selection import (
    ALL_IMAGES,
    Selection,
    select_every_image,
    select_existing_images,
    select_named_images,
    select_only_image,
)
from ocistream.layout.source import LayoutSource
from ocistream.oci.descriptor import parse_platform
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.streams.compression import GZIP, ZSTD, decompress, detect_codec
from ocistream.transfer.copy import Copy
from ocistream.transfer.interfaces import Source
from ocistream.transfer.verify import verify
from tests.archives import BLOCK, tar_of
from tests.fuzz.broken_images import docker_items, layout_items, tar_with_faults
from tests.fuzz.engine import MEMORY, Check, Target

_CODES: Final = frozenset({4, 5, 6, 8})
_TOKENS: Final = (
    b"oci-layout", b"index.json", b"manifest.json", b"repositories", b"blobs/sha256/", b"./", b"../", b"ustar\x0000",
    b"ustar  \0", b"path=", b"size=", b"GNU.sparse.", b'"layers":[', b'"manifests":', b'"subject":', b"sha256:",
    b"sha512:", b'"urls":["http://127.0.0.1/"]', b"null", bytes(512), bytes(1024),
)  # fmt: skip


def _oci(rng: Random) -> bytes:
    return tar_with_faults(rng, layout_items(rng))


def _docker(rng: Random) -> bytes:
    return tar_with_faults(rng, docker_items(rng))


def _either(rng: Random) -> bytes:
    return (_oci if rng.random() < 0.6 else _docker)(rng)


def _seeds(make: Callable[[Random], bytes]) -> Callable[[], Sequence[bytes]]:
    return lambda: [make(Random(f"seed {number}")) for number in range(12)]


# -- archives -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _files(folder: Path) -> Iterator[Check]:
    path = folder / "x.tar"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        if not is_compressed(path):
            _verified(ArchiveFileSource(path, _selection(data)))

    yield check


@contextlib.contextmanager
def _pipes(_: Path) -> Iterator[Check]:
    def check(data: bytes) -> None:
        file = decompress_input(io.BytesIO(data), "the archive on stdin", limits.MAX_RATIO)
        _verified(ArchiveStreamSource(file, _selection(data)))

    yield check


def _selection(data: bytes) -> Selection:
    """Return a selection that the command line can make, the same for the same input."""
    chance = Random(zlib.crc32(data))
    arm = parse_platform("linux/arm64")
    return Selection(
        all_blobs=chance.random() < 0.5,
        referrers=chance.choice(("copy", "copy", "list", "skip")),
        platforms=chance.choice((ALL_PLATFORMS, ALL_PLATFORMS, PlatformChoice((arm,)))),
        select=chance.choice(
            (
                select_every_image,
                select_every_image,
                select_existing_images,
                select_only_image,
                select_named_images(["app:1"]),
            )
        ),
    )


def _verified(source: Source) -> None:
    """Verify a source with `deep`; its findings are not exceptions."""
    with contextlib.closing(source):
        for wrong in verify(source, deep=True).failures:
            assert wrong.error.exit_code in _CODES
            assert wrong.error.message.isprintable()


@contextlib.contextmanager
def _copied(folder: Path) -> Iterator[Check]:
    """Copy an archive from a file and from a pipe: both layouts must be the same, or both copies must fail."""
    path, targets = folder / "x.tar", (folder / "one", folder / "other")

    def check(data: bytes) -> None:
        path.write_bytes(data)
        for target in targets:
            shutil.rmtree(target, ignore_errors=True)
        errors: list[OcistreamError | None] = [None, None]
        makes: Sequence[Callable[[], Source]] = (
            lambda: ArchiveFileSource(path),
            lambda: ArchiveStreamSource(io.BytesIO(data)),
        )
        for number, make in enumerate(makes):
            try:
                _into_layout(make(), targets[number])
            except OcistreamError as failed:
                errors[number] = failed
        of_file, of_pipe = errors
        # The errors may differ: a pipe reports the first of several defects.
        assert (of_file is None) == (of_pipe is None), f"from a file {of_file}, from a pipe {of_pipe}"
        if of_file is not None:
            raise of_file
        one, other = ((target / "index.json").read_bytes() for target in targets)
        assert one == other, "a file and a pipe give different images"

    yield check


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[Check]:
    """Copy an archive into another one, which must be complete and valid."""
    path, target = folder / "x.tar", folder / "y.tar"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        target.unlink(missing_ok=True)
        selection = replace(_selection(data), all_blobs=False)
        kind = DockerArchiveDestination if data.count(b"5") % 2 else ArchiveDestination
        try:
            with (
                contextlib.closing(ArchiveFileSource(path, selection)) as source,
                contextlib.closing(kind(open_file_output(target))) as sink,
            ):
                Copy(source, sink).run()
        except OcistreamError:
            assert not target.exists(), "a failed copy leaves a file"
            raise
        with contextlib.closing(ArchiveFileSource(target, replace(ALL_IMAGES, all_blobs=True))) as source:
            findings = verify(source)
        assert not findings.failures, "the written archive is invalid"
        assert not findings.unreferenced, "the written archive has an unreferenced blob"

    yield check


def _into_layout(source: Source, target: Path) -> None:
    with contextlib.closing(source), contextlib.closing(LayoutDestination(target)) as sink:
        Copy(source, sink).run()
    for blob in target.glob("blobs/*/*"):
        assert blob.is_file(), "the layout has a blob that is not a file"
        assert not blob.is_symlink(), "the layout has a link"


@contextlib.contextmanager
def _entries(_: Path) -> Iterator[Check]:
    """Compare the entries of a tar with those of Python's `tarfile`, if both accept the tar."""

    def check(data: bytes) -> None:
        reader = TarReader(io.BytesIO(data))
        ours = [(entry.name, entry.size) for entry in reader if entry.kind == "file"]
        reader.drain()
        theirs = _seen_by_tarfile(data)
        if theirs is not None:
            assert ours == theirs, "tarfile reads other entries"

    yield check


def _seen_by_tarfile(data: bytes) -> list[tuple[str, int]] | None:
    """Return the regular files that `tarfile` reads; None if it fails, or if it reads a header differently."""
    # ocistream ignores global headers on purpose; tarfile applies them, and treats a malformed one as the end.
    if any(data[at + 156 : at + 157] == tarfile.XGLTYPE for at in range(0, len(data), BLOCK)):
        return None
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            members = archive.getmembers()
            end = data[archive.offset : archive.offset + BLOCK]
    except (tarfile.TarError, ValueError, OverflowError, OSError, EOFError, AttributeError):
        return None
    # tarfile treats a header with an invalid number as the end, for example in the owner, which ocistream ignores.
    if any(end):
        return None
    # For other types, each reader computes the size in its own way.
    usual = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE}
    if any(member.type not in usual for member in members):
        return None
    # tarfile strips trailing slashes, treats some files as directories because of their names, and accepts an empty
    # long name.
    if any(
        not member.name or member.isdir() or member.pax_headers or (member.size and not member.isfile())
        for member in members
    ):
        return None
    # Type 7 is a file for tarfile, but not for ocistream.
    return [(member.name, member.size) for member in members if member.isfile() and member.type != tarfile.CONTTYPE]


# -- compressed ---------------------------------------------------------------------------------------------


def _compressed(rng: Random) -> bytes:
    data = _either(rng)
    if rng.random() < 0.5:
        return gzip.compress(data, 1, mtime=0)
    return zstandard.ZstdCompressor(level=rng.choice((1, 3, 19)), write_checksum=rng.random() < 0.5).compress(data)


def _stream(rng: Random) -> bytes:
    """Return a compressed stream of several members or frames; its first byte selects the size of chunks."""
    plain = rng.choice((b"", b"x", b"abc" * 1000, bytes(100_000), rng.randbytes(5000)))
    if rng.random() < 0.5:
        parts = [gzip.compress(plain, rng.randint(0, 9), mtime=0), bytes(rng.choice((0, 0, 1, 512)))]
    else:
        frame = zstandard.ZstdCompressor(
            level=rng.choice((-5, 1, 3, 19)), write_checksum=rng.random() < 0.5, write_content_size=rng.random() < 0.5
        ).compress(plain)
        # A skippable frame, and blocks that repeat one byte, which have the largest ratio.
        skipped = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
        block = (128 * 1024 << 3 | 1 << 1).to_bytes(3, "little") + b"a"
        repeated = b"\x28\xb5\x2f\xfd\x00\x58" + block * rng.choice((0, 1, 50)) + b"\x01\x00\x00"
        parts = [frame, skipped, repeated]
    return rng.randbytes(1) + b"".join(rng.choices(parts, k=rng.randint(1, 4)))


@contextlib.contextmanager
def _codecs(_: Path) -> Iterator[Check]:
    """Compare the decompressed stream with the output of the libraries."""

    def check(data: bytes) -> None:
        size, data = (data[0] % 64) ** 2 + 1 if data else 1, data[1:]
        codec = detect_codec(data[:4])
        given, checksum = 0, 0
        for chunk in decompress(codec, (data[at : at + size] for at in range(0, len(data), size)), 200):
            assert len(chunk) <= limits.CHUNK_SIZE, "a chunk is too large"
            given += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
        if codec is GZIP:
            try:
                expected = _measured(_gunzipped(data))
            except zlib.error as error:
                # isal, if installed, ignores the reserved flags of RFC 1952; zlib does not.
                if "unknown header flags" not in str(error):
                    raise
                return
            assert (given, checksum) == expected, "zlib returns other data"
        elif codec is ZSTD:
            assert (given, checksum) == _measured(_unzstd(data)), "zstandard returns other data"

    yield check


def _measured(parts: Iterator[bytes]) -> tuple[int, int]:
    size, checksum = 0, 0
    for part in parts:
        size += len(part)
        checksum = zlib.crc32(part, checksum)
    return size, checksum


def _gunzipped(data: bytes) -> Iterator[bytes]:
    while data:
        member = zlib.decompressobj(31)
        data = yield from _fed(member, data)
        data = data.lstrip(b"\0")


def _unzstd(data: bytes) -> Iterator[bytes]:
    while data:
        if data[1:4] == b"\x2a\x4d\x18" and data[0] >> 4 == 5:
            assert len(data) >= 8 + int.from_bytes(data[4:8], "little"), "a truncated stream was accepted"
            data = data[8 + int.from_bytes(data[4:8], "little") :]
            continue
        frame = zstandard.ZstdDecompressor(max_window_size=limits.MAX_ZSTD_WINDOW).decompressobj()
        data = yield from _fed(frame, data)


def _fed(stream: Any, data: bytes) -> Generator[bytes, None, bytes]:
    """Yield the decompressed data of one stream in small pieces, and return the data after the stream."""
    for at in range(0, len(data), 64):
        yield stream.decompress(data[at : at + 64])
        if stream.eof:
            return bytes(stream.unused_data) + data[at + 64 :]
    msg = "it was taken for whole"
    raise AssertionError(msg)


# -- layout directories -------------------------------------------------------------------------------------


def _layout(rng: Random) -> bytes:
    return tar_of(layout_items(rng))


@contextlib.contextmanager
def _layouts(folder: Path) -> Iterator[Check]:
    """Unpack the input, a tar, into a directory with its links and FIFOs, and read the directory as a layout."""
    path, target = folder / "layout", folder / "target"
    (folder / "secret").write_bytes(b"{}")

    def check(data: bytes) -> None:
        for made in (path, target):
            shutil.rmtree(made, ignore_errors=True)
        path.mkdir()
        _unpack(data, path)
        before = _seen(path)
        try:
            _verified(LayoutSource(path, _selection(data)))
            _into_layout(LayoutSource(path), target)
            with contextlib.closing(LayoutSource(path)) as source, contextlib.closing(LayoutDestination(path)) as sink:
                Copy(source, sink).run()
        except OcistreamError:
            assert _seen(path) == before, "a failed copy changed a directory that is not a layout"
            raise

    yield check


def _seen(path: Path) -> list[tuple[str, int]]:
    return sorted((str(found), found.lstat().st_mode) for found in path.rglob("*"))


def _unpack(data: bytes, path: Path) -> None:
    with contextlib.suppress(ArchiveError, OSError, ValueError):
        reader = TarReader(io.BytesIO(data))
        for entry in reader:
            where = Path(os.path.normpath(path / entry.name.lstrip("/")))
            if not where.is_relative_to(path) or os.path.lexists(where):
                continue
            with contextlib.suppress(OSError, ValueError):
                where.parent.mkdir(parents=True, exist_ok=True)
                if entry.kind == "link":
                    where.symlink_to(entry.target or "../secret")
                elif entry.kind == "other":
                    os.mkfifo(where)
                elif entry.kind == "directory":
                    where.mkdir()
                else:
                    where.write_bytes(reader.read(entry, 1 << 20))


#: A layer may need the largest zstd window; wide windows are used one at a time.
_MEMORY: Final = limits.MAX_ZSTD_WINDOW + MEMORY
#: 2: two images with one name, or several images when one must be selected.
_CHOOSING: Final = _CODES | {2}

TARGETS: Final = (
    Target("tar-entries", _entries, _seeds(_either), frozenset({6, 8}), _either, _TOKENS, share=3600),
    Target("archive-file", _files, _seeds(_either), _CHOOSING, _either, _TOKENS, 1050, _MEMORY),
    Target("archive-pipe", _pipes, _seeds(_either), _CHOOSING, _either, _TOKENS, 1050, _MEMORY),
    Target("archive-compressed", _pipes, _seeds(_compressed), _CHOOSING, _compressed, _TOKENS, 600, _MEMORY),
    Target("archive-copied", _copied, _seeds(_either), _CHOOSING, _either, _TOKENS, share=450),
    Target("archive-written", _written, _seeds(_either), _CHOOSING, _either, _TOKENS, 300, _MEMORY),
    Target("codecs", _codecs, _seeds(_stream), frozenset({6, 8}), _stream, share=1200, memory=2 * _MEMORY),
    # Reading a link to itself fails with 9.
    Target("layout", _layouts, _seeds(_layout), _CHOOSING | {9}, _layout, _TOKENS, 450, _MEMORY),
)
