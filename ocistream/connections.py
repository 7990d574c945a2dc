"""One HTTP request out and its answer back, over connections that are kept: the only room that imports requests.

What goes out is what was asked for and nothing more: no cookie, no netrc, nothing of the environment. It follows no
redirect, tries nothing twice and knows no credential: all that is `ocistream.transport`.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import socket
from typing import TYPE_CHECKING, Any, Final, cast

import requests
import requests.adapters
import urllib3
import urllib3.exceptions
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from ocistream import limits
from ocistream.errors import FinalNetworkError, NetworkError, OcistreamError
from ocistream.failures import network_error, reason
from ocistream.origins import bypasses_proxy, redacted
from ocistream.wire import Early, Prefixed, send_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ocistream.stream import Chunk

__all__ = ["Answer", "Body", "Connections", "StreamedBody"]

#: Hosts to which idle connections are kept, and how many to each: no fewer than `--jobs` allows at once.
_HOSTS: Final = 16
_IDLE_CONNECTIONS: Final = 32
#: After so many seconds of silence the kernel asks whether the other side is still there.
_KEEPALIVE: Final = 60
#: Interim answers (RFC 9110, section 15.2) before the one that counts; few servers send even one.
_MAX_INTERIM: Final = 10
#: All lines of an answer, in bytes: interim answers, headers, and what stands between the chunks of its body and
#: behind them. Of headers alone most clients and proxies take no more than 64 KiB.
_MAX_LINES: Final = 256 * limits.KIB
#: So many bytes of further lines does each byte of a body allow for: a chunk of one byte needs three.
_LINES_PER_BYTE: Final = 16


class StreamedBody:
    """A request body that is made while it is sent, and whose length nobody knows before.

    It has `__iter__` and no `read`: what can be read is sent 16 KiB at a time. `begun` says whether any of it was asked
    for, after which it cannot be sent again; `ended` says that all of it was, which an early answer prevents. `failure`
    is what its own chunks raised, if they did.
    """

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        """Keep the chunks."""
        self._chunks = chunks
        self.begun = False
        self.ended = False
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[Chunk]:
        """Send."""
        self.begun = True
        try:
            yield from self._chunks
            self.ended = True
        except OcistreamError as error:
            self.failure = error
            raise
        except (OSError, ValueError) as error:
            self.failure = error
            # urllib3 would take it for a failure of the network, or overlook it and wait for an answer.
            raise _BodyError from error


class Body(StreamedBody):
    """A request body of known length."""

    def __init__(self, chunks: Iterator[Chunk], length: int) -> None:
        """Keep the chunks, and their length in bytes; it must not be 0, which would become chunked encoding."""
        super().__init__(chunks)
        self._length = length

    def __len__(self) -> int:
        """Give the length, which becomes the Content-Length."""
        return self._length


class _BodyError(Exception):
    """What a body's chunks raised, on its way past urllib3."""


class Answer:
    """A response whose body has not been read yet."""

    def __init__(self, response: requests.Response, method: str, url: str) -> None:
        """Wrap what requests gave."""
        self._response = response
        self.method = method
        self.url = url
        self.status = response.status_code

    def header(self, name: str) -> str | None:
        """Give a header's value, or None."""
        return self._response.headers.get(name)

    def challenges(self) -> Sequence[str]:
        """Give every WWW-Authenticate header."""
        raw = self._response.raw
        return list(raw.headers.getlist("WWW-Authenticate"))

    def chunks(self, size: int = limits.CHUNK) -> Iterator[bytes]:
        """Read the body in chunks of `size` bytes, the last one shorter.

        Raises:
            NetworkError: it broke off, or stalled; finally so where it is one without an end.
        """
        raw = self._response.raw
        try:
            while chunk := raw.read(size, decode_content=False):
                yield chunk
        except _EndlessError as error:
            msg = f"{self.method} {redacted(self.url)}: {error}"
            raise FinalNetworkError(msg) from None
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            # ValueError: http.client's, over a negative size of a chunk.
            msg = f"{self.method} {redacted(self.url)}: the answer broke off: {reason(error)}"
            raise NetworkError(msg) from error
        finally:
            self.close()

    def read(self, limit: int) -> bytes:
        """Read a small body whole, up to `limit` + 1 bytes: a longer answer tells that it is too long.

        Raises:
            NetworkError: it broke off.
        """
        content = bytearray()
        self._read_into(content, limit)
        return bytes(content[: limit + 1])

    def explanation(self) -> bytes:
        """Read the body of a refusal as far as it can be had: its status is what counts, even if the rest broke off."""
        content = bytearray()
        with contextlib.suppress(NetworkError):
            self._read_into(content, limits.MAX_ERROR_BODY)
        return bytes(content[: limits.MAX_ERROR_BODY])

    def drain(self) -> None:
        """Read what little body there may be, or none in answer to HEAD, so that the connection can be used again."""
        self.explanation()

    def close(self) -> None:
        """Close the connection, unless the body was read to its end: then it is kept for the next request."""
        self._response.raw.close()

    def _read_into(self, content: bytearray, limit: int) -> None:
        for chunk in self.chunks(64 * limits.KIB):
            content += chunk
            if len(content) > limit:
                break
        self.close()


class Connections:
    """The connections to any number of hosts. Safe for several threads. Times are in seconds."""

    def __init__(
        self,
        *,
        connect_timeout: float,
        stall_timeout: float,
        ca_file: str | None,
        proxies: Mapping[str, str],
        user_agent: str,
    ) -> None:
        """Set up; no connection is made yet."""
        self._timeout = (connect_timeout, stall_timeout)
        self._verify = ca_file or True
        self._proxies = {scheme: proxy for scheme, proxy in proxies.items() if scheme != "no_proxy"}
        self._no_proxy = proxies.get("no_proxy", "")
        # A CDN that gzips a blob breaks its length and digest (quay#1310).
        self._headers = {"User-Agent": user_agent, "Accept-Encoding": "identity", "Accept": "*/*"}
        self._adapter = _Adapter(stall_timeout)

    def close(self) -> None:
        """Close all idle connections."""
        self._adapter.close()

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | StreamedBody | None,
        timeout: tuple[float, float] | None = None,
    ) -> Answer:
        """Send a request and wait for the head of its answer, whatever its status.

        `timeout` is how long connecting may take, and how long the answer may then be waited for and stall.

        Raises:
            NetworkError: there is no answer.
            Exception: what a `Body`'s chunks raise comes out as it is.
        """
        # Not by a session, which would read all of a redirect's body, remember cookies (they make Harbor ask for a
        # CSRF token), and let netrc override a Bearer header.
        data = b"" if body is None else body
        request = requests.Request(method, url, headers={**self._headers, **headers}, data=data, auth=_as_it_is)
        try:
            prepared = request.prepare()
            # A signed URL is to arrive as it was given; requests would decode `%7E` and the like.
            prepared.url = url
            response = self._adapter.send(
                prepared,
                stream=True,
                timeout=timeout or self._timeout,
                proxies=self._proxies_for(url),
                verify=self._verify,
            )
        except _BodyError as error:
            raise cast("Exception", error.__cause__) from None
        except _EndlessError as error:
            msg = f"{method} {redacted(url)}: {error}"
            raise FinalNetworkError(msg) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise network_error(method, url, error) from error
        return Answer(response, method, url)

    def _proxies_for(self, url: str) -> dict[str, str]:
        return {} if bypasses_proxy(url, self._no_proxy) else self._proxies


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Stand in for an authentication, since requests would take one from a user and password in the URL."""
    return request


class _Adapter(requests.adapters.HTTPAdapter):
    """What gives requests its connections: ours."""

    def __init__(self, stall_timeout: float) -> None:
        self._pools = _pools(stall_timeout)
        super().__init__(pool_connections=_HOSTS, pool_maxsize=_IDLE_CONNECTIONS, max_retries=0)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: object) -> None:
        super().init_poolmanager(connections, maxsize, block, **options, socket_options=_socket_options())
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **options: object) -> urllib3.ProxyManager:
        manager: urllib3.ProxyManager = super().proxy_manager_for(proxy, **options, socket_options=_socket_options())
        manager.pool_classes_by_scheme = self._pools
        return manager


def _socket_options() -> list[tuple[int, int, int]]:
    """Keep a connection alive while a registry is silent over a large blob: firewalls forget those that are."""
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if hasattr(socket, "TCP_KEEPIDLE"):
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE))
    return options


def _pools(stall_timeout: float) -> dict[str, type[HTTPConnectionPool]]:
    """Make the pools, by scheme, of connections that send for as long as bytes move, and read no endless answers.

    urllib3's send under the time-out for connecting, and `sendall` counts it for all of a chunk: on a slow line every
    upload would fail.
    """

    class Plain(_Watchful, HTTPConnection):
        response_class = _Response

        def send(self, data: object) -> None:
            _send(self, data, stall_timeout)

    class Encrypted(_Watchful, HTTPSConnection):
        response_class = _Response

        def send(self, data: object) -> None:
            _send(self, data, stall_timeout)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class EncryptedPool(HTTPSConnectionPool):
        ConnectionCls = Encrypted

    return {"http": PlainPool, "https": EncryptedPool}


def _send(connection: _Watchful, data: object, stall_timeout: float) -> None:
    """Send all of `data`, or as much as is wanted; that none of it moves for `stall_timeout` seconds is a failure."""
    if connection.sock is None:
        connection.connect()
    if connection.sock.gettimeout() != stall_timeout:
        connection.sock.settimeout(stall_timeout)
    with memoryview(cast("Chunk", data)) as view:
        send_all(connection.sock, view, stall_timeout, connection.early)


class _EndlessError(Exception):
    """An answer that would never end, on its way past urllib3, which would count it among those to try again."""


class _Watchful(HTTPConnection):
    """A connection that stops sending a body when its request is answered; urllib3 then reads the answer.

    While a head is sent nobody looks: what is there then belongs to an earlier request.
    """

    early: Early | None = None

    def endheaders(self, message_body: Any = None, *, encode_chunked: bool = False) -> None:  # noqa: ANN401 - http.client's
        self.early = None
        super().endheaders(message_body, encode_chunked=encode_chunked)
        self.early = Early()

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override] # as urllib3's own
        early, self.early = self.early, None
        self.response_class = (
            functools.partial(_Response, beginning=bytes(early.beginning), is_last=early.is_final)  # type: ignore[assignment]
            if early
            else _Response
        )
        return super().getresponse()


class _Response(http.client.HTTPResponse):
    """http.client's answer, with bounds on what comes in lines, where http.client has none, or none for their sum.

    Relied on: `response_class` of a connection; that `fp` is the buffered file from which every line of an answer is
    read by `readline` and its body by `read`, in a tunnel's answer too; and that `begin` reads a head, over any number
    of `100 Continue`, unless `headers` says that one was read.
    """

    fp: _Input

    def __init__(
        self,
        sock: socket.socket,
        debuglevel: int = 0,
        method: str | None = None,
        *,
        beginning: bytes = b"",
        is_last: bool = False,
    ) -> None:
        super().__init__(sock, debuglevel, method)
        raw = self.fp.detach()
        self.fp = _Input(Prefixed(beginning, raw) if beginning else raw)
        self._is_last = is_last

    def begin(self) -> None:
        super().begin()
        # To http.client an interim answer other than 100 is the answer, and the answer that of the next request.
        while 100 < self.status < 200 and self.status != http.HTTPStatus.SWITCHING_PROTOCOLS:
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()
        if self._is_last:
            # The other side still waits for the rest of the request.
            self.will_close = True
        self.fp.is_body = True


class _Input(io.BufferedReader):
    """What a server sends of one answer. `is_body` says whether the answer's head is over."""

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__(raw)
        self.is_body = False
        self._heads = 0
        self._left = _MAX_LINES

    def readline(self, size: int | None = -1) -> bytes:
        most = self._left + 1
        line = super().readline(most if size is None or size < 0 else min(size, most))
        self._left -= len(line)
        if self._left < 0:
            msg = f"more than {_MAX_LINES} bytes of headers, or between the chunks of the answer's body"
            raise _EndlessError(msg)
        if not self.is_body and line in {b"\r\n", b"\n"}:
            self._heads += 1
            if self._heads > _MAX_INTERIM + 1:
                msg = f"more than {_MAX_INTERIM} interim answers"
                raise _EndlessError(msg)
        return line

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            # What is read here has a size, unless it is a chunk of a negative one: that would be all there is to come.
            msg = "a chunk of the answer's body has a negative size"
            raise _EndlessError(msg)
        content = super().read(size)
        self._left = min(self._left + _LINES_PER_BYTE * len(content), _MAX_LINES)
        return content
