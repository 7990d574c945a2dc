"""What is moved: one image to all places that lack it, each blob read once; or, of a plan, what would be.

A blob that this run has put into some repository of a registry is mounted from there into others.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import OcistreamError
from ocistream.notices import notice
from ocistream.oci.reference import printable
from ocistream.stores import is_layout_to_be, open_sink
from ocistream.sync.comparison import Look, Outcome, wanted_of
from ocistream.sync.locations import graph_of, opened
from ocistream.transfer import copy as transfer
from ocistream.transfer.fan_out import Branch, FanOut
from ocistream.transfer.incomplete_indexes import exported_by
from ocistream.transfer.interfaces import Lacks, Mounts
from ocistream.transfer.missing import ShortfallError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.oci.reference import Reference
    from ocistream.stores import Surroundings
    from ocistream.sync.plan import Place, Target
    from ocistream.sync.progress import Whole
    from ocistream.transfer.interfaces import Sink, Source

__all__ = ["Moving", "Planned"]


class Planned:
    """What would be moved of one image: for each destination that lacks it which blobs, or why nobody knows."""

    def __init__(self, look: Look) -> None:
        """Begin with nothing known."""
        self.look = look
        self.error: OcistreamError | None = None
        self.lacking: dict[str, tuple[Graph, Sequence[Descriptor]] | OcistreamError] = {}


class Moving:
    """Moves, for one run."""

    def __init__(
        self,
        around: Callable[[Place], Surroundings],
        *,
        jobs: int,
        ahead: int,
        stop: Callable[[], threading.Event],
        watched: Whole,
    ) -> None:
        """Take what each place is reached by. `stop` makes the event that ends one image's transfer."""
        self._around = around
        self._jobs = jobs
        self._ahead = ahead
        self._stop = stop
        self._watched = watched
        self._placed = _Placed()
        #: What is planned for each registry or layout: a blob that several images have goes there once.
        self._planned: set[int] = set()

    def move(self, look: Look) -> list[Outcome]:
        """Copy an image to all destinations that lack it, and say what became of it at each."""
        copy, began, stop = look.copy, monotonic(), self._stop()
        failures: dict[str, OcistreamError] = {}
        branches: dict[str, Branch] = {}
        digest: str | None = None
        fan: FanOut | None = None
        self._watched.begin(look.size, look.blobs)
        with ExitStack() as stack:
            stack.callback(self._watched.end)
            try:
                source = look.source
                if source is None:
                    source = opened(copy.source, self._surroundings(copy.entry.source, stop), wanted_of(copy.entry))
                    stack.callback(source.close)
                for target in look.lacking:
                    try:
                        branches[target.name] = Branch(self._sink(target, stop), _renaming(target))
                    except OcistreamError as error:
                        failures[target.name] = error
                fan = FanOut(list(branches.values()), stop)
                stack.callback(fan.close)
                if branches:
                    report = transfer.copy(
                        source, fan, self._watched, jobs=self._jobs, ahead=self._ahead, cancelled=stop
                    )
                    root = report.graph.roots[0]
                    digest = root.descriptor.digest
                    for doubt in root.taken.doubts() if root.taken else ():
                        notice(f"{printable(copy.name)}: {doubt}")
            except OcistreamError as error:
                for target in look.lacking:
                    failures.setdefault(target.name, error)
        fetched = fan.fetched if fan is not None else 0
        outcomes = []
        for target in look.lacking:
            branch = branches.get(target.name)
            failure = (branch.failure if branch else None) or failures.get(target.name)
            if branch and branch.graph and not failure and target.reference:
                self._placed.note(target.reference, branch.graph.blobs)
            outcomes.append(
                Outcome(
                    copy.name,
                    target.name,
                    "failed" if failure else "copied",
                    None if failure else digest,
                    failure,
                    branch.sent if branch else 0,
                    fetched,
                    monotonic() - began,
                    branch.graph.left_behind if branch and branch.graph and not failure else (),
                    branch.graph.incomplete if branch and branch.graph and not failure else (),
                )
            )
            fetched = 0
        return outcomes

    def plan(self, planned: Planned) -> None:
        """Find out what would be moved; nothing is written. It may be called in any thread."""
        look, stop = planned.look, self._stop()
        copy = look.copy
        try:
            with ExitStack() as stack:
                around = replace(self._surroundings(copy.entry.source, stop), jobs=1)
                source = opened(copy.source, around, wanted_of(copy.entry))
                stack.callback(source.close)
                graph = graph_of(source, copy.source)
                for target in look.lacking:
                    try:
                        planned.lacking[target.name] = self._lacking(target, graph, source, stop)
                    except OcistreamError as error:
                        planned.lacking[target.name] = error
        except OcistreamError as error:
            planned.error = error

    def outcomes(self, planned: Planned) -> list[Outcome]:
        """Give what would become of an image; of what others before it bring along, nothing is counted again."""
        name, found = planned.look.copy.name, []
        fetched: set[str] = set()
        for target in planned.look.lacking:
            lacking = planned.error or planned.lacking[target.name]
            if isinstance(lacking, OcistreamError):
                found.append(Outcome(name, target.name, "failed", error=lacking))
                continue
            graph, blobs = lacking
            new = [blob for blob in blobs if self._is_new(target, blob)]
            read = sum(blob.size for blob in new if blob.digest not in fetched)
            fetched.update(blob.digest for blob in new)
            size = sum(blob.size for blob in new)
            found.append(
                Outcome(
                    *(name, target.name, "to copy", graph.roots[0].descriptor.digest),
                    size=size,
                    fetched=read,
                    incomplete=graph.incomplete,
                )
            )
        return found

    def _is_new(self, target: Target, blob: Descriptor) -> bool:
        end = target.place.end
        if end.reference is None and not is_layout_to_be(end):
            return True
        # From one repository of a registry to another it is mounted.
        place = hash((end.reference.registry if end.reference else str(end.path), blob.digest))
        if place in self._planned:
            return False
        if len(self._planned) < limits.MAX_PLACED:
            self._planned.add(place)
        return True

    def _lacking(
        self, target: Target, graph: Graph, source: Source, stop: threading.Event
    ) -> tuple[Graph, list[Descriptor]]:
        """Find out what a destination would get: the graph, less what neither side has of an index, and its blobs.

        Raises:
            ShortfallError: neither side has all that an image needs.
        """
        end = target.place.end
        if end.reference is None and not is_layout_to_be(end):
            graph = exported_by(source, graph)
            _check_all_there(graph, source, graph.absent, graph.blobs)
            return graph, list(graph.blobs)
        with ExitStack() as stack:
            sink = self._sink(target, stop)
            stack.callback(sink.close)
            if end.reference is not None:
                # Of a registry's sink, that asks for nothing and writes nothing.
                sink.begin(graph)
            graph = exported_by(source, graph, sink.has_manifest)

            def is_lacking(blob: Descriptor) -> bool:
                return not sink.has(blob) and not (isinstance(sink, Mounts) and sink.could_mount(blob, source))

            # One after the other: this is done side by side with the same for other images.
            lacking = list(filter(is_lacking, graph.blobs))
            named = {root.descriptor.digest for root in graph.roots}
            absent = [one for one in graph.absent if one.digest in named or not sink.has_manifest(one)]
            _check_all_there(graph, source, absent, lacking)
            return graph, lacking

    def _sink(self, target: Target, stop: threading.Event) -> Sink:
        end, reference = target.place.end, target.reference
        around = self._surroundings(target.place, stop)
        if reference is not None:
            end = replace(end, reference=reference)
            around = replace(around, placed=lambda digest: self._placed.of(reference, digest))
        return open_sink(end, around)

    def _surroundings(self, place: Place, stop: threading.Event) -> Surroundings:
        return replace(self._around(place), cancelled=stop)


class _Placed:
    """In which repository of each registry this run has seen a blob to be, of the newest so many."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: By registry and digest, as a number: where two fell together, mounting would fail, and the blob be sent.
        self._repositories: dict[int, str] = {}

    def note(self, reference: Reference, blobs: Sequence[Descriptor]) -> None:
        with self._lock:
            for blob in blobs:
                self._repositories.setdefault(hash((reference.registry, blob.digest)), reference.repository)
            while len(self._repositories) > limits.MAX_PLACED:
                del self._repositories[next(iter(self._repositories))]

    def of(self, reference: Reference, digest: str) -> Sequence[str]:
        with self._lock:
            found = self._repositories.get(hash((reference.registry, digest)))
        return () if found is None else (found,)


def _check_all_there(graph: Graph, source: Source, absent: Sequence[Descriptor], lacking: Sequence[Descriptor]) -> None:
    """Fail as the transfer would: `absent` are manifests that neither side has, `lacking` blobs to be copied.

    Raises:
        ShortfallError: there are such manifests, or the source has not all of the blobs.
    """
    lacks = source.lacks if isinstance(source, Lacks) else lambda _: False
    missing = [*absent, *(blob for blob in lacking if blob.digest not in graph.embedded and lacks(blob))]
    if missing:
        raise ShortfallError(missing, graph, is_untouched=True)


def _renaming(target: Target) -> Callable[[Graph], Graph]:
    name = target.place.end.name
    if target.reference is not None or name is None:
        return lambda graph: graph
    return lambda graph: replace(graph, roots=tuple(replace(root, name=name) for root in graph.roots))
