"""A public registry must not lead to inward addresses: by number, by name, or by a name that changes (rebinding)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.faulty_auth import Bearer
from tests.faulty_registry import Fault, FaultyRegistry, Header, redirect
from tests.images import Layout, small_image
from tests.limits.conftest import Attack
from tests.limits.hosts import OUTSIDE, public
from tests.limits.rules import limit
from tests.raw_server import names
from tests.registry_http import seed

#: One attempt, and a short wait for an address without a server.
OPTIONS: Final = ("--plain-http", "--retries=0", "--connect-timeout=2")
#: The addresses of the other host: first when the client checks it, then when the client connects.
REBOUND: Final = ("203.0.113.6", "127.0.0.1")
INWARD: Final = "an address inside this machine or network"
CHANGED: Final = "is a public name, but now resolves to an address inside"


@pytest.fixture
def image(layout: Layout, attack: Attack) -> str:
    """Store the same image in both registries as app:1, and return its digest."""
    made = small_image(layout)
    for one in (attack.registry, attack.elsewhere):
        seed(layout, made, one.host, "app", "1")
        one.requests.clear()
    return str(made["digest"])


def inspect(attack: Attack) -> tuple[int, str]:
    return attack.run("inspect", f"{public('registry', attack.registry)}/app:1", *OPTIONS)


def pull(attack: Attack, *images: str) -> tuple[int, str]:
    return attack.run("pull", *images, "-o", "app.tar", *OPTIONS)


def storage(attack: Attack, path: str = "") -> str:
    """Return a URL of the second registry under the name storage.test."""
    return f"http://{public('storage', attack.elsewhere)}{path}"


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
    attack: Attack, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    attack.lead(f"http://{host}:9/blob")
    with names(monkeypatch, registry=OUTSIDE):
        code, err = inspect(attack)
    assert code == 7
    assert INWARD in err


@limit(14)
@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1", "fe80::1"])
def test_a_public_registry_does_not_lead_to_a_name_of_such_an_address(
    attack: Attack, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    attack.lead(storage(attack, "/v2/app/manifests/1"))
    with names(monkeypatch, registry=OUTSIDE, storage=address):
        code, err = inspect(attack)
    assert code == 7
    assert f"registry.test points to storage.test, {INWARD}" in err
    assert attack.elsewhere.requests == []


@limit(14)
@pytest.mark.parametrize("status", [302, 307])
@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1", "fd00:ec2::254", "0.0.0.0"])  # noqa: S104
def test_a_name_that_becomes_an_inward_address_is_not_connected_to(
    attack: Attack, monkeypatch: pytest.MonkeyPatch, address: str, status: int
) -> None:
    attack.lead(storage(attack, "/blob"), status)
    with names(monkeypatch, registry=OUTSIDE, storage=("203.0.113.6", address)):
        code, err = inspect(attack)
    assert code == 7
    assert f"storage.test {CHANGED}" in err
    assert attack.elsewhere.requests == []
    assert len(attack.registry.asked(path="/manifests/")) == 1


@limit(13)
@limit(14)
@pytest.mark.parametrize("way", ["realm", "Location"])
@pytest.mark.parametrize("by", ["number", "name", "rebound name"])
def test_a_realm_and_a_location_do_not_lead_to_this_machine(
    attack: Attack, monkeypatch: pytest.MonkeyPatch, archive: Path, by: str, way: str
) -> None:
    there = attack.elsewhere.url if by == "number" else storage(attack)
    if way == "realm":
        attack.registry.auth = Bearer(realm=f"{there}/token")
    else:
        attack.registry.faults = [Fault(Header("Location", f"{there}/upload"), "POST", times=None)]
    name = f"{public('registry', attack.registry)}/app:1"
    with names(monkeypatch, registry=OUTSIDE, storage=REBOUND if by == "rebound name" else "127.0.0.1"):
        code, err = attack.run("push", name, "-i", archive, "--jobs=1", *OPTIONS)
    assert code == 7
    assert (f"storage.test {CHANGED}" if by == "rebound name" else INWARD) in err
    assert attack.registry.requests
    assert attack.elsewhere.requests == []


@limit(14)
def test_the_second_of_two_redirects_is_checked_against_the_host_before(
    attack: Attack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The registry is on this machine and may lead to addresses here; the public host in between must not."""
    with FaultyRegistry(tmp_path / "cdn") as cdn:
        cdn.faults = [Fault(redirect(storage(attack, "/blob")), "GET|HEAD", "/blob", times=None)]
        attack.lead(f"http://{public('cdn', cdn)}/blob")
        with names(monkeypatch, cdn=OUTSIDE, storage=REBOUND):
            code, err = attack.run("inspect", f"{attack.registry.host}/app:1", *OPTIONS)
    assert code == 7
    assert f"storage.test {CHANGED}" in err
    assert attack.elsewhere.requests == []


@limit(14)
def test_a_kept_connection_to_a_host_that_the_user_named_is_not_used_for_a_redirect(
    attack: Attack, monkeypatch: pytest.MonkeyPatch, image: str
) -> None:
    attack.lead(storage(attack, f"/v2/app/manifests/{image}"))
    named = f"{public('storage', attack.elsewhere)}/app:1"
    with names(monkeypatch, registry=OUTSIDE, storage=("127.0.0.1", "203.0.113.6", "127.0.0.1")):
        # The user names storage.test, so it may be on this machine; the connection stays open.
        code, err = pull(attack, named, f"{public('registry', attack.registry)}/app:2")
    assert code == 7
    assert f"storage.test {CHANGED}" in err
    assert {request.path for request in attack.elsewhere.requests} == {"/v2/app/manifests/1"}


@limit(14)
@pytest.mark.parametrize("later", [("127.0.0.1",), ("127.0.0.1", OUTSIDE)])
def test_a_registry_is_public_if_the_address_that_answered_is(
    attack: Attack, monkeypatch: pytest.MonkeyPatch, later: Sequence[str]
) -> None:
    """When the redirect is checked, the registry's own name resolves inward; that must not allow inward redirects."""
    attack.lead(f"{attack.elsewhere.url}/blob")
    with names(monkeypatch, registry=(OUTSIDE, *later)):
        code, err = inspect(attack)
    assert code == 7
    assert f"registry.test points to 127.0.0.1, {INWARD}" in err
    assert attack.elsewhere.requests == []


@limit(14)
def test_a_public_registry_whose_name_becomes_inward_gets_no_further_request(
    attack: Attack, monkeypatch: pytest.MonkeyPatch, image: str
) -> None:
    attack.registry.faults = [Fault(Header("Connection", "close"), times=None)]
    with names(monkeypatch, registry=(OUTSIDE, "127.0.0.1")):
        code, err = pull(attack, f"{public('registry', attack.registry)}/app@{image}")
    assert code == 7
    assert f"registry.test {CHANGED}" in err
    assert len(attack.registry.requests) == 1


@limit(14)
@pytest.mark.parametrize("address", ["203.0.113.6", "10.0.0.1", "2001:db8::1", ("203.0.113.6", "10.1.2.3")])
def test_a_public_registry_may_lead_to_storage_at_other_addresses(
    attack: Attack, monkeypatch: pytest.MonkeyPatch, image: str, address: str | tuple[str, str]
) -> None:
    attack.lead(storage(attack, f"/v2/app/manifests/{image}"))
    with names(monkeypatch, registry=OUTSIDE, storage=address):
        assert pull(attack, f"{public('registry', attack.registry)}/app:1")[0] == 0
    assert attack.elsewhere.asked(path="/manifests/")


@limit(14)
@pytest.mark.parametrize("own", [True, False])
def test_a_registry_on_this_machine_may_lead_to_addresses_on_this_machine(
    attack: Attack, monkeypatch: pytest.MonkeyPatch, image: str, own: bool
) -> None:
    attack.lead(storage(attack, f"/v2/app/manifests/{image}"))
    with names(monkeypatch, registry="127.0.0.1", storage="169.254.1.1"):
        host = attack.registry.host if own else public("registry", attack.registry)
        assert pull(attack, f"{host}/app:1")[0] == 0
    assert attack.elsewhere.asked(path="/manifests/")


@limit(14)
def test_a_proxy_on_this_machine_is_not_an_inward_address(
    attack: Attack, monkeypatch: pytest.MonkeyPatch, image: str
) -> None:
    # The proxy answers itself, for any host.
    attack.lead(storage(attack, f"/v2/app/manifests/{image}"))
    monkeypatch.setenv("http_proxy", attack.elsewhere.url)
    monkeypatch.setenv("no_proxy", "registry.test")
    with names(monkeypatch, registry=OUTSIDE, storage="203.0.113.6"):
        assert pull(attack, f"{public('registry', attack.registry)}/app:1")[0] == 0
    assert {request.target.partition(".test")[0] for request in attack.elsewhere.requests} == {"http://storage"}
