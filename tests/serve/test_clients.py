"""The embedded registry and its many clients: who takes a place and does nothing gives it up, and none runs out."""

from __future__ import annotations

import contextlib
import errno
import resource
import socketserver
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocistream import limits
from ocistream.serve import Handler, Registry, room
from ocistream.tls import server_context
from tests.certificates import make_certificate
from tests.pushing import CONTENT, FIRST, SECOND, begin, closed
from tests.talking import Client, connect, read_all

REQUEST = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def is_cut(host: str, *parts: bytes) -> bool:
    """Send something that is no whole request, and wait until the server closes."""
    with connect(host) as connection:
        for part in parts:
            connection.sendall(part)
        with contextlib.suppress(ConnectionError):
            read_all(connection)
    return True


def get_in(host: str) -> None:
    """Ask again and again, until there is an answer."""
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
            # Nobody wants this body, and it never comes.
            b"PUT /v2/none HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
        ],
    )
    def test_a_request_that_does_not_come_is_not_waited_for_for_long(
        self, served: Registry, monkeypatch: pytest.MonkeyPatch, sent: bytes
    ) -> None:
        monkeypatch.setattr(limits, "REQUEST_TIME", 0.05)
        assert is_cut(served.host, sent)

    def test_nor_is_the_next_one(self, served: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        with connect(served.host) as connection:
            connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
            monkeypatch.setattr(limits, "REQUEST_TIME", 0.05)
            with contextlib.suppress(ConnectionError):
                read_all(connection)

    def test_nor_is_a_handshake(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "REQUEST_TIME", 0.05)
        pair = make_certificate(tmp_path)
        context = server_context(str(pair.file), str(pair.key_file))
        with Registry(tmp_path / "layout", tls=context) as registry:
            assert is_cut(registry.host)
            assert is_cut(registry.host, b"\x16\x03\x01")

    def test_a_body_that_is_wanted_is(self, served: Registry, ask: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        location = begin(ask)
        head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(CONTENT)}\r\n\r\n"
        with connect(served.host) as slow:
            slow.sendall(head.encode() + FIRST)
            # It is under way now, and remains so while another one is cut.
            while ask("GET", location).headers["Range"] == "0-0":
                pass
            monkeypatch.setattr(limits, "REQUEST_TIME", 0.05)
            assert is_cut(served.host)
            slow.sendall(SECOND)
            assert read_all(slow).startswith(b"HTTP/1.1 202 ")
        monkeypatch.undo()
        with Client(served.host) as other:
            assert closed(other, location) == 201


@contextlib.contextmanager
def uploading(registry: Registry) -> Iterator[None]:
    """Have a connection in the middle of a request."""
    with Client(registry.host) as other:
        location = begin(other)
        other.connection.putrequest("PATCH", location)
        other.connection.putheader("Content-Length", "9")
        other.connection.endheaders()
        other.connection.send(b"part")
        upload = registry.uploads.find("app", location.rpartition("/")[2])
        while upload.offset != 4:
            pass
        yield


class TestPlaces:
    def test_who_does_nothing_makes_room_and_the_one_that_has_done_nothing_for_longest_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waits: list[bool] = []

        class Noting(Handler):
            def waiting(self, is_waiting: bool) -> None:
                super().waiting(is_waiting)
                waits.append(is_waiting)

        def ask(client: Client) -> None:
            before = waits.count(True)
            assert client("GET", "/v2/").status == 200
            # Until the server waits for the next one, too.
            while waits.count(True) == before or not waits[-1]:
                pass

        with Registry(tmp_path / "layout", handler=Noting) as registry, uploading(registry):
            monkeypatch.setattr(limits, "MAX_CLIENTS", 3)
            with Client(registry.host) as old, Client(registry.host) as new:
                ask(old)
                ask(new)
                with connect(registry.host) as third:
                    third.sendall(REQUEST)
                    assert read_all(third).startswith(b"HTTP/1.1 200 ")
                assert new("GET", "/v2/").status == 200
                with pytest.raises(ConnectionError):
                    old("GET", "/v2/")

    def test_half_requests_without_number_keep_nobody_out(
        self, served: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_CLIENTS", 5)
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(connect(served.host)).sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n")
            with connect(served.host) as honest:
                honest.sendall(REQUEST)
                assert read_all(honest).startswith(b"HTTP/1.1 200 ")

    def test_not_even_where_their_threads_have_not_begun(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Late(Handler):
            def waiting(self, is_waiting: bool) -> None:
                """Say nothing, as one that has not come to it yet."""

        monkeypatch.setattr(limits, "MAX_CLIENTS", 1)
        with Registry(tmp_path / "layout", handler=Late) as registry, connect(registry.host) as half:
            half.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n")
            with connect(registry.host) as honest:
                honest.sendall(REQUEST)
                assert read_all(honest).startswith(b"HTTP/1.1 200 ")

    def test_where_all_are_at_work_one_more_is_closed_at_once(
        self, served: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with uploading(served), uploading(served):
            monkeypatch.setattr(limits, "MAX_CLIENTS", 2)
            with connect(served.host) as third:
                assert read_all(third) == b""
        # Both have gone, and as soon as that is noticed there is room again.
        get_in(served.host)


class TestDescriptors:
    @pytest.mark.parametrize(
        ("soft", "most", "expected"),
        [(1024, 500, 240), (1024, 100, 100), (100_000, 500, 500), (resource.RLIM_INFINITY, 500, 500), (20, 500, 1)],
    )
    def test_there_are_as_many_connections_as_the_process_has_descriptors_for(
        self, monkeypatch: pytest.MonkeyPatch, soft: int, most: int, expected: int
    ) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
        assert room.room(most) == expected

    def test_uploads_and_connections_are_held_to_it(self, served: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (limits.SPARE_DESCRIPTORS + 4, 1024))
        with Client(served.host) as ask:
            begin(ask)
            answer = ask("POST", "/v2/app/blobs/uploads/")
            assert (answer.status, answer.codes) == (429, ["TOOMANYREQUESTS"])
            # As soon as the only connection that there may be has nothing to do, it makes room.
            get_in(served.host)
            with pytest.raises(ConnectionError):
                ask("GET", "/v2/")

    def test_without_one_nothing_is_accepted_for_a_moment(
        self, served: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pauses: list[float] = []
        accept = socketserver.TCPServer.get_request

        def full(listening: socketserver.TCPServer) -> object:
            if not pauses:
                raise OSError(errno.EMFILE, "Too many open files")
            return accept(listening)

        monkeypatch.setattr(socketserver.TCPServer, "get_request", full)
        monkeypatch.setattr("ocistream.serve.server.time.sleep", pauses.append)
        with connect(served.host) as connection:
            connection.sendall(REQUEST)
            assert read_all(connection).startswith(b"HTTP/1.1 200 ")
        assert len(pauses) == 1
