"""HTTP as registries need it: authorization, redirects, retries, errors, and nothing secret in any text.

It knows which origin a credential belongs to and that a body must be replayable to be sent again; it knows nothing of
manifests and blobs, and leaves the sockets to `ocistream.connections`.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from ocistream import limits
from ocistream.auth import Authenticator
from ocistream.bodies import StreamedBody
from ocistream.connections import Answer, Connections, ConnectionSettings
from ocistream.endpoints import Doubt, Endpoint, tls_for
from ocistream.errors import CancelledError, FinalNetworkError, NetworkError, RegistryError
from ocistream.failures import refusal, speaks_tls
from ocistream.hosts import HostSettings
from ocistream.ladder import Ladder
from ocistream.origins import Origin, check_target, is_inward, redacted, resolved
from ocistream.pacing import Pace
from ocistream.retry import Retried, Tries, retry_after
from ocistream.tls import TlsSettings, check
from ocistream.token_requests import TokenAnswer, TokenRequest
from ocistream.transport_settings import TransportSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ocistream.credentials import Credential
    from ocistream.errors import OcistreamError

__all__ = ["Endpoint", "Transport", "TransportSettings"]

#: Answers that may be better the next time (seen at Quay, Hub and ECR).
_RETRIED_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
#: How long an abandoned upload's deletion may take, in seconds: nobody is to wait for that.
_CLEANUP_TIMEOUT: Final = 3.0


@dataclass(frozen=True, slots=True)
class _Request:
    """What stays the same when a request is sent again, or elsewhere. Times are in seconds."""

    method: str
    headers: Mapping[str, str]
    body: bytes | StreamedBody | None = None
    #: How long connecting may take, and how long the answer may be waited for and stall.
    timeout: tuple[float, float] | None = None

    @property
    def begun(self) -> bool:
        """Whether a part of the body has gone already, so that it cannot be sent again."""
        return isinstance(self.body, StreamedBody) and self.body.begun

    def with_authorization(self, value: str | None) -> _Request:
        """Give the same request with this Authorization, or without one."""
        headers = {name: text for name, text in self.headers.items() if name != "Authorization"}
        return replace(self, headers=headers | {"Authorization": value} if value else headers)


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
        self._hosts = hosts
        self._settings = settings
        self.patience = settings.patience
        self._find = find
        self._on_retry = on_retry
        self._endpoints: dict[tuple[str, HostSettings, bool], Endpoint] = {}
        self._known: dict[tuple[str, str], HostSettings] = {}
        self._lock = threading.Lock()
        self._not_before: dict[str, float] = {}
        self.cancelled = cancelled or threading.Event()
        check(settings.tls)
        pace = pace or Pace()
        self._turns = pace.turns
        self._connections = Connections(
            ConnectionSettings(
                connect_timeout=settings.connect_timeout,
                stall_timeout=settings.stall_timeout,
                user_agent=settings.user_agent,
                ca_bundle=settings.ca_file,
                proxy_tls=TlsSettings(settings.tls.ca_files),
                proxies=settings.proxies,
                pace=pace,
            ),
            self.wait,
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
            known = self._host(registry, repository)
            key = registry, known, named
            if key not in self._endpoints:
                given = self._settings.tls
                if not named:
                    given = TlsSettings(given.ca_files)
                check(TlsSettings(known.ca_files, known.client_certificates))
                endpoint = Endpoint(registry, known, given, plain_http=self._settings.plain_http)
                endpoint.authenticator = Authenticator(
                    registry,
                    lambda repository: self._find(registry, repository),
                    lambda request: self._send_token_request(endpoint, request),
                )
                self._endpoints[key] = endpoint
            return self._endpoints[key]

    def _host(self, registry: str, repository: str = "") -> HostSettings:
        """Give the settings of a host, for one of its repositories; whoever asks holds the lock."""
        key = registry, repository
        if key not in self._known:
            self._known[key] = self._hosts(*key)
        return self._known[key]

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
            AuthenticationError: 401 or 403, after a fresh token was tried.
            NotFoundError: 404.
            RegistryError: any other status, after all retries.
            NetworkError: no answer, after all retries.
        """
        timeout = (self._settings.connect_timeout, self._settings.answer_timeout(stored))
        request = _Request(method, headers or {}, body, timeout)
        tries = tries or self.tries()
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
            raise _refused(endpoint, answer)

    def request_once(self, endpoint: Endpoint, method: str, url: str, *, scopes: tuple[str, ...] = ()) -> Answer:
        """Send a request whose failure does not matter, even after a cancellation: cleaning up behind oneself.

        The answer's body has been read, and is of no interest.

        Raises:
            OcistreamError: it failed; it is not tried again.
        """
        request = _Request(method, {}, timeout=(_CLEANUP_TIMEOUT, _CLEANUP_TIMEOUT))
        url = endpoint.current(url)
        trusted = Origin.of(url) == endpoint.origin
        if trusted:
            request = request.with_authorization(endpoint.authenticator.authorization(scopes))
        else:
            self._check_target(endpoint.origin, url)
        leader = None if trusted else endpoint.origin
        answer = self._send(endpoint, request, url, trusted=trusted, leader=leader)
        answer.drain()
        return answer

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

    def _authorized(self, endpoint: Endpoint, request: _Request, url: str, scopes: tuple[str, ...]) -> Answer:
        if Origin.of(url) != endpoint.origin:
            self._check_target(endpoint.origin, url)
            return self._redirected(endpoint, request, url)
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
        request: _Request,
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
        self, endpoint: Endpoint, request: _Request, url: str, header: str | None, scopes: tuple[str, ...]
    ) -> Answer:
        """Send with this Authorization."""
        with endpoint.authenticator.shown(header, scopes) as trial:
            answer = self._redirected(endpoint, request.with_authorization(header), url)
            if Origin.of(answer.url) == endpoint.origin:
                trial.accepted = answer.status != HTTPStatus.UNAUTHORIZED
            return answer

    def _challenges_at(self, base: str, endpoint: Endpoint, timeout: tuple[float, float] | None) -> Sequence[str]:
        """Ask the base of the API how to authenticate: some registries say so nowhere else (gcr.io)."""
        answer = self._redirected(endpoint, _Request("GET", {}, timeout=timeout), base)
        answer.drain()
        # Another host speaks for itself only.
        return answer.challenges() if Origin.of(answer.url) == endpoint.origin else []

    def _redirected(self, endpoint: Endpoint, request: _Request, url: str) -> Answer:
        """Send, and follow redirects: at most five, never down to http, and credentials stay where they belong."""
        home = Origin.of(url)
        trusted = home == endpoint.origin
        leader = None if trusted else endpoint.origin
        for _ in range(limits.MAX_REDIRECTS + 1):
            self._wait_for_turn(endpoint, url)
            answer = self._send(endpoint, request, url, trusted=trusted, leader=leader)
            location = answer.header("Location")
            if answer.status not in _REDIRECTS or not location:
                return answer
            answer.drain()
            where = f"{request.method} {redacted(url)}"
            target = resolved(url, location)
            if Origin.of(target) != home:
                trusted = False
                request = request.with_authorization(None)
                if request.body is not None:
                    msg = f"{where} was redirected to another host, {redacted(target)}: not followed"
                    raise FinalNetworkError(msg)
            if request.begun:
                msg = f"{where} was redirected after its body was sent"
                raise FinalNetworkError(msg)
            leader = Origin.of(url)
            self._check_target(leader, target)
            url = target
        msg = f"{request.method} {redacted(url)}: more than {limits.MAX_REDIRECTS} redirects"
        raise FinalNetworkError(msg)

    def _send(self, endpoint: Endpoint, request: _Request, url: str, *, trusted: bool, leader: Origin | None) -> Answer:
        """Send once. `leader` is who has led to this URL; None where it is the endpoint's own."""
        target = Origin.of(url)
        tls = tls_for(endpoint, target, self._settings_of(endpoint, url), trusted=trusted)
        # Once more than by `check_target`, since a name may have another address by now.
        only_outside = leader is not None and leader.host != target.host and self._is_outside(leader)
        return self._connections.send(
            request.method, url, request.headers, request.body, request.timeout, tls, only_outside=only_outside
        )

    def _is_outside(self, origin: Origin) -> bool:
        known = self._connections.is_outside(origin.host)
        return not is_inward(origin.host) if known is None else known

    def _check_target(self, home: Origin, url: str) -> None:
        check_target(home, url, is_outside=self._connections.is_outside(home.host))

    def _settings_of(self, endpoint: Endpoint, url: str) -> HostSettings:
        """Give the settings of the host that a URL leads to, whoever led there."""
        if Origin.of(url) == endpoint.origin:
            return endpoint.settings
        host = urlsplit(url).netloc.rpartition("@")[2]
        with self._lock:
            return self._host(host)

    def _wait_for_turn(self, endpoint: Endpoint, url: str) -> None:
        if self.cancelled.is_set():
            self.wait(0)
        host = urlsplit(url).netloc
        with self._lock:
            delay = self._not_before.get(host, 0.0) - time.monotonic()
        per_second = self._settings_of(endpoint, url).requests_per_second or self._settings.requests_per_second
        delay = max(delay, self._turns.take(host, per_second))
        if delay > 0:
            self.wait(delay)

    def _send_token_request(self, endpoint: Endpoint, request: TokenRequest) -> TokenAnswer:
        """Ask a token server, which is trusted with a credential, and so only where it is as safe as the registry."""
        self._check_target(endpoint.origin, request.url)
        tries = self.tries()
        while True:
            try:
                answer = self._redirected(
                    endpoint, _Request(request.method, request.headers, request.body), request.url
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


def _refused(endpoint: Endpoint, answer: Answer) -> OcistreamError:
    asked = retry_after(answer.header("Retry-After"))
    return refusal(endpoint.registry, answer.method, answer.url, answer.status, answer.explanation(), asked)
