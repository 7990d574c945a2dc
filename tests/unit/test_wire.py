"""What comes on a connection while a request is still being sent."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from ocistream.bodies import Body, StreamedBody
from ocistream.connections import Connections, ConnectionSettings
from ocistream.errors import NetworkError
from tests.network import Heard, RawServer

MIB = 1 << 20
REFUSED = b"HTTP/1.1 413 Too Large\r\nContent-Length: 6\r\n\r\nthere!"
FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def make() -> Iterator[Callable[..., Connections]]:
    """Return a function that makes connections with a time-out for stalls, in seconds."""
    with contextlib.ExitStack() as stack:

        def start(stall_timeout: float = 20.0) -> Connections:
            made = Connections(ConnectionSettings(connect_timeout=5.0, stall_timeout=stall_timeout, user_agent="test"))
            stack.callback(made.close)
            return made

        yield start


def pieces(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield bytes(MIB)


class Keeps:
    """A turn that answers and neither reads nor closes until it is let go."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.over = threading.Event()

    def __call__(self, connection: socket.socket, _: Heard) -> None:
        connection.sendall(self.answer)
        self.over.wait(60)


@pytest.fixture
def keeps() -> Iterator[Keeps]:
    """Return a turn that refuses early and keeps the connection."""
    turn = Keeps(REFUSED)
    yield turn
    turn.over.set()


@pytest.mark.parametrize("sized", [True, False])
def test_an_answer_ends_the_sending_to_who_reads_no_more(
    make: Callable[..., Connections], keeps: Keeps, sized: bool
) -> None:
    with RawServer(keeps) as server:
        body = Body(pieces(64), 64 * MIB) if sized else StreamedBody(pieces(64))
        answer = make().send("PATCH", f"{server.url}/x", {}, body)
        assert (answer.status, answer.read(100)) == (413, b"there!")
        assert body.begun
        assert not body.ended
        keeps.over.set()


def test_the_connection_is_not_used_again_after_it(make: Callable[..., Connections], keeps: Keeps) -> None:
    with RawServer(keeps, FINE) as server:
        connections = make(5.0)
        connections.send("PATCH", f"{server.url}/x", {}, Body(pieces(64), 64 * MIB)).drain()
        assert connections.send("GET", f"{server.url}/y", {}, None).status == 200
        assert [heard.target for heard in server.heard] == ["/x", "/y"]
        keeps.over.set()


def test_little_of_a_body_waits_in_the_kernel_where_nobody_reads(make: Callable[..., Connections]) -> None:
    # It would be lost with the connection; left to itself the kernel takes several megabytes.
    over = threading.Event()
    taken = []

    def body() -> Iterator[bytes]:
        for _ in range(256):
            taken.append(MIB // 16)
            yield bytes(MIB // 16)

    def silent(_connection: socket.socket, _: Heard) -> None:
        over.wait()

    with RawServer(silent) as server:
        with pytest.raises(NetworkError, match="timed out"):
            make(0.5).send("PATCH", server.url, {}, Body(body(), 16 * MIB))
        over.set()
    assert sum(taken) < 1.5 * MIB


def test_an_answer_is_read_after_the_connection_was_closed_on_it(make: Callable[..., Connections]) -> None:
    def closes(connection: socket.socket, _: Heard) -> None:
        connection.sendall(REFUSED)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(MIB):
            pass

    with RawServer(closes) as server:
        answer = make().send("PATCH", f"{server.url}/x", {}, Body(pieces(64), 64 * MIB))
        assert answer.status == 413


def test_who_neither_reads_nor_answers_is_given_up(make: Callable[..., Connections]) -> None:
    silent = Keeps(b"")
    with RawServer(silent) as server:
        with pytest.raises(NetworkError, match="timed out"):
            make(0.3).send("PATCH", f"{server.url}/x", {}, Body(pieces(64), 64 * MIB))
        silent.over.set()


@pytest.mark.parametrize("interim", [b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_an_interim_answer_is_not_the_answer(make: Callable[..., Connections], interim: bytes) -> None:
    def reads(connection: socket.socket, heard: Heard) -> None:
        connection.sendall(interim)
        left = int(heard.headers["Content-Length"])
        while left:
            left -= len(connection.recv(min(left, MIB)))
        connection.sendall(FINE)

    with RawServer(reads) as server:
        body = Body(pieces(8), 8 * MIB)
        assert make().send("PATCH", f"{server.url}/x", {}, body).status == 200
        assert body.ended
