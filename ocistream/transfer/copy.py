"""Copy a source to a destination: resolve the graph, check existing blobs, copy the others, then commit.

How one blob is copied is decided in pipeline.py.
"""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, UnsupportedError
from ocistream.oci.referrers import RECOMPRESSED
from ocistream.streams.chunks import size_error
from ocistream.streams.workers import DEFAULT_JOBS, run_each, run_in_thread
from ocistream.transfer.existing_blobs import ExistenceCheck, list_stored
from ocistream.transfer.incomplete_indexes import find_not_exported, limit_to_exported
from ocistream.transfer.interfaces import Blob, IncompleteSource, NullObserver
from ocistream.transfer.pipeline import BlobPipeline
from ocistream.transfer.prefetch import Prefetcher
from ocistream.transfer.report import BlobResult, MissingBlobsError, Report
from ocistream.transfer.verified_blobs import blob_from_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.oci.omitted_blobs import OmissionReason
    from ocistream.transfer.interfaces import Destination, Observer, Source
    from ocistream.transfer.recompress import Recompression
    from ocistream.transfer.report import NeededVolumes

__all__ = ["Report", "copy"]

#: How many layers are recompressed at once. Each one takes its own memory, and zstd runs two threads for it.
_RECOMPRESS_JOBS = 2


def copy(  # noqa: PLR0913 - all but two are options, given by name
    source: Source,
    destination: Destination,
    observer: Observer | None = None,
    *,
    jobs: int = DEFAULT_JOBS,
    prefetch_memory: int = limits.PREFETCH_MEMORY,
    cancelled: threading.Event | None = None,
    rename: Callable[[Graph], Graph] | None = None,
    omit: Callable[[Graph], Mapping[str, OmissionReason]] | None = None,
    recompression: Recompression | None = None,
    plain_layers: Recompression | None = None,
) -> Report:
    """Copy the images of `source` to `destination`. Nothing becomes visible before all blobs are verified.

    Both locations stay open.

    `jobs` bounds how many blobs move at once, where both locations allow it, and how many connections fetch them.
    `prefetch_memory` is the memory for prefetching, in bytes; 0 means one connection for each blob. The function sets
    `cancelled` when the transfer fails, to stop other threads that wait on it. `rename` returns the graph with other
    root names. `omit` returns the blobs to omit from the output, by digest, with the reason for each.

    With `recompression`, image layers that use another format are recompressed. `plain_layers` is the default for
    archives whose layers are never compressed (those of `docker save`).

    Raises:
        OcistreamError: the first failure; nothing new is visible in the destination.
    """
    transfer = _Transfer(source, destination, observer or NullObserver(), jobs, cancelled or threading.Event())
    transfer.prefetch_memory = prefetch_memory
    transfer.omit = omit
    transfer.pipeline.plain_layers = plain_layers
    if recompression is not None:
        transfer.pipeline.enable_recompression(recompression)
    try:
        return transfer.run(rename)
    except (IntegrityError, ArchiveError):
        destination.discard()
        raise


class _Transfer:
    """The state of one copy."""

    def __init__(
        self, source: Source, destination: Destination, observer: Observer, jobs: int, cancelled: threading.Event
    ) -> None:
        self._source = source
        self._destination = destination
        self._observer = observer
        self._jobs = jobs
        self._cancelled = cancelled
        #: The path of each blob.
        self.pipeline = BlobPipeline(destination, observer, cancelled)
        #: Memory for prefetching, in bytes.
        self.prefetch_memory = 0
        self.omit: Callable[[Graph], Mapping[str, OmissionReason]] | None = None

    def run(self, rename: Callable[[Graph], Graph] | None) -> Report:
        started_at = time.monotonic()
        if self._destination.traits.is_remote:
            graph, source, origins = run_in_thread(lambda: self._copy_blobs(rename), self._cancelled)
        else:
            graph, source, origins = self._copy_blobs(rename)
        # Commit in this thread, not in the other one: after an interruption nothing may become visible.
        self._destination.commit(graph)
        return Report(graph, source, self._blob_results(graph), time.monotonic() - started_at, origins)

    def _copy_blobs(self, rename: Callable[[Graph], Graph] | None) -> tuple[Graph, Graph, Mapping[str, str]]:
        """Copy all blobs; return the written graph, the source's graph, and the source digest of each new manifest."""
        graph = self._resolve()
        if rename is not None:
            graph = rename(graph)
        graph = source = self._omit_blobs(self._skip_referrers(graph))
        self.pipeline.config_checker.find_configs(graph)
        self._observer.planned(graph)
        if self.pipeline.plan_recompression(graph):
            # The destination begins with the digests of the new layers.
            self.pipeline.new_blob_destination()
        else:
            self._destination.begin(graph)
        for blob in graph.blobs if graph.omitted_from_output else ():
            if blob.digest in graph.omitted_from_output:
                self.pipeline.add_result(blob, "left out")
        existence_check = ExistenceCheck(
            self._source, self._destination, self.pipeline.add_result, jobs=self._jobs, cancelled=self._cancelled
        )
        missing, pending = existence_check.split_missing(graph, self._list_pending(graph))
        self._check_recompressible()
        # The digest of a recompressed layer is not known yet, so the destination cannot be asked for it.
        existence_check.skip_or_mount([blob for blob in pending if blob.digest not in self.pipeline.layers])
        # Read a config even if the destination has it: its diff_ids are needed to check the recompressed layers.
        configs = self.pipeline.configs
        wanted = [blob for blob in pending if blob.digest not in self.pipeline.results or blob.digest in configs]
        # Even if no blob is missing any more, a pipe must be read to its end.
        wanted = self._write_manifests_as_blobs(graph, wanted)
        self._write_all(wanted)
        needed = self._write_parts(missing, graph) if missing else None
        missing = [blob for blob in missing if blob.digest not in self.pipeline.results]
        if unavailable := [*missing, *(blob for blob in wanted if blob.digest not in self.pipeline.results)]:
            graph = source = self._drop_missing(unavailable, graph, needed)
        origins: Mapping[str, str] = {}
        if self.pipeline.layers and (recompressor := self.pipeline.recompressor) is not None:
            for blob in graph.blobs:
                # A config that came before the graph was not recognised as one.
                if blob.digest in configs and not recompressor.has_config(blob.digest):
                    recompressor.add_config(blob.digest, self.pipeline.read_back(blob))
            graph, origins = recompressor.rewrite_graph(graph)
            self._destination.begin(graph)
        return graph, source, origins

    def _check_recompressible(self) -> None:
        """Refuse to recompress a layer that the source omits: only the destination has its bytes."""
        for digest in self.pipeline.layers:
            result = self.pipeline.results.get(digest)
            if result is not None and result.status in {"skipped", "mounted"}:
                msg = f"{digest} is to be compressed anew, and only the destination has it"
                raise UnsupportedError(msg, hint="leave --compress away: some layers were left out here")

    def _omit_blobs(self, graph: Graph) -> Graph:
        """Decide which blobs are omitted from the output.

        Manifests are never omitted: they are small, they list the omitted blobs, and a name needs their bytes.
        """
        if self.omit is None:
            return graph
        omitted = self.omit(graph)
        # Early blobs are already written, even if the remote side has them.
        remaining = [b.digest for b in graph.blobs if b.digest in omitted and b.digest not in self.pipeline.results]
        return replace(graph, omitted_from_output={digest: omitted[digest] for digest in remaining})

    def _blob_results(self, graph: Graph) -> list[BlobResult]:
        """List the result of each blob that was written."""
        recompressed = {}
        if self.pipeline.recompressor is not None:
            recompressed = {
                layer.result.digest: layer
                for digest in self.pipeline.layers
                if (layer := self.pipeline.recompressor.find_result(digest))
            }
        # For early blobs only the digest was known, so report the graph's descriptor.
        return [
            BlobResult(blob, "converted", recompressed[blob.digest].source.digest)
            if blob.digest in recompressed
            else replace(self.pipeline.results[blob.digest], descriptor=blob)
            for blob in graph.blobs
        ]

    def _resolve(self) -> Graph:
        """Resolve the source's graph; after that it is known whether `docker save` wrote the source."""
        graph = self._source.resolve(self.pipeline)
        self.pipeline.is_interruptible = graph.resume_offsets is not None
        self.pipeline.resume_offsets = graph.resume_offsets or {}
        if graph.has_plain_layers:
            self.pipeline.compress_plain_layers(graph)
        graph = self._limit_to_exported(graph)
        if not graph.has_plain_layers:
            self.pipeline.restore_plain_layers(graph)
        return graph

    # -- the steps ---------------------------------------------------------------------------------------

    def _skip_referrers(self, graph: Graph) -> Graph:
        """Skip referrers that the destination cannot store, or whose subject changes.

        An image that is recompressed gets another digest, so its signatures would refer to one that does not arrive. A
        tag of cosign's that the registry uses for something else is not overwritten.
        """
        if graph.referrers and self.pipeline.recompressor is not None and self.pipeline.plan_recompression(graph):
            changed = self.pipeline.recompressor.find_changed_manifests(graph, self.pipeline.layers)
            graph = graph.without_referrers(
                lambda referrer: referrer.subject in changed or referrer.descriptor.digest in changed, RECOMPRESSED
            )
        return self._destination.expect(graph)

    def _limit_to_exported(self, graph: Graph) -> Graph:
        """Reduce an index to the platforms that the source has, unless the destination has the others."""
        incomplete_source = self._source if isinstance(self._source, IncompleteSource) else None
        if incomplete_source is None or not any(root.descriptor.is_index for root in graph.roots):
            return graph
        if not (missing := find_not_exported(graph, lambda blob: bool(incomplete_source.is_missing(blob)))):
            return graph
        self._destination.expect(graph)
        stored = list_stored(self._destination, missing, are_manifests=True)
        return limit_to_exported(graph, {manifest.digest for manifest in missing if manifest.digest not in stored})

    def _drop_missing(self, unavailable: Sequence[Descriptor], graph: Graph, needed: NeededVolumes | None) -> Graph:
        """Reduce the graph to what a pipe really had, if only platforms that were not exported are missing.

        A destination that has already written the index cannot change it, so this is an error there.

        Raises:
            MissingBlobsError: other blobs are missing as well.
        """
        unavailable_digests = {blob.digest for blob in unavailable}
        if (
            needed is None
            and self._destination.traits.keeps_blobs
            and not graph.omitted_from_output
            and not self.pipeline.layers
        ):
            missing = find_not_exported(graph, lambda blob: blob.digest in unavailable_digests)
            exported = limit_to_exported(graph, {manifest.digest for manifest in missing})
            if unavailable_digests.isdisjoint(blob.digest for blob in (*exported.blobs, *exported.absent)):
                self._destination.begin(exported)
                return exported
        raise MissingBlobsError(unavailable, graph, is_untouched=False, needed=needed)

    def _list_pending(self, graph: Graph) -> list[Descriptor]:
        """List the blobs that did not come early, and check those that did."""
        pending: list[Descriptor] = []
        for blob in graph.blobs:
            result = self.pipeline.results.get(blob.digest)
            if blob.digest in graph.omitted_from_output:
                continue
            if result is None:
                pending.append(blob)
            elif result.status == "converted" and blob.digest not in self.pipeline.layers:
                # The media type of an early blob was unknown, so it was recompressed by its first bytes. Fail rather
                # than write a blob that was not asked for.
                msg = f"{blob.digest} looked like a layer, and was compressed anew, before it was known to be none"
                raise UnsupportedError(msg, hint="read the archive from a file instead of a pipe")
            elif result.descriptor.size != blob.size:
                raise size_error(blob, result.descriptor.size)
            else:
                self.pipeline.config_checker.check_early(blob)
        return pending

    def _write_manifests_as_blobs(self, graph: Graph, wanted: list[Descriptor]) -> list[Descriptor]:
        """Write blobs that are also manifests of the graph, or are embedded in a descriptor, from memory.

        Return the blobs that are still to be copied.
        """
        raws = {**graph.embedded, **{manifest.descriptor.digest: manifest.raw for manifest in graph.manifests}}
        for descriptor in wanted:
            if descriptor.digest in raws:
                self.pipeline.transfer_blob(blob_from_bytes(descriptor, raws[descriptor.digest]))
        return [descriptor for descriptor in wanted if descriptor.digest not in raws]

    def _write_all(self, wanted: list[Descriptor]) -> None:
        jobs = self._jobs if self._source.concurrent and self._destination.traits.concurrent else 1
        # Recompressing a layer takes memory of its own, and more than one core.
        jobs = min(jobs, _RECOMPRESS_JOBS) if self.pipeline.layers else jobs
        self.pipeline.concurrency = min(jobs, len(wanted))
        blobs = self._source.blobs(wanted)
        memory = self.prefetch_memory - self._destination.traits.buffer_size * self.pipeline.concurrency
        if not (memory > 0 and self._source.concurrent and self._jobs > 1) or self.pipeline.layers:
            self._write_each(blobs, jobs)
            return
        with closing(Prefetcher(self._jobs, memory, self._cancelled)) as prefetcher:
            self._write_each(prefetcher.in_order(blobs) if jobs == 1 else prefetcher.concurrently(blobs), jobs)

    def _write_each(self, blobs: Iterator[Blob], jobs: int) -> None:
        for blob in blobs:
            if blob.descriptor.digest not in self.pipeline.configs:
                blobs = itertools.chain([blob], blobs)
                break
            # Configs come first where blobs are read concurrently. Each is buffered completely and may have megabytes.
            self.pipeline.transfer_blob(blob)
        run_each(self.pipeline.transfer_blob, blobs, jobs=jobs, cancelled=self._cancelled)

    def _write_parts(self, missing: Sequence[Descriptor], graph: Graph) -> NeededVolumes:
        """Write the available parts of blobs that continue in other volumes; return the volumes that have the rest."""
        # Imported here because few archives are split into volumes.
        from ocistream.transfer.partial_blobs import PartWriter

        parts = PartWriter(self._source, self._destination, self._observer, self.pipeline.add_result, self._cancelled)
        return parts.write(missing, graph)
