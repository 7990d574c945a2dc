"""The embedded registry and the heads of requests: none that two could read in two ways, none without end."""

from __future__ import annotations

import io

import pytest

from ocistream import limits
from ocistream.serve import RefusedError, Registry
from ocistream.serve.heads import Head
from tests.images import OCI_INDEX
from tests.talking import Client, converse

KIB = 1 << 10
NEXT = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"


class TestLines:
    @pytest.mark.parametrize(
        "line",
        [
            b"Note : a space before the colon",
            b"Note\t: a tab",
            b"Content-Length : %d" % len(NEXT),
            b"no colon at all",
            b": no name",
            b"N\0te: x",
            b"Note: a\0b",
            b"Note: a\rContent-Length: 0",
            b"Note: a\r",
            b"Note: a\x0bb",
            b"Note: folded\r\n into the next line",
            b"N\xc3\xb6te: x",
        ],
    )
    def test_one_that_is_no_header_ends_it_and_the_body_is_no_request(self, served: Registry, line: bytes) -> None:
        head = b"POST /v2/app/blobs/uploads/ HTTP/1.1\r\nHost: x\r\n%b\r\nContent-Length: %d\r\n\r\n" % (
            line,
            len(NEXT),
        )
        raw = converse(served.host, head + NEXT)
        assert raw.startswith(b"HTTP/1.1 400 ")
        assert b"Connection: close\r\n" in raw
        assert raw.count(b"HTTP/1.1") == 1

    @pytest.mark.parametrize(
        "line", [b"Note:", b"Note:\tx\ty \r\nX-!#$%&'*+.^_`|~9: \xc3\xb6 \xff", b"User-Agent: a (b; c: d)"]
    )
    def test_any_that_is_one_will_do(self, served: Registry, line: bytes) -> None:
        raw = converse(served.host, b"GET /v2/ HTTP/1.1\r\nHost: x\r\n%b\r\nConnection: close\r\n\r\n" % line)
        assert raw.startswith(b"HTTP/1.1 200 ")

    @pytest.mark.parametrize("rest", [b"", b"Note: x", b"Note: x\r\n", b"Note: x\r\nContent-Leng"])
    def test_a_request_that_ends_before_its_headers_do_is_not_served(
        self, served: Registry, ask: Client, rest: bytes
    ) -> None:
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        ask.push(document, "v1")
        raw = converse(served.host, b"DELETE /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\n" + rest)
        assert raw.startswith(b"HTTP/1.1 400 ")
        assert ask("GET", "/v2/app/tags/list").json()["tags"] == ["v1"]


class TestSize:
    def test_many_long_headers_are_too_much(self, served: Registry) -> None:
        headers = b"".join(b"X%d: %b\r\n" % (number, b"x" * 4 * KIB) for number in range(9))
        raw = converse(served.host, b"GET /v2/ HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
        assert raw.startswith(b"HTTP/1.1 431 ")
        assert raw.count(b"HTTP/1.1") == 1

    def test_what_is_too_much_is_not_read(self) -> None:
        stream = io.BytesIO(b"X: %b\r\n" % (b"x" * KIB) * 1000)
        head = Head(stream)
        with pytest.raises(RefusedError) as caught:
            list(iter(lambda: head.readline(64 * KIB), b""))
        assert caught.value.status == 431
        assert stream.tell() == limits.MAX_REQUEST_HEAD + 1
