"""docker-archives in: whoever wrote one, in whatever order, from a file and from a pipe it becomes the same images."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ocistream import limits
from ocistream.archive.decompression import decompress_input
from ocistream.archive.docker_archive import parse_manifest_json
from ocistream.archive.file_source import ArchiveFileSource
from ocistream.archive.stream_source import ArchiveStreamSource
from ocistream.errors import (
    ArchiveError,
    IntegrityError,
    NotFoundError,
    OcistreamError,
    TruncatedError,
    UnsupportedError,
    UsageError,
)
from ocistream.layout.index import (
    ImageSelector,
    NoSuchImageError,
    select_every_image,
    select_named_images,
    select_only_image,
)
from ocistream.oci.descriptor import Descriptor, parse_platform
from ocistream.oci.graph import Graph
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.streams.chunks import Chunk
from ocistream.streams.compression import CODECS
from ocistream.streams.layer_media_types import is_probably_json
from ocistream.transfer import copy as transfer
from ocistream.transfer.interfaces import NewBlob, Source, Traits, VerifiedBlob
from ocistream.transfer.recompress import Recompression
from ocistream.transfer.report import MissingBlobsError
from tests import schemas
from tests.archives import BLOCK, END, items_of, member, pax_header, small_first, tar_of, with_checksum
from tests.contract.test_pipes import Pipe
from tests.docker_archives import (
    DIALECTS,
    Entry,
    Link,
    Saved,
    archive_of,
    hex_of,
    of_bazel,
    of_crane,
    of_docker,
    of_podman,
    packed,
    plain,
    plain_manifest,
    saved,
)
from tests.images import Layout, digest_of, small_image, tar_layer
from tests.observers import Watch

GZIP, NONE = (Recompression(CODECS[name], CODECS[name].default_level) for name in ("gzip", "none"))
both = pytest.mark.parametrize("how", ["file", "pipe"])


class Shelf:
    """A sink in memory: quick enough for many examples."""

    traits = Traits()

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.unnamed: list[str] = []
        self.recalled: list[str] = []
        self.graph: Graph | None = None

    def expect(self, graph: Graph) -> Graph:
        return graph

    def begin(self, graph: Graph) -> None:
        """Nothing has to be known."""

    def stored(
        self,
        blobs: Sequence[Descriptor],
        *,
        are_manifests: bool = False,  # noqa: ARG002 - they are held alike
        partial: bool = False,  # noqa: ARG002 - nothing is held in part
    ) -> dict[str, int]:
        return {blob.digest: blob.size for blob in blobs if blob.digest in self.blobs}

    def write(self, blob: VerifiedBlob) -> int:
        assert blob.range is None
        self.blobs[blob.descriptor.digest] = b"".join(map(bytes, blob.open()))
        return 0

    def write_new(self, blob: NewBlob) -> Descriptor:
        content = b"".join(map(bytes, blob.open()))
        descriptor = blob.descriptor()
        assert (digest_of(content), len(content)) == (descriptor.digest, descriptor.size)
        self.unnamed.append(descriptor.digest)
        self.blobs[descriptor.digest] = content
        return descriptor

    def read(self, descriptor: Descriptor) -> Iterator[Chunk]:
        self.recalled.append(descriptor.digest)
        assert len(self.blobs[descriptor.digest]) == descriptor.size
        return iter([self.blobs[descriptor.digest]])

    def commit(self, graph: Graph) -> None:
        self.graph = graph

    def discard(self) -> None:
        """Nothing is held in part."""

    def close(self) -> None:
        """Nothing is held."""


@dataclasses.dataclass
class Pushed:
    """What became of an archive: its graph as it was written, and everything that was put."""

    graph: Graph
    shelf: Shelf

    @property
    def names(self) -> dict[str | None, str]:
        return {root.name: root.descriptor.digest for root in self.graph.roots}

    def documents(self) -> list[dict[str, Any]]:
        raw = {manifest.descriptor.digest: manifest.raw for manifest in self.graph.manifests}
        return [json.loads(raw[root.descriptor.digest]) for root in self.graph.roots]


def source_of(
    archive: bytes,
    how: str,
    folder: Path,
    *,
    sizes: Sequence[int] = (1 << 16,),
    select: ImageSelector = select_every_image,
    platforms: PlatformChoice = ALL_PLATFORMS,
) -> Source:
    """Open an archive as what it is, or as a pipe that gives so many bytes a read."""
    if how == "file":
        (folder / "archive.tar").write_bytes(archive)
        return ArchiveFileSource(folder / "archive.tar", select=select, platforms=platforms)
    file = decompress_input(io.BufferedReader(Pipe(archive, sizes), 64), "the archive on stdin", limits.MAX_RATIO)
    return ArchiveStreamSource(file, select=select, platforms=platforms)


def pushed(
    archive: bytes | Sequence[Entry],
    how: str,
    folder: Path,
    *,
    want: Recompression | None = None,
    shelf: Shelf | None = None,
    **options: Any,
) -> Pushed:
    """Move an archive as `push` does: layers that are bare become gzip, unless something else is wanted."""
    archive = archive if isinstance(archive, bytes) else archive_of(archive)
    shelf = shelf or Shelf()
    source = source_of(archive, how, folder, **options)
    try:
        report = transfer.copy(source, shelf, Watch(), recompression=want, plain_layers=GZIP)
    finally:
        source.close()
    assert shelf.graph is report.graph
    return Pushed(report.graph, shelf)


def refused(
    archive: bytes | Sequence[Entry], how: str, folder: Path, error: type[OcistreamError], words: str, **options: Any
) -> OcistreamError:
    """Assert that an archive is refused, and that nothing of it became visible, nor was read into memory in vain."""
    shelf = Shelf()
    with pytest.raises(error, match=words) as caught:
        pushed(archive, how, folder, shelf=shelf, **options)
    assert shelf.graph is None
    assert all(is_probably_json(shelf.blobs[digest]) for digest in shelf.recalled)
    assert all(len(shelf.blobs[digest]) <= limits.MAX_CONFIG for digest in shelf.recalled)
    assert type(caught.value) is error
    return caught.value


@functools.cache
def made(folder: Path) -> list[Saved]:
    """Make the images of the property tests: shared and repeated layers, an empty one, several names and none."""
    layout = Layout(folder)
    shared = tar_layer({"etc/motd": b"shared\n"})
    first = layout.image([shared, tar_layer({"a": b"first " * 500}), shared])
    second = layout.image([shared, gzip.compress(END), tar_layer({"{{name}}/b": b"second"})], platform="linux/arm64/v8")
    third = layout.image([], config={"Cmd": ["nothing"]})
    return [
        saved(layout, first, "app:1", "registry.example:5000/team/app:2"),
        saved(layout, second, "docker.io/library/other:latest"),
        saved(layout, third),
    ]


@pytest.fixture
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Saved]:
    return made(tmp_path_factory.getbasetemp() / "docker-images")


@pytest.fixture
def one(images: list[Saved]) -> Saved:
    """Return an image of three layers, of which two are the same."""
    return images[0]


def without(entries: Sequence[Entry], *names: str) -> list[Entry]:
    kept = [entry for entry in entries if entry[0] not in names]
    assert len(kept) == len(entries) - len(names)
    return kept


def renamed_images(entries: Sequence[Entry], change: Callable[[list[dict[str, Any]]], Any]) -> list[Entry]:
    """Write another `manifest.json`: `change` gets what it lists, and gives what it is to list."""
    return [
        (name, json.dumps(change(json.loads(content))).encode())
        if name == "manifest.json" and isinstance(content, bytes)
        else (name, content)
        for name, content in entries
    ]


NAMES = {
    "docker.io/library/app:1": 0,
    "registry.example:5000/team/app:2": 0,
    "docker.io/library/other:latest": 1,
    None: 2,
}


class TestDialects:
    @both
    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_plain_layers_give_the_manifest_that_the_image_has(
        self, images: list[Saved], dialect: str, how: str, tmp_path: Path
    ) -> None:
        found = pushed(DIALECTS[dialect](images), how, tmp_path, want=NONE)
        expected = [plain_manifest(images[place]) for place in NAMES.values()]
        assert found.documents() == expected
        assert list(found.names) == list(NAMES)
        assert {digest_of(image.config) for image in images} <= found.shelf.blobs.keys()

    @both
    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_layers_become_gzip_and_stay_what_they_are(
        self, images: list[Saved], dialect: str, how: str, tmp_path: Path
    ) -> None:
        found = pushed(DIALECTS[dialect](images), how, tmp_path)
        for document, place in zip(found.documents(), NAMES.values(), strict=True):
            if document["layers"]:
                # The schema wants at least one; Docker's images of nothing have none.
                schemas.validate(document, "manifest")
            assert found.shelf.blobs[document["config"]["digest"]] == images[place].config
            contents = [found.shelf.blobs[layer["digest"]] for layer in document["layers"]]
            assert tuple(map(plain, contents)) == images[place].layers
            assert [len(content) for content in contents] == [layer["size"] for layer in document["layers"]]
            for layer, content in zip(document["layers"], contents, strict=True):
                compressed = content.startswith(b"\x1f\x8b")
                assert layer["mediaType"].endswith("+gzip") == compressed
                # What has a digest in its name is called by it, and stays what it is.
                assert compressed == (dialect != "stripped-oci")

    @pytest.mark.parametrize("dialect", ["crane", "bazel"])
    def test_layers_that_are_gzip_already_are_not_touched(self, one: Saved, dialect: str, tmp_path: Path) -> None:
        entries = DIALECTS[dialect]([one])
        for how in ("file", "pipe"):
            found = pushed(entries, how, tmp_path)
            (document,) = {json.dumps(document): document for document in found.documents()}.values()
            assert {layer["digest"] for layer in document["layers"]} == {
                digest_of(content) for name, content in entries if isinstance(content, bytes) and name.endswith(".gz")
            }

    @both
    def test_names_that_are_too_long_for_one_header(self, one: Saved, how: str, tmp_path: Path) -> None:
        longer = f"{'a/' * 100}layer.tar"
        entries = [*of_podman([one]), (longer, Link("../" * 100 + f"{hex_of(one.layers[1])}.tar"))]

        def change(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
            listed[0]["Layers"][1] = longer
            return listed

        for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            archive = archive_of(renamed_images(entries, change), kind=kind)
            assert pushed(archive, how, tmp_path, want=NONE).documents()[0] == plain_manifest(one)

    @both
    def test_what_newer_dockers_and_buildx_write_is_read_as_oci(self, layout: Layout, how: str, tmp_path: Path) -> None:
        image = small_image(layout, name="v1")
        document = layout.read(image["digest"])
        content = [
            {
                "Config": "blobs/" + document["config"]["digest"].replace(":", "/"),
                "RepoTags": ["app:1"],
                "Layers": ["blobs/" + layer["digest"].replace(":", "/") for layer in document["layers"]],
            }
        ]
        for items in (items_of(layout), small_first(layout)):
            for place in (0, len(items)):
                archive = tar_of([*items[:place], ("manifest.json", json.dumps(content).encode()), *items[place:]])
                assert pushed(archive, how, tmp_path).names == {"v1": image["digest"]}

    @both
    def test_and_so_it_is_where_a_manifest_is_lacking(self, layout: Layout, how: str, tmp_path: Path) -> None:
        # Registries may have what such an archive lacks; a manifest.json beside it is no way around.
        lost = small_image(layout, name="v1")
        layout.file(lost["digest"]).unlink()
        archive = tar_of([("manifest.json", b"[]"), *items_of(layout)])
        refused(archive, how, tmp_path, MissingBlobsError, lost["digest"])

    @both
    @pytest.mark.parametrize("stray", ["aaa.tar", "aaa.json", "blobs/aaa.tar"])
    def test_a_stray_file_changes_nothing_of_an_oci_archive(
        self, layout: Layout, how: str, stray: str, tmp_path: Path
    ) -> None:
        # Were it taken for a docker-archive, plain layers and those of zstd would become gzip.
        layers = [tar_layer({"a": b"b"}, compression=""), tar_layer({"c": b"d"}, compression="zstd")]
        image = layout.image(layers, name="v1")
        content = b"{}" if stray.endswith("json") else tar_layer({"e": b"f"}, compression="")
        found = pushed(tar_of([(stray, content), *items_of(layout)]), how, tmp_path)
        assert found.names == {"v1": image["digest"]}

    def test_what_only_docker_of_long_ago_reads_is_not_held(self, one: Saved, tmp_path: Path) -> None:
        shelf = pushed(of_docker([one]), "pipe", tmp_path).shelf
        assert len(shelf.blobs) == 3
        assert len(shelf.unnamed) == 2


class TestLayers:
    @both
    @pytest.mark.parametrize(
        "layer",
        [
            b"",
            END,
            bytes(10240),
            tar_layer({"{": b"begins as JSON does"}, compression=""),
            tar_layer({" {": b"so does this"}, compression=""),
            with_checksum(tar_layer({"v7": b"knows no magic"}, compression="")[:257] + bytes(255)) + END,
            b"no tar at all",
        ],
        ids=["nothing", "empty", "empty-with-blocks", "brace", "space", "v7", "text"],
    )
    @pytest.mark.parametrize("want", [None, NONE], ids=["gzip", "none"])
    def test_unusual_ones_give_the_same_from_a_file_and_from_a_pipe(
        self, layout: Layout, layer: bytes, how: str, want: Recompression | None, tmp_path: Path
    ) -> None:
        image = saved(layout, layout.image([layer, tar_layer({"a": b"b"})]))
        (document,) = pushed(of_docker([image]), how, tmp_path, want=want).documents()
        kinds = {item["mediaType"] for item in document["layers"]}
        if want is NONE:
            assert document == plain_manifest(image)
        assert kinds == {f"application/vnd.oci.image.layer.v1.tar{'' if want is NONE else '+gzip'}"}

    def test_one_that_is_called_by_its_sha512_is_called_so_in_the_manifest(self, one: Saved, tmp_path: Path) -> None:
        layer = packed(one.layers[1])
        name = "blobs/" + digest_of(layer, "sha512").replace(":", "/")
        entries = [(name if content == layer else other, content) for other, content in of_bazel([one])]

        def change(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
            listed[0]["Layers"][1] = name
            return listed

        for how in ("file", "pipe"):
            (document, _) = pushed(renamed_images(entries, change), how, tmp_path).documents()
            assert document["layers"][1]["digest"] == digest_of(layer, "sha512")

    @both
    def test_zstd_ones_become_gzip_too(self, one: Saved, how: str, tmp_path: Path) -> None:
        layer = zstandard.compress(one.layers[1])
        entries = [(name, layer if content == one.layers[1] else content) for name, content in of_docker([one])]
        found = pushed(entries, how, tmp_path)
        assert plain(found.shelf.blobs[found.documents()[0]["layers"][1]["digest"]]) == one.layers[1]
        assert found.names == pushed(of_docker([one]), "file", tmp_path).names

    def test_layers_that_several_images_share_are_put_once(self, images: list[Saved], tmp_path: Path) -> None:
        for how in ("file", "pipe"):
            shelf = pushed(of_docker(images), how, tmp_path).shelf
            assert len(shelf.unnamed) == len(set(shelf.unnamed)) == len({lay for im in images for lay in im.layers})

    @both
    def test_two_copies_of_one_layer_are_one(self, one: Saved, how: str, tmp_path: Path) -> None:
        # As where links cannot be had.
        entries = [(n, one.layers[2] if isinstance(c, Link) else c) for n, c in of_docker([one])]
        assert sum(content == one.layers[0] for _, content in entries) == 2
        assert pushed(entries, how, tmp_path).names == pushed(of_docker([one]), "file", tmp_path).names

    @both
    @pytest.mark.parametrize("place", [0, 1])
    def test_and_each_of_them_is_checked(self, one: Saved, how: str, place: int, tmp_path: Path) -> None:
        entries = [(n, one.layers[2] if isinstance(c, Link) else c) for n, c in of_docker([one])]
        copies = [number for number, (_, content) in enumerate(entries) if content == one.layers[0]]
        wrong = bytearray(one.layers[0])
        wrong[600] ^= 1
        entries[copies[place]] = (entries[copies[place]][0], bytes(wrong))
        refused(entries, how, tmp_path, IntegrityError, digest_of(one.layers[0]))
        refused(entries, how, tmp_path, IntegrityError, digest_of(one.layers[0]), want=NONE)


class TestChoosing:
    @both
    @pytest.mark.parametrize("name", ["app:1", "docker.io/library/app:1", "registry.example:5000/team/app:2"])
    def test_by_name(self, images: list[Saved], how: str, name: str, tmp_path: Path) -> None:
        found = pushed(of_docker(images), how, tmp_path, want=NONE, select=select_named_images([name]))
        assert found.documents() == [plain_manifest(images[0])]

    @both
    def test_by_digest(self, images: list[Saved], how: str, tmp_path: Path) -> None:
        names = pushed(of_crane(images), how, tmp_path).names
        found = pushed(of_crane(images), how, tmp_path, select=select_named_images([names[None]]))
        assert found.names == {None: names[None]}

    @both
    def test_a_name_that_is_not_there(self, images: list[Saved], how: str, tmp_path: Path) -> None:
        error = refused(
            of_docker(images), how, tmp_path, NoSuchImageError, "nowhere", select=select_named_images(["nowhere:1"])
        )
        unnamed = digest_of(json.dumps(plain_manifest(images[2]), separators=(",", ":")).encode())
        assert error.hint is not None
        assert "docker.io/library/app:1, registry.example:5000/team/app:2, " in error.hint
        assert unnamed in error.hint

    @both
    def test_there_has_to_be_one_where_one_is_wanted(self, images: list[Saved], how: str, tmp_path: Path) -> None:
        refused(of_docker(images), how, tmp_path, UsageError, "3 images", select=select_only_image)
        refused(of_docker([]), how, tmp_path, NotFoundError, "no image", select=select_only_image)

    @both
    def test_the_same_image_listed_twice_is_one(self, one: Saved, how: str, tmp_path: Path) -> None:
        twice = renamed_images(
            of_docker([one]), lambda listed: [listed[0], {**listed[0], "Config": f"./{listed[0]['Config']}"}]
        )
        assert len(pushed(twice, how, tmp_path, select=select_only_image).graph.roots) == 1
        other = f"{hex_of(one.config)}.copy"
        copied = [*of_docker([one]), (other, one.config)]
        twice = renamed_images(copied, lambda listed: [listed[0], {**listed[0], "Config": other}])
        assert len(pushed(twice, how, tmp_path, select=select_only_image).graph.roots) == 1

    @both
    def test_nothing_of_the_others_is_looked_at(self, images: list[Saved], how: str, tmp_path: Path) -> None:
        broken = f"{hex_of(images[1].config)}.json"
        entries = without(of_docker(images), broken)
        choice = select_named_images(["app:1"])
        assert pushed(entries, how, tmp_path, want=NONE, select=choice).documents() == [plain_manifest(images[0])]
        refused(entries, how, tmp_path, ArchiveError, broken, select=select_named_images(["other"]))

    @both
    def test_platforms_are_those_of_the_configs(self, images: list[Saved], how: str, tmp_path: Path) -> None:
        arm = PlatformChoice((parse_platform("linux/arm64"),))
        entries = of_docker(images[:2])
        found = pushed(entries, how, tmp_path, want=NONE, select=select_named_images(["other"]), platforms=arm)
        assert found.documents() == [plain_manifest(images[1])]
        either = PlatformChoice((*arm.platforms, parse_platform("linux/amd64")))
        found = pushed(entries, how, tmp_path, want=NONE, platforms=either)
        assert found.documents() == [plain_manifest(image) for image in (images[0], images[0], images[1])]
        error = refused(
            entries, how, tmp_path, NotFoundError, "arm64", select=select_named_images(["app:1"]), platforms=arm
        )
        assert error.hint == "it is a single image, for linux/amd64"

    @both
    def test_tags_that_are_no_names_are_kept_as_they_are(self, one: Saved, how: str, tmp_path: Path) -> None:
        image = dataclasses.replace(one, tags=("", "Not A Name", "<none>:<none>", "a", "a"))
        names = [root.name for root in pushed(of_docker([image]), how, tmp_path).graph.roots]
        assert names == ["Not A Name", "<none>:<none>", "docker.io/library/a:latest"]


class TestHostile:
    @both
    @pytest.mark.parametrize(
        ("links", "words"),
        [
            ({"x": Link("x")}, "'x' in the archive is a link to a link"),
            ({"x": Link("y"), "y": Link("x")}, "'y' in the archive is a link to a link"),
            ({"x": Link("y"), "y": Link("z"), "z": b"content"}, "'y' in the archive is a link to a link"),
            ({"x": Link("nowhere")}, "lacks nowhere"),
            ({"x": Link("../../../../etc/passwd")}, "lacks ../../../../etc/passwd"),
            ({"x": Link("/etc/passwd")}, "lacks /etc/passwd"),
            ({"x": Link("/etc/passwd", hard=True)}, "lacks /etc/passwd"),
            ({"x": Link("folder"), "folder/": None}, "lacks folder"),
            ({"x": Link("")}, "lacks ."),
            ({}, "lacks x"),
            ({"x": Link("manifest.json")}, "lacks manifest.json"),
        ],
        ids=lambda value: str(sorted(value)) if isinstance(value, dict) else None,
    )
    @pytest.mark.parametrize("field", ["Config", "Layers"])
    def test_links_that_lead_nowhere(
        self, one: Saved, how: str, links: dict[str, Any], words: str, field: str, tmp_path: Path
    ) -> None:
        def change(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [{**listed[0], field: "x" if field == "Config" else ["x", *listed[0]["Layers"][1:]]}]

        entries = renamed_images([*links.items(), *of_docker([one])], change)
        refused(entries, how, tmp_path, ArchiveError, words)

    @both
    def test_a_link_to_a_file_of_this_machine_does_not_lead_there(self, one: Saved, how: str, tmp_path: Path) -> None:
        (tmp_path / "layer.tar").write_bytes(one.layers[1])
        entries = [
            (name, Link(str(tmp_path / "layer.tar")) if content == one.layers[1] else content)
            for name, content in of_docker([one])
        ]
        refused(entries, how, tmp_path, ArchiveError, "lacks")

    @both
    def test_a_name_that_stands_twice_matters_only_if_it_is_meant(self, one: Saved, how: str, tmp_path: Path) -> None:
        entries = of_podman([one])
        layer, link = f"{hex_of(one.layers[0])}.tar", next(n for n, c in entries if isinstance(c, Link))
        stray: list[Entry] = [("stray", b"1"), ("stray", b"2"), (link, Link("elsewhere"))]
        assert pushed([*stray, *entries], how, tmp_path).names == pushed(entries, how, tmp_path).names
        refused(
            [*entries, (layer, one.layers[0])],
            how,
            tmp_path,
            ArchiveError,
            r"the archive has '.*' twice \(some tools treat",
        )
        refused(
            [("./" + layer, b"first"), *entries],
            how,
            tmp_path,
            ArchiveError,
            r"the archive has '.*' twice \(some tools treat",
        )
        config = f"{hex_of(one.config)}.json"
        refused(
            [*entries, (config, b"{}")], how, tmp_path, ArchiveError, r"the archive has '.*' twice \(some tools treat"
        )
        meant = DIALECTS["podman-links"]([one])
        refused([*stray, *meant], how, tmp_path, ArchiveError, r"the archive has '.*' twice \(some tools treat")

    @both
    def test_a_config_that_is_a_layer_and_a_layer_that_is_a_config(self, one: Saved, how: str, tmp_path: Path) -> None:
        for dialect in (of_docker, of_crane, of_bazel, DIALECTS["stripped-oci"]):
            entries = dialect([one])
            config_for_layer = renamed_images(
                entries, lambda listed: [{**listed[0], "Layers": [listed[0]["Config"], *listed[0]["Layers"][1:]]}]
            )
            refused(config_for_layer, how, tmp_path, ArchiveError, "is not a layer")
            layer_for_config = renamed_images(entries, lambda listed: [{**listed[0], "Config": listed[0]["Layers"][0]}])
            refused(layer_for_config, how, tmp_path, ArchiveError, "not valid JSON|is not a config")

    @both
    def test_a_layer_as_large_as_any_is_not_read_as_a_config(self, one: Saved, how: str, tmp_path: Path) -> None:
        large = dataclasses.replace(one, layers=(bytes(limits.MAX_CONFIG + 1), *one.layers[1:]))
        for dialect in (of_docker, DIALECTS["stripped-oci"]):
            entries = renamed_images(dialect([large]), lambda listed: [{**listed[0], "Config": listed[0]["Layers"][0]}])
            refused(entries, how, tmp_path, ArchiveError, "larger than 8388608|is not a config")

    @both
    @pytest.mark.parametrize("change", [1, -1])
    def test_as_many_diff_ids_as_layers(self, one: Saved, how: str, change: int, tmp_path: Path) -> None:
        entries = renamed_images(
            of_docker([one]), lambda listed: [{**listed[0], "Layers": (listed[0]["Layers"] * 2)[: 3 + change]}]
        )
        refused(entries, how, tmp_path, ArchiveError, f"lists 3 layers, manifest.json {3 + change}")

    @both
    @pytest.mark.parametrize("want", [None, NONE], ids=["gzip", "none"])
    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_another_layer_than_the_config_promises(
        self, one: Saved, how: str, want: Recompression | None, dialect: str, tmp_path: Path
    ) -> None:
        other = dataclasses.replace(one, layers=(one.layers[0], tar_layer({"x": b"y"}, compression=""), one.layers[2]))
        if want is None and dialect in {"crane", "bazel"}:
            # What stays compressed as it is, is not unpacked to see what is in it: no more than in any OCI archive.
            assert pushed(DIALECTS[dialect]([other]), how, tmp_path).names
        else:
            refused(DIALECTS[dialect]([other]), how, tmp_path, IntegrityError, one.diff_ids[1], want=want)

    @both
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{}",
            b"null",
            b"[",
            b"[]]",
            b"[]}",
            b'[],"more":[]',
            b'[]}{"images":[]',
            b"[[]]",
            b"[null]",
            b'["app"]',
            b"[{}]",
            b'[{"Config":1}]',
            b'[{"Config":""}]',
            b'[{"Config":null,"Layers":[]}]',
            b'[{"Config":"x","Layers":"x"}]',
            b'[{"Config":"x","Layers":0}]',
            b'[{"Config":"x","Layers":{}}]',
            b'[{"Config":"x","Layers":[1]}]',
            b'[{"Config":"x","RepoTags":"x"}]',
            b'[{"Config":"x","RepoTags":false}]',
            b'[{"Config":"x","RepoTags":[null]}]',
            b'[{"Config":"x","Config":"y"}]',
            b'[{"Config":"x","config":"y"}]',
            b'[{"Config":"x","layer\xc5\xbf":[]}]',
            b'[{"Config":"x","Size":NaN}]',
            b'[{"Config":"\\ud800"}]',
            b'[{"Config":"x","Parent":' + b"[" * 100 + b"]" * 100 + b"}]",
            b"[" * 100_000,
            b"\xff\xfe[]",
            b'[{"Config":"x","Layers":[' + b'"a",' * 10_000 + b'"a"]}]',
        ],
        ids=lambda content: str(content[:30]),
    )
    def test_a_manifest_json_that_is_none(self, one: Saved, how: str, content: bytes, tmp_path: Path) -> None:
        entries: list[Entry] = [*without(of_docker([one]), "manifest.json"), ("manifest.json", content)]
        refused(entries, how, tmp_path, ArchiveError, r"\Amanifest\.json")

    def test_more_images_than_are_moved_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "MAX_IMAGES", 3)
        assert len(parse_manifest_json(b'[{"Config":"x"},{"Config":"x"},{"Config":"x"}]')) == 3
        with pytest.raises(UnsupportedError, match="more than 3 images"):
            parse_manifest_json(b'[{"Config":"x"},{"Config":"x"},{"Config":"x"},{"Config":"x"}]')

    @both
    def test_a_manifest_json_that_is_too_large(self, one: Saved, how: str, tmp_path: Path) -> None:
        large = renamed_images(of_docker([one]), lambda listed: [{**listed[0], "Comment": "x" * limits.MAX_MANIFEST}])
        refused(large, how, tmp_path, ArchiveError, "larger than 4194304")

    @both
    def test_a_second_manifest_json(self, one: Saved, how: str, tmp_path: Path) -> None:
        refused(
            [*of_docker([one]), ("./manifest.json", b"[]")],
            how,
            tmp_path,
            ArchiveError,
            "the archive has manifest.json twice",
        )

    @both
    @pytest.mark.parametrize(
        "rootfs", [None, {}, [], {"diff_ids": {}}, {"diff_ids": [1]}, {"diff_ids": ["sha256:x"]}, {"diff_ids": [""]}]
    )
    def test_a_config_without_diff_ids(self, one: Saved, how: str, rootfs: Any, tmp_path: Path) -> None:
        image = dataclasses.replace(one, config=json.dumps({**json.loads(one.config), "rootfs": rootfs}).encode())
        entries = [(name, image.config if content == one.config else content) for name, content in of_docker([one])]
        if rootfs == {}:
            refused(entries, how, tmp_path, ArchiveError, "lists 0 layers")
        else:
            refused(entries, how, tmp_path, ArchiveError, "has no list of diff_ids")

    @both
    def test_a_config_that_is_too_large(self, one: Saved, how: str, tmp_path: Path) -> None:
        large = json.dumps({**json.loads(one.config), "x": ["y" * limits.MIB] * 8}).encode()
        entries = [(n, large if c == one.config else c) for n, c in of_docker([one])]
        refused(entries, how, tmp_path, ArchiveError, "larger than 8388608")

    @both
    def test_bytes_that_are_not_those_of_the_digest_in_their_name(self, one: Saved, how: str, tmp_path: Path) -> None:
        entries = [
            (name, content + b" " if name.startswith("blobs/") and content == one.config else content)
            for name, content in of_bazel([one])
            if isinstance(content, bytes)
        ]
        refused(entries, how, tmp_path, IntegrityError, digest_of(one.config))

    @both
    @pytest.mark.parametrize("cut", [100, BLOCK, 700, -1500, -1024, -512, -1])
    def test_an_archive_that_ends_too_early(self, one: Saved, how: str, cut: int, tmp_path: Path) -> None:
        refused(archive_of(of_docker([one]))[:cut], how, tmp_path, TruncatedError, "truncated")

    @both
    def test_a_size_that_nobody_has(self, one: Saved, how: str, tmp_path: Path) -> None:
        huge = tarfile.TarInfo("x.tar")
        huge.size = 1 << 33
        claim = huge.tobuf(tarfile.GNU_FORMAT) + END
        whole = archive_of(of_docker([one]), end=b"")
        refused(whole + claim, how, tmp_path, TruncatedError, "truncated")
        refused(claim + whole, how, tmp_path, TruncatedError, "truncated")

    @both
    def test_sparse_files(self, one: Saved, how: str, tmp_path: Path) -> None:
        whole = archive_of(of_docker([one]))
        for sparse in (
            member("x.tar", tarfile.GNUTYPE_SPARSE, size=512) + bytes(512),
            pax_header(b"22 GNU.sparse.major=1\n") + member("x.tar", tarfile.REGTYPE, size=512) + bytes(512),
        ):
            refused(sparse + whole, how, tmp_path, ArchiveError, "sparse")

    @both
    def test_more_names_than_are_kept(
        self, one: Saved, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entries = of_docker([one])
        monkeypatch.setattr(limits, "MAX_NAME_BYTES", 2000)
        strangers: list[Entry] = [(f"{number:0100}", b"") for number in range(20)]
        assert pushed([*entries, *strangers], how, tmp_path).names
        refused([*strangers, *entries], how, tmp_path, ArchiveError, "2000 bytes of names")
        monkeypatch.undo()
        monkeypatch.setattr(limits, "MAX_BLOBS", 10)
        refused([*strangers, *entries], how, tmp_path, ArchiveError, "more than 10 other entries")

    def test_names_that_nobody_means_cost_nothing(
        self, one: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept = sum(
            len(n) + (len(c.target) if isinstance(c, Link) else 0)
            for n, c in of_docker([one])
            if c and n[-4:] in {"json", ".tar"} and n[-5:] != "/json"
        )
        monkeypatch.setattr(limits, "MAX_NAME_BYTES", kept)
        for how in ("file", "pipe"):
            assert pushed(of_docker([one]), how, tmp_path).names

    @both
    def test_manifests_that_are_too_large_together(
        self, images: list[Saved], how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_GRAPH_BYTES", 1500)
        assert pushed(of_docker(images[:1]), how, tmp_path).names
        refused(of_docker(images), how, tmp_path, ArchiveError, "more than 1500 bytes in total")

    @both
    def test_an_archive_of_a_docker_without_manifest_json(self, one: Saved, how: str, tmp_path: Path) -> None:
        refused(without(of_docker([one]), "manifest.json"), how, tmp_path, ArchiveError, "neither an index.json nor a")


class TestBudget:
    def test_json_over_the_budget_is_handed_on_and_read_back_if_it_is_a_config(
        self, images: list[Saved], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_BUFFERED_JSON", 1000)
        configs = {digest_of(image.config) for image in images}
        for dialect in ("docker", "crane", "bazel"):
            entries = sorted(
                DIALECTS[dialect](images),
                key=lambda entry: not (isinstance(entry[1], bytes) and is_probably_json(entry[1])),
            )
            filled: list[Entry] = [("stray.json", b'{"x":"%b"}' % (b"y" * 900)), *entries]
            for want in (None, NONE):
                found = pushed(filled, "pipe", tmp_path, want=want)
                assert found.names == pushed(entries, "file", tmp_path, want=want).names
                assert configs <= set(found.shelf.recalled)

    def test_platforms_are_known_of_those_too(
        self, images: list[Saved], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_BUFFERED_JSON", 10)
        arm = PlatformChoice((parse_platform("linux/arm64"),))
        entries = of_docker(images[:2])
        assert pushed(entries, "pipe", tmp_path, select=select_named_images(["other"]), platforms=arm).names
        refused(entries, "pipe", tmp_path, NotFoundError, "arm64", select=select_named_images(["app:1"]), platforms=arm)

    def test_json_over_the_budget_is_no_layer(
        self, one: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_BUFFERED_JSON", 10)
        for dialect in (of_docker, of_bazel):
            entries = renamed_images(
                dialect([one]),
                lambda listed: [{**listed[0], "Layers": [listed[0]["Config"], *listed[0]["Layers"][1:]]}],
            )
            refused(entries, "pipe", tmp_path, ArchiveError, "is not a layer")

    def test_no_more_layers_are_handed_on_than_an_image_has(
        self, one: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_LIST_ENTRIES", 3)
        strangers: list[Entry] = [("a.tar", b"1"), ("b.tar", b"2")]
        assert pushed([*strangers[:1], *of_docker([one])], "pipe", tmp_path).names
        refused([*strangers, *of_docker([one])], "pipe", tmp_path, UnsupportedError, "more than 3 layers")
        assert pushed([*strangers, *of_docker([one])], "file", tmp_path).names

    def test_held_json_never_exceeds_the_budget(self, one: Saved, tmp_path: Path) -> None:
        stray = b'{"x":"%b"}' % (b"y" * limits.MIB)
        entries: list[Entry] = [*((f"{n}.json", stray[:-2] + b'%d"}' % n) for n in range(10)), *of_docker([one])]
        found = pushed(entries, "pipe", tmp_path)
        assert sum(content.startswith(b'{"x"') for content in found.shelf.blobs.values()) == 5


def test_a_config_with_a_long_history_says_its_diff_ids(layout: Layout, tmp_path: Path) -> None:
    image = saved(layout, small_image(layout))
    history = [{"created_by": "x" * 3000}] * 1500
    large = json.dumps({**json.loads(image.config), "history": history}).encode()
    image = dataclasses.replace(image, config=large)
    for how in ("file", "pipe"):
        assert pushed(of_docker([image]), how, tmp_path, want=NONE).documents() == [plain_manifest(image)]
