"""How a copy prefetches, and when it uses threads. The rest is in tests/contract and tests/cli."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ocistream import limits
from ocistream.layout.source import LayoutSource
from ocistream.oci.descriptor import Descriptor
from ocistream.oci.graph import Graph
from ocistream.transfer import prefetch
from ocistream.transfer.copy import Copy
from ocistream.transfer.interfaces import Blob, CompleteSource, EarlyBlobs, Traits, VerifiedBlob
from tests.images import Layout
from tests.observers import Watch
from tests.unit.transfer.memory_destination import Memory


class Wrapped(CompleteSource):
    """A layout's images, of which several blobs may be read at once or not."""

    def __init__(self, path: Path, *, parallel: bool) -> None:
        self._inner = LayoutSource(path)
        self.concurrent = parallel

    def resolve(self, early: EarlyBlobs) -> Graph:
        return self._inner.resolve(early)

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        return self._inner.blobs(wanted)

    def close(self) -> None:
        """Do nothing."""


def several_layers(layout: Layout, count: int = 6) -> None:
    """Write an image of layers that are several chunks long."""
    layout.image([(1 << 20) + number for number in range(count)], name="v1")


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
        threads: set[int] = set()

        class Noting(Memory):
            traits = Traits(concurrent=sink)

            def write(self, blob: VerifiedBlob) -> int:
                threads.add(threading.get_ident())
                return super().write(blob)

        Copy(Wrapped(layout.path, parallel=source), Noting(), Watch(), jobs=jobs).run()
        assert threads == {threading.get_ident()}
