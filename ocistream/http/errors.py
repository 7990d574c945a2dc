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
    from collections.abc import Iterator, Sequence

    from ocistream.http.response import Response

#: The messages of these exceptions contain the complete URL, with any password or signature in it.
_MALFORMED: Final = (
    requests.exceptions.InvalidURL,
    urllib3.exceptions.LocationValueError,
    http.client.InvalidURL,
)

#: OpenSSL's reasons for a response that is not TLS.
_NOT_TLS_REASONS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"}
)
#: Alerts of a server that requires a client certificate (RFC 8446, section 6.2).
_WANTS_CERTIFICATE: Final = ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE", "BAD_CERTIFICATE", "UNKNOWN_CA", "EXPIRED")
#: OpenSSL's verification errors (x509_vfy.h) with their hints. For the first five, no trusted CA has signed the
#: certificate.
_OWN_CA_HINT: Final = (
    "if the registry has its own CA, use --ca-cert FILE, copy it to "
    "~/.config/containers/certs.d/HOST[:PORT]/ca.crt, or set SSL_CERT_FILE to a file with all CAs to trust"
)
_CERTIFICATE_HINTS: Final = {
    2: _OWN_CA_HINT,
    18: _OWN_CA_HINT,
    19: _OWN_CA_HINT,
    20: _OWN_CA_HINT,
    21: _OWN_CA_HINT,
    9: "the certificate is not valid yet: check the clock of this machine",
    10: "the administrator of the registry must renew it; also check the clock of this machine",
    62: "use the host name of the certificate, or get a certificate for this name",
    64: "use the host name of the certificate, or get a certificate for this address",
}
_CLIENT_CERTIFICATE_HINT: Final = (
    "the registry requires a client certificate that it trusts: use --client-cert and "
    "--client-key, or client.cert and client.key in certs.d/HOST[:PORT]"
)
_TIMED_OUT: Final = "timed out"
_PROXY_HINT: Final = "check the proxy in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, or exclude this host with NO_PROXY"
_TIMEOUT_HINT: Final = "--connect-timeout, --stall-timeout and --retries change how long and how often ocistream tries"
#: getaddrinfo(3) codes for a name that does not exist or has no address. Other codes may be temporary.
_NO_SUCH_NAME: Final = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
_RESOLVER_HINT: Final = "check the network of this machine and the resolver in /etc/resolv.conf"
#: Errors of the kernel for a network or host that this machine cannot reach.
_UNREACHABLE: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN})
_NAME_HINTS: Final = dict.fromkeys(_NO_SUCH_NAME, "check the host name, and the network of this machine")
_HTTPS_HINT: Final = "the registry uses HTTPS here: omit --plain-http, or correct the port"
#: Texts in the body of a 400 that servers send before the registry sees the request, with their hints.
_HINTS_BY_BODY: Final = {
    b"No required SSL certificate was sent": _CLIENT_CERTIFICATE_HINT,
    b"The SSL certificate error": "the registry does not trust the client certificate",
    b"plain HTTP request was sent to HTTPS port": _HTTPS_HINT,
    b"Client sent an HTTP request to an HTTPS server": _HTTPS_HINT,
    b"speaking plain HTTP to an SSL-enabled server port": _HTTPS_HINT,
}

_DENIED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_LOST_BLOB_HINT: Final = (
    "the registry has lost this blob: push the image again, or contact the administrator of the registry"
)
#: For a 413; an upload has more advice.
TOO_LARGE_HINT: Final = (
    "the registry or a proxy limits the size of a request (nginx: client_max_body_size): raise the limit"
)
_HINTS_BY_STATUS: Final[dict[int, str]] = {
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: "add the user and password of the proxy: "
    "HTTP_PROXY=http://USER:PASSWORD@HOST:PORT",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: TOO_LARGE_HINT,
}
_LOGIN_LIMIT_HINT: Final = ", or log in for a higher limit"
#: Units of time, their length in seconds, and the limit in seconds up to which each is used.
_UNITS: Final = (("s", 1, 600), ("min", 60, 7_200), ("h", 3_600, 172_800), ("days", 86_400, limits.MAX_RETRY_AFTER))
#: Requests whose refusal a registry explains: requests without a body, and the first request of an upload.
_EXPLAINED_METHODS: Final = frozenset({"GET", "HEAD", "POST"})
_NOT_A_REGISTRY_HINT: Final = "the answer may come from a web server or a proxy instead of a registry"
#: How a web page begins, in lower case. No registry answers with one, but a proxy before it may.
_WEB_PAGE_MARKS: Final = (b"<!doctype html", b"<html", b"<head")
#: Hints where the server gives no reason: a response to HEAD has no body.
_MAYBE_CLIENT_CERTIFICATE_HINT: Final = (
    "if the registry requires a client certificate, use --client-cert and --client-key"
)
_MAYBE_HTTPS_HINT: Final = "if the registry uses HTTPS here, omit --plain-http, or correct the port"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and the exceptions that it wraps: requests and urllib3 hide the real reason."""
    seen: set[int] = set()
    pending: list[BaseException] = [error]
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        context = None if current.__suppress_context__ else current.__context__
        inner = [current.__cause__, context, getattr(current, "reason", None), *current.args]
        pending.extend(item for item in reversed(inner) if isinstance(item, BaseException))


def describe_cause(error: BaseException) -> str:
    """Return the reason in a few words, without the object addresses and URLs that the libraries add."""
    causes = list(_causes(error))
    for cause in causes:
        if (text := _known_reason(cause)) is not None:
            return text
    for cause in causes:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
    return printable(str(causes[-1])) or type(causes[-1]).__name__


def _is_not_http(cause: BaseException) -> bool:
    # Not its subclass: a server that closes the connection may speak HTTP.
    return type(cause) is http.client.BadStatusLine


def _known_reason(cause: BaseException) -> str | None:
    text: str | None = None
    if isinstance(cause, ssl.SSLCertVerificationError):
        text = f"the certificate is not trusted: {getattr(cause, 'verify_message', 'verification failed')}"
    elif isinstance(cause, socket.gaierror):
        text = f"the host name cannot be resolved: {cause.strerror}"
    elif isinstance(cause, ssl.SSLError):
        reason = getattr(cause, "reason", None) or "the connection was cut"
        text = f"TLS failed: {'the server does not speak TLS' if reason in _NOT_TLS_REASONS else reason}"
    elif isinstance(cause, urllib3.exceptions.NewConnectionError):
        # urllib3 derives this class from its timeout exception for every reason; the real reason is a deeper cause.
        text = None
    elif isinstance(cause, TimeoutError | urllib3.exceptions.TimeoutError):
        text = _TIMED_OUT
    elif isinstance(cause, http.client.RemoteDisconnected):
        text = "the server closed the connection without an answer"
    elif isinstance(cause, http.client.IncompleteRead):
        text = "the server closed the connection too early"
    elif _is_not_http(cause):
        text = f"the answer is not HTTP: {printable(str(cause).strip(), 80)}"
    elif isinstance(cause, _MALFORMED):
        text = "the URL or the URL of a proxy is malformed or unsupported"
    return text


def _certificate_hint(cause: ssl.SSLCertVerificationError, ca_files: Sequence[str]) -> str:
    hint = _CERTIFICATE_HINTS.get(getattr(cause, "verify_code", 0), _OWN_CA_HINT)
    if hint != _OWN_CA_HINT or not ca_files:
        return hint
    shown = " and ".join(printable(path, 1024) for path in ca_files)
    return (
        f"{shown} {'do' if ca_files[1:] else 'does'} not contain the CA of this host: give its CA with --ca-cert FILE"
    )


def network_error(
    method: str, url: str, error: Exception, *, has_answered: bool = False, ca_files: Sequence[str] = ()
) -> NetworkError:
    """Convert an exception of requests or urllib3; the error is permanent if a retry is useless.

    `has_answered` says that this origin has responded before. Then its name is not misspelt and its scheme is right. A
    name that does not resolve (a VPN that reconnects) or a plain response of a load balancer is then temporary. A
    certificate that does not verify is always permanent. `ca_files` are the CAs that the user named for this host.
    """
    # http.client raises ValueError for a header that it cannot send.
    is_permanent = isinstance(error, ValueError)
    hint = None
    prefix = ""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            is_permanent, hint = True, _certificate_hint(cause, ca_files)
        elif isinstance(cause, ssl.SSLEOFError):
            hint = "if it happens again, the registry may require a client certificate (--client-cert)"
        elif isinstance(cause, ssl.SSLError) and (tls_hint := _tls_hint(cause)):
            # A retry does not repair a wrong or missing client certificate, also if the origin has answered before.
            is_permanent, hint = not has_answered or tls_hint == _CLIENT_CERTIFICATE_HINT, tls_hint
        elif isinstance(cause, socket.gaierror):
            is_permanent = cause.errno in _NO_SUCH_NAME and not has_answered
            # The name may be that of the proxy.
            hint = hint if prefix else _NAME_HINTS.get(cause.errno, _RESOLVER_HINT)
        elif isinstance(cause, requests.exceptions.ProxyError):
            hint, prefix = _PROXY_HINT, "cannot connect to the proxy: "
        elif isinstance(cause, OSError) and "407 Proxy Authentication Required" in str(cause):
            is_permanent, hint = (
                True,
                "add the user and password of the proxy: HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT",
            )
        elif isinstance(cause, _MALFORMED):
            is_permanent, hint = True, _PROXY_HINT
    text = describe_cause(error)
    if hint is None:
        hint = _TIMEOUT_HINT if text == _TIMED_OUT else _connection_hint(error, url, has_answered=has_answered)
    kind = PermanentNetworkError if is_permanent else NetworkError
    return kind(f"{method} {redact_url(url)}: {prefix}{text}", hint=hint)


def _connection_hint(error: Exception, url: str, *, has_answered: bool) -> str | None:
    """Return a hint for a host that does not respond, if the error itself has none."""
    for cause in _causes(error):
        if isinstance(cause, ConnectionRefusedError):
            return "check that the registry runs there, and its port"
        if isinstance(cause, OSError) and cause.errno in _UNREACHABLE:
            return "check the network of this machine and the route to the registry"
        if isinstance(cause, http.client.RemoteDisconnected) and not has_answered:
            return _MAYBE_HTTPS_HINT if url.startswith("http:") else _NOT_A_REGISTRY_HINT
        if _is_not_http(cause):
            return "check the port: another service than a registry responds there"
    return None


def _tls_hint(error: ssl.SSLError) -> str | None:
    reason = getattr(error, "reason", None) or ""
    if reason in _NOT_TLS_REASONS:
        return "the registry seems to use plain HTTP: use --plain-http"
    if "ALERT" in reason and reason.endswith(_WANTS_CERTIFICATE):
        return _CLIENT_CERTIFICATE_HINT
    return None


def has_tls_peer(error: NetworkError) -> bool | None:
    """Return whether the server of a failed handshake speaks TLS; None if no server answered.

    A TLS alert is a response in TLS. A response that is not TLS, or a connection that breaks during the first bytes, is
    not.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            return "ALERT" in (getattr(cause, "reason", None) or "")
        if isinstance(cause, ConnectionResetError | BrokenPipeError | http.client.RemoteDisconnected):
            return False
    return None


def _format_duration(seconds: float) -> str:
    """Return a duration for people, rounded up."""
    for unit, length, longest in _UNITS:
        if seconds < longest:
            return f"{math.ceil(seconds / length)} {unit}"
    return "a year or more"


def _parse_error_body(raw: bytes) -> tuple[tuple[str, ...], str]:
    """Return the codes of the distribution-spec's error body, and its first message made printable."""
    try:
        errors = parse_json(raw, "error", limits.MAX_ERROR_BODY).get("errors")
    except ArchiveError:
        return (), ""
    if not isinstance(errors, list):
        return (), ""
    entries = [entry for entry in errors if isinstance(entry, dict)]
    codes = tuple(
        dict.fromkeys(printable(entry["code"], 64) for entry in entries if isinstance(entry.get("code"), str))
    )
    messages = [entry["message"] for entry in entries if isinstance(entry.get("message"), str)]
    return codes, printable(messages[0], 300) if messages else ""


def _not_found_hint(method: str, url: str, body: bytes) -> str | None:
    """Return what to do about a 404: the blob is lost, or the server is not a registry."""
    parts = urlsplit(url)
    if "/blobs/sha" in parts.path and method == "GET":
        return _LOST_BLOB_HINT
    if body.lstrip().lower().startswith(_WEB_PAGE_MARKS):
        host = printable(parts.netloc.rpartition("@")[2])
        names = "and its port" if parts.path == "/v2/" else "its port and the repository"
        return f"{host} answered with a web page: check that it is a registry, {names}"
    return None


def response_error(registry: str, response: Response, *, is_elsewhere: bool) -> OcistreamError:
    """Convert an error response of a registry into an exception with a message of one line without secrets.

    `is_elsewhere` says that the response came from another host that the registry redirected to. A 401 or 403 from such
    a host is the registry's failure (exit code 7, not 3), because a user cannot log in there.
    """
    method, url, status = response.method, response.url, response.status
    body, wait = response.drain(), response.retry_after
    codes, message = _parse_error_body(body)
    details = ": ".join(part for part in (" ".join(codes), message) if part)
    summary = f"{method} {redact_url(url)}: {status}" + (f" {details}" if details else "")
    sender = printable(urlsplit(url).netloc.rpartition("@")[2]) if is_elsewhere else "the registry"
    if is_elsewhere and status in _DENIED:
        # The next redirect may have another signature, so the hint suggests a retry.
        return RegistryError(
            f"{sender} refused: {summary}",
            status=status,
            codes=codes,
            hint=f"{registry} redirected the request to that host, and your credentials do not apply there: "
            f"try again, or contact the administrator of {registry}",
        )
    if status in _DENIED:
        return AuthenticationError(
            f"{registry} refused: {summary}",
            hint=f"check the name and your permissions; `ocistream login {registry}` stores a credential",
        )
    if status == HTTPStatus.NOT_FOUND:
        return NotFoundError(summary, codes=codes, hint=_not_found_hint(method, url, body))
    duration = f" {_format_duration(wait)}" if wait else ""
    # A server of files does not know POST.
    is_unknown_method = status == HTTPStatus.NOT_IMPLEMENTED
    hint: str | None = f"{sender} asks to wait{duration}" if wait else None
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        hint = f"{sender} limits requests: wait{duration}" + ("" if is_elsewhere else _LOGIN_LIMIT_HINT)
    if status == HTTPStatus.BAD_REQUEST:
        hint = next((text for words, text in _HINTS_BY_BODY.items() if words in body), None)
        if method == "HEAD":
            hint = _MAYBE_CLIENT_CERTIFICATE_HINT if url.startswith("https:") else _MAYBE_HTTPS_HINT
    elif status >= HTTPStatus.INTERNAL_SERVER_ERROR and hint is None and not is_unknown_method:
        hint = f"{sender} has problems: try again later; --retries sets the number of retries"
    elif status in _HINTS_BY_STATUS:
        hint = _HINTS_BY_STATUS[status]
    if (status < HTTPStatus.INTERNAL_SERVER_ERROR or is_unknown_method) and hint is None and not codes:
        hint = _NOT_A_REGISTRY_HINT if method in _EXPLAINED_METHODS else None
    return RegistryError(summary, status=status, codes=codes, hint=hint, retry_after=wait)
