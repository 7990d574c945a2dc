"""Ask the destination which blobs it has or can mount, before anything is sent.

Blobs that the source is known to lack come first, so that a transfer that cannot succeed changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream.oci.omitted_blobs import VOLUME
from ocistream.streams.workers import run_each
from ocistream.transfer.interfaces import IncompleteSource, IncrementalDestination, MountingDestination
from ocistream.transfer.report import MissingBlobsError, NeededVolumes

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.transfer.interfaces import Destination, Source

__all__ = ["ExistenceCheck"]


class ExistenceCheck:
    """A sink, and the questions that one transfer has. Several are asked at once, where the sink allows it."""

    def __init__(
        self,
        source: Source,
        destination: Destination,
        note: Callable[[Descriptor, str], None],
        *,
        jobs: int,
        cancelled: threading.Event,
    ) -> None:
        """`note` is told of each blob that was "skipped" or "mounted"; it may be called from any thread."""
        self._source = source
        self._destination = destination
        self._note = note
        self._mounting = destination if isinstance(destination, MountingDestination) else None
        self._jobs = jobs if destination.concurrent else 1
        self._cancelled = cancelled

    def split_missing(self, graph: Graph, waiting: Sequence[Descriptor]) -> tuple[list[Descriptor], list[Descriptor]]:
        """Take what the source is known to lack; give what is in other volumes, and what it is not known to lack.

        Raises:
            ShortfallError: there is something that neither side has, nor another volume. Nothing was sent or mounted.
        """
        knows = self._source if isinstance(self._source, IncompleteSource) else None
        lacked: list[Descriptor] = []
        others: list[Descriptor] = []
        for blob in waiting:
            known = knows.is_missing(blob) if knows else None
            known = blob.digest in graph.omitted_from_source if known is None else known
            (lacked if known and blob.digest not in graph.embedded else others).append(blob)
        absent = self._list_absent_manifests(graph)
        self._check_missing(graph, [*absent, *self._list_unavailable(lacked)])
        there = self.skip_or_mount(lacked)
        missing = [*absent, *(blob for blob in lacked if blob.digest not in there)]
        self._check_missing(graph, missing)
        return missing, others

    def skip_or_mount(self, blobs: Sequence[Descriptor]) -> set[str]:
        """Ask for each blob whether it is there, or can be mounted, and have that done; give the digests of those."""
        there: set[str] = set()

        def ask(blob: Descriptor) -> None:
            if self._destination.has_blob(blob):
                self._note(blob, "skipped")
            elif self._mounting is not None and self._mounting.mount(blob, self._source):
                self._note(blob, "mounted")
            else:
                return
            there.add(blob.digest)

        run_each(ask, blobs, jobs=self._jobs, cancelled=self._cancelled)
        return there

    def _check_missing(self, graph: Graph, missing: Sequence[Descriptor]) -> None:
        reasons = [graph.omitted_from_source.get(blob.digest) for blob in missing]
        volumes = sorted({reason.name for reason in reasons if reason is not None and reason.kind == VOLUME})
        if any(reason is None or reason.kind != VOLUME for reason in reasons):
            raise MissingBlobsError(missing, graph, is_untouched=True)
        if volumes and not isinstance(self._destination, IncrementalDestination):
            raise MissingBlobsError(missing, graph, is_untouched=True, needed=NeededVolumes(volumes, {}))

    def _list_absent_manifests(self, graph: Graph) -> list[Descriptor]:
        """Give the manifests that neither side has."""
        named = {root.descriptor.digest for root in graph.roots}
        named.update(attached.descriptor.digest for attached in graph.all_referrers if attached.tag)
        # A name can only be given to a manifest whose bytes are at hand.
        return [m for m in graph.absent if m.digest in named or not self._destination.has_manifest(m)]

    def _list_unavailable(self, blobs: Sequence[Descriptor]) -> list[Descriptor]:
        """Give those that the sink has not, and could not mount."""
        missing: set[str] = set()

        def ask(blob: Descriptor) -> None:
            if not self._destination.has_blob(blob) and not (
                self._mounting and self._mounting.can_mount(blob, self._source)
            ):
                missing.add(blob.digest)

        run_each(ask, blobs, jobs=self._jobs, cancelled=self._cancelled)
        return [blob for blob in blobs if blob.digest in missing]
