"""Layers that do not match their image's config are refused during recompression, and nothing is visible."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, OcistreamError, UnsupportedError
from tests.archives import END, Item, items_of, small_first, tar_of
from tests.contract.adapter import bytes_source, copy, layout_destination, layout_source
from tests.contract.adapter_types import Wanted
from tests.contract.stores import DESTINATIONS, SOURCES, Store, opened
from tests.images import OCI_LAYER, Layout, digest_of, small_image, tar_layer
from tests.recompression_checks import all_kinds, compare, named

MIB: Final = 1 << 20
TAR: Final = tar_layer({"a": b"content " * 500}, compression="")
GZ: Final = gzip.compress(TAR, mtime=0)
#: Layers come before their config, or after it; destinations store layers in four ways.
WAYS: Final = [
    ("layout", "layout"),
    ("archive-pipe", "archive-file"),
    ("archive-pipe-index-last", "archive-pipe"),
    ("archive-pipe-index-last", "registry"),
]
#: For wrong bytes: every source, and both orders for every destination.
ALL_WAYS: Final = [
    *((source, "layout") for source in SOURCES),
    *((source, kind) for source in ("layout", "archive-pipe-index-last") for kind in DESTINATIONS if kind != "layout"),
]
ways = pytest.mark.parametrize("way", WAYS, ids="-to-".join)


def with_diff_ids(layout: Layout, layers: list[bytes], diff_ids: Any) -> None:
    """Write the image `v1` with these diff_ids in its config."""
    with_config(layout, layers, {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": diff_ids}})


def with_config(layout: Layout, layers: list[bytes], config: Any) -> None:
    document = layout.read(layout.image(list(layers))["digest"])
    raw = config if isinstance(config, bytes) else json.dumps(config).encode()
    document["config"] = layout.blob(raw, document["config"]["mediaType"])
    layout.document(document, name="v1")


def refused(
    layout: Layout,
    folder: Path,
    way: tuple[str, str],
    error: type[OcistreamError],
    match: str,
    damage: Callable[[Store], None] = lambda _: None,
) -> None:
    source, destination = way
    with opened(SOURCES[source], folder / "from") as origin, opened(DESTINATIONS[destination], folder / "to") as store:
        origin.fill(layout)
        damage(origin)
        opened_to_write = store.destination()
        with pytest.raises(error, match=match):
            copy(origin.source(), opened_to_write, compress="zstd", jobs=2)
        opened_to_write.close()
        assert store.images() == {}
        for path in (folder / "to").rglob("*"):
            assert path.suffix != ".partial"
            assert path.is_dir() or b'"schemaVersion"' not in path.read_bytes() or path.name == "index.json"


@ways
def test_a_wrong_diff_id(layout: Layout, tmp_path: Path, way: tuple[str, str]) -> None:
    with_diff_ids(layout, [GZ], [digest_of(b"something else")])
    refused(layout, tmp_path, way, IntegrityError, "the config of its image says")


@ways
def test_diff_ids_in_a_wrong_order(layout: Layout, tmp_path: Path, way: tuple[str, str]) -> None:
    other = tar_layer({"b": b"c"}, compression="")
    with_diff_ids(layout, [GZ, gzip.compress(other)], [digest_of(other), digest_of(TAR)])
    refused(layout, tmp_path, way, IntegrityError, "the config of its image says")


@ways
@pytest.mark.parametrize("config", [{}, {"rootfs": {}}, {"rootfs": {"diff_ids": ["x"]}}, b"{"])
def test_a_config_without_diff_ids(layout: Layout, tmp_path: Path, way: tuple[str, str], config: Any) -> None:
    with_config(layout, [GZ], config)
    refused(layout, tmp_path, way, ArchiveError, "diff_ids|not valid JSON|not a JSON object")


@ways
def test_a_config_that_is_too_large(layout: Layout, tmp_path: Path, way: tuple[str, str]) -> None:
    with_config(layout, [GZ], b"x" * (limits.MAX_CONFIG + 1))
    refused(layout, tmp_path, way, ArchiveError, f"larger than {limits.MAX_CONFIG} bytes")


@ways
@pytest.mark.parametrize("count", [0, 2])
def test_another_number_of_diff_ids(layout: Layout, tmp_path: Path, way: tuple[str, str], count: int) -> None:
    with_diff_ids(layout, [GZ], [digest_of(TAR)] * count)
    refused(layout, tmp_path, way, ArchiveError, f"has 1 layers, but its config has {count} diff_ids")


@ways
def test_a_corrupt_stream_with_a_correct_digest(layout: Layout, tmp_path: Path, way: tuple[str, str]) -> None:
    document = layout.read(layout.image([GZ])["digest"])
    layer = layout.blob(GZ[:-1], OCI_LAYER + "+gzip")
    layout.document({**document, "layers": [layer]}, name="v1")
    said = f"{layer['digest']}.*gzip stream is malformed: it ends too early"
    refused(layout, tmp_path, way, ArchiveError, said)


@ways
def test_a_layer_that_expands_too_much(
    layout: Layout, tmp_path: Path, way: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UNCHECKED_EXPANSION", MIB)
    layout.image([gzip.compress(bytes(4 * MIB))], name="v1")
    refused(layout, tmp_path, way, ArchiveError, "expands to more than 200 times")


@pytest.mark.parametrize("way", ALL_WAYS, ids="-to-".join)
@pytest.mark.parametrize("place", [0.5, 1.0, None], ids=["middle", "end", "missing"])
def test_a_flipped_byte_or_a_missing_layer(
    layout: Layout, tmp_path: Path, way: tuple[str, str], place: float | None
) -> None:
    image = layout.image([GZ, (5 * MIB) // 2], name="v1")
    for layer in layout.read(image["digest"])["layers"]:
        content: bytearray | None = None
        if place is not None:
            content = bytearray(layout.file(layer["digest"]).read_bytes())
            content[int((len(content) - 1) * place)] ^= 1

        def damage(store: Store, digest: str = layer["digest"], content: bytearray | None = content) -> None:
            store.damage(digest, None if content is None else bytes(content))

        # A registry answers a request for a missing layer with an error.
        error = OcistreamError if content is None else IntegrityError
        refused(layout, tmp_path / layer["digest"][-5:], way, error, layer["digest"][7:], damage)


@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_for_a_corrupt_stream_with_a_wrong_digest_the_digest_is_reported(
    layout: Layout, tmp_path: Path, codec: str
) -> None:
    content = gzip.compress(random.Random(1).randbytes(2 * MIB), 1)
    image = layout.image([content], name="v1")
    (layer,) = layout.read(image["digest"])["layers"]
    # This block type of deflate is invalid (RFC 1951, section 3.2.3), which is detected long before the digest.
    layout.file(layer["digest"]).write_bytes(content[:10] + b"\xff" + content[11:])
    with pytest.raises(IntegrityError, match=layer["digest"]):
        copy(layout_source(layout.path), layout_destination(tmp_path / "out"), compress=codec)


def test_layers_are_checked_against_a_config_that_exists_at_the_destination(layout: Layout, tmp_path: Path) -> None:
    with_diff_ids(layout, [GZ], [digest_of(b"something else")])
    copy(layout_source(layout.path), layout_destination(tmp_path / "out"))
    before = named(Layout(tmp_path / "out"))
    with pytest.raises(IntegrityError, match="the config of its image says"):
        copy(layout_source(layout.path), layout_destination(tmp_path / "out"), compress="zstd")
    assert named(Layout(tmp_path / "out")) == before


class TestEarly:
    """An early blob of a pipe is recompressed if its first bytes look like a layer."""

    @pytest.mark.parametrize("kind", DESTINATIONS)
    def test_a_blob_that_only_looked_like_a_layer(self, layout: Layout, tmp_path: Path, kind: str) -> None:
        chart = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
        layout.artifact(gzip.compress(b"a chart"), kind=chart, name="v1")
        with opened(DESTINATIONS[kind], tmp_path / "to") as store:
            destination = store.destination()
            with pytest.raises(UnsupportedError, match="looked like a layer") as caught:
                copy(bytes_source(tar_of(items_of(layout))), destination, compress="zstd")
            assert "from a file" in (caught.value.hint or "")
            destination.close()
            assert store.images() == {}

    def test_with_the_index_first_such_a_blob_is_unchanged(self, layout: Layout, tmp_path: Path) -> None:
        layout.artifact(gzip.compress(b"a chart"), kind="application/vnd.example.chart.tar+gzip", name="v1")
        copy(bytes_source(tar_of(small_first(layout))), layout_destination(tmp_path / "out"), compress="zstd")
        assert named(Layout(tmp_path / "out"))["v1"]["digest"] == named(layout)["v1"]["digest"]

    def test_such_a_blob_of_an_image_that_is_not_selected_is_ignored(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        layout.artifact(gzip.compress(b"a chart"), name="chart")
        source = bytes_source(tar_of(items_of(layout)), Wanted(images=("v1",)))
        copy(source, layout_destination(tmp_path / "out"), compress="zstd")
        assert set(named(Layout(tmp_path / "out"))) == {"v1"}

    def test_a_layer_with_a_wrong_media_type_is_unchanged(self, layout: Layout, tmp_path: Path) -> None:
        document = layout.read(layout.image([GZ])["digest"])
        document["layers"][0]["mediaType"] = OCI_LAYER + "+zstd"
        image = layout.document(document, name="v1")
        copy(bytes_source(tar_of(items_of(layout))), layout_destination(tmp_path / "out"), compress="gzip")
        assert named(Layout(tmp_path / "out"))["v1"]["digest"] == image["digest"]

    @pytest.mark.parametrize("kind", ["layout", "registry", "archive-file"])
    def test_a_config_that_is_not_buffered_is_read_back(
        self, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        small_image(layout, name="v1")
        monkeypatch.setattr(limits, "MAX_BUFFERED_JSON", 10)
        with opened(DESTINATIONS[kind], tmp_path / "to") as store:
            source, destination = bytes_source(tar_of(items_of(layout))), store.destination()
            if kind == "archive-file":
                with pytest.raises(UnsupportedError, match="too many small blobs"):
                    copy(source, destination, compress="zstd")
            else:
                copy(source, destination, compress="zstd")
                compare(layout, store.layout(tmp_path / "after"), "zstd")

    @pytest.mark.parametrize("order", [small_first, items_of])
    @pytest.mark.parametrize("kind", DESTINATIONS)
    def test_a_truncated_pipe_leaves_nothing(
        self, layout: Layout, tmp_path: Path, order: Callable[[Layout], list[Item]], kind: str
    ) -> None:
        all_kinds(layout, name="v1")
        archive = tar_of(order(layout))
        for end in range(0, len(archive) - len(END) // 2, max(1, len(archive) // 13)):
            with opened(DESTINATIONS[kind], tmp_path / f"{end}") as store:
                destination = store.destination()
                with pytest.raises(ArchiveError, match="truncated" if end else "is empty"):
                    copy(bytes_source(archive[:end]), destination, compress="zstd")
                destination.close()
                assert store.images() == {}
