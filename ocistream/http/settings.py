"""Settings of the HTTP client: for all hosts, for one host, for TLS and for retries. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from ocistream import limits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Attempts, and the limits in seconds for connecting, for a stalled connection and for Retry-After, where another
#: location can be asked: a dead mirror must cost only seconds.
_QUICK_ATTEMPTS: Final = 2
_QUICK_CONNECT_TIMEOUT: Final = 5.0
_QUICK_STALL_TIMEOUT: Final = 20.0
_QUICK_RETRY_AFTER: Final = 3.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to retry. Times are in seconds."""

    #: Maximum number of attempts for one piece of work.
    attempts: int = 6
    #: The first wait. It doubles up to `backoff_limit`, with jitter.
    backoff: float = 0.4
    backoff_limit: float = 20.0
    #: The longest `Retry-After` that is obeyed.
    retry_after_limit: float = 300.0


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """TLS settings for the connections to one host. Equal settings share a context."""

    #: Files of CA certificates (PEM), trusted in addition to the system's.
    ca_files: tuple[str, ...] = ()
    #: Files of client certificates and their keys (PEM); None if the key is in the certificate's file.
    client_certificates: tuple[tuple[str, str | None], ...] = ()
    #: Do not check the host's certificate.
    insecure: bool = False


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
    #: Keys (`plain-http`, `insecure`, `ca-cert`, `client-cert`) that a sync file or a `Client` sets for this host. They
    #: override the command line, which overrides the configuration.
    overriding_keys: frozenset[str] = frozenset()
    #: Files of CA certificates, trusted in addition to the system's.
    ca_files: tuple[str, ...] = ()
    #: Files of client certificates and their keys (PEM); the key may be in the certificate's file.
    client_certificates: tuple[tuple[str, str | None], ...] = ()
    #: The base URL of `/v2/` if it is not the host's root, such as `https://gateway.example.com/registry`.
    url: str | None = None
    #: Requests per second; None for no limit.
    requests_per_second: float | None = None
    #: Bytes per second in each direction, over all connections to this host and those that it redirects to.
    limit_rate: float | None = None
    #: Parallel blobs and connections; None for the limit of `--jobs`.
    jobs: int | None = None
    #: The upload method, as in `--upload`; None to choose automatically.
    upload: str | None = None
    #: The registry's profile, a key of `registry.profiles.PROFILES_BY_NAME`; None to detect it.
    profile: str | None = None


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Network settings for all hosts. Times are in seconds."""

    #: Use plain HTTP for hosts other than loopback, too.
    plain_http: bool = False
    connect_timeout: float = 15.0
    #: Abort a read or write after this many seconds without data. The total time is not limited.
    stall_timeout: float = 60.0
    #: The longest silence after the last byte of a blob. Some registries move or hash the complete blob before they
    #: respond; a hundred gigabytes on a slow disk or object store take minutes.
    store_timeout: float = 900.0
    #: Bytes per second that the slowest storage moves or hashes. It keeps the wait for small blobs short.
    store_rate: float = 4.0 * limits.MIB
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    #: A file or directory of CA certificates in place of the system's.
    ca_bundle: str | None = None
    #: TLS settings of the command line. Its CAs apply to all hosts. Its client certificates and `insecure` apply only
    #: to registries that the command line names (`HttpClient.endpoint`).
    tls: TlsSettings = field(default_factory=TlsSettings)
    #: Requests per second to each host whose own settings have no limit.
    requests_per_second: float | None = None
    #: Scheme to proxy URL, and `no_proxy` to a list of hosts, named as in the environment.
    proxies: Mapping[str, str] = field(default_factory=dict)
    user_agent: str = "ocistream"
    #: Rewrites the option names in a hint as the user writes them: `--src-ca-cert` for `--ca-cert`. Each side of a copy
    #: has its own client with its own options.
    format_hint: Callable[[str], str] = str

    def response_timeout(self, bytes_to_store: float) -> float:
        """Return how many seconds to wait for a response if the registry must store so many bytes first."""
        longest = max(self.store_timeout, self.stall_timeout)
        return min(longest, self.stall_timeout + bytes_to_store / self.store_rate)

    def shorten_timeouts(self) -> HttpSettings:
        """Return these settings with fewer attempts and shorter time-outs."""
        retry_policy = replace(
            self.retry_policy,
            attempts=min(self.retry_policy.attempts, _QUICK_ATTEMPTS),
            retry_after_limit=min(self.retry_policy.retry_after_limit, _QUICK_RETRY_AFTER),
        )
        return replace(
            self,
            retry_policy=retry_policy,
            connect_timeout=min(self.connect_timeout, _QUICK_CONNECT_TIMEOUT),
            stall_timeout=min(self.stall_timeout, _QUICK_STALL_TIMEOUT),
        )
