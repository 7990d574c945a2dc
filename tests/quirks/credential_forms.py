"""The forms of a credential, and checks that none of them is in bytes that were sent or printed."""

from __future__ import annotations

import base64
import dataclasses
import json
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tests.faulty_auth import Auth, Basic, Bearer
from tests.images import Layout, small_image
from tests.quirks.quirky_registry import QuirkyRegistry
from tests.registry_http import seed
from tests.runner import Result

USER: Final = "ada.lovelace"
PASSWORD: Final = "an engine: 1843/+"
IDENTITY: Final = "identity-of-ada-c0ffee"


@dataclasses.dataclass(frozen=True)
class Login:
    """A user's name and password, or name and identity token."""

    user: str
    password: str = ""
    identity: str = ""

    def entry(self) -> dict[str, str]:
        """Return the entry of a file in Docker's format."""
        entry = {"auth": base64.b64encode(f"{self.user}:{self.password}".encode()).decode()}
        return {**entry, "identitytoken": self.identity} if self.identity else entry


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A way of authentication: the registry's demand, and the client's login."""

    name: str
    auth: Callable[[], Auth]
    login: Login

    def __str__(self) -> str:
        return self.name


SCHEMES: Final = (
    Scheme("Basic", lambda: Basic(USER, PASSWORD), Login(USER, PASSWORD)),
    Scheme("Bearer", lambda: Bearer({USER: PASSWORD}, anonymous=()), Login(USER, PASSWORD)),
    Scheme(
        "an identity token",
        lambda: Bearer({USER: IDENTITY}, anonymous=(), oauth2=False),
        Login(USER, identity=IDENTITY),
    ),
)


def secrets_of(*registries: QuirkyRegistry) -> set[str]:
    """Return every form of the test's secrets, and all tokens that clients sent to the registries."""
    plain = {USER, PASSWORD, IDENTITY}
    pairs = {f"{USER}:{secret}" for secret in (PASSWORD, IDENTITY)} | {f"<token>:{IDENTITY}"}
    found = plain | {base64.b64encode(text.encode()).decode() for text in plain | pairs}
    found |= {urllib.parse.quote(text, safe="") for text in plain} | {urllib.parse.quote_plus(text) for text in plain}
    for registry in registries:
        for request in registry.requests:
            found |= {(request.headers.get("Authorization") or "x ").partition(" ")[2]}
    return {text for text in found if len(text) > 5}


def assert_silent(heard: bytes, *registries: QuirkyRegistry) -> None:
    """Assert that a host received no secret and no Authorization header."""
    assert b"uthorization" not in heard
    assert b"Cookie" not in heard
    for secret in secrets_of(*registries):
        assert secret.encode() not in heard


def was_shown(registry: QuirkyRegistry) -> None:
    """Assert that the registry itself received a credential."""
    assert any(request.headers["Authorization"] for request in registry.requests)


def filled(layout: Layout, registry: QuirkyRegistry) -> dict[str, Any]:
    """Store an image in a registry that admits only USER."""
    image = small_image(layout)
    auth = registry.auth
    if isinstance(auth, Bearer):
        shown = f"Bearer {auth.token_for('repository:app:pull,push,delete', user=USER)}"
    else:
        shown = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
    faults, registry.faults = registry.faults, []
    seed(layout, image, registry.host, "app", "v1", headers={"Authorization": shown})
    registry.faults = faults
    registry.requests.clear()
    return image


def docker_config(folder: Path, logins: Mapping[str, Login]) -> dict[str, str]:
    """Return the environment of a user whose logins, by host or namespace, are only in Docker's file."""
    docker = folder / "docker"
    docker.mkdir(exist_ok=True)
    auths = {place: login.entry() for place, login in logins.items()}
    (docker / "config.json").write_text(json.dumps({"auths": auths}))
    return {"HOME": str(folder), "DOCKER_CONFIG": str(docker)}


def logged_in(folder: Path, scheme: Scheme, *hosts: str) -> dict[str, str]:
    """Return the environment of a user with the same login for each of these hosts, in Docker's file."""
    return docker_config(folder, dict.fromkeys(hosts, scheme.login))


def assert_unprinted(result: Result, *registries: QuirkyRegistry) -> None:
    """Assert that no secret was printed, not even the signature of a URL."""
    for secret in secrets_of(*registries) - {USER}:
        assert secret not in result.err
        assert secret not in result.out.decode()
    assert "sig=" not in result.err
