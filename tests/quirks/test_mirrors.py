"""Reading from mirrors: what one does wrong costs a request or two, and the image arrives. Statements 52 and 53."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import pytest

from tests.faults import Action, Drop, Fault, Flip, HangUp, Header, Reply, Reset, Resize, Stall, refusal
from tests.faulty_auth import Basic
from tests.images import Layout, digest_of, small_image, tar_layer, two_platforms
from tests.network import unused_port
from tests.quirks.mirrors import Mirrored, paths
from tests.quirks.moving import WAYS, How, Mover
from tests.quirks.pieces import MIB, config_of, layer_of
from tests.quirks.registry import QuirkyRegistry
from tests.quirks.statements import quirk
from tests.registry_http import seed
from tests.signed import cosign_signature, cosign_tag

MakeMirrored = Callable[..., Mirrored]
both_ways = pytest.mark.parametrize("how", WAYS)
_ZEROS: Final = f"sha256:{'0' * 64}"


@pytest.fixture
def mirrored(start: Callable[..., QuirkyRegistry], mover: Callable[..., Mover], layout: Layout) -> MakeMirrored:
    """Return a function that starts a registry with an image: a small one, or what it is given."""

    def make(make_image: Callable[[Layout], dict[str, object]] = small_image) -> Mirrored:
        image = make_image(layout)
        registry = start()
        seed(layout, image, registry.host, "app", "1")
        registry.requests.clear()
        return Mirrored(start, layout, mover(env={}), image, registry)

    return make


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
@both_ways
@pytest.mark.parametrize("what", FAILURES)
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
    assert f"{mirror.host} wants a user name and a password" in result.err


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


# A mirror that lies ---------------------------------------------------------------------------------------------


@quirk(53)
@both_ways
def test_another_manifest_than_the_digest_says_is_not_taken(how: How, mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror(Fault(Flip(at=1), path="/manifests/", times=None))
    result = used.pull(how=how, name=f"{used.registry.host}/app@{used.image['digest']}")
    assert f"the mirror {mirror.host}/hub/app: " in result.err
    assert "the registry sent a manifest with the digest" in result.err


@quirk(53)
@both_ways
@pytest.mark.parametrize("replaced", [True, False], ids=["by another image", "by garbage"])
def test_nor_is_another_one_that_an_index_lists(replaced: bool, how: How, mirrored: MakeMirrored) -> None:
    used = mirrored(two_platforms)
    lie: Action = Flip(at=1)
    if replaced:
        listed = used.layout.read(used.image["digest"])["manifests"]
        other = used.layout.file(listed[1]["digest"]).read_bytes()
        lie = Reply(200, {"Content-Type": listed[1]["mediaType"]}, other)
        target = listed[0]["digest"]
    else:
        target = "sha256"
    mirror = used.mirror(Fault(lie, path=f"/manifests/{target}", times=None))
    result = used.pull(how=how)
    assert f"the mirror {mirror.host}/hub/app: " in result.err
    # A mirror that lies is not asked for anything else.
    assert len(mirror.requests) <= 3
    assert used.registry.asked("GET", "/manifests/sha256") != []


@quirk(53)
@both_ways
def test_a_mirror_that_calls_the_image_of_a_tag_by_another_digest_is_set_aside(
    how: How, mirrored: MakeMirrored
) -> None:
    used = mirrored()
    other = small_image(used.layout, config={"Cmd": ["another"]})
    lie = Reply(
        200,
        {"Content-Type": other["mediaType"], "Docker-Content-Digest": used.image["digest"]},
        used.layout.file(other["digest"]).read_bytes(),
    )
    mirror = used.mirror(Fault(lie, "GET", "/manifests/1", times=None))
    result = used.pull(how=how)
    assert mirror.host in result.err
    assert "the registry calls the manifest" in result.err
    assert used.registry.asked("GET", "/manifests/1") != []


@quirk(53)
def test_of_the_registry_itself_the_bytes_are_believed(mirrored: MakeMirrored) -> None:
    used = mirrored()
    wrong = Header("Docker-Content-Digest", _ZEROS)
    used.registry.faults = [Fault(wrong, "GET", "/manifests/1"), Fault(wrong, "GET", "/blobs/", times=None)]
    used.pull(f"127.0.0.1:{unused_port()}")


ANNOUNCED: Final[dict[str, tuple[Action, str]]] = {
    "a shorter body": (Resize(by=-1), "bytes are announced"),
    "a longer body": (Resize(by=1), "bytes are announced"),
    "another digest": (Header("Docker-Content-Digest", _ZEROS), "is announced"),
}


@quirk(53)
@pytest.mark.parametrize("what", ANNOUNCED)
def test_a_blob_that_is_announced_to_be_another_is_not_begun_even_for_a_pipe(what: str, mirrored: MakeMirrored) -> None:
    action, words = ANNOUNCED[what]
    used = mirrored()
    mirror = used.mirror(Fault(action, path="/blobs/", times=None))
    result = used.pull(how="pipe")
    assert words in result.err
    assert len(mirror.asked(path="/blobs/")) == 1


@quirk(53)
def test_the_same_blob_by_another_kind_of_digest_is_no_lie(mirrored: MakeMirrored) -> None:
    used = mirrored()
    layer = layer_of(used.layout, used.image)["digest"]
    digest = digest_of(used.layout.file(layer).read_bytes(), "sha512")
    used.mirror(Fault(Header("Docker-Content-Digest", digest), path=layer, times=None))
    used.pull()
    assert used.registry.requests == []


@quirk(53)
@pytest.mark.parametrize("target", ["a file", "a layout", "a registry", "a docker-archive"])
def test_a_blob_that_is_wrong_at_its_end_is_read_again_from_elsewhere(
    target: str, mirrored: MakeMirrored, start: Callable[..., QuirkyRegistry]
) -> None:
    used = mirrored()
    mirror = used.mirror(Fault(Flip(at=3), path="/blobs/", times=None))
    folder, other = used.mover.folder, start()
    places = {
        "a file": f"{folder}/out.tar",
        "a layout": f"oci:{folder}/out",
        "a registry": f"{other.host}/copy:1",
        "a docker-archive": f"docker-archive:{folder}/out.tar",
    }
    options = ["--jobs", "1", "-v", *([] if target == "a docker-archive" else ["--platform", "all"])]
    result = used.mover.run("copy", used.name, places[target], *options, *used.configure())
    assert f"as the mirror {mirror.host}/hub/app gave it; reading it again from elsewhere" in result.err
    # One that lied once is not asked again.
    assert len(mirror.asked(path="/blobs/")) == 1
    if target == "a registry":
        assert other.asked("PUT", "/manifests/1") != []


@quirk(53)
@pytest.mark.parametrize("target", ["a file", "a registry", "a docker-archive"])
def test_so_is_one_that_is_unpacked_meanwhile(
    target: str, mirrored: MakeMirrored, start: Callable[..., QuirkyRegistry]
) -> None:
    # Wrong where compressed bytes begin, and long before their end: whoever unpacks them stumbles first.
    words = random.Random(0).randbytes(2 * MIB).hex().encode()
    used = mirrored(lambda layout: layout.image([tar_layer({"words": words})]))
    mirror = used.mirror(Fault(Flip(at=20), path="/blobs/", times=None))
    folder, other = used.mover.folder, start()
    places = {
        "a file": f"{folder}/out.tar",
        "a registry": f"{other.host}/copy:1",
        "a docker-archive": f"docker-archive:{folder}/out.tar",
    }
    to = "none" if target == "a docker-archive" else "zstd"
    arguments = ["copy", used.name, places[target], "--compress", to, "--jobs", "1", "-v", *used.configure()]
    result = used.mover.run(*arguments)
    assert f"as the mirror {mirror.host}/hub/app gave it" in result.err


@quirk(53)
def test_a_pipe_cannot_take_it_back_and_the_mirror_is_named(mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror(Fault(Flip(at=3), path=layer_of(used.layout, used.image)["digest"], times=None))
    arguments = ["pull", used.name, "--platform", "all", *used.configure()]
    result = used.mover.run(*arguments, code=5, says=(f"the mirror {mirror.host}/hub/app gave it", "--no-mirrors"))
    assert used.registry.asked("GET", "/blobs/") == [], result.err


@quirk(53)
def test_where_all_of_them_lie_it_ends(mirrored: MakeMirrored) -> None:
    used = mirrored()
    used.registry.faults = [Fault(Flip(at=3), path="/blobs/", times=None)]
    for position in (5, 7):
        used.mirror(Fault(Flip(at=position), path="/blobs/", times=None))
    used.mover.pull(used.name, "file", "-q", *used.configure(), code=5)
    asked = [request.path for request in used.registry.asked(path="/blobs/")]
    assert len(asked) == len(set(asked))


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
def test_but_not_one_that_never_gave_anything(mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror(Fault(HangUp(), times=None))
    nowhere = f"127.0.0.1:{unused_port()}"
    used.mover.pull(used.name, "file", "-q", *used.configure(url=f"http://{nowhere}"), code=7, says=nowhere)
    assert len(mirror.requests) == 2


@quirk(52)
def test_nor_one_that_lied(mirrored: MakeMirrored) -> None:
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
    options = ["--platform", "all", "--no-referrers", "--stall-timeout", "0.5", "--jobs", "1", "-v"]
    result = used.mover.run("pull", used.name, "-o", used.mover.folder / "out.tar", *options, *used.configure())
    assert "timed out" in result.err
    used.check((used.mover.folder / "out.tar").read_bytes())


@quirk(53)
def test_a_config_that_is_needed_early_is_read_again_too(mirrored: MakeMirrored) -> None:
    used = mirrored()
    used.mirror(Fault(Flip(at=3), path="/blobs/", times=None))
    out = used.mover.folder / "out.tar"
    result = used.mover.run("pull", used.name, "--platform", "linux/amd64", "-o", out, *used.configure())
    assert "reading it again from elsewhere" in result.err
    used.check(out.read_bytes())


@quirk(53)
def test_what_an_earlier_run_has_left_continues_at_a_mirror_and_is_fetched_again_if_that_lied(
    mirrored: MakeMirrored,
) -> None:
    used = mirrored(lambda layout: layout.image([3 * MIB]))
    layer = layer_of(used.layout, used.image)["digest"]
    out = f"oci:{used.mover.folder / 'out'}"
    arguments = ["copy", used.name, out, "--platform", "all", "--jobs", "1", "--retries", "0", "-q"]
    breaks = [Fault(Drop(2 * MIB), "GET", layer), Fault(HangUp(), "GET", layer, times=None)]
    used.registry.faults = list(breaks)
    used.mover.run(*arguments, code=7)
    used.registry.faults = []
    liar, good = used.mirror(Fault(Flip(at=3), path=f"/blobs/{layer}", times=None)), used.mirror()
    used.mover.run(*arguments, *used.configure())
    first, *others = liar.asked("GET", layer)
    start = int((first.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    # What was there is right; the liar's rest is not, and so all of it is read again elsewhere.
    assert start > 0
    assert [request.headers["Range"] for request in good.asked("GET", layer)] == [None], others
    content = (used.mover.folder / "out" / "blobs" / "sha256" / layer[7:]).read_bytes()
    assert content == used.layout.file(layer).read_bytes()


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
    assert result.err.count("not known whether the registry has more") == 1
