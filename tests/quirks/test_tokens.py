"""Tokens and passwords: what is requested, which server gets it, and when. Statements 43 to 46."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from ocistream import limits
from tests.archives import small_first, tar_of
from tests.faulty_auth import Basic, Bearer
from tests.faulty_registry import Action, Drop, Fault, HangUp, Reply, Reset, Stall, refusal
from tests.images import Layout, small_image
from tests.quirks import registry_quirks
from tests.quirks.command_runner import run
from tests.quirks.credential_forms import Login, docker_config
from tests.quirks.fixture_types import Move, Start
from tests.quirks.quirky_registry import Quirk, QuirkyRegistry, Tap
from tests.quirks.registry_models import PASSWORD, USER
from tests.quirks.small_images import config_of, is_stored, layer_of, one_layer
from tests.quirks.statements import quirk
from tests.registry_http import basic, manifest_digest, seed


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
def test_a_limited_number_of_scopes_of_a_challenge_is_added_to_ours(
    asked: str, expected: list[str], start: Start, mover: Move, layout: Layout
) -> None:
    auth = Bearer({USER: PASSWORD}, anonymous=())
    registry = start(registry_quirks.asking_for(asked), auth=auth)
    image, archive = one_layer(layout)
    mover().push(archive, f"{registry.host}/app:v1")
    assert {request.scopes for request in auth.requests} == {("repository:app:pull,push", *expected)}
    assert is_stored(registry, layout, layer_of(layout, image))


@quirk(44)
def test_a_token_of_one_login_is_not_used_for_another(
    start: Start, mover: Move, layout: Layout, tmp_path: Path
) -> None:
    auth = Bearer({"ada": "1815", "bob": "1822"}, anonymous=())
    registry = start(registry_quirks.only_in("from/ada"), registry_quirks.refused_mounts(405), auth=auth)
    image = small_image(layout)
    token = auth.token_for("repository:from/ada:pull,push", user="ada")
    seed(layout, image, registry.host, "from/ada", "v1", headers={"Authorization": f"Bearer {token}"})
    # Bob's token was for a mount, so it covers what Ada reads; Ada's token expires.
    ends = refusal(401, WWW_Authenticate=f'Bearer realm="{registry.url}/token",error="invalid_token"')
    registry.faults.append(Fault(ends, "GET", "/v2/from/ada/blobs/"))
    login = docker_config(
        tmp_path,
        {f"{registry.host}/from/ada": Login("ada", "1815"), f"{registry.host}/to/bob": Login("bob", "1822")},
    )
    plan = tmp_path / "images.toml"
    plan.write_text(f'[[sync]]\nfrom = "{registry.host}/from/ada:v1"\nto = "{registry.host}/to/bob:v1"\n')
    mover(env=login).run("sync", plan, "--jobs", "1")
    asked = [(request.user, request.scopes) for request in auth.requests]
    assert ("bob", ("repository:to/bob:pull,push", "repository:from/ada:pull")) in asked
    assert [user for user, scopes in asked if scopes == ("repository:from/ada:pull",)] == ["ada", "ada"]
    shown = {"Authorization": f"Bearer {auth.token_for('repository:to/bob:pull', user='bob')}"}
    assert manifest_digest(registry.host, "to/bob", "v1", headers=shown) == image["digest"]


# Challenges -----------------------------------------------------------------------------------------------------


def challenging(start: Start, challenge: str | None) -> QuirkyRegistry:
    """Start a registry that answers everything with 401, except `/token`, which issues tokens to any client."""
    headers = {} if challenge is None else {"WWW_Authenticate": challenge}
    return start(Quirk("always 401", (Fault(refusal(401, **headers), path="^/v2/", times=None),)))


@quirk(45)
@pytest.mark.parametrize(
    "realm",
    [
        "/token",
        "auth.example/token",
        "ftp://auth.example/token",
        "file:///etc/passwd",
        "https://",
        "https://[::1/token",
        "https://auth.example:99999/token",
        "https://auth.example:0/token",
        "https://user:hidden@auth.example/token",
        "https://auth.example/to ken",
    ],
)
def test_a_realm_that_is_not_an_absolute_http_url_is_refused_and_not_printed(
    realm: str, start: Start, mover: Move
) -> None:
    registry = challenging(start, f'Bearer realm="{realm}",service="s"')
    words = f"the realm that {registry.host} names for its tokens is not an absolute http(s) URL"
    result = mover().run("inspect", f"{registry.host}/app:v1", code=7, says=words)
    assert realm not in result.err.replace(registry.host, "")
    assert len(registry.requests) == 1


@quirk(45)
@pytest.mark.parametrize(
    ("challenge", "code", "words"),
    [
        (
            "Negotiate, NTLM, Negotiate",
            3,
            "requires negotiate, ntlm authentication; only Basic and Bearer are supported",
        ),
        (
            ", ".join(f"scheme{number}" for number in range(1000)),
            3,
            "requires scheme0, scheme1, scheme2, scheme3, ... authentication",
        ),
        ("Bearer", 7, "requires a Bearer token, but names no realm"),
        ('Bearer realm=""', 7, "requires a Bearer token, but names no realm"),
        (None, 3, "does not say how to authenticate"),
        ('"junk", realm="nobody\'s"', 3, "does not say how to authenticate"),
    ],
)
def test_an_unsupported_challenge_is_reported(
    challenge: str | None, code: int, words: str, start: Start, mover: Move
) -> None:
    registry = challenging(start, challenge)
    mover().run("inspect", f"{registry.host}/app:v1", code=code, says=words)
    assert {request.headers["Authorization"] for request in registry.requests} == {None}


@quirk(45)
@pytest.mark.parametrize(
    "challenge",
    ["Bearer, Basic", 'Bearer realm="", Basic realm="x"', 'Negotiate abc==, Basic realm="x"', ',, bASIC realm = "x",,'],
)
def test_basic_is_used_if_bearer_has_no_realm(challenge: str, start: Start, mover: Move) -> None:
    registry = challenging(start, challenge)
    mover().run("inspect", f"{registry.host}/app:v1", code=3, says="refused the credentials from OCISTREAM_USERNAME")
    # A refused password is sent once, not with each later request.
    expected = basic(USER, PASSWORD)["Authorization"]
    assert [request.headers["Authorization"] for request in registry.requests] == [None, expected]


@quirk(45)
@pytest.mark.parametrize(
    ("realm", "expected"),
    [
        ("/token", "/token?service=s%26x"),
        ("/token?a=b%2Fc&x=", "/token?a=b%2Fc&x=&service=s%26x"),
        ("/token?x=y#fragment", "/token?x=y&service=s%26x"),
    ],
)
def test_bearer_is_preferred_and_the_query_of_its_realm_is_unchanged(
    realm: str, expected: str, start: Start, mover: Move
) -> None:
    registry = start()
    challenge = f'Basic realm="x", bEARER REALM="{registry.url}{realm}",SERVICE="s&x"'
    registry.faults = [
        Fault(Reply(200, {}, b'{"token": "t1"}'), path="^/token", times=None),
        Fault(refusal(401, WWW_Authenticate=challenge), path="^/v2/"),
    ]
    mover().run("inspect", f"{registry.host}/team/app:v1", code=4)
    first, token, second = registry.requests[:3]
    scope = "repository%3Ateam%2Fapp%3Apull"
    assert token.target.lower() in {
        f"{expected}&account={USER}&scope={scope}".lower(),
        f"{expected}&scope={scope}&account={USER}".lower(),
    }
    assert token.headers["Authorization"] == basic(USER, PASSWORD)["Authorization"]
    assert (first.headers["Authorization"], second.headers["Authorization"]) == (None, "Bearer t1")


@quirk(19, 45)
def test_an_identity_token_is_posted_as_an_oauth2_refresh_token(
    start: Start, mover: Move, tap: Callable[[str], Tap], layout: Layout, tmp_path: Path
) -> None:
    registry = start()
    # A tap records the token request.
    second = tap(registry.host)
    challenge = f'Bearer realm="{second.url}/token",service="registry.test"'
    registry.faults = [
        Fault(Reply(200, {}, b'{"access_token": "t1"}'), path="^/token", times=None),
        Fault(refusal(401, WWW_Authenticate=challenge), path="^/v2/"),
    ]
    login = docker_config(tmp_path, {registry.host: Login("<token>", identity="identity/+")})
    _, archive = one_layer(layout)
    mover("--jobs", "1", env=login).push(archive, f"{registry.host}/app:v1")
    head, _, body = second.heard.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /token HTTP/1.1\r\n")
    assert b"application/x-www-form-urlencoded" in head
    assert b"uthorization" not in head
    assert urllib.parse.parse_qs(body.decode(), strict_parsing=True) == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["identity/+"],
        "service": ["registry.test"],
        "scope": ["repository:app:pull,push"],
        "client_id": ["ocistream"],
    }


# Responses of a token server ------------------------------------------------------------------------------------

BROKEN: Final = (
    b"",
    b"<html>",
    b"[]",
    b"null",
    b"{}",
    b'{"token": ""}',
    b'{"token": 1}',
    b'{"token": {"a": "b"}}',
    b'{"token": "x", "token": "hidden"}',
    b'{"token": "x", "expires_in": NaN}',
    b'{"token": "hidden\\r\\nX-Injected: yes"}',
    b'{"token": "hid den"}',
    b'{"token": "hidd\\u00e9n"}',
    b'{"token": "\\ud800"}',
    b'{"a":' * 20_000,
    b'{"token": "' + b"x" * limits.MAX_TOKEN_RESPONSE + b'"}',
)


@quirk(46)
def test_a_malformed_token_response_is_a_registry_error_that_does_not_print_it(start: Start, mover: Move) -> None:
    registry = start(auth=Bearer({USER: PASSWORD}, anonymous=()))
    for body in BROKEN:
        registry.requests.clear()
        registry.faults = [Fault(Reply(200, {}, body), path="^/token", times=None)]
        words = f"the token server 127.0.0.1 of {registry.host}"
        result = mover().run("inspect", f"{registry.host}/app:v1", code=7, says=words)
        assert "hid" not in result.err, body
        # There is no retry, and no request with a token.
        assert [request.path for request in registry.requests] == ["/v2/app/manifests/v1", "/token"]


@quirk(46)
@pytest.mark.parametrize(
    ("action", "code", "words", "asked"),
    [
        (refusal(400), 7, "the token server 127.0.0.1 of HOST answered 400", 1),
        (refusal(404), 7, "answered 404", 1),
        (refusal(500), 7, "answered 500", 6),
        (refusal(429, Retry_After="1000"), 7, "answered 429", 1),
        (refusal(401), 3, "the token server 127.0.0.1 of HOST refused the credentials from OCISTREAM_USERNAME", 1),
        (refusal(403), 3, "refused the credentials from OCISTREAM_USERNAME", 1),
        (HangUp(), 7, "/token", 6),
    ],
    ids=str,
)
def test_a_failing_token_server_gets_as_many_attempts_as_any_server(
    action: Action, code: int, words: str, asked: int, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(auth=Bearer({USER: PASSWORD}, anonymous=()))
    registry.faults = [Fault(action, path="^/token", times=None)]
    _, archive = one_layer(layout)
    mover("-q", "--jobs", "1").push(
        archive, f"{registry.host}/app:v1", code=code, says=words.replace("HOST", registry.host)
    )
    # Even with several threads a refused request is not repeated.
    assert len(registry.asked(path="^/token")) == asked


@quirk(46)
@pytest.mark.parametrize("status", [400, 404, 405, 501])
@pytest.mark.parametrize(("command", "image"), [("digest", "app:v1"), ("tags", "app"), ("inspect", "app:v1")])
def test_a_refusal_by_the_token_server_is_not_taken_for_one_by_the_registry(
    command: str, image: str, status: int, start: Start, mover: Move
) -> None:
    # Registries without HEAD, pages of tags or referrers are asked in another way, and would be given the same token.
    registry = start(auth=Bearer({USER: PASSWORD}, anonymous=()))
    registry.faults = [Fault(refusal(status), path="^/token", times=None)]
    mover().run(command, f"{registry.host}/{image}", code=7, says=f"answered {status}")
    assert [request.status for request in registry.requests] == [401, status]


@quirk(46)
@pytest.mark.parametrize("status", [401, 403])
def test_a_password_that_was_refused_for_one_image_is_not_sent_for_the_next(
    status: int, start: Start, mover: Move, tmp_path: Path
) -> None:
    # Repeated wrong passwords lock accounts.
    registry = start(auth=Bearer({USER: PASSWORD}, anonymous=()))
    registry.faults = [Fault(refusal(status), path="^/token", times=None)]
    login = docker_config(tmp_path, {registry.host: Login(USER, PASSWORD)})
    plan = tmp_path / "images.toml"
    plan.write_text(
        "".join(f'[[sync]]\nfrom = "{registry.host}/app:{tag}"\nto = "oci:{tmp_path}/{tag}"\n' for tag in "123")
    )
    result = run("sync", plan, "--jobs", "1", env=mover(env=login).env)
    assert result.code == 3, result.err
    assert len(registry.asked(path="^/token")) == 1


@quirk(46)
@pytest.mark.parametrize("action", [HangUp(), Reset(), Drop(10), refusal(429), refusal(500), refusal(503)], ids=str)
def test_a_temporary_failure_of_a_token_server_is_retried(
    action: Action, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(auth=Bearer({USER: PASSWORD}, anonymous=()))
    registry.faults = [Fault(action, path="^/token", times=3)]
    image, archive = one_layer(layout)
    mover("--jobs", "1").push(archive, f"{registry.host}/app:v1")
    assert len(registry.asked(path="^/token")) == 4
    assert is_stored(registry, layout, layer_of(layout, image))


@quirk(46)
def test_a_user_without_a_login_is_told_to_log_in(start: Start, mover: Move) -> None:
    registry = start(auth=Bearer({USER: PASSWORD}, anonymous=()))
    registry.faults = [Fault(refusal(401), path="^/token", times=None)]
    words = ("requires credentials, but none were found", f"ocistream login {registry.host}")
    mover(env={}).run("inspect", f"{registry.host}/app:v1", code=3, says=words)


# Lifetime of tokens ---------------------------------------------------------------------------------------------


@quirk(44)
@pytest.mark.parametrize(("expires_in", "renewed"), [(1, True), (60, False), (None, False), (0, False)])
def test_a_token_is_renewed_before_it_expires(
    expires_in: int | None, renewed: bool, start: Start, mover: Move, layout: Layout
) -> None:
    auth = Bearer({USER: PASSWORD}, anonymous=(), expires_in=expires_in)
    registry = start(auth=auth)
    image = small_image(layout)
    shown = {"Authorization": f"Bearer {auth.token_for('repository:app:pull,push', user=USER)}"}
    seed(layout, image, registry.host, "app", "v1", headers=shown)
    registry.requests.clear()
    # Longer than half a second, for which a token with a lifetime of one second is used.
    registry.faults = [Fault(Stall(0.6), "GET", config_of(layout, image)["digest"])]
    mover("--jobs", "1", "--no-referrers").pull(f"{registry.host}/app:v1")
    assert len(auth.requests) == (2 if renewed else 1)
    # Only one 401: the second token was fetched before the first was refused.
    assert [request.status for request in registry.requests].count(401) == 1


@quirk(44)
def test_many_threads_share_one_token_request(start: Start, mover: Move, layout: Layout) -> None:
    auth = Bearer({USER: PASSWORD}, anonymous=())
    registry = start(auth=auth)
    registry.faults = [Fault(Stall(0.2), path="^/token")]
    layout.image([f"layer {number}".encode() for number in range(8)], name="app")
    mover("--jobs", "8").push(tar_of(small_first(layout)), f"{registry.host}/app:v1")
    assert [request.scopes for request in auth.requests] == [("repository:app:pull,push",)]


@quirk(44)
@pytest.mark.parametrize("good", [True, False])
def test_an_unconfirmed_password_is_sent_by_one_thread_at_a_time(
    good: bool, start: Start, mover: Move, layout: Layout
) -> None:
    # Many simultaneous wrong passwords would lock the account.
    registry = start(auth=Basic(USER, PASSWORD if good else "another"))
    layout.image([f"layer {number}".encode() for number in range(8)], name="app")
    archive = tar_of(small_first(layout))
    words = f"{registry.host} refused the credentials from OCISTREAM_USERNAME"
    mover("--jobs", "8").push(archive, f"{registry.host}/app:v1", code=0 if good else 3, says=words)
    shown = [request for request in registry.requests if request.headers["Authorization"]]
    assert len(shown) > 8 if good else len(shown) == 1


@quirk(44)
def test_a_password_that_one_repository_refuses_is_sent_to_another(
    start: Start, mover: Move, layout: Layout, tmp_path: Path
) -> None:
    # Some registries answer 401 instead of 403 to a user without rights.
    registry = start(auth=Basic(USER, PASSWORD))
    seed(layout, small_image(layout), registry.host, "app", "v1", headers=basic(USER, PASSWORD))
    denied = refusal(401, WWW_Authenticate='Basic realm="registry"')
    registry.faults = [Fault(denied, path="^/v2/denied", times=None)]
    names = ["denied1", "denied2", "app"]
    plan = tmp_path / "images.toml"
    plan.write_text(
        "".join(f'[[sync]]\nfrom = "{registry.host}/{name}:v1"\nto = "oci:{tmp_path}/{name}"\n' for name in names)
    )
    login = docker_config(tmp_path, {registry.host: Login(USER, PASSWORD)})
    result = run("sync", plan, "--jobs", "1", env=mover(env=login).env)
    assert result.code == 3, result.err
    assert (tmp_path / "app" / "index.json").exists(), result.err


@quirk(44)
def test_a_password_that_no_repository_accepts_is_sent_to_few(start: Start, mover: Move, tmp_path: Path) -> None:
    # Repeated wrong passwords lock accounts.
    registry = start(auth=Basic(USER, "another"))
    plan = tmp_path / "images.toml"
    plan.write_text(
        "".join(f'[[sync]]\nfrom = "{registry.host}/app{n}:v1"\nto = "oci:{tmp_path}/{n}"\n' for n in range(9))
    )
    login = docker_config(tmp_path, {registry.host: Login(USER, PASSWORD)})
    assert run("sync", plan, "--jobs", "1", env=mover(env=login).env).code == 3
    assert len([request for request in registry.requests if request.headers["Authorization"]]) == 3


@quirk(44)
def test_a_command_fails_if_the_registry_refuses_a_second_token(start: Start, mover: Move) -> None:
    auth = Bearer({USER: PASSWORD}, anonymous=(), uses=0)
    registry = start(auth=auth)
    mover().run("inspect", f"{registry.host}/app:v1", code=3, says="401 UNAUTHORIZED")
    # The first token may have expired in transit; the second has not.
    assert [request.status for request in registry.requests] == [401, 200, 401, 200, 401]


@quirk(44)
def test_a_token_with_too_few_rights_is_not_requested_again(start: Start, mover: Move) -> None:
    registry = start(auth=Bearer(anonymous=()))
    mover(env={}).run("inspect", f"{registry.host}/app:v1", code=3)
    assert [request.status for request in registry.requests] == [401, 200, 401]


@quirk(44)
def test_a_token_is_sent_if_the_registry_refuses_the_password_and_asks_for_a_token(start: Start, mover: Move) -> None:
    registry = start()
    registry.faults = [
        Fault(refusal(401, WWW_Authenticate="Basic realm=x"), path="^/v2/"),
        Fault(refusal(401, WWW_Authenticate=f'Bearer realm="{registry.url}/token"'), path="^/v2/"),
        Fault(Reply(200, {}, b'{"token": "t1"}'), path="^/token"),
    ]
    mover().run("inspect", f"{registry.host}/app:v1", code=4)
    password = basic(USER, PASSWORD)["Authorization"]
    assert [request.headers["Authorization"] for request in registry.requests[:4]] == [
        None,
        password,
        password,
        "Bearer t1",
    ]


@quirk(44)
def test_a_refused_registry_token_is_sent_once(start: Start, mover: Move) -> None:
    auth = Bearer()
    registry = start(auth=auth)
    env = {"DOCKER_AUTH_CONFIG": json.dumps({"auths": {registry.host: {"registrytoken": "stale"}}})}
    words = "refused the credentials from DOCKER_AUTH_CONFIG"
    mover(env=env).run("inspect", f"{registry.host}/app:v1", code=3, says=words)
    shown = [request.headers["Authorization"] for request in registry.requests]
    assert shown == [None, "Bearer stale"]
    assert auth.requests == []
    mover(env=env).run("inspect", f"{start(auth=Basic(USER, PASSWORD)).host}/app:v1", code=3)
