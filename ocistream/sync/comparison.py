"""What is at an image's destinations already: some images are looked at side by side, whatever becomes of others.

Where a digest says all, that is a question to either side.
"""

from __future__ import annotations

import contextlib
import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import NetworkError, OcistreamError, RegistryError
from ocistream.oci.reference import is_digest
from ocistream.stores import Want
from ocistream.sync.locations import Indexes, There, graph_of, opened
from ocistream.transfer.incomplete_indexes import exported_by

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from ocistream.http.endpoints import Endpoint
    from ocistream.oci.descriptor import Descriptor, Manifest
    from ocistream.oci.graph import Graph, Incomplete
    from ocistream.oci.reference import Reference
    from ocistream.oci.referrers import LeftBehind
    from ocistream.registry.mirrors import Readable
    from ocistream.registry.referrers import ReferrerList
    from ocistream.stores import Surroundings
    from ocistream.sync.plan import Copy, Entry, Place, Target
    from ocistream.transfer.interfaces import Blob, Source

__all__ = ["Look", "Looks", "Outcome", "wanted_of"]

#: A registry that could not be reached for so many images, one after the other, is left alone for so many seconds.
_IN_A_ROW: Final = 3
_LEFT_ALONE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one image at one destination: "copied", "unchanged", "failed"; or, of a plan, "to copy".

    `size` is how many bytes of blobs went there, or would have to; `fetched` how many were read for all destinations of
    the image, and stands at the first of them. `left_behind` hangs on the image, and did not go along. `incomplete` is
    its index, if the source has only some platforms of it.
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
    incomplete: tuple[Incomplete, ...] = ()


class Look:
    """One image, and what was found of its destinations."""

    def __init__(self, copy: Copy) -> None:
        """Begin with nothing found."""
        self.copy = copy
        self.lacking: list[Target] = []
        self.outcomes: list[Outcome] = []
        #: What is to move, as its source was opened for it; None where the graph was too large to be held, or failed.
        self.source: Source | None = None
        #: How many bytes of blobs, and how many blobs, the image has; 0 where nobody knows yet.
        self.size = self.blobs = 0
        #: How many bytes its manifests have.
        self.weight = 0

    def failed(self, targets: Collection[Target], error: OcistreamError) -> None:
        """Note that nobody knows what is there."""
        self.outcomes += [Outcome(self.copy.name, target.name, "failed", error=error) for target in targets]


class Looks:
    """Looks, for one run. Safe for several threads."""

    def __init__(
        self,
        around: Callable[[Place], Surroundings],
        *,
        stop: Callable[[], threading.Event],
        check_push: Callable[[Reference | None], None],
    ) -> None:
        """Take what each place is reached by."""
        self._around = around
        self._stop = stop
        self._check_push = check_push
        self._unreachable = _Unreachable()
        self._indexes = Indexes()
        self._lock = threading.Lock()
        #: What may still be held of manifests, in bytes.
        self.room = limits.MAX_HELD_GRAPHS
        self._tags: dict[tuple[str, str], Collection[str]] = {}

    def note_tags(self, reference: Reference, tags: Collection[str]) -> None:
        """Know all the tags of a repository: what is none of them is not asked for."""
        self._tags[reference.registry, reference.repository] = frozenset(tags)

    def look(self, look: Look) -> None:
        """Find out at which destinations an image is not, or is another."""
        copy = look.copy
        try:
            with self._unreachable.asked(copy.source.reference):
                wanted = self._wanted(copy)
        except OcistreamError as error:
            look.failed(copy.targets, error)
            return
        for target in copy.targets:
            try:
                self._check_push(target.reference)
                with self._unreachable.asked(target.reference):
                    there = There(target, self._around(target.place), self._indexes)
                    digest = there.digest()
                    is_same = digest in {wanted.digest, wanted.exported}
                # What hangs on it is asked for only where it would be the news.
                if is_same and digest and copy.entry.referrers:
                    is_same = there.has_all_of(wanted.graph(), digest)
            except OcistreamError as error:
                look.failed([target], error)
            else:
                if is_same:
                    look.outcomes.append(Outcome(copy.name, target.name, "unchanged", digest))
                else:
                    look.lacking.append(target)

    def prepare(self, look: Look) -> None:
        """Find out what moves of an image that is lacking, and hold that until it does, if there is room."""
        end, entry = look.copy.source, look.copy.entry
        if not look.lacking or end.reference is None:
            return
        around = replace(self._around(entry.source), cancelled=self._stop(), jobs=1)
        try:
            with ExitStack() as stack:
                source = opened(end, around, wanted_of(entry))
                stack.callback(source.close)
                graph = graph_of(source, end)
                stack.pop_all()
        except OcistreamError as error:
            look.failed(look.lacking, error)
            look.lacking = []
            return
        look.size, look.blobs = graph.size, len(graph.blobs)
        weight = sum(len(manifest.raw) for manifest in graph.manifests)
        with self._lock:
            if weight > self.room:
                source.close()
                return
            self.room -= weight
        look.source, look.weight = source, weight

    def let_go(self, look: Look) -> None:
        """Hold nothing of an image any more."""
        if look.source is not None:
            look.source.close()
            look.source = None
            with self._lock:
                self.room += look.weight

    def _wanted(self, copy: Copy) -> _Wanted:
        end, entry = copy.source, copy.entry
        # One question at a time: this is done side by side with the same for others.
        around = replace(self._around(entry.source), cancelled=self._stop(), jobs=1)
        if end.reference is not None and (tags := self._tags.get((end.reference.registry, end.reference.repository))):
            reading = around.reading().behind(lambda repository: _Listed(repository, tags))
            around = replace(around, reads=lambda: reading)

        def graph() -> Graph:
            with ExitStack() as stack:
                source = opened(end, around, wanted_of(entry))
                stack.callback(source.close)
                found = graph_of(source, end)
                return found if end.reference is not None else exported_by(source, found)

        if end.reference is not None and not entry.platforms.platforms:
            repository = around.reading().repository(end.reference)
            # Some registries do not say in answer to HEAD what it is; and what is not there is said by who gets it.
            digest = repository.digest_of(end.reference.target)
            if digest:
                return _Wanted(digest, graph)
        found = graph()
        exported = found.roots[0].descriptor.digest
        # A layout or an archive may have only some platforms of an index: either may be there.
        whole = found.incomplete[0].digest if found.incomplete else exported
        return _Wanted(whole, lambda: found, exported)


def wanted_of(entry: Entry) -> Want:
    """Give what is wanted of a source."""
    return Want(platforms=entry.platforms, referrers="along" if entry.referrers else "left")


class _Wanted:
    """What an image is where it comes from: its digest, and all that hangs on it, if that is asked for.

    `exported` is the digest of what goes of an index that the source does not have completely.
    """

    def __init__(self, digest: str, graph: Callable[[], Graph], exported: str | None = None) -> None:
        self.digest = digest
        self.exported = exported or digest
        self._ask = graph
        self._graph: Graph | None = None

    def graph(self) -> Graph:
        if self._graph is None:
            self._graph = self._ask()
        return self._graph


class _Listed:
    """A repository of which all tags are known: the tags of signatures that are none of them are not asked for."""

    def __init__(self, repository: Readable, tags: Collection[str]) -> None:
        self._repository = repository
        self._known = tags

    @property
    def endpoint(self) -> Endpoint:
        return self._repository.endpoint

    @property
    def name(self) -> str:
        return self._repository.name

    def __str__(self) -> str:
        return str(self._repository)

    def resolve(self, target: str) -> Manifest:
        return self._repository.resolve(target)

    def manifest(self, descriptor: Descriptor) -> bytes:
        return self._repository.manifest(descriptor)

    def blob(self, descriptor: Descriptor) -> Blob:
        return self._repository.blob(descriptor)

    def referrers(self, digest: str) -> ReferrerList:
        return self._repository.referrers(digest)

    def digest_of(self, target: str) -> str | None:
        if target not in self._known and not is_digest(target):
            return None
        return self._repository.digest_of(target)


class _Unreachable:
    """Which registries could not be reached, with all patience, for some images in a row.

    Each of ten thousand images would cost as much patience again, and the other destinations as much waiting. One that
    answers, whatever it says, is reached.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: How often in a row, when that was or is tried again (monotonic), and what it was.
        self._failures: dict[str, tuple[int, float, NetworkError]] = {}

    @contextlib.contextmanager
    def asked(self, reference: Reference | None) -> Iterator[None]:
        """Ask a registry something within the block, unless it is left alone just now.

        Raises:
            NetworkError: it is.
        """
        if reference is None:
            yield
            return
        registry = reference.registry
        self._check(registry)
        try:
            yield
        except NetworkError as error:
            if isinstance(error, RegistryError):
                self._note(registry, None)
            else:
                self._note(registry, error)
            raise
        else:
            self._note(registry, None)

    def _check(self, registry: str) -> None:
        with self._lock:
            count, since, error = self._failures.get(registry, (0, 0.0, None))
            if count < _IN_A_ROW or error is None:
                return
            now = monotonic()
            if now - since < _LEFT_ALONE:
                msg = f"{registry} is left alone: it could not be reached for {count} images in a row: {error.what}"
                raise NetworkError(msg, hint="run the same command again when it can be")
            # This one finds out whether it can be reached again.
            self._failures[registry] = (count, now, error)

    def _note(self, registry: str, error: NetworkError | None) -> None:
        with self._lock:
            if error is None:
                self._failures.pop(registry, None)
            else:
                self._failures[registry] = (self._failures.get(registry, (0,))[0] + 1, monotonic(), error)
