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
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor
from ocistream.oci.volumes import checksum_name, parse_checksum_line, parse_part_name, part_error, part_name
from ocistream.streams.chunks import HashedChunks, read_all, verify_chunks
from ocistream.transfer.interfaces import Blob, BlobPart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ocistream.archive.contents import ArchiveContents, Extent
    from ocistream.oci.volumes import Volume, VolumePart
    from ocistream.streams.chunks import Chunk

__all__ = ["StreamedPartChecker", "assemble_blob", "check_parts", "find_parts", "is_corrupt_part", "merge_parts"]


def find_parts(
    volume: Volume,
    contents: ArchiveContents,
    descriptor: Descriptor,
    read_extent: Callable[[Extent, int], bytes],
    open_extent: Callable[[Extent, int], Iterator[Chunk]],
) -> list[BlobPart]:
    """Give the parts of a blob as a volume's index has them, with the way to those that are in it.

    `read` gives what lies at a place, of at most so many bytes, `chunks` what lies there from an offset on.

    Raises:
        ArchiveError: they are no parts of such a blob, or the volume lacks what it says it has.
    """
    pieces = volume.parts.get(descriptor.digest, ())
    if pieces and sum(piece.size for piece in pieces) != descriptor.size:
        msg = f"{volume}: its parts of {descriptor.digest} do not make up the {descriptor.size} bytes of that"
        raise ArchiveError(msg)
    found: list[BlobPart] = []
    for piece in pieces:
        blob = None
        if piece.volume == volume.number:
            place, checksum = _find_extents(volume, contents, descriptor.digest, piece)
            digest = parse_checksum_line(
                part_name(descriptor.digest, piece.offset), read_extent(checksum, limits.MAX_LAYOUT_FILE)
            )
            at = partial(open_extent, place)
            blob = Blob(Descriptor(UNKNOWN_MEDIA_TYPE, digest, piece.size), partial(at, 0), open_at=at)
        found.append(BlobPart(piece.offset, piece.size, volume.template.format_name(piece.volume), blob))
    return found


def check_parts(volume: Volume, contents: ArchiveContents) -> None:
    """Make sure that a volume has all parts that it says it has.

    Raises:
        ArchiveError: it has not, or they are of other sizes.
    """
    for digest, pieces in volume.parts.items():
        for piece in pieces:
            if piece.volume == volume.number:
                _find_extents(volume, contents, digest, piece)


def _find_extents(volume: Volume, contents: ArchiveContents, digest: str, piece: VolumePart) -> tuple[Extent, Extent]:
    """Find a part, and what says its digest."""
    name = part_name(digest, piece.offset)
    place, checksum = contents.parts.get((digest, piece.offset)), contents.checksums.get((digest, piece.offset))
    if place is None or checksum is None:
        msg = f"{volume} lacks {name if place is None else checksum_name(name)}, which its index says it has"
        raise ArchiveError(msg)
    if place.size != piece.size:
        msg = f"{volume}: {name} has {place.size} bytes, and its index says {piece.size}"
        raise ArchiveError(msg)
    return place, checksum


class StreamedPartChecker:
    """Parts that pass in a pipe: each is held against what says its digest, which comes behind it."""

    def __init__(self, what: str) -> None:
        """Begin with none; `what` names the archive in errors."""
        self._what = what
        self._digests: dict[tuple[str, int], str] = {}

    def check_entry(self, name: str, chunks: Iterator[Chunk]) -> None:
        """Look at an entry of a tar, if it is a part or a checksum of one.

        Raises:
            IntegrityError: a part is not what its checksum says.
            ArchiveError: that is malformed.
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
        elif (found := self._digests.pop((digest, offset), None)) is not None:
            promised = parse_checksum_line(part_name(digest, offset), read_all(itertools.islice(chunks, 1)))
            if promised != found:
                wrong = IntegrityError(f"{promised}: the bytes have the digest {found}")
                raise part_error(digest, offset, self._what, wrong)


def merge_parts(first: Sequence[BlobPart], second: Sequence[BlobPart]) -> list[BlobPart]:
    """Give the parts of a blob with the way to each that is known to either of two volumes of one set."""
    return [one if one.blob else replace(one, blob=other.blob) for one, other in zip(first, second, strict=True)]


def assemble_blob(descriptor: Descriptor, parts: Sequence[BlobPart]) -> Blob | None:
    """Give a blob by its parts, or None where not all of them are at hand."""
    if not parts or not all(part.blob for part in parts):
        return None

    def chunks(offset: int = 0) -> Iterator[Chunk]:
        for part in parts:
            open_at = part.blob.open_at if part.blob else None
            if open_at is not None and offset < part.offset + part.size:
                yield from open_at(max(0, offset - part.offset))

    def opened(offset: int = 0) -> Iterator[Chunk]:
        return _with_large_first_chunk(chunks(offset))

    return Blob(descriptor, opened, open_at=opened)


def _with_large_first_chunk(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Give the same, with no first chunk of a few bytes: by how a blob begins it is seen what it is."""
    first = b""
    for chunk in chunks:
        first += chunk
        if len(first) >= limits.KIB:
            break
    yield first
    yield from chunks


def is_corrupt_part(part: Blob) -> bool:
    """Read a part, and say whether it is not what is said of it."""
    try:
        for _ in verify_chunks(part.open(), part.descriptor):
            pass
    except IntegrityError:
        return True
    return False
