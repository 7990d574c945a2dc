"""`verify` and `inspect` read archives and directories that other tools wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.images import Layout, two_platforms
from tests.interop.foreign_writers import APP, DOCKER_WRITERS, OCI_WRITERS, WEB, WRITERS_OF_BOTH, Bench, written
from tests.interop.image_contents import compression_of, entries_of, in_archive, in_docker_archive, in_layout
from tests.peers import DockerRegistry, Tools
from tests.registry_http import seed
from tests.runner import Result, ocistream

#: One of each form: the index last or first, and docker-archives with and without links.
FORMS: Final = ("skopeo-oci", "umoci-in-a-tar", "docker-save", "podman-docker")
ALL: Final = (*OCI_WRITERS, *DOCKER_WRITERS)


def run(verb: str, archive: Path, *options: str) -> Result:
    """Run a command on an archive from a pipe; tests/hostile/test_pipe_and_file_agree.py also tests files."""
    return ocistream(verb, "-", *options, stdin=archive.read_bytes())


def told(result: Result) -> Any:
    assert result.code == 0, result.err
    return json.loads(result.out)


# -- verify -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", ALL)
def test_verify_accepts_archives_of_other_tools(writer: str, bench: Bench) -> None:
    archive = written(bench, writer)
    found = told(run("verify", archive, "--deep", "--json"))
    assert found["ok"]
    assert found["unpacked"] == len(set(in_layout(bench.app[0].path).diff_ids))
    if writer in OCI_WRITERS:
        assert found["format"] == "OCI archive"
        assert [image["digest"] for image in found["images"]] == [entry["digest"] for entry in entries_of(archive)]
    else:
        assert found["format"] == "docker-archive"
        assert [image["name"] for image in found["images"]] == [APP]


@pytest.mark.parametrize("path", ["copied", "umoci"])
def test_verify_accepts_directories_of_other_tools(path: str, bench: Bench) -> None:
    assert bench.copied.is_dir()
    written(bench, "umoci-in-a-tar")
    found = told(ocistream("verify", bench.folder / path, "--json", "--deep"))
    assert (found["ok"], found["format"], found["blobs"]) == (True, "OCI layout", 6)


# -- inspect ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", FORMS)
def test_inspect_lists_the_same_layers_as_skopeo(writer: str, bench: Bench, tools: Tools) -> None:
    archive = written(bench, writer)
    (image,) = told(run("inspect", archive, "--json"))["images"]
    kind = "oci-archive" if writer in OCI_WRITERS else "docker-archive"
    seen = json.loads(tools.run("skopeo", "inspect", f"{kind}:{archive}").stdout)
    assert [layer["digest"] for layer in image["layers"]] == seen["Layers"]
    assert image["platform"] == f"{seen['Os']}/{seen['Architecture']}"
    if writer in OCI_WRITERS:
        assert image["digest"] == seen["Digest"]
        assert [layer["compression"] for layer in image["layers"]] == [
            compression_of(media_type) for media_type in in_archive(archive).layers
        ]
    else:
        assert image["name"] == APP
        assert image["config"]["digest"] == in_docker_archive(archive).config


def test_inspect_of_a_registry_lists_the_same_as_skopeo(
    bench: Bench, registry: DockerRegistry, tools: Tools, layout: Layout
) -> None:
    seed(*bench.app, registry.host, "app", "v1")
    seed(layout, two_platforms(layout), registry.host, "app", "both")
    (image,) = told(ocistream("inspect", f"{registry.host}/app:v1", "--json"))["images"]
    seen = json.loads(tools.run("skopeo", "inspect", f"docker://{registry.host}/app:v1").stdout)
    assert image["digest"] == seen["Digest"]
    assert image["platform"] == f"{seen['Os']}/{seen['Architecture']}"
    assert [layer["digest"] for layer in image["layers"]] == seen["Layers"]
    listed = bench.app[0].read(bench.app[1]["digest"])["layers"]
    assert [layer["size"] for layer in image["layers"]] == [layer["size"] for layer in listed]
    (index,) = told(ocistream("inspect", f"{registry.host}/app:both", "--json"))["images"]
    raw = json.loads(tools.run("skopeo", "inspect", "--raw", f"docker://{registry.host}/app:both").stdout)
    assert [(child["digest"], child["platform"]) for child in index["manifests"]] == [
        (
            child["digest"],
            "/".join(child["platform"][key] for key in ("os", "architecture", "variant") if key in child["platform"]),
        )
        for child in raw["manifests"]
    ]


@pytest.mark.parametrize("writer", WRITERS_OF_BOTH)
def test_two_images_of_other_tools_are_valid_and_share_layers(writer: str, bench: Bench) -> None:
    found = told(run("verify", written(bench, writer), "--json"))
    assert (found["ok"], found["deep"]) == (True, False)
    document = told(run("inspect", written(bench, writer), "--json"))
    for images in (found["images"], document["images"]):
        assert {image["name"] for image in images} == {APP, WEB}
    for image in document["images"]:
        assert [layer.get("sharedBy", 1) for layer in image["layers"]] == [2, 2, 2, 1, 2]
