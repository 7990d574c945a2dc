"""Responses: a bounded head, and a body that is read into buffers which the caller or the run reuses.

`RawResponse` knows where head and body end, and reads from the socket. `Response` is what the client returns: it counts
the body, limits its rate, and converts failures.
"""

from __future__ import annotations

import contextlib
import http
import http.client
import io
import itertools
import math
import re
import select
import socket
import sys
import time
from typing import TYPE_CHECKING, Final, cast

from ocistream import limits
from ocistream.errors import CancelledError, NetworkError, PermanentNetworkError
from ocistream.http.errors import describe_cause
from ocistream.http.origins import redact_url
from ocistream.http.retry import parse_retry_after
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    import requests

    from ocistream.http.adapter import _Connection
    from ocistream.streams.chunks import Chunk

#: Maximum number of interim responses (RFC 9110, section 15.2); few servers send even one.
_MAX_INTERIM: Final = 10
#: Maximum size of a status line in bytes, as in http.client.
_MAX_STATUS_LINE: Final = 64 * limits.KIB
#: Maximum size of all lines of a response in bytes: interim responses, headers, chunk sizes and trailers. Most clients
#: and proxies accept at most 64 KiB of headers.
_MAX_LINE_BYTES: Final = 256 * limits.KIB
#: Each byte of the body allows this many more bytes of lines: a chunk of one byte needs five.
_LINE_BYTES_PER_BODY_BYTE: Final = 16
_STATUS_LINE: Final = re.compile(r"(HTTP/\S+)\s+([1-9][0-9]{2})(?:\s(.*))?\Z", re.DOTALL)
#: The length of `HTTP/1.1 413`: these bytes tell a final response from an interim one (RFC 9112, section 4).
_STATUS_LENGTH: Final = 12
_STATUS: Final = slice(9, 12)
#: A valid Content-Length.
_LENGTH: Final = re.compile(r"[0-9]{1,18}\Z")
#: A chunk size in a form that `int` reads. A negative one is refused by itself.
_CHUNK_SIZE: Final = re.compile(rb"-?[0-9A-Fa-f]+")
_STATUSES_WITHOUT_BODY: Final = frozenset({101, 204, 304})


class Response:
    """A response whose body has not been read yet."""

    def __init__(self, sent: requests.Response) -> None:
        """Read the body of what the adapter returned, whose head was read."""
        self._raw = raw = cast("RawResponse", sent.raw)
        connection = cast("_Connection", sent.connection)
        self._adapter = connection.adapter
        #: None after the end of the response.
        self._connection: _Connection | None = connection
        self._throttle = connection.route.connection_limits.download
        #: Bytes of the body received so far.
        self._received = 0
        self.method = sent.request.method or ""
        self.url = sent.url
        #: The origin of the URL.
        self.origin = connection.route.origin
        self.status = raw.status
        #: The body, after `read` or `drain`; its beginning if it broke off.
        self.content = b""
        #: How many redirects were followed to get this response.
        self.hops = 0

    def header(self, name: str) -> str | None:
        """Return the value of a header, or None."""
        values = self._raw.fields.get(name.lower())
        return ", ".join(values) if values is not None else None

    @property
    def retry_after(self) -> float | None:
        """How many seconds the server asks to wait; None if it does not."""
        return parse_retry_after(self.header("Retry-After"))

    def challenges(self) -> Sequence[str]:
        """Return the values of all WWW-Authenticate headers."""
        return self._raw.fields.get("www-authenticate", [])

    def chunks(self) -> Iterator[Chunk]:
        """Yield the body as it arrives; a chunk is valid until the next one is requested.

        Raises:
            NetworkError: the body broke off or stalled. It is permanent if the body never ends.
        """
        length = self._raw.length
        borrowed: contextlib.AbstractContextManager[Iterator[memoryview]] = self._adapter.read_buffers.borrow()
        if length is not None and length <= limits.MIN_READ:
            # A small body needs no large buffers, and most often one read.
            borrowed = contextlib.nullcontext(memoryview(bytearray(max(length, 1))) for _ in itertools.count())
        with contextlib.closing(self), borrowed as buffers:
            # At the end no further buffer is needed. If the body is short, one more read reports that.
            while not self._raw.is_complete:
                buffer = next(buffers)
                if not (count := self._fill(buffer)):
                    return
                yield buffer[:count]

    def read_into(self, size: int, buffers: Iterator[memoryview]) -> Generator[int, None, None]:
        """Read a body of `size` bytes into `buffers`, one after the other; yield the number of bytes of each read.

        Stop if there is no further buffer.

        Raises:
            NetworkError: the body broke off, stalled, or is longer than `size`. It is permanent if the body never ends.
        """
        missing, view = size, memoryview(b"")
        with contextlib.closing(self):
            while missing:
                view = (view or next(buffers, view))[:missing]
                if not view or not (count := self._fill(view)):
                    return
                view = view[count:]
                missing -= count
                yield count
            # Read up to the end of the body, so that the connection can be reused.
            if self._fill(memoryview(bytearray(1))):
                msg = f"{self.method} {redact_url(self.url)}: asked for {size} bytes, got more"
                raise NetworkError(msg)

    def read(self, limit: int) -> bytes:
        """Read a small body into `content`, and return it, cut to `limit` + 1 bytes: then the body is too long.

        Raises:
            NetworkError: the body broke off.
        """
        length, content = self._raw.length, bytearray()
        size = min(limit if length is None else length, limit, limits.MIN_READ - 1) + 1
        with contextlib.closing(self):
            try:
                buffer = memoryview(bytearray(size))
                while len(content) <= limit and (count := self._fill(buffer)):
                    content += buffer[:count]
            finally:
                self.content = bytes(content[: limit + 1])
        return self.content

    def drain(self) -> bytes:
        """Read a small body, so that the connection can be reused; return the beginning, as far as it can be read.

        The status counts even if the body breaks off.
        """
        if self._connection is not None:
            # A wait for the rate limit ends when the transfer is cancelled.
            with contextlib.suppress(NetworkError, CancelledError):
                self.read(limits.MAX_ERROR_BODY)
        return self.content

    def close(self) -> None:
        """Keep the connection for other requests if the body was read to its end; else close it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._adapter.release(connection, is_reusable=self._raw.is_complete and not self._raw.is_last)

    def _fill(self, view: memoryview) -> int:
        """Read a piece of the body into the beginning of `view` and return its size in bytes; 0 at the end."""
        raw = self._raw
        max_size = min(len(view), raw.max_read if self._throttle is None else self._throttle.piece_size)
        min_size = min(max_size, raw.min_read)
        filled = 0
        try:
            while filled < min_size and (count := raw.readinto(view[filled:max_size])):
                filled += count
        except EndlessResponseError as error:
            msg = f"{self.method} {redact_url(self.url)}: {error}"
            raise PermanentNetworkError(msg) from None
        except (http.client.HTTPException, OSError) as error:
            msg = f"{self.method} {redact_url(self.url)}: the response was cut: {describe_cause(error)}"
            raise NetworkError(msg) from error
        if not filled and raw.length:
            sizes = f"received {self._received} bytes, {raw.length} are missing"
            msg = f"{self.method} {redact_url(self.url)}: the response was cut: {sizes}"
            raise NetworkError(msg)
        self._received += filled
        if self._throttle is not None and filled:
            self._adapter.sleep(self._throttle.count(filled))
        return filled


class EndlessResponseError(Exception):
    """A response that never ends, or whose end is unknown. It is not requested again."""


class RawResponse:
    """One response on a socket (RFC 9112).

    http.client creates it as the `response_class` of a connection and calls `begin`, `isclosed` and `close`; for the
    head of a proxy's tunnel also `_read_status` and `fp.readline`. Its own class has no limit on the sum of all lines,
    parses the head as e-mail, which takes a third of the CPU time of a request, and takes an interim response other
    than 100 for the final one.
    """

    #: http.client must leave the connection open: the adapter closes it, by `is_last`.
    will_close: Final = False

    def __init__(
        self,
        sock: socket.socket,
        debuglevel: int = 0,  # noqa: ARG002 - http.client's signature
        method: str | None = None,
    ) -> None:
        """Read the response to a request from a socket."""
        self._socket = sock
        self._method = method
        #: Bytes that were received and not read yet.
        self._buffer = bytearray()
        self._line_bytes_left = _MAX_LINE_BYTES
        self._interim_left = _MAX_INTERIM
        #: The time at which the head must be complete, infinite until its first byte; None for a body.
        self._deadline: float | None = math.inf
        self._collector: _Collector | None = None
        self.status = 0
        #: Headers by their names in lower case.
        self.fields: dict[str, list[str]] = {}
        #: How many bytes of the body are still to come; None if the body is chunked or ends with its connection.
        self.length: int | None = None
        self._is_chunked = False
        #: How many bytes of the current chunk are still to come; None before the first one.
        self._chunk_left: int | None = None
        #: Whether no other response can follow on this connection.
        self.is_last = False
        #: Whether the body was read to its end.
        self.is_complete = False
        #: How many bytes to read at once. TLS delivers 16 KiB at a time, and a chunk may be as small: they are
        #: collected. From a TCP socket, 1 MiB costs a quarter of the system calls of 256 KiB.
        self.min_read = self.max_read = limits.CHUNK_SIZE

    @property
    def fp(self) -> RawResponse:
        """The file that http.client reads the head of a tunnel from."""
        return self

    @property
    def has_begun(self) -> bool:
        """Whether a byte of the response has arrived."""
        return bool(self._buffer) or self._line_bytes_left < _MAX_LINE_BYTES

    def has_early_response(self, timeout: float) -> bool:
        """Wait until more of the request can be sent, or data arrives; return whether the final response has started.

        After that the server may still wait for the rest of the request, so the connection is not reused.

        Raises:
            TimeoutError: for `timeout` seconds nothing could be sent and nothing arrived.
        """
        if self.is_last:
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLOUT)
        ready = poll.poll(timeout * 1000)
        if not ready:
            msg = "timed out"
            raise TimeoutError(msg)
        if any(events & select.POLLIN for _, events in ready):
            self._socket.settimeout(0)
            try:
                # The bytes are read, not peeked at, because TLS cannot peek.
                self._buffer += self._socket.recv(_STATUS_LENGTH - len(self._buffer))
            except OSError:
                # No data arrived yet (in TLS, only a session ticket), or the connection broke: the next send fails.
                pass
            finally:
                self._socket.settimeout(timeout)
            while len(self._buffer) >= _STATUS_LENGTH and not self.is_last:
                status = bytes(self._buffer[_STATUS])
                self.is_last = status[:1] != b"1" or status == b"101"
                if not self.is_last:
                    # An interim response says nothing about the body.
                    self._read_head()
        return self.is_last

    def begin(self) -> None:
        """Read the head of the final response, and find out where its body ends (RFC 9112, section 6.3)."""
        version = self._read_head()
        while 100 <= self.status < 200 and self.status != http.HTTPStatus.SWITCHING_PROTOCOLS:
            version = self._read_head()
        if not version.startswith("HTTP/1."):
            raise http.client.UnknownProtocol(version)
        self._deadline = None
        connection = ", ".join(self.fields.get("connection", ())).lower()
        self.is_last |= "close" in connection or (version == "HTTP/1.0" and "keep-alive" not in connection)
        self._is_chunked = ", ".join(self.fields.get("transfer-encoding", ())).lower() == "chunked"
        lengths = self.fields.get("content-length")
        if self._method == "HEAD" or self.status in _STATUSES_WITHOUT_BODY:
            self.length = 0
        elif not self._is_chunked and lengths is not None:
            self.length = _parse_length(lengths)
        self.is_complete = self.length == 0
        # Without a length the body ends with its connection.
        self.is_last |= self.length is None and not self._is_chunked
        # TLS through a proxy with TLS is not a socket.
        if type(self._socket) is socket.socket and not self._is_chunked:
            self.min_read, self.max_read = limits.MIN_READ, limits.READ_BUFFER
            if self.length and sys.platform == "linux":
                self._collector = _Collector(self._socket)

    def _read_head(self) -> str:
        """Read the head of one response, which may be an interim one, and return its version of HTTP."""
        if self._interim_left < 0:
            msg = f"more than {_MAX_INTERIM} interim responses"
            raise EndlessResponseError(msg)
        self._interim_left -= 1
        # The final response may take its time to start after an interim one.
        self._deadline = math.inf
        version, self.status, _reason = self._read_status()
        self.fields = self._read_fields()
        return version

    def readinto(self, view: memoryview) -> int:
        """Read a piece of the body into `view`; return its size, 0 at the end, also if the connection closed early.

        Raises:
            EndlessResponseError: the body has no end.
            HTTPException, OSError: the body broke off.
        """
        if self._is_chunked and not self._chunk_left and not self.is_complete:
            self._chunk_left = self._read_chunk_size()
            self.is_complete = not self._chunk_left
        if self.is_complete:
            return 0
        left = self._chunk_left if self._is_chunked else self.length
        if left is not None:
            view = view[:left]
        if self._buffer:
            count = min(len(view), len(self._buffer))
            view[:count] = self._buffer[:count]
            del self._buffer[:count]
        elif self._collector is not None:
            count = self._collector.readinto(view, left or 0)
        else:
            count = self._socket.recv_into(view)
        self._line_bytes_left = min(self._line_bytes_left + _LINE_BYTES_PER_BODY_BYTE * count, _MAX_LINE_BYTES)
        if self._is_chunked:
            if not count:
                raise http.client.IncompleteRead(b"")
            self._chunk_left = (left or 0) - count
        elif self.length is not None:
            self.length -= count
            self.is_complete = not self.length
        else:
            self.is_complete = not count
        return count

    def readline(self, size: int) -> bytes:
        """Return the next line with its end, cut to `size` bytes; an incomplete one if the connection closes."""
        searched = 0
        while not (end := self._buffer.find(b"\n", searched) + 1) and len(self._buffer) < size:
            searched = len(self._buffer)
            received = bytearray(io.DEFAULT_BUFFER_SIZE)
            if not (count := self._socket.recv_into(received)):
                break
            self._buffer += received[:count]
            # A byte now and then is not a stall, but would keep the connection forever.
            now = time.monotonic()
            if self._deadline == math.inf:
                self._deadline = now + limits.RESPONSE_HEAD_TIMEOUT
            elif self._deadline is not None and now > self._deadline:
                msg = f"the headers of the response took more than {limits.RESPONSE_HEAD_TIMEOUT:g} s"
                raise TimeoutError(msg)
        line = bytes(self._buffer[: min(end or size, size)])
        del self._buffer[: len(line)]
        self._line_bytes_left -= len(line)
        if self._line_bytes_left < 0:
            msg = f"more than {_MAX_LINE_BYTES} bytes of headers, or between the chunks of the response body"
            raise EndlessResponseError(msg)
        return line

    def isclosed(self) -> bool:
        """Return whether http.client may send the next request."""
        return True

    def close(self) -> None:
        """Do nothing: the adapter closes the connection."""

    def _read_status(self) -> tuple[str, int, str]:
        line = self.readline(_MAX_STATUS_LINE + 1).decode("latin-1")
        if len(line) > _MAX_STATUS_LINE:
            raise http.client.LineTooLong("status line")
        if not line:
            msg = "the server closed the connection"
            raise http.client.RemoteDisconnected(msg)
        match = _STATUS_LINE.match(line)
        if match is None:
            raise http.client.BadStatusLine(line)
        return match[1], int(match[2]), match[3] or ""

    def _read_fields(self) -> dict[str, list[str]]:
        """Read header lines up to the empty one; skip malformed lines."""
        fields: dict[str, list[str]] = {}
        values: list[str] = []
        while (line := self.readline(_MAX_LINE_BYTES).decode("latin-1")) not in {"\r\n", "\n"}:
            if not line:
                msg = "the connection closed in the middle of the response headers"
                raise ConnectionError(msg)
            name, colon, value = line.partition(":")
            if line[0] in " \t" and values:
                # A folded line (RFC 9112, section 5.2).
                values[-1] += f" {line.strip()}"
            elif colon and name and " " not in name:
                values = fields.setdefault(name.lower(), [])
                values.append(value.strip())
            else:
                values = []
        return fields

    def _read_chunk_size(self) -> int:
        """Return the size of the next chunk; 0 after the last one and its trailers."""
        if self._chunk_left is not None and self.readline(2) != b"\r\n":
            msg = "a chunk of the response body is not followed by the end of its line"
            raise ConnectionError(msg)
        text = self.readline(_MAX_LINE_BYTES).partition(b";")[0].strip()
        if _CHUNK_SIZE.fullmatch(text) is None:
            msg = "a chunk of the response body has a malformed size"
            raise ConnectionError(msg)
        size = int(text, 16)
        if size < 0:
            msg = "a chunk of the response body has a negative size"
            raise EndlessResponseError(msg)
        if size == 0:
            while self.readline(_MAX_LINE_BYTES) not in {b"\r\n", b"\n", b""}:
                pass
        return size


def _parse_length(values: Sequence[str]) -> int:
    """Return the value of the Content-Length headers; proxies may repeat one (RFC 9112, section 6.3)."""
    text = ",".join(values)
    first, *others = {value.strip() for value in text.split(",")}
    if others or not _LENGTH.match(first):
        msg = f"malformed Content-Length: {printable(text, 40)}"
        raise EndlessResponseError(msg)
    return int(first)


class _Collector:
    """Reads a body of known length from a TCP socket, in few large reads while its bytes arrive fast.

    A proxy such as nginx writes 16 KiB at a time, and each read costs more CPU time than its bytes. So the kernel ends
    a wait only when `limits.CHUNK_SIZE` bytes have arrived (SO_RCVLOWAT), the end of the body, or of the connection. It
    waits `limits.MAX_COLLECT_TIME` at most: then the bytes that have arrived are read.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._timeout = sock.gettimeout()
        #: The kernel's low water mark: 1 between two responses.
        self._awaited = 1
        #: The first byte of a response may take its time.
        self._is_fast = False
        self._counted = 0
        self._counted_since = time.monotonic()

    def readinto(self, view: memoryview, left: int) -> int:
        """Read a piece of a body of which `left` bytes are still to come."""
        self._set_awaited(min(limits.CHUNK_SIZE, left, len(view)) if self._is_fast else 1)
        try:
            count = self._socket.recv_into(view)
        except TimeoutError:
            if self._awaited == 1:
                raise
            self._is_fast = False
            self._set_awaited(1)
            count = self._socket.recv_into(view)
        if left - count < limits.MIN_READ:
            # Nothing may be read after this, and the connection may be reused.
            self._set_awaited(1)
        self._counted += count
        if self._counted >= limits.CHUNK_SIZE:
            now = time.monotonic()
            self._is_fast = now - self._counted_since <= limits.MAX_COLLECT_TIME
            self._counted, self._counted_since = 0, now
        return count

    def _set_awaited(self, size: int) -> None:
        """Set the number of bytes that end a wait, and how long one may take."""
        if size < limits.MIN_READ:
            size = 1
        if size != self._awaited:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            if size == 1:
                self._socket.settimeout(self._timeout)
            elif self._awaited == 1 and (self._timeout is None or self._timeout > limits.MAX_COLLECT_TIME):
                self._socket.settimeout(limits.MAX_COLLECT_TIME)
            self._awaited = size
