"""The order of a push, and the existing content that it does not send. Statements 64 and 65."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.archives import small_first, tar_of
from tests.faulty_registry import Fault, Header, refusal
from tests.images import Descriptor, Layout, digest_of, small_image, two_platforms
from tests.quirks import registry_quirks
from tests.quirks.fixture_types import Move, Start
from tests.quirks.quirky_registry import QuirkyRegistry
from tests.quirks.statements import quirk
from tests.registry_http import manifest_digest, seed
from tests.runner import Result

#: More blobs than are checked one by one if the manifest exists.
MANY = 60


@pytest.fixture
def push(mover: Move, layout: Layout) -> Callable[..., Result]:
    """Return a function that pushes the layout's image to a registry; it first clears the recorded requests."""

    def run(registry: QuirkyRegistry, target: str = "app:1", *options: str, **expected: object) -> Result:
        registry.requests.clear()
        arguments = ["push", f"{registry.host}/{target}", "-i", layout.path, "--no-referrers", "--jobs", "1"]
        return mover().run(*arguments, *options, **expected)  # type: ignore[arg-type]

    return run


Push = Callable[..., Result]


def blobs_of(layout: Layout, image: Descriptor) -> list[str]:
    """Return the digests of an image's config and layers."""
    document = layout.read(image["digest"])
    return [blob["digest"] for blob in (document["config"], *document["layers"])]


def pushed(registry: QuirkyRegistry) -> list[str]:
    """Return the references of the pushed manifests, in order."""
    return [request.path.rpartition("/")[2] for request in registry.asked("PUT", "/manifests/")]


def asked(registry: QuirkyRegistry, path: str) -> Counter[str]:
    """Count the HEAD requests by digest or tag."""
    return Counter(request.path.rpartition("/")[2] for request in registry.asked("HEAD", path))


def lost(*digests: str) -> list[Fault]:
    """Return faults of a registry that has lost these blobs or manifests."""
    return [Fault(refusal(404), "HEAD", digest, times=None) for digest in digests]


# Sent content ---------------------------------------------------------------------------------------------------


@quirk(64)
def test_blobs_are_pushed_before_manifests_children_before_parents_and_the_tag_last(
    start: Start, push: Push, layout: Layout
) -> None:
    registry = start()
    index = two_platforms(layout, name="app")
    push(registry)
    children = [child["digest"] for child in layout.read(index["digest"])["manifests"]]
    assert sorted(pushed(registry)[:-1]) == sorted(children)
    assert pushed(registry)[-1] == "1"
    kinds = ["manifest" if "/manifests/" in request.path else "blob" for request in registry.asked("PUT")]
    assert kinds == sorted(kinds)


@quirk(64)
def test_existing_content_is_not_sent_and_a_tag_is_written_only_if_it_changes(
    start: Start, push: Push, layout: Layout
) -> None:
    registry = start()
    index = two_platforms(layout, name="app")
    other = small_image(layout, config={"Cmd": ["another"]})
    push(registry)
    push(registry)
    assert {request.method for request in registry.requests} == {"HEAD"}
    seed(layout, other, registry.host, "app", "1")
    push(registry)
    assert registry.asked("POST|PATCH") == []
    # Children that exist are not written again.
    assert pushed(registry) == ["1"]
    assert manifest_digest(registry.host, "app", "1") == index["digest"]


@quirk(23, 64)
def test_a_tag_is_written_if_the_registry_does_not_report_its_digest(start: Start, push: Push, layout: Layout) -> None:
    registry = start()
    small_image(layout, name="app")
    push(registry)
    registry.faults = [Fault(Header("Docker-Content-Digest", None), "HEAD", "/manifests/", times=None)]
    push(registry)
    assert pushed(registry) == ["1"]


@quirk(64)
def test_a_wrong_digest_in_the_destination_is_refused_before_anything_is_sent(
    start: Start, push: Push, layout: Layout
) -> None:
    registry = start()
    image = small_image(layout, name="app")
    other = digest_of(b"other")
    push(registry, f"app@{other}", code=5, says=other)
    assert registry.asked("POST|PUT|PATCH") == []
    push(registry, f"app@{image['digest']}")
    assert pushed(registry) == [image["digest"]]


# Several repositories -------------------------------------------------------------------------------------------


def named(layout: Layout, image: Descriptor, *names: str) -> None:
    """Add an image to index.json under full names, as containerd does."""
    layout.enter(*({**image, "annotations": {"io.containerd.image.name": f"old.example/{name}"}} for name in names))


@quirk(17, 64)
@pytest.mark.parametrize("mounts", [True, False], ids=["mounts", "does not mount"])
def test_a_blob_for_two_repositories_is_sent_once_and_mounted_or_sent_twice(
    mounts: bool, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(registry_quirks.only_in("a", "b") if mounts else registry_quirks.refused_mounts(405))
    image = small_image(layout)
    named(layout, image, "a:1", "b:1")
    registry.faults = lost("/v2/(a|b)/blobs/") if mounts else [Fault(refusal(404), "HEAD", "/blobs/", times=None)]
    mover().run("push", "--to", registry.host, "-i", layout.path, "--no-referrers", "--jobs", "1")
    count = len(set(blobs_of(layout, image)))
    closed = registry.asked("PUT", "/blobs/uploads/")
    assert len(closed) == (count if mounts else 2 * count)
    assert len([request for request in registry.asked("POST", "mount=") if request.status == 201]) == (
        count if mounts else 0
    )
    for repository in ("a", "b"):
        assert manifest_digest(registry.host, repository, "1") == image["digest"]


@quirk(47, 64)
def test_a_repository_is_not_asked_for_a_blob_that_was_mounted_into_it(
    start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(registry_quirks.only_in("base"))
    image = small_image(layout)
    named(layout, image, "a:1", "b:1")
    seed(layout, image, registry.host, "base", "1")
    registry.faults = [Fault(refusal(405), "POST", "/v2/b/.*from=base", times=None)]
    options = ("--mount-from", "base", "--no-referrers", "--jobs", "1")
    mover().run("push", "--to", registry.host, "-i", layout.path, *options)
    for repository in ("a", "b"):
        assert asked(registry, f"/v2/{repository}/blobs/") == dict.fromkeys(blobs_of(layout, image), 1)
        assert bool(registry.asked("PUT", f"/v2/{repository}/blobs/")) == (repository == "b")
        assert manifest_digest(registry.host, repository, "1") == image["digest"]


@quirk(64)
def test_a_blob_from_a_pipe_cannot_be_sent_to_two_repositories_without_mounts(
    start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(registry_quirks.refused_mounts(405))
    image = small_image(layout)
    named(layout, image, "a:1", "b:1")
    registry.faults = [Fault(refusal(404), "HEAD", "/blobs/", times=None)]
    archive = tar_of(small_first(layout))
    result = mover().run("push", "--to", registry.host, "--jobs", "1", stdin=archive, code=7, says="nor read again")
    assert "push from a file instead of a pipe" in result.err
    assert pushed(registry) == []


@quirk(17, 64)
def test_no_blob_is_mounted_within_a_repository_or_from_another_registry(
    start: Start, mover: Move, layout: Layout
) -> None:
    registry, other = start(), start()
    image = small_image(layout)
    seed(layout, image, registry.host, "app", "1")
    registry.requests.clear()
    mover().copy(f"{registry.host}/app:1", f"{registry.host}/app:2")
    assert registry.asked("POST|PATCH") == []
    assert pushed(registry) == ["2"]
    mover().copy(f"{registry.host}/app:1", f"{other.host}/app:1")
    assert other.asked("POST", "mount=") == []
    assert manifest_digest(other.host, "app", "1") == image["digest"]


# Existing blobs -------------------------------------------------------------------------------------------------


@pytest.fixture
def large(layout: Layout) -> Descriptor:
    """Return an image of many layers."""
    return layout.image([b"%d" % number for number in range(MANY)], name="app")


@quirk(65)
def test_only_some_blobs_of_an_existing_large_image_are_checked(
    start: Start, push: Push, layout: Layout, large: Descriptor
) -> None:
    registry = start()
    seed(layout, large, registry.host, "app", "1")
    push(registry)
    assert {request.method for request in registry.requests} == {"HEAD"}
    found, blobs = asked(registry, "/blobs/"), blobs_of(layout, large)
    assert set(found.values()) == {1}
    assert len(found) <= MANY // 2
    assert {blobs[0], blobs[1], blobs[-1]} <= found.keys()
    assert asked(registry, "/manifests/") == {large["digest"]: 1, "1": 1}


@quirk(65)
@pytest.mark.parametrize("place", [0, 1, -1])
def test_if_one_checked_blob_is_missing_every_blob_is_checked_once(
    place: int, start: Start, push: Push, layout: Layout, large: Descriptor
) -> None:
    registry = start()
    seed(layout, large, registry.host, "app", "1")
    blobs = blobs_of(layout, large)
    # The other lost blob is not among the checked ones.
    registry.faults = lost(blobs[place], blobs[2])
    push(registry)
    assert asked(registry, "/blobs/") == dict.fromkeys(blobs, 1)
    assert len(registry.asked("PUT", "/blobs/uploads/")) == 2


@quirk(23, 65)
@pytest.mark.parametrize("value", [None, "", f"sha256:{'0' * 64}"], ids=["nothing", "empty", "another"])
def test_all_blobs_are_checked_if_the_manifest_s_digest_is_not_confirmed(
    value: str | None, start: Start, push: Push, layout: Layout, large: Descriptor
) -> None:
    registry = start()
    seed(layout, large, registry.host, "app", "1")
    unsure = Header("Docker-Content-Digest", value)
    registry.faults = [Fault(unsure, "HEAD", f"/manifests/{large['digest']}", times=None)]
    push(registry)
    assert asked(registry, "/blobs/") == dict.fromkeys(blobs_of(layout, large), 1)
    assert registry.asked("PUT", "/blobs/uploads/") == []


@quirk(65)
def test_all_blobs_are_checked_if_the_manifest_does_not_exist(
    start: Start, push: Push, layout: Layout, large: Descriptor
) -> None:
    registry = start()
    seed(layout, large, registry.host, "app", "1")
    blobs = blobs_of(layout, large)
    registry.faults = lost(large["digest"], blobs[2])
    push(registry)
    assert asked(registry, "/blobs/") == dict.fromkeys(blobs, 1)
    assert len(registry.asked("PUT", "/blobs/uploads/")) == 1


@quirk(42, 65)
def test_all_blobs_are_sent_with_push_permission_only(
    start: Start, push: Push, layout: Layout, large: Descriptor
) -> None:
    registry = start(registry_quirks.NO_LOOKING)
    seed(layout, large, registry.host, "app", "1")
    push(registry)
    assert len(registry.asked("PUT", "/blobs/uploads/")) == len(blobs_of(layout, large))


@quirk(65)
def test_existing_blobs_are_determined_for_each_image_of_an_index(start: Start, push: Push, layout: Layout) -> None:
    registry = start()
    one, other = (
        layout.image([b"%d" % (first + number) for number in range(MANY)], platform=platform)
        for first, platform in ((0, "linux/amd64"), (1000, "linux/arm64"))
    )
    seed(layout, layout.index([one, other], name="app"), registry.host, "app", "1")
    gone = blobs_of(layout, other)[2]
    registry.faults = lost(other["digest"], gone)
    push(registry)
    assert [request.query["digest"] for request in registry.asked("PUT", "/blobs/uploads/")] == [[gone]]
    found = asked(registry, "/blobs/")
    assert set(blobs_of(layout, other)) <= found.keys()
    assert len(found.keys() - set(blobs_of(layout, other))) <= MANY // 2


@quirk(65)
def test_a_push_ends_if_a_check_is_refused(start: Start, push: Push, large: Descriptor) -> None:
    registry = start()
    registry.faults = [Fault(refusal(401), "HEAD", f"/manifests/{large['digest']}", times=None)]
    push(registry, code=3)
    assert registry.asked("PUT") == []
