"""HTTP/1.1 for the tests' registry: reads requests and sends answers. It knows nothing about registries."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import socket
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from email.message import Message
from http.server import BaseHTTPRequestHandler
from io import BufferedIOBase
from typing import Any, BinaryIO, Final

#: Statuses whose answers have neither a body nor a Content-Length.
_NO_BODY: Final = frozenset({204, 304})
#: Read at most this many bytes of a request that was refused, to keep the connection.
_MOST_DRAINED: Final = 256 * 1024
#: Seconds to read on before a connection with an unread request body is closed. Otherwise the kernel would reset the
#: connection, and the client might lose the answer.
_LINGER: Final = 2.0
_PIECE: Final = 1 << 16


@dataclasses.dataclass(frozen=True)
class Part:
    """`size` bytes of an open file, from `offset`."""

    file: BinaryIO
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class Answer:
    """A status, headers and a body. Content-Length, Date and Connection are added when the answer is sent."""

    status: int
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    body: bytes | Part = b""

    @property
    def size(self) -> int:
        """The length of the body in bytes, also for an answer to HEAD."""
        return self.body.size if isinstance(self.body, Part) else len(self.body)


class RefusedError(Exception):
    """A refusal with an error body of the distribution-spec; each of `details` becomes one error."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: Sequence[Any] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.headers = {"Content-Type": "application/json", **(headers or {})}
        error = {"code": code, "message": message}
        self._errors = [{**error, "detail": detail} for detail in details] or [error]

    def body(self) -> bytes:
        """Return the JSON of the error body."""
        return json.dumps({"errors": self._errors}).encode()

    @property
    def answer(self) -> Answer:
        """The answer that refuses the request."""
        return Answer(self.status, self.headers, self.body())


class Body:
    """The body of a request. `received` counts the bytes read; `left` is None if the size is unknown."""

    def __init__(self, headers: Message, stream: BufferedIOBase, announce: Callable[[], None]) -> None:
        """Read from `stream`; `announce` sends `100 Continue` if the client waits for it."""
        self._stream = stream
        self._chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
        waits = headers.get("Expect", "").lower() == "100-continue"
        self._announce = announce if waits else None
        self.size = None if self._chunked else int(headers.get("Content-Length", "0"))
        self.left = self.size
        self._chunk = 0
        self.received = 0

    @property
    def finished(self) -> bool:
        """Whether the complete body was read."""
        return self.left == 0

    @property
    def awaited(self) -> bool:
        """Whether the client waits for `100 Continue` before it sends the body."""
        return self._announce is not None

    def readinto(self, buffer: memoryview) -> int:
        """Read at most once from the socket into `buffer`, and return the number of bytes; 0 at the end of the body.

        Raises:
            RefusedError: the client closed the connection before the end (400).
        """
        if self.finished:
            return 0
        if self._announce is not None:
            self._announce()
            self._announce = None
        if self._chunked and not self._chunk:
            self._chunk = int(self._line().partition(b";")[0], 16)
            if not self._chunk:
                while self._line():
                    pass
                self.left = 0
                return 0
        expected = self._chunk if self.left is None else self.left
        got = self._stream.readinto1(buffer[:expected])
        if not got:
            raise _ended_early()
        self.received += got
        if self.left is not None:
            self.left -= got
        else:
            self._chunk -= got
            if not self._chunk:
                self._line()
        return got

    def _line(self) -> bytes:
        line = self._stream.readline(1000)
        if not line.endswith(b"\r\n"):
            raise _ended_early()
        return line[:-2]


def _ended_early() -> RefusedError:
    return RefusedError(400, "SIZE_INVALID", "the body ended early")


class Exchange(BaseHTTPRequestHandler):
    """Serves the requests of one connection. A subclass answers them in `dispatch`."""

    protocol_version = "HTTP/1.1"
    # The end of an answer must not wait for an acknowledgement of its beginning.
    disable_nagle_algorithm = True
    body: Body

    def dispatch(self) -> None:
        """Call `answer` once, or raise RefusedError."""
        raise NotImplementedError

    def serve(self) -> None:
        """Serve the request whose headers were just read."""
        self.body = Body(self.headers, self.rfile, self._continue)
        try:
            try:
                self.dispatch()
            except RefusedError as refused:
                self.answer(refused.answer)
        except (OSError, RefusedError):
            # The connection broke, or the body ended early: no answer is possible.
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = serve

    def target(self) -> tuple[list[str], dict[str, list[str]]]:
        """Return the decoded segments of the path, and the parameters of the query."""
        parts = urllib.parse.urlsplit(self.path)
        segments = [urllib.parse.unquote(segment) for segment in parts.path.split("/")]
        return segments, urllib.parse.parse_qs(parts.query, keep_blank_values=True)

    def read_body(self, buffer: memoryview) -> int:
        """Read some bytes of the request's body into `buffer`; 0 is the end."""
        return self.body.readinto(buffer)

    def read_small_body(self, limit: int) -> bytes | None:
        """Return the request's body, or None if it has more than `limit` bytes."""
        content, piece = bytearray(), memoryview(bytearray(_PIECE))
        while max(self.body.size or 0, len(content)) <= limit:
            if not (got := self.read_body(piece)):
                return bytes(content)
            content += piece[:got]
        return None

    def answer(self, answer: Answer) -> None:
        """Send an answer. The connection stays open only if the request's body can be read completely first."""
        if not self.body.finished and not self.close_connection:
            left = self.body.left
            self.close_connection = self.body.awaited or left is None or left > _MOST_DRAINED
            scratch = memoryview(bytearray(_PIECE))
            while not self.close_connection and self.body.readinto(scratch):
                pass
        self.transmit(answer)
        if not self.body.finished:
            self._linger()

    def transmit(self, answer: Answer) -> None:
        """Write an answer to the connection."""
        self.write_head(answer)
        if self.command != "HEAD" and answer.size:
            self.write_body(answer.body)

    def write_head(self, answer: Answer) -> None:
        """Write the status line and the headers."""
        self.send_response_only(answer.status)
        self.send_header("Date", self.date_time_string())
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if (size := self.stated_size(answer)) is not None:
            self.send_header("Content-Length", str(size))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def stated_size(self, answer: Answer) -> int | None:
        """Return the Content-Length to send, or None to send none."""
        return None if answer.status in _NO_BODY else answer.size

    def write_body(self, body: bytes | Part) -> None:
        """Write the body of an answer."""
        if isinstance(body, Part):
            self.connection.sendfile(body.file, body.offset, body.size)
        else:
            self.wfile.write(body)

    def handle_expect_100(self) -> bool:
        """Send `100 Continue` only when the body is read, so that a refusal comes before the body is sent."""
        return True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by http.server
        """Write nothing to stderr."""

    def _continue(self) -> None:
        self.send_response_only(100)
        self.end_headers()

    def _linger(self) -> None:
        deadline = time.monotonic() + _LINGER
        scratch = memoryview(bytearray(_PIECE))
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER)
            while time.monotonic() < deadline and self.rfile.readinto1(scratch):
                pass


_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)")


def requested_range(stated: str | None, size: int) -> tuple[int, int] | None:
    """Return the first byte and the number of bytes that a Range header asks for, or None for the complete content.

    Raises:
        RefusedError: no byte of the content is in the range (416).
    """
    match = _RANGE.fullmatch(stated or "")
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        start, end = max(size - int(match[2]), 0), size
    else:
        start, end = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
    if start >= end:
        headers = {"Content-Range": f"bytes */{size}"}
        raise RefusedError(416, "SIZE_INVALID", "the range is beyond the end", headers=headers)
    return start, end - start
