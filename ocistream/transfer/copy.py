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
from ocistream.errors import ArchiveError, IntegrityError, TruncatedError, UnsupportedError
from ocistream.oci.digest import size_error
from ocistream.oci.referrers import RECOMPRESSED
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
    `prefetch_memory` is the memory for prefetching, in bytes; 0 means one connection for each blob. A failure in one
    of several threads sets `cancelled`, which stops those that wait on it. `rename` returns the graph with other root
    names. `omit` returns the blobs to omit from the output, by digest, with the reason for each.

    With `recompression`, image layers that use another format are recompressed. `plain_layers` is the default for
    archives whose layers are never compressed (those of `docker save`).

    Raises:
        OcistreamError: the first failure; nothing new is visible in the destination.
    """
    run = _Copy(source, destination, observer or NullObserver(), jobs, cancelled or threading.Event())
    run.prefetch_memory = prefetch_memory
    run.rename = rename or run.rename
    run.omit = omit
    run.pipeline.plain_layers = plain_layers
    if recompression is not None:
        run.pipeline.enable_recompression(recompression)
    try:
        return run.run()
    except (IntegrityError, ArchiveError) as error:
        # A source that ends too early proves nothing about the bytes before.
        if not isinstance(error, TruncatedError):
            destination.discard()
        raise


class _Copy:
    """One copy, from top to bottom: resolve, select, begin, plan, move, settle, commit, report."""

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
        self.rename: Callable[[Graph], Graph] = lambda graph: graph
        self.omit: Callable[[Graph], Mapping[str, OmissionReason]] | None = None

    def run(self) -> Report:
        started_at = time.monotonic()
        if self._destination.traits.is_remote:
            graph, source_graph, origins = run_in_thread(self._move_all, self._cancelled)
        else:
            graph, source_graph, origins = self._move_all()
        # Commit in this thread, not in the other one: after an interruption nothing may become visible.
        self._destination.commit(graph)
        return Report(graph, source_graph, self._blob_results(graph), time.monotonic() - started_at, origins)

    def _move_all(self) -> tuple[Graph, Graph, Mapping[str, str]]:
        """Move all blobs; return the written graph, the source's graph, and the source digest of each new manifest."""
        graph = self._select(self._resolve())
        check = ExistenceCheck(
            self._source, self._destination, self.pipeline.add_result, jobs=self._jobs, cancelled=self._cancelled
        )
        # Before anything is written or mounted: a copy that cannot succeed changes nothing.
        lacking, pending = check.split_lacking(graph, self._list_pending(graph))
        self._begin(graph)
        missing = check.find_missing(graph, lacking)
        self._check_recompressible()
        wanted = self._plan(graph, pending, check)
        self._move(wanted)
        graph = self._settle(graph, wanted, missing)
        return self._rewrite(graph)

    # -- resolve -----------------------------------------------------------------------------------------

    def _resolve(self) -> Graph:
        """Resolve the source's graph; after that it is known whether `docker save` wrote the source."""
        graph = self._source.resolve(self.pipeline)
        if graph.has_plain_layers:
            self.pipeline.compress_plain_layers(graph)
        graph = self._limit_to_exported(graph)
        if not graph.has_plain_layers:
            self.pipeline.restore_plain_layers(graph)
        return graph

    def _limit_to_exported(self, graph: Graph) -> Graph:
        """Reduce an index to the platforms that the source has, unless the destination has the others."""
        incomplete_source = self._source if isinstance(self._source, IncompleteSource) else None
        if incomplete_source is None or not any(root.descriptor.is_index for root in graph.roots):
            return graph
        if not (missing := find_not_exported(graph, lambda blob: bool(incomplete_source.is_missing(blob)))):
            return graph
        stored: set[str] = set()
        if self._destination.traits.keeps_blobs:
            # Only which manifests may come: referrers are expected when it is known which platforms are copied.
            self._destination.expect(replace(graph, referrers={}))
            stored = list_stored(self._destination, missing, are_manifests=True)
        return limit_to_exported(graph, {manifest.digest for manifest in missing if manifest.digest not in stored})

    # -- select ------------------------------------------------------------------------------------------

    def _select(self, graph: Graph) -> Graph:
        """Return the part of a graph that is copied, under its new names, and tell the observer of it."""
        graph = self._omit_blobs(self._destination.expect(self._skip_changed_referrers(self.rename(graph))))
        self.pipeline.config_checker.find_configs(graph)
        self.pipeline.plan_recompression(graph)
        self._observer.planned(graph)
        return graph

    def _skip_changed_referrers(self, graph: Graph) -> Graph:
        """Skip referrers of images that are recompressed: these get another digest, and the old one does not arrive."""
        recompressor = self.pipeline.recompressor
        if not graph.referrers or recompressor is None or not self.pipeline.plan_recompression(graph):
            return graph
        changed = recompressor.find_changed_manifests(graph, self.pipeline.layers)
        return graph.without_referrers(
            lambda referrer: referrer.subject in changed or referrer.descriptor.digest in changed, RECOMPRESSED
        )

    def _omit_blobs(self, graph: Graph) -> Graph:
        """Decide which blobs are omitted from the output.

        Manifests are never omitted: they are small, they list the omitted blobs, and a name needs their bytes.
        """
        if self.omit is None:
            return graph
        if not self._destination.traits.can_omit:
            msg = "nothing can be left out of this destination"
            raise UnsupportedError(msg, hint="write an OCI archive or a layout")
        omitted = self.omit(graph)
        # Early blobs are already written, even if the remote side has them.
        remaining = [b.digest for b in graph.blobs if b.digest in omitted and b.digest not in self.pipeline.results]
        return replace(graph, omitted_from_output={digest: omitted[digest] for digest in remaining})

    # -- begin -------------------------------------------------------------------------------------------

    def _begin(self, graph: Graph) -> None:
        if self.pipeline.layers:
            # The destination begins when the digests of the new layers are known (`_rewrite`).
            self.pipeline.new_blob_destination()
        else:
            self._destination.begin(graph)

    # -- plan --------------------------------------------------------------------------------------------

    def _plan(self, graph: Graph, pending: Sequence[Descriptor], check: ExistenceCheck) -> list[Descriptor]:
        """Return which blobs move: those that are not stored, cannot be mounted, and are not in memory."""
        for blob in graph.blobs:
            if blob.digest in graph.omitted_from_output:
                self.pipeline.add_result(blob, "left out")
        # The digest of a recompressed layer is not known yet, so the destination cannot be asked for it.
        check.skip_or_mount([blob for blob in pending if blob.digest not in self.pipeline.layers])
        # Read a config even if the destination has it: its diff_ids are needed to check the recompressed layers.
        configs = self.pipeline.configs
        wanted = [blob for blob in pending if blob.digest not in self.pipeline.results or blob.digest in configs]
        return self._write_from_memory(graph, wanted)

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

    def _check_recompressible(self) -> None:
        """Refuse to recompress a layer that the source omits: only the destination has its bytes."""
        for digest in self.pipeline.layers:
            result = self.pipeline.results.get(digest)
            if result is not None and result.status in {"skipped", "mounted"}:
                msg = f"{digest} must be recompressed, but only the destination has it"
                raise UnsupportedError(msg, hint="leave --compress away: some layers were left out here")

    def _write_from_memory(self, graph: Graph, wanted: list[Descriptor]) -> list[Descriptor]:
        """Write blobs that are also manifests of the graph, or are embedded in a descriptor, from memory.

        Return the blobs that are still to be copied.
        """
        raws = {**graph.embedded, **{manifest.descriptor.digest: manifest.raw for manifest in graph.manifests}}
        for descriptor in wanted:
            if descriptor.digest in raws:
                self.pipeline.transfer_blob(blob_from_bytes(descriptor, raws[descriptor.digest]))
        return [descriptor for descriptor in wanted if descriptor.digest not in raws]

    # -- move --------------------------------------------------------------------------------------------

    def _move(self, wanted: Sequence[Descriptor]) -> None:
        """Move blobs, several at once where both sides allow it. If none is wanted, a pipe is still read to its end."""
        are_recompressed = bool(self.pipeline.layers)
        jobs = self._jobs if self._source.concurrent and self._destination.traits.concurrent else 1
        # Recompressing a layer takes memory of its own, and more than one core.
        jobs = min(jobs, _RECOMPRESS_JOBS) if are_recompressed else jobs
        self.pipeline.concurrency = min(jobs, len(wanted))
        blobs = self._source.blobs(wanted)
        memory = self.prefetch_memory - self._destination.traits.buffer_size * self.pipeline.concurrency
        if memory <= 0 or not self._source.concurrent or self._jobs == 1 or are_recompressed:
            self._move_each(blobs)
            return
        with closing(Prefetcher(self._jobs, memory, self._cancelled)) as prefetcher:
            self._move_each(prefetcher.in_order(blobs) if jobs == 1 else prefetcher.concurrently(blobs))

    def _move_each(self, blobs: Iterator[Blob]) -> None:
        for blob in blobs:
            if blob.descriptor.digest not in self.pipeline.configs:
                blobs = itertools.chain([blob], blobs)
                break
            # Configs come first where blobs are read concurrently. Each is buffered completely and may have megabytes.
            self.pipeline.transfer_blob(blob)
        run_each(self.pipeline.transfer_blob, blobs, jobs=self.pipeline.concurrency, cancelled=self._cancelled)

    # -- settle ------------------------------------------------------------------------------------------

    def _settle(self, graph: Graph, wanted: Sequence[Descriptor], missing: Sequence[Descriptor]) -> Graph:
        """Write what there is of blobs that the source has in part; return the graph without what is missing."""
        needed = self._write_parts(missing, graph) if missing else None
        unavailable = [blob for blob in (*missing, *wanted) if blob.digest not in self.pipeline.results]
        return self._drop_missing(unavailable, graph, needed) if unavailable else graph

    def _write_parts(self, missing: Sequence[Descriptor], graph: Graph) -> NeededVolumes:
        """Write the available parts of blobs that continue in other volumes; return the volumes that have the rest."""
        # Imported here because few archives are split into volumes.
        from ocistream.transfer.partial_blobs import write_parts

        return write_parts(self._source, self._destination, missing, graph, self.pipeline.copy_parts)

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

    def _rewrite(self, graph: Graph) -> tuple[Graph, Graph, Mapping[str, str]]:
        """Return the graph with the new layers and manifests if layers were recompressed, and begin with it."""
        recompressor = self.pipeline.recompressor
        if not self.pipeline.layers or recompressor is None:
            return graph, graph, {}
        for blob in graph.blobs:
            # A config that came before the graph was not recognised as one.
            if blob.digest in self.pipeline.configs and not recompressor.has_config(blob.digest):
                recompressor.add_config(blob.digest, self.pipeline.read_back(blob))
        rewritten, origins = recompressor.rewrite_graph(graph)
        self._destination.begin(rewritten)
        return rewritten, graph, origins

    # -- report ------------------------------------------------------------------------------------------

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
