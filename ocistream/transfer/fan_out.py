"""One source to several destinations at once: read each blob once and write it to each destination that lacks it.

The chunks go to all destinations in lockstep, at the pace of the slowest. A chunk is memory that is used again, so a
destination that runs ahead would need copies. A destination that fails is skipped and shows nothing new.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, cast

from ocistream.errors import CancelledError, OcistreamError, UnsupportedError
from ocistream.streams.chunks import closing_chunks
from ocistream.streams.synchronization import wait_until
from ocistream.streams.workers import run_each
from ocistream.transfer.interfaces import MountingDestination, Traits
from ocistream.transfer.verified_blobs import map_chunks, require_complete

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Destination, Source, VerifiedBlob


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
        #: How many bytes of blobs were read from the source for all destinations.
        self.bytes_read = 0
        self._count_lock = threading.Lock()
        traits = [branch.destination.traits for branch in branches]
        self.traits = Traits(
            concurrent=all(each.concurrent for each in traits),
            keeps_blobs=all(each.keeps_blobs for each in traits),
            # Before the graph is known, it is unknown which destination needs a blob.
            early_refusal=_early_refusal,
            can_retry=all(each.can_retry for each in traits),
            buffer_size=sum(each.buffer_size for each in traits),
        )

    def expect(self, graph: Graph) -> Graph:
        """Tell each destination what may come. What one cannot hold is still written to the others."""
        self._before_blobs(graph)
        for branch in self._active_branches():
            with self._failure_scope(branch):
                branch.set_graph(branch.destination.expect(branch.rename(graph)))
        return graph

    def begin(self, _graph: Graph, /) -> None:
        """Tell each destination what will come: what it accepted of the last graph that `expect` got."""
        for branch in self._active_branches():
            with self._failure_scope(branch):
                branch.destination.begin(cast("Graph", branch.graph))

    def stored(self, blobs: Sequence[Descriptor], *, quick: bool = False) -> set[str]:
        """Return the digests of the blobs and manifests that all destinations have that need them."""
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
        shared = _Broadcast(blob, branches, self._cancelled)
        run_each(
            partial(self._write_shared, shared, blob.descriptor),
            branches,
            jobs=len(branches),
            cancelled=self._cancelled,
            sets_cancelled=False,
        )
        for failure in (*shared.failures, *shared.source_failures):
            raise failure
        if not self._active_branches():
            raise next(branch.failure for branch in self.branches if branch.failure is not None)
        return 0

    def commit(self, _graph: Graph, /) -> None:
        """Commit each destination in turn."""
        for branch in self._active_branches():
            with self._failure_scope(branch):
                branch.destination.commit(cast("Graph", branch.graph))

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
            with closing_chunks(chunks):
                for chunk in chunks:
                    with self._count_lock:
                        self.bytes_read += len(chunk)
                    yield chunk

        return map_chunks(blob, counted)

    def _write_shared(self, shared: _Broadcast, descriptor: Descriptor, branch: FanOutBranch) -> None:
        """Write a blob to one destination. What is not its own failure is kept, so that the others can end."""
        try:
            with self._failure_scope(branch, shared.source_failures, raises_last=False):
                branch.destination.write(shared.blob_for(branch))
                branch.add_written(descriptor)
        except BaseException as error:  # noqa: BLE001 - `write` raises it when all destinations have ended
            if not any(error is other for other in shared.source_failures):
                shared.failures.append(error)
        finally:
            shared.leave(branch)

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
    """One blob for several destinations, its readers, in lockstep.

    The last reader that requests a chunk reads it for all.
    """

    def __init__(self, blob: VerifiedBlob, readers: Iterable[FanOutBranch], cancelled: threading.Event) -> None:
        self._blob = blob
        self._chunks = blob.open()
        self._cancelled = cancelled
        self._changed = threading.Condition()
        #: The readers that share the reading, or may start to, and those of them that wait for the next chunk.
        self._readers = set(readers)
        self._waiting: set[FanOutBranch] = set()
        #: The last chunk that was read; None at the end of the blob.
        self._chunk: Chunk | None = None
        #: What ends the shared reading: a failure of the source, or an unexpected one.
        self.failures: list[BaseException] = []
        #: Failures of the source, also towards readers that have left the shared reading.
        self.source_failures: list[BaseException] = []

    def blob_for(self, reader: FanOutBranch) -> VerifiedBlob:
        """Return the blob for one of the readers. Only its first `open` shares the reading with the others.

        The shared chunks cannot go back. A reader that restarts, or starts in the middle, leaves them and reads for
        itself.
        """
        is_open = False

        def opened(offset: int = 0, stored: Iterable[Chunk] | None = None) -> Iterator[Chunk]:
            nonlocal is_open
            is_first, is_open = not is_open and not offset, True
            if is_first:
                return self._read(reader)
            self.leave(reader)
            return _record_failure(self._blob.open(offset, stored), self.source_failures)

        return replace(self._blob, open=opened, can_resume=False)

    def leave(self, reader: FanOutBranch) -> None:
        """Let the others continue without a reader. A reader may leave more than once.

        The garbage collector may close an old iterator in any thread, which must neither wait for the lock during a
        read nor read itself. The others cannot read the next chunk before this reader has left.
        """
        if reader not in self._readers:
            return
        with self._changed:
            self._readers.discard(reader)
            self._waiting.discard(reader)
            if not self._readers:
                with closing_chunks(self._chunks):
                    # Its connection must not wait for readers that read for themselves.
                    pass
            self._changed.notify_all()

    def _read(self, reader: FanOutBranch) -> Iterator[Chunk]:
        """Yield the shared chunks to a reader, in its thread."""
        try:
            while (chunk := self._next_chunk(reader)) is not None:
                yield chunk
        finally:
            # A destination that starts again may wait before it does.
            self.leave(reader)

    def _next_chunk(self, reader: FanOutBranch) -> Chunk | None:
        """Wait until all readers want the next chunk, and return it."""
        with self._changed:
            self._waiting.add(reader)
            wait_until(
                lambda seconds: self._changed.wait_for(lambda: self._is_served(reader), seconds), self._cancelled
            )
            if self.failures:
                raise self.failures[0]
            return self._chunk

    def _is_served(self, reader: FanOutBranch) -> bool:
        """Return whether a reader need not wait any longer. If it is the last one to wait, read the next chunk."""
        self._advance()
        return reader not in self._waiting or bool(self.failures)

    def _advance(self) -> None:
        """Read the next chunk, if all readers wait for it."""
        if self._readers and self._readers == self._waiting and not self.failures:
            try:
                self._chunk = next(self._chunks, None)
            except BaseException as error:  # noqa: BLE001 - each reader raises it
                self.failures.append(error)
                self.source_failures.append(error)
            self._waiting.clear()
            self._changed.notify_all()
