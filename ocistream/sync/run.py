"""Run a sync: list images, compare them in batches, and copy each one to the destinations that lack it.

A failed image does not stop the others. Reports one progress for the whole run; also does dry runs.
"""

from __future__ import annotations

import itertools
import threading
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from ocistream import limits
from ocistream.errors import OcistreamError, UnsupportedError
from ocistream.layout.image_selection import report_untagged, select_all_images
from ocistream.layout.index import select_existing_images, tag_of
from ocistream.locations import Selection, is_layout_destination, open_destination
from ocistream.notices import notify
from ocistream.oci.reference import printable
from ocistream.oci.referrers import SUBJECT_MISSING, UNREADABLE
from ocistream.streams.workers import run_each
from ocistream.sync.comparison import (
    ImageComparer,
    ImageComparison,
    SyncResult,
    open_rereadable,
    read_graph,
    select_for,
)
from ocistream.sync.plan import EntryCopies, drop_duplicates
from ocistream.transfer import copy as transfer
from ocistream.transfer.existing_blobs import find_absent_manifests, list_stored
from ocistream.transfer.fan_out import FanOutBranch, FanOutDestination
from ocistream.transfer.incomplete_indexes import limit_to_source
from ocistream.transfer.interfaces import ImageCountObserver, IncompleteSource, MountingDestination
from ocistream.transfer.report import MissingBlobsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ocistream.locations import OpenContext
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph, Root
    from ocistream.oci.reference import Reference
    from ocistream.sync.plan import CopyDestination, Shard, SyncEntry, SyncLocation, SyncPlan
    from ocistream.transfer.interfaces import Destination, Observer, Source

__all__ = [
    "ImageCopier",
    "PlannedCopy",
    "SyncProgress",
    "SyncResult",
    "SyncRun",
]

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
        """`context` returns the context of a location; `stop` creates the event that cancels one image's transfer."""
        self._context_of = context
        self._on_result = on_result
        self._jobs = jobs
        self._create_cancel_event = create_cancel_event
        self._comparer = ImageComparer(context, create_cancel_event=create_cancel_event, check_push=check_push)
        self._progress = SyncProgress(observer)
        self._copier = ImageCopier(
            context,
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
        copies = self._list_copies(plan)
        count = sum(shard.has_image(copy.name) for copy in drop_duplicates(copies))
        selected = (copy for copy in drop_duplicates(copies) if shard.has_image(copy.name))
        done = 0
        while batch := list(itertools.islice(selected, _BATCH_SIZE)):
            comparisons = [ImageComparison(copy) for copy in batch]
            run_each(self._comparer.compare, comparisons, jobs=self._jobs, cancelled=self._create_cancel_event())
            if dry_run:
                self._dry_run(comparisons)
                continue
            run_each(self._comparer.prepare, comparisons, jobs=self._jobs, cancelled=self._create_cancel_event())
            self._progress.add_expected(
                sum(comparison.size for comparison in comparisons),
                sum(comparison.blob_count for comparison in comparisons),
            )
            for comparison in comparisons:
                self._report(comparison.results)
                if comparison.pending:
                    self._report(self._copier.copy(comparison))
                self._comparer.release(comparison)
                done += 1
                self._progress.report_images(done, count)

    def _dry_run(self, comparisons: Sequence[ImageComparison]) -> None:
        plans = [PlannedCopy(comparison) for comparison in comparisons]
        run_each(
            self._copier.plan,
            [p for p in plans if p.comparison.pending],
            jobs=self._jobs,
            cancelled=self._create_cancel_event(),
        )
        for planned in plans:
            self._report(planned.comparison.results)
            self._report(self._copier.list_results(planned))

    def _report(self, results: Iterable[SyncResult]) -> None:
        for result in results:
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
                for destination in entry.destinations:
                    self._on_result(
                        SyncResult(entry.source.location.text, destination.location.text, "failed", error=error)
                    )
        return copies

    def _list_names(self, entry: SyncEntry) -> Sequence[str]:
        location, context = entry.source.location, self._context_of(entry.source)
        if location.reference is not None:
            listed = context.repository_opener().list_tags(location.reference)
            if listed.incomplete_reason:
                msg = f"{printable(location.text)}: not all of its tags can be had: {listed.incomplete_reason}"
                raise UnsupportedError(msg, hint="name its images one by one")
            self._comparer.add_tags(location.reference, listed.tags)
            return listed.tags
        names: list[str] = []
        by_name = "to copy an image by its digest, write `from` as oci:DIR:DIGEST, and `to` with a tag or name"

        def listing(roots: Sequence[Root]) -> Sequence[Root]:
            names.extend(root.name for root in select_existing_images(roots) if root.name)
            if entry.tag_filter is None:
                select_all_images(
                    roots, lambda root: tag_of(root.name) is not None, "tag", f"`tags` chooses some; {by_name}"
                )
            else:
                report_untagged(roots, "`tags`")
            return [root for root in roots if not root.is_stray]

        with ExitStack() as stack:
            source = open_rereadable(location, context, Selection(listing))
            stack.callback(source.close)
            for referrer in read_graph(source, location).skipped_referrers:
                if referrer.why in {SUBJECT_MISSING, UNREADABLE}:
                    notify(f"left behind: {referrer.digest} in {printable(location.text)}; {referrer.why}")
        return names


class PlannedCopy:
    """A dry run's result for one image: for each destination the missing blobs, or the error."""

    def __init__(self, comparison: ImageComparison) -> None:
        """Start without results."""
        self.comparison = comparison
        self.error: OcistreamError | None = None
        self.missing_blobs: dict[str, tuple[Graph, Sequence[Descriptor]] | OcistreamError] = {}


class ImageCopier:
    """Copies images, for one run."""

    def __init__(
        self,
        context: Callable[[SyncLocation], OpenContext],
        *,
        jobs: int,
        prefetch_memory: int,
        create_cancel_event: Callable[[], threading.Event],
        progress: SyncProgress,
    ) -> None:
        """`context` returns the context of a location; `create_cancel_event` an event to cancel one image."""
        self._context_of = context
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
                    source = open_rereadable(
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

    def plan(self, planned: PlannedCopy) -> None:
        """Find out what would be copied; write nothing. May be called in any thread."""
        comparison, cancelled = planned.comparison, self._create_cancel_event()
        copy = comparison.copy
        try:
            with ExitStack() as stack:
                context = replace(self._cancellable_context(copy.entry.source, cancelled), jobs=1)
                source = open_rereadable(copy.source, context, select_for(copy.entry))
                stack.callback(source.close)
                graph = read_graph(source, copy.source)
                for destination in comparison.pending:
                    try:
                        planned.missing_blobs[destination.name] = self._find_missing(
                            destination, graph, source, cancelled
                        )
                    except OcistreamError as error:
                        planned.missing_blobs[destination.name] = error
        except OcistreamError as error:
            planned.error = error

    def list_results(self, planned: PlannedCopy) -> list[SyncResult]:
        """Return the planned results of an image; blobs that earlier images bring along are not counted again."""
        name, results = planned.comparison.copy.name, []
        read_digests: set[str] = set()
        for destination in planned.comparison.pending:
            missing = planned.error or planned.missing_blobs[destination.name]
            if isinstance(missing, OcistreamError):
                results.append(SyncResult(name, destination.name, "failed", error=missing))
                continue
            graph, blobs = missing
            new = [blob for blob in blobs if self._is_new(destination, blob)]
            bytes_read = sum(blob.size for blob in new if blob.digest not in read_digests)
            read_digests.update(blob.digest for blob in new)
            size = sum(blob.size for blob in new)
            results.append(
                SyncResult(
                    *(name, destination.name, "to copy", graph.roots[0].descriptor.digest),
                    size=size,
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
    ) -> tuple[Graph, list[Descriptor]]:
        """Return the graph without platforms that neither side has, and the blobs that the destination lacks."""
        location = copy_destination.sync_location.location
        if location.reference is None and not is_layout_destination(location):
            graph = limit_to_source(source, graph)
            _check_complete(graph, source, graph.absent, graph.blobs)
            return graph, list(graph.blobs)
        with ExitStack() as stack:
            destination = self._open_destination(copy_destination, cancelled)
            stack.callback(destination.close)
            if location.reference is not None:
                # For a registry this sends no request and writes nothing.
                destination.begin(graph)
            graph = limit_to_source(source, graph, partial(list_stored, destination, are_manifests=True))
            stored = list_stored(destination, graph.blobs)

            def is_mountable(blob: Descriptor) -> bool:
                return isinstance(destination, MountingDestination) and destination.can_mount(blob, source)

            missing = [blob for blob in graph.blobs if blob.digest not in stored and not is_mountable(blob)]
            _check_complete(graph, source, find_absent_manifests(graph, destination), missing)
            return graph, missing

    def _open_destination(self, copy_destination: CopyDestination, cancelled: threading.Event) -> Destination:
        location, reference = copy_destination.sync_location.location, copy_destination.reference
        context = self._cancellable_context(copy_destination.sync_location, cancelled)
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
        self._lock = threading.Lock()
        #: By a hash of registry and digest. If two collide, a mount fails, and the blob is sent.
        self._repositories: dict[int, str] = {}

    def add(self, reference: Reference, blobs: Sequence[Descriptor]) -> None:
        with self._lock:
            for blob in blobs:
                self._repositories.setdefault(hash((reference.registry, blob.digest)), reference.repository)
            while len(self._repositories) > limits.MAX_TRACKED_BLOBS:
                del self._repositories[next(iter(self._repositories))]

    def find_repositories(self, reference: Reference, digest: str) -> Sequence[str]:
        with self._lock:
            repository = self._repositories.get(hash((reference.registry, digest)))
        return () if repository is None else (repository,)


def _check_complete(
    graph: Graph, source: Source, absent: Sequence[Descriptor], missing_blobs: Sequence[Descriptor]
) -> None:
    """Fail as the transfer would: neither side has the `absent` manifests, and `missing_blobs` must be copied.

    Raise MissingBlobsError for such manifests, and for blobs that the source lacks.
    """
    lacks = source.is_missing if isinstance(source, IncompleteSource) else lambda _: False
    missing = [*absent, *(blob for blob in missing_blobs if blob.digest not in graph.embedded and lacks(blob))]
    if missing:
        raise MissingBlobsError(missing, graph, is_untouched=True)


def _rename_roots(destination: CopyDestination) -> Callable[[Graph], Graph]:
    name = destination.sync_location.location.name
    if destination.reference is not None or name is None:
        return lambda graph: graph
    return lambda graph: replace(graph, roots=tuple(replace(root, name=name) for root in graph.roots))


class _Total:
    """The part of a graph that observers read: bytes and blobs of all images, and the newly added roots."""

    def __init__(self, size: int, blobs: int, roots: Sequence[Root] = ()) -> None:
        self.size = size
        self.blobs = range(blobs)
        self.roots = roots


class SyncProgress:
    """An observer of successive transfers that reports them as one."""

    def __init__(self, observer: Observer) -> None:
        """Report to `observer`."""
        self._observer = observer
        self._lock = threading.Lock()
        self._size = self._blobs = 0
        #: Bytes and blobs of the current image: those that are in the total, and those that have moved.
        self._current = (0, 0)
        self._moved = self._done = 0

    def add_expected(self, size: int, blobs: int) -> None:
        """Add the size of some images to the total before they are copied."""
        if blobs:
            self._add_total(size, blobs)

    def report_images(self, number: int, count: int) -> None:
        """Report that `number` of `count` images are finished."""
        if isinstance(self._observer, ImageCountObserver):
            self._observer.report_images(number, count)

    def begin_image(self, size: int, blobs: int) -> None:
        """Begin an image whose size and blobs are already in the total."""
        with self._lock:
            self._current = size, blobs
            self._moved = self._done = 0

    def end_image(self) -> None:
        """End the image, also after a failure: what has not moved by now is removed from the total."""
        with self._lock:
            size, blobs = self._moved - self._current[0], self._done - self._current[1]
        if size or blobs:
            self._add_total(size, blobs)

    def planned(self, graph: Graph) -> None:
        """Replace the expected size of the image by its real size."""
        with self._lock:
            size, blobs = graph.size - self._current[0], len(graph.blobs) - self._current[1]
            self._current = graph.size, len(graph.blobs)
        self._add_total(size, blobs, graph.roots)

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """Count moved bytes."""
        with self._lock:
            self._moved += size
        self._observer.advance(size, descriptor)

    def done(self, descriptor: Descriptor, how: str) -> None:
        """Count a finished blob."""
        with self._lock:
            self._done += 1
        self._observer.done(descriptor, how)

    def _add_total(self, size: int, blobs: int, roots: Sequence[Root] = ()) -> None:
        with self._lock:
            self._size += size
            self._blobs += blobs
            total = _Total(self._size, self._blobs, roots)
        self._observer.planned(cast("Graph", total))
