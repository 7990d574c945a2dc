"""Mounts, tokens, redirects and cookies: statements 17 to 21."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faulty_auth import Basic, Bearer
from tests.images import Layout, small_image, tar_layer
from tests.quirks import registry_quirks
from tests.quirks.command_runner import How, both_ways
from tests.quirks.credential_forms import Login, docker_config
from tests.quirks.fixture_types import Move, Start
from tests.quirks.quirky_registry import Quirk, QuirkyRegistry, refused
from tests.quirks.registry_models import PASSWORD, USER
from tests.quirks.small_images import is_stored, layer_of, one_layer
from tests.quirks.statements import quirk
from tests.quirks.upload_quirks import STATE
from tests.registry_http import basic, manifest_digest, seed


def mounted(registry: QuirkyRegistry) -> list[int | None]:
    """Return the status of each mount."""
    return [request.status for request in registry.asked("POST", "mount=")]


def _not_shared(*quirks: Quirk) -> tuple[Quirk, ...]:
    """Return quirks of a registry whose repositories have separate blobs, so that there is something to mount."""

    def forget(handler: Any, answer: Any) -> Any:
        looked = handler.command == "HEAD" and "/v2/copied/blobs/" in handler.path
        return refused(404, "BLOB_UNKNOWN") if looked else answer

    return (Quirk("blobs belong to repositories", outward=forget), *quirks)


@quirk(17)
def test_a_mount_names_its_source_repository(start: Start, mover: Move, layout: Layout) -> None:
    registry = start(*_not_shared(registry_quirks.MOUNT_WANTS_FROM))
    image = small_image(layout)
    seed(layout, image, registry.host, "team/app", "v1")
    mover().copy(f"{registry.host}/team/app:v1", f"{registry.host}/copied:v1")
    mounts = registry.asked("POST", r"mount=")
    assert len(mounts) == 3
    assert all(request.query["from"] == ["team/app"] for request in mounts)
    assert mounted(registry) == [201] * 3
    assert registry.asked("PATCH", "/v2/copied/") == []


@quirk(17)
@pytest.mark.parametrize(
    ("quirks", "kept"),
    [
        ((registry_quirks.MOUNT_IS_UPLOAD,), "mount=sha256:"),
        ((STATE, Quirk("a mount becomes an upload", inward=registry_quirks.MOUNT_IS_UPLOAD.inward)), "_state="),
    ],
    ids=["with mount= in its Location", "with a state"],
)
def test_an_upload_session_in_place_of_a_mount_is_used_at_its_location(
    quirks: tuple[Quirk, ...], kept: str, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(*_not_shared(*quirks))
    # The config and the first layer are small, so each takes one PUT.
    image = layout.image([tar_layer({"etc/motd": b"hello"}), 300_000])
    seed(layout, image, registry.host, "team/app", "v1")
    registry.requests.clear()
    mover().copy(f"{registry.host}/team/app:v1", f"{registry.host}/copied:v1")
    assert 201 not in mounted(registry)
    # No further session is opened, and the query of the Location is preserved.
    assert len(registry.asked("POST")) == 3
    (patch,) = registry.asked("PATCH", "/v2/copied/blobs/uploads/")
    puts = registry.asked("PUT", "/v2/copied/blobs/uploads/")
    small = [put for put in puts if put.received]
    (closing,) = (put for put in puts if not put.received)
    assert len(small) == 2
    assert all(request.target.partition("?")[2].startswith(kept) for request in (patch, *small))
    assert all("&digest=" in put.target for put in small)
    assert ("&" if kept == "_state=" else "?") + "digest=" in closing.target
    assert manifest_digest(registry.host, "copied", "v1") == image["digest"]


@quirk(18)
def test_the_token_for_a_mount_covers_both_repositories_the_target_first(
    start: Start, mover: Move, layout: Layout
) -> None:
    auth = Bearer({USER: PASSWORD}, anonymous=("pull", "push"))
    registry = start(*_not_shared(), auth=auth)
    image = small_image(layout)
    token = auth.token_for("repository:team/app:pull,push")
    seed(layout, image, registry.host, "team/app", "v1", headers={"Authorization": f"Bearer {token}"})
    auth.requests.clear()
    # No login: with a user the token request would name it.
    mover(env={}).copy(f"{registry.host}/team/app:v1", f"{registry.host}/copied:v1")
    # Two threads may both get a 401 before the first one has a token.
    assert mounted(registry).count(201) == 3
    assert set(mounted(registry)) <= {201, 401}
    assert ("repository:copied:pull,push", "repository:team/app:pull") in [request.scopes for request in auth.requests]


@quirk(19)
@pytest.mark.parametrize("field", ["token", "access_token"])
@both_ways
def test_a_token_is_accepted_as_token_or_access_token(
    field: Any, how: How, start: Start, mover: Move, layout: Layout
) -> None:
    auth = Bearer({USER: PASSWORD}, anonymous=(), field=field)
    registry = start(auth=auth)
    image, archive = one_layer(layout)
    mover().push(archive, f"{registry.host}/app:v1", how)
    assert is_stored(registry, layout, layer_of(layout, image))
    assert {request.user for request in auth.requests} == {USER}


@quirk(19)
def test_a_token_server_without_oauth2_gets_a_get(start: Start, mover: Move, layout: Layout, tmp_path: Path) -> None:
    auth = Bearer({USER: "an identity"}, anonymous=(), oauth2=False)
    registry = start(auth=auth)
    image, archive = one_layer(layout)
    login = docker_config(tmp_path, {registry.host: Login(USER, identity="an identity")})
    mover(env=login).push(archive, f"{registry.host}/app:v1")
    assert is_stored(registry, layout, layer_of(layout, image))
    assert [(request.method, request.status) for request in auth.requests][:2] == [("POST", 404), ("GET", 200)]


@quirk(19)
@both_ways
def test_a_missing_challenge_is_requested_from_the_base_endpoint(
    how: How, start: Start, mover: Move, layout: Layout
) -> None:
    auth = Bearer({USER: PASSWORD}, anonymous=(), challenge=False)
    registry = start(auth=auth)
    image, archive = one_layer(layout)
    mover().push(archive, f"{registry.host}/app:v1", how)
    assert is_stored(registry, layout, layer_of(layout, image))
    # The challenge is reused for all later requests.
    assert len(registry.asked("GET", r"^/v2/\Z")) <= 4
    before = len(registry.asked("GET", r"^/v2/\Z"))
    mover().pull(f"{registry.host}/app:v1")
    assert len(registry.asked("GET", r"^/v2/\Z")) == before + 1


@quirk(20)
def test_a_relative_redirect_keeps_host_and_authorization(start: Start, mover: Move, layout: Layout) -> None:
    registry = start(registry_quirks.RELATIVE_REDIRECT, auth=Basic(USER, PASSWORD))
    _, archive = one_layer(layout)
    mover().push(archive, f"{registry.host}/app:v1")
    mover().pull(f"{registry.host}/app:v1")
    stored = registry.asked("GET", "^/stored/")
    assert len(stored) == 2
    assert {request.headers["Authorization"] for request in stored} == {basic(USER, PASSWORD)["Authorization"]}


@quirk(21)
@both_ways
def test_cookies_are_not_sent_back(how: How, start: Start, mover: Move, layout: Layout) -> None:
    registry = start(registry_quirks.COOKIES, auth=Bearer({USER: PASSWORD}, anonymous=()))
    image, archive = one_layer(layout)
    used = mover()
    used.push(archive, f"{registry.host}/app:v1", how)
    used.pull(f"{registry.host}/app:v1", how)
    assert {request.headers["Cookie"] for request in registry.requests} == {None}
    assert is_stored(registry, layout, layer_of(layout, image))
