"""Pulls through an nginx that limits the rate of each connection use several connections and give the same archive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.images import Layout
from tests.interop.process_limits import MIB, assert_within_budget
from tests.peers import docker_registry
from tests.registry_http import seed
from tests.runner import measured, ocistream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.peers import DockerRegistry, Nginx

#: Bytes a second for each connection: slow enough to limit the pull on any machine.
RATE = 4 * MIB
LIMIT = f"limit_rate {RATE}; proxy_buffering on; proxy_max_temp_file_size 0;"
#: Sizes of layers, in bytes. At this rate, one connection needs 6 seconds for them.
LAYERS = (16 * MIB, 5 * MIB, 70_000, 3 * MIB)
MEMORY = "--memory=8MiB"
REFUSES_PARTS = "if ($http_range) { return 429; }"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Return a docker-registry that has the image app:v1."""
    folder = tmp_path_factory.mktemp("source")
    layout = Layout(folder / "made")
    layers = [layout.random_layer(size, seed=size)[0] for size in LAYERS]
    with docker_registry(folder / "registry") as registry:
        seed(layout, layout.image(layers), registry.host, "app", "v1")
        yield registry


@pytest.fixture(scope="module")
def undisturbed(source: DockerRegistry, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the archive of app:v1, pulled from the registry without nginx."""
    archive = tmp_path_factory.mktemp("undisturbed") / "app.tar"
    assert ocistream("pull", f"{source.host}/app:v1", "-o", f"{archive}").code == 0
    return archive.read_bytes()


def called(archive: bytes, registry: DockerRegistry, limited: Nginx) -> bytes:
    """Return an archive with the host of nginx in its names; both hosts must have the same length."""
    assert len(registry.host) == len(limited.host)
    return archive.replace(registry.host.encode(), limited.host.encode())


def parts_of(limited: Nginx) -> list[str]:
    """Return the requests that nginx answered with a part of a blob."""
    limited.stop()
    return [request for request in limited.requests() if request.endswith(" 206")]


def test_a_pull_in_parts_gives_the_same_archive_in_bounded_memory(
    undisturbed: bytes, source: DockerRegistry, start_nginx: Callable[..., Nginx]
) -> None:
    limited = start_nginx(f"{LIMIT} location / {{ proxy_pass {source.url}; }}")
    result = measured("pull", f"{limited.host}/app:v1", MEMORY)
    assert result.out == called(undisturbed, source, limited)
    assert_within_budget(result)
    assert len(parts_of(limited)) >= 3


def test_a_registry_that_refuses_parts_gets_few_requests(
    undisturbed: bytes, source: DockerRegistry, start_nginx: Callable[..., Nginx]
) -> None:
    limited = start_nginx(f"{LIMIT} location / {{ {REFUSES_PARTS} proxy_pass {source.url}; }}")
    result = ocistream("pull", f"{limited.host}/app:v1", MEMORY)
    assert result.out == called(undisturbed, source, limited)
    assert result.code == 0, result.err
    limited.stop()
    # Each blob once, the manifests, and the refused requests.
    assert len(limited.requests()) <= 2 * len(LAYERS) + 12
