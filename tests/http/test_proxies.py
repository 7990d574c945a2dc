"""Proxies: what a proxy receives, and what it must not receive."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Callable
from typing import Final

import pytest

from tests.certificates import Certificate
from tests.faulty_auth import Basic
from tests.faulty_registry import FaultyRegistry
from tests.http.fixture_types import ONCE, Run
from tests.http.raw_registry import RawRegistry
from tests.raw_server import Heard, RawServer, unused_port
from tests.registry_http import basic

HINT: Final = "check the proxy in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, or exclude this host with NO_PROXY"


def test_plain_http_goes_through_the_proxy_with_its_password(
    raw: RawRegistry, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://alice:pw@{raw.host}")
    assert run("inspect", "registry.test/app:1", *ONCE).code == 0
    request = raw.requests[0]
    assert (request.target, request.headers["host"]) == (
        "http://registry.test/v2/app/manifests/1",
        "registry.test",
    )
    password = base64.b64encode(b"alice:pw").decode()
    assert {request.headers["proxy-authorization"] for request in raw.requests} == {f"Basic {password}"}


def test_https_goes_through_a_tunnel_without_showing_the_proxy_the_password(
    start: Callable[..., FaultyRegistry], run: Run, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = start(tls=certificate, auth=Basic("ada", "engine"))
    monkeypatch.setenv("OCISTREAM_USERNAME", "ada")
    monkeypatch.setenv("OCISTREAM_PASSWORD", "engine")
    host, _, port = registry.host.rpartition(":")

    def tunnel(connection: socket.socket, _: Heard) -> None:
        with socket.create_connection((host, int(port))) as onward:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=copy, args=(onward, connection))
            back.start()
            copy(connection, onward)
            back.join()

    with RawServer(tunnel) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        # The password is correct, and the registry has no image.
        assert run("inspect", "registry.test/app:1", f"--ca-cert={certificate.file}", "--retries=0").code == 4
    assert {(heard.method, heard.target) for heard in proxy.heard} == {("CONNECT", "registry.test:443")}
    assert {heard.headers["Authorization"] for heard in proxy.heard} == {None}
    assert registry.requests[-1].headers["Authorization"] == basic("ada", "engine")["Authorization"]


def copy(source: socket.socket, target: socket.socket) -> None:
    """Copy bytes from one connection to the other until the end."""
    try:
        while piece := source.recv(1 << 16):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


@pytest.mark.parametrize("user", ["user:secret@", ""])
def test_the_hint_for_an_unreachable_proxy_names_its_variables(
    run: Run, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{user}127.0.0.1:{unused_port()}")
    result = run("inspect", "registry.test/app:1", *ONCE)
    assert result.code == 7
    lines = result.err.splitlines()
    assert lines[0].endswith(": connection refused")
    assert HINT in lines[1]
    assert "secret" not in result.err


@pytest.mark.parametrize("proxy", ["http://user:secret@[::1", "http://user:secret@ho st:1", "nonsense://secret@h:1"])
def test_a_malformed_proxy_is_refused_without_its_password(
    run: Run, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    # There must be no retry, although the default allows several.
    result = run("inspect", "registry.test/app:1", "--plain-http")
    assert result.code in {2, 7, 8}
    assert "secret" not in result.err
    assert "retrying" not in result.err
