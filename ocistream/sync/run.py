"""Run a sync: list images, compare them in batches, and copy each one to the destinations that lack it.

A failed image does not stop the others. A dry run finds out what would be copied instead.
"""

from __future__ import annotations

import itertools
from contextlib import closing
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

from ocistream.errors import CancelledError, OcistreamError, UnsupportedError
from ocistream.layout.image_selection import check_all_images, report_untagged, select_existing_images
from ocistream.notices import notify
from ocistream.oci.reference import printable
from ocistream.streams.workers import run_each, start, wait_to_settle
from ocistream.sync.comparison import ImageComparer, ImageComparison, SyncResult
from ocistream.sync.copier import ImageCopier
from ocistream.sync.plan import EntryCopies, drop_duplicates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ocistream.sync.comparison import SyncAccess
    from ocistream.sync.plan import ImageCopy, Shard, SyncEntry, SyncPlan
    from ocistream.transfer.interfaces import RunObserver

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
    """One run. `on_result` is called with each result as soon as it is known, from this thread."""

    def __init__(
        self,
        access: SyncAccess,
        on_result: Callable[[SyncResult], None],
        observer: RunObserver,
        *,
        jobs: int,
        prefetch_memory: int,
    ) -> None:
        """Read nothing yet."""
        self._access = access
        self._on_result = on_result
        self._jobs = jobs
        self._prefetch_memory = prefetch_memory
        self._cancelled = access.cancelled
        self._layouts = access.layouts
        self._comparer = ImageComparer(access)
        #: Copied images whose results are not reported yet, and when others were (monotonic seconds).
        self._unreported: list[ImageComparison] = []
        self._reported_at = 0.0
        self._observer = observer
        self._copier = ImageCopier(access, observer)

    def run(self, plan: SyncPlan, shard: Shard, *, dry_run: bool = False) -> None:
        """Copy all images of this shard that differ; with `dry_run`, only report what would be copied.

        Raises:
            UsageError: two images would get one name at a destination, or a configuration is malformed.
        """
        with closing(self._access.sources), closing(self._layouts):
            copies = self._list_copies(plan)
            count = sum(shard.has_image(copy.name) for copy in drop_duplicates(copies))
            selected = (copy for copy in drop_duplicates(copies) if shard.has_image(copy.name))
            done = 0
            while batch := list(itertools.islice(selected, _BATCH_SIZE)):
                comparisons = [ImageComparison(copy) for copy in batch]
                jobs, cancelled = self._limit_jobs(batch), self._access.create_cancel_event()
                run_each(self._comparer.compare, comparisons, jobs=jobs, cancelled=cancelled)
                pending = [comparison for comparison in comparisons if comparison.pending]
                step = self._copier.plan if dry_run else self._comparer.prepare
                run_each(step, pending, jobs=jobs, cancelled=cancelled)
                if dry_run:
                    for comparison in comparisons:
                        self._copier.add_planned(comparison)
                        self._report(comparison.list_results())
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
                    rules = self._access.contexts[sync_location.login].registries().rules
                    jobs = rules.limit_jobs(jobs, [reference.registry])
        return jobs

    def _copy_batch(self, comparisons: Sequence[ImageComparison], jobs: int, done: int, count: int) -> None:
        """Copy several images at once, and report the results in the order of `comparisons`."""
        if blobs := sum(comparison.blob_count for comparison in comparisons):
            self._observer.add_total(sum(comparison.size for comparison in comparisons), blobs)
        pending = [comparison for comparison in comparisons if comparison.pending]
        images = max(1, min(jobs // _JOBS_PER_IMAGE, len(pending)))

        def copy(comparison: ImageComparison) -> None:
            self._copier.copy(comparison, jobs=max(1, jobs // images), memory=self._prefetch_memory // images)
            self._comparer.release(comparison)
            comparison.is_copied.set()

        cancelled = self._access.create_cancel_event()
        copying = start(partial(run_each, copy, pending, jobs=images, cancelled=cancelled))
        try:
            for number, comparison in enumerate(comparisons, done + 1):
                while comparison.pending and not comparison.is_copied.wait(_POLL_INTERVAL):
                    if copying.is_done and not comparison.is_copied.is_set():
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
                    # Created now: an error of the configuration is one of the run, not of an image.
                    _ = self._access.contexts[sync_location.login].registries().client
            try:
                copies.append(EntryCopies(entry, () if entry.has_one_image else self._list_names(entry)))
            except OcistreamError as error:
                self._report(
                    SyncResult(entry.source.location.text, destination.location.text, "failed", error=error)
                    for destination in entry.destinations
                )
        return copies

    def _list_names(self, entry: SyncEntry) -> Iterator[str]:
        location, context = entry.source.location, self._access.contexts[entry.source.login]
        if location.reference is not None:
            listed = context.registries().list_tags(location.reference)
            if listed.incomplete_reason:
                msg = f"{printable(location.text)}: cannot list all tags: {listed.incomplete_reason}"
                raise UnsupportedError(msg, hint="name its images one by one")
            self._comparer.add_tags(location.reference, listed.tags)
            # The caller can free the tags once it has read them.
            return iter(listed.tags)
        roots, orphans = self._access.sources.list_images(location, context)
        images = select_existing_images(roots, location.description)
        if entry.tag_filter is None:
            by_name = "to copy an image by its digest, write `from` as oci:DIR:DIGEST, and `to` with a tag or name"
            hint = f"`tags` selects images; {by_name}"
            check_all_images(images, f"in {location.description}", "tag", hint)
        else:
            report_untagged(images, "`tags`")
        for referrer in orphans:
            notify(f"not copied: {referrer.digest} in {printable(location.text)}; {referrer.reason}")
        return (root.name for root in images if root.name)
