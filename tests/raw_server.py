"""Sockets without the product: a server that sends exactly the given bytes, ports, and host names for tests."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from email.message import Message
from email.parser import BytesParser
from types import TracebackType
from typing import Any, Final, Self

import pytest

_TIMEOUT: Final = 60.0


@dataclasses.dataclass(frozen=True)
class Heard:
    """The head of a request that a `RawServer` has read."""

    method: str
    target: str
    headers: Message


#: What a raw server does with a connection after it has read the head of the first request.
Turn = Callable[[socket.socket, Heard], None]


class RawServer:
    """A server of raw bytes: each connection gets the next of `turns`; the last turn serves all later connections.

    `heard` has the head of each connection's first request. A turn of bytes sends them and closes.
    """

    def __init__(self, *turns: Turn | bytes) -> None:
        self._turns = [turn if callable(turn) else says(turn) for turn in turns]
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self.host = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.url = f"http://{self.host}"
        self.heard: list[Heard] = []

    def _accept(self) -> None:
        number = 0
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            turn = self._turns[min(number, len(self._turns) - 1)]
            number += 1
            threading.Thread(target=self._serve, args=(connection, turn), daemon=True).start()

    def _serve(self, connection: socket.socket, turn: Turn) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_TIMEOUT)
            heard = read_head(connection)
            self.heard.append(heard)
            turn(connection, heard)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


def read_head(connection: socket.socket) -> Heard:
    """Read the head of a request, byte by byte, so that nothing of its body is lost."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionAbortedError
        head += byte
        if head == b"\x16":
            # It is TLS, which this server cannot read.
            return Heard("", "", Message())
    line, _, rest = head.partition(b"\r\n")
    method, target, _ = line.decode().split(" ")
    return Heard(method, target, BytesParser().parsebytes(rest, headersonly=True))


def says(answer: bytes) -> Turn:
    """Return a turn that sends these bytes."""

    def turn(connection: socket.socket, _: Heard) -> None:
        connection.sendall(answer)

    return turn


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until another thread has made the condition true."""
    deadline = time.monotonic() + _TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.005)


#: Ports that are bound as long as the tests run, without a listener.
_taken: list[socket.socket] = []


def unused_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens. It stays bound: a released port is soon reused."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    _taken.append(taken)
    return int(taken.getsockname()[1])


@contextlib.contextmanager
def names(patch: pytest.MonkeyPatch, **addresses: str | Sequence[str]) -> Iterator[None]:
    """Resolve `NAME.test` to any address, and route connections to that address to this machine.

    So a registry looks public: `names(patch, registry="203.0.113.5")`. A name with several addresses resolves to the
    next one each time, and finally always to the last.
    """
    left = {name: [given] if isinstance(given, str) else list(given) for name, given in addresses.items()}
    routed = {address for given in left.values() for address in given}
    lock = threading.Lock()
    peers: dict[Any, tuple[str, int]] = {}
    real_resolve, real_connect = socket.getaddrinfo, socket.socket.connect
    real_peer = socket.socket.getpeername

    def resolve(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        name = str(host).removesuffix(".test")
        if name not in left:
            return real_resolve(host, port, *args, **options)
        with lock:
            address = left[name].pop(0) if len(left[name]) > 1 else left[name][0]
        found = real_resolve("127.0.0.1", port, *args, **options)
        return [(*entry[:4], (address, *entry[4][1:])) for entry in found]

    def connect(self: socket.socket, address: Any) -> None:
        there = isinstance(address, tuple) and address[0] in routed
        real_connect(self, ("127.0.0.1", *address[1:]) if there else address)
        # By our own address, because TLS makes another object of the same connection.
        own = self.getsockname()
        peers.pop(own, None)
        if there:
            peers[own] = address

    def peer(self: socket.socket) -> Any:
        found = real_peer(self)
        return peers.get(self.getsockname(), found)

    with patch.context() as context:
        context.setattr("socket.getaddrinfo", resolve)
        context.setattr("socket.socket.connect", connect)
        context.setattr("socket.socket.getpeername", peer)
        yield
