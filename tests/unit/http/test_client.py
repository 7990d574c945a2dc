"""Retries, redirects and authorization, against registries over real sockets that fail as they are told."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from ocistream.auth.credentials import Credential
from ocistream.errors import (
    AuthenticationError,
    CancelledError,
    NetworkError,
    NotFoundError,
    OcistreamError,
    PermanentNetworkError,
    RegistryError,
)
from ocistream.http.response import Response
from ocistream.http.session import FixedLengthBody
from ocistream.http.settings import RetryPolicy
from tests.certificates import Certificate
from tests.faulty_auth import Basic, Bearer
from tests.faulty_registry import (
    Action,
    EndTokens,
    Fault,
    HangUp,
    Header,
    Reset,
    Stall,
    redirect,
    refusal,
    too_many_requests,
)
from tests.http_doubles import CountingRegistry, QuickTransport, RawServer, eventually, names, unused_port
from tests.registry_http import basic
from tests.token_server import TokenServer, User

Faulty = Callable[..., CountingRegistry]
Quick = Callable[..., QuickTransport]

ALICE = Credential("alice", "s3cret", source="the test")
PULL = ("repository:app:pull",)
PUSH = ("repository:app:pull,push",)
#: What costs nothing to serve, and needs a token where there are any.
TAGS = "/v2/app/tags/list"


def ask(
    transport: QuickTransport, registry: CountingRegistry | RawServer | str, target: str = "/v2/", **options: Any
) -> Response:
    """Send a GET, or another `method`, to a path or a URL, and drain the answer; the registry's name is its host."""
    answer = send(transport, registry, target, **options)
    answer.drain()
    return answer


def send(
    transport: QuickTransport, registry: CountingRegistry | RawServer | str, target: str = "/v2/", **options: Any
) -> Response:
    """Send a request as `ask` does, and leave the answer's body to the test."""
    endpoint = transport.endpoint(registry if isinstance(registry, str) else registry.host)
    method = options.pop("method", "GET")
    url = target if "://" in target else f"{endpoint.url}{target}"
    return transport.request(endpoint, method, url, **options)


def under_test(registry: CountingRegistry) -> str:
    """Return the name of a registry under which it is, as far as we know, not on this machine."""
    return f"registry.test:{registry.host.rpartition(':')[2]}"


def statuses(registry: CountingRegistry) -> list[int | None]:
    return [request.status for request in registry.requests]


class TestRetries:
    @pytest.mark.parametrize(
        ("failure", "kind"),
        [
            (HangUp(), NetworkError),
            (Reset(), NetworkError),
            (refusal(429), RegistryError),
            (refusal(503), RegistryError),
        ],
    )
    def test_the_number_of_tries_is_bounded_and_the_last_failure_is_told(
        self, faulty: Faulty, quick: Quick, failure: Action, kind: type[OcistreamError]
    ) -> None:
        registry = faulty(Fault(failure, times=None))
        with pytest.raises(kind) as caught:
            ask(quick(), registry)
        assert type(caught.value) is kind
        assert caught.value.exit_code == 7
        assert len(registry.requests) == 4

    def test_a_refused_connection_is_tried_again(self, quick: Quick) -> None:
        transport = quick()
        port = unused_port()
        with pytest.raises(NetworkError, match="connection refused"):
            ask(transport, f"127.0.0.1:{port}")
        assert len(transport.waits) == 3

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 412, 413, 416, 418, 501, 505])
    def test_what_will_not_pass_is_not_tried_again(self, faulty: Faulty, quick: Quick, status: int) -> None:
        registry = faulty(Fault(refusal(status, "CODE", "said"), times=None))
        transport = quick()
        with pytest.raises(OcistreamError, match="401" if status == 401 else f"{status} CODE: said|does not say how"):
            ask(transport, registry)
        assert len(registry.requests) == 1
        assert transport.waits == []

    def test_a_final_failure_is_not_tried_again(
        self, faulty: Faulty, quick: Quick, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = faulty(tls=certificate)
        transport = quick()
        with names(monkeypatch, registry="203.0.113.5"), pytest.raises(PermanentNetworkError, match="not trusted"):
            ask(transport, under_test(registry))
        assert transport.waits == []

    def test_a_stall_is_tried_again(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(Stall()))
        assert ask(quick(stall_timeout=0.5), registry).status == 200
        registry.release()

    def test_each_retry_is_told_without_the_query(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(refusal(503)), Fault(HangUp()))
        transport = quick()
        ask(transport, registry, "/v2/?sig=secret")
        refused, broken = transport.told
        assert (refused.url, refused.reason) == (f"{registry.url}/v2/?...", "answered 503")
        assert (broken.url, broken.reason) == (
            "",
            f"GET {registry.url}/v2/?...: Remote end closed connection without response",
        )
        assert transport.waits == [refused.wait, broken.wait]

    def test_a_refusal_whose_body_breaks_off_is_a_refusal_all_the_same(self, quick: Quick) -> None:
        head = b"HTTP/1.1 %s\r\nContent-Length: 100\r\n\r\nshort"
        with RawServer(head % b"503 No", head % b"404 No") as server:
            transport = quick()
            with pytest.raises(NotFoundError):
                ask(transport, server)
            assert len(server.heard) == 2

    def test_the_connection_is_used_again_after_a_refusal(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(refusal(503), times=3))
        ask(quick(), registry)
        assert len(registry.requests) == 4
        assert registry.accepted == 1

    def test_a_body_that_was_begun_is_not_sent_again(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(refusal(503), "PATCH", times=None))
        transport = quick()
        with pytest.raises(RegistryError, match="503"):
            ask(transport, registry, method="PATCH", body=FixedLengthBody(iter([b"x"]), 1))
        registry.faults = [Fault(HangUp(), "PATCH", times=None)]
        with pytest.raises(NetworkError):
            ask(transport, registry, method="PATCH", body=FixedLengthBody(iter([b"x"]), 1))
        assert len(registry.requests) == 2

    def test_a_body_that_was_not_begun_is(self, quick: Quick) -> None:
        port = unused_port()
        body = FixedLengthBody(iter([b"x"]), 1)
        transport = quick()
        with pytest.raises(NetworkError):
            ask(transport, f"127.0.0.1:{port}", method="PATCH", body=body)
        assert len(transport.waits) == 3
        assert not body.is_started

    def test_several_requests_of_one_work_share_its_tries(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(refusal(503), times=3))
        transport = quick()
        tries = transport.start_retries()
        assert ask(transport, registry, retries=tries).status == 200
        registry.faults = [Fault(refusal(503), times=1)]
        with pytest.raises(RegistryError):
            ask(transport, registry, retries=tries)


class TestRetryAfter:
    @pytest.mark.parametrize("value", ["soon", "-1", "\xb2"])
    def test_one_that_makes_no_sense_is_overlooked(self, faulty: Faulty, quick: Quick, value: str) -> None:
        registry = faulty(Fault(refusal(429, Retry_After=value)))
        transport = quick()
        ask(transport, registry)
        assert transport.waits[0] < 1.0

    def test_429_holds_all_requests_to_that_host_back_and_no_others(self, faulty: Faulty, quick: Quick) -> None:
        registry, other = faulty(Fault(too_many_requests(100))), faulty()
        transport = quick()
        ask(transport, registry)
        # The wait after the answer, then what was left of it: nothing was really waited.
        assert len(transport.waits) == 2
        transport.waits.clear()
        ask(transport, other)
        assert transport.waits == []
        ask(transport, registry)
        assert transport.waits == [pytest.approx(100, abs=30)]

    def test_503_holds_nobody_else_back(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(refusal(503, Retry_After="100")))
        transport = quick()
        ask(transport, registry)
        ask(transport, registry)
        assert len(transport.waits) == 1

    def test_the_host_is_that_of_the_answer(self, faulty: Faulty, quick: Quick) -> None:
        storage = faulty(Fault(too_many_requests(100)))
        registry = faulty(Fault(redirect(f"{storage.url}/v2/"), path="tags", times=None))
        transport = quick()
        ask(transport, registry, TAGS)
        transport.waits.clear()
        ask(transport, registry)
        assert transport.waits == []
        ask(transport, registry, TAGS)
        assert len(transport.waits) == 1

    def test_a_hold_back_that_is_over_holds_nobody_back(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(too_many_requests()))
        transport = quick()
        ask(transport, registry)
        transport.waits.clear()
        time.sleep(0.01)
        ask(transport, registry)
        assert transport.waits == []


class TestCancelling:
    @pytest.mark.parametrize("failure", [HangUp(), too_many_requests(200), refusal(503, Retry_After="200")])
    def test_a_wait_ends_at_once(self, faulty: Faulty, failure: Action) -> None:
        registry = faulty(Fault(failure, times=None))
        with Sleeping(patience=RetryPolicy(attempts=2, backoff=200.0, backoff_limit=200.0)) as transport:
            transport.cancel_when_it_sleeps()
            with pytest.raises(CancelledError):
                ask(transport, registry)
        assert len(registry.requests) == 1

    def test_a_hold_back_ends_at_once(self, faulty: Faulty) -> None:
        registry = faulty()
        with Sleeping() as transport:
            transport.pause_host(registry.url, 200.0)
            transport.cancel_when_it_sleeps()
            with pytest.raises(CancelledError):
                ask(transport, registry)
        assert registry.requests == []

    def test_nothing_is_sent_after_it_but_what_cleans_up(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        cancelled = threading.Event()
        transport = quick(cancelled=cancelled)
        cancelled.set()
        with pytest.raises(CancelledError):
            ask(transport, registry)
        transport.request_once(transport.endpoint(registry.host), "DELETE", f"{registry.url}/v2/app/blobs/uploads/x")
        assert [request.method for request in registry.requests] == ["DELETE"]


class Sleeping(QuickTransport):
    """A transport that does sleep, and says so."""

    def __init__(self, **options: Any) -> None:
        self.sleeping = threading.Event()
        super().__init__(**options)

    def wait(self, seconds: float) -> None:
        self.sleeping.set()
        super(QuickTransport, self).wait(seconds)

    def cancel_when_it_sleeps(self) -> None:
        def cancel() -> None:
            self.sleeping.wait()
            self.cancelled.set()

        threading.Thread(target=cancel).start()


class TestWhoHasAnsweredBefore:
    """What would end a run at its beginning, since it looks like a mistake of the user's, passes later on."""

    @pytest.mark.parametrize("code", [socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_AGAIN])
    def test_a_name_that_is_gone_is_looked_up_again(
        self, faulty: Faulty, quick: Quick, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        registry = faulty(Fault(Header("Connection", "close"), times=None))
        real, failing = socket.getaddrinfo, iter([True, True])
        transport = quick()

        def fail(*args: Any, **options: Any) -> Any:
            if next(failing, False):
                raise socket.gaierror(code, "Name or service not known")
            return real(*args, **options)

        ask(transport, registry)
        monkeypatch.setattr("socket.getaddrinfo", fail)
        assert ask(transport, registry).status == 200
        assert len(transport.waits) == 2

    def test_one_that_spoke_tls_is_asked_again_after_it_has_not(
        self, faulty: Faulty, quick: Quick, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = faulty(Fault(Header("Connection", "close"), times=None), tls=certificate)
        host = under_test(registry)
        transport = quick(ca_file=str(certificate.file))
        real, others = socket.getaddrinfo, iter([True])
        with RawServer(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n") as balancer:

            def resolve(_: str, port: Any, *args: Any, **options: Any) -> Any:
                if port is not None and next(others, False):
                    port = balancer.host.rpartition(":")[2]
                return real("127.0.0.1", port, *args, **options)

            monkeypatch.setattr("socket.getaddrinfo", resolve)
            with pytest.raises(PermanentNetworkError, match="the server does not speak TLS"):
                ask(transport, host)
            ask(transport, host)
            others = iter([True])
            assert ask(transport, host).status == 200
        assert len(transport.waits) == 1


class TestOrigins:
    @pytest.mark.parametrize(
        ("registry", "plain_http", "url"),
        [
            ("docker.io", False, "https://registry-1.docker.io"),
            ("registry.example", False, "https://registry.example"),
            ("registry.example:5000", True, "http://registry.example:5000"),
            ("localhost:5000", False, "http://localhost:5000"),
            ("[::1]:5000", False, "http://[::1]:5000"),
        ],
    )
    def test_a_registry_has_its_url(self, quick: Quick, registry: str, plain_http: bool, url: str) -> None:
        transport = quick(plain_http=plain_http)
        assert transport.endpoint(registry).url == url
        assert transport.endpoint(registry) is transport.endpoint(registry)

    def test_a_url_of_another_origin_gets_no_authorization(self, faulty: Faulty, quick: Quick) -> None:
        registry, other = faulty(auth=Basic("alice", "s3cret")), faulty()
        transport = quick(credential=ALICE)
        ask(transport, registry)
        ask(transport, registry, f"{other.url}/v2/")
        transport.request_once(transport.endpoint(registry.host), "DELETE", f"{other.url}/v2/")
        assert [request.headers["Authorization"] for request in other.requests] == [None, None]

    def test_a_url_that_leads_inward_from_a_public_registry_is_refused(
        self, faulty: Faulty, quick: Quick, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inner = faulty()
        transport = quick()
        with names(monkeypatch, registry="203.0.113.5"):
            for url in (f"{inner.url}/v2/", f"https://{inner.host}/v2/"):
                with pytest.raises(PermanentNetworkError):
                    ask(transport, "registry.test", url)
                with pytest.raises(PermanentNetworkError):
                    transport.request_once(transport.endpoint("registry.test"), "DELETE", url)
        assert inner.requests == []


class TestBasic:
    def test_it_is_shown_when_it_is_asked_for_and_from_then_on(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(auth=Basic("alice", "s3cret"))
        transport = quick(credential=ALICE)
        ask(transport, registry)
        ask(transport, registry, TAGS, expected=(404,))
        expected = basic("alice", "s3cret")["Authorization"]
        assert [request.headers["Authorization"] for request in registry.requests] == [None, expected, expected]


class TestBearer:
    @pytest.mark.parametrize("credential", [None, ALICE])
    def test_one_token_serves_many_requests(self, faulty: Faulty, quick: Quick, credential: Credential | None) -> None:
        auth = Bearer(users={"alice": "s3cret"}, anonymous=("pull",))
        registry = faulty(auth=auth)
        transport = quick(credential=credential)
        for _ in range(3):
            ask(transport, registry, TAGS, scopes=PULL, expected=(404,))
        assert [request.user for request in auth.requests] == [credential and credential.username]
        assert auth.requests[0].scopes == PULL
        assert statuses(registry) == [401, 200, 404, 404, 404]

    def test_a_token_for_pushing_serves_for_pulling_and_not_the_other_way_round(
        self, faulty: Faulty, quick: Quick
    ) -> None:
        auth = Bearer(users={"alice": "s3cret"}, anonymous=())
        registry = faulty(auth=auth)
        transport = quick(credential=ALICE)
        for scopes in (PULL, PUSH, PULL, PUSH):
            ask(transport, registry, TAGS, scopes=scopes, expected=(404,))
        assert [request.scopes for request in auth.requests] == [PULL, PUSH]

    def test_one_that_is_refused_is_replaced_once(self, faulty: Faulty, quick: Quick) -> None:
        auth = Bearer()
        registry = faulty(auth=auth)
        transport = quick()
        ask(transport, registry, TAGS, scopes=PULL, expected=(404,))
        auth.expire()
        ask(transport, registry, TAGS, scopes=PULL, expected=(404,))
        assert statuses(registry) == [401, 200, 404, 401, 200, 404]

    def test_a_first_one_that_ends_before_it_is_shown_is_replaced(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(EndTokens(), path="tags", skip=1, before_auth=True), auth=Bearer())
        # There is no such repository, which only who is let in is told.
        assert ask(quick(), registry, TAGS, scopes=PULL, expected=(404,)).status == 404
        assert statuses(registry) == [401, 200, 401, 200, 404]

    def test_a_small_body_is_sent_again_with_the_fresh_token(self, faulty: Faulty, quick: Quick) -> None:
        auth = Bearer()
        registry = faulty(auth=auth)
        target = "/v2/app/blobs/uploads/"
        ask(quick(), registry, target, method="POST", body=b"x", scopes=PUSH, expected=(202,))
        assert [request.headers["Content-Length"] for request in registry.asked("POST")] == ["1", "1"]

    def test_a_large_body_meets_no_401_since_the_token_is_had_before_it(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(auth=Bearer())
        transport = quick()
        url = "/v2/app/blobs/uploads/"
        location = ask(transport, registry, url, method="POST", scopes=PUSH, expected=(202,)).header("Location")
        body = FixedLengthBody(iter([b"x"]), 1)
        ask(transport, registry, str(location), method="PATCH", body=body, scopes=PUSH, expected=(202,))

    def test_a_401_after_a_large_body_is_no_denial_but_a_reason_to_begin_again(
        self, faulty: Faulty, quick: Quick
    ) -> None:
        auth = Bearer()
        registry = faulty(auth=auth)
        transport = quick()
        url = "/v2/app/blobs/uploads/"
        ask(transport, registry, url, method="POST", scopes=PUSH, expected=(202,))
        auth.expire()
        body = FixedLengthBody(iter([b"x"]), 1)
        with pytest.raises(NetworkError, match="the token ended"):
            ask(transport, registry, f"{url}x", method="PATCH", body=body, scopes=PUSH)
        # The next try has a fresh token from the beginning.
        ask(transport, registry, url, method="POST", scopes=PUSH, expected=(202,))
        assert statuses(registry) == [401, 200, 202, 401, 200, 202]

    def test_cleaning_up_shows_the_token_that_there_is(self, faulty: Faulty, quick: Quick) -> None:
        auth = Bearer()
        registry = faulty(auth=auth)
        transport = quick()
        endpoint = transport.endpoint(registry.host)
        url = f"{registry.url}/v2/app/blobs/uploads/x"
        transport.request_once(endpoint, "DELETE", url, scopes=PUSH)
        assert statuses(registry) == [401]
        ask(transport, registry, TAGS, scopes=PUSH, expected=(404,))
        transport.request_once(endpoint, "DELETE", url, scopes=PUSH)
        assert registry.requests[-1].headers["Authorization"].startswith("Bearer ")


class TestTokenServers:
    def test_a_real_one_on_another_port_gets_the_credential_and_its_token_is_shown_to_the_registry_only(
        self, faulty: Faulty, quick: Quick, start_token_server: Callable[..., TokenServer]
    ) -> None:
        server = start_token_server(users={"alice": User("s3cret")})
        registry = faulty(auth=Bearer(realm=server.realm))
        with pytest.raises(AuthenticationError):
            # This registry does not know the tokens of that server: what is shown is what counts.
            ask(quick(credential=ALICE), registry, TAGS, scopes=PULL)
        assert [(request.user, request.scopes) for request in server.requests] == [("alice", PULL)] * 2
        first, second, _ = registry.requests
        assert first.headers["Authorization"] is None
        assert second.headers["Authorization"].count(".") == 2

    def test_a_redirect_of_it_elsewhere_gets_no_password(self, faulty: Faulty, quick: Quick) -> None:
        elsewhere = faulty(auth=Bearer())
        registry = faulty(Fault(redirect(f"{elsewhere.url}/token"), path="/token"), auth=Bearer())
        with pytest.raises(AuthenticationError):
            ask(quick(credential=ALICE), registry, TAGS, scopes=PULL)
        assert registry.asked(path="/token")[0].headers["Authorization"].startswith("Basic ")
        assert [request.headers["Authorization"] for request in elsewhere.requests] == [None]

    def test_an_identity_token_is_not_carried_along_by_a_redirect(self, faulty: Faulty, quick: Quick) -> None:
        elsewhere = faulty(auth=Bearer())
        registry = faulty(Fault(redirect(f"{elsewhere.url}/token"), "POST", "/token"), auth=Bearer())
        identity = Credential("<token>", "", "identity-of-alice", source="the test")
        with pytest.raises(PermanentNetworkError, match="redirected to another host"):
            ask(quick(credential=identity), registry, TAGS, scopes=PULL)
        assert len(registry.asked("POST", "/token")) == 1
        assert elsewhere.requests == []


def test_closing_ends_the_connections(faulty: Faulty, quick: Quick) -> None:
    registry = faulty()
    transport = quick()
    ask(transport, registry)
    assert registry.open_connections == 1
    transport.close()
    eventually(lambda: registry.open_connections == 0)


def test_a_connection_that_is_busy_while_the_client_is_closed_ends_with_its_response(
    faulty: Faulty, quick: Quick
) -> None:
    registry = faulty()
    transport = quick()
    answer = send(transport, registry)
    transport.close()
    assert answer.read(1 << 20) is not None
    eventually(lambda: registry.open_connections == 0)


def test_a_closed_client_opens_no_connection(faulty: Faulty, quick: Quick) -> None:
    registry = faulty()
    transport = quick()
    transport.close()
    with pytest.raises(CancelledError):
        ask(transport, registry)
    eventually(lambda: registry.open_connections == 0)
    assert registry.requests == []
