"""One blob up into a registry: what is sent, what becomes of it when something fails, and mounts."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ocistream.auth.credentials import Credential
from ocistream.errors import (
    AuthenticationError,
    CancelledError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    OcistreamError,
    PermanentNetworkError,
    RegistryError,
)
from ocistream.oci.descriptor import Descriptor
from ocistream.registry.blob_push import BlobPusher
from ocistream.registry.repository import Repository
from ocistream.streams.chunks import Chunk, verify_chunks
from ocistream.transfer.interfaces import Access, NewBlob, VerifiedBlob
from tests.certificates import Certificate
from tests.faulty_auth import Basic, Bearer
from tests.faulty_registry import (
    Action,
    Fault,
    HangUp,
    Header,
    Reset,
    Stall,
    StopReading,
    redirect,
    refusal,
    too_many_requests,
)
from tests.http_doubles import CountingRegistry, QuickTransport, blob_of, eventually, names

Faulty = Callable[..., CountingRegistry]
Quick = Callable[..., QuickTransport]

MIB = 1 << 20
CONTENT = random.Random(1).randbytes(4 * MIB + 5)
BLOB = blob_of(CONTENT)
ALICE = Credential("alice", "s3cret", source="the test")
UPLOADS = "/v2/app/blobs/uploads/"


class Source:
    """A blob's bytes, in a buffer that is used over and over as a file's are; `opened` counts the readers."""

    def __init__(self, content: bytes = CONTENT, *, replayable: bool = True, algorithm: str = "sha256") -> None:
        self.content = content
        self.opened = 0
        self.closed = 0
        self.before: Callable[[int], None] = lambda _: None
        access = Access.REPEATABLE if replayable else Access.ONCE
        self.blob = VerifiedBlob(blob_of(content, algorithm), self.open, access)
        #: The same as if nobody knew it before it has passed.
        self.unnamed = NewBlob(self.open, self._descriptor, access=access)

    def open(self) -> Iterator[Chunk]:
        """Read, verified as everything is that reaches a sink."""
        return verify_chunks(self._chunks(), self.blob.descriptor)

    def _descriptor(self) -> Descriptor:
        assert self.opened == self.closed > 0, "asked for too early"
        return self.blob.descriptor

    def _chunks(self) -> Iterator[Chunk]:
        self.opened += 1
        buffer = bytearray(MIB)
        try:
            for start in range(0, len(self.content), MIB):
                self.before(start)
                piece = self.content[start : start + MIB]
                buffer[: len(piece)] = piece
                yield memoryview(buffer)[: len(piece)]
        finally:
            self.closed += 1


def uploader(transport: QuickTransport, registry: CountingRegistry | str) -> BlobPusher:
    host = registry if isinstance(registry, str) else registry.host
    return BlobPusher(Repository(transport, host, "app", for_push=True), transport.upload_strategy)


def methods(registry: CountingRegistry) -> list[str]:
    return [request.method for request in registry.requests]


def is_stored(registry: CountingRegistry, content: bytes = CONTENT) -> bool:
    path = registry.layout.blob_path(blob_of(content).digest)
    return path.exists() and path.read_bytes() == content


def is_clean(registry: CountingRegistry) -> bool:
    """Say whether no part of any upload lies about."""
    return [path.name for path in (registry.layout.path / "blobs").glob("*/*") if len(path.name) != 64] == []


class TestWhatIsSent:
    def test_a_blob_by_sha512(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        source = Source(algorithm="sha512")
        uploader(quick(), registry).upload(source.blob)
        assert registry.layout.blob_path(source.blob.descriptor.digest).read_bytes() == CONTENT

    def test_many_small_blobs_need_one_connection(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        target = uploader(quick(), registry)
        for number in range(50):
            target.upload(Source(str(number).encode()).blob)
        assert registry.accepted == 1


class TestLocations:
    def test_one_to_the_post_must(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(Header("Location", None), "POST"))
        with pytest.raises(PermanentNetworkError, match="the answer has no Location"):
            uploader(quick(), registry).upload(Source().blob)
        assert methods(registry) == ["POST"]

    @pytest.mark.parametrize("location", ["http://registry.test:1/x?secret", "ftp://h/?secret", "https://[/secret"])
    def test_one_that_leaves_https_or_is_malformed_is_refused(
        self,
        faulty: Faulty,
        quick: Quick,
        certificate: Certificate,
        monkeypatch: pytest.MonkeyPatch,
        location: str,
    ) -> None:
        registry = faulty(Fault(Header("Location", location), "POST"), tls=certificate)
        host = f"registry.test:{registry.host.rpartition(':')[2]}"
        target = uploader(quick(ca_file=str(certificate.file)), host)
        with names(monkeypatch, registry="203.0.113.5"), pytest.raises(PermanentNetworkError) as caught:
            target.upload(Source().blob)
        assert "secret" not in str(caught.value)
        assert methods(registry) == ["POST"]

    def test_a_redirect_of_the_patch_within_the_registry_comes_too_late(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(redirect("/v2/elsewhere"), "PATCH"))
        with pytest.raises(PermanentNetworkError):
            uploader(quick(), registry).upload(Source().blob)


class TestSourcesThatFail:
    @pytest.mark.parametrize(
        "failure",
        [
            IntegrityError("wrong"),
            NetworkError("the source broke off"),
            NotFoundError("gone"),
            RegistryError("the source says 503", status=503),
            CancelledError("cancelled"),
            OSError(errno.EIO, "Input/output error"),
            ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
            KeyboardInterrupt(),
        ],
        ids=lambda failure: type(failure).__name__,
    )
    @pytest.mark.parametrize("start", [0, 2 * MIB])
    def test_nothing_is_completed_the_session_is_deleted_and_it_is_not_tried_again(
        self, faulty: Faulty, quick: Quick, failure: BaseException, start: int
    ) -> None:
        def fail(at: int) -> None:
            if at == start:
                raise failure

        registry = faulty()
        source = Source()
        source.before = fail
        with pytest.raises(type(failure)) as caught:
            uploader(quick(), registry).upload(source.blob)
        assert caught.value is failure
        assert source.opened == source.closed == 1
        eventually(lambda: sorted(methods(registry)) == (["DELETE", "PATCH", "POST"] if start else []))
        assert all(request.received <= start for request in registry.asked("PATCH"))
        assert not is_stored(registry)
        eventually(lambda: is_clean(registry))

    def test_one_that_cannot_be_opened_is_not_tried_again(self, faulty: Faulty, quick: Quick) -> None:
        opened: list[int] = []

        def fail() -> Iterator[Chunk]:
            opened.append(0)
            msg = "the source is down"
            raise NetworkError(msg)

        registry = faulty()
        with pytest.raises(NetworkError, match="the source is down"):
            uploader(quick(), registry).upload(VerifiedBlob(BLOB, fail))
        assert len(opened) == 1
        assert registry.requests == []

    def test_the_last_chunk_of_a_wrong_blob_is_never_sent(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        source = Source()
        source.content = CONTENT[:-1] + b"!"
        with pytest.raises(IntegrityError):
            uploader(quick(), registry).upload(source.blob)
        eventually(lambda: [request.received for request in registry.asked("PATCH")] == [4 * MIB])
        assert sorted(methods(registry)) == ["DELETE", "PATCH", "POST"]

    @pytest.mark.parametrize("failure", [IntegrityError("wrong"), CancelledError("cancelled"), OSError(errno.EIO, "x")])
    @pytest.mark.parametrize("answer", [None, StopReading(2 * MIB), StopReading(2 * MIB, reset=True)])
    def test_a_stream_of_unknown_length_ends_where_its_source_failed_and_its_session_is_known_and_deleted(
        self, faulty: Faulty, quick: Quick, failure: Exception, answer: Action | None
    ) -> None:
        def fail(at: int) -> None:
            if at == 2 * MIB:
                raise failure

        moved = Header("Location", lambda path: f"{path}?_state=after")
        registry = faulty(Fault(answer or moved, "PATCH"))
        source = Source()
        source.before = fail
        with pytest.raises(type(failure)) as caught:
            uploader(quick(), registry).upload(source.unnamed)
        assert caught.value is failure
        assert methods(registry) == ["POST", "PATCH", "DELETE"]
        _, patch, delete = registry.requests
        if answer is None:
            assert (patch.status, patch.received) == (202, 2 * MIB)
            # distribution has the offset in it.
            assert delete.target.endswith("?_state=after")
        assert not is_stored(registry)
        assert is_clean(registry)

    @pytest.mark.parametrize("refused", [HangUp(), Reset(), refusal(404), refusal(405), refusal(500)])
    def test_that_the_session_cannot_be_deleted_is_not_the_news(
        self, faulty: Faulty, quick: Quick, refused: Action
    ) -> None:
        registry = faulty(Fault(refused, "DELETE", times=None))
        source = Source()
        source.content = CONTENT[:-1]
        with pytest.raises(IntegrityError):
            uploader(quick(), registry).upload(source.blob)
        assert len(registry.asked("DELETE")) == 1


LOST = [HangUp(), Reset(), refusal(500), refusal(503), refusal(429)]
LOST_ON_THE_WAY = [*LOST, StopReading(0), StopReading(2 * MIB), StopReading(2 * MIB, reset=True)]


class TestRetries:
    @pytest.mark.parametrize("method", ["POST", "PUT"])
    @pytest.mark.parametrize("failure", LOST)
    @pytest.mark.parametrize("replayable", [True, False])
    def test_what_has_no_body_is_sent_again_alone(
        self, faulty: Faulty, quick: Quick, method: str, failure: Action, replayable: bool
    ) -> None:
        registry = faulty(Fault(failure, method, times=3))
        source = Source(replayable=replayable)
        uploader(quick(), registry).upload(source.blob)
        assert is_stored(registry)
        assert source.opened == 1
        assert len(registry.asked("PATCH")) == 1
        assert len(registry.asked(method)) == 4

    @pytest.mark.parametrize("failure", LOST_ON_THE_WAY)
    @pytest.mark.parametrize("replayable", [True, False])
    def test_an_upload_that_broke_goes_on_in_its_session(
        self, faulty: Faulty, quick: Quick, failure: Action, replayable: bool
    ) -> None:
        registry = faulty(Fault(failure, "PATCH", times=3))
        source = Source(replayable=replayable)
        uploader(quick(), registry).upload(source.blob)
        assert is_stored(registry)
        # Each reader takes back what the one before has counted.
        assert source.opened == source.closed
        assert replayable or source.opened == 1
        assert len(registry.asked("POST")) == len(registry.asked("PUT")) == 1
        # Of one that has taken most of it, what is left may be too little to break.
        assert len(registry.asked("PATCH")) in {3, 4}
        assert registry.asked("DELETE") == []

    def test_what_failed_before_its_first_byte_is_told_as_it_is(self, faulty: Faulty, quick: Quick) -> None:
        for content in (CONTENT, b""):
            registry = faulty(Fault(too_many_requests(), "POST", times=None))
            with pytest.raises(RegistryError) as caught:
                uploader(quick(), registry).upload(Source(content, replayable=False).blob)
            assert caught.value.hint
            assert "the registry limits" in caught.value.hint

    @pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
    @pytest.mark.parametrize("failure", [HangUp(), refusal(503)])
    def test_the_number_of_tries_is_bounded(self, faulty: Faulty, quick: Quick, method: str, failure: Action) -> None:
        registry = faulty(Fault(failure, method, times=None))
        with pytest.raises(NetworkError) as caught:
            uploader(quick(), registry).upload(Source().blob)
        assert caught.value.exit_code == 7
        assert len(registry.asked(method)) == 4
        assert not is_stored(registry)

    @pytest.mark.parametrize("method", ["POST", "PATCH"])
    def test_a_wait_beyond_our_patience_ends_it_at_once(self, faulty: Faulty, quick: Quick, method: str) -> None:
        registry = faulty(Fault(refusal(429, Retry_After="100000"), method, times=None))
        transport = quick()
        with pytest.raises(RegistryError):
            uploader(transport, registry).upload(Source().blob)
        assert len(registry.asked("POST")) <= 4
        if method == "POST":
            assert len(registry.asked("POST")) == 1
            assert transport.waits == []

    def test_a_closing_put_at_a_wrong_offset_is_sent_again_alone(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(refusal(416, "BLOB_UPLOAD_INVALID"), "PUT"))
        source = Source()
        uploader(quick(), registry).upload(source.blob)
        assert is_stored(registry)
        assert source.opened == len(registry.asked("PATCH")) == 1

    def test_a_repository_that_must_be_made_first_is_said_so(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(refusal(404, "NAME_UNKNOWN"), "POST", times=None))
        with pytest.raises(NotFoundError, match="404 NAME_UNKNOWN") as caught:
            uploader(quick(), registry).upload(Source().blob)
        assert caught.value.exit_code == 4
        assert caught.value.hint
        assert methods(registry) == ["POST"]

    @pytest.mark.parametrize("method", ["PATCH", "PUT"])
    def test_a_registry_may_take_its_time_to_store_a_blob(self, faulty: Faulty, quick: Quick, method: str) -> None:
        registry = faulty(Fault(Stall(0.8), method))
        uploader(quick(stall_timeout=0.2, store_rate=0.1), registry).upload(Source(b"x").blob)
        assert len(registry.asked(method)) == 1
        assert is_stored(registry, b"x")

    def test_but_not_forever(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(Stall(), "PUT"))
        uploader(quick(stall_timeout=0.2, store_timeout=0.5, store_rate=0.1), registry).upload(Source(b"x").blob)
        assert len(registry.asked("PUT")) > 1

    @pytest.mark.parametrize("method", ["PATCH", "PUT"])
    def test_nor_a_small_blob_for_longer_than_a_stall(self, faulty: Faulty, quick: Quick, method: str) -> None:
        registry = faulty(Fault(Stall(), method))
        uploader(quick(stall_timeout=0.3), registry).upload(Source(b"x" * 1000).blob)
        assert len(registry.asked(method)) > 1
        assert is_stored(registry, b"x" * 1000)


class TestAuthorization:
    def test_basic(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(auth=Basic("alice", "s3cret"))
        uploader(quick(credential=ALICE), registry).upload(Source().blob)
        assert methods(registry) == ["POST", "POST", "PATCH", "PUT"]
        assert is_stored(registry)

    def test_a_401_at_the_patch_costs_a_fresh_token_and_that_patch(self, faulty: Faulty, quick: Quick) -> None:
        auth = Bearer()
        registry = faulty(auth=auth)
        challenge = f'Bearer realm="{registry.url}/token"'
        registry.faults = [Fault(refusal(401, WWW_Authenticate=challenge), "PATCH")]
        source = Source()
        uploader(quick(), registry).upload(source.blob)
        assert is_stored(registry)
        assert len(auth.requests) == 2
        assert [method for method in methods(registry) if method != "GET"] == ["POST", "POST", "PATCH", "PATCH", "PUT"]

    @pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
    def test_a_denial_is_not_tried_again(self, faulty: Faulty, quick: Quick, method: str) -> None:
        registry = faulty(Fault(refusal(403, "DENIED"), method, times=None))
        with pytest.raises(AuthenticationError, match="403 DENIED") as caught:
            uploader(quick(), registry).upload(Source().blob)
        assert caught.value.exit_code == 3
        assert len(registry.asked(method)) == 1

    def test_the_deletion_of_a_session_shows_the_token(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(auth=Bearer())
        source = Source()
        source.content = CONTENT[:-1]
        with pytest.raises(IntegrityError):
            uploader(quick(), registry).upload(source.blob)
        eventually(lambda: len(registry.asked("PATCH")) == 1)
        (deletion,) = registry.asked("DELETE")
        # Whether it is enough is for the registry to say: distribution wants the right to delete.
        assert deletion.headers["Authorization"] == registry.asked("PATCH")[0].headers["Authorization"]


class TestMounts:
    def test_many_of_them_need_one_connection(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        registry.hold(CONTENT)
        target = uploader(quick(), registry)
        for number in range(20):
            assert not target.mount(blob_of(str(number).encode()), "other")
            assert target.mount(BLOB, "other")
        assert registry.accepted == 1

    def test_one_that_has_been_closed_meanwhile_is_replaced(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        target = uploader(quick(), registry)
        assert not target.mount(BLOB, "other")
        registry.faults = [Fault(refusal(404, "BLOB_UPLOAD_UNKNOWN"), "PATCH")]
        target.upload(Source().blob)
        assert methods(registry) == ["POST", "PATCH", "DELETE", "POST", "PATCH", "PUT"]

    def test_a_202_without_a_location_is_a_plain_upload(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(Header("Location", None), "POST"))
        target = uploader(quick(), registry)
        assert not target.mount(BLOB, "other")
        target.upload(Source().blob)
        assert methods(registry) == ["POST", "POST", "PATCH", "PUT"]

    def test_no_answer_is_a_failure(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(HangUp(), times=None))
        with pytest.raises(NetworkError):
            uploader(quick(), registry).mount(BLOB, "other")
        assert len(registry.requests) == 4

    def test_a_cancellation_is_not_taken_for_a_refusal(self, faulty: Faulty, quick: Quick) -> None:
        transport = quick()
        transport.cancelled.set()
        with pytest.raises(CancelledError):
            uploader(transport, faulty()).mount(BLOB, "other")

    def test_sessions_that_were_not_used_are_deleted_at_the_end(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        target = uploader(quick(), registry)
        for number in range(3):
            assert not target.mount(blob_of(bytes([number])), "other")
        target.close()
        target.close()
        assert methods(registry) == ["POST"] * 3 + ["DELETE"] * 3
        assert is_clean(registry)

    def test_a_registry_that_has_gone_is_not_waited_for_many_times(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(HangUp(), "DELETE", times=None))
        target = uploader(quick(), registry)
        for number in range(3):
            assert not target.mount(blob_of(bytes([number])), "other")
        target.close()
        assert len(registry.asked("DELETE")) == 1


def test_no_error_of_an_upload_shows_the_query_of_its_location(faulty: Faulty, quick: Quick) -> None:
    located = Header("Location", lambda path: f"{path}?_state=secret")
    for method in ("PATCH", "PUT"):
        registry = faulty(Fault(located, "POST", times=None), Fault(refusal(400), method, times=None))
        transport = quick()
        with pytest.raises(OcistreamError) as caught:
            uploader(transport, registry).upload(Source().blob)
        assert "secret" not in f"{caught.value} {caught.value.hint} {transport.told}"


class TestUnnamed:
    """Blobs of which size and digest are known when all of them has passed."""

    def test_the_patch_is_chunked_and_the_digest_closes_the_upload(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        uploader(quick(), registry).upload(Source().unnamed)
        post, patch, put = registry.requests
        assert [request.method for request in registry.requests] == ["POST", "PATCH", "PUT"]
        assert (post.target, post.headers["Content-Length"]) == (UPLOADS, "0")
        assert (patch.headers["Transfer-Encoding"], patch.headers["Content-Length"]) == ("chunked", None)
        assert patch.headers["Content-Type"] == "application/octet-stream"
        assert put.target == f"{patch.target}?digest={BLOB.digest}"
        assert is_stored(registry)
        assert registry.accepted == 1

    def test_an_empty_one_is_a_put_without_a_patch(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        uploader(quick(), registry).upload(Source(b"").unnamed)
        assert methods(registry) == ["POST", "PUT"]
        assert is_stored(registry, b"")

    def test_it_is_sent_while_it_is_read(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        source = Source()
        source.before = lambda start: eventually(
            lambda: start < 2 * MIB or any(patch.received >= start - MIB for patch in registry.asked("PATCH"))
        )
        uploader(quick(), registry).upload(source.unnamed)
        assert is_stored(registry)

    @pytest.mark.parametrize("auth", [Basic("alice", "s3cret"), Bearer({"alice": "s3cret"})])
    def test_the_first_refusal_is_had_before_any_of_it_is_sent(self, faulty: Faulty, quick: Quick, auth: Any) -> None:
        registry = faulty(auth=auth)
        source = Source(replayable=False)
        uploader(quick(credential=ALICE), registry).upload(source.unnamed)
        assert len(registry.asked("PATCH")) == 1
        assert is_stored(registry)

    @pytest.mark.parametrize(
        "failure",
        [
            IntegrityError("wrong"),
            CancelledError("cancelled"),
            OSError(errno.EIO, "Input/output error"),
            KeyboardInterrupt(),
        ],
        ids=lambda failure: type(failure).__name__,
    )
    @pytest.mark.parametrize("start", [0, 2 * MIB])
    def test_one_that_fails_is_never_completed_and_its_session_deleted(
        self, faulty: Faulty, quick: Quick, failure: BaseException, start: int
    ) -> None:
        def fail(at: int) -> None:
            if at == start:
                raise failure

        registry = faulty()
        source = Source()
        source.before = fail
        with pytest.raises(type(failure)) as caught:
            uploader(quick(), registry).upload(source.unnamed)
        assert caught.value is failure
        assert source.opened == source.closed == 1
        eventually(lambda: sorted(methods(registry)) == (["DELETE", "PATCH", "POST"] if start else []))
        assert not is_stored(registry)
        eventually(lambda: is_clean(registry))

    @pytest.mark.parametrize("failure", LOST)
    @pytest.mark.parametrize("replayable", [True, False])
    def test_one_of_which_nothing_was_taken_is_sent_again(
        self, faulty: Faulty, quick: Quick, failure: Action, replayable: bool
    ) -> None:
        registry = faulty(Fault(failure, "PATCH", times=3))
        source = Source(replayable=replayable)
        uploader(quick(), registry).upload(source.unnamed)
        assert is_stored(registry)
        assert source.opened == source.closed
        assert replayable or source.opened == 1

    @pytest.mark.parametrize("reset", [True, False])
    @pytest.mark.parametrize("replayable", [True, False])
    def test_one_that_broke_goes_on_in_chunks_since_their_length_is_known(
        self, faulty: Faulty, quick: Quick, reset: bool, replayable: bool
    ) -> None:
        failure = StopReading(2 * MIB, reset=reset)
        registry = faulty(Fault(failure, "PATCH", times=3))
        source = Source(replayable=replayable)
        uploader(quick(), registry).upload(source.unnamed)
        assert is_stored(registry)
        assert source.opened == source.closed
        assert replayable or source.opened == 1
        first, *others = registry.asked("PATCH")
        assert first.headers["Content-Range"] is None
        assert all(patch.headers["Content-Range"] for patch in others)
        assert len(registry.asked("POST")) == 1

    def test_an_answer_to_the_put_that_was_lost_is_no_failure(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        uploader(quick(), registry).upload(Source().unnamed)
        registry.faults = [Fault(refusal(404), "PUT", "/uploads/")]
        uploader(quick(), registry).upload(Source().unnamed)
        assert is_stored(registry)
