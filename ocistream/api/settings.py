"""`RegistrySettings` and `TlsFiles` of the Python API: settings of one registry, and certificate files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ocistream.errors import UsageError

if TYPE_CHECKING:
    from ocistream.http.settings import TlsSettings
    from ocistream.registry.configuration import HostRule


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Certificate files (PEM): CAs to trust besides those of the system, a client certificate and its key.

    The key may be in the certificate's file.
    """

    ca_cert: str | None = None
    client_cert: str | None = None
    client_key: str | None = None

    def to_settings(self, *, insecure: bool, directory: TlsSettings | None = None) -> TlsSettings:
        """Return the settings of a connection; `directory` is what `--cert-dir` has.

        Raises:
            UsageError: a key has no certificate.
        """
        from ocistream.http.settings import TlsSettings

        if self.client_key and not self.client_cert:
            msg = "--client-key needs --client-cert"
            raise UsageError(msg, hint="name the certificate of that key too")
        directory = directory or TlsSettings()
        return TlsSettings(
            ((self.ca_cert,) if self.ca_cert else ()) + directory.ca_files,
            ((self.client_cert, self.client_key),) if self.client_cert else directory.client_certificates,
            insecure,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """Settings of one registry. They override those of the client; None keeps the client's setting."""

    plain_http: bool | None = None
    insecure: bool | None = None
    tls: TlsFiles | None = None

    def to_rule(self) -> HostRule:
        """Return the rule that overrides the configuration of the host."""
        from ocistream.http.settings import HostSettings
        from ocistream.registry.configuration import HostRule

        keys = set()
        tls = (self.tls or TlsFiles()).to_settings(insecure=False)
        if self.plain_http is not None:
            keys.add("plain-http")
        if self.insecure is not None:
            keys.add("insecure")
        if tls.ca_files:
            keys.add("ca-cert")
        if tls.client_certificates:
            keys.add("client-cert")
        return HostRule(
            HostSettings(
                plain_http=bool(self.plain_http),
                ca_files=tls.ca_files,
                client_certificates=tls.client_certificates,
                explicit_keys=frozenset(keys),
            ),
            insecure=self.insecure,
        )
