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

#: The annotation of an `index.json` that says it.
PARTIAL_BLOBS: Final = "vnd.ocistream.begun"

_OFFSET: Final = re.compile(r"[1-9][0-9]{0,17}\Z")


def format_partial_blobs(begun: Mapping[str, int]) -> str:
    """Write the annotation's text: digests, and how many bytes the other side has."""
    return "\n".join(f"{digest} {offset}" for digest, offset in sorted(begun.items()))


def parse_partial_blobs(notes: Mapping[str, str]) -> dict[str, int] | None:
    """Read the annotation; None where there is none.

    Raises:
        ArchiveError: it is malformed.
    """
    text = notes.get(PARTIAL_BLOBS)
    if text is None:
        return None
    found: dict[str, int] = {}
    lines = text.split("\n", limits.MAX_RESUMABLE_BLOBS) if text else []
    for line in lines:
        digest, _, offset = line.partition(" ")
        if (
            len(lines) > limits.MAX_RESUMABLE_BLOBS
            or not is_digest(digest)
            or not _OFFSET.match(offset)
            or digest in found
        ):
            msg = f"index.json has a malformed annotation {PARTIAL_BLOBS}: {printable(line, 160)!r}"
            raise ArchiveError(msg)
        found[digest] = int(offset)
    return found


def chunks_from(chunks: Iterator[Chunk], offset: int) -> Iterator[Chunk]:
    """Pass on what comes from `offset` on, in bytes. `chunks` is closed at the end."""
    left = offset
    with closing_chunks(chunks):
        for chunk in chunks:
            if left < len(chunk):
                yield memoryview(chunk)[left:] if left else chunk
            left = max(0, left - len(chunk))


def write_rest(destination: Destination, blob: Blob, watched: BlobProgress) -> None:
    """Put a blob whose source begins at `blob.start`.

    Raises:
        UnsupportedError: the sink never has the beginning of a blob.
        LostBeginningError: it has not that of this one, or another one than it should.
        OcistreamError: the source or the sink failed.
    """
    if not isinstance(destination, ResumableDestination):
        msg = f"{blob.descriptor.digest}: only the end of it comes, and nothing can be gone on with here"
        raise UnsupportedError(msg)

    def opened_at(offset: int) -> Iterator[Chunk]:
        return check_chunks_size(chunks_from(blob.open(), offset - blob.offset), blob.descriptor, offset)

    def resumed(held: Iterator[Chunk], size: int) -> Iterator[Chunk]:
        return verify_chunks(chunks_from(blob.open(), size - blob.offset), blob.descriptor, held)

    try:
        destination.write_rest(watched.wrap(replace(blob, open_at=opened_at, resume=resumed)))
    except IntegrityError as error:
        msg = f"{error.message}: its beginning was there, and its end has come"
        raise PartialBlobLostError(msg, hint="run the same command again: all of it is sent then") from error


class PartWriter:
    """A source and a sink."""

    def __init__(
        self,
        source: Source,
        destination: Destination,
        observer: Observer,
        note: Callable[[Descriptor, str, int], None],
        cancelled: threading.Event,
    ) -> None:
        """`note` is told of each blob that was "copied", and how many of its bytes were counted."""
        self._source = source if isinstance(source, BlobPartSource) else None
        self._destination = destination if isinstance(destination, BlobPartDestination) else None
        self._can_retry = isinstance(destination, RetryableDestination) and destination.can_retry()
        self._observer = observer
        self._note = note
        self._cancelled = cancelled

    def write(self, missing: Sequence[Descriptor], graph: Graph) -> NeededVolumes:
        """Put what there is of blobs that are not there whole, and say in which volumes the rest is.

        Raises:
            IntegrityError: a part is wrong.
            OcistreamError: the sink failed.
        """
        needed: dict[str, None] = {}
        in_order: dict[str, Sequence[str]] = {}
        for blob in missing:
            parts = self._source.parts(blob) if self._source is not None else ()
            if not parts:
                if (reason := graph.omitted_from_source.get(blob.digest)) is not None:
                    needed[reason.name] = None
                continue
            reached = self._write_blob(blob, parts)
            lacking = [part for part in parts if part.offset + part.size > reached]
            needed.update(dict.fromkeys(part.volume for part in lacking))
            if any(part.blob for part in lacking):
                # What is at hand is of no use yet.
                in_order[blob.digest] = [part.volume for part in lacking]
        return NeededVolumes(tuple(sorted(needed)), in_order)

    def _write_blob(self, blob: Descriptor, parts: Sequence[BlobPart]) -> int:
        """Put the parts of a blob that are at hand; say how much of it is there, from its beginning on."""
        reached = counted = 0
        sink = self._destination
        if sink is not None and not any(part.blob for part in parts):
            return sink.stored_size(blob)
        for part in parts if sink is not None else ():
            if part.blob is not None and sink is not None:
                watched = BlobProgress(self._observer, blob, self._cancelled)
                use = partial(_write_part, sink, blob, part.offset, watched)
                try:
                    reached = use_verified(part.blob, use, again=self._can_retry)
                except IntegrityError as error:
                    if not error.message.startswith(part.blob.descriptor.digest):
                        # It is what the registry made of them.
                        raise
                    raise part_error(blob.digest, part.offset, part.volume, error) from error
                counted += watched.counted
        if reached == blob.size:
            self._note(blob, "copied", counted)
        return reached


def _write_part(sink: BlobPartDestination, blob: Descriptor, offset: int, watched: BlobProgress, part: Blob) -> int:
    return sink.write_part(blob, offset, watched.wrap(part))
