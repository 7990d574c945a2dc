"""Clients without the password cannot block clients with the password."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from ocistream.serve import AccessLogEntry, BasicAuth, Registry
from tests.certificates import make_certificate
from tests.images import digest_of
from tests.raw_http import Client, connect, flood, read_all
from tests.registry_http import basic
from tests.serve.served_layout import SetLimits, server_tls

RIGHT: Final = basic("ada", "engine of 1843")
WRONG: Final = basic("ada", "engine of 1842")
#: A request with the wrong password, to be sent many times.
REFUSED: Final = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: %b\r\n\r\n" % WRONG["Authorization"].encode()


@pytest.fixture
def log() -> list[AccessLogEntry]:
    return []


@pytest.fixture
def guarded(tmp_path: Path, log: list[AccessLogEntry]) -> Iterator[Registry]:
    with Registry(tmp_path / "served", auth=BasicAuth("ada", "engine of 1843"), log=log.append) as registry:
        yield registry


@pytest.mark.parametrize(
    "request_bytes",
    [
        REFUSED,
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nOrigin: https://page.example\r\n\r\n",
        b"POST /v2/app/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nlayer",
    ],
    ids=["wrong password", "no password", "web page", "body"],
)
def test_unread_refusals_do_not_block_a_client_with_the_password(
    guarded: Registry, set_limits: SetLimits, request_bytes: bytes
) -> None:
    set_limits(MAX_CLIENTS=3)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            flood(stack.enter_context(connect(guarded.host, receive_buffer=4096)), request_bytes)
        with Client(guarded.host) as ask:
            assert ask("GET", "/v2/", headers=RIGHT).status == 200


def test_many_refused_clients_do_not_displace_an_admitted_client(guarded: Registry, set_limits: SetLimits) -> None:
    set_limits(MAX_CLIENTS=3)
    with contextlib.ExitStack() as stack:
        ask = stack.enter_context(Client(guarded.host))
        assert ask("GET", "/v2/", headers=RIGHT).status == 200
        for _ in range(6):
            stranger = stack.enter_context(Client(guarded.host))
            assert stranger("GET", "/v2/", headers=WRONG).status == 401
        assert ask("GET", "/v2/", headers=RIGHT).status == 200


def test_refused_requests_do_not_prolong_a_connection(guarded: Registry, set_limits: SetLimits) -> None:
    set_limits(REQUEST_TIMEOUT=0.5)
    closed = (ConnectionError, http.client.IncompleteRead)
    with Client(guarded.host) as stranger, pytest.raises(closed):
        ask_for_long(stranger)


def ask_for_long(stranger: Client) -> None:
    """Send requests with the wrong password for far longer than a connection may last."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert stranger("GET", "/v2/", headers=WRONG).status == 401


def test_a_wrong_password_after_the_right_one_ends_the_admission(guarded: Registry, set_limits: SetLimits) -> None:
    set_limits(MAX_CLIENTS=1)
    right = REFUSED.replace(WRONG["Authorization"].encode(), RIGHT["Authorization"].encode())
    with connect(guarded.host, receive_buffer=4096) as stranger:
        stranger.sendall(right)
        assert stranger.recv(100).startswith(b"HTTP/1.1 200 ")
        flood(stranger, REFUSED)
        with Client(guarded.host) as ask:
            assert ask("GET", "/v2/", headers=RIGHT).status == 200


def test_a_slow_unwanted_body_does_not_block_a_client_with_the_password(
    guarded: Registry, set_limits: SetLimits
) -> None:
    set_limits(MAX_CLIENTS=1)
    with connect(guarded.host) as stranger:
        stranger.sendall(b"POST /v2/app/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nlay")
        with Client(guarded.host) as ask:
            assert ask("GET", "/v2/", headers=RIGHT).status == 200


def test_an_unfinished_tls_handshake_does_not_block_a_client(tmp_path: Path, set_limits: SetLimits) -> None:
    set_limits(MAX_CLIENTS=1)
    pair = make_certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=str(pair.file))
    gate = BasicAuth("ada", "engine of 1843")
    with Registry(tmp_path / "served", auth=gate, tls=server_tls(pair)) as registry, connect(registry.host) as stranger:
        stranger.sendall(b"\x16\x03\x01\x02")
        ask = http.client.HTTPSConnection(registry.host, context=trusting, timeout=60)
        ask.request("GET", "/v2/", headers=RIGHT)
        assert ask.getresponse().status == 200
        ask.close()


def test_an_admitted_client_that_reads_slowly_keeps_its_place(guarded: Registry, set_limits: SetLimits) -> None:
    content = bytes(8 << 20)
    with Client(guarded.host) as ask:
        target = f"/v2/app/blobs/uploads/?digest={digest_of(content)}"
        assert ask("POST", target, content, RIGHT).status == 201
    set_limits(MAX_CLIENTS=2)
    get = f"GET /v2/app/blobs/{digest_of(content)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    with connect(guarded.host, receive_buffer=4096) as slow:
        slow.sendall(f"{get}Authorization: {RIGHT['Authorization']}\r\n\r\n".encode())
        begun = slow.recv(100)
        set_limits(REQUEST_TIMEOUT=0.05)
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stranger = stack.enter_context(connect(guarded.host))
                with contextlib.suppress(ConnectionError):
                    read_all(stranger)
        assert (begun + read_all(slow)).endswith(content)


def test_a_connection_is_closed_when_no_thread_can_start(
    guarded: Registry, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    start = threading.Thread.start
    failures = [RuntimeError("can't start new thread")]

    def limited(thread: threading.Thread) -> None:
        if failures:
            raise failures.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with connect(guarded.host) as unlucky:
        assert read_all(unlucky) == b""
    with Client(guarded.host) as ask:
        assert ask("GET", "/v2/", headers=RIGHT).status == 200
    assert capfd.readouterr().err == ""
