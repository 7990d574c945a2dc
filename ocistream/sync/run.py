"""Run a sync: list images, compare them in batches, and copy each one to the destinations that lack it.

A failed image does not stop the others. Reports one progress for the whole run; also does dry runs.
"""

from __future__ import annotations

import itertools
import threading
from contextlib import ExitStack
from dataclasses import replace
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

#: So many images are looked at before the first of them is moved.
_BATCH_SIZE: Final = 64


class SyncRun:
    """One run. `told` is called with each outcome as it is known, from this thread."""

    def __init__(
        self,
        context: Callable[[SyncLocation], OpenContext],
        told: Callable[[SyncResult], None],
        *,
        jobs: int,
        ahead: int,
        stop: Callable[[], threading.Event],
        observer: Observer,
        check_push: Callable[[Reference | None], None] = lambda _: None,
    ) -> None:
        """Take what each place is reached by. `stop` makes the event that ends one image's transfer."""
        self._context_of = context
        self._on_result = told
        self._jobs = jobs
        self._create_cancel_event = stop
        self._comparer = ImageComparer(context, stop=stop, check_push=check_push)
        self._progress = SyncProgress(observer)
        self._copier = ImageCopier(context, jobs=jobs, ahead=ahead, stop=stop, watched=self._progress)

    def run(self, plan: SyncPlan, shard: Shard, *, dry_run: bool = False) -> None:
        """Copy all that is this shard's and differs; or, if it is a `dry_run`, find out what that would be.

        Raises:
            UsageError: two images would go to one place, or a configuration is malformed.
        """
        found = self._list_copies(plan)
        count = sum(shard.has_image(copy.name) for copy in drop_duplicates(found))
        some = (copy for copy in drop_duplicates(found) if shard.has_image(copy.name))
        done = 0
        while batch := list(itertools.islice(some, _BATCH_SIZE)):
            looks = [ImageComparison(copy) for copy in batch]
            run_each(self._comparer.compare, looks, jobs=self._jobs, cancelled=self._create_cancel_event())
            if dry_run:
                self._dry_run(looks)
                continue
            run_each(self._comparer.prepare, looks, jobs=self._jobs, cancelled=self._create_cancel_event())
            self._progress.add_expected(sum(look.size for look in looks), sum(look.blob_count for look in looks))
            for look in looks:
                self._report(look.results)
                if look.pending:
                    self._report(self._copier.copy(look))
                self._comparer.release(look)
                done += 1
                self._progress.report_images(done, count)

    def _dry_run(self, looks: Sequence[ImageComparison]) -> None:
        plans = [PlannedCopy(look) for look in looks]
        run_each(
            self._copier.plan,
            [p for p in plans if p.comparison.pending],
            jobs=self._jobs,
            cancelled=self._create_cancel_event(),
        )
        for planned in plans:
            self._report(planned.comparison.results)
            self._report(self._copier.list_results(planned))

    def _report(self, outcomes: Iterable[SyncResult]) -> None:
        for outcome in outcomes:
            self._on_result(outcome)

    # -- which images there are -------------------------------------------------------------------------

    def _list_copies(self, plan: SyncPlan) -> list[EntryCopies]:
        found: list[EntryCopies] = []
        for entry in plan.entries:
            for place in (entry.source, *entry.destinations):
                if place.location.reference is not None:
                    # Made here: each of several threads would make one of its own.
                    self._context_of(place).repository_opener()
            try:
                found.append(EntryCopies(entry, () if entry.has_one_image else self._list_names(entry)))
            except OcistreamError as error:
                for target in entry.destinations:
                    self._on_result(SyncResult(entry.source.location.text, target.location.text, "failed", error=error))
        return found

    def _list_names(self, entry: SyncEntry) -> Sequence[str]:
        end, around = entry.source.location, self._context_of(entry.source)
        if end.reference is not None:
            listed = around.repository_opener().list_tags(end.reference)
            if listed.incomplete_reason:
                msg = f"{printable(end.text)}: not all of its tags can be had: {listed.incomplete_reason}"
                raise UnsupportedError(msg, hint="name its images one by one")
            self._comparer.add_tags(end.reference, listed.tags)
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
            source = open_rereadable(end, around, Selection(listing))
            stack.callback(source.close)
            for left in read_graph(source, end).skipped_referrers:
                if left.why in {SUBJECT_MISSING, UNREADABLE}:
                    notify(f"left behind: {left.digest} in {printable(end.text)}; {left.why}")
        return names


class PlannedCopy:
    """What would be moved of one image: for each destination that lacks it which blobs, or why nobody knows."""

    def __init__(self, look: ImageComparison) -> None:
        """Begin with nothing known."""
        self.comparison = look
        self.error: OcistreamError | None = None
        self.missing_blobs: dict[str, tuple[Graph, Sequence[Descriptor]] | OcistreamError] = {}


class ImageCopier:
    """Moves, for one run."""

    def __init__(
        self,
        context: Callable[[SyncLocation], OpenContext],
        *,
        jobs: int,
        ahead: int,
        stop: Callable[[], threading.Event],
        watched: SyncProgress,
    ) -> None:
        """Take what each place is reached by. `stop` makes the event that ends one image's transfer."""
        self._context_of = context
        self._jobs = jobs
        self._prefetch_memory = ahead
        self._create_cancel_event = stop
        self._progress = watched
        self._stored_blobs = _StoredBlobs()
        #: What is planned for each registry or layout: a blob that several images have goes there once.
        self._planned_blobs: set[int] = set()

    def copy(self, look: ImageComparison) -> list[SyncResult]:
        """Copy an image to all destinations that lack it, and say what became of it at each."""
        copy, began, stop = look.copy, monotonic(), self._create_cancel_event()
        failures: dict[str, OcistreamError] = {}
        branches: dict[str, FanOutBranch] = {}
        digest: str | None = None
        fan: FanOutDestination | None = None
        self._progress.begin_image(look.size, look.blob_count)
        with ExitStack() as stack:
            stack.callback(self._progress.end_image)
            try:
                source = look.source
                if source is None:
                    source = open_rereadable(
                        copy.source, self._cancellable_context(copy.entry.source, stop), select_for(copy.entry)
                    )
                    stack.callback(source.close)
                for target in look.pending:
                    try:
                        branches[target.name] = FanOutBranch(
                            self._open_destination(target, stop), _rename_roots(target)
                        )
                    except OcistreamError as error:
                        failures[target.name] = error
                fan = FanOutDestination(list(branches.values()), stop)
                stack.callback(fan.close)
                if branches:
                    report = transfer.copy(
                        source, fan, self._progress, jobs=self._jobs, ahead=self._prefetch_memory, cancelled=stop
                    )
                    root = report.graph.roots[0]
                    digest = root.descriptor.digest
                    for doubt in root.chosen_platforms.describe_ambiguities() if root.chosen_platforms else ():
                        notify(f"{printable(copy.name)}: {doubt}")
            except OcistreamError as error:
                for target in look.pending:
                    failures.setdefault(target.name, error)
        fetched = fan.bytes_read if fan is not None else 0
        outcomes = []
        for target in look.pending:
            branch = branches.get(target.name)
            failure = (branch.failure if branch else None) or failures.get(target.name)
            if branch and branch.graph and not failure and target.reference:
                self._stored_blobs.add(target.reference, branch.graph.blobs)
            outcomes.append(
                SyncResult(
                    copy.name,
                    target.name,
                    "failed" if failure else "copied",
                    None if failure else digest,
                    failure,
                    branch.bytes_written if branch else 0,
                    fetched,
                    monotonic() - began,
                    branch.graph.skipped_referrers if branch and branch.graph and not failure else (),
                    branch.graph.incomplete_indexes if branch and branch.graph and not failure else (),
                )
            )
            fetched = 0
        return outcomes

    def plan(self, planned: PlannedCopy) -> None:
        """Find out what would be moved; nothing is written. It may be called in any thread."""
        look, stop = planned.comparison, self._create_cancel_event()
        copy = look.copy
        try:
            with ExitStack() as stack:
                around = replace(self._cancellable_context(copy.entry.source, stop), jobs=1)
                source = open_rereadable(copy.source, around, select_for(copy.entry))
                stack.callback(source.close)
                graph = read_graph(source, copy.source)
                for target in look.pending:
                    try:
                        planned.missing_blobs[target.name] = self._find_missing(target, graph, source, stop)
                    except OcistreamError as error:
                        planned.missing_blobs[target.name] = error
        except OcistreamError as error:
            planned.error = error

    def list_results(self, planned: PlannedCopy) -> list[SyncResult]:
        """Give what would become of an image; of what others before it bring along, nothing is counted again."""
        name, found = planned.comparison.copy.name, []
        fetched: set[str] = set()
        for target in planned.comparison.pending:
            lacking = planned.error or planned.missing_blobs[target.name]
            if isinstance(lacking, OcistreamError):
                found.append(SyncResult(name, target.name, "failed", error=lacking))
                continue
            graph, blobs = lacking
            new = [blob for blob in blobs if self._is_new(target, blob)]
            read = sum(blob.size for blob in new if blob.digest not in fetched)
            fetched.update(blob.digest for blob in new)
            size = sum(blob.size for blob in new)
            found.append(
                SyncResult(
                    *(name, target.name, "to copy", graph.roots[0].descriptor.digest),
                    size=size,
                    bytes_read=read,
                    incomplete=graph.incomplete_indexes,
                )
            )
        return found

    def _is_new(self, target: CopyDestination, blob: Descriptor) -> bool:
        end = target.sync_location.location
        if end.reference is None and not is_layout_destination(end):
            return True
        # From one repository of a registry to another it is mounted.
        place = hash((end.reference.registry if end.reference else str(end.path), blob.digest))
        if place in self._planned_blobs:
            return False
        if len(self._planned_blobs) < limits.MAX_TRACKED_BLOBS:
            self._planned_blobs.add(place)
        return True

    def _find_missing(
        self, target: CopyDestination, graph: Graph, source: Source, stop: threading.Event
    ) -> tuple[Graph, list[Descriptor]]:
        """Find out what a destination would get: the graph, less what neither side has of an index, and its blobs.

        Raises:
            ShortfallError: neither side has all that an image needs.
        """
        end = target.sync_location.location
        if end.reference is None and not is_layout_destination(end):
            graph = limit_to_source(source, graph)
            _check_complete(graph, source, graph.absent, graph.blobs)
            return graph, list(graph.blobs)
        with ExitStack() as stack:
            sink = self._open_destination(target, stop)
            stack.callback(sink.close)
            if end.reference is not None:
                # Of a registry's sink, that asks for nothing and writes nothing.
                sink.begin(graph)
            graph = limit_to_source(source, graph, sink.has_manifest)

            def is_lacking(blob: Descriptor) -> bool:
                return not sink.has_blob(blob) and not (
                    isinstance(sink, MountingDestination) and sink.can_mount(blob, source)
                )

            # One after the other: this is done side by side with the same for other images.
            lacking = list(filter(is_lacking, graph.blobs))
            named = {root.descriptor.digest for root in graph.roots}
            absent = [one for one in graph.absent if one.digest in named or not sink.has_manifest(one)]
            _check_complete(graph, source, absent, lacking)
            return graph, lacking

    def _open_destination(self, target: CopyDestination, stop: threading.Event) -> Destination:
        end, reference = target.sync_location.location, target.reference
        around = self._cancellable_context(target.sync_location, stop)
        if reference is not None:
            end = replace(end, reference=reference)
            around = replace(
                around, mount_candidates=lambda digest: self._stored_blobs.find_repositories(reference, digest)
            )
        return open_destination(end, around)

    def _cancellable_context(self, place: SyncLocation, stop: threading.Event) -> OpenContext:
        return replace(self._context_of(place), cancelled=stop)


class _StoredBlobs:
    """In which repository of each registry this run has seen a blob to be, of the newest so many."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: By registry and digest, as a number: where two fell together, mounting would fail, and the blob be sent.
        self._repositories: dict[int, str] = {}

    def add(self, reference: Reference, blobs: Sequence[Descriptor]) -> None:
        with self._lock:
            for blob in blobs:
                self._repositories.setdefault(hash((reference.registry, blob.digest)), reference.repository)
            while len(self._repositories) > limits.MAX_TRACKED_BLOBS:
                del self._repositories[next(iter(self._repositories))]

    def find_repositories(self, reference: Reference, digest: str) -> Sequence[str]:
        with self._lock:
            found = self._repositories.get(hash((reference.registry, digest)))
        return () if found is None else (found,)


def _check_complete(graph: Graph, source: Source, absent: Sequence[Descriptor], lacking: Sequence[Descriptor]) -> None:
    """Fail as the transfer would: `absent` are manifests that neither side has, `lacking` blobs to be copied.

    Raises:
        ShortfallError: there are such manifests, or the source has not all of the blobs.
    """
    lacks = source.is_missing if isinstance(source, IncompleteSource) else lambda _: False
    missing = [*absent, *(blob for blob in lacking if blob.digest not in graph.embedded and lacks(blob))]
    if missing:
        raise MissingBlobsError(missing, graph, is_untouched=True)


def _rename_roots(target: CopyDestination) -> Callable[[Graph], Graph]:
    name = target.sync_location.location.name
    if target.reference is not None or name is None:
        return lambda graph: graph
    return lambda graph: replace(graph, roots=tuple(replace(root, name=name) for root in graph.roots))


class _Total:
    """As much of a graph as renderers look at: the bytes and blobs of all images, and those that are new to them."""

    def __init__(self, size: int, blobs: int, roots: Sequence[Root] = ()) -> None:
        self.size = size
        self.blobs = range(blobs)
        self.roots = roots


class SyncProgress:
    """An observer of transfers, one after the other, that has all of them shown as one."""

    def __init__(self, shown: Observer) -> None:
        """Pass on to `shown`."""
        self._observer = shown
        self._lock = threading.Lock()
        self._size = self._blobs = 0
        #: Of the image that moves now: bytes and blobs that the total has of it, and what has moved of those.
        self._current = (0, 0)
        self._moved = self._done = 0

    def add_expected(self, size: int, blobs: int) -> None:
        """Add what some images have to the total before they move."""
        if blobs:
            self._add_total(size, blobs)

    def report_images(self, number: int, count: int) -> None:
        """Say that so many images of the run are done with."""
        if isinstance(self._observer, ImageCountObserver):
            self._observer.report_images(number, count)

    def begin_image(self, size: int, blobs: int) -> None:
        """Begin an image of which the total has so much."""
        with self._lock:
            self._current = size, blobs
            self._moved = self._done = 0

    def end_image(self) -> None:
        """Be done with it, however it ended: what has not moved by now will not."""
        with self._lock:
            size, blobs = self._moved - self._current[0], self._done - self._current[1]
        if size or blobs:
            self._add_total(size, blobs)

    def planned(self, graph: Graph) -> None:
        """Learn what an image really has."""
        with self._lock:
            size, blobs = graph.size - self._current[0], len(graph.blobs) - self._current[1]
            self._current = graph.size, len(graph.blobs)
        self._add_total(size, blobs, graph.roots)

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """Count."""
        with self._lock:
            self._moved += size
        self._observer.advance(size, descriptor)

    def done(self, descriptor: Descriptor, how: str) -> None:
        """Count a blob."""
        with self._lock:
            self._done += 1
        self._observer.done(descriptor, how)

    def _add_total(self, size: int, blobs: int, roots: Sequence[Root] = ()) -> None:
        with self._lock:
            self._size += size
            self._blobs += blobs
            total = _Total(self._size, self._blobs, roots)
        self._observer.planned(cast("Graph", total))
