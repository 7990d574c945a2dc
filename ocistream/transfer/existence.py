"""What a sink is asked before anything is sent: which blobs it has, or can have without their bytes.

What the source is known to lack comes first, so that whatever neither side has is found out while nothing is changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream.oci.omitted_blobs import VOLUME
from ocistream.streams.workers import each
from ocistream.transfer.interfaces import Gathers, Lacks, Mounts
from ocistream.transfer.missing import NeededVolumes, ShortfallError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.transfer.interfaces import Sink, Source

__all__ = ["Asking"]


class Asking:
    """A sink, and the questions that one transfer has. Several are asked at once, where the sink allows it."""

    def __init__(
        self,
        source: Source,
        sink: Sink,
        note: Callable[[Descriptor, str], None],
        *,
        jobs: int,
        cancelled: threading.Event,
    ) -> None:
        """`note` is told of each blob that was "skipped" or "mounted"; it may be called from any thread."""
        self._source = source
        self._sink = sink
        self._note = note
        self._mounts = sink if isinstance(sink, Mounts) else None
        self._jobs = jobs if sink.parallel else 1
        self._cancelled = cancelled

    def missing_and_others(
        self, graph: Graph, waiting: Sequence[Descriptor]
    ) -> tuple[list[Descriptor], list[Descriptor]]:
        """Take what the source is known to lack; give what is in other volumes, and what it is not known to lack.

        Raises:
            ShortfallError: there is something that neither side has, nor another volume. Nothing was sent or mounted.
        """
        knows = self._source if isinstance(self._source, Lacks) else None
        lacked: list[Descriptor] = []
        others: list[Descriptor] = []
        for blob in waiting:
            known = knows.lacks(blob) if knows else None
            known = blob.digest in graph.left_out if known is None else known
            (lacked if known and blob.digest not in graph.embedded else others).append(blob)
        absent = self._absent(graph)
        self._check(graph, [*absent, *self._out_of_reach(lacked)])
        there = self.take(lacked)
        missing = [*absent, *(blob for blob in lacked if blob.digest not in there)]
        self._check(graph, missing)
        return missing, others

    def take(self, blobs: Sequence[Descriptor]) -> set[str]:
        """Ask for each blob whether it is there, or can be mounted, and have that done; give the digests of those."""
        there: set[str] = set()

        def ask(blob: Descriptor) -> None:
            if self._sink.has(blob):
                self._note(blob, "skipped")
            elif self._mounts is not None and self._mounts.mount(blob, self._source):
                self._note(blob, "mounted")
            else:
                return
            there.add(blob.digest)

        each(ask, blobs, jobs=self._jobs, cancelled=self._cancelled)
        return there

    def _check(self, graph: Graph, missing: Sequence[Descriptor]) -> None:
        reasons = [graph.left_out.get(blob.digest) for blob in missing]
        volumes = sorted({reason.name for reason in reasons if reason is not None and reason.kind == VOLUME})
        if any(reason is None or reason.kind != VOLUME for reason in reasons):
            raise ShortfallError(missing, graph, is_untouched=True)
        if volumes and not isinstance(self._sink, Gathers):
            raise ShortfallError(missing, graph, is_untouched=True, needed=NeededVolumes(volumes, {}))

    def _absent(self, graph: Graph) -> list[Descriptor]:
        """Give the manifests that neither side has."""
        named = {root.descriptor.digest for root in graph.roots}
        named.update(attached.descriptor.digest for attached in graph.all_attached if attached.tag)
        # A name can only be given to a manifest whose bytes are at hand.
        return [m for m in graph.absent if m.digest in named or not self._sink.has_manifest(m)]

    def _out_of_reach(self, blobs: Sequence[Descriptor]) -> list[Descriptor]:
        """Give those that the sink has not, and could not mount."""
        missing: set[str] = set()

        def ask(blob: Descriptor) -> None:
            if not self._sink.has(blob) and not (self._mounts and self._mounts.could_mount(blob, self._source)):
                missing.add(blob.digest)

        each(ask, blobs, jobs=self._jobs, cancelled=self._cancelled)
        return [blob for blob in blobs if blob.digest in missing]
