"""The command `ocistream serve` with Docker's daemon and the other commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images import Layout, small_image
from tests.peers import Dockerd, DockerRegistry
from tests.registry_http import seed
from tests.runner import ocistream, pipe, started_fork
from tests.schemas import validate_layout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "served"


@pytest.fixture
def host(folder: Path) -> Iterator[str]:
    """Return the address that `ocistream serve` prints."""
    with started_fork("serve", folder, "--listen", "127.0.0.1:0") as process:
        assert process.stdout is not None
        yield process.stdout.readline().decode().strip()


def test_an_image_that_docker_pushed_is_copied_to_another_registry_and_pulled_by_docker(
    host: str, registry: DockerRegistry, layout: Layout, docker_daemon: Dockerd
) -> None:
    seed(layout, small_image(layout, config={"Cmd": ["there and back"]}), registry.host, "app", "v1")
    docker_daemon.docker("pull", f"{registry.host}/app:v1")
    docker_daemon.docker("tag", f"{registry.host}/app:v1", f"{host}/team/app:v1")
    docker_daemon.docker("push", f"{host}/team/app:v1")
    pulled, pushed = pipe(["pull", f"{host}/team/app:v1"], ["push", f"{registry.host}/back:v1"])
    assert (pulled.code, pushed.code) == (0, 0), (pulled.err, pushed.err)
    docker_daemon.docker("rmi", f"{registry.host}/app:v1", f"{host}/team/app:v1")
    docker_daemon.docker("pull", f"{registry.host}/back:v1")
    command = docker_daemon.docker("inspect", "--format={{index .Config.Cmd 0}}", f"{registry.host}/back:v1").stdout
    assert command.strip() == "there and back"


def test_a_pushed_image_is_a_valid_layout_and_docker_pulls_it(
    host: str, folder: Path, registry: DockerRegistry, layout: Layout, docker_daemon: Dockerd
) -> None:
    image = small_image(layout)
    seed(layout, image, registry.host, "app", "v1")
    copied = ocistream("copy", f"{registry.host}/app:v1", f"{host}/team/app:v2")
    assert copied.code == 0, copied.err
    assert validate_layout(folder) == 4
    docker_daemon.docker("pull", f"{host}/team/app:v2")
    digests = docker_daemon.docker("inspect", "--format={{json .RepoDigests}}", f"{host}/team/app:v2").stdout
    assert f"{host}/team/app@{image['digest']}" in json.loads(digests)
