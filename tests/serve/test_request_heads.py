"""Request heads: an incomplete one is refused, and the size is limited."""

from __future__ import annotations

import pytest

from ocistream import limits
from tests.images import OCI_INDEX
from tests.raw_http import Client, connect, converse, read_all
from tests.serve.served_layout import Served

KIB = 1 << 10


@pytest.mark.parametrize("rest", [b"", b"Note: x", b"Note: x\r\n", b"Note: x\r\nContent-Leng"])
def test_a_request_with_incomplete_headers_is_refused(served: Served, ask: Client, rest: bytes) -> None:
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    ask.push(document, "v1")
    raw = converse(served.host, b"DELETE /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\n" + rest)
    assert raw.startswith(b"HTTP/1.1 400 ")
    assert ask("GET", "/v2/app/tags/list").json()["tags"] == ["v1"]


class TestSize:
    def test_too_many_bytes_of_headers_are_refused(self, served: Served) -> None:
        headers = b"".join(b"X%d: %b\r\n" % (number, b"x" * 4 * KIB) for number in range(9))
        raw = converse(served.host, b"GET /v2/ HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
        assert raw.startswith(b"HTTP/1.1 431 ")
        assert raw.count(b"HTTP/1.1") == 1

    def test_headers_without_an_end_are_refused_at_the_limit(self, served: Served) -> None:
        line = b"X: %b\r\n" % (b"x" * (KIB - 5))
        with connect(served.host) as connection:
            connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n" + line * (limits.MAX_REQUEST_HEAD // KIB - 1))
            connection.settimeout(0.1)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.settimeout(60)
            connection.sendall(line * 2)
            assert read_all(connection).startswith(b"HTTP/1.1 431 ")
