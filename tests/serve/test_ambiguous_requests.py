"""Requests that two programs may read differently are refused by the embedded registry, and so are web pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from ocistream.serve import BasicAuth, Registry
from tests.raw_http import Client, converse
from tests.registry_http import basic
from tests.serve.served_layout import Served

#: Follows each refused head, and must not be served as a second request.
NEXT: Final = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def get(*lines: bytes, target: bytes = b"/v2/", version: bytes = b"HTTP/1.1") -> bytes:
    """Return a GET with these header lines."""
    return b"\r\n".join([b"GET %b %b" % (target, version), *lines, b"", b""])


def post(*lines: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    """Return a POST that opens an upload, with these header lines after `Host`."""
    head = b"\r\n".join([b"POST /v2/app/blobs/uploads/ %b" % version, b"Host: x", *lines, b"", b""])
    return head + body


REFUSED: Final = {
    # The host
    "no host": (400, get()),
    "two hosts": (400, get(b"Host: a", b"Host: b")),
    "the same host twice": (400, get(b"Host: a", b"host: a")),
    "two hosts in HTTP/1.0": (400, get(b"Host: a", b"Host: b", version=b"HTTP/1.0")),
    "two hosts in one line": (400, get(b"Host: a, b")),
    "a host with a path": (400, get(b"Host: a/b")),
    "a host with a user": (400, get(b"Host: user@a")),
    "a host with a port that is not a number": (400, get(b"Host: a:b")),
    "a host with two ports": (400, get(b"Host: a:1:2")),
    "a host in brackets that is no address": (400, get(b"Host: [a b]")),
    "a URL and no host": (400, get(target=b"http://a/v2/")),
    "a URL of another host": (400, get(b"Host: b", target=b"http://a/v2/")),
    "a URL of another port": (400, get(b"Host: a:5000", target=b"http://a/v2/")),
    "a URL of another port than the scheme's": (400, get(b"Host: a:443", target=b"http://a/v2/")),
    "a URL with a user": (400, get(b"Host: a", target=b"http://a@a/v2/")),
    "a URL without a host": (400, get(b"Host:", target=b"http:///v2/")),
    "a URL of another host in HTTP/1.0": (400, get(b"Host: b", target=b"http://a/v2/", version=b"HTTP/1.0")),
    # Other headers that must not occur twice
    "two passwords": (400, get(b"Host: x", b"Authorization: Basic YTpi", b"Authorization: Basic YTpj")),
    "two ranges": (400, get(b"Host: x", b"Range: bytes=0-1", b"Range: bytes=0-2")),
    "two media types": (400, post(b"Content-Type: a/b", b"Content-Type: a/c")),
    "two content ranges": (400, post(b"Content-Range: 0-1", b"Content-Range: 0-2")),
    # The end of the body
    "two lengths": (400, post(b"Content-Length: 5", b"Content-Length: 6")),
    "the same length twice": (400, post(b"Content-Length: 5", b"Content-Length: 5")),
    "two lengths in one line": (400, post(b"Content-Length: 5, 5")),
    "a length with a sign": (400, post(b"Content-Length: +5")),
    "a length that is hexadecimal": (400, post(b"Content-Length: 0x5")),
    "a length with an underscore": (400, post(b"Content-Length: 1_0")),
    "a length that is empty": (400, post(b"Content-Length:")),
    "a length in digits that are not ASCII": (400, post("Content-Length: \u0665".encode())),
    # U+00A0 and U+0085 in Latin-1, which Python's str.strip() removes.
    "a length after a no-break space": (400, post(b"Content-Length: \xa05")),
    "a length before a next line": (400, post(b"Content-Length: 5\x85")),
    "chunks after a no-break space": (501, post(b"Transfer-Encoding: \xa0chunked")),
    "a length in letters": (400, post(b"Content-Length: five")),
    "a length below zero": (400, post(b"Content-Length: -5")),
    "a length of 30 digits": (400, post(b"Content-Length: " + b"9" * 30)),
    "a length and chunks": (400, post(b"Content-Length: 5", b"Transfer-Encoding: chunked")),
    "chunks and a length": (400, post(b"Transfer-Encoding: chunked", b"Content-Length: 5")),
    "chunks in HTTP/1.0": (400, post(b"Transfer-Encoding: chunked", version=b"HTTP/1.0")),
    "chunks twice": (501, post(b"Transfer-Encoding: chunked, chunked")),
    "chunks and something else": (501, post(b"Transfer-Encoding: chunked, identity")),
    "chunks in two lines": (501, post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")),
    "chunks of a gzip stream": (501, post(b"Transfer-Encoding: gzip, chunked")),
    "chunks with a control character": (400, post(b"Transfer-Encoding: \x0bchunked")),
    "chunks in quotes": (501, post(b'Transfer-Encoding: "chunked"')),
    # Lines
    "a header that ends with LF": (400, b"GET /v2/ HTTP/1.1\r\nHost: x\nX: y\r\n\r\n"),
    "a head that ends with LF": (400, b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\n"),
    "a first line that ends with LF": (400, b"GET /v2/ HTTP/1.1\nHost: x\r\n\r\n"),
    "a CR in a header": (400, get(b"Host: x", b"X: y\rContent-Length: 5")),
    "a space before the colon": (400, get(b"Host: x", b"Content-Length : 5")),
    "a tab before the colon": (400, get(b"Host: x", b"X\t: y")),
    "a header without a colon": (400, get(b"Host: x", b"X")),
    "a header without a name": (400, get(b"Host: x", b": y")),
    "a NUL in a header's name": (400, get(b"Host: x", b"X\0Y: z")),
    "a NUL in a header's value": (400, get(b"Host: x", b"X: y\0z")),
    "a CR at the end of a header": (400, get(b"Host: x", b"X: y\r")),
    "a control character in a header": (400, get(b"Host: x", b"X: y\x0bz")),
    "a header's name that is not ASCII": (400, get(b"Host: x", "X\xf6: y".encode())),
    "a space before the first header": (400, get(b" Host: x")),
    "a folded header": (400, get(b"Host: x", b"X: y", b" Content-Length: 5")),
    "a folded host": (400, get(b"Host: x", b"\ty")),
    # The first line
    "a tab for a space": (400, b"GET\t/v2/ HTTP/1.1\r\nHost: x\r\n\r\n"),
    "two spaces": (400, b"GET  /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a space at the end": (400, b"GET /v2/ HTTP/1.1 \r\nHost: x\r\n\r\n"),
    "a space at the beginning": (400, b" GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a form feed for a space": (400, b"GET /v2/\x0cHTTP/1.1\r\nHost: x\r\n\r\n"),
    "a space in the target": (400, get(b"Host: x", target=b"/v2/ /x")),
    "a character in the target that is not ASCII": (400, get(b"Host: x", target="/v2/\xa0".encode())),
    "a CR in the first line": (400, b"GET /v2/\r HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a version with three numbers": (400, get(b"Host: x", version=b"HTTP/1.1.1")),
    "a version with more digits": (400, get(b"Host: x", version=b"HTTP/1.10")),
    "another protocol": (400, get(b"Host: x", version=b"HTTPS/1.1")),
    "HTTP/0.9 without its version": (400, b"GET /v2/\r\n\r\n"),
    "HTTP/0.9": (505, get(b"Host: x", version=b"HTTP/0.9")),
    "HTTP/2": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "a method in small letters": (501, b"get /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"),
}

ACCEPTED: Final = {
    "a name": get(b"Host: registry.example:5000"),
    "a name with an underscore": get(b"Host: my_registry:5000"),
    "a name in capitals": get(b"HOST: LOCALHOST"),
    "an address": get(b"Host: 127.0.0.1"),
    "an address in brackets": get(b"Host: [::1]:5000"),
    "an address with a zone": get(b"Host: [fe80::1%25eth0]:5000"),
    "white space around the host": get(b"Host: \tx "),
    "an empty host": get(b"Host:"),
    "a colon without a port": get(b"Host: x:"),
    "no host in HTTP/1.0": get(version=b"HTTP/1.0"),
    "a URL of the same host": get(b"Host: A:5000", target=b"http://a:5000/v2/"),
    "a URL with the scheme's port": get(b"Host: a", target=b"http://a:80/v2/"),
    "a host with the scheme's port": get(b"Host: a:443", target=b"HTTPS://a/v2/"),
    "a URL and no host in HTTP/1.0": get(target=b"http://a/v2/", version=b"HTTP/1.0"),
    "two slashes at the beginning of the path": get(b"Host: x", target=b"//v2/"),
    "a header of which there may be several": get(b"Host: x", b"Accept: a/b", b"Accept: a/c"),
    "a header without a value": get(b"Host: x", b"X:"),
    "a header with unusual characters": get(b"Host: x", b"X-!#$%&'*+.^_`|~9: \xc3\xb6 \xff"),
    "tabs and spaces around a value": get(b"Host: x", b"X:\tx\ty "),
    "a colon in a value": get(b"Host: x", b"User-Agent: a (b; c: d)"),
}


@pytest.mark.parametrize(("status", "raw"), REFUSED.values(), ids=REFUSED)
def test_an_ambiguous_request_is_refused_and_its_connection_closed(served: Served, status: int, raw: bytes) -> None:
    answer = converse(served.host, raw + NEXT)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("raw", ACCEPTED.values(), ids=ACCEPTED)
def test_an_unambiguous_request_is_served(served: Served, raw: bytes) -> None:
    assert converse(served.host, raw).startswith(b"HTTP/1.1 200 ")


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Client]:
    with Registry(tmp_path / "guarded", auth=BasicAuth("ada", "engine")) as registry, Client(registry.host) as client:
        yield client


class TestWebPages:
    @pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site", "", "something-new"])
    @pytest.mark.parametrize("mode", ["no-cors", "navigate", None])
    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
    def test_a_request_from_a_page_of_another_site_is_refused(
        self, ask: Client, method: str, site: str, mode: str | None
    ) -> None:
        headers = {"Sec-Fetch-Site": site} | ({"Sec-Fetch-Mode": mode} if mode else {})
        for target in ("/v2/", "/v2/_catalog", "/v2/app/blobs/uploads/"):
            assert ask(method, target, headers=headers).status == 403

    @pytest.mark.parametrize("site", ["none", "same-origin"])
    def test_a_request_that_the_user_typed_is_served(self, ask: Client, site: str) -> None:
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Accept-Language": "en"}
        assert ask("GET", "/v2/_catalog", headers=headers).status == 200

    def test_two_sec_fetch_site_headers_are_refused(self, served: Served) -> None:
        raw = get(b"Host: localhost", b"Sec-Fetch-Site: none", b"Sec-Fetch-Site: cross-site")
        assert converse(served.host, raw).startswith(b"HTTP/1.1 400 ")

    def test_a_page_of_another_site_is_refused_even_with_the_password(self, guarded: Client) -> None:
        # The browser may know the password, and adds it to the requests of any page.
        headers = {**basic("ada", "engine"), "Sec-Fetch-Site": "cross-site"}
        assert guarded("GET", "/v2/_catalog", headers=headers).refusal == (403, ["DENIED"])
        assert guarded("GET", "/v2/_catalog", headers=basic("ada", "engine")).status == 200
