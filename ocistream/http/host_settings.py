"""The settings of one registry host: scheme, certificates, URL, rate and upload method. Values only."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HostSettings"]


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What holds for one `HOST[:PORT]`, or, of `insecure` and `may_be_plain`, for a part of its repositories."""

    #: Speak HTTP, not HTTPS.
    plain_http: bool = False
    #: Speak HTTPS where the host does, else HTTP: what containers' `insecure = true` means, and loopback.
    has_http_fallback: bool = False
    #: Do not check the host's certificate.
    insecure: bool = False
    #: Keys (`plain-http`, `insecure`, `client-cert`) that a file of this run sets for this host. They come before what
    #: the command line sets for all hosts.
    explicit_keys: frozenset[str] = frozenset()
    #: Files of CA certificates, to be trusted beside the system's.
    ca_files: tuple[str, ...] = ()
    #: Files of client certificates and their keys (PEM); the key may be in the certificate's file.
    client_certificates: tuple[tuple[str, str | None], ...] = ()
    #: The base under which `/v2/` is, where it is not the host's root: `https://gateway.example.com/registry`.
    url: str | None = None
    #: How many requests may be begun in a second; None for any number.
    requests_per_second: float | None = None
    #: How blobs are uploaded, as `--upload` has it; None where it is not said.
    upload: str | None = None
    #: What kind of registry it is, as `registry.profiles.NAMED` has it; None where that is found out.
    profile: str | None = None
