"""One request out and its answer back: what is sent and what is not, and what becomes of the connection."""

from __future__ import annotations

import base64
import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ocistream import limits
from ocistream.bodies import Body, StreamedBody
from ocistream.connections import Answer, Connections, ConnectionSettings
from ocistream.errors import FinalNetworkError, IntegrityError, NetworkError
from tests.certificates import Certificate
from tests.faults import Drop, Fault, Header, NoContentLength, Reply, Stall
from tests.network import CountingRegistry, Heard, RawServer, Turn, eventually, read_head

Open = Callable[..., Connections]
MIB = 1 << 20


class Tidy(Connections):
    """Connections that close what a test has not read to its end."""

    def __init__(self, settings: ConnectionSettings) -> None:
        self.answers: list[Answer] = []
        super().__init__(settings)

    def send(self, *args: Any, **options: Any) -> Answer:
        self.answers.append(super().send(*args, **options))
        return self.answers[-1]

    def close(self) -> None:
        while self.answers:
            self.answers.pop().close()
        super().close()


@pytest.fixture
def connections() -> Iterator[Open]:
    """Return a function that makes connections; its arguments are those of `Connections`."""
    with contextlib.ExitStack() as stack:

        def make(
            *,
            connect_timeout: float = 5.0,
            stall_timeout: float = 30.0,
            ca_file: str | None = None,
            **options: Any,
        ) -> Connections:
            made = Tidy(
                ConnectionSettings(
                    connect_timeout=connect_timeout,
                    stall_timeout=stall_timeout,
                    ca_bundle=ca_file,
                    user_agent="ocistream/test",
                    **options,
                )
            )
            stack.callback(made.close)
            return made

        yield make


def get(connections: Connections, url: str, **headers: str) -> Answer:
    return connections.send("GET", url, headers, None)


class TestWhatIsSent:
    def test_nothing_but_what_was_asked_for(self, connections: Open, faulty: Callable[..., CountingRegistry]) -> None:
        registry = faulty()
        connections().send("GET", f"{registry.url}/v2/", {"X-Own": "yes"}, None).drain()
        assert sorted(registry.requests[0].headers.items()) == [
            ("Accept", "*/*"),
            ("Accept-Encoding", "identity"),
            ("Host", registry.host),
            ("User-Agent", "ocistream/test"),
            ("X-Own", "yes"),
        ]

    @pytest.mark.parametrize("body", [None, b""])
    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    def test_an_empty_body_has_a_length_and_is_not_chunked(
        self, connections: Open, faulty: Callable[..., CountingRegistry], method: str, body: bytes | None
    ) -> None:
        registry = faulty(Fault(Reply(202), method))
        assert connections().send(method, f"{registry.url}/v2/", {}, body).status == 202
        headers = registry.requests[0].headers
        assert (headers["Content-Length"], headers["Transfer-Encoding"]) == ("0", None)

    @pytest.mark.parametrize("target", ["/v2/?_state=a%3Db%7E&n=1", "/v2/%7Ea//b/?q=%2B+'", "/v2/../x/./y?", "/;p?a;b"])
    def test_a_url_arrives_byte_for_byte(self, connections: Open, target: str) -> None:
        with RawServer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as server:
            get(connections(), server.url + target)
        assert server.heard[0].target == target.removesuffix("?")

    def test_a_cookie_is_not_sent_back(self, connections: Open, faulty: Callable[..., CountingRegistry]) -> None:
        registry = faulty(Fault(Header("Set-Cookie", "sid=1; Path=/"), times=None))
        opened = connections()
        for _ in range(2):
            get(opened, f"{registry.url}/v2/").drain()
        assert [request.headers["Cookie"] for request in registry.requests] == [None, None]

    def test_netrc_is_not_read(
        self,
        connections: Open,
        faulty: Callable[..., CountingRegistry],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        netrc = tmp_path / ".netrc"
        netrc.write_text("machine 127.0.0.1 login alice password secret\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NETRC", str(netrc))
        registry = faulty()
        get(connections(), f"{registry.url}/v2/").drain()
        get(connections(), f"{registry.url}/v2/", Authorization="Bearer own").drain()
        assert [request.headers["Authorization"] for request in registry.requests] == [None, "Bearer own"]

    def test_a_user_and_password_in_a_url_are_not_sent(
        self, connections: Open, faulty: Callable[..., CountingRegistry]
    ) -> None:
        registry = faulty()
        url = f"http://mallory:secret@{registry.host}/v2/"
        get(connections(), url).drain()
        get(connections(), url, Authorization="Bearer own").drain()
        assert [request.headers["Authorization"] for request in registry.requests] == [None, "Bearer own"]

    def test_redirects_are_not_followed(self, connections: Open, faulty: Callable[..., CountingRegistry]) -> None:
        registry = faulty(Fault(Reply(307, {"Location": "/v2/_catalog"})))
        answer = get(connections(), f"{registry.url}/v2/")
        assert (answer.status, answer.header("location")) == (307, "/v2/_catalog")
        assert len(registry.requests) == 1

    def test_a_failure_is_not_tried_again(self, connections: Open) -> None:
        with RawServer(b"") as server:
            with pytest.raises(NetworkError):
                get(connections(), server.url)
            assert len(server.heard) == 1


class TestProxies:
    ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    def test_plain_http_goes_through_the_proxy_with_its_password(self, connections: Open) -> None:
        with RawServer(self.ANSWER) as proxy:
            opened = connections(proxies={"http": f"http://alice:pw@{proxy.host}"})
            assert get(opened, "http://registry.test/v2/?x").read(10) == b"ok"
        heard = proxy.heard[0]
        assert (heard.target, heard.headers["Host"]) == ("http://registry.test/v2/?x", "registry.test")
        assert heard.headers["Proxy-Authorization"] == "Basic " + base64.b64encode(b"alice:pw").decode()

    def test_https_goes_through_a_tunnel_so_that_the_proxy_sees_neither_path_nor_token(
        self, connections: Open, faulty: Callable[..., CountingRegistry], certificate: Certificate
    ) -> None:
        registry = faulty(tls=certificate)

        def tunnel(connection: socket.socket, heard: Heard) -> None:
            assert heard.method == "CONNECT"
            with socket.create_connection(("127.0.0.1", int(registry.host.rpartition(":")[2]))) as onward:
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=relay, args=(onward, connection))
                back.start()
                relay(connection, onward)
                back.join()

        with RawServer(tunnel) as proxy:
            opened = connections(proxies={"https": proxy.url}, ca_file=str(certificate.file))
            get(opened, "https://registry.test/v2/", Authorization="Bearer secret").drain()
            opened.close()
        assert proxy.heard[0].target == "registry.test:443"
        assert proxy.heard[0].headers["Authorization"] is None
        assert registry.requests[0].headers["Authorization"] == "Bearer secret"

    @pytest.mark.parametrize("no_proxy", ["127.0.0.1", ""])
    def test_this_machine_and_what_no_proxy_names_are_asked_directly(
        self, connections: Open, faulty: Callable[..., CountingRegistry], no_proxy: str
    ) -> None:
        registry = faulty()
        opened = connections(proxies={"http": "http://127.0.0.1:1", "no_proxy": no_proxy})
        assert get(opened, f"{registry.url}/v2/").status == 200

    def test_a_host_that_no_proxy_names_is_asked_directly(
        self, connections: Open, faulty: Callable[..., CountingRegistry], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = faulty()
        real = socket.getaddrinfo
        monkeypatch.setattr("socket.getaddrinfo", lambda _, *args, **options: real("127.0.0.1", *args, **options))
        opened = connections(proxies={"all": "http://127.0.0.1:1", "no_proxy": ".test"})
        assert get(opened, f"http://registry.test:{registry.host.rpartition(':')[2]}/v2/").status == 200

    def test_proxies_of_the_environment_are_the_command_lines_business(
        self, connections: Open, faulty: Callable[..., CountingRegistry], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
        registry = faulty()
        assert get(connections(), f"{registry.url}/v2/").status == 200


def relay(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes, until it ends."""
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)


class TestBodies:
    def test_a_body_is_sent_with_its_length_and_has_begun_when_it_was_asked_for(
        self, connections: Open, faulty: Callable[..., CountingRegistry]
    ) -> None:
        registry = faulty()
        opened = connections()
        location = opened.send("POST", f"{registry.url}/v2/app/blobs/uploads/", {}, None).header("Location")
        content: list[bytes | memoryview] = [b"a" * 1000, b"", memoryview(b"b" * MIB)]
        body = Body(iter(content), 1000 + MIB)
        begun_before = body.begun
        answer = opened.send("PATCH", f"{registry.url}{location}", {}, body)
        assert (answer.status, answer.header("Range")) == (202, f"0-{1000 + MIB - 1}")
        assert (begun_before, body.begun, body.failure) == (False, True, None)
        headers = registry.asked("PATCH")[0].headers
        assert (headers["Content-Length"], headers["Transfer-Encoding"]) == (str(1000 + MIB), None)

    def test_one_of_unknown_length_goes_out_in_chunks_and_ends_as_such(
        self, connections: Open, faulty: Callable[..., CountingRegistry]
    ) -> None:
        registry = faulty()
        opened = connections()
        location = opened.send("POST", f"{registry.url}/v2/app/blobs/uploads/", {}, None).header("Location")
        content: list[bytes | memoryview] = [b"a" * 1000, b"", memoryview(b"b" * MIB)]
        body = StreamedBody(iter(content))
        answer = opened.send("PATCH", f"{registry.url}{location}", {}, body)
        assert (answer.status, answer.header("Range")) == (202, f"0-{1000 + MIB - 1}")
        assert (body.begun, body.failure) == (True, None)
        headers = registry.asked("PATCH")[0].headers
        assert (headers["Content-Length"], headers["Transfer-Encoding"]) == (None, "chunked")

    @pytest.mark.parametrize("failure", [IntegrityError("wrong"), OSError(errno.EIO, "no"), KeyboardInterrupt()])
    def test_one_of_unknown_length_that_fails_has_no_end(self, connections: Open, failure: BaseException) -> None:
        got = bytearray()
        over = threading.Event()

        def listen(connection: socket.socket, _: Heard) -> None:
            while piece := connection.recv(1 << 16):
                got.extend(piece)
            over.set()

        def chunks() -> Iterator[bytes]:
            yield b"x" * 1000
            raise failure

        body = StreamedBody(chunks())
        with RawServer(listen) as server:
            with pytest.raises(type(failure)) as caught:
                connections().send("PATCH", f"{server.url}/", {}, body)
            assert caught.value is failure
            assert over.wait(60)
        # The last chunk would be one of no bytes (RFC 9112, section 7.1).
        assert bytes(got) == b"3e8\r\n" + b"x" * 1000 + b"\r\n"
        assert body.failure is (None if isinstance(failure, KeyboardInterrupt) else failure)

    def test_a_body_has_not_begun_where_no_connection_could_be_made(self, connections: Open) -> None:
        body = Body(iter([b"x"]), 1)
        with pytest.raises(NetworkError):
            connections().send("PATCH", "http://127.0.0.1:1/", {}, body)
        assert not body.begun

    @pytest.mark.parametrize(
        "failure",
        [
            IntegrityError("sha256:..."),
            NetworkError("the source broke off"),
            BrokenPipeError(errno.EPIPE, "Broken pipe"),
            ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
            OSError(errno.EIO, "Input/output error"),
            ValueError("read of closed file"),
            KeyboardInterrupt(),
        ],
        ids=lambda failure: type(failure).__name__,
    )
    def test_what_a_bodys_own_chunks_raise_is_not_taken_for_a_failure_of_the_network(
        self, connections: Open, faulty: Callable[..., CountingRegistry], failure: BaseException
    ) -> None:
        def chunks() -> Iterator[bytes]:
            yield b"x" * 1000
            raise failure

        registry = faulty()
        opened = connections()
        begun = opened.send("POST", f"{registry.url}/v2/app/blobs/uploads/", {}, None)
        begun.drain()
        location = begun.header("Location")
        with pytest.raises(type(failure)) as caught:
            opened.send("PATCH", f"{registry.url}{location}", {}, Body(chunks(), 2000))
        assert caught.value is failure
        # The body stayed short, so nothing was answered, and the connection is not used again.
        assert get(opened, f"{registry.url}/v2/").status == 200
        eventually(lambda: [request.received for request in registry.asked("PATCH")] == [1000])
        assert registry.accepted == 2

    def test_a_slow_reader_is_waited_for_as_long_as_bytes_move(self, connections: Open) -> None:
        size = 16 * MIB
        pause = threading.Event()

        def slowly(connection: socket.socket, heard: Heard) -> None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB // 8)
            left = int(heard.headers["Content-Length"])
            # Longer than connecting may take, and shorter than a stall.
            pause.wait(0.4)
            while left:
                # More pauses than either time-out has room for, if it were for all of it.
                left -= len(connection.recv(MIB // 4))
                pause.wait(0.06)
            connection.sendall(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")

        with RawServer(slowly) as server:
            opened = connections(connect_timeout=0.3, stall_timeout=3.0)
            body = Body(iter([memoryview(bytes(size))]), size)
            assert opened.send("PATCH", server.url, {}, body, (0.3, 60.0)).status == 202

    def test_a_reader_that_stalls_is_given_up(self, connections: Open) -> None:
        over = threading.Event()
        with RawServer(lambda *_: over.wait() and None) as server:  # type: ignore[arg-type]
            body = Body(iter([bytes(64 * MIB)]), 64 * MIB)
            with pytest.raises(NetworkError, match="timed out"):
                connections(connect_timeout=5.0, stall_timeout=0.2).send("PATCH", server.url, {}, body)
            over.set()

    def test_an_answer_may_be_waited_for_longer_than_a_stall(
        self, connections: Open, faulty: Callable[..., CountingRegistry]
    ) -> None:
        registry = faulty(Fault(Stall(0.6)))
        opened = connections(stall_timeout=0.1)
        assert opened.send("PUT", f"{registry.url}/v2/", {}, None, (5.0, 30.0)).status == 405

    def test_an_answer_that_was_given_while_the_body_was_sent_is_read(self, connections: Open) -> None:
        def refuse(connection: socket.socket, _: Heard) -> None:
            connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(MIB):
                pass

        with RawServer(refuse) as server:
            body = Body(iter([bytes(MIB)] * 8), 8 * MIB)
            assert connections().send("PATCH", server.url, {}, body).status == 413


class TestAnswers:
    def test_every_challenge_is_given(self, connections: Open) -> None:
        head = (
            b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic\r\nwww-authenticate: Bearer realm=x\r\nContent-Length: 0\r\n"
        )
        with RawServer(head + b"\r\n") as server:
            assert get(connections(), server.url).challenges() == ["Basic", "Bearer realm=x"]

    def test_a_body_is_read_up_to_a_limit_and_one_byte_more(
        self, connections: Open, faulty: Callable[..., CountingRegistry]
    ) -> None:
        size = 3 << 16
        registry = faulty(Fault(Reply(200, {}, b"x" * size), times=None))
        opened = connections()
        for limit in (0, 1, size // 3, size - 1, size, 2 * size):
            assert len(get(opened, registry.url).read(limit)) == min(limit + 1, size)

    def test_what_a_cdn_compressed_is_handed_out_as_it_came(self, connections: Open) -> None:
        with RawServer(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd") as server:
            assert b"".join(map(bytes, get(connections(), server.url).chunks())) == b"abcd"

    def test_a_body_that_breaks_off_is_an_error(
        self, connections: Open, faulty: Callable[..., CountingRegistry]
    ) -> None:
        registry = faulty(Fault(Reply(200, {}, b"x" * 1000)), Fault(Drop(10)))
        registry.faults = [Fault(Drop(1))]
        with pytest.raises(NetworkError, match="1 bytes came, 1 more were promised"):
            get(connections(), f"{registry.url}/v2/").read(100)

    def test_the_explanation_of_a_refusal_may_break_off(
        self, connections: Open, faulty: Callable[..., CountingRegistry]
    ) -> None:
        registry = faulty(Fault(Drop(1), times=2))
        opened = connections()
        assert get(opened, f"{registry.url}/v2/").explanation() == b"{"
        get(opened, f"{registry.url}/v2/").drain()

    def test_of_an_explanation_no_more_than_the_limit_is_kept(
        self, connections: Open, faulty: Callable[..., CountingRegistry]
    ) -> None:
        registry = faulty(Fault(Reply(500, {}, b"x" * MIB)))
        assert len(get(connections(), registry.url).explanation()) == limits.MAX_ERROR_BODY


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
#: What a server adds without an end. Here it does end, with a proper answer: who reads that far has no bound.
ENDLESS = 4 * MIB


def repeated(piece: bytes) -> bytes:
    return piece * (ENDLESS // len(piece))


class TestEndlessAnswers:
    """A server may keep a connection busy with what is not the body; every read of it gets bytes in time."""

    @pytest.mark.parametrize(
        "head",
        [
            repeated(CONTINUE) + EMPTY,
            CONTINUE * 11 + EMPTY,
            repeated(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n") + EMPTY,
            (CONTINUE + b"HTTP/1.1 102 Processing\r\n\r\n") * 6 + EMPTY,
            (b"HTTP/1.1 100 Continue\r\n" + (b"X: %b\r\n" % (b"x" * 60_000)) * 5 + b"\r\n") + EMPTY,
            b"HTTP/1.1 200 OK\r\n" + (b"X: %b\r\n" % (b"x" * 60_000)) * 90 + b"Content-Length: 0\r\n\r\n",
        ],
        ids=["100", "eleven", "103", "mixed", "long-interim", "headers"],
    )
    def test_a_head_without_an_end_is_given_up_for_good(self, connections: Open, head: bytes) -> None:
        with RawServer(head) as server, pytest.raises(FinalNetworkError, match="more than") as caught:
            get(connections(), f"{server.url}/v2/?secret=1")
        assert caught.value.exit_code == 7
        assert caught.value.what.startswith(f"GET {server.url}/v2/")
        assert "secret=1" not in caught.value.what

    @pytest.mark.parametrize(
        "body",
        [
            b"1\r\nx\r\n0\r\n" + repeated(b"X: y\r\n") + b"\r\n",
            (b"1;%b\r\nx\r\n" % (b"x" * 60_000)) * 60 + b"0\r\n\r\n",
            b"1\r\nx\r\n-1\r\n" + bytes(ENDLESS),
        ],
        ids=["trailers", "extensions", "negative"],
    )
    @pytest.mark.parametrize("small", [True, False])
    def test_a_body_in_chunks_without_an_end_is_given_up_for_good(
        self, connections: Open, body: bytes, small: bool
    ) -> None:
        with RawServer(CHUNKED + body) as server:
            opened = connections()
            answer = get(opened, f"{server.url}/v2/?secret=1")
            with pytest.raises(FinalNetworkError, match=r"more than|negative") as caught:
                answer.read(MIB) if small else b"".join(map(bytes, answer.chunks()))
            assert "secret=1" not in caught.value.what
            # Its connection is not used again.
            get(opened, server.url).close()
            assert len(server.heard) == 2

    def test_a_proxys_head_has_bounds_too(self, connections: Open) -> None:
        head = b"HTTP/1.1 200 Connection established\r\n" + repeated(b"X: y\r\n") + b"\r\n"
        with RawServer(head) as proxy, pytest.raises(NetworkError, match="more than"):
            get(connections(proxies={"https": proxy.url}), "https://registry.test/v2/")

    def test_some_interim_answers_of_any_kind_are_passed_over(self, connections: Open) -> None:
        interim = CONTINUE * 4 + b"HTTP/1.1 102 Processing\r\n\r\n" + b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        answer = interim + CONTINUE * 4 + CHUNKED + b"2\r\nok\r\n0\r\nX-Checksum: 1\r\nX-Other: 2\r\n\r\n"

        def twice(connection: socket.socket, _: Heard) -> None:
            connection.sendall(answer)
            read_head(connection)
            connection.sendall(answer)

        with RawServer(twice) as server:
            opened = connections()
            for _ in range(2):
                found = get(opened, server.url)
                assert (found.status, found.header("Link"), found.read(100)) == (200, None, b"ok")
            assert len(server.heard) == 1

    def test_an_answer_that_changes_the_protocol_is_none_to_wait_behind(self, connections: Open) -> None:
        with RawServer(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n") as server:
            assert get(connections(), server.url).status == 101

    def test_a_body_may_have_any_number_of_chunks_however_small(self, connections: Open) -> None:
        size = 100_000
        with RawServer(CHUNKED + b"1;a=b\r\nx\r\n" * size + b"0\r\n\r\n") as server:
            assert get(connections(), server.url).read(MIB) == b"x" * size


class TestSlowHeads:
    """A byte now and then is no stall."""

    @staticmethod
    def drips(start: bytes, end: bytes) -> Turn:
        """Return a turn that sends `start`, then byte after byte for as long as they are read, or half a minute."""

        def turn(connection: socket.socket, _: Heard) -> None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(start)
            until = time.monotonic() + 30
            while time.monotonic() < until:
                connection.sendall(b"x")
                threading.Event().wait(0.01)
            connection.sendall(end)

        return turn

    @pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX-Slow: ", CONTINUE + b"HTTP/1.1 200 "])
    def test_a_head_that_drips_is_given_up_and_may_be_tried_again(
        self, connections: Open, monkeypatch: pytest.MonkeyPatch, start: bytes
    ) -> None:
        monkeypatch.setattr(limits, "HEAD_TIME", 0.2)
        with RawServer(self.drips(start, b"\r\nContent-Length: 0\r\n\r\n")) as server:
            with pytest.raises(NetworkError, match="timed out") as caught:
                get(connections(), server.url)
            assert not isinstance(caught.value, FinalNetworkError)

    def test_a_proxys_head_that_drips_is_given_up_too(self, connections: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "HEAD_TIME", 0.2)
        with (
            RawServer(self.drips(b"HTTP/1.1 200 ", b"\r\n\r\n")) as proxy,
            pytest.raises(NetworkError, match="timed out"),
        ):
            get(connections(proxies={"https": proxy.url}), "https://registry.test/v2/")

    def test_a_body_and_the_wait_for_a_head_may_take_longer(
        self, connections: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "HEAD_TIME", 0.5)
        pause = threading.Event()

        def slowly(connection: socket.socket, _: Heard) -> None:
            for piece in (CONTINUE, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", b"abc"):
                pause.wait(0.6)
                connection.sendall(piece)

        with RawServer(slowly) as server:
            assert get(connections(), server.url).read(10) == b"abc"


class TestReuse:
    def test_an_answer_that_was_read_gives_its_connection_back(
        self, connections: Open, faulty: Callable[..., CountingRegistry]
    ) -> None:
        registry = faulty(Fault(Reply(404, {}, b"x" * 1000), path="missing", times=None))
        opened = connections()
        for _ in range(3):
            b"".join(map(bytes, get(opened, f"{registry.url}/v2/").chunks()))
            assert get(opened, f"{registry.url}/v2/").read(100)
            get(opened, f"{registry.url}/v2/missing").drain()
            opened.send("HEAD", f"{registry.url}/v2/", {}, None).drain()
            opened.send("POST", f"{registry.url}/v2/app/blobs/uploads/", {}, None).drain()
        assert registry.accepted == 1

    def test_an_answer_that_was_not_read_to_its_end_closes_its_connection(
        self, connections: Open, faulty: Callable[..., CountingRegistry]
    ) -> None:
        registry = faulty(Fault(Reply(200, {}, b"x" * (8 * MIB)), times=None))
        opened = connections()
        get(opened, registry.url).close()
        get(opened, registry.url).drain()
        get(opened, registry.url).read(10)
        chunks = get(opened, registry.url).chunks()
        next(chunks)
        chunks.close()  # type: ignore[attr-defined]
        assert registry.accepted == 4
        eventually(lambda: registry.open_connections == 0)
        get(opened, f"{registry.url}/v2/").read(10 * MIB)
        assert (registry.accepted, registry.open_connections) == (5, 1)

    def test_a_body_without_a_length_ends_with_its_connection(
        self, connections: Open, faulty: Callable[..., CountingRegistry]
    ) -> None:
        registry = faulty(Fault(NoContentLength()))
        opened = connections()
        assert get(opened, f"{registry.url}/v2/").read(100) == b"{}"
        assert get(opened, f"{registry.url}/v2/").read(100) == b"{}"
        assert registry.accepted == 2

    def test_a_kept_connection_that_the_server_has_closed_is_replaced(self, connections: Open) -> None:
        closed = threading.Semaphore(0)

        def once(connection: socket.socket, _: Heard) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            connection.shutdown(socket.SHUT_RDWR)
            closed.release()

        with RawServer(once) as server:
            opened = connections()
            for _ in range(3):
                get(opened, server.url).drain()
                closed.acquire()
            assert len(server.heard) == 3

    def test_as_many_connections_are_kept_as_there_may_be_jobs(
        self, connections: Open, faulty: Callable[..., CountingRegistry]
    ) -> None:
        jobs = 32
        registry = faulty(Fault(Stall(), times=jobs))
        opened = connections()
        threads = [threading.Thread(target=lambda: get(opened, f"{registry.url}/v2/").drain()) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(registry.requests) == jobs)
        registry.release()
        for thread in threads:
            thread.join()
        answers = [get(opened, f"{registry.url}/v2/") for _ in range(jobs)]
        for answer in answers:
            answer.drain()
        assert registry.accepted == jobs

    def test_closing_ends_idle_connections(self, connections: Open, faulty: Callable[..., CountingRegistry]) -> None:
        registry = faulty()
        opened = connections()
        get(opened, f"{registry.url}/v2/").drain()
        assert registry.open_connections == 1
        opened.close()
        eventually(lambda: registry.open_connections == 0)

    @pytest.mark.parametrize("tunable", [True, False])
    def test_silence_does_not_make_firewalls_forget_a_connection(
        self, connections: Open, monkeypatch: pytest.MonkeyPatch, tunable: bool
    ) -> None:
        idle = getattr(socket, "TCP_KEEPIDLE", None)
        if not tunable:
            # As on some other systems.
            monkeypatch.delattr(socket, "TCP_KEEPIDLE", raising=False)
        with RawServer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as server:
            answer = get(connections(), server.url)
            raw = answer._response.raw  # noqa: SLF001 - nobody but a test wants to know
            assert raw.connection is not None
            mine = raw.connection.sock
            assert mine.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert mine.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            if tunable and idle is not None:
                assert mine.getsockopt(socket.IPPROTO_TCP, idle) == 60
