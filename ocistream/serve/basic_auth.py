"""Who is let in: one user with a password, by Basic authentication (RFC 7617). It may not send anything."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from typing import Final

from ocistream.errors import UsageError
from ocistream.serve.errors import RequestRejectedError

__all__ = ["BasicAuth"]

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
