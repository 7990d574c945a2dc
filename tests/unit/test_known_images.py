"""Pushing again what is there: what is asked for, what is believed, and that what a registry has lost comes back."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import pytest

from ocistream.errors import AuthenticationError, NetworkError
from ocistream.model import Descriptor
from ocistream.reference import parse_reference
from ocistream.stores.known_images import ASKED_FOR, KnownImages
from ocistream.stores.layout import LayoutSource
from ocistream.stores.registry import RegistrySink
from ocistream.transfer import Report, copy
from tests.faults import Fault, Header, refusal
from tests.images import Descriptor as Document
from tests.images import Layout
from tests.network import CountingRegistry, QuickTransport
from tests.observers import NothingEarly

Faulty = Callable[..., CountingRegistry]
Quick = Callable[..., QuickTransport]


def large(layout: Layout, *, more: int = 40, platform: str = "linux/amd64", first: int = 0) -> Document:
    """Write an image of which not every blob is asked for; `first` makes its layers other ones."""
    return layout.image([b"%d" % (first + n) for n in range(ASKED_FOR + more)], platform=platform)


def usual(layout: Layout) -> Document:
    """Write an image of as many blobs as are asked for."""
    return layout.image([b"%d" % number for number in range(ASKED_FOR - 1)])


def blobs_of(layout: Layout, image: Document) -> list[str]:
    document = layout.read(image["digest"])
    return [blob["digest"] for blob in (document["config"], *document["layers"])]


def push(layout: Layout, registry: CountingRegistry, transport: QuickTransport, *, jobs: int = 4) -> Report:
    reference = parse_reference(f"{registry.host}/app:1")
    sink = RegistrySink(transport, lambda _: reference)
    registry.requests.clear()
    try:
        return copy(LayoutSource(layout.path), sink, jobs=jobs)
    finally:
        sink.close()


def asked(registry: CountingRegistry, path: str) -> Counter[str]:
    """Count what was asked for by HEAD, by the last part of its path."""
    return Counter(request.path.rpartition("/")[2] for request in registry.asked("HEAD", path))


def became(report: Report, how: str) -> set[str]:
    return {moved.descriptor.digest for moved in report.blobs if moved.how == how}


def lose(registry: CountingRegistry, digest: str) -> None:
    registry.layout.blob_path(digest).unlink()


@pytest.fixture
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return Layout(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("jobs", [1, 4])
def test_of_a_large_image_that_is_there_only_some_blobs_are_asked_for(
    faulty: Faulty, quick: Quick, layout: Layout, jobs: int
) -> None:
    registry = faulty()
    image = large(layout)
    layout.name(image, "1")
    blobs = blobs_of(layout, image)
    push(layout, registry, quick())
    again = push(layout, registry, quick(), jobs=jobs)
    assert became(again, "skipped") == set(blobs)
    assert {request.method for request in registry.requests} == {"HEAD"}
    found = asked(registry, "/blobs/")
    assert (len(found), set(found.values())) == (ASKED_FOR, {1})
    assert {blobs[0], blobs[1], blobs[-1]} <= found.keys()
    assert asked(registry, "/manifests/") == {image["digest"]: 1, "1": 1}


def test_of_a_usual_one_all_are_and_each_that_is_lost_is_sent_again(
    faulty: Faulty, quick: Quick, layout: Layout
) -> None:
    registry = faulty()
    image = usual(layout)
    layout.name(image, "1")
    blobs = blobs_of(layout, image)
    push(layout, registry, quick())
    for lost in (blobs[0], blobs[len(blobs) // 2], blobs[-1]):
        lose(registry, lost)
        again = push(layout, registry, quick())
        assert (became(again, "copied"), became(again, "skipped")) == ({lost}, set(blobs) - {lost})
        assert asked(registry, "/blobs/") == dict.fromkeys(blobs, 1)
        assert asked(registry, "/manifests/") == {"1": 1}


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_where_one_of_those_is_lost_every_blob_is_asked_for_once(
    faulty: Faulty, quick: Quick, layout: Layout, place: int, jobs: int
) -> None:
    registry = faulty()
    image = large(layout)
    layout.name(image, "1")
    blobs = blobs_of(layout, image)
    push(layout, registry, quick())
    # The other one would not have been asked for.
    lost = {blobs[place], blobs[2]}
    for digest in lost:
        lose(registry, digest)
    again = push(layout, registry, quick(), jobs=jobs)
    assert (became(again, "copied"), became(again, "skipped")) == (lost, set(blobs) - lost)
    assert asked(registry, "/blobs/") == dict.fromkeys(blobs, 1)


@pytest.mark.parametrize("value", [None, "", f"sha256:{'0' * 64}"])
def test_a_manifest_of_which_the_registry_does_not_say_that_it_is_that_one_is_not_believed(
    faulty: Faulty, quick: Quick, layout: Layout, value: str | None
) -> None:
    image = large(layout)
    layout.name(image, "1")
    registry = faulty()
    push(layout, registry, quick())
    unsure = Header("Docker-Content-Digest", value)
    doubtful = faulty(Fault(unsure, "HEAD", f"/manifests/{image['digest']}", times=None))
    push(layout, doubtful, quick())
    again = push(layout, doubtful, quick())
    assert became(again, "copied") == set()
    assert asked(doubtful, "/blobs/") == dict.fromkeys(blobs_of(layout, image), 1)


def test_a_large_image_that_is_not_there_is_not_believed_for_the_blobs_that_are(
    faulty: Faulty, quick: Quick, layout: Layout
) -> None:
    registry = faulty()
    image = large(layout)
    layout.name(image, "1")
    blobs = blobs_of(layout, image)
    push(layout, registry, quick())
    lose(registry, image["digest"])
    lose(registry, blobs[2])
    again = push(layout, registry, quick())
    assert became(again, "copied") == {blobs[2]}
    assert asked(registry, "/blobs/") == dict.fromkeys(blobs, 1)


def test_who_may_push_and_not_look_is_not_told_that_anything_is_there(
    faulty: Faulty, quick: Quick, layout: Layout
) -> None:
    image = large(layout)
    layout.name(image, "1")
    registry = faulty(Fault(refusal(403), "HEAD", times=None))
    push(layout, registry, quick())
    again = push(layout, registry, quick())
    assert became(again, "copied") == set(blobs_of(layout, image))


def test_each_image_of_an_index_answers_for_itself(faulty: Faulty, quick: Quick, layout: Layout) -> None:
    registry = faulty()
    one, other = large(layout), large(layout, platform="linux/arm64", first=1000)
    layout.index([one, other], name="1")
    push(layout, registry, quick())
    lose(registry, other["digest"])
    lost = blobs_of(layout, other)[2]
    lose(registry, lost)
    again = push(layout, registry, quick())
    assert became(again, "copied") == {lost}
    found = asked(registry, "/blobs/")
    assert set(blobs_of(layout, other)) <= found.keys()
    assert len(found.keys() - set(blobs_of(layout, other))) == ASKED_FOR


def test_each_repository_answers_for_itself(faulty: Faulty, quick: Quick, layout: Layout) -> None:
    lacks = Fault(refusal(404, "BLOB_UNKNOWN"), "HEAD", "/v2/b/", times=None)
    registry = faulty(lacks)
    image = large(layout)
    layout.name(image, "a")
    push(layout, registry, quick())
    layout.name(image, "b")
    sink = RegistrySink(quick(), lambda root: parse_reference(f"{registry.host}/{root.name}:1"))
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
        sink = RegistrySink(quick(), lambda root: parse_reference(f"{registry.host}/{root.name}:1"))
        registry.requests.clear()
        copy(LayoutSource(layout.path), sink, jobs=4)
        sink.close()
    assert asked(registry, "/v2/a/manifests/") == {one["digest"]: 1, "1": 1}
    assert asked(registry, "/v2/b/manifests/") == {other["digest"]: 1, "1": 1}


def test_a_question_without_an_answer_ends_the_transfer(faulty: Faulty, quick: Quick, layout: Layout) -> None:
    image = large(layout)
    layout.name(image, "1")
    registry = faulty()
    push(layout, registry, quick())
    refusing = faulty(Fault(refusal(401), "HEAD", f"/manifests/{image['digest']}", times=None))
    with pytest.raises(AuthenticationError):
        push(layout, refusing, quick())
    assert refusing.asked("PUT") == []


def test_who_waits_for_another_s_question_is_told_no_where_it_has_no_answer(layout: Layout) -> None:
    image = large(layout)
    layout.name(image, "1")
    graph = LayoutSource(layout.path).graph(NothingEarly())
    being_asked, may_end = threading.Event(), threading.Event()
    failures: list[Exception] = []

    def has_manifest(_: str) -> bool:
        being_asked.set()
        may_end.wait(60)
        raise NetworkError("there is no answer")

    known = KnownImages(has_manifest, lambda _: True)
    (root,) = graph.roots
    known.expect(graph, graph.reachable(root))

    def ask(blob: Descriptor, answers: list[bool]) -> None:
        try:
            answers.append(known.have(blob))
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
    assert known.have(graph.blobs[4]) is False
