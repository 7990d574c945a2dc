"""What every sink promises, checked on each: nothing shows before it is verified and committed, all of it after."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from ocistream import transfer
from ocistream.errors import IntegrityError, MissingContentError, NotFoundError
from ocistream.graph import Graph, Root
from ocistream.interfaces import Blob, Recalls, Sink, Source
from ocistream.model import Descriptor
from ocistream.stores.layout import LayoutSource
from ocistream.stream import Chunk
from tests.contract.shapes import SHAPES, named_in, parts_of
from tests.contract.stores import (
    ALL_SINKS,
    REF_NAME,
    SINKS,
    SOURCES,
    IndexLastPipeStore,
    LayoutStore,
    NothingEarly,
    Store,
    opened,
)
from tests.images import OCI_LAYER, Layout, small_image, tar_layer, two_platforms
from tests.observers import Watch


class Broken(Exception):  # noqa: N818 - it stands for any exception at all
    """What a blob's chunks raise."""


def opened_layout(layout: Layout) -> tuple[Source, Graph]:
    source = LayoutSource(layout.path)
    return source, source.graph(NothingEarly())


def put_all(sink: Sink, source: Source, graph: Graph) -> None:
    for blob in source.blobs([blob for blob in graph.blobs if not sink.has(blob)]):
        sink.put(blob)


def is_visible_as_made(store: Store, layout: Layout) -> None:
    """Assert that the store shows every image of `layout`, byte for byte, and has all of its blobs."""
    expected = {d["annotations"][REF_NAME]: layout.file(d["digest"]).read_bytes() for d in named_in(layout)}
    assert store.images() == expected
    parts = parts_of(layout)
    # A registry calls a manifest by sha256, whatever it was called elsewhere.
    manifests = {digest for digest in parts.manifests if digest.startswith("sha256:")}
    assert manifests | set(parts.blobs) <= store.blobs()


@pytest.fixture(params=ALL_SINKS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Return an empty store of each kind."""
    with opened(ALL_SINKS[request.param], tmp_path / "store") as made:
        yield made


@pytest.fixture(params=SINKS)
def hasty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Return an empty store of each kind that takes blobs before the graph."""
    with opened(SINKS[request.param], tmp_path / "store") as made:
        yield made


def go_together(sink: str, source: str) -> bool:
    return sink in SINKS or not issubclass(SOURCES[source], IndexLastPipeStore)


@pytest.fixture(params=[way for way in itertools.product(ALL_SINKS, SOURCES) if go_together(*way)], ids="-".join)
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    """Return an empty store to write to and one to read from, of all kinds that go together."""
    sink, source = request.param
    with opened(ALL_SINKS[sink], tmp_path / "store") as made, opened(SOURCES[source], tmp_path / "from") as origin:
        yield made, origin


@pytest.fixture(params=["layout", "registry"])
def lasting(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Return an empty store of each kind that images can be added to."""
    with opened(SINKS[request.param], tmp_path / "store") as made:
        yield made


class TestVisibility:
    def test_everything_is_visible_after_commit_and_nothing_before(self, store: Store, layout: Layout) -> None:
        for name, make in SHAPES.items():
            make(layout, name)
        source, graph = opened_layout(layout)
        sink = store.sink()
        assert store.images() == {}
        sink.begin(graph)
        assert store.images() == {}
        put_all(sink, source, graph)
        assert store.images() == {}
        sink.commit(graph)
        is_visible_as_made(store, layout)

    def test_close_drops_what_was_not_committed(self, store: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        source, graph = opened_layout(layout)
        sink = store.sink()
        sink.begin(graph)
        put_all(sink, source, graph)
        sink.close()
        sink.close()
        assert store.images() == {}
        # What is left of it, if anything, are whole blobs that the next try need not move again.
        assert store.blobs() <= set(parts_of(layout).blobs)

    def test_close_keeps_what_was_committed(self, store: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        source, graph = opened_layout(layout)
        sink = store.sink()
        sink.begin(graph)
        put_all(sink, source, graph)
        sink.commit(graph)
        sink.close()
        sink.close()
        is_visible_as_made(store, layout)

    def test_a_sink_that_was_never_used_leaves_nothing(self, store: Store) -> None:
        store.sink().close()
        assert store.images() == {}
        assert store.blobs() == set()

    def test_a_name_keeps_its_old_meaning_until_commit(self, lasting: Store, layout: Layout, tmp_path: Path) -> None:
        old = Layout(tmp_path / "old")
        small_image(old, name="v1")
        transfer.copy(opened_layout(old)[0], lasting.sink(), Watch())
        small_image(layout, name="v1", platform="linux/arm64")
        source, graph = opened_layout(layout)
        sink = lasting.sink()
        sink.begin(graph)
        put_all(sink, source, graph)
        is_visible_as_made(lasting, old)
        sink.commit(graph)
        is_visible_as_made(lasting, layout)

    def test_other_images_stay(self, lasting: Store, tmp_path: Path) -> None:
        for number in range(3):
            other = Layout(tmp_path / str(number))
            other.image([tar_layer({"n": bytes([number])})], name=f"v{number}")
            transfer.copy(opened_layout(other)[0], lasting.sink(), Watch())
        assert set(lasting.images()) == {"v0", "v1", "v2"}


class TestPut:
    def test_has_is_false_before_and_true_after(self, store: Store, layout: Layout) -> None:
        for name, make in SHAPES.items():
            make(layout, name)
        source, graph = opened_layout(layout)
        sink = store.sink()
        sink.begin(graph)
        for blob in source.blobs(graph.blobs):
            assert not sink.has(blob.descriptor)
            sink.put(blob)
            assert sink.has(blob.descriptor)

    @pytest.mark.parametrize("left", [0, 1, 2], ids=["at-the-very-end", "before-the-last-chunk", "in-the-middle"])
    def test_a_blob_whose_chunks_raise_leaves_nothing(self, store: Store, layout: Layout, left: int) -> None:
        image = layout.image([(5 << 20) // 2], name="v1")
        (layer,) = layout.read(image["digest"])["layers"]
        _, graph = opened_layout(layout)
        content = layout.file(layer["digest"]).read_bytes()
        pieces = [content[at : at + (1 << 20)] for at in range(0, len(content), 1 << 20)]
        assert len(pieces) == 3

        def chunks() -> Iterator[Chunk]:
            yield from pieces[: 3 - left]
            raise Broken

        sink = store.sink()
        sink.begin(graph)
        descriptor = next(blob for blob in graph.blobs if blob.digest == layer["digest"])
        with pytest.raises(Broken):
            sink.put(Blob(descriptor, chunks))
        assert store.blobs() == set()
        sink.close()
        assert store.blobs() == set()
        assert store.images() == {}

    def test_a_blob_may_come_before_the_graph(self, hasty: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        source, graph = opened_layout(layout)
        sink = hasty.sink()
        put_all(sink, source, graph)
        sink.begin(graph)
        assert all(sink.has(blob) for blob in graph.blobs)
        sink.commit(graph)
        is_visible_as_made(hasty, layout)

    def test_the_same_can_be_committed_again(self, lasting: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        source, graph = opened_layout(layout)
        for _ in range(2):
            sink = lasting.sink()
            sink.begin(graph)
            put_all(sink, source, graph)
            sink.commit(graph)
        is_visible_as_made(lasting, layout)

    def test_two_blobs_are_put_side_by_side_where_the_sink_says_so(self, store: Store, layout: Layout) -> None:
        layout.image([3 << 20, (3 << 20) + 1], name="v1")
        source, graph = opened_layout(layout)
        sink = store.sink()
        if not sink.parallel:
            return
        sink.begin(graph)
        both = threading.Barrier(2)

        def slow(blob: Blob) -> Blob:
            def chunks() -> Iterable[Chunk]:
                for number, chunk in enumerate(blob.open()):
                    if number == 1:
                        # Neither goes on before the other has begun.
                        both.wait(60)
                    yield chunk

            return Blob(blob.descriptor, lambda: iter(chunks()))

        config, *layers = source.blobs(graph.blobs)
        threads = [threading.Thread(target=sink.put, args=(slow(layer),)) for layer in layers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not both.broken
        sink.put(config)
        sink.commit(graph)
        is_visible_as_made(store, layout)

    def test_small_content_that_was_put_is_given_back_where_the_sink_can(self, hasty: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        source, graph = opened_layout(layout)
        sink = hasty.sink()
        put_all(sink, source, graph)
        if isinstance(sink, Recalls):
            parts = parts_of(layout)
            assert {blob.digest: sink.recall(blob) for blob in graph.blobs} == parts.blobs
            with pytest.raises(NotFoundError):
                sink.recall(Descriptor("text/plain", "sha256:" + "0" * 64, 5))

    def test_a_manifest_is_there_once_it_is_committed(self, lasting: Store, layout: Layout) -> None:
        two_platforms(layout, name="v1")
        source, graph = opened_layout(layout)
        sink = lasting.sink()
        sink.begin(graph)
        put_all(sink, source, graph)
        assert not any(sink.has_manifest(manifest.descriptor) for manifest in graph.manifests)
        sink.commit(graph)
        assert all(sink.has_manifest(manifest.descriptor) for manifest in graph.manifests)


class TestCopies:
    def test_every_shape_arrives_from_every_source(self, way: tuple[Store, Store], layout: Layout) -> None:
        store, origin = way
        for name, make in SHAPES.items():
            make(layout, name)
        watched = Watch()
        origin.fill(layout)
        report = transfer.copy(origin.source(), store.sink(), watched)
        is_visible_as_made(store, layout)
        parts = parts_of(layout)
        assert {moved.descriptor.digest for moved in report.blobs} == set(parts.blobs)
        assert watched.moved == watched.total == sum(map(len, parts.blobs.values()))

    def test_a_manifest_that_is_a_layer_of_another_arrives_as_both(
        self, way: tuple[Store, Store], layout: Layout
    ) -> None:
        store, origin = way
        inner = small_image(layout)
        document = layout.read(inner["digest"])
        document["layers"] = [{**inner, "mediaType": OCI_LAYER}]
        layout.index([inner, layout.document(document)], name="v1")
        origin.fill(layout)
        transfer.copy(origin.source(), store.sink(), Watch())
        is_visible_as_made(store, layout)

    def test_what_is_there_is_not_moved_again(self, lasting: Store, layout: Layout) -> None:
        SHAPES["many-layers"](layout, "v1")
        transfer.copy(opened_layout(layout)[0], lasting.sink(), Watch())
        watched = Watch()
        transfer.copy(opened_layout(layout)[0], lasting.sink(), watched)
        assert set(watched.how.values()) == {"skipped"}
        assert watched.moved == watched.total

    def test_a_corrupt_blob_changes_nothing(self, way: tuple[Store, Store], layout: Layout) -> None:
        store, origin = way
        image = small_image(layout, name="v1")
        digest = layout.read(image["digest"])["layers"][1]["digest"]
        content = layout.file(digest).read_bytes()
        origin.fill(layout)
        origin.damage(digest, content[:-1] + bytes([content[-1] ^ 1]))
        sink = store.sink()
        with pytest.raises(IntegrityError, match=digest):
            transfer.copy(origin.source(), sink, Watch())
        sink.close()
        assert store.images() == {}
        assert digest not in store.blobs()

    def test_a_lacking_blob_changes_nothing(self, store: Store, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        digest = layout.read(image["digest"])["layers"][1]["digest"]
        layout.file(digest).unlink()
        sink = store.sink()
        with pytest.raises(MissingContentError, match=digest):
            transfer.copy(LayoutSource(layout.path), sink, Watch())
        sink.close()
        assert store.images() == {}

    def test_what_the_source_lacks_may_be_at_the_destination_already(self, lasting: Store, layout: Layout) -> None:
        index = two_platforms(layout, name="v1")
        transfer.copy(opened_layout(layout)[0], lasting.sink(), Watch())
        child = layout.read(index["digest"])["manifests"][0]
        for blob in parts_of(layout, child).blobs:
            layout.file(blob).unlink()
        layout.file(child["digest"]).unlink()
        layout.name(index, "v2")
        transfer.copy(LayoutSource(layout.path), lasting.sink(), Watch())
        assert lasting.images()["v2"] == layout.file(index["digest"]).read_bytes()


def test_a_layout_is_a_place_to_copy_within(layout: Layout, tmp_path: Path) -> None:
    small_image(layout, name="v1")
    with opened(LayoutStore, tmp_path / "store") as store:
        store.fill(layout)

        def renamed(graph: Graph) -> Graph:
            return dataclasses.replace(graph, roots=(Root("v2", graph.roots[0].descriptor),))

        transfer.copy(store.source(), store.sink(), Watch(), rename=renamed)
        assert set(store.images()) == {"v1", "v2"}
