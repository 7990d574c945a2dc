"""A sync, done: images one after the other, each to all places that do not have it yet, whatever becomes of the others.

What is there is found out first, some images at a time: by a question to either side where a digest says all.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Final

from ocistream import transfer
from ocistream.errors import OcistreamError, UnsupportedError
from ocistream.fanout import Branch, FanOut
from ocistream.files import disk_errors
from ocistream.interfaces import Mounts
from ocistream.reference import printable
from ocistream.stores import Want, is_layout_to_be, open_sink
from ocistream.stores.index import some_images
from ocistream.sync_ends import There, graph_of, opened
from ocistream.sync_plan import Copy, copies, without_doubles
from ocistream.workers import each

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Sequence
    from contextlib import AbstractContextManager

    from ocistream.attachments import LeftBehind
    from ocistream.graph import Graph, Root
    from ocistream.interfaces import Observer, Sink, Source
    from ocistream.model import Descriptor
    from ocistream.reference import Reference
    from ocistream.stores import Surroundings
    from ocistream.sync_plan import Entry, Place, Plan, Shard, Target

__all__ = ["Outcome", "Sync"]

#: So many images are looked at before the first of them is moved.
_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one image at one destination: "copied", "unchanged", "failed"; or, of a plan, "to copy".

    `size` is how many bytes of blobs went there, or would have to; `fetched` how many were read for all destinations of
    the image, and stands at the first of them. `left_behind` hangs on the image, and did not go along.
    """

    source: str
    target: str
    how: str
    digest: str | None = None
    error: OcistreamError | None = None
    size: int = 0
    fetched: int = 0
    seconds: float = 0.0
    left_behind: tuple[LeftBehind, ...] = ()


class Sync:
    """One run. `told` is called with each outcome as it is known, from this thread."""

    def __init__(
        self,
        around: Callable[[Place], Surroundings],
        told: Callable[[Outcome], None],
        *,
        jobs: int,
        ahead: int,
        stop: Callable[[], threading.Event],
        observing: Callable[[], AbstractContextManager[Observer]],
        check_push: Callable[[Reference | None], None] = lambda _: None,
    ) -> None:
        """Take what each place is reached by. `stop` makes the event that ends one image's transfer."""
        self._around = around
        self._told = told
        self._jobs = jobs
        self._ahead = ahead
        self._stop = stop
        self._observing = observing
        self._check_push = check_push

    def run(self, plan: Plan, shard: Shard, *, dry_run: bool = False) -> None:
        """Copy all that is this shard's and differs; or, if it is a `dry_run`, find out what that would be.

        Raises:
            UsageError: two images would go to one place, or a configuration is malformed.
        """
        found = [copy for copy in self._find(plan) if shard.has(copy.name)]
        some = iter(found)
        while batch := list(itertools.islice(some, _AT_ONCE)):
            looks = [_Look(copy) for copy in batch]
            each(self._look, looks, jobs=self._jobs, cancelled=self._stop())
            for look in looks:
                for outcome in look.outcomes:
                    self._told(outcome)
                if look.lacking and dry_run:
                    self._plan(look)
                elif look.lacking:
                    self._move(look)

    # -- which images there are -------------------------------------------------------------------------

    def _find(self, plan: Plan) -> list[Copy]:
        found: list[Copy] = []
        for entry in plan.entries:
            for place in (entry.source, *entry.targets):
                if place.end.reference is not None:
                    # Made here: each of several threads would make one of its own.
                    self._around(place).reading()
            try:
                found += copies(entry, () if entry.is_one else self._names(entry))
            except OcistreamError as error:
                for target in entry.targets:
                    self._told(Outcome(entry.source.end.text, target.end.text, "failed", error=error))
        return without_doubles(found)

    def _names(self, entry: Entry) -> Sequence[str]:
        end, around = entry.source.end, self._around(entry.source)
        if end.reference is not None:
            listed = around.reading().tags(end.reference)
            if listed.cut:
                msg = f"{printable(end.text)}: not all of its tags can be had: {listed.cut}"
                raise UnsupportedError(msg, hint="name its images one by one")
            return listed.tags
        names: list[str] = []

        def listing(roots: Sequence[Root]) -> Sequence[Root]:
            names.extend(root.name for root in some_images(roots) if root.name)
            return roots

        with ExitStack() as stack:
            source = opened(end, around, Want(listing))
            stack.callback(source.close)
            graph_of(source, end)
        return names

    # -- what is there ----------------------------------------------------------------------------------

    def _look(self, look: _Look) -> None:
        """Find out at which destinations an image is not, or is another. It may be called in any thread."""
        copy = look.copy
        try:
            wanted = self._wanted(copy)
        except OcistreamError as error:
            look.failed(copy.targets, error)
            return
        for target in copy.targets:
            try:
                self._check_push(target.reference)
                there = There(target, self._around(target.place))
                is_same = there.digest() == wanted.digest
                # What hangs on it is asked for only where it would be the news.
                if is_same and copy.entry.referrers:
                    is_same = there.has_all_of(wanted.graph(), wanted.digest)
            except OcistreamError as error:
                look.failed([target], error)
            else:
                if is_same:
                    look.outcomes.append(Outcome(copy.name, target.name, "unchanged", wanted.digest))
                else:
                    look.lacking.append(target)

    def _wanted(self, copy: Copy) -> _Wanted:
        end, entry = copy.source, copy.entry
        # One question at a time: this is done side by side with the same for others.
        around = replace(self._around(entry.source), cancelled=self._stop(), jobs=1)

        def graph() -> Graph:
            with ExitStack() as stack:
                source = opened(end, around, _want(entry))
                stack.callback(source.close)
                return graph_of(source, end)

        if end.reference is not None and not entry.platforms.platforms:
            repository = around.reading().repository(end.reference)
            # Some registries do not say in answer to HEAD what it is; and what is not there is said by who gets it.
            digest = repository.digest_of(end.reference.target)
            if digest:
                return _Wanted(digest, graph)
        found = graph()
        return _Wanted(found.roots[0].descriptor.digest, lambda: found)

    # -- what is moved ----------------------------------------------------------------------------------

    def _move(self, look: _Look) -> None:
        copy, began, stop = look.copy, monotonic(), self._stop()
        failures: dict[str, OcistreamError] = {}
        branches: dict[str, Branch] = {}
        digest: str | None = None
        fan: FanOut | None = None
        with ExitStack() as stack:
            try:
                source = opened(copy.source, self._surroundings(copy.entry.source, stop), _want(copy.entry))
                stack.callback(source.close)
                for target in look.lacking:
                    try:
                        branches[target.name] = Branch(self._sink(target, stop), _renaming(target))
                    except OcistreamError as error:
                        failures[target.name] = error
                fan = FanOut(list(branches.values()), stop)
                stack.callback(fan.close)
                if branches:
                    with self._observing() as observer:
                        report = transfer.copy(
                            source, fan, observer, jobs=self._jobs, ahead=self._ahead, cancelled=stop
                        )
                    digest = report.graph.roots[0].descriptor.digest
            except OcistreamError as error:
                for target in look.lacking:
                    failures.setdefault(target.name, error)
        fetched = fan.fetched if fan is not None else 0
        for target in look.lacking:
            branch = branches.get(target.name)
            failure = (branch.failure if branch else None) or failures.get(target.name)
            self._told(
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
                )
            )
            fetched = 0

    def _plan(self, look: _Look) -> None:
        """Say what would be moved. Nothing is written."""
        copy, stop = look.copy, self._stop()
        try:
            with ExitStack() as stack:
                source = opened(copy.source, self._surroundings(copy.entry.source, stop), _want(copy.entry))
                stack.callback(source.close)
                graph = graph_of(source, copy.source)
                fetched: set[str] = set()
                found: list[Outcome] = []
                for target in look.lacking:
                    try:
                        lacking = self._lacking(target, graph, source, stop)
                    except OcistreamError as error:
                        found.append(Outcome(copy.name, target.name, "failed", error=error))
                        continue
                    new = sum(blob.size for blob in lacking if blob.digest not in fetched)
                    fetched.update(blob.digest for blob in lacking)
                    size, digest = sum(blob.size for blob in lacking), graph.roots[0].descriptor.digest
                    found.append(Outcome(copy.name, target.name, "to copy", digest, size=size, fetched=new))
        except OcistreamError as error:
            found = [Outcome(copy.name, target.name, "failed", error=error) for target in look.lacking]
        for outcome in found:
            self._told(outcome)

    def _lacking(self, target: Target, graph: Graph, source: Source, stop: threading.Event) -> list[Descriptor]:
        end = target.place.end
        if end.reference is None and not is_layout_to_be(end):
            return list(graph.blobs)
        with ExitStack() as stack:
            sink = self._sink(target, stop)
            stack.callback(sink.close)
            if end.reference is not None:
                # Of a registry's sink, that asks for nothing and writes nothing.
                sink.begin(graph)
            found: list[Descriptor] = []

            def ask(blob: Descriptor) -> None:
                if not sink.has(blob) and not (isinstance(sink, Mounts) and sink.could_mount(blob, source)):
                    found.append(blob)

            each(ask, graph.blobs, jobs=self._jobs, cancelled=stop)
        return found

    def _sink(self, target: Target, stop: threading.Event) -> Sink:
        end = target.place.end
        if target.reference is not None:
            end = replace(end, reference=target.reference)
        with disk_errors(f"cannot write {printable(end.text)}"):
            return open_sink(end, self._surroundings(target.place, stop))

    def _surroundings(self, place: Place, stop: threading.Event) -> Surroundings:
        return replace(self._around(place), cancelled=stop)


class _Look:
    """One image, and what was found of its destinations."""

    def __init__(self, copy: Copy) -> None:
        self.copy = copy
        self.lacking: list[Target] = []
        self.outcomes: list[Outcome] = []

    def failed(self, targets: Collection[Target], error: OcistreamError) -> None:
        self.outcomes += [Outcome(self.copy.name, target.name, "failed", error=error) for target in targets]


class _Wanted:
    """What an image is where it comes from: its digest, and all that hangs on it, if that is asked for."""

    def __init__(self, digest: str, graph: Callable[[], Graph]) -> None:
        self.digest = digest
        self._ask = graph
        self._graph: Graph | None = None

    def graph(self) -> Graph:
        if self._graph is None:
            self._graph = self._ask()
        return self._graph


def _renaming(target: Target) -> Callable[[Graph], Graph]:
    name = target.place.end.name
    if target.reference is not None or name is None:
        return lambda graph: graph
    return lambda graph: replace(graph, roots=tuple(replace(root, name=name) for root in graph.roots))


def _want(entry: Entry) -> Want:
    return Want(platforms=entry.platforms, referrers="along" if entry.referrers else "left")
