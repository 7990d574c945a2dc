"""`ocistream copy` between every pair of ends, and every kind of image: the manifest's digest does not change."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocistream.serve import Registry
from tests.archives import unpack
from tests.images import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_LAYER,
    Descriptor,
    Layout,
    small_image,
    tar_layer,
    two_platforms,
)
from tests.peers import Dockerd, DockerRegistry, Tools, docker_registry
from tests.registry_http import assert_no_image, manifest, seed
from tests.runner import Result, ocistream, pipe


def copied(*argv: str | Path) -> Result:
    result = ocistream("copy", *argv)
    assert result.code == 0, result.err
    return result


def requests_to(registry: DockerRegistry, method: str) -> list[str]:
    return [request for request in registry.requests() if request.startswith(f"{method} ")]


# -- every pair of ends -----------------------------------------------------------------------------------

ENDS = ["a registry", "oci:", "oci-archive:", "a directory", "a file"]


def end(kind: str, folder: Path, registry: DockerRegistry) -> str:
    """Write an end as a user does, for an image that is called v1 where the end has names."""
    return {
        "a registry": f"{registry.host}/{folder.name}/app:v1",
        "oci:": f"oci:{folder}/layout:v1",
        "oci-archive:": f"oci-archive:{folder}/archive.tar:v1",
        "a directory": f"{folder}/directory/",
        "a file": f"{folder}/file.tar",
    }[kind]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Layout, Descriptor]:
    """Return a folder with one image in each kind of end that is on the disk, made without ocistream."""
    folder = tmp_path_factory.mktemp("from")
    layout = Layout(folder / "layout")
    image = small_image(layout, name="v1")
    subprocess.run(["cp", "--recursive", layout.path, folder / "directory"], check=True)
    for archive in ("archive.tar", "file.tar"):
        subprocess.run(["tar", "--create", "--file", folder / archive, "--directory", layout.path, "."], check=True)
    return folder, layout, image


@pytest.fixture(scope="module")
def shared_registry(
    tmp_path_factory: pytest.TempPathFactory, sources: tuple[Path, Layout, Descriptor]
) -> Iterator[DockerRegistry]:
    """Return a docker-registry that holds the image too."""
    folder, layout, image = sources
    with docker_registry(tmp_path_factory.mktemp("registry")) as registry:
        seed(layout, image, registry.host, f"{folder.name}/app", "v1")
        yield registry


@pytest.mark.parametrize("target", ENDS)
@pytest.mark.parametrize("source", ENDS)
def test_any_end_to_any_end(
    source: str,
    target: str,
    sources: tuple[Path, Layout, Descriptor],
    shared_registry: DockerRegistry,
    registry: DockerRegistry,
    tmp_path: Path,
) -> None:
    folder, layout, image = sources
    to = end(target, tmp_path, registry)
    result = copied(end(source, folder, shared_registry), to)
    assert result.out.decode().strip().endswith(f"@{image['digest']}")
    documents = {blob: layout.file(blob).read_bytes() for blob in blobs_of(layout, image)}
    if target == "a registry":
        name = f"{tmp_path.name}/app"
        assert registry.tags(name) == {"v1": image["digest"]}
        assert registry.blobs(name) | registry.manifests(name) == set(documents)
    else:
        index, blobs = read_end(target, tmp_path)
        assert [entry["digest"] for entry in index["manifests"]] == [image["digest"]]
        assert blobs == documents


def blobs_of(layout: Layout, image: Descriptor) -> set[str]:
    document = layout.read(image["digest"])
    return {image["digest"], document["config"]["digest"], *(layer["digest"] for layer in document["layers"])}


def read_end(kind: str, folder: Path) -> tuple[Any, dict[str, bytes]]:
    """Return the index and all blobs of the one layout or archive that `end` names below `folder`."""
    path = (
        folder
        / {
            "oci:": "layout",
            "oci-archive:": "archive.tar",
            "a directory": "directory",
            "a file": "file.tar",
        }[kind]
    )
    if path.is_file():
        with tarfile.open(path) as tar:
            unpack(tar, folder / "unpacked")
        path = folder / "unpacked"
    blobs = {f"sha256:{file.name}": file.read_bytes() for file in (path / "blobs/sha256").iterdir()}
    return json.loads((path / "index.json").read_bytes()), blobs


def test_a_copy_from_stdin_to_stdout_keeps_the_digest(
    sources: tuple[Path, Layout, Descriptor], shared_registry: DockerRegistry, registry: DockerRegistry
) -> None:
    folder, _, image = sources
    source = end("a registry", folder, shared_registry)
    first, second = pipe(["copy", source, "-"], ["copy", "oci-archive:-", f"{registry.host}/app:v1"])
    assert (first.code, second.code) == (0, 0), (first.err, second.err)
    assert registry.tags("app") == {"v1": image["digest"]}


# -- within one registry ----------------------------------------------------------------------------------


def test_within_one_registry_blobs_are_mounted_and_none_is_sent(
    registry: DockerRegistry, layout: Layout, tmp_path: Path
) -> None:
    image = small_image(layout)
    seed(layout, image, registry.host, "team/app", "v1")
    sent = len(requests_to(registry, "PUT")), len(requests_to(registry, "PATCH"))
    copied(f"{registry.host}/team/app:v1", f"{registry.host}/other/app:v2", "--result", tmp_path / "result.json")
    assert registry.tags("other/app") == {"v2": image["digest"]}
    assert registry.blobs("other/app") == registry.blobs("team/app")
    # The one PUT is the manifest's.
    assert (len(requests_to(registry, "PUT")), len(requests_to(registry, "PATCH"))) == (sent[0] + 1, sent[1])
    result = json.loads((tmp_path / "result.json").read_bytes())
    assert {blob["status"] for blob in result["blobs"]} == {"mounted"}
    assert result["bytes"]["copied"] == 0


def test_a_copy_again_sends_nothing_at_all(
    registry: DockerRegistry, other_registry: DockerRegistry, layout: Layout
) -> None:
    seed(layout, small_image(layout), registry.host, "app", "v1")
    names = f"{registry.host}/app:v1", f"{other_registry.host}/app:v1"
    copied(*names)
    first = len(other_registry.requests())
    copied(*names)
    again = other_registry.requests()[first:]
    assert again
    assert {request.split()[0] for request in again} == {"HEAD"}


# -- every kind of image ----------------------------------------------------------------------------------


@pytest.mark.parametrize("media", ["oci", "docker"])
def test_an_index_travels_byte_for_byte(
    media: Any, registry: DockerRegistry, other_registry: DockerRegistry, layout: Layout, tmp_path: Path
) -> None:
    index = two_platforms(layout, media=media)
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


@pytest.mark.parametrize("where", ["a registry", "oci:", "oci-archive:"])
def test_one_platform_of_an_index_is_that_platforms_manifest(
    where: str, registry: DockerRegistry, other_registry: DockerRegistry, layout: Layout, tmp_path: Path
) -> None:
    index = two_platforms(layout, name="v1")
    arm = layout.read(index["digest"])["manifests"][1]
    seed(layout, index, registry.host, f"{tmp_path.name}/app", "v1")
    subprocess.run(["tar", "--create", "--file", tmp_path / "archive.tar", "--directory", layout.path, "."], check=True)
    layout.path.rename(tmp_path / "layout")
    copied("--platform", "linux/arm64", end(where, tmp_path, registry), f"{other_registry.host}/app:arm")
    assert other_registry.tags("app") == {"arm": arm["digest"]}
    assert other_registry.manifests("app") == {arm["digest"]}


def test_a_docker_image_of_skopeos_stays_one(
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


def test_a_docker_list_of_skopeos_stays_one(
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
        # That registry does not list what refers to the image, so its clients do.
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


def test_an_image_that_is_sha512_throughout_gets_no_tag_where_manifests_are_known_by_sha256_alone(
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


def test_an_image_that_is_sha512_throughout_keeps_its_digest_through_a_registry_that_knows_it(
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
        # skopeo stores no blobs by sha512, but the tag is one that it can ask for.
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
