"""Responses of registries to pulls: statements 22 to 27."""

from __future__ import annotations

from typing import Any, Final

import pytest

from ocistream import limits
from tests.archives import check_blobs, small_first, tar_of
from tests.faulty_registry import Drop, Fault, IgnoreRange, Reply
from tests.images import OCI_MANIFEST, Layout, small_image
from tests.quirks import registry_quirks
from tests.quirks.command_runner import How, both_ways
from tests.quirks.fixture_types import Move, Start
from tests.quirks.quirky_registry import Quirk, QuirkyRegistry, changed
from tests.quirks.small_images import LAYER, config_of, layer_of
from tests.quirks.statements import quirk
from tests.registry_http import seed

#: The offset at which a download breaks.
CUT: Final = 400_000


@quirk(22)
@both_ways
def test_every_request_asks_for_the_identity_encoding(how: How, start: Start, mover: Move, layout: Layout) -> None:
    registry = start(registry_quirks.GZIPS)
    seed(layout, small_image(layout), registry.host, "app", "v1")
    registry.requests.clear()
    check_blobs(mover().pull(f"{registry.host}/app:v1", how))
    assert {request.headers["Accept-Encoding"] for request in registry.requests} == {"identity"}


@quirk(23)
@pytest.mark.parametrize(
    "quirks",
    [
        (registry_quirks.UNSIZED_HEAD,),
        (registry_quirks.NO_DIGESTS,),
        (registry_quirks.WRONG_DIGESTS,),
        (registry_quirks.UNSIZED_HEAD, registry_quirks.NO_DIGESTS),
    ],
    ids=lambda quirks: " and ".join(map(str, quirks)),
)
def test_bytes_count_more_than_missing_or_wrong_headers(
    quirks: tuple[Quirk, ...], start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(*quirks)
    image = small_image(layout)
    seed(layout, image, registry.host, "app", "v1")
    pulled = mover().pull(f"{registry.host}/app:v1")
    assert check_blobs(pulled) == {f"sha256:{path.name}" for path in (layout.path / "blobs/sha256").iterdir()}
    # The command reports the digest of the bytes.
    result = mover().run("pull", f"{registry.host}/app:v1", "-o", mover().folder / "app.tar")
    assert result.lines() == [f"{registry.host}/app:v1@{image['digest']}"]


@quirk(23)
def test_existing_blobs_are_not_sent_again_if_head_has_no_length(start: Start, mover: Move, layout: Layout) -> None:
    registry = start(registry_quirks.UNSIZED_HEAD, registry_quirks.NO_DIGESTS)
    image = small_image(layout, name="app")
    seed(layout, image, registry.host, "app", "v1")
    registry.requests.clear()
    mover().push(tar_of(small_first(layout)), f"{registry.host}/app:v2")
    assert registry.asked("POST|PATCH") == []


@quirk(24)
@both_ways
def test_known_bytes_are_skipped_if_the_registry_sends_the_complete_blob(
    how: How, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(
        Quirk("breaks, and has no ranges", (Fault(Drop(CUT), "GET", "/blobs/"),)), registry_quirks.NO_PARTS
    )
    image = layout.image([LAYER], name="app")
    seed(layout, image, registry.host, "app", "v1")
    registry.requests.clear()
    # The config is smaller than the cut, so the fault applies to the layer.
    registry.faults[0].path = layer_of(layout, image)["digest"]
    check_blobs(mover().pull(f"{registry.host}/app:v1", how))
    asked = registry.asked("GET", layer_of(layout, image)["digest"])
    assert [request.status for request in asked] == [200, 200]


@quirk(24)
def test_the_known_bytes_that_may_be_read_again_are_limited(start: Start, mover: Move, layout: Layout) -> None:
    cut_at = limits.MAX_DISCARD + 1
    image = layout.image([cut_at + LAYER], name="app")
    digest = layer_of(layout, image)["digest"]
    cut = Quirk("breaks, and has no ranges", (Fault(Drop(cut_at), "GET", digest), Fault(IgnoreRange(), "GET", digest)))
    registry = start(cut)
    seed(layout, image, registry.host, "app", "v1")
    mover("--jobs", "1").pull(f"{registry.host}/app:v1", code=7, says="this registry cannot resume")


@quirk(24)
def test_a_wrong_range_is_refused(start: Start, mover: Move, layout: Layout) -> None:
    def elsewhere(_: Any, answer: Any) -> Any:
        return changed(answer, Content_Range=f"bytes 0-9/{LAYER}") if answer.status == 206 else answer

    image = layout.image([LAYER], name="app")
    cut = Quirk("breaks", (Fault(Drop(CUT), "GET", layer_of(layout, image)["digest"]),), outward=elsewhere)
    registry = start(cut)
    seed(layout, image, registry.host, "app", "v1")
    mover().pull(f"{registry.host}/app:v1", code=7, says="a wrong byte range instead of bytes from")


@quirk(25)
@pytest.mark.parametrize("how", ["image", "child"])
def test_a_manifest_with_another_digest_than_requested_is_refused(
    how: str, start: Start, mover: Move, layout: Layout
) -> None:
    image = small_image(layout)
    other = layout.file(layout.image([b"another"])["digest"]).read_bytes()
    index = layout.index([image])
    lies = Reply(200, {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": image["digest"]}, other)
    registry = start()
    seed(layout, index, registry.host, "app", "v1")
    registry.faults.append(Fault(lies, "GET", f"manifests/{image['digest']}", times=None))
    name = f"{registry.host}/app@{image['digest']}" if how == "image" else f"{registry.host}/app:v1"
    mover().pull(name, code=5, says=image["digest"])


def tagged(layout: Layout, registry: QuirkyRegistry) -> list[str]:
    """Push some tags to a registry."""
    found = ["1", "2", "latest"]
    for tag in found:
        seed(layout, small_image(layout), registry.host, "app", tag)
    return found


@quirk(26)
@pytest.mark.parametrize(
    "quirks",
    [
        (registry_quirks.NULL_TAGS,),
        (registry_quirks.DIGEST_TAGS,),
        (registry_quirks.SMALL_PAGES,),
        (registry_quirks.CIRCLE,),
        (registry_quirks.NULL_TAGS, registry_quirks.DIGEST_TAGS, registry_quirks.SMALL_PAGES, registry_quirks.CIRCLE),
    ],
    ids=lambda quirks: " and ".join(map(str, quirks)),
)
def test_a_list_of_tags_is_read_despite_quirks(
    quirks: tuple[Quirk, ...], start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(*quirks)
    expected = tagged(layout, registry)
    registry.requests.clear()
    assert mover().run("inspect", f"{registry.host}/app").lines() == expected
    # Circular links end at the first repeated page.
    assert 1 <= len(registry.asked("GET", "/tags/list")) <= 3


@quirk(26)
def test_all_pages_of_tags_are_read_through_relative_links(start: Start, mover: Move, layout: Layout) -> None:
    def two_at_a_time(handler: Any) -> None:
        if "/tags/list" in handler.path:
            last = handler.path.partition("last=")[2].partition("&")[0]
            handler.path = f"/v2/app/tags/list?n=2&last={last}"

    def relative(_: Any, answer: Any) -> Any:
        link = answer.headers.get("Link", "").replace("/v2/app/tags/", "")
        return changed(answer, Link=link or None)

    registry = start(Quirk("small pages, linked relatively", inward=two_at_a_time, outward=relative))
    expected = tagged(layout, registry)
    assert mover().run("inspect", f"{registry.host}/app").lines() == expected
    assert len(registry.asked("GET", "/tags/list")) == 2


@quirk(27)
def test_unknown_with_a_text_is_not_found(start: Start, mover: Move) -> None:
    registry = start(registry_quirks.UNKNOWN_IN_WORDS)
    mover().pull(f"{registry.host}/app:v1", code=4, says=("app:v1 not found", "artifact app:1 not found"))


@quirk(27)
def test_the_error_for_403_suggests_checking_the_name(start: Start, mover: Move) -> None:
    registry = start(registry_quirks.NOT_FOUND_IS_403)
    mover(env={}).pull(
        f"{registry.host}/app:v1", code=3, says=("403", "check the name and your permissions", "ocistream login")
    )


@quirk(23)
def test_the_digest_of_a_config_is_verified(start: Start, mover: Move, layout: Layout) -> None:
    image = small_image(layout)
    registry = start()
    seed(layout, image, registry.host, "app", "v1")
    config = config_of(layout, image)
    wrong = Reply(200, {"Docker-Content-Digest": config["digest"]}, b" " * config["size"])
    registry.faults.append(Fault(wrong, "GET", config["digest"], times=None))
    mover().pull(f"{registry.host}/app:v1", code=5, says=config["digest"])
