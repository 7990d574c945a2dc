"""Session fixtures: the Debian image in a registry and as an archive, containerd, and the tools that write archives.

Tests must not write to them.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import Certificate
from tests.cli import assertions
from tests.debian_image import DebianImage
from tests.interop.foreign_writers import Bench
from tests.interop.long_push import Lasted, push_for_long
from tests.peers import Containerd, DockerRegistry, containerd, docker_registry, isolated_tools
from tests.registry_http import seed
from tests.runner import ocistream


@pytest.fixture(scope="session", autouse=True)
def long_push(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, certificate: Certificate
) -> Iterator[concurrent.futures.Future[Lasted] | None]:
    """Start the long push before the first test, so that it runs beside the others, if a selected test needs it."""
    tests = [item for item in request.session.items if isinstance(item, pytest.Function)]
    if not any("long_push" in getattr(item.function, "__annotations__", {}) for item in tests):
        yield None
        return
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        yield executor.submit(push_for_long, tmp_path_factory.mktemp("long"), certificate)


@pytest.fixture(scope="session")
def debian_registry(tmp_path_factory: pytest.TempPathFactory, debian_image: DebianImage) -> Iterator[DockerRegistry]:
    """Return a docker-registry that has the Debian image as team/debian:v1."""
    with docker_registry(tmp_path_factory.mktemp("debian-registry")) as registry:
        seed(debian_image.layout, debian_image.manifest, registry.host, "team/debian", "v1")
        yield registry


@pytest.fixture(scope="session")
def debian_name(debian_registry: DockerRegistry) -> str:
    """Return the full name of the Debian image in its registry."""
    return f"{debian_registry.host}/team/debian:v1"


@pytest.fixture(scope="session")
def debian_archive(debian_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the archive of the Debian image that `ocistream pull` wrote."""
    archive = tmp_path_factory.mktemp("debian-archive") / "debian.tar"
    assertions.success(ocistream("pull", debian_name, "-o", archive))
    return archive


@pytest.fixture(scope="session")
def containerd_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """Return one containerd for the complete run. Its images stay, so each test uses its own names."""
    with containerd(tmp_path_factory.mktemp("containerd")) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def one_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Return the tools that write archives, and keep their archives for the complete run."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "tools").mkdir()
    with isolated_tools(folder / "tools") as tools:
        yield Bench(folder, tools)


@pytest.fixture
def bench(one_bench: Bench, request: pytest.FixtureRequest) -> Bench:
    """Return the tools that write archives. A test that needs a missing daemon is skipped."""
    one_bench.fixture = request.getfixturevalue
    return one_bench
