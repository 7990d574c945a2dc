"""Decide who may send requests: Basic authentication (RFC 7617), and no web pages in a browser on this machine."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from typing import TYPE_CHECKING, Final

from ocistream.errors import UsageError
from ocistream.http.origins import is_loopback
from ocistream.serve.request import RequestRejectedError

if TYPE_CHECKING:
    from collections.abc import Mapping

_CHALLENGE: Final = 'Basic realm="ocistream", charset="UTF-8"'


class BasicAuth:
    """Checks one user name and password.

    It stores only a keyed digest, because a traceback or a core dump would show the password. There is one user and no
    file of users: bcrypt of htpasswd would be a dependency, and unsalted SHA-1, which Python can check, is not safe.
    """

    def __init__(self, user: str, password: str) -> None:
        """Accept this user name and password.

        Raises:
            UsageError: no client could send them: one is empty, or the name has a colon.
        """
        if not user or not password or ":" in user:
            msg = "a user name has no colon, and neither it nor the password is empty"
            raise UsageError(msg)
        self.user = user
        self._key = secrets.token_bytes(32)
        self._expected = self._mac(f"{user}:{password}".encode())

    def authenticate(self, authorization: str | None) -> str:
        """Return the user that an `Authorization` header authenticates, in constant time.

        Raises:
            RequestRejectedError: the header is wrong or missing (401).
        """
        scheme, _, credentials = (authorization or "").strip().partition(" ")
        pair = b""
        if scheme.lower() == "basic":
            try:
                pair = base64.b64decode(credentials.strip(), validate=True)
            except (binascii.Error, ValueError):
                pair = b""
        if hmac.compare_digest(self._mac(pair), self._expected):
            return self.user
        message = "the user name or the password is wrong" if authorization else "a user name and a password are needed"
        raise RequestRejectedError(401, "UNAUTHORIZED", message, headers={"WWW-Authenticate": _CHALLENGE})

    def _mac(self, pair: bytes) -> bytes:
        return hmac.digest(self._key, pair, hashlib.sha256)


#: Values of `Sec-Fetch-Site` that no page of another site can cause: the user typed the address, or the page came from
#: here. A page of another port of this machine is "same-site".
_TRUSTED_FETCH_SITES: Final = frozenset({"none", "same-origin"})


def is_from_web_page(headers: Mapping[str, str], *, has_password: bool) -> bool:
    """Return whether a page of another site makes the request, or may do so: no page may push through a browser.

    A navigation from another site is refused too: people open the page about the images by its address. With a password
    the host name does not matter: a page under a rebound name does not know the password.
    """
    if "origin" in headers or headers.get("sec-fetch-site", "none").lower() not in _TRUSTED_FETCH_SITES:
        return True
    return not has_password and _is_dns_rebinding(headers)


def _is_dns_rebinding(headers: Mapping[str, str]) -> bool:
    """Return whether a browser sends the request under a name that is not this machine's own (DNS rebinding).

    Such a page sends it to its own origin, so a GET has no `Origin` header. But every browser sends `Accept-Language`.
    """
    if "accept-language" not in headers:
        return False
    host = re.sub(r":[0-9]*\Z", "", headers.get("host", "")).strip("[]")
    return not is_loopback(host.lower())
