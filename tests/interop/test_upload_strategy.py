"""Uploads through an nginx that limits the size of request bodies, and every way of uploading to a real registry."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.images import Layout, tar_layer
from tests.interop.process_limits import MIB
from tests.peers import DockerRegistry, Nginx
from tests.runner import Result, ocistream

LIMIT = 10 * MIB
#: Larger than the limit, which applies to the request body alone.
LAYER = 11 * MIB


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive of one image with a layer that exceeds nginx's limit."""
    return archive_of(LAYER, tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def small_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive of one image with a layer of several 1 MiB chunks."""
    return archive_of(3 * MIB + 1000, tmp_path_factory.mktemp("small"))


def archive_of(size: int, folder: Path) -> Path:
    layout = Layout(folder / "made")
    layer = tar_layer({"noise": random.Random(11).randbytes(size)}, compression="")
    layout.image([layer], name="v1")
    path = folder / "image.tar"
    assert ocistream("copy", f"oci:{layout.path}:v1", path).code == 0
    return path


@pytest.fixture
def front(registry: DockerRegistry, start_nginx: Callable[..., Nginx]) -> Nginx:
    """Return an nginx in front of a docker-registry."""
    return start_nginx(
        f"client_max_body_size {LIMIT // MIB}m;\n"
        f"location / {{ proxy_pass {registry.url}; proxy_set_header Host $http_host; }}"
    )


def push(name: str, archive: Path, folder: Path, *options: str, piped: bool) -> Result:
    source = () if piped else ("-i", archive)
    env = {"XDG_STATE_HOME": str(folder / "state")}
    return ocistream("push", name, *source, *options, stdin=archive if piped else None, env=env)


def uploads(front: Nginx, since: int = 0) -> list[tuple[str, int, int]]:
    """Return method, status and stated length of the upload requests that have a body."""
    return [
        (entry["method"], int(entry["status"]), int(entry["length"]))
        for entry in front.entries()[since:]
        if "/blobs/uploads/" in entry["target"] and (entry["length"] or "0").isdigit() and int(entry["length"] or 0)
    ]


@pytest.mark.parametrize("piped", [True, False], ids=["pipe", "file"])
def test_a_layer_that_is_too_large_for_one_request_is_uploaded_in_chunks(
    front: Nginx, registry: DockerRegistry, archive: Path, tmp_path: Path, *, piped: bool
) -> None:
    # tests/cli/test_upload.py measures the memory.
    pushed = push(f"{front.host}/team/app:1", archive, tmp_path, "-v", piped=piped)
    assert pushed.code == 0, pushed.err
    again = push(f"{front.host}/team/other:1", archive, tmp_path, "--result", str(tmp_path / "result"), piped=piped)
    assert again.code == 0, again.err
    front.stop()
    one_config, *first = sorted((e for e in uploads(front)), key=lambda entry: entry[2] > 10_000)
    refused = [entry for entry in first if entry[1] == 413]
    taken = [length for _, status, length in first if status == 202]
    assert one_config[1] == 201
    # One refusal in each of the two runs; the chunks then upload the refused bytes.
    assert len(refused) == 2
    assert refused[0][2] > LIMIT
    large = [length for length in taken if length > 10_000]
    assert max(large) <= 8 * MIB
    assert sum(large) == 2 * refused[0][2]
    assert "413" in pushed.err
    assert json.loads((tmp_path / "result").read_bytes())["upload"] == {front.host: "chunk=8388608"}
    assert len(registry.blobs("team/app")) == len(registry.blobs("team/other")) == 2
    assert registry.uploads("team/app") == registry.uploads("team/other") == []


def test_an_explicit_upload_strategy_is_used_and_its_refusal_is_explained(
    front: Nginx, registry: DockerRegistry, archive: Path, tmp_path: Path
) -> None:
    refused = push(f"{front.host}/team/app:1", archive, tmp_path, "--upload", "stream", piped=False)
    assert refused.code == 7
    assert "413" in refused.err
    assert "--upload auto" in refused.err
    assert not registry.tags("team/app") if registry.repository("team/app").exists() else True
    asked = push(f"{front.host}/team/app:1", archive, tmp_path, "--upload", "chunk=3MiB", piped=True)
    assert asked.code == 0, asked.err
    assert registry.tags("team/app")
    assert [path for path in (tmp_path / "state").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("way", "piped"), [("stream", True), ("put", False), ("chunk=1MiB", True)])
def test_every_upload_strategy_works_with_a_real_registry(
    registry: DockerRegistry, small_archive: Path, tmp_path: Path, way: str, *, piped: bool
) -> None:
    pushed = push(f"{registry.host}/team/app:1", small_archive, tmp_path, "--upload", way, piped=piped)
    assert pushed.code == 0, pushed.err
    assert len(registry.blobs("team/app")) == 2
    assert registry.uploads("team/app") == []
