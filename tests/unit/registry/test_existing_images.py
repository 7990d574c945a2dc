"""Pushing again what is there: what is asked for, what is believed, and that what a registry has lost comes back."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import pytest

from ocistream.errors import NetworkError
from ocistream.layout.source import LayoutSource
from ocistream.oci.descriptor import Descriptor
from ocistream.oci.reference import parse_reference
from ocistream.registry.destination import MAX_BLOBS_CHECKED, ExistingImages, RegistryDestination
from ocistream.transfer.copy import Report, copy
from tests.faulty_registry import Fault, refusal
from tests.http_doubles import CountingRegistry, QuickTransport
from tests.images import Descriptor as Document
from tests.images import Layout
from tests.observers import NothingEarly

Faulty = Callable[..., CountingRegistry]
Quick = Callable[..., QuickTransport]


def large(layout: Layout, *, more: int = 40, platform: str = "linux/amd64", first: int = 0) -> Document:
    """Write an image of which not every blob is asked for; `first` makes its layers other ones."""
    return layout.image([b"%d" % (first + n) for n in range(MAX_BLOBS_CHECKED + more)], platform=platform)


def usual(layout: Layout) -> Document:
    """Write an image of as many blobs as are asked for."""
    return layout.image([b"%d" % number for number in range(MAX_BLOBS_CHECKED - 1)])


def blobs_of(layout: Layout, image: Document) -> list[str]:
    document = layout.read(image["digest"])
    return [blob["digest"] for blob in (document["config"], *document["layers"])]


def push(layout: Layout, registry: CountingRegistry, transport: QuickTransport, *, jobs: int = 4) -> Report:
    reference = parse_reference(f"{registry.host}/app:1")
    sink = RegistryDestination(transport, lambda _: reference)
    registry.requests.clear()
    try:
        return copy(LayoutSource(layout.path), sink, jobs=jobs)
    finally:
        sink.close()


def asked(registry: CountingRegistry, path: str) -> Counter[str]:
    """Count what was asked for by HEAD, by the last part of its path."""
    return Counter(request.path.rpartition("/")[2] for request in registry.asked("HEAD", path))


def became(report: Report, how: str) -> set[str]:
    return {moved.descriptor.digest for moved in report.blobs if moved.status == how}


def lose(registry: CountingRegistry, digest: str) -> None:
    registry.layout.blob_path(digest).unlink()


@pytest.fixture
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return Layout(tmp_path_factory.mktemp("images"))


def test_each_repository_answers_for_itself(faulty: Faulty, quick: Quick, layout: Layout) -> None:
    lacks = Fault(refusal(404, "BLOB_UNKNOWN"), "HEAD", "/v2/b/", times=None)
    registry = faulty(lacks)
    image = large(layout)
    layout.name(image, "a")
    push(layout, registry, quick())
    layout.name(image, "b")
    sink = RegistryDestination(quick(), lambda root: parse_reference(f"{registry.host}/{root.name}:1"))
    registry.requests.clear()
    # What is in the one is mounted into the other, which has to be asked for each.
    copy(LayoutSource(layout.path), sink, jobs=4)
    sink.close()
    assert asked(registry, "/v2/b/blobs/") == dict.fromkeys(blobs_of(layout, image), 1)


def test_no_repository_is_asked_for_the_images_of_another(faulty: Faulty, quick: Quick, layout: Layout) -> None:
    registry = faulty()
    one, other = large(layout), large(layout, first=20)
    layout.name(one, "a")
    layout.name(other, "b")
    for _ in range(2):
        sink = RegistryDestination(quick(), lambda root: parse_reference(f"{registry.host}/{root.name}:1"))
        registry.requests.clear()
        copy(LayoutSource(layout.path), sink, jobs=4)
        sink.close()
    assert asked(registry, "/v2/a/manifests/") == {one["digest"]: 1, "1": 1}
    assert asked(registry, "/v2/b/manifests/") == {other["digest"]: 1, "1": 1}


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
