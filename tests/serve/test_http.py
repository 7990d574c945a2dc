"""HTTP: paths, methods, bodies and connections."""

from __future__ import annotations

import json
import socket
import struct

import pytest

from ocistream.serve import AccessLogEntry
from tests.images import digest_of
from tests.raw_http import Client, connect, converse, read_all
from tests.serve.served_layout import Served

MIB = 1 << 20


class TestAnswers:
    def test_the_base_endpoint_names_the_api(self, ask: Client) -> None:
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
        assert answer.refusal == (404, ["UNSUPPORTED"])
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
    def test_an_unsupported_method_is_refused_with_the_allowed_methods(
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
        assert ask("GET", target).refusal == (400, ["NAME_INVALID"])

    @pytest.mark.parametrize("repository", ["a", "a/b/c", "a__b-c.d/e---f", "a/" + "b" * 253, "tags/blobs/uploads"])
    def test_any_repository_name_of_the_specification_is_accepted(self, ask: Client, repository: str) -> None:
        digest = ask.upload(b"layer", repository)
        assert ask("GET", f"/v2/{repository}/blobs/{digest}").body == b"layer"

    @pytest.mark.parametrize(
        "digest", ["sha256:abc", f"sha256:{'A' * 64}", "md5:" + "0" * 32, "sha256:" + "%2e%2e%2f" * 20, "v1"]
    )
    def test_a_malformed_digest_is_refused(self, ask: Client, digest: str) -> None:
        for target in (f"/v2/app/blobs/{digest}", f"/v2/app/referrers/{digest}"):
            assert ask("GET", target).refusal == (400, ["DIGEST_INVALID"])
        if ":" in digest:
            assert ask("PUT", f"/v2/app/manifests/{digest}", b"{}").codes == ["DIGEST_INVALID"]

    def test_a_percent_encoded_digest_is_accepted(self, ask: Client) -> None:
        digest = ask.upload(b"layer")
        assert ask("GET", f"/v2/app/blobs/{digest.replace(':', '%3A')}").body == b"layer"

    def test_an_absolute_url_is_accepted(self, served: Served) -> None:
        request = b"GET http://any.host/v2/?x=http://y HTTP/1.1\r\nHost: any.host\r\nConnection: close\r\n\r\n"
        assert converse(served.host, request).startswith(b"HTTP/1.1 200 ")

    def test_head_has_the_headers_of_get_and_no_body(self, served: Served, ask: Client) -> None:
        digest = ask.upload(b"layer")
        for target, size in ((f"/v2/app/blobs/{digest}", 5), ("/v2/", 2), ("/v2/nothing/tags/list", None)):
            get, head = ask("GET", target), ask("HEAD", target)
            assert head.status == get.status
            assert head.headers["Content-Length"] == get.headers["Content-Length"] == str(size or len(get.body))
            assert set(head.headers) == set(get.headers)
            raw = converse(served.host, f"HEAD {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert raw.endswith(b"\r\n\r\n")

    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_a_request_with_an_origin_is_refused(self, ask: Client, method: str) -> None:
        answer = ask(method, "/v2/app/blobs/uploads/", headers={"Origin": "https://page.example"})
        assert answer.refusal == (403, ["DENIED"])

    @pytest.mark.parametrize(
        "host", ["page.example", "page.example:5000", "127.0.0.1.page.example", "10.0.0.1:5000", ""]
    )
    def test_a_browser_under_a_foreign_host_name_is_refused(self, ask: Client, host: str) -> None:
        assert ask("GET", "/v2/_catalog", headers={"Host": host, "Accept-Language": "en"}).refusal == (403, ["DENIED"])
        # A client that is not a browser may use any host name.
        assert ask("GET", "/v2/_catalog", headers={"Host": host}).status == 200

    @pytest.mark.parametrize("host", ["localhost:5000", "LOCALHOST", "127.0.0.1", "[::1]:5000", "a.localhost:80"])
    def test_a_browser_under_a_loopback_host_name_is_served(self, ask: Client, host: str) -> None:
        assert ask("GET", "/v2/", headers={"Host": host, "Accept-Language": "en"}).status == 200

    def test_too_many_parameters_are_refused(self, ask: Client) -> None:
        assert ask("GET", "/v2/?" + "a=1&" * 40).status == 400


class TestConnections:
    def test_a_connection_serves_many_requests(self, served: Served) -> None:
        raw = converse(served.host, b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
        assert raw.count(b"HTTP/1.1 200 ") == 5
        assert b"Connection: close" not in raw

    def test_many_connections_are_served_at_once(self, served: Served) -> None:
        clients = [Client(served.host) for _ in range(50)]
        for client in clients:
            client.connection.request("GET", "/v2/")
        assert {client.connection.getresponse().status for client in clients} == {200}
        for client in clients:
            client.connection.close()

    def test_http_1_0_is_answered_and_the_connection_is_closed(self, served: Served) -> None:
        raw = converse(served.host, b"GET /v2/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert raw.startswith(b"HTTP/1.1 200 ")
        assert b"Connection: close\r\n" in raw

    def test_a_small_unwanted_body_leaves_the_connection_open(self, ask: Client) -> None:
        assert ask("POST", "/v2/nothing", b"x" * 1000).status == 404
        socket_before = ask.connection.sock
        assert ask("GET", "/v2/").status == 200
        assert ask.connection.sock is socket_before

    @pytest.mark.parametrize("chunked", [True, False])
    def test_a_large_unwanted_body_is_not_read_as_a_request(
        self, served: Served, access_log: list[AccessLogEntry], chunked: bool
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

    def test_an_unwanted_body_that_ends_early_closes_the_connection(self, served: Served) -> None:
        raw = converse(served.host, b"PUT /v2/none HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nGET /")
        assert raw.startswith(b"HTTP/1.1 404 ")
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
    def test_garbage_is_answered_with_a_json_error(
        self, served: Served, ask: Client, request_bytes: bytes, status: int
    ) -> None:
        head, _, body = converse(served.host, request_bytes).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"Connection: close" in head
        assert json.loads(body)["errors"][0]["code"] == "UNSUPPORTED"
        assert ask("GET", "/v2/").status == 200

    def test_a_client_that_disconnects_causes_no_traceback(
        self, served: Served, ask: Client, capfd: pytest.CaptureFixture[str]
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
                # A reset instead of a normal close.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            assert ask("GET", "/v2/").status == 200
        served.stop()
        assert capfd.readouterr().err == ""


class TestExpectation:
    def request(self, target: bytes, size: int) -> bytes:
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n"
        return head % (target, size)

    def test_a_wanted_body_gets_100_continue(self, served: Served) -> None:
        digest = digest_of(b"layer").encode()
        with connect(served.host) as connection:
            connection.sendall(self.request(b"/v2/app/blobs/uploads/?digest=" + digest, 5))
            assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(b"layer")
            assert connection.recv(4096).startswith(b"HTTP/1.1 201 ")

    def test_a_chunked_body_gets_100_continue_once(self, served: Served) -> None:
        digest = digest_of(b"layer").encode()
        request = b"POST /v2/app/blobs/uploads/?digest=%b HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\n" % digest
        raw = converse(served.host, request, b"Transfer-Encoding: chunked\r\n\r\n2\r\nla\r\n3\r\nyer\r\n0\r\n\r\n")
        assert raw.count(b"100 Continue") == 1
        assert b"HTTP/1.1 201 " in raw

    def test_an_unwanted_body_gets_no_100_continue(self, served: Served) -> None:
        with connect(served.host) as connection:
            connection.sendall(self.request(b"/v2/none", 5))
            raw = read_all(connection)
        assert raw.startswith(b"HTTP/1.1 404 ")
        assert b"Connection: close\r\n" in raw
