"""The faults of FaultyRegistry happen as described, and only when requested."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from tests.certificates import Certificate
from tests.faulty_auth import Bearer
from tests.faulty_registry import (
    Drop,
    Fault,
    FaultyRegistry,
    Flip,
    FlipReceived,
    NoContentLength,
    PauseReading,
    Reply,
    Reset,
    StopReading,
    redirect,
    refusal,
    too_many_requests,
)
from tests.images import digest_of
from tests.raw_http import Client, Response, connect, converse, read_all
from tests.registry_http import basic

CONTENT = bytes(range(256)) * 1024
SIZE = len(CONTENT)
DIGEST = digest_of(CONTENT)
BLOB = f"/v2/app/blobs/{DIGEST}"
GET = f"GET {BLOB} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()

Start = Callable[..., FaultyRegistry]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a registry with one blob and the given faults."""
    with contextlib.ExitStack() as stack:

        def run(*faults: Fault, **options: object) -> FaultyRegistry:
            registry = FaultyRegistry(tmp_path / "layout", *faults, **options)  # type: ignore[arg-type]
            blob = registry.layout.blob_path(DIGEST)
            blob.parent.mkdir(exist_ok=True)
            blob.write_bytes(CONTENT)
            return stack.enter_context(registry)

        yield run


def get(registry: FaultyRegistry, target: str = BLOB, **headers: str) -> Response:
    """Send one GET request over a new connection; the keyword `If_Range` is a header."""
    with Client(registry.host) as ask:
        return ask("GET", target, headers={name.replace("_", "-"): value for name, value in headers.items()})


class TestWhen:
    def test_a_fault_affects_matching_requests_a_given_number_of_times(self, start: Start) -> None:
        registry = start(Fault(refusal(503), method="GET|HEAD", path=r"/blobs/sha256:", skip=1, times=2))
        assert [get(registry).status for _ in range(5)] == [200, 503, 503, 200, 200]
        assert get(registry, "/v2/").status == 200
        assert [request.status for request in registry.asked(path="blobs")] == [200, 503, 503, 200, 200]
        assert [bool(request.fault) for request in registry.requests] == [False, True, True, False, False, False]

    def test_a_fault_may_affect_all_requests(self, start: Start) -> None:
        registry = start(Fault(refusal(500), times=None))
        assert {get(registry).status for _ in range(5)} == {500}

    def test_a_fault_may_affect_only_large_bodies(self, start: Start) -> None:
        registry = start(Fault(refusal(413), method="PATCH", larger_than=100, times=None))
        with Client(registry.host) as ask:
            location = ask("POST", "/v2/app/blobs/uploads/").headers["Location"]
            statuses = [ask("PATCH", location, b"x" * size).status for size in (100, 101, 10)]
        assert statuses == [202, 413, 202]

    def test_the_first_of_several_faults_applies(self, start: Start) -> None:
        registry = start(Fault(refusal(500)), Fault(refusal(502)))
        registry.faults.append(Fault(refusal(503)))
        assert [get(registry).status for _ in range(4)] == [500, 502, 503, 200]


class TestRecord:
    def test_every_request_is_recorded_with_the_bytes_read(self, start: Start) -> None:
        registry = start(Fault(StopReading(1000), method="PATCH"))
        with Client(registry.host) as ask:
            location = ask("POST", "/v2/app/blobs/uploads/?x=1&x=2", headers={"X-Test": "yes"}).headers["Location"]
            with pytest.raises(ConnectionError):
                ask("PATCH", location, CONTENT)
        post, patch = registry.requests
        assert (post.method, post.path, post.status) == ("POST", "/v2/app/blobs/uploads/", 202)
        assert post.query == {"x": ["1", "2"]}
        assert post.headers["x-test"] == "yes"
        assert (patch.method, patch.received, patch.status) == ("PATCH", 1000, None)
        assert registry.asked("POST") == [post]
        assert get(registry, location).headers["Range"] == "0-999"


class TestConnections:
    def test_reset_before_the_response(self, start: Start) -> None:
        with pytest.raises(ConnectionResetError):
            get(start(Fault(Reset())))

    def test_reset_in_the_response(self, start: Start) -> None:
        registry = start(Fault(Reset(after=100_000)))
        received = bytearray()
        with connect(registry.host) as connection:
            connection.sendall(GET)
            with pytest.raises(ConnectionResetError):
                read_all(connection, received)
        assert received.partition(b"\r\n\r\n")[2] == CONTENT[:100_000]

    def test_pause_reading_until_the_client_reconnects(self, start: Start) -> None:
        registry = start(Fault(PauseReading(1000), method="PATCH"))
        with Client(registry.host) as ask, connect(registry.host) as connection:
            location = ask("POST", "/v2/app/blobs/uploads/").headers["Location"]
            connection.sendall(
                f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n".encode() + bytes(2000)
            )
            while not registry.asked("PATCH") or registry.asked("PATCH")[0].received < 1000:
                time.sleep(0.01)
            # The registry closes the paused connection and frees the session.
            assert ask("PATCH", location, bytes(1000), {"Content-Range": "1000-1999"}).status == 202
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        assert [request.received for request in registry.asked("PATCH")] == [1000, 1000]

    @pytest.mark.parametrize("at", [0, 1000, SIZE - 1])
    def test_flip_received(self, start: Start, at: int) -> None:
        registry = start(Fault(FlipReceived(at), method="POST"))
        flipped = bytearray(CONTENT)
        flipped[at] ^= 1
        with Client(registry.host) as ask:
            target = "/v2/app/blobs/uploads/?digest="
            assert ask("POST", f"{target}{digest_of(CONTENT)}", CONTENT).codes == ["DIGEST_INVALID"]
            registry.faults = [Fault(FlipReceived(at), method="POST")]
            assert ask("POST", f"{target}{digest_of(bytes(flipped))}", CONTENT).status == 201


class TestAnswers:
    @pytest.mark.parametrize("status", [401, 403, 404, 408, 413, 500, 502, 503])
    def test_refusal(self, start: Start, status: int) -> None:
        answer = get(start(Fault(refusal(status, "DENIED", "not today", X_Reason="none"))))
        assert (answer.status, answer.codes, answer.headers["X-Reason"]) == (status, ["DENIED"], "none")

    def test_reply(self, start: Start) -> None:
        answer = get(start(Fault(Reply(203, {"A": "b"}, b"hello"))))
        assert (answer.status, answer.headers["A"], answer.body) == (203, "b", b"hello")

    def test_too_many_requests(self, start: Start) -> None:
        registry = start(
            Fault(too_many_requests()), Fault(too_many_requests(7)), Fault(too_many_requests(7, as_date=True))
        )
        plain, seconds, date = [get(registry) for _ in range(3)]
        assert {plain.status, seconds.status, date.status} == {429}
        assert plain.headers["Retry-After"] is None
        assert seconds.headers["Retry-After"] == "7"
        assert abs(parsedate_to_datetime(date.headers["Retry-After"]).timestamp() - time.time()) < 60

    def test_redirect(self, start: Start) -> None:
        answer = get(start(Fault(redirect("https://elsewhere.example/x"))))
        assert (answer.status, answer.headers["Location"]) == (307, "https://elsewhere.example/x")

    def test_flip_beyond_the_end_changes_nothing(self, start: Start, capfd: pytest.CaptureFixture[str]) -> None:
        registry = start(Fault(Flip(SIZE)))
        assert get(registry).body == CONTENT
        registry.stop()
        assert capfd.readouterr().err == ""

    def test_no_content_length(self, start: Start) -> None:
        registry = start(Fault(NoContentLength(), times=2))
        answer = get(registry)
        assert (answer.body, answer.headers["Content-Length"]) == (CONTENT, None)
        head = converse(registry.host, f"HEAD {BLOB} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b"Content-Length" not in head

    def test_a_minimum_chunk_length(self, start: Start) -> None:
        with Client(start(chunk_min_length=4096).host) as ask:
            assert ask("POST", "/v2/app/blobs/uploads/").headers["OCI-Chunk-Min-Length"] == "4096"


class TestBearer:
    def token(self, registry: FaultyRegistry, scope: str, **headers: str) -> str:
        answer = get(registry, f"/token?service=registry.test&scope={scope}", **headers)
        assert answer.status == 200
        return str(answer.json()["token"])

    def test_a_challenge_leads_to_a_valid_token(self, start: Start) -> None:
        auth = Bearer()
        registry = start(Fault(refusal(500), path="blobs"), auth=auth)
        refused = get(registry)
        assert refused.status == 401
        assert refused.headers["WWW-Authenticate"] == (
            f'Bearer realm="{registry.url}/token",service="registry.test",scope="repository:app:pull"'
        )
        token = self.token(registry, "repository:app:pull")
        assert get(registry, Authorization=f"Bearer {token}").status == 500
        assert get(registry, Authorization=f"Bearer {token}").body == CONTENT
        assert get(registry, "/v2/other/tags/list", Authorization=f"Bearer {token}").status == 401
        assert [(r.method, r.user, r.scopes) for r in auth.requests] == [("GET", None, ("repository:app:pull",))]

    def test_users_have_more_rights_than_anonymous_clients(self, start: Start) -> None:
        registry = start(auth=Bearer({"ada": "lovelace"}, anonymous=("pull",)))
        scope = "repository:app:pull,push"
        statuses = []
        for headers in ({}, basic("ada", "lovelace")):
            bearer = {"Authorization": f"Bearer {self.token(registry, scope, **headers)}"}
            with Client(registry.host) as ask:
                statuses.append(ask("POST", "/v2/app/blobs/uploads/", headers=bearer).status)
                statuses.append(ask("DELETE", BLOB, headers=bearer).status)
        assert statuses == [401, 401, 202, 401]
        assert get(registry, "/token", **basic("ada", "wrong")).status == 401

    def test_tokens_expire_by_use_by_time_and_on_request(self, start: Start) -> None:
        auth = Bearer(uses=2)
        registry = start(auth=auth)

        def statuses(token: str) -> list[int]:
            return [get(registry, Authorization=f"Bearer {token}").status for _ in range(3)]

        assert statuses(self.token(registry, "repository:app:pull")) == [200, 200, 401]
        auth.lifetime, auth.uses = 0.0, None
        assert statuses(self.token(registry, "repository:app:pull")) == [401, 401, 401]
        auth.lifetime = 300.0
        token = self.token(registry, "repository:app:pull")
        auth.expire()
        assert statuses(token) == [401, 401, 401]

    def test_tokens_by_post_if_the_server_supports_it(self, start: Start) -> None:
        auth = Bearer({"ada": "lovelace"}, field="access_token", expires_in=None)
        registry = start(auth=auth)
        form = "grant_type=password&username=ada&password=lovelace&service=s&scope=repository:app:pull"
        with Client(registry.host) as ask:
            answer = ask("POST", "/token", form.encode())
            assert (answer.status, list(answer.json())) == (200, ["access_token"])
            auth.oauth2 = False
            assert ask("POST", "/token", form.encode()).status == 404
        assert [(r.user, r.service, r.status) for r in auth.requests] == [("ada", "s", 200), (None, "s", 404)]

    def test_the_challenge_may_be_omitted_or_name_another_server(self, start: Start) -> None:
        auth = Bearer(challenge=False, scope=False, realm="https://auth.example/token")
        registry = start(auth=auth)
        assert get(registry).headers["WWW-Authenticate"] is None
        expected = 'Bearer realm="https://auth.example/token",service="registry.test"'
        assert get(registry, "/v2/").headers["WWW-Authenticate"] == expected

    def test_a_mount_without_rights_on_its_source_is_an_upload(self, start: Start) -> None:
        registry = start(auth=Bearer())
        target = f"/v2/app/blobs/uploads/?mount={DIGEST}&from=other"
        scope = "repository:app:pull,push"
        answers = []
        for scopes in (scope, f"{scope}&scope=repository:other:pull"):
            with Client(registry.host) as ask:
                bearer = {"Authorization": f"Bearer {self.token(registry, scopes)}"}
                answers.append(ask("POST", target, headers=bearer).status)
        assert answers == [202, 201]

    def test_a_fault_may_precede_authorization(self, start: Start) -> None:
        registry = start(Fault(refusal(503), before_auth=True), Fault(refusal(502)), auth=Bearer())
        assert [get(registry).status for _ in range(2)] == [503, 401]


class TestTls:
    @pytest.mark.parametrize("after", [0, 1000])
    def test_a_drop_closes_tls_properly(self, start: Start, certificate: Certificate, after: int) -> None:
        registry = start(Fault(Drop(after)), tls=certificate)
        context = ssl.create_default_context(cafile=certificate.file)
        connection = http.client.HTTPSConnection(registry.host, context=context, timeout=60)
        connection.request("GET", BLOB)
        with pytest.raises(http.client.IncompleteRead) as caught:
            connection.getresponse().read()
        assert len(caught.value.partial) == after
        connection.close()

    def test_a_client_without_tls_is_disconnected(
        self, start: Start, certificate: Certificate, capfd: pytest.CaptureFixture[str]
    ) -> None:
        registry = start(tls=certificate)
        with connect(registry.host) as connection, contextlib.suppress(ConnectionError, socket.timeout):
            connection.sendall(GET)
            read_all(connection)
        registry.stop()
        assert capfd.readouterr().err == ""
