"""The end of an upload that a run does not bring to its end: what is kept, what is deleted, what is written when."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from pathlib import Path

import pytest

from ocistream import limits, open_uploads
from ocistream.errors import CancelledError, IntegrityError, NetworkError, RegistryError
from ocistream.http.settings import RetryPolicy
from ocistream.oci.reference import parse_reference
from ocistream.registry.destination import RegistryDestination
from ocistream.registry.profiles import CHUNK, STREAM
from ocistream.registry.upload_record import UploadKey
from ocistream.registry.upload_strategy import UploadMethod, UploadStrategy
from tests.faulty_registry import Fault, HangUp, Header, StopReading, refusal
from tests.http_doubles import QUICK, CountingRegistry, blob_of
from tests.unit.registry.test_upload_resume_across_runs import SENT, Run
from tests.unit.registry.test_uploader import (
    BLOB,
    CONTENT,
    MIB,
    UPLOADS,
    Faulty,
    Quick,
    Source,
    is_clean,
    is_stored,
    methods,
)

#: What says nothing of the session that was to be deleted.
SAYS_NOTHING = [401, 403, 407, 408, 429, 500, 502, 503, 504]
OTHERS = [blob_of(bytes([number])) for number in range(3)]


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    open_uploads.reset()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "state" / "uploads")


def can_be_had(run: Run, registry: CountingRegistry, digest: str = BLOB.digest, size: int = len(CONTENT)) -> bool:
    """Say whether the next run has a record to go on with."""
    claim = run.records.lock(UploadKey(registry.host, "app", digest, size))
    found = claim is not None and claim.location is not None
    if claim is not None:
        (claim.release if found else claim.remove)()
    return found


class TestAWayThatIsRefused:
    """The same command would be refused again: nothing is worth keeping."""

    def test_nor_where_there_is_no_other(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        # A 404 of which nobody knows what is not found, to each way there is.
        registry = faulty(Fault(refusal(404), "PATCH|PUT", times=None))
        with pytest.raises(NetworkError):
            run.uploader(quick(), registry).upload(Source().blob)
        assert run.files() == []
        assert (open_uploads.count_resumable(), open_uploads.count_unconfirmed()) == ({}, {})
        assert is_clean(registry)

    @pytest.mark.parametrize("rung", [UploadMethod(STREAM), None], ids=str)
    def test_stays_the_error_that_it_was(
        self, faulty: Faulty, quick: Quick, run: Run, rung: UploadMethod | None
    ) -> None:
        registry = faulty(Fault(refusal(413, "SIZE_INVALID"), "PATCH", times=None))
        with pytest.raises(RegistryError) as caught:
            run.uploader(quick(ladder=UploadStrategy(explicit_method=rung)), registry).upload(Source().blob)
        assert caught.value.hint is not None
        assert (caught.value.status, caught.value.codes) == (413, ("SIZE_INVALID",))

    def test_is_forgotten_where_what_ends_it_is_something_else(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        # Chunks are refused, and a stream breaks off: that may be gone on with.
        registry = faulty(Fault(refusal(501), "PATCH"), Fault(StopReading(SENT), "PATCH"))
        registry.faults.append(Fault(HangUp(), times=None, skip=4))
        ladder = UploadStrategy()
        ladder.set_method(registry.host, UploadMethod(CHUNK, 8 * MIB), is_size_known=True)
        with pytest.raises(NetworkError):
            run.uploader(quick(ladder=ladder), registry).upload(Source().blob)
        assert (open_uploads.count_resumable(), open_uploads.count_unconfirmed()) == (
            {registry.host: (1, len(CONTENT))},
            {},
        )


def test_bytes_are_not_called_stored_after_a_request_without_an_answer(faulty: Faulty, quick: Quick, run: Run) -> None:
    # All of the second chunk was sent.
    registry = faulty(Fault(StopReading(MIB), "PATCH", skip=1, times=None))
    ladder = UploadStrategy(explicit_method=UploadMethod(CHUNK, MIB))
    with pytest.raises(NetworkError):
        run.uploader(quick(ladder=ladder, patience=RetryPolicy(attempts=1)), registry).upload(Source().blob)
    assert (open_uploads.count_resumable(), open_uploads.count_unconfirmed()) == ({}, {registry.host: 1})


class TestDeletingThatIsNotAnswered:
    """A session that may live is remembered."""

    @pytest.mark.parametrize("status", SAYS_NOTHING)
    def test_of_one_that_failed(self, faulty: Faulty, quick: Quick, run: Run, status: int) -> None:
        registry = faulty(Fault(refusal(status), "DELETE"))
        source = Source()
        source.content = CONTENT[:-1]
        with pytest.raises(IntegrityError):
            run.uploader(quick(), registry).upload(source.blob)
        assert can_be_had(run, registry)
        run.uploader(quick(), registry).upload(Source().blob)
        assert is_stored(registry)
        assert is_clean(registry)

    @pytest.mark.parametrize("status", SAYS_NOTHING)
    @pytest.mark.parametrize("method", ["DELETE", "GET"])
    def test_of_what_is_left_over(self, faulty: Faulty, quick: Quick, run: Run, method: str, status: int) -> None:
        # Asked where the registry has moved on to, it may be in trouble as well.
        registry = faulty(Fault(refusal(status if method == "DELETE" else 416), "DELETE"))
        registry.faults.append(Fault(refusal(status), "GET", "uploads"))
        run.was_killed(registry)
        run.uploader(quick(), registry).delete_abandoned_sessions([BLOB.digest])
        assert can_be_had(run, registry)
        registry.faults.clear()
        run.uploader(quick(), registry).delete_abandoned_sessions([BLOB.digest])
        assert run.files() == []
        assert is_clean(registry)

    def test_the_others_are_tried_where_it_is_one_that_makes_trouble(
        self, faulty: Faulty, quick: Quick, run: Run
    ) -> None:
        registry = faulty(Fault(refusal(500), "DELETE"))
        for other in OTHERS:
            run.has_left(registry, f"{registry.url}{UPLOADS}{other.digest[7:27]}", other.digest)
        run.uploader(quick(), registry).delete_abandoned_sessions([other.digest for other in OTHERS])
        assert methods(registry) == ["DELETE"] * 3
        assert len(run.files()) == 1

    @pytest.mark.parametrize("status", [401, 403, 429])
    def test_and_not_where_none_will_be_answered(self, faulty: Faulty, quick: Quick, run: Run, status: int) -> None:
        registry = faulty(Fault(refusal(status), "DELETE", times=None))
        for other in OTHERS:
            run.has_left(registry, f"{registry.url}{UPLOADS}{other.digest[7:27]}", other.digest)
        run.uploader(quick(), registry).delete_abandoned_sessions([other.digest for other in OTHERS])
        assert methods(registry) == ["DELETE"]
        assert len(run.files()) == 3

    def test_because_all_was_cancelled(
        self, faulty: Faulty, quick: Quick, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The token has ended, and another one is not asked for any more.
        def delete(*_: object) -> None:
            msg = "cancelled"
            raise CancelledError(msg)

        monkeypatch.setattr("ocistream.registry.upload_session.delete_session", delete)
        registry = faulty()
        source = Source()
        source.content = CONTENT[:-1]
        with pytest.raises(IntegrityError):
            run.uploader(quick(), registry).upload(source.blob)
        assert can_be_had(run, registry)


class TestWhatIsWritten:
    def test_before_the_old_session_is_deleted_the_new_one_is_written_down(
        self, faulty: Faulty, quick: Quick, run: Run
    ) -> None:
        # A process may be killed while it deletes.
        registry = faulty()
        old = run.was_killed(registry)
        written: list[str] = []

        def look(_: str) -> str:
            written.extend(json.loads(path.read_bytes())["location"] for path in run.files())
            return "x"

        registry.faults = [
            Fault(refusal(404), "GET", "uploads", times=None),
            Fault(Header("X-Seen", look), "DELETE"),
        ]
        run.uploader(quick(), registry).upload(Source().blob)
        (new,) = written
        assert new != old
        assert registry.url + registry.asked("PATCH")[0].target == new

    @pytest.mark.parametrize("how", ["full", "nearly full"])
    def test_what_the_disk_has_no_room_for_is_not_kept(
        self, faulty: Faulty, quick: Quick, run: Run, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        really = os.pwrite

        def pwrite(descriptor: int, content: bytes, offset: int) -> int:
            if how == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return really(descriptor, content[:-1], offset)

        monkeypatch.setattr(os, "pwrite", pwrite)
        registry = faulty()
        seen: list[int] = []
        source = Source()
        source.before = lambda start: seen.append(len(run.files())) if start else None
        run.uploader(quick(), registry).upload(source.blob)
        assert set(seen) == {0}
        assert len(run.notes) == 1
        assert os.strerror(errno.ENOSPC) in run.notes[0]
        assert is_stored(registry)


class TestWhatIsBelieved:
    def test_of_a_session_that_this_run_has_opened_no_more_than_it_has_sent(
        self, faulty: Faulty, quick: Quick, run: Run
    ) -> None:
        # Now and then all of it fits into the sockets' buffers: then it was sent, and is believed.
        puts = []
        for _ in range(5):
            registry = faulty()
            run.was_killed(registry, MIB)
            registry.faults = [
                Fault(StopReading(MIB), "PATCH"),
                Fault(refusal(404, "BLOB_UPLOAD_UNKNOWN"), "GET", "uploads", skip=1),
                Fault(StopReading(MIB), "PATCH"),
                # To the third that asks: the second has the 404.
                Fault(Header("Range", f"0-{len(CONTENT) - 1}"), "GET", "uploads", skip=1),
            ]
            run.uploader(quick(), registry).upload(Source().blob)
            assert is_stored(registry)
            assert is_clean(registry)
            puts = [put.status for put in registry.asked("PUT")]
            if puts == [201]:
                break
        assert puts == [201]

    def test_nor_of_one_that_took_the_place_of_what_was_found(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        run.was_killed(registry, MIB)
        registry.faults = [
            Fault(refusal(404, "BLOB_UPLOAD_UNKNOWN"), "GET", "uploads"),
            Fault(StopReading(MIB), "PATCH"),
            Fault(Header("Range", f"0-{len(CONTENT) - 1}"), "GET", "uploads"),
        ]
        run.uploader(quick(), registry).upload(Source().blob)
        assert [put.status for put in registry.asked("PUT")] == [201]
        assert is_stored(registry)
        assert is_clean(registry)

    def test_that_a_new_session_may_fail_as_often_as_any(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        # To ask for the old one took all tries, and one more.
        registry = faulty()
        run.was_killed(registry)
        registry.faults = [
            Fault(refusal(503), "GET", "uploads", times=QUICK.attempts + 1),
            Fault(StopReading(MIB // 2), "PATCH"),
        ]
        run.uploader(quick(), registry).upload(Source().blob)
        assert len(registry.asked("PATCH")) == 2
        assert is_stored(registry)


class TestTooOld:
    def test_what_is_left_of_this_repository_is_deleted_there_too(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        location = run.was_killed(registry)
        (file,) = run.files()
        since = int(time.time() - limits.MAX_UPLOAD_RECORD_AGE) - 60
        file.write_text(json.dumps(json.loads(file.read_bytes()) | {"since": since}))
        os.utime(file, (since, since))
        run.uploader(quick(), registry).delete_abandoned_sessions([])
        assert methods(registry) == ["DELETE"]
        assert location.endswith(registry.requests[0].target)
        assert run.files() == []
        assert is_clean(registry)


class TestClosing:
    def kept(self, run: Run, registry: CountingRegistry) -> int:
        return sum(can_be_had(run, registry, other.digest, other.size) for other in OTHERS)

    def test_where_the_first_does_not_go_all_are_left_to_the_next_run(
        self, faulty: Faulty, quick: Quick, run: Run
    ) -> None:
        registry = faulty(Fault(HangUp(), "DELETE"))
        uploader = run.uploader(quick(), registry)
        for other in OTHERS:
            assert not uploader.mount(other, "base")
        uploader.close()
        assert len(registry.asked("DELETE")) == 1
        # This process lets go of them, whatever becomes of it.
        assert self.kept(run, registry) == 3

    def test_there_is_a_time_for_all_of_them_together(
        self, faulty: Faulty, quick: Quick, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Each takes as long as it may; and there may be 256.
        clock = [100.0]

        def slow(_: str) -> str:
            clock[0] += 3
            return "x"

        for room in ("ocistream.registry.blob_push", "ocistream.registry.destination"):
            monkeypatch.setattr(f"{room}.monotonic", lambda: clock[0])
        registry = faulty(Fault(Header("X-Slow", slow), "DELETE", times=None))
        sink = RegistryDestination(quick(), lambda _: parse_reference(f"{registry.host}/app:v1"), records=run.records)
        for name in ("app", "other"):
            _, uploader = sink._repository(parse_reference(f"{registry.host}/{name}:v1"))  # noqa: SLF001 - no image needed
            for other in OTHERS:
                assert not uploader.mount(other, "base")
        sink.close()
        assert len(registry.asked("DELETE")) == 2
        assert self.kept(run, registry) == 1
        assert len(run.files()) == 4

    def test_what_is_not_deleted_in_time_is_left(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        uploader = run.uploader(quick(), registry)
        for other in OTHERS:
            assert not uploader.mount(other, "base")
        uploader.close(-math.inf)
        assert not registry.asked("DELETE")
        assert self.kept(run, registry) == 3
