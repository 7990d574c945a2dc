"""Challenges become headers. What a token server says is data here; that real ones are understood, interop proves."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocistream import limits
from ocistream.auth import Authenticator
from ocistream.auth_file import named_by
from ocistream.challenges import Challenge, parse_challenges
from ocistream.credentials import Credential
from ocistream.errors import AuthenticationError, RegistryError, UsageError
from ocistream.scopes import scopes_for
from ocistream.token_requests import TokenAnswer, TokenRequest

PULL = ("repository:org/app:pull",)
PUSH = ("repository:org/app:pull,push",)
BEARER = 'Bearer realm="https://auth.example/token",service="registry.example"'
ALICE = Credential("alice", "s3cret:with colon", source="~/.docker/config.json")
REGISTRY_TOKEN = Credential("alice", "", source="config.json", registry_token="token-of-alice")
IDENTITY = Credential("<token>", "", "identity-of-alice", source="docker-credential-pass")


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def answer(status: int = 200, /, **fields: object) -> TokenAnswer:
    return TokenAnswer(status, json.dumps(fields).encode())


class Server:
    """A token server as data: it gives out t1, t2, ... unless `answers` says what comes first."""

    def __init__(self, *answers: TokenAnswer, **fields: object) -> None:
        self.answers = list(answers)
        self.fields = fields
        self.requests: list[TokenRequest] = []

    def send(self, request: TokenRequest) -> TokenAnswer:
        self.requests.append(request)
        return self.answers.pop(0) if self.answers else answer(token=f"t{len(self.requests)}", **self.fields)

    def query(self, number: int = -1) -> list[tuple[str, str]]:
        return parse_qsl(urlsplit(self.requests[number].url).query)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def authenticator(
    server: Server, credential: Credential | None = None, *, clock: Callable[[], float] | None = None
) -> Authenticator:
    more: dict[str, Any] = {} if clock is None else {"clock": clock}
    return Authenticator("registry.example", lambda _: credential, server.send, **more)


# -- challenges ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Basic", [("basic", {})]),
        ('bEARER Realm="https://a/t",SERVICE=s', [("bearer", {"realm": "https://a/t", "service": "s"})]),
        ('Bearer realm="r",scope="a:b:pull,push c:d:*"', [("bearer", {"realm": "r", "scope": "a:b:pull,push c:d:*"})]),
        (
            'Basic realm="a, \\"b\\" \\\\c", Bearer realm=r',
            [("basic", {"realm": 'a, "b" \\c'}), ("bearer", {"realm": "r"})],
        ),
        ('Negotiate abc==, Basic realm="x"', [("negotiate", {}), ("basic", {"realm": "x"})]),
        ('NTLM, Basic realm = "x" , charset\t=\tUTF-8', [("ntlm", {}), ("basic", {"realm": "x", "charset": "UTF-8"})]),
        (',, Basic realm="x",,service="y",', [("basic", {"realm": "x", "service": "y"})]),
        ('Bearer realm="x" service="y"', [("bearer", {"realm": "x", "service": "y"})]),
        ('Bearer realm="first",realm="second"', [("bearer", {"realm": "first"})]),
        ('Bearer realm=""', [("bearer", {"realm": ""})]),
        ('realm="nobody\'s", "junk", Bearer realm="z"', [("bearer", {"realm": "z"})]),
        ('Bearer ?@[,realm="x"', [("bearer", {"realm": "x"})]),
        ('Bearer realm="never closed, Basic realm="x"', [("bearer", {"realm": "never closed, Basic realm="})]),
        ('Bearer service=s,realm="never closed', [("bearer", {"service": "s"})]),
        ("", []),
        ("\\", []),
    ],
)
def test_challenges_are_read_as_rfc_9110_writes_them_and_garbage_is_skipped(
    value: str, expected: list[tuple[str, dict[str, str]]]
) -> None:
    assert parse_challenges([value]) == [Challenge(*each) for each in expected]


def test_challenges_of_several_headers_are_joined() -> None:
    assert [one.scheme for one in parse_challenges(["Basic, NTLM", "", BEARER])] == ["basic", "ntlm", "bearer"]


#: Texts that look like challenges more often than random ones do.
CHALLENGE_LIKE = st.lists(
    st.sampled_from(["Bearer", "Basic", " ", "\t", ",", "=", '"', "\\", "realm", "a", "é", "\n", "\0", "ab==", "/"])
).map("".join)


@given(st.lists(st.text() | CHALLENGE_LIKE))
def test_no_header_makes_parsing_raise(values: list[str]) -> None:
    for challenge in parse_challenges(values):
        assert challenge.scheme
        assert challenge.scheme == challenge.scheme.lower()
        assert all(name == name.lower() for name in challenge.parameters)


QUOTED = st.text(st.characters(exclude_categories=["Cs"]))
WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+.^_`|~-", min_size=1)


@given(st.lists(st.tuples(WORDS, st.dictionaries(WORDS, QUOTED, min_size=1)), min_size=1))
def test_what_is_written_by_the_rules_is_read_back(challenges: list[tuple[str, dict[str, str]]]) -> None:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    value = ", ".join(
        f"{scheme} " + ", ".join(f"{name}={quoted(text)}" for name, text in parameters.items())
        for scheme, parameters in challenges
    )
    assert parse_challenges([value]) == [Challenge(*each) for each in challenges]


def test_a_scope_names_repository_and_actions() -> None:
    assert scopes_for("library/nginx", "pull", "push") == "repository:library/nginx:pull,push"


# -- Basic -----------------------------------------------------------------------------------------------------


def test_nothing_is_sent_or_looked_up_before_a_challenge() -> None:
    def find(_: str) -> Credential | None:
        pytest.fail("asked")

    server = Server()
    assert Authenticator("registry.example", find, server.send).authorization(PULL) is None
    assert server.requests == []


def test_basic_is_answered_with_the_credential_and_sent_up_front_from_then_on() -> None:
    auth = authenticator(Server(), ALICE)
    expected = basic("alice", "s3cret:with colon")
    assert auth.challenged(['Basic realm="x"'], PULL, None) == expected
    assert auth.authorization(PUSH) == expected


def test_a_refused_basic_credential_is_not_shown_again_and_the_error_says_whose_it_was() -> None:
    auth = authenticator(Server(), ALICE)
    header = auth.challenged(["Basic"], PULL, None)
    with pytest.raises(AuthenticationError) as caught:
        auth.challenged(["Basic"], PULL, header)
    assert caught.value.what == "registry.example refused the credentials from ~/.docker/config.json"
    assert caught.value.hint == "ocistream login registry.example"


@pytest.mark.parametrize(
    "given",
    [
        Credential("alice", "wrong", source="--username"),
        Credential("alice", "wrong", source="OCISTREAM_DEST_USERNAME"),
        Credential("alice", "wrong", source="DOCKER_AUTH_CONFIG"),
        named_by(Credential("alice", "wrong", source="X_USERNAME"), "the configuration"),
    ],
    ids=lambda given: given.source,
)
@pytest.mark.parametrize("challenge", ["Basic", BEARER])
def test_of_what_was_given_for_this_run_no_login_is_advised_which_would_come_after_it(
    given: Credential, challenge: str
) -> None:
    auth = authenticator(Server(answer(401)), given)
    with pytest.raises(AuthenticationError) as caught:
        auth.challenged(["Basic"], PULL, auth.challenged([challenge], PULL, None))
    assert (caught.value.hint or "").startswith(f"correct {given.source}, or leave it away")


def test_of_a_file_whose_name_reads_as_if_something_named_it_a_login_is_advised() -> None:
    auth = authenticator(Server(answer(401)), Credential("alice", "wrong", source="~/a list of names"))
    with pytest.raises(AuthenticationError) as caught:
        auth.challenged(["Basic"], PULL, auth.challenged(["Basic"], PULL, None))
    assert caught.value.hint == "ocistream login registry.example"


def test_basic_without_a_credential_is_an_error_and_nothing_is_sent_up_front() -> None:
    auth = authenticator(Server(), None)
    with pytest.raises(AuthenticationError, match="none were found") as caught:
        auth.challenged(["Basic"], PULL, None)
    assert caught.value.hint == "ocistream login registry.example"
    assert auth.authorization(PULL) is None


def test_a_user_name_with_a_colon_is_refused_since_basic_would_cut_it() -> None:
    auth = authenticator(Server(), Credential("a:b", "c"))
    with pytest.raises(UsageError, match="holds a colon"):
        auth.challenged(["Basic"], PULL, None)


def test_bytes_of_a_password_that_are_not_utf8_are_sent_as_they_are() -> None:
    auth = authenticator(Server(), Credential("alice", b"p\xe4ss".decode(errors="surrogateescape")))
    header = auth.challenged(["Basic"], PULL, None)
    assert base64.b64decode(header.removeprefix("Basic ")) == b"alice:p\xe4ss"


@pytest.mark.parametrize("bad", [Credential("\ud800", "x"), Credential("a", "\ud800"), Credential("a", "", "\ud800")])
@pytest.mark.parametrize("challenge", ["Basic", BEARER])
def test_a_credential_that_is_no_text_is_refused_without_being_shown(bad: Credential, challenge: str) -> None:
    server = Server()
    with pytest.raises(UsageError, match="the credentials are not text") as caught:
        authenticator(server, bad).challenged([challenge], PULL, None)
    assert caught.value.__suppress_context__
    assert server.requests == []


def test_an_identity_token_stands_in_for_the_password_where_only_basic_is_spoken() -> None:
    assert authenticator(Server(), IDENTITY).challenged(["Basic"], (), None) == basic("<token>", "identity-of-alice")
    nobody = Credential("", "", "identity-of-alice")
    assert authenticator(Server(), nobody).challenged(["Basic"], (), None) == basic("<token>", "identity-of-alice")


def test_a_token_for_the_registry_itself_is_shown_to_it_and_no_server_is_asked() -> None:
    server = Server()
    auth = authenticator(server, REGISTRY_TOKEN)
    assert auth.challenged([BEARER], PULL, None) == "Bearer token-of-alice"
    assert auth.authorization(PUSH) == "Bearer token-of-alice"
    assert auth.is_final("Bearer token-of-alice", PUSH)
    with pytest.raises(AuthenticationError, match=r"^registry.example refused the credentials from config.json$"):
        auth.challenged([BEARER], PUSH, "Bearer token-of-alice")
    assert server.requests == []


def test_a_token_for_the_registry_itself_is_no_password() -> None:
    auth = authenticator(Server(), REGISTRY_TOKEN)
    with pytest.raises(AuthenticationError, match="wants a user name and a password"):
        auth.challenged(["Basic"], PULL, None)
    assert auth.authorization(PULL) is None


def test_a_token_that_cannot_stand_in_a_header_is_refused() -> None:
    auth = authenticator(Server(), Credential("", "", source="config.json", registry_token="a\r\nX: y"))
    with pytest.raises(UsageError, match=r"^the credentials from config.json have a token that cannot"):
        auth.challenged([BEARER], PULL, None)


# -- which challenge -------------------------------------------------------------------------------------------


def test_bearer_is_preferred_to_basic() -> None:
    assert authenticator(Server(), ALICE).challenged(["Basic", BEARER], PULL, None) == "Bearer t1"


@pytest.mark.parametrize("bearer", ["Bearer", 'Bearer realm=""', "Bearer service=x"])
def test_basic_is_taken_where_bearer_names_no_realm(bearer: str) -> None:
    assert authenticator(Server(), ALICE).challenged([bearer, "Basic"], PULL, None).startswith("Basic ")


def test_bearer_without_a_realm_is_the_registrys_error() -> None:
    with pytest.raises(RegistryError, match="without a realm") as caught:
        authenticator(Server(), ALICE).challenged(["Bearer"], PULL, None)
    assert caught.value.status == 401


def test_other_schemes_are_named_in_the_error_each_once_and_no_longer_than_a_name_is() -> None:
    auth = authenticator(Server(), ALICE)
    with pytest.raises(AuthenticationError, match="by negotiate, ntlm; only Basic and Bearer"):
        auth.challenged(["Negotiate, NTLM, Negotiate"], PULL, None)
    with pytest.raises(AuthenticationError) as caught:
        auth.challenged(["x" * 5000], PULL, None)
    assert len(caught.value.what) < 200


def test_a_401_without_a_challenge_is_an_error_when_none_was_seen() -> None:
    with pytest.raises(AuthenticationError, match="does not say how"):
        authenticator(Server(), ALICE).challenged([], PULL, None)


def test_a_401_without_a_challenge_reuses_the_one_seen_before() -> None:
    server = Server()
    auth = authenticator(server)
    assert auth.challenged([BEARER], PULL, None) == "Bearer t1"
    assert auth.challenged([], PUSH, "Bearer t1") == "Bearer t2"
    assert dict(server.query())["scope"] == PUSH[0]


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
        "https://auth.example/\nX: y",
        "https://auth.exämple/token",
    ],
)
def test_a_realm_that_is_no_absolute_http_url_is_refused_and_not_printed(realm: str) -> None:
    server = Server()
    with pytest.raises(RegistryError) as caught:
        authenticator(server, ALICE).challenged([f'Bearer realm="{realm}"'], PULL, None)
    assert caught.value.what == "the realm that registry.example names for its tokens is not an absolute http(s) URL"
    assert caught.value.status == 401
    assert server.requests == []


# -- what a token server is asked ------------------------------------------------------------------------------


def test_an_anonymous_token_is_asked_for_without_authorization() -> None:
    server = Server()
    assert authenticator(server).challenged([BEARER], PULL, None) == "Bearer t1"
    (request,) = server.requests
    assert (request.method, request.body) == ("GET", None)
    assert "Authorization" not in request.headers
    assert request.url.startswith("https://auth.example/token?")
    assert server.query() == [("service", "registry.example"), ("scope", PULL[0])]


def test_a_user_is_shown_to_the_token_server_only_and_scopes_are_repeated_in_their_order() -> None:
    server = Server()
    scopes = ("repository:org/app:pull,push", "repository:other/app:pull")
    assert authenticator(server, ALICE).challenged([BEARER], scopes, None) == "Bearer t1"
    (request,) = server.requests
    assert request.headers["Authorization"] == basic("alice", "s3cret:with colon")
    assert server.query() == [
        ("service", "registry.example"),
        ("scope", scopes[0]),
        ("scope", scopes[1]),
        ("account", "alice"),
    ]


@pytest.mark.parametrize(
    ("realm", "expected"),
    [
        ("http://a.example/t", "http://a.example/t?service=s"),
        ("https://a.example/t?x=%2Fy&z", "https://a.example/t?x=%2Fy&z&service=s"),
        ("https://a.example/t?", "https://a.example/t?service=s"),
        ("https://a.example:5001/t?x=y#fragment", "https://a.example:5001/t?x=y&service=s"),
    ],
)
def test_the_query_of_a_realm_is_kept_byte_for_byte(realm: str, expected: str) -> None:
    server = Server()
    authenticator(server).challenged([f'Bearer realm="{realm}",service="s"'], (), None)
    assert server.requests[0].url == expected


def test_a_realm_without_anything_to_ask_is_asked_as_it_is() -> None:
    server = Server()
    authenticator(server).challenged(['Bearer realm="https://a.example/t"'], (), None)
    assert server.requests[0].url == "https://a.example/t"


def test_what_the_challenge_says_cannot_break_out_of_the_query() -> None:
    server = Server()
    authenticator(server).challenged(['Bearer realm="https://a.example/t",service="s&scope=x y#\r\n"'], PULL, None)
    assert server.query() == [("service", "s&scope=x y#\r\n"), ("scope", PULL[0])]
    assert server.requests[0].url.isascii()
    assert server.requests[0].url.isprintable()


def test_an_identity_token_is_posted_as_an_oauth2_refresh_token() -> None:
    server = Server(answer(access_token="a1"))
    scopes = (PUSH[0], "repository:other/app:pull")
    assert authenticator(server, IDENTITY).challenged([BEARER], scopes, None) == "Bearer a1"
    (request,) = server.requests
    assert (request.method, request.url) == ("POST", "https://auth.example/token")
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert "Authorization" not in request.headers
    assert request.body is not None
    assert parse_qs(request.body.decode(), strict_parsing=True) == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["identity-of-alice"],
        "service": ["registry.example"],
        "scope": [" ".join(scopes)],
        "client_id": ["ocistream"],
    }


def test_bytes_that_are_not_utf8_reach_the_token_server_as_they_are() -> None:
    server = Server()
    odd = b"\xe4".decode(errors="surrogateescape")
    authenticator(server, Credential(odd, "x")).challenged([BEARER], (), None)
    assert server.requests[0].url.endswith("&account=%E4")
    authenticator(server, Credential("", "", odd)).challenged([BEARER], (), None)
    assert server.requests[1].body is not None
    assert b"refresh_token=%E4&" in server.requests[1].body


def test_an_oauth2_request_has_no_empty_fields() -> None:
    server = Server()
    authenticator(server, IDENTITY).challenged(['Bearer realm="https://a.example/t"'], (), None)
    assert server.requests[0].body is not None
    assert set(parse_qs(server.requests[0].body.decode())) == {"grant_type", "refresh_token", "client_id"}


@pytest.mark.parametrize("status", [404, 405])
@pytest.mark.parametrize("username", ["<token>", "alice"])
def test_a_token_server_without_oauth2_is_asked_with_get(status: int, username: str) -> None:
    server = Server(answer(status))
    credential = Credential(username, "", "identity-of-alice")
    assert authenticator(server, credential).challenged([BEARER], PULL, None) == "Bearer t2"
    assert [request.method for request in server.requests] == ["POST", "GET"]
    assert server.requests[1].headers["Authorization"] == basic(username, "identity-of-alice")
    assert dict(server.query()).get("account") == (None if username == "<token>" else username)


def test_a_refused_identity_token_is_not_tried_in_another_way() -> None:
    server = Server(answer(401))
    with pytest.raises(AuthenticationError, match="docker-credential-pass"):
        authenticator(server, IDENTITY).challenged([BEARER], PULL, None)
    assert len(server.requests) == 1


def test_a_scope_that_the_challenge_asks_for_and_ours_lack_is_added_behind_them() -> None:
    server = Server()
    auth = authenticator(server)
    auth.challenged(
        [BEARER + ',scope="repository:org/app:pull registry:catalog:* repository:org/app:push"'], PUSH, None
    )
    assert [value for name, value in server.query() if name == "scope"] == [PUSH[0], "registry:catalog:*"]
    auth.challenged([BEARER], PUSH, "Bearer t1")
    assert [value for name, value in server.query() if name == "scope"] == [PUSH[0], "registry:catalog:*"]
    auth.challenged([BEARER + ',scope="registry:catalog:delete"'], PUSH, "Bearer t2")
    assert [value for name, value in server.query() if name == "scope"][1:] == [
        "registry:catalog:*",
        "registry:catalog:delete",
    ]


def test_a_registry_cannot_make_a_token_request_grow_without_end() -> None:
    server = Server()
    auth = authenticator(server)
    for turn in range(3):
        many = " ".join(f"repository:r{turn}/{number}:pull" for number in range(5000))
        auth.challenged([f'{BEARER},scope="{many}"'], PULL, f"Bearer t{turn}")
    assert len([name for name, _ in server.query() if name == "scope"]) == 17


# -- what a token server answers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"token": "a"}, "a"),
        ({"access_token": "b"}, "b"),
        ({"token": "a", "access_token": "b"}, "a"),
        ({"token": "", "access_token": "b"}, "b"),
        ({"token": None, "access_token": "b", "more": [1]}, "b"),
        ({"token": "QQ=="}, "QQ=="),
    ],
)
def test_a_token_is_taken_under_either_name(fields: dict[str, object], expected: str) -> None:
    server = Server(answer(**fields))
    assert authenticator(server).challenged([BEARER], PULL, None) == f"Bearer {expected}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'"token"',
        b"null",
        b"{}",
        b'{"token": ""}',
        b'{"token": 1}',
        b'{"token": ["x"]}',
        b'{"token": {"a": "b"}}',
        b'{"token": "x", "token": "hidden"}',
        b'{"token": "x", "expires_in": NaN}',
        b'{"token": "x", "expires_in": ' + b"9" * 5000 + b"}",
        b'{"token": "hidden\\r\\nX-Injected: yes"}',
        b'{"token": "hidden\\n"}',
        b'{"token": "hid den"}',
        b'{"token": "hidden\\u0000"}',
        b'{"token": "hidd\\u00e9n"}',
        b'{"token": "\\ud800"}',
        b'{"token": "\xff"}',
        b'{"a":' * 20_000,
        b'{"token": "' + b"x" * limits.MAX_TOKEN_ANSWER + b'"}',
    ],
)
def test_a_broken_answer_is_the_registrys_error_and_none_of_it_is_printed(body: bytes) -> None:
    server = Server(TokenAnswer(200, body))
    with pytest.raises(RegistryError) as caught:
        authenticator(server).challenged([BEARER], PULL, None)
    assert caught.value.status == 200
    assert "the token server auth.example of registry.example" in caught.value.what
    assert "hid" not in caught.value.what
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("body", [b"{}", b'{"token": ""}', b'{"access_token": null}'])
def test_an_answer_without_a_token_says_so(body: bytes) -> None:
    with pytest.raises(RegistryError, match="has no token"):
        authenticator(Server(TokenAnswer(200, body))).challenged([BEARER], PULL, None)


@pytest.mark.parametrize("status", [199, 300, 302, 400, 404, 429, 500, 503])
def test_another_status_is_the_registrys_error_and_keeps_it(status: int) -> None:
    server = Server(TokenAnswer(status, b"hidden"))
    with pytest.raises(RegistryError) as caught:
        authenticator(server, ALICE).challenged([BEARER], PULL, None)
    assert caught.value.status == status
    assert caught.value.what == f"the token server auth.example of registry.example answered {status}"


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_credential_is_named_by_its_source_and_never_shown(status: int) -> None:
    server = Server(answer(status, details="s3cret"))
    with pytest.raises(AuthenticationError) as caught:
        authenticator(server, ALICE).challenged([BEARER], PULL, None)
    assert caught.value.what == (
        "the token server auth.example of registry.example refused the credentials from ~/.docker/config.json"
    )
    assert caught.value.hint == "ocistream login registry.example"


def test_a_refused_anonymous_request_says_that_no_credential_was_found() -> None:
    with pytest.raises(AuthenticationError, match="wants credentials, and none were found"):
        authenticator(Server(answer(401))).challenged([BEARER], PULL, None)


def test_a_refused_credential_is_not_shown_again_for_the_same_scopes() -> None:
    server = Server(answer(401))
    auth = authenticator(server, ALICE)
    for _ in range(3):
        with pytest.raises(AuthenticationError, match="the credentials from"):
            auth.challenged([BEARER], PULL, None)
    with pytest.raises(AuthenticationError):
        auth.authorization(PULL)
    assert len(server.requests) == 1
    assert auth.authorization(PUSH) == "Bearer t2"


def test_a_failure_of_the_token_server_is_not_remembered() -> None:
    auth = authenticator(Server(answer(500)), ALICE)
    with pytest.raises(RegistryError):
        auth.challenged([BEARER], PULL, None)
    assert auth.challenged([BEARER], PULL, None) == "Bearer t2"


def test_no_secret_is_in_a_repr() -> None:
    server = Server()
    auth = authenticator(server, ALICE)
    auth.challenged([BEARER], PULL, None)
    given = answer(token="hidden-token")
    seen = repr((server.requests, given, vars(auth)))
    for secret in ("s3cret", basic("alice", "s3cret:with colon")[6:], "hidden-token", "t1"):
        assert secret not in seen


# -- tokens are kept -------------------------------------------------------------------------------------------


def test_a_token_serves_for_what_its_scopes_cover_and_for_nothing_else() -> None:
    server = Server(expires_in=300)
    auth = authenticator(server)
    assert auth.challenged([BEARER], (PUSH[0], "repository:other/app:pull"), None) == "Bearer t1"
    for covered in (PUSH, PULL, ("repository:other/app:pull",), ()):
        assert auth.authorization(covered) == "Bearer t1"
    assert auth.authorization(("repository:other/app:pull,push",)) == "Bearer t2"
    assert auth.authorization(("repository:org/app2:pull",)) == "Bearer t3"
    assert auth.authorization(("registry:catalog:*",)) == "Bearer t4"
    assert len(server.requests) == 4


def test_a_scope_that_is_not_of_the_usual_form_is_covered_by_itself() -> None:
    auth = authenticator(Server())
    assert auth.challenged([BEARER], ("odd",), None) == "Bearer t1"
    assert auth.authorization(("odd",)) == "Bearer t1"
    assert auth.authorization(("other",)) == "Bearer t2"


def test_the_token_for_just_these_scopes_goes_before_one_that_covers_them() -> None:
    auth = authenticator(Server())
    auth.challenged([BEARER], PULL, None)
    assert auth.authorization(PUSH) == "Bearer t2"
    assert auth.challenged([BEARER], PULL, "Bearer t1") == "Bearer t2"
    assert auth.challenged([BEARER], PULL, "Bearer t2") == "Bearer t3"
    assert auth.authorization(PUSH) == "Bearer t4"
    assert auth.authorization(PULL) == "Bearer t3"


@pytest.mark.parametrize(
    ("expires_in", "useful"),
    [
        (60, 50),
        (None, 50),
        (300, 270),
        (3600, 3240),
        (90.5, 80.5),
        ("300", 270),
        (" 300.0 ", 270),
        (4, 2),
        (0.5, 0.25),
        (0, 50),
        (-5, 50),
        ("soon", 50),
        ("", 50),
        ("nan", 50),
        ("inf", 50),
        (True, 50),
        ([300], 50),
        ({}, 50),
        (10**400, 50),
        (1e308, 0.9e308),
    ],
)
def test_a_token_is_used_until_shortly_before_its_end_and_then_renewed(expires_in: object, useful: float) -> None:
    clock = Clock()
    server = Server(expires_in=expires_in, issued_at="1970-01-01T00:00:00Z")
    auth = authenticator(server, clock=clock)
    assert auth.challenged([BEARER], PULL, None) == "Bearer t1"
    clock.now += useful * 0.999
    assert auth.authorization(PULL) == "Bearer t1"
    clock.now += useful * 0.002
    assert auth.authorization(PULL) == "Bearer t2"


def test_a_life_is_counted_from_the_answer_and_not_from_the_request() -> None:
    clock = Clock()

    class Slow(Server):
        def send(self, request: TokenRequest) -> TokenAnswer:
            clock.now += 1000
            return super().send(request)

    auth = authenticator(Slow(), clock=clock)
    assert auth.challenged([BEARER], PULL, None) == "Bearer t1"
    assert auth.authorization(PULL) == "Bearer t1"


def test_a_refused_token_is_replaced_once_and_not_again_for_who_comes_later_with_it() -> None:
    server = Server()
    auth = authenticator(server)
    assert auth.challenged([BEARER], PULL, None) == "Bearer t1"
    assert auth.challenged([BEARER], PULL, None) == "Bearer t1"
    assert auth.challenged([BEARER], PULL, "Bearer t1") == "Bearer t2"
    assert auth.challenged([BEARER], PULL, "Bearer t1") == "Bearer t2"
    assert auth.authorization(PULL) == "Bearer t2"
    assert len(server.requests) == 2


def test_a_registry_that_changes_from_basic_to_bearer_is_followed() -> None:
    auth = authenticator(Server(), ALICE)
    header = auth.challenged(["Basic"], PULL, None)
    assert auth.challenged([BEARER], PULL, header) == "Bearer t1"
    assert auth.challenged(["Basic"], PULL, "Bearer t1") == header


# -- credentials -----------------------------------------------------------------------------------------------


def test_a_credential_is_looked_up_once_for_each_repository_the_first_of_the_scopes() -> None:
    asked: list[str] = []

    def find(repository: str) -> Credential | None:
        asked.append(repository)
        return Credential(repository or "nobody", "x")

    server = Server()
    auth = Authenticator("registry.example", find, server.send)
    auth.challenged([BEARER], ("registry:catalog:*", "repository:a/b:pull,push", "repository:c:pull"), None)
    auth.authorization(("repository:a/b:delete",))
    auth.authorization(("repository:c:pull",))
    auth.authorization(("registry:catalog:*",))
    assert asked == ["a/b", "c", ""]
    assert [dict(server.query(number))["account"] for number in range(4)] == ["a/b", "a/b", "c", "nobody"]


def test_a_token_of_one_credential_does_not_serve_for_another() -> None:
    credentials: Mapping[str, Credential] = {"org/app": ALICE, "other/app": Credential("bob", "x")}
    server = Server()
    auth = Authenticator("registry.example", credentials.get, server.send)
    assert auth.challenged([BEARER], (PUSH[0], "repository:other/app:pull"), None) == "Bearer t1"
    assert auth.authorization(("repository:other/app:pull",)) == "Bearer t2"


def test_a_lookup_that_fails_is_told_and_tried_again_the_next_time() -> None:
    failures = [AuthenticationError("the helper failed")]

    def find(_: str) -> Credential | None:
        if failures:
            raise failures.pop()
        return ALICE

    auth = Authenticator("registry.example", find, Server().send)
    with pytest.raises(AuthenticationError, match="the helper failed"):
        auth.challenged([BEARER], PULL, None)
    assert auth.challenged([BEARER], PULL, None) == "Bearer t1"


# -- threads ---------------------------------------------------------------------------------------------------


def test_threads_that_ask_for_the_same_scopes_share_one_request() -> None:
    second_came = threading.Event()

    class Patient(Server):
        def send(self, request: TokenRequest) -> TokenAnswer:
            given = super().send(request)
            if len(self.requests) > 1:
                second_came.set()
            # Whoever else would send a request has the time to do so.
            second_came.wait(0.3)
            return given

    server = Patient()
    auth = authenticator(server, ALICE)
    with ThreadPoolExecutor(8) as pool:
        headers = set(pool.map(lambda _: auth.challenged([BEARER], PULL, None), range(8)))
    assert headers == {"Bearer t1"}
    assert len(server.requests) == 1


def test_threads_that_ask_for_different_scopes_do_not_wait_for_each_other() -> None:
    both = threading.Barrier(2, timeout=30)

    def send(request: TokenRequest) -> TokenAnswer:
        both.wait()
        return answer(token=parse_qs(urlsplit(request.url).query)["scope"][0])

    auth = Authenticator("registry.example", lambda _: None, send)
    scopes = [("repository:a:pull",), ("repository:b:pull",)]
    with ThreadPoolExecutor(2) as pool:
        headers = list(pool.map(lambda each: auth.challenged([BEARER], each, None), scopes))
    assert headers == ["Bearer repository:a:pull", "Bearer repository:b:pull"]


def test_threads_share_one_lookup_of_a_credential() -> None:
    asked: list[str] = []
    second_came = threading.Event()

    def find(repository: str) -> Credential | None:
        asked.append(repository)
        if len(asked) > 1:
            second_came.set()
        second_came.wait(0.3)
        return ALICE

    auth = Authenticator("registry.example", find, Server().send)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda action: auth.challenged([BEARER], (f"repository:a:{action}",), None), "wxyz"))
    assert asked == ["a"]
