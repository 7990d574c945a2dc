"""Network settings of the user that apply to all hosts: timeouts, retries, TLS, proxies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.http.retry import RetryPolicy
from ocistream.http.tls import TlsSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["HttpSettings"]


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
    ca_file: str | None = None
    #: TLS settings of the command line. Its CAs apply to all hosts. Its client certificates and `insecure` apply only
    #: to registries that the command line names (`ocistream.http.endpoints`).
    tls: TlsSettings = field(default_factory=TlsSettings)
    #: Requests per second to each host whose own settings have no limit.
    requests_per_second: float | None = None
    #: Scheme to proxy URL, and `no_proxy` to a list of hosts, named as in the environment.
    proxies: Mapping[str, str] = field(default_factory=dict)
    user_agent: str = "ocistream"
    #: Rewrites the option names in a hint as the user writes them: `--src-ca-cert` for `--ca-cert`. Each side of a copy
    #: has its own client with its own options.
    format_hint: Callable[[str], str] = str

    def response_timeout(self, stored: float) -> float:
        """Return how many seconds to wait for a response if the registry must store `stored` bytes first."""
        longest = max(self.store_timeout, self.stall_timeout)
        return min(longest, self.stall_timeout + stored / self.store_rate)
