"""Uploads in chunks, and broken uploads: statements 3, 6 to 11, 29, 30 and 40.

The tests push from a file and from a pipe to 127.0.0.1, a host without a known profile.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.faulty_registry import Fault, Header, StopReading, refusal
from tests.quirks import registry_quirks, upload_quirks
from tests.quirks.command_runner import How, both_ways
from tests.quirks.fixture_types import MakePushes
from tests.quirks.interrupted_pushes import Pushes
from tests.quirks.quirky_registry import Quirk, QuirkyHandler, always, changed, refused
from tests.quirks.small_images import MIB
from tests.quirks.statements import quirk
from tests.registry.storage import Upload


def sent(pushes: Pushes) -> list[tuple[int, int]]:
    """Return the first and last byte of each accepted chunk, from a Content-Range of exactly two numbers."""
    found = []
    for request in pushes.uploads("PATCH"):
        match = re.fullmatch(r"([0-9]+)-([0-9]+)", request.headers["Content-Range"] or "")
        if request.status == 202:
            assert match is not None, request.headers["Content-Range"]
            found.append((int(match[1]), int(match[2])))
            assert request.headers["Content-Length"] == str(int(match[2]) - int(match[1]) + 1)
    return found


@quirk(3, 6)
@both_ways
def test_a_chunk_has_a_range_of_two_numbers_and_goes_to_the_last_location(how: How, pushes: MakePushes) -> None:
    used = pushes(upload_quirks.STATE)
    used.push(how, "--upload", "chunk=1MiB")
    assert [end - begin + 1 for begin, end in sent(used)] == [MIB, MIB, MIB, MIB, 5]
    assert [begin for begin, _ in sent(used)] == [0, MIB, 2 * MIB, 3 * MIB, 4 * MIB]
    assert used.is_complete()


@quirk(8, 10, 40, 60)
@both_ways
@pytest.mark.parametrize(
    "habit",
    [
        *(upload_quirks.STALLED_RANGE, upload_quirks.BACKWARD_RANGE, upload_quirks.LAST_RANGE, upload_quirks.NO_RANGE),
        *(
            always(f"a later Range is {stated}", Header("Range", stated), "PATCH", skip=1)
            for stated in ("0-0", "0-99", "0-1048575", "0-99999999", "nonsense", None, "bytes=0-1")
        ),
    ],
    ids=str,
)
def test_an_implausible_range_between_chunks_is_ignored(habit: Quirk, how: How, pushes: MakePushes) -> None:
    used = pushes(habit)
    used.push(how, "--upload", "chunk=1MiB")
    # Only a Range that goes backwards but not too far may be true: then the registry is asked.
    asked = habit is upload_quirks.BACKWARD_RANGE
    assert ("GET" in used.methods()) == asked
    assert (len(used.uploads("PATCH")), len(used.uploads("POST"))) == (6 if asked else 5, 1)
    assert used.is_complete()


@quirk(8)
@both_ways
def test_chunks_are_limited_to_the_known_maximum_of_github(how: How, pushes: MakePushes) -> None:
    def github(_: Any, answer: Any) -> Any:
        return changed(answer, X_GitHub_Request_Id="C0FF:EE")

    large = 11 * MIB
    limited = upload_quirks.no_larger_than(4 * MIB, 416, chunks_only=True)
    used = pushes(limited, Quirk("is GitHub's", outward=github), size=large)
    used.registry.faults = [Fault(refusal(413), "PATCH", larger_than=large - 1, times=None)]
    used.push(how)
    assert max(end - begin + 1 for begin, end in sent(used)) <= 4 * MIB
    # GitHub's limit is known, so no larger chunk is tried.
    assert [request.status for request in used.uploads() if request.status == 416] == []
    assert used.is_complete()


@quirk(10)
@both_ways
@pytest.mark.parametrize("action", [StopReading(MIB + 7, reset=True), StopReading(MIB + 7)], ids=["reset", "hang up"])
def test_a_broken_upload_resumes_at_the_offset_of_the_registry(
    action: StopReading, how: How, pushes: MakePushes
) -> None:
    used = pushes(upload_quirks.STATE)
    used.registry.faults = [Fault(action, "PATCH", larger_than=MIB)]
    used.push(how)
    assert [request.status for request in used.uploads("GET")] == [204]
    assert len(used.uploads("POST")) == 1
    assert used.uploads("PATCH")[0].received <= MIB + 7
    # The bytes that the registry has are not sent again.
    assert used.received() == used.size
    assert used.is_complete()


@quirk(10)
@both_ways
@pytest.mark.parametrize("status", [500, 503])
def test_after_a_refused_chunk_the_upload_resumes_without_gaps(status: int, how: How, pushes: MakePushes) -> None:
    used = pushes()
    used.registry.faults = [Fault(refusal(status), "PATCH", skip=2, larger_than=MIB - 1)]
    used.push(how, "--upload", "chunk=1MiB")
    assert used.is_complete()
    assert all(one[1] + 1 == other[0] for one, other in itertools.pairwise(sent(used)))


@quirk(10)
@both_ways
def test_after_416_bytes_that_the_registry_has_are_not_sent_again(how: How, pushes: MakePushes) -> None:
    def forgets(handler: QuirkyHandler, answer: Any) -> Any:
        """Accept the second chunk, but answer 416."""
        with handler.registry.lock:
            turn = (handler.headers.get("Content-Range") or "").startswith(f"{MIB}-")
            turn = turn and handler.registry.memory.setdefault("forgot", handler) is handler
        return refused(416, "BLOB_UPLOAD_INVALID") if turn else answer

    used = pushes(Quirk("416 for what was taken", outward=forgets))
    used.push(how, "--upload", "chunk=1MiB")
    assert used.uploads("GET") != []
    assert [begin for begin, _ in sent(used)] == [0, 2 * MIB, 3 * MIB, 4 * MIB]
    assert used.is_complete()


@quirk(11)
@both_ways
def test_chunks_have_the_minimum_size_that_the_registry_requires(how: How, pushes: MakePushes) -> None:
    used = pushes(upload_quirks.chunks_of_at_least(2 * MIB), size=5 * MIB + 5)
    used.push(how, "--upload", "chunk=1MiB")
    *full, last = sent(used)
    assert full
    assert all(end - begin + 1 >= 2 * MIB for begin, end in full)
    assert last[1] == used.size - 1
    assert used.is_complete()


@quirk(11)
@both_ways
def test_a_blob_is_streamed_if_the_minimum_chunk_exceeds_the_memory(how: How, pushes: MakePushes) -> None:
    used = pushes(upload_quirks.chunks_of_at_least(1 << 40))
    used.push(how, "--upload", "chunk=1MiB")
    assert used.ranges() == [None]
    assert used.is_complete()


@quirk(29, 30)
@pytest.mark.parametrize(
    "habit",
    [
        registry_quirks.too_many("nothing", methods="PATCH"),
        registry_quirks.in_trouble(503, methods="PATCH"),
        registry_quirks.hanging_up(methods="PATCH"),
    ],
    ids=str,
)
def test_a_body_from_a_pipe_is_sent_again_after_one_refusal(habit: Quirk, pushes: MakePushes) -> None:
    used = pushes(habit, size=600_001)
    used.push("pipe")
    assert used.is_complete()


@quirk(30)
def test_an_upload_from_a_pipe_resumes_after_a_loss_of_more_than_one_read(pushes: MakePushes) -> None:
    used = pushes(size=6 * MIB)
    used.registry.faults = [Fault(StopReading(2 * MIB, reset=True), "PATCH", larger_than=MIB, times=2)]
    used.push("pipe")
    assert used.is_complete()


@quirk(10)
def test_a_push_fails_if_the_registry_accepts_almost_nothing_of_each_chunk(
    pushes: MakePushes, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = Upload.receive

    def sparing(upload: Upload, read: Callable[[memoryview], int], buffer: memoryview) -> None:
        left = [100]

        def some(view: memoryview) -> int:
            got = taken = min(read(view), left[0])
            left[0] -= taken
            while not taken and (got := read(view)):
                pass
            return taken or got

        receive(upload, some, buffer)

    used = pushes()
    monkeypatch.setattr(Upload, "receive", sparing)
    used.push("file", "--upload", "chunk=1MiB", "--retries", "2", code=7, says="accepted 100 of ")
    assert len(used.uploads("PATCH")) <= 10
