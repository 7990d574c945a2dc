"""Which certificates of registries are trusted, and when they are not checked."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fixture_types import Start
from tests.faulty_registry import Fault, FaultyRegistry, redirect
from tests.http.fixture_types import Run
from tests.http.tls_identities import REACHED, Identities, configuration
from tests.raw_server import RawServer
from tests.runner import Result


def inspect(run: Run, registry: FaultyRegistry | str, *options: object, repository: str = "app") -> Result:
    host = registry if isinstance(registry, str) else registry.host
    return run("inspect", f"{host}/{repository}:1", "--retries=0", *options)


def other_name(registry: FaultyRegistry) -> str:
    """Return HOST:PORT of a registry on 127.0.0.1 with the name localhost."""
    return registry.host.replace("127.0.0.1", "localhost")


def leads(registry: FaultyRegistry, url: str) -> None:
    registry.faults = [Fault(redirect(f"{url}/v2/"), path="manifests", times=None)]


def subject_hash(common_name: str) -> str:
    """Return the file name under which OpenSSL looks up a CA in a directory (X509_NAME_hash)."""
    value = b"\x0c" + bytes([len(common_name)]) + common_name.lower().encode()
    attribute = b"\x06\x03\x55\x04\x03" + value
    sequence = b"\x30" + bytes([len(attribute)]) + attribute
    canonical = b"\x31" + bytes([len(sequence)]) + sequence
    return f"{int.from_bytes(hashlib.sha1(canonical, usedforsecurity=False).digest()[:4], 'little'):08x}"


class TestTrust:
    def test_the_ca_of_one_registry_is_trusted_for_that_registry_only(
        self, start: Start, run: Run, ids: Identities, tmp_path: Path
    ) -> None:
        registry, other = start(tls=ids.server), start(tls=ids.server)
        config = configuration(tmp_path / "config.toml", **{registry.host: f'ca-cert = "{ids.authority.file}"'})
        assert inspect(run, registry, config).code == REACHED
        result = inspect(run, other, config)
        assert result.code == 7
        assert "not trusted" in result.err
        assert other.requests == []

    def test_the_cas_of_the_system_are_trusted(
        self, start: Start, run: Run, ids: Identities, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "system"
        folder.mkdir()
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        monkeypatch.setenv("SSL_CERT_DIR", str(folder))
        registry = start(tls=ids.server)
        assert inspect(run, registry).code == 7
        (folder / f"{subject_hash('an authority')}.0").write_bytes(ids.authority.file.read_bytes())
        assert inspect(run, registry).code == REACHED

    def test_a_certificate_that_is_not_a_ca_is_trusted_if_it_is_given_as_the_ca(
        self, start: Start, run: Run, ids: Identities
    ) -> None:
        assert inspect(run, start(tls=ids.server), f"--ca-cert={ids.server.file}").code == REACHED

    @pytest.mark.parametrize(
        ("options", "said", "hint"),
        [
            ({}, "unable to get local issuer certificate", "--ca-cert"),
            ({"days": (-3, -2)}, "certificate has expired", "renew"),
            ({"days": (2, 3)}, "certificate is not yet valid", "clock"),
            ({"names": ["other.example"]}, "mismatch", "use the host name of the certificate"),
        ],
    )
    def test_the_error_says_what_is_wrong_with_a_certificate_and_what_to_do(
        self, start: Start, run: Run, ids: Identities, tmp_path: Path, options: dict[str, Any], said: str, hint: str
    ) -> None:
        registry = start(tls=ids.authority.issue(tmp_path, **options))
        result = inspect(run, registry, ids.ca if options else f"--ca-cert={ids.client.file}", "--retries=1")
        assert result.code == 7
        assert "the certificate is not trusted" in result.err
        assert said in result.err
        assert hint in result.err
        # Without a retry.
        assert result.err.count("not trusted") == 1

    def test_a_server_without_tls_is_named_by_the_hint(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        with RawServer(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n") as server:
            monkeypatch.setenv("OCISTREAM_RETRIES", "0")
            config = configuration(Path("config.toml"), **{"registry.test": f'url = "https://{server.host}"'})
            result = inspect(run, "registry.test", config)
        assert result.code == 7
        assert "the registry seems to use plain HTTP: use --plain-http" in result.err


class TestFiles:
    """Unusable files are refused before any request, and OpenSSL does not ask for a password."""

    @pytest.fixture
    def files(self, ids: Identities, tmp_path: Path) -> Path:
        (tmp_path / "empty").touch()
        (tmp_path / "text").write_text("nonsense")
        (tmp_path / "cut").write_bytes(ids.client.file.read_bytes()[:300])
        (tmp_path / "cert").write_bytes(ids.client.file.read_bytes())
        (tmp_path / "key").write_bytes(ids.client.key_file.read_bytes())
        (tmp_path / "both").write_bytes(ids.client.file.read_bytes() + ids.client.key_file.read_bytes())
        (tmp_path / "other-key").write_bytes(ids.authority.key_file.read_bytes())
        ids.client.encrypted_key(tmp_path / "locked")
        (tmp_path / "both-locked").write_bytes(ids.client.file.read_bytes() + (tmp_path / "locked").read_bytes())
        return tmp_path

    @pytest.mark.parametrize("name", ["empty", "text", "cut", "key"])
    def test_a_file_without_a_ca(self, start: Start, run: Run, files: Path, name: str) -> None:
        registry = start()
        result = inspect(run, registry, f"--ca-cert={files / name}")
        assert result.code == 2
        assert f"{name} has no CA certificate, or a malformed one" in result.err
        assert registry.requests == []

    @pytest.mark.parametrize(
        ("certificate", "key", "said"),
        [
            ("empty", "key", "is not a client certificate with its key"),
            ("text", None, "is not a client certificate with its key"),
            ("cert", None, "is not a client certificate with its key"),
            ("cert", "text", "is not a client certificate with its key"),
            ("key", "cert", "is not a client certificate with its key"),
            ("cert", "other-key", "does not belong to the key"),
            ("cert", "locked", "locked is encrypted"),
            ("both-locked", None, "both-locked is encrypted"),
        ],
    )
    def test_an_unusable_client_certificate_or_key(
        self, start: Start, run: Run, files: Path, certificate: str, key: str | None, said: str
    ) -> None:
        registry = start()
        options = [f"--client-cert={files / certificate}", *([f"--client-key={files / key}"] if key else [])]
        result = inspect(run, registry, *options)
        assert result.code == 2
        assert said in result.err
        assert registry.requests == []

    @pytest.mark.parametrize(("certificate", "key"), [("cert", "key"), ("both", None), ("cert", "both")])
    def test_one_file_may_have_the_certificate_and_the_key(
        self, start: Start, run: Run, files: Path, ids: Identities, certificate: str, key: str | None
    ) -> None:
        registry = start(tls=ids.server, client_authority=ids.authority)
        options = [f"--client-cert={files / certificate}", *([f"--client-key={files / key}"] if key else [])]
        assert inspect(run, registry, ids.ca, *options).code == REACHED

    @pytest.mark.parametrize(("path", "code"), [("none", 4), ("text/x", 9)])
    def test_missing_files(self, start: Start, run: Run, files: Path, path: str, code: int) -> None:
        for options in (
            [f"--ca-cert={files / path}"],
            [f"--client-cert={files / path}"],
            [f"--client-cert={files / 'cert'}", f"--client-key={files / path}"],
        ):
            result = inspect(run, start(), *options)
            assert (result.code, path in result.err) == (code, True)

    def test_files_in_the_configuration_are_checked_too(self, start: Start, run: Run, files: Path) -> None:
        registry = start()
        config = configuration(files / "config.toml", **{registry.host: f'ca-cert = "{files / "text"}"'})
        assert inspect(run, registry, config).code == 2
        assert registry.requests == []


class TestUnchecked:
    def test_insecure_applies_to_all_ports_of_the_named_host(self, start: Start, run: Run, ids: Identities) -> None:
        storage, registry = start(tls=ids.server), start(tls=ids.server)
        leads(registry, storage.url)
        inspect(run, registry, "--insecure")
        assert storage.requests

    def test_another_host_is_checked_unless_its_own_settings_say_otherwise(
        self, start: Start, run: Run, ids: Identities, tmp_path: Path
    ) -> None:
        storage, registry = start(tls=ids.server), start(tls=ids.server)
        leads(registry, f"https://{other_name(storage)}")
        insecure = configuration(tmp_path / "one.toml", **{registry.host: "insecure = true"})
        for option in ("--insecure", insecure):
            result = inspect(run, registry, option)
            assert result.code == 7
            assert f"https://{other_name(storage)}" in result.err
            assert "not trusted" in result.err
        assert storage.requests == []
        inspect(
            run,
            registry,
            "--insecure",
            configuration(tmp_path / "two.toml", **{other_name(storage): "insecure = true"}),
        )
        assert storage.requests

    def test_insecure_does_not_apply_to_a_mirror(self, start: Start, run: Run, ids: Identities, tmp_path: Path) -> None:
        mirror, registry = start(tls=ids.server), start(tls=ids.server)
        config = configuration(
            tmp_path / "config.toml", **{registry.host: f'mirrors = ["{other_name(mirror)}"]\ninsecure = true'}
        )
        assert inspect(run, registry, config, "--insecure").code == REACHED
        assert registry.requests
        assert mirror.requests == []

    def test_the_ca_of_a_registry_is_trusted_for_its_redirect_target(
        self, start: Start, run: Run, ids: Identities, tmp_path: Path
    ) -> None:
        storage, registry = start(tls=ids.server), start(tls=ids.server)
        leads(registry, f"https://{other_name(storage)}")
        config = configuration(tmp_path / "config.toml", **{registry.host: f'ca-cert = "{ids.authority.file}"'})
        inspect(run, registry, config)
        assert storage.requests

    def test_a_redirect_target_may_have_its_own_ca(
        self, start: Start, run: Run, ids: Identities, tmp_path: Path
    ) -> None:
        storage, registry = start(tls=ids.server), start()
        leads(registry, f"https://{other_name(storage)}")
        assert inspect(run, registry).code == 7
        assert storage.requests == []
        config = configuration(tmp_path / "config.toml", **{other_name(storage): f'ca-cert = "{ids.authority.file}"'})
        inspect(run, registry, config)
        assert storage.requests


def test_a_redirect_from_https_to_http_on_the_same_host_is_explained(start: Start, run: Run, ids: Identities) -> None:
    registry, other = start(tls=ids.server), start()
    registry.faults = [Fault(redirect(f"http://{registry.host}/v2/?sig=secret"), path="manifests", times=None)]
    result = inspect(run, registry, ids.ca)
    assert result.code == 7
    assert "uses https, but points to http://" in result.err
    assert "X-Forwarded-Proto" in result.err
    assert "secret" not in result.err
    leads(registry, f"http://{other_name(other)}")
    result = inspect(run, registry, ids.ca)
    assert (result.code, "X-Forwarded-Proto" in result.err) == (7, False)
    assert other.requests == []


def test_a_redirect_to_https_cannot_lead_back_to_http(start: Start, run: Run, ids: Identities) -> None:
    registry, storage, other = start(), start(tls=ids.server), start()
    leads(registry, f"https://{other_name(storage)}")
    storage.faults = [Fault(redirect(f"{other.url}/v2/"), times=None)]
    result = inspect(run, registry, ids.ca, "--plain-http")
    assert result.code == 7
    assert "uses https, but points to http://" in result.err
    assert storage.requests
    assert other.requests == []
