"""Uploads of an earlier run: which ones are resumed, restarted, kept or deleted. Statement 50."""

from __future__ import annotations

import json

import pytest

from ocistream.sizes import format_size
from tests.faulty_registry import Action, Drop, Fault, HangUp, Header, StopReading, refusal
from tests.images import Layout
from tests.quirks.command_runner import How, both_ways
from tests.quirks.fixture_types import MakePushes, Move, Start
from tests.quirks.interrupted_pushes import SENT, SIZE, Pushes
from tests.quirks.quirky_registry import Quirk
from tests.quirks.small_images import MIB
from tests.quirks.statements import quirk
from tests.registry_http import seed

pytestmark = quirk(50)


@both_ways
def test_an_interrupted_push_resumes_at_the_registry_s_offset(how: How, pushes: MakePushes) -> None:
    used = pushes()
    used.interrupt()
    location = used.record()["location"]
    result = used.push(how)
    assert used.methods() == ["GET", "PATCH", "PUT"]
    assert used.ranges() == [f"{SENT}-{SIZE - 1}"]
    assert location.endswith(used.uploads("PATCH")[0].path)
    assert used.received() == SIZE - SENT
    assert f"resumed 2.1 MB of 4.2 MB of {used.digest}" in result.err
    assert used.is_complete()
    assert used.records() == []


def test_an_interrupted_push_resumes_in_chunks_and_may_break_again(pushes: MakePushes) -> None:
    used = pushes()
    used.interrupt()
    used.registry.faults = [Fault(StopReading(MIB // 2), "PATCH")]
    used.push("file", "--upload", "chunk=2MiB")
    assert used.ranges()[0] == f"{SENT}-{2 * SENT - 1}"
    assert used.received() == SIZE - SENT
    assert used.uploads("POST") == []
    assert used.is_complete()


def test_a_complete_upload_is_only_closed(pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [Fault(refusal(503), "PUT", "digest=", times=None)]
    used.push("file", "--retries", "0", code=7)
    used.registry.faults = []
    used.registry.requests.clear()
    used.push()
    assert used.methods() == ["GET", "PUT"]
    assert used.is_complete()
    assert used.records() == []


def test_upload_put_restarts_and_deletes_the_earlier_session(pushes: MakePushes) -> None:
    used = pushes()
    used.interrupt()
    result = used.push("file", "--upload", "put")
    assert used.methods() == ["POST", "DELETE", "PUT"]
    assert "cannot resume the earlier upload" in result.err
    assert used.is_complete()
    assert used.records() == []


def test_a_session_is_deleted_at_its_current_location(pushes: MakePushes) -> None:
    used = pushes()
    used.interrupt()
    moved = Header("Location", lambda path: f"{path}?_state=now")
    used.registry.faults = [
        Fault(refusal(416, "RANGE_INVALID"), "DELETE"),
        Fault(moved, "GET", "uploads"),
    ]
    used.push("file", "--upload", "put")
    assert used.methods() == ["POST", "DELETE", "GET", "DELETE", "PUT"]
    assert used.uploads("DELETE")[1].target.endswith("?_state=now")
    assert [request.status for request in used.uploads("DELETE")] == [416, 204]


def test_the_next_run_handles_a_session_that_could_not_be_deleted(pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [Fault(HangUp(), "DELETE"), Fault(refusal(400, "DIGEST_INVALID"), "PUT", "digest=")]
    used.push(code=7)
    assert len(used.records()) == 1
    location = used.record()["location"]
    used.push()
    last = [request for request in used.uploads() if location.endswith(request.path)][-1]
    assert (last.method, last.status) in {("DELETE", 204), ("PUT", 201)}
    assert used.is_complete()
    assert used.records() == []


def test_if_the_resumed_upload_has_a_wrong_digest_the_complete_blob_is_sent_again(pushes: MakePushes) -> None:
    used = pushes()
    used.interrupt()
    used.registry.faults = [Fault(refusal(400, "DIGEST_INVALID"), "PUT", "digest=")]
    document = used.mover.folder / "result.json"
    used.push("file", "--result", str(document))
    assert json.loads(document.read_bytes())["resumed"] == 0
    assert [request.status for request in used.uploads("PUT")] == [400, 201]
    assert used.received() == SIZE - SENT + SIZE
    assert used.is_complete()


@pytest.mark.parametrize(
    ("method", "status"),
    [*(("PATCH", status) for status in (400, 404, 405, 409, 416, 501)), ("PUT", 400), ("PUT", 404), ("PUT", 422)],
)
def test_if_the_rest_is_refused_the_complete_blob_is_sent_again(method: str, status: int, pushes: MakePushes) -> None:
    used = pushes()
    used.interrupt()
    gone = Fault(refusal(404), "GET", "uploads", skip=1, times=None)
    used.registry.faults = [Fault(refusal(status), method), gone]
    used.push()
    assert len(used.uploads("POST")) == 1
    assert used.is_complete()
    assert used.records() == []


def test_the_offset_is_requested_again_if_the_registry_is_still_storing_bytes(pushes: MakePushes) -> None:
    used = pushes()
    used.interrupt()
    used.registry.faults = [Fault(Header("Range", f"0-{MIB - 1}"), "GET", "uploads")]
    used.push()
    assert used.methods() == ["GET", "PATCH", "GET", "PATCH", "PUT"]
    assert used.ranges()[1] == f"{SENT}-{SIZE - 1}"
    assert used.is_complete()


def test_an_earlier_upload_is_preferred_to_the_session_in_place_of_a_mount(pushes: MakePushes) -> None:
    used = pushes()
    used.interrupt()
    used.push("file", "--mount-from", "base")
    assert used.methods() == ["POST", "DELETE", "GET", "PATCH", "PUT"]
    assert used.received() == SIZE - SENT
    assert used.is_complete()


def test_a_registry_known_not_to_resume_uploads_is_not_asked(pushes: MakePushes) -> None:
    used = pushes()
    used.interrupt()
    config = used.mover.folder / "config.toml"
    config.write_text(f'[registry."{used.registry.host}"]\nprofile = "google-artifact-registry"\n')
    used.push("file", "--config", str(config))
    assert "GET" not in used.methods()
    assert used.received() == used.size
    assert used.is_complete()


@pytest.mark.parametrize("query", ["X-Amz-Signature=0", "sig=0", "token=0", "AccessKeyId=0"])
def test_a_signed_location_is_not_written_to_the_disk(query: str, pushes: MakePushes) -> None:
    signed = Header("Location", lambda path: f"{path}?{query}")
    used = pushes(Quirk("signed locations", (Fault(signed, "POST", times=None),)))
    used.registry.faults = [*used.registry.faults, Fault(refusal(503), "PATCH", skip=2, times=None)]
    used.push("file", "--upload", "chunk=1MiB", "--retries", "0", code=7)
    # No record may contain the signed location.
    assert [path.read_bytes() for path in used.records() if query.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("method", "fault"),
    [("chunk=256KiB", Fault(refusal(503), "PATCH", times=None)), ("stream", Fault(refusal(501), "PATCH", times=None))],
    ids=["less than a mebibyte", "a refused method"],
)
def test_an_upload_that_is_not_worth_resuming_is_deleted(method: str, fault: Fault, pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [fault]
    used.push("file", "--upload", method, "--retries", "0", code=7)
    assert used.methods()[-1] == "DELETE"
    assert used.records() == []


@pytest.mark.parametrize(("status", "code"), [(401, 3), (403, 3), (407, 7)])
def test_a_denied_upload_resumes_in_the_next_run(status: int, code: int, pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [Fault(refusal(status), "PATCH", skip=SENT // MIB, times=None)]
    used.push("file", "--upload", "chunk=1MiB", code=code)
    used.registry.faults = []
    used.registry.requests.clear()
    used.push()
    assert used.received() == SIZE - SENT
    assert used.is_complete()


def test_an_upload_of_an_earlier_run_is_kept_if_this_run_fails_before_its_first_byte(pushes: MakePushes) -> None:
    used = pushes()
    used.interrupt()
    used.registry.faults = [Fault(refusal(503), "GET|POST", "uploads", times=None)]
    used.push("file", "--retries", "0", code=7)
    assert used.uploads("DELETE") == []
    used.registry.faults = []
    used.push()
    assert used.received() == SIZE - SENT
    assert used.is_complete()


def test_a_replacement_session_is_deleted_if_the_push_fails_before_it_is_used(pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [
        Fault(refusal(416), "PATCH", times=None),
        Fault(refusal(503), "GET", "uploads", times=None),
    ]
    used.push("file", "--upload", "stream", "--retries", "0", code=7)
    assert [request.status for request in used.uploads("POST")] == [202, 202]
    assert [request.status for request in used.uploads("DELETE")] == [204, 204]
    assert used.records() == []


@pytest.mark.parametrize(("status", "deletions"), [(500, 3), (401, 1), (403, 1), (429, 1)])
def test_a_server_error_ends_one_deletion_of_an_abandoned_session_and_another_failure_ends_all(
    status: int, deletions: int, start: Start, mover: Move, layout: Layout
) -> None:
    registry, used = start(), mover()
    for number in range(3):
        alone = Layout(layout.path.parent / f"image-{number}")
        image = alone.image([alone.random_layer(3 * MIB, seed=number)[0]], name="app")
        Pushes(registry, alone, image, used).interrupt()
    all_layers = Pushes(registry, layout, layout.image([3 * MIB] * 3, name="app"), used)
    seed(layout, all_layers.image, registry.host, "app", "v1")
    assert len(all_layers.records()) == 3
    registry.faults = [Fault(refusal(status), "DELETE", times=1 if deletions > 1 else None)]
    all_layers.push()
    assert len(all_layers.uploads("DELETE")) == deletions
    assert len(all_layers.records()) == (1 if deletions > 1 else 3)


def test_a_push_that_recompresses_a_layer_keeps_the_unfinished_upload_of_the_original(pushes: MakePushes) -> None:
    used = pushes()
    used.interrupt()
    used.push("file", "--compress", "zstd:1")
    assert (len(used.records()), used.uploads("DELETE")) == (1, [])
    used.registry.requests.clear()
    used.push()
    assert used.received() == SIZE - SENT
    assert used.is_complete()
    assert used.records() == []


# Failing sources ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "code", "kept"),
    [
        ([HangUp()], 7, True),
        ([refusal(503)], 7, True),
        ([refusal(403)], 3, True),
        ([refusal(404)], 4, False),
        ([refusal(400)], 7, False),
    ],
    ids=["hangs up", "503", "403", "404", "400"],
)
def test_a_partial_upload_is_kept_if_the_source_failed_temporarily_and_deleted_otherwise(
    then: list[Action], code: int, kept: bool, pushes: MakePushes, start: Start
) -> None:
    used, source = pushes(), start()
    seed(used.layout, used.image, source.host, "app", "v1")
    source.faults = [
        Fault(Drop(SENT), "GET", used.digest),
        *(Fault(action, "GET", used.digest, times=None) for action in then),
    ]
    names = f"{source.host}/app:v1", f"{used.registry.host}/app:v1"
    used.mover.copy(*names, "-q", "--jobs", "1", "--retries", "1", code=code)
    assert len(used.records()) == (1 if kept else 0)
    assert (used.uploads("DELETE") == []) == kept
    source.faults = []
    used.mover.copy(*names, "--jobs", "1")
    assert used.is_complete()
    assert used.records() == []
    assert (used.received() < used.size + MIB) == kept


@pytest.mark.parametrize("stored", [SENT, MIB])
def test_a_copy_whose_source_failed_reports_the_stored_bytes_and_the_next_run_resumes(
    stored: int, pushes: MakePushes, start: Start
) -> None:
    used, source = pushes(), start()
    seed(used.layout, used.image, source.host, "app", "v1")
    source.faults = [
        Fault(Drop(SENT), "GET", used.digest),
        Fault(HangUp(), "GET", used.digest, times=None),
    ]
    used.registry.faults = [Fault(Header("Range", f"0-{stored - 1}"), "PATCH")]
    config = used.mover.folder / "config.toml"
    config.write_text(f'[registry."{used.registry.host}"]\nprofile = "distribution"\n')
    names = f"{source.host}/app:v1", f"{used.registry.host}/app:v1"
    options = ("--config", config, "--jobs", "1", "--retries", "1")
    result = used.mover.copy(*names, *options, code=7)
    assert f"{used.registry.host} has stored {format_size(stored)} of 1 unfinished blob" in result.err
    source.faults, used.registry.faults = [], []
    used.mover.copy(*names, *options)
    assert used.ranges()[-1] == f"{SENT}-{SIZE - 1}"
    assert used.received() == SIZE
    assert used.is_complete()


def test_chunks_are_not_reported_as_stored_after_a_request_without_a_response(pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [Fault(StopReading(MIB), "PATCH", skip=1)]
    options = ("--upload", "chunk=1MiB", "--retries", "0")
    used.push("file", *options, code=7, says=f"{used.registry.host} may have stored a part of 1 blob")
