"""A sync, done: images one after the other, each to all places that do not have it yet, whatever becomes of the others.

What is there is found out first, some images at a time.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from ocistream.errors import OcistreamError, UnsupportedError
from ocistream.layout.all_images import all_images, tell_untagged
from ocistream.layout.index import some_images, tag_of
from ocistream.notices import notice
from ocistream.oci.reference import printable
from ocistream.oci.referrers import ORPHANED, UNREADABLE
from ocistream.stores import Want
from ocistream.streams.workers import each
from ocistream.sync.comparison import Look, Looks, Outcome
from ocistream.sync.locations import graph_of, opened
from ocistream.sync.moves import Moving, Planned
from ocistream.sync.plan import Copies, without_doubles
from ocistream.sync.progress import Whole

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Sequence

    from ocistream.oci.graph import Root
    from ocistream.oci.reference import Reference
    from ocistream.stores import Surroundings
    from ocistream.sync.plan import Entry, Place, Plan, Shard
    from ocistream.transfer.interfaces import Observer

__all__ = ["Outcome", "Sync"]

#: So many images are looked at before the first of them is moved.
_AT_ONCE: Final = 64


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
        observer: Observer,
        check_push: Callable[[Reference | None], None] = lambda _: None,
    ) -> None:
        """Take what each place is reached by. `stop` makes the event that ends one image's transfer."""
        self._around = around
        self._told = told
        self._jobs = jobs
        self._stop = stop
        self._looking = Looks(around, stop=stop, check_push=check_push)
        self._watched = Whole(observer)
        self._moving = Moving(around, jobs=jobs, ahead=ahead, stop=stop, watched=self._watched)

    def run(self, plan: Plan, shard: Shard, *, dry_run: bool = False) -> None:
        """Copy all that is this shard's and differs; or, if it is a `dry_run`, find out what that would be.

        Raises:
            UsageError: two images would go to one place, or a configuration is malformed.
        """
        found = self._find(plan)
        count = sum(shard.has(copy.name) for copy in without_doubles(found))
        some = (copy for copy in without_doubles(found) if shard.has(copy.name))
        done = 0
        while batch := list(itertools.islice(some, _AT_ONCE)):
            looks = [Look(copy) for copy in batch]
            each(self._looking.look, looks, jobs=self._jobs, cancelled=self._stop())
            if dry_run:
                self._plan(looks)
                continue
            each(self._looking.prepare, looks, jobs=self._jobs, cancelled=self._stop())
            self._watched.expect(sum(look.size for look in looks), sum(look.blobs for look in looks))
            for look in looks:
                self._tell(look.outcomes)
                if look.lacking:
                    self._tell(self._moving.move(look))
                self._looking.let_go(look)
                done += 1
                self._watched.reached(done, count)

    def _plan(self, looks: Sequence[Look]) -> None:
        plans = [Planned(look) for look in looks]
        each(self._moving.plan, [p for p in plans if p.look.lacking], jobs=self._jobs, cancelled=self._stop())
        for planned in plans:
            self._tell(planned.look.outcomes)
            self._tell(self._moving.outcomes(planned))

    def _tell(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self._told(outcome)

    # -- which images there are -------------------------------------------------------------------------

    def _find(self, plan: Plan) -> list[Copies]:
        found: list[Copies] = []
        for entry in plan.entries:
            for place in (entry.source, *entry.targets):
                if place.end.reference is not None:
                    # Made here: each of several threads would make one of its own.
                    self._around(place).reading()
            try:
                found.append(Copies(entry, () if entry.is_one else self._names(entry)))
            except OcistreamError as error:
                for target in entry.targets:
                    self._told(Outcome(entry.source.end.text, target.end.text, "failed", error=error))
        return found

    def _names(self, entry: Entry) -> Sequence[str]:
        end, around = entry.source.end, self._around(entry.source)
        if end.reference is not None:
            listed = around.reading().tags(end.reference)
            if listed.cut:
                msg = f"{printable(end.text)}: not all of its tags can be had: {listed.cut}"
                raise UnsupportedError(msg, hint="name its images one by one")
            self._looking.note_tags(end.reference, listed.tags)
            return listed.tags
        names: list[str] = []
        by_name = "to copy an image by its digest, write `from` as oci:DIR:DIGEST, and `to` with a tag or name"

        def listing(roots: Sequence[Root]) -> Sequence[Root]:
            names.extend(root.name for root in some_images(roots) if root.name)
            if entry.choose is None:
                all_images(roots, lambda root: tag_of(root.name) is not None, "tag", f"`tags` chooses some; {by_name}")
            else:
                tell_untagged(roots, "`tags`")
            return [root for root in roots if not root.stray]

        with ExitStack() as stack:
            source = opened(end, around, Want(listing))
            stack.callback(source.close)
            for left in graph_of(source, end).left_behind:
                if left.why in {ORPHANED, UNREADABLE}:
                    notice(f"left behind: {left.digest} in {printable(end.text)}; {left.why}")
        return names
