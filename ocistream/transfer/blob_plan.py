"""Plan what happens to each blob of a graph: omit, recompress, check or write; then ask which blobs exist.

The destination is asked for absent blobs before `begin`, and for the others after it.

A blob is *pending* if it must be written and did not come before the graph. A pending blob is *absent* if the source
lacks it, and *missing* if the destination lacks it too. It is *wanted* if the source must send it. Because absent blobs
are asked for first, a transfer that cannot succeed changes nothing. `verify` and `inspect` have no destination: what
their documents call missing is absent. What became of each blob is in `report.BlobResults`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import UnsupportedError
from ocistream.oci.descriptor import size_error
from ocistream.oci.omitted_blobs import VOLUME
from ocistream.streams.workers import run_each
from ocistream.transfer.interfaces import MountingDestination
from ocistream.transfer.report import MissingBlobsError, NeededVolumes

if TYPE_CHECKING:
    import threading
    from collections.abc import Collection, Mapping, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.transfer.interfaces import Destination, Source
    from ocistream.transfer.recompress import Recompressor
    from ocistream.transfer.report import BlobResults


class Action(Enum):
    """What happens to a blob of the graph. All but OMIT, RECOMPRESS and READ apply if the destination lacks it."""

    #: The output omits it on purpose.
    OMIT = auto()
    #: A layer gets another compression, and so another digest.
    RECOMPRESS = auto()
    #: A config is read, to check recompressed layers by its diff_ids, and written if the destination lacks it.
    READ = auto()
    #: A layer is written if it is compressed as its media type says.
    CHECK_COMPRESSION = auto()
    #: A config is written if it is valid JSON.
    CHECK_JSON = auto()
    #: It is written as it is.
    WRITE = auto()


@dataclass(frozen=True, slots=True)
class BlobPlan:
    """What happens to the blobs of a graph, by digest.

    `pending` are the blobs that did not come before the graph and are not omitted. `contents` are the bytes of blobs
    that are in memory: they are manifests of the graph too, or embedded in a descriptor. `recompressed` are the digests
    of the layers that are recompressed, or were before the graph was known.
    """

    actions: Mapping[str, Action]
    pending: tuple[Descriptor, ...]
    contents: Mapping[str, bytes]
    recompressed: Sequence[str]


def find_recompressed(graph: Graph, recompressor: Recompressor | None, results: BlobResults) -> set[str]:
    """Return the digests of the layers to recompress.

    Early blobs were handled by their first bytes, and may have another compression than their media type says.
    """
    if recompressor is None:
        return set()
    return {
        digest
        for digest in recompressor.find_layers(graph)
        if results.find(digest) is None or recompressor.results.get(digest)
    }


def plan_blobs(
    graph: Graph, configs: Collection[str], recompressor: Recompressor | None, results: BlobResults
) -> BlobPlan:
    """Return the plan for a graph; `configs` are the digests of those configs that must be JSON if small."""
    actions = dict.fromkeys((blob.digest for blob in graph.blobs), Action.WRITE)

    def assign(digests: Collection[str], action: Action) -> None:
        actions.update((digest, action) for digest in digests if digest in actions)

    small = {blob.digest for blob in graph.blobs if blob.size <= limits.MAX_PARSED_CONFIG}
    assign(small.intersection(configs), Action.CHECK_JSON)
    if recompressor is not None:
        if not recompressor.is_plain_only:
            # If only plain layers change, the others are copied unchecked.
            assign(recompressor.find_unchanged_layers(graph), Action.CHECK_COMPRESSION)
        assign(recompressor.find_configs(graph), Action.READ)
        assign(find_recompressed(graph, recompressor, results), Action.RECOMPRESS)
    assign(graph.omitted_from_output, Action.OMIT)
    pending: list[Descriptor] = []
    for blob in graph.blobs:
        action, result = actions[blob.digest], results.find(blob.digest)
        if action is Action.OMIT:
            continue
        if result is None:
            pending.append(blob)
        elif result.status == "converted" and action is not Action.RECOMPRESS:
            # The media type of an early blob was unknown, so it was recompressed by its first bytes. Fail rather than
            # write a blob that was not asked for.
            msg = f"{blob.digest} looked like a layer and was recompressed before the index showed that it is not one"
            raise UnsupportedError(msg, hint="read the archive from a file instead of a pipe or a compressed file")
        elif result.descriptor.size != blob.size:
            raise size_error(blob, result.descriptor.size)
    contents = {**graph.embedded, **{manifest.descriptor.digest: manifest.raw for manifest in graph.manifests}}
    recompressed = [digest for digest, action in actions.items() if action is Action.RECOMPRESS]
    return BlobPlan(actions, tuple(pending), contents, recompressed)


class ExistenceCheck:
    """Finds the blobs of one transfer that exist at the destination, and mounts those that can be mounted.

    Absent blobs are asked for first, and nothing is mounted until all of them are found. A refused mount
    opens an upload, and an accepted one changes the repository.
    """

    def __init__(
        self,
        source: Source,
        destination: Destination,
        results: BlobResults,
        *,
        jobs: int,
        cancelled: threading.Event,
        is_dry_run: bool,
    ) -> None:
        """Add a result for each blob that is "skipped" or "mounted". `jobs` mounts run at once.

        In a dry run nothing is mounted: a blob counts as "mounted" if it could be.
        """
        self._source = source
        self._destination = destination
        self._results = results
        self._mounting = destination if isinstance(destination, MountingDestination) else None
        self._jobs = jobs
        self._cancelled = cancelled
        self._is_dry_run = is_dry_run
        #: Manifests that neither side has. `split_absent` finds them for `mount_absent`.
        self._missing_manifests: list[Descriptor] = []
        #: Digests of the absent blobs that the destination has.
        self._stored_absent: set[str] = set()

    def split_absent(
        self, graph: Graph, pending: Sequence[Descriptor], recompressed: Collection[str]
    ) -> tuple[list[Descriptor], list[Descriptor]]:
        """Split `pending` into absent blobs, and blobs that the source may have.

        Ask the destination for the absent blobs, and change nothing there; `mount_absent` uses the answers.

        Raises:
            MissingBlobsError: neither side nor another volume has a blob.
            UnsupportedError: only the destination has a blob whose digest is in `recompressed`.
        """
        absent: list[Descriptor] = []
        remaining: list[Descriptor] = []
        for blob in pending:
            is_absent = self._source.is_absent(blob)
            is_absent = blob.digest in graph.omitted_from_source if is_absent is None else is_absent
            (absent if is_absent and blob.digest not in graph.embedded else remaining).append(blob)
        named = {root.descriptor.digest for root in graph.roots}
        named.update(referrer.descriptor.digest for referrer in graph.all_referrers if referrer.tag)
        # A name can only be given to a manifest whose bytes the source has.
        stored = self._destination.stored([manifest for manifest in graph.absent if manifest.digest not in named])
        self._missing_manifests = [manifest for manifest in graph.absent if manifest.digest not in stored]
        self._stored_absent = self._destination.stored(absent)
        missing = self._list_unmountable([blob for blob in absent if blob.digest not in self._stored_absent])
        self._check_missing(graph, [*self._missing_manifests, *missing])
        for blob in absent:
            if blob.digest in recompressed and blob not in missing:
                msg = f"{blob.digest} must be recompressed, but only the destination has it"
                raise UnsupportedError(msg, hint="omit --compress: some layers were omitted from the source")
        return absent, remaining

    def mount_absent(self, graph: Graph, absent: Sequence[Descriptor]) -> list[Descriptor]:
        """Skip or mount the absent blobs; return those that only other volumes have."""
        existing = self.skip_or_mount(absent, self._stored_absent)
        missing = [*self._missing_manifests, *(blob for blob in absent if blob.digest not in existing)]
        self._check_missing(graph, missing)
        return missing

    def skip_or_mount(self, blobs: Sequence[Descriptor], stored: set[str]) -> set[str]:
        """Skip the stored blobs, and mount others that can be mounted; return the digests of both."""
        for blob in blobs:
            if blob.digest in stored:
                self._results.add(blob, "skipped")
        mounted: set[str] = set()
        if (mounting := self._mounting) is not None:
            try_to_mount = mounting.can_mount if self._is_dry_run else mounting.mount

            def mount(blob: Descriptor) -> None:
                if try_to_mount(blob, self._source):
                    self._results.add(blob, "mounted")
                    mounted.add(blob.digest)

            unstored = [blob for blob in blobs if blob.digest not in stored]
            run_each(mount, unstored, jobs=self._jobs, cancelled=self._cancelled)
        return stored | mounted

    def _check_missing(self, graph: Graph, missing: Sequence[Descriptor]) -> None:
        reasons = [graph.omitted_from_source.get(blob.digest) for blob in missing]
        # Blobs in other volumes do not stop a transfer into a registry or a layout. Blobs stay there, and the rest may
        # come in a later run. An archive is not started for only a part of them.
        if any(reason is None or reason.kind != VOLUME for reason in reasons):
            raise MissingBlobsError(missing, graph, is_untouched=not self._results.has_written)
        if missing and not self._destination.traits.keeps_blobs:
            volumes = {reason.name for reason in reasons if reason is not None}
            # The reason names one volume of a split blob.
            volumes.update(part.volume for blob in missing for part in self._source.parts(blob) if part.blob is None)
            needed = NeededVolumes(sorted(volumes), {})
            raise MissingBlobsError(missing, graph, is_untouched=not self._results.has_written, needed=needed)

    def _list_unmountable(self, blobs: Sequence[Descriptor]) -> list[Descriptor]:
        """List the blobs that the destination cannot mount."""
        if (mounting := self._mounting) is None:
            return [*blobs]
        unmountable: set[str] = set()

        def ask(blob: Descriptor) -> None:
            if not mounting.can_mount(blob, self._source):
                unmountable.add(blob.digest)

        run_each(ask, blobs, jobs=self._jobs, cancelled=self._cancelled)
        return [blob for blob in blobs if blob.digest in unmountable]
