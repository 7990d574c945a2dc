"""The archives and layouts of `ocistream pull` are valid by the specification's schemas, and other tools read them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.images import Layout, digest_of, small_image, two_platforms
from tests.peers import Dockerd, DockerRegistry, Tools
from tests.registry_http import seed
from tests.runner import ocistream
from tests.schemas import validate_layout


def pulled(*images: str, to: Path, options: tuple[str, ...] = ()) -> Path:
    assertions.success(ocistream("pull", *options, *images, "-o", to))
    return to


def untar(archive: Path, folder: Path) -> Path:
    folder.mkdir()
    subprocess.run(["tar", "--extract", "--file", archive, "--directory", folder], check=True)
    return folder


# -- the specification's schemas --------------------------------------------------------------------------


def test_an_archive_unpacked_by_tar_is_a_valid_layout_and_can_be_pushed(
    registry: DockerRegistry, layout: Layout, tmp_path: Path
) -> None:
    index = two_platforms(layout)
    seed(layout, index, registry.host, "app", "both")
    archive = pulled(f"{registry.host}/app:both", to=tmp_path / "both.tar", options=("--platform", "all"))
    folder = untar(archive, tmp_path / "unpacked")
    # oci-layout, index.json, and an index with two manifests and two configs.
    assert validate_layout(folder) == 7
    blobs = {path.name: path.read_bytes() for path in (folder / "blobs/sha256").iterdir()}
    assert blobs == {path.name: path.read_bytes() for path in (layout.path / "blobs/sha256").iterdir()}
    assertions.success(ocistream("push", f"{registry.host}/again:v1", "-i", folder))
    assert registry.tags("again") == {"v1": index["digest"]}


def test_a_pulled_directory_is_a_valid_layout(registry: DockerRegistry, layout: Layout, tmp_path: Path) -> None:
    seed(layout, small_image(layout), registry.host, "team/app", "v1")
    folder = pulled(f"{registry.host}/team/app:v1", to=tmp_path / "folder", options=("--format", "oci"))
    # oci-layout, index.json, the manifest, the config
    assert validate_layout(folder) == 4


# -- other tools ------------------------------------------------------------------------------------------


# In test_archives_read_by_tools.py every tool reads archives of one image.


def test_skopeo_copies_each_of_several_images_by_its_tag(
    registry: DockerRegistry, layout: Layout, tools: Tools, tmp_path: Path
) -> None:
    images = {tag: small_image(layout, config={"Cmd": [tag]}) for tag in ("one", "two")}
    for tag, image in images.items():
        seed(layout, image, registry.host, "app", tag)
    archive = pulled(*(f"{registry.host}/app:{tag}" for tag in images), to=tmp_path / "several.tar")
    for tag, image in images.items():
        tools.run("skopeo", "copy", f"oci-archive:{archive}:{tag}", f"oci:{tmp_path / tag}:{tag}")
        (entry,) = json.loads((tmp_path / tag / "index.json").read_bytes())["manifests"]
        assert entry["digest"] == image["digest"]


def test_skopeo_selects_a_platform_of_an_index(
    registry: DockerRegistry, layout: Layout, tools: Tools, tmp_path: Path
) -> None:
    index = two_platforms(layout)
    seed(layout, index, registry.host, "app", "both")
    archive = pulled(f"{registry.host}/app:both", to=tmp_path / "both.tar", options=("--platform", "all"))
    tools.run(
        "skopeo",
        "--override-arch=arm64",
        "--override-variant=v8",
        "copy",
        f"oci-archive:{archive}",
        f"dir:{tmp_path / 'arm'}",
    )
    arm = layout.read(index["digest"])["manifests"][1]
    assert digest_of((tmp_path / "arm/manifest.json").read_bytes()) == arm["digest"]


# In test_archives_read_by_tools.py Docker loads and runs a small image.
@pytest.mark.nightly
def test_docker_loads_and_runs_the_debian_image(debian_name: str, debian_archive: Path, docker_daemon: Dockerd) -> None:
    loaded = docker_daemon.docker("load", stdin=debian_archive).stdout
    assert loaded.strip() == f"Loaded image: {debian_name}"
    version = docker_daemon.docker("run", "--rm", "--network=none", debian_name).stdout
    assert version.split(".")[0].isdigit()


def test_docker_loads_several_images_each_under_its_name(
    registry: DockerRegistry, layout: Layout, docker_daemon: Dockerd, tmp_path: Path
) -> None:
    names = [f"{registry.host}/several/{name}:v1" for name in ("app", "web")]
    for name in ("app", "web"):
        seed(layout, small_image(layout, config={"Cmd": [name]}), registry.host, f"several/{name}", "v1")
    archive = pulled(*names, to=tmp_path / "several.tar")
    docker_daemon.docker("load", stdin=archive)
    commands = [docker_daemon.docker("inspect", "--format={{json .Config.Cmd}}", name).stdout for name in names]
    assert [json.loads(command) for command in commands] == [["app"], ["web"]]


def test_docker_loads_its_own_platform_of_an_index(
    registry: DockerRegistry, layout: Layout, docker_daemon: Dockerd, tmp_path: Path
) -> None:
    name = f"{registry.host}/platforms:both"
    seed(layout, two_platforms(layout), registry.host, "platforms", "both")
    archive = pulled(name, to=tmp_path / "both.tar", options=("--platform", "all"))
    docker_daemon.docker("load", stdin=archive)
    assert docker_daemon.docker("inspect", "--format={{.Architecture}}", name).stdout.strip() == "amd64"
