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
    """Return a scope: `repository_scope("org/app", "pull", "push")` is "repository:org/app:pull,push"."""
    return f"repository:{repository}:{','.join(actions)}"


def split_scope(scope: str) -> tuple[str, frozenset[str]]:
    """Return the resource of a scope and its actions."""
    resource, _, actions = scope.rpartition(":")
    return resource, frozenset(actions.split(","))


def missing_scopes(wanted: Iterable[str], granted: Iterable[str]) -> tuple[str, ...]:
    """Return the `wanted` scopes that the `granted` ones do not include, without duplicates, in their order."""
    granted_scopes = [split_scope(scope) for scope in granted]
    missing = []
    for scope in dict.fromkeys(wanted):
        resource, actions = split_scope(scope)
        if not any(
            resource == granted_resource and actions <= granted_actions
            for granted_resource, granted_actions in granted_scopes
        ):
            missing.append(scope)
    return tuple(missing)


CLIENT_ID: Final = "ocistream"
#: Lifetime in seconds of a token whose server does not state it (token specification, `expires_in`).
DEFAULT_LIFETIME: Final = 60.0
#: Visible ASCII. Any other character in a token could end its header line, or start another one.
VISIBLE_ASCII: Final = re.compile(r"[\x21-\x7e]+\Z")


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A request to a token server. The HTTP client decides whether `url` may receive it."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenResponse:
    """The response of a token server: HTTP status and body, cut to `limits.MAX_TOKEN_RESPONSE` + 1 bytes."""

    status: int
    body: bytes = field(repr=False)


def build_get_request(realm: str, service: str, scopes: tuple[str, ...], credential: Credential | None) -> TokenRequest:
    """Return the GET request of the token specification, with Basic authorization if there is a credential."""
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
    """Return the POST request of OAuth2, with the identity token as the refresh token."""
    fields = {"grant_type": "refresh_token", "refresh_token": identity_token, "client_id": CLIENT_ID}
    fields |= {"service": service} if service else {}
    fields |= {"scope": " ".join(scopes)} if scopes else {}
    headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
    return TokenRequest("POST", realm, headers, urlencode(fields, errors="surrogateescape").encode())


def basic_header(credential: Credential) -> str:
    """Return the Basic header of a credential (RFC 7617); an identity token takes the password's place.

    Raises:
        UsageError: the user name contains a colon, where the registry would split it.
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
    """Return the name of a credential in messages, by its source."""
    return f"the credentials from {credential.source}" if credential.source else "the credentials"


def parse_token(fields: Mapping[str, Any], where: str) -> str:
    """Return `token`, else `access_token`; null and "" count as absent.

    Raises:
        ArchiveError: there is no token, or it is not allowed in a header.
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
    """Return `expires_in` in seconds, given as a number or text; a malformed value counts as absent.

    `issued_at` is ignored, because it comes from another machine's clock.
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
    """One use of a secret. `is_accepted` is its result; None if there was no response."""

    is_accepted: bool | None = None


class SecretAttempts:
    """Results of the secrets sent to one registry. Safe for several threads."""

    def __init__(self) -> None:
        """Start with no results."""
        self._lock = threading.Lock()
        self._attempt_locks: dict[str, threading.Lock] = {}
        self._is_accepted: dict[str, bool] = {}

    def is_refused(self, secret: str) -> bool:
        """Return whether a secret was sent and refused, and never accepted."""
        return self._is_accepted.get(secret) is False

    @contextlib.contextmanager
    def attempt(self, secret: str) -> Iterator[SecretAttempt]:
        """Wait until a secret may be sent, and record the result.

        After the wait the caller checks `is_refused` again.
        """
        with self._lock:
            attempt_lock = self._attempt_locks.setdefault(secret, threading.Lock())
        attempt = SecretAttempt()
        if self._is_accepted.get(secret):
            yield attempt
            return
        with attempt_lock:
            yield attempt
            if attempt.is_accepted is not None:
                self._is_accepted[secret] = attempt.is_accepted or self._is_accepted.get(secret, False)


#: Renew a token when less than 10 s or a tenth of its lifetime is left, because the request with it takes time too.
#: Never renew before half of its lifetime: a token of 60 s is used for 50 s, one of 4 s for 2 s.
RENEWAL_SECONDS: Final = 10.0
#: How many scopes a registry's challenges may add to those of the caller; real registries add one at most.
MAX_ADDED_SCOPES: Final = 16

#: Sources that are set for this run. They override the saved login, so a new login would not help.
_EXPLICIT_SOURCES: Final = ("--", "OCISTREAM_", "DOCKER_AUTH_CONFIG")


@dataclass(frozen=True, slots=True)
class _Token:
    """A token as a header, and its scopes; `renew_at` is a time of the authenticator's clock."""

    header: str = field(repr=False)
    scopes: tuple[str, ...]
    credential: Credential | None
    renew_at: float


class Authenticator:
    """Provides the Authorization headers for one registry (one host and port).

    Thread-safe: of several threads that need the same scopes, one fetches the token and the others wait for it. Threads
    with different scopes do not wait for each other.
    """

    def __init__(
        self,
        registry: str,
        find: Callable[[str], Credential | None],
        send: Callable[[TokenRequest], TokenResponse],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Authenticate to `registry` ("docker.io", "localhost:5000"); no request is sent yet.

        `find(repository)` returns the credential, or None for anonymous. It is called once for each repository, when a
        challenge needs it. `send` sends a token request and returns the response. `clock` counts seconds.
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
        """Whether the registry has sent a challenge."""
        return self._challenge is not None

    def authorization(self, scopes: tuple[str, ...]) -> str | None:
        """Return the header to send up front; None until the registry has sent a challenge.

        After a Bearer challenge this is a token for `scopes`, stored or new, so that no body is sent only to be
        refused. After Basic it is the credential, or None if there is none.

        Raises:
            AuthenticationError: the token server refused the credential.
            RegistryError: the token server or its response is broken.
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
        """Return the header with which to repeat a request that got a 401.

        `www_authenticate` are the header values of the 401; if it has none, the registry's last challenge applies
        (gcr.io). `refused` is the header of that request: an equal token is discarded and replaced. The caller must
        notice if the new token is refused too.

        Raises:
            AuthenticationError: there is no credential, or it was refused.
            RegistryError: the challenge, the token server or its response is broken.
            UsageError: the credential cannot be sent.
        """
        challenge = self._challenge = self._choose_challenge(parse_challenges(www_authenticate)) or self._challenge
        if challenge is None:
            msg = f"{self._registry} answers 401 and does not say how to authenticate"
            hint = "is it a registry that answers there, or a web server or a proxy that stands before one?"
            raise AuthenticationError(msg, hint=hint)
        if challenge.scheme == "bearer":
            requested_scopes = challenge.parameters.get("scope", "").split()[:MAX_ADDED_SCOPES]
            with self._lock:
                added_scopes = self._added_scopes.get(scopes, ())
                self._added_scopes[scopes] = (added_scopes + missing_scopes(requested_scopes, scopes + added_scopes))[
                    :MAX_ADDED_SCOPES
                ]
                self._tokens = {key: token for key, token in self._tokens.items() if token.header != refused}
            header = self._bearer_header(challenge, scopes)
            credential = self._find_credential(scopes)
            if header == refused and credential is not None and credential.registry_token is not None:
                # No server issues another token for a registry token.
                raise self._refused_error(credential)
            return header
        return self._next_basic(refused, scopes)

    def is_token_expired(self, www_authenticate: Sequence[str]) -> bool:
        """Return whether a challenge says that the token is invalid (RFC 6750, section 3.1).

        Then a new token may work. Without that error, or with one that names missing rights, a new token would not
        help.
        """
        challenges = parse_challenges(www_authenticate)
        return any(challenge.parameters.get("error") == "invalid_token" for challenge in challenges)

    def is_only_credential(self, header: str, scopes: tuple[str, ...]) -> bool:
        """Return whether a header cannot be replaced by another one if it is refused."""
        credential = self._find_credential(scopes)
        return header.startswith("Basic ") or (credential is not None and credential.registry_token is not None)

    @contextlib.contextmanager
    def try_header(self, header: str | None, scopes: tuple[str, ...]) -> Iterator[SecretAttempt]:
        """Wait until a header may be sent; the caller records the result in the attempt.

        Raises:
            AuthenticationError: another request sent the header meanwhile, and it was refused.
        """
        if header is None or not self.is_only_credential(header, scopes):
            yield SecretAttempt()
            return
        with self._attempts.attempt(header) as attempt:
            if self._attempts.is_refused(header):
                raise self._refused_error(self._find_credential(scopes))
            yield attempt

    def _choose_challenge(self, challenges: list[Challenge]) -> Challenge | None:
        """Return a Bearer challenge with a realm, else Basic; None if there is no challenge."""
        bearer_challenges = [challenge for challenge in challenges if challenge.scheme == "bearer"]
        basic_challenges = [challenge for challenge in challenges if challenge.scheme == "basic"]
        for challenge in [bearer for bearer in bearer_challenges if bearer.parameters.get("realm")] + basic_challenges:
            return challenge
        if bearer_challenges:
            msg = f"{self._registry} asks for a Bearer token without a realm to get one from"
            raise RegistryError(msg, status=401)
        if challenges:
            schemes = ", ".join(dict.fromkeys(printable(challenge.scheme, 40) for challenge in challenges))
            msg = f"{self._registry} wants authentication by {schemes}; only Basic and Bearer are known"
            raise AuthenticationError(msg)
        return None

    def _find_credential(self, scopes: tuple[str, ...]) -> Credential | None:
        """Return the credential for the first repository in `scopes`: for a mount, the one that is pushed to."""
        resources = (split_scope(scope)[0] for scope in scopes)
        names = (name.removeprefix("repository:") for name in resources if name.startswith("repository:"))
        repository = next(names, "")
        with self._find_lock:
            if repository not in self._credentials:
                credential = self._credentials[repository] = _check_credential(self._find(repository))
                description = (
                    f"with {describe_credential(credential)}"
                    if credential
                    else "anonymously: no credentials were found"
                )
                notices.notify(f"{self._registry}: asking {description}", level=1)
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

    def _login_error(self, message: str, credential: Credential | None = None) -> AuthenticationError:
        hint = f"ocistream login {self._registry}"
        if credential is not None and (credential.is_explicit or credential.source.startswith(_EXPLICIT_SOURCES)):
            hint = f"correct {credential.source}, or leave it away: it comes before what `{hint}` keeps"
        return AuthenticationError(message, hint=hint)

    # -- tokens -----------------------------------------------------------------------------------------

    def _bearer_header(self, challenge: Challenge, scopes: tuple[str, ...]) -> str:
        """Return the header of a stored token that covers `scopes`, or of a new one."""
        credential = self._find_credential(scopes)
        if credential is not None and credential.registry_token is not None:
            return f"Bearer {credential.registry_token}"
        with self._lock:
            all_scopes = scopes + self._added_scopes.get(scopes, ())
            fetch_lock = self._fetch_locks.setdefault(all_scopes, threading.Lock())
        with fetch_lock:
            stored_token = self._find_token(all_scopes, credential)
            if stored_token is not None:
                return stored_token.header
            if all_scopes in self._refusals:
                # Repeating a wrong password locks accounts, so parallel workers share the refusal.
                raise self._login_error(self._refusals[all_scopes], credential)
            new_token = self._fetch_token(challenge, all_scopes, credential)
            with self._lock:
                self._tokens[all_scopes] = new_token
            return new_token.header

    def _find_token(self, wanted: tuple[str, ...], credential: Credential | None) -> _Token | None:
        """Return a valid token for exactly these scopes, else one that covers them.

        Exact scopes come first, because some registries read only a token's first scope (ggcr). A token for another
        credential does not count: it may have fewer rights.
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
            response = self._send(build_oauth_request(realm, service, wanted, credential.identity_token))
            if response.status in {404, 405}:
                # Not every token server supports OAuth2 (distribution, "Oauth2 Token Authentication").
                response = self._send(build_get_request(realm, service, wanted, credential))
        else:
            response = self._send(build_get_request(realm, service, wanted, credential))
        if response.status in {401, 403}:
            reason = (
                f"refused {describe_credential(credential)}" if credential else "wants credentials, and none were found"
            )
            self._refusals[wanted] = f"the token server {server} of {self._registry} {reason}"
            raise self._login_error(self._refusals[wanted], credential)
        where = f"the answer of the token server {server} of {self._registry}"
        if not 200 <= response.status < 300:
            msg = f"the token server {server} of {self._registry} answered {response.status}"
            raise RegistryError(msg, status=response.status)
        try:
            fields = parse_json(response.body, where, limits.MAX_TOKEN_RESPONSE)
            token = parse_token(fields, where)
        except ArchiveError as error:
            # Without its cause, which contains the response with the token.
            raise RegistryError(error.message, status=response.status) from None
        lifetime = parse_lifetime(fields.get("expires_in"))
        margin = min(max(RENEWAL_SECONDS, lifetime / 10), lifetime / 2)
        return _Token(f"Bearer {token}", wanted, credential, self._clock() + lifetime - margin)

    def _parse_realm(self, challenge: Challenge) -> tuple[str, str]:
        """Check that the realm is an absolute http(s) URL; return it without fragment, and its host."""
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
    """Refuse a credential that cannot be sent: with a lone surrogate, or with a line break in a token.

    Raises:
        UsageError: the credential cannot be sent.
    """
    if credential is not None:
        try:
            parts = credential.username, credential.secret, credential.identity_token or ""
            "".join(parts).encode(errors="surrogateescape")
        except UnicodeEncodeError:
            msg = f"{describe_credential(credential)} are not text"
            # Without its cause, which contains the password.
            raise UsageError(msg) from None
        if credential.registry_token is not None and not VISIBLE_ASCII.match(credential.registry_token):
            msg = f"{describe_credential(credential)} have a token that cannot stand in a header"
            raise UsageError(msg)
    return credential
