"""Recompressed layers: every layer gets the requested format, references follow, and nothing else changes."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any, Final

import pytest
import zstandard

from ocistream.errors import UnsupportedError
from tests.archives import blob_name, files_in, items_of, tar_of
from tests.contract.adapter import Copied, archive_destination, bytes_source, copy, layout_destination, layout_source
from tests.contract.image_shapes import SHAPES
from tests.contract.stores import DESTINATIONS, SOURCES, Store, opened, store_fixture
from tests.contract.test_recompression_refused import GZ, TAR, with_diff_ids
from tests.images import (
    OCI_LAYER,
    Descriptor,
    Layout,
    digest_of,
    small_image,
    tar_layer,
    two_platforms,
)
from tests.recompression_checks import (
    CODECS,
    all_kinds,
    codec_of,
    compare,
    named,
    plain,
    stray_blobs,
)

codecs = pytest.mark.parametrize("codec", CODECS)


def copied(layout: Layout, folder: Path, codec: str, *, jobs: int = 4) -> tuple[Layout, Copied]:
    """Recompress a layout into another one in `folder`."""
    done = copy(layout_source(layout.path), layout_destination(folder), compress=codec, jobs=jobs)
    return Layout(folder), done


def converted(layout: Layout, folder: Path, codec: str) -> tuple[Layout, Copied]:
    """Recompress a layout, and check everything that applies to any image."""
    after, done = copied(layout, folder, codec)
    compare(layout, after, codec)
    assert stray_blobs(after) == set()
    return after, done


def only_image(layout: Layout) -> dict[str, Any]:
    (entry,) = named(layout).values()
    return dict(layout.read(entry["digest"]))


def only_image_of(layout: Layout, name: str) -> dict[str, Any]:
    return dict(layout.read(named(layout)[name]["digest"]))


def pick(descriptor: Descriptor) -> Descriptor:
    return {key: descriptor[key] for key in ("mediaType", "digest", "size")}


store = store_fixture(DESTINATIONS)

#: Layers come before their types are known, or after; destinations store them in four ways. Every source occurs once,
#: and every format with both orders.
ORDERS: Final = ("layout", "archive-pipe-index-last")
WAYS: Final = [
    *((source, destination, "zstd") for source in ORDERS for destination in DESTINATIONS),
    *((source, "layout", "zstd") for source in ("archive-file", "volumes", "archive-pipe", "registry")),
    *((source, "layout", codec) for source in ORDERS for codec in ("gzip", "none")),
]


@pytest.mark.parametrize(("source", "destination", "codec"), WAYS)
def test_every_layer_gets_the_requested_format_and_references_follow(
    layout: Layout, tmp_path: Path, source: str, destination: str, codec: str
) -> None:
    for name, make in SHAPES.items():
        make(layout, name)
    all_kinds(layout, name="all-kinds")
    all_kinds(layout, name="all-kinds-of-docker", media="docker")
    with (
        opened(SOURCES[source], tmp_path / "from") as origin,
        opened(DESTINATIONS[destination], tmp_path / "to") as store,
    ):
        origin.fill(layout)
        done = copy(origin.source(), store.destination(), compress=codec, jobs=2)
        after = store.layout(tmp_path / "after")
        # An empty layer that comes before its manifest does not look like a layer.
        early = source == "archive-pipe-index-last"
        became = compare(layout, after, codec, may_stay=lambda content: early and not content)
        if destination != "registry":
            assert stray_blobs(after) == set()
        # Our own reader finds no defect either.
        again = copy(layout_source(after.path), layout_destination(tmp_path / "again"))
        assert {manifest.piece.digest for manifest in again.listing.manifests} == set(became.values())
    assert done.moved == done.total
    for old, new in became.items():
        changed = layout.file(old).read_bytes() != after.file(new).read_bytes()
        assert changed == (new in done.origins)
    manifests = [manifest.piece.digest for manifest in done.listing.manifests]
    assert len(manifests) == len(set(manifests))
    blobs = [blob.digest for blob in done.listing.blobs]
    assert len(blobs) == len(set(blobs))
    # A registry names a manifest by sha256, even if the source uses another algorithm.
    pairs = {(name, new) for old, new in became.items() for name in (old, digest_of(layout.file(old).read_bytes()))}
    assert {(old, new) for new, old in done.origins.items()} <= pairs
    recompressed = {digest for digest, outcome in done.outcomes.items() if outcome == "converted"}
    assert recompressed >= {
        layer["digest"]
        for new in set(done.origins)
        for layer in after.read(new).get("layers", ())
        if not layout.file(layer["digest"]).exists()
    }


@codecs
def test_a_file_gets_the_same_bytes_with_any_number_of_jobs_and_a_stream_the_same_blobs(
    layout: Layout, tmp_path: Path, codec: str
) -> None:
    for name, make in SHAPES.items():
        make(layout, name)
    archives = set()
    for jobs in (1, 4):
        path = tmp_path / f"{jobs}.tar"
        copy(layout_source(layout.path), archive_destination(path), compress=codec, jobs=jobs)
        archives.add(path.read_bytes())
    with opened(DESTINATIONS["archive-pipe"], tmp_path / "piped") as store:
        copy(layout_source(layout.path), store.destination(), compress=codec)
        assert store.layout(tmp_path / "after").path.exists()
        files = files_in(archives.pop())
        assert not archives
        assert {path.name for path in (tmp_path / "after/blobs/sha256").iterdir()} <= {
            name.rpartition("/")[2] for name in files
        }


def test_a_pipe_gets_layers_from_a_temporary_file_that_is_removed(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_image(layout, name="v1")
    (tmp_path / "spool").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spool"))
    with opened(DESTINATIONS["archive-pipe"], tmp_path / "piped") as store:
        copy(layout_source(layout.path), store.destination(), compress="zstd")
        compare(layout, store.layout(tmp_path / "after"), "zstd")
    assert list((tmp_path / "spool").iterdir()) == []


class TestUnchanged:
    @codecs
    def test_an_image_of_the_requested_format_keeps_its_digest(
        self, layout: Layout, tmp_path: Path, codec: str
    ) -> None:
        compression: Any = "" if codec == "none" else codec
        image = layout.image([tar_layer({"a": b"b"}, compression=compression)], name="v1")
        after, done = converted(layout, tmp_path / "out", codec)
        assert named(after)["v1"]["digest"] == image["digest"]
        assert set(done.outcomes.values()) == {"copied"}
        assert done.origins == {}

    @codecs
    def test_docker_zstd_is_kept_if_zstd_is_requested(self, layout: Layout, tmp_path: Path, codec: str) -> None:
        image = layout.image([tar_layer({"a": b"b"}, compression="zstd")], name="v1", media="docker")
        after, _ = converted(layout, tmp_path / "out", codec)
        assert (named(after)["v1"]["digest"] == image["digest"]) == (codec == "zstd")

    @codecs
    def test_a_layer_that_an_artifact_needs_is_unchanged_in_images_too(
        self, layout: Layout, tmp_path: Path, codec: str
    ) -> None:
        content = tar_layer({"a": b"content " * 100})
        image = layout.image([content, TAR, tar_layer({"c": b"d"}, compression="zstd")], name="v1")
        artifact = layout.artifact(content, kind=OCI_LAYER + "+gzip", name="chart")
        after, _ = copied(layout, tmp_path / "out", codec)
        assert after.file(artifact["digest"]).read_bytes() == layout.file(artifact["digest"]).read_bytes()
        old = layout.read(image["digest"])["layers"]
        new = after.read(named(after)["v1"]["digest"])["layers"]
        assert new[0] == old[0]
        assert {layer["mediaType"] for layer in new[1:]} == {OCI_LAYER + {"none": ""}.get(codec, f"+{codec}")}

    def test_foreign_layers_are_not_copied_and_keep_their_position(self, layout: Layout, tmp_path: Path) -> None:
        kinds: list[tuple[Any, str]] = [
            ("oci", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
            ("docker", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
        ]
        foreign: Descriptor = {}
        for media, kind in kinds:
            image = layout.image([tar_layer({"0": b"0"}), tar_layer({"1": b"1"})], media=media)
            document = layout.read(image["digest"])
            foreign = {**document["layers"][0], "mediaType": kind, "urls": ["http://elsewhere.example/layer"]}
            document["layers"][0] = foreign
            layout.document(document, name=media)
        after, _ = copied(layout, tmp_path / "out", "zstd")
        for entry in named(after).values():
            first, second = after.read(entry["digest"])["layers"]
            assert first == {**foreign, "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"}
            assert second["mediaType"] == OCI_LAYER + "+zstd"
        assert not after.file(foreign["digest"]).exists()

    def test_annotations_are_kept_except_those_about_the_old_bytes(self, layout: Layout, tmp_path: Path) -> None:
        image = small_image(layout, annotations={"org.opencontainers.image.title": "Tïtle \U0001f6a2"})
        document = layout.read(image["digest"])
        first, second = document["layers"]
        gone = {
            "containerd.io/snapshot/stargz/toc.digest": "sha256:" + "0" * 64,
            "io.containers.zstd-chunked.manifest-position": "1:2:3:4",
            "io.github.containers.zstd-chunked.manifest-checksum": "sha256:" + "1" * 64,
        }
        first.update(annotations={"mine": "ïs", **gone}, data="AAAA", urls=["https://a.example/x"], mine=[1, 2.5, None])
        second.update(annotations=gone)
        layout.document(document, name="v1")
        after = only_image(copied(layout, tmp_path / "out", "zstd")[0])
        one, two = after["layers"]
        assert one == {
            **pick(one),
            "annotations": {"mine": "ïs"},
            "mine": [1, 2.5, None],
        }
        assert set(two) == {"mediaType", "digest", "size"}
        assert after["annotations"] == document["annotations"]

    @codecs
    def test_an_image_without_layers_is_unchanged(self, layout: Layout, tmp_path: Path, codec: str) -> None:
        image = layout.image([], name="v1")
        assert named(converted(layout, tmp_path / "out", codec)[0])["v1"]["digest"] == image["digest"]

    def test_only_manifests_above_a_changed_layer_are_rewritten(self, layout: Layout, tmp_path: Path) -> None:
        changed = layout.image([TAR])
        same = layout.image([tar_layer({"a": b"b"})], platform="linux/arm64")
        inner = layout.index([same])
        index = layout.index([layout.index([changed]), inner], name="v1")
        after, done = converted(layout, tmp_path / "out", "gzip")
        assert len(done.origins) == 3
        assert after.file(inner["digest"]).read_bytes() == layout.file(inner["digest"]).read_bytes()
        assert index["digest"] in done.origins.values()


class TestShared:
    def test_a_layer_of_two_images_is_recompressed_once(self, layout: Layout, store: Store, tmp_path: Path) -> None:
        shared = tar_layer({"shared": b"x" * 5000})
        for number in range(2):
            layout.image([shared, tar_layer({"own": bytes([number])})], name=f"v{number}", platform=f"linux/a{number}")
        done = copy(layout_source(layout.path), store.destination(), compress="zstd")
        compare(layout, store.layout(tmp_path / "after"), "zstd")
        assert sorted(done.outcomes.values()) == ["converted"] * 3 + ["copied"] * 2
        # Each blob was read once.
        assert done.moved == done.total

    @codecs
    def test_a_layer_with_two_media_types_gets_one_digest(self, layout: Layout, tmp_path: Path, codec: str) -> None:
        image = layout.image([TAR, tar_layer({"b": b"c"})])
        document = layout.read(image["digest"])
        wrong = json.loads(json.dumps(document))
        wrong["layers"][0]["mediaType"], wrong["layers"][1]["mediaType"] = OCI_LAYER + "+gzip", OCI_LAYER + "+zstd"
        layout.index([image, layout.document(wrong)], name="v1")
        after, _ = copied(layout, tmp_path / "out", codec)
        one, two = (after.read(entry["digest"])["layers"] for entry in only_image(after)["manifests"])
        assert one == two
        for layer, content in zip(one, (TAR, gzip.decompress(tar_layer({"b": b"c"}))), strict=True):
            raw = after.file(layer["digest"]).read_bytes()
            assert plain(raw) == content
            assert layer["mediaType"] == OCI_LAYER + {"none": ""}.get(codec, f"+{codec}")
            assert codec_of(raw) == codec

    @pytest.mark.parametrize("first", ["plain", "compressed"])
    @pytest.mark.parametrize("jobs", [1, 4])
    def test_several_layers_may_become_one(
        self, layout: Layout, store: Store, tmp_path: Path, first: str, jobs: int
    ) -> None:
        contents = {"plain": TAR, "compressed": gzip.compress(TAR, 1, mtime=0), "again": gzip.compress(TAR, 9, mtime=0)}
        for kind in [first, *(kind for kind in contents if kind != first)]:
            layout.image([contents[kind]], name=kind)
        done = copy(layout_source(layout.path), store.destination(), compress="none", jobs=jobs)
        after = store.layout(tmp_path / "after")
        compare(layout, after, "none")
        (digest,) = {after.read(entry["digest"])["layers"][0]["digest"] for entry in named(after).values()}
        assert done.outcomes[digest] == "converted"

    @pytest.mark.parametrize("is_reversed", [False, True])
    def test_several_layers_of_a_pipe_with_its_index_last_may_become_one(
        self, layout: Layout, store: Store, tmp_path: Path, is_reversed: bool
    ) -> None:
        layout.image([TAR], name="plain")
        layout.image([gzip.compress(TAR, mtime=0)], name="compressed")
        copy(bytes_source(tar_of(sorted(items_of(layout), reverse=is_reversed))), store.destination(), compress="none")
        compare(layout, store.layout(tmp_path / "after"), "none")


class TestSha512:
    @codecs
    def test_layers_with_sha512_are_verified_and_get_sha256(
        self, layout: Layout, store: Store, tmp_path: Path, codec: str
    ) -> None:
        all_kinds(layout, algorithm="sha512", name="v1")
        done = copy(layout_source(layout.path), store.destination(), compress=codec)
        compare(layout, store.layout(tmp_path / "after"), codec)
        made = [digest for digest, outcome in done.outcomes.items() if outcome == "converted"]
        assert len(made) == 2
        assert all(digest.startswith("sha256:") for digest in made)

    def test_a_diff_id_with_sha512_is_not_supported(self, layout: Layout, tmp_path: Path) -> None:
        with_diff_ids(layout, [TAR], [digest_of(TAR, "sha512")])
        with pytest.raises(UnsupportedError, match="diff_id sha512:"):
            copied(layout, tmp_path / "out", "gzip")
        assert named(Layout(tmp_path / "out")) == {}


class TestAgain:
    def test_a_second_run_gives_the_same_images_and_leaves_no_stray_blobs(self, layout: Layout, tmp_path: Path) -> None:
        all_kinds(layout, name="v1")
        first, second = (copied(layout, tmp_path / "out", "zstd")[1] for _ in range(2))
        assert first.listing.images == second.listing.images
        assert stray_blobs(Layout(tmp_path / "out")) == set()

    def test_a_config_that_only_the_destination_has_is_used(self, layout: Layout, tmp_path: Path) -> None:
        image = layout.image([GZ], name="v1")
        copy(layout_source(layout.path), layout_destination(tmp_path / "out"))
        layout.file(layout.read(image["digest"])["config"]["digest"]).unlink()
        _, done = copied(layout, tmp_path / "out", "zstd")
        assert sorted(done.outcomes.values()) == ["converted", "skipped"]

    def test_an_index_is_recompressed_if_the_destination_has_its_missing_image(
        self, layout: Layout, tmp_path: Path
    ) -> None:
        index = two_platforms(layout, name="v1")
        copy(layout_source(layout.path), layout_destination(tmp_path / "out"))
        other = layout.read(index["digest"])["manifests"][1]
        layout.file(other["digest"]).unlink()
        after = only_image(copied(layout, tmp_path / "out", "zstd")[0])["manifests"]
        assert after[1]["digest"] == other["digest"]
        assert after[0]["digest"] != layout.read(index["digest"])["manifests"][0]["digest"]


def test_a_higher_level_makes_smaller_layers(layout: Layout, tmp_path: Path) -> None:
    layout.image([tar_layer({"a": bytes(range(256)) * 5000 + b"words and words " * 9000}, compression="")], name="v1")
    sizes = [only_image(copied(layout, tmp_path / text, text)[0])["layers"][0]["size"] for text in ("gzip:1", "gzip:9")]
    assert sizes[0] > sizes[1]


def test_zlib_and_zstd_read_recompressed_layers(layout: Layout, tmp_path: Path) -> None:
    layout.image([TAR], name="v1")
    for codec in ("gzip", "zstd"):
        after, _ = copied(layout, tmp_path / codec, codec)
        raw = after.file(only_image(after)["layers"][0]["digest"]).read_bytes()
        if codec == "gzip":
            assert zlib.decompress(raw, 31) == TAR
        else:
            assert zstandard.get_frame_parameters(raw).has_checksum


def test_the_layers_of_an_archive_come_before_its_index(layout: Layout, tmp_path: Path) -> None:
    layout.image([GZ], name="v1")
    done = copy(layout_source(layout.path), archive_destination(tmp_path / "out.tar"), compress="zstd")
    config, layer = (blob_name(blob.digest) for blob in done.listing.blobs)
    (image,) = (blob_name(digest) for _, digest in done.listing.images)
    # The digests of layers are known when the layers are written.
    expected = ["oci-layout", config, layer, "index.json", "manifest.json", image]
    assert list(files_in((tmp_path / "out.tar").read_bytes())) == expected
