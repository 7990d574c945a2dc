"""Hosts that may use plain HTTP or TLS: those on this machine, and those that the configuration marks so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import assertions
from tests.cli.fixture_types import Start
from tests.faulty_auth import Basic
from tests.faulty_registry import Fault, FaultyRegistry, redirect
from tests.http.fixture_types import Run
from tests.http.raw_registry import MANIFESTS, RawRegistry, answer
from tests.http.tls_identities import REACHED, Identities, client_settings, configuration
from tests.images import Layout
from tests.raw_server import RawServer, names
from tests.registry_http import basic
from tests.runner import Result

SPEAKS_TLS = b"Client sent an HTTP request to an HTTPS server.\n"


def inspect(run: Run, host: str, *options: object) -> Result:
    return run("inspect", f"{host}/app:1", "--retries=0", *options)


def test_a_plain_registry_gets_one_connection(raw: RawRegistry, run: Run) -> None:
    assert inspect(run, raw.host).code == 0
    assert len(raw.requests) > 1
    assert raw.accepted == 1


def test_tls_on_this_machine_is_found_without_a_retry(
    start: Start, run: Run, ids: Identities, layout: Layout, tmp_path: Path
) -> None:
    """Many simultaneous first requests find it too."""
    layout.image([layout.random_layer(4000, seed=number)[0] for number in range(8)], name="app")
    registry = start(tls=ids.server)
    push = run("push", f"{registry.host}/app:1", "-i", layout.path, "--retries=0", "--jobs=8", ids.ca)
    assert push.code == 0, push.err
    pull = run("pull", f"{registry.host}/app:1", "-o", tmp_path / "x.tar", "--retries=0", ids.ca)
    assert pull.code == 0, pull.err


@pytest.mark.parametrize("words", [SPEAKS_TLS, b""])
def test_tls_is_tried_if_the_response_suggests_it(raw: RawRegistry, run: Run, words: bytes) -> None:
    raw.says(MANIFESTS, answer(words, "400 Bad Request"))
    result = inspect(run, raw.host)
    assert result.code == 7
    assert "400" in result.err
    # The second connection is a TLS handshake, which fails.
    assert raw.accepted == 2


def test_a_failing_plain_registry_is_not_mistaken_for_one_with_tls(raw: RawRegistry, run: Run) -> None:
    raw.says(MANIFESTS, lambda *_: None, times=1)
    raw.says(MANIFESTS, answer(status="400 Bad Request"))
    assertions.failure(run("inspect", raw.image, "--retries=1"), 7, "400")
    # TLS was tried once; from then on the registry is known to be plain.
    assert raw.accepted == 3


@pytest.mark.parametrize(
    "configured", ["ca", "client certificate", "insecure", "insecure in registries.conf", "option"]
)
def test_plain_http_and_tls_work_with_any_settings(
    start: Start,
    run: Run,
    ids: Identities,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    configured: str,
) -> None:
    plain, encrypted = start(), start(tls=ids.server)
    lines = {
        "ca": f'ca-cert = "{ids.authority.file}"',
        "client certificate": client_settings(ids.client),
        "insecure": "insecure = true",
    }.get(configured, "")
    conf = tmp_path / ".config/containers/registries.conf"
    conf.parent.mkdir(parents=True)
    if configured.endswith("registries.conf"):
        entries = [f'[[registry]]\nprefix = "{one.host}"\ninsecure = true\n' for one in (plain, encrypted)]
        conf.write_text("".join(entries))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(ids.authority.file))
    for registry in (plain, encrypted):
        config = configuration(tmp_path / "config.toml", **{registry.host: lines})
        result = inspect(run, registry.host, config, *([ids.ca] if configured == "option" else []))
        assert result.code == REACHED, result.err
        assert registry.requests


def test_tls_is_not_tried_after_a_plain_response(raw: RawRegistry, run: Run) -> None:
    raw.says("/blobs/", answer(status="400 Bad Request"))
    result = inspect(run, raw.host)
    assert result.code == 7
    assert "400" in result.err
    assert raw.accepted == 1


def test_both_are_tried_for_a_configured_host_elsewhere(
    start: Start, run: Run, ids: Identities, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, encrypted = start(), start(tls=ids.server)
    hosts = [f"registry.test:{registry.host.rpartition(':')[2]}" for registry in (plain, encrypted)]
    conf = tmp_path / ".config/containers/registries.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text("".join(f'[[registry]]\nprefix = "{host}"\ninsecure = true\n' for host in hosts))
    monkeypatch.setenv("HOME", str(tmp_path))
    with names(monkeypatch, registry="203.0.113.5"):
        assert [inspect(run, host).code for host in hosts] == [REACHED, REACHED]
        assert plain.requests
        assert encrypted.requests
        conf.unlink()
        assert [inspect(run, host).code for host in hosts] == [7, 7]


def test_no_password_is_sent_before_the_protocol_is_known(
    start: Start, run: Run, ids: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCISTREAM_USERNAME", "alice")
    monkeypatch.setenv("OCISTREAM_PASSWORD", "s3cret")
    registry = start(auth=Basic("alice", "s3cret"), tls=ids.server)
    assert inspect(run, registry.host, ids.ca).code == REACHED
    sent = [request.headers["Authorization"] for request in registry.requests]
    assert sent[0] is None
    assert sent[-1] == basic("alice", "s3cret")["Authorization"]
    with RawServer(b"") as server:
        assert inspect(run, server.host).code == 7
        assert server.heard
        assert all(one.headers["Authorization"] is None for one in server.heard)


def test_a_redirect_from_https_to_http_is_refused(start: Start, run: Run, ids: Identities) -> None:
    plain, registry = start(), start(tls=ids.server)
    for location in (f"{plain.url}/v2/", f"http://{registry.host}/v2/"):
        registry.faults = [Fault(redirect(location), path="manifests", times=None)]
        result = inspect(run, registry.host, ids.ca)
        assert result.code == 7
        assert "uses https, but points to http" in result.err
    assert plain.requests == []


def test_with_plain_http_tls_is_not_tried_and_the_hint_names_the_option(raw: RawRegistry, run: Run) -> None:
    raw.says(MANIFESTS, answer(SPEAKS_TLS, "400 Bad Request"))
    result = inspect(run, raw.host, "--plain-http")
    assert result.code == 7
    assert "400" in result.err
    assert "--plain-http" in result.err
    assert raw.accepted == 1


@pytest.mark.parametrize("host", ["[::1]", "localhost"])
def test_other_names_of_this_machine(tmp_path: Path, run: Run, ids: Identities, host: str) -> None:
    address = "::1" if host == "[::1]" else "127.0.0.1"
    with FaultyRegistry(tmp_path / "served", tls=ids.server, address=(address, 0)) as registry:
        assert inspect(run, f"{host}:{registry.host.rpartition(':')[2]}", ids.ca).code == REACHED


def test_the_protocol_of_a_configured_url_is_used(start: Start, run: Run, ids: Identities, tmp_path: Path) -> None:
    registry = start(tls=ids.server)
    lines = f'url = "{registry.url}/"\nca-cert = "{ids.authority.file}"'
    config = configuration(tmp_path / "config.toml", **{"gateway.example": lines})
    assert inspect(run, "gateway.example", config).code == REACHED
