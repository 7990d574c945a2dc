"""Referrers are copied with an image between registries with and without the referrers API; other tools read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import registry_http
from tests.cli.assertions import entries
from tests.cli.test_incomplete_indexes import Made
from tests.faulty_registry import FaultyRegistry
from tests.images import OCI_INDEX, Layout, digest_of
from tests.peers import Containerd, Dockerd, DockerRegistry, Tools
from tests.runner import Result, ocistream
from tests.signed_image import Signed, signed


@pytest.fixture
def found(layout: Layout) -> Signed:
    return signed(layout)


@pytest.fixture
def with_api(tmp_path: Path) -> Iterator[FaultyRegistry]:
    with FaultyRegistry(tmp_path / "with-api") as registry:
        yield registry


@pytest.fixture
def another_with_api(tmp_path: Path) -> Iterator[FaultyRegistry]:
    with FaultyRegistry(tmp_path / "another-with-api") as registry:
        yield registry


@pytest.fixture
def archive(with_api: FaultyRegistry, layout: Layout, found: Signed, tmp_path: Path) -> Path:
    """Return the archive of the signed image, pulled from a registry with the referrers API."""
    found.seed(layout, with_api.host, "team/app", "v1")
    target = tmp_path / "signed.tar"
    done(ocistream("pull", f"{with_api.host}/team/app:v1", "-o", target))
    return target


def done(result: Result) -> Result:
    assert result.code == 0, result.err
    return result


def listed(host: str, repository: str, subject: str) -> list[str]:
    status, raw = registry_http.get(host, f"/v2/{repository}/referrers/{subject}")
    assert status == 200
    return sorted(one["digest"] for one in json.loads(raw)["manifests"])


def kept(host: str, repository: str, subject: str) -> dict[str, dict[str, str]]:
    """Return the list of referrers under a tag, which clients maintain in a registry without the referrers API."""
    raw = registry_http.manifest(host, repository, subject.replace(":", "-"))
    assert raw is not None
    document = json.loads(raw)
    assert document["mediaType"] == OCI_INDEX
    return {one["digest"]: one for one in document["manifests"]}


def is_all_there(found: Signed, host: str, repository: str, tag: str) -> None:
    """Assert that a registry with the referrers API has the image and all its referrers."""
    assert registry_http.manifest_digest(host, repository, tag) == found.image["digest"]
    assert registry_http.manifest_digest(host, repository, found.cosign_tag) == found.cosign["digest"]
    for subject, referring in found.subjects().items():
        assert listed(host, repository, subject) == sorted(one["digest"] for one in referring)


def test_referrers_survive_an_archive_and_a_registry_without_the_api(
    archive: Path, found: Signed, registry: DockerRegistry, another_with_api: FaultyRegistry
) -> None:
    pushed = done(ocistream("push", f"{registry.host}/kept/app:v1", "-i", archive))
    assert "with 2 signatures, 1 attestation, 1 SBOM" in pushed.err
    assert registry_http.get(registry.host, f"/v2/kept/app/referrers/{found.image['digest']}")[0] == 404
    for subject, referring in found.subjects().items():
        entries = kept(registry.host, "kept/app", subject)
        assert entries.keys() == {one["digest"] for one in referring}
        for one in referring:
            assert entries[one["digest"]]["artifactType"] == one["artifactType"]
    assert registry.tags("kept/app")[found.cosign_tag] == found.cosign["digest"]
    assert found.hanging | {found.image["digest"]} <= registry.manifests("kept/app")
    done(ocistream("copy", f"{registry.host}/kept/app:v1", f"{another_with_api.host}/back/app:2"))
    is_all_there(found, another_with_api.host, "back/app", "2")
    # The tag with the list of referrers belongs to the other registry and is not copied.
    assert sorted(registry_http.tags(another_with_api.host, "back/app")) == sorted(["2", found.cosign_tag])


def test_the_same_image_gives_the_same_archive_from_either_registry(
    archive: Path, registry: DockerRegistry, tmp_path: Path
) -> None:
    done(ocistream("push", f"{registry.host}/team/app:v1", "-i", archive))
    again = tmp_path / "again.tar"
    done(ocistream("pull", f"{registry.host}/team/app:v1", "-o", again))
    # They differ only in the registry's name.
    one, other = (json.loads(index_of(path)) for path in (archive, again))
    for document in (one, other):
        for entry in document["manifests"]:
            for key in ("io.containerd.image.name", "vnd.ocistream.image.name"):
                name = entry.get("annotations", {}).pop(key, "")
                assert not name or "/team/app:" in name
    assert one == other


def index_of(archive: Path) -> bytes:
    return dict(entries(archive))["index.json"]


def test_skopeo_copies_the_image_by_its_tag(archive: Path, found: Signed, tools: Tools, tmp_path: Path) -> None:
    tools.run("skopeo", "copy", f"oci-archive:{archive}:v1", f"dir:{tmp_path / 'copied'}")
    assert digest_of((tmp_path / "copied/manifest.json").read_bytes()) == found.image["digest"]


@pytest.mark.parametrize("options", [("--platform", "all"), ("--platform", "linux/amd64")])
def test_skopeo_copies_the_image_of_an_index_of_buildkit(
    layout: Layout, with_api: FaultyRegistry, tools: Tools, tmp_path: Path, options: tuple[str, ...]
) -> None:
    made = Made(layout)
    registry_http.seed(layout, made.index, with_api.host, "built", "1")
    target = tmp_path / "built.tar"
    done(ocistream("pull", f"{with_api.host}/built:1", *options, "-o", target))
    # skopeo requires a name if the top index lists the attestations.
    name = "" if options[1] == "all" else ":1"
    tools.run("skopeo", "copy", "--all", f"oci-archive:{target}{name}", f"dir:{tmp_path / 'copied'}")
    expected = made.index if options[1] == "all" else made.images["linux/amd64"]
    assert digest_of((tmp_path / "copied/manifest.json").read_bytes()) == expected["digest"]


def test_podman_loads_the_image(archive: Path, with_api: FaultyRegistry, tools: Tools) -> None:
    tools.run("podman", "load", "--input", archive)
    shown = tools.run("podman", "images", "--format", "{{.Repository}}:{{.Tag}}").stdout.splitlines()
    assert f"{with_api.host}/team/app:v1" in shown


def test_docker_loads_the_image(archive: Path, with_api: FaultyRegistry, docker_daemon: Dockerd) -> None:
    loaded = docker_daemon.docker("load", stdin=archive).stdout
    assert loaded.strip() == f"Loaded image: {with_api.host}/team/app:v1"


def test_containerd_imports_the_image(archive: Path, with_api: FaultyRegistry, containerd_daemon: Containerd) -> None:
    containerd_daemon.ctr("images", "import", "--snapshotter=native", archive)
    shown = containerd_daemon.ctr("images", "list", "--quiet").splitlines()
    assert [name for name in shown if with_api.host in name] == [f"{with_api.host}/team/app:v1"]
