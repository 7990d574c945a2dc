"""copy(source, sink): the one way anything moves.

Here is the order of things: the graph, what is there already, the blobs, then what makes them visible. Which way a
blob goes is `transfer/pipeline.py`'s. Neither knows a store, a terminal, or a network.
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
from ocistream.oci.referrers import CONVERTED, NARROWED
from ocistream.streams.chunks import wrong_size
from ocistream.streams.workers import DEFAULT_JOBS, apart, each
from ocistream.transfer.blobs import held
from ocistream.transfer.existence import Asking
from ocistream.transfer.incomplete_indexes import not_exported, only_exported
from ocistream.transfer.interfaces import (
    Blob,
    EndsInOrder,
    Expects,
    Gathers,
    HasNoPlace,
    Holds,
    Keeps,
    Lacks,
    LeavesOut,
    Spares,
    Unwatched,
)
from ocistream.transfer.missing import ShortfallError
from ocistream.transfer.pipeline import Passing
from ocistream.transfer.prefetch import Ahead
from ocistream.transfer.report import Moved, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.oci.omitted_blobs import Reason
    from ocistream.transfer.interfaces import Observer, Sink, Source
    from ocistream.transfer.missing import NeededVolumes
    from ocistream.transfer.recompress import Recompression

__all__ = ["Report", "copy"]

#: How many blobs move at once where layers are compressed anew.
_CONVERTING_JOBS = 2


def copy(  # noqa: PLR0913 - all but two are options, given by name
    source: Source,
    sink: Sink,
    observer: Observer | None = None,
    *,
    jobs: int = DEFAULT_JOBS,
    ahead: int = limits.AHEAD_MEMORY,
    cancelled: threading.Event | None = None,
    rename: Callable[[Graph], Graph] | None = None,
    leave_out: Callable[[Graph], Mapping[str, Reason]] | None = None,
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
    transfer = _Transfer(source, sink, observer or Unwatched(), jobs, cancelled or threading.Event())
    transfer.ahead = ahead
    transfer.leave_out = leave_out
    transfer.passing.bare_layers = bare_layers
    if recompression is not None:
        transfer.passing.compress(recompression)
    try:
        return transfer.run(rename)
    except (IntegrityError, ArchiveError):
        if isinstance(sink, Keeps):
            sink.discard()
        raise


class _Transfer:
    """The state of one copy."""

    def __init__(self, source: Source, sink: Sink, observer: Observer, jobs: int, cancelled: threading.Event) -> None:
        self._source = source
        self._sink = sink
        self._observer = observer
        self._jobs = jobs
        self._cancelled = cancelled
        #: Each blob on its way.
        self.passing = Passing(sink, observer, cancelled)
        #: How many bytes may be fetched before they are wanted.
        self.ahead = 0
        self.leave_out: Callable[[Graph], Mapping[str, Reason]] | None = None

    def run(self, rename: Callable[[Graph], Graph] | None) -> Report:
        began = time.monotonic()
        if isinstance(self._sink, EndsInOrder) and self._sink.ends_in_order:
            graph, source, origins = apart(lambda: self._move(rename), self._cancelled)
        else:
            graph, source, origins = self._move(rename)
        # Not apart: after an interruption nothing becomes visible any more.
        self._sink.commit(graph)
        return Report(graph, source, self._became(graph), time.monotonic() - began, origins)

    def _move(self, rename: Callable[[Graph], Graph] | None) -> tuple[Graph, Graph, Mapping[str, str]]:
        """Move all blobs; return what is to be visible, what the source had, and what each new manifest was made of."""
        graph = self._found()
        if rename is not None:
            graph = rename(graph)
        graph = source = self._leaving(self._less_what_cannot_go_along(graph))
        self.passing.of_images.find(graph)
        self._observer.planned(graph)
        if self.passing.converts(graph):
            self.passing.unnamed_sink().expect(graph)
        else:
            self._sink.begin(graph)
        for blob in graph.blobs if graph.leaving else ():
            if blob.digest in graph.leaving:
                self.passing.note(blob, "left out")
        asking = Asking(self._source, self._sink, self.passing.note, jobs=self._jobs, cancelled=self._cancelled)
        missing, waiting = asking.missing_and_others(graph, self._waiting(graph))
        self._check_convertible()
        # Of a layer that is compressed anew, nobody knows yet what it becomes.
        asking.take([blob for blob in waiting if blob.digest not in self.passing.layers])
        # A config that is there is read all the same: it says what the layers have to be.
        configs = self.passing.configs
        wanted = [blob for blob in waiting if blob.digest not in self.passing.moved or blob.digest in configs]
        # Even where nothing is wanted any more, a pipe is read to its end.
        wanted = self._put_manifests_wanted_as_blobs(graph, wanted)
        self._put_all(wanted)
        needed = self._part_by_part(missing, graph) if missing else None
        missing = [blob for blob in missing if blob.digest not in self.passing.moved]
        if lacking := [*missing, *(blob for blob in wanted if blob.digest not in self.passing.moved)]:
            graph = source = self._without(lacking, graph, needed)
        origins: Mapping[str, str] = {}
        if self.passing.layers and (conversion := self.passing.conversion) is not None:
            for blob in graph.blobs:
                # One that came early was not seen for what it is.
                if blob.digest in configs and not conversion.knows_config(blob.digest):
                    conversion.note_config(blob.digest, self.passing.recall(blob))
            graph, origins = conversion.rewritten(graph)
            self._sink.begin(graph)
        return graph, source, origins

    def _check_convertible(self) -> None:
        """Refuse to compress anew what the source was made without: only the sink has it."""
        for digest in self.passing.layers:
            moved = self.passing.moved.get(digest)
            if moved is not None and moved.how in {"skipped", "mounted"}:
                msg = f"{digest} is to be compressed anew, and only the destination has it"
                raise UnsupportedError(msg, hint="leave --compress away: some layers were left out here")

    def _leaving(self, graph: Graph) -> Graph:
        """Decide what is left out on purpose."""
        if self.leave_out is None:
            return graph
        if not isinstance(self._sink, LeavesOut):
            msg = "nothing can be left out of this destination"
            raise UnsupportedError(msg, hint="write an OCI archive or a layout")
        leaving = self.leave_out(graph)
        # What came before the graph was known is written by now, whatever the other side has.
        left = [b.digest for b in graph.blobs if b.digest in leaving and b.digest not in self.passing.moved]
        return replace(graph, leaving={digest: leaving[digest] for digest in left})

    def _became(self, graph: Graph) -> list[Moved]:
        """Say what became of each blob of what was written."""
        made = {}
        if self.passing.conversion is not None:
            made = {
                done.result.digest: done
                for digest in self.passing.layers
                if (done := self.passing.conversion.done(digest))
            }
        # Of what came early, only the digest was known: what the graph says of a blob is shown.
        return [
            Moved(blob, "converted", made[blob.digest].source.digest)
            if blob.digest in made
            else replace(self.passing.moved[blob.digest], descriptor=blob)
            for blob in graph.blobs
        ]

    def _found(self) -> Graph:
        """Find out what is to be moved; from now on it is known whether `docker save` wrote the source."""
        graph = self._source.graph(self.passing)
        if graph.bare:
            self.passing.compress_bare(graph)
        graph = self._less_not_exported(graph)
        if not graph.bare:
            self.passing.restore(graph)
        return graph

    # -- the steps ---------------------------------------------------------------------------------------

    def _less_what_cannot_go_along(self, graph: Graph) -> Graph:
        """Leave behind what hangs on an image where there is no place for it, or where it would hang on nothing.

        The place may be that of something else.
        """
        if isinstance(self._sink, HasNoPlace):
            no_place = self._sink.no_place
            graph = graph.without_attached(lambda _: True, no_place)
            # What such a format cannot hold would not go along with all platforms either.
            left = (replace(one, why=no_place) if one.why == NARROWED else one for one in graph.left_behind)
            graph = replace(graph, left_behind=tuple(left))
        if graph.attached and self.passing.conversion is not None and self.passing.converts(graph):
            changed = self.passing.conversion.changed(graph, self.passing.layers)
            graph = graph.without_attached(
                lambda attached: attached.subject in changed or attached.descriptor.digest in changed, CONVERTED
            )
        if graph.attached and isinstance(self._sink, Spares):
            graph = self._sink.spared(graph)
        return graph

    def _less_not_exported(self, graph: Graph) -> Graph:
        """Copy only the platforms that the source has, if neither side has the whole index (incomplete_indexes.py)."""
        knows = self._source if isinstance(self._source, Lacks) else None
        if knows is None or not any(root.descriptor.is_index for root in graph.roots):
            return graph
        if not (missing := not_exported(graph, lambda blob: bool(knows.lacks(blob)))):
            return graph
        if isinstance(self._sink, Expects):
            self._sink.expect(graph)
        return only_exported(graph, {one.digest for one in missing if not self._sink.has_manifest(one)})

    def _without(self, lacking: Sequence[Descriptor], graph: Graph, needed: NeededVolumes | None) -> Graph:
        """Take only what a pipe turned out to have, where the rest are platforms that were not exported.

        A sink that has written the index already cannot change it.

        Raises:
            ShortfallError: that is not enough.
        """
        gone = {blob.digest for blob in lacking}
        if needed is None and isinstance(self._sink, Gathers) and not graph.leaving and not self.passing.layers:
            missing = not_exported(graph, lambda blob: blob.digest in gone)
            exported = only_exported(graph, {one.digest for one in missing})
            if gone.isdisjoint(blob.digest for blob in (*exported.blobs, *exported.absent)):
                self._sink.begin(exported)
                return exported
        raise ShortfallError(lacking, graph, is_untouched=False, needed=needed)

    def _waiting(self, graph: Graph) -> list[Descriptor]:
        """List the blobs that have not come early.

        Raises:
            IntegrityError: one that has come is not of the size that the manifests give it.
            ArchiveError: one that has come is an image's config, and no JSON.
        """
        waiting: list[Descriptor] = []
        for blob in graph.blobs:
            moved = self.passing.moved.get(blob.digest)
            if blob.digest in graph.leaving:
                continue
            if moved is None:
                waiting.append(blob)
            elif moved.how == "converted" and blob.digest not in self.passing.layers:
                msg = f"{blob.digest} looked like a layer, and was compressed anew, before it was known to be none"
                raise UnsupportedError(msg, hint="read the archive from a file instead of a pipe")
            elif moved.descriptor.size != blob.size:
                raise wrong_size(blob, moved.descriptor.size)
            else:
                self.passing.of_images.check_early(blob)
        return waiting

    def _put_manifests_wanted_as_blobs(self, graph: Graph, wanted: list[Descriptor]) -> list[Descriptor]:
        """Put what is a manifest and some other manifest's layer or config, from the bytes that are held anyway.

        So is what stands in a descriptor.
        """
        raws = {**graph.embedded, **{manifest.descriptor.digest: manifest.raw for manifest in graph.manifests}}
        for descriptor in wanted:
            if descriptor.digest in raws:
                self.passing.put_one(held(descriptor, raws[descriptor.digest]))
        return [descriptor for descriptor in wanted if descriptor.digest not in raws]

    def _put_all(self, wanted: list[Descriptor]) -> None:
        jobs = self._jobs if self._source.parallel and self._sink.parallel else 1
        # Each one that is compressed takes its own memory, and by itself more than one core.
        jobs = min(jobs, _CONVERTING_JOBS) if self.passing.layers else jobs
        self.passing.at_once = min(jobs, len(wanted))
        blobs = self._source.blobs(wanted)
        memory = self.ahead - (self._sink.held * self.passing.at_once if isinstance(self._sink, Holds) else 0)
        if not (memory > 0 and self._source.parallel and self._jobs > 1) or self.passing.layers:
            self._put_each(blobs, jobs)
            return
        with closing(Ahead(self._jobs, memory, self._cancelled)) as ahead:
            self._put_each(ahead.ordered(blobs) if jobs == 1 else ahead.side_by_side(blobs), jobs)

    def _put_each(self, blobs: Iterator[Blob], jobs: int) -> None:
        for blob in blobs:
            if blob.descriptor.digest not in self.passing.configs:
                blobs = itertools.chain([blob], blobs)
                break
            # They come first where blobs are read side by side. Each is held whole, and may have megabytes.
            self.passing.put_one(blob)
        each(self.passing.put_one, blobs, jobs=jobs, cancelled=self._cancelled)

    def _part_by_part(self, missing: Sequence[Descriptor], graph: Graph) -> NeededVolumes:
        """Put what there is of blobs that have the rest of their parts in other volumes; say which those are."""
        # Hardly any archive is cut into volumes.
        from ocistream.transfer.blob_parts import PartByPart

        parts = PartByPart(self._source, self._sink, self._observer, self.passing.note, self._cancelled)
        return parts.put(missing, graph)
