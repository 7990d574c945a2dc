"""Other tools read every kind of archive that ocistream writes, and container engines run the image."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.cli import assertions
from tests.images import Descriptor, Layout
from tests.interop.image_contents import (
    Contents,
    diff_id_of,
    entries_of,
    in_layout,
)
from tests.interop.program_image import GREETING, podman_run, program_image
from tests.peers import Containerd, Dockerd, Tools, docker_registry
from tests.registry_http import seed
from tests.runner import ocistream

#: The options of `pull` for each kind.
KINDS: Final = {
    "oci-archive": (),
    "oci-archive-zstd": ("--compress=zstd",),
    "oci-archive-none": ("--compress=none",),
    "docker-archive": ("--format=docker-archive",),
}
#: The kind whose image is run: the unpacked layers are the same for each kind.
RUN: Final = "oci-archive"
#: The kinds for tools that report zstd as an unknown compression.
WITHOUT_ZSTD: Final = [kind for kind in KINDS if kind != "oci-archive-zstd"]


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Layout, Descriptor, str]]:
    """Return an image, and its repository in a registry, with a tag for each kind."""
    layout = Layout(tmp_path_factory.mktemp("seeded"))
    image = program_image(layout, name="v1", mark="for others")
    with docker_registry(tmp_path_factory.mktemp("registry")) as registry:
        for kind in KINDS:
            seed(layout, image, registry.host, "team/app", kind)
        yield layout, image, f"{registry.host}/team/app"


@pytest.fixture(scope="module")
def pulled(
    seeded: tuple[Layout, Descriptor, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, str]]:
    """Return a function that returns the archive of a kind, pulled once, and the name of its image."""
    folder = tmp_path_factory.mktemp("pulled")

    def pull(kind: str) -> tuple[Path, str]:
        archive, name = folder / f"{kind}.tar", f"{seeded[2]}:{kind}"
        if not archive.exists():
            assertions.success(ocistream("pull", *KINDS[kind], name, "-o", archive))
        return archive, name

    return pull


Pulled = Callable[[str], tuple[Path, str]]


@pytest.fixture(scope="module")
def made(seeded: tuple[Layout, Descriptor, str]) -> Contents:
    """Return the contents of the image."""
    return in_layout(seeded[0].path)


def transport(kind: str) -> str:
    """Return the name of a kind in containers-transports(5)."""
    return "docker-archive" if kind == "docker-archive" else "oci-archive"


def digest_in(kind: str, archive: Path) -> str | None:
    """Return the digest that an archive's index names; a docker-archive has none."""
    return None if kind == "docker-archive" else str(entries_of(archive)[0]["digest"])


# tests/cli/test_pull.py, test_docker_archive.py and test_recompression.py check the contents of each archive.


# -- Docker 20.10 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITHOUT_ZSTD)
def test_docker_loads_and_runs_an_image_under_its_full_name(
    kind: str, pulled: Pulled, docker_daemon: Dockerd, made: Contents
) -> None:
    archive, name = pulled(kind)
    try:
        assert docker_daemon.docker("load", stdin=archive).stdout.strip() == f"Loaded image: {name}"
        (seen,) = json.loads(docker_daemon.docker("image", "inspect", name).stdout)
        assert (seen["Id"], seen["RootFS"]["Layers"]) == (made.config, made.diff_ids)
        if kind == "docker-archive":
            shown = docker_daemon.docker("images", "--no-trunc", "--format={{.ID}}", name).stdout.strip()
            assert ocistream("verify", archive).lines()[0] == f"{name} image ID {shown}"
        if kind == RUN:
            assert docker_daemon.docker("run", "--rm", "--network=none", name).stdout == GREETING
    finally:
        # Docker does not read layers that it already has.
        docker_daemon.docker("image", "rm", name, check=False)


def test_docker_loads_zstd_layers_since_version_23(pulled: Pulled, docker_daemon: Dockerd) -> None:
    """For older versions, use `--compress none` or `--format docker-archive`."""
    version = docker_daemon.docker("version", "--format={{.Server.Version}}").stdout
    can = int(version.split(".")[0]) >= 23
    archive, name = pulled("oci-archive-zstd")
    loaded = docker_daemon.docker("load", stdin=archive, check=False)
    assert (loaded.returncode == 0) == can, loaded.stderr
    assert can or "invalid tar header" in loaded.stderr
    assert (docker_daemon.docker("image", "inspect", name, check=False).returncode == 0) == can


# -- containerd -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_containerd_imports_and_runs_an_image_under_its_full_name(
    kind: str, pulled: Pulled, containerd_daemon: Containerd
) -> None:
    archive, name = pulled(kind)
    try:
        containerd_daemon.ctr("images", "import", "--snapshotter=native", archive)
        check = containerd_daemon.ctr("images", "check", "--snapshotter=native", f"name=={name}")
        listed = check.splitlines()[1].split()
        assert listed[0] == name
        assert "complete" in listed
        # containerd makes a manifest for a docker-archive.
        assert listed[2] == (digest_in(kind, archive) or listed[2])
        if kind == RUN:
            assert containerd_daemon.ctr("run", "--rm", "--snapshotter=native", name, "of-archive") == GREETING
    finally:
        containerd_daemon.ctr("images", "rm", "--sync", name)


# -- podman, buildah, skopeo, umoci -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_podman_loads_and_runs_an_image_under_its_full_name(
    kind: str, pulled: Pulled, tools: Tools, made: Contents
) -> None:
    archive, name = pulled(kind)
    tools.run("podman", "load", "--input", archive)
    (seen,) = json.loads(tools.run("podman", "image", "inspect", name).stdout)
    assert seen["RepoTags"] == [name]
    assert (f"sha256:{seen['Id']}", seen["RootFS"]["Layers"]) == (made.config, made.diff_ids)
    assert seen["Digest"] == (digest_in(kind, archive) or seen["Digest"])
    if kind == RUN:
        assert podman_run(tools, name) == GREETING


@pytest.mark.parametrize("kind", KINDS)
def test_buildah_pulls_an_image_and_builds_on_it_under_its_full_name(
    kind: str, pulled: Pulled, tools: Tools, made: Contents
) -> None:
    archive, name = pulled(kind)
    pulled_id = tools.run("buildah", "pull", "--quiet", f"{transport(kind)}:{archive}").stdout.strip()
    assert f"sha256:{pulled_id}" == made.config
    container = tools.run("buildah", "from", "--pull-never", name).stdout.strip()
    seen = json.loads(tools.run("buildah", "inspect", container).stdout)
    assert seen["FromImage"] == name
    assert seen["OCIv1"]["rootfs"]["diff_ids"] == made.diff_ids
    folder = Path(tools.run("buildah", "mount", container).stdout.strip())
    try:
        assert (folder / "etc/motd").read_text() == GREETING
    finally:
        tools.run("buildah", "umount", container)


@pytest.mark.parametrize("kind", KINDS)
def test_skopeo_copies_an_image_by_its_name(
    kind: str, pulled: Pulled, tools: Tools, made: Contents, tmp_path: Path
) -> None:
    archive, name = pulled(kind)
    # In an OCI archive, skopeo uses the tag as the name; the full name is for containerd.
    called = name if kind == "docker-archive" else kind
    tools.run("skopeo", "copy", f"{transport(kind)}:{archive}:{called}", f"dir:{tmp_path / 'copied'}")
    manifest = json.loads((tmp_path / "copied/manifest.json").read_bytes())
    assert manifest["config"]["digest"] == made.config
    layers = [(tmp_path / "copied" / layer["digest"][7:]).read_bytes() for layer in manifest["layers"]]
    assert [diff_id_of(layer) for layer in layers] == made.diff_ids


@pytest.mark.parametrize("kind", WITHOUT_ZSTD)
def test_umoci_unpacks_a_layout_copied_from_an_archive(kind: str, pulled: Pulled, tools: Tools, tmp_path: Path) -> None:
    layout = layout_of(kind, pulled, tmp_path)
    tools.run("umoci", "unpack", "--image", f"{layout}:v1", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/etc/motd").read_text() == GREETING


def test_umoci_does_not_unpack_zstd_layers_until_they_are_recompressed(
    pulled: Pulled, tools: Tools, tmp_path: Path
) -> None:
    layout = layout_of("oci-archive-zstd", pulled, tmp_path)
    refused = tools.run("umoci", "unpack", "--image", f"{layout}:v1", tmp_path / "bundle", check=False)
    assert refused.returncode != 0
    assert "not correct mediatype" in refused.stderr + refused.stdout
    assertions.success(ocistream("copy", "--compress=gzip", f"oci:{layout}:v1", f"oci:{tmp_path / 'gzip'}:v1"))
    tools.run("umoci", "unpack", "--image", f"{tmp_path / 'gzip'}:v1", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/etc/motd").read_text() == GREETING


def layout_of(kind: str, pulled: Pulled, folder: Path) -> Path:
    archive, _ = pulled(kind)
    assertions.success(ocistream("copy", f"{transport(kind)}:{archive}", f"oci:{folder / 'layout'}:v1"))
    return folder / "layout"
