"""Which large images a registry already has, by a sample of their blobs."""

from __future__ import annotations

import contextlib

import pytest

from ocistream.errors import NetworkError
from ocistream.layout.source import LayoutSource
from ocistream.oci.descriptor import Descriptor
from ocistream.oci.reference import Reference
from ocistream.registry.destination import MAX_BLOBS_CHECKED, ExistingImages, RegistryDestination
from tests.http_doubles import QuickTransport
from tests.images import Descriptor as Document
from tests.images import Layout
from tests.observers import NothingEarly


def large(layout: Layout, *, more: int = 40, platform: str = "linux/amd64", first: int = 0) -> Document:
    """Write an image of which not every blob is asked for; `first` makes its layers other ones."""
    return layout.image([b"%d" % (first + n) for n in range(MAX_BLOBS_CHECKED + more)], platform=platform)


@pytest.fixture
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return Layout(tmp_path_factory.mktemp("images"))


def test_an_image_exists_only_if_all_checks_succeeded(layout: Layout) -> None:
    layout.name(large(layout), "1")
    graph = LayoutSource(layout.path).resolve(NothingEarly())
    (root,) = graph.roots
    lost: set[str] = set()
    checked: list[str] = []

    def has_manifest(digest: str) -> bool:
        checked.append(digest)
        if not lost:
            raise NetworkError("no response")
        return True

    def has_blob(blob: Descriptor) -> bool:
        checked.append(blob.digest)
        return blob.digest not in lost

    def check_all() -> ExistingImages:
        checked.clear()
        known = ExistingImages(has_manifest, has_blob)
        known.expect(graph, graph.reachable(root))
        checks = known.list_checks(graph.blobs)
        assert len(checks) == 1 + MAX_BLOBS_CHECKED
        assert known.list_checks(graph.blobs) == []
        assert not known.has_blob(graph.blobs[0])
        for check in checks:
            with contextlib.suppress(NetworkError):
                check()
        return known

    # The registry does not say whether it has the manifest.
    assert not check_all().has_blob(graph.blobs[0])
    # A blob outside of the sample is lost.
    lost.add("sha256:other")
    known = check_all()
    assert all(known.has_blob(blob) for blob in graph.blobs)
    assert len(checked) == 1 + MAX_BLOBS_CHECKED
    # A blob of the sample is lost: nothing else is checked then.
    lost.add(checked[1])
    assert not any(check_all().has_blob(blob) for blob in graph.blobs)
    assert len(checked) == 2


def test_thousands_of_images_of_one_repository_need_one_pass_over_the_graph(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        layout.name(layout.image([b"%d" % number]), f"{number}")
    graph = LayoutSource(layout.path).resolve(NothingEarly())
    passes: list[set[str]] = []
    monkeypatch.setattr(ExistingImages, "expect", lambda _self, _graph, needed: passes.append(needed))
    with QuickTransport() as client:
        RegistryDestination(client, lambda root: Reference("localhost:1", "app", root.name), early_target=None).begin(
            graph
        )
    assert passes == [set().union(*(graph.reachable(root) for root in graph.roots))]
