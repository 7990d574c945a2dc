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

#: `HTTP/1.1 413`: so much says whether an answer is the one that counts (RFC 9112, section 4).
_STATUS_LENGTH: Final = 12
_FIRST_DIGIT: Final = slice(9, 10)


class EarlyResponseError(BrokenPipeError):
    """The answer is there before all was sent; to urllib3, as to us, that is a reason to read it and no failure."""


class EarlyResponse:
    """What has come on a connection while a request was sent: `beginning`, of its answer or an interim one."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.beginning = bytearray()
        self.is_final = False

    def has_arrived(self, connection: socket.socket, timeout: float) -> bool:
        """Wait until something can be sent; say whether the answer is there.

        Raises:
            TimeoutError: nothing can be sent for `timeout` seconds, nor has anything come.
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
            # Nothing yet (of TLS it may have been a ticket only), or the connection broke: sending will show.
            pass
        finally:
            connection.settimeout(timeout)
        if len(self.beginning) == _STATUS_LENGTH:
            # Interim answers say nothing about the body.
            self.is_final = self.beginning[_FIRST_DIGIT] != b"1"


def send_all(connection: socket.socket, view: memoryview, timeout: float, early_blobs: EarlyResponse | None) -> None:
    """Send all of `view`; that none of it moves for `timeout` seconds is a failure.

    Raises:
        AnsweredError: the answer is there already; only where `early` watches for it.
        OSError: the connection broke. There may be an answer to read all the same.
    """
    sent = 0
    while sent < len(view):
        if early_blobs is not None and early_blobs.has_arrived(connection, timeout):
            raise EarlyResponseError(errno.EPIPE, "the request was answered before all of it was sent")
        try:
            sent += connection.send(view[sent:])
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise BrokenPipeError(errno.EPIPE, "the other side has closed the connection") from error


class PrefixedFile(io.RawIOBase):
    """A raw file of which the beginning was read already."""

    def __init__(self, beginning: bytes, raw: io.RawIOBase) -> None:
        """Give `beginning` first, then what is in `raw`."""
        super().__init__()
        self._beginning = beginning
        self._raw = raw

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        """Fill the beginning of `buffer`."""
        if not self._beginning:
            return self._raw.readinto(buffer)
        got = min(len(buffer), len(self._beginning))
        buffer[:got] = self._beginning[:got]
        self._beginning = self._beginning[got:]
        return got

    def fileno(self) -> int:
        """Give the descriptor."""
        return self._raw.fileno()

    def close(self) -> None:
        """Close what is below."""
        self._raw.close()
        super().close()


#: Interim answers (RFC 9110, section 15.2) before the one that counts; few servers send even one.
_MAX_INTERIM: Final = 10
#: All lines of an answer, in bytes: interim answers, headers, and what stands between the chunks of its body and
#: behind them. Of headers alone most clients and proxies take no more than 64 KiB.
_MAX_LINE_BYTES: Final = 256 * limits.KIB
#: So many bytes of further lines does each byte of a body allow for: a chunk of one byte needs three.
_LINE_BYTES_PER_BODY_BYTE: Final = 16


class EndlessResponseError(Exception):
    """An answer that would never end; no `OSError`, since urllib3 would count it among those to try again."""


class BoundedResponse(http.client.HTTPResponse):
    """http.client's answer, with bounds on what comes in lines, where http.client has none, or none for their sum.

    Relied on: `response_class` of a connection; that `fp` is the buffered file from which every line of an answer is
    read by `readline` and its body by `read`, in a tunnel's answer too; and that `begin` reads a head, over any number
    of `100 Continue`, unless `headers` says that one was read.
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
        """Read from a socket of which the `beginning` of the answer was read already.

        `is_last` says that it came before all of the request was sent: then it is the connection's last one.
        """
        super().__init__(sock, debuglevel, method)
        raw = self.fp.detach()
        self.fp = _BoundedReader(_SocketReader(PrefixedFile(beginning, raw) if beginning else raw))
        self._is_last = is_last
        #: TLS gives 16 KiB at a time: those are gathered below Python.
        self._fills_buffer = hasattr(sock, "version")

    def begin(self) -> None:
        """Read the head of the answer that counts."""
        super().begin()
        # To http.client an interim answer other than 100 is the answer, and the answer that of the next request.
        while 100 < self.status < 200 and self.status != http.HTTPStatus.SWITCHING_PROTOCOLS:
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()
        if self._is_last:
            # The other side still waits for the rest of the request.
            self.will_close = True
        self.fp.raw.end_head()
        self.fp.allows_short_reads = not (self.chunked or self._fills_buffer)

    @property
    def read_size(self) -> int:
        """How many bytes it is of use to ask for at once: where all of them are waited for, not too many."""
        return limits.READ_BUFFER if not self.isclosed() and self.fp.allows_short_reads else limits.CHUNK_SIZE

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read some of the body, 0 at its end; over TCP as much as has come, so that it need not be waited for.

        It may end early: then `missing` bytes of it were promised.
        """
        return super().readinto(buffer)

    @property
    def missing(self) -> int:
        """How many bytes are still to come, or were when the other side closed; 0 where nobody has said."""
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
    """What a socket gives. A head, from its first byte to its end, has `limits.HEAD_TIME` seconds.

    A byte now and then is no stall, and would keep a connection for as long as the other side likes.
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
        """Begin anew: an interim answer is over, and the one that counts may take its time to begin."""
        self._deadline = None

    def end_head(self) -> None:
        """Be no more than what is below: a body takes the time that it takes."""
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
    """What a server sends of one answer."""

    raw: _SocketReader

    def __init__(self, raw: _SocketReader) -> None:
        super().__init__(raw)
        self._heads = 0
        self._line_bytes_left = _MAX_LINE_BYTES
        #: Whether less than was asked for is given where it would have to be waited for.
        self.allows_short_reads = False

    def readline(self, size: int | None = -1) -> bytes:
        most = self._line_bytes_left + 1
        line = super().readline(most if size is None or size < 0 else min(size, most))
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
            # What is read here has a size, unless it is a chunk of a negative one: that would be all there is to come.
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


#: After so many seconds of silence the kernel asks whether the other side is still there.
_KEEPALIVE: Final = 60
#: So many bytes may wait in the kernel to be sent, beside those that are under way.
_MAX_UNSENT: Final = 512 * limits.KIB


@dataclass(frozen=True, slots=True)
class BlockingThrottle:
    """A throttle, and how to wait for it; `sleep` takes seconds, and may raise."""

    throttle: Throttle
    sleep: Callable[[float], None]

    @property
    def piece_size(self) -> int:
        """How many bytes are to move at once, at the most."""
        return self.throttle.piece_size

    def spend(self, count: int) -> None:
        """Count bytes that have moved, and wait where they were too quick."""
        self.sleep(self.throttle.spend(count))


class AddressGuard:
    """Which hosts this run has connected to, and which of them outside. Safe for several threads.

    Once outside, always outside: who answered from there is believed nothing about addresses in here, be it by a
    redirect or by another answer to the question where it is.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._lock = threading.Lock()
        self._external: dict[str, bool] = {}

    def is_external(self, host: str) -> bool | None:
        """Say whether a host is outside; None where it was not connected to, or by a proxy only."""
        with self._lock:
            return self._external.get(host.lower())

    def check_address(self, host: str, address: str, *, only_outside: bool) -> None:
        """Note that a host was found at an IP address, and refuse that if it may not be there.

        `only_outside` says that a host outside has led there.

        Raises:
            FinalNetworkError: it is an inward address, of a host that is, or was led to from, outside.
        """
        inward = is_internal_address(address)
        with self._lock:
            if inward and (only_outside or self._external.get(host.lower())):
                raise internal_address_error(host)
            self._external[host.lower()] = not inward


def socket_options(size: int | None) -> list[tuple[int, int, int]]:
    """Keep a connection alive while a registry is silent over a large blob: firewalls forget those that are.

    `size` is how many bytes the kernel may hold of a connection, in each direction; None for its own choice.
    """
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if hasattr(socket, "TCP_KEEPIDLE"):
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE))
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        # What waits in our own kernel is lost when the connection breaks, and may not be had again from a pipe.
        options.append((socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MAX_UNSENT))
    if size is not None:
        options += [(socket.SOL_SOCKET, kind, size) for kind in (socket.SO_RCVBUF, socket.SO_SNDBUF)]
    return options


@dataclass(frozen=True, slots=True)
class _ConnectionPolicy:
    """How the connections of one kind of pool are made and used; `stall_timeout` is in seconds."""

    stall_timeout: float
    throttle: BlockingThrottle | None
    address_guard: AddressGuard
    is_external_only: bool

    def check_address(self, connection: HTTPConnection, opened: socket.socket) -> None:
        # Of what is behind a proxy, only the proxy knows the address.
        if connection.proxy is None:
            self.address_guard.check_address(
                connection.host, str(opened.getpeername()[0]), only_outside=self.is_external_only
            )

    def send(self, connection: _GuardedConnection, data: object) -> None:
        if self.throttle is None:
            _send(connection, data, self.stall_timeout)
            return
        if connection.early_response is None:
            # A head counts and is not waited for: its answer would lie unread meanwhile, and a kill lose what it opens.
            _send(connection, data, self.stall_timeout)
            self.throttle.throttle.spend(len(cast("Chunk", data)))
            return
        with memoryview(cast("Chunk", data)) as view:
            for start in range(0, len(view), self.throttle.piece_size):
                piece = view[start : start + self.throttle.piece_size]
                _send(connection, piece, self.stall_timeout)
                self.throttle.spend(len(piece))


def build_pools(
    stall_timeout: float, limiter: BlockingThrottle | None, reached: AddressGuard, *, only_outside: bool
) -> dict[str, type[HTTPConnectionPool]]:
    """Make the pools, by scheme, of connections that send for as long as bytes move, and read no endless answers.

    urllib3's send under the time-out for connecting, and `sendall` counts it for all of a chunk: on a slow line every
    upload would fail. `limiter` says how fast they may send. `reached` is told which hosts they come to, and where;
    with `only_outside` they are made to no address inside of this machine or network.
    """
    made = _ConnectionPolicy(stall_timeout, limiter, reached, only_outside)

    class Plain(_GuardedConnection, HTTPConnection):
        policy = made

    class Encrypted(_GuardedConnection, HTTPSConnection):
        policy = made

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class EncryptedPool(HTTPSConnectionPool):
        ConnectionCls = Encrypted

        def _validate_conn(self, conn: BaseHTTPConnection) -> None:
            # urllib3 would warn, on stderr and in its own words, of what --insecure asks for.
            if conn.is_closed:
                conn.connect()

    return {"http": PlainPool, "https": EncryptedPool}


def _send(connection: _GuardedConnection, data: object, stall_timeout: float) -> None:
    """Send all of `data`, or as much as is wanted; that none of it moves for `stall_timeout` seconds is a failure."""
    if connection.sock is None:
        connection.connect()
    if connection.sock.gettimeout() != stall_timeout:
        connection.sock.settimeout(stall_timeout)
    with memoryview(cast("Chunk", data)) as view:
        send_all(connection.sock, view, stall_timeout, connection.early_response)


class _GuardedConnection(HTTPConnection):
    """A connection that looks where it has come to, and stops sending a body when its request is answered.

    urllib3 then reads the answer. While a head is sent nobody looks: what is there then belongs to an earlier request.
    """

    policy: _ConnectionPolicy
    response_class = BoundedResponse
    early_response: EarlyResponse | None = None

    def send(self, data: object) -> None:
        self.policy.send(self, data)

    def _new_conn(self) -> socket.socket:
        # Relied on: every connection of urllib3's begins with this, and TLS comes after it.
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
        early, self.early_response = self.early_response, None
        self.response_class = (
            functools.partial(BoundedResponse, beginning=bytes(early.beginning), is_last=early.is_final)  # type: ignore[assignment]
            if early
            else BoundedResponse
        )
        return super().getresponse()
