"""The settings of one registry host: scheme, certificates, URL, rate and upload method. Values only."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HostSettings"]


@dataclass(frozen=True, slots=True)
class HostSettings:
    """Settings of one `HOST[:PORT]`; `insecure` and `has_http_fallback` may apply to some of its repositories only."""

    #: Speak HTTP, not HTTPS.
    plain_http: bool = False
    #: Use HTTPS if the host speaks it, else HTTP. This is containers' `insecure = true`, and the rule for loopback
    #: hosts.
    has_http_fallback: bool = False
    #: Do not check the host's certificate.
    insecure: bool = False
    #: Keys (`plain-http`, `insecure`, `client-cert`) that a sync file sets for this host. They override the command
    #: line, which overrides the configuration.
    explicit_keys: frozenset[str] = frozenset()
    #: Files of CA certificates, trusted in addition to the system's.
    ca_files: tuple[str, ...] = ()
    #: Files of client certificates and their keys (PEM); the key may be in the certificate's file.
    client_certificates: tuple[tuple[str, str | None], ...] = ()
    #: The base URL of `/v2/` if it is not the host's root, such as `https://gateway.example.com/registry`.
    url: str | None = None
    #: Requests per second; None for no limit.
    requests_per_second: float | None = None
    #: The upload method, as in `--upload`; None to choose automatically.
    upload: str | None = None
    #: The registry's profile, a key of `registry.profiles.PROFILES_BY_NAME`; None to detect it.
    profile: str | None = None
