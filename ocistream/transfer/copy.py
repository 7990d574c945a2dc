"""Copy a source to a destination: the steps of one copy, in order (`Copy`).

blob_plan.py decides what happens to each blob; blob_writer.py writes it.
"""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import (
    ArchiveError,
    CancelledError,
    IntegrityError,
    OcistreamError,
    TruncatedError,
    UnsupportedError,
)
from ocistream.oci.referrers import RECOMPRESSED
from ocistream.streams.workers import DEFAULT_JOBS, run_each
from ocistream.transfer.blob_plan import Action, ExistenceCheck, find_recompressed, plan_blobs
from ocistream.transfer.blob_writer import BlobWriter
from ocistream.transfer.config_checks import ConfigChecker
from ocistream.transfer.early_blobs import EarlyBlobWriter
from ocistream.transfer.interfaces import NullObserver
from ocistream.transfer.report import MissingBlobsError, MissingVolumesError, NeededVolumes, Report
from ocistream.transfer.verified_blobs import blob_from_bytes, require_complete

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.oci.omitted_blobs import OmissionReason
    from ocistream.signatures.check import SignatureCheck
    from ocistream.transfer.blob_plan import BlobPlan
    from ocistream.transfer.interfaces import Blob, Destination, Observer, Source
    from ocistream.transfer.recompress import RecompressionSettings, Recompressor

#: How many layers are recompressed at once. Each one takes its own memory, and zstd runs two threads for it.
_RECOMPRESS_JOBS: Final = 2


@dataclass
class Copy:
    """One copy. Both locations stay open.

    The steps, in order: resolve the graph; select what of it is copied; plan what happens to each blob; begin the
    destination; place blobs that exist or are in memory; move the others; handle missing ones; rewrite manifests whose
    layers were recompressed, and only then begin the destination; commit.
    """

    source: Source
    destination: Destination
    observer: Observer = field(default_factory=NullObserver)
    _: KW_ONLY
    #: How many blobs move at once, where both locations allow it, and how many connections fetch them.
    jobs: int = DEFAULT_JOBS
    #: Memory for prefetching, in bytes; 0 means one connection for each blob.
    prefetch_memory: int = limits.PREFETCH_MEMORY
    #: Stops the copy. A failure in one of several threads sets it, to stop those that wait on it.
    cancelled: threading.Event = field(default_factory=threading.Event)
    #: Receives the source's graph; if it raises, nothing is copied.
    on_resolved: Callable[[Graph], None] = lambda _graph: None
    #: Returns the graph with other root names.
    rename: Callable[[Graph], Graph] = lambda graph: graph
    #: Returns the blobs to omit from the output, by digest, with the reason for each.
    omit: Callable[[Graph], Mapping[str, OmissionReason]] | None = None
    #: How to recompress image layers that use another format.
    recompression: RecompressionSettings | None = None
    #: How to recompress the layers that `docker save` left uncompressed, if there is no `recompression`.
    plain_layer_recompression: RecompressionSettings | None = None
    #: Checks the source's graph, before anything is written if possible, and before anything becomes visible.
    signature_check: SignatureCheck | None = None

    def __post_init__(self) -> None:
        self._is_dry_run = False
        self._writer = BlobWriter(self.destination, self.observer, self.cancelled)
        self._results = self._writer.results
        self._config_checker = ConfigChecker()
        self._early_blobs = EarlyBlobWriter(
            self._writer, self._config_checker, self.recompression, self.plain_layer_recompression
        )
        #: None if no layers are recompressed. Known with the graph.
        self._recompressor: Recompressor | None = None

    def run(self, *, dry_run: bool = False) -> Report:
        """Copy the images. Nothing becomes visible before all blobs are verified.

        With `dry_run`, find out what would be copied, and write nothing. A pipe is read to its end and verified.

        Raises:
            OcistreamError: the first failure; nothing new is visible in the destination.
        """
        self._is_dry_run = dry_run
        try:
            return self._run()
        except (IntegrityError, ArchiveError) as error:
            # A source that ends too early proves nothing about the bytes before. Nor does an error before the first
            # blob, such as a missing signature, about the bytes of an earlier run.
            if self._writer.has_started and not isinstance(error, TruncatedError):
                self.destination.discard()
            raise

    def _run(self) -> Report:
        started_at = time.monotonic()
        graph = self._select(self._resolve_graph())
        plan = self._plan(graph)
        existence = ExistenceCheck(
            self.source,
            self.destination,
            self._results,
            jobs=self.jobs,
            cancelled=self.cancelled,
            is_dry_run=self._is_dry_run,
        )
        # Before anything else is written or mounted: a copy that cannot succeed changes nothing more.
        absent, remaining = existence.split_absent(graph, plan.pending, plan.recompressed)
        if plan.recompressed:
            # The destination begins when the digests of the new layers are known (`_rewrite`).
            self._writer.new_blob_destination()
        elif not self._is_dry_run or self.destination.traits.begins_without_writing:
            # In a dry run only a registry begins: it checks the digest that the user gave, and writes nothing.
            self.destination.begin(graph)
        missing = existence.mount_absent(graph, absent)
        wanted = self._place_existing(graph, plan, remaining, existence)
        if self._is_dry_run:
            self._handle_missing(graph, plan, (), missing)
            report = self._preview(graph, plan)
        else:
            self._move(plan, wanted)
            graph = self._handle_missing(graph, plan, wanted, missing)
            report = self._rewrite(graph, plan)
            if self.cancelled.is_set():
                # After an interruption nothing may become visible.
                raise CancelledError("cancelled")
            self.destination.commit(report.graph)
        report.seconds = time.monotonic() - started_at
        return report

    # -- resolve -----------------------------------------------------------------------------------------

    def _resolve_graph(self) -> Graph:
        """Resolve the source's graph; after that it is known whether `docker save` wrote the source."""
        if self._is_dry_run:
            graph = self._resolve_and_discard()
        else:
            graph = self.source.resolve(self._early_blobs)
            self._start_signature_check(
                graph,
                lambda blob: self._early_blobs.read_back(blob) if self._results.find(blob.digest) is not None else None,
            )
        self._recompressor = self._early_blobs.choose_recompressor(graph)
        graph = self._limit_graph(graph)
        self._early_blobs.restore_plain_layers(graph)
        return graph

    def _resolve_and_discard(self) -> Graph:
        """Resolve the graph for a dry run. A pipe is read to its end: only then it is known what the pipe has."""
        # Imported here, because only a dry run needs this module.
        from ocistream.transfer.discarded_blobs import DiscardedBlobs

        with closing(DiscardedBlobs(self.cancelled, self.destination.traits.early_refusal)) as discarded:
            graph = self.source.resolve(discarded)
            self._start_signature_check(
                graph, lambda blob: discarded.read_back(blob) if discarded.can_read_back(blob) else None
            )
            for piped in () if self.source.concurrent else self._open_blobs(graph.blobs):
                if (error := discarded.write(piped)) is not None:
                    raise error
        return graph

    def _start_signature_check(self, graph: Graph, read_early: Callable[[Descriptor], bytes | None]) -> None:
        """Start the check of signatures, and finish it if the source need not be read in order.

        `read_early` returns a blob that came before the graph, or None.
        """
        if self.signature_check is None:
            return
        self.signature_check.start(graph)
        if self.source.concurrent:
            # Imported here, because few copies are checked.
            from ocistream.transfer.graph_check import read_pending

            read_pending(self.signature_check, self.source)
        for blob in tuple(self.signature_check.pending.values()):
            if (content := read_early(blob)) is not None:
                self.signature_check.add(blob.digest, content)
        if self.source.concurrent or not self.signature_check.pending:
            self.signature_check.finish()

    def _open_blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Open the wanted blobs, and pass on those that the check of signatures still needs."""
        if self.signature_check is None or not self.signature_check.pending:
            return self.source.blobs(wanted)
        from ocistream.transfer.graph_check import watch_pending

        digests = {blob.digest for blob in wanted}
        checked = [blob for digest, blob in self.signature_check.pending.items() if digest not in digests]
        return watch_pending(self.signature_check, self.source.blobs([*wanted, *checked]), digests)

    def _limit_graph(self, graph: Graph) -> Graph:
        """Omit platforms that neither side has."""
        if not self.source.may_lack_blobs:
            return graph
        # Imported here, because registries have complete indexes.
        from ocistream.transfer.incomplete_indexes import limit_to_source

        return limit_to_source(self.source, graph, partial(self._list_stored_manifests, graph))

    def _list_stored_manifests(self, graph: Graph, absent: Sequence[Descriptor]) -> set[str]:
        """Return the digests of the absent manifests that the destination has."""
        if not self.destination.traits.keeps_blobs:
            return set()
        # Without referrers: which of them are copied is known only when it is known which platforms are copied.
        self.destination.expect(replace(graph, referrers={}))
        return self.destination.stored(absent)

    # -- select ------------------------------------------------------------------------------------------

    def _select(self, graph: Graph) -> Graph:
        """Return the part of a graph that is copied, under its new names, and tell the observer of it."""
        self.on_resolved(graph)
        graph = self.destination.expect(self._skip_changed_referrers(self.rename(graph)))
        if self.omit is not None:
            graph = self._omit_blobs(graph, self.omit)
        self.observer.planned(graph)
        return graph

    def _skip_changed_referrers(self, graph: Graph) -> Graph:
        """Skip referrers of images that are recompressed: these get another digest, and the old one does not arrive."""
        recompressed = find_recompressed(graph, self._recompressor, self._results) if graph.referrers else ()
        if self._recompressor is None or not recompressed:
            return graph
        changed = self._recompressor.find_changed_manifests(graph, recompressed)
        return graph.without_referrers(
            lambda referrer: referrer.subject in changed or referrer.descriptor.digest in changed, RECOMPRESSED
        )

    def _omit_blobs(self, graph: Graph, omit: Callable[[Graph], Mapping[str, OmissionReason]]) -> Graph:
        """Decide which blobs are omitted from the output.

        Manifests are never omitted: they are small, they list the omitted blobs, and a name needs their bytes. Nor are
        the payloads of signatures: the reader may have to check them.
        """
        if not self.destination.traits.can_omit:
            msg = "cannot omit blobs from this destination"
            raise UnsupportedError(msg, hint="write an OCI archive or a layout")
        omitted = omit(graph)
        # Early blobs are already written, even if the remote side has them.
        payloads = graph.signature_payloads()
        remaining = [
            b.digest
            for b in graph.blobs
            if b.digest in omitted and b.digest not in payloads and self._results.find(b.digest) is None
        ]
        return replace(graph, omitted_from_output={digest: omitted[digest] for digest in remaining})

    # -- plan --------------------------------------------------------------------------------------------

    def _plan(self, graph: Graph) -> BlobPlan:
        """Plan what happens to each blob, and check the configs that came before the graph."""
        self._config_checker.find_configs(graph)
        plan = plan_blobs(graph, self._config_checker.digests, self._recompressor, self._results)
        pending = {blob.digest for blob in plan.pending}
        for blob in graph.blobs:
            if blob.digest not in pending and plan.actions[blob.digest] is not Action.OMIT:
                self._config_checker.check_early(blob)
        return plan

    # -- place -------------------------------------------------------------------------------------------

    def _place_existing(
        self, graph: Graph, plan: BlobPlan, remaining: Sequence[Descriptor], existence: ExistenceCheck
    ) -> list[Descriptor]:
        """Skip or mount existing blobs, write those that are in memory, and return those that the source must send."""
        for blob in graph.blobs:
            if plan.actions[blob.digest] is Action.OMIT:
                self._results.add(blob, "omitted")
        # The digest of a recompressed layer is not known yet, so the destination cannot be asked for it.
        unchanged = [blob for blob in remaining if plan.actions[blob.digest] is not Action.RECOMPRESS]
        existence.skip_or_mount(unchanged, self.destination.stored(unchanged, quick=True))
        # Read a config even if the destination has it: its diff_ids are needed to check the recompressed layers.
        wanted = [
            blob
            for blob in remaining
            if self._results.find(blob.digest) is None or plan.actions[blob.digest] is Action.READ
        ]
        for blob in () if self._is_dry_run else wanted:
            if blob.digest in plan.contents:
                self._move_blob(plan, blob_from_bytes(blob, plan.contents[blob.digest]))
        return [blob for blob in wanted if blob.digest not in plan.contents]

    # -- move --------------------------------------------------------------------------------------------

    def _move(self, plan: BlobPlan, wanted: Sequence[Descriptor]) -> None:
        """Move the wanted blobs, and finish the check of signatures."""
        self._move_wanted(plan, wanted)
        if self.signature_check is not None:
            # It has finished already, unless blobs were not read to their end: nothing unchecked may be committed.
            self.signature_check.finish()
        self._skip_unsent(plan, wanted)

    def _move_wanted(self, plan: BlobPlan, wanted: Sequence[Descriptor]) -> None:
        """Move blobs, several at once where both sides allow it. If none is wanted, a pipe is still read to its end."""
        is_recompressing = bool(plan.recompressed)
        jobs = self.jobs if self.destination.traits.concurrent else 1
        # Recompressing a layer takes memory of its own, and more than one core.
        jobs = min(jobs, _RECOMPRESS_JOBS) if is_recompressing else jobs
        concurrency = min(jobs, len(wanted))
        blobs = self._open_blobs(wanted)
        if not self.source.concurrent:
            self._move_from_pipe(plan, concurrency, blobs)
            return
        memory = self.prefetch_memory - self.destination.traits.buffer_size * concurrency
        # The prefetcher would not end its first measurement, before which it prefetches nothing.
        is_too_short = (
            len(wanted) < limits.PREFETCH_WINDOW_BLOBS
            and sum(blob.size for blob in wanted) < limits.PREFETCH_WINDOW_SIZE
        )
        if memory <= 0 or self.jobs == 1 or is_recompressing or is_too_short:
            self._move_each(plan, concurrency, blobs)
            return
        # Imported here, because small images are not prefetched.
        from ocistream.transfer.prefetch import Prefetcher

        with closing(Prefetcher(self.jobs, memory, self.cancelled)) as prefetcher:
            prefetched = prefetcher.in_order(blobs) if jobs == 1 else prefetcher.concurrently(blobs)
            self._move_each(plan, concurrency, prefetched)

    def _move_from_pipe(self, plan: BlobPlan, concurrency: int, blobs: Iterator[Blob]) -> None:
        """Move blobs in the order of a pipe, several at once as far as the pipe allows."""
        if concurrency == 1:
            self._move_each(plan, 1, blobs)
            return
        # Imported here, because only some copies read a pipe.
        from ocistream.transfer.piped_blobs import PipedBlobs

        piped = PipedBlobs(
            blobs,
            partial(self._move_blob, plan),
            # Layers that are recompressed, and large configs that are read or checked, take memory of their own.
            is_exclusive=lambda blob: plan.actions[blob.descriptor.digest] is not Action.WRITE,
            cancelled=self.cancelled,
        )
        try:
            self._move_each(plan, concurrency, iter(piped), piped.move)
        except OcistreamError as error:
            raise (piped.failures or [error])[0] from None
        if piped.failures:
            raise piped.failures[0]

    def _move_each(
        self, plan: BlobPlan, concurrency: int, blobs: Iterator[Blob], move: Callable[[Blob], None] | None = None
    ) -> None:
        """Move the configs that come first one by one, then the other blobs in several threads, each by `move`."""
        for blob in blobs:
            if plan.actions[blob.descriptor.digest] is not Action.READ:
                blobs = itertools.chain([blob], blobs)
                break
            # Configs come first where blobs are read concurrently. Each is buffered completely and may have megabytes.
            self._move_blob(plan, blob)
        run_each(move or partial(self._move_blob, plan), blobs, jobs=concurrency, cancelled=self.cancelled)

    def _move_blob(self, plan: BlobPlan, blob: Blob) -> None:
        """Do what is planned for one blob."""
        digest = blob.descriptor.digest
        action, recompressor = plan.actions[digest], self._recompressor
        if action is not Action.WRITE:
            require_complete(blob)
        if recompressor is not None and action is Action.RECOMPRESS:
            self._writer.recompress(blob, recompressor)
        elif recompressor is not None and action is Action.READ:
            content = self._writer.read(blob)
            recompressor.add_config(digest, content)
            self._config_checker.report_platform(blob.descriptor, content)
            if self._results.find(digest) is None:
                self._writer.write(blob_from_bytes(blob.descriptor, content))
        elif recompressor is not None and digest in recompressor.result_digests:
            # A layer was recompressed into this blob after the destination was asked for it.
            self._writer.verify_stored(blob)
        elif recompressor is not None and action is Action.CHECK_COMPRESSION:
            self._writer.write(blob, recompressor.with_compression_check)
        elif action is Action.CHECK_JSON:
            with self._config_checker.take_turn(blob.descriptor, self.cancelled):
                self._writer.write(blob, self._config_checker.with_check)
        else:
            self._writer.write(blob)

    def _skip_unsent(self, plan: BlobPlan, wanted: Sequence[Descriptor]) -> None:
        """Skip the blobs that a pipe has not sent and the destination has, unless their bytes are needed.

        A registry may not have been asked for small ones, because the source was expected to send them.
        """
        unsent = [
            blob
            for blob in wanted
            if self._results.find(blob.digest) is None
            and plan.actions[blob.digest] not in {Action.READ, Action.RECOMPRESS}
        ]
        stored = self.destination.stored(unsent)
        for blob in unsent:
            if blob.digest in stored:
                self._results.add(blob, "skipped")

    # -- handle missing blobs ----------------------------------------------------------------------------

    def _handle_missing(
        self, graph: Graph, plan: BlobPlan, wanted: Sequence[Descriptor], missing: Sequence[Descriptor]
    ) -> Graph:
        """Write the parts of blobs that continue in other volumes; return the graph, without unavailable platforms.

        `missing` are the blobs that neither the source nor the destination has, and that other volumes should have. A
        source did not yield the wanted blobs without a result, although its graph lists them.
        """
        needed = None
        if missing:
            needed = self._use_parts(graph, missing)
        unavailable = [blob for blob in (*missing, *wanted) if self._results.find(blob.digest) is None]
        return self._drop_missing(graph, plan, unavailable, needed) if unavailable else graph

    def _use_parts(self, graph: Graph, missing: Sequence[Descriptor]) -> NeededVolumes:
        """Write the parts that the source has of missing blobs, and return the volumes that have the rest."""
        use = self._writer.preview_parts if self._is_dry_run else self._writer.write_parts
        needed: dict[str, None] = {}
        in_order: dict[str, Sequence[str]] = {}
        for blob in missing:
            parts = self.source.parts(blob)
            if not parts:
                if (reason := graph.omitted_from_source.get(blob.digest)) is not None:
                    needed[reason.name] = None
                continue
            available = [part.blob for part in parts if part.blob is not None]
            stored = use(blob, available) if self.destination.traits.accepts_parts else 0
            missing_parts = [part for part in parts if part.offset + part.size > stored]
            needed.update(dict.fromkeys(part.volume for part in missing_parts))
            if any(part.blob for part in missing_parts):
                # The available part does not follow the stored bytes, so it is of no use yet.
                in_order[blob.digest] = [part.volume for part in missing_parts]
        return NeededVolumes(tuple(sorted(needed)), in_order)

    def _drop_missing(
        self, graph: Graph, plan: BlobPlan, unavailable: Sequence[Descriptor], needed: NeededVolumes | None
    ) -> Graph:
        """Return the graph without platforms that a pipe did not have, if it lacks nothing else.

        `needed` are the volumes that have the missing blobs; None if no blob of other volumes is missing. A destination
        that has already written the index cannot change it, so there every unavailable blob raises MissingBlobsError.
        """
        unavailable_digests = {blob.digest for blob in unavailable}
        if (
            needed is None
            and self.destination.traits.keeps_blobs
            and not graph.omitted_from_output
            and not plan.recompressed
        ):
            # Imported here, because few pipes lack blobs that their index lists.
            from ocistream.transfer.incomplete_indexes import limit_to_exported

            exported = limit_to_exported(graph, lambda blob: blob.digest in unavailable_digests)
            if unavailable_digests.isdisjoint(blob.digest for blob in (*exported.blobs, *exported.absent)):
                exported = self.destination.expect(exported)
                self.destination.begin(exported)
                return exported
        error = MissingBlobsError if needed is None else MissingVolumesError
        raise error(unavailable, graph, is_untouched=self._is_dry_run, needed=needed)

    # -- preview -----------------------------------------------------------------------------------------

    def _preview(self, graph: Graph, plan: BlobPlan) -> Report:
        """Return the report of a dry run: a blob without a result yet would be copied or recompressed."""
        recompressed = set(plan.recompressed)
        for blob in graph.blobs:
            if blob.digest in recompressed:
                self._results.add(blob, "converted")
            elif self._results.find(blob.digest) is None:
                self._results.add(blob, "copied", resumed=self.destination.partial_size(blob))
        changed = (
            self._recompressor.find_changed_manifests(graph, recompressed)
            if self._recompressor is not None and recompressed
            else frozenset[str]()
        )
        return Report(graph, graph, self._results.list_for(graph, {}), is_dry_run=True, undetermined=changed)

    # -- rewrite -----------------------------------------------------------------------------------------

    def _rewrite(self, graph: Graph, plan: BlobPlan) -> Report:
        """Rewrite the manifests of recompressed layers and begin, if there are any; return the report."""
        if self._recompressor is None or not plan.recompressed:
            return Report(graph, graph, self._results.list_for(graph, {}))
        for blob in graph.blobs:
            # A config that came before the graph was not recognised as one.
            if plan.actions[blob.digest] is Action.READ and blob.digest not in self._recompressor.diff_ids:
                self._recompressor.add_config(blob.digest, self._early_blobs.read_back(blob))
        rewritten, origins = self._recompressor.rewrite_graph(graph)
        self.destination.begin(rewritten)
        layers = [layer for digest in plan.recompressed if (layer := self._recompressor.results.get(digest))]
        source_digests = {layer.result.digest: layer.source.digest for layer in layers}
        return Report(rewritten, graph, self._results.list_for(rewritten, source_digests), origins=origins)
