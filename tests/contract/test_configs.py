"""The config of an image is JSON that all tools read alike; otherwise the image is not copied.

The hostile archives named `config-*` test the same with every command.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError
from tests.archives import blob_name, items_of, small_first, tar_of
from tests.contract.adapter import bytes_source, copy, layout_destination, layout_source
from tests.images import DOCKER_CONFIG, OCI_CONFIG, OCI_MANIFEST, Layout, tar_layer

#: Contents that are not a config, or that tools read differently.
WRONG: Final = [
    b"",
    b" ",
    b"\x7fELF\x00\xff",
    b"[]",
    b"[" * 100_000,
    b'{"os":"linux","os":"windows"}',
    b'{"os":"linux","OS":"windows"}',
    b'{"x":NaN}',
    b'{"x":' + b"[" * 70 + b"]" * 70 + b"}",
]
#: Contents that are a config to every tool, even without the usual fields.
RIGHT: Final = [
    b"{}",
    b"\n" * 5000 + b'{"os":"linux"}\n',
    b'{"a":1,"A":2,"rootfs":null}',
    b'{"x":"' + b"x" * 2_000_000 + b'"}',
]
ORDERS: Final = ["index first", "config first", "manifest last"]
_ids: Callable[[bytes], str] = lambda content: str(content[:20])  # noqa: E731


def with_config(layout: Layout, content: bytes, kind: str = OCI_CONFIG) -> str:
    """Write an image or artifact with this config, and return the digest of the config."""
    layer = layout.blob(tar_layer({"a": b"b"}), "application/vnd.oci.image.layer.v1.tar+gzip")
    config = layout.blob(content, kind)
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]}
    layout.document(document, name="v1")
    return str(config["digest"])


def ordered(layout: Layout, config: str, order: str) -> bytes:
    """Return a layout as an archive with its config after the index, before it, or before all but the manifest."""
    if order == "index first":
        return tar_of(small_first(layout))
    items = items_of(layout)
    first = [item for item in items if item[0] == blob_name(config)]
    rest = [item for item in items if item[0] != blob_name(config)]
    if order == "manifest last":
        # Only the manifest names the config.
        rest.sort(key=lambda item: config.encode() in (item[1] or b""))
    return tar_of([*first, *rest])


def copy_from_pipe(archive: bytes, out: Path) -> None:
    copy(bytes_source(archive), layout_destination(out))


@pytest.mark.parametrize(
    ("content", "kind"), [*((content, OCI_CONFIG) for content in WRONG), (WRONG[5], DOCKER_CONFIG)], ids=_ids
)
class TestWrong:
    def test_it_is_not_copied_into_a_layout(self, content: bytes, kind: str, layout: Layout, tmp_path: Path) -> None:
        digest = with_config(layout, content, kind)
        out = tmp_path / "out"
        # A second run must not find anything left by the first one.
        for _ in range(2):
            with pytest.raises(ArchiveError, match=f"^the config {digest} "):
                copy(layout_source(layout.path), layout_destination(out))
            assert not (out / blob_name(digest)).exists()
            assert not (out / "index.json").exists()

    @pytest.mark.parametrize("order", ORDERS)
    def test_its_image_is_not_copied_from_a_pipe(
        self, content: bytes, kind: str, order: str, layout: Layout, tmp_path: Path
    ) -> None:
        digest = with_config(layout, content, kind)
        with pytest.raises(ArchiveError, match=f"^the config {digest} "):
            copy_from_pipe(ordered(layout, digest, order), tmp_path / "out")
        assert not (tmp_path / "out" / "index.json").exists()


@pytest.mark.parametrize("content", RIGHT, ids=_ids)
@pytest.mark.parametrize("order", ORDERS)
def test_any_json_object_is_copied(content: bytes, order: str, layout: Layout, tmp_path: Path) -> None:
    digest = with_config(layout, content)
    copy_from_pipe(ordered(layout, digest, order), tmp_path / "out")
    assert (tmp_path / "out" / blob_name(digest)).read_bytes() == content


@pytest.mark.parametrize("size", [1, 20, 5000])
@pytest.mark.parametrize("last", [b'"x":1}', b'"os":"windows"}'], ids=["right", "wrong"])
def test_the_stored_part_of_a_resumed_config_is_checked_too(
    last: bytes, size: int, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MIN_PARTIAL_SIZE", 0)
    content = b'{"os":"linux",' + b" " * 5000 + last
    digest = with_config(layout, content)
    out = Layout(tmp_path / "out")
    partial = out.file(digest).with_name(f".{digest[7:]}.partial")
    partial.parent.mkdir()
    partial.write_bytes(content[:size])
    if b"windows" in content:
        with pytest.raises(ArchiveError, match="twice"):
            copy(layout_source(layout.path), layout_destination(out.path))
        assert not out.file(digest).exists()
    else:
        copy(layout_source(layout.path), layout_destination(out.path))
        assert out.file(digest).read_bytes() == content
    assert not partial.exists()


def test_a_config_that_is_too_large_to_parse_is_copied_unchecked(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = with_config(layout, WRONG[5])
    monkeypatch.setattr(limits, "MAX_PARSED_CONFIG", len(WRONG[5]))
    with pytest.raises(ArchiveError):
        copy(layout_source(layout.path), layout_destination(tmp_path / "out"))
    monkeypatch.setattr(limits, "MAX_PARSED_CONFIG", len(WRONG[5]) - 1)
    copy(layout_source(layout.path), layout_destination(tmp_path / "out"))
    assert (tmp_path / "out" / blob_name(digest)).read_bytes() == WRONG[5]


@pytest.mark.parametrize("kind", ["application/vnd.oci.empty.v1+json", "application/vnd.cncf.helm.config.v1+json"])
@pytest.mark.parametrize("content", WRONG[:6], ids=_ids)
def test_the_config_of_an_artifact_may_be_anything(content: bytes, kind: str, layout: Layout, tmp_path: Path) -> None:
    digest = with_config(layout, content, kind)
    for number, order in enumerate(("index first", "config first")):
        copy_from_pipe(ordered(layout, digest, order), tmp_path / f"out-{number}")
        assert (tmp_path / f"out-{number}" / blob_name(digest)).read_bytes() == content


def test_a_config_with_a_wrong_digest_is_an_integrity_error(layout: Layout, tmp_path: Path) -> None:
    digest = with_config(layout, json.dumps({"os": "linux"}).encode())
    (layout.path / blob_name(digest)).write_bytes(b"{'os': 'linux'}")
    with pytest.raises(IntegrityError):
        copy(layout_source(layout.path), layout_destination(tmp_path / "out"))
