"""An image ID (the digest of a config, which `docker images` shows) instead of the name or digest of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.archives import items_of, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Give
from tests.docker_archives import Entry, Saved, archive_of, hex_of, of_docker, of_docker_25, saved
from tests.faulty_registry import FaultyRegistry
from tests.images import Layout, tar_layer
from tests.registry_http import manifest
from tests.runner import Argument, Result, ocistream

Push = Callable[..., Result]


@pytest.fixture
def images(layout: Layout) -> list[Saved]:
    """Return a tagged image, and one without a tag."""
    found = []
    for number, tags in enumerate((["app:1"], [])):
        image = layout.image([tar_layer({"number": str(number).encode()})], name=f"registry.example.com/app:{number}")
        found.append(saved(layout, image, *tags))
    return found


@pytest.fixture(params=["file", "pipe"])
def push(request: pytest.FixtureRequest, served: FaultyRegistry, give: Give) -> Push:
    """Return a function that pushes an archive to app:1, from a file or a pipe."""

    def run(archive: bytes, *options: Argument, prefix: str = "") -> Result:
        return give(archive, request.param, "push", f"{served.host}/app:1", *options, prefix=prefix)

    return run


def image_id(image: Saved) -> str:
    return f"sha256:{hex_of(image.config)}"


@pytest.mark.parametrize(("prefix", "make"), [("", of_docker), ("docker-archive:", of_docker_25)])
def test_images_of_a_docker_archive_can_be_selected_by_image_id(
    prefix: str, make: Callable[[Sequence[Saved]], list[Entry]], images: list[Saved], push: Push, served: FaultyRegistry
) -> None:
    for image in images:
        assertions.success(push(archive_of(make(images)), "--image", image_id(image), prefix=prefix))
        assert image_id(image).encode() in (manifest(served.host, "app", "1") or b"")


def test_in_an_oci_archive_the_error_names_the_image(images: list[Saved], push: Push, layout: Layout) -> None:
    wanted = image_id(images[0])
    said = f"{wanted} is an image ID; use the name or digest instead"
    result = push(archive_of(of_docker_25(images)), "--image", wanted, "-q")
    assertions.failure(result, 4, f"{said}: docker.io/library/app:1")
    result = push(tar_of(items_of(layout)), "--image", wanted, "-q")
    assertions.failure(result, 4, f"{said}: registry.example.com/app:0")


@pytest.mark.uncounted
def test_an_image_that_only_manifest_json_lists_is_named_by_its_digest(images: list[Saved], tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar"
    archive.write_bytes(archive_of(of_docker_25(images)))
    (digest,) = [line.removeprefix("-@") for line in ocistream("verify", archive).lines() if line.startswith("-@")]
    result = ocistream("copy", f"oci-archive:{archive}:{image_id(images[1])}", tmp_path / "out.tar", "-q")
    assertions.failure(result, 4, f"is an image ID; use the name or digest instead: {digest}")
    succeed("copy", f"oci-archive:{archive}:{digest}", tmp_path / "out.tar")


def test_a_platform_of_an_index_is_named_by_the_index(layout: Layout, served: FaultyRegistry) -> None:
    children = [layout.image([], platform=platform) for platform in ("linux/amd64", "linux/arm64")]
    layout.name(layout.index(children), "registry.example.com/both:1")
    config = layout.read(children[1]["digest"])["config"]["digest"]
    result = ocistream("push", "-i", layout.path, f"{served.host}/app:1", "--image", config)
    assertions.failure(
        result, 4, f"{config} is an image ID; use the name or digest instead: registry.example.com/both:1"
    )


def test_any_other_digest_is_not_called_an_image_id(images: list[Saved], push: Push) -> None:
    result = push(archive_of(of_docker_25(images)), "--image", f"sha256:{'0' * 64}", "-q")
    assertions.failure(result, 4, f" has no image 'sha256:{'0' * 64}'", "its images are: docker.io/library/app:1")
    assert "image ID" not in result.err
