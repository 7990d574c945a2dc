"""`ocistream copy` between registries keeps the manifest's digest, for every kind of image."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from ocistream.serve import Registry
from tests.cli import assertions
from tests.images import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_LAYER,
    Layout,
    small_image,
    tar_layer,
    two_platforms,
)
from tests.peers import Dockerd, DockerRegistry, Tools
from tests.registry_http import assert_no_image, manifest, seed
from tests.runner import Result, ocistream, pipe


def copied(*argv: str | Path) -> Result:
    return assertions.success(ocistream("copy", *argv))


def requests_to(registry: DockerRegistry, method: str) -> list[str]:
    return [request for request in registry.requests() if request.startswith(f"{method} ")]


# -- every kind of location --------------------------------------------------------------------------------


def test_an_image_keeps_its_digest_in_every_kind_of_location_and_back_in_a_registry(
    registry: DockerRegistry, layout: Layout, tmp_path: Path
) -> None:
    # tests/cli/test_copy.py tests every pair.
    image = small_image(layout)
    document = layout.read(image["digest"])
    blobs = {document["config"]["digest"], *(layer["digest"] for layer in document["layers"])}
    seed(layout, image, registry.host, "app", "v1")
    source = f"{registry.host}/app:v1"
    locations = {
        "layout": f"oci:{tmp_path}/layout:v1",
        "archive": f"oci-archive:{tmp_path}/archive.tar:v1",
        "directory": f"{tmp_path}/directory/",
        "file": f"{tmp_path}/file.tar",
    }
    for name, location in locations.items():
        assert copied(source, location).out.decode().strip().endswith(f"@{image['digest']}")
        copied(location, f"{registry.host}/{name}:v1")
    first, second = pipe(["copy", source, "-"], ["copy", "oci-archive:-", f"{registry.host}/pipe:v1"])
    assert (first.code, second.code) == (0, 0), (first.err, second.err)
    for name in (*locations, "pipe"):
        assert registry.tags(name) == {"v1": image["digest"]}
        assert registry.blobs(name) == blobs


# -- within one registry ----------------------------------------------------------------------------------


def test_within_one_registry_blobs_are_mounted_and_not_uploaded(
    registry: DockerRegistry, layout: Layout, tmp_path: Path
) -> None:
    image = small_image(layout)
    seed(layout, image, registry.host, "team/app", "v1")
    sent = len(requests_to(registry, "PUT")), len(requests_to(registry, "PATCH"))
    copied(f"{registry.host}/team/app:v1", f"{registry.host}/other/app:v2", "--result", tmp_path / "result.json")
    assert registry.tags("other/app") == {"v2": image["digest"]}
    assert registry.blobs("other/app") == registry.blobs("team/app")
    # The only PUT is the manifest.
    assert (len(requests_to(registry, "PUT")), len(requests_to(registry, "PATCH"))) == (sent[0] + 1, sent[1])
    result = json.loads((tmp_path / "result.json").read_bytes())
    assert {blob["status"] for blob in result["blobs"]} == {"mounted"}
    assert result["bytes"]["copied"] == 0


# -- every kind of image ----------------------------------------------------------------------------------


def test_an_index_is_copied_byte_for_byte(
    registry: DockerRegistry, other_registry: DockerRegistry, layout: Layout, tmp_path: Path
) -> None:
    index = two_platforms(layout)
    seed(layout, index, registry.host, "app", "both")
    children = {child["digest"] for child in layout.read(index["digest"])["manifests"]}
    for source, target in (
        (f"{registry.host}/app:both", f"oci-archive:{tmp_path / 'both.tar'}:both"),
        (f"oci-archive:{tmp_path / 'both.tar'}:both", f"oci:{tmp_path / 'layout'}:both"),
        (f"oci:{tmp_path / 'layout'}:both", f"{other_registry.host}/app:both"),
    ):
        copied("--platform", "all", source, target)
    assert manifest(other_registry.host, "app", "both") == layout.file(index["digest"]).read_bytes()
    assert other_registry.manifests("app") == {index["digest"], *children}


def test_a_docker_image_of_skopeo_keeps_its_manifest(
    registry: DockerRegistry,
    other_registry: DockerRegistry,
    layout: Layout,
    tools: Tools,
    docker_daemon: Dockerd,
    tmp_path: Path,
) -> None:
    small_image(layout, name="v1")
    name = f"{registry.host}/app:v1"
    tools.run("skopeo", "copy", "--format=v2s2", f"oci:{layout.path}:v1", f"docker://{name}")
    before = manifest(registry.host, "app", "v1") or b""
    assert json.loads(before)["mediaType"] == DOCKER_MANIFEST
    pulled, pushed = pipe(["pull", name], ["push", f"{other_registry.host}/piped:v1"])
    assert (pulled.code, pushed.code) == (0, 0), (pulled.err, pushed.err)
    copied(name, f"oci:{tmp_path / 'layout'}:v1")
    copied(f"oci:{tmp_path / 'layout'}:v1", f"{other_registry.host}/copied:v1")
    for repository in ("piped", "copied"):
        assert manifest(other_registry.host, repository, "v1") == before
        docker_daemon.docker("pull", f"{other_registry.host}/{repository}:v1")


def test_a_docker_manifest_list_of_skopeo_keeps_its_bytes(
    registry: DockerRegistry, other_registry: DockerRegistry, layout: Layout, tools: Tools
) -> None:
    two_platforms(layout, name="v1")
    name = f"{registry.host}/app:v1"
    tools.run("skopeo", "copy", "--all", "--format=v2s2", f"oci:{layout.path}:v1", f"docker://{name}")
    before = manifest(registry.host, "app", "v1") or b""
    assert json.loads(before)["mediaType"] == DOCKER_LIST
    copied(name, f"{other_registry.host}/app:v1")
    assert manifest(other_registry.host, "app", "v1") == before
    assert other_registry.manifests("app") == registry.manifests("app")


def test_an_artifact_with_an_empty_config_and_a_subject(
    registry: DockerRegistry, other_registry: DockerRegistry, layout: Layout, tmp_path: Path
) -> None:
    image = small_image(layout)
    sbom = layout.artifact(b'{"packages": []}', subject=image)
    seed(layout, sbom, registry.host, "app", "sbom")
    pulled, pushed = pipe(["pull", f"{registry.host}/app:sbom"], ["push", f"{other_registry.host}/piped:sbom"])
    assert (pulled.code, pushed.code) == (0, 0), (pulled.err, pushed.err)
    copied(f"{registry.host}/app@{sbom['digest']}", f"oci:{tmp_path / 'layout'}:sbom")
    copied(f"oci:{tmp_path / 'layout'}:sbom", f"{other_registry.host}/copied:sbom")
    for repository in ("piped", "copied"):
        tags = other_registry.tags(repository)
        assert tags["sbom"] == sbom["digest"]
        # This registry has no referrers API, so the client keeps a tag with the list.
        assert tags.keys() == {"sbom", image["digest"].replace(":", "-")}
        assert manifest(other_registry.host, repository, "sbom") == layout.file(sbom["digest"]).read_bytes()


def test_layers_with_sha512_digests(
    registry: DockerRegistry, other_registry: DockerRegistry, layout: Layout, tmp_path: Path
) -> None:
    layer = layout.blob(tar_layer({"etc/motd": b"hello\n"}), f"{OCI_LAYER}+gzip", algorithm="sha512")
    image = layout.image([layer])
    seed(layout, image, registry.host, "app", "v1")
    copied(f"{registry.host}/app:v1", f"oci-archive:{tmp_path / 'app.tar'}:v1")
    copied(f"oci-archive:{tmp_path / 'app.tar'}:v1", f"{other_registry.host}/app:v1")
    assert other_registry.tags("app") == {"v1": image["digest"]}
    with tarfile.open(tmp_path / "app.tar") as tar:
        assert f"blobs/{layer['digest'].replace(':', '/')}" in tar.getnames()


def test_a_registry_without_sha512_manifests_gets_no_tag_for_an_image_with_sha512_digests(
    registry: DockerRegistry, layout: Layout
) -> None:
    image = small_image(layout, algorithm="sha512", name="v1")
    result = ocistream("copy", f"oci:{layout.path}:v1", f"{registry.host}/app:v1")
    assert (result.code, result.out) == (8, b"")
    said, hint = result.err.splitlines()[-2:]
    assert f"{registry.host}/app does not accept manifests by sha512, so {image['digest']}" in said
    assert "DIGEST_INVALID" in said
    assert "ocistream serve" in hint
    assert_no_image(registry)


def test_an_image_with_sha512_digests_keeps_its_digest_through_a_registry_with_sha512(
    layout: Layout, tools: Tools, tmp_path: Path
) -> None:
    digest = small_image(layout, algorithm="sha512", name="v1")["digest"]
    with Registry(tmp_path / "one") as one, Registry(tmp_path / "two") as two:
        assert copied(f"oci:{layout.path}:v1", f"{one.host}/app:v1").lines() == [f"{one.host}/app:v1@{digest}"]
        pulled, pushed = pipe(["pull", f"{one.host}/app:v1"], ["push", f"{two.host}/app:v1"])
        assert (pulled.code, pushed.code) == (0, 0), (pulled.err, pushed.err)
        assert pushed.lines() == [f"{two.host}/app:v1@{digest}"]
        for name in (f"{two.host}/app:v1", f"{two.host}/app@{digest}"):
            assert copied(name, f"oci:{tmp_path / 'back'}:v1").out.decode().strip().endswith(f"@{digest}")
        # skopeo stores no sha512 blobs, but it can fetch the manifest by tag.
        raw = tools.run("skopeo", "inspect", "--raw", f"docker://{two.host}/app:v1").stdout
        assert raw.encode() == layout.file(digest).read_bytes()


def test_indexes_within_indexes(registry: DockerRegistry, other_registry: DockerRegistry, layout: Layout) -> None:
    nested = layout.index([two_platforms(layout), small_image(layout)])
    seed(layout, nested, registry.host, "app", "nested")
    pulled, pushed = pipe(
        ["pull", "--platform", "all", f"{registry.host}/app:nested"], ["push", f"{other_registry.host}/app:nested"]
    )
    assert (pulled.code, pushed.code) == (0, 0), (pulled.err, pushed.err)
    assert other_registry.tags("app") == {"nested": nested["digest"]}
    assert other_registry.manifests("app") == registry.manifests("app")
