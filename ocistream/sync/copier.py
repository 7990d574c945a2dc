"""Copy images of a sync: each to all destinations that lack it, and each blob once to a registry or a layout."""

from __future__ import annotations

import contextlib
import threading
from contextlib import ExitStack, closing
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import OcistreamError
from ocistream.layout.destination import LayoutDestination
from ocistream.layout.index import image_names_of
from ocistream.locations import is_layout_destination, open_destination
from ocistream.notices import notify
from ocistream.oci.reference import printable
from ocistream.streams.synchronization import wait_until
from ocistream.sync.comparison import ImageComparison, SyncResult
from ocistream.transfer.copy import Copy
from ocistream.transfer.fan_out import FanOutBranch, FanOutDestination

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.oci.reference import Reference
    from ocistream.signatures.check import SignatureCheck
    from ocistream.sync.comparison import SyncAccess
    from ocistream.sync.plan import CopyDestination, ImageCopy
    from ocistream.transfer.interfaces import Destination, RunObserver
    from ocistream.transfer.report import Report


class ImageCopier:
    """Copies images, for one run. Safe for several threads."""

    def __init__(self, access: SyncAccess, observer: RunObserver) -> None:
        """Copy nothing yet."""
        self._access = access
        self._observer = observer
        self._blobs = _CopiedBlobs()

    def copy(self, comparison: ImageComparison, *, jobs: int, memory: int) -> None:
        """Copy an image to all destinations that lack it, and add the result of each.

        May be called in several threads. `jobs` blobs move at once, and `memory` is for prefetching, in bytes.
        """
        started_at, cancelled = monotonic(), self._access.create_cancel_event()
        failures: dict[str, OcistreamError] = {}
        branches: dict[str, FanOutBranch] = {}
        digest, bytes_read = None, 0
        progress = _ImageProgress(self._observer, comparison.size, comparison.blob_count)
        stores = {store for destination in comparison.pending if (store := _store_of(destination)) is not None}
        with ExitStack() as stack:
            claim = stack.enter_context(self._blobs.claim(stores, cancelled))
            stack.callback(progress.close)
            try:
                source = comparison.source
                if source is None:
                    context = self._access.context(comparison.copy.entry.source, cancelled)
                    source = self._access.open_source(comparison.copy, context)
                    stack.callback(source.close)
                branches = self._open_branches(comparison, cancelled, failures)
                fan_out = FanOutDestination(list(branches.values()), cancelled, claim)
                stack.callback(fan_out.close)
                try:
                    if branches:
                        report = Copy(
                            source,
                            fan_out,
                            progress,
                            jobs=jobs,
                            prefetch_memory=memory,
                            cancelled=cancelled,
                            signature_check=self._build_check(comparison),
                        ).run()
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
                comparison.add_result(
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

    def _build_check(self, comparison: ImageComparison) -> SignatureCheck | None:
        """Return the check of an image. The rules for all its destinations hold: it is read once."""
        if not (policy := self._access.policy).rules:
            return None
        from ocistream.signatures.check import SignatureCheck

        references = [comparison.copy.source.reference, *(target.reference for target in comparison.pending)]
        names = [str(target.reference or target.image_name or "") for target in comparison.pending]
        return SignatureCheck(
            find_rules=lambda root: policy.find_for(root, image_names_of(root.descriptor), references),
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
        copy, cancelled = comparison.copy, self._access.create_cancel_event()
        context = replace(self._access.context(copy.entry.source, cancelled), jobs=1)
        try:
            with closing(self._access.open_source(copy, context)) as source:
                for destination in comparison.pending:
                    try:
                        with closing(self._open_destination(destination, cancelled)) as opened:
                            report = Copy(
                                *(source, opened),
                                jobs=1,
                                cancelled=cancelled,
                                rename=_rename_roots(destination),
                                signature_check=self._build_check(comparison),
                            ).run(dry_run=True)
                    except OcistreamError as error:
                        comparison.add_failure([destination], error)
                    else:
                        comparison.planned[destination.name] = report
        except OcistreamError as error:
            comparison.add_failure(comparison.pending, error)

    def add_planned(self, comparison: ImageComparison) -> None:
        """Add what would be copied of an image; blobs that earlier images bring along are not counted again.

        A run writes an image to all its destinations at once, so its blobs count for each, even in one registry.
        """
        read_digests: set[str] = set()
        planned = [destination for destination in comparison.pending if destination.name in comparison.planned]
        for destination in planned:
            report = comparison.planned[destination.name]
            # Within one registry, a blob of an earlier image is mounted from another repository.
            copied = (result.descriptor for result in report.blobs if result.status == "copied")
            new = [blob for blob in copied if not self._blobs.has(destination, blob)]
            bytes_read = sum(blob.size for blob in new if blob.digest not in read_digests)
            read_digests.update(blob.digest for blob in new)
            comparison.add_result(
                SyncResult(
                    *(comparison.copy.name, destination.name, "to copy", report.graph.roots[0].descriptor.digest),
                    size=sum(blob.size for blob in new),
                    bytes_read=bytes_read,
                    incomplete=report.graph.incomplete_indexes,
                )
            )
        for destination in planned:
            self._blobs.add(destination, comparison.planned[destination.name].graph.blobs)

    def _open_destination(self, copy_destination: CopyDestination, cancelled: threading.Event) -> Destination:
        location, reference = copy_destination.sync_location.location, copy_destination.reference
        context = replace(
            self._access.context(copy_destination.sync_location, cancelled),
            layout_writer=self._access.layouts.open,
        )
        if reference is not None:
            location = replace(location, reference=reference)
            context = replace(context, mount_candidates=lambda digest: self._blobs.find_repositories(reference, digest))
        return open_destination(location, context)


class _ImageProgress:
    """Reports the copy of one image as a part of a run: bytes and blobs of all images are one total."""

    def __init__(self, run: RunObserver, size: int, blobs: int) -> None:
        self._run = run
        #: Bytes and blobs of the image that are in the total.
        self._expected = (size, blobs)
        self._lock = threading.Lock()
        #: Bytes that have moved, and blobs that are finished.
        self._moved = self._done = 0

    def planned(self, graph: Graph) -> None:
        """Replace the expected size of the image by its real size."""
        size, blobs = self._expected
        self._expected = graph.size, len(graph.blobs)
        self._run.add_total(graph.size - size, len(graph.blobs) - blobs, graph.roots)

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:
        """Count moved bytes."""
        with self._lock:
            self._moved += size
        self._run.advance(size, descriptor)

    def done(self, descriptor: Descriptor, status: str) -> None:
        """Count a finished blob."""
        with self._lock:
            self._done += 1
        self._run.done(descriptor, status)

    def close(self) -> None:
        """End the image, also after a failure: what has not moved by now is removed from the total."""
        size, blobs = self._expected
        if (size, blobs) != (self._moved, self._done):
            self._run.add_total(self._moved - size, self._done - blobs)


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

            def is_free() -> bool:
                return self._claimed.isdisjoint(needed.difference(self._copied))

            with self._changed:
                # All at once: two images that each wait for a blob of the other one would wait forever.
                release()
                wait_until(lambda seconds: self._changed.wait_for(is_free, seconds), cancelled)
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

    def has(self, destination: CopyDestination, blob: Descriptor) -> bool:
        """Return whether this run has copied a blob to the registry or the layout of a destination."""
        store = _store_of(destination)
        return store is not None and hash((store, blob.digest)) in self._copied

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
