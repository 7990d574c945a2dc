"""One registry as the transport sees it: where it is, whether it speaks TLS, whom to trust there and what to show.

Some hosts may speak either: those on this machine, and those of which the configuration says so (`insecure = true` of
containers' registries.conf). They are doubted until it is known, by one rule: a TLS handshake and nothing else, before
the first request where certificates were configured, or after a first answer that was none, or a 400.
A request that goes out in doubt carries no credential, since nobody has asked for one yet.
"""

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
    from ocistream.http.hosts import HostSettings

__all__ = ["Doubt", "Endpoint", "tls_for"]


class Doubt(enum.Enum):
    """What is not known yet of a host's scheme."""

    #: Nothing: it is known.
    NONE = enum.auto()
    #: It is most probably plain HTTP, and is asked in that: its first answer will tell.
    LIKELY_PLAIN = enum.auto()
    #: It may be either, and is to be asked before anything is sent.
    EITHER = enum.auto()


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
        self.given = given
        self.lock = threading.Lock()
        self.doubt = Doubt.NONE
        # Docker Hub's name is not its address.
        self._host = "registry-1.docker.io" if registry == "docker.io" else registry
        if settings.url:
            self.url = settings.url.rstrip("/")
        elif settings.plain_http or (plain_http and "plain-http" not in settings.said):
            self.url = f"http://{self._host}"
        else:
            self.doubt = self._doubted()
            self.url = f"{'https' if self.doubt is Doubt.NONE else 'http'}://{self._host}"
        self.origin = Origin.of(self.url)
        self._plain_base: str | None = None

    @property
    def encrypted_url(self) -> str:
        """Where it is if it speaks TLS."""
        return f"https://{self._host}"

    def settle(self, *, encrypted: bool) -> None:
        """Note what it speaks; TLS, once found, is for good."""
        if encrypted and self.doubt is not Doubt.NONE:
            plain = f"{self.url}/"
            # In this order: whoever has read the one and not yet the other is refused, and asks `current` again.
            self.origin = Origin.of(self.encrypted_url)
            self.url = self.encrypted_url
            self._plain_base = plain
        elif self.doubt is Doubt.EITHER and self.settings.may_be_plain:
            what = f"{printable(self._host)} does not speak TLS: it is asked over plain HTTP"
            notices.notice(f"{what}, as registries.conf allows (insecure = true)", level=1)
        self.doubt = Doubt.NONE

    def current(self, url: str) -> str:
        """Give a URL as it is to be asked for now: one that was made before TLS was found is of https now."""
        base = self._plain_base
        return self.url + url[len(base) - 1 :] if base and url.startswith(base) else url

    def _doubted(self) -> Doubt:
        if not self.settings.may_be_plain and not is_loopback(urlsplit(f"//{self._host}").hostname or ""):
            return Doubt.NONE
        own, given = self.settings, self.given
        configured = own.ca_files or own.client_certificates or own.insecure
        if own.may_be_plain or configured or given != TlsSettings():
            return Doubt.EITHER
        return Doubt.LIKELY_PLAIN


def tls_for(endpoint: Endpoint, target: Origin, theirs: HostSettings, *, trusted: bool) -> TlsSettings:
    """Say whom to trust at `target`, and what to show, in the course of a request to `endpoint`.

    `theirs` are the target's own settings. `trusted` says that the request has stayed with the endpoint's own origin,
    which no redirect, realm or Location has led it away from.

    - A client certificate is a credential, and is shown to that origin only.
    - A CA of the registry is trusted for what it leads to as well, as with Docker: the registry could as well give
      that content itself.
    - An unchecked certificate is accepted of the host that was named, on any port of it (test set-ups have storage and
      token servers there). Another host is checked unless its own settings say otherwise: nobody spoke of that one.
    """
    own, given = endpoint.settings, endpoint.given
    ca_files = given.ca_files + own.ca_files + (() if trusted else theirs.ca_files)
    insecure = own.insecure or (given.insecure and "insecure" not in own.said)
    if target.host != endpoint.origin.host:
        insecure = theirs.insecure
    # The command line comes before the configuration, and what a file of this run says of one host before both.
    first = own.client_certificates if "client-cert" in own.said else given.client_certificates
    shown = (first or own.client_certificates) if trusted else ()
    return TlsSettings(tuple(dict.fromkeys(ca_files)), shown, insecure)
