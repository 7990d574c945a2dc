"""Blobs that move at a time: how many, which failure is reported, and what stops. The rest is in tests/contract."""

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

#: Seconds after which a test that hangs fails.
PATIENCE = 60.0


class Memory:
    """A sink that keeps what it is given, and a diary of the order of things; `take` may be replaced."""

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
        """Nothing is kept in part."""

    def close(self) -> None:
        self.diary.append("close")


class Wrapped(CompleteSource):
    """A layout's images, with some of the source changed."""

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
        """Nothing to close."""


def whole(blob: Blob) -> bytes:
    return b"".join(bytes(chunk) for chunk in blob.open())


def several_layers(layout: Layout, count: int = 6) -> list[str]:
    """Write an image of layers that are several chunks long; return their digests."""
    image = layout.image([(1 << 20) + number for number in range(count)], name="v1")
    return [layer["digest"] for layer in layout.read(image["digest"])["layers"]]


def config_of(layout: Layout) -> str:
    """Return the digest of the one image's configuration, which is a single chunk."""
    (image,) = named_in(layout)
    return str(layout.read(image["digest"])["config"]["digest"])


class Holding(Memory):
    """A sink that takes memory for each blob under way."""

    traits = Traits(concurrent=True, buffer_size=limits.MIB)


class TestAhead:
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
    def test_what_is_fetched_ahead_makes_way_for_what_the_sink_holds(
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

    def test_few_small_blobs_are_not_measured(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        several_layers(layout, 2)
        monkeypatch.delattr(prefetch, "Prefetcher")
        sink = Memory()
        Copy(LayoutSource(layout.path), sink).run()
        assert len(sink.blobs) == 3


class TestSideBySide:
    @pytest.mark.parametrize(("source", "sink", "jobs"), [(True, True, 1), (True, False, 4)])
    def test_where_one_side_cannot_it_all_happens_in_this_thread(
        self, layout: Layout, source: bool, sink: bool, jobs: int
    ) -> None:
        several_layers(layout)
        into = Memory()
        into.traits = Traits(concurrent=sink)
        Copy(Wrapped(layout.path, parallel=source), into, Watch(), jobs=jobs).run()
        assert into.threads == {threading.get_ident()}

    def test_where_both_can_as_many_blobs_move_at_once_as_there_are_jobs(self, layout: Layout) -> None:
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

    def test_the_first_failure_is_the_one_that_is_reported_and_the_others_stop(self, layout: Layout) -> None:
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

    def test_a_source_that_fails_is_a_failure_too(self, layout: Layout) -> None:
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

    def test_a_failing_question_is_a_failure_too(self, layout: Layout) -> None:
        several_layers(layout)

        class Asked(Memory):
            def stored(self, blobs: Sequence[Descriptor], *, quick: bool = False) -> set[str]:  # noqa: ARG002 - a double
                msg = f"{blobs}?"
                raise NetworkError(msg)

        with pytest.raises(NetworkError, match=r"\?"):
            Copy(LayoutSource(layout.path), Asked(), Watch()).run()
