"""Origins of URLs, and where an origin may lead: redirects, internal addresses, hosts without a proxy."""

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

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
#: Addresses of instance metadata services outside of the link-local range: Alibaba's, and AWS's over IPv6.
_METADATA_ADDRESSES: Final = frozenset(map(ipaddress.ip_address, ("100.100.100.200", "fd00:ec2::254")))
#: The end of the error messages for a target that is refused.
_INTERNAL_ADDRESS: Final = "an address inside this machine or network: not followed"
#: Size of the cache of origins: one request asks for the origin of its URL several times.
_CACHED_ORIGINS: Final = 32
#: Characters that are not allowed in a request line.
_UNSENDABLE: Final = re.compile(r"[^\x21-\x7e]+")
#: Scheme and authority of a URL, and its path and query.
_TARGET: Final = re.compile(r"[^:/]*://[^/?#]*([^#]*)")
#: An entry of NO_PROXY that is not an address: a host or domain, optionally with a leading dot and a port.
_NO_PROXY: Final = re.compile(r"\.?(\[[^\]]+\]|[^:]+)(?::([0-9]{1,5}))?\Z")


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port: the unit for which a credential is valid. `:443` and no port are equal (oras-go#177)."""

    scheme: str
    host: str
    port: int

    @staticmethod
    def from_url(url: str) -> Origin:
        """Return the origin of a URL.

        Raises:
            NetworkError: it is not an http or https URL with a host.
        """
        # Scheme and authority end before the third slash. Complete URLs, some of them signed, are not cached.
        return _parse_origin("/".join(url.split("/", 3)[:3]))

    def __str__(self) -> str:
        """Return the URL of the origin, without a path."""
        return f"{self.scheme}://{self.host_and_port}"

    @property
    def host_and_port(self) -> str:
        """`HOST[:PORT]`, without the scheme's default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@lru_cache(maxsize=_CACHED_ORIGINS)
def _parse_origin(url: str) -> Origin:
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


def internal_address_error(host: str) -> PermanentNetworkError:
    """Return the error for an external host, or a redirect from one, that resolved to an internal address."""
    return PermanentNetworkError(f"{host} is a public name, but now resolves to {_INTERNAL_ADDRESS}")


def resolve_url(base: str, location: str) -> str:
    """Return the absolute URL of a Location in the response to a request for `base`.

    The URL stays the same byte for byte, since it may be signed (distribution-spec#79). Only characters that cannot be
    sent are percent-encoded.

    Raises:
        PermanentNetworkError: the Location is malformed.
    """
    try:
        # http.client decodes header bytes as Latin-1.
        return urljoin(base, _UNSENDABLE.sub(lambda match: quote(match[0], safe="", encoding="latin-1"), location))
    except ValueError as error:
        msg = f"{redact_url(base)} points to {redact_url(location)}, which is not a URL"
        raise PermanentNetworkError(msg) from error


def request_target(url: str) -> str:
    """Return path and query of an http or https URL, byte for byte (RFC 9112, section 3.2.1)."""
    match = _TARGET.match(url)
    target = match[1] if match else ""
    return target if target.startswith("/") else f"/{target}"


def redact_url(url: str) -> str:
    """Return a URL for messages: without user, password, query (which may be a signature) and fragment."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "(a malformed URL)"
    return printable(f"{parts.scheme}://{host}{parts.path}" + ("?..." if parts.query else ""), 400)


def is_loopback(host: str) -> bool:
    """Return whether a host name means this machine: then plain HTTP is possible without an option."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_proxy_bypassed(url: str, no_proxy: str) -> bool:
    """Return whether a URL is requested without a proxy: it is on this machine, or NO_PROXY matches.

    `no_proxy` lists hosts and domains, optionally with a port, addresses and networks (`10.0.0.0/8`); `*` matches all.
    (requests' own function writes to the environment, which breaks with several threads.)
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
            # The entry is not a network, but may still be an address with a port.
            pass
    match = _NO_PROXY.match(entry)
    if match is None or (match[2] and int(match[2]) != origin.port):
        return False
    name = match[1].strip("[]")
    if _is_address(origin.host):
        # An address has several spellings.
        return _is_address(name) and ipaddress.ip_address(name) == ipaddress.ip_address(origin.host)
    return origin.host == name or origin.host.endswith(f".{name}")


def is_internal(host: str) -> bool:
    """Return whether a host is or resolves to an internal address; a host that does not resolve is not."""
    try:
        addresses = {host} if _is_address(host) else {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return any(is_internal_address(text) for text in addresses)


def is_internal_address(text: str) -> bool:
    """Return whether an IP address is loopback, link-local, unspecified or a metadata service's."""
    address = ipaddress.ip_address(text.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_link_local or address.is_unspecified or address in _METADATA_ADDRESSES


def check_target(origin: Origin, url: str, *, refuses_internal: bool) -> None:
    """Refuse a redirect, Location, Link or realm that leads to a forbidden place.

    The connection checks the address again, because a name may resolve to another address by then. Behind a proxy this
    check is the only one. `refuses_internal` says that `origin` is another host, with an external address.

    Raises:
        PermanentNetworkError: from https to http (CVE-2026-48978), or from an external host to an internal address.
    """
    target = Origin.from_url(url)
    if origin.scheme == "https" and target.scheme != "https":
        msg = f"{origin.host} uses https, but points to {redact_url(url)}: not followed"
        hint = "a proxy in front of the registry does not send X-Forwarded-Proto: https"
        raise PermanentNetworkError(msg, hint=hint if target.host == origin.host else None)
    if refuses_internal and is_internal(target.host):
        msg = f"{origin.host} points to {target.host}, {_INTERNAL_ADDRESS}"
        raise PermanentNetworkError(msg)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
