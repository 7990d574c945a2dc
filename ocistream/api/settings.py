"""Settings of a client: the values of options, with the command line's names, meanings and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import UsageError
from ocistream.oci.reference import printable
from ocistream.sizes import parse_size

if TYPE_CHECKING:
    from ocistream.http.settings import TlsSettings
    from ocistream.registry.configuration import HostRule

__all__ = [
    "CONNECT_TIMEOUT",
    "JOBS",
    "MAX_JOBS",
    "MAX_RETRIES",
    "RETRIES",
    "STALL_TIMEOUT",
    "RegistrySettings",
    "TlsFiles",
    "parse_limit_rate",
    "parse_memory",
    "parse_split",
]

#: Attempts after the first one.
RETRIES: Final = 5
MAX_RETRIES: Final = 20
#: Seconds.
CONNECT_TIMEOUT: Final = 15
#: Seconds without a byte.
STALL_TIMEOUT: Final = 60
#: Blobs that move at once, and connections that prefetch them.
JOBS: Final = 4
MAX_JOBS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Files of certificates (PEM): CAs to trust besides the system's, and a client certificate with its key.

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
            raise UsageError(msg)
        directory = directory or TlsSettings()
        return TlsSettings(
            ((self.ca_cert,) if self.ca_cert else ()) + directory.ca_files,
            ((self.client_cert, self.client_key),) if self.client_cert else directory.client_certificates,
            insecure,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """Settings of one registry, for which they replace those of the client; None keeps the client's."""

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


def parse_limit_rate(value: str | float) -> float:
    """Return bytes per second, written as for curl's --limit-rate: `500k`, `10M`, `1G`.

    Raises:
        UsageError: the value is not a rate.
    """
    size = parse_size(value, fractions=True) if isinstance(value, str) else value
    if not size or size < 0:
        msg = f"--limit-rate {printable(str(value), 40)!r} is no rate in bytes a second"
        raise UsageError(msg, hint="such as 500k, 10M or 1G")
    return float(size)


def parse_memory(value: str | int) -> int:
    """Return the bytes of --memory.

    Raises:
        UsageError: the value is not a size, or out of range.
    """
    size = parse_size(value, fractions=True) if isinstance(value, str) else value
    if size is None or not limits.MIB <= size <= limits.MAX_PREFETCH_MEMORY:
        msg = f"--memory {printable(str(value), 40)!r} is no size from 1MiB to {limits.MAX_PREFETCH_MEMORY >> 30}GiB"
        raise UsageError(msg, hint="write it as in --memory 64MiB")
    return size


def parse_split(value: str | int) -> int:
    """Return the bytes of --split.

    Raises:
        UsageError: the value is not a size.
    """
    size = parse_size(value, fractions=True) if isinstance(value, str) else value
    if not size or size < 0:
        msg = f"--split {printable(str(value), 40)!r} is no size"
        raise UsageError(msg, hint="write it as in --split 700MiB, or --split 4294967295, which is FAT32's limit")
    return size
