"""A sync, done: images one after the other, each to all places that do not have it yet, whatever becomes of the others.

What is there is found out first, some images at a time.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from ocistream.errors import OcistreamError, UnsupportedError
from ocistream.layout.all_images import report_untagged, select_all_images
from ocistream.layout.index import select_existing_images, tag_of
from ocistream.notices import notify
from ocistream.oci.reference import printable
from ocistream.oci.referrers import SUBJECT_MISSING, UNREADABLE
from ocistream.stores import Selection
from ocistream.streams.workers import run_each
from ocistream.sync.comparison import ImageComparer, ImageComparison, SyncResult
from ocistream.sync.locations import open_rereadable, read_graph
from ocistream.sync.moves import ImageCopier, PlannedCopy
from ocistream.sync.plan import EntryCopies, drop_duplicates
from ocistream.sync.progress import SyncProgress

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Sequence

    from ocistream.oci.graph import Root
    from ocistream.oci.reference import Reference
    from ocistream.stores import OpenContext
    from ocistream.sync.plan import Shard, SyncEntry, SyncLocation, SyncPlan
    from ocistream.transfer.interfaces import Observer

__all__ = ["SyncResult", "SyncRun"]

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
