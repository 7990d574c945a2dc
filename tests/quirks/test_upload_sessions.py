"""Broken uploads: which responses of the registry are trusted, and which bytes are sent again. Statements 48 and 49."""

from __future__ import annotations

from typing import Final

import pytest

from tests.faulty_registry import Action, Fault, HangUp, Header, StopReading, refusal
from tests.quirks import upload_quirks
from tests.quirks.command_runner import How, both_ways
from tests.quirks.fixture_types import MakePushes
from tests.quirks.interrupted_pushes import DOWN
from tests.quirks.small_images import MIB
from tests.quirks.statements import quirk

#: The offset at which a streamed upload breaks.
BREAK: Final = 3 * MIB
#: The requests of a broken upload that is replaced by another.
REPLACED: Final = ["POST", "PATCH", "DELETE", "POST", "PATCH", "PUT"]


def breaking(*faults: Fault) -> list[Fault]:
    """Return a fault that breaks the first streamed upload, and further faults."""
    return [Fault(StopReading(BREAK), "PATCH", larger_than=MIB), *faults]


# Lost responses -------------------------------------------------------------------------------------------------


@quirk(48)
@both_ways
def test_after_a_lost_response_to_the_close_the_blob_is_found(how: How, pushes: MakePushes) -> None:
    used = pushes(upload_quirks.losing_answer("PUT", "digest="))
    used.push(how)
    # The second PUT finds no upload; a HEAD of the blob shows that the first one succeeded.
    assert used.methods() == ["POST", "PATCH", "PUT", "PUT"]
    assert [request.status for request in used.uploads("PUT")][1:] == [404]
    assert [request.status for request in used.registry.asked("HEAD", used.digest.replace(":", "."))] == [404, 200]
    assert used.is_complete()


@quirk(48)
def test_after_a_404_to_the_close_the_lost_session_is_queried_once(pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [
        Fault(refusal(404), "PUT", "digest="),
        Fault(refusal(404), "GET", "/blobs/uploads/", times=None),
    ]
    used.push()
    assert used.methods() == ["POST", "PATCH", "PUT", "GET", "DELETE", "POST", "PATCH", "PUT"]
    assert used.is_complete()


@quirk(48)
@both_ways
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_push_survives_a_lost_response_to_post_or_patch(method: str, how: How, pushes: MakePushes) -> None:
    used = pushes(upload_quirks.losing_answer(method, "/blobs/uploads/"))
    used.push(how)
    assert used.is_complete()


@quirk(48)
def test_a_chunk_whose_response_was_lost_is_not_sent_again(pushes: MakePushes) -> None:
    used = pushes(upload_quirks.losing_answer("PATCH"))
    used.push("pipe", "--upload", "chunk=1MiB")
    assert used.ranges()[:2] == [f"0-{MIB - 1}", f"{MIB}-{2 * MIB - 1}"]
    assert used.received() == used.size
    assert used.is_complete()


@quirk(48)
def test_if_the_blob_cannot_be_checked_the_original_error_is_reported(pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [
        Fault(refusal(400, "DIGEST_INVALID"), "PUT", "digest=", times=None),
        Fault(HangUp(), "HEAD", "/blobs/", skip=2, times=None),
    ]
    used.push(code=7, says="400 DIGEST_INVALID")


# Offsets of broken uploads --------------------------------------------------------------------------------------


@quirk(49)
@pytest.mark.parametrize(
    ("answer", "how"),
    [
        *(
            (Header("Range", stated), "file")
            for stated in ("0-999999999", f"0-{BREAK + 2 * MIB}", "0--1", "-5", "5-10", "x", None)
        ),
        *((refusal(status), "file") for status in (400, 404, 405, 410, 416)),
        (refusal(404, "BLOB_UPLOAD_UNKNOWN"), "file"),
        (Header("Range", "0-999999999"), "pipe"),
        (Header("Range", None), "pipe"),
        (refusal(404), "pipe"),
    ],
    ids=str,
)
def test_an_upload_without_a_plausible_offset_is_replaced(answer: Action, how: How, pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = breaking(Fault(answer, "GET", "uploads", times=None))
    used.push(how)
    assert [method for method in used.methods() if method != "GET"] == REPLACED
    assert {request.status for request in used.uploads("PUT")} == {201}
    assert used.is_complete()


@quirk(49)
def test_the_range_0_0_means_that_the_registry_has_nothing(pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [
        Fault(StopReading(0), "PATCH"),
        Fault(Header("Range", "0-0"), "GET", "uploads"),
    ]
    used.push("pipe")
    assert used.methods() == ["POST", "PATCH", "GET", "PATCH", "PUT"]
    assert used.is_complete()


@quirk(49)
def test_an_offset_below_the_acknowledged_one_is_not_trusted(pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [
        Fault(StopReading(0), "PATCH", skip=3),
        Fault(Header("Range", f"0-{MIB - 1}"), "GET", "uploads"),
    ]
    used.push("pipe", "--upload", "chunk=1MiB")
    assert len(used.uploads("POST")) == 2
    assert used.is_complete()


@quirk(49)
@both_ways
def test_an_upload_resumes_at_the_location_of_the_status_response(how: How, pushes: MakePushes) -> None:
    moved = Header("Location", lambda path: f"{path}?_state=b%3D")
    used = pushes()
    used.registry.faults = breaking(Fault(moved, "GET", "uploads"))
    used.push(how)
    assert used.uploads("PATCH")[1].target.endswith("?_state=b%3D")
    assert used.received() == used.size
    assert used.is_complete()


@quirk(49)
@pytest.mark.parametrize("status", [200, 202])
def test_the_status_of_a_session_may_be_200_or_202(status: int, pushes: MakePushes) -> None:
    used = pushes(upload_quirks.answering("GET", status))
    used.registry.faults = breaking()
    used.push("file")
    assert [request.status for request in used.uploads("GET")] == [status]
    assert used.methods() == ["POST", "PATCH", "GET", "PATCH", "PUT"]
    assert used.is_complete()


@quirk(49)
@pytest.mark.parametrize("status", [400, 405, 409, 411, 422, 501])
def test_if_the_rest_of_a_stream_is_refused_the_complete_blob_is_sent_again(status: int, pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = breaking(Fault(refusal(status), "PATCH"))
    used.push("pipe")
    assert used.methods() == ["POST", "PATCH", "GET", "PATCH", "DELETE", "POST", "PATCH", "PUT"]
    assert used.is_complete()


@quirk(49)
@pytest.mark.parametrize("broke", [True, False])
def test_after_a_wrong_digest_a_blob_is_sent_again_only_if_its_upload_was_resumed(
    broke: bool, pushes: MakePushes
) -> None:
    wrong = refusal(400, "DIGEST_INVALID")
    used = pushes()
    used.registry.faults = breaking(Fault(wrong, "PUT")) if broke else [Fault(wrong, "PUT", times=None)]
    used.push("pipe", code=0 if broke else 7)
    assert len(used.uploads("POST")) == (2 if broke else 1)
    assert used.is_complete() == broke


@quirk(49)
def test_a_registry_known_for_wrong_offsets_is_not_asked(pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = breaking()
    config = used.mover.folder / "config.toml"
    config.write_text(f'[registry."{used.registry.host}"]\nprofile = "amazon-ecr"\n')
    used.push("pipe", "--config", str(config))
    assert used.methods() == REPLACED
    assert used.is_complete()


@quirk(49)
@pytest.mark.parametrize("answer", ["hangs up", "401", "429", "503"])
def test_after_a_failed_status_request_the_first_session_is_still_resumed(answer: str, pushes: MakePushes) -> None:
    used = pushes()
    # One failure less than makes the push fail, including the break itself.
    times = 1 if answer in {"401", "403", "407"} else 5
    used.registry.faults = breaking(Fault(DOWN[answer], "GET", "uploads", times=times))
    used.push()
    without_gets = [method for method in used.methods() if method != "GET"]
    assert without_gets == ["POST", "PATCH", "POST", "DELETE", "PATCH", "PUT"]
    # The second session is deleted, because the first one has the sent bytes.
    assert used.received() == used.size
    assert used.is_complete()


@quirk(49)
@pytest.mark.parametrize("answer", ["hangs up", "403", "503"])
def test_a_session_without_status_responses_is_abandoned(answer: str, pushes: MakePushes) -> None:
    # Otherwise the same command would always fail.
    used = pushes()
    used.registry.faults = breaking(Fault(DOWN[answer], "GET", "uploads", times=None))
    used.push("pipe")
    without_gets = [method for method in used.methods() if method != "GET"]
    assert without_gets == ["POST", "PATCH", "POST", "DELETE", "PATCH", "PUT"]
    assert used.is_complete()
    assert used.records() == []


@quirk(49)
@pytest.mark.parametrize("answer", DOWN)
def test_an_outage_during_an_upload_loses_nothing(answer: str, pushes: MakePushes) -> None:
    used = pushes()
    code = 3 if answer in {"401", "403"} else 7
    used.registry.faults = breaking(Fault(DOWN[answer], path="uploads", skip=1, times=None))
    used.push(code=code)
    assert len(used.records()) == 1
    used.registry.faults = []
    used.push()
    assert [request.status for request in used.uploads("POST")].count(202) == 1
    assert used.received() == used.size
    assert used.is_complete()
    assert used.records() == []


# Repeated bytes -------------------------------------------------------------------------------------------------


@quirk(30, 49)
def test_breaks_with_progress_are_unlimited_and_without_progress_limited(pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [Fault(StopReading(MIB // 2), "PATCH", times=None, larger_than=MIB // 2)]
    used.push("pipe", "--retries", "1")
    assert len(used.uploads("PATCH")) > 4
    assert used.received() == used.size
    assert used.is_complete()
    other = pushes()
    other.registry.faults = [Fault(StopReading(10), "PATCH", times=None)]
    other.push("pipe", "--retries", "1", code=7)
    assert len(other.uploads("PATCH")) == 2


@quirk(49)
@both_ways
def test_a_lost_session_of_a_pipe_is_an_error_that_suggests_a_file(how: How, pushes: MakePushes) -> None:
    used = pushes(size=12 * MIB)
    lost = Fault(refusal(404, "BLOB_UPLOAD_INVALID"), "GET", "uploads", times=None)
    used.registry.faults = [Fault(StopReading(10 * MIB), "PATCH"), lost]
    if how == "pipe":
        used.push(how, code=7, says="a pipe cannot be read again: push from a file")
        assert used.methods() == ["POST", "PATCH", "GET", "DELETE"]
    else:
        used.push(how)
        assert used.is_complete()


@quirk(49, 50)
def test_a_session_whose_offset_a_pipe_has_passed_is_resumed_by_the_next_run(pushes: MakePushes) -> None:
    used = pushes(size=12 * MIB)
    behind = Fault(Header("Range", f"0-{2 * MIB - 1}"), "GET", "uploads")
    used.registry.faults = [Fault(StopReading(11 * MIB), "PATCH"), behind]
    stored = f"{used.registry.host} has stored 2.1 MB of 1 unfinished blob: re-run the same command to resume"
    used.push("pipe", code=7, says=("a pipe cannot be read again: push from a file", stored))
    assert used.methods() == ["POST", "PATCH", "GET"]
    used.push("pipe")
    assert used.uploads("POST")[1:] == used.uploads("DELETE") == []
    assert used.received() == used.size
    assert used.is_complete()


@quirk(30, 49)
def test_the_number_of_sessions_lost_at_the_close_is_limited(pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [Fault(refusal(404, "BLOB_UPLOAD_UNKNOWN"), "PUT", "digest=", times=None)]
    used.push("file", "-q", code=7, says="BLOB_UPLOAD_UNKNOWN")
    # The limit is that of the attempts of a request.
    assert len(used.uploads("POST")) == 6
