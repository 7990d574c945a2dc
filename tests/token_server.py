"""A real token server for distribution's token authentication, over a real socket.

It implements distribution's documents "Token Authentication Specification" and "Oauth2 Token Authentication":
GET with or without Basic, and POST with the password or refresh_token grant. It records every request.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime as dt
import fnmatch
import json
import secrets
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Literal, cast

from tests.certificates import Certificate

#: Repository pattern (as in a shell) -> the actions allowed on it.
Rights = Mapping[str, Sequence[str]]
EVERYTHING: Rights = {"*": ("pull", "push", "delete")}
NOTHING: Rights = {}
#: Seconds for which distribution accepts a token after its expiry.
_LEEWAY: Final = 60
#: Tokens expire at full seconds of the server's clock; a client counts from when it got them.
_NOTICE: Final = 0.25


@dataclasses.dataclass(frozen=True)
class User:
    """A user's password and rights."""

    password: str
    rights: Rights = dataclasses.field(default_factory=lambda: EVERYTHING)


@dataclasses.dataclass(frozen=True)
class TokenRequest:
    """One request as it arrived, and the status of its answer.

    `grant` is "" for a GET, else OAuth2's grant_type; `user` is the authenticated user, or None.
    """

    method: str
    grant: str
    service: str
    scopes: tuple[str, ...]
    user: str | None
    fields: Mapping[str, Sequence[str]]
    authorization: str | None
    status: int


@dataclasses.dataclass
class TokenServer:
    """What the server grants; every field may change while it runs.

    `expires_in` is the lifetime in the response, in seconds (None: absent, which means 60). `lifetime` is the one
    inside the token, if it differs. distribution allows 60 seconds of leeway, so it refuses a lifetime of -58 after
    two seconds. `field` is the response's member that has the token. `oauth2=False` answers POST with 404, as many
    servers do.
    """

    certificate: Certificate
    users: dict[str, User] = dataclasses.field(default_factory=dict)
    anonymous: Rights = dataclasses.field(default_factory=lambda: NOTHING)
    expires_in: int | None = 300
    lifetime: int | None = None
    field: Literal["token", "access_token", "both"] = "token"
    oauth2: bool = True
    service: str = "registry.test"
    issuer: str = "issuer.test"
    realm: str = ""
    requests: list[TokenRequest] = dataclasses.field(default_factory=list)
    refresh_tokens: dict[str, str] = dataclasses.field(default_factory=dict)
    #: When the last token expires, in seconds since the epoch, without the registry's leeway.
    last_end: int = 0

    def token(self, subject: str, access: Sequence[Mapping[str, Any]]) -> str:
        """Sign a JSON Web Token that grants `access` (the specification's "access" claim) to `subject`."""
        lifetime = self.lifetime if self.lifetime is not None else self.expires_in or 60
        now = int(time.time())
        self.last_end = max(self.last_end, now + lifetime)
        header = {"typ": "JWT", "alg": "RS256", "x5c": [self.certificate.x5c]}
        claims = {
            "iss": self.issuer,
            "sub": subject,
            "aud": self.service,
            "exp": now + lifetime,
            # A token that expires in the past must have an earlier start.
            "nbf": now - 600,
            "iat": now - 600,
            "jti": secrets.token_hex(8),
            "access": list(access),
        }
        signed = f"{_base64url(json.dumps(header).encode())}.{_base64url(json.dumps(claims).encode())}"
        return f"{signed}.{_base64url(self.certificate.sign(signed.encode()))}"

    def wait_for_end(self) -> None:
        """Wait until distribution refuses every token signed so far, and the client has had time to notice."""
        time.sleep(max(0.0, self.last_end + _LEEWAY + _NOTICE - time.time()))

    def granted(self, rights: Rights, scopes: Sequence[str]) -> list[dict[str, Any]]:
        """Return the part of `scopes` ("repository:NAME:ACTION,...") that `rights` allow, as the "access" claim."""
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            allowed = {
                action
                for pattern, granted in rights.items()
                if fnmatch.fnmatchcase(name, pattern)
                for action in granted
            }
            wanted = [action for action in actions.split(",") if action in allowed]
            access.append({"type": kind, "name": name, "actions": wanted})
        return access


@contextlib.contextmanager
def token_server(
    certificate: Certificate,
    *,
    users: Mapping[str, User] | None = None,
    anonymous: Rights = NOTHING,
    **fields: Any,
) -> Iterator[TokenServer]:
    """Run a token server on a free port of 127.0.0.1; `fields` are those of `TokenServer`."""
    state = TokenServer(certificate, users=dict(users or {}), anonymous=anonymous, **fields)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.state = state
    state.realm = f"http://127.0.0.1:{server.server_address[1]}/token"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    state: TokenServer


class _Handler(BaseHTTPRequestHandler):
    """GET /token and POST /token."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        header = self.headers.get("Authorization")
        if header is None:
            self._answer(query, None, self._state.anonymous, "", offline=False)
            return
        name, password = _basic(header)
        self._answer_user(query, name, password, "", offline="true" in query.get("offline_token", []))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
        form = urllib.parse.parse_qs(body)
        grant = _one(form, "grant_type")
        if not self._state.oauth2:
            self._refuse(form, grant, 404, "there is no OAuth2 here")
        elif grant == "password":
            offline = "offline" in form.get("access_type", [])
            self._answer_user(form, _one(form, "username"), _one(form, "password"), grant, offline=offline)
        elif grant == "refresh_token":
            name = self._state.refresh_tokens.get(_one(form, "refresh_token"))
            if name is None:
                self._refuse(form, grant, 401, "unknown refresh token")
            else:
                self._answer(form, name, self._state.users[name].rights, grant, offline=False)
        else:
            self._refuse(form, grant, 400, "unsupported grant_type")

    @property
    def _state(self) -> TokenServer:
        return cast("_Server", self.server).state

    def _answer_user(
        self, fields: dict[str, list[str]], name: str, password: str, grant: str, *, offline: bool
    ) -> None:
        user = self._state.users.get(name)
        if user is None or not secrets.compare_digest(user.password.encode(), password.encode()):
            self._refuse(fields, grant, 401, "wrong user name or password")
        else:
            self._answer(fields, name, user.rights, grant, offline=offline)

    def _answer(
        self, fields: dict[str, list[str]], user: str | None, rights: Rights, grant: str, *, offline: bool
    ) -> None:
        state = self._state
        token = state.token(user or "", state.granted(rights, _scopes(fields)))
        now = dt.datetime.now(dt.UTC)
        document: dict[str, Any] = {"issued_at": now.strftime("%Y-%m-%dT%H:%M:%SZ")}
        if state.field in {"token", "both"}:
            document["token"] = token
        if state.field in {"access_token", "both"}:
            document["access_token"] = token
        if state.expires_in is not None:
            document["expires_in"] = state.expires_in
        if offline and user is not None:
            refresh = secrets.token_hex(16)
            state.refresh_tokens[refresh] = user
            document["refresh_token"] = refresh
        self._send(fields, user, grant, 200, document)

    def _refuse(self, fields: dict[str, list[str]], grant: str, status: int, detail: str) -> None:
        error = {"code": "UNAUTHORIZED", "message": "authentication required", "detail": detail}
        self._send(fields, None, grant, status, {"errors": [error]})

    def _send(
        self,
        fields: dict[str, list[str]],
        user: str | None,
        grant: str,
        status: int,
        document: Mapping[str, Any],
    ) -> None:
        self._state.requests.append(
            TokenRequest(
                method=self.command,
                grant=grant,
                service=_one(fields, "service"),
                scopes=_scopes(fields),
                user=user,
                fields=fields,
                authorization=self.headers.get("Authorization"),
                status=status,
            )
        )
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class named it
        """Stay silent: `TokenServer.requests` is the log."""


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _basic(header: str) -> tuple[str, str]:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    name, _, password = base64.b64decode(encoded).decode().partition(":")
    return name, password


def _one(fields: Mapping[str, Sequence[str]], name: str) -> str:
    return fields.get(name, [""])[0]


def _scopes(fields: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return the scopes: one in each parameter, or several separated by spaces; both forms are in use."""
    return tuple(scope for parameter in fields.get("scope", []) for scope in parameter.split())
