"""A registry with one image that answers with raw bytes, so that a test can change any byte of a response."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from tests.images import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, digest_of
from tests.raw_server import Heard, read_head

CONFIG: Final = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
LAYER: Final = b"a layer"
MANIFEST: Final = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest_of(CONFIG), "size": len(CONFIG)},
        "layers": [{"mediaType": OCI_LAYER, "digest": digest_of(LAYER), "size": len(LAYER)}],
    }
).encode()
#: Paths of the image, for `RawRegistry.answers`.
MANIFESTS: Final = "/manifests/"
LAYERS: Final = digest_of(LAYER)
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

#: A response: bytes, or a function that gets the connection and the head of the request.
Answer = bytes | Callable[[socket.socket, Heard], None]


def answer(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    """Return a complete response; an underscore in the name of a header stands for a hyphen."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def manifest(**headers: str) -> bytes:
    """Return the response to a request for the manifest."""
    return answer(MANIFEST, Content_Type=OCI_MANIFEST, Docker_Content_Digest=digest_of(MANIFEST), **headers)


@dataclasses.dataclass(frozen=True)
class Request:
    """The head of a request, and the number of its connection, from 1."""

    method: str
    target: str
    headers: dict[str, str]
    connection: int


class RawRegistry:
    """Serves app:1 over plain HTTP on 127.0.0.1.

    `answers` are used first: each has patterns for method and target, a response, and how often it is used (None:
    always). A connection is closed after a response with `Connection: close`, or with `closes` after every response.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[str, str, Answer, int | None]] = []
        self.requests: list[Request] = []
        self.accepted = 0
        self.closes = False
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.url = f"http://{self.host}"
        self.image = f"{self.host}/app:1"

    def says(self, path: str, given: Answer, *, method: str = "GET", times: int | None = None) -> None:
        """Answer requests for a path (regular expression) with this."""
        self.answers.append((method, path, given, times))

    def asked(self, method: str = ".*", path: str = "") -> list[Request]:
        """Return the requests with this method and path."""
        return [
            request
            for request in self.requests
            if re.fullmatch(method, request.method) and re.search(path, request.target)
        ]

    def limit_receive_buffers(self, size: int) -> None:
        """Give later connections a receive buffer (SO_RCVBUF) of this size."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.over.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.accepted += 1
                threading.Thread(target=self._serve, args=(connection, self.accepted), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(60)
            while True:
                heard = read_head(connection)
                self.requests.append(
                    Request(heard.method, heard.target, {k.lower(): v for k, v in heard.headers.items()}, number)
                )
                given = self._answer(heard)
                if callable(given):
                    given(connection, heard)
                    return
                read_body(connection, heard)
                connection.sendall(given)
                if self.closes or b"connection: close" in given[:500].lower():
                    return

    def _answer(self, heard: Heard) -> Answer:
        with self._lock:
            for index, (method, path, given, times) in enumerate(self.answers):
                if re.fullmatch(method, heard.method) and re.search(path, heard.target) and times != 0:
                    self.answers[index] = (method, path, given, times and times - 1)
                    return given
        return self._usual(heard)

    def _usual(self, heard: Heard) -> bytes:
        path = heard.target.partition("?")[0]
        known = {digest_of(CONFIG): CONFIG, digest_of(LAYER): LAYER}
        if heard.method in {"GET", "HEAD"}:
            given = answer(b"{}", "404 Not Found")
            if path.endswith("/v2/"):
                given = answer(b"{}")
            elif path.endswith(("/manifests/1", f"/manifests/{digest_of(MANIFEST)}")):
                given = manifest()
            elif (digest := path.rpartition("/")[2]) in known and "/blobs/" in path:
                given = answer(known[digest])
            return given if heard.method == "GET" else given.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        if heard.method == "POST":
            return answer(status="202 Accepted", Location="/v2/app/blobs/uploads/session", Range="0-0")
        if heard.method == "PATCH":
            return answer(status="202 Accepted", Location="/v2/app/blobs/uploads/session")
        return answer(status="201 Created" if heard.method == "PUT" else "202 Accepted")


def read_body(connection: socket.socket, heard: Heard, into: bytearray | None = None) -> int:
    """Read the body of a request and return its size; `into` gets the raw bytes, including the sizes of chunks."""
    size = 0
    if heard.headers["Transfer-Encoding"] == "chunked":
        received = bytearray() if into is None else into
        while not received.endswith(b"0\r\n\r\n"):
            piece = connection.recv(1 << 16)
            if not piece:
                break
            received += piece
            size += len(piece)
        return size
    left = int(heard.headers["Content-Length"] or 0)
    while size < left:
        piece = connection.recv(min(1 << 16, left - size))
        if not piece:
            break
        size += len(piece)
        if into is not None:
            into += piece
    return size
