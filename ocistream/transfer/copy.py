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
from ocistream.oci.referrers import PLATFORM_FILTERED, RECOMPRESSED
from ocistream.streams.chunks import size_error
from ocistream.streams.workers import DEFAULT_JOBS, run_each, run_in_thread
from ocistream.transfer.blob_wrappers import blob_from_bytes
from ocistream.transfer.existing_blobs import ExistenceCheck
from ocistream.transfer.incomplete_indexes import find_not_exported, limit_to_exported
from ocistream.transfer.interfaces import (
    Blob,
    BufferingDestination,
    DiscardableDestination,
    ExpectingDestination,
    GracefullyCancelledDestination,
    IncompleteSource,
    IncrementalDestination,
    NoReferrersDestination,
    NullObserver,
    OmittingDestination,
    ReferrerTagGuard,
)
from ocistream.transfer.pipeline import BlobPipeline
from ocistream.transfer.prefetch import Prefetcher
from ocistream.transfer.report import BlobResult, MissingBlobsError, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.oci.omitted_blobs import OmissionReason
    from ocistream.transfer.interfaces import Destination, Observer, Source
    from ocistream.transfer.recompress import Recompression
    from ocistream.transfer.report import NeededVolumes

__all__ = ["Report", "copy"]

#: How many blobs move at once where layers are compressed anew.
_RECOMPRESS_JOBS = 2


def copy(  # noqa: PLR0913 - all but two are options, given by name
    source: Source,
    destination: Destination,
    observer: Observer | None = None,
    *,
    jobs: int = DEFAULT_JOBS,
    ahead: int = limits.PREFETCH_MEMORY,
    cancelled: threading.Event | None = None,
    rename: Callable[[Graph], Graph] | None = None,
    leave_out: Callable[[Graph], Mapping[str, OmissionReason]] | None = None,
    recompression: Recompression | None = None,
    bare_layers: Recompression | None = None,
) -> Report:
    """Move everything that `source` has been asked for into `sink`, and make it visible only when all of it is there.

    `jobs` bounds how many blobs move at once, where both sides allow it, and over how many connections they come;
    `ahead` is how many bytes those may fetch before they are wanted, 0 for one connection a blob. `cancelled` is set
    when the transfer fails, so that whatever else waits on it stops waiting. `rename` may give the roots other names,
    and `leave_out` says of which blobs, by digest, what is written is to be without, and why.
    With `recompression` the layers of images are compressed anew on the way, where they are not so already;
    `bare_layers` is what then holds, if nothing else does, for archives that never compress theirs (`docker save`'s).
    Both ends are left open.

    Raises:
        OcistreamError: whatever went wrong first; nothing new is visible in the sink then.
    """
    transfer = _Transfer(source, destination, observer or NullObserver(), jobs, cancelled or threading.Event())
    transfer.prefetch_memory = ahead
    transfer.omit = leave_out
    transfer.pipeline.plain_layers = bare_layers
    if recompression is not None:
        transfer.pipeline.enable_recompression(recompression)
    try:
        return transfer.run(rename)
    except (IntegrityError, ArchiveError):
        if isinstance(destination, DiscardableDestination):
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
        #: Each blob on its way.
        self.pipeline = BlobPipeline(destination, observer, cancelled)
        #: How many bytes may be fetched before they are wanted.
        self.prefetch_memory = 0
        self.omit: Callable[[Graph], Mapping[str, OmissionReason]] | None = None

    def run(self, rename: Callable[[Graph], Graph] | None) -> Report:
        began = time.monotonic()
        if isinstance(self._destination, GracefullyCancelledDestination) and self._destination.is_cancelled_gracefully:
            graph, source, origins = run_in_thread(lambda: self._copy_blobs(rename), self._cancelled)
        else:
            graph, source, origins = self._copy_blobs(rename)
        # Not apart: after an interruption nothing becomes visible any more.
        self._destination.commit(graph)
        return Report(graph, source, self._blob_results(graph), time.monotonic() - began, origins)

    def _copy_blobs(self, rename: Callable[[Graph], Graph] | None) -> tuple[Graph, Graph, Mapping[str, str]]:
        """Move all blobs; return what is to be visible, what the source had, and what each new manifest was made of."""
        graph = self._resolve()
        if rename is not None:
            graph = rename(graph)
        graph = source = self._omit_blobs(self._skip_referrers(graph))
        self.pipeline.config_checker.find_configs(graph)
        self._observer.planned(graph)
        if self.pipeline.plan_recompression(graph):
            self.pipeline.new_blob_destination().expect(graph)
        else:
            self._destination.begin(graph)
        for blob in graph.blobs if graph.omitted_from_output else ():
            if blob.digest in graph.omitted_from_output:
                self.pipeline.add_result(blob, "left out")
        asking = ExistenceCheck(
            self._source, self._destination, self.pipeline.add_result, jobs=self._jobs, cancelled=self._cancelled
        )
        missing, waiting = asking.split_missing(graph, self._list_pending(graph))
        self._check_recompressible()
        # Of a layer that is compressed anew, nobody knows yet what it becomes.
        asking.skip_or_mount([blob for blob in waiting if blob.digest not in self.pipeline.layers])
        # A config that is there is read all the same: it says what the layers have to be.
        configs = self.pipeline.configs
        wanted = [blob for blob in waiting if blob.digest not in self.pipeline.results or blob.digest in configs]
        # Even where nothing is wanted any more, a pipe is read to its end.
        wanted = self._write_manifests_as_blobs(graph, wanted)
        self._write_all(wanted)
        needed = self._write_parts(missing, graph) if missing else None
        missing = [blob for blob in missing if blob.digest not in self.pipeline.results]
        if lacking := [*missing, *(blob for blob in wanted if blob.digest not in self.pipeline.results)]:
            graph = source = self._drop_missing(lacking, graph, needed)
        origins: Mapping[str, str] = {}
        if self.pipeline.layers and (conversion := self.pipeline.recompressor) is not None:
            for blob in graph.blobs:
                # One that came early was not seen for what it is.
                if blob.digest in configs and not conversion.has_config(blob.digest):
                    conversion.add_config(blob.digest, self.pipeline.read_back(blob))
            graph, origins = conversion.rewrite_graph(graph)
            self._destination.begin(graph)
        return graph, source, origins

    def _check_recompressible(self) -> None:
        """Refuse to compress anew what the source was made without: only the sink has it."""
        for digest in self.pipeline.layers:
            moved = self.pipeline.results.get(digest)
            if moved is not None and moved.status in {"skipped", "mounted"}:
                msg = f"{digest} is to be compressed anew, and only the destination has it"
                raise UnsupportedError(msg, hint="leave --compress away: some layers were left out here")

    def _omit_blobs(self, graph: Graph) -> Graph:
        """Decide what is left out on purpose."""
        if self.omit is None:
            return graph
        if not isinstance(self._destination, OmittingDestination):
            msg = "nothing can be left out of this destination"
            raise UnsupportedError(msg, hint="write an OCI archive or a layout")
        leaving = self.omit(graph)
        # What came before the graph was known is written by now, whatever the other side has.
        left = [b.digest for b in graph.blobs if b.digest in leaving and b.digest not in self.pipeline.results]
        return replace(graph, omitted_from_output={digest: leaving[digest] for digest in left})

    def _blob_results(self, graph: Graph) -> list[BlobResult]:
        """Say what became of each blob of what was written."""
        made = {}
        if self.pipeline.recompressor is not None:
            made = {
                done.result.digest: done
                for digest in self.pipeline.layers
                if (done := self.pipeline.recompressor.find_result(digest))
            }
        # Of what came early, only the digest was known: what the graph says of a blob is shown.
        return [
            BlobResult(blob, "converted", made[blob.digest].source.digest)
            if blob.digest in made
            else replace(self.pipeline.results[blob.digest], descriptor=blob)
            for blob in graph.blobs
        ]

    def _resolve(self) -> Graph:
        """Find out what is to be moved; from now on it is known whether `docker save` wrote the source."""
        graph = self._source.resolve(self.pipeline)
        if graph.has_plain_layers:
            self.pipeline.compress_plain_layers(graph)
        graph = self._limit_to_exported(graph)
        if not graph.has_plain_layers:
            self.pipeline.restore_plain_layers(graph)
        return graph

    # -- the steps ---------------------------------------------------------------------------------------

    def _skip_referrers(self, graph: Graph) -> Graph:
        """Leave behind what hangs on an image where there is no place for it, or where it would hang on nothing.

        The place may be that of something else.
        """
        if isinstance(self._destination, NoReferrersDestination):
            no_place = self._destination.no_referrers_reason
            graph = graph.without_referrers(lambda _: True, no_place)
            # What such a format cannot hold would not go along with all platforms either.
            left = (
                replace(one, why=no_place) if one.why == PLATFORM_FILTERED else one for one in graph.skipped_referrers
            )
            graph = replace(graph, skipped_referrers=tuple(left))
        if graph.referrers and self.pipeline.recompressor is not None and self.pipeline.plan_recompression(graph):
            changed = self.pipeline.recompressor.find_changed_manifests(graph, self.pipeline.layers)
            graph = graph.without_referrers(
                lambda attached: attached.subject in changed or attached.descriptor.digest in changed, RECOMPRESSED
            )
        if graph.referrers and isinstance(self._destination, ReferrerTagGuard):
            graph = self._destination.skip_conflicting_referrers(graph)
        return graph

    def _limit_to_exported(self, graph: Graph) -> Graph:
        """Copy only the platforms that the source has, if neither side has the whole index (incomplete_indexes.py)."""
        knows = self._source if isinstance(self._source, IncompleteSource) else None
        if knows is None or not any(root.descriptor.is_index for root in graph.roots):
            return graph
        if not (missing := find_not_exported(graph, lambda blob: bool(knows.is_missing(blob)))):
            return graph
        if isinstance(self._destination, ExpectingDestination):
            self._destination.expect(graph)
        return limit_to_exported(graph, {one.digest for one in missing if not self._destination.has_manifest(one)})

    def _drop_missing(self, lacking: Sequence[Descriptor], graph: Graph, needed: NeededVolumes | None) -> Graph:
        """Take only what a pipe turned out to have, where the rest are platforms that were not exported.

        A sink that has written the index already cannot change it.

        Raises:
            ShortfallError: that is not enough.
        """
        gone = {blob.digest for blob in lacking}
        if (
            needed is None
            and isinstance(self._destination, IncrementalDestination)
            and not graph.omitted_from_output
            and not self.pipeline.layers
        ):
            missing = find_not_exported(graph, lambda blob: blob.digest in gone)
            exported = limit_to_exported(graph, {one.digest for one in missing})
            if gone.isdisjoint(blob.digest for blob in (*exported.blobs, *exported.absent)):
                self._destination.begin(exported)
                return exported
        raise MissingBlobsError(lacking, graph, is_untouched=False, needed=needed)

    def _list_pending(self, graph: Graph) -> list[Descriptor]:
        """List the blobs that have not come early.

        Raises:
            IntegrityError: one that has come is not of the size that the manifests give it.
            ArchiveError: one that has come is an image's config, and no JSON.
        """
        waiting: list[Descriptor] = []
        for blob in graph.blobs:
            moved = self.pipeline.results.get(blob.digest)
            if blob.digest in graph.omitted_from_output:
                continue
            if moved is None:
                waiting.append(blob)
            elif moved.status == "converted" and blob.digest not in self.pipeline.layers:
                msg = f"{blob.digest} looked like a layer, and was compressed anew, before it was known to be none"
                raise UnsupportedError(msg, hint="read the archive from a file instead of a pipe")
            elif moved.descriptor.size != blob.size:
                raise size_error(blob, moved.descriptor.size)
            else:
                self.pipeline.config_checker.check_early(blob)
        return waiting

    def _write_manifests_as_blobs(self, graph: Graph, wanted: list[Descriptor]) -> list[Descriptor]:
        """Put what is a manifest and some other manifest's layer or config, from the bytes that are held anyway.

        So is what stands in a descriptor.
        """
        raws = {**graph.embedded, **{manifest.descriptor.digest: manifest.raw for manifest in graph.manifests}}
        for descriptor in wanted:
            if descriptor.digest in raws:
                self.pipeline.transfer_blob(blob_from_bytes(descriptor, raws[descriptor.digest]))
        return [descriptor for descriptor in wanted if descriptor.digest not in raws]

    def _write_all(self, wanted: list[Descriptor]) -> None:
        jobs = self._jobs if self._source.concurrent and self._destination.concurrent else 1
        # Each one that is compressed takes its own memory, and by itself more than one core.
        jobs = min(jobs, _RECOMPRESS_JOBS) if self.pipeline.layers else jobs
        self.pipeline.concurrency = min(jobs, len(wanted))
        blobs = self._source.blobs(wanted)
        memory = self.prefetch_memory - (
            self._destination.buffer_size * self.pipeline.concurrency
            if isinstance(self._destination, BufferingDestination)
            else 0
        )
        if not (memory > 0 and self._source.concurrent and self._jobs > 1) or self.pipeline.layers:
            self._write_each(blobs, jobs)
            return
        with closing(Prefetcher(self._jobs, memory, self._cancelled)) as ahead:
            self._write_each(ahead.in_order(blobs) if jobs == 1 else ahead.concurrently(blobs), jobs)

    def _write_each(self, blobs: Iterator[Blob], jobs: int) -> None:
        for blob in blobs:
            if blob.descriptor.digest not in self.pipeline.configs:
                blobs = itertools.chain([blob], blobs)
                break
            # They come first where blobs are read side by side. Each is held whole, and may have megabytes.
            self.pipeline.transfer_blob(blob)
        run_each(self.pipeline.transfer_blob, blobs, jobs=jobs, cancelled=self._cancelled)

    def _write_parts(self, missing: Sequence[Descriptor], graph: Graph) -> NeededVolumes:
        """Put what there is of blobs that have the rest of their parts in other volumes; say which those are."""
        # Hardly any archive is cut into volumes.
        from ocistream.transfer.partial_blobs import PartWriter

        parts = PartWriter(self._source, self._destination, self._observer, self.pipeline.add_result, self._cancelled)
        return parts.write(missing, graph)
