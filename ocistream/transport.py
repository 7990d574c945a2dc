"""HTTP as registries need it: one session, retries, redirects, origins, errors, and nothing secret in any text.

The only room that imports requests. It knows which origin a credential belongs to and that a body must be replayable
to be sent again; it knows nothing of manifests and blobs.
"""

from __future__ import annotations

import http.cookiejar
import threading
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

import requests
import requests.adapters
import requests.utils
import urllib3.exceptions

from ocistream import limits
from ocistream.auth import Authenticator, TokenAnswer, TokenRequest
from ocistream.errors import CancelledError, FinalNetworkError, NetworkError
from ocistream.failures import network_error, reason, refusal
from ocistream.origins import Origin, check_target, is_loopback, redacted
from ocistream.retry import Patience, Retried, Tries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocistream.credentials import Credential
    from ocistream.stream import Chunk

__all__ = ["Answer", "Body", "Endpoint", "SizedBody", "Transport", "TransportSettings"]

#: Answers that may be better the next time (REGISTRIES 29, 30).
_RETRIED_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
#: Connecting and reading, in seconds, when an abandoned upload is deleted: nobody is to wait for that.
_CLEANUP_TIMEOUT: Final = (3.0, 3.0)


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """What the user may set of the network. Times are in seconds."""

    #: Hosts other than loopback ones speak plain HTTP too.
    plain_http: bool = False
    connect_timeout: float = 15.0
    #: A read or write that moves no byte for so long is a stall. There is no limit for the whole of a transfer.
    stall_timeout: float = 60.0
    patience: Patience = field(default_factory=Patience)
    #: A file of CA certificates in place of the bundled ones.
    ca_file: str | None = None
    #: Scheme to proxy URL, and `no_proxy` to a list of hosts, as the environment names them.
    proxies: Mapping[str, str] = field(default_factory=dict)
    user_agent: str = "ocistream"


class Body:
    """A request body that is made while it is sent, in chunked encoding since its length is not known.

    It has `__iter__` and no `read`: what can be read is sent 16 KiB at a time. `begun` says whether any of it was
    asked for, after which only a body that can be opened again may be sent again.
    """

    def __init__(self, chunks: Callable[[], Iterator[Chunk]]) -> None:
        """Keep the way to the chunks; they are opened when they are asked for."""
        self._chunks = chunks
        self.begun = False

    def __iter__(self) -> Iterator[Chunk]:
        """Send."""
        self.begun = True
        return self._chunks()


class SizedBody(Body):
    """A request body of known length."""

    def __init__(self, chunks: Callable[[], Iterator[Chunk]], length: int) -> None:
        """Keep the length in bytes, which must not be 0: that would become chunked encoding."""
        super().__init__(chunks)
        self._length = length

    def __len__(self) -> int:
        """Give the length, which becomes the Content-Length."""
        return self._length


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A registry as the transport sees it: what it is called, where it is, and who speaks for us there."""

    registry: str
    url: str
    origin: Origin
    authenticator: Authenticator


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
            NetworkError: it broke off, or stalled.
        """
        raw = self._response.raw
        try:
            while chunk := raw.read(size, decode_content=False):
                yield chunk
        except (urllib3.exceptions.HTTPError, OSError) as error:
            msg = f"{self.method} {redacted(self.url)}: the answer broke off: {reason(error)}"
            raise NetworkError(msg) from error
        finally:
            self.close()

    def read(self, limit: int) -> bytes:
        """Read a small body whole, up to `limit` + 1 bytes: a longer answer tells that it is too long.

        Raises:
            NetworkError: it broke off.
        """
        parts: list[bytes] = []
        length = 0
        for chunk in self.chunks(64 * limits.KIB):
            parts.append(chunk)
            length += len(chunk)
            if length > limit:
                break
        self.close()
        return b"".join(parts)[: limit + 1]

    def drain(self) -> None:
        """Read what little body there may be, so that the connection can be used again."""
        self.read(limits.MAX_ERROR_BODY)

    def close(self) -> None:
        """Give the connection back, or close it where the body was not read to its end."""
        raw = self._response.raw
        if raw.length_remaining or not raw.isclosed():
            raw.close()
        raw.release_conn()


class Transport:
    """One session to any number of registries. Safe for several threads."""

    def __init__(
        self,
        settings: TransportSettings,
        find: Callable[[str, str], Credential | None],
        *,
        on_retry: Callable[[Retried], None] = lambda _: None,
        cancelled: threading.Event | None = None,
    ) -> None:
        """Set up the session; no connection is made yet.

        `find(registry, repository)` looks a credential up; `on_retry` is told of every wait, from any thread.
        """
        self._settings = settings
        self.patience = settings.patience
        self._find = find
        self._on_retry = on_retry
        self._endpoints: dict[str, Endpoint] = {}
        self._lock = threading.Lock()
        self._not_before: dict[str, float] = {}
        self.cancelled = cancelled or threading.Event()
        self._session = _new_session(settings)

    def close(self) -> None:
        """Close all idle connections."""
        self._session.close()

    def endpoint(self, registry: str) -> Endpoint:
        """Give the endpoint of a registry such as `docker.io` or `localhost:5000`."""
        with self._lock:
            if registry not in self._endpoints:
                url = self._base_url(registry)
                origin = Origin.of(url)
                self._endpoints[registry] = Endpoint(
                    registry,
                    url,
                    origin,
                    Authenticator(
                        registry,
                        lambda repository: self._find(registry, repository),
                        lambda request: self._send_token_request(origin, request),
                    ),
                )
            return self._endpoints[registry]

    def request(
        self,
        endpoint: Endpoint,
        method: str,
        url: str,
        *,
        scopes: tuple[str, ...] = (),
        headers: Mapping[str, str] | None = None,
        body: bytes | Body | None = None,
        expected: Sequence[int] = (200,),
    ) -> Answer:
        """Send a request until it is answered for good, and give an answer of an `expected` status.

        Authorization is sent to the endpoint's own origin and nowhere else. A `Body` that was begun is not sent
        again by this method, whatever happens: who made it must decide from where.

        Raises:
            AuthenticationError: 401 or 403, after a fresh token was tried.
            NotFoundError: 404.
            RegistryError: any other status, after all retries.
            NetworkError: no answer, after all retries.
        """
        tries = self.tries()
        while True:
            try:
                answer = self._authorized(endpoint, method, url, scopes, dict(headers or {}), body)
            except NetworkError as error:
                if _begun(body) or not tries.again(error):
                    raise
                continue
            if answer.status in expected:
                return answer
            if answer.status in _RETRIED_STATUSES and not _begun(body) and tries.again(answer):
                continue
            beginning = answer.read(limits.MAX_ERROR_BODY)
            raise refusal(endpoint.registry, method, answer.url, answer.status, beginning)

    def request_once(self, endpoint: Endpoint, method: str, url: str, *, scopes: tuple[str, ...] = ()) -> None:
        """Send a request whose failure does not matter, even after a cancellation: cleaning up behind oneself.

        Raises:
            OcistreamError: it failed; it is not tried again.
        """
        headers = {}
        if Origin.of(url) == endpoint.origin and (known := endpoint.authenticator.authorization(scopes)):
            headers["Authorization"] = known
        else:
            check_target(endpoint.origin, url)
        self._send(method, url, headers, None, timeout=_CLEANUP_TIMEOUT).drain()

    def tries(self) -> Tries:
        """Begin counting the tries of one piece of work."""
        return Tries(self)

    def wait(self, seconds: float) -> None:
        """Sleep, unless the transfer is cancelled in the meantime.

        Raises:
            CancelledError: it was.
        """
        if self.cancelled.wait(seconds):
            msg = "cancelled"
            raise CancelledError(msg)

    def hold_back(self, url: str, seconds: float) -> None:
        """Let no request go to this URL's host for so many seconds: it said that it has enough (429)."""
        host = urlsplit(url).netloc
        with self._lock:
            self._not_before[host] = max(self._not_before.get(host, 0.0), time.monotonic() + seconds)

    def retried(self, retried: Retried) -> None:
        """Tell whoever wants to know that something is tried again."""
        self._on_retry(retried)

    # -- one request, with its authorization and its redirects ------------------------------------------

    def _authorized(
        self,
        endpoint: Endpoint,
        method: str,
        url: str,
        scopes: tuple[str, ...],
        headers: dict[str, str],
        body: bytes | Body | None,
    ) -> Answer:
        if Origin.of(url) != endpoint.origin:
            check_target(endpoint.origin, url)
            return self._redirected(method, url, headers, body)
        authorization = endpoint.authenticator.authorization(scopes)
        if authorization:
            headers["Authorization"] = authorization
        answer = self._redirected(method, url, headers, body)
        if answer.status != HTTPStatus.UNAUTHORIZED or _begun(body):
            return answer
        challenges = answer.challenges()
        answer.drain()
        headers["Authorization"] = endpoint.authenticator.challenged(challenges, scopes, authorization)
        return self._redirected(method, url, headers, body)

    def _redirected(self, method: str, url: str, headers: dict[str, str], body: bytes | Body | None) -> Answer:
        """Send, and follow redirects by LIMITS.md's rules: at most five, never down to http, credentials stay."""
        home = Origin.of(url)
        for _ in range(limits.MAX_REDIRECTS + 1):
            self._wait_for_turn(url)
            answer = self._send(method, url, headers, body)
            location = answer.header("Location")
            if answer.status not in _REDIRECTS or not location:
                return answer
            answer.drain()
            target = urljoin(url, location)
            if Origin.of(target) != home:
                headers = {k: v for k, v in headers.items() if k != "Authorization"}
                if body is not None:
                    msg = f"{method} {redacted(url)} was redirected to another host, {redacted(target)}: not followed"
                    raise FinalNetworkError(msg)
            if _begun(body):
                msg = f"{method} {redacted(url)} was redirected after its body was sent"
                raise FinalNetworkError(msg)
            check_target(Origin.of(url), target)
            url = target
        msg = f"{method} {redacted(url)}: more than {limits.MAX_REDIRECTS} redirects"
        raise FinalNetworkError(msg)

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Body | None,
        timeout: tuple[float, float] | None = None,
    ) -> Answer:
        request = requests.Request(method, url, headers=headers, data=b"" if body is None else body)
        try:
            prepared = self._session.prepare_request(request)
            # A signed URL is to arrive as it was given; requests would quote it anew (REGISTRIES 2).
            prepared.url = url
            if not body and method in {"POST", "PUT", "PATCH"}:
                prepared.headers["Content-Length"] = "0"
            response = self._session.send(
                prepared,
                stream=True,
                allow_redirects=False,
                timeout=timeout or (self._settings.connect_timeout, self._settings.stall_timeout),
                proxies=self._proxies(url),
                verify=self._settings.ca_file or True,
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise network_error(method, url, error) from error
        return Answer(response, method, url)

    def _wait_for_turn(self, url: str) -> None:
        if self.cancelled.is_set():
            self.wait(0)
        with self._lock:
            delay = self._not_before.get(urlsplit(url).netloc, 0.0) - time.monotonic()
        if delay > 0:
            self.wait(delay)

    def _send_token_request(self, origin: Origin, request: TokenRequest) -> TokenAnswer:
        """Ask a token server, which is trusted with a credential, and so only where it is as safe as the registry."""
        check_target(origin, request.url)
        tries = self.tries()
        while True:
            try:
                answer = self._redirected(request.method, request.url, dict(request.headers), request.body)
                if answer.status not in _RETRIED_STATUSES or not tries.again(answer):
                    return TokenAnswer(answer.status, answer.read(limits.MAX_TOKEN_ANSWER))
            except NetworkError as error:
                if not tries.again(error):
                    raise

    # -- where a request may go -------------------------------------------------------------------------

    def _base_url(self, registry: str) -> str:
        # Docker Hub's name is not its address.
        host = "registry-1.docker.io" if registry == "docker.io" else registry
        scheme = "http" if self._settings.plain_http or is_loopback(urlsplit(f"//{host}").hostname or "") else "https"
        return f"{scheme}://{host}"

    def _proxies(self, url: str) -> dict[str, str]:
        proxies = self._settings.proxies
        no_proxy = proxies.get("no_proxy", "")
        if is_loopback(urlsplit(url).hostname or "") or (
            no_proxy and requests.utils.should_bypass_proxies(url, no_proxy=no_proxy)
        ):
            return {}
        return {scheme: proxy for scheme, proxy in proxies.items() if scheme != "no_proxy"}


def _begun(body: bytes | Body | None) -> bool:
    return isinstance(body, Body) and body.begun


def _new_session(settings: TransportSettings) -> requests.Session:
    session = requests.Session()
    # netrc would override a Bearer header, also on redirects; proxies and CA come by `settings`.
    session.trust_env = False
    # A cookie makes Harbor ask for a CSRF token (REGISTRIES 21).
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    # A CDN that gzips a blob breaks its length and digest (REGISTRIES 22).
    session.headers.clear()
    session.headers.update({"User-Agent": settings.user_agent, "Accept-Encoding": "identity", "Accept": "*/*"})
    adapter = requests.adapters.HTTPAdapter(pool_connections=16, pool_maxsize=16, max_retries=0)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session
