"""`verify` and `inspect` on what the tools of others wrote, and on what ocistream wrote: what they say is so."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any, Final

import pytest

from tests.images import Layout, two_platforms
from tests.interop.foreign_writers import APP, DOCKER_WRITERS, OCI_WRITERS, WEB, WRITERS_OF_BOTH, Bench, written
from tests.interop.image_contents import compression_of, entries_of, in_archive, in_docker_archive, in_layout
from tests.peers import DockerRegistry, Tools
from tests.registry_http import seed
from tests.runner import Result, ocistream

#: One of each form: with the index last and first, and docker-archives with links and without.
FORMS: Final = ("skopeo-oci", "umoci-in-a-tar", "docker-save", "podman-docker")
some_writers = pytest.mark.parametrize("writer", FORMS)
ALL: Final = (*OCI_WRITERS, *DOCKER_WRITERS)
every_writer = pytest.mark.parametrize("writer", ALL)
both_ways = pytest.mark.parametrize("how", ["file", "pipe"])


def run(verb: str, archive: Path | bytes, how: str, *options: str) -> Result:
    if isinstance(archive, bytes):
        return ocistream(verb, "-", *options, stdin=archive)
    if how == "pipe":
        return ocistream(verb, "-", *options, stdin=archive.read_bytes())
    return ocistream(verb, archive if verb == "verify" else f"oci-archive:{archive}", *options)


def told(result: Result) -> Any:
    assert result.code == 0, result.err
    return json.loads(result.out)


# -- verify -----------------------------------------------------------------------------------------------


@both_ways
@every_writer
def test_what_others_wrote_is_ok(writer: str, how: str, bench: Bench) -> None:
    archive = written(bench, writer)
    found = told(run("verify", archive, how, "--deep", "--json"))
    assert found["ok"]
    assert found["unpacked"] == len(set(in_layout(bench.app[0].path).diff_ids))
    if writer in OCI_WRITERS:
        assert found["format"] == "OCI archive"
        assert [image["digest"] for image in found["images"]] == [entry["digest"] for entry in entries_of(archive)]
    else:
        assert found["format"] == "docker-archive"
        assert [image["name"] for image in found["images"]] == [APP]


@pytest.mark.parametrize("writer", WRITERS_OF_BOTH)
def test_several_images_of_others_are_ok(writer: str, bench: Bench) -> None:
    found = told(run("verify", written(bench, writer), "pipe", "--json"))
    assert (found["ok"], found["deep"]) == (True, False)
    assert {image["name"] for image in found["images"]} == {APP, WEB}


@pytest.mark.parametrize("deep", [(), ("--deep",)], ids=["", "deep"])
@pytest.mark.parametrize("path", ["copied", "umoci"])
def test_directories_of_others_are_ok(path: str, deep: tuple[str, ...], bench: Bench) -> None:
    assert bench.copied.is_dir()
    written(bench, "umoci-in-a-tar")
    found = told(ocistream("verify", bench.folder / path, "--json", *deep))
    assert (found["ok"], found["format"], found["blobs"]) == (True, "OCI layout", 6)


@both_ways
@some_writers
def test_a_byte_that_is_wrong_is_found(writer: str, how: str, bench: Bench, tmp_path: Path) -> None:
    archive = tmp_path / "flipped.tar"
    archive.write_bytes(flipped(written(bench, writer)))
    result = run("verify", archive, how, "--json")
    assert result.code == 5, result.err
    assert not json.loads(result.out)["ok"]


@both_ways
@some_writers
def test_an_archive_that_is_cut_is_found(writer: str, how: str, bench: Bench, tmp_path: Path) -> None:
    whole = written(bench, writer).read_bytes()
    archive = tmp_path / "cut.tar"
    archive.write_bytes(whole[: len(whole) // 2])
    result = run("verify", archive, how, "--json")
    assert result.code == 6, result.err
    assert "truncated" in result.err
    assert not json.loads(result.out)["ok"]


def flipped(archive: Path) -> bytes:
    """Return an archive's bytes with one of them changed, in the middle of its largest file: a layer."""
    content = bytearray(archive.read_bytes())
    with tarfile.open(archive) as tar:
        largest = max((member for member in tar if member.isreg()), key=lambda member: member.size)
    content[largest.offset_data + largest.size // 2] ^= 1
    return bytes(content)


@pytest.mark.parametrize("options", [(), ("--compress=zstd",), ("--format=docker-archive",)], ids=" ".join)
def test_what_ocistream_wrote_is_ok(
    options: tuple[str, ...], bench: Bench, registry: DockerRegistry, tmp_path: Path
) -> None:
    seed(*bench.app, registry.host, "app", "v1")
    archive = tmp_path / "pulled.tar"
    assert ocistream("pull", *options, f"{registry.host}/app:v1", "-o", archive).code == 0
    for how in ("file", "pipe"):
        found = told(run("verify", archive, how, "--deep", "--json"))
        assert (found["ok"], found["unpacked"], found["unreferenced"]) == (True, 4, 0)


# -- inspect ----------------------------------------------------------------------------------------------


@both_ways
@some_writers
def test_it_lists_what_skopeo_lists(writer: str, how: str, bench: Bench, tools: Tools) -> None:
    archive = written(bench, writer)
    (image,) = told(run("inspect", archive, how, "--json"))["images"]
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


def test_it_lists_what_a_registry_has_as_skopeo_does(
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
def test_it_tells_what_two_images_share(writer: str, bench: Bench) -> None:
    document = told(run("inspect", written(bench, writer), "pipe", "--json"))
    assert {image["name"] for image in document["images"]} == {APP, WEB}
    for image in document["images"]:
        assert [layer.get("sharedBy", 1) for layer in image["layers"]] == [2, 2, 2, 1, 2]
