"""Plain HTTP over one connection, to see exactly what a server answers; and raw bytes over a socket."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import socket
from collections.abc import Iterable, Mapping
from email.message import Message
from types import TracebackType
from typing import Any, Final, Self

from tests.images import digest_of

_TIMEOUT: Final = 60.0


@dataclasses.dataclass(frozen=True)
class Response:
    """A complete response."""

    status: int
    headers: Message
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def codes(self) -> list[str]:
        """The codes of a distribution-spec error body."""
        return [error["code"] for error in self.json()["errors"]]

    @property
    def refusal(self) -> tuple[int, list[str]]:
        """The status and the codes of a refused request."""
        return self.status, self.codes


class Client:
    """One kept-alive connection to a server at HOST:PORT."""

    def __init__(self, host: str) -> None:
        self.connection = http.client.HTTPConnection(host, timeout=_TIMEOUT, blocksize=1 << 20)

    def __call__(
        self,
        method: str,
        target: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send a request and read the response; a body that is not bytes is sent in chunks."""
        chunked = not isinstance(body, bytes | None) and "Content-Length" not in (headers or {})
        self.connection.request(method, target, body, dict(headers or {}), encode_chunked=chunked)
        answer = self.connection.getresponse()
        return Response(answer.status, answer.headers, answer.read())

    def upload(self, content: bytes, repository: str = "app", algorithm: str = "sha256") -> str:
        """Push a blob and return its digest."""
        digest = digest_of(content, algorithm)  # type: ignore[arg-type]
        answer = self("POST", f"/v2/{repository}/blobs/uploads/?digest={digest}", content)
        assert answer.status == 201, answer
        return digest

    def push(self, document: Any, reference: str | None = None, repository: str = "app") -> str:
        """Push a manifest by tag, or with None by digest; return its digest."""
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        digest = digest_of(content)
        answer = self("PUT", f"/v2/{repository}/manifests/{reference or digest}", content)
        assert answer.status == 201, answer
        return digest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.connection.close()


def connect(host: str, *, receive_buffer: int | None = None) -> socket.socket:
    """Open a raw connection to HOST:PORT, or [HOST]:PORT; `receive_buffer` is its SO_RCVBUF in bytes."""
    name, _, port = host.rpartition(":")
    address = name.strip("[]"), int(port)
    if receive_buffer is None:
        return socket.create_connection(address, timeout=_TIMEOUT)
    connection = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    connection.settimeout(_TIMEOUT)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(address)
    return connection


def flood(connection: socket.socket, request: bytes) -> None:
    """Send a request repeatedly and read nothing, until the server has accepted no byte for a moment."""
    connection.settimeout(0.3)
    requests = memoryview(request * 1000)
    sent = 0
    # The loop also ends when the server closes the connection.
    with contextlib.suppress(OSError):
        while True:
            sent += connection.send(requests[sent % len(request) :])


def converse(host: str, *parts: bytes) -> bytes:
    """Send bytes, shut down the sending side, and return everything that comes until the server closes."""
    with connect(host) as connection:
        for part in parts:
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)
        return read_all(connection)


def read_all(connection: socket.socket, received: bytearray | None = None) -> bytes:
    """Return everything that comes until the server closes; `received` keeps it if the connection breaks."""
    received = bytearray() if received is None else received
    while piece := connection.recv(1 << 16):
        received += piece
    return bytes(received)
