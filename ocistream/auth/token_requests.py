"""What a token server is asked, and what its answer says; and Basic, in which both it and registries take passwords.

The forms are those of RFC 7617 (Basic), and of the distribution project's "Token Authentication" and "Oauth2 Token
Authentication". Values in, values out; nothing is sent from here.
"""

from __future__ import annotations

import base64
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

from ocistream.auth.docker_config import TOKEN_USERNAME
from ocistream.errors import ArchiveError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocistream.auth.docker_config import Credential

__all__ = [
    "VISIBLE_ASCII",
    "TokenRequest",
    "TokenResponse",
    "basic_header",
    "build_get_request",
    "build_oauth_request",
    "describe_credential",
    "parse_lifetime",
    "parse_token",
]

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
