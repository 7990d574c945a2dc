"""Authorization headers for one registry: Basic credentials, and Bearer tokens that are fetched and kept.

A secret that no server has accepted yet is sent by one request at a time, so that accounts are not locked.
The HTTP client sends the requests and decides which origin may see a header.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from ocistream import limits, notices
from ocistream.auth.tokens import (
    VISIBLE_ASCII,
    Challenge,
    build_basic_header,
    build_get_request,
    build_oauth_request,
    describe_credential,
    missing_scopes,
    parse_challenges,
    parse_lifetime,
    parse_token,
    split_scope,
)
from ocistream.errors import ArchiveError, AuthenticationError, RegistryError, UsageError
from ocistream.oci.reference import printable
from ocistream.oci.strict_json import parse_json
from ocistream.streams.synchronization import KeyedLocks, OncePerKey

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from ocistream.auth.docker_config import Credential
    from ocistream.auth.tokens import TokenRequest, TokenResponse

#: Renew a token when less than 10 s or a tenth of its lifetime is left, because the request with it takes time too.
#: Never renew before half of its lifetime: a token of 60 s is used for 50 s, one of 4 s for 2 s.
RENEWAL_SECONDS: Final = 10.0
#: How many scopes a registry's challenges may add to those of the caller; real registries add one at most.
MAX_ADDED_SCOPES: Final = 16
#: Statuses of a token server that may work again later.
_SERVER_ERRORS: Final = frozenset({500, 502, 503, 504})
#: A secret that so many repositories have refused, and none has accepted, is not sent to others: accounts are locked
#: after a few wrong passwords.
_MAX_REFUSALS: Final = 3
#: How many schemes of a registry an error names.
_MAX_NAMED_SCHEMES: Final = 4


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
        find_credential: Callable[[str], Credential | None],
        send: Callable[[TokenRequest], TokenResponse],
        *,
        format_hint: Callable[[str], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Authenticate to `registry` ("docker.io", "localhost:5000"); no request is sent yet.

        `find_credential(repository)` returns the credential, or None for anonymous. It is called once for each
        repository, when a challenge needs it. `send` sends a token request and returns the response. `format_hint`
        completes a command that a hint advises to run. `clock` counts seconds.
        """
        self._registry = registry
        self._send = send
        self._format_hint = format_hint
        self._clock = clock
        self._look_up_credential = find_credential
        #: The locks under which one thread sends a secret (its header is the key), or fetches a token (its scopes).
        self._locks: KeyedLocks[str | tuple[str, ...]] = KeyedLocks()
        #: The registry's last challenge.
        self._challenge: Challenge | None = None
        #: Repository -> its credential.
        self._credentials = OncePerKey(self._load_credential)
        #: The scopes of a caller -> those that challenges of the registry have added.
        self._added_scopes: dict[tuple[str, ...], tuple[str, ...]] = {}
        #: All scopes of a token request -> its token, or the message of its refusal.
        self._tokens: dict[tuple[str, ...], _Token] = {}
        self._token_refusals: dict[tuple[str, ...], str] = {}
        #: Headers with a secret that the registry has accepted; others, with the repositories that have refused them.
        self._accepted: set[str] = set()
        self._refused: defaultdict[str, set[str]] = defaultdict(set)

    @property
    def has_challenge(self) -> bool:
        """Whether the registry has sent a challenge."""
        return self._challenge is not None

    def authorize(self, scopes: tuple[str, ...]) -> Generator[str | None, Sequence[str] | None, None]:
        """Yield the Authorization header of each attempt of one request; end when no other header would help.

        The caller sends back the challenges of a 401, or None if the response has another status. It closes the
        generator if the registry does not respond.

        Raises:
            AuthenticationError, RegistryError, UsageError: as `find_header` and `answer_challenge`.
        """
        first = self.find_header(scopes)
        challenges = yield from self._attempt(first, scopes)
        if challenges is None:
            return
        second = self.answer_challenge(challenges, scopes, first)
        challenges = yield from self._attempt(second, scopes)
        if challenges is None:
            return
        # A third attempt helps in two cases. The first token of this request expired on its way, or is not valid yet by
        # the registry's clock. Or the secret itself was refused: then `answer_challenge` raises, unless the registry
        # now requires a token instead of the password.
        if (first is None and _is_token_expired(challenges)) or self._is_only_credential(second, scopes):
            yield from self._attempt(self.answer_challenge(challenges, scopes, second), scopes)

    def find_header(self, scopes: tuple[str, ...]) -> str | None:
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
        return build_basic_header(credential) if credential and credential.registry_token is None else None

    def answer_challenge(self, www_authenticate: Sequence[str], scopes: tuple[str, ...], refused: str | None) -> str:
        """Return the header with which to repeat a request that got a 401.

        `www_authenticate` are the header values of the 401; if it has none, the registry's last challenge applies
        (gcr.io). `refused` is the header of that request: an equal token is discarded and replaced. The caller must
        notice if the new token is refused too.

        Raises:
            AuthenticationError: no credential was found, or it was refused.
            RegistryError: the challenge, the token server or its response is broken.
            UsageError: the credential cannot be sent.
        """
        challenge = self._challenge = self._choose_challenge(parse_challenges(www_authenticate)) or self._challenge
        if challenge is None:
            msg = f"{self._registry} answers 401 and does not say how to authenticate"
            hint = "the answer may come from a web server or a proxy instead of a registry"
            raise AuthenticationError(msg, hint=hint)
        if challenge.scheme == "bearer":
            requested_scopes = challenge.parameters.get("scope", "").split()[:MAX_ADDED_SCOPES]
            with self._locks[scopes]:
                added_scopes = self._added_scopes.get(scopes, ())
                added_scopes += missing_scopes(requested_scopes, scopes + added_scopes)
                self._added_scopes[scopes] = added_scopes[:MAX_ADDED_SCOPES]
            for key, token in self._tokens.copy().items():
                if token.header == refused:
                    self._tokens.pop(key, None)
            header = self._bearer_header(challenge, scopes)
            credential = self._find_credential(scopes)
            if header == refused and credential is not None and credential.registry_token is not None:
                # No server issues another token for a registry token.
                raise self._refused_error(credential)
            return header
        return self._answer_basic(refused, scopes)

    def _attempt(
        self, header: str | None, scopes: tuple[str, ...]
    ) -> Generator[str | None, Sequence[str] | None, Sequence[str] | None]:
        """Yield a header; return the challenges. Until a secret is accepted, other requests wait for its result.

        Raises:
            AuthenticationError: another request sent the secret meanwhile, and it was refused.
        """
        if header is None or header in self._accepted or not self._is_only_credential(header, scopes):
            return (yield header)
        with self._locks[header]:
            # Some registries answer 401 instead of 403 if the user has no rights in this repository.
            refused_by, repository = self._refused[header], _find_repository(scopes)
            if repository in refused_by or len(refused_by) >= _MAX_REFUSALS:
                raise self._refused_error(self._find_credential(scopes))
            challenges = yield header
            if challenges is None:
                self._accepted.add(header)
            elif header not in self._accepted:
                refused_by.add(repository)
            return challenges

    def _is_only_credential(self, header: str, scopes: tuple[str, ...]) -> bool:
        """Return whether a header cannot be replaced by another one if it is refused."""
        credential = self._find_credential(scopes)
        return header.startswith("Basic ") or (credential is not None and credential.registry_token is not None)

    def _choose_challenge(self, challenges: list[Challenge]) -> Challenge | None:
        """Return a Bearer challenge with a realm, else Basic; None without any challenge."""
        bearer_challenges = [challenge for challenge in challenges if challenge.scheme == "bearer"]
        basic_challenges = [challenge for challenge in challenges if challenge.scheme == "basic"]
        for challenge in [bearer for bearer in bearer_challenges if bearer.parameters.get("realm")] + basic_challenges:
            return challenge
        if bearer_challenges:
            msg = f"{self._registry} requires a Bearer token, but names no realm"
            raise RegistryError(msg, status=401)
        if challenges:
            names = list(dict.fromkeys(printable(challenge.scheme, 40) for challenge in challenges))
            schemes = ", ".join(names[:_MAX_NAMED_SCHEMES]) + (", ..." if len(names) > _MAX_NAMED_SCHEMES else "")
            msg = f"{self._registry} requires {schemes} authentication; only Basic and Bearer are supported"
            raise AuthenticationError(msg)
        return None

    def _find_credential(self, scopes: tuple[str, ...]) -> Credential | None:
        return self._credentials(_find_repository(scopes))

    def _load_credential(self, repository: str) -> Credential | None:
        credential = self._look_up_credential(repository)
        if credential is None:
            notices.notify(f"{self._registry}: asking anonymously: no credentials were found", level=1)
            return None
        _check_credential(credential)
        notices.notify(f"{self._registry}: asking with {describe_credential(credential)}", level=1)
        return credential

    def _answer_basic(self, refused: str | None, scopes: tuple[str, ...]) -> str:
        credential = self._find_credential(scopes)
        if credential is None or credential.registry_token is not None:
            msg = f"{self._registry} requires a user name and password, but none were found"
            raise self._login_error(msg)
        header = build_basic_header(credential)
        if header == refused:
            raise self._refused_error(credential)
        return header

    def _refused_error(self, credential: Credential | None) -> AuthenticationError:
        msg = f"{self._registry} refused {describe_credential(credential) if credential else 'the credentials'}"
        return self._login_error(msg, credential)

    def _login_error(self, message: str, credential: Credential | None = None) -> AuthenticationError:
        hint = f"ocistream login {self._registry}"
        if credential is not None and credential.source.startswith("--"):
            # The password may come from a file, stdin or a variable.
            hint = f"the user name or password is wrong; stored logins are ignored while {credential.source} is given"
        elif credential is not None and credential.is_named_by_user:
            hint = f"check the user name and password from {credential.source}: they take precedence over `{hint}`"
        return AuthenticationError(message, hint=self._format_hint(hint))

    # -- tokens -----------------------------------------------------------------------------------------

    def _bearer_header(self, challenge: Challenge, scopes: tuple[str, ...]) -> str:
        """Return the header of a stored token that covers `scopes`, or of a new one."""
        credential = self._find_credential(scopes)
        if credential is not None and credential.registry_token is not None:
            return f"Bearer {credential.registry_token}"
        all_scopes = scopes + self._added_scopes.get(scopes, ())
        if (stored_token := self._find_token(all_scopes, credential)) is not None:
            return stored_token.header
        with self._locks[all_scopes]:
            if (stored_token := self._find_token(all_scopes, credential)) is not None:
                return stored_token.header
            if all_scopes in self._token_refusals:
                # Repeating a wrong password locks accounts, so parallel workers share the refusal.
                raise self._login_error(self._token_refusals[all_scopes], credential)
            new_token = self._fetch_token(challenge, all_scopes, credential)
            self._tokens[all_scopes] = new_token
            return new_token.header

    def _find_token(self, wanted: tuple[str, ...], credential: Credential | None) -> _Token | None:
        """Return a valid token for exactly these scopes, else one that covers them.

        Exact scopes come first, because some registries read only a token's first scope (ggcr). A token for another
        credential does not count: it may have fewer rights.
        """
        now = self._clock()
        tokens = self._tokens.copy()
        exact = tokens.get(wanted)
        for token in (exact, *tokens.values()) if exact is not None else tokens.values():
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
                f"refused {describe_credential(credential)}"
                if credential
                else "requires credentials, but none were found"
            )
            self._token_refusals[wanted] = f"the token server {server} of {self._registry} {reason}"
            raise self._login_error(self._token_refusals[wanted], credential)
        where = f"the answer of the token server {server} of {self._registry}"
        if not 200 <= response.status < 300:
            msg = f"the token server {server} of {self._registry} answered {response.status}"
            # The caller must not take the status for the registry's own, such as that of a missing API. Only a server
            # error may pass.
            raise RegistryError(msg, status=503 if response.status in _SERVER_ERRORS else 401)
        try:
            fields = parse_json(response.body, where, limits.MAX_TOKEN_RESPONSE)
            token = parse_token(fields, where)
        except ArchiveError as error:
            # Without its cause, which contains the response with the token.
            raise RegistryError(error.message, status=401) from None
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


def _find_repository(scopes: tuple[str, ...]) -> str:
    """Return the first repository in `scopes`, for a mount the one that is pushed to; "" if there is none."""
    resources = (split_scope(scope)[0] for scope in scopes)
    return next((name.removeprefix("repository:") for name in resources if name.startswith("repository:")), "")


def _is_token_expired(challenges: Sequence[str]) -> bool:
    """Return whether a challenge says that the token is invalid (RFC 6750, section 3.1).

    Then a new token may work. Without that error, or with one that names missing rights, a new token would not help.
    """
    return any(challenge.parameters.get("error") == "invalid_token" for challenge in parse_challenges(challenges))


def _check_credential(credential: Credential) -> None:
    """Refuse a credential that cannot be sent: with a lone surrogate, or with a line break in a token.

    Raises:
        UsageError: the credential cannot be sent.
    """
    try:
        f"{credential.username}{credential.secret}{credential.identity_token}".encode(errors="surrogateescape")
    except UnicodeEncodeError:
        msg = f"{describe_credential(credential)} are not text"
        # Without its cause, which contains the password.
        raise UsageError(msg) from None
    if credential.registry_token is not None and not VISIBLE_ASCII.match(credential.registry_token):
        msg = f"{describe_credential(credential)} have a token with characters that a header cannot contain"
        raise UsageError(msg)
