"""Authorization headers for one registry: Basic, and Bearer tokens with their scopes, requests and cache.

A secret that no server has accepted yet is sent by one request at a time, so that accounts are not locked.
The HTTP client sends the requests and decides which origin may see a header.
"""

from __future__ import annotations

import base64
import contextlib
import math
import re
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

from ocistream import limits, notices
from ocistream.auth.challenges import Challenge, parse_challenges
from ocistream.auth.docker_config import TOKEN_USERNAME
from ocistream.errors import ArchiveError, AuthenticationError, RegistryError, UsageError
from ocistream.oci.reference import printable
from ocistream.oci.strict_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ocistream.auth.docker_config import Credential

__all__ = [
    "VISIBLE_ASCII",
    "Authenticator",
    "SecretAttempt",
    "SecretAttempts",
    "TokenRequest",
    "TokenResponse",
    "basic_header",
    "build_get_request",
    "build_oauth_request",
    "describe_credential",
    "missing_scopes",
    "parse_lifetime",
    "parse_token",
    "repository_scope",
    "split_scope",
]


def repository_scope(repository: str, *actions: str) -> str:
    """Write one scope: `scopes_for("org/app", "pull", "push")` is "repository:org/app:pull,push"."""
    return f"repository:{repository}:{','.join(actions)}"


def split_scope(scope: str) -> tuple[str, frozenset[str]]:
    """Take a scope apart: what it is for, and the actions."""
    resource, _, actions = scope.rpartition(":")
    return resource, frozenset(actions.split(","))


def missing_scopes(wanted: Iterable[str], held: Iterable[str]) -> tuple[str, ...]:
    """Give those of the `wanted` scopes that the `held` ones do not include, each once, in their order."""
    known = [split_scope(scope) for scope in held]
    missing = []
    for scope in dict.fromkeys(wanted):
        resource, actions = split_scope(scope)
        if not any(resource == other and actions <= more for other, more in known):
            missing.append(scope)
    return tuple(missing)


CLIENT_ID: Final = "ocistream"
#: Seconds that a token lives whose server does not say so (token specification, `expires_in`).
DEFAULT_LIFETIME: Final = 60.0
#: Visible ASCII: anything else in a token would end its header line, or start another one.
VISIBLE_ASCII: Final = re.compile(r"[\x21-\x7e]+\Z")


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What is to be sent to a token server. Whoever sends it decides whether `url` may be trusted with it."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenResponse:
    """What a token server said: an HTTP status and the body, up to `limits.MAX_TOKEN_ANSWER` bytes of it."""

    status: int
    body: bytes = field(repr=False)


def build_get_request(realm: str, service: str, scopes: tuple[str, ...], credential: Credential | None) -> TokenRequest:
    """Ask as the token specification says: GET, with Basic where there is a credential."""
    fields = [("service", service)] if service else []
    fields += [("scope", scope) for scope in scopes]
    headers = {"Accept": "application/json"}
    if credential is not None:
        headers["Authorization"] = basic_header(credential)
        if credential.username not in {"", TOKEN_USERNAME}:
            fields.append(("account", credential.username))
    query = urlencode(fields, errors="surrogateescape")
    separator = "&" if urlsplit(realm).query else "?" if "?" not in realm else ""
    return TokenRequest("GET", f"{realm}{separator}{query}" if query else realm, headers, None)


def build_oauth_request(realm: str, service: str, scopes: tuple[str, ...], identity_token: str) -> TokenRequest:
    """Ask as OAuth2 says: POST, with the identity token as what it calls a refresh token."""
    fields = {"grant_type": "refresh_token", "refresh_token": identity_token, "client_id": CLIENT_ID}
    fields |= {"service": service} if service else {}
    fields |= {"scope": " ".join(scopes)} if scopes else {}
    headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
    return TokenRequest("POST", realm, headers, urlencode(fields, errors="surrogateescape").encode())


def basic_header(credential: Credential) -> str:
    """Write a credential as RFC 7617 does; an identity token stands in the password's place.

    Raises:
        UsageError: the user name holds a colon, where the registry would cut it.
    """
    username, secret = credential.username, credential.secret
    if credential.identity_token is not None:
        username, secret = username or TOKEN_USERNAME, credential.identity_token
    if ":" in username:
        msg = f"the user name of {describe_credential(credential)} holds a colon, which no registry can take"
        raise UsageError(msg)
    plain = f"{username}:{secret}".encode(errors="surrogateescape")
    return f"Basic {base64.b64encode(plain).decode()}"


def describe_credential(credential: Credential) -> str:
    """Name a credential by where it comes from."""
    return f"the credentials from {credential.source}" if credential.source else "the credentials"


def parse_token(fields: Mapping[str, Any], where: str) -> str:
    """Take `token`, else `access_token`; null and "" are as good as absent.

    Raises:
        ArchiveError: there is none, or it cannot stand in a header.
    """
    token = fields.get("token") or fields.get("access_token")
    if not token:
        msg = f"{where} has no token"
        raise ArchiveError(msg)
    if not isinstance(token, str) or not VISIBLE_ASCII.match(token):
        msg = f"{where} has a token that cannot stand in a header"
        raise ArchiveError(msg)
    return token


def parse_lifetime(expires_in: object) -> float:
    """Read `expires_in` in seconds, as a number or its text; what makes no sense is as good as absent.

    `issued_at` is not looked at: it is from another machine's clock.
    """
    if isinstance(expires_in, bool) or not isinstance(expires_in, int | float | str):
        return DEFAULT_LIFETIME
    try:
        seconds = float(expires_in)
    except (ValueError, OverflowError):
        return DEFAULT_LIFETIME
    return seconds if math.isfinite(seconds) and seconds > 0 else DEFAULT_LIFETIME


@dataclass(slots=True)
class SecretAttempt:
    """One showing of a secret. `accepted` is what came of it, None where nothing did: there was no answer."""

    is_accepted: bool | None = None


class SecretAttempts:
    """What came of showing secrets to one registry. Safe for several threads."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._lock = threading.Lock()
        self._attempt_locks: dict[str, threading.Lock] = {}
        self._is_accepted: dict[str, bool] = {}

    def is_refused(self, secret: str) -> bool:
        """Say whether a secret was shown and refused, and never accepted."""
        return self._is_accepted.get(secret) is False

    @contextlib.contextmanager
    def attempt(self, secret: str) -> Iterator[SecretAttempt]:
        """Wait until a secret may be shown, and keep what comes of it; who waited asks `was_refused` again."""
        with self._lock:
            gate = self._attempt_locks.setdefault(secret, threading.Lock())
        trial = SecretAttempt()
        if self._is_accepted.get(secret):
            yield trial
            return
        with gate:
            yield trial
            if trial.is_accepted is not None:
                self._is_accepted[secret] = trial.is_accepted or self._is_accepted.get(secret, False)


#: A token is renewed when fewer seconds than this are left, or a tenth of its life: the request that carries
#: it takes time too. Never more than half of its life, so that one of 60 s serves for 50 and one of 4 s for 2.
RENEWAL_SECONDS: Final = 10.0
#: Scopes that a registry's challenges may add to those that the caller named; real ones add one, if any.
MAX_ADDED_SCOPES: Final = 16

#: Sources of credentials that are given for this run, before which a login does not come.
_EXPLICIT_SOURCES: Final = ("--", "OCISTREAM_", "DOCKER_AUTH_CONFIG")


@dataclass(frozen=True, slots=True)
class _Token:
    """A token as the header that shows it, and what it was asked for; `renew_at` is in the clock's time."""

    header: str = field(repr=False)
    scopes: tuple[str, ...]
    credential: Credential | None
    renew_at: float


class Authenticator:
    """What to show to one registry (one host and port).

    Thread-safe: of several threads that ask for the same scopes, one fetches the token and the others wait
    for it. Threads that ask for different ones do not wait for each other.
    """

    def __init__(
        self,
        registry: str,
        find: Callable[[str], Credential | None],
        send: Callable[[TokenRequest], TokenResponse],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Speak for `registry` ("docker.io", "localhost:5000"); nothing is asked for yet.

        `find(repository)` gives the credential, None for anonymous; it is asked when a challenge needs it,
        once for each repository. `send` sends a token request and gives its answer. `clock` counts seconds.
        """
        self._registry = registry
        self._find = find
        self._send = send
        self._clock = clock
        self._lock = threading.Lock()
        self._find_lock = threading.Lock()
        self._challenge: Challenge | None = None
        self._credentials: dict[str, Credential | None] = {}
        self._tokens: dict[tuple[str, ...], _Token] = {}
        self._fetch_locks: dict[tuple[str, ...], threading.Lock] = {}
        self._added_scopes: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._refusals: dict[tuple[str, ...], str] = {}
        self._attempts = SecretAttempts()

    @property
    def has_challenge(self) -> bool:
        """Whether the registry has said how to authenticate."""
        return self._challenge is not None

    def authorization(self, scopes: tuple[str, ...]) -> str | None:
        """Give the header value to send up front; None while the registry has not challenged anybody.

        After a Bearer challenge this is a token for `scopes`, a held one that covers them or a fresh one, so
        that no body is sent only to be refused. After Basic it is the credential, None if there is none.

        Raises:
            AuthenticationError: the token server refused the credential.
            RegistryError: the token server or its answer is broken.
            UsageError: the credential cannot be sent.
        """
        challenge = self._challenge
        if challenge is None:
            return None
        if challenge.scheme == "bearer":
            return self._bearer_header(challenge, scopes)
        credential = self._find_credential(scopes)
        return basic_header(credential) if credential and credential.registry_token is None else None

    def answer_challenge(self, www_authenticate: Sequence[str], scopes: tuple[str, ...], refused: str | None) -> str:
        """Give the header value with which to repeat a request that got a 401.

        `www_authenticate` are the answer's header values; without any the registry's last challenge counts
        (gcr.io). `refused` is the value that the request had been sent with: a token that
        equals it is forgotten and replaced. That a fresh one is refused again is for the caller to notice.

        Raises:
            AuthenticationError: there is nothing to show, or it was refused.
            RegistryError: the challenge, the token server or its answer is broken.
            UsageError: the credential cannot be sent.
        """
        challenge = self._challenge = self._choose_challenge(parse_challenges(www_authenticate)) or self._challenge
        if challenge is None:
            msg = f"{self._registry} answers 401 and does not say how to authenticate"
            hint = "is it a registry that answers there, or a web server or a proxy that stands before one?"
            raise AuthenticationError(msg, hint=hint)
        if challenge.scheme == "bearer":
            asked = challenge.parameters.get("scope", "").split()[:MAX_ADDED_SCOPES]
            with self._lock:
                extra = self._added_scopes.get(scopes, ())
                self._added_scopes[scopes] = (extra + missing_scopes(asked, scopes + extra))[:MAX_ADDED_SCOPES]
                self._tokens = {key: token for key, token in self._tokens.items() if token.header != refused}
            header = self._bearer_header(challenge, scopes)
            credential = self._find_credential(scopes)
            if header == refused and credential is not None and credential.registry_token is not None:
                # It is all there is: no server gives another one for it.
                raise self._refused_error(credential)
            return header
        return self._next_basic(refused, scopes)

    def is_token_expired(self, www_authenticate: Sequence[str]) -> bool:
        """Say whether a challenge says that the token which was shown is not good any more (RFC 6750, section 3.1).

        Then another one may be. Where it says nothing, or that the token allows too little, none would be better.
        """
        challenges = parse_challenges(www_authenticate)
        return any(challenge.parameters.get("error") == "invalid_token" for challenge in challenges)

    def is_only_credential(self, header: str, scopes: tuple[str, ...]) -> bool:
        """Say whether a header is all there is to show: no other one can be had where it is refused."""
        credential = self._find_credential(scopes)
        return header.startswith("Basic ") or (credential is not None and credential.registry_token is not None)

    @contextlib.contextmanager
    def try_header(self, header: str | None, scopes: tuple[str, ...]) -> Iterator[SecretAttempt]:
        """Wait until a header may be shown; who shows it notes what came of it.

        Raises:
            AuthenticationError: it was shown meanwhile by somebody else, and refused.
        """
        if header is None or not self.is_only_credential(header, scopes):
            yield SecretAttempt()
            return
        with self._attempts.attempt(header) as trial:
            if self._attempts.is_refused(header):
                raise self._refused_error(self._find_credential(scopes))
            yield trial

    def _choose_challenge(self, challenges: list[Challenge]) -> Challenge | None:
        """Prefer Bearer with a realm, then Basic; None where no challenge was made at all."""
        bearer = [challenge for challenge in challenges if challenge.scheme == "bearer"]
        basic = [challenge for challenge in challenges if challenge.scheme == "basic"]
        for challenge in [one for one in bearer if one.parameters.get("realm")] + basic:
            return challenge
        if bearer:
            msg = f"{self._registry} asks for a Bearer token without a realm to get one from"
            raise RegistryError(msg, status=401)
        if challenges:
            schemes = ", ".join(dict.fromkeys(printable(challenge.scheme, 40) for challenge in challenges))
            msg = f"{self._registry} wants authentication by {schemes}; only Basic and Bearer are known"
            raise AuthenticationError(msg)
        return None

    def _find_credential(self, scopes: tuple[str, ...]) -> Credential | None:
        """The credential for the first repository that `scopes` name: the one pushed to, for a mount."""
        resources = (split_scope(scope)[0] for scope in scopes)
        names = (name.removeprefix("repository:") for name in resources if name.startswith("repository:"))
        repository = next(names, "")
        with self._find_lock:
            if repository not in self._credentials:
                credential = self._credentials[repository] = _check_credential(self._find(repository))
                shown = (
                    f"with {describe_credential(credential)}"
                    if credential
                    else "anonymously: no credentials were found"
                )
                notices.notify(f"{self._registry}: asking {shown}", level=1)
            return self._credentials[repository]

    def _next_basic(self, refused: str | None, scopes: tuple[str, ...]) -> str:
        credential = self._find_credential(scopes)
        if credential is None or credential.registry_token is not None:
            msg = f"{self._registry} wants a user name and a password, and none were found"
            raise self._login_error(msg)
        header = basic_header(credential)
        if header == refused:
            raise self._refused_error(credential)
        return header

    def _refused_error(self, credential: Credential | None) -> AuthenticationError:
        msg = f"{self._registry} refused {describe_credential(credential) if credential else 'the credentials'}"
        return self._login_error(msg, credential)

    def _login_error(self, what: str, credential: Credential | None = None) -> AuthenticationError:
        hint = f"ocistream login {self._registry}"
        if credential is not None and (credential.is_explicit or credential.source.startswith(_EXPLICIT_SOURCES)):
            hint = f"correct {credential.source}, or leave it away: it comes before what `{hint}` keeps"
        return AuthenticationError(what, hint=hint)

    # -- tokens -----------------------------------------------------------------------------------------

    def _bearer_header(self, challenge: Challenge, scopes: tuple[str, ...]) -> str:
        """Give a held token that covers `scopes`, or fetch one."""
        credential = self._find_credential(scopes)
        if credential is not None and credential.registry_token is not None:
            return f"Bearer {credential.registry_token}"
        with self._lock:
            wanted = scopes + self._added_scopes.get(scopes, ())
            gate = self._fetch_locks.setdefault(wanted, threading.Lock())
        with gate:
            held = self._find_token(wanted, credential)
            if held is not None:
                return held.header
            if wanted in self._refusals:
                # A wrong password that is shown again and again locks accounts.
                raise self._login_error(self._refusals[wanted], credential)
            fresh = self._fetch_token(challenge, wanted, credential)
            with self._lock:
                self._tokens[wanted] = fresh
            return fresh.header

    def _find_token(self, wanted: tuple[str, ...], credential: Credential | None) -> _Token | None:
        """Find a token that still lives: the one for just these scopes, else one that covers them.

        In this order, since some registries heed only a token's first scope (ggcr). One that was
        got with another credential does not count: it may have been granted less.
        """
        now = self._clock()
        with self._lock:
            tokens = [self._tokens[wanted]] if wanted in self._tokens else []
            tokens += self._tokens.values()
        for token in tokens:
            if now < token.renew_at and token.credential == credential and not missing_scopes(wanted, token.scopes):
                return token
        return None

    def _fetch_token(self, challenge: Challenge, wanted: tuple[str, ...], credential: Credential | None) -> _Token:
        realm, server = self._parse_realm(challenge)
        service = challenge.parameters.get("service", "")
        if credential is not None and credential.identity_token is not None:
            answer = self._send(build_oauth_request(realm, service, wanted, credential.identity_token))
            if answer.status in {404, 405}:
                # Not every token server speaks OAuth2 (distribution, "Oauth2 Token Authentication").
                answer = self._send(build_get_request(realm, service, wanted, credential))
        else:
            answer = self._send(build_get_request(realm, service, wanted, credential))
        if answer.status in {401, 403}:
            why = (
                f"refused {describe_credential(credential)}" if credential else "wants credentials, and none were found"
            )
            self._refusals[wanted] = f"the token server {server} of {self._registry} {why}"
            raise self._login_error(self._refusals[wanted], credential)
        where = f"the answer of the token server {server} of {self._registry}"
        if not 200 <= answer.status < 300:
            msg = f"the token server {server} of {self._registry} answered {answer.status}"
            raise RegistryError(msg, status=answer.status)
        try:
            fields = parse_json(answer.body, where, limits.MAX_TOKEN_RESPONSE)
            token = parse_token(fields, where)
        except ArchiveError as error:
            # Without its cause, which holds the answer and so the token.
            raise RegistryError(error.message, status=answer.status) from None
        lifetime = parse_lifetime(fields.get("expires_in"))
        margin = min(max(RENEWAL_SECONDS, lifetime / 10), lifetime / 2)
        return _Token(f"Bearer {token}", wanted, credential, self._clock() + lifetime - margin)

    def _parse_realm(self, challenge: Challenge) -> tuple[str, str]:
        """Check that the realm is an absolute http(s) URL; give it without a fragment, and its host."""
        realm = challenge.parameters["realm"]
        host = None
        try:
            parts = urlsplit(realm)
            if parts.scheme in {"http", "https"} and "@" not in parts.netloc and parts.port != 0:
                host = parts.hostname
        except ValueError:
            pass
        if not host or not VISIBLE_ASCII.match(realm):
            msg = f"the realm that {self._registry} names for its tokens is not an absolute http(s) URL"
            raise RegistryError(msg, status=401)
        return realm.partition("#")[0], printable(host)


def _check_credential(credential: Credential | None) -> Credential | None:
    """Refuse a credential that cannot be sent: with half a character in it (a lone surrogate), or a line's end.

    Raises:
        UsageError: it is such a one.
    """
    if credential is not None:
        try:
            parts = credential.username, credential.secret, credential.identity_token or ""
            "".join(parts).encode(errors="surrogateescape")
        except UnicodeEncodeError:
            msg = f"{describe_credential(credential)} are not text"
            # Without its cause, which holds the password.
            raise UsageError(msg) from None
        if credential.registry_token is not None and not VISIBLE_ASCII.match(credential.registry_token):
            msg = f"{describe_credential(credential)} have a token that cannot stand in a header"
            raise UsageError(msg)
    return credential
