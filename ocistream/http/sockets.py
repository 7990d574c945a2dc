"""urllib3 connections of our own: stop sending on an early response, bound the response head, check addresses.

The address of each new connection is checked before any byte is sent (DNS rebinding).
"""

from __future__ import annotations

import errno
import functools
import http
import http.client
import io
import select
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from ocistream import limits
from ocistream.http.origins import internal_address_error, is_internal_address

if TYPE_CHECKING:
    from collections.abc import Callable

    import urllib3
    from _typeshed import WriteableBuffer
    from urllib3._base_connection import BaseHTTPConnection

    from ocistream.http.rate_limits import Throttle
    from ocistream.streams.chunks import Chunk

__all__ = [
    "AddressGuard",
    "BlockingThrottle",
    "BoundedResponse",
    "EarlyResponse",
    "EarlyResponseError",
    "EndlessResponseError",
    "PrefixedFile",
    "build_pools",
    "send_all",
    "socket_options",
]

#: The length of `HTTP/1.1 413`: these bytes tell a final response from an interim one (RFC 9112, section 4).
_STATUS_LENGTH: Final = 12
_FIRST_DIGIT: Final = slice(9, 10)


class EarlyResponseError(BrokenPipeError):
    """The response arrived before the request was sent completely.

    urllib3 treats it as a broken pipe and reads the response.
    """


class EarlyResponse:
    """Watches for a response while a request is sent. `beginning` has its first bytes, or those of an interim response.

    The bytes are read, not peeked at, because TLS cannot peek. They are put back before the rest of the response.
    """

    def __init__(self) -> None:
        """Start with no bytes."""
        self.beginning = bytearray()
        self.is_final = False

    def has_arrived(self, connection: socket.socket, timeout: float) -> bool:
        """Wait until data can be sent; return whether the final response has started to arrive.

        Raises:
            TimeoutError: for `timeout` seconds nothing could be sent and nothing arrived.
        """
        if len(self.beginning) >= _STATUS_LENGTH:
            return self.is_final
        poll = select.poll()
        poll.register(connection, select.POLLIN | select.POLLOUT)
        ready = poll.poll(timeout * 1000)
        if not ready:
            msg = "timed out"
            raise TimeoutError(msg)
        if any(events & select.POLLIN for _, events in ready):
            self._read(connection, timeout)
        return self.is_final

    def _read(self, connection: socket.socket, timeout: float) -> None:
        connection.settimeout(0)
        try:
            self.beginning += connection.recv(_STATUS_LENGTH - len(self.beginning))
        except (ssl.SSLError, OSError):
            # There is no data yet (in TLS it may have been a session ticket), or the connection broke: the next send
            # will fail.
            pass
        finally:
            connection.settimeout(timeout)
        if len(self.beginning) == _STATUS_LENGTH:
            # An interim response says nothing about the body.
            self.is_final = self.beginning[_FIRST_DIGIT] != b"1"


def send_all(connection: socket.socket, view: memoryview, timeout: float, early_response: EarlyResponse | None) -> None:
    """Send all of `view`; abort if no byte of `view` moves for `timeout` seconds.

    Raises:
        EarlyResponseError: the response arrived already. Raised only if `early_response` is given.
        OSError: the connection broke. There may still be a response to read.
    """
    sent = 0
    while sent < len(view):
        if early_response is not None and early_response.has_arrived(connection, timeout):
            raise EarlyResponseError(errno.EPIPE, "the request was answered before all of it was sent")
        try:
            sent += connection.send(view[sent:])
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise BrokenPipeError(errno.EPIPE, "the other side has closed the connection") from error


class PrefixedFile(io.RawIOBase):
    """A raw file whose first bytes were read already."""

    def __init__(self, beginning: bytes, raw: io.RawIOBase) -> None:
        """Return `beginning` first, then the contents of `raw`."""
        super().__init__()
        self._beginning = beginning
        self._raw = raw

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        """Read some bytes into the beginning of `buffer` and return how many."""
        if not self._beginning:
            return self._raw.readinto(buffer)
        count = min(len(buffer), len(self._beginning))
        buffer[:count] = self._beginning[:count]
        self._beginning = self._beginning[count:]
        return count

    def fileno(self) -> int:
        """Return the file descriptor of the raw file."""
        return self._raw.fileno()

    def close(self) -> None:
        """Close the raw file."""
        self._raw.close()
        super().close()


#: Maximum number of interim responses (RFC 9110, section 15.2); few servers send even one.
_MAX_INTERIM: Final = 10
#: Maximum size of all lines of a response in bytes: interim responses, headers, chunk sizes and trailers. Most clients
#: and proxies accept at most 64 KiB of headers.
_MAX_LINE_BYTES: Final = 256 * limits.KIB
#: Each byte of the body allows this many more bytes of lines: a chunk of one byte needs three.
_LINE_BYTES_PER_BODY_BYTE: Final = 16


class EndlessResponseError(Exception):
    """A response that would never end. It is not an `OSError`, because urllib3 would retry that."""


class BoundedResponse(http.client.HTTPResponse):
    """http.client's response, with a limit on the sum of all lines, which http.client does not have.

    It relies on these internals: `response_class` of a connection; `fp` is the buffered file from which `readline`
    reads every line and `read` the body, in a tunnel's response too; `begin` reads a head, past any number of `100
    Continue`, unless `headers` is set.
    """

    fp: _BoundedReader

    def __init__(
        self,
        sock: socket.socket,
        debuglevel: int = 0,
        method: str | None = None,
        *,
        beginning: bytes = b"",
        is_last: bool = False,
    ) -> None:
        """Read from a socket; `beginning` has the bytes of the response that were read already.

        `is_last` says that the response arrived before the complete request was sent: then the connection is not
        reused.
        """
        super().__init__(sock, debuglevel, method)
        raw = self.fp.detach()
        self.fp = _BoundedReader(_SocketReader(PrefixedFile(beginning, raw) if beginning else raw))
        self._is_last = is_last
        #: TLS delivers 16 KiB at a time: the buffered reader collects them in C. Decrypting in memory would save a
        #: quarter of the CPU time, but would need our own transport in place of urllib3's sockets.
        self._fills_buffer = hasattr(sock, "version")

    def begin(self) -> None:
        """Read the head of the final response."""
        super().begin()
        # http.client takes an interim response other than 100 for the final one, and the final one for the next
        # request's.
        while 100 < self.status < 200 and self.status != http.HTTPStatus.SWITCHING_PROTOCOLS:
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()
        if self._is_last:
            # The server still waits for the rest of the request.
            self.will_close = True
        self.fp.raw.end_head()
        self.fp.allows_short_reads = not (self.chunked or self._fills_buffer)

    @property
    def read_size(self) -> int:
        """How many bytes to request at once.

        1 MiB from a TCP socket costs a quarter of the system calls of 256 KiB. With TLS or chunked encoding a read
        waits until all its bytes have arrived, so it asks for less.
        """
        return limits.READ_BUFFER if not self.isclosed() and self.fp.allows_short_reads else limits.CHUNK_SIZE

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read some of the body and return its size in bytes; 0 at the end.

        Over TCP it returns what has arrived, without waiting. The body may end early: then `missing` is not 0.
        """
        return super().readinto(buffer)

    @property
    def missing(self) -> int:
        """How many bytes of the body are still to come, or were when the server closed the connection; 0 if unknown."""
        return self.length or 0

    def _read_next_chunk_size(self) -> int:
        try:
            size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        except ValueError:
            msg = "what stands between two chunks of the answer's body is no size"
            raise ConnectionError(msg) from None
        if size < 0:
            msg = "a chunk of the answer's body has a negative size"
            raise EndlessResponseError(msg)
        return size


class _SocketReader(io.RawIOBase):
    """The raw bytes of a socket. A head may take `limits.RESPONSE_HEAD_TIMEOUT` seconds from its first byte to its end.

    Otherwise a server could send a byte now and then, which is not a stall, and keep the connection forever.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__()
        self._raw = raw
        self._deadline: float | None = None
        self.is_head = True

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        count = self._raw.readinto(buffer)
        if self.is_head:
            now = time.monotonic()
            if self._deadline is None:
                self._deadline = now + limits.RESPONSE_HEAD_TIMEOUT
            elif now > self._deadline:
                msg = f"the head of the answer took more than {limits.RESPONSE_HEAD_TIMEOUT:g} s"
                raise TimeoutError(msg)
        return count

    def restart_head(self) -> None:
        """Reset the deadline after an interim response: the final one may take its time to start."""
        self._deadline = None

    def end_head(self) -> None:
        """Remove the deadline: the body has none."""
        self.is_head = False
        self.readinto = self._raw.readinto  # type: ignore[method-assign]

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        self._raw.close()
        super().close()


class _BoundedReader(io.BufferedReader):
    """A buffered reader of one response that limits its lines."""

    raw: _SocketReader

    def __init__(self, raw: _SocketReader) -> None:
        super().__init__(raw)
        self._heads = 0
        self._line_bytes_left = _MAX_LINE_BYTES
        #: Return fewer bytes than requested instead of waiting for more.
        self.allows_short_reads = False

    def readline(self, size: int | None = -1) -> bytes:
        limit = self._line_bytes_left + 1
        line = super().readline(limit if size is None or size < 0 else min(size, limit))
        self._line_bytes_left -= len(line)
        if self._line_bytes_left < 0:
            msg = f"more than {_MAX_LINE_BYTES} bytes of headers, or between the chunks of the answer's body"
            raise EndlessResponseError(msg)
        if self.raw.is_head and line in {b"\r\n", b"\n"}:
            self._heads += 1
            self.raw.restart_head()
            if self._heads > _MAX_INTERIM + 1:
                msg = f"more than {_MAX_INTERIM} interim answers"
                raise EndlessResponseError(msg)
        return line

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            # http.client always reads a known size, except for a chunk of negative size: that would read everything.
            msg = "a chunk of the answer's body has a negative size"
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


#: Seconds of silence before the kernel sends keepalive probes.
_KEEPALIVE: Final = 60
#: Maximum bytes that wait in the kernel to be sent, besides those in flight.
_MAX_UNSENT: Final = 512 * limits.KIB


@dataclass(frozen=True, slots=True)
class BlockingThrottle:
    """A throttle and the function that waits for it; `sleep` takes seconds, and may raise."""

    throttle: Throttle
    sleep: Callable[[float], None]

    @property
    def piece_size(self) -> int:
        """How many bytes to move at once, at most."""
        return self.throttle.piece_size

    def spend(self, count: int) -> None:
        """Count bytes that have moved, and wait if they moved too fast."""
        self.sleep(self.throttle.spend(count))


class AddressGuard:
    """Records which hosts this run has connected to, and which of them are external. Safe for several threads.

    A host that was external stays external. Neither a redirect from it nor a changed DNS answer may lead to an internal
    address.
    """

    def __init__(self) -> None:
        """Start with no hosts."""
        self._lock = threading.Lock()
        self._external: dict[str, bool] = {}

    def is_external(self, host: str) -> bool | None:
        """Return whether a host is external; None if there was no connection yet, or only through a proxy."""
        with self._lock:
            return self._external.get(host.lower())

    def check_address(self, host: str, address: str, *, external_only: bool) -> None:
        """Record the IP address of a host, and refuse an address that is not allowed.

        `external_only` says that an external host led there.

        Raises:
            PermanentNetworkError: the address is internal, and the host is external or an external host led to it.
        """
        is_internal = is_internal_address(address)
        with self._lock:
            if is_internal and (external_only or self._external.get(host.lower())):
                raise internal_address_error(host)
            self._external[host.lower()] = not is_internal


def socket_options(size: int | None) -> list[tuple[int, int, int]]:
    """Return socket options that keep a connection alive while a registry stores a large blob.

    Firewalls drop idle connections. `size` is the buffer size of the kernel in bytes, in each direction; None for its
    own choice.
    """
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if hasattr(socket, "TCP_KEEPIDLE"):
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE))
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        # Data in the kernel's buffer is lost when the connection breaks, and a pipe cannot be read again.
        options.append((socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MAX_UNSENT))
    if size is not None:
        options += [(socket.SOL_SOCKET, kind, size) for kind in (socket.SO_RCVBUF, socket.SO_SNDBUF)]
    return options


@dataclass(frozen=True, slots=True)
class _ConnectionPolicy:
    """The settings of the connections of one pool; `stall_timeout` is in seconds."""

    stall_timeout: float
    throttle: BlockingThrottle | None
    address_guard: AddressGuard
    is_external_only: bool

    def check_address(self, connection: HTTPConnection, opened: socket.socket) -> None:
        # Behind a proxy only the proxy knows the address.
        if connection.proxy is None:
            self.address_guard.check_address(
                connection.host, str(opened.getpeername()[0]), external_only=self.is_external_only
            )

    def send(self, connection: _GuardedConnection, data: object) -> None:
        if self.throttle is None:
            _send(connection, data, self.stall_timeout)
            return
        if connection.early_response is None:
            # The bytes of a head count, but without a wait: its response would stay unread meanwhile, and a kill would
            # lose the session that it opens.
            _send(connection, data, self.stall_timeout)
            self.throttle.throttle.spend(len(cast("Chunk", data)))
            return
        with memoryview(cast("Chunk", data)) as view:
            for start in range(0, len(view), self.throttle.piece_size):
                piece = view[start : start + self.throttle.piece_size]
                _send(connection, piece, self.stall_timeout)
                self.throttle.spend(len(piece))


def build_pools(
    stall_timeout: float, throttle: BlockingThrottle | None, address_guard: AddressGuard, *, external_only: bool
) -> dict[str, type[HTTPConnectionPool]]:
    """Return pool classes by scheme, whose connections limit responses and time out only if no byte moves.

    urllib3 sends under the connect timeout, and `sendall` applies it to a whole chunk: on a slow line every upload
    would fail. `throttle` limits the rate of sending. `address_guard` records the addresses of hosts; with
    `external_only` connections to internal addresses are refused.
    """
    connection_policy = _ConnectionPolicy(stall_timeout, throttle, address_guard, external_only)

    class Plain(_GuardedConnection, HTTPConnection):
        policy = connection_policy

    class Encrypted(_GuardedConnection, HTTPSConnection):
        policy = connection_policy

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class EncryptedPool(HTTPSConnectionPool):
        ConnectionCls = Encrypted

        def _validate_conn(self, conn: BaseHTTPConnection) -> None:
            # urllib3 would warn on stderr about `--insecure`, in its own words.
            if conn.is_closed:
                conn.connect()

    return {"http": PlainPool, "https": EncryptedPool}


def _send(connection: _GuardedConnection, data: object, stall_timeout: float) -> None:
    """Send all of `data`, or stop at an early response; abort if no byte moves for `stall_timeout` seconds."""
    if connection.sock is None:
        connection.connect()
    if connection.sock.gettimeout() != stall_timeout:
        connection.sock.settimeout(stall_timeout)
    with memoryview(cast("Chunk", data)) as view:
        send_all(connection.sock, view, stall_timeout, connection.early_response)


class _GuardedConnection(HTTPConnection):
    """A connection that checks its address, and stops sending a body when the response arrives.

    urllib3 then reads the response. While a head is sent nothing is watched: such bytes belong to an earlier request.
    """

    policy: _ConnectionPolicy
    response_class = BoundedResponse
    early_response: EarlyResponse | None = None

    def send(self, data: object) -> None:
        self.policy.send(self, data)

    def _new_conn(self) -> socket.socket:
        # This relies on urllib3 calling `_new_conn` for every connection, before TLS.
        opened: socket.socket = super()._new_conn()
        try:
            self.policy.check_address(self, opened)
        except BaseException:
            opened.close()
            raise
        return opened

    def endheaders(self, message_body: Any = None, *, encode_chunked: bool = False) -> None:  # noqa: ANN401 - http.client's
        self.early_response = None
        super().endheaders(message_body, encode_chunked=encode_chunked)
        self.early_response = EarlyResponse()

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override] # as urllib3's own
        early_response, self.early_response = self.early_response, None
        self.response_class = (
            functools.partial(
                BoundedResponse, beginning=bytes(early_response.beginning), is_last=early_response.is_final
            )  # type: ignore[assignment]
            if early_response
            else BoundedResponse
        )
        return super().getresponse()
