"""Responses: a bounded head, and a body that is read into buffers which the caller or the run reuses.

A byte of the body passes from the socket (or `_CollectingReader`) to `_SocketReader`, which bounds the time of the
head; to `_BoundedReader`, which buffers and bounds the lines; to `BoundedResponse`, which knows the length and the
chunks; to `Response`, which counts and limits the rate. After the head `_SocketReader` only passes on.
"""

from __future__ import annotations

import contextlib
import http
import http.client
import io
import itertools
import re
import socket
import ssl
import sys
import time
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import NetworkError, PermanentNetworkError
from ocistream.http.errors import describe_cause
from ocistream.http.origins import redact_url
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from _typeshed import WriteableBuffer

    from ocistream.http.origins import Origin
    from ocistream.http.rate_limits import BlockingThrottle
    from ocistream.streams.chunks import Chunk
    from ocistream.streams.memory import ReadBuffers

#: Maximum number of interim responses (RFC 9110, section 15.2); few servers send even one.
_MAX_INTERIM: Final = 10
#: Maximum size of all lines of a response in bytes: interim responses, headers, chunk sizes and trailers. Most clients
#: and proxies accept at most 64 KiB of headers.
_MAX_LINE_BYTES: Final = 256 * limits.KIB
#: Each byte of the body allows this many more bytes of lines: a chunk of one byte needs three.
_LINE_BYTES_PER_BODY_BYTE: Final = 16
#: A valid Content-Length.
_LENGTH: Final = re.compile(r"[0-9]{1,18}\Z")
_STATUSES_WITHOUT_BODY: Final = frozenset({101, 204, 304})


class Response:
    """A response whose body has not been read yet."""

    def __init__(
        self,
        raw: BoundedResponse,
        method: str,
        url: str,
        origin: Origin,
        release: Callable[[], None],
        read_buffers: ReadBuffers,
        throttle: BlockingThrottle | None,
    ) -> None:
        """Read the body into `read_buffers`, at the rate that `throttle` allows; `release` ends the response."""
        self._raw = raw
        self._release = release
        self._read_buffers = read_buffers
        self._throttle = throttle
        #: Bytes of the body received so far.
        self._received = 0
        self._error_body: bytes | None = None
        self.method = method
        self.url = url
        #: The origin of the URL.
        self.origin = origin
        self.status = raw.status
        #: The body, after `read`.
        self.content = b""
        #: How many redirects were followed to get this response.
        self.hops = 0

    def header(self, name: str) -> str | None:
        """Return the value of a header, or None."""
        values = self._raw.fields.get(name.lower())
        return ", ".join(values) if values is not None else None

    def challenges(self) -> Sequence[str]:
        """Return the values of all WWW-Authenticate headers."""
        return self._raw.fields.get("www-authenticate", [])

    def chunks(self) -> Iterator[Chunk]:
        """Yield the body as it arrives; a chunk is valid until the next one is requested.

        Raises:
            NetworkError: the body broke off or stalled. It is permanent if the body never ends.
        """
        length = self._raw.length
        borrowed: contextlib.AbstractContextManager[Iterator[memoryview]] = self._read_buffers.borrow()
        if length is not None and length <= limits.MIN_READ:
            # A small body needs no large buffers, and most often one read.
            borrowed = contextlib.nullcontext(memoryview(bytearray(max(length, 1))) for _ in itertools.count())
        with contextlib.closing(self), borrowed as buffers:
            # At the end no further buffer is needed. If the body is short, one more read reports that.
            while self._raw.missing or not self._raw.isclosed():
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
        content = bytearray()
        self._append_to(content, limit)
        self.content = bytes(content[: limit + 1])
        return self.content

    def drain(self) -> bytes:
        """Read a small body, so that the connection can be reused; return the beginning, as far as it can be read.

        The status counts even if the body breaks off.
        """
        if self._error_body is None:
            content = bytearray()
            with contextlib.suppress(NetworkError):
                self._append_to(content, limits.MAX_ERROR_BODY)
            self._error_body = bytes(content[: limits.MAX_ERROR_BODY])
        return self._error_body

    def close(self) -> None:
        """Keep the connection for other requests if the body was read to its end; else close it."""
        self._release()

    def _append_to(self, content: bytearray, limit: int) -> None:
        length = self._raw.length
        size = min(limit if length is None else length, limit, limits.MIN_READ - 1) + 1
        with contextlib.closing(self):
            if length == 0:
                return
            buffer = memoryview(bytearray(size))
            while len(content) <= limit and (count := self._fill(buffer)):
                content += buffer[:count]

    def _fill(self, view: memoryview) -> int:
        """Read a piece of the body into the beginning of `view` and return its size in bytes; 0 at the end."""
        raw = self._raw
        max_size = min(len(view), raw.read_size if self._throttle is None else self._throttle.piece_size)
        min_size = min(max_size, limits.MIN_READ)
        filled = 0
        try:
            while filled < min_size and (count := raw.readinto(view[filled:max_size])):
                filled += count
        except EndlessResponseError as error:
            msg = f"{self.method} {redact_url(self.url)}: {error}"
            raise PermanentNetworkError(msg) from None
        except (http.client.HTTPException, OSError, ValueError) as error:
            # http.client raises ValueError for a malformed chunk size.
            msg = f"{self.method} {redact_url(self.url)}: the response was cut: {describe_cause(error)}"
            raise NetworkError(msg) from error
        if not filled and raw.missing:
            came = f"received {self._received} bytes, {raw.missing} are missing"
            msg = f"{self.method} {redact_url(self.url)}: the response was cut: {came}"
            raise NetworkError(msg)
        self._received += filled
        if self._throttle is not None and filled:
            self._throttle.count_and_wait(filled)
        return filled


class EndlessResponseError(Exception):
    """A response that never ends, or whose end is unknown."""


class BoundedResponse(http.client.HTTPResponse):
    """http.client's response, with a limit on the sum of all lines, which http.client does not have.

    Its head is read here, because http.client parses it as e-mail, which takes a third of the CPU time of a request,
    and takes an interim response other than 100 for the final one. http.client reads the body. This relies on its
    internals: `response_class` of a connection; `fp`, the buffered file of a tunnel's response too; `_read_status`; and
    the attributes that `begin` sets.
    """

    fp: _BoundedReader
    #: Headers by their names in lower case.
    fields: dict[str, list[str]]
    #: How many bytes to request at once: 1 MiB from a TCP socket costs a quarter of the system calls of 256 KiB. With
    #: TLS or chunked encoding a read waits until all its bytes have arrived, so it asks for less.
    read_size = limits.CHUNK_SIZE

    def __init__(
        self,
        sock: socket.socket,
        debuglevel: int = 0,
        method: str | None = None,
        *,
        beginning: bytes = b"",
        is_early: bool = False,
    ) -> None:
        """Read from a socket, after a `beginning` that was read already.

        An early response arrives before the request was sent completely: its connection is not reused.
        """
        super().__init__(sock, debuglevel, method)
        self.fp = _BoundedReader(_SocketReader(self.fp.detach(), beginning))
        self._is_early = is_early
        self._socket = sock

    def begin(self) -> None:
        """Read the head of the final response, and find out where its body ends (RFC 9112, section 6.3)."""
        for _ in range(_MAX_INTERIM + 1):
            version, self.status, self.reason = self._read_status()  # type: ignore[attr-defined]
            self.fields = self._read_fields()
            if not 100 <= self.status < 200 or self.status == http.HTTPStatus.SWITCHING_PROTOCOLS:
                break
            self.fp.raw.restart_head()
        else:
            msg = f"more than {_MAX_INTERIM} interim responses"
            raise EndlessResponseError(msg)
        if not version.startswith("HTTP/1."):
            raise http.client.UnknownProtocol(version)
        self.code, self.version = self.status, 10 if version == "HTTP/1.0" else 11
        connection = ", ".join(self.fields.get("connection", ())).lower()
        self.will_close = "close" in connection or (self.version == 10 and "keep-alive" not in connection)
        self.chunked = ", ".join(self.fields.get("transfer-encoding", ())).lower() == "chunked"
        self.chunk_left = None
        lengths = self.fields.get("content-length")
        if self._method == "HEAD" or self.status in _STATUSES_WITHOUT_BODY:  # type: ignore[attr-defined]
            self.length = 0
        elif not self.chunked and lengths is not None:
            self.length = _parse_length(lengths)
        else:
            self.length = None
            # Without a length the body ends with its connection.
            self.will_close = self.will_close or not self.chunked
        if self._is_early:
            # The server still waits for the rest of the request.
            self.will_close = True
        if self.length == 0:
            # There is nothing to read. The connection stays open.
            self.close()
            return
        self.fp.raw.end_head(self._prepare_body())

    def _prepare_body(self) -> Callable[[WriteableBuffer], int] | None:
        """Return what reads the body from the socket, and set how much it reads at once; None for the socket's file."""
        if isinstance(self._socket, ssl.SSLSocket):
            # TLS delivers 16 KiB at a time, which the buffered reader collects. The socket's file would make another
            # Python call for each.
            return self._socket.recv_into
        if hasattr(self._socket, "version") or self.chunked:
            # TLS through a proxy with TLS, or a body whose chunks http.client reads.
            return None
        self.fp.allows_short_reads = True
        self.read_size = limits.READ_BUFFER
        if self.length is None or sys.platform != "linux":
            return None
        return _CollectingReader(self._socket, self.length).readinto

    def _read_fields(self) -> dict[str, list[str]]:
        """Read header lines up to the empty one; skip malformed lines."""
        fields: dict[str, list[str]] = {}
        values: list[str] = []
        while (line := self.fp.readline().decode("latin-1")) not in {"\r\n", "\n"}:
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

    @property
    def missing(self) -> int:
        """How many bytes of the body are still to come, or were when the server closed the connection; 0 if unknown."""
        return self.length or 0

    def _read_next_chunk_size(self) -> int:
        try:
            size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        except ValueError:
            msg = "a chunk of the response body has a malformed size"
            raise ConnectionError(msg) from None
        if size < 0:
            msg = "a chunk of the response body has a negative size"
            raise EndlessResponseError(msg)
        return size


def _parse_length(values: Sequence[str]) -> int:
    """Return the value of the Content-Length headers; proxies may repeat one (RFC 9112, section 6.3)."""
    text = ",".join(values)
    first, *others = {value.strip() for value in text.split(",")}
    if others or not _LENGTH.match(first):
        msg = f"malformed Content-Length: {printable(text, 40)}"
        raise EndlessResponseError(msg)
    return int(first)


class _SocketReader(io.RawIOBase):
    """The raw bytes of a socket. A head may take `limits.RESPONSE_HEAD_TIMEOUT` seconds from its first byte to its end.

    Otherwise a server could send a byte now and then, which is not a stall, and keep the connection forever.
    """

    def __init__(self, raw: io.RawIOBase, beginning: bytes) -> None:
        super().__init__()
        self._raw = raw
        self._beginning = beginning
        self._deadline: float | None = None
        self.is_head = True

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        if self._beginning:
            # They fit: the buffered reader asks for more than these few bytes.
            count = len(self._beginning)
            memoryview(buffer).cast("B")[:count] = self._beginning
            self._beginning = b""
            return count
        received = self._raw.readinto(buffer)
        if self.is_head:
            now = time.monotonic()
            if self._deadline is None:
                self._deadline = now + limits.RESPONSE_HEAD_TIMEOUT
            elif now > self._deadline:
                msg = f"the headers of the response took more than {limits.RESPONSE_HEAD_TIMEOUT:g} s"
                raise TimeoutError(msg)
        return received

    def restart_head(self) -> None:
        """Reset the deadline after an interim response: the final one may take its time to start."""
        self._deadline = None

    def end_head(self, read_body: Callable[[WriteableBuffer], int] | None) -> None:
        """Remove the deadline: the body has none. `read_body` reads the body; None for the same way as the head."""
        self.is_head = False
        # Replaced on this object: `readinto` above would cost the body one more Python call a read.
        self.readinto = read_body or self._raw.readinto  # type: ignore[method-assign]

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        self._raw.close()
        super().close()


class _CollectingReader:
    """Reads a body of known length from a TCP socket, in few large reads while its bytes arrive fast.

    A proxy such as nginx writes 16 KiB at a time, and each read costs more CPU time than its bytes. So the kernel ends
    a wait only when `limits.CHUNK_SIZE` bytes have arrived (SO_RCVLOWAT), the end of the body, or of the connection. It
    waits `limits.MAX_COLLECT_TIME` at most: then the bytes that have arrived are read.
    """

    def __init__(self, sock: socket.socket, length: int) -> None:
        self._socket = sock
        self._timeout = sock.gettimeout()
        #: Bytes that certainly are still to come. The buffered reader may have read some with the head.
        self._left = length - io.DEFAULT_BUFFER_SIZE
        #: The kernel's low water mark: 1 between two responses.
        self._awaited = 1
        #: The first byte of a response may take its time.
        self._is_fast = False
        self._counted = 0
        self._counted_since = time.monotonic()

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        self._await(min(limits.CHUNK_SIZE, self._left, len(view)) if self._is_fast else 1)
        try:
            count = self._socket.recv_into(view)
        except TimeoutError:
            if self._awaited == 1:
                raise
            self._is_fast = False
            self._await(1)
            count = self._socket.recv_into(view)
        self._left -= count
        if self._left < limits.MIN_READ:
            # Nothing may be read after this, and the connection may be reused.
            self._await(1)
        self._counted += count
        if self._counted >= limits.CHUNK_SIZE:
            now = time.monotonic()
            self._is_fast = now - self._counted_since <= limits.MAX_COLLECT_TIME
            self._counted, self._counted_since = 0, now
        return count

    def _await(self, size: int) -> None:
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


class _BoundedReader(io.BufferedReader):
    """A buffered reader of one response that limits its lines."""

    raw: _SocketReader
    #: Return fewer bytes than requested instead of waiting for more.
    allows_short_reads = False
    _line_bytes_left = _MAX_LINE_BYTES

    def readline(self, size: int | None = -1) -> bytes:
        limit = self._line_bytes_left + 1
        line = super().readline(limit if size is None or size < 0 else min(size, limit))
        self._line_bytes_left -= len(line)
        if self._line_bytes_left < 0:
            msg = f"more than {_MAX_LINE_BYTES} bytes of headers, or between the chunks of the response body"
            raise EndlessResponseError(msg)
        return line

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            # http.client always reads a known size, except for a chunk of negative size: that would read everything.
            msg = "a chunk of the response body has a negative size"
            raise EndlessResponseError(msg)
        content = super().read(size)
        self._count_body(len(content))
        return content

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        count = super().readinto1(buffer) if self.allows_short_reads else super().readinto(buffer)
        self._count_body(count)
        return count

    def _count_body(self, count: int) -> None:
        self._line_bytes_left = min(self._line_bytes_left + _LINE_BYTES_PER_BODY_BYTE * count, _MAX_LINE_BYTES)
