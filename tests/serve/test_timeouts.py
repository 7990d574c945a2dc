"""Timeouts of the registry for a client in the middle of a request. The scenarios run at the same time."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

from ocistream.serve import AccessLogEntry
from tests.http_push import FIRST, SECOND, begin, closed
from tests.raw_http import Client, Response, connect, read_all
from tests.raw_server import eventually
from tests.serve.served_layout import Served

#: `serve` with a timeout of half a second for the next bytes of a request.
_IMPATIENT: Final = """
import sys
import ocistream.limits
ocistream.limits.CLIENT_IDLE_TIMEOUT = 0.5
from ocistream.cli import main
sys.exit(main(sys.argv[1:]))
"""
_UNWANTED: Final = b"PUT /v2/none HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def refused_and_silent(host: str, over: threading.Event) -> bytes:
    """Send a request that is refused and keep the connection open until `over`; return the answer."""
    with connect(host) as connection:
        connection.sendall(_UNWANTED)
        answer = read_all(connection)
        over.wait(60)
        return answer


def refused_and_sending(host: str) -> str:
    """Send a request that is refused, and bytes without an end; return "closed" when the connection is."""
    with connect(host) as connection:
        connection.sendall(_UNWANTED)
        with contextlib.suppress(ConnectionError):
            while True:
                connection.sendall(bytes(1 << 20))
    return "closed"


def second_request(host: str) -> tuple[Response, int]:
    """Send bytes to an upload that another request writes to; return the answer, and the status of the upload."""
    with Client(host) as ask, connect(host) as first:
        location = begin(ask)
        first.sendall(f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n".encode() + FIRST)
        eventually(lambda: ask("GET", location).headers["Range"] == "0-999")
        refused = ask("PATCH", location, SECOND)
        first.sendall(SECOND)
        assert first.recv(12) == b"HTTP/1.1 202"
        return refused, closed(ask, location)


def test_clients_that_do_not_end_a_request_are_not_waited_for(served: Served, access_log: list[AccessLogEntry]) -> None:
    over = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        silent = pool.submit(refused_and_silent, served.host, over)
        sending = pool.submit(refused_and_sending, served.host)
        second = pool.submit(second_request, served.host)
        # A request is logged after the registry has closed its connection.
        eventually(lambda: [entry.status for entry in list(access_log)].count(404) == 2)
        over.set()
        assert silent.result().startswith(b"HTTP/1.1 404 ")
        assert sending.result() == "closed"
        refused, status = second.result()
    assert (refused.status, refused.codes, refused.headers["Retry-After"]) == (429, ["TOOMANYREQUESTS"], "1")
    assert status == 201


@pytest.fixture
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a `serve` process with short timeouts."""
    serve = ["serve", str(tmp_path_factory.mktemp("served")), "--listen=127.0.0.1:0"]
    argv = [sys.executable, "-P", "-c", _IMPATIENT, *serve]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        yield process.stdout.readline().decode().strip()
        process.terminate()


def test_a_body_that_stops_ends_the_connection_and_is_not_read_as_a_request(impatient: str) -> None:
    with connect(impatient) as connection:
        connection.sendall(b"PUT /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n12345")
        connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_all(connection) == b""
