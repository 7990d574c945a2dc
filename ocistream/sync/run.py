"""Run a sync: list images, compare them in batches, and copy each one to the destinations that lack it.

A failed image does not stop the others. A dry run finds out what would be copied instead.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import CancelledError, OcistreamError, UnsupportedError
from ocistream.layout.image_selection import report_untagged, select_all_images
from ocistream.layout.index import select_existing_images, tag_of
from ocistream.locations import is_layout_destination, open_destination
from ocistream.notices import notify
from ocistream.oci.reference import printable
from ocistream.streams.workers import run_each
from ocistream.sync.comparison import ImageComparer, ImageComparison, SyncResult, select_for
from ocistream.sync.plan import EntryCopies, drop_duplicates
from ocistream.sync.progress import SyncProgress
from ocistream.sync.sources import SyncSources, read_graph
from ocistream.transfer import copy as transfer
from ocistream.transfer.existing_blobs import ExistenceCheck, list_stored
from ocistream.transfer.fan_out import FanOutBranch, FanOutDestination
from ocistream.transfer.incomplete_indexes import limit_to_source

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Sequence

    from ocistream.locations import OpenContext
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.oci.reference import Reference
    from ocistream.sync.plan import CopyDestination, Shard, SyncEntry, SyncLocation, SyncPlan
    from ocistream.transfer.interfaces import Destination, Observer, Source

__all__ = ["ImageCopier", "SyncResult", "SyncRun"]

#: How many images are compared before the first of them is copied. Most are unchanged as a rule, and one HEAD to each
#: side is enough for those, so comparing many in parallel is fast.
_BATCH_SIZE: Final = 64


class SyncRun:
    """One run. `on_result` is called with each result as soon as it is known, from this thread.

    All images share connections and tokens, but each has a cancel event of its own: a failed image must not stop the
    next.
    """

    def __init__(
        self,
        context: Callable[[SyncLocation], OpenContext],
        on_result: Callable[[SyncResult], None],
        *,
        jobs: int,
        prefetch_memory: int,
        create_cancel_event: Callable[[], threading.Event],
        observer: Observer,
        check_push: Callable[[Reference | None], None] = lambda _: None,
    ) -> None:
        """`context` returns the context of a location; `create_cancel_event` an event to cancel one image."""
        self._context_of = context
        self._on_result = on_result
        self._jobs = jobs
        self._create_cancel_event = create_cancel_event
        self._cancelled = create_cancel_event()
        self._sources = SyncSources()
        self._comparer = ImageComparer(
            context, sources=self._sources, create_cancel_event=create_cancel_event, check_push=check_push
        )
        self._progress = SyncProgress(observer)
        self._copier = ImageCopier(
            context,
            sources=self._sources,
            jobs=jobs,
            prefetch_memory=prefetch_memory,
            create_cancel_event=create_cancel_event,
            progress=self._progress,
        )

    def run(self, plan: SyncPlan, shard: Shard, *, dry_run: bool = False) -> None:
        """Copy all images of this shard that differ; with `dry_run`, only report what would be copied.

        Raises:
            UsageError: two images would get one name at a destination, or a configuration is malformed.
        """
        with closing(self._sources):
            self._run(plan, shard, dry_run=dry_run)

    def _run(self, plan: SyncPlan, shard: Shard, *, dry_run: bool) -> None:
        copies = self._list_copies(plan)
        count = sum(shard.has_image(copy.name) for copy in drop_duplicates(copies))
        selected = (copy for copy in drop_duplicates(copies) if shard.has_image(copy.name))
        done = 0
        while batch := list(itertools.islice(selected, _BATCH_SIZE)):
            comparisons = [ImageComparison(copy) for copy in batch]
            for step in (self._comparer.compare, self._copier.plan if dry_run else self._comparer.prepare):
                run_each(step, comparisons, jobs=self._jobs, cancelled=self._create_cancel_event())
            self._progress.add_expected(
                sum(comparison.size for comparison in comparisons),
                sum(comparison.blob_count for comparison in comparisons),
            )
            for comparison in comparisons:
                self._report(comparison.results)
                if comparison.pending:
                    self._report(self._copier.list_planned(comparison) if dry_run else self._copier.copy(comparison))
                self._comparer.release(comparison)
                done += 1
                if not dry_run:
                    self._progress.report_images(done, count)

    def _report(self, results: Iterable[SyncResult]) -> None:
        for result in results:
            if self._cancelled.is_set():
                # A failure may be the consequence of the cancellation.
                raise CancelledError("cancelled")
            self._on_result(result)

    # -- list images ---------------------------------------------------------------------------------------

    def _list_copies(self, plan: SyncPlan) -> list[EntryCopies]:
        copies: list[EntryCopies] = []
        for entry in plan.entries:
            for sync_location in (entry.source, *entry.destinations):
                if sync_location.location.reference is not None:
                    # Create the opener here: several threads would each create one.
                    self._context_of(sync_location).repository_opener()
            try:
                copies.append(EntryCopies(entry, () if entry.has_one_image else self._list_names(entry)))
            except OcistreamError as error:
                self._report(
                    SyncResult(entry.source.location.text, destination.location.text, "failed", error=error)
                    for destination in entry.destinations
                )
        return copies

    def _list_names(self, entry: SyncEntry) -> Sequence[str]:
        location, context = entry.source.location, self._context_of(entry.source)
        if location.reference is not None:
            listed = context.repository_opener().list_tags(location.reference)
            if listed.incomplete_reason:
                msg = f"{printable(location.text)}: cannot list all tags: {listed.incomplete_reason}"
                raise UnsupportedError(msg, hint="name its images one by one")
            self._comparer.add_tags(location.reference, listed.tags)
            return listed.tags
        roots, orphans = self._sources.list_images(location, context)
        if entry.tag_filter is None:
            by_name = "to copy an image by its digest, write `from` as oci:DIR:DIGEST, and `to` with a tag or name"
            hint = f"`tags` selects images; {by_name}"
            select_all_images(roots, lambda root: tag_of(root.name) is not None, "tag", hint)
        else:
            report_untagged(select_existing_images(roots), "`tags`")
        for referrer in orphans:
            notify(f"not copied: {referrer.digest} in {printable(location.text)}; {referrer.reason}")
        return [root.name for root in roots if root.name]


class ImageCopier:
    """Copies images, for one run."""

    def __init__(
        self,
        context: Callable[[SyncLocation], OpenContext],
        *,
        sources: SyncSources,
        jobs: int,
        prefetch_memory: int,
        create_cancel_event: Callable[[], threading.Event],
        progress: SyncProgress,
    ) -> None:
        """`context` returns the context of a location; `create_cancel_event` an event to cancel one image."""
        self._context_of = context
        self._sources = sources
        self._jobs = jobs
        self._prefetch_memory = prefetch_memory
        self._create_cancel_event = create_cancel_event
        self._progress = progress
        self._stored_blobs = _StoredBlobs()
        #: Blobs planned for each registry or layout: one that several images have is written once.
        self._planned_blobs: set[int] = set()

    def copy(self, comparison: ImageComparison) -> list[SyncResult]:
        """Copy an image to all destinations that lack it, and return the result of each."""
        copy, started_at, cancelled = comparison.copy, monotonic(), self._create_cancel_event()
        failures: dict[str, OcistreamError] = {}
        branches: dict[str, FanOutBranch] = {}
        digest: str | None = None
        fan_out: FanOutDestination | None = None
        self._progress.begin_image(comparison.size, comparison.blob_count)
        with ExitStack() as stack:
            stack.callback(self._progress.end_image)
            try:
                source = comparison.source
                if source is None:
                    source = self._sources.open(
                        copy.source, self._cancellable_context(copy.entry.source, cancelled), select_for(copy.entry)
                    )
                    stack.callback(source.close)
                for destination in comparison.pending:
                    try:
                        branches[destination.name] = FanOutBranch(
                            self._open_destination(destination, cancelled), _rename_roots(destination)
                        )
                    except OcistreamError as error:
                        failures[destination.name] = error
                fan_out = FanOutDestination(list(branches.values()), cancelled)
                stack.callback(fan_out.close)
                if branches:
                    report = transfer.copy(
                        source,
                        fan_out,
                        self._progress,
                        jobs=self._jobs,
                        prefetch_memory=self._prefetch_memory,
                        cancelled=cancelled,
                    )
                    root = report.graph.roots[0]
                    digest = root.descriptor.digest
                    for ambiguity in root.chosen_platforms.describe_ambiguities() if root.chosen_platforms else ():
                        notify(f"{printable(copy.name)}: {ambiguity}")
            except OcistreamError as error:
                for destination in comparison.pending:
                    failures.setdefault(destination.name, error)
        bytes_read = fan_out.bytes_read if fan_out is not None else 0
        results = []
        for destination in comparison.pending:
            branch = branches.get(destination.name)
            failure = (branch.failure if branch else None) or failures.get(destination.name)
            if branch and branch.graph and not failure and destination.reference:
                self._stored_blobs.add(destination.reference, branch.graph.blobs)
            results.append(
                SyncResult(
                    copy.name,
                    destination.name,
                    "failed" if failure else "copied",
                    None if failure else digest,
                    failure,
                    branch.bytes_written if branch else 0,
                    bytes_read,
                    monotonic() - started_at,
                    branch.graph.skipped_referrers if branch and branch.graph and not failure else (),
                    branch.graph.incomplete_indexes if branch and branch.graph and not failure else (),
                )
            )
            bytes_read = 0
        return results

    def plan(self, comparison: ImageComparison) -> None:
        """Find out what would be copied; write nothing. May be called in any thread."""
        if not comparison.pending:
            return
        copy, cancelled = comparison.copy, self._create_cancel_event()
        context = replace(self._cancellable_context(copy.entry.source, cancelled), jobs=1)
        try:
            with closing(self._sources.open(copy.source, context, select_for(copy.entry))) as source:
                graph = read_graph(source, copy.source)
                for destination in comparison.pending:
                    try:
                        comparison.missing[destination.name] = self._find_missing(destination, graph, source, cancelled)
                    except OcistreamError as error:
                        comparison.add_failure([destination], error)
        except OcistreamError as error:
            comparison.add_failure(comparison.pending, error)

    def list_planned(self, comparison: ImageComparison) -> list[SyncResult]:
        """Return what would be copied of an image; blobs that earlier images bring along are not counted again."""
        results = []
        read_digests: set[str] = set()
        for destination in comparison.pending:
            if destination.name not in comparison.missing:
                continue
            graph, blobs = comparison.missing[destination.name]
            new = [blob for blob in blobs if self._is_new(destination, blob)]
            bytes_read = sum(blob.size for blob in new if blob.digest not in read_digests)
            read_digests.update(blob.digest for blob in new)
            results.append(
                SyncResult(
                    *(comparison.copy.name, destination.name, "to copy", graph.roots[0].descriptor.digest),
                    size=sum(blob.size for blob in new),
                    bytes_read=bytes_read,
                    incomplete=graph.incomplete_indexes,
                )
            )
        return results

    def _is_new(self, destination: CopyDestination, blob: Descriptor) -> bool:
        location = destination.sync_location.location
        if location.reference is None and not is_layout_destination(location):
            return True
        # Within one registry, the blob is mounted from another repository.
        key = hash((location.reference.registry if location.reference else str(location.path), blob.digest))
        if key in self._planned_blobs:
            return False
        if len(self._planned_blobs) < limits.MAX_TRACKED_BLOBS:
            self._planned_blobs.add(key)
        return True

    def _find_missing(
        self, copy_destination: CopyDestination, graph: Graph, source: Source, cancelled: threading.Event
    ) -> tuple[Graph, Sequence[Descriptor]]:
        """Return the graph without platforms that neither side has, and the blobs that the destination lacks.

        Raises:
            MissingBlobsError: neither side has a blob.
        """
        location = copy_destination.sync_location.location
        with ExitStack() as stack:
            destination = self._open_destination(copy_destination, cancelled, is_dry_run=True)
            stack.callback(destination.close)
            if location.reference is not None:
                # For a registry this sends no request and writes nothing.
                destination.begin(graph)
            graph = limit_to_source(source, graph, partial(list_stored, destination, are_manifests=True))
            check = ExistenceCheck(source, destination, lambda *_: None, jobs=1, cancelled=cancelled)
            _, pending = check.split_absent(graph, graph.blobs)
            stored = list_stored(destination, pending)
            return graph, check.list_unmountable([blob for blob in pending if blob.digest not in stored])

    def _open_destination(
        self, copy_destination: CopyDestination, cancelled: threading.Event, *, is_dry_run: bool = False
    ) -> Destination:
        location, reference = copy_destination.sync_location.location, copy_destination.reference
        context = replace(self._cancellable_context(copy_destination.sync_location, cancelled), is_dry_run=is_dry_run)
        if reference is not None:
            location = replace(location, reference=reference)
            context = replace(
                context, mount_candidates=lambda digest: self._stored_blobs.find_repositories(reference, digest)
            )
        return open_destination(location, context)

    def _cancellable_context(self, sync_location: SyncLocation, cancelled: threading.Event) -> OpenContext:
        return replace(self._context_of(sync_location), cancelled=cancelled)


class _StoredBlobs:
    """A repository of each registry that has a blob, for the newest blobs of this run."""

    def __init__(self) -> None:
        #: By a hash of registry and digest. If two collide, a mount fails, and the blob is sent.
        self._repositories: dict[int, str] = {}

    def add(self, reference: Reference, blobs: Sequence[Descriptor]) -> None:
        for blob in blobs:
            self._repositories.setdefault(hash((reference.registry, blob.digest)), reference.repository)
        while len(self._repositories) > limits.MAX_TRACKED_BLOBS:
            del self._repositories[next(iter(self._repositories))]

    def find_repositories(self, reference: Reference, digest: str) -> Sequence[str]:
        repository = self._repositories.get(hash((reference.registry, digest)))
        return () if repository is None else (repository,)


def _rename_roots(destination: CopyDestination) -> Callable[[Graph], Graph]:
    name = destination.sync_location.location.name
    if destination.reference is not None or name is None:
        return lambda graph: graph
    return lambda graph: replace(graph, roots=tuple(replace(root, name=name) for root in graph.roots))
