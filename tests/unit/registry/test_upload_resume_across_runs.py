"""An upload that an earlier run has begun: what is sent of it again, what is believed, kept and deleted."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocistream import limits, open_uploads
from ocistream.errors import (
    ArchiveError,
    AuthenticationError,
    CancelledError,
    IntegrityError,
    LocalDiskError,
    NetworkError,
    NotFoundError,
    PermanentNetworkError,
    RegistryError,
    TruncatedError,
)
from ocistream.registry.blob_push import BlobPusher
from ocistream.registry.profiles import CHUNK, PUT
from ocistream.registry.repository import Repository
from ocistream.registry.upload_record import SessionLocation, UploadKey, UploadRecords
from ocistream.registry.upload_strategy import UploadMethod, UploadStrategy
from ocistream.streams.chunks import Chunk
from ocistream.transfer.interfaces import Access, ByteRange, VerifiedBlob
from tests.faulty_registry import Action, Fault, HangUp, Header, StopReading, refusal
from tests.http_doubles import CountingRegistry, QuickTransport, eventually
from tests.raw_http import Client
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

SENT = 3 * MIB


class Run:
    """What one run after the other has: a folder of records. `told` is what was said of uploads, with its level."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[tuple[str, int]] = []
        self.notes: list[str] = []

    @property
    def records(self) -> UploadRecords:
        return UploadRecords(self.folder, self.notes.append)

    @property
    def ladder(self) -> UploadStrategy:
        return UploadStrategy(report=lambda message, level: self.told.append((message, level)))

    def uploader(self, transport: QuickTransport, registry: CountingRegistry, name: str = "app") -> BlobPusher:
        return BlobPusher(
            Repository(transport, registry.host, name, for_push=True), transport.upload_strategy, self.records
        )

    def files(self) -> list[Path]:
        return sorted(self.folder.iterdir()) if self.folder.exists() else []

    def has_left(self, registry: CountingRegistry, location: str, digest: str = BLOB.digest) -> None:
        """Write what a killed run would have."""
        claim = self.records.lock(UploadKey(registry.host, "app", digest, len(CONTENT)))
        assert claim is not None
        claim.write(SessionLocation(location))
        claim.release()

    def was_killed(self, registry: CountingRegistry, sent: int = SENT, content: bytes = CONTENT) -> str:
        """Leave what a run that was killed leaves: a session with so many bytes, and a record of it."""
        with Client(registry.host) as ask:
            location = registry.url + ask("POST", UPLOADS).headers["Location"]
            if sent:
                assert ask("PATCH", location, content[:sent]).status == 202
        registry.requests.clear()
        self.has_left(registry, location)
        return location


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    open_uploads.reset()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "state" / "uploads")


def received(registry: CountingRegistry) -> int:
    return sum(request.received for request in registry.requests)


class TestGoingOn:
    def test_that_little_is_saved_is_said_to_who_asks_for_it(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        run.was_killed(registry, MIB - 1)
        run.uploader(quick(ladder=run.ladder), registry).upload(Source().blob)
        assert [level for _, level in run.told] == [1]

    def test_how_much_was_resumed_is_counted_unless_it_was_of_no_use(
        self, faulty: Faulty, quick: Quick, run: Run
    ) -> None:
        registry = faulty()
        run.was_killed(registry)
        assert run.uploader(quick(), registry).upload(Source().blob).resumed == SENT
        other = faulty(Fault(refusal(400), "PATCH", skip=1))
        run.was_killed(other)
        assert run.uploader(quick(), other).upload(Source().blob).resumed == 0

    def test_of_one_that_has_all_only_the_end_is_missing(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        run.was_killed(registry, len(CONTENT))
        run.uploader(quick(), registry).upload(Source().blob)
        assert methods(registry) == ["GET", "PUT"]
        assert is_stored(registry)

    def test_one_that_has_nothing_is_used_all_the_same(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        run.was_killed(registry, 0)
        run.uploader(quick(), registry).upload(Source().blob)
        assert methods(registry) == ["GET", "PATCH", "PUT"]
        assert registry.asked("PATCH")[0].headers["Content-Range"] is None
        assert is_stored(registry)

    def test_while_it_lasts_the_record_says_where_it_is(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        moved = Header("Location", lambda path: f"{path.partition('?')[0]}?_state={len(registry.requests)}")
        registry = faulty(Fault(moved, "POST|PATCH", times=None))
        seen: list[str] = []
        source = Source()
        source.before = lambda _: seen.extend(
            [json.loads(path.read_bytes())["location"] for path in run.files() if path.stat().st_size]
        )
        run.uploader(quick(ladder=UploadStrategy(explicit_method=UploadMethod(CHUNK, 3 * MIB // 2))), registry).upload(
            source.blob
        )
        states = [location.partition("?_state=")[2] for location in seen]
        # Written when it was opened, and whenever an answer led elsewhere.
        assert states[0] == "1"
        assert len(set(states)) == 3
        assert run.files() == []

    def test_blobs_without_a_name_are_not_gone_on_with_but_found_and_deleted(
        self, faulty: Faulty, quick: Quick, run: Run
    ) -> None:
        registry = faulty()
        location = run.was_killed(registry)
        run.folder.joinpath(run.files()[0].name).unlink()
        run.has_left(registry, location, digest="")
        uploader = run.uploader(quick(), registry)
        uploader.upload(Source().unnamed)
        assert methods(registry) == ["POST", "PATCH", "PUT"]
        uploader.delete_abandoned_sessions([BLOB.digest])
        assert methods(registry)[3:] == ["DELETE"]
        assert run.files() == []
        assert is_clean(registry)


KEPT = [
    NetworkError("the source broke off"),
    RegistryError("the source says 503", status=503),
    AuthenticationError("the token is no more"),
    LocalDiskError("cannot read the layer"),
    CancelledError("cancelled"),
]
DROPPED = [
    IntegrityError("wrong"),
    ArchiveError("truncated"),
    NotFoundError("gone"),
    RegistryError("the source says 400", status=400),
    ValueError("a bug"),
]


class TestWhatIsKept:
    def fail(
        self,
        run: Run,
        registry: CountingRegistry,
        transport: QuickTransport,
        failure: BaseException,
        *,
        at: int = 2 * MIB,
        replayable: bool = True,
    ) -> BaseException:
        def fail(start: int) -> None:
            if start == at:
                raise failure

        source = Source(replayable=replayable)
        source.before = fail
        with pytest.raises(type(failure)) as caught:
            run.uploader(transport, registry).upload(source.blob)
        assert caught.value is failure
        return failure

    @pytest.mark.parametrize("failure", KEPT, ids=lambda failure: type(failure).__name__)
    def test_an_interruption_leaves_the_session_for_the_next_run(
        self, faulty: Faulty, quick: Quick, run: Run, failure: BaseException
    ) -> None:
        registry = faulty()
        self.fail(run, registry, quick(), failure)
        assert len(run.files()) == 1
        assert not registry.asked("DELETE")
        assert (open_uploads.count_resumable(), open_uploads.count_unconfirmed()) == ({}, {registry.host: 1})
        eventually(lambda: [patch.received for patch in registry.asked("PATCH")] == [2 * MIB])
        eventually(lambda: all(request.status for request in registry.requests))
        run.uploader(quick(), registry).upload(Source().blob)
        assert len(registry.asked("POST")) == 1
        assert received(registry) == len(CONTENT)
        assert is_stored(registry)
        assert run.files() == []

    def test_what_is_under_way_would_be_left_once_it_is_worth_it(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        # The process may end without waiting for a thread that hangs.
        registry = faulty()
        seen: list[bool] = []
        source = Source()
        source.before = lambda _: seen.append(open_uploads.count_unconfirmed() == {registry.host: 1})
        run.uploader(quick(), registry).upload(source.blob)
        assert seen == sorted(seen)
        assert not seen[0]
        assert seen[-1]
        # A process that uploads for years is not to hold what it knew of each.
        assert not open_uploads._uploads  # noqa: SLF001 - as said

    def test_nothing_would_be_that_is_not_remembered(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        seen: list[bool] = []
        source = Source()
        source.before = lambda _: seen.append(bool(open_uploads.count_resumable() or open_uploads.count_unconfirmed()))
        BlobPusher(Repository(quick(), registry.host, "app", for_push=True)).upload(source.blob)
        assert seen
        assert not any(seen)

    @pytest.mark.parametrize("failure", DROPPED, ids=lambda failure: type(failure).__name__)
    def test_what_is_wrong_is_deleted(self, faulty: Faulty, quick: Quick, run: Run, failure: BaseException) -> None:
        registry = faulty()
        self.fail(run, registry, quick(), failure)
        self.check_gone(run, registry)

    def check_gone(self, run: Run, registry: CountingRegistry) -> None:
        assert run.files() == []
        assert not open_uploads._uploads  # noqa: SLF001 - or it would be held for ever
        eventually(lambda: [request.status for request in registry.asked("DELETE")] == [204])
        eventually(lambda: is_clean(registry))

    @pytest.mark.parametrize("failure", [LocalDiskError("x"), TruncatedError("x")], ids=["interrupted", "cut off"])
    def test_what_came_from_a_pipe_is_kept_since_it_may_come_from_it_again(
        self, faulty: Faulty, quick: Quick, run: Run, failure: BaseException
    ) -> None:
        registry = faulty()
        self.fail(run, registry, quick(), failure, replayable=False)
        assert len(run.files()) == 1
        assert not registry.asked("DELETE")
        # What was sent may be in the sockets' buffers still.
        eventually(lambda: [patch.received for patch in registry.asked("PATCH")] == [2 * MIB])
        eventually(lambda: all(request.status for request in registry.requests))
        run.uploader(quick(), registry).upload(Source(replayable=False).blob)
        assert len(registry.asked("POST")) == 1
        assert received(registry) == len(CONTENT)
        assert is_stored(registry)
        assert run.files() == []

    def test_and_what_is_small(self, faulty: Faulty, quick: Quick, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "MIN_PARTIAL_SIZE", 2 * MIB + 1)
        registry = faulty()
        self.fail(run, registry, quick(), LocalDiskError("x"))
        self.check_gone(run, registry)

    def test_and_what_goes_up_by_one_put(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        self.fail(run, registry, quick(ladder=UploadStrategy(explicit_method=UploadMethod(PUT))), LocalDiskError("x"))
        self.check_gone(run, registry)

    def test_one_that_has_lost_it_has_not(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty(Fault(refusal(404, "BLOB_UPLOAD_UNKNOWN"), "PATCH", skip=2, times=None))
        source = Source()
        with pytest.raises(NetworkError, match="has lost the upload") as caught:
            run.uploader(quick(ladder=UploadStrategy(explicit_method=UploadMethod(CHUNK, 2 * MIB))), registry).upload(
                source.blob
            )
        assert caught.value.hint is None
        assert run.files() == []

    def test_one_that_finds_it_wrong_has_not(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty(Fault(refusal(400, "DIGEST_INVALID"), "PUT", times=None))
        with pytest.raises(RegistryError):
            run.uploader(quick(), registry).upload(Source().blob)
        self.check_gone(run, registry)


DOWN = [HangUp(), *[refusal(status) for status in (401, 403, 407, 408, 429, 500, 502, 503, 504)]]


class TestALineThatIsDownInTheMiddle:
    """Only an answer that says the session is gone makes it be forgotten."""

    def breaking(self, faulty: Faulty, *then: Fault) -> CountingRegistry:
        return faulty(Fault(StopReading(SENT), "PATCH"), *then)

    def test_loses_nothing_where_its_name_leads_nowhere_for_a_while(
        self, faulty: Faulty, quick: Quick, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = self.breaking(faulty)
        transport = quick()
        answered = transport.request

        def request(endpoint: Any, method: str, *arguments: Any, **options: Any) -> Any:
            if method != "PATCH" and registry.asked("PATCH"):
                msg = "the host name cannot be resolved"
                raise PermanentNetworkError(msg)
            return answered(endpoint, method, *arguments, **options)

        monkeypatch.setattr(transport, "request", request)
        with pytest.raises(PermanentNetworkError):
            run.uploader(transport, registry).upload(Source().blob)
        assert len(run.files()) == 1

    def test_where_something_else_answers_in_between_it_is_no_answer_either(
        self, faulty: Faulty, quick: Quick, run: Run
    ) -> None:
        # A portal that wants to be clicked at, say.
        registry = self.breaking(
            faulty, Fault(HangUp(), "GET", times=None), Fault(refusal(404), "POST|DELETE", times=None, skip=1)
        )
        with pytest.raises(NetworkError):
            run.uploader(quick(), registry).upload(Source().blob)
        assert not registry.asked("DELETE")
        assert len(run.files()) == 1

    def test_what_was_opened_when_it_was_down_before_shows_nothing(
        self, faulty: Faulty, quick: Quick, run: Run
    ) -> None:
        registry = self.breaking(
            faulty,
            Fault(refusal(403), "GET", "uploads"),
            Fault(StopReading(MIB), "PATCH"),
            Fault(HangUp(), times=None, skip=5),
        )
        with pytest.raises(NetworkError):
            run.uploader(quick(), registry).upload(Source().blob)
        assert methods(registry)[:7] == ["POST", "PATCH", "GET", "POST", "GET", "DELETE", "PATCH"]
        assert len(run.files()) == 1


class TestTwoRuns:
    def test_the_second_has_a_session_of_its_own(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        first, second = Source(), Source()
        reached, go_on = threading.Event(), threading.Event()

        def pause(start: int) -> None:
            if start == 2 * MIB:
                reached.set()
                assert go_on.wait(60)

        first.before = pause
        transport = quick()
        thread = threading.Thread(target=lambda: run.uploader(transport, registry).upload(first.blob))
        thread.start()
        assert reached.wait(60)
        other = run.uploader(quick(), registry)
        other.upload(second.blob)
        other.delete_abandoned_sessions([BLOB.digest])
        assert not registry.asked("GET|DELETE")
        assert len(run.files()) == 1
        go_on.set()
        thread.join()
        assert [put.status for put in registry.asked("PUT")] == [201, 201]
        assert run.files() == []
        assert is_stored(registry)
        assert is_clean(registry)


class TestMounts:
    def test_a_session_in_place_of_a_mount_is_remembered_at_once(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        uploader = run.uploader(quick(), registry)
        assert not uploader.mount(BLOB, "base")
        (file,) = run.files()
        assert json.loads(file.read_bytes())["location"].startswith(f"{registry.url}{UPLOADS}")
        uploader.upload(Source().blob)
        assert methods(registry) == ["POST", "PATCH", "PUT"]
        assert run.files() == []

    def test_one_that_is_not_used_is_deleted_and_forgotten(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        uploader = run.uploader(quick(), registry)
        assert not uploader.mount(BLOB, "base")
        uploader.close()
        assert methods(registry) == ["POST", "DELETE"]
        assert run.files() == []

    def test_or_left_to_the_next_run_where_the_registry_is_gone(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty(Fault(HangUp(), "DELETE", times=None))
        uploader = run.uploader(quick(), registry)
        assert not uploader.mount(BLOB, "base")
        uploader.close()
        assert len(run.files()) == 1


class TestSettling:
    def test_what_is_there_by_now_has_its_session_deleted(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        run.was_killed(registry)
        run.uploader(quick(), registry).delete_abandoned_sessions([BLOB.digest])
        assert methods(registry) == ["DELETE"]
        assert run.files() == []
        assert is_clean(registry)

    @pytest.mark.parametrize("gone", [404, 405, 501])
    def test_that_it_is_gone_already_does_not_matter(self, faulty: Faulty, quick: Quick, run: Run, gone: int) -> None:
        registry = faulty(Fault(refusal(gone), "DELETE"))
        run.was_killed(registry)
        run.uploader(quick(), registry).delete_abandoned_sessions([BLOB.digest])
        assert run.files() == []

    def test_uploads_of_other_images_stay(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        run.was_killed(registry)
        run.uploader(quick(), registry).delete_abandoned_sessions([f"sha256:{'0' * 64}"])
        run.uploader(quick(), registry, "other").delete_abandoned_sessions([BLOB.digest])
        assert registry.requests == []
        assert len(run.files()) == 1

    def test_a_registry_that_does_not_answer_is_asked_the_next_time(
        self, faulty: Faulty, quick: Quick, run: Run
    ) -> None:
        registry = faulty(Fault(HangUp(), "DELETE"))
        run.was_killed(registry)
        run.uploader(quick(), registry).delete_abandoned_sessions([BLOB.digest])
        assert len(run.files()) == 1
        run.uploader(quick(), registry).delete_abandoned_sessions([BLOB.digest])
        assert run.files() == []


class TestOverALineThatMayBreakOff:
    """Registries are left no request that breaks off: distribution 2.8 would lose the upload."""

    @pytest.mark.parametrize("way", [None, UploadMethod(CHUNK, MIB)])
    def test_each_request_has_an_end_whenever_it_breaks(
        self, faulty: Faulty, quick: Quick, run: Run, way: UploadMethod | None
    ) -> None:
        registry = faulty()
        for at in (MIB, 2 * MIB, 3 * MIB):
            source = Source(replayable=False)
            source.before = functools.partial(_fail_at, at)
            with pytest.raises(TruncatedError):
                run.uploader(quick(ladder=UploadStrategy(explicit_method=way)), registry).upload(
                    dataclasses.replace(source.blob, access=Access.RESUMABLE)
                )
            assert {request.status for request in registry.asked("PATCH")} == {202}
            assert received(registry) == at
        run.uploader(quick(ladder=UploadStrategy(explicit_method=way)), registry).upload(
            dataclasses.replace(Source(replayable=False).blob, access=Access.RESUMABLE)
        )
        assert received(registry) == len(CONTENT)
        assert len(registry.asked("POST")) == 1
        assert is_stored(registry)

    def test_nor_does_one_of_the_chunks_that_were_asked_for_where_a_plain_pipe_does(
        self, faulty: Faulty, quick: Quick, run: Run
    ) -> None:
        registry = faulty()
        source = Source(replayable=False)
        source.before = functools.partial(_fail_at, 3 * MIB)
        with pytest.raises(TruncatedError):
            run.uploader(quick(ladder=UploadStrategy(explicit_method=UploadMethod(CHUNK, 2 * MIB))), registry).upload(
                source.blob
            )
        assert [(patch.status, patch.received) for patch in registry.asked("PATCH")] == [(202, 2 * MIB), (202, MIB)]

    def test_nor_one_with_the_rest_of_a_blob(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        run.was_killed(registry, MIB)
        with pytest.raises(TruncatedError):
            run.uploader(quick(), registry).upload(rest(MIB, fails_at=3 * MIB))
        (patch,) = registry.asked("PATCH")
        assert (patch.status, patch.received) == (202, 2 * MIB)
        assert len(run.files()) == 1
        assert run.uploader(quick(), registry).partial_size(BLOB.digest) == 3 * MIB
        assert run.uploader(quick(), registry).upload(rest(3 * MIB)).stored == len(CONTENT)
        assert received(registry) == len(CONTENT) - MIB
        assert is_stored(registry)
        assert run.files() == []

    @pytest.mark.parametrize("fault", [HangUp(), refusal(500), StopReading(MIB // 2)])
    def test_what_the_registry_did_not_take_of_it_is_sent_again(
        self, faulty: Faulty, quick: Quick, run: Run, fault: Action
    ) -> None:
        registry = faulty(Fault(fault, "PATCH"))
        reached = run.uploader(quick(), registry).upload(rest(0))
        assert reached.stored == len(CONTENT)
        assert is_stored(registry)


def _fail_at(at: int, start: int) -> None:
    if start == at:
        raise TruncatedError("x")


def rest(start: int, *, fails_at: int | None = None) -> VerifiedBlob:
    """Return the rest of the blob, as it comes over a line."""

    def chunks() -> Iterator[Chunk]:
        for at in range(start, len(CONTENT), MIB):
            if at == fails_at:
                raise TruncatedError("x")
            yield CONTENT[at : at + MIB]

    part = ByteRange(start, BLOB.size)
    return VerifiedBlob(BLOB, chunks, access=Access.RESUMABLE, range=part)


class TestHowFarItIs:
    def test_it_is_asked_for_and_left_as_it_is(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        run.was_killed(registry)
        (path,) = run.files()
        before = path.read_bytes()
        for _ in range(2):
            assert run.uploader(quick(), registry).partial_size(BLOB.digest) == SENT
        assert methods(registry) == ["GET", "GET"]
        assert path.read_bytes() == before

    def test_of_others_nothing_is_asked_and_no_file_made(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        assert run.uploader(quick(), registry).partial_size(BLOB.digest) == 0
        assert run.files() == []
        run.was_killed(registry)
        assert run.uploader(quick(), registry).partial_size(f"sha256:{'0' * 64}") == 0
        assert run.uploader(quick(), registry, "other").partial_size(BLOB.digest) == 0
        assert len(run.files()) == 1
        assert methods(registry) == []

    def test_nor_of_one_that_another_process_uses(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        run.was_killed(registry)
        claim = run.records.lock(UploadKey(registry.host, "app", BLOB.digest, len(CONTENT)))
        assert claim is not None
        assert run.uploader(quick(), registry).partial_size(BLOB.digest) == 0
        claim.release()
        assert run.uploader(quick(), registry).partial_size(BLOB.digest) == SENT

    @pytest.mark.parametrize("path", ["/v2/other/blobs/uploads/1", "/v2/app/blobs/uploads/1?token=x"])
    def test_nor_at_another_place_than_our_own_uploads_have(
        self, faulty: Faulty, quick: Quick, run: Run, path: str
    ) -> None:
        registry = faulty()
        run.has_left(registry, registry.url + path)
        assert run.uploader(quick(), registry).partial_size(BLOB.digest) == 0
        assert methods(registry) == []

    @pytest.mark.parametrize("fault", [refusal(404), refusal(500), refusal(403), HangUp()])
    def test_where_there_is_no_answer_nothing_is_certain(
        self, faulty: Faulty, quick: Quick, run: Run, fault: Action
    ) -> None:
        registry = faulty(Fault(fault, "GET", times=None))
        run.was_killed(registry)
        assert run.uploader(quick(), registry).partial_size(BLOB.digest) == 0
        assert len(run.files()) == 1
        assert set(methods(registry)) == {"GET"}

    def test_what_is_too_old_is_not_asked_for(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        run.was_killed(registry)
        (path,) = run.files()
        os.utime(path, (0, 0))
        assert run.uploader(quick(), registry).partial_size(BLOB.digest) == 0
        assert methods(registry) == []
