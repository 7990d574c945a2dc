"""The HTTP client: send a request with authorization and retries until there is a final response.

This module knows nothing of manifests and blobs. A request body is sent again only if it has not started.
"""

from __future__ import annotations

import copy
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.auth.tokens import Authenticator, TokenRequest, TokenResponse
from ocistream.errors import CancelledError, NetworkError, PermanentNetworkError, RegistryError, UsageError
from ocistream.http.connections import Connections, ConnectionSettings, Response
from ocistream.http.endpoints import Endpoint, SchemeState
from ocistream.http.errors import has_tls_peer, response_error
from ocistream.http.host_settings import HostSettings
from ocistream.http.origins import Origin, redact_url
from ocistream.http.rate_limits import RateLimits
from ocistream.http.redirects import RedirectFollower, Request
from ocistream.http.retry import Retries, RetryEvent, parse_retry_after
from ocistream.http.settings import HttpSettings
from ocistream.http.tls import TlsSettings, check_tls_files
from ocistream.streams import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ocistream.auth.credentials import Credential
    from ocistream.errors import OcistreamError
    from ocistream.http.connections import StreamedBody

__all__ = ["Endpoint", "HttpClient", "HttpSettings"]

#: Statuses that may succeed on a later attempt (seen at Quay, Docker Hub and ECR).
_RETRIED_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})
#: How long the deletion of an abandoned upload may take, in seconds. Nobody should have to wait for it.
_CLEANUP_TIMEOUT: Final = 3.0


class HttpClient:
    """An HTTP client for any number of registries. Safe to use from several threads."""

    def __init__(
        self,
        settings: HttpSettings,
        find: Callable[[str, str], Credential | None],
        *,
        find_host_settings: Callable[[str, str], HostSettings] = lambda _registry, _repository: HostSettings(),
        on_retry: Callable[[RetryEvent], None] = lambda _: None,
        cancelled: threading.Event | None = None,
        rate_limits: RateLimits | None = None,
        on_response: Callable[[str, Callable[[str], str | None]], None] = lambda _registry, _header: None,
    ) -> None:
        """Set up the session; no connection is made yet.

        `find(registry, repository)` looks up a credential, and `find_host_settings(registry, repository)` the settings
        of a host. The repository is "" for requests that concern no repository. `on_retry` is called before every wait,
        from any thread. `on_response(registry, header)` is called for each response of a registry itself; `header`
        returns a header by its name. The clients of one run share `rate_limits`.
        """
        self._settings = settings
        self.retry_policy = settings.retry_policy
        self._find = find
        self._on_retry = on_retry
        self._on_response = on_response
        self._endpoints: dict[tuple[str, HostSettings, bool], Endpoint] = {}
        self._lock = threading.Lock()
        self.cancelled = cancelled or threading.Event()
        #: Sends the requests for tokens, which all transfers share.
        self._token_client = self
        self._check_tls_files(settings.tls)
        rate_limits = rate_limits or RateLimits()
        self._connections = Connections(
            ConnectionSettings(
                connect_timeout=settings.connect_timeout,
                stall_timeout=settings.stall_timeout,
                user_agent=settings.user_agent,
                ca_bundle=settings.ca_file,
                proxy_tls=TlsSettings(settings.tls.ca_files),
                proxies=settings.proxies,
                rate_limits=rate_limits,
                format_hint=settings.format_hint,
            ),
            self.wait,
        )
        per_second = settings.requests_per_second
        self._redirects = RedirectFollower(
            self._connections, find_host_settings, rate_limits.requests, per_second, self.wait, self.cancelled
        )

    def close(self) -> None:
        """Close all idle connections."""
        self._connections.close()

    def for_transfer(self, cancelled: threading.Event) -> HttpClient:
        """Return a client for one transfer, whose waits and requests end when `cancelled` is set.

        It shares connections, tokens and limits with this client, which alone is closed.
        """
        other = copy.copy(self)
        other.cancelled = cancelled
        other._redirects = self._redirects.for_transfer(other.wait, cancelled)  # noqa: SLF001 - same class
        return other

    def endpoint(self, registry: str, repository: str = "", *, is_explicit: bool = True) -> Endpoint:
        """Return the endpoint of a registry such as `localhost:5000`.

        Repositories with equal settings share one endpoint. `is_explicit` says whether the user named the registry. For
        a mirror from the configuration it is false. Then the client certificate and `--insecure` of the command line do
        not apply.

        Raises:
            NotFoundError, LocalDiskError, UsageError: certificates configured for the registry cannot be used.
        """
        with self._lock:
            settings = self._redirects.host_settings(registry, repository)
            key = registry, settings, is_explicit
            if key not in self._endpoints:
                explicit_tls = self._settings.tls
                if not is_explicit:
                    explicit_tls = TlsSettings(explicit_tls.ca_files)
                self._check_tls_files(TlsSettings(settings.ca_files, settings.client_certificates))
                endpoint = Endpoint(registry, settings, explicit_tls, plain_http=self._settings.plain_http)
                endpoint.authenticator = Authenticator(
                    registry,
                    lambda repository: self._find(registry, repository),
                    lambda request: self._token_client._send_token_request(endpoint, request),  # noqa: SLF001 - same class
                )
                self._endpoints[key] = endpoint
            return self._endpoints[key]

    def request(  # noqa: PLR0913 - all but three are options, given by name
        self,
        endpoint: Endpoint,
        method: str,
        url: str,
        *,
        scopes: tuple[str, ...] = (),
        headers: Mapping[str, str] | None = None,
        body: bytes | StreamedBody | None = None,
        expected: Sequence[int] = (200,),
        retries: Retries | None = None,
        stored: float = 0,
    ) -> Response:
        """Send a request, with retries, and return a response with one of the `expected` statuses.

        Authorization is sent to the endpoint's own origin only. A `StreamedBody` that has started is never sent again
        by this method: the caller must decide from which byte to continue. `retries` counts the attempts of the work
        that this request is a part of. `stored` is how many bytes the registry must move or hash before it can respond.

        Raises:
            AuthenticationError: 401 or 403 of the registry, after a fresh token was tried.
            NotFoundError: 404.
            RegistryError: any other status, after all retries; or 401 or 403 of another host that the registry
                redirects to, after one more request to the registry.
            NetworkError: no response, after all retries.
        """
        timeout = (self._settings.connect_timeout, self._settings.response_timeout(stored))
        request = Request(method, headers or {}, body, timeout)
        retries = retries or self.start_retries()
        was_asked_again = False
        while True:
            url = self._with_scheme(endpoint, url)
            try:
                response = self._send_authorized(endpoint, request, url, scopes)
            except RegistryError:
                # This is an error of the token server, which has been retried already.
                raise
            except NetworkError as error:
                if request.is_started or not (self._has_wrong_scheme(endpoint, url) or retries.wait_for_retry(error)):
                    raise
                continue
            if (
                response.status == HTTPStatus.BAD_REQUEST
                and not request.is_started
                and self._has_wrong_scheme(endpoint, url)
            ):
                response.close()
                continue
            endpoint.confirm_scheme(encrypted=False)
            if response.status in expected:
                return response
            if response.status in _RETRIED_STATUSES and not request.is_started and retries.wait_for_retry(response):
                continue
            if (
                response.status == HTTPStatus.FORBIDDEN
                and _was_redirected_away(endpoint, url, response)
                and not was_asked_again
            ):
                # Most likely a signed URL that has expired, perhaps from a cache. The registry gives a new one.
                was_asked_again = True
                if retries.wait_for_retry(response):
                    continue
            raise self._response_error(endpoint, response)

    def request_once(self, endpoint: Endpoint, method: str, url: str, *, scopes: tuple[str, ...] = ()) -> Response:
        """Send a cleanup request whose failure does not matter, even after a cancellation.

        The body of the response has been read and is of no interest.

        Raises:
            OcistreamError: the request failed; it is not retried.
        """
        request = Request(method, {}, timeout=(_CLEANUP_TIMEOUT, _CLEANUP_TIMEOUT))
        url = endpoint.current_url(url)
        trusted = Origin.from_url(url) == endpoint.origin
        if trusted:
            request = request.with_authorization(endpoint.authenticator.authorization(scopes))
        else:
            self._redirects.check_target(endpoint.origin, url)
        leader = None if trusted else endpoint.origin
        response = self._redirects.send_once(endpoint, request, url, trusted=trusted, leader=leader)
        response.drain()
        return response

    def start_retries(self, attempts: int | None = None) -> Retries:
        """Return a new count of `attempts` for one piece of work; the default is the user's `--retries`."""
        return Retries(self, attempts)

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
        self._redirects.pause_host(url, seconds)

    def report_retry(self, retried: RetryEvent) -> None:
        """Call `on_retry` with a failure that is about to be retried."""
        self._on_retry(retried)

    # -- one request, with its authorization and its redirects ------------------------------------------

    def _send_authorized(self, endpoint: Endpoint, request: Request, url: str, scopes: tuple[str, ...]) -> Response:
        if Origin.from_url(url) != endpoint.origin:
            self._redirects.check_target(endpoint.origin, url)
            return self._redirects.send(endpoint, request, url)
        sent_header = endpoint.authenticator.authorization(scopes)
        response = self._send_with_header(endpoint, request, url, sent_header, scopes)
        if Origin.from_url(response.url) == endpoint.origin:
            self._on_response(endpoint.registry, response.header)
        if response.status != HTTPStatus.UNAUTHORIZED or Origin.from_url(response.url) != endpoint.origin:
            return response
        challenges = response.challenges()
        response.drain()
        base = f"{endpoint.url}/v2/"
        if not challenges and not endpoint.authenticator.has_challenge and url != base:
            challenges = self._fetch_challenges(base, endpoint, request.timeout)
        response, new_header = self._send_after_challenge(endpoint, request, url, scopes, challenges, sent_header)
        refused = response.status == HTTPStatus.UNAUTHORIZED and Origin.from_url(response.url) == endpoint.origin
        if (
            refused
            and sent_header is None
            and endpoint.authenticator.is_token_expired(challenges := response.challenges())
        ):
            # The first token expired on its way, or is not valid yet by the registry's clock.
            response.drain()
            response, _ = self._send_after_challenge(endpoint, request, url, scopes, challenges, new_header)
        elif refused and endpoint.authenticator.is_only_credential(new_header, scopes):
            # The secret itself was refused: this call raises, and its error says where the secret came from.
            endpoint.authenticator.answer_challenge(response.challenges(), scopes, new_header)
        return response

    def _send_after_challenge(
        self,
        endpoint: Endpoint,
        request: Request,
        url: str,
        scopes: tuple[str, ...],
        challenges: Sequence[str],
        refused: str | None,
    ) -> tuple[Response, str]:
        """Send again with another Authorization than the `refused` one; return the response and that Authorization."""
        new_header = endpoint.authenticator.answer_challenge(challenges, scopes, refused)
        if request.is_started:
            msg = f"{request.method} {redact_url(url)}: the token ended before the body was sent"
            raise NetworkError(msg)
        return self._send_with_header(endpoint, request, url, new_header, scopes), new_header

    def _send_with_header(
        self, endpoint: Endpoint, request: Request, url: str, header: str | None, scopes: tuple[str, ...]
    ) -> Response:
        with endpoint.authenticator.try_header(header, scopes) as trial:
            response = self._redirects.send(endpoint, request.with_authorization(header), url)
            if Origin.from_url(response.url) == endpoint.origin:
                trial.is_accepted = response.status != HTTPStatus.UNAUTHORIZED
            return response

    def _fetch_challenges(self, base: str, endpoint: Endpoint, timeout: tuple[float, float] | None) -> Sequence[str]:
        """Return the challenges of `/v2/`: some registries, such as gcr.io, send them nowhere else."""
        response = self._redirects.send(endpoint, Request("GET", {}, timeout=timeout), base)
        response.drain()
        # The challenge of another host is not the registry's.
        return response.challenges() if Origin.from_url(response.url) == endpoint.origin else []

    def _send_token_request(self, endpoint: Endpoint, request: TokenRequest) -> TokenResponse:
        """Send a request to a token server. It gets a credential, so the rules for redirect targets apply to it."""
        self._redirects.check_target(endpoint.origin, request.url)
        tries = self.start_retries()
        while True:
            try:
                response = self._redirects.send(
                    endpoint, Request(request.method, request.headers, request.body), request.url
                )
                if response.status not in _RETRIED_STATUSES or not tries.wait_for_retry(response):
                    return TokenResponse(response.status, response.read(limits.MAX_TOKEN_RESPONSE))
            except NetworkError as error:
                if not tries.wait_for_retry(error):
                    # The token request has used up its attempts: the request that needs the token must not repeat them.
                    raise PermanentNetworkError(error.message, hint=error.hint) from error

    # -- the scheme of a host -----------------------------------------------------------------------------

    def _with_scheme(self, endpoint: Endpoint, url: str) -> str:
        """Return a URL with the endpoint's scheme; detect the scheme first if it is unknown."""
        if endpoint.scheme_state is SchemeState.UNKNOWN:
            self._detect_scheme(endpoint)
        return endpoint.current_url(url)

    def _has_wrong_scheme(self, endpoint: Endpoint, url: str) -> bool:
        """Return whether a request failed because it used plain HTTP and the host speaks TLS."""
        if endpoint.scheme_state is not SchemeState.KNOWN:
            self._detect_scheme(endpoint)
        return endpoint.current_url(url) != url

    def _detect_scheme(self, endpoint: Endpoint) -> None:
        """Find out by a TLS handshake whether a host speaks TLS, whatever its certificate. No request is sent.

        If the host cannot be reached, its scheme stays undecided. The words of a plain response are not trusted.
        """
        with endpoint.lock:
            if endpoint.scheme_state is SchemeState.KNOWN:
                return
            try:
                self._connections.handshake(endpoint.https_url, self._settings.connect_timeout)
            except NetworkError as error:
                if (encrypted := has_tls_peer(error)) is not None:
                    endpoint.confirm_scheme(encrypted=encrypted)
            else:
                endpoint.confirm_scheme(encrypted=True)

    # -- errors -----------------------------------------------------------------------------------------

    def _response_error(self, endpoint: Endpoint, response: Response) -> OcistreamError:
        retry_after = parse_retry_after(response.header("Retry-After"))
        is_elsewhere = Origin.from_url(response.url) != endpoint.origin
        return self._with_option_names(
            response_error(
                endpoint.registry,
                response.method,
                response.url,
                response.status,
                response.read_error_body(),
                retry_after,
                elsewhere=is_elsewhere,
            )
        )

    def _check_tls_files(self, tls: TlsSettings) -> None:
        """Read the certificate files; an error names the options as the user writes them."""
        try:
            check_tls_files(tls)
        except UsageError as error:
            self._with_option_names(error)
            raise

    def _with_option_names(self, error: OcistreamError) -> OcistreamError:
        """Return the error with the option names in its hint as the user writes them."""
        error.hint = error.hint and self._settings.format_hint(error.hint)
        return error


def _was_redirected_away(endpoint: Endpoint, url: str, response: Response) -> bool:
    """Return whether a request to the registry's own origin was redirected to another host, which responded."""
    return Origin.from_url(url) == endpoint.origin != Origin.from_url(response.url)
