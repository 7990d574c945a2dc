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
    """A request body that is produced while it is sent. Its length is not known in advance.

    It has `__iter__` and no `read`, because http.client sends anything with `read` in pieces of 16 KiB. `is_started`
    says whether any chunk was requested: then the body cannot be sent again. `is_finished` says whether the body was
    sent completely; an early response prevents that. `failure` is the exception that the chunks raised, if any.

    With `ends_early` a body whose chunks fail is ended properly. Then the registry responds and knows what it has
    received, so the upload can be resumed or deleted. After a broken request, distribution 2.8 neither finds an upload
    nor allows its deletion.
    """

    def __init__(self, chunks: Iterator[Chunk], *, ends_early: bool = False) -> None:
        """Use these chunks."""
        self._chunks = chunks
        self._ends_early = ends_early
        self.is_started = False
        self.is_finished = False
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[Chunk]:
        """Yield the chunks, and record start, end and failure."""
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
            # urllib3 would treat it as a network failure, or ignore it and wait for a response.
            if not self._ends_early:
                raise BodyError from error


class FixedLengthBody(StreamedBody):
    """A request body of known length.

    If its chunks fail, the request breaks off, because it cannot end short. A stated length lets a proxy refuse a layer
    that is too large before a byte of it is sent.
    """

    def __init__(self, chunks: Iterator[Chunk], length: int) -> None:
        """Use these chunks of `length` bytes in total; 0 is not allowed, because it would become chunked encoding."""
        super().__init__(chunks)
        self._length = length

    def __len__(self) -> int:
        """Return the length in bytes, which becomes the Content-Length."""
        return self._length


class BodyError(Exception):
    """Carries an exception of a body's chunks through urllib3."""


#: How many hosts have idle connections, and how many each: at least as many as `--jobs` allows at once.
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
        read_buffers: ReadBuffers,
        throttle: BlockingThrottle | None = None,
    ) -> None:
        """Wrap a response of requests. Its body is read into `read_buffers`, at the rate that `throttle` allows."""
        self._response = response
        # Not through urllib3, which creates an object for each chunk: http.client reads into our reused buffers. This
        # class does the rest of urllib3's work: it reports broken bodies and returns connections to the pool. It relies
        # on urllib3 keeping http.client's response here.
        self._body = cast("BoundedResponse", response.raw._original_response)  # noqa: SLF001 - requests does so too
        self._read_buffers = read_buffers
        self._throttle = throttle
        #: Bytes of the body received so far.
        self._received = 0
        self.method = method
        self.url = url
        self.status = response.status_code
        #: How many redirects were followed to get this response.
        self.hops = 0

    def header(self, name: str) -> str | None:
        """Return the value of a header, or None."""
        return self._response.headers.get(name)

    def challenges(self) -> Sequence[str]:
        """Return the values of all WWW-Authenticate headers."""
        raw = self._response.raw
        return list(raw.headers.getlist("WWW-Authenticate"))

    def chunks(self) -> Iterator[Chunk]:
        """Yield the body in chunks of whatever has arrived; a chunk is valid until the next one is requested.

        Raises:
            NetworkError: the body broke off or stalled. It is permanent if the body never ends.
        """
        with contextlib.closing(self), self._read_buffers.borrow() as buffers:
            # At the end no further buffer is needed. If the body is short, one more read reports that.
            while self._body.missing or not self._body.isclosed():
                buffer = next(buffers)
                if not (count := self._fill(buffer)):
                    return
                yield buffer[:count]

    def read_into(self, view: memoryview) -> Generator[int, None, None]:
        """Read the body into `view`; yield the total number of bytes read, each time that it grows.

        Raises:
            NetworkError: the body broke off, stalled, or is longer than `view`. It is permanent if the body never ends.
        """
        filled = 0
        with contextlib.closing(self):
            while filled < len(view) and (count := self._fill(view[filled:])):
                filled += count
                yield filled
            # Read up to the end of the body, so that the connection can be reused.
            if filled == len(view) and self._fill(memoryview(bytearray(1))):
                msg = f"{self.method} {redact_url(self.url)}: asked for {filled} bytes, and got more"
                raise NetworkError(msg)

    def _fill(self, view: memoryview) -> int:
        """Read a piece of the body into the beginning of `view` and return its size in bytes; 0 at the end."""
        body = self._body
        max_size = min(len(view), body.read_size if self._throttle is None else self._throttle.piece_size)
        min_size = min(max_size, limits.MIN_READ)
        filled = 0
        try:
            while filled < min_size and (count := body.readinto(view[filled:max_size])):
                filled += count
        except EndlessResponseError as error:
            msg = f"{self.method} {redact_url(self.url)}: {error}"
            raise PermanentNetworkError(msg) from None
        except (http.client.HTTPException, OSError, ValueError) as error:
            # http.client raises ValueError for a malformed chunk size.
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
        """Return a small body, cut to `limit` + 1 bytes: a longer result shows that the body is too long.

        Raises:
            NetworkError: the body broke off.
        """
        content = bytearray()
        self._append_to(content, limit)
        return bytes(content[: limit + 1])

    def read_error_body(self) -> bytes:
        """Return the body of an error as far as it can be read: the status counts even if the body breaks off."""
        content = bytearray()
        with contextlib.suppress(NetworkError):
            self._append_to(content, limits.MAX_ERROR_BODY)
        return bytes(content[: limits.MAX_ERROR_BODY])

    def drain(self) -> None:
        """Read a small body so that the connection can be reused."""
        self.read_error_body()

    def close(self) -> None:
        """Return the connection to the pool if the body was read to its end; else close it."""
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
    """Return a sleep that does not raise: a cancelled request ends where its body ends, not in the middle."""

    def wait(seconds: float) -> None:
        with contextlib.suppress(CancelledError):
            sleep(seconds)

    return wait


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """Settings for the connections to all hosts. Times are in seconds."""

    connect_timeout: float
    stall_timeout: float
    user_agent: str
    #: A file or directory of CA certificates in place of the system's.
    ca_bundle: str | None = None
    #: The TLS settings for proxies that speak TLS.
    proxy_tls: TlsSettings = _NO_TLS_SETTINGS
    #: Scheme to proxy URL, and `no_proxy` to a list of hosts.
    proxies: Mapping[str, str] = field(default_factory=dict)
    rate_limits: RateLimits = field(default_factory=RateLimits)
    #: Rewrites the option names in a hint as the user writes them.
    format_hint: Callable[[str], str] = str


class Connections:
    """The pooled connections to any number of hosts. Safe for several threads. Times are in seconds."""

    def __init__(self, settings: ConnectionSettings, sleep: Callable[[float], None] = time.sleep) -> None:
        """Set up the pools; no connection is made yet. `sleep` waits where the rate is limited, and may raise."""
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
        # Two adapters that share no connection. A request that comes from outside must not use a connection to this
        # machine that the user's own request has opened.
        upload = _build_throttle(settings.rate_limits.upload, _without_cancellation(sleep))
        self._adapter, self._external_adapter = (
            _Adapter(settings, upload, contexts, self._address_guard, external_only=external_only)
            for external_only in (False, True)
        )

    def close(self) -> None:
        """Close all idle connections."""
        self._adapter.close()
        self._external_adapter.close()

    def is_external(self, host: str) -> bool | None:
        """Return whether a host was connected to at an address outside of this machine and network.

        None if there was no connection yet, or only through a proxy.
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
        external_only: bool = False,
    ) -> Response:
        """Send a request and wait for the head of the response, whatever its status.

        `timeout` is the time to connect, and the time to wait for data while reading. `tls` says which CAs to trust and
        which client certificate to show over https. A connection is reused only for equal TLS settings. With
        `external_only` the connection is refused if the host has an internal address. Addresses behind a proxy are not
        checked.

        Raises:
            NetworkError: there is no response.
            PermanentNetworkError: the host has an address that is not allowed, or a retry is useless for another
                reason.
            UnsupportedError: the proxy is of an unsupported kind.
            Exception: exceptions of a `StreamedBody`'s chunks are raised unchanged.
        """
        # Not a requests.Session: it would read a redirect's body completely, remember cookies (then Harbor asks for a
        # CSRF token), and let netrc override a Bearer header.
        data = b"" if body is None else body
        request = requests.Request(method, url, headers={**self._headers, **headers}, data=data, auth=_no_auth)
        try:
            prepared = request.prepare()
            # A signed URL must be sent unchanged; requests would decode `%7E` and the like.
            prepared.url = url
            response = (self._external_adapter if external_only else self._adapter).send(
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
        """Open a TLS connection to the host of an https URL, through the same proxy, and close it again.

        The certificate is not checked, no client certificate is shown, and no request is sent.

        Raises:
            NetworkError: the handshake failed.
            UnsupportedError: the proxy is of an unsupported kind.
        """
        try:
            self._adapter.handshake(url, self._proxies_for(url), timeout)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise self._convert_error("TLS with", url, error) from error

    def _convert_error(self, method: str, url: str, error: Exception) -> NetworkError:
        converted = network_error(method, url, error, known=Origin.from_url(url) in self._answered)
        converted.hint = converted.hint and self._format_hint(converted.hint)
        return converted

    def _proxies_for(self, url: str) -> dict[str, str]:
        return {} if is_proxy_bypassed(url, self._no_proxy) else self._proxies


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Replace requests' authentication, which would use a user and password in the URL."""
    return request


class _Adapter(requests.adapters.HTTPAdapter):
    """An adapter of requests that uses our pools. requests' `verify` argument carries a `TlsSettings`."""

    def __init__(
        self,
        settings: ConnectionSettings,
        upload_throttle: BlockingThrottle | None,
        contexts: TlsContexts,
        address_guard: AddressGuard,
        *,
        external_only: bool,
    ) -> None:
        self._contexts = contexts
        self._proxy_tls = settings.proxy_tls
        self._pools = build_pools(settings.stall_timeout, upload_throttle, address_guard, external_only=external_only)
        self._options = socket_options(settings.rate_limits.socket_buffer)
        super().__init__(pool_connections=_MAX_IDLE_HOSTS, pool_maxsize=_IDLE_CONNECTIONS, max_retries=0)

    def close(self) -> None:
        """Close all idle connections, and others once they are idle.

        urllib3 closes them only when a pool is deallocated, and the frames of an error keep a pool for long.
        """
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in manager.pools.keys():  # noqa: SIM118 - it cannot be iterated
                if (pool := manager.pools.get(key)) is not None:
                    pool.close()
        super().close()

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: object) -> None:
        super().init_poolmanager(connections, maxsize, block, **options, socket_options=self._options)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **options: object) -> urllib3.ProxyManager:
        scheme = proxy.partition(":")[0].lower()
        if scheme.startswith("socks"):
            msg = f"the proxy for this host is to be spoken to by {printable(scheme, 20)}, which is not supported"
            raise UnsupportedError(msg, hint="HTTPS_PROXY, HTTP_PROXY and ALL_PROXY take http:// and https:// proxies")
        if scheme == "https":
            # Otherwise urllib3 would choose the trusted CAs. A proxy never gets a registry's client certificate.
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
        # Each context has its own pool, so a client certificate stays on the connections where it may be shown.
        return host, cast("_PoolKwargs", {"ssl_context": self._contexts.load(cast("TlsSettings", verify))})

    def handshake(self, url: str, proxies: Mapping[str, str], timeout: float) -> None:
        prepared = requests.Request("GET", url).prepare()
        unchecked = cast("bool", TlsSettings(insecure=True))
        pool = cast("Any", self.get_connection_with_tls_context(prepared, unchecked, dict(proxies)))
        # This relies on a pool's `_new_conn`, and on its `_prepare_proxy` opening a proxy's tunnel.
        connection = pool._new_conn()  # noqa: SLF001 - with urlopen comes a request
        connection.timeout = timeout
        try:
            if pool.proxy is not None:
                pool._prepare_proxy(connection)  # noqa: SLF001 - the same
            connection.connect()
        finally:
            connection.close()

    def cert_verify(self, conn: object, url: object, verify: object, cert: object) -> None:
        """Leave the pool unchanged: its context has all TLS settings."""
