"""`digest`, `tags`, `inspect` and `rm` give the same results as the commands of other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli import assertions
from tests.images import Descriptor, Layout, small_image, two_platforms
from tests.peers import Dockerd, DockerRegistry, Tools, docker_registry
from tests.registry_http import seed
from tests.runner import ocistream, started_fork

LABELS = {"org.opencontainers.image.version": "1.5", "empty": ""}


@pytest.fixture
def image(layout: Layout, registry: DockerRegistry) -> Descriptor:
    """Push an image with labels as app:1 and app:2, and an index as app:both; return the image."""
    made = small_image(layout, name="v1", config={"Labels": LABELS})
    for tag in ("1", "2"):
        seed(layout, made, registry.host, "app", tag)
    seed(layout, two_platforms(layout), registry.host, "app", "both")
    return made


def skopeo(tools: Tools, *arguments: str) -> Any:
    return json.loads(tools.run("skopeo", *arguments).stdout)


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize("tag", ["1", "both"])
def test_skopeo_prints_the_same_digest(registry: DockerRegistry, tools: Tools, tag: str) -> None:
    name = f"{registry.host}/app:{tag}"
    theirs = tools.run("skopeo", "inspect", "--format", "{{.Digest}}", f"docker://{name}").stdout
    assert ocistream("digest", name).out.decode() == theirs


@pytest.mark.usefixtures("image")
def test_skopeo_prints_the_same_digest_of_a_layout_and_an_archive(tools: Tools, layout: Layout, tmp_path: Path) -> None:
    archive = tmp_path / "x.tar"
    tools.run("skopeo", "copy", f"oci:{layout.path}:v1", f"oci-archive:{archive}:v1")
    for end in (f"oci:{layout.path}:v1", f"oci-archive:{archive}"):
        theirs = tools.run("skopeo", "inspect", "--format", "{{.Digest}}", end).stdout
        assert ocistream("digest", end).out.decode() == theirs


def test_podman_and_docker_print_the_same_digest(
    registry: DockerRegistry, tools: Tools, docker_daemon: Dockerd, image: Descriptor
) -> None:
    name = f"{registry.host}/app:1"
    tools.run("podman", "pull", name)
    assert tools.run("podman", "image", "inspect", "--format", "{{.Digest}}", name).stdout.strip() == image["digest"]
    docker_daemon.docker("pull", name)
    stated = docker_daemon.docker("image", "inspect", "--format", "{{index .RepoDigests 0}}", name).stdout
    assert stated.strip() == f"{registry.host}/app@{image['digest']}"
    assert ocistream("digest", name).lines() == [image["digest"]]


@pytest.mark.usefixtures("image")
def test_skopeo_and_podman_list_the_same_tags(registry: DockerRegistry, tools: Tools) -> None:
    ours = ocistream("tags", f"{registry.host}/app").lines()
    assert sorted(ours) == ["1", "2", "both"]
    assert skopeo(tools, "list-tags", f"docker://{registry.host}/app")["Tags"] == ours
    _, *lines = tools.run("podman", "search", "--list-tags", f"{registry.host}/app").stdout.splitlines()
    assert sorted(line.split()[1] for line in lines) == sorted(ours)


@pytest.mark.usefixtures("image")
def test_skopeo_prints_the_same_bytes_labels_and_creation_time(registry: DockerRegistry, tools: Tools) -> None:
    name = f"{registry.host}/app:1"
    for ours, theirs in (("--raw", ["--raw"]), ("--raw-config", ["--config", "--raw"])):
        shown = tools.run("skopeo", "inspect", *theirs, f"docker://{name}").stdout
        assert ocistream("inspect", ours, name).out.decode() == shown
    described = skopeo(tools, "inspect", f"docker://{name}")
    fields = "{created}|{labels.org.opencontainers.image.version}|{platform}"
    result = ocistream("inspect", name, "--format", fields)
    platform = f"{described['Os']}/{described['Architecture']}"
    assert described["Labels"] == LABELS
    assert result.lines() == [
        f"{described['Created']}|{described['Labels']['org.opencontainers.image.version']}|{platform}"
    ]


class TestRm:
    def test_a_registry_that_deletes_only_manifests(
        self, registry: DockerRegistry, tools: Tools, image: Descriptor
    ) -> None:
        name = f"{registry.host}/app:1"
        assertions.failure(ocistream("rm", name), 8, "does not delete the tag", "--by-digest")
        assert sorted(registry.tags("app")) == ["1", "2", "both"]
        assertions.success(ocistream("rm", "--by-digest", name))
        assert image["digest"] not in registry.manifests("app")
        assert skopeo(tools, "list-tags", f"docker://{registry.host}/app")["Tags"] == ["both"]
        assertions.failure(ocistream("rm", name), 4, "app:1 not found")

    @pytest.mark.parametrize("options", [[], ["--by-digest"]])
    def test_a_registry_with_deletion_disabled(self, tmp_path: Path, layout: Layout, options: list[str]) -> None:
        settings = {"REGISTRY_STORAGE_DELETE_ENABLED": "false"}
        with docker_registry(tmp_path / "disabled", settings=settings) as registry:
            seed(layout, small_image(layout), registry.host, "app", "1")
            words = ("405", "REGISTRY_STORAGE_DELETE_ENABLED=true")
            assertions.failure(ocistream("rm", f"{registry.host}/app:1", *options), 8, *words)
            assert list(registry.tags("app")) == ["1"]

    def test_a_registry_in_read_only_mode(self, tmp_path: Path, layout: Layout) -> None:
        with docker_registry(tmp_path / "registry") as registry:
            seed(layout, small_image(layout, name="app"), registry.host, "app", "1")
        settings = {"REGISTRY_STORAGE_MAINTENANCE_READONLY": '{"enabled": true}'}
        with docker_registry(tmp_path / "registry", settings=settings) as registry:
            host = registry.host
            # The blobs exist, so the registry refuses the manifest.
            for image in ("app:2", "new:1"):
                result = ocistream("push", "-i", layout.path, f"{host}/{image}")
                assertions.failure(result, 8, f"{host} does not accept pushes", "405", "it is read-only")
            assertions.failure(ocistream("rm", f"{host}/app:1"), 8, "does not delete the tag", "read-only")
            assert list(registry.tags("app")) == ["1"]

    def test_skopeo_does_not_find_a_tag_deleted_from_serve(self, tools: Tools, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        with started_fork("serve", tmp_path / "store", "--listen", "127.0.0.1:0") as process:
            host = process.stdout.readline().decode().strip()
            for tag in ("1", "2"):
                tools.run("skopeo", "copy", f"oci:{layout.path}:v1", f"docker://{host}/app:{tag}")
            assertions.success(ocistream("rm", f"{host}/app:1"))
            assert skopeo(tools, "list-tags", f"docker://{host}/app")["Tags"] == ["2"]
            assert tools.run("skopeo", "inspect", f"docker://{host}/app:1", check=False).returncode != 0


def test_a_dry_run_only_sends_get_and_head_requests(
    registry: DockerRegistry, layout: Layout, image: Descriptor
) -> None:
    before = len(registry.requests())
    for repository in ("app:new", "other:new"):
        assertions.success(
            ocistream("push", "-i", layout.path, "--image", "v1", f"{registry.host}/{repository}", "--dry-run")
        )
    asked = registry.requests()[before:]
    assert {line.split()[0] for line in asked} <= {"GET", "HEAD"}
    assert registry.repositories() == ["app"]
    assert image["digest"] in registry.manifests("app")
