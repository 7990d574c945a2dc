"""The images that the tests generate are valid. No code of ocistream runs here."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zlib

import jsonschema
import pytest

from tests.images import DOCKER_LIST, OCI_INDEX, SMALLEST_LAYER, Layout, small_image, two_platforms
from tests.schemas import validate


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
