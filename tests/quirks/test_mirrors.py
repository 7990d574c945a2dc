"""Pulls from mirrors: a failing mirror costs one or two requests, and the image arrives. Statement 52."""

from __future__ import annotations

from typing import Final

import pytest

from tests.faulty_auth import Basic
from tests.faulty_registry import Action, Drop, Fault, Flip, HangUp, Reply, Reset, Stall, refusal
from tests.http_doubles import unused_port
from tests.images import Layout
from tests.quirks.command_runner import How, both_ways
from tests.quirks.fixture_types import MakeMirrored
from tests.quirks.mirrors import paths
from tests.quirks.small_images import config_of, layer_of
from tests.quirks.statements import quirk
from tests.registry_http import seed
from tests.signed_image import cosign_signature, cosign_tag

pytestmark = quirk(52)


# A mirror that fails --------------------------------------------------------------------------------------------

FAILURES: Final[dict[str, Action]] = {
    "hangs up": HangUp(),
    "resets": Reset(),
    "answers 500": Reply(500),
    "answers 503": refusal(503, "UNAVAILABLE"),
    "answers 403": refusal(403, "DENIED"),
    "answers 404": refusal(404, "NAME_UNKNOWN"),
    "answers 429": refusal(429, "TOOMANYREQUESTS"),
    "wants to be left alone for an hour": refusal(429, "TOOMANYREQUESTS", Retry_After="3600"),
    "answers nonsense": Reply(200, {"Content-Type": "text/html"}, b"<html>Log in to the hotel's network"),
    "leads elsewhere": Reply(307, {"Location": "ftp://nowhere.example/"}),
}


@pytest.mark.parametrize(("what", "how"), [*((what, "file") for what in FAILURES), ("hangs up", "pipe")])
def test_a_failing_mirror_gets_few_requests_and_is_reported_once(what: str, how: How, mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror(Fault(FAILURES[what], times=None))
    result = used.pull(how=how)
    assert 1 <= len(mirror.requests) <= 3
    assert result.err.count(f"the mirror {mirror.host}/hub/app: ") == 1


def test_after_an_unreachable_mirror_the_next_one_is_used(mirrored: MakeMirrored) -> None:
    used = mirrored()
    down = f"127.0.0.1:{unused_port()}"
    second = used.mirror()
    result = used.pull(down)
    assert used.registry.requests == []
    assert len(second.requests) == len(set(paths(second.requests)))
    assert f"the mirror {down}/hub/app: " in result.err
    assert "connection refused" in result.err


def test_an_unreachable_mirror_is_not_asked_for_another_image(mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror(Fault(HangUp(), times=None))
    seed(used.layout, used.image, used.registry.host, "app", "2")
    result = used.mover.run(
        *("pull", used.name, used.name.replace(":1", ":2"), "-v", "--jobs", "1", "-o", used.mover.folder / "two.tar"),
        *used.configure(),
    )
    assert len(mirror.requests) <= 3
    assert result.err.count(f"the mirror {mirror.host}/hub/app: ") == 1


def test_a_mirror_that_requires_a_password_is_not_asked_for_each_blob(mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror(auth=Basic("somebody", "else"))
    result = used.pull()
    assert len(mirror.requests) <= 2
    assert f"{mirror.host} requires a user name and password, but none were found" in result.err


def test_a_mirror_that_lacks_one_blob_is_asked_for_the_others(mirrored: MakeMirrored) -> None:
    used = mirrored()
    config = config_of(used.layout, used.image)["digest"]
    used.mirror(Fault(refusal(404, "BLOB_UNKNOWN"), path=config, times=None))
    used.pull()
    assert paths(used.registry.requests) == [f"blobs/{config}"]


@pytest.mark.parametrize(("status", "code"), [(404, 4), (403, 3), (503, 7)])
def test_the_registry_s_own_error_is_reported(status: int, code: int, mirrored: MakeMirrored) -> None:
    used = mirrored()
    used.mirror(lacks=True)
    used.registry.faults = [Fault(refusal(status), times=None)]
    used.mover.pull(used.name, "file", *used.configure(), code=code, says=used.registry.host)


# Broken downloads from mirrors ----------------------------------------------------------------------------------

_CUT: Final = 300_000


def large(layout: Layout) -> dict[str, object]:
    return layout.image([4 * _CUT])


@both_ways
@pytest.mark.parametrize("action", [Drop(_CUT), Reset(_CUT)], ids=["a proper end", "a reset"])
def test_a_download_that_broke_at_a_mirror_resumes_at_the_registry(
    action: Action, how: How, mirrored: MakeMirrored
) -> None:
    used = mirrored(large)
    layer = layer_of(used.layout, used.image)["digest"]
    mirror = used.mirror(Fault(action, path=layer), Fault(HangUp(), path=layer, times=None))
    result = used.pull(how=how)
    (request,) = used.registry.asked("GET", layer)
    # Received bytes are not requested again.
    assert 0 < int((request.headers["Range"] or "").removeprefix("bytes=").removesuffix("-")) <= _CUT
    assert f"the mirror {mirror.host}/hub/app: " in result.err


def test_a_download_that_broke_once_resumes_at_the_same_mirror(mirrored: MakeMirrored) -> None:
    used = mirrored(large)
    layer = layer_of(used.layout, used.image)["digest"]
    mirror = used.mirror(Fault(Drop(_CUT), path=layer))
    used.pull()
    assert len(mirror.asked("GET", layer)) == 2
    assert used.registry.requests == []


def test_two_mirrors_and_the_registry_deliver_one_blob_together(mirrored: MakeMirrored) -> None:
    used = mirrored(large)
    layer = layer_of(used.layout, used.image)["digest"]
    for _ in range(2):
        used.mirror(Fault(Drop(_CUT), path=layer), Fault(HangUp(), path=layer, times=None))
    used.pull()
    assert len(used.registry.asked("GET", layer)) == 1


# A registry that fails ------------------------------------------------------------------------------------------


def test_a_mirror_is_tried_again_if_the_registry_is_unreachable(mirrored: MakeMirrored) -> None:
    used = mirrored()
    layer = layer_of(used.layout, used.image)["digest"]
    used.mirror(Fault(HangUp(), path=layer, times=3))
    result = used.pull(url=f"http://127.0.0.1:{unused_port()}")
    assert "connection refused; trying its mirrors again" in result.err


def test_a_mirror_that_never_answered_is_not_tried_again(mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror(Fault(HangUp(), times=None))
    nowhere = f"127.0.0.1:{unused_port()}"
    used.mover.pull(used.name, "file", "-q", *used.configure(url=f"http://{nowhere}"), code=7, says=nowhere)
    assert len(mirror.requests) == 2


def test_a_mirror_that_sent_wrong_content_is_not_tried_again(mirrored: MakeMirrored) -> None:
    used = mirrored()
    used.mirror(Fault(Flip(at=3), path="/blobs/", times=None))
    options = used.configure(url=f"http://127.0.0.1:{unused_port()}")
    used.mover.pull(used.name, "file", "-q", *options, code=7, says="connection refused")


def test_the_last_error_of_the_mirror_is_reported(mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror(Fault(refusal(503, "UNAVAILABLE"), path="/blobs/", times=None))
    options = used.configure(url=f"http://127.0.0.1:{unused_port()}")
    used.mover.pull(used.name, "file", "-q", *options, code=7, says=(mirror.host, "503"))


def test_a_stalled_mirror_is_abandoned(mirrored: MakeMirrored) -> None:
    used = mirrored()
    used.mirror(Fault(Stall(), times=None))
    options = ["--platform", "all", "--no-referrers", "--stall-timeout", "1.5", "--jobs", "1", "-v"]
    result = used.mover.run("pull", used.name, "-o", used.mover.folder / "out.tar", *options, *used.configure())
    assert "timed out" in result.err
    used.check((used.mover.folder / "out.tar").read_bytes())


@quirk(17)
def test_a_blob_is_mounted_from_the_registry_and_never_from_a_mirror(mirrored: MakeMirrored) -> None:
    used = mirrored()
    used.mirror()
    target = f"{used.registry.host}/copied:1"
    used.mover.run("copy", used.name, target, "--platform", "all", *used.configure())
    assert {tuple(request.query["from"]) for request in used.registry.asked("POST", "mount=")} <= {("app",)}
    assert used.registry.asked("PATCH") == []


# Tags and digests -----------------------------------------------------------------------------------------------


def test_a_digest_only_mirror_serves_blobs_but_does_not_resolve_tags(mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror()
    used.pull(pull="digest-only")
    assert paths(used.registry.requests) == ["manifests/1"]
    assert {path.partition("/")[0] for path in paths(mirror.requests)} == {"blobs"}


def test_a_tag_only_mirror_serves_images_by_tag_and_none_by_digest(mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror()
    used.pull(pull="tag-only")
    assert used.registry.requests == []
    mirror.requests.clear()
    used.pull(pull="tag-only", name=f"{used.registry.host}/app@{used.image['digest']}")
    assert mirror.requests == []


# Lists of tags, and referrers -----------------------------------------------------------------------------------


def test_tags_are_listed_by_the_registry_and_by_a_mirror_only_if_it_is_unreachable(mirrored: MakeMirrored) -> None:
    used = mirrored()
    lacks, mirror = used.mirror(lacks=True), used.mirror()
    seed(used.layout, used.image, used.registry.host, "app", "2")
    repository = f"{used.registry.host}/app"
    result = used.mover.run("inspect", repository, *used.configure())
    assert result.lines() == ["1", "2"]
    assert mirror.requests == lacks.requests == []
    nowhere = f"127.0.0.1:{unused_port()}"
    result = used.mover.run("inspect", repository, *used.configure(url=f"http://{nowhere}"))
    assert result.lines() == ["1"]
    assert f"the mirror {mirror.host}/hub/app, which may lack some" in result.err
    assert nowhere in result.err
    mirror.requests.clear()
    options = used.configure(url=f"http://{nowhere}", pull="digest-only")
    used.mover.run("inspect", repository, *options, code=7, says=nowhere)
    assert mirror.requests == []


@quirk(31)
@pytest.mark.parametrize("has_them", [True, False], ids=["of the mirror", "of the registry"])
def test_referrers_come_from_the_first_source_that_lists_any(has_them: bool, mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror()
    signature = used.layout.artifact(b"signature", subject=used.image)
    if has_them:
        seed(used.layout, signature, mirror.host, "hub/app")
    else:
        seed(used.layout, signature, used.registry.host, "app")
    # Tags of cosign are requested from each source.
    tagged = cosign_signature(used.layout, used.image)
    seed(used.layout, tagged, used.registry.host, "app", cosign_tag(used.image))
    used.registry.requests.clear()
    out = used.mover.folder / "out"
    used.mover.run("copy", used.name, f"oci:{out}", "--platform", "all", *used.configure())
    for found in (signature, tagged):
        assert (out / "blobs" / "sha256" / found["digest"][7:]).exists()
    assert (used.registry.asked("GET", f"/referrers/{used.image['digest']}") == []) == has_them


@quirk(31)
def test_an_unreachable_registry_is_asked_for_referrers_only_once(mirrored: MakeMirrored) -> None:
    # Behind a firewall each request would cost a time-out, and there are four for each manifest.
    used = mirrored()
    used.mirror()
    used.registry.faults = [Fault(HangUp(), times=None)]
    out = used.mover.folder / "out"
    result = used.mover.run("copy", used.name, f"oci:{out}", "--platform", "all", *used.configure())
    assert len(used.registry.requests) == 2, "one request, with the attempts of a mirror"
    assert result.err.count("the registry may have more referrers (signatures, SBOMs)") == 1
