"""The HTTP client remembers hosts and tokens, and closes its connections."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from ocistream.errors import (
    CancelledError,
    NetworkError,
    PermanentNetworkError,
)
from ocistream.http.adapter import FixedLengthBody
from ocistream.http.response import Response
from tests.certificates import Certificate
from tests.faulty_auth import Bearer
from tests.faulty_registry import (
    Fault,
    Header,
)
from tests.http_doubles import CountingRegistry, QuickTransport, RawServer, eventually, names

Faulty = Callable[..., CountingRegistry]
Quick = Callable[..., QuickTransport]

PULL = ("repository:app:pull",)
PUSH = ("repository:app:pull,push",)
#: A cheap request that needs a token if the registry has authentication.
TAGS = "/v2/app/tags/list"


def ask(
    transport: QuickTransport, registry: CountingRegistry | RawServer | str, target: str = "/v2/", **options: Any
) -> Response:
    """Send a request to a path or a URL, by default a GET; registries are given by host."""
    endpoint = transport.endpoint(registry if isinstance(registry, str) else registry.host)
    method = options.pop("method", "GET")
    url = target if "://" in target else f"{endpoint.url}{target}"
    return transport.request(endpoint, method, url, **options)


def under_test(registry: CountingRegistry) -> str:
    """Return a name of a registry that does not look like this machine."""
    return f"registry.test:{registry.host.rpartition(':')[2]}"


def statuses(registry: CountingRegistry) -> list[int | None]:
    return [request.status for request in registry.requests]


class TestHostsThatAnsweredBefore:
    """Errors that end a run at its beginning, because they look like the user's mistake, are retried later."""

    @pytest.mark.parametrize("code", [socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_AGAIN])
    def test_a_name_that_does_not_resolve_any_more_is_looked_up_again(
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

    def test_a_host_that_spoke_tls_before_is_tried_again(
        self, faulty: Faulty, quick: Quick, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = faulty(Fault(Header("Connection", "close"), times=None), tls=certificate)
        host = under_test(registry)
        transport = quick(ca_bundle=str(certificate.file))
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
    def test_an_internal_url_from_a_public_registry_is_refused(
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
    def test_a_401_after_a_streamed_body_makes_the_caller_retry(self, faulty: Faulty, quick: Quick) -> None:
        auth = Bearer()
        registry = faulty(auth=auth)
        transport = quick()
        url = "/v2/app/blobs/uploads/"
        ask(transport, registry, url, method="POST", scopes=PUSH, expected=(202,))
        auth.expire()
        body = FixedLengthBody(iter([b"x"]), 1)
        with pytest.raises(NetworkError, match="the token ended"):
            ask(transport, registry, f"{url}x", method="PATCH", body=body, scopes=PUSH)
        # The next request has a fresh token from its first attempt.
        ask(transport, registry, url, method="POST", scopes=PUSH, expected=(202,))
        assert statuses(registry) == [401, 200, 202, 401, 200, 202]

    def test_a_clean_up_request_uses_the_stored_token(self, faulty: Faulty, quick: Quick) -> None:
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


def test_a_closed_client_opens_no_connection(faulty: Faulty, quick: Quick) -> None:
    registry = faulty()
    transport = quick()
    transport.close()
    with pytest.raises(CancelledError):
        ask(transport, registry)
    eventually(lambda: registry.open_connections == 0)
    assert registry.requests == []
