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
    """Finds the blobs of one transfer that exist at the destination. Asks concurrently if the destination allows it.

    Blobs that the source lacks are asked for first, and nothing is mounted until all of them are found. A refused mount
    opens an upload, and an accepted one changes the repository.
    """

    def __init__(
        self,
        source: Source,
        destination: Destination,
        note: Callable[[Descriptor, str], None],
        *,
        jobs: int,
        cancelled: threading.Event,
    ) -> None:
        """Call `note` for each blob that is "skipped" or "mounted", from any thread."""
        self._source = source
        self._destination = destination
        self._note = note
        self._mounting = destination if isinstance(destination, MountingDestination) else None
        self._jobs = jobs if destination.concurrent else 1
        self._cancelled = cancelled

    def split_missing(self, graph: Graph, pending: Sequence[Descriptor]) -> tuple[list[Descriptor], list[Descriptor]]:
        """Split `pending` into blobs that only other volumes have, and blobs that the source may have.

        Raises:
            MissingBlobsError: neither side nor another volume has a blob. Nothing was sent or mounted.
        """
        incomplete_source = self._source if isinstance(self._source, IncompleteSource) else None
        missing_at_source: list[Descriptor] = []
        remaining: list[Descriptor] = []
        for blob in pending:
            is_missing = incomplete_source.is_missing(blob) if incomplete_source else None
            is_missing = blob.digest in graph.omitted_from_source if is_missing is None else is_missing
            (missing_at_source if is_missing and blob.digest not in graph.embedded else remaining).append(blob)
        absent = self._list_absent_manifests(graph)
        self._check_missing(graph, [*absent, *self._list_unavailable(missing_at_source)])
        existing = self.skip_or_mount(missing_at_source)
        missing = [*absent, *(blob for blob in missing_at_source if blob.digest not in existing)]
        self._check_missing(graph, missing)
        return missing, remaining

    def skip_or_mount(self, blobs: Sequence[Descriptor]) -> set[str]:
        """Skip blobs that exist at the destination, mount those that can be mounted; return the digests of both."""
        existing: set[str] = set()

        def ask(blob: Descriptor) -> None:
            if self._destination.has_blob(blob):
                self._note(blob, "skipped")
            elif self._mounting is not None and self._mounting.mount(blob, self._source):
                self._note(blob, "mounted")
            else:
                return
            existing.add(blob.digest)

        run_each(ask, blobs, jobs=self._jobs, cancelled=self._cancelled)
        return existing

    def _check_missing(self, graph: Graph, missing: Sequence[Descriptor]) -> None:
        reasons = [graph.omitted_from_source.get(blob.digest) for blob in missing]
        # Blobs in other volumes do not stop a transfer into a registry or a layout. Blobs stay there, and the rest may
        # come in a later run. An archive is not started for only a part of them.
        volumes = sorted({reason.name for reason in reasons if reason is not None and reason.kind == VOLUME})
        if any(reason is None or reason.kind != VOLUME for reason in reasons):
            raise MissingBlobsError(missing, graph, is_untouched=True)
        if volumes and not isinstance(self._destination, IncrementalDestination):
            raise MissingBlobsError(missing, graph, is_untouched=True, needed=NeededVolumes(volumes, {}))

    def _list_absent_manifests(self, graph: Graph) -> list[Descriptor]:
        """List the manifests that neither side has."""
        named = {root.descriptor.digest for root in graph.roots}
        named.update(referrer.descriptor.digest for referrer in graph.all_referrers if referrer.tag)
        # A name can only be given to a manifest whose bytes the source has.
        return [
            manifest
            for manifest in graph.absent
            if manifest.digest in named or not self._destination.has_manifest(manifest)
        ]

    def _list_unavailable(self, blobs: Sequence[Descriptor]) -> list[Descriptor]:
        """List the blobs that the destination neither has nor can mount."""
        missing: set[str] = set()

        def ask(blob: Descriptor) -> None:
            if not self._destination.has_blob(blob) and not (
                self._mounting and self._mounting.can_mount(blob, self._source)
            ):
                missing.add(blob.digest)

        run_each(ask, blobs, jobs=self._jobs, cancelled=self._cancelled)
        return [blob for blob in blobs if blob.digest in missing]
