"""The part of the contract that docker-archives keep: they hold plain images, without their manifests."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ocistream import transfer
from ocistream.conversion import parse_recompression
from ocistream.errors import ArchiveError, IntegrityError, NotFoundError, OcistreamError, UnsupportedError
from ocistream.graph import Graph, Root
from ocistream.interfaces import Blob, Sink, Source, TakesUnnamed, Unnamed
from ocistream.model import Descriptor, parse_platform
from ocistream.platforms import PlatformChoice
from ocistream.stores.layout import LayoutSource
from ocistream.stream import Chunk, verified
from tests.contract.shapes import SHAPES
from tests.contract.stores import (
    DOCKER_ARCHIVES,
    REF_NAME,
    REPOSITORY,
    SINKS,
    SOURCES,
    DockerArchiveFileStore,
    LayoutStore,
    NothingEarly,
    Store,
    opened,
)
from tests.docker_archives import Saved, plain_manifest, saved
from tests.images import Layout, digest_of, small_image, tar_layer, two_platforms
from tests.observers import Watch

#: The shapes that a docker-archive can hold, whatever their manifests say.
HELD = ("single", "docker", "empty-blob", "no-layers", "many-layers")
NONE = parse_recompression("none")


class Broken(Exception):  # noqa: N818 - it stands for any exception at all
    """What a blob's chunks raise."""


class Kept:
    """What a source handed over before its graph was known."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def put(self, blob: Blob) -> None:
        self.blobs[blob.descriptor.digest] = content_of(blob)

    def put_unnamed(self, chunks: Iterator[Chunk]) -> Descriptor:
        content = b"".join(map(bytes, chunks))
        digest = digest_of(content)
        self.blobs[digest] = content
        return Descriptor("application/vnd.oci.image.layer.v1.tar", digest, len(content))

    def recall(self, descriptor: Descriptor) -> bytes:
        return self.blobs[descriptor.digest]


def content_of(blob: Blob) -> bytes:
    return b"".join(bytes(chunk) for chunk in verified(blob.open(), blob.descriptor))


def everything(blobs: Sequence[Descriptor]) -> Sequence[Descriptor]:
    return blobs


def fetched(source: Source, choose: Callable[[Sequence[Descriptor]], Sequence[Descriptor]]) -> dict[str, bytes]:
    """Read what `choose` picks of the graph's blobs; what came early counts, if it was picked."""
    kept = Kept()
    wanted = choose(source.graph(kept).blobs)
    digests = {descriptor.digest for descriptor in wanted}
    found = {digest: content for digest, content in kept.blobs.items() if digest in digests}
    for blob in source.blobs([descriptor for descriptor in wanted if descriptor.digest not in found]):
        assert blob.descriptor.digest not in found, "a blob was given twice"
        found[blob.descriptor.digest] = content_of(blob)
    return found


def images_of(layout: Layout) -> dict[str, Saved]:
    """Return what is to be seen of the images of a layout, by their tags."""
    listed = json.loads((layout.path / "index.json").read_bytes())["manifests"]
    return {entry["annotations"][REF_NAME]: saved(layout, entry) for entry in listed}


def seen_as(images: dict[str, Saved]) -> dict[str, bytes]:
    return {tag: json.dumps(plain_manifest(one), separators=(",", ":")).encode() for tag, one in images.items()}


def blobs_of(images: dict[str, Saved]) -> dict[str, bytes]:
    return {digest_of(content): content for one in images.values() for content in (one.config, *one.layers)}


@pytest.fixture(params=DOCKER_ARCHIVES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Return an empty store of each kind."""
    with opened(DOCKER_ARCHIVES[request.param], tmp_path / "store") as made:
        yield made


def fill(layout: Layout) -> dict[str, Saved]:
    for name in HELD:
        SHAPES[name](layout, name)
    return images_of(layout)


def plainly(layout: Layout, folder: Path) -> Layout:
    """Return the images of a layout with plain layers, under their full names."""
    other = Layout(folder)
    for tag, one in images_of(layout).items():
        document = json.loads(one.config)
        other.document(
            {
                **plain_manifest(one),
                "config": other.blob(one.config, "application/vnd.oci.image.config.v1+json"),
                "layers": [other.blob(layer, "application/vnd.oci.image.layer.v1.tar") for layer in one.layers],
            },
            name=f"docker.io/{REPOSITORY}:{tag}",
        )
        assert document["rootfs"]["diff_ids"] == one.diff_ids
    return other


class TestSource:
    def test_the_graph_has_every_image_by_its_name_and_configs_first(self, store: Store, layout: Layout) -> None:
        images = fill(layout)
        store.fill(layout)
        graph = store.source().graph(Kept())
        raw = {manifest.descriptor.digest: manifest.raw for manifest in graph.manifests}
        found = {(root.name or "").rpartition(":")[2]: raw[root.descriptor.digest] for root in graph.roots}
        assert found == seen_as(images)
        assert {root.name for root in graph.roots} == {f"docker.io/{REPOSITORY}:{tag}" for tag in images}
        digests = [blob.digest for blob in graph.blobs]
        assert {blob.digest: blob.size for blob in graph.blobs} == {d: len(c) for d, c in blobs_of(images).items()}
        assert len(digests) == len(set(digests))
        configs = {digest_of(one.config) for one in images.values()}
        assert set(digests[: len(configs)]) == configs

    def test_all_bytes_arrive_and_only_what_is_wanted(self, store: Store, layout: Layout) -> None:
        images = fill(layout)
        store.fill(layout)
        assert fetched(store.source(), everything) == blobs_of(images)
        asked: list[str] = []

        def every_third(blobs: Sequence[Descriptor]) -> Sequence[Descriptor]:
            asked.extend(blob.digest for blob in blobs[::3])
            return blobs[::3]

        found = fetched(store.source(), every_third)
        assert found == {digest: blobs_of(images)[digest] for digest in asked}
        source = store.source()
        source.graph(Kept())
        assert list(source.blobs([])) == []

    def test_platforms_are_chosen_as_elsewhere(self, store: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        store.fill(layout)
        source = store.source(platforms=PlatformChoice((parse_platform("linux/amd64"),)))
        assert fetched(source, everything) == blobs_of(images_of(layout))
        with pytest.raises(NotFoundError, match="linux/s390x"):
            store.source(platforms=PlatformChoice((parse_platform("linux/s390x"),))).graph(Kept())

    def test_what_is_lacking_is_found_out_with_the_graph(self, store: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        store.fill(layout)
        store.damage(images_of(layout)["v1"].diff_ids[1], None)
        with pytest.raises(ArchiveError, match="lacks"):
            store.source().graph(Kept())

    @pytest.mark.parametrize("how", ["flipped", "shorter", "longer"])
    def test_a_blob_that_is_not_what_it_should_be_is_found_out(self, store: Store, layout: Layout, how: str) -> None:
        small_image(layout, name="v1")
        image = images_of(layout)["v1"]
        content = image.layers[1]
        broken = {
            "flipped": content[:-1] + bytes([content[-1] ^ 1]),
            "shorter": content[:-1],
            "longer": content + b"\0",
        }
        store.fill(layout)
        store.damage(image.diff_ids[1], broken[how])
        with pytest.raises(IntegrityError, match=image.diff_ids[1]):
            fetched(store.source(), everything)

    def test_blobs_can_be_read_again_and_side_by_side_from_a_file(self, layout: Layout, tmp_path: Path) -> None:
        layout.image([3 << 20, (3 << 20) + 1], name="v1")
        with opened(DockerArchiveFileStore, tmp_path / "store") as store:
            store.fill(layout)
            source = store.source()
            assert source.parallel
            graph = source.graph(NothingEarly())
            both = threading.Barrier(2)
            found: dict[str, bytes] = {}

            def read(blob: Blob) -> None:
                next(blob.open())
                chunks = blob.open()
                first = bytes(next(chunks))
                both.wait(60)
                found[blob.descriptor.digest] = first + b"".join(map(bytes, chunks))

            blobs = [blob for blob in source.blobs(graph.blobs) if blob.descriptor.size > 1 << 20]
            threads = [threading.Thread(target=read, args=(blob,)) for blob in blobs]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(found) == 2
        assert all(digest_of(content) == digest for digest, content in found.items())

    def test_it_can_be_closed_twice_and_at_any_time(self, store: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        store.fill(layout)
        unread, read = store.source(), store.source()
        unread.close()
        unread.close()
        read.graph(Kept())
        read.close()
        read.close()

    @pytest.mark.parametrize("kind", SINKS)
    def test_every_sink_takes_what_it_gives(self, store: Store, layout: Layout, tmp_path: Path, kind: str) -> None:
        images = fill(layout)
        store.fill(layout)
        with opened(SINKS[kind], tmp_path / "to") as place:
            watched = Watch()
            sink = place.sink()
            transfer.copy(store.source(), sink, watched, recompression=NONE)
            assert place.images() == seen_as(images)
            assert set(blobs_of(images)) <= place.blobs()
            assert watched.moved == watched.total


class TestSink:
    def test_everything_is_visible_after_commit_and_nothing_before(
        self, store: Store, layout: Layout, tmp_path: Path
    ) -> None:
        images = fill(layout)
        source = LayoutSource(plainly(layout, tmp_path / "plain").path)
        graph = source.graph(NothingEarly())
        sink = store.sink()
        assert store.images() == {}
        sink.begin(graph)
        assert store.images() == {}
        for blob in source.blobs(graph.blobs):
            assert not sink.has(blob.descriptor)
            sink.put(blob)
            assert sink.has(blob.descriptor)
        assert store.images() == {}
        sink.commit(graph)
        assert store.images() == seen_as(images)
        assert store.blobs() == set(blobs_of(images))
        sink.close()
        sink.close()
        assert store.images() == seen_as(images)

    def test_close_drops_what_was_not_committed(self, store: Store, layout: Layout, tmp_path: Path) -> None:
        fill(layout)
        source = LayoutSource(plainly(layout, tmp_path / "plain").path)
        graph = source.graph(NothingEarly())
        sink = store.sink()
        sink.begin(graph)
        for blob in source.blobs(graph.blobs):
            sink.put(blob)
        sink.close()
        sink.close()
        assert (store.images(), store.blobs()) == ({}, set())

    def test_one_that_was_never_used_leaves_nothing(self, store: Store) -> None:
        store.sink().close()
        assert (store.images(), store.blobs()) == ({}, set())

    @pytest.mark.parametrize("named", [True, False])
    def test_a_blob_whose_chunks_raise_leaves_nothing(self, store: Store, layout: Layout, named: bool) -> None:
        layout.image([5 << 19], name="v1")
        image = images_of(layout)["v1"]

        def chunks() -> Iterator[Chunk]:
            yield image.layers[0][: 1 << 20]
            raise Broken

        sink = store.sink()
        descriptor = Descriptor("application/vnd.oci.image.layer.v1.tar", image.diff_ids[0], len(image.layers[0]))
        with pytest.raises(Broken):
            put(sink, descriptor, chunks, named=named)
        assert store.blobs() == set()
        sink.close()
        assert (store.images(), store.blobs()) == ({}, set())

    @pytest.mark.parametrize("shape", sorted(set(SHAPES) - set(HELD) - {"sha512"}))
    def test_what_it_cannot_hold_is_refused_before_anything_is_written(
        self, store: Store, layout: Layout, shape: str
    ) -> None:
        SHAPES[shape](layout, "v1")
        source = LayoutSource(layout.path)
        graph = source.graph(NothingEarly())
        sink = store.sink()
        for check in (sink.begin, sink.expect if isinstance(sink, TakesUnnamed) else sink.begin):
            with pytest.raises(UnsupportedError):
                check(graph)

    @pytest.mark.parametrize("kind", [*SOURCES, *DOCKER_ARCHIVES])
    def test_it_takes_images_from_every_source(self, store: Store, layout: Layout, tmp_path: Path, kind: str) -> None:
        images = fill(layout)
        with opened((SOURCES | DOCKER_ARCHIVES)[kind], tmp_path / "from") as origin:
            origin.fill(layout)
            watched = Watch()
            transfer.copy(origin.source(), store.sink(), watched, rename=under_full_names, recompression=NONE)
        assert store.images() == seen_as(images)
        assert store.blobs() == set(blobs_of(images))
        assert watched.moved == watched.total

    @pytest.mark.parametrize("kind", SOURCES)
    def test_a_corrupt_blob_changes_nothing(self, store: Store, layout: Layout, tmp_path: Path, kind: str) -> None:
        image = small_image(layout, name="v1")
        digest = layout.read(image["digest"])["layers"][1]["digest"]
        content = layout.file(digest).read_bytes()
        with opened(SOURCES[kind], tmp_path / "from") as origin:
            origin.fill(layout)
            origin.damage(digest, content[:-1] + bytes([content[-1] ^ 1]))
            sink = store.sink()
            with pytest.raises(OcistreamError):
                transfer.copy(origin.source(), sink, Watch(), recompression=NONE)
            sink.close()
        assert (store.images(), store.blobs()) == ({}, set())

    def test_the_same_layer_of_two_compressions_is_there_once(self, store: Store, layout: Layout) -> None:
        files = {"a": b"b"}
        for number, packed in enumerate(("gzip", "zstd", "")):
            layout.image([tar_layer(files, compression=packed)], name=f"v{number}")  # type: ignore[arg-type]
        images = images_of(layout)
        source = LayoutSource(layout.path)
        transfer.copy(source, store.sink(), Watch(), rename=under_full_names, recompression=NONE)
        assert store.images() == seen_as(images)
        # files_in would have refused what stands there twice.
        assert store.blobs() == set(blobs_of(images))

    def test_one_image_of_an_index_is_an_image(self, store: Store, layout: Layout) -> None:
        index = two_platforms(layout, name="v1")
        arm = layout.read(index["digest"])["manifests"][1]
        source = LayoutSource(layout.path, platforms=PlatformChoice((parse_platform("linux/arm64"),)))
        transfer.copy(source, store.sink(), Watch(), rename=under_full_names, recompression=NONE)
        assert store.images() == seen_as({"v1": saved(layout, arm)})


def put(sink: Sink, descriptor: Descriptor, chunks: Callable[[], Iterator[Chunk]], *, named: bool) -> None:
    """Put a blob under its name, or as one whose name is not known yet."""
    if named:
        sink.put(Blob(descriptor, chunks))
    else:
        assert isinstance(sink, TakesUnnamed)
        sink.put_unnamed(Unnamed(chunks, lambda: descriptor))


def under_full_names(graph: Graph) -> Graph:
    """Call bare tags as Docker wants images to be called."""
    roots = [
        Root(f"docker.io/{REPOSITORY}:{(root.name or '').rpartition(':')[2]}", root.descriptor) for root in graph.roots
    ]
    return dataclasses.replace(graph, roots=tuple(roots))


def test_the_layouts_that_images_come_from_are_what_the_others_are_checked_with(layout: Layout, tmp_path: Path) -> None:
    # Were `plainly` wrong, a sink that is wrong in the same way would pass.
    images = fill(layout)
    with opened(LayoutStore, tmp_path / "store") as store:
        store.fill(plainly(layout, tmp_path / "plain"))
        graph = store.source().graph(NothingEarly())
        assert {blob.digest for blob in graph.blobs} == set(blobs_of(images))
