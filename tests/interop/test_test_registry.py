"""skopeo works with the tests' own registry; tests/self tests its faults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faulty_registry import FaultyRegistry
from tests.images import Layout, two_platforms
from tests.peers import Tools
from tests.registry_http import manifest_digest, tags


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[FaultyRegistry]:
    """Return an empty registry without faults."""
    with FaultyRegistry(tmp_path / "served") as registry:
        yield registry


def test_skopeo_pushes_mounts_lists_pulls_and_deletes(
    registry: FaultyRegistry, tools: Tools, layout: Layout, tmp_path: Path
) -> None:
    index = two_platforms(layout, name="both")
    app, copied = f"docker://{registry.host}/team/app:both", f"docker://{registry.host}/copy:both"
    copy = ("skopeo", "copy", "--all", "--preserve-digests")
    tools.run(*copy, f"oci:{layout.path}:both", app)
    assert manifest_digest(registry.host, "team/app", "both") == index["digest"]
    assert {request.status for request in registry.asked("PUT")} == {201}
    registry.requests.clear()
    tools.run(*copy, app, copied)
    # skopeo mounts only layers: it uploads the configs of both platforms again.
    assert [request.status for request in registry.asked("POST", "mount=")] == [201] * 3
    assert len(registry.asked("PATCH")) == 2
    tools.run(*copy, copied, f"dir:{tmp_path / 'back'}")
    assert (tmp_path / "back/manifest.json").read_bytes() == layout.file(index["digest"]).read_bytes()
    tools.run("skopeo", "copy", "--all", copied, f"docker://{registry.host}/copy:other")
    listed = json.loads(tools.run("skopeo", "list-tags", f"docker://{registry.host}/copy").stdout)
    assert listed["Tags"] == ["both", "other"]
    tools.run("skopeo", "delete", app)
    assert tags(registry.host, "team/app") == []
    assert tags(registry.host, "copy") == ["both", "other"]
