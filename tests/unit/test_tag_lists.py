"""A repository's tags, as registries really list them: in pages, with what is no tag among them, in circles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocistream import limits
from ocistream.distribution import Repository
from ocistream.errors import ArchiveError, NetworkError, NotFoundError, RegistryError
from ocistream.tag_lists import list_tags, nearby
from tests.faults import Drop, Fault, FaultyRegistry, Reply, refusal, too_many_requests
from tests.images import Layout, small_image
from tests.network import QuickTransport
from tests.registry_http import seed


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[FaultyRegistry]:
    with FaultyRegistry(tmp_path / "served") as registry:
        yield registry


@pytest.fixture
def repository(registry: FaultyRegistry) -> Iterator[Repository]:
    with QuickTransport() as transport:
        yield Repository(transport, registry.host, "app")


def page(*tags: object, link: str | None = None, **headers: str) -> Reply:
    """Answer with a page of tags; `link` is where the next one is."""
    named = {"Content-Type": "application/json", **headers}
    if link is not None:
        named["Link"] = f'<{link}>; rel="next"'
    return Reply(200, named, json.dumps({"name": "app", "tags": list(tags)}).encode())


def answers(registry: FaultyRegistry, *replies: Reply) -> None:
    registry.faults += [Fault(reply, path="/tags/list") for reply in replies]


def test_pages_are_put_together(registry: FaultyRegistry, repository: Repository, layout: Layout) -> None:
    image = small_image(layout)
    wanted = [f"v{number}" for number in range(5)]
    for tag in wanted:
        seed(layout, image, registry.host, "app", tag)
    # The registry's own pages, of two tags each.
    registry.faults.append(Fault(page("v0", "v1", link="/v2/app/tags/list?last=v1&n=2"), path=r"list\?n=1000"))
    assert list_tags(repository).tags == tuple(wanted)
    assert list_tags(repository).cut is None
    assert [request.target for request in registry.asked(path="/tags/")][:3] == [
        "/v2/app/tags/list?n=1000",
        "/v2/app/tags/list?last=v1&n=2",
        "/v2/app/tags/list?n=2&last=v3",
    ]


@pytest.mark.parametrize(
    "link", ["?last=b", "list?last=b", "/v2/app/tags/list?last=b", "{url}/v2/app/tags/list?last=b"]
)
def test_a_link_may_be_relative(registry: FaultyRegistry, repository: Repository, link: str) -> None:
    answers(registry, page("a", "b", link=link.format(url=registry.url)), page("c"))
    assert list_tags(repository).tags == ("a", "b", "c")
    assert registry.asked(path="/tags/")[1].target == "/v2/app/tags/list?last=b"


def test_what_is_no_tag_is_left_out(registry: FaultyRegistry, repository: Repository) -> None:
    answers(registry, page("a", None, "sha256:" + "0" * 64, 7, ["x"], {"y": "z"}, "../b", "", "c" * 129, "d", "a"))
    assert list_tags(repository).tags == ("a", "d")


def test_no_tags_may_be_null(registry: FaultyRegistry, repository: Repository) -> None:
    answers(registry, Reply(200, {}, b'{"name": "app", "tags": null}'))
    assert list_tags(repository).tags == ()


def test_a_circle_of_pages_ends(registry: FaultyRegistry, repository: Repository) -> None:
    answers(
        registry,
        page("a", link="/v2/app/tags/list?last=a"),
        page("b", link="/v2/app/tags/list?last=b"),
        page("c", link="/v2/app/tags/list?last=a"),
    )
    assert list_tags(repository).tags == ("a", "b", "c")
    assert len(registry.asked(path="/tags/")) == 3


def test_a_list_without_an_end_is_cut_and_said_to_be(
    registry: FaultyRegistry, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_PAGES", 3)
    answers(registry, *(page(f"v{number}", link=f"/v2/app/tags/list?last={number}") for number in range(9)))
    listed = list_tags(repository)
    assert listed.tags == ("v0", "v1", "v2")
    assert listed.cut is not None
    assert len(registry.asked(path="/tags/")) <= 4


def test_more_tags_than_are_held_are_cut_and_said_to_be(
    registry: FaultyRegistry, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_TAGS", 2)
    answers(registry, page("a", "b", "c"))
    listed = list_tags(repository)
    assert listed.tags == ("a", "b")
    assert listed.cut is not None


def test_as_many_tags_as_one_page_may_have_are_read(registry: FaultyRegistry, repository: Repository) -> None:
    # From a registry that does not know pages; more than are parsed as one piece.
    wanted = tuple(f"v{number}" for number in range(50_000))
    answers(registry, page(*wanted))
    assert list_tags(repository).tags == wanted


def test_another_host_is_not_asked_and_the_list_is_said_to_be_cut(
    registry: FaultyRegistry, repository: Repository, tmp_path: Path
) -> None:
    with FaultyRegistry(tmp_path / "other") as other:
        answers(registry, page("a", link=f"{other.url}/v2/app/tags/list?last=a"))
        listed = list_tags(repository)
        assert listed.tags == ("a",)
        assert listed.cut is not None
        assert other.host in listed.cut
        assert other.requests == []


def test_a_registry_that_refuses_the_size_of_pages_is_asked_without(
    registry: FaultyRegistry, repository: Repository
) -> None:
    registry.faults.append(Fault(refusal(400, "PAGINATION_NUMBER_INVALID"), path=r"\?n="))
    answers(registry, page("a"))
    assert list_tags(repository).tags == ("a",)
    assert [request.target for request in registry.asked(path="/tags/")] == [
        "/v2/app/tags/list?n=1000",
        "/v2/app/tags/list",
    ]


def test_a_page_that_breaks_off_is_asked_for_again(
    registry: FaultyRegistry, repository: Repository, layout: Layout
) -> None:
    seed(layout, small_image(layout), registry.host, "app", "v1")
    registry.faults.append(Fault(Drop(10), path="/tags/"))
    assert list_tags(repository).tags == ("v1",)
    assert len(registry.asked(path="/tags/")) == 2


def test_a_repository_that_is_not_there_is_named(registry: FaultyRegistry, repository: Repository) -> None:
    answers(registry, refusal(404, "NAME_UNKNOWN"))
    with pytest.raises(NotFoundError, match=f"^{registry.host}/app is not there"):
        list_tags(repository)


@pytest.mark.parametrize(("status", "error"), [(400, RegistryError), (405, RegistryError), (503, NetworkError)])
def test_other_refusals_are_errors(
    registry: FaultyRegistry, repository: Repository, status: int, error: type[Exception]
) -> None:
    registry.faults.append(Fault(refusal(status), path="/tags/", times=None))
    with pytest.raises(error):
        list_tags(repository)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"tags": [', b"<html>", b" " * (limits.MAX_MANIFEST + 1)])
def test_a_malformed_page_is_refused(registry: FaultyRegistry, repository: Repository, body: bytes) -> None:
    answers(registry, Reply(200, {}, body))
    with pytest.raises(ArchiveError, match="the list of tags of"):
        list_tags(repository)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (
            ["1.24", "1.25", "1.25-alpine", "1.25-alpine3.18"],
            "did you mean 1.25-alpine or 1.25-alpine3.18? `ocistream inspect APP` lists its tags",
        ),
        (["v1", "main"], "its tags are: v1, main"),
        ([f"build-{number}" for number in range(20)], "`ocistream inspect APP` lists its tags"),
        ([], "`ocistream inspect APP` lists its tags"),
        # What cosign keeps under tags is nobody's to type, and no tag has control characters.
        ([f"sha256-{'0' * 64}.sig", "1.25-alpin\x1b[2J", "v1"], "its tags are: v1"),
        (
            ["1.25-alpin", "1.25"],
            "the registry lists this tag, and has lost what it stands for: push the image there again",
        ),
    ],
)
def test_what_may_have_been_meant(
    registry: FaultyRegistry, repository: Repository, tags: list[str], words: str
) -> None:
    answers(registry, page(*tags))
    assert nearby(repository, "1.25-alpin") == words.replace("APP", str(repository))
    assert len(registry.requests) == 1


def test_no_more_is_looked_at_than_can_be(registry: FaultyRegistry, repository: Repository) -> None:
    answers(registry, page(*(f"x{number}" for number in range(limits.MAX_COMPARED_TAGS)), "1.25-alpine"))
    assert nearby(repository, "1.25-alpin") == f"`ocistream inspect {repository}` lists its tags"


def test_advice_that_is_not_to_be_had_is_not_waited_for(registry: FaultyRegistry, repository: Repository) -> None:
    refused = [too_many_requests(3600), refusal(503), refusal(405), refusal(403), Reply(200, {}, b"<html>")]
    answers(registry, *refused)
    assert [nearby(repository, "1") for _ in refused] == [None] * len(refused)
    assert len(registry.requests) == len(refused)
    assert repository.transport.waits == []  # type: ignore[attr-defined]
