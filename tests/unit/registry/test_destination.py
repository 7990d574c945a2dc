"""The cost of preparing a push of many images."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ocistream.layout.source import LayoutSource
from ocistream.oci.descriptor import Manifest
from ocistream.oci.documents import Document
from ocistream.oci.graph import Graph
from ocistream.oci.reference import Reference
from ocistream.registry.destination import RegistryDestination
from tests.http_doubles import QuickTransport
from tests.images import Layout
from tests.observers import NothingEarly


def test_all_images_of_one_repository_need_one_pass_over_the_graph(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        layout.name(layout.image([b"%d" % number]), f"{number}")
    graph = LayoutSource(layout.path).resolve(NothingEarly())
    passes: list[Graph] = []
    images = Graph.images

    def count(graph: Graph) -> Iterator[tuple[Manifest, Document]]:
        passes.append(graph)
        return images(graph)

    monkeypatch.setattr(Graph, "images", count)
    with QuickTransport() as client:
        destination = RegistryDestination(
            client, lambda root: Reference("localhost:1", "app", root.name), early_target=None
        )
        destination.begin(graph)
    assert len(passes) == 1
