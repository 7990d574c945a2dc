"""skopeo works with the tests' own registry and notices its faults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faulty_auth import Basic, Bearer
from tests.faulty_registry import Action, Drop, Fault, FaultyRegistry, Flip, Reset
from tests.images import Layout, small_image, two_platforms
from tests.peers import Tools
from tests.registry_http import manifest_digest, seed, tags

MIB = 1 << 20


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


class TestFaults:
    @pytest.mark.parametrize(
        ("action", "said"), [(Drop(MIB), "unexpected EOF"), (Flip(5), "did not match"), (Reset(MIB), "reset")]
    )
    def test_skopeo_notices_a_truncated_or_damaged_download(
        self, tools: Tools, layout: Layout, tmp_path: Path, action: Action, said: str
    ) -> None:
        image = layout.image([2 * MIB])
        layer = layout.read(image["digest"])["layers"][0]["digest"]
        with FaultyRegistry(tmp_path / "served") as registry:
            seed(layout, image, registry.host, "app", "v1")
            # The fault repeats, because later versions of skopeo resume a download.
            registry.faults.append(Fault(action, method="GET", path=layer, times=None))
            copy = ("skopeo", "copy", f"docker://{registry.host}/app:v1")
            done = tools.run(*copy, f"oci:{tmp_path / 'back'}:v1", check=False)
            assert done.returncode != 0
            assert said in done.stderr

    def test_skopeo_sends_a_password(self, tools: Tools, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        with FaultyRegistry(tmp_path / "served", auth=Basic("ada", "lovelace")) as registry:
            copy = ("skopeo", "copy", f"oci:{layout.path}:v1", f"docker://{registry.host}/app:v1")
            assert tools.run(*copy, check=False).returncode != 0
            tools.run(*copy, "--dest-creds=ada:lovelace")

    def test_skopeo_requests_tokens(self, tools: Tools, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        auth = Bearer({"ada": "lovelace"}, anonymous=("pull",))
        with FaultyRegistry(tmp_path / "served", auth=auth) as registry:
            copy = ("skopeo", "copy", f"oci:{layout.path}:v1", f"docker://{registry.host}/app:v1")
            assert tools.run(*copy, check=False).returncode != 0
            tools.run(*copy, "--dest-creds=ada:lovelace")
            tools.run("skopeo", "inspect", f"docker://{registry.host}/app:v1")
        assert {request.user for request in auth.requests} == {None, "ada"}
