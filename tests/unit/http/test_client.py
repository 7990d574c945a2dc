"""What a client remembers of hosts and tokens, and what ends when it is closed."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from ocistream.errors import (
    CancelledError,
    NetworkError,
    PermanentNetworkError,
)
from ocistream.http.response import Response
from ocistream.http.session import FixedLengthBody
from tests.certificates import Certificate
from tests.faulty_auth import Bearer
from tests.faulty_registry import (
    EndTokens,
    Fault,
    Header,
    redirect,
    too_many_requests,
)
from tests.http_doubles import CountingRegistry, QuickTransport, RawServer, eventually, names

Faulty = Callable[..., CountingRegistry]
Quick = Callable[..., QuickTransport]

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


class TestRetryAfter:
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


class TestBearer:
    def test_a_first_one_that_ends_before_it_is_shown_is_replaced(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(EndTokens(), path="tags", skip=1, before_auth=True), auth=Bearer())
        # There is no such repository, which only who is let in is told.
        assert ask(quick(), registry, TAGS, scopes=PULL, expected=(404,)).status == 404
        assert statuses(registry) == [401, 200, 401, 200, 404]

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
