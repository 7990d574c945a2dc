"""Concurrent copies of blobs: how many, which failure is reported, and what stops. The rest is in tests/contract."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ocistream import limits
from ocistream.errors import (
    ArchiveError,
    CancelledError,
    NetworkError,
)
from ocistream.layout.source import LayoutSource
from ocistream.oci.descriptor import Descriptor
from ocistream.oci.graph import Graph
from ocistream.transfer import prefetch
from ocistream.transfer.copy import Copy
from ocistream.transfer.interfaces import Blob, CompleteSource, EarlyBlobs, Traits, VerifiedBlob
from tests.contract.image_shapes import named_in
from tests.images import Layout
from tests.observers import Watch

#: Seconds after which a blocked test fails.
PATIENCE = 60.0


class Memory:
    """A destination that stores blobs in memory and records the order of calls; `take` may be replaced."""

    traits = Traits(concurrent=True)

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.diary: list[str] = []
        self.threads: set[int] = set()
        self.take: Callable[[VerifiedBlob], bytes] = whole

    def expect(self, graph: Graph) -> Graph:
        return graph

    def begin(self, graph: Graph) -> None:
        assert all(manifest.descriptor.digest in graph.documents for manifest in graph.manifests)
        self.diary.append("begin")

    def stored(self, blobs: Sequence[Descriptor], *, quick: bool = False) -> set[str]:  # noqa: ARG002 - a double
        return {blob.digest for blob in blobs if blob.digest in self.blobs}

    def partial_size(self, _blob: Descriptor, /) -> int:
        return 0

    def write(self, blob: VerifiedBlob) -> int:
        assert blob.range is None
        self.threads.add(threading.get_ident())
        self.blobs[blob.descriptor.digest] = self.take(blob)
        self.diary.append("put")
        return 0

    def commit(self, graph: Graph) -> None:
        assert graph.roots
        self.diary.append("commit")

    def discard(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        self.diary.append("close")


class Wrapped(CompleteSource):
    """A layout's images, with changed properties of the source."""

    def __init__(
        self, path: Path, *, parallel: bool = True, early: Callable[[EarlyBlobs], None] = lambda _: None
    ) -> None:
        self._inner = LayoutSource(path)
        self.concurrent = parallel
        self.early = early
        self.ended = False

    def resolve(self, early: EarlyBlobs) -> Graph:
        self.early(early)
        return self._inner.resolve(early)

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        yield from self._inner.blobs(wanted)
        self.ended = True

    def close(self) -> None:
        """Do nothing."""


def whole(blob: Blob) -> bytes:
    return b"".join(bytes(chunk) for chunk in blob.open())


def several_layers(layout: Layout, count: int = 6) -> list[str]:
    """Write an image of layers that are several chunks long; return their digests."""
    image = layout.image([(1 << 20) + number for number in range(count)], name="v1")
    return [layer["digest"] for layer in layout.read(image["digest"])["layers"]]


def config_of(layout: Layout) -> str:
    """Return the digest of the only image's config, which is a single chunk."""
    (image,) = named_in(layout)
    return str(layout.read(image["digest"])["config"]["digest"])


class Holding(Memory):
    """A destination that buffers each blob in progress."""

    traits = Traits(concurrent=True, buffer_size=limits.MIB)


class TestPrefetching:
    @pytest.mark.parametrize(
        ("sink", "jobs", "memory"),
        [
            (Memory(), 4, limits.PREFETCH_MEMORY),
            (Holding(), 4, limits.PREFETCH_MEMORY - 4 * limits.MIB),
            (Holding(), 3, limits.PREFETCH_MEMORY - 3 * limits.MIB),
            (Holding(), limits.PREFETCH_MEMORY // limits.MIB, None),
            (Memory(), 1, None),
        ],
    )
    def test_prefetching_uses_the_memory_that_the_destination_leaves(
        self, layout: Layout, monkeypatch: pytest.MonkeyPatch, sink: Memory, jobs: int, memory: int | None
    ) -> None:
        several_layers(layout, 10)
        given = []

        class Noted(prefetch.Prefetcher):
            def __init__(self, connections: int, memory: int, cancelled: threading.Event) -> None:
                given.append(memory)
                super().__init__(connections, memory, cancelled)

        monkeypatch.setattr(prefetch, "Prefetcher", Noted)
        Copy(LayoutSource(layout.path), sink, jobs=jobs).run()
        assert given == ([] if memory is None else [memory])
        assert len(sink.blobs) == 11

    def test_few_small_blobs_are_not_prefetched(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        several_layers(layout, 2)
        monkeypatch.delattr(prefetch, "Prefetcher")
        sink = Memory()
        Copy(LayoutSource(layout.path), sink).run()
        assert len(sink.blobs) == 3


class TestConcurrency:
    @pytest.mark.parametrize(("source", "sink", "jobs"), [(True, True, 1), (True, False, 4)])
    def test_without_concurrency_only_the_calling_thread_copies(
        self, layout: Layout, source: bool, sink: bool, jobs: int
    ) -> None:
        several_layers(layout)
        into = Memory()
        into.traits = Traits(concurrent=sink)
        Copy(Wrapped(layout.path, parallel=source), into, Watch(), jobs=jobs).run()
        assert into.threads == {threading.get_ident()}

    def test_as_many_blobs_as_jobs_are_copied_at_once(self, layout: Layout) -> None:
        several_layers(layout, 5)
        sink = Memory()
        together = threading.Barrier(3)

        def take(blob: VerifiedBlob) -> bytes:
            # The config and five layers: two rounds of three.
            together.wait(PATIENCE)
            return whole(blob)

        sink.take = take
        Copy(LayoutSource(layout.path), sink, Watch(), jobs=3).run()
        assert len(sink.threads) == 3
        assert threading.get_ident() not in sink.threads
        assert sink.diary == ["begin", *["put"] * 6, "commit"]

    def test_the_first_failure_is_reported_and_the_others_stop(self, layout: Layout) -> None:
        several_layers(layout)
        sink = Memory()
        sink.blobs[config_of(layout)] = b"there already"
        cancelled = threading.Event()
        together = threading.Barrier(2)
        stopped: list[BaseException] = []
        leader: list[str] = []

        def take(blob: VerifiedBlob) -> bytes:
            chunks = blob.open()
            next(chunks)
            if together.wait(PATIENCE) == 0:
                leader.append(blob.descriptor.digest)
                msg = "the first one"
                raise NetworkError(msg)
            cancelled.wait(PATIENCE)
            try:
                for _ in chunks:
                    pass
            except BaseException as error:
                stopped.append(error)
                raise
            return b""

        sink.take = take
        with pytest.raises(NetworkError, match="the first one"):
            Copy(LayoutSource(layout.path), sink, Watch(), jobs=2, cancelled=cancelled).run()
        assert cancelled.is_set()
        assert [type(error) for error in stopped] == [CancelledError]
        assert sink.diary == ["begin"]

    def test_a_failing_source_is_reported(self, layout: Layout) -> None:
        several_layers(layout)

        class Failing(Wrapped):
            def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
                yield from self._inner.blobs(wanted[:1])
                msg = "no more"
                raise ArchiveError(msg)

        sink = Memory()
        with pytest.raises(ArchiveError, match="no more"):
            Copy(Failing(layout.path), sink, Watch(), jobs=3).run()
        assert "commit" not in sink.diary

    def test_a_failing_query_of_stored_blobs_is_reported(self, layout: Layout) -> None:
        several_layers(layout)

        class Asked(Memory):
            def stored(self, blobs: Sequence[Descriptor], *, quick: bool = False) -> set[str]:  # noqa: ARG002 - a double
                msg = f"{blobs}?"
                raise NetworkError(msg)

        with pytest.raises(NetworkError, match=r"\?"):
            Copy(LayoutSource(layout.path), Asked(), Watch()).run()
