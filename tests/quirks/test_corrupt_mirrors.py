"""Mirrors that send wrong content: a pull detects it, and reads the content elsewhere. Statement 53."""

from __future__ import annotations

import random
from typing import Final

import pytest

from tests.faulty_registry import Action, Drop, Fault, Flip, HangUp, Header, Reply, Resize
from tests.http_doubles import unused_port
from tests.images import digest_of, small_image, tar_layer, two_platforms
from tests.quirks.command_runner import How, both_ways
from tests.quirks.fixture_types import MakeMirrored, Start
from tests.quirks.small_images import MIB, layer_of
from tests.quirks.statements import quirk

pytestmark = quirk(53)

_ZEROS: Final = f"sha256:{'0' * 64}"


@both_ways
def test_a_manifest_with_another_digest_is_rejected(how: How, mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror(Fault(Flip(at=1), path="/manifests/", times=None))
    result = used.pull(how=how, name=f"{used.registry.host}/app@{used.image['digest']}")
    assert f"the mirror {mirror.host}/hub/app: " in result.err
    assert "the registry sent a manifest with the digest" in result.err


@both_ways
@pytest.mark.parametrize("replaced", [True, False], ids=["by another image", "by garbage"])
def test_a_wrong_child_of_an_index_is_rejected(replaced: bool, how: How, mirrored: MakeMirrored) -> None:
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
    # A mirror that sent wrong content gets no further requests.
    assert len(mirror.requests) <= 3
    assert used.registry.asked("GET", "/manifests/sha256") != []


@both_ways
def test_a_mirror_whose_tag_has_another_digest_than_it_states_is_skipped(how: How, mirrored: MakeMirrored) -> None:
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
    assert "the registry says that the digest is" in result.err
    assert used.registry.asked("GET", "/manifests/1") != []


def test_the_registry_s_bytes_count_more_than_its_digest_header(mirrored: MakeMirrored) -> None:
    used = mirrored()
    wrong = Header("Docker-Content-Digest", _ZEROS)
    used.registry.faults = [Fault(wrong, "GET", "/manifests/1"), Fault(wrong, "GET", "/blobs/", times=None)]
    used.pull(f"127.0.0.1:{unused_port()}")


ANNOUNCED: Final[dict[str, tuple[Action, str]]] = {
    "a shorter body": (Resize(by=-1), "bytes are announced"),
    "a longer body": (Resize(by=1), "bytes are announced"),
    "another digest": (Header("Docker-Content-Digest", _ZEROS), "is announced"),
}


@pytest.mark.parametrize("what", ANNOUNCED)
def test_a_blob_with_a_wrong_size_or_digest_header_is_rejected_before_its_body(
    what: str, mirrored: MakeMirrored
) -> None:
    action, words = ANNOUNCED[what]
    used = mirrored()
    mirror = used.mirror(Fault(action, path="/blobs/", times=None))
    result = used.pull(how="pipe")
    assert words in result.err
    assert len(mirror.asked(path="/blobs/")) == 1


def test_a_digest_header_of_another_algorithm_is_accepted(mirrored: MakeMirrored) -> None:
    used = mirrored()
    layer = layer_of(used.layout, used.image)["digest"]
    digest = digest_of(used.layout.file(layer).read_bytes(), "sha512")
    used.mirror(Fault(Header("Docker-Content-Digest", digest), path=layer, times=None))
    used.pull()
    assert used.registry.requests == []


@pytest.mark.parametrize(
    ("target", "compress"),
    [
        *((target, "") for target in ("{folder}/out.tar", "oci:{folder}/out", "{host}/copy:1")),
        *((target, "zstd") for target in ("{folder}/out.tar", "{host}/copy:1")),
        *(("docker-archive:{folder}/out.tar", compress) for compress in ("", "none")),
    ],
)
def test_a_blob_with_a_wrong_digest_is_read_again_from_another_source(
    target: str, compress: str, mirrored: MakeMirrored, start: Start
) -> None:
    # The wrong byte is early in the compressed stream, so decompression fails before the digest does.
    words = random.Random(0).randbytes(2 * MIB).hex().encode()
    used = mirrored(lambda layout: layout.image([tar_layer({"words": words})])) if compress else mirrored()
    mirror = used.mirror(Fault(Flip(at=20 if compress else 3), path="/blobs/", times=None))
    other = start()
    options = ["--compress", compress] if compress else []
    options += [] if compress or "docker-archive" in target else ["--platform", "all"]
    place = target.format(folder=used.mover.folder, host=other.host)
    result = used.mover.run("copy", used.name, place, "--jobs", "1", "-v", *options, *used.configure())
    assert f"received from the mirror {mirror.host}/hub/app; reading it again from another source" in result.err
    # A mirror that sent wrong content is not asked again.
    assert len(mirror.asked(path="/blobs/")) == 1
    assert "{host}" not in target or other.asked("PUT", "/manifests/1") != []


def test_a_wrong_blob_in_a_pipe_is_an_error_that_names_the_mirror(mirrored: MakeMirrored) -> None:
    used = mirrored()
    mirror = used.mirror(Fault(Flip(at=3), path=layer_of(used.layout, used.image)["digest"], times=None))
    arguments = ["pull", used.name, "--platform", "all", *used.configure()]
    result = used.mover.run(
        *arguments, code=5, says=(f"received from the mirror {mirror.host}/hub/app", "--no-mirrors")
    )
    assert used.registry.asked("GET", "/blobs/") == [], result.err


def test_a_pull_fails_if_all_sources_send_wrong_content(mirrored: MakeMirrored) -> None:
    used = mirrored()
    used.registry.faults = [Fault(Flip(at=3), path="/blobs/", times=None)]
    for position in (5, 7):
        used.mirror(Fault(Flip(at=position), path="/blobs/", times=None))
    used.mover.pull(used.name, "file", "-q", *used.configure(), code=5)
    asked = [request.path for request in used.registry.asked(path="/blobs/")]
    assert len(asked) == len(set(asked))


def test_a_wrong_config_is_read_again_from_another_source(mirrored: MakeMirrored) -> None:
    used = mirrored()
    used.mirror(Fault(Flip(at=3), path="/blobs/", times=None))
    out = used.mover.folder / "out.tar"
    result = used.mover.run("pull", used.name, "--platform", "linux/amd64", "-o", out, *used.configure())
    assert "reading it again from another source" in result.err
    used.check(out.read_bytes())


def test_a_partial_blob_resumes_at_a_mirror_and_is_fetched_again_after_wrong_bytes(
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
    # The partial file was right, but the mirror's rest was not, so the complete blob is fetched elsewhere.
    assert start > 0
    assert [request.headers["Range"] for request in good.asked("GET", layer)] == [None], others
    content = (used.mover.folder / "out" / "blobs" / "sha256" / layer[7:]).read_bytes()
    assert content == used.layout.file(layer).read_bytes()
