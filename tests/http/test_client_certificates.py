"""A client certificate is a credential: only the registry that the user named gets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.fixture_types import Start
from tests.cli.proxy import tunnelling_to
from tests.faulty_auth import Bearer
from tests.faulty_registry import Fault, FaultyRegistry, Header, Reply, redirect
from tests.http.fixture_types import Run
from tests.http.tls_identities import REACHED, Identities, client_settings, configuration, der
from tests.images import Layout, small_image
from tests.runner import Result


def inspect(run: Run, host: str, *options: object) -> Result:
    return run("inspect", f"{host}/app:1", "--retries=0", *options)


def shown(registry: FaultyRegistry, path: str = "") -> list[bytes | None]:
    """Return the clients' certificates in requests."""
    return [request.certificate for request in registry.asked(path=path)]


@pytest.fixture
def mutual(start: Start, ids: Identities) -> FaultyRegistry:
    """Return a registry that requires a client certificate."""
    return start(tls=ids.server, client_authority=ids.authority)


@pytest.fixture
def curious(start: Start, ids: Identities) -> FaultyRegistry:
    """Return a registry that requests a client certificate, but does not require one."""
    return start(tls=ids.server, client_authority=ids.authority, asks_only=True)


def test_it_is_sent_to_a_registry_that_requires_it(
    mutual: FaultyRegistry, run: Run, ids: Identities, tmp_path: Path
) -> None:
    assert inspect(run, mutual.host, ids.ca, *ids.shown).code == REACHED
    config = configuration(tmp_path / "config.toml", **{mutual.host: client_settings(ids.other)})
    assert inspect(run, mutual.host, ids.ca, config).code == REACHED
    assert set(shown(mutual)) == {der(ids.client), der(ids.other)}


def test_without_one_the_refusal_names_the_option(mutual: FaultyRegistry, run: Run, ids: Identities) -> None:
    result = inspect(run, mutual.host, ids.ca, "--retries=1")
    assert result.code == 7
    assert f"https://{mutual.host}/" in result.err
    assert "TLS failed" in result.err
    assert "--client-cert" in result.err
    # Without a retry.
    assert result.err.count("TLS failed") == 1


def test_the_option_overrides_the_configuration(
    curious: FaultyRegistry, run: Run, ids: Identities, tmp_path: Path
) -> None:
    config = configuration(tmp_path / "config.toml", **{curious.host: client_settings(ids.other)})
    inspect(run, curious.host, ids.ca, config, *ids.shown)
    assert set(shown(curious)) == {der(ids.client)}
    curious.requests.clear()
    inspect(run, curious.host, ids.ca, config)
    assert set(shown(curious)) == {der(ids.other)}


def test_the_first_of_several_in_a_directory_is_sent(
    curious: FaultyRegistry, run: Run, ids: Identities, tmp_path: Path
) -> None:
    folder = tmp_path / "certificates"
    folder.mkdir()
    for name, certificate in (("1", ids.client), ("2", ids.other)):
        (folder / f"{name}.cert").write_bytes(certificate.file.read_bytes())
        (folder / f"{name}.key").write_bytes(certificate.key_file.read_bytes())
    inspect(run, curious.host, ids.ca, f"--cert-dir={folder}")
    assert set(shown(curious)) == {der(ids.client)}


@pytest.mark.parametrize("by", ["option", "configuration"])
def test_after_a_redirect_to_another_host_it_is_not_sent_even_on_the_way_back(
    curious: FaultyRegistry, start: Start, run: Run, ids: Identities, tmp_path: Path, by: str
) -> None:
    registry = start(tls=ids.server, client_authority=ids.authority, asks_only=True)
    registry.faults = [Fault(Reply(404), path="last"), Fault(redirect(f"{curious.url}/v2/first"), path="manifests")]
    curious.faults = [Fault(redirect(f"{registry.url}/v2/last"), path="first")]
    # This holds even if the settings of the other host have a certificate: the user did not name that host.
    hosts = {curious.host: client_settings(ids.client)}
    if by == "configuration":
        hosts[registry.host] = client_settings(ids.client)
    config = configuration(tmp_path / "config.toml", **hosts)
    inspect(run, registry.host, ids.ca, config, *(ids.shown if by == "option" else []))
    assert set(shown(registry, "manifests")) == {der(ids.client)}
    assert shown(registry, "last") == [None]
    assert shown(curious) == [None]


def test_a_token_server_gets_it_only_at_the_origin_of_the_registry(start: Start, run: Run, ids: Identities) -> None:
    asks = {"tls": ids.server, "client_authority": ids.authority}
    realm = start(auth=Bearer(anonymous=("pull",)), asks_only=True, **asks)
    for where in (f"{realm.url}/token", None):
        registry = start(auth=Bearer(realm=where, anonymous=("pull",)), **asks)
        inspect(run, registry.host, ids.ca, *ids.shown)
        assert set(shown(registry)) == {der(ids.client)}
    assert set(shown(realm, "/token")) == {None}


def test_an_upload_at_another_host_does_not_get_it(
    curious: FaultyRegistry, start: Start, run: Run, ids: Identities, layout: Layout
) -> None:
    small_image(layout, name="app")
    registry = start(tls=ids.server, client_authority=ids.authority)
    registry.faults = [Fault(Header("Location", f"{curious.url}/v2/app/blobs/uploads/x"), "POST", times=None)]
    assert run("push", f"{registry.host}/app:1", "-i", layout.path, "--retries=0", ids.ca, *ids.shown).code == 7
    assert set(shown(registry)) == {der(ids.client)}
    assert {request.method for request in curious.requests} >= {"PUT"}
    assert set(shown(curious)) == {None}


def test_a_mirror_does_not_get_it(
    curious: FaultyRegistry, start: Start, run: Run, ids: Identities, tmp_path: Path
) -> None:
    registry = start(tls=ids.server, client_authority=ids.authority)
    config = configuration(tmp_path / "config.toml", **{registry.host: f'mirrors = ["{curious.host}"]'})
    assert inspect(run, registry.host, ids.ca, config, *ids.shown).code == REACHED
    assert set(shown(registry)) == {der(ids.client)}
    assert set(shown(curious)) == {None}


class TestProxies:
    def test_a_proxy_does_not_get_it(
        self, mutual: FaultyRegistry, run: Run, ids: Identities, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with tunnelling_to(mutual.host, tls=ids.server, client_authority=ids.authority) as proxy:
            monkeypatch.setenv("https_proxy", proxy.url)
            result = inspect(run, "registry.test", ids.ca, *ids.shown)
        assert result.code == REACHED, result.err
        assert set(proxy.certificates) == {None}
        assert set(shown(mutual)) == {der(ids.client)}

    def test_a_proxy_is_checked_even_if_the_registry_is_not(
        self, mutual: FaultyRegistry, run: Run, ids: Identities, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with tunnelling_to(mutual.host, tls=ids.server) as proxy:
            monkeypatch.setenv("https_proxy", proxy.url)
            result = inspect(run, "registry.test", "--insecure", *ids.shown)
        assert result.code == 7
        assert "not trusted" in result.err
        assert proxy.asked == []
