"""Layers compressed anew on the way, at full size: the Debian image between real registries; a small one is run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.debian_image import DebianImage
from tests.images import Layout
from tests.interop.image_contents import compression_of, in_layout
from tests.interop.process_limits import COMPRESSING_BUDGET, assert_within_budget
from tests.interop.program_image import GREETING, podman_run, program_image
from tests.peers import DockerRegistry, Tools, docker_registry
from tests.registry_http import manifest, manifest_digest, seed
from tests.runner import measured, measured_pipe, ocistream


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Return a docker-registry for all tests here."""
    with docker_registry(tmp_path_factory.mktemp("target")) as registry:
        yield registry


@pytest.fixture(scope="module")
def in_zstd(debian_name: str, target: DockerRegistry) -> str:
    """Copy the Debian image, its layers made zstd, and return its new digest; it is debian/zstd:v1 of `target`."""
    name = f"{target.host}/debian/zstd:v1"
    result = measured("copy", "--compress=zstd", debian_name, name)
    assert_within_budget(result, budget=COMPRESSING_BUDGET)
    (line,) = result.lines()
    named, _, digest = line.partition("@")
    assert named == name
    return digest


def diff_ids(image: DebianImage) -> list[str]:
    config = image.layout.read(image.layout.read(image.manifest["digest"])["config"]["digest"])
    return list(config["rootfs"]["diff_ids"])


def test_skopeo_gets_the_layers_of_the_image_in_zstd(
    in_zstd: str, target: DockerRegistry, debian_image: DebianImage, tools: Tools, tmp_path: Path
) -> None:
    assert in_zstd != debian_image.manifest["digest"]
    assert target.tags("debian/zstd") == {"v1": in_zstd}
    assert manifest_digest(target.host, "debian/zstd", "v1") == in_zstd
    tools.run("skopeo", "copy", f"docker://{target.host}/debian/zstd:v1", f"oci:{tmp_path / 'pulled'}:v1")
    found = in_layout(tmp_path / "pulled")
    assert found.digest == in_zstd
    assert found.diff_ids == diff_ids(debian_image)
    assert {compression_of(layer) for layer in found.layers} == {"zstd"}


def test_podman_runs_one(target: DockerRegistry, layout: Layout, tools: Tools) -> None:
    # A small one: to unpack the other takes it long.
    seed(layout, program_image(layout), target.host, "program/gzip", "v1")
    name = f"{target.host}/program/zstd:v1"
    result = ocistream("copy", "--compress=zstd", f"{target.host}/program/gzip:v1", name)
    assert result.code == 0, result.err
    document = json.loads(manifest(target.host, "program/zstd", "v1") or b"")
    assert {compression_of(layer["mediaType"]) for layer in document["layers"]} == {"zstd"}
    tools.run("podman", "pull", "--quiet", name)
    assert podman_run(tools, name) == GREETING


# tests/cli/test_recompression.py pulls into a file, a directory and a pipe, and reads the document.
@pytest.mark.nightly
def test_pull_makes_the_same_of_it_and_says_what_it_was_made_of(
    in_zstd: str, debian_name: str, debian_image: DebianImage, tmp_path: Path
) -> None:
    archive, report = tmp_path / "pulled.tar", tmp_path / "report.json"
    result = measured("pull", "--compress=zstd", "--result", report, debian_name, "-o", archive)
    assert_within_budget(result, budget=COMPRESSING_BUDGET)
    assert result.lines() == [f"{debian_name}@{in_zstd}"]
    document = json.loads(report.read_bytes())
    (image,) = document["images"]
    assert (image["digest"], image["from"]) == (in_zstd, debian_image.manifest["digest"])
    before = [layer["digest"] for layer in debian_image.layout.read(image["from"])["layers"]]
    assert [blob["from"] for blob in document["blobs"] if blob["status"] == "converted"] == before


# tests/cli/test_recompression.py pushes out of a pipe too, and measures the memory.
@pytest.mark.nightly
def test_push_makes_the_same_of_it_out_of_a_pipe(in_zstd: str, debian_name: str, target: DockerRegistry) -> None:
    name = f"{target.host}/debian/piped:v1"
    pulled, pushed = measured_pipe(["pull", debian_name], ["push", "--compress=zstd", name])
    assert_within_budget(pulled, pushed, budget=COMPRESSING_BUDGET)
    assert pushed.lines() == [f"{name}@{in_zstd}"]


@pytest.fixture(scope="module")
def copied(debian_name: str, target: DockerRegistry) -> Callable[[str], Any]:
    """Return a function that copies the Debian image as asked, and gives its new manifest."""

    def copy(asked: str) -> Any:
        result = measured("copy", f"--compress={asked}", debian_name, f"{target.host}/debian/{asked[:4]}:v1")
        assert_within_budget(result, budget=COMPRESSING_BUDGET)
        return json.loads(manifest(target.host, f"debian/{asked[:4]}", "v1") or b"")

    return copy


def test_plain_layers_have_the_digests_that_the_config_promises(
    copied: Callable[[str], Any], debian_image: DebianImage
) -> None:
    document = copied("none")
    assert [layer["digest"] for layer in document["layers"]] == diff_ids(debian_image)
    assert {compression_of(layer["mediaType"]) for layer in document["layers"]} == {"none"}


def test_layers_that_are_gzip_already_stay_as_they_are_at_any_level(
    copied: Callable[[str], Any], debian_image: DebianImage
) -> None:
    assert copied("gzip:9") == debian_image.layout.read(debian_image.manifest["digest"])


def test_a_second_copy_is_the_same_image(in_zstd: str, target: DockerRegistry, registry: DockerRegistry) -> None:
    """What is zstd already is not touched either."""
    name = f"{registry.host}/again:v1"
    result = ocistream("copy", "--compress=zstd:9", f"{target.host}/debian/zstd:v1", name)
    assert result.lines() == [f"{name}@{in_zstd}"], result.err
