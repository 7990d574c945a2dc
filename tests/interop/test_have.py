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


def test_it_lists_what_the_storage_has(registry: DockerRegistry, layout: Layout) -> None:
    seeded(layout, registry)
    name = f"{registry.host}/team/app"
    assert listed(ocistream("have", name)) == all_in(registry, "team/app")


def test_a_layer_that_was_lost_is_not_listed(registry: DockerRegistry, layout: Layout) -> None:
    image = seeded(layout, registry)
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


def test_what_is_not_there_is_not_found(registry: DockerRegistry, layout: Layout) -> None:
    seeded(layout, registry)
    for end in ("team/other", "team/app:v3", f"team/app@{digest_of(b'nobody has this')}"):
        assertions.failure(ocistream("have", f"{registry.host}/{end}"), 4, "team/")


def test_a_repository_without_tags_has_an_empty_list(registry: DockerRegistry, layout: Layout) -> None:
    seeded(layout, registry)
    # As it is where all images were deleted.
    for tag in (registry.repository("team/app") / "_manifests" / "tags").iterdir():
        shutil.rmtree(tag)
    assert listed(ocistream("have", f"{registry.host}/team/app")) == set()
