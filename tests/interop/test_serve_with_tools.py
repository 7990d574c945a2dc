"""Other clients use the embedded registry: skopeo, podman, buildah, and Docker's daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocistream.serve import AccessLogEntry, Registry
from tests.debian_image import DebianImage
from tests.images import DOCKER_LIST, Layout, small_image, two_platforms
from tests.peers import Dockerd, Tools
from tests.registry_http import manifest_digest, seed, tags
from tests.schemas import validate_layout


@pytest.fixture
def access_log() -> list[AccessLogEntry]:
    return []


@pytest.fixture
def served(tmp_path: Path, access_log: list[AccessLogEntry]) -> Iterator[Registry]:
    with Registry(tmp_path / "served", log=access_log.append) as registry:
        yield registry


def answered(access_log: list[AccessLogEntry], method: str) -> set[int]:
    """Return the status codes of the responses to requests with one method."""
    return {entry.status for entry in access_log if entry.method == method}


def files_below(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


class TestSkopeo:
    def test_skopeo_pushes_and_pulls_the_same_digest(
        self, served: Registry, tools: Tools, layout: Layout, tmp_path: Path, access_log: list[AccessLogEntry]
    ) -> None:
        image = small_image(layout, name="v1")
        tools.run("skopeo", "copy", f"oci:{layout.path}:v1", f"docker://{served.host}/team/app:v1")
        assert manifest_digest(served.host, "team/app", "v1") == image["digest"]
        tools.run("skopeo", "copy", f"docker://{served.host}/team/app:v1", f"oci:{tmp_path / 'back'}:v1")
        assert files_below(tmp_path / "back/blobs") == files_below(layout.path / "blobs")
        assert answered(access_log, "PATCH") == {202}
        assert answered(access_log, "PUT") == {201}

    @pytest.mark.parametrize("media", ["oci", "docker"])
    def test_skopeo_pushes_and_pulls_an_index_with_all_its_platforms(
        self, served: Registry, tools: Tools, layout: Layout, tmp_path: Path, media: str
    ) -> None:
        index = two_platforms(layout, name="both", media=media)  # type: ignore[arg-type]
        copy = ("skopeo", "copy", "--all", "--preserve-digests")
        if media == "oci":
            tools.run(*copy, f"oci:{layout.path}:both", f"docker://{served.host}/app:both")
        else:
            # skopeo does not copy a Docker manifest list from a layout.
            seed(layout, index, served.host, "app", "both")
            tools.run(*copy, f"docker://{served.host}/app:both", f"docker://{served.host}/app:copy")
            assert manifest_digest(served.host, "app", "copy") == index["digest"]
        assert manifest_digest(served.host, "app", "both") == index["digest"]
        tools.run(*copy, f"docker://{served.host}/app:both", f"dir:{tmp_path / 'back'}")
        back = json.loads((tmp_path / "back/manifest.json").read_bytes())
        assert [entry["digest"] for entry in back["manifests"]] == [
            entry["digest"] for entry in layout.read(index["digest"])["manifests"]
        ]
        assert (back["mediaType"] == DOCKER_LIST) == (media == "docker")
        index_json = json.loads((served.layout.path / "index.json").read_bytes())
        assert all("annotations" in entry for entry in index_json["manifests"])

    def test_a_pushed_image_is_a_valid_layout_that_skopeo_reads(
        self, served: Registry, tools: Tools, layout: Layout, tmp_path: Path
    ) -> None:
        small_image(layout, name="v1")
        tools.run("skopeo", "copy", f"oci:{layout.path}:v1", f"docker://{served.host}/app:v1")
        served.stop()
        assert validate_layout(served.layout.path) > 0
        tools.run("skopeo", "copy", f"oci:{served.layout.path}:v1", f"oci:{tmp_path / 'back'}:v1")

    def test_skopeo_lists_inspects_and_deletes(self, served: Registry, tools: Tools, layout: Layout) -> None:
        image = small_image(layout)
        seed(layout, image, served.host, "app", "v1")
        seed(layout, small_image(layout, media="docker"), served.host, "app", "v2")
        listed = json.loads(tools.run("skopeo", "list-tags", f"docker://{served.host}/app").stdout)
        assert listed["Tags"] == ["v1", "v2"]
        seen = json.loads(tools.run("skopeo", "inspect", f"docker://{served.host}/app:v1").stdout)
        assert seen["Digest"] == image["digest"]
        tools.run("skopeo", "delete", f"docker://{served.host}/app:v1")
        assert tags(served.host, "app") == ["v2"]

    def test_skopeo_mounts_blobs_of_another_repository(
        self, served: Registry, tools: Tools, layout: Layout, access_log: list[AccessLogEntry]
    ) -> None:
        seed(layout, small_image(layout), served.host, "app", "v1")
        access_log.clear()
        tools.run("skopeo", "copy", f"docker://{served.host}/app:v1", f"docker://{served.host}/copy:v1")
        assert tags(served.host, "copy") == ["v1"]
        assert answered(access_log, "PATCH") == set()

    @pytest.mark.nightly
    def test_skopeo_pushes_the_debian_image(self, served: Registry, tools: Tools, debian_image: DebianImage) -> None:
        digest = debian_image.manifest["digest"]
        source = f"oci:{debian_image.layout.path}:debian"
        tools.run("skopeo", "copy", source, f"docker://{served.host}/debian:test")
        assert manifest_digest(served.host, "debian", "test") == digest


class TestPodman:
    def test_podman_pulls_and_pushes(self, served: Registry, tools: Tools, layout: Layout) -> None:
        seed(layout, small_image(layout), served.host, "app", "v1")
        tools.run("podman", "pull", f"{served.host}/app:v1")
        tools.run("podman", "push", f"{served.host}/app:v1", f"{served.host}/team/copy:v1")
        tools.run("podman", "pull", f"{served.host}/team/copy:v1")
        assert tags(served.host, "team/copy") == ["v1"]

    def test_buildah_pushes_an_image_that_it_built(self, served: Registry, tools: Tools, layout: Layout) -> None:
        seed(layout, small_image(layout), served.host, "app", "v1")
        container = tools.run("buildah", "from", f"{served.host}/app:v1").stdout.strip()
        tools.run("buildah", "config", "--label", "built=yes", container)
        tools.run("buildah", "commit", container, f"docker://{served.host}/built:v1")
        seen = json.loads(tools.run("skopeo", "inspect", f"docker://{served.host}/built:v1").stdout)
        assert seen["Labels"] == {"built": "yes", "io.buildah.version": seen["Labels"]["io.buildah.version"]}


class TestDocker:
    def test_docker_pulls_and_pushes(
        self, served: Registry, docker_daemon: Dockerd, layout: Layout, access_log: list[AccessLogEntry]
    ) -> None:
        seed(layout, small_image(layout), served.host, "app", "v1")
        docker_daemon.docker("pull", f"{served.host}/app:v1")
        docker_daemon.docker("tag", f"{served.host}/app:v1", f"{served.host}/team/copy:v1")
        docker_daemon.docker("push", f"{served.host}/team/copy:v1")
        assert tags(served.host, "team/copy") == ["v1"]
        docker_daemon.docker("rmi", f"{served.host}/app:v1", f"{served.host}/team/copy:v1")
        docker_daemon.docker("pull", f"{served.host}/team/copy:v1")
        assert {entry.status for entry in access_log} <= {200, 201, 202, 400, 404}

    def test_docker_pulls_an_image_that_a_layout_has_under_its_docker_hub_name(
        self, docker_daemon: Dockerd, tmp_path: Path
    ) -> None:
        layout = Layout(tmp_path / "images")
        small_image(layout, name="docker.io/library/app:v1")
        with Registry(layout.path, read_only=True) as registry:
            docker_daemon.docker("pull", f"{registry.host}/library/app:v1")
            docker_daemon.docker("pull", f"{registry.host}/app:v1")

    def test_docker_reports_that_a_read_only_registry_refuses_a_push(
        self, docker_daemon: Dockerd, layout: Layout
    ) -> None:
        small_image(layout, name="app:v1")
        with Registry(layout.path, read_only=True) as registry:
            docker_daemon.docker("pull", f"{registry.host}/app:v1")
            docker_daemon.docker("tag", f"{registry.host}/app:v1", f"{registry.host}/copy:v1")
            done = docker_daemon.docker("push", f"{registry.host}/copy:v1", check=False)
        assert done.returncode != 0
        assert "not possible here" in done.stderr


def test_umoci_unpacks_a_pushed_image(served: Registry, tools: Tools, layout: Layout, tmp_path: Path) -> None:
    small_image(layout, name="v1")
    tools.run("skopeo", "copy", f"oci:{layout.path}:v1", f"docker://{served.host}/app:v1")
    served.stop()
    tools.run("umoci", "unpack", "--image", f"{served.layout.path}:v1", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/etc/motd").read_bytes() == b"hello\n"
