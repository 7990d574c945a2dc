"""Images' configs on their way: JSON that all read alike, or never completed anywhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest

from ocistream import limits, transfer
from ocistream.configs import Configs, begins_as_object, checked
from ocistream.errors import ArchiveError, IntegrityError
from ocistream.interfaces import Blob
from ocistream.model import Descriptor
from ocistream.stores.archive_stream import ArchiveStreamSource, open_stream
from ocistream.stores.layout import LayoutSink, LayoutSource
from ocistream.stream import digest_of
from tests.archives import blob_name, items_of, small_first, tar_of
from tests.cli.run import ocistream
from tests.images import DOCKER_CONFIG, OCI_CONFIG, OCI_MANIFEST, Layout, tar_layer

#: What is no config, or not the same one to everyone.
WRONG = [
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
#: What is one to everyone, whatever it lacks.
RIGHT = [
    b"{}",
    b"\n" * 5000 + b'{"os":"linux"}\n',
    b'{"a":1,"A":2,"rootfs":null}',
    b'{"x":"' + b"x" * 2_000_000 + b'"}',
]
_ids: Callable[[bytes], str] = lambda content: str(content[:20])  # noqa: E731


def of_config(layout: Layout, content: bytes, kind: str = OCI_CONFIG) -> str:
    """Write an image or artifact with a config of these bytes, and return its digest."""
    layer = layout.blob(tar_layer({"a": b"b"}), "application/vnd.oci.image.layer.v1.tar+gzip")
    config = layout.blob(content, kind)
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]}
    layout.document(document, name="v1")
    return str(config["digest"])


def blob_of(content: bytes, *, size: int = 7, **more: Any) -> Blob:
    """Return a blob that comes in chunks of some bytes."""

    def chunks() -> Iterator[memoryview]:
        buffer = bytearray(size)
        for start in range(0, len(content), size):
            piece = content[start : start + size]
            buffer[: len(piece)] = piece
            # As a file is read: what was given before is not there any more.
            yield memoryview(buffer)[: len(piece)]

    return Blob(Descriptor(OCI_CONFIG, digest_of(content), len(content)), chunks, **more)


def from_pipe(archive: Path, out: Path) -> None:
    """Copy an archive into a layout as it is read from a pipe."""
    with closing(ArchiveStreamSource(open_stream(archive, threading.Event()))) as source:
        transfer.copy(source, LayoutSink(out))


class TestChunks:
    @pytest.mark.parametrize("content", RIGHT, ids=_ids)
    @pytest.mark.parametrize("size", [7, 300_000])
    def test_those_of_a_config_pass_as_they_are(self, content: bytes, size: int) -> None:
        assert b"".join(bytes(chunk) for chunk in checked(blob_of(content, size=size)).open()) == content

    @pytest.mark.parametrize("content", WRONG, ids=_ids)
    def test_of_what_is_none_the_last_one_never_does(self, content: bytes) -> None:
        passed: list[bytes] = []
        chunks = checked(blob_of(content)).open()
        with pytest.raises(ArchiveError, match=f"^the config {digest_of(content)} "):
            passed.extend(bytes(chunk) for chunk in chunks)
        assert len(b"".join(passed)) < max(1, len(content))

    @pytest.mark.parametrize("content", [RIGHT[1], WRONG[5]], ids=_ids)
    @pytest.mark.parametrize("held", [0, 1, 20, None])
    def test_of_one_that_is_gone_on_with_what_is_held_counts(self, content: bytes, held: int | None) -> None:
        size = len(content) if held is None else held

        def resume(before: Iterator[bytes], there: int) -> Iterator[bytes]:
            assert b"".join(before) == content[:there]
            yield from [content[there:]] * (there < len(content))

        blob = checked(blob_of(content, resume=resume))
        assert blob.resume is not None
        rest = blob.resume(iter([content[:5], content[5:size]] if size > 5 else [content[:size]]), size)
        if content in RIGHT:
            assert b"".join(map(bytes, rest)) == content[size:]
        else:
            with pytest.raises(ArchiveError, match="twice"):
                list(rest)

    def test_one_for_which_there_is_no_room_passes_unread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for limit in (len(WRONG[5]), len(WRONG[5]) - 1):
            monkeypatch.setattr(limits, "MAX_CONFIG_READ", limit)
            chunks = checked(blob_of(WRONG[5])).open()
            with pytest.raises(ArchiveError) if limit == len(WRONG[5]) else nullcontext():
                assert b"".join(bytes(chunk) for chunk in chunks) == WRONG[5]

    def test_how_an_object_begins(self) -> None:
        assert all(map(begins_as_object, [b"{", b" \t\r\n{", b"\n" * 9000 + b"{}"]))
        assert not any(map(begins_as_object, [b"", b" ", b"[", b"\x0b{", b"\0{", b"x{"]))


def test_what_came_early_and_is_none_is_refused_when_it_turns_out_to_be_one(layout: Layout) -> None:
    digest = of_config(layout, b"\x7fELF")
    graph = LayoutSource(layout.path).graph(Configs())  # type: ignore[arg-type]
    configs = Configs()
    for content in (b"\x7fELF", b"", b"{}"):
        assert b"".join(map(bytes, configs.noting(blob_of(content)).open())) == content
    config = Descriptor(OCI_CONFIG, digest, 4)
    # Nobody knows yet what it is.
    configs.check_early(config)
    configs.find(graph)
    with pytest.raises(ArchiveError, match=f"the config {digest} is not valid JSON"):
        configs.check_early(config)
    configs.check_early(Descriptor(OCI_CONFIG, digest_of(b"{}"), 2))
    configs.check_early(Descriptor(OCI_CONFIG, digest_of(b""), 0))


@pytest.mark.parametrize("media_type", [OCI_CONFIG, DOCKER_CONFIG])
@pytest.mark.parametrize("content", WRONG, ids=_ids)
class TestWrong:
    def test_it_does_not_come_into_a_layout(
        self, content: bytes, media_type: str, layout: Layout, tmp_path: Path
    ) -> None:
        digest = of_config(layout, content, media_type)
        out = tmp_path / "out"
        # A second run is to find nothing that the first one has left.
        for _ in range(2):
            with pytest.raises(ArchiveError, match=f"^the config {digest} "):
                transfer.copy(LayoutSource(layout.path), LayoutSink(out))
            assert not (out / blob_name(digest)).exists()
            assert not (out / "index.json").exists()

    @pytest.mark.parametrize("order", ["index first", "config first", "manifest last"])
    def test_nor_out_of_a_pipe(
        self, content: bytes, media_type: str, order: str, layout: Layout, tmp_path: Path
    ) -> None:
        digest = of_config(layout, content, media_type)
        archive = tmp_path / "x.tar"
        archive.write_bytes(ordered(layout, digest, order))
        with pytest.raises(ArchiveError, match=f"^the config {digest} "):
            from_pipe(archive, tmp_path / "out")
        assert not (tmp_path / "out" / "index.json").exists()

    def test_verify_says_so(self, content: bytes, media_type: str, layout: Layout) -> None:
        digest = of_config(layout, content, media_type)
        for order in ("index first", "config first", "manifest last"):
            for deep in ((), ("--deep",)):
                result = ocistream("verify", *deep, stdin=ordered(layout, digest, order))
                assert result.code == 6, result.err
                assert f"wrong the config {digest} " in result.out.decode()
        result = ocistream("verify", layout.path)
        assert (result.code, f"wrong the config {digest} " in result.out.decode()) == (6, True), result.err


@pytest.mark.parametrize("content", RIGHT, ids=_ids)
@pytest.mark.parametrize("order", ["index first", "config first", "manifest last"])
def test_what_is_json_passes_whatever_it_says(content: bytes, order: str, layout: Layout, tmp_path: Path) -> None:
    digest = of_config(layout, content)
    archive = ordered(layout, digest, order)
    assert ocistream("verify", stdin=archive).code == 0, order
    (tmp_path / "x.tar").write_bytes(archive)
    from_pipe(tmp_path / "x.tar", tmp_path / "out")
    assert (tmp_path / "out" / blob_name(digest)).read_bytes() == content


@pytest.mark.parametrize("order", ["index first", "config first"])
def test_one_of_any_size_is_verified(order: str, layout: Layout) -> None:
    pad = b'{"x":"' + b"x" * (3 << 20) + b'","y":"' + b"y" * (3 << 20) + b'"'
    for content, code in ((pad + b',"os":"linux"}', 0), (pad + b',"x":"linux"}', 6)):
        images = Layout(layout.path.with_name(f"of-{code}"))
        result = ocistream("verify", stdin=ordered(images, of_config(images, content), order))
        assert result.code == code, result.err


@pytest.mark.parametrize("kind", ["application/vnd.oci.empty.v1+json", "application/vnd.cncf.helm.config.v1+json"])
@pytest.mark.parametrize("content", WRONG, ids=_ids)
def test_what_is_no_images_config_is_nobodys_concern(content: bytes, kind: str, layout: Layout, tmp_path: Path) -> None:
    digest = of_config(layout, content, kind)
    for order in ("index first", "config first"):
        assert ocistream("verify", stdin=ordered(layout, digest, order)).code == 0
    transfer.copy(LayoutSource(layout.path), LayoutSink(tmp_path / "out"))
    assert (tmp_path / "out" / blob_name(digest)).read_bytes() == content


def test_one_whose_bytes_are_wrong_is_wrong_by_its_digest(layout: Layout, tmp_path: Path) -> None:
    digest = of_config(layout, json.dumps({"os": "linux"}).encode())
    (layout.path / blob_name(digest)).write_bytes(b"{'os': 'linux'}")
    with pytest.raises(IntegrityError):
        transfer.copy(LayoutSource(layout.path), LayoutSink(tmp_path / "out"))
    assert ocistream("verify", layout.path).code == 5


def test_large_ones_are_held_one_at_a_time() -> None:
    configs, ran = Configs(), list[object]()
    small, large = (Descriptor(OCI_CONFIG, digest_of(b""), size) for size in (1000, limits.MAX_CONFIG))
    with configs.turn(large), configs.turn(small):
        waiting = threading.Thread(target=lambda: ran.append(configs.turn(large).__enter__()), daemon=True)
        waiting.start()
        assert ran == []
    waiting.join(60)
    assert len(ran) == 1


def ordered(layout: Layout, config: str, order: str) -> bytes:
    """Return a layout as an archive: its config behind the index, before it, or before all but a manifest."""
    if order == "index first":
        return tar_of(small_first(layout))
    items = items_of(layout)
    first = [item for item in items if item[0] == blob_name(config)]
    rest = [item for item in items if item[0] != blob_name(config)]
    if order == "manifest last":
        # The only one that names the config.
        rest.sort(key=lambda item: config.encode() in (item[1] or b""))
    return tar_of([*first, *rest])
