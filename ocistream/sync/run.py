"""Run a sync: list images, compare them in batches, and copy each one to the destinations that lack it.

A failed image does not stop the others. A dry run finds out what would be copied instead.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import CancelledError, OcistreamError, UnsupportedError
from ocistream.layout.destination import LayoutDestination
from ocistream.layout.image_selection import report_untagged, select_all_images, select_existing_images
from ocistream.layout.index import image_names_of
from ocistream.locations import is_layout_destination, open_destination
from ocistream.notices import notify
from ocistream.oci.reference import printable
from ocistream.signatures.policy import TrustPolicy
from ocistream.streams.workers import run_each, start, wait_to_settle
from ocistream.sync.comparison import ImageComparer, ImageComparison, SyncResult, select_with_signatures
from ocistream.sync.destination_state import LayoutWriters
from ocistream.sync.plan import EntryCopies, drop_duplicates
from ocistream.sync.progress import ImageProgress
from ocistream.sync.sources import SyncSources, read_graph
from ocistream.transfer import copy as transfer
from ocistream.transfer.existing_blobs import ExistenceCheck
from ocistream.transfer.fan_out import FanOutBranch, FanOutDestination
from ocistream.transfer.graph_check import GraphCheckReader
from ocistream.transfer.incomplete_indexes import limit_to_source

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from ocistream.locations import OpenContext
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.oci.reference import Reference
    from ocistream.signatures.check import SignatureCheck
    from ocistream.sync.plan import CopyDestination, ImageCopy, Shard, SyncEntry, SyncLocation, SyncPlan
    from ocistream.transfer.interfaces import Destination, RunObserver, Source
    from ocistream.transfer.report import Report

#: How many images are compared before the first of them is copied. Most are unchanged as a rule, and one HEAD to each
#: side is enough for those, so comparing many in parallel is fast.
_BATCH_SIZE: Final = 64
#: Several images are copied at once, each with this many of the `--jobs`.
_JOBS_PER_IMAGE: Final = 2
#: Seconds between two writes of a layout's `index.json`, which may have thousands of entries.
_FLUSH_INTERVAL: Final = 1.0
#: Layouts that stay open from one batch to the next.
_OPEN_LAYOUTS: Final = 4
#: Seconds between two checks whether the run was cancelled.
_POLL_INTERVAL: Final = 0.2


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
        observer: RunObserver,
        check_push: Callable[[Reference | None], None] = lambda _: None,
        policy: TrustPolicy | None = None,
    ) -> None:
        """`context` returns the context of a location; `create_cancel_event` an event to cancel one image.

        `policy` says which signatures images need.
        """
        policy = policy or TrustPolicy()
        self._context_of = context
        self._on_result = on_result
        self._jobs = jobs
        self._prefetch_memory = prefetch_memory
        self._create_cancel_event = create_cancel_event
        self._cancelled = create_cancel_event()
        self._sources = SyncSources()
        self._layouts = LayoutWriters()
        self._comparer = ImageComparer(
            context,
            sources=self._sources,
            layouts=self._layouts,
            create_cancel_event=create_cancel_event,
            check_push=check_push,
            policy=policy,
        )
        #: Copied images whose results are not reported yet, and when others were (monotonic seconds).
        self._unreported: list[ImageComparison] = []
        self._reported_at = 0.0
        self._observer = observer
        self._copier = ImageCopier(
            context,
            sources=self._sources,
            layouts=self._layouts,
            create_cancel_event=create_cancel_event,
            observer=observer,
            policy=policy,
        )

    def run(self, plan: SyncPlan, shard: Shard, *, dry_run: bool = False) -> None:
        """Copy all images of this shard that differ; with `dry_run`, only report what would be copied.

        Raises:
            UsageError: two images would get one name at a destination, or a configuration is malformed.
        """
        with closing(self._sources), closing(self._layouts):
            copies = self._list_copies(plan)
            count = sum(shard.has_image(copy.name) for copy in drop_duplicates(copies))
            selected = (copy for copy in drop_duplicates(copies) if shard.has_image(copy.name))
            done = 0
            while batch := list(itertools.islice(selected, _BATCH_SIZE)):
                comparisons = [ImageComparison(copy) for copy in batch]
                jobs = self._limit_jobs(batch)
                for step in (self._comparer.compare, self._copier.plan if dry_run else self._comparer.prepare):
                    run_each(step, comparisons, jobs=jobs, cancelled=self._create_cancel_event())
                if dry_run:
                    for comparison in comparisons:
                        self._report([*comparison.results, *self._copier.list_planned(comparison)])
                else:
                    self._copy_batch(comparisons, jobs, done, count)
                if self._cancelled.is_set():
                    raise CancelledError("cancelled")
                done += len(batch)
                self._layouts.close(keep=_OPEN_LAYOUTS)

    def _limit_jobs(self, copies: Sequence[ImageCopy]) -> int:
        """Return how many blobs may move at once: some registries may have limits of their own."""
        jobs = self._jobs
        for copy in copies:
            for sync_location in (copy.entry.source, *(destination.sync_location for destination in copy.destinations)):
                if (reference := sync_location.location.reference) is not None:
                    jobs = min(jobs, self._context_of(sync_location).jobs_at([reference.registry]))
        return jobs

    def _copy_batch(self, comparisons: Sequence[ImageComparison], jobs: int, done: int, count: int) -> None:
        """Copy several images at once, and report the results in the order of `comparisons`."""
        if blobs := sum(comparison.blob_count for comparison in comparisons):
            self._observer.add_total(sum(comparison.size for comparison in comparisons), blobs)
        pending = [comparison for comparison in comparisons if comparison.pending]
        images = max(1, min(jobs // _JOBS_PER_IMAGE, len(pending)))
        #: Images that were copied, or failed; and those that were not yet. Only this thread uses the latter.
        copied: SimpleQueue[ImageComparison] = SimpleQueue()
        waiting = set(pending)

        def copy(comparison: ImageComparison) -> None:
            self._copier.copy(comparison, jobs=max(1, jobs // images), memory=self._prefetch_memory // images)
            self._comparer.release(comparison)
            copied.put(comparison)

        copying = start(partial(run_each, copy, pending, jobs=images, cancelled=self._create_cancel_event()))
        try:
            for number, comparison in enumerate(comparisons, done + 1):
                while comparison in waiting:
                    has_ended = copying.is_done
                    try:
                        waiting.remove(copied.get(timeout=_POLL_INTERVAL))
                    except Empty:
                        if has_ended:
                            # The run was cancelled, or another copy failed in an unexpected way.
                            copying.result()
                    self._report_copied(_FLUSH_INTERVAL)
                self._unreported.append(comparison)
                self._report_copied(0.0 if self._layouts.is_flushed else _FLUSH_INTERVAL)
                self._observer.report_images(number, count)
        finally:
            wait_to_settle([copying])
            self._report_copied(0.0)

    def _report_copied(self, interval: float) -> None:
        """Make the copied images visible in layouts, and report their results, if this was `interval` seconds ago."""
        now = monotonic()
        if now - self._reported_at >= interval:
            self._reported_at = now
            self._layouts.flush()
            unreported, self._unreported = self._unreported, []
            for comparison in unreported:
                self._report(comparison.list_results())

    def _report(self, results: Iterable[SyncResult]) -> None:
        for result in results:
            # A failure may be the consequence of the cancellation.
            if result.error is None or not self._cancelled.is_set():
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

    def _list_names(self, entry: SyncEntry) -> Iterable[str]:
        location, context = entry.source.location, self._context_of(entry.source)
        if location.reference is not None:
            listed = context.repository_opener().list_tags(location.reference)
            if listed.incomplete_reason:
                msg = f"{printable(location.text)}: cannot list all tags: {listed.incomplete_reason}"
                raise UnsupportedError(msg, hint="name its images one by one")
            self._comparer.add_tags(location.reference, listed.tags)
            return listed.tags
        roots, orphans = self._sources.list_images(location, context)
        images = select_existing_images(roots, location.description)
        if entry.tag_filter is None:
            by_name = "to copy an image by its digest, write `from` as oci:DIR:DIGEST, and `to` with a tag or name"
            hint = f"`tags` selects images; {by_name}"
            select_all_images(images, f"in {location.description}", "tag", hint)
        else:
            report_untagged(images, "`tags`")
        for referrer in orphans:
            notify(f"not copied: {referrer.digest} in {printable(location.text)}; {referrer.reason}")
        return (root.name for root in images if root.name)


class ImageCopier:
    """Copies images, for one run. Safe for several threads."""

    def __init__(
        self,
        context: Callable[[SyncLocation], OpenContext],
        *,
        sources: SyncSources,
        layouts: LayoutWriters,
        create_cancel_event: Callable[[], threading.Event],
        observer: RunObserver,
        policy: TrustPolicy,
    ) -> None:
        """`context` returns the context of a location; `create_cancel_event` an event to cancel one image."""
        self._context_of = context
        self._sources = sources
        self._layouts = layouts
        self._create_cancel_event = create_cancel_event
        self._observer = observer
        self._policy = policy
        self._blobs = _CopiedBlobs()
        #: Blobs planned for each registry or layout: one that several images have is written once.
        self._planned_blobs: set[int] = set()

    def copy(self, comparison: ImageComparison, *, jobs: int, memory: int) -> None:
        """Copy an image to all destinations that lack it, and add the result of each.

        May be called in several threads. `jobs` blobs move at once, and `memory` is for prefetching, in bytes.
        """
        started_at, cancelled = monotonic(), self._create_cancel_event()
        failures: dict[str, OcistreamError] = {}
        branches: dict[str, FanOutBranch] = {}
        digest, bytes_read = None, 0
        progress = ImageProgress(self._observer, comparison.size, comparison.blob_count)
        stores = {store for destination in comparison.pending if (store := _store_of(destination)) is not None}
        with ExitStack() as stack:
            claim = stack.enter_context(self._blobs.claim(stores, cancelled))
            stack.callback(progress.close)
            try:
                source = self._open_source(comparison, cancelled, stack)
                branches = self._open_branches(comparison, cancelled, failures)
                fan_out = FanOutDestination(list(branches.values()), cancelled, claim)
                stack.callback(fan_out.close)
                try:
                    if branches:
                        report = transfer.copy(
                            source,
                            fan_out,
                            progress,
                            jobs=jobs,
                            prefetch_memory=memory,
                            cancelled=cancelled,
                            check=self._build_check(comparison),
                        )
                        digest = _report_root(comparison.copy, report)
                finally:
                    bytes_read = fan_out.bytes_read
            except OcistreamError as error:
                for destination in comparison.pending:
                    failures.setdefault(destination.name, error)
            for destination in comparison.pending:
                branch = branches.get(destination.name)
                failure = (branch.failure if branch else None) or failures.get(destination.name)
                graph = branch.graph if branch is not None and failure is None else None
                if graph is not None:
                    self._blobs.add(destination, graph.blobs)
                comparison.results.append(
                    SyncResult(
                        comparison.copy.name,
                        destination.name,
                        "failed" if failure else "copied",
                        None if failure else digest,
                        failure,
                        branch.bytes_written if branch else 0,
                        bytes_read,
                        monotonic() - started_at,
                        graph.skipped_referrers if graph is not None else (),
                        graph.incomplete_indexes if graph is not None else (),
                    )
                )
                bytes_read = 0
        for name, branch in branches.items():
            if isinstance(branch.destination, LayoutDestination) and branch.destination.change is not None:
                comparison.index_changes[name] = branch.destination.change

    def _open_source(self, comparison: ImageComparison, cancelled: threading.Event, stack: ExitStack) -> Source:
        if comparison.source is not None:
            return comparison.source
        copy = comparison.copy
        context = self._cancellable_context(copy.entry.source, cancelled)
        source = self._sources.open(copy.source, context, select_with_signatures(copy, self._policy))
        stack.callback(source.close)
        return source

    def _build_check(self, comparison: ImageComparison) -> SignatureCheck | None:
        """Return the check of an image. The rules for all its destinations hold: it is read once."""
        if not self._policy.rules:
            return None
        from ocistream.signatures.check import SignatureCheck

        references = [comparison.copy.source.reference, *(target.reference for target in comparison.pending)]
        names = [str(target.reference or target.image_name or "") for target in comparison.pending]
        return SignatureCheck(
            find_rules=lambda root: self._policy.find_for(root, image_names_of(root.descriptor), references),
            find_names=lambda _: [*filter(None, names)],
            is_local=comparison.copy.source.reference is None,
        )

    def _open_branches(
        self, comparison: ImageComparison, cancelled: threading.Event, failures: dict[str, OcistreamError]
    ) -> dict[str, FanOutBranch]:
        branches = {}
        for destination in comparison.pending:
            try:
                opened = self._open_destination(destination, cancelled)
            except OcistreamError as error:
                failures[destination.name] = error
            else:
                branches[destination.name] = FanOutBranch(opened, _rename_roots(destination))
        return branches

    def plan(self, comparison: ImageComparison) -> None:
        """Find out what would be copied; write nothing. May be called in any thread."""
        if not comparison.pending:
            return
        copy, cancelled = comparison.copy, self._create_cancel_event()
        context = replace(self._cancellable_context(copy.entry.source, cancelled), jobs=1)
        try:
            selection = select_with_signatures(copy, self._policy)
            with closing(self._sources.open(copy.source, context, selection)) as source:
                graph = read_graph(source, copy.source)
                if (check := self._build_check(comparison)) is not None:
                    reader = GraphCheckReader(check, graph)
                    reader.read(source)
                    reader.finish()
                for destination in comparison.pending:
                    try:
                        comparison.missing[destination.name] = self._find_missing(destination, graph, source, cancelled)
                    except OcistreamError as error:
                        comparison.add_failure([destination], error)
        except OcistreamError as error:
            comparison.add_failure(comparison.pending, error)

    def list_planned(self, comparison: ImageComparison) -> list[SyncResult]:
        """Return what would be copied of an image; blobs that earlier images bring along are not counted again.

        A run writes an image to all its destinations at once, so its blobs count for each, even in one registry.
        """
        results = []
        read_digests: set[str] = set()
        planned: set[int] = set()
        for destination in comparison.pending:
            if destination.name not in comparison.missing:
                continue
            graph, blobs = comparison.missing[destination.name]
            if (store := _store_of(destination)) is None:
                new = blobs
            else:
                # Within one registry, a blob of an earlier image is mounted from another repository.
                new = [blob for blob in blobs if hash((store, blob.digest)) not in self._planned_blobs]
                planned.update(hash((store, blob.digest)) for blob in new)
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
        self._planned_blobs.update(itertools.islice(planned, limits.MAX_TRACKED_BLOBS - len(self._planned_blobs)))
        return results

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
            graph = limit_to_source(source, graph, destination.stored)
            check = ExistenceCheck(source, destination, lambda *_: None, jobs=1, cancelled=cancelled)
            _, pending = check.split_absent(graph, graph.blobs)
            stored = destination.stored(pending)
            return graph, check.list_unmountable([blob for blob in pending if blob.digest not in stored])

    def _open_destination(
        self, copy_destination: CopyDestination, cancelled: threading.Event, *, is_dry_run: bool = False
    ) -> Destination:
        location, reference = copy_destination.sync_location.location, copy_destination.reference
        context = replace(
            self._cancellable_context(copy_destination.sync_location, cancelled),
            layout_writer=self._layouts.open,
            is_dry_run=is_dry_run,
        )
        if reference is not None:
            location = replace(location, reference=reference)
            context = replace(context, mount_candidates=lambda digest: self._blobs.find_repositories(reference, digest))
        return open_destination(location, context)

    def _cancellable_context(self, sync_location: SyncLocation, cancelled: threading.Event) -> OpenContext:
        return replace(self._context_of(sync_location), cancelled=cancelled)


class _CopiedBlobs:
    """The newest blobs of this run, and where they are. Safe for several threads.

    An image waits while another one copies a blob that both need. So the blob is sent once.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        #: A repository with the blob (nothing for a layout), by a hash of store and digest. If two collide, a mount
        #: fails, and the blob is sent.
        self._copied: dict[int, str] = {}
        #: Blobs that are being copied, by the same hash.
        self._claimed: set[int] = set()

    @contextlib.contextmanager
    def claim(self, stores: Collection[str], cancelled: threading.Event) -> Iterator[Callable[[Graph], None]]:
        """Yield a function that waits until no other image copies a blob of a graph to these stores.

        The blobs are claimed until the end of the block.
        """
        own: set[int] = set()

        def claim(graph: Graph) -> None:
            needed = {hash((store, blob.digest)) for store in stores for blob in graph.blobs}
            with self._changed:
                # All at once: two images that each wait for a blob of the other one would wait forever.
                release()
                while not self._claimed.isdisjoint(needed.difference(self._copied)):
                    if cancelled.is_set():
                        raise CancelledError("cancelled")
                    self._changed.wait(_POLL_INTERVAL)
                own.update(needed.difference(self._copied))
                self._claimed |= own

        def release() -> None:
            self._claimed -= own
            own.clear()
            self._changed.notify_all()

        try:
            yield claim
        finally:
            with self._changed:
                release()

    def add(self, destination: CopyDestination, blobs: Sequence[Descriptor]) -> None:
        """Add the blobs of an image at its destination."""
        if (store := _store_of(destination)) is None:
            return
        repository = destination.reference.repository if destination.reference is not None else ""
        with self._changed:
            for blob in blobs:
                key = hash((store, blob.digest))
                # A blob that many images have stays among the newest.
                self._copied[key] = self._copied.pop(key, repository)
            while len(self._copied) > limits.MAX_TRACKED_BLOBS:
                del self._copied[next(iter(self._copied))]

    def find_repositories(self, reference: Reference, digest: str) -> Sequence[str]:
        """Return a repository of the registry that has a blob, if one is known."""
        with self._changed:
            repository = self._copied.get(hash((reference.registry, digest)))
        return () if repository is None else (repository,)


def _store_of(destination: CopyDestination) -> str | None:
    """Return the registry or the path of the layout, within which a blob is stored once; None for an archive."""
    location = destination.sync_location.location
    if location.reference is not None:
        return location.reference.registry
    return str(location.path) if is_layout_destination(location) else None


def _report_root(copy: ImageCopy, report: Report) -> str:
    """Return the digest of the copied image, and report which platforms were chosen if that is ambiguous."""
    root = report.graph.roots[0]
    for ambiguity in root.chosen_platforms.describe_ambiguities() if root.chosen_platforms else ():
        notify(f"{printable(copy.name)}: {ambiguity}")
    return root.descriptor.digest


def _rename_roots(destination: CopyDestination) -> Callable[[Graph], Graph]:
    name = destination.sync_location.location.name
    if destination.reference is not None or name is None:
        return lambda graph: graph
    return lambda graph: replace(graph, roots=tuple(replace(root, name=name) for root in graph.roots))
