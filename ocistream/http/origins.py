"""Origins of URLs, and the rules for redirect targets, internal addresses and proxies; redact URLs."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

from ocistream.errors import PermanentNetworkError
from ocistream.oci.reference import printable

__all__ = [
    "Origin",
    "check_target",
    "internal_address_error",
    "is_internal",
    "is_internal_address",
    "is_loopback",
    "is_proxy_bypassed",
    "redact_url",
    "resolve_url",
]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
#: Instance metadata services outside of the link-local range: Alibaba's, and AWS's over IPv6.
_METADATA_ADDRESSES: Final = frozenset(map(ipaddress.ip_address, ("100.100.100.200", "fd00:ec2::254")))
_INTERNAL: Final = "an address inside of this machine or network: not followed"
#: URLs of which the origin is remembered: each is asked for several times in the course of one request.
_CACHED_ORIGINS: Final = 32
#: What cannot stand in a request's first line.
_UNSENDABLE: Final = re.compile(r"[^\x21-\x7e]+")
#: An entry of NO_PROXY that is no address: a host or a domain, with or without its first dot, and perhaps a port.
_NO_PROXY: Final = re.compile(r"\.?(\[[^\]]+\]|[^:]+)(?::([0-9]{1,5}))?\Z")


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port: what a credential is for. `:443` and no port are the same (oras-go#177)."""

    scheme: str
    host: str
    port: int

    @staticmethod
    def from_url(url: str) -> Origin:
        """Take the origin of a URL.

        Raises:
            NetworkError: it is not an http or https URL with a host.
        """
        return _origin_of(url)


@lru_cache(maxsize=_CACHED_ORIGINS)
def _origin_of(url: str) -> Origin:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
        parts = urlsplit("")
    if parts.scheme not in _DEFAULT_PORTS or not host:
        msg = f"{redact_url(url)} is not an http or https URL"
        raise PermanentNetworkError(msg)
    return Origin(parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme])


def check_target(home: Origin, url: str, *, is_outside: bool | None = None) -> None:
    """Refuse a redirect, Location, Link or realm that leads somewhere it has no business to lead.

    What is resolved here may be resolved to something else when it is connected to; whoever connects looks at that.
    `is_outside` says whether `home` has answered from outside; None where that is not known, and its name has to do.

    Raises:
        FinalNetworkError: from https to http (CVE-2026-48978), or from a host outside to an address of this machine.
    """
    target = Origin.from_url(url)
    if home.scheme == "https" and target.scheme != "https":
        msg = f"{home.host} leads from https to {redact_url(url)}: not followed"
        hint = "a proxy in front of the registry does not tell it that it is reached by https (X-Forwarded-Proto)"
        raise PermanentNetworkError(msg, hint=hint if target.host == home.host else None)
    if target.host == home.host or not is_internal(target.host):
        return
    if not is_internal(home.host) if is_outside is None else is_outside:
        msg = f"{home.host} leads to {target.host}, {_INTERNAL}"
        raise PermanentNetworkError(msg)


def internal_address_error(host: str) -> PermanentNetworkError:
    """Say that a host which is outside, or was led to from there, was connected to in here."""
    return PermanentNetworkError(f"{host} is outside by its name, and now leads to {_INTERNAL}")


def resolve_url(base: str, location: str) -> str:
    """Give the URL that a Location means, which may be relative, in the answer to a request for `base`.

    It stays as it is, byte for byte, since it may be signed (distribution-spec#79); only what cannot be sent is
    percent-encoded.

    Raises:
        FinalNetworkError: it is malformed.
    """
    try:
        # A header's bytes were read as Latin-1.
        return urljoin(base, _UNSENDABLE.sub(lambda match: quote(match[0], safe="", encoding="latin-1"), location))
    except ValueError as error:
        msg = f"{redact_url(base)} leads to {redact_url(location)}"
        raise PermanentNetworkError(msg) from error


def redact_url(url: str) -> str:
    """Give a URL for people: without user, password, query (which may be a signature) and fragment."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "(a malformed URL)"
    return printable(f"{parts.scheme}://{host}{parts.path}" + ("?..." if parts.query else ""), 400)


def is_loopback(host: str) -> bool:
    """Say whether a host's name means this machine, so that plain HTTP needs no asking."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_proxy_bypassed(url: str, no_proxy: str) -> bool:
    """Say whether a URL is asked for without a proxy: on this machine, or because NO_PROXY says so.

    `no_proxy` is a list of hosts and domains, perhaps with a port, of addresses and networks (`10.0.0.0/8`); `*` is
    everything. (requests has a function for it, which writes to the environment; with several threads that breaks.)
    """
    origin = Origin.from_url(url)
    return is_loopback(origin.host) or any(
        entry == "*" or _is_exempt(entry, origin) for entry in no_proxy.lower().replace(",", " ").split()
    )


def _is_exempt(entry: str, origin: Origin) -> bool:
    if _is_address(origin.host):
        try:
            return ipaddress.ip_address(origin.host) in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            # It is no network, but may still be the address with a port.
            pass
    match = _NO_PROXY.match(entry)
    if match is None or (match[2] and int(match[2]) != origin.port):
        return False
    name = match[1].strip("[]")
    if _is_address(origin.host):
        # One address has several spellings.
        return _is_address(name) and ipaddress.ip_address(name) == ipaddress.ip_address(origin.host)
    return origin.host == name or origin.host.endswith(f".{name}")


def is_internal(host: str) -> bool:
    """Say whether a host is, or resolves to, an inward address; one that does not resolve is not."""
    try:
        found = {host} if _is_address(host) else {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return any(is_internal_address(text) for text in found)


def is_internal_address(text: str) -> bool:
    """Say whether an IP address is loopback, link-local, unspecified or a metadata service's."""
    address = ipaddress.ip_address(text.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_link_local or address.is_unspecified or address in _METADATA_ADDRESSES


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
