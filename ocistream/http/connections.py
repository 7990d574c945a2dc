"""Send one request over pooled connections and read its response, with requests as the library.

No redirects, retries or credentials here, and no cookies, netrc or environment variables.
"""

from __future__ import annotations

import contextlib
import http.client
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import requests
import requests.adapters
import urllib3
import urllib3.exceptions

from ocistream import limits
from ocistream.errors import CancelledError, NetworkError, OcistreamError, PermanentNetworkError, UnsupportedError
from ocistream.http.errors import describe_cause, network_error
from ocistream.http.origins import Origin, is_proxy_bypassed, redact_url
from ocistream.http.rate_limits import RateLimits
from ocistream.http.sockets import AddressGuard, BlockingThrottle, EndlessResponseError, build_pools, socket_options
from ocistream.http.tls import TlsContexts, TlsSettings
from ocistream.oci.reference import printable
from ocistream.streams.memory import ReadBuffers

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from requests.adapters import _HostParams, _PoolKwargs

    from ocistream.http.rate_limits import Throttle
    from ocistream.http.sockets import BoundedResponse
    from ocistream.streams.chunks import Chunk

__all__ = [
    "BodyError",
    "ConnectionSettings",
    "Connections",
    "FixedLengthBody",
    "Response",
    "StreamedBody",
]


class StreamedBody:
    """A request body that is made while it is sent, and whose length nobody knows before.

    It has `__iter__` and no `read`: what can be read is sent 16 KiB at a time. `begun` says whether any of it was asked
    for, after which it cannot be sent again; `ended` says that all of it was, which an early answer prevents. `failure`
    is what its own chunks raised, if they did.

    One that `ends_early` has a proper end all the same then, which is for what is no whole thing by itself: so a
    registry answers, and knows what it has, and its upload can be deleted. (After a request that broke off,
    distribution 2.8 neither knows an upload nor lets anybody delete it.)
    """

    def __init__(self, chunks: Iterator[Chunk], *, ends_early: bool = False) -> None:
        """Keep the chunks."""
        self._chunks = chunks
        self._ends_early = ends_early
        self.is_started = False
        self.is_finished = False
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[Chunk]:
        """Send."""
        self.is_started = True
        try:
            yield from self._chunks
            self.is_finished = True
        except OcistreamError as error:
            self.failure = error
            if not self._ends_early:
                raise
        except (OSError, ValueError) as error:
            self.failure = error
            # urllib3 would take it for a failure of the network, or overlook it and wait for an answer.
            if not self._ends_early:
                raise BodyError from error


class FixedLengthBody(StreamedBody):
    """A request body of known length."""

    def __init__(self, chunks: Iterator[Chunk], length: int) -> None:
        """Keep the chunks, and their length in bytes; it must not be 0, which would become chunked encoding."""
        super().__init__(chunks)
        self._length = length

    def __len__(self) -> int:
        """Give the length, which becomes the Content-Length."""
        return self._length


class BodyError(Exception):
    """What a body's chunks raised, on its way past urllib3."""


#: Hosts to which idle connections are kept, and how many to each: no fewer than `--jobs` allows at once.
_MAX_IDLE_HOSTS: Final = 16
_IDLE_CONNECTIONS: Final = 32
_NO_TLS_SETTINGS: Final = TlsSettings()


class Response:
    """A response whose body has not been read yet."""

    def __init__(
        self,
        response: requests.Response,
        method: str,
        url: str,
        pages: ReadBuffers,
        limiter: BlockingThrottle | None = None,
    ) -> None:
        """Wrap what requests gave, to be read into `pages`; `limiter` says how fast it may be read."""
        self._response = response
        # Not by way of urllib3, which makes an object of every chunk. Relied on: that it gives the answer it had.
        self._body = cast("BoundedResponse", response.raw._original_response)  # noqa: SLF001 - requests does so too
        self._read_buffers = pages
        self._throttle = limiter
        #: Bytes of the body.
        self._received = 0
        self.method = method
        self.url = url
        self.status = response.status_code
        #: How many redirects have led here.
        self.hops = 0

    def header(self, name: str) -> str | None:
        """Give a header's value, or None."""
        return self._response.headers.get(name)

    def challenges(self) -> Sequence[str]:
        """Give every WWW-Authenticate header."""
        raw = self._response.raw
        return list(raw.headers.getlist("WWW-Authenticate"))

    def chunks(self) -> Iterator[Chunk]:
        """Read the body, as much at a time as there is; a chunk `streams.buffers.lasts`.

        Raises:
            NetworkError: it broke off, or stalled; finally so where it is one without an end.
        """
        with contextlib.closing(self), self._read_buffers.borrow() as pages:
            # A body that has ended needs no further page; one that is short, to say so.
            while self._body.missing or not self._body.isclosed():
                page = next(pages)
                if not (count := self._fill(page)):
                    return
                yield page[:count]

    def read_into(self, view: memoryview) -> Generator[int, None, None]:
        """Read the body into `view`; each time that more of it is there, give how many bytes it is by then.

        Raises:
            NetworkError: it broke off, or stalled, or is longer; finally so where it is one without an end.
        """
        filled = 0
        with contextlib.closing(self):
            while filled < len(view) and (count := self._fill(view[filled:])):
                filled += count
                yield filled
            # Its end is to be seen: then the connection is kept.
            if filled == len(view) and self._fill(memoryview(bytearray(1))):
                msg = f"{self.method} {redact_url(self.url)}: asked for {filled} bytes, and got more"
                raise NetworkError(msg)

    def _fill(self, view: memoryview) -> int:
        """Read some of the body to the beginning of `view`, and say how many bytes; 0 at its end."""
        body = self._body
        most = min(len(view), body.read_size if self._throttle is None else self._throttle.piece_size)
        least = min(most, limits.MIN_READ)
        filled = 0
        try:
            while filled < least and (count := body.readinto(view[filled:most])):
                filled += count
        except EndlessResponseError as error:
            msg = f"{self.method} {redact_url(self.url)}: {error}"
            raise PermanentNetworkError(msg) from None
        except (http.client.HTTPException, OSError, ValueError) as error:
            # ValueError: http.client's, over what is no size of a chunk.
            msg = f"{self.method} {redact_url(self.url)}: the answer broke off: {describe_cause(error)}"
            raise NetworkError(msg) from error
        if not filled and body.missing:
            came = f"{self._received} bytes came, {body.missing} more were promised"
            msg = f"{self.method} {redact_url(self.url)}: the answer broke off: {came}"
            raise NetworkError(msg)
        self._received += filled
        if self._throttle is not None and filled:
            self._throttle.spend(filled)
        return filled

    def read(self, limit: int) -> bytes:
        """Read a small body whole, up to `limit` + 1 bytes: a longer answer tells that it is too long.

        Raises:
            NetworkError: it broke off.
        """
        content = bytearray()
        self._append_to(content, limit)
        return bytes(content[: limit + 1])

    def read_error_body(self) -> bytes:
        """Read the body of a refusal as far as it can be had: its status is what counts, even if the rest broke off."""
        content = bytearray()
        with contextlib.suppress(NetworkError):
            self._append_to(content, limits.MAX_ERROR_BODY)
        return bytes(content[: limits.MAX_ERROR_BODY])

    def drain(self) -> None:
        """Read what little body there may be, or none in answer to HEAD, so that the connection can be used again."""
        self.read_error_body()

    def close(self) -> None:
        """Close the connection, unless the body was read to its end: then it is kept for the next request."""
        raw = self._response.raw
        if self._body.isclosed() and not self._body.missing:
            raw.release_conn()
        raw.close()

    def _append_to(self, content: bytearray, limit: int) -> None:
        buffer = memoryview(bytearray(min(limit + 1, limits.MIN_READ)))
        with contextlib.closing(self):
            while len(content) <= limit and (count := self._fill(buffer)):
                content += buffer[:count]


def _build_throttle(throttle: Throttle | None, sleep: Callable[[float], None]) -> BlockingThrottle | None:
    return BlockingThrottle(throttle, sleep) if throttle else None


def _without_cancellation(sleep: Callable[[float], None]) -> Callable[[float], None]:
    """Return a way to wait that does not raise: a cancelled request ends where its body ends, not in the middle."""

    def wait(seconds: float) -> None:
        with contextlib.suppress(CancelledError):
            sleep(seconds)

    return wait


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """What holds for the connections to all hosts. Times are in seconds."""

    connect_timeout: float
    stall_timeout: float
    user_agent: str
    #: A file or directory of CA certificates in place of the system's.
    ca_bundle: str | None = None
    #: How a proxy that speaks TLS is trusted.
    proxy_tls: TlsSettings = _NO_TLS_SETTINGS
    #: Scheme to proxy URL, and `no_proxy` to a list of hosts.
    proxies: Mapping[str, str] = field(default_factory=dict)
    rate_limits: RateLimits = field(default_factory=RateLimits)
    #: Gives a hint with the options in it as the user writes them.
    format_hint: Callable[[str], str] = str


class Connections:
    """The connections to any number of hosts. Safe for several threads. Times are in seconds."""

    def __init__(self, settings: ConnectionSettings, sleep: Callable[[float], None] = time.sleep) -> None:
        """Set up; no connection is made yet. `sleep` waits where the rate is limited, and may raise."""
        self._timeout = (settings.connect_timeout, settings.stall_timeout)
        self._proxies = {scheme: proxy for scheme, proxy in settings.proxies.items() if scheme != "no_proxy"}
        self._no_proxy = settings.proxies.get("no_proxy", "")
        self._format_hint = settings.format_hint
        # A CDN that gzips a blob breaks its length and digest (quay#1310).
        self._headers = {"User-Agent": settings.user_agent, "Accept-Encoding": "identity", "Accept": "*/*"}
        self._download_throttle = _build_throttle(settings.rate_limits.download, sleep)
        self._answered: set[Origin] = set()
        self._read_buffers = ReadBuffers()
        self._address_guard = AddressGuard()
        contexts = TlsContexts(settings.ca_bundle, requests.adapters.DEFAULT_CA_BUNDLE_PATH)
        # Two that share no connection: one that was made to this machine is not to be used by what leads here from
        # outside.
        upload = _build_throttle(settings.rate_limits.upload, _without_cancellation(sleep))
        self._adapter, self._external_adapter = (
            _Adapter(settings, upload, contexts, self._address_guard, only_outside=outside) for outside in (False, True)
        )

    def close(self) -> None:
        """Close all idle connections."""
        self._adapter.close()
        self._external_adapter.close()

    def is_external(self, host: str) -> bool | None:
        """Say whether a host was connected to outside of this machine and network.

        None where it was not connected to yet, or by a proxy only.
        """
        return self._address_guard.is_external(host)

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | StreamedBody | None,
        timeout: tuple[float, float] | None = None,
        tls: TlsSettings = _NO_TLS_SETTINGS,
        *,
        only_outside: bool = False,
    ) -> Response:
        """Send a request and wait for the head of its answer, whatever its status.

        `timeout` is how long connecting may take, and how long the answer may then be waited for and stall. `tls` says
        whom to trust and what to show, where it is a URL of https. A connection is used again only for equal ones.
        With `only_outside` it goes to no inward address, whatever the name there; what a proxy does is its own affair.

        Raises:
            NetworkError: there is no answer.
            FinalNetworkError: the host is where it must not be, or trying again is of no use for another reason.
            UnsupportedError: there is a proxy of a kind that is not known here.
            Exception: what a `Body`'s chunks raise comes out as it is.
        """
        # Not by a session, which would read all of a redirect's body, remember cookies (they make Harbor ask for a
        # CSRF token), and let netrc override a Bearer header.
        data = b"" if body is None else body
        request = requests.Request(method, url, headers={**self._headers, **headers}, data=data, auth=_no_auth)
        try:
            prepared = request.prepare()
            # A signed URL is to arrive as it was given; requests would decode `%7E` and the like.
            prepared.url = url
            response = (self._external_adapter if only_outside else self._adapter).send(
                prepared,
                stream=True,
                timeout=timeout or self._timeout,
                proxies=self._proxies_for(url),
                verify=cast("bool", tls),
            )
        except BodyError as error:
            raise cast("Exception", error.__cause__) from None
        except EndlessResponseError as error:
            msg = f"{method} {redact_url(url)}: {error}"
            raise PermanentNetworkError(msg) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise self._convert_error(method, url, error) from error
        self._answered.add(Origin.from_url(url))
        return Response(response, method, url, self._read_buffers, self._download_throttle)

    def handshake(self, url: str, timeout: float) -> None:
        """Open a TLS connection to where a URL of https leads, through the same proxy, and close it again.

        The certificate there is not looked at, none is shown, and nothing is asked for.

        Raises:
            NetworkError: it did not come about.
            UnsupportedError: there is a proxy of a kind that is not known here.
        """
        try:
            self._adapter.handshake(url, self._proxies_for(url), timeout)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise self._convert_error("TLS with", url, error) from error

    def _convert_error(self, method: str, url: str, error: Exception) -> NetworkError:
        found = network_error(method, url, error, known=Origin.from_url(url) in self._answered)
        found.hint = found.hint and self._format_hint(found.hint)
        return found

    def _proxies_for(self, url: str) -> dict[str, str]:
        return {} if is_proxy_bypassed(url, self._no_proxy) else self._proxies


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Stand in for an authentication, since requests would take one from a user and password in the URL."""
    return request


class _Adapter(requests.adapters.HTTPAdapter):
    """What gives requests its connections: ours. What it is handed as `verify` are a `TlsSettings`."""

    def __init__(
        self,
        settings: ConnectionSettings,
        upload: BlockingThrottle | None,
        contexts: TlsContexts,
        reached: AddressGuard,
        *,
        only_outside: bool,
    ) -> None:
        self._contexts = contexts
        self._proxy_tls = settings.proxy_tls
        self._pools = build_pools(settings.stall_timeout, upload, reached, only_outside=only_outside)
        self._options = socket_options(settings.rate_limits.socket_buffer)
        super().__init__(pool_connections=_MAX_IDLE_HOSTS, pool_maxsize=_IDLE_CONNECTIONS, max_retries=0)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: object) -> None:
        super().init_poolmanager(connections, maxsize, block, **options, socket_options=self._options)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **options: object) -> urllib3.ProxyManager:
        scheme = proxy.partition(":")[0].lower()
        if scheme.startswith("socks"):
            msg = f"the proxy for this host is to be spoken to by {printable(scheme, 20)}, which is not supported"
            raise UnsupportedError(msg, hint="HTTPS_PROXY, HTTP_PROXY and ALL_PROXY take http:// and https:// proxies")
        if scheme == "https":
            # Else urllib3 would have its own idea of whom to trust. A registry's client certificate is none of its
            # business.
            options["proxy_ssl_context"] = self._contexts.load(self._proxy_tls)
        manager: urllib3.ProxyManager = super().proxy_manager_for(proxy, **options, socket_options=self._options)
        manager.pool_classes_by_scheme = self._pools
        return manager

    def build_connection_pool_key_attributes(
        self,
        request: requests.PreparedRequest,
        verify: bool | str,
        cert: str | tuple[str, str] | None = None,
    ) -> tuple[_HostParams, _PoolKwargs]:
        host, _ = super().build_connection_pool_key_attributes(request, False, cert)
        if host["scheme"] != "https":
            return host, cast("_PoolKwargs", {})
        # The pool of one context is never that of another one: a client certificate stays where it may be shown.
        return host, cast("_PoolKwargs", {"ssl_context": self._contexts.load(cast("TlsSettings", verify))})

    def handshake(self, url: str, proxies: Mapping[str, str], timeout: float) -> None:
        prepared = requests.Request("GET", url).prepare()
        unchecked = cast("bool", TlsSettings(insecure=True))
        pool = cast("Any", self.get_connection_with_tls_context(prepared, unchecked, dict(proxies)))
        # Relied on: a pool's `_new_conn`, and that its `_prepare_proxy` leads through a proxy's tunnel.
        connection = pool._new_conn()  # noqa: SLF001 - with urlopen comes a request
        connection.timeout = timeout
        try:
            if pool.proxy is not None:
                pool._prepare_proxy(connection)  # noqa: SLF001 - the same
            connection.connect()
        finally:
            connection.close()

    def cert_verify(self, conn: object, url: object, verify: object, cert: object) -> None:
        """Leave the pool as it is: its context says it all."""
