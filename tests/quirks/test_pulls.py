"""Responses of registries to pulls: statements 22 to 27."""

from __future__ import annotations

import pytest

from ocistream import limits
from tests.archives import check_blobs, small_first, tar_of
from tests.faulty_registry import Drop, Fault, IgnoreRange, Reply
from tests.images import OCI_MANIFEST, Layout, small_image
from tests.quirks import registry_quirks
from tests.quirks.command_runner import How, both_ways
from tests.quirks.fixture_types import Move, Start
from tests.quirks.quirky_registry import Quirk
from tests.quirks.small_images import LAYER, config_of, layer_of
from tests.quirks.statements import quirk
from tests.registry_http import seed


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
def test_the_known_bytes_that_may_be_read_again_are_limited(start: Start, mover: Move, layout: Layout) -> None:
    cut_at = limits.MAX_DISCARD + 1
    image = layout.image([cut_at + LAYER], name="app")
    digest = layer_of(layout, image)["digest"]
    cut = Quirk("breaks, and has no ranges", (Fault(Drop(cut_at), "GET", digest), Fault(IgnoreRange(), "GET", digest)))
    registry = start(cut)
    seed(layout, image, registry.host, "app", "v1")
    mover("--jobs", "1").pull(f"{registry.host}/app:v1", code=7, says="this registry cannot resume")


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
