"""Pushes of truncated streams to a real docker-registry: which ones resume when the command is run again."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.images import Descriptor, Layout, tar_layer
from tests.peers import DockerRegistry
from tests.registry_http import manifest_digest
from tests.runner import ocistream

MIB = 1 << 20
LAYER = 5 * MIB


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    return layout.image([LAYER], name="v1")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str | None]:
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


def records(env: dict[str, str | None]) -> list[Path]:
    return list((Path(str(env["XDG_STATE_HOME"])) / "ocistream" / "uploads").iterdir())


def test_a_truncated_docker_archive_leaves_no_upload_session(
    registry: DockerRegistry, layout: Layout, tmp_path: Path
) -> None:
    layout.image([tar_layer({"noise": random.Random(3).randbytes(4 * MIB)}, compression="")], name="v1")
    archive = tmp_path / "saved.tar"
    assertions.success(ocistream("copy", f"oci:{layout.path}:v1", f"docker-archive:{archive}:app:1"))
    pushed = ocistream("push", f"{registry.host}/team/app:1", stdin=archive.read_bytes()[: 3 * MIB])
    assertions.failure(pushed, 6, "truncated")
    assert [request for request in registry.requests() if request.startswith("PATCH")]
    assert registry.uploads("team/app") == []


@pytest.mark.parametrize("way", ["auto", "chunk=1MiB"])
def test_a_push_resumes_after_a_truncated_stream(
    registry: DockerRegistry, layout: Layout, image: Descriptor, env: dict[str, str | None], tmp_path: Path, way: str
) -> None:
    archive = tmp_path / "image.tar"
    assertions.success(ocistream("copy", f"oci:{layout.path}:v1", archive))
    push = ["push", f"{registry.host}/team/app:1", "--upload", way, "-v"]
    broken = ocistream(*push, stdin=archive.read_bytes()[: 3 * MIB + 100], env=env)
    assert broken.code == 6
    assert "truncated" in broken.err
    assert len(records(env)) == len(registry.uploads("team/app")) == 1
    whole = assertions.success(ocistream(*push, stdin=archive.read_bytes(), env=env))
    assert re.search(r"resumed [23]\.\d MB of 5\.2 MB of sha256:", whole.err)
    assert manifest_digest(registry.host, "team/app", "1") == image["digest"]
    assert registry.uploads("team/app") == []
    assert records(env) == []
