"""HTTP as registries need it: authorization, redirects, retries, errors, and nothing secret in any text.

It knows which origin a credential belongs to and that a body must be replayable to be sent again; it knows nothing of
manifests and blobs, and leaves the way to `ocistream.http.redirects`, the sockets to `ocistream.http.connections`.
"""

from __future__ import annotations

import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.auth.token_requests import TokenAnswer, TokenRequest
from ocistream.auth.tokens import Authenticator
from ocistream.errors import CancelledError, FinalNetworkError, NetworkError, RegistryError, UsageError
from ocistream.http.connections import Answer, Connections, ConnectionSettings
from ocistream.http.endpoints import Doubt, Endpoint
from ocistream.http.errors import refusal, speaks_tls
from ocistream.http.hosts import HostSettings
from ocistream.http.origins import Origin, redacted
from ocistream.http.rate_limits import Pace
from ocistream.http.redirects import Following, Request
from ocistream.http.retry import Retried, Tries, retry_after
from ocistream.http.settings import TransportSettings
from ocistream.http.tls import TlsSettings, check
from ocistream.registry.upload_strategy import Ladder
from ocistream.streams import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ocistream.auth.credentials import Credential
    from ocistream.errors import OcistreamError
    from ocistream.http.bodies import StreamedBody

__all__ = ["Endpoint", "Transport", "TransportSettings"]

#: Answers that may be better the next time (seen at Quay, Hub and ECR).
_RETRIED_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})
#: How long an abandoned upload's deletion may take, in seconds: nobody is to wait for that.
_CLEANUP_TIMEOUT: Final = 3.0


class Transport:
    """One session to any number of registries. Safe for several threads."""

    def __init__(
        self,
        settings: TransportSettings,
        find: Callable[[str, str], Credential | None],
        *,
        hosts: Callable[[str, str], HostSettings] = lambda _registry, _repository: HostSettings(),
        on_retry: Callable[[Retried], None] = lambda _: None,
        cancelled: threading.Event | None = None,
        pace: Pace | None = None,
        ladder: Ladder | None = None,
    ) -> None:
        """Set up the session; no connection is made yet.

        `find(registry, repository)` looks a credential up, and `hosts(registry, repository)` how that is reached; what
        is no repository's is "". `on_retry` is told of every wait, from any thread. `pace` is shared with other
        transports of the same run, `ladder` too: it knows how hosts take uploads, and is told what their answers show.
        """
        self.ladder = ladder or Ladder()
        self._settings = settings
        self.patience = settings.patience
        self._find = find
        self._on_retry = on_retry
        self._endpoints: dict[tuple[str, HostSettings, bool], Endpoint] = {}
        self._lock = threading.Lock()
        self.cancelled = cancelled or threading.Event()
        self._check(settings.tls)
        pace = pace or Pace()
        self._connections = Connections(
            ConnectionSettings(
                connect_timeout=settings.connect_timeout,
                stall_timeout=settings.stall_timeout,
                user_agent=settings.user_agent,
                ca_bundle=settings.ca_file,
                proxy_tls=TlsSettings(settings.tls.ca_files),
                proxies=settings.proxies,
                pace=pace,
                hint=settings.hint,
            ),
            self.wait,
        )
        per_second = settings.requests_per_second
        self._following = Following(self._connections, hosts, pace.turns, per_second, self.wait, self.cancelled)

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
            known = self._following.host(registry, repository)
            key = registry, known, named
            if key not in self._endpoints:
                given = self._settings.tls
                if not named:
                    given = TlsSettings(given.ca_files)
                self._check(TlsSettings(known.ca_files, known.client_certificates))
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
        tries: Tries | None = None,
        stored: float = 0,
    ) -> Answer:
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
        timeout = (self._settings.connect_timeout, self._settings.answer_timeout(stored))
        request = Request(method, headers or {}, body, timeout)
        tries = tries or self.tries()
        asked_anew = False
        while True:
            url = self._placed(endpoint, url)
            try:
                answer = self._authorized(endpoint, request, url, scopes)
            except RegistryError:
                # The token server's, which was tried again already.
                raise
            except NetworkError as error:
                if request.begun or not (self._is_mistaken(endpoint, url) or tries.again(error)):
                    raise
                continue
            if answer.status == HTTPStatus.BAD_REQUEST and not request.begun and self._is_mistaken(endpoint, url):
                answer.close()
                continue
            endpoint.settle(encrypted=False)
            if answer.status in expected:
                return answer
            if answer.status in _RETRIED_STATUSES and not request.begun and tries.again(answer):
                continue
            if answer.status == HTTPStatus.FORBIDDEN and _was_led_away(endpoint, url, answer) and not asked_anew:
                # A signed URL that has ended, most probably: it may come out of somebody's cache. Now there is another.
                asked_anew = True
                if tries.again(answer):
                    continue
            raise self._refused(endpoint, answer)

    def request_once(self, endpoint: Endpoint, method: str, url: str, *, scopes: tuple[str, ...] = ()) -> Answer:
        """Send a request whose failure does not matter, even after a cancellation: cleaning up behind oneself.

        The answer's body has been read, and is of no interest.

        Raises:
            OcistreamError: it failed; it is not tried again.
        """
        request = Request(method, {}, timeout=(_CLEANUP_TIMEOUT, _CLEANUP_TIMEOUT))
        url = endpoint.current(url)
        trusted = Origin.of(url) == endpoint.origin
        if trusted:
            request = request.with_authorization(endpoint.authenticator.authorization(scopes))
        else:
            self._following.check_target(endpoint.origin, url)
        leader = None if trusted else endpoint.origin
        answer = self._following.once(endpoint, request, url, trusted=trusted, leader=leader)
        answer.drain()
        return answer

    def tries(self, attempts: int | None = None) -> Tries:
        """Begin counting the tries of one piece of work, of which there are so many `attempts`, by default as set."""
        return Tries(self, attempts)

    def wait(self, seconds: float) -> None:
        """Sleep, unless the transfer is cancelled in the meantime.

        Raises:
            CancelledError: it was.
        """
        if clock.sleep(seconds, self.cancelled):
            msg = "cancelled"
            raise CancelledError(msg)

    def hold_back(self, url: str, seconds: float) -> None:
        """Let no request go to this URL's host for so many seconds: it said that it has enough (429)."""
        self._following.hold_back(url, seconds)

    def retried(self, retried: Retried) -> None:
        """Tell whoever wants to know that something is tried again."""
        self._on_retry(retried)

    # -- one request, with its authorization and its redirects ------------------------------------------

    def _authorized(self, endpoint: Endpoint, request: Request, url: str, scopes: tuple[str, ...]) -> Answer:
        if Origin.of(url) != endpoint.origin:
            self._following.check_target(endpoint.origin, url)
            return self._following.send(endpoint, request, url)
        shown = endpoint.authenticator.authorization(scopes)
        answer = self._shown(endpoint, request, url, shown, scopes)
        if Origin.of(answer.url) == endpoint.origin:
            self.ladder.saw(endpoint.registry, answer.header)
        if answer.status != HTTPStatus.UNAUTHORIZED or Origin.of(answer.url) != endpoint.origin:
            return answer
        challenges = answer.challenges()
        answer.drain()
        base = f"{endpoint.url}/v2/"
        if not challenges and not endpoint.authenticator.was_challenged and url != base:
            challenges = self._challenges_at(base, endpoint, request.timeout)
        answer, fresh = self._challenged(endpoint, request, url, scopes, challenges, shown)
        refused = answer.status == HTTPStatus.UNAUTHORIZED and Origin.of(answer.url) == endpoint.origin
        if refused and shown is None and endpoint.authenticator.has_ended(challenges := answer.challenges()):
            # The first token of all has ended on its way, or by the registry's clock has not begun yet.
            answer.drain()
            answer, _ = self._challenged(endpoint, request, url, scopes, challenges, fresh)
        elif refused and endpoint.authenticator.is_final(fresh, scopes):
            # The secret itself was refused: this raises, and says where it came from.
            endpoint.authenticator.challenged(answer.challenges(), scopes, fresh)
        return answer

    def _challenged(
        self,
        endpoint: Endpoint,
        request: Request,
        url: str,
        scopes: tuple[str, ...],
        challenges: Sequence[str],
        refused: str | None,
    ) -> tuple[Answer, str]:
        """Send again with something else than what was `refused`; give that too."""
        fresh = endpoint.authenticator.challenged(challenges, scopes, refused)
        if request.begun:
            msg = f"{request.method} {redacted(url)}: the token ended before the body was sent"
            raise NetworkError(msg)
        return self._shown(endpoint, request, url, fresh, scopes), fresh

    def _shown(
        self, endpoint: Endpoint, request: Request, url: str, header: str | None, scopes: tuple[str, ...]
    ) -> Answer:
        """Send with this Authorization."""
        with endpoint.authenticator.shown(header, scopes) as trial:
            answer = self._following.send(endpoint, request.with_authorization(header), url)
            if Origin.of(answer.url) == endpoint.origin:
                trial.accepted = answer.status != HTTPStatus.UNAUTHORIZED
            return answer

    def _challenges_at(self, base: str, endpoint: Endpoint, timeout: tuple[float, float] | None) -> Sequence[str]:
        """Ask the base of the API how to authenticate: some registries say so nowhere else (gcr.io)."""
        answer = self._following.send(endpoint, Request("GET", {}, timeout=timeout), base)
        answer.drain()
        # Another host speaks for itself only.
        return answer.challenges() if Origin.of(answer.url) == endpoint.origin else []

    def _send_token_request(self, endpoint: Endpoint, request: TokenRequest) -> TokenAnswer:
        """Ask a token server, which is trusted with a credential, and so only where it is as safe as the registry."""
        self._following.check_target(endpoint.origin, request.url)
        tries = self.tries()
        while True:
            try:
                answer = self._following.send(
                    endpoint, Request(request.method, request.headers, request.body), request.url
                )
                if answer.status not in _RETRIED_STATUSES or not tries.again(answer):
                    return TokenAnswer(answer.status, answer.read(limits.MAX_TOKEN_ANSWER))
            except NetworkError as error:
                if not tries.again(error):
                    # Whoever needs the token is not to begin all this anew.
                    raise FinalNetworkError(error.what, hint=error.hint) from error

    # -- what a host speaks -----------------------------------------------------------------------------

    def _placed(self, endpoint: Endpoint, url: str) -> str:
        """Give a URL with the scheme that the endpoint has, after finding out where it may be either."""
        if endpoint.doubt is Doubt.EITHER:
            self._find_out(endpoint)
        return endpoint.current(url)

    def _is_mistaken(self, endpoint: Endpoint, url: str) -> bool:
        """Say whether a request went wrong because it was not in TLS, of a host that may speak either."""
        if endpoint.doubt is not Doubt.NONE:
            self._find_out(endpoint)
        return endpoint.current(url) != url

    def _find_out(self, endpoint: Endpoint) -> None:
        """See whether a host speaks TLS, whatever its certificate; nothing is asked for.

        Where it cannot be reached, it stays in doubt.
        """
        with endpoint.lock:
            if endpoint.doubt is Doubt.NONE:
                return
            try:
                self._connections.handshake(endpoint.encrypted_url, self._settings.connect_timeout)
            except NetworkError as error:
                if (encrypted := speaks_tls(error)) is not None:
                    endpoint.settle(encrypted=encrypted)
            else:
                endpoint.settle(encrypted=True)

    # -- errors -----------------------------------------------------------------------------------------

    def _refused(self, endpoint: Endpoint, answer: Answer) -> OcistreamError:
        asked = retry_after(answer.header("Retry-After"))
        elsewhere = Origin.of(answer.url) != endpoint.origin
        return self._hinted(
            refusal(
                endpoint.registry,
                answer.method,
                answer.url,
                answer.status,
                answer.explanation(),
                asked,
                elsewhere=elsewhere,
            )
        )

    def _check(self, tls: TlsSettings) -> None:
        """Read the files of certificates.

        Raises:
            NotFoundError, LocalDiskError, UsageError: one cannot be used.
        """
        try:
            check(tls)
        except UsageError as error:
            self._hinted(error)
            raise

    def _hinted(self, error: OcistreamError) -> OcistreamError:
        """Name the options in the hint as the user writes them."""
        error.hint = error.hint and self._settings.hint(error.hint)
        return error


def _was_led_away(endpoint: Endpoint, url: str, answer: Answer) -> bool:
    """Say whether a request for a URL of the registry's own was answered by another host, by a redirect."""
    return Origin.of(url) == endpoint.origin != Origin.of(answer.url)
