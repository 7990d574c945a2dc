"""The embedded registry beyond loopback: a password, and TLS."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ocistream.errors import NotFoundError, UsageError
from ocistream.serve import AccessEntry, Gate, RefusedError, Registry
from ocistream.tls import server_context
from tests.archives import small_first, tar_of
from tests.certificates import Certificate, make_certificate
from tests.images import Layout, digest_of
from tests.registry_http import basic
from tests.talking import Client, connect

MIB = 1 << 20
PASSWORD = "an engine: 1843/+é"


@pytest.fixture
def log() -> list[AccessEntry]:
    return []


@pytest.fixture
def guarded(tmp_path: Path, log: list[AccessEntry]) -> Iterator[Client]:
    """Return a connection to a registry that wants a password."""
    gate = Gate("ada", PASSWORD)
    with Registry(tmp_path / "served", gate=gate, log=log.append) as registry, Client(registry.host) as client:
        yield client


class TestPassword:
    def test_whoever_does_not_show_it_is_told_how(self, guarded: Client, log: list[AccessEntry]) -> None:
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
                assert (answer.status, answer.codes) == (401, ["UNAUTHORIZED"]), (shown, target)
                assert answer.headers["WWW-Authenticate"].startswith('Basic realm="')
        assert {entry.user for entry in log} == {None}

    def test_whoever_shows_it_is_served(self, guarded: Client, log: list[AccessEntry]) -> None:
        headers = basic("ada", PASSWORD)
        assert guarded("GET", "/v2/", headers=headers).status == 200
        assert guarded("POST", f"/v2/app/blobs/uploads/?digest={digest_of(b'x')}", b"x", headers).status == 201
        lower = {"Authorization": headers["Authorization"].replace("Basic", "basic")}
        assert guarded("GET", f"/v2/app/blobs/{digest_of(b'x')}", headers=lower).body == b"x"
        # On the same connection, the next one is nobody again.
        assert guarded("GET", "/v2/").status == 401
        assert [entry.user for entry in log[:3]] == ["ada"] * 3

    def test_it_is_kept_nowhere(self) -> None:
        gate = Gate("ada", PASSWORD)
        assert PASSWORD not in repr(vars(gate))
        with pytest.raises(RefusedError) as caught:
            gate.admit(basic("ada", "guess")["Authorization"])
        assert "guess" not in str(caught.value)

    @pytest.mark.parametrize(("user", "password"), [("", "x"), ("ada", ""), ("a:b", "x")])
    def test_one_that_nobody_can_show_is_refused(self, user: str, password: str) -> None:
        with pytest.raises(UsageError):
            Gate(user, password)


class TestAddresses:
    @pytest.mark.parametrize("name", ["0.0.0.0", "::"])  # noqa: S104
    def test_with_a_password_any_address_will_do(self, tmp_path: Path, name: str) -> None:
        if name == "::" and not socket.has_ipv6:
            pytest.skip("this Python has no IPv6")
        try:
            registry = Registry(tmp_path / "served", address=(name, 0), gate=Gate("ada", PASSWORD))
        except Exception as error:
            if name == "::":
                pytest.skip(f"this machine has no IPv6: {error}")
            raise
        with registry, Client(f"127.0.0.1:{registry.host.rpartition(':')[2]}") as client:
            assert client("GET", "/v2/").status == 401

    def test_a_name_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="not a numeric address"):
            Registry(tmp_path / "served", address=("registry.example", 0), gate=Gate("ada", PASSWORD))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


class TestTls:
    def test_an_archive_and_a_directory_come_through_it(
        self, layout: Layout, tmp_path: Path, certificate: Certificate
    ) -> None:
        image = layout.image([3 * MIB + 1], name="app:v1")
        (tmp_path / "app.tar").write_bytes(tar_of(small_first(layout)))
        layer = layout.read(image["digest"])["layers"][0]
        content = layout.file(layer["digest"]).read_bytes()
        context = server_context(str(certificate.file), str(certificate.key_file))
        for path in (layout.path, tmp_path / "app.tar"):
            with Registry(path, tls=context, read_only=True) as registry:
                trusting = ssl.create_default_context(cafile=str(certificate.file))
                connection = http.client.HTTPSConnection(registry.host, context=trusting, timeout=60)
                for headers, expected in (({}, content), ({"Range": "bytes=1000000-"}, content[1_000_000:])):
                    connection.request("GET", f"/v2/library/app/blobs/{layer['digest']}", headers=headers)
                    assert connection.getresponse().read() == expected
                connection.close()

    def test_several_read_one_archive_side_by_side(
        self, layout: Layout, tmp_path: Path, certificate: Certificate
    ) -> None:
        image = layout.image([2 * MIB], name="app:v1")
        (tmp_path / "app.tar").write_bytes(tar_of(small_first(layout)))
        layer = layout.read(image["digest"])["layers"][0]["digest"]
        content = layout.file(layer).read_bytes()
        context = server_context(str(certificate.file), str(certificate.key_file))
        trusting = ssl.create_default_context(cafile=str(certificate.file))

        def read(start: int) -> bool:
            connection = http.client.HTTPSConnection(registry.host, context=trusting, timeout=60)
            connection.request("GET", f"/v2/library/app/blobs/{layer}", headers={"Range": f"bytes={start}-"})
            found = connection.getresponse().read()
            connection.close()
            return found == content[start:]

        with Registry(tmp_path / "app.tar", tls=context) as registry, ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(1, 500_000, 12_500)))

    def test_what_is_pushed_through_it_arrives(self, tmp_path: Path, certificate: Certificate) -> None:
        context = server_context(str(certificate.file), str(certificate.key_file))
        content = bytes(range(256)) * 4096
        with Registry(tmp_path / "served", tls=context) as registry:
            trusting = ssl.create_default_context(cafile=str(certificate.file))
            connection = http.client.HTTPSConnection(registry.host, context=trusting, timeout=60)
            connection.request("POST", f"/v2/app/blobs/uploads/?digest={digest_of(content)}", content)
            assert connection.getresponse().status == 201
            connection.close()
            assert registry.layout.blob_path(digest_of(content)).read_bytes() == content

    def test_who_does_not_speak_it_is_cut_off_and_holds_nobody_up(
        self, tmp_path: Path, certificate: Certificate
    ) -> None:
        context = server_context(str(certificate.file), str(certificate.key_file))
        trusting = ssl.create_default_context(cafile=str(certificate.file))
        with Registry(tmp_path / "served", tls=context) as registry, connect(registry.host):
            # The one above says nothing at all.
            with connect(registry.host) as plain:
                plain.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b"200" not in plain.recv(1000)
            connection = http.client.HTTPSConnection(registry.host, context=trusting, timeout=60)
            connection.request("GET", "/v2/")
            assert connection.getresponse().status == 200
            connection.close()

    def test_old_versions_are_not_spoken(self, certificate: Certificate) -> None:
        context = server_context(str(certificate.file), str(certificate.key_file))
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2

    def test_the_key_may_be_in_the_certificates_file(self, certificate: Certificate, tmp_path: Path) -> None:
        both = tmp_path / "both.pem"
        both.write_bytes(certificate.file.read_bytes() + certificate.key_file.read_bytes())
        server_context(str(both))

    def test_what_is_wrong_is_said(self, certificate: Certificate, tmp_path: Path) -> None:
        other = make_certificate(tmp_path / "other")
        encrypted = certificate.encrypted_key(tmp_path / "encrypted.pem")
        with pytest.raises(UsageError, match="does not belong"):
            server_context(str(certificate.file), str(other.key_file))
        with pytest.raises(UsageError, match="is no certificate with its key") as caught:
            server_context(str(certificate.file))
        assert "--tls-key" in (caught.value.hint or "")
        with pytest.raises(UsageError, match="encrypted"):
            server_context(str(certificate.file), str(encrypted))
        with pytest.raises(NotFoundError):
            server_context(str(tmp_path / "missing.pem"))


def test_etags_are_compared_as_they_are_meant(layout: Layout) -> None:
    image = layout.image([4000], name="app:v1")
    with Registry(layout.path, read_only=True) as registry, Client(registry.host) as ask:
        for target, tag in (
            ("/v2/library/app/manifests/v1", image["digest"]),
            (f"/v2/library/app/blobs/{image['digest']}", image["digest"]),
        ):
            for match, status in (
                (f'"{tag}"', 304),
                (f'W/"{tag}"', 304),
                (f'"x", "{tag}"', 304),
                ("*", 304),
                ('"x"', 200),
                (tag, 200),
            ):
                answer = ask("GET", target, headers={"If-None-Match": match})
                assert (answer.status, answer.headers["ETag"]) == (status, f'"{tag}"'), match
                assert answer.headers["Docker-Content-Digest"] == tag
