"""The main job, `ocistream pull | ocistream push` between two real registries: whole, or not there at all."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.debian_image import DebianImage
from tests.images import OCI_LAYER, Descriptor, Layout
from tests.interop.process_limits import MIB, assert_within_budget, no_files
from tests.peers import DockerRegistry, docker_registry
from tests.registry_http import assert_no_image, manifest, manifest_digest
from tests.runner import command, measured, measured_pipe, ocistream, pipe, run_measured


@dataclasses.dataclass(frozen=True)
class BigImage:
    """An image that is alone in its layout."""

    layout: Layout
    manifest: Descriptor


def blobs_of(layout: Layout, image: Descriptor) -> set[str]:
    document = layout.read(image["digest"])
    return {blob["digest"] for blob in [document["config"], *document["layers"]]}


def test_a_real_image_crosses_a_pipe_unchanged_and_in_bounded_memory(
    debian_name: str, debian_image: DebianImage, registry: DockerRegistry
) -> None:
    name, digest = f"{registry.host}/copies/debian:v2", debian_image.manifest["digest"]
    pulled, pushed = measured_pipe(["pull", debian_name], ["push", name])
    assert_within_budget(pulled, pushed)
    assert pushed.lines() == [f"{name}@{digest}"]
    assert registry.tags("copies/debian") == {"v2": digest}
    assert manifest(registry.host, "copies/debian", "v2") == debian_image.layout.file(digest).read_bytes()
    assert registry.blobs("copies/debian") == blobs_of(debian_image.layout, debian_image.manifest)
    assert registry.uploads("copies/debian") == []


# tests/cli/test_memory.py measures them with images that are made while they are read.
@pytest.mark.parametrize("way", ["copy", *(pytest.param(way, marks=pytest.mark.nightly) for way in ("pull", "push"))])
def test_layers_that_move_side_by_side_stay_within_the_budget_too(
    way: str,
    debian_name: str,
    debian_archive: Path,
    debian_image: DebianImage,
    registry: DockerRegistry,
    tmp_path: Path,
) -> None:
    name, digest = f"{registry.host}/copies/debian:v2", debian_image.manifest["digest"]
    result = {
        "copy": lambda: measured("copy", debian_name, name),
        "pull": lambda: measured("pull", debian_name, "-o", f"{tmp_path}/layout/"),
        "push": lambda: measured("push", name, "-i", debian_archive),
    }[way]()
    assert_within_budget(result)
    assert result.out.decode().strip().endswith(f"@{digest}")


@pytest.mark.parametrize("percent", [50, pytest.param(99, marks=pytest.mark.nightly)])
def test_a_pipe_that_is_cut_leaves_no_tag_and_no_manifest(
    percent: int, debian_name: str, debian_archive: Path, registry: DockerRegistry
) -> None:
    cut = debian_archive.stat().st_size * percent // 100
    pulled, pushed = pipe(["pull", debian_name], ["push", f"{registry.host}/copies/debian:v2"], cut=cut)
    assert (pushed.code, pushed.out) == (6, b"")
    assert "truncated" in pushed.err
    assert len(pushed.err.splitlines()) <= 2
    # What is left of a cut pipe may all fit into its buffer, and then `pull` cannot know.
    assert pulled.code in ({141} if percent < 99 else {0, 141})
    assert_no_image(registry)
    # The next run may go on with what was sent.
    assert "DELETE" not in {request.split()[0] for request in registry.requests()}


def test_after_a_cut_the_next_push_completes_the_image(
    debian_name: str, debian_archive: Path, debian_image: DebianImage, registry: DockerRegistry
) -> None:
    name = f"{registry.host}/copies/debian:v2"
    cut = debian_archive.stat().st_size * 9 // 10
    _, first = pipe(["pull", debian_name], ["push", name], cut=cut)
    assert first.code == 6
    there = len(registry.blobs("copies/debian"))
    assert there
    _, second = pipe(["pull", debian_name], ["push", "-v", name])
    assert second.code == 0
    assert f"{there} skipped" in second.err
    assert registry.tags("copies/debian") == {"v2": debian_image.manifest["digest"]}


@pytest.mark.parametrize(
    ("number", "position"),
    [
        pytest.param(1, 0.5, id="in a layer", marks=pytest.mark.nightly),
        pytest.param(-1, 1.0, id="at the end of the last"),
    ],
)
def test_a_flipped_byte_is_refused_and_nothing_is_visible(
    number: int, position: float, debian_archive: Path, debian_image: DebianImage, registry: DockerRegistry
) -> None:
    # tests/hostile does so with every file of an archive.
    digest = debian_image.layout.read(debian_image.manifest["digest"])["layers"][number]["digest"]
    pushed = ocistream("push", f"{registry.host}/copies/debian:v2", stdin=flipped(debian_archive, digest, position))
    assert (pushed.code, pushed.out) == (5, b"")
    assert digest in pushed.err
    assert_no_image(registry)


def test_neither_side_of_a_pipe_can_write_a_file_and_neither_needs_to(
    debian_name: str, debian_image: DebianImage, registry: DockerRegistry
) -> None:
    without_files = no_files()
    with subprocess.Popen(
        [*without_files, *command(), "pull", debian_name], stdout=subprocess.PIPE, env=uncovered()
    ) as pull:
        line = [*without_files, *command(), "push", f"{registry.host}/copies/debian:v2"]
        pushed = subprocess.run(line, stdin=pull.stdout, capture_output=True, env=uncovered(), check=False)
    assert (pull.returncode, pushed.returncode) == (0, 0), pushed.stderr
    assert registry.tags("copies/debian") == {"v2": debian_image.manifest["digest"]}


@pytest.fixture(scope="module", params=[32, pytest.param(512, marks=pytest.mark.nightly)], ids="{} MiB".format)
def four_layers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BigImage]:
    """Return an image of four layers of so many MiB; the disk has it no longer than this module's tests take."""
    folder = tmp_path_factory.mktemp("four-layers")
    layout = Layout(folder)
    try:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            layers = list(pool.map(lambda number: noise(layout, request.param, number), range(4)))
        yield BigImage(layout, layout.image(layers, name="big"))
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def two_layers(four_layers: BigImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BigImage]:
    """Return an image of the first two of its layers: more than a process may have."""
    folder = tmp_path_factory.mktemp("two-layers")
    layout = Layout(folder)
    try:
        layers = four_layers.layout.read(four_layers.manifest["digest"])["layers"][:2]
        for layer in layers:
            layout.file(layer["digest"]).parent.mkdir(exist_ok=True)
            layout.file(layer["digest"]).hardlink_to(four_layers.layout.file(layer["digest"]))
        yield BigImage(layout, layout.image(layers, name="big"))
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def start_big_registry(tmp_path: Path) -> Iterator[Callable[[str], DockerRegistry]]:
    """Return a function that starts a docker-registry; its storage, called by the argument, is deleted with it."""
    with contextlib.ExitStack() as stack:

        def start(name: str) -> DockerRegistry:
            stack.callback(shutil.rmtree, tmp_path / name)
            return stack.enter_context(docker_registry(tmp_path / name))

        yield start


def test_four_layers_cross_a_pipe_unchanged_and_in_bounded_memory(
    four_layers: BigImage, start_big_registry: Callable[[str], DockerRegistry]
) -> None:
    layout, digest = four_layers.layout, four_layers.manifest["digest"]
    source, target = start_big_registry("source"), start_big_registry("target")
    place(four_layers, source, "big", "v1")
    pulled, pushed = measured_pipe(["pull", f"{source.host}/big:v1"], ["push", f"{target.host}/big:v1"])
    assert_within_budget(pulled, pushed)
    assert manifest_digest(source.host, "big", "v1") == digest
    assert manifest_digest(target.host, "big", "v1") == digest
    assert target.blobs("big") == blobs_of(layout, four_layers.manifest)


def test_large_layers_with_their_index_last_are_pushed_from_a_pipe_without_a_file(
    two_layers: BigImage, start_big_registry: Callable[[str], DockerRegistry], tmp_path: Path
) -> None:
    layout, manifest = two_layers.layout, two_layers.manifest
    target = start_big_registry("target")
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    names = ["blobs", "index.json", "oci-layout"]
    with subprocess.Popen(["tar", "--create", "--file", fifo, "--directory", layout.path, *names]) as tar:
        line = [*no_files(), *command(), "push", f"{target.host}/big:v1"]
        pushed = run_measured(line, stdin=fifo, env={"TMPDIR": "/nowhere"})
    assert tar.returncode == 0
    assert_within_budget(pushed)
    assert target.tags("big") == {"v1": manifest["digest"]}
    assert target.blobs("big") == blobs_of(layout, manifest)


def test_large_layers_with_their_index_last_are_verified_from_a_pipe_without_a_file(
    two_layers: BigImage, tmp_path: Path
) -> None:
    layout = two_layers.layout
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    names = ["blobs", "index.json", "oci-layout"]
    with subprocess.Popen(["tar", "--create", "--file", fifo, "--directory", layout.path, *names]) as tar:
        line = [*no_files(), *command(), "verify", "--json", "-"]
        verified = run_measured(line, stdin=fifo, env={"TMPDIR": "/nowhere"})
    assert tar.returncode == 0
    assert_within_budget(verified)
    found = json.loads(verified.out)
    assert (found["ok"], found["blobs"], found["unreferenced"]) == (True, 4, 0)
    assert found["bytes"] > sum(layer["size"] for layer in layout.read(two_layers.manifest["digest"])["layers"])


def noise(layout: Layout, mebibytes: int, seed: int) -> Descriptor:
    """Write a blob of so many MiB, each of them different; no registry looks into a layer, so it is no tar file."""
    block = random.Random(seed).randbytes(MIB - 8)
    file = layout.path / f"noise-{seed}"
    with file.open("wb") as out:
        for number in range(mebibytes):
            out.write(number.to_bytes(8))
            out.write(block)
    return layout.adopt(file, OCI_LAYER)


def flipped(archive: Path, digest: str, position: float) -> bytes:
    """Return the archive's bytes with one of them changed: at `position`, 0 to 1, of the blob `digest`."""
    content = bytearray(archive.read_bytes())
    with tarfile.open(archive) as tar:
        member = tar.getmember(f"blobs/{digest.replace(':', '/')}")
    content[member.offset_data + int((member.size - 1) * position)] ^= 1
    return bytes(content)


def uncovered() -> dict[str, str]:
    """Return the environment without coverage, which writes files."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


def place(image: BigImage, registry: DockerRegistry, repository: str, tag: str) -> None:
    """Put an image into a registry's storage by hard links: no copy of its layers is made.

    The storage is laid out as distribution's `registry/storage/paths.go` says.
    """
    folder, top = registry.repository(repository), image.manifest["digest"]
    for digest in [top, *blobs_of(image.layout, image.manifest)]:
        data = registry.root / f"docker/registry/v2/blobs/sha256/{digest[7:9]}/{digest[7:]}/data"
        data.parent.mkdir(parents=True)
        data.hardlink_to(image.layout.file(digest))
        link(folder / "_layers/sha256" / digest[7:], digest)
    link(folder / "_manifests/revisions/sha256" / top[7:], top)
    link(folder / "_manifests/tags" / tag / "current", top)


def link(folder: Path, digest: str) -> None:
    folder.mkdir(parents=True)
    (folder / "link").write_text(digest)
