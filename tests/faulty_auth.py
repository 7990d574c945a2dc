"""Passwords and tokens for `tests.faulty_registry`, as data: what a client must send, and what it sent.

Tokens are opaque and stored here. `tests.token_server` is a real token server with signed tokens, for distribution's
registry.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import secrets
import time
import urllib.parse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tests.registry import Answer, RefusedError

if TYPE_CHECKING:
    from tests.faulty_registry import Request

_TOKEN_PATH = "/token"


class Denied(Exception):  # noqa: N818 - it carries an answer, and is not an error
    """The client must authenticate first."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class Auth(Protocol):
    """Decides which requests are allowed."""

    def admit(self, request: Request, url: str) -> str:
        """Return the target to serve, which may differ from the requested one, or raise `Denied`.

        `url` is the registry's.
        """

    def is_token_endpoint(self, request: Request) -> bool:
        """Return whether `token` answers this request."""

    def token(self, request: Request, body: bytes) -> Answer:
        """Answer a request for a token."""


@dataclasses.dataclass
class Basic:
    """Every request must have this user's name and password."""

    user: str
    password: str
    realm: str = "registry.test"

    def is_token_endpoint(self, request: Request) -> bool:  # noqa: ARG002 - the protocol's form
        return False

    def token(self, request: Request, body: bytes) -> Answer:
        raise NotImplementedError

    def admit(self, request: Request, url: str) -> str:  # noqa: ARG002 - the protocol's form
        if _credentials(request) == (self.user, self.password):
            return request.target
        raise Denied(_unauthorized(f'Basic realm="{self.realm}"'))


@dataclasses.dataclass
class TokenRequest:
    """A request for a token, and its contents."""

    method: str
    user: str | None
    scopes: tuple[str, ...]
    service: str
    form: Mapping[str, list[str]]
    status: int


@dataclasses.dataclass
class _Token:
    scopes: set[tuple[str, str]]
    ends: float
    uses: int | None


@dataclasses.dataclass
class Bearer:
    """Every request must have a token, which `/token` of the same registry issues.

    A token is valid for `lifetime` seconds and for `uses` requests (None: any number). `expires_in` is the lifetime
    that the response states, in seconds (None: nothing). `users` may do everything, others what `anonymous` lists.
    `realm` None is our own. With `challenge` False only `/v2/` sends WWW-Authenticate; with `scope` False it has no
    scope. `oauth2` False answers POST with 404. `field` is the response's member that has the token.
    """

    users: dict[str, str] = dataclasses.field(default_factory=dict)
    anonymous: tuple[str, ...] = ("pull", "push", "delete")
    lifetime: float = 300.0
    uses: int | None = None
    expires_in: int | None = 300
    realm: str | None = None
    service: str = "registry.test"
    challenge: bool = True
    scope: bool = True
    oauth2: bool = True
    field: Literal["token", "access_token"] = "token"
    requests: list[TokenRequest] = dataclasses.field(default_factory=list)
    _tokens: dict[str, _Token] = dataclasses.field(default_factory=dict)

    def expire(self) -> None:
        """Expire every token issued so far."""
        self._tokens.clear()

    def token_for(self, *scopes: str, user: str | None = None) -> str:
        """Issue a token, as the token server would to `user`, or to an anonymous client."""
        return self._issue(user, scopes)

    def admit(self, request: Request, url: str) -> str:
        if self.is_token_endpoint(request):
            return request.target
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        token = self._tokens.get(text) if scheme.lower() == "bearer" else None
        needed = _needed(request)
        good = token is not None and token.ends > time.monotonic() and token.uses != 0
        if token is None or not good or not needed <= token.scopes:
            why = "" if not text else "insufficient_scope" if good else "invalid_token"
            raise Denied(_unauthorized(self._challenge(request, url, needed, why)))
        if token.uses is not None:
            token.uses -= 1
        source = request.query.get("from", [""])[0]
        if source and (source, "pull") not in token.scopes:
            # distribution treats such a mount as an ordinary upload.
            return request.target.partition("?")[0]
        return request.target

    def is_token_endpoint(self, request: Request) -> bool:
        return request.path == _TOKEN_PATH

    def token(self, request: Request, body: bytes) -> Answer:
        posted = urllib.parse.parse_qs(body.decode()) if request.method == "POST" else {}
        form = posted or dict(request.query)
        given = _credentials(request)
        if "username" in form:
            given = form["username"][0], form.get("password", [""])[0]
        scopes = tuple(scope for value in form.get("scope", []) for scope in value.split())
        status = 200
        if request.method == "POST" and not self.oauth2:
            status = 404
        elif given and self.users.get(given[0]) != given[1]:
            status = 401
        user = given[0] if given and status == 200 else None
        service = form.get("service", [""])[0]
        self.requests.append(TokenRequest(request.method, user, scopes, service, form, status))
        if status != 200:
            return Answer(status, {"Content-Type": "application/json"}, b'{"details": "no"}')
        document: dict[str, Any] = {self.field: self._issue(user, scopes)}
        if self.expires_in is not None:
            document["expires_in"] = self.expires_in
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(document).encode())

    def _issue(self, user: str | None, scopes: tuple[str, ...]) -> str:
        granted = {
            (name, action)
            for scope in scopes
            for name, actions in [scope.partition(":")[2].rsplit(":", 1)]
            for action in actions.split(",")
            if user is not None or action in self.anonymous
        }
        text = secrets.token_hex(16)
        self._tokens[text] = _Token(granted, time.monotonic() + self.lifetime, self.uses)
        return text

    def _challenge(self, request: Request, url: str, needed: set[tuple[str, str]], why: str) -> str | None:
        if not self.challenge and request.path != "/v2/":
            return None
        value = f'Bearer realm="{self.realm or url + _TOKEN_PATH}",service="{self.service}"'
        if self.scope and needed:
            name = next(iter(needed))[0]
            value += f',scope="repository:{name}:{",".join(sorted(action for _, action in needed))}"'
        # As distribution does (RFC 6750, section 3.1).
        return f'{value},error="{why}"' if why else value


def _needed(request: Request) -> set[tuple[str, str]]:
    """Return the repository, and each action on it, that a request requires."""
    found = urllib.parse.unquote(request.path).removeprefix("/v2/")
    for word in ("/manifests/", "/blobs/", "/tags/", "/referrers/"):
        name, separator, _ = found.rpartition(word)
        if separator:
            break
    else:
        return set()
    name = name.removesuffix("/blobs")
    if request.method in {"GET", "HEAD"} and "/uploads/" not in request.path:
        return {(name, "pull")}
    return {(name, "delete")} if request.method == "DELETE" else {(name, "pull"), (name, "push")}


def _credentials(request: Request) -> tuple[str, str] | None:
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    user, _, password = base64.b64decode(encoded).decode(errors="replace").partition(":")
    return user, password


def _unauthorized(challenge: str | None) -> Answer:
    headers = {"Content-Type": "application/json"}
    if challenge is not None:
        headers["WWW-Authenticate"] = challenge
    return Answer(401, headers, RefusedError(401, "UNAUTHORIZED", "authentication required").body())
