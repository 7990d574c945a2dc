"""Convert exceptions of requests and urllib3, and error responses of registries, into ocistream's errors."""

from __future__ import annotations

import errno
import http.client
import math
import socket
import ssl
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import requests
import urllib3.exceptions

from ocistream import limits
from ocistream.errors import (
    ArchiveError,
    AuthenticationError,
    NetworkError,
    NotFoundError,
    OcistreamError,
    PermanentNetworkError,
    RegistryError,
)
from ocistream.http.origins import redact_url
from ocistream.oci.reference import printable
from ocistream.oci.strict_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["describe_cause", "has_tls_peer", "network_error", "response_error"]

#: What the libraries below say of a URL, or of a proxy's, holds all of it: a password or a signature too.
_MALFORMED: Final = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    urllib3.exceptions.LocationValueError,
    http.client.InvalidURL,
)

#: OpenSSL's reasons that stand for an answer which is no TLS.
_NOT_TLS_REASONS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"}
)
#: Alerts by which a server says that it wants to know, by a certificate, who is there (RFC 8446, section 6.2).
_WANTS_CERTIFICATE: Final = ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE", "BAD_CERTIFICATE", "UNKNOWN_CA", "EXPIRED")
#: OpenSSL's codes (x509_vfy.h) of what is wrong with a certificate, and what to do about it. Of the first ones nobody
#: vouches for it.
_OWN_CA_HINT: Final = (
    "if the registry has a CA of its own, name its file with --ca-cert, put it into certs.d as HOST[:PORT]/ca.crt, or "
    "name a whole bundle with SSL_CERT_FILE"
)
_CERTIFICATE_HINTS: Final = {
    2: _OWN_CA_HINT,
    18: _OWN_CA_HINT,
    19: _OWN_CA_HINT,
    20: _OWN_CA_HINT,
    21: _OWN_CA_HINT,
    9: "it is not valid yet: is this machine's clock right?",
    10: "whoever runs the registry has to renew it; or is this machine's clock wrong?",
    62: "use the name that the certificate is for, or get one that is for this name too",
    64: "use the name that the certificate is for, or get one that is for this address too",
}
_CLIENT_CERTIFICATE_HINT: Final = (
    "the registry wants a client certificate that it trusts: --client-cert and --client-key, or client.cert and "
    "client.key in certs.d/HOST[:PORT]"
)
_TIMED_OUT: Final = "timed out"
_PROXY_HINT: Final = "the proxy is taken from HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY"
_TIMEOUT_HINT: Final = "--connect-timeout, --stall-timeout and --retries say how long to wait, and how often"
#: How the kernel says that nobody can be reached from here.
#: How resolvers say that there is no such name, or none with an address (getaddrinfo(3)). All else may pass.
_NO_SUCH_NAME: Final = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
_RESOLVER_HINT: Final = "is this machine connected, and does the resolver that /etc/resolv.conf names answer?"
_UNREACHABLE: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN})
_NAME_HINTS: Final = dict.fromkeys(_NO_SUCH_NAME, "is the name right?")
_HTTPS_HINT: Final = "the registry speaks HTTPS here: leave out --plain-http, or correct the port"
#: What servers say in the body of a 400 before any registry is asked, and what to do about it.
_HINTS_BY_BODY: Final = {
    b"No required SSL certificate was sent": _CLIENT_CERTIFICATE_HINT,
    b"The SSL certificate error": "the registry does not trust the client certificate that was shown",
    b"plain HTTP request was sent to HTTPS port": _HTTPS_HINT,
    b"Client sent an HTTP request to an HTTPS server": _HTTPS_HINT,
    b"speaking plain HTTP to an SSL-enabled server port": _HTTPS_HINT,
}

_DENIED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_LOST_BLOB_HINT: Final = "the registry has lost it: push the image there again, or tell whoever runs the registry"
_LOGIN_LIMIT_HINT: Final = ", or log in for a higher limit"
#: Units of time, how many seconds each has, and up to how many it is used.
_UNITS: Final = (("s", 1, 600), ("min", 60, 7_200), ("h", 3_600, 172_800), ("days", 86_400, limits.MAX_RETRY_AFTER))
#: Requests to which a registry says why it refuses them: what has no body, or is the first one of an upload.
_EXPLAINED_METHODS: Final = frozenset({"GET", "HEAD", "POST"})
_NOT_A_REGISTRY_HINT: Final = "is it a registry that answers there, or a web server or a proxy that stands before one?"
_HEAD_HINTS: Final = {
    True: "does the registry want a client certificate? --client-cert and --client-key show one",
    False: "does the registry speak HTTPS here? then leave out --plain-http, or correct the port",
}


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Walk to the root of what requests and urllib3 wrap, which is where the reason stands."""
    seen: set[int] = set()
    todo: list[BaseException] = [error]
    while todo:
        current = todo.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        inner = [current.__cause__, current.__context__, getattr(current, "reason", None), *current.args]
        todo.extend(item for item in reversed(inner) if isinstance(item, BaseException))


def describe_cause(error: BaseException) -> str:
    """Say why in a few words, without the object addresses and URLs that those libraries put in."""
    causes = list(_causes(error))
    for cause in causes:
        if (text := _known_reason(cause)) is not None:
            return text
    for cause in causes:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
    return printable(str(causes[-1])) or type(causes[-1]).__name__


def _known_reason(cause: BaseException) -> str | None:
    text: str | None = None
    if isinstance(cause, ssl.SSLCertVerificationError):
        text = f"the certificate is not trusted: {getattr(cause, 'verify_message', 'it does not verify')}"
    elif isinstance(cause, socket.gaierror):
        text = f"the host name cannot be resolved: {cause.strerror}"
    elif isinstance(cause, urllib3.exceptions.IncompleteRead):
        text = f"{cause.partial} bytes came, {cause.expected} more were promised"
    elif isinstance(cause, ssl.SSLError):
        said = getattr(cause, "reason", None) or "the connection broke off"
        text = f"TLS failed: {'it is not what the other side speaks' if said in _NOT_TLS_REASONS else said}"
    elif isinstance(cause, urllib3.exceptions.NewConnectionError):
        # urllib3 counts it among the time-outs, whatever the reason; that one lies deeper.
        text = None
    elif isinstance(cause, TimeoutError | urllib3.exceptions.TimeoutError | requests.Timeout):
        text = _TIMED_OUT
    elif isinstance(cause, _MALFORMED):
        text = "the URL, or that of a proxy, is malformed or of an unknown kind"
    return text


def network_error(method: str, url: str, error: Exception, *, known: bool = False) -> NetworkError:
    """Turn an exception of requests or urllib3 into one of ours, final where trying again is of no use.

    `known` says that this origin has answered before: then its name is not misspelt, and it does speak TLS. That the
    name is gone for a moment (a VPN that comes back), or that a balancer says in plain HTTP that it has nobody, passes.
    """
    final = False
    hint = None
    by_way_of = ""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            final, hint = True, _CERTIFICATE_HINTS.get(getattr(cause, "verify_code", 0), _OWN_CA_HINT)
        elif isinstance(cause, ssl.SSLEOFError):
            hint = "if it happens again: does the registry want a client certificate (--client-cert)?"
        elif isinstance(cause, ssl.SSLError) and (found := _tls_hint(cause)):
            # With the wrong client certificate, or none, it is the answer that fails.
            final, hint = not known or found == _CLIENT_CERTIFICATE_HINT, found
        elif isinstance(cause, socket.gaierror):
            final, hint = cause.errno in _NO_SUCH_NAME and not known, _NAME_HINTS.get(cause.errno, _RESOLVER_HINT)
        elif isinstance(cause, requests.exceptions.ProxyError):
            hint, by_way_of = _PROXY_HINT, "by its proxy: "
        elif isinstance(cause, OSError) and "407 Proxy Authentication Required" in str(cause):
            final, hint = True, "name the proxy's user and password too: HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT"
        elif isinstance(cause, (*_MALFORMED, requests.exceptions.InvalidHeader)):
            final = True
            hint = _PROXY_HINT if isinstance(cause, _MALFORMED) else hint
    text = describe_cause(error)
    if hint is None:
        hint = _TIMEOUT_HINT if text == _TIMED_OUT else _connection_hint(error, url, known=known)
    kind = PermanentNetworkError if final else NetworkError
    return kind(f"{method} {redact_url(url)}: {by_way_of}{text}", hint=hint)


def _connection_hint(error: Exception, url: str, *, known: bool) -> str | None:
    """Say what to do where nobody answers, and nothing else is known."""
    for cause in _causes(error):
        if isinstance(cause, ConnectionRefusedError):
            return "does the registry run there, and is its port right?"
        if isinstance(cause, OSError) and cause.errno in _UNREACHABLE:
            return "is this machine connected, and is there a way from here to the registry?"
        if isinstance(cause, http.client.RemoteDisconnected) and not known:
            return _HEAD_HINTS[False] if url.startswith("http:") else _NOT_A_REGISTRY_HINT
    return None


def _tls_hint(error: ssl.SSLError) -> str | None:
    said = getattr(error, "reason", None) or ""
    if said in _NOT_TLS_REASONS:
        return "the registry seems to speak plain HTTP: --plain-http"
    if "ALERT" in said and said.endswith(_WANTS_CERTIFICATE):
        return _CLIENT_CERTIFICATE_HINT
    return None


def has_tls_peer(error: NetworkError) -> bool | None:
    """Say whether somebody who speaks TLS was there, after an attempt at that failed; None if nobody was.

    An alert is an answer in TLS. What is none, and a connection that breaks over the first bytes, is of somebody else.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            return "ALERT" in (getattr(cause, "reason", None) or "")
        if isinstance(cause, ConnectionResetError | BrokenPipeError | http.client.RemoteDisconnected):
            return False
    return None


def _format_duration(seconds: float) -> str:
    """Give a time to wait as people say it, and not shorter than it is."""
    for unit, length, longest in _UNITS:
        if seconds < longest:
            return f"{math.ceil(seconds / length)} {unit}"
    return "a year or more"


def _parse_error_body(raw: bytes) -> tuple[tuple[str, ...], str]:
    """Read the distribution-spec's error body: its codes, and its first message made printable."""
    try:
        errors = parse_json(raw, "error", limits.MAX_ERROR_BODY).get("errors")
    except ArchiveError:
        return (), ""
    if not isinstance(errors, list):
        return (), ""
    found = [entry for entry in errors if isinstance(entry, dict)]
    codes = tuple(dict.fromkeys(printable(entry["code"], 64) for entry in found if isinstance(entry.get("code"), str)))
    messages = [entry["message"] for entry in found if isinstance(entry.get("message"), str)]
    return codes, printable(messages[0], 300) if messages else ""


def response_error(
    registry: str,
    method: str,
    url: str,
    status: int,
    body: bytes,
    wait: float | None = None,
    *,
    elsewhere: bool = False,
) -> OcistreamError:
    """Say what a registry's answer means, in one line without secrets.

    `body` is its beginning, `wait` the seconds after which it asks to be asked again. `elsewhere` says that it is no
    answer of the registry's, but of another host that it has led to, at `url`.
    """
    codes, message = _parse_error_body(body)
    said = ": ".join(part for part in (" ".join(codes), message) if part)
    what = f"{method} {redact_url(url)}: {status}" + (f" {said}" if said else "")
    who = printable(urlsplit(url).netloc.rpartition("@")[2]) if elsewhere else "the registry"
    if elsewhere and status in _DENIED:
        # Nobody can log in there: it is the registry's failure, and may be another signature's turn the next time.
        hint = f"{registry} has led there, where no login counts: try again, or tell whoever runs {registry}"
        return RegistryError(f"{who} refused: {what}", status=status, codes=codes, hint=hint)
    if status in _DENIED:
        hint = f"is the name right, and may you do this? `ocistream login {registry}` sets a credential"
        return AuthenticationError(f"{registry} refused: {what}", hint=hint)
    if status == HTTPStatus.NOT_FOUND:
        lost = "/blobs/sha" in urlsplit(url).path and method == "GET"
        return NotFoundError(what, codes=codes, hint=_LOST_BLOB_HINT if lost else None)
    length = f" {_format_duration(wait)}" if wait else ""
    pause: str | None = f"{who} asks to be left alone for{length}" if wait else None
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        pause = f"{who} limits how much it gives: wait{length}" + ("" if elsewhere else _LOGIN_LIMIT_HINT)
    if status == HTTPStatus.BAD_REQUEST:
        pause = next((hint for words, hint in _HINTS_BY_BODY.items() if words in body), None)
        if method == "HEAD":
            # It has no body that could say why.
            pause = _HEAD_HINTS[url.startswith("https:")]
    elif status >= HTTPStatus.INTERNAL_SERVER_ERROR and pause is None:
        pause = f"{who} is in trouble: try again later; --retries says how often that is done here"
    elif status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        pause = "name the proxy's user and password too: HTTP_PROXY=http://USER:PASSWORD@HOST:PORT"
    if status < HTTPStatus.INTERNAL_SERVER_ERROR and pause is None and not codes and method in _EXPLAINED_METHODS:
        pause = _NOT_A_REGISTRY_HINT
    return RegistryError(what, status=status, codes=codes, hint=pause, retry_after=wait)
