"""Deltas between two releases of an image that share all layers but one, from one docker-registry to another."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.images import Descriptor, Layout, tar_layer
from tests.interop.process_limits import MIB
from tests.peers import DockerRegistry
from tests.registry_http import manifest_digest, seed
from tests.runner import Result, ocistream


@dataclasses.dataclass(frozen=True)
class Far:
    """A remote docker-registry that has the old release as app:1, and a near one with both releases."""

    near: DockerRegistry
    registry: DockerRegistry
    layout: Layout
    new: Descriptor
    #: Digests that only the new release has, including its manifest.
    delta: set[str]

    @property
    def source(self) -> str:
        return f"{self.near.host}/team/app:2"

    def pull(self, archive: Path, *options: str | Path) -> Result:
        return ocistream("pull", self.source, "-o", archive, *options)


@pytest.fixture
def far(registry: DockerRegistry, other_registry: DockerRegistry, layout: Layout) -> Far:
    first = layout.image([2 * MIB, MIB, 300_000, b"the first"])
    layers = layout.read(first["digest"])["layers"]
    new = layout.image([*layers[:-1], tar_layer({"opt/release": b"the second " * 100_000})])
    document = layout.read(new["digest"])
    old = {layer["digest"] for layer in layers}
    delta = {blob["digest"] for blob in (document["config"], *document["layers"])} - old | {new["digest"]}
    seed(layout, first, registry.host, "team/app", "1")
    seed(layout, new, registry.host, "team/app", "2")
    seed(layout, first, other_registry.host, "app", "1")
    return Far(registry, other_registry, layout, new, delta)


def test_a_delta_has_only_the_new_blobs_and_the_destination_completes_the_image(far: Far, tmp_path: Path) -> None:
    listed = assertions.success(ocistream("have", f"{far.registry.host}/app"))
    (tmp_path / "have.txt").write_bytes(listed.out)
    assertions.success(far.pull(tmp_path / "full.tar"))
    assertions.success(far.pull(tmp_path / "delta.tar", "--have", tmp_path / "have.txt"))
    names = [name for name, _ in assertions.entries(tmp_path / "delta.tar") if name.startswith("blobs/")]
    assert {name.removeprefix("blobs/").replace("/", ":") for name in names} == far.delta
    assert (tmp_path / "delta.tar").stat().st_size < (tmp_path / "full.tar").stat().st_size / 20
    assertions.success(ocistream("verify", tmp_path / "delta.tar"))
    assertions.success(ocistream("push", f"{far.registry.host}/app:2", stdin=tmp_path / "delta.tar"))
    assert manifest_digest(far.registry.host, "app", "2") == far.new["digest"]
    assert far.registry.uploads("app") == []


def test_omitted_blobs_are_mounted_from_another_repository_of_the_destination(far: Far, tmp_path: Path) -> None:
    assertions.success(far.pull(tmp_path / "delta.tar", "--have", f"{far.registry.host}/app"))
    # The archive names the repository that has the blobs.
    assertions.success(ocistream("push", f"{far.registry.host}/mirror/app:2", "-i", tmp_path / "delta.tar"))
    assert manifest_digest(far.registry.host, "mirror/app", "2") == far.new["digest"]
    # If the archive names another registry, --mount-from names the repository.
    assertions.success(far.pull(tmp_path / "based.tar", "--base", f"{far.near.host}/team/app:1"))
    target = f"{far.registry.host}/other:2"
    refused = ocistream("push", target, "-i", tmp_path / "based.tar")
    assertions.failure(refused, 6, "--only")
    assert far.registry.uploads("other") == []
    assert far.registry.blobs("other") == set()
    assertions.success(ocistream("push", target, "-i", tmp_path / "based.tar", "--mount-from", "app"))
    assert manifest_digest(far.registry.host, "other", "2") == far.new["digest"]
