"""An upload that breaks goes on where the registry is: what is sent twice, what is believed, and when it is over."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from ocistream import limits
from ocistream.errors import CancelledError, NetworkError, RegistryError
from ocistream.registry.profiles import CHUNK, PUT
from ocistream.registry.upload_strategy import UploadMethod, UploadStrategy
from tests.faulty_registry import Action, Fault, FaultyHandler, HangUp, Header, Reset, StopReading, refusal
from tests.http_doubles import QUICK, CountingRegistry, QuickTransport
from tests.registry.storage import Upload
from tests.unit.registry.test_uploader import CONTENT, MIB, Faulty, Quick, Source, is_stored, methods, uploader

KIB = 1024


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> int:
    """Make the memory for all uploads so small that a blob does not fit."""
    monkeypatch.setattr(limits, "UPLOAD_MEMORY", MIB)
    return MIB


def spans(registry: CountingRegistry) -> list[tuple[int, int]]:
    """Return the ranges that were stated, as first and last byte."""
    stated = [patch.headers["Content-Range"] for patch in registry.asked("PATCH")]
    return [(int(first), int(last)) for span in stated if span for first, _, last in [span.partition("-")]]


class TestTheWindow:
    def test_what_a_registry_has_after_all_is_believed_though_the_source_was_begun_again(
        self, faulty: Faulty, quick: Quick
    ) -> None:
        # Half of the first chunk, it says; it has all of it, and refuses the rest of it before it has come.
        said = Fault(Header("Range", f"0-{2 * MIB - 1}"), "PATCH")
        registry = faulty(said, Fault(refusal(416, "RANGE_INVALID"), "PATCH"))
        source = Source((CONTENT * 9)[: 8 * MIB])
        uploader(quick(ladder=UploadStrategy(explicit_method=UploadMethod(CHUNK, 4 * MIB))), registry).upload(
            source.blob
        )
        assert [first for first, _ in spans(registry)] == [0, 2 * MIB, 4 * MIB]
        assert source.opened > 1
        assert is_stored(registry, source.content)

    def test_a_small_blob_is_all_in_it_and_so_a_lost_session_is_no_loss(self, faulty: Faulty, quick: Quick) -> None:
        for way in ("blob", "unnamed"):
            registry = faulty(Fault(refusal(404, "BLOB_UPLOAD_UNKNOWN"), "PATCH", times=2))
            source = Source(replayable=False)
            uploader(quick(), registry).upload(getattr(source, way))
            assert source.opened == 1
            assert len(registry.asked("POST")) == 3
            assert is_stored(registry)

    @pytest.mark.usefixtures("small_window")
    def test_and_even_then_only_what_the_registry_lacks_is_sent(self, faulty: Faulty, quick: Quick) -> None:
        # Nothing of what follows the first MiB was kept: the registry's disk was full, say.
        registry = faulty(Fault(StopReading(MIB), "PATCH"))
        source = Source(CONTENT * 5)
        uploader(quick(), registry).upload(source.blob)
        assert spans(registry) == [(MIB, len(source.content) - 1)]
        assert is_stored(registry, source.content)

    def test_a_source_that_fails_while_it_is_read_again_is_not_tried_again(
        self, faulty: Faulty, quick: Quick, small_window: int
    ) -> None:
        del small_window
        registry = faulty(Fault(StopReading(3 * MIB), "PATCH"), Fault(refusal(404), "GET", "uploads"))
        source = Source()
        gone = NetworkError("the source is gone")

        def fail(start: int) -> None:
            if source.opened == 2 and start == MIB:
                raise gone

        source.before = fail
        with pytest.raises(NetworkError) as caught:
            uploader(quick(), registry).upload(source.blob)
        assert caught.value is gone
        assert source.opened == source.closed == 2


class TestSessionsThatAreLost:
    """Of all that was sent again nothing is progress, or it would be sent for ever."""

    def test_at_every_third_chunk(self, faulty: Faulty, quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
        # Several registries behind one name, say, that do not share their sessions.
        dispatch = FaultyHandler.dispatch
        count = itertools.count(1)

        def forgetful(handler: FaultyHandler) -> None:
            if handler.command == "PATCH" and next(count) % 3 == 0:
                handler.path = handler.path.replace("/uploads/", "/uploads/x")
            dispatch(handler)

        monkeypatch.setattr(FaultyHandler, "dispatch", forgetful)
        registry = faulty()
        with pytest.raises(NetworkError, match="BLOB_UPLOAD_UNKNOWN"):
            uploader(quick(ladder=UploadStrategy(explicit_method=UploadMethod(CHUNK, MIB))), registry).upload(
                Source().blob
            )
        assert len(registry.asked("POST")) <= 2 * QUICK.attempts


class TestWhatIsBelieved:
    def breaking(self, faulty: Faulty, stated: str | None, after: int = 3 * MIB) -> CountingRegistry:
        return faulty(Fault(StopReading(after), "PATCH"), Fault(Header("Range", stated), "GET", "uploads"))

    @pytest.mark.parametrize("tells", [True, False])
    def test_a_part_that_was_taken_by_less_than_the_pipe_can_give_again_is_asked_about(
        self, faulty: Faulty, quick: Quick, tells: bool
    ) -> None:
        registry = faulty(
            Fault(StopReading(2 * MIB), "PATCH"), Fault(Header("Range", f"0-{3 * MIB - 1}"), "PATCH", skip=0)
        )
        registry.faults += [] if tells else [Fault(refusal(404), "GET", "uploads", skip=1)]
        source = Source(CONTENT * 5, replayable=False)
        if tells:
            uploader(quick(), registry).upload(source.blob)
            assert is_stored(registry, source.content)
        else:
            with pytest.raises(NetworkError, match="accepted 1048576 of") as caught:
                uploader(quick(), registry).upload(source.blob)
            assert "chunk=8MiB" in (caught.value.hint or "")
        assert source.opened == 1

    def test_a_registry_that_takes_next_to_nothing_of_each_chunk_is_given_up(
        self, faulty: Faulty, quick: Quick, monkeypatch: pytest.MonkeyPatch
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

        monkeypatch.setattr(Upload, "receive", sparing)
        registry = faulty()
        with pytest.raises(NetworkError, match="accepted 100 of 1048576 bytes"):
            uploader(quick(ladder=UploadStrategy(explicit_method=UploadMethod(CHUNK, MIB))), registry).upload(
                Source().blob
            )
        assert len(registry.asked("PATCH")) <= 10


class TestChunks:
    @pytest.mark.parametrize("failure", [HangUp(), Reset(), StopReading(MIB // 2), refusal(503), refusal(429)])
    @pytest.mark.parametrize("way", ["blob", "unnamed"])
    def test_one_that_is_lost_is_sent_again_alone(
        self, faulty: Faulty, quick: Quick, failure: Action, way: str
    ) -> None:
        registry = faulty(Fault(failure, "PATCH", skip=2))
        source = Source(replayable=False)
        uploader(quick(ladder=UploadStrategy(explicit_method=UploadMethod(CHUNK, MIB))), registry).upload(
            getattr(source, way)
        )
        # One of which a half was taken shifts the others.
        assert len(registry.asked("PATCH")) == (5 if isinstance(failure, StopReading) else 6)
        assert source.opened == 1
        assert is_stored(registry)


def test_no_more_is_believed_of_a_new_session_than_was_sent_into_it(faulty: Faulty, quick: Quick) -> None:
    registry = faulty(
        Fault(refusal(404, "BLOB_UPLOAD_UNKNOWN"), "PATCH", skip=3),
        Fault(refusal(503), "PATCH", skip=3),
        Fault(Header("Range", f"0-{3 * MIB - 1}"), "GET", "/uploads/"),
    )
    ladder = UploadStrategy(explicit_method=UploadMethod(CHUNK, MIB))
    uploader(quick(ladder=ladder), registry).upload(Source().blob)
    assert len(registry.asked("POST")) == 3
    assert [first for first, _ in spans(registry)] == [0, MIB, 2 * MIB, 3 * MIB, 0, 0, MIB, 2 * MIB, 3 * MIB, 4 * MIB]
    assert is_stored(registry)


def test_a_refused_end_after_a_broken_body_says_nothing_of_the_method(faulty: Faulty, quick: Quick) -> None:
    registry = faulty(Fault(StopReading(len(CONTENT)), "PATCH"), Fault(refusal(405), "PUT", times=None))
    with pytest.raises(RegistryError, match="405"):
        uploader(quick(), registry).upload(Source().blob)
    assert [method for method in methods(registry) if method in {"POST", "PATCH", "PUT"}] == ["POST", "PATCH", "PUT"]


class TestOnePut:
    def test_one_that_broke_is_begun_again(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(StopReading(3 * MIB), "PUT"))
        source = Source(replayable=False)
        uploader(quick(ladder=UploadStrategy(explicit_method=UploadMethod(PUT))), registry).upload(source.blob)
        assert methods(registry) == ["POST", "PUT", "DELETE", "POST", "PUT"]
        assert is_stored(registry)


def test_a_cancellation_is_not_taken_for_a_registry_that_does_not_answer(
    faulty: Faulty, quick: Quick, monkeypatch: pytest.MonkeyPatch, small_window: int
) -> None:
    del small_window
    registry = faulty(Fault(StopReading(3 * MIB), "PATCH"))
    transport: QuickTransport = quick()
    read = FaultyHandler.dispatch

    def cancel(handler: FaultyHandler) -> None:
        if handler.command == "PATCH":
            transport.cancelled.set()
        read(handler)

    monkeypatch.setattr(FaultyHandler, "dispatch", cancel)
    with pytest.raises(CancelledError):
        uploader(transport, registry).upload(Source(replayable=False).blob)
