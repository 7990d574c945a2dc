"""The transport adapter below requests: urllib3's connections, kept open, and bodies that are produced while sent.

- The address of a connection is checked before a byte is sent (DNS rebinding).
- Each host has its own TLS settings.
- A body is not sent further once the response has arrived; each wait for the network has a timeout.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import socket
import ssl
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, cast

import requests
import requests.adapters
import requests.utils
import urllib3.exceptions
import urllib3.util
from urllib3.connection import HTTPConnection, HTTPSConnection, ProxyConfig

from ocistream import limits
from ocistream.errors import CancelledError, OcistreamError, PermanentNetworkError, UnsupportedError
from ocistream.http.errors import network_error
from ocistream.http.origins import (
    Origin,
    internal_address_error,
    is_internal_address,
    is_proxy_bypassed,
    redact_url,
    request_target,
)
from ocistream.http.rate_limits import ConnectionLimits
from ocistream.http.response import EndlessResponseError, RawResponse
from ocistream.http.settings import TlsSettings
from ocistream.http.tls import create_client_context
from ocistream.oci.reference import printable
from ocistream.streams.memory import ReadBuffers
from ocistream.streams.synchronization import OncePerKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ocistream.errors import NetworkError
    from ocistream.http.settings import HttpSettings
    from ocistream.streams.chunks import Chunk

    Body = bytes | Iterable[Chunk] | None

#: Idle connections to all hosts: more than `--jobs` allows at once.
_MAX_IDLE: Final = 64
#: Seconds of silence before the kernel sends keepalive probes.
_KEEPALIVE: Final = 60
#: Maximum bytes that wait in the kernel to be sent, besides those in flight.
_MAX_UNSENT: Final = 512 * limits.KIB
#: What a request without a response raises. http.client raises ValueError for what it cannot send.
_FAILURES: Final = (http.client.HTTPException, urllib3.exceptions.HTTPError, OSError, ValueError)


class Route(NamedTuple):
    """Where and how a request is sent. Only requests with equal routes share connections."""

    origin: Origin
    #: Which CAs to trust and which client certificate to show over https.
    tls: TlsSettings
    #: Refuse an internal address: an external host led there. A connection to this machine that the user's own request
    #: has opened is not reused for such a request.
    refuses_internal: bool = False
    connection_limits: ConnectionLimits = ConnectionLimits()


class Adapter(requests.adapters.BaseAdapter):
    """Send requests over connections that are kept open. Safe for several threads. Times are in seconds."""

    def __init__(self, settings: HttpSettings, sleep: Callable[[float], None]) -> None:
        """Open no connection yet. `sleep` waits where the rate is limited, and raises CancelledError."""
        super().__init__()
        self.stall_timeout = settings.stall_timeout
        self.sleep = sleep
        self._proxies = {scheme: proxy for scheme, proxy in settings.proxies.items() if scheme != "no_proxy"}
        self._no_proxy = settings.proxies.get("no_proxy", "")
        # A proxy never gets a registry's client certificate.
        self._proxy_tls = TlsSettings(settings.tls.ca_files)
        fallback = requests.utils.DEFAULT_CA_BUNDLE_PATH
        self._load_context = OncePerKey[TlsSettings, ssl.SSLContext](
            lambda tls: create_client_context(tls, settings.ca_bundle, fallback)
        )
        #: Host in lower case -> whether its address is external (`is_internal_address`). A host without a connection so
        #: far, or only through a proxy, is missing.
        self.is_external_by_host: dict[str, bool] = {}
        self._format_hint = settings.format_hint
        #: The origins that have responded to a request.
        self._answered: set[Origin] = set()
        self.read_buffers = ReadBuffers()
        #: Idle connections, the last one used at the end. Any thread appends and removes: single operations of a list
        #: are atomic.
        self._idle: list[_Connection] = []
        self._is_closed = False

    def send(  # type: ignore[override] # the base class has no route
        self,
        request: requests.PreparedRequest,
        stream: bool = True,  # noqa: ARG002 - the body of a response is always read later
        timeout: tuple[float, float] | None = None,
        verify: object = True,  # noqa: ARG002 - the route has the TLS settings
        cert: object = None,  # noqa: ARG002 - the same
        proxies: Mapping[str, str] | None = None,  # noqa: ARG002 - the settings have the proxies
        *,
        route: Route,
    ) -> requests.Response:
        """Send a request and read the head of its response.

        `timeout` is the time to connect, and the time to wait for data of the response.

        Raises:
            NetworkError: no response arrived. If the chunks of the body failed, `StreamedBody.failure` has their error.
            PermanentNetworkError: the host has an address that is not allowed, or a retry is useless for another
                reason.
            UnsupportedError: the proxy is of an unsupported kind.
        """
        connect_timeout, read_timeout = cast("tuple[float, float]", timeout)
        method, url, body = request.method or "", request.url or "", cast("Body", request.body)
        idle = self._take_idle(route)
        raw: RawResponse | None = None
        try:
            connection = idle or self._connect(route, connect_timeout)
            raw = RawResponse(connection.sock, method=method)
            try:
                connection.exchange(request, raw, read_timeout)
            except BaseException:
                connection.close()
                raise
        except EndlessResponseError as error:
            msg = f"{method} {redact_url(url)}: {error}"
            raise PermanentNetworkError(msg) from None
        except _FAILURES as error:
            is_unread = raw is not None and not (raw.has_begun or (isinstance(body, StreamedBody) and body.is_started))
            has_lost_idle = idle is not None and is_unread and isinstance(error, ConnectionResetError)
            if has_lost_idle:
                # The next attempt must not take another one that the server has closed too.
                self._close_idle(keep=0)
            # Not in a local variable: the error would be in a cycle with this frame, which has the body.
            raise self._convert_error(
                method, url, error, route.tls.ca_files, has_lost_idle_connection=has_lost_idle
            ) from error
        self._answered.add(route.origin)
        response = requests.Response()
        response.status_code, response.raw = raw.status, raw
        response.request, response.url = request, url
        # requests stores its adapter in this attribute.
        response.connection = cast("Any", connection)
        return response

    def release(self, connection: _Connection, *, is_reusable: bool) -> None:
        """Keep the connection of a response whose body was read to its end; close any other connection."""
        if not is_reusable:
            connection.close()
            return
        self._idle.append(connection)
        # If the adapter was closed meanwhile, nothing else closes this connection.
        self._close_idle(keep=0 if self._is_closed else _MAX_IDLE)

    def close(self) -> None:
        """Close all idle connections, and others as soon as their response is read. No connection is opened later."""
        self._is_closed = True
        self._close_idle(keep=0)

    def handshake(self, url: str, timeout: float) -> None:
        """Open a TLS connection to the host of an https URL, through the same proxy as a request, and close it.

        The certificate is not checked, no client certificate is shown, and no request is sent.

        Raises:
            NetworkError: the handshake failed.
            UnsupportedError: the proxy is of an unsupported kind.
        """
        try:
            self._connect(Route(Origin.from_url(url), TlsSettings(insecure=True)), timeout).close()
        except _FAILURES as error:
            raise self._convert_error("TLS with", url, error) from error

    def _convert_error(
        self,
        method: str,
        url: str,
        error: Exception,
        ca_files: Sequence[str] = (),
        *,
        has_lost_idle_connection: bool = False,
    ) -> NetworkError:
        has_answered = Origin.from_url(url) in self._answered
        converted = network_error(method, url, error, has_answered=has_answered, ca_files=ca_files)
        converted.has_lost_idle_connection = has_lost_idle_connection
        converted.hint = converted.hint and self._format_hint(converted.hint)
        return converted

    # -- connections ------------------------------------------------------------------------------------

    def _take_idle(self, route: Route) -> _Connection | None:
        """Return an idle connection, the last one used, unless the server has closed it."""
        for connection in reversed(self._idle.copy()):
            if connection.route != route:
                continue
            try:
                self._idle.remove(connection)
            except ValueError:
                # Another thread has taken it.
                continue
            if connection.is_connected:
                return connection
            connection.close()
        return None

    def _close_idle(self, *, keep: int) -> None:
        """Close the idle connections that were used longest ago, but for `keep` of them."""
        while len(self._idle) > keep:
            with contextlib.suppress(IndexError):
                self._idle.pop(0).close()

    def _connect(self, route: Route, timeout: float) -> _Connection:
        """Open a connection. A proxy opens a tunnel for https, and gets complete URLs for http."""
        origin, proxy = route.origin, self._find_proxy(route.origin)
        host, port = origin.host, origin.port
        socket_options = _list_socket_options(route.connection_limits.socket_buffer)
        options: dict[str, Any] = {"timeout": timeout, "socket_options": socket_options}
        is_encrypted = origin.scheme == "https"
        if proxy is not None:
            host, port = cast("str", proxy.host), proxy.port or (443 if proxy.scheme == "https" else 80)
            # Without a context of its own for the proxy, urllib3 would choose the trusted CAs.
            context = self._load_context(self._proxy_tls) if proxy.scheme == "https" else None
            options |= {"proxy": proxy, "proxy_config": ProxyConfig(context, False, None, None)}
        if is_encrypted:
            options["ssl_context"] = self._load_context(route.tls)
        kind = _TlsConnection if is_encrypted or (proxy is not None and proxy.scheme == "https") else _Connection
        connection = kind(host, port, **options)
        connection.adapter, connection.route = self, route
        connection.response_class = RawResponse  # type: ignore[assignment] # what a connection calls of it
        if proxy is not None:
            user, password = requests.utils.get_auth_from_url(proxy.url)
            headers = dict(urllib3.util.make_headers(proxy_basic_auth=f"{user}:{password}")) if user else {}
            if is_encrypted:
                connection.set_tunnel(origin.host, origin.port, headers, cast("str", proxy.scheme))
            else:
                connection.forward_headers = headers
        try:
            self._check_open()
            connection.connect()
            self._check_open()
        except BaseException as error:
            is_proxy_at_fault = proxy is not None and not connection.has_connected_to_proxy
            connection.close()
            if is_proxy_at_fault and isinstance(error, OSError | urllib3.exceptions.HTTPError):
                raise requests.exceptions.ProxyError(error) from error
            raise
        return connection

    def _check_open(self) -> None:
        # A connection that is opened while the client is closed would stay open.
        if self._is_closed:
            msg = "cancelled"
            raise CancelledError(msg)

    def _find_proxy(self, origin: Origin) -> urllib3.util.Url | None:
        if not self._proxies or is_proxy_bypassed(str(origin), self._no_proxy):
            return None
        proxy = requests.utils.select_proxy(str(origin), self._proxies)
        if not proxy:
            return None
        scheme = proxy.partition("://")[0].lower()
        if "://" in proxy and scheme.startswith("socks"):
            msg = f"the proxy for this host uses {printable(scheme, 20)}, which is not supported"
            raise UnsupportedError(
                msg, hint="HTTPS_PROXY, HTTP_PROXY and ALL_PROXY support http:// and https:// proxies"
            )
        parsed = urllib3.util.parse_url(proxy if "://" in proxy else f"http://{proxy}")
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            msg = "the URL of a proxy is malformed"
            raise requests.exceptions.InvalidProxyURL(msg)
        return parsed


def _list_socket_options(buffer_size: int | None) -> list[tuple[int, int, int]]:
    """Return socket options that keep a connection alive while a registry stores a large blob.

    Firewalls drop idle connections. `buffer_size` is the size of the kernel's buffer in bytes, in each direction; None
    for its own choice.
    """
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if hasattr(socket, "TCP_KEEPIDLE"):
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE))
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        # Data in the kernel's buffer is lost when the connection breaks, and a pipe cannot be read again.
        options.append((socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MAX_UNSENT))
    if buffer_size is not None:
        options += [(socket.SOL_SOCKET, kind, buffer_size) for kind in (socket.SO_RCVBUF, socket.SO_SNDBUF)]
    return options


class _Connection(HTTPConnection):
    """A connection of urllib3 whose address is checked, and which stops sending a body when the response arrives."""

    adapter: Adapter
    route: Route
    #: The proxy's own headers if it forwards requests; None for a tunnel, or without a proxy.
    forward_headers: dict[str, str] | None = None
    #: The response to the request whose body is being sent.
    _response: RawResponse | None = None
    #: Tells the kernel to send a few bytes together with those that follow.
    more_flag: int = getattr(socket, "MSG_MORE", 0)

    def exchange(self, request: requests.PreparedRequest, response: RawResponse, timeout: float) -> None:
        """Send a request and read the head of its response, waiting for data for at most `timeout` seconds."""
        url, headers = request.url or "", cast("dict[str, str]", request.headers)
        if self.forward_headers is None:
            target = request_target(url)
        else:
            target, headers = requests.utils.urldefragauth(url), headers | self.forward_headers
        # If the server has closed the connection, it may have sent a response before.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._send_request(request.method or "", target, headers, cast("Body", request.body), response)
        self._response = None
        self.sock.settimeout(timeout)
        self.response_class = lambda *_, **__: response  # type: ignore[assignment]
        # http.client's method: the response of urllib3 creates an object for each chunk of the body.
        http.client.HTTPConnection.getresponse(self)

    def _send_request(
        self, method: str, target: str, headers: Mapping[str, str], body: Body, response: RawResponse
    ) -> None:
        """Send a request step by step, as http.client documents; a body without a Content-Length is sent in chunks."""
        self.putrequest(method, target, skip_accept_encoding=True)
        for name, value in headers.items():
            # Not urllib3's method, which looks for headers to skip: that takes a tenth of the CPU time of a request.
            http.client.HTTPConnection.putheader(self, name, value)
        is_chunked = body is not None and "Content-Length" not in headers
        if is_chunked:
            self.putheader("Transfer-Encoding", "chunked")
        self.endheaders()
        # While the head is sent no response is expected: bytes that arrive belong to an earlier request.
        self._response = response
        line_end = b""
        for chunk in (body,) if isinstance(body, bytes) else body or ():
            if chunk:
                if is_chunked:
                    # Sent separately: to join it and the chunk would copy the chunk.
                    self.send(b"%b%x\r\n" % (line_end, len(chunk)), self.more_flag)
                    line_end = b"\r\n"
                self.send(chunk)
        if is_chunked:
            self.send(b"%b0\r\n\r\n" % line_end)

    def __del__(self) -> None:
        """Close a connection whose response the caller has dropped."""
        self.close()

    def send(self, data: object, flags: int = 0) -> None:
        """Send a part of a request at the rate that is allowed; stop at an early response."""
        timeout, response = self.adapter.stall_timeout, self._response
        throttle = self.route.connection_limits.upload
        with memoryview(cast("Chunk", data)) as view:
            if throttle is None:
                _send_all(self.sock, view, timeout, response, flags)
            elif response is None:
                # The bytes of a head count, but without a wait: its response would stay unread meanwhile, and a kill
                # would lose the session that it opens.
                _send_all(self.sock, view, timeout, None)
                throttle.count(len(view))
            else:
                for start in range(0, len(view), throttle.piece_size):
                    piece = view[start : start + throttle.piece_size]
                    _send_all(self.sock, piece, timeout, response)
                    # A cancelled request ends where its body ends, not in the middle.
                    with contextlib.suppress(CancelledError):
                        self.adapter.sleep(throttle.count(len(piece)))

    def _new_conn(self) -> socket.socket:
        # A private method of urllib3, which urllib3's own support of SOCKS overrides too. `connect` calls it for every
        # connection, before TLS; it has no public step between the two.
        opened: socket.socket = super()._new_conn()
        host, is_external = self.host.lower(), self.adapter.is_external_by_host
        if self.proxy is not None:
            # Only the proxy knows the address.
            return opened
        try:
            is_internal = is_internal_address(str(opened.getpeername()[0]))
        except BaseException:
            opened.close()
            raise
        # A host that was external stays external: neither a redirect from it nor a changed DNS answer may lead to an
        # internal address.
        if not is_internal:
            is_external[host] = True
        elif self.route.refuses_internal or is_external.setdefault(host, False):
            opened.close()
            raise internal_address_error(host)
        return opened


class _TlsConnection(_Connection, HTTPSConnection):
    more_flag = 0


def _send_all(
    connection: socket.socket,
    view: memoryview,
    timeout: float,
    response: RawResponse | None,
    flags: int = 0,
) -> None:
    """Send all of `view`; abort if no byte of `view` moves for `timeout` seconds.

    `sendall` would apply the timeout to the whole chunk: on a slow line every upload would fail.

    Raises:
        BrokenPipeError: the response arrived already, or the server closed the connection.
        OSError: the connection broke. There may still be a response to read.
    """
    if connection.gettimeout() != timeout:
        connection.settimeout(timeout)
    sent = 0
    while sent < len(view):
        if response is not None and response.has_early_response(timeout):
            raise BrokenPipeError(errno.EPIPE, "the response came before the complete request was sent")
        try:
            sent += connection.send(view[sent:], flags)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise BrokenPipeError(errno.EPIPE, "the server has closed the connection") from error


class StreamedBody:
    """A request body that is produced while it is sent. Its length is not stated, but for a `FixedLengthBody`.

    `is_started` says whether any chunk was requested: then the body cannot be sent again. `is_finished` says whether
    the body was sent completely; an early response prevents that. `failure` is the exception that the chunks raised, if
    any.

    If the chunks fail, the body is ended properly (`can_end_early`). Then the registry responds and knows what it has
    received, so the upload can be resumed or deleted. After a broken request, distribution 2.8 neither finds an upload
    nor allows its deletion.
    """

    can_end_early: ClassVar[bool] = True

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        """Use these chunks."""
        self._chunks = chunks
        self.is_started = False
        self.is_finished = False
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[Chunk]:
        """Yield the chunks, and record start, end and failure."""
        self.is_started = True
        try:
            yield from self._chunks
            self.is_finished = True
        except (OcistreamError, OSError, ValueError) as error:
            self.failure = error
        # Not in the handler: the failure would be in a cycle with this error, whose frames have the body.
        if self.failure is not None and not self.can_end_early:
            msg = "the source of the request body failed"
            raise http.client.HTTPException(msg)


class FixedLengthBody(StreamedBody):
    """A request body whose length is stated.

    If its chunks fail, the request breaks off, because it cannot end short. A stated length lets a proxy refuse a layer
    that is too large before a byte of it is sent.
    """

    can_end_early: ClassVar[bool] = False

    def __init__(self, chunks: Iterator[Chunk], length: int) -> None:
        """Use these chunks of `length` bytes in total."""
        super().__init__(chunks)
        self._length = length

    def __len__(self) -> int:
        """Return the length in bytes, which becomes the Content-Length."""
        return self._length
