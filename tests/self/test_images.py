"""The images that the tests generate are valid. No code of ocistream runs here."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path

import jsonschema
import pytest

from tests.images import DOCKER_LIST, OCI_INDEX, SMALLEST_LAYER, Layout, small_image, tar_layer, two_platforms
from tests.schemas import validate, validate_layout


@pytest.mark.parametrize("size", [SMALLEST_LAYER, 4095, 4096, 65_535, 65_600, 1 << 20, (9 << 20) + 1])
def test_a_random_layer_has_exactly_the_requested_size_and_is_a_valid_tar(layout: Layout, size: int) -> None:
    descriptor, diff_id = layout.random_layer(size, seed=size)
    content = layout.file(descriptor["digest"]).read_bytes()
    assert len(content) == descriptor["size"] == size
    assert f"sha256:{hashlib.sha256(content).hexdigest()}" == descriptor["digest"]
    inner = gzip.decompress(content)
    assert f"sha256:{hashlib.sha256(inner).hexdigest()}" == diff_id
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        (member,) = archive.getmembers()
        assert member.size > size * 0.99 - 2560


def test_a_random_layer_does_not_compress(layout: Layout) -> None:
    descriptor, _ = layout.random_layer(1 << 20)
    content = layout.file(descriptor["digest"]).read_bytes()
    assert len(zlib.compress(content, 9)) > len(content) * 0.99


def test_a_random_layer_that_is_too_small_is_refused(layout: Layout) -> None:
    with pytest.raises(ValueError, match="at least"):
        layout.random_layer(SMALLEST_LAYER - 1)


def test_images_are_reproducible_and_their_layers_differ(tmp_path: Path) -> None:
    first, again = (small_image(Layout(tmp_path / name), name="v1") for name in ("one", "two"))
    assert first == again
    layers = Layout(tmp_path / "one").image([5000, 5000])
    digests = {layer["digest"] for layer in Layout(tmp_path / "one").read(layers["digest"])["layers"]}
    assert len(digests) == 2


def test_generated_layouts_are_valid_by_the_schemas(layout: Layout) -> None:
    image = small_image(layout, name="small")
    inner = two_platforms(layout)
    layout.index([inner, image], name="nested")
    layout.artifact(b"sbom", subject=image, name="artifact")
    layout.image([b"", tar_layer({"a": b"b"}, compression="zstd"), 5000], name="odd", algorithm="sha512")
    assert validate_layout(layout.path) > 10


def test_an_image_with_docker_media_types_uses_no_others(layout: Layout) -> None:
    index = two_platforms(layout, media="docker")
    assert index["mediaType"] == DOCKER_LIST
    for child in layout.read(index["digest"])["manifests"]:
        manifest = layout.read(child["digest"])
        kinds = [manifest["mediaType"], manifest["config"]["mediaType"], manifest["layers"][0]["mediaType"]]
        assert all(kind.startswith("application/vnd.docker.") for kind in kinds)


def test_every_digest_of_a_sha512_image_is_sha512(layout: Layout) -> None:
    image = small_image(layout, algorithm="sha512")
    manifest = layout.read(image["digest"])
    for descriptor in [image, manifest["config"], *manifest["layers"]]:
        content = layout.file(descriptor["digest"]).read_bytes()
        assert descriptor["digest"] == f"sha512:{hashlib.sha512(content).hexdigest()}"


def test_a_layout_keeps_all_names(layout: Layout) -> None:
    image = small_image(layout, name="v1")
    layout.name(image, "v2", "latest")
    index = json.loads((layout.path / "index.json").read_bytes())
    names = [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in index["manifests"]]
    assert names == ["v1", "v2", "latest"]


@pytest.mark.parametrize(
    "document",
    [
        {"schemaVersion": 1, "manifests": []},
        {"schemaVersion": 2, "manifests": [{"mediaType": OCI_INDEX, "digest": "nonsense", "size": 1}]},
        {"schemaVersion": 2, "manifests": [{"mediaType": OCI_INDEX, "digest": "sha256:00"}]},
    ],
)
def test_the_schemas_refuse_invalid_documents(document: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate(document, "index")
