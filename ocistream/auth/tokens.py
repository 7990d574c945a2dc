"""Scopes, challenges, and the requests and responses of token servers. Values only: nothing is sent here.

Sources: RFC 9110, section 11.6.1, and the token specification of the distribution project.
"""

from __future__ import annotations

import base64
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

from ocistream.errors import ArchiveError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ocistream.auth.docker_config import Credential


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


_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
#: The parts of a challenge. At any place that is not a separator one alternative matches, and none reads a character
#: twice: a hostile header takes time linear in its length.
_ITEM: Final = re.compile(
    rf"""
      (?P<name>{_WORD}) [ \t]*+ = [ \t]*+ (?: (?P<word>{_WORD}) | "(?P<quoted>(?:[^"\\]|\\.)*+)" )
    | (?P<scheme>{_WORD}) (?=[ \t,]|\Z) (?![ \t]*+=) (?: [ \t]++ [0-9A-Za-z._~+/-]++ =*+ [ \t]*+ (?=,|\Z) )?
    | (?P<garbage> [^ \t,"\\] (?:[^",\\])*+ | \\.? | "(?:[^"\\]|\\.)*+ (?:"|\\?\Z) )
    """,
    re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Challenge:
    """A challenge of a 401. `scheme` ("bearer", "basic") and the names of `parameters` are lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(values: Sequence[str]) -> list[Challenge]:
    """Return all challenges in the values of `WWW-Authenticate` (RFC 9110, section 11.6.1).

    Never raises: unknown parts are skipped, and so is a token68, which neither Basic nor Bearer has. Of two parameters
    with one name the first counts. A missing comma between parameters is accepted.
    """
    challenges: list[Challenge] = []
    for value in values:
        parameters: dict[str, str] | None = None
        for item in _ITEM.finditer(value):
            if item["scheme"]:
                parameters = {}
                challenges.append(Challenge(item["scheme"].lower(), parameters))
            elif item["name"] and parameters is not None:
                text = item["word"] or re.sub(r"\\(.)", r"\1", item["quoted"], flags=re.DOTALL)
                parameters.setdefault(item["name"].lower(), text)
    return challenges


CLIENT_ID: Final = "ocistream"
#: The user name of a helper whose secret is an identity token.
TOKEN_USERNAME: Final = "<token>"  # noqa: S105 - it marks a secret and is none
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
        headers["Authorization"] = build_basic_header(credential)
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


def build_basic_header(credential: Credential) -> str:
    """Return the Basic header of a credential (RFC 7617); an identity token takes the password's place.

    Raises:
        UsageError: the user name contains a colon, where the registry would split it.
    """
    username, secret = credential.username, credential.secret
    if credential.identity_token is not None:
        username, secret = username or TOKEN_USERNAME, credential.identity_token
    if ":" in username:
        msg = f"the user name of {describe_credential(credential)} contains a colon, which no registry accepts"
        raise UsageError(msg)
    plain = f"{username}:{secret}".encode(errors="surrogateescape")
    return f"Basic {base64.b64encode(plain).decode()}"


def describe_credential(credential: Credential) -> str:
    """Return the name of a credential in messages, by its source."""
    return f"the credentials from {credential.source}" if credential.source else "the credentials"


def parse_token(fields: Mapping[str, Any], where: str) -> str:
    """Return `token`, else `access_token`; null and "" count as absent.

    Raises:
        ArchiveError: the token is missing, or is not allowed in a header.
    """
    token = fields.get("token") or fields.get("access_token")
    if not token:
        msg = f"{where} has no token"
        raise ArchiveError(msg)
    if not isinstance(token, str) or not VISIBLE_ASCII.match(token):
        msg = f"{where} has a token with characters that a header cannot contain"
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
