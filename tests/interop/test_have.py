"""`ocistream have` lists the blobs that the storage of a real registry has."""

from __future__ import annotations

import shutil

from tests.cli import assertions
from tests.images import Descriptor, Layout, digest_of, small_image, two_platforms
from tests.peers import DockerRegistry
from tests.registry_http import seed
from tests.runner import Result, ocistream


def listed(result: Result) -> set[str]:
    assertions.success(result)
    return {line for line in result.lines() if not line.startswith("#")}


def all_in(registry: DockerRegistry, name: str) -> set[str]:
    return registry.blobs(name) | registry.manifests(name)


def seeded(layout: Layout, registry: DockerRegistry) -> Descriptor:
    image = small_image(layout)
    seed(layout, image, registry.host, "team/app", "v1")
    seed(layout, two_platforms(layout), registry.host, "team/app", "both")
    return image


def test_have_lists_the_blobs_of_the_storage_without_a_lost_layer(registry: DockerRegistry, layout: Layout) -> None:
    image = seeded(layout, registry)
    assert listed(ocistream("have", f"{registry.host}/team/app")) == all_in(registry, "team/app")
    lost = layout.read(image["digest"])["layers"][1]["digest"]
    shutil.rmtree(registry.repository("team/app") / "_layers" / lost.replace(":", "/"))
    found = listed(ocistream("have", f"{registry.host}/team/app"))
    assert lost not in found
    assert found == all_in(registry, "team/app")


def test_among_lists_the_digests_of_a_list_that_the_registry_has(registry: DockerRegistry, layout: Layout) -> None:
    image = seeded(layout, registry)
    there = all_in(registry, "team/app")
    asked = "\n".join([*there, digest_of(b"nobody has this")]).encode()
    name = f"{registry.host}/team/app"
    # The digest alone does not show that it is a manifest.
    assert image["digest"] in there
    assert listed(ocistream("have", name, "--among", "-", stdin=asked)) == there
    other = f"{registry.host}/team/other"
    assert listed(ocistream("have", other, "--among", "-", stdin=asked)) == set()
    found = listed(ocistream("have", other, "--among", "-", "--mount-from", "team/app", stdin=asked))
    assert found == there
