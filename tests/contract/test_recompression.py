"""Layers compressed anew on their way: every direction, between all kinds of ends, and what must stay as it was."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import io
import itertools
import json
import os
import random
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import zstandard

from ocistream import limits, transfer
from ocistream.compression import CODECS, GZIP, ZSTD
from ocistream.conversion import Recompression, parse_recompression
from ocistream.errors import (
    ArchiveError,
    IntegrityError,
    NotFoundError,
    OcistreamError,
    UnsupportedError,
    UsageError,
)
from ocistream.graph import Root
from ocistream.interfaces import Blob, Sink, Source
from ocistream.layers import looks_like_layer
from ocistream.reference import Reference, parse_reference
from ocistream.stores.archive import ArchiveSink
from ocistream.stores.archive_stream import ArchiveStreamSource
from ocistream.stores.layout import LayoutSink, LayoutSource
from ocistream.stores.outputs import file_output, stream_output
from ocistream.stores.registry import RegistrySink
from ocistream.stream import Chunk
from tests.archives import END, blob_name, files_in, items_of, small_first, tar_of
from tests.contract.shapes import SHAPES, with_attestation
from tests.contract.stores import SOURCES, Store, opened
from tests.conversions import CODECS as NAMES
from tests.conversions import VOUCHES_FOR, all_kinds, codec_of, compare, named, plain, stray_blobs, unpacked
from tests.faults import Fault, StopReading, refusal
from tests.images import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Layout,
    digest_of,
    small_image,
    tar_layer,
    two_platforms,
)
from tests.network import CountingRegistry, QuickTransport
from tests.observers import Watch
from tests.registry import Registry

MIB: Final = limits.MIB
TAR: Final = tar_layer({"a": b"content " * 500}, compression="")
codecs = pytest.mark.parametrize("codec", NAMES)


def recompression(codec: str) -> Recompression:
    return parse_recompression(codec)


def copied(source: Source, sink: Sink, codec: str, *, jobs: int = 1, watch: Watch | None = None) -> transfer.Report:
    return transfer.copy(source, sink, watch or Watch(), jobs=jobs, recompression=recompression(codec))


@dataclasses.dataclass
class Place:
    """Where images go: `sink` is used once, and then `layout` gives what is there."""

    sink: Sink
    layout: Callable[[], Layout]


@contextlib.contextmanager
def into_layout(folder: Path) -> Iterator[Place]:
    yield Place(LayoutSink(folder), lambda: Layout(folder))


@contextlib.contextmanager
def into_file(folder: Path) -> Iterator[Place]:
    folder.mkdir()
    file = folder / "out.tar"
    sink = ArchiveSink(file_output(file))
    yield Place(sink, lambda: unpacked(file.read_bytes(), folder / "unpacked"))
    sink.close()


@contextlib.contextmanager
def into_pipe(folder: Path) -> Iterator[Place]:
    outlet, inlet = os.pipe()
    got = bytearray()

    def drain() -> None:
        with io.FileIO(outlet, "rb") as file:
            while piece := file.read(1 << 16):
                got.extend(piece)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    with io.FileIO(inlet, "wb") as file:

        def layout() -> Layout:
            file.close()
            thread.join()
            return unpacked(bytes(got), folder)

        yield Place(ArchiveSink(stream_output(file, "to the pipe")), layout)
    thread.join()


@contextlib.contextmanager
def into_registry(folder: Path) -> Iterator[Place]:
    with Registry(folder) as registry, QuickTransport() as transport:

        def target(root: Root) -> Reference:
            return parse_reference(f"{registry.host}/app:{(root.name or '').rpartition(':')[2]}")

        sink = RegistrySink(transport, target, early=parse_reference(f"{registry.host}/app:early"))
        yield Place(sink, lambda: Layout(folder))
        sink.close()


PLACES: Final = {"layout": into_layout, "file": into_file, "pipe": into_pipe, "registry": into_registry}
places = pytest.mark.parametrize("place", PLACES)


def converted(layout: Layout, folder: Path, codec: str, *, jobs: int = 4) -> tuple[Layout, transfer.Report]:
    """Copy a layout to another one in `folder`, and check what can be checked of any image."""
    report = copied(LayoutSource(layout.path), LayoutSink(folder), codec, jobs=jobs)
    after = Layout(folder)
    compare(layout, after, codec)
    assert stray_blobs(after) == set()
    return after, report


def only_image(layout: Layout) -> dict[str, Any]:
    (entry,) = named(layout).values()
    return dict(layout.read(entry["digest"]))


#: Every two kinds of ends, and every codec where the layers are known before and where they are not.
WAYS: Final = [
    *((kind, place, "zstd") for kind in SOURCES for place in PLACES),
    *((kind, "layout", codec) for kind in ("layout", "archive-pipe-index-last") for codec in ("gzip", "none")),
]


class TestOption:
    @pytest.mark.parametrize(
        ("text", "codec", "level"),
        [("gzip", GZIP, 6), ("gzip:1", GZIP, 1), ("gzip:9", GZIP, 9), ("zstd", ZSTD, 3), ("zstd:19", ZSTD, 19)],
    )
    def test_a_codec_and_perhaps_a_level(self, text: str, codec: object, level: int) -> None:
        want = parse_recompression(text, 7)
        assert (want.codec, want.level, want.max_ratio) == (codec, level, 7)

    def test_none_has_no_level(self) -> None:
        assert parse_recompression("none").codec is CODECS["none"]

    @pytest.mark.parametrize(
        "text",
        [
            *(
                "",
                "lzma",
                "GZIP",
                "gzip:",
                "gzip:0",
                "gzip:10",
                "gzip:-1",
                "gzip:6 ",
                "gzip:x",
                "gzip:6:6",
                "gzip:\u0661",
            ),
            *("zstd:0", "zstd:20", "zstd:99", "none:", "none:1", "none:0", "gzip:0000000015", "gzip:" + "1" * 5000),
        ],
    )
    def test_anything_else_is_refused_with_what_is_allowed(self, text: str) -> None:
        with pytest.raises(UsageError) as caught:
            parse_recompression(text)
        name = text.partition(":")[0]
        assert (caught.value.hint or "").startswith(f"{name} has " if name in NAMES else "it may be gzip, zstd, none")

    @pytest.mark.parametrize("compression", ["gzip", "zstd", ""])
    def test_what_is_compressed_or_a_tar_looks_like_a_layer(self, compression: Any) -> None:
        assert looks_like_layer(tar_layer({"a": b"b"}, compression=compression)[:1024])

    def test_an_empty_tar_looks_like_a_layer_and_other_things_do_not(self) -> None:
        assert looks_like_layer(END)
        for other in (b"", b"{}", bytes(511), b"ustar", b"some words " * 50):
            assert not looks_like_layer(other)


class TestEverywhere:
    """Every shape of image, between every two kinds of ends."""

    @pytest.mark.parametrize(("kind", "place", "codec"), WAYS)
    def test_every_layer_becomes_what_was_asked_for_and_all_that_names_it_follows(
        self, layout: Layout, tmp_path: Path, kind: str, place: str, codec: str
    ) -> None:
        for name, make in SHAPES.items():
            make(layout, name)
        all_kinds(layout, name="all-kinds")
        all_kinds(layout, name="all-kinds-of-docker", media="docker")
        watch = Watch()
        with opened(SOURCES[kind], tmp_path / "from") as origin, PLACES[place](tmp_path / "to") as to:
            origin.fill(layout)
            report = copied(origin.source(), to.sink, codec, jobs=2, watch=watch)
            after = to.layout()
            # An empty one that comes before it is known to be a layer does not look like one.
            early = kind == "archive-pipe-index-last"
            became = compare(layout, after, codec, may_stay=lambda content: early and not content)
            if place != "registry":
                assert stray_blobs(after) == set()
            # Our own reader finds all of it right as well.
            again = transfer.copy(LayoutSource(after.path), LayoutSink(tmp_path / "again"), Watch())
            assert {m.descriptor.digest for m in again.graph.manifests} == set(became.values())
        assert watch.moved == watch.total
        for old, new in became.items():
            changed = layout.file(old).read_bytes() != after.file(new).read_bytes()
            assert changed == (new in report.origins)
        # Two images may have become one.
        assert len({m.descriptor.digest for m in report.graph.manifests}) == len(report.graph.manifests)
        assert len({blob.digest for blob in report.graph.blobs}) == len(report.graph.blobs)
        assert {(old, new) for new, old in report.origins.items()} <= {
            (called, new) for old, new in became.items() for called in (old, digest_of(layout.file(old).read_bytes()))
        }
        assert [root.name for root in report.graph.roots] == [root.name for root in report.source.roots]
        assert {b.descriptor.digest for b in report.blobs if b.how == "converted"} >= {
            layer["digest"]
            for new in set(report.origins)
            for layer in after.read(new).get("layers", ())
            if layer["digest"] not in {blob.digest for blob in report.source.blobs}
        }
        for moved in report.blobs:
            assert (moved.how == "converted") == (moved.source is not None)

    @codecs
    def test_a_pipe_gets_the_same_bytes_as_a_file_on_every_run_and_by_any_number_of_jobs(
        self, layout: Layout, tmp_path: Path, codec: str
    ) -> None:
        for name, make in SHAPES.items():
            make(layout, name)
        archives = set()
        for number, jobs in enumerate([1, 4]):
            file = tmp_path / f"{number}.tar"
            copied(LayoutSource(layout.path), ArchiveSink(file_output(file)), codec, jobs=jobs)
            archives.add(file.read_bytes())
            spooled = tmp_path / f"{number}-spooled.tar"
            with io.FileIO(spooled, "wb") as out:
                copied(LayoutSource(layout.path), ArchiveSink(stream_output(out, "there")), codec, jobs=jobs)
            archives.add(spooled.read_bytes())
        assert len(archives) == 1

    @codecs
    @pytest.mark.parametrize("place", ["layout", "registry"])
    def test_any_number_of_jobs_gives_the_same_images(
        self, layout: Layout, tmp_path: Path, place: str, codec: str
    ) -> None:
        for name, make in SHAPES.items():
            make(layout, name)
        found = []
        for jobs in (1, 4):
            with PLACES[place](tmp_path / str(jobs)) as to:
                copied(LayoutSource(layout.path), to.sink, codec, jobs=jobs)
                found.append({name: entry["digest"] for name, entry in named(to.layout()).items()})
        assert found[0] == found[1]

    def test_a_pipe_is_given_layers_by_way_of_a_temporary_file_that_is_gone_afterwards(
        self, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small_image(layout, name="v1")
        (tmp_path / "spool").mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spool"))
        with into_pipe(tmp_path / "to") as to:
            copied(LayoutSource(layout.path), to.sink, "zstd")
            compare(layout, to.layout(), "zstd")
        assert list((tmp_path / "spool").iterdir()) == []


class TestWhatStays:
    @codecs
    def test_an_image_that_is_so_already_keeps_its_digest(self, layout: Layout, tmp_path: Path, codec: str) -> None:
        compression: Any = "" if codec == "none" else codec
        image = layout.image([tar_layer({"a": b"b"}, compression=compression)], name="v1")
        after, report = converted(layout, tmp_path / "out", codec)
        assert named(after)["v1"]["digest"] == image["digest"]
        assert {moved.how for moved in report.blobs} == {"copied"}
        assert report.source is report.graph

    @codecs
    def test_docker_zstd_stays_where_zstd_is_asked_for(self, layout: Layout, tmp_path: Path, codec: str) -> None:
        image = layout.image([tar_layer({"a": b"b"}, compression="zstd")], name="v1", media="docker")
        after, _ = converted(layout, tmp_path / "out", codec)
        assert (named(after)["v1"]["digest"] == image["digest"]) == (codec == "zstd")

    @codecs
    def test_a_layer_that_an_artifact_needs_stays_as_it_is_for_all(
        self, layout: Layout, tmp_path: Path, codec: str
    ) -> None:
        content = tar_layer({"a": b"content " * 100})
        image = layout.image([content, TAR, tar_layer({"c": b"d"}, compression="zstd")], name="v1")
        artifact = layout.artifact(content, kind=OCI_LAYER + "+gzip", name="chart")
        copied(LayoutSource(layout.path), LayoutSink(tmp_path / "out"), codec)
        after = Layout(tmp_path / "out")
        assert after.file(artifact["digest"]).read_bytes() == layout.file(artifact["digest"]).read_bytes()
        old = layout.read(image["digest"])["layers"]
        new = after.read(named(after)["v1"]["digest"])["layers"]
        assert new[0] == old[0]
        assert {layer["mediaType"] for layer in new[1:]} == {OCI_LAYER + {"none": ""}.get(codec, f"+{codec}")}

    def test_foreign_layers_stay_where_they_are_and_keep_their_place(self, layout: Layout, tmp_path: Path) -> None:
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
        report = copied(LayoutSource(layout.path), LayoutSink(tmp_path / "out"), "zstd")
        after = Layout(tmp_path / "out")
        for entry in named(after).values():
            first, second = after.read(entry["digest"])["layers"]
            assert first == {**foreign, "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"}
            assert second["mediaType"] == OCI_LAYER + "+zstd"
        assert not after.file(foreign["digest"]).exists()
        assert len(report.graph.foreign) == 1

    def test_annotations_stay_but_those_of_the_bytes_as_they_were(self, layout: Layout, tmp_path: Path) -> None:
        image = small_image(layout, annotations={"org.opencontainers.image.title": "Tïtle \U0001f6a2"})
        document = layout.read(image["digest"])
        first, second = document["layers"]
        gone = {
            "containerd.io/snapshot/stargz/toc.digest": "sha256:" + "0" * 64,
            "io.github.containers.zstd-chunked.manifest-checksum": "sha256:" + "1" * 64,
        }
        first.update(annotations={"mine": "ïs", **gone}, data="AAAA", urls=["https://a.example/x"], mine=[1, 2.5, None])
        second.update(annotations=gone)
        layout.document(document, name="v1")
        copied(LayoutSource(layout.path), LayoutSink(tmp_path / "out"), "zstd")
        after = only_image(Layout(tmp_path / "out"))
        one, two = after["layers"]
        assert one == {
            **pick(one),
            "annotations": {"mine": "ïs"},
            "mine": [1, 2.5, None],
        }
        assert set(two) == {"mediaType", "digest", "size"}
        assert after["annotations"] == document["annotations"]

    @codecs
    def test_no_layers_are_no_change(self, layout: Layout, tmp_path: Path, codec: str) -> None:
        image = layout.image([], name="v1")
        assert named(converted(layout, tmp_path / "out", codec)[0])["v1"]["digest"] == image["digest"]

    def test_only_what_leads_to_a_changed_layer_is_written_anew(self, layout: Layout, tmp_path: Path) -> None:
        changed = layout.image([TAR])
        same = layout.image([tar_layer({"a": b"b"})], platform="linux/arm64")
        inner = layout.index([same])
        index = layout.index([layout.index([changed]), inner], name="v1")
        after, report = converted(layout, tmp_path / "out", "gzip")
        assert len(report.origins) == 3
        assert after.file(inner["digest"]).read_bytes() == layout.file(inner["digest"]).read_bytes()
        assert index["digest"] in report.origins.values()


class TestWhatFollows:
    def test_an_attestation_vouches_for_the_new_image(self, layout: Layout, tmp_path: Path) -> None:
        index = with_attestation(layout, "v1")
        after, _ = converted(layout, tmp_path / "out", "zstd")
        image, vouching = only_image(after)["manifests"]
        before = layout.read(index["digest"])["manifests"][1]
        assert vouching["annotations"] == {VOUCHES_FOR: image["digest"]}
        assert image["digest"] != layout.read(index["digest"])["manifests"][0]["digest"]
        assert vouching["digest"] == before["digest"]

    def test_so_does_one_that_the_layout_lists_itself(self, layout: Layout, tmp_path: Path) -> None:
        image = small_image(layout, name="v1")
        vouching = layout.artifact(b"{}", kind="application/vnd.in-toto+json")
        index = json.loads((layout.path / "index.json").read_bytes())
        index["manifests"][0]["data"] = "AAAA"
        index["manifests"][0]["mine"] = "stays"
        index["manifests"].append({**vouching, "annotations": {VOUCHES_FOR: image["digest"], "a": "b"}, "mine": 1})
        (layout.path / "index.json").write_text(json.dumps(index))
        copied(LayoutSource(layout.path), LayoutSink(tmp_path / "out"), "zstd")
        first, second = json.loads((tmp_path / "out" / "index.json").read_bytes())["manifests"]
        assert "data" not in first
        assert first["mine"] == "stays"
        assert first["digest"] != image["digest"]
        assert second == {**vouching, "annotations": {VOUCHES_FOR: first["digest"], "a": "b"}, "mine": 1}

    def test_referrers_follow_their_subjects_and_theirs_follow_them(self, layout: Layout, tmp_path: Path) -> None:
        image = small_image(layout, name="image")
        # In index.json the ones that refer come before what they refer to.
        sbom = layout.artifact(b"parts", subject=image)
        signature = layout.artifact(b"signed", subject=sbom)
        of_index = layout.index([], subject=image)
        index = layout.index([signature, of_index, sbom, image], name="v1")
        copied(LayoutSource(layout.path), LayoutSink(tmp_path / "out"), "zstd")
        after = Layout(tmp_path / "out")
        new_signature, new_of_index, new_sbom, new_image = only_image_of(after, "v1")["manifests"]
        assert after.read(new_sbom["digest"])["subject"] == {**image, **pick(new_image)}
        assert after.read(new_of_index["digest"])["subject"]["digest"] == new_image["digest"]
        assert after.read(new_signature["digest"])["subject"]["digest"] == new_sbom["digest"]
        assert after.read(new_sbom["digest"])["layers"] == layout.read(sbom["digest"])["layers"]
        assert named(after)["image"]["digest"] == new_image["digest"]
        assert len({index["digest"], named(after)["v1"]["digest"]}) == 2

    def test_a_subject_that_is_not_there_stays(self, layout: Layout, tmp_path: Path) -> None:
        subject = {"mediaType": OCI_MANIFEST, "digest": "sha256:" + "5" * 64, "size": 5}
        layout.image([TAR], name="v1", subject=subject)
        after, _ = converted(layout, tmp_path / "out", "gzip")
        assert only_image(after)["subject"] == subject

    @pytest.mark.parametrize("codec", ["zstd", "none", "gzip"])
    def test_a_docker_list_becomes_an_index_where_zstd_is_asked_for(
        self, layout: Layout, tmp_path: Path, codec: str
    ) -> None:
        two_platforms(layout, media="docker", name="v1")
        after, report = converted(layout, tmp_path / "out", codec)
        index = only_image(after)
        kinds = {index["mediaType"], *(entry["mediaType"] for entry in index["manifests"])}
        assert kinds == ({OCI_INDEX, OCI_MANIFEST} if codec == "zstd" else {DOCKER_LIST, DOCKER_MANIFEST})
        called = {blob.digest: blob.media_type for blob in report.graph.blobs}
        listed = [b for e in index["manifests"] for m in [after.read(e["digest"])] for b in (m["config"], *m["layers"])]
        assert called == {blob["digest"]: blob["mediaType"] for blob in listed}

    def test_a_list_of_which_one_image_is_docker_zstd_already_names_no_mixture(
        self, layout: Layout, tmp_path: Path
    ) -> None:
        zstd = layout.image([tar_layer({"a": b"b"}, compression="zstd")], media="docker")
        other = layout.image([tar_layer({"c": b"d"})], media="docker", platform="linux/arm64")
        mixed = layout.image([tar_layer({"a": b"b"}, compression="zstd"), TAR], media="docker", platform="linux/arm/v7")
        layout.index([zstd, other, mixed], media="docker", name="v1")
        after, _ = converted(layout, tmp_path / "out", "zstd")
        assert only_image(after)["mediaType"] == OCI_INDEX

    def test_old_bytes_do_not_stand_beside_new_digests(self, layout: Layout, tmp_path: Path) -> None:
        holding = {"data": "AAAA", "urls": ["https://a.example/x"], "mine": "stays"}
        image = layout.image([TAR])
        same = {**layout.image([tar_layer({"a": b"b"})]), **holding}
        layout.index([{**image, **holding}, same], name="v1")
        copied(LayoutSource(layout.path), LayoutSink(tmp_path / "out"), "gzip")
        first, second = only_image(Layout(tmp_path / "out"))["manifests"]
        assert first == {**image, **pick(first), "mine": "stays"}
        assert second == same

    def test_an_index_of_thousands_of_images_can_be_rewritten(self, layout: Layout, tmp_path: Path) -> None:
        image = layout.image([TAR])
        annotated = {**image, "annotations": {f"key-{n}": "v" * 20 for n in range(8)}}
        layout.index([{**annotated, "number": n} for n in range(3000)], name="v1")
        after, _ = converted(layout, tmp_path / "out", "gzip")
        entries = only_image(after)["manifests"]
        assert [entry["number"] for entry in entries] == list(range(3000))
        assert len({entry["digest"] for entry in entries}) == 1

    def test_a_manifest_without_a_media_type_and_with_lists_of_null(self, layout: Layout, tmp_path: Path) -> None:
        image = layout.image([TAR])
        document = layout.read(image["digest"])
        del document["mediaType"]
        raw = json.dumps(document).encode()
        untyped = layout.blob(raw, OCI_MANIFEST)
        layout.name(untyped, "v1")
        referrer = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": document["config"], "layers": None}
        layout.document({**referrer, "subject": untyped}, name="v2")
        copied(LayoutSource(layout.path), LayoutSink(tmp_path / "out"), "gzip")
        after = Layout(tmp_path / "out")
        assert only_image_of(after, "v1")["layers"][0]["mediaType"] == OCI_LAYER + "+gzip"
        assert only_image_of(after, "v2")["layers"] == []
        assert only_image_of(after, "v2")["subject"]["digest"] == named(after)["v1"]["digest"]

    def test_a_child_of_an_index_that_is_a_blob_stays_as_it_is(self, layout: Layout, tmp_path: Path) -> None:
        image = layout.image([TAR])
        blob = layout.document({"mediaType": "application/vnd.example+json", "subject": image, "mine": {"a": [None]}})
        layout.index([blob, image], name="v1")
        copied(LayoutSource(layout.path), LayoutSink(tmp_path / "out"), "gzip")
        after = Layout(tmp_path / "out")
        kept, new_image = only_image(after)["manifests"]
        assert kept == blob
        assert after.file(blob["digest"]).read_bytes() == layout.file(blob["digest"]).read_bytes()
        assert new_image["digest"] != image["digest"]


def only_image_of(layout: Layout, name: str) -> dict[str, Any]:
    return dict(layout.read(named(layout)[name]["digest"]))


def pick(descriptor: Descriptor) -> Descriptor:
    return {key: descriptor[key] for key in ("mediaType", "digest", "size")}


class TestShared:
    @places
    def test_a_layer_of_two_images_is_converted_once(self, layout: Layout, tmp_path: Path, place: str) -> None:
        shared = tar_layer({"shared": b"x" * 5000})
        for number in range(2):
            layout.image([shared, tar_layer({"own": bytes([number])})], name=f"v{number}", platform=f"linux/a{number}")
        opens: list[str] = []

        class Counting(LayoutSource):
            def blobs(self, wanted: Any) -> Iterator[Blob]:
                for blob in super().blobs(wanted):
                    opens.append(blob.descriptor.digest)
                    yield blob

        with PLACES[place](tmp_path / "to") as to:
            copied(Counting(layout.path), to.sink, "zstd")
            compare(layout, to.layout(), "zstd")
        assert len(opens) == len(set(opens)) == 5

    @codecs
    def test_a_layer_that_two_manifests_call_differently_becomes_one_thing(
        self, layout: Layout, tmp_path: Path, codec: str
    ) -> None:
        image = layout.image([TAR, tar_layer({"b": b"c"})])
        document = layout.read(image["digest"])
        wrong = json.loads(json.dumps(document))
        wrong["layers"][0]["mediaType"], wrong["layers"][1]["mediaType"] = OCI_LAYER + "+gzip", OCI_LAYER + "+zstd"
        layout.index([image, layout.document(wrong)], name="v1")
        copied(LayoutSource(layout.path), LayoutSink(tmp_path / "out"), codec)
        after = Layout(tmp_path / "out")
        one, two = (after.read(entry["digest"])["layers"] for entry in only_image(after)["manifests"])
        assert one == two
        for layer, content in zip(one, (TAR, gzip.decompress(tar_layer({"b": b"c"}))), strict=True):
            raw = after.file(layer["digest"]).read_bytes()
            assert plain(raw) == content
            assert layer["mediaType"] == OCI_LAYER + {"none": ""}.get(codec, f"+{codec}")
            assert codec_of(raw) == codec

    @places
    @pytest.mark.parametrize("first", ["plain", "compressed"])
    @pytest.mark.parametrize("jobs", [1, 4])
    def test_what_a_layer_becomes_may_be_there_as_another_layer(
        self, layout: Layout, tmp_path: Path, place: str, first: str, jobs: int
    ) -> None:
        contents = {"plain": TAR, "compressed": gzip.compress(TAR, 1, mtime=0), "again": gzip.compress(TAR, 9, mtime=0)}
        order = [first, *(kind for kind in contents if kind != first)]
        for kind in order:
            layout.image([contents[kind]], name=kind)
        with PLACES[place](tmp_path / "to") as to:
            report = copied(LayoutSource(layout.path), to.sink, "none", jobs=jobs)
            after = to.layout()
            compare(layout, after, "none")
        assert len({after.read(entry["digest"])["layers"][0]["digest"] for entry in named(after).values()}) == 1
        layers = [moved for moved in report.blobs if moved.descriptor.media_type == OCI_LAYER]
        assert [moved.how for moved in layers] == ["converted"]

    def test_the_same_from_a_pipe_whose_index_comes_last(self, layout: Layout, tmp_path: Path) -> None:
        layout.image([TAR], name="plain")
        layout.image([gzip.compress(TAR, mtime=0)], name="compressed")
        for place, make in PLACES.items():
            for number, order in enumerate([sorted, lambda items: sorted(items, reverse=True)]):
                with make(tmp_path / f"{place}-{number}") as to:
                    copied(from_tar(tar_of(order(items_of(layout)))), to.sink, "none")  # type: ignore[operator]
                    compare(layout, to.layout(), "none")


def from_tar(archive: bytes) -> ArchiveStreamSource:
    return ArchiveStreamSource(io.BytesIO(archive))


class TestSha512:
    @places
    @codecs
    def test_layers_by_sha512_are_verified_and_their_results_are_by_sha256(
        self, layout: Layout, tmp_path: Path, place: str, codec: str
    ) -> None:
        all_kinds(layout, algorithm="sha512", name="v1")
        with PLACES[place](tmp_path / "to") as to:
            report = copied(LayoutSource(layout.path), to.sink, codec)
            compare(layout, to.layout(), codec)
        made = [moved for moved in report.blobs if moved.how == "converted"]
        assert len(made) == 2
        assert all(moved.descriptor.digest.startswith("sha256:") for moved in made)
        assert all((moved.source or "").startswith("sha512:") for moved in made)

    def test_a_diff_id_by_sha512_is_not_called_wrong(self, layout: Layout, tmp_path: Path) -> None:
        with_diff_ids(layout, [TAR], [digest_of(TAR, "sha512")])
        with pytest.raises(UnsupportedError, match="diff_id sha512:"):
            copied(LayoutSource(layout.path), LayoutSink(tmp_path / "out"), "gzip")
        assert named(Layout(tmp_path / "out")) == {}


def with_diff_ids(layout: Layout, layers: list[bytes], diff_ids: Any) -> None:
    """Write the image `v1` whose config says this of its layers."""
    with_config(layout, layers, {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": diff_ids}})


def with_config(layout: Layout, layers: list[bytes], config: Any) -> None:
    image = layout.image(list(layers))
    document = layout.read(image["digest"])
    raw = config if isinstance(config, bytes) else json.dumps(config).encode()
    document["config"] = layout.blob(raw, document["config"]["mediaType"])
    layout.document(document, name="v1")


GZ: Final = gzip.compress(TAR, mtime=0)


def damaged(origin: Store, *, digest: str, content: bytes | None) -> None:
    origin.damage(digest, content)


@places
@pytest.mark.parametrize("kind", SOURCES)
class TestRefusals:
    """What is wrong is found, and then nothing is visible; whatever the ends are."""

    def refused(
        self,
        layout: Layout,
        tmp_path: Path,
        kind: str,
        place: str,
        error: type[OcistreamError],
        match: str,
        damage: Callable[[Any], None] = lambda _: None,
    ) -> None:
        with opened(SOURCES[kind], tmp_path / "from") as origin, PLACES[place](tmp_path / "to") as to:
            origin.fill(layout)
            damage(origin)
            with pytest.raises(error, match=match):
                copied(origin.source(), to.sink, "zstd", jobs=2)
            to.sink.close()
            if place == "file":
                assert list((tmp_path / "to").iterdir()) == []
            elif place == "pipe":
                with pytest.raises(AssertionError, match="no end"):
                    to.layout()
            else:
                assert named(to.layout()) == {}
                files = [path for path in (tmp_path / "to").rglob("*") if path.is_file()]
                assert not [path for path in files if path.suffix == ".partial"]
                manifests = [p for p in files if p.parent.name == "sha256" and b'"schemaVersion"' in p.read_bytes()]
                assert manifests == []

    def test_a_wrong_diff_id(self, layout: Layout, tmp_path: Path, kind: str, place: str) -> None:
        with_diff_ids(layout, [GZ], [digest_of(b"something else")])
        self.refused(layout, tmp_path, kind, place, IntegrityError, "its image's config says")

    def test_diff_ids_in_a_wrong_order(self, layout: Layout, tmp_path: Path, kind: str, place: str) -> None:
        other = tar_layer({"b": b"c"}, compression="")
        with_diff_ids(layout, [GZ, gzip.compress(other)], [digest_of(other), digest_of(TAR)])
        self.refused(layout, tmp_path, kind, place, IntegrityError, "its image's config says")

    @pytest.mark.parametrize("config", [{}, {"rootfs": {}}, {"rootfs": {"diff_ids": ["x"]}}, b"{"])
    def test_a_config_without_diff_ids(
        self, layout: Layout, tmp_path: Path, kind: str, place: str, config: Any
    ) -> None:
        with_config(layout, [GZ], config)
        self.refused(layout, tmp_path, kind, place, ArchiveError, "diff_ids|not valid JSON|not a JSON object")

    @pytest.mark.parametrize("count", [0, 2])
    def test_another_number_of_diff_ids(
        self, layout: Layout, tmp_path: Path, kind: str, place: str, count: int
    ) -> None:
        with_diff_ids(layout, [GZ], [digest_of(TAR)] * count)
        self.refused(layout, tmp_path, kind, place, ArchiveError, f"has 1 layers, its config {count} diff_ids")

    def test_a_stream_that_is_corrupt_though_its_digest_is_right(
        self, layout: Layout, tmp_path: Path, kind: str, place: str
    ) -> None:
        image = layout.image([GZ])
        document = layout.read(image["digest"])
        document["layers"] = [layout.blob(GZ[:-1], OCI_LAYER + "+gzip")]
        layout.document(document, name="v1")
        self.refused(layout, tmp_path, kind, place, ArchiveError, "gzip stream is malformed: it ends too early")

    @pytest.mark.parametrize("place_of_byte", [0.5, 1.0])
    def test_a_flipped_byte(self, layout: Layout, tmp_path: Path, kind: str, place: str, place_of_byte: float) -> None:
        image = layout.image([GZ, (5 * MIB) // 2], name="v1")
        for layer in layout.read(image["digest"])["layers"]:
            content = bytearray(layout.file(layer["digest"]).read_bytes())
            content[int((len(content) - 1) * place_of_byte)] ^= 1
            folder = tmp_path / layer["digest"][-5:]
            folder.mkdir()
            self.refused(
                layout,
                folder,
                kind,
                place,
                IntegrityError,
                layer["digest"],
                functools.partial(damaged, digest=layer["digest"], content=bytes(content)),
            )

    def test_a_lacking_layer(self, layout: Layout, tmp_path: Path, kind: str, place: str) -> None:
        image = layout.image([GZ], name="v1")
        digest = layout.read(image["digest"])["layers"][0]["digest"]
        # Over a connection it is asked for, and not there.
        self.refused(layout, tmp_path, kind, place, OcistreamError, digest, lambda origin: origin.damage(digest, None))

    def test_more_than_the_ratio_allows(
        self, layout: Layout, tmp_path: Path, kind: str, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "FREE_EXPANSION", MIB)
        layout.image([gzip.compress(bytes(4 * MIB))], name="v1")
        self.refused(layout, tmp_path, kind, place, ArchiveError, "expands to more than 200 times")


@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_of_a_stream_that_is_corrupt_and_not_what_was_promised_the_promise_is_the_news(
    layout: Layout, tmp_path: Path, codec: str
) -> None:
    content = gzip.compress(random.Random(1).randbytes(2 * MIB), 1)
    image = layout.image([content], name="v1")
    (layer,) = layout.read(image["digest"])["layers"]
    # No block of deflate is of this kind (RFC 1951, section 3.2.3), which shows long before the digest does.
    layout.file(layer["digest"]).write_bytes(content[:10] + b"\xff" + content[11:])
    with pytest.raises(IntegrityError, match=layer["digest"]):
        copied(LayoutSource(layout.path), LayoutSink(tmp_path / "out"), codec)


class TestEarly:
    """From a pipe whose index comes last: what comes early is converted by what its first bytes look like."""

    def test_a_blob_that_looked_like_a_layer_and_was_none_is_an_error_and_nothing_is_visible(
        self, layout: Layout, tmp_path: Path
    ) -> None:
        layout.artifact(
            gzip.compress(b"a chart"), kind="application/vnd.cncf.helm.chart.content.v1.tar+gzip", name="v1"
        )
        for place, make in PLACES.items():
            with make(tmp_path / place) as to:
                with pytest.raises(UnsupportedError, match="looked like a layer") as caught:
                    copied(from_tar(tar_of(items_of(layout))), to.sink, "zstd")
                assert "from a file" in (caught.value.hint or "")
                to.sink.close()
                if place in {"layout", "registry"}:
                    assert named(to.layout()) == {}

    def test_from_a_file_or_with_the_index_first_it_stays_as_it_is(self, layout: Layout, tmp_path: Path) -> None:
        layout.artifact(gzip.compress(b"a chart"), kind="application/vnd.example.chart.tar+gzip", name="v1")
        copied(from_tar(tar_of(small_first(layout))), LayoutSink(tmp_path / "out"), "zstd")
        assert named(Layout(tmp_path / "out"))["v1"]["digest"] == named(layout)["v1"]["digest"]

    def test_a_layer_of_an_image_that_is_not_chosen_does_no_harm(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        layout.artifact(gzip.compress(b"a chart"), name="chart")
        source = ArchiveStreamSource(
            io.BytesIO(tar_of(items_of(layout))), select=lambda roots: [root for root in roots if root.name == "v1"]
        )
        copied(source, LayoutSink(tmp_path / "out"), "zstd")
        assert set(named(Layout(tmp_path / "out"))) == {"v1"}

    def test_a_layer_that_is_called_something_else_than_it_is_stays(self, layout: Layout, tmp_path: Path) -> None:
        document = layout.read(layout.image([GZ])["digest"])
        document["layers"][0]["mediaType"] = OCI_LAYER + "+zstd"
        image = layout.document(document, name="v1")
        copied(from_tar(tar_of(items_of(layout))), LayoutSink(tmp_path / "out"), "gzip")
        assert named(Layout(tmp_path / "out"))["v1"]["digest"] == image["digest"]

    def test_a_config_that_could_not_be_held_is_read_back(
        self, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small_image(layout, name="v1")
        monkeypatch.setattr(limits, "MAX_HELD_JSON", 10)
        for place in ("layout", "registry"):
            with PLACES[place](tmp_path / place) as to:
                copied(from_tar(tar_of(items_of(layout))), to.sink, "zstd")
                compare(layout, to.layout(), "zstd")
        with PLACES["file"](tmp_path / "file") as to, pytest.raises(UnsupportedError, match="too many small blobs"):
            copied(from_tar(tar_of(items_of(layout))), to.sink, "zstd")

    def test_a_config_of_any_size_is_not_read_back(self, layout: Layout, tmp_path: Path) -> None:
        image = layout.image([GZ])
        document = layout.read(image["digest"])
        document["config"] = layout.blob(b"x" * (limits.MAX_CONFIG + 1), document["config"]["mediaType"])
        layout.document(document, name="v1")

        class NoRecall(LayoutSink):
            def recall(self, descriptor: Any) -> bytes:
                raise AssertionError(descriptor)

        with pytest.raises(ArchiveError, match=f"larger than {limits.MAX_CONFIG} bytes"):
            copied(from_tar(tar_of(items_of(layout))), NoRecall(tmp_path / "out"), "zstd")

        def unread() -> Iterator[Chunk]:
            raise AssertionError

        class Unread(LayoutSource):
            def blobs(self, wanted: Any) -> Iterator[Blob]:
                yield from (Blob(blob.descriptor, unread) for blob in super().blobs(wanted))

        with pytest.raises(ArchiveError, match=f"larger than {limits.MAX_CONFIG} bytes"):
            copied(Unread(layout.path), LayoutSink(tmp_path / "other"), "zstd")

    @pytest.mark.parametrize("order", ["small first", "index last"])
    @places
    def test_a_pipe_that_is_cut_anywhere_leaves_nothing(
        self, layout: Layout, tmp_path: Path, order: str, place: str
    ) -> None:
        all_kinds(layout, name="v1")
        archive = tar_of(small_first(layout) if order == "small first" else items_of(layout))
        for number, end in enumerate(range(0, len(archive) - len(END) // 2, max(1, len(archive) // 23))):
            with PLACES[place](tmp_path / f"{number}") as to:
                with pytest.raises(ArchiveError, match="truncated"):
                    copied(from_tar(archive[:end]), to.sink, "zstd")
                to.sink.close()
                if place == "pipe":
                    with pytest.raises(AssertionError, match="no end"):
                        to.layout()
                elif place == "file":
                    assert list((tmp_path / f"{number}").iterdir()) == []
                else:
                    assert named(to.layout()) == {}


class TestRegistry:
    def sink(self, registry: Any, transport: QuickTransport) -> RegistrySink:
        def target(root: Root) -> Reference:
            return parse_reference(f"{registry.host}/{root.name}:1")

        return RegistrySink(transport, target)

    def test_a_layer_that_several_repositories_need_is_mounted_where_it_can_be(
        self, layout: Layout, faulty: Callable[..., CountingRegistry]
    ) -> None:
        image = small_image(layout)
        layout.name(image, "a", "b", "c")
        registry = faulty()
        with QuickTransport() as transport:
            report = copied(LayoutSource(layout.path), self.sink(registry, transport), "zstd", jobs=2)
        sent = [r.target.split("/")[2] for r in registry.requests if r.method == "PATCH"]
        assert sent == ["a"] * 3
        (digest,) = {root.descriptor.digest for root in report.graph.roots}
        mounts = [r.target for r in registry.requests if "mount=" in r.target]
        made = [m.descriptor.digest for m in report.blobs if m.how == "converted"]
        assert all(sum(d in target for target in mounts) == 2 for d in made)
        assert Layout(registry.layout.path).file(digest).exists()

    def test_and_sent_again_where_it_cannot_be_mounted(
        self, layout: Layout, faulty: Callable[..., CountingRegistry]
    ) -> None:
        image = layout.image([GZ])
        layout.name(image, "a", "b")
        registry = faulty(Fault(refusal(405), "POST", "mount=", times=None))
        with QuickTransport() as transport:
            copied(LayoutSource(layout.path), self.sink(registry, transport), "zstd")
        sent = sorted(r.target.split("/")[2] for r in registry.requests if r.method == "PATCH")
        assert sent == ["a", "a", "b", "b"]

    def test_an_upload_that_breaks_off_is_made_again_and_counted_once(
        self, layout: Layout, faulty: Callable[..., CountingRegistry]
    ) -> None:
        layout.image([3 * MIB], name="a")
        # The config, which comes first, is too small for it.
        registry = faulty(Fault(StopReading(MIB), "PATCH", "/v2/a/", times=2))
        watch = Watch()
        with QuickTransport() as transport:
            report = copied(LayoutSource(layout.path), self.sink(registry, transport), "none", watch=watch)
        assert watch.moved == watch.total
        assert max(itertools.accumulate(watch.advances)) == watch.total
        (layer,) = [moved for moved in report.blobs if moved.how == "converted"]
        assert len(Layout(registry.layout.path).file(layer.descriptor.digest).read_bytes()) == layer.descriptor.size

    def test_a_layer_that_is_wrong_leaves_no_upload(
        self, layout: Layout, faulty: Callable[..., CountingRegistry]
    ) -> None:
        image = layout.image([3 * MIB], name="a")
        (layer,) = layout.read(image["digest"])["layers"]
        content = bytearray(layout.file(layer["digest"]).read_bytes())
        content[-1] ^= 1
        layout.file(layer["digest"]).write_bytes(content)
        registry = faulty()
        with QuickTransport() as transport, pytest.raises(IntegrityError, match=layer["digest"]):
            copied(LayoutSource(layout.path), self.sink(registry, transport), "none")
        assert "DELETE" in {request.method for request in registry.requests}
        left = [path.name for path in (registry.layout.path / "blobs").glob("*/*")]
        assert [name for name in left if len(name) != 64] == []

    def test_a_digest_that_was_asked_for_is_that_of_the_result(
        self, layout: Layout, faulty: Callable[..., CountingRegistry]
    ) -> None:
        image = layout.image([GZ], name="a")
        registry = faulty()
        with QuickTransport() as transport:
            reference = parse_reference(f"{registry.host}/app:1@{image['digest']}")
            with pytest.raises(IntegrityError, match="was asked for"):
                copied(LayoutSource(layout.path), RegistrySink(transport, lambda _: reference), "zstd")
            assert "PUT" not in {r.method for r in registry.requests if "/manifests/" in r.target}
            done = copied(LayoutSource(layout.path), self.sink(registry, transport), "zstd")
            right = parse_reference(f"{registry.host}/app:1@{done.graph.roots[0].descriptor.digest}")
            copied(LayoutSource(layout.path), RegistrySink(transport, lambda _: right), "zstd")
            with pytest.raises(NotFoundError):
                copied(LayoutSource(layout.path / "nowhere"), RegistrySink(transport, lambda _: right), "zstd")


class TestSinks:
    def test_one_that_takes_no_unnamed_blobs_is_refused_before_anything_is_put(self, layout: Layout) -> None:
        small_image(layout, name="v1")

        class Plain:
            parallel = False

            def has(self, _: object) -> bool:
                return False

            has_manifest = has

            def begin(self, _: object) -> None:
                raise AssertionError

            put = commit = begin

            def close(self) -> None: ...

        with pytest.raises(UnsupportedError, match="compressed anew"):
            copied(LayoutSource(layout.path), Plain(), "zstd")

    def test_configs_that_are_there_still_check_layers(self, layout: Layout, tmp_path: Path) -> None:
        with_diff_ids(layout, [GZ], [digest_of(b"something else")])
        transfer.copy(LayoutSource(layout.path), LayoutSink(tmp_path / "out"), Watch())
        before = named(Layout(tmp_path / "out"))
        with pytest.raises(IntegrityError, match="its image's config says"):
            copied(LayoutSource(layout.path), LayoutSink(tmp_path / "out"), "zstd")
        assert named(Layout(tmp_path / "out")) == before

    def test_a_config_that_only_the_destination_has_checks_layers_too(self, layout: Layout, tmp_path: Path) -> None:
        image = layout.image([GZ], name="v1")
        transfer.copy(LayoutSource(layout.path), LayoutSink(tmp_path / "out"), Watch())
        layout.file(layout.read(image["digest"])["config"]["digest"]).unlink()
        report = copied(LayoutSource(layout.path), LayoutSink(tmp_path / "out"), "zstd")
        assert sorted(moved.how for moved in report.blobs) == ["converted", "skipped"]

    def test_an_index_of_which_the_destination_has_the_rest_can_be_converted(
        self, layout: Layout, tmp_path: Path
    ) -> None:
        index = two_platforms(layout, name="v1")
        transfer.copy(LayoutSource(layout.path), LayoutSink(tmp_path / "out"), Watch())
        other = layout.read(index["digest"])["manifests"][1]
        layout.file(other["digest"]).unlink()
        copied(LayoutSource(layout.path), LayoutSink(tmp_path / "out"), "zstd")
        after = only_image(Layout(tmp_path / "out"))["manifests"]
        assert after[1]["digest"] == other["digest"]
        assert after[0]["digest"] != layout.read(index["digest"])["manifests"][0]["digest"]

    def test_a_second_run_gives_the_same_and_replaces_nothing_else(self, layout: Layout, tmp_path: Path) -> None:
        all_kinds(layout, name="v1")
        reports = [copied(LayoutSource(layout.path), LayoutSink(tmp_path / "out"), "zstd", jobs=4) for _ in range(2)]
        assert reports[0].graph.roots == reports[1].graph.roots
        assert stray_blobs(Layout(tmp_path / "out")) == set()


def test_a_level_makes_a_difference(layout: Layout, tmp_path: Path) -> None:
    layout.image([tar_layer({"a": bytes(range(256)) * 5000 + b"words and words " * 9000}, compression="")], name="v1")
    sizes = []
    for text in ("gzip:1", "gzip:9"):
        copied(LayoutSource(layout.path), LayoutSink(tmp_path / text), text)
        (layer,) = only_image(Layout(tmp_path / text))["layers"]
        sizes.append(layer["size"])
    assert sizes[0] > sizes[1]


def test_what_is_written_is_what_zlib_and_zstd_write(layout: Layout, tmp_path: Path) -> None:
    layout.image([TAR], name="v1")
    for codec in ("gzip", "zstd"):
        copied(LayoutSource(layout.path), LayoutSink(tmp_path / codec), codec)
        after = Layout(tmp_path / codec)
        raw = after.file(only_image(after)["layers"][0]["digest"]).read_bytes()
        if codec == "gzip":
            assert zlib.decompress(raw, 31) == TAR
        else:
            assert zstandard.get_frame_parameters(raw).has_checksum


def test_blobs_of_an_archive_lie_under_their_own_names(layout: Layout, tmp_path: Path) -> None:
    layout.image([GZ], name="v1")
    with into_file(tmp_path / "to") as to:
        report = copied(LayoutSource(layout.path), to.sink, "zstd")
    files = list(files_in((tmp_path / "to" / "out.tar").read_bytes()))
    config, layer = (blob.digest for blob in report.graph.blobs)
    root = report.graph.roots[0].descriptor.digest
    # The layers are not known before they have passed.
    expected = ["oci-layout", blob_name(config), blob_name(layer), "index.json", "manifest.json", blob_name(root)]
    assert files == expected
