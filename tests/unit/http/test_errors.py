"""Messages and hints for network errors: exceptions of the libraries, and answers of registries."""

from __future__ import annotations

import errno
import json
import ssl
from collections.abc import Callable
from typing import Any

import pytest
import requests
import urllib3.exceptions

from ocistream.errors import (
    NetworkError,
    OcistreamError,
    PermanentNetworkError,
)
from ocistream.http.errors import describe_cause, has_tls_peer, network_error, response_error
from ocistream.http.response import Response
from ocistream.http.retry import parse_retry_after

Send = Callable[..., Response]
SIGNED = "/v2/app/blobs/x?sig=secret"


def is_final(error: NetworkError) -> bool:
    return isinstance(error, PermanentNetworkError)


class TestTls:
    """OpenSSL's errors become messages with hints."""

    @staticmethod
    def told(said: str) -> NetworkError:
        error = ssl.SSLError(1, "text")
        error.reason = said
        return TestTls.caused_by(requests.exceptions.SSLError(error))

    @staticmethod
    def caused_by(error: Exception) -> NetworkError:
        made = network_error("GET", "https://h/", error)
        made.__cause__ = error
        return made

    @pytest.mark.parametrize(
        "said",
        [
            "TLSV13_ALERT_CERTIFICATE_REQUIRED",
            "SSLV3_ALERT_HANDSHAKE_FAILURE",
            "SSLV3_ALERT_BAD_CERTIFICATE",
            "TLSV1_ALERT_UNKNOWN_CA",
            "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        ],
    )
    def test_a_required_client_certificate_is_a_permanent_error(self, said: str) -> None:
        error = self.told(said)
        assert is_final(error)
        assert "--client-cert" in str(error.hint)
        assert said in error.message
        assert has_tls_peer(error)

    @pytest.mark.parametrize("said", ["WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"])
    def test_a_server_without_tls_is_a_permanent_error(self, said: str) -> None:
        error = self.told(said)
        assert is_final(error)
        assert "--plain-http" in str(error.hint)
        assert error.message == "GET https://h/: TLS failed: the server does not speak TLS"
        assert has_tls_peer(error) is False

    def test_a_closed_connection_hints_at_a_certificate_and_is_retried(self) -> None:
        error = self.caused_by(requests.exceptions.SSLError(ssl.SSLEOFError(8, "EOF")))
        assert not is_final(error)
        assert "--client-cert" in str(error.hint)
        assert has_tls_peer(error) is False


class TestCauses:
    def test_an_invalid_header_is_a_permanent_error(self) -> None:
        error = network_error("GET", "http://h/", requests.exceptions.InvalidHeader("Invalid return character"))
        assert is_final(error)

    def test_a_nested_cause_is_found_even_in_a_cycle(self) -> None:
        inner = OSError(errno.EIO, "Input/output error")
        outer = urllib3.exceptions.ProtocolError("Connection aborted.", RuntimeError(inner))
        inner.__cause__ = outer
        assert describe_cause(requests.exceptions.ConnectionError(outer)) == "input/output error"

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), "TLS failed: the connection was cut"),
            (ssl.SSLCertVerificationError("wrong host"), "the certificate is not trusted: verification failed"),
        ],
    )
    def test_a_tls_error_without_a_reason_has_a_message(self, error: ssl.SSLError, said: str) -> None:
        assert describe_cause(requests.exceptions.SSLError(error)) == said
        assert network_error("GET", "https://h/", requests.exceptions.SSLError(error)).message.endswith(said)

    def test_an_exception_without_a_message_is_named(self) -> None:
        assert describe_cause(urllib3.exceptions.HTTPError()) == "HTTPError"

    def test_control_characters_are_replaced(self) -> None:
        assert describe_cause(urllib3.exceptions.HTTPError("\x1b[31mred\n")) == "?[31mred?"


def errors(*entries: object) -> bytes:
    return json.dumps({"errors": list(entries)}).encode()


class Refusal(Response):
    """A response with a given status and body."""

    def __init__(self, method: str, url: str, status: int, body: bytes, wait: float | None) -> None:
        self.method, self.url, self.status = method, url, status
        self.body, self.wait = body, wait

    @property
    def retry_after(self) -> float | None:
        return self.wait

    def drain(self) -> bytes:
        return self.body


def explained(
    method: str, url: str, status: int, body: bytes = b"", wait: float | None = None, *, elsewhere: bool = False
) -> OcistreamError:
    return response_error("registry.example", Refusal(method, url, status, body, wait), is_elsewhere=elsewhere)


def refused(status: int, body: bytes = b"", wait: float | None = None) -> Any:
    return explained("GET", f"https://user:secret@registry.example{SIGNED}", status, body, wait)


WHERE = "GET https://registry.example/v2/app/blobs/x?...: "


class TestRefusals:
    def test_the_message_of_the_registry_is_shown(self) -> None:
        body = errors(
            {"code": "MANIFEST_INVALID", "message": "no such layer", "detail": {"x": 1}},
            {"code": "MANIFEST_INVALID", "message": "second"},
            {"code": "UNKNOWN"},
        )
        error = refused(400, body)
        assert error.message == f"{WHERE}400 MANIFEST_INVALID UNKNOWN: no such layer"
        assert (error.status, error.codes) == (400, ("MANIFEST_INVALID", "UNKNOWN"))

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>502 Bad Gateway</html>",
            b"[]",
            b"{}",
            b'{"errors": null}',
            b'{"errors": "no"}',
            errors(),
            errors(None, 1, "x", []),
            errors({"code": 1, "message": ["no"]}),
            b"\xff\xfe",
            b"[" * 60_000,
            b'{"errors": [' + b'{"code": "X"}' * 2,
        ],
    )
    def test_a_body_that_is_not_an_error_document_is_ignored(self, body: bytes) -> None:
        assert refused(500, body).message == f"{WHERE}500"

    def test_a_message_of_a_registry_is_printable_and_short(self) -> None:
        error = refused(500, errors({"code": "\x1b[2J" + "C" * 1000, "message": "\x1b]0;x\x07\n" + "m" * 5000}))
        assert error.message.isprintable()
        assert len(error.message) < 600

    def test_the_hint_of_a_rate_limit_says_what_to_do_and_how_long_to_wait(self) -> None:
        hint = "the registry limits requests: wait{}, or log in for a higher limit"
        assert refused(429).hint == hint.format("")
        assert refused(429, wait=3600.4).hint == hint.format(" 61 min")

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            ("1", "1 s"),
            ("599", "599 s"),
            ("600", "10 min"),
            ("7199", "120 min"),
            ("7200", "2 h"),
            ("172799", "48 h"),
            ("172801", "3 days"),
            ("31535999", "365 days"),
            ("31536000", "a year or more"),
            ("9" * 400, "a year or more"),
            ("Fri, 31 Dec 9999 23:59:59 GMT", "a year or more"),
        ],
    )
    def test_any_wait_is_readable(self, value: str, said: str) -> None:
        assert refused(503, wait=parse_retry_after(value)).hint == f"the registry asks to wait {said}"

    def test_a_wait_of_another_host_names_that_host(self) -> None:
        for status, said in ((429, "limits requests: wait 5 s"), (503, "asks to wait 5 s")):
            error = explained("GET", "https://cdn.example/x", status, b"", 5.0, elsewhere=True)
            assert error.hint == f"cdn.example {said}"

    @pytest.mark.parametrize(
        ("body", "hint"),
        [
            (b"<center>No required SSL certificate was sent</center>", "--client-cert"),
            (b"<center>The SSL certificate error</center>", "does not trust"),
            (b"<h1>The plain HTTP request was sent to HTTPS port</h1>", "--plain-http"),
            (b"Client sent an HTTP request to an HTTPS server.\n", "--plain-http"),
            (b"Reason: You're speaking plain HTTP to an SSL-enabled server port.", "--plain-http"),
        ],
    )
    def test_known_answers_of_web_servers_have_a_hint(self, body: bytes, hint: str) -> None:
        assert hint in refused(400, body).hint
        assert refused(404, body).hint is None

    @pytest.mark.parametrize(("scheme", "hint"), [("https", "--client-cert"), ("http", "--plain-http")])
    def test_a_refused_head_request_has_a_hint(self, scheme: str, hint: str) -> None:
        error = explained("HEAD", f"{scheme}://registry.example/v2/", 400, b"")
        assert error.hint is not None
        assert hint in error.hint

    def test_the_hint_of_a_proxy_login_says_how_to_give_a_password(self) -> None:
        assert "USER:PASSWORD" in refused(407).hint
