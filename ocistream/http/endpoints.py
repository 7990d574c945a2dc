"""One registry endpoint: URL, scheme (HTTP or HTTPS), and the TLS settings for each host it leads to."""

from __future__ import annotations

import enum
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ocistream import notices
from ocistream.http.origins import Origin, is_loopback
from ocistream.http.tls import TlsSettings
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from ocistream.auth.tokens import Authenticator
    from ocistream.http.host_settings import HostSettings

__all__ = ["Endpoint", "SchemeState", "choose_tls"]


class SchemeState(enum.Enum):
    """What is not known yet of a host's scheme."""

    #: Nothing: it is known.
    KNOWN = enum.auto()
    #: It is most probably plain HTTP, and is asked in that: its first answer will tell.
    LIKELY_HTTP = enum.auto()
    #: It may be either, and is to be asked before anything is sent.
    UNKNOWN = enum.auto()


class Endpoint:
    """A registry: what it is called, where it is, and who speaks for us there. Safe for several threads."""

    authenticator: Authenticator

    def __init__(self, registry: str, settings: HostSettings, given: TlsSettings, *, plain_http: bool) -> None:
        """Place a registry such as `docker.io`.

        `settings` are those of its host. `given` is what the user named for all hosts, or, of client certificates and
        of `insecure`, for all registries that the command line names. `plain_http` is what the user asked for.
        """
        self.registry = registry
        self.settings = settings
        self.explicit_tls = given
        self.lock = threading.Lock()
        self.scheme_state = SchemeState.KNOWN
        # Docker Hub's name is not its address.
        self._host = "registry-1.docker.io" if registry == "docker.io" else registry
        if settings.url:
            self.url = settings.url.rstrip("/")
        elif settings.plain_http or (plain_http and "plain-http" not in settings.explicit_keys):
            self.url = f"http://{self._host}"
        else:
            self.scheme_state = self._initial_scheme_state()
            self.url = f"{'https' if self.scheme_state is SchemeState.KNOWN else 'http'}://{self._host}"
        self.origin = Origin.from_url(self.url)
        self._http_base: str | None = None

    @property
    def https_url(self) -> str:
        """Where it is if it speaks TLS."""
        return f"https://{self._host}"

    def confirm_scheme(self, *, encrypted: bool) -> None:
        """Note what it speaks; TLS, once found, is for good."""
        if encrypted and self.scheme_state is not SchemeState.KNOWN:
            plain = f"{self.url}/"
            # In this order: whoever has read the one and not yet the other is refused, and asks `current` again.
            self.origin = Origin.from_url(self.https_url)
            self.url = self.https_url
            self._http_base = plain
        elif self.scheme_state is SchemeState.UNKNOWN and self.settings.has_http_fallback:
            what = f"{printable(self._host)} does not speak TLS: it is asked over plain HTTP"
            notices.notify(f"{what}, as registries.conf allows (insecure = true)", level=1)
        self.scheme_state = SchemeState.KNOWN

    def current_url(self, url: str) -> str:
        """Give a URL as it is to be asked for now: one that was made before TLS was found is of https now."""
        base = self._http_base
        return self.url + url[len(base) - 1 :] if base and url.startswith(base) else url

    def _initial_scheme_state(self) -> SchemeState:
        if not self.settings.has_http_fallback and not is_loopback(urlsplit(f"//{self._host}").hostname or ""):
            return SchemeState.KNOWN
        own, given = self.settings, self.explicit_tls
        configured = own.ca_files or own.client_certificates or own.insecure
        if own.has_http_fallback or configured or given != TlsSettings():
            return SchemeState.UNKNOWN
        return SchemeState.LIKELY_HTTP


def choose_tls(endpoint: Endpoint, target: Origin, theirs: HostSettings, *, trusted: bool) -> TlsSettings:
    """Say whom to trust at `target`, and what to show, in the course of a request to `endpoint`.

    `theirs` are the target's own settings. `trusted` says that the request has stayed with the endpoint's own origin,
    which no redirect, realm or Location has led it away from.

    - A client certificate is a credential, and is shown to that origin only.
    - A CA of the registry is trusted for what it leads to as well, as with Docker: the registry could as well give
      that content itself.
    - An unchecked certificate is accepted of the host that was named, on any port of it (test set-ups have storage and
      token servers there). Another host is checked unless its own settings say otherwise: nobody spoke of that one.
    """
    own, given = endpoint.settings, endpoint.explicit_tls
    ca_files = given.ca_files + own.ca_files + (() if trusted else theirs.ca_files)
    insecure = own.insecure or (given.insecure and "insecure" not in own.explicit_keys)
    if target.host != endpoint.origin.host:
        insecure = theirs.insecure
    # The command line comes before the configuration, and what a file of this run says of one host before both.
    first = own.client_certificates if "client-cert" in own.explicit_keys else given.client_certificates
    shown = (first or own.client_certificates) if trusted else ()
    return TlsSettings(tuple(dict.fromkeys(ca_files)), shown, insecure)
