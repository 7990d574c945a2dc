"""Blobs of which the source has only a part: the rest of an interrupted copy, or the parts in some volumes.

Reads and writes the annotation of index.json that lists such blobs, and writes the available bytes.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, PartialBlobLostError, UnsupportedError
from ocistream.oci.reference import is_digest, printable
from ocistream.oci.volumes import part_error
from ocistream.streams.chunks import check_chunks_size, closing_chunks, verify_chunks
from ocistream.transfer.blob_wrappers import BlobProgress, use_verified
from ocistream.transfer.interfaces import (
    BlobPartDestination,
    BlobPartSource,
    ResumableDestination,
    RetryableDestination,
)
from ocistream.transfer.report import NeededVolumes

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob, BlobPart, Destination, Observer, Source

__all__ = [
    "PARTIAL_BLOBS",
    "PartWriter",
    "chunks_from",
    "format_partial_blobs",
    "parse_partial_blobs",
    "write_rest",
]

#: The annotation of `index.json` that lists partial blobs. Each line has a digest and a byte offset.
PARTIAL_BLOBS: Final = "vnd.ocistream.begun"

_OFFSET: Final = re.compile(r"[1-9][0-9]{0,17}\Z")


def format_partial_blobs(offsets: Mapping[str, int]) -> str:
    """Return the annotation's text: digests, and how many bytes the other side has."""
    return "\n".join(f"{digest} {offset}" for digest, offset in sorted(offsets.items()))


def parse_partial_blobs(annotations: Mapping[str, str]) -> dict[str, int] | None:
    """Return the annotation's entries, digest to byte offset; None if there is no such annotation.

    Raises:
        ArchiveError: the annotation is malformed.
    """
    text = annotations.get(PARTIAL_BLOBS)
    if text is None:
        return None
    offsets: dict[str, int] = {}
    lines = text.split("\n", limits.MAX_RESUMABLE_BLOBS) if text else []
    for line in lines:
        digest, _, offset = line.partition(" ")
        if (
            len(lines) > limits.MAX_RESUMABLE_BLOBS
            or not is_digest(digest)
            or not _OFFSET.match(offset)
            or digest in offsets
        ):
            msg = f"index.json has a malformed annotation {PARTIAL_BLOBS}: {printable(line, 160)!r}"
            raise ArchiveError(msg)
        offsets[digest] = int(offset)
    return offsets


def chunks_from(chunks: Iterator[Chunk], offset: int) -> Iterator[Chunk]:
    """Yield the bytes of `chunks` from byte `offset` on. Closes `chunks` at the end."""
    remaining = offset
    with closing_chunks(chunks):
        for chunk in chunks:
            if remaining < len(chunk):
                yield memoryview(chunk)[remaining:] if remaining else chunk
            remaining = max(0, remaining - len(chunk))


def write_rest(destination: Destination, blob: Blob, progress: BlobProgress) -> None:
    """Write the rest of a blob, which begins at `blob.offset`.

    The receiver has seen only the beginning, the sender only the end, so neither can tell which one is wrong. The
    caller then sends the complete blob.

    Raises:
        UnsupportedError: the destination never has the beginning of a blob.
        PartialBlobLostError: the beginning is missing or wrong.
        OcistreamError: the source or the destination failed.
    """
    if not isinstance(destination, ResumableDestination):
        msg = f"{blob.descriptor.digest}: only the end of it comes, and nothing can be gone on with here"
        raise UnsupportedError(msg)

    def opened_at(offset: int) -> Iterator[Chunk]:
        return check_chunks_size(chunks_from(blob.open(), offset - blob.offset), blob.descriptor, offset)

    def resumed(stored_chunks: Iterator[Chunk], size: int) -> Iterator[Chunk]:
        return verify_chunks(chunks_from(blob.open(), size - blob.offset), blob.descriptor, stored_chunks)

    try:
        destination.write_rest(progress.wrap(replace(blob, open_at=opened_at, resume=resumed)))
    except IntegrityError as error:
        msg = f"{error.message}: its beginning was there, and its end has come"
        raise PartialBlobLostError(msg, hint="run the same command again: all of it is sent then") from error


class PartWriter:
    """Writes the parts of blobs that some volumes have.

    A part has a digest of its own, which is verified here. The registry verifies the complete blob when it closes the
    upload, and nothing is visible before.
    """

    def __init__(
        self,
        source: Source,
        destination: Destination,
        observer: Observer,
        note: Callable[[Descriptor, str, int], None],
        cancelled: threading.Event,
    ) -> None:
        """Call `note` for each blob that was "copied", with the number of counted bytes."""
        self._source = source if isinstance(source, BlobPartSource) else None
        self._destination = destination if isinstance(destination, BlobPartDestination) else None
        self._can_retry = isinstance(destination, RetryableDestination) and destination.can_retry()
        self._observer = observer
        self._note = note
        self._cancelled = cancelled

    def write(self, missing: Sequence[Descriptor], graph: Graph) -> NeededVolumes:
        """Write the available parts of incomplete blobs; return the volumes that have the rest.

        Raises:
            IntegrityError: a part is wrong.
            OcistreamError: the destination failed.
        """
        needed: dict[str, None] = {}
        in_order: dict[str, Sequence[str]] = {}
        for blob in missing:
            parts = self._source.parts(blob) if self._source is not None else ()
            if not parts:
                if (reason := graph.omitted_from_source.get(blob.digest)) is not None:
                    needed[reason.name] = None
                continue
            stored = self._write_blob(blob, parts)
            missing_parts = [part for part in parts if part.offset + part.size > stored]
            needed.update(dict.fromkeys(part.volume for part in missing_parts))
            if any(part.blob for part in missing_parts):
                # The available part does not follow the stored bytes, so it is of no use yet.
                in_order[blob.digest] = [part.volume for part in missing_parts]
        return NeededVolumes(tuple(sorted(needed)), in_order)

    def _write_blob(self, blob: Descriptor, parts: Sequence[BlobPart]) -> int:
        """Write the available parts of a blob; return how many bytes are stored from its beginning."""
        stored = counted = 0
        destination = self._destination
        if destination is not None and not any(part.blob for part in parts):
            return destination.stored_size(blob)
        for part in parts if destination is not None else ():
            if part.blob is not None and destination is not None:
                progress = BlobProgress(self._observer, blob, self._cancelled)
                use = partial(_write_part, destination, blob, part.offset, progress)
                try:
                    stored = use_verified(part.blob, use, can_retry=self._can_retry)
                except IntegrityError as error:
                    if not error.message.startswith(part.blob.descriptor.digest):
                        # This is the registry's check of the complete blob.
                        raise
                    raise part_error(blob.digest, part.offset, part.volume, error) from error
                counted += progress.counted
        if stored == blob.size:
            self._note(blob, "copied", counted)
        return stored


def _write_part(
    destination: BlobPartDestination, blob: Descriptor, offset: int, progress: BlobProgress, part: Blob
) -> int:
    return destination.write_part(blob, offset, progress.wrap(part))
