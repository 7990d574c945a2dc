"""One registry endpoint: URL, scheme (HTTP or HTTPS), and the TLS settings for each host it leads to."""

from __future__ import annotations

import enum
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ocistream import notices
from ocistream.errors import NetworkError
from ocistream.http.errors import has_tls_peer
from ocistream.http.origins import Origin, is_loopback
from ocistream.http.settings import TlsSettings
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocistream.auth.authenticator import Authenticator
    from ocistream.http.settings import HostSettings, HttpSettings


class SchemeState(enum.Enum):
    """How much is known about a host's scheme."""

    #: The scheme is known.
    KNOWN = enum.auto()
    #: The scheme is probably plain HTTP; the first response decides.
    LIKELY_HTTP = enum.auto()
    #: The scheme is http or https; a TLS handshake must decide before anything is sent.
    UNKNOWN = enum.auto()


class Endpoint:
    """A registry endpoint: name, URL, origin, settings and authenticator. Safe for several threads."""

    #: Set by the client, because requests for tokens need the endpoint.
    authenticator: Authenticator

    def __init__(
        self,
        registry: str,
        host_settings: HostSettings,
        http_settings: HttpSettings,
        handshake: Callable[[str, float], None],
        *,
        is_named_by_user: bool,
    ) -> None:
        """Set up the endpoint of a registry such as `docker.io`.

        `host_settings` are the settings of its host, `http_settings` those of all hosts. The CAs of the command line
        apply to all hosts; its client certificates and `insecure` apply to the registries that the user names.
        `handshake` connects to the host of an https URL, within a number of seconds (`Adapter.handshake`).
        """
        self.registry = registry
        self.host_settings = host_settings
        self.http_settings = http_settings
        self._handshake = handshake
        #: The TLS settings for the endpoint's own origin.
        self.tls = _merge_tls(host_settings, http_settings.tls, is_named_by_user=is_named_by_user)
        self.scheme_state = SchemeState.KNOWN
        # Docker Hub's API has another host name.
        self._host = "registry-1.docker.io" if registry == "docker.io" else registry
        if host_settings.url:
            self.url = host_settings.url.rstrip("/")
        elif host_settings.plain_http or (
            http_settings.plain_http and "plain-http" not in host_settings.overriding_keys
        ):
            self.url = f"http://{self._host}"
        elif host_settings.has_http_fallback or is_loopback(urlsplit(f"//{self._host}").hostname or ""):
            if host_settings.has_http_fallback or self.tls != TlsSettings():
                # A fallback or certificates are configured: the handshake comes before the first request. Otherwise it
                # comes only after a failed first request or a 400, so that an ordinary plain registry sees one
                # connection.
                self.scheme_state = SchemeState.UNKNOWN
            else:
                self.scheme_state = SchemeState.LIKELY_HTTP
            self.url = f"http://{self._host}"
        else:
            self.url = f"https://{self._host}"
        self.origin = Origin.from_url(self.url)
        #: After a switch to HTTPS: the beginning of URLs that were built before, `http://HOST[:PORT]/`.
        self._http_base: str | None = None
        #: One thread at a time finds out whether the host speaks TLS.
        self._lock = threading.Lock()

    def current_url(self, url: str) -> str:
        """Return a URL with the current scheme, which is detected if it is unknown.

        A URL that was built before TLS was found becomes https.
        """
        if self.scheme_state is SchemeState.UNKNOWN:
            self._detect_scheme()
        return self._with_scheme(url)

    def switch_to_https(self, url: str) -> bool:
        """Switch to HTTPS if the host speaks TLS; return whether a request for `url`, which failed, used plain HTTP."""
        if self.scheme_state is not SchemeState.KNOWN and Origin.from_url(url) == self.origin:
            self._detect_scheme()
        return self._with_scheme(url) != url

    def confirm_scheme(self) -> None:
        """Record that the current scheme is right."""
        if self.scheme_state is SchemeState.UNKNOWN and self.host_settings.has_http_fallback:
            message = f"{printable(self._host)} does not support TLS: using plain HTTP"
            notices.notify(f"{message}, as registries.conf allows (insecure = true)", level=1)
        self.scheme_state = SchemeState.KNOWN

    def _with_scheme(self, url: str) -> str:
        base = self._http_base
        return self.url + url[len(base) - 1 :] if base and url.startswith(base) else url

    def _detect_scheme(self) -> None:
        """Find out by a TLS handshake whether the host speaks TLS. No certificate is verified, and no request is sent.

        If the host cannot be reached, its scheme stays undecided. The text of a response over HTTP proves nothing.
        """
        https_url = f"https://{self._host}"
        with self._lock:
            if self.scheme_state is SchemeState.KNOWN:
                return
            try:
                self._handshake(https_url, self.http_settings.connect_timeout)
            except NetworkError as error:
                is_tls = has_tls_peer(error)
            else:
                is_tls = True
            if is_tls:
                http_base = f"{self.url}/"
                # Origin first: a thread that reads the new origin and the old URL is refused, and calls `current_url`
                # again.
                self.origin = Origin.from_url(https_url)
                self.url = https_url
                self._http_base = http_base
                self.scheme_state = SchemeState.KNOWN
            elif is_tls is not None:
                self.confirm_scheme()


def _merge_tls(settings: HostSettings, command_line: TlsSettings, *, is_named_by_user: bool) -> TlsSettings:
    """Merge the settings of a host with those of the command line, whose CAs apply to all hosts.

    The command line overrides the configuration, and a file of this run (`overriding_keys`) overrides both.
    """
    client_certificates, insecure = settings.client_certificates, settings.insecure
    if is_named_by_user and "client-cert" not in settings.overriding_keys:
        client_certificates = command_line.client_certificates or client_certificates
    if is_named_by_user and "insecure" not in settings.overriding_keys:
        insecure = insecure or command_line.insecure
    return TlsSettings(_unique(command_line.ca_files + settings.ca_files), client_certificates, insecure)


def find_tls_elsewhere(endpoint: Endpoint, target: Origin, target_settings: HostSettings) -> TlsSettings:
    """Return the TLS settings at `target` after a redirect, realm or Location has led away from the endpoint's origin.

    `target_settings` are the settings of the target's host.

    - A client certificate is a credential and is not shown, even if another redirect has led back.
    - A CA of the registry is trusted at hosts that the registry redirects to, as with Docker: the registry could serve
      that content itself.
    - `insecure` applies to the named host on any port (test setups have storage and token servers there). Another host
      is checked unless its own settings say otherwise: the user did not name it.
    """
    insecure = endpoint.tls.insecure if target.host == endpoint.origin.host else target_settings.insecure
    return TlsSettings(_unique(endpoint.tls.ca_files + target_settings.ca_files), insecure=insecure)


def _unique(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(paths))
