"""`ocistream pull | ocistream push` between two real registries copies an image completely or not at all."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.debian_image import DebianImage
from tests.images import OCI_LAYER, Descriptor, Layout
from tests.interop.process_limits import MIB, assert_within_budget, no_files
from tests.peers import DockerRegistry, docker_registry
from tests.registry_http import assert_no_image, manifest, seed
from tests.runner import command, measured, ocistream, pipe, run_measured


@dataclasses.dataclass(frozen=True)
class BigImage:
    """The only image of a layout."""

    layout: Layout
    manifest: Descriptor


def blobs_of(layout: Layout, image: Descriptor) -> set[str]:
    document = layout.read(image["digest"])
    return {blob["digest"] for blob in [document["config"], *document["layers"]]}


@pytest.fixture
def start_big_registry(tmp_path: Path) -> Iterator[Callable[[str], DockerRegistry]]:
    """Return a function that starts a docker-registry with a named storage, which is deleted at the end."""
    with contextlib.ExitStack() as stack:

        def start(name: str) -> DockerRegistry:
            stack.callback(shutil.rmtree, tmp_path / name)
            return stack.enter_context(docker_registry(tmp_path / name))

        yield start


@pytest.fixture(scope="module", params=[14, pytest.param(512, marks=pytest.mark.nightly)], ids="{} MiB".format)
def four_layers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BigImage]:
    """Return an image of four layers that exceeds the memory budget of a process.

    The layers are random bytes, not tar files: no registry parses them.
    """
    folder = tmp_path_factory.mktemp("four-layers")
    layout = Layout(folder)
    try:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            layers = list(pool.map(lambda number: noise(layout, request.param, number), range(4)))
        yield BigImage(layout, layout.image(layers, name="big"))
    finally:
        shutil.rmtree(folder)


def test_four_layers_pass_a_pipe_unchanged_in_bounded_memory_without_a_file(
    four_layers: BigImage, start_big_registry: Callable[[str], DockerRegistry], tmp_path: Path
) -> None:
    digest = four_layers.manifest["digest"]
    source, target = start_big_registry("source"), start_big_registry("target")
    place(four_layers, source, "big", "v1")
    os.mkfifo(tmp_path / "pipe")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pull = [*no_files(), *command(), "pull", f"{source.host}/big:v1"]
        pulling = pool.submit(run_measured, pull, stdout=tmp_path / "pipe", env={"TMPDIR": "/nowhere"})
        push = [*no_files(), *command(), "push", f"{target.host}/big:v1"]
        pushed = run_measured(push, stdin=tmp_path / "pipe", env={"TMPDIR": "/nowhere"})
        pulled = pulling.result()
    assert_within_budget(pulled, pushed)
    assert pushed.lines() == [f"{target.host}/big:v1@{digest}"]
    assert target.tags("big") == {"v1": digest}
    assert manifest(target.host, "big", "v1") == four_layers.layout.file(digest).read_bytes()
    assert target.blobs("big") == blobs_of(four_layers.layout, four_layers.manifest)
    assert target.uploads("big") == []


def test_large_layers_with_their_index_last_are_pushed_from_a_pipe_without_a_file(
    four_layers: BigImage, start_big_registry: Callable[[str], DockerRegistry], tmp_path: Path
) -> None:
    target = start_big_registry("target")
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    names = ["blobs", "index.json", "oci-layout"]
    with subprocess.Popen(["tar", "--create", "--file", fifo, "--directory", four_layers.layout.path, *names]) as tar:
        line = [*no_files(), *command(), "push", f"{target.host}/big:v1"]
        pushed = run_measured(line, stdin=fifo, env={"TMPDIR": "/nowhere"})
    assert tar.returncode == 0
    assert_within_budget(pushed)
    assert target.tags("big") == {"v1": four_layers.manifest["digest"]}
    assert target.blobs("big") == blobs_of(four_layers.layout, four_layers.manifest)


# tests/cli/test_memory.py measures all three with images that are generated while they are read.
@pytest.mark.nightly
@pytest.mark.parametrize("way", ["copy", "pull", "push"])
def test_concurrent_layers_stay_within_the_memory_budget(
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


# -- truncated and damaged streams ------------------------------------------------------------------------

#: Sizes of layers of an image whose stream is cut, in bytes. None of them fits into a pipe's buffer.
LAYERS: Final = (2 * MIB, 3 * MIB, 4 * MIB)


@dataclasses.dataclass(frozen=True)
class Cut:
    """An image in a docker-registry, the archive that `pull` makes of it, and an empty registry."""

    image: Descriptor
    name: str
    archive: Path
    target: DockerRegistry

    @property
    def pushed(self) -> str:
        return f"{self.target.host}/copies/app:v2"


@pytest.fixture
def cut(layout: Layout, registry: DockerRegistry, start_registry: Callable[..., DockerRegistry]) -> Cut:
    image = layout.image(list(LAYERS))
    seed(layout, image, registry.host, "team/app", "v1")
    name, archive = f"{registry.host}/team/app:v1", layout.path / "app.tar"
    assert ocistream("pull", name, "-o", archive).code == 0
    return Cut(image, name, archive, start_registry())


def test_assert_no_image_accepts_only_an_empty_registry(registry: DockerRegistry, layout: Layout) -> None:
    assert_no_image(registry)
    seed(layout, layout.image([b"one"]), registry.host, "app", "v1")
    with pytest.raises(AssertionError):
        assert_no_image(registry)


def test_a_truncated_stream_leaves_no_tag_and_no_manifest_and_the_next_push_completes_the_image(cut: Cut) -> None:
    # The stream ends in the last layer.
    size = cut.archive.stat().st_size * 8 // 10
    pulled, pushed = pipe(["pull", cut.name], ["push", cut.pushed], cut=size)
    assert (pushed.code, pushed.out) == (6, b"")
    assert "truncated" in pushed.err
    assert len(pushed.err.splitlines()) <= 2
    assert pulled.code == 141
    assert_no_image(cut.target)
    # The next run can resume the uploads.
    assert "DELETE" not in {request.split()[0] for request in cut.target.requests()}
    there = len(cut.target.blobs("copies/app"))
    assert there
    _, second = pipe(["pull", cut.name], ["push", "-v", cut.pushed])
    assert second.code == 0
    assert f"{there} already at the destination" in second.err
    assert cut.target.tags("copies/app") == {"v2": cut.image["digest"]}


def test_a_flipped_byte_fails_the_push_and_leaves_no_image(cut: Cut, layout: Layout) -> None:
    # The last byte of the last layer; tests/hostile flips one in every file of an archive.
    digest = layout.read(cut.image["digest"])["layers"][-1]["digest"]
    content = bytearray(cut.archive.read_bytes())
    with tarfile.open(cut.archive) as tar:
        member = tar.getmember(f"blobs/{digest.replace(':', '/')}")
    content[member.offset_data + member.size - 1] ^= 1
    pushed = ocistream("push", cut.pushed, stdin=bytes(content))
    assert (pushed.code, pushed.out) == (5, b"")
    assert digest in pushed.err
    assert_no_image(cut.target)


def noise(layout: Layout, mebibytes: int, seed: int) -> Descriptor:
    """Write a blob of random bytes, each MiB different."""
    block = random.Random(seed).randbytes(MIB - 8)
    file = layout.path / f"noise-{seed}"
    with file.open("wb") as out:
        for number in range(mebibytes):
            out.write(number.to_bytes(8))
            out.write(block)
    return layout.adopt(file, OCI_LAYER)


def place(image: BigImage, registry: DockerRegistry, repository: str, tag: str) -> None:
    """Add an image to a registry's storage by hard links, without copying its layers.

    distribution's `registry/storage/paths.go` describes the storage.
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
