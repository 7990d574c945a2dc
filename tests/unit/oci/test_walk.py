"""The walk: it requests each document once, all known ones at a time, and takes the answers in any order."""

from __future__ import annotations

import random

import pytest

from ocistream.oci.descriptor import Descriptor
from ocistream.oci.graph import Graph, Root
from ocistream.oci.walk import Need, run_walk, walk_images
from tests.images import Descriptor as LayoutDescriptor
from tests.images import Layout, two_platforms


def roots_of(*images: LayoutDescriptor) -> list[Root]:
    return [Root(None, Descriptor(image["mediaType"], image["digest"], image["size"])) for image in images]


def answered_in_random_order(layout: Layout, roots: list[Root], seed: int) -> Graph:
    walk = walk_images(roots)
    needs = [*next(walk)]
    asked = {need.digest for need in needs}
    order = random.Random(seed)
    while True:
        need = needs.pop(order.randrange(len(needs)))
        try:
            new = walk.send((need, layout.file(need.digest).read_bytes()))
        except StopIteration as end:
            graph: Graph = end.value
            return graph
        assert not asked & {need.digest for need in new}
        asked |= {need.digest for need in new}
        needs += new


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_answers_does_not_matter(layout: Layout, seed: int) -> None:
    index = two_platforms(layout)
    nested = layout.index([index, layout.image([b"third"])])
    roots = roots_of(nested, index)
    expected = run_walk(walk_images(roots), lambda need: layout.file(need.digest).read_bytes())
    assert answered_in_random_order(layout, roots, seed) == expected


def test_the_oldest_need_is_read_first(layout: Layout) -> None:
    index = two_platforms(layout)
    single = layout.image([b"single"])
    read: list[str] = []

    def read_document(need: Need) -> bytes:
        read.append(need.digest)
        return layout.file(need.digest).read_bytes()

    run_walk(walk_images(roots_of(index, single)), read_document)
    children = [child["digest"] for child in layout.read(index["digest"])["manifests"]]
    assert read == [index["digest"], single["digest"], *children]


def test_a_document_that_the_source_lacks_is_absent(layout: Layout) -> None:
    index = two_platforms(layout)
    lacking = layout.read(index["digest"])["manifests"][0]["digest"]
    graph = run_walk(
        walk_images(roots_of(index)),
        lambda need: None if need.digest == lacking else layout.file(need.digest).read_bytes(),
    )
    assert [manifest.digest for manifest in graph.absent] == [lacking]


def test_a_walk_without_images_needs_nothing() -> None:
    graph = run_walk(walk_images([]), lambda _: None)
    assert (graph.roots, graph.manifests) == ((), ())
