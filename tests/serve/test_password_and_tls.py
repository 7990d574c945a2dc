"""A registry with a password and with TLS."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ocistream.errors import UsageError
from ocistream.serve import AccessLogEntry, BasicAuth, Registry
from tests.archives import small_first, tar_of
from tests.certificates import Certificate, make_certificate
from tests.images import Layout, digest_of
from tests.raw_http import Client, connect
from tests.raw_server import eventually
from tests.registry_http import basic
from tests.serve.served_layout import Served, server_tls

MIB = 1 << 20
PASSWORD = "an engine: 1843/+é"


@pytest.fixture
def log() -> list[AccessLogEntry]:
    return []


@pytest.fixture
def guarded(tmp_path: Path, log: list[AccessLogEntry]) -> Iterator[Client]:
    """Return a connection to a registry with a password."""
    gate = BasicAuth("ada", PASSWORD)
    with Registry(tmp_path / "served", auth=gate, log=log.append) as registry, Client(registry.host) as client:
        yield client


class TestPassword:
    def test_a_request_without_the_password_is_challenged(self, guarded: Client, log: list[AccessLogEntry]) -> None:
        right = base64.b64encode(f"ada:{PASSWORD}".encode()).decode()
        for shown in (
            None,
            "",
            "Basic",
            f"Bearer {right}",
            f"Basic {right[:-4]}",
            f"Basic {right}AAAA",
            "Basic ünsinn".encode().decode("latin-1"),
            basic("ada", "")["Authorization"],
            basic("", PASSWORD)["Authorization"],
            basic("bob", PASSWORD)["Authorization"],
            basic("ada", f"{PASSWORD} ")["Authorization"],
            basic("ada", "lovelace")["Authorization"],
        ):
            for method, target in (("GET", "/v2/"), ("GET", "/v2/_catalog"), ("POST", "/v2/app/blobs/uploads/")):
                answer = guarded(method, target, headers={} if shown is None else {"Authorization": shown})
                assert answer.refusal == (401, ["UNAUTHORIZED"]), (shown, target)
                assert answer.headers["WWW-Authenticate"].startswith('Basic realm="')
        assert {entry.user for entry in log} == {None}

    def test_a_request_with_the_password_is_served(self, guarded: Client, log: list[AccessLogEntry]) -> None:
        headers = basic("ada", PASSWORD)
        assert guarded("GET", "/v2/", headers=headers).status == 200
        assert guarded("POST", f"/v2/app/blobs/uploads/?digest={digest_of(b'x')}", b"x", headers).status == 201
        lower = {"Authorization": headers["Authorization"].replace("Basic", "basic")}
        assert guarded("GET", f"/v2/app/blobs/{digest_of(b'x')}", headers=lower).body == b"x"
        # Each request must have the password, even on the same connection.
        assert guarded("GET", "/v2/").status == 401
        assert [entry.user for entry in log[:3]] == ["ada"] * 3

    def test_no_answer_and_no_log_entry_has_a_password(self, guarded: Client, log: list[AccessLogEntry]) -> None:
        answers = [guarded("GET", "/v2/", headers=basic("ada", password)) for password in ("a guess", PASSWORD)]
        assert [answer.status for answer in answers] == [401, 200]
        for answer in answers:
            assert "guess" not in f"{answer.headers} {answer.body!r}"
        eventually(lambda: len(log) == 2)
        assert "guess" not in repr(log)
        assert PASSWORD not in repr(log)
        assert PASSWORD not in repr(vars(BasicAuth("ada", PASSWORD)))

    @pytest.mark.parametrize(("user", "password"), [("", "x"), ("ada", ""), ("a:b", "x")])
    def test_an_unusable_user_or_password_is_refused(self, user: str, password: str) -> None:
        with pytest.raises(UsageError):
            BasicAuth(user, password)


class TestAddresses:
    @pytest.mark.parametrize("name", ["0.0.0.0", "::"])  # noqa: S104
    def test_any_address_is_allowed_with_a_password(self, tmp_path: Path, name: str) -> None:
        if name == "::" and not socket.has_ipv6:
            pytest.skip("this Python has no IPv6")
        try:
            registry = Registry(tmp_path / "served", address=(name, 0), auth=BasicAuth("ada", PASSWORD))
        except Exception as error:
            if name == "::":
                pytest.skip(f"this machine has no IPv6: {error}")
            raise
        with registry, Client(f"127.0.0.1:{registry.host.rpartition(':')[2]}") as client:
            assert client("GET", "/v2/").status == 401

    def test_a_host_name_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="it is a host name, not an address"):
            Registry(tmp_path / "served", address=("registry.example", 0), auth=BasicAuth("ada", PASSWORD))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


class TestTls:
    def test_an_archive_and_a_directory_are_served_over_tls(
        self, layout: Layout, tmp_path: Path, certificate: Certificate
    ) -> None:
        image = layout.image([3 * MIB + 1], name="app:v1")
        (tmp_path / "app.tar").write_bytes(tar_of(small_first(layout)))
        layer = layout.read(image["digest"])["layers"][0]
        content = layout.file(layer["digest"]).read_bytes()
        for path in (layout.path, tmp_path / "app.tar"):
            with Registry(path, tls=server_tls(certificate), read_only=True) as registry:
                trusting = ssl.create_default_context(cafile=str(certificate.file))
                connection = http.client.HTTPSConnection(registry.host, context=trusting, timeout=60)
                for headers, expected in (({}, content), ({"Range": "bytes=1000000-"}, content[1_000_000:])):
                    connection.request("GET", f"/v2/library/app/blobs/{layer['digest']}", headers=headers)
                    assert connection.getresponse().read() == expected
                connection.close()

    def test_several_clients_read_one_archive_at_once(
        self, layout: Layout, tmp_path: Path, certificate: Certificate
    ) -> None:
        image = layout.image([2 * MIB], name="app:v1")
        (tmp_path / "app.tar").write_bytes(tar_of(small_first(layout)))
        layer = layout.read(image["digest"])["layers"][0]["digest"]
        content = layout.file(layer).read_bytes()
        trusting = ssl.create_default_context(cafile=str(certificate.file))

        def read(start: int) -> bool:
            connection = http.client.HTTPSConnection(registry.host, context=trusting, timeout=60)
            connection.request("GET", f"/v2/library/app/blobs/{layer}", headers={"Range": f"bytes={start}-"})
            found = connection.getresponse().read()
            connection.close()
            return found == content[start:]

        with Registry(tmp_path / "app.tar", tls=server_tls(certificate)) as registry, ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(1, 500_000, 12_500)))

    def test_a_push_over_tls(self, tmp_path: Path, certificate: Certificate) -> None:
        content = bytes(range(256)) * 4096
        with Served(tmp_path / "served", tls=server_tls(certificate)) as registry:
            trusting = ssl.create_default_context(cafile=str(certificate.file))
            connection = http.client.HTTPSConnection(registry.host, context=trusting, timeout=60)
            connection.request("POST", f"/v2/app/blobs/uploads/?digest={digest_of(content)}", content)
            assert connection.getresponse().status == 201
            connection.close()
            assert registry.blob(digest_of(content)).read_bytes() == content

    def test_a_client_without_tls_does_not_block_others(self, tmp_path: Path, certificate: Certificate) -> None:
        trusting = ssl.create_default_context(cafile=str(certificate.file))
        with Registry(tmp_path / "served", tls=server_tls(certificate)) as registry, connect(registry.host):
            # The first client sends nothing.
            with connect(registry.host) as plain:
                plain.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b"200" not in plain.recv(1000)
            connection = http.client.HTTPSConnection(registry.host, context=trusting, timeout=60)
            connection.request("GET", "/v2/")
            assert connection.getresponse().status == 200
            connection.close()
