"""Find the parts of blobs in volumes, verify parts from a pipe, and assemble blobs from their parts.

The index only claims where parts are: positions, sizes and digests are all checked.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError
from ocistream.oci.volumes import checksum_name, parse_checksum_line, parse_part_name, part_error, part_name
from ocistream.streams.chunks import HashedChunks, read_all, verify_chunks
from ocistream.transfer.interfaces import Blob, BlobPart, ByteRange, RecoverableBlob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ocistream.archive.contents import ArchiveContents, Extent
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.volumes import Volume, VolumePart
    from ocistream.streams.chunks import Chunk

__all__ = ["StreamedPartChecker", "assemble_blob", "check_parts", "find_parts", "is_corrupt_part", "merge_parts"]


def find_parts(
    volume: Volume,
    contents: ArchiveContents,
    descriptor: Descriptor,
    read_extent: Callable[[Extent, int], bytes],
    open_extent: Callable[..., Iterator[Chunk]],
) -> list[BlobPart]:
    """Return the parts of a blob according to a volume's index. Parts in this volume can be opened.

    `read_extent` reads an extent of at most the given number of bytes. `open_extent` reads an extent from an offset on.

    Raises:
        ArchiveError: the parts do not make up the blob, or the volume lacks a part that its index lists.
    """
    pieces = volume.parts.get(descriptor.digest, ())
    if pieces and sum(piece.size for piece in pieces) != descriptor.size:
        msg = f"{volume}: its parts of {descriptor.digest} do not make up the {descriptor.size} bytes of that"
        raise ArchiveError(msg)
    parts: list[BlobPart] = []
    for piece in pieces:
        blob = None
        if piece.volume == volume.number:
            extent, checksum = _find_extents(volume, contents, descriptor.digest, piece)
            digest = parse_checksum_line(
                part_name(descriptor.digest, piece.offset), read_extent(checksum, limits.MAX_LAYOUT_FILE)
            )
            blob = RecoverableBlob(
                descriptor,
                partial(_open_part, partial(open_extent, extent), piece.offset),
                range=ByteRange(piece.offset, piece.offset + piece.size, digest),
                on_corrupt=partial(
                    _raise_part_error, descriptor.digest, piece.offset, volume.template.format_name(piece.volume)
                ),
            )
        parts.append(BlobPart(piece.offset, piece.size, volume.template.format_name(piece.volume), blob))
    return parts


def _open_part(open_extent: Callable[..., Iterator[Chunk]], start: int, offset: int = 0) -> Iterator[Chunk]:
    """Return the bytes of a blob from byte `offset` on; the part begins at byte `start`."""
    return open_extent(max(0, offset - start))


def _raise_part_error(digest: str, offset: int, volume: str, error: IntegrityError, again: bool) -> None:  # noqa: ARG001 - there is no second copy
    raise part_error(digest, offset, volume, error) from error


def check_parts(volume: Volume, contents: ArchiveContents) -> None:
    """Check that a volume has all parts that its index lists.

    Raises:
        ArchiveError: a part is missing or has another size.
    """
    for digest, pieces in volume.parts.items():
        for piece in pieces:
            if piece.volume == volume.number:
                _find_extents(volume, contents, digest, piece)


def _find_extents(volume: Volume, contents: ArchiveContents, digest: str, piece: VolumePart) -> tuple[Extent, Extent]:
    """Return the extents of a part and of its checksum."""
    name = part_name(digest, piece.offset)
    extent, checksum = contents.parts.get((digest, piece.offset)), contents.checksums.get((digest, piece.offset))
    if extent is None or checksum is None:
        msg = f"{volume} lacks {name if extent is None else checksum_name(name)}, which its index says it has"
        raise ArchiveError(msg)
    if extent.size != piece.size:
        msg = f"{volume}: {name} has {extent.size} bytes, and its index says {piece.size}"
        raise ArchiveError(msg)
    return extent, checksum


class StreamedPartChecker:
    """Verifies parts that arrive in a pipe against their checksums, which follow them."""

    def __init__(self, what: str) -> None:
        """Check an archive that errors call `what`."""
        self._what = what
        self._digests: dict[tuple[str, int], str] = {}

    def check_entry(self, name: str, chunks: Iterator[Chunk]) -> None:
        """Check an entry of a tar if it is a part, or the checksum of one.

        Raises:
            IntegrityError: a part does not match its checksum.
            ArchiveError: the checksum is malformed.
        """
        part = parse_part_name(name)
        if part is None:
            return
        digest, offset, is_checksum = part
        if not is_checksum:
            raw = HashedChunks(chunks)
            for _ in raw:
                pass
            self._digests[digest, offset] = raw.digest
        elif (digest_read := self._digests.pop((digest, offset), None)) is not None:
            expected = parse_checksum_line(part_name(digest, offset), read_all(itertools.islice(chunks, 1)))
            if expected != digest_read:
                mismatch = IntegrityError(f"{expected}: the bytes have the digest {digest_read}")
                raise part_error(digest, offset, self._what, mismatch)


def merge_parts(first: Sequence[BlobPart], second: Sequence[BlobPart]) -> list[BlobPart]:
    """Return the parts of a blob, each from the one of two volumes of a set that has it."""
    return [part if part.blob else replace(part, blob=other.blob) for part, other in zip(first, second, strict=True)]


def assemble_blob(descriptor: Descriptor, parts: Sequence[BlobPart]) -> Blob | None:
    """Return a blob that is read from its parts, or None if some of them are missing."""
    if not parts or not all(part.blob for part in parts):
        return None

    def chunks(offset: int = 0) -> Iterator[Chunk]:
        for part in parts:
            if part.blob is not None and offset < part.offset + part.size:
                yield from part.blob.open(max(offset, part.offset))

    def opened(offset: int = 0) -> Iterator[Chunk]:
        return _with_large_first_chunk(chunks(offset))

    return Blob(descriptor, opened)


def _with_large_first_chunk(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Yield the same bytes with a first chunk of at least 1 KiB.

    Callers detect the kind of a blob by its first chunk.
    """
    first_chunk = b""
    for chunk in chunks:
        first_chunk += chunk
        if len(first_chunk) >= limits.KIB:
            break
    yield first_chunk
    yield from chunks


def is_corrupt_part(part: Blob) -> bool:
    """Read a part, and return whether it does not match its own digest."""
    assert part.range_descriptor is not None, "parts in volumes have digests"  # noqa: S101 - `find_parts` sets them
    try:
        for _ in verify_chunks(part.open(), part.range_descriptor):
            pass
    except IntegrityError:
        return True
    return False
