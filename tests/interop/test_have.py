"""`ocistream have`, asked of a real registry: what it says is there is what its storage has."""

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


def test_it_lists_what_the_storage_has_and_no_layer_that_was_lost(registry: DockerRegistry, layout: Layout) -> None:
    image = seeded(layout, registry)
    assert listed(ocistream("have", f"{registry.host}/team/app")) == all_in(registry, "team/app")
    lost = layout.read(image["digest"])["layers"][1]["digest"]
    shutil.rmtree(registry.repository("team/app") / "_layers" / lost.replace(":", "/"))
    found = listed(ocistream("have", f"{registry.host}/team/app"))
    assert lost not in found
    assert found == all_in(registry, "team/app")


def test_which_of_a_list_are_there(registry: DockerRegistry, layout: Layout) -> None:
    image = seeded(layout, registry)
    there = all_in(registry, "team/app")
    asked = "\n".join([*there, digest_of(b"nobody has this")]).encode()
    name = f"{registry.host}/team/app"
    # By its digest alone nobody knows that one is a manifest's.
    assert image["digest"] in there
    assert listed(ocistream("have", name, "--among", "-", stdin=asked)) == there
    other = f"{registry.host}/team/other"
    assert listed(ocistream("have", other, "--among", "-", stdin=asked)) == set()
    found = listed(ocistream("have", other, "--among", "-", "--mount-from", "team/app", stdin=asked))
    assert found == there
