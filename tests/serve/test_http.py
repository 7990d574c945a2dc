"""The embedded registry and HTTP: paths, methods, bodies and connections, whatever comes."""

from __future__ import annotations

import json
import socket
import struct
import time
from pathlib import Path
from typing import ClassVar

import pytest

from ocistream.serve import AccessEntry, Answer, Handler, Registry
from tests.images import digest_of
from tests.talking import Client, connect, converse, read_all

MIB = 1 << 20


class TestAnswers:
    def test_the_base_says_which_api_it_is(self, ask: Client) -> None:
        for target in ("/v2/", "/v2"):
            answer = ask("GET", target)
            assert (answer.status, answer.body) == (200, b"{}")
            assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
            assert answer.headers["Content-Type"] == "application/json"
            assert answer.headers["Server"] == "ocistream"
            assert answer.headers["Date"].endswith("GMT")

    @pytest.mark.parametrize("target", ["/", "/v1/", "/v2/app", "/v2/app/", "/v2/app/nothing/v1"])
    def test_an_unknown_path_is_not_found(self, ask: Client, target: str) -> None:
        answer = ask("GET", target)
        assert (answer.status, answer.codes) == (404, ["UNSUPPORTED"])
        assert answer.headers["Content-Type"] == "application/json"

    @pytest.mark.parametrize(
        ("method", "target", "allowed"),
        [
            ("POST", "/v2/", "GET, HEAD"),
            ("PUT", "/v2/_catalog", "GET, HEAD"),
            ("DELETE", "/v2/app/tags/list", "GET, HEAD"),
            ("GET", "/v2/app/blobs/uploads/", "POST"),
            ("PUT", "/v2/app/blobs/uploads", "POST"),
            ("POST", "/v2/app/blobs/uploads/id", "GET, HEAD, PATCH, PUT, DELETE"),
            ("PATCH", "/v2/app/manifests/v1", "GET, HEAD, PUT, DELETE"),
            ("PUT", f"/v2/app/blobs/{digest_of(b'')}", "GET, HEAD, DELETE"),
            ("POST", f"/v2/app/referrers/{digest_of(b'')}", "GET, HEAD"),
        ],
    )
    def test_a_method_that_does_not_fit_is_refused_and_the_others_named(
        self, ask: Client, method: str, target: str, allowed: str
    ) -> None:
        answer = ask(method, target)
        assert (answer.status, answer.codes, answer.headers["Allow"]) == (405, ["UNSUPPORTED"], allowed)

    @pytest.mark.parametrize(
        "target",
        [
            "/v2/App/tags/list",
            "/v2/app//x/tags/list",
            "/v2/../tags/list",
            "/v2/app/%2e%2e/tags/list",
            "/v2/app%2Fx/tags/list%00/../../etc/manifests/v1",
            "/v2/a%20b/manifests/v1",
            f"/v2/{'a' * 256}/manifests/v1",
            f"/v2/-app/blobs/{digest_of(b'')}",
            f"/v2/app_/referrers/{digest_of(b'')}",
            "/v2/tags/list",
        ],
    )
    def test_a_malformed_repository_is_refused(self, ask: Client, target: str) -> None:
        answer = ask("GET", target)
        assert (answer.status, answer.codes) == (400, ["NAME_INVALID"])

    @pytest.mark.parametrize("repository", ["a", "a/b/c", "a__b-c.d/e---f", "a/" + "b" * 253, "tags/blobs/uploads"])
    def test_any_name_of_the_specification_is_taken(self, ask: Client, repository: str) -> None:
        digest = ask.upload(b"layer", repository)
        assert ask("GET", f"/v2/{repository}/blobs/{digest}").body == b"layer"

    @pytest.mark.parametrize(
        "digest", ["sha256:abc", f"sha256:{'A' * 64}", "md5:" + "0" * 32, "sha256:" + "%2e%2e%2f" * 20, "v1"]
    )
    def test_a_malformed_digest_is_refused(self, ask: Client, digest: str) -> None:
        for target in (f"/v2/app/blobs/{digest}", f"/v2/app/referrers/{digest}"):
            answer = ask("GET", target)
            assert (answer.status, answer.codes) == (400, ["DIGEST_INVALID"])
        if ":" in digest:
            assert ask("PUT", f"/v2/app/manifests/{digest}", b"{}").codes == ["DIGEST_INVALID"]

    def test_a_percent_encoded_digest_is_understood(self, ask: Client) -> None:
        digest = ask.upload(b"layer")
        assert ask("GET", f"/v2/app/blobs/{digest.replace(':', '%3A')}").body == b"layer"

    def test_a_whole_url_is_understood(self, served: Registry) -> None:
        request = b"GET http://any.host/v2/?x=http://y HTTP/1.1\r\nHost: any.host\r\nConnection: close\r\n\r\n"
        assert converse(served.host, request).startswith(b"HTTP/1.1 200 ")

    def test_head_has_the_headers_of_get_and_no_body(self, served: Registry, ask: Client) -> None:
        digest = ask.upload(b"layer")
        for target, size in ((f"/v2/app/blobs/{digest}", 5), ("/v2/", 2), ("/v2/nothing/tags/list", None)):
            get, head = ask("GET", target), ask("HEAD", target)
            assert head.status == get.status
            assert head.headers["Content-Length"] == get.headers["Content-Length"] == str(size or len(get.body))
            assert set(head.headers) == set(get.headers)
            raw = converse(served.host, f"HEAD {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert raw.endswith(b"\r\n\r\n")

    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_a_web_page_is_refused(self, ask: Client, method: str) -> None:
        answer = ask(method, "/v2/app/blobs/uploads/", headers={"Origin": "https://page.example"})
        assert (answer.status, answer.codes) == (403, ["DENIED"])

    @pytest.mark.parametrize(
        "host", ["page.example", "page.example:5000", "127.0.0.1.page.example", "10.0.0.1:5000", ""]
    )
    def test_a_page_whose_name_was_made_to_mean_this_machine_is_refused(self, ask: Client, host: str) -> None:
        answer = ask("GET", "/v2/_catalog", headers={"Host": host, "Accept-Language": "en"})
        assert (answer.status, answer.codes) == (403, ["DENIED"])
        # Who is no browser may call us as it likes.
        assert ask("GET", "/v2/_catalog", headers={"Host": host}).status == 200

    @pytest.mark.parametrize("host", ["localhost:5000", "LOCALHOST", "127.0.0.1", "[::1]:5000", "a.localhost:80"])
    def test_a_browser_that_asks_this_machine_is_answered(self, ask: Client, host: str) -> None:
        assert ask("GET", "/v2/", headers={"Host": host, "Accept-Language": "en"}).status == 200

    def test_too_many_parameters_are_refused(self, ask: Client) -> None:
        assert ask("GET", "/v2/?" + "a=1&" * 40).status == 400


class TestConnections:
    def test_a_connection_serves_many_requests(self, served: Registry) -> None:
        raw = converse(served.host, b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
        assert raw.count(b"HTTP/1.1 200 ") == 5
        assert b"Connection: close" not in raw

    def test_many_connections_are_served_at_once(self, served: Registry) -> None:
        clients = [Client(served.host) for _ in range(50)]
        for client in clients:
            client.connection.request("GET", "/v2/")
        assert {client.connection.getresponse().status for client in clients} == {200}
        for client in clients:
            client.connection.close()

    def test_http_1_0_is_answered_and_closed(self, served: Registry) -> None:
        raw = converse(served.host, b"GET /v2/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert raw.startswith(b"HTTP/1.1 200 ")
        assert b"Connection: close\r\n" in raw

    def test_a_small_body_that_nobody_wants_leaves_the_connection_open(self, ask: Client) -> None:
        assert ask("POST", "/v2/nothing", b"x" * 1000).status == 404
        socket_before = ask.connection.sock
        assert ask("GET", "/v2/").status == 200
        assert ask.connection.sock is socket_before

    @pytest.mark.parametrize("chunked", [True, False])
    def test_a_large_body_that_nobody_wants_is_not_taken_for_a_request_and_the_answer_arrives(
        self, served: Registry, access_log: list[AccessEntry], chunked: bool
    ) -> None:
        body = b"GET /v2/_catalog HTTP/1.1\r\nHost: x\r\n\r\n" * 100_000
        length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
        head = b"PUT /v2/app/blobs/uploads/none HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % length
        raw = converse(served.host, head, b"%x\r\n" % len(body) if chunked else b"", body)
        assert raw.startswith(b"HTTP/1.1 404 ")
        assert b"Connection: close\r\n" in raw
        assert raw.count(b"HTTP/1.1") == 1
        served.stop()
        assert [entry.status for entry in access_log] == [404]

    def test_a_body_that_ends_early_and_is_not_wanted_ends_the_connection(self, served: Registry) -> None:
        raw = converse(served.host, b"PUT /v2/none HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nGET /")
        assert raw.startswith(b"HTTP/1.1 404 ")
        assert raw.count(b"HTTP/1.1") == 1

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            (b"Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
            (b"Content-Length: 5\r\nContent-Length: 6", 400),
            (b"Content-Length: five", 400),
            (b"Content-Length: -5", 400),
            (b"Content-Length: " + b"9" * 30, 400),
            (b"Transfer-Encoding: gzip, chunked", 501),
            (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 501),
        ],
    )
    def test_a_body_whose_end_is_not_certain_is_refused_and_the_connection_closed(
        self, served: Registry, headers: bytes, status: int
    ) -> None:
        request = (
            b"POST /v2/app/blobs/uploads/ HTTP/1.1\r\nHost: x\r\n"
            + headers
            + b"\r\n\r\nGET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        raw = converse(served.host, request)
        assert raw.startswith(b"HTTP/1.1 %d " % status)
        assert raw.count(b"HTTP/1.1") == 1

    @pytest.mark.parametrize(
        ("request_bytes", "status"),
        [
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
            (b"GET\r\n\r\n", 400),
            (b"GET /v2/ HTTP/3.0\r\n\r\n", 505),
            (b"BREW /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", 501),
            (b"GET /" + b"a" * 5_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
            (b"GET /v2/ HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
            (b"GET /v2/ HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", 431),
        ],
    )
    def test_what_is_no_request_is_answered_in_json_and_does_no_harm(
        self, served: Registry, ask: Client, request_bytes: bytes, status: int
    ) -> None:
        head, _, body = converse(served.host, request_bytes).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"Connection: close" in head
        assert json.loads(body)["errors"][0]["code"] == "UNSUPPORTED"
        assert ask("GET", "/v2/").status == 200

    def test_a_client_that_goes_away_is_no_traceback(
        self, served: Registry, ask: Client, capfd: pytest.CaptureFixture[str]
    ) -> None:
        digest = ask.upload(bytes(8 * MIB))
        requests = [
            b"GET /v2/app/blobs/%b HTTP/1.1\r\nHost: x\r\n\r\n" % digest.encode(),
            b"POST /v2/app/blobs/uploads/?digest=%b HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nsome"
            % digest.encode(),
            b"GET /v2/ HT",
            b"",
            b"nonsense\r\n\r\n",
        ]
        for request in requests:
            with connect(served.host) as connection:
                connection.sendall(request)
                # A reset, not a proper end.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            assert ask("GET", "/v2/").status == 200
        served.stop()
        assert capfd.readouterr().err == ""

    def test_a_client_that_is_gone_before_it_is_refused_is_no_traceback(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        class Late(Handler):
            def write_head(self, answer: Answer) -> None:
                # As the kernel says it of a connection that the client has reset.
                raise ConnectionResetError(answer.status)

        entries: list[AccessEntry] = []
        with Registry(tmp_path / "layout", handler=Late, log=entries.append) as registry:
            for request in (b"nonsense\r\n\r\n", b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"):
                assert converse(registry.host, request) == b""
        assert ["connection failed" in str(entry.problem) for entry in entries] == [True, True]
        assert capfd.readouterr().err == ""

    def test_a_client_that_falls_silent_is_let_go(self, tmp_path: Path) -> None:
        class Impatient(Handler):
            timeout: ClassVar[float | None] = 0.05

        entries: list[AccessEntry] = []
        with Registry(tmp_path / "layout", handler=Impatient, log=entries.append) as registry:
            with connect(registry.host) as idle:
                assert read_all(idle) == b""
            with connect(registry.host) as sending:
                sending.sendall(b"PUT /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
                assert read_all(sending) == b""
        assert [(entry.status, "timed out" in str(entry.problem)) for entry in entries] == [(0, True)]

    def test_what_comes_behind_a_body_that_was_given_up_is_no_request(self, tmp_path: Path) -> None:
        class Impatient(Handler):
            def read_body(self, buffer: memoryview) -> int:
                super().read_body(buffer[:5])
                raise TimeoutError

        with Registry(tmp_path / "layout", handler=Impatient) as registry:
            head = b"PUT /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n"
            assert converse(registry.host, head + b"12345GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n") == b""

    def test_a_client_that_is_refused_and_stays_is_let_go_soon(
        self, served: Registry, access_log: list[AccessEntry], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ocistream.serve.exchange._LINGER", 0.05)
        deadline = time.monotonic() + 30
        with connect(served.host) as connection:
            connection.sendall(b"PUT /v2/none HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            assert read_all(connection).startswith(b"HTTP/1.1 404 ")
            while not access_log and time.monotonic() < deadline:
                time.sleep(0.01)
            assert [entry.status for entry in access_log] == [404]

    def test_a_client_that_never_stops_sending_what_nobody_wants_is_cut(
        self, served: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ocistream.serve.exchange._LINGER", 0.05)
        with connect(served.host) as connection:
            connection.sendall(b"PUT /v2/none HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            with pytest.raises(ConnectionError):
                send_forever(connection)


def send_forever(connection: socket.socket) -> None:
    while True:
        connection.sendall(bytes(MIB))


class TestExpectation:
    def request(self, target: bytes, size: int) -> bytes:
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n"
        return head % (target, size)

    def test_a_body_is_asked_for_when_it_is_wanted(self, served: Registry) -> None:
        digest = digest_of(b"layer").encode()
        with connect(served.host) as connection:
            connection.sendall(self.request(b"/v2/app/blobs/uploads/?digest=" + digest, 5))
            assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(b"layer")
            assert connection.recv(4096).startswith(b"HTTP/1.1 201 ")

    def test_a_chunked_body_is_asked_for_once(self, served: Registry) -> None:
        digest = digest_of(b"layer").encode()
        request = b"POST /v2/app/blobs/uploads/?digest=%b HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\n" % digest
        raw = converse(served.host, request, b"Transfer-Encoding: chunked\r\n\r\n2\r\nla\r\n3\r\nyer\r\n0\r\n\r\n")
        assert raw.count(b"100 Continue") == 1
        assert b"HTTP/1.1 201 " in raw

    def test_a_body_that_is_not_wanted_is_not_asked_for(self, served: Registry) -> None:
        with connect(served.host) as connection:
            connection.sendall(self.request(b"/v2/none", 5))
            raw = read_all(connection)
        assert raw.startswith(b"HTTP/1.1 404 ")
        assert b"Connection: close\r\n" in raw
