"""Pushing again what is there: what is asked for, what is believed, and that what a registry has lost comes back."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from ocistream.errors import NetworkError
from ocistream.layout.source import LayoutSource
from ocistream.oci.descriptor import Descriptor
from ocistream.registry.destination import MAX_BLOBS_CHECKED, ExistingImages
from tests.http_doubles import CountingRegistry
from tests.images import Descriptor as Document
from tests.images import Layout
from tests.observers import NothingEarly


def large(layout: Layout, *, more: int = 40, platform: str = "linux/amd64", first: int = 0) -> Document:
    """Write an image of which not every blob is asked for; `first` makes its layers other ones."""
    return layout.image([b"%d" % (first + n) for n in range(MAX_BLOBS_CHECKED + more)], platform=platform)


def asked(registry: CountingRegistry, path: str) -> Counter[str]:
    """Count what was asked for by HEAD, by the last part of its path."""
    return Counter(request.path.rpartition("/")[2] for request in registry.asked("HEAD", path))


@pytest.fixture
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return Layout(tmp_path_factory.mktemp("images"))


def test_who_waits_for_another_s_question_is_told_no_where_it_has_no_answer(layout: Layout) -> None:
    image = large(layout)
    layout.name(image, "1")
    graph = LayoutSource(layout.path).resolve(NothingEarly())
    being_asked, may_end = threading.Event(), threading.Event()
    failures: list[Exception] = []

    def has_manifest(_: str) -> bool:
        being_asked.set()
        may_end.wait(60)
        raise NetworkError("there is no answer")

    known = ExistingImages(has_manifest, lambda _: True)
    (root,) = graph.roots
    known.expect(graph, graph.reachable(root))

    def ask(blob: Descriptor, answers: list[bool]) -> None:
        try:
            answers.append(known.has_blob(blob))
        except NetworkError as error:
            failures.append(error)

    first: list[bool] = []
    second: list[bool] = []
    asking = threading.Thread(target=ask, args=(graph.blobs[0], first))
    waiting = threading.Thread(target=ask, args=(graph.blobs[3], second))
    asking.start()
    assert being_asked.wait(60)
    waiting.start()
    may_end.set()
    asking.join(60)
    waiting.join(60)
    assert (first, second, len(failures)) == ([], [False], 1)
    assert known.has_blob(graph.blobs[4]) is False
