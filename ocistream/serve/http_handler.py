"""HTTP/1.1 over one connection: read a request, write the response, decide whether the connection stays open.

Subclasses implement `dispatch`, which knows the endpoints of the registry.
"""

from __future__ import annotations

import contextlib
import socket
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from http import HTTPStatus
from io import BytesIO
from socketserver import StreamRequestHandler
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias
from wsgiref.handlers import format_date_time

from ocistream import limits
from ocistream.errors import OcistreamError
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor
from ocistream.serve.request import (
    RequestBody,
    RequestRejectedError,
    check_host,
    open_request_body,
    read_headers,
    read_request_line,
)
from ocistream.streams import files
from ocistream.streams.chunks import read_chunks, verify_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from io import BufferedReader, FileIO

    from ocistream.serve.server import ConnectionServer
    from ocistream.streams.chunks import Chunk

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
#: Statuses whose responses have neither a body nor a Content-Length (RFC 9110, sections 8.6 and 15).
_STATUSES_WITHOUT_BODY: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
#: Docker's clients expect the version of the API in every response.
_COMMON_HEADERS: Final = {"Server": "ocistream", "Docker-Distribution-Api-Version": "registry/2.0"}
#: How long, in seconds, a rejected client may continue to send until its connection is cut.
_LINGER: Final = 2.0


@dataclass(frozen=True, slots=True)
class FileSection:
    """`size` bytes of an open file, from `offset` on. Its opener closes the file; the file's position is not used.

    With a `digest` the bytes are verified while they are sent, together with the `preceding_size` bytes before them,
    which are not sent. `on_verified` is called if the digest is right.
    """

    file: FileIO
    offset: int
    size: int
    digest: str | None = None
    preceding_size: int = 0
    on_verified: Callable[[], None] | None = None


#: The body of a response: bytes, a section of a file, or pieces whose total size is not known.
Body: TypeAlias = "bytes | FileSection | Iterator[bytes]"


@dataclass(slots=True)
class AccessLogEntry:
    """A line of the access log, which is filled while the request is served.

    `received` and `sent` are bytes of the bodies; `seconds` is the duration. `timestamp` is the start in seconds since
    1970. `user` is the authenticated user. `status` is 0 if no response was sent. `problem` describes a failure for the
    operator; `is_server_fault` says that the storage or the disk caused it.
    """

    client: str
    method: str = "-"
    target: str = "-"
    status: int = 0
    received: int = 0
    sent: int = 0
    seconds: float = 0.0
    problem: str | None = None
    timestamp: float = 0.0
    user: str | None = None
    version: str = "HTTP/1.1"
    is_server_fault: bool = False


class HTTPRequestHandler(StreamRequestHandler, ABC):
    """Serves the requests of one connection.

    Not http.server's class: it parses heads less strictly than `request`, and takes more memory and time.
    """

    # The end of a response must not wait until the client acknowledges its beginning.
    disable_nagle_algorithm = True
    timeout: ClassVar[float | None] = limits.CLIENT_IDLE_TIMEOUT
    server: ConnectionServer
    rfile: BufferedReader

    def set_waiting(self, is_waiting: bool) -> None:
        """Tell the server whether the connection waits for its client, so that it may be closed to accept others."""
        self.server.set_waiting(self.request, is_waiting)

    @abstractmethod
    def dispatch(self) -> None:
        """Serve the request and `respond`, or raise `RequestRejectedError`."""

    @abstractmethod
    def log_access(self, entry: AccessLogEntry) -> None:
        """Log a request that has ended."""

    def mark_admitted(self) -> None:
        """Record that the request will be served. Until then the connection counts as waiting."""
        self.is_admitted = True
        self.set_waiting(False)

    def handle(self) -> None:
        """Serve requests until the client or the last response closes the connection."""
        self.closes_connection = False
        while not self.closes_connection:
            self.set_waiting(True)
            if not self.rfile.peek(1):
                return
            self._serve_request()

    def _serve_request(self) -> None:
        """Read and serve one request. No failure sends a traceback to the client."""
        started = time.monotonic()
        self.entry = AccessLogEntry(str(self.client_address[0]), timestamp=time.time())
        self.is_admitted = False
        # Until the head was read, the end of the request is unknown.
        self.method, self.body, self.closes_connection = "", RequestBody(self.rfile, None), True
        try:
            self._respond_to_request()
        except OSError as error:
            # The connection broke, or the client left or stopped sending: no response is possible.
            self._record_problem(f"the connection failed: {error}")
            self.closes_connection = True
        finally:
            self.entry.received, self.entry.seconds = self.body.received, time.monotonic() - started
            self.log_access(self.entry)

    def _respond_to_request(self) -> None:
        try:
            self._read_head()
            self.dispatch()
        except RequestRejectedError as refused:
            self._record_problem(refused.message)
            self.respond_error(refused)
        except OcistreamError as error:
            # Our disk or its contents failed. The text has paths in it, so it is for the log only.
            self._record_problem(error.message, is_server_fault=True)
            self.respond_error(RequestRejectedError(500, "UNKNOWN", "the registry cannot read or write its storage"))

    def _read_head(self) -> None:
        entry = self.entry
        entry.method, entry.target, entry.version = read_request_line(self.rfile)
        self.method, self.target = entry.method, entry.target
        if self.method not in _METHODS:
            raise RequestRejectedError(501, "UNSUPPORTED", f"no endpoint has the method {self.method}")
        self.headers = read_headers(self.rfile)
        check_host(self.headers, self.target, entry.version)
        self.body = open_request_body(self.headers, self.rfile, self._send_continue, entry.version)
        self.closes_connection = entry.version != "HTTP/1.1" or "close" in self.headers.get("connection", "").lower()

    def read_small_body(self, limit: int, on_large: Callable[[], object] = lambda: None) -> bytes | None:
        """Read a body to its end, or return None as soon as its size is known to exceed `limit` bytes.

        `on_large` is called before more than `LARGE_MANIFEST` bytes are buffered. From then on the client's time is
        limited.

        Raises:
            RequestRejectedError: the client takes too long (408), or stops before the end (400).
        """
        content, piece = BytesIO(), memoryview(bytearray(limits.DISCARD_BUFFER))
        deadline: float | None = None
        try:
            while (expected := max(self.body.size or 0, content.tell())) <= limit:
                if expected > limits.LARGE_MANIFEST and deadline is None:
                    on_large()
                    deadline = time.monotonic() + limits.LARGE_PUSH_TIMEOUT
                self.set_deadline(deadline)
                if not (count := self.body.readinto(piece)):
                    return content.getvalue()
                content.write(piece[:count])
        except TimeoutError as error:
            if deadline is None:
                raise
            # A connection cannot be read after a timeout.
            self.closes_connection = True
            raise RequestRejectedError(408, "SIZE_INVALID", "the body took too long") from error
        finally:
            self.set_deadline(None)
        return None

    def set_deadline(self, deadline: float | None) -> None:
        """Let the connection fail at a time of `time.monotonic`; None for the timeout of each read and write."""
        # Not 0, which would make the socket non-blocking.
        self.connection.settimeout(self.timeout if deadline is None else max(deadline - time.monotonic(), 0.001))

    def respond(self, status: int, headers: Mapping[str, str] | None = None, body: Body = b"") -> None:
        """Send a response, after the rest of the request's body was read or the connection marked for closing.

        Content-Length, Date and Connection are added to its headers.
        """
        self._drain_or_close()
        self.entry.status = int(status)
        size = len(body) if isinstance(body, bytes) else None
        if isinstance(body, FileSection):
            size = body.size
        self._write_head(status, headers or {}, size)
        if self.method != "HEAD" and size != 0:
            self._write_body(body)
        if not self.body.is_finished:
            self._linger()

    def respond_error(self, refused: RequestRejectedError) -> None:
        """Send an error response. If a response was sent in part already, only cut the connection."""
        if self.entry.status:
            self.closes_connection = True
            return
        headers = {"Content-Type": "application/json", **refused.headers}
        self.respond(refused.status, headers, refused.body())

    def _write_head(self, status: int, headers: Mapping[str, str], size: int | None) -> None:
        """Write a response's status line and headers. `size` is that of its body, for HEAD too, if it is known."""
        fields = {**_COMMON_HEADERS, "Date": format_date_time(time.time()), **headers}
        if size is None:
            if not self.closes_connection:
                fields["Transfer-Encoding"] = "chunked"
        elif status not in _STATUSES_WITHOUT_BODY:
            fields["Content-Length"] = str(size)
        if self.closes_connection:
            fields["Connection"] = "close"
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {fields[name]}" for name in fields)]
        self.wfile.write("".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1"))

    def _write_body(self, body: Body) -> None:
        """Write a response's body. If its file has become shorter meanwhile, the connection ends.

        A section without a digest is sent by `sendfile`, except over TLS. A section with a digest is hashed in this
        process.
        """
        if isinstance(body, FileSection):
            # `ssl` takes 1 MiB and is imported only if it is used.
            if body.digest is None and type(self.connection) is socket.socket:
                self.entry.sent += self.connection.sendfile(body.file, body.offset, body.size)
            else:
                self._write_pieces(body)
            if self.entry.sent < body.size:
                self._record_problem("a file became shorter while it was sent", is_server_fault=True)
                self.closes_connection = True
        elif isinstance(body, bytes):
            self.wfile.write(body)
            self.entry.sent += len(body)
        else:
            self._write_chunked(body)

    def _write_chunked(self, pieces: Iterator[bytes]) -> None:
        """Write a body of unknown size in the chunked coding, or up to the end of the connection."""
        is_chunked = not self.closes_connection
        # An empty chunk would be the end.
        for piece in filter(None, pieces):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
            self.entry.sent += len(piece)
        if is_chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _write_pieces(self, section: FileSection) -> None:
        """Write a section in chunks, the last one only if the digest is right.

        Raises:
            IntegrityError: the digest is wrong.
        """

        def read(offset: int, size: int) -> Iterator[Chunk]:
            return read_chunks(files.OffsetReader(section.file.fileno(), offset), size, self.server.buffer_size())

        chunks = read(section.offset, section.size)
        if section.digest is not None:
            preceding_chunks = read(section.offset - section.preceding_size, section.preceding_size)
            chunks = verify_chunks(
                chunks,
                Descriptor(UNKNOWN_MEDIA_TYPE, section.digest, section.preceding_size + section.size),
                preceding_chunks,
            )
        for chunk in chunks:
            self.connection.sendall(chunk)
            self.entry.sent += len(chunk)
        if section.digest is not None and section.on_verified is not None:
            section.on_verified()

    def _send_continue(self) -> None:
        self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _drain_or_close(self) -> None:
        """Read the rest of the body, or mark the connection for closing.

        The connection stays open only if the start of the next request is certain.
        """
        if self.body.is_finished or self.closes_connection:
            return
        remaining = self.body.remaining
        if self.body.expects_continue or remaining is None or remaining > limits.MAX_DRAINED:
            self.closes_connection = True
            return
        self.set_waiting(True)
        scratch = memoryview(bytearray(limits.DISCARD_BUFFER))
        try:
            while self.body.readinto(scratch):
                pass
        except RequestRejectedError:
            self.closes_connection = True
        if self.is_admitted:
            self.set_waiting(False)

    def _linger(self) -> None:
        """Let a client that is still sending read its response before the connection is cut.

        Closing a socket with unread bytes resets the connection, and the reset may overtake the response.
        """
        deadline = time.monotonic() + _LINGER
        scratch = memoryview(bytearray(limits.DISCARD_BUFFER))
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER)
            while time.monotonic() < deadline and self.rfile.readinto1(scratch):
                pass

    def _record_problem(self, problem: str, *, is_server_fault: bool = False) -> None:
        self.entry.problem, self.entry.is_server_fault = problem, is_server_fault
