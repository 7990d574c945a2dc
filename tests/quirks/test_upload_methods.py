"""Upload methods: one stream, one PUT or chunks, as requested and as a registry accepts them.

Statements 60 and 61.
"""

from __future__ import annotations

import json
import random
from typing import Final

import pytest

from ocistream import limits
from tests.archives import small_first, tar_of
from tests.faulty_registry import Fault, Header, Refuse, Reply, StopReading, refusal
from tests.images import Layout, tar_layer
from tests.quirks import upload_quirks
from tests.quirks.command_runner import How, both_ways
from tests.quirks.fixture_types import MakePushes, Move, Start
from tests.quirks.interrupted_pushes import SENT, SIZE, Pushes
from tests.quirks.quirky_registry import Quirk
from tests.quirks.small_images import MIB, is_stored, spoil
from tests.quirks.statements import quirk

FORCED: Final = ("stream", "put", "chunk=1MiB")
STREAM: Final = ["POST", "PATCH", "PUT"]
#: The profiles that a configuration may name.
PROFILES: Final = (
    *("amazon-ecr", "artifactory", "azure-container-registry", "distribution", "docker-hub", "github-packages"),
    *("gitlab", "google-artifact-registry", "harbor", "nexus", "ocistream", "quay", "unknown"),
)


def configured(pushes: Pushes, setting: str) -> tuple[str, str]:
    """Write a configuration of the registry, and return the option that names it."""
    path = pushes.mover.folder / "config.toml"
    path.write_text(f'[registry."{pushes.registry.host}"]\n{setting}\n')
    return "--config", str(path)


def method_used(pushes: Pushes, how: How = "file", *options: str) -> str:
    """Push, and return the upload method in the result for the registry."""
    path = pushes.mover.folder / "result.json"
    pushes.push(how, *options, "--result", str(path))
    return str(json.loads(path.read_text())["upload"][pushes.registry.host])


# Requested methods ----------------------------------------------------------------------------------------------


@quirk(60)
@both_ways
def test_one_put_has_the_digest_and_the_body(how: How, pushes: MakePushes) -> None:
    used = pushes()
    used.push(how, "--upload", "put")
    _, put = used.uploads()
    assert used.methods() == ["POST", "PUT"]
    assert put.headers["Content-Length"] == str(SIZE)
    assert put.query["digest"] == [used.digest]
    assert used.is_complete()


@quirk(60)
@pytest.mark.parametrize("way", FORCED)
@pytest.mark.parametrize("status", [404, 405, 413, 416])
def test_a_requested_method_is_used_and_its_refusal_reported(status: int, way: str, pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [Fault(refusal(status), "PATCH|PUT", "uploads", larger_than=0, times=None)]
    used.push("file", "--upload", way, code=7, says="--upload auto")
    assert {request.method for request in used.uploads() if request.status == status} == {
        "PUT" if way == "put" else "PATCH"
    }
    # The same command would be refused again, so nothing is kept.
    assert used.methods()[-1] == "DELETE"
    assert used.records() == []


@quirk(60)
def test_the_option_overrides_the_configured_method(pushes: MakePushes) -> None:
    used = pushes()
    config = configured(used, 'upload = "put"')
    used.registry.faults = [Fault(refusal(400), "PUT", "/manifests/", times=None)]
    for options, expected in (((), ["POST", "PUT"]), (("--upload", "stream"), STREAM)):
        used.registry.requests.clear()
        # The registry denies that it has the layer, so that the layer is sent again.
        used.registry.faults = [Fault(refusal(404), "HEAD", "/blobs/", times=None)]
        used.push("file", *config, *options)
        assert [request.method for request in used.uploads() if _is_of_layer(request.received)] == expected[1:2]


def _is_of_layer(received: int) -> bool:
    return received >= MIB


@quirk(60)
@both_ways
@pytest.mark.parametrize("way", FORCED)
def test_the_upload_of_a_blob_with_a_wrong_last_byte_is_never_closed(way: str, how: How, pushes: MakePushes) -> None:
    used = pushes()
    used.archive = spoil(used.archive, used.layout, used.digest)
    used.push(how, "--upload", way, code=5, says=used.digest)
    assert [put for put in used.uploads("PUT") if put.status == 201] == []
    assert used.registry.asked("PUT", "/manifests/") == []
    assert used.records() == []


# Small blobs ----------------------------------------------------------------------------------------------------


@quirk(60)
@both_ways
@pytest.mark.parametrize(
    ("profile", "excess", "methods"),
    [("unknown", 0, ["POST", "PUT"]), ("unknown", 1, STREAM), ("artifactory", 0, STREAM)],
)
def test_a_small_blob_takes_one_put_unless_the_registry_is_known_to_refuse_that(
    profile: str, excess: int, methods: list[str], how: How, pushes: MakePushes
) -> None:
    used = pushes(size=limits.MAX_BUFFERED_BLOB + excess)
    used.push(how, *configured(used, f'profile = "{profile}"'))
    assert used.methods() == methods
    assert used.is_complete()


@quirk(60)
@both_ways
@pytest.mark.parametrize("status", [404, 405, 501])
def test_after_a_refused_put_of_a_small_blob_all_later_blobs_are_streamed(
    status: int, how: How, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start()
    image = layout.image([4000, 5000, 6000], name="app")
    registry.faults = [Fault(refusal(status), "PUT", "uploads", larger_than=0, times=None)]
    mover("--jobs", "1").push(tar_of(small_first(layout)), f"{registry.host}/app:v1", how)
    assert [put.status for put in registry.asked("PUT", "uploads")] == [status, 201, 201, 201, 201]
    assert [patch.status for patch in registry.asked("PATCH")] == [202] * 4
    assert is_stored(registry, layout, *layout.read(image["digest"])["layers"])


@quirk(30)
@both_ways
def test_a_server_that_will_never_open_an_upload_is_asked_once(how: How, pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [Fault(refusal(501), "POST", times=None)]
    used.push(how, code=7, says=": 501 ")
    assert used.methods() == ["POST"]


@quirk(60)
@both_ways
def test_no_upload_is_opened_for_a_small_blob_with_a_wrong_digest(how: How, pushes: MakePushes) -> None:
    used = pushes(size=4000)
    used.archive = spoil(used.archive, used.layout, used.digest)
    used.push(how, "--jobs", "1", code=5, says=used.digest)
    assert used.uploads() == []


@quirk(60)
@pytest.mark.parametrize(("excess", "records"), [(0, 0), (1, 1)])
def test_a_failed_upload_of_a_small_blob_is_not_recorded(excess: int, records: int, pushes: MakePushes) -> None:
    used = pushes(size=limits.MAX_BUFFERED_BLOB + excess)
    # A recorded session that cannot be deleted is left for a later run.
    used.registry.faults = [Fault(refusal(503), "PUT|DELETE", "uploads", times=None)]
    used.push("file", "--retries", "0", code=7, says="503")
    assert len(used.records()) == records


# Methods that a registry accepts --------------------------------------------------------------------------------


@quirk(9, 60)
@both_ways
def test_after_413_the_chunk_size_is_halved_until_the_registry_accepts_it(how: How, pushes: MakePushes) -> None:
    used = pushes(upload_quirks.no_larger_than(MIB, 413))
    assert method_used(used, how) == f"chunk={MIB}"
    assert {patch.received for patch in used.uploads("PATCH") if patch.status == 202} == {MIB, 5}
    stated = [int(patch.headers["Content-Length"]) for patch in used.uploads("PATCH")]
    assert stated[:4] == [SIZE, 4 * MIB, 2 * MIB, MIB]
    assert used.is_complete()


@quirk(9, 60)
@pytest.mark.parametrize(("chunk", "advice"), [("64KiB", "use smaller requests"), ("1MiB", "--upload auto")])
def test_a_refused_chunk_size_of_the_user_gets_advice_that_can_help(
    chunk: str, advice: str, pushes: MakePushes
) -> None:
    # `auto` does not try chunks of less than 256 KiB.
    used = pushes()
    used.registry.faults = [Fault(refusal(413), "PATCH", times=None)]
    used.push("file", "--upload", f"chunk={chunk}", code=7, says=("413", advice))


@quirk(9)
def test_a_manifest_that_is_too_large_gets_advice(pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [Fault(refusal(413), "PUT", "/manifests/", times=None)]
    result = used.push(code=7, says=("413", "client_max_body_size"))
    # No method of uploads can help.
    assert "--upload" not in result.err


@quirk(9, 60)
def test_a_push_fails_with_a_hint_if_even_small_chunks_are_too_large(pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [Fault(refusal(413), "PATCH", larger_than=0, times=None)]
    used.push(code=7, says=("413", "client_max_body_size", "--upload"))
    sizes = [int(patch.headers["Content-Length"]) for patch in used.uploads("PATCH")]
    assert sizes == [SIZE, 4 * MIB, 2 * MIB, MIB, MIB // 2, MIB // 4]
    assert used.methods()[-1] == "DELETE"


@quirk(9, 60)
@both_ways
@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_registry_without_patch_gets_one_put(status: int, how: How, pushes: MakePushes) -> None:
    used = pushes(upload_quirks.refusing("PATCH", status))
    result = used.push(how, "-v")
    assert str(status) in result.err
    assert [put.received for put in used.uploads("PUT")] == [SIZE]
    assert used.is_complete()


@quirk(60)
@pytest.mark.parametrize("status", [411, 416, 501])
def test_after_a_refused_patch_without_a_range_chunks_are_used(status: int, pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [Fault(refusal(status), "PATCH")]
    used.push("file")
    refused, *chunks = used.uploads("PATCH")
    assert "Content-Range" not in refused.headers
    assert chunks
    assert all("Content-Range" in chunk.headers for chunk in chunks)
    assert used.is_complete()


@quirk(10, 60)
@both_ways
def test_416_for_the_size_switches_to_chunks_but_416_for_the_offset_does_not(how: How, pushes: MakePushes) -> None:
    used = pushes(upload_quirks.no_larger_than(MIB, 416))
    used.push(how)
    assert used.is_complete()
    other = pushes()
    # The registry's first reported offset is too small.
    other.registry.faults = [
        Fault(StopReading(2 * MIB), "PATCH"),
        Fault(Header("Range", f"0-{MIB - 1}"), "GET", "/uploads/"),
    ]
    assert method_used(other, "pipe") == "stream"
    assert [patch.status for patch in other.uploads("PATCH")] == [None, 416, 202]
    assert len(other.uploads("POST")) == 1
    assert other.is_complete()


@quirk(60)
@pytest.mark.parametrize("code", ["BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID"])
def test_a_lost_session_is_not_mistaken_for_an_unsupported_method(code: str, pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [Fault(refusal(404, code), "PATCH", times=2)]
    assert method_used(used, "pipe") == "stream"
    assert len(used.uploads("POST")) == 3
    assert used.is_complete()
    lost = pushes()
    lost.registry.faults = [Fault(refusal(404, code), "PATCH", times=None)]
    lost.push("file", "-q", code=7, says="the registry has lost the upload")


@quirk(60)
@pytest.mark.parametrize("times", [1, None])
def test_a_404_without_a_code_means_a_lost_session_once_and_an_unsupported_method_twice(
    times: int | None, pushes: MakePushes
) -> None:
    used = pushes()
    used.registry.faults = [
        Fault(refusal(404), "PATCH", times=times),
        Fault(refusal(404), "GET", "uploads", times=None),
    ]
    assert method_used(used) == ("put" if times is None else "stream")
    assert used.is_complete()
    assert len(used.uploads("PATCH")) == 2


@quirk(60)
@pytest.mark.parametrize(("status", "method"), [(405, "PUT"), (413, "PATCH")])
def test_later_blobs_first_try_the_method_that_worked_for_an_earlier_one(
    status: int, method: str, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start()
    image = layout.image([2 * MIB] * 3, name="app")
    registry.faults = [Fault(refusal(status), "PATCH", larger_than=MIB, times=None)]
    mover("--jobs", "1").push(tar_of(small_first(layout)), f"{registry.host}/app:v1")
    bodies = [request for request in registry.asked("PATCH|PUT", "uploads") if request.headers["Content-Length"] != "0"]
    config, refused, *later = bodies
    assert (config.method, config.status, refused.status) == ("PUT", 201, status)
    assert {(request.method, request.status) for request in later} == {(method, 202 if method == "PATCH" else 201)}
    assert is_stored(registry, layout, *layout.read(image["digest"])["layers"])


@quirk(60)
def test_a_blob_of_unknown_size_is_not_sent_by_the_put_that_worked_for_another(
    start: Start, mover: Move, layout: Layout
) -> None:
    registry = start()
    kept = [tar_layer({f"{number}": random.randbytes(300_000)}, compression="zstd") for number in range(2)]
    recompressed = [tar_layer({f"{number}": b"z"}) for number in range(2)]
    layout.image([*kept, *recompressed], name="app")
    registry.faults = [Fault(refusal(405), "PATCH", larger_than=0, times=None)]
    mover("--jobs", "1").push(tar_of(small_first(layout)), f"{registry.host}/app:v1", "file", "--compress", "zstd")
    refused, *unsized = registry.asked("PATCH")
    assert refused.status == 405
    assert [(patch.status, patch.headers["Transfer-Encoding"]) for patch in unsized] == [(202, "chunked")] * 2
    assert [put.received > 0 for put in registry.asked("PUT", "uploads")].count(True) == 3


@quirk(60)
def test_later_blobs_of_unknown_size_first_try_the_method_that_worked(
    start: Start, mover: Move, layout: Layout
) -> None:
    registry = start()
    layout.image([tar_layer({f"{number}": b"x" * 1000}) for number in range(3)], name="app")
    registry.faults = [Fault(refusal(411), "PATCH", only_chunked_coding=True, times=None)]
    mover("--jobs", "1").push(tar_of(small_first(layout)), f"{registry.host}/app:v1", "file", "--compress", "zstd")
    assert [patch.status for patch in registry.asked("PATCH")].count(411) == 1
    # The config is small, so it takes one PUT.
    assert [patch.status for patch in registry.asked("PATCH")].count(202) == 3


@quirk(60)
@pytest.mark.parametrize(
    ("method", "status", "code"), [("POST", 405, 8), ("POST", 413, 7), ("PUT", 405, 7), ("PUT", 413, 7)]
)
def test_the_refusal_of_a_request_without_a_body_does_not_change_the_method(
    method: str, status: int, code: int, pushes: MakePushes
) -> None:
    used = pushes()
    used.registry.faults = [Fault(refusal(status), method, "uploads", times=None)]
    used.push(code=code, says=str(status))
    assert len(used.uploads(method)) == 1


@quirk(60)
@pytest.mark.parametrize(
    ("profile", "status", "method"),
    [("artifactory", 405, "PUT"), ("amazon-ecr", 413, "PATCH"), ("google-artifact-registry", 413, "PATCH")],
)
def test_a_method_that_is_known_not_to_work_is_not_tried(
    profile: str, status: int, method: str, pushes: MakePushes
) -> None:
    used = pushes()
    used.registry.faults = [Fault(refusal(status), "PATCH", larger_than=0, times=None)]
    used.push("file", *configured(used, f'profile = "{profile}"'), code=7, says=str(status))
    assert [request.headers["Content-Range"] for request in used.uploads("PATCH")] == [None]
    assert [request for request in used.uploads("PUT") if method == "PUT" and request.received] == []


@quirk(60)
@pytest.mark.parametrize(
    ("header", "value", "tries_put"),
    [("X-Artifactory-Id", "6d70dcfd", False), ("X-JFrog-Version", "7.1", False), ("X-Other", "x", True)],
)
def test_a_registry_is_recognized_by_its_response_headers(
    header: str, value: str, tries_put: bool, pushes: MakePushes
) -> None:
    used = pushes()
    used.registry.faults = [
        Fault(refusal(405), "PATCH", larger_than=0, times=None),
        Fault(Header(header, value), times=None),
    ]
    used.push(code=0 if tries_put else 7)
    assert any(request.received for request in used.uploads("PUT")) == tries_put


@quirk(60)
@both_ways
def test_a_refusal_during_the_body_stops_sending(how: How, pushes: MakePushes) -> None:
    used = pushes(size=24 * MIB)
    used.registry.faults = [Fault(refusal(413), "PATCH")]
    result = used.push(how)
    # This is not a network failure, and so few bytes were read that all could be sent again.
    assert not result.waits
    assert used.uploads("DELETE") == []
    assert used.is_complete()


@quirk(60)
def test_a_success_status_before_the_complete_body_is_not_trusted(pushes: MakePushes) -> None:
    used = pushes(size=24 * MIB)
    used.registry.faults = [Fault(Reply(202), "PATCH")]
    used.push()
    assert (len(used.uploads("PATCH")), len(used.uploads("POST"))) == (2, 1)
    assert used.is_complete()


# Registries that lose a broken request --------------------------------------------------------------------------


def coded(pushes: Pushes) -> list[bool]:
    """Return for each PATCH whether it uses the chunked transfer coding; otherwise it must have a Content-Length."""
    heads = [patch.headers for patch in pushes.uploads("PATCH")]
    assert all((head["Transfer-Encoding"] is None) != (head["Content-Length"] is None) for head in heads)
    return [head["Transfer-Encoding"] == "chunked" for head in heads]


@quirk(61)
@pytest.mark.parametrize("profile", PROFILES)
def test_only_registries_that_lose_broken_requests_get_the_chunked_coding(profile: str, pushes: MakePushes) -> None:
    used = pushes()
    used.push("file", *configured(used, f'profile = "{profile}"'))
    assert any(coded(used)) == (profile in {"distribution", "harbor"})
    assert used.is_complete()


@quirk(61)
@pytest.mark.parametrize("size", [MIB - 1, 2 * MIB])
def test_a_blob_too_small_to_be_kept_has_a_content_length(size: int, pushes: MakePushes) -> None:
    used = pushes(size=size)
    used.push("file", *configured(used, 'profile = "distribution"'))
    assert coded(used) == [size >= limits.MIN_PARTIAL_SIZE]


@quirk(61)
@pytest.mark.parametrize("options", [(), ("--upload", "stream")], ids=["found out", "asked for"])
@pytest.mark.parametrize("status", [400, 404, 411, 501])
def test_a_refusal_of_the_coding_does_not_change_the_method(
    status: int, options: tuple[str, ...], pushes: MakePushes
) -> None:
    used = pushes()
    used.registry.faults = [Fault(refusal(status), "PATCH")]
    assert method_used(used, "file", *configured(used, 'profile = "distribution"'), *options) == "stream"
    assert coded(used) == [True, False]
    assert used.is_complete()


@quirk(61)
def test_after_a_refused_coding_and_a_wrong_digest_the_blob_is_sent_again(
    pushes: MakePushes,
) -> None:
    used = pushes()
    used.registry.faults = [
        Fault(Refuse(411), "PATCH", only_chunked_coding=True),
        Fault(refusal(400, "DIGEST_INVALID"), "PUT", "digest="),
    ]
    used.push("file", *configured(used, 'profile = "distribution"'))
    assert used.methods() == ["POST", "PATCH", "GET", "PUT", "DELETE", "POST", "PATCH", "PUT"]
    assert used.is_complete()


@quirk(61)
def test_a_refusal_of_the_size_switches_from_the_coding_to_chunks(pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [Fault(refusal(413), "PATCH")]
    assert method_used(used, "file", *configured(used, 'profile = "distribution"')).startswith("chunk=")
    assert used.is_complete()


@quirk(61)
def test_a_refused_rest_in_the_coding_is_sent_with_a_length(pushes: MakePushes) -> None:
    used = pushes()
    used.interrupt()
    used.registry.faults = [Fault(refusal(400), "PATCH")]
    used.push("file", *configured(used, 'profile = "distribution"'))
    rest = f"{SENT}-{SIZE - 1}"
    assert (coded(used), used.ranges()) == ([True, False], [rest, rest])
    assert used.methods() == ["GET", "PATCH", "GET", "PATCH", "PUT"]
    assert used.is_complete()


@quirk(61)
def test_an_upload_lost_with_its_connection_is_reported(pushes: MakePushes) -> None:
    used = pushes(Quirk("loses what breaks", (Fault(refusal(404, "BLOB_UPLOAD_INVALID"), "GET", "uploads"),)))
    used.registry.faults.insert(0, Fault(StopReading(3 * MIB), "PATCH"))
    result = used.push()
    assert f"{used.registry.host}: cannot resume the upload of {used.digest}: sending " in result.err
    assert used.is_complete()
