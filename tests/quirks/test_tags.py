"""Lists of tags, page by page, and suggestions for a missing tag. Statements 26 and 58."""

from __future__ import annotations

import json

import pytest

from ocistream import limits
from tests.faulty_registry import Action, Drop, Fault, Reply, refusal, too_many_requests
from tests.images import Layout, small_image
from tests.quirks.command_runner import Mover
from tests.quirks.fixture_types import Move, Start
from tests.quirks.quirky_registry import QuirkyRegistry
from tests.quirks.statements import quirk
from tests.registry_http import seed

TAGS = "/v2/app/tags/list"


def page(*tags: object, link: str | None = None) -> Reply:
    """Return a response with a page of tags; `link` is the next page."""
    headers = {"Content-Type": "application/json", **({"Link": f'<{link}>; rel="next"'} if link else {})}
    return Reply(200, headers, json.dumps({"name": "app", "tags": list(tags)}).encode())


def answering(start: Start, *actions: Action) -> QuirkyRegistry:
    """Start a registry that answers requests for tags with these actions, one after the other."""
    registry = start()
    registry.faults = [Fault(action, path="/tags/list") for action in actions]
    return registry


def listed(mover: Mover, registry: QuirkyRegistry, says: str = "") -> list[str]:
    """Return the listed tags, and check stderr: empty, or with this warning."""
    result = mover.run("inspect", f"{registry.host}/app")
    assert says in result.err
    assert (result.err == "") == (not says), result.err
    return result.lines()


@quirk(26)
def test_pages_are_joined(start: Start, mover: Move, layout: Layout) -> None:
    registry = start()
    image = small_image(layout)
    wanted = [f"v{number}" for number in range(5)]
    for tag in wanted:
        seed(layout, image, registry.host, "app", tag)
    registry.requests.clear()
    registry.faults = [Fault(page("v0", "v1", link=f"{TAGS}?last=v1&n=2"), path=r"list\?n=1000")]
    assert listed(mover(), registry) == wanted
    assert [request.target for request in registry.requests][:2] == [f"{TAGS}?n=1000", f"{TAGS}?last=v1&n=2"]
    assert len(registry.requests) == 3


@quirk(26)
@pytest.mark.parametrize("link", ["?last=b", "list?last=b", f"{TAGS}?last=b", "{url}" + f"{TAGS}?last=b"])
def test_a_link_may_be_relative(link: str, start: Start, mover: Move) -> None:
    registry = answering(start, page("c"))
    registry.faults.insert(0, Fault(page("a", "b", link=link.format(url=registry.url)), path="/tags/list"))
    assert listed(mover(), registry) == ["a", "b", "c"]
    assert [request.target for request in registry.requests][1:] == [f"{TAGS}?last=b"]


@quirk(26)
def test_entries_that_are_not_tags_are_not_listed(start: Start, mover: Move) -> None:
    odd = (None, f"sha256:{'0' * 64}", 7, ["x"], {"y": "z"})
    assert listed(mover(), answering(start, page("a", *odd, "d", "a"))) == ["a", "d"]
    no_tags = answering(start, Reply(200, {}, b'{"name": "app", "tags": null}'))
    assert mover().run("inspect", f"{no_tags.host}/app").lines() == []


@quirk(26)
def test_names_that_are_not_valid_tags_are_ignored_with_a_notice(start: Start, mover: Move) -> None:
    names = ("../b", "", "c" * 129, "d\x1b[2J", "e f")
    said = f"ignored names that are not valid tags: '../b', '', '{'c' * 40}…' and 2 more"
    assert listed(mover(), answering(start, page("a", *names, "d")), said) == ["a", "d"]


@quirk(26)
def test_circular_pages_end_at_the_first_repeated_page(start: Start, mover: Move) -> None:
    registry = answering(
        start,
        page("a", link=f"{TAGS}?last=a"),
        page("b", link=f"{TAGS}?last=b"),
        page("c", link=f"{TAGS}?last=a"),
    )
    assert listed(mover(), registry) == ["a", "b", "c"]
    assert len(registry.requests) == 3


@quirk(26)
def test_an_endless_list_is_limited_with_a_notice(start: Start, mover: Move) -> None:
    pages = (page(f"v{number:03}", link=f"{TAGS}?last={number}") for number in range(2 * limits.MAX_PAGES))
    registry = answering(start, *pages)
    said = f"only {limits.MAX_TAGS} tags on {limits.MAX_PAGES} pages are read"
    assert listed(mover(), registry, said) == [f"v{number:03}" for number in range(limits.MAX_PAGES)]
    assert len(registry.requests) <= limits.MAX_PAGES + 1


@quirk(26)
def test_a_page_may_have_all_tags_up_to_the_limit(start: Start, mover: Move) -> None:
    many = [f"v{number}" for number in range(limits.MAX_TAGS)]
    assert listed(mover(), answering(start, page(*many))) == many
    result = mover().run("inspect", f"{answering(start, page(*many, 'w')).host}/app")
    assert len(result.lines()) == limits.MAX_TAGS
    assert f"only {limits.MAX_TAGS} tags on {limits.MAX_PAGES} pages are read" in result.err


@quirk(26)
def test_the_page_size_is_omitted_if_the_registry_refuses_it(start: Start, mover: Move) -> None:
    registry = answering(start, refusal(400, "PAGINATION_NUMBER_INVALID"), page("a"))
    assert listed(mover(), registry) == ["a"]
    assert [request.target for request in registry.requests] == [f"{TAGS}?n=1000", TAGS]


@quirk(26, 30)
def test_a_truncated_page_is_requested_again(start: Start, mover: Move, layout: Layout) -> None:
    registry = answering(start, Drop(10))
    seed(layout, small_image(layout), registry.host, "app", "v1")
    assert listed(mover(), registry) == ["v1"]
    assert len(registry.asked("GET", "/tags/")) == 2


@quirk(26)
@pytest.mark.parametrize(
    ("action", "code", "words"),
    [
        (refusal(404, "NAME_UNKNOWN"), 4, "HOST/app not found"),
        (refusal(400), 7, "400"),
        (refusal(405), 7, "405"),
        (refusal(503), 7, "503"),
        *(
            (Reply(200, {}, body), 6, "the list of tags of HOST/app")
            for body in (b"", b"[]", b'{"tags": [', b"<html>", b" " * (limits.MAX_MANIFEST + 1))
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_response_that_is_not_a_list_is_an_error(
    action: Action, code: int, words: str, start: Start, mover: Move
) -> None:
    registry = start()
    registry.faults = [Fault(action, path="/tags/list", times=None)]
    mover().run("inspect", "-q", f"{registry.host}/app", code=code, says=words.replace("HOST", registry.host))


# Suggestions ----------------------------------------------------------------------------------------------------


@quirk(58)
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
        # Tags of cosign and malformed tags are not suggested.
        ([f"sha256-{'0' * 64}.sig", "1.25-alpin\x1b[2J", "v1"], "its tags are: v1"),
        (
            ["1.25-alpin", "1.25"],
            "the registry lists this tag, but has lost its manifest: push the image again, or omit it ",
        ),
        (
            [*(f"x{number}" for number in range(limits.MAX_SUGGESTION_CANDIDATES)), "1.25-alpine"],
            "inspect APP` lists its tags",
        ),
    ],
    ids=["similar ones", "few", "many", "none", "those of others", "a lost one", "more than are compared"],
)
def test_the_error_for_a_missing_tag_suggests_similar_ones(
    tags: list[str], words: str, start: Start, mover: Move
) -> None:
    registry = answering(start, page(*tags))
    name = f"{registry.host}/app"
    mover().run("inspect", f"{name}:1.25-alpin", code=4, says=words.replace("APP", name))
    assert len(registry.asked("GET", "/tags/")) == 1


@quirk(58)
@pytest.mark.parametrize(
    "action",
    [too_many_requests(3600), refusal(503), refusal(405), refusal(403), Reply(200, {}, b"<html>")],
    ids=lambda action: str(action.status),
)
def test_a_failing_request_for_suggestions_is_not_retried(action: Action, start: Start, mover: Move) -> None:
    registry = start()
    registry.faults = [Fault(action, path="/tags/list", times=None)]
    result = mover().run("inspect", f"{registry.host}/app:none", code=4, says="app:none not found")
    assert len(registry.asked("GET", "/tags/")) == 1
    assert not result.waits
