"""Challenges and the Authorization headers that answer them. The token server is a fake; real ones: interop tests."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocistream.auth.authenticator import Authenticator
from ocistream.auth.docker_config import Credential, with_named_source
from ocistream.auth.tokens import Challenge, TokenRequest, TokenResponse, parse_challenges, repository_scope
from ocistream.errors import AuthenticationError, UsageError

PULL = ("repository:org/app:pull",)
PUSH = ("repository:org/app:pull,push",)
BEARER = 'Bearer realm="https://auth.example/token",service="registry.example"'
ALICE = Credential("alice", "s3cret:with colon", source="~/.docker/config.json")
IDENTITY = Credential("<token>", "", "identity-of-alice", source="docker-credential-pass")


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def answer(status: int = 200, /, **fields: object) -> TokenResponse:
    return TokenResponse(status, json.dumps(fields).encode())


class Server:
    """A fake token server: it issues t1, t2, ... unless `answers` has other answers to give first."""

    def __init__(self, *answers: TokenResponse, **fields: object) -> None:
        self.answers = list(answers)
        self.fields = fields
        self.requests: list[TokenRequest] = []

    def send(self, request: TokenRequest) -> TokenResponse:
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
def test_challenges_are_parsed_by_rfc_9110_and_garbage_is_skipped(
    value: str, expected: list[tuple[str, dict[str, str]]]
) -> None:
    assert parse_challenges([value]) == [Challenge(*each) for each in expected]


def test_challenges_of_several_headers_are_joined() -> None:
    assert [one.scheme for one in parse_challenges(["Basic, NTLM", "", BEARER])] == ["basic", "ntlm", "bearer"]


QUOTED = st.text(st.characters(exclude_categories=["Cs"]))
WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+.^_`|~-", min_size=1)


@given(st.lists(st.tuples(WORDS, st.dictionaries(WORDS, QUOTED, min_size=1)), min_size=1))
def test_well_formed_challenges_are_parsed(challenges: list[tuple[str, dict[str, str]]]) -> None:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    value = ", ".join(
        f"{scheme} " + ", ".join(f"{name}={quoted(text)}" for name, text in parameters.items())
        for scheme, parameters in challenges
    )
    assert parse_challenges([value]) == [Challenge(*each) for each in challenges]


def test_a_scope_names_repository_and_actions() -> None:
    assert repository_scope("library/nginx", "pull", "push") == "repository:library/nginx:pull,push"


# -- Basic -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        Credential("alice", "wrong", source="--username", is_named_by_user=True),
        Credential("alice", "wrong", source="OCISTREAM_DEST_USERNAME", is_named_by_user=True),
        with_named_source(Credential("alice", "wrong", source="DOCKER_AUTH_CONFIG"), "DOCKER_AUTH_CONFIG"),
        with_named_source(Credential("alice", "wrong", source="X_USERNAME"), "the configuration"),
    ],
    ids=lambda given: given.source,
)
@pytest.mark.parametrize("challenge", ["Basic", BEARER])
def test_no_login_is_advised_for_credentials_that_take_precedence_over_it(given: Credential, challenge: str) -> None:
    auth = authenticator(Server(answer(401)), given)
    with pytest.raises(AuthenticationError) as caught:
        auth.answer_challenge(["Basic"], PULL, auth.answer_challenge([challenge], PULL, None))
    hint = f"check the user name and password from {given.source}: they take precedence"
    if given.source == "--username":
        hint = "the user name or password is wrong; stored logins are ignored while --username is given"
    assert (caught.value.hint or "").startswith(hint)


def test_a_login_is_advised_for_a_file_named_like_a_description() -> None:
    auth = authenticator(Server(answer(401)), Credential("alice", "wrong", source="~/a list of names"))
    with pytest.raises(AuthenticationError) as caught:
        auth.answer_challenge(["Basic"], PULL, auth.answer_challenge(["Basic"], PULL, None))
    assert caught.value.hint == "ocistream login registry.example"


def test_a_user_name_with_a_colon_is_refused_because_basic_would_split_it() -> None:
    auth = authenticator(Server(), Credential("a:b", "c"))
    with pytest.raises(UsageError, match="contains a colon"):
        auth.answer_challenge(["Basic"], PULL, None)


def test_a_password_that_is_not_utf8_is_sent_unchanged() -> None:
    auth = authenticator(Server(), Credential("alice", b"p\xe4ss".decode(errors="surrogateescape")))
    header = auth.answer_challenge(["Basic"], PULL, None)
    assert base64.b64decode(header.removeprefix("Basic ")) == b"alice:p\xe4ss"


@pytest.mark.parametrize("bad", [Credential("\ud800", "x"), Credential("a", "\ud800"), Credential("a", "", "\ud800")])
@pytest.mark.parametrize("challenge", ["Basic", BEARER])
def test_a_credential_that_is_not_text_is_refused_without_being_shown(bad: Credential, challenge: str) -> None:
    server = Server()
    with pytest.raises(UsageError, match="the credentials are not text") as caught:
        authenticator(server, bad).answer_challenge([challenge], PULL, None)
    assert caught.value.__suppress_context__
    assert server.requests == []


def test_a_token_that_a_header_cannot_contain_is_refused() -> None:
    auth = authenticator(Server(), Credential("", "", source="config.json", registry_token="a\r\nX: y"))
    with pytest.raises(
        UsageError, match=r"^the credentials from config.json have a token with characters that a header cannot contain"
    ):
        auth.answer_challenge([BEARER], PULL, None)


# -- choice of a challenge -------------------------------------------------------------------------------------


def test_the_error_names_other_schemes_once_and_shortened() -> None:
    auth = authenticator(Server(), ALICE)
    with pytest.raises(AuthenticationError, match="requires negotiate, ntlm authentication; only Basic and Bearer"):
        auth.answer_challenge(["Negotiate, NTLM, Negotiate"], PULL, None)
    with pytest.raises(AuthenticationError) as caught:
        auth.answer_challenge(["x" * 5000], PULL, None)
    assert len(caught.value.message) < 200


def test_a_401_without_a_challenge_reuses_the_one_seen_before() -> None:
    server = Server()
    auth = authenticator(server)
    assert auth.answer_challenge([BEARER], PULL, None) == "Bearer t1"
    assert auth.answer_challenge([], PUSH, "Bearer t1") == "Bearer t2"
    assert dict(server.query())["scope"] == PUSH[0]


# -- requests to a token server --------------------------------------------------------------------------------


def test_a_realm_without_service_and_scopes_is_used_unchanged() -> None:
    server = Server()
    authenticator(server).answer_challenge(['Bearer realm="https://a.example/t"'], (), None)
    assert server.requests[0].url == "https://a.example/t"


def test_values_of_a_challenge_are_escaped_in_the_query() -> None:
    server = Server()
    authenticator(server).answer_challenge(
        ['Bearer realm="https://a.example/t",service="s&scope=x y#\r\n"'], PULL, None
    )
    assert server.query() == [("service", "s&scope=x y#\r\n"), ("scope", PULL[0])]
    assert server.requests[0].url.isascii()
    assert server.requests[0].url.isprintable()


def test_bytes_that_are_not_utf8_reach_the_token_server_unchanged() -> None:
    server = Server()
    odd = b"\xe4".decode(errors="surrogateescape")
    authenticator(server, Credential(odd, "x")).answer_challenge([BEARER], (), None)
    assert server.requests[0].url.endswith("&account=%E4")
    authenticator(server, Credential("", "", odd)).answer_challenge([BEARER], (), None)
    assert server.requests[1].body is not None
    assert b"refresh_token=%E4&" in server.requests[1].body


def test_an_oauth2_request_has_no_empty_fields() -> None:
    server = Server()
    authenticator(server, IDENTITY).answer_challenge(['Bearer realm="https://a.example/t"'], (), None)
    assert server.requests[0].body is not None
    assert set(parse_qs(server.requests[0].body.decode())) == {"grant_type", "refresh_token", "client_id"}


# -- answers of a token server ---------------------------------------------------------------------------------


def test_no_secret_is_in_a_repr() -> None:
    server = Server()
    auth = authenticator(server, ALICE)
    auth.answer_challenge([BEARER], PULL, None)
    given = answer(token="hidden-token")
    seen = repr((server.requests, given, vars(auth)))
    for secret in ("s3cret", basic("alice", "s3cret:with colon")[6:], "hidden-token", "t1"):
        assert secret not in seen


# -- stored tokens ---------------------------------------------------------------------------------------------


def test_a_token_is_used_only_for_the_scopes_that_it_covers() -> None:
    server = Server(expires_in=300)
    auth = authenticator(server)
    assert auth.answer_challenge([BEARER], (PUSH[0], "repository:other/app:pull"), None) == "Bearer t1"
    for covered in (PUSH, PULL, ("repository:other/app:pull",), ()):
        assert auth.find_header(covered) == "Bearer t1"
    assert auth.find_header(("repository:other/app:pull,push",)) == "Bearer t2"
    assert auth.find_header(("repository:org/app2:pull",)) == "Bearer t3"
    assert auth.find_header(("registry:catalog:*",)) == "Bearer t4"
    assert len(server.requests) == 4


def test_a_scope_of_an_unusual_form_covers_only_itself() -> None:
    auth = authenticator(Server())
    assert auth.answer_challenge([BEARER], ("odd",), None) == "Bearer t1"
    assert auth.find_header(("odd",)) == "Bearer t1"
    assert auth.find_header(("other",)) == "Bearer t2"


def test_a_token_for_exactly_these_scopes_is_preferred() -> None:
    auth = authenticator(Server())
    auth.answer_challenge([BEARER], PULL, None)
    assert auth.find_header(PUSH) == "Bearer t2"
    assert auth.answer_challenge([BEARER], PULL, "Bearer t1") == "Bearer t2"
    assert auth.answer_challenge([BEARER], PULL, "Bearer t2") == "Bearer t3"
    assert auth.find_header(PUSH) == "Bearer t4"
    assert auth.find_header(PULL) == "Bearer t3"


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
def test_a_token_is_renewed_shortly_before_it_expires(expires_in: object, useful: float) -> None:
    clock = Clock()
    server = Server(expires_in=expires_in, issued_at="1970-01-01T00:00:00Z")
    auth = authenticator(server, clock=clock)
    assert auth.answer_challenge([BEARER], PULL, None) == "Bearer t1"
    clock.now += useful * 0.999
    assert auth.find_header(PULL) == "Bearer t1"
    clock.now += useful * 0.002
    assert auth.find_header(PULL) == "Bearer t2"


def test_the_lifetime_starts_at_the_answer_and_not_at_the_request() -> None:
    clock = Clock()

    class Slow(Server):
        def send(self, request: TokenRequest) -> TokenResponse:
            clock.now += 1000
            return super().send(request)

    auth = authenticator(Slow(), clock=clock)
    assert auth.answer_challenge([BEARER], PULL, None) == "Bearer t1"
    assert auth.find_header(PULL) == "Bearer t1"


def test_a_refused_token_is_replaced_only_once() -> None:
    server = Server()
    auth = authenticator(server)
    assert auth.answer_challenge([BEARER], PULL, None) == "Bearer t1"
    assert auth.answer_challenge([BEARER], PULL, None) == "Bearer t1"
    assert auth.answer_challenge([BEARER], PULL, "Bearer t1") == "Bearer t2"
    assert auth.answer_challenge([BEARER], PULL, "Bearer t1") == "Bearer t2"
    assert auth.find_header(PULL) == "Bearer t2"
    assert len(server.requests) == 2


def test_a_registry_may_change_between_basic_and_bearer() -> None:
    auth = authenticator(Server(), ALICE)
    header = auth.answer_challenge(["Basic"], PULL, None)
    assert auth.answer_challenge([BEARER], PULL, header) == "Bearer t1"
    assert auth.answer_challenge(["Basic"], PULL, "Bearer t1") == header


# -- credentials -----------------------------------------------------------------------------------------------


def test_a_credential_is_looked_up_once_for_each_repository() -> None:
    asked: list[str] = []

    def find(repository: str) -> Credential | None:
        asked.append(repository)
        return Credential(repository or "nobody", "x")

    server = Server()
    auth = Authenticator("registry.example", find, server.send)
    auth.answer_challenge([BEARER], ("registry:catalog:*", "repository:a/b:pull,push", "repository:c:pull"), None)
    auth.find_header(("repository:a/b:delete",))
    auth.find_header(("repository:c:pull",))
    auth.find_header(("registry:catalog:*",))
    assert asked == ["a/b", "c", ""]
    assert [dict(server.query(number))["account"] for number in range(4)] == ["a/b", "a/b", "c", "nobody"]


def test_a_failed_lookup_is_reported_and_tried_again() -> None:
    failures = [AuthenticationError("the helper failed")]

    def find(_: str) -> Credential | None:
        if failures:
            raise failures.pop()
        return ALICE

    auth = Authenticator("registry.example", find, Server().send)
    with pytest.raises(AuthenticationError, match="the helper failed"):
        auth.answer_challenge([BEARER], PULL, None)
    assert auth.answer_challenge([BEARER], PULL, None) == "Bearer t1"


# -- threads ---------------------------------------------------------------------------------------------------


def test_threads_that_ask_for_different_scopes_do_not_wait_for_each_other() -> None:
    both = threading.Barrier(2, timeout=30)

    def send(request: TokenRequest) -> TokenResponse:
        both.wait()
        return answer(token=parse_qs(urlsplit(request.url).query)["scope"][0])

    auth = Authenticator("registry.example", lambda _: None, send)
    scopes = [("repository:a:pull",), ("repository:b:pull",)]
    with ThreadPoolExecutor(2) as pool:
        headers = list(pool.map(lambda each: auth.answer_challenge([BEARER], each, None), scopes))
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
        list(pool.map(lambda action: auth.answer_challenge([BEARER], (f"repository:a:{action}",), None), "wxyz"))
    assert asked == ["a"]
