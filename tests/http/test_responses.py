"""Responses that are truncated, endless or slow; and unusual responses that are valid."""

from __future__ import annotations

import errno
import os
import socket
import threading
from typing import Final

import pytest

from ocistream import limits
from tests.http.fixture_types import ONCE, Run
from tests.http.raw_registry import CONTINUE, LAYERS, MANIFEST, MANIFESTS, Answer, RawRegistry, answer, manifest
from tests.images import OCI_MANIFEST
from tests.raw_server import Heard, RawServer, unused_port

MIB: Final = 1 << 20
OK: Final = b"HTTP/1.1 200 OK\r\n"
CHUNKED: Final = OK + b"Content-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % OCI_MANIFEST.encode()
EMPTY: Final = answer()
#: Bytes of an endless response. A valid response follows, for a client that reads so far and so has no limit.
ENDLESS: Final = 4 * MIB
#: Header lines for a head beyond any limit.
LONG: Final = b"X: %b\r\n" % (b"x" * 60_000)


def repeated(piece: bytes) -> bytes:
    return piece * (ENDLESS // len(piece))


def failed(result_err: str) -> str:
    """Return the error of a run; it must be one line without the query of a URL."""
    line = next(line for line in result_err.splitlines() if line.startswith("ocistream: error: "))
    assert "secret" not in result_err
    assert "0x" not in line
    assert len(line) < 500
    return line


class TestBrokenResponses:
    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (b"", "the server closed the connection without an answer"),
            (b"HTTP/1.1 ", "the answer is not HTTP"),
            (b"garbage\r\n\r\n", "the answer is not HTTP: garbage"),
            (b"HTTP/1.1 abc\r\n\r\n", "the answer is not HTTP: HTTP/1.1 abc"),
            (b"\0" * 70_000, "got more than 65536 bytes"),
        ],
        ids=["nothing", "cut", "text", "status", "endless"],
    )
    def test_a_response_that_is_not_http(self, raw: RawRegistry, run: Run, given: bytes, said: str) -> None:
        def close(connection: socket.socket, _: Heard) -> None:
            connection.sendall(given)

        raw.says(MANIFESTS, close)
        result = run("inspect", raw.image, *ONCE)
        assert result.code == 7
        assert f"GET {raw.url}/v2/app/manifests/1: {said}" in failed(result.err)

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (b"Content-Length: 10\r\n\r\n1234", "received 4 bytes, 6 are missing"),
            (b"Transfer-Encoding: chunked\r\n\r\n4\r\n1234\r\n", "a chunk of the response body has a malformed size"),
            (b"Transfer-Encoding: chunked\r\n\r\n4\r\n12", "the server closed the connection too early"),
            (
                b"Transfer-Encoding: chunked\r\n\r\n4\r\n1234xx0\r\n\r\n",
                "a chunk of the response body is not followed by",
            ),
            (b"Transfer-Encoding: chunked\r\n\r\nzz\r\n1234\r\n", "a chunk of the response body has a malformed size"),
            (
                b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 5000 + b"\r\n1234\r\n",
                "the server closed the connection too early",
            ),
        ],
        ids=["length", "chunks", "chunk", "no end", "no size", "long size"],
    )
    def test_a_truncated_response(self, raw: RawRegistry, run: Run, body: bytes, said: str) -> None:
        def close(connection: socket.socket, _: Heard) -> None:
            connection.sendall(OK + body)

        raw.says(MANIFESTS, close)
        result = run("inspect", raw.image, *ONCE)
        assert result.code == 7
        assert f"/v2/app/manifests/1: the response was cut: {said}" in failed(result.err)

    @pytest.mark.parametrize("size", [100, 1 << 40])
    def test_the_body_of_a_refusal_may_be_truncated_or_endless(self, raw: RawRegistry, run: Run, size: int) -> None:
        def refuse(connection: socket.socket, _: Heard) -> None:
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n{" % size)
            while size > MIB:
                connection.sendall(bytes(MIB))

        raw.says(MANIFESTS, refuse)
        result = run("inspect", raw.image, *ONCE)
        assert result.code == 3
        assert "403" in failed(result.err)

    @pytest.mark.parametrize("length", ["", "ten", "-1", "1_0", "1" * 19, "10, 11", "10\r\nContent-Length: 11"])
    @pytest.mark.parametrize("path", [MANIFESTS, LAYERS], ids=["manifest", "layer"])
    def test_a_malformed_content_length_fails_at_once(self, raw: RawRegistry, run: Run, length: str, path: str) -> None:
        # The connection stays open, so that the end of the body cannot be known.
        raw.says(path, OK + f"Content-Length: {length}\r\n\r\n".encode() + MANIFEST)
        result = run("pull", raw.image, "-o", "app.tar", "--plain-http", "--retries=1", "--no-referrers")
        assert result.code == 7
        shown = length.replace("\r\nContent-Length: ", ",")
        assert failed(result.err).endswith(f"malformed Content-Length: {shown}")
        assert len(raw.asked("GET", path)) == 1

    @pytest.mark.parametrize("between", [", ", "\r\nContent-Length: "])
    def test_a_content_length_may_be_repeated(self, raw: RawRegistry, run: Run, between: str) -> None:
        length = f"{len(MANIFEST)}{between}{len(MANIFEST)}"
        raw.says(MANIFESTS, OK + f"Content-Length: {length}\r\n\r\n".encode() + MANIFEST)
        assert run("inspect", raw.image, *ONCE).code == 0

    def test_a_response_that_switches_protocols_is_a_failure(self, raw: RawRegistry, run: Run) -> None:
        raw.says(MANIFESTS, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: close\r\n\r\n")
        result = run("inspect", raw.image, *ONCE)
        assert result.code == 7
        assert "101" in failed(result.err)


class TestUnreachable:
    def test_a_refused_connection(self, run: Run) -> None:
        port = unused_port()
        result = run("inspect", f"127.0.0.1:{port}/app:1", *ONCE)
        assert result.code == 7
        assert failed(result.err).endswith(f"GET http://127.0.0.1:{port}/v2/app/manifests/1: connection refused")

    @pytest.mark.parametrize(
        ("code", "tries", "hint"),
        [
            (socket.EAI_NONAME, 1, "check the host name, and the network of this machine"),
            (socket.EAI_NODATA, 1, "check the host name, and the network of this machine"),
            (socket.EAI_AGAIN, 2, "check the network of this machine and the resolver in /etc/resolv.conf"),
            (socket.EAI_FAIL, 2, "check the network of this machine and the resolver in /etc/resolv.conf"),
        ],
    )
    def test_a_name_that_does_not_resolve(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, code: int, tries: int, hint: str
    ) -> None:
        asked: list[object] = []

        def fail(*arguments: object, **_: object) -> None:
            asked.append(arguments)
            raise socket.gaierror(code, "Name or service not known")

        monkeypatch.setattr("socket.getaddrinfo", fail)
        result = run("inspect", "nowhere.test/app:1", "--plain-http", "--retries=1")
        assert result.code == 7
        assert "the host name cannot be resolved: Name or service not known" in failed(result.err)
        assert result.err.rstrip().endswith(hint)
        assert len(asked) == tries

    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH)),
            OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH)),
            ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)),
            TimeoutError("timed out"),
        ],
        ids=str,
    )
    def test_an_unreachable_host_is_retried(self, run: Run, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
        tries: list[object] = []

        def fail(*arguments: object) -> None:
            tries.append(arguments)
            raise error

        monkeypatch.setattr("socket.socket.connect", fail)
        result = run("inspect", "127.0.0.1:9/app:1", "--plain-http", "--retries=1")
        assert result.code == 7
        assert failed(result.err).endswith(f": {(error.strerror or 'timed out').lower()}")
        assert len(tries) == 2

    @pytest.mark.parametrize("host", ["a" * 64 + ".example", "\u00e9" * 70 + ".test"])
    def test_a_redirect_to_an_impossible_host_name(self, raw: RawRegistry, run: Run, host: str) -> None:
        location = f"http://{host}:9/x?sig=secret".encode()
        raw.says(MANIFESTS, b"HTTP/1.1 307 Temporary Redirect\r\nContent-Length: 0\r\nLocation: %b\r\n\r\n" % location)
        result = run("inspect", raw.image, *ONCE)
        assert result.code == 7
        assert failed(result.err).isprintable()

    def test_silence(self, raw: RawRegistry, run: Run) -> None:
        def silent(*_: object) -> None:
            raw.over.wait(60)

        raw.says(MANIFESTS, silent)
        result = run("inspect", raw.image, *ONCE, "--stall-timeout=0.3")
        assert result.code == 7
        assert failed(result.err).endswith("timed out")
        assert "--stall-timeout" in result.err


class TestEndlessResponses:
    """A server may keep a connection busy with bytes outside the body, so that no read of the client times out."""

    @pytest.mark.parametrize(
        "head",
        [
            repeated(CONTINUE) + EMPTY,
            CONTINUE * 11 + EMPTY,
            repeated(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n") + EMPTY,
            (CONTINUE + b"HTTP/1.1 102 Processing\r\n\r\n") * 6 + EMPTY,
            b"HTTP/1.1 100 Continue\r\n" + LONG * 5 + b"\r\n" + EMPTY,
            OK + LONG * 90 + b"Content-Length: 0\r\n\r\n",
        ],
        ids=["100", "eleven", "103", "mixed", "long interim", "headers"],
    )
    def test_an_endless_head_is_refused_without_a_retry(self, raw: RawRegistry, run: Run, head: bytes) -> None:
        raw.says(MANIFESTS, head)
        result = run("inspect", raw.image, "--plain-http", "--retries=1")
        assert result.code == 7
        assert "more than" in failed(result.err)
        assert len(raw.requests) == 1

    @pytest.mark.parametrize(
        "body",
        [
            b"1\r\nx\r\n0\r\n" + repeated(b"X: y\r\n") + b"\r\n",
            (b"1;%b\r\nx\r\n" % (b"x" * 60_000)) * 60 + b"0\r\n\r\n",
            b"1\r\nx\r\n-1\r\n" + bytes(ENDLESS),
        ],
        ids=["trailers", "extensions", "negative"],
    )
    @pytest.mark.parametrize("path", [MANIFESTS, LAYERS], ids=["manifest", "layer"])
    def test_an_endless_chunked_body_is_refused_without_a_retry(
        self, raw: RawRegistry, run: Run, body: bytes, path: str
    ) -> None:
        raw.says(path, CHUNKED + body)
        result = run("pull", raw.image, "-o", "app.tar", "--plain-http", "--retries=1", "--no-referrers")
        assert result.code == 7
        assert "more than" in failed(result.err) or "negative" in failed(result.err)
        assert len(raw.asked("GET", path)) == 1

    def test_valid_interim_responses_are_skipped(self, raw: RawRegistry, run: Run) -> None:
        interim = CONTINUE * 4 + b"HTTP/1.1 102 Processing\r\n\r\n" + b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        chunks = b"%x\r\n%b\r\n0\r\nX-Checksum: 1\r\nX-Other: 2\r\n\r\n" % (len(MANIFEST), MANIFEST)
        raw.says("/manifests/1$", interim + CONTINUE * 4 + CHUNKED + chunks)
        assert run("inspect", raw.image, *ONCE).code == 0
        assert len(raw.requests) > 1
        assert raw.accepted == 1

    def test_a_body_may_have_any_number_of_small_chunks(self, raw: RawRegistry, run: Run) -> None:
        large = MANIFEST[:-1] + b" " * 50_000 + b"}"
        chunks = b"".join(b"1;a=b\r\n%c\r\n" % byte for byte in large)
        raw.says("/manifests/1$", CHUNKED + chunks + b"0\r\n\r\n")
        assert run("inspect", raw.image, *ONCE).code == 0


def drips(registry: RawRegistry, start: bytes) -> Answer:
    """Return a response that begins with `start`, then sends a byte at a time for as long as the client reads."""

    def drip(connection: socket.socket, _: Heard) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(start)
        while not registry.over.wait(0.01):
            connection.sendall(b"x")

    return drip


class TestSlowResponses:
    @pytest.mark.parametrize("start", [b"", OK + b"X-Slow: ", CONTINUE + b"HTTP/1.1 200 "])
    def test_a_head_that_arrives_byte_by_byte_times_out(
        self, raw: RawRegistry, run: Run, monkeypatch: pytest.MonkeyPatch, start: bytes
    ) -> None:
        monkeypatch.setattr(limits, "RESPONSE_HEAD_TIMEOUT", 0.2)
        raw.says(MANIFESTS, drips(raw, start))
        result = run("inspect", raw.image, *ONCE)
        assert result.code == 7
        assert "timed out" in failed(result.err)

    def test_the_wait_for_a_head_and_the_body_may_take_longer(
        self, raw: RawRegistry, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "RESPONSE_HEAD_TIMEOUT", 1.0)
        head, _, body = manifest(Connection="close").partition(b"\r\n\r\n")

        def slowly(connection: socket.socket, _: Heard) -> None:
            pause = threading.Event()
            for piece in (CONTINUE, head + b"\r\n\r\n", body):
                pause.wait(1.1)
                connection.sendall(piece)

        raw.says("/manifests/1$", slowly)
        assert run("inspect", raw.image, *ONCE).code == 0


def test_the_response_head_of_a_proxy_is_limited_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"HTTP/1.1 200 Connection established\r\n"
    with RawRegistry() as slow, RawServer(head + repeated(b"X: y\r\n") + b"\r\n") as endless:
        slow.says("", drips(slow, b"HTTP/1.1 200 "), method="CONNECT")
        for proxy, said in ((endless.url, "more than"), (slow.url, "timed out")):
            monkeypatch.setenv("https_proxy", proxy)
            if proxy == slow.url:
                monkeypatch.setattr(limits, "RESPONSE_HEAD_TIMEOUT", 0.2)
            result = run("inspect", "registry.test/app:1", "--retries=0")
            assert result.code == 7
            assert said in failed(result.err)
