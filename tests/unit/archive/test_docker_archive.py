"""docker-archives: limits of what is buffered from a pipe, and unusual layers."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ocistream import limits
from ocistream.archive.decompression import decompress_input
from ocistream.archive.file_source import ArchiveFileSource
from ocistream.archive.stream_source import ArchiveStreamSource
from ocistream.errors import (
    ArchiveError,
    NotFoundError,
    OcistreamError,
    UnsupportedError,
)
from ocistream.layout.destination import LayoutDestination
from ocistream.layout.image_selection import ALL_IMAGES, Selection, select_named_images
from ocistream.oci.descriptor import Descriptor, parse_platform
from ocistream.oci.graph import Graph
from ocistream.oci.platforms import PlatformChoice
from ocistream.streams.chunks import Chunk
from ocistream.streams.compression import CODECS, is_probably_json
from ocistream.transfer.copy import Copy
from ocistream.transfer.interfaces import Source, Traits
from ocistream.transfer.recompress import RecompressionSettings
from tests.archives import END, with_checksum
from tests.contract.test_pipes import Pipe
from tests.docker_archives import (
    DIALECTS,
    Entry,
    Link,
    Saved,
    archive_of,
    of_bazel,
    of_docker,
    plain_manifest,
    saved,
)
from tests.images import Layout, digest_of, small_image, tar_layer
from tests.observers import Watch

GZIP, NONE = (RecompressionSettings(CODECS[name], CODECS[name].default_level) for name in ("gzip", "none"))
both = pytest.mark.parametrize("how", ["file", "pipe"])


class Shelf(LayoutDestination):
    """A layout that records which blobs were read back, and the graph that was committed."""

    traits = Traits()

    def __init__(self, folder: Path) -> None:
        self.path = Path(tempfile.mkdtemp(dir=folder))
        super().__init__(self.path)
        self.recalled: list[str] = []
        self.graph: Graph | None = None

    def blob(self, digest: str) -> bytes:
        return (self.path / "blobs" / digest.replace(":", "/")).read_bytes()

    def read(self, descriptor: Descriptor) -> Iterator[Chunk]:
        self.recalled.append(descriptor.digest)
        return super().read(descriptor)

    def commit(self, graph: Graph) -> None:
        super().commit(graph)
        self.graph = graph


@dataclasses.dataclass
class Pushed:
    """The result of a push: the graph as it was written, and the destination."""

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
    selection: Selection = ALL_IMAGES,
) -> Source:
    """Open an archive as a file, or as a pipe that returns so many bytes a read."""
    if how == "file":
        (folder / "archive.tar").write_bytes(archive)
        return ArchiveFileSource(folder / "archive.tar", selection)
    file = decompress_input(io.BufferedReader(Pipe(archive, sizes), 64), "the archive on stdin", limits.MAX_RATIO)
    return ArchiveStreamSource(file, selection)


def pushed(
    archive: bytes | Sequence[Entry],
    how: str,
    folder: Path,
    *,
    want: RecompressionSettings | None = None,
    shelf: Shelf | None = None,
    **options: Any,
) -> Pushed:
    """Copy an archive as `push` does: plain layers become gzip, unless `want` says otherwise."""
    archive = archive if isinstance(archive, bytes) else archive_of(archive)
    shelf = shelf or Shelf(folder)
    source = source_of(archive, how, folder, **options)
    try:
        report = Copy(source, shelf, Watch(), recompression=want, plain_layer_recompression=GZIP).run()
    finally:
        source.close()
    assert shelf.graph is report.graph
    return Pushed(report.graph, shelf)


def refused(
    archive: bytes | Sequence[Entry], how: str, folder: Path, error: type[OcistreamError], words: str, **options: Any
) -> OcistreamError:
    """Assert that an archive is refused, that nothing became visible, and that only possible configs were read back."""
    shelf = Shelf(folder)
    with pytest.raises(error, match=words) as caught:
        pushed(archive, how, folder, shelf=shelf, **options)
    assert shelf.graph is None
    assert all(is_probably_json(shelf.blob(digest)) for digest in shelf.recalled)
    assert all(len(shelf.blob(digest)) <= limits.MAX_CONFIG for digest in shelf.recalled)
    assert type(caught.value) is error
    return caught.value


@functools.cache
def made(folder: Path) -> list[Saved]:
    """Create the images of the property tests: shared and repeated layers, an empty one, several names and none."""
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


def renamed_images(entries: Sequence[Entry], change: Callable[[list[dict[str, Any]]], Any]) -> list[Entry]:
    """Rewrite `manifest.json`: `change` gets its list of images and returns the new one."""
    return [
        (name, json.dumps(change(json.loads(content))).encode())
        if name == "manifest.json" and isinstance(content, bytes)
        else (name, content)
        for name, content in entries
    ]


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
    def test_unusual_layers_have_the_same_result_from_a_file_and_a_pipe(
        self, layout: Layout, layer: bytes, how: str, want: RecompressionSettings | None, tmp_path: Path
    ) -> None:
        image = saved(layout, layout.image([layer, tar_layer({"a": b"b"})]))
        (document,) = pushed(of_docker([image]), how, tmp_path, want=want).documents()
        kinds = {item["mediaType"] for item in document["layers"]}
        if want is NONE:
            assert document == plain_manifest(image)
        assert kinds == {f"application/vnd.oci.image.layer.v1.tar{'' if want is NONE else '+gzip'}"}


class TestHostile:
    @both
    def test_too_many_names_are_refused(
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

    def test_names_that_no_manifest_needs_do_not_count(
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
    def test_manifests_that_are_too_large_in_total_are_refused(
        self, images: list[Saved], how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_GRAPH_BYTES", 1500)
        assert pushed(of_docker(images[:1]), how, tmp_path).names
        refused(of_docker(images), how, tmp_path, ArchiveError, "more than 1500 bytes in total")


class TestBudget:
    def test_json_over_the_budget_is_written_and_read_back_if_it_is_a_config(
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

    def test_platforms_of_configs_over_the_budget_are_known(
        self, images: list[Saved], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_BUFFERED_JSON", 10)
        arm = PlatformChoice((parse_platform("linux/arm64"),))
        entries = of_docker(images[:2])
        other, app = (Selection(select_named_images([name]), arm) for name in ("other", "app:1"))
        assert pushed(entries, "pipe", tmp_path, selection=other).names
        refused(entries, "pipe", tmp_path, NotFoundError, "arm64", selection=app)

    def test_json_over_the_budget_is_not_a_layer(
        self, one: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_BUFFERED_JSON", 10)
        for dialect in (of_docker, of_bazel):
            entries = renamed_images(
                dialect([one]),
                lambda listed: [{**listed[0], "Layers": [listed[0]["Config"], *listed[0]["Layers"][1:]]}],
            )
            refused(entries, "pipe", tmp_path, ArchiveError, "is not a layer")

    def test_the_number_of_layers_before_the_manifest_is_limited(
        self, one: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_LIST_ENTRIES", 3)
        strangers: list[Entry] = [("a.tar", b"1"), ("b.tar", b"2")]
        assert pushed([*strangers[:1], *of_docker([one])], "pipe", tmp_path).names
        refused([*strangers, *of_docker([one])], "pipe", tmp_path, UnsupportedError, "more than 3 layers")
        assert pushed([*strangers, *of_docker([one])], "file", tmp_path).names

    def test_buffered_json_never_exceeds_the_budget(self, one: Saved, tmp_path: Path) -> None:
        stray = b'{"x":"%b"}' % (b"y" * limits.MIB)
        entries: list[Entry] = [*((f"{n}.json", stray[:-2] + b'%d"}' % n) for n in range(10)), *of_docker([one])]
        found = pushed(entries, "pipe", tmp_path)
        written = [path.read_bytes() for path in found.shelf.path.glob("blobs/sha256/*")]
        assert sum(content.startswith(b'{"x"') for content in written) == 5


def test_diff_ids_of_a_config_with_a_long_history_are_read(layout: Layout, tmp_path: Path) -> None:
    image = saved(layout, small_image(layout))
    history = [{"created_by": "x" * 3000}] * 1500
    large = json.dumps({**json.loads(image.config), "history": history}).encode()
    image = dataclasses.replace(image, config=large)
    for how in ("file", "pipe"):
        assert pushed(of_docker([image]), how, tmp_path, want=NONE).documents() == [plain_manifest(image)]
