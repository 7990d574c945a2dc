"""Blobs of which a source has some parts only: those are put where the sink can wait for the others.

So volumes can be brought one after the other. A blob that begins in one and ends in another comes in order then; in any
other order its volumes are to be given together.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ocistream.errors import IntegrityError
from ocistream.oci.volumes import part_error
from ocistream.transfer.interfaces import BlobPartDestination, BlobPartSource, RetryableDestination
from ocistream.transfer.missing import NeededVolumes
from ocistream.transfer.progress import BlobProgress
from ocistream.transfer.retry import use_verified

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.transfer.interfaces import Blob, BlobPart, Destination, Observer, Source

__all__ = ["PartWriter"]


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
