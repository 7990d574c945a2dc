"""The command `ocistream serve` with Docker's daemon and the other commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images import Layout, small_image
from tests.peers import Dockerd, DockerRegistry
from tests.registry_http import seed
from tests.runner import pipe, started_fork


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
