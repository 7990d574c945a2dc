"""A public registry must not lead to inward addresses: by number, by name, or by a name that changes (rebinding)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.faulty_auth import Bearer
from tests.faulty_registry import Fault, FaultyRegistry, Header, redirect
from tests.images import Layout, small_image
from tests.limits.hosts import OUTSIDE, public
from tests.limits.rules import limit
from tests.raw_server import names
from tests.registry_http import seed

Run = Callable[[Sequence[object]], int]

#: One attempt, and a short wait for an address without a server.
OPTIONS: Final = ("--plain-http", "--retries=0", "--connect-timeout=2")
#: The addresses of the other host: first when the client checks it, then when the client connects.
REBOUND: Final = ("203.0.113.6", "127.0.0.1")
INWARD: Final = "an address inside this machine or network"
CHANGED: Final = "is a public name, but now resolves to an address inside"


@pytest.fixture
def image(layout: Layout, registry: FaultyRegistry, elsewhere: FaultyRegistry) -> str:
    """Store the same image in both registries as app:1, and return its digest."""
    made = small_image(layout)
    for one in (registry, elsewhere):
        seed(layout, made, one.host, "app", "1")
        one.requests.clear()
    return str(made["digest"])


def inspect(ocistream: Run, registry: FaultyRegistry) -> int:
    return ocistream(["inspect", f"{public('registry', registry)}/app:1", *OPTIONS])


def pull(ocistream: Run, *images: str) -> int:
    return ocistream(["pull", *images, "-o", "app.tar", *OPTIONS])


def leads(registry: FaultyRegistry, url: str, status: int = 307, path: str = "/manifests/") -> None:
    """Have the registry answer GET and HEAD requests with a redirect."""
    registry.faults = [Fault(redirect(url, status), "GET|HEAD", path, times=None)]


@limit(14)
@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",  # noqa: S104 - an address to be refused
        "169.254.169.254",
        "100.100.100.200",
        "[::1]",
        "[::]",
        "[fe80::1]",
        "[fe80::1%25eth0]",
        "[fd00:ec2::254]",
        "[::ffff:127.0.0.1]",
        "[::ffff:169.254.169.254]",
        "localhost",
        "2130706433",
        "0x7f000001",
        "127.1",
    ],
)
def test_a_public_registry_does_not_lead_to_an_address_of_this_machine_or_of_metadata(
    registry: FaultyRegistry,
    ocistream: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    host: str,
) -> None:
    leads(registry, f"http://{host}:9/blob")
    with names(monkeypatch, registry=OUTSIDE):
        assert inspect(ocistream, registry) == 7
    assert INWARD in capsys.readouterr().err


@limit(14)
@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1", "fe80::1"])
def test_a_public_registry_does_not_lead_to_a_name_of_such_an_address(
    registry: FaultyRegistry,
    elsewhere: FaultyRegistry,
    ocistream: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    address: str,
) -> None:
    leads(registry, f"http://{public('storage', elsewhere)}/v2/app/manifests/1")
    with names(monkeypatch, registry=OUTSIDE, storage=address):
        assert inspect(ocistream, registry) == 7
    assert f"registry.test points to storage.test, {INWARD}" in capsys.readouterr().err
    assert elsewhere.requests == []


@limit(14)
@pytest.mark.parametrize("status", [302, 307])
@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1", "fd00:ec2::254", "0.0.0.0"])  # noqa: S104
def test_a_name_that_becomes_an_inward_address_is_not_connected_to(
    registry: FaultyRegistry,
    elsewhere: FaultyRegistry,
    ocistream: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    address: str,
    status: int,
) -> None:
    leads(registry, f"http://{public('storage', elsewhere)}/blob", status)
    with names(monkeypatch, registry=OUTSIDE, storage=("203.0.113.6", address)):
        assert inspect(ocistream, registry) == 7
    assert f"storage.test {CHANGED}" in capsys.readouterr().err
    assert elsewhere.requests == []
    assert len(registry.asked(path="/manifests/")) == 1


@limit(13)
@limit(14)
@pytest.mark.parametrize("way", ["realm", "Location"])
def test_a_realm_and_a_location_that_become_inward_are_not_connected_to(
    registry: FaultyRegistry,
    elsewhere: FaultyRegistry,
    ocistream: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    archive: Path,
    way: str,
) -> None:
    there = f"http://{public('storage', elsewhere)}"
    if way == "realm":
        registry.auth = Bearer(realm=f"{there}/token")
    else:
        registry.faults = [Fault(Header("Location", f"{there}/upload"), "POST", times=None)]
    with names(monkeypatch, registry=OUTSIDE, storage=REBOUND):
        assert ocistream(["push", f"{public('registry', registry)}/app:1", "-i", archive, "--jobs=1", *OPTIONS]) == 7
    assert f"storage.test {CHANGED}" in capsys.readouterr().err
    assert elsewhere.requests == []


@limit(14)
def test_the_second_of_two_redirects_is_checked_against_the_host_before(
    registry: FaultyRegistry,
    elsewhere: FaultyRegistry,
    ocistream: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The registry is on this machine and may lead to addresses here; the public host in between must not."""
    with FaultyRegistry(tmp_path / "cdn") as cdn:
        leads(cdn, f"http://{public('storage', elsewhere)}/blob", path="/blob")
        leads(registry, f"http://{public('cdn', cdn)}/blob")
        with names(monkeypatch, cdn=OUTSIDE, storage=REBOUND):
            assert ocistream(["inspect", f"{registry.host}/app:1", *OPTIONS]) == 7
    assert f"storage.test {CHANGED}" in capsys.readouterr().err
    assert elsewhere.requests == []


@limit(14)
def test_a_kept_connection_to_a_host_that_the_user_named_is_not_used_for_a_redirect(
    registry: FaultyRegistry,
    elsewhere: FaultyRegistry,
    ocistream: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    image: str,
) -> None:
    storage = public("storage", elsewhere)
    leads(registry, f"http://{storage}/v2/app/manifests/{image}")
    with names(monkeypatch, registry=OUTSIDE, storage=("127.0.0.1", "203.0.113.6", "127.0.0.1")):
        # The user names storage.test, so it may be on this machine; the connection stays open.
        assert pull(ocistream, f"{storage}/app:1", f"{public('registry', registry)}/app:2") == 7
    assert f"storage.test {CHANGED}" in capsys.readouterr().err
    assert {request.path for request in elsewhere.requests} == {"/v2/app/manifests/1"}


@limit(14)
@pytest.mark.parametrize("later", [("127.0.0.1",), ("127.0.0.1", OUTSIDE)])
def test_a_registry_is_public_if_the_address_that_answered_is(
    registry: FaultyRegistry,
    elsewhere: FaultyRegistry,
    ocistream: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    later: Sequence[str],
) -> None:
    """When the redirect is checked, the registry's own name resolves inward; that must not allow inward redirects."""
    leads(registry, f"{elsewhere.url}/blob")
    with names(monkeypatch, registry=(OUTSIDE, *later)):
        assert inspect(ocistream, registry) == 7
    assert f"registry.test points to 127.0.0.1, {INWARD}" in capsys.readouterr().err
    assert elsewhere.requests == []


@limit(14)
def test_a_public_registry_whose_name_becomes_inward_gets_no_further_request(
    registry: FaultyRegistry,
    ocistream: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    image: str,
) -> None:
    registry.faults = [Fault(Header("Connection", "close"), times=None)]
    with names(monkeypatch, registry=(OUTSIDE, "127.0.0.1")):
        assert pull(ocistream, f"{public('registry', registry)}/app@{image}") == 7
    assert f"registry.test {CHANGED}" in capsys.readouterr().err
    assert len(registry.requests) == 1


@limit(14)
@pytest.mark.parametrize("address", ["203.0.113.6", "10.0.0.1", "2001:db8::1", ("203.0.113.6", "10.1.2.3")])
def test_a_public_registry_may_lead_to_storage_at_other_addresses(
    registry: FaultyRegistry,
    elsewhere: FaultyRegistry,
    ocistream: Run,
    monkeypatch: pytest.MonkeyPatch,
    image: str,
    address: str | tuple[str, str],
) -> None:
    leads(registry, f"http://{public('storage', elsewhere)}/v2/app/manifests/{image}")
    with names(monkeypatch, registry=OUTSIDE, storage=address):
        assert pull(ocistream, f"{public('registry', registry)}/app:1") == 0
    assert elsewhere.asked(path="/manifests/")


@limit(14)
@pytest.mark.parametrize("own", [True, False])
def test_a_registry_on_this_machine_may_lead_to_addresses_on_this_machine(
    registry: FaultyRegistry,
    elsewhere: FaultyRegistry,
    ocistream: Run,
    monkeypatch: pytest.MonkeyPatch,
    image: str,
    own: bool,
) -> None:
    leads(registry, f"http://{public('storage', elsewhere)}/v2/app/manifests/{image}")
    with names(monkeypatch, registry="127.0.0.1", storage="169.254.1.1"):
        name = registry.host if own else public("registry", registry)
        assert pull(ocistream, f"{name}/app:1") == 0
    assert elsewhere.asked(path="/manifests/")


@limit(14)
def test_a_proxy_on_this_machine_is_not_an_inward_address(
    registry: FaultyRegistry, elsewhere: FaultyRegistry, ocistream: Run, monkeypatch: pytest.MonkeyPatch, image: str
) -> None:
    # The proxy answers itself, for any host.
    leads(registry, f"http://{public('storage', elsewhere)}/v2/app/manifests/{image}")
    monkeypatch.setenv("http_proxy", elsewhere.url)
    monkeypatch.setenv("no_proxy", "registry.test")
    with names(monkeypatch, registry=OUTSIDE, storage="203.0.113.6"):
        assert pull(ocistream, f"{public('registry', registry)}/app:1") == 0
    assert {request.target.partition(".test")[0] for request in elsewhere.requests} == {"http://storage"}
