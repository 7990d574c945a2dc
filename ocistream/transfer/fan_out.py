"""One source into several sinks at once: each blob is read once, and goes to all those that lack it.

A chunk is handed to every sink's own thread and is valid until all of them come back for the next, so that nothing is
copied and nothing piles up: the slowest sets the pace. A sink that fails is left behind, with nothing visible in it,
and the others go on. One that has to begin a blob anew reads it from the source by itself.
"""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, cast

from ocistream.errors import CancelledError, OcistreamError
from ocistream.streams.workers import let_them_end
from ocistream.transfer.interfaces import EndsInOrder, Expects, Holds, Keeps, Mounts, Spares, TakesAgain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.streams.chunks import Chunk, Closeable
    from ocistream.transfer.interfaces import Blob, Sink, Source

__all__ = ["Branch", "FanOut"]

#: Seconds between two looks at whether the transfer was stopped while somebody is waited for.
_LOOK_EVERY: Final = 0.2


@dataclass(eq=False)
class Branch:
    """One of the sinks, and what has become of it. `renamed` gives the images the names that they have there.

    `sent` is how many bytes of blobs went there.
    """

    sink: Sink
    renamed: Callable[[Graph], Graph] = field(default=lambda graph: graph)
    failure: OcistreamError | None = None
    sent: int = 0
    graph: Graph | None = None
    #: Digests of blobs that are to go there, and of those that are there.
    needs: frozenset[str] = frozenset()
    there: set[str] = field(default_factory=set)

    def takes(self, graph: Graph) -> None:
        """Learn what is to go there."""
        self.graph = graph
        self.needs = frozenset(blob.digest for blob in graph.blobs)


class FanOut:
    """Several sinks as one. It fails when the source does, or the last sink; what each came to, its branch says."""

    def __init__(self, branches: list[Branch], cancelled: threading.Event) -> None:
        """Take the sinks; `cancelled` is the transfer's."""
        self.branches = branches
        self._cancelled = cancelled
        self._lock = threading.Lock()
        #: How many bytes of blobs were read for all of them together.
        self.fetched = 0
        self.parallel = all(branch.sink.parallel for branch in branches)
        self.ends_in_order = any(isinstance(b.sink, EndsInOrder) and b.sink.ends_in_order for b in branches)
        self.held = sum(branch.sink.held for branch in branches if isinstance(branch.sink, Holds))

    def spared(self, graph: Graph) -> Graph:
        """Find out for each sink what would take another's place there; the others get that all the same."""
        for branch in self._alive():
            with self._failing(branch):
                own = branch.renamed(graph)
                branch.takes(branch.sink.spared(own) if own.attached and isinstance(branch.sink, Spares) else own)
        return graph

    def expect(self, graph: Graph) -> None:
        """Tell each sink what may come."""
        for branch in self._alive():
            with self._failing(branch):
                if isinstance(branch.sink, Expects):
                    branch.sink.expect(branch.renamed(graph))

    def begin(self, graph: Graph) -> None:
        """Tell each sink what will come."""
        for branch in self._alive():
            with self._failing(branch):
                if branch.graph is None:
                    branch.takes(branch.renamed(graph))
                branch.sink.begin(cast("Graph", branch.graph))

    def has(self, descriptor: Descriptor) -> bool:
        """Ask each sink; what one of them does not need is as if it had it."""
        return self._all_have(descriptor, lambda branch: branch.sink.has(descriptor))

    def mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Mount a blob wherever it is lacking and can be mounted; say whether all have it then."""

        def mount(branch: Branch) -> bool:
            return isinstance(branch.sink, Mounts) and branch.sink.mount(descriptor, source)

        return self._all_have(descriptor, mount)

    def could_mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Say whether it is there or could be mounted everywhere."""

        def could(branch: Branch) -> bool:
            return isinstance(branch.sink, Mounts) and branch.sink.could_mount(descriptor, source)

        return all(self._ask(branch, could) is not False for branch in self._lacking(descriptor))

    def has_manifest(self, descriptor: Descriptor) -> bool:
        """Ask each sink."""
        return all(self._ask(b, lambda b: b.sink.has_manifest(descriptor)) is not False for b in self._alive())

    def put(self, blob: Blob) -> None:
        """Give a blob to all sinks that lack it."""
        lacking = self._lacking(blob.descriptor)
        if not lacking:
            return
        blob = self._counted(blob)
        if len(lacking) == 1:
            noted = _Noted(blob)
            with self._failing(lacking[0], noted.failures):
                lacking[0].sink.put(noted.blob)
                self._is_there(lacking[0], blob.descriptor)
            return
        shared = _Shared(blob, len(lacking), self._cancelled)
        work = [self._putting(shared, branch, number) for number, branch in enumerate(lacking)]
        shared.run(work)
        if not self._alive():
            raise self._first_failure()

    def _counted(self, blob: Blob) -> Blob:
        """Count what is read of a blob, however often it is begun, by whichever sink."""

        def passing(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
            with closing(cast("Closeable", chunks)):
                for chunk in chunks:
                    with self._lock:
                        self.fetched += len(chunk)
                    yield chunk

        open_at, resume = blob.open_at, blob.resume
        return replace(
            blob,
            open=lambda: passing(blob.open()),
            open_at=None if open_at is None else lambda offset: passing(open_at(offset)),
            resume=None if resume is None else lambda held, size: passing(resume(held, size)),
        )

    def takes_again(self) -> bool:
        """Say whether all of them do."""
        return all(isinstance(b.sink, TakesAgain) and b.sink.takes_again() for b in self.branches)

    def commit(self, graph: Graph) -> None:
        """Make it visible, in one sink after the other."""
        for branch in self._alive():
            with self._failing(branch):
                branch.sink.commit(branch.graph or graph)

    def discard(self) -> None:
        """Keep nothing of what is unfinished."""
        for branch in self.branches:
            if isinstance(branch.sink, Keeps):
                branch.sink.discard()

    def close(self) -> None:
        """Drop what was not committed."""
        for branch in self.branches:
            branch.sink.close()

    # -- the branches -----------------------------------------------------------------------------------

    def _alive(self) -> list[Branch]:
        return [branch for branch in self.branches if branch.failure is None]

    def _lacking(self, descriptor: Descriptor) -> list[Branch]:
        return [b for b in self._alive() if descriptor.digest in b.needs and descriptor.digest not in b.there]

    def _is_there(self, branch: Branch, descriptor: Descriptor) -> None:
        with self._lock:
            branch.there.add(descriptor.digest)
            branch.sent += descriptor.size

    def _all_have(self, descriptor: Descriptor, ask: Callable[[Branch], bool]) -> bool:
        for branch in self._lacking(descriptor):
            if self._ask(branch, ask):
                with self._lock:
                    branch.there.add(descriptor.digest)
        return not self._lacking(descriptor)

    def _ask(self, branch: Branch, ask: Callable[[Branch], bool]) -> bool | None:
        with self._failing(branch):
            return ask(branch)
        return None

    def _putting(self, shared: _Shared, branch: Branch, number: int) -> Callable[[], None]:
        def put() -> None:
            with self._failing(branch, shared.failures, last=False):
                branch.sink.put(shared.blob_for(number))
                self._is_there(branch, shared.blob.descriptor)

        return put

    def _failing(self, branch: Branch, of_source: list[BaseException] | None = None, *, last: bool = True) -> _Failing:
        return _Failing(self, branch, [] if of_source is None else of_source, last=last)

    def failed(self, branch: Branch, error: OcistreamError) -> bool:
        """Leave a sink behind; say whether others are left."""
        with self._lock:
            branch.failure = branch.failure or error
            return any(other.failure is None for other in self.branches)

    def _first_failure(self) -> OcistreamError:
        return next(branch.failure for branch in self.branches if branch.failure is not None)


class _Failing:
    """A block in which a sink may fail. What the source raised is not its failure, nor is that the transfer stops."""

    def __init__(self, fan_out: FanOut, branch: Branch, of_source: list[BaseException], *, last: bool) -> None:
        self._fan_out = fan_out
        self._branch = branch
        self._of_source = of_source
        self._last = last

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if not isinstance(error, OcistreamError) or isinstance(error, CancelledError):
            return False
        if any(error is other for other in self._of_source):
            return False
        return self._fan_out.failed(self._branch, error) or not self._last


class _Noted:
    """A blob, and what its own bytes raised."""

    def __init__(self, blob: Blob) -> None:
        self.failures: list[BaseException] = []
        open_at, resume = blob.open_at, blob.resume
        self.blob = replace(
            blob,
            open=lambda: self._noting(blob.open()),
            open_at=None if open_at is None else lambda offset: self._noting(open_at(offset)),
            resume=None if resume is None else lambda held, size: self._noting(resume(held, size)),
        )

    def _noting(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        with closing(cast("Closeable", chunks)):
            try:
                yield from chunks
            except Exception as error:
                self.failures.append(error)
                raise


class _Shared:
    """One blob on its way to several readers, in lockstep."""

    def __init__(self, blob: Blob, readers: int, cancelled: threading.Event) -> None:
        self.blob = blob
        #: What ended the reading that is for all of them: the source, or whoever stopped the transfer.
        self.failures: list[BaseException] = []
        self._cancelled = cancelled
        self._changed = threading.Condition()
        self._turn = 0
        self._chunk: Chunk = b""
        self._has_ended = False
        #: Who reads along or may yet begin to, and who of those has not yet done with the chunk.
        self._along = set(range(readers))
        self._busy: set[int] = set()
        self._broken: list[BaseException] = []

    def run(self, work: list[Callable[[], None]]) -> None:
        """Have all read, each in a thread, until they are done. What the source raised is raised, or what broke one."""
        threads = [
            threading.Thread(target=self._guarded, args=(number, each), daemon=True) for number, each in enumerate(work)
        ]
        try:
            for thread in threads:
                thread.start()
            self._pump()
            for thread in threads:
                while thread.is_alive():
                    thread.join(_LOOK_EVERY)
                    # Here an interruption comes out.
                    self._cancelled.wait(0)
        except BaseException as error:
            self._end(error)
            let_them_end(threads, self._cancelled)
            raise
        for broken in self._broken:
            raise broken

    def blob_for(self, number: int) -> Blob:
        """Give the blob as one of the readers gets it. What it opens first is read together with the others.

        What it opens later is its own, and so is what it begins in the middle: then it has done with the others.
        """
        blob, begun = self.blob, False

        def opened() -> Iterator[Chunk]:
            nonlocal begun
            if begun:
                return alone(blob.open)
            begun = True
            return self._read(number)

        def alone(open_it: Callable[[], Iterator[Chunk]]) -> Iterator[Chunk]:
            self._leave(number)
            return open_it()

        open_at = blob.open_at
        return replace(
            blob,
            open=opened,
            open_at=None if open_at is None else lambda offset: alone(lambda: open_at(offset)),
            resume=None,
        )

    def _guarded(self, number: int, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
            if error not in self.failures:
                self._broken.append(error)
        finally:
            self._leave(number)

    def _pump(self) -> None:
        with closing(cast("Closeable", chunks := self.blob.open())):
            for chunk in chunks:
                if not self._hand_out(chunk):
                    break
        self._end(None)

    def _hand_out(self, chunk: Chunk) -> bool:
        """Wait until all have done with a chunk; False if nobody reads along any more."""
        with self._changed:
            self._chunk = chunk
            self._turn += 1
            self._busy = set(self._along)
            self._changed.notify_all()
        while True:
            with self._changed:
                if not self._busy:
                    return bool(self._along)
                self._changed.wait(_LOOK_EVERY)
            if self._cancelled.wait(0):
                raise CancelledError("stopped")

    def _read(self, number: int) -> Iterator[Chunk]:
        turn = 0
        try:
            while True:
                with self._changed:
                    while self._turn == turn and not self._has_ended:
                        self._changed.wait()
                    if self._turn == turn or self.failures:
                        break
                    turn, chunk = self._turn, self._chunk
                yield chunk
                with self._changed:
                    self._busy.discard(number)
                    self._changed.notify_all()
            for failure in self.failures:
                raise failure if isinstance(failure, Exception) else CancelledError("stopped")
        finally:
            self._leave(number)

    def _leave(self, number: int) -> None:
        with self._changed:
            self._along.discard(number)
            self._busy.discard(number)
            self._changed.notify_all()

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            if error is not None:
                self.failures.append(error)
            self._has_ended = True
            self._changed.notify_all()
