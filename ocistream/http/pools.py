"""The connections themselves: how they send, how they read, and to which addresses they may be made.

A name is resolved anew for each connection, and whoever runs its zone may answer something else each time (DNS
rebinding). So what is looked at is the address that a connection has come to, before a byte is sent on it.
"""

from __future__ import annotations

import functools
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from ocistream import limits
from ocistream.http.origins import internal_address_error, is_internal_address
from ocistream.http.responses import BoundedResponse
from ocistream.http.sending import EarlyResponse, send_all

if TYPE_CHECKING:
    from collections.abc import Callable

    import urllib3
    from urllib3._base_connection import BaseHTTPConnection

    from ocistream.http.rate_limits import Throttle
    from ocistream.streams.chunks import Chunk

__all__ = ["AddressGuard", "BlockingThrottle", "build_pools", "socket_options"]

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
        way = made

    class Encrypted(_GuardedConnection, HTTPSConnection):
        way = made

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
