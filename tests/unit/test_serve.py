"""The embedded registry as a server: where it listens, how it starts and ends, and HTTP whatever comes."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from ocistream.errors import ArchiveError, NetworkError, NotFoundError, TerminatedError, UsageError
from ocistream.serve import AccessEntry, Handler, Registry
from tests.images import Layout, digest_of, small_image
from tests.schemas import validate
from tests.talking import Client, connect, converse, read_all

MIB = 1 << 20


class TestListening:
    def test_it_listens_on_a_free_port_of_loopback(self, served: Registry, ask: Client) -> None:
        host, port = served.host.split(":")
        assert host == "127.0.0.1"
        assert int(port) > 0
        assert ask("GET", "/v2/").status == 200

    def test_it_listens_on_ipv6_loopback_too(self, tmp_path: Path) -> None:
        for name in ("::1", "[::1]"):
            with Registry(tmp_path / "layout", address=(name, 0)) as registry:
                assert registry.host.startswith("[::1]:")
                answer = converse(registry.host, b"GET /v2/ HTTP/1.1\r\nConnection: close\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 200 ")

    def test_localhost_is_loopback(self, tmp_path: Path) -> None:
        with Registry(tmp_path / "layout", address=("localhost", 0)) as registry:
            assert registry.host.startswith("127.0.0.1:")

    @pytest.mark.parametrize("name", ["0.0.0.0", "::", "192.0.2.1", "", "registry.example", "127.1 "])  # noqa: S104
    def test_any_other_address_is_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(UsageError, match="not an address on loopback"):
            Registry(tmp_path / "layout", address=(name, 0))
        assert not (tmp_path / "layout").exists()

    @pytest.mark.parametrize("port", [-1, 65536])
    def test_a_port_that_cannot_be_is_refused(self, tmp_path: Path, port: int) -> None:
        with pytest.raises(UsageError, match="no port"):
            Registry(tmp_path / "layout", address=("127.0.0.1", port))

    def test_a_port_that_is_taken_is_a_network_error(self, served: Registry, tmp_path: Path) -> None:
        port = int(served.host.rpartition(":")[2])
        with pytest.raises(NetworkError, match="in use"):
            Registry(tmp_path / "layout", address=("127.0.0.1", port))


class TestLayout:
    def test_a_new_directory_becomes_a_layout(self, served: Registry, tmp_path: Path) -> None:
        del served
        validate((tmp_path / "served/index.json").read_bytes(), "index")
        validate((tmp_path / "served/oci-layout").read_bytes(), "layout")

    def test_a_layout_that_is_there_is_left_as_it_is(self, layout: Layout) -> None:
        small_image(layout, name="v1")
        before = (layout.path / "index.json").read_bytes()
        with Registry(layout.path):
            pass
        assert (layout.path / "index.json").read_bytes() == before

    def test_a_directory_of_other_things_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").touch()
        with pytest.raises(UsageError, match="not an OCI layout"):
            Registry(tmp_path)

    def test_a_layout_of_another_version_is_refused(self, layout: Layout) -> None:
        (layout.path / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
        with pytest.raises(ArchiveError, match="version"):
            Registry(layout.path)

    def test_read_only_makes_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError):
            Registry(tmp_path / "layout", read_only=True)
        assert list(tmp_path.iterdir()) == []


class TestReadOnly:
    @pytest.fixture
    def ask(self, layout: Layout) -> Iterator[Client]:
        small_image(layout, name="app:v1")
        with Registry(layout.path, read_only=True) as registry, Client(registry.host) as client:
            yield client

    def test_images_are_served(self, ask: Client) -> None:
        assert ask("GET", "/v2/app/manifests/v1").status == 200

    @pytest.mark.parametrize(
        ("method", "target", "allowed"),
        [
            ("POST", "/v2/app/blobs/uploads/", ""),
            ("PUT", "/v2/app/manifests/v2", "GET, HEAD"),
            ("DELETE", "/v2/app/manifests/v1", "GET, HEAD"),
            ("DELETE", f"/v2/app/blobs/{digest_of(b'')}", "GET, HEAD"),
        ],
    )
    def test_nothing_can_be_changed(
        self, ask: Client, layout: Layout, method: str, target: str, allowed: str
    ) -> None:
        before = sorted(layout.path.rglob("*"))
        answer = ask(method, target, b"{}")
        assert (answer.status, answer.codes) == (405, ["UNSUPPORTED"])
        assert answer.headers["Allow"] == allowed
        assert sorted(layout.path.rglob("*")) == before
        assert ask("GET", "/v2/app/manifests/v1").status == 200


class TestEnding:
    def test_stop_frees_the_port_and_may_be_called_twice(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path / "layout")
        registry.start()
        port = int(registry.host.rpartition(":")[2])
        registry.stop()
        registry.stop()
        with Registry(tmp_path / "layout", address=("127.0.0.1", port)):
            pass

    def test_stop_before_start_frees_the_port(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path / "layout")
        registry.stop()
        with pytest.raises(ConnectionError):
            connect(registry.host)

    def test_stop_cuts_connections_that_are_idle_and_those_that_send(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path / "layout")
        registry.start()
        with connect(registry.host) as idle, connect(registry.host) as sending:
            idle.sendall(b"GET /v2/ HTTP/1.1\r\n\r\n")
            assert idle.recv(12) == b"HTTP/1.1 200"
            sending.sendall(b"POST /v2/app/blobs/uploads/ HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
            location = sending.recv(4096).split(b"Location: ")[1].split(b"\r\n")[0]
            sending.sendall(b"PATCH %b HTTP/1.1\r\nContent-Length: 99\r\n\r\nsome" % location)
            registry.stop()
            read_all(idle)
            read_all(sending)
        assert [path.name for path in (tmp_path / "layout/blobs").rglob(".*")] == []

    def test_an_exception_ends_it_when_it_serves_in_the_main_thread(self, tmp_path: Path) -> None:
        class Interrupting(Registry):
            def admit(self, connection: socket.socket) -> socket.socket:
                connection.close()
                message = "SIGTERM"
                raise TerminatedError(message)

        registry = Interrupting(tmp_path / "layout")
        with connect(registry.host), pytest.raises(TerminatedError):
            registry.serve_forever()
        registry.stop()
        with pytest.raises(ConnectionError):
            connect(registry.host)

    def test_stop_ends_it_when_it_serves_in_another_thread(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path / "layout")
        thread = threading.Thread(target=registry.serve_forever)
        thread.start()
        with Client(registry.host) as ask:
            assert ask("GET", "/v2/").status == 200
        registry.stop()
        thread.join(60)
        assert not thread.is_alive()


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
        request = b"GET http://any.host/v2/?x=http://y HTTP/1.1\r\nConnection: close\r\n\r\n"
        assert converse(served.host, request).startswith(b"HTTP/1.1 200 ")

    def test_head_has_the_headers_of_get_and_no_body(self, served: Registry, ask: Client) -> None:
        digest = ask.upload(b"layer")
        for target, size in ((f"/v2/app/blobs/{digest}", 5), ("/v2/", 2), ("/v2/nothing/tags/list", None)):
            get, head = ask("GET", target), ask("HEAD", target)
            assert head.status == get.status
            assert head.headers["Content-Length"] == get.headers["Content-Length"] == str(size or len(get.body))
            assert set(head.headers) == set(get.headers)
            raw = converse(served.host, f"HEAD {target} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
            assert raw.endswith(b"\r\n\r\n")

    def test_too_many_parameters_are_refused(self, ask: Client) -> None:
        assert ask("GET", "/v2/?" + "a=1&" * 40).status == 400


class TestFailures:
    def test_a_damaged_index_is_an_error_body_without_a_path(
        self, served: Registry, ask: Client, tmp_path: Path, access_log: list[AccessEntry]
    ) -> None:
        del served
        (tmp_path / "served/index.json").write_text("{")
        answer = ask("GET", "/v2/app/tags/list")
        assert (answer.status, answer.codes) == (500, ["UNKNOWN"])
        assert str(tmp_path).encode() not in answer.body
        assert ask("GET", "/v2/").status == 200
        assert "index.json" in str(access_log[0].problem)

    def test_a_missing_index_is_an_empty_registry(self, ask: Client, tmp_path: Path) -> None:
        (tmp_path / "served/index.json").unlink()
        assert ask("GET", "/v2/_catalog").json() == {"repositories": []}

    def test_a_layout_that_is_gone_is_an_error_body(self, ask: Client, tmp_path: Path) -> None:
        (tmp_path / "served").rename(tmp_path / "elsewhere")
        assert ask("POST", "/v2/app/blobs/uploads/").status == 500
        assert ask("PUT", "/v2/app/manifests/v1", b'{"schemaVersion": 2, "manifests": []}').status == 500
        assert not (tmp_path / "served").exists()

    def test_a_mistake_of_ours_is_shown_on_our_stderr_and_never_to_the_client(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        class Mistaken(Handler):
            def dispatch(self) -> None:
                raise ZeroDivisionError

        with Registry(tmp_path / "layout", handler=Mistaken) as registry:
            assert converse(registry.host, b"GET /v2/ HTTP/1.1\r\n\r\n") == b""
        assert "ZeroDivisionError" in capfd.readouterr().err

    def test_a_file_that_becomes_shorter_while_it_is_sent_ends_the_connection(self, tmp_path: Path) -> None:
        class Cutting(Handler):
            def write_head(self, answer: object) -> None:
                super().write_head(answer)  # type: ignore[arg-type]
                if self.command == "GET":
                    self.registry.layout.blob_path(digest).write_bytes(b"la")

        problems: list[str | None] = []
        with Registry(
            tmp_path / "layout", handler=Cutting, log=lambda entry: problems.append(entry.problem)
        ) as registry:
            with Client(registry.host) as ask:
                digest = ask.upload(b"layer")
            raw = converse(registry.host, f"GET /v2/app/blobs/{digest} HTTP/1.1\r\n\r\n".encode())
        assert b"Content-Length: 5\r\n" in raw
        assert raw.endswith(b"\r\n\r\nla")
        assert problems[-1] == "a file became shorter while it was sent"

    def test_a_failure_behind_a_half_sent_answer_ends_the_connection(self, tmp_path: Path) -> None:
        class Failing(Handler):
            def write_body(self, body: object) -> None:
                raise ArchiveError(str(body))

        with Registry(tmp_path / "layout", handler=Failing) as registry:
            raw = converse(registry.host, b"GET /v2/ HTTP/1.1\r\n\r\n" * 2)
        assert raw.count(b"HTTP/1.1") == 1


class TestConnections:
    def test_a_connection_serves_many_requests(self, served: Registry) -> None:
        raw = converse(served.host, b"GET /v2/ HTTP/1.1\r\n\r\n" * 5)
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
        body = b"GET /v2/_catalog HTTP/1.1\r\n\r\n" * 100_000
        length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
        head = b"PUT /v2/app/blobs/uploads/none HTTP/1.1\r\n%b\r\n\r\n" % length
        raw = converse(served.host, head, b"%x\r\n" % len(body) if chunked else b"", body)
        assert raw.startswith(b"HTTP/1.1 404 ")
        assert b"Connection: close\r\n" in raw
        assert raw.count(b"HTTP/1.1") == 1
        served.stop()
        assert [entry.status for entry in access_log] == [404]

    def test_a_body_that_ends_early_and_is_not_wanted_ends_the_connection(self, served: Registry) -> None:
        raw = converse(served.host, b"PUT /v2/none HTTP/1.1\r\nContent-Length: 9\r\n\r\nGET /")
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
        request = b"POST /v2/app/blobs/uploads/ HTTP/1.1\r\n" + headers + b"\r\n\r\nGET /v2/ HTTP/1.1\r\n\r\n"
        raw = converse(served.host, request)
        assert raw.startswith(b"HTTP/1.1 %d " % status)
        assert raw.count(b"HTTP/1.1") == 1

    @pytest.mark.parametrize(
        ("request_bytes", "status"),
        [
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
            (b"GET\r\n\r\n", 400),
            (b"GET /v2/ HTTP/3.0\r\n\r\n", 505),
            (b"BREW /v2/ HTTP/1.1\r\n\r\n", 501),
            (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
            (b"GET /v2/ HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
            (b"GET /v2/ HTTP/1.1\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", 431),
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
            b"GET /v2/app/blobs/%b HTTP/1.1\r\n\r\n" % digest.encode(),
            b"POST /v2/app/blobs/uploads/?digest=%b HTTP/1.1\r\nContent-Length: 99\r\n\r\nsome" % digest.encode(),
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

    def test_a_client_that_falls_silent_is_let_go(self, tmp_path: Path) -> None:
        class Impatient(Handler):
            timeout: ClassVar[float | None] = 0.05

        entries: list[AccessEntry] = []
        with Registry(tmp_path / "layout", handler=Impatient, log=entries.append) as registry:
            with connect(registry.host) as idle:
                assert read_all(idle) == b""
            with connect(registry.host) as sending:
                sending.sendall(b"PUT /v2/app/manifests/v1 HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
                assert read_all(sending) == b""
        assert [(entry.status, "timed out" in str(entry.problem)) for entry in entries] == [(0, True)]

    def test_a_client_that_never_stops_sending_what_nobody_wants_is_cut(
        self, served: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ocistream.serve.exchange._LINGER", 0.05)
        with connect(served.host) as connection:
            connection.sendall(b"PUT /v2/none HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
            with pytest.raises(ConnectionError):
                while True:
                    connection.sendall(bytes(MIB))


class TestExpectation:
    def request(self, target: bytes, size: int) -> bytes:
        head = b"POST %b HTTP/1.1\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n"
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
        request = b"POST /v2/app/blobs/uploads/?digest=%b HTTP/1.1\r\nExpect: 100-Continue\r\n" % digest
        raw = converse(served.host, request, b"Transfer-Encoding: chunked\r\n\r\n2\r\nla\r\n3\r\nyer\r\n0\r\n\r\n")
        assert raw.count(b"100 Continue") == 1
        assert b"HTTP/1.1 201 " in raw

    def test_a_body_that_is_not_wanted_is_not_asked_for(self, served: Registry) -> None:
        with connect(served.host) as connection:
            connection.sendall(self.request(b"/v2/none", 5))
            raw = read_all(connection)
        assert raw.startswith(b"HTTP/1.1 404 ")
        assert b"Connection: close\r\n" in raw


class TestLog:
    def test_each_request_is_logged_with_its_bytes(
        self, served: Registry, ask: Client, access_log: list[AccessEntry]
    ) -> None:
        digest = ask.upload(b"layer")
        ask("GET", f"/v2/app/blobs/{digest}")
        ask("HEAD", "/v2/none?x=1")
        converse(served.host, b"nonsense\r\n\r\n")
        served.stop()
        # Each is logged by its connection's thread, when its answer is on its way already.
        logged = {e.method: e for e in access_log}
        seen = {method: (e.status, e.received, e.sent) for method, e in logged.items() if method != "-"}
        assert seen == {"POST": (201, 5, 0), "GET": (200, 0, 5), "HEAD": (404, 0, 0)}
        assert logged["HEAD"].target == "/v2/none?x=1"
        assert logged["HEAD"].problem == "there is no such endpoint"
        assert logged["-"].status == 400
        assert {e.client for e in access_log} == {"127.0.0.1"}
        assert all(e.seconds >= 0 for e in access_log)

    def test_without_a_log_nothing_is_said(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        with Registry(tmp_path / "layout") as registry, Client(registry.host) as ask:
            ask("GET", "/v2/none")
            converse(registry.host, b"nonsense\r\n\r\n")
        assert capfd.readouterr() == ("", "")
