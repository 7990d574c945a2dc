"""Memory does not grow with what strangers put into manifests: hostile ones, and indexes of thousands of images."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ocistream import limits
from tests.archives import blob_name, tar_of
from tests.cli import assertions
from tests.faulty_registry import FaultyRegistry
from tests.images import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Layout, tar_layer
from tests.runner import measured, ocistream

#: What manifests may cost above what any transfer costs: promise 3 is 48 MiB in all, and pushing takes 33.
ALLOWED = 15 * limits.MIB


def descriptor(content: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}


def document(media_type: str, **fields: Any) -> bytes:
    fields = {"schemaVersion": 2, "mediaType": media_type, **fields}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def archive(root: bytes, media_type: str, *others: bytes) -> bytes:
    """Return an archive of our own order with one root and whatever belongs to it."""
    blobs = [(blob_name(str(descriptor(content, "")["digest"])), content) for content in (root, *others)]
    index = document(OCI_INDEX, manifests=[descriptor(root, media_type)])
    return tar_of([("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'), ("index.json", index), *blobs])


def image(layers: Sequence[dict[str, Any]] = (), **fields: Any) -> bytes:
    return document(OCI_MANIFEST, config=descriptor(b"{}", OCI_CONFIG), layers=layers, **fields)


def promises(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Return descriptors of layers that nobody has, as short as they can be."""
    return [{"mediaType": "a/b", "digest": f"sha256:{n:064x}", "size": 1} for n in range(start, start + count)]


def plain() -> bytes:
    return archive(image([descriptor(b"layer", OCI_LAYER)]), OCI_MANIFEST, b"{}", b"layer")


def many_layers() -> bytes:
    return archive(image(promises(35_000)), OCI_MANIFEST, b"{}")


def as_many_layers_as_may_be() -> bytes:
    images = [image(promises(limits.MAX_LIST_ENTRIES - 1, start)) for start in (0, limits.MAX_LIST_ENTRIES)]
    index = document(OCI_INDEX, manifests=[descriptor(content, OCI_MANIFEST) for content in images])
    return archive(index, OCI_INDEX, *images, b"{}")


def wide_characters() -> bytes:
    """Three long texts, together as large as they may be with an emoji, which makes them four times as large."""
    wide = "x" * (limits.MAX_WIDE_JSON_PART // 3 - limits.KIB) + "\U0001f600"
    return archive(image(annotations={"a": wide}, b=wide, c={"d": wide}), OCI_MANIFEST, b"{}")


def a_long_annotation() -> bytes:
    return archive(image(annotations={"a": "x" * (limits.MAX_MANIFEST - limits.KIB)}), OCI_MANIFEST, b"{}")


def tiny_objects() -> bytes:
    elements = b",".join([b'{"a":{}}'] * (limits.MAX_JSON_ITEMS // 3 - 10))
    hostile = document(OCI_MANIFEST, config=descriptor(b"{}", OCI_CONFIG), layers=[], x=["x"])
    return archive(hostile.replace(b'["x"]', b"[" + elements + b"]"), OCI_MANIFEST, b"{}")


def tiny_members() -> bytes:
    members = b",".join(b'"%x":{}' % number for number in range(limits.MAX_JSON_ITEMS // 2 - 10))
    return archive(image().removesuffix(b"}") + b"," + members + b"}", OCI_MANIFEST, b"{}")


def thousands_of_images() -> bytes:
    """Images of their own layer each, in an index with their platforms and an annotation."""
    images, blobs = [], []
    for number in range(3000):
        layer = b"layer %d" % number
        config = b'{"architecture":"amd64","os":"linux","n":%d}' % number
        content = document(OCI_MANIFEST, config=descriptor(config, OCI_CONFIG), layers=[descriptor(layer, OCI_LAYER)])
        more = {"platform": {"architecture": "amd64", "os": "linux"}, "annotations": {"created": str(number)}}
        images.append(descriptor(content, OCI_MANIFEST) | more)
        blobs += [content, config, layer]
    return archive(document(OCI_INDEX, manifests=images), OCI_INDEX, *blobs)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Return the peak of moving a small image, in bytes."""
    folder = tmp_path_factory.mktemp("usual")
    result = measured("copy", "-", "oci-archive:out.tar", stdin=plain(), cwd=folder)
    assertions.success(result)
    assert result.peak is not None
    return result.peak


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[], bytes]], Path]:
    """Return a function that gives an archive of one of these kinds, which is made once: it takes longer to make."""
    folder = tmp_path_factory.mktemp("given")

    def written(make: Callable[[], bytes]) -> Path:
        path = folder / f"{make.__name__}.tar"
        if not path.exists():
            path.write_bytes(make())
        return path

    return written


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (many_layers, 6),
        (as_many_layers_as_may_be, 6),
        (wide_characters, 0),
        (a_long_annotation, 0),
        (tiny_objects, 0),
        (tiny_members, 6),
        (thousands_of_images, 0),
    ],
)
# tests/hostile measures the same kinds from files in each run.
@pytest.mark.parametrize("piped", [pytest.param(False, marks=pytest.mark.nightly), True], ids=["file", "pipe"])
def test_no_manifest_costs_more_memory_than_is_promised(
    tmp_path: Path,
    usual: int,
    given: Callable[[Callable[[], bytes]], Path],
    make: Callable[[], bytes],
    code: int,
    *,
    piped: bool,
) -> None:
    path = given(make)
    source = "-" if piped else f"oci-archive:{path}"
    result = measured("copy", source, "oci-archive:out.tar", stdin=path if piped else None, cwd=tmp_path)
    assert result.code == code, result.err
    assert result.peak is not None
    assert result.peak < usual + ALLOWED


def test_a_manifest_of_megabytes_goes_through_registries_and_costs_no_more(
    tmp_path: Path, usual: int, served: FaultyRegistry
) -> None:
    # Layers that are never moved, so that there may be thousands of them.
    kind = "application/vnd.oci.image.layer.nondistributable.v1.tar"
    manifest = image([{**layer, "mediaType": kind} for layer in promises(9000)])
    assert len(manifest) > limits.MIB
    digest = descriptor(manifest, "")["digest"]
    name = f"{served.host}/app"
    assertions.success(ocistream("push", f"{name}:1", stdin=archive(manifest, OCI_MANIFEST, b"{}")))
    for target in (f"{name}:1", f"{name}@{digest}"):
        result = measured("pull", target, "-o", "out.tar", cwd=tmp_path)
        assertions.success(result)
        assert result.out.endswith(f"@{digest}\n".encode())
        # Requests to registries need more code than a copy between files.
        assert result.peak is not None
        assert result.peak < usual + ALLOWED + 10 * limits.MIB


def test_the_largest_config_is_verified_within_the_promised_memory(tmp_path: Path) -> None:
    config = b'{"x":"' + b"x" * (limits.MAX_JSON_PART - limits.KIB) + b'"}'
    manifest = document(OCI_MANIFEST, config=descriptor(config, OCI_CONFIG), layers=[])
    path = tmp_path / "app.tar"
    path.write_bytes(archive(manifest, OCI_MANIFEST, config))
    result = measured("verify", path)
    assertions.success(result)
    assert result.peak is not None
    assert result.peak < 48 * limits.MIB


def test_layers_with_the_windows_of_high_levels_are_verified_within_the_promised_memory(layout: Layout) -> None:
    layers = [
        zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=23)).compress(
            tar_layer({"noise": random.Random(number).randbytes(9 << 20)}, compression="")
        )
        for number in range(8)
    ]
    layout.image(layers, name="v1")
    result = measured("verify", "--deep", layout.path)
    assert result.code == 0, result.err
    assert result.peak is not None
    # Each of two threads keeps a window of 8 MiB, and now and then a third one is not let go of yet. Where layers are
    # unpacked, README promises 72 MiB.
    assert result.peak < 56 << 20
