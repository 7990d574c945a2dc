"""Uploads to registries that lose a request which breaks: bodies in the chunked transfer coding have a proper end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ocistream import open_uploads
from ocistream.errors import CancelledError, IntegrityError, RegistryError
from ocistream.http.rate_limits import RateLimits
from ocistream.registry.profiles import PROFILES_BY_NAME
from ocistream.registry.upload_strategy import UploadMethod, UploadStrategy
from ocistream.streams.chunks import Chunk
from ocistream.transfer.interfaces import VerifiedBlob
from tests.faulty_registry import Fault, refusal
from tests.http_doubles import CountingRegistry
from tests.unit.registry.test_upload_resume_across_runs import Run
from tests.unit.registry.test_uploader import BLOB, MIB, Faulty, Quick, Source, is_clean, methods


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    open_uploads.reset()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "state" / "uploads")


def ladder(rung: UploadMethod | None = None) -> UploadStrategy:
    """Return what is known of a registry that is like distribution 2.8."""
    return UploadStrategy(explicit_method=rung, configured_profile=lambda _: PROFILES_BY_NAME["distribution"])


def coded(registry: CountingRegistry) -> list[bool]:
    """Say of each PATCH whether it was coded; each has either that or a length."""
    patches = registry.asked("PATCH")
    assert all((p.headers["Transfer-Encoding"] is None) != (p.headers["Content-Length"] is None) for p in patches)
    return [patch.headers["Transfer-Encoding"] == "chunked" for patch in patches]


def ranges(registry: CountingRegistry) -> list[str | None]:
    return [patch.headers["Content-Range"] for patch in registry.asked("PATCH")]


class Stopped(Source):
    """A source that is cancelled after so many bytes."""

    def __init__(self, failure: Exception, after: int) -> None:
        super().__init__()

        def stop(start: int) -> None:
            if start >= after:
                raise failure

        self.before = stop


class TestAnInterruption:
    def test_ends_the_request_and_what_was_sent_is_confirmed(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        source = Stopped(CancelledError("cancelled"), after=MIB)
        with pytest.raises(CancelledError):
            run.uploader(quick(ladder=ladder()), registry).upload(source.blob)
        (patch,) = registry.asked("PATCH")
        assert (patch.status, patch.received) == (202, MIB)
        assert open_uploads.count_resumable() == {registry.host: (1, MIB)}
        assert open_uploads.count_unconfirmed() == {}
        assert not registry.asked("PUT")
        assert not registry.asked("DELETE")
        assert len(run.files()) == 1

    def test_that_finds_a_wrong_blob_deletes_it(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        with pytest.raises(IntegrityError):
            run.uploader(quick(ladder=ladder()), registry).upload(Stopped(IntegrityError("wrong"), 2 * MIB).blob)
        assert methods(registry) == ["POST", "PATCH", "DELETE"]
        assert (open_uploads.count_resumable(), open_uploads.count_unconfirmed()) == ({}, {})
        assert run.files() == []
        assert is_clean(registry)

    def test_of_a_request_that_has_no_end_confirms_nothing(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        with pytest.raises(CancelledError):
            run.uploader(quick(), registry).upload(Stopped(CancelledError("cancelled"), 2 * MIB).blob)
        assert open_uploads.count_resumable() == {}
        assert open_uploads.count_unconfirmed() == {registry.host: 1}

    def test_is_not_noticed_where_the_rate_is_limited_but_where_the_body_ends(
        self, faulty: Faulty, quick: Quick, run: Run
    ) -> None:
        registry = faulty()
        transport = quick(ladder=ladder(), pace=RateLimits(1e9))
        source = Source()
        chunks = source.blob.open

        def stopped() -> Iterator[Chunk]:
            for chunk in chunks():
                if transport.cancelled.is_set():
                    msg = "cancelled"
                    raise CancelledError(msg)
                yield chunk
                transport.cancelled.set()

        with pytest.raises(CancelledError):
            run.uploader(transport, registry).upload(VerifiedBlob(BLOB, stopped))
        (patch,) = registry.asked("PATCH")
        assert (patch.status, patch.received) == (202, MIB)

    def test_can_end_what_is_under_way_and_nothing_else(self, faulty: Faulty, quick: Quick, run: Run) -> None:
        registry = faulty()
        for transport, can_end in ((quick(ladder=ladder()), True), (quick(), False)):
            seen: list[bool] = []
            source = Source()
            source.before = lambda _, seen=seen: seen.append(open_uploads.can_any_end())  # type: ignore[misc]
            run.uploader(transport, registry).upload(source.blob)
            # The first bytes are read before the session is opened.
            assert seen == [False] + [can_end] * (len(seen) - 1)
            assert not open_uploads.can_any_end()


class TestARefusal:
    @pytest.mark.parametrize("status", [400, 404, 411, 501])
    def test_of_the_one_put_that_is_left_is_final(self, faulty: Faulty, quick: Quick, run: Run, status: int) -> None:
        # As good as forever: a client that does not give up comes to an end here, and fails the test.
        registry = faulty(Fault(refusal(405), "PATCH", times=None), Fault(refusal(status), "PUT", times=50))
        with pytest.raises(RegistryError):
            run.uploader(quick(ladder=ladder()), registry).upload(Source().blob)
        assert coded(registry)[0]
        assert 0 < len(registry.asked("PUT")) < 10
