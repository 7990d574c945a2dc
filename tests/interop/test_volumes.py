"""Volumes are pushed to a docker-registry and read by other tools: each is a layout that lacks some blobs."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path
from typing import Final

import pytest

from tests.archives import files_in, unpack
from tests.cli import assertions
from tests.images import Descriptor, Layout, tar_layer
from tests.peers import DockerRegistry, Tools, docker_registry
from tests.registry_http import manifest_digest, seed
from tests.runner import Argument, ocistream
from tests.schemas import validate

MIB: Final = 1 << 20
SIZE: Final = 4 * MIB
#: The second layer starts in the first volume and ends in the third.
LAYERS: Final = [2 * MIB, 7 * MIB, MIB]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, Descriptor]:
    """Return a layout and its image."""
    layout = Layout(tmp_path_factory.mktemp("made"))
    return layout, layout.image([*LAYERS, tar_layer({"etc/motd": b"hello\n"})])


@pytest.fixture(scope="module")
def volumes(image: tuple[Layout, Descriptor], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the volumes of the image, pulled from a docker-registry."""
    folder = tmp_path_factory.mktemp("volumes")
    with docker_registry(tmp_path_factory.mktemp("source")) as source:
        seed(*image, source.host, "app", "1")
        argv: list[Argument] = ["-o", folder / "app.%03d.tar", "--split", str(SIZE)]
        assertions.success(ocistream("pull", f"{source.host}/app:1", *argv))
    paths = sorted(folder.iterdir())
    assert len(paths) == 3
    return paths


def test_all_volumes_push_the_image_to_a_docker_registry(
    volumes: list[Path], registry: DockerRegistry, image: tuple[Layout, Descriptor]
) -> None:
    # tests/cli/test_volumes.py tests every order.
    inputs = [argument for number in (1, 2, 0) for argument in ("-i", volumes[number])]
    assertions.success(ocistream("push", *inputs, f"{registry.host}/app:1"))
    assert manifest_digest(registry.host, "app", "1") == image[1]["digest"]


def test_three_runs_push_a_layer_to_a_docker_registry(
    volumes: list[Path], registry: DockerRegistry, image: tuple[Layout, Descriptor], tools: Tools, tmp_path: Path
) -> None:
    for path, code in zip(volumes, (10, 10, 0), strict=True):
        pushed = ocistream("push", "-i", path, f"{registry.host}/app:1")
        assert pushed.code == code, pushed.err
    assert manifest_digest(registry.host, "app", "1") == image[1]["digest"]
    tools.run("skopeo", "copy", f"docker://{registry.host}/app:1", f"dir:{tmp_path / 'copied'}")
    assert sorted(path.stat().st_size for path in (tmp_path / "copied").iterdir())[-2:] == [2 * MIB, 7 * MIB]


def test_each_volume_is_a_valid_layout(volumes: list[Path]) -> None:
    for path in volumes:
        files = files_in(path.read_bytes())
        validate(files["oci-layout"], "layout")
        validate(files["index.json"], "index")
        for entry in json.loads(files["index.json"])["manifests"]:
            validate(files["blobs/" + entry["digest"].replace(":", "/")], "manifest")


def test_sha256sum_reads_the_digests_of_parts(volumes: list[Path], tmp_path: Path) -> None:
    for path in volumes:
        with tarfile.open(path) as tar:
            unpack(tar, tmp_path / path.name)
        for checksum in (tmp_path / path.name).rglob("*.sha256"):
            subprocess.run(["sha256sum", "--check", checksum], cwd=tmp_path / path.name, check=True)
    assert len(list(tmp_path.rglob("*.sha256"))) == 3


def test_skopeo_and_umoci_read_the_manifest_of_each_volume(volumes: list[Path], tools: Tools, tmp_path: Path) -> None:
    for path in volumes:
        shown = tools.run("skopeo", "inspect", "--raw", f"oci-archive:{path}:1").stdout
        assert json.loads(shown)["layers"][1]["size"] == 7 * MIB
        with tarfile.open(path) as tar:
            unpack(tar, tmp_path / path.name)
        assert "1" in tools.run("umoci", "list", "--layout", tmp_path / path.name).stdout


def test_skopeo_copies_the_image_of_volumes_unpacked_into_one_folder(
    registry: DockerRegistry, layout: Layout, tools: Tools, tmp_path: Path
) -> None:
    seed(layout, layout.image([2 * MIB, 3 * MIB, MIB]), registry.host, "whole", "1")
    assertions.success(ocistream("pull", f"{registry.host}/whole:1", "-o", tmp_path / "v.%d", "--split", "3600k"))
    assert len(list(tmp_path.glob("v.*"))) == 3
    for path in tmp_path.glob("v.*"):
        with tarfile.open(path) as tar:
            unpack(tar, tmp_path / "together")
    tools.run("skopeo", "copy", f"oci:{tmp_path / 'together'}:1", f"dir:{tmp_path / 'copied'}")
