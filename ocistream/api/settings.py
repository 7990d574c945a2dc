"""`RegistrySettings` and `TlsFiles` of the Python API: settings of one registry, and certificate files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ocistream.api.options import RegistryOptions

if TYPE_CHECKING:
    from ocistream.registry.configuration import HostRule


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Certificate files (PEM): CAs to trust besides those of the system, a client certificate and its key.

    The key may be in the certificate's file.
    """

    ca_cert: str | None = None
    client_cert: str | None = None
    client_key: str | None = None


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
        tls = RegistryOptions(**asdict(self.tls or TlsFiles())).tls_settings()
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
