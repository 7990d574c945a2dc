"""Tokens and passwords: what is asked for, what is shown to whom, and when. Statements 43 to 46."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import Fault, refusal
from tests.faulty_auth import Bearer
from tests.images import Layout, small_image
from tests.quirks import habits
from tests.quirks.moving import Mover
from tests.quirks.pieces import is_stored, layer_of, one_layer
from tests.quirks.registries import PASSWORD, USER
from tests.quirks.registry import QuirkyRegistry
from tests.quirks.shown import Login, docker_config
from tests.quirks.statements import quirk
from tests.registry_http import manifest_digest, seed

Start = Callable[..., QuirkyRegistry]
Move = Callable[..., Mover]


@quirk(43)
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("registry:catalog:*", ["registry:catalog:*"]),
        ("repository:app:pull repository:app:push registry:catalog:*", ["registry:catalog:*"]),
        (" ".join(f"r:{number}:x" for number in range(2000)), [f"r:{number}:x" for number in range(16)]),
    ],
    ids=["one", "what ours cover", "2000 of them"],
)
def test_scopes_that_a_challenge_names_are_added_to_ours_and_not_without_end(
    asked: str, expected: list[str], start: Start, mover: Move, layout: Layout
) -> None:
    auth = Bearer({USER: PASSWORD}, anonymous=())
    registry = start(habits.asking_for(asked), auth=auth)
    image, archive = one_layer(layout)
    mover().push(archive, f"{registry.host}/app:v1")
    assert {request.scopes for request in auth.requests} == {("repository:app:pull,push", *expected)}
    assert is_stored(registry, layout, layer_of(layout, image))


@quirk(44)
def test_a_token_of_one_login_is_not_shown_for_another(
    start: Start, mover: Move, layout: Layout, tmp_path: Path
) -> None:
    auth = Bearer({"ada": "1815", "bob": "1822"}, anonymous=())
    registry = start(habits.only_in("from/ada"), habits.refused_mounts(405), auth=auth)
    image = small_image(layout)
    token = auth.token_for("repository:from/ada:pull,push", user="ada")
    seed(layout, image, registry.host, "from/ada", "v1", headers={"Authorization": f"Bearer {token}"})
    # Bob's token covers what Ada reads, since it was for a mount; and Ada's ends.
    ends = refusal(401, WWW_Authenticate=f'Bearer realm="{registry.url}/token",error="invalid_token"')
    registry.faults.append(Fault(ends, "GET", "/v2/from/ada/blobs/"))
    login = docker_config(
        tmp_path,
        {f"{registry.host}/from/ada": Login("ada", "1815"), f"{registry.host}/to/bob": Login("bob", "1822")},
    )
    mover("--jobs", "1", env=login).copy(f"{registry.host}/from/ada:v1", f"{registry.host}/to/bob:v1")
    asked = [(request.user, request.scopes) for request in auth.requests]
    assert ("bob", ("repository:to/bob:pull,push", "repository:from/ada:pull")) in asked
    assert [user for user, scopes in asked if scopes == ("repository:from/ada:pull",)] == ["ada", "ada"]
    shown = {"Authorization": f"Bearer {auth.token_for('repository:to/bob:pull', user='bob')}"}
    assert manifest_digest(registry.host, "to/bob", "v1", headers=shown) == image["digest"]
