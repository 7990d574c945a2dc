"""What every source promises, checked on each of them: where images come from makes no difference to what arrives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ocistream.errors import IntegrityError, NetworkError, NotFoundError
from ocistream.graph import Graph
from ocistream.interfaces import Blob, Source
from ocistream.model import Descriptor, parse_platform
from ocistream.platforms import PlatformChoice
from ocistream.stream import Chunk, verified
from tests.contract.shapes import SHAPES, named_in, nested_index, parts_of
from tests.contract.stores import REF_NAME, SOURCES, IndexLastPipeStore, RegistryStore, Store, opened
from tests.images import Layout, digest_of, small_image, tar_layer, two_platforms


class Kept:
    """What a source handed over before its graph was known, verified as `transfer` verifies it."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def put(self, blob: Blob) -> None:
        assert blob.descriptor.digest not in self.blobs
        self.blobs[blob.descriptor.digest] = content_of(blob)

    def put_unnamed(self, chunks: Iterator[Chunk]) -> Descriptor:
        """Fail."""
        raise AssertionError(chunks)

    def recall(self, descriptor: Descriptor) -> bytes:
        return self.blobs[descriptor.digest]


def content_of(blob: Blob) -> bytes:
    return b"".join(bytes(chunk) for chunk in verified(blob.open(), blob.descriptor))


def graph_of(source: Source) -> Graph:
    return source.graph(Kept())


def fetched(source: Source, choose: Callable[[Sequence[Descriptor]], Sequence[Descriptor]]) -> dict[str, bytes]:
    """Read what `choose` picks of the graph's blobs; what came early counts, if it was picked."""
    kept = Kept()
    graph = source.graph(kept)
    wanted = choose(graph.blobs)
    digests = {descriptor.digest for descriptor in wanted}
    found = {digest: content for digest, content in kept.blobs.items() if digest in digests}
    for blob in source.blobs([descriptor for descriptor in wanted if descriptor.digest not in found]):
        assert blob.descriptor.digest not in found, "a blob was given twice"
        found[blob.descriptor.digest] = content_of(blob)
    return found


def everything(blobs: Sequence[Descriptor]) -> Sequence[Descriptor]:
    return blobs


@pytest.fixture(params=SOURCES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Return an empty store of each kind."""
    with opened(SOURCES[request.param], tmp_path / "store") as made:
        yield made


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    """Return the name of each shape."""
    name: str = request.param
    return name


def raw_manifests(graph: Graph) -> list[bytes]:
    return [manifest.raw for manifest in graph.manifests]


class TestGraph:
    def test_it_has_every_manifest_byte_for_byte_and_children_before_parents(
        self, store: Store, shape: str, layout: Layout
    ) -> None:
        made = SHAPES[shape](layout, "v1")
        store.fill(layout)
        graph = graph_of(store.source())
        assert set(raw_manifests(graph)) == set(parts_of(layout).manifests.values())
        assert len(raw_manifests(graph)) == len(set(raw_manifests(graph)))
        assert layout.file(made["digest"]).read_bytes() in raw_manifests(graph)
        seen: set[str] = set()
        for manifest in graph.manifests:
            document = graph.documents[manifest.descriptor.digest]
            assert {child.digest for child in document.manifests} <= seen
            assert len(manifest.raw) == manifest.descriptor.size
            seen.add(manifest.descriptor.digest)

    def test_it_lists_every_blob_once_and_configs_first(self, store: Store, shape: str, layout: Layout) -> None:
        SHAPES[shape](layout, "v1")
        store.fill(layout)
        graph = graph_of(store.source())
        parts = parts_of(layout)
        digests = [blob.digest for blob in graph.blobs]
        assert len(digests) == len(set(digests))
        assert {blob.digest: blob.size for blob in graph.blobs} == {d: len(c) for d, c in parts.blobs.items()}
        assert graph.size == sum(map(len, parts.blobs.values()))
        configs = {document.config.digest for _, document in graph.images() if document.config}
        assert set(digests[: len(configs)]) == configs

    def test_every_image_is_a_root_by_its_name(self, store: Store, layout: Layout) -> None:
        for name, make in SHAPES.items():
            make(layout, name)
        store.fill(layout)
        graph = graph_of(store.source())
        raw = {manifest.descriptor.digest: manifest.raw for manifest in graph.manifests}
        found = {(root.name or "").rpartition(":")[2]: raw[root.descriptor.digest] for root in graph.roots}
        expected = {d["annotations"][REF_NAME]: layout.file(d["digest"]).read_bytes() for d in named_in(layout)}
        assert found == expected
        assert SHAPES.keys() < found.keys()

    def test_a_manifest_that_is_not_there_is_named_as_absent(self, store: Store, layout: Layout) -> None:
        index = two_platforms(layout, name="v1")
        there, lost = layout.read(index["digest"])["manifests"]
        store.fill(layout)
        store.damage(lost["digest"], None)
        graph = graph_of(store.source())
        assert [manifest.digest for manifest in graph.absent] == [lost["digest"]]
        assert [m.descriptor.digest for m in graph.manifests] == [there["digest"], index["digest"]]

    def test_a_manifest_that_was_changed_is_refused(self, store: Store, layout: Layout) -> None:
        index = two_platforms(layout, name="v1")
        changed = layout.read(index["digest"])["manifests"][1]
        store.fill(layout)
        # Still a manifest, of the same length.
        store.damage(changed["digest"], layout.file(changed["digest"]).read_bytes()[:-1] + b" ")
        # A registry that looks at what it sends refuses before we do.
        with pytest.raises((IntegrityError, NetworkError), match=changed["digest"]):
            fetched(store.source(), everything)


class TestPlatforms:
    def test_one_platform_is_its_image_itself(self, store: Store, layout: Layout) -> None:
        index = nested_index(layout, "v1")
        inner = layout.read(layout.read(index["digest"])["manifests"][0]["digest"])["manifests"][0]
        arm = layout.read(inner["digest"])["manifests"][1]
        store.fill(layout)
        graph = graph_of(store.source(platforms=PlatformChoice((parse_platform("linux/arm64"),))))
        assert [root.descriptor.digest for root in graph.roots] == [arm["digest"]]
        assert {blob.digest for blob in graph.blobs} == set(parts_of(layout, arm).blobs)

    def test_several_are_the_same_smaller_index_from_everywhere(self, layout: Layout, tmp_path: Path) -> None:
        nested_index(layout, "v1")
        choice = PlatformChoice((parse_platform("linux/riscv64"), parse_platform("linux/amd64")))
        found = set()
        for name, kind in SOURCES.items():
            with opened(kind, tmp_path / name) as store:
                store.fill(layout)
                graph = graph_of(store.source(platforms=choice))
                found.add(tuple(raw_manifests(graph)))
        (manifests,) = found
        assert len(manifests) == 3

    def test_a_platform_that_is_not_there_is_not_found(self, store: Store, layout: Layout) -> None:
        two_platforms(layout, name="v1")
        store.fill(layout)
        with pytest.raises(NotFoundError, match="linux/s390x") as caught:
            graph_of(store.source(platforms=PlatformChoice((parse_platform("linux/s390x"),))))
        assert "linux/amd64, linux/arm64/v8" in (caught.value.hint or "")

    def test_a_single_image_of_another_platform_is_not_found(self, store: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        store.fill(layout)
        with pytest.raises(NotFoundError, match="linux/s390x") as caught:
            graph_of(store.source(platforms=PlatformChoice((parse_platform("linux/s390x"),))))
        assert "linux/amd64" in (caught.value.hint or "")

    def test_a_single_image_of_the_right_one_arrives_whole(self, store: Store, layout: Layout) -> None:
        # Its config was looked at to know that.
        image = small_image(layout, name="v1")
        layout.name(image, "v2")
        store.fill(layout)
        source = store.source(platforms=PlatformChoice((parse_platform("linux/amd64"),)))
        assert fetched(source, everything) == parts_of(layout).blobs

    def test_what_was_not_chosen_may_be_missing(self, store: Store, layout: Layout) -> None:
        index = two_platforms(layout, name="v1")
        kept, lost = layout.read(index["digest"])["manifests"]
        store.fill(layout)
        store.damage(lost["digest"], None)
        graph = graph_of(store.source(platforms=PlatformChoice((parse_platform("linux/amd64"),))))
        assert graph.absent == ()
        assert [m.descriptor.digest for m in graph.manifests] == [kept["digest"]]


class TestBlobs:
    def test_all_bytes_arrive(self, store: Store, shape: str, layout: Layout) -> None:
        SHAPES[shape](layout, "v1")
        store.fill(layout)
        assert fetched(store.source(), everything) == parts_of(layout).blobs

    def test_only_what_is_wanted_is_given(self, store: Store, layout: Layout) -> None:
        SHAPES["many-layers"](layout, "v1")
        store.fill(layout)
        parts = parts_of(layout)
        asked: list[str] = []

        def every_third(blobs: Sequence[Descriptor]) -> Sequence[Descriptor]:
            asked.extend(blob.digest for blob in blobs[::3])
            return blobs[::3]

        assert fetched(store.source(), every_third) == {digest: parts.blobs[digest] for digest in asked}

    def test_nothing_is_given_where_nothing_is_wanted(self, store: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        store.fill(layout)
        source = store.source()
        graph_of(source)
        assert list(source.blobs([])) == []

    def test_a_blob_that_is_not_used_up_does_no_harm_to_the_next(self, store: Store, layout: Layout) -> None:
        SHAPES["many-layers"](layout, "v1")
        store.fill(layout)
        source = store.source()
        kept = Kept()
        graph = source.graph(kept)
        wanted = [blob for blob in graph.blobs if blob.digest not in kept.blobs]
        for number, blob in enumerate(source.blobs(wanted)):
            if number % 2:
                next(blob.open())
            else:
                assert len(content_of(blob)) == blob.descriptor.size

    def test_what_is_lacking_is_not_given(self, store: Store, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        lost = layout.read(image["digest"])["layers"][1]["digest"]
        there = parts_of(layout, image).blobs
        del there[lost]
        store.fill(layout)
        store.damage(lost, None)
        if store.is_remote:
            # Asking for each blob before it is fetched would cost a request each.
            with pytest.raises(NotFoundError, match=lost):
                fetched(store.source(), everything)
        else:
            assert fetched(store.source(), everything) == there

    @pytest.mark.parametrize("how", ["flipped", "shorter", "longer"])
    def test_a_blob_that_is_not_what_it_should_be_is_found_out(self, store: Store, layout: Layout, how: str) -> None:
        image = small_image(layout, name="v1")
        digest = layout.read(image["digest"])["layers"][1]["digest"]
        content = layout.file(digest).read_bytes()
        broken = {
            "flipped": content[:-1] + bytes([content[-1] ^ 1]),
            "shorter": content[:-1],
            "longer": content + b"\0",
        }
        store.fill(layout)
        store.damage(digest, broken[how])
        # Over a network, what is too short looks like a connection that broke off.
        lost = store.is_remote and how == "shorter"
        with pytest.raises(NetworkError if lost else IntegrityError, match=digest):
            fetched(store.source(), everything)

    def test_what_is_called_replayable_gives_the_same_bytes_again(self, store: Store, layout: Layout) -> None:
        SHAPES["many-layers"](layout, "v1")
        store.fill(layout)
        source = store.source()
        kept = Kept()
        graph = source.graph(kept)
        replayed = 0
        for blob in source.blobs([blob for blob in graph.blobs if blob.digest not in kept.blobs]):
            if blob.replayable:
                # Broken off, as by a connection that is lost, then begun again.
                next(blob.open())
                assert content_of(blob) == content_of(blob)
                replayed += 1
        if source.parallel:
            assert replayed == len(graph.blobs)

    def test_a_blob_can_be_begun_in_its_middle_where_the_source_says_so(self, store: Store, layout: Layout) -> None:
        SHAPES["many-layers"](layout, "v1")
        store.fill(layout)
        source = store.source()
        kept = Kept()
        graph = source.graph(kept)
        begun = 0
        for blob in source.blobs([blob for blob in graph.blobs if blob.digest not in kept.blobs]):
            content, size = content_of(blob), blob.descriptor.size
            if blob.open_at is not None:
                for offset in (0, 1, size // 2, size - 1):
                    assert b"".join(map(bytes, blob.open_at(offset))) == content[offset:]
                begun += 1
        # All can but a pipe, and those are the ones of which several can be read at once.
        assert begun == (len(graph.blobs) if source.parallel else 0)

    def test_blobs_can_be_read_side_by_side_where_the_source_says_so(self, store: Store, layout: Layout) -> None:
        layout.image([3 << 20, (3 << 20) + 1], name="v1")
        store.fill(layout)
        source = store.source()
        graph = graph_of(source)
        if not source.parallel:
            return
        both = threading.Barrier(2)
        found: dict[str, bytes] = {}

        def read(blob: Blob) -> None:
            pieces = []
            for chunk in blob.open():
                pieces.append(bytes(chunk))
                if len(pieces) == 1:
                    # Each has its first chunk in hand, and what is in it may not be written over by the other.
                    both.wait(60)
            found[blob.descriptor.digest] = b"".join(pieces)

        layers = [blob for blob in source.blobs(graph.blobs) if blob.descriptor.size >= 3 << 20]
        threads = [threading.Thread(target=read, args=(blob,)) for blob in layers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 2
        assert all(digest_of(content) == digest for digest, content in found.items())


class TestClosing:
    def test_a_source_can_be_closed_twice_and_at_any_time(self, store: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        store.fill(layout)
        unread = store.source()
        unread.close()
        unread.close()
        read = store.source()
        graph_of(read)
        read.close()
        read.close()


def test_the_pipe_with_its_index_last_hands_blobs_over_before_it_knows_its_graph(
    layout: Layout, tmp_path: Path
) -> None:
    small_image(layout, name="v1")
    layer = tar_layer({"a": b"b"})
    with opened(IndexLastPipeStore, tmp_path / "store") as store:
        layout.image([layer], name="v2")
        store.fill(layout)
        kept = Kept()
        store.source().graph(kept)
        assert digest_of(layer) in kept.blobs


def test_a_registry_has_its_images_asked_for_only_in_part(layout: Layout, tmp_path: Path) -> None:
    # Without this, the narrowing tests above would pass with everything fetched and most of it dropped.
    index = two_platforms(layout, name="v1")
    _, other = layout.read(index["digest"])["manifests"]
    with opened(RegistryStore, tmp_path / "store") as store:
        store.fill(layout)
        store.damage(other["digest"], b"{}")
        graph_of(store.source(platforms=PlatformChoice((parse_platform("linux/amd64"),))))
