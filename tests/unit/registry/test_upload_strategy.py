"""Which way a blob goes up: what is refused, what is tried then, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ocistream import limits
from ocistream.errors import IntegrityError, UnsupportedError, UsageError
from ocistream.registry.profiles import CHUNK, PROFILES_BY_NAME, PUT, STREAM, UNKNOWN_PROFILE, RegistryProfile
from ocistream.registry.upload_strategy import ALTERNATIVES, UploadMethod, UploadStrategy, parse_upload_method
from tests.certificates import Certificate
from tests.faulty_registry import Fault, FaultyHandler, Header, Reply, refusal
from tests.http_doubles import CountingRegistry, names
from tests.unit.registry.test_uploader import CONTENT, MIB, Faulty, Quick, Source, is_stored, methods, uploader

Place = Callable[..., tuple[CountingRegistry, str]]

KIB = 1024


def too_large(limit: int) -> Fault:
    """Return what a proxy does that bounds the bodies of requests."""
    return Fault(refusal(413), "PATCH|PUT", larger_than=limit, times=None)


def ranges(registry: CountingRegistry) -> list[str | None]:
    return [patch.headers["Content-Range"] for patch in registry.asked("PATCH") if patch.status == 202]


def is_whole(registry: CountingRegistry) -> bool:
    """Say whether the parts that were taken join to the blob, without a byte twice or none."""
    spans = [span for span in ranges(registry) if span]
    ends = [tuple(map(int, span.split("-"))) for span in spans]
    return [start for start, _ in ends] == [0, *(end + 1 for _, end in ends[:-1])] and ends[-1][1] == len(CONTENT) - 1


class TestRungs:
    @pytest.mark.parametrize(
        ("text", "rung"),
        [
            ("auto", None),
            ("stream", UploadMethod(STREAM)),
            ("put", UploadMethod(PUT)),
            ("chunk=4194304", UploadMethod(CHUNK, 4 * MIB)),
            ("chunk=4MiB", UploadMethod(CHUNK, 4 * MIB)),
            ("chunk=4MB", UploadMethod(CHUNK, 4 * MIB)),
            ("chunk=4m", UploadMethod(CHUNK, 4 * MIB)),
            ("chunk=512K", UploadMethod(CHUNK, 512 * KIB)),
            ("chunk=100b", UploadMethod(CHUNK, 100)),
        ],
    )
    def test_one_is_read_as_it_is_written(self, text: str, rung: UploadMethod | None) -> None:
        assert parse_upload_method(text) == rung
        if rung is not None:
            assert parse_upload_method(str(rung)) == rung

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "x",
            "Stream",
            "chunk",
            "chunk=",
            "chunk=0",
            "chunk=-1",
            "chunk=4T",
            "chunk=4iB",
            "chunk=1.5M",
            "put=1",
            "stream=",
            "chunk=4 4",
            "chunk=٤",
            "chunk=4M\n",
            "auto=1",
        ],
    )
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError) as caught:
            parse_upload_method(text)
        assert caught.value.hint
        assert "chunk=SIZE" in caught.value.hint

    def test_a_chunk_that_cannot_be_held_is_refused_with_the_bound(self) -> None:
        assert parse_upload_method("chunk=8MiB") == UploadMethod(CHUNK, limits.UPLOAD_MEMORY)
        for text in ("chunk=8388609", "chunk=1G", "chunk=999999999999G"):
            with pytest.raises(UsageError) as caught:
                parse_upload_method(text)
            assert "at most chunk=8MiB" in (caught.value.hint or "")

    def test_the_table_of_refusals_names_ways_only(self) -> None:
        for refused in ALTERNATIVES.values():
            for status, ways in refused.items():
                assert 400 <= status < 600
                assert set(ways) <= {STREAM, PUT, CHUNK}


class TestForced:
    def test_chunks_of_a_blob_without_a_name_have_a_length_too(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        uploader(quick(ladder=UploadStrategy(explicit_method=UploadMethod(CHUNK, MIB))), registry).upload(
            Source(replayable=False).unnamed
        )
        assert [patch.headers["Content-Length"] for patch in registry.asked("PATCH")] == ["1048576"] * 4 + ["5"]
        assert is_whole(registry)
        assert is_stored(registry)

    def test_one_put_is_nothing_for_what_has_no_digest_yet(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        with pytest.raises(UnsupportedError):
            uploader(quick(ladder=UploadStrategy(explicit_method=UploadMethod(PUT))), registry).upload(Source().unnamed)
        assert registry.requests == []

    @pytest.mark.parametrize("rung", ["stream", "put", "chunk=1MiB"])
    def test_an_empty_blob_is_a_put_without_a_body_all_the_same(self, faulty: Faulty, quick: Quick, rung: str) -> None:
        registry = faulty()
        uploader(quick(ladder=UploadStrategy(explicit_method=parse_upload_method(rung))), registry).upload(
            Source(b"").blob
        )
        assert methods(registry) == ["POST", "PUT"]
        assert is_stored(registry, b"")

    @pytest.mark.parametrize("rung", ["stream", "chunk=1MiB"])
    def test_nor_is_one_with_more_bytes_than_were_promised(self, faulty: Faulty, quick: Quick, rung: str) -> None:
        registry = faulty()
        source = Source(CONTENT[: 4 * MIB])
        source.content = CONTENT
        with pytest.raises(IntegrityError):
            uploader(quick(ladder=UploadStrategy(explicit_method=parse_upload_method(rung))), registry).upload(
                source.blob
            )
        assert registry.asked("PUT") == []
        assert not is_stored(registry, CONTENT[: 4 * MIB])


class TestSteppingDown:
    def test_what_one_blob_has_found_out_the_next_begins_with(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(too_large(MIB))
        target = uploader(quick(), registry)
        target.upload(Source().blob)
        before = len(registry.requests)
        target.upload(Source(CONTENT[:-1]).blob)
        target.upload(Source(CONTENT[:-2]).unnamed)
        assert all(request.status in {201, 202} for request in registry.requests[before:])

    @pytest.mark.parametrize("status", [400, 411, 501])
    @pytest.mark.parametrize("replayable", [True, False])
    def test_one_that_takes_no_chunked_coding_gets_a_nameless_blob_in_chunks(
        self, faulty: Faulty, quick: Quick, status: int, replayable: bool
    ) -> None:
        registry = faulty()
        registry.faults = [Fault(refusal(status), "PATCH")]
        ladder = UploadStrategy()
        uploader(quick(ladder=ladder), registry).upload(Source(replayable=replayable).unnamed)
        assert is_stored(registry)
        assert all(patch.headers["Transfer-Encoding"] is None for patch in registry.asked("PATCH")[1:])
        # What has a length needs no chunks.
        uploader(quick(ladder=ladder), registry).upload(Source(CONTENT[:-1]).blob)
        assert registry.asked("PATCH")[-1].headers["Content-Range"] is None

    @pytest.mark.parametrize("status", [400, 404, 405, 501])
    def test_one_that_takes_no_chunks_gets_a_stream_or_a_put(self, faulty: Faulty, quick: Quick, status: int) -> None:
        registry = faulty(Fault(refusal(status), "PATCH"))
        ladder = UploadStrategy()
        ladder.set_method(registry.host, UploadMethod(CHUNK, MIB), is_size_known=True)
        uploader(quick(ladder=ladder), registry).upload(Source().blob)
        assert is_stored(registry)
        assert ladder.methods_used == {registry.host: "put" if status == 405 else "stream"}


@pytest.fixture
def place(faulty: Faulty, certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Return a function that starts a registry, with TLS where asked for, and gives the host by which it is reached."""

    def start(*faults: Fault, encrypted: bool) -> tuple[CountingRegistry, str]:
        registry = faulty(*faults, tls=certificate if encrypted else None)
        port = registry.host.rpartition(":")[2]
        return registry, f"registry.test:{port}" if encrypted else registry.host

    with names(monkeypatch, registry="203.0.113.5"):
        yield start


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "TLS"])
class TestEarlyAnswers:
    @pytest.mark.parametrize("named", [False, True])
    def test_a_refusal_that_comes_while_it_is_sent_ends_the_sending(
        self, place: Place, quick: Quick, certificate: Certificate, encrypted: bool, named: bool
    ) -> None:
        registry, host = place(Fault(refusal(413), "PATCH"), encrypted=encrypted)
        content = bytes(64 * MIB)
        source = Source(content, replayable=False)
        transport = quick(ca_file=str(certificate.file))
        uploader(transport, host).upload(source.blob if named else source.unnamed)
        # It was no failure of the network, and so little had been read that all of it was still in the window.
        assert is_stored(registry, content)
        assert transport.told == []
        assert source.opened == 1
        assert registry.asked("DELETE") == []

    def test_an_interim_answer_is_no_reason_to_stop(
        self,
        place: Place,
        quick: Quick,
        certificate: Certificate,
        encrypted: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        dispatch = FaultyHandler.dispatch

        def interim(handler: FaultyHandler) -> None:
            handler.wfile.write(b"HTTP/1.1 102 Processing\r\n\r\n")
            dispatch(handler)

        monkeypatch.setattr(FaultyHandler, "dispatch", interim)
        registry, host = place(encrypted=encrypted)
        uploader(quick(ca_file=str(certificate.file)), host).upload(Source().blob)
        assert methods(registry) == ["POST", "PATCH", "PUT"]
        assert registry.accepted == 1
        assert is_stored(registry)

    def test_a_success_before_all_was_sent_is_none(
        self, place: Place, quick: Quick, certificate: Certificate, encrypted: bool
    ) -> None:
        registry, host = place(Fault(Reply(202), "PATCH"), encrypted=encrypted)
        content = bytes(64 * MIB)
        uploader(quick(ca_file=str(certificate.file)), host).upload(Source(content).blob)
        assert is_stored(registry, content)
        assert len(registry.asked("PATCH")) == 2
        assert len(registry.asked("POST")) == 1


class TestRangesOfAnswers:
    def test_that_less_was_taken_is(self, faulty: Faulty, quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
        read = FaultyHandler.read_body

        def little(handler: FaultyHandler, buffer: memoryview) -> int:
            if handler.command == "PATCH" and handler.body.received >= 512 * KIB:
                while read(handler, buffer):
                    pass
                return 0
            return read(handler, buffer[: 64 * KIB])

        monkeypatch.setattr(FaultyHandler, "read_body", little)
        registry = faulty()
        uploader(quick(ladder=UploadStrategy(explicit_method=UploadMethod(CHUNK, MIB))), registry).upload(Source().blob)
        assert is_stored(registry)


class TestJobs:
    def test_what_several_hold_together_is_what_one_pipe_may(self) -> None:
        for jobs in (1, 4, 32):
            ladder = UploadStrategy(jobs=jobs)
            assert ladder.replay_buffer_size(reopenable=False, is_size_known=True) == limits.UPLOAD_MEMORY
            assert ladder.replay_buffer_size(reopenable=True, is_size_known=True) == limits.CHUNK_SIZE
            made = ladder.replay_buffer_size(reopenable=True, is_size_known=False)
            assert limits.CHUNK_SIZE <= made <= max(limits.CHUNK_SIZE, limits.UPLOAD_MEMORY // jobs)


def test_an_answer_refines_what_is_known_of_a_host_but_never_the_table(faulty: Faulty, quick: Quick) -> None:
    registry = faulty(Fault(Header("X-Artifactory-Id", "6d70dcfd"), "POST", times=None))
    transport = quick()
    assert transport.upload_strategy.profile(registry.host) is UNKNOWN_PROFILE
    uploader(transport, registry).upload(Source(b"x").blob)
    assert transport.upload_strategy.profile(registry.host).name == "Artifactory"
    transport.upload_strategy.observe_headers("ghcr.io", lambda name: "Nexus/3" if name == "Server" else None)
    assert transport.upload_strategy.profile("ghcr.io").name == "GitHub Packages"
    assert isinstance(UNKNOWN_PROFILE, RegistryProfile)


@pytest.mark.parametrize("name", ["amazon-ecr", "unknown"])
def test_what_the_user_says_that_a_registry_is_counts_and_not_what_it_looks_like(name: str) -> None:
    ladder = UploadStrategy(configured_profile=lambda host: PROFILES_BY_NAME[name] if host == "quay.io" else None)
    ladder.observe_headers("quay.io", lambda header: "Nexus/3" if header == "Server" else None)
    assert ladder.profile("quay.io") is PROFILES_BY_NAME[name]
    assert ladder.profile("docker.io").name == "Docker Hub"
