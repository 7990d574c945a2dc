"""One source to several destinations at once: read each blob once and write it to each destination that lacks it.

The chunks go to all destinations in lockstep, at the pace of the slowest. A chunk is memory that is used again, so a
destination that runs ahead would need copies. A destination that fails is skipped and shows nothing new.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, cast

from ocistream.errors import CancelledError, OcistreamError, UnsupportedError
from ocistream.streams.chunks import closing_chunks
from ocistream.streams.workers import start, wait_to_settle
from ocistream.transfer.interfaces import MountingDestination, Traits
from ocistream.transfer.verified_blobs import map_chunks, require_complete

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.streams.chunks import Chunk
    from ocistream.streams.workers import Task
    from ocistream.transfer.interfaces import Destination, Source, VerifiedBlob

#: Seconds between two checks whether the transfer was cancelled.
_POLL_INTERVAL: Final = 0.2


@dataclass(eq=False)
class FanOutBranch:
    """One of the destinations, and its result. `rename` gives the images their names at this destination."""

    destination: Destination
    rename: Callable[[Graph], Graph] = field(default=lambda graph: graph)
    failure: OcistreamError | None = None
    graph: Graph | None = None
    #: Digests of blobs and manifests that this destination needs, and of those that it has.
    needed: frozenset[str] = frozenset()
    stored: set[str] = field(default_factory=set)
    #: Digests of the blobs that were written, with their sizes in bytes.
    written: dict[str, int] = field(default_factory=dict)

    @property
    def bytes_written(self) -> int:
        """How many bytes of blobs were written."""
        return sum(self.written.values())

    def set_graph(self, graph: Graph) -> None:
        """Set the graph to write here."""
        self.graph = graph
        manifests = (manifest.descriptor for manifest in graph.manifests)
        self.needed = frozenset(needed.digest for needed in (*graph.blobs, *graph.absent, *manifests))

    def lacks(self, descriptor: Descriptor) -> bool:
        """Return whether this destination needs a blob or manifest that it is not known to have."""
        return descriptor.digest in self.needed and descriptor.digest not in self.stored

    def add_written(self, descriptor: Descriptor) -> None:
        """Note that a blob was written here."""
        self.written[descriptor.digest] = descriptor.size
        self.stored.add(descriptor.digest)


class FanOutDestination:
    """Several destinations as one.

    It fails if the source or all destinations fail. `branches` have the result of each destination.
    """

    def __init__(
        self,
        branches: list[FanOutBranch],
        cancelled: threading.Event,
        before_blobs: Callable[[Graph], None] = lambda _: None,
    ) -> None:
        """Write to the given branches; `cancelled` is the event of the transfer.

        `before_blobs` is called with the graph before any destination is asked which of its blobs are stored.
        """
        self.branches = branches
        self._before_blobs = before_blobs
        self._cancelled = cancelled
        #: For each reading of a blob: how many bytes it has read. Only the thread that reads changes its count.
        self._read_counts: list[list[int]] = []
        traits = [branch.destination.traits for branch in branches]
        self.traits = Traits(
            concurrent=all(each.concurrent for each in traits),
            keeps_blobs=all(each.keeps_blobs for each in traits),
            # Before the graph is known, it is unknown which destination needs a blob.
            early_refusal=_early_refusal,
            can_omit=all(each.can_omit for each in traits),
            can_retry=all(each.can_retry for each in traits),
            begins_without_writing=all(each.begins_without_writing for each in traits),
            buffer_size=sum(each.buffer_size for each in traits),
        )

    @property
    def bytes_read(self) -> int:
        """How many bytes of blobs were read from the source for all destinations."""
        return sum(count for (count,) in self._read_counts)

    def expect(self, graph: Graph) -> Graph:
        """Tell each destination what may come. What one cannot hold is still written to the others."""
        self._before_blobs(graph)
        for branch in self._active_branches():
            with self._failure_scope(branch):
                branch.set_graph(branch.destination.expect(branch.rename(graph)))
        return graph

    def begin(self, graph: Graph) -> None:
        """Tell each destination what will come."""
        for branch in self._active_branches():
            with self._failure_scope(branch):
                own = branch.rename(graph) if branch.graph is None else branch.graph
                branch.set_graph(replace(own, omitted_from_output=graph.omitted_from_output))
                branch.destination.begin(cast("Graph", branch.graph))

    def stored(self, blobs: Sequence[Descriptor], *, quick: bool = False) -> set[str]:
        """Return the digests of the blobs and manifests that all destinations have that need them."""
        if not self._has_all_graphs():
            return set()
        found = {blob.digest for blob in blobs}
        for branch in self._active_branches():
            wanted = [blob for blob in blobs if branch.lacks(blob)]
            with self._failure_scope(branch):
                branch.stored |= branch.destination.stored(wanted, quick=quick)
                found.difference_update(blob.digest for blob in wanted if blob.digest not in branch.stored)
        return found

    def partial_size(self, _blob: Descriptor, /) -> int:
        """Return 0: parts go to one destination only."""
        return 0

    def mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Mount a blob at each destination that lacks it and can mount it; return whether all have it then."""
        for branch in self._branches_without(descriptor):
            if self._ask_branch(branch, lambda mounting: mounting.mount(descriptor, source)):
                branch.stored.add(descriptor.digest)
        return not self._branches_without(descriptor)

    def can_mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Return whether each destination has the blob or could mount it."""
        return all(
            self._ask_branch(branch, lambda mounting: mounting.can_mount(descriptor, source)) is not False
            for branch in self._branches_without(descriptor)
        )

    def write(self, blob: VerifiedBlob) -> int:
        """Write a blob to all destinations that lack it."""
        require_complete(blob)
        if not self._has_all_graphs():
            raise _early_refusal()
        branches = self._branches_without(blob.descriptor)
        if not branches:
            return 0
        blob = self._count_reads(blob)
        if len(branches) == 1:
            # Not shared, so that the destination can resume the blob, and no further thread is needed.
            failures: list[BaseException] = []
            watched = map_chunks(blob, lambda chunks: _record_failure(chunks, failures))
            resumed = 0
            with self._failure_scope(branches[0], failures):
                resumed = branches[0].destination.write(watched)
                branches[0].add_written(blob.descriptor)
            return resumed
        shared = _Broadcast(blob, len(branches), self._cancelled)
        shared.run([partial(self._write_shared, shared, branch, number) for number, branch in enumerate(branches)])
        if not self._active_branches():
            raise next(branch.failure for branch in self.branches if branch.failure is not None)
        return 0

    def commit(self, graph: Graph) -> None:
        """Commit each destination in turn."""
        for branch in self._active_branches():
            with self._failure_scope(branch):
                branch.destination.commit(branch.graph or graph)

    def discard(self) -> None:
        """Delete unfinished content at each destination."""
        for branch in self.branches:
            branch.destination.discard()

    def close(self) -> None:
        """Drop what was not committed."""
        for branch in self.branches:
            branch.destination.close()

    # -- the branches -----------------------------------------------------------------------------------

    def _active_branches(self) -> list[FanOutBranch]:
        """Return the branches that have not failed."""
        return [branch for branch in self.branches if branch.failure is None]

    def _has_all_graphs(self) -> bool:
        """Return whether it is known which blobs each destination needs."""
        return all(branch.graph is not None for branch in self._active_branches())

    def _branches_without(self, descriptor: Descriptor) -> list[FanOutBranch]:
        """Return the active branches that lack a blob."""
        return [branch for branch in self._active_branches() if branch.lacks(descriptor)]

    def _ask_branch(self, branch: FanOutBranch, ask: Callable[[MountingDestination], bool]) -> bool | None:
        """Ask a destination that can mount. Return False for one that cannot, and None for one that fails."""
        answers: list[bool] = []
        with self._failure_scope(branch):
            answers.append(isinstance(branch.destination, MountingDestination) and ask(branch.destination))
        return answers[0] if answers else None

    def _count_reads(self, blob: VerifiedBlob) -> VerifiedBlob:
        """Count the bytes that are read of a blob, by any destination and at each restart."""

        def counted(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
            count = [0]
            self._read_counts.append(count)
            with closing_chunks(chunks):
                for chunk in chunks:
                    count[0] += len(chunk)
                    yield chunk

        return map_chunks(blob, counted)

    def _write_shared(self, shared: _Broadcast, branch: FanOutBranch, number: int) -> None:
        with self._failure_scope(branch, shared.source_failures, raises_last=False):
            branch.destination.write(shared.blob_for(number))
            branch.add_written(shared.blob.descriptor)

    @contextlib.contextmanager
    def _failure_scope(
        self, branch: FanOutBranch, source_failures: Sequence[BaseException] = (), *, raises_last: bool = True
    ) -> Iterator[None]:
        """Run a block in which a destination may fail. Its failure is kept in the branch.

        With `raises_last`, the failure of the last active branch is raised too. Errors of the source, and a cancelled
        transfer, are not the destination's failure and are always raised.
        """
        try:
            yield
        except CancelledError:
            raise
        except OcistreamError as error:
            if any(error is other for other in source_failures):
                raise
            branch.failure = branch.failure or error
            if raises_last and not self._active_branches():
                raise


def _early_refusal() -> UnsupportedError:
    """Return the error for a blob that comes before it is known which destination needs it."""
    msg = (
        "this archive lists its images only at its end, so several destinations cannot read it from a pipe or a "
        "compressed file"
    )
    return UnsupportedError(msg, hint="decompress it, or save it to a file first")


def _record_failure(chunks: Iterator[Chunk], failures: list[BaseException]) -> Iterator[Chunk]:
    """Pass on chunks, and record why they end too early: this is a failure of the source, not of a destination."""
    with closing_chunks(chunks):
        try:
            yield from chunks
        except Exception as error:
            failures.append(error)
            raise


class _Broadcast:
    """One blob for several readers, in lockstep. The thread that calls `run` reads it and publishes each chunk."""

    def __init__(self, blob: VerifiedBlob, reader_count: int, cancelled: threading.Event) -> None:
        self.blob = blob
        #: What ended the shared reading: a failure of the source, or a cancelled transfer.
        self.failures: list[BaseException] = []
        #: Those, and the failures of the source towards readers that have left the shared reading.
        self.source_failures: list[BaseException] = []
        self._cancelled = cancelled
        #: Numbers of the readers that share the reading, or may start to. Only the thread that calls `run` uses it.
        self._readers = set(range(reader_count))
        #: To each reader: chunks, and None at the end.
        self._chunks: list[SimpleQueue[Chunk | None]] = [SimpleQueue() for _ in range(reader_count)]
        #: From the readers: the number of each that is done with the current chunk, and whether it has left.
        self._done: SimpleQueue[tuple[int, bool]] = SimpleQueue()
        self._unexpected: list[BaseException] = []

    def run(self, tasks: list[Callable[[], None]]) -> None:
        """Run the tasks of the readers, each in a thread, until they end, and publish the chunks to them.

        Raise the source's error, or an unexpected one of a reader.
        """
        threads: list[Task[None]] = []
        try:
            for number, task in enumerate(tasks):
                threads.append(start(partial(self._run_one, number, task)))
            self._publish_all()
            for thread in threads:
                while not thread.wait(_POLL_INTERVAL):
                    self._check_cancelled()
        except BaseException as error:
            self._end(error)
            wait_to_settle(threads)
            raise
        for failure in (*self._unexpected, *self.source_failures):
            raise failure

    def blob_for(self, number: int) -> VerifiedBlob:
        """Return the blob for one of the readers. Only its first `open` shares the reading with the others.

        The shared chunks cannot go back. A reader that restarts, or starts in the middle, leaves them and reads for
        itself.
        """
        is_open = False

        def opened(offset: int = 0, stored: Iterable[Chunk] | None = None) -> Iterator[Chunk]:
            nonlocal is_open
            if is_open or offset:
                self._leave(number)
                return _record_failure(self.blob.open(offset, stored), self.source_failures)
            is_open = True
            return self._read(number)

        return replace(self.blob, open=opened, can_resume=False)

    def _run_one(self, number: int, task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
            if error not in self.source_failures:
                self._unexpected.append(error)
        finally:
            self._leave(number)

    def _publish_all(self) -> None:
        with closing_chunks(chunks := self.blob.open()):
            for chunk in chunks:
                if not self._publish(chunk):
                    break
        self._end(None)

    def _publish(self, chunk: Chunk) -> bool:
        """Publish a chunk and wait until all readers are done with it; return False if no readers are left."""
        for number in self._readers:
            self._chunks[number].put(chunk)
        busy = set(self._readers)
        while busy:
            self._check_cancelled()
            with contextlib.suppress(Empty):
                number, has_left = self._done.get(timeout=_POLL_INTERVAL)
                busy.discard(number)
                if has_left:
                    self._readers.discard(number)
        return bool(self._readers)

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError("stopped")

    def _read(self, number: int) -> Iterator[Chunk]:
        """Yield the published chunks to a reader, in its thread."""
        chunks = self._chunks[number]
        try:
            while (chunk := chunks.get()) is not None and not self.failures:
                yield chunk
                self._done.put((number, False))
            for failure in self.failures:
                raise failure if isinstance(failure, Exception) else CancelledError("stopped")
        finally:
            self._leave(number)

    def _leave(self, number: int) -> None:
        """Note that a reader wants no further published chunk. A reader may leave more than once."""
        self._done.put((number, True))

    def _end(self, error: BaseException | None) -> None:
        """End the shared reading, at the end of the blob or because of an error."""
        if error is not None:
            self.failures.append(error)
            self.source_failures.append(error)
        for chunks in self._chunks:
            chunks.put(None)
