"""`RegistrySettings` and `TlsFiles` of the Python API: settings of one registry, and certificate files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ocistream.api.arguments import check_switches, check_type, optional_path
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

    def __post_init__(self) -> None:
        """Check the types."""
        for name in ("ca_cert", "client_cert", "client_key"):
            optional_path(name, getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """Settings of one registry. They override those of the client; None keeps the client's setting."""

    plain_http: bool | None = None
    insecure: bool | None = None
    tls: TlsFiles | None = None

    def __post_init__(self) -> None:
        """Check the types."""
        switches = {"plain_http": self.plain_http, "insecure": self.insecure}
        check_switches(**{name: value for name, value in switches.items() if value is not None})
        check_type("tls", self.tls, (TlsFiles, type(None)), "TlsFiles")

    def to_rule(self) -> HostRule:
        """Return the rule that overrides the configuration of the host."""
        from ocistream.http.settings import HostSettings
        from ocistream.registry.configuration import HostRule

        tls = RegistryOptions(**asdict(self.tls or TlsFiles())).load_tls_settings()
        is_set = {
            "plain-http": self.plain_http is not None,
            "insecure": self.insecure is not None,
            "ca-cert": bool(tls.ca_files),
            "client-cert": bool(tls.client_certificates),
        }
        return HostRule(
            HostSettings(
                plain_http=bool(self.plain_http),
                ca_files=tls.ca_files,
                client_certificates=tls.client_certificates,
                overriding_keys=frozenset(key for key, value in is_set.items() if value),
            ),
            insecure=self.insecure,
        )


def build_host_rules(registries: Mapping[str, RegistrySettings]) -> dict[str, HostRule]:
    """Return the rules by host. A key that is not a host is an error, because it would have no effect."""
    from ocistream.auth.docker_config import normalize_host

    check_type("registries", registries, Mapping, "a mapping of hosts to RegistrySettings")
    rules = {}
    for host, settings in registries.items():
        check_type("registries", host, str, "a mapping of hosts to RegistrySettings")
        check_type("registries", settings, RegistrySettings, "a mapping of hosts to RegistrySettings")
        rules[normalize_host(host)] = settings.to_rule()
    return rules
