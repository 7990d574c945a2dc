"""Follow redirects to the targets that are allowed, and keep credentials, bodies and client certificates from others.

`check_target` has the rule for redirects, Location headers, Link headers and the realms of tokens.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from ocistream import limits
from ocistream.errors import PermanentNetworkError
from ocistream.http.connections import StreamedBody
from ocistream.http.endpoints import choose_tls
from ocistream.http.origins import INTERNAL_ADDRESS, Origin, is_internal, redact_url, resolve_url
from ocistream.streams import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ocistream.http.connections import Connections, Response
    from ocistream.http.endpoints import Endpoint
    from ocistream.http.host_settings import HostSettings
    from ocistream.http.rate_limits import RequestThrottle

__all__ = ["RedirectFollower", "Request", "check_target"]

_REDIRECT_STATUSES: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Request:
    """The parts of a request that stay the same when it is sent again or redirected. Times are in seconds."""

    method: str
    headers: Mapping[str, str]
    body: bytes | StreamedBody | None = None
    #: The time to connect, and the time to wait for data while reading the response.
    timeout: tuple[float, float] | None = None

    @property
    def is_started(self) -> bool:
        """Whether a part of the body was sent already, so that the request cannot be sent again."""
        return isinstance(self.body, StreamedBody) and self.body.is_started

    def with_authorization(self, value: str | None) -> Request:
        """Return the same request with this Authorization header, or without one."""
        if value is None and "Authorization" not in self.headers:
            return self
        headers = {name: text for name, text in self.headers.items() if name != "Authorization"}
        return replace(self, headers=headers | {"Authorization": value} if value else headers)


class RedirectFollower:
    """Sends requests and follows redirects. Safe for several threads."""

    def __init__(
        self,
        connections: Connections,
        hosts: Callable[[str, str], HostSettings],
        request_throttle: RequestThrottle,
        per_second: float | None,
        wait: Callable[[float], None],
        cancelled: threading.Event,
    ) -> None:
        """Send over `connections`, at most `per_second` requests to a host unless its settings have another limit.

        `hosts(registry, repository)` looks up the settings of a host. `wait` sleeps for a number of seconds, and raises
        once `cancelled` is set.
        """
        self._connections = connections
        self._hosts = hosts
        self._request_throttle = request_throttle
        self._per_second = per_second
        self._wait = wait
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], HostSettings] = {}
        self._not_before: dict[str, float] = {}

    def for_transfer(self, wait: Callable[[float], None], cancelled: threading.Event) -> RedirectFollower:
        """Return a follower that ends when `cancelled` is set, and shares all else with this one."""
        other = copy.copy(self)
        other._wait, other._cancelled = wait, cancelled  # noqa: SLF001 - same class
        return other

    def host_settings(self, registry: str, repository: str = "") -> HostSettings:
        """Return the settings of a host, for one of its repositories."""
        key = registry, repository
        with self._lock:
            if key not in self._known:
                self._known[key] = self._hosts(*key)
            return self._known[key]

    def pause_host(self, url: str, seconds: float) -> None:
        """Send no request to this URL's host for `seconds`."""
        host = urlsplit(url).netloc
        with self._lock:
            self._not_before[host] = max(self._not_before.get(host, 0.0), clock.now() + seconds)

    def send(self, endpoint: Endpoint, request: Request, url: str) -> Response:
        """Send a request and follow at most five redirects, never from https to http.

        Credentials and bodies stay with the first URL's origin.
        """
        origin = Origin.from_url(url)
        trusted = origin == endpoint.origin
        leader = None if trusted else endpoint.origin
        for hops in range(limits.MAX_REDIRECTS + 1):
            self._wait_for_rate_limit(endpoint, url)
            response = self.send_once(endpoint, request, url, trusted=trusted, leader=leader)
            response.hops = hops
            location = response.header("Location")
            if response.status not in _REDIRECT_STATUSES or not location:
                return response
            response.drain()
            request_text = f"{request.method} {redact_url(url)}"
            target = resolve_url(url, location)
            if Origin.from_url(target) != origin:
                trusted = False
                request = request.with_authorization(None)
                if request.body is not None:
                    msg = f"{request_text} was redirected to another host, {redact_url(target)}: not followed"
                    raise PermanentNetworkError(msg)
            if request.is_started:
                msg = f"{request_text} was redirected after its body was sent"
                raise PermanentNetworkError(msg)
            leader = Origin.from_url(url)
            self.check_target(leader, target)
            url = target
        msg = f"{request.method} {redact_url(url)}: more than {limits.MAX_REDIRECTS} redirects"
        raise PermanentNetworkError(msg)

    def send_once(
        self, endpoint: Endpoint, request: Request, url: str, *, trusted: bool, leader: Origin | None
    ) -> Response:
        """Send a request without following redirects.

        `leader` is the origin that led to this URL; None if the endpoint itself was asked. Only a `trusted` request
        shows the endpoint's client certificate.
        """
        target = Origin.from_url(url)
        tls = choose_tls(endpoint, target, self._settings_for(endpoint, url), trusted=trusted)
        # `check_target` resolved the name before; the connection must check again, since the address may have changed.
        external_only = leader is not None and leader.host != target.host and self._is_external(leader)
        return self._connections.send(
            request.method, url, request.headers, request.body, request.timeout, tls, external_only=external_only
        )

    def _is_external(self, origin: Origin) -> bool:
        is_external = self._connections.is_external(origin.host)
        return not is_internal(origin.host) if is_external is None else is_external

    def check_target(self, origin: Origin, url: str) -> None:
        """Apply the function `check_target` with what is known about the address of `origin`.

        Raises:
            PermanentNetworkError: the URL is not an allowed target.
        """
        check_target(origin, url, is_external=self._connections.is_external(origin.host))

    def _settings_for(self, endpoint: Endpoint, url: str) -> HostSettings:
        """Return the settings of the host of a URL, whichever host led to it."""
        if Origin.from_url(url) == endpoint.origin:
            return endpoint.settings
        return self.host_settings(urlsplit(url).netloc.rpartition("@")[2])

    def _wait_for_rate_limit(self, endpoint: Endpoint, url: str) -> None:
        if self._cancelled.is_set():
            self._wait(0)
        host = urlsplit(url).netloc
        with self._lock:
            delay = self._not_before.get(host, 0.0) - clock.now()
        per_second = self._settings_for(endpoint, url).requests_per_second or self._per_second
        delay = max(delay, self._request_throttle.reserve(host, per_second))
        if delay > 0:
            self._wait(delay)


def check_target(origin: Origin, url: str, *, is_external: bool | None = None) -> None:
    """Refuse a redirect, Location, Link or realm that leads to a forbidden place.

    The connection checks the address again, because a name may resolve to another address by then. Behind a proxy this
    check is the only one. `is_external` says whether `origin` responded from an external address. If it is None, the
    name of `origin` is resolved.

    Raises:
        PermanentNetworkError: from https to http (CVE-2026-48978), or from an external host to an internal address.
    """
    target = Origin.from_url(url)
    if origin.scheme == "https" and target.scheme != "https":
        msg = f"{origin.host} leads from https to {redact_url(url)}: not followed"
        hint = "a proxy in front of the registry does not tell it that it is reached by https (X-Forwarded-Proto)"
        raise PermanentNetworkError(msg, hint=hint if target.host == origin.host else None)
    if target.host == origin.host or not is_internal(target.host):
        return
    if not is_internal(origin.host) if is_external is None else is_external:
        msg = f"{origin.host} leads to {target.host}, {INTERNAL_ADDRESS}"
        raise PermanentNetworkError(msg)
