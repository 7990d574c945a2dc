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
from ocistream.serve.errors import RequestRejectedError

if TYPE_CHECKING:
    from email.message import Message

__all__ = [
    "BasicAuth",
    "is_from_web_page",
]

_CHALLENGE: Final = 'Basic realm="ocistream", charset="UTF-8"'


class BasicAuth:
    """Knows a user and a password, and keeps neither as it is: a traceback or a core would show them."""

    def __init__(self, user: str, password: str) -> None:
        """Let in who shows these.

        Raises:
            UsageError: nobody could show them: one is empty, or there is a colon in the name.
        """
        if not user or not password or ":" in user:
            msg = "a user name has no colon in it, and neither it nor the password is empty"
            raise UsageError(msg)
        self.user = user
        self._key = secrets.token_bytes(32)
        self._expected = self._mac(f"{user}:{password}".encode())

    def authenticate(self, authorization: str | None) -> str:
        """Give the user whom an `Authorization` header shows to be one.

        How long that takes says nothing of how much of it was right.

        Raises:
            RefusedError: it does not, or there is none (401).
        """
        scheme, _, shown = (authorization or "").strip().partition(" ")
        pair = b""
        if scheme.lower() == "basic":
            try:
                pair = base64.b64decode(shown.strip(), validate=True)
            except (binascii.Error, ValueError):
                pair = b""
        if hmac.compare_digest(self._mac(pair), self._expected):
            return self.user
        what = "the user name or the password is wrong" if authorization else "a user name and a password are needed"
        raise RequestRejectedError(401, "UNAUTHORIZED", what, headers={"WWW-Authenticate": _CHALLENGE})

    def _mac(self, pair: bytes) -> bytes:
        return hmac.digest(self._key, pair, hashlib.sha256)


#: The values of `Sec-Fetch-Site` that no page of another site can cause: the user typed the address, or the page
#: came from here. A page of another port of this machine is "same-site".
_TRUSTED_FETCH_SITES: Final = frozenset({"none", "same-origin"})


def is_from_web_page(headers: Message, *, has_password: bool) -> bool:
    """Return whether a page of another site makes the request, or may do so.

    A navigation from another site is refused as well: none of what is served is a page for people. With a password
    the name of the host does not matter: a page under a rebound name does not know the password.
    """
    if "Origin" in headers or headers.get("Sec-Fetch-Site", "none").strip().lower() not in _TRUSTED_FETCH_SITES:
        return True
    return not has_password and _is_dns_rebinding(headers)


def _is_dns_rebinding(headers: Message) -> bool:
    """Return whether a browser asks under a name that is not this machine's own (DNS rebinding).

    For such a page it is a request to the page's own origin, which a GET does not show; but every browser sends
    `Accept-Language`.
    """
    if "Accept-Language" not in headers:
        return False
    host = re.sub(r":[0-9]*\Z", "", headers.get("Host", "").strip()).strip("[]")
    return not is_loopback(host.lower())
