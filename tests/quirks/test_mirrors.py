"""Reading from mirrors: what one does wrong costs a request or two, and the image arrives. Statement 52."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from tests.faulty_auth import Basic
from tests.faulty_registry import Action, Drop, Fault, Flip, HangUp, Reply, Reset, Stall, refusal
from tests.http_doubles import unused_port
from tests.images import Layout
from tests.quirks.command_runner import WAYS, How
from tests.quirks.mirrors import Mirrored, paths
from tests.quirks.small_images import config_of, layer_of
from tests.quirks.statements import quirk
from tests.registry_http import seed
from tests.signed_image import cosign_signature, cosign_tag

MakeMirrored = Callable[..., Mirrored]
both_ways = pytest.mark.parametrize("how", WAYS)
_ZEROS: Final = f"sha256:{'0' * 64}"


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


@quirk(52)
@pytest.mark.parametrize(("what", "how"), [*((what, "file") for what in FAILURES), ("hangs up", "pipe")])
def test_a_mirror_that_fails_is_asked_at_most_twice_and_told_of_once(
    what: str, how: How, mirrored: MakeMirrored
) -> None:
    used = mirrored()
    mirror = used.mirror(Fault(FAILURES[what], times=None))
    result = used.pull(how=how)
    assert 1 <= len(mirror.requests) <= 3
    assert result.err.count(f"the mirror {mirror.host}/hub/app: ") == 1


@quirk(52)
def test_a_mirror_that_is_down_costs_the_way_to_the_next_one(mirrored: MakeMirrored) -> None:
    used = mirrored()
    down = f"127.0.0.1:{unused_port()}"
    second = used.mirror()
    result = used.pull(down)
    assert used.registry.requests == []
    assert len(second.requests) == len(set(paths(second.requests)))
    assert f"the mirror {down}/hub/app: " in result.err
    assert "connection refused" in result.err


@quirk(52)
def test_a_host_that_is_down_is_not_asked_for_another_image(mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror(Fault(HangUp(), times=None))
    seed(used.layout, used.image, used.registry.host, "app", "2")
    result = used.mover.run(
        *("pull", used.name, used.name.replace(":1", ":2"), "-v", "--jobs", "1", "-o", used.mover.folder / "two.tar"),
        *used.configure(),
    )
    assert len(mirror.requests) <= 3
    assert result.err.count(f"the mirror {mirror.host}/hub/app: ") == 1


@quirk(52)
def test_a_mirror_that_wants_a_password_is_not_asked_for_each_blob(mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror(auth=Basic("somebody", "else"))
    result = used.pull()
    assert len(mirror.requests) <= 2
    assert f"{mirror.host} requires a user name and password, but none were found" in result.err


@quirk(52)
def test_a_mirror_that_lacks_one_blob_is_asked_for_the_others(mirrored: MakeMirrored) -> None:
    used = mirrored()
    config = config_of(used.layout, used.image)["digest"]
    used.mirror(Fault(refusal(404, "BLOB_UNKNOWN"), path=config, times=None))
    used.pull()
    assert paths(used.registry.requests) == [f"blobs/{config}"]


@quirk(52)
@pytest.mark.parametrize(("status", "code"), [(404, 4), (403, 3), (503, 7)])
def test_what_the_registry_itself_says_is_what_counts(status: int, code: int, mirrored: MakeMirrored) -> None:
    used = mirrored()
    used.mirror(lacks=True)
    used.registry.faults = [Fault(refusal(status), times=None)]
    used.mover.pull(used.name, "file", *used.configure(), code=code, says=used.registry.host)


# A mirror that breaks off ---------------------------------------------------------------------------------------

_CUT: Final = 300_000


def large(layout: Layout) -> dict[str, object]:
    return layout.image([4 * _CUT])


@quirk(52)
@both_ways
@pytest.mark.parametrize("action", [Drop(_CUT), Reset(_CUT)], ids=["a proper end", "a reset"])
def test_the_registry_continues_where_a_mirror_broke_off(action: Action, how: How, mirrored: MakeMirrored) -> None:
    used = mirrored(large)
    layer = layer_of(used.layout, used.image)["digest"]
    mirror = used.mirror(Fault(action, path=layer), Fault(HangUp(), path=layer, times=None))
    result = used.pull(how=how)
    (request,) = used.registry.asked("GET", layer)
    # What has come is asked for nowhere again.
    assert 0 < int((request.headers["Range"] or "").removeprefix("bytes=").removesuffix("-")) <= _CUT
    assert f"the mirror {mirror.host}/hub/app: " in result.err


@quirk(52)
def test_a_mirror_that_broke_off_once_continues_itself(mirrored: MakeMirrored) -> None:
    used = mirrored(large)
    layer = layer_of(used.layout, used.image)["digest"]
    mirror = used.mirror(Fault(Drop(_CUT), path=layer))
    used.pull()
    assert len(mirror.asked("GET", layer)) == 2
    assert used.registry.requests == []


@quirk(52)
def test_two_mirrors_and_the_registry_give_one_blob_between_them(mirrored: MakeMirrored) -> None:
    used = mirrored(large)
    layer = layer_of(used.layout, used.image)["digest"]
    for _ in range(2):
        used.mirror(Fault(Drop(_CUT), path=layer), Fault(HangUp(), path=layer, times=None))
    used.pull()
    assert len(used.registry.asked("GET", layer)) == 1


# A registry that fails ------------------------------------------------------------------------------------------


@quirk(52)
def test_a_mirror_has_a_second_chance_where_the_registry_cannot_be_reached(mirrored: MakeMirrored) -> None:
    used = mirrored()
    layer = layer_of(used.layout, used.image)["digest"]
    used.mirror(Fault(HangUp(), path=layer, times=3))
    result = used.pull(url=f"http://127.0.0.1:{unused_port()}")
    assert "connection refused; trying its mirrors again" in result.err


@quirk(52)
def test_a_mirror_that_never_answered_gets_no_second_chance(mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror(Fault(HangUp(), times=None))
    nowhere = f"127.0.0.1:{unused_port()}"
    used.mover.pull(used.name, "file", "-q", *used.configure(url=f"http://{nowhere}"), code=7, says=nowhere)
    assert len(mirror.requests) == 2


@quirk(52)
def test_a_mirror_that_lied_gets_no_second_chance(mirrored: MakeMirrored) -> None:
    used = mirrored()
    used.mirror(Fault(Flip(at=3), path="/blobs/", times=None))
    options = used.configure(url=f"http://127.0.0.1:{unused_port()}")
    used.mover.pull(used.name, "file", "-q", *options, code=7, says="connection refused")


@quirk(52)
def test_what_the_mirror_says_at_last_is_what_is_told(mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror(Fault(refusal(503, "UNAVAILABLE"), path="/blobs/", times=None))
    options = used.configure(url=f"http://127.0.0.1:{unused_port()}")
    used.mover.pull(used.name, "file", "-q", *options, code=7, says=(mirror.host, "503"))


@quirk(52)
def test_a_mirror_that_stalls_is_left(mirrored: MakeMirrored) -> None:
    used = mirrored()
    used.mirror(Fault(Stall(), times=None))
    options = ["--platform", "all", "--no-referrers", "--stall-timeout", "1.5", "--jobs", "1", "-v"]
    result = used.mover.run("pull", used.name, "-o", used.mover.folder / "out.tar", *options, *used.configure())
    assert "timed out" in result.err
    used.check((used.mover.folder / "out.tar").read_bytes())


@quirk(17)
@quirk(52)
def test_a_blob_is_mounted_from_the_registry_and_never_from_a_mirror(mirrored: MakeMirrored) -> None:
    used = mirrored()
    used.mirror()
    target = f"{used.registry.host}/copied:1"
    used.mover.run("copy", used.name, target, "--platform", "all", *used.configure())
    assert {tuple(request.query["from"]) for request in used.registry.asked("POST", "mount=")} <= {("app",)}
    assert used.registry.asked("PATCH") == []


# Tags and digests -----------------------------------------------------------------------------------------------


@quirk(52)
def test_a_mirror_for_digests_gives_what_an_image_needs_and_not_what_its_tag_is(mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror()
    used.pull(pull="digest-only")
    assert paths(used.registry.requests) == ["manifests/1"]
    assert {path.partition("/")[0] for path in paths(mirror.requests)} == {"blobs"}


@quirk(52)
def test_a_mirror_for_tags_gives_all_of_a_tag_s_image_and_nothing_by_digest(mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror()
    used.pull(pull="tag-only")
    assert used.registry.requests == []
    mirror.requests.clear()
    used.pull(pull="tag-only", name=f"{used.registry.host}/app@{used.image['digest']}")
    assert mirror.requests == []


# Lists of tags, and referrers -----------------------------------------------------------------------------------


@quirk(52)
def test_tags_are_the_registry_s_and_a_mirror_s_only_where_there_are_no_others(mirrored: MakeMirrored) -> None:
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
@quirk(52)
@pytest.mark.parametrize("has_them", [True, False], ids=["of the mirror", "of the registry"])
def test_referrers_are_those_of_the_first_place_that_knows_of_any(has_them: bool, mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror()
    signature = used.layout.artifact(b"signature", subject=used.image)
    if has_them:
        seed(used.layout, signature, mirror.host, "hub/app")
    else:
        seed(used.layout, signature, used.registry.host, "app")
    # What cosign keeps under a tag is looked for in each place.
    tagged = cosign_signature(used.layout, used.image)
    seed(used.layout, tagged, used.registry.host, "app", cosign_tag(used.image))
    used.registry.requests.clear()
    out = used.mover.folder / "out"
    used.mover.run("copy", used.name, f"oci:{out}", "--platform", "all", *used.configure())
    for found in (signature, tagged):
        assert (out / "blobs" / "sha256" / found["digest"][7:]).exists()
    assert (used.registry.asked("GET", f"/referrers/{used.image['digest']}") == []) == has_them


@quirk(31)
@quirk(52)
def test_a_registry_that_is_silent_behind_its_mirror_is_asked_once_for_referrers(mirrored: MakeMirrored) -> None:
    # Behind a firewall each question would cost a time-out, and there are four of them for each manifest.
    used = mirrored()
    used.mirror()
    used.registry.faults = [Fault(HangUp(), times=None)]
    out = used.mover.folder / "out"
    result = used.mover.run("copy", used.name, f"oci:{out}", "--platform", "all", *used.configure())
    assert len(used.registry.requests) == 2, "one question, tried as often as a mirror"
    assert result.err.count("the registry may have more") == 1
