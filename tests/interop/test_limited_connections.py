"""A real nginx that limits each connection, before a real registry: several connections, and the same archive."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from tests.interop.bounds import MIB, assert_within_budget
from tests.runner import measured, ocistream

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.images import Layout
    from tests.peers import DockerRegistry, Nginx

#: What a connection is given, in bytes a second: so little that waiting for it shows on any machine.
RATE = 4 * MIB
LIMIT = f"limit_rate {RATE}; proxy_buffering on; proxy_max_temp_file_size 0;"
#: Sizes of layers, in bytes. At this rate and one connection they take 6 seconds.
LAYERS = (16 * MIB, 5 * MIB, 70_000, 3 * MIB)
MEMORY = "--memory=8MiB"
REFUSES_PARTS = "if ($http_range) { return 429; }"


@pytest.fixture
def undisturbed(registry: DockerRegistry, layout: Layout, tmp_path: Path) -> bytes:
    """Return the archive of the image app:v1 as the registry itself gives it."""
    layers = [layout.random_layer(size, seed=size)[0] for size in LAYERS]
    layout.name(layout.image(layers), "v1")
    assert ocistream("push", f"{registry.host}/app:v1", "-i", f"{layout.path}").code == 0
    archive = tmp_path / "undisturbed.tar"
    assert ocistream("pull", f"{registry.host}/app:v1", "-o", f"{archive}").code == 0
    return archive.read_bytes()


def called(archive: bytes, registry: DockerRegistry, limited: Nginx) -> bytes:
    """Return an archive whose image is called by another host of the same length: any port that the kernel chooses."""
    assert len(registry.host) == len(limited.host)
    return archive.replace(registry.host.encode(), limited.host.encode())


def parts_of(limited: Nginx) -> list[str]:
    """Return the requests that were answered with a part of a blob."""
    limited.stop()
    return [request for request in limited.requests() if request.endswith(" 206")]


@pytest.mark.parametrize("how", ["a pipe", "a directory", "another registry"])
def test_the_same_comes_in_parts_in_bounded_memory(
    how: str,
    undisturbed: bytes,
    registry: DockerRegistry,
    other_registry: DockerRegistry,
    start_nginx: Callable[..., Nginx],
    tmp_path: Path,
) -> None:
    limited = start_nginx(f"{LIMIT} location / {{ proxy_pass {registry.url}; }}")
    source, out = f"{limited.host}/app:v1", tmp_path / "out"
    if how == "a pipe":
        result = measured("pull", source, MEMORY)
        assert result.out == called(undisturbed, registry, limited)
    elif how == "a directory":
        result = measured("pull", source, "-o", f"{out}/", MEMORY)
        for blob in (out / "blobs" / "sha256").iterdir():
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    else:
        result = measured("copy", source, f"{other_registry.host}/app:v1", MEMORY)
        assert other_registry.blobs("app") == registry.blobs("app")
    assert_within_budget(result)
    assert len(parts_of(limited)) >= 3


def test_a_registry_that_gives_no_parts_is_asked_for_few(
    undisturbed: bytes, registry: DockerRegistry, start_nginx: Callable[..., Nginx]
) -> None:
    limited = start_nginx(f"{LIMIT} location / {{ {REFUSES_PARTS} proxy_pass {registry.url}; }}")
    result = measured("pull", f"{limited.host}/app:v1", MEMORY)
    assert result.out == called(undisturbed, registry, limited)
    assert_within_budget(result)
    limited.stop()
    # Each blob once, what they are named in, and what was tried in vain.
    assert len(limited.requests()) <= 2 * len(LAYERS) + 12
