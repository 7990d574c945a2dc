"""A missing peer fails or skips a test, and the tests' token server grants tokens."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from tests.peers import need
from tests.registry_http import basic
from tests.token_server import TokenServer, User

Start = Callable[..., TokenServer]
SCOPE = "repository:team/app:pull,push"


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_peer_fails_in_ci_and_skips_elsewhere(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no-such-peer is not installed"):
        need("sh", "no-such-peer")
    need("sh")


def ask(url: str, *, form: dict[str, str] | None = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """Send a GET request, or a POST request with a form; return the status and the JSON of the response."""
    content = urllib.parse.urlencode(form).encode() if form else None
    try:
        with urllib.request.urlopen(urllib.request.Request(url, content, headers or {}), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def actions(token: str) -> list[str]:
    """Return the actions that a token allows on its first repository."""
    claims = token.split(".")[1]
    access = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["access"]
    return list(access[0]["actions"])


def test_a_token_grants_only_the_rights_of_its_user(start_token_server: Start) -> None:
    server = start_token_server(users={"ada": User("pw", {"team/*": ["pull"]})}, anonymous={})
    url = f"{server.realm}?service={server.service}&scope={SCOPE}"
    assert actions(ask(url, headers=basic("ada", "pw"))[1]["token"]) == ["pull"]
    assert actions(ask(url)[1]["token"]) == []
    assert ask(url, headers=basic("ada", "wrong"))[0] == 401
    assert [request.user for request in server.requests] == ["ada", None, None]
    assert [request.scopes for request in server.requests] == [(SCOPE,)] * 3


def test_oauth2_returns_a_refresh_token_that_renews_tokens(start_token_server: Start) -> None:
    server = start_token_server(users={"ada": User("pw")}, field="access_token", expires_in=90)
    login = {"grant_type": "password", "username": "ada", "password": "pw", "access_type": "offline", "scope": SCOPE}
    status, answer = ask(server.realm, form=login)
    assert (status, answer["expires_in"], "token" in answer) == (200, 90, False)
    renew = {"grant_type": "refresh_token", "refresh_token": answer["refresh_token"], "scope": SCOPE}
    assert actions(ask(server.realm, form=renew)[1]["access_token"]) == ["pull", "push"]
    assert ask(server.realm, form={**renew, "refresh_token": "another"})[0] == 401
    assert [request.grant for request in server.requests] == ["password", "refresh_token", "refresh_token"]


def test_a_server_without_oauth2_answers_404_to_post(start_token_server: Start) -> None:
    server = start_token_server(users={"ada": User("pw")}, oauth2=False, expires_in=None)
    form = {"grant_type": "password", "username": "ada", "password": "pw"}
    assert ask(server.realm, form=form)[0] == 404
    assert "expires_in" not in ask(server.realm, headers=basic("ada", "pw"))[1]
