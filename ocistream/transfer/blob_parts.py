"""Blobs of which a source has some parts only: those are put where the sink can wait for the others.

So volumes can be brought one after the other. A blob that begins in one and ends in another comes in order then; in any
other order its volumes are to be given together.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ocistream.errors import IntegrityError
from ocistream.oci.volumes import wrong_part
from ocistream.transfer.interfaces import HasParts, TakesAgain, TakesParts
from ocistream.transfer.missing import NeededVolumes
from ocistream.transfer.progress import Watched
from ocistream.transfer.retry import until_right

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.transfer.interfaces import Blob, Observer, Part, Sink, Source

__all__ = ["PartByPart"]


class PartByPart:
    """A source and a sink."""

    def __init__(
        self,
        source: Source,
        sink: Sink,
        observer: Observer,
        note: Callable[[Descriptor, str, int], None],
        cancelled: threading.Event,
    ) -> None:
        """`note` is told of each blob that was "copied", and how many of its bytes were counted."""
        self._source = source if isinstance(source, HasParts) else None
        self._sink = sink if isinstance(sink, TakesParts) else None
        self._again = isinstance(sink, TakesAgain) and sink.takes_again()
        self._observer = observer
        self._note = note
        self._cancelled = cancelled

    def put(self, missing: Sequence[Descriptor], graph: Graph) -> NeededVolumes:
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
                if (reason := graph.left_out.get(blob.digest)) is not None:
                    needed[reason.name] = None
                continue
            reached = self._put(blob, parts)
            lacking = [part for part in parts if part.offset + part.size > reached]
            needed.update(dict.fromkeys(part.volume for part in lacking))
            if any(part.blob for part in lacking):
                # What is at hand is of no use yet.
                in_order[blob.digest] = [part.volume for part in lacking]
        return NeededVolumes(tuple(sorted(needed)), in_order)

    def _put(self, blob: Descriptor, parts: Sequence[Part]) -> int:
        """Put the parts of a blob that are at hand; say how much of it is there, from its beginning on."""
        reached = counted = 0
        sink = self._sink
        if sink is not None and not any(part.blob for part in parts):
            return sink.reached(blob)
        for part in parts if sink is not None else ():
            if part.blob is not None and sink is not None:
                watched = Watched(self._observer, blob, self._cancelled)
                use = partial(_put_part, sink, blob, part.offset, watched)
                try:
                    reached = until_right(part.blob, use, again=self._again)
                except IntegrityError as error:
                    if not error.what.startswith(part.blob.descriptor.digest):
                        # It is what the registry made of them.
                        raise
                    raise wrong_part(blob.digest, part.offset, part.volume, error) from error
                counted += watched.seen
        if reached == blob.size:
            self._note(blob, "copied", counted)
        return reached


def _put_part(sink: TakesParts, blob: Descriptor, offset: int, watched: Watched, part: Blob) -> int:
    return sink.put_part(blob, offset, watched.blob(part))
