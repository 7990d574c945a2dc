"""Many clients at once: idle connections are closed or replaced, and there are enough file descriptors."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from ocistream import limits
from ocistream.serve.endpoints import RegistryHandler
from tests.certificates import make_certificate
from tests.http_push import CONTENT, FIRST, SECOND, begin, closed
from tests.raw_http import Client, connect, read_all
from tests.raw_server import eventually
from tests.serve.served_layout import Served, SetLimits, server_tls, soft_limit

REQUEST = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def is_cut(host: str, *parts: bytes) -> bool:
    """Send an incomplete request and wait until the server closes the connection."""
    with connect(host) as connection:
        for part in parts:
            connection.sendall(part)
        with contextlib.suppress(ConnectionError):
            read_all(connection)
    return True


def get_in(host: str) -> None:
    """Repeat a request until it is answered."""
    while True:
        with connect(host) as connection, contextlib.suppress(OSError):
            connection.sendall(REQUEST)
            if read_all(connection).startswith(b"HTTP/1.1 200 "):
                return


class TestWaiting:
    @pytest.mark.parametrize(
        "sent",
        [
            b"",
            b"GET /v2/",
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\n",
            # The registry does not want this body, which never arrives.
            b"PUT /v2/none HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
        ],
    )
    def test_a_connection_without_a_complete_request_is_closed(
        self, served: Served, set_limits: SetLimits, sent: bytes
    ) -> None:
        set_limits(REQUEST_TIMEOUT=0.05)
        assert is_cut(served.host, sent)

    def test_a_connection_without_a_next_request_is_closed(self, served: Served, set_limits: SetLimits) -> None:
        with connect(served.host) as connection:
            connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
            set_limits(REQUEST_TIMEOUT=0.05)
            with contextlib.suppress(ConnectionError):
                read_all(connection)

    def test_a_connection_without_a_tls_handshake_is_closed(self, tmp_path: Path, set_limits: SetLimits) -> None:
        set_limits(REQUEST_TIMEOUT=0.05)
        with Served(tmp_path / "layout", tls=server_tls(make_certificate(tmp_path))) as registry:
            assert is_cut(registry.host)
            assert is_cut(registry.host, b"\x16\x03\x01")

    def test_a_slow_upload_is_not_closed(self, served: Served, ask: Client, set_limits: SetLimits) -> None:
        location = begin(ask)
        head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(CONTENT)}\r\n\r\n"
        with connect(served.host) as slow:
            slow.sendall(head.encode() + FIRST)
            eventually(lambda: ask("GET", location).headers["Range"] != "0-0")
            usual = limits.REQUEST_TIMEOUT
            set_limits(REQUEST_TIMEOUT=0.05)
            assert is_cut(served.host)
            slow.sendall(SECOND)
            assert read_all(slow).startswith(b"HTTP/1.1 202 ")
        set_limits(REQUEST_TIMEOUT=usual)
        with Client(served.host) as other:
            assert closed(other, location) == 201


@contextlib.contextmanager
def uploading(host: str) -> Iterator[None]:
    """Keep a connection in the middle of a request within the block."""
    with Client(host) as busy:
        location = begin(busy)
        busy.connection.putrequest("PATCH", location)
        busy.connection.putheader("Content-Length", "9")
        busy.connection.endheaders()
        busy.connection.send(b"part")
        eventually(lambda: has_received(host, location, 4))
        yield


def has_received(host: str, location: str, size: int) -> bool:
    """Return whether an upload has this size, over a connection that the registry has closed too."""
    with connect(host) as watcher:
        watcher.sendall(f"GET {location} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return f"Range: 0-{size - 1}\r\n".encode() in read_all(watcher)


class InattentiveHandler(RegistryHandler):
    """A handler that does not notice that its client has disconnected until the registry closes the connection."""

    is_closed: ClassVar[threading.Event]

    def set_waiting(self, is_waiting: bool) -> None:
        super().set_waiting(is_waiting)
        if is_waiting and not self.connection.recv(1, socket.MSG_PEEK):
            self.is_closed.set()
            cut = select.poll()
            cut.register(self.connection, 0)
            cut.poll()


class TestFullRegistry:
    def test_a_new_client_displaces_the_longest_idle_client(self, served: Served, set_limits: SetLimits) -> None:
        with uploading(served.host), connect(served.host) as old, connect(served.host) as new:
            set_limits(MAX_CLIENTS=3)
            with connect(served.host) as third:
                third.sendall(REQUEST)
                assert read_all(third).startswith(b"HTTP/1.1 200 ")
            assert read_all(old) == b""
            new.sendall(REQUEST)
            assert read_all(new).startswith(b"HTTP/1.1 200 ")

    def test_a_new_client_first_displaces_a_disconnected_client(self, tmp_path: Path, set_limits: SetLimits) -> None:
        InattentiveHandler.is_closed = threading.Event()
        with Served(tmp_path / "layout", handler=InattentiveHandler) as served, connect(served.host) as old:
            with Client(served.host) as gone:
                begin(gone)
            InattentiveHandler.is_closed.wait()
            set_limits(MAX_CLIENTS=2)
            with connect(served.host) as third:
                third.sendall(REQUEST)
                assert read_all(third).startswith(b"HTTP/1.1 200 ")
            old.sendall(REQUEST)
            assert read_all(old).startswith(b"HTTP/1.1 200 ")

    def test_many_incomplete_requests_do_not_block_a_client(self, served: Served, set_limits: SetLimits) -> None:
        set_limits(MAX_CLIENTS=5)
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(connect(served.host)).sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n")
            with connect(served.host) as honest:
                honest.sendall(REQUEST)
                assert read_all(honest).startswith(b"HTTP/1.1 200 ")

    def test_one_more_connection_is_closed_when_all_are_busy(self, served: Served, set_limits: SetLimits) -> None:
        with uploading(served.host), uploading(served.host):
            set_limits(MAX_CLIENTS=2)
            with connect(served.host) as third:
                assert read_all(third) == b""
        # Both clients have disconnected: there is room as soon as the registry notices.
        get_in(served.host)


class TestDescriptors:
    def test_uploads_and_connections_fit_the_file_descriptors(self, served: Served, set_limits: SetLimits) -> None:
        # Four descriptors are left: enough for one connection and one upload.
        set_limits(RESERVED_FILE_DESCRIPTORS=1020)
        with soft_limit(resource.RLIMIT_NOFILE, 1024), Client(served.host) as ask:
            begin(ask)
            assert ask("POST", "/v2/app/blobs/uploads/").refusal == (429, ["TOOMANYREQUESTS"])
            # The only connection makes room as soon as it is idle.
            get_in(served.host)
            with pytest.raises(ConnectionError):
                ask("GET", "/v2/")

    def test_there_is_one_upload_for_every_four_file_descriptors(self, served: Served, set_limits: SetLimits) -> None:
        set_limits(RESERVED_FILE_DESCRIPTORS=1016)
        with soft_limit(resource.RLIMIT_NOFILE, 1024), Client(served.host) as ask:
            begin(ask)
            begin(ask)
            assert ask("POST", "/v2/app/blobs/uploads/").status == 429

    def test_a_client_is_served_as_soon_as_a_file_descriptor_is_free(self, served: Served) -> None:
        host, _, port = served.host.rpartition(":")
        with socket.socket() as connection, socket.socket() as last:
            connection.settimeout(60)
            # No descriptor is free for the registry's end of the connection.
            with soft_limit(resource.RLIMIT_NOFILE, last.fileno() + 1), full(last.fileno()):
                connection.connect((host, int(port)))
                connection.sendall(REQUEST)
                connection.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    connection.recv(1)
                connection.settimeout(60)
            assert read_all(connection).startswith(b"HTTP/1.1 200 ")


@contextlib.contextmanager
def full(highest: int) -> Iterator[None]:
    """Use up all file descriptors below `highest` within the block."""
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(highest))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
