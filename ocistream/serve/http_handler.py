"""HTTP/1.1 over one connection: read a request, write the response, decide whether the connection stays open.

Subclasses implement `dispatch`. This module knows nothing of registries.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import TYPE_CHECKING, ClassVar, Final, cast

from ocistream import limits
from ocistream.errors import OcistreamError
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor
from ocistream.serve.errors import RequestRejectedError
from ocistream.serve.request import (
    ChunkedRequestBody,
    RequestHeadReader,
    SizedRequestBody,
    check_host,
    check_request_line,
    open_request_body,
    split_target,
)
from ocistream.streams import files
from ocistream.streams.chunks import read_chunks, verify_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from io import BufferedIOBase, FileIO

    from ocistream.streams.chunks import Chunk

__all__ = ["AccessLogEntry", "FileSection", "HTTPRequestHandler", "ServerResponse"]

#: Statuses whose answers have no body, and no Content-Length either (RFC 9110, sections 8.6 and 15).
_STATUSES_WITHOUT_BODY: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
#: How long, in seconds, a client that is told no may go on sending until its connection is cut.
_LINGER: Final = 2.0


@dataclass(frozen=True, slots=True)
class FileSection:
    """`size` bytes of an open file, from `offset` on. Whoever opened the file closes it, and its position is nobody's.

    With a `digest` they are to be held against it while they are sent, together with as many bytes as `before` says,
    which stand before them and are not sent. `on_verified` is called when they were found right.
    """

    file: FileIO
    offset: int
    size: int
    digest: str | None = None
    preceding_size: int = 0
    on_verified: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class ServerResponse:
    """An answer before it is sent. Content-Length, Date and Connection are not among its headers."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | FileSection = b""

    @property
    def size(self) -> int:
        """How many bytes the body has; for HEAD too, which does not send them."""
        return self.body.size if isinstance(self.body, FileSection) else len(self.body)


@dataclass(frozen=True, slots=True)
class AccessLogEntry:
    """One line of the access log. `received` and `sent` are the bytes of the bodies; `seconds` is all it took.

    `when` it began is in seconds since 1970. `user` is who has shown the password. `status` is 0 where no answer was
    sent. `problem` says, for our eyes only, what went wrong; if that `is_ours`, what is served or the disk is at fault.
    """

    client: str
    method: str
    target: str
    status: int
    received: int
    sent: int
    seconds: float
    problem: str | None = None
    timestamp: float = 0.0
    user: str | None = None
    version: str = "HTTP/1.1"
    is_server_fault: bool = False


class HTTPRequestHandler(BaseHTTPRequestHandler, ABC):
    """Serves one connection, request by request."""

    protocol_version = "HTTP/1.1"
    server_version = "ocistream"
    sys_version = ""
    # An answer's end is not to wait for the client to acknowledge its beginning.
    disable_nagle_algorithm = True
    timeout: ClassVar[float | None] = limits.CLIENT_IDLE_TIMEOUT
    # The base class sets them. They are read when a request is refused before it was understood.
    command = ""
    path = ""
    raw_requestline = b""

    def setup(self) -> None:
        """Begin a connection; the buffer for bodies comes into being with the first of them."""
        super().setup()
        self._buffer: memoryview | None = None

    def _reset(self) -> None:
        self.body = SizedRequestBody(self.rfile, 0)
        self.started = time.monotonic()
        self.timestamp = time.time()
        self.user: str | None = None
        self.status = 0
        self.sent = 0
        self.problem: str | None = None
        self.is_server_fault = False
        self.is_admitted = False

    def set_waiting(self, is_waiting: bool) -> None:
        """Note whether the connection waits for its client: a server may close it then to make room for others."""

    def handle_one_request(self) -> None:
        """Wait for a request and serve it."""
        self.command = self.path = ""
        self.set_waiting(True)
        super().handle_one_request()

    def parse_request(self) -> bool:
        """Read the rest of a request's head. If the head is malformed, send the refusal and return False."""
        stream = self.rfile
        self.rfile = cast("BufferedIOBase", RequestHeadReader(stream))
        try:
            check_request_line(self.raw_requestline)
            if is_parsed := super().parse_request():
                check_host(self.headers, self.path, self.request_version)
        except RequestRejectedError as refused:
            self.send_error(refused.status or HTTPStatus.BAD_REQUEST, refused.message)
            return False
        else:
            return is_parsed
        finally:
            self.rfile = stream

    def do_GET(self) -> None:
        """Serve a GET."""
        self.serve_request()

    def do_HEAD(self) -> None:
        """Serve a HEAD: a GET whose answer's body stays here."""
        self.serve_request()

    def do_POST(self) -> None:
        """Serve a POST."""
        self.serve_request()

    def do_PUT(self) -> None:
        """Serve a PUT."""
        self.serve_request()

    def do_PATCH(self) -> None:
        """Serve a PATCH."""
        self.serve_request()

    def do_DELETE(self) -> None:
        """Serve a DELETE."""
        self.serve_request()

    @property
    def buffer(self) -> memoryview:
        """The connection's one buffer, into which bodies are read."""
        if self._buffer is None:
            self._buffer = memoryview(bytearray(limits.CHUNK_SIZE))
        return self._buffer

    @abstractmethod
    def dispatch(self) -> None:
        """Find out what is asked for and `answer` it, or raise `RefusedError`."""

    def mark_admitted(self) -> None:
        """Note that the request will be served. Until then the connection counts as waiting, whatever it does."""
        self.is_admitted = True
        self.set_waiting(False)

    def serve_request(self) -> None:
        """Serve one request whose headers were read; whatever goes wrong, the client gets no traceback."""
        self._reset()
        try:
            self._dispatch_request()
        except OSError as error:
            # The connection broke, or the client went away or fell silent. There is nobody to tell.
            self._record_problem(f"the connection failed: {error}")
            self.close_connection = True
        finally:
            self._log_request()

    def _dispatch_request(self) -> None:
        try:
            self.body = self._open_body()
            self.dispatch()
        except RequestRejectedError as refused:
            self._record_problem(refused.message)
            self.respond_error(refused)
        except OcistreamError as error:
            # Our disk, or what lies on it. The text has paths in it: it is for the log.
            self._record_problem(error.message, is_server_fault=True)
            self.respond_error(RequestRejectedError(500, "UNKNOWN", "the registry cannot read or write its storage"))

    def _open_body(self) -> SizedRequestBody:
        try:
            return open_request_body(self.headers, self.rfile, self._send_continue, self.request_version)
        except RequestRejectedError:
            # Nobody knows where it ends: that is the end of the connection.
            self.body = ChunkedRequestBody(self.rfile)
            raise

    def parse_target(self) -> tuple[list[str], dict[str, list[str]]]:
        """Return the decoded segments of the request's path and the parameters of its query.

        Raises:
            RefusedError: there are too many parameters (400).
        """
        return split_target(self.path)

    def read_body(self, buffer: memoryview) -> int:
        """Read some of the request's body into `buffer` and give the number of bytes; 0 is its end."""
        return self.body.readinto(buffer)

    def read_small_body(self, limit: int, on_large: Callable[[], object] = lambda: None) -> bytes | None:
        """Read a body to its end, or return None as soon as it is known to have more than `limit` bytes.

        `large` is called before more than `LARGE_MANIFEST` bytes are kept. From then on the client has a limited time.

        Raises:
            RefusedError: the client takes too long (408), or stops before the end (400).
        """
        content, piece = BytesIO(), memoryview(bytearray(limits.DISCARD_BUFFER))
        deadline: float | None = None
        while (expected := max(self.body.size or 0, content.tell())) <= limit:
            if expected > limits.LARGE_MANIFEST and deadline is None:
                on_large()
                deadline = time.monotonic() + limits.LARGE_PUSH_TIMEOUT
            if not (got := self._read_until(deadline, piece)):
                return content.getvalue()
            content.write(piece[:got])
        return None

    def _read_until(self, deadline: float | None, buffer: memoryview) -> int:
        """Read some of the body, before a time by `time.monotonic`."""
        if deadline is None:
            return self.read_body(buffer)
        # Zero would be another mode: not to wait at all.
        self.connection.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            got = self.read_body(buffer)
        except TimeoutError as error:
            # Nothing more can be read from a connection that has timed out.
            self.close_connection = True
            raise RequestRejectedError(408, "SIZE_INVALID", "the body took too long") from error
        self.connection.settimeout(self.timeout)
        return got

    def respond(self, answer: ServerResponse) -> None:
        """Send an answer, after what is left of the request's body, or the end of the connection, was seen to."""
        self._drain_or_close()
        self.status = int(answer.status)
        self.write_response(answer)
        if not self.body.is_finished:
            self._linger()

    def respond_error(self, refused: RequestRejectedError) -> None:
        """Send a refusal, unless an answer is half sent already: then the connection can only be cut."""
        if self.status:
            self.close_connection = True
            return
        headers = {"Content-Type": "application/json", **refused.headers}
        self.respond(ServerResponse(refused.status, headers, refused.body()))

    def write_response(self, answer: ServerResponse) -> None:
        """Write an answer to the connection."""
        self.write_head(answer)
        if self.command != "HEAD" and answer.size:
            self.write_body(answer.body)

    def write_head(self, answer: ServerResponse) -> None:
        """Write an answer's status line and headers."""
        self.send_response_only(answer.status)
        self.send_header("Server", self.version_string())
        self.send_header("Date", self.date_time_string())
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if (size := self.content_length(answer)) is not None:
            self.send_header("Content-Length", str(size))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def content_length(self, answer: ServerResponse) -> int | None:
        """Give what Content-Length says of an answer, or None where it is left out."""
        return None if answer.status in _STATUSES_WITHOUT_BODY else answer.size

    def write_body(self, body: bytes | FileSection) -> None:
        """Write an answer's body. A file that has become shorter meanwhile ends the connection."""
        if isinstance(body, FileSection):
            if body.digest is None and not isinstance(self.connection, ssl.SSLSocket):
                self.sent += self.connection.sendfile(body.file, body.offset, body.size)
            else:
                self._write_pieces(body)
            if self.sent < body.size:
                self._record_problem("a file became shorter while it was sent", is_server_fault=True)
                self.close_connection = True
        else:
            self.wfile.write(body)
            self.sent += len(body)

    def _write_pieces(self, part: FileSection) -> None:
        """Write a part piece by piece, the last one only if the digest is right.

        Raises:
            IntegrityError: it is not.
        """
        chunks: Iterator[Chunk] = read_chunks(files.OffsetReader(part.file.fileno(), part.offset), part.size)
        if part.digest is not None:
            before = read_chunks(
                files.OffsetReader(part.file.fileno(), part.offset - part.preceding_size), part.preceding_size
            )
            chunks = verify_chunks(
                chunks, Descriptor(UNKNOWN_MEDIA_TYPE, part.digest, part.preceding_size + part.size), before
            )
        for chunk in chunks:
            self.connection.sendall(chunk)
            self.sent += len(chunk)
        if part.digest is not None and part.on_verified is not None:
            part.on_verified()

    def log_access(self, entry: AccessLogEntry) -> None:
        """Take note of a request that is done with, for a log."""

    def version_string(self) -> str:
        """Give the Server header: no version of Python."""
        return self.server_version

    def handle_expect_100(self) -> bool:
        """Leave the interim answer for when the body is wanted, so that a refusal spares the client sending it."""
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what http.server itself refuses: a malformed request, too long a line, an unknown method."""
        del explain
        self._reset()
        self.close_connection = True
        # What could not be parsed would be answered as HTTP/0.9, without a status.
        self.request_version = self.protocol_version
        what = message or HTTPStatus(code).phrase
        self._record_problem(what)
        try:
            self.respond_error(RequestRejectedError(int(code), "UNSUPPORTED", what))
            self._linger()
        except OSError as error:
            self._record_problem(f"the connection failed: {error}")
        self._log_request()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class named it
        """Stay silent: `finished` is the log."""

    def _send_continue(self) -> None:
        self.send_response_only(HTTPStatus.CONTINUE)
        self.end_headers()

    def _drain_or_close(self) -> None:
        """Decide whether the connection stays open: only if the next request's beginning is sure to be found."""
        if self.request_version != "HTTP/1.1":
            self.close_connection = True
        if self.body.is_finished or self.close_connection:
            return
        left = self.body.remaining
        if self.body.expects_continue or left is None or left > limits.MAX_DRAINED:
            self.close_connection = True
            return
        self.set_waiting(True)
        scratch = memoryview(bytearray(limits.DISCARD_BUFFER))
        try:
            while self.body.readinto(scratch):
                pass
        except RequestRejectedError:
            self.close_connection = True
        if self.is_admitted:
            self.set_waiting(False)

    def _linger(self) -> None:
        """Let a client that is still sending read its answer before the connection is cut.

        Closing a socket with unread bytes in it resets the connection, and the reset may overtake the answer.
        """
        deadline = time.monotonic() + _LINGER
        scratch = memoryview(bytearray(limits.DISCARD_BUFFER))
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER)
            while time.monotonic() < deadline and self.rfile.readinto1(scratch):
                pass

    def _record_problem(self, problem: str, *, is_server_fault: bool = False) -> None:
        self.problem = problem
        self.is_server_fault = is_server_fault

    def _log_request(self) -> None:
        self.log_access(
            AccessLogEntry(
                client=str(self.client_address[0]),
                method=self.command or "-",
                target=self.path or "-",
                status=self.status,
                received=self.body.received,
                sent=self.sent,
                seconds=time.monotonic() - self.started,
                problem=self.problem,
                timestamp=self.timestamp,
                user=self.user,
                version=self.request_version or self.protocol_version,
                is_server_fault=self.is_server_fault,
            )
        )
