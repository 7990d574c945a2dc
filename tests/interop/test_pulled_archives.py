"""What `ocistream pull` writes, read by the specification's schemas and by the tools of others."""

from __future__ import annotations

import filecmp
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.debian_image import DebianImage
from tests.images import Descriptor, Layout, digest_of, small_image, two_platforms
from tests.peers import Containerd, Dockerd, DockerRegistry, Tools
from tests.registry_http import seed
from tests.runner import ocistream
from tests.schemas import validate_layout


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    return small_image(layout)


@pytest.fixture
def archive(registry: DockerRegistry, layout: Layout, image: Descriptor, tmp_path: Path) -> Path:
    """Return a small image as pulled into a file: team/app:v1 of `registry`."""
    seed(layout, image, registry.host, "team/app", "v1")
    return pulled(f"{registry.host}/team/app:v1", to=tmp_path / "pulled.tar")


@pytest.fixture
def unpacked(archive: Path, tmp_path: Path) -> Path:
    """Return that file as `tar` unpacks it."""
    return untar(archive, tmp_path / "unpacked")


def pulled(*images: str, to: Path, options: tuple[str, ...] = ()) -> Path:
    result = ocistream("pull", *options, *images, "-o", to)
    assert result.code == 0, result.err
    return to


def untar(archive: Path, folder: Path) -> Path:
    folder.mkdir()
    subprocess.run(["tar", "--extract", "--file", archive, "--directory", folder], check=True)
    return folder


# -- by the specification ---------------------------------------------------------------------------------


def test_its_documents_are_valid_and_its_blobs_are_those_of_the_image(
    debian_archive: Path, debian_image: DebianImage, tmp_path: Path
) -> None:
    folder = untar(debian_archive, tmp_path / "unpacked")
    assert validate_layout(folder) == 4  # oci-layout, index.json, the manifest, the config
    digest = debian_image.manifest["digest"]
    document = debian_image.layout.read(digest)
    for blob in [digest, document["config"]["digest"], *(layer["digest"] for layer in document["layers"])]:
        assert filecmp.cmp(folder / f"blobs/{blob.replace(':', '/')}", debian_image.layout.file(blob), shallow=False)


def test_a_directory_is_valid_too(registry: DockerRegistry, layout: Layout, image: Descriptor, tmp_path: Path) -> None:
    seed(layout, image, registry.host, "team/app", "v1")
    folder = pulled(f"{registry.host}/team/app:v1", to=tmp_path / "folder", options=("--format", "oci"))
    assert validate_layout(folder) == 4


def test_an_index_is_valid_with_all_its_images(registry: DockerRegistry, layout: Layout, tmp_path: Path) -> None:
    seed(layout, two_platforms(layout), registry.host, "app", "both")
    archive = pulled(f"{registry.host}/app:both", to=tmp_path / "both.tar", options=("--platform", "all"))
    assert validate_layout(untar(archive, tmp_path / "unpacked")) == 7


def test_everything_small_comes_first(debian_archive: Path, debian_image: DebianImage) -> None:
    listed = subprocess.run(["tar", "--list", "--file", debian_archive], capture_output=True, text=True, check=True)
    document = debian_image.layout.read(debian_image.manifest["digest"])
    blobs = [debian_image.manifest, document["config"], *document["layers"]]
    paths = [f"blobs/{blob['digest'].replace(':', '/')}" for blob in blobs]
    assert listed.stdout.splitlines() == ["oci-layout", "index.json", "manifest.json", *paths]


def test_a_second_pull_gives_the_same_bytes_to_a_file_and_to_stdout(
    debian_name: str, debian_archive: Path, tmp_path: Path
) -> None:
    again = pulled(debian_name, to=tmp_path / "again.tar", options=("--jobs", "1"))
    assert filecmp.cmp(debian_archive, again, shallow=False)
    piped = tmp_path / "piped.tar"
    assert ocistream("pull", debian_name, stdout=piped).code == 0
    assert filecmp.cmp(debian_archive, piped, shallow=False)


# -- by the tools of others -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ":v1"])
def test_skopeo_copies_it_into_a_directory_unchanged(
    name: str, archive: Path, image: Descriptor, tools: Tools, tmp_path: Path
) -> None:
    tools.run("skopeo", "copy", f"oci-archive:{archive}{name}", f"dir:{tmp_path / 'copied'}")
    manifest = (tmp_path / "copied/manifest.json").read_bytes()
    assert digest_of(manifest) == image["digest"]
    for layer in json.loads(manifest)["layers"]:
        assert digest_of((tmp_path / "copied" / layer["digest"][7:]).read_bytes()) == layer["digest"]


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


def test_skopeo_picks_a_platform_of_an_index(
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


def test_umoci_unpacks_it(unpacked: Path, tools: Tools, tmp_path: Path) -> None:
    tools.run("umoci", "unpack", "--image", f"{unpacked}:v1", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/etc/motd").read_bytes() == b"hello\n"


def test_podman_loads_it_under_its_full_name(
    archive: Path, image: Descriptor, registry: DockerRegistry, tools: Tools
) -> None:
    tools.run("podman", "load", "--input", archive)
    (listed,) = json.loads(tools.run("podman", "images", "--format=json").stdout)
    assert listed["Names"] == [f"{registry.host}/team/app:v1"]
    assert listed["Digest"] == image["digest"]


def test_buildah_pulls_it_unchanged(archive: Path, image: Descriptor, tools: Tools) -> None:
    tools.run("buildah", "pull", f"oci-archive:{archive}")
    (listed,) = json.loads(tools.run("buildah", "images", "--json").stdout)
    assert listed["digest"] == image["digest"]


def test_containerd_imports_it_under_its_full_name(
    archive: Path, image: Descriptor, registry: DockerRegistry, containerd_daemon: Containerd
) -> None:
    name = f"{registry.host}/team/app:v1"
    containerd_daemon.ctr("images", "import", "--snapshotter=native", archive)
    listed = containerd_daemon.ctr("images", "check", "--snapshotter=native", f"name=={name}").splitlines()[1].split()
    assert listed[0] == name
    assert listed[2] == image["digest"]
    assert "complete" in listed


# test_archives_read_by_tools.py has Docker load and run a small image.
@pytest.mark.nightly
def test_docker_loads_the_debian_image_and_runs_it(
    debian_name: str, debian_archive: Path, docker_daemon: Dockerd
) -> None:
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


def test_docker_loads_the_usual_platform_of_an_index(
    registry: DockerRegistry, layout: Layout, docker_daemon: Dockerd, tmp_path: Path
) -> None:
    name = f"{registry.host}/platforms:both"
    seed(layout, two_platforms(layout), registry.host, "platforms", "both")
    archive = pulled(name, to=tmp_path / "both.tar", options=("--platform", "all"))
    docker_daemon.docker("load", stdin=archive)
    assert docker_daemon.docker("inspect", "--format={{.Architecture}}", name).stdout.strip() == "amd64"


def test_pythons_tarfile_reads_it_without_a_warning(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        assert all(member.isreg() and member.mode == 0o644 for member in tar)


def test_push_takes_what_tar_unpacked(unpacked: Path, image: Descriptor, registry: DockerRegistry) -> None:
    pushed = ocistream("push", f"{registry.host}/again:v1", "-i", unpacked)
    assert pushed.code == 0, pushed.err
    assert registry.tags("again") == {"v1": image["digest"]}
