"""`copy --via` into a real docker-registry, over a connection that breaks in the middle of a layer."""

from __future__ import annotations

from pathlib import Path

from tests.cli import assertions
from tests.images import Layout
from tests.peers import DockerRegistry
from tests.registry_http import manifest_digest
from tests.remote_link import Line
from tests.runner import ocistream

MIB = 1 << 20
LAYER = 12 * MIB
CUT = 5 * MIB
SMALL = 64 * 1024


def test_bytes_that_arrived_before_a_connection_broke_are_not_sent_again(
    registry: DockerRegistry, layout: Layout, tmp_path: Path
) -> None:
    # docker-registry loses an upload whose request breaks, so ocistream must end its requests.
    image = layout.image([LAYER], name="v1")
    line = Line(tmp_path / "line")
    command = ["copy", f"oci:{layout.path}:v1", f"{registry.host}/app:1", "--via", line.text]
    sent = 0
    for _ in range(2):
        line.breaks_after(CUT)
        assert ocistream(*command).code == 7
        sent += line.sent()
        assert len(line.records()) == 1
    result = assertions.success(ocistream(*command))
    assert "resumes at byte" in result.err
    sent += line.sent()
    assert sent <= LAYER + 3 * SMALL
    assert manifest_digest(registry.host, "app", "1") == image["digest"]
    assert line.records() == []
