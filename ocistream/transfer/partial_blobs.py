"""Blobs of which the source has only a part: the rest of an interrupted copy, or the parts in some volumes.

Reads and writes the annotation of index.json that lists such blobs, and writes the available bytes.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, PartialBlobLostError
from ocistream.oci.reference import is_digest, printable
from ocistream.oci.volumes import part_error
from ocistream.streams.chunks import check_chunks_size, verify_chunks
from ocistream.transfer.interfaces import IncompleteSource, TailBlob, VerifiedBlob
from ocistream.transfer.report import NeededVolumes
from ocistream.transfer.verified_blobs import BlobProgress, use_verified

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import BlobPart, Destination, Observer, Source

__all__ = [
    "PARTIAL_BLOBS",
    "PartWriter",
    "format_partial_blobs",
    "parse_partial_blobs",
    "write_tail",
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


def write_tail(destination: Destination, blob: TailBlob, progress: BlobProgress) -> None:
    """Write the tail of a blob.

    The receiver has seen only the beginning, the sender only the end, so neither can tell which one is wrong. The
    caller then sends the complete blob.

    Raises:
        UnsupportedError: the destination stores complete blobs only.
        PartialBlobLostError: the beginning is missing or wrong.
        OcistreamError: the source or the destination failed.
    """

    def opened(start: int = 0, stored: Iterable[Chunk] | None = None) -> Iterator[Chunk]:
        chunks = blob.open(start)
        if stored is None:
            return check_chunks_size(chunks, blob.descriptor, start)
        return verify_chunks(chunks, blob.descriptor, stored)

    tail = VerifiedBlob(blob.descriptor, opened, reopenable=False, is_interruptible=True)
    try:
        destination.write(progress.wrap(tail), blob.start)
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
        self._source = source if isinstance(source, IncompleteSource) else None
        self._destination = destination
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
        traits = self._destination.traits
        if not traits.accepts_parts:
            return 0
        counted = 0
        has_part = False
        for part in parts:
            if part.blob is not None:
                has_part = True
                progress = BlobProgress(self._observer, blob, self._cancelled)
                write = partial(self._write_part, blob, part, progress)
                try:
                    use_verified(part.blob, write, can_retry=traits.can_retry)
                except IntegrityError as error:
                    if not error.message.startswith(part.blob.descriptor.digest):
                        # This is the registry's check of the complete blob.
                        raise
                    raise part_error(blob.digest, part.offset, part.volume, error) from error
                counted += progress.counted
        stored = self._destination.stored([blob], partial=True).get(blob.digest, 0)
        if stored == blob.size and has_part:
            self._note(blob, "copied", counted)
        return stored

    def _write_part(self, blob: Descriptor, part: BlobPart, progress: BlobProgress, verified: VerifiedBlob) -> None:
        verified = progress.wrap(verified)

        def opened(offset: int = 0, stored: Iterable[Chunk] | None = None) -> Iterator[Chunk]:  # noqa: ARG001 - the part has a digest of its own
            return verified.open(offset - part.offset)

        end = part.offset + part.size
        self._destination.write(replace(verified, descriptor=blob, open=opened, end=end), part.offset)
