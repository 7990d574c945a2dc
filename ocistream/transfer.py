"""copy(source, sink): the one way anything moves.

Here, and only here, are verifying, counting and cancelling wrapped around a blob, and here is the order of things:
the graph, what is there already, the blobs, then what makes them visible. It knows no store, no terminal, no network.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ocistream.errors import CancelledError, MissingContentError, UnsupportedError
from ocistream.interfaces import Blob, Mounts, Recalls
from ocistream.stream import counted, verified, wrong_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ocistream.graph import Graph
    from ocistream.interfaces import Sink, Source
    from ocistream.model import Descriptor
    from ocistream.stream import Chunk

__all__ = ["Moved", "Observer", "Report", "copy"]

#: How many blobs move at once. More connections cost memory, and gain little where one line is shared.
DEFAULT_JOBS = 4
#: Seconds that a failed or interrupted transfer gives its threads to clean up behind themselves.
_GRACE = 3.0
#: Seconds between two looks at whether one thread has failed while another is waited for.
_LOOK_EVERY = 0.2

_T = TypeVar("_T")


class Observer(Protocol):
    """Whoever watches a transfer. Called from any thread; sizes are in bytes."""

    def planned(self, graph: Graph) -> None:
        """The graph is known, and so is the total."""

    def advance(self, size: int) -> None:
        """So many bytes have moved, or fewer than was thought: negative where a blob is begun again."""

    def done(self, descriptor: Descriptor, how: str) -> None:
        """A blob is where it should be: "copied", "mounted" or "skipped" (it was there)."""


@dataclass(slots=True)
class Moved:
    """One blob and what became of it: "copied", "mounted" or "skipped"."""

    descriptor: Descriptor
    how: str


@dataclass(slots=True)
class Report:
    """What a transfer did. `seconds` is how long it took."""

    graph: Graph
    blobs: list[Moved] = field(default_factory=list)
    seconds: float = 0.0


def copy(
    source: Source,
    sink: Sink,
    observer: Observer,
    *,
    jobs: int = DEFAULT_JOBS,
    cancelled: threading.Event | None = None,
    rename: Callable[[Graph], Graph] | None = None,
) -> Report:
    """Move everything that `source` has been asked for into `sink`, and make it visible only when all of it is there.

    `jobs` bounds how many blobs move at once, where both sides allow it. `cancelled` is set when the transfer fails,
    so that whatever else waits on it stops waiting. `rename` may give the roots other names. Both ends are left open.

    Raises:
        OcistreamError: whatever went wrong first; nothing new is visible in the sink then.
    """
    return _Transfer(source, sink, observer, jobs, cancelled or threading.Event()).run(rename)


class _Transfer:
    """The state of one copy."""

    def __init__(self, source: Source, sink: Sink, observer: Observer, jobs: int, cancelled: threading.Event) -> None:
        self._source = source
        self._sink = sink
        self._observer = observer
        self._jobs = jobs
        self._cancelled = cancelled
        self._moved: dict[str, Moved] = {}
        self._lock = threading.Lock()

    def run(self, rename: Callable[[Graph], Graph] | None) -> Report:
        began = time.monotonic()
        graph = self._source.graph(self)
        if rename is not None:
            graph = rename(graph)
        self._observer.planned(graph)
        self._sink.begin(graph)
        roots = {root.descriptor.digest for root in graph.roots}
        # A name can only be given to a manifest whose bytes are at hand.
        absent = [m for m in graph.absent if m.digest in roots or not self._sink.has_manifest(m)]
        wanted = self._without_those_there(self._waiting(graph))
        # Even where nothing is wanted any more, a pipe is read to its end.
        wanted = self._put_manifests_wanted_as_blobs(graph, wanted)
        self._put_all(wanted)
        lacking = [*absent, *(blob for blob in wanted if blob.digest not in self._moved)]
        if lacking:
            raise _missing(lacking)
        self._sink.commit(graph)
        # Of what came early, only the digest was known.
        blobs = [Moved(blob, self._moved[blob.digest].how) for blob in graph.blobs]
        return Report(graph, blobs, time.monotonic() - began)

    # -- what a source may do with blobs that come before the graph (interfaces.Early) -------------------

    def put(self, blob: Blob) -> None:
        """Move a blob right now, or read it to its end where the sink has it."""
        if blob.descriptor.digest in self._moved or self._sink.has(blob.descriptor):
            for _ in self._stoppable(verified(blob.open(), blob.descriptor)):
                pass
            if blob.descriptor.digest not in self._moved:
                self._note(blob.descriptor, "skipped")
        else:
            self._put(blob)

    def recall(self, descriptor: Descriptor) -> bytes:
        """Have the sink give back what it was given."""
        if not isinstance(self._sink, Recalls):
            msg = f"{descriptor.digest}: too many small blobs come before the archive's index to hold all of them"
            raise UnsupportedError(msg, hint="read it from a file instead of a pipe")
        return self._sink.recall(descriptor)

    # -- the steps ---------------------------------------------------------------------------------------

    def _waiting(self, graph: Graph) -> list[Descriptor]:
        """List the blobs that have not come early.

        Raises:
            IntegrityError: one that has come is not of the size that the manifests give it.
        """
        waiting: list[Descriptor] = []
        for blob in graph.blobs:
            moved = self._moved.get(blob.digest)
            if moved is None:
                waiting.append(blob)
            elif moved.descriptor.size != blob.size:
                raise wrong_size(blob, moved.descriptor.size)
        return waiting

    def _without_those_there(self, blobs: list[Descriptor]) -> list[Descriptor]:
        """Ask for every blob whether the sink has it, or can have it without its bytes being sent."""

        def ask(descriptor: Descriptor) -> None:
            if self._sink.has(descriptor):
                self._note(descriptor, "skipped")
            elif isinstance(self._sink, Mounts) and self._sink.mount(descriptor, self._source):
                self._note(descriptor, "mounted")

        self._each(ask, blobs, side_by_side=self._sink.parallel)
        return [blob for blob in blobs if blob.digest not in self._moved]

    def _put_manifests_wanted_as_blobs(self, graph: Graph, wanted: list[Descriptor]) -> list[Descriptor]:
        """Put what is a manifest and some other manifest's layer or config, from the bytes that are held anyway."""
        held = {manifest.descriptor.digest: manifest.raw for manifest in graph.manifests}
        for descriptor in wanted:
            if descriptor.digest in held:
                self._put(Blob(descriptor, partial(_whole, held[descriptor.digest])))
        return [descriptor for descriptor in wanted if descriptor.digest not in held]

    def _put_all(self, wanted: list[Descriptor]) -> None:
        side_by_side = self._source.parallel and self._sink.parallel
        self._each(self._put, self._source.blobs(wanted), side_by_side=side_by_side)

    def _put(self, blob: Blob) -> None:
        """Put a blob whose chunks are verified, counted and can be stopped, in this order from the inside."""
        counter = _Counter(self._observer)

        def chunks() -> Iterator[Chunk]:
            counter.restart()
            return counted(self._stoppable(verified(blob.open(), blob.descriptor)), counter.advance)

        self._sink.put(Blob(blob.descriptor, chunks, blob.replayable))
        self._note(blob.descriptor, "copied", counter.seen)

    def _stoppable(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            if self._cancelled.is_set():
                msg = "cancelled"
                raise CancelledError(msg)
            yield chunk

    def _note(self, descriptor: Descriptor, how: str, seen: int = 0) -> None:
        with self._lock:
            self._moved[descriptor.digest] = Moved(descriptor, how)
        # What was not read through counts as moved all the same, so that the total is reached.
        self._observer.advance(descriptor.size - seen)
        self._observer.done(descriptor, how)

    def _each(self, work: Callable[[_T], None], items: Iterable[_T], *, side_by_side: bool) -> None:
        """Do some work for each item, in this thread or in up to `jobs` others; the first failure ends it all."""
        if not side_by_side or self._jobs == 1:
            for item in items:
                work(item)
            return
        _Workers(work, iter(items), self._cancelled).run(self._jobs)


def _whole(content: bytes) -> Iterator[Chunk]:
    yield content


class _Counter:
    """Counts one blob, and takes back what was counted when it is begun again."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.seen = 0

    def advance(self, size: int) -> None:
        self.seen += size
        self._observer.advance(size)

    def restart(self) -> None:
        self.advance(-self.seen)


class _Workers(Generic[_T]):
    """Threads that share one iterator of work. They are daemons: an interrupted process need not wait for a socket.

    (ThreadPoolExecutor would be waited for at exit, whatever is cancelled.)
    """

    def __init__(self, work: Callable[[_T], None], items: Iterator[_T], cancelled: threading.Event) -> None:
        self._work = work
        self._items = items
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self._failure: BaseException | None = None

    def run(self, jobs: int) -> None:
        threads = [threading.Thread(target=self._loop, daemon=True) for _ in range(jobs)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                # One that is stalled on its socket is not to hold up what another one has to report.
                while thread.is_alive() and self._failure is None:
                    thread.join(_LOOK_EVERY)
        except BaseException:
            self._cancelled.set()
            self._wait_a_little(threads)
            raise
        if self._failure is not None:
            self._wait_a_little(threads)
            raise self._failure

    @staticmethod
    def _wait_a_little(threads: list[threading.Thread]) -> None:
        """Let those that notice the cancellation drop what they have begun; who waits for a socket is left to it."""
        deadline = time.monotonic() + _GRACE
        for thread in threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _loop(self) -> None:
        try:
            while not self._cancelled.is_set():
                with self._lock:
                    item = next(self._items, None)
                if item is None:
                    return
                self._work(item)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
            with self._lock:
                # The first failure is the reason; the others are its consequences.
                if self._failure is None:
                    self._failure = error
            self._cancelled.set()


def _missing(lacking: list[Descriptor]) -> MissingContentError:
    named = ", ".join(descriptor.digest for descriptor in lacking[:5])
    more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
    return MissingContentError(
        f"incomplete: the source lacks {named}{more}, and so does the destination",
        hint="get the whole image, or with --platform one of which everything is there",
    )
