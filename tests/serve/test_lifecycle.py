"""Starting and stopping the registry: addresses, the layout directory, failures, and the log."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocistream.errors import ArchiveError, NetworkError, NotFoundError, UsageError
from ocistream.serve import AccessLogEntry, Registry
from tests.images import Layout, digest_of, small_image
from tests.raw_http import Client, connect, converse, read_all
from tests.raw_server import eventually
from tests.schemas import validate
from tests.serve.served_layout import Served

MIB = 1 << 20


class TestListening:
    def test_the_default_is_a_free_port_of_loopback(self, served: Served, ask: Client) -> None:
        host, port = served.host.split(":")
        assert host == "127.0.0.1"
        assert int(port) > 0
        assert ask("GET", "/v2/").status == 200

    def test_ipv6_loopback_is_accepted(self, tmp_path: Path) -> None:
        for name in ("::1", "[::1]"):
            with Registry(tmp_path / "layout", address=(name, 0)) as registry:
                assert registry.host.startswith("[::1]:")
                answer = converse(registry.host, b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 200 ")

    def test_localhost_is_accepted(self, tmp_path: Path) -> None:
        with Registry(tmp_path / "layout", address=("localhost", 0)) as registry:
            assert registry.host.startswith("127.0.0.1:")

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            *((address, "other machines could connect") for address in ("0.0.0.0", "::", "192.0.2.1")),  # noqa: S104
            *((name, "it is a host name, not an address") for name in ("", "registry.example", "127.1 ")),
        ],
    )
    def test_any_other_address_is_refused(self, tmp_path: Path, name: str, problem: str) -> None:
        with pytest.raises(UsageError, match=problem):
            Registry(tmp_path / "layout", address=(name, 0))
        assert not (tmp_path / "layout").exists()

    @pytest.mark.parametrize("port", [-1, 65536])
    def test_an_impossible_port_is_refused(self, tmp_path: Path, port: int) -> None:
        with pytest.raises(UsageError, match="no such port"):
            Registry(tmp_path / "layout", address=("127.0.0.1", port))

    def test_a_port_in_use_is_a_network_error(self, served: Served, tmp_path: Path) -> None:
        port = int(served.host.rpartition(":")[2])
        with pytest.raises(NetworkError, match="in use"):
            Registry(tmp_path / "layout", address=("127.0.0.1", port))
        assert not (tmp_path / "layout").exists()


class TestLayout:
    def test_a_new_directory_becomes_a_layout(self, served: Served, tmp_path: Path) -> None:
        del served
        validate((tmp_path / "served/index.json").read_bytes(), "index")
        validate((tmp_path / "served/oci-layout").read_bytes(), "layout")

    def test_an_existing_layout_is_not_changed(self, layout: Layout) -> None:
        small_image(layout, name="v1")
        before = (layout.path / "index.json").read_bytes()
        with Registry(layout.path):
            pass
        assert (layout.path / "index.json").read_bytes() == before

    def test_a_directory_of_other_files_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").touch()
        with pytest.raises(UsageError, match="not an OCI layout"):
            Registry(tmp_path)

    def test_a_layout_of_another_version_is_refused(self, layout: Layout) -> None:
        (layout.path / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
        with pytest.raises(ArchiveError, match="version"):
            Registry(layout.path)

    def test_read_only_creates_nothing(self, tmp_path: Path) -> None:
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
    def test_every_write_is_refused(self, ask: Client, layout: Layout, method: str, target: str, allowed: str) -> None:
        before = sorted(layout.path.rglob("*"))
        answer = ask(method, target, b"{}")
        assert answer.refusal == (405, ["UNSUPPORTED"])
        assert answer.headers["Allow"] == allowed
        assert sorted(layout.path.rglob("*")) == before
        assert ask("GET", "/v2/app/manifests/v1").status == 200


class TestStopping:
    def test_stop_frees_the_port_and_may_be_called_twice(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path / "layout")
        registry.start()
        port = int(registry.host.rpartition(":")[2])
        registry.stop()
        registry.stop()
        with Registry(tmp_path / "layout", address=("127.0.0.1", port)):
            pass

    def test_stop_right_after_start(self, tmp_path: Path) -> None:
        for _ in range(20):
            with Registry(tmp_path / "layout"):
                pass

    def test_stop_before_start_frees_the_port(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path / "layout")
        registry.stop()
        with pytest.raises(ConnectionError):
            connect(registry.host)

    def test_stop_closes_idle_and_busy_connections(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path / "layout")
        registry.start()
        with connect(registry.host) as idle, connect(registry.host) as sending:
            idle.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
            assert idle.recv(12) == b"HTTP/1.1 200"
            sending.sendall(b"POST /v2/app/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            location = sending.recv(4096).split(b"Location: ")[1].split(b"\r\n")[0]
            sending.sendall(b"PATCH %b HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nsome" % location)
            registry.stop()
            read_all(idle)
            read_all(sending)
        assert [path.name for path in (tmp_path / "layout/blobs").rglob(".*")] == []

    def test_stop_ends_serve_forever_in_another_thread(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path / "layout")
        thread = threading.Thread(target=registry.serve_forever)
        thread.start()
        with Client(registry.host) as ask:
            assert ask("GET", "/v2/").status == 200
        registry.stop()
        thread.join(60)
        assert not thread.is_alive()

    def test_serve_forever_after_start_waits_for_stop(self, tmp_path: Path) -> None:
        with Registry(tmp_path / "layout") as registry:
            thread = threading.Thread(target=registry.serve_forever)
            thread.start()
            with Client(registry.host) as ask:
                assert ask("GET", "/v2/").status == 200
            assert thread.is_alive()
            registry.stop()
            thread.join(60)
            assert not thread.is_alive()


class TestFailures:
    def test_a_damaged_index_is_an_error_body_without_a_path(
        self, served: Served, ask: Client, tmp_path: Path, access_log: list[AccessLogEntry]
    ) -> None:
        del served
        (tmp_path / "served/index.json").write_text("{")
        answer = ask("GET", "/v2/app/tags/list")
        assert answer.refusal == (500, ["UNKNOWN"])
        assert str(tmp_path).encode() not in answer.body
        assert ask("GET", "/v2/").status == 200
        assert "index.json" in str(access_log[0].problem)

    def test_a_missing_index_is_an_empty_registry(self, ask: Client, tmp_path: Path) -> None:
        (tmp_path / "served/index.json").unlink()
        assert ask("GET", "/v2/_catalog").json() == {"repositories": []}

    def test_a_missing_layout_is_an_error_body(self, ask: Client, tmp_path: Path) -> None:
        (tmp_path / "served").rename(tmp_path / "elsewhere")
        assert ask("POST", "/v2/app/blobs/uploads/").status == 500
        assert ask("PUT", "/v2/app/manifests/v1", b'{"schemaVersion": 2, "manifests": []}').status == 500
        assert not (tmp_path / "served").exists()

    def test_a_bug_is_shown_on_stderr(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        def broken(entry: AccessLogEntry) -> None:
            raise ZeroDivisionError(entry.status)

        with Served(tmp_path / "layout", log=broken) as registry:
            answer = converse(registry.host, b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
        assert "ZeroDivisionError" in capfd.readouterr().err

    def test_a_file_that_is_truncated_while_it_is_sent_ends_the_connection(
        self, served: Served, ask: Client, access_log: list[AccessLogEntry]
    ) -> None:
        content = bytes(32 * MIB)
        digest = ask.upload(content)
        with connect(served.host, receive_buffer=4096) as slow:
            slow.sendall(f"GET /v2/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 2)
            head = slow.recv(512)
            assert b"Content-Length: %d\r\n" % len(content) in head
            os.truncate(served.blob(digest), MIB)
            received = head + read_all(slow)
        assert received.count(b"HTTP/1.1 200 ") == 1
        assert len(received) < len(content)
        eventually(lambda: any("a file became shorter" in (entry.problem or "") for entry in access_log))


class TestLog:
    def test_each_request_is_logged_with_its_byte_counts(
        self, served: Served, ask: Client, access_log: list[AccessLogEntry]
    ) -> None:
        digest = ask.upload(b"layer")
        ask("GET", f"/v2/app/blobs/{digest}")
        ask("HEAD", "/v2/none?x=1")
        converse(served.host, b"nonsense\r\n\r\n")
        served.stop()
        # A request is logged after its answer is sent.
        logged = {e.method: e for e in access_log}
        seen = {method: (e.status, e.received, e.sent) for method, e in logged.items() if method != "-"}
        assert seen == {"POST": (201, 5, 0), "GET": (200, 0, 5), "HEAD": (404, 0, 0)}
        assert logged["HEAD"].target == "/v2/none?x=1"
        assert logged["HEAD"].problem == "no such endpoint"
        assert (logged["-"].status, logged["-"].sent > 10) == (400, True)
        assert {e.client for e in access_log} == {"127.0.0.1"}
        assert all(e.seconds >= 0 for e in access_log)

    def test_without_a_log_nothing_is_printed(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        with Registry(tmp_path / "layout") as registry, Client(registry.host) as ask:
            ask("GET", "/v2/none")
            converse(registry.host, b"nonsense\r\n\r\n")
        assert capfd.readouterr() == ("", "")
