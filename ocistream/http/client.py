"""The HTTP client: send a request with authorization and retries until there is a final response.

This module knows nothing of manifests and blobs. A request body is sent again only if it has not started.
"""

from __future__ import annotations

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
from ocistream.registry.upload_strategy import UploadStrategy
from ocistream.streams import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ocistream.auth.credentials import Credential
    from ocistream.errors import OcistreamError
    from ocistream.http.connections import StreamedBody

__all__ = ["Endpoint", "HttpClient", "HttpSettings"]

#: Answers that may be better the next time (seen at Quay, Hub and ECR).
_RETRIED_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})
#: How long an abandoned upload's deletion may take, in seconds: nobody is to wait for that.
_CLEANUP_TIMEOUT: Final = 3.0


class HttpClient:
    """One session to any number of registries. Safe for several threads."""

    def __init__(
        self,
        settings: HttpSettings,
        find: Callable[[str, str], Credential | None],
        *,
        hosts: Callable[[str, str], HostSettings] = lambda _registry, _repository: HostSettings(),
        on_retry: Callable[[RetryEvent], None] = lambda _: None,
        cancelled: threading.Event | None = None,
        rate_limits: RateLimits | None = None,
        upload_strategy: UploadStrategy | None = None,
    ) -> None:
        """Set up the session; no connection is made yet.

        `find(registry, repository)` looks a credential up, and `hosts(registry, repository)` how that is reached; what
        is no repository's is "". `on_retry` is told of every wait, from any thread. `pace` is shared with other
        transports of the same run, `ladder` too: it knows how hosts take uploads, and is told what their answers show.
        """
        self.upload_strategy = upload_strategy or UploadStrategy()
        self._settings = settings
        self.retry_policy = settings.retry_policy
        self._find = find
        self._on_retry = on_retry
        self._endpoints: dict[tuple[str, HostSettings, bool], Endpoint] = {}
        self._lock = threading.Lock()
        self.cancelled = cancelled or threading.Event()
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
            self._connections, hosts, rate_limits.requests, per_second, self.wait, self.cancelled
        )

    def close(self) -> None:
        """Close all idle connections."""
        self._connections.close()

    def endpoint(self, registry: str, repository: str = "", *, named: bool = True) -> Endpoint:
        """Give the endpoint of a registry such as `localhost:5000`, one for all repositories that are reached alike.

        `named` says that the user named it, and not the configuration in its place (a mirror): only then is it shown
        the client certificate of the command line, and only then may its own go unchecked because that says so.

        Raises:
            NotFoundError, LocalDiskError, UsageError: certificates that are configured for it cannot be used.
        """
        with self._lock:
            known = self._redirects.host_settings(registry, repository)
            key = registry, known, named
            if key not in self._endpoints:
                given = self._settings.tls
                if not named:
                    given = TlsSettings(given.ca_files)
                self._check_tls_files(TlsSettings(known.ca_files, known.client_certificates))
                endpoint = Endpoint(registry, known, given, plain_http=self._settings.plain_http)
                endpoint.authenticator = Authenticator(
                    registry,
                    lambda repository: self._find(registry, repository),
                    lambda request: self._send_token_request(endpoint, request),
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
        tries: Retries | None = None,
        stored: float = 0,
    ) -> Response:
        """Send a request until it is answered for good, and give an answer of an `expected` status.

        Authorization is sent to the endpoint's own origin and nowhere else. A `StreamedBody` that was begun is not sent
        again by this method, whatever happens: who made it must decide from where. `tries` are those of the work
        that this request is a part of. `stored` is how many bytes the registry has to move or hash before it answers.

        Raises:
            AuthenticationError: 401 or 403 of the registry, after a fresh token was tried.
            NotFoundError: 404.
            RegistryError: any other status, after all retries; 401 or 403 of another host that the registry leads to,
                which it was asked for once more.
            NetworkError: no answer, after all retries.
        """
        timeout = (self._settings.connect_timeout, self._settings.response_timeout(stored))
        request = Request(method, headers or {}, body, timeout)
        tries = tries or self.start_retries()
        asked_anew = False
        while True:
            url = self._with_scheme(endpoint, url)
            try:
                answer = self._send_authorized(endpoint, request, url, scopes)
            except RegistryError:
                # The token server's, which was tried again already.
                raise
            except NetworkError as error:
                if request.is_started or not (self._has_wrong_scheme(endpoint, url) or tries.wait_for_retry(error)):
                    raise
                continue
            if (
                answer.status == HTTPStatus.BAD_REQUEST
                and not request.is_started
                and self._has_wrong_scheme(endpoint, url)
            ):
                answer.close()
                continue
            endpoint.confirm_scheme(encrypted=False)
            if answer.status in expected:
                return answer
            if answer.status in _RETRIED_STATUSES and not request.is_started and tries.wait_for_retry(answer):
                continue
            if answer.status == HTTPStatus.FORBIDDEN and _was_redirected_away(endpoint, url, answer) and not asked_anew:
                # A signed URL that has ended, most probably: it may come out of somebody's cache. Now there is another.
                asked_anew = True
                if tries.wait_for_retry(answer):
                    continue
            raise self._response_error(endpoint, answer)

    def request_once(self, endpoint: Endpoint, method: str, url: str, *, scopes: tuple[str, ...] = ()) -> Response:
        """Send a request whose failure does not matter, even after a cancellation: cleaning up behind oneself.

        The answer's body has been read, and is of no interest.

        Raises:
            OcistreamError: it failed; it is not tried again.
        """
        request = Request(method, {}, timeout=(_CLEANUP_TIMEOUT, _CLEANUP_TIMEOUT))
        url = endpoint.current_url(url)
        trusted = Origin.from_url(url) == endpoint.origin
        if trusted:
            request = request.with_authorization(endpoint.authenticator.authorization(scopes))
        else:
            self._redirects.check_target(endpoint.origin, url)
        leader = None if trusted else endpoint.origin
        answer = self._redirects.send_once(endpoint, request, url, trusted=trusted, leader=leader)
        answer.drain()
        return answer

    def start_retries(self, attempts: int | None = None) -> Retries:
        """Begin counting the tries of one piece of work, of which there are so many `attempts`, by default as set."""
        return Retries(self, attempts)

    def wait(self, seconds: float) -> None:
        """Sleep, unless the transfer is cancelled in the meantime.

        Raises:
            CancelledError: it was.
        """
        if clock.sleep(seconds, self.cancelled):
            msg = "cancelled"
            raise CancelledError(msg)

    def pause_host(self, url: str, seconds: float) -> None:
        """Let no request go to this URL's host for so many seconds: it said that it has enough (429)."""
        self._redirects.pause_host(url, seconds)

    def report_retry(self, retried: RetryEvent) -> None:
        """Tell whoever wants to know that something is tried again."""
        self._on_retry(retried)

    # -- one request, with its authorization and its redirects ------------------------------------------

    def _send_authorized(self, endpoint: Endpoint, request: Request, url: str, scopes: tuple[str, ...]) -> Response:
        if Origin.from_url(url) != endpoint.origin:
            self._redirects.check_target(endpoint.origin, url)
            return self._redirects.send(endpoint, request, url)
        shown = endpoint.authenticator.authorization(scopes)
        answer = self._send_with_header(endpoint, request, url, shown, scopes)
        if Origin.from_url(answer.url) == endpoint.origin:
            self.upload_strategy.observe_headers(endpoint.registry, answer.header)
        if answer.status != HTTPStatus.UNAUTHORIZED or Origin.from_url(answer.url) != endpoint.origin:
            return answer
        challenges = answer.challenges()
        answer.drain()
        base = f"{endpoint.url}/v2/"
        if not challenges and not endpoint.authenticator.has_challenge and url != base:
            challenges = self._fetch_challenges(base, endpoint, request.timeout)
        answer, fresh = self._send_after_challenge(endpoint, request, url, scopes, challenges, shown)
        refused = answer.status == HTTPStatus.UNAUTHORIZED and Origin.from_url(answer.url) == endpoint.origin
        if refused and shown is None and endpoint.authenticator.is_token_expired(challenges := answer.challenges()):
            # The first token of all has ended on its way, or by the registry's clock has not begun yet.
            answer.drain()
            answer, _ = self._send_after_challenge(endpoint, request, url, scopes, challenges, fresh)
        elif refused and endpoint.authenticator.is_only_credential(fresh, scopes):
            # The secret itself was refused: this raises, and says where it came from.
            endpoint.authenticator.answer_challenge(answer.challenges(), scopes, fresh)
        return answer

    def _send_after_challenge(
        self,
        endpoint: Endpoint,
        request: Request,
        url: str,
        scopes: tuple[str, ...],
        challenges: Sequence[str],
        refused: str | None,
    ) -> tuple[Response, str]:
        """Send again with something else than what was `refused`; give that too."""
        fresh = endpoint.authenticator.answer_challenge(challenges, scopes, refused)
        if request.is_started:
            msg = f"{request.method} {redact_url(url)}: the token ended before the body was sent"
            raise NetworkError(msg)
        return self._send_with_header(endpoint, request, url, fresh, scopes), fresh

    def _send_with_header(
        self, endpoint: Endpoint, request: Request, url: str, header: str | None, scopes: tuple[str, ...]
    ) -> Response:
        """Send with this Authorization."""
        with endpoint.authenticator.try_header(header, scopes) as trial:
            answer = self._redirects.send(endpoint, request.with_authorization(header), url)
            if Origin.from_url(answer.url) == endpoint.origin:
                trial.is_accepted = answer.status != HTTPStatus.UNAUTHORIZED
            return answer

    def _fetch_challenges(self, base: str, endpoint: Endpoint, timeout: tuple[float, float] | None) -> Sequence[str]:
        """Ask the base of the API how to authenticate: some registries say so nowhere else (gcr.io)."""
        answer = self._redirects.send(endpoint, Request("GET", {}, timeout=timeout), base)
        answer.drain()
        # Another host speaks for itself only.
        return answer.challenges() if Origin.from_url(answer.url) == endpoint.origin else []

    def _send_token_request(self, endpoint: Endpoint, request: TokenRequest) -> TokenResponse:
        """Ask a token server, which is trusted with a credential, and so only where it is as safe as the registry."""
        self._redirects.check_target(endpoint.origin, request.url)
        tries = self.start_retries()
        while True:
            try:
                answer = self._redirects.send(
                    endpoint, Request(request.method, request.headers, request.body), request.url
                )
                if answer.status not in _RETRIED_STATUSES or not tries.wait_for_retry(answer):
                    return TokenResponse(answer.status, answer.read(limits.MAX_TOKEN_RESPONSE))
            except NetworkError as error:
                if not tries.wait_for_retry(error):
                    # Whoever needs the token is not to begin all this anew.
                    raise PermanentNetworkError(error.message, hint=error.hint) from error

    # -- what a host speaks -----------------------------------------------------------------------------

    def _with_scheme(self, endpoint: Endpoint, url: str) -> str:
        """Give a URL with the scheme that the endpoint has, after finding out where it may be either."""
        if endpoint.scheme_state is SchemeState.UNKNOWN:
            self._detect_scheme(endpoint)
        return endpoint.current_url(url)

    def _has_wrong_scheme(self, endpoint: Endpoint, url: str) -> bool:
        """Say whether a request went wrong because it was not in TLS, of a host that may speak either."""
        if endpoint.scheme_state is not SchemeState.KNOWN:
            self._detect_scheme(endpoint)
        return endpoint.current_url(url) != url

    def _detect_scheme(self, endpoint: Endpoint) -> None:
        """See whether a host speaks TLS, whatever its certificate; nothing is asked for.

        Where it cannot be reached, it stays in doubt.
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

    def _response_error(self, endpoint: Endpoint, answer: Response) -> OcistreamError:
        asked = parse_retry_after(answer.header("Retry-After"))
        elsewhere = Origin.from_url(answer.url) != endpoint.origin
        return self._with_option_names(
            response_error(
                endpoint.registry,
                answer.method,
                answer.url,
                answer.status,
                answer.read_error_body(),
                asked,
                elsewhere=elsewhere,
            )
        )

    def _check_tls_files(self, tls: TlsSettings) -> None:
        """Read the files of certificates.

        Raises:
            NotFoundError, LocalDiskError, UsageError: one cannot be used.
        """
        try:
            check_tls_files(tls)
        except UsageError as error:
            self._with_option_names(error)
            raise

    def _with_option_names(self, error: OcistreamError) -> OcistreamError:
        """Name the options in the hint as the user writes them."""
        error.hint = error.hint and self._settings.format_hint(error.hint)
        return error


def _was_redirected_away(endpoint: Endpoint, url: str, answer: Response) -> bool:
    """Say whether a request for a URL of the registry's own was answered by another host, by a redirect."""
    return Origin.from_url(url) == endpoint.origin != Origin.from_url(answer.url)
