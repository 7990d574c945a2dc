"""The HTTP client: send a request with authorization, redirects, rate limits and retries until there is a response.

`HttpClient.request` is the path of every request; read it from top to bottom. This module knows nothing of manifests
and blobs.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import requests

from ocistream import limits
from ocistream.auth.authenticator import Authenticator
from ocistream.auth.tokens import TokenRequest, TokenResponse
from ocistream.errors import CancelledError, NetworkError, PermanentNetworkError, RegistryError, UsageError
from ocistream.http.adapter import Adapter, FixedLengthBody, Route, StreamedBody
from ocistream.http.endpoints import Endpoint, find_tls_elsewhere
from ocistream.http.errors import response_error
from ocistream.http.origins import Origin, check_target, is_internal, redact_url, resolve_url
from ocistream.http.rate_limits import RateLimits
from ocistream.http.response import Response
from ocistream.http.retry import Retries, RetryEvent
from ocistream.http.settings import HostSettings, HttpSettings, TlsSettings
from ocistream.http.tls import check_tls_files
from ocistream.notices import add_failure_hint
from ocistream.oci.reference import printable
from ocistream.streams import clock
from ocistream.streams.synchronization import OncePerKey

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Container, Mapping, Sequence

    from ocistream.auth.docker_config import Credential
    from ocistream.errors import OcistreamError

#: Statuses that may succeed on a later attempt (seen at Quay, Docker Hub and ECR).
_RETRIED_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})
_REDIRECT_STATUSES: Final = frozenset({301, 302, 303, 307, 308})
#: The statuses of a token server that the authenticator interprets.
_TOKEN_STATUSES: Final = frozenset(range(100, 600)) - _RETRIED_STATUSES
#: Seconds for the deletion of an abandoned upload. It is short, because the user waits for it.
_CLEANUP_TIMEOUT: Final = 3.0


@dataclass(frozen=True, slots=True)
class _Request:
    """What stays the same when a request is sent again or redirected. Times are in seconds."""

    endpoint: Endpoint
    method: str
    headers: Mapping[str, str]
    body: bytes | StreamedBody | None
    #: The time to connect, and the time to wait for data of the response.
    timeout: tuple[float, float]

    @property
    def is_started(self) -> bool:
        """Whether a part of the body was sent already, so that the request cannot be sent again."""
        return isinstance(self.body, StreamedBody) and self.body.is_started


class HttpClient:
    """An HTTP client for any number of registries. Safe to use from several threads."""

    def __init__(
        self,
        settings: HttpSettings,
        find_credential: Callable[[str, str], Credential | None],
        *,
        find_host_settings: Callable[[str, str], HostSettings] = lambda _registry, _repository: HostSettings(),
        on_retry: Callable[[RetryEvent], None] = lambda _: None,
        cancelled: threading.Event,
        rate_limits: RateLimits | None = None,
        header_observers: Sequence[Callable[[Endpoint, Callable[[str], str | None]], None]] = (),
    ) -> None:
        """Set up the session; no connection is made yet.

        `find_credential(registry, repository)` looks up a credential, `find_host_settings(registry, repository)` the
        settings of a host. The repository is "" for requests that concern no repository. `on_retry` is called before
        every wait, from any thread. `header_observers` are called for each response of a registry itself, with its
        endpoint and a function that returns a header by its name; the caller may add some later. The clients of one run
        share `rate_limits`.
        """
        self._settings = settings
        self.cancelled = cancelled
        self._find_credential = find_credential
        #: Is called with each failure that is about to be retried.
        self.on_retry = on_retry
        self._header_observers = header_observers
        self._rate_limits = rate_limits or RateLimits()
        #: Host and repository -> its settings.
        self._host_settings = OncePerKey[tuple[str, str], HostSettings](lambda key: find_host_settings(*key))
        self._endpoints = OncePerKey(self._create_endpoint)
        self._check_tls_files(settings.tls)
        self._adapter = Adapter(settings, self.wait)
        self._session = requests.Session()
        # Without the environment no netrc replaces a Bearer header. Proxies are in the settings.
        self._session.trust_env = False
        self._session.mount("https://", self._adapter)
        self._session.mount("http://", self._adapter)
        # A CDN that gzips a blob breaks its length and digest (quay#1310).
        self._default_headers = {"User-Agent": settings.user_agent, "Accept-Encoding": "identity", "Accept": "*/*"}

    def close(self) -> None:
        """Close all idle connections. No connection stays open after its response."""
        self._session.close()

    def for_transfer(self, cancelled: threading.Event) -> HttpClient:
        """Return a client for one transfer, whose retries and requests end when `cancelled` is set.

        It shares connections, tokens and rate limits with this client, which alone is closed.
        """
        other = copy.copy(self)
        other.cancelled = cancelled
        return other

    def endpoint(
        self, registry: str, repository: str = "", *, is_named_by_user: bool = True, is_replaceable: bool = False
    ) -> Endpoint:
        """Return the endpoint of a registry such as `localhost:5000`.

        Repositories with equal settings share one endpoint. `is_named_by_user` is false for a mirror from the
        configuration: the client certificate and `--insecure` of the command line do not apply to it. A host that
        another one can replace gets short time-outs and few attempts.

        Raises:
            NotFoundError, LocalDiskError, UsageError: certificates configured for the registry cannot be used.
        """
        return self._endpoints(
            (registry, self._host_settings((registry, repository)), is_named_by_user, is_replaceable)
        )

    def _create_endpoint(self, key: tuple[str, HostSettings, bool, bool]) -> Endpoint:
        registry, settings, is_named_by_user, is_replaceable = key
        self._check_tls_files(TlsSettings(settings.ca_files, settings.client_certificates))
        http_settings = self._settings.shorten_timeouts() if is_replaceable else self._settings
        endpoint = Endpoint(
            registry, settings, http_settings, self._adapter.handshake, is_named_by_user=is_named_by_user
        )
        # All transfers share the tokens, so the cancellation of one does not stop a request for a token.
        endpoint.authenticator = Authenticator(
            registry,
            lambda repository: self._find_credential(registry, repository),
            lambda request: self._send_token_request(endpoint, request),
            format_hint=self._settings.format_hint,
        )
        return endpoint

    # -- the path of a request: retries, authorization, redirects, rate limit -----------------------------

    def request(  # noqa: PLR0913 - all but three are options, given by name
        self,
        endpoint: Endpoint,
        method: str,
        url: str,
        *,
        scopes: tuple[str, ...] | None = (),
        headers: Mapping[str, str] | None = None,
        body: bytes | StreamedBody | None = None,
        expected: Container[int] = (200,),
        retries: Retries | None = None,
        bytes_to_store: float = 0,
        read: Callable[[Response], object] | None = Response.drain,
    ) -> Response:
        """Send a request, with retries, and return a response with one of the `expected` statuses.

        Authorization is sent to the endpoint's own origin only, and not at all if `scopes` is None. A `StreamedBody`
        that has started is never sent again by this method: the caller must decide from which byte to continue.
        `retries` counts the attempts of the work that this request is a part of. `bytes_to_store` is how many bytes the
        registry must move or hash before it can respond. `read` reads the body of the response; if it raises
        NetworkError, the request is sent again. None leaves the body to the caller, who must read or close it.

        Raises:
            AuthenticationError: 401 of the registry, after a fresh token was tried; or 403.
            NotFoundError: 404.
            RegistryError: any other status, after all retries; or 401 or 403 of another host that the registry
                redirects to, after one more request to the registry for 403.
            NetworkError: no response, after all retries.
        """
        settings = endpoint.http_settings
        timeout = (settings.connect_timeout, settings.response_timeout(bytes_to_store))
        request = _Request(endpoint, method, headers or {}, body, timeout)
        retries = retries or self.start_retries(endpoint)
        was_asked_again = False
        while True:
            url = endpoint.current_url(url)
            try:
                response = self._send_authorized(request, url, scopes)
                if response.status == HTTPStatus.BAD_REQUEST and endpoint.switch_to_https(url):
                    response.close()
                    continue
                endpoint.confirm_scheme()
                if response.status in expected:
                    if read is not None:
                        read(response)
                    return response
            except RegistryError:
                # The token server failed, which has been retried already, or the registry sent a broken challenge.
                raise
            except NetworkError as error:
                if request.is_started or not (endpoint.switch_to_https(url) or retries.wait_for_retry(error)):
                    raise
                continue
            is_transient = response.status in _RETRIED_STATUSES
            if response.status == HTTPStatus.FORBIDDEN and response.origin != endpoint.origin and not was_asked_again:
                # Most likely a signed URL that has expired, perhaps from a cache. The registry gives a new one.
                is_transient = Origin.from_url(url) == endpoint.origin
                was_asked_again = is_transient
            if not is_transient or request.is_started or not retries.wait_for_retry(response):
                # Not in a local variable: the error would be in a cycle with this frame, which has the body.
                raise self._format_hint(
                    response_error(endpoint.registry, response, is_elsewhere=response.origin != endpoint.origin)
                )

    def _send_authorized(self, request: _Request, url: str, scopes: tuple[str, ...] | None) -> Response:
        """Send a request with the Authorization that its endpoint wants, and to no other origin."""
        endpoint = request.endpoint
        if scopes is None or Origin.from_url(url) != endpoint.origin:
            return self._follow_redirects(request, url, None)
        with contextlib.closing(endpoint.authenticator.authorize(scopes)) as headers:
            header = next(headers)
            while True:
                response = self._follow_redirects(request, url, header)
                if response.origin != endpoint.origin:
                    return response
                for observe in self._header_observers:
                    observe(endpoint, response.header)
                challenges = None
                if response.status == HTTPStatus.UNAUTHORIZED:
                    challenges = response.challenges()
                    response.drain()
                    if not challenges and not endpoint.authenticator.has_challenge:
                        challenges = self._fetch_challenges(request, url)
                try:
                    header = headers.send(challenges)
                except StopIteration:
                    return response
                if request.is_started:
                    msg = f"{request.method} {redact_url(url)}: the token ended before the body was sent"
                    raise NetworkError(msg)

    def _follow_redirects(self, request: _Request, url: str, authorization: str | None) -> Response:
        """Send a request and follow at most five redirects, never from https to http.

        Authorization and body stay with the first URL's origin; the client certificate is shown only at the endpoint's
        own origin.
        """
        endpoint, origin = request.endpoint, Origin.from_url(url)
        target = origin
        redirected_by = None if origin == endpoint.origin else endpoint.origin
        for hops in range(limits.MAX_REDIRECTS + 1):
            self._wait_for_rate_limit(endpoint, target)
            response = self._exchange(request, url, authorization, redirected_by)
            response.hops = hops
            if response.status not in _REDIRECT_STATUSES or not (location := response.header("Location")):
                return response
            response.drain()
            previous, url = url, resolve_url(url, location)
            previous_target, target = target, Origin.from_url(url)
            if target != previous_target or redirected_by is not None:
                redirected_by = previous_target
            if target != origin:
                authorization = None
                headers = {name: value for name, value in request.headers.items() if name != "Authorization"}
                request = replace(request, headers=headers)
                if request.body is not None:
                    msg = f"was redirected to another host, {redact_url(url)}: not followed"
                    raise PermanentNetworkError(f"{request.method} {redact_url(previous)} {msg}")
            if request.is_started:
                msg = f"{request.method} {redact_url(previous)} was redirected after its body was sent"
                raise PermanentNetworkError(msg)
        msg = f"{request.method} {redact_url(url)}: more than {limits.MAX_REDIRECTS} redirects"
        raise PermanentNetworkError(msg)

    def _wait_for_rate_limit(self, endpoint: Endpoint, origin: Origin) -> None:
        per_second = self._settings_at(endpoint, origin).requests_per_second or self._settings.requests_per_second
        delay = self._rate_limits.reserve(origin, per_second)
        # `is_set` also asks the kernel for signals, which costs more; here it is enough to see what others have seen.
        if delay > 0 or self.cancelled.wait(0):
            self.wait(delay)

    def _exchange(
        self, request: _Request, url: str, authorization: str | None, redirected_by: Origin | None
    ) -> Response:
        """Send one request, and return its response with any status as soon as the head has arrived.

        `redirected_by` is the origin that named this URL; None if the request has never left the endpoint's own origin.
        """
        method, body = request.method, request.body
        # `prepare` would decode and encode the URL, which may be signed, and look for cookies and a netrc.
        prepared = requests.PreparedRequest()
        prepared.method, prepared.url, prepared.body = method, url, body or None  # type: ignore[assignment]
        headers = {**self._default_headers, **request.headers}
        if authorization is not None:
            headers["Authorization"] = authorization
        if isinstance(body, bytes | FixedLengthBody) or (body is None and method not in {"GET", "HEAD"}):
            headers["Content-Length"] = str(len(body)) if body is not None else "0"
        prepared.headers = headers  # type: ignore[assignment] # no header has two spellings here
        route = self._find_route(request.endpoint, url, redirected_by)
        response = Response(
            self._session.send(
                prepared, stream=True, timeout=request.timeout, proxies={}, allow_redirects=False, route=route
            )
        )
        if method == "GET" and response.header("Content-Encoding") is not None:
            # Not an error: storage may call the compression of a layer its coding, and send the layer as it is.
            cause = f"{printable(route.origin.host)} sent a Content-Encoding, which changes blobs"
            add_failure_hint(f"{cause}: check its proxy, or ask its operator")
        return response

    def _find_route(self, endpoint: Endpoint, url: str, redirected_by: Origin | None) -> Route:
        """Return where and how a request is sent, unless its URL is a forbidden place.

        The client certificate is shown only if the request has never left the endpoint's own origin.
        """
        target = Origin.from_url(url)
        refuses_internal = False
        if redirected_by is not None:
            # The connection checks its address again, because the name may resolve to another one by then.
            refuses_internal = redirected_by.host != target.host and self._is_external(redirected_by)
            check_target(redirected_by, url, refuses_internal=refuses_internal)
        tls = TlsSettings()
        if target.scheme == "https":
            tls = endpoint.tls
            if redirected_by is not None:
                tls = find_tls_elsewhere(endpoint, target, self._settings_at(endpoint, target))
        connection_limits = self._rate_limits.connection_limits(endpoint.registry, endpoint.host_settings.limit_rate)
        return Route(target, tls, refuses_internal, connection_limits)

    # -- other requests -----------------------------------------------------------------------------------

    def request_once(self, endpoint: Endpoint, method: str, url: str, *, scopes: tuple[str, ...] = ()) -> Response:
        """Send a cleanup request whose failure does not matter. A cancellation stops only the request for a token.

        The body of the response has been read and is of no interest.

        Raises:
            OcistreamError: the request failed; it is not retried.
        """
        request = _Request(endpoint, method, {}, None, (_CLEANUP_TIMEOUT, _CLEANUP_TIMEOUT))
        url = endpoint.current_url(url)
        authorization, redirected_by = None, None
        if Origin.from_url(url) == endpoint.origin:
            authorization = endpoint.authenticator.find_header(scopes)
        else:
            redirected_by = endpoint.origin
        response = self._exchange(request, url, authorization, redirected_by)
        response.drain()
        return response

    def _fetch_challenges(self, request: _Request, url: str) -> Sequence[str]:
        """Return the challenges of `/v2/`: some registries, such as gcr.io, send them nowhere else."""
        endpoint = request.endpoint
        base = f"{endpoint.url}/v2/"
        if url == base:
            return []
        response = self._follow_redirects(_Request(endpoint, "GET", {}, None, request.timeout), base, None)
        response.drain()
        # The challenge of another host is not the registry's.
        return response.challenges() if response.origin == endpoint.origin else []

    def _send_token_request(self, endpoint: Endpoint, request: TokenRequest) -> TokenResponse:
        """Send a request to a token server. It gets a credential, so the rules for redirect targets apply to it."""
        try:
            response = self.request(
                endpoint,
                request.method,
                request.url,
                scopes=None,
                headers=request.headers,
                body=request.body,
                expected=_TOKEN_STATUSES,
                read=lambda response: response.read(limits.MAX_TOKEN_RESPONSE),
            )
        except RegistryError as error:
            return TokenResponse(error.status, b"")
        except NetworkError as error:
            # The token request has used up its attempts: the request that needs the token must not repeat them.
            raise PermanentNetworkError(error.message, hint=error.hint) from error
        return TokenResponse(response.status, response.content)

    # -- waits --------------------------------------------------------------------------------------------

    def start_retries(self, endpoint: Endpoint, attempts: int | None = None) -> Retries:
        """Return a new count of `attempts` for one piece of work; the default is `--retries` + 1."""
        return Retries(self, endpoint.http_settings.retry_policy, attempts)

    def wait(self, seconds: float) -> None:
        """Sleep for `seconds`, unless the transfer is cancelled in the meantime.

        Raises:
            CancelledError: the transfer was cancelled.
        """
        if clock.sleep(seconds, self.cancelled):
            msg = "cancelled"
            raise CancelledError(msg)

    def pause_host(self, url: str, seconds: float) -> None:
        """Send no request to this URL's host for `seconds`: it has responded with 429."""
        self._rate_limits.pause(Origin.from_url(url), seconds)

    # -- hosts --------------------------------------------------------------------------------------------

    def _settings_at(self, endpoint: Endpoint, origin: Origin) -> HostSettings:
        """Return the settings of the host at an origin, whichever host led to it."""
        return endpoint.host_settings if origin == endpoint.origin else self._host_settings((origin.host_and_port, ""))

    def _is_external(self, origin: Origin) -> bool:
        """Return whether an origin has responded from an external address, or else resolves to one."""
        is_external = self._adapter.is_external_by_host.get(origin.host.lower())
        return not is_internal(origin.host) if is_external is None else is_external

    # -- errors -------------------------------------------------------------------------------------------

    def _check_tls_files(self, tls: TlsSettings) -> None:
        """Load the named files, so that a wrong file is reported before anything is transferred.

        An error names the options as the user writes them. The system's CAs are not loaded: that would cost every run
        over plain HTTP some 20 ms and 2 MB.
        """
        if not (tls.ca_files or tls.client_certificates):
            return
        try:
            check_tls_files(tls)
        except UsageError as error:
            self._format_hint(error)
            raise

    def _format_hint(self, error: OcistreamError) -> OcistreamError:
        """Change the option names in the hint of an error to those that the user writes; return the error."""
        error.hint = error.hint and self._settings.format_hint(error.hint)
        return error
