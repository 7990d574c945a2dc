"""When two images have the same name, each tool selects the one that ocistream names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.archives import items_of, tar_of
from tests.cli import assertions
from tests.images import Layout, digest_of, small_image
from tests.peers import Containerd, Dockerd, Tools
from tests.runner import ocistream

NAME = "registry.example.com/same-names/app:1"


@pytest.fixture
def ids(layout: Layout) -> tuple[list[str], list[str]]:
    """Return the digests and the image IDs of two images with the same name."""
    images = [small_image(layout, platform=platform) for platform in ("linux/amd64", "linux/arm64")]
    for image in images:
        layout.name(image, NAME)
    return [image["digest"] for image in images], [layout.read(image["digest"])["config"]["digest"] for image in images]


def test_skopeo_selects_the_first_one(layout: Layout, ids: tuple[list[str], list[str]], tools: Tools) -> None:
    raw = tools.run("skopeo", "inspect", "--raw", f"oci:{layout.path}:{NAME}").stdout
    assert digest_of(raw.encode()) == ids[0][0]


def test_containerd_selects_the_last_one(
    layout: Layout, ids: tuple[list[str], list[str]], containerd_daemon: Containerd, tmp_path: Path
) -> None:
    archive = tmp_path / "both.tar"
    archive.write_bytes(tar_of(items_of(layout)))
    containerd_daemon.ctr("image", "import", "--no-unpack", archive)
    assert ids[0][1] in containerd_daemon.ctr("image", "ls", f"name=={NAME}")


def test_docker_selects_the_last_one(
    layout: Layout, ids: tuple[list[str], list[str]], docker_daemon: Dockerd, tmp_path: Path
) -> None:
    archive = tmp_path / "both.tar"
    assertions.success(ocistream("copy", f"oci:{layout.path}", f"docker-archive:{archive}", "--platform=all"))
    docker_daemon.docker("load", stdin=archive)
    (image,) = json.loads(docker_daemon.docker("image", "inspect", NAME).stdout)
    assert image["Id"] == ids[1][1]
