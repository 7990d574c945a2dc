"""The table of codecs (gzip, zstd, none): compress, decompress and detect; the media types of layers for each.

To add a codec, add one entry to `CODECS`. Other modules decide what is compressed.
"""

from __future__ import annotations

import importlib
import sys
import threading
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ocistream import limits
from ocistream.errors import ArchiveError, OcistreamError, UnsupportedError
from ocistream.oci.descriptor import Descriptor
from ocistream.streams.chunks import peek_chunks
from ocistream.streams.synchronization import Budget

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from types import ModuleType

    from ocistream.streams.chunks import Chunk

#: zlib's number for a deflate stream in a gzip frame with the widest window (zlib.h, inflateInit2).
_GZIP_FRAME: Final = 16 + zlib.MAX_WBITS
#: The first bytes of a gzip member (RFC 1952, section 2.3.1).
_GZIP_MAGIC: Final = b"\x1f\x8b"
#: How many bytes a new gzip member gets at first: the library copies the bytes that a member does not use, and a chunk
#: may have thousands of members.
_MEMBER_PREFIX: Final = 4 * limits.KIB
#: Threads per zstd stream. The frames are the same for any number of threads except none.
_ZSTD_THREADS: Final = 2
#: Bytes per job of a thread. zstd's default of four windows needs several times the memory, for frames that are hardly
#: smaller.
_ZSTD_JOB: Final = 1 * limits.MIB
#: Magic numbers of a zstd frame and of a skippable frame (RFC 8878, sections 3.1.1 and 3.1.2).
_FRAME_MAGIC: Final = 0xFD2FB528
_SKIPPABLE_MAGIC: Final = 0x184D2A50


@dataclass(frozen=True, slots=True)
class Codec:
    """A compression format: its `name` in options and media types, and the `magic` bytes of its streams.

    `compress` takes plain chunks and a level in `levels`, and yields the same bytes on every run. `decompress` yields
    plain chunks of bounded size. It raises ArchiveError if the stream is malformed or truncated, and UnsupportedError
    if it needs too much memory.
    """

    name: str
    magic: bytes
    levels: range
    default_level: int
    compress: Callable[[Iterable[Chunk], int], Iterator[Chunk]]
    decompress: Callable[[Iterable[Chunk]], Iterator[Chunk]]


class IncompleteStreamError(ArchiveError):
    """A compressed stream ends too early."""


def _pass_through(chunks: Iterable[Chunk], _level: int = 0) -> Iterator[Chunk]:
    yield from chunks


def _gzip(chunks: Iterable[Chunk], level: int) -> Iterator[Chunk]:
    # zlib writes neither name nor time into the header, so the result is reproducible.
    compressor = zlib.compressobj(level, zlib.DEFLATED, _GZIP_FRAME)
    for chunk in chunks:
        if out := compressor.compress(chunk):
            yield out
    yield compressor.flush()


def _gunzip(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Decompress a sequence of gzip members (RFC 1952, section 2.2)."""
    library = _load_zlib()
    member: Any = None
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            piece = rest
            if member is None or member.eof:
                # Some writers pad the last block of a tape or disk with zeros.
                rest = _strip_zeros(rest) if member is not None else rest
                if not rest:
                    break
                if member is not None and not _GZIP_MAGIC.startswith(bytes(rest[: len(_GZIP_MAGIC)])):
                    raise _malformed("gzip", "something else follows its last member")
                member = library.decompressobj(wbits=_GZIP_FRAME)
                piece = rest[:_MEMBER_PREFIX]
            try:
                yield from _inflate_chunk(member, piece)
            except library.error as error:
                raise _malformed("gzip", str(error)) from error
            rest = rest[len(piece) - len(member.unused_data) :]
    if member is None or not member.eof:
        raise _incomplete("gzip")


def _inflate_chunk(member: Any, data: Chunk) -> Iterator[bytes]:  # noqa: ANN401 - zlib does not export the type
    """Yield the plain bytes of `data` in chunks."""
    while True:
        out = member.decompress(data, limits.CHUNK_SIZE)
        if out:
            yield out
        data = member.unconsumed_tail
        # After a full chunk the decompressor may still have output of the same input.
        if member.eof or (not data and len(out) < limits.CHUNK_SIZE):
            return


def _strip_zeros(data: memoryview) -> memoryview:
    while data:
        piece = bytes(data[:_MEMBER_PREFIX])
        rest = piece.lstrip(b"\0")
        data = data[len(piece) - len(rest) :]
        if rest:
            break
    return data


def _load_zlib() -> ModuleType:
    """Return isal if it is installed, else zlib: isal has the same interface and decompresses faster."""
    try:
        return importlib.import_module("isal.isal_zlib")
    except ImportError:
        return zlib


def _load_zstandard() -> ModuleType:
    """Import zstandard. A zipapp cannot contain compiled modules.

    Raises:
        UnsupportedError: it cannot be imported.
    """
    try:
        return importlib.import_module("zstandard")
    except ImportError as error:
        msg = f"zstd needs the package zstandard, which cannot be imported: {error}"
        hint = f"install it for {sys.executable}, or as the system's python3-zstandard"
        raise UnsupportedError(msg, hint=hint) from error


def _zstd(chunks: Iterable[Chunk], level: int) -> Iterator[Chunk]:
    zstandard = _load_zstandard()
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, threads=_ZSTD_THREADS, job_size=_ZSTD_JOB, write_checksum=True, write_content_size=False
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters).chunker(chunk_size=limits.CHUNK_SIZE)
    for chunk in chunks:
        yield from compressor.compress(chunk)
    yield from compressor.finish()


def _unzstd(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Decompress a sequence of zstd frames (RFC 8878, section 3.1)."""
    zstandard = _load_zstandard()
    frames = _ZstdFrameTracker()
    source = _ChunkReader(chunks, frames)
    reader = zstandard.ZstdDecompressor(max_window_size=limits.MAX_ZSTD_WINDOW).stream_reader(
        source, read_size=limits.CHUNK_SIZE, read_across_frames=True
    )
    buffer = memoryview(bytearray(limits.CHUNK_SIZE))
    try:
        while count := reader.readinto(buffer):
            yield buffer[:count]
    except zstandard.ZstdError as error:
        raise _malformed("zstd", str(error)) from error
    finally:
        source.release()
    if not frames.is_complete:
        # zstandard's reader treats a truncated stream as complete.
        raise _incomplete("zstd")


class _WideWindowTurn:
    """The turn of streams that need much memory: the library keeps a window for each open stream.

    A thread that has the turn may open another such stream.
    """

    def __init__(self) -> None:
        self._turns = Budget(1)
        self._owner: int | None = None

    def acquire(self) -> bool:
        """Wait for the turn; return False if this thread has it already."""
        if self._owner == threading.get_ident():
            return False
        self._turns.take(timeout=None)
        self._owner = threading.get_ident()
        return True

    def release(self) -> None:
        """Give the turn back, from any thread: another thread than the one that used a generator may close it."""
        self._owner = None
        self._turns.give_back()


#: Streams with a wide window are decompressed one at a time, however many are read in parallel.
_wide_window_turn = _WideWindowTurn()


class _ChunkReader:
    """Chunks as a readable file, for a library that reads from files."""

    def __init__(self, chunks: Iterable[Chunk], frames: _ZstdFrameTracker) -> None:
        # An empty chunk would be read as the end of the file.
        self._chunks = filter(len, chunks)
        self._frames = frames
        self._has_turn = False

    def read(self, _size: int) -> bytes:
        # The library accepts any number of bytes.
        chunk = bytes(next(self._chunks, b""))
        self._frames.feed(chunk)
        if self._frames.window > limits.MAX_ZSTD_WINDOW:
            msg = f"a zstd stream needs a window of {self._frames.window} bytes; the limit is {limits.MAX_ZSTD_WINDOW}"
            raise UnsupportedError(
                msg, hint="it was compressed with zstd --long=28 or more: compress it again with less"
            )
        if self._frames.window > limits.WIDE_ZSTD_WINDOW and not self._has_turn:
            self._has_turn = _wide_window_turn.acquire()
        return chunk

    def release(self) -> None:
        """Give back the turn for wide windows."""
        if self._has_turn:
            self._has_turn = False
            _wide_window_turn.release()


class _ZstdFrameTracker:
    """Parses zstd frames block by block, to detect a truncated stream: the library does not.

    `window` is the largest window of the frames so far, in bytes: the memory needed to decompress them.
    """

    def __init__(self) -> None:
        self.window = 0
        self._at_end = False
        self._buffered = bytearray()
        self._steps = self._parse_frames()
        self._needed = next(self._steps)

    @property
    def is_complete(self) -> bool:
        """Whether there was at least one frame and the last one is complete."""
        return self._at_end and not self._buffered

    def feed(self, chunk: bytes) -> None:
        """Parse the next bytes of the stream."""
        position = 0
        while position < len(chunk):
            if self._needed < 0:
                step = min(-self._needed, len(chunk) - position)
                self._needed += step
                if not self._needed:
                    self._needed = next(self._steps)
            else:
                piece = chunk[position : position + self._needed - len(self._buffered)]
                step = len(piece)
                self._buffered += piece
                if len(self._buffered) == self._needed:
                    head = bytes(self._buffered)
                    self._buffered.clear()
                    self._needed = self._steps.send(head)
            position += step

    def _parse_frames(self) -> Generator[int, bytes, None]:
        """Yield the number of bytes to be sent, or, if negative, to be skipped (RFC 8878, sections 3.1.1 and 3.1.2)."""
        while True:
            magic = int.from_bytes((yield 4), "little")
            self._at_end = False
            if magic & ~0xF == _SKIPPABLE_MAGIC:
                if size := int.from_bytes((yield 4), "little"):
                    yield -size
            elif magic == _FRAME_MAGIC:
                yield from self._parse_frame()
            else:
                # Skip the rest: the decompressor reports the error.
                yield -(1 << 62)
            self._at_end = True

    def _parse_frame(self) -> Generator[int, bytes, None]:
        (flags,) = yield 1
        single_segment = flags >> 5 & 1
        header_size = (1 - single_segment) + (0, 1, 2, 4)[flags & 3]
        size = (single_segment, 2, 4, 8)[flags >> 6]
        header = (yield header_size + size) if header_size + size else b""
        if single_segment:
            # The window is as large as the content. A size of two bytes is stored minus 256.
            window = int.from_bytes(header[header_size:], "little") + (256 if size == 2 else 0)
        else:
            exponent, mantissa = header[0] >> 3, header[0] & 7
            window = (1 << 10 + exponent) // 8 * (8 + mantissa)
        self.window = max(self.window, window)
        last = 0
        while not last:
            block = int.from_bytes((yield 3), "little")
            last, kind, size = block & 1, block >> 1 & 3, block >> 3
            # A block of one repeated byte contains that byte only.
            if content := 1 if kind == 1 else size:
                yield -content
        if flags & 4:
            yield -4


def _incomplete(name: str) -> IncompleteStreamError:
    return IncompleteStreamError(f"the {name} stream is malformed: it ends too early")


def _malformed(name: str, reason: str) -> ArchiveError:
    return ArchiveError(f"the {name} stream is malformed: {reason}")


NONE: Final = Codec("none", b"", range(1), 0, _pass_through, _pass_through)
GZIP: Final = Codec("gzip", b"\x1f\x8b\x08", range(1, 10), 6, _gzip, _gunzip)
ZSTD: Final = Codec("zstd", _FRAME_MAGIC.to_bytes(4, "little"), range(1, 20), 3, _zstd, _unzstd)
CODECS: Final = {codec.name: codec for codec in (GZIP, ZSTD, NONE)}
#: How many bytes at the beginning identify a codec.
MAGIC_SIZE: Final = 4


def detect_codec(beginning: bytes) -> Codec:
    """Return the codec of a stream that starts with these bytes; `NONE` if no codec matches."""
    # Some zstd writers, such as pzstd, start with a skippable frame.
    if int.from_bytes(beginning[:4], "little") & ~0xF == _SKIPPABLE_MAGIC:
        return ZSTD
    return next((codec for codec in CODECS.values() if codec.magic and beginning.startswith(codec.magic)), NONE)


def decompress(codec: Codec, chunks: Iterable[Chunk], max_ratio: int) -> Iterator[Chunk]:
    """Decompress an untrusted stream, up to `max_ratio` times its size.

    The limit applies above `limits.UNCHECKED_EXPANSION` bytes: a layer of zeros is not an attack. Real layers stay well
    below the default of 200.

    Raises:
        ArchiveError: the stream is malformed, truncated, or expands to more.
    """
    input_size = output_size = 0

    def counted() -> Iterator[Chunk]:
        nonlocal input_size
        for chunk in chunks:
            input_size += len(chunk)
            yield chunk

    for chunk in codec.decompress(counted()):
        output_size += len(chunk)
        if output_size > max(limits.UNCHECKED_EXPANSION, input_size * max_ratio):
            msg = f"the {codec.name} stream expands to more than {max_ratio} times its size"
            raise ArchiveError(msg, hint="if you trust it, allow more with --max-ratio")
        yield chunk


class DecompressionError(Exception):
    """A layer has the expected raw bytes, but cannot be decompressed; `error` says why."""

    def __init__(self, error: ArchiveError | UnsupportedError) -> None:
        """Take the error without the name of the layer."""
        super().__init__(error.message)
        self.error = error


def decompress_layer(raw: Iterator[Chunk], max_ratio: int) -> tuple[Codec, Iterator[Chunk]]:
    """Return the codec of a layer, as its first bytes show it, and its plain chunks.

    The plain chunks raise DecompressionError, or an error of `raw` as it is. If the bytes of `raw` do not match their
    digest either, that error is raised instead.
    """
    first, chunks = peek_chunks(raw)
    codec = detect_codec(bytes(first[: limits.KIB]))
    return codec, _decompress_checked(codec, chunks, max_ratio)


def _decompress_checked(codec: Codec, raw: Iterator[Chunk], max_ratio: int) -> Iterator[Chunk]:
    has_raw_failed = False

    def tracked() -> Iterator[Chunk]:
        nonlocal has_raw_failed
        try:
            yield from raw
        except OcistreamError:
            has_raw_failed = True
            raise

    chunks = tracked()
    try:
        yield from decompress(codec, chunks, max_ratio)
    except (ArchiveError, UnsupportedError) as error:
        if has_raw_failed:
            raise
        for _ in chunks:
            pass
        raise DecompressionError(error) from error


#: The two families: prefixes of their layers' media types (image-spec, layer.md; Docker's schema 2).
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"

#: What is between a family and the name of a codec. Docker does not define zstd, but some builders write it.
_SEPARATORS: Final = {OCI_LAYER: "+", DOCKER_LAYER: "."}
#: Docker's media types of layers that are distributed elsewhere, and OCI's.
_FOREIGN: Final = {
    "application/vnd.docker.image.rootfs.foreign.diff.tar": "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    ),
}
#: The codecs that Docker's media types define.
DOCKER_CODECS: Final = frozenset({"none", "gzip"})

_TAR_MAGIC: Final = slice(257, 262)


def media_type_family(kind: str) -> str | None:
    """Return the family of an image layer's media type, or None for any other media type."""
    return _FAMILY_AND_CODEC[kind][0] if kind in _FAMILY_AND_CODEC else None


def codec_name(kind: str) -> str | None:
    """Return the codec name of an image layer's media type, or None for any other media type."""
    return _FAMILY_AND_CODEC[kind][1] if kind in _FAMILY_AND_CODEC else None


def layer_media_type(family: str, codec: str) -> str:
    """Return the media type of a layer of a family, compressed with a codec."""
    return family if codec == NONE.name else f"{family}{_SEPARATORS[family]}{codec}"


_FAMILY_AND_CODEC: Final = {layer_media_type(family, name): (family, name) for family in _SEPARATORS for name in CODECS}


def describe_layer(digest: str, size: int, codec: Codec) -> Descriptor:
    """Return the descriptor of an OCI layer that is compressed with `codec`."""
    return Descriptor(layer_media_type(OCI_LAYER, codec.name), digest, size)


def to_oci_media_type(kind: str) -> str:
    """Return the OCI media type for a layer's media type; other media types stay the same."""
    if kind in _FAMILY_AND_CODEC:
        return layer_media_type(OCI_LAYER, _FAMILY_AND_CODEC[kind][1])
    return _FOREIGN.get(kind, kind)


def is_probably_layer(beginning: bytes) -> bool:
    """Return whether a blob may be a layer, judged by its first bytes: it is compressed, or a tar."""
    return detect_codec(beginning) is not NONE or beginning[_TAR_MAGIC] == b"ustar" or beginning[:512] == bytes(512)


def is_probably_json(beginning: bytes) -> bool:
    """Return whether a file is JSON and therefore not a layer, judged by its first bytes.

    A tar starts with the name of its first entry, which may start with a brace.
    """
    return beginning[: limits.KIB].lstrip()[:1] == b"{" and not is_probably_layer(beginning)
