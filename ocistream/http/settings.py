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
    """What the user may set of the network. Times are in seconds."""

    #: Hosts other than loopback ones speak plain HTTP too.
    plain_http: bool = False
    connect_timeout: float = 15.0
    #: A read or write that moves no byte for so long is a stall. There is no limit for the whole of a transfer.
    stall_timeout: float = 60.0
    #: The longest that a registry may be silent after the last byte of a blob: some move or hash all of it before they
    #: answer, and a hundred gigabytes on a slow disk or in an object store take minutes.
    store_timeout: float = 900.0
    #: So many bytes of it are moved or hashed in a second by the slowest storage: a small blob is stored at once.
    store_rate: float = 4.0 * limits.MIB
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    #: A file or directory of CA certificates in place of the system's.
    ca_file: str | None = None
    #: What the user named. Its CAs are for all hosts; its client certificates, and that certificates are not checked,
    #: for the registries that were named too, and for no other (`ocistream.http.endpoints`).
    tls: TlsSettings = field(default_factory=TlsSettings)
    #: Requests that are begun in a second, to each host whose own settings do not say otherwise.
    requests_per_second: float | None = None
    #: Scheme to proxy URL, and `no_proxy` to a list of hosts, as the environment names them.
    proxies: Mapping[str, str] = field(default_factory=dict)
    user_agent: str = "ocistream"
    #: Gives a hint with the options in it as the user writes them: `--src-ca-cert` for `--ca-cert`.
    format_hint: Callable[[str], str] = str

    def response_timeout(self, stored: float) -> float:
        """Say how many seconds an answer may be waited for, before which so many bytes have to be stored."""
        longest = max(self.store_timeout, self.stall_timeout)
        return min(longest, self.stall_timeout + stored / self.store_rate)
